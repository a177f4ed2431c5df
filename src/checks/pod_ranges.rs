//! Routes to the pod ranges of other nodes (`spec.podCIDRs`) where a daemon on each node writes them: flannel, kube-router, or
//! whoever set the cluster up by hand.
//!
//! Many networks need no such route: an overlay with one route for all, clouds that route pods themselves, Cilium. So a route
//! is expected only where this node has had it in this boot, or has one of the same kind to most nodes of the same kind: to the
//! node itself where that is in this node's subnet, or into a tunnel to an address of the range.

use std::net::IpAddr;
use std::time::Duration;

use ipnet::IpNet;

use super::routes::{NEW_BLOCK, is_at, leads_nowhere, map_lag, same_subnet, uses_main, written};
use super::{Finding, Look, Outcome, Severity};
use crate::facts::{ClusterMap, ClusterNode, Family, RouteKind, Routing, TableRoute, Way};

/// What to do about them; the steps of the checks are Calico's.
const NEXT: &str = "read the log of the CNI's daemon on this node (kube-flannel, kube-router) and delete its pod so that it writes its routes again; write a route again that was written by hand";

/// A range of another node, and the route to it.
#[derive(Clone, Copy)]
struct Range<'a> {
    node: &'a ClusterNode,
    block: IpNet,
    route: Option<&'a TableRoute>,
    way: Option<Way>,
    /// Whether this node had the right route to it in this boot.
    had: bool,
    /// Whether one of each kind can be expected, if such routes are usual here.
    direct: bool,
    tunnel: bool,
}

/// The ranges to which a route is expected.
pub(crate) struct Ranges<'a> {
    routing: &'a Routing,
    map: &'a ClusterMap,
    expected: Vec<Range<'a>>,
}

/// Where the cluster does not say which blocks of Calico's pools there are: what is found about the ranges, or else by what this
/// boot remembers of Calico's routes.
pub(crate) fn judged<'a>(
    look: &'a Look<'a>,
    routing: &'a Routing,
    judge: impl FnOnce(&Ranges<'a>) -> Vec<Finding>,
    by_memory: impl FnOnce() -> Outcome,
) -> Outcome {
    let calico = look.expected.calico.is_some();
    match map(look).map(|map| Ranges::of(look, routing, map)) {
        Some(Some(ranges)) => match judge(&ranges) {
            // The blocks of pools that nobody tells of are not among the ranges.
            none if none.is_empty() && calico => by_memory(),
            found => Outcome::from_findings(found),
        },
        Some(None) if !calico => {
            Outcome::NotApplicable("this node needs no routes to pod ranges of other nodes".into())
        }
        _ => by_memory(),
    }
}

/// What the cluster says, where Kubernetes gives each node a range and the CNI leaves the routes to the table `main`.
fn map<'a>(look: &Look<'a>) -> Option<&'a ClusterMap> {
    let map = look.now.cluster.get().filter(|map| map.pools.is_empty())?;
    uses_main(&look.now.cni).then_some(map)
}

