//! A machine made of namespaces, and the programs that run on it.

use std::{
    collections::BTreeMap,
    ffi::OsStr,
    fs::{self, File, OpenOptions},
    io::{BufRead, BufReader},
    path::{Path, PathBuf},
    process::{Child, Command, Output, Stdio},
    sync::{Mutex, MutexGuard, PoisonError},
    time::Duration,
};

use anyhow::{Context, Result, bail, ensure};
use nix::{
    sched::CloneFlags,
    sys::signal::{Signal, kill},
    unistd::Pid,
};

use super::{netns::run_in, shell, wait::within};

/// What the first process of a host does once it is set up: reap orphans, and end when the test process does, since
/// that holds the other end of its standard input. The kernel then ends everything else on the host.
const LIVE: &str = "echo ready >&3; exec 3>&-; while read -r _; do :; done";

/// Network, mount, PID and UTS namespaces with a first process of their own.
pub struct Host {
    name: String,
    logs: PathBuf,
    programs: Mutex<BTreeMap<String, Program>>,
    init: Pid,
    unshare: Child,
}

/// A running program, and `nsenter`, which waits for it outside.
struct Program {
    pid: Pid,
    nsenter: Child,
}

impl Host {
    /// Makes the namespaces and runs `setup`, a bash script, as their first process.
    pub fn start(name: &str, setup: &str, environment: &[(&str, &OsStr)], logs: &Path) -> Result<Self> {
        // A file, so that the first process has a short name for those who list processes.
        let script = logs.join(format!("{name}-setup.sh"));
        fs::write(&script, format!("set -eu\nexec 3>&1 >&2\nhostname {name}\nip link set lo up\n{setup}\n{LIVE}\n"))?;
        let log = logs.join(format!("{name}-setup.log"));
        let mut unshare = Command::new("unshare")
            .args(["--net", "--mount", "--pid", "--uts"])
            .args(["--fork", "--mount-proc", "--kill-child"])
            .arg("bash")
            .arg(&script)
            .envs(environment.iter().copied())
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(File::create(&log)?)
            .spawn()
            .context("unshare does not start")?;

        let mut answer = String::new();
        let stdout = unshare.stdout.take().expect("piped above");
        BufReader::new(stdout).read_line(&mut answer)?;
        if answer.trim() != "ready" {
            let _ = unshare.wait();
            bail!("host {name} is not set up: {}", tail(&log));
        }
        let init = only_child(unshare.id()).and_then(as_pid).context("the first process is gone")?;
        Ok(Self { name: name.into(), logs: logs.into(), programs: Mutex::default(), init, unshare })
    }

    /// The first process, as this process sees it.
    pub fn init(&self) -> Pid {
        self.init
    }

    /// Starts a program that goes on by itself; its output is added to [`Host::log`].
    pub fn spawn<S: AsRef<OsStr>>(&self, program: &str, argv: &[S]) -> Result<()> {
        ensure!(self.pid(program).is_err(), "{program} runs already on {}", self.name);
        let log = OpenOptions::new().create(true).append(true).open(self.log(program))?;
        // In a session of its own, as a service is. Also: without `setsid` in between, `nsenter` would stop when the
        // program is stopped, and then neither would be reaped.
        let mut nsenter = self
            .enter(&["setsid", "--fork", "--wait"])
            .args(argv)
            .stdout(log.try_clone()?)
            .stderr(log)
            .spawn()
            .with_context(|| format!("nsenter does not start {program}"))?;
        let pid = within(Duration::from_secs(5), || only_child(only_child(nsenter.id())?).and_then(as_pid))
            .with_context(|| {
                let _ = nsenter.kill();
                format!("{program} ended at once on {}: {}", self.name, tail(&self.log(program)))
            })?;
        self.programs().insert(program.into(), Program { pid, nsenter });
        Ok(())
    }

    /// The program's process, as this process sees it; an error if it does not run.
    pub fn pid(&self, program: &str) -> Result<Pid> {
        let mut programs = self.programs();
        let entry = programs.get_mut(program).with_context(|| format!("{program} does not run on {}", self.name))?;
        if let Some(status) = entry.nsenter.try_wait()? {
            programs.remove(program);
            bail!("{program} ended on {} with {status}: {}", self.name, tail(&self.log(program)));
        }
        Ok(entry.pid)
    }

