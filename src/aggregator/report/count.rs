//! What is counted over all workers, and the sentence that says it. Pure.

use std::collections::BTreeMap;

use super::{Counts, FindingCount, Group, NodeReport, Scope, View};
use crate::verdict::WorkerState;

/// Workers by one of their labels; empty when all are alike.
pub(super) fn groups(nodes: &[NodeReport], key: fn(&NodeReport) -> Option<&str>) -> Vec<Group> {
    let mut groups: BTreeMap<&str, Counts> = BTreeMap::new();
    for node in nodes {
        groups.entry(key(node).unwrap_or_default()).or_default().add(node);
    }
    if groups.len() < 2 {
        return Vec::new();
    }
    groups.into_iter().map(|(name, workers)| Group { name: name.to_owned(), workers }).collect()
}

/// What is wrong now, by code: the worst first, then what is on most workers. What an agent that is gone said last does
/// not count.
pub(super) fn findings(nodes: &[NodeReport], workers: &Counts) -> Vec<FindingCount> {
    let mut by_code: BTreeMap<&str, (FindingCount, Vec<&NodeReport>)> = BTreeMap::new();
    let counting = nodes
        .iter()
        .filter(|node| !node.deleting && matches!(node.state, WorkerState::Critical | WorkerState::Warning));
    for node in counting {
        for finding in &node.findings {
            let (count, on) = by_code.entry(&finding.code).or_insert_with(|| {
                let (severity, area) = (finding.severity, finding.area);
                (
                    FindingCount {
                        code: finding.code.clone(),
                        severity,
                        area,
                        nodes: 0,
                        scope: Scope::Few,
                        shared: None,
                    },
                    Vec::new(),
                )
            });
            count.severity = count.severity.max(finding.severity);
            if on.last().is_none_or(|last| last.name != node.name) {
                on.push(node);
            }
        }
    }
    let mut list: Vec<FindingCount> = by_code
        .into_values()
        .map(|(count, on)| FindingCount {
            nodes: on.len(),
            scope: Scope::of(on.len(), workers.total),
            shared: shared(&on, nodes),
            ..count
        })
        .collect();
    list.sort_by(|a, b| (b.severity, b.nodes, a.area, &a.code).cmp(&(a.severity, a.nodes, b.area, &b.code)));
    list
}

/// A zone or pool that holds all of these workers, more than one, and not all workers.
fn shared(on: &[&NodeReport], all: &[NodeReport]) -> Option<String> {
    let common = |what: &str, key: fn(&NodeReport) -> Option<&str>| {
        let value = key(on.first()?)?;
        let here = on.len() > 1 && on.iter().all(|node| key(node) == Some(value));
        (here && all.iter().any(|node| !node.deleting && key(node) != Some(value))).then(|| format!("{what} {value}"))
    };
    common("zone", |node| node.zone.as_deref()).or_else(|| common("pool", |node| node.pool.as_deref()))
}

pub(super) fn summary(view: &View, workers: &Counts) -> String {
    let named = |count: usize| if count == 1 { "1 worker".to_owned() } else { format!("{count} workers") };
    let deleting = if workers.deleting > 0 { format!("; {} being deleted", workers.deleting) } else { String::new() };
    if !view.complete {
        let why = view.why.as_deref().unwrap_or("unknown reason");
        let since =
            view.since.map_or(String::new(), |since| format!(" since {}", since.strftime("%Y-%m-%dT%H:%M:%SZ")));
        return format!("Cannot see the cluster{since}: {why}. Nothing is known about its {}.", named(workers.total));
    }
    let bad = workers.total - workers.normal;
    if workers.total == 0 {
        return format!("No workers{deleting}.");
    }
    if bad == 0 {
        let all = if workers.total == 1 {
            "The only worker is".to_owned()
        } else {
            format!("All {} workers are", workers.total)
        };
        return format!("{all} Normal{deleting}.");
    }
    let states = [(workers.critical, "Critical"), (workers.warning, "Warning"), (workers.unknown, "Unknown")];
    let mut parts: Vec<String> =
        states.iter().filter(|(count, _)| *count > 0).map(|(count, state)| format!("{count} {state}")).collect();
    if let (Some(last), 1..) = (parts.last_mut(), workers.settling) {
        // Those that are settling are Unknown, which is the last part.
        *last += " (";
        *last += &workers.settling.to_string();
        *last += " settling)";
    }
    let need = if bad == 1 { "needs" } else { "need" };
    format!(
        "{bad} of {} {need} attention: {}; {} Normal{deleting}.",
        named(workers.total),
        parts.join(", "),
        workers.normal
    )
}
