//! The node's file systems: how full they are, how fast they fill, and which went read-only.

use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use futures::future::join_all;
use jiff::Timestamp;
use nix::sys::stat::{major, minor, stat};
use nix::sys::statvfs::statvfs;

use self::mounts::Mount;
use super::blocking::Blocking;
use super::host_root::HostRoot;
use crate::facts::{Filesystem, LookError, Reason, Role, Seen, Space, Trend};

mod biggest;
mod fstab;
mod mounts;

/// A local disk that answers `statvfs` later than this hangs.
const DEADLINE: Duration = Duration::from_secs(2);
/// While space runs short, what holds it is looked for this often.
const AGAIN: Duration = Duration::from_secs(600);
/// File systems that can never be written.
const NEVER_WRITTEN: [&str; 3] = ["squashfs", "erofs", "iso9660"];
/// Local file systems whose files have the device number that mountinfo shows (btrfs and ZFS number each subvolume).
const ONE_NUMBER: [&str; 5] = ["ext2", "ext3", "ext4", "xfs", "f2fs"];

/// Looks at file systems, and remembers how each was and how it filled.
#[derive(Debug)]
pub(crate) struct FilesystemSource {
    host: HostRoot,
    blocking: Blocking,
    /// By device and mount point.
    remembered: BTreeMap<(String, String), Remembered>,
    /// Where the roles' paths lead, from the last time that could be asked.
    resolved: Vec<(Role, String)>,
    mounts: mounts::Table,
}

#[derive(Debug, Default)]
struct Remembered {
    /// Whether it was read-only when this process saw it first.
    born_read_only: bool,
    /// What the kernel calls the device.
    name: Option<String>,
    bytes: Trend,
    inodes: Trend,
    biggest: Option<(Instant, biggest::Holders)>,
}

/// A device with what is kept on it.
struct Device<'a> {
    mount: &'a Mount,
    roles: BTreeSet<Role>,
    read_only: bool,
}

impl FilesystemSource {
    /// Nothing is read yet.
    pub(crate) fn new(host: HostRoot, blocking: Blocking) -> Self {
        FilesystemSource {
            mounts: mounts::Table::new(host.clone()),
            host,
            blocking,
            remembered: BTreeMap::new(),
            resolved: Vec::new(),
        }
    }

    /// Looks at the file systems that hold the roles' paths, and at the local ones without a role. The latter are not
    /// measured ([`Filesystem::space`] is absent), only asked whether they are read-only. Network file systems without a
    /// role are left out altogether: asking one that is dead hangs. Of several paths of one role the first one that exists
    /// counts; a role without any has no file system.
    pub(crate) async fn look(
        &mut self,
        now: Timestamp,
        roles: &[(Role, String)],
    ) -> Result<Vec<Filesystem>, LookError> {
        self.resolve(roles).await;
        self.mounts.refresh(&self.resolved)?;
        let devices = devices(self.mounts.get(), &self.resolved);
        let spaces = join_all(devices.iter().map(|device| self.space(device))).await;
        let fstab = fstab::read(&self.host);
        let mut before = std::mem::take(&mut self.remembered);
        let mut found = Vec::with_capacity(devices.len());
        for (device, space) in devices.iter().zip(spaces) {
            let mount = device.mount;
            let key = (mount.device.clone(), mount.point.clone());
            let mut memory = before.remove(&key).unwrap_or_else(|| {
                let name = device_name(&self.host, &mount.device);
                let errors = name.as_deref().is_some_and(|name| has_errors(&self.host, name));
                Remembered { born_read_only: device.read_only && !errors, name, ..Remembered::default() }
            });
            // What was written to after it had been read-only is not meant to be read-only.
            memory.born_read_only &= device.read_only;
            let rates = space.get().map(|space| {
                let inodes = (space.inodes > 0).then(|| memory.inodes.push(now, space.inodes_available)).flatten();
                (memory.bytes.push(now, space.bytes_available), inodes)
            });
            let (bytes_per_second, inodes_per_second) = rates.unwrap_or_default();
            let kubelet = roles.iter().find(|(role, _)| *role == Role::Nodefs).map(|(_, path)| path.as_str());
            if !space.get().is_some_and(|space| is_short(*space, bytes_per_second, inodes_per_second)) {
                memory.biggest = None;
            } else if memory.biggest.as_ref().is_none_or(|(at, _)| at.elapsed() >= AGAIN) {
                memory.biggest = Some((Instant::now(), self.biggest(&mount.point, kubelet).await));
            }
            found.push(Filesystem {
                mount_point: mount.point.clone(),
                source: mount.source.clone(),
                device: memory.name.clone(),
                kind: mount.kind.clone(),
                roles: device.roles.iter().copied().collect(),
                read_only: device.read_only,
                meant_read_only: meant_read_only(mount, &fstab, memory.born_read_only),
                space,
                bytes_per_second,
                inodes_per_second,
                biggest: memory.biggest.as_ref().map(|(_, it)| it.bytes.clone()).unwrap_or_default(),
                most_files: memory.biggest.as_ref().map(|(_, it)| it.files.clone()).unwrap_or_default(),
            });
            self.remembered.insert(key, memory);
        }
        Ok(found)
    }

