//! No sequence of looks makes what is told flap faster than the limits, and what can be set can clear.

use proptest::prelude::*;

use super::*;
use crate::verdict::Patience;

/// One look: how long after the one before, and what three checks answer.
type Step = (u64, [Option<u8>; 3]);

const CODES: [&str; 3] = ["PodRouteMissing", "CniConfigConflict", "DiskFull"];

/// 0 is healthy, 1 cannot look, then findings: which of two subjects, and how bad.
fn outcome(answer: Option<u8>) -> Outcome {
    let finding = |subject: &str, severity| Finding::new(subject, "d").severity(severity);
    match answer {
        None => Outcome::Healthy,
        Some(0) => Outcome::Unknown("cannot look".into()),
        Some(1) => Outcome::Findings(vec![finding("/", Severity::Info)]),
        Some(2) => Outcome::Findings(vec![finding("/", Severity::Warning)]),
        Some(3) => Outcome::Findings(vec![finding("/", Severity::Critical)]),
        Some(4) => Outcome::Findings(vec![finding("/data", Severity::Critical)]),
        Some(_) => Outcome::Findings(vec![finding("/", Severity::Warning), finding("/data", Severity::Warning)]),
    }
}

fn looks() -> impl Strategy<Value = Vec<Step>> {
    let answer = || prop::option::of(0u8..6);
    let step = (prop_oneof![1u64..100, 100u64..3_000, 3_000u64..90_000], [answer(), answer(), answer()]);
    prop::collection::vec(step, 1..200)
}

fn take(beliefs: &mut Beliefs, millis: u64, found: [Option<u8>; 3]) -> Verdict {
    let at = Duration::from_millis(5_000_000 + millis);
    let wall = Timestamp::from_millisecond(1_700_000_000_000 + i64::try_from(millis).expect("small")).expect("valid");
    let special: Vec<_> = CODES.into_iter().zip(found).map(|(code, answer)| (code, outcome(answer))).collect();
    beliefs.step(&answers(&special), Now { wall, since_boot: at })
}

/// Since when a finding has been seen at every look, and when it was last seen.
#[derive(Default, Clone, Copy)]
struct Witness {
    seen_since: Option<u64>,
    last_seen: u64,
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 24, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn hold_downs_hold(steps in looks()) {
        let mut beliefs = Beliefs::default();
        take(&mut beliefs, 0, [None; 3]);
        let mut witnesses: BTreeMap<(usize, &str), Witness> = BTreeMap::new();
        let mut before: Vec<(String, String)> = Vec::new();
        let mut time = 0;
        for (wait, found) in steps {
            time += wait;
            for (index, answer) in found.into_iter().enumerate() {
                for subject in ["/", "/data"] {
                    let witness = witnesses.entry((index, subject)).or_default();
                    match outcome(answer) {
                        Outcome::Unknown(_) => witness.last_seen = time,
                        Outcome::Findings(list) if list.iter().any(|it| it.subject == subject) => {
                            witness.seen_since.get_or_insert(time);
                            witness.last_seen = time;
                        }
                        _ => witness.seen_since = None,
                    }
                }
            }
            let verdict = take(&mut beliefs, time, found);
            let now: Vec<(String, String)> =
                verdict.findings.iter().map(|it| (it.code.clone(), it.subject.clone())).collect();
            let of = |key: &(String, String)| {
                let index = CODES.iter().position(|code| *code == key.0).expect("one of ours");
                (check(CODES[index]), witnesses[&(index, if key.1 == "/" { "/" } else { "/data" })])
            };
            for key in now.iter().filter(|key| !before.contains(key)) {
                let (check, witness) = of(key);
                let since = witness.seen_since.expect("what is raised is seen");
                prop_assert!(Duration::from_millis(time - since) >= check.raise_after, "{:?} at {}", key, time);
            }
            for key in before.iter().filter(|key| !now.contains(key)) {
                let (check, witness) = of(key);
                prop_assert!(Duration::from_millis(time - witness.last_seen) >= check.clear_after, "{:?} at {}", key, time);
            }
            before = now;
        }
        // What can be set can clear: one good hour, and everything is well.
        for _ in 0..12 {
            time += 300_000;
            take(&mut beliefs, time, [None; 3]);
        }
        let verdict = take(&mut beliefs, time + 1, [None; 3]);
        prop_assert_eq!(verdict.state, WorkerState::Normal);
        prop_assert!(verdict.findings.is_empty() && verdict.pending.is_empty() && verdict.look_again_in.is_none());
        prop_assert!(verdict.conditions.iter().all(|it| it.status == Status::False));
    }

    /// However fast the world flaps, a condition turns True at most so often, and the worker's state changes no faster.
    #[test]
    fn conditions_do_not_flap(steps in prop::collection::vec((200u64..2_500, prop::option::of(2u8..6)), 300..600)) {
        let mut beliefs = Beliefs::default();
        take(&mut beliefs, 0, [None; 3]);
        let (mut time, mut status, mut raised) = (0, Status::False, Vec::new());
        let mut states: Vec<(WorkerState, u64)> = Vec::new();
        for (wait, found) in steps {
            time += wait;
            let verdict = take(&mut beliefs, time, [found, None, None]);
            let now = verdict.condition("PodRoutingProblem").expect("always there").status;
            if now == Status::True && status != Status::True {
                raised.push(time);
            }
            status = now;
            if states.last().is_none_or(|(state, _)| *state != verdict.state) {
                states.push((verdict.state, time));
            }
        }
        for start in &raised {
            let within = raised.iter().filter(|at| (*start..*start + 600_000).contains(*at)).count();
            prop_assert!(within <= 12, "{} times within ten minutes", within);
        }
        for (_, start) in &states {
            let within = states.iter().filter(|(_, at)| (*start..*start + 600_000).contains(at)).count();
            prop_assert!(within <= 40, "{} changes of state within ten minutes", within);
        }
    }
}

#[test]
fn every_code_that_can_be_set_clears() {
    for check in node::ALL {
        let mut beliefs = Beliefs::default();
        beliefs.step(&answers(&[]), now(0));
        let found = || Outcome::Findings(vec![Finding::new("s", "d").severity(Severity::Critical)]);
        beliefs.step(&answers(&[(check.code, found())]), now(10));
        let verdict = beliefs.step(&answers(&[(check.code, found())]), now(10 + 3_600));
        assert_eq!(verdict.root().map(|root| root.code.as_str()), Some(check.code));
        beliefs.step(&answers(&[]), now(3_700));
        let verdict = beliefs.step(&answers(&[]), now(3_700 + 3_600));
        assert_eq!(verdict.state, WorkerState::Normal, "{}", check.code);
    }
}

#[test]
fn times_that_are_asked_for_are_kept() {
    let times = |seconds| BTreeMap::from([("DiskFull", Duration::from_secs(seconds))]);
    let patience = Patience { raise: times(3), clear: times(4), ..Patience::default() };
    let mut beliefs = Beliefs::default().with_patience(patience);
    let mut state = |special: &[(&str, Outcome)], second| beliefs.step(&answers(special), now(second)).state;
    let found = || [("DiskFull", found())];
    state(&[], 0);
    assert_eq!([state(&found(), 0), state(&found(), 2)], [WorkerState::Normal; 2]);
    assert_eq!(state(&found(), 3), WorkerState::Critical);
    assert_eq!([state(&[], 4), state(&[], 7)], [WorkerState::Critical; 2]);
    assert_eq!(state(&[], 8), WorkerState::Normal);
}
