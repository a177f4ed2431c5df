//! How fast something runs out.

use std::collections::VecDeque;
use std::time::Duration;

use jiff::Timestamp;

/// Samples of a quantity, and its rate of loss: the mean over a window, or that of the last two minutes where it is less.
///
/// The window is long enough for a burst (an image being pulled) not to look like a trend, and one that is over is none:
/// there is no answer before two minutes of samples.
#[derive(Debug, Clone, Default)]
pub struct Trend {
    samples: VecDeque<(Timestamp, u64)>,
}

/// Samples older than this are forgotten, in seconds.
const WINDOW: f64 = 600.0;
/// Before the samples span this many seconds there is no trend.
const LEAST: f64 = 120.0;
/// Samples are kept this far apart, in seconds, so that the ring stays small.
const SPACING: f64 = 10.0;

impl Trend {
    /// Adds a sample, and answers how much is lost per second, if that can be said. A clock that jumps back starts the
    /// trend anew.
    #[expect(clippy::cast_precision_loss, reason = "a rate needs no more than 52 bits")]
    pub fn push(&mut self, at: Timestamp, available: u64) -> Option<f64> {
        let age = |sample: Timestamp| at.duration_since(sample).as_secs_f64();
        if self.samples.back().is_some_and(|(last, _)| age(*last) < 0.0) {
            self.samples.clear();
        }
        if self.samples.back().is_none_or(|(last, _)| age(*last) >= SPACING) {
            self.samples.push_back((at, available));
        }
        while self.samples.front().is_some_and(|(first, _)| age(*first) > WINDOW) {
            self.samples.pop_front();
        }
        let rate = |(since, was): &(Timestamp, u64)| (*was as f64 - available as f64) / age(*since);
        let whole = self.samples.front().filter(|(first, _)| age(*first) >= LEAST)?;
        let recent = self.samples.iter().rev().find(|(sample, _)| age(*sample) >= LEAST)?;
        Some(rate(whole).min(rate(recent)))
    }
}

/// The growth of a counter over a window.
#[derive(Debug, Clone)]
pub struct Growth {
    window: Duration,
    samples: VecDeque<(Duration, u64)>,
}

impl Growth {
    /// A counter of which nothing is known yet.
    pub fn over(window: Duration) -> Self {
        Growth { window, samples: VecDeque::new() }
    }

    /// Adds what the counter says at `at`, on a clock that never jumps; answers its growth within the window, or since the
    /// first sample. A counter that shrinks has begun anew: its link or its driver was replaced.
    pub fn push(&mut self, at: Duration, value: u64) -> u64 {
        if self.samples.back().is_some_and(|(_, last)| *last > value) {
            self.samples.clear();
        }
        let age = |sample: Duration| at.saturating_sub(sample);
        // A twentieth of the window apart, so that the ring stays small.
        if self.samples.back().is_none_or(|(last, _)| age(*last) >= self.window / 20) {
            self.samples.push_back((at, value));
        }
        while self.samples.len() > 1 && self.samples.front().is_some_and(|(first, _)| age(*first) > self.window) {
            self.samples.pop_front();
        }
        self.samples.front().map_or(0, |(_, first)| value - first)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn at(second: i64) -> Timestamp {
        Timestamp::from_second(1_700_000_000 + second).expect("a valid time")
    }

    #[test]
    fn says_nothing_before_two_minutes() {
        let mut trend = Trend::default();
        assert_eq!(trend.push(at(0), 1_000), None);
        assert_eq!(trend.push(at(119), 900), None);
        assert!(trend.push(at(130), 870).is_some());
    }

    #[test]
    fn a_steady_loss_is_its_rate() {
        let mut trend = Trend::default();
        let rate =
            (0..=60).filter_map(|i| trend.push(at(i * 10), 10_000 - u64::try_from(i).expect("small") * 50)).last();
        assert_eq!(rate, Some(5.0));
    }

    #[test]
    fn a_burst_that_is_over_is_no_loss() {
        let mut trend = Trend::default();
        for second in (0..=200).step_by(10) {
            trend.push(at(second), 100_000 - 100 * u64::try_from(second).expect("small"));
        }
        let rates: Vec<_> = (210..=330).step_by(10).filter_map(|second| trend.push(at(second), 80_000)).collect();
        assert!(rates[0] > 80.0, "{rates:?}");
        assert_eq!(rates.last(), Some(&0.0), "{rates:?}");
    }

    #[test]
    fn growth_is_that_of_the_window_and_a_counter_may_begin_anew() {
        let mut growth = Growth::over(Duration::from_secs(100));
        let mut push = |second, value| growth.push(Duration::from_secs(second), value);
        assert_eq!(push(0, 1_000), 0);
        assert_eq!(push(1, 1_007), 7);
        assert_eq!(push(60, 1_010), 10);
        assert_eq!(push(101, 1_010), 0, "the burst at the beginning is out of the window");
        assert_eq!(push(102, 3), 0);
        assert_eq!(push(110, 5), 2);
        assert_eq!(push(1_000, 5), 0);
        assert_eq!(push(1_001, 6), 1);
    }

    #[test]
    fn a_clock_that_jumps_back_starts_anew() {
        let mut trend = Trend::default();
        for second in (0..300).step_by(10) {
            trend.push(at(second), 1_000);
        }
        assert_eq!(trend.push(at(-4_000), 10), None);
    }
}
