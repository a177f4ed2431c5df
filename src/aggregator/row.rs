//! What is kept of one Node, and of one Pod of the agent.

use std::net::IpAddr;
use std::num::{NonZeroI64, NonZeroU32};
use std::sync::Arc;

use ipnet::IpNet;
use jiff::Timestamp;
use serde::Deserialize as _;
use serde_json::Value;

use super::load::Load;
use super::mtus::Mtus;
use super::object::time;
use super::restarts::Restarts;
use super::small::Time;
use super::traits::Traits;
use crate::checks::{Area, WORKER_PROBLEM};
use crate::verdict::{
    AGENT_STALE, Cure, NodeCondition, Raised, SETTLING, Status, Told, WorkerState, annotation, parse_findings,
};

/// Findings of one node that are kept: the agent writes at most 8 KiB of them, others may write anything.
const MOST_FINDINGS: usize = 64;
/// Episodes that are over, of one node, that are kept; longer codes are nobody's.
const MOST_EPISODES: usize = 8;
const LONGEST_CODE: usize = 64;
/// An annotation longer than this is not the agent's, and is not read.
const LONGEST_ANNOTATION: usize = 64 * 1024;
/// Longer messages and reasons are cut: nobody of ours writes them.
const LONGEST_TEXT: usize = 2048;

/// The place of the roll-up in the order of [`Condition::kind`].
const ROLL_UP: u8 = 2;

/// What is kept of a Node.
#[derive(Debug, Clone, Default, PartialEq)]
#[expect(clippy::struct_excessive_bools, reason = "each is a fact of its own, as the API server says it")]
pub(crate) struct Row {
    /// `metadata.resourceVersion`: what the aggregator writes must not land on anything newer.
    pub(crate) version: Box<str>,
    /// When it joined.
    pub(crate) created: Time,
    /// It is being deleted.
    pub(crate) deleting: bool,
    /// It is cordoned.
    pub(crate) unschedulable: bool,
    /// Its zone.
    pub(crate) zone: Option<Arc<str>>,
    /// Its worker pool.
    pub(crate) pool: Option<Arc<str>>,
    /// Its pool puts a new worker in the place of one that goes, and no autoscaler takes this one away.
    pub(crate) refilled: bool,
    /// `InternalIP`, and what Calico announces.
    pub(crate) addresses: Box<[IpAddr]>,
    /// Its ends of tunnels.
    pub(crate) tunnels: Box<[IpAddr]>,
    /// `ExternalIP`.
    pub(crate) external: Box<[IpAddr]>,
    /// `spec.podCIDRs`.
    pub(crate) pod_cidrs: Box<[IpNet]>,
    /// What it may share with others.
    pub(crate) traits: Traits,
    /// Hash of `bootID`; 0 where it is not said.
    pub(crate) boot: u64,
    /// Hash of `systemUUID`; 0 where it is not said.
    pub(crate) machine: u64,
    /// Hash of `machineID`, which an installation writes; 0 where it is not said.
    pub(crate) installed: u64,
    /// When it was seen to have been installed anew.
    pub(crate) reloaded: Time,
    /// When it booted, as its agent says, or was seen to have booted anew.
    pub(crate) rebooted: Time,
    /// When it was seen to have another kubelet, kernel, system or runtime than before.
    pub(crate) updated: Time,
    /// When its kubelet and its runtime were started anew, as its agent says.
    pub(crate) restarts: Restarts,
    /// When it was cordoned, as far as its taint says.
    pub(crate) cordoned_at: Time,
    /// The same; where it does not say, since when it has been seen cordoned.
    pub(crate) cordoned_since: Time,
    /// Somebody says that it is cordoned on purpose.
    pub(crate) maintained: bool,
    /// The kubelet's own condition.
    pub(crate) ready: Option<Condition>,
    /// The annotation `state`.
    pub(crate) state: Option<WorkerState>,
    /// The annotation `since`.
    pub(crate) since: Time,
    /// `NetworkUnavailable`, which calico-node writes, or another network.
    pub(crate) network: Option<Condition>,
    /// What its agent says of its MTUs.
    pub(crate) mtus: Mtus,
    /// Since when it says just that.
    pub(crate) mtus_since: Time,
    /// It is in a VPC, whose zones have limits of their own.
    pub(crate) vpc: bool,
    /// What its agent says of its connections, in a VPC.
    pub(crate) load: Option<Box<Load>>,
    /// It carries the taint that belongs to that condition.
    pub(crate) network_taint: bool,
    /// When that taint came or went, as far as it is known.
    pub(crate) network_taint_since: Time,
    /// How far its Calico has moved to calico-system.
    pub(crate) migration: Option<Arc<str>>,
    /// It is one of the control plane's, on which no other Pods are.
    pub(crate) control_plane: bool,
    /// Our conditions, at most one of each type.
    pub(crate) conditions: Vec<Condition>,
    /// Our findings, worst first.
    pub(crate) findings: Vec<Raised>,
    /// How many more its agent has that did not fit.
    pub(crate) more: Option<NonZeroU32>,
    /// What was there and is over, the last first.
    pub(crate) episodes: Box<[Episode]>,
    /// The list in which it was last seen.
    pub(super) list: u32,
    /// Another number with every change that the report may show, and another one than that of any other row.
    pub(super) stamp: u64,
}

