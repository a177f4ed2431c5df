//! calico-node: where it fails, how many, what is routine, and that other networks and silence are left alone.

use serde_json::{Value, json};

use super::*;
use crate::aggregator::hosted::Hosted;
use crate::aggregator::testing::{apply, at, cluster, node};
use crate::aggregator::watch::Change;

/// A Pod that has been Ready, or not, since then; with so many restarts.
pub(in super::super) fn pod(
    app: &str,
    namespace: &str,
    number: usize,
    node: &str,
    ready: bool,
    since: i64,
    restarts: u32,
) -> Value {
    let status = if ready { "True" } else { "False" };
    json!({
        "metadata": {"name": format!("{app}-{number}"), "namespace": namespace, "creationTimestamp": at(-86_400), "labels": {"k8s-app": app}},
        "spec": {"nodeName": node},
        "status": {"phase": "Running", "conditions": [{"type": "Ready", "status": status, "lastTransitionTime": at(since)}],
            "containerStatuses": [{"name": app, "image": format!("quay.io/calico/{app}:v3.28.1"), "restartCount": restarts}]},
    })
}

pub(in super::super) fn looping(mut pod: Value) -> Value {
    pod["status"]["containerStatuses"][0]["state"]["waiting"]["reason"] = "CrashLoopBackOff".into();
    pod
}

/// The DaemonSet calico-node: on how many nodes it should be, and is up to date.
pub(in super::super) fn set(namespace: &str, desired: usize, updated: usize) -> Value {
    json!({"metadata": {"name": "calico-node", "namespace": namespace, "creationTimestamp": at(-86_400)},
        "status": {"desiredNumberScheduled": desired, "currentNumberScheduled": desired, "updatedNumberScheduled": updated}})
}

pub(in super::super) fn list(cluster: &mut Cluster, what: What, objects: &[Value], when: i64) {
    let around = &mut cluster.surroundings;
    around.take(what, Change::Found, at(when));
    around.take(what, Change::ListBegins, at(when));
    for object in objects {
        around.take(what, Change::Here(serde_json::from_value(object.clone()).expect("an object")), at(when));
    }
    around.take(what, Change::ListEnds, at(when));
}

fn name(number: usize) -> String {
    format!("n{number:02}")
}

fn worker(number: usize, network: Option<(&str, i64)>) -> Value {
    let mut node = node(&name(number), if number < 10 { "a" } else { "b" }, "p", "Normal", &[]);
    if let Some((status, since)) = network {
        let reason = if status == "True" { "CalicoIsDown" } else { "CalicoIsUp" };
        node["status"]["conditions"].as_array_mut().expect("conditions").push(
            json!({"type": "NetworkUnavailable", "status": status, "reason": reason, "lastTransitionTime": at(since)}),
        );
        if status == "True" {
            node["spec"]["taints"] = json!([{"key": "node.kubernetes.io/network-unavailable", "effect": "NoSchedule"}]);
        }
    }
    node
}

/// So many workers, of which these have a calico-node that has not been Ready for so long.
fn planted(count: usize, broken: &[usize], since: i64) -> Cluster {
    let nodes: Vec<Value> = (0..count).map(|number| worker(number, Some(("False", -86_400)))).collect();
    let mut cluster = cluster(&nodes, &[]);
    let pods: Vec<Value> = (0..count)
        .map(|number| {
            let bad = broken.contains(&number);
            pod("calico-node", "kube-system", number, &name(number), !bad, if bad { since } else { -86_400 }, 0)
        })
        .collect();
    list(&mut cluster, What::CalicoPods, &pods, -86_400);
    list(&mut cluster, What::DaemonSets, &[set("kube-system", count, count)], -86_400);
    cluster
}

fn findings(cluster: &Cluster, now: Timestamp) -> Vec<Draft> {
    super::findings(cluster, &cluster.duplicates(), &BTreeSet::new(), now)
}

