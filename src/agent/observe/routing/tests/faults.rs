//! A node with Calico's routes in a real kernel: each fault is made with `ip`, seen by its check, undone, and seen to clear.

mod blocks;
mod tunnels;

use std::collections::BTreeMap;
use std::fmt::Write as _;
use std::net::IpAddr;
use std::time::Duration;

use jiff::Timestamp;

use super::look;
use crate::agent::observe::netns::NetNs;
use crate::checks::{self, Limits, Look, Outcome};
use crate::facts::*;

const POD: &str = "172.30.40.135";
const POD6: &str = "fd00:30:40::135";

/// A node, and what is known about it beside its routes.
struct Node {
    net: NetNs,
    before: Remembered,
    cluster: Seen<ClusterMap>,
    bird: bool,
}

/// The routes of incident 11 as they were recorded, with the links that they need, and the same for IPv6.
fn node() -> Node {
    let net = NetNs::new();
    let recorded =
        include_str!(concat!(env!("CARGO_MANIFEST_DIR"), "/tests/recordings/11-pod-route-missing/before-ip-route.txt"));
    let mut batch = "link add eth0 type veth peer name far\nlink set far up\nlink set eth0 up mtu 1500\n\
                     addr add 10.77.0.11/24 dev eth0\naddr add fd00:77::11/64 dev eth0 nodad\n"
        .to_owned();
    let pods = recorded.split_whitespace().filter(|word| word.starts_with("cali"));
    // Writing to a String cannot fail.
    for (number, pod) in pods.enumerate() {
        let peer = format!("pod{number}");
        writeln!(batch, "link add {pod} type veth peer name {peer}\nlink set {peer} up\nlink set {pod} up").ok();
    }
    for route in recorded.lines().filter(|route| !route.contains("proto kernel")) {
        // Names of protocols are those of the recorded machine.
        writeln!(batch, "route add {}", route.replace("bird", "12")).ok();
    }
    batch += "route add fd00:30:40::135/128 dev cali415c2f8ba99 metric 1024\n\
              route add blackhole fd00:30:40::100/120 proto 12\n\
              route add fd00:30:217::/120 via fd00:77::12 dev eth0 proto 12 metric 1024\n";
    net.command_with_input("ip", &["-batch", "-"], &batch);
    Node { net, before: Remembered::default(), cluster: Seen::Absent, bird: false }
}

/// What the cluster of incident 11 said.
fn cluster() -> ClusterMap {
    let node = |name: &str, addresses: &[&str], blocks: &[&str]| ClusterNode {
        name: name.into(),
        ready: true,
        created_at: None,
        addresses: addresses.iter().map(|it| it.parse().expect("an address")).collect(),
        tunnels: vec![],
        blocks: blocks.iter().map(|it| it.parse().expect("a block")).collect(),
    };
    let pool = |cidr: &str| Pool {
        name: cidr.into(),
        cidr: cidr.parse().expect("a pool"),
        ipip: Encapsulation::Never,
        vxlan: Encapsulation::Never,
        disabled: false,
    };
    ClusterMap {
        own: "n1".into(),
        nodes: vec![
            node("n1", &["10.77.0.11", "fd00:77::11"], &["172.30.40.128/26", "fd00:30:40::100/120"]),
            node("n2", &["10.77.0.12", "fd00:77::12"], &["172.30.217.0/26", "fd00:30:217::/120"]),
            node("n3", &["10.77.0.13"], &["172.30.98.0/26"]),
        ],
        pools: vec![pool("172.30.0.0/16"), pool("fd00:30::/32")],
        full_mesh: Some(true),
        services: vec![],
        typha_port: None,
    }
}

impl Node {
    fn with_map() -> Self {
        Node { cluster: Seen::Yes(cluster()), ..node() }
    }

    fn ip(&self, line: &str) {
        self.net.command("ip", &line.split(' ').collect::<Vec<_>>());
    }

