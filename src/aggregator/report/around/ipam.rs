//! Pod addresses that run out, of the cluster or of one node; that leaked; blocks that two nodes have; and what Calico still
//! holds of nodes that are gone (catalogue R028, R071 to R075, R079). Pure. Without Calico's objects nothing is said.

use std::collections::{BTreeMap, BTreeSet};

use ipnet::IpNet;
use jiff::Timestamp;

use super::super::Scope;
use super::calico::failing_of;
use super::{Draft, lasts};
use crate::aggregator::cluster::Cluster;
use crate::aggregator::ipam::{Ipam, Leaked, Left, family};
use crate::aggregator::looked::Look;
use crate::aggregator::row::Row;
use crate::aggregator::surroundings::{HostEndpoint, What};
use crate::checks::Area;
use crate::checks::Severity::{Critical, Warning};

/// What is named.
const NAMED: usize = 5;
/// Addresses are about to run out where less than the so manyth part of them is free.
const NEAR_FULL: u64 = 10;

/// What is wrong.
pub(super) fn findings(cluster: &Cluster, now: Timestamp) -> Vec<Draft> {
    let mut all = conflicts(cluster);
    all.extend(host_endpoints(cluster, now));
    // Without Calico there is none of it any more, whatever was read before.
    let Some(ipam) = cluster.ipam.as_ref().filter(|_| cluster.surroundings.is_seen(What::Pools)) else { return all };
    all.extend(exhausted(cluster, ipam));
    all.extend(left(cluster, ipam, now));
    all.extend(leaked(cluster, ipam, now));
    all
}

fn draft(code: &'static str, severity: crate::checks::Severity, area: Area, detail: String, next: &str) -> Draft {
    let mut draft = Draft::new(code, severity, detail, next);
    draft.area = area;
    draft
}

/// Ready Nodes that Pods may be put on, which have been there for a while.
fn workers(cluster: &Cluster, now: Timestamp) -> impl Iterator<Item = (&str, &Row)> {
    cluster.nodes().filter(move |(_, row)| {
        row.is_ready() && !row.deleting && lasts(row.created.get(), cluster.limits().settling_seconds.into(), now)
    })
}

/// Decided by the blocks, not by what the CNI says, which is the same for one node and for all.
fn exhausted(cluster: &Cluster, ipam: &Ipam) -> Vec<Draft> {
    let mut all = Vec::new();
    for (which, name) in [(0, "IPv4"), (1, "IPv6")] {
        let pools: Vec<_> =
            cluster.surroundings.address_pools().filter(|it| it.for_pods && family(&it.pool.cidr) == which).collect();
        if pools.is_empty() {
            continue;
        }
        let given = |cidr: &IpNet| ipam.pools.get(cidr).copied().unwrap_or_default();
        let free_blocks: u64 =
            pools.iter().map(|it| it.blocks().saturating_sub(given(&it.pool.cidr).blocks.into())).sum();
        let free: u64 = pools.iter().map(|it| given(&it.pool.cidr).free).sum();
        let own = |node: &str| ipam.nodes.get(node).map(|given| given[which]).unwrap_or_default();
        // One that came after the blocks were read may have got its own meanwhile.
        let known =
            |row: &Row| row.is_ready() && !row.deleting && row.created.get().is_some_and(|created| created < ipam.at);
        let full = cluster.nodes().filter(|(node, row)| known(row) && own(node).free == 0);
        let full: Vec<&str> = full.map(|(node, _)| node).collect();
        // Where nodes may borrow, a free address in any block is enough.
        if free_blocks == 0 && !full.is_empty() && (ipam.strict || free == 0) {
            let names: Vec<String> =
                pools.iter().take(NAMED).map(|it| format!("{} {}", it.pool.name, it.pool.cidr)).collect();
            let elsewhere = if free > 0 {
                format!("; {free} addresses are free in blocks of other nodes, which these may not take")
            } else {
                String::new()
            };
            let detail = format!(
                "no block of {name} Pod addresses is left in {}, and {} nodes have no address of their own left: no new Pod starts there{elsewhere}",
                names.join(", "),
                full.len()
            );
            let next = "see that calico-kube-controllers runs, and free what leaked (IpLeakSuspected); then add a pool; cordoning or reloading workers helps nothing";
            let draft = draft("ClusterIpPoolExhausted", Critical, Area::Cni, detail, next).about(name.to_owned());
            let draft = draft.object("IPPool", "", &pools[0].pool.name);
            all.push(draft.since(felt(cluster, &full)).on(full));
            continue;
        }
        let limited: Vec<&str> = full.into_iter().filter(|node| own(node).blocks >= ipam.most_blocks).collect();
        let Some(first) = limited.first() else { continue };
        let detail = format!(
            "{} nodes have as many blocks of {name} Pod addresses as a node may have ({}), and all are full, while the cluster has {free_blocks} blocks left: on {first} {} addresses are taken; no new Pod starts there",
            limited.len(),
            ipam.most_blocks,
            own(first).used
        );
        let next = "compare the addresses taken with the Pods there (`calicoctl ipam check`) and free what leaked; else spread the Pods, or add a worker; other nodes are fine";
        let draft = draft("NodeIpBlocksExhausted", Critical, Area::Cni, detail, next).about(name.to_owned());
        all.push(draft.since(felt(cluster, &limited)).on(limited));
    }
    all
}

