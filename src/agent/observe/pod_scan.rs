//! What the pods use and may use: a walk over their cgroups, made while something runs short.

use std::path::Path;
use std::time::{Duration, Instant};

use super::cgroups::{self, Kubepods, Pod};
use super::host_root::HostRoot;
use crate::facts::{PodCgroup, PodScan};

/// After this time the walk stops where it is.
const LONGEST: Duration = Duration::from_millis(500);
/// How many of the biggest are told.
const TOLD: usize = 3;
/// Of how many it is asked how much of their memory is a mere cache: that is the costly question.
const ASKED: usize = 8;
/// What is read and written is the difference between two looks that are this far apart.
const APART: Duration = Duration::from_millis(500);

/// What is asked beside memory and tasks, which takes half a second longer.
#[derive(Debug, Clone, Copy, Default)]
pub(super) struct Wanted {
    /// Who uses the disks.
    pub(super) disks: bool,
    /// Who uses the CPUs, and may.
    pub(super) cpus: bool,
}

/// Walks over the cgroups below the kubelet's `cgroup_root`; none where there are no pods.
pub(super) fn look(host: &HostRoot, cgroup_root: &str, wanted: Wanted) -> Option<PodScan> {
    look_twice(host, cgroup_root, wanted, || std::thread::sleep(APART))
}

/// `pause` passes between the two looks at what grows.
fn look_twice(host: &HostRoot, cgroup_root: &str, wanted: Wanted, pause: impl FnOnce()) -> Option<PodScan> {
    let kubepods = Kubepods::find(host, "memory", cgroup_root)?;
    let tasks = if kubepods.unified { Some(kubepods.clone()) } else { Kubepods::find(host, "pids", cgroup_root) };
    let files = if kubepods.unified {
        ["memory.current", "memory.max", "inactive_file"]
    } else {
        ["memory.usage_in_bytes", "memory.limit_in_bytes", "total_inactive_file"]
    };
    let (mut scan, mut by_memory, mut by_tasks) = (PodScan::default(), Vec::new(), Vec::new());
    let began = Instant::now();
    let without_cache = |path: &Path, used: u64| {
        let stat = cgroups::read(path, "memory.stat").unwrap_or_default();
        used.saturating_sub(cgroups::keyed(&stat, files[2]).unwrap_or(0))
    };
    for pod in kubepods.pods() {
        if began.elapsed() > LONGEST {
            break;
        }
        let Some(used) = cgroups::number(&pod.path, files[0]) else { continue };
        let inside = pod.path.strip_prefix(&kubepods.path).ok();
        let path = tasks.as_ref().zip(inside).map(|(tasks, inside)| tasks.path.join(inside));
        let count = path.and_then(|path| cgroups::number(&path, "pids.current")).unwrap_or(0);
        let fixed = pod.is_static();
        by_memory.push((used, by_tasks.len()));
        let best_effort = pod.best_effort;
        let limit = cgroups::number(&pod.path, files[1]);
        let counted = if fixed || limit.is_none() { without_cache(&pod.path, used) } else { 0 };
        by_tasks.push((pod, count));
        if fixed {
            scan.fixed += 1;
            scan.fixed_use = scan.fixed_use.saturating_add(counted);
            continue;
        }
        scan.pods += 1;
        scan.best_effort += u32::from(best_effort);
        scan.limits = scan.limits.saturating_add(limit.unwrap_or(0));
        if limit.is_none() {
            scan.unlimited += 1;
            scan.unlimited_use = scan.unlimited_use.saturating_add(counted);
        }
    }
    by_memory.sort_unstable_by(|one, other| other.cmp(one));
    let working_set = |(used, at): (u64, usize)| (without_cache(&by_tasks[at].0.path, used), at);
    let mut biggest: Vec<_> = by_memory.into_iter().take(ASKED).map(working_set).collect();
    biggest.sort_unstable_by(|one, other| other.cmp(one));
    scan.by_memory = biggest.into_iter().take(TOLD).map(|(bytes, at)| (by_tasks[at].0.told(), bytes)).collect();
    by_tasks.sort_unstable_by(|(_, one), (_, other)| other.cmp(one));
    scan.by_tasks = by_tasks.iter().take(TOLD).map(|(pod, count): &(Pod, u64)| (pod.told(), *count)).collect();
    let of = |controller: &str| {
        if kubepods.unified { Some(kubepods.clone()) } else { Kubepods::find(host, controller, cgroup_root) }
    };
    add_rates(&mut scan, wanted, of, pause);
    Some(scan)
}

