//! containerd's store on disk.

use serde::Serialize;

/// Something in containerd's store that no containerd writes.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct StoreFault {
    /// The file, or the directory of several.
    pub path: String,
    /// What is wrong with it, as a clause.
    pub what: String,
}
