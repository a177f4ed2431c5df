//! A healthy worker, and ways to break it, for the table tests of the checks.

use std::collections::BTreeMap;

use jiff::{SignedDuration, Timestamp};

use super::super::{Limits, Look, Outcome};
use crate::facts::*;

/// Index of the uplink.
pub(super) const UPLINK: u32 = 2;
/// Index of the link to the pod.
pub(super) const POD_LINK: u32 = 5;

/// A node under test.
#[derive(Debug, Clone)]
pub(super) struct Node {
    now: Snapshot,
    before: Remembered,
    expected: Expected,
    limits: Limits,
}

/// What could not be looked at for lack of permission.
pub(super) fn denied<T>(what: &str) -> Seen<T> {
    error(what, Reason::Denied)
}

/// What did not answer.
pub(super) fn timed_out<T>(what: &str) -> Seen<T> {
    Seen::Unreadable(LookError::timed_out(what, 2.0))
}

/// Any error.
pub(super) fn error<T>(what: &str, reason: Reason) -> Seen<T> {
    Seen::Unreadable(LookError::new(what, reason, "for this test"))
}

/// A health port that answers.
pub(super) fn answers(status: u16) -> Seen<HttpAnswer> {
    Seen::Yes(HttpAnswer { status, body: "ok".into() })
}

/// A backend without any table.
pub(super) fn no_tables(backend: Backend) -> Seen<Ruleset> {
    Seen::Yes(Ruleset { generation: Some(1), ..Ruleset::empty(backend) })
}

/// A backend with one IPv4 table that holds these chains.
pub(super) fn chains(backend: Backend, table: &str, names: &[&str]) -> Seen<Ruleset> {
    let chains = names.iter().map(|name| chain(name, &[])).collect();
    Seen::Yes(Ruleset { generation: Some(1), tables: vec![filter_table(table, chains)], ..Ruleset::empty(backend) })
}

/// The subjects of findings; fails when there are none.
pub(super) fn subjects(outcome: &Outcome) -> Vec<String> {
    let Outcome::Findings(findings) = outcome else { panic!("findings, not {outcome:?}") };
    findings.iter().map(|finding| finding.subject.clone()).collect()
}

/// The details of findings; fails when there are none.
pub(super) fn details(outcome: &Outcome) -> Vec<String> {
    let Outcome::Findings(findings) = outcome else { panic!("findings, not {outcome:?}") };
    findings.iter().map(|finding| finding.detail.clone()).collect()
}

/// A valid configuration file with one plugin.
pub(super) fn cni_file(name: &str, plugin: &str) -> CniFile {
    let plugins = vec![CniPlugin { kind: plugin.into(), ..CniPlugin::default() }];
    CniFile {
        name: name.into(),
        modified: None,
        content: Ok(CniConfig { name: "net".into(), cni_version: "1.0.0".into(), plugins }),
    }
}

fn chain(name: &str, targets: &[&str]) -> Chain {
    let jump = |(position, target): (usize, &&str)| Jump {
        position: u32::try_from(position).expect("few"),
        target: (*target).into(),
    };
    let hook = match name.rsplit('-').next().unwrap_or(name).to_uppercase().as_str() {
        "PREROUTING" => Some(Hook::Prerouting),
        "INPUT" => Some(Hook::Input),
        "FORWARD" => Some(Hook::Forward),
        "OUTPUT" => Some(Hook::Output),
        "POSTROUTING" => Some(Hook::Postrouting),
        _ => None,
    };
    let base = hook.filter(|_| !targets.is_empty()).map(|hook| BaseChain { hook, policy: Policy::Accept, nat: false });
    let jumps: Vec<Jump> = targets.iter().enumerate().map(jump).collect();
    let rule = |jump: &Jump| FilterRule { action: Action::Jump(jump.target.clone()), ..FilterRule::new(jump.position) };
    let rules = base.is_some().then(|| jumps.iter().map(rule).collect());
    Chain { jumps, rules, ..Chain::new(name, base) }
}

