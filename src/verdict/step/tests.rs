use super::super::words::LONGEST_MESSAGE;
use super::*;
use crate::checks::Severity;
use crate::checks::node;

fn now(seconds: u64) -> Now {
    let wall = Timestamp::from_second(1_700_000_000 + i64::try_from(seconds).expect("small")).expect("valid");
    Now { wall, since_boot: Duration::from_secs(1_000 + seconds) }
}

fn check(code: &str) -> &'static Check {
    node::ALL.iter().find(|check| check.code == code).expect("a code of the table")
}

/// Every check healthy but for the given answers.
fn answers(special: &[(&str, Outcome)]) -> Vec<(&'static Check, Outcome)> {
    let special: BTreeMap<&str, &Outcome> = special.iter().map(|(code, outcome)| (*code, outcome)).collect();
    node::ALL
        .iter()
        .map(|check| (*check, special.get(check.code).map_or(Outcome::Healthy, |outcome| (*outcome).clone())))
        .collect()
}

fn found() -> Outcome {
    Outcome::Findings(vec![Finding::new("/", "file system / is full")])
}

#[test]
fn everything_is_unknown_before_the_first_look() {
    let mut beliefs = Beliefs::default();
    let all: Vec<_> = node::ALL.iter().map(|check| (*check, Outcome::Unknown("not looked at yet".into()))).collect();
    let verdict = beliefs.step(&all, now(0));
    assert!(verdict.settling);
    assert_eq!(verdict.state, WorkerState::Unknown);
    for condition in &verdict.conditions {
        assert_eq!((condition.status, condition.reason.as_str()), (Status::Unknown, SETTLING), "{}", condition.kind);
    }
}

#[test]
fn a_finding_counts_after_its_hold_down_and_is_over_after_its_dwell() {
    let check = check("DiskFull");
    let (raise, clear) = (check.raise_after.as_secs(), check.clear_after.as_secs());
    let mut beliefs = Beliefs::default();
    assert_eq!(beliefs.step(&answers(&[]), now(0)).state, WorkerState::Normal);
    let pending = beliefs.step(&answers(&[("DiskFull", found())]), now(10));
    if raise > 0 {
        assert_eq!((pending.state, pending.pending.len()), (WorkerState::Normal, 1));
        assert_eq!(pending.look_again_in, Some(check.raise_after));
    }
    let raised = beliefs.step(&answers(&[("DiskFull", found())]), now(10 + raise));
    assert_eq!(raised.state, WorkerState::Critical);
    let condition = raised.condition("CapacityProblem").expect("always there");
    assert_eq!((condition.status, condition.reason.as_str()), (Status::True, "DiskFull"));
    assert!(condition.message.contains("Next: "), "{}", condition.message);
    assert_eq!(raised.condition(WORKER_PROBLEM).expect("always there").reason, "DiskFull");
    let gone = 20 + raise;
    let still = beliefs.step(&answers(&[]), now(gone));
    assert_eq!(still.state, WorkerState::Critical, "one good look is not enough");
    let over = beliefs.step(&answers(&[]), now(gone + clear));
    assert_eq!(over.state, WorkerState::Normal);
    assert_eq!(over.condition("CapacityProblem").expect("always there").status, Status::False);
}

#[test]
fn what_is_only_worth_knowing_is_told_but_moves_nothing() {
    let info = |detail: &str| Finding::new("/", detail).severity(Severity::Info);
    let mut beliefs = Beliefs::default();
    beliefs.step(&answers(&[]), now(0));
    for second in [1, 600] {
        let outcome = Outcome::Findings(vec![info("worth knowing")]);
        let verdict = beliefs.step(&answers(&[("DiskFull", outcome)]), now(second));
        assert_eq!(verdict.state, WorkerState::Normal);
        assert!(verdict.conditions.iter().all(|condition| condition.status == Status::False));
        assert!(verdict.root().is_none());
    }
    // It gets worse: the finding is the same, and its severity is believed at once.
    let worse = Outcome::Findings(vec![Finding::new("/", "now a problem"), info("other").severity(Severity::Warning)]);
    let verdict = beliefs.step(&answers(&[("DiskFull", worse)]), now(601));
    assert_eq!(verdict.findings.len(), 1);
    assert_eq!(verdict.state, WorkerState::Warning);
}

#[test]
fn what_does_not_last_never_was() {
    let check = check("MasterUnreachable");
    assert!(check.raise_after > Duration::from_secs(20));
    let mut beliefs = Beliefs::default();
    for round in 0..20 {
        let outcome = if round % 2 == 0 { Outcome::Findings(vec![Finding::new("a", "b")]) } else { Outcome::Healthy };
        let verdict = beliefs.step(&answers(&[("MasterUnreachable", outcome)]), now(round * 20));
        assert!(verdict.findings.is_empty(), "round {round}");
    }
}

