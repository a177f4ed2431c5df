//! A network namespace for one test.

use std::{
    ffi::OsStr,
    fs::File,
    os::fd::AsRawFd,
    panic::resume_unwind,
    process::{Command, Stdio},
    thread,
};

use anyhow::{Context, Result, anyhow};
use nix::{
    mount::{MntFlags, MsFlags, mount, umount2},
    sched::{CloneFlags, setns, unshare},
};

use super::shell;

/// A network namespace, and a mount namespace whose `/sys` shows that network and where a test may mount what it likes.
///
/// Both have no name and are gone when this value, and what was started in it, is.
pub struct NetNs {
    network: File,
    mounts: File,
}

impl NetNs {
    /// An empty network whose loopback interface is up.
    pub fn new() -> Result<Self> {
        let made = thread::spawn(|| {
            unshare(CloneFlags::CLONE_NEWNET | CloneFlags::CLONE_NEWNS)
                .context("cannot make a network namespace: are you root?")?;
            show_own_network_in_sys()?;
            shell::read(&mut shell::command(&["ip", "link", "set", "lo", "up"]))?;
            Ok(Self {
                network: File::open("/proc/thread-self/ns/net")?,
                mounts: File::open("/proc/thread-self/ns/mnt")?,
            })
        });
        made.join().map_err(|_| anyhow!("the thread that makes a namespace panicked"))?
    }

    /// Runs `work` on a thread inside. Sockets made there stay there.
    ///
    /// `/proc/net` is that of the process's first thread: read `/proc/thread-self/net`.
    pub fn run<T: Send>(&self, work: impl FnOnce() -> T + Send) -> T {
        run_in(&[(&self.mounts, CloneFlags::CLONE_NEWNS), (&self.network, CloneFlags::CLONE_NEWNET)], work)
    }

    /// A command that runs inside, with `/` as its working directory. It ends with the thread that starts it.
    pub fn command(&self, program: impl AsRef<OsStr>) -> Command {
        let mut command = Command::new("setpriv");
        command
            .args(["--pdeathsig", "KILL", "nsenter"])
            .arg(format!("--net={}", as_path(&self.network)))
            .arg(format!("--mount={}", as_path(&self.mounts)))
            .arg("--")
            .arg(program)
            .stdin(Stdio::null());
        command
    }

    /// Runs a command inside that must succeed, and returns what it printed.
    pub fn exec(&self, argv: &[&str]) -> Result<String> {
        shell::read(self.command(argv[0]).args(&argv[1..]))
    }

    /// Joins this namespace with `other` by a virtual cable whose ends are the named interfaces; both are up.
    pub fn connect(&self, interface: &str, other: &Self, other_interface: &str) -> Result<()> {
        let peer = as_path(&other.network);
        self.exec(&["ip", "link", "add", interface, "type", "veth", "peer", "name", other_interface, "netns", &peer])?;
        self.exec(&["ip", "link", "set", interface, "up"])?;
        other.exec(&["ip", "link", "set", other_interface, "up"])?;
        Ok(())
    }
}

/// A path by which other processes open what this one holds open.
fn as_path(file: &File) -> String {
    format!("/proc/{}/fd/{}", std::process::id(), file.as_raw_fd())
}

/// Runs `work` on a thread that has entered these namespaces.
pub(super) fn run_in<T: Send>(namespaces: &[(&File, CloneFlags)], work: impl FnOnce() -> T + Send) -> T {
    let inside = || {
        // A thread that shares its working directory with others may not change its mounts.
        unshare(CloneFlags::CLONE_FS).expect("a thread may have a working directory of its own");
        for (namespace, kind) in namespaces {
            setns(namespace, *kind).expect("root may enter a namespace that is held open");
        }
        work()
    };
    thread::scope(|scope| scope.spawn(inside).join()).unwrap_or_else(|panic| resume_unwind(panic))
}

/// A fresh `/sys` for this thread's network namespace, with the machine's cgroups in it.
fn show_own_network_in_sys() -> Result<()> {
    const NONE: Option<&str> = None;
    let cgroups = tempfile::tempdir()?;
    mount(NONE, "/", NONE, MsFlags::MS_REC | MsFlags::MS_PRIVATE, NONE)?;
    mount(Some("/sys/fs/cgroup"), cgroups.path(), NONE, MsFlags::MS_BIND | MsFlags::MS_REC, NONE)?;
    umount2("/sys", MntFlags::MNT_DETACH)?;
    mount(Some("sysfs"), "/sys", Some("sysfs"), MsFlags::empty(), NONE)?;
    mount(Some(cgroups.path()), "/sys/fs/cgroup", NONE, MsFlags::MS_MOVE, NONE)?;
    Ok(())
}
