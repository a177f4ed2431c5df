//! How close something that runs out is to the point where the kubelet acts. Shared by the capacity checks.

use std::time::Duration;

use super::{Finding, Limits, Look, Outcome, findings_or_unknown, first_error, seen};
use crate::facts::{EvictionThresholds, Filesystem, Quantity, Role};

/// What `judge` finds on the file systems that are in use.
pub(super) fn judged(look: &Look<'_>, judge: impl Fn(&Filesystem) -> Option<Finding>) -> Outcome {
    let filesystems = seen!(look.now.filesystems, Outcome::NotApplicable("no file systems to look at".into()));
    let in_use = || filesystems.iter().filter(|filesystem| !filesystem.roles.is_empty());
    findings_or_unknown(
        in_use().filter_map(judge).collect(),
        first_error(in_use().map(|filesystem| filesystem.space.error())),
    )
}

/// How much is left of one thing, against the point where it counts as full.
#[derive(Debug, Clone, Copy)]
pub(super) struct Supply {
    /// Capacity, in bytes, inodes or whatever it is.
    pub capacity: u64,
    /// What is left.
    pub available: u64,
    /// Below this it counts as full.
    pub threshold: u64,
    /// Below this the kubelet evicts after a grace period; 0 where it does not.
    pub soft: u64,
    /// Below this the kubelet frees some by itself, before the threshold.
    pub collected_below: Option<u64>,
    /// Loss per second, when there is a trend.
    pub per_second: Option<f64>,
    /// Whether the threshold is the kubelet's own.
    pub kubelet: bool,
}

/// Why something will soon be full.
#[derive(Debug, Clone, PartialEq)]
pub(super) struct Imminent {
    /// The reason, as a clause.
    pub reason: String,
    /// Its owner may still free some by itself within this time.
    pub repaired_within: Option<Duration>,
}

/// Further away than so many percent of the capacity above the limit a projection has to be a near one: an image that is
/// being pulled into an empty disk is no trend.
const PROJECTED_BELOW_POINTS: f64 = 20.0;
/// Such a near projection, in minutes.
const NEAR: f64 = 10.0;
/// The kubelet looks whether to collect images this often (`ImageGCPeriod` of `pkg/kubelet/kubelet.go`); in minutes.
const COLLECTION_PERIOD: f64 = 5.0;
/// By then a collection has come and had its time.
const COLLECTED: Duration = Duration::from_secs(360);

#[expect(clippy::cast_precision_loss, reason = "percentages and minutes need no more than 52 bits")]
impl Supply {
    /// A supply about which no more than its limit is known.
    pub(super) fn plain(capacity: u64, available: u64, threshold: u64, per_second: Option<f64>) -> Self {
        Supply { capacity, available, threshold, soft: 0, collected_below: None, per_second, kubelet: false }
    }

    /// Whether it counts as full.
    pub(super) fn full(&self) -> bool {
        self.capacity > 0 && self.available <= self.threshold
    }

    /// Why it will soon be full, if so (catalogue H9).
    ///
    /// Where the kubelet collects images before it evicts, it lets the disk fill to that line again and again: the
    /// neighbourhood of the limit is where such a disk lives. There it counts when the collection did not help, or when
    /// it is filling too fast to wait for one.
    pub(super) fn imminent(&self, limits: &Limits) -> Option<Imminent> {
        if self.capacity == 0 || self.full() {
            return None;
        }
        if self.available <= self.soft {
            let reason = "below the kubelet's soft threshold, so it evicts after the grace period";
            return Some(Imminent { reason: reason.to_owned(), repaired_within: None });
        }
        let limit = self.threshold.max(self.soft);
        let (room, percent) = ((self.available - limit) as f64, self.capacity as f64 / 100.0);
        let minutes = |amount: f64| self.per_second.filter(|rate| *rate > 0.0).map(|rate| amount / rate / 60.0);
        let points = room / percent;
        let collected = self.collected_below.filter(|line| *line > limit);
        // Two periods and the time that a warning should be early.
        let in_time = |line: u64| minutes((line - limit) as f64).is_none_or(|gap| gap >= 2.0 * COLLECTION_PERIOD + 2.0);
        if let Some(line) = collected.filter(|line| in_time(*line)) {
            let used = 101.0 - line as f64 / percent;
            return (self.available < line).then(|| Imminent {
                reason: format!("the kubelet deletes unused images from {used:.0} % used on, and that has not helped"),
                repaired_within: Some(COLLECTED),
            });
        }
        let reason = if points < limits.imminent_points && collected.is_none() {
            format!("{points:.1} points above the limit")
        } else {
            let minutes = minutes(room).filter(|minutes| {
                *minutes < limits.imminent_minutes && (points < PROJECTED_BELOW_POINTS || *minutes < NEAR)
            })?;
            format!("at the present rate it reaches the limit in {minutes:.0} minutes")
        };
        Some(Imminent { reason, repaired_within: None })
    }

