//! A node that has just booted or joined puts its network together: until its first clean pass, or for so long, what is
//! missed there is shown and raises no alarm (catalogue R013, H12).

use std::time::Duration;

use jiff::Timestamp;

use super::Now;
use crate::checks::Area;

/// The time in which a node settles.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Settling {
    until: Duration,
    /// What it comes from, for people.
    pub(super) after: &'static str,
}

impl Settling {
    /// Whether a node settles now: it booted less than `window` ago, or its Node object is younger than that.
    pub fn of(window: Duration, joined: Option<Timestamp>, now: Now) -> Option<Self> {
        let booted = window.checked_sub(now.since_boot).map(|left| (left, "it booted"));
        let age = joined.map(|joined| Duration::try_from(now.wall.duration_since(joined)).unwrap_or_default());
        let joined = age.and_then(|age| window.checked_sub(age)).map(|left| (left, "it joined"));
        let (left, after) = [booted, joined].into_iter().flatten().max()?;
        (!left.is_zero()).then(|| Settling { until: now.since_boot + left, after })
    }

    /// Whether findings of this area wait: the CNI, routes and rules come up after the agent. A full disk, a runtime that
    /// hangs and a kubelet that is down are as wrong on a young node as on an old one.
    pub(super) fn holds(area: Area) -> bool {
        matches!(area, Area::Cni | Area::PodRouting | Area::PacketFilter)
    }

    /// Time that is left.
    pub(super) fn left(self, now: Now) -> Option<Duration> {
        self.until.checked_sub(now.since_boot).filter(|left| !left.is_zero())
    }
}
