//! Files that did not outlive a crash.

use serde::Serialize;

/// A file that nobody writes like that, or several.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct FileFault {
    /// The file, or the directory of several.
    pub path: String,
    /// What is wrong with it, as a clause.
    pub what: String,
}
