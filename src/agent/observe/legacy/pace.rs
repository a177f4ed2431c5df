//! How often legacy tables are read: what reading them costs is known, and over time it takes no more CPU than is meant for it.
//!
//! Whoever changes rules opens the lock file and closes it when done, having copied the whole table twice. So a use of the
//! file that was short has not changed a large table. kube-proxy, the kubelet and Felix use it all the time and repair
//! what they write themselves; what others do is looked at at once, from a reserve.

use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use tokio::sync::Notify;

/// Seconds of CPU that may be used for each second: a fifth of what all of the agent may use.
const RATE: f64 = 0.02 / 60.0;
/// What is measured is the program that prints the tables; reading what it prints takes a third as much again.
const READING: f64 = 4.0 / 3.0;
/// So much that was not used is saved up, in seconds.
const SAVED: f64 = 1.0;
/// And so much of it is kept for what is urgent.
const RESERVE: f64 = 0.9;
/// The shortest and the longest time between looks while nothing is told.
const PERIOD: (Duration, Duration) = (Duration::from_secs(30), Duration::from_secs(1200));
/// A look waits for so long after what woke it, and for twenty times what the last one took, up to a second.
const BREATH: (Duration, Duration) = (Duration::from_millis(50), Duration::from_secs(1));

/// Who used the lock.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum By {
    /// Those who do so all the time.
    Routine,
    /// Somebody else, or nobody knows who.
    Anybody,
}

/// The longest use of the lock by each kind of user since the last look.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(crate) struct Longest {
    routine: Option<Duration>,
    anybody: Option<Duration>,
}

#[cfg(test)]
impl Longest {
    /// Those of routine, and the others.
    pub(crate) fn all(self) -> [Option<Duration>; 2] {
        [self.routine, self.anybody]
    }
}

/// Uses of the lock, from whoever watches it to whoever looks.
#[derive(Debug, Clone, Default)]
pub(crate) struct LockUses(Arc<(Mutex<Longest>, Notify)>);

impl LockUses {
    /// The lock was used for so long.
    pub(crate) fn add(&self, by: By, held: Duration) {
        let (longest, told) = &*self.0;
        let mut longest = longest.lock().unwrap_or_else(PoisonError::into_inner);
        let old = match by {
            By::Routine => &mut longest.routine,
            By::Anybody => &mut longest.anybody,
        };
        *old = (*old).max(Some(held));
        told.notify_one();
    }

    /// Waits for a use.
    pub(crate) async fn told(&self) {
        self.0.1.notified().await;
    }

    /// The uses since the last call.
    pub(crate) fn take(&self) -> Longest {
        std::mem::take(&mut *self.0.0.lock().unwrap_or_else(PoisonError::into_inner))
    }
}

/// Looks at the small tables, or at the large ones.
#[derive(Debug, Clone, Copy)]
struct Kind {
    last: Instant,
    cost: Duration,
    due: Option<By>,
}

/// What decides when to look next.
#[derive(Debug)]
pub(crate) struct Pace {
    left: f64,
    at: Instant,
    took: Duration,
    small: Kind,
    large: Kind,
}

impl Pace {
    /// Nothing has been read yet.
    pub(crate) fn new(now: Instant) -> Self {
        let kind = Kind { last: now, cost: Duration::ZERO, due: None };
        Pace { left: SAVED, at: now, took: Duration::ZERO, small: kind, large: kind }
    }

    /// After a look that began at `began` and used so much CPU; `costs` is what reading small and large tables takes.
    pub(crate) fn looked(
        &mut self,
        (began, now): (Instant, Instant),
        large: bool,
        spent: Duration,
        costs: (Duration, Duration),
    ) {
        self.left = self.left(began) - spent.as_secs_f64() * READING;
        (self.at, self.took) = (began, now.saturating_duration_since(began));
        (self.small.cost, self.large.cost) = costs;
        (self.small.last, self.small.due) = (now, None);
        if large {
            (self.large.last, self.large.due) = (now, None);
        }
    }

    /// The lock was used.
    pub(crate) fn used(&mut self, longest: Longest) {
        // Copying a table out of the kernel is at least two fifths of what the look costs; half of that on a machine whose
        // clock changes.
        let changed_large = |held: Duration| !self.large.cost.is_zero() && held * 5 >= self.large.cost;
        for (by, held) in [(By::Routine, longest.routine), (By::Anybody, longest.anybody)] {
            let Some(held) = held else { continue };
            self.small.due = self.small.due.max(Some(by));
            if changed_large(held) {
                self.large.due = self.large.due.max(Some(by));
            }
        }
    }

    /// When to look next if nothing is told until then, and whether at the large tables too.
    pub(crate) fn next(&self) -> (Instant, bool) {
        let (small, large) = (self.when(&self.small), self.when(&self.large));
        let look_at_large = !self.large.cost.is_zero() && large <= small;
        (if look_at_large { large } else { small }, look_at_large)
    }

