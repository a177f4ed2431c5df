//! How close something that runs out is to the point where the kubelet acts. Shared by the five capacity checks.

use super::{Limits, Look};
use crate::facts::{EvictionThresholds, Filesystem, Quantity, Role};

/// How much is left of one thing, against the point where it counts as full.
#[derive(Debug, Clone, Copy)]
pub(super) struct Supply {
    /// Capacity, in bytes or inodes.
    pub capacity: u64,
    /// What is left.
    pub available: u64,
    /// Below this it counts as full.
    pub threshold: u64,
    /// Loss per second, when there is a trend.
    pub per_second: Option<f64>,
    /// Whether the threshold is the kubelet's own.
    pub kubelet: bool,
}

/// Projections count only below this many percent of the capacity above the threshold: an image that is being pulled
/// into an empty disk is no trend.
const PROJECTED_BELOW_POINTS: f64 = 20.0;

#[expect(clippy::cast_precision_loss, reason = "percentages and minutes need no more than 52 bits")]
impl Supply {
    /// Whether it counts as full.
    pub(super) fn full(&self) -> bool {
        self.capacity > 0 && self.available <= self.threshold
    }

    /// Why it will soon be full, if so (catalogue H9).
    pub(super) fn imminent(&self, limits: &Limits) -> Option<String> {
        if self.capacity == 0 || self.full() {
            return None;
        }
        let room = (self.available - self.threshold) as f64;
        let points = room * 100.0 / self.capacity as f64;
        if points < limits.imminent_points {
            return Some(format!("{points:.1} points above the limit"));
        }
        let minutes = room / self.per_second.filter(|rate| *rate > 0.0)? / 60.0;
        let soon = minutes < limits.imminent_minutes && points < PROJECTED_BELOW_POINTS;
        soon.then(|| format!("at the present rate it reaches the limit in {minutes:.0} minutes"))
    }

    /// `4.2 % left (1.3 GiB)`, with the limit and whose it is.
    pub(super) fn describe(&self, amount: fn(u64) -> String) -> String {
        let percent = self.available as f64 * 100.0 / self.capacity.max(1) as f64;
        let whose = if self.kubelet { "the kubelet evicts pods below" } else { "the limit is" };
        format!("{percent:.1} % left ({}), {whose} {}", amount(self.available), amount(self.threshold))
    }
}

/// Bytes of a file system; none where they are not known.
pub(super) fn bytes(look: &Look<'_>, filesystem: &Filesystem) -> Option<Supply> {
    let space = filesystem.space.get()?;
    let pick = |role, eviction: &EvictionThresholds| match role {
        Role::Nodefs => Some(eviction.nodefs),
        Role::Imagefs => Some(eviction.imagefs),
        Role::Root | Role::Logs => None,
    };
    let (threshold, kubelet) = threshold(look, filesystem, space.bytes, pick);
    let (capacity, available, per_second) = (space.bytes, space.bytes_available, filesystem.bytes_per_second);
    Some(Supply { capacity, available, threshold, per_second, kubelet })
}

/// Inodes of a file system; none where they are not known or not counted.
pub(super) fn inodes(look: &Look<'_>, filesystem: &Filesystem) -> Option<Supply> {
    let space = filesystem.space.get().filter(|space| space.inodes > 0)?;
    let pick = |role, eviction: &EvictionThresholds| match role {
        Role::Nodefs => Some(eviction.nodefs_inodes),
        Role::Imagefs => Some(eviction.imagefs_inodes),
        Role::Root | Role::Logs => None,
    };
    let (threshold, kubelet) = threshold(look, filesystem, space.inodes, pick);
    let (capacity, available, per_second) = (space.inodes, space.inodes_available, filesystem.inodes_per_second);
    Some(Supply { capacity, available, threshold, per_second, kubelet })
}

/// The highest threshold among the roles of a file system, and whether it is the kubelet's.
fn threshold(
    look: &Look<'_>,
    filesystem: &Filesystem,
    capacity: u64,
    pick: impl Fn(Role, &EvictionThresholds) -> Option<Quantity>,
) -> (u64, bool) {
    let own = Quantity::Percent(look.limits.full_percent).of(capacity);
    let kubelet = look.now.kubelet.get().filter(|_| look.expected.worker);
    let theirs = kubelet.and_then(|kubelet| {
        let thresholds = filesystem.roles.iter().filter_map(|role| pick(*role, &kubelet.eviction));
        thresholds.map(|quantity| quantity.of(capacity)).max()
    });
    match theirs {
        Some(theirs) if theirs > own => (theirs, true),
        _ => (own, false),
    }
}

/// What a person calls a file system: its mount point and what is on it.
pub(super) fn name(filesystem: &Filesystem) -> String {
    let roles: Vec<String> = filesystem.roles.iter().map(ToString::to_string).collect();
    if roles.is_empty() {
        filesystem.mount_point.clone()
    } else {
        format!("{} ({})", filesystem.mount_point, roles.join(", "))
    }
}

/// A number of bytes as a person reads it.
#[expect(clippy::cast_precision_loss, reason = "one decimal is shown")]
pub(crate) fn human_bytes(bytes: u64) -> String {
    let units = ["B", "KiB", "MiB", "GiB", "TiB", "PiB"];
    let unit = (0..units.len() - 1).find(|unit| bytes >> (10 * (unit + 1)) == 0).unwrap_or(units.len() - 1);
    if unit == 0 {
        format!("{bytes} B")
    } else {
        format!("{:.1} {}", bytes as f64 / f64::powi(1024.0, i32::try_from(unit).unwrap_or(0)), units[unit])
    }
}

/// A number of inodes.
pub(super) fn human_inodes(inodes: u64) -> String {
    format!("{inodes} inodes")
}

#[cfg(test)]
mod tests {
    use super::*;

    fn supply(available: u64, per_second: Option<f64>) -> Supply {
        Supply { capacity: 1_000_000, available, threshold: 100_000, per_second, kubelet: true }
    }

    #[test]
    fn imminent_by_distance_or_by_projection() {
        let limits = Limits::default();
        assert!(supply(149_000, None).imminent(&limits).is_some());
        assert_eq!(supply(151_000, None).imminent(&limits), None);
        assert!(supply(200_000, Some(100.0)).imminent(&limits).expect("17 minutes").contains("17 minutes"));
        assert_eq!(supply(200_000, Some(10.0)).imminent(&limits), None, "167 minutes");
        assert_eq!(supply(900_000, Some(5_000.0)).imminent(&limits), None, "a burst into an empty disk");
        assert_eq!(supply(200_000, Some(-100.0)).imminent(&limits), None, "space is being freed");
        assert_eq!(supply(100_000, None).imminent(&limits), None, "full is told by the other check");
    }

    #[test]
    fn bytes_read_well() {
        assert_eq!(human_bytes(1_023), "1023 B");
        assert_eq!(human_bytes(1 << 20), "1.0 MiB");
        assert_eq!(human_bytes(1_610_612_736), "1.5 GiB");
    }
}