    /// `4.2 % left (1.3 GiB)`, with the limit and whose it is.
    pub(super) fn describe(&self, amount: fn(u64) -> String) -> String {
        let percent = self.available as f64 * 100.0 / self.capacity.max(1) as f64;
        let whose = if self.kubelet { "the kubelet evicts pods below" } else { "the limit is" };
        format!("{percent:.1} % left ({}), {whose} {}", amount(self.available), amount(self.threshold.max(self.soft)))
    }

    /// [`Supply::warn`], also when it is full already: where no other check tells that.
    pub(super) fn warn_or_full(
        &self,
        limits: &Limits,
        subject: &str,
        what: &str,
        amount: fn(u64) -> String,
    ) -> Option<Finding> {
        if self.full() {
            return Some(Finding::new(subject, format!("{what}: {}; below the limit", self.describe(amount))));
        }
        self.warn(limits, subject, what, amount)
    }

    /// The finding, if it will soon be full: what it is, and how an amount is written.
    pub(super) fn warn(
        &self,
        limits: &Limits,
        subject: &str,
        what: &str,
        amount: fn(u64) -> String,
    ) -> Option<Finding> {
        let Imminent { reason, repaired_within } = self.imminent(limits)?;
        let finding = Finding::new(subject, format!("{what}: {}; {reason}", self.describe(amount)));
        Some(Finding { owner_repairs_within: repaired_within, ..finding })
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
    let plain = Supply::plain(space.bytes, space.bytes_available, 0, filesystem.bytes_per_second);
    Some(Supply {
        collected_below: collected_below(look, filesystem, space.bytes),
        ..limited(look, filesystem, plain, pick)
    })
}

/// Inodes of a file system; none where they are not known or not counted.
pub(super) fn inodes(look: &Look<'_>, filesystem: &Filesystem) -> Option<Supply> {
    let space = filesystem.space.get().filter(|space| space.inodes > 0)?;
    let pick = |role, eviction: &EvictionThresholds| match role {
        Role::Nodefs => Some(eviction.nodefs_inodes),
        Role::Imagefs => Some(eviction.imagefs_inodes),
        Role::Root | Role::Logs => None,
    };
    let plain = Supply::plain(space.inodes, space.inodes_available, 0, filesystem.inodes_per_second);
    Some(limited(look, filesystem, plain, pick))
}

/// With the highest threshold among the roles of a file system, and whether it is the kubelet's.
fn limited(
    look: &Look<'_>,
    filesystem: &Filesystem,
    supply: Supply,
    pick: impl Fn(Role, &EvictionThresholds) -> Option<Quantity>,
) -> Supply {
    let own = Quantity::Percent(look.limits.full_percent).of(supply.capacity);
    let kubelet = look.now.kubelet.get().filter(|_| look.expected.worker);
    let highest = |thresholds: &EvictionThresholds| {
        let all = filesystem.roles.iter().filter_map(|role| pick(*role, thresholds));
        all.map(|quantity| quantity.of(supply.capacity)).max().unwrap_or(0)
    };
    let [hard, soft] = kubelet.map_or([0; 2], |it| [highest(&it.eviction), highest(&it.capacity.soft)]);
    Supply { threshold: hard.max(own), soft, kubelet: hard.max(soft) > own, ..supply }
}

/// Where the kubelet starts to delete unused images, in available bytes: it compares whole percents, the available ones
/// rounded down (`GarbageCollect` of `pkg/kubelet/images/image_gc_manager.go`).
fn collected_below(look: &Look<'_>, filesystem: &Filesystem, capacity: u64) -> Option<u64> {
    let kubelet = look.now.kubelet.get().filter(|_| look.expected.worker)?;
    let high = kubelet.capacity.image_gc_high_percent.filter(|_| filesystem.roles.contains(&Role::Imagefs))?;
    Some(Quantity::Percent(101.0 - f64::from(high)).of(capacity))
}

/// `; much of it is in logs of a/b (1.0 GiB), the journal (0.5 GiB)`, or nothing where nobody looked.
pub(super) fn holders(filesystem: &Filesystem) -> String {
    most("much of it is in", &filesystem.biggest, human_bytes)
}

/// The same of inodes.
pub(super) fn file_holders(filesystem: &Filesystem) -> String {
    most("many of them are in", &filesystem.most_files, human_inodes)
}

/// `; LEAD a (1), b (2)`, or nothing.
pub(super) fn most(lead: &str, list: &[(String, u64)], amount: fn(u64) -> String) -> String {
    let each: Vec<_> = list.iter().map(|(what, count)| format!("{what} ({})", amount(*count))).collect();
    if each.is_empty() { String::new() } else { format!("; {lead} {}", each.join(", ")) }
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
    use crate::facts::Trend;
    use jiff::{SignedDuration, Timestamp};

    fn supply(available: u64, per_second: Option<f64>) -> Supply {
        Supply { kubelet: true, ..Supply::plain(1_000_000, available, 100_000, per_second) }
    }

    #[test]
    fn imminent_by_distance_or_by_projection() {
        let limits = Limits::default();
        assert!(supply(149_000, None).imminent(&limits).is_some());
        assert_eq!(supply(151_000, None).imminent(&limits), None);
        assert!(supply(200_000, Some(100.0)).imminent(&limits).expect("17 minutes").reason.contains("17 minutes"));
        assert_eq!(supply(200_000, Some(10.0)).imminent(&limits), None, "167 minutes");
        assert_eq!(supply(900_000, Some(800.0)).imminent(&limits), None, "a burst into an empty disk");
        assert_eq!(supply(200_000, Some(-100.0)).imminent(&limits), None, "space is being freed");
        assert_eq!(supply(100_000, None).imminent(&limits), None, "full is told by the other check");
        let soft = Supply { soft: 200_000, ..supply(190_000, None) };
        assert!(soft.imminent(&limits).expect("it evicts").reason.contains("soft threshold"));
    }

    /// A disk of which the kubelet's defaults hold: images are deleted from 85 % used on, and pods evicted below 15 % left.
    fn collected(available: u64, per_second: Option<f64>) -> Supply {
        let plain = Supply::plain(1_000_000, available, 150_000, per_second);
        Supply { collected_below: Some(160_000), kubelet: true, ..plain }
    }

    #[test]
    fn where_images_are_collected_the_neighbourhood_of_the_limit_is_routine() {
        let limits = Limits::default();
        assert_eq!(collected(170_000, Some(1.0)).imminent(&limits), None, "80 to 85 % used, and slow");
        let late = collected(159_000, Some(1.0)).imminent(&limits).expect("the collection has to come");
        assert_eq!(late.repaired_within, Some(COLLECTED));
        let fast = collected(170_000, Some(50.0)).imminent(&limits).expect("3 minutes from one line to the other");
        assert_eq!(fast.repaired_within, None);
        let late = Supply { collected_below: Some(60_000), ..collected(170_000, None) };
        assert!(late.imminent(&limits).is_some(), "a collection that begins after the eviction holds nothing");
    }

    /// Fills a disk at a steady rate, and answers how many seconds before it is full the finding counts, if ever.
    fn early(supply: Supply, per_second: u64) -> Option<i64> {
        let (limits, mut trend, mut since) = (Limits::default(), Trend::default(), None);
        let start = Timestamp::UNIX_EPOCH;
        let at = |second: i64| start + SignedDuration::from_secs(second);
        let full_at = i64::try_from((supply.available - supply.threshold) / per_second).expect("small");
        for second in (0..full_at).step_by(10) {
            let left = supply.available - per_second * u64::try_from(second).expect("positive");
            let rate = trend.push(at(second), left);
            match (Supply { available: left, per_second: rate, ..supply }).imminent(&limits) {
                None => since = None,
                Some(imminent) => {
                    let hold = imminent.repaired_within.unwrap_or(Duration::from_secs(30));
                    let since = *since.get_or_insert(second);
                    if second - since >= i64::try_from(hold.as_secs()).expect("small") {
                        return Some(full_at - second);
                    }
                }
            }
        }
        None
    }

    #[test]
    fn at_any_steady_rate_it_is_told_five_minutes_before_the_kubelet_acts() {
        // From half empty to the limit within 9 minutes to 6 days.
        for per_second in [1, 2, 3, 5, 8, 12, 13, 14, 15, 20, 40, 80, 160, 320, 640] {
            for supply in [supply(500_000, None), collected(500_000, None)] {
                let early = early(supply, per_second).expect("it is told");
                assert!(early >= 300, "{per_second} a second: {early} s before, {supply:?}");
            }
        }
    }

    #[test]
    fn a_store_that_the_collection_holds_never_warns() {
        let (limits, mut trend, mut since) = (Limits::default(), Trend::default(), 0);
        let mut left: u64 = 200_000;
        for second in 0..100_000_i64 {
            if second % 300 == 0 && left * 100 / 1_000_000 <= 15 {
                left = 200_000;
            }
            left -= 10;
            if second % 10 != 0 {
                continue;
            }
            let rate = trend.push(Timestamp::UNIX_EPOCH + SignedDuration::from_secs(second), left);
            match collected(left, rate).imminent(&limits) {
                None => since = second,
                Some(imminent) => {
                    let hold = imminent.repaired_within.expect("not told at once").as_secs();
                    assert!(second - since < i64::try_from(hold).expect("small"), "told at {second} with {left} left");
                }
            }
        }
    }

    #[test]
    fn bytes_read_well() {
        assert_eq!(human_bytes(1_023), "1023 B");
        assert_eq!(human_bytes(1 << 20), "1.0 MiB");
        assert_eq!(human_bytes(1_610_612_736), "1.5 GiB");
    }
}
