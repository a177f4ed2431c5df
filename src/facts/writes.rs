//! What became of the agent's own writes, and what comes back with them.

use jiff::Timestamp;
use serde::Serialize;

/// Whether the API server takes what is written to the Node, and what it says of it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
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
}
