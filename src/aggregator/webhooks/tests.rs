//! What a webhook is asked about, by its rules and its selectors.

use serde_json::{Value, json};

use super::*;

fn webhook(rule: &Value, more: &Value) -> Webhook {
    let mut tree = json!({"name": "w.example", "rules": [rule], "clientConfig": {"service": {"namespace": "guard", "name": "hook"}}});
    tree.as_object_mut().expect("an object").extend(more.as_object().cloned().unwrap_or_default());
    Webhook::read(&tree)
}

fn rule(resource: &str) -> Value {
    json!({"apiGroups": [""], "apiVersions": ["v1"], "operations": ["CREATE", "UPDATE"], "resources": [resource]})
}

fn namespace(name: &str, labels: &Value) -> Namespace {
    let mut all = json!({"kubernetes.io/metadata.name": name});
    all.as_object_mut().expect("an object").extend(labels.as_object().cloned().unwrap_or_default());
    let object: ObjectView =
        serde_json::from_value(json!({"metadata": {"name": name, "labels": all}})).expect("an object");
    Namespace::read(&object).expect("of the system")
}

#[test]
fn a_star_stands_for_resources_and_only_two_for_subresources() {
    let asked = |resource: &str| {
        let it = webhook(&rule(resource), &json!({}));
        (it.status, it.pods)
    };
    for (resource, expected) in [
        ("nodes/status", (true, false)),
        ("nodes/*", (true, false)),
        ("*/status", (true, false)),
        ("*/*", (true, true)),
        ("*", (false, true)),
        ("nodes", (false, false)),
        ("pods", (false, true)),
        ("pods/*", (false, true)),
        ("pods/status", (false, false)),
    ] {
        assert_eq!(asked(resource), expected, "{resource}");
    }
    let mut namespaced = rule("*/*");
    namespaced["scope"] = "Namespaced".into();
    assert!(!webhook(&namespaced, &json!({})).status);
    let mut other = rule("*/*");
    other["apiGroups"] = json!(["apps"]);
    assert_eq!(webhook(&other, &json!({})), Webhook { pods: false, status: false, ..webhook(&other, &json!({})) });
    let mut deleted = rule("*/*");
    deleted["operations"] = json!(["DELETE"]);
    assert!(!webhook(&deleted, &json!({})).status);
}

#[test]
fn to_ignore_a_failure_does_not_help_who_waits_for_two_seconds() {
    let stops = |more: Value| webhook(&rule("nodes/status"), &more).stops_status(&ClusterLimits::default());
    assert!(stops(json!({})), "Fail and 10 s where nothing is said");
    assert!(stops(json!({"failurePolicy": "Ignore", "timeoutSeconds": 2})));
    assert!(!stops(json!({"failurePolicy": "Ignore", "timeoutSeconds": 1})));
    assert!(stops(json!({"failurePolicy": "Fail", "timeoutSeconds": 1})));
}

#[test]
fn namespaces_are_chosen_by_their_labels() {
    let system = namespace("kube-system", &json!({"tier": "control"}));
    let stops = |selector: Value, more: Value| {
        let mut more = more;
        more["namespaceSelector"] = selector;
        webhook(&rule("pods"), &more).stops_pods(&system)
    };
    let name = |operator: &str| json!({"matchExpressions": [{"key": "kubernetes.io/metadata.name", "operator": operator, "values": ["kube-system"]}]});
    assert!(stops(json!({}), json!({})) && stops(Value::Null, json!({})));
    assert!(stops(name("In"), json!({})) && !stops(name("NotIn"), json!({})));
    assert!(!stops(json!({"matchLabels": {"istio-injection": "enabled"}}), json!({})));
    assert!(stops(json!({"matchLabels": {"tier": "control"}}), json!({})));
    assert!(stops(json!({"matchExpressions": [{"key": "skip", "operator": "DoesNotExist"}]}), json!({})));
    assert!(!stops(json!({"matchExpressions": [{"key": "tier", "operator": "DoesNotExist"}]}), json!({})));
    assert!(stops(json!({"matchExpressions": [{"key": "tier", "operator": "Exists"}]}), json!({})));
    assert!(!stops(json!({"matchExpressions": [{"key": "tier", "operator": "Near"}]}), json!({})), "not known");
    assert!(!stops(json!({}), json!({"failurePolicy": "Ignore"})), "Pods come a little later");
    for some in [
        json!({"objectSelector": {"matchLabels": {"a": "b"}}}),
        json!({"matchConditions": [{"name": "x", "expression": "true"}]}),
    ] {
        assert!(!stops(json!({}), some), "which Pods is not known");
    }
    let leases = namespace(LEASES, &json!({}));
    let mut all = rule("leases");
    all["apiGroups"] = json!(["coordination.k8s.io"]);
    assert!(webhook(&all, &json!({})).stops_leases(&leases));
    assert!(!webhook(&all, &json!({"failurePolicy": "Ignore", "timeoutSeconds": 9})).stops_leases(&leases));
}

#[test]
fn damage_costs_itself() {
    let read = |tree: Value| {
        let object: ObjectView = serde_json::from_value(tree).expect("an object");
        Webhooks::read(&object)
    };
    assert_eq!(read(json!({"metadata": {"name": "a"}, "webhooks": 7})), None);
    let damaged = json!([7, {"name": ["a"], "rules": [{"resources": "pods"}, 3]}, {"rules": {}, "clientConfig": 1, "timeoutSeconds": -4},
        {"name": "good", "rules": [rule("pods")], "namespaceSelector": {"matchExpressions": [1]}, "timeoutSeconds": 900}]);
    let kept = read(json!({"metadata": {"name": "a"}, "webhooks": damaged})).expect("one is good");
    assert_eq!((kept.all.len(), &*kept.all[0].name, kept.all[0].timeout), (1, "good", USUAL_TIMEOUT));
    assert_eq!(kept.all[0].service, None);
    assert!(!kept.all[0].stops_pods(&namespace("kube-system", &json!({}))), "what it chooses by is damaged");
    let own: ObjectView = serde_json::from_value(json!({"metadata": {"name": "shop"}})).expect("an object");
    assert_eq!(Namespace::read(&own), None, "not the system's");
}
