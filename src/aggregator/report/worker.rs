//! One worker in the report.

use std::num::NonZeroU32;

use jiff::Timestamp;
use serde::{Deserialize, Serialize};

use crate::verdict::{Cure, NodeCondition, Raised, Status, WorkerState};

/// One worker.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct NodeReport {
    /// Its name.
    pub name: String,
    /// Its state.
    pub state: WorkerState,
    /// The first look is not complete yet.
    #[serde(default)]
    pub settling: bool,
    /// It is being deleted.
    #[serde(default)]
    pub deleting: bool,
    /// It is cordoned.
    #[serde(default)]
    pub cordoned: bool,
    /// Since when it has its state.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub since: Option<Timestamp>,
    /// Its zone.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub zone: Option<String>,
    /// Its worker pool.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub pool: Option<String>,
    /// The root finding's code, or why nothing is known.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub reason: Option<String>,
    /// What is wrong and where.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub detail: Option<String>,
    /// What to do next.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub next: Option<String>,
    /// All findings, worst first. Of a worker whose agent is gone: the last that it said.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub findings: Vec<Raised>,
    /// How many more its agent has that did not fit on the Node; the roots come first, and the worst of them.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub more: Option<NonZeroU32>,
    /// What was there and is over, as its agent says, and when calico-node failed there, as the aggregator remembers; the last
    /// first; only in the report of one worker.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub episodes: Vec<Ended>,
    /// When it booted, as far as that is known; only in the report of one worker.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub rebooted: Option<Timestamp>,
    /// When it got another kubelet, kernel, system or runtime, as far as that was seen; only in the report of one worker.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub updated: Option<Timestamp>,
    /// When its kubelet was started, as its agent says; only in the report of one worker.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub kubelet_started: Option<Timestamp>,
    /// Its container runtime, as its kubelet names it: `containerd 1.7.22`; only in the report of one worker.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub runtime: Option<String>,
    /// When that was started, as its agent says; only in the report of one worker.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub runtime_started: Option<Timestamp>,
    /// The kubelet's own condition.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub ready: Option<Ready>,
    /// Whether its agent is there.
    pub agent: AgentReport,
    /// When it joined the cluster.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub created: Option<Timestamp>,
    /// Our conditions; only in the report of one worker.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub conditions: Vec<NodeCondition>,
}

/// A finding that is over.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Ended {
    /// Finding code.
    pub code: String,
    /// When it was first seen.
    pub since: Timestamp,
    /// When it was over.
    pub cleared: Timestamp,
    /// What cured it, as far as can be seen from the node.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub cure: Option<Cure>,
}

/// The condition `Ready`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Ready {
    /// Its status.
    pub status: Status,
    /// Its reason.
    pub reason: String,
    /// Since when.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub since: Option<Timestamp>,
}

/// Whether an agent is there.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct AgentReport {
    /// How it is.
    pub state: AgentState,
    /// Its Pod.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub pod: Option<String>,
    /// Since when it is gone.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub since: Option<Timestamp>,
}

/// How an agent is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub enum AgentState {
    /// Its Pod is Ready.
    Fresh,
    /// Its Pod is not Ready, for too short a time to count.
    Late,
    /// Its Pod is not Ready.
    Stale,
    /// It has no Pod.
    Missing,
    /// The node's kubelet is silent, so that nobody can say.
    KubeletSilent,
    /// It could not be looked at.
    NotSeen,
}
