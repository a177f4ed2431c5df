//! A process waits in the kernel for minutes.
//!
//! *Looks at* the kernel's log, which tells of it after two minutes, and whether the process still waits. *Traps*: it went on,
//! or has gone; a pod's process that waits for a dead NFS server is that pod's trouble, the runtime's is the node's
//! (catalogue R036; node-problem-detector's `TaskHung` and `DockerHung`).

use std::time::Duration;

use super::super::{Area, Check, Look, Outcome, Severity, kernel};
use crate::facts::KernelFault;

pub(super) const CHECK: Check = Check {
    code: "TaskHung",
    area: Area::Integrity,
    severity: Severity::Warning,
    why: "it waits for a disk, a network file system or a lock that does not come, cannot be killed, and others that need the same wait too",
    next_step: "see what it waits for (`cat /proc/PID/stack`, `dmesg`), look at the disk or server behind it, and if that does not come back drain the node and reboot it",
    raise_after: Duration::ZERO,
    clear_after: Duration::ZERO,
    run,
};

/// Without these the node runs no pods.
const VITAL: [&str; 5] = ["containerd", "dockerd", "kubelet", "crio", "runc"];

fn run(look: &Look<'_>) -> Outcome {
    kernel::each(look, &[KernelFault::TaskHung], |event| {
        let (name, pid) = event.subject.rsplit_once(':').unwrap_or((&event.subject, "?"));
        let severity =
            if VITAL.iter().any(|vital| name.starts_with(vital)) { Severity::Critical } else { Severity::Warning };
        Some((format!("The process {name} (PID {pid}) waits in the kernel for more than two minutes"), severity))
    })
}

#[cfg(test)]
mod tests {
    use super::super::testing::{self, Node};
    use super::*;

    fn hung(who: &str) -> Outcome {
        let line = format!("INFO: task {who} blocked for more than 120 seconds.");
        run(&Node::worker().kernel_says(KernelFault::TaskHung, who, &line).look())
    }

    #[test]
    fn a_process_that_waits_and_worse_the_runtime() {
        let outcome = hung("kworker/u8:2:1234");
        let detail = &testing::details(&outcome)[0];
        assert!(detail.starts_with("The process kworker/u8:2 (PID 1234) waits in the kernel"), "{detail}");
        let severity = |outcome| match outcome {
            Outcome::Findings(findings) => findings[0].severity,
            other => panic!("a finding, not {other:?}"),
        };
        assert_eq!(severity(outcome), Some(Severity::Warning));
        assert_eq!(severity(hung("containerd-shim:7")), Some(Severity::Critical));
    }

    #[test]
    fn healthy_and_clears() {
        assert_eq!(run(&Node::worker().look()), Outcome::Healthy);
    }

    #[test]
    fn trap_a_stuck_cpu_is_another_code() {
        let node = Node::worker().kernel_says(KernelFault::Lockup, "3", "watchdog: BUG: soft lockup - CPU#3");
        assert_eq!(run(&node.look()), Outcome::Healthy);
    }

    #[test]
    fn unknown_when_the_log_cannot_be_read() {
        let node = Node::worker().edit(|now| now.kernel_log = testing::denied("/dev/kmsg"));
        assert!(matches!(run(&node.look()), Outcome::Unknown(_)));
    }
}
