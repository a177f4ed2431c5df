//! Which Nodes there are: left over, with one address, too few, gone and not replaced, on their way for too long; and webhooks that
//! keep Pods of the system from being made (catalogue R014, R027, R029, R075 to R077, R111). Pure.

use std::collections::{BTreeMap, HashMap};
use std::net::IpAddr;

use jiff::{SignedDuration, Timestamp};

use super::super::scope::{in_maintenance, takes_pods};
use super::calico::TRIED_WITHIN;
use super::master::{self, Silence};
use super::{Draft, firewall, lasts, webhooks};
use crate::aggregator::cluster::Cluster;
use crate::aggregator::row::{Condition, Row};
use crate::checks::Area;
use crate::checks::Severity::{Critical, Info, Warning};

/// Of a worker that went longer ago, in seconds, it is known by now whether it was meant. One that came as long ago may be in
/// its place already: drains take their time.
const REMEMBERED: i64 = 24 * 3600;
/// The kubelet of a new worker is not Ready at first; Node and condition are not made in the same moment.
const JOINS: SignedDuration = SignedDuration::from_secs(60);
/// Workers that are named.
const NAMED: usize = 5;

/// What is wrong.
pub(super) fn findings(cluster: &Cluster, duplicates: &HashMap<&str, &str>, now: Timestamp) -> Vec<Draft> {
    let workers: Vec<(&str, &Row)> = cluster
        .nodes()
        .filter(|(name, row)| !row.deleting && !row.control_plane && !duplicates.contains_key(name))
        .collect();
    let mut all: Vec<Draft> = left_over(cluster, duplicates).into_iter().collect();
    all.extend(one_address(cluster, now));
    all.extend(none_left(cluster, now));
    all.extend(master::updating(cluster, now));
    // Of workers whose kubelets nobody hears, none is at fault and none is missing.
    if let Some(silence) = Silence::of(cluster, &workers) {
        all.extend(silence.told(cluster, now));
    } else {
        all.extend(too_few(&workers));
        all.extend(firewall::suspected(cluster, &workers, now));
        all.extend(master::unheard(cluster, &workers, now));
        all.extend(stuck(cluster, &workers, now));
    }
    all.extend(not_refilled(cluster, &workers, now));
    all.extend(blocked(cluster, now));
    all
}

/// Node objects of workers that have another one by now (R027): no harm but to who counts.
fn left_over(cluster: &Cluster, duplicates: &HashMap<&str, &str>) -> Option<Draft> {
    let mut pairs: Vec<(&str, &str)> = duplicates.iter().map(|(old, twin)| (*old, *twin)).collect();
    pairs.sort_unstable();
    let (old, twin) = pairs.first()?;
    let detail = format!(
        "{} Node objects are left over from before their worker was updated or reloaded, and are in no count here: {old} is {twin} by now",
        pairs.len()
    );
    let next = format!("see that {twin} is Ready, then `kubectl delete node {old}`; never the Ready one of the two");
    let draft = Draft::new("DuplicateNodeObject", Info, detail, next);
    let since = |name: &str| cluster.node(name)?.ready_since();
    Some(draft.on_since(&pairs.into_iter().map(|(old, _)| (old, since(old))).collect::<Vec<_>>()))
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
    let settled = |row: &Row| lasts(row.created.get(), cluster.limits().stale(), now);
    let shared = at.into_iter().filter(|(_, nodes)| nodes.len() > 1 && nodes.iter().all(|(_, row)| settled(row)));
    let draft = |(address, nodes): (IpAddr, Vec<(&str, &Row)>)| {
        let detail = format!(
            "{} Ready Nodes have the address {address}: routes, tunnels and access by it reach only one of them",
            nodes.len()
        );
        let next = "find out which worker has the address (`ip addr` on each); delete what is left of the other in Calico and in Kubernetes, and drain and reboot the one that stays";
        let draft = Draft::new("NodeIpReused", Critical, detail, next).about(address.to_string());
        // Since the last of them came.
        draft
            .since(nodes.iter().filter_map(|(_, row)| row.created.get()).max())
            .takes_away(nodes.iter().map(|(name, _)| *name))
            .on(nodes.into_iter().map(|(name, _)| name))
    };
    shared.map(draft).collect()
}

/// There were workers, and there are none (R077). A cluster that never had any was made so.
fn none_left(cluster: &Cluster, now: Timestamp) -> Option<Draft> {
    // The one that takes the place of the last needs as long to come (H12).
    let came_by_then = i64::from(cluster.limits().settling_seconds);
    let since = cluster.memory.last_gone().filter(|since| lasts(Some(*since), came_by_then, now))?;
    if cluster.nodes().any(|(_, row)| !row.control_plane) {
        return None;
    }
    let detail = "the cluster had workers, and has none: nothing runs but the control plane, and on a classic account the VLANs of its zones may be reclaimed".to_owned();
    let next = "nothing, if all were removed on purpose. Else order workers again (resize a pool); if that fails because of a VLAN that is gone, `nodevitals explain VlanUnavailable`";
    let mut draft = Draft::new("ClusterWithoutWorkers", Critical, detail, next).since(Some(since));
    draft.area = Area::Capacity;
    Some(draft)
}

