//! What the checks of routes share: whose routes are judged, where a block should lead, and who captures it.

use std::net::IpAddr;
use std::time::Duration;

use ipnet::IpNet;

use super::{Finding, Look};
use crate::facts::{ClusterMap, ClusterNode, Cni, Encapsulation, Link, Pool, RouteKind, Routing, TableRoute, longest};

/// BIRD reads the kernel's routes every 2 s and puts its own back (`scan time`), plus a margin.
const BIRD_REPAIRS: Duration = Duration::from_secs(5);
/// Felix writes routes again with its periodic refresh (`RouteRefreshInterval`, 90 s), plus a margin.
pub(crate) const FELIX_REFRESH: Duration = Duration::from_secs(100);
/// A block that is new needs not have its routes yet, and the cluster's word may be late (catalogue R082).
pub(crate) const NEW_BLOCK: Duration = Duration::from_secs(60);

/// How old the map can be, during which a route may be gone because its node or block is: the map is asked for every 60 s and
/// a quarter more, in a cluster of more than 1,000 nodes every 60 ms for each of them. Felix's refresh is no longer than that.
pub(crate) fn map_lag(map: &ClusterMap) -> Duration {
    let nodes = u32::try_from(map.nodes.len()).unwrap_or(u32::MAX);
    FELIX_REFRESH.max(Duration::from_millis(100) * nodes)
}

/// Plugins that route pods by other tables and rules, on purpose.
const OWN_RULES: [&str; 5] = ["cilium-cni", "aws-cni", "azure-vnet", "antrea", "ovn-k8s-cni-overlay"];

/// Whether the CNI in force leaves the routes of pods to the table `main`.
pub(crate) fn uses_main(cni: &Cni) -> bool {
    cni.config().is_none_or(|config| !OWN_RULES.iter().any(|plugin| config.has(plugin)))
}

/// What the cluster says, where Calico hands out the blocks: only then a route to each is expected.
pub(crate) fn calico_map<'a>(look: &Look<'a>) -> Option<&'a ClusterMap> {
    let map = look.now.cluster.get()?;
    let config = look.now.cni.config();
    let calico = look.expected.calico.is_some() || config.is_some_and(|config| config.has("calico"));
    // Another plugin's addresses are routed by somebody else: flannel, or the network outside.
    let others = config.is_some_and(|config| {
        config.plugins.iter().any(|plugin| plugin.ipam.as_deref().is_some_and(|ipam| ipam != "calico-ipam"))
    });
    (calico && !others && !map.pools.is_empty()).then_some(map)
}

/// The pool of a block.
pub(crate) fn pool_of(map: &ClusterMap, block: IpNet) -> Option<&Pool> {
    map.pools.iter().find(|pool| pool.cidr.contains(&block))
}

/// The finding, held down for as long as the living owner of the route takes to put it back.
pub(crate) fn repaired(look: &Look<'_>, route: &TableRoute, finding: Finding) -> Finding {
    match () {
        () if !look.now.owner_lives(route) => finding,
        () if route.protocol == 12 => finding.repaired_within(BIRD_REPAIRS),
        () => finding.repaired_within(FELIX_REFRESH),
    }
}

/// Whether the node is in a subnet of this node.
pub(crate) fn same_subnet(routing: &Routing, node: &ClusterNode) -> bool {
    let own = routing.addresses.iter().filter(|own| own.global && own.prefix < longest(own.address.into()));
    let nets: Vec<IpNet> = own.filter_map(|own| IpNet::new(own.address, own.prefix).ok()).collect();
    node.addresses.iter().any(|address| nets.iter().any(|net| net.contains(address)))
}

/// The tunnel that a pool needs towards a node, if it needs one (catalogue R086).
pub(crate) fn tunnel_to(routing: &Routing, pool: &Pool, node: &ClusterNode) -> Option<&'static str> {
    let needed = |mode| match mode {
        Encapsulation::Never => false,
        Encapsulation::Always => true,
        Encapsulation::CrossSubnet => !same_subnet(routing, node),
    };
    match () {
        () if needed(pool.vxlan) => Some(if pool.cidr.addr().is_ipv4() { "vxlan.calico" } else { "vxlan-v6.calico" }),
        () if needed(pool.ipip) => Some("tunl0"),
        () => None,
    }
}

