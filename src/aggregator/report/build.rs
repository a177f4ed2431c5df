//! From rows to a report. Pure.

use std::cmp::Reverse;
use std::collections::HashMap;

use jiff::Timestamp;

use super::around::{self, Judgement};
use super::count::{groups, summary};
use super::judge::Judged;
use super::judgement::LastJudgement;
use super::sandboxes::explain;
use super::scope::{choose_remedies, findings, keep_the_last};
use super::{API_VERSION, ClusterReport, Counts, Ended, Source, View};
use crate::aggregator::cluster::Cluster;
use crate::aggregator::stale::{Watchdog, agent_at_once};
use crate::verdict::{Now, WorkerState};

/// How it is found out whether agents are there.
#[derive(Debug, Clone, Copy)]
pub(crate) enum Agents<'a> {
    /// By a watchdog that has been looking all the time.
    Watched(&'a Watchdog),
    /// By one look.
    Once,
}

/// All that is counted, and what the workers' reports are made of.
#[derive(Debug)]
pub(in crate::aggregator) struct Overview<'a> {
    /// The report without its workers.
    pub(in crate::aggregator) report: ClusterReport,
    /// The workers, worst first.
    pub(in crate::aggregator) workers: Vec<Judged<'a>>,
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
    let Overview { report, workers } =
        overview_for(cluster, agents, source, |duplicates| around::findings(cluster, duplicates, only, now.wall), now);
    let wanted = workers.iter().filter(|worker| only.is_none_or(|only| only == worker.name));
    let told = |worker: &Judged<'_>| {
        let whole = only.is_some() && report.view.complete;
        let runtime = cluster.values.of(&worker.row.traits, "runtime").filter(|_| whole);
        let mut told = worker.report(only.is_some());
        told.runtime = runtime.map(|name| name.replacen("://", " ", 1));
        if whole {
            told.episodes.extend(calico_failed(cluster, worker));
            told.episodes.sort_by_key(|ended| Reverse(ended.cleared));
        }
        told
    };
    ClusterReport { nodes: wanted.map(told).collect(), ..report }
}

/// When calico-node failed there, as the aggregator remembers it.
fn calico_failed(cluster: &Cluster, worker: &Judged<'_>) -> impl Iterator<Item = Ended> {
    let all = cluster.memory.ended(&around::place(worker.name, worker.row));
    all.map(|(since, cleared, cure)| Ended { code: "CalicoNodeFailingOnNode".to_owned(), since, cleared, cure })
}

/// Looks at all workers; what is wrong with the cluster may be as it was judged a moment ago.
pub(in crate::aggregator) fn overview<'a>(
    cluster: &'a Cluster,
    agents: Agents<'_>,
    source: Source,
    last: &mut LastJudgement,
    now: Now,
) -> Overview<'a> {
    overview_for(cluster, agents, source, |duplicates| last.asked(cluster, duplicates, now.wall), now)
}

fn overview_for<'a>(
    cluster: &'a Cluster,
    agents: Agents<'_>,
    source: Source,
    around: impl FnOnce(&HashMap<&str, &str>) -> Judgement,
    now: Now,
) -> Overview<'a> {
    let view = view(cluster, now.wall);
    let judged = |(name, row)| {
        let agent = match agents {
            Agents::Watched(watchdog) => watchdog.agent(cluster, name, row, now),
            Agents::Once => agent_at_once(cluster, name, row, now.wall),
        };
        Judged::new(name, row, agent, &view)
    };
    let mut nodes: Vec<Judged<'a>> = cluster.nodes().map(judged).collect();
    let duplicates = cluster.duplicates();
    // What was known of the cluster is no longer known either while it cannot be seen.
    let (around, cluster_more, without_calico) = if view.complete { around(&duplicates) } else { Default::default() };
    explain(&mut nodes, &without_calico);
    let counted = findings(cluster, &duplicates, &nodes);
    choose_remedies(&counted, &mut nodes);
    keep_the_last(&duplicates, &mut nodes);
    nodes.sort_by(|a, b| rank(a).cmp(&rank(b)));
    let mut workers = Counts::default();
    for node in &nodes {
        workers.add(node);
    }
    let report = ClusterReport {
        api_version: API_VERSION.to_owned(),
        kind: "ClusterReport".to_owned(),
        generated_at: now.wall,
        source,
        summary: summary(&view, &workers),
        view,
        workers,
        zones: groups(&nodes, |node| node.row.zone.as_deref()),
        pools: groups(&nodes, |node| node.row.pool.as_deref()),
        findings: counted,
        cluster: around,
        cluster_more,
        nodes: Vec::new(),
    };
    Overview { report, workers: nodes }
}

/// Worst first; within a state what lasts longest, since the first that broke is likelier the cause.
fn rank<'a>(node: &Judged<'a>) -> (bool, Reverse<WorkerState>, Option<Timestamp>, &'a str) {
    // Of healthy workers only the name matters.
    let since = node.since.filter(|_| node.state != WorkerState::Normal);
    (node.row.deleting, Reverse(node.state), since, node.name)
}

pub(super) fn view(cluster: &Cluster, now: Timestamp) -> View {
    if let Some(lost) = cluster.nodes_sight.is_blind(now).or_else(|| cluster.api_sight.is_blind(now)) {
        return View::incomplete(lost.why.clone(), Some(lost.since));
    }
    if !cluster.nodes_sight.is_complete() {
        let lost = cluster.nodes_sight.is_lost();
        let why =
            lost.map_or_else(|| "the first list of the nodes is not complete yet".to_owned(), |lost| lost.why.clone());
        return View::incomplete(why, lost.map(|lost| lost.since));
    }
    let lost = cluster
        .agents_sight
        .as_ref()
        .and_then(|sight| sight.is_blind(now).or_else(|| sight.is_lost().filter(|_| !sight.is_complete())));
    View {
        complete: true,
        why: lost.map(|lost| format!("cannot see the agents' Pods: {}", lost.why)),
        since: lost.map(|lost| lost.since),
        cannot_look: around::unseen(cluster, now),
    }
}
