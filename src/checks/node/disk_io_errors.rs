//! A disk cannot read or write.
//!
//! *Looks at* the kernel's log. *Traps*: drives for floppies and CDs that a virtual machine pretends to have, and discards,
//! whose failure loses nothing, are passed over by the reader; a disk that was detached is gone, and so is the finding
//! (catalogue R037; node-problem-detector's `IOError`).

use std::time::Duration;

use super::super::{Area, Check, Look, Outcome, Severity, kernel};
use crate::facts::KernelFault;

pub(super) const CHECK: Check = Check {
    code: "DiskIoErrors",
    area: Area::Integrity,
    severity: Severity::Warning,
    why: "what is on the disk may be lost, whoever reads or writes there stalls or fails, and the file system may turn read-only",
    next_step: "see which file system is on it (`lsblk`) and the disk's health (`smartctl -a`; for a cloud volume the provider's console), drain the node, then replace the disk or the worker",
    raise_after: Duration::ZERO,
    clear_after: Duration::ZERO,
    run,
};

fn run(look: &Look<'_>) -> Outcome {
    kernel::each(look, &[KernelFault::DiskError], |event| {
        Some((format!("The disk {} fails", event.subject), Severity::Warning))
    })
}

#[cfg(test)]
mod tests {
    use super::super::testing::{self, Node};
    use super::*;

    #[test]
    fn a_disk_that_fails() {
        let line = "I/O error, dev sda, sector 2048 op 0x0:(READ) flags 0x0 phys_seg 1 prio class 2";
        let outcome = run(&Node::worker().kernel_says(KernelFault::DiskError, "sda", line).look());
        assert_eq!(testing::subjects(&outcome), ["sda"]);
        assert_eq!(testing::details(&outcome), [format!("The disk sda fails; the kernel's log says: \"{line}\"")]);
    }

    #[test]
    fn healthy_and_clears() {
        assert_eq!(run(&Node::worker().look()), Outcome::Healthy);
    }

    #[test]
    fn trap_other_faults_are_other_findings() {
        let node = Node::worker().kernel_says(KernelFault::FilesystemError, "sda1", "EXT4-fs error (device sda1)");
        assert_eq!(run(&node.look()), Outcome::Healthy);
    }

    #[test]
    fn unknown_when_the_log_cannot_be_read() {
        let node = Node::worker().edit(|now| now.kernel_log = testing::denied("/dev/kmsg"));
        assert!(matches!(run(&node.look()), Outcome::Unknown(_)));
    }
}
