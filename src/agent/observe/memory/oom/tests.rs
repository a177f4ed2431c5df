//! Counters of cgroup v2 as the kernel writes them, and real kills in a cgroup of this test's own.

use std::process::Command;

use jiff::{SignedDuration, Timestamp};

use super::*;

/// A node of cgroup v2 with two pods and a service.
struct Node {
    dir: tempfile::TempDir,
    source: OomSource,
    now: Now,
}

impl Node {
    fn new() -> Self {
        let dir = tempfile::tempdir().expect("a temporary directory");
        let source = OomSource::new(HostRoot::new(dir.path()));
        let node = Node { dir, source, now: Now { wall: Timestamp::UNIX_EPOCH, since_boot: Duration::ZERO } };
        node.write("sys/fs/cgroup/cgroup.controllers", "memory pids\n");
        node.vmstat(0, 7);
        for path in
            ["kubepods.slice/kubepods-poda.slice", "kubepods.slice/kubepods-podb.slice", "system.slice/x.service"]
        {
            node.events(path, "", 0, 0);
        }
        node.events("kubepods.slice", ".local", 0, 0);
        node
    }

    fn write(&self, path: &str, text: &str) {
        let path = self.dir.path().join(path);
        std::fs::create_dir_all(path.parent().expect("not the root")).expect("mkdir");
        std::fs::write(path, text).expect("write");
    }

    fn vmstat(&self, kills: u64, stalls: u64) {
        let text = format!("allocstall_dma 0\nallocstall_normal {stalls}\nallocstall_movable 3\noom_kill {kills}\n");
        self.write("proc/vmstat", &text);
    }

    fn events(&self, cgroup: &str, local: &str, oom: u64, killed: u64) {
        let text = format!("low 0\nhigh 0\nmax 9\noom {oom}\noom_kill {killed}\noom_group_kill 0\n");
        self.write(&format!("sys/fs/cgroup/{cgroup}/memory.events{local}"), &text);
    }

    fn look(&mut self, short: bool) -> Vec<(OomScope, Option<String>, u64)> {
        self.now.since_boot += Duration::from_secs(10);
        let kills = self.source.look(self.now, short, "/").expect("readable");
        kills.into_iter().map(|kill| (kill.scope, kill.pod.map(|pod| pod.uid), kill.processes)).collect()
    }
}

#[test]
fn a_pod_at_its_own_limit() {
    let mut node = Node::new();
    node.vmstat(5, 7);
    node.events("kubepods.slice/kubepods-poda.slice", "", 3, 5);
    assert_eq!(node.look(false), [], "what happened before the first look is no news");
    node.vmstat(7, 7);
    node.events("kubepods.slice/kubepods-poda.slice", "", 4, 7);
    let own = [(OomScope::Pod, Some("a".to_owned()), 2)];
    assert_eq!(node.look(true), own);
    assert_eq!(node.look(true), own, "told for some minutes");
    for jump in [-9, 9] {
        node.now.wall += SignedDuration::from_hours(jump);
        assert_eq!(node.look(true), own, "the clock was set");
    }
    node.now.since_boot += LONGEST;
    assert_eq!(node.look(true), [], "and over then");
}

#[test]
fn the_node_itself_is_out_of_memory() {
    let mut node = Node::new();
    node.look(true);
    node.vmstat(2, 9);
    node.events("kubepods.slice/kubepods-podb.slice", "", 0, 1);
    assert_eq!(node.look(false), [(OomScope::Node, None, 1), (OomScope::Node, Some("b".to_owned()), 1)]);
}

#[test]
fn the_common_limit_of_all_pods() {
    let mut node = Node::new();
    node.look(false);
    node.vmstat(1, 7);
    node.events("kubepods.slice", ".local", 1, 0);
    node.events("kubepods.slice/kubepods-podb.slice", "", 0, 1);
    assert_eq!(node.look(false), [(OomScope::AllPods, Some("b".to_owned()), 1)]);
}

#[test]
fn a_pod_that_has_gone_with_its_counters() {
    // By its own limit; for want of memory of the node; at the common limit; while another pod is killed by its own.
    let a = (OomScope::Pod, Some("a".to_owned()), 2);
    let cases = [
        ([1, 0, 0], vec![(OomScope::Pod, None, 1)]),
        ([0, 0, 0], vec![(OomScope::Node, None, 1)]),
        ([1, 1, 0], vec![(OomScope::AllPods, None, 1)]),
        ([2, 0, 1], vec![(OomScope::Pod, None, 1), a.clone()]),
        ([1, 0, 1], vec![(OomScope::Node, None, 1), a]),
    ];
    for ([below, local, other], expected) in cases {
        let mut node = Node::new();
        node.events("kubepods.slice", "", 3, 5);
        node.vmstat(5, 7);
        node.look(false);
        node.vmstat(6 + 2 * other, 7);
        node.events("kubepods.slice", "", 3 + below, 6 + 2 * other);
        node.events("kubepods.slice", ".local", local, 0);
        node.events("kubepods.slice/kubepods-poda.slice", "", other, 2 * other);
        assert_eq!(node.look(false), expected, "{below} {local} {other}");
    }
}

