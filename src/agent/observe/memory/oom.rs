//! Processes that the kernel killed for want of memory, by its counters.
//!
//! `/proc/vmstat` counts them all. Only when that has moved are the cgroups asked whose they were, and whose memory had run
//! out: a cgroup that met its limit says so, and where the whole node was short its allocations had to wait for memory.

use std::collections::HashMap;
use std::path::{Path, PathBuf};
use std::time::Duration;

use super::super::cgroups::{self, Kubepods};
use super::super::host_root::HostRoot;
use crate::facts::{LookError, OomKill, OomScope, PodCgroup, Reason};
use crate::verdict::Now;

const VMSTAT: &str = "/proc/vmstat";
/// Some kilobytes; in bytes.
const LIMIT: u64 = 256 << 10;
/// Causes that are told apart; a node on which more pods are killed has one cause.
const MOST: usize = 16;
/// Kills are told for so long.
const LONGEST: Duration = Duration::from_secs(60 * OomKill::MINUTES.unsigned_abs());
/// A node that was short of memory was so this many looks ago at most.
const LATELY: u8 = 3;

/// Counts, and remembers what it counted.
#[derive(Debug)]
pub(super) struct OomSource {
    host: HostRoot,
    before: Option<Counts>,
    /// Of each cgroup in which something was ever killed.
    marks: HashMap<PathBuf, Marks>,
    /// For so many looks yet memory was short lately.
    short: u8,
    /// With the time since the kernel started at the last of each: a clock that is set ages none of them.
    kills: Vec<(Duration, OomKill)>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Counts {
    /// `oom_kill`, since Linux 4.13.
    kills: u64,
    /// `allocstall_*`: allocations that had to free memory of the whole node first.
    stalls: u64,
}

/// Counters of one cgroup.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
struct Marks {
    /// Processes killed in it, for whatever cause.
    killed: u64,
    /// How often it was at its own limit.
    limited: u64,
}

impl OomSource {
    pub(super) fn new(host: HostRoot) -> Self {
        OomSource { host, before: None, marks: HashMap::new(), short: 0, kills: Vec::new() }
    }

    /// The kills of the last minutes. Those before the first look are not known. `short` is whether the node has little
    /// memory now.
    pub(super) fn look(&mut self, now: Now, short: bool, root: &str) -> Result<Vec<OomKill>, LookError> {
        let counts = parse(&self.host.read_text(VMSTAT, LIMIT)?)
            .ok_or_else(|| LookError::new(VMSTAT, Reason::Unsupported, "this kernel does not count oom_kill"))?;
        self.short = if short { LATELY } else { self.short.saturating_sub(1) };
        match self.before.replace(counts) {
            None => _ = self.scan(root),
            Some(before) if counts.kills > before.kills => self.add(counts, before, root, now),
            Some(_) => {}
        }
        self.kills.retain(|(last, _)| now.since_boot.saturating_sub(*last) < LONGEST);
        Ok(self.kills.iter().map(|(_, kill)| kill.clone()).collect())
    }

    fn add(&mut self, counts: Counts, before: Counts, root: &str, now: Now) {
        let found = self.scan(root);
        let known: u64 = found.iter().map(|(_, _, processes)| processes).sum();
        let rest = (counts.kills - before.kills).saturating_sub(known);
        let pods = Kubepods::find(&self.host, "memory", root);
        let scope = match pods {
            _ if counts.stalls > before.stalls && self.short > 0 => OomScope::Node,
            // cgroup v1 counts in a container's cgroup, which goes when its first process does.
            Some(Kubepods { unified: false, .. }) => OomScope::Gone,
            _ => OomScope::Elsewhere,
        };
        for (scope, pod, processes) in found.into_iter().chain([(scope, None, rest)]) {
            if processes > 0 {
                self.merge(now.since_boot, OomKill { scope, pod, processes, last: now.wall });
            }
        }
    }

    fn merge(&mut self, at: Duration, kill: OomKill) {
        match self.kills.iter_mut().find(|(_, old)| key(old) == key(&kill)) {
            Some((last, old)) => (*last, *old) = (at, OomKill { processes: old.processes + kill.processes, ..kill }),
            None => self.kills.push((at, kill)),
        }
        self.kills.sort_unstable_by(|(_, one), (_, other)| key(one).cmp(&key(other)));
        self.kills.truncate(MOST);
    }

