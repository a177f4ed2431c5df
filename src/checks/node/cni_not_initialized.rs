//! The runtime says that its network is not ready.
//!
//! *Looks at* the condition `NetworkReady` of CRI `Status`, in the runtime's words. It is the CNI's fault, not the
//! runtime's. *Trap*: normal in the first minute of a new worker (catalogue R047, R057).

use std::time::Duration;

use super::super::{Area, Check, Finding, Look, Outcome, Severity, seen};
use crate::facts::Program;

pub(super) const CHECK: Check = Check {
    code: "CniNotInitialized",
    area: Area::Cni,
    severity: Severity::Critical,
    why: "no new pod gets a network, and the node is NotReady",
    next_step: "look at the CNI directory and its active file first; if the file is good and newer than the message, restart the runtime so that it reads it",
    raise_after: Duration::from_secs(5),
    clear_after: Duration::from_secs(2),
    run,
};

fn run(look: &Look<'_>) -> Outcome {
    let status = seen!(look.now.runtime.status, Outcome::NotApplicable("no container runtime here".into()));
    let Some(condition) = status.condition("NetworkReady").filter(|condition| !condition.status) else {
        return Outcome::Healthy;
    };
    let detail = format!(
        "{} {} says NetworkReady=false, {}: {}",
        status.name, status.version, condition.reason, condition.message
    );
    let finding = Finding::new("NetworkReady", detail);
    let finding = if joining(look) { finding.repaired_within(JOINING) } else { finding };
    Outcome::from_findings(vec![finding])
}

/// A worker that has just joined has no network yet.
const JOINING: Duration = Duration::from_secs(60);

fn joining(look: &Look<'_>) -> bool {
    let kubelet = look.now.processes.get().and_then(|processes| processes.of(Program::Kubelet));
    kubelet.is_some_and(|kubelet| look.now.taken_at.duration_since(kubelet.started_at).unsigned_abs() < JOINING)
}

#[cfg(test)]
mod tests {
    use super::super::testing::{self, Node};
    use super::*;

    #[test]
    fn the_runtime_says_so() {
        let node = Node::worker().runtime_condition("NetworkReady", false);
        let details = testing::details(&run(&node.look()));
        assert!(details[0].contains("NetworkReady=false, TestReason: test message"), "{details:?}");
    }

    #[test]
    fn healthy_and_clears() {
        assert_eq!(run(&Node::worker().look()), Outcome::Healthy);
        let node = Node::plain_machine();
        assert!(matches!(run(&node.look()), Outcome::NotApplicable(_)));
    }

    #[test]
    fn trap_a_worker_that_is_joining() {
        let node = Node::worker().runtime_condition("NetworkReady", false).kubelet_started_ago(10);
        let Outcome::Findings(findings) = run(&node.look()) else { panic!("a finding") };
        assert_eq!(findings[0].owner_repairs_within, Some(JOINING));
    }

    #[test]
    fn unknown_when_the_runtime_does_not_answer() {
        let node = Node::worker().edit(|now| now.runtime.status = testing::timed_out("Status"));
        assert!(matches!(run(&node.look()), Outcome::Unknown(_)));
    }
}
