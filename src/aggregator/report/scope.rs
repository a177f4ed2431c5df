//! On how many workers something is, out of how many, and what follows from that (catalogue R115, R122). Pure.

use std::collections::{BTreeMap, HashMap};
use std::rc::Rc;

use jiff::Timestamp;

use super::contrast::{Crowd, Failing, Member};
use super::judge::Judged;
use super::sandboxes::{calico_first, is_root};
use super::typha::named;
use super::{FindingCount, Scope};
use crate::aggregator::cluster::Cluster;
use crate::aggregator::row::Row;
use crate::checks::{Area, Severity};
use crate::verdict::{AGENT_STALE, WorkerState};

/// What a worker says whose clock is not the API server's.
const CLOCK: &str = "ClockSkewed";

/// One code, while it is counted.
struct Count {
    severity: Severity,
    area: Area,
    /// On these workers it is, by their place.
    on: Vec<usize>,
    /// Of these, the ones by which the scope is judged.
    counted: Vec<Failing>,
    first: Timestamp,
}

/// What is wrong now, by code: the worst first, then what is on most workers. What an agent that is gone said last does
/// not count, but that it is gone does.
pub(super) fn findings(cluster: &Cluster, duplicates: &HashMap<&str, &str>, nodes: &[Judged<'_>]) -> Vec<FindingCount> {
    let eligible = |node: &Judged<'_>| !node.row.deleting && !duplicates.contains_key(node.name);
    let mut by_code: BTreeMap<&str, Count> = BTreeMap::new();
    for (at, node) in nodes.iter().enumerate().filter(|(_, node)| !node.row.deleting) {
        for (code, severity, area, since, root) in told(node) {
            let new = || Count { severity, area, on: Vec::new(), counted: Vec::new(), first: since };
            let count = by_code.entry(code).or_insert_with(new);
            count.severity = count.severity.max(severity);
            if count.on.last() != Some(&at) {
                count.on.push(at);
            }
            if root
                && eligible(node)
                && !in_maintenance(node.row, since)
                && count.counted.last().is_none_or(|(last, _)| *last != at)
            {
                count.first = if count.counted.is_empty() { since } else { count.first.min(since) };
                count.counted.push((at, since));
            }
        }
    }
    if by_code.is_empty() {
        return Vec::new();
    }
    let calico = cluster.calico_versions();
    let hosted = cluster.hosted.as_ref();
    let looked_at = |node: &Judged<'_>| eligible(node) && node.state != WorkerState::Unknown;
    let members = nodes.iter().map(|node| Member {
        row: node.row,
        calico: calico.get(node.name).copied(),
        hosts: hosted.and_then(|it| Some(&**it.on.get(node.name)?)),
        counts: looked_at(node) && !node.row.unschedulable,
    });
    let crowd = Crowd::new(&cluster.values, hosted, members.collect());
    let mut list: Vec<FindingCount> =
        by_code.into_iter().map(|(code, count)| counted(code, &count, &crowd, cluster)).collect();
    list.sort_by(|a, b| (b.severity, b.nodes, a.area, &a.code).cmp(&(a.severity, a.nodes, b.area, &b.code)));
    list
}

type Told<'a> = (&'a str, Severity, Area, Timestamp, bool);

/// What counts of what is told about a worker.
fn told<'a>(node: &Judged<'a>) -> impl Iterator<Item = Told<'a>> {
    let known = matches!(node.state, WorkerState::Critical | WorkerState::Warning);
    let findings = node.row.findings.iter().filter(move |_| known);
    let gone = node.reason.filter(|reason| *reason == AGENT_STALE).and(node.since);
    findings
        .map(|finding| (finding.code.as_str(), finding.severity, finding.area, finding.since, is_root(node, finding)))
        .chain(gone.map(|since| (AGENT_STALE, Severity::Warning, Area::ControlPlanePath, since, true)))
}

/// Whether the worker was cordoned before this began: somebody works on it. One that was cordoned afterwards was cordoned
/// because of it.
pub(super) fn in_maintenance(row: &Row, since: Timestamp) -> bool {
    row.unschedulable && row.cordoned_at.get().is_none_or(|at| at < since)
}

