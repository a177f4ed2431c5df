//! Whether somebody collects the metrics: who did so regularly and no longer does has alerts that are silent (catalogue R179). Pure.

use std::time::Duration;

use jiff::Timestamp;

use super::cluster::Cluster;
use crate::verdict::Now;

/// Who comes less often has no rhythm.
const SELDOM: Duration = Duration::from_secs(600);
/// So many in one rhythm are a collector, and no person.
const REGULAR: u32 = 3;
/// And for so many times as long as may be silence: a person who looks a few times is none.
const LASTING: u32 = 2;
/// Collectors that are restarted are back after so many of their own rounds.
const ROUNDS: u32 = 5;
/// Who has not come back by then was taken away on purpose.
const LONGEST: Duration = Duration::from_secs(24 * 3600);

/// When somebody came for the metrics.
#[derive(Debug, Default)]
pub(crate) struct Scrapes {
    last: Option<Now>,
    every: Duration,
    /// When these began.
    began: Duration,
    /// So many came in a rhythm.
    regular: u32,
    missing: Option<Missing>,
}

/// Nobody comes any more.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Missing {
    /// Since when.
    pub(crate) since: Timestamp,
    /// How often somebody came before.
    pub(crate) every: Duration,
}

impl Cluster {
    /// Somebody collects the metrics.
    pub(super) fn scraped(&mut self, now: Now) {
        let silence = self.limits().scrape_silence();
        self.scrapes.came(now, silence);
    }

    /// Finds out whether nobody does any more.
    pub(super) fn misses_scrapes(&mut self, now: Duration) {
        let silence = self.limits().scrape_silence();
        self.revision += u64::from(self.scrapes.look(now, silence));
    }
}

impl Scrapes {
    /// Somebody comes. Who is restarted may be silent for so long.
    fn came(&mut self, now: Now, silence: Duration) {
        let since = self.last.map_or(Duration::MAX, |last| now.since_boot.saturating_sub(last.since_boot));
        // Of several that come in turns the longest pause counts, for some time.
        (self.regular, self.every) = if since <= SELDOM {
            // That it stayed away is no rhythm.
            let gap = if self.judge(now.since_boot, silence).is_some() { self.every } else { since };
            (self.regular.saturating_add(1), gap.max(self.every / 4 * 3))
        } else {
            self.began = now.since_boot;
            (0, Duration::ZERO)
        };
        self.last = Some(now);
    }

    /// Judges anew. Says whether that is news.
    fn look(&mut self, now: Duration, silence: Duration) -> bool {
        let judged = self.judge(now, silence);
        std::mem::replace(&mut self.missing, judged) != judged
    }

    /// What the last look came to.
    pub(crate) fn missing(&self) -> Option<Missing> {
        self.missing
    }

    fn judge(&self, now: Duration, silence: Duration) -> Option<Missing> {
        let lasting = |last: &Now| last.since_boot.saturating_sub(self.began) >= silence * LASTING;
        let last = self.last.filter(|last| self.regular >= REGULAR && lasting(last))?;
        let silent = now.saturating_sub(last.since_boot);
        let is_missing = silent >= silence.max(self.every * ROUNDS) && silent < LONGEST;
        is_missing.then_some(Missing { since: last.wall, every: self.every })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::aggregator::testing::{at, moment};

    const SILENCE: Duration = Duration::from_secs(300);

    fn after(scrapes: &[i64]) -> Scrapes {
        let mut all = Scrapes::default();
        for second in scrapes {
            all.came(moment(*second), SILENCE);
        }
        all
    }

    fn missing(scrapes: &Scrapes, second: i64) -> Option<(Timestamp, u64)> {
        scrapes.judge(moment(second).since_boot, SILENCE).map(|it| (it.since, it.every.as_secs()))
    }

    #[test]
    fn a_collector_that_stays_away_is_missed_and_no_longer_when_it_is_back_or_taken_away() {
        let mut regular = after(&[0, 150, 300, 450, 510, 540, 570, 600]);
        assert_eq!((missing(&regular, 610), missing(&regular, 899)), (None, None), "it may be started anew");
        assert!(missing(&regular, 900).is_some_and(|(since, _)| since == at(600)));
        assert_eq!(missing(&regular, 600 + 86_400), None, "that was meant");
        regular.came(moment(1_200), SILENCE);
        assert_eq!(missing(&regular, 1_201), None, "it is back");
        let slow = after(&[0, 120, 240, 360, 480, 600]);
        assert_eq!((missing(&slow, 1_199), missing(&slow, 1_200)), (None, Some((at(600), 120))));
        let mut often = after(&(0..=20).map(|round| round * 30).collect::<Vec<_>>());
        let news: Vec<bool> =
            [899, 900, 901, 87_000].map(|second| often.look(moment(second).since_boot, SILENCE)).to_vec();
        assert_eq!(news, [false, true, false, true]);
    }

    #[test]
    fn nobody_a_person_and_who_comes_seldom_are_not_missed() {
        for seconds in [&[][..], &[0], &[0, 2, 4], &[0, 2, 4, 6, 8, 500], &[0, 900, 1_800, 2_700, 3_600]] {
            assert_eq!(missing(&after(seconds), 5_000), None, "{seconds:?}");
        }
    }

    #[test]
    fn how_long_nobody_may_come_can_be_set() {
        let brief = Duration::from_secs(60);
        let missing = |scrapes: &[i64], second| after(scrapes).judge(moment(second).since_boot, brief).is_some();
        let regular: Vec<i64> = (0..=12).map(|round| round * 10).collect();
        assert_eq!((missing(&regular, 179), missing(&regular, 180)), (false, true));
        assert!(!missing(&regular[..12], 500), "110 s are no rhythm");
    }

    #[test]
    fn two_that_come_in_turns_have_the_longer_pause() {
        let two = after(&(0..=10).flat_map(|round| [round * 60, round * 60 + 1]).collect::<Vec<_>>());
        assert_eq!(missing(&two, 900), None);
        assert_eq!(missing(&two, 901).map(|(since, _)| since), Some(at(601)));
    }
}
