//! Which Nodes there are: left over, with one address, too few, gone and not replaced; kubelets that are silent all at once; and webhooks that keep
//! Pods of the system from being made (catalogue R020, R027, R029, R075, R076, R111). Pure.

use std::collections::{BTreeMap, HashMap};
use std::net::IpAddr;

use jiff::Timestamp;

use super::super::Scope;
use super::calico::TRIED_WITHIN;
use super::{Draft, lasts, webhooks};
use crate::aggregator::cluster::Cluster;
use crate::aggregator::row::Row;
use crate::checks::Area;
use crate::checks::Severity::{Critical, Info, Warning};

/// Fewer workers that are silent are silent each for itself.
const FEWEST: usize = 3;
/// Kubelets are silent all at once for so long, in seconds, before it is told: an API server that restarts is back by then.
const SILENT: i64 = 60;
/// Of a worker that went longer ago, in seconds, it is known by now whether it was meant. One that came as long ago may be in
/// its place already: drains take their time.
const REMEMBERED: i64 = 24 * 3600;
/// Workers that are named.
const NAMED: usize = 5;

/// What is wrong.
pub(super) fn findings(cluster: &Cluster, duplicates: &HashMap<&str, &str>, now: Timestamp) -> Vec<Draft> {
    let workers: Vec<(&str, &Row)> = cluster
        .nodes()
        .filter(|(name, row)| !row.deleting && !row.control_plane && !duplicates.contains_key(name))
        .collect();
    let mut all: Vec<Draft> = left_over(duplicates).into_iter().collect();
    all.extend(one_address(cluster, now));
    // Of workers whose kubelets nobody hears, none is at fault and none is missing.
    match silent(cluster, &workers, now) {
        Some(silent) => all.push(silent),
        None => all.extend(too_few(&workers)),
    }
    all.extend(not_refilled(cluster, &workers, now));
    all.extend(blocked(cluster, now));
    all
}

/// Node objects of workers that have another one by now (R027): no harm but to who counts.
fn left_over(duplicates: &HashMap<&str, &str>) -> Option<Draft> {
    let mut pairs: Vec<(&str, &str)> = duplicates.iter().map(|(old, twin)| (*old, *twin)).collect();
    pairs.sort_unstable();
    let (old, twin) = pairs.first()?;
    let detail = format!(
        "{} Node objects are left over from before their worker was updated or reloaded, and are in no count here: {old} is {twin} by now",
        pairs.len()
    );
    let next = format!("see that {twin} is Ready, then `kubectl delete node {old}`; never the Ready one of the two");
    let draft = Draft::new("DuplicateNodeObject", Info, detail, next);
    Some(draft.on(pairs.into_iter().map(|(old, _)| old)))
}

/// Two Nodes have one address (R075): what is sent to it reaches one of them, and no condition says so.
fn one_address(cluster: &Cluster, now: Timestamp) -> Vec<Draft> {
    let mut at: BTreeMap<IpAddr, Vec<(&str, &Row)>> = BTreeMap::new();
    for (name, row) in cluster.nodes().filter(|(_, row)| !row.deleting && row.is_ready()) {
        for address in &row.addresses {
            at.entry(*address).or_default().push((name, row));
        }
    }
    // A Node that has just been made may still have the address of one that is about to go (catalogue H8).
    let settled = |row: &Row| lasts(row.created, cluster.limits().stale(), now);
    let shared = at.into_iter().filter(|(_, nodes)| nodes.len() > 1 && nodes.iter().all(|(_, row)| settled(row)));
    let draft = |(address, nodes): (IpAddr, Vec<(&str, &Row)>)| {
        let detail = format!(
            "{} Ready Nodes have the address {address}: routes, tunnels and access by it reach only one of them",
            nodes.len()
        );
        let next = "find out which worker has the address (`ip addr` on each); delete what is left of the other in Calico and in Kubernetes, and drain and reboot the one that stays";
        let draft = Draft::new("NodeIpReused", Critical, detail, next).about(address.to_string());
        draft.on(nodes.into_iter().map(|(name, _)| name))
    };
    shared.map(draft).collect()
}

fn takes_pods(row: &Row) -> bool {
    row.is_ready() && !row.unschedulable
}

/// Hardly a worker takes Pods, of several that there are (R029). A cluster or zone of one worker was made so.
fn too_few(workers: &[(&str, &Row)]) -> Vec<Draft> {
    let left: Vec<&str> = workers.iter().filter(|(_, row)| takes_pods(row)).map(|(name, _)| *name).collect();
    if workers.len() > 1 && left.len() < 2 {
        let what = left.first().map_or("none".to_owned(), |name| format!("only {name}"));
        let detail = format!(
            "of {} workers {what} is Ready and not cordoned: what is drained or reloaded next leaves the cluster without any, and Calico's cleaning up and Ingress without a place",
            workers.len()
        );
        let next = "add a worker, or uncordon one, before anything is drained, reloaded or removed";
        return vec![Draft::new("LastWorkerAtRisk", Warning, detail, next).on(left)];
    }
    let mut zones: BTreeMap<&str, (usize, usize)> = BTreeMap::new();
    for (_, row) in workers {
        let zone = zones.entry(row.zone.as_deref().unwrap_or_default()).or_default();
        *zone = (zone.0 + 1, zone.1 + usize::from(takes_pods(row)));
    }
    let short = |(zone, (all, left)): (&str, (usize, usize))| {
        (all > 1 && left < 2 && !zone.is_empty()).then(|| format!("{zone} ({left} of {all})"))
    };
    let short: Vec<String> = zones.into_iter().filter_map(short).collect();
    if short.is_empty() {
        return Vec::new();
    }
    let detail = format!(
        "zones with fewer than two workers that are Ready and not cordoned: {}; Ingress there has no second place",
        short.join(", ")
    );
    vec![Draft::new(
        "ZoneBelowTwoWorkers",
        Info,
        detail,
        "add or uncordon a worker there before another is drained or reloaded",
    )]
}

