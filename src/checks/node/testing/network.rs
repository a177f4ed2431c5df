//! Routes, sessions and ways of a healthy worker, and how they break.

use super::*;

/// Index of the uplink.
pub(in crate::checks::node) const UPLINK: u32 = 2;

/// Index of the link to the pod.
pub(in crate::checks::node) const POD_LINK: u32 = 5;

/// A health port that answers.
pub(in crate::checks::node) fn answers(status: u16) -> Seen<HttpAnswer> {
    Seen::Yes(HttpAnswer { status, body: "ok".into() })
}

/// A way by the uplink that goes so far.
pub(in crate::checks::node) fn leg(to: &str, end: PathEnd) -> PathLeg {
    let address: std::net::SocketAddr = to.parse().expect("an address");
    let source = Some("10.0.0.5".parse().expect("an address"));
    PathLeg { to: to.into(), address: Some(address.ip()), port: address.port(), source, end, clock_ahead: Some(0) }
}

/// A way that ends so.
pub(in crate::checks::node) fn fault(step: PathStep, kind: FaultKind) -> PathEnd {
    PathEnd::Fault(PathFault::new(step, kind, "for this test"))
}

/// A way on which packets are dropped.
pub(in crate::checks::node) fn end() -> PathEnd {
    fault(PathStep::Connect, FaultKind::TimedOut)
}

/// A route of the table `main`: destination, gateway or `-`, link, protocol.
pub(in crate::checks::node) fn table_route(text: &str) -> TableRoute {
    let words: Vec<&str> = text.split(' ').collect();
    TableRoute {
        table: 254,
        to: words[0].parse().expect("a prefix"),
        metric: 0,
        protocol: words[3].parse().expect("a protocol"),
        kind: RouteKind::Unicast,
        link: words[2].parse().expect("a link"),
        gateway: words[1].parse().ok(),
        several: false,
    }
}

/// Two other nodes with a block each, without tunnels.
pub(super) fn cluster_map() -> ClusterMap {
    let node = |name: &str, address: &str, block: &str| ClusterNode {
        name: name.into(),
        ready: true,
        created_at: None,
        addresses: vec![address.parse().expect("an address")],
        tunnels: vec![],
        blocks: vec![block.parse().expect("a block")],
    };
    ClusterMap {
        own: "n1".into(),
        nodes: vec![
            node("n1", "10.0.0.5", "10.244.0.0/26"),
            node("n2", "10.0.0.6", "10.244.1.0/26"),
            node("n3", "10.0.0.8", "10.244.2.0/26"),
        ],
        pools: vec![Pool {
            name: "default".into(),
            cidr: "10.244.0.0/16".parse().expect("a pool"),
            ipip: Encapsulation::Never,
            vxlan: Encapsulation::Never,
            disabled: false,
        }],
        full_mesh: Some(true),
        services: vec![],
        typha_port: None,
    }
}

pub(in crate::checks::node) fn link(index: u32, name: &str, kind: Option<&str>) -> Link {
    Link::working(index, name, kind)
}

pub(super) fn routing() -> Routing {
    let gateway = "10.0.0.1".parse().expect("an address");
    let pod = "10.244.0.7".parse().expect("an address");
    let via = RouteAnswer::Via { link: POD_LINK, gateway: None, kind: RouteKind::Unicast };
    Routing {
        links: vec![
            link(7, "cni9", Some("bridge")),
            link(1, "lo", None),
            link(UPLINK, "eth0", None),
            link(POD_LINK, "cni0", Some("bridge")),
        ],
        addresses: vec![Address {
            link: UPLINK,
            address: "10.0.0.5".parse().expect("an address"),
            prefix: 24,
            global: true,
        }],
        defaults: vec![Route {
            family: Family::V4,
            table: 254,
            protocol: 16,
            kind: RouteKind::Unicast,
            metric: None,
            next_hops: vec![(Some(gateway), Some(UPLINK))],
        }],
        by_protocol: vec![(Family::V4, 2, 3)],
        rules: vec![],
        routes: RouteList::default(),
        samples: vec![],
        ipsec: Seen::Absent,
        programs: Seen::Absent,
        wireguard: Seen::Absent,
        gateways: vec![Neighbour { link: UPLINK, address: gateway, state: NeighbourState::Reachable }],
        pods: BTreeMap::from([("sandbox-1".to_owned(), vec![PodRoute { address: pod, answer: Seen::Yes(via) }])]),
    }
}

