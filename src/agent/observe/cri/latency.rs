//! How long the runtime takes to answer, window by window, and what is usual on this node.

use std::collections::VecDeque;
use std::sync::{Mutex, PoisonError};
use std::time::{Duration, Instant};

use crate::facts::{CallLatency, Memo};

/// Long enough for a hundred looks: a single slow answer, or half a minute of image collection, is not the 95th percentile.
pub(super) const WINDOW: Duration = Duration::from_secs(300);
/// A runtime that has just been started, or has just come back, restores its containers and has cold caches.
pub(super) const SETTLING: Duration = Duration::from_secs(120);
/// Fewer answers than this say nothing about the slowest twentieth of them.
const LEAST: usize = 20;
/// A window holds so many answers: events can wake more looks than the rhythm has.
const MOST: usize = 256;
/// Windows that are remembered: seven days (catalogue R058).
const HISTORY: usize = 7 * 24 * 12;
/// Windows after which something is usual: one hour.
const ENOUGH: usize = 12;
/// After so many looks without an answer the runtime hangs, which is another matter than being slow.
const HANGS: u32 = 3;

/// Notes the calls of one look, of whichever connection makes them.
#[derive(Debug, Default)]
pub(super) struct Meter {
    calls: Mutex<Vec<(&'static str, Duration)>>,
}

impl Meter {
    /// A call has ended, with an answer or without.
    pub(super) fn note(&self, call: &'static str, took: Duration) {
        self.calls.lock().unwrap_or_else(PoisonError::into_inner).push((call, took));
    }

    /// How many calls have ended in this look.
    pub(super) fn count(&self) -> usize {
        self.calls.lock().unwrap_or_else(PoisonError::into_inner).len()
    }

    /// The calls of the look that has ended.
    pub(super) fn take(&self) -> Vec<(&'static str, Duration)> {
        std::mem::take(&mut self.calls.lock().unwrap_or_else(PoisonError::into_inner))
    }
}

/// The memory of how long calls took: 4 KiB for each of the kinds that every look makes.
#[derive(Debug)]
pub(super) struct Latencies {
    /// When the present window began, or will begin.
    began: Instant,
    kinds: [Kind; 3],
    silent: u32,
    told: Vec<CallLatency>,
}

#[derive(Debug)]
struct Kind {
    call: &'static str,
    /// Of the present window, in milliseconds, as all others.
    samples: Vec<u16>,
    /// The last window.
    last: Option<u16>,
    /// Windows that were not slow.
    windows: VecDeque<u16>,
}

impl Latencies {
    /// Nothing is known. What is measured counts from some time after `now`: the runtime may have been started just before.
    pub(super) fn new(now: Instant) -> Self {
        let kind = |call| Kind { call, samples: Vec::new(), last: None, windows: VecDeque::new() };
        let kinds = ["Version", "Status", "ListPodSandbox"].map(kind);
        Latencies { began: now + SETTLING, kinds, silent: 0, told: Vec::new() }
    }

    /// What is told until the next window is over.
    pub(super) fn told(&self) -> Vec<CallLatency> {
        self.told.clone()
    }

    /// Goes on from what an earlier process of the agent kept of each call: what is usual, as if it had been so for an hour,
    /// and the last two windows where they were slow. Of those nothing is left where a process of the runtime that was there then
    /// does not run any more: another one answers now.
    pub(super) fn know(&mut self, memo: &Memo, runs: impl Fn(u64) -> bool) {
        for kind in &mut self.kinds {
            let Some([usual, windows @ ..]) = memo.0.get(kind.call).map(Vec::as_slice) else { continue };
            if let Some(usual) = u16::try_from(*usual).ok().filter(|usual| *usual > 0) {
                kind.windows.extend([usual; ENOUGH]);
            }
            if let [now, before, runtimes @ ..] = windows
                && !runtimes.is_empty()
                && runtimes.iter().all(|pid| runs(*pid))
            {
                let number = |number| u32::try_from(number).unwrap_or(u32::MAX);
                let usual = kind.windows.front().map(|usual| u32::from(*usual));
                kind.last = u16::try_from(*now).ok();
                self.told.push(CallLatency { call: kind.call, now: number(*now), before: number(*before), usual });
            }
        }
    }

