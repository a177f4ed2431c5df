//! A process table, a runtime and directories as they are on a node, through time.

use super::*;
use crate::agent::observe::processes::Shim;

struct Node {
    root: tempfile::TempDir,
    source: DebrisSource,
    inventory: Inventory,
    attendants: Attendants,
}

impl Node {
    /// Pods with a sandbox, a shim, a network namespace and a directory of the kubelet's each.
    fn with_pods(count: u32) -> Self {
        let root = tempfile::tempdir().expect("a temporary directory");
        for directory in ["proc/1", "run/netns", "var/lib/kubelet/pods"] {
            std::fs::create_dir_all(root.path().join(directory)).expect("mkdir");
        }
        std::fs::write(root.path().join("proc/1/mountinfo"), "a\nb\n").expect("write");
        let source = DebrisSource::new(HostRoot::new(root.path()));
        let mut node = Node { root, source, inventory: Inventory::default(), attendants: Attendants::default() };
        for pod in 0..count {
            std::fs::create_dir(node.root.path().join(format!("var/lib/kubelet/pods/uid-{pod}"))).expect("mkdir");
            std::fs::write(node.root.path().join(format!("run/netns/cni-{pod}")), "").expect("write");
            node.inventory.sandboxes.insert(digest(&format!("box-{pod}")), digest(&format!("uid-{pod}")));
            let pid = i32::try_from(pod).expect("small");
            node.attendants.shims.push(Shim { pid, sandbox: format!("box-{pod}").into(), by_pod: false });
        }
        node
    }

    /// A look every minute; what the last one tells.
    fn look(&mut self, minutes: std::ops::RangeInclusive<u64>) -> Option<Debris> {
        let mut told = None;
        for minute in minutes {
            let now = Duration::from_secs(10_000 + minute * 60);
            told = self
                .source
                .look(now, &self.inventory, &self.attendants, ("/var/lib/kubelet/pods", "/"))
                .expect("readable");
        }
        told
    }
}

#[test]
fn what_is_owned_is_no_debris_and_nothing_is_told_of_the_first_ten_minutes() {
    let mut node = Node::with_pods(5);
    node.inventory.exited = vec![digest("box-1"); 300];
    assert_eq!(node.look(0..=9), None);
    let told = node.look(10..=30).expect("told");
    assert_eq!(
        told,
        Debris { exited: 300, memo: told.memo.clone(), ..Debris::default() },
        "many ended containers of a pod that is there"
    );
}

#[test]
fn what_loses_its_owner_counts_after_ten_minutes() {
    let mut node = Node::with_pods(5);
    node.look(0..=20);
    // The runtime forgets two sandboxes, whose shims and namespaces stay; the pods of two others are deleted.
    for pod in [0, 1] {
        node.inventory.sandboxes.remove(&digest(&format!("box-{pod}")));
    }
    for pod in [2, 3] {
        std::fs::remove_dir(node.root.path().join(format!("var/lib/kubelet/pods/uid-{pod}"))).expect("rmdir");
    }
    node.inventory.exited = vec![digest("box-0"), digest("box-2"), digest("box-4")];
    node.attendants.zombies = vec![(77, 1)];
    assert_eq!(node.look(21..=30).map(|told| told.ownerless()), Some(0));
    let told = node.look(31..=32).expect("told");
    assert_eq!((told.shim_count, told.sandboxes, told.namespaces), (2, 2, 2));
    assert_eq!((told.containers, told.zombies), (2, 1));
    assert_eq!(told.shims, [(0, "box-0".to_owned()), (1, "box-1".to_owned())]);
    // The runtime was restarted and knows them again.
    for pod in [0, 1] {
        node.inventory.sandboxes.insert(digest(&format!("box-{pod}")), digest(&format!("uid-{pod}")));
    }
    let told = node.look(33..=33).expect("told");
    assert_eq!((told.shim_count, told.namespaces), (0, 0), "cleared at once");
}