pub(super) fn traffic() -> Traffic {
    let link =
        |index, name: &str| LinkSwitches { index, link: name.into(), forwarding: true, proxy_arp: false, rp_filter: 0 };
    let eth0 = LinkCounters { link: "eth0".into(), up: true, packets: 1_000, errors: 0, carrier_changes: 0 };
    Traffic {
        sockets: Seen::Yes(Sockets { ports: 28_232, in_use: 10, ..Sockets::default() }),
        neighbours: vec![NeighbourTable { family: Family::V4, entries: 5, limit: Some(1024), overflows: 0 }],
        links: Seen::Yes(vec![eth0]),
        switches: Seen::Yes(vec![link(UPLINK, "eth0")]),
        bridge_calls_iptables: Seen::Yes(true),
        reverse_path_drops: 0,
        too_long: 0,
    }
}

/// The first BIRD, which answers.
pub(in crate::checks::node) fn bird(bgp: &mut Bgp) -> &mut Bird {
    let Seen::Yes(bird) = &mut bgp.daemons[0].bird else { panic!("seen") };
    bird
}

pub(super) fn bgp() -> Bgp {
    let peer = |number: u8| BgpPeer {
        name: format!("Mesh_10_0_0_{number}"),
        address: Some([10, 0, 0, number].into()),
        remote_as: Some(64512),
        state: BgpState::Established,
        since: "02:24:08".into(),
        error: None,
        imported: 1,
        exported: 2,
        restarting: false,
    };
    let kernel = KernelProtocol {
        name: "kernel1".into(),
        table: "master".into(),
        state: "up".into(),
        exported: Some(3),
        ..KernelProtocol::default()
    };
    let bird =
        Bird { version: "1.6.8".into(), recovering: false, kernels: vec![kernel], peers: vec![peer(2), peer(3)] };
    let socket = "/var/run/calico/bird.ctl".into();
    let daemon = BirdDaemon { socket, family: Family::V4, had_peers: true, bird: Seen::Yes(bird) };
    Bgp { daemons: vec![daemon], tcp: Seen::Absent }
}

impl Node {
    /// Changes the path to the control plane.
    pub(in crate::checks::node) fn path(self, change: impl FnOnce(&mut ControlPlanePath)) -> Self {
        self.edit(|now| {
            let Seen::Yes(path) = &mut now.control_plane else { panic!("seen") };
            change(path);
        })
    }

    /// API servers at these addresses, and how far the ways to them go.
    pub(in crate::checks::node) fn endpoints(self, to: &[&str], ends: &[PathEnd]) -> Self {
        let legs = to.iter().zip(ends).map(|(to, end)| leg(to, end.clone())).collect();
        self.path(|path| path.endpoints = legs)
    }

    /// Other nodes that were asked: name, and whether they answered.
    pub(in crate::checks::node) fn peers(self, ready: bool, peers: &[(&str, bool)]) -> Self {
        let peer = |(at, (node, answers)): (u8, &(&str, bool))| PeerAnswer {
            node: (*node).into(),
            address: [10, 0, 0, 100 + at].into(),
            ready,
            answers: *answers,
        };
        let peers = (0..).zip(peers).map(peer).collect();
        self.path(|path| path.peers = peers)
    }

    /// A BIRD with an established session to each of 10.0.0.2 and 10.0.0.3, unless there is one, and then changes it.
    pub(in crate::checks::node) fn bgp(self, change: impl FnOnce(&mut Bgp)) -> Self {
        self.edit(|now| {
            if now.bgp == Seen::Absent {
                now.bgp = Seen::Yes(bgp());
            }
            let Seen::Yes(bgp) = &mut now.bgp else { panic!("seen") };
            change(bgp);
        })
    }

    /// A full mesh of n1, which is this node, and for each of `ready` n2 (10.0.0.2), n3, ...
    pub(in crate::checks::node) fn mesh(self, ready: &[bool]) -> Self {
        let node = |number: usize, ready| ClusterNode {
            name: format!("n{number}"),
            ready,
            created_at: None,
            addresses: vec![format!("10.0.0.{number}").parse().expect("an address")],
            tunnels: vec![],
            blocks: vec![],
        };
        let others = ready.iter().enumerate().map(|(position, ready)| node(position + 2, *ready));
        let nodes = std::iter::once(node(1, true)).chain(others).collect();
        let map = ClusterMap {
            own: "n1".into(),
            nodes,
            pools: vec![],
            full_mesh: Some(true),
            services: vec![],
            typha_port: None,
        };
        self.edit(|now| now.cluster = Seen::Yes(map))
    }

