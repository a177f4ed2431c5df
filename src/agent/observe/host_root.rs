//! The one door to the node's files: every path goes through a root that is given at start.

use std::ffi::OsString;
use std::fs::{File, OpenOptions};
use std::io::{Read, Seek, SeekFrom};
use std::os::unix::fs::{FileTypeExt, MetadataExt, OpenOptionsExt};
use std::path::{Component, Path, PathBuf};
use std::time::SystemTime;

use crate::facts::{LookError, Reason};

/// After so many links a path is taken as it is (`MAXSYMLINKS` of `linux/namei.h`).
const MOST_LINKS: u32 = 40;

/// Files of the kernel do not tell their length. Most fit in this: one call reads them, one more finds their end.
const AT_ONCE: usize = 4096;

/// Times of files move on by some milliseconds; whole seconds are compared, so this is one at least.
const SETTLED: u64 = 2;

/// Where the node's own root directory is: `/` on the node itself, `/host` in the DaemonSet's pod.
#[derive(Debug, Clone)]
pub(crate) struct HostRoot(PathBuf);

impl HostRoot {
    /// A host root at `path`.
    pub(crate) fn new(path: impl Into<PathBuf>) -> Self {
        HostRoot(path.into())
    }

    /// Where the node's file `path` is for this process. Symbolic links on the way are followed inside the root: an
    /// absolute one (`/etc/cni/net.d -> /opt/cni/net.d`) would lead into this process's own tree.
    pub(crate) fn path(&self, path: &str) -> PathBuf {
        if self.0 == Path::new("/") {
            return PathBuf::from(path);
        }
        if kernel_made(path) {
            return self.0.join(&path[1..]);
        }
        let mut rest: Vec<OsString> = parts(Path::new(path));
        let mut inside: Vec<OsString> = Vec::new();
        let mut links = 0;
        while let Some(name) = rest.pop() {
            if name == ".." {
                inside.pop();
                continue;
            }
            inside.push(name);
            if links < MOST_LINKS
                && let Ok(target) = std::fs::read_link(self.place(&inside))
            {
                links += 1;
                inside.pop();
                if target.is_absolute() {
                    inside.clear();
                }
                rest.extend(parts(&target));
            }
        }
        self.place(&inside)
    }

    fn place(&self, inside: &[OsString]) -> PathBuf {
        inside.iter().fold(self.0.clone(), |place, name| place.join(name))
    }

    /// Reads a regular file of at most `limit` bytes. A directory, a FIFO, a socket or a longer file is an error that
    /// says so; nothing here can block on a file that never ends.
    pub(crate) fn read(&self, path: &str, limit: u64) -> Result<Vec<u8>, LookError> {
        let mut bytes = Vec::with_capacity(AT_ONCE);
        let read = self
            .open(path, limit)?
            .take(limit + 1)
            .read_to_end(&mut bytes)
            .map_err(|error| LookError::io(path, &error))?;
        if read as u64 > limit {
            return Err(LookError::new(path, Reason::WrongKind, format!("is longer than {limit} bytes")));
        }
        Ok(bytes)
    }

    /// The first bytes of a regular file of any length.
    pub(crate) fn head(&self, path: &str, count: u64) -> Result<Vec<u8>, LookError> {
        let mut bytes = Vec::new();
        let read = self.open(path, u64::MAX)?.take(count).read_to_end(&mut bytes);
        read.map(|_| bytes).map_err(|error| LookError::io(path, &error))
    }

    /// The last records of `unit` bytes each of a regular file of any length, in at most `count` bytes.
    pub(crate) fn tail(&self, path: &str, count: u64, unit: u64) -> Result<Vec<u8>, LookError> {
        let error = |error: std::io::Error| LookError::io(path, &error);
        let mut file = self.open(path, u64::MAX)?;
        let length = file.metadata().map_err(error)?.len();
        let whole = length - length % unit;
        file.seek(SeekFrom::Start(whole - whole.min(count - count % unit))).map_err(error)?;
        let mut bytes = Vec::new();
        file.take(count - count % unit).read_to_end(&mut bytes).map_err(error)?;
        // It may have grown, or begin with less.
        bytes.truncate(bytes.len() - bytes.len() % usize::try_from(unit).unwrap_or(1));
        Ok(bytes)
    }