/// Workers went, and no new ones came in their place (R076). Of a pool that is empty now that was meant.
fn not_refilled(cluster: &Cluster, workers: &[(&str, &Row)], now: Timestamp) -> Vec<Draft> {
    let begin = now.as_second() - REMEMBERED;
    // A new one takes so long to come (H12).
    let replaced = i64::from(cluster.limits().settling_seconds);
    let mut all = Vec::new();
    for (pool, mut gone) in cluster.memory.to_replace(begin) {
        let here = || workers.iter().filter(|(_, row)| row.pool.as_deref() == Some(pool));
        let new = here().filter(|(_, row)| row.created.is_some_and(|created| created.as_second() >= begin)).count();
        gone.retain(|(at, _)| now.as_second() - at >= replaced);
        gone.sort_unstable();
        let missing = gone.len().saturating_sub(new);
        if missing == 0 || here().next().is_none() {
            continue;
        }
        let names: Vec<&str> = gone.iter().rev().take(NAMED).map(|(_, name)| *name).collect();
        let detail = format!(
            "{} workers of pool {pool} went within a day, and {new} new ones came: {missing} fewer than before; gone are {}",
            gone.len(),
            names.join(", ")
        );
        let next = "nothing, if the pool was made smaller on purpose. If they were replaced or updated, the pool no longer rebalances by itself: rebalance or resize it before another worker is replaced";
        let mut draft = Draft::new("PoolNotRefilled", Warning, detail, next).about(pool.to_owned());
        draft.area = Area::Capacity;
        let since = gone.get(new).and_then(|(at, _)| Timestamp::from_second(*at).ok());
        all.push(draft.since(since));
    }
    all
}

/// Nearly all kubelets are silent at once (R020): that is not the workers.
fn silent(cluster: &Cluster, workers: &[(&str, &Row)], now: Timestamp) -> Option<Draft> {
    let cut = |row: &Row| row.kubelet_silent() || row.has("MasterUnreachable");
    let silent: Vec<&(&str, &Row)> = workers.iter().filter(|(_, row)| cut(row)).collect();
    let wide = matches!(Scope::of(silent.len(), workers.len(), cluster.limits()), Scope::Most | Scope::All);
    if silent.len() < FEWEST || !wide {
        return None;
    }
    // Since the first of them; those that were silent long before are no part of it.
    let mut since: Vec<Timestamp> = silent.iter().filter_map(|(_, row)| row.ready.as_ref()?.since()).collect();
    since.sort_unstable();
    let since = since.get(since.len() / 2).copied();
    if !lasts(since, SILENT, now) {
        return None;
    }
    let detail = format!(
        "{} of {} workers have no connection to the control plane at once, which is not the workers' fault",
        silent.len(),
        workers.len()
    );
    let next = "touch no worker: is the master being updated? If it lasts for more than 45 minutes: status of the provider, firewall and load balancer before the API server, then a support case with the agents' logs";
    let mut draft = Draft::new("MasterUnreachableClusterwide", Critical, detail, next).since(since);
    draft.area = Area::ControlPlanePath;
    Some(draft.on(silent.into_iter().map(|(name, _)| *name)))
}

/// Pods of the system that a webhook keeps from being made (R111).
fn blocked(cluster: &Cluster, now: Timestamp) -> Option<Draft> {
    let all = cluster.surroundings.failed_creates();
    let mut young: Vec<_> = all.filter(|event| !lasts(Some(event.at), TRIED_WITHIN, now)).collect();
    young.sort_by(|a, b| (b.at, &a.owner).cmp(&(a.at, &b.owner)));
    let last = young.first()?;
    let detail = format!(
        "Pods of the system cannot be made because of an admission webhook, of {} owners within half an hour, the last of them {} in {}: {}{}",
        young.len(),
        last.owner,
        last.namespace,
        last.message,
        webhooks::behind(cluster, &last.message).unwrap_or_default()
    );
    let next = "repair what serves the webhook, or scope it away from system namespaces (namespaceSelector on kubernetes.io/metadata.name), or as the last way delete its configuration, which no webhook can prevent; the Pods come by themselves then, and only after that a master refresh helps";
    Some(Draft::new("WebhookBlocksSystemPods", Critical, detail, next))
}

#[cfg(test)]
mod tests;
