//! What became of the agent's own writes.

use serde::Serialize;

/// Whether the API server takes what is written to the Node.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct Writes {
    /// The API server.
    pub server: String,
    /// What happened to the last write, if it was held up or failed while reads are answered.
    pub blocked: Option<String>,
}
