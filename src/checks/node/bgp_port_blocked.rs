//! TCP port 179 does not work between this node and a peer.
//!
//! *Looks at* the kernel's TCP for sessions that are not established: the first segment is sent again and again (a filter
//! drops it), it is refused (a filter rejects it, or nobody listens), or the connection stands and the peer's BIRD says
//! nothing on it. *Traps*: the node's own packet filter can be the one: its rule and counter are told first, also by the side
//! that waits (catalogue R163); a password that differs looks like
//! silence from the side that opens the connection, and the kernel's counters of it are on the other; a peer that is
//! updated refuses for as long as it has no BIRD (recorded up to 76 s, incident 18); a machine that reboots is silent, but
//! soon not Ready. The side that waits (`passive on`: Calico's lower address) sees nothing else of this.

use std::net::IpAddr;
use std::time::Duration;

use super::super::passage::{self, Packet};
use super::super::{Area, Check, Finding, Look, Outcome, Severity, bgp, seen};
use crate::facts::{BgpPeer, BgpState, BgpTcp, Family, Hook};

pub(super) const CHECK: Check = Check {
    code: "BgpPortBlocked",
    area: Area::PodRouting,
    severity: Severity::Critical,
    why: "the BGP session cannot be opened, so this node and its peer do not learn each other's routes to pods",
    next_step: "check this node's own packet filter first (`iptables-save -c | grep 179`, host endpoints and policies of Calico), then the peer's, then security groups, ACLs and gateways between the two nodes",
    // A machine that reboots is silent, and not Ready after 50 s.
    raise_after: Duration::from_secs(60),
    clear_after: Duration::from_secs(4),
    run,
};

/// The same where nobody says whether the peer is Ready: it has to be back by then.
const UNKNOWN_PEER: Duration = Duration::from_secs(180);
/// Where BIRD listens.
const PORT: u16 = 179;
/// What to do about a rule of this node's own.
const OWN: &str = "find who put this rule on this node (its comment and table say: firewalld, ufw, a security agent, a script), and take it out or let TCP port 179 between the nodes pass ahead of it";

fn run(look: &Look<'_>) -> Outcome {
    let seen = seen!(look.now.bgp, Outcome::NotApplicable(bgp::NONE.into()));
    let tcp = seen!(seen.tcp, Outcome::Healthy);
    let waiting = seen.birds().flat_map(|bird| bgp::waiting(look, bird));
    Outcome::from_findings(waiting.filter_map(|peer| wrong(look, tcp, peer)).collect())
}

fn wrong(look: &Look<'_>, tcp: &BgpTcp, peer: &BgpPeer) -> Option<Finding> {
    let address = peer.address?;
    let listed = |list: &[IpAddr]| list.contains(&address);
    let error = peer.error.as_deref().unwrap_or_default();
    let refusal = ["refused", "No route to host", "unreachable", "not permitted"];
    let refused = || refusal.into_iter().any(|text| error.contains(text));
    let mismatch = tcp.unsigned || tcp.unexpected || tcp.different;
    let blocked = peer.state == BgpState::Passive || listed(&tcp.silent) || refused();
    if blocked && let Some(rule) = own_rule(look, peer.state, address) {
        let detail =
            format!("This node itself keeps the BGP peer {} away on TCP port 179, by {rule}", bgp::name(look, peer));
        return Some(Finding::new(peer.name.clone(), detail).next(OWN).repaired_within(CHECK.raise_after));
    }
    let (how, hold) = match peer.state {
        // A password that differs is told by its own code.
        _ if listed(&tcp.silent) && mismatch => return None,
        _ if listed(&tcp.silent) => {
            let known = bgp::node(look, peer).is_some();
            let how = "gets no answer on TCP port 179: a filter drops it, or the BGP passwords differ (then the peer's counters of TCP-MD5 grow)";
            (how.to_owned(), if known { CHECK.raise_after } else { UNKNOWN_PEER })
        }
        BgpState::OpenSent | BgpState::OpenConfirm if listed(&tcp.connected) => {
            ("is connected on TCP port 179, but its BIRD says nothing on it".to_owned(), bgp::GRACEFUL)
        }
        BgpState::Idle | BgpState::Connect | BgpState::Active if refused() => {
            (format!("refuses TCP port 179 ({error}): a filter rejects it, or no BIRD listens there"), bgp::GRACEFUL)
        }
        _ => return None,
    };
    let detail = format!("The BGP peer {} {how}", bgp::name(look, peer));
    Some(Finding::new(peer.name.clone(), detail).repaired_within(hold))
}

