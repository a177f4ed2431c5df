//! How one worker is, by its row and its agent: borrowed from there, so that thousands cost little. Pure.

use std::hash::{DefaultHasher, Hash as _, Hasher as _};
use std::rc::Rc;

use jiff::Timestamp;

use super::{AgentReport, AgentState, CANNOT_SEE, Ended, NEVER_REPORTED, NodeReport, Ready, View};
use crate::aggregator::row::{Condition, Episode, Row};
use crate::aggregator::stale::{Agent, Missing};
use crate::checks::Severity;
use crate::verdict::{AGENT_STALE, Raised, SETTLING, Status, WorkerState};

/// A worker, as it counts.
#[derive(Debug)]
pub(in crate::aggregator) struct Judged<'a> {
    pub(in crate::aggregator) name: &'a str,
    pub(in crate::aggregator) row: &'a Row,
    pub(in crate::aggregator) state: WorkerState,
    pub(super) settling: bool,
    pub(super) since: Option<Timestamp>,
    pub(super) reason: Option<&'a str>,
    detail: Option<&'a str>,
    pub(super) next: Option<&'a str>,
    /// What is to be done where many workers have the same, where something else comes first, or where it is the last one.
    pub(super) remedy: Option<Rc<str>>,
    /// Pods do not start because calico-node does not run there, which is told by this code.
    pub(super) without_calico: Option<&'static str>,
    agent: Agent,
    /// The cluster is seen. If not, nothing is said about it but that.
    seen: bool,
}

impl<'a> Judged<'a> {
    pub(super) fn new(name: &'a str, row: &'a Row, agent: Agent, view: &View) -> Self {
        let base = Judged {
            name,
            row,
            state: WorkerState::Unknown,
            settling: false,
            since: None,
            reason: None,
            detail: None,
            next: None,
            remedy: None,
            without_calico: None,
            agent: Agent::NotSeen,
            seen: view.complete,
        };
        if !view.complete {
            // What was known is no longer known: saying it would be an alarm, or an all-clear, about nothing.
            return Judged { reason: Some(CANNOT_SEE), since: view.since, ..base };
        }
        let judged = match &agent {
            Agent::Gone(_) | Agent::Fresh | Agent::Late | Agent::NotSeen if !row.told() => base.never_reported(&agent),
            Agent::Gone(gone) => base.stale(marked_since(row).or(gone.since), gone_text(gone.what)),
            Agent::Fresh if row.marked_stale() => base.stale(
                marked_since(row),
                ("The agent is back, and has not said anything yet", "wait for its first look"),
            ),
            Agent::Late | Agent::NotSeen if row.marked_stale() => {
                let what = if row.kubelet_silent() { Missing::Kubelet } else { Missing::Agent };
                base.stale(marked_since(row), gone_text(what))
            }
            Agent::Fresh | Agent::Late | Agent::NotSeen => base.reported(),
        };
        Judged { agent, ..judged }
    }

    fn stale(self, since: Option<Timestamp>, (detail, next): (&'static str, &'static str)) -> Self {
        Judged { since, reason: Some(AGENT_STALE), detail: Some(detail), next: Some(next), ..self }
    }

    fn never_reported(self, agent: &Agent) -> Self {
        let (detail, next) = match agent {
            Agent::Gone(gone) if gone.what == Missing::Kubelet => gone_text(Missing::Kubelet),
            Agent::Fresh | Agent::Late => {
                ("The agent has not reported yet", "wait for its first look; if it lasts, read the agent's log")
            }
            Agent::Gone(_) | Agent::NotSeen => (
                "No agent has ever reported on this node",
                "find out why the DaemonSet has no ready Pod here: `kubectl -n nodevitals describe daemonset nodevitals-agent`",
            ),
        };
        Judged {
            settling: *agent == Agent::Fresh,
            since: self.row.created.get(),
            reason: Some(NEVER_REPORTED),
            detail: Some(detail),
            next: Some(next),
            ..self
        }
    }

