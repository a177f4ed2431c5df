//! `/run/xtables.lock`: who holds it and who waits, from `/proc/locks`. It is never taken or opened here.
//!
//! Reading that file costs little work but some 10 ms of waiting, since the kernel stops all changes of locks for it
//! (`locks_start` of `fs/locks.c`). It is read only where legacy tables exist: nobody else takes this lock.

use std::collections::BTreeMap;
use std::os::unix::fs::MetadataExt;

use jiff::Timestamp;

use super::HostRoot;
use crate::facts::{LockUser, LookError, Reason, XtablesLock};

/// Where iptables keeps its lock (`XT_LOCK_NAME` of `iptables/xshared.h`).
pub(super) const PATH: &str = "/run/xtables.lock";
/// A busy machine has hundreds of locks, with less than 100 bytes for each.
const LOCKS_LIMIT: u64 = 1 << 20;
/// Files of `/proc/net` that name the legacy tables.
const NAMES: [&str; 2] = ["/proc/net/ip_tables_names", "/proc/net/ip6_tables_names"];
/// There are five tables, with short names.
const NAMES_LIMIT: u64 = 4096;
/// Who takes the lock all the time, by starting iptables: `comm` of kube-proxy, the kubelet, Calico, and of programs that have
/// the first two inside.
const ROUTINE: [&str; 6] = ["kube-proxy", "kubelet", "calico-node", "k3s-agent", "k3s-server", "kubelite"];
/// So many processes are told.
const MOST_TOLD: usize = 8;

/// Where the lock is looked at.
pub(super) struct XtablesLockSource {
    host: HostRoot,
    /// Since when a process was seen in every look, as holder (true) or waiting.
    since: BTreeMap<(bool, u32), Timestamp>,
}

impl XtablesLockSource {
    /// A source for this node.
    pub(super) fn new(host: HostRoot) -> Self {
        XtablesLockSource { host, since: BTreeMap::new() }
    }

    /// Who has the lock. [`Reason::Missing`] when nobody needs it, or nobody ever took it.
    pub(super) fn look(&mut self, now: Timestamp) -> Result<XtablesLock, LookError> {
        if !NAMES.iter().any(|names| self.host.read(names, NAMES_LIMIT).is_ok_and(|names| !names.is_empty())) {
            return Err(LookError::new(PATH, Reason::Missing, "no legacy table exists"));
        }
        let users = users(&self.host)?;
        self.since = users.iter().map(|user| (*user, self.since.get(user).copied().unwrap_or(now))).collect();
        Ok(XtablesLock { holders: self.told(true), waiters: self.told(false) })
    }

    fn told(&self, holds: bool) -> Vec<LockUser> {
        let users = self.since.iter().filter(|((role, _), _)| *role == holds).take(MOST_TOLD);
        users.map(|(&(_, pid), &since)| LockUser { pid, program: program(&self.host, pid), since }).collect()
    }
}

fn program(host: &HostRoot, pid: u32) -> Option<String> {
    let name = host.read_text(&format!("/proc/{pid}/comm"), 256).ok()?;
    Some(name.trim_end().to_owned())
}

/// Whether all who use the lock now were started by those who do so all the time; false when nobody is seen.
pub(super) fn is_routine(host: &HostRoot) -> bool {
    // `PID (comm) state PPID ...`; a name may have spaces and brackets.
    let parent = |pid: u32| {
        let stat = host.read_text(&format!("/proc/{pid}/stat"), 4096).ok()?;
        stat.rsplit_once(')')?.1.split_whitespace().nth(1)?.parse().ok()
    };
    let routine = |pid| parent(pid).and_then(|parent| program(host, parent)).is_some_and(|it| ROUTINE.contains(&&*it));
    users(host).is_ok_and(|users| !users.is_empty() && users.iter().all(|(_, pid)| routine(*pid)))
}

fn users(host: &HostRoot) -> Result<Vec<(bool, u32)>, LookError> {
    let file = std::fs::metadata(host.path(PATH)).map_err(|error| LookError::io(PATH, &error))?;
    let text = host.read_text("/proc/locks", LOCKS_LIMIT)?;
    Ok(users_in(&text, file.dev(), file.ino()))
}

