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

mod flapping;
mod suspects;

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
    // It gets worse: the finding is the same, and it is believed to be as bad once that has lasted.
    let worse = || Outcome::Findings(vec![info("now a problem").severity(Severity::Warning)]);
    let verdict = beliefs.step(&answers(&[("DiskFull", worse())]), now(601));
    assert_eq!((verdict.state, verdict.look_again_in), (WorkerState::Normal, Some(check("DiskFull").raise_after)));
    let verdict = beliefs.step(&answers(&[("DiskFull", worse())]), now(611));
    assert_eq!((verdict.findings.len(), verdict.state), (1, WorkerState::Warning));
    assert_eq!(verdict.findings[0].detail, "now a problem");
    // And milder only once it has been that for as long as it takes to be over.
    for (second, state) in [(620, WorkerState::Warning), (679, WorkerState::Warning), (680, WorkerState::Normal)] {
        let outcome = Outcome::Findings(vec![info("worth knowing")]);
        assert_eq!(beliefs.step(&answers(&[("DiskFull", outcome)]), now(second)).state, state, "second {second}");
    }
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
        times: 1,
        last_cure: None,
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
fn a_young_node_puts_its_network_together_first() {
    let young = now(0);
    let joined = Some(young.wall);
    let settling = || Settling::of(Duration::from_secs(600), joined, young);
    assert!(settling().is_some());
    assert_eq!(Settling::of(Duration::from_secs(600), joined, now(600)), None);
    assert_eq!(Settling::of(Duration::from_secs(600), None, young), None, "booted 1000 s ago");
    assert!(Settling::of(Duration::from_secs(2_000), None, young).is_some());
    let missing = || ("CniConfigMissing", Outcome::Findings(vec![Finding::new("/etc/cni/net.d", "it is empty")]));
    let mut beliefs = Beliefs::default();
    beliefs.settle(settling());
    beliefs.step(&answers(&[missing()]), now(0));
    // It is shown, and no alarm; what is wrong beside the network counts at once.
    let verdict = beliefs.step(&answers(&[missing(), ("DiskFull", found())]), now(60));
    let cni = verdict.condition("CNIProblem").expect("always there");
    assert_eq!((cni.status, cni.reason.as_str()), (Status::Unknown, SETTLING));
    assert!(cni.message.contains("it joined: CniConfigMissing is seen"), "{}", cni.message);
    let verdict = beliefs.step(&answers(&[missing(), ("DiskFull", found())]), now(70));
    assert_eq!(verdict.condition(WORKER_PROBLEM).expect("always there").reason, "DiskFull");
    // Its time is over.
    let verdict = beliefs.step(&answers(&[missing()]), now(600));
    assert_eq!(verdict.condition("CNIProblem").expect("always there").reason, "CniConfigMissing");
    // The first pass in which its network is clean ends it earlier, whatever else is wrong.
    for other in [Outcome::Healthy, found()] {
        let mut beliefs = Beliefs::default();
        beliefs.settle(settling());
        beliefs.step(&answers(&[("MemoryPressureImminent", other)]), now(0));
        beliefs.step(&answers(&[missing()]), now(1));
        assert_eq!(beliefs.step(&answers(&[missing()]), now(2)).root().expect("it counts").code, "CniConfigMissing");
    }
}

#[test]
fn what_comes_back_again_and_again_is_over_later_and_later() {
    let check = check("PodRouteMissing");
    let missing = || ("PodRouteMissing", Outcome::Findings(vec![Finding::new("a/b 10.0.0.1", "no route")]));
    let at = |millis: u64| Now { since_boot: Duration::from_millis(1_000_000 + millis), ..now(millis / 1000) };
    let mut beliefs = Beliefs::default();
    let clear = u64::try_from(check.clear_after.as_millis()).expect("seconds");
    let (mut time, mut waits) = (0, Vec::new());
    for _ in 0..9 {
        beliefs.step(&answers(&[missing()]), at(time));
        time += 700;
        assert_eq!(beliefs.step(&answers(&[missing()]), at(time)).findings.len(), 1);
        let gone = time;
        while !beliefs.step(&answers(&[]), at(time)).findings.is_empty() {
            time += 1000;
        }
        waits.push((time - gone) / clear);
    }
    assert_eq!(waits[..7], [1, 1, 2, 4, 8, 16, 32]);
}

