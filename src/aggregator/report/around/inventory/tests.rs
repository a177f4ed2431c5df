//! Nodes that are left over, that share an address, that are few, that do not arrive; and Pods that cannot be made.

use serde_json::{Value, json};

use super::super::calico::tests::list;
use super::*;
use crate::aggregator::surroundings::What;
use crate::aggregator::testing::{apply, at, cluster, node, silent as mute};
use crate::checks::Severity;

/// As it is where nothing is set.
const REPLACED: i64 = 600;

fn worker(number: usize) -> Value {
    let mut node = node(&format!("n{number}"), if number < 3 { "a" } else { "b" }, "p", "Normal", &[]);
    node["status"]["addresses"] = json!([{"type": "InternalIP", "address": format!("10.0.0.{number}")}, {"type": "ExternalIP", "address": format!("169.0.0.{number}")}]);
    node["status"]["nodeInfo"] = json!({"systemUUID": format!("u{number}")});
    node
}

fn not_ready(mut node: Value) -> Value {
    node["status"]["conditions"][0]["status"] = "False".into();
    node
}

fn planted(change: impl Fn(usize, Value) -> Value) -> Cluster {
    cluster(&(0..6).map(|number| change(number, worker(number))).collect::<Vec<_>>(), &[])
}

fn findings(cluster: &Cluster, now: Timestamp) -> Vec<Draft> {
    super::findings(cluster, &cluster.duplicates(), now)
}

fn codes(cluster: &Cluster, now: i64) -> Vec<(&'static str, Severity, Vec<String>)> {
    findings(cluster, at(now)).into_iter().map(|draft| (draft.code, draft.severity, draft.on)).collect()
}

fn names(numbers: &[usize]) -> Vec<String> {
    numbers.iter().map(|number| format!("n{number}")).collect()
}

#[test]
fn when_all_is_well_nothing_is_said_and_of_an_empty_cluster_too() {
    assert!(codes(&planted(|_, node| node), 0).is_empty());
    assert!(codes(&cluster(&[], &[]), 0).is_empty());
}

#[test]
fn a_node_that_is_left_over_is_told_with_its_twin() {
    let mut cluster = planted(|_, node| node);
    let mut old = not_ready(worker(5));
    old["metadata"]["name"] = "169.0.0.5".into();
    apply(&mut cluster, &old);
    assert_eq!(codes(&cluster, 0), [("DuplicateNodeObject", Info, vec!["169.0.0.5".to_owned()])]);
    assert!(findings(&cluster, at(0))[0].next.contains("see that n5 is Ready, then `kubectl delete node 169.0.0.5`"));
    cluster.remove_node("169.0.0.5", at(1));
    assert!(codes(&cluster, 1).is_empty());
    // Nodes that are containers of one machine have its number, and are no duplicates.
    let kind = planted(|number, mut node| {
        node["status"]["nodeInfo"]["systemUUID"] = "same".into();
        if number == 5 { not_ready(node) } else { node }
    });
    assert!(codes(&kind, 0).is_empty());
}

#[test]
fn two_ready_nodes_with_one_address_are_told_once_neither_is_new() {
    let twins = planted(|number, mut node| {
        if number == 4 {
            node["status"]["addresses"][0]["address"] = "10.0.0.2".into();
        }
        node
    });
    assert_eq!(codes(&twins, 0), [("NodeIpReused", Critical, names(&[2, 4]))]);
    let new = planted(|number, mut node| {
        if number == 4 {
            node["status"]["addresses"][0]["address"] = "10.0.0.2".into();
            node["metadata"]["creationTimestamp"] = json!(at(-599));
        }
        node
    });
    assert!(codes(&new, 0).is_empty(), "the other may be about to go");
}