/// Since when one takes no Pods, as far as that is known.
fn out_since(row: &Row) -> Option<Timestamp> {
    let cordoned = row.cordoned_since.get().filter(|_| row.unschedulable);
    let unready = row.ready.as_ref().filter(|_| !row.is_ready()).and_then(Condition::since);
    [cordoned, unready].into_iter().flatten().min()
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
        let since = workers.iter().filter_map(|(_, row)| out_since(row)).max();
        return vec![Draft::new("LastWorkerAtRisk", Warning, detail, next).since(since).on(left)];
    }
    let mut zones: BTreeMap<&str, (usize, usize, Option<Timestamp>)> = BTreeMap::new();
    for (_, row) in workers {
        let zone = zones.entry(row.zone.as_deref().unwrap_or_default()).or_default();
        *zone = (zone.0 + 1, zone.1 + usize::from(takes_pods(row)), zone.2.max(out_since(row)));
    }
    let mut since: Option<Timestamp> = None;
    let short = |(zone, (all, left, out)): (&str, (usize, usize, Option<Timestamp>))| {
        let short = all > 1 && left < 2 && !zone.is_empty();
        since = [since, out.filter(|_| short)].into_iter().flatten().min();
        short.then(|| format!("{zone} ({left} of {all})"))
    };
    let short: Vec<String> = zones.into_iter().filter_map(short).collect();
    if short.is_empty() {
        return Vec::new();
    }
    let detail = format!(
        "zones with fewer than two workers that are Ready and not cordoned: {}; Ingress there has no second place",
        short.join(", ")
    );
    let next = "add or uncordon a worker there before another is drained or reloaded";
    vec![Draft::new("ZoneBelowTwoWorkers", Info, detail, next).since(since)]
}

/// Workers went, and no new ones came in their place (R076). Of a pool that is empty now that was meant.
fn not_refilled(cluster: &Cluster, workers: &[(&str, &Row)], now: Timestamp) -> Vec<Draft> {
    let begin = now.as_second() - REMEMBERED;
    // A new one takes so long to come (H12).
    let replaced = i64::from(cluster.limits().settling_seconds);
    let mut all = Vec::new();
    for (pool, mut gone) in cluster.memory.to_replace(begin) {
        let here = || workers.iter().filter(|(_, row)| row.pool.as_deref() == Some(pool));
        gone.sort_unstable();
        // In an update the new one may come first, and is not to be forgotten before the one that it replaces.
        let first = gone.first().map_or(begin, |(at, _)| at - REMEMBERED);
        let new =
            here().filter(|(_, row)| row.created.get().is_some_and(|created| created.as_second() >= first)).count();
        gone.retain(|(at, _)| now.as_second() - at >= replaced);
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

/// Workers that are rebooted or reloaded, or that are new, and do not arrive (R014).
fn stuck(cluster: &Cluster, workers: &[(&str, &Row)], now: Timestamp) -> Option<Draft> {
    let minutes = cluster.limits().transit_minutes;
    let on_its_way = |row: &Row| {
        let since = row.ready.as_ref().map_or(row.created.get(), Condition::since);
        let (what, since) = if row.unschedulable && !row.maintained && in_maintenance(row, since.unwrap_or(now)) {
            ("cordoned", since)
        } else {
            // It has not been Ready since it joined. Of one that is silent that cannot be told (KubeletHeartbeatLost).
            let never =
                row.created.get().is_some_and(|created| since.is_none_or(|it| it.duration_since(created) < JOINS));
            (!row.unschedulable && !row.kubelet_silent() && never).then_some(("new", row.created.get()))?
        };
        (!row.is_ready() && lasts(since, i64::from(minutes) * 60, now)).then_some((since, what))
    };
    let mut all: Vec<_> = workers.iter().filter_map(|(name, row)| Some((on_its_way(row)?, *name, *row))).collect();
    all.sort_by_key(|((since, _), name, _)| (*since, *name));
    let ((since, what), name, row) = all.first()?;
    let said = row.findings.first().filter(|_| !row.marked_stale());
    let detail = format!(
        "{} workers that are rebooted, reloaded, updated or new have not become Ready for more than {minutes} minutes: {name} is {what}, and not Ready since {}{}",
        all.len(),
        since.map_or_else(|| "an unknown time".to_owned(), crate::facts::utc),
        said.map_or_else(String::new, |root| format!("; its agent says {}", root.code))
    );
    let next = format!(
        "read the provider's Status of {name} (`ibmcloud ks worker get`) and ask `nodevitals explain` what it means: what is pending waits for something else, which it names. If nobody works on it, repair it: `nodevitals repair {name}`"
    );
    let mut draft = Draft::new("WorkerStuckInTransition", Warning, detail, next).since(*since);
    draft.area = Area::ControlPlanePath;
    Some(draft.on(all.into_iter().map(|(_, name, _)| name)))
}

/// Pods of the system that a webhook keeps from being made (R111).
fn blocked(cluster: &Cluster, now: Timestamp) -> Option<Draft> {
    let all = cluster.surroundings.failed_creates();
    let mut young: Vec<_> = all.filter(|event| !lasts(Some(event.at), TRIED_WITHIN, now)).collect();
    young.sort_unstable_by(|a, b| (b.at, &a.owner).cmp(&(a.at, &b.owner)));
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
    // Of each owner the last time is known: it was there then at the latest.
    let draft = Draft::new("WebhookBlocksSystemPods", Critical, detail, next);
    let (kind, name) = last.owner.split_once(' ').unwrap_or_default();
    let draft = draft.object(kind, &last.namespace, name);
    Some(draft.since(young.iter().map(|event| event.at).min()))
}

#[cfg(test)]
mod tests;
