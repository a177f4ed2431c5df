//! A cluster written down in a few lines, for the tests of this folder.

use std::time::Duration;

use jiff::Timestamp;
use serde_json::{Value, json};

use super::cluster::Cluster;
use super::model::NodeView;
use super::object::ObjectView;
use crate::checks::{Area, WORKER_PROBLEM};
use crate::verdict::Now;

/// 2026-11-21T10:00:00Z and this many seconds.
pub(crate) fn at(seconds: i64) -> Timestamp {
    Timestamp::from_second(1_795_255_200 + seconds).expect("valid")
}

/// The present on both clocks.
pub(crate) fn moment(seconds: i64) -> Now {
    Now { wall: at(seconds), since_boot: Duration::from_secs(u64::try_from(1_000 + seconds).expect("positive")) }
}

/// A cluster whose first lists are complete.
pub(crate) fn cluster(nodes: &[Value], agents: &[Value]) -> Cluster {
    let mut cluster = Cluster::watched();
    cluster.nodes_sight.list_begins();
    for node in nodes {
        apply(&mut cluster, node);
    }
    cluster.nodes_sight.list_ends();
    let sight = cluster.agents_sight.as_mut().expect("watched");
    sight.list_begins();
    sight.list_ends();
    for agent in agents {
        let pod: ObjectView = serde_json::from_value(agent.clone()).expect("a pod");
        cluster.apply_agent(&pod);
    }
    cluster
}

/// Takes in a node.
pub(crate) fn apply(cluster: &mut Cluster, node: &Value) {
    let view: NodeView = serde_json::from_value(node.clone()).expect("a node");
    cluster.apply_node(&view, at(0));
}

/// A node on which an agent has said `state`, because of these findings: code, severity, area, detail.
pub(crate) fn node(name: &str, zone: &str, pool: &str, state: &str, findings: &[(&str, &str, &str, &str)]) -> Value {
    let since = at(-300);
    let raised: Vec<Value> = findings
        .iter()
        .map(|(code, severity, area, detail)| {
            json!({ "code": code, "severity": severity, "area": area, "subject": "a subject", "since": since, "detail": detail,
                "next": format!("do what helps against {code}") })
        })
        .collect();
    let (status, reason) = match (state, findings.first()) {
        (_, Some((code, ..))) => ("True", *code),
        ("Normal", None) => ("False", "WorkerHealthy"),
        (_, None) => ("Unknown", "WorkerSettling"),
    };
    let mut conditions = vec![
        json!({ "type": "Ready", "status": "True", "reason": "KubeletReady", "lastTransitionTime": at(-86_400) }),
        json!({ "type": WORKER_PROBLEM, "status": status, "reason": reason, "message": "A message.", "lastTransitionTime": since }),
    ];
    conditions.extend(Area::ALL.map(|area| {
        json!({ "type": area.condition(), "status": "False", "reason": area.healthy_reason(), "message": format!("No problem found in the {}.", area.title()),
            "lastTransitionTime": since })
    }));
    json!({
        "metadata": {
            "name": name, "resourceVersion": "7", "creationTimestamp": at(-864_000),
            "labels": { "topology.kubernetes.io/zone": zone, "agentpool": pool },
            "annotations": { "nodevitals.dev/state": state, "nodevitals.dev/since": since,
                "nodevitals.dev/findings": Value::Array(raised).to_string() },
        },
        "status": { "conditions": conditions },
    })
}

/// A node on which no agent ever was.
pub(crate) fn bare(name: &str) -> Value {
    json!({ "metadata": { "name": name, "creationTimestamp": at(-60) }, "status": { "conditions": [{ "type": "Ready", "status": "True" }] } })
}

/// The kubelet of this node is silent.
pub(crate) fn silent(mut node: Value) -> Value {
    node["status"]["conditions"][0] =
        json!({ "type": "Ready", "status": "Unknown", "reason": "NodeStatusUnknown", "lastTransitionTime": at(-120) });
    node
}

/// The aggregator has marked this node.
pub(crate) fn marked(mut node: Value) -> Value {
    for condition in node["status"]["conditions"].as_array_mut().expect("conditions").iter_mut().skip(1) {
        condition["status"] = "Unknown".into();
        condition["reason"] = "AgentStale".into();
        condition["message"] = "The NodeVitals agent of this node is gone.".into();
        condition["lastTransitionTime"] = at(-30).to_string().into();
    }
    node["metadata"]["annotations"]["nodevitals.dev/state"] = "Unknown".into();
    node
}

/// An agent's Pod.
pub(crate) fn agent(name: &str, node: &str, ready: bool) -> Value {
    json!({ "metadata": { "name": name }, "spec": { "nodeName": node },
        "status": { "conditions": [{ "type": "Ready", "status": if ready { "True" } else { "False" }, "lastTransitionTime": at(-50) }] } })
}