/// A finding that is over. Codes are shared by all rows.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Episode {
    pub(super) code: Arc<str>,
    pub(super) since: Timestamp,
    pub(super) cleared: Timestamp,
    pub(super) cure: Option<Cure>,
}

/// A condition. There are ten of each node, so that it is small.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Condition {
    words: Arc<Words>,
    /// In seconds since the epoch, which is all that Kubernetes writes.
    since: Option<NonZeroI64>,
    /// Its place in the order of [`Condition::kind`].
    kind: u8,
    /// Status.
    pub(crate) status: Status,
}

/// What a condition says, which many nodes have in common.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Words {
    /// Reason.
    pub(super) reason: Box<str>,
    /// Message.
    pub(super) message: Box<str>,
}

/// A Pod of the agent.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct AgentPod {
    /// Its name.
    pub(crate) name: Box<str>,
    /// Whether it is Ready.
    pub(crate) ready: bool,
    /// Since when.
    pub(crate) since: Time,
    pub(super) list: u32,
}

impl Row {
    /// Our condition of this type.
    pub(crate) fn condition(&self, kind: &str) -> Option<&Condition> {
        let place = Condition::place(kind)?;
        self.conditions.iter().find(|condition| condition.kind == place)
    }

    /// Its roll-up. Asked of all workers again and again.
    pub(crate) fn roll_up(&self) -> Option<&Condition> {
        self.conditions.iter().find(|condition| condition.kind == ROLL_UP)
    }

    /// Whether the agent itself says this, and nobody has marked the node since.
    pub(crate) fn has(&self, code: &str) -> bool {
        self.findings.iter().any(|finding| finding.code == code) && !self.marked_stale()
    }

    /// Since when the agent itself says this, if nobody has marked the node since.
    pub(crate) fn since_of(&self, code: &str) -> Option<Timestamp> {
        let all = self.findings.iter().filter(|finding| finding.code == code && !self.marked_stale());
        all.map(|finding| finding.since).min()
    }

    /// Whether its kubelet says that it is Ready.
    pub(crate) fn is_ready(&self) -> bool {
        self.ready.as_ref().is_some_and(|ready| ready.status == Status::True)
    }

    /// What is seen of a node only by comparing it with how it was before.
    pub(super) fn goes_on_from(&mut self, before: &Row, now: Timestamp) {
        let booted = before.boot != 0 && self.boot != 0 && before.boot != self.boot;
        self.rebooted = if booted { now.into() } else { before.rebooted };
        self.restarts = if booted { Restarts::default() } else { before.restarts };
        let installed = before.installed != 0 && self.installed != 0 && before.installed != self.installed;
        self.reloaded = if installed { now.into() } else { before.reloaded };
        self.traits.goes_on_from(&before.traits);
        let updated = before.traits.is_known() && self.traits.is_known() && !self.traits.same_software(&before.traits);
        self.updated = if updated { now.into() } else { before.updated };
        self.cordoned_since = before.cordoned_since;
        (self.mtus, self.mtus_since) = (before.mtus, before.mtus_since);
        self.load.clone_from(&before.load);
        let kept = self.network_taint_since.or(before.network_taint_since);
        self.network_taint_since = if self.network_taint == before.network_taint { kept } else { now.into() };
        // Calico writes the time anew with each write, whether the status has changed or not.
        if let (Some(own), Some(before)) = (&mut self.network, &before.network)
            && own.status == before.status
        {
            own.since = before.since.or(own.since);
        }
    }

    /// Whether the map of the cluster says the same of both.
    pub(super) fn same_on_the_map(&self, other: &Row) -> bool {
        self.is_ready() == other.is_ready()
            && self.created == other.created
            && self.addresses == other.addresses
            && self.tunnels == other.tunnels
            && self.pod_cidrs == other.pod_cidrs
    }

    /// Whether an agent ever said anything about this node.
    pub(crate) fn told(&self) -> bool {
        !self.conditions.is_empty() || self.state.is_some()
    }

    /// Whether the aggregator has said that nobody knows how this node is, and no agent has spoken since.
    pub(crate) fn marked_stale(&self) -> bool {
        self.roll_up().is_some_and(Condition::is_stale)
    }

    /// Whether the agent has not finished its first look.
    pub(crate) fn settling(&self) -> bool {
        self.roll_up().is_some_and(|roll_up| roll_up.status == Status::Unknown && roll_up.reason() == SETTLING)
    }

    /// Whether the node's kubelet has stopped reporting, as the control plane sees it.
    pub(crate) fn kubelet_silent(&self) -> bool {
        self.ready.as_ref().is_some_and(|ready| ready.status == Status::Unknown)
    }

    /// Since when it is Ready, or not, or silent.
    pub(crate) fn ready_since(&self) -> Option<Timestamp> {
        self.ready.as_ref().and_then(Condition::since)
    }
}

