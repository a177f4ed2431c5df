//! Pods that the kubelet runs from files of its own (`staticPodPath`), with no API server between.

use jiff::Timestamp;
use serde::Serialize;

/// A file in the kubelet's directory of static pods that holds settings.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct Manifest {
    /// The file.
    pub path: String,
    /// When it was last changed, or put there.
    pub modified: Timestamp,
    /// The pod in it, or why the kubelet ignores the file.
    pub pod: Result<StaticPod, Ignored>,
}

/// Why the kubelet runs nothing from a file.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct Ignored {
    /// Whether it is meant to be a pod.
    pub is_pod: bool,
    /// What it does, as the rest of a sentence.
    pub what: String,
}

/// A pod as its manifest has it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct StaticPod {
    /// `metadata.namespace`, or `default`.
    pub namespace: String,
    /// `metadata.name`; the kubelet adds the node's name.
    pub name: String,
    /// The names of `spec.containers`.
    pub containers: Vec<String>,
    /// Whether its containers are started again whenever they end (`restartPolicy`, default `Always`).
    pub always: bool,
}

impl StaticPod {
    /// Whether a pod of this namespace and name is this one on this node: `NAME-NODE`, the node's name in small letters
    /// (`generatePodName` of `pkg/kubelet/config/common.go`). Where the node's name is not known, any that begins so.
    pub fn is(&self, namespace: &str, name: &str, node: Option<&str>) -> bool {
        let rest = name.strip_prefix(&self.name).and_then(|rest| rest.strip_prefix('-'));
        namespace == self.namespace && rest.is_some_and(|rest| node.is_none_or(|node| rest == node.to_lowercase()))
    }
}

/// What the runtime has in a static pod's sandbox.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct StaticContainers {
    /// The sandbox's identifier.
    pub sandbox: String,
    /// Its containers, in whatever state; the kubelet keeps the last one that has ended.
    pub containers: Vec<StaticContainer>,
}

/// A container of a static pod.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct StaticContainer {
    /// Its name in the pod.
    pub name: String,
    /// How many of this name were there before it, as the kubelet counts them.
    pub attempt: u32,
    /// Whether it runs.
    pub running: bool,
    /// `created_at`, in nanoseconds of the Unix epoch.
    pub created_at: i64,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_static_pod_has_the_nodes_name_behind_its_own() {
        let pod =
            StaticPod { namespace: "kube-system".into(), name: "haproxy".into(), containers: vec![], always: true };
        for (namespace, name, node, is) in [
            ("kube-system", "haproxy-10.0.0.5", Some("10.0.0.5"), true),
            ("kube-system", "haproxy-n1", Some("N1"), true),
            ("kube-system", "haproxy-n1", Some("n2"), false),
            ("kube-system", "haproxy-n1", None, true),
            ("kube-system", "haproxy2-n1", None, false),
            ("kube-system", "haproxy", None, false),
            ("default", "haproxy-n1", Some("n1"), false),
        ] {
            assert_eq!(pod.is(namespace, name, node), is, "{namespace}/{name} on {node:?}");
        }
    }
}
