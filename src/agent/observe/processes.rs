//! The worker's programs in the process table: which run, since when, and whether they are stopped or stuck.

use std::collections::BTreeSet;
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use jiff::{SignedDuration, Timestamp};

use self::identity::is_nested;
pub(super) use self::identity::is_runtime;
#[cfg(any(test, fuzzing))]
use self::identity::{SHORT_NAMES, classify};
use self::identity::{identify, proxy_mode};
use self::shims::{Sandbox, shim};
use self::stat::{LINE, Stat, parse, short_name};
pub(super) use self::stat::{state, threads, usage};
use self::table::{Listed, Listing, Table};
use super::host_root::HostRoot;
use crate::facts::{LookError, Process, Processes, Program, ProxyMode};

mod identity;
mod shims;
mod stat;
mod table;

/// The process table is walked at most this often while nothing has changed: with 1,500 processes a walk costs a
/// millisecond, the first one ten, a look at the known ones some microseconds.
const WALK: Duration = Duration::from_secs(60);
/// While a program is missing it is looked for this often.
const SEARCH: Duration = Duration::from_secs(15);
/// For so long after one has gone it is looked for at each look: a restart is over within seconds.
const SOON: Duration = Duration::from_secs(60);
/// What the programs begin with that change the packet filter; so many of them are told that have ended.
const TOOLS: [&str; 5] = ["iptables", "ip6tables", "xtables", "ipset", "nft"];
const MOST_DEFUNCT: usize = 16;
/// A process that has ended stays if two walks this far apart saw it: nearly as far as two walks are while nothing is missing.
const STAYS: Duration = Duration::from_secs(45);
/// So many shims are asked for their sandbox in one look.
const AT_ONCE: usize = 64;
/// Boot time is the difference of two clocks; below this it has not moved.
const JITTER: SignedDuration = SignedDuration::from_secs(2);

/// Looks for the worker's programs.
#[derive(Debug)]
pub(crate) struct ProcessSource {
    host: HostRoot,
    known: Vec<Known>,
    /// Every program that was ever found: when one of them is missing it is searched for more often.
    ever: BTreeSet<Program>,
    /// When the table was walked, on the boot clock.
    walked: Option<Duration>,
    /// When one of the known processes was found to have gone, on the boot clock.
    lost: Option<Duration>,
    kubelet: Option<Vec<String>>,
    /// The mode of the kube-proxy that was found last.
    proxy_mode: Option<ProxyMode>,
    debris: Arc<Attendants>,
    table: Table,
    /// Shims, by process.
    shims: Vec<(i32, Sandbox)>,
    /// Processes that have ended and that nobody has asked about.
    zombies: Vec<Zombie>,
}

/// A process that has ended.
#[derive(Debug)]
struct Zombie {
    pid: i32,
    start: u64,
    parent: i32,
    /// Its name, if it is one of those that change the packet filter.
    tool: Option<Box<str>>,
    /// When a walk saw it first, on the boot clock.
    since: Duration,
    /// Whether a walk saw it long after that too: whoever waits for its children is only slower than walks that follow each other
    /// at once.
    again: bool,
}

/// The runtime's helpers at the last walk.
#[derive(Debug, Default)]
pub(super) struct Attendants {
    /// Those that look after a pod's containers.
    pub(super) shims: Vec<Shim>,
    /// Children of the runtime, of a shim or of the kubelet that have ended and that nobody has asked about: process and
    /// start, which is what makes a process unique.
    pub(super) zombies: Vec<(i32, u64)>,
    /// Process ids of the runtime and the kubelet.
    pub(super) daemons: Vec<(Program, i32)>,
}

/// A `containerd-shim` of Kubernetes, or a `conmon`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Shim {
    pub(super) pid: i32,
    /// `-id`: the sandbox. Of a conmon, which is told its container only, the pod's uid.
    pub(super) sandbox: Box<str>,
    /// Whether it is the pod's uid.
    pub(super) by_pod: bool,
}

#[derive(Debug)]
struct Known {
    process: Process,
    /// Clock ticks between boot and its start: with the process id, what makes a process unique.
    start: u64,
}

impl ProcessSource {
    /// Nothing is read yet.
    pub(crate) fn new(host: HostRoot) -> Self {
        ProcessSource {
            host,
            known: Vec::new(),
            ever: BTreeSet::new(),
            walked: None,
            lost: None,
            kubelet: None,
            proxy_mode: None,
            debris: Arc::default(),
            table: Table::default(),
            shims: Vec::new(),
            zombies: Vec::new(),
        }
    }

