//! Real containerds through their lives, of both major versions: ready, stopped, going on, gone; late; pods that cannot start;
//! thousands of containers; shims that outlive what is known of them. Needs root, containerd of the distribution, and the other
//! parts of `scripts/setup.sh test`; without them the tests fail.

use std::collections::BTreeMap;
use std::path::PathBuf;
use std::process::{Child, Command, Stdio};

use futures::FutureExt as _;
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use tokio::sync::Notify;

use self::ask::Asking;
use super::*;
use crate::checks::{self, Limits, Look, Outcome};
use crate::facts::{Expected, Identity, Remembered, Snapshot};

mod ask;
mod damage;
mod failing;
mod images;
mod left;
mod many;
mod slow;
mod snapshots;

/// How long one step may take; starting loads all plugins.
const PATIENCE: Duration = Duration::from_secs(60);

/// Its log, below the node's root: where a node keeps it as text.
const LOG: &str = "var/log/containerd.log";

const GO_MOD: &str = include_str!("../../../../../tests/containerd/go.mod");

/// Containerd 1.6 of the distribution.
fn one() -> PathBuf {
    "containerd".into()
}

/// Containerd 2, which the set-up script builds.
fn two() -> PathBuf {
    let version = GO_MOD.lines().find_map(|line| line.trim().strip_prefix("github.com/containerd/containerd/v2 "));
    let version = version.and_then(|rest| rest.split_whitespace().next()).expect("a version");
    let cache = cache().join(format!("containerd-{version}/containerd"));
    assert!(cache.exists(), "{} is missing: run scripts/setup.sh test", cache.display());
    cache
}

/// Where `scripts/setup.sh test` keeps what it builds.
fn cache() -> PathBuf {
    let home = || PathBuf::from(std::env::var_os("HOME").unwrap_or("/root".into())).join(".cache/nodevitals");
    std::env::var_os("NODEVITALS_CACHE").map_or_else(home, PathBuf::from)
}

/// A containerd with every path in a temporary directory, which stands for the node's root, and mounts of its own.
struct Containerd {
    process: Child,
    program: PathBuf,
    root: tempfile::TempDir,
}

impl Containerd {
    fn start(program: PathBuf) -> Self {
        assert!(nix::unistd::geteuid().is_root(), "this test needs root, to run containerd");
        let root = tempfile::tempdir().expect("a temporary directory");
        let at = |name: &str| root.path().join(name);
        for directory in ["run/containerd", "net.d", "bin", "var/lib/kubelet/pods", "var/log"] {
            std::fs::create_dir_all(at(directory)).expect("mkdir");
        }
        std::os::unix::fs::symlink("/proc", at("proc")).expect("link");
        // Network namespaces, where the configuration below puts them.
        std::os::unix::fs::symlink("../state/io.containerd.grpc.v1.cri/netns", at("run/netns")).expect("link");
        let cri = "[plugins.\"io.containerd.grpc.v1.cri\"";
        let config = format!(
            "version = 2\n[plugins.\"io.containerd.internal.v1.opt\"]\n  path = \"{opt}\"\n\
             {cri}]\n  sandbox_image = \"docker.io/library/pause:test\"\n  netns_mounts_under_state_dir = true\n  restrict_oom_score_adj = true\n\
             {cri}.cni]\n  bin_dir = \"{bin}\"\n  conf_dir = \"{net}\"\n",
            opt = at("opt").display(),
            bin = at("bin").display(),
            net = at("net.d").display(),
        );
        std::fs::write(at("config.toml"), config).expect("write");
        let process = Self::spawn(&program, root.path());
        Containerd { process, program, root }
    }

    fn spawn(program: &Path, root: &Path) -> Child {
        let at = |name: &str| root.join(name).display().to_string();
        let log = std::fs::File::options().create(true).append(true).open(at(LOG)).expect("create");
        // The shim is looked for beside the program first.
        let directories = program.parent().into_iter().map(|it| it.display().to_string()).filter(|it| !it.is_empty());
        let path = directories.chain([std::env::var("PATH").unwrap_or_default()]).collect::<Vec<_>>().join(":");
        Command::new("unshare")
            .args(["--mount", "--"])
            .arg(program)
            .args(["--config", &at("config.toml"), "--root", &at("root"), "--state", &at("state")])
            .args(["--address", &at("run/containerd/containerd.sock")])
            .env("PATH", path)
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(log)
            .spawn()
            .expect("this test needs containerd: apt-get install containerd")
    }

    fn kill(&mut self) {
        self.process.kill().ok();
        self.process.wait().ok();
    }

