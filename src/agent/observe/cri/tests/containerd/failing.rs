//! Pods whose network a plugin refuses: told after minutes in the plugin's own words, and over when it makes one.

use std::os::unix::fs::PermissionsExt;

use super::*;

const CODE: &str = "PodSandboxFailing";
const MINUTE: Duration = Duration::from_secs(60);

/// A CNI plugin that does this to a pod that comes.
fn plugin(add: &str) -> String {
    format!("#!/bin/sh\ncat >/dev/null\n[ \"$CNI_COMMAND\" = ADD ] || exit 0\n{add}\n")
}

/// In Calico's words.
const REFUSES: &str = "echo '{\"cniVersion\":\"0.4.0\",\"code\":11,\"msg\":\"cannot allocate new block due to per host block limit\"}'\nexit 1";
const MAKES: &str = "echo '{\"cniVersion\":\"0.4.0\",\"ips\":[{\"version\":\"4\",\"address\":\"10.9.0.2/24\"}]}'";

/// What is seen now; everything is counted.
async fn counted(source: &mut CriSource) -> Runtime {
    source.inventory = None;
    source.look(None, true).await
}

async fn pods_that_cannot_start(program: PathBuf) {
    let containerd = Containerd::start(program);
    let at = |name: &str| containerd.root.path().join(name);
    std::fs::write(at("bin/pods"), plugin(REFUSES)).expect("write");
    std::fs::set_permissions(at("bin/pods"), std::fs::Permissions::from_mode(0o755)).expect("chmod");
    std::fs::copy("/usr/lib/cni/loopback", at("bin/loopback")).expect("a plugin of the distribution");
    let conflist = r#"{"cniVersion": "0.4.0", "name": "pods", "plugins": [{"type": "pods"}]}"#;
    std::fs::write(at("net.d/10-pods.conflist"), conflist).expect("write");
    let mut source = containerd.source();
    let ready = eventually(&containerd, &mut source, "ready", |runtime| {
        let network = runtime.status.get().and_then(|status| status.condition("NetworkReady"));
        answers(runtime) && network.is_some_and(|network| network.status)
    })
    .await;
    assert_eq!(outcome(&ready, CODE), Outcome::Healthy);
    let asking = Asking::of(&containerd).await;
    let refused = async |attempt| {
        let said = asking.sandbox("web", attempt, false).await.expect_err("the plugin refuses");
        let why = crate::checks::sandbox_failure::classify(&said).expect("known words");
        assert_eq!(why.what, "this worker may have no further block of addresses", "{said}");
    };
    for attempt in 0..6 {
        refused(attempt).await;
        let failures = counted(&mut source).await.failures;
        assert!(failures.attempts >= attempt && failures.goes_on, "{failures:?}\n{}", containerd.log());
    }
    // As while Calico is restarted: of one minute, unless this machine is very busy.
    let early = counted(&mut source).await;
    assert!(early.failures.attempts >= 5, "{:?}", early.failures);
    assert_eq!(details(&early, CODE).is_empty(), early.failures.minutes < 3, "{:?}", early.failures);
    for attempt in 6..9 {
        crate::clock::pass(MINUTE);
        refused(attempt).await;
        counted(&mut source).await;
    }
    let lasting = counted(&mut source).await;
    let told = details(&lasting, CODE).join("; ");
    let because = ": this worker may have no further block of addresses (the last one said: cannot allocate new block due to per host block limit)";
    assert!(
        told.starts_with("At least ")
            && told.contains(" attempts to make a pod's sandbox came to nothing in ten minutes"),
        "{told} {lasting:?}"
    );
    assert!(told.ends_with(because), "{told}\n{}", containerd.log());

    std::fs::write(at("bin/pods"), plugin(MAKES)).expect("write");
    asking.sandbox("web", 9, false).await.expect("the plugin makes its network");
    crate::clock::pass(MINUTE * 3);
    let well = counted(&mut source).await;
    assert_eq!((outcome(&well, CODE), well.sandboxes.get().map(Vec::len)), (Outcome::Healthy, Some(1)));
    crate::clock::pass(MINUTE * 10);
    assert_eq!(counted(&mut source).await.failures, crate::facts::SandboxFailures::default(), "it is forgotten");
}

#[tokio::test]
async fn containerd_1_pods_that_cannot_start() {
    pods_that_cannot_start(one()).await;
}

#[tokio::test]
async fn containerd_2_pods_that_cannot_start() {
    pods_that_cannot_start(two()).await;
}