    /// Looks at the programs. Walks the process table if it is time, or if one of the known processes has gone.
    pub(crate) fn look(&mut self, now: Timestamp, since_boot: Duration) -> Result<Processes, LookError> {
        let age = self.walked.map(|at| since_boot.saturating_sub(at));
        let soon = self.lost.is_some_and(|at| since_boot.saturating_sub(at) < SOON);
        let limit = match self.misses_one() {
            true if soon => Duration::ZERO,
            true => SEARCH,
            false => WALK,
        };
        let known = self.refresh(now, since_boot);
        if !known {
            self.lost = Some(since_boot);
        }
        // The first look leaves the shims to the next one.
        let mut news = self.walked.is_some() && self.name_shims();
        if !known || age.is_none_or(|age| age >= limit) {
            self.walk(now, since_boot)?;
            self.walked = Some(since_boot);
            news = true;
        }
        if news {
            self.debris = Arc::new(self.attend());
        }
        let found: Vec<Process> = self.known.iter().map(|known| known.process.clone()).collect();
        let kube_proxy = found.iter().any(|process| process.program == Program::KubeProxy);
        let owner = |parent: i32| {
            let owner = found.iter().find(|process| process.pid == parent)?;
            matches!(owner.program, Program::KubeProxy | Program::Felix).then_some(owner.program)
        };
        let ended = self.zombies.iter().filter(|zombie| zombie.again);
        let defunct = ended.filter_map(|it| Some((owner(it.parent)?, it.tool.as_deref()?.to_owned(), it.pid)));
        let defunct = defunct.take(MOST_DEFUNCT).collect();
        Ok(Processes { found, proxy_mode: self.proxy_mode.filter(|_| kube_proxy), defunct })
    }

    /// The command line of the kubelet, if it runs.
    pub(crate) fn kubelet_arguments(&self) -> Option<Vec<String>> {
        self.kubelet.clone()
    }

    /// The runtime's helpers at the last walk.
    pub(super) fn attendants(&self) -> Arc<Attendants> {
        Arc::clone(&self.debris)
    }

    /// Every worker has a kubelet and a runtime, and the rest of what it once had.
    fn misses_one(&self) -> bool {
        let runs = |program| self.known.iter().any(|known| known.process.program == program);
        !runs(Program::Kubelet)
            || !(runs(Program::Containerd) || runs(Program::Crio))
            || self.ever.iter().any(|program| !runs(*program))
    }

    /// Reads the state of the known processes again, and forgets those that have gone or are another process by now. False
    /// when there are any.
    fn refresh(&mut self, now: Timestamp, since_boot: Duration) -> bool {
        let proc = self.host.path("/proc");
        let before = self.known.len();
        self.known.retain_mut(|known| match stat::read(&proc.join(format!("{}", known.process.pid))) {
            Some(stat) if stat.starttime == known.start && !stat.has_ended() => {
                known.process.state = stat.state;
                known.process.started_at = steady(known.process.started_at, started_at(now, since_boot, known.start));
                true
            }
            _ => false,
        });
        self.known.len() == before
    }

    /// Lists the process table, and reads of it what is not known.
    fn walk(&mut self, now: Timestamp, since_boot: Duration) -> Result<(), LookError> {
        let path = self.host.path("/proc");
        let mut proc = Listing::open(&path)?;
        let seconds = u32::try_from(since_boot.as_secs()).unwrap_or(u32::MAX);
        let mut buffer = [0; LINE];
        for zombie in &mut self.zombies {
            zombie.again |= since_boot.saturating_sub(zombie.since) >= STAYS;
        }
        for Listed { pid, new } in self.table.list(&mut proc, seconds)? {
            if new {
                self.forget(pid);
            }
            // A process that ends while it is looked at is no error.
            let told = if new {
                proc.read(pid, "comm", &mut buffer).map(|line| (stat::name(line), None))
            } else {
                let line = proc.read(pid, "stat", &mut buffer);
                line.and_then(|line| Some((short_name(line), Some(parse(line)?))))
            };
            let Some((comm, stat)) = told else { continue };
            self.understand(&path, pid, comm, stat, (now, since_boot));
        }
        self.known.retain(|known| self.table.has(known.process.pid));
        self.shims.retain(|(pid, _)| self.table.has(*pid));
        self.zombies.retain(|zombie| self.table.has(zombie.pid));
        self.known.sort_unstable_by_key(|known| (known.process.program, known.process.pid));
        self.ever.extend(self.known.iter().map(|known| known.process.program));
        if !self.known.iter().any(|known| known.process.program == Program::Kubelet) {
            self.kubelet = None;
        }
        Ok(())
    }

    fn forget(&mut self, pid: i32) {
        self.known.retain(|known| known.process.pid != pid);
        self.shims.retain(|(shim, _)| *shim != pid);
        self.zombies.retain(|zombie| zombie.pid != pid);
    }

