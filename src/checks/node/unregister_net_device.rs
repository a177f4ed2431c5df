//! A network device cannot be deleted.
//!
//! *Looks at* the kernel's log, which repeats it every ten seconds for as long as it lasts. *Trap*: one line or two are
//! routine, when the last packets of a pod are still on their way (node-problem-detector's `UnregisterNetDevice`).

use std::time::Duration;

use super::super::{Area, Check, Look, Outcome, Severity, kernel};
use crate::facts::KernelFault;

pub(super) const CHECK: Check = Check {
    code: "UnregisterNetDevice",
    area: Area::Integrity,
    severity: Severity::Warning,
    why: "the kernel holds a lock meanwhile that every change of a network device needs, so pods are neither started nor removed",
    next_step: "if it does not end within some minutes drain the node and reboot it, and update the kernel: it leaks a reference to the device",
    // Longer than two lines alone are remembered.
    raise_after: Duration::from_secs(60),
    clear_after: Duration::ZERO,
    run,
};

fn run(look: &Look<'_>) -> Outcome {
    kernel::each(look, &[KernelFault::NetDeviceStuck], |event| {
        Some((format!("The network device {} cannot be deleted", event.subject), Severity::Warning))
    })
}

#[cfg(test)]
mod tests {
    use super::super::testing::{self, Node};
    use super::*;

    #[test]
    fn a_device_that_stays() {
        let line = "unregister_netdevice: waiting for eth0 to become free. Usage count = 1";
        let node = Node::worker().kernel_says(KernelFault::NetDeviceStuck, "eth0", line);
        assert_eq!(testing::subjects(&run(&node.look())), ["eth0"]);
    }

    #[test]
    fn healthy_and_clears() {
        assert_eq!(run(&Node::worker().look()), Outcome::Healthy);
    }

    #[test]
    fn trap_two_lines_are_over_before_they_count() {
        assert!(
            CHECK.raise_after > Duration::from_secs(30 + 10),
            "a line is remembered for 30 s, the next comes after 10"
        );
    }

    #[test]
    fn unknown_when_the_log_cannot_be_read() {
        let node = Node::worker().edit(|now| now.kernel_log = testing::denied("/dev/kmsg"));
        assert!(matches!(run(&node.look()), Outcome::Unknown(_)));
    }
}
