//! One finding between two looks: when it counts, how bad it is, and when it is over.

use std::collections::BTreeMap;
use std::time::Duration;

use jiff::{SignedDuration, Timestamp};

use super::{Now, Raised};
use crate::checks::{Area, Check, Finding, Severity};

/// The text of a finding that lasts is brought up to date this often, so that a number that moves in it (percent of a
/// disk) does not become a write to the API server at every look.
const REFRESH_TEXT_AFTER: Duration = Duration::from_secs(600);

/// How long to wait before something is believed.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Patience {
    /// Hold-downs that differ from a check's own, by finding code.
    pub raise: BTreeMap<&'static str, Duration>,
    /// Times until a finding is over that differ from a check's own, by finding code.
    pub clear: BTreeMap<&'static str, Duration>,
    /// A node that has just booted or joined is left this long to put its network together (catalogue H12).
    pub settling: Duration,
    /// Episodes that began within this time count as coming back (catalogue H13).
    pub recurs_within: SignedDuration,
}

impl Default for Patience {
    fn default() -> Self {
        Patience {
            raise: BTreeMap::new(),
            clear: BTreeMap::new(),
            settling: Duration::from_secs(600),
            recurs_within: SignedDuration::from_hours(7 * 24),
        }
    }
}

/// What is believed of one finding.
#[derive(Debug, Clone)]
pub(super) struct Belief {
    pub(super) check: &'static Check,
    pub(super) since: Timestamp,
    /// Whether it counts.
    pub(super) raised: bool,
    pub(super) severity: Severity,
    shown: Finding,
    shown_at: Duration,
    first_seen: Duration,
    /// Since when looks do not see it.
    gone_since: Option<Duration>,
    /// Since when it is seen worse than is believed.
    worse_since: Option<Duration>,
    /// Since when it is seen milder than is believed.
    milder_since: Option<Duration>,
    /// How bad it looked last.
    looks: Severity,
}

impl Belief {
    /// A finding that is seen for the first time.
    pub(super) fn new(check: &'static Check, finding: &Finding, now: Now) -> Self {
        let severity = finding.severity.unwrap_or(check.severity);
        Belief {
            check,
            since: now.wall,
            raised: false,
            severity,
            shown: finding.clone(),
            shown_at: now.since_boot,
            first_seen: now.since_boot,
            gone_since: None,
            worse_since: None,
            milder_since: None,
            looks: severity,
        }
    }

    /// One that an earlier process of this agent raised.
    pub(super) fn restored(check: &'static Check, stored: &Raised, now: Now) -> Self {
        let shown = Finding::new(stored.subject.clone(), stored.detail.clone())
            .severity(stored.severity)
            .next(stored.next.clone());
        Belief { since: stored.since, raised: true, first_seen: Duration::ZERO, ..Belief::new(check, &shown, now) }
    }

    /// It is seen.
    pub(super) fn see(&mut self, finding: &Finding, now: Now) {
        self.gone_since = None;
        self.shown.owner_repairs_within = finding.owner_repairs_within;
        self.looks = finding.severity.unwrap_or(self.check.severity);
        let since = |holds: bool, since: Option<Duration>| holds.then(|| since.unwrap_or(now.since_boot));
        self.worse_since = since(self.raised && self.looks > self.severity, self.worse_since);
        self.milder_since = since(self.raised && self.looks < self.severity, self.milder_since);
        if !self.raised {
            self.severity = self.looks;
        }
        if !self.raised || now.since(self.shown_at) >= REFRESH_TEXT_AFTER {
            self.show(finding, now);
        }
    }

    fn show(&mut self, finding: &Finding, now: Now) {
        self.shown = finding.clone();
        self.shown_at = now.since_boot;
    }

    /// It is not seen.
    pub(super) fn miss(&mut self, now: Now) {
        self.gone_since.get_or_insert(now.since_boot);
    }

    /// Whether looks do not see it.
    pub(super) fn is_gone(&self) -> bool {
        self.gone_since.is_some()
    }

    /// It could not be looked at: neither confirmed nor refuted, and that time does not count as gone.
    pub(super) fn look_was_lost(&mut self, now: Now) {
        self.gone_since = self.gone_since.map(|_| now.since_boot);
    }

    /// Nobody looked for a while: what has been waited for so far proves nothing.
    pub(super) fn start_anew(&mut self, now: Now) {
        if !self.raised {
            self.first_seen = now.since_boot;
        }
        for since in [&mut self.gone_since, &mut self.worse_since, &mut self.milder_since] {
            *since = since.map(|_| now.since_boot);
        }
    }

