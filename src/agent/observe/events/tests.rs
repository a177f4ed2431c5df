//! Against the real kernel: real routes, real rules, real directories.

use std::path::Path;

use proptest::collection::vec;
use proptest::prelude::{any, prop_assert_eq, proptest};

use super::*;
use crate::agent::observe::host_root::HostRoot;
use crate::agent::observe::legacy::LockUses;
use crate::agent::observe::netlink::attribute;
use crate::agent::observe::netns::{NetNs, without_net_admin};

/// How long an event may take. The window is the longest that it should.
const SOON: Duration = Duration::from_secs(5);

async fn next(events: &mut Receiver<Event>) -> Event {
    tokio::time::timeout(SOON, events.recv()).await.expect("an event").expect("the watch goes on")
}

/// Takes what comes until nothing has for three windows.
async fn settle(events: &mut Receiver<Event>) -> Vec<Event> {
    let mut all = Vec::new();
    while let Ok(Some(event)) = tokio::time::timeout(WINDOW * 3, events.recv()).await {
        all.push(event);
    }
    all
}

fn no_lock(dir: &Path) -> Watched {
    Watched { host: HostRoot::new(dir.join("none")), uses: LockUses::default() }
}

/// Watches inside `node`; the CNI directory is one that stays quiet, for as long as the first value is kept.
async fn quiet_watch() -> (tempfile::TempDir, Receiver<Event>) {
    let dir = tempfile::tempdir().expect("a directory");
    let mut events = watch(vec![dir.path().to_owned()], no_lock(dir.path()), Commits::default());
    settle(&mut events).await;
    (dir, events)
}

#[test]
fn links_addresses_routes_and_rules_are_told() {
    let node = NetNs::new();
    node.block_on(|| async {
        let (_quiet, mut events) = quiet_watch().await;
        for line in [
            "link add one type veth peer name two",
            "link set one up",
            "addr add 192.0.2.1/24 dev one",
            "-6 addr add 2001:db8::1/64 dev one nodad",
            "route add blackhole 10.0.0.0/26",
            "-6 route add blackhole 2001:db8:1::/64",
            "rule add priority 10 table 100",
            "-6 rule add priority 10 table 100",
            "route del blackhole 10.0.0.0/26",
            "xfrm policy add src 10.0.0.0/8 dst 10.1.0.0/16 dir out",
        ] {
            node.command("ip", &line.split(' ').collect::<Vec<_>>());
            assert_eq!(next(&mut events).await, Event::Routing, "{line}");
            settle(&mut events).await;
        }
    });
}

#[test]
fn a_commit_is_told_once_and_by_whom() {
    let node = NetNs::new();
    node.block_on(|| async {
        let (_quiet, mut events) = quiet_watch().await;
        node.command("iptables-nft", &["-N", "KUBE-FORWARD"]);
        settle(&mut events).await;
        node.command("iptables-nft", &["-A", "KUBE-FORWARD", "-j", "ACCEPT"]);
        let Event::PacketFilter { generation, pid, program } = next(&mut events).await else { panic!("another event") };
        assert!(generation > 1 && pid.is_some());
        assert_eq!(program.as_deref(), Some("iptables-nft"));
        assert_eq!(settle(&mut events).await, []);
    });
}

#[test]
fn without_the_capability_only_the_packet_filter_is_left_to_polling() {
    without_net_admin(module_path!(), "without_the_capability_only_the_packet_filter_is_left_to_polling", || {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().expect("a runtime");
        runtime.block_on(async {
            let refusal = nftables_socket().err().and_then(|error| error.raw_os_error());
            assert_eq!(refusal, Some(Errno::EPERM as i32));
            assert!(routing_socket().is_ok());
            let dir = tempfile::tempdir().expect("a directory");
            let lock = Watched { host: HostRoot::new(dir.path().join("none")), uses: LockUses::default() };
            let mut events = watch(vec![dir.path().to_owned()], lock, Commits::default());
            settle(&mut events).await;
            std::fs::write(dir.path().join("a.conf"), "{}").expect("write");
            assert_eq!(next(&mut events).await, Event::Cni);
        });
    });
}

#[test]
fn a_large_reload_is_one_event() {
    use std::fmt::Write as _;
    let mut rules = String::from("*filter\n:KUBE-FORWARD - [0:0]\n");
    for port in 1..10_000 {
        let _ = writeln!(rules, "-A KUBE-FORWARD -p tcp --dport {port} -j ACCEPT");
    }
    rules.push_str("COMMIT\n");
    let node = NetNs::new();
    node.block_on(|| async {
        let (_quiet, mut events) = quiet_watch().await;
        node.command_with_input("iptables-nft-restore", &[], &rules);
        let all = settle(&mut events).await;
        assert!((1..=2).contains(&all.len()), "{all:?}");
        assert!(all.iter().all(|event| matches!(event, Event::PacketFilter { .. })), "{all:?}");
    });
}

