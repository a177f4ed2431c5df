//! The node's mount table.

use std::borrow::Cow;
use std::hash::{DefaultHasher, Hash, Hasher};
use std::time::{Duration, Instant};

use super::super::host_root::HostRoot;
use crate::facts::{LookError, Reason, Role};

/// A worker with a thousand pods has some thousand mounts of some hundred bytes; in bytes.
const LIMIT: u64 = 16 << 20;
/// So much of a line that is none is shown.
const SHOWN: usize = 100;
/// It is read this often when nothing is told.
const AGAIN: Duration = Duration::from_secs(30);
/// Disks of this machine. `vfat` is not among them: it is the boot loader's and is often read-only.
const LOCAL: [&str; 9] = ["ext2", "ext3", "ext4", "xfs", "btrfs", "f2fs", "zfs", "bcachefs", "jfs"];
/// Superblock options that mean that nothing can be written; the last two since Linux 6.15.
const READ_ONLY: [&str; 3] = ["ro", "emergency_ro", "shutdown"];

/// One mount.
#[derive(Debug, Clone, PartialEq, Eq)]
#[expect(clippy::struct_excessive_bools, reason = "independent facts of one line, not a state")]
pub(super) struct Mount {
    /// Where, as the node sees it.
    pub(super) point: String,
    /// Device or share.
    pub(super) source: String,
    /// `ext4`, ...
    pub(super) kind: String,
    /// `major:minor`: the same for all mounts of one file system.
    pub(super) device: String,
    /// Whether it shows the whole file system and not a directory of it.
    pub(super) whole: bool,
    /// Whether the file system is read-only.
    pub(super) read_only: bool,
    /// Whether this mount alone is.
    pub(super) bound_read_only: bool,
    /// An overlay that has no layer to write to.
    pub(super) no_upper: bool,
}

impl Mount {
    fn is_above(&self, path: &str) -> bool {
        is_above(&self.point, path)
    }

    /// Whether it is on a disk of this machine that can go read-only.
    pub(super) fn is_local_disk(&self) -> bool {
        LOCAL.contains(&self.kind.as_str())
    }
}

fn is_above(point: &str, path: &str) -> bool {
    let rest = path.strip_prefix(point.trim_end_matches('/'));
    rest.is_some_and(|rest| rest.is_empty() || rest.starts_with('/'))
}

/// The node's mount table, as far as it matters: a worker has some hundred mounts of volumes in memory and the like. It is
/// read when the kernel tells of a change in it or of an error of a disk, and seldom without a reason, since an error of some
/// file systems makes them read-only without a word. What has not changed is not understood again.
#[derive(Debug)]
pub(super) struct Table {
    host: HostRoot,
    /// When it was read.
    read: Option<Instant>,
    /// Of the paths that matter, and of the text.
    hashes: [Option<u64>; 2],
    mounts: Vec<Mount>,
}

impl Table {
    /// Nothing is read yet.
    pub(super) fn new(host: HostRoot) -> Self {
        Table { host, read: None, hashes: [None; 2], mounts: Vec::new() }
    }

    /// The mounts of local disks, and those above these paths.
    pub(super) fn get(&self) -> &[Mount] {
        &self.mounts
    }

    /// Has it read at the next look.
    pub(super) fn changed(&mut self) {
        self.read = None;
    }

