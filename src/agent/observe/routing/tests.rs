//! Against the real kernel, in network namespaces of their own.

use ipnet::IpNet;

use super::*;
use crate::agent::observe::netns::NetNs;
use crate::facts::{BlockSums, Family, NeighbourState, RouteAnswer, RouteKind, is_block};

mod faults;

/// A node: an uplink with a gateway, a bridge, and a pod behind a link of its own, in both families.
fn node() -> NetNs {
    let node = NetNs::new();
    for line in [
        "link add uplink type veth peer name far",
        "link set uplink up mtu 1400",
        "link set far up",
        "addr add 192.0.2.10/24 dev uplink",
        "addr add 2001:db8::10/64 dev uplink nodad",
        "route add default via 192.0.2.1 proto static metric 100",
        "route add default via 2001:db8::1 proto static",
        "neigh add 192.0.2.1 lladdr 02:00:00:00:00:01 dev uplink nud reachable",
        "neigh add 192.0.2.77 lladdr 02:00:00:00:00:77 dev uplink nud reachable",
        "link add br0 type bridge",
        "link set br0 up",
        "link add cali1 type veth peer name pod1",
        "link set cali1 up master br0",
        "link set cali1 nomaster",
        "link set pod1 up",
        "route add 10.1.0.5/32 dev cali1 scope link proto 80",
        "route add 2001:db8:1::5/128 dev cali1 proto 80",
        "route add blackhole 10.1.0.64/26 proto 12",
        "route add unreachable 10.1.1.0/24",
        "route add prohibit 10.1.2.0/24",
        "route add blackhole 2001:db8:2::/64",
        "route add 10.9.0.0/16 via 192.0.2.1 proto 12",
        "rule add priority 100 fwmark 7 table 1000",
        "-6 rule add priority 101 fwmark 7 table 1001",
    ] {
        node.command("ip", &line.split(' ').collect::<Vec<_>>());
    }
    node
}

fn look(node: &NetNs, pods: &[(&str, &[&str])]) -> Routing {
    look_in(node, std::path::Path::new("/"), pods)
}

/// With the files of another machine.
fn look_in(node: &NetNs, root: &std::path::Path, pods: &[(&str, &[&str])]) -> Routing {
    let address = |text: &&str| text.parse().expect("an address");
    let pods: Vec<(String, Vec<IpAddr>)> =
        pods.iter().map(|(id, addresses)| ((*id).to_owned(), addresses.iter().map(address).collect())).collect();
    let host = HostRoot::new(root);
    node.block_on(|| async move { RoutingSource::open(host).expect("open").look(&pods).await.expect("look") })
}

fn index(routing: &Routing, name: &str) -> u32 {
    routing.links.iter().find(|link| link.name == name).map(|link| link.index).expect("the link")
}

#[test]
fn links_and_addresses() {
    let node = node();
    for (name, port) in [("vx1", "4790"), ("vx2", "4789")] {
        node.command("ip", &["link", "add", name, "type", "vxlan", "id", port, "dstport", port, "dev", "uplink"]);
    }
    let routing = look(&node, &[]);
    let link = |name: &str| routing.links.iter().find(|link| link.name == name).expect("the link");
    assert!(link("lo").loopback && link("lo").kind.is_none());
    assert_eq!((link("uplink").mtu, link("uplink").kind.as_deref()), (1400, Some("veth")));
    assert!(link("uplink").up && link("uplink").carrier);
    assert_eq!(link("br0").kind.as_deref(), Some("bridge"));
    assert_eq!(["vx1", "vx2", "br0"].map(|name| link(name).vxlan_port), [Some(4790), Some(4789), None]);
    assert!(link("br0").up && !link("br0").carrier);
    let global: Vec<_> = routing.addresses.iter().filter(|it| it.global).map(|it| it.address.to_string()).collect();
    assert_eq!(global, ["192.0.2.10", "2001:db8::10"]);
    let own = routing.addresses.iter().find(|it| it.address.to_string() == "192.0.2.10").expect("the address");
    assert_eq!((own.link, own.prefix), (index(&routing, "uplink"), 24));
    assert!(routing.addresses.iter().any(|it| it.address.is_loopback() && !it.global));
}

