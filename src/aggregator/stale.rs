//! Whose agent or kubelet is gone, so that what the Node says is no longer known to be true. Pure.
//!
//! An agent has no heartbeat: that its Pod is Ready, which the kubelet reports, is its sign of life. When the kubelet is
//! silent itself, the readiness of its Pods says nothing, and the silence is what counts: unless the agent gives other signs of
//! life. One that puts right what was written of it, or answers when it is asked, is alive, and what it writes stands.

pub(super) mod signs;

use std::collections::HashMap;
use std::net::IpAddr;
use std::time::Duration;

use jiff::Timestamp;

use super::cluster::{Cluster, Shown};
use super::row::{AgentPod, Row};
use crate::verdict::{Now, Raised};

/// Findings by which the agent itself says that the kubelet is silent: it is alive, and knows more than we do.
const AGENT_KNOWS: [&str; 2] = ["KubeletDown", "KubeletUnhealthy"];
/// Unless they are about this, which only a kubelet that is heard says: the machine may have gone since.
const SAYS_ITSELF: &str = "Ready";

/// After a sign of life an agent is left alone for so long. It asks for the map every minute, of which several aggregators hear
/// a part each; one that cannot be asked is called gone, and puts that right, no more often than this.
const ALIVE: Duration = Duration::from_secs(600);

/// What is missing.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub(crate) enum Missing {
    /// The node has no Ready agent.
    Agent,
    /// The node's kubelet is silent.
    Kubelet,
}

/// How an agent is.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub(crate) enum Agent {
    /// It is there.
    Fresh,
    /// It is missing, for too short a time to count.
    Late,
    /// It is gone.
    Gone(Gone),
    /// Nobody looks, or the view is not complete.
    NotSeen,
}

/// What is gone since when.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub(crate) struct Gone {
    /// What.
    pub(crate) what: Missing,
    /// Since when, as far as that is known.
    pub(crate) since: Option<Timestamp>,
    /// The agent's Pod, if there is one.
    pub(crate) pod: Option<String>,
}

/// Remembers since when something is missing, on the clock of this machine alone.
#[derive(Debug, Default)]
pub(crate) struct Watchdog {
    missing: HashMap<Box<str>, Since>,
    /// What of the cluster was looked at last.
    looked_at: Option<Shown>,
}

#[derive(Debug, Clone, Copy)]
struct Since {
    what: Missing,
    noticed: Duration,
    wall: Timestamp,
    /// The node was marked when it was looked at last.
    marked: bool,
    /// The last sign of life of its agent since then, where the kubelet is silent.
    heard: Option<Duration>,
    /// Somebody has asked for the map in its name, and the agent was not yet asked whether it lives.
    claimed: bool,
}

impl Watchdog {
    /// Notes what is missing now. Whenever the view is not complete and current, everything is forgotten, so that the
    /// grace begins anew with the next complete one.
    pub(crate) fn step(&mut self, cluster: &Cluster, now: Now) {
        if !agents_are_seen(cluster) {
            self.begin_anew();
            return;
        }
        // Time alone makes nobody missing, and this is done every second.
        let shown = cluster.shown();
        if self.looked_at != Some(shown) {
            self.look(cluster, now);
            self.looked_at = Some(shown);
        }
        for (name, since) in &mut self.missing {
            let marked = cluster.node(name).is_some_and(Row::marked_stale);
            if since.marked && !marked {
                since.heard = Some(now.since_boot);
            }
            since.marked = marked;
        }
    }

    /// Who is missing, and who no longer.
    fn look(&mut self, cluster: &Cluster, now: Now) {
        self.missing.retain(|name, _| cluster.node(name).is_some());
        for (name, row) in cluster.nodes() {
            match missing(row, cluster.agents_on(name)) {
                None if self.missing.is_empty() => {}
                None => drop(self.missing.remove(name)),
                Some(what) if self.missing.get(name).is_some_and(|known| known.what == what) => {}
                Some(what) => {
                    let (noticed, wall, marked) = (now.since_boot, now.wall, row.marked_stale());
                    let since = Since { what, noticed, wall, marked, heard: None, claimed: false };
                    self.missing.insert(name.into(), since);
                }
            }
        }
    }

    /// Forgets since when anything is missing.
    pub(crate) fn begin_anew(&mut self) {
        self.missing.clear();
        self.looked_at = None;
    }

    /// The node has just been marked. An agent may put that right before the next step; should the watch only be late, what is
    /// taken for a sign of life here costs nothing, for the mark is there.
    pub(crate) fn marked(&mut self, name: &str) {
        if let Some(since) = self.missing.get_mut(name) {
            since.marked = true;
        }
    }

    /// Somebody asks something in the name of this node.
    pub(crate) fn claimed(&mut self, name: &str) {
        if let Some(since) = self.missing.get_mut(name) {
            since.claimed = true;
        }
    }

    /// Nodes whose agents are to be asked whether they live, each with its address: once for each claim, and not again while
    /// they count as alive for long.
    pub(crate) fn ask_whom(&mut self, cluster: &Cluster, now: Duration) -> Vec<(String, IpAddr)> {
        let due = |since: &Since| {
            let fresh = since.heard.is_some_and(|heard| now.saturating_sub(heard) < ALIVE / 2);
            since.what == Missing::Kubelet && since.claimed && !fresh
        };
        let due = self.missing.iter_mut().filter(|(_, since)| due(since)).take(signs::ASKED);
        due.filter_map(|(name, since)| {
            since.claimed = false;
            Some((name.to_string(), *cluster.node(name)?.addresses.first()?))
        })
        .collect()
    }

