//! The cluster at a glance: what `/api/v1/report` answers and `nodevitals report` prints.

mod around;
mod build;
mod contrast;
mod count;
mod judge;
mod judgement;
mod sandboxes;
mod scope;
mod typha;
mod whole;
mod worker;

use jiff::Timestamp;
use serde::{Deserialize, Serialize};

use crate::checks::{Area, Severity};
use crate::config::ClusterLimits;
use crate::verdict::WorkerState;

pub use super::journal::ChangeBefore;
pub(super) use around::{failing_calico, failing_calico_of, place};
pub(crate) use build::{Agents, build};
pub(super) use build::{Overview, overview};
pub(super) use judge::Judged;
pub(super) use judgement::LastJudgement;
pub(super) use whole::Whole;
pub use worker::{AgentReport, AgentState, Ended, NodeReport, Ready};

/// Version of the report's format.
pub const API_VERSION: &str = "nodevitals.dev/v1";
/// Reason of a worker on which no agent ever said anything.
pub const NEVER_REPORTED: &str = "NoAgentReport";
/// Reason of every worker while the API server cannot be seen.
pub const CANNOT_SEE: &str = "CannotSeeCluster";

/// The cluster at a glance.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct ClusterReport {
    /// [`API_VERSION`].
    pub api_version: String,
    /// `ClusterReport`.
    pub kind: String,
    /// When it was made, on the clock of whoever made it.
    pub generated_at: Timestamp,
    /// Who made it.
    pub source: Source,
    /// Whether everything could be seen.
    pub view: View,
    /// All of it in one sentence.
    pub summary: String,
    /// How many workers are in which state.
    pub workers: Counts,
    /// The same by zone; empty when there is only one.
    pub zones: Vec<Group>,
    /// The same by worker pool; empty when there is only one.
    pub pools: Vec<Group>,
    /// What is wrong, on how many workers.
    pub findings: Vec<FindingCount>,
    /// What is wrong with the cluster rather than with one worker; in the report of one worker, what concerns it.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub cluster: Vec<ClusterFinding>,
    /// How many more of these there are, the least of all: there is a limit to what is listed.
    #[serde(default)]
    pub cluster_more: usize,
    /// The workers, worst first.
    pub nodes: Vec<NodeReport>,
}

/// Who made a report.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub enum Source {
    /// The aggregator.
    Aggregator,
    /// `nodevitals report`, from the Node objects alone.
    NodeObjects,
    /// `nodevitals standalone`, from this machine alone.
    Standalone,
}

/// Whether everything could be seen.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct View {
    /// The workers are seen. If not, each of them is Unknown, and nothing is said about any.
    pub complete: bool,
    /// Why not; or what else could not be seen.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub why: Option<String>,
    /// Since when not.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub since: Option<Timestamp>,
    /// What else could not be looked at: what was seen there before is told no more.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub cannot_look: Vec<CannotLook>,
}

/// What else could not be looked at, while the workers are seen.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct CannotLook {
    /// The kinds: `ippools`, `pods`, ...
    pub what: Vec<String>,
    /// Why not.
    pub why: String,
    /// Since when.
    pub since: Timestamp,
    /// The findings of which nothing is known for that; others are made of these kinds only in part, or not at all.
    pub codes: Vec<String>,
}

/// How many workers are in which state.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Counts {
    /// All that count: those that are being deleted do not.
    pub total: usize,
    /// Critical.
    pub critical: usize,
    /// Warning.
    pub warning: usize,
    /// Unknown, of which some may be settling.
    pub unknown: usize,
    /// Normal.
    pub normal: usize,
    /// In their first look.
    #[serde(default)]
    pub settling: usize,
    /// Being deleted, and in none of the other numbers.
    #[serde(default)]
    pub deleting: usize,
}

/// The workers of one zone or pool.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Group {
    /// The zone or pool; empty for workers that carry no such label.
    pub name: String,
    /// How many of its workers are in which state.
    #[serde(flatten)]
    pub workers: Counts,
}

/// How much of the cluster something concerns (catalogue R115, thresholds H15). It decides between opposite remedies:
/// a few workers are repaired, for most or all of them the cause is elsewhere.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub enum Scope {
    /// No worker that counts: it follows from something else there, or the workers are in maintenance.
    None,
    /// At most two, or at most a tenth: also one of two, and the only one.
    Few,
    /// In between.
    Subset,
    /// At least four fifths.
    Most,
    /// Every worker, of two or more.
    All,
}

