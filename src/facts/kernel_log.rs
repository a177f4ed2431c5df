//! What the kernel has said of itself and of the machine, as far as it still matters.

use jiff::Timestamp;
use serde::Serialize;

/// The kernel's log, boiled down to what is wrong.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct KernelLog {
    /// What it reports, by fault and subject; what is over is not among them.
    pub events: Vec<KernelEvent>,
    /// Lines that the kernel overwrote before they were read, rounded down to a power of ten.
    pub lost: u64,
}

/// A fault that the kernel reported, once or again and again.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct KernelEvent {
    /// The sort of fault.
    pub fault: KernelFault,
    /// A device, a process, a CPU; empty where the line names none.
    pub subject: String,
    /// When it was reported first.
    pub first_at: Timestamp,
    /// How often, rounded down to a power of ten, so that it is not news each time.
    pub times: u64,
    /// The first line that reports it, at most 200 bytes.
    pub line: String,
}

/// The sorts of faults that the kernel reports.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize)]
#[serde(rename_all = "camelCase")]
pub enum KernelFault {
    /// A file system found an error in its own structures, or could not write them.
    FilesystemError,
    /// A file system warns.
    FilesystemWarning,
    /// XFS has shut a file system down: all access fails, although its mount still says `rw`.
    FilesystemShutdown,
    /// ext4 has remounted a file system read-only.
    FilesystemReadOnly,
    /// A file system replayed its journal when it was mounted: it had not been unmounted.
    JournalReplayed,
    /// A disk could not read or write.
    DiskError,
    /// The hardware corrected an error of memory, cache or bus.
    HardwareCorrected,
    /// The hardware could not correct one.
    HardwareUncorrected,
    /// One from which the hardware says that nothing can recover.
    HardwareFatal,
    /// The kernel itself did something impossible and killed the process that it did it for.
    Oops,
    /// A CPU was stuck in the kernel.
    Lockup,
    /// A process waits in the kernel for longer than two minutes; the subject ends with `:PID`.
    TaskHung,
    /// A network device cannot be deleted, because something in the kernel holds on to it.
    NetDeviceStuck,
    /// The connection tracking table of a network namespace had no room; the subject is the namespace's number, or empty: of the first
    /// one, and on older kernels of any.
    ConntrackFull,
    /// The kernel was out of memory and killed a process; the subject is its name.
    OutOfMemory,
    /// A cgroup reached its memory limit, and a process in it was killed; the subject is its name.
    CgroupOutOfMemory,
}

impl KernelLog {
    /// The events of some sorts.
    pub fn of(&self, faults: &'static [KernelFault]) -> impl Iterator<Item = &KernelEvent> {
        self.events.iter().filter(|event| faults.contains(&event.fault))
    }
}
