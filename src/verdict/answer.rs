//! What a check answered last: whether it could look, and how long it counts that it could not.

use std::time::Duration;

use super::Now;
use super::belief::SLOWEST_CLEAR;
use crate::checks::Outcome;

/// A check that cannot look counts as unknown after this long: one slow answer is noise.
const UNKNOWN_AFTER: Duration = Duration::from_secs(15);

/// What a check answered last.
#[derive(Debug, Clone, Default)]
pub(super) struct Answer {
    /// Whether it ever could look.
    pub(super) ever: bool,
    /// Why the question does not arise.
    pub(super) not_applicable: Option<String>,
    /// The time in which it cannot look, while that lasts.
    blind: Option<Blind>,
    /// Since when it can look again, and why it could not, until that is believed.
    lingers: Option<(Duration, String)>,
}

/// A time in which a check cannot look.
#[derive(Debug, Clone)]
struct Blind {
    since: Duration,
    why: String,
    /// Whether it was counted as one that lasts.
    counted: bool,
}

impl Answer {
    /// Takes in what it answers now.
    pub(super) fn take(&mut self, outcome: &Outcome, now: Now) {
        self.not_applicable = None;
        match outcome {
            Outcome::Unknown(why) => {
                let (since, counted) = self.blind.as_ref().map_or((now.since_boot, false), |it| (it.since, it.counted));
                self.blind = Some(Blind { since, why: why.clone(), counted });
                return;
            }
            Outcome::NotApplicable(why) => self.not_applicable = Some(why.clone()),
            Outcome::Healthy | Outcome::Findings(_) => {}
        }
        self.ever = true;
        let lingers = self.lingers.is_some();
        if let Some(blind) = self.blind.take().filter(|blind| blind.counted || lingers) {
            self.lingers = Some((now.since_boot, blind.why));
        }
    }

    /// Whether it comes to count now that it cannot look. One time after the other does, told or not: what goes on to come
    /// back while it lingers has not stopped to flap.
    pub(super) fn turns_unknown(&mut self, now: Now) -> bool {
        let for_good = self.unknown_for_good(now);
        self.blind.as_mut().is_some_and(|blind| for_good && !std::mem::replace(&mut blind.counted, true))
    }

    /// Believes that it can look again once it has been able to for long enough.
    pub(super) fn settle(&mut self, slower: u32, now: Now) {
        if self.changes_in(slower, now) == Some(Duration::ZERO) {
            self.lingers = None;
        }
    }

    /// Time until it is believed that it can look again.
    pub(super) fn changes_in(&self, slower: u32, now: Now) -> Option<Duration> {
        let (since, _) = self.lingers.as_ref().filter(|_| self.blind.is_none())?;
        Some(clear_after(slower).saturating_sub(now.since(*since)))
    }

    /// Nobody looked for a while: what has been waited for so far proves nothing.
    pub(super) fn start_anew(&mut self, now: Now) {
        if let Some(blind) = &mut self.blind {
            blind.since = now.since_boot;
        }
        if let Some((since, _)) = &mut self.lingers {
            *since = now.since_boot;
        }
    }

    /// Why it cannot look now.
    pub(super) fn cannot_look(&self) -> Option<&str> {
        self.blind.as_ref().map(|blind| blind.why.as_str())
    }

    pub(super) fn unknown_for_good(&self, now: Now) -> bool {
        self.blind.as_ref().is_some_and(|blind| now.since(blind.since) >= UNKNOWN_AFTER)
    }

    /// Why it is unknown, if that counts: it never could look, has not been able to for long enough, or can look again for
    /// too short a time only.
    pub(super) fn unknown_why(&self, now: Now, settled: bool) -> Option<&str> {
        let lingers = self.lingers.as_ref().map(|(_, why)| why.as_str());
        let why = self.cannot_look().or(lingers)?;
        (!settled || !self.ever || self.unknown_for_good(now) || lingers.is_some()).then_some(why)
    }
}

/// How long it has to look again before that is believed: the first times at once. Better unknown for longer than well for
/// the moments in between.
fn clear_after(slower: u32) -> Duration {
    match slower {
        0 => Duration::ZERO,
        times => UNKNOWN_AFTER.saturating_mul(1 << (times - 1).min(16)).min(SLOWEST_CLEAR),
    }
}
