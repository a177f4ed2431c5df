//! What containers leave behind: objects that nobody owns any more, and resources that only grow.

use jiff::Timestamp;
use serde::Serialize;

use super::{Memo, Program, Seen};

/// What is left of containers and pods that have gone. An object counts once nobody has owned it for ten minutes: pods that
/// are being made or removed are between two owners.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct Debris {
    /// Shims of sandboxes that the runtime does not know: process id and the beginning of the sandbox's id; CRI-O's conmon of
    /// pods that it does not know, with the pod's uid. At most
    /// [`Debris::EXAMPLES`] of them.
    pub shims: Vec<(i32, String)>,
    /// How many such shims there are.
    pub shim_count: u64,
    /// Ended children of the runtime, its shims and the kubelet that were not reaped.
    pub zombies: u64,
    /// Containers that have ended and whose pod, or sandbox, is no longer there.
    pub containers: u64,
    /// Sandboxes of pods that the kubelet has no directory of.
    pub sandboxes: u64,
    /// Network namespaces of pods (`/run/netns/cni-*`; of CRI-O a bare UUID), less sandboxes that may own one.
    pub namespaces: u64,
    /// Control groups of pods of which the kubelet has no directory and the runtime no sandbox.
    pub cgroups: u64,
    /// Snapshots that containerd keeps for containers, sandboxes and unpacked images that are no longer there; absent as long as
    /// it was not asked.
    pub snapshots: Seen<Snapshots>,
    /// All containers that have ended, owned or not.
    pub exited: u64,
    /// All sandboxes that are not ready, owned or not.
    pub not_ready: u64,
    /// Resources that have grown for hours while the pods became no more.
    pub growing: Vec<Growing>,
    /// What the next process of the agent goes on from.
    #[serde(skip)]
    pub memo: Memo,
}

/// Snapshots (file systems of containers) without an owner.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct Snapshots {
    /// How many.
    pub count: u64,
    /// The key of the oldest and when it was made; none where that is not known any more.
    pub oldest: Option<(String, Timestamp)>,
}

/// A resource that has at least doubled while the node's pods became no more.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct Growing {
    /// What.
    pub resource: Resource,
    /// How much it was. Memory is counted in MiB.
    pub was: u64,
    /// How much it has been for the last hours, at least.
    pub now: u64,
    /// Since when, in hours.
    pub hours: u64,
}

/// A resource that containers use and should give back.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize)]
#[serde(rename_all = "camelCase")]
pub enum Resource {
    /// `num_cgroups` of `/proc/cgroups`, those that are being removed included.
    Cgroups,
    /// Lines of `/proc/1/mountinfo`.
    Mounts,
    /// Open files of a program.
    Descriptors(Program),
    /// Threads of a program.
    Threads(Program),
    /// Resident memory of a program, in MiB.
    Memory(Program),
}

impl Debris {
    /// So many objects are named.
    pub const EXAMPLES: usize = 3;

    /// Snapshots without an owner, as far as they were asked for.
    pub(crate) fn snapshot_count(&self) -> u64 {
        self.snapshots.get().map_or(0, |snapshots| snapshots.count)
    }

    /// Objects without an owner, of all kinds but containers.
    pub fn ownerless(&self) -> u64 {
        self.shim_count + self.sandboxes + self.namespaces + self.cgroups + self.snapshot_count()
    }
}

impl std::fmt::Display for Resource {
    fn fmt(&self, out: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let (what, program) = match self {
            Resource::Cgroups => return out.write_str("control groups"),
            Resource::Mounts => return out.write_str("mounts"),
            Resource::Descriptors(program) => ("open files", program),
            Resource::Threads(program) => ("threads", program),
            Resource::Memory(program) => ("MiB of memory", program),
        };
        let program = match program {
            Program::Kubelet => "the kubelet",
            Program::Crio => "CRI-O",
            _ => "containerd",
        };
        write!(out, "{what} of {program}")
    }
}
