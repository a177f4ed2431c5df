//! What runs once for the cluster: absent, in the wrong place, out of memory, moving, mixed.

use serde_json::{Value, json};

use super::super::calico::tests::{list, looping, pod, set};
use super::*;
use crate::aggregator::ipam::{Given, Ipam};
use crate::aggregator::looked::Look;
use crate::aggregator::testing::{at, cluster, node};
use crate::aggregator::watch::Change;
use crate::checks::Severity;

const KC: &str = "calico-kube-controllers";

fn deployment(replicas: u32) -> Value {
    json!({"metadata": {"name": KC, "namespace": "kube-system", "creationTimestamp": at(-86_400)}, "spec": {"replicas": replicas}})
}

fn planted(pods: &[Value]) -> Cluster {
    let nodes: Vec<Value> = (0..6).map(|number| node(&format!("n{number}"), "z", "p", "Normal", &[])).collect();
    let mut cluster = cluster(&nodes, &[]);
    list(&mut cluster, What::CalicoPods, pods, -86_400);
    list(&mut cluster, What::SystemDeployments, &[deployment(1)], -86_400);
    list(&mut cluster, What::CalicoDeployments, &[], -86_400);
    list(&mut cluster, What::DaemonSets, &[set("kube-system", 6, 6)], -86_400);
    cluster
}

fn codes(cluster: &Cluster, now: i64) -> Vec<(&'static str, Severity)> {
    findings(cluster, at(now)).iter().map(|draft| (draft.code, draft.severity)).collect()
}

#[test]
fn one_that_runs_is_healthy_and_none_without_calico_too() {
    assert!(codes(&planted(&[pod(KC, "kube-system", 1, "n1", true, -86_400, 0)]), 0).is_empty());
    let mut none = cluster(&[], &[]);
    for what in [What::CalicoPods, What::SystemDeployments, What::CalicoDeployments] {
        list(&mut none, what, &[], -86_400);
    }
    assert!(codes(&none, 86_400).is_empty());
    // A list that is without it tells as much as having seen it go.
    let mut gone = planted(&[]);
    list(&mut gone, What::SystemDeployments, &[], 0);
    assert_eq!(codes(&gone, 86_400), [("CalicoKubeControllersMissing", Warning)]);
    assert!(codes(&cluster(&[], &[]), 0).is_empty(), "not looked at");
}

#[test]
fn a_short_absence_harms_nobody_unless_nodes_go_meanwhile() {
    let mut cluster = planted(&[pod(KC, "kube-system", 1, "n1", false, 0, 0)]);
    assert_eq!(codes(&cluster, 899), [("CalicoKubeControllersDown", Info)]);
    assert_eq!(codes(&cluster, 900), [("CalicoKubeControllersDown", Warning)]);
    cluster.remove_node("n5", at(60));
    assert_eq!(codes(&cluster, 61), [("CalicoKubeControllersDown", Warning)]);
    assert!(findings(&cluster, at(61))[0].detail.contains("1 nodes were deleted meanwhile"));
    let none = planted(&[]);
    assert_eq!(codes(&none, 0), [("CalicoKubeControllersDown", Warning)], "no Pod since the Pods are seen");
}

#[test]
fn it_is_missed_at_once_where_addresses_run_out() {
    // Four blocks of 64 addresses, of which two are given out.
    let mut cluster = planted(&[pod(KC, "kube-system", 1, "n1", false, 0, 0)]);
    let pool: ipnet::IpNet = "172.30.0.0/24".parse().expect("a pool");
    let object = json!({"metadata": {"name": "default"}, "spec": {"cidr": pool, "blockSize": 26}});
    list(&mut cluster, What::Pools, &[object], -86_400);
    let mut given = |blocks, free| {
        let mut read = Ipam::default();
        read.pools.insert(pool, Given { blocks, used: u64::from(blocks) * 64 - free, free });
        cluster.ipam = Some(read);
        let draft = findings(&cluster, at(10)).remove(0);
        (draft.code, draft.severity, draft.detail, draft.next)
    };
    assert_eq!(given(2, 0).1, Info, "half of the blocks is left");
    assert_eq!(given(4, 26).1, Info, "a tenth is left");
    let (code, severity, detail, next) = given(4, 25);
    assert_eq!((code, severity), ("CalicoKubeControllersDown", Warning));
    assert!(detail.ends_with("; 25 of 256 IPv4 Pod addresses are free, and nobody frees what leaks"), "{detail}");
    assert!(next.starts_with("do not wait: look at its Pod"), "{next}");
    assert_eq!(given(4, 60).1, Info, "some were freed");
    // What was read before the blocks were lost is no longer known; it is down all the same.
    given(4, 0);
    cluster.looked(Look::Blocks, Some("refused".to_owned()), at(-60));
    assert_eq!(codes(&cluster, 10), [("CalicoKubeControllersDown", Info)]);
    cluster.ipam = None;
    cluster.looked(Look::Blocks, None, at(0));
    assert_eq!(codes(&cluster, 10), [("CalicoKubeControllersDown", Info)]);
}

