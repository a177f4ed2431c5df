//! Pods as their cgroups tell them, by the names that people know.

use std::fmt::Write as _;

use super::Look;
use crate::facts::{PodCgroup, Seen};

/// `NAMESPACE/NAME` where the runtime knows it, else the pod's uid.
pub(super) fn name(look: &Look<'_>, pod: &PodCgroup) -> String {
    let sandboxes = look.now.runtime.sandboxes.get().map_or(&[][..], Vec::as_slice);
    let own = sandboxes.iter().find(|sandbox| pod.containers.contains(&sandbox.id));
    own.map_or_else(|| format!("pod {}", pod.uid), |sandbox| format!("{}/{}", sandbox.namespace, sandbox.name))
}

/// `; most is used by a/b (1.0 GiB), c/d (0.5 GiB)`, or nothing where nobody looked.
pub(super) fn biggest(look: &Look<'_>, amount: fn(u64) -> String, of: Kind) -> String {
    let mut text = String::new();
    let Seen::Yes(scan) = &look.now.strain.pods else { return text };
    let list = match of {
        Kind::Memory => &scan.by_memory,
        Kind::Tasks => &scan.by_tasks,
        Kind::Disks => &scan.by_io,
        Kind::Cpus => &scan.by_cpu,
    };
    for (at, (pod, number)) in list.iter().enumerate() {
        let lead = if at == 0 { "; most is used by " } else { ", " };
        write!(text, "{lead}{} ({})", name(look, pod), amount(*number)).ok();
    }
    text
}

/// What pods use.
#[derive(Debug, Clone, Copy)]
pub(super) enum Kind {
    /// Working sets.
    Memory,
    /// Processes and threads.
    Tasks,
    /// What is read and written, a second.
    Disks,
    /// Thousandths of a CPU.
    Cpus,
}