    fn restart(&mut self) {
        self.kill();
        self.process = Self::spawn(&self.program, self.root.path());
    }

    fn source(&self) -> CriSource {
        CriSource::new(HostRoot::new(self.root.path()))
    }

    fn signal(&self, signal: Signal) {
        let pid = i32::try_from(self.process.id()).expect("a process id");
        kill(Pid::from_raw(pid), signal).expect("it runs");
    }

    /// Where it listens.
    fn socket(&self) -> PathBuf {
        self.root.path().join("run/containerd/containerd.sock")
    }

    /// What its own client says to this, in the namespace of Kubernetes and the directory of this test. It must succeed.
    fn ctr(&self, args: &[&str]) -> String {
        let mut command = Command::new("ctr");
        command.current_dir(self.root.path()).arg("--address").arg(self.socket()).args(["--namespace", "k8s.io"]);
        let output = command.args(args).output().expect("containerd comes with ctr");
        assert!(output.status.success(), "{args:?}: {}", String::from_utf8_lossy(&output.stderr));
        String::from_utf8_lossy(&output.stdout).into_owned()
    }

    fn log(&self) -> String {
        std::fs::read_to_string(self.root.path().join(LOG)).unwrap_or_default()
    }

    /// The shims of this containerd, of all on this machine.
    fn shims(&self) -> Vec<i32> {
        let socket = self.socket().display().to_string();
        let processes = std::fs::read_dir("/proc").expect("readable").flatten();
        let pids = processes.filter_map(|entry| entry.file_name().to_str()?.parse::<i32>().ok());
        let line = |pid: i32| std::fs::read_to_string(format!("/proc/{pid}/cmdline")).unwrap_or_default();
        pids.filter(|pid| line(*pid).contains("containerd-shim") && line(*pid).contains(&socket)).collect()
    }

    /// Ends them, and what runs below.
    fn end_shims(&self) {
        for shim in self.shims() {
            let children = std::fs::read_to_string(format!("/proc/{shim}/task/{shim}/children")).unwrap_or_default();
            let children = children.split_whitespace().filter_map(|pid| pid.parse().ok());
            for pid in children.chain([shim]) {
                kill(Pid::from_raw(pid), Signal::SIGKILL).ok();
            }
        }
    }
}

impl Drop for Containerd {
    fn drop(&mut self) {
        // SIGKILL ends a stopped process too.
        self.kill();
        self.end_shims();
    }
}

/// Looks again and again until it is so. Each step of containerd's life takes a while on a busy machine.
async fn until<T>(containerd: &Containerd, what: &str, mut look: impl AsyncFnMut() -> Result<T, String>) -> T {
    let started = Instant::now();
    loop {
        match look().await {
            Ok(seen) => return seen,
            Err(seen) => assert!(started.elapsed() < PATIENCE, "it is not {what}: {seen}\n{}", containerd.log()),
        }
        tokio::time::sleep(Duration::from_millis(100)).await;
    }
}

/// Looks until the runtime is as expected.
async fn eventually(containerd: &Containerd, source: &mut CriSource, what: &str, is: fn(&Runtime) -> bool) -> Runtime {
    until(containerd, what, async || {
        let runtime = source.look(None, true).await;
        if is(&runtime) { Ok(runtime) } else { Err(format!("{runtime:?}")) }
    })
    .await
}

fn answers(runtime: &Runtime) -> bool {
    runtime.status.get().is_some() && runtime.sandboxes.get().is_some()
}

fn hangs(runtime: &Runtime) -> bool {
    reason(&runtime.status) == Some(Reason::TimedOut)
}

fn refuses(runtime: &Runtime) -> bool {
    reason(&runtime.status) == Some(Reason::Refused)
}

/// What each check makes of this; one object that nobody owns is one too many.
fn judged(seen: impl FnOnce(&mut Snapshot)) -> BTreeMap<&'static str, Outcome> {
    let mut now = Snapshot::blank(jiff::Timestamp::now(), Identity::default());
    seen(&mut now);
    let before = Remembered::default();
    let expected = Expected::of(&now, &before);
    let limits = Limits { abandoned_objects: 0, ..Limits::default() };
    let look = Look { now: &now, before: &before, expected: &expected, limits: &limits };
    checks::run_all(&look).into_iter().map(|(check, outcome)| (check.code, outcome)).collect()
}

/// What one check makes of this runtime.
fn outcome(runtime: &Runtime, code: &str) -> Outcome {
    judged(|now| now.runtime = runtime.clone()).remove(code).expect("a check")
}

