//! Nodes that route other blocks of pod addresses than the rest of their mesh, or have another MTU (catalogue R082, R085). Pure.

use std::collections::BTreeMap;
use std::fmt::Write as _;

use super::Draft;
use crate::aggregator::agreement::{Blocks, Difference, Differs};
use crate::aggregator::cluster::Cluster;
use crate::aggregator::mtus::{LINKS, Odd, UNANSWERED};
use crate::checks::Severity::{Info, Warning};
use crate::facts::Family;

/// Nodes by what is different on them.
type Groups<'a> = BTreeMap<(Family, &'a Blocks, &'a Blocks), Vec<(Differs<'a>, &'a Difference)>>;

/// What is told.
pub(super) fn findings(cluster: &Cluster) -> Vec<Draft> {
    let mut groups = Groups::new();
    let mut silent = Vec::new();
    for differs in cluster.agreement.differing() {
        if let Ok(found) = differs.difference {
            groups.entry((differs.family, &found.missing, &found.extra)).or_default().push((differs, found));
        } else {
            silent.push(differs);
        }
    }
    let mut drafts: Vec<Draft> =
        groups.into_iter().filter_map(|((_, missing, extra), nodes)| different(missing, extra, &nodes)).collect();
    drafts.extend(not_asked(&silent));
    drafts.extend((0..LINKS.len()).flat_map(|link| [true, false].map(|longer| mtus(cluster, link, longer))).flatten());
    drafts.extend((0..LINKS.len()).filter_map(|link| unconfirmed_mtus(cluster, link)));
    drafts
}

/// Longer than elsewhere, packets are lost; shorter, they are only more.
fn mtus(cluster: &Cluster, link: usize, longer: bool) -> Option<Draft> {
    let of_it = |odd: &&Odd| odd.link == link && odd.confirmed.is_some_and(|(own, others)| (own > others) == longer);
    let all: Vec<(&str, &Odd)> =
        cluster.odd_mtus.iter().filter(|(_, odd)| of_it(odd)).map(|(node, odd)| (&**node, odd)).collect();
    let (node, odd) = all.first()?;
    let (own, others) = odd.confirmed?;
    let harm = if longer {
        "long packets from there may be lost on their way: connections open and then hang"
    } else {
        "which is harmless, and slower"
    };
    let what = LINKS[link];
    let detail = format!(
        "the MTU of the {what} of {} workers is another one than on most of their zone: {own} on {node}, {others} on {}; {harm}",
        all.len(),
        odd.against
    );
    let next = "compare `ip link` on both; set Calico's MTU for all (FelixConfiguration `vxlanMTU`, `ipipMTU`, `mtuIfacePattern`, or `veth_mtu` of the ConfigMap calico-config), or the uplink's on that worker; then restart calico-node there, and the Pods that were made before";
    let severity = if longer { Warning } else { Info };
    let direction = if longer { "longer" } else { "shorter" };
    let draft = Draft::new("MtuMismatch", severity, detail, next).about(format!("{what} {direction}"));
    Some(draft.since(all.iter().map(|(_, odd)| odd.since).min()).on(all.iter().map(|(node, _)| *node)))
}

/// Said with the questions for the map, by whom nobody knows, and not by the nodes' own pages.
fn unconfirmed_mtus(cluster: &Cluster, link: usize) -> Option<Draft> {
    let of_it = |odd: &Odd| odd.link == link && odd.confirmed.is_none() && odd.unanswered >= UNANSWERED;
    let all: Vec<(&str, &Odd)> =
        cluster.odd_mtus.iter().filter(|(_, odd)| of_it(odd)).map(|(node, odd)| (&**node, odd)).collect();
    let (node, _) = all.first()?;
    let what = LINKS[link];
    let detail = format!(
        "the MTU of the {what} of {} workers is said to be another one than on most of their zone ({} on {node}), and they, or those that they were to be compared with, cannot be asked",
        all.len(),
        cluster.node(node)?.mtus[link]
    );
    let next = format!(
        "compare `ip link` on {node} with another worker of its zone; and see why the aggregator's Pod does not reach port 10580 of the workers (a NetworkPolicy, a firewall)"
    );
    let draft = Draft::new("MtuMismatch", Info, detail, next).about(format!("{what} unconfirmed"));
    Some(draft.since(all.iter().map(|(_, odd)| odd.since).min()).on(all.iter().map(|(node, _)| *node)))
}

