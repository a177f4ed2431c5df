//! Which processes there are, and which of them have to be read. Listing 1,500 costs a millisecond, reading them ten: one that
//! was there at the last walk has the same inode as long as it is the same process, and is not read again.

use std::io::Write as _;
use std::path::Path;

use nix::dir::Dir;
use nix::fcntl::{OFlag, openat};
use nix::sys::stat::Mode;

use crate::facts::LookError;

/// A process younger than this, in seconds, is read again at each walk: between fork and exec it is not yet what it will be.
const YOUNG: u32 = 50;
/// Older ones are read again at each tenth walk, a tenth of them each time: by then one may have become a zombie or, as a
/// script's last line does, another program.
const TURNS: u32 = 10;
/// In the place of the time when one that is not young any more was seen first.
const SETTLED: u32 = u32::MAX;

/// The processes of the last walk.
#[derive(Debug, Default)]
pub(super) struct Table {
    /// By process id.
    entries: Vec<Entry>,
    walks: u32,
}

#[derive(Debug)]
struct Entry {
    pid: i32,
    /// Seconds after boot when it was seen first.
    since: u32,
    inode: u64,
}

/// A process that has to be read.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Listed {
    pub(super) pid: i32,
    /// Whether the last walk did not see it.
    pub(super) new: bool,
}

/// The directory of all processes, open: the way to it is walked once.
#[derive(Debug)]
pub(super) struct Listing(Dir);

impl Listing {
    pub(super) fn open(proc: &Path) -> Result<Self, LookError> {
        let flags = OFlag::O_DIRECTORY | OFlag::O_RDONLY | OFlag::O_CLOEXEC;
        Dir::open(proc, flags, Mode::empty()).map(Listing).map_err(failed)
    }

    /// The first bytes of a file of a process, by one read. None of a process that has ended, and of what makes a reader wait.
    pub(super) fn read<'a>(&self, pid: i32, file: &str, buffer: &'a mut [u8]) -> Option<&'a [u8]> {
        let mut path = [0; 32];
        let mut rest = path.as_mut_slice();
        write!(rest, "{pid}/{file}").ok()?;
        let left = rest.len();
        let path = &path[..path.len() - left];
        let flags = OFlag::O_RDONLY | OFlag::O_CLOEXEC | OFlag::O_NONBLOCK;
        let file = openat(&self.0, path, flags, Mode::empty()).ok()?;
        let length = nix::unistd::read(&file, buffer).ok()?;
        buffer.get(..length)
    }
}

impl Table {
    /// Lists the processes; answers those that have to be read. `now` in seconds after boot.
    pub(super) fn list(&mut self, proc: &mut Listing, now: u32) -> Result<Vec<Listed>, LookError> {
        let mut entries = Vec::with_capacity(self.entries.len() + 32);
        for entry in proc.0.iter() {
            let entry = entry.map_err(failed)?;
            let pid = entry.file_name().to_str().ok().and_then(|name| name.parse().ok());
            let Some(pid) = pid else { continue };
            let entry = Entry { pid, since: now, inode: entry.ino() };
            // The kernel lists them in this order.
            let sorted = entries.last().is_none_or(|last: &Entry| last.pid < pid);
            let at = if sorted { entries.len() } else { entries.partition_point(|other| other.pid < pid) };
            entries.insert(at, entry);
        }
        self.walks = self.walks.wrapping_add(1);
        let turn = |pid: i32| pid.unsigned_abs() % TURNS == self.walks % TURNS;
        let mut before = std::mem::take(&mut self.entries).into_iter().peekable();
        let mut unread = Vec::new();
        for entry in &mut entries {
            while before.next_if(|old| old.pid < entry.pid).is_some() {}
            let known = before.next_if(|old| old.pid == entry.pid).filter(|old| old.inode == entry.inode);
            let new = known.is_none();
            entry.since = known.map_or(now, |old| old.since);
            if entry.since != SETTLED || turn(entry.pid) {
                unread.push(Listed { pid: entry.pid, new });
            }
            if now.saturating_sub(entry.since) >= YOUNG {
                entry.since = SETTLED;
            }
        }
        self.entries = entries;
        Ok(unread)
    }