    /// What one process is. Of one that is seen for the first time nothing but its name was read: nearly all are of no interest.
    fn understand(&mut self, proc: &Path, pid: i32, comm: &str, stat: Option<Stat>, at: (Timestamp, Duration)) {
        if let Some(stat) = stat.as_ref().filter(|stat| stat.has_ended()) {
            if !self.zombies.iter().any(|known| (known.pid, known.start) == (pid, stat.starttime)) {
                self.forget(pid);
                let tool = TOOLS.iter().any(|tool| comm.starts_with(tool)).then(|| comm.into());
                self.zombies.push(Zombie {
                    pid,
                    start: stat.starttime,
                    parent: stat.parent,
                    tool,
                    since: at.1,
                    again: false,
                });
            }
            return;
        }
        let shim = self.shims.iter().position(|(shim, _)| *shim == pid);
        match shim {
            None if shims::is_one(comm) => self.shims.push((pid, Sandbox::Unknown)),
            Some(at) if !shims::is_one(comm) => _ = self.shims.swap_remove(at),
            _ => {}
        }
        let was = self.known.iter().position(|known| known.process.pid == pid);
        let was = was.map(|at| self.known.remove(at));
        let Some((program, arguments)) = identify(proc, pid, comm) else { return };
        let stat = stat.or_else(|| stat::read(&proc.join(format!("{pid}"))).filter(|stat| !stat.has_ended()));
        let Some(stat) = stat else { return };
        let computed = started_at(at.0, at.1, stat.starttime);
        let started_at = was.map_or(computed, |known| steady(known.process.started_at, computed));
        let process = Process { program, pid, state: stat.state, started_at };
        self.known.push(Known { process, start: stat.starttime });
        match program {
            Program::Kubelet => self.kubelet = Some(arguments),
            Program::KubeProxy => self.proxy_mode = proxy_mode(&self.host, pid, &arguments),
            _ => {}
        }
    }

    /// Asks shims for their sandboxes, some at a time: there are as many as pods, and nobody waits for it.
    fn name_shims(&mut self) -> bool {
        let proc = self.host.path("/proc");
        let unnamed = self.shims.iter_mut().filter(|(_, shim)| *shim == Sandbox::Unknown).take(AT_ONCE);
        let mut any = false;
        for (pid, sandbox) in unnamed {
            *sandbox = shim(&proc, *pid).unwrap_or(Sandbox::Foreign);
            any = true;
        }
        any
    }

    /// Gathers what the other sources are told.
    fn attend(&self) -> Attendants {
        let shims = self.shims.iter().filter_map(|(pid, sandbox)| match sandbox {
            Sandbox::Of(sandbox) => Some(Shim { pid: *pid, sandbox: sandbox.clone(), by_pod: false }),
            Sandbox::OfPod(pod) => Some(Shim { pid: *pid, sandbox: pod.clone(), by_pod: true }),
            Sandbox::Unknown | Sandbox::Foreign => None,
        });
        let shims: Vec<Shim> = shims.collect();
        let daemons = [Program::Kubelet, Program::Containerd, Program::Crio];
        let daemons = self.known.iter().filter(|known| daemons.contains(&known.process.program));
        let daemons: Vec<_> = daemons.map(|known| (known.process.program, known.process.pid)).collect();
        // Zombies of a container that does not reap its children are its own affair.
        let parents: BTreeSet<i32> =
            shims.iter().map(|shim| shim.pid).chain(daemons.iter().map(|(_, pid)| *pid)).collect();
        let zombies = self.zombies.iter().filter(|zombie| parents.contains(&zombie.parent));
        let zombies = zombies.map(|zombie| (zombie.pid, zombie.start)).collect();
        Attendants { shims, zombies, daemons }
    }
}

/// Start time on the wall clock: now, less the age of the process on the boot clock.
fn started_at(now: Timestamp, since_boot: Duration, start: u64) -> Timestamp {
    let ticks = procfs::ticks_per_second();
    let start = Duration::from_millis(start.saturating_mul(1000) / ticks);
    let age = SignedDuration::try_from(since_boot.saturating_sub(start)).unwrap_or(SignedDuration::ZERO);
    now.saturating_sub(age).unwrap_or(now)
}

/// The start time told before, unless the wall clock was set since: two looks at one process tell the same.
fn steady(told: Timestamp, computed: Timestamp) -> Timestamp {
    if computed.duration_since(told).abs() < JITTER { told } else { computed }
}

/// The fuzz target's door.
#[cfg(any(test, fuzzing))]
pub(super) fn fuzz(bytes: &[u8]) {
    let text = String::from_utf8_lossy(bytes);
    let _ = is_nested(&text);
    if let Some(stat) = parse(bytes) {
        let now = Timestamp::UNIX_EPOCH;
        let started = started_at(now, Duration::from_secs(1 << 20), stat.starttime);
        assert!(started <= now && steady(started, now) <= now);
    }
    let arguments: Vec<String> = text.split('\0').filter(|part| !part.is_empty()).map(str::to_owned).collect();
    SHORT_NAMES.iter().filter_map(|comm| classify(comm, &arguments)).for_each(drop);
    let _ = (short_name(bytes), stat::name(bytes));
    shims::fuzz(&arguments);
}

#[cfg(test)]
mod tests;