/// The rule of this node's own that surely drops what the session needs, with its counter: the connection that this BIRD opens,
/// the peer's answer to it, or where this one waits the connection that the peer opens.
fn own_rule(look: &Look<'_>, state: BgpState, peer: IpAddr) -> Option<String> {
    let out = || {
        let packet = Packet::of_connection(Family::of(peer), peer, PORT, None);
        passage::dropping(look, Hook::Output, &packet)
    };
    let (rule, counted) = match state {
        BgpState::Passive => passage::dropping(look, Hook::Input, &Packet::of_peer(peer, PORT)),
        _ => out().or_else(|| passage::dropping(look, Hook::Input, &Packet::of_answer(peer))),
    }?;
    Some(counted.map_or(rule.clone(), |counted| format!("{rule}: {counted}")))
}

#[cfg(test)]
mod tests {
    use super::super::testing::{self, Node};
    use super::*;
    use crate::facts::{Backend, FilterRule, Policy, Seen};

    fn peer(state: BgpState, error: Option<&str>, change: impl FnOnce(&mut BgpTcp)) -> Node {
        let error = error.map(str::to_owned);
        Node::worker().bgp(|bgp| {
            let peer = &mut testing::bird(bgp).peers[0];
            (peer.state, peer.error) = (state, error);
            let mut tcp = BgpTcp::default();
            change(&mut tcp);
            bgp.tcp = Seen::Yes(tcp);
        })
    }

    fn address() -> IpAddr {
        "10.0.0.2".parse().expect("an address")
    }

    fn silent() -> Node {
        peer(BgpState::Connect, None, |tcp| tcp.silent.push(address()))
    }

    fn refused() -> Node {
        peer(BgpState::Active, Some("Socket: Connection refused"), |_| ())
    }

    fn found(node: &Node) -> Finding {
        let Outcome::Findings(mut findings) = run(&node.look()) else { panic!("findings") };
        findings.remove(0)
    }

    #[test]
    fn silence_refusal_and_idleness_are_told_apart() {
        assert_eq!(found(&silent()).subject, "Mesh_10_0_0_2");
        assert!(found(&silent()).detail.contains("gets no answer"));
        assert!(found(&refused()).detail.contains("refuses TCP port 179 (Socket: Connection refused)"));
        let idle = peer(BgpState::OpenSent, None, |tcp| tcp.connected.push(address()));
        assert!(found(&idle).detail.contains("says nothing"));
    }

    #[test]
    fn healthy_and_clears() {
        assert_eq!(run(&Node::worker().bgp(|_| ()).look()), Outcome::Healthy);
        assert_eq!(run(&peer(BgpState::Connect, None, |_| ()).look()), Outcome::Healthy);
        let up = peer(BgpState::Established, None, |tcp| tcp.connected.push(address()));
        assert_eq!(run(&up.look()), Outcome::Healthy);
        assert!(matches!(run(&Node::worker().look()), Outcome::NotApplicable(_)));
    }

    #[test]
    fn trap_a_password_and_the_passive_side() {
        let password = peer(BgpState::Connect, None, |tcp| {
            tcp.silent.push(address());
            tcp.unsigned = true;
        });
        assert_eq!(run(&password.look()), Outcome::Healthy);
        let passive = peer(BgpState::Passive, Some("Socket: Connection refused"), |_| ());
        assert_eq!(run(&passive.look()), Outcome::Healthy);
    }