#[test]
fn its_node_its_memory_and_its_restarts_are_told_apart() {
    let mut bad = planted(&[pod(KC, "kube-system", 1, "n1", false, 0, 0)]);
    let mut away = node("n1", "z", "p", "Normal", &[]);
    away["status"]["conditions"][0]["status"] = "False".into();
    crate::aggregator::testing::apply(&mut bad, &away);
    assert_eq!(codes(&bad, 10), [("CalicoKubeControllersOnBadNode", Warning)]);
    assert!(findings(&bad, at(10))[0].next.contains("uncordon n1"));

    let crash = looping(pod(KC, "kube-system", 1, "n1", false, 0, 4));
    assert_eq!(codes(&planted(std::slice::from_ref(&crash)), 10), [("CalicoKubeControllersCrashLooping", Warning)]);
    let mut oom = crash;
    oom["status"]["containerStatuses"][0]["lastState"]["terminated"] =
        json!({"reason": "OOMKilled", "exitCode": 137, "finishedAt": at(0)});
    assert_eq!(codes(&planted(std::slice::from_ref(&oom)), 10), [("CalicoKubeControllersOomKilled", Warning)]);
    // 137 is also what a failed liveness probe ends with: the reason counts.
    oom["status"]["containerStatuses"][0]["lastState"]["terminated"]["reason"] = "Error".into();
    assert_eq!(codes(&planted(&[oom]), 10), [("CalicoKubeControllersCrashLooping", Warning)]);
}

#[test]
fn where_it_was_tried_in_vain_is_remembered_until_it_is_well() {
    let crash = |number, node| looping(pod(KC, "kube-system", number, node, false, 0, 4));
    let take = |cluster: &mut Cluster, change: fn(_) -> Change<_>, pod: &Value, when| {
        let pod = serde_json::from_value(pod.clone()).expect("a Pod");
        cluster.surroundings.take(What::CalicoPods, change(pod), at(when));
    };
    let mut cluster = planted(&[crash(1, "n1")]);
    assert!(findings(&cluster, at(10))[0].next.starts_with("cordon its node"));
    take(&mut cluster, Change::Gone, &crash(1, "n1"), 20);
    take(&mut cluster, Change::Here, &crash(2, "n2"), 30);
    take(&mut cluster, Change::Gone, &crash(2, "n2"), 40);
    take(&mut cluster, Change::Here, &crash(3, "n3"), 50);
    let told = findings(&cluster, at(60)).remove(0);
    assert!(told.detail.ends_with("moved there after it did not come up on n1, n2"), "{}", told.detail);
    assert!(told.next.starts_with("the nodes are not to blame"), "{}", told.next);
    let late = findings(&cluster, at(60 + TRIED)).remove(0);
    assert!(!late.detail.contains("moved there"), "{}", late.detail);
    // Ready for a moment between two crashes is not well; Ready for two minutes is.
    for (ready, bad, tried) in [(70, 100, true), (200, 400, false)] {
        take(&mut cluster, Change::Here, &pod(KC, "kube-system", 3, "n3", true, ready, 4), ready);
        take(&mut cluster, Change::Here, &crash(3, "n3"), bad);
        let told = findings(&cluster, at(bad + 10)).remove(0);
        assert_eq!(told.detail.contains("moved there"), tried, "{}", told.detail);
    }
}

