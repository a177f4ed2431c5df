//! Against the real kernel, with rules made by the real programs, in network namespaces of their own.

mod changes;

use std::fmt::Write as _;
use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering::Relaxed};

use super::*;
use crate::agent::observe::netns::{NetNs, without_net_admin};
use crate::facts::{Hook, Policy};

const RECORDED: &str = include_str!("../../../../tests/recordings/iptables/calico-and-kube-proxy.txt");

/// A node's chains as they were recorded on a real one, restored in a namespace.
fn recorded() -> NetNs {
    let node = NetNs::new();
    node.command_with_input("iptables-nft-restore", &[], RECORDED);
    node
}

fn look(node: &NetNs) -> Ruleset {
    node.block_on(|| async { NftablesSource::open().expect("open").look().await.expect("look") })
}

fn targets<'a>(ruleset: &'a Ruleset, table: &str, chain: &str) -> Vec<(u32, &'a str)> {
    let table = ruleset.table(Family::V4, table).expect("the table");
    let chain = table.chain(chain).expect("the chain");
    chain.jumps.iter().map(|jump| (jump.position, jump.target.as_str())).collect()
}

#[test]
fn an_empty_node_has_no_tables() {
    let ruleset = look(&NetNs::new());
    assert_eq!(ruleset.tables, []);
    assert!(ruleset.generation.is_some());
}

#[test]
fn a_real_node_is_read_as_it_is() {
    let node = recorded();
    let ruleset = look(&node);
    let forward = ruleset.table(Family::V4, "filter").and_then(|table| table.chain("FORWARD")).expect("FORWARD");
    let base = forward.base.expect("a base chain");
    assert_eq!((base.hook, base.policy), (Hook::Forward, Policy::Accept));
    assert_eq!(
        targets(&ruleset, "filter", "FORWARD"),
        [
            (0, "cali-FORWARD"),
            (1, "KUBE-PROXY-FIREWALL"),
            (2, "KUBE-FORWARD"),
            (3, "KUBE-SERVICES"),
            (4, "KUBE-EXTERNAL-SERVICES")
        ],
    );
    assert_eq!(targets(&ruleset, "nat", "PREROUTING").len(), 2);
    let nat = ruleset.table(Family::V4, "nat").expect("nat");
    assert!(nat.chain("KUBE-MARK-MASQ").is_some_and(|chain| chain.base.is_none() && chain.jumps.is_empty()));
    let services = RECORDED.lines().filter(|line| line.starts_with(":KUBE-S") && line.contains('-')).count();
    let kept = nat.chains.iter().filter(|chain| chain.name.starts_with("KUBE-S")).count();
    assert!(nat.per_object_chains > 20, "{nat:?}");
    assert!(services > kept, "Services are counted, not kept: {nat:?}");
    assert!(nat.chains.iter().all(|chain| !chain.name.starts_with("KUBE-SVC-")), "{nat:?}");
}

#[test]
fn a_deleted_jump_is_seen_and_a_quiet_node_is_not_read() {
    let node = recorded();
    node.block_on(|| async {
        let mut source = NftablesSource::open().expect("open");
        let before = source.look().await.expect("look");
        let generation = source.generation().await.expect("generation");
        source.before_dump = Box::new(|| panic!("nothing changed, so nothing is dumped"));
        assert_eq!(source.look().await.as_ref(), Ok(&before));

        let jump = ["-t", "nat", "-D", "PREROUTING", "-m", "comment", "--comment", "kubernetes service portals"];
        node.command("iptables-nft", &[&jump[..], &["-j", "KUBE-SERVICES"]].concat());
        let dumps = Arc::new(AtomicU32::new(0));
        let count = Arc::clone(&dumps);
        source.before_dump = Box::new(move || {
            count.fetch_add(1, Relaxed);
        });
        let after = source.look().await.expect("look");
        assert!(dumps.load(Relaxed) > 2, "tables, chains, and rules of base chains");
        assert!(after.generation > Some(generation));
        let nat =
            |ruleset: &Ruleset| ruleset.table(Family::V4, "nat").expect("nat").jumps("PREROUTING", "KUBE-SERVICES");
        assert!(nat(&before) && !nat(&after));
    });
}

#[test]
fn both_families_policies_and_gotos() {
    let node = NetNs::new();
    node.command("ip6tables-nft", &["-N", "KUBE-FORWARD"]);
    node.command("ip6tables-nft", &["-A", "FORWARD", "-m", "mark", "--mark", "1", "-j", "ACCEPT"]);
    node.command("ip6tables-nft", &["-A", "FORWARD", "-p", "tcp", "-g", "KUBE-FORWARD"]);
    node.command("ip6tables-nft", &["-P", "FORWARD", "DROP"]);
    let ruleset = look(&node);
    assert!(ruleset.tables.iter().all(|table| table.family == Family::V6));
    let forward = ruleset.table(Family::V6, "filter").and_then(|table| table.chain("FORWARD")).expect("FORWARD");
    assert_eq!(forward.base.map(|base| base.policy), Some(Policy::Drop));
    assert_eq!(forward.jumps, [Jump { position: 1, target: "KUBE-FORWARD".into() }]);
}