/// Pod addresses that run out, in words, where less than a tenth of all is free in pools of IPv4 or of IPv6. Nothing while the
/// blocks cannot be read.
pub(super) fn near_full(cluster: &Cluster, now: Timestamp) -> Option<String> {
    let blind = cluster.looks.get(&Look::Blocks).is_some_and(|sight| sight.is_blind(now).is_some());
    let seen = !blind && cluster.surroundings.is_seen(What::Pools);
    let ipam = cluster.ipam.as_ref().filter(|_| seen)?;
    [(0, "IPv4"), (1, "IPv6")].into_iter().find_map(|(which, name)| {
        let pools = cluster.surroundings.address_pools().filter(|it| it.for_pods && family(&it.pool.cidr) == which);
        let (mut free, mut all) = (0, 0);
        for pool in pools {
            let given = ipam.pools.get(&pool.pool.cidr).copied().unwrap_or_default();
            free += given.free + pool.blocks().saturating_sub(given.blocks.into()) * pool.addresses_of_a_block();
            all += pool.blocks() * pool.addresses_of_a_block();
        }
        (free * NEAR_FULL < all).then(|| format!("{free} of {all} {name} Pod addresses are free"))
    })
}

/// Since when Pods do not start on these for want of a network, as their agents say.
fn felt(cluster: &Cluster, nodes: &[&str]) -> Option<Timestamp> {
    nodes.iter().filter_map(|node| cluster.node(node)?.since_of("PodSandboxFailing")).min()
}

/// What Calico still holds of nodes that are gone: addresses that nobody has, an address that another node has by now, or
/// what keeps calico-node from starting after the cluster had no worker at all.
fn left(cluster: &Cluster, ipam: &Ipam, now: Timestamp) -> Vec<Draft> {
    let mut all = Vec::new();
    let live: BTreeMap<_, &str> =
        workers(cluster, now).flat_map(|(name, row)| row.addresses.iter().map(move |at| (*at, name))).collect();
    let went = |node: &str, left: &Left| {
        cluster.memory.gone(node).and_then(|gone| Timestamp::from_second(gone.at).ok()).unwrap_or(left.since)
    };
    let old: Vec<(&str, &Left)> = ipam
        .gone
        .iter()
        .filter(|(node, left)| lasts(Some(went(node, left)), cluster.limits().stale(), now))
        .map(|(node, left)| (&**node, left))
        .collect();
    for (node, left) in &old {
        let mut addresses = cluster.memory.gone(node).into_iter().flat_map(|gone| &gone.addresses);
        let Some((address, heir)) = addresses.find_map(|at| live.get_key_value(at)) else { continue };
        let detail = format!(
            "{heir} has the address {address} of {node}, which is gone, and Calico still holds {} blocks of that one: what is meant for them is sent to {heir}",
            left.blocks
        );
        let next = format!("delete what Calico holds of {node}, and nothing else; then drain and reboot {heir}");
        all.push(
            draft("NodeIpReused", Critical, Area::PodRouting, detail, &next)
                .about(address.to_string())
                .since(cluster.node(heir).and_then(|row| row.created.get()))
                .takes_away([*heir])
                .on([*heir]),
        );
    }
    let (blocks, addresses) = old.iter().fold((0, 0), |sum, (_, left)| (sum.0 + left.blocks, sum.1 + left.addresses));
    let names: Vec<&str> = old.iter().take(NAMED).map(|(node, _)| *node).collect();
    let holds = format!(
        "Calico holds {blocks} blocks and {addresses} addresses of {} nodes that are gone ({})",
        old.len(),
        names.join(", ")
    );
    let since = old.iter().map(|(node, left)| went(node, left)).min();
    if let Some(failing) = without_workers(cluster, &old, now).filter(|_| !old.is_empty()) {
        let detail = format!(
            "{holds}, all workers are newer than Calico itself, so that there was none for a while, and calico-node fails on {} of them",
            failing.len()
        );
        let next = "delete what Calico holds of these nodes (with the datastore Kubernetes their blockaffinities and ipamblocks; `calicoctl delete node` works with etcd only), nothing else; wait ten minutes; that calico-kube-controllers runs proves nothing";
        let draft = draft("CalicoDataForDeletedNodes", Critical, Area::PodRouting, detail, next).since(since);
        all.push(draft.on(failing.iter().map(String::as_str)));
    } else if let Some(since) = since.filter(|since| lasts(Some(*since), cluster.limits().cleanup(), now)) {
        let minutes = cluster.limits().cleanup_minutes;
        let detail = format!("{holds}, which calico-kube-controllers should have freed within {minutes} minutes");
        let next = "see that exactly one calico-kube-controllers runs; then `calicoctl ipam check`, and release what it reports while the datastore is locked, for twenty minutes at most; unlock it";
        all.push(draft("IpLeakSuspected", Warning, Area::Cni, detail, next).since(Some(since)));
    }
    all
}