#[test]
fn a_service_and_a_cgroup_that_has_gone() {
    let mut node = Node::new();
    node.look(false);
    node.vmstat(3, 9);
    node.events("system.slice/x.service", "", 1, 1);
    let service = OomScope::Service("x.service".into());
    assert_eq!(node.look(false), [(service, None, 1), (OomScope::Elsewhere, None, 2)], "there was memory all the time");
}

#[test]
fn a_container_of_cgroup_v1_that_has_gone() {
    let mut node = Node::new();
    std::fs::remove_dir_all(node.dir.path().join("sys")).expect("remove");
    node.write("sys/fs/cgroup/memory/kubepods/podc/memory.oom_control", "under_oom 0\noom_kill 0\n");
    node.look(false);
    node.vmstat(1, 7);
    assert_eq!(node.look(false), [(OomScope::Gone, None, 1)]);
    node.vmstat(2, 8);
    node.look(true);
    node.vmstat(3, 9);
    let expected = [(OomScope::Node, None, 2), (OomScope::Gone, None, 1)];
    assert_eq!(node.look(false), expected, "it was short just now");
}

#[test]
fn a_kernel_that_does_not_count() {
    let mut node = Node::new();
    node.write("proc/vmstat", "nr_free_pages 1\n");
    let error = node.source.look(node.now, false, "/").expect_err("no counter");
    assert_eq!(error.reason, Reason::Unsupported);
}

/// A cgroup of this machine that goes with this value.
struct Cgroup(PathBuf);

impl Cgroup {
    /// In cgroup v1 below its hierarchy for memory, in v2 where that controller is.
    fn new(name: &str) -> Self {
        let (base, _) = cgroups::hierarchy(&HostRoot::new("/"), "memory");
        let cgroup = Cgroup(base.join(name));
        std::fs::create_dir(&cgroup.0).expect("this test makes a cgroup, which only root may");
        cgroup
    }
}

impl Drop for Cgroup {
    fn drop(&mut self) {
        for path in ["kubepods/burstable/pod1-2/c1", "kubepods/burstable/pod1-2", "kubepods/burstable", "kubepods", ""]
        {
            // The kernel may still be taking the process out.
            (0..100).find(|_| {
                let gone = std::fs::remove_dir(self.0.join(path)).is_ok() || !self.0.join(path).exists();
                if !gone {
                    std::thread::sleep(std::time::Duration::from_millis(10));
                }
                gone
            });
        }
    }
}

#[test]
#[ignore = "agents of other tests on the same machine tell the kill too: scripts/test.sh runs it by itself"]
fn a_real_kill_at_a_limit_of_this_kernel() {
    let root = format!("/nodevitals-test-oom-{}", std::process::id());
    let cgroup = Cgroup::new(root.trim_start_matches('/'));
    let (_, unified) = cgroups::hierarchy(&HostRoot::new("/"), "memory");
    let container = cgroup.0.join("kubepods/burstable/pod1-2/c1");
    std::fs::create_dir_all(&container).expect("mkdir");
    if unified {
        for path in ["", "kubepods", "kubepods/burstable", "kubepods/burstable/pod1-2"] {
            std::fs::write(cgroup.0.join(path).join("cgroup.subtree_control"), "+memory").expect("delegate");
        }
    }
    let limit = if unified { "memory.max" } else { "memory.limit_in_bytes" };
    std::fs::write(container.join(limit), "16M").expect("limit");

    let mut source = OomSource::new(HostRoot::new("/"));
    assert_eq!(source.look(crate::clock::now(), false, &root), Ok(vec![]));
    let hog = format!("echo $$ > {}/cgroup.procs; exec tail /dev/zero", container.display());
    let status = Command::new("sh").args(["-c", &hog]).status().expect("sh");
    assert!(!status.success(), "tail keeps all of what it reads, until it is killed");
    let kills = source.look(crate::clock::now(), false, &root).expect("readable");
    // Others on this machine may be killed meanwhile.
    let kill = kills.iter().find(|kill| kill.pod.is_some()).expect("a kill in the pod");
    assert_eq!((&kill.scope, kill.processes), (&OomScope::Pod, 1));
    let pod = PodCgroup { uid: "1-2".into(), containers: vec!["c1".into()] };
    assert_eq!(kill.pod.as_ref(), Some(&pod));
}