    /// Reads a text file; bytes that are not UTF-8 are replaced.
    pub(crate) fn read_text(&self, path: &str, limit: u64) -> Result<String, LookError> {
        self.read(path, limit).map(|bytes| String::from_utf8_lossy(&bytes).into_owned())
    }

    /// What tells that a file is as it was. None of one that was changed within the last seconds: it could be changed again
    /// with the same time on it.
    pub(crate) fn stamp(&self, path: &str) -> Option<Stamp> {
        let about = std::fs::metadata(self.path(path)).ok()?;
        let now = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).ok()?.as_secs();
        let settled = u64::try_from(about.ctime()).is_ok_and(|changed| changed + SETTLED < now);
        settled.then(|| Stamp([about.dev(), about.ino(), about.len()], [about.ctime(), about.ctime_nsec()]))
    }

    /// Opens a regular file of at most `limit` bytes.
    pub(crate) fn open(&self, path: &str, limit: u64) -> Result<File, LookError> {
        let file = open_at_once(&self.path(path)).map_err(|error| LookError::io(path, &error))?;
        let about = file.metadata().map_err(|error| LookError::io(path, &error))?;
        if !about.is_file() {
            return Err(LookError::new(path, Reason::WrongKind, format!("is {}, not a file", kind(about.file_type()))));
        }
        if about.len() > limit {
            return Err(LookError::new(
                path,
                Reason::WrongKind,
                format!("is {} bytes long, over {limit} is not read", about.len()),
            ));
        }
        Ok(file)
    }
}

/// Device, inode and length of a file, and when it was changed, which nobody can set.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Stamp([u64; 3], [i64; 2]);

/// Whether all links on this way are the kernel's own and relative, as those of `/sys` and most of `/proc`: then nothing
/// leads out of the root, and nothing has to be followed by hand. Not those of a process, which lead to its files.
fn kernel_made(path: &str) -> bool {
    const OF_PROCESS: [&str; 6] = ["..", "cwd", "exe", "fd", "map_files", "root"];
    (path.starts_with("/proc/") || path.starts_with("/sys/")) && !path.split('/').any(|name| OF_PROCESS.contains(&name))
}

/// The names of a path, last first, as they are taken off a stack; `..` among them.
fn parts(path: &Path) -> Vec<OsString> {
    let names = path.components().filter_map(|part| match part {
        Component::Normal(name) => Some(name.to_owned()),
        Component::ParentDir => Some("..".into()),
        Component::RootDir | Component::CurDir | Component::Prefix(_) => None,
    });
    let mut names: Vec<OsString> = names.collect();
    names.reverse();
    names
}

/// Opens a file to read it, and waits for nobody: opening a FIFO that has no writer would.
pub(crate) fn open_at_once(path: &Path) -> std::io::Result<File> {
    let flags = nix::fcntl::OFlag::O_NONBLOCK.bits() | nix::fcntl::OFlag::O_CLOEXEC.bits();
    OpenOptions::new().read(true).custom_flags(flags).open(path)
}