/// What one check finds there.
fn details(runtime: &Runtime, code: &str) -> Vec<String> {
    let Outcome::Findings(findings) = outcome(runtime, code) else { return Vec::new() };
    findings.into_iter().map(|finding| finding.detail).collect()
}

/// What only an answer of the runtime can tell is unknown.
fn only_it_could_tell(runtime: &Runtime) {
    for code in ["RuntimeNotReady", "ContainerdSlow", "ImageFsStatsMissing", "PodSandboxFailing", "CniNotInitialized"] {
        assert!(matches!(outcome(runtime, code), Outcome::Unknown(_)), "{code}: {:?}", outcome(runtime, code));
    }
}

async fn through_its_life(program: PathBuf, version: &str) {
    let mut containerd = Containerd::start(program);
    let closed = Arc::<Notify>::default();
    let mut source = containerd.source().waking(Arc::clone(&closed));
    let ready = eventually(&containerd, &mut source, "ready", answers).await;
    assert_eq!(ready.sandboxes, Seen::Yes(Vec::new()));
    let status = ready.status.get().cloned().expect("it answers");
    assert_eq!(status.name, "containerd");
    assert!(status.version.trim_start_matches('v').starts_with(version), "{status:?}");
    assert!(status.condition("RuntimeReady").is_some_and(|condition| condition.status), "{status:?}");
    assert!(status.condition("NetworkReady").is_some_and(|condition| !condition.status), "{status:?}");
    let (conf_dir, bin_dirs) = status.cni_dirs.expect("told");
    assert!(conf_dir.ends_with("/net.d") && bin_dirs.len() == 1, "{conf_dir} {bin_dirs:?}");
    assert!(status.cni_loopback, "it needs the plugin for every pod");
    let images = ready.image_filesystems.get().expect("told");
    assert!(images.len() == 1 && images[0].starts_with(&containerd.root.path().display().to_string()), "{images:?}");
    assert!(status.cni_load.as_ref().is_some_and(|load| load.contains("cni")), "{:?}", status.cni_load);
    let well = |runtime: &Runtime, codes: &[&str]| {
        for code in codes {
            assert_eq!(outcome(runtime, code), Outcome::Healthy, "{code}");
        }
    };
    // Its network is no fault of its own.
    well(&ready, &["RuntimeNotReady", "ImageFsStatsMissing", "ContainerdDown", "ContainerdUnresponsive"]);
    let told = details(&ready, "CniNotInitialized");
    assert!(told[0].contains("NetworkReady=false, NetworkPluginNotReady: Network plugin returns error: "), "{told:?}");

    containerd.signal(Signal::SIGSTOP);
    eventually(&containerd, &mut source, "stopped", hangs).await;
    let hung = source.look(None, true).await;
    assert!(hangs(&hung), "by a new connection too");
    let process = hung.hung.expect("it listens");
    assert_eq!(u32::try_from(process.pid), Ok(containerd.process.id()));
    assert!(process.threads > 3 && process.stopped == process.threads && process.stuck == 0, "{process:?}");
    let told = details(&hung, "ContainerdUnresponsive");
    assert!(told[0].contains("does not answer") && told[0].contains(" is stopped by a signal ("), "{told:?}");
    only_it_could_tell(&hung);
    well(&hung, &["ContainerdDown"]);
    containerd.signal(Signal::SIGCONT);
    let going = eventually(&containerd, &mut source, "going on", answers).await;
    assert_eq!(going.hung, None);
    well(&going, &["ContainerdUnresponsive", "RuntimeNotReady"]);

    // What was told of connections before is no news.
    closed.notified().now_or_never();
    containerd.process.kill().expect("it runs");
    containerd.process.wait().expect("it ends");
    tokio::time::timeout(PATIENCE, closed.notified()).await.expect("its end is told, without a look");
    let gone = eventually(&containerd, &mut source, "gone", refuses).await;
    let told = details(&gone, "ContainerdDown");
    assert!(told[0].contains("is down: nobody listens on /run/containerd/containerd.sock"), "{told:?}");
    only_it_could_tell(&gone);
    well(&gone, &["ContainerdUnresponsive"]);
    containerd.restart();
    let again = eventually(&containerd, &mut source, "ready again", answers).await;
    well(&again, &["ContainerdDown", "RuntimeNotReady"]);
}

#[tokio::test]
async fn containerd_1_that_is_ready_stopped_and_killed() {
    through_its_life(one(), "1.").await;
}

#[tokio::test]
async fn containerd_2_that_is_ready_stopped_and_killed() {
    through_its_life(two(), "2.").await;
}
