//! Against the real kernel: what wakes a look, and how many looks a burst makes.

use jiff::Timestamp;
use tokio::time::timeout;

use super::machine::roles;
use super::packet_filter::{NFTABLES, nftables};
use super::*;
use crate::agent::observe::netns::NetNs;
use crate::facts::{PacketFilterChanges, Ruleset};

/// The look at nf_tables alone, with what wakes it.
struct Running {
    updates: mpsc::Receiver<Update>,
    stats: Stats,
    wake: Wake,
    commits: Commits,
    tasks: JoinSet<()>,
}

fn nftables_alone() -> Running {
    let (sender, updates) = mpsc::channel(32);
    let (stats, wake, commits) = (Stats::default(), Wake::default(), Commits::default());
    let mut tasks = JoinSet::new();
    let out = Outlet { updates: sender, stats: stats.clone() };
    tasks.spawn(nftables(out, wake.clone(), History::new(commits.clone())));
    Running { updates, stats, wake, commits, tasks }
}

impl Running {
    /// The first look for which `wanted` is true.
    async fn until(&mut self, wanted: impl Fn(&Ruleset) -> bool) -> PacketFilterChanges {
        loop {
            let update = timeout(Duration::from_secs(60), self.updates.recv()).await.expect("in time");
            let update = update.expect("it goes on");
            let Update::Nftables(seen, changes) = update else { panic!("another source") };
            if seen.get().is_some_and(&wanted) {
                return changes;
            }
        }
    }
}

#[test]
fn lost_notifications_lead_to_a_look_at_everything() {
    let node = NetNs::new();
    node.block_on(|| async {
        let mut running = nftables_alone();
        running.until(|_| true).await;
        // Nobody watches: this change is not told.
        node.command("iptables-nft", &["-N", "KUBE-FORWARD"]);
        let lost = Instant::now();
        woken(&Event::Overrun, &running.wake);
        running.until(|ruleset| ruleset.any_chain(|name| name == "KUBE-FORWARD")).await;
        assert!(lost.elapsed() < NFTABLES.every / 2, "it did not wait for its period");
        timeout(Duration::from_millis(1), running.wake.routing.notified()).await.expect("routes too");
    });
}

#[test]
fn thousands_of_commits_are_a_few_looks_and_the_last_one_sees_the_end() {
    const COMMITS: usize = 3000;
    const SHORTEST_BREATH: u128 = 50;
    let mut lines = "add table ip filter\nadd chain ip filter KUBE-FORWARD\n".to_owned();
    lines.push_str(&"add rule ip filter KUBE-FORWARD accept\n".repeat(COMMITS));
    lines.push_str("add chain ip filter KUBE-END\nquit\n");
    let node = Arc::new(NetNs::new());
    let changer = Arc::clone(&node);
    node.block_on(|| async move {
        let mut running = nftables_alone();
        let dir = tempfile::tempdir().expect("a directory");
        let shared = Shared::default();
        let host = HostRoot::new(dir.path());
        running.tasks.spawn(dispatch(host, shared, running.wake.clone(), running.commits.clone()));
        running.until(|_| true).await;
        let (before, began) = (running.stats.all()["nftables"].looks, Instant::now());
        let burst = tokio::task::spawn_blocking(move || changer.command_with_input("nft", &["-i"], &lines));
        let told = running.until(|ruleset| ruleset.any_chain(|name| name == "KUBE-END")).await;
        let looks = running.stats.all()["nftables"].looks - before;
        let (most, took) = (began.elapsed().as_millis() / SHORTEST_BREATH + 2, began.elapsed());
        assert!(u128::from(looks) <= most, "{looks} looks in {took:?}");
        assert!(looks < COMMITS as u64 / 10, "{looks} looks at {COMMITS} commits");
        assert!(told.last.iter().all(|commit| commit.program.as_deref() == Some("nft")), "{told:?}");
        burst.await.expect("nft ends");
    });
}

/// What this thread read so far: calls and bytes.
fn read_so_far() -> [u64; 2] {
    let text = std::fs::read_to_string("/proc/thread-self/io").expect("this kernel counts");
    ["syscr", "rchar"].map(|name| {
        let line = text.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix(": "));
        line.and_then(|number| number.parse().ok()).expect(name)
    })
}

#[tokio::test]
async fn a_look_at_capacity_reads_little_on_a_node_with_many_mounts() {
    let dir = tempfile::tempdir().expect("a temporary directory");
    let table: String = (0..500)
        .map(|n| format!("{n} 1 0:{n} / /var/lib/kubelet/pods/{n}/volumes/kubernetes.io~projected/x rw,relatime - tmpfs tmpfs rw,size=4k\n"))
        .chain(["900 1 0:900 / / rw - btrfs /dev/sda1 rw\n".to_owned()])
        .collect();
    for path in ["/proc/1", "/proc/pressure", "/proc/sys/kernel", "/proc/sys/fs/inotify"] {
        std::fs::create_dir_all(dir.path().join(path.trim_start_matches('/'))).expect("mkdir");
    }
    let files = "meminfo vmstat loadavg stat pressure/memory pressure/io pressure/cpu sys/kernel/pid_max \
                 sys/kernel/threads-max sys/fs/file-nr sys/fs/inotify/max_user_instances sys/fs/inotify/max_user_watches";
    for file in files.split_whitespace() {
        let bytes = std::fs::read(format!("/proc/{file}")).expect(file);
        std::fs::write(dir.path().join("proc").join(file), bytes).expect("write");
    }
    std::fs::write(dir.path().join("proc/1/mountinfo"), &table).expect("write");
    let host = HostRoot::new(dir.path());
    let mut memory = crate::agent::observe::memory::MemorySource::new(host.clone());
    let mut strain = crate::agent::observe::strain::StrainSource::new(host.clone());
    let mut disks = crate::agent::observe::filesystems::FilesystemSource::new(host, Blocking::default());
    let roles = roles(None, None, None);
    let mut cost = [0; 2];
    for _ in 0..3 {
        let before = read_so_far();
        memory.look(Timestamp::now(), "/").expect("readable");
        let _ = strain.look(Timestamp::now(), "/");
        disks.look(Timestamp::now(), &roles).await.expect("readable");
        let after = read_so_far();
        cost = [after[0] - before[0], after[1] - before[1]];
    }
    let [calls, bytes] = cost;
    let table = table.len() as u64;
    assert!(calls < 100 && bytes < table + (40 << 10), "{calls} calls, {bytes} bytes, of them the mount table {table}");
}