#[test]
fn the_last_worker_is_at_risk_unless_it_was_the_only_one() {
    let cordon = |mut node: Value| {
        node["spec"]["unschedulable"] = true.into();
        node
    };
    let left = planted(|number, node| match number {
        0 => node,
        1 => not_ready(node),
        _ => cordon(node),
    });
    assert_eq!(codes(&left, 0), [("LastWorkerAtRisk", Warning, names(&[0]))]);
    let none = planted(|_, node| cordon(node));
    assert_eq!(codes(&none, 0), [("LastWorkerAtRisk", Warning, vec![])]);
    assert!(codes(&cluster(&[worker(0)], &[]), 0).is_empty());
    // Nodes of the control plane take no Pods, and do not count.
    let mut master = worker(1);
    master["spec"]["taints"] = json!([{"key": "node-role.kubernetes.io/control-plane", "effect": "NoSchedule"}]);
    assert!(codes(&cluster(&[worker(0), master], &[]), 0).is_empty());
    let zone = planted(|number, node| if number < 2 { cordon(node) } else { node });
    assert_eq!(codes(&zone, 0), [("ZoneBelowTwoWorkers", Info, vec![])]);
    assert!(findings(&zone, at(0))[0].detail.contains("a (1 of 3)"));
    let small = cluster(&[worker(0), worker(4)], &[]);
    assert!(codes(&small, 0).is_empty(), "one in each zone from the beginning");
}

/// Six workers of a provider whose pools refill themselves.
fn refilled() -> Cluster {
    planted(|_, mut node| {
        node["metadata"]["labels"]["ibm-cloud.kubernetes.io/worker-pool-name"] = "red".into();
        node
    })
}

#[test]
fn a_worker_that_went_and_was_not_replaced_is_told_for_a_day() {
    let mut cluster = refilled();
    cluster.remove_node("n4", at(0));
    assert!(codes(&cluster, REPLACED - 1).is_empty(), "another one may be about to come");
    assert_eq!(codes(&cluster, REPLACED), [("PoolNotRefilled", Warning, vec![])]);
    let draft = findings(&cluster, at(REPLACED)).remove(0);
    assert_eq!((&*draft.subject, draft.since), ("red", Some(at(0))));
    assert!(
        draft
            .detail
            .contains("1 workers of pool red went within a day, and 0 new ones came: 1 fewer than before; gone are n4"),
        "{}",
        draft.detail
    );
    // What is known outlives the process that saw it.
    assert!(codes(&cluster, REMEMBERED + 1).is_empty(), "it was meant, or somebody else has noticed");
    // A new one comes; then one more goes than come.
    let mut new = worker(7);
    new["metadata"]["labels"]["ibm-cloud.kubernetes.io/worker-pool-name"] = "red".into();
    new["metadata"]["creationTimestamp"] = json!(at(900));
    apply(&mut cluster, &new);
    assert!(codes(&cluster, 900).is_empty(), "it is replaced");
    cluster.remove_node("n5", at(1_000));
    assert_eq!(findings(&cluster, at(2_000)).remove(0).since, Some(at(1_000)));
    // One of the two comes back by its own name.
    let mut back = worker(5);
    back["metadata"]["labels"]["ibm-cloud.kubernetes.io/worker-pool-name"] = "red".into();
    apply(&mut cluster, &back);
    assert!(codes(&cluster, 2_000).is_empty());
}

#[test]
fn workers_that_were_to_go_are_not_missed() {
    let mut other = planted(|_, node| node);
    other.remove_node("n4", at(0));
    assert!(codes(&other, REPLACED).is_empty(), "pools of others are refilled by others, or by nobody");
    let mut scaled = refilled();
    let mut node = worker(4);
    node["metadata"]["labels"]["ibm-cloud.kubernetes.io/worker-pool-name"] = "red".into();
    node["spec"]["taints"] = json!([{"key": "ToBeDeletedByClusterAutoscaler", "effect": "NoSchedule"}]);
    apply(&mut scaled, &node);
    scaled.remove_node("n4", at(0));
    assert!(codes(&scaled, REPLACED).is_empty(), "the autoscaler took it");
    // Updates of some providers bring the new one first, and drain the old one for hours.
    let mut surged = refilled();
    let mut new = worker(7);
    new["metadata"]["labels"]["ibm-cloud.kubernetes.io/worker-pool-name"] = "red".into();
    new["metadata"]["creationTimestamp"] = json!(at(-7_200));
    apply(&mut surged, &new);
    surged.remove_node("n4", at(0));
    assert!(codes(&surged, REPLACED).is_empty());
    assert!(codes(&surged, 86_400 - 7_199).is_empty(), "nor when it came more than a day ago");
    // What was left over of a worker that has another Node by now.
    let mut twice = refilled();
    let mut old = not_ready(worker(5));
    old["metadata"]["name"] = "169.0.0.5".into();
    old["metadata"]["labels"]["ibm-cloud.kubernetes.io/worker-pool-name"] = "red".into();
    apply(&mut twice, &old);
    twice.remove_node("169.0.0.5", at(0));
    assert!(codes(&twice, REPLACED).is_empty());
    let mut empty = refilled();
    (0..6).for_each(|number| empty.remove_node(&format!("n{number}"), at(0)));
    assert_eq!(codes(&empty, REPLACED), [("ClusterWithoutWorkers", Critical, vec![])], "the pool was removed");
}

