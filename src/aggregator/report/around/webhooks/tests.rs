//! The deadlock of a webhook, its tunnel and calico-node; webhooks that could stop the system; and those that cannot.

use serde_json::{Value, json};

use super::super::calico::tests::{list, pod};
use super::*;
use crate::aggregator::backends::Endpoint;
use crate::aggregator::testing::{at, cluster, node};
use crate::checks::Severity;

const CONFIGURATION: &str = "ValidatingWebhookConfiguration sysdig-admission-controller-webhook";

/// Three workers; on the last of them calico-node has not been Ready for so long.
fn planted(resource: &str, more: &Value, stuck: bool) -> Cluster {
    let nodes: Vec<Value> = (0..3).map(|number| node(&format!("n{number}"), "a", "p", "Normal", &[])).collect();
    let mut cluster = cluster(&nodes, &[]);
    let pods: Vec<Value> = (0..3)
        .map(|number| {
            let bad = stuck && number == 2;
            pod("calico-node", "calico-system", number, &format!("n{number}"), !bad, if bad { 0 } else { -86_400 }, 0)
        })
        .collect();
    list(&mut cluster, What::CalicoPods, &pods, -86_400);
    let rule = json!({"apiGroups": ["*"], "apiVersions": ["*"], "operations": ["*"], "resources": [resource]});
    let mut webhook = json!({"name": "audit.sysdig.example", "rules": [rule], "failurePolicy": "Ignore", "timeoutSeconds": 10,
        "clientConfig": {"service": {"namespace": "sysdig", "name": "admission"}}});
    webhook.as_object_mut().expect("an object").extend(more.as_object().cloned().unwrap_or_default());
    let configuration = json!({"metadata": {"name": "sysdig-admission-controller-webhook"}, "webhooks": [webhook]});
    list(&mut cluster, What::Validating, &[configuration], -86_400);
    let namespaces = ["kube-system", "calico-system", LEASES, "shop"]
        .map(|name| json!({"metadata": {"name": name, "labels": {"kubernetes.io/metadata.name": name}}}));
    list(&mut cluster, What::Namespaces, &namespaces, -86_400);
    answered(&mut cluster, &[("n0", true), ("n1", true)]);
    cluster
}

fn answered(cluster: &mut Cluster, by: &[(&str, bool)]) {
    let endpoints: Vec<Endpoint> = by
        .iter()
        .map(|(node, ready)| Endpoint { node: (*node).into(), pod: format!("admission-{node}").into(), ready: *ready })
        .collect();
    let nobody_since = (!by.iter().any(|(_, ready)| *ready)).then(|| at(0));
    let backend = Backend { missing: false, endpoints, nobody_since };
    cluster.backends.insert(("sysdig".into(), "admission".into()), backend);
}

fn vpn(cluster: &mut Cluster, node: &str, ready: bool) {
    list(cluster, What::VpnPods, &[pod("vpn", "kube-system", 1, node, ready, 0, 0)], 0);
}

fn codes(cluster: &Cluster, now: i64) -> Vec<(&'static str, Severity, Vec<String>)> {
    findings(cluster, at(now)).0.into_iter().map(|draft| (draft.code, draft.severity, draft.on)).collect()
}

#[test]
fn the_deadlock_through_the_tunnel_is_told_in_one_sentence_and_opens_again() {
    let mut cluster = planted("nodes/*", &json!({}), true);
    vpn(&mut cluster, "n2", false);
    assert_eq!(codes(&cluster, 119), [], "calico-node may still come");
    let (drafts, locked) = findings(&cluster, at(120));
    let [draft] = &drafts[..] else { panic!("{drafts:?}") };
    assert_eq!((draft.code, draft.severity, &*draft.subject), ("WebhookDeadlock", Critical, CONFIGURATION));
    assert!(locked.contains("n2") && draft.on == ["n2"]);
    assert_eq!(
        draft.detail,
        format!(
            "calico-node on n2 waits for its write of the node's status, that for webhook audit.sysdig.example of {CONFIGURATION} (10 s, while calico-node gives up after 2 s), which reaches Service sysdig/admission only through the tunnel from the control plane, and its Pods kube-system/vpn-1 on n2 wait for calico-node: a circle that does not open by itself"
        )
    );
    let ways = [
        "cordon n2 (no drain), `kubectl -n kube-system delete pod vpn-1`",
        "timeoutSeconds to 1",
        "nodes/status out of its rules",
        "delete ValidatingWebhookConfiguration",
    ];
    let places: Vec<Option<usize>> = ways.iter().map(|way| draft.next.find(way)).collect();
    assert!(places.iter().all(Option::is_some) && places.is_sorted(), "the least invasive first: {}", draft.next);
    // calico-node there is a consequence, and no worker's own fault.
    let told = |locked: &BTreeSet<String>| {
        super::super::calico::findings(&cluster, &cluster.duplicates(), locked, at(200)).len()
    };
    assert_eq!((told(&locked), told(&BTreeSet::new())), (0, 1));
    vpn(&mut cluster, "n1", true);
    assert_eq!(codes(&cluster, 200), [], "the tunnel was moved");
}

