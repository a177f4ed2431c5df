//! Packets in tunnels do not reach another node.
//!
//! *Looks at* probes to the tunnel addresses of the other nodes: a TCP segment that any answer will do for. A node is told
//! after three silences in a row through the tunnel, each of which it answered outside of it; IP-in-IP is protocol 4 and
//! VXLAN the UDP port of its device (4789 by default), WireGuard UDP port 51820, which filters between nodes tend to forget though BGP works. *Traps*: this
//! node's own packet filter can be the one, so its rule and counter are told first ([`passage::dropping`]: Calico's own chains let
//! these packets through, and what comes behind them is not passed); an idle node has no traffic to judge by; a node that is not Ready or has just been added; nodes of one subnet where only packets across subnets are
//! encapsulated; a route that is missing; a node that answers nobody (catalogue R165).

use std::time::Duration;

use ipnet::IpNet;

use super::super::passage::{self, Packet};
use super::super::{Area, Check, Finding, Look, Outcome, Severity, first_error, seen};
use crate::facts::{Hook, Link, RouteKind, TunnelPeer};

pub(super) const CHECK: Check = Check {
    code: "EncapBlocked",
    area: Area::PodRouting,
    severity: Severity::Critical,
    why: "packets between pods here and on that node are lost, while the nodes themselves and BGP talk to each other",
    next_step: "allow IP protocol 4 (IP-in-IP), UDP port 4789 (VXLAN) or UDP port 51820 (WireGuard) between the nodes: packet filters of both, security groups, ACLs, gateways",
    // Three silences in a row are behind it.
    raise_after: Duration::from_secs(1),
    clear_after: Duration::from_secs(1),
    run,
};

const NO_TUNNELS: &str = "no tunnels between nodes here, or nobody tells where they lead";

/// How packets between pods are packed.
struct Tunnel {
    /// `IFLA_INFO_KIND` of the links that do it.
    kind: &'static str,
    /// For people.
    name: &'static str,
    /// Protocol that the packed ones go by.
    protocol: u8,
    /// And port: Calico's default.
    port: Option<u16>,
    /// Whether those of both directions are one connection to the kernel: those of VXLAN come from any port.
    one_connection: bool,
}

/// The one that leads to a peer is the first of these by which a route to its end of the tunnel goes: WireGuard has a table of
/// its own, and what it cannot take goes by the others.
static TUNNELS: [Tunnel; 3] = [
    Tunnel { kind: "wireguard", name: "WireGuard", protocol: 17, port: Some(51820), one_connection: true },
    Tunnel { kind: "vxlan", name: "VXLAN", protocol: 17, port: Some(4789), one_connection: false },
    Tunnel { kind: "ipip", name: "IP-in-IP", protocol: 4, port: None, one_connection: true },
];
/// `RT_TABLE_MAIN`.
const MAIN: u32 = 254;

fn run(look: &Look<'_>) -> Outcome {
    let silent = seen!(look.now.tunnels, Outcome::NotApplicable(NO_TUNNELS.into()));
    Outcome::from_findings(silent.iter().map(|peer| finding(look, peer)).collect())
}

fn finding(look: &Look<'_>, peer: &TunnelPeer) -> Finding {
    let TunnelPeer { node, tunnel, address } = peer;
    let silence = format!("The node {node} answers at {address}, but not through the tunnel at {tunnel}");
    let subject = format!("{node} {tunnel}");
    if let Some((name, rule)) = own_rule(look, peer) {
        let next = format!(
            "find who put this rule on this node (its comment and table say: firewalld, ufw, a security agent, a script), and take it out or let {name} between the nodes pass ahead of it"
        );
        let detail = format!("{silence}: this node itself drops {name}, by {rule}");
        return Finding::new(subject, detail).next(next);
    }
    let unread = first_error([look.now.routing.error(), passage::unread(look)]);
    let unread = unread.map_or_else(String::new, |error| {
        format!("; whether a rule of this node's own does it could not be looked at ({error})")
    });
    let finding =
        Finding::new(subject, format!("{silence}: encapsulated packets are dropped between it and this node{unread}"));
    match carrier(look, peer) {
        Some((own, port)) if port != own.port => finding.next(format!(
            "allow {} between the nodes: packet filters of both, security groups, ACLs, gateways",
            own.called(port)
        )),
        _ => finding,
    }
}

/// What carries packets to this peer, and the rule of this node's own that surely drops it on its way out or in, with its
/// counter.
fn own_rule(look: &Look<'_>, peer: &TunnelPeer) -> Option<(String, String)> {
    let (tunnel, port) = carrier(look, peer)?;
    let goes_by = (tunnel.protocol, port);
    let uplink = uplink(look, peer);
    let sent = Packet::sent(peer.address, goes_by, uplink.clone(), tunnel.one_connection);
    let received = Packet::received(peer.address, goes_by, uplink, tunnel.one_connection);
    let ways =
        [(Hook::Output, &sent), (Hook::Postrouting, &sent), (Hook::Prerouting, &received), (Hook::Input, &received)];
    let (rule, counted) = ways.into_iter().find_map(|(hook, packet)| passage::dropping(look, hook, packet))?;
    Some((tunnel.called(port), counted.map_or(rule.clone(), |counted| format!("{rule}: {counted}"))))
}