    /// Lets it count once it has lasted, and be as bad as it has looked for that long; milder only after as long as it
    /// takes to be over. Answers whether it has got worse.
    pub(super) fn settle(&mut self, finding: &Finding, held: bool, patience: &Patience, slower: u32, now: Now) -> bool {
        if !self.raised {
            self.raised = !held && self.has_lasted(patience, now);
            return false;
        }
        let for_long = |since: Option<Duration>, time| since.is_some_and(|since| now.since(since) >= time);
        let worse = for_long(self.worse_since, self.raise_after(patience));
        if worse || for_long(self.milder_since, self.clear_after(patience, slower)) {
            self.severity = self.looks;
            (self.worse_since, self.milder_since) = (None, None);
            self.show(finding, now);
        }
        worse
    }

    /// Lets it count though it has not lasted.
    pub(super) fn count(&mut self) {
        self.raised = true;
    }

    /// Whether it has been seen for as long as it takes to count.
    pub(super) fn has_lasted(&self, patience: &Patience, now: Now) -> bool {
        now.since(self.first_seen) >= self.raise_after(patience)
    }

    /// Whether it has been gone for long enough.
    pub(super) fn is_over(&self, patience: &Patience, slower: u32, now: Now) -> bool {
        self.gone_since.is_some_and(|since| now.since(since) >= self.clear_after(patience, slower))
    }

    /// Time until something of this changes by itself.
    pub(super) fn changes_in(&self, patience: &Patience, slower: u32, now: Now) -> Option<Duration> {
        let left = |whole: Duration, since: Duration| whole.checked_sub(now.since(since));
        let (raise, clear) = (self.raise_after(patience), self.clear_after(patience, slower));
        match (self.gone_since, self.milder_since, self.worse_since) {
            _ if !self.raised => left(raise, self.first_seen),
            (Some(gone), ..) => left(clear, gone),
            (_, Some(milder), _) => left(clear, milder),
            (.., worse) => left(raise, worse?),
        }
    }

    /// How long it has to last: as configured, else until its owner would have repaired it, else as the check says.
    fn raise_after(&self, patience: &Patience) -> Duration {
        let own = || self.shown.owner_repairs_within.unwrap_or(self.check.raise_after);
        patience.raise.get(self.check.code).copied().unwrap_or_else(own)
    }

    fn clear_after(&self, patience: &Patience, slower: u32) -> Duration {
        clear_after(self.check, patience, slower)
    }

    pub(super) fn area(&self) -> Area {
        self.check.area
    }

    pub(super) fn to_raised(&self) -> Raised {
        Raised {
            code: self.check.code.to_owned(),
            severity: self.severity,
            area: self.check.area,
            subject: self.shown.subject.clone(),
            since: self.since,
            detail: self.shown.detail.clone(),
            next: self.shown.next_step.clone().unwrap_or_else(|| self.check.next_step.to_owned()),
            caused_by: None,
            times: 1,
            last_cure: None,
        }
    }
}

/// What comes back again and again is believed to be over later and later, up to this.
pub(crate) const SLOWEST_CLEAR: Duration = Duration::from_secs(300);

/// How long a check's findings have to be gone; `slower` doubles it so many times.
fn clear_after(check: &Check, patience: &Patience, slower: u32) -> Duration {
    let own = patience.clear.get(check.code).copied().unwrap_or(check.clear_after);
    own.saturating_mul(1 << slower.min(16)).min(own.max(SLOWEST_CLEAR))
}

/// Raisings of a code count as flapping for this long.
pub(crate) const FLAPPING_WINDOW: Duration = Duration::from_secs(600);
/// So many within that time are not held longer.
pub(crate) const FLAPPING_FREE: usize = 2;

/// How often each code came back lately: what flaps is held longer (catalogue R159).
#[derive(Debug, Clone, Default)]
pub(super) struct Flapping(BTreeMap<&'static str, Vec<Duration>>);

impl Flapping {
    /// A code of which there was no finding has one, or one of it has got worse.
    pub(super) fn begins(&mut self, code: &'static str, now: Now) {
        self.0.entry(code).or_default().push(now.since_boot);
    }

    /// Forgets what is long ago.
    pub(super) fn forget(&mut self, now: Now) {
        self.0.retain(|_, times| {
            times.retain(|at| now.since(*at) < FLAPPING_WINDOW);
            !times.is_empty()
        });
    }

    /// How many times the time until it is over is doubled.
    pub(super) fn slower(&self, code: &str) -> u32 {
        let times = self.0.get(code).map_or(0, Vec::len);
        u32::try_from(times.saturating_sub(FLAPPING_FREE)).unwrap_or(u32::MAX)
    }
}
