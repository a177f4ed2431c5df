//! Who changed the packet filter, and what has gone from it.

use std::fmt;

use jiff::Timestamp;
use serde::Serialize;

use super::Family;

/// What is known of the changes of nf_tables since this process began to watch. The legacy backend tells of none.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct PacketFilterChanges {
    /// The last commits, oldest first, one for each process.
    pub last: Vec<Commit>,
    /// What was there and is gone, oldest first. What comes back is taken off.
    pub removals: Vec<Removal>,
}

/// A commit of nf_tables, as the kernel told it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct Commit {
    /// When it was told, by the node's clock.
    pub at: Timestamp,
    /// `NFTA_GEN_ID`: the generation that it made.
    pub generation: u32,
    /// `NFTA_GEN_PROC_PID`: the process, by its number on the node.
    pub pid: Option<u32>,
    /// `NFTA_GEN_PROC_NAME`: its name, of which the kernel keeps 15 bytes.
    pub program: Option<String>,
}

/// Things that were there in one look and not in the next.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct Removal {
    /// When: the last of the commits in `by`, or else the look that missed them.
    pub at: Timestamp,
    /// The generation in which they were missed.
    pub generation: u32,
    /// How many commits there were between the two looks. Any of them may have done it.
    pub commits: u32,
    /// Those of them of which is known who made them, one for each process, and only a few.
    pub by: Vec<Commit>,
    /// What is gone, and has not come back.
    pub gone: Vec<Piece>,
}

/// A chain, or the jump of a base chain to another.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct Piece {
    /// Its family.
    pub family: Family,
    /// Its table.
    pub table: String,
    /// The chain, or the base chain that jumps.
    pub chain: String,
    /// Where it jumps to.
    pub target: Option<String>,
}

impl fmt::Display for Piece {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(out, "{} {}", self.table, self.chain)?;
        self.target.as_ref().map_or(Ok(()), |target| write!(out, " -> {target}"))
    }
}

impl fmt::Display for Commit {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        out.write_str(self.program.as_deref().unwrap_or("a process"))?;
        self.pid.map_or(Ok(()), |pid| write!(out, " (pid {pid})"))
    }
}

impl fmt::Display for Removal {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(out, "removed at {}", super::utc(self.at))?;
        for (index, commit) in self.by.iter().enumerate() {
            write!(out, " {} {commit}", if index == 0 { "by" } else { "or" })?;
        }
        let known = u32::try_from(self.by.len()).unwrap_or(u32::MAX);
        match self.commits.saturating_sub(known) {
            0 => Ok(()),
            _ if self.by.is_empty() => Ok(()),
            _ => write!(out, ", in one of {} changes", self.commits),
        }
    }
}
