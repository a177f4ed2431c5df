//! BIRD has no session with a node of the mesh, not even one that is down.
//!
//! *Looks at* the nodes of the cluster, where every node should peer with every other, and at the addresses of BIRD's
//! sessions. *Traps*: the mesh is switched off and route reflectors or BGPPeers are used instead, or this node is a
//! reflector and has no part in it; a node that is not Ready; one that has just been added; a BIRD that recovers from a
//! restart (catalogue R161).

use std::time::Duration;

use super::super::{Area, Check, Finding, Look, Outcome, Severity, bgp, findings_or_unknown, seen};
use crate::facts::{Bgp, ClusterNode};

pub(super) const CHECK: Check = Check {
    code: "BgpMeshIncomplete",
    area: Area::PodRouting,
    severity: Severity::Warning,
    why: "pods here and on that node have no route to each other",
    next_step: "look at the log of confd in calico-node here (does it reach the API?), and at that node's annotation projectcalico.org/IPv4Address",
    // confd renders and BIRD reads its configuration within seconds, also in a large cluster.
    raise_after: Duration::from_secs(120),
    clear_after: Duration::from_secs(4),
    run,
};

/// calico-node starts on a new node within this time, images included.
const NEW: i64 = 300;

fn run(look: &Look<'_>) -> Outcome {
    let seen = seen!(look.now.bgp, Outcome::NotApplicable(bgp::NONE.into()));
    let cluster = seen!(look.now.cluster, Outcome::NotApplicable("nobody tells which nodes there are".into()));
    if cluster.full_mesh != Some(true) {
        return Outcome::NotApplicable("the nodes of this cluster do not peer with each other".into());
    }
    let meshed = |name: &str| name.starts_with("Mesh_");
    if seen.peers().next().is_some() && !seen.peers().any(|peer| meshed(&peer.name)) {
        return Outcome::NotApplicable("this node has no part in the mesh: it has other peers".into());
    }
    if let Some(error) = bgp::error(look, seen) {
        return Outcome::unknown(error);
    }
    if seen.birds().any(|bird| bird.recovering) {
        return Outcome::Healthy;
    }
    let due = |node: &&ClusterNode| {
        let age = node.created_at.map_or(NEW, |at| look.now.taken_at.as_second() - at.as_second());
        node.ready && age >= NEW && !node.addresses.is_empty()
    };
    let missing = cluster.others().filter(due).filter(|node| !has_session(seen, node));
    let findings = missing.map(|node| {
        let addresses: Vec<String> = node.addresses.iter().map(ToString::to_string).collect();
        let detail = format!("BIRD has no session with the node {} ({})", node.name, bgp::some(&addresses));
        Finding::new(node.name.clone(), detail)
    });
    findings_or_unknown(findings.collect(), None)
}

fn has_session(bgp: &Bgp, node: &ClusterNode) -> bool {
    bgp.peers().any(|peer| peer.address.is_some_and(|address| node.addresses.contains(&address)))
}

#[cfg(test)]
mod tests {
    use super::super::testing::{self, Node};
    use super::*;
    use crate::facts::{ClusterMap, Reason, Seen};

    /// BIRD has lost its session with the first of two nodes.
    fn lost() -> Node {
        Node::worker().bgp(|bgp| _ = testing::bird(bgp).peers.remove(0)).mesh(&[true, true])
    }

    fn map(node: Node, change: impl FnOnce(&mut ClusterMap)) -> Node {
        node.edit(|now| {
            let Seen::Yes(map) = &mut now.cluster else { panic!("seen") };
            change(map);
        })
    }

    #[test]
    fn a_node_without_a_session() {
        let outcome = run(&lost().look());
        assert_eq!(testing::subjects(&outcome), ["n2"]);
        assert_eq!(testing::details(&outcome), ["BIRD has no session with the node n2 (10.0.0.2)"]);
        let none = Node::worker().bgp(|bgp| testing::bird(bgp).peers.clear()).mesh(&[true, true]);
        assert_eq!(testing::subjects(&run(&none.look())), ["n2", "n3"]);
    }

    #[test]
    fn healthy_and_clears_also_when_the_session_is_down() {
        let node = Node::worker().bgp(|bgp| testing::bird(bgp).peers[0].state = crate::facts::BgpState::Idle);
        assert_eq!(run(&node.mesh(&[true, true]).look()), Outcome::Healthy);
        assert!(matches!(run(&Node::worker().look()), Outcome::NotApplicable(_)));
    }

    #[test]
    fn trap_no_mesh_reflectors_and_nobody_who_knows() {
        for full_mesh in [None, Some(false)] {
            let node = map(lost(), |map| map.full_mesh = full_mesh);
            assert!(matches!(run(&node.look()), Outcome::NotApplicable(_)));
        }
        let reflector = lost().bgp(|bgp| testing::bird(bgp).peers[0].name = "Global_10_0_0_3".into());
        assert!(matches!(run(&reflector.look()), Outcome::NotApplicable(_)));
        let alone = Node::worker().bgp(|_| ());
        assert!(matches!(run(&alone.look()), Outcome::NotApplicable(_)));
    }

    #[test]
    fn trap_not_ready_new_and_recovering() {
        assert_eq!(run(&lost().mesh(&[false, true]).look()), Outcome::Healthy);
        let at = lost().look().now.taken_at;
        let new = map(lost(), |map| map.nodes[1].created_at = Some(at - jiff::SignedDuration::from_secs(60)));
        assert_eq!(run(&new.look()), Outcome::Healthy);
        let recovering = lost().bgp(|bgp| testing::bird(bgp).recovering = true);
        assert_eq!(run(&recovering.look()), Outcome::Healthy);
    }

    #[test]
    fn unknown_when_bird_does_not_answer() {
        let node = lost().bgp(|bgp| bgp.daemons[0].bird = testing::error("bird.ctl", Reason::TimedOut));
        assert!(matches!(run(&node.look()), Outcome::Unknown(_)));
    }
}
