//! The lock that legacy iptables takes for every change.

use jiff::Timestamp;
use serde::Serialize;

/// Who has `/run/xtables.lock`, and who waits for it.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct XtablesLock {
    /// Who holds it.
    pub holders: Vec<LockUser>,
    /// Who waits for it.
    pub waiters: Vec<LockUser>,
}

/// A process that holds a lock, or waits for it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct LockUser {
    /// Its number on the node.
    pub pid: u32,
    /// Its name (`comm`); none when it has ended meanwhile.
    pub program: Option<String>,
    /// Since when it was seen in every look.
    pub since: Timestamp,
}

impl std::fmt::Display for LockUser {
    fn fmt(&self, out: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match &self.program {
            Some(program) => write!(out, "{program} (pid {})", self.pid),
            None => write!(out, "pid {}", self.pid),
        }
    }
}