    /// What the agent says.
    fn reported(self) -> Self {
        let row = self.row;
        let roll_up = row.roll_up();
        let worst = row.findings.iter().map(|finding| finding.severity).max();
        // The annotation is the agent's word; without it (somebody removed it) the findings and the roll-up say the same.
        let state = row.state.unwrap_or_else(|| match (worst, roll_up.map(|it| it.status)) {
            (Some(Severity::Critical), _) => WorkerState::Critical,
            (Some(Severity::Warning), _) | (_, Some(Status::True)) => WorkerState::Warning,
            (_, Some(Status::False)) => WorkerState::Normal,
            (_, Some(Status::Unknown) | None) => WorkerState::Unknown,
        });
        let since = row.since.get().or_else(|| roll_up.and_then(Condition::since));
        let settling = row.settling();
        let (reason, detail, next) = match (row.findings.first(), state) {
            (_, WorkerState::Normal) => (None, None, None),
            (Some(root), _) => (Some(&*root.code), Some(&*root.detail), Some(&*root.next)),
            (None, _) => (roll_up.map(Condition::reason), roll_up.map(Condition::message), None),
        };
        let next = next.or(settling.then_some("wait for the first look"));
        let reason = reason.or(settling.then_some(SETTLING));
        Judged { state, settling, since, reason, detail, next, ..self }
    }

    /// What its agent found, or said last.
    pub(in crate::aggregator) fn findings(&self) -> &'a [Raised] {
        if self.seen { &self.row.findings } else { &[] }
    }

    /// Another number where its report may be another one.
    pub(super) fn key(&self) -> u64 {
        let mut hasher = DefaultHasher::new();
        (self.row.stamp, self.seen, self.since, &self.agent, &self.remedy).hash(&mut hasher);
        hasher.finish()
    }

    /// Its report, with its conditions where it is the only one that was asked for.
    pub(super) fn report(&self, whole: bool) -> NodeReport {
        let row = self.row;
        let ready = row.ready.as_ref().filter(|_| self.seen).map(|ready| Ready {
            status: ready.status,
            reason: ready.reason().to_owned(),
            since: ready.since(),
        });
        // Of an agent that is gone it is not known whether they were started anew since.
        let started = row.restarts;
        let current = self.seen && whole && matches!(self.agent, Agent::Fresh | Agent::Late);
        let conditions = row.conditions.iter().filter(|_| self.seen && whole).map(Condition::to_node_condition);
        NodeReport {
            name: self.name.to_owned(),
            state: self.state,
            settling: self.settling,
            deleting: row.deleting,
            cordoned: row.unschedulable,
            since: self.since,
            zone: row.zone.as_deref().map(str::to_owned),
            pool: row.pool.as_deref().map(str::to_owned),
            reason: self.reason.map(str::to_owned),
            detail: self.detail.map(str::to_owned),
            next: self.remedy.as_deref().or(self.next).map(str::to_owned),
            findings: self.findings().to_vec(),
            more: row.more.filter(|_| self.seen),
            episodes: row.episodes.iter().filter(|_| self.seen && whole).map(ended).collect(),
            rebooted: row.rebooted.get().filter(|_| whole),
            updated: row.updated.get().filter(|_| whole),
            kubelet_started: started.kubelet_started().filter(|_| current),
            runtime: None,
            runtime_started: started.runtime_started().filter(|_| current),
            ready,
            agent: agent_report(&self.agent),
            created: row.created.get(),
            conditions: conditions.collect(),
        }
    }
}

fn agent_report(agent: &Agent) -> AgentReport {
    let (state, gone) = match agent {
        Agent::Fresh => (AgentState::Fresh, None),
        Agent::Late => (AgentState::Late, None),
        Agent::NotSeen => (AgentState::NotSeen, None),
        Agent::Gone(gone) if gone.what == Missing::Kubelet => (AgentState::KubeletSilent, Some(gone)),
        Agent::Gone(gone) if gone.pod.is_some() => (AgentState::Stale, Some(gone)),
        Agent::Gone(gone) => (AgentState::Missing, Some(gone)),
    };
    AgentReport { state, pod: gone.and_then(|gone| gone.pod.clone()), since: gone.and_then(|gone| gone.since) }
}

fn ended(episode: &Episode) -> Ended {
    let Episode { code, since, cleared, cure } = episode;
    Ended { code: code.to_string(), since: *since, cleared: *cleared, cure: *cure }
}

fn marked_since(row: &Row) -> Option<Timestamp> {
    row.roll_up().filter(|roll_up| roll_up.is_stale()).and_then(Condition::since)
}

fn gone_text(what: Missing) -> (&'static str, &'static str) {
    match what {
        Missing::Agent => (
            "The agent on this node is gone, so what it said last is no longer known to be true",
            "look at the agent's Pod on this node: `kubectl -n nodevitals get pods -o wide`",
        ),
        Missing::Kubelet => (
            "The kubelet is silent, so nobody knows how this node is",
            "find out whether the machine runs and is reachable; if so, look at the kubelet on it: `journalctl -u kubelet`",
        ),
    }
}
