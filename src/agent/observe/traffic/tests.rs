//! Against the real kernel in a namespace, and against files as long as nobody should make them.

use std::net::{IpAddr, Ipv4Addr, TcpListener, TcpStream};
use std::path::Path;

use super::*;
use crate::agent::observe::netns::NetNs;
use crate::facts::{Address, Link, RouteList};

fn write(root: &Path, path: &str, text: &str) {
    let path = root.join(path);
    std::fs::create_dir_all(path.parent().expect("not the root")).expect("mkdir");
    std::fs::write(path, text).expect("write");
}

fn link(index: u32, name: &str, kind: Option<&str>, master: Option<u32>) -> Link {
    Link { master, ..Link::working(index, name, kind) }
}

fn routing(links: Vec<Link>, addressed: &[u32]) -> Routing {
    let address =
        |link: &u32| Address { link: *link, address: IpAddr::V4(Ipv4Addr::new(10, 0, 0, 5)), prefix: 24, global: true };
    Routing {
        links,
        addresses: addressed.iter().map(address).collect(),
        defaults: vec![],
        by_protocol: vec![],
        rules: vec![],
        routes: RouteList::default(),
        samples: vec![],
        ipsec: Seen::Absent,
        programs: Seen::Absent,
        wireguard: Seen::Absent,
        gateways: vec![],
        pods: std::collections::BTreeMap::new(),
    }
}

#[test]
fn uplinks_are_the_hardware_with_addresses_and_what_is_in_their_bonds() {
    let links = vec![
        link(1, "lo", None, None),
        link(2, "eth0", None, Some(4)),
        link(3, "eth1", None, Some(4)),
        link(4, "bond0", Some("bond"), None),
        link(5, "cni0", Some("bridge"), None),
        link(6, "veth1", Some("veth"), Some(5)),
        link(7, "caliabc", Some("veth"), None),
        link(8, "vxlan.calico", Some("vxlan"), None),
        link(9, "idle", None, None),
    ];
    let watched = watched(&routing(links, &[1, 4, 5, 8]));
    let names = |uplink| watched.iter().filter(|it| it.uplink == uplink).map(|it| it.name.as_str()).collect::<Vec<_>>();
    assert_eq!(names(true), ["eth0", "eth1", "bond0"]);
    assert_eq!(names(false), ["caliabc", "vxlan.calico"]);
}

#[test]
fn counters_and_switches_are_those_of_the_kernel() {
    let net = NetNs::new();
    net.command("ip", &["link", "add", "uplink", "type", "veth", "peer", "name", "far"]);
    net.command("ip", &["address", "add", "192.0.2.5/24", "dev", "uplink"]);
    net.command("ip", &["link", "set", "uplink", "up"]);
    net.command("ip", &["link", "set", "far", "up"]);
    net.command("sysctl", &["-qw", "net.ipv4.conf.all.rp_filter=0", "net.ipv4.conf.uplink.rp_filter=2"]);
    net.command("sysctl", &["-qw", "net.ipv4.conf.uplink.forwarding=0", "net.ipv4.conf.uplink.proxy_arp=1"]);
    let index = net.command("cat", &["/sys/class/net/lo/ifindex"]);
    assert_eq!(index.trim(), "1");
    let index: u32 = net.run(|| nix_index("uplink"));
    let uplink = Watched { index, name: "uplink".into(), up: true, uplink: true };
    let gone = Watched { index: 9_999, name: "gone".into(), up: true, uplink: true };
    let (first, second) = net.block_on(|| async {
        let mut source = TrafficSource::new(HostRoot::new("/"));
        let watched = [uplink, gone];
        let first = source.look(&watched).await;
        for switch in ["down", "up", "down", "up"] {
            let set = std::process::Command::new("ip").args(["link", "set", "far", switch]).status();
            assert!(set.is_ok_and(|status| status.success()));
        }
        (first, source.look(&watched).await)
    });
    let changes = |traffic: &Traffic| traffic.links.get().map(|links| (links.len(), links[0].carrier_changes));
    assert_eq!((changes(&first), changes(&second)), (Some((1, 0)), Some((1, 4))));
    let switches = first.switches.get().expect("told");
    let told = LinkSwitches { index, link: "uplink".into(), forwarding: false, proxy_arp: true, rp_filter: 2 };
    assert_eq!(switches, &[told]);
}