fn codes(cluster: &Cluster, now: i64) -> Vec<(&'static str, Severity, usize)> {
    findings(cluster, at(now)).iter().map(|draft| (draft.code, draft.severity, draft.on.len())).collect()
}

use Severity::{Critical, Info, Warning};

const WEEK: i64 = 7 * 24 * 3600;

#[test]
fn where_somebody_works_already_it_is_no_failure_and_counts_for_no_scope() {
    let cordon = |cluster: &mut Cluster, number: usize, since: i64| {
        let mut node = worker(number, Some(("False", -86_400)));
        node["spec"]["unschedulable"] = true.into();
        node["spec"]["taints"] =
            json!([{"key": "node.kubernetes.io/unschedulable", "effect": "NoSchedule", "timeAdded": at(since)}]);
        apply(cluster, &node);
    };
    let mut cluster = planted(30, &[0, 1, 2], -300);
    cordon(&mut cluster, 0, -400);
    assert_eq!(codes(&cluster, 0), [("CalicoNodeFailingOnNode", Critical, 2)]);
    cordon(&mut cluster, 1, -200);
    assert_eq!(codes(&cluster, 0), [("CalicoNodeFailingOnNode", Critical, 2)], "cordoned because of it");
    cordon(&mut cluster, 1, -400);
    cordon(&mut cluster, 2, -400);
    assert!(codes(&cluster, 0).is_empty());
    // Of the others none is left to be well: it is not only few.
    let mut drained = planted(30, &[0, 1, 2], -300);
    (3..30).for_each(|number| cordon(&mut drained, number, -400));
    assert_eq!(codes(&drained, 0), [("CalicoNodeFailingWidespread", Critical, 3)]);
    assert!(findings(&drained, at(0))[0].detail.contains("on 3 of 3 workers"));
}

#[test]
fn few_many_and_all_have_opposite_remedies() {
    assert!(codes(&planted(30, &[], 0), 0).is_empty());
    let all = |count| (0..count).collect::<Vec<_>>();
    for (broken, code, word, not) in [
        (2, "CalicoNodeFailingOnNode", "kubectl cordon", "suspect"),
        (10, "CalicoNodeFailingSubset", "suspect zone a", "cordon"),
        (24, "CalicoNodeFailingWidespread", "do not cordon", "kubectl cordon"),
        (30, "CalicoNodeFailingWidespread", "do not cordon", "kubectl cordon"),
    ] {
        let cluster = planted(30, &all(broken), -300);
        assert_eq!(codes(&cluster, 0), [(code, Critical, broken)]);
        let draft = findings(&cluster, at(0)).remove(0);
        assert!(draft.next.contains(word) && !draft.next.contains(not), "{}", draft.next);
        assert_eq!(draft.since, Some(at(-300)));
    }
    let draft = findings(&planted(30, &all(10), -300), at(0)).remove(0);
    assert!(draft.detail.ends_with("; 10 of 10 in zone a fail, 0 of 20 elsewhere"), "{}", draft.detail);
}

#[test]
fn where_it_fails_nearly_everywhere_it_is_said_whether_the_datastore_is_locked() {
    let mut cluster = planted(30, &(0..28).collect::<Vec<_>>(), -300);
    let told = |cluster: &Cluster, now| {
        let draft = findings(cluster, at(now)).remove(0);
        assert_eq!(draft.code, "CalicoNodeFailingWidespread");
        (draft.detail, draft.next)
    };
    let information = |ready: bool| {
        json!({"metadata": {"name": "default", "managedFields": [{"manager": "calicoctl", "time": at(-400)}]},
            "spec": {"datastoreReady": ready}})
    };
    let (detail, next) = told(&cluster, 0);
    assert!(!detail.contains("datastore") && next.starts_with("do not cordon"), "not looked at: {detail}: {next}");
    list(&mut cluster, What::ClusterInformation, &[information(true)], -900);
    let (detail, next) = told(&cluster, 0);
    assert!(detail.ends_with("; its datastore is not locked") && next.starts_with("do not cordon"), "{detail}: {next}");
    list(&mut cluster, What::ClusterInformation, &[information(false)], -400);
    let (detail, next) = told(&cluster, 0);
    let locked =
        "; its datastore is locked (ClusterInformation default, datastoreReady false) since 2026-11-21T09:53:20Z";
    assert!(detail.ends_with(locked), "{detail}");
    assert!(next.starts_with("if nobody migrates the datastore") && next.contains("; else do not cordon"), "{next}");
    cluster.surroundings.take(What::ClusterInformation, Change::Lost("refused".to_owned()), at(-60));
    assert!(!told(&cluster, 0).0.contains("datastore"), "it is not seen");
}

