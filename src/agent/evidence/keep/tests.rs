use std::os::unix::fs::PermissionsExt as _;

use super::*;
use crate::bundle::Facts;
use crate::config::Config;
use crate::verdict::{WorkerState, told};

fn at(second: i64) -> Timestamp {
    Timestamp::from_second(1_700_000_000 + second).expect("valid")
}

fn raised(code: &str, severity: Severity, area: Area, since: i64) -> Raised {
    let json = serde_json::json!({
        "code": code, "severity": severity, "area": area, "subject": "", "since": at(since), "detail": "d", "next": "n",
    });
    serde_json::from_value(json).expect("a finding")
}

fn report(findings: Vec<Raised>, second: i64) -> Report {
    let blank = Facts::none(&Manifest::new("n1", "boot", "", at(second)));
    let mut report = crate::agent::judge_again(blank, &Config::default());
    report.verdict = Verdict { at: at(second), state: WorkerState::Critical, findings, ..report.verdict };
    report
}

fn hung(second: i64) -> Report {
    report(vec![raised("ContainerdUnresponsive", Severity::Critical, Area::Runtime, second)], second)
}

fn full(second: i64) -> Report {
    report(vec![raised("DiskFull", Severity::Critical, Area::Capacity, second)], second)
}

/// What is told of a runtime that hangs.
fn runtime_problem() -> Told {
    let bad = hung(0);
    let mut tells = told(&bad.verdict, &bad.snapshot.identity, &crate::verdict::Episodes::default());
    for condition in &mut tells.conditions {
        condition.status = if condition.kind == "RuntimeProblem" { Status::True } else { Status::False };
    }
    tells
}

fn of(report: &Report) -> Episode {
    Episode::from(&report.verdict.findings[0])
}

fn names(folder: &Path) -> Vec<String> {
    let mut names: Vec<_> = fs::read_dir(folder)
        .expect("lists")
        .map(|it| it.expect("entry").file_name().to_string_lossy().into_owned())
        .collect();
    names.sort_unstable();
    names
}

async fn write_(dir: &Path, report: &Report) -> Result<usize, LookError> {
    let root = tempfile::tempdir().expect("a temporary directory");
    fs::create_dir_all(root.path().join("proc")).expect("mkdir");
    fs::write(root.path().join("proc/meminfo"), "MemTotal: 1 kB\n").expect("writes");
    let written = write(dir, &HostRoot::new(root.path()), &of(report), report, &[]).await?;
    Ok(written.map_or(0, |held| held.len()))
}

#[tokio::test]
async fn bundles_are_whole_judged_again_few_and_once_per_episode() {
    let dir = tempfile::tempdir().expect("a temporary directory");
    let first = hung(0);
    assert_eq!(write_(dir.path(), &first).await, Ok(1));
    assert_eq!(names(dir.path()), ["20231114T221320Z-ContainerdUnresponsive"]);
    assert!(is_bundle(&names(dir.path())[0]) && is_bundle(NEW) && !is_bundle("20231114-ContainerdUnresponsive"));
    assert!(!is_bundle("20231114T221320Z-") && !is_bundle("20231114T221320Z-../x") && !is_bundle("mine"));
    let (manifest, facts) = crate::bundle::read(&dir.path().join(&names(dir.path())[0])).expect("reads");
    assert!(manifest.covers("ContainerdUnresponsive", "", at(0)) && manifest.has("kernel/meminfo"));
    assert_eq!(facts.expect("facts").snapshot, first.snapshot);
    let mode = fs::metadata(dir.path().join(&names(dir.path())[0])).expect("there").permissions().mode();
    assert_eq!(mode & 0o777, 0o700);
    // The same episode, as a restarted agent sees it; then another, and one too many for a day.
    let mut again = hung(100);
    again.verdict.findings[0].since = at(0);
    assert_eq!(write_(dir.path(), &again).await, Ok(0));
    assert_eq!(write_(dir.path(), &hung(200)).await, Ok(2));
    assert_eq!(write_(dir.path(), &hung(300)).await, Ok(0));
    assert_eq!(write_(dir.path(), &hung(86_500)).await, Ok(3));
    for (index, code) in ["DiskFull", "CniConfigMissing", "KubeletDown"].into_iter().enumerate() {
        let second = 90_000 + i64::try_from(index).expect("small");
        let other = report(vec![raised(code, Severity::Critical, Area::Capacity, second)], second);
        assert_eq!(write_(dir.path(), &other).await, Ok((4 + index).min(MOST)));
    }
    assert_eq!(names(dir.path()).len(), MOST, "the oldest is gone");
    assert!(!names(dir.path()).iter().any(|name| name.starts_with("20231114T221320Z")));
}

