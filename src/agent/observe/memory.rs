//! Memory: what is left, what the kubelet counts as left, how long tasks wait for it, and who was killed for want of it.

use jiff::Timestamp;

use super::cgroups::{self, Kubepods};
use super::host_root::HostRoot;
use super::pressure;
use crate::clock::since_boot;
use crate::facts::{LookError, Memory, PodsMemory, Reason, Trend};
use crate::verdict::Now;

mod oom;

/// The file is some lines; in bytes.
const LIMIT: u64 = 64 << 10;
/// Of the pods' common limit: above this share, in percent, their working set is told from what they use.
const NEAR: u64 = 75;

/// Looks at memory, and remembers how it went.
#[derive(Debug)]
pub(crate) struct MemorySource {
    host: HostRoot,
    trend: Trend,
    kills: oom::OomSource,
}

impl MemorySource {
    /// Nothing is read yet.
    pub(crate) fn new(host: HostRoot) -> Self {
        MemorySource { kills: oom::OomSource::new(host.clone()), host, trend: Trend::default() }
    }

    /// Reads `/proc/meminfo`, `/proc/vmstat`, `/proc/pressure/memory` where the kernel has it, and the pods' cgroup below
    /// the kubelet's `cgroup_root` where there is one.
    pub(crate) fn look(&mut self, now: Timestamp, cgroup_root: &str) -> Result<Memory, LookError> {
        let path = "/proc/meminfo";
        let text = self.host.read_text(path, LIMIT)?;
        let malformed = |name| LookError::new(path, Reason::Malformed, format!("has no line {name}"));
        let needed = |name| bytes_of(&text, name).ok_or_else(|| malformed(name));
        let (total, free) = (needed("MemTotal")?, needed("MemFree")?);
        // Kernels before 3.14 have no estimate; free memory is its lower bound.
        let available = bytes_of(&text, "MemAvailable").unwrap_or(free);
        let kubelet_available = total.saturating_sub(working_set(&text));
        Ok(Memory {
            total,
            available,
            kubelet_available,
            stall: pressure::stall(&self.host, "memory").ok(),
            bytes_per_second: self.trend.push(now, kubelet_available),
            pods: self.pods(cgroup_root),
            kills: self
                .kills
                .look(Now { wall: now, since_boot: since_boot() }, available < total / 10, cgroup_root)
                .into(),
        })
    }

    fn pods(&self, cgroup_root: &str) -> Option<PodsMemory> {
        let Kubepods { path, unified } = Kubepods::find(&self.host, "memory", cgroup_root)?;
        let [limit, used, inactive] = if unified {
            ["memory.max", "memory.current", "inactive_file"]
        } else {
            ["memory.limit_in_bytes", "memory.usage_in_bytes", "total_inactive_file"]
        };
        let (limit, used) = (cgroups::number(&path, limit)?, cgroups::number(&path, used)?);
        // The kernel sums up all cgroups below for `memory.stat`, so it is only asked when it matters.
        let near = used / 100 >= limit / 10_000 * NEAR;
        let inactive = near.then(|| cgroups::keyed(&cgroups::read(&path, "memory.stat")?, inactive)).flatten();
        Some(PodsMemory { limit, working_set: used.saturating_sub(inactive.unwrap_or(0)) })
    }
}

/// The working set of the root cgroup. That cgroup's `anon` and `file` are the same counters of the kernel as these lines
/// (`NR_ANON_MAPPED`; `NR_FILE_PAGES`, which `/proc/meminfo` shows in three parts), and reading these costs less.
fn working_set(text: &str) -> u64 {
    let sum = ["AnonPages", "Cached", "Buffers", "SwapCached"].iter().filter_map(|name| bytes_of(text, name));
    sum.fold(0, u64::saturating_add).saturating_sub(bytes_of(text, "Inactive(file)").unwrap_or(0))
}

/// A line of `/proc/meminfo`, `NAME: NUMBER kB`, in bytes.
fn bytes_of(text: &str, name: &str) -> Option<u64> {
    let value = text.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix(':'))?;
    value.trim().strip_suffix("kB")?.trim_end().parse::<u64>().ok()?.checked_mul(1024)
}

