//! The node's mount table.

use std::hash::{DefaultHasher, Hash, Hasher};
use std::time::{Duration, Instant};

use procfs::FromRead;
use procfs::process::{MountInfo, MountInfos};

use super::super::host_root::HostRoot;
use crate::facts::{LookError, Reason, Role};

/// A worker with a thousand pods has some thousand mounts of some hundred bytes; in bytes.
const LIMIT: u64 = 16 << 20;
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
        let rest = path.strip_prefix(self.point.trim_end_matches('/'));
        rest.is_some_and(|rest| rest.is_empty() || rest.starts_with('/'))
    }

    /// Whether it is on a disk of this machine that can go read-only.
    pub(super) fn is_local_disk(&self) -> bool {
        LOCAL.contains(&self.kind.as_str())
    }
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
        let infos = parse(&bytes, path)?.into_iter();
        let in_pod = first.is_some();
        let mounts = infos.filter_map(|info| if in_pod { from_pod(info, root) } else { Some(from_node(info)) });
        let mut mounts = mounts.peekable();
        if let Some(error) = first.filter(|_| mounts.peek().is_none()) {
            return Err(error);
        }
        let matters = |mount: &Mount| mount.is_local_disk() || paths.iter().any(|(_, path)| mount.is_above(path));
        self.mounts = mounts.filter(matters).collect();
        (self.read, self.hashes) = (Some(Instant::now()), hashes);
        Ok(())
    }
}

fn hash(of: &impl Hash) -> u64 {
    let mut hasher = DefaultHasher::new();
    of.hash(&mut hasher);
    hasher.finish()
}

fn parse(bytes: &[u8], path: &str) -> Result<Vec<MountInfo>, LookError> {
    let mounts = MountInfos::from_read(bytes);
    mounts.map(|mounts| mounts.0).map_err(|error| LookError::new(path, Reason::Malformed, error.to_string()))
}

fn from_node(info: MountInfo) -> Mount {
    let has = |option: &str| info.super_options.contains_key(option);
    Mount {
        point: unescape(&info.mount_point.to_string_lossy()),
        source: unescape(info.mount_source.as_deref().unwrap_or("none")),
        read_only: READ_ONLY.iter().any(|option| has(option)),
        bound_read_only: info.mount_options.contains_key("ro"),
        no_upper: info.fs_type == "overlay" && !has("upperdir"),
        whole: info.root == "/",
        device: info.majmin,
        kind: info.fs_type,
    }
}

fn from_pod(info: MountInfo, root: &str) -> Option<Mount> {
    let mount = from_node(info);
    let inside = mount.point.strip_prefix(root).filter(|rest| rest.is_empty() || rest.starts_with('/'))?;
    let point = if inside.is_empty() { "/".to_owned() } else { inside.to_owned() };
    Some(Mount { point, bound_read_only: false, ..mount })
}

/// The mount that holds a path: the longest mount point above it, and of several on one point the last, which covers
/// the others.
pub(super) fn holding<'a>(mounts: &'a [Mount], path: &str) -> Option<&'a Mount> {
    mounts.iter().filter(|mount| mount.is_above(path)).max_by_key(|mount| mount.point.len())
}

/// Turns `\040` and its like back into the bytes that they stand for.
pub(super) fn unescape(text: &str) -> String {
    if !text.contains('\\') {
        return text.to_owned();
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
    String::from_utf8_lossy(&out).into_owned()
}

/// The fuzz target's door.
#[cfg(any(test, fuzzing))]
pub(super) fn fuzz(bytes: &[u8]) {
    let Ok(infos) = parse(bytes, "/proc/1/mountinfo") else { return };
    let in_pod: Vec<_> = infos.iter().cloned().filter_map(|info| from_pod(info, "/host")).collect();
    assert!(in_pod.iter().all(|mount| mount.point.starts_with('/')));
    let mounts: Vec<_> = infos.into_iter().map(from_node).collect();
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

    fn infos(table: &str) -> Vec<MountInfo> {
        parse(table.as_bytes(), "/proc/1/mountinfo").expect("a table")
    }

    #[test]
    fn lines_of_the_kernel() {
        let own = infos(&std::fs::read_to_string("/proc/self/mountinfo").expect("every Linux has it"));
        let own: Vec<_> = own.into_iter().map(from_node).collect();
        assert!(own.iter().any(|mount| mount.point == "/") && own.iter().all(|mount| mount.point.starts_with('/')));
        // Optional fields, a source that is empty, and values.
        let line =
            "36 35 98:0 /mnt\\0401 /a\\040b ro,noatime shared:1 master:2 - overlay  rw,lowerdir=/ro,upperdir=/u=x";
        let expected = Mount {
            point: "/a b".into(),
            source: "none".into(),
            kind: "overlay".into(),
            device: "98:0".into(),
            whole: false,
            read_only: false,
            bound_read_only: true,
            no_upper: false,
        };
        assert_eq!(infos(line).into_iter().map(from_node).collect::<Vec<_>>(), [expected]);
        for cut in [5, 12, 30, 60] {
            assert!(parse(&line.as_bytes()[..cut], "/proc/1/mountinfo").is_err(), "{}", &line[..cut]);
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
        let mounts: Vec<_> = infos(table).into_iter().map(from_node).collect();
        let source = |path| holding(&mounts, path).map(|mount| mount.source.as_str());
        assert_eq!(source("/var/lib/kubelet"), Some("/dev/sda3"));
        assert_eq!(source("/var/lib"), Some("/dev/sda3"));
        assert_eq!(source("/var/library"), Some("/dev/sda1"));
        assert_eq!(source("/"), Some("/dev/sda1"));
    }

    #[test]
    fn a_pods_own_table_loses_its_root_and_what_the_pod_made_read_only() {
        let table = "1 0 0:9 / / rw - overlay overlay rw\n2 1 8:1 / /host ro - ext4 /dev/sda1 rw\n3 2 8:2 / /host/var rw - xfs /dev/sda2 ro\n4 1 8:1 /x /hosts rw - ext4 /dev/sda1 rw\n";
        let mounts: Vec<_> = infos(table).into_iter().filter_map(|info| from_pod(info, "/host")).collect();
        let short: Vec<_> = mounts.iter().map(|it| (it.point.as_str(), it.read_only, it.bound_read_only)).collect();
        assert_eq!(short, [("/", false, false), ("/var", true, false)]);
    }

    proptest::proptest! {
        #[test]
        fn no_text_makes_it_panic(text: String) {
            let _ = unescape(&text);
            if let Ok(infos) = parse(text.as_bytes(), "/proc/1/mountinfo") {
                infos.into_iter().map(from_node).for_each(drop);
            }
        }
    }
}
