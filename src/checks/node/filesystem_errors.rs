//! A file system reports damage to its structures, or that it could not write them.
//!
//! *Looks at* the kernel's log, for file systems that are mounted here. *Traps*: a volume that was unmounted since; one that
//! has turned read-only over it, which is `FilesystemReadOnly`; warnings, of which most are harmless (catalogue R037).

use std::time::Duration;

use super::super::{Area, Check, Look, Outcome, Severity, kernel, seen};
use crate::facts::KernelFault;

pub(super) const CHECK: Check = Check {
    code: "FilesystemErrors",
    area: Area::Integrity,
    severity: Severity::Warning,
    why: "files on it may be damaged already, and the next error can turn the whole file system read-only",
    next_step: "read the lines around it (`dmesg | grep -iE 'ext4|xfs|btrfs|i/o error'`) and the disk's health (`smartctl -a`), drain the node, then check the file system unmounted (`e2fsck -f`, `xfs_repair`) or replace the worker",
    raise_after: Duration::ZERO,
    clear_after: Duration::ZERO,
    run,
};

fn run(look: &Look<'_>) -> Outcome {
    let log = seen!(look.now.kernel_log, kernel::none());
    let filesystems = seen!(look.now.filesystems, Outcome::NotApplicable("no file systems to look at".into()));
    let findings = filesystems.iter().filter(|it| !kernel::is_unwritable(Some(log), it)).filter_map(|filesystem| {
        let error = kernel::about(Some(log), filesystem, &[KernelFault::FilesystemError]);
        let event = error.or_else(|| kernel::about(Some(log), filesystem, &[KernelFault::FilesystemWarning]))?;
        let (said, severity) =
            if error.is_some() { ("reports errors", Severity::Warning) } else { ("warns", Severity::Info) };
        let (kind, point, source) = (&filesystem.kind, &filesystem.mount_point, &filesystem.source);
        let what = format!("The {kind} file system {point} on {source} {said}");
        Some(kernel::finding(point, &what, event).severity(severity))
    });
    Outcome::from_findings(findings.collect())
}

#[cfg(test)]
mod tests {
    use super::super::testing::{self, Node};
    use super::*;

    const LINE: &str = "EXT4-fs error (device vda1): ext4_lookup:1855: inode #2: comm ls: deleted inode referenced: 12";

    fn damaged() -> Node {
        Node::worker().kernel_says(KernelFault::FilesystemError, "vda1", LINE)
    }

    #[test]
    fn errors_are_a_warning_and_warnings_are_worth_knowing() {
        let outcome = run(&damaged().look());
        assert_eq!(testing::subjects(&outcome), ["/"]);
        assert!(testing::details(&outcome)[0].ends_with(&format!("the kernel's log says: \"{LINE}\"")), "{outcome:?}");
        let warned =
            Node::worker().kernel_says(KernelFault::FilesystemWarning, "vda1", "EXT4-fs warning (device vda1): x");
        let Outcome::Findings(findings) = run(&warned.look()) else { panic!("a finding") };
        assert_eq!(findings[0].severity, Some(Severity::Info));
    }

    #[test]
    fn healthy_and_clears() {
        assert_eq!(run(&Node::worker().look()), Outcome::Healthy);
    }

    #[test]
    fn trap_unmounted_since_or_read_only_by_now() {
        let other = Node::worker().kernel_says(KernelFault::FilesystemError, "sdb1", LINE);
        assert_eq!(run(&other.look()), Outcome::Healthy, "a volume that was taken away");
        let turned = damaged().filesystem(|filesystem| filesystem.read_only = true);
        assert_eq!(run(&turned.look()), Outcome::Healthy, "FilesystemReadOnly tells that");
    }

    #[test]
    fn unknown_when_the_log_cannot_be_read() {
        let node = Node::worker().edit(|now| now.kernel_log = testing::denied("/dev/kmsg"));
        assert!(matches!(run(&node.look()), Outcome::Unknown(_)));
        let node = damaged().edit(|now| now.kernel_log = crate::facts::Seen::Absent);
        assert!(matches!(run(&node.look()), Outcome::NotApplicable(_)));
    }
}