#[test]
fn a_backend_on_the_node_that_waits_for_it_is_a_deadlock_too() {
    let mut cluster = planted("*/*", &json!({"failurePolicy": "Fail", "timeoutSeconds": 1}), true);
    answered(&mut cluster, &[("n2", false)]);
    assert_eq!(codes(&cluster, 120), [("WebhookDeadlock", Critical, vec!["n2".to_owned()])]);
    assert!(
        findings(&cluster, at(120)).0[0]
            .detail
            .contains("is answered by Service sysdig/admission alone, and its Pods sysdig/admission-n2")
    );
    // One on another node is no part of the circle, whatever it suffers from.
    answered(&mut cluster, &[("n1", false), ("n2", false)]);
    assert_eq!(codes(&cluster, 120), [("WebhookRisk", Warning, vec![])]);
}

#[test]
fn without_another_worker_nothing_can_be_moved() {
    let mut cluster = cluster(&[node("n2", "a", "p", "Normal", &[])], &[]);
    cluster.surroundings = planted("nodes/*", &json!({}), true).surroundings;
    answered(&mut cluster, &[]);
    vpn(&mut cluster, "n2", false);
    let draft = findings(&cluster, at(120)).0.remove(0);
    assert!(draft.next.starts_with("set the webhook's timeoutSeconds to 1"), "{}", draft.next);
}

#[test]
fn a_webhook_without_anybody_is_a_warning_and_with_one_a_word() {
    let mut cluster = planted("*/*", &json!({"failurePolicy": "Fail"}), false);
    assert_eq!(codes(&cluster, 0), [], "two, on two nodes");
    answered(&mut cluster, &[("n1", true), ("n1", true)]);
    assert_eq!(codes(&cluster, 0), [("WebhookRisk", Info, vec![])]);
    let draft = findings(&cluster, at(0)).0.remove(0);
    assert_eq!(
        draft.detail,
        format!(
            "webhook audit.sysdig.example of {CONFIGURATION} could stop writes of Node status and the kubelets' Leases and new Pods in calico-system, kube-system, since its Service sysdig/admission has 2 ready of 2 endpoints, on n1"
        )
    );
    answered(&mut cluster, &[]);
    assert_eq!(codes(&cluster, 119), [], "it may be rolled out anew");
    assert_eq!(codes(&cluster, 120), [("WebhookRisk", Warning, vec![])]);
    let key = ("sysdig".into(), "admission".into());
    cluster.backends.insert(key, Backend { missing: true, endpoints: Vec::new(), nobody_since: Some(at(0)) });
    assert!(findings(&cluster, at(120)).0[0].detail.contains("its Service sysdig/admission does not exist"));
    answered(&mut cluster, &[("n0", true), ("n2", true)]);
    assert_eq!(codes(&cluster, 200), [], "it clears");
    cluster.backends.clear();
    assert_eq!(codes(&cluster, 200), [], "who answers could not be seen");
}

#[test]
fn webhooks_that_stop_nothing_are_left_alone() {
    let quiet = |resource: &str, more: Value| {
        let mut cluster = planted(resource, &more, true);
        answered(&mut cluster, &[]);
        vpn(&mut cluster, "n2", false);
        let codes = codes(&cluster, 300);
        assert!(codes.is_empty(), "{resource} {more}: {codes:?}");
    };
    quiet("nodes/status", json!({"timeoutSeconds": 1}));
    quiet("nodes", json!({}));
    quiet("pods", json!({}));
    quiet(
        "pods",
        json!({"failurePolicy": "Fail", "namespaceSelector": {"matchLabels": {"istio-injection": "enabled"}}}),
    );
    quiet("nodes/status", json!({"clientConfig": {"url": "https://elsewhere.example/"}}));
    assert!(codes(&Cluster::watched(), 300).is_empty());
}

#[test]
fn an_error_of_the_api_server_leads_to_who_should_have_answered() {
    let mut cluster = planted("pods", &json!({"failurePolicy": "Fail"}), false);
    answered(&mut cluster, &[("n1", false)]);
    let message = "Internal error occurred: failed calling webhook \"audit.sysdig.example\": failed to call webhook";
    let told = behind(&cluster, message).expect("it is known");
    assert_eq!(
        told,
        format!("; it is in {CONFIGURATION}, and its Service sysdig/admission has 0 ready of 1 endpoints, on n1")
    );
    assert_eq!(behind(&cluster, "failed calling webhook \"other\": x"), None);
    assert_eq!(behind(&cluster, "context deadline exceeded"), None);
}
