//! What is wrong: one pure function per finding code, over one [`Snapshot`].
//!
//! A check is one file in `node/` and one row in [`node::ALL`]. It has three answers: healthy, findings, and unknown
//! ("could not look"). A question that does not arise on this node (no Calico here) is answered by
//! [`Outcome::NotApplicable`], which is healthy and says why.

mod bgp;
mod chains;
mod kernel;
mod kubelet_words;
pub mod node;
mod passage;
mod path;
mod pod_ranges;
mod pods;
mod programs;
mod routes;
pub(crate) mod sandbox_failure;
pub(crate) mod space;

#[cfg(any(test, fuzzing))]
pub(crate) use sandbox_failure::fuzz as fuzz_sandbox_failure;
use std::time::Duration;

use serde::{Deserialize, Serialize};

use crate::facts::{Expected, LookError, Remembered, Seen, Snapshot};

/// The parts of a worker that a condition stands for. The order is the causal order: earlier areas are causes of later
/// ones (catalogue R040).
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub enum Area {
    /// Reboots, identity, read-only file systems.
    Integrity,
    /// Disk, inodes, memory.
    Capacity,
    /// Worker to master, and the kubelet.
    ControlPlanePath,
    /// containerd or CRI-O.
    Runtime,
    /// CNI files and plugins.
    Cni,
    /// Routes, rules, forwarding.
    PodRouting,
    /// Chains of kube-proxy and Calico, conntrack.
    PacketFilter,
}

impl Area {
    /// All areas, in causal order.
    pub const ALL: [Area; 7] = [
        Area::Integrity,
        Area::Capacity,
        Area::ControlPlanePath,
        Area::Runtime,
        Area::Cni,
        Area::PodRouting,
        Area::PacketFilter,
    ];

    /// The node condition's type.
    pub fn condition(self) -> &'static str {
        match self {
            Area::Integrity => "NodeIntegrityProblem",
            Area::Capacity => "CapacityProblem",
            Area::ControlPlanePath => "ControlPlanePathProblem",
            Area::Runtime => "RuntimeProblem",
            Area::Cni => "CNIProblem",
            Area::PodRouting => "PodRoutingProblem",
            Area::PacketFilter => "PacketFilterProblem",
        }
    }

    /// The reason of the condition when everything was looked at and is well.
    pub fn healthy_reason(self) -> &'static str {
        match self {
            Area::Integrity => "NodeIntegrityHealthy",
            Area::Capacity => "CapacityHealthy",
            Area::ControlPlanePath => "ControlPlanePathHealthy",
            Area::Runtime => "RuntimeHealthy",
            Area::Cni => "CNIHealthy",
            Area::PodRouting => "PodRoutingHealthy",
            Area::PacketFilter => "PacketFilterHealthy",
        }
    }

    /// What a person calls it.
    pub fn title(self) -> &'static str {
        match self {
            Area::Integrity => "integrity",
            Area::Capacity => "capacity",
            Area::ControlPlanePath => "control plane path",
            Area::Runtime => "runtime",
            Area::Cni => "CNI",
            Area::PodRouting => "pod routing",
            Area::PacketFilter => "packet filter",
        }
    }

    /// The area of a condition type.
    pub fn of_condition(condition: &str) -> Option<Area> {
        Area::ALL.into_iter().find(|area| area.condition() == condition)
    }
}

/// The roll-up condition over all areas.
pub const WORKER_PROBLEM: &str = "WorkerProblem";

/// How bad a finding is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub enum Severity {
    /// Worth knowing, and no problem: it is told, but moves no condition and no worker state.
    Info,
    /// The worker is, or will soon be, short of something.
    Warning,
    /// The worker or its pods do not work.
    Critical,
}

impl Severity {
    /// Lower-case name, for metrics.
    pub fn as_str(self) -> &'static str {
        match self {
            Severity::Info => "info",
            Severity::Warning => "warning",
            Severity::Critical => "critical",
        }
    }
}

