//! Packets in tunnels do not reach another node.
//!
//! *Looks at* probes to the tunnel addresses of the other nodes: a TCP segment that any answer will do for. A node is told
//! after three silences in a row through the tunnel, each of which it answered outside of it; IP-in-IP is protocol 4, VXLAN
//! (4789 by default) and WireGuard (51820, and 51821 for IPv6) the UDP port of their devices, which filters between nodes tend to forget though BGP works. *Traps*: this
//! node's own packet filter can be the one, so its rule and counter are told first ([`passage::dropping`]: Calico's own chains let
//! these packets through, and what comes behind them is not passed); an idle node has no traffic to judge by; a node that is not Ready or has just been added; nodes of one subnet where only packets across subnets are
//! encapsulated; a route that is missing; a node that answers nobody (catalogue R165).

use std::time::Duration;

use ipnet::IpNet;

use super::super::passage::{self, Packet};
use super::super::{Area, Check, Finding, Look, Outcome, Severity, first_error, seen};
use crate::facts::{Family, Hook, Link, RouteKind, TunnelPeer, WIREGUARD};

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
    /// And UDP port, of IPv4 and of IPv6: Calico's defaults (`wireguardListeningPort` and `wireguardListeningPortV6` of
    /// FelixConfiguration), which are flannel's too.
    usual: Option<[u16; 2]>,
    /// Whether those of both directions are one connection to the kernel: those of VXLAN come from any port.
    one_connection: bool,
}

/// Of IPv4 and of IPv6.
pub(super) const WIREGUARD_PORTS: [u16; 2] = [51820, 51821];

/// What leads to a peer.
struct Carrier {
    tunnel: &'static Tunnel,
    /// What its device says, or else the usual one.
    port: Option<u16>,
    /// Why the device has not said it.
    guessed: Option<String>,
}

/// The one that leads to a peer is the first of these by which a route to its end of the tunnel goes: WireGuard has a table of
/// its own, and what it cannot take goes by the others.
static TUNNELS: [Tunnel; 3] = [
    Tunnel { kind: WIREGUARD, name: "WireGuard", protocol: 17, usual: Some(WIREGUARD_PORTS), one_connection: true },
    Tunnel { kind: "vxlan", name: "VXLAN", protocol: 17, usual: Some([4789; 2]), one_connection: false },
    Tunnel { kind: "ipip", name: "IP-in-IP", protocol: 4, usual: None, one_connection: true },
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
    let carrier = carrier(look, peer);
    let guessed = carrier.as_ref().and_then(Carrier::guess).unwrap_or_default();
    let detail = format!("{silence}: encapsulated packets are dropped between it and this node{unread}{guessed}");
    let finding = Finding::new(subject, detail);
    match carrier.filter(Carrier::is_unusual) {
        Some(carrier) => finding.next(format!(
            "allow {} between the nodes: packet filters of both, security groups, ACLs, gateways",
            carrier.called()
        )),
        None => finding,
    }
}

/// What carries packets to this peer, and the rule of this node's own that surely drops it on its way out or in, with its
/// counter.
fn own_rule(look: &Look<'_>, peer: &TunnelPeer) -> Option<(String, String)> {
    let carrier = carrier(look, peer)?;
    let tunnel = carrier.tunnel;
    let goes_by = (tunnel.protocol, carrier.port);
    let uplink = uplink(look, peer);
    let sent = Packet::sent(peer.address, goes_by, uplink.clone(), tunnel.one_connection);
    let received = Packet::received(peer.address, goes_by, uplink, tunnel.one_connection);
    let ways =
        [(Hook::Output, &sent), (Hook::Postrouting, &sent), (Hook::Prerouting, &received), (Hook::Input, &received)];
    let (rule, counted) = ways.into_iter().find_map(|(hook, packet)| passage::dropping(look, hook, packet))?;
    let rule = counted.map_or(rule.clone(), |counted| format!("{rule}: {counted}"));
    Some((carrier.called(), rule + &carrier.guess().unwrap_or_default()))
}

impl Carrier {
    /// With what lets it through a packet filter.
    fn called(&self) -> String {
        match self.port {
            Some(port) => format!("{} (UDP port {port})", self.tunnel.name),
            None => format!("{} (protocol {})", self.tunnel.name, self.tunnel.protocol),
        }
    }

    /// That the port is a guess, as the end of a sentence.
    fn guess(&self) -> Option<String> {
        let (name, port) = (self.tunnel.name, self.port?);
        let why = self.guessed.as_ref()?;
        Some(format!("; the port at which {name} listens here could not be read ({why}), {port} is the usual one"))
    }

    /// Whether the next step of every such finding does not name it.
    fn is_unusual(&self) -> bool {
        self.port != self.tunnel.usual.map(|[usual, _]| usual)
    }
}

