//! A containerd that answers late: told when two windows agree, and over when it answers at once again. It stands still for a while
//! in some of the looks; between the windows time passes at once.

use super::*;
use crate::agent::observe::processes;
use crate::facts::CallLatency;

const CODE: &str = "ContainerdSlow";
/// Of one window; one answer in twenty of these is two of them.
const LOOKS: usize = 40;
const LATE: usize = 4;
/// Longer than a second, which is slow on any node, and shorter than a call waits.
const STILL: Duration = Duration::from_millis(1200);

/// One look, in which it answers, but late.
async fn late(containerd: &Containerd, source: &mut CriSource) {
    until(containerd, "late", async || {
        // On a busy machine the one before may have waited too long: that it hangs is another matter, and is over.
        eventually(containerd, source, "answering", answers).await;
        containerd.signal(Signal::SIGSTOP);
        // Its threads stop one by one.
        until(containerd, "stopped", async || {
            let pid = i32::try_from(containerd.process.id()).expect("a process id");
            let threads = processes::threads(&HostRoot::new("/"), pid).expect("it is there");
            if threads.stopped == threads.threads { Ok(()) } else { Err(format!("{threads:?}")) }
        })
        .await;
        let go_on = async {
            tokio::time::sleep(STILL).await;
            containerd.signal(Signal::SIGCONT);
        };
        let (runtime, ()) = tokio::join!(source.look(None, true), go_on);
        if answers(&runtime) { Ok(()) } else { Err(format!("{runtime:?}")) }
    })
    .await;
}

/// What is told at the end of a window with so many answers that come late.
async fn window(containerd: &Containerd, source: &mut CriSource, late_ones: usize) -> Runtime {
    for _ in 0..late_ones {
        late(containerd, source).await;
    }
    for _ in late_ones..LOOKS {
        source.look(None, true).await;
    }
    crate::clock::pass(latency::WINDOW);
    eventually(containerd, source, "answering", answers).await
}

/// Whether each kind of call is usual on this node, and was quick in the last window.
fn quick(runtime: &Runtime) -> bool {
    let all = &runtime.latency;
    all.len() == 3 && all.iter().all(|call| call.usual.is_some() && !CallLatency::is_slow(call.now, call.usual))
}

async fn that_answers_late(program: PathBuf) {
    let containerd = Containerd::start(program);
    let mut source = containerd.source();
    let ready = eventually(&containerd, &mut source, "ready", answers).await;
    assert_eq!((outcome(&ready, CODE), ready.latency.len()), (Outcome::Healthy, 0), "nothing is measured yet");
    crate::clock::pass(latency::SETTLING);
    let till_quick = async |source: &mut CriSource| {
        until(&containerd, "known and quick", async || {
            let runtime = window(&containerd, source, 0).await;
            if quick(&runtime) { Ok(runtime) } else { Err(format!("{:?}", runtime.latency)) }
        })
        .await
    };
    let usual = till_quick(&mut source).await;
    assert_eq!(outcome(&usual, CODE), Outcome::Healthy, "{:?}", usual.latency);
    // As while images are collected.
    let once = window(&containerd, &mut source, LATE).await;
    assert!(once.latency.iter().any(|call| CallLatency::is_slow(call.now, call.usual)), "{:?}", once.latency);
    assert_eq!(outcome(&once, CODE), Outcome::Healthy, "{:?}", once.latency);
    let twice = window(&containerd, &mut source, LATE).await;
    let told = details(&twice, CODE).join("; ");
    assert!(told.starts_with("containerd ") && told.contains(" has been slow for ten minutes: "), "{told} {twice:?}");
    assert!(told.contains(" ms (usually ") && told.contains("; even Version, which does nothing, is slow"), "{told}");
    let over = till_quick(&mut source).await;
    assert_eq!(outcome(&over, CODE), Outcome::Healthy, "{:?}", over.latency);
}

#[tokio::test]
async fn containerd_1_that_answers_late() {
    that_answers_late(one()).await;
}

#[tokio::test]
async fn containerd_2_that_answers_late() {
    that_answers_late(two()).await;
}