    /// The agent of this node has answered.
    pub(crate) fn heard(&mut self, name: &str, now: Duration) {
        if let Some(since) = self.missing.get_mut(name) {
            since.heard = Some(now);
        }
    }

    /// How the agent of this node is.
    pub(crate) fn agent(&self, cluster: &Cluster, name: &str, row: &Row, now: Now) -> Agent {
        if !agents_are_seen(cluster) || (row.kubelet_silent() && agent_knows(row)) {
            return Agent::NotSeen;
        }
        let Some(since) = self.missing.get(name) else { return Agent::Fresh };
        let alive = since.heard.is_some_and(|heard| now.since_boot.saturating_sub(heard) < ALIVE);
        if since.what == Missing::Kubelet && alive {
            return Agent::NotSeen;
        }
        if now.since_boot.saturating_sub(since.noticed) < grace(since.what, cluster) {
            return Agent::Late;
        }
        let gone = gone(since.what, row, cluster.agents_on(name), since.wall);
        Agent::Gone(Gone { since: gone.since.or(Some(since.wall)), ..gone })
    }

    /// Nodes on which the aggregator has to say that nobody knows: their agent is gone, and they still say otherwise.
    pub(crate) fn to_mark<'a>(&self, cluster: &'a Cluster, now: Now) -> Vec<(&'a str, &'a Row, Gone)> {
        if self.missing.is_empty() {
            return Vec::new();
        }
        let candidates = cluster.nodes().filter(|(name, row)| self.missing.contains_key(*name) && wants_mark(row));
        candidates
            .filter_map(|(name, row)| match self.agent(cluster, name, row, now) {
                Agent::Gone(gone) => Some((name, row, gone)),
                Agent::Fresh | Agent::Late | Agent::NotSeen => None,
            })
            .collect()
    }
}

/// How the agent is, for a program that looks only once: it cannot wait for the grace to pass, and goes by what the kubelet and
/// the control plane report, since when. A Pod that has just been started is not Ready before its first probe.
pub(crate) fn agent_at_once(cluster: &Cluster, name: &str, row: &Row, now: Timestamp) -> Agent {
    if !agents_are_seen(cluster) || (row.kubelet_silent() && agent_knows(row)) {
        return Agent::NotSeen;
    }
    let agents = cluster.agents_on(name);
    let Some(what) = missing(row, agents) else { return Agent::Fresh };
    let gone = gone(what, row, agents, now);
    let late = gone.since.is_some_and(|since| now.duration_since(since).unsigned_abs() < grace(what, cluster));
    if late { Agent::Late } else { Agent::Gone(gone) }
}

/// For how long it may be missing.
fn grace(what: Missing, cluster: &Cluster) -> Duration {
    let seconds = match what {
        // A rollout, or a restart of this process, takes less.
        Missing::Agent => cluster.limits().agent_grace_seconds,
        // After an outage of the API server itself all kubelets seem silent for a moment.
        Missing::Kubelet => cluster.limits().kubelet_grace_seconds,
    };
    Duration::from_secs(seconds.into())
}

/// Whether this node still says something that only a live agent can say. One on which no agent ever said anything is
/// left alone.
fn wants_mark(row: &Row) -> bool {
    use crate::verdict::WorkerState::Unknown;
    let fresh = row.conditions.iter().any(|condition| !condition.is_stale());
    !row.conditions.is_empty() && !row.deleting && (fresh || row.state != Some(Unknown))
}

fn agents_are_seen(cluster: &Cluster) -> bool {
    let agents = cluster.agents_sight.as_ref().is_some_and(super::sight::Sight::is_clear);
    agents && cluster.nodes_sight.is_clear() && cluster.api_sight.is_lost().is_none()
}

/// Whether the agent itself says that the kubelet is silent, and why.
pub(crate) fn agent_knows(row: &Row) -> bool {
    let silent = |it: &Raised| AGENT_KNOWS.contains(&it.code.as_str()) && it.subject != SAYS_ITSELF;
    !row.marked_stale() && row.findings.iter().any(silent)
}

fn missing(row: &Row, agents: &[AgentPod]) -> Option<Missing> {
    if row.kubelet_silent() {
        return (!agent_knows(row)).then_some(Missing::Kubelet);
    }
    // A full connection tracking table drops the kubelet's readiness probe too, even over loopback: an agent that has
    // said so is not Ready, and right.
    if !agents.is_empty() && row.has("ConntrackFull") {
        return None;
    }
    (!agents.iter().any(|pod| pod.ready)).then_some(Missing::Agent)
}

fn gone(what: Missing, row: &Row, agents: &[AgentPod], noticed: Timestamp) -> Gone {
    let pod = agents.first();
    let reported = match what {
        Missing::Kubelet => row.ready_since(),
        Missing::Agent => pod.and_then(|pod| pod.since.get()),
    };
    // Other clocks may be ahead of ours; nothing went missing after it was noticed.
    let since = reported.map(|reported| reported.min(noticed));
    Gone { what, since, pod: pod.map(|pod| pod.name.to_string()) }
}

#[cfg(test)]
mod tests;
