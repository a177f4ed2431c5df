//! Attempts to make a pod sandbox that came to nothing, as the node shows them without anybody's log: a network namespace that
//! comes and goes, and a sandbox that ends before it ever had a container.

use std::collections::{HashMap, HashSet};
use std::path::{Path, PathBuf};
use std::time::{Duration, SystemTime};

use super::digest;
use crate::facts::SandboxFailures;

/// What is counted (catalogue R059: seconds of failures while Calico restarts are normal).
const WINDOW: Duration = Duration::from_secs(600);
/// A namespace that goes this early has never been a pod's for long.
const SHORT: Duration = Duration::from_secs(60);
/// So many attempts are remembered: those of thirty pods that never start.
const MOST: usize = 2048;

/// What the node showed in the last ten minutes. All times are on a clock that never jumps.
#[derive(Debug, Default)]
pub(super) struct Attempts {
    modified: Option<SystemTime>,
    /// Network namespaces and when they were first seen; none before the first look.
    namespaces: Option<HashMap<u64, Duration>>,
    /// When one went early.
    failed: Vec<Duration>,
    /// Sandboxes that started, and when they were first seen.
    started: HashMap<u64, Duration>,
    /// Whether sandboxes were seen at all: what was there first is not new.
    watched: bool,
    /// Sandboxes that ended without a container, when they were first seen, and their pods.
    empty: HashMap<u64, (Duration, String)>,
}

impl Attempts {
    /// Looks at the directory of network namespaces, and reads it when it has changed.
    pub(super) fn look(&mut self, now: Duration, directory: &Path) {
        let modified = std::fs::metadata(directory).and_then(|about| about.modified()).ok();
        if modified == self.modified && self.namespaces.is_some() {
            return;
        }
        self.modified = modified;
        let names: HashSet<u64> = std::fs::read_dir(directory)
            .map(|entries| entries.flatten().filter_map(|entry| Some(digest(entry.file_name().to_str()?))).collect())
            .unwrap_or_default();
        let Some(before) = self.namespaces.take() else {
            // What was there first may be old.
            self.namespaces = Some(names.into_iter().map(|name| (name, Duration::ZERO)).collect());
            return;
        };
        let gone = before.iter().filter(|(name, _)| !names.contains(*name));
        let (mut early, mut late) = (0, 0);
        for (_, since) in gone {
            if now.saturating_sub(*since) < SHORT { early += 1 } else { late += 1 }
        }
        let new = names.iter().any(|name| !before.contains_key(name));
        // It has changed, and nothing came or went: one came and went between two looks.
        if early == 0 && late == 0 && !new {
            early = 1;
        }
        let room = MOST.saturating_sub(self.failed.len());
        self.failed.extend(std::iter::repeat_n(now, early.min(room)));
        let since = |name: &u64| before.get(name).copied().unwrap_or(now);
        self.namespaces = Some(names.iter().map(|name| (*name, since(name))).collect());
    }

    /// Takes the sandboxes that are ready: a pod that runs for a few seconds and is deleted at once is in no other list.
    pub(super) fn ready(&mut self, now: Duration, sandboxes: impl Iterator<Item = u64>) {
        let seen = if self.watched { now } else { Duration::ZERO };
        self.watched = true;
        for id in sandboxes {
            self.empty.remove(&id);
            self.started.entry(id).or_insert(seen);
        }
    }

    /// Takes all sandboxes that the runtime has: digest, whether it is ready or has had a container, and its pod.
    pub(super) fn count(&mut self, now: Duration, sandboxes: impl Iterator<Item = (u64, bool, String)>) {
        let first = !std::mem::replace(&mut self.watched, true);
        let mut here = HashSet::new();
        for (id, alive, pod) in sandboxes {
            here.insert(id);
            // What was there first is not new.
            let seen = if first { Duration::ZERO } else { now };
            if alive {
                self.empty.remove(&id);
                self.started.entry(id).or_insert(seen);
            } else if !self.started.contains_key(&id) && self.empty.len() < MOST {
                self.empty.entry(id).or_insert((seen, pod));
            }
        }
        let young = |since: Duration| now.saturating_sub(since) < WINDOW;
        self.started.retain(|id, since| here.contains(id) || young(*since));
        self.empty.retain(|id, (since, _)| here.contains(id) || young(*since));
    }

    /// What came to nothing in the last ten minutes.
    pub(super) fn told(&mut self, now: Duration) -> SandboxFailures {
        let young = |since: &Duration| *since > Duration::ZERO && now.saturating_sub(*since) < WINDOW;
        self.failed.retain(young);
        let started = self.started.values().filter(|since| young(since)).count();
        // A pod that ran for a few seconds had a namespace for as long.
        let vanished = self.failed.len().saturating_sub(started);
        let empty: Vec<&(Duration, String)> = self.empty.values().filter(|(since, _)| young(since)).collect();
        let times = |all: &mut dyn Iterator<Item = Duration>| {
            let all: Vec<Duration> = all.collect();
            let minutes = all.iter().map(|at| at.as_secs() / 60).collect::<HashSet<_>>().len();
            (minutes, all.into_iter().max())
        };
        let (minutes, last) = if empty.len() >= vanished {
            times(&mut empty.iter().map(|(at, _)| *at))
        } else {
            times(&mut self.failed.iter().copied())
        };
        let mut pods: Vec<String> = empty.iter().map(|(_, pod)| pod.clone()).collect();
        pods.sort_unstable();
        pods.dedup();
        pods.truncate(3);
        let count = |number: usize| u32::try_from(number).unwrap_or(u32::MAX);
        SandboxFailures {
            attempts: count(vanished.max(empty.len())),
            minutes: count(minutes),
            goes_on: last.is_some_and(|last| now.saturating_sub(last) < Duration::from_secs(120)),
            pods,
            said: None,
        }
    }
}

