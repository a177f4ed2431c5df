//! Findings about the cluster: they fire, they group, they wait, and they clear.

use serde_json::{Value, json};

use super::*;
use crate::aggregator::password::Way;
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
    super::findings(cluster, &cluster.duplicates(), only, now)
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
