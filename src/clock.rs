//! The one door to the clocks.

use std::time::{Duration, Instant};

use jiff::Timestamp;
use nix::time::{ClockId, clock_gettime};

use crate::verdict::Now;

/// The present.
pub(crate) fn now() -> Now {
    Now { wall: Timestamp::now(), since_boot: since_boot() }
}

/// Time since the kernel started, suspended time included; no change of the wall clock moves it.
pub(crate) fn since_boot() -> Duration {
    // It cannot fail for a clock that every Linux has; standing still is the safe answer all the same.
    clock_gettime(ClockId::CLOCK_BOOTTIME).map_or(Duration::ZERO, Duration::from) + passed()
}

/// The present on the clock of timers, for what this process measures over minutes.
pub(crate) fn instant() -> Instant {
    Instant::now() + passed()
}

#[cfg(not(test))]
fn passed() -> Duration {
    Duration::ZERO
}

#[cfg(test)]
thread_local! {
    static PASSED: std::cell::Cell<Duration> = const { std::cell::Cell::new(Duration::ZERO) };
}

#[cfg(test)]
fn passed() -> Duration {
    PASSED.get()
}

/// Lets time pass at once, for who asks on this thread: nothing else in a test needs to wait for minutes.
#[cfg(test)]
pub(crate) fn pass(time: Duration) {
    PASSED.set(PASSED.get() + time);
}

/// Time since the kernel started, without that in which the machine was suspended: the clock of timers and of the kernel's log.
pub(crate) fn awake() -> Duration {
    clock_gettime(ClockId::CLOCK_MONOTONIC).map_or(Duration::ZERO, Duration::from)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_boot_clock_only_grows() {
        let first = since_boot();
        assert!(first > Duration::ZERO && since_boot() >= first);
    }

    #[test]
    fn time_passes_for_one_test_alone() {
        let (began, hour) = (instant(), Duration::from_secs(3600));
        pass(hour);
        assert!(instant() - began >= hour);
        let elsewhere = std::thread::spawn(instant).join().expect("no panic");
        assert!(elsewhere < began + hour, "this test does not take an hour");
    }
}