fn nix_index(name: &str) -> u32 {
    let text = std::fs::read_to_string("/proc/thread-self/net/dev_mcast").expect("readable");
    let line = text.lines().find(|line| line.split_whitespace().nth(1) == Some(name)).expect("a line of the link");
    line.split_whitespace().next().and_then(|index| index.parse().ok()).expect("an index")
}

#[test]
fn ports_are_counted_for_each_destination_with_time_wait() {
    let net = NetNs::new();
    net.command("sysctl", &["-qw", "net.ipv4.ip_local_port_range=40000 40099", "net.ipv4.tcp_tw_reuse=0"]);
    net.command("sysctl", &["-qw", "net.ipv4.ip_local_reserved_ports=40090-40099"]);
    let traffic = net.block_on(|| async {
        let one = TcpListener::bind("127.0.0.1:7001").expect("bind");
        let two = TcpListener::bind("[::]:7002").expect("bind");
        let connect = |port: u16, count: usize| -> Vec<TcpStream> {
            (0..count).map(|_| TcpStream::connect(("127.0.0.1", port)).expect("connect")).collect()
        };
        let mut kept = connect(7001, 30);
        kept.extend(connect(7002, 10));
        // Those that close first wait.
        for _ in 0..5 {
            let client = TcpStream::connect("127.0.0.1:7001").expect("connect");
            drop(client);
        }
        while let Ok((server, _)) = {
            one.set_nonblocking(true).expect("nonblocking");
            one.accept()
        } {
            server.set_nonblocking(false).expect("blocking");
            kept.push(server);
        }
        // The other side closes too, for those whose client has gone.
        kept.drain(40..).enumerate().filter(|(at, _)| *at >= 30).for_each(drop);
        let seen = TrafficSource::new(HostRoot::new("/")).look(&[]).await;
        drop((kept, two));
        seen
    });
    let sockets = traffic.sockets.get().expect("told");
    assert_eq!(sockets.ports, 90);
    let busiest = sockets.busiest.first().expect("one");
    assert_eq!((busiest.destination, busiest.port), (IpAddr::V4(Ipv4Addr::LOCALHOST), 7001));
    assert_eq!((busiest.sockets, busiest.time_wait), (35, 5), "{sockets:?}");
    assert_eq!(sockets.busiest[1].sockets, 10, "{sockets:?}");
}

#[test]
fn a_peer_that_drops_what_opens_a_connection_is_counted() {
    let net = NetNs::new();
    for line in [
        "link add uplink type veth peer name far",
        "link set far up",
        "link set uplink up",
        "address add 192.0.2.5/24 dev uplink",
        // Nobody has this address; what goes there is lost without a word.
        "neighbour add 192.0.2.9 lladdr 02:00:00:00:00:09 dev uplink nud permanent",
    ] {
        net.command("ip", &line.split(' ').collect::<Vec<_>>());
    }
    let again = net.block_on(|| async {
        let mut source = TrafficSource::new(HostRoot::new("/"));
        let before = source.look(&[]).await;
        // The kernel sends it again after a second.
        let address = (Ipv4Addr::new(192, 0, 2, 9), 443).into();
        TcpStream::connect_timeout(&address, Duration::from_millis(1500)).expect_err("nobody answers");
        [before, source.look(&[]).await].map(|seen| seen.sockets.get().map(|sockets| sockets.syn_retransmits_since))
    });
    assert_eq!(again, [Some(0), Some(1)]);
}

#[test]
fn a_line_of_a_megabyte_costs_itself() {
    let dir = tempfile::tempdir().expect("a temporary directory");
    write(dir.path(), "proc/thread-self/net/netstat", &format!("TcpExt: {}\n", "a ".repeat(1 << 20)));
    write(dir.path(), "proc/thread-self/net/stat/arp_cache", &"0 ".repeat(1 << 20));
    let net = NetNs::new();
    let root = dir.path().to_owned();
    let traffic = net.block_on(|| async move { TrafficSource::new(HostRoot::new(root)).look(&[]).await });
    assert_eq!(traffic.sockets.error().map(|error| error.reason), Some(Reason::WrongKind));
    assert_eq!(traffic.neighbours, []);
    assert_eq!(ports::paired(&format!("TcpExt: {}", "a ".repeat(1 << 20)), "TcpExt:", "b"), None);
}