/// Processes that hold (true) or wait for (false) a lock of `flock` on this file. A line is `1: FLOCK  ADVISORY  WRITE 812
/// 00:19:1070 0 EOF`, and of one that waits `1: -> FLOCK ...` (`lock_get_status` of `fs/locks.c`).
fn users_in(locks: &str, device: u64, inode: u64) -> Vec<(bool, u32)> {
    let (major, minor) = (nix::sys::stat::major(device), nix::sys::stat::minor(device));
    let user = |line: &str| {
        let mut words = line.split_whitespace().skip(1).peekable();
        let holds = words.next_if_eq(&"->").is_none();
        let (kind, pid, file) = (words.next()?, words.nth(2)?, words.next()?);
        let mut parts = file.split(':');
        let mut hex = || u64::from_str_radix(parts.next()?, 16).ok();
        let same = (hex()?, hex()?) == (major, minor) && parts.next()?.parse() == Ok(inode);
        (kind == "FLOCK" && same).then_some((holds, pid.parse().ok()?))
    };
    locks.lines().filter_map(user).collect()
}

/// The fuzz target's door.
#[cfg(any(test, fuzzing))]
pub(super) fn fuzz(text: &str) {
    assert!(users_in(text, nix::sys::stat::makedev(0, 0x19), 1070).len() <= text.lines().count());
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const LOCKS: &str = "\
1: POSIX  ADVISORY  WRITE 700 fd:01:1070 0 EOF
2: FLOCK  ADVISORY  WRITE 812 00:19:1070 0 EOF
2: -> FLOCK  ADVISORY  WRITE 813 00:19:1070 0 EOF
2: -> FLOCK  ADVISORY  WRITE 900 00:19:1070 0 EOF
3: OFDLCK ADVISORY  READ -1 00:06:1070 0 EOF
4: FLOCK  ADVISORY  WRITE 55 00:1a:1070 0 EOF
5: FLOCK  ADVISORY  WRITE 56 00:19:1071 0 EOF
6: LEASE  ACTIVE    READ 57 00:19:1070 0 EOF
";

    #[test]
    fn holders_and_waiters_are_told_apart_by_device_and_inode() {
        assert_eq!(users_in(LOCKS, nix::sys::stat::makedev(0, 0x19), 1070), [(true, 812), (false, 813), (false, 900)]);
        assert_eq!(users_in(LOCKS, nix::sys::stat::makedev(0, 0x1a), 1070), [(true, 55)]);
        assert_eq!(users_in("", 0, 0), []);
    }

    #[test]
    fn since_lasts_as_long_as_the_process_is_seen() {
        let root = tempfile::tempdir().expect("a directory");
        let write = |path: &str, text: &str| {
            let path = root.path().join(path);
            std::fs::create_dir_all(path.parent().expect("a parent")).expect("mkdir");
            std::fs::write(path, text).expect("write");
        };
        let mut source = XtablesLockSource::new(HostRoot::new(root.path()));
        let at = |second| Timestamp::from_second(second).expect("valid");
        write("run/xtables.lock", "");
        assert_eq!(source.look(at(0)).map_err(|error| error.reason), Err(Reason::Missing), "no legacy tables");
        write("proc/net/ip_tables_names", "nat\n");
        write("proc/812/comm", "iptables-restor\n");
        let file = std::fs::metadata(root.path().join("run/xtables.lock")).expect("the file");
        let (major, minor) = (nix::sys::stat::major(file.dev()), nix::sys::stat::minor(file.dev()));
        let held = |pid: u32| format!("1: FLOCK  ADVISORY  WRITE {pid} {major:02x}:{minor:02x}:{} 0 EOF\n", file.ino());
        let user = |pid, program: Option<&str>, since| LockUser { pid, program: program.map(Into::into), since };
        for (now, pid, expected) in [
            (10, 812, user(812, Some("iptables-restor"), at(10))),
            (20, 812, user(812, Some("iptables-restor"), at(10))),
            (30, 9, user(9, None, at(30))),
            (40, 812, user(812, Some("iptables-restor"), at(40))),
        ] {
            write("proc/locks", &held(pid));
            assert_eq!(source.look(at(now)).expect("look").holders, [expected]);
        }
        write("proc/812/stat", "812 (iptables) x (y) S 77 1 1");
        for (parent, routine) in [("kube-proxy\n", true), ("bash\n", false)] {
            write("proc/77/comm", parent);
            assert_eq!(is_routine(&source.host), routine, "{parent}");
        }
        write("proc/77/comm", "kubelet\n");
        write("proc/locks", &format!("{}{}", held(812), held(813)));
        assert!(!is_routine(&source.host), "one of them is somebody else");
        write("proc/locks", "");
        assert_eq!(source.look(at(50)), Ok(XtablesLock::default()));
        assert!(!is_routine(&source.host), "nobody is seen");
    }

    proptest! {
        #[test]
        fn any_text_is_read(text in "([0-9]{1,3}: (-> )?[A-Z]{0,6} +[A-Z:0-9 \\n-]{0,40}){0,6}", device: u64, inode: u64) {
            users_in(&text, device, inode);
        }
    }
}