    /// Whether the last walk saw this process.
    pub(super) fn has(&self, pid: i32) -> bool {
        self.entries.binary_search_by_key(&pid, |entry| entry.pid).is_ok()
    }
}

fn failed(errno: nix::errno::Errno) -> LookError {
    LookError::io("/proc", &errno.into())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn listed(table: &mut Table, proc: &Path, now: u32) -> Vec<(i32, bool)> {
        let mut listing = Listing::open(proc).expect("a directory");
        table.list(&mut listing, now).expect("readable").into_iter().map(|one| (one.pid, one.new)).collect()
    }

    #[test]
    fn what_has_settled_is_read_at_each_tenth_walk_and_what_is_new_at_once() {
        let dir = tempfile::tempdir().expect("a temporary directory");
        let add = |pid: i32| std::fs::create_dir(dir.path().join(pid.to_string())).expect("mkdir");
        (101..=120).for_each(add);
        std::fs::create_dir(dir.path().join("sys")).expect("mkdir");
        let mut table = Table::default();
        let walk = |table: &mut Table, now| listed(table, dir.path(), now);
        assert_eq!(walk(&mut table, 1000), (101..=120).map(|pid| (pid, true)).collect::<Vec<_>>());
        assert_eq!(walk(&mut table, 1010).len(), 20, "they are young");
        assert_eq!(walk(&mut table, 1060).len(), 20, "once more after they have settled");
        let mut again: Vec<i32> = Vec::new();
        for at in 0..10 {
            let read = walk(&mut table, 1120 + at * 60);
            assert_eq!(read.len(), 2, "{read:?}");
            again.extend(read.into_iter().map(|(pid, new)| if new { panic!("{pid}") } else { pid }));
        }
        again.sort_unstable();
        assert_eq!(again, (101..=120).collect::<Vec<_>>(), "each one once");
        add(7);
        assert!(walk(&mut table, 1800).contains(&(7, true)));
        assert!(walk(&mut table, 1802).contains(&(7, false)));
        // What has gone, and its number given to another process.
        std::fs::rename(dir.path().join("sys"), dir.path().join("115.new")).expect("mv");
        std::fs::remove_dir(dir.path().join("115")).expect("rmdir");
        assert!(!walk(&mut table, 1900).iter().any(|(pid, _)| *pid == 115) && !table.has(115) && table.has(116));
        std::fs::rename(dir.path().join("116"), dir.path().join("116.old")).expect("mv");
        std::fs::rename(dir.path().join("115.new"), dir.path().join("116")).expect("mv");
        assert!(walk(&mut table, 1960).contains(&(116, true)));
    }

    /// What the table relies on.
    #[test]
    fn a_number_that_is_used_again_has_another_inode() {
        let script = r"
            sleep 60 & first=$!
            inode() { find /proc -maxdepth 1 -name $first -printf '%i\n'; }
            inode; inode
            kill $first; wait $first
            echo $((first - 1)) > /proc/sys/kernel/ns_last_pid
            sleep 60 & [ $! = $first ] && inode";
        let command = ["--pid", "--fork", "--mount-proc", "--kill-child", "bash", "-c", script];
        let output = std::process::Command::new("unshare").args(command).output().expect("unshare");
        let text = String::from_utf8_lossy(&output.stdout).into_owned();
        let inodes: Vec<&str> = text.lines().collect();
        assert!(inodes.len() == 3 && inodes[0] == inodes[1] && inodes[0] != inodes[2], "{output:?}");
    }

    #[test]
    fn a_file_that_nobody_writes_to_is_not_waited_for() {
        let dir = tempfile::tempdir().expect("a temporary directory");
        std::fs::create_dir(dir.path().join("7")).expect("mkdir");
        nix::unistd::mkfifo(&dir.path().join("7/comm"), Mode::S_IRUSR).expect("mkfifo");
        let listing = Listing::open(dir.path()).expect("a directory");
        assert_eq!(listing.read(7, "comm", &mut [0; 16]).unwrap_or_default(), b"");
        assert_eq!(listing.read(8, "comm", &mut [0; 16]), None);
        let own = i32::try_from(std::process::id()).expect("small");
        let real = Listing::open(Path::new("/proc")).expect("procfs");
        assert_eq!(real.read(own, "stat", &mut [0; 4]).map(<[u8]>::len), Some(4));
    }
}
