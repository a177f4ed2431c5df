//! A file system that should be writable is read-only.
//!
//! *Looks at* the superblock's options, and at the kernel's log for the reason, and for XFS, which before Linux 6.15 shuts a
//! file system down without a mark in its options. *Traps*: what `/etc/fstab` asks for or what has been read-only since the first
//! look (squashfs, an immutable root) is meant to be so; a shut down XFS that was unmounted (catalogue R037).

use std::time::Duration;

use super::super::{Area, Check, Finding, Look, Outcome, Severity, kernel, seen, space};
use crate::facts::KernelFault::{DiskError, FilesystemError, FilesystemReadOnly, FilesystemShutdown};

pub(super) const CHECK: Check = Check {
    code: "FilesystemReadOnly",
    area: Area::Integrity,
    severity: Severity::Critical,
    why: "the kernel remounts a file system read-only after an error, and nothing on it can be written: no log, no state, no image",
    next_step: "read the kernel log for the error (`dmesg | grep -iE 'ext4|xfs|i/o error'`), cordon and drain the node, save evidence to another file system, then reload or replace the worker",
    raise_after: Duration::from_millis(500),
    clear_after: Duration::from_secs(10),
    run,
};

fn run(look: &Look<'_>) -> Outcome {
    let filesystems = seen!(look.now.filesystems, Outcome::NotApplicable("no file systems to look at".into()));
    let log = look.now.kernel_log.get();
    let findings = filesystems.iter().filter(|it| kernel::is_unwritable(log, it)).map(|filesystem| {
        let state =
            if filesystem.read_only { "is read-only" } else { "is shut down: nothing on it can be read or written" };
        let (kind, name, source) = (&filesystem.kind, space::name(filesystem), &filesystem.source);
        let what = format!("The {kind} file system {name} on {source} {state}");
        // The error says more than that it was followed by a remount.
        let sorts = [&[FilesystemError][..], &[FilesystemShutdown], &[DiskError], &[FilesystemReadOnly]];
        match sorts.into_iter().find_map(|faults| kernel::about(log, filesystem, faults)) {
            Some(event) => kernel::finding(&filesystem.mount_point, &what, event),
            None => Finding::new(filesystem.mount_point.clone(), what),
        }
    });
    Outcome::from_findings(findings.collect())
}

#[cfg(test)]
mod tests {
    use super::super::testing::{self, Node};
    use super::*;

    #[test]
    fn turned_read_only() {
        let node = Node::worker().filesystem(|filesystem| filesystem.read_only = true);
        assert_eq!(testing::subjects(&run(&node.look())), ["/"]);
    }

    #[test]
    fn with_the_kernels_reason() {
        let node = Node::worker()
            .filesystem(|filesystem| filesystem.read_only = true)
            .kernel_says(FilesystemReadOnly, "vda1", "EXT4-fs (vda1): Remounting filesystem read-only")
            .kernel_says(FilesystemError, "vda1", "EXT4-fs error (device vda1): ext4_lookup:1855");
        let detail = &testing::details(&run(&node.look()))[0];
        assert!(
            detail.ends_with("the kernel's log says: \"EXT4-fs error (device vda1): ext4_lookup:1855\""),
            "{detail}"
        );
    }

    #[test]
    fn an_xfs_that_is_shut_down_says_rw_all_the_same() {
        let line = "XFS (vda1): Filesystem has been shut down due to log error (0x2).";
        let node = Node::worker().kernel_says(FilesystemShutdown, "vda1", line);
        assert!(testing::details(&run(&node.look()))[0].contains("is shut down"));
        let other = Node::worker().kernel_says(FilesystemShutdown, "sdb1", line);
        assert_eq!(run(&other.look()), Outcome::Healthy, "it is not mounted any more");
    }

    #[test]
    fn healthy_and_clears() {
        assert_eq!(run(&Node::worker().look()), Outcome::Healthy);
    }

    #[test]
    fn trap_meant_to_be_read_only() {
        let node = Node::worker().filesystem(|filesystem| {
            filesystem.read_only = true;
            filesystem.meant_read_only = true;
        });
        assert_eq!(run(&node.look()), Outcome::Healthy);
    }

    #[test]
    fn unknown_when_the_mounts_cannot_be_read() {
        let node = Node::worker().edit(|now| now.filesystems = testing::denied("mountinfo"));
        assert!(matches!(run(&node.look()), Outcome::Unknown(_)));
    }
}