#[test]
fn what_runs_where_calico_node_fails_is_suspected_though_agents_say_nothing() {
    let mut cluster = planted(30, &[1, 5, 9, 12, 16, 20, 24, 28], -300);
    let told = |cluster: &Cluster| findings(cluster, at(0)).remove(0);
    assert!(told(&cluster).next.contains("find out what these workers share"), "{}", told(&cluster).next);
    let on = |number: usize| {
        let failing = number % 4 == 1 && number < 10 || number.is_multiple_of(4) && number > 10;
        (name(number).into(), if failing { vec![(0, None), (1, None)] } else { vec![(1, None)] })
    };
    let owners = vec!["DaemonSet guard/scanner".into(), "DaemonSet kube-system/kube-proxy".into()];
    cluster.hosted = Some(Hosted { owners, on: (0..30).map(on).collect() });
    let draft = told(&cluster);
    assert_eq!(draft.code, "CalicoNodeFailingSubset");
    assert!(draft.next.contains("suspect Pods of DaemonSet guard/scanner"), "{}", draft.next);
    assert!(
        draft.detail.contains("8 of 8 with Pods of DaemonSet guard/scanner fail, 0 of 22 elsewhere"),
        "{}",
        draft.detail
    );
}

#[test]
fn two_minutes_are_waited_unless_it_restarts_again_and_again() {
    assert!(codes(&planted(5, &[1], 0), 119).is_empty());
    assert_eq!(codes(&planted(5, &[1], 0), 120), [("CalicoNodeFailingOnNode", Critical, 1)]);
    let mut cluster = planted(5, &[1], 0);
    for (restarts, when) in [(1, 5), (2, 20)] {
        let pod = pod("calico-node", "kube-system", 1, &name(1), false, 0, restarts);
        let pod = serde_json::from_value(pod).expect("a pod");
        cluster.surroundings.take(What::CalicoPods, Change::Here(pod), at(when));
        assert_eq!(codes(&cluster, when).len(), usize::from(restarts == 2), "restarts: {restarts}");
    }
    let back = serde_json::from_value(pod("calico-node", "kube-system", 1, &name(1), true, 30, 2)).expect("a pod");
    cluster.surroundings.take(What::CalicoPods, Change::Here(back), at(30));
    assert!(codes(&cluster, 31).is_empty(), "it clears");
}

#[test]
fn many_restarts_of_long_ago_are_none_of_now() {
    let mut cluster = cluster(&[worker(1, None)], &[]);
    list(&mut cluster, What::CalicoPods, &[pod("calico-node", "kube-system", 1, &name(1), false, 0, 1851)], 0);
    list(&mut cluster, What::DaemonSets, &[set("kube-system", 1, 1)], 0);
    assert!(codes(&cluster, 10).is_empty(), "the first that is seen of it says nothing about when");
    let looping = looping(pod("calico-node", "kube-system", 1, &name(1), false, 0, 1852));
    cluster.surroundings.take(What::CalicoPods, Change::Here(serde_json::from_value(looping).expect("a pod")), at(11));
    assert_eq!(codes(&cluster, 11).len(), 1);
}