/// The fuzz target's door.
#[cfg(any(test, fuzzing))]
pub(super) fn fuzz(text: &str) {
    let _ = (pressure::parse(text), bytes_of(text, "MemTotal"), working_set(text));
    oom::fuzz(text);
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::facts::Seen;

    fn source(meminfo: &str, pressure: Option<&str>) -> (tempfile::TempDir, MemorySource) {
        let dir = tempfile::tempdir().expect("a temporary directory");
        std::fs::create_dir_all(dir.path().join("proc/pressure")).expect("mkdir");
        std::fs::write(dir.path().join("proc/meminfo"), meminfo).expect("write");
        if let Some(text) = pressure {
            std::fs::write(dir.path().join("proc/pressure/memory"), text).expect("write");
        }
        let source = MemorySource::new(HostRoot::new(dir.path()));
        (dir, source)
    }

    /// This machine's file with the three values replaced.
    fn meminfo() -> String {
        let real = std::fs::read_to_string("/proc/meminfo").expect("every Linux has it");
        let known = [
            ("MemTotal", 1000),
            ("MemFree", 100),
            ("MemAvailable", 400),
            ("Inactive(file)", 50),
            ("AnonPages", 300),
            ("Cached", 200),
            ("Buffers", 100),
            ("SwapCached", 7),
        ];
        let line = |line: &str| {
            let name = line.split(':').next().unwrap_or_default();
            let value = known.iter().find(|(known, _)| *known == name);
            value.map_or_else(|| line.to_owned(), |(name, kib)| format!("{name}: {kib} kB"))
        };
        real.lines().map(line).collect::<Vec<_>>().join("\n")
    }

    #[test]
    fn counts_what_the_kubelet_counts() {
        let psi = "some avg10=9.00 avg60=0.00 avg300=0.00 total=5\nfull avg10=2.50 avg60=0.00 avg300=0.00 total=3\n";
        let (_dir, mut source) = source(&meminfo(), Some(psi));
        let memory = source.look(Timestamp::now(), "/").expect("readable");
        assert_eq!((memory.total, memory.available, memory.kubelet_available), (1000 << 10, 400 << 10, 443 << 10));
        assert_eq!((memory.stall.map(|stall| stall.full_avg10), memory.bytes_per_second), (Some(2.5), None));
        assert_eq!(memory.kills, Seen::Absent, "no /proc/vmstat");
    }

    #[test]
    fn no_psi_is_none() {
        let (_dir, mut source) = source(&meminfo(), None);
        assert_eq!(source.look(Timestamp::now(), "/").expect("readable").stall, None);
    }

    #[test]
    fn nonsense_is_malformed() {
        let (_dir, mut source) = source("what is this", None);
        assert_eq!(source.look(Timestamp::now(), "/").expect_err("no meminfo").reason, Reason::Malformed);
        for odd in
            ["MemTotal: 7 MB", "MemTotal: 99999999999999999999 kB", "MemTotal: 18446744073709551615 kB", "MemTotal"]
        {
            assert_eq!(bytes_of(odd, "MemTotal"), None, "{odd}");
        }
        assert_eq!(bytes_of("Active(anon\u{5ff}\nMemFree:\t7 kB\n", "MemFree"), Some(7 << 10));
    }

    #[test]
    fn reads_this_machine() {
        let memory = MemorySource::new(HostRoot::new("/")).look(Timestamp::now(), "/").expect("readable");
        assert!(memory.total >= memory.available && memory.kubelet_available > 0, "{memory:?}");
    }

    #[test]
    fn the_working_set_is_that_of_the_root_cgroup() {
        let (root, unified) = cgroups::hierarchy(&HostRoot::new("/"), "memory");
        // What the kubelet reads of the root cgroup, in either version.
        let kubelet = || {
            let stat = cgroups::read(&root, "memory.stat").expect("this machine has cgroups");
            let of = |key| cgroups::keyed(&stat, key).expect(key);
            if unified {
                of("anon") + of("file") - of("inactive_file")
            } else {
                cgroups::number(&root, "memory.usage_in_bytes").expect("usage") - of("total_inactive_file")
            }
        };
        // Others use memory meanwhile.
        let close = (0..100).any(|_| {
            let ours = working_set(&std::fs::read_to_string("/proc/meminfo").expect("every Linux has it"));
            ours.abs_diff(kubelet()) < 16 << 20
        });
        assert!(close, "the kubelet's {}", kubelet());
    }

    #[test]
    fn all_pods_have_a_common_limit_in_either_version() {
        let (dir, mut source) = source(&meminfo(), None);
        let cgroup = dir.path().join("sys/fs/cgroup/memory/x/kubepods");
        std::fs::create_dir_all(&cgroup).expect("mkdir");
        let write = |at: &std::path::Path, file: &str, text: &str| std::fs::write(at.join(file), text).expect("write");
        write(&cgroup, "memory.limit_in_bytes", "1000000\n");
        write(&cgroup, "memory.usage_in_bytes", "700000\n");
        write(&cgroup, "memory.stat", "inactive_file 1\ntotal_inactive_file 300000\n");
        let mut pods = |root: &str| source.look(Timestamp::now(), root).expect("readable").pods;
        assert_eq!(pods("/x"), Some(PodsMemory { limit: 1_000_000, working_set: 700_000 }), "far from the limit");
        write(&cgroup, "memory.usage_in_bytes", "900000\n");
        assert_eq!(pods("/x"), Some(PodsMemory { limit: 1_000_000, working_set: 600_000 }));
        write(&cgroup, "memory.limit_in_bytes", "9223372036854771712\n");
        assert_eq!((pods("/x"), pods("/")), (None, None));
        let cgroup = dir.path().join("sys/fs/cgroup/kubepods.slice");
        std::fs::create_dir_all(&cgroup).expect("mkdir");
        write(&dir.path().join("sys/fs/cgroup"), "cgroup.controllers", "memory pids\n");
        write(&cgroup, "memory.max", "1000000\n");
        write(&cgroup, "memory.current", "900000\n");
        write(&cgroup, "memory.stat", "inactive_file 200000\n");
        assert_eq!(pods("/"), Some(PodsMemory { limit: 1_000_000, working_set: 700_000 }));
    }
}