    /// Whose processes were killed since the last scan.
    fn scan(&mut self, root: &str) -> Vec<(OomScope, Option<PodCgroup>, u64)> {
        let before = std::mem::take(&mut self.marks);
        let mut found = Vec::new();
        let (base, unified) = cgroups::hierarchy(&self.host, "memory");
        let mut grown = |path: &Path, local: &str| {
            let (key, now) = (path.join(local), marks(path, unified, local));
            let was = before.get(&key).copied().unwrap_or_default();
            if now != Marks::default() {
                self.marks.insert(key, now);
            }
            Marks { killed: now.killed.saturating_sub(was.killed), limited: now.limited.saturating_sub(was.limited) }
        };
        for (name, path) in services(&base) {
            match grown(&path, "") {
                Marks { killed: 0, .. } => {}
                Marks { killed, limited: 0 } => found.push((OomScope::Node, None, killed)),
                Marks { killed, .. } => found.push((OomScope::Service(name), None, killed)),
            }
        }
        let Some(kubepods) = Kubepods::find(&self.host, "memory", root) else { return found };
        let (mut pods, mut sum) = (Vec::new(), Marks::default());
        for pod in kubepods.pods() {
            let mut growth = grown(&pod.path, "");
            // v2 counts what happened below too, and goes on doing so when the container has gone.
            for (_, container) in if unified { Vec::new() } else { pod.containers() } {
                growth = growth.and(grown(&container, ""));
            }
            sum = sum.and(growth);
            if growth.killed > 0 {
                pods.push((growth, pod.told()));
            }
        }
        let own = grown(&kubepods.path, ".local");
        let all = if own.limited > 0 { OomScope::AllPods } else { OomScope::Node };
        // Of v2 too: pods that have gone since, as that of a job does when it ends.
        let below = grown(&kubepods.path, "");
        let gone = if below.limited > sum.and(own).limited { OomScope::Pod } else { all.clone() };
        found.extend(pods.into_iter().map(|(growth, pod)| {
            let scope = if growth.limited > 0 { OomScope::Pod } else { all.clone() };
            (scope, Some(pod), growth.killed)
        }));
        found.push((gone, None, below.killed.saturating_sub(sum.killed)));
        found
    }
}

impl Marks {
    /// Both together.
    fn and(self, more: Marks) -> Marks {
        Marks { killed: self.killed + more.killed, limited: self.limited + more.limited }
    }
}

/// What makes two kills one cause; the node's own come first.
fn key(kill: &OomKill) -> (&OomScope, Option<&str>) {
    (&kill.scope, kill.pod.as_ref().map(|pod| pod.uid.as_str()))
}

fn marks(path: &Path, unified: bool, local: &str) -> Marks {
    if unified {
        let events = cgroups::read(path, &format!("memory.events{local}")).unwrap_or_default();
        let count = |key| cgroups::keyed(&events, key).unwrap_or(0);
        Marks { killed: count("oom_kill"), limited: count("oom") }
    } else {
        let control = cgroups::read(path, "memory.oom_control").unwrap_or_default();
        let killed = cgroups::keyed(&control, "oom_kill").unwrap_or(0);
        Marks { killed, limited: cgroups::number(path, "memory.failcnt").unwrap_or(0) }
    }
}

/// The node's services by systemd: `system.slice/NAME.service`.
fn services(base: &Path) -> impl Iterator<Item = (String, PathBuf)> {
    let entries = std::fs::read_dir(base.join("system.slice")).into_iter().flatten().flatten();
    let named = entries.filter_map(|entry| Some((entry.file_name().into_string().ok()?, entry.path())));
    named.filter(|(name, _)| name.ends_with(".service"))
}

fn parse(vmstat: &str) -> Option<Counts> {
    let stalls = vmstat.lines().filter(|line| line.starts_with("allocstall"));
    let stalls = stalls.filter_map(|line| line.split_once(' ')?.1.trim().parse::<u64>().ok());
    Some(Counts { kills: cgroups::keyed(vmstat, "oom_kill")?, stalls: stalls.fold(0, u64::saturating_add) })
}

/// The fuzz target's door.
#[cfg(any(test, fuzzing))]
pub(super) fn fuzz(text: &str) {
    let _ = parse(text);
}

#[cfg(test)]
mod tests;