#[test]
fn programs_on_links_where_calicos_ebpf_is_in_use() {
    let node = node();
    let tc = |words: &str| drop(node.command("tc", &words.split(' ').collect::<Vec<_>>()));
    tc("qdisc add dev cali1 clsact");
    let add = |direction: &str| {
        let line = format!("filter add dev cali1 {direction} bpf da bytecode");
        node.command("tc", &line.split(' ').chain(["1,6 0 0 0"]).collect::<Vec<_>>());
    };
    add("ingress");
    assert_eq!(look(&node, &[]).programs, Seen::Absent, "nobody asks");
    node.command("ip", &["link", "add", "bpfin.cali", "type", "veth", "peer", "name", "bpfout.cali"]);
    let programs = |link: &str| look(&node, &[]).programs.get().and_then(|all| all.get(link).copied());
    assert_eq!(
        (programs("cali1"), programs("bpfin.cali"), programs("lo")),
        (Some([true, false]), Some([false; 2]), None)
    );
    add("egress");
    // A filter of another kind is no program.
    tc("qdisc add dev bpfin.cali clsact");
    tc("filter add dev bpfin.cali ingress protocol ip u32 match u32 0 0");
    assert_eq!((programs("cali1"), programs("bpfin.cali")), (Some([true; 2]), Some([false; 2])));
    tc("filter del dev cali1 ingress");
    assert_eq!(programs("cali1"), Some([false, true]));
    tc("qdisc del dev cali1 clsact");
    assert_eq!(programs("cali1"), Some([false; 2]));
    // As Felix pins what it attaches by TCX.
    let root = tempfile::tempdir().expect("a directory");
    let pins = root.path().join("sys/fs/bpf/tcx");
    std::fs::create_dir_all(&pins).expect("mkdir");
    node.command("ip", &["link", "add", "eth0.5", "type", "veth", "peer", "name", "other"]);
    for pin in ["cali1_ingress", "eth05_egress"] {
        std::fs::write(pins.join(pin), "").expect("write");
    }
    let pinned = || look_in(&node, root.path(), &[]).programs;
    let all = pinned().get().cloned().expect("readable");
    assert_eq!((all.get("cali1"), all.get("eth0.5")), (Some(&[true, false]), Some(&[false, true])));
    std::fs::remove_file(pins.join("cali1_ingress")).expect("rm");
    assert_eq!(pinned().get().and_then(|all| all.get("cali1").copied()), Some([false; 2]));
    std::fs::remove_dir_all(&pins).expect("rm");
    std::fs::write(&pins, "").expect("write");
    assert!(pinned().error().is_some(), "what cannot be read is not gone");
}

#[test]
fn a_link_knows_its_bridge() {
    let node = node();
    node.command("ip", &["link", "set", "cali1", "master", "br0"]);
    let routing = look(&node, &[]);
    assert_eq!(routing.link(index(&routing, "cali1")).and_then(|link| link.master), Some(index(&routing, "br0")));
}

#[test]
fn routes_rules_and_gateways() {
    let routing = look(&node(), &[]);
    let uplink = Some(index(&routing, "uplink"));
    let hop = |address: &str| vec![(Some(address.parse::<IpAddr>().expect("an address")), uplink)];
    let default = |family| routing.defaults.iter().filter(move |route| route.family == family).collect::<Vec<_>>();
    let [v4] = default(Family::V4)[..] else { panic!("{:?}", routing.defaults) };
    assert_eq!((v4.table, v4.protocol, v4.metric, v4.kind), (254, 4, Some(100), RouteKind::Unicast));
    assert_eq!(v4.next_hops, hop("192.0.2.1"));
    let [v6] = default(Family::V6)[..] else { panic!("{:?}", routing.defaults) };
    assert_eq!(v6.next_hops, hop("2001:db8::1"));

    let count = |family, protocol| {
        routing.by_protocol.iter().find(|it| (it.0, it.1) == (family, protocol)).map_or(0, |it| it.2)
    };
    assert_eq!((count(Family::V4, 80), count(Family::V4, 12), count(Family::V4, 4)), (1, 2, 1));
    assert_eq!((count(Family::V6, 80), count(Family::V6, 4)), (1, 1));
    // The prefix of the uplink; what the table `local` holds is not counted.
    assert_eq!(count(Family::V4, 2), 1);

    let rules: Vec<_> = routing.rules.iter().map(|rule| (rule.family, rule.priority, rule.table)).collect();
    for rule in [(Family::V4, 0, 255), (Family::V4, 100, 1000), (Family::V4, 32_766, 254), (Family::V6, 101, 1001)] {
        assert!(rules.contains(&rule), "{rules:?}");
    }
    let gateways: Vec<_> = routing.gateways.iter().map(|it| (it.address.to_string(), it.state)).collect();
    assert!(gateways.contains(&("192.0.2.1".into(), NeighbourState::Reachable)), "{gateways:?}");
    assert!(gateways.iter().all(|(address, _)| address != "192.0.2.77"), "{gateways:?}");
}