/// Addresses of Pods that are not there, on nodes that are, which calico-kube-controllers should have freed.
fn leaked(cluster: &Cluster, ipam: &Ipam, now: Timestamp) -> Option<Draft> {
    let told = |leaked: &&Leaked| leaked.again && lasts(Some(leaked.since), cluster.limits().cleanup(), now);
    let counts = ipam.leaked.iter().map(|(node, all)| (all.iter().filter(told).count(), &**node));
    let nodes: Vec<(usize, &str)> = counts.filter(|(count, _)| *count > 0).collect();
    let (most, worst) = nodes.iter().max()?;
    let all = || ipam.leaked.values().flatten().filter(told);
    let examples: Vec<String> = ipam.leaked.get(*worst)?.iter().filter(told).map(|it| it.address.to_string()).collect();
    let detail = format!(
        "Calico holds {} addresses of Pods that are not there, on {} nodes that are, for more than {} minutes, as far as nodes were looked at; {most} of them on {worst} ({})",
        all().count(),
        nodes.len(),
        cluster.limits().cleanup_minutes,
        examples[..examples.len().min(NAMED)].join(", ")
    );
    let next = "see whose they were (`calicoctl ipam show --ip=ADDRESS`) and that exactly one calico-kube-controllers runs, which frees them; else `calicoctl ipam check`, and release what it reports while the datastore is locked, for twenty minutes at most; unlock it";
    let draft = draft("IpLeakSuspected", Warning, Area::Cni, detail, next).about("Pods that are gone".to_owned());
    Some(draft.since(all().map(|it| it.since).min()).on(nodes.into_iter().map(|(_, node)| node)))
}

/// The workers on which calico-node fails, if there may have been a time without any worker: all came after Calico, and one of
/// these nodes went before any of them was there, as far as that is known.
fn without_workers(cluster: &Cluster, old: &[(&str, &Left)], now: Timestamp) -> Option<Vec<String>> {
    let sets =
        cluster.surroundings.workloads("calico-node").chain(cluster.surroundings.workloads("calico-kube-controllers"));
    let made = sets.filter_map(|set| set.created).max()?;
    let newer = cluster.nodes().all(|(_, row)| row.created.get().is_some_and(|created| created > made));
    let after =
        |at: i64| cluster.nodes().all(|(_, row)| row.created.get().is_none_or(|created| created.as_second() >= at));
    let alone = |node: &str| cluster.memory.gone(node).is_none_or(|gone| after(gone.at));
    let none = old.iter().any(|(node, _)| alone(node));
    // Of a large cluster in which it fails nearly everywhere the cause is elsewhere.
    let few = cluster.limits().few_workers as usize;
    let own = |(failing, scope): &(Vec<String>, Scope)| *scope < Scope::Most || failing.len() <= few;
    let (failing, _) = failing_of(cluster, now).filter(own)?;
    (newer && none && !failing.is_empty()).then_some(failing)
}

