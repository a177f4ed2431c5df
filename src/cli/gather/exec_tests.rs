use std::path::Path;

use jiff::Timestamp;
use serde_json::json;

use super::*;
use crate::agent::{Depth, HostRoot};
use crate::bundle::{END, entry};

fn bundle(at: &Path) -> (Gatherer, Bundle, Manifest) {
    let new = Manifest::new("n1", "", "a test", Timestamp::UNIX_EPOCH);
    let (to, manifest) = Bundle::folder(&at.join("n1"), new).expect("it is made");
    (Gatherer::new(&HostRoot::new("/"), Depth::Light, 1 << 20), to, manifest)
}

fn archive(files: &[(&str, &[u8])]) -> Vec<u8> {
    let mut all: Vec<u8> = files.iter().flat_map(|(name, content)| entry(name, content, 0)).collect();
    all.extend(END);
    all
}

#[test]
fn only_files_inside_the_bundle_are_taken_redacted_and_never_instead_of_what_the_api_server_said() {
    let dir = tempfile::tempdir().expect("a temporary directory");
    let (mut gatherer, mut to, mut manifest) = bundle(dir.path());
    let api = Item { name: "api/node.json".into(), ..Item::default() };
    gatherer.add(api, Instant::now(), Ok(b"{}".to_vec()), &mut to, &mut manifest);
    let said = json!({
        "schema": 1, "version": "0", "node": "n1", "why": "asked", "begunAt": "2026-01-01T00:00:00Z",
        "items": [
            { "name": "kernel/log.txt", "key": "E26", "of": "dmesg", "redacted": 2, "millis": 7, "cut": "after 9 bytes" },
            { "name": "runtime/info.json", "key": "E23", "of": "crictl info", "failed": "crictl is not installed here" },
            { "name": "api/node.json", "key": "E01", "of": "x", "failed": "never" },
            { "name": "../x", "key": "E01", "of": "x", "failed": "never" },
        ],
    });
    let said = said.to_string();
    let files: [(&str, &[u8]); 11] = [
        ("facts.json", b"{}"),
        ("kernel/log.txt", b"password: hunter2\n"),
        ("api/node.json", b"forged"),
        ("SUMMARY.txt", b"forged"),
        ("../escaped", b"x"),
        ("a/../../escaped", b"x"),
        ("/tmp/escaped", b"x"),
        ("a//b", b"x"),
        ("./c", b"x"),
        ("e\x1b[31m", b"x"),
        ("manifest.json", said.as_bytes()),
    ];
    assert_eq!(take_in(&archive(&files), &mut gatherer, &mut to, &mut manifest), None);
    let names: Vec<&str> = manifest.items.iter().map(|item| item.name.as_str()).collect();
    assert_eq!(names, ["api/node.json", "facts.json", "kernel/log.txt", "runtime/info.json"]);
    let read = |name: &str| std::fs::read_to_string(dir.path().join("n1").join(name)).expect("it is there");
    assert_eq!((read("api/node.json"), read("kernel/log.txt")), ("{}".into(), "password: [redacted]\n".into()));
    let log = &manifest.items[2];
    assert_eq!((log.redacted, log.millis, log.cut.as_deref(), &*log.key), (3, 7, Some("after 9 bytes"), "E26"));
    assert_eq!(manifest.items[3].failed.as_deref(), Some("crictl is not installed here"));
    let mut there: Vec<_> = std::fs::read_dir(dir.path()).expect("it is there").flatten().collect();
    assert_eq!(there.pop().map(|entry| entry.file_name()), Some("n1".into()));
    assert!(there.is_empty() && !Path::new("/tmp/escaped").exists());
}

#[test]
fn of_an_archive_that_ends_early_the_pieces_before_are_taken() {
    let dir = tempfile::tempdir().expect("a temporary directory");
    let (mut gatherer, mut to, mut manifest) = bundle(dir.path());
    let all = archive(&[("facts.json", b"{}"), ("kernel/log.txt", &[b'x'; 5000])]);
    let damage = take_in(&all[..3000], &mut gatherer, &mut to, &mut manifest);
    assert!(damage.is_some_and(|why| why.contains("kernel/log.txt should be 5000 bytes long")));
    assert!(manifest.has(FACTS) && !manifest.has("kernel/log.txt"));
    // What is larger than there is room for costs itself.
    take_in(&archive(&[("big", &vec![b'x'; 2 << 20])]), &mut gatherer, &mut to, &mut manifest);
    assert!(!manifest.has("big") && manifest.missing().count() == 1);
}

#[test]
fn the_agent_is_found_among_the_pods() {
    let mut pods = json!({ "items": [{}, { "metadata": {
        "namespace": "nodevitals", "name": "nodevitals-agent-x",
        "labels": { "app.kubernetes.io/name": "nodevitals", "app.kubernetes.io/component": "agent" },
    } }] });
    let agent = Agent::among(&pods, "nodevitals").expect("the agent");
    assert_eq!(agent.page(), "/api/v1/namespaces/nodevitals/pods/nodevitals-agent-x:10580/proxy/findings");
    assert_eq!((&*agent.container, &*agent.host_root), ("agent", "/host"));
    assert_eq!(Agent::among(&pods, "elsewhere"), None);
    for arguments in [json!(["agent", "--host-root", "/node"]), json!(["agent", "--host-root=/node"])] {
        pods["items"][1]["spec"]["containers"] = json!([{ "name": "a", "args": arguments }]);
        let agent = Agent::among(&pods, "nodevitals").expect("the agent");
        assert_eq!((&*agent.container, &*agent.host_root), ("a", "/node"));
    }
}