#[test]
fn what_cured_it_the_last_time_is_told_when_it_fails_again() {
    let mut cluster = planted(&[looping(pod(KC, "kube-system", 1, "n1", false, 0, 4))]);
    let told = |cluster: &Cluster| findings(cluster, at(10)).remove(0).detail;
    assert!(!told(&cluster).contains("cured"), "{}", told(&cluster));
    for (to, says) in [
        ("n3", "; before 2026-11-21T09:00:00Z a move from n2 to n3 cured it, which speaks for n2"),
        ("n2", "; before 2026-11-21T09:00:00Z a new Pod on n2 cured it, which speaks for a process that went wrong"),
    ] {
        let memory = json!({"controllers": [at(-3_600).as_second(), "n2", to]});
        cluster.memory.controllers = None;
        cluster.memory.read(&memory);
        assert!(told(&cluster).ends_with(says), "{}", told(&cluster));
    }
}

#[test]
fn exactly_one_has_to_run() {
    let two = [pod(KC, "kube-system", 1, "n1", true, -86_400, 0), pod(KC, "kube-system", 2, "n2", true, 0, 0)];
    assert!(codes(&planted(&two), 299).is_empty(), "one takes over");
    assert_eq!(codes(&planted(&two), 300), [("CalicoKubeControllersCount", Info)]);
    let mut zero = planted(&[]);
    list(&mut zero, What::SystemDeployments, &[deployment(0)], 0);
    assert_eq!(codes(&zero, 1), [("CalicoKubeControllersMissing", Warning)]);
}

#[test]
fn a_deployment_that_was_there_and_is_not_is_missing() {
    let mut cluster = planted(&[]);
    let gone = serde_json::from_value(deployment(1)).expect("a deployment");
    cluster.surroundings.take(What::SystemDeployments, Change::Gone(gone), at(0));
    assert!(codes(&cluster, 119).is_empty());
    assert_eq!(codes(&cluster, 120), [("CalicoKubeControllersMissing", Warning)]);
    list(&mut cluster, What::CalicoDeployments, &[deployment(1)], 130);
    assert_ne!(codes(&cluster, 131), [("CalicoKubeControllersMissing", Warning)], "it has moved");
}

#[test]
fn a_webhook_that_keeps_its_pods_from_being_made_is_why_there_is_none() {
    let refused = |owner: &str| {
        let mut cluster = planted(&[]);
        let event = json!({"metadata": {"name": "e", "namespace": "kube-system"}, "series": {"lastObservedTime": at(0)},
            "message": "Error creating: failed calling webhook \"guard.example\": no endpoints available",
            "involvedObject": {"kind": "ReplicaSet", "namespace": "kube-system", "name": owner}});
        list(&mut cluster, What::FailedCreates, &[event], 0);
        cluster
    };
    let cluster = refused("calico-kube-controllers-5d78c9869d");
    assert_eq!(codes(&cluster, 1), [("CalicoKubeControllersMissing", Warning)]);
    let draft = findings(&cluster, at(1)).remove(0);
    assert!(draft.detail.contains("guard.example") && draft.next.starts_with("fix that webhook first"), "{draft:?}");
    assert_eq!(codes(&cluster, 1_800), [("CalicoKubeControllersDown", Warning)], "that was long ago");
    assert_eq!(codes(&refused("coredns-5d78c9869d"), 1), [("CalicoKubeControllersDown", Warning)], "another's");
}

fn fine() -> Value {
    pod(KC, "kube-system", 1, "n1", true, -86_400, 0)
}

#[test]
fn typha_is_as_bad_as_how_many_are_left() {
    let typha = |number: usize, node: &str, ready| pod("calico-typha", "kube-system", number, node, ready, 0, 0);
    assert!(codes(&planted(&[fine(), typha(1, "n1", true), typha(2, "n2", false)]), 119).is_empty());
    assert_eq!(
        codes(&planted(&[fine(), typha(1, "n1", true), typha(2, "n2", false)]), 120),
        [("TyphaUnhealthy", Warning)]
    );
    assert_eq!(
        codes(&planted(&[fine(), typha(1, "n1", false), typha(2, "n2", false)]), 120),
        [("TyphaUnhealthy", Critical)]
    );
    // A cluster of two nodes has no room for the third.
    let mut small = planted(&[fine(), typha(1, "n1", true), typha(2, "n2", true), typha(3, "", false)]);
    (2..6).for_each(|number| small.remove_node(&format!("n{number}"), at(0)));
    assert!(codes(&small, 86_400).is_empty());
}