    /// Changes the routing state.
    pub(in crate::checks::node) fn routing(self, change: impl FnOnce(&mut Routing)) -> Self {
        self.edit(|now| {
            let Seen::Yes(routing) = &mut now.routing else { panic!("seen") };
            change(routing);
        })
    }

    /// A worker of a cluster with Calico and BGP, with two other nodes, and a VPN's link `tun0` that nothing uses.
    pub(in crate::checks::node) fn calico_worker() -> Self {
        let node = Node::worker().calico(Backend::Nftables).without(Program::KubeProxy).edit(|now| {
            let Seen::Yes(processes) = &mut now.processes else { panic!("seen") };
            let started_at = processes.found[0].started_at;
            processes.found.push(Process { program: Program::Bird, pid: 20, state: 'S', started_at });
        });
        let node = node.routing(|routing| {
            routing.links.retain(|link| link.index != POD_LINK);
            routing.links.extend([link(POD_LINK, "cali0", Some("veth")), link(9, "tun0", Some("tun"))]);
        });
        let node = node.routes(|list| {
            list.extend(
                [
                    "0.0.0.0/0 10.0.0.1 2 16",
                    "10.0.0.0/24 - 2 2",
                    "10.244.0.7/32 - 5 3",
                    "10.244.0.0/26 - 0 12",
                    "10.244.1.0/26 10.0.0.6 2 12",
                    "10.244.2.0/26 10.0.0.8 2 12",
                ]
                .map(|text| TableRoute { metric: 1024, ..table_route(text) }),
            );
            list[3].kind = RouteKind::Blackhole;
        });
        let now = node.now.clone();
        node.remember(|before| {
            before.routes.update(&now);
            before.routes.first = None;
        })
    }

    /// A worker of a cluster of six without Calico, whose CNI writes a route to the range of each node: to the node, or through
    /// `flannel.1`. It remembers them.
    pub(in crate::checks::node) fn ranges(tunnel: bool) -> Self {
        let other =
            |number: usize| if tunnel { format!("10.244.{number}.0 9") } else { format!("10.0.0.{} 2", number + 5) };
        let node = Node::worker().without_kube_proxy().routing(|routing| {
            routing.links.push(link(9, "flannel.1", Some("vxlan")));
        });
        let node = node.routes(|list| {
            *list = ["0.0.0.0/0 10.0.0.1 2 16", "10.0.0.0/24 - 2 2", "10.244.0.0/24 - 5 2"].map(table_route).into();
            list.extend((1..6).map(|number| table_route(&format!("10.244.{number}.0/24 {} 3", other(number)))));
        });
        let node = node.with_map(|map| {
            let first = map.nodes[0].clone();
            map.pools.clear();
            map.full_mesh = None;
            map.nodes = (0..6)
                .map(|number| ClusterNode {
                    name: format!("n{}", number + 1),
                    addresses: vec![format!("10.0.0.{}", number + 5).parse().expect("an address")],
                    blocks: vec![format!("10.244.{number}.0/24").parse().expect("a range")],
                    ..first.clone()
                })
                .collect();
        });
        let now = node.now.clone();
        node.remember(|before| before.routes.update(&now))
    }

    /// The aggregator sees no pool of Calico's: the map has the nodes' `podCIDRs` alone, to which there are routes too.
    pub(in crate::checks::node) fn without_pools(self) -> Self {
        let node = self.with_map(|map| {
            map.pools.clear();
            for (number, node) in map.nodes.iter_mut().enumerate() {
                node.blocks = vec![format!("10.200.{number}.0/24").parse().expect("a range")];
            }
        });
        node.routes(|list| list.extend(["10.200.1.0/24 10.0.0.6 2 3", "10.200.2.0/24 10.0.0.8 2 3"].map(table_route)))
    }

    /// Changes the routes that are kept.
    pub(in crate::checks::node) fn routes(self, change: impl FnOnce(&mut Vec<TableRoute>)) -> Self {
        self.routing(|routing| {
            let mut list = routing.routes.all().to_vec();
            change(&mut list);
            routing.routes = RouteList::new(list, 0);
        })
    }

    /// Changes what the cluster says; that everything is as on [`Node::calico_worker`] if it said nothing.
    pub(in crate::checks::node) fn with_map(self, change: impl FnOnce(&mut ClusterMap)) -> Self {
        self.edit(|now| {
            let mut map = now.cluster.get().cloned().unwrap_or_else(cluster_map);
            change(&mut map);
            now.cluster = Seen::Yes(map);
        })
    }
}
