//! From rows to a report. Pure.

use std::cmp::Reverse;

use jiff::Timestamp;

use super::around;
use super::count::{groups, summary};
use super::scope::{choose_remedies, findings};
use super::{
    API_VERSION, AgentReport, AgentState, CANNOT_SEE, ClusterFinding, ClusterReport, Counts, NEVER_REPORTED,
    NodeReport, Ready, Source, View,
};
use crate::aggregator::cluster::Cluster;
use crate::aggregator::row::{Condition, Row};
use crate::aggregator::stale::{Agent, Missing, Watchdog, agent_at_once};
use crate::checks::WORKER_PROBLEM;
use crate::verdict::{AGENT_STALE, Now, SETTLING, Status, WorkerState};

/// How it is found out whether agents are there.
#[derive(Debug, Clone, Copy)]
pub(crate) enum Agents<'a> {
    /// By a watchdog that has been looking all the time.
    Watched(&'a Watchdog),
    /// By one look.
    Once,
}

/// Makes the report. With `only`, the list of workers holds just that one, with its conditions; the counts remain those
/// of the cluster.
pub(crate) fn build(
    cluster: &Cluster,
    agents: Agents<'_>,
    source: Source,
    only: Option<&str>,
    now: Now,
) -> ClusterReport {
    let view = view(cluster, now.wall);
    let mut nodes: Vec<NodeReport> = cluster
        .nodes()
        .map(|(name, row)| {
            let agent = match agents {
                Agents::Watched(watchdog) => watchdog.agent(cluster, name, row, now),
                Agents::Once => agent_at_once(cluster, name, row, now.wall),
            };
            node(name, row, &agent, &view, only == Some(name))
        })
        .collect();
    let duplicates = cluster.duplicates();
    let counted = findings(cluster, &duplicates, &nodes);
    choose_remedies(&counted, &mut nodes);
    nodes.sort_by(|a, b| rank(a).cmp(&rank(b)));
    let mut workers = Counts::default();
    for node in &nodes {
        workers.add(node);
    }
    // What was known of the cluster is no longer known either while it cannot be seen.
    let around = if view.complete { around::findings(cluster, &duplicates, only, now.wall) } else { Vec::new() };
    let report = ClusterReport {
        api_version: API_VERSION.to_owned(),
        kind: "ClusterReport".to_owned(),
        generated_at: now.wall,
        source,
        summary: summary(&view, &workers),
        view,
        workers,
        zones: groups(&nodes, |node| node.zone.as_deref()),
        pools: groups(&nodes, |node| node.pool.as_deref()),
        findings: counted,
        cluster: around,
        nodes: Vec::new(),
    };
    if let Some(only) = only {
        nodes.retain(|node| node.name == only);
    }
    ClusterReport { nodes, ..report }
}

/// What is wrong with the cluster; none while it cannot be seen.
pub(crate) fn of_cluster(cluster: &Cluster, now: Timestamp) -> Option<Vec<ClusterFinding>> {
    view(cluster, now).complete.then(|| around::findings(cluster, &cluster.duplicates(), None, now))
}

/// Worst first; within a state what lasts longest, since the first that broke is likelier the cause.
fn rank(node: &NodeReport) -> (bool, Reverse<WorkerState>, Option<Timestamp>, &str) {
    // Of healthy workers only the name matters.
    let since = node.since.filter(|_| node.state != WorkerState::Normal);
    (node.deleting, Reverse(node.state), since, &node.name)
}

fn view(cluster: &Cluster, now: Timestamp) -> View {
    if let Some(lost) = cluster.nodes_sight.is_blind(now).or_else(|| cluster.api_sight.is_blind(now)) {
        return View { complete: false, why: Some(lost.why.clone()), since: Some(lost.since) };
    }
    if !cluster.nodes_sight.is_complete() {
        let lost = cluster.nodes_sight.is_lost();
        let why =
            lost.map_or_else(|| "the first list of the nodes is not complete yet".to_owned(), |lost| lost.why.clone());
        return View { complete: false, why: Some(why), since: lost.map(|lost| lost.since) };
    }
    let lost = cluster
        .agents_sight
        .as_ref()
        .and_then(|sight| sight.is_blind(now).or_else(|| sight.is_lost().filter(|_| !sight.is_complete())));
    match lost {
        Some(lost) => View {
            complete: true,
            why: Some(format!("cannot see the agents' Pods: {}", lost.why)),
            since: Some(lost.since),
        },
        None => View { complete: true, why: None, since: None },
    }
}

