//! A network namespace for one test inside the crate: real kernel, nobody else's network.

use std::fs::File;
use std::future::Future;
use std::io::Write;
use std::process::{Command, Output, Stdio};

use nix::sched::{CloneFlags, setns, unshare};

/// An anonymous network namespace; gone with this value and what runs inside.
pub(crate) struct NetNs(File);

impl NetNs {
    /// An empty network with `lo` up. Fails the test, with what to do, when it may not be made.
    pub(crate) fn new() -> Self {
        let made = std::thread::spawn(|| {
            unshare(CloneFlags::CLONE_NEWNET)?;
            File::open("/proc/thread-self/ns/net")
        });
        let made = made.join().expect("the thread does not panic");
        let namespace = NetNs(made.expect("this test makes a network namespace, which only root may"));
        namespace.command("ip", &["link", "set", "lo", "up"]);
        namespace
    }

    /// A path by which other processes open it, while this value is there.
    pub(crate) fn path(&self) -> String {
        format!("/proc/{}/fd/{}", std::process::id(), std::os::fd::AsRawFd::as_raw_fd(&self.0))
    }

    /// Runs `work` on a thread inside. Threads and processes that it starts are inside too; `/proc/net` is not, it is
    /// that of the process's first thread: read `/proc/thread-self/net`.
    pub(crate) fn run<T: Send>(&self, work: impl FnOnce() -> T + Send) -> T {
        let inside = || {
            setns(&self.0, CloneFlags::CLONE_NEWNET).expect("the namespace is held open");
            work()
        };
        std::thread::scope(|scope| scope.spawn(inside).join()).unwrap_or_else(|panic| std::panic::resume_unwind(panic))
    }

    /// Runs a future to its end on a runtime of its own inside.
    pub(crate) fn block_on<T: Send, F: Future<Output = T>>(&self, work: impl FnOnce() -> F + Send) -> T {
        self.run(|| {
            let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().expect("a runtime");
            runtime.block_on(work())
        })
    }

    /// Runs a command inside that must succeed, and returns what it printed.
    pub(crate) fn command(&self, program: &str, args: &[&str]) -> String {
        self.command_with_input(program, args, "")
    }

    /// [`NetNs::command`] with `input` on its standard input.
    pub(crate) fn command_with_input(&self, program: &str, args: &[&str], input: &str) -> String {
        let output = self.run(|| output(Command::new(program).args(args), input));
        let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
        assert!(output.status.success(), "{program} {args:?}: {}: {}", output.status, text(&output.stderr));
        text(&output.stdout)
    }
}

/// Set in the process that [`without_net_admin`] starts.
const POWERLESS: &str = "NODEVITALS_TEST_POWERLESS";

/// Runs `test` in a process without `CAP_NET_ADMIN`, in a namespace of its own: this program once more, for the test
/// `name` of `module` alone. A thread cannot give up a capability for itself in safe Rust.
pub(crate) fn without_net_admin(module: &str, name: &str, test: impl FnOnce()) {
    if std::env::var_os(POWERLESS).is_some() {
        return test();
    }
    let path = format!("{}::{name}", module.split_once("::").expect("the crate's name").1);
    let this = std::env::current_exe().expect("this program");
    let mut command = Command::new("setpriv");
    command.args(["--inh-caps=-net_admin", "--bounding-set=-net_admin", "--"]).arg(this);
    command.args(["--exact", &path]).env(POWERLESS, "1");
    let output = NetNs::new().run(|| output(&mut command, ""));
    let said = String::from_utf8_lossy(&output.stdout);
    assert!(output.status.success() && said.contains("1 passed"), "{said}{}", String::from_utf8_lossy(&output.stderr));
}

fn output(command: &mut Command, input: &str) -> Output {
    let mut child = command
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap_or_else(|error| panic!("{command:?}: {error}"));
    let mut stdin = child.stdin.take().expect("piped above");
    std::thread::scope(|scope| {
        // A command that does not read its input is no error.
        scope.spawn(move || stdin.write_all(input.as_bytes()).ok());
        child.wait_with_output().expect("the command ends")
    })
}
