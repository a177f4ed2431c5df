//! No BGP session of this node is established.
//!
//! *Looks at* the sessions of each BIRD that answers. *Traps*: a BIRD that recovers from a restart of its own; peers on
//! nodes that are not Ready, whose sessions are down as a consequence; a node that has one peer, or whose peers restart,
//! keeps their routes for 120 s (catalogue R160).

use std::time::Duration;

use super::super::{Area, Check, Finding, Look, Outcome, Severity, bgp, findings_or_unknown, seen};
use crate::facts::{BgpPeer, Bird, BirdDaemon};

pub(super) const CHECK: Check = Check {
    code: "BgpAllSessionsDown",
    area: Area::PodRouting,
    severity: Severity::Critical,
    why: "this node learns no routes to the pods of others and tells nobody about its own",
    next_step: "compare with the other nodes: if only this one is concerned look at its calico-node and packet filter, else at what lies between the nodes (port 179, BGP password)",
    // Sessions are there 3 to 5 s after BIRD starts (incident 18).
    raise_after: Duration::from_secs(30),
    clear_after: Duration::from_secs(4),
    run,
};

fn run(look: &Look<'_>) -> Outcome {
    let seen = seen!(look.now.bgp, Outcome::NotApplicable(bgp::NONE.into()));
    let answering = bgp::daemons(look, seen).filter_map(|daemon| Some((daemon, daemon.bird.get()?)));
    let findings = answering.filter_map(|(daemon, bird)| wrong(look, daemon, bird)).collect();
    findings_or_unknown(findings, bgp::error(look, seen))
}

/// The sessions that are down, when all are that could be up.
pub(super) fn all_down<'a>(look: &Look<'_>, bird: &'a Bird) -> Option<Vec<&'a BgpPeer>> {
    let peers: Vec<&BgpPeer> = bird.peers.iter().filter(|peer| !bgp::is_gone(look, peer)).collect();
    let none = !bird.peers.iter().any(BgpPeer::is_established);
    (none && !peers.is_empty() && !bird.recovering).then_some(peers)
}

fn wrong(look: &Look<'_>, daemon: &BirdDaemon, bird: &Bird) -> Option<Finding> {
    let peers = all_down(look, bird)?;
    let names: Vec<String> =
        peers.iter().map(|peer| format!("{} {}", bgp::name(look, peer), bgp::state(peer))).collect();
    let (count, socket) = (peers.len(), &daemon.socket);
    let what = if count == 1 { "The only BGP session".to_owned() } else { format!("None of the {count} BGP sessions") };
    let state = if count == 1 { "is not established" } else { "is established" };
    let detail = format!("{what} of this node {state} ({socket}): {}", bgp::some(&names));
    let finding = Finding::new(socket.clone(), detail);
    let restarting = peers.iter().any(|peer| peer.restarting);
    Some(if count == 1 || restarting { finding.repaired_within(bgp::GRACEFUL) } else { finding })
}

#[cfg(test)]
mod tests {
    use super::super::testing::{self, Node};
    use super::*;
    use crate::facts::{BgpState, Reason};

    fn all(state: BgpState) -> Node {
        Node::worker().bgp(move |bgp| testing::bird(bgp).peers.iter_mut().for_each(|peer| peer.state = state))
    }

    fn hold(node: &Node) -> Option<Duration> {
        let Outcome::Findings(findings) = run(&node.look()) else { panic!("findings") };
        findings[0].owner_repairs_within
    }

    #[test]
    fn none_is_established() {
        let node = all(BgpState::Connect);
        let details = testing::details(&run(&node.look()));
        assert!(details[0].starts_with("None of the 2 BGP sessions of this node is established"), "{details:?}");
        assert!(details[0].contains("10.0.0.2 Connect"), "{details:?}");
        assert_eq!(hold(&node), None);
    }

    #[test]
    fn healthy_and_clears_with_one_that_is_established() {
        assert_eq!(run(&Node::worker().bgp(|_| ()).look()), Outcome::Healthy);
        let node = all(BgpState::Idle).bgp(|bgp| testing::bird(bgp).peers[1].state = BgpState::Established);
        assert_eq!(run(&node.look()), Outcome::Healthy);
        assert!(matches!(run(&Node::worker().look()), Outcome::NotApplicable(_)));
    }

    #[test]
    fn trap_recovery_from_a_restart() {
        let node = all(BgpState::Connect).bgp(|bgp| testing::bird(bgp).recovering = true);
        assert_eq!(run(&node.look()), Outcome::Healthy);
    }

    #[test]
    fn trap_peers_that_are_not_ready() {
        assert_eq!(run(&all(BgpState::Idle).mesh(&[false, false]).look()), Outcome::Healthy);
        let node = all(BgpState::Idle).mesh(&[true, false]);
        assert!(
            testing::details(&run(&node.look()))[0].contains("The only BGP session of this node is not established")
        );
    }

    #[test]
    fn trap_a_single_peer_and_peers_that_restart_keep_their_routes() {
        assert_eq!(hold(&all(BgpState::Passive).mesh(&[true, false])), Some(bgp::GRACEFUL));
        let restarting = all(BgpState::Passive).bgp(|bgp| testing::bird(bgp).peers[0].restarting = true);
        assert_eq!(hold(&restarting), Some(bgp::GRACEFUL));
    }

    #[test]
    fn trap_no_peers_at_all() {
        let node = Node::worker().bgp(|bgp| testing::bird(bgp).peers.clear());
        assert_eq!(run(&node.look()), Outcome::Healthy);
    }

    #[test]
    fn unknown_when_bird_does_not_answer() {
        let node = Node::worker().bgp(|bgp| bgp.daemons[0].bird = testing::error("bird.ctl", Reason::TimedOut));
        assert!(matches!(run(&node.look()), Outcome::Unknown(_)));
    }
}