/// A question to a node.
#[derive(Debug)]
pub struct Check {
    /// The finding code: reason of conditions, label of metrics, never renamed.
    pub code: &'static str,
    /// The condition that it feeds.
    pub area: Area,
    /// How bad its findings are, unless a finding says otherwise.
    pub severity: Severity,
    /// Why a finding matters, in one clause: it completes "this matters because ...".
    pub why: &'static str,
    /// What to do next, in one imperative sentence.
    pub next_step: &'static str,
    /// A finding counts after it was seen for this long.
    pub raise_after: Duration,
    /// A finding is over after it was not seen for this long.
    pub clear_after: Duration,
    /// The question.
    pub run: fn(&Look<'_>) -> Outcome,
}

/// What a check may see.
#[derive(Debug)]
pub struct Look<'a> {
    /// This look.
    pub now: &'a Snapshot,
    /// What earlier looks of this boot saw.
    pub before: &'a Remembered,
    /// What should be on this node.
    pub expected: &'a Expected,
    /// Thresholds.
    pub limits: &'a Limits,
}

/// A check's answer.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Outcome {
    /// Looked, and found nothing wrong.
    Healthy,
    /// The question does not arise here; the text says why.
    NotApplicable(String),
    /// Everything that is wrong, sorted by subject.
    Findings(Vec<Finding>),
    /// Could not look; the text names the thing and why.
    Unknown(String),
}

/// One thing that is wrong, about one subject.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Finding {
    /// What it is about: a chain, a file, a mount point. Stable from look to look; part of the finding's identity.
    pub subject: String,
    /// What is wrong and where, as a sentence without a full stop.
    pub detail: String,
    /// Overrides the check's severity, where this case is better or worse than the others.
    pub severity: Option<Severity>,
    /// Overrides the check's next step, where this case has a better one.
    pub next_step: Option<String>,
    /// Overrides the check's `raise_after`: the owner of the thing is alive and repairs it by itself within this time.
    pub owner_repairs_within: Option<Duration>,
}

impl Finding {
    /// A finding about `subject`.
    pub fn new(subject: impl Into<String>, detail: impl Into<String>) -> Self {
        Finding {
            subject: subject.into(),
            detail: detail.into(),
            severity: None,
            next_step: None,
            owner_repairs_within: None,
        }
    }

    /// With a severity of its own.
    #[must_use]
    pub fn severity(mut self, severity: Severity) -> Self {
        self.severity = Some(severity);
        self
    }

    /// With a next step of its own.
    #[must_use]
    pub fn next(mut self, step: impl Into<String>) -> Self {
        self.next_step = Some(step.into());
        self
    }

    /// Which its owner repairs by itself within this time.
    #[must_use]
    pub fn repaired_within(mut self, time: Duration) -> Self {
        self.owner_repairs_within = Some(time);
        self
    }
}

impl Outcome {
    /// Findings, or healthy when there are none.
    pub fn from_findings(mut findings: Vec<Finding>) -> Self {
        if findings.is_empty() {
            return Outcome::Healthy;
        }
        findings.sort_by(|a, b| a.subject.cmp(&b.subject));
        Outcome::Findings(findings)
    }

    /// Could not look.
    pub fn unknown(error: &LookError) -> Self {
        Outcome::Unknown(error.to_string())
    }
}

/// Unwraps what was seen, or returns from the check: unknown when it could not be looked at, and the given outcome when
/// it is absent.
macro_rules! seen {
    ($seen:expr, $absent:expr) => {
        match &$seen {
            $crate::facts::Seen::Yes(value) => value,
            $crate::facts::Seen::Absent => return $absent,
            $crate::facts::Seen::Unreadable(error) => return $crate::checks::Outcome::unknown(error),
        }
    };
}
pub(crate) use seen;