#[test]
fn a_cluster_that_had_workers_and_has_none_is_told() {
    let left = |cluster: &Cluster, now| {
        codes(cluster, now).into_iter().filter(|(code, ..)| *code == "ClusterWithoutWorkers").count()
    };
    let mut cluster = planted(|_, node| node);
    (0..5).for_each(|number| cluster.remove_node(&format!("n{number}"), at(0)));
    assert_eq!(left(&cluster, 9_999), 0, "there is one left");
    cluster.remove_node("n5", at(100));
    assert_eq!(left(&cluster, 699), 0, "the one in its place may come yet");
    assert_eq!(codes(&cluster, 700), [("ClusterWithoutWorkers", Critical, vec![])]);
    assert_eq!(findings(&cluster, at(700))[0].since, Some(at(100)));
    let mut master = worker(9);
    master["spec"]["taints"] = json!([{"key": "node-role.kubernetes.io/control-plane", "effect": "NoSchedule"}]);
    apply(&mut cluster, &master);
    assert_eq!(left(&cluster, 700), 1, "nothing else runs there");
    let mut masters = planted(|_, node| node);
    (0..6).for_each(|number| masters.remove_node(&format!("n{number}"), at(0)));
    let mut never = Cluster::default();
    apply(&mut never, &master);
    never.remove_node("n9", at(0));
    assert_eq!((left(&masters, 700), left(&never, 700)), (1, 0), "one of the control plane was no worker");
    apply(&mut cluster, &not_ready(worker(7)));
    assert_eq!(left(&cluster, 700), 0, "it clears, whatever that one is like");
}

/// The fifth worker was cordoned so long ago, and is not Ready since then.
fn in_transit(cordoned: i64, since: i64) -> Cluster {
    planted(move |number, node| {
        let mut node = if number == 4 { not_ready(node) } else { return node };
        node["status"]["conditions"][0]["lastTransitionTime"] = json!(at(since));
        node["spec"] = json!({"unschedulable": true,
            "taints": [{"key": "node.kubernetes.io/unschedulable", "effect": "NoSchedule", "timeAdded": at(cordoned)}]});
        node
    })
}