#[test]
fn a_process_that_was_stopped_believes_nothing_for_it() {
    let raise = check("MasterUnreachable").raise_after.as_secs();
    let clear = check("MasterUnreachable").clear_after.as_secs();
    let found = || [("MasterUnreachable", Outcome::Findings(vec![Finding::new("a", "b")]))];
    let mut beliefs = Beliefs::default();
    beliefs.step(&answers(&[]), now(0));
    beliefs.step(&answers(&found()), now(1));
    // It is stopped for an hour, and goes on with what it saw last.
    beliefs.was_away(now(3_601));
    assert_eq!(beliefs.step(&answers(&found()), now(3_601)).state, WorkerState::Normal);
    let verdict = beliefs.step(&answers(&found()), now(3_601 + raise));
    assert_eq!(verdict.state, WorkerState::Critical);
    // The same when it seems to be over.
    beliefs.step(&answers(&[]), now(3_602 + raise));
    beliefs.was_away(now(7_300));
    let verdict = beliefs.step(&answers(&[]), now(7_300));
    assert_eq!((verdict.state, verdict.look_again_in), (WorkerState::Critical, Some(Duration::from_secs(clear))));
    assert_eq!(beliefs.step(&answers(&[]), now(7_300 + clear)).state, WorkerState::Normal);
}

#[test]
fn a_jump_of_the_wall_clock_changes_nothing() {
    let mut beliefs = Beliefs::default();
    for (second, outcome) in [(0, found()), (3, found()), (4, Outcome::Healthy), (9, Outcome::Healthy)] {
        beliefs.step(&answers(&[("KubeletDown", outcome)]), now(second));
    }
    beliefs.step(&answers(&[("DiskFull", found())]), now(10));
    let before = beliefs.step(&answers(&[("DiskFull", found())]), now(30));
    assert_eq!(before.state, WorkerState::Critical);
    let journal = beliefs.episodes().clone();
    let over = journal.iter().next().expect("the first is over");
    assert_eq!((over.seen, over.cleared), (Some(now(3).wall), Some(now(9).wall)));
    for year in [-1, 1] {
        let jumped = |seconds| a_year_off(now(seconds), year);
        let after = beliefs.step(&answers(&[("DiskFull", found())]), jumped(31));
        assert_eq!((after.state, after.since, &after.findings), (before.state, before.since, &before.findings));
        assert_eq!(after.conditions, before.conditions);
        // Hold-downs go by the clock that does not jump.
        let memory = || ("MemoryPressureImminent", found());
        let both = beliefs.step(&answers(&[("DiskFull", found()), memory()]), jumped(32));
        assert_eq!(both.findings.len(), 1);
        beliefs.step(&answers(&[("DiskFull", found())]), jumped(33));
        assert_eq!(beliefs.episodes(), &journal);
        beliefs.step(&answers(&[("DiskFull", found())]), now(34));
        assert_eq!(beliefs.episodes(), &journal);
    }
}

fn a_year_off(now: Now, years: i64) -> Now {
    Now { wall: now.wall + jiff::SignedDuration::from_hours(years * 365 * 24), ..now }
}

#[test]
fn old_episodes_are_forgotten_once_the_clocks_have_agreed_for_an_hour() {
    const DAY: u64 = 24 * 3_600;
    let mut beliefs = Beliefs::default();
    for (second, outcome) in [(0, found()), (3, found()), (4, Outcome::Healthy), (9, Outcome::Healthy)] {
        beliefs.step(&answers(&[("KubeletDown", outcome)]), now(second));
    }
    let mut kept = |at: Now| {
        beliefs.step(&answers(&[]), at);
        beliefs.episodes().iter().count()
    };
    assert_eq!(kept(now(3_700)), 1);
    assert_eq!([kept(a_year_off(now(3_701), 1)), kept(a_year_off(now(7_300), 1)), kept(now(7_301))], [1, 1, 1]);
    assert_eq!([kept(now(13 * DAY)), kept(now(14 * DAY + 9))], [1, 0]);
}

#[test]
fn only_a_critical_fault_of_the_machine_has_it_replaced() {
    let fault = |code: &'static str| {
        let mut beliefs = Beliefs::default();
        beliefs.step(&answers(&[(code, found())]), now(0));
        let verdict = beliefs.step(&answers(&[(code, found())]), now(3_600));
        verdict.fault_of_the_machine().map(|fault| fault.code.clone())
    };
    assert_eq!(fault("ContainerdDown").as_deref(), Some("ContainerdDown"));
    assert_eq!(fault("FilesystemReadOnly").as_deref(), Some("FilesystemReadOnly"));
    for code in ["DiskFull", "KubeletDown", "CniConfigMissing", "PodRouteMissing", "ConntrackFull"] {
        assert_eq!(fault(code), None);
    }
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
