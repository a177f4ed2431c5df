//! What became of the agent's own writes, and what comes back with them.

use jiff::Timestamp;
use serde::Serialize;

/// Whether the API server takes what is written to the Node, and what it says of it.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct Writes {
    /// The API server.
    pub server: String,
    /// What happened to the last write, if it was held up or failed while reads are answered.
    pub blocked: Option<String>,
    /// `spec.unschedulable` of the Node, once it was read.
    pub cordoned: Option<bool>,
    /// When the Node object was made.
    pub registered_at: Option<Timestamp>,
    /// What the kubelet says of the node there, once it was read.
    pub said: Option<KubeletSaid>,
}

/// The kubelet's own conditions, as the Node held them.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct KubeletSaid {
    /// When the Node was read. While all is well this and the heartbeats are those of the read that first said so.
    pub read_at: Timestamp,
    /// Those of [`KubeletSaid::TYPES`] that the Node has.
    pub conditions: Vec<KubeletCondition>,
}

/// One of them.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct KubeletCondition {
    /// Type.
    pub kind: String,
    /// `True`, `False` or `Unknown`.
    pub status: String,
    /// Reason: `KubeletNotReady`, or `NodeStatusUnknown` where the node lifecycle controller wrote it.
    pub reason: String,
    /// The first 1024 characters of its message.
    pub message: String,
    /// Since when it has this status.
    pub since: Option<Timestamp>,
    /// When it was last written.
    pub heartbeat: Option<Timestamp>,
}

impl KubeletSaid {
    /// The types that a kubelet writes, and `NetworkUnavailable`, which belongs to the network's own programs.
    pub const TYPES: [&str; 5] = ["Ready", "DiskPressure", "MemoryPressure", "PIDPressure", "NetworkUnavailable"];

    /// A condition by its type.
    pub fn of(&self, kind: &str) -> Option<&KubeletCondition> {
        self.conditions.iter().find(|condition| condition.kind == kind)
    }

    /// Whether nothing is wrong with the node in these words.
    pub fn is_well(&self) -> bool {
        self.conditions.iter().all(|it| it.status == if it.kind == "Ready" { "True" } else { "False" })
    }
}