#[test]
fn a_worker_that_is_reloaded_and_does_not_come_back_is_told_after_twenty_minutes() {
    let stuck = |cluster: &Cluster, now| {
        let all = codes(cluster, now).into_iter().filter(|(code, ..)| *code == "WorkerStuckInTransition");
        all.map(|(_, severity, on)| (severity, on)).collect::<Vec<_>>()
    };
    let mut cluster = in_transit(-60, 0);
    assert!(stuck(&cluster, 1_199).is_empty(), "a repair takes its time");
    assert_eq!(stuck(&cluster, 1_200), [(Warning, names(&[4]))]);
    let all = findings(&cluster, at(1_200));
    let draft = all.iter().find(|draft| draft.code == "WorkerStuckInTransition").expect("just found");
    assert!(draft.detail.contains("n4 is cordoned, and not Ready since 2026-11-21T10:00:00Z"), "{}", draft.detail);
    assert!(draft.next.contains("`nodevitals repair n4`"), "{}", draft.next);
    let mut limits = cluster.surroundings.limits.clone();
    limits.transit_minutes = 60;
    cluster.surroundings.limits = limits;
    assert!(stuck(&cluster, 1_200).is_empty(), "as it is configured");
    cluster.surroundings.limits = crate::config::ClusterLimits::default();
    apply(&mut cluster, &worker(4));
    assert!(stuck(&cluster, 9_999).is_empty(), "it clears");
    assert!(stuck(&in_transit(60, 0), 9_999).is_empty(), "it was cordoned because of it");
    // Silent while it is reloaded is on its way too, and not lost.
    let mut gone = mute(worker(4));
    gone["spec"] = json!({"unschedulable": true, "taints": []});
    let gone = planted(move |number, node| if number == 4 { gone.clone() } else { node });
    let at_first = codes(&gone, 0);
    assert!(at_first.iter().all(|(code, ..)| *code == "ZoneBelowTwoWorkers"), "{at_first:?}");
    assert_eq!(stuck(&gone, 1_200), [(Warning, names(&[4]))]);
    // Somebody says that it is on purpose.
    let mut kept = not_ready(worker(4));
    kept["spec"] = json!({"unschedulable": true});
    kept["metadata"]["annotations"]["nodevitals.dev/maintenance"] = "disks".into();
    let kept = planted(move |number, node| if number == 4 { kept.clone() } else { node });
    assert!(stuck(&kept, 9_999).is_empty());
}

#[test]
fn a_new_worker_that_never_was_ready_is_told_with_what_its_agent_says() {
    let new = |created: i64, since: i64| {
        planted(move |number, node| {
            let mut node = if number == 4 { not_ready(node) } else { return node };
            node["metadata"]["creationTimestamp"] = json!(at(created));
            node["status"]["conditions"][0]["lastTransitionTime"] = json!(at(since));
            node["metadata"]["annotations"]["nodevitals.dev/findings"] =
                json!([{"code": "CniConfigMissing", "severity": "critical",
                "area": "cni", "subject": "s", "since": at(created), "detail": "d", "next": "n"}])
                .to_string()
                .into();
            node
        })
    };
    let stuck = |cluster: &Cluster, now| {
        findings(cluster, at(now)).into_iter().find(|draft| draft.code == "WorkerStuckInTransition")
    };
    assert!(stuck(&new(0, 2), 1_199).is_none());
    let draft = stuck(&new(0, 2), 1_200).expect("told");
    assert!(
        draft.detail.contains("n4 is new") && draft.detail.ends_with("; its agent says CniConfigMissing"),
        "{}",
        draft.detail
    );
    assert!(stuck(&new(0, 600), 9_999).is_none(), "it was Ready before: it is broken, and not on its way");
}

#[test]
fn a_webhook_that_blocks_the_system_is_told_for_half_an_hour_after_the_last_try() {
    let event = |namespace: &str, message: &str| {
        json!({"metadata": {"name": "e", "namespace": namespace}, "message": message, "series": {"lastObservedTime": at(0)},
            "involvedObject": {"kind": "ReplicaSet", "namespace": namespace, "name": "coredns-5d78c9869d"}})
    };
    let message =
        "Error creating: Internal error occurred: failed calling webhook \"guard.example\": no endpoints available";
    let with = |namespace, message| {
        let mut cluster = planted(|_, node| node);
        list(&mut cluster, What::FailedCreates, &[event(namespace, message)], 0);
        cluster
    };
    let blocked = with("kube-system", message);
    assert_eq!(codes(&blocked, 0), [("WebhookBlocksSystemPods", Critical, vec![])]);
    let draft = findings(&blocked, at(0)).remove(0);
    assert!(
        draft.detail.contains("ReplicaSet coredns-5d78c9869d in kube-system") && draft.detail.contains("guard.example"),
        "{}",
        draft.detail
    );
    assert!(codes(&blocked, TRIED_WITHIN).is_empty(), "it clears");
    assert!(codes(&with("shop", message), 0).is_empty(), "not the system");
    assert!(codes(&with("kube-system", "Error creating: exceeded quota"), 0).is_empty(), "no webhook");
}
