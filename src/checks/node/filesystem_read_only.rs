//! A file system that should be writable is read-only.
//!
//! *Looks at* the superblock's options. *Traps*: what `/etc/fstab` asks for or what has been read-only since the first
//! look (squashfs, an immutable root) is meant to be so (catalogue R037).

use std::time::Duration;

use super::super::{Area, Check, Finding, Look, Outcome, Severity, seen, space};

pub(super) const CHECK: Check = Check {
    code: "FilesystemReadOnly",
    area: Area::Integrity,
    severity: Severity::Critical,
    why: "the kernel remounts a file system read-only after an error, and nothing on it can be written: no log, no state, no image",
    next_step: "read the kernel log for the error (`dmesg | grep -iE 'ext4|xfs|i/o error'`), cordon and drain the node, save evidence to another file system, then reload or replace the worker",
    raise_after: Duration::from_secs(1),
    clear_after: Duration::from_secs(10),
    run,
};

fn run(look: &Look<'_>) -> Outcome {
    let filesystems = seen!(look.now.filesystems, Outcome::NotApplicable("no file systems to look at".into()));
    let turned = filesystems.iter().filter(|filesystem| filesystem.read_only && !filesystem.meant_read_only);
    let findings = turned.map(|filesystem| {
        let detail = format!(
            "The {} file system {} on {} is read-only",
            filesystem.kind,
            space::name(filesystem),
            filesystem.source
        );
        Finding::new(filesystem.mount_point.clone(), detail)
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