#[test]
fn native_tables_are_read_and_bridges_are_left_out() {
    let node = NetNs::new();
    let rules = "
        table ip kube-proxy {
            map service-ips { type ipv4_addr : verdict; }
            chain services { ip daddr vmap @service-ips; }
            chain service-ULMVA6XW-default/web/tcp/http { accept; }
            chain filter-forward {
                type filter hook forward priority -101; policy accept;
                ct state new counter jump services
            }
        }
        table ip calico {
            chain filter-cali-FORWARD { accept; }
            chain filter-cali-tw-cali0ef24ba { accept; }
            chain filter-FORWARD {
                type filter hook forward priority 0; policy accept;
                iifname \"lo\" accept
                jump filter-cali-FORWARD
            }
        }
        table ip6 mine { chain a { accept; }; }
        table inet firewalld { chain b { type filter hook input priority 0; policy drop; accept; }; }
        table bridge c { chain d { accept; }; }
    ";
    node.command_with_input("nft", &["-f", "-"], rules);
    let ruleset = look(&node);
    let names: Vec<_> = ruleset.tables.iter().map(|table| (table.family, table.name.as_str())).collect();
    assert_eq!(names.len(), 3, "{names:?}");
    assert_eq!(targets(&ruleset, "kube-proxy", "filter-forward"), [(0, "services")]);
    assert_eq!(targets(&ruleset, "calico", "filter-FORWARD"), [(1, "filter-cali-FORWARD")]);
    let proxy = ruleset.table(Family::V4, "kube-proxy").expect("kube-proxy");
    let base = proxy.chain("filter-forward").and_then(|chain| chain.base);
    assert_eq!(base.map(|base| (base.hook, base.priority)), Some((Hook::Forward, Some(-101))));
    assert_eq!((proxy.chains.len(), proxy.per_object_chains), (2, 1));
    let calico = ruleset.table(Family::V4, "calico").expect("calico");
    let firewalld = ruleset.inet.iter().find(|table| table.name == "firewalld").expect("firewalld");
    assert_eq!(firewalld.chains[0].rules.as_ref().map(Vec::len), Some(1), "{firewalld:?}");
    assert_eq!(ruleset.inet.len(), 1);
    assert_eq!((calico.chains.len(), calico.per_object_chains, calico.foreign_chains), (2, 1, 0));
    assert_eq!(ruleset.table(Family::V6, "mine").map(|table| table.foreign_chains), Some(1));
}

/// Chains as of a cluster with that many Services, in iptables-restore's language.
fn services(count: u32) -> String {
    use std::fmt::Write as _;
    let mut text = String::from("*nat\n:KUBE-SERVICES - [0:0]\n");
    for service in 0..count {
        let _ = writeln!(text, ":KUBE-SVC-{service:016} - [0:0]\n:KUBE-SEP-{service:016} - [0:0]");
    }
    for service in 0..count {
        let _ = writeln!(
            text,
            "-A KUBE-SERVICES -d 10.96.0.1/32 -p tcp --dport {} -j KUBE-SVC-{service:016}",
            service % 65_536
        );
        let _ = writeln!(text, "-A KUBE-SVC-{service:016} -j KUBE-SEP-{service:016}");
    }
    text + "-A PREROUTING -j KUBE-SERVICES\nCOMMIT\n"
}

#[test]
fn a_thousand_services_are_counted() {
    let node = NetNs::new();
    node.command_with_input("iptables-nft-restore", &[], &services(1000));
    let ruleset = look(&node);
    let nat = ruleset.table(Family::V4, "nat").expect("nat");
    assert_eq!(nat.per_object_chains, 2000);
    assert_eq!(targets(&ruleset, "nat", "PREROUTING"), [(0, "KUBE-SERVICES")]);
}

#[test]
fn without_the_capability_it_says_what_it_needs() {
    without_net_admin(module_path!(), "without_the_capability_it_says_what_it_needs", || {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().expect("a runtime");
        let look = async { NftablesSource::open().expect("open").look().await };
        let error = runtime.block_on(look).expect_err("no right");
        assert_eq!(error.reason, Reason::Denied);
        assert!(error.detail.ends_with("needs CAP_NET_ADMIN; run as root"), "{error}");
    });
}