#[test]
fn a_burst_of_routes_is_a_few_events_the_last_one_after_its_end() {
    use std::fmt::Write as _;
    let mut batch = String::new();
    for number in 0..5000 {
        let _ = writeln!(batch, "route add blackhole 10.{}.{}.0/24", number / 256, number % 256);
    }
    let node = NetNs::new();
    node.block_on(|| async {
        let (_quiet, mut events) = quiet_watch().await;
        let begin = Instant::now();
        let command = std::thread::scope(|scope| {
            let command = scope.spawn(|| node.command_with_input("ip", &["-batch", "-"], &batch));
            command.join()
        });
        command.expect("the routes are added");
        let windows = begin.elapsed().as_millis() / WINDOW.as_millis() + 3;
        let all = settle(&mut events).await;
        assert!(!all.is_empty() && all.len() as u128 <= windows, "{} events", all.len());
        assert!(all.iter().all(|event| matches!(event, Event::Routing | Event::Overrun)), "{all:?}");
    });
}

#[test]
fn a_flood_that_is_not_read_is_an_overrun() {
    use std::fmt::Write as _;
    let mut batch = String::new();
    for number in 0..5000 {
        let _ = writeln!(batch, "route add blackhole 10.{}.{}.0/24", number / 256, number % 256);
    }
    let node = NetNs::new();
    node.block_on(|| async {
        let socket = routing_socket().expect("a socket");
        // Nobody reads meanwhile: this runtime has one thread, and it waits for the command.
        node.command_with_input("ip", &["-batch", "-"], &batch);
        let mut source = Notifications { socket, event: routing };
        let mut seen = Vec::new();
        while let Ok(event) = tokio::time::timeout(WINDOW, source.next()).await {
            seen.push(event.expect("the socket works"));
        }
        assert!(seen.contains(&Event::Overrun));
    });
}

/// A source that tells what a test sends it.
impl Source for Receiver<Event> {
    async fn next(&mut self) -> io::Result<Event> {
        self.recv().await.ok_or_else(|| io::Error::other("the test is over"))
    }
}

#[tokio::test(start_paused = true)]
async fn a_burst_has_a_first_and_a_last_event_and_hides_no_loss() {
    let (tell, source) = mpsc::channel(100);
    let (events, mut told) = mpsc::channel(CAPACITY);
    let task = tokio::spawn(forward(source, events));
    for event in [Event::Routing, Event::Routing, Event::Overrun, Event::Routing, Event::Routing] {
        tell.send(event).await.expect("it listens");
    }
    assert_eq!(next(&mut told).await, Event::Routing);
    let begin = Instant::now();
    assert_eq!(next(&mut told).await, Event::Overrun);
    assert!(begin.elapsed() <= WINDOW);
    drop(tell);
    assert_eq!(task.await.expect("it ends").to_string(), "the test is over");
}

#[tokio::test(start_paused = true)]
async fn nobody_has_to_read() {
    let (tell, source) = mpsc::channel(100);
    let (events, mut told) = mpsc::channel(CAPACITY);
    tokio::spawn(forward(source, events));
    for _ in 0..100 {
        tell.send(Event::Cni).await.expect("it goes on");
        tokio::time::sleep(WINDOW * 2).await;
    }
    assert_eq!(told.len(), CAPACITY);
    assert_eq!(next(&mut told).await, Event::Cni);
}

