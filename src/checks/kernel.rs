//! What several checks read from the kernel's log.

use super::{Finding, Look, Outcome, Severity};
use crate::facts::{Filesystem, KernelEvent, KernelFault, KernelLog, Seen};

/// The answer where there is no kernel log.
pub(super) fn none() -> Outcome {
    Outcome::NotApplicable("there is no kernel log here".into())
}

/// The first event of some sorts about a file system.
pub(super) fn about<'a>(
    log: Option<&'a KernelLog>,
    filesystem: &Filesystem,
    faults: &'static [KernelFault],
) -> Option<&'a KernelEvent> {
    let device = filesystem.device.as_ref()?;
    log?.of(faults).find(|event| event.subject == *device)
}

/// Whether a file system that should be writable is not, by its mount or because XFS has shut it down.
pub(super) fn is_unwritable(log: Option<&KernelLog>, filesystem: &Filesystem) -> bool {
    (filesystem.read_only && !filesystem.meant_read_only)
        || about(log, filesystem, &[KernelFault::FilesystemShutdown]).is_some()
}

/// A finding about `subject`, with the kernel's own words.
pub(super) fn finding(subject: &str, what: &str, event: &KernelEvent) -> Finding {
    let times = if event.times > 1 { format!(", at least {} times", event.times) } else { String::new() };
    Finding::new(subject, format!("{what}; the kernel's log says{times}: \"{}\"", event.line))
}

/// A finding for each event of some sorts; `describe` says what it is, and how bad, if not as the check says.
pub(super) fn each(
    look: &Look<'_>,
    faults: &'static [KernelFault],
    describe: impl Fn(&KernelEvent) -> Option<(String, Severity)>,
) -> Outcome {
    let log = match &look.now.kernel_log {
        Seen::Yes(log) => log,
        Seen::Absent => return none(),
        Seen::Unreadable(error) => return Outcome::unknown(error),
    };
    let findings = log.of(faults).filter_map(|event| {
        let (what, severity) = describe(event)?;
        let subject = if event.subject.is_empty() { "kernel" } else { &event.subject };
        Some(finding(subject, &what, event).severity(severity))
    });
    let mut findings: Vec<Finding> = findings.collect();
    // One subject, one finding: the worst.
    findings.sort_by(|a, b| a.subject.cmp(&b.subject).then(b.severity.cmp(&a.severity)));
    findings.dedup_by(|a, b| a.subject == b.subject);
    Outcome::from_findings(findings)
}