/// Logs that may hold the reason, where the node keeps them as text (facts.md C.7, K.4).
const LOGS: [&str; 5] = [
    "/var/log/calico/cni/cni.log",
    "/var/log/containerd.log",
    "/var/log/crio.log",
    // Of rsyslog on Debian, and on Red Hat.
    "/var/log/syslog",
    "/var/log/messages",
];
/// The end of a log that is read.
const TAIL: u64 = 64 << 10;
/// Of a line the end is kept, in characters: the cause is there.
const LONGEST: usize = 600;

/// What the newest of these logs says of the last failure; nothing older than ten minutes.
pub(super) fn reason(place: impl Fn(&str) -> PathBuf) -> Option<String> {
    LOGS.iter().find_map(|log| {
        let path = place(log);
        let about = std::fs::metadata(&path).ok()?;
        let young = about.modified().ok()?.elapsed().is_ok_and(|age| age < WINDOW);
        (about.is_file() && young).then(|| last_failure(&tail(&path, about.len()).ok()?)).flatten()
    })
}

fn tail(path: &Path, length: u64) -> std::io::Result<String> {
    use std::io::{Read, Seek, SeekFrom};
    let mut file = super::super::host_root::open_at_once(path)?;
    file.seek(SeekFrom::Start(length.saturating_sub(TAIL)))?;
    let mut bytes = Vec::new();
    file.take(TAIL).read_to_end(&mut bytes)?;
    Ok(String::from_utf8_lossy(&bytes).into_owned())
}

/// The last line that tells of a sandbox that could not be made.
fn last_failure(text: &str) -> Option<String> {
    // Calico's plugin, containerd, CRI-O; whatever else fails containerd says, and the kubelet of either.
    const TELLING: [[&str; 2]; 5] = [
        ["Final result of CNI ADD was an error", ""],
        ["failed to setup network for sandbox", ""],
        ["failed to create pod network sandbox", ""],
        ["RunPodSandbox for &PodSandboxMetadata", " failed, error"],
        ["RunPodSandbox from runtime service failed", ""],
    ];
    let tells = |line: &&str| TELLING.iter().any(|parts| parts.iter().all(|part| line.contains(part)));
    let line = text.lines().rev().find(tells)?;
    let skipped = line.chars().count().saturating_sub(LONGEST);
    Some(line.chars().skip(skipped).collect())
}

#[cfg(test)]
mod tests {
    use super::*;

    struct Node {
        dir: tempfile::TempDir,
        attempts: Attempts,
        now: Duration,
        /// Directory times have the kernel's resolution, so that a test gives each change a time of its own.
        modified: SystemTime,
    }

    impl Node {
        fn new() -> Self {
            let dir = tempfile::tempdir().expect("a temporary directory");
            let mut node = Node {
                dir,
                attempts: Attempts::default(),
                now: Duration::from_secs(600_000),
                modified: SystemTime::now(),
            };
            node.look(3);
            node
        }

        fn add(&self, name: &str) {
            std::fs::write(self.dir.path().join(name), "").expect("write");
        }

        fn remove(&self, name: &str) {
            std::fs::remove_file(self.dir.path().join(name)).expect("rm");
        }

        fn look(&mut self, seconds: u64) -> SandboxFailures {
            self.now += Duration::from_secs(seconds);
            self.attempts.look(self.now, self.dir.path());
            self.attempts.told(self.now)
        }

        /// Something has changed in the directory since.
        fn touched(&mut self) {
            self.modified += Duration::from_secs(1);
            let directory = std::fs::File::open(self.dir.path()).expect("a directory");
            directory.set_modified(self.modified).expect("set");
        }
    }

    #[test]
    fn namespaces_that_come_and_go_are_attempts() {
        let mut node = Node::new();
        for attempt in 0..6 {
            if attempt % 2 == 0 {
                // Between two looks.
                node.touched();
            } else {
                node.add("cni-x");
                node.touched();
                node.look(3);
                node.remove("cni-x");
                node.touched();
            }
            node.look(30);
        }
        let told = node.look(3);
        assert_eq!((told.attempts, told.minutes, told.goes_on), (6, 4, true));
        assert!(!node.look(120).goes_on);
        assert_eq!(node.look(600).attempts, 0, "it is forgotten");
    }