fn counted(code: &str, count: &Count, crowd: &Crowd<'_>, cluster: &Cluster) -> FindingCount {
    let eligible = crowd.eligible(&count.counted);
    let scope = Scope::of(count.counted.len(), eligible, cluster.limits());
    let suspects = named(cluster, crowd.suspects(&count.counted));
    let shared = suspects.first().map(|suspect| format!("{} {}", suspect.attribute, suspect.value));
    let next = remedy(code, scope, shared.as_deref(), count.first);
    FindingCount {
        code: code.to_owned(),
        severity: count.severity,
        area: count.area,
        nodes: count.on.len(),
        counted: count.counted.len(),
        eligible,
        scope,
        since: Some(count.first),
        shared,
        suspects,
        before: cluster.surroundings.journal.before(count.first),
        next,
    }
}

/// What to do about something that is on more than a few workers. The remedies are opposites: what helps one worker makes
/// an outage of forty.
fn remedy(code: &str, scope: Scope, shared: Option<&str>, first: Timestamp) -> Option<String> {
    let first = crate::facts::utc(first);
    match (scope, shared) {
        (Scope::None | Scope::Few, _) => None,
        (Scope::Subset, Some(shared)) => Some(format!(
            "do not repair these workers one by one: suspect {shared}, and find out what changed there before {first}; gather the evidence of two or three of them first"
        )),
        (Scope::Subset, None) => Some(format!(
            "do not repair these workers one by one: find out what they share (recent updates, zone, subnet, pool, a component) and what changed before {first}; gather the evidence of two or three of them first"
        )),
        // Each of them compares its clock with the API server's: one clock that is wrong is likelier than all of theirs (R038).
        (Scope::Most | Scope::All, _) if code == CLOCK => Some(format!(
            "do not cordon, drain, reboot or reload workers for this: it is the API server's clock that is wrong, or that of a time server that all of them use; look at `chronyc tracking` or `timedatectl` on the control plane's machines, or hand the provider a support case, and find out what changed before {first}"
        )),
        (Scope::Most | Scope::All, _) => Some(format!(
            "do not cordon, drain, reboot or reload workers for this: the cause is in what all of them use (configuration, datastore, control plane); find out what changed before {first}, and gather the evidence of two or three of them"
        )),
    }
}

/// A worker's own next step is for it alone; where many have the same, the next step is the cluster's.
pub(super) fn choose_remedies(findings: &[FindingCount], nodes: &mut [Judged<'_>]) {
    let wide = findings.iter().filter_map(|FindingCount { code, counted, eligible, next, .. }| {
        Some((code.as_str(), format!("{counted} of {eligible} workers have this: {}", next.as_ref()?).into()))
    });
    let wide: BTreeMap<&str, Rc<str>> = wide.collect();
    for node in nodes {
        node.remedy = node.reason.and_then(|reason| wide.get(reason)).map(Rc::clone).or_else(|| calico_first(node));
    }
}

/// What is said before a step that takes away the last worker on which Pods can be put (R070).
pub(super) const ANOTHER_FIRST: &str =
    "add or uncordon a worker before this one is drained, rebooted or taken away, since no other takes Pods: ";
/// The agents' words for such a step.
const TAKEN_AWAY: [&str; 3] = ["drain", "reboot", "reload"];

/// Whether Pods can be put on it.
pub(super) fn takes_pods(row: &Row) -> bool {
    row.is_ready() && !row.unschedulable && !row.deleting && !row.control_plane
}

/// An agent does not know whether its worker is the last that takes Pods.
pub(super) fn keep_the_last(duplicates: &HashMap<&str, &str>, nodes: &mut [Judged<'_>]) {
    let takes = |node: &&Judged<'_>| takes_pods(node.row) && !duplicates.contains_key(node.name);
    // Where nobody says who is Ready, as without an API server, this is not known.
    if nodes.iter().filter(takes).nth(1).is_some() || nodes.iter().any(|node| node.row.ready.is_none()) {
        return;
    }
    let last = nodes.iter().find(takes).map(|node| node.name);
    for node in nodes.iter_mut().filter(|node| node.remedy.is_none() && last.is_none_or(|last| last == node.name)) {
        let next = node.next.filter(|next| TAKEN_AWAY.iter().any(|word| next.contains(word)));
        node.remedy = next.map(|next| format!("{ANOTHER_FIRST}{next}").into());
    }
}

#[cfg(test)]
mod tests;