    pub fn signal(&self, program: &str, signal: Signal) -> Result<()> {
        Ok(kill(self.pid(program)?, signal)?)
    }

    /// Kills a program, also a stopped one, and waits until it is gone.
    pub fn kill(&self, program: &str) -> Result<()> {
        self.end(program, Signal::SIGKILL)
    }

    /// Asks a program to end, and waits until it has.
    pub fn terminate(&self, program: &str) -> Result<()> {
        self.end(program, Signal::SIGTERM)
    }

    fn end(&self, program: &str, signal: Signal) -> Result<()> {
        self.signal(program, signal)?;
        let ended = self.programs().remove(program);
        if let Some(Program { mut nsenter, .. }) = ended {
            nsenter.wait()?;
        }
        Ok(())
    }

    /// Where a program's output goes.
    pub fn log(&self, program: &str) -> PathBuf {
        self.logs.join(format!("{}-{program}.log", self.name))
    }

    /// Runs a command on the host to its end.
    pub fn exec<S: AsRef<OsStr>>(&self, argv: &[S]) -> Result<Output> {
        self.enter(argv).output().context("nsenter does not start")
    }

    /// Runs a command on the host that must succeed, and returns what it printed.
    pub fn read<S: AsRef<OsStr>>(&self, argv: &[S]) -> Result<String> {
        shell::read(&mut self.enter(argv))
    }

    /// A command in the host's network only: files and processes are the machine's. It ends with the thread that
    /// starts it.
    pub fn command_in_network(&self, program: impl AsRef<OsStr>) -> Command {
        let mut command = Command::new("setpriv");
        command
            .args(["--pdeathsig", "KILL", "nsenter", "--target"])
            .arg(self.init.to_string())
            .args(["--net", "--"])
            .arg(program)
            .stdin(Stdio::null());
        command
    }

    /// [`Host::command_in_network`] that must succeed; what it printed.
    pub fn read_in_network(&self, argv: &[&str]) -> Result<String> {
        shell::read(self.command_in_network(argv[0]).args(&argv[1..]))
    }

    /// Runs `work` on a thread in the host's network. Sockets made there stay there.
    pub fn run_in_network<T: Send>(&self, work: impl FnOnce() -> T + Send) -> Result<T> {
        let network = File::open(format!("/proc/{}/ns/net", self.init))?;
        Ok(run_in(&[(&network, CloneFlags::CLONE_NEWNET)], work))
    }

    fn enter<S: AsRef<OsStr>>(&self, argv: &[S]) -> Command {
        let mut command = Command::new("nsenter");
        command
            .arg("--target")
            .arg(self.init.to_string())
            .args(["--net", "--mount", "--pid", "--uts", "--"])
            .args(argv)
            .stdin(Stdio::null());
        command
    }

    fn programs(&self) -> MutexGuard<'_, BTreeMap<String, Program>> {
        self.programs.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Drop for Host {
    /// Ends the first process; when that is reaped, the kernel has ended every other one.
    fn drop(&mut self) {
        let _ = kill(self.init, Signal::SIGKILL);
        let _ = self.unshare.wait();
        for program in self.programs().values_mut() {
            let _ = program.nsenter.wait();
        }
    }
}

fn only_child(parent: u32) -> Result<u32> {
    let children = fs::read_to_string(format!("/proc/{parent}/task/{parent}/children"))?;
    let child = children.split_whitespace().next().context("no child process yet")?;
    Ok(child.parse()?)
}

fn as_pid(number: u32) -> Result<Pid> {
    Ok(Pid::from_raw(number.try_into()?))
}

/// The last lines of a log, for an error message.
pub fn tail(log: &Path) -> String {
    let text = fs::read_to_string(log).unwrap_or_default();
    let lines: Vec<_> = text.lines().collect();
    lines[lines.len().saturating_sub(15)..].join("\n")
}