#[test]
fn a_kernel_without_nf_tables_is_told_from_one_that_refuses() {
    let failure = |errno: Errno| Failure::Io(std::io::Error::from_raw_os_error(errno as i32));
    assert_eq!(explain("nf_tables", &failure(Errno::EINVAL)).reason, Reason::Unsupported);
    assert_eq!(explain("nf_tables", &failure(Errno::EPROTONOSUPPORT)).reason, Reason::Unsupported);
    assert_eq!(explain("nf_tables", &failure(Errno::EPERM)).reason, Reason::Denied);
}

/// The API server's Service as kube-proxy writes it.
const SERVICE: &str = "*nat
:KUBE-MARK-MASQ - [0:0]
:KUBE-SEP-L7PMTEED6PWUMWBF - [0:0]
:KUBE-SERVICES - [0:0]
:KUBE-SVC-NPX46M4PTMTKRN6Y - [0:0]
-A KUBE-SEP-L7PMTEED6PWUMWBF -s 10.77.0.1/32 -j KUBE-MARK-MASQ
-A KUBE-SEP-L7PMTEED6PWUMWBF -p tcp -m tcp -j DNAT --to-destination 10.77.0.1:6443
-A KUBE-SERVICES -d 10.96.0.1/32 -p tcp -m tcp --dport 443 -j KUBE-SVC-NPX46M4PTMTKRN6Y
-A KUBE-SVC-NPX46M4PTMTKRN6Y ! -s 10.244.0.0/16 -d 10.96.0.1/32 -p tcp -m tcp --dport 443 -j KUBE-MARK-MASQ
-A KUBE-SVC-NPX46M4PTMTKRN6Y -j KUBE-SEP-L7PMTEED6PWUMWBF
COMMIT
";

#[test]
fn services_that_everything_needs_are_followed() {
    let node = NetNs::new();
    node.command_with_input("iptables-nft-restore", &[], SERVICE);
    let ruleset = look(&node);
    let api = ruleset.services.iter().find(|it| it.service == "default/kubernetes:https").expect("the API server");
    assert_eq!((api.referenced, api.endpoints.len(), api.dead_ends.len()), (Some(true), 1, 0), "{api:?}");
    // The rule that leads to it.
    node.command("iptables-nft", &["-t", "nat", "-F", "KUBE-SERVICES"]);
    let ruleset = look(&node);
    let api = ruleset.services.iter().find(|it| it.service == "default/kubernetes:https").expect("the API server");
    assert_eq!(api.referenced, Some(false));
}

#[test]
fn chains_of_others_are_followed_and_long_ones_are_cut() {
    let node = NetNs::new();
    let many = "-A LONG -p tcp -j DROP\n".repeat(300);
    let rules = format!(
        "*filter\n:LONG - [0:0]\n:INNER - [0:0]\n:UNUSED - [0:0]\n:KUBE-SERVICES - [0:0]\n-A FORWARD -j LONG\n\
         -A FORWARD -j INNER\n-A FORWARD -j KUBE-SERVICES\n-A INNER -j INNER2\n{many}COMMIT\n"
    );
    let rules = rules.replace(":INNER -", ":INNER2 - [0:0]\n:INNER -");
    node.command_with_input("iptables-nft-restore", &[], &rules);
    let ruleset = look(&node);
    let filter = ruleset.table(Family::V4, "filter").expect("filter");
    let rules = |name: &str| filter.chain(name).and_then(|chain| chain.rules.as_ref().map(|it| (it.len(), chain.cut)));
    assert_eq!(rules("LONG"), Some((Chain::MOST_RULES, true)));
    assert_eq!((rules("INNER"), rules("INNER2"), rules("UNUSED")), (Some((1, false)), Some((0, false)), None));
    assert_eq!(rules("KUBE-SERVICES"), None, "can be long, and is not needed");
    assert_eq!(filter.foreign_chains, 1);
}

#[test]
fn counters_are_read_again_after_a_while_and_do_not_change_a_quiet_look() {
    let node = NetNs::new();
    node.command("ip", &["link", "set", "lo", "up"]);
    node.command("iptables-nft", &["-A", "INPUT", "-p", "udp", "-j", "DROP"]);
    node.command("iptables-nft", &["-A", "INPUT", "-p", "tcp", "-j", "ACCEPT"]);
    node.block_on(|| async {
        let mut source = NftablesSource::open().expect("open");
        let before = source.look().await.expect("look");
        let socket = std::net::UdpSocket::bind("127.0.0.1:0").expect("a socket");
        socket.send_to(b"x", "127.0.0.1:9").expect("sent");
        assert_eq!(source.look().await.expect("look"), before, "the generation is the same");
        source.counted = Instant::now().checked_sub(COUNTERS * 2).expect("the machine runs for a minute");
        let after = source.look().await.expect("look");
        let packets = |ruleset: &Ruleset| {
            let input = ruleset.table(Family::V4, "filter").and_then(|table| table.chain("INPUT")).expect("INPUT");
            input.rules()[0].packets
        };
        assert_eq!((packets(&before), packets(&after)), (Some(0), Some(1)));
    });
}

