//! Who is stale, when, and who never.

use super::*;
use crate::aggregator::testing::{agent, apply, at, bare, cluster, marked, moment, node, silent};
use crate::aggregator::watch::Change;

fn healthy(name: &str) -> serde_json::Value {
    node(name, "z", "p", "Normal", &[])
}

/// The names of the nodes that are to be marked after `seconds`, in each of which the watchdog looked.
fn marked_after(cluster: &Cluster, watchdog: &mut Watchdog, seconds: std::ops::RangeInclusive<i64>) -> Vec<String> {
    let end = *seconds.end();
    for second in seconds {
        watchdog.step(cluster, moment(second));
    }
    watchdog.to_mark(cluster, moment(end)).into_iter().map(|(name, ..)| name.to_owned()).collect()
}

#[test]
fn an_agent_that_is_gone_counts_after_its_grace() {
    let cluster = cluster(
        &[healthy("with"), healthy("without"), healthy("broken")],
        &[agent("a", "with", true), agent("b", "broken", false)],
    );
    let mut watchdog = Watchdog::default();
    assert!(marked_after(&cluster, &mut watchdog, 0..=39).is_empty());
    assert_eq!(marked_after(&cluster, &mut watchdog, 40..=40), ["broken", "without"]);
    let marks = watchdog.to_mark(&cluster, moment(40));
    assert_eq!(marks[0].2, Gone { what: Missing::Agent, since: Some(at(-50)), pod: Some("b".into()) });
    assert_eq!(marks[1].2, Gone { what: Missing::Agent, since: Some(at(0)), pod: None });
    assert_eq!(watchdog.agent(&cluster, "with", cluster.node("with").expect("there"), moment(40)), Agent::Fresh);
}

#[test]
fn a_rollout_does_not_count() {
    let mut cluster = cluster(&[healthy("n")], &[agent("old", "n", true)]);
    let mut watchdog = Watchdog::default();
    assert!(marked_after(&cluster, &mut watchdog, 0..=10).is_empty());
    let pod = |name: &str, ready| {
        serde_json::from_value::<crate::aggregator::object::ObjectView>(agent(name, "n", ready)).expect("a pod")
    };
    cluster.remove_agent(&pod("old", true));
    assert!(marked_after(&cluster, &mut watchdog, 11..=30).is_empty());
    cluster.apply_agent(&pod("new", false));
    assert!(marked_after(&cluster, &mut watchdog, 31..=49).is_empty());
    cluster.apply_agent(&pod("new", true));
    assert!(marked_after(&cluster, &mut watchdog, 50..=500).is_empty());
}

#[test]
fn an_agent_that_is_not_in_the_next_list_is_missed() {
    let mut cluster = cluster(&[healthy("n")], &[agent("a", "n", true)]);
    let mut watchdog = Watchdog::default();
    assert!(marked_after(&cluster, &mut watchdog, 0..=100).is_empty());
    cluster.agents_sight.as_mut().expect("watched").list_begins();
    cluster.agents_listed();
    assert!(marked_after(&cluster, &mut watchdog, 101..=140).is_empty());
    assert_eq!(marked_after(&cluster, &mut watchdog, 141..=141), ["n"]);
}

#[test]
fn one_look_goes_by_since_when_the_agent_and_the_kubelet_are_missing() {
    let not_ready = [agent("a", "n", false)];
    let cluster = cluster(&[healthy("n"), healthy("bare"), silent(healthy("quiet"))], &not_ready);
    let look = |name: &str, second| agent_at_once(&cluster, name, cluster.node(name).expect("there"), at(second));
    // Not Ready since 50 s before 0: as in a rollout of the agents, whose first probe comes after seconds.
    assert_eq!(look("n", -50), Agent::Late);
    assert_eq!(look("n", -11), Agent::Late);
    let gone = Gone { what: Missing::Agent, since: Some(at(-50)), pod: Some("a".into()) };
    assert_eq!(look("n", -10), Agent::Gone(gone));
    // The control plane's clock is ahead of ours.
    assert_eq!(look("n", -55), Agent::Late);
    assert_eq!(look("quiet", -101), Agent::Late);
    assert!(matches!(look("quiet", -100), Agent::Gone(Gone { what: Missing::Kubelet, .. })));
    // Without a Pod nobody tells since when.
    assert_eq!(look("bare", 0), Agent::Gone(Gone { what: Missing::Agent, since: None, pod: None }));
}