/// What is used in a second, where that is asked; `of` finds the hierarchy of a controller.
fn add_rates(scan: &mut PodScan, wanted: Wanted, of: impl Fn(&str) -> Option<Kubepods>, pause: impl FnOnce()) {
    let disks = wanted.disks.then(|| of("blkio")).flatten();
    let cpus = wanted.cpus.then(|| of("cpuacct")).flatten();
    let disks = disks.map(|disks| Counts::read(&disks, if disks.unified { moved } else { moved_v1 }));
    let cpus = cpus.map(|cpus| (Counts::read(&cpus, if cpus.unified { worked } else { worked_v1 }), cpus.path));
    if disks.is_none() && cpus.is_none() {
        return;
    }
    pause();
    if let Some(disks) = disks {
        scan.by_io = told(&disks.rates());
    }
    if let Some((cpus, path)) = cpus {
        let mut rates = cpus.rates();
        for (rate, _) in &mut rates {
            *rate /= 1000;
        }
        scan.by_cpu = told(&rates);
        let limits = of("cpu").map_or_else(|| path.clone(), |it| it.path);
        cpu_limits(scan, &rates, (&path, &limits));
    }
}

/// Adds up what pods may use of the CPUs, and what those do that may use all. Their cgroups are below `from`, their limits
/// below `to`.
fn cpu_limits(scan: &mut PodScan, rates: &[(u64, Pod)], (from, to): (&Path, &Path)) {
    for (rate, pod) in rates.iter().filter(|(_, pod)| !pod.is_static()) {
        let limit = pod.path.strip_prefix(from).ok().and_then(|inside| cpu_limit(&to.join(inside)));
        scan.cpu_limits = scan.cpu_limits.saturating_add(limit.unwrap_or(0));
        if limit.is_none() {
            scan.cpu_unlimited += 1;
            scan.cpu_unlimited_use = scan.cpu_unlimited_use.saturating_add(*rate);
        }
    }
}

/// In thousandths of a CPU: `cpu.max` of cgroup v2, `QUOTA PERIOD` or `max PERIOD`, or the two files of cgroup v1.
fn cpu_limit(cgroup: &Path) -> Option<u64> {
    let (quota, period) = match cgroups::read(cgroup, "cpu.max") {
        Some(text) => {
            let (quota, period) = text.trim().split_once(' ')?;
            (quota.parse().ok()?, period.parse().ok()?)
        }
        None => (cgroups::number(cgroup, "cpu.cfs_quota_us")?, cgroups::number(cgroup, "cpu.cfs_period_us")?),
    };
    u64::saturating_mul(quota, 1000).checked_div(period)
}

/// A count of each pod, and when it was read.
struct Counts {
    before: Vec<(u64, Instant, Pod)>,
    read: fn(&Path) -> Option<u64>,
}

impl Counts {
    fn read(kubepods: &Kubepods, read: fn(&Path) -> Option<u64>) -> Self {
        let pods = kubepods.pods().into_iter();
        Self { before: pods.filter_map(|pod| Some((read(&pod.path)?, Instant::now(), pod))).collect(), read }
    }

    /// Each pod with how much its count has grown in a second, the most first.
    fn rates(self) -> Vec<(u64, Pod)> {
        let mut rates = Vec::with_capacity(self.before.len());
        for (count, at, pod) in self.before {
            let grown = (self.read)(&pod.path).map_or(0, |now| now.saturating_sub(count));
            let milliseconds = u64::try_from(at.elapsed().as_millis()).unwrap_or(u64::MAX);
            rates.push((grown.saturating_mul(1000) / milliseconds.max(1), pod));
        }
        rates.sort_unstable_by_key(|(rate, _)| std::cmp::Reverse(*rate));
        rates
    }
}

fn told(rates: &[(u64, Pod)]) -> Vec<(PodCgroup, u64)> {
    rates.iter().filter(|(rate, _)| *rate > 0).take(TOLD).map(|(rate, pod)| (pod.told(), *rate)).collect()
}