impl Tunnel {
    /// With what lets it through a packet filter.
    fn called(&self, port: Option<u16>) -> String {
        match port {
            Some(port) => format!("{} (UDP port {port})", self.name),
            None => format!("{} (protocol {})", self.name, self.protocol),
        }
    }
}

/// What carries packets to this peer, and the port that its device says, or else the usual one.
fn carrier(look: &Look<'_>, peer: &TunnelPeer) -> Option<(&'static Tunnel, Option<u16>)> {
    let routing = look.now.routing.get()?;
    let to = IpNet::from(peer.tunnel);
    let tables = routing.rules.iter().map(|rule| rule.table).chain([MAIN]);
    let routes = tables.filter_map(|table| routing.routes.best(table, to));
    let links: Vec<&Link> = routes.filter_map(|route| routing.link(route.link)).collect();
    TUNNELS.iter().find_map(|tunnel| {
        let link = links.iter().find(|link| link.kind.as_deref() == Some(tunnel.kind))?;
        Some((tunnel, link.vxlan_port.or(tunnel.port)))
    })
}

/// The link by which the other node is reached, if there is one way.
fn uplink(look: &Look<'_>, peer: &TunnelPeer) -> Option<String> {
    let routing = look.now.routing.get()?;
    let route = routing.routes.best_in_main(IpNet::from(peer.address))?;
    (route.kind == RouteKind::Unicast && !route.several).then(|| routing.link_name(route.link))
}

#[cfg(test)]
mod tests {
    use super::super::testing::{self, Node};
    use super::*;
    use crate::facts::{Backend, FilterRule, Policy, Seen};

    fn silent(nodes: &[&str]) -> Node {
        let peer = |node: &&str| TunnelPeer {
            node: (*node).to_owned(),
            address: [10, 0, 0, 2].into(),
            tunnel: [10, 244, 2, 0].into(),
        };
        let peers = nodes.iter().map(peer).collect();
        Node::worker().edit(|now| now.tunnels = Seen::Yes(peers))
    }

    #[test]
    fn a_node_is_silent_in_the_tunnel() {
        let outcome = run(&silent(&["n2"]).look());
        assert_eq!(testing::subjects(&outcome), ["n2 10.244.2.0"]);
        assert!(testing::details(&outcome)[0].starts_with("The node n2 answers at 10.0.0.2, but not through"));
    }

    /// A silent peer behind a link of this kind, and this worker's rules at a hook, which have matched ten packets each.
    fn behind(kind: &str, backend: Backend, base: &str, rules: &[&str]) -> Node {
        let link = testing::link(40, "tunnel9", Some(kind));
        let node = silent(&["n2"]).routing(|routing| routing.links.push(link));
        let node = node.routes(|list| {
            list.push(testing::table_route("10.244.2.0/26 - 40 12"));
            list.push(testing::table_route("10.0.0.0/24 - 2 2"));
        });
        let rules = rules.iter().map(|text| FilterRule { packets: Some(10), ..testing::rule(text) }).collect();
        let hook = match base {
            "INPUT" => Hook::Input,
            "OUTPUT" => Hook::Output,
            "PREROUTING" => Hook::Prerouting,
            _ => Hook::Forward,
        };
        let policy = if base == "INPUT" && backend == Backend::Legacy { Policy::Drop } else { Policy::Accept };
        node.rules(backend, ("filter", base), Some((hook, policy)), rules)
    }

    fn said(node: &Node) -> String {
        testing::details(&run(&node.look())).remove(0)
    }

    const BETWEEN: &str =
        "but not through the tunnel at 10.244.2.0: encapsulated packets are dropped between it and this node";

    #[test]
    fn a_rule_of_this_nodes_own_is_named_with_its_counter() {
        let nft = Backend::Nftables;
        let node = behind("vxlan", nft, "INPUT", &["-p udp --dport 4789 -j DROP"]);
        let expected = "The node n2 answers at 10.0.0.2, but not through the tunnel at 10.244.2.0: this node itself drops VXLAN (UDP port \
                        4789), by rule `-p udp --dport 4789 -j DROP` in INPUT of table IPv4 filter (nf_tables): it has matched at least 10 packets";
        assert_eq!(said(&node), expected);
        let Outcome::Findings(found) = run(&node.look()) else { panic!("found") };
        assert!(found[0].next_step.as_ref().is_some_and(|next| next.contains("let VXLAN (UDP port 4789) between")));
        for (kind, backend, base, rule, told) in [
            ("ipip", nft, "OUTPUT", "-p 4 -j DROP", "`-p 4 -j DROP` in OUTPUT"),
            ("ipip", nft, "INPUT", "-p 4 -j REJECT", "`-p 4 -j REJECT` in INPUT"),
            ("ipip", nft, "PREROUTING", "-i eth0 -p 4 -j DROP", "in PREROUTING"),
            ("ipip", nft, "OUTPUT", "-d 10.0.0.0/24 -o eth0 -j DROP", "-o eth0 -j DROP` in OUTPUT"),
            ("wireguard", nft, "OUTPUT", "-p udp --dport 51820 -j DROP", "drops WireGuard (UDP port 51820), by rule"),
            ("vxlan", Backend::Legacy, "OUTPUT", "-p udp -j DROP", "in OUTPUT of table IPv4 filter (legacy iptables)"),
            ("vxlan", Backend::Legacy, "INPUT", "-p tcp -j ACCEPT", "by the policy DROP of INPUT"),
        ] {
            let said = said(&behind(kind, backend, base, &[rule]));
            assert!(said.contains("this node itself drops ") && said.contains(told), "{said}");
        }
    }

