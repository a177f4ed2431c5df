//! What earlier looks of this boot saw of the routes.

use std::collections::BTreeSet;
use std::sync::Arc;

use ipnet::IpNet;
use serde::Serialize;

use super::routes::TUNNELS;
use super::{ClusterMap, ClusterNode, Link, Program, Routing, Seen, Snapshot, TableRoute};

/// Kinds of links (`IFLA_INFO_KIND`) that lead into a virtual private network.
const VPN: [&str; 7] = ["tun", "wireguard", "ppp", "xfrm", "vti", "vti6", "ovpn"];

/// What earlier looks of this boot saw of the routes.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct RouteMemory {
    /// Routes to pods of other nodes, ordered by destination, as they were when they were last right. What the living
    /// owner took away is forgotten.
    #[serde(skip)]
    pub remote: Vec<TableRoute>,
    /// The list of routes that holds just those.
    #[serde(skip)]
    matched: Option<Arc<Vec<TableRoute>>>,
    /// Pod ranges of other nodes (`spec.podCIDRs`) to which there was the right route, in order.
    #[serde(skip)]
    pub ranges: Vec<IpNet>,
    /// The list of routes for which these were told, and how many nodes there were.
    #[serde(skip)]
    ranged: Option<(Arc<Vec<TableRoute>>, usize)>,
    /// Blocks of this node.
    pub blackholes: BTreeSet<IpNet>,
    /// Tunnels that routes to other nodes used.
    pub tunnels: BTreeSet<String>,
    /// What was there when the first look of this boot was taken.
    #[serde(skip)]
    pub first: Option<FirstLook>,
    /// What an earlier process of this boot told as added.
    added: BTreeSet<String>,
}

/// What was there at first: it was not added.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct FirstLook {
    /// Routes of people and of their tools.
    pub routes: BTreeSet<IpNet>,
    /// Links into virtual private networks.
    pub vpns: BTreeSet<String>,
}

impl Link {
    /// Whether Calico or flannel sends packets to other nodes through it.
    pub(crate) fn is_tunnel(&self) -> bool {
        TUNNELS.contains(&self.name.as_str())
    }

    /// Whether it leads into a virtual private network that is not the CNI's own.
    pub(crate) fn is_vpn(&self) -> bool {
        let own = |name: &str| ["flannel", "cilium", "kilo"].iter().any(|prefix| name.starts_with(prefix));
        self.kind.as_deref().is_some_and(|kind| VPN.contains(&kind)) && !self.is_tunnel() && !own(&self.name)
    }

    /// Whether local pods can be behind it.
    pub(crate) fn is_pods(&self) -> bool {
        self.name.starts_with("cali") || matches!(self.kind.as_deref(), Some("veth" | "bridge"))
    }
}

impl Routing {
    /// Whether routes to other nodes may leave by this link: it carries a default route, or is a tunnel, or is none that
    /// somebody put up for something else.
    pub(crate) fn leads_to_nodes(&self, link: u32) -> bool {
        self.uplinks().any(|uplink| uplink == link) || self.link(link).is_some_and(|link| !link.is_vpn())
    }

    /// Routes of the table `main` that neither the kernel's defaults nor the CNI explain: their links lead to no pods and
    /// into no tunnel of the CNI.
    pub(crate) fn foreign_routes(&self) -> impl Iterator<Item = &TableRoute> {
        let fine = |link: &&Link| {
            let uplink = || self.uplinks().any(|uplink| uplink == link.index);
            link.loopback || link.is_tunnel() || (link.is_pods() && !uplink())
        };
        let mut fine: Vec<u32> = self.links.iter().filter(fine).map(|link| link.index).collect();
        fine.sort_unstable();
        self.routes.others().filter(move |route| fine.binary_search(&route.link).is_err())
    }
}

impl Snapshot {
    /// Whether who wrote this route runs. Unknown counts as running, and so does flannel, for which nobody looks.
    pub(crate) fn owner_lives(&self, route: &TableRoute) -> bool {
        let flannel = || {
            let link = self.routing.get().and_then(|routing| routing.link(route.link));
            link.is_none_or(|link| link.name.starts_with("flannel"))
        };
        match () {
            () if route.protocol == 12 => self.runs(Program::Bird),
            () if !route.is_calicos() && flannel() => true,
            () => self.felix_lives(),
        }
    }

    /// Whether Felix runs. Unknown counts as running.
    pub(crate) fn felix_lives(&self) -> bool {
        self.health.felix.get().is_some() || self.runs(Program::Felix)
    }

    /// Whether this program runs. Unknown counts as running.
    pub(crate) fn runs(&self, program: Program) -> bool {
        self.processes.get().is_none_or(|processes| processes.of(program).is_some())
    }
}