#[tokio::test]
async fn the_watch_ends_with_its_receiver() {
    let dir = tempfile::tempdir().expect("a directory");
    let events = watch(vec![dir.path().to_owned()], no_lock(dir.path()), Commits::default());
    tokio::task::yield_now().await;
    drop(events);
    let begin = Instant::now();
    while tokio::runtime::Handle::current().metrics().num_alive_tasks() > 0 {
        assert!(begin.elapsed() < SOON, "tasks are left");
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
}

async fn watch_directory(path: &Path) -> Receiver<Event> {
    let (events, told) = mpsc::channel(CAPACITY);
    let source = directory::watch(path.to_owned(), events);
    tokio::spawn(source);
    // Armed at its first poll.
    tokio::task::yield_now().await;
    told
}

#[tokio::test]
async fn files_that_come_change_and_go_are_told() {
    let dir = tempfile::tempdir().expect("a directory");
    let mut events = watch_directory(dir.path()).await;
    let file = dir.path().join("10-calico.conflist");
    std::fs::write(&file, "{}").expect("write");
    assert_eq!(next(&mut events).await, Event::Cni);
    settle(&mut events).await;
    std::fs::rename(&file, dir.path().join("10-calico.conflist.bak")).expect("rename");
    assert_eq!(next(&mut events).await, Event::Cni);
    settle(&mut events).await;
    std::fs::remove_file(dir.path().join("10-calico.conflist.bak")).expect("remove");
    assert_eq!(next(&mut events).await, Event::Cni);
    assert_eq!(settle(&mut events).await, []);
}

#[tokio::test]
async fn a_directory_that_appears_later_is_watched_from_then_on() {
    let root = tempfile::tempdir().expect("a directory");
    let wanted = root.path().join("etc/cni/net.d");
    let mut events = watch_directory(&wanted).await;
    std::fs::write(root.path().join("other"), "").expect("write");
    assert_eq!(settle(&mut events).await, [], "somebody else's file says nothing");
    for _ in 0..3 {
        std::fs::create_dir_all(&wanted).expect("mkdir");
        assert_eq!(next(&mut events).await, Event::Cni);
        settle(&mut events).await;
        std::fs::write(wanted.join("a.conf"), "{}").expect("write");
        assert_eq!(next(&mut events).await, Event::Cni);
        settle(&mut events).await;
        std::fs::remove_dir_all(root.path().join("etc")).expect("remove");
        assert_eq!(next(&mut events).await, Event::Cni);
        settle(&mut events).await;
    }
}

#[tokio::test]
async fn a_directory_that_is_made_anew_is_watched_anew() {
    let root = tempfile::tempdir().expect("a directory");
    let wanted = root.path().join("net.d");
    std::fs::create_dir(&wanted).expect("mkdir");
    let mut events = watch_directory(&wanted).await;
    // Gone and there again before the watch has noticed: the same path, another directory.
    std::fs::remove_dir(&wanted).expect("rmdir");
    std::fs::create_dir(&wanted).expect("mkdir");
    assert_eq!(next(&mut events).await, Event::Cni);
    settle(&mut events).await;
    std::fs::write(wanted.join("a.conf"), "{}").expect("write");
    assert_eq!(next(&mut events).await, Event::Cni);
}

#[tokio::test]
async fn who_had_the_lock_of_iptables_is_told_when_it_is_done() {
    let dir = tempfile::tempdir().expect("a directory");
    let file = dir.path().join("run/xtables.lock");
    std::fs::create_dir(dir.path().join("run")).expect("mkdir");
    std::fs::write(&file, "").expect("write");
    std::os::unix::fs::symlink("/proc", dir.path().join("proc")).expect("symlink");
    let uses = LockUses::default();
    let watched = Watched { host: HostRoot::new(dir.path()), uses: uses.clone() };
    let task = tokio::spawn(lock_file::watch(watched));
    let told = async |longer: u64| {
        timeout_at(Instant::now() + SOON, uses.told()).await.expect("a use");
        uses.take().all().map(|held| held.is_some_and(|held| held >= Duration::from_millis(longer)))
    };
    assert_eq!(told(1 << 20).await, [false, true], "what was before is not known");
    let held = std::fs::File::open(&file).expect("open");
    let quiet = timeout_at(Instant::now() + WINDOW * 3, uses.told()).await;
    assert!(quiet.is_err(), "not while it is held");
    drop(held);
    assert_eq!(told(250).await, [false, true], "this program is not one that does so all the time");
    // Gone: it is looked for again, later.
    std::fs::remove_file(&file).expect("remove");
    assert!(timeout_at(Instant::now() + WINDOW * 3, uses.told()).await.is_err());
    assert!(!task.is_finished());
    task.abort();
}

/// A message of nfnetlink.
fn message(kind: u16, attributes: &[u8]) -> Vec<u8> {
    let length = u32::try_from(20 + attributes.len()).expect("short");
    let mut bytes = length.to_ne_bytes().to_vec();
    bytes.extend(kind.to_ne_bytes());
    // Flags, sequence, port, and `struct nfgenmsg`.
    bytes.extend([0; 14]);
    bytes.extend(attributes);
    bytes
}

proptest! {
    #[test]
    fn any_bytes_are_a_commit_or_nothing(datagram in vec(any::<u8>(), 0..200)) {
        packet_filter(&datagram);
    }

    /// A commit is found behind other messages of its datagram, with attributes in any order and unknown ones between.
    #[test]
    fn a_commit_is_read_whatever_comes_with_it(
        generation in any::<u32>(),
        pid in any::<u32>(),
        program in "[a-z-]{1,15}",
        others in vec((any::<u16>(), vec(any::<u8>(), 0..12)), 0..3),
        turn in 0..4_usize,
    ) {
        let mut parts = [
            // `NFTA_GEN_ID`, `NFTA_GEN_PROC_PID`, `NFTA_GEN_PROC_NAME`, and one that no kernel has yet.
            attribute(1, &generation.to_be_bytes()),
            attribute(2, &pid.to_be_bytes()),
            attribute(3, &[program.as_bytes(), &[0]].concat()),
            attribute(99, &[1, 2, 3]),
        ];
        parts.rotate_left(turn);
        let commit = message(wire::NEW_GENERATION, &parts.concat());
        let before = others.iter().filter(|(kind, _)| *kind != wire::NEW_GENERATION);
        let before: Vec<u8> = before.flat_map(|(kind, value)| message(*kind, &attribute(1, value))).collect();
        let told = packet_filter(&[before, commit.clone()].concat());
        prop_assert_eq!(told, Some(Event::PacketFilter { generation, pid: Some(pid), program: Some(program) }));
        // Cut off anywhere it is nothing, and no other commit.
        for end in 0..commit.len() {
            let told = packet_filter(&commit[..end]);
            assert!(told.is_none(), "{end}: {told:?}");
        }
    }
}
