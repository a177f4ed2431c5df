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
fn a_silent_kubelet_counts_whatever_its_pods_say() {
    let cluster = cluster(&[silent(healthy("n"))], &[agent("a", "n", true)]);
    let mut watchdog = Watchdog::default();
    assert!(marked_after(&cluster, &mut watchdog, 0..=19).is_empty());
    assert_eq!(marked_after(&cluster, &mut watchdog, 20..=20), ["n"]);
    assert_eq!(watchdog.to_mark(&cluster, moment(20))[0].2.what, Missing::Kubelet);
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
