//! The API server answers reads and takes no writes: an admission webhook holds up or fails what is written to the Node.
//!
//! *Looks at* what becomes of the agent's own patches of `nodes/status`, against a read of the same Node at the same time.
//! *Traps*: this very finding meets the same wall, so it is in the log, on the pages and in the state file first; a webhook
//! that may be ignored only delays a patient client, and is a failure for calico-node, which gives up after 2 s; one slow
//! answer is noise; before the first write nothing speaks against it, and a restart must not change what the Node says; no permission is a fault of the installation (catalogue R110, H11).

use std::time::Duration;

use super::super::{Area, Check, Finding, Look, Outcome, Severity, seen};

pub(super) const CHECK: Check = Check {
    code: "ApiWriteBlocked",
    area: Area::ControlPlanePath,
    severity: Severity::Critical,
    why: "the conditions of this node are frozen in both directions while its Lease is renewed, and calico-node does not start here",
    next_step: "find the webhook that matches nodes/status (`kubectl get validatingwebhookconfigurations,mutatingwebhookconfigurations -o yaml`) and what its backend needs; then bring the backend to another node, set its timeout below 2 s, take nodes out of its rules, or remove it",
    raise_after: Duration::from_secs(15),
    clear_after: Duration::from_secs(2),
    run,
};

fn run(look: &Look<'_>) -> Outcome {
    let writes = seen!(look.now.writes, Outcome::NotApplicable("nothing is written from here".into()));
    let Some(why) = &writes.blocked else { return Outcome::Healthy };
    let detail = format!("The API server at {} answers reads and takes no writes of the Node: {why}", writes.server);
    Outcome::from_findings(vec![Finding::new(writes.server.clone(), detail)])
}

#[cfg(test)]
mod tests {
    use super::super::testing::{self, Node};
    use super::*;
    use crate::facts::{Seen, Writes};

    fn writes(blocked: Option<&str>) -> Node {
        let (server, blocked) = ("https://10.0.0.9:6443/".into(), blocked.map(str::to_owned));
        let writes = Writes { server, blocked, ..Writes::default() };
        Node::worker().edit(move |now| now.writes = Seen::Yes(writes.clone()))
    }

    #[test]
    fn a_patch_that_is_not_answered() {
        let outcome = run(&writes(Some("a patch was not answered within 2 s")).look());
        assert_eq!(testing::subjects(&outcome), ["https://10.0.0.9:6443/"]);
        assert!(
            testing::details(&outcome)[0].ends_with("takes no writes of the Node: a patch was not answered within 2 s")
        );
    }

    #[test]
    fn healthy_and_clears() {
        assert_eq!(run(&writes(None).look()), Outcome::Healthy);
    }

    #[test]
    fn trap_nobody_writes() {
        let node = Node::worker().edit(|now| now.writes = Seen::Absent);
        assert!(matches!(run(&node.look()), Outcome::NotApplicable(_)));
    }

    #[test]
    fn unknown_when_reads_are_not_answered_either() {
        let node = Node::worker().edit(|now| now.writes = testing::denied("nodes/n1"));
        assert!(matches!(run(&node.look()), Outcome::Unknown(_)));
    }
}
