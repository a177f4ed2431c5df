//! The container runtime hangs: its socket accepts and never answers.
//!
//! *Looks at* CRI calls with deadlines of their own. The kubelet needs two minutes to notice and its health port stays
//! 200 (recorded: incident 08). *Trap*: one slow answer, while images are collected, is noise: several looks must agree
//! (catalogue R056).

use std::time::Duration;

use super::super::{Area, Check, Finding, Look, Outcome, Severity};
use crate::facts::{Program, Reason, Seen};

pub(super) const CHECK: Check = Check {
    code: "ContainerdUnresponsive",
    area: Area::Runtime,
    severity: Severity::Critical,
    why: "no container can be started, stopped or probed here, and the kubelet takes two minutes to notice",
    next_step: "gather first (its stacks: `kill -USR1 PID`, `journalctl -u containerd`), then restart it; if it hangs again, cordon, drain and reload the worker",
    // Three looks in a row must find it hung: each waits two seconds for an answer, and half a second lies between them.
    raise_after: Duration::from_secs(5),
    clear_after: Duration::from_secs(4),
    run,
};

fn run(look: &Look<'_>) -> Outcome {
    let runtime = &look.now.runtime;
    let path = match &runtime.socket {
        Seen::Yes(path) => path,
        Seen::Absent => return Outcome::NotApplicable("no container runtime here".into()),
        Seen::Unreadable(error) if error.reason == Reason::Missing => return Outcome::Healthy,
        Seen::Unreadable(error) => return Outcome::unknown(error),
    };
    let errors = [runtime.status.error(), runtime.sandboxes.error()];
    let Some(hung) = errors.into_iter().flatten().find(|error| error.reason == Reason::TimedOut) else {
        return match runtime.status.error() {
            None => Outcome::Healthy,
            // Down is another code.
            Some(error) if matches!(error.reason, Reason::Refused | Reason::Missing) => Outcome::Healthy,
            Some(error) => Outcome::unknown(error),
        };
    };
    let detail = format!("The container runtime hangs: {path} accepts but does not answer ({hung}){}", process(look));
    Outcome::from_findings(vec![Finding::new(path.clone(), detail)])
}

/// What the process table says about the runtime's process.
fn process(look: &Look<'_>) -> String {
    let Some(processes) = look.now.processes.get() else { return String::new() };
    let runtime = processes.of(Program::Containerd).or_else(|| processes.of(Program::Crio));
    match runtime {
        Some(process) if process.state == 'T' => format!("; its process {} is stopped by a signal", process.pid),
        Some(process) if process.state == 'D' => format!("; its process {} is stuck in the kernel", process.pid),
        Some(process) => format!("; its process {} is alive", process.pid),
        None => String::new(),
    }
}

#[cfg(test)]
mod tests {
    use super::super::testing::{self, Node};
    use super::*;

    #[test]
    fn no_answer_to_status_or_to_the_list() {
        let node = Node::worker().edit(|now| now.runtime.status = testing::timed_out("Status"));
        assert_eq!(testing::subjects(&run(&node.look())), ["/run/containerd/containerd.sock"]);
        let node = Node::worker().edit(|now| now.runtime.sandboxes = testing::timed_out("ListPodSandbox"));
        assert!(testing::details(&run(&node.look()))[0].contains("is alive"));
    }

    #[test]
    fn healthy_and_clears() {
        assert_eq!(run(&Node::worker().look()), Outcome::Healthy);
    }

    #[test]
    fn trap_one_slow_answer_is_held_down_and_dead_is_not_hung() {
        assert!(CHECK.raise_after >= Duration::from_secs(5), "three looks of two seconds");
        let node = Node::worker().edit(|now| now.runtime.status = testing::error("socket", Reason::Refused));
        assert_eq!(run(&node.look()), Outcome::Healthy);
    }

    #[test]
    fn unknown_when_the_socket_cannot_be_used() {
        let node = Node::worker().edit(|now| now.runtime.status = testing::denied("socket"));
        assert!(matches!(run(&node.look()), Outcome::Unknown(_)));
    }
}