    /// Reads the table, if it is time to.
    ///
    /// On the node itself that is this process's own. In a pod it is that of the node's first process, through the node's
    /// own `/proc`: its paths are the node's paths, its options are not those with which the pod was given the tree, and
    /// it is complete even where mounts do not propagate into the pod. Where that is closed (`hidepid`) the pod's own table
    /// serves: the root is taken off the paths, and whether a mount alone is read-only is not known, since the pod's is.
    pub(super) fn refresh(&mut self, paths: &[(Role, String)]) -> Result<(), LookError> {
        let of_paths = Some(hash(&paths));
        if self.hashes[0] == of_paths && self.read.is_some_and(|at| at.elapsed() < AGAIN) {
            return Ok(());
        }
        let root = self.host.path("/");
        let root = root.to_string_lossy();
        let root = root.trim_end_matches('/');
        let path = if root.is_empty() { "/proc/self/mountinfo" } else { "/proc/1/mountinfo" };
        let (bytes, first) = match self.host.read(path, LIMIT) {
            Ok(bytes) => (bytes, None),
            Err(first) if root.is_empty() => return Err(first),
            Err(first) => (HostRoot::new("/").read("/proc/self/mountinfo", LIMIT)?, Some(first)),
        };
        let hashes = [of_paths, Some(hash(&bytes))];
        if self.hashes == hashes {
            self.read = Some(Instant::now());
            return Ok(());
        }
        let (table, in_pod) = (String::from_utf8_lossy(&bytes), first.is_some());
        let (mut any, mut found) = (false, Vec::new());
        for line in table.lines() {
            let row = Row::parse(line).ok_or_else(|| {
                let line: String = line.chars().take(SHOWN).collect();
                LookError::new(path, Reason::Malformed, format!("holds the line {line:?}, which is no mount"))
            })?;
            let Some(row) = (if in_pod { row.without_root(root) } else { Some(row) }) else { continue };
            any = true;
            if LOCAL.contains(&row.kind) || paths.iter().any(|(_, path)| is_above(&row.point, path)) {
                found.push(row.mount());
            }
        }
        if let Some(error) = first.filter(|_| !any) {
            return Err(error);
        }
        self.mounts = found;
        (self.read, self.hashes) = (Some(Instant::now()), hashes);
        Ok(())
    }
}

fn hash(of: &impl Hash) -> u64 {
    let mut hasher = DefaultHasher::new();
    of.hash(&mut hasher);
    hasher.finish()
}

/// One line, of which hundreds are of no interest.
struct Row<'a> {
    device: &'a str,
    root: &'a str,
    point: Cow<'a, str>,
    options: &'a str,
    kind: &'a str,
    source: &'a str,
    super_options: &'a str,
}

impl<'a> Row<'a> {
    /// `36 35 98:0 /root /point rw,noatime master:1 - ext3 /dev/root rw,errors=continue` (proc_pid_mountinfo(5)): what is between
    /// the options and the dash is optional.
    fn parse(line: &'a str) -> Option<Self> {
        let (mount, filesystem) = line.split_once(" - ")?;
        let (mut mount, mut filesystem) = (mount.split(' ').skip(2), filesystem.split(' '));
        Some(Row {
            device: mount.next().filter(|device| device.contains(':'))?,
            root: mount.next()?,
            point: unescape(mount.next()?),
            options: mount.next()?,
            kind: filesystem.next()?,
            source: filesystem.next()?,
            super_options: filesystem.next().unwrap_or_default(),
        })
    }

    /// In a pod's own table: without the root, and read-only only where the file system is.
    fn without_root(mut self, root: &str) -> Option<Self> {
        let inside = self.point.strip_prefix(root).filter(|rest| rest.is_empty() || rest.starts_with('/'))?;
        self.point = Cow::Owned(if inside.is_empty() { "/".to_owned() } else { inside.to_owned() });
        self.options = "";
        Some(self)
    }

    fn mount(self) -> Mount {
        let has = |options: &str, option: &str| options.split(',').any(|it| it.split('=').next() == Some(option));
        Mount {
            read_only: READ_ONLY.iter().any(|option| has(self.super_options, option)),
            bound_read_only: has(self.options, "ro"),
            no_upper: self.kind == "overlay" && !has(self.super_options, "upperdir"),
            whole: self.root == "/",
            point: self.point.into_owned(),
            source: unescape(self.source).into_owned(),
            device: self.device.to_owned(),
            kind: self.kind.to_owned(),
        }
    }
}

/// The mount that holds a path: the longest mount point above it, and of several on one point the last, which covers
/// the others.
pub(super) fn holding<'a>(mounts: &'a [Mount], path: &str) -> Option<&'a Mount> {
    mounts.iter().filter(|mount| mount.is_above(path)).max_by_key(|mount| mount.point.len())
}

/// Turns `\040` and its like back into the bytes that they stand for.
pub(super) fn unescape(text: &str) -> Cow<'_, str> {
    if !text.contains('\\') {
        return Cow::Borrowed(text);
    }
    let bytes = text.as_bytes();
    let (mut out, mut at) = (Vec::with_capacity(bytes.len()), 0);
    while at < bytes.len() {
        let code = (bytes[at] == b'\\').then(|| text.get(at + 1..at + 4)).flatten();
        if let Some(byte) = code.and_then(|digits| u8::from_str_radix(digits, 8).ok()) {
            out.push(byte);
            at += 4;
        } else {
            out.push(bytes[at]);
            at += 1;
        }
    }
    Cow::Owned(String::from_utf8_lossy(&out).into_owned())
}

