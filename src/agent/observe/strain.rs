//! Waiting tasks, and the kernel's tables of tasks, files and watches.

use std::time::{Duration, Instant};

use jiff::Timestamp;
use nix::errno::Errno;
use nix::sys::inotify::{AddWatchFlags, InitFlags, Inotify};

use super::cgroups::{self, Kubepods};
use super::host_root::HostRoot;
use super::net_sysctl::number;
use super::pressure;
use crate::facts::{Cpus, Files, InotifyRoom, LookError, Reason, Seen, Stall, Strain, Tasks, Trend};

/// One line; in bytes.
const LINE: u64 = 256;
/// `/proc/stat` has one line for each CPU and a long one with interrupts; in bytes.
const STAT: u64 = 4 << 20;
/// Some sixty lines; in bytes.
const STATUS: u64 = 16 << 10;
/// Tasks that wait for disks are counted from this share of the time on, in percent.
const WAITING: f64 = 10.0;
/// The CPUs are looked at from this share of the time on in which some task waits for one, in percent.
const CROWDED: f64 = 50.0;
/// Whether watches can be made is tried this seldom.
const TRY: Duration = Duration::from_secs(60);

/// Looks at all of it, and remembers how it went.
#[derive(Debug)]
pub(crate) struct StrainSource {
    host: HostRoot,
    tasks: Trend,
    files: Trend,
    /// Idle and all time of the CPUs at the last look, in ticks.
    ticks: Option<(u64, u64)>,
    inotify: Option<(Instant, Seen<InotifyRoom>)>,
}

impl StrainSource {
    /// Nothing is read yet.
    pub(crate) fn new(host: HostRoot) -> Self {
        StrainSource { host, tasks: Trend::default(), files: Trend::default(), ticks: None, inotify: None }
    }

    /// Looks at everything but the pods ([`Strain::pods`] is absent).
    pub(crate) fn look(&mut self, now: Timestamp, cgroup_root: &str) -> Strain {
        let io = pressure::stall(&self.host, "io");
        let waiting = io.as_ref().is_ok_and(|stall: &Stall| stall.some_avg10 >= WAITING);
        let cpu = pressure::stall(&self.host, "cpu");
        let crowded = cpu.as_ref().is_ok_and(|stall: &Stall| stall.some_avg10 >= CROWDED);
        let stat = (waiting || crowded).then(|| self.host.read_text("/proc/stat", STAT).ok()).flatten();
        let cpus = stat.as_deref().filter(|_| crowded).and_then(|stat| self.cpus(stat));
        if cpus.is_none() {
            self.ticks = None;
        }
        Strain {
            io: io.into(),
            cpu: cpu.into(),
            cpus,
            blocked: stat.as_deref().filter(|_| waiting).and_then(blocked),
            tasks: self.tasks(now, cgroup_root).into(),
            files: self.files(now).into(),
            inotify: self.inotify(),
            pods: Seen::Absent,
            file_tables: Vec::new(),
            inotify_users: None,
        }
    }

    #[expect(clippy::cast_precision_loss, reason = "a share of some seconds")]
    fn cpus(&mut self, stat: &str) -> Option<Cpus> {
        let (count, idle, all) = cpus(stat)?;
        let before = self.ticks.replace((idle, all));
        let idle = before.and_then(|(idle_before, all_before)| {
            let passed = all.checked_sub(all_before).filter(|passed| *passed > 0)?;
            Some(idle.saturating_sub(idle_before) as f64 * 100.0 / passed as f64)
        });
        Some(Cpus { count, idle })
    }

    fn tasks(&mut self, now: Timestamp, cgroup_root: &str) -> Result<Tasks, LookError> {
        let path = "/proc/loadavg";
        let text = self.host.read_text(path, LINE)?;
        let count = tasks(&text).ok_or_else(|| LookError::new(path, Reason::Malformed, "holds no count of tasks"))?;
        let limits = ["/proc/sys/kernel/pid_max", "/proc/sys/kernel/threads-max"].map(|path| number(&self.host, path));
        let [ids, threads] = limits;
        let limit = ids?.min(threads?);
        let per_second = self.tasks.push(now, limit.saturating_sub(count));
        let pods = Kubepods::find(&self.host, "pids", cgroup_root).and_then(|pods| {
            Some((cgroups::number(&pods.path, "pids.current")?, cgroups::number(&pods.path, "pids.max")?))
        });
        Ok(Tasks { count, limit, per_second, pods })
    }

    fn files(&mut self, now: Timestamp) -> Result<Files, LookError> {
        let path = "/proc/sys/fs/file-nr";
        let text = self.host.read_text(path, LINE)?;
        let (allocated, limit) =
            files(&text).ok_or_else(|| LookError::new(path, Reason::Malformed, "does not hold three numbers"))?;
        let per_second = self.files.push(now, limit.saturating_sub(allocated));
        Ok(Files { allocated, limit, per_second })
    }