    fn with_rules(node: Node, base: &str, rules: &[&str]) -> Node {
        let rules = rules.iter().map(|text| FilterRule { packets: Some(10), ..testing::rule(text) }).collect();
        let hook = if base == "INPUT" { Hook::Input } else { Hook::Output };
        node.rules(Backend::Nftables, ("filter", base), Some((hook, Policy::Accept)), rules)
    }

    #[test]
    fn trap_a_rule_of_this_nodes_own_is_named_with_its_counter() {
        let drop = ["-p tcp --dport 179 -j DROP"];
        let told = found(&with_rules(silent(), "OUTPUT", &drop));
        let expected = "This node itself keeps the BGP peer 10.0.0.2 away on TCP port 179, by rule `-p tcp --dport 179 -j DROP` in OUTPUT \
                        of table IPv4 filter (nf_tables): it has matched at least 10 packets";
        assert_eq!((told.detail.as_str(), told.next_step.as_deref()), (expected, Some(OWN)));
        assert!(found(&with_rules(refused(), "OUTPUT", &["-d 10.0.0.2 -j REJECT"])).detail.contains("-j REJECT`"));
        let answers = ["-s 10.0.0.0/24 -j DROP"];
        assert!(found(&with_rules(silent(), "INPUT", &answers)).detail.contains("-s 10.0.0.0/24 -j DROP` in INPUT"));
        let kept = ["-m conntrack --ctstate RELATED,ESTABLISHED -j ACCEPT", "-s 10.0.0.0/24 -j DROP"];
        assert!(found(&with_rules(silent(), "INPUT", &kept)).detail.contains("gets no answer"), "answers are accepted");
        let ports = |range: &str| with_rules(silent(), "INPUT", &[&format!("-p tcp --dport {range} -j DROP")]);
        assert!(found(&ports("1024:65535")).detail.contains("` in INPUT of table"), "whichever it asked from");
        assert!(found(&ports("30000:50000")).detail.contains("gets no answer"), "its own port may be another");
        assert!(found(&ports("179")).detail.contains("gets no answer"), "that is the other's port");
        let passive = peer(BgpState::Passive, None, |_| ());
        assert_eq!(run(&passive.look()), Outcome::Healthy);
        assert!(found(&with_rules(passive.clone(), "INPUT", &drop)).detail.contains("` in INPUT of table"));
        let spared = ["-s 10.0.0.2 -p tcp --dport 179 -j ACCEPT", drop[0]];
        assert_eq!(run(&with_rules(passive, "INPUT", &spared).look()), Outcome::Healthy);
        let other = with_rules(silent(), "OUTPUT", &["-p tcp --dport 180 -j DROP", "-d 10.9.9.9 -j DROP"]);
        assert!(found(&other).detail.contains("gets no answer"));
        let up = peer(BgpState::Established, None, |tcp| tcp.connected.push(address()));
        assert_eq!(run(&with_rules(up, "OUTPUT", &drop).look()), Outcome::Healthy);
    }

    #[test]
    fn trap_a_peer_that_is_updated_or_reboots() {
        assert_eq!(found(&refused()).owner_repairs_within, Some(bgp::GRACEFUL));
        assert_eq!(found(&silent()).owner_repairs_within, Some(UNKNOWN_PEER));
        assert_eq!(found(&silent().mesh(&[true, true])).owner_repairs_within, Some(CHECK.raise_after));
        assert_eq!(run(&silent().mesh(&[false, true]).look()), Outcome::Healthy);
    }

    #[test]
    fn unknown_when_the_sockets_cannot_be_read() {
        let node = Node::worker().bgp(|bgp| bgp.tcp = testing::denied("/proc/net/tcp"));
        assert!(matches!(run(&node.look()), Outcome::Unknown(_)));
    }
}
