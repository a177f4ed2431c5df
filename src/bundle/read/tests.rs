use std::path::PathBuf;

use jiff::Timestamp;
use tempfile::TempDir;

use super::*;
use crate::agent::{HostRoot, judge_again};
use crate::bundle::{Bundle, FactsOut, Item};
use crate::config::Config;
use crate::verdict::WorkerState;

fn manifest() -> Manifest {
    let facts = Item { name: FACTS.into(), key: "E20".into(), of: "all".into(), ..Item::default() };
    Manifest { items: vec![facts], ..Manifest::new("n1", "boot", "asked for", Timestamp::UNIX_EPOCH) }
}

/// A bundle of a machine that nobody has looked at.
fn facts() -> Vec<u8> {
    let report = judge_again(Facts::none(&manifest()), &Config::default());
    serde_json::to_vec(&FactsOut::of(&report)).expect("plain")
}

fn written(manifest: &Manifest, facts: Option<&[u8]>) -> (TempDir, PathBuf) {
    let dir = tempfile::tempdir().expect("a temporary directory");
    let path = dir.path().join("n1");
    let (mut bundle, _) = Bundle::folder(&path, manifest.clone()).expect("it is made");
    if let Some(facts) = facts {
        bundle.put(FACTS, facts).expect("writes");
    }
    bundle.finish(manifest, "summary").expect("writes");
    (dir, path)
}

fn why(path: &Path) -> String {
    format!("{:#}", read(path).expect_err("it cannot be read")).replacen(&path.display().to_string(), "PATH", 1)
}

#[test]
fn a_directory_and_its_archive_read_the_same() {
    let (dir, path) = written(&manifest(), Some(&facts()));
    // With one inside that the agent kept before.
    std::fs::create_dir_all(path.join("kept/x")).expect("it is made");
    let before = Manifest { node: "before".into(), ..manifest() };
    let before = serde_json::to_vec(&before).expect("plain");
    std::fs::write(path.join("kept/x/manifest.json"), before).expect("writes");
    std::fs::write(path.join("kept/x/facts.json"), facts()).expect("writes");
    let archive = dir.path().join("n1.tar");
    let tar = std::process::Command::new("tar").arg("cf").arg(&archive).arg("-C").arg(dir.path()).arg("n1").status();
    assert!(tar.expect("tar").success());
    for place in [&path, &archive] {
        let (read, facts) = read(place).expect("reads");
        assert_eq!(read.node, "n1");
        let report = judge_again(facts.expect("it has facts"), &Config::default());
        assert_eq!(report.verdict.state, WorkerState::Unknown, "what was not seen is not healthy");
    }
    let cut = std::fs::read(&archive).expect("reads");
    std::fs::write(&archive, &cut[..cut.len() / 2]).expect("writes");
    assert!(why(&archive).starts_with("PATH: is cut off at byte "), "{}", why(&archive));
    assert_eq!(why(dir.path()), "PATH: holds the bundles of 1 nodes; give one of them: n1");
}

#[test]
fn what_nodes_kept_before_are_no_other_nodes() {
    let dir = tempfile::tempdir().expect("a temporary directory");
    let archive = dir.path().join("all.tar");
    let entry = |name: &str| super::super::tar::entry(&format!("{name}/{MANIFEST}"), b"{}", 0);
    let all = ["all/n1", "all/n1/kept/x", "all/n1/kept/y", "all/n1-b", "all/n1-b/kept/x"].map(entry).concat();
    std::fs::write(&archive, [all, vec![0; 1024]].concat()).expect("writes");
    assert_eq!(why(&archive), "PATH: holds the bundles of 2 nodes; give one of them: all/n1, all/n1-b");
}

#[test]
fn what_is_wrong_is_named_by_file_and_field() {
    let good = facts();
    let text = String::from_utf8(good.clone()).expect("JSON");
    let cases = [
        (
            Some(text.replacen("\"takenAt\":\"1970", "\"takenAt\":\"x1970", 1)),
            "facts.json: field report.snapshot.takenAt: holds \"x1970-01-01T00:00:00Z\", and should be a time",
        ),
        (
            Some(text.replacen("\"routes\":[]", "\"routes\":[{\"table\":\"main\"}]", 1)),
            "facts.json: field routes[0].table: holds \"main\", and should be a number (u32)",
        ),
        (Some(text[..text.len() - 9].to_owned()), "facts.json: is damaged: EOF while parsing"),
        (Some("{}".to_owned()), "facts.json: field report.verdict.findings: is missing"),
        (None, "facts.json: is missing, and manifest.json says that it was taken"),
    ];
    for (facts, expected) in cases {
        let (_dir, path) = written(&manifest(), facts.as_deref().map(str::as_bytes));
        assert!(why(&path).starts_with(&format!("PATH: {expected}")), "{}", why(&path));
    }
    let mut long = manifest();
    long.items[0].bytes = 1 << 30;
    let (_dir, path) = written(&long, Some(&good));
    assert!(why(&path).contains("facts.json: is cut off: "), "{}", why(&path));
    let (_dir, path) = written(&Manifest { schema: 9, ..manifest() }, Some(&good));
    assert!(why(&path).contains("manifest.json: field schema is 9"), "{}", why(&path));
    let (_dir, path) = written(&Manifest { items: Vec::new(), ..manifest() }, None);
    assert!(why(&path).contains("gathering was interrupted before it"), "{}", why(&path));
    std::fs::write(path.join(MANIFEST), "{\"schema\":1,\"version\":3}").expect("writes");
    assert!(why(&path).contains("manifest.json: is damaged: invalid type: integer `3`"), "{}", why(&path));
    std::fs::remove_file(path.join(MANIFEST)).expect("removes");
    assert!(why(&path).contains("holds no manifest.json, so it is no bundle"), "{}", why(&path));
}

#[test]
fn where_the_facts_could_not_be_taken_nothing_is_known() {
    let mut without = manifest();
    without.items[0].failed = Some("the agent does not answer".into());
    let (_dir, path) = written(&without, None);
    let (read, facts) = read(&path).expect("reads");
    assert!(facts.is_none());
    let report = judge_again(Facts::none(&read), &Config::default());
    assert_eq!((report.verdict.state, report.snapshot.identity.hostname.as_str()), (WorkerState::Unknown, "n1"));
}

#[tokio::test]
#[ignore = "daemons of other tests come and go on the same machine: scripts/test.sh runs it by itself"]
async fn what_this_machine_shows_is_judged_the_same_again() {
    let report = crate::agent::look_once(&HostRoot::new("/"), &Config::default()).await;
    let (_dir, path) = written(&manifest(), Some(&serde_json::to_vec(&FactsOut::of(&report)).expect("plain")));
    let (_, facts) = read(&path).expect("reads");
    let facts = facts.expect("it has facts");
    assert_eq!(facts.snapshot, report.snapshot);
    let again = judge_again(facts, &Config::default());
    assert_eq!(again.verdict.findings, report.verdict.findings);
    assert_eq!(
        again.verdict.conditions.iter().map(|it| it.status).collect::<Vec<_>>(),
        report.verdict.conditions.iter().map(|it| it.status).collect::<Vec<_>>()
    );
}