/// The fuzz target's door.
#[cfg(fuzzing)]
pub(super) fn fuzz(bytes: &[u8]) {
    let text = String::from_utf8_lossy(bytes);
    let rows = || text.lines().filter_map(Row::parse);
    let mut in_pod = rows().filter_map(|row| row.without_root("/host")).map(Row::mount);
    assert!(in_pod.all(|mount| mount.point.starts_with('/')));
    let mounts: Vec<_> = rows().map(Row::mount).collect();
    for mount in &mounts {
        let _ = mount.is_local_disk();
        if mount.point.starts_with('/') {
            assert!(holding(&mounts, &mount.point).is_some(), "{mount:?}");
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn rows(table: &str) -> impl Iterator<Item = Row<'_>> {
        table.lines().map(|line| Row::parse(line).expect("a mount"))
    }

    #[test]
    fn lines_of_the_kernel() {
        let own = std::fs::read_to_string("/proc/self/mountinfo").expect("every Linux has it");
        assert!(rows(&own).any(|row| row.point == "/") && rows(&own).all(|row| row.point.starts_with('/')));
        // Optional fields, a source that is empty, and values.
        let line =
            "36 35 98:0 /mnt\\0401 /a\\040b ro,noatime shared:1 master:2 - overlay  rw,lowerdir=/ro,upperdir=/u=x";
        let expected = Mount {
            point: "/a b".into(),
            source: String::new(),
            kind: "overlay".into(),
            device: "98:0".into(),
            whole: false,
            read_only: false,
            bound_read_only: true,
            no_upper: false,
        };
        assert_eq!(Row::parse(line).map(Row::mount), Some(expected));
        for cut in [5, 12, 30, 60] {
            assert!(Row::parse(&line[..cut]).is_none(), "{}", &line[..cut]);
        }
    }

    #[test]
    fn escapes_of_the_kernel() {
        assert_eq!(unescape(r"/a\040b\134c"), r"/a b\c");
        assert_eq!(unescape(r"/\x\04"), r"/\x\04");
        assert_eq!(unescape("/ü\\040"), "/ü ");
    }

    #[test]
    fn the_longest_point_and_the_last_on_it_hold_a_path() {
        let table = "1 0 8:1 / / rw - ext4 /dev/sda1 rw\n2 1 8:2 / /var/lib rw - xfs /dev/sda2 rw\n3 1 8:3 / /var/lib rw - xfs /dev/sda3 rw\n";
        let mounts: Vec<_> = rows(table).map(Row::mount).collect();
        let source = |path| holding(&mounts, path).map(|mount| mount.source.as_str());
        assert_eq!(source("/var/lib/kubelet"), Some("/dev/sda3"));
        assert_eq!(source("/var/lib"), Some("/dev/sda3"));
        assert_eq!(source("/var/library"), Some("/dev/sda1"));
        assert_eq!(source("/"), Some("/dev/sda1"));
    }

    #[test]
    fn a_pods_own_table_loses_its_root_and_what_the_pod_made_read_only() {
        let table = "1 0 0:9 / / rw - overlay overlay rw\n2 1 8:1 / /host ro - ext4 /dev/sda1 rw\n3 2 8:2 / /host/var rw - xfs /dev/sda2 ro\n4 1 8:1 /x /hosts rw - ext4 /dev/sda1 rw\n";
        let mounts: Vec<_> = rows(table).filter_map(|row| row.without_root("/host")).map(Row::mount).collect();
        let short: Vec<_> = mounts.iter().map(|it| (it.point.as_str(), it.read_only, it.bound_read_only)).collect();
        assert_eq!(short, [("/", false, false), ("/var", true, false)]);
    }

    proptest::proptest! {
        #[test]
        fn no_text_makes_it_panic(text: String) {
            let _ = unescape(&text);
            text.lines().filter_map(Row::parse).map(Row::mount).for_each(drop);
        }
    }
}