    /// What is measured counts from some time on.
    pub(super) fn settle(&mut self, now: Instant) {
        self.began = now + SETTLING;
    }

    /// Another process answers now, or the same one again after it hung: the windows around that are not measured.
    pub(super) fn restarted(&mut self, now: Instant) {
        self.settle(now);
        self.told.clear();
        for kind in &mut self.kinds {
            kind.samples.clear();
            kind.last = None;
        }
    }

    /// Takes the calls of a look that ended at `now`, one of which may not have been answered.
    pub(super) fn look(&mut self, now: Instant, calls: &[(&'static str, Duration)], answered: bool) {
        self.silent = if answered { 0 } else { self.silent + 1 };
        if self.silent >= HANGS {
            return self.restarted(now);
        }
        if now < self.began {
            return;
        }
        if now.duration_since(self.began) >= WINDOW {
            self.told = self.kinds.iter_mut().filter_map(Kind::close).collect();
            self.began = now;
        }
        for (call, took) in calls {
            let kind = self.kinds.iter_mut().find(|kind| kind.call == *call && kind.samples.len() < MOST);
            if let Some(kind) = kind {
                kind.samples.push(u16::try_from(took.as_millis()).unwrap_or(u16::MAX));
            }
        }
    }
}

impl Kind {
    /// Ends a window; says nothing where one of the last two had too few answers.
    fn close(&mut self) -> Option<CallLatency> {
        let samples = std::mem::take(&mut self.samples);
        let now = (samples.len() >= LEAST).then(|| quantile(samples, 95));
        let before = std::mem::replace(&mut self.last, now);
        let usual = (self.windows.len() >= ENOUGH).then(|| quantile(self.windows.iter().copied().collect(), 50));
        let now = now?;
        // What is slow is not usual, however long it lasts.
        if !CallLatency::is_slow(now.into(), usual.map(u32::from)) {
            self.windows.push_back(now);
            if self.windows.len() > HISTORY {
                self.windows.pop_front();
            }
        }
        Some(CallLatency { call: self.call, now: now.into(), before: before?.into(), usual: usual.map(u32::from) })
    }
}

/// The value below which so many percent of the samples are. There is at least one.
fn quantile(mut samples: Vec<u16>, percent: usize) -> u16 {
    let at = (samples.len() * percent / 100).min(samples.len() - 1);
    *samples.select_nth_unstable(at).1
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Looks every 3 s for so many minutes, whose calls take so long.
    fn run(latencies: &mut Latencies, now: &mut Instant, minutes: u64, took: impl Fn(u64) -> u64) {
        for look in 0..minutes * 20 {
            *now += Duration::from_secs(3);
            let took = Duration::from_millis(took(look));
            latencies.look(*now, &[("Version", took), ("Status", took), ("PodSandboxStatus", took)], true);
        }
    }

    fn version(latencies: &Latencies) -> Option<(u32, u32, Option<u32>)> {
        let version = latencies.told().into_iter().find(|told| told.call == "Version")?;
        Some((version.now, version.before, version.usual))
    }

    #[test]
    fn it_speaks_after_two_windows_and_knows_what_is_usual_after_an_hour() {
        let mut now = Instant::now();
        let mut latencies = Latencies::new(now);
        run(&mut latencies, &mut now, 8, |_| 7);
        assert_eq!(version(&latencies), None);
        run(&mut latencies, &mut now, 6, |_| 7);
        assert_eq!(version(&latencies), Some((7, 7, None)));
        assert_eq!(latencies.told().len(), 2, "only what was called, and only what every look calls");
        run(&mut latencies, &mut now, 60, |_| 7);
        assert_eq!(version(&latencies), Some((7, 7, Some(7))));
    }

    #[test]
    fn slowness_shows_in_two_windows_and_never_becomes_usual() {
        let mut now = Instant::now();
        let mut latencies = Latencies::new(now);
        run(&mut latencies, &mut now, 120, |_| 10);
        run(&mut latencies, &mut now, 300, |_| 600);
        assert_eq!(version(&latencies), Some((600, 600, Some(10))));
        run(&mut latencies, &mut now, 11, |_| 12);
        assert_eq!(version(&latencies).map(|told| told.0), Some(12), "the second window holds no slow answer");
    }

    #[test]
    fn half_a_minute_in_which_images_are_collected_is_not_the_95th_percentile_of_two_windows() {
        let mut now = Instant::now();
        let mut latencies = Latencies::new(now);
        run(&mut latencies, &mut now, 120, |_| 10);
        run(&mut latencies, &mut now, 15, |look| if look < 12 { 1500 } else { 10 });
        let (last, before, _) = version(&latencies).expect("told");
        assert_eq!((last, before), (10, 10));
    }

    #[test]
    fn a_restart_and_a_hang_begin_anew() {
        let mut now = Instant::now();
        let mut latencies = Latencies::new(now);
        run(&mut latencies, &mut now, 120, |_| 10);
        latencies.restarted(now);
        run(&mut latencies, &mut now, 2, |_| 1500);
        run(&mut latencies, &mut now, 12, |_| 10);
        assert_eq!(version(&latencies), Some((10, 10, Some(10))));
        for _ in 0..3 {
            now += Duration::from_secs(3);
            latencies.look(now, &[("Version", Duration::from_secs(2))], false);
        }
        assert_eq!(version(&latencies), None);
        run(&mut latencies, &mut now, 14, |_| 10);
        assert_eq!(version(&latencies), Some((10, 10, Some(10))));
    }

    #[test]
    fn what_is_usual_outlives_the_agent_and_so_does_slowness_until_it_is_measured_anew() {
        let memo = |numbers: &[u64]| Memo([("Version".to_owned(), numbers.to_vec())].into());
        let mut now = Instant::now();
        let mut latencies = Latencies::new(now);
        let runs = |pid: u64| pid == 7;
        latencies.know(&memo(&[40]), runs);
        assert_eq!(version(&latencies), None);
        run(&mut latencies, &mut now, 14, |_| 300);
        assert_eq!(version(&latencies), Some((300, 300, Some(40))), "at once, without an hour of its own");

        let mut latencies = Latencies::new(now);
        latencies.know(&memo(&[40, 900, 800, 7]), runs);
        assert_eq!(version(&latencies), Some((900, 800, Some(40))));
        run(&mut latencies, &mut now, 6, |_| 40);
        assert_eq!(version(&latencies), Some((900, 800, Some(40))), "nothing newer is known");
        run(&mut latencies, &mut now, 2, |_| 40);
        assert_eq!(version(&latencies), Some((40, 900, Some(40))), "one window is over");
        let mut latencies = Latencies::new(now);
        latencies.know(&memo(&[40, 900, 800, 7]), runs);
        latencies.restarted(now);
        assert_eq!(version(&latencies), None, "another process answers");
        for gone in [&[40, 900, 800][..], &[40, 900, 800, 8], &[40, 900, 800, 7, 8]] {
            let mut latencies = Latencies::new(now);
            latencies.know(&memo(gone), runs);
            assert_eq!(version(&latencies), None, "it was started anew while no agent looked: {gone:?}");
            run(&mut latencies, &mut now, 14, |_| 300);
            assert_eq!(version(&latencies), Some((300, 300, Some(40))), "what is usual is kept");
        }
        for odd in [&[][..], &[u64::MAX], &[0, u64::MAX, 3, 7], &[1, 2]] {
            Latencies::new(now).know(&memo(odd), runs);
        }
    }

    #[test]
    fn memory_is_bounded() {
        let mut now = Instant::now();
        let mut latencies = Latencies::new(now);
        run(&mut latencies, &mut now, 8 * 24 * 60, |_| 10);
        let kind = &mut latencies.kinds[0];
        assert_eq!(kind.windows.len(), HISTORY);
        for _ in 0..10_000 {
            latencies.look(now, &[("Version", Duration::ZERO)], true);
        }
        assert_eq!(latencies.kinds[0].samples.len(), MOST);
    }
}