    #[test]
    fn pods_that_start_end_and_run_briefly_are_none() {
        let mut node = Node::new();
        node.add("cni-long");
        node.touched();
        node.look(3);
        node.look(3000);
        node.remove("cni-long");
        node.touched();
        assert_eq!(node.look(3).attempts, 0, "it ran for long");
        node.attempts.count(node.now, std::iter::empty());
        let mut all = vec![(99, true, String::new())];
        node.attempts.count(node.now, all.clone().into_iter());
        for job in 0..20 {
            node.touched();
            node.look(10);
            all.push((job, true, format!("default/job-{job}")));
            node.attempts.count(node.now, all.clone().into_iter());
        }
        assert_eq!(node.look(3).attempts, 0, "each had a sandbox with a container");
    }

    #[test]
    fn pods_that_are_deleted_at_once_were_seen_ready() {
        let mut node = Node::new();
        node.attempts.ready(node.now, std::iter::empty());
        for job in 0..20 {
            node.add("cni-job");
            node.touched();
            node.look(3);
            node.attempts.ready(node.now, std::iter::once(job));
            node.look(20);
            node.remove("cni-job");
            node.touched();
            assert_eq!(node.look(3).attempts, 0, "job {job}");
        }
    }

    #[test]
    fn sandboxes_that_end_without_a_container_pile_up() {
        let mut node = Node::new();
        let mut all = vec![(1, true, "shop/web".to_owned()), (2, false, "shop/old".to_owned())];
        node.attempts.count(node.now, all.clone().into_iter());
        for id in 10..15 {
            node.now += Duration::from_secs(60);
            all.push((id, false, "shop/api".to_owned()));
            node.attempts.count(node.now, all.clone().into_iter());
        }
        let told = node.attempts.told(node.now);
        assert_eq!((told.attempts, told.minutes, told.goes_on), (5, 5, true));
        assert_eq!(told.pods, ["shop/api"], "the old one was there first");
        // One of them gets its container after all.
        all[6].1 = true;
        node.attempts.count(node.now, all.into_iter());
        assert_eq!(node.attempts.told(node.now).attempts, 4);
    }

    #[test]
    fn memory_is_bounded() {
        let mut node = Node::new();
        for round in 0..10_u64 {
            node.now += Duration::from_secs(60);
            node.attempts.count(node.now, (0..1000).map(|id| (round * 1000 + id, false, String::new())));
        }
        assert_eq!(node.attempts.empty.len(), MOST);
    }

    /// Lines of containerd 1.6 as recorded, with other reasons than a network; and what the kubelet makes of CRI-O's.
    #[test]
    fn a_sandbox_that_fails_before_its_network_is_told_too() {
        use crate::checks::sandbox_failure::classify;
        let containerd = r#"time="2026-11-21T02:47:21Z" level=error msg="RunPodSandbox for &PodSandboxMetadata{Name:web,Uid:98,Namespace:shop,Attempt:0,} failed, error" error="#;
        let begun = r#"time="2026-11-21T02:47:22Z" level=info msg="RunPodSandbox for &PodSandboxMetadata{Name:web,Uid:98,Namespace:shop,Attempt:1,}""#;
        let kubelet = r#"Nov 21 02:47:21 n2 kubelet[812]: E1121 remote_runtime.go:193] "RunPodSandbox from runtime service failed" err="rpc error: code = Unknown desc = "#;
        for (front, why, cause) in [
            (
                containerd,
                r#""failed to get sandbox image "registry.k8s.io/pause:3.9": pull failed""#,
                "the image of the sandbox",
            ),
            (
                containerd,
                r#""failed to create containerd task: failed to start shim: fork/exec: no such process""#,
                "shim or runc",
            ),
            (
                containerd,
                r#""failed to reserve sandbox name "web_shop_98_0": name "web_shop_98_0" is reserved for "3a"""#,
                "earlier attempt",
            ),
            (
                kubelet,
                r#"error creating pod sandbox with name "k8s_web_shop_98_0": initializing source docker://pause: pinging registry""#,
                "the image of the sandbox",
            ),
        ] {
            let said = last_failure(&format!("{front}{why}\n{begun}\n")).expect("it tells");
            assert!(said.ends_with(why), "{said}");
            assert!(classify(&said).is_some_and(|known| known.what.contains(cause)), "{said}");
        }
        assert_eq!(last_failure(begun), None, "one that has begun");
    }

    #[test]
    fn the_newest_failure_of_a_log_is_its_last_telling_line() {
        let dir = tempfile::tempdir().expect("a temporary directory");
        let log = dir.path().join("cni.log");
        let place = |path: &str| if path.ends_with("cni.log") { log.clone() } else { dir.path().join("none") };
        assert_eq!(reason(place), None);
        let line = "2026 [ERROR][1] plugin.go 580: Final result of CNI ADD was an error. error=no IP";
        std::fs::write(&log, format!("{}{line}\n2026 [INFO] done\n", "x\n".repeat(100_000))).expect("write");
        assert_eq!(reason(place).as_deref(), Some(line));
        let old = SystemTime::now() - Duration::from_secs(900);
        std::fs::File::options().append(true).open(&log).and_then(|file| file.set_modified(old)).expect("set");
        assert_eq!(reason(place), None, "of another time");
    }
}