#[test]
fn workers_with_another_cause_are_left_to_it() {
    let mut cluster = planted(6, &[0, 1], -300);
    let mut silent = worker(0, Some(("False", -86_400)));
    silent["status"]["conditions"][0]["status"] = "Unknown".into();
    apply(&mut cluster, &silent);
    let full = ("DiskFull", "critical", "capacity", "/var is full");
    apply(&mut cluster, &node(&name(1), "a", "p", "Critical", &[full]));
    assert!(codes(&cluster, 0).is_empty());
    // One whose kubelet is started again and again, too, until it is not.
    let restarts = ("KubeletRestarting", "warning", "controlPlanePath", "it was restarted 3 times");
    apply(&mut cluster, &node(&name(1), "a", "p", "Warning", &[restarts]));
    assert!(codes(&cluster, 0).is_empty());
    let slow = ("ContainerdSlow", "warning", "runtime", "it takes long");
    apply(&mut cluster, &node(&name(1), "a", "p", "Warning", &[slow]));
    assert_eq!(codes(&cluster, 0), [("CalicoNodeFailingOnNode", Critical, 1)], "that explains nothing");
}

#[test]
fn a_pod_that_is_missing_on_a_node_is_told() {
    let mut cluster = planted(12, &[], 0);
    let gone = pod("calico-node", "kube-system", 3, &name(3), true, -86_400, 0);
    cluster.surroundings.take(What::CalicoPods, Change::Gone(serde_json::from_value(gone).expect("a pod")), at(0));
    assert!(codes(&cluster, 119).is_empty());
    assert_eq!(codes(&cluster, 120), [("CalicoNodeFailingOnNode", Critical, 1)]);
    // A DaemonSet that is for the others only misses none.
    list(&mut cluster, What::DaemonSets, &[set("kube-system", 11, 11)], 0);
    assert!(codes(&cluster, 120).is_empty());
}

#[test]
fn a_rolling_update_is_told_and_is_no_problem() {
    let mut cluster = planted(10, &[4], 0);
    list(&mut cluster, What::DaemonSets, &[set("kube-system", 10, 4)], 0);
    apply(&mut cluster, &worker(4, Some(("True", 0))));
    assert_eq!(codes(&cluster, 8), [("CalicoRollingUpdate", Info, 0), ("NetworkUnavailableBrief", Info, 1)]);
    let draft = findings(&cluster, at(8)).remove(0);
    assert!(draft.detail.contains("4 of 10 nodes are done, 0 are not Ready"), "{}", draft.detail);
    // It has got stuck.
    let after = codes(&cluster, 200);
    assert_eq!(
        after,
        [
            ("CalicoRollingUpdate", Info, 0),
            ("CalicoNodeFailingOnNode", Critical, 1),
            ("NetworkUnavailableProlonged", Warning, 1)
        ]
    );
}

#[test]
fn network_unavailable_is_judged_by_time_and_by_restarts() {
    for (age, severity) in [(119, Info), (120, Warning), (599, Warning), (600, Critical)] {
        let mut cluster = planted(10, &[4], 0);
        apply(&mut cluster, &worker(4, Some(("True", 0))));
        let all = codes(&cluster, age);
        assert!(
            all.iter().any(|(code, have, on)| code.starts_with("NetworkUnavailable") && (*have, *on) == (severity, 1)),
            "{age}: {all:?}"
        );
    }
    let mut cluster = planted(10, &[], 0);
    let failing = looping(pod("calico-node", "kube-system", 4, &name(4), false, 0, 3));
    cluster.surroundings.take(What::CalicoPods, Change::Here(serde_json::from_value(failing).expect("a pod")), at(0));
    apply(&mut cluster, &worker(4, Some(("True", 0))));
    assert!(codes(&cluster, 5).contains(&("NetworkUnavailableProlonged", Critical, 1)), "restarts beat time");
}