/// The time that a cgroup's tasks have run, in microseconds.
fn worked(cgroup: &Path) -> Option<u64> {
    cgroups::keyed(&cgroups::read(cgroup, "cpu.stat")?, "usage_usec")
}

/// The same of cgroup v1, which counts nanoseconds.
fn worked_v1(cgroup: &Path) -> Option<u64> {
    Some(cgroups::number(cgroup, "cpuacct.usage")? / 1000)
}

/// `8:0 rbytes=1 wbytes=2 rios=3 ...` for each disk: the busiest, since a device mapper's bytes count again below it.
fn moved(cgroup: &Path) -> Option<u64> {
    let text = cgroups::read(cgroup, "io.stat")?;
    let bytes = |word: &str| -> Option<u64> {
        word.strip_prefix("rbytes=").or_else(|| word.strip_prefix("wbytes="))?.parse().ok()
    };
    let disk = |line: &str| line.split(' ').filter_map(bytes).fold(0, u64::saturating_add);
    Some(text.lines().map(disk).max().unwrap_or(0))
}

/// `Total 123` in the end. What the plain file counts leaves out the cgroups below, and a pod's own has no tasks; older kernels have
/// only that.
fn moved_v1(cgroup: &Path) -> Option<u64> {
    let files = ["blkio.throttle.io_service_bytes_recursive", "blkio.throttle.io_service_bytes"];
    cgroups::keyed(&files.into_iter().find_map(|file| cgroups::read(cgroup, file))?, "Total")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_biggest_are_told_and_the_limits_summed_up() {
        let dir = tempfile::tempdir().expect("a temporary directory");
        let pods = [
            ("burstable/poda", "5000", "max", "4500", "7"),
            ("podb", "3000", "4000", "0", "9"),
            ("besteffort/podc", "2000", "max", "0", "1"),
            ("podd", "1000", "2000", "0", "2"),
        ];
        let base = dir.path().join("sys/fs/cgroup");
        for (path, used, limit, inactive, tasks) in pods {
            let path = base.join("kubepods").join(path);
            std::fs::create_dir_all(path.join("c1")).expect("mkdir");
            let write = |file: &str, text: &str| std::fs::write(path.join(file), text).expect("write");
            write("memory.current", used);
            write("memory.max", limit);
            write("memory.stat", &format!("anon 1\ninactive_file {inactive}\n"));
            write("pids.current", tasks);
        }
        std::fs::write(base.join("cgroup.controllers"), "memory pids\n").expect("write");
        let scan = look(&HostRoot::new(dir.path()), "/", Wanted::default()).expect("pods");
        assert_eq!(
            (scan.pods, scan.best_effort, scan.unlimited, scan.limits, scan.unlimited_use),
            (4, 1, 2, 6000, 2500),
            "what is a cache is not in use"
        );
        let short = |list: &[(crate::facts::PodCgroup, u64)]| {
            list.iter().map(|(pod, number)| format!("{} {number} {:?}", pod.uid, pod.containers)).collect::<Vec<_>>()
        };
        let expected = ["b 3000 [\"c1\"]", "c 2000 [\"c1\"]", "d 1000 [\"c1\"]"];
        assert_eq!(short(&scan.by_memory), expected, "what is a cache is not in use");
        assert_eq!(short(&scan.by_tasks), ["b 9 [\"c1\"]", "a 7 [\"c1\"]", "d 2 [\"c1\"]"]);
        assert_eq!(look(&HostRoot::new(dir.path()), "/other", Wanted::default()), None);
    }

    #[test]
    fn cpus_that_pods_may_use_and_static_pods_left_out() {
        let hash = "0123456789abcdef0123456789abcdef";
        for unified in [true, false] {
            let dir = tempfile::tempdir().expect("a temporary directory");
            let base = dir.path().join("sys/fs/cgroup");
            let file = |controller: &str, pod: &str, file: &str, text: &str| {
                let controller = if unified { "" } else { controller };
                let path = base.join(controller).join("kubepods").join(pod).join(file);
                std::fs::create_dir_all(path.parent().expect("a directory")).expect("mkdir");
                std::fs::write(path, text).expect("write");
            };
            let usage = |pod: &str, milliseconds: u64| {
                if unified {
                    file("", pod, "cpu.stat", &format!("usage_usec {}\nuser_usec 1\n", milliseconds * 1000));
                } else {
                    file("cpuacct", pod, "cpuacct.usage", &format!("{}", milliseconds * 1_000_000));
                }
            };
            if unified {
                std::fs::create_dir_all(&base).expect("mkdir");
                std::fs::write(base.join("cgroup.controllers"), "cpu memory\n").expect("write");
            }
            let fixed = format!("pod{hash}");
            for (pod, quota) in [("burstable/poda", 250_000), ("podb", 0), (fixed.as_str(), 900_000)] {
                let memory = if unified { "memory.current" } else { "memory.usage_in_bytes" };
                file("memory", pod, memory, "1000");
                usage(pod, 7);
                match (unified, quota) {
                    (true, 0) => file("", pod, "cpu.max", "max 100000\n"),
                    (true, quota) => file("", pod, "cpu.max", &format!("{quota} 100000\n")),
                    (false, quota) => {
                        let quota = if quota == 0 { "-1".to_owned() } else { quota.to_string() };
                        file("cpu", pod, "cpu.cfs_quota_us", &quota);
                        file("cpu", pod, "cpu.cfs_period_us", "100000");
                    }
                }
            }
            let wanted = Wanted { disks: false, cpus: true };
            let pause = || {
                std::thread::sleep(APART);
                usage("podb", 7 + 900);
            };
            let scan = look_twice(&HostRoot::new(dir.path()), "/", wanted, pause).expect("pods");
            assert_eq!((scan.pods, scan.fixed, scan.fixed_use, scan.unlimited_use), (2, 1, 1000, 2000), "{unified}");
            assert_eq!((scan.cpu_limits, scan.cpu_unlimited), (2500, 1), "{unified}");
            // 900 ms of work in half a second or, on a machine that has something else to do, in more.
            assert!((10..=1800).contains(&scan.cpu_unlimited_use), "{scan:?}");
            assert_eq!(scan.by_cpu.iter().map(|(pod, _)| pod.uid.as_str()).collect::<Vec<_>>(), ["b"]);
        }
    }

    #[test]
    fn who_reads_and_writes_is_told_by_what_grows() {
        let dir = tempfile::tempdir().expect("a temporary directory");
        let base = dir.path().join("sys/fs/cgroup");
        let stat = |pod: &str| base.join(format!("kubepods/{pod}/io.stat"));
        let line = |read: u64, wrote: u64| {
            format!("253:0 rbytes={read} wbytes={wrote} rios=1 wios=1 dbytes=9 dios=0\n8:0 rbytes=1 wbytes=1\n")
        };
        for (pod, wrote) in [("poda", 5_000_000), ("podb", 1000), ("podc", 1000)] {
            std::fs::create_dir_all(stat(pod).parent().expect("a directory")).expect("mkdir");
            std::fs::write(stat(pod).with_file_name("memory.current"), "1").expect("write");
            std::fs::write(stat(pod), line(7, wrote)).expect("write");
        }
        std::fs::create_dir_all(base.join("kubepods/podd")).expect("mkdir");
        std::fs::write(base.join("cgroup.controllers"), "memory io\n").expect("write");
        let pause = || {
            std::thread::sleep(APART);
            for (pod, read, wrote) in [("podb", 7, 3_000_000), ("podc", 900_000, 1000)] {
                std::fs::write(stat(pod), line(read, wrote)).expect("write");
            }
        };
        let wanted = Wanted { disks: true, cpus: false };
        let scan = look_twice(&HostRoot::new(dir.path()), "/", wanted, pause).expect("pods");
        assert_eq!(scan.by_io.iter().map(|(pod, _)| pod.uid.as_str()).collect::<Vec<_>>(), ["b", "c"]);
        std::fs::write(base.join("v1"), "").expect("write");
        std::fs::write(base.join("blkio.throttle.io_service_bytes"), "8:0 Read 5\n8:0 Total 12\nTotal 12\n")
            .expect("write");
        assert_eq!(moved_v1(&base), Some(12));
        std::fs::write(base.join("blkio.throttle.io_service_bytes_recursive"), "8:0 Read 5\n8:0 Total 40\nTotal 40\n")
            .expect("write");
        assert_eq!(moved_v1(&base), Some(40), "with that of the containers");
    }
}
