//! The runtime says of itself that it is not ready.
//!
//! *Looks at* the condition `RuntimeReady` of CRI `Status`: containerd says that it is as long as it answers, cri-dockerd whether
//! the Docker behind it answers. *Trap*: condition types that are not known, like
//! `ContainerdHasNoDeprecationWarnings`, are information (catalogue R057).

use std::time::Duration;

use super::super::{Area, Check, Finding, Look, Outcome, Severity, seen};

pub(super) const CHECK: Check = Check {
    code: "RuntimeNotReady",
    area: Area::Runtime,
    severity: Severity::Critical,
    why: "the kubelet does not start pods while the runtime says so",
    next_step: "read the log of the runtime, and of Docker where that is behind it (`journalctl -u containerd -u crio -u cri-docker -u docker`), for the reason that it gives",
    raise_after: Duration::from_secs(5),
    clear_after: Duration::from_secs(2),
    run,
};

fn run(look: &Look<'_>) -> Outcome {
    let status = seen!(look.now.runtime.status, Outcome::NotApplicable("no container runtime here".into()));
    let Some(condition) = status.condition("RuntimeReady").filter(|condition| !condition.status) else {
        return Outcome::Healthy;
    };
    let detail = format!(
        "{} {} says RuntimeReady=false, {}: {}",
        status.name, status.version, condition.reason, condition.message
    );
    let finding = Finding::new("RuntimeReady", detail);
    Outcome::from_findings(vec![finding])
}

#[cfg(test)]
mod tests {
    use super::super::testing::{self, Node};
    use super::*;

    #[test]
    fn the_runtime_says_so() {
        let node = Node::worker().runtime_condition("RuntimeReady", false);
        let details = testing::details(&run(&node.look()));
        assert!(details[0].contains("RuntimeReady=false, TestReason: test message"), "{details:?}");
    }

    #[test]
    fn healthy_and_clears() {
        assert_eq!(run(&Node::worker().look()), Outcome::Healthy);
        let node = Node::plain_machine();
        assert!(matches!(run(&node.look()), Outcome::NotApplicable(_)));
    }

    #[test]
    fn trap_other_conditions_are_information() {
        let node = Node::worker().runtime_condition("ContainerdHasNoDeprecationWarnings", false);
        assert_eq!(run(&node.look()), Outcome::Healthy);
    }

    #[test]
    fn unknown_when_the_runtime_does_not_answer() {
        let node = Node::worker().edit(|now| now.runtime.status = testing::timed_out("Status"));
        assert!(matches!(run(&node.look()), Outcome::Unknown(_)));
    }
}
