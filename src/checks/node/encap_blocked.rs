//! Packets in tunnels do not reach another node.
//!
//! *Looks at* probes to the tunnel addresses of the other nodes: a TCP segment that any answer will do for. A node is told
//! after three silences in a row through the tunnel, each of which it answered outside of it; IP-in-IP is protocol 4 and
//! VXLAN UDP port 4789, which filters between nodes tend to forget though BGP works. *Traps*: an idle node has no traffic
//! to judge by; a node that is not Ready or has just been added; nodes of one subnet where only packets across subnets are
//! encapsulated; a route that is missing; a node that answers nobody (catalogue R165).

use std::time::Duration;

use super::super::{Area, Check, Finding, Look, Outcome, Severity, seen};

pub(super) const CHECK: Check = Check {
    code: "EncapBlocked",
    area: Area::PodRouting,
    severity: Severity::Critical,
    why: "packets between pods here and on that node are lost, while the nodes themselves and BGP talk to each other",
    next_step: "allow IP protocol 4 (IP-in-IP) or UDP port 4789 (VXLAN) between the nodes: packet filters of both, security groups, ACLs, gateways",
    // Three silences in a row are behind it.
    raise_after: Duration::from_secs(1),
    clear_after: Duration::from_secs(1),
    run,
};

const NO_TUNNELS: &str = "no tunnels between nodes here, or nobody tells where they lead";

fn run(look: &Look<'_>) -> Outcome {
    let silent = seen!(look.now.tunnels, Outcome::NotApplicable(NO_TUNNELS.into()));
    let findings = silent.iter().map(|peer| {
        let (node, tunnel, address) = (&peer.node, peer.tunnel, peer.address);
        let detail = format!(
            "The node {node} answers at {address}, but not through the tunnel at {tunnel}: encapsulated packets are dropped between it and this node"
        );
        Finding::new(format!("{node} {tunnel}"), detail)
    });
    Outcome::from_findings(findings.collect())
}

#[cfg(test)]
mod tests {
    use super::super::testing::{self, Node};
    use super::*;
    use crate::facts::{Seen, TunnelPeer};

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