/// What carries packets to this peer.
fn carrier(look: &Look<'_>, peer: &TunnelPeer) -> Option<Carrier> {
    let routing = look.now.routing.get()?;
    let to = IpNet::from(peer.tunnel);
    let tables = routing.rules.iter().map(|rule| rule.table).chain([MAIN]);
    let routes = tables.filter_map(|table| routing.routes.best(table, to));
    let links: Vec<&Link> = routes.filter_map(|route| routing.link(route.link)).collect();
    TUNNELS.iter().find_map(|tunnel| {
        let link = links.iter().find(|link| link.kind.as_deref() == Some(tunnel.kind))?;
        let told = routing.tunnel_port(link);
        let port = told.or(tunnel.usual.map(|usual| usual[usize::from(Family::of(peer.tunnel) == Family::V6)]));
        // A VXLAN device always tells its port.
        let why = || match routing.wireguard.error() {
            Some(error) => error.to_string(),
            None => "its device does not tell it".to_owned(),
        };
        let guessed = (told.is_none() && tunnel.kind == WIREGUARD).then(why);
        Some(Carrier { tunnel, port, guessed })
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
    use std::collections::BTreeMap;

    use super::super::testing::{self, Node};
    use super::*;
    use crate::facts::{Backend, FilterRule, LookError, Policy, Reason, Seen};

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
        let node = match kind {
            "wireguard" => listening(node, Seen::Yes([("tunnel9".to_owned(), 51820)].into())),
            _ => node,
        };
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

    /// At ports that could be read or not.
    fn listening(node: Node, ports: Seen<BTreeMap<String, u16>>) -> Node {
        node.routing(|routing| routing.wireguard = ports)
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
    fn the_port_of_wireguard_is_its_own() {
        let node = |rule: &str| behind("wireguard", Backend::Nftables, "OUTPUT", &[rule]);
        let own = || Seen::Yes([("tunnel9".to_owned(), 51999)].into());
        let Outcome::Findings(found) = run(&listening(node("-p udp --dport 51999 -j DROP"), own()).look()) else {
            panic!("found")
        };
        assert!(found[0].detail.contains("this node itself drops WireGuard (UDP port 51999), by rule"), "{found:?}");
        let Outcome::Findings(found) = run(&listening(node("-p udp --dport 51820 -j DROP"), own()).look()) else {
            panic!("found")
        };
        assert!(found[0].detail.ends_with(BETWEEN), "{found:?}");
        let next = found[0].next_step.as_deref();
        assert!(next.is_some_and(|it| it.starts_with("allow WireGuard (UDP port 51999) between")), "{next:?}");
    }

    #[test]
    fn the_usual_port_of_wireguard_is_told_as_a_guess() {
        let node = |rule: &str| {
            let unread = Seen::Unreadable(LookError::new("ports of WireGuard", Reason::Denied, "not permitted"));
            listening(behind("wireguard", Backend::Nftables, "OUTPUT", &[rule]), unread)
        };
        let guess = "; the port at which WireGuard listens here could not be read (ports of WireGuard: not permitted), 51820 is the usual one";
        let dropped = said(&node("-p udp --dport 51820 -j DROP"));
        assert!(dropped.contains("drops WireGuard (UDP port 51820), by rule") && dropped.ends_with(guess), "{dropped}");
        let elsewhere = said(&node("-p udp --dport 51821 -j DROP"));
        assert!(elsewhere.contains(BETWEEN) && elsewhere.ends_with(guess), "{elsewhere}");
        let without = listening(behind("wireguard", Backend::Nftables, "OUTPUT", &[]), Seen::Yes(BTreeMap::new()));
        assert!(said(&without).ends_with("could not be read (its device does not tell it), 51820 is the usual one"));
        // Calico has a device and a port for each family.
        let six = node("-p udp --dport 51820 -j DROP").edit(|now| {
            let Seen::Yes(peers) = &mut now.tunnels else { panic!("seen") };
            peers[0].tunnel = "fd00:10:2::".parse().expect("an address");
        });
        let six = six.routes(|list| list.push(testing::table_route("fd00:10:2::/64 - 40 80")));
        let Outcome::Findings(found) = run(&six.look()) else { panic!("found") };
        assert!(found[0].detail.ends_with("51821 is the usual one"), "{found:?}");
        let next = found[0].next_step.as_deref();
        assert!(next.is_some_and(|it| it.starts_with("allow WireGuard (UDP port 51821) between")), "{next:?}");
    }

    /// Each kind of tunnel: told with the node's own rule, with another's filter, traps, blind, over.
    #[test]
    fn every_kind_in_every_case() {
        let nft = Backend::Nftables;
        for (kind, rule, other) in [
            ("ipip", "-p 4 -j DROP", "-p udp --dport 51820 -j DROP"),
            ("wireguard", "-p udp --dport 51820 -j DROP", "-p 4 -j DROP"),
            ("vxlan", "-p udp --dport 4789 -j DROP", "-p udp --dport 8472 -j DROP"),
        ] {
            for backend in [nft, Backend::Legacy] {
                for base in ["INPUT", "OUTPUT"] {
                    let own = said(&behind(kind, backend, base, &["-p tcp -j DROP", rule]));
                    assert!(own.contains("this node itself drops ") && own.contains(rule), "{kind} {base}: {own}");
                }
            }
            let trap = said(&behind(kind, nft, "INPUT", &[other]));
            assert!(trap.ends_with(BETWEEN), "{kind}: {trap}");
            let blind = behind(kind, nft, "INPUT", &[rule]).edit(|now| now.nftables = testing::denied("nf_tables"));
            assert!(said(&blind).contains("whether a rule of this node's own does it could not be looked at"));
            let over = behind(kind, nft, "INPUT", &[rule]).edit(|now| now.tunnels = Seen::Yes(vec![]));
            assert_eq!(run(&over.look()), Outcome::Healthy, "{kind}");
            let unseen = testing::error("tunnels", Reason::NotYet);
            let unseen = behind(kind, nft, "INPUT", &[rule]).edit(|now| now.tunnels = unseen.clone());
            assert!(matches!(run(&unseen.look()), Outcome::Unknown(_)), "{kind}");
        }
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