impl RouteMemory {
    /// Takes over from a finding that an earlier process of this boot raised.
    pub(crate) fn restore(&mut self, code: &str, subject: &str) {
        match code {
            "StaticRouteAdded" | "VpnInterfaceAdded" => _ = self.added.insert(subject.to_owned()),
            "BlockBlackholeMissing" => self.blackholes.extend(subject.parse::<IpNet>()),
            "TunnelDeviceMissing" => _ = self.tunnels.insert(subject.to_owned()),
            _ => {}
        }
    }

    /// Adds what this look saw.
    pub(crate) fn update(&mut self, now: &Snapshot) {
        let Seen::Yes(routing) = &now.routing else { return };
        if self.first.is_none() {
            let told = |subject: &str| self.added.contains(subject);
            let routes = routing.foreign_routes().map(|route| route.to).filter(|to| !told(&to.to_string()));
            let vpns = routing.links.iter().filter(|link| link.is_vpn() && !told(&link.name));
            self.first =
                Some(FirstLook { routes: routes.collect(), vpns: vpns.map(|link| link.name.clone()).collect() });
        }
        self.blackholes.extend(routing.blackholes());
        if let Seen::Yes(map) = &now.cluster
            && let Some(this) = map.this()
            && !this.blocks.is_empty()
        {
            self.blackholes.retain(|block| this.blocks.contains(block));
        } else if now.runs(Program::Bird) && now.felix_lives() {
            // Given back: whoever lives took it away, and no pod of it is left.
            let used = |block: &IpNet| routing.pods.values().flatten().any(|route| block.contains(&route.address));
            self.blackholes.retain(|block| used(block) || routing.blackholes().any(|it| it == *block));
        }
        self.update_remote(now, routing);
        self.update_ranges(now, routing);
        // There can be tens of thousands of routes, and rarely a tunnel that is new.
        for link in routing.links.iter().filter(|link| link.is_tunnel()) {
            if !self.tunnels.contains(&link.name) && self.remote.iter().any(|route| route.link == link.index) {
                self.tunnels.insert(link.name.clone());
            }
        }
    }

    fn update_ranges(&mut self, now: &Snapshot, routing: &Routing) {
        let Some(map) = now.cluster.get().filter(|map| map.pools.is_empty() && routing.routes.beyond == 0) else {
            return;
        };
        let same =
            |(list, nodes): &(Arc<_>, usize)| Arc::ptr_eq(list, routing.routes.shared()) && *nodes == map.nodes.len();
        if self.ranged.as_ref().is_some_and(same) {
            return;
        }
        let known = |(node, block): &(&ClusterNode, IpNet)| {
            let right = |route| routing.way(node, *block, route).is_some();
            self.ranges.binary_search(block).is_ok() || routing.to_range(*block).is_some_and(right)
        };
        let mut ranges: Vec<IpNet> = map.ranges().filter(known).map(|(_, block)| block).collect();
        ranges.sort_unstable();
        ranges.dedup();
        self.ranges = ranges;
        self.ranged = Some((Arc::clone(routing.routes.shared()), map.nodes.len()));
    }

    fn update_remote(&mut self, now: &Snapshot, routing: &Routing) {
        if self.matches(routing) {
            self.matched = Some(Arc::clone(routing.routes.shared()));
            return;
        }
        self.matched = None;
        let mut all: Vec<TableRoute> = routing.remote_routes().copied().collect();
        if all.is_empty() {
            // Everything at once is no withdrawal.
            return;
        }
        all.dedup_by_key(|route| route.to);
        // Blocks that the cluster still has; their routes are missed.
        let others = now.cluster.get().into_iter().flat_map(ClusterMap::others);
        let mut alive: Vec<IpNet> = others.flat_map(|node| node.blocks.iter().copied()).collect();
        alive.sort_unstable();
        for old in &self.remote {
            match all.binary_search_by_key(&old.to, |route| route.to) {
                // Onto a link that leads elsewhere: the old one was right.
                Ok(at) if !routing.leads_to_nodes(all[at].link) => all[at] = *old,
                Err(at) if !now.owner_lives(old) || alive.binary_search(&old.to).is_ok() => all.insert(at, *old),
                Ok(_) | Err(_) => {}
            }
        }
        self.remote = all;
    }

    /// Whether the routes to other nodes are those that are remembered. There can be thousands, and mostly nothing changed.
    pub(crate) fn matches(&self, routing: &Routing) -> bool {
        let same = |list| Arc::ptr_eq(list, routing.routes.shared());
        self.matched.as_ref().is_some_and(same) || self.remote.iter().eq(routing.remote_routes())
    }

    /// The route to this block as it was when it was right.
    pub fn remote(&self, block: IpNet) -> Option<&TableRoute> {
        self.remote.binary_search_by_key(&block, |route| route.to).ok().map(|at| &self.remote[at])
    }
}
