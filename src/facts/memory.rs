//! Memory, who uses it, and who was killed for want of it.

use jiff::Timestamp;
use serde::Serialize;

use super::Seen;

/// `/proc/meminfo`, pressure stall information and the cgroup of all pods, in bytes.
#[derive(Debug, Clone, PartialEq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct Memory {
    /// `MemTotal`.
    pub total: u64,
    /// `MemAvailable`: the kernel's estimate of what can be had without swapping.
    pub available: u64,
    /// What the kubelet compares with `memory.available`: the total without the working set of the root cgroup, which is
    /// its anonymous memory and its files without the inactive ones. It is the same in cgroup v1 and v2
    /// (`rootStatsFromMeminfo` of opencontainers/cgroups, `setMemoryStats` of cAdvisor).
    pub kubelet_available: u64,
    /// How long tasks wait for memory; none where the kernel has no PSI.
    pub stall: Option<Stall>,
    /// Bytes of [`Memory::kubelet_available`] lost per second over the last minutes; none before there is a trend.
    pub bytes_per_second: Option<f64>,
    /// All pods together against their limit; none where they have none.
    pub pods: Option<PodsMemory>,
    /// Processes that the kernel killed for want of memory, in the last [`OomKill::MINUTES`].
    pub kills: Seen<Vec<OomKill>>,
}

/// Pressure stall information: how long tasks waited, in percent of the time.
#[derive(Debug, Clone, Copy, Default, PartialEq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct Stall {
    /// At least one task, over the last 10 s.
    pub some_avg10: f64,
    /// At least one task, over the last minute.
    pub some_avg60: f64,
    /// All tasks that had something to do, over the last 10 s.
    pub full_avg10: f64,
    /// All tasks that had something to do, over the last minute.
    pub full_avg60: f64,
}

/// Memory of the cgroup that holds all pods.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct PodsMemory {
    /// Its limit: what the node has, without what is reserved for others.
    pub limit: u64,
    /// Its working set; where it is far from the limit, all that it uses.
    pub working_set: u64,
}

/// Processes that the kernel killed for one cause.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct OomKill {
    /// Whose memory had run out.
    pub scope: OomScope,
    /// The pod that the processes belonged to, when that is known.
    pub pod: Option<PodCgroup>,
    /// How many processes, within the time that is remembered.
    pub processes: u64,
    /// When the last was seen.
    pub last: Timestamp,
}

impl OomKill {
    /// Kills are told for so long, in minutes.
    pub const MINUTES: i64 = 10;
}

/// Whose memory had run out.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Serialize)]
#[serde(rename_all = "camelCase")]
pub enum OomScope {
    /// The node's.
    Node,
    /// That of all pods together, below what is reserved for the rest of the node.
    AllPods,
    /// That of a pod or one of its containers, by its own limit. Which pod it was is not known when its cgroup has gone.
    Pod,
    /// That of a service of the node, by its own limit.
    Service(String),
    /// Somebody's limit, perhaps a container's: its cgroup was gone before it was looked at.
    Gone,
    /// That of a cgroup beside the pods and the services.
    Elsewhere,
}

/// A pod as its cgroup tells it.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct PodCgroup {
    /// `metadata.uid`; of a static pod a hash.
    pub uid: String,
    /// Its containers and its sandbox, by their cgroups.
    pub containers: Vec<String>,
}

/// What the pods use and may use, by their cgroups. It is looked at while something runs short.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct PodScan {
    /// How many there are, static ones left out.
    pub pods: u32,
    /// Those without any request or limit.
    pub best_effort: u32,
    /// Those without a limit of memory, the former among them.
    pub unlimited: u32,
    /// What those use, in bytes.
    pub unlimited_use: u64,
    /// The limits of the others, summed up; in bytes.
    pub limits: u64,
    /// Static pods: nobody scheduled them, and nobody can lower what they need.
    pub fixed: u32,
    /// What those use, in bytes.
    pub fixed_use: u64,
    /// The limits of CPU time of those that have one, summed up; in thousandths of a CPU, as all that follow. This and the next
    /// are looked at while CPUs are short.
    pub cpu_limits: u64,
    /// Those without such a limit.
    pub cpu_unlimited: u32,
    /// What those use.
    pub cpu_unlimited_use: u64,
    /// Those that use most CPU time.
    pub by_cpu: Vec<(PodCgroup, u64)>,
    /// Those with the largest working sets, in bytes.
    pub by_memory: Vec<(PodCgroup, u64)>,
    /// Those with the most tasks.
    pub by_tasks: Vec<(PodCgroup, u64)>,
    /// Those that read from disks and write to them most, in bytes a second; looked at while tasks wait for disks, where the
    /// pods' cgroups have a count.
    pub by_io: Vec<(PodCgroup, u64)>,
}