    /// Has the mount table read at the next look: something was told of it, or of a disk.
    pub(crate) fn changed(&mut self) {
        self.mounts.changed();
    }

    /// Follows the symbolic links of the roles' paths. A disk that hangs leaves those of the look before.
    async fn resolve(&mut self, roles: &[(Role, String)]) {
        let (host, wanted) = (self.host.clone(), roles.to_vec());
        let follow = move || {
            let root = host.path("/");
            let resolved = wanted.into_iter().filter_map(|(role, path)| Some((role, real_path(&host, &root, &path)?)));
            Ok(resolved.collect())
        };
        let mut resolved = match self.blocking.run("paths of the roles", DEADLINE, follow).await {
            Ok(resolved) => resolved,
            Err(_) if self.resolved.is_empty() => roles.to_vec(),
            Err(_) => return,
        };
        resolved.dedup_by_key(|(role, _)| *role);
        self.resolved = resolved;
    }

    async fn biggest(&self, point: &str, kubelet: Option<&str>) -> biggest::Holders {
        let (host, at) = (self.host.clone(), point.to_owned());
        let kubelet = kubelet.unwrap_or("/var/lib/kubelet").to_owned();
        let look = move || Ok(biggest::look(&host, &at, &kubelet));
        self.blocking.run(&format!("sizes on {point}"), DEADLINE, look).await.unwrap_or_default()
    }

    async fn space(&self, device: &Device<'_>) -> Seen<Space> {
        if device.roles.is_empty() {
            return Seen::Absent;
        }
        let mount = device.mount;
        let number = ONE_NUMBER.contains(&mount.kind.as_str()).then(|| mount.device.clone());
        let (host, point) = (self.host.clone(), mount.point.clone());
        // Already to follow the links on the way there can hang.
        let measure = move || measure(&host.path(&point), &point, number.as_deref());
        match self.blocking.run(&format!("statvfs {}", mount.point), DEADLINE, measure).await {
            Ok(space) => Seen::Yes(space),
            Err(error) => Seen::Unreadable(error),
        }
    }
}

/// Whether it is worth knowing what holds the space: less than a quarter of the bytes or inodes is left, or they are used up
/// within an hour.
#[expect(clippy::cast_precision_loss, reason = "an hour more or less")]
fn is_short(space: Space, bytes_per_second: Option<f64>, inodes_per_second: Option<f64>) -> bool {
    let short = |available: u64, all: u64, rate: Option<f64>| {
        available < all / 4 || rate.is_some_and(|rate| rate * 3600.0 > available as f64)
    };
    short(space.bytes_available, space.bytes, bytes_per_second)
        || space.inodes > 0 && short(space.inodes_available, space.inodes, inodes_per_second)
}