#[test]
fn tables_of_neighbours_tell_overflows_and_entries_once() {
    let dir = tempfile::tempdir().expect("a temporary directory");
    let statistics = "proc/thread-self/net/stat/arp_cache";
    // As Linux 6.18 writes it, shortened: the entries are the same on each line, the rest is per CPU, in hexadecimal.
    write(
        dir.path(),
        statistics,
        "entries  allocs   table_fulls\n00000400 00000001 00000001\n00000400 00000001 0000000f\n",
    );
    write(dir.path(), "proc/sys/net/ipv4/neigh/default/gc_thresh3", "1024\n");
    let mut source = TrafficSource::new(HostRoot::new(dir.path()));
    let seconds = Duration::from_secs;
    let first = source.neighbours(Family::V4, seconds(10));
    let table = NeighbourTable { family: Family::V4, entries: 1024, limit: Some(1024), overflows: 0 };
    assert_eq!(first, Some(table));
    write(dir.path(), statistics, "entries allocs table_fulls\n400 1 1\n400 1 11\n");
    assert_eq!(source.neighbours(Family::V4, seconds(70)).map(|it| it.overflows), Some(2));
    assert_eq!(source.neighbours(Family::V6, seconds(70)), None);
    write(dir.path(), statistics, "entries table_fulls\n400\n");
    assert_eq!(source.neighbours(Family::V4, seconds(80)), None, "malformed");
}

#[test]
#[ignore = "no namespace on this machine finds new neighbours meanwhile: scripts/test.sh runs it by itself"]
fn a_table_of_neighbours_overflows() {
    // One table for all namespaces, but only the first one tells of it.
    let mut source = TrafficSource::new(HostRoot::new("/"));
    let before = source.neighbours(Family::V6, since_boot()).expect("run in the machine's own network namespace");
    let limit = u16::try_from(before.limit.expect("a limit")).expect("a table that can be filled");
    let node = NetNs::new();
    for line in [
        "link add uplink type veth peer name far",
        "link set far up",
        "link set uplink up",
        "address add 2001:db8::5/64 dev uplink nodad",
    ] {
        node.command("ip", &line.split(' ').collect::<Vec<_>>());
    }
    node.run(|| {
        // What waits for a neighbour fills the buffer of its socket.
        let socket = |_| std::net::UdpSocket::bind("[2001:db8::5]:0").expect("a socket");
        let sockets: Vec<_> = (0..=limit / 64).map(socket).collect();
        for neighbour in 0..=limit {
            let to = std::net::Ipv6Addr::new(0x2001, 0xdb8, 0, 0, 1, 0, 0, neighbour);
            // Refused once the table is full.
            sockets[usize::from(neighbour / 64)].send_to(b"hello", (to, 9)).ok();
        }
    });
    let after = source.neighbours(Family::V6, since_boot()).expect("as before");
    assert!(after.overflows > 0 && after.entries >= u64::from(limit), "{after:?}");
    let mut snapshot = crate::facts::Snapshot::blank(
        jiff::Timestamp::UNIX_EPOCH,
        crate::agent::observe::identity(&HostRoot::new("/")),
    );
    snapshot.traffic = Traffic { neighbours: vec![after], links: Seen::Yes(vec![]), ..Traffic::not_yet() };
    let look = crate::checks::Look {
        now: &snapshot,
        before: &crate::facts::Remembered::default(),
        expected: &crate::facts::Expected { worker: true, kube_proxy: None, calico: None },
        limits: &crate::checks::Limits::default(),
    };
    let said = crate::checks::run_all(&look);
    let (_, outcome) = said.iter().find(|(check, _)| check.code == "LinkErrors").expect("the check");
    let crate::checks::Outcome::Findings(findings) = outcome else { panic!("{outcome:?}") };
    assert_eq!(findings[0].subject, "neighbour table IPv6");
    drop(node);
    let later = since_boot() + Duration::from_secs(MINUTES * 60 + 1);
    assert_eq!(source.neighbours(Family::V6, later).map(|table| table.overflows), Some(0), "and it is over");
}