    #[test]
    fn the_port_is_that_of_the_device() {
        let behind = |rule: &str| {
            behind("vxlan", Backend::Nftables, "INPUT", &[rule]).routing(|routing| {
                routing.links.iter_mut().filter(|link| link.index == 40).for_each(|link| link.vxlan_port = Some(4790));
            })
        };
        let said = |rule: &str| {
            let Outcome::Findings(mut found) = run(&behind(rule).look()) else { panic!("found") };
            (found[0].detail.clone(), found.remove(0).next_step.unwrap_or_default())
        };
        let (detail, next) = said("-p udp --dport 4790 -j DROP");
        assert!(detail.contains("this node itself drops VXLAN (UDP port 4790), by rule"), "{detail}");
        assert!(next.contains("let VXLAN (UDP port 4790) between the nodes pass"), "{next}");
        let (detail, next) = said("-p udp --dport 4789 -j DROP");
        assert!(
            detail.ends_with(BETWEEN) && next.starts_with("allow VXLAN (UDP port 4790) between the nodes"),
            "{next}"
        );
    }

    #[test]
    fn trap_rules_that_do_not_drop_it() {
        let kept = "-m conntrack --ctstate RELATED,ESTABLISHED -j ACCEPT";
        for (kind, base, rules) in [
            ("vxlan", "INPUT", &["-p udp --dport 4790 -j DROP"][..]),
            ("vxlan", "INPUT", &["-p 4 -j DROP"]),
            ("vxlan", "OUTPUT", &["-p tcp --dport 4789 -j DROP"]),
            ("vxlan", "OUTPUT", &["-d 10.9.9.9 -p udp -j DROP"]),
            ("vxlan", "OUTPUT", &["-o eth7 -p udp -j DROP"]),
            ("vxlan", "OUTPUT", &["-p udp --dport 4789 -j ACCEPT", "-j DROP"]),
            ("vxlan", "OUTPUT", &["-m set --match-set friends dst -j ACCEPT", "-j DROP"]),
            ("vxlan", "OUTPUT", &["-j cali-OUTPUT", "-p udp --dport 4789 -j DROP"]),
            ("ipip", "INPUT", &["-p udp --dport 4789 -j DROP"]),
            // What this node has sent makes what comes an answer; the ports of VXLAN differ from one direction to the other.
            ("ipip", "INPUT", &[kept, "-j DROP"]),
            ("wireguard", "INPUT", &[kept, "-j DROP"]),
            ("ipip", "OUTPUT", &[kept, "-j DROP"]),
            ("ipip", "FORWARD", &["-p 4 -j DROP"]),
        ] {
            let said = said(&behind(kind, Backend::Nftables, base, rules));
            assert!(said.ends_with(BETWEEN), "{rules:?}: {said}");
        }
        let said = said(&behind("vxlan", Backend::Nftables, "INPUT", &[kept, "-j DROP"]));
        assert!(said.contains("by rule `-j DROP` in INPUT"), "{said}");
    }

    #[test]
    fn it_says_when_the_rules_could_not_be_read() {
        let blind =
            behind("vxlan", Backend::Nftables, "INPUT", &[]).edit(|now| now.legacy = testing::denied("ip_tables"));
        let text = said(&blind);
        assert!(text.contains("whether a rule of this node's own does it could not be looked at (ip_tables"), "{text}");
        let found = behind("vxlan", Backend::Nftables, "INPUT", &["-j DROP"]);
        let found = found.edit(|now| now.legacy = testing::denied("ip_tables"));
        assert!(said(&found).contains("this node itself drops"), "what can be read is told");
        let unrouted = silent(&["n2"]).edit(|now| now.routing = testing::denied("route dump"));
        assert!(said(&unrouted).contains("could not be looked at (route dump"), "{}", said(&unrouted));
    }

    #[test]
    fn healthy_and_clears_and_not_applicable_without_tunnels() {
        assert_eq!(run(&silent(&[]).look()), Outcome::Healthy);
        assert!(matches!(run(&Node::worker().look()), Outcome::NotApplicable(_)));
    }

    #[test]
    fn unknown_before_the_first_look() {
        let node = Node::worker().edit(|now| now.tunnels = testing::error("tunnels", crate::facts::Reason::NotYet));
        assert!(matches!(run(&node.look()), Outcome::Unknown(_)));
    }
}