fn measure(path: &Path, point: &str, number: Option<&str>) -> Result<Space, LookError> {
    let about = stat(path).map_err(|errno| LookError::io(point, &errno.into()))?;
    let seen = format!("{}:{}", major(about.st_dev), minor(about.st_dev));
    // Without mount propagation a pod sees the empty directory below a mount that was made after its start.
    if number.is_some_and(|number| number != seen) {
        let detail = "is not mounted in this process's view of the node; set mountPropagation: HostToContainer";
        return Err(LookError::new(point, Reason::WrongKind, detail));
    }
    let stats = statvfs(path).map_err(|errno| LookError::io(point, &errno.into()))?;
    Ok(Space {
        bytes: stats.blocks() * stats.fragment_size(),
        bytes_available: stats.blocks_available() * stats.fragment_size(),
        inodes: stats.files(),
        inodes_available: stats.files_available(),
    })
}

/// Where a path of the node leads, as the node sees it; none when it does not exist.
fn real_path(host: &HostRoot, root: &Path, path: &str) -> Option<String> {
    let real: PathBuf = std::fs::canonicalize(host.path(path)).ok()?;
    let inside = real.strip_prefix(std::fs::canonicalize(root).ok()?).ok()?;
    Some(format!("/{}", inside.to_string_lossy()))
}

/// One entry for each device that holds a role or that is a local disk. A device is mounted many times on a worker
/// (bind mounts of volumes); the mount that stands for it is the one that holds a role, or the shortest.
fn devices<'a>(mounts: &'a [Mount], roles: &[(Role, String)]) -> Vec<Device<'a>> {
    let mut found: BTreeMap<&str, Device<'a>> = BTreeMap::new();
    for (role, path) in roles {
        let Some(mount) = mounts::holding(mounts, path) else { continue };
        let device = found.entry(&mount.device).or_insert(Device { mount, roles: BTreeSet::new(), read_only: false });
        device.roles.insert(*role);
        device.read_only |= mount.read_only || mount.bound_read_only;
        if mount.point.len() < device.mount.point.len() {
            device.mount = mount;
        }
    }
    for mount in mounts.iter().filter(|mount| mount.is_local_disk()) {
        let device = found.entry(&mount.device).or_insert(Device { mount, roles: BTreeSet::new(), read_only: false });
        // A mount that alone is read-only is how volumes are given to pods; the whole file system is what matters.
        device.read_only |= mount.read_only;
        if device.roles.is_empty() && (mount.whole, device.mount.point.len()) > (device.mount.whole, mount.point.len())
        {
            device.mount = mount;
        }
    }
    let mut devices: Vec<_> = found.into_values().collect();
    devices.sort_unstable_by(|one, other| one.mount.point.cmp(&other.mount.point));
    devices
}

/// Whether someone wants it read-only: its kind, `/etc/fstab`, or, when that is silent, its state at the first look.
fn meant_read_only(mount: &Mount, fstab: &[fstab::Entry], born_read_only: bool) -> bool {
    let entry =
        fstab.iter().find(|entry| entry.point == mount.point && (entry.kind == mount.kind || entry.kind == "auto"));
    NEVER_WRITTEN.contains(&mount.kind.as_str())
        || mount.no_upper
        || entry.map_or(born_read_only, |entry| entry.read_only)
}

/// The kernel's own name of a device; none of what is no block device.
fn device_name(host: &HostRoot, number: &str) -> Option<String> {
    let link = std::fs::read_link(host.path(&format!("/sys/dev/block/{number}"))).ok()?;
    link.file_name()?.to_str().map(str::to_owned)
}

/// Whether ext4 has recorded errors: then it was an error that made it read-only, even if that was before the first look.
fn has_errors(host: &HostRoot, name: &str) -> bool {
    let count = host.read_text(&format!("/sys/fs/ext4/{name}/errors_count"), 4096);
    count.is_ok_and(|count| count.trim().parse::<u64>().is_ok_and(|count| count > 0))
}

/// The fuzz target's door.
#[cfg(any(test, fuzzing))]
pub(super) fn fuzz_mounts(bytes: &[u8]) {
    mounts::fuzz(bytes);
}

/// The fuzz target's door.
#[cfg(any(test, fuzzing))]
pub(super) fn fuzz_fstab(text: &str) {
    fstab::fuzz(text);
}

#[cfg(test)]
mod tests;
