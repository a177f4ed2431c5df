//! Findings about the cluster: they fire, they group, they wait, and they clear.

use serde_json::{Value, json};

use super::super::LastJudgement;
use super::*;
use crate::aggregator::password::Way;
use crate::aggregator::sight::Sight;
use crate::aggregator::surroundings::What;
use crate::aggregator::testing::at;
use crate::aggregator::watch::Change;

fn pod(number: usize, created: i64, container: &str, message: &str) -> Value {
    let state = match message {
        "" => json!({"terminated": {"exitCode": 0}}),
        message => json!({"terminated": {"exitCode": 1, "reason": "Error", "message": message}}),
    };
    json!({"metadata": {"name": format!("calico-node-{number}"), "namespace": "calico-system", "creationTimestamp": at(created)},
        "spec": {"nodeName": format!("n{number:03}"), "serviceAccountName": "calico-node"},
        "status": {"initContainerStatuses": [{"name": container, "state": state}]}})
}

fn with(pods: &[Value]) -> Cluster {
    let mut cluster = Cluster::watched();
    cluster.surroundings.take(What::CalicoPods, Change::ListBegins, at(0));
    for pod in pods {
        let pod = serde_json::from_value(pod.clone()).expect("a pod");
        cluster.surroundings.take(What::CalicoPods, Change::Here(pod), at(0));
    }
    cluster.surroundings.take(What::CalicoPods, Change::ListEnds, at(0));
    cluster
}

fn findings(cluster: &Cluster, only: Option<&str>, now: Timestamp) -> Vec<ClusterFinding> {
    super::findings(cluster, &cluster.duplicates(), only, now).0
}

#[test]
fn all_pods_are_looked_at_and_told_by_what_they_say() {
    // The first is fine: sampling one would say that all are.
    let mut pods = vec![pod(0, 0, "install-cni", "")];
    pods.extend(
        (1..31).map(|number| pod(number, 0, "install-cni", &format!("write /host/opt/cni/bin: no space ({number})"))),
    );
    pods.push(pod(31, 0, "calico-extension", "dial tcp 10.9.8.7:2040: i/o timeout"));
    pods.push(pod(32, 0, "install-cni", "dial tcp 10.96.0.1:443: i/o timeout"));
    let cluster = with(&pods);
    let all = findings(&cluster, None, at(600));
    let told: Vec<_> =
        all.iter().map(|finding| (finding.nodes, finding.workers.len(), finding.subject.as_str())).collect();
    assert_eq!(
        told,
        [
            (30, NAMED, "install-cni: Error, exit status #: write /host/opt/cni/bin: no space (#)"),
            (1, 1, "calico-extension: Error, exit status #: dial tcp #.#.#.#:#: i/o timeout"),
            (1, 1, "install-cni: Error, exit status #: dial tcp #.#.#.#:#: i/o timeout"),
        ]
    );
    assert!(all.iter().all(|finding| finding.code == "CalicoInitFailed" && finding.severity == Severity::Critical));
    assert!(all[0].next.contains("kubectl -n calico-system logs calico-node-1 -c install-cni"), "{}", all[0].next);
    assert!(all[1].next.contains("MasterUnreachable"), "{}", all[1].next);
    assert!(all[0].detail.contains("no space (1)"), "{}", all[0].detail);
    let one = findings(&cluster, Some("n031"), at(600));
    assert_eq!((one.len(), one[0].workers.as_slice()), (1, &["n031".to_owned()][..]));
    assert!(findings(&cluster, Some("n000"), at(600)).is_empty());
}

#[test]
fn what_is_left_out_is_counted_and_is_the_least_bad() {
    let pods: Vec<_> = (0..MOST + 3).map(|number| pod(number, 0, &format!("init-{number}"), "no")).collect();
    let mut cluster = with(&pods);
    cluster.nodes_sight.list_ends();
    let (all, more, _) = super::findings(&cluster, &cluster.duplicates(), None, at(600));
    assert_eq!((all.len(), more), (MOST, 3));
    cluster.surroundings.take(What::Pools, Change::Lost("no".into()), at(0));
    let report = super::super::build(
        &cluster,
        super::super::Agents::Once,
        super::super::Source::Aggregator,
        None,
        crate::aggregator::testing::moment(600),
    );
    assert_eq!((report.cluster.len(), report.cluster_more), (MOST, 3));
    assert_eq!(report.view.cannot_look[0].what, ["ippools"]);
}

