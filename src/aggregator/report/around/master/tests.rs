//! Kubelets that are not heard: some, nearly all, and in an update of the control plane.

use std::collections::HashMap;

use serde_json::Value;

use super::super::inventory;
use super::*;
use crate::aggregator::testing::{apply, at, cluster, marked, node, silent as mute};
use crate::checks::Severity;

/// As it is where nothing is set.
const UPDATE: i64 = 45 * 60;

fn worker(number: usize) -> Value {
    node(&format!("n{number}"), if number < 3 { "a" } else { "b" }, "p", "Normal", &[])
}

fn planted(change: impl Fn(usize, Value) -> Value) -> Cluster {
    cluster(&(0..6).map(|number| change(number, worker(number))).collect::<Vec<_>>(), &[])
}

/// So many have been silent for two minutes.
fn cut(count: usize) -> Cluster {
    planted(move |number, node| if number < count { mute(node) } else { node })
}

fn updated(mut cluster: Cluster, second: i64) -> Cluster {
    cluster.memory.master.answered("v1.34.2", at(second - 30));
    cluster.memory.master.answered("v1.35.4", at(second));
    cluster
}

fn drafts(cluster: &Cluster, now: i64) -> Vec<Draft> {
    let mut all = inventory::findings(cluster, &cluster.duplicates(), at(now));
    all.retain(|draft| !["ZoneBelowTwoWorkers", "LastWorkerAtRisk"].contains(&draft.code));
    all
}

fn codes(cluster: &Cluster, now: i64) -> Vec<(&'static str, Severity, usize)> {
    drafts(cluster, now).into_iter().map(|draft| (draft.code, draft.severity, draft.on.len())).collect()
}

#[test]
fn a_kubelet_that_is_not_heard_is_told_and_calico_left_alone() {
    assert!(codes(&cut(0), 0).is_empty(), "all is well");
    let mut cluster = cut(1);
    assert!(codes(&cluster, -101).is_empty(), "it may be back at once");
    assert_eq!(codes(&cluster, -100), [("KubeletHeartbeatLost", Critical, 1)]);
    let draft = drafts(&cluster, 0).remove(0);
    assert!(draft.detail.contains("of the kubelet of n0 since 2026-11-21T09:58:00Z; Pods there"), "{}", draft.detail);
    assert!(draft.next.contains("leave Calico alone") && draft.since == Some(at(-120)), "{}", draft.next);
    apply(&mut cluster, &worker(0));
    assert!(codes(&cluster, 0).is_empty(), "it clears");
}

#[test]
fn an_agent_that_says_why_is_enough_as_long_as_it_is_heard() {
    let with = |code: &str, area: &str| mute(node("n0", "a", "p", "Critical", &[(code, "critical", area, "it is so")]));
    let told = |node: Value| codes(&planted(|number, other| if number == 0 { node.clone() } else { other }), 0);
    for code in ["KubeletDown", "KubeletUnhealthy", "MasterPathPartial"] {
        assert!(told(with(code, "controlPlanePath")).is_empty(), "{code}");
    }
    assert_eq!(told(with("DiskFull", "capacity")), [("KubeletHeartbeatLost", Critical, 1)]);
    // It is gone too, and what it said last is no more than that.
    let gone = planted(
        |number, other| {
            if number == 0 { marked(with("MasterPathPartial", "controlPlanePath")) } else { other }
        },
    );
    let detail = drafts(&gone, 0).remove(0).detail;
    assert!(detail.contains("; the last that its agent said is MasterPathPartial;"), "{detail}");
}

