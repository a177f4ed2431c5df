//! File systems, connection tracking and forwarding.

use std::time::Duration;

use serde::Serialize;

use super::{Family, Seen};

/// One mounted file system that has a role on a worker, or that can go read-only.
#[derive(Debug, Clone, PartialEq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct Filesystem {
    /// Where it is mounted on the node (no host root in front).
    pub mount_point: String,
    /// Device or share.
    pub source: String,
    /// The kernel's own name of the device, as its log has it (`sda1`, `dm-0`); none where it is no block device.
    pub device: Option<String>,
    /// `ext4`, `xfs`, `overlay`, ...
    pub kind: String,
    /// What the node keeps on it; empty when it has no role here.
    pub roles: Vec<Role>,
    /// Whether the mount or its superblock is read-only now.
    pub read_only: bool,
    /// Whether `/etc/fstab` asks for read-only, or it has been read-only since the first look of this boot.
    pub meant_read_only: bool,
    /// Bytes and inodes.
    pub space: Seen<Space>,
    /// Bytes that become unavailable per second, over the last minutes; none before there is a trend.
    pub bytes_per_second: Option<f64>,
    /// Inodes that become unavailable per second.
    pub inodes_per_second: Option<f64>,
    /// What holds most of it, as a person calls it, in bytes; empty while there is enough room.
    pub biggest: Vec<(String, u64)>,
    /// What has most files on it, the same way; counted up to a bound.
    pub most_files: Vec<(String, u64)>,
}

/// What a worker keeps on a file system.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize)]
#[serde(rename_all = "camelCase")]
pub enum Role {
    /// `/`.
    Root,
    /// The kubelet's directory: the kubelet's `nodefs`.
    Nodefs,
    /// The runtime's store of images and layers: the kubelet's `imagefs`.
    Imagefs,
    /// `/var/log`.
    Logs,
}

impl std::fmt::Display for Role {
    fn fmt(&self, out: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        out.write_str(match self {
            Role::Root => "root",
            Role::Nodefs => "nodefs",
            Role::Imagefs => "imagefs",
            Role::Logs => "logs",
        })
    }
}

/// `statvfs(3)`: bytes and inodes.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct Space {
    /// `f_blocks` times `f_frsize`.
    pub bytes: u64,
    /// `f_bavail` times `f_frsize`: what a process without privilege may still use, as the kubelet counts it.
    pub bytes_available: u64,
    /// `f_files`; 0 where the file system does not count inodes (btrfs).
    pub inodes: u64,
    /// `f_favail`.
    pub inodes_available: u64,
}

/// Connection tracking.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct Conntrack {
    /// `nf_conntrack_count`.
    pub count: u64,
    /// `nf_conntrack_max`; 0 means no limit.
    pub max: u64,
    /// Sum over all CPUs of `drop` in `/proc/net/stat/nf_conntrack`: packets dropped because no entry could be made.
    pub dropped: u64,
    /// Growth of [`Conntrack::dropped`] since the look before.
    pub dropped_since: u64,
    /// Growth of `insert_failed`: two packets made the same entry, or no port was left to translate to.
    pub insert_failed_since: u64,
    /// Growth of `early_drop`: entries thrown out to make room.
    pub early_drop_since: u64,
    /// Whether `drop` is counted here, and has been watched for longer than [`CONNTRACK_LASTS`] without growing.
    pub quiet: bool,
}

/// How long the kernel's word that a connection tracking table is full stands after it was said last.
pub const CONNTRACK_LASTS: Duration = Duration::from_secs(120);

/// Forwarding switches of the node's network namespace.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct Forwarding {
    /// `net.ipv4.ip_forward`.
    pub ipv4: Seen<bool>,
    /// `net.ipv6.conf.all.forwarding`; absent where the kernel has no IPv6.
    pub ipv6: Seen<bool>,
}

impl Forwarding {
    /// The switch of one family.
    pub fn of(&self, family: Family) -> &Seen<bool> {
        match family {
            Family::V4 => &self.ipv4,
            Family::V6 => &self.ipv6,
        }
    }
}