#[test]
fn network_unavailable_of_many_workers_never_has_the_remedy_of_a_few() {
    for (size, down, few) in [(40, 2, true), (40, 20, false), (40, 40, false)] {
        let mut cluster = planted(size, &[], 0);
        for number in 0..down {
            apply(&mut cluster, &worker(number, Some(("True", 0))));
            let failing = looping(pod("calico-node", "kube-system", number, &name(number), false, 0, 3));
            let failing = serde_json::from_value(failing).expect("a pod");
            cluster.surroundings.take(What::CalicoPods, Change::Here(failing), at(0));
        }
        let all = findings(&cluster, at(700));
        let prolonged = all.iter().find(|draft| draft.code == "NetworkUnavailableProlonged").expect("told");
        assert_eq!(prolonged.on.len(), down);
        assert_eq!(prolonged.next.contains("CalicoNodeFailingOnNode"), few, "{down} of {size}: {}", prolonged.next);
        assert_eq!(prolonged.next.starts_with("change nothing on single workers"), !few, "{down} of {size}");
    }
}

#[test]
fn the_only_worker_is_not_taken_away() {
    let next = |cluster: &Cluster| {
        let all = findings(cluster, at(120));
        all.into_iter().find(|draft| draft.code == "CalicoNodeFailingOnNode").expect("told").next
    };
    let mut cluster = planted(1, &[0], 0);
    assert!(next(&cluster).starts_with("it is the only worker, so do not cordon, drain, reload or replace it"));
    // A node of the control plane takes none of its Pods.
    let mut control = worker(1, None);
    control["metadata"]["labels"]["node-role.kubernetes.io/control-plane"] = "".into();
    control["spec"]["taints"] =
        serde_json::json!([{"key": "node-role.kubernetes.io/control-plane", "effect": "NoSchedule"}]);
    apply(&mut cluster, &control);
    assert!(next(&cluster).starts_with("it is the only worker"));
    apply(&mut cluster, &worker(2, None));
    assert!(next(&cluster).starts_with("one worker at a time"));
}

#[test]
fn calicos_time_is_not_that_of_the_change() {
    let mut cluster = planted(10, &[4], 0);
    apply(&mut cluster, &worker(4, Some(("True", 0))));
    // It writes the same again.
    apply(&mut cluster, &worker(4, Some(("True", 550))));
    assert!(codes(&cluster, 600).contains(&("NetworkUnavailableProlonged", Critical, 1)));
}

#[test]
fn a_condition_that_contradicts_what_is_there_is_stale() {
    let mut cluster = planted(10, &[], 0);
    apply(&mut cluster, &worker(4, Some(("True", -900))));
    assert_eq!(codes(&cluster, 0), [("NetworkConditionStale", Warning, 1)], "Ready, and still said to be down");
    let mut dead = node(&name(5), "a", "p", "Critical", &[("BgpDaemonDown", "critical", "podRouting", "BIRD is dead")]);
    let conditions = worker(5, Some(("False", -86_400)))["status"]["conditions"].clone();
    dead["status"]["conditions"]
        .as_array_mut()
        .expect("conditions")
        .push(conditions[conditions.as_array().expect("some").len() - 1].clone());
    apply(&mut cluster, &dead);
    assert_eq!(codes(&cluster, 0), [("NetworkConditionStale", Warning, 2)]);
    apply(&mut cluster, &worker(4, Some(("False", 0))));
    apply(&mut cluster, &worker(5, Some(("False", -86_400))));
    assert!(codes(&cluster, 1).is_empty(), "it clears");
}

#[test]
fn a_taint_without_its_condition_is_told_after_five_minutes() {
    let mut cluster = planted(10, &[], 0);
    let mut stuck = worker(4, Some(("False", 0)));
    stuck["spec"]["taints"] = json!([{"key": "node.kubernetes.io/network-unavailable", "effect": "NoSchedule"}]);
    apply(&mut cluster, &stuck);
    assert!(codes(&cluster, 299).is_empty());
    assert_eq!(codes(&cluster, 300), [("NetworkTaintStuck", Warning, 1)]);
    apply(&mut cluster, &worker(4, Some(("False", 0))));
    assert!(codes(&cluster, 300).is_empty());
}

