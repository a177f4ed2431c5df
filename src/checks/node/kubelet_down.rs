//! The kubelet does not run.
//!
//! *Looks at* the process table, and at the health port when that cannot be read. *Traps*: a restart is over within
//! seconds; a machine that is no worker has none (catalogue R044).

use std::time::Duration;

use super::super::{Area, Check, Finding, Look, Outcome, Severity};
use crate::facts::{Program, Reason, Seen};

pub(super) const CHECK: Check = Check {
    code: "KubeletDown",
    area: Area::ControlPlanePath,
    severity: Severity::Critical,
    why: "the control plane will declare this node lost within a minute and move its pods, and no probe or update happens here until then",
    next_step: "read its log (`journalctl -u kubelet -n 100`), then start it (`systemctl start kubelet`)",
    // `systemctl restart` is over within a second or two; the process table is looked at every two seconds.
    raise_after: Duration::from_secs(2),
    clear_after: Duration::from_secs(3),
    run,
};

fn run(look: &Look<'_>) -> Outcome {
    if !look.expected.worker {
        return Outcome::NotApplicable("this is no Kubernetes worker".into());
    }
    let port = &look.now.health.kubelet;
    match &look.now.processes {
        Seen::Yes(processes) if processes.of(Program::Kubelet).is_some() => return Outcome::Healthy,
        // k3s and its like run the kubelet inside a process of another name.
        _ if port.get().is_some() => return Outcome::Healthy,
        Seen::Unreadable(error) if port.error().is_none_or(|port| port.reason != Reason::Refused) => {
            return Outcome::unknown(error);
        }
        Seen::Yes(_) | Seen::Absent | Seen::Unreadable(_) => {}
    }
    Outcome::from_findings(vec![Finding::new(
        "kubelet",
        "The kubelet does not run: no process, and its health port does not answer",
    )])
}

#[cfg(test)]
mod tests {
    use super::super::testing::{self, Node};
    use super::*;

    fn dead() -> Node {
        Node::worker()
            .without(Program::Kubelet)
            .edit(|now| now.health.kubelet = testing::error("127.0.0.1:10248", Reason::Refused))
    }

    #[test]
    fn no_process_and_no_answer() {
        assert_eq!(testing::subjects(&run(&dead().look())), ["kubelet"]);
        let node = dead().edit(|now| now.processes = testing::denied("/proc"));
        assert_eq!(testing::subjects(&run(&node.look())), ["kubelet"]);
    }

    #[test]
    fn healthy_and_clears() {
        assert_eq!(run(&Node::worker().look()), Outcome::Healthy);
    }

    #[test]
    fn trap_health_port_switched_off_and_no_worker() {
        let node = Node::worker().edit(|now| now.health.kubelet = Seen::Absent);
        assert_eq!(run(&node.look()), Outcome::Healthy, "the process is there");
        assert!(matches!(run(&Node::plain_machine().look()), Outcome::NotApplicable(_)));
    }

    #[test]
    fn unknown_when_neither_can_be_seen() {
        let node = Node::worker().edit(|now| {
            now.processes = testing::denied("/proc");
            now.health.kubelet = Seen::Absent;
        });
        assert!(matches!(run(&node.look()), Outcome::Unknown(_)));
    }
}