#[test]
fn several_next_hops_other_tables_and_gateways_of_the_other_family() {
    let node = node();
    for line in [
        "route del default",
        "route add default nexthop via 192.0.2.1 dev uplink nexthop via 192.0.2.2 dev uplink",
        "route add default via 192.0.2.3 table 1000",
        "-4 route add 0.0.0.0/0 via inet6 2001:db8::1 dev uplink table 1001",
        "route add blackhole default table 1002",
        "-6 route add default table 1003 nexthop via 2001:db8::1 dev uplink nexthop via 2001:db8::2 dev uplink",
    ] {
        node.command("ip", &line.split(' ').collect::<Vec<_>>());
    }
    let routing = look(&node, &[]);
    let hops = |table: u32, family: Family| -> Vec<String> {
        let route = routing.defaults.iter().find(|it| it.table == table && it.family == family).expect("the route");
        let gateway = |hop: &(Option<IpAddr>, Option<u32>)| hop.0.map_or("none".into(), |it| it.to_string());
        route.next_hops.iter().map(gateway).collect()
    };
    assert_eq!(hops(254, Family::V4), ["192.0.2.1", "192.0.2.2"]);
    assert_eq!(hops(1000, Family::V4), ["192.0.2.3"]);
    assert_eq!(hops(1001, Family::V4), ["2001:db8::1"]);
    assert_eq!(hops(1002, Family::V4), Vec::<String>::new());
    assert_eq!(hops(1003, Family::V6), ["2001:db8::1", "2001:db8::2"]);
    let kind = routing.defaults.iter().find(|it| it.table == 1002).map(|it| it.kind);
    assert_eq!(kind, Some(RouteKind::Blackhole));
}

#[test]
fn the_kernel_decides_for_every_pod() {
    let node = node();
    let routing = look(
        &node,
        &[
            ("pod", &["10.1.0.5", "2001:db8:1::5"]),
            ("blackhole", &["10.1.0.70", "2001:db8:2::1"]),
            ("unreachable", &["10.1.1.1"]),
            ("prohibit", &["10.1.2.1"]),
            ("elsewhere", &["10.9.0.1"]),
            ("own", &["192.0.2.10"]),
        ],
    );
    let answers = |pod: &str| -> Vec<RouteAnswer> {
        routing.pods[pod].iter().map(|route| route.answer.get().expect("an answer").clone()).collect()
    };
    let cali1 = index(&routing, "cali1");
    let direct = RouteAnswer::Via { link: cali1, gateway: None, kind: RouteKind::Unicast };
    assert_eq!(answers("pod"), [direct.clone(), direct]);
    let no_way = |text: &str| RouteAnswer::NoWay(text.into());
    let blackhole = no_way("Invalid argument (a route of type blackhole)");
    assert_eq!(answers("blackhole"), [blackhole.clone(), blackhole]);
    assert_eq!(answers("unreachable"), [no_way("No route to host (a route of type unreachable)")]);
    assert_eq!(answers("prohibit"), [no_way("Permission denied (a route of type prohibit)")]);
    let gateway = "192.0.2.1".parse().ok();
    let uplink = index(&routing, "uplink");
    assert_eq!(answers("elsewhere"), [RouteAnswer::Via { link: uplink, gateway, kind: RouteKind::Unicast }]);
    assert!(matches!(answers("own")[..], [RouteAnswer::Via { kind: RouteKind::Local, .. }]));

    node.command("ip", &["route", "del", "10.1.0.5"]);
    node.command("ip", &["route", "del", "default"]);
    let routing = look(&node, &[("pod", &["10.1.0.5"])]);
    let answer = routing.pods["pod"][0].answer.get();
    assert_eq!(answer, Some(&no_way("Network is unreachable (no route)")));
}

#[test]
fn thousands_of_routes_are_counted_and_not_kept() {
    use std::fmt::Write as _;
    let node = node();
    let mut batch = String::new();
    for number in 0..5000 {
        let _ = writeln!(
            batch,
            "route add 10.{}.{}.0/24 via 192.0.2.1 proto 12 table 100",
            64 + number / 256,
            number % 256
        );
    }
    node.command_with_input("ip", &["-batch", "-"], &batch);
    let routing = look(&node, &[]);
    assert!(routing.by_protocol.contains(&(Family::V4, 12, 5002)), "{:?}", routing.by_protocol);
}