impl Condition {
    /// One of this type, if it is one that is kept.
    pub(super) fn new(
        kind: &str,
        status: Status,
        words: impl FnOnce() -> Arc<Words>,
        since: Option<Timestamp>,
    ) -> Option<Condition> {
        let kind = Condition::place(kind)?;
        let since = since.and_then(|since| NonZeroI64::new(since.as_second()));
        Some(Condition { words: words(), since, kind, status })
    }

    /// The place of a type in their order, if it is one that is kept.
    fn place(kind: &str) -> Option<u8> {
        match kind {
            READY => Some(0),
            NETWORK => Some(1),
            WORKER_PROBLEM => Some(ROLL_UP),
            area => u8::try_from(3 + Area::ALL.into_iter().position(|it| it.condition() == area)?).ok(),
        }
    }

    /// Type.
    pub(crate) fn kind(&self) -> &'static str {
        match self.kind {
            0 => READY,
            1 => NETWORK,
            ROLL_UP => WORKER_PROBLEM,
            area => Area::ALL[usize::from(area) - 3].condition(),
        }
    }

    /// Reason.
    pub(crate) fn reason(&self) -> &str {
        &self.words.reason
    }

    /// Message.
    pub(crate) fn message(&self) -> &str {
        &self.words.message
    }

    /// When the status last changed.
    pub(crate) fn since(&self) -> Option<Timestamp> {
        Timestamp::from_second(self.since?.get()).ok()
    }

    /// What it says, if it is just this.
    pub(super) fn shares(&self, reason: &str, message: &str) -> Option<Arc<Words>> {
        (self.reason() == reason && self.message() == message).then(|| Arc::clone(&self.words))
    }

    /// Whether it says that its agent is gone.
    pub(crate) fn is_stale(&self) -> bool {
        self.status == Status::Unknown && self.reason() == AGENT_STALE
    }

    /// As it is on the Node.
    pub(crate) fn to_node_condition(&self) -> NodeCondition {
        NodeCondition {
            kind: self.kind().to_owned(),
            status: self.status,
            reason: self.reason().to_owned(),
            message: self.message().to_owned(),
            last_transition_time: self.since(),
        }
    }
}

/// The kubelet's own condition.
pub(super) const READY: &str = "Ready";
/// The network's.
pub(super) const NETWORK: &str = "NetworkUnavailable";

/// The row of a node whose agent is in this process.
pub(super) fn row_from_told(told: &Told, before: Row) -> Row {
    let conditions = told.conditions.iter().filter_map(|condition| {
        let words =
            || Arc::new(Words { reason: condition.reason.as_str().into(), message: condition.message.as_str().into() });
        Condition::new(&condition.kind, condition.status, words, condition.last_transition_time)
    });
    Row {
        conditions: conditions.collect(),
        state: told.annotations.get(annotation::STATE).map(|state| WorkerState::parse(state)),
        since: told.annotations.get(annotation::SINCE).and_then(|since| since.parse::<Timestamp>().ok()).into(),
        findings: told.annotations.get(annotation::FINDINGS).map(|json| findings(json)).unwrap_or_default(),
        more: told.annotations.get(annotation::FINDINGS).and_then(|json| more(json)),
        episodes: told
            .annotations
            .get(annotation::EPISODES)
            .map(|json| episodes(json, &mut |code| code.into()))
            .unwrap_or_default(),
        ..before
    }
}

/// The annotation `findings`, as far as it is the agent's.
pub(super) fn findings(json: &str) -> Vec<Raised> {
    if json.len() > LONGEST_ANNOTATION {
        return Vec::new();
    }
    let mut findings = parse_findings(json);
    findings.truncate(MOST_FINDINGS);
    findings.shrink_to_fit();
    findings
}

/// How many more there are than the annotation `findings` has room for.
pub(super) fn more(json: &str) -> Option<NonZeroU32> {
    let (_, count) = json.rsplit_once(r#"{"truncated":"#)?;
    count.strip_suffix("}]")?.parse().ok()
}

/// The annotation `episodes`, as far as it is the agent's.
pub(super) fn episodes(json: &str, word: &mut dyn FnMut(&str) -> Arc<str>) -> Box<[Episode]> {
    if json.len() > LONGEST_ANNOTATION {
        return Box::default();
    }
    let all: Vec<Value> = serde_json::from_str(json).unwrap_or_default();
    let read = |it: &Value| {
        Some(Episode {
            code: word(it["code"].as_str().filter(|code| code.len() <= LONGEST_CODE)?),
            since: time(&it["since"])?,
            cleared: time(&it["cleared"])?,
            cure: Cure::deserialize(&it["cure"]).ok(),
        })
    };
    all.iter().take(MOST_EPISODES).filter_map(read).collect()
}

/// What is kept of a text.
pub(super) fn clipped(text: &str) -> &str {
    let end = text.char_indices().map(|(at, _)| at).take_while(|at| *at <= LONGEST_TEXT).last().unwrap_or(0);
    if text.len() <= LONGEST_TEXT { text } else { &text[..end] }
}