#[test]
fn a_silent_kubelet_counts_whatever_its_pods_say() {
    let cluster = cluster(&[silent(healthy("n"))], &[agent("a", "n", true)]);
    let mut watchdog = Watchdog::default();
    assert!(marked_after(&cluster, &mut watchdog, 0..=19).is_empty());
    assert_eq!(marked_after(&cluster, &mut watchdog, 20..=20), ["n"]);
    assert_eq!(watchdog.to_mark(&cluster, moment(20))[0].2.what, Missing::Kubelet);
}

#[test]
fn an_agent_that_lives_while_its_kubelet_is_silent_is_the_only_writer() {
    let pods = [agent("a", "n", true)];
    let mut cluster = cluster(&[silent(healthy("n")), silent(healthy("other"))], &pods);
    let mut watchdog = Watchdog::default();
    assert_eq!(marked_after(&cluster, &mut watchdog, 0..=20), ["n", "other"]);
    for name in ["n", "other"] {
        apply(&mut cluster, &marked(silent(healthy(name))));
    }
    assert!(marked_after(&cluster, &mut watchdog, 21..=30).is_empty());
    // The agent of one puts that right; that of the other is gone indeed.
    let mut right = silent(healthy("n"));
    right["status"]["addresses"] = serde_json::json!([{"type": "InternalIP", "address": "10.0.0.7"}]);
    apply(&mut cluster, &right);
    assert!(marked_after(&cluster, &mut watchdog, 31..=600).is_empty(), "it is alive");
    assert_eq!(watchdog.agent(&cluster, "n", cluster.node("n").expect("there"), moment(600)), Agent::NotSeen);
    assert_eq!(marked_after(&cluster, &mut watchdog, 601..=631), ["n"], "nothing was heard of it since");
    // Whoever asks for the map in its name is a reason to ask the agent, and nothing more.
    watchdog.claimed("n");
    assert_eq!(watchdog.to_mark(&cluster, moment(631))[0].0, "n");
    let asked = watchdog.ask_whom(&cluster, moment(631).since_boot);
    assert_eq!(asked, [("n".to_owned(), std::net::IpAddr::from([10, 0, 0, 7]))]);
    assert!(watchdog.ask_whom(&cluster, moment(631).since_boot).is_empty(), "once");
    watchdog.heard("n", moment(631).since_boot);
    watchdog.claimed("n");
    assert!(watchdog.ask_whom(&cluster, moment(930).since_boot).is_empty(), "it has just answered");
    assert!(marked_after(&cluster, &mut watchdog, 632..=1_230).is_empty(), "it has answered");
    assert_eq!(marked_after(&cluster, &mut watchdog, 1_231..=1_231), ["n"]);
    // It does so before the next look.
    let mut at_once = Watchdog::default();
    assert_eq!(marked_after(&cluster, &mut at_once, 0..=20), ["n"]);
    at_once.marked("n");
    assert!(marked_after(&cluster, &mut at_once, 21..=600).is_empty());
    // What was heard before the kubelet went silent proves nothing.
    let mut watchdog = Watchdog::default();
    watchdog.heard("n", moment(0).since_boot);
    watchdog.step(&cluster, moment(0));
    assert_eq!(marked_after(&cluster, &mut watchdog, 1..=20), ["n"], "it asked before its kubelet was silent");
    // A sign of life does not help where the agent's own Pod is not Ready.
    let mut lost = super::super::testing::cluster(&[healthy("n")], &[agent("a", "n", false)]);
    let mut watchdog = Watchdog::default();
    watchdog.step(&lost, moment(0));
    watchdog.heard("n", moment(30).since_boot);
    assert_eq!(marked_after(&lost, &mut watchdog, 31..=40), ["n"]);
    apply(&mut lost, &silent(healthy("n")));
    assert_eq!(marked_after(&lost, &mut watchdog, 41..=61), ["n"], "that was before");
}

#[test]
fn an_agent_that_says_itself_that_the_kubelet_is_down_is_believed() {
    let down = node("n", "z", "p", "Critical", &[("KubeletDown", "critical", "controlPlanePath", "no kubelet")]);
    let cluster = cluster(&[silent(down)], &[agent("a", "n", false)]);
    let mut watchdog = Watchdog::default();
    assert!(marked_after(&cluster, &mut watchdog, 0..=300).is_empty());
    assert_eq!(watchdog.agent(&cluster, "n", cluster.node("n").expect("there"), moment(300)), Agent::NotSeen);
}