/// One finding code over the cluster.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct FindingCount {
    /// Finding code.
    pub code: String,
    /// How bad it is.
    pub severity: Severity,
    /// Its area.
    pub area: Area,
    /// On how many workers it is.
    pub nodes: usize,
    /// Of these, how many the scope is judged by: no duplicates, none that were cordoned before it began, none on which it
    /// follows from another finding.
    #[serde(default)]
    pub counted: usize,
    /// Out of how many workers: those that are seen, without duplicates and those in maintenance.
    #[serde(default)]
    pub eligible: usize,
    /// How much of the cluster that is.
    pub scope: Scope,
    /// Since when the first of them has it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub since: Option<Timestamp>,
    /// What these workers have in common and others have not: `zone eu-de-1`, the strongest suspect.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub shared: Option<String>,
    /// What is suspected to be behind it, the strongest contrast first. Several may be the same workers.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub suspects: Vec<Suspect>,
    /// What changed before the first of them had it, the nearest first.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub before: Vec<ChangeBefore>,
    /// What to do next, where more than a few workers have it; else each worker's own next step counts.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub next: Option<String>,
}

/// What workers that fail have in common and others have not, and how much it stands out.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Suspect {
    /// What it is: `pool`, `zone`, `subnet`, `kubelet`, `kernel`, `created`, ...
    pub attribute: String,
    /// Which.
    pub value: String,
    /// Workers with it that fail.
    pub failing: usize,
    /// All workers with it.
    pub workers: usize,
    /// Workers without it that fail.
    pub failing_elsewhere: usize,
    /// All workers without it.
    pub workers_elsewhere: usize,
    /// How likely so strong a contrast is by chance: Fisher's exact test, one-sided, corrected by Holm's method for all
    /// values that were tried.
    pub p: f64,
    /// All of it: `12 of 14 in pool X fail, 0 of 40 elsewhere`.
    pub sentence: String,
}

/// Something that is wrong with the cluster, which no worker can know by itself.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct ClusterFinding {
    /// Finding code.
    pub code: String,
    /// How bad it is.
    pub severity: Severity,
    /// Its area.
    pub area: Area,
    /// What it is about, the same for as long as it lasts.
    pub subject: String,
    /// The object that it is about, if there is one: `DaemonSet kube-system/calico-node`.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub object: String,
    /// What is wrong and where.
    pub detail: String,
    /// What to do next.
    pub next: String,
    /// Since when.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub since: Option<Timestamp>,
    /// Nothing tells since when: it was noticed then, and may be older.
    #[serde(default)]
    pub noticed: bool,
    /// What changed before, the nearest first.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub before: Vec<ChangeBefore>,
    /// How many workers it concerns.
    pub nodes: usize,
    /// The first of them, by name.
    pub workers: Vec<String>,
}

impl View {
    /// The workers are not seen.
    fn incomplete(why: String, since: Option<Timestamp>) -> View {
        View { complete: false, why: Some(why), since, cannot_look: Vec::new() }
    }
}

impl Counts {
    /// The number of workers in this state.
    pub fn of(&self, state: WorkerState) -> usize {
        match state {
            WorkerState::Critical => self.critical,
            WorkerState::Warning => self.warning,
            WorkerState::Unknown => self.unknown,
            WorkerState::Normal => self.normal,
        }
    }

    /// Counts one worker more.
    fn add(&mut self, node: &Judged<'_>) {
        if node.row.deleting {
            self.deleting += 1;
            return;
        }
        self.total += 1;
        self.settling += usize::from(node.settling);
        match node.state {
            WorkerState::Critical => self.critical += 1,
            WorkerState::Warning => self.warning += 1,
            WorkerState::Unknown => self.unknown += 1,
            WorkerState::Normal => self.normal += 1,
        }
    }
}

impl Scope {
    /// Its name in JSON and metrics.
    pub fn as_str(self) -> &'static str {
        match self {
            Scope::None => "none",
            Scope::Few => "few",
            Scope::Subset => "subset",
            Scope::Most => "most",
            Scope::All => "all",
        }
    }

    /// How much `nodes` of `total` is.
    pub fn of(nodes: usize, total: usize, limits: &ClusterLimits) -> Scope {
        let percent = |percent: u32| total * percent as usize;
        // All is all, also of two: what is drained from one would go to one that fails as well. One alone is compared with none.
        if nodes == 0 {
            Scope::None
        } else if nodes >= total && total > 1 {
            Scope::All
        } else if nodes <= limits.few_workers as usize || nodes * 100 <= percent(limits.few_percent) {
            Scope::Few
        } else if nodes * 100 >= percent(limits.most_percent) {
            Scope::Most
        } else {
            Scope::Subset
        }
    }
}

#[cfg(test)]
mod tests;