#[test]
fn when_it_is_nowhere_the_reason_chooses_what_to_do() {
    let nodes: Vec<Value> = (0..4).map(|number| worker(number, Some(("False", -86_400)))).collect();
    let bare = || {
        let mut cluster = cluster(&nodes, &[]);
        list(&mut cluster, What::CalicoPods, &[], 0);
        cluster
    };
    let reason = |cluster: &Cluster, now| {
        findings(cluster, at(now))
            .into_iter()
            .map(|draft| (draft.code, draft.subject, draft.on.len()))
            .collect::<Vec<_>>()
    };
    let mut missing = bare();
    assert!(reason(&missing, 600).is_empty(), "whether there is a DaemonSet is not known");
    list(&mut missing, What::DaemonSets, &[], 0);
    assert!(reason(&missing, 59).is_empty());
    assert_eq!(reason(&missing, 60), [("CalicoNodeAbsent", "DaemonSetMissing".to_owned(), 4)]);
    let mut none = bare();
    list(&mut none, What::DaemonSets, &[set("calico-system", 0, 0)], 0);
    assert_eq!(reason(&none, 60)[0].1, "NoNodesSelected");
    let mut blocked = bare();
    list(&mut blocked, What::DaemonSets, &[set("calico-system", 4, 4)], 0);
    assert_eq!(reason(&blocked, 60)[0].1, "NoPods");
    let message =
        "Error creating: Internal error occurred: failed calling webhook \"guard.example\": context deadline exceeded";
    let event = json!({"metadata": {"name": "e", "namespace": "calico-system"}, "message": message, "lastTimestamp": at(50),
        "involvedObject": {"kind": "DaemonSet", "namespace": "calico-system", "name": "calico-node"}});
    list(&mut blocked, What::FailedCreates, &[event], 0);
    assert_eq!(reason(&blocked, 60)[0].1, "PodCreationBlocked");
    let draft = findings(&blocked, at(60)).remove(0);
    assert!(
        draft.next.contains("fix that webhook first") && draft.detail.contains("guard.example"),
        "{}",
        draft.detail
    );
}

#[test]
fn without_calico_or_without_sight_of_its_pods_nothing_is_said() {
    let mut other = cluster(&[bare_network("CiliumIsUp"), node("m", "a", "p", "Normal", &[])], &[]);
    list(&mut other, What::CalicoPods, &[], -600);
    list(&mut other, What::DaemonSets, &[], -600);
    assert!(codes(&other, 0).is_empty());
    let mut down = cluster(&[bare_network("NoRouteCreated")], &[]);
    list(&mut down, What::CalicoPods, &[], -600);
    assert!(codes(&down, 0).is_empty(), "not Calico's word");
    let blind = cluster(&[worker(0, Some(("True", -900)))], &[]);
    assert!(codes(&blind, 0).is_empty());
}

fn bare_network(reason: &str) -> Value {
    let mut node = node("n", "a", "p", "Normal", &[]);
    let condition =
        json!({"type": "NetworkUnavailable", "status": "True", "reason": reason, "lastTransitionTime": at(-900)});
    node["status"]["conditions"].as_array_mut().expect("conditions").push(condition);
    node
}

/// While Calico moves, the old Pod of a node may be gone before the new one is Ready.
#[test]
fn two_pods_on_a_node_count_once() {
    let mut cluster = planted(10, &[4], -300);
    let new = pod("calico-node", "calico-system", 4, &name(4), true, -10, 0);
    cluster.surroundings.take(What::CalicoPods, Change::Here(serde_json::from_value(new).expect("a pod")), at(0));
    assert!(codes(&cluster, 0).is_empty());
}

