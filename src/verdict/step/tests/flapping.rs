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

    /// However fast the world flaps, a condition changes at most so often, and the worker's state no faster.
    #[test]
    fn conditions_do_not_flap(runs in prop::collection::vec(run(), 60..140)) {
        let mut beliefs = Beliefs::default();
        take(&mut beliefs, 0, [None; 3]);
        let mut time = 0;
        let mut statuses = vec![(Status::False, 0)];
        let mut states: Vec<(WorkerState, u64)> = Vec::new();
        for (wait, looks, found) in runs {
            for _ in 0..looks {
                time += wait;
                let verdict = take(&mut beliefs, time, [found, None, None]);
                let status = verdict.condition("PodRoutingProblem").expect("always there").status;
                if statuses.last().is_none_or(|(last, _)| *last != status) {
                    statuses.push((status, time));
                }
                if states.last().is_none_or(|(state, _)| *state != verdict.state) {
                    states.push((verdict.state, time));
                }
            }
        }
        let raised = statuses.iter().filter(|(status, _)| *status == Status::True);
        prop_assert!(most_within_ten_minutes(raised.map(|(_, at)| *at)) <= 12, "{:?}", statuses);
        prop_assert!(most_within_ten_minutes(statuses.iter().map(|(_, at)| *at)) <= 40, "{:?}", statuses);
        prop_assert!(most_within_ten_minutes(states.iter().map(|(_, at)| *at)) <= 40, "{:?}", states);
    }
}

/// Some looks with the same answer: the time between them, how many, and what. Being blind often lasts long enough to count.
fn run() -> impl Strategy<Value = (u64, usize, Option<u8>)> {
    let answer = prop_oneof![Just(None), Just(Some(0)), (0u8..6).prop_map(Some)];
    (200u64..2_500, 1usize..14, answer)
}

/// The most of these times that fall within ten minutes.
fn most_within_ten_minutes(times: impl Iterator<Item = u64>) -> usize {
    let times: Vec<u64> = times.collect();
    let within = |start: &u64| times.iter().filter(|at| (*start..*start + 600_000).contains(*at)).count();
    times.iter().map(within).max().unwrap_or(0)
}

#[test]
fn a_source_that_is_blind_time_and_again_stays_unknown_and_clears_when_it_does_not() {
    const BLIND: &str = "DiskFull";
    // Seconds in which it cannot look, seconds in which it can, and how often the condition may change within an hour.
    for (blind, well, most) in [(16, 1, 5), (20, 10, 5), (30, 100, 60), (16, 301, 24)] {
        let mut beliefs = Beliefs::default();
        let look = |second: u64| match second % (blind + well) {
            at if second == 0 || at >= blind => Outcome::Healthy,
            _ => Outcome::Unknown("statvfs hangs".into()),
        };
        let (mut changes, mut last) = (Vec::new(), Status::False);
        for second in 0..3_600 {
            let verdict = beliefs.step(&answers(&[(BLIND, look(second))]), now(second));
            let status = verdict.condition("CapacityProblem").expect("always there").status;
            if std::mem::replace(&mut last, status) != status {
                changes.push((status, second));
            }
        }
        let unknown = changes.iter().filter(|(status, _)| *status == Status::Unknown);
        assert!(changes.len() <= most, "{blind} s blind, {well} s well: {changes:?}");
        let often = most_within_ten_minutes(unknown.map(|(_, at)| *at * 1_000));
        assert!(often <= 8, "{blind} s blind, {well} s well: {changes:?}");
        // Findings of the same check are told as ever, and are over no later.
        let check = check(BLIND);
        let (raise, clear) = (check.raise_after.as_secs(), check.clear_after.as_secs());
        beliefs.step(&answers(&[(BLIND, found())]), now(3_600));
        let raised = beliefs.step(&answers(&[(BLIND, found())]), now(3_600 + raise));
        assert_eq!(raised.condition("CapacityProblem").expect("always there").status, Status::True);
        beliefs.step(&answers(&[]), now(3_601 + raise));
        let over = beliefs.step(&answers(&[]), now(3_601 + raise + clear));
        assert!(over.findings.is_empty(), "{:?}", over.findings);
        let later = beliefs.step(&answers(&[]), now(3_600 + 300));
        assert_eq!((later.state, later.look_again_in), (WorkerState::Normal, None));
    }
}

#[test]
fn what_is_only_worth_knowing_does_not_hide_that_problems_of_its_code_flap() {
    let info = || Finding::new("/", "d").severity(Severity::Info);
    let quiet = || [("PodRouteMissing", Outcome::Findings(vec![info()]))];
    let loud = || [("PodRouteMissing", Outcome::Findings(vec![info(), Finding::new("/data", "d")]))];
    let mut beliefs = Beliefs::default();
    let mut changes = 0;
    let mut last = Status::False;
    beliefs.step(&answers(&quiet()), now(0));
    for second in 1..600 {
        // Seen for two seconds, gone for four.
        let special = if second % 6 < 2 { loud() } else { quiet() };
        let status = beliefs.step(&answers(&special), now(second)).conditions[0].status;
        changes += usize::from(std::mem::replace(&mut last, status) != status);
    }
    assert!(changes <= 8, "{changes} changes in ten minutes");
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