    fn inotify(&mut self) -> Seen<InotifyRoom> {
        if let Some((_, seen)) = self.inotify.as_ref().filter(|(at, _)| at.elapsed() < TRY) {
            return seen.clone();
        }
        let seen = Seen::from(self.room());
        self.inotify = Some((Instant::now(), seen.clone()));
        seen
    }

    /// Tries to make some instances, and gives them back at once.
    fn room(&self) -> Result<InotifyRoom, LookError> {
        let limit = number(&self.host, "/proc/sys/fs/inotify/max_user_instances")?;
        let watches = number(&self.host, "/proc/sys/fs/inotify/max_user_watches")?;
        let tried = u32::try_from(limit / 2).map_or(InotifyRoom::TRIED, |half| half.clamp(1, InotifyRoom::TRIED));
        let mut made = Vec::new();
        for _ in 0..tried {
            match Inotify::init(InitFlags::IN_CLOEXEC | InitFlags::IN_NONBLOCK) {
                Ok(instance) => made.push(instance),
                // The same error means that this process may open no more files: then it says nothing of instances.
                Err(Errno::EMFILE) if std::fs::File::open("/").is_ok() => break,
                Err(errno) => return Err(LookError::io("inotify", &errno.into())),
            }
        }
        let watch = made.first().map(|instance| instance.add_watch("/", AddWatchFlags::IN_DELETE_SELF));
        let watch = match watch {
            Some(Err(errno)) if errno != Errno::ENOSPC => return Err(LookError::io("inotify", &errno.into())),
            tried => tried.map(|added| added.is_ok()),
        };
        let instances = u32::try_from(made.len()).unwrap_or(u32::MAX);
        Ok(InotifyRoom { instances, tried, limit, watch, watches })
    }
}

/// After so many processes, or this time, a walk over them stops where it is.
const PROCESSES: usize = 10_000;
const LONGEST: Duration = Duration::from_millis(500);
/// So many are told.
const TOLD: usize = 3;

/// The processes with the largest tables of open files. How many each holds open its table only bounds; the count itself
/// nobody may read of another user's process, nor of one with more capabilities.
pub(super) fn file_tables(host: &HostRoot) -> Result<Vec<(String, u64)>, LookError> {
    let (path, until) = ("/proc", Instant::now() + LONGEST);
    let entries = std::fs::read_dir(host.path(path)).map_err(|error| LookError::io(path, &error))?;
    let mut largest: Vec<(u64, u32, String)> = Vec::new();
    let pids = entries.flatten().filter_map(|entry| entry.file_name().to_str()?.parse::<u32>().ok());
    for pid in pids.take(PROCESSES) {
        if Instant::now() > until {
            break;
        }
        let Ok(status) = host.read_text(&format!("/proc/{pid}/status"), STATUS) else { continue };
        let Some((name, room)) = file_table(&status) else { continue };
        largest.push((room, pid, name.to_owned()));
        largest.sort_unstable_by(|one, other| other.cmp(one));
        largest.truncate(TOLD);
    }
    Ok(largest.into_iter().map(|(room, pid, name)| (format!("{name} (process {pid})"), room)).collect())
}

/// Name and `FDSize` of `/proc/PID/status`.
fn file_table(status: &str) -> Option<(&str, u64)> {
    let field = |key: &str| status.lines().find_map(|line| line.strip_prefix(key).map(str::trim));
    Some((field("Name:")?, field("FDSize:")?.parse().ok()?))
}

/// Of `0.20 0.18 0.12 1/80 11206`: the tasks that exist.
fn tasks(loadavg: &str) -> Option<u64> {
    loadavg.split_whitespace().nth(3)?.split_once('/')?.1.parse().ok()
}

/// Of `2151 0 2466170`: allocated, and the limit. The one between has always been 0.
fn files(file_nr: &str) -> Option<(u64, u64)> {
    let mut numbers = file_nr.split_whitespace().map(str::parse);
    Some((numbers.next()?.ok()?, numbers.nth(1)?.ok()?))
}

/// Of `/proc/stat`: the CPUs, and their time without work and in all. Time of guests is within that of users.
fn cpus(stat: &str) -> Option<(u64, u64, u64)> {
    let all = stat.lines().next()?.strip_prefix("cpu ")?;
    let ticks: Vec<u64> = all.split_whitespace().take(8).map_while(|word| word.parse().ok()).collect();
    let own =
        |line: &&str| line.strip_prefix("cpu").is_some_and(|rest| rest.starts_with(|it: char| it.is_ascii_digit()));
    let idle = ticks.get(3)?.saturating_add(ticks.get(4).copied().unwrap_or(0));
    Some((stat.lines().filter(own).count() as u64, idle, ticks.iter().copied().fold(0, u64::saturating_add)))
}

fn blocked(stat: &str) -> Option<u64> {
    cgroups::keyed(stat, "procs_blocked")
}