#[test]
fn blocks_beyond_what_is_kept_are_summed() {
    use std::fmt::Write as _;
    let node = node();
    // As many as are kept, and a hundred more, in blocks of 64 addresses.
    let block = |number: u32| -> IpNet {
        let address = IpAddr::from((0x0b00_0000_u32 + number * 64).to_be_bytes());
        IpNet::new(address, 26).expect("a length")
    };
    let mut batch = String::new();
    for number in 0..12_388 {
        let _ = writeln!(batch, "route add {} via 192.0.2.1 proto 12", block(number));
    }
    node.command_with_input("ip", &["-batch", "-"], &batch);
    let routes = look(&node, &[]).routes;
    // The node has four routes of Calico's besides, one of which is a block: its own.
    assert_eq!(routes.beyond, 104);
    let mut sums = routes.sums()[0].clone();
    let kept = routes.main().iter().filter(|route| route.is_calicos() && is_block(route.to));
    kept.filter(|route| Family::of(route.to.addr()) == Family::V4).for_each(|route| sums.add(route.to));
    let own = "10.1.0.64/26".parse().expect("a block");
    assert_eq!(sums, BlockSums::of((0..12_388).map(block).chain([own])));
    assert_eq!(routes.sums()[1], BlockSums::default());
}

#[test]
fn a_look_that_was_cancelled_does_not_spoil_the_next() {
    let node = node();
    node.block_on(|| async {
        let source = RoutingSource::open(HostRoot::new("/")).expect("open");
        for polls in 1..10 {
            let mut look = Box::pin(source.look(&[]));
            for _ in 0..polls {
                if futures::poll!(&mut look).is_ready() {
                    break;
                }
                tokio::task::yield_now().await;
            }
        }
        assert!(source.look(&[]).await.is_ok_and(|routing| routing.links.len() >= 6));
    });
}

#[test]
fn parts_and_noise_are_malformed_and_do_no_harm() {
    let node = node();
    let bodies = node.block_on(|| async {
        let mut netlink = Netlink::open(NETLINK_ROUTE).expect("a socket");
        let mut bodies = Vec::new();
        for (kind, question) in [(GET_LINK, vec![0; 16]), (GET_ROUTE, vec![0; 12]), (GET_NEIGHBOUR, vec![0; 12])] {
            let keep = |_, body: &[u8]| {
                bodies.push(body.to_vec());
                Ok(())
            };
            netlink.ask(kind, NLM_F_DUMP, &question, keep).await.expect("an answer");
        }
        bodies
    });
    let read = |body: &[u8]| {
        let mut routes = decode::Routes::default();
        let _ = (
            decode::link(body).is_ok(),
            decode::neighbour(body).is_ok(),
            routes.add(body, &[1000]).is_ok(),
            decode::ipsec(body).is_ok(),
        );
    };
    assert!(bodies.len() > 20);
    for body in &bodies {
        for end in 0..body.len() {
            read(&body[..end]);
        }
        for at in 0..body.len() {
            for value in [0, 1, 2, 10, 0x7f, 0xff] {
                let mut spoilt = body.clone();
                spoilt[at] = value;
                read(&spoilt);
            }
        }
    }
}

proptest::proptest! {
    #[test]
    fn no_bytes_make_it_panic(bytes in proptest::collection::vec(proptest::num::u8::ANY, 0..240)) {
        let mut routes = decode::Routes::default();
        let _ = (decode::link(&bytes).is_ok(), decode::neighbour(&bytes).is_ok(), routes.add(&bytes, &[1000]).is_ok(), decode::ipsec(&bytes).is_ok());
    }
}

#[test]
fn the_lowest_error_number_is_an_error_too() {
    // `struct nlmsghdr` of `NLMSG_ERROR`, the number, and the head of the request that is refused.
    let mut bytes = vec![36, 0, 0, 0, 2, 0, 0, 0, 1, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0x80];
    bytes.extend_from_slice(&[16, 0, 0, 0, 26, 0, 1, 0, 1, 0, 0, 0, 0, 0, 0, 0]);
    let message = NetlinkMessage::<Message>::deserialize(&bytes).expect("well formed");
    assert!(decode::answer("a route", &message.payload).is_err());
}

#[test]
fn the_future_can_be_spawned() {
    fn is_send<T: Send>(_: T) {}
    NetNs::new().block_on(|| async { is_send(RoutingSource::open(HostRoot::new("/")).expect("open").look(&[])) });
}