#[test]
fn what_tells_no_time_is_there_since_it_was_noticed_and_has_its_changes() {
    let mut cluster = with(&[]);
    cluster.nodes_sight.list_ends();
    let take = |cluster: &mut Cluster, what, change, second| cluster.surroundings.take(what, change, at(second));
    let object = |object: Value| serde_json::from_value(object).expect("an object");
    let scaled = |replicas: usize| json!({"metadata": {"name": "calico-kube-controllers", "namespace": "kube-system"}, "spec": {"replicas": replicas}});
    let policy = json!({"metadata": {"name": "closed", "namespace": "default", "creationTimestamp": at(50),
        "managedFields": [{"manager": "kubectl", "time": at(50)}]}});
    take(&mut cluster, What::Policies, Change::Here(object(policy)), 50);
    take(&mut cluster, What::SystemDeployments, Change::Here(object(scaled(0))), 60);
    let one = |cluster: &Cluster, second| {
        let all = findings(cluster, None, at(second));
        all.into_iter().map(|it| (it.since, it.noticed, it.before.len())).collect::<Vec<_>>()
    };
    assert_eq!(one(&cluster, 70), [(None, true, 0)]);
    let mut judged = LastJudgement::default();
    crate::aggregator::memory::notice(&mut cluster, &mut judged, at(100));
    crate::aggregator::memory::notice(&mut cluster, &mut judged, at(120));
    assert_eq!(one(&cluster, 200), [(Some(at(100)), true, 1)]);
    // While it is not seen nobody knows whether it is over.
    take(&mut cluster, What::SystemDeployments, Change::Lost("no".into()), 200);
    crate::aggregator::memory::notice(&mut cluster, &mut judged, at(300));
    assert!(one(&cluster, 300).is_empty());
    take(&mut cluster, What::SystemDeployments, Change::Found, 310);
    assert_eq!(one(&cluster, 320), [(Some(at(100)), true, 1)]);
    take(&mut cluster, What::SystemDeployments, Change::Here(object(scaled(1))), 330);
    crate::aggregator::memory::notice(&mut cluster, &mut judged, at(340));
    take(&mut cluster, What::SystemDeployments, Change::Here(object(scaled(0))), 350);
    crate::aggregator::memory::notice(&mut cluster, &mut judged, at(360));
    assert_eq!(one(&cluster, 370), [(Some(at(360)), true, 1)], "it is another one");
}

#[test]
fn a_pod_that_is_new_may_fail_once_and_one_that_has_started_is_fine() {
    assert!(findings(&with(&[pod(1, 0, "install-cni", "no")]), None, at(59)).is_empty());
    assert_eq!(findings(&with(&[pod(1, 0, "install-cni", "no")]), None, at(60)).len(), 1);
    assert!(findings(&with(&[pod(1, 0, "install-cni", "")]), None, at(600)).is_empty());
    assert!(findings(&Cluster::watched(), None, at(600)).is_empty());
}

#[test]
fn different_failures_are_many_but_not_without_end() {
    let pods: Vec<Value> = (0..99).map(|number| pod(number, 0, &format!("c{}", "x".repeat(number)), "no")).collect();
    assert_eq!(findings(&with(&pods), None, at(600)).len(), MOST);
}

fn password(exists: Option<bool>, refused: &[&'static str], since: i64) -> Cluster {
    let mut cluster = with(&[pod(1, 0, "install-cni", ""), pod(2, 0, "install-cni", "")]);
    let way =
        Way { namespace: "calico-system".into(), account: "calico-node".into(), secret: "calico-bgp-password".into() };
    cluster.password = vec![Found { way, exists, refused: refused.to_vec(), since: Some(at(since)) }];
    cluster
}

#[test]
fn a_password_that_cannot_be_had_is_told_after_a_minute() {
    assert!(findings(&password(Some(false), &[], 0), None, at(59)).is_empty());
    let all = findings(&password(Some(false), &[], 0), None, at(60));
    assert_eq!((all[0].code.as_str(), all[0].nodes), ("BgpPasswordSecretMissing", 2));
    assert!(all[0].detail.contains("does not exist there"), "{}", all[0].detail);
    let all = findings(&password(None, &["list", "watch"], 0), None, at(60));
    assert!(
        all[0].detail.contains("service account calico-system/calico-node may not list, watch it"),
        "{}",
        all[0].detail
    );
    assert!(all[0].next.contains("copy it") && all[0].next.contains("bgp-secret-access"), "{}", all[0].next);
    let all = findings(&password(Some(true), &["get"], 0), None, at(60));
    assert!(!all[0].next.contains("copy it"), "{}", all[0].next);
}

#[test]
fn a_password_that_can_be_had_or_of_which_nothing_is_known_is_no_finding() {
    for exists in [Some(true), None] {
        assert!(findings(&password(exists, &[], 0), None, at(600)).is_empty());
    }
}

#[test]
fn a_judgement_is_shared_until_something_changes_or_enough_time_has_passed() {
    let failing = |number| pod(number, 0, "install-cni", "no");
    let mut cluster = with(&[failing(1)]);
    cluster.nodes_sight.list_ends();
    let mut judged = LastJudgement::default();
    let asked = |judged: &mut LastJudgement, cluster: &Cluster, second| {
        judged.asked(cluster, &cluster.duplicates(), at(second)).0.len()
    };
    assert_eq!(asked(&mut judged, &cluster, 50), 0, "it is still young");
    assert_eq!(asked(&mut judged, &cluster, 64), 0, "as it was judged 14 s ago");
    assert_eq!(asked(&mut judged, &cluster, 65), 1);
    // What nobody waits for takes it as it was, and is the first to judge it after a minute.
    let mut later = LastJudgement::default();
    let unasked = |judged: &mut LastJudgement, cluster: &Cluster, second| {
        judged.of_cluster(cluster, at(second)).map(|(findings, _)| findings.len())
    };
    assert_eq!(unasked(&mut later, &cluster, 50), Some(0));
    assert_eq!(unasked(&mut later, &cluster, 109), Some(0));
    assert_eq!(unasked(&mut later, &cluster, 110), Some(1));
    assert_eq!(asked(&mut later, &cluster, 124), 1);
    // A change is judged at once, and so is a clock that was set back.
    let other = serde_json::from_value(pod(2, 0, "calico-extension", "no")).expect("a pod");
    cluster.surroundings.take(What::CalicoPods, Change::Here(other), at(124));
    assert_eq!(asked(&mut later, &cluster, 124), 2);
    assert_eq!(asked(&mut later, &cluster, 40), 0);
    cluster.nodes_sight = Sight::default();
    assert_eq!(unasked(&mut later, &cluster, 41), None, "what cannot be seen is not judged");
}
