//! What runs short beside memory and disks.

use serde::Serialize;

use super::{PodScan, Seen, Stall};

/// Waiting tasks, and tables of the kernel that fill.
#[derive(Debug, Clone, PartialEq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct Strain {
    /// How long tasks wait for disks.
    pub io: Seen<Stall>,
    /// How long tasks wait for a CPU.
    pub cpu: Seen<Stall>,
    /// The CPUs; looked at while tasks wait for them.
    pub cpus: Option<Cpus>,
    /// Tasks that wait for a disk at this moment; looked at while many do.
    pub blocked: Option<u64>,
    /// Processes and threads.
    pub tasks: Seen<Tasks>,
    /// Open files of the whole node.
    pub files: Seen<Files>,
    /// What is left to this program's user, who is that of the kubelet and of containerd.
    pub inotify: Seen<InotifyRoom>,
    /// What the pods use; absent while nothing runs short.
    pub pods: Seen<PodScan>,
    /// Processes with the largest tables of open files, and how many each has room for; empty while there are enough files.
    pub file_tables: Vec<(String, u64)>,
    /// Who holds inotify instances and watches; none while there is room for more.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub inotify_users: Option<InotifyUsers>,
}

/// The CPUs of `/proc/stat`.
#[derive(Debug, Clone, Copy, PartialEq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct Cpus {
    /// Those that are online.
    pub count: u64,
    /// The share of their time since the look before in which they had nothing to do, in percent; none at the first look.
    pub idle: Option<f64>,
}

/// Processes and threads, each of which needs a process id.
#[derive(Debug, Clone, Copy, PartialEq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct Tasks {
    /// Those that exist.
    pub count: u64,
    /// The smaller one of `kernel.pid_max` and `kernel.threads-max`, as the kubelet counts it.
    pub limit: u64,
    /// Those that come to exist per second, over the last minutes; none before there is a trend.
    pub per_second: Option<f64>,
    /// All pods together and their common limit, where they have one.
    pub pods: Option<(u64, u64)>,
}

/// `fs.file-nr`.
#[derive(Debug, Clone, Copy, PartialEq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct Files {
    /// Open files.
    pub allocated: u64,
    /// `fs.file-max`.
    pub limit: u64,
    /// Those that are opened and stay so per second, over the last minutes; none before there is a trend.
    pub per_second: Option<f64>,
}

/// Whether watches of files can still be made. The kernel counts them for each user and tells nobody the count.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct InotifyRoom {
    /// How many instances could be made, of those that were tried.
    pub instances: u32,
    /// How many were tried: [`InotifyRoom::TRIED`], or fewer where the limit is lower.
    pub tried: u32,
    /// `fs.inotify.max_user_instances`.
    pub limit: u64,
    /// Whether a watch could be added; none when there was no instance to add it to.
    pub watch: Option<bool>,
    /// `fs.inotify.max_user_watches`.
    pub watches: u64,
}

/// Processes of this program's user with most inotify instances and watches, and how many each has.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct InotifyUsers {
    /// By instances, most first.
    pub instances: Vec<(String, u64)>,
    /// By watches, most first.
    pub watches: Vec<(String, u64)>,
    /// How many processes of that user may not be looked into: who has more capabilities than this program is one.
    pub hidden: u64,
}

impl InotifyRoom {
    /// So many instances are made for a moment.
    pub const TRIED: u32 = 8;

    /// Whether fewer instances could be made than were tried, or no watch.
    pub fn is_short(&self) -> bool {
        self.instances < self.tried || self.watch == Some(false)
    }
}

/// Of the time, in percent: so long some task waits for a CPU where there are too few,
const WAITS: f64 = 60.0;
/// and no longer than this a CPU is idle then. A pod at its own limit waits beside idle ones.
const IDLE: f64 = 5.0;

impl Strain {
    /// How long tasks wait for a CPU, and the CPUs, where there are too few of them for what runs (own numbers).
    pub fn short_of_cpus(&self) -> Option<(Stall, Cpus)> {
        let (stall, cpus) = (*self.cpu.get()?, self.cpus?);
        let waits = stall.some_avg10 >= WAITS && stall.some_avg60 >= WAITS;
        (waits && cpus.idle? <= IDLE).then_some((stall, cpus))
    }

    /// Nothing was looked at yet.
    pub fn not_yet() -> Self {
        Strain {
            io: Seen::not_yet("/proc/pressure/io"),
            cpu: Seen::not_yet("/proc/pressure/cpu"),
            cpus: None,
            blocked: None,
            tasks: Seen::not_yet("/proc/loadavg"),
            files: Seen::not_yet("/proc/sys/fs/file-nr"),
            inotify: Seen::not_yet("inotify"),
            pods: Seen::not_yet("cgroups of pods"),
            file_tables: Vec::new(),
            inotify_users: None,
        }
    }
}
