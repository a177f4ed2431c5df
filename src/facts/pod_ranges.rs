//! How packets come to the pod ranges of other nodes (`spec.podCIDRs`) where a daemon on each node writes a route to each.

use ipnet::IpNet;

use super::{ClusterMap, ClusterNode, Link, RouteKind, Routing, TableRoute};

/// How packets come to the node of a range.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Way {
    /// The next hop is the node: flannel's host-gw, kube-router, routes written by hand.
    Direct,
    /// Through a tunnel of the CNI, to an address of the range: flannel's VXLAN.
    Tunnel,
}

impl ClusterMap {
    /// Other nodes, each with its ranges.
    pub(crate) fn ranges(&self) -> impl Iterator<Item = (&ClusterNode, IpNet)> {
        let own = self.this().map_or(&[][..], |this| &this.blocks);
        let all = self.others().flat_map(|node| node.blocks.iter().map(move |block| (node, *block)));
        all.filter(move |(_, block)| !own.contains(block))
    }
}

impl Routing {
    /// How this route leads to this range, if it does.
    pub(crate) fn way(&self, node: &ClusterNode, block: IpNet, route: &TableRoute) -> Option<Way> {
        let gateway = route.gateway.filter(|_| route.kind == RouteKind::Unicast)?;
        let tunnel = self.link(route.link).is_some_and(Link::is_tunnel);
        match () {
            () if tunnel && block.contains(&gateway) => Some(Way::Tunnel),
            () if !tunnel && node.addresses.contains(&gateway) => Some(Way::Direct),
            () => None,
        }
    }

    /// The route to this range and nothing else.
    pub(crate) fn to_range(&self, block: IpNet) -> Option<&TableRoute> {
        self.routes.best_in_main(block).filter(|route| route.to == block)
    }
}
