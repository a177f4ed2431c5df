//! This node's own rules against packets in tunnels, written by the real programs into both backends of the real kernel. It need
//! have neither IP-in-IP nor WireGuard: another link stands in for their devices.

use jiff::Timestamp;

use super::super::look;
use crate::agent::observe::legacy::tests::look_inside;
use crate::agent::observe::netns::NetNs;
use crate::agent::observe::nftables::NftablesSource;
use crate::checks::{Limits, Look, Outcome, node};
use crate::facts::*;

/// A node whose routes to the blocks of n2 go by a tunnel, and n2 does not answer in there.
fn net() -> NetNs {
    let net = NetNs::new();
    for line in [
        "link add eth0 type veth peer name far",
        "link set eth0 up",
        "link set far up",
        "addr add 10.0.0.1/24 dev eth0",
        "link add tunnel type veth peer name inside",
        "link set tunnel up",
        "link set inside up",
        "route add 10.244.2.0/26 dev tunnel",
    ] {
        net.command("ip", &line.split(' ').collect::<Vec<_>>());
    }
    net
}

/// What is told of n2, with a tunnel of this kind.
fn told(net: &NetNs, kind: &str) -> String {
    let identity = Identity { hostname: "n1".into(), ..Identity::default() };
    let mut now = Snapshot::blank(Timestamp::UNIX_EPOCH, identity);
    let mut routing = look(net, &[]);
    routing.links.iter_mut().filter(|link| link.name == "tunnel").for_each(|link| link.kind = Some(kind.into()));
    routing.wireguard = Seen::Yes([("tunnel".to_owned(), 51999)].into());
    now.routing = Seen::Yes(routing);
    now.nftables = net.block_on(|| async { NftablesSource::open().expect("open").look().await }).into();
    now.legacy = net.block_on(look_inside).into();
    let tunnel = [10, 244, 2, 0].into();
    now.tunnels = Seen::Yes(vec![TunnelPeer { node: "n2".into(), address: [10, 0, 0, 2].into(), tunnel }]);
    let (before, limits) = (Remembered::default(), Limits::default());
    let expected = Expected::of(&now, &before);
    let look = Look { now: &now, before: &before, expected: &expected, limits: &limits };
    let check = node::ALL.iter().find(|check| check.code == "EncapBlocked").expect("the check");
    match (check.run)(&look) {
        Outcome::Findings(mut found) => found.remove(0).detail,
        other => panic!("{other:?}"),
    }
}

#[test]
fn rules_against_each_kind_of_tunnel_in_both_backends() {
    let net = net();
    let elsewhere = "encapsulated packets are dropped between it and this node";
    for (kind, rule, name) in [
        ("ipip", "-p 4", "IP-in-IP (protocol 4)"),
        ("wireguard", "-p udp --dport 51999", "WireGuard (UDP port 51999)"),
        ("wireguard", "-p udp -m multiport --dports 53,51990:52000", "WireGuard (UDP port 51999)"),
    ] {
        for program in ["iptables-nft", "iptables-legacy"] {
            for chain in ["INPUT", "OUTPUT"] {
                let case = format!("{program} {chain} {rule}");
                let change = |option: &str| {
                    let words = rule.split(' ').chain(["-j", "DROP"]);
                    net.command(program, &[option, chain].into_iter().chain(words).collect::<Vec<_>>());
                };
                assert!(told(&net, kind).ends_with(elsewhere), "before {case}");
                change("-A");
                let said = told(&net, kind);
                assert!(said.contains(&format!("this node itself drops {name}, by rule `-p ")), "{case}: {said}");
                assert!(said.contains(&format!("`-p {}", &rule[3..4])) && said.contains(chain), "{case}: {said}");
                let other = if kind == "ipip" { "wireguard" } else { "ipip" };
                assert!(told(&net, other).ends_with(elsewhere), "{case}: the other kind");
                change("-D");
                assert!(told(&net, kind).ends_with(elsewhere), "after {case}");
            }
        }
    }
}
