//! A cause that is seen and held down is named with what it explains; nothing else of what is told changes by that.

use proptest::prelude::*;

use super::*;
use crate::verdict::Patience;

const ROUTE: &str = "RemoteBlockRouteMissing";
const SESSION: &str = "BgpSessionDown";

fn one(finding: Finding) -> Outcome {
    Outcome::Findings(vec![finding])
}

/// The route to pods of n2 is missing, which BIRD may repair.
fn route() -> (&'static str, Outcome) {
    (ROUTE, one(Finding::new("n2", "no route").repaired_within(Duration::from_secs(100))))
}

/// The session to n2 is down.
fn session() -> (&'static str, Outcome) {
    (SESSION, one(Finding::new("Mesh_10_0_0_6", "The BGP session Mesh_10_0_0_6 to 10.0.0.6 (n2) is Idle")))
}

/// Its port is blocked, by whom nobody knows: held for longer than the session.
fn port() -> (&'static str, Outcome) {
    let finding = Finding::new("Mesh_10_0_0_6", "The BGP peer 10.0.0.6 (n2) gets no answer");
    ("BgpPortBlocked", one(finding.repaired_within(Duration::from_secs(180))))
}

/// `CODE` or `CODE<ROOT`, in their order.
fn told(verdict: &Verdict) -> Vec<String> {
    let said = |it: &Raised| it.caused_by.as_ref().map_or(it.code.clone(), |root| format!("{}<{}", it.code, root.code));
    verdict.findings.iter().map(said).collect()
}

/// What is told at these seconds, of what is seen all the time from second 0.
fn at(seconds: &[u64], patience: Patience, seen: &[(&str, Outcome)]) -> Vec<Vec<String>> {
    let mut beliefs = Beliefs::default().with_patience(patience);
    beliefs.step(&answers(seen), now(0));
    seconds.iter().map(|second| told(&beliefs.step(&answers(seen), now(*second)))).collect()
}

fn as_usual(seconds: &[u64], seen: &[(&str, Outcome)]) -> Vec<Vec<String>> {
    at(seconds, Patience::default(), seen)
}

#[test]
fn the_root_has_the_headline_from_the_first_moment() {
    let both = format!("{ROUTE}<{SESSION}");
    assert_eq!(as_usual(&[99, 100, 121], &[route(), session()]), [&[][..], &[SESSION, &both], &[SESSION, &both]]);
    let mut beliefs = Beliefs::default();
    beliefs.step(&answers(&[route(), session()]), now(0));
    let verdict = beliefs.step(&answers(&[route(), session()]), now(100));
    assert_eq!(verdict.condition(WORKER_PROBLEM).expect("always there").reason, SESSION);
    assert_eq!(verdict.condition("PodRoutingProblem").expect("always there").reason, SESSION);
    assert_eq!(verdict.state, WorkerState::Critical, "as what it explains is");
    // All of it is over when it is gone.
    for second in [101, 104] {
        beliefs.step(&answers(&[]), now(second));
    }
    assert_eq!(told(&beliefs.step(&answers(&[]), now(106))), [""; 0]);
}

#[test]
fn a_finding_that_nobody_explains_waits_for_nobody() {
    assert_eq!(as_usual(&[99, 100], &[route()]), [&[][..], &[ROUTE]]);
    let of_another = (SESSION, one(Finding::new("Mesh_10_0_0_8", "The BGP session to 10.0.0.8 (n3) is Idle")));
    assert_eq!(as_usual(&[99, 100], &[route(), of_another]), [&[][..], &[ROUTE]]);
}

#[test]
fn a_cause_without_harm_keeps_its_hold_down() {
    assert_eq!(as_usual(&[119, 120], &[session()]), [&[][..], &[SESSION]]);
    // What has passed explains nothing.
    let mut beliefs = Beliefs::default();
    beliefs.step(&answers(&[route(), session()]), now(0));
    beliefs.step(&answers(&[route()]), now(50));
    assert_eq!(told(&beliefs.step(&answers(&[route()]), now(100))), [ROUTE]);
    // And what begins later than the harm counted is held down as always.
    beliefs.step(&answers(&[route(), session()]), now(200));
    assert_eq!(told(&beliefs.step(&answers(&[route(), session()]), now(319))), [ROUTE]);
    assert_eq!(
        told(&beliefs.step(&answers(&[route(), session()]), now(320))),
        [SESSION, &format!("{ROUTE}<{SESSION}")]
    );
}