/// The first error among several looks.
pub(crate) fn first_error<'a>(errors: impl IntoIterator<Item = Option<&'a LookError>>) -> Option<&'a LookError> {
    errors.into_iter().flatten().next()
}

/// Joins an optional unknown to findings: findings win, then unknown, then healthy.
pub(crate) fn findings_or_unknown(findings: Vec<Finding>, error: Option<&LookError>) -> Outcome {
    match error {
        Some(error) if findings.is_empty() => Outcome::unknown(error),
        _ => Outcome::from_findings(findings),
    }
}

/// Thresholds of the checks. All can be set in the configuration file under `limits`.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields, default)]
pub struct Limits {
    /// `ConntrackNearFull`: entries in percent of `nf_conntrack_max`.
    pub conntrack_near_full_percent: u8,
    /// `ConntrackFull`: entries in percent of `nf_conntrack_max`.
    pub conntrack_full_percent: u8,
    /// `DiskPressureImminent`, `InodesExhaustionImminent`, `MemoryPressureImminent`, `PidPressureImminent`,
    /// `FdExhaustionImminent`: percent of the capacity above the kubelet's eviction threshold (catalogue H9).
    pub imminent_points: f64,
    /// The same, for a projection: minutes until the threshold at the present rate (catalogue H9).
    pub imminent_minutes: f64,
    /// The same and `DiskFull`, `InodesExhausted`, where the kubelet has no threshold: percent that is left.
    pub full_percent: f64,
    /// A sandbox younger than this many seconds need not have its route yet (catalogue R080).
    pub sandbox_settling_seconds: i64,
    /// `StaticPodNotRunning`: so many seconds after its manifest was written, or the kubelet started, a pod may take to run.
    pub static_pod_settling_seconds: i64,
    /// `EphemeralPortsNearFull`: local ports that one destination holds, in percent of those that `connect` chooses from.
    pub ephemeral_ports_percent: u8,
    /// `RuntimeObjectLeak`: containers that have ended and whose pod is gone (catalogue H14).
    pub abandoned_containers: u64,
    /// `RuntimeObjectLeak`: shims, sandboxes, snapshots, network namespaces and links without an owner, in all (catalogue H14).
    pub abandoned_objects: u64,
    /// `KubeletRestarting`: so many restarts ... (catalogue H4)
    pub kubelet_restarts: u32,
    /// ... within so many minutes.
    pub kubelet_restart_minutes: u32,
    /// `ApiWriteBlocked`: clients of Node status that matter give up after so many seconds: calico-node does (catalogue H11).
    pub status_write_seconds: u32,
    /// `VpeGatewaySuspected`: a refresh of the endpoint gateway takes so many minutes (catalogue H7).
    pub gateway_refresh_minutes: u32,
    /// What comes back is counted for so many days, and a machine that was exchanged is told for as long (catalogue H13).
    pub recurrence_days: u32,
}

impl Default for Limits {
    fn default() -> Self {
        Limits {
            conntrack_near_full_percent: 80,
            conntrack_full_percent: 98,
            imminent_points: 5.0,
            imminent_minutes: 30.0,
            full_percent: 1.0,
            sandbox_settling_seconds: 30,
            static_pod_settling_seconds: 180,
            ephemeral_ports_percent: 80,
            abandoned_containers: 500,
            abandoned_objects: 1000,
            kubelet_restarts: 2,
            kubelet_restart_minutes: 30,
            status_write_seconds: 2,
            gateway_refresh_minutes: 10,
            recurrence_days: 7,
        }
    }
}

/// Runs every check of the table over one look.
pub fn run_all(look: &Look<'_>) -> Vec<(&'static Check, Outcome)> {
    node::ALL.iter().map(|check| (*check, (check.run)(look))).collect()
}

/// Whether a look has not happened yet.
pub(crate) fn not_yet<T>(seen: &Seen<T>) -> bool {
    seen.error().is_some_and(|error| error.reason == crate::facts::Reason::NotYet)
}
