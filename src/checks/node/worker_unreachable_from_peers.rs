//! Another node, which the cluster calls not ready, does not answer this one.
//!
//! *Looks at* what such nodes answer to TCP, each of them asked by three others. It moves no condition, as nothing is wrong with
//! this node: the cluster's view needs it to tell a dead node from one that is only cut off. *Traps*: a kubelet that is
//! down refuses, and that is an answer; a node that has no control plane itself has an old map (catalogue R009, R054).

use std::time::Duration;

use super::super::{Area, Check, Finding, Look, Outcome, Severity, path, seen};

pub(super) const CHECK: Check = Check {
    code: "WorkerUnreachableFromPeers",
    area: Area::ControlPlanePath,
    severity: Severity::Info,
    why: "a node that neither the control plane nor its neighbours reach is off or cut off wholly, not only from the control plane",
    next_step: "look what other nodes say of it; if they say the same, look at its power state and console, then at its network",
    raise_after: Duration::from_secs(30),
    clear_after: Duration::from_secs(5),
    run,
};

fn run(look: &Look<'_>) -> Outcome {
    let path = seen!(look.now.control_plane, path::nowhere());
    let silent = path.peers.iter().filter(|peer| !peer.ready && !peer.answers && !path.kubelet.broken());
    let findings = silent.map(|peer| {
        let detail = format!(
            "Node {}, which is not ready, does not answer from here: TCP to {}, ports 10250 and 9, within 1.5 s",
            peer.node, peer.address
        );
        Finding::new(peer.node.clone(), detail)
    });
    Outcome::from_findings(findings.collect())
}

#[cfg(test)]
mod tests {
    use super::super::testing::{self, Node, end};
    use super::*;

    #[test]
    fn silent_ones_are_named() {
        let node = Node::worker().peers(false, &[("n7", false), ("n8", true), ("n9", false)]);
        assert_eq!(testing::subjects(&run(&node.look())), ["n7", "n9"]);
    }

    #[test]
    fn healthy_and_clears() {
        assert_eq!(run(&Node::worker().look()), Outcome::Healthy);
    }

    #[test]
    fn trap_an_answer_of_any_kind_and_a_node_that_is_cut_off_itself() {
        assert_eq!(run(&Node::worker().peers(false, &[("n7", true)]).look()), Outcome::Healthy);
        let cut = Node::worker().peers(true, &[("n7", false)]).path(|path| path.kubelet.end = end());
        assert_eq!(run(&cut.look()), Outcome::Healthy);
    }

    #[test]
    fn unknown_and_not_applicable() {
        let node = Node::worker().edit(|now| now.control_plane = testing::denied("/etc/kubernetes/kubelet.conf"));
        assert!(matches!(run(&node.look()), Outcome::Unknown(_)));
        assert!(matches!(run(&Node::plain_machine().look()), Outcome::NotApplicable(_)));
    }
}