#[test]
fn chains_of_a_big_rule_set_are_asked_for_by_name_and_all_listed_now_and_then() {
    let node = recorded();
    let mut many = String::from("*nat\n");
    for number in 0..2_100 {
        writeln!(many, ":KUBE-SEP-{number:016} - [0:0]").expect("a string");
    }
    node.command_with_input("iptables-nft-restore", &["--noflush"], &(many + "COMMIT\n"));
    let chain =
        |ruleset: &Ruleset, name: &str| ruleset.table(Family::V4, "nat").and_then(|nat| nat.chain(name)).is_some();
    node.block_on(|| async {
        let mut source = NftablesSource::open().expect("open");
        let before = source.look().await.expect("look");
        assert!(before.table(Family::V4, "nat").is_some_and(|nat| nat.per_object_chains > 2_100));

        node.command("iptables-nft", &["-t", "nat", "-F", "PREROUTING"]);
        node.command("iptables-nft", &["-t", "nat", "-N", "KUBE-BRAND-NEW"]);
        let named = source.look().await.expect("look");
        assert!(targets(&named, "nat", "PREROUTING").is_empty());
        assert!(!chain(&named, "KUBE-BRAND-NEW"), "its name is not known yet");
        let counts = |ruleset: &Ruleset| -> Vec<u32> { ruleset.tables.iter().map(|it| it.per_object_chains).collect() };
        assert_eq!(counts(&named), counts(&before));
        assert_eq!(named.services, before.services);

        for command in ["-F", "-X"] {
            node.command("iptables-nft", &["-t", "nat", command]);
        }
        let flushed = source.look().await.expect("look");
        assert!(!chain(&flushed, "KUBE-SERVICES") && flushed.services.is_empty());
        node.command_with_input("iptables-nft-restore", &[], RECORDED);
        assert!(chain(&source.look().await.expect("look"), "KUBE-SERVICES"), "its name is known");

        node.command("iptables-nft", &["-t", "nat", "-N", "KUBE-BRAND-NEW"]);
        assert!(!chain(&source.look().await.expect("look"), "KUBE-BRAND-NEW"));
        source.catalogue.age();
        assert!(chain(&source.look().await.expect("look"), "KUBE-BRAND-NEW"), "seen without any other change");
    });
}

#[test]
fn of_a_big_set_no_more_is_read_than_that_it_is_not_empty() {
    let node = NetNs::new();
    let mut elements = String::from("192.0.2.1");
    for number in 0..20_000_u32 {
        write!(elements, ", 10.{}.{}.{}", number / 4096, number / 16 % 256, number % 16 * 2).expect("a string");
    }
    let rules = format!(
        "table ip calico {{ set cali40all-hosts-net {{ type ipv4_addr; flags interval; elements = {{ {elements} }}; }}\n\
         set cali40masq-ipam-pools {{ type ipv4_addr; flags interval; }}\n\
         chain filter-cali-INPUT {{ ip protocol 4 ip saddr @cali40all-hosts-net accept; }} \n}}\n\
         table ip6 calico {{ set cali60all-ipam-pools {{ type ipv6_addr; flags interval; elements = {{ fd00::/48 }}; }} \n}}\n\
         table ip other {{ set cali40this-host {{ type ipv4_addr; }} \n}}\n"
    );
    node.command_with_input("nft", &["-f", "-"], &rules);
    node.block_on(|| async {
        let mut source = NftablesSource::open().expect("open");
        let set = |name: &str, entries, references| {
            let (name, kind) = (name.to_owned(), "nf_tables".to_owned());
            IpSet { name, kind, entries, references }
        };
        let expected =
            [set("cali40all-hosts-net", 1, 1), set("cali40masq-ipam-pools", 0, 0), set("cali60all-ipam-pools", 1, 0)];
        assert_eq!(source.look().await.expect("look").sets, expected);
        let mut messages = 0;
        let question = wire::elements_of(Family::V4, "calico", "cali40all-hosts-net");
        let count = |_, _: &[u8]| {
            messages += 1;
            Ok(())
        };
        source.netlink.ask(wire::GET_ELEMENTS, NLM_F_DUMP, &question, count).await.expect("a dump");
        assert!(messages > 10, "it would take {messages} messages");
        // An element that goes is a commit of its own.
        node.command("nft", &["flush set ip calico cali40all-hosts-net"]);
        assert_eq!(source.look().await.expect("look").sets[0], set("cali40all-hosts-net", 0, 1));
    });
}
