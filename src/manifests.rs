//! What `deploy/` has to hold for the agent to run where nothing else can.

use serde_json::{Value, json};

use crate::yaml;

fn agent() -> Value {
    let set: Value = yaml::parse(include_str!("../deploy/agent.yaml")).expect("YAML");
    assert_eq!(set["kind"], "DaemonSet");
    set["spec"]["template"]["spec"].clone()
}

#[test]
fn the_agent_runs_where_nothing_else_can() {
    let pod = agent();
    assert_eq!(pod["hostNetwork"], true, "without a CNI");
    assert_eq!(pod["tolerations"], json!([{"operator": "Exists"}]), "with whatever taint");
    assert_eq!(pod["priorityClassName"], "system-node-critical", "under pressure");
}

#[test]
fn the_agent_needs_neither_dns_nor_the_api_server_to_start() {
    let pod = agent();
    assert_eq!(pod["dnsPolicy"], "Default", "the node's own");
    assert!(pod["initContainers"].is_null(), "nothing comes before it");
    let containers = pod["containers"].as_array().expect("a list");
    assert_eq!(containers.len(), 1);
    let container = &containers[0];
    assert_eq!(container["imagePullPolicy"], "IfNotPresent", "no registry is asked again");
    assert!(["livenessProbe", "startupProbe", "lifecycle"].iter().all(|key| container[key].is_null()), "{container}");
    // A ConfigMap, a Secret or a claim that cannot be had would keep it from starting.
    assert!(container["envFrom"].is_null());
    let sources: Vec<&str> = container["env"].as_array().into_iter().flatten().filter_map(source).collect();
    assert!(sources.iter().all(|source| *source == "fieldRef"), "{sources:?}");
    for volume in pod["volumes"].as_array().expect("a list") {
        assert!(volume["hostPath"].is_object(), "{volume}");
    }
}

/// Where the value of a variable comes from, if it is not written there.
fn source(variable: &Value) -> Option<&str> {
    variable["valueFrom"].as_object()?.keys().next().map(String::as_str)
}
