//! The words for a condition's status and a worker's state.

use serde::{Deserialize, Serialize};

/// Status of a node condition. All of ours are abnormal-true.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub enum Status {
    /// Checked, and well.
    False,
    /// There is a problem.
    True,
    /// Could not look.
    Unknown,
}

impl Status {
    /// As Kubernetes writes it.
    pub fn as_str(self) -> &'static str {
        match self {
            Status::False => "False",
            Status::True => "True",
            Status::Unknown => "Unknown",
        }
    }

    /// From what Kubernetes writes; anything else is unknown.
    pub fn parse(text: &str) -> Status {
        match text {
            "True" => Status::True,
            "False" => Status::False,
            _ => Status::Unknown,
        }
    }
}

/// A worker's state, from best to worst as the report sorts it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub enum WorkerState {
    /// Everything was looked at and is well.
    Normal,
    /// Something could not be looked at, and what could be is well.
    Unknown,
    /// At least one warning.
    Warning,
    /// At least one critical finding.
    Critical,
}

impl WorkerState {
    /// All states, worst first.
    pub const ALL: [WorkerState; 4] =
        [WorkerState::Critical, WorkerState::Warning, WorkerState::Unknown, WorkerState::Normal];

    /// As the report and the annotation write it.
    pub fn as_str(self) -> &'static str {
        match self {
            WorkerState::Normal => "Normal",
            WorkerState::Warning => "Warning",
            WorkerState::Critical => "Critical",
            WorkerState::Unknown => "Unknown",
        }
    }

    /// From what the annotation holds; anything else is unknown.
    pub fn parse(text: &str) -> WorkerState {
        WorkerState::ALL.into_iter().find(|state| state.as_str() == text).unwrap_or(WorkerState::Unknown)
    }

    /// Exit status of `nodevitals check`.
    pub fn exit_status(self) -> u8 {
        match self {
            WorkerState::Normal => 0,
            WorkerState::Warning => 1,
            WorkerState::Critical => 2,
            WorkerState::Unknown => 3,
        }
    }
}