#[test]
fn another_process_of_the_agent_goes_on_with_what_was_told() {
    let mut node = Node::with_pods(6);
    for pod in [0, 1] {
        node.inventory.sandboxes.remove(&digest(&format!("box-{pod}")));
    }
    node.attendants.zombies = vec![(77, 1)];
    let told = node.look(0..=11).expect("told");
    assert_eq!((told.shim_count, told.namespaces, told.zombies), (2, 2, 1));
    let anew = |node: &mut Node, memo: Memo| {
        node.source = DebrisSource::new(HostRoot::new(node.root.path())).knowing(memo);
    };
    anew(&mut node, told.memo.clone());
    assert!(node.source.told_of_some());
    // Three more are being removed at this moment.
    for pod in [2, 3, 4] {
        node.inventory.sandboxes.remove(&digest(&format!("box-{pod}")));
    }
    let now = node.look(12..=12).expect("told at once");
    assert_eq!((now.shim_count, now.namespaces, now.zombies), (2, 2, 1), "what is new has to last");
    assert_eq!(now.memo, told.memo, "nothing new for the disk");
    node.attendants.shims.retain(|shim| shim.pid == 1 || shim.pid == 5);
    node.attendants.zombies.clear();
    let now = node.look(13..=13).expect("told");
    assert_eq!(
        (now.shim_count, now.shims.clone(), now.zombies),
        (1, vec![(1, "box-1".to_owned())], 0),
        "cleared at once"
    );
    let now = node.look(14..=23).expect("told");
    assert_eq!((now.shim_count, now.namespaces), (1, 5), "its own ten minutes are over");

    let healthy = Node::with_pods(2).look(0..=11).expect("told");
    anew(&mut node, healthy.memo);
    assert!(!node.source.told_of_some());
    assert_eq!(node.look(30..=30).map(|told| told.ownerless()), Some(0));
    anew(&mut node, Memo([(TOLD.to_owned(), vec![1, 2])].into()));
    assert_eq!(node.look(40..=40), None, "what is not understood is not known");
}

#[test]
fn snapshots_count_once_they_last_and_another_process_goes_on_with_them() {
    let mut node = Node::with_pods(1);
    let seen = |count, oldest: Option<&str>| {
        let oldest = oldest.map(|key| (key.to_owned(), jiff::Timestamp::UNIX_EPOCH));
        Seen::Yes(Snapshots { count, oldest })
    };
    assert_eq!(node.look(0..=11).map(|told| told.snapshots), Some(Seen::Absent), "not asked yet");
    node.inventory.snapshots = seen(1200, Some("a"));
    assert_eq!(node.look(12..=21).map(|told| told.snapshots), Some(seen(0, None)));
    let told = node.look(22..=23).expect("told");
    assert_eq!((&told.snapshots, told.ownerless()), (&seen(1200, Some("a")), 1200));
    // The next process has not asked yet, then it has.
    node.source = DebrisSource::new(HostRoot::new(node.root.path())).knowing(told.memo.clone());
    node.inventory.snapshots = Seen::Absent;
    let now = node.look(24..=24).expect("told at once");
    assert_eq!((now.snapshots, &now.memo), (seen(1200, None), &told.memo));
    node.inventory.snapshots = seen(1100, Some("a"));
    assert_eq!(node.look(25..=25).map(|told| told.snapshots), Some(seen(1100, Some("a"))));
    node.inventory.snapshots = seen(0, None);
    assert_eq!(node.look(26..=26).map(|told| told.ownerless()), Some(0), "cleared at once");
    // A runtime without: nothing else is unknown for that.
    let refused = crate::facts::LookError::new("snapshots", crate::facts::Reason::Unsupported, "unknown service");
    node.inventory.snapshots = Seen::Unreadable(refused.clone());
    assert_eq!(node.look(27..=40).map(|told| (told.snapshots, told.sandboxes)), Some((Seen::Unreadable(refused), 0)));
    // What an older version kept is understood.
    let old = Memo([(TOLD.to_owned(), vec![0, 0, 0, 0, 0, 9])].into());
    node.source = DebrisSource::new(HostRoot::new(node.root.path())).knowing(old);
    assert!(node.source.told_of_some());
}