#[tokio::test]
async fn nothing_is_written_to_a_full_or_a_read_only_file_system() {
    for (options, why) in [("size=8m", "nearly full"), ("size=256m,ro", "Read-only file system")] {
        let dir = tempfile::tempdir().expect("a temporary directory");
        let mount =
            std::process::Command::new("mount").args(["-t", "tmpfs", "-o", options, "none"]).arg(dir.path()).status();
        assert!(mount.expect("mount").success());
        let failed = write_(&dir.path().join(FOLDER), &hung(0)).await;
        let left = dir.path().join(FOLDER).join(NEW).exists();
        let umount = std::process::Command::new("umount").arg(dir.path()).status();
        assert!(umount.expect("umount").success());
        let failed = failed.expect_err("it is refused");
        assert!(failed.to_string().contains(why), "{failed}");
        assert!(!left);
    }
}

#[tokio::test]
async fn it_is_taken_once_when_something_becomes_bad_and_conditions_for_repair_wait_for_it() {
    let dir = tempfile::tempdir().expect("a temporary directory");
    let root = tempfile::tempdir().expect("a temporary directory");
    let mut keeper = Keeper::new(dir.path(), &HostRoot::new(root.path()));
    let kept = keeper.kept();
    assert_eq!(keeper.wants(&report(Vec::new(), 0).verdict), None, "nothing is wrong");
    let info = raised("KernelOops", Severity::Info, Area::Integrity, 0);
    assert_eq!(keeper.wants(&report(vec![info], 0).verdict), None);

    let mut pending = report(Vec::new(), 0);
    pending.verdict.pending = hung(0).verdict.findings;
    let episode = keeper.wants(&pending.verdict).expect("it would soon stop the worker");
    let (bad, tells) = (hung(0), runtime_problem());
    assert!(keeper.holds(None, &tells), "it turns True, and the evidence is being taken");
    assert!(!keeper.holds(Some(&tells), &tells), "it is True already");
    keeper.take(episode, pending, Vec::new());
    for _ in 0..500 {
        if kept.counts() == (1, 0) && !keeper.holds(None, &tells) {
            break;
        }
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
    assert_eq!((kept.counts(), kept.bundles().len()), ((1, 0), 1));
    assert!(!keeper.holds(None, &tells));
    assert_eq!(keeper.wants(&bad.verdict), None, "it is the same fault");
    assert_eq!(keeper.owes_in(), None);
    assert_eq!(keeper.wants(&report(Vec::new(), 1).verdict), None);
    let other = full(2);
    assert_eq!(keeper.wants(&other.verdict), None, "it is too soon");
    assert!(keeper.owes_in().is_some_and(|wait| wait <= BREATH), "and is taken when the breath is over");
    assert!(!keeper.holds(None, &tells), "nobody waits for that");
    keeper.last = Instant::now().checked_sub(BREATH);
    assert_eq!(keeper.wants(&other.verdict), Some(of(&other)));
}

#[tokio::test]
async fn a_fault_for_which_machines_are_replaced_waits_for_no_breath_and_is_waited_for() {
    let dir = tempfile::tempdir().expect("a temporary directory");
    let mut keeper = Keeper::new(dir.path(), &HostRoot::new(dir.path()));
    let (other, tells) = (full(0), runtime_problem());
    assert_eq!(keeper.wants(&other.verdict), Some(of(&other)));
    assert!(!keeper.holds(None, &tells), "what is being written is of something else");
    // The runtime hangs while that is being written.
    let worse = hung(1);
    let both = report([other.verdict.findings.clone(), worse.verdict.findings.clone()].concat(), 1);
    assert_eq!(keeper.wants(&both.verdict), None, "one at a time");
    assert!(keeper.holds(None, &tells), "its turn is to come");
    assert_eq!(keeper.owes_in(), Some(Duration::from_secs(1)), "without a breath");
    keeper.kept.running.store(false, Ordering::Relaxed);
    assert!(keeper.holds(None, &tells), "what is written is of something else");
    assert_eq!(keeper.wants(&both.verdict), Some(of(&worse)));
    assert_eq!(keeper.owes_in(), None);
    assert!(keeper.holds(None, &tells), "it is being written");
    keeper.kept.running.store(false, Ordering::Relaxed);
    assert!(!keeper.holds(None, &tells), "it is written");
    // A breath is passed over once: what follows from one fault would push out the evidence of its beginning.
    let next = raised("RuntimeNotReady", Severity::Critical, Area::Runtime, 2);
    let both = report([both.verdict.findings.clone(), vec![next]].concat(), 2);
    assert_eq!(keeper.wants(&both.verdict), None);
    assert!(keeper.owes_in().is_some_and(|wait| wait > Duration::from_secs(1) && wait <= BREATH));
    // The other condition does not have to wait for it, nor be True before there is evidence of why.
    let sick = raised("FilesystemReadOnly", Severity::Critical, Area::Integrity, 2);
    let sicker = report([both.verdict.findings.clone(), vec![sick.clone()]].concat(), 2);
    assert_eq!(keeper.wants(&sicker.verdict), Some(Episode::from(&sick)));
    keeper.kept.running.store(false, Ordering::Relaxed);
    let after = raised("ContainerdStoreCorrupt", Severity::Critical, Area::Runtime, 3);
    let both = report([both.verdict.findings.clone(), vec![after]].concat(), 3);
    assert_eq!(keeper.wants(&both.verdict), None);
    keeper.last = Instant::now().checked_sub(BREATH);
    assert!(keeper.wants(&both.verdict).is_some());
    keeper.kept.running.store(false, Ordering::Relaxed);
    // What begins after that holds nothing back that has its evidence.
    let third = raised("InodesExhausted", Severity::Critical, Area::Capacity, 2);
    keeper.last = Instant::now().checked_sub(BREATH);
    let all = report([both.verdict.findings.clone(), vec![third]].concat(), 2);
    assert!(keeper.wants(&all.verdict).is_some());
    assert!(!keeper.holds(None, &tells));
}

#[tokio::test]
async fn nothing_is_held_back_for_longer_than_it_may_be() {
    let dir = tempfile::tempdir().expect("a temporary directory");
    let mut keeper = Keeper::new(dir.path(), &HostRoot::new(dir.path()));
    let (other, worse, tells) = (full(0), hung(1), runtime_problem());
    assert!(keeper.wants(&other.verdict).is_some());
    assert_eq!(keeper.wants(&worse.verdict), None, "one at a time");
    let wanted_long_ago = |keeper: &mut Keeper| {
        let then = Instant::now().checked_sub(HOLD).expect("the machine is up for longer");
        keeper.awaited.values_mut().for_each(|it| it.since = then);
    };
    assert!(keeper.holds(None, &tells));
    wanted_long_ago(&mut keeper);
    assert!(!keeper.holds(None, &tells), "the one before takes too long");
    keeper.kept.running.store(false, Ordering::Relaxed);
    assert_eq!(keeper.wants(&worse.verdict), Some(of(&worse)), "but it is taken");
    assert!(!keeper.holds(None, &tells), "it was waited for once");
    // Another one has a time of its own.
    let sick = raised("FilesystemReadOnly", Severity::Critical, Area::Integrity, 2);
    let both = report([worse.verdict.findings.clone(), vec![sick]].concat(), 2);
    assert_eq!(keeper.wants(&both.verdict), None);
    assert!(!keeper.holds(None, &tells), "that is of another condition");
    let mut tells = tells;
    for condition in tells.conditions.iter_mut().filter(|it| it.kind == "NodeIntegrityProblem") {
        condition.status = Status::True;
    }
    assert!(keeper.holds(None, &tells));
    wanted_long_ago(&mut keeper);
    assert!(!keeper.holds(None, &tells));
}