    /// What every check says now; what was seen is remembered.
    fn say(&mut self) -> BTreeMap<&'static str, Vec<String>> {
        let now = Timestamp::from_second(1_700_000_000).expect("valid");
        let identity = Identity { hostname: "n1".into(), ..Identity::default() };
        let mut snapshot = Snapshot::blank(now, identity);
        snapshot.routing = Seen::Yes(look(&self.net, &[("web", &[POD, POD6])]));
        snapshot.cluster = self.cluster.clone();
        let bird = self.bird.then_some(Process { program: Program::Bird, pid: 1, state: 'S', started_at: now });
        snapshot.processes = Seen::Yes(Processes { found: bird.into_iter().collect(), ..Processes::default() });
        let address = |text: &str| text.parse::<IpAddr>().expect("an address");
        snapshot.runtime.sandboxes = Seen::Yes(vec![Sandbox {
            id: "web".into(),
            namespace: "default".into(),
            name: "web".into(),
            created_at: 0,
            host_network: Some(false),
            addresses: vec![address(POD), address(POD6)],
        }]);
        let plugins =
            vec![CniPlugin { kind: "calico".into(), ipam: Some("calico-ipam".into()), ..CniPlugin::default() }];
        snapshot.cni.files = Seen::Yes(vec![CniFile {
            name: "10-calico.conflist".into(),
            modified: None,
            content: Ok(CniConfig { name: "k8s-pod-network".into(), cni_version: "0.3.1".into(), plugins }),
        }]);
        let expected = Expected::of(&snapshot, &self.before);
        let limits = Limits::default();
        let look = Look { now: &snapshot, before: &self.before, expected: &expected, limits: &limits };
        let mut said = BTreeMap::new();
        for (check, outcome) in checks::run_all(&look) {
            if check.area == checks::Area::PodRouting
                && let Outcome::Findings(findings) = outcome
            {
                said.insert(check.code, findings.into_iter().map(|finding| finding.detail).collect());
            }
        }
        self.before.update(&snapshot);
        said
    }

    /// Only this code is told, and its first text has this in it.
    fn tells(&mut self, code: &str, part: &str) {
        let mut said = self.say();
        said.remove("PodRouteStale");
        let told = said.get(code).unwrap_or_else(|| panic!("no {code} in {said:?}"));
        assert!(told[0].contains(part), "{told:?}");
        said.remove(code);
        said.remove("PodRouteMissing");
        assert!(said.is_empty(), "{said:?}");
    }

    fn is_well(&mut self) {
        let mut said = self.say();
        // The recorded machine had more pods than the one that this node's runtime tells of.
        said.remove("PodRouteStale");
        assert!(said.is_empty(), "{said:?}");
    }
}

#[test]
fn incident_11_a_pod_without_its_route_or_with_the_wrong_one() {
    let mut node = node();
    node.is_well();
    node.ip("route del 172.30.40.135");
    let recorded =
        include_str!(concat!(env!("CARGO_MANIFEST_DIR"), "/tests/recordings/11-pod-route-missing/during-ip-route.txt"));
    assert_eq!(node.net.command("ip", &["-4", "route"]).lines().count(), recorded.lines().count());
    node.tells("PodRouteMissing", "default/web at 172.30.40.135 has no route (Invalid argument");
    // Part C of the incident: the wrong device.
    node.ip("route add 172.30.40.135 dev eth0 scope link metric 1024");
    node.tells("PodRouteShadowed", "`172.30.40.135/32 dev eth0 proto boot` captures the local pod default/web");
    assert!(node.say()["PodRouteMissing"][0].ends_with("is routed away from this node, on eth0"));
    node.ip("tuntap add tun0 mode tun");
    node.ip("link set tun0 up");
    node.ip("route replace 172.30.40.135 dev tun0 scope link metric 1024");
    let said = node.say();
    assert!(said["PodRouteMissing"][0].ends_with("is routed away from this node, on tun0"), "{said:?}");
    node.ip("link del tun0");
    node.ip("route replace 172.30.40.135 dev cali415c2f8ba99 scope link metric 1024");
    node.is_well();
    // Part D: the link is down, and the kernel itself drops the route.
    node.ip("link set cali415c2f8ba99 down");
    node.tells("PodRouteMissing", "172.30.40.135 has no route");
    node.ip("link set cali415c2f8ba99 up");
    node.ip("route add 172.30.40.135 dev cali415c2f8ba99 scope link metric 1024");
    node.ip("-6 route replace fd00:30:40::135/128 dev cali415c2f8ba99 metric 1024");
    node.is_well();
}