/// What routes of somebody else capture.
pub(crate) struct Captures<'a> {
    /// Those routes, in order.
    pub(crate) foreign: Vec<&'a TableRoute>,
    /// Local pods that one of them takes.
    pods: Vec<(&'a TableRoute, String)>,
    /// Blocks of this node.
    own: Vec<IpNet>,
    /// Blocks of other nodes, in order, as the cluster tells them.
    others: Option<Vec<(IpNet, &'a ClusterNode)>>,
    /// Without the cluster's word: routes to other nodes, as they were or, at the first look, as they are.
    known: Vec<&'a TableRoute>,
}

impl<'a> Captures<'a> {
    pub(crate) fn of(look: &Look<'a>, routing: &'a Routing) -> Self {
        let foreign: Vec<&TableRoute> = routing.foreign_routes().collect();
        let sandboxes = look.now.runtime.sandboxes.get().map_or(&[][..], Vec::as_slice);
        let mut pods = Vec::new();
        for (id, routes) in &routing.pods {
            for pod in routes {
                let best = routing.routes.best_in_main(pod.address.into());
                if let Some(best) = best.filter(|best| foreign.binary_search(best).is_ok()) {
                    let name = sandboxes.iter().find(|sandbox| sandbox.id == *id);
                    let name = name.map_or_else(String::new, |it| format!(" {}/{}", it.namespace, it.name));
                    pods.push((best, format!("the local pod{name} at {}", pod.address)));
                }
            }
        }
        let memory = &look.before.routes;
        let others = calico_map(look).map(|map| {
            // There can be thousands of blocks, and hardly ever a route into a pool.
            let inside = |route: &&TableRoute| map.pools.iter().any(|pool| pool.cidr.contains(&route.to));
            let any = foreign.iter().any(inside);
            let nodes = map.others().filter(|_| any);
            let blocks = nodes.flat_map(|node| node.blocks.iter().map(move |block| (*block, node)));
            let mut blocks: Vec<(IpNet, &ClusterNode)> = blocks.collect();
            blocks.sort_unstable_by_key(|(block, _)| *block);
            blocks
        });
        let mut known: Vec<&TableRoute> = Vec::new();
        if others.is_none() && !foreign.is_empty() {
            known.extend(&memory.remote);
            if known.is_empty() {
                known.extend(routing.remote_routes());
            }
        }
        let own = memory.blackholes.iter().copied().chain(routing.blackholes()).collect();
        Captures { foreign, pods, own, others, known }
    }

    /// What this route captures, if it captures anything of pods: as a phrase.
    pub(crate) fn by(&self, route: &TableRoute) -> Option<String> {
        if let Some((_, pod)) = self.pods.iter().find(|(best, _)| *best == route) {
            return Some(pod.clone());
        }
        if let Some(block) = self.own.iter().find(|block| block.contains(&route.to)) {
            return Some(if *block == route.to {
                "this node's own block of pod addresses".to_owned()
            } else {
                format!("a part of this node's own block {block}")
            });
        }
        self.of_others(route)
    }

    fn of_others(&self, route: &TableRoute) -> Option<String> {
        let part = |block: IpNet| if block == route.to { "the block" } else { "a part of the block" };
        if let Some(others) = &self.others {
            let at = |block: IpNet| others.binary_search_by_key(&block, |(block, _)| *block).ok();
            let (block, node) = others[wider(route.to).find_map(at)?];
            let right = route.gateway.is_some_and(|gateway| is_at(node, gateway));
            return (!right).then(|| format!("{} {block} of node {}", part(block), node.name));
        }
        let at = |block: IpNet| self.known.binary_search_by_key(&block, |known| known.to).ok();
        let known = self.known[wider(route.to).find_map(at)?];
        (known.gateway != route.gateway || known.link != route.link).then(|| {
            let gateway = known.gateway.map_or_else(String::new, |gateway| format!(", which {gateway} has"));
            format!("{} {}{gateway}", part(known.to), known.to)
        })
    }
}

/// This prefix and all wider ones but the default, the longest first.
fn wider(net: IpNet) -> impl Iterator<Item = IpNet> {
    (1..=net.prefix_len()).rev().filter_map(move |length| Some(IpNet::new(net.network(), length).ok()?.trunc()))
}

/// Whether this is an address of the node, or of its end of a tunnel.
pub(crate) fn is_at(node: &ClusterNode, address: IpAddr) -> bool {
    node.addresses.contains(&address) || node.tunnels.contains(&address)
}

/// A route as `ip route` prints it.
pub(crate) fn written(routing: &Routing, route: &TableRoute) -> String {
    let link = if route.link == 0 { String::new() } else { format!(" dev {}", routing.link_name(route.link)) };
    format!("{route}{link} proto {}", crate::facts::protocol_name(route.protocol))
}

/// Whether a packet that this route takes comes out elsewhere than one that the other takes.
pub(crate) fn differs(routing: &Routing, one: Option<&TableRoute>, other: Option<&TableRoute>) -> bool {
    let own = |route: &TableRoute| routing.link(route.link).is_some_and(Link::is_tunnel);
    match (one, other) {
        (Some(one), Some(other)) => {
            !own(one) && (one.link, one.gateway, one.kind) != (other.link, other.gateway, other.kind)
        }
        (None, None) => false,
        (Some(one), None) => !own(one),
        (None, Some(_)) => true,
    }
}

/// Whether packets that take it are dropped.
pub(crate) fn leads_nowhere(route: &TableRoute) -> bool {
    route.kind != RouteKind::Unicast
}
