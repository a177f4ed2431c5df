//! The BGP passwords of this node and of a peer are not the same.
//!
//! *Looks at* the kernel's counters of segments that it dropped because of their TCP-MD5 signature (`/proc/net/netstat`),
//! together with sessions that do not come up. Which counter grows says on which side the password is wrong; the password
//! itself is never read. Only the side that gets the connection sees it, in Calico's mesh the node with the lower address:
//! the other one sees silence. *Trap*: the counters also grow by other users of TCP-MD5 and by scanners, so a session has
//! to be down as well (catalogue R162).

use std::time::Duration;

use super::super::{Area, Check, Finding, Look, Outcome, Severity, bgp, seen};
use crate::facts::BgpTcp;

pub(super) const CHECK: Check = Check {
    code: "BgpPasswordMismatch",
    area: Area::PodRouting,
    severity: Severity::Critical,
    why: "the kernel drops every segment of the session, so the nodes do not learn each other's routes to pods",
    next_step: "check that the Secret of BGPConfiguration nodeMeshPassword (or of the BGPPeer) is in the namespace of calico-node, and that its Role and RoleBinding let calico-node read it",
    // A password that is changed reaches all nodes within seconds.
    raise_after: Duration::from_secs(15),
    // Segments of a session that waits are at most 16 s apart, and each counts for 30 s.
    clear_after: Duration::from_secs(4),
    run,
};

fn run(look: &Look<'_>) -> Outcome {
    let seen = seen!(look.now.bgp, Outcome::NotApplicable(bgp::NONE.into()));
    let tcp = seen!(seen.tcp, Outcome::Healthy);
    let how = reasons(tcp);
    let names: Vec<String> =
        seen.birds().flat_map(|bird| bgp::waiting(look, bird)).map(|peer| bgp::name(look, peer)).collect();
    if how.is_empty() || names.is_empty() {
        return Outcome::Healthy;
    }
    let detail = format!(
        "The BGP password is wrong: {}; {} not established: {}",
        how.join("; "),
        if names.len() == 1 { "this session is" } else { "these sessions are" },
        bgp::some(&names)
    );
    Outcome::from_findings(vec![Finding::new("TCP-MD5", detail)])
}

/// What the counters that grow say.
fn reasons(tcp: &BgpTcp) -> Vec<&'static str> {
    let told = [
        (tcp.unsigned, "a peer sends segments without a signature (TCPMD5NotFound), so the password is missing there"),
        (
            tcp.unexpected,
            "a peer signs its segments, but no password is set here (TCPMD5Unexpected), so it is missing on this node",
        ),
        (tcp.different, "a peer signs with another password (TCPMD5Failure)"),
    ];
    told.into_iter().filter_map(|(grows, how)| grows.then_some(how)).collect()
}

#[cfg(test)]
mod tests {
    use super::super::testing::{self, Node};
    use super::*;
    use crate::facts::{BgpState, Seen};

    fn waiting(tcp: BgpTcp) -> Node {
        Node::worker().bgp(move |bgp| {
            testing::bird(bgp).peers[0].state = BgpState::Passive;
            bgp.tcp = Seen::Yes(tcp);
        })
    }

    fn detail(tcp: BgpTcp) -> String {
        testing::details(&run(&waiting(tcp).look())).remove(0)
    }

    #[test]
    fn each_counter_names_a_side() {
        assert!(detail(BgpTcp { unsigned: true, ..BgpTcp::default() }).contains("missing there; this session"));
        assert!(detail(BgpTcp { unexpected: true, ..BgpTcp::default() }).contains("missing on this node"));
        let different = detail(BgpTcp { different: true, ..BgpTcp::default() });
        assert!(different.contains("another password") && different.ends_with("10.0.0.2"), "{different}");
    }

    #[test]
    fn healthy_and_clears() {
        assert_eq!(run(&waiting(BgpTcp::default()).look()), Outcome::Healthy);
        assert_eq!(run(&Node::worker().bgp(|_| ()).look()), Outcome::Healthy);
        assert!(matches!(run(&Node::worker().look()), Outcome::NotApplicable(_)));
    }

    #[test]
    fn trap_growth_without_a_session_that_waits() {
        let grows = || waiting(BgpTcp { unsigned: true, ..BgpTcp::default() });
        let others = grows().bgp(|bgp| testing::bird(bgp).peers[0].state = BgpState::Established);
        assert_eq!(run(&others.look()), Outcome::Healthy);
        let disabled = grows().bgp(|bgp| testing::bird(bgp).peers[0].state = BgpState::Down);
        assert_eq!(run(&disabled.look()), Outcome::Healthy);
        assert_eq!(run(&grows().mesh(&[false, true]).look()), Outcome::Healthy, "that node is gone");
    }

    #[test]
    fn unknown_when_the_counters_cannot_be_read() {
        let node = Node::worker().bgp(|bgp| bgp.tcp = testing::denied("netstat"));
        assert!(matches!(run(&node.look()), Outcome::Unknown(_)));
    }
}