/// Two nodes have the same block, or one in the other: each throws away what is for the other's Pods.
fn conflicts(cluster: &Cluster) -> Vec<Draft> {
    let blocks = cluster.surroundings.blocks();
    let mut all: Vec<(IpNet, &str)> =
        blocks.iter().flat_map(|(node, own)| own.iter().map(|block| (*block, *node))).collect();
    // A block sorts before those that are in it.
    all.sort_unstable_by_key(|(block, node)| (block.network(), block.prefix_len(), *node));
    let mut pairs = Vec::new();
    let mut around: Option<(IpNet, &str)> = None;
    for (block, node) in all {
        match around {
            Some((outer, owner)) if outer.contains(&block) => {
                if owner != node {
                    pairs.push((block, owner, node));
                }
            }
            _ => around = Some((block, node)),
        }
    }
    let Some((block, one, other)) = pairs.first() else { return Vec::new() };
    let detail = format!(
        "{} blocks of Pod addresses belong to two nodes at once: {block} to {one} and to {other}; each has a blackhole for it, and Pods on one are out of reach from the other",
        pairs.len()
    );
    let next = "see which of the two has Pods with these addresses (`calicoctl ipam check`), and delete the other's BlockAffinity; then delete the calico-node Pod there";
    let on: BTreeSet<&str> = pairs.iter().flat_map(|(_, one, other)| [*one, *other]).collect();
    vec![draft("IpBlockConflict", Critical, Area::PodRouting, detail, next).on(on)]
}

/// Where nodes have host endpoints, each has to have one, with its own address (R079).
fn host_endpoints(cluster: &Cluster, now: Timestamp) -> Vec<Draft> {
    let around = &cluster.surroundings;
    if !around.is_seen(What::HostEndpoints) {
        return Vec::new();
    }
    let all: Vec<&HostEndpoint> = around.host_endpoints().collect();
    let of: BTreeSet<&str> = all.iter().map(|it| &*it.node).collect();
    let workers: Vec<(&str, &Row)> = workers(cluster, now).collect();
    let without: Vec<&str> = workers.iter().map(|(name, _)| *name).filter(|name| !of.contains(name)).collect();
    // Single host endpoints are somebody's own affair.
    if workers.is_empty() || (workers.len() - without.len()) * 2 <= workers.len() {
        return Vec::new();
    }
    let mut drafts = Vec::new();
    if !without.is_empty() {
        let detail = format!(
            "{} of {} workers have no host endpoint, and the others have one: policies for hosts do not hold there",
            without.len(),
            workers.len()
        );
        let next = "look at what makes them (on IBM Cloud the init container calico-extension): delete the calico-node Pod there, so that it runs again";
        drafts.push(draft("HostEndpointMissing", Warning, Area::PacketFilter, detail, next).on(without));
    }
    let wrong = |it: &&&HostEndpoint| match cluster.node(&it.node) {
        // Whether a node is gone or has never been one of the cluster's is known of those that were seen.
        None => {
            cluster.memory.gone(&it.node).is_some_and(|gone| now.as_second() - gone.at >= cluster.limits().cleanup())
        }
        Some(row) => {
            let own = row.addresses.iter().chain(&row.external).chain(&row.tunnels);
            !it.addresses.is_empty()
                && !row.addresses.is_empty()
                && lasts(row.created.get(), cluster.limits().settling_seconds.into(), now)
                && !own.into_iter().any(|own| it.addresses.contains(own))
        }
    };
    let stale: Vec<&&HostEndpoint> = all.iter().filter(wrong).collect();
    if let Some(first) = stale.first() {
        let expected: Vec<String> = first.addresses.iter().map(ToString::to_string).collect();
        let detail = format!(
            "{} host endpoints expect addresses that their nodes do not have, or are of nodes that are gone: {} of {} expects {}; policies by it drop what they should let through",
            stale.len(),
            first.name.name(),
            first.node,
            expected.join(", ")
        );
        let next = "delete these host endpoints; those of nodes that live are made again when the calico-node Pod there is deleted";
        drafts.push(
            draft("HostEndpointStale", Warning, Area::PacketFilter, detail, next).on(stale.iter().map(|it| &*it.node)),
        );
    }
    drafts
}

#[cfg(test)]
mod tests;