    fn when(&self, kind: &Kind) -> Instant {
        let period = kind.cost.mul_f64(READING / RATE).clamp(PERIOD.0, PERIOD.1);
        let needed = match kind.due {
            None => return kind.last + period,
            Some(By::Routine) => RESERVE,
            Some(By::Anybody) => 0.0,
        };
        let saved = Duration::from_secs_f64(((needed - self.left) / RATE).max(0.0));
        let breath = (self.took * 20).clamp(BREATH.0, BREATH.1);
        (self.at + saved).max(self.small.last + breath).min(kind.last + period)
    }

    /// What may be used at `now`.
    fn left(&self, now: Instant) -> f64 {
        (self.left + now.saturating_duration_since(self.at).as_secs_f64() * RATE).min(SAVED)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const MS: Duration = Duration::from_millis(1);
    const SECOND: Duration = Duration::from_secs(1);
    /// Costs on a node with 10,000 Services.
    const BIG: (Duration, Duration) = (Duration::from_millis(8), Duration::from_millis(240));

    /// Looks of a time in which the lock is used so often, so long, by these. Answers how many there were, how many of them
    /// at large tables, and the CPU of all.
    fn looks(
        pace: &mut Pace,
        begin: Instant,
        time: Duration,
        every: Duration,
        by: By,
        held: Duration,
    ) -> (u32, u32, Duration) {
        let (mut now, mut all) = (begin, (0, 0, Duration::ZERO));
        let uses = LockUses::default();
        let mut use_at = begin + every;
        loop {
            let (next, large) = pace.next();
            if use_at < next.max(now) {
                now = use_at.max(now);
                use_at += every;
                uses.add(by, held);
                pace.used(uses.take());
                continue;
            }
            now = next.max(now);
            if now > begin + time {
                return all;
            }
            let spent = if large { BIG.0 + BIG.1 } else { BIG.0 };
            pace.looked((now, now + spent), large, spent, BIG);
            all = (all.0 + 1, all.1 + u32::from(large), all.2 + spent);
        }
    }

    fn begun() -> (Pace, Instant) {
        let now = Instant::now();
        let mut pace = Pace::new(now);
        pace.looked((now, now + BIG.1), true, BIG.0 + BIG.1, BIG);
        (pace, now + BIG.1)
    }

    #[test]
    fn whatever_happens_it_uses_no_more_than_is_meant_for_it() {
        let hour = 3600 * SECOND;
        for (every, by, held) in [
            (hour, By::Routine, 500 * MS),
            (12 * SECOND, By::Routine, 500 * MS),
            (12 * SECOND, By::Anybody, 500 * MS),
            (SECOND, By::Anybody, 500 * MS),
            (10 * MS, By::Anybody, MS),
            (15 * SECOND, By::Anybody, 2 * MS),
        ] {
            let (mut pace, now) = begun();
            let (all, large, spent) = looks(&mut pace, now, hour, every, by, held);
            let most = SECOND + 2 * hour.mul_f64(RATE);
            assert!(spent < most, "{every:?} {by:?} {held:?}: {all} looks, {large} large, {spent:?}");
            assert!(large >= 3, "{every:?} {by:?} {held:?}: only {large} looks at large tables");
        }
    }

    #[test]
    fn a_change_by_somebody_else_is_looked_at_at_once_also_while_kube_proxy_works() {
        let (mut pace, now) = begun();
        let (_, large, _) = looks(&mut pace, now, 600 * SECOND, 12 * SECOND, By::Routine, 500 * MS);
        assert!(large < 5, "what kube-proxy does can wait: {large} looks at 50 writes");
        let now = now + 600 * SECOND;
        let uses = LockUses::default();
        uses.add(By::Anybody, 300 * MS);
        pace.used(uses.take());
        assert_eq!((pace.next().0 <= now + SECOND, pace.next().1), (true, true));
    }

    #[test]
    fn a_short_use_has_not_changed_a_large_table() {
        let (mut pace, now) = begun();
        let uses = LockUses::default();
        uses.add(By::Anybody, 10 * MS);
        pace.used(uses.take());
        let (next, large) = pace.next();
        assert!(next <= now + 2 * SECOND && !large);
        uses.add(By::Anybody, 48 * MS);
        pace.used(uses.take());
        assert!(pace.next().1);
    }

    #[test]
    fn small_tables_are_looked_at_every_half_minute_and_after_every_change() {
        let now = Instant::now();
        let mut pace = Pace::new(now);
        let costs = (6 * MS, Duration::ZERO);
        pace.looked((now, now + 6 * MS), true, 6 * MS, costs);
        assert_eq!(pace.next(), (now + 6 * MS + PERIOD.0, false));
        let uses = LockUses::default();
        for by in [By::Routine, By::Anybody] {
            uses.add(by, MS);
            pace.used(uses.take());
            assert!(pace.next().0 <= now + 200 * MS);
            pace.looked((now, now + 6 * MS), false, 6 * MS, costs);
        }
    }
}