#[test]
fn who_is_left_over_goes_or_is_new_is_not_missed() {
    let told = |change: fn(&mut Value)| {
        codes(
            &planted(|number, node| {
                let mut node = if number == 0 { mute(node) } else { return node };
                change(&mut node);
                node
            }),
            0,
        )
    };
    assert!(told(|node| node["metadata"]["deletionTimestamp"] = at(0).to_string().into()).is_empty());
    assert!(told(|node| node["metadata"]["creationTimestamp"] = at(-599).to_string().into()).is_empty());
    assert_eq!(told(|node| node["metadata"]["creationTimestamp"] = at(-600).to_string().into()).len(), 1);
    assert!(told(|node| node["spec"]["unschedulable"] = true.into()).is_empty(), "somebody works on it");
    let taint = |key: &str| serde_json::json!([{"key": key, "effect": "NoSchedule"}]);
    let down = taint("node.kubernetes.io/out-of-service");
    let shut = codes(
        &planted(move |number, node| {
            let mut node = if number == 0 { mute(node) } else { return node };
            node["spec"]["taints"] = down.clone();
            node
        }),
        0,
    );
    assert!(shut.is_empty(), "it is off, and its owner says so");
    let mut twin = cut(0);
    let mut old = mute(worker(9));
    old["status"]["addresses"] = serde_json::json!([{"type": "InternalIP", "address": "10.0.0.1"}]);
    apply(&mut twin, &old);
    assert_eq!(codes(&twin, 0), [("KubeletHeartbeatLost", Critical, 1)]);
    let mut new = worker(1);
    new["status"]["addresses"] = old["status"]["addresses"].clone();
    apply(&mut twin, &new);
    assert_eq!(codes(&twin, 0), [("DuplicateNodeObject", Info, 1)], "another is in its place");
    twin.remove_node("n9", at(0));
    assert!(codes(&twin, 0).is_empty());
}

#[test]
fn when_nearly_all_are_silent_it_is_the_control_plane() {
    for count in [5, 6] {
        assert_eq!(codes(&cut(count), 0), [("MasterUnreachableClusterwide", Critical, count)]);
    }
    assert_eq!(inventory::findings(&cut(6), &HashMap::new(), at(0)).len(), 1, "that none is Ready follows from it");
    assert_eq!(codes(&cut(4), 0), [("KubeletHeartbeatLost", Critical, 4)], "two thirds are each for itself");
    assert!(codes(&cut(6), -61).is_empty(), "it may be back at once, and no worker is at fault meanwhile");
    assert_eq!(codes(&cut(6), -60).len(), 1);
    let said = ("MasterUnreachable", "critical", "controlPlanePath", "cannot reach it");
    let agents = cluster(
        &(0..4).map(|number| node(&format!("n{number}"), "a", "p", "Critical", &[said])).collect::<Vec<_>>(),
        &[],
    );
    assert_eq!(codes(&agents, 0), [("MasterUnreachableClusterwide", Critical, 4)], "by the agents' word");
    let since = drafts(&agents, 0)[0].since.expect("since the agents say so");
    assert!(since > at(-3_600), "and not since the workers became Ready: {since}");
    let second = since.duration_since(at(0)).as_secs();
    assert!(codes(&agents, second + 59).is_empty() && codes(&agents, second + 60).len() == 1, "it may be back at once");
}

#[test]
fn in_an_update_of_the_control_plane_nobody_is_alarmed_until_it_is_over() {
    let quiet = updated(cut(0), 0);
    assert_eq!(codes(&quiet, UPDATE - 1), [("MasterUpdateInProgress", Info, 0)]);
    let draft = drafts(&quiet, 0).remove(0);
    assert!(
        draft.detail.contains("said v1.34.2 and, since 2026-11-21T10:00:00Z, v1.35.4; for 45 minutes"),
        "{}",
        draft.detail
    );
    assert!(codes(&quiet, UPDATE).is_empty(), "it clears");

    let all = updated(cut(6), 0);
    assert_eq!(
        codes(&all, UPDATE - 1),
        [("MasterUpdateInProgress", Info, 0), ("MasterUnreachableClusterwide", Info, 6)]
    );
    assert_eq!(codes(&all, UPDATE), [("MasterUnreachableClusterwide", Critical, 6)], "it lasts");
    let one = updated(cut(1), 0);
    assert_eq!(codes(&one, UPDATE - 1)[1], ("KubeletHeartbeatLost", Warning, 1));
    assert!(drafts(&one, 0)[1].next.contains("reload or replace n0 if it stays silent"), "{}", drafts(&one, 0)[1].next);
    assert_eq!(codes(&one, UPDATE), [("KubeletHeartbeatLost", Critical, 1)]);
    // As it is configured.
    let mut short = updated(cut(6), 0);
    short.surroundings.limits.master_update_minutes = 5;
    assert_eq!(codes(&short, 300), [("MasterUnreachableClusterwide", Critical, 6)]);
}
