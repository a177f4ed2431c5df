//! This node has lost its control plane and still reaches other nodes.
//!
//! *Looks at* the ways to the control plane and at what a few other nodes answer. It moves no condition: MasterUnreachable
//! does. It says which half of the network to look at, and it is what tells a node that is cut off from a dead one when the
//! node is heard again. *Traps*: a proxy or API server on this node itself is not the network; one node that answers may be
//! on this host; a name that has no address is another story (catalogue R009, R054).

use std::time::Duration;

use super::super::path;
use super::super::{Area, Check, Finding, Look, Outcome, Severity, seen};
use crate::facts::PathStep;

pub(super) const CHECK: Check = Check {
    code: "WorkerCutFromMasterOnly",
    area: Area::ControlPlanePath,
    severity: Severity::Info,
    why: "the node and its network live, so rebooting or replacing it does not help",
    next_step: "look at what is between this node's subnet and the control plane: firewall, gateway, routes, endpoint; leave the node as it is",
    raise_after: Duration::from_secs(30),
    clear_after: Duration::from_secs(10),
    run,
};

fn run(look: &Look<'_>) -> Outcome {
    let path = seen!(look.now.control_plane, path::nowhere());
    let network = path.kubelet.fault().is_some_and(|fault| fault.step > PathStep::Name);
    let all = path.endpoints.iter().all(crate::facts::PathLeg::broken);
    let local = path::local(&path.kubelet, &path.endpoints).is_some();
    if !network || !all || (local && path.endpoints.iter().all(|leg| leg.to == path.kubelet.to)) {
        return Outcome::Healthy;
    }
    let answering: Vec<&str> =
        path.peers.iter().filter(|it| it.ready && it.answers).map(|it| it.node.as_str()).collect();
    if answering.len() < 2.min(path.peers.len().max(1)) {
        return Outcome::Healthy;
    }
    let asked = path.peers.len();
    let detail = format!(
        "This node reaches {} of the {asked} other nodes that it asked ({}), and no API server: only the way to the control plane is cut",
        answering.len(),
        answering.join(", ")
    );
    Outcome::from_findings(vec![Finding::new(path.server.clone(), detail)])
}

#[cfg(test)]
mod tests {
    use super::super::testing::{self, Node, end, fault};
    use super::*;
    use crate::facts::{FaultKind, PathEnd};

    fn cut(peers: &[(&str, bool)]) -> Node {
        Node::worker().path(|path| path.kubelet.end = end()).peers(true, peers)
    }

    #[test]
    fn others_answer() {
        let node = cut(&[("n2", true), ("n3", false), ("n4", true)]);
        let expected = "This node reaches 2 of the 3 other nodes that it asked (n2, n4), and no API server: only the way to the control plane is cut";
        assert_eq!(testing::details(&run(&node.look())), [expected]);
        assert_eq!(testing::subjects(&run(&cut(&[("n2", true)]).look())).len(), 1, "a cluster of two");
    }

    #[test]
    fn healthy_and_clears() {
        assert_eq!(run(&Node::worker().look()), Outcome::Healthy);
        let asked = Node::worker().peers(false, &[("n2", true), ("n3", true)]);
        assert_eq!(run(&asked.look()), Outcome::Healthy);
    }

    #[test]
    fn trap_nobody_or_hardly_anybody_answers() {
        for peers in [&[][..], &[("n2", false)], &[("n2", true), ("n3", false), ("n4", false)]] {
            assert_eq!(run(&cut(peers).look()), Outcome::Healthy);
        }
    }

    #[test]
    fn trap_what_is_not_the_network() {
        let peers = [("n2", true), ("n3", true)];
        let name = cut(&peers).path(|path| path.kubelet.end = fault(PathStep::Name, FaultKind::Failed));
        assert_eq!(run(&name.look()), Outcome::Healthy);
        let proxy = cut(&peers).path(|path| path.kubelet.source = path.kubelet.address);
        assert_eq!(run(&proxy.look()), Outcome::Healthy);
        let partly = cut(&peers).endpoints(&["10.0.0.21:6443"], &[PathEnd::Answered(403)]);
        assert_eq!(run(&partly.look()), Outcome::Healthy);
    }

    #[test]
    fn unknown_and_not_applicable() {
        let node = Node::worker().edit(|now| now.control_plane = testing::denied("/etc/kubernetes/kubelet.conf"));
        assert!(matches!(run(&node.look()), Outcome::Unknown(_)));
        assert!(matches!(run(&Node::plain_machine().look()), Outcome::NotApplicable(_)));
    }
}
