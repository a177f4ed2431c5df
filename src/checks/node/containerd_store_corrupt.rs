//! containerd's store is damaged: its database or its images did not outlive a crash.
//!
//! *Looks at* the header and the length of `meta.db`, at empty blobs, at CRI-O's lists, and at errors of CRI calls that say so. Nothing is opened
//! as a database, locked or written: containerd may hold it. *Trap*: the database of a running containerd is being written, so
//! that one of its two first pages may be torn; an empty blob can be the content of nothing (catalogue R060).

use std::time::Duration;

use super::super::{Area, Check, Finding, Look, Outcome, Severity, seen};
use crate::facts::Reason;

pub(super) const CHECK: Check = Check {
    code: "ContainerdStoreCorrupt",
    area: Area::Runtime,
    severity: Severity::Critical,
    why: "containerd does not start, or forgets containers that run, or cannot start any from these images",
    next_step: "do not restart anything: cordon, gather (`journalctl -u containerd -b`, the store's file list), drain, and reload or replace the worker",
    // Two looks have to agree.
    raise_after: Duration::from_secs(25),
    clear_after: Duration::ZERO,
    run,
};

/// The next step where it is CRI-O's.
const CRIO_NEXT: &str = "do not restart anything: CRI-O may wipe what it cannot read; cordon, gather (`journalctl -u crio -b`, the store's file list), drain, and reload or replace the worker";
/// What containerd, its snapshotters and the kernel say of a damaged store.
const DAMAGE: [&str; 8] = [
    "failed to get reader from content store",
    "failed to stat parent",
    "failed to verify",
    "unexpected commit digest",
    "invalid database",
    "checksum error",
    "structure needs cleaning",
    "input/output error",
];

fn run(look: &Look<'_>) -> Outcome {
    let runtime = &look.now.runtime;
    let errors = [runtime.status.error(), runtime.sandboxes.error(), runtime.image_filesystems.error()];
    let errors: Vec<_> = errors.into_iter().flatten().collect();
    let mut findings: Vec<Finding> = errors
        .iter()
        .filter(|error| DAMAGE.iter().any(|damage| error.detail.contains(damage)))
        .take(1)
        .map(|error| Finding::new("CRI", format!("containerd says of its store: {}", error.detail)))
        .collect();
    // A CRI plugin that could not be loaded leaves a socket that knows no CRI.
    let unloaded =
        errors.iter().any(|error| error.reason == Reason::Unsupported && error.detail.contains("unknown service"));
    let faults = match &look.now.store {
        crate::facts::Seen::Yes(faults) => faults,
        _ if !findings.is_empty() => return Outcome::from_findings(findings),
        _ => seen!(look.now.store, Outcome::NotApplicable("no store of containerd here".into())),
    };
    for fault in faults {
        let mut detail = format!("{} {}", fault.path, fault.what);
        if unloaded {
            detail.push_str("; containerd runs without its CRI plugin");
        }
        let finding = Finding::new(fault.path.clone(), detail);
        findings.push(if std::path::Path::new(&fault.path).extension().is_some_and(|it| it == "json") {
            finding.next(CRIO_NEXT)
        } else {
            finding
        });
    }
    Outcome::from_findings(findings)
}

#[cfg(test)]
mod tests {
    use super::super::testing::{self, Node};
    use super::*;
    use crate::facts::{FileFault, LookError, Seen};

    const META: &str = "/var/lib/containerd/io.containerd.metadata.v1.bolt/meta.db";

    fn damaged() -> Node {
        let fault = FileFault { path: META.into(), what: "is empty".into() };
        Node::worker().edit(|now| now.store = Seen::Yes(vec![fault]))
    }

    #[test]
    fn lists_of_crio() {
        let path = "/var/lib/containers/storage/overlay-layers/layers.json";
        let fault = FileFault { path: path.into(), what: "is empty: what CRI-O had is lost".into() };
        let Outcome::Findings(findings) = run(&Node::worker().edit(|now| now.store = Seen::Yes(vec![fault])).look())
        else {
            panic!("a finding")
        };
        assert_eq!(findings[0].detail, format!("{path} is empty: what CRI-O had is lost"));
        assert!(findings[0].next_step.as_deref().is_some_and(|next| next.contains("journalctl -u crio")));
    }

    #[test]
    fn a_damaged_file_or_a_call_that_says_so() {
        assert_eq!(testing::details(&run(&damaged().look())), [format!("{META} is empty")]);
        let unknown = "Version: unknown service runtime.v1.RuntimeService";
        let error = |detail: &str| LookError::new("socket", Reason::Unsupported, detail);
        let node = damaged().edit(|now| now.runtime.status = Seen::Unreadable(error(unknown)));
        assert!(testing::details(&run(&node.look()))[0].ends_with("is empty; containerd runs without its CRI plugin"));
        let node = Node::worker().edit(|now| {
            now.runtime.image_filesystems = Seen::Unreadable(error("ImageFsInfo: read meta.db: input/output error"));
        });
        assert_eq!(testing::subjects(&run(&node.look())), ["CRI"]);
    }

    #[test]
    fn healthy_and_clears() {
        assert_eq!(run(&Node::worker().look()), Outcome::Healthy);
        let node = Node::plain_machine().edit(|now| now.store = Seen::Absent);
        assert!(matches!(run(&node.look()), Outcome::NotApplicable(_)));
    }

    #[test]
    fn trap_a_runtime_that_is_only_down_or_has_no_cri() {
        for reason in [Reason::Refused, Reason::Unsupported, Reason::TimedOut] {
            let node = Node::worker().edit(|now| now.runtime.status = testing::error("socket", reason));
            assert_eq!(run(&node.look()), Outcome::Healthy, "{reason:?}");
        }
    }

    #[test]
    fn unknown_when_the_store_cannot_be_read() {
        let node = Node::worker().edit(|now| now.store = testing::denied(META));
        assert!(matches!(run(&node.look()), Outcome::Unknown(_)));
    }
}