#[test]
fn what_a_kubelet_said_of_itself_before_it_went_silent_proves_no_agent() {
    let unwell = |subject: &str| {
        let mut node = node("n", "z", "p", "Critical", &[("KubeletUnhealthy", "critical", "controlPlanePath", "d")]);
        let findings = &mut node["metadata"]["annotations"]["nodevitals.dev/findings"];
        *findings = findings.as_str().expect("text").replace("a subject", subject).into();
        cluster(&[silent(node)], &[agent("a", "n", true)])
    };
    assert_eq!(marked_after(&unwell("Ready"), &mut Watchdog::default(), 0..=20), ["n"]);
    assert!(marked_after(&unwell("heartbeat"), &mut Watchdog::default(), 0..=300).is_empty());
}

#[test]
fn when_the_kubelet_is_back_its_agent_has_the_whole_grace_again() {
    let mut cluster = cluster(&[silent(healthy("n"))], &[agent("a", "n", false)]);
    let mut watchdog = Watchdog::default();
    marked_after(&cluster, &mut watchdog, 0..=100);
    apply(&mut cluster, &healthy("n"));
    assert!(marked_after(&cluster, &mut watchdog, 101..=140).is_empty());
    assert_eq!(marked_after(&cluster, &mut watchdog, 141..=141), ["n"]);
}

#[test]
fn nodes_that_nobody_spoke_of_that_go_or_that_are_marked_are_left_alone() {
    let mut going = healthy("going");
    going["metadata"]["deletionTimestamp"] = "2026-11-21T10:00:00Z".into();
    let cluster = cluster(&[bare("bare"), going, marked(healthy("marked"))], &[]);
    let mut watchdog = Watchdog::default();
    assert!(marked_after(&cluster, &mut watchdog, 0..=100).is_empty());
}

#[test]
fn a_node_that_is_marked_by_half_is_marked_in_full() {
    let mut half = marked(healthy("n"));
    half["status"]["conditions"][3]["reason"] = "CouldNotLook".into();
    let mut without_annotation = marked(healthy("m"));
    without_annotation["metadata"]["annotations"]["nodevitals.dev/state"] = "Normal".into();
    let cluster = cluster(&[half, without_annotation], &[]);
    assert_eq!(marked_after(&cluster, &mut Watchdog::default(), 0..=40), ["m", "n"]);
}

#[test]
fn while_the_view_is_not_complete_nothing_counts_and_the_grace_begins_anew() {
    let mut cluster = cluster(&[healthy("n")], &[]);
    let mut watchdog = Watchdog::default();
    assert!(marked_after(&cluster, &mut watchdog, 0..=35).is_empty());
    for lose in [0, 1, 2] {
        let sight = match lose {
            0 => &mut cluster.nodes_sight,
            1 => cluster.agents_sight.as_mut().expect("watched"),
            _ => &mut cluster.api_sight,
        };
        sight.lost(moment(36).wall, "no route".into());
        assert!(marked_after(&cluster, &mut watchdog, 36..=100).is_empty());
        let sight = match lose {
            0 => &mut cluster.nodes_sight,
            1 => cluster.agents_sight.as_mut().expect("watched"),
            _ => &mut cluster.api_sight,
        };
        sight.found();
        assert!(marked_after(&cluster, &mut watchdog, 101..=140).is_empty());
    }
    assert_eq!(marked_after(&cluster, &mut watchdog, 141..=141), ["n"]);
}

#[test]
fn before_the_first_lists_are_complete_nothing_counts() {
    let store = crate::aggregator::store::Store::watched();
    let node = serde_json::from_value(healthy("n")).expect("a node");
    store.node_changed(Change::ListBegins, moment(0).wall);
    store.node_changed(Change::Here(node), moment(0).wall);
    store.node_changed(Change::ListEnds, moment(0).wall);
    let inner = store.lock();
    assert!(marked_after(&inner.cluster, &mut Watchdog::default(), 0..=100).is_empty());
}

#[test]
fn an_agent_whose_probe_conntrack_drops_is_not_gone() {
    let full = || node("n", "z", "p", "Critical", &[("ConntrackFull", "critical", "packetFilter", "full")]);
    let mut watchdog = Watchdog::default();
    let not_ready = cluster(&[full()], &[agent("a", "n", false)]);
    assert!(marked_after(&not_ready, &mut watchdog, 0..=300).is_empty());
    let without = cluster(&[full()], &[]);
    assert_eq!(marked_after(&without, &mut Watchdog::default(), 0..=40), ["n"], "without a pod it is gone");
}
