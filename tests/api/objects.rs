//! Nodes and what is written on them, as the programs write it that do so in a cluster.

use anyhow::{Context, Result};
use serde_json::{Value, json};

/// The types of our conditions.
pub(crate) const TYPES: [&str; 8] = [
    "WorkerProblem",
    "ControlPlanePathProblem",
    "RuntimeProblem",
    "CNIProblem",
    "PodRoutingProblem",
    "PacketFilterProblem",
    "CapacityProblem",
    "NodeIntegrityProblem",
];
/// A time long ago that tests write.
pub(crate) const THEN: &str = "2026-11-21T10:00:00Z";

/// A Node that a kubelet has registered.
pub(crate) fn node(name: &str, labels: &Value) -> Value {
    let resources = json!({"cpu": "4", "memory": "8Gi", "pods": "110"});
    let image = |number| json!({"names": [format!("registry.example/image-{number}@sha256:{}", "a".repeat(64))], "sizeBytes": 1_000_000});
    json!({
        "apiVersion": "v1", "kind": "Node",
        "metadata": {
            "name": name, "labels": labels,
            "annotations": {"projectcalico.org/IPv4Address": "10.0.0.1/24", "other/x": "1"},
        },
        "spec": {"taints": [{"key": "t", "value": "v", "effect": "NoSchedule"}]},
        "status": {
            "capacity": resources, "allocatable": resources,
            "addresses": [{"type": "InternalIP", "address": "10.0.0.1"}, {"type": "Hostname", "address": name}],
            "daemonEndpoints": {"kubeletEndpoint": {"Port": 10250}},
            "nodeInfo": {
                "machineID": "m", "systemUUID": "s", "bootID": "b", "kernelVersion": "6", "osImage": "Debian",
                "containerRuntimeVersion": "containerd://1.6", "kubeletVersion": "v1.35.4", "kubeProxyVersion": "",
                "operatingSystem": "linux", "architecture": "amd64",
            },
            "images": (0..50).map(image).collect::<Vec<_>>(),
            "volumesInUse": ["kubernetes.io/csi/x"],
            "volumesAttached": [{"name": "kubernetes.io/csi/x", "devicePath": ""}],
            "runtimeHandlers": [{"name": "runc", "features": {"recursiveReadOnlyMounts": true}}],
            "features": {"supplementalGroupsPolicy": true},
            "conditions": [
                condition("Ready", "True", "KubeletReady"),
                condition("MemoryPressure", "False", "X"),
                condition("DiskPressure", "False", "X"),
                condition("PIDPressure", "False", "X"),
                condition("NetworkUnavailable", "False", "CalicoIsUp"),
                condition("KernelDeadlock", "False", "KernelHasNoDeadlock"),
            ],
        },
    })
}

/// A condition since [`THEN`].
pub(crate) fn condition(kind: &str, status: &str, reason: &str) -> Value {
    json!({
        "type": kind, "status": status, "reason": reason, "message": "m",
        "lastHeartbeatTime": THEN, "lastTransitionTime": THEN,
    })
}

/// A finding that an agent tells: code, severity, area, and the type of its condition.
pub(crate) type Finding<'a> = (&'a str, &'a str, &'a str, &'a str);

/// The patch by which an agent says that nothing is wrong, or this, since then.
pub(crate) fn told(finding: Option<Finding>, since: &str) -> Value {
    let condition = |kind: &&str| match finding {
        Some((code, .., area)) if [area, "WorkerProblem"].contains(kind) => condition(kind, "True", code),
        _ => condition(kind, "False", "Healthy"),
    };
    let state = match finding {
        Some((_, "critical", ..)) => "Critical",
        Some(_) => "Warning",
        None => "Normal",
    };
    let findings = finding.map(|(code, severity, area, _)| {
        json!({"code": code, "severity": severity, "area": area, "subject": "IPv4", "since": since,
            "detail": "something is wrong", "next": "do something"})
    });
    let annotations = json!({"nodevitals.dev/state": state, "nodevitals.dev/since": since,
        "nodevitals.dev/findings": json!(findings.as_slice()).to_string()});
    json!({"metadata": {"annotations": annotations}, "status": {"conditions": TYPES.iter().map(condition).collect::<Vec<_>>()}})
}

/// The condition of this type on a Node.
pub(crate) fn condition_of<'a>(node: &'a Value, kind: &str) -> Result<&'a Value> {
    let conditions = node["status"]["conditions"].as_array().context("conditions")?;
    let found = conditions.iter().find(|condition| condition["type"] == kind);
    found.with_context(|| format!("no {kind} among {conditions:#?}"))
}

/// The Node without what this product may write, and without what every write moves.
pub(crate) fn foreign(node: &Value) -> Value {
    let mut node = node.clone();
    if let Some(annotations) = node["metadata"]["annotations"].as_object_mut() {
        annotations.retain(|key, _| !key.starts_with("nodevitals.dev/"));
    }
    if let Some(conditions) = node["status"]["conditions"].as_array_mut() {
        conditions.retain(|condition| !TYPES.iter().any(|kind| condition["type"] == *kind));
    }
    if let Some(metadata) = node["metadata"].as_object_mut() {
        metadata.remove("managedFields");
        metadata.remove("resourceVersion");
    }
    node
}

/// The patch by which the aggregator says that an agent is gone.
pub(crate) fn stale() -> Value {
    let conditions: Vec<_> = TYPES.iter().map(|kind| condition(kind, "Unknown", "AgentStale")).collect();
    json!({"metadata": {"annotations": {"nodevitals.dev/state": "Unknown"}}, "status": {"conditions": conditions}})
}