#[test]
fn a_cause_has_a_cause() {
    let explained = [ROUTE, SESSION].map(|code| format!("{code}<BgpPortBlocked"));
    let expected = ["BgpPortBlocked", &explained[0], &explained[1]];
    assert_eq!(as_usual(&[99, 100], &[route(), session(), port()]), [&[][..], &expected]);
}

#[test]
fn what_is_explained_hurries_nobody() {
    let dead = ("BgpDaemonDown", one(Finding::new("/s", "BIRD does not answer")));
    let explained = format!("{ROUTE}<BgpDaemonDown");
    assert_eq!(as_usual(&[100], &[route(), session(), dead]), [["BgpDaemonDown", &explained]]);
}

#[test]
fn trap_no_condition_and_no_state_gets_worse_by_it() {
    // Of another area.
    let quick = |(code, outcome): (&'static str, Outcome), seconds| match outcome {
        Outcome::Findings(list) => (code, one(list[0].clone().repaired_within(Duration::from_secs(seconds)))),
        other => (code, other),
    };
    let full = ("ConntrackFull", one(Finding::new("nf_conntrack", "full")));
    assert_eq!(as_usual(&[1, 5], &[quick(session(), 1), full])[0], [SESSION]);
    // Worse than what it explains.
    let password = ("BgpPasswordMismatch", one(Finding::new("BGP", "sessions to 10.0.0.6 (n2) Mesh_10_0_0_6")));
    let both = as_usual(&[1, 15], &[quick(session(), 1), password]);
    assert_eq!(
        both,
        [vec![SESSION.to_owned()], vec!["BgpPasswordMismatch".into(), format!("{SESSION}<BgpPasswordMismatch")]]
    );
    // Only worth knowing.
    let info = Finding::new("Mesh_10_0_0_6", "to 10.0.0.6 (n2): that node is not Ready").severity(Severity::Info);
    assert_eq!(as_usual(&[100], &[route(), (SESSION, one(info))]), [[ROUTE]]);
}

#[test]
fn trap_a_hold_down_that_somebody_configured() {
    let patience = Patience { raise: [(SESSION, Duration::from_secs(300))].into(), ..Patience::default() };
    let both = format!("{ROUTE}<{SESSION}");
    assert_eq!(at(&[100, 299, 300], patience, &[route(), session()]), [&[ROUTE][..], &[ROUTE], &[SESSION, &both]]);
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 48, failure_persistence: None, ..ProptestConfig::default() })]

    /// Whatever counts has lasted as long as it has to, or explains what begins to count with it, in its area and as bad.
    #[test]
    fn nothing_counts_early_but_with_what_it_explains(
        looks in prop::collection::vec((1u64..60, prop::array::uniform3(any::<bool>())), 1..60),
    ) {
        let all = [route(), session(), port()];
        let holds = BTreeMap::from([(ROUTE, 100), (SESSION, 120), ("BgpPortBlocked", 180)]);
        let mut since: BTreeMap<&str, u64> = BTreeMap::new();
        let (mut beliefs, mut time, mut before) = (Beliefs::default(), 0, Vec::<String>::new());
        for (wait, seen) in looks {
            time += wait;
            let shown: Vec<_> = all.iter().zip(seen).filter(|(_, seen)| *seen).map(|(it, _)| it.clone()).collect();
            for (code, _) in &all {
                if shown.iter().any(|(it, _)| it == code) {
                    since.entry(code).or_insert(time);
                } else {
                    since.remove(code);
                }
            }
            let verdict = beliefs.step(&answers(&shown), now(time));
            let begun = |it: &&Raised| !before.contains(&it.code);
            let lasted = |it: &Raised| since.get(it.code.as_str()).is_some_and(|at| time - at >= holds[it.code.as_str()]);
            for early in verdict.findings.iter().filter(begun).filter(|it| !lasted(it)) {
                prop_assert!(since.contains_key(early.code.as_str()), "{} is not seen", early.code);
                let mut with = verdict.findings.iter().filter(begun).filter(|it| lasted(it));
                let explains = |it: &Raised| causes::explains(early, it) && it.area == early.area && it.severity >= early.severity;
                let chain = |it: &Raised| it.is_caused_by(early) || explains(it);
                prop_assert!(with.any(chain), "{} counts early at {}: {:?}", early.code, time, verdict.findings);
            }
            before = verdict.findings.iter().map(|it| it.code.clone()).collect();
        }
    }
}