fn different(missing: &Blocks, extra: &Blocks, nodes: &[(Differs<'_>, &Difference)]) -> Option<Draft> {
    let (first, difference) = nodes.first()?;
    let (node, against) = (first.node, &difference.against);
    let who = match nodes.len() {
        1 => format!("{node} has"),
        count => format!("{count} workers, such as {node}, have"),
    };
    let lacks = (missing.count > 0).then(|| format!("no route to pods in {}", listed(missing)));
    let has = (extra.count > 0).then(|| format!("routes to pods in {}", listed(extra)));
    let what = [lacks, has].into_iter().flatten().collect::<Vec<_>>().join(" and ");
    let harm = if missing.count > 0 { "they cannot reach each other" } else { "packets to them go astray" };
    let detail = format!("{who} {what}, unlike most workers of the mesh (compared with {against}): {harm}");
    let (block, next) = match (missing.first.first(), extra.first.first()) {
        (Some((block, owner)), _) => {
            let owner = owner.as_deref().unwrap_or(against);
            let next = format!(
                "on {node} compare `ip route show {block}` with the same on {against}, and see whether its session with {owner} is up (`birdcl show protocols`; with VXLAN, Felix's log); then delete the calico-node Pod on {node}, which programs its routes again"
            );
            (block, next)
        }
        (None, Some((block, Some(owner)))) => {
            let next = format!(
                "{owner} has {block}, so that it is the others that lack it: look at calico-node on {owner} and whether its sessions are up (`birdcl show protocols`)"
            );
            (block, next)
        }
        (None, Some((block, None))) => {
            let next = format!(
                "nobody has {block} (`calicoctl ipam show --show-blocks`): delete the calico-node Pod on {node}; if the route stays, `ip route del {block}` there"
            );
            (block, next)
        }
        (None, None) => return None,
    };
    let draft = Draft::new("PodRouteSetDiffers", Warning, detail, next).about(format!("pod block {block}"));
    let since = nodes.iter().map(|(differs, _)| differs.since).min();
    Some(draft.since(since).on(nodes.iter().map(|(differs, _)| differs.node)))
}

/// Blocks as a phrase.
fn listed(blocks: &Blocks) -> String {
    let named = blocks.first.iter().map(|(block, owner)| match owner {
        Some(owner) => format!("{block} of {owner}"),
        None => format!("{block} of no node"),
    });
    let mut text = named.collect::<Vec<_>>().join(", ");
    let more = blocks.count.saturating_sub(blocks.first.len());
    if more > 0 {
        let _ = write!(text, " and {more} more blocks");
    }
    text
}

/// What they say is not confirmed by themselves: no alarm, but no silence either.
fn not_asked(silent: &[Differs<'_>]) -> Option<Draft> {
    let first = silent.first()?;
    let why = first.difference.as_ref().err()?;
    let detail = format!(
        "by what was told of them, {} workers, such as {}, route other blocks of pod addresses than most of the mesh; which ones is not known: {why}",
        silent.len(),
        first.node
    );
    let next = "let the aggregator reach the agents' port (10580) on the addresses of the nodes";
    let draft = Draft::new("PodRouteSetDiffers", Info, detail, next).about("not confirmed".to_owned());
    Some(draft.since(silent.iter().map(|differs| differs.since).min()).on(silent.iter().map(|differs| differs.node)))
}

#[cfg(test)]
mod tests;