/// The fuzz target's door.
#[cfg(any(test, fuzzing))]
pub(super) fn fuzz(text: &str) {
    let _ = (tasks(text), files(text), blocked(text), pressure::parse(text), file_table(text), cpus(text));
    cgroups::fuzz(text);
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lines_of_the_kernel() {
        assert_eq!(tasks("16.37 11.25 5.81 21/182 11157\n"), Some(182));
        assert_eq!(files("2151\t0\t2466170\n"), Some((2151, 2_466_170)));
        assert_eq!(files("2151\t0\t9223372036854775807\n"), Some((2151, i64::MAX.unsigned_abs())));
        assert_eq!(blocked("cpu 1 2\nprocs_running 3\nprocs_blocked 7\n"), Some(7));
        for text in ["", "1 2 3", "x/y", "1 2 3 4/", "\u{5ff} 1 2"] {
            assert_eq!(tasks(text), None, "{text}");
        }
        assert_eq!(files("1 2"), None);
    }

    #[test]
    fn how_much_of_the_cpus_is_idle() {
        let stat = |user: u64, idle: u64| format!("cpu  {user} 0 0 {idle} 10 0 0 0 5 0\ncpu0 1\ncpu1 1\nintr 1\n");
        let mut source = StrainSource::new(HostRoot::new("/"));
        assert_eq!(source.cpus(&stat(100, 50)), Some(Cpus { count: 2, idle: None }));
        assert_eq!(source.cpus(&stat(190, 60)), Some(Cpus { count: 2, idle: Some(10.0) }));
        assert_eq!(source.cpus(&stat(190, 60)).and_then(|cpus| cpus.idle), None, "no time has passed");
        assert_eq!(source.cpus(&stat(1, 1)).and_then(|cpus| cpus.idle), None, "counted anew");
        for text in ["", "cpu", "cpu  1 2", "cpu0 1 2 3 4"] {
            assert_eq!(cpus(text), None, "{text}");
        }
    }

    #[test]
    fn tables_of_open_files() {
        let status = "Name:\tjava\nUmask:\t0022\nFDSize:\t65536\nGroups:\n";
        assert_eq!(file_table(status), Some(("java", 65_536)));
        assert_eq!(file_table("Name:\tkthreadd\n"), None);
        let dir = tempfile::tempdir().expect("a temporary directory");
        for (pid, size) in [(7, 64), (8, 65_536), (9, 256), (10, 1024)] {
            let path = dir.path().join(format!("proc/{pid}"));
            std::fs::create_dir_all(&path).expect("mkdir");
            std::fs::write(path.join("status"), format!("Name:\tp{pid}\nFDSize:\t{size}\n")).expect("write");
        }
        std::fs::create_dir_all(dir.path().join("proc/sys")).expect("mkdir");
        let told = file_tables(&HostRoot::new(dir.path())).expect("read");
        let expected = [("p8 (process 8)", 65_536), ("p10 (process 10)", 1024), ("p9 (process 9)", 256)];
        assert_eq!(told, expected.map(|(name, room)| (name.to_owned(), room)));
        assert_eq!(file_tables(&HostRoot::new("/")).expect("read").len(), TOLD, "of this machine");
    }

    #[test]
    fn reads_this_machine() {
        let strain = StrainSource::new(HostRoot::new("/")).look(Timestamp::now(), "/");
        let tasks = strain.tasks.get().expect("every Linux has them");
        assert!(tasks.count > 0 && tasks.count < tasks.limit, "{tasks:?}");
        assert!(strain.files.get().is_some_and(|files| files.allocated > 0), "{strain:?}");
        assert!(strain.io.get().is_some() && strain.cpu.get().is_some(), "{strain:?}");
    }

    /// Set for a second run of this program as another user, whose watches nobody else needs.
    const AS_ANOTHER: &str = "NODEVITALS_TEST_INOTIFY";

    #[test]
    fn watches_run_out_and_are_there_again() {
        if std::env::var_os(AS_ANOTHER).is_none() {
            let name = "agent::observe::strain::tests::watches_run_out_and_are_there_again";
            let program = std::env::current_exe().expect("this program");
            let mut again = std::process::Command::new("setpriv");
            again.args(["--reuid=64999", "--clear-groups"]).arg(program).args(["--exact", name]);
            let output = again.env(AS_ANOTHER, "1").output().expect("setpriv");
            let text = String::from_utf8_lossy(&output.stdout);
            assert!(output.status.success() && text.contains("1 passed"), "{text}");
            return;
        }
        let mut source = StrainSource::new(HostRoot::new("/"));
        let mut rooms = vec![source.room()];
        let mut held: Vec<_> = std::iter::from_fn(|| Inotify::init(InitFlags::IN_CLOEXEC).ok()).collect();
        rooms.push(source.room());
        held.truncate(held.len() - 3);
        rooms.push(source.room());
        drop(held);
        rooms.push(source.inotify().get().copied().ok_or_else(|| panic!("room")));
        let rooms: Vec<_> = rooms.into_iter().map(|room| room.map(|room| (room.instances, room.watch))).collect();
        let expected = [(8, Some(true)), (0, None), (3, Some(true)), (8, Some(true))];
        assert_eq!(rooms, expected.map(Ok));
    }
}
