//! Shims that outlive what is known of them, or do not reap what ended below them: what is told of them once that has lasted, and
//! until it is over.

use std::collections::HashSet;

use super::*;
use crate::agent::observe::debris::DebrisSource;
use crate::agent::observe::processes::{Attendants, ProcessSource};

/// From when on something without an owner counts.
const OLD: Duration = Duration::from_secs(600);

/// The shims of this containerd in the process table, and those of these processes that have ended below them.
fn attendants(containerd: &Containerd, below: &[i32]) -> Attendants {
    let own: HashSet<i32> = containerd.shims().into_iter().collect();
    let mut processes = ProcessSource::new(HostRoot::new("/"));
    // The second look asks the shims that the first one found, some at a time; a second walk sees who has ended.
    for minutes in 0..50 {
        let since_boot = crate::clock::since_boot() + Duration::from_secs(60) * minutes;
        processes.look(jiff::Timestamp::now(), since_boot).expect("readable");
    }
    let all = processes.attendants();
    Attendants {
        shims: all.shims.iter().filter(|shim| own.contains(&shim.pid)).cloned().collect(),
        zombies: all.zombies.iter().filter(|(pid, _)| below.contains(pid)).copied().collect(),
        ..Attendants::default()
    }
}

/// What is told of debris.
pub(super) fn said(debris: Option<crate::facts::Debris>) -> BTreeMap<&'static str, String> {
    let told = judged(|now| now.debris = debris.map_or(Seen::Absent, Seen::Yes));
    let told = told.into_iter().filter_map(|(code, outcome)| match outcome {
        Outcome::Findings(findings) if ["ShimLeak", "RuntimeObjectLeak"].contains(&code) => {
            Some((code, findings.into_iter().map(|finding| finding.detail).collect::<Vec<_>>().join("; ")))
        }
        _ => None,
    });
    told.collect()
}

/// The runtime's store is lost, as after an unclean reboot, and the pod runs on.
async fn a_shim_that_outlives_the_store(program: PathBuf) {
    let mut containerd = Containerd::start(program);
    let mut source = containerd.source();
    eventually(&containerd, &mut source, "ready", answers).await;
    let asking = Asking::of(&containerd).await;
    let sandbox = asking.sandbox("web", 0, true).await.expect("it starts");
    std::fs::create_dir(containerd.root.path().join("var/lib/kubelet/pods/uid-web-0")).expect("mkdir");
    let mut debris = DebrisSource::new(HostRoot::new(containerd.root.path()));
    let mut look = |now, source: &CriSource, containerd: &Containerd| {
        let (known, shims) = (source.inventory().expect("counted"), attendants(containerd, &[]));
        let pods = ("/var/lib/kubelet/pods", "/");
        (shims.shims.len(), said(debris.look(now, &known, &shims, pods).expect("readable")))
    };
    source.inventory = None;
    source.look(None, true).await;
    for now in [Duration::ZERO, OLD] {
        assert_eq!(look(now, &source, &containerd), (1, BTreeMap::new()), "the runtime knows its own");
    }
    containerd.kill();
    for lost in ["root", "state"] {
        std::fs::rename(containerd.root.path().join(lost), containerd.root.path().join(format!("{lost}-lost")))
            .expect("mv");
    }
    containerd.restart();
    eventually(&containerd, &mut source, "ready", answers).await;
    assert_eq!(look(OLD, &source, &containerd), (1, BTreeMap::new()), "it may just be removed");
    let (_, told) = look(OLD * 2, &source, &containerd);
    let shim =
        format!("The runtime knows no sandbox for 1 shim that runs: {} ({})", containerd.shims()[0], &sandbox[..13]);
    assert_eq!(told.get("ShimLeak"), Some(&shim), "{told:?}");
    assert_eq!(told["RuntimeObjectLeak"], "1 objects have no pod any more: 1 shims");
    containerd.end_shims();
    until(&containerd, "without shims", async || {
        let shims = containerd.shims();
        if shims.is_empty() { Ok(()) } else { Err(format!("{shims:?}")) }
    })
    .await;
    assert_eq!(look(OLD * 2, &source, &containerd), (0, BTreeMap::new()), "it has ended");
}

#[tokio::test]
async fn containerd_1_a_shim_that_outlives_the_store() {
    a_shim_that_outlives_the_store(one()).await;
}

#[tokio::test]
async fn containerd_2_a_shim_that_outlives_the_store() {
    a_shim_that_outlives_the_store(two()).await;
}

/// The state of a process; none when it is gone.
fn state(pid: i32) -> Option<char> {
    let stat = std::fs::read_to_string(format!("/proc/{pid}/stat")).ok()?;
    stat.rsplit_once(") ")?.1.chars().next()
}

/// The shim is stopped when its pod ends: nobody asks what became of it.
async fn a_shim_that_does_not_reap(program: PathBuf) {
    let containerd = Containerd::start(program);
    let mut source = containerd.source();
    eventually(&containerd, &mut source, "ready", answers).await;
    Asking::of(&containerd).await.sandbox("web", 0, true).await.expect("it starts");
    std::fs::create_dir(containerd.root.path().join("var/lib/kubelet/pods/uid-web-0")).expect("mkdir");
    source.inventory = None;
    source.look(None, true).await;
    let known = source.inventory().expect("counted");
    let shim = containerd.shims()[0];
    let children = std::fs::read_to_string(format!("/proc/{shim}/task/{shim}/children")).expect("readable");
    let below: Vec<i32> = children.split_whitespace().map(|pid| pid.parse().expect("a process id")).collect();
    assert_eq!(below.len(), 1, "the pod's first process: {children}");
    let mut debris = DebrisSource::new(HostRoot::new(containerd.root.path()));
    let mut look = |now| {
        let attendants = attendants(&containerd, &below);
        let pods = ("/var/lib/kubelet/pods", "/");
        (attendants.zombies.len(), said(debris.look(now, &known, &attendants, pods).expect("readable")))
    };
    assert_eq!(look(Duration::ZERO), (0, BTreeMap::new()), "it runs");
    for (pid, signal) in [(shim, Signal::SIGSTOP), (below[0], Signal::SIGKILL)] {
        kill(Pid::from_raw(pid), signal).expect("it runs");
    }
    let ended = async |expected: Option<char>| {
        until(&containerd, "ended", async || {
            let state = state(below[0]);
            if state == expected { Ok(()) } else { Err(format!("{state:?}")) }
        })
        .await;
    };
    ended(Some('Z')).await;
    assert_eq!(look(OLD), (1, BTreeMap::new()), "it may just be reaped");
    let (_, told) = look(OLD * 2);
    let zombie = "1 ended child of the runtime, its shims or the kubelet were not reaped for ten minutes".to_owned();
    assert_eq!(told, BTreeMap::from([("ShimLeak", zombie)]));
    kill(Pid::from_raw(shim), Signal::SIGCONT).expect("it is there");
    ended(None).await;
    assert_eq!(look(OLD * 3), (0, BTreeMap::new()), "it is reaped");
}

#[tokio::test]
async fn containerd_1_a_shim_that_does_not_reap() {
    a_shim_that_does_not_reap(one()).await;
}

#[tokio::test]
async fn containerd_2_a_shim_that_does_not_reap() {
    a_shim_that_does_not_reap(two()).await;
}