fn filter_table(name: &str, chains: Vec<Chain>) -> Table {
    Table { family: Family::V4, name: name.into(), chains, per_object_chains: 0, foreign_chains: 0 }
}

fn api_chain(name: &str) -> Vec<ServiceChain> {
    let endpoints = vec!["10.0.0.9:6443".parse().expect("an address")];
    let chain = ServiceChain::new(Family::V4, "default/kubernetes:https", "tcp", name);
    vec![ServiceChain { referenced: Some(true), endpoints, ..chain }]
}

/// A rule as `iptables-save` prints it behind `-A CHAIN`.
pub(super) fn rule(text: &str) -> FilterRule {
    let own = ["ACCEPT", "DROP", "REJECT", "RETURN", "LOG", "MARK", "DNAT", "NFQUEUE"];
    crate::agent::read_rule(text, 0, |target| !own.contains(&target))
}

/// A chain of the kernel's hook of that name, with policy ACCEPT.
pub(super) fn base(name: &str, rules: Vec<FilterRule>) -> Chain {
    Chain { jumps: vec![], rules: Some(rules), ..chain(name, &["-"]) }
}

/// A way by the uplink that goes so far.
pub(super) fn leg(to: &str, end: PathEnd) -> PathLeg {
    let address: std::net::SocketAddr = to.parse().expect("an address");
    let source = Some("10.0.0.5".parse().expect("an address"));
    PathLeg { to: to.into(), address: Some(address.ip()), port: address.port(), source, end, clock_ahead: Some(0) }
}

/// A way that ends so.
pub(super) fn fault(step: PathStep, kind: FaultKind) -> PathEnd {
    PathEnd::Fault(PathFault::new(step, kind, "for this test"))
}

/// A way on which packets are dropped.
pub(super) fn end() -> PathEnd {
    fault(PathStep::Connect, FaultKind::TimedOut)
}

fn kube_proxy_tables() -> Vec<Table> {
    let nat = vec![
        chain("PREROUTING", &["KUBE-SERVICES"]),
        chain("OUTPUT", &["KUBE-SERVICES"]),
        chain("POSTROUTING", &["KUBE-POSTROUTING"]),
        chain("KUBE-SERVICES", &[]),
        chain("KUBE-POSTROUTING", &[]),
        chain("KUBE-MARK-MASQ", &[]),
        chain("KUBE-NODEPORTS", &[]),
    ];
    let filter = vec![chain("FORWARD", &["KUBE-FORWARD"]), chain("KUBE-FORWARD", &[])];
    vec![filter_table("nat", nat), filter_table("filter", filter)]
}

fn calico_tables() -> Vec<Table> {
    let table = |name: &str, bases: &[&str]| {
        let hooked = bases.iter().map(|base| chain(base, &[format!("cali-{base}").as_str()]));
        let own = bases.iter().map(|base| chain(&format!("cali-{base}"), &[]));
        filter_table(name, hooked.chain(own).collect())
    };
    vec![
        table("filter", &["INPUT", "FORWARD", "OUTPUT"]),
        table("nat", &["PREROUTING", "OUTPUT", "POSTROUTING"]),
        table("raw", &["PREROUTING", "OUTPUT"]),
        table("mangle", &["PREROUTING"]),
    ]
}

/// A route of the table `main`: destination, gateway or `-`, link, protocol.
pub(super) fn table_route(text: &str) -> TableRoute {
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
fn cluster_map() -> ClusterMap {
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
    }
}

pub(super) fn link(index: u32, name: &str, kind: Option<&str>) -> Link {
    let loopback = name == "lo";
    Link {
        index,
        name: name.into(),
        kind: kind.map(Into::into),
        up: true,
        carrier: true,
        loopback,
        mtu: 1500,
        master: None,
    }
}

fn routing() -> Routing {
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
        gateways: vec![Neighbour { link: UPLINK, address: gateway, state: NeighbourState::Reachable }],
        pods: BTreeMap::from([("sandbox-1".to_owned(), vec![PodRoute { address: pod, answer: Seen::Yes(via) }])]),
    }
}

