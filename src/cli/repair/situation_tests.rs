use super::*;
use serde_json::json;

fn pod(labels: &Value, ready: bool) -> Pod {
    Pod { namespace: "default".into(), ready, labels: labels.clone(), ..Pod::default() }
}

#[test]
fn products_are_told_by_the_node() {
    let node = |labels: Value, id: &str, runtime: &str| {
        json!({"metadata": {"labels": labels}, "spec": {"providerID": id},
            "status": {"nodeInfo": {"containerRuntimeVersion": runtime}}})
    };
    let vpc =
        json!({"ibm-cloud.kubernetes.io/worker-id": "kube-c1-x-w1", "ibm-cloud.kubernetes.io/vpc-instance-id": "i"});
    let classic = json!({"ibm-cloud.kubernetes.io/worker-id": "kube-c1-x-w1", "privateVLAN": "2234947"});
    for (labels, id, runtime, name, has, has_not) in [
        (vpc.clone(), "ibm://a///c1/kube-c1-x-w1", "containerd://1.7", "IKS on VPC", "vpc", "classic"),
        (vpc, "ibm://a///c1/kube-c1-x-w1", "cri-o://1.28", "ROKS on VPC", "roks", "classic"),
        (classic, "ibm://a///c1/kube-c1-x-w1", "containerd://1.7", "IKS classic", "classic", "vpc"),
        (json!({}), "ibm://a///c1/kube-c1-x-w1", "containerd://1.7", "IKS", "ibm", "kubernetes"),
        (json!({}), "kind://docker/x", "containerd://2.0", "Kubernetes", "kubernetes", "ibm"),
        (json!(null), "", "", "Kubernetes", "kubernetes", "vpc"),
    ] {
        let platform = Platform::of(&node(labels, id, runtime));
        assert_eq!(platform.name, name, "{id} {runtime}");
        assert!(platform.has(has) && !platform.has(has_not) && platform.has(""), "{name}");
        let filled =
            platform.filled("ibmcloud ks worker reboot --cluster CLUSTER --worker WORKER_ID", "10.0.0.1", None);
        if id.starts_with("ibm") {
            assert_eq!(filled, "ibmcloud ks worker reboot --cluster c1 --worker kube-c1-x-w1");
        } else {
            assert!(filled.ends_with("--cluster CLUSTER --worker WORKER_ID"), "{filled}");
        }
    }
    let platform = Platform::of(&Value::Null);
    let calico = Pod { namespace: "calico-system".into(), name: "calico-node-abcde".into(), ..Pod::default() };
    assert_eq!(
        platform.filled("kubectl delete pod -n CALICO_NS calico-node-XXXXX\nkubectl cordon NODE", "n1", Some(&calico)),
        "kubectl delete pod -n calico-system calico-node-abcde\nkubectl cordon n1"
    );
}

#[test]
fn budgets_keep_what_they_select() {
    let budget = |selector: Value, allowed: i64| {
        json!({"metadata": {"namespace": "default"}, "spec": {"selector": selector},
            "status": {"disruptionsAllowed": allowed, "currentHealthy": 1, "desiredHealthy": 2}})
    };
    let labels = json!({"app": "web", "tier": "front"});
    let app = |values: Value, operator: &str| json!({"matchExpressions": [{"key": "app", "operator": operator, "values": values}]});
    for (selector, keeps_it) in [
        (json!({"matchLabels": {"app": "web"}}), true),
        (json!({"matchLabels": {"app": "web", "tier": "back"}}), false),
        (json!({}), true),
        (Value::Null, false),
        (app(json!(["web", "x"]), "In"), true),
        (app(json!(["x"]), "In"), false),
        (app(json!(["x"]), "NotIn"), true),
        (app(json!(null), "Exists"), true),
        (app(json!(null), "DoesNotExist"), false),
        (app(json!(null), "Later"), false),
    ] {
        assert_eq!(keeps(&budget(selector.clone(), 0), &pod(&labels, true)), keeps_it, "{selector}");
        assert!(!keeps(&budget(selector, 1), &pod(&labels, true)));
    }
    let all = || budget(json!({}), 0);
    let elsewhere = Pod { namespace: "other".into(), ..pod(&labels, true) };
    assert!(!keeps(&all(), &elsewhere));
    // A pod that does no work is not counted by the budget, and may go while it is kept.
    assert!(keeps(&all(), &pod(&labels, false)));
    let mut kept = all();
    kept["status"]["currentHealthy"] = json!(2);
    assert!(!keeps(&kept, &pod(&labels, false)) && keeps(&kept, &pod(&labels, true)));
    let mut always = all();
    always["spec"]["unhealthyPodEvictionPolicy"] = json!("AlwaysAllow");
    assert!(!keeps(&always, &pod(&labels, false)));
}

#[test]
fn pods_that_stay_need_not_be_moved() {
    let read = |owner: &str, mirror: bool, phase: &str| {
        let annotations = if mirror { json!({"kubernetes.io/config.mirror": "x"}) } else { json!({}) };
        Pod::read(&json!({"metadata": {"name": "p", "namespace": "n", "uid": "u", "annotations": annotations,
            "ownerReferences": [{"kind": owner, "name": "x"}], "labels": {"k8s-app": "calico-node"}},
            "spec": {"nodeName": "n1"},
            "status": {"phase": phase, "containerStatuses": [{"restartCount": 2}, {"restartCount": 3}],
                "conditions": [{"type": "Ready", "status": "True", "lastTransitionTime": "2026-11-21T10:00:00Z"}]}}))
    };
    let pod = read("ReplicaSet", false, "Running");
    assert!(pod.has_to_move() && pod.ready && pod.restarts == 5 && pod.since.is_some());
    assert_eq!((pod.app.as_str(), pod.node.as_str(), pod.uid.as_str()), ("calico-node", "n1", "u"));
    for stays in [read("DaemonSet", false, "Running"), read("Node", true, "Running"), read("Job", false, "Succeeded")] {
        assert!(!stays.has_to_move(), "{stays:?}");
    }
    assert!(!Pod::read(&Value::Null).ready);
}