#[test]
fn the_tunnel_is_down_when_no_end_of_it_is_ready() {
    let agent = |number: usize, ready| pod("konnectivity-agent", "kube-system", number, "n1", ready, 0, 0);
    assert!(codes(&planted(&[fine(), agent(1, false), agent(2, true)]), 600).is_empty());
    assert!(codes(&planted(&[fine(), agent(1, false)]), 119).is_empty());
    assert_eq!(codes(&planted(&[fine(), agent(1, false), agent(2, false)]), 120), [("ControlTunnelDown", Warning)]);
}

#[test]
fn a_move_is_told_and_only_one_that_stands_still_is_a_problem() {
    let mut new = pod("calico-node", "calico-system", 1, "n1", true, 0, 0);
    new["metadata"]["creationTimestamp"] = json!(at(0));
    let mut cluster = planted(&[fine(), new, pod("calico-node", "kube-system", 2, "n2", true, -86_400, 0)]);
    assert!(codes(&cluster, 10).is_empty(), "two Pods are no move");
    list(&mut cluster, What::DaemonSets, &[set("kube-system", 1, 1), set("calico-system", 1, 1)], 0);
    assert_eq!(codes(&cluster, 3599), [("CalicoMigrationInProgress", Info)]);
    assert_eq!(codes(&cluster, 3600), [("CalicoMigrationStalled", Critical)]);
    assert_eq!(findings(&cluster, at(3600))[0].on, ["n2"]);
    let old = serde_json::from_value(pod("calico-node", "kube-system", 2, "n2", true, 0, 0)).expect("a pod");
    cluster.surroundings.take(What::CalicoPods, Change::Gone(old), at(0));
    assert!(codes(&cluster, 3600).is_empty(), "it is done");
}

#[test]
fn versions_may_differ_while_something_is_under_way() {
    let versioned = |number: usize, version: &str, created: i64| {
        let mut pod = pod("calico-node", "kube-system", number, &format!("n{number}"), true, -86_400, 0);
        pod["status"]["containerStatuses"][0]["image"] =
            format!("registry:5000/calico/node:{version}@sha256:00").into();
        pod["metadata"]["creationTimestamp"] = json!(at(created));
        pod
    };
    let pods = [fine(), versioned(1, "v3.28.1", -86_400), versioned(2, "v3.27.0", 0)];
    let mut cluster = planted(&pods);
    assert!(codes(&cluster, 3599).is_empty(), "one is young");
    assert_eq!(codes(&cluster, 3600), [("CalicoVersionMixed", Warning)]);
    assert_eq!(findings(&cluster, at(3600))[0].on, ["n2"]);
    list(&mut cluster, What::DaemonSets, &[set("kube-system", 6, 3)], 0);
    assert!(codes(&cluster, 86_400).is_empty(), "an update is under way");
    assert!(codes(&planted(&pods[..2]), 86_400).is_empty());
}

#[test]
fn a_change_by_hand_of_what_the_provider_wrote_is_told_and_so_is_a_forgotten_lock() {
    let felix = |fields: Value| {
        json!({"metadata": {"name": "default", "annotations": {"created-by": "IBMCloudKubernetesService"},
            "managedFields": [{"manager": "kubectl-edit", "time": at(7), "fieldsV1": {"f:spec": fields}}]}})
    };
    let mut cluster = cluster(&[], &[]);
    list(&mut cluster, What::Felix, &[felix(json!({"f:mtu": {}}))], 0);
    assert!(codes(&cluster, 10).is_empty(), "that may be set");
    list(&mut cluster, What::Felix, &[felix(json!({"f:bpfEnabled": {}}))], 0);
    assert_eq!(codes(&cluster, 10), [("CalicoConfigDrift", Warning)]);
    let draft = findings(&cluster, at(10)).remove(0);
    assert!(draft.detail.contains("FelixConfiguration default by kubectl-edit: bpfEnabled"), "{}", draft.detail);
    list(&mut cluster, What::Felix, &[felix(json!({}))], 0);
    let locked = |ready: bool| json!({"metadata": {"name": "default", "managedFields": [{"manager": "calicoctl", "time": at(0)}]}, "spec": {"datastoreReady": ready}});
    list(&mut cluster, What::ClusterInformation, &[locked(false)], 0);
    assert!(codes(&cluster, LOCKED - 1).is_empty(), "somebody cleans up");
    assert_eq!(codes(&cluster, LOCKED), [("CalicoConfigDrift", Warning)]);
    list(&mut cluster, What::ClusterInformation, &[locked(true)], 0);
    assert!(codes(&cluster, LOCKED).is_empty());
}