#[test]
fn what_was_cured_and_fails_again_is_told_for_a_week() {
    let cluster = |times: &[i64]| {
        let mut cluster = planted(20, &[3], 0);
        for begun in times {
            cluster.memory.note(&["n03"], at(*begun));
            cluster.memory.note(&[], at(begun + 300));
        }
        cluster
    };
    let told = |cluster: &Cluster, now| {
        let all = findings(cluster, at(now)).into_iter();
        all.filter(|draft| draft.code == "CalicoFailureRecurring").collect::<Vec<_>>()
    };
    assert!(told(&cluster(&[0]), 400).is_empty(), "once");
    let twice = cluster(&[0, 3 * 86_400]);
    let all = told(&twice, 3 * 86_400 + 400);
    assert_eq!((all.len(), all[0].severity, all[0].on.clone()), (1, Warning, vec!["n03".to_owned()]));
    assert!(all[0].detail.ends_with("on n03 from 2026-11-21T10:00:00Z, 2026-11-24T10:00:00Z"), "{}", all[0].detail);
    for (cure, speaks_for) in [
        (Cure::ProcessRestart, "after its Pod was made anew, which speaks for a process that went wrong"),
        (Cure::Reboot, "after the worker was booted, which speaks for the state of its kernel or runtime"),
        (Cure::Reload, "after the worker was installed anew or replaced, which speaks for its image or data"),
        (Cure::Nothing, "without a new Pod, a boot or a new installation, which speaks for configuration"),
    ] {
        let mut cured = cluster(&[0, 3 * 86_400]);
        cured.memory.cured("n03", cure);
        let detail = told(&cured, 3 * 86_400 + 400).remove(0).detail;
        assert!(detail.contains(&format!("T10:00:00Z; the last time it was over {speaks_for}")), "{detail}");
    }
    assert_eq!(told(&twice, WEEK).len(), 1);
    assert!(told(&twice, WEEK + 1).is_empty(), "it clears");
    let mut gone = cluster(&[0, 3 * 86_400]);
    gone.remove_node("n03", at(3 * 86_400 + 1));
    assert!(told(&gone, 3 * 86_400 + 400).is_empty(), "the worker is gone");
}

#[test]
fn an_update_that_takes_more_nodes_than_it_may_is_no_routine() {
    let mut cluster = planted(20, &[3, 4, 5], -60);
    let mut rolling = set("kube-system", 20, 8);
    let told = |cluster: &Cluster, now| {
        let all = findings(cluster, at(now)).into_iter();
        let of_it = all.filter(|draft| draft.code == "CalicoRollingUpdate");
        of_it.map(|draft| (draft.severity, draft.on.len(), draft.since)).collect::<Vec<_>>()
    };
    list(&mut cluster, What::DaemonSets, &[rolling.clone()], 0);
    assert_eq!(told(&cluster, -1), [(Info, 0, None)], "a new Pod takes its time");
    assert_eq!(told(&cluster, 0), [(Warning, 3, Some(at(-60)))]);
    assert!(findings(&cluster, at(0))[0].detail.contains("away on 3 nodes at once, and its DaemonSet allows 1"));
    for (most, severity) in [(json!(3), Info), (json!(2), Warning), (json!("15%"), Info), (json!("10%"), Warning)] {
        rolling["spec"]["updateStrategy"]["rollingUpdate"]["maxUnavailable"] = most.clone();
        list(&mut cluster, What::DaemonSets, &[rolling.clone()], 0);
        assert_eq!(told(&cluster, 0)[0].0, severity, "{most}");
    }
    list(&mut cluster, What::DaemonSets, &[set("kube-system", 20, 20)], 0);
    assert!(told(&cluster, 0).is_empty(), "it is over");
}