fn node(name: &str, row: &Row, agent: &Agent, view: &View, whole: bool) -> NodeReport {
    let base = NodeReport {
        name: name.to_owned(),
        state: WorkerState::Unknown,
        settling: false,
        deleting: row.deleting,
        cordoned: row.unschedulable,
        since: None,
        zone: row.zone.as_deref().map(str::to_owned),
        pool: row.pool.as_deref().map(str::to_owned),
        reason: None,
        detail: None,
        next: None,
        findings: Vec::new(),
        ready: None,
        agent: AgentReport { state: AgentState::NotSeen, pod: None, since: None },
        created: row.created,
        conditions: Vec::new(),
    };
    if !view.complete {
        // What was known is no longer known: saying it would be an alarm, or an all-clear, about nothing.
        let reason = Some(CANNOT_SEE.to_owned());
        return NodeReport { reason, since: view.since, ..base };
    }
    let ready = row.ready.as_ref().map(|ready| Ready {
        status: ready.status,
        reason: ready.reason.to_string(),
        since: ready.since,
    });
    let conditions = if whole { row.conditions.iter().map(Condition::to_node_condition).collect() } else { Vec::new() };
    let base = NodeReport { ready, conditions, agent: agent_report(agent), findings: row.findings.clone(), ..base };
    match agent {
        Agent::Gone(_) | Agent::Fresh | Agent::Late | Agent::NotSeen if !row.told() => never_reported(base, agent, row),
        Agent::Gone(gone) => {
            let since = marked_since(row).or(gone.since);
            let (detail, next) = gone_text(gone.what);
            stale(base, since, detail, next)
        }
        Agent::Fresh if row.marked_stale() => stale(
            base,
            marked_since(row),
            "The agent is back, and has not said anything yet",
            "wait for its first look",
        ),
        Agent::Late | Agent::NotSeen if row.marked_stale() => {
            let what = if row.kubelet_silent() { Missing::Kubelet } else { Missing::Agent };
            let (detail, next) = gone_text(what);
            stale(base, marked_since(row), detail, next)
        }
        Agent::Fresh | Agent::Late | Agent::NotSeen => reported(base, row),
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

fn marked_since(row: &Row) -> Option<Timestamp> {
    row.condition(WORKER_PROBLEM).filter(|roll_up| roll_up.is_stale()).and_then(|roll_up| roll_up.since)
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

fn stale(base: NodeReport, since: Option<Timestamp>, detail: &str, next: &str) -> NodeReport {
    NodeReport {
        state: WorkerState::Unknown,
        since,
        reason: Some(AGENT_STALE.to_owned()),
        detail: Some(detail.to_owned()),
        next: Some(next.to_owned()),
        ..base
    }
}

fn never_reported(base: NodeReport, agent: &Agent, row: &Row) -> NodeReport {
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
    NodeReport {
        state: WorkerState::Unknown,
        settling: *agent == Agent::Fresh,
        since: row.created,
        reason: Some(NEVER_REPORTED.to_owned()),
        detail: Some(detail.to_owned()),
        next: Some(next.to_owned()),
        ..base
    }
}

/// What the agent says.
fn reported(base: NodeReport, row: &Row) -> NodeReport {
    let roll_up = row.condition(WORKER_PROBLEM);
    let worst = row.findings.iter().map(|finding| finding.severity).max();
    // The annotation is the agent's word; without it (somebody removed it) the findings and the roll-up say the same.
    let state = row.state.unwrap_or_else(|| match (worst, roll_up.map(|it| it.status)) {
        (Some(crate::checks::Severity::Critical), _) => WorkerState::Critical,
        (Some(crate::checks::Severity::Warning), _) | (_, Some(Status::True)) => WorkerState::Warning,
        (_, Some(Status::False)) => WorkerState::Normal,
        (_, Some(Status::Unknown) | None) => WorkerState::Unknown,
    });
    let since = row.since.or_else(|| roll_up.and_then(|it| it.since));
    let settling = row.settling();
    let (reason, detail, next) = match (row.findings.first(), state) {
        (_, WorkerState::Normal) => (None, None, None),
        (Some(root), _) => (Some(root.code.clone()), Some(root.detail.clone()), Some(root.next.clone())),
        (None, _) => (roll_up.map(|it| it.reason.to_string()), roll_up.map(|it| it.message.to_string()), None),
    };
    let next = next.or_else(|| settling.then(|| "wait for the first look".to_owned()));
    let reason = reason.or_else(|| settling.then(|| SETTLING.to_owned()));
    NodeReport { state, settling, since, reason, detail, next, ..base }
}