fn traffic() -> Traffic {
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
pub(super) fn bird(bgp: &mut Bgp) -> &mut Bird {
    let Seen::Yes(bird) = &mut bgp.daemons[0].bird else { panic!("seen") };
    bird
}

fn bgp() -> Bgp {
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

fn runtime(now: Timestamp) -> Runtime {
    let condition = |kind: &str| RuntimeCondition {
        kind: kind.into(),
        status: true,
        reason: String::new(),
        message: String::new(),
    };
    Runtime {
        socket: Seen::Yes("/run/containerd/containerd.sock".into()),
        status: Seen::Yes(RuntimeStatus {
            name: "containerd".into(),
            version: "1.6.20".into(),
            conditions: vec![condition("RuntimeReady"), condition("NetworkReady")],
            cni_dirs: None,
            cni_loopback: true,
            cni_load: None,
        }),
        sandboxes: Seen::Yes(vec![Sandbox {
            id: "sandbox-1".into(),
            namespace: "default".into(),
            name: "web".into(),
            created_at: i64::try_from(now.as_nanosecond()).expect("this century") - 600_000_000_000,
            host_network: Some(false),
            addresses: vec!["10.244.0.7".parse().expect("an address")],
        }]),
        image_filesystems: Seen::Yes(vec!["/var/lib/containerd/io.containerd.snapshotter.v1.overlayfs".into()]),
        latency: Vec::new(),
        hung: None,
        failures: SandboxFailures::default(),
    }
}

fn root_filesystem() -> Filesystem {
    let (bytes, inodes) = (100 << 30, 1_000_000);
    Filesystem {
        mount_point: "/".into(),
        source: "/dev/vda1".into(),
        device: Some("vda1".into()),
        kind: "ext4".into(),
        roles: vec![Role::Root, Role::Nodefs, Role::Logs],
        read_only: false,
        meant_read_only: false,
        space: Seen::Yes(Space { bytes, bytes_available: bytes / 2, inodes, inodes_available: inodes / 2 }),
        bytes_per_second: Some(0.0),
        inodes_per_second: Some(0.0),
        biggest: vec![],
    }
}

fn memory() -> Memory {
    let total = 16 << 30;
    Memory {
        total,
        available: total / 2,
        kubelet_available: total / 2,
        stall: Some(Stall::default()),
        bytes_per_second: None,
        pods: None,
        kills: Seen::Yes(vec![]),
    }
}

fn strain() -> Strain {
    Strain {
        io: Seen::Yes(Stall::default()),
        cpu: Seen::Yes(Stall::default()),
        blocked: None,
        tasks: Seen::Yes(Tasks { count: 300, limit: 32_768, per_second: None, pods: None }),
        files: Seen::Yes(Files { allocated: 2_000, limit: 1_000_000, per_second: None }),
        inotify: Seen::Yes(InotifyRoom { instances: 8, tried: 8, limit: 128, watch: Some(true), watches: 8_192 }),
        pods: Seen::Absent,
    }
}

/// A walk over the cgroups of two pods, one of which the runtime knows.
pub(super) fn pods() -> Seen<PodScan> {
    let known = PodCgroup { uid: "u-1".into(), containers: vec!["sandbox-1".into()] };
    let other = PodCgroup { uid: "u-2".into(), containers: vec![] };
    Seen::Yes(PodScan {
        pods: 2,
        by_memory: vec![(known.clone(), 1 << 30), (other.clone(), 2 << 20)],
        by_tasks: vec![(other, 900), (known, 7)],
        ..PodScan::default()
    })
}

fn kubelet() -> Kubelet {
    Kubelet {
        config_path: Some("/var/lib/kubelet/config.yaml".into()),
        kubeconfig_path: Some("/etc/kubernetes/kubelet.conf".into()),
        server: Some("https://10.0.0.9:6443".into()),
        node_name: Some("n1".into()),
        client_certificate: Seen::Absent,
        healthz_port: 10248,
        runtime_endpoint: None,
        eviction: EvictionThresholds::default(),
        capacity: CapacitySettings::default(),
        config_error: None,
    }
}

impl Node {
    /// A worker with kubelet, containerd, a bridge CNI, kube-proxy on nf_tables and one pod. Nothing is wrong with it.
    pub(super) fn worker() -> Self {
        let at = Timestamp::from_second(1_700_000_000).expect("valid");
        let mut now = Snapshot::blank(
            at,
            Identity {
                hostname: "n1".into(),
                boot_id: "b".into(),
                machine_id: "m".into(),
                kernel: "6".into(),
                node_name: Some("n1".into()),
            },
        );
        let process =
            |program, pid| Process { program, pid, state: 'S', started_at: at - SignedDuration::from_hours(1) };
        now.routing = Seen::Yes(routing());
        now.forwarding = Forwarding { ipv4: Seen::Yes(true), ipv6: Seen::Yes(true) };
        now.nftables = no_tables(Backend::Nftables);
        now.legacy = Seen::Absent;
        now.ip_sets = Seen::Absent;
        now.xtables_lock = Seen::Absent;
        now.traffic = traffic();
        now.conntrack = Seen::Yes(Conntrack { count: 10, max: 1_000, ..Conntrack::default() });
        now.cni.files = Seen::Yes(vec![cni_file("10-bridge.conflist", "bridge")]);
        let binary = Binary { path: "/opt/cni/bin/bridge".into(), size: 1, executable: true, unusable: None };
        now.cni.loopback = Seen::Yes(Binary { path: "/opt/cni/bin/loopback".into(), ..binary.clone() });
        now.cni.binaries = BTreeMap::from([("bridge".to_owned(), Seen::Yes(binary))]);
        now.cni.nodename = Seen::Yes("n1".into());
        now.runtime = runtime(at);
        now.debris = Seen::Yes(Debris::default());
        now.store = Seen::Yes(vec![]);
        now.files = Seen::Yes(vec![]);
        now.filesystems = Seen::Yes(vec![root_filesystem()]);
        now.kernel_log = Seen::Yes(KernelLog::default());
        now.memory = Seen::Yes(memory());
        now.strain = strain();
        let found =
            vec![process(Program::Kubelet, 10), process(Program::Containerd, 11), process(Program::KubeProxy, 12)];
        now.processes = Seen::Yes(Processes { found });
        now.kubelet = Seen::Yes(kubelet());
        now.health =
            Health { kubelet: answers(200), kube_proxy: answers(200), felix: error("127.0.0.1:9099", Reason::Refused) };
        now.control_plane = Seen::Yes(ControlPlanePath {
            server: "https://10.0.0.9:6443".into(),
            kubelet: leg("10.0.0.9:6443", PathEnd::Answered(403)),
            endpoints: vec![],
            service: None,
            host_answers: None,
            peers: vec![],
        });
        now.cluster = Seen::Absent;
        now.registries = Seen::Absent;
        now.bgp = Seen::Absent;
        now.tunnels = Seen::Absent;
        let before = Remembered::default();
        let expected = Expected::of(&now, &before);
        Node { now, before, expected, limits: Limits::default() }.kube_proxy(Backend::Nftables)
    }

    /// A machine that has nothing to do with Kubernetes.
    pub(super) fn plain_machine() -> Self {
        Node::worker().edit(|now| {
            now.kubelet = Seen::Absent;
            now.processes = Seen::Yes(Processes::default());
            now.nftables = no_tables(Backend::Nftables);
            now.runtime = Runtime::absent();
            now.debris = Seen::Absent;
            now.store = Seen::Absent;
            now.files = Seen::Absent;
            now.cni.files = Seen::Absent;
            now.cni.binaries.clear();
            now.control_plane = Seen::Absent;
        })
    }

    /// Changes what was seen.
    pub(super) fn edit(mut self, change: impl FnOnce(&mut Snapshot)) -> Self {
        change(&mut self.now);
        self.expected = Expected::of(&self.now, &self.before);
        self
    }

    /// Changes the path to the control plane.
    pub(super) fn path(self, change: impl FnOnce(&mut ControlPlanePath)) -> Self {
        self.edit(|now| {
            let Seen::Yes(path) = &mut now.control_plane else { panic!("seen") };
            change(path);
        })
    }

    /// API servers at these addresses, and how far the ways to them go.
    pub(super) fn endpoints(self, to: &[&str], ends: &[PathEnd]) -> Self {
        let legs = to.iter().zip(ends).map(|(to, end)| leg(to, end.clone())).collect();
        self.path(|path| path.endpoints = legs)
    }

    /// Other nodes that were asked: name, and whether they answered.
    pub(super) fn peers(self, ready: bool, peers: &[(&str, bool)]) -> Self {
        let peer = |(at, (node, answers)): (u8, &(&str, bool))| PeerAnswer {
            node: (*node).into(),
            address: [10, 0, 0, 100 + at].into(),
            ready,
            answers: *answers,
        };
        let peers = (0..).zip(peers).map(peer).collect();
        self.path(|path| path.peers = peers)
    }

    /// Changes what was seen of memory.
    pub(super) fn memory(self, change: impl FnOnce(&mut Memory)) -> Self {
        self.edit(|now| {
            let Seen::Yes(memory) = &mut now.memory else { panic!("seen") };
            change(memory);
        })
    }

    /// Changes what was seen earlier.
    pub(super) fn remember(mut self, change: impl FnOnce(&mut Remembered)) -> Self {
        change(&mut self.before);
        self.edit(|_| ())
    }

    /// A BIRD with an established session to each of 10.0.0.2 and 10.0.0.3, unless there is one, and then changes it.
    pub(super) fn bgp(self, change: impl FnOnce(&mut Bgp)) -> Self {
        self.edit(|now| {
            if now.bgp == Seen::Absent {
                now.bgp = Seen::Yes(bgp());
            }
            let Seen::Yes(bgp) = &mut now.bgp else { panic!("seen") };
            change(bgp);
        })
    }

    /// A full mesh of n1, which is this node, and for each of `ready` n2 (10.0.0.2), n3, ...
    pub(super) fn mesh(self, ready: &[bool]) -> Self {
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
        let map = ClusterMap { own: "n1".into(), nodes, pools: vec![], full_mesh: Some(true), services: vec![] };
        self.edit(|now| now.cluster = Seen::Yes(map))
    }

    /// Changes the routing state.
    pub(super) fn routing(self, change: impl FnOnce(&mut Routing)) -> Self {
        self.edit(|now| {
            let Seen::Yes(routing) = &mut now.routing else { panic!("seen") };
            change(routing);
        })
    }

    /// A worker of a cluster with Calico and BGP, with two other nodes, and a VPN's link `tun0` that nothing uses.
    pub(super) fn calico_worker() -> Self {
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
    pub(super) fn ranges(tunnel: bool) -> Self {
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

    /// Changes the routes that are kept.
    pub(super) fn routes(self, change: impl FnOnce(&mut Vec<TableRoute>)) -> Self {
        self.routing(|routing| {
            let mut list = routing.routes.all().to_vec();
            change(&mut list);
            routing.routes = RouteList::new(list, 0);
        })
    }

    /// Changes what the cluster says; that everything is as on [`Node::calico_worker`] if it said nothing.
    pub(super) fn with_map(self, change: impl FnOnce(&mut ClusterMap)) -> Self {
        self.edit(|now| {
            let mut map = now.cluster.get().cloned().unwrap_or_else(cluster_map);
            change(&mut map);
            now.cluster = Seen::Yes(map);
        })
    }

    /// Changes the root file system.
    pub(super) fn filesystem(self, change: impl FnOnce(&mut Filesystem)) -> Self {
        self.edit(|now| {
            let Seen::Yes(filesystems) = &mut now.filesystems else { panic!("seen") };
            change(&mut filesystems[0]);
        })
    }

    /// kube-proxy's chains in this backend alone.
    pub(super) fn kube_proxy(self, backend: Backend) -> Self {
        self.edit(|now| {
            now.nftables = no_tables(Backend::Nftables);
            now.legacy = Seen::Absent;
        })
        .and_kube_proxy(backend)
    }

    /// kube-proxy's chains in this backend too.
    pub(super) fn and_kube_proxy(self, backend: Backend) -> Self {
        self.edit(|now| {
            let seen = Seen::Yes(Ruleset {
                generation: Some(1),
                tables: kube_proxy_tables(),
                services: api_chain("KUBE-SVC-NPX46M4PTMTKRN6Y"),
                ..Ruleset::empty(backend)
            });
            match backend {
                Backend::Nftables => now.nftables = seen,
                Backend::Legacy => now.legacy = seen,
            }
        })
    }

    /// kube-proxy's native nftables mode.
    pub(super) fn kube_proxy_native(self) -> Self {
        self.edit(|now| {
            let table = filter_table(
                "kube-proxy",
                vec![
                    chain("nat-prerouting", &["services"]),
                    chain("nat-output", &["services"]),
                    chain("nat-postrouting", &["masquerading"]),
                    chain("services", &[]),
                    chain("masquerading", &[]),
                    chain("cluster-ips-check", &[]),
                ],
            );
            now.nftables = Seen::Yes(Ruleset {
                generation: Some(1),
                tables: vec![table],
                services: api_chain("service-2QRHZV4L-default/kubernetes/tcp/https"),
                ..Ruleset::empty(Backend::Nftables)
            });
        })
    }

    /// Without kube-proxy.
    pub(super) fn without_kube_proxy(self) -> Self {
        self.without(Program::KubeProxy).edit(|now| now.nftables = no_tables(Backend::Nftables))
    }

    /// Calico's chains in a backend, and its CNI configuration.
    pub(super) fn calico(self, backend: Backend) -> Self {
        self.cni_plugin("calico").edit(|now| {
            let seen = Seen::Yes(Ruleset { generation: Some(1), tables: calico_tables(), ..Ruleset::empty(backend) });
            match backend {
                Backend::Nftables => now.nftables = seen,
                Backend::Legacy => {
                    now.legacy = seen;
                    now.nftables = no_tables(Backend::Nftables);
                }
            }
        })
    }

    /// Changes the chains of one table.
    pub(super) fn edit_chains(self, backend: Backend, table: &str, change: impl FnOnce(&mut Vec<Chain>)) -> Self {
        self.edit(|now| {
            let seen = match backend {
                Backend::Nftables => &mut now.nftables,
                Backend::Legacy => &mut now.legacy,
            };
            let Seen::Yes(ruleset) = seen else { panic!("seen") };
            change(&mut ruleset.tables.iter_mut().find(|it| it.name == table).expect("the table").chains);
        })
    }

    /// A chain with these rules, put in the place of the one of that name; a base chain where a hook and a policy are given.
    pub(super) fn rules(
        self,
        backend: Backend,
        (table, name): (&str, &str),
        base: Option<(Hook, Policy)>,
        rules: Vec<FilterRule>,
    ) -> Self {
        self.edit(|now| {
            let seen = match backend {
                Backend::Nftables => &mut now.nftables,
                Backend::Legacy => &mut now.legacy,
            };
            if seen.get().is_none() {
                *seen = no_tables(backend);
            }
            let Seen::Yes(ruleset) = seen else { panic!("seen") };
            let (all, table) = match table.strip_prefix("inet ") {
                Some(table) => (&mut ruleset.inet, table),
                None => (&mut ruleset.tables, table),
            };
            if !all.iter().any(|it| it.name == table) {
                all.push(filter_table(table, vec![]));
            }
            let table = all.iter_mut().find(|it| it.name == table).expect("just made");
            table.chains.retain(|chain| chain.name != name);
            let base = base.map(|(hook, policy)| BaseChain { hook, policy, nat: false });
            let numbered = (0..).zip(rules).map(|(position, rule)| FilterRule { position, ..rule }).collect::<Vec<_>>();
            let jump = |rule: &FilterRule| {
                rule.target().map(|target| Jump { position: rule.position, target: target.to_owned() })
            };
            let jumps = numbered.iter().filter_map(jump).collect();
            table.chains.push(Chain { jumps, rules: Some(numbered), ..Chain::new(name, base) });
        })
    }

    /// The CNI configuration names this plugin alone.
    pub(super) fn cni_plugin(self, plugin: &str) -> Self {
        self.edit(|now| {
            now.cni.files = Seen::Yes(vec![cni_file("10-net.conflist", plugin)]);
            now.cni.binaries.clear();
        })
    }

    /// A condition of the runtime.
    pub(super) fn runtime_condition(self, kind: &str, status: bool) -> Self {
        self.edit(|now| {
            let Seen::Yes(runtime) = &mut now.runtime.status else { panic!("seen") };
            runtime.conditions.retain(|condition| condition.kind != kind);
            let (reason, message) = ("TestReason".into(), "test message".into());
            runtime.conditions.push(RuntimeCondition { kind: kind.into(), status, reason, message });
        })
    }

    /// Without this program.
    pub(super) fn without(self, program: Program) -> Self {
        self.edit(|now| {
            let Seen::Yes(processes) = &mut now.processes else { panic!("seen") };
            processes.found.retain(|process| process.program != program);
        })
    }

    /// The kubelet was started so many seconds ago.
    pub(super) fn kubelet_started_ago(self, seconds: i64) -> Self {
        self.started_ago(Program::Kubelet, seconds)
    }

    /// containerd was started so many seconds ago.
    pub(super) fn containerd_started_ago(self, seconds: i64) -> Self {
        self.started_ago(Program::Containerd, seconds)
    }

    /// The kernel reports this, as if it had this name for what it is about.
    pub(super) fn kernel_says(self, fault: KernelFault, subject: &str, line: &str) -> Self {
        self.edit(|now| {
            let first_at = now.taken_at;
            let event = KernelEvent { fault, subject: subject.into(), first_at, times: 1, line: line.into() };
            let Seen::Yes(log) = &mut now.kernel_log else { panic!("seen") };
            log.events.push(event);
        })
    }

    /// A program was started so many seconds ago.
    pub(super) fn started_ago(self, program: Program, seconds: i64) -> Self {
        self.edit(|now| {
            let Seen::Yes(processes) = &mut now.processes else { panic!("seen") };
            let process = processes.found.iter_mut().find(|process| process.program == program).expect("running");
            process.started_at = now.taken_at - SignedDuration::from_secs(seconds);
        })
    }

    /// What a check may see of it.
    pub(super) fn look(&self) -> Look<'_> {
        Look { now: &self.now, before: &self.before, expected: &self.expected, limits: &self.limits }
    }
}

#[test]
fn a_healthy_worker_and_a_plain_machine_raise_nothing() {
    // Made one by one: all at once they are too much for the stack.
    let nodes: [fn() -> Node; 5] = [
        Node::worker,
        Node::plain_machine,
        || Node::worker().calico(Backend::Nftables).without(Program::KubeProxy),
        Node::calico_worker,
        || Node::calico_worker().with_map(|_| ()),
    ];
    for node in nodes {
        let node = node();
        for check in super::ALL {
            let outcome = (check.run)(&node.look());
            assert!(matches!(outcome, Outcome::Healthy | Outcome::NotApplicable(_)), "{}: {outcome:?}", check.code);
        }
    }
}

#[test]
fn everything_is_unknown_or_not_applicable_before_the_first_look() {
    let worker = Node::worker();
    let blank = Snapshot::blank(worker.now.taken_at, worker.now.identity.clone());
    let before = Remembered::default();
    let expected =
        Expected { worker: true, kube_proxy: Some(ProxyMode::Iptables), calico: Some(CalicoDataplane::Iptables) };
    let look = Look { now: &blank, before: &before, expected: &expected, limits: &worker.limits };
    for check in super::ALL {
        let outcome = (check.run)(&look);
        assert!(!matches!(outcome, Outcome::Healthy | Outcome::Findings(_)), "{}: {outcome:?}", check.code);
    }
}
