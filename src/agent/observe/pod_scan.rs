//! What the pods use and may use: a walk over their cgroups, made while something runs short.

use std::time::{Duration, Instant};

use super::cgroups::{self, Kubepods, Pod};
use super::host_root::HostRoot;
use crate::facts::PodScan;

/// After this time the walk stops where it is.
const LONGEST: Duration = Duration::from_millis(500);
/// How many of the biggest are told.
const TOLD: usize = 3;
/// Of how many it is asked how much of their memory is a mere cache: that is the costly question.
const ASKED: usize = 8;

/// Walks over the cgroups below the kubelet's `cgroup_root`; none where there are no pods.
pub(super) fn look(host: &HostRoot, cgroup_root: &str) -> Option<PodScan> {
    let kubepods = Kubepods::find(host, "memory", cgroup_root)?;
    let tasks = if kubepods.unified { Some(kubepods.clone()) } else { Kubepods::find(host, "pids", cgroup_root) };
    let files = if kubepods.unified {
        ["memory.current", "memory.max", "inactive_file"]
    } else {
        ["memory.usage_in_bytes", "memory.limit_in_bytes", "total_inactive_file"]
    };
    let (mut scan, mut by_memory, mut by_tasks) = (PodScan::default(), Vec::new(), Vec::new());
    let began = Instant::now();
    for pod in kubepods.pods() {
        if began.elapsed() > LONGEST {
            break;
        }
        let Some(used) = cgroups::number(&pod.path, files[0]) else { continue };
        scan.pods += 1;
        scan.best_effort += u32::from(pod.best_effort);
        let limit = cgroups::number(&pod.path, files[1]);
        scan.limits = scan.limits.saturating_add(limit.unwrap_or(0));
        if limit.is_none() {
            scan.unlimited += 1;
            scan.unlimited_use = scan.unlimited_use.saturating_add(used);
        }
        let inside = pod.path.strip_prefix(&kubepods.path).ok();
        let path = tasks.as_ref().zip(inside).map(|(tasks, inside)| tasks.path.join(inside));
        let count = path.and_then(|path| cgroups::number(&path, "pids.current")).unwrap_or(0);
        by_memory.push((used, by_tasks.len()));
        by_tasks.push((pod, count));
    }
    by_memory.sort_unstable_by(|one, other| other.cmp(one));
    let working_set = |(used, at): (u64, usize)| {
        let stat = cgroups::read(&by_tasks[at].0.path, "memory.stat").unwrap_or_default();
        (used.saturating_sub(cgroups::keyed(&stat, files[2]).unwrap_or(0)), at)
    };
    let mut biggest: Vec<_> = by_memory.into_iter().take(ASKED).map(working_set).collect();
    biggest.sort_unstable_by(|one, other| other.cmp(one));
    scan.by_memory = biggest.into_iter().take(TOLD).map(|(bytes, at)| (by_tasks[at].0.told(), bytes)).collect();
    by_tasks.sort_by(|(_, one), (_, other)| other.cmp(one));
    scan.by_tasks = by_tasks.iter().take(TOLD).map(|(pod, count): &(Pod, u64)| (pod.told(), *count)).collect();
    Some(scan)
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
        let scan = look(&HostRoot::new(dir.path()), "/").expect("pods");
        assert_eq!(
            (scan.pods, scan.best_effort, scan.unlimited, scan.limits, scan.unlimited_use),
            (4, 1, 2, 6000, 7000)
        );
        let short = |list: &[(crate::facts::PodCgroup, u64)]| {
            list.iter().map(|(pod, number)| format!("{} {number} {:?}", pod.uid, pod.containers)).collect::<Vec<_>>()
        };
        let expected = ["b 3000 [\"c1\"]", "c 2000 [\"c1\"]", "d 1000 [\"c1\"]"];
        assert_eq!(short(&scan.by_memory), expected, "what is a cache is not in use");
        assert_eq!(short(&scan.by_tasks), ["b 9 [\"c1\"]", "a 7 [\"c1\"]", "d 2 [\"c1\"]"]);
        assert_eq!(look(&HostRoot::new(dir.path()), "/other"), None);
    }
}