#[test]
fn episodes_go_by_the_place_of_a_worker_and_not_by_its_name() {
    let at_address = |name: &str, pool: &str, address: &str| {
        let mut node = node(name, "a", pool, "Normal", &[]);
        node["status"]["addresses"] = json!([{"type": "InternalIP", "address": address}]);
        node
    };
    let told = |cluster: &Cluster| {
        let all = findings(cluster, at(86_500)).into_iter();
        all.filter(|draft| draft.code == "CalicoFailureRecurring").flat_map(|draft| draft.on).collect::<Vec<_>>()
    };
    let mut cluster = planted(20, &[], 0);
    apply(&mut cluster, &at_address("n03", "p", "10.0.0.3"));
    let before = place("n03", cluster.node("n03").expect("it is there"));
    for begun in [0, 86_400] {
        cluster.memory.note(&[&before], at(begun));
        cluster.memory.note(&[], at(begun + 50));
    }
    assert_eq!(told(&cluster), ["n03"]);
    // Reloaded under another name, it keeps its address and its history.
    cluster.remove_node("n03", at(86_460));
    apply(&mut cluster, &at_address("n99", "p", "10.0.0.3"));
    assert_eq!(told(&cluster), ["n99"]);
    // Another worker that was given the name elsewhere has none of it.
    cluster.remove_node("n99", at(86_470));
    for (pool, address) in [("p", "10.0.0.77"), ("q", "10.0.0.3")] {
        apply(&mut cluster, &at_address("n03", pool, address));
        assert!(told(&cluster).is_empty(), "{pool} {address}");
    }
}

#[test]
fn another_node_of_the_same_name_is_not_the_one_before() {
    let mut cluster = planted(3, &[], 0);
    for second in 0..3 {
        cluster.memory.turned("n01", true, at(second));
    }
    let mut new = worker(1, None);
    new["metadata"]["creationTimestamp"] = at(100).to_string().into();
    new["status"]["nodeInfo"] = json!({"bootID": "b"});
    apply(&mut cluster, &new);
    assert_eq!(cluster.memory.turns("n01", 0..=i64::MAX), 0);
    let row = cluster.node("n01").expect("it is there");
    assert_eq!((row.created.get(), row.rebooted.get(), row.network.is_none()), (Some(at(100)), None, true));
    assert!(cluster.memory.gone("n01").is_none(), "it is there again");
}

#[test]
fn an_episode_is_of_a_few_workers_that_nobody_works_on() {
    let noted = |cluster: &Cluster| failing(cluster, at(120));
    assert_eq!(noted(&planted(20, &[3, 4], 0)), Some(vec![name(3), name(4)]));
    assert_eq!(noted(&planted(20, &[3], 1)), Some(vec![]), "not for long enough");
    assert_eq!(noted(&planted(20, &(0..20).collect::<Vec<_>>(), 0)), Some(vec![]), "no worker's own");
    let mut cordoned = planted(20, &[3], 0);
    let mut node = worker(3, Some(("False", -86_400)));
    node["spec"] = json!({"unschedulable": true});
    apply(&mut cordoned, &node);
    assert_eq!(noted(&cordoned), Some(vec![]));
    // One that was cordoned because of it has failed, and counts as in the report.
    let taint = json!({"key": "node.kubernetes.io/unschedulable", "effect": "NoSchedule", "timeAdded": at(60)});
    node["spec"]["taints"] = json!([taint]);
    apply(&mut cordoned, &node);
    assert_eq!(noted(&cordoned), Some(vec![name(3)]));
    assert_eq!(codes(&cordoned, 120), [("CalicoNodeFailingOnNode", Critical, 1)]);
    assert_eq!(noted(&Cluster::watched()), None, "not seen");
    // A kubelet that comes and goes is none of Calico's.
    let mut flapping = planted(20, &[3], 0);
    for second in 0..3 {
        flapping.memory.turned("n03", true, at(second));
    }
    assert!(codes(&flapping, 120).is_empty());
}
