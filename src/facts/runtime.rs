//! The container runtime, as its CRI v1 socket tells it.

use std::net::IpAddr;

use serde::Serialize;

use super::Seen;

/// The container runtime.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct Runtime {
    /// The socket that was asked (no host root in front): the kubelet's, or the first well-known one that exists.
    pub socket: Seen<String>,
    /// The runtime's answer to `Version` and `Status`.
    pub status: Seen<RuntimeStatus>,
    /// Pod sandboxes in state READY.
    pub sandboxes: Seen<Vec<Sandbox>>,
}

/// The answer to `Version` and `Status` of `runtime.v1.RuntimeService`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct RuntimeStatus {
    /// `containerd`, `cri-o`, ...
    pub name: String,
    /// Its version.
    pub version: String,
    /// `RuntimeReady`, `NetworkReady` and what else it tells. Types not known are information, never a fault.
    pub conditions: Vec<Condition>,
    /// CNI directories from the verbose answer: configuration directory and plugin directories.
    pub cni_dirs: Option<(String, Vec<String>)>,
    /// `lastCNILoadStatus` of containerd's verbose answer: `OK`, or why the last load failed.
    pub cni_load: Option<String>,
}

/// A condition of the runtime.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct Condition {
    /// `RuntimeReady`, `NetworkReady`, ...
    pub kind: String,
    /// Its status.
    pub status: bool,
    /// Its reason.
    pub reason: String,
    /// Its message.
    pub message: String,
}

/// A pod sandbox.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct Sandbox {
    /// Its identifier.
    pub id: String,
    /// Namespace of the pod.
    pub namespace: String,
    /// Name of the pod.
    pub name: String,
    /// `created_at`, in nanoseconds of the Unix epoch.
    pub created_at: i64,
    /// Whether it uses the node's network (`NamespaceMode` NODE); none while that is not known yet.
    pub host_network: Option<bool>,
    /// Its addresses; empty for the node's network and while they are not known yet.
    pub addresses: Vec<IpAddr>,
}

impl RuntimeStatus {
    /// The condition of this type.
    pub fn condition(&self, kind: &str) -> Option<&Condition> {
        self.conditions.iter().find(|condition| condition.kind == kind)
    }
}