#[test]
fn the_end_of_a_link_inside_the_pod() {
    let mut node = node();
    node.is_well();
    let links = node.net.command("ip", &["-o", "link", "show", "cali415c2f8ba99"]);
    let inside = links.split(['@', ':']).nth(2).expect("the other end").trim().to_owned();
    // The kernel tells of a carrier some time after it has changed, a second at most; so it ends a namespace.
    let becomes = |node: &Node, wanted: Option<bool>| {
        let link = |links: Vec<Link>| links.into_iter().find(|link| link.name == "cali415c2f8ba99");
        let is = || link(look(&node.net, &[]).links).map(|link| link.carrier) == wanted;
        let waited = || {
            std::thread::sleep(Duration::from_millis(50));
            false
        };
        assert!((0..100).any(|_| is() || waited()), "the link does not become {wanted:?}");
    };
    node.ip(&format!("link set {inside} down"));
    becomes(&node, Some(false));
    let what = "to cali415c2f8ba99, which has no carrier: the end inside the pod is down";
    let said = node.say();
    let said: Vec<_> = said["PodRouteMissing"].iter().filter(|detail| detail.ends_with(what)).collect();
    assert!(said.len() == 2, "both families: {said:?}");
    node.ip(&format!("link set {inside} up"));
    becomes(&node, Some(true));
    node.is_well();
    // Its network namespace goes, and with it the link and the routes.
    let pod = NetNs::new();
    node.ip(&format!("link set {inside} netns {}", pod.path()));
    node.ip("link set cali415c2f8ba99 down");
    pod.command("ip", &["link", "set", &inside, "up"]);
    node.ip("link set cali415c2f8ba99 up");
    node.ip("route add 172.30.40.135 dev cali415c2f8ba99 scope link metric 1024");
    node.ip("-6 route replace fd00:30:40::135/128 dev cali415c2f8ba99 metric 1024");
    becomes(&node, Some(true));
    node.is_well();
    drop(pod);
    becomes(&node, None);
    node.tells("PodRouteMissing", "172.30.40.135 has no route (Invalid argument");
}

#[test]
fn a_route_through_a_vpn_captures_pods() {
    for mut node in [node(), Node::with_map()] {
        node.ip("tuntap add tun0 mode tun");
        node.ip("link set tun0 up");
        node.ip("route add 10.0.0.0/9 via 10.77.0.1");
        node.is_well();
        for (route, what) in [
            ("172.30.217.0/26 dev tun0", "captures the block 172.30.217.0/26"),
            ("172.30.217.32/27 via 10.77.0.1 proto static", "captures a part of the block 172.30.217.0/26"),
            ("172.30.40.160/28 dev tun0", "captures a part of this node's own block 172.30.40.128/26"),
            ("172.30.40.135/32 dev tun0", "captures the local pod default/web at 172.30.40.135"),
            ("fd00:30:217::40/122 dev tun0", "captures a part of the block fd00:30:217::/120"),
        ] {
            node.ip(&format!("route add {route}"));
            node.tells("PodRouteShadowed", what);
            node.ip(&format!("route del {route}"));
            node.is_well();
        }
    }
}

#[test]
fn rules_and_ipsec_policies_capture_pods() {
    let mut node = node();
    node.ip("tuntap add tun0 mode tun");
    node.ip("link set tun0 up");
    node.ip("route add default dev tun0 table 1000");
    node.ip("-6 route add default dev tun0 table 1000");
    for harmless in [
        "rule add priority 90 fwmark 7 lookup 1000",
        "rule add priority 91 from 10.77.0.11 lookup 1000",
        "rule add priority 92 not from all fwmark 0x100000/0x100000 lookup 1001",
        "rule add priority 93 to 172.30.0.0/16 ipproto tcp dport 80 lookup 1000",
        "rule add priority 94 from all lookup main suppress_prefixlength 0",
    ] {
        node.ip(harmless);
    }
    node.is_well();
    for rule in [
        "rule % priority 50 to 172.30.0.0/16 lookup 1000",
        "rule % priority 50 from 172.30.40.128/26 lookup 1000",
        "rule % priority 50 iif cali415c2f8ba99 lookup 1000",
        "rule % priority 50 from 172.30.0.0/16 prohibit",
        "-6 rule % priority 50 to fd00:30::/32 lookup 1000",
    ] {
        node.ip(&rule.replace('%', "add"));
        node.tells("PolicyRoutingHijack", "The policy rule `50: from ");
        node.ip(&rule.replace('%', "del"));
        node.is_well();
    }
    let policy = "src 172.30.0.0/16 dst 172.30.217.0/24 dir out";
    node.ip(&format!("xfrm policy add {policy} tmpl src 10.77.0.11 dst 10.77.0.1 proto esp mode tunnel"));
    node.ip("xfrm policy add src 10.77.0.11/32 dst 10.77.0.12/32 dir out tmpl proto esp mode transport");
    node.ip("xfrm policy add src 172.30.0.0/16 dst 172.30.98.0/24 dir out");
    node.tells(
        "PolicyRoutingHijack",
        "An IPsec policy captures packets of pods, from 172.30.0.0/16 to 172.30.217.0/24",
    );
    node.ip(&format!("xfrm policy delete {policy}"));
    node.is_well();
}

