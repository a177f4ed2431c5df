//! The kernel failed in itself.
//!
//! *Looks at* the kernel's log: oopses, which last until the next boot, and CPUs that were stuck. *Traps*: a program that
//! crashes is logged in similar words (`traps: ... general protection fault`) and is no fault of the kernel; a virtual
//! machine that its host did not run for a while reports stuck CPUs, which is over by itself (node-problem-detector's
//! `KernelOops`).

use std::time::Duration;

use super::super::{Area, Check, Look, Outcome, Severity, kernel};
use crate::facts::KernelFault;

pub(super) const CHECK: Check = Check {
    code: "KernelOops",
    area: Area::Integrity,
    severity: Severity::Warning,
    why: "a process died or hung inside the kernel, and locks that it held may stay locked until the next boot",
    next_step: "save the trace (`dmesg`), drain the node and reboot it, and update the kernel if it happens again",
    raise_after: Duration::ZERO,
    clear_after: Duration::ZERO,
    run,
};

fn run(look: &Look<'_>) -> Outcome {
    kernel::each(look, &[KernelFault::Oops, KernelFault::Lockup], |event| {
        let what = match event.fault {
            KernelFault::Oops => "The kernel failed, and does not trust itself until the next boot".to_owned(),
            _ => format!("A CPU was stuck in the kernel ({})", event.subject),
        };
        Some((what, Severity::Warning))
    })
}

#[cfg(test)]
mod tests {
    use super::super::testing::{self, Node};
    use super::*;

    #[test]
    fn an_oops_and_a_lockup() {
        let node = Node::worker().kernel_says(KernelFault::Oops, "", "Oops: 0002 [#1] SMP PTI").kernel_says(
            KernelFault::Lockup,
            "3",
            "watchdog: BUG: soft lockup - CPU#3 stuck for 22s! [a:1]",
        );
        assert_eq!(testing::subjects(&run(&node.look())), ["3", "kernel"]);
    }

    #[test]
    fn healthy_and_clears() {
        assert_eq!(run(&Node::worker().look()), Outcome::Healthy);
    }

    #[test]
    fn trap_a_process_that_waits_is_another_code() {
        let node = Node::worker().kernel_says(KernelFault::TaskHung, "a:1", "INFO: task a:1 blocked for more than");
        assert_eq!(run(&node.look()), Outcome::Healthy);
    }

    #[test]
    fn unknown_when_the_log_cannot_be_read() {
        let node = Node::worker().edit(|now| now.kernel_log = testing::denied("/dev/kmsg"));
        assert!(matches!(run(&node.look()), Outcome::Unknown(_)));
    }
}