#[test]
fn local_ports_without_the_reserved_ones() {
    let count = |range, reserved| ports::Local::parse(range, reserved).map(|local| local.count());
    assert_eq!(count("32768\t60999\n", "\n"), Some(28_232));
    assert_eq!(count("32768 60999", "8080,30000-32769,60999"), Some(28_229));
    assert_eq!(count("1 2 3", ""), Some(2));
    assert_eq!((count("9", ""), count("a b", ""), count("1 70000", "")), (None, None, None));
}

#[test]
fn many_destinations_do_not_hide_the_busy_one() {
    let local = ports::Local::parse("1024 65535", "").expect("a range");
    let mut tally = ports::Tally::new(local, 2);
    let mut message = [0; 72];
    message[..2].copy_from_slice(&[2, 1]);
    message[4..6].copy_from_slice(&40_000_u16.to_be_bytes());
    for at in 0..50_000_u16 {
        message[6..8].copy_from_slice(&if at % 2 == 0 { 443 } else { at }.to_be_bytes());
        tally.add(&message);
    }
    let busiest = tally.busiest();
    assert_eq!((busiest[0].port, busiest.len()), (443, 3));
    assert!((24_900..=25_000).contains(&busiest[0].sockets), "{busiest:?}");
}

#[test]
fn time_wait_that_is_used_again_holds_no_port() {
    let counted = |reuse, address: [u8; 4]| {
        let mut tally = ports::Tally::new(ports::Local::parse("1 65535", "").expect("a range"), reuse);
        let mut message = [0; 72];
        message[..2].copy_from_slice(&[2, 6]);
        message[5] = 9;
        message[24..28].copy_from_slice(&address);
        tally.add(&message);
        tally.busiest().len()
    };
    assert_eq!((counted(0, [10, 0, 0, 1]), counted(1, [10, 0, 0, 1]), counted(2, [10, 0, 0, 1])), (1, 0, 1));
    assert_eq!(counted(2, [127, 0, 0, 1]), 0);
}

#[test]
fn error_counters_are_where_the_kernel_puts_them() {
    let mut stats = Vec::new();
    for value in [100_u64, 50, 0, 0, 7, 3, 99, 99] {
        stats.extend(value.to_ne_bytes());
    }
    let mut body = vec![0; 16];
    for (kind, value) in [(23_u16, stats.as_slice()), (35, &5_u32.to_ne_bytes())] {
        body.extend(u16::try_from(value.len() + 4).expect("short").to_ne_bytes());
        body.extend(kind.to_ne_bytes());
        body.extend(value);
    }
    let told = links::Counters { packets: 150, errors: 10, carrier_changes: 5 };
    assert_eq!(links::counters(&body), Ok(told), "drops are no errors");
    assert!(links::counters(&body[..40]).is_err());
}

proptest::proptest! {
    #[test]
    fn no_bytes_and_no_text_make_it_panic(bytes: Vec<u8>, text: String, other: String) {
        let mut tally = ports::Tally::new(ports::Local::parse("1 65535", &text).expect("a range"), 0);
        tally.add(&bytes);
        let mut switches = links::Switches::default();
        let _ = (switches.add(&bytes), links::counters(&bytes), ports::Local::parse(&text, &other));
        let _ = (ports::field(&text, "", &other), ports::paired(&text, "", &other));
    }
}

#[test]
fn packets_that_were_too_long_are_counted_in_both_families() {
    let dir = tempfile::tempdir().expect("a temporary directory");
    let told = |four, six| {
        write(dir.path(), "proc/thread-self/net/snmp", &format!("Ip: Forwarding FragOKs FragFails\nIp: 1 9 {four}\n"));
        write(dir.path(), "proc/thread-self/net/snmp6", &format!("Ip6FragOKs \t9\nIp6FragFails      \t{six}\n"));
    };
    let mut source = TrafficSource::new(HostRoot::new(dir.path()));
    assert_eq!(source.too_long(Duration::from_secs(10)), 0, "nothing is there");
    for (at, four, six, grown) in [(20, 0, 0, 0), (30, 2, 0, 2), (40, 2, 3, 5), (2000, 2, 3, 0)] {
        told(four, six);
        assert_eq!(source.too_long(Duration::from_secs(at)), grown, "at {at}");
    }
}