impl<'a> Ranges<'a> {
    /// Those of a look; none where no route is expected to any.
    fn of(look: &'a Look<'a>, routing: &'a Routing, map: &'a ClusterMap) -> Option<Self> {
        let memory = &look.before.routes.ranges;
        let through = |route: &&TableRoute| route.kind == RouteKind::Unicast && route.gateway.is_some();
        // Two such routes and the default are the least that tell what is usual.
        if routing.routes.beyond > 0
            || (memory.is_empty() && routing.routes.main().iter().filter(through).nth(1).is_none())
        {
            return None;
        }
        let mut blocks: Vec<IpNet> = map.nodes.iter().flat_map(|node| &node.blocks).copied().collect();
        blocks.sort_unstable();
        // The ranges do not overlap.
        let is_pod = |address: &IpAddr| {
            let after = blocks.partition_point(|block| block.network() <= *address);
            after.checked_sub(1).is_some_and(|at| blocks[at].contains(address))
        };
        let range = |(node, block): (&'a ClusterNode, IpNet)| {
            let route = routing.to_range(block);
            // A node that is itself a pod is a virtual kubelet, whose pods run elsewhere.
            let real = node.ready && !node.addresses.is_empty() && !node.addresses.iter().any(is_pod);
            Range {
                node,
                block,
                route,
                way: route.and_then(|route| routing.way(node, block, route)),
                had: memory.binary_search(&block).is_ok(),
                direct: real && same_subnet(routing, node),
                tunnel: real,
            }
        };
        let all: Vec<Range<'a>> = map.ranges().map(range).collect();
        let mut expected = Vec::new();
        for family in [Family::V4, Family::V6] {
            let of_family = || all.iter().filter(move |range| Family::of(range.block.addr()) == family);
            let direct = is_usual(of_family().filter(|range| range.direct), Way::Direct);
            let tunnel = is_usual(of_family().filter(|range| range.tunnel), Way::Tunnel);
            let is_expected = |range: &&Range<'a>| range.had || (direct && range.direct) || (tunnel && range.tunnel);
            expected.extend(of_family().filter(is_expected).copied());
        }
        (!expected.is_empty()).then_some(Ranges { routing, map, expected })
    }

    /// Ranges without a route.
    pub(crate) fn missing(&self) -> Vec<Finding> {
        let best = |range: &Range<'_>| self.routing.routes.best_in_main(range.block);
        // A wider route may be somebody's way to do it; the default is nobody's.
        let gone = |range: &&Range<'_>| best(range).is_none_or(|best| best.to.prefix_len() == 0);
        let finding = |range: &Range<'_>| {
            let instead = match best(range) {
                Some(route) => format!("packets to it would take `{}`", written(self.routing, route)),
                None => "there is no way to it at all".to_owned(),
            };
            let detail = format!("Pods of node {} in {} have no route; {instead}", range.node.name, range.block);
            Self::finding(range, range.node.name.clone(), detail, map_lag(self.map))
        };
        self.expected.iter().filter(gone).map(finding).collect()
    }

    /// Ranges whose route leads elsewhere.
    pub(crate) fn wrong(&self) -> Vec<Finding> {
        let wrong = self.expected.iter().filter(|range| range.way.is_none()).filter_map(|range| {
            let route = range.route?;
            let other = |gateway| self.map.nodes.iter().find(|other| is_at(other, gateway));
            let how = match (route.gateway, route.gateway.and_then(other)) {
                _ if leads_nowhere(route) => "drops the packets".to_owned(),
                (Some(gateway), Some(other)) => format!("leads to {gateway}, which is node {}", other.name),
                // A router may know the way, unless this node itself had a better one.
                _ if !range.had => return None,
                (Some(gateway), None) => format!("leads to {gateway}, which is no node of the cluster"),
                (None, _) => format!("leaves by {}", self.routing.link_name(route.link)),
            };
            let (node, block) = (&range.node.name, range.block);
            let detail = format!("The route to {block} on node {node} {how}: `{}`", written(self.routing, route));
            Some(Self::finding(range, block.to_string(), detail, NEW_BLOCK))
        });
        wrong.collect()
    }

    /// Nobody knows whether the daemon lives that wrote the routes.
    fn finding(range: &Range<'_>, subject: String, detail: String, wait: Duration) -> Finding {
        let finding = Finding::new(subject, detail).next(NEXT).repaired_within(wait);
        match () {
            () if !range.node.ready => finding.severity(Severity::Info),
            () if !range.had => finding.severity(Severity::Warning),
            () => finding,
        }
    }
}

/// Whether most of these are reached this way, and two at least.
fn is_usual<'r, 'a: 'r>(ranges: impl Iterator<Item = &'r Range<'a>>, wanted: Way) -> bool {
    let (mut total, mut right) = (0, 0);
    // One that is reached the other way is no example for either.
    for range in ranges.filter(|range| range.way.is_none_or(|way| way == wanted)) {
        total += 1;
        right += usize::from(range.way.is_some());
    }
    right >= 2 && right * 2 > total
}