#[test]
fn what_crio_leaves_and_cgroups_of_nobody() {
    let mut node = Node::with_pods(2);
    node.attendants.shims =
        (0..3).map(|pod| Shim { pid: pod, sandbox: format!("uid-{pod}").into(), by_pod: true }).collect();
    let base = node.root.path().join("sys/fs/cgroup");
    for pod in ["kubepods/poduid-0", "kubepods/besteffort/poduid-8", "kubepods/burstable/poduid-9", "kubepods/other"] {
        std::fs::create_dir_all(base.join(pod)).expect("mkdir");
    }
    std::fs::write(base.join("cgroup.controllers"), "memory\n").expect("write");
    let netns = node.root.path().join("run/netns");
    for name in ["0d3b4d3f-09a1-4c61-8f6e-0a1b2c3d4e5f", "vpn", "0d3b4d3f-09a1-4c61-8f6e-0a1b2c3d4e5"] {
        std::fs::write(netns.join(name), "").expect("write");
    }
    let told = node.look(0..=20).expect("told");
    assert_eq!((told.shim_count, told.cgroups, told.namespaces, told.ownerless()), (1, 2, 1, 4));
    assert_eq!(told.shims, [(2, "uid-2".to_owned())]);
    // A pod that the kubelet has not removed yet owns its cgroup, and so does a sandbox.
    std::fs::create_dir(node.root.path().join("var/lib/kubelet/pods/uid-8")).expect("mkdir");
    node.inventory.sandboxes.insert(digest("box-9"), digest("uid-9"));
    node.inventory.sandboxes.insert(digest("box-2"), digest("uid-2"));
    let told = node.look(21..=21).expect("told");
    assert_eq!((told.shim_count, told.cgroups), (0, 0), "cleared at once");
}

#[test]
fn what_comes_and_goes_never_adds_up() {
    let mut node = Node::with_pods(2);
    for minute in 0..60 {
        // A hundred other pods in each minute, which the list of the runtime just misses.
        node.attendants.shims = (0..100)
            .map(|pod| Shim { pid: minute * 100 + pod, sandbox: format!("job-{minute}-{pod}").into(), by_pod: false })
            .collect();
        let busy = minute % 5 != 0;
        node.inventory.exited = if busy { vec![digest("gone"); 700] } else { Vec::new() };
        let at = u64::try_from(minute).expect("positive");
        if let Some(told) = node.look(at..=at) {
            assert_eq!((told.shim_count, told.containers), (0, 0), "minute {minute}");
        }
    }
    assert!(node.source.shims.0.len() <= 100 && node.source.counts.len() <= 12);
}

#[test]
fn without_the_kubelets_directory_sandboxes_need_no_owner() {
    let mut node = Node::with_pods(2);
    std::fs::remove_dir_all(node.root.path().join("var/lib/kubelet")).expect("rm");
    assert_eq!(node.look(0..=20).map(|told| told.sandboxes), Some(0));
    // One that cannot be read is an error.
    std::fs::create_dir_all(node.root.path().join("var/lib/kubelet")).expect("mkdir");
    std::fs::write(node.root.path().join("var/lib/kubelet/pods"), "").expect("write");
    let now = Duration::from_secs(20_000);
    let error = node.source.look(now, &node.inventory, &node.attendants, ("/var/lib/kubelet/pods", "/"));
    assert!(error.expect_err("not a directory").to_string().contains("/var/lib/kubelet/pods"));
}

#[test]
fn resources_of_this_machine_are_counted() {
    let source = DebrisSource::new(HostRoot::new("/"));
    let own = i32::try_from(std::process::id()).expect("small");
    let attendants = Attendants { daemons: vec![(crate::facts::Program::Kubelet, own)], ..Attendants::default() };
    let resources = source.resources(&attendants);
    assert_eq!(resources.len(), 5, "{resources:?}");
    assert!(resources.iter().all(|(_, _, count)| *count > 0), "{resources:?}");
}

#[test]
fn a_number_is_told_to_two_digits() {
    assert_eq!([0, 7, 99, 123, 1999].map(rounded), [0, 7, 99, 120, 1900]);
}
