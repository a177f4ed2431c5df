//! A real containerd through its life: ready, stopped, going on, gone. Needs root and the program; without them the
//! test fails.

use std::process::{Child, Command, Stdio};

use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;

use super::*;

/// How long one step may take; starting loads all plugins.
const PATIENCE: Duration = Duration::from_secs(60);

/// A containerd with every path in a temporary directory.
struct Containerd {
    process: Child,
    root: tempfile::TempDir,
}

impl Containerd {
    fn start() -> Self {
        assert!(nix::unistd::geteuid().is_root(), "this test needs root, to run containerd");
        let root = tempfile::tempdir().expect("a temporary directory");
        let at = |name: &str| root.path().join(name).display().to_string();
        std::fs::create_dir_all(at("run/containerd")).expect("mkdir");
        std::fs::create_dir_all(at("net.d")).expect("mkdir");
        std::os::unix::fs::symlink("/proc", at("proc")).expect("link");
        let config = format!(
            "version = 2\n[plugins.\"io.containerd.internal.v1.opt\"]\n  path = \"{}\"\n\
             [plugins.\"io.containerd.grpc.v1.cri\".cni]\n  bin_dir = \"{}\"\n  conf_dir = \"{}\"\n",
            at("opt"),
            at("bin"),
            at("net.d"),
        );
        std::fs::write(at("config.toml"), config).expect("write");
        let log = std::fs::File::create(at("log")).expect("create");
        let process = Command::new("containerd")
            .args(["--config", &at("config.toml"), "--root", &at("root"), "--state", &at("state")])
            .args(["--address", &at("run/containerd/containerd.sock")])
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(log)
            .spawn()
            .expect("this test needs containerd: apt-get install containerd");
        Containerd { process, root }
    }

    fn signal(&self, signal: Signal) {
        let pid = i32::try_from(self.process.id()).expect("a process id");
        kill(Pid::from_raw(pid), signal).expect("it runs");
    }

    fn log(&self) -> String {
        std::fs::read_to_string(self.root.path().join("log")).unwrap_or_default()
    }
}

impl Drop for Containerd {
    fn drop(&mut self) {
        // SIGKILL ends a stopped process too.
        self.process.kill().ok();
        self.process.wait().ok();
    }
}

/// Looks until it sees what is expected. Each step of containerd's life takes a while on a busy machine.
async fn eventually(containerd: &Containerd, source: &mut CriSource, what: &str, is: fn(&Runtime) -> bool) -> Runtime {
    let started = Instant::now();
    loop {
        let runtime = source.look(None, true).await;
        if is(&runtime) {
            return runtime;
        }
        assert!(started.elapsed() < PATIENCE, "containerd is not {what}: {runtime:?}\n{}", containerd.log());
        tokio::time::sleep(Duration::from_millis(100)).await;
    }
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

#[tokio::test]
async fn a_real_containerd_that_is_ready_stopped_and_killed() {
    let mut containerd = Containerd::start();
    let mut source = CriSource::new(HostRoot::new(containerd.root.path()));
    let ready = eventually(&containerd, &mut source, "ready", answers).await;
    assert_eq!(ready.sandboxes, Seen::Yes(Vec::new()));
    let status = ready.status.get().cloned().expect("it answers");
    assert_eq!(status.name, "containerd");
    assert!(status.condition("RuntimeReady").is_some_and(|condition| condition.status), "{status:?}");
    assert!(status.condition("NetworkReady").is_some_and(|condition| !condition.status), "{status:?}");
    let (conf_dir, bin_dirs) = status.cni_dirs.expect("told");
    assert!(conf_dir.ends_with("/net.d") && bin_dirs.len() == 1, "{conf_dir} {bin_dirs:?}");
    assert!(status.cni_loopback, "it needs the plugin for every pod");
    let images = ready.image_filesystems.get().expect("told");
    assert!(images.len() == 1 && images[0].starts_with(&containerd.root.path().display().to_string()), "{images:?}");
    assert!(status.cni_load.as_ref().is_some_and(|load| load.contains("cni")), "{:?}", status.cni_load);

    containerd.signal(Signal::SIGSTOP);
    eventually(&containerd, &mut source, "stopped", hangs).await;
    let hung = source.look(None, true).await;
    assert!(hangs(&hung), "by a new connection too");
    let process = hung.hung.expect("it listens");
    assert_eq!(u32::try_from(process.pid), Ok(containerd.process.id()));
    assert!(process.threads > 3 && process.stopped == process.threads && process.stuck == 0, "{process:?}");
    containerd.signal(Signal::SIGCONT);
    let going = eventually(&containerd, &mut source, "going on", answers).await;
    assert_eq!(going.hung, None);

    containerd.process.kill().expect("it runs");
    containerd.process.wait().expect("it ends");
    eventually(&containerd, &mut source, "gone", refuses).await;
}

#[tokio::test]
async fn the_registries_of_the_images_that_it_keeps() {
    let containerd = Containerd::start();
    let mut first = CriSource::new(HostRoot::new(containerd.root.path()));
    eventually(&containerd, &mut first, "ready", answers).await;
    assert!(first.image_hosts().is_empty());
    let write = |name: &str, text: &str| std::fs::write(containerd.root.path().join(name), text).expect("write");
    let config =
        r#"{"architecture": "amd64", "os": "linux", "config": {}, "rootfs": {"type": "layers", "diff_ids": []}}"#;
    write("config.json", config);
    write("manifest.json", r#"[{"Config": "config.json", "RepoTags": ["registry.example/x:1"], "Layers": []}]"#);
    let run = |program: &str, args: &[&str]| {
        let output = Command::new(program).args(args).current_dir(containerd.root.path()).output();
        let output = output.unwrap_or_else(|error| panic!("{program}: {error}"));
        assert!(output.status.success(), "{program}: {}", String::from_utf8_lossy(&output.stderr));
    };
    run("tar", &["-cf", "image.tar", "manifest.json", "config.json"]);
    let import = ["-n", "k8s.io", "images", "import", "--no-unpack", "image.tar"];
    run("ctr", &[&["-a", "run/containerd/containerd.sock"][..], &import[..]].concat());
    // The list is asked for seldom: somebody who has not asked yet asks at once.
    let started = Instant::now();
    loop {
        let mut source = CriSource::new(HostRoot::new(containerd.root.path()));
        source.look(None, true).await;
        if source.image_hosts() == ["registry.example"] {
            return;
        }
        assert!(started.elapsed() < PATIENCE, "{:?}\n{}", source.image_hosts(), containerd.log());
        tokio::time::sleep(Duration::from_millis(100)).await;
    }
}
