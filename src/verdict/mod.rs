//! Since when, and do we believe it: findings of many looks become one verdict. Pure: time comes in as [`Now`].

mod answer;
mod belief;
mod causes;
mod clocks;
mod episodes;
mod settling;
mod state;
mod step;
mod told;
mod transitions;
mod words;

use std::time::Duration;

use jiff::Timestamp;
use serde::{Deserialize, Serialize};

use crate::checks::{Area, Severity};

pub use belief::Patience;
#[cfg(test)]
pub(crate) use belief::{FLAPPING_FREE, FLAPPING_WINDOW, SLOWEST_CLEAR};
pub use episodes::{Around, Cure, Episode, Episodes};
pub use settling::Settling;
pub use state::{Status, WorkerState};
pub use step::Beliefs;
#[cfg(any(test, fuzzing))]
pub(crate) use told::fuzz;
pub use told::{ANNOTATION_PREFIX, NodeCondition, Told, annotation, our_condition, told};
pub(crate) use told::{parse_findings, parse_state};
pub use transitions::{Transition, Transitions};
pub(crate) use words::{clip, ended, list as codes};

/// Reason of conditions before the first look is complete.
pub const SETTLING: &str = "WorkerSettling";
/// Reason of conditions that could not be looked at.
pub const COULD_NOT_LOOK: &str = "CouldNotLook";
/// Reason of conditions whose questions do not arise on this node.
pub const NOT_APPLICABLE: &str = "NotApplicable";
/// Reason of [`crate::checks::WORKER_PROBLEM`] when nothing is wrong.
pub const WORKER_HEALTHY: &str = "WorkerHealthy";
/// Reason that the aggregator writes when an agent or its kubelet is gone (catalogue R157).
pub const AGENT_STALE: &str = "AgentStale";

/// Areas whose faults a new machine cures, and hardly anything else: the only ones that may have a machine replaced.
pub const CURED_BY_A_NEW_MACHINE: [Area; 2] = [Area::Integrity, Area::Runtime];

/// The present: wall-clock time for people, and a clock that never jumps for hold-downs.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Now {
    /// Wall-clock time.
    pub wall: Timestamp,
    /// Time since boot, suspend included (`CLOCK_BOOTTIME`).
    pub since_boot: Duration,
}

impl Now {
    /// Time since a moment of the clock that never jumps.
    pub(crate) fn since(self, moment: Duration) -> Duration {
        self.since_boot.saturating_sub(moment)
    }
}

/// What is believed about one node.
#[derive(Debug, Clone, PartialEq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct Verdict {
    /// When it was reached.
    pub at: Timestamp,
    /// The worker's state.
    pub state: WorkerState,
    /// Since when it has that state.
    pub since: Timestamp,
    /// Whether the first look is not complete yet.
    pub settling: bool,
    /// The eight conditions: the roll-up first, then the areas in causal order.
    pub conditions: Vec<ConditionVerdict>,
    /// Findings that count: roots first, the worst ahead, then what they explain.
    pub findings: Vec<Raised>,
    /// Findings that were seen but have not lasted long enough to count.
    pub pending: Vec<Raised>,
    /// Checks that could not look: code and why.
    pub unknown: Vec<(String, String)>,
    /// Time until a pending finding counts or a finding that is gone is over: look again then.
    #[serde(skip)]
    pub look_again_in: Option<Duration>,
}

/// One condition.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct ConditionVerdict {
    /// Its type.
    pub kind: &'static str,
    /// Its status: True is a problem.
    pub status: Status,
    /// Its reason: a finding code, or one of the reasons of this module.
    pub reason: String,
    /// Its message, at most 1 KiB.
    pub message: String,
    /// When the status last changed.
    pub since: Timestamp,
}

/// A finding that was seen.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Raised {
    /// Finding code.
    pub code: String,
    /// How bad it is.
    pub severity: Severity,
    /// Its area.
    pub area: Area,
    /// What it is about.
    pub subject: String,
    /// When it was first seen.
    pub since: Timestamp,
    /// What is wrong and where.
    pub detail: String,
    /// What to do next.
    pub next: String,
    /// The finding that explains this one; it is listed too, and nothing explains it (catalogue R040).
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub caused_by: Option<CausedBy>,
    /// How many times there were findings of this code within seven days, or as configured, this time included.
    #[serde(default = "once", skip_serializing_if = "is_once")]
    pub times: u32,
    /// What cured it the last time, as far as can be seen from the node.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub last_cure: Option<Cure>,
}

fn once() -> u32 {
    1
}

#[expect(clippy::trivially_copy_pass_by_ref, reason = "serde passes fields by reference")]
fn is_once(times: &u32) -> bool {
    *times <= 1
}

/// A finding that explains others: a root.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct CausedBy {
    /// Its code.
    pub code: String,
    /// What it is about.
    pub subject: String,
}

impl From<&Raised> for CausedBy {
    fn from(root: &Raised) -> Self {
        CausedBy { code: root.code.clone(), subject: root.subject.clone() }
    }
}

impl CausedBy {
    /// Whether this is that finding.
    pub fn is(&self, finding: &Raised) -> bool {
        self.code == finding.code && self.subject == finding.subject
    }
}

impl Raised {
    /// Whether it moves conditions and the worker's state, rather than being only worth knowing.
    pub fn is_problem(&self) -> bool {
        self.severity > Severity::Info
    }

    /// Whether `root` explains this.
    pub fn is_caused_by(&self, root: &Raised) -> bool {
        self.caused_by.as_ref().is_some_and(|cause| cause.is(root))
    }
}

impl Verdict {
    /// The finding that takes the headline: nothing explains it, it is or causes the worst, and among equals its area
    /// causes the others.
    pub fn root(&self) -> Option<&Raised> {
        self.problems().next()
    }

    /// Findings that are problems: roots first, worst first.
    pub fn problems(&self) -> impl Iterator<Item = &Raised> {
        self.findings.iter().filter(|finding| finding.is_problem())
    }

    /// The first critical finding, root or not, that a new machine would cure.
    pub fn fault_of_the_machine(&self) -> Option<&Raised> {
        let critical = |it: &&Raised| it.severity == Severity::Critical && CURED_BY_A_NEW_MACHINE.contains(&it.area);
        self.findings.iter().find(critical)
    }

    /// The condition of this type.
    pub fn condition(&self, kind: &str) -> Option<&ConditionVerdict> {
        self.conditions.iter().find(|condition| condition.kind == kind)
    }
}
