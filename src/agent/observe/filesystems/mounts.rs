//! The node's mount table.

use procfs::FromRead;
use procfs::process::{MountInfo, MountInfos};

use super::super::host_root::HostRoot;
use crate::facts::{LookError, Reason};

/// A worker with a thousand pods has some thousand mounts of some hundred bytes; in bytes.
const LIMIT: u64 = 16 << 20;
/// Disks of this machine. `vfat` is not among them: it is the boot loader's and is often read-only.
const LOCAL: [&str; 9] = ["ext2", "ext3", "ext4", "xfs", "btrfs", "f2fs", "zfs", "bcachefs", "jfs"];
/// File systems that answer over a network or by a process: asking one whose server is dead hangs.
const REMOTE: [&str; 13] =
    ["nfs", "nfs4", "cifs", "smb3", "smbfs", "ceph", "glusterfs", "lustre", "afs", "9p", "virtiofs", "ocfs2", "beegfs"];
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
    /// Whether looking at it can wait for someone else.
    pub(super) fn is_remote(&self) -> bool {
        REMOTE.contains(&self.kind.as_str()) || self.kind.starts_with("fuse")
    }

    /// Whether it is on a disk of this machine that can go read-only.
    pub(super) fn is_local_disk(&self) -> bool {
        LOCAL.contains(&self.kind.as_str())
    }
}

/// Reads the mount table of the node.
///
/// On the node itself that is this process's own. In a pod it is that of the node's first process, through the node's
/// own `/proc`: its paths are the node's paths, its options are not those with which the pod was given the tree, and
/// it is complete even where mounts do not propagate into the pod. Where that is closed (`hidepid`) the pod's own table
/// serves: the root is taken off the paths, and whether a mount alone is read-only is not known, since the pod's is.
pub(super) fn read(host: &HostRoot) -> Result<Vec<Mount>, LookError> {
    let root = host.path("/");
    let root = root.to_string_lossy();
    let root = root.trim_end_matches('/');
    if root.is_empty() {
        return Ok(parse(&host.read("/proc/self/mountinfo", LIMIT)?, "/proc/self/mountinfo")?
            .into_iter()
            .map(from_node)
            .collect());
    }
    let path = "/proc/1/mountinfo";
    match host.read(path, LIMIT) {
        Ok(bytes) => Ok(parse(&bytes, path)?.into_iter().map(from_node).collect()),
        Err(first) => {
            let bytes = HostRoot::new("/").read("/proc/self/mountinfo", LIMIT)?;
            let mounts: Vec<_> = parse(&bytes, path)?.into_iter().filter_map(|mount| from_pod(mount, root)).collect();
            if mounts.is_empty() { Err(first) } else { Ok(mounts) }
        }
    }
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
    let above = |mount: &&Mount| {
        let point = mount.point.trim_end_matches('/');
        path.strip_prefix(point).is_some_and(|rest| rest.is_empty() || rest.starts_with('/'))
    };
    mounts.iter().filter(above).max_by_key(|mount| mount.point.len())
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
#[cfg(fuzzing)]
pub(super) fn fuzz(bytes: &[u8]) {
    let Ok(infos) = parse(bytes, "/proc/1/mountinfo") else { return };
    let in_pod: Vec<_> = infos.iter().cloned().filter_map(|info| from_pod(info, "/host")).collect();
    assert!(in_pod.iter().all(|mount| mount.point.starts_with('/')));
    let mounts: Vec<_> = infos.into_iter().map(from_node).collect();
    for mount in &mounts {
        let _ = (mount.is_remote(), mount.is_local_disk());
        if mount.point.starts_with('/') {
            assert!(holding(&mounts, &mount.point).is_some(), "{mount:?}");
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn escapes_of_the_kernel() {
        assert_eq!(unescape(r"/a\040b\134c"), r"/a b\c");
        assert_eq!(unescape(r"/\x\04"), r"/\x\04");
        assert_eq!(unescape("/ü\\040"), "/ü ");
    }

    #[test]
    fn the_longest_point_and_the_last_on_it_hold_a_path() {
        let table = b"1 0 8:1 / / rw - ext4 /dev/sda1 rw\n2 1 8:2 / /var/lib rw - xfs /dev/sda2 rw\n3 1 8:3 / /var/lib rw - xfs /dev/sda3 rw\n";
        let mounts: Vec<_> = parse(table, "").expect("good").into_iter().map(from_node).collect();
        let source = |path| holding(&mounts, path).map(|mount| mount.source.as_str());
        assert_eq!(source("/var/lib/kubelet"), Some("/dev/sda3"));
        assert_eq!(source("/var/lib"), Some("/dev/sda3"));
        assert_eq!(source("/var/library"), Some("/dev/sda1"));
        assert_eq!(source("/"), Some("/dev/sda1"));
    }

    #[test]
    fn a_pods_own_table_loses_its_root_and_what_the_pod_made_read_only() {
        let table = b"1 0 0:9 / / rw - overlay overlay rw\n2 1 8:1 / /host ro - ext4 /dev/sda1 rw\n3 2 8:2 / /host/var rw - xfs /dev/sda2 ro\n4 1 8:1 /x /hosts rw - ext4 /dev/sda1 rw\n";
        let mounts: Vec<_> =
            parse(table, "").expect("good").into_iter().filter_map(|info| from_pod(info, "/host")).collect();
        let short: Vec<_> = mounts.iter().map(|it| (it.point.as_str(), it.read_only, it.bound_read_only)).collect();
        assert_eq!(short, [("/", false, false), ("/var", true, false)]);
    }

    proptest::proptest! {
        #[test]
        fn no_text_makes_it_panic(text: String) {
            let _ = unescape(&text);
            let _ = parse(text.as_bytes(), "");
        }
    }
}
