//! Pods and their containers by the thousand, started and removed again.

use super::*;
use crate::agent::observe::debris::DebrisSource;
use crate::agent::observe::processes::{Attendants, Shim};

/// Descriptors, kilobytes of memory and milliseconds of CPU of this process.
fn held() -> (usize, u64, u64) {
    let status = std::fs::read_to_string("/proc/self/status").expect("readable");
    let anonymous = status.lines().find_map(|line| line.strip_prefix("RssAnon:")).expect("told");
    let anonymous = anonymous.trim().trim_end_matches(" kB").parse().expect("a number");
    let usage = nix::sys::resource::getrusage(nix::sys::resource::UsageWho::RUSAGE_SELF).expect("readable");
    let times = [usage.user_time(), usage.system_time()];
    let cpu = times.iter().map(|time| time.tv_sec() * 1000 + time.tv_usec() / 1000).sum::<i64>().unsigned_abs();
    (std::fs::read_dir("/proc/self/fd").expect("readable").count(), anonymous, cpu)
}

/// As many of each hundred are started: each costs as much as twenty that are only made.
const STARTED: usize = 20;

/// The shims once there are so many: one ends in its own time after its pod.
async fn shims(containerd: &Containerd, expected: usize) -> Vec<i32> {
    let started = Instant::now();
    loop {
        let shims = containerd.shims();
        if shims.len() == expected || started.elapsed() > PATIENCE {
            return shims;
        }
        tokio::time::sleep(Duration::from_millis(100)).await;
    }
}

/// Pods come and go with a hundred containers each, while the runtime and what is left behind are looked at; then the runtime is
/// stopped for a while.
async fn two_thousand_containers(program: PathBuf) {
    let containerd = Containerd::start(program);
    let mut source = containerd.source();
    eventually(&containerd, &mut source, "ready", answers).await;
    let asking = Asking::of(&containerd).await;
    let (mut debris, mut now) = (DebrisSource::new(HostRoot::new(containerd.root.path())), Duration::ZERO);
    let (mut before, mut cpu, mut told) = (None, 0, None);
    for round in 0..20 {
        let sandbox = asking.sandbox("web", round, true).await.expect("it starts");
        let ids = asking.containers(&sandbox, round, 100).await;
        asking.start(&ids[..STARTED]).await;
        // They are there, in the care of a shim that the runtime knows; then none is left.
        for running in [true, false] {
            if !running {
                asking.remove(ids.clone()).await;
                asking.remove_sandbox(sandbox.clone()).await;
            }
            // The kubelet has a directory for each pod as long as it runs.
            let pod = containerd.root.path().join(format!("var/lib/kubelet/pods/uid-web-{round}"));
            if running { std::fs::create_dir(pod) } else { std::fs::remove_dir(pod) }.expect("the pod's directory");
            source.inventory = None;
            let (_, _, began) = held();
            let runtime = source.look(None, true).await;
            cpu += held().2 - began;
            assert!(answers(&runtime), "{runtime:?}");
            assert_eq!(runtime.failures, crate::facts::SandboxFailures::default());
            let inventory = source.inventory().expect("counted");
            assert_eq!((inventory.sandboxes.len(), inventory.exited.len()), (usize::from(running), 0));
            now += Duration::from_secs(120);
            let shims = shims(&containerd, usize::from(running)).await.into_iter();
            let shims = shims.map(|pid| Shim { pid, sandbox: sandbox.clone().into(), by_pod: false });
            let attendants = Attendants { shims: shims.collect(), ..Attendants::default() };
            assert_eq!(attendants.shims.len(), usize::from(running), "one shim for a pod with all of its containers");
            told = debris.look(now, &inventory, &attendants, ("/var/lib/kubelet/pods", "/")).expect("readable");
        }
        before.get_or_insert_with(held);
    }
    let left = told.expect("eighty minutes");
    let counts =
        [left.shim_count, left.zombies, left.containers, left.sandboxes, left.namespaces, left.cgroups, left.exited];
    assert_eq!((counts, left.growing), ([0; 7], Vec::new()), "what comes and goes is no leak");
    let (before, after) = (before.expect("twenty rounds"), held());
    assert!(after.0 <= before.0, "descriptors: {before:?} became {after:?}");
    assert!(after.1 < before.1 + 1024, "anonymous memory: {before:?} became {after:?}");
    // Forty looks, half of them at a hundred containers; without optimisation.
    assert!(cpu < 10_000, "{cpu} ms");
    containerd.signal(Signal::SIGSTOP);
    // Its threads stop one by one.
    eventually(&containerd, &mut source, "stopped", hangs).await;
    for _ in 0..3 {
        assert!(hangs(&source.look(None, true).await));
    }
    containerd.signal(Signal::SIGCONT);
    eventually(&containerd, &mut source, "going on", answers).await;
}

#[tokio::test]
#[ignore = "counts what this process holds, so nothing may run beside it; takes a minute"]
async fn containerd_1_two_thousand_containers() {
    two_thousand_containers(one()).await;
}

#[tokio::test]
#[ignore = "counts what this process holds, so nothing may run beside it; takes a minute"]
async fn containerd_2_two_thousand_containers() {
    two_thousand_containers(two()).await;
}