#[test]
fn not_being_able_to_look_neither_clears_nor_confirms() {
    let mut beliefs = Beliefs::default();
    beliefs.step(&answers(&[("DiskFull", found())]), now(0));
    beliefs.step(&answers(&[("DiskFull", found())]), now(60));
    for second in (70..400).step_by(10) {
        let verdict = beliefs.step(&answers(&[("DiskFull", Outcome::Unknown("statvfs hangs".into()))]), now(second));
        assert_eq!(verdict.state, WorkerState::Critical, "second {second}");
    }
}

#[test]
fn unknown_counts_after_a_while_and_clears_at_once() {
    let blind = || Outcome::Unknown("/proc/meminfo: permission denied".into());
    let mut beliefs = Beliefs::default();
    beliefs.step(&answers(&[]), now(0));
    let short = beliefs.step(&answers(&[("MemoryPressureImminent", blind())]), now(5));
    assert_eq!(short.state, WorkerState::Normal);
    let long = beliefs.step(&answers(&[("MemoryPressureImminent", blind())]), now(25));
    let condition = long.condition("CapacityProblem").expect("always there");
    assert_eq!((condition.status, condition.reason.as_str()), (Status::Unknown, COULD_NOT_LOOK));
    assert!(condition.message.contains("permission denied"));
    assert_eq!(beliefs.step(&answers(&[]), now(26)).state, WorkerState::Normal);
}

#[test]
fn a_restart_keeps_findings_and_times() {
    let before = Timestamp::from_second(1_600_000_000).expect("valid");
    let stored = Raised {
        code: "DiskFull".into(),
        severity: Severity::Critical,
        area: Area::Capacity,
        subject: "/".into(),
        since: before,
        detail: "file system / is full".into(),
        next: "free space".into(),
        caused_by: None,
    };
    let conditions =
        [("CapacityProblem".to_owned(), (Status::True, before)), ("CNIProblem".to_owned(), (Status::False, before))];
    let state = Some((WorkerState::Critical, before));
    let mut beliefs = Beliefs::restore(node::ALL, &[stored], &conditions.into(), state, now(0));
    let verdict = beliefs.step(&answers(&[("DiskFull", found())]), now(1));
    assert_eq!((verdict.state, verdict.since), (WorkerState::Critical, before));
    assert_eq!(verdict.findings[0].since, before);
    assert_eq!(verdict.condition("CapacityProblem").expect("always there").since, before);
    assert_eq!(verdict.condition("CNIProblem").expect("always there").since, before);
}

#[test]
fn a_moving_number_is_not_told_at_every_look() {
    let full = |percent: u32| Outcome::Findings(vec![Finding::new("/", format!("{percent} % used"))]);
    let mut beliefs = Beliefs::default();
    beliefs.step(&answers(&[("DiskFull", full(99))]), now(0));
    let first = beliefs.step(&answers(&[("DiskFull", full(99))]), now(60)).findings;
    let same = beliefs.step(&answers(&[("DiskFull", full(98))]), now(70)).findings;
    assert_eq!(first, same);
    let later = beliefs.step(&answers(&[("DiskFull", full(97))]), now(700)).findings;
    assert_eq!(later[0].detail, "97 % used");
}

#[test]
fn worst_first_and_among_equals_the_cause() {
    let one = |text: &str| Outcome::Findings(vec![Finding::new("x", text)]);
    let special =
        [("ConntrackNearFull", one("w")), ("KubeProxyChainsMissing", one("c2")), ("ContainerdDown", one("c1"))];
    let mut beliefs = Beliefs::default();
    beliefs.step(&answers(&special), now(0));
    let verdict = beliefs.step(&answers(&special), now(600));
    let codes: Vec<&str> = verdict.findings.iter().map(|finding| finding.code.as_str()).collect();
    assert_eq!(codes, ["ContainerdDown", "KubeProxyChainsMissing", "ConntrackNearFull"]);
    assert!(verdict.conditions[0].message.contains("2 more findings"), "{}", verdict.conditions[0].message);
}

#[test]
fn what_applies_nowhere_in_an_area_is_false_and_says_so() {
    let special: Vec<(&str, Outcome)> = node::ALL
        .iter()
        .filter(|check| check.area == Area::Cni)
        .map(|check| (check.code, Outcome::NotApplicable("no Kubernetes here".into())))
        .collect();
    let verdict = Beliefs::default().step(&answers(&special), now(0));
    let condition = verdict.condition("CNIProblem").expect("always there");
    assert_eq!((condition.status, condition.reason.as_str()), (Status::False, NOT_APPLICABLE));
}

#[test]
fn long_messages_keep_their_next_step() {
    let finding = Finding::new("x", "ä".repeat(2_000));
    let mut beliefs = Beliefs::default();
    beliefs.step(&answers(&[("DiskFull", Outcome::Findings(vec![finding.clone()]))]), now(0));
    let verdict = beliefs.step(&answers(&[("DiskFull", Outcome::Findings(vec![finding]))]), now(600));
    let message = &verdict.condition("CapacityProblem").expect("always there").message;
    assert!(message.len() <= LONGEST_MESSAGE, "{}", message.len());
    assert!(message.contains("Next: "));
}
