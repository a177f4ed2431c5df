//! The one door to the clocks.

use std::time::Duration;

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
    clock_gettime(ClockId::CLOCK_BOOTTIME).map_or(Duration::ZERO, Duration::from)
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
}
