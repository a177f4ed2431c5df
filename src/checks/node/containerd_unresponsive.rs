//! The container runtime hangs: its socket accepts and never answers.
//!
//! *Looks at* CRI calls with deadlines of their own, and at the threads of whoever listens on the socket. The kubelet needs
//! two minutes to notice and its health port stays 200 (recorded: incident 08). *Trap*: one slow answer, while images are collected, is noise: several looks must agree
//! (catalogue R056).

use std::time::Duration;

use super::super::{Area, Check, Finding, Look, Outcome, Severity, kubelet_words};
use crate::facts::{HungProcess, Reason, Seen};

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
    let (process, next) = process(look);
    let echo = kubelet_words::echo(look, "container runtime is");
    let detail = format!("The container runtime hangs: {path} accepts but does not answer ({hung}){process}{echo}");
    let finding = Finding::new(path.clone(), detail);
    Outcome::from_findings(vec![next.into_iter().fold(finding, Finding::next)])
}

/// What the process behind the socket does instead, and the better next step that follows from it.
fn process(look: &Look<'_>) -> (String, Option<String>) {
    if let Some(HungProcess { pid, threads, stopped, stuck }) = look.now.runtime.hung {
        return match (stopped, stuck) {
            (0, 0) => {
                (format!("; its process {pid} is alive, with {threads} threads and none stuck in the kernel"), None)
            }
            (0, _) => {
                let next = format!(
                    "a disk or a mount does not answer: read `cat /proc/{pid}/task/*/stack` and the kernel's log first; a restart does not help while threads are stuck there, so cordon, gather and reload the worker"
                );
                (
                    format!(
                        "; {stuck} of the {threads} threads of its process {pid} are stuck in the kernel (state D)"
                    ),
                    Some(next),
                )
            }
            _ => {
                let next = format!(
                    "find out who stopped it (a debugger, a freezer), and wake it with `kill -CONT {pid}`; if it hangs again, restart it"
                );
                (
                    format!("; its process {pid} is stopped by a signal ({stopped} of {threads} threads in state T)"),
                    Some(next),
                )
            }
        };
    }
    let Some(processes) = look.now.processes.get() else { return Default::default() };
    let said = processes.runtime().map(|process| match process.state {
        'T' => format!("; its process {} is stopped by a signal", process.pid),
        'D' => format!("; its process {} is stuck in the kernel", process.pid),
        _ => format!("; its process {} is alive", process.pid),
    });
    (said.unwrap_or_default(), None)
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
    fn it_tells_stopped_stuck_and_merely_silent_apart() {
        let told = |stopped, stuck| {
            let node = Node::worker().edit(|now| {
                now.runtime.status = testing::timed_out("Version");
                now.runtime.hung = Some(HungProcess { pid: 11, threads: 30, stopped, stuck });
            });
            let Outcome::Findings(mut findings) = run(&node.look()) else { panic!("a finding") };
            let finding = findings.remove(0);
            (finding.detail, finding.next_step.unwrap_or_default())
        };
        let (detail, next) = told(30, 0);
        assert!(detail.contains("11 is stopped by a signal (30 of 30 threads"), "{detail}");
        assert!(next.contains("kill -CONT 11"), "{next}");
        let (detail, next) = told(0, 4);
        assert!(detail.contains("4 of the 30 threads of its process 11 are stuck in the kernel (state D)"), "{detail}");
        assert!(next.contains("/proc/11/task/*/stack"), "{next}");
        let (detail, next) = told(0, 0);
        assert!(detail.contains("11 is alive, with 30 threads and none stuck") && next.is_empty(), "{detail} {next}");
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