#[test]
fn what_was_added_since_the_first_look() {
    let mut node = node();
    node.is_well();
    node.ip("route add 192.168.0.0/16 via 10.77.0.1");
    node.tells("StaticRouteAdded", "`192.168.0.0/16 via 10.77.0.1 dev eth0 proto boot` was added");
    node.ip("route del 192.168.0.0/16");
    node.ip("tuntap add tun0 mode tun");
    node.tells("VpnInterfaceAdded", "tun0 of kind tun");
    node.ip("link del tun0");
    node.is_well();
}

#[test]
fn a_block_without_its_blackhole() {
    for mut node in [node(), Node::with_map()] {
        node.is_well();
        node.ip("route del blackhole 172.30.40.128/26");
        node.tells("BlockBlackholeMissing", "172.30.40.128/26 is missing");
        node.ip("route add blackhole 172.30.40.128/26 proto 80");
        node.is_well();
    }
}

#[test]
fn what_is_left_of_a_pod() {
    let mut node = node();
    for link in ["cali8822e5b3401", "calif84984f7167", "calie32d19826cf", "cali870b0d711e6"] {
        node.ip(&format!("link del {link}"));
    }
    assert!(node.say().is_empty());
    node.ip("link add calileft type veth peer name left0");
    node.ip("link set calileft up");
    assert_eq!(node.say()["PodRouteStale"], ["The link calileft belongs to no pod"]);
    node.ip("route add 172.30.40.150 dev calileft");
    assert!(node.say()["PodRouteStale"][0].starts_with("172.30.40.150 is routed to calileft"));
    node.ip("link del calileft");
    assert!(node.say().is_empty());
}

#[test]
fn a_tunnel_of_vxlan_and_its_mtu() {
    let mut node = Node::with_map();
    let Seen::Yes(map) = &mut node.cluster else { panic!("a map") };
    map.pools[0].vxlan = Encapsulation::Always;
    map.nodes[0].tunnels = vec!["172.30.40.129".parse().expect("an address")];
    map.nodes[1].tunnels = vec!["172.30.217.1".parse().expect("an address")];
    map.nodes[2].tunnels = vec!["172.30.98.1".parse().expect("an address")];
    for pod in ["cali8822e5b3401", "calif84984f7167", "calie32d19826cf", "cali870b0d711e6", "cali415c2f8ba99"] {
        node.ip(&format!("link set {pod} mtu 1450"));
    }
    node.tells("TunnelDeviceMissing", "vxlan.calico, which blocks of the pool 172.30.0.0/16 need, does not exist");
    let make = |node: &Node| {
        node.ip("link add vxlan.calico type vxlan id 4096 dstport 4789 dev eth0 local 10.77.0.11 nolearning");
        node.ip("link set vxlan.calico mtu 1450 up");
        node.ip("addr add 172.30.40.129/32 dev vxlan.calico");
        node.ip("route replace 172.30.217.0/26 via 172.30.217.1 dev vxlan.calico onlink proto 80 metric 1024");
        node.ip("route replace 172.30.98.0/26 via 172.30.98.1 dev vxlan.calico onlink proto 80 metric 1024");
    };
    make(&node);
    node.is_well();
    node.ip("link set eth0 mtu 1480");
    node.tells("MtuMismatch", "The MTU of vxlan.calico is 1450, and of eth0 1480");
    node.ip("link set eth0 mtu 1500");
    node.ip("link set vxlan.calico mtu 1400");
    node.tells("MtuMismatch", "The MTU of 5 links of pods is larger than that of vxlan.calico, 1400");
    node.ip("link set vxlan.calico mtu 1450");
    node.is_well();
    // The kernel drops the routes with the last address, and with the device: a consequence.
    for (line, wrong) in
        [("addr flush dev vxlan.calico", "has no address"), ("link del vxlan.calico", "does not exist")]
    {
        node.ip(line);
        let said = node.say();
        assert!(said["TunnelDeviceMissing"][0].ends_with(wrong), "{said:?}");
        assert!(said.contains_key("RemoteBlockRouteMissing"), "{said:?}");
    }
    make(&node);
    node.is_well();
}
