//! A BGP session is not established, while others are.
//!
//! *Looks at* the sessions of each BIRD that answers. calico-node says it is ready with one session of many, so that nobody
//! else tells of a mesh that is half down. *Traps*: a peer that is updated (4 to 8 s, recorded up to 76 s in incident 18)
//! keeps its routes by graceful restart for 120 s, so a session has to be down for longer; the session to a node that is
//! not Ready is down as a consequence, which is only worth knowing (catalogue R160, ADJ).

use super::super::{Area, Check, Finding, Look, Outcome, Severity, bgp, findings_or_unknown, seen};
use super::bgp_all_sessions_down::all_down;
use crate::facts::{BgpPeer, BgpState, Bird};

pub(super) const CHECK: Check = Check {
    code: "BgpSessionDown",
    area: Area::PodRouting,
    severity: Severity::Warning,
    why: "pods here and on that node cannot reach each other, and calico-node is Ready all the same",
    next_step: "look at the same session from the other node, at calico-node there, and at what lies between the two nodes (TCP port 179)",
    raise_after: bgp::GRACEFUL,
    clear_after: std::time::Duration::from_secs(4),
    run,
};

fn run(look: &Look<'_>) -> Outcome {
    let seen = seen!(look.now.bgp, Outcome::NotApplicable(bgp::NONE.into()));
    let findings = seen.birds().flat_map(|bird| wrong(look, bird)).collect();
    findings_or_unknown(findings, bgp::error(look, seen))
}

fn wrong(look: &Look<'_>, bird: &Bird) -> Vec<Finding> {
    if bird.recovering || all_down(look, bird).is_some() {
        return Vec::new();
    }
    bird.peers.iter().filter(|peer| !peer.is_established()).map(|peer| finding(look, peer)).collect()
}

fn finding(look: &Look<'_>, peer: &BgpPeer) -> Finding {
    let (name, place, state) = (&peer.name, bgp::name(look, peer), bgp::state(peer));
    let waits = match peer.state {
        BgpState::Passive => "; the peer is the one to open it",
        BgpState::Down => "; it is switched off",
        _ => "",
    };
    if bgp::is_gone(look, peer) {
        let detail = format!("The BGP session {name} to {place} is {state}: that node is not Ready");
        return Finding::new(name.clone(), detail).severity(Severity::Info);
    }
    Finding::new(name.clone(), format!("The BGP session {name} to {place} is {state} since {}{waits}", peer.since))
}

#[cfg(test)]
mod tests {
    use super::super::testing::{self, Node};
    use super::*;
    use crate::facts::Reason;

    fn first(state: BgpState) -> Node {
        Node::worker().bgp(move |bgp| testing::bird(bgp).peers[0].state = state)
    }

    #[test]
    fn one_of_two() {
        let node = first(BgpState::Passive).bgp(|bgp| {
            testing::bird(bgp).peers[0].error = Some("Socket: Connection closed".into());
        });
        let outcome = run(&node.look());
        assert_eq!(testing::subjects(&outcome), ["Mesh_10_0_0_2"]);
        let detail = &testing::details(&outcome)[0];
        assert!(detail.contains("Passive (Socket: Connection closed) since 02:24:08; the peer is"), "{detail}");
        assert_eq!(testing::subjects(&run(&first(BgpState::Down).look())), ["Mesh_10_0_0_2"]);
    }

    #[test]
    fn healthy_and_clears() {
        assert_eq!(run(&Node::worker().bgp(|_| ()).look()), Outcome::Healthy);
        assert!(matches!(run(&Node::worker().look()), Outcome::NotApplicable(_)));
    }

    #[test]
    fn trap_all_down_and_recovery_are_told_by_others() {
        let node = first(BgpState::Idle).bgp(|bgp| testing::bird(bgp).peers[1].state = BgpState::Idle);
        assert_eq!(run(&node.look()), Outcome::Healthy);
        let node = first(BgpState::Idle).bgp(|bgp| testing::bird(bgp).recovering = true);
        assert_eq!(run(&node.look()), Outcome::Healthy);
    }

    #[test]
    fn trap_a_node_that_is_not_ready_is_only_worth_knowing() {
        let Outcome::Findings(found) = run(&first(BgpState::Idle).mesh(&[false, true]).look()) else { panic!("told") };
        assert_eq!(found[0].severity, Some(Severity::Info));
        assert!(found[0].detail.contains("10.0.0.2 (n2)"), "{}", found[0].detail);
        let Outcome::Findings(found) = run(&first(BgpState::Idle).mesh(&[true, true]).look()) else { panic!("told") };
        assert_eq!(found[0].severity, None);
    }

    #[test]
    fn trap_a_peer_that_is_updated() {
        assert!(CHECK.raise_after > std::time::Duration::from_secs(77));
    }

    #[test]
    fn unknown_when_bird_does_not_answer() {
        let node = Node::worker().bgp(|bgp| bgp.daemons[0].bird = testing::error("bird.ctl", Reason::TimedOut));
        assert!(matches!(run(&node.look()), Outcome::Unknown(_)));
    }
}