/// What a person calls this type of file.
pub(crate) fn kind(file_type: std::fs::FileType) -> &'static str {
    match file_type {
        it if it.is_dir() => "a directory",
        it if it.is_fifo() => "a FIFO",
        it if it.is_socket() => "a socket",
        it if it.is_char_device() || it.is_block_device() => "a device",
        _ => "something else",
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::unix::fs::symlink;

    #[test]
    fn absolute_links_stay_inside_the_root() {
        let dir = tempfile::tempdir().expect("a temporary directory");
        std::fs::create_dir_all(dir.path().join("opt/real")).expect("mkdir");
        std::fs::create_dir_all(dir.path().join("etc")).expect("mkdir");
        symlink("/opt/real", dir.path().join("etc/cni")).expect("link");
        std::fs::write(dir.path().join("opt/real/a.conf"), "x").expect("write");
        let root = HostRoot::new(dir.path());
        assert_eq!(root.path("/etc/cni/a.conf"), dir.path().join("opt/real/a.conf"));
        assert_eq!(root.read("/etc/cni/a.conf", 10), Ok(b"x".to_vec()));
    }

    #[test]
    fn a_relative_link_to_an_absolute_one_stays_inside_too() {
        let dir = tempfile::tempdir().expect("a temporary directory");
        std::fs::create_dir_all(dir.path().join("data/sub")).expect("mkdir");
        symlink("b", dir.path().join("a")).expect("link");
        symlink("/data", dir.path().join("b")).expect("link");
        symlink("../../../../data", dir.path().join("up")).expect("link");
        let root = HostRoot::new(dir.path());
        assert_eq!(root.path("/a/sub"), dir.path().join("data/sub"));
        assert_eq!(root.path("/up/../up/sub"), dir.path().join("data/sub"));
        assert_eq!(root.path("/../../etc"), dir.path().join("etc"));
    }

    #[test]
    fn what_the_kernel_made_is_taken_as_it_is_and_links_to_files_of_a_process_are_not() {
        let dir = tempfile::tempdir().expect("a temporary directory");
        for directory in ["proc/1/net", "sys", "etc"] {
            std::fs::create_dir_all(dir.path().join(directory)).expect("mkdir");
        }
        symlink("/etc", dir.path().join("proc/1/root")).expect("link");
        symlink("1/net", dir.path().join("proc/net")).expect("link");
        let root = HostRoot::new(dir.path());
        assert_eq!(root.path("/proc/net/tcp"), dir.path().join("proc/net/tcp"));
        assert_eq!(root.path("/proc/1/root/passwd"), dir.path().join("etc/passwd"));
        assert_eq!(root.path("/sys/../../../etc"), dir.path().join("etc"));
        assert_eq!(root.path("/process"), dir.path().join("process"));
    }

    #[test]
    fn a_link_to_itself_ends() {
        let dir = tempfile::tempdir().expect("a temporary directory");
        symlink("/loop", dir.path().join("loop")).expect("link");
        assert!(HostRoot::new(dir.path()).read("/loop", 10).is_err());
    }

    #[test]
    fn a_file_that_is_written_or_replaced_has_another_stamp() {
        let dir = tempfile::tempdir().expect("a temporary directory");
        std::fs::write(dir.path().join("file"), "one").expect("write");
        let root = HostRoot::new(dir.path());
        assert_eq!((root.stamp("/file"), root.stamp("/none")), (None, None), "just written, and not there");
        let settled = || {
            let mut looks = 0..200;
            looks
                .find_map(|_| {
                    std::thread::sleep(std::time::Duration::from_millis(50));
                    root.stamp("/file")
                })
                .expect("a stamp within ten seconds")
        };
        let first = settled();
        assert_eq!(settled(), first);
        std::fs::write(dir.path().join("file"), "two").expect("write");
        assert_eq!(root.stamp("/file"), None);
        assert_ne!(settled(), first);
    }

    #[test]
    fn the_tail_is_whole_records() {
        let dir = tempfile::tempdir().expect("a temporary directory");
        std::fs::write(dir.path().join("records"), "aaabbbcccd").expect("write");
        let root = HostRoot::new(dir.path());
        let tail = |count| String::from_utf8(root.tail("/records", count, 3).expect("readable")).expect("ASCII");
        assert_eq!([tail(2), tail(3), tail(7), tail(100)], ["", "ccc", "bbbccc", "aaabbbccc"]);
    }

    #[test]
    fn what_is_not_a_file_says_what_it_is() {
        let dir = tempfile::tempdir().expect("a temporary directory");
        nix::unistd::mkfifo(&dir.path().join("fifo"), nix::sys::stat::Mode::S_IRUSR).expect("mkfifo");
        std::fs::write(dir.path().join("long"), [b'x'; 100]).expect("write");
        let root = HostRoot::new(dir.path());
        let why = |path: &str| root.read(path, 10).expect_err("must fail");
        assert_eq!(why("/fifo").detail, "is a FIFO, not a file");
        assert_eq!(why("/").detail, "is a directory, not a file");
        assert_eq!(why("/long").detail, "is 100 bytes long, over 10 is not read");
        assert_eq!(why("/none").reason, Reason::Missing);
    }
}
