//! Ends the process when its own loop stands still. A liveness probe over the network would use what is being diagnosed,
//! and one that runs a command needs the container runtime, which may be what is broken.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

/// How often the watchdog looks.
const PERIOD: Duration = Duration::from_secs(10);
/// Looks without a heartbeat after which the process ends: two minutes of its own time. A process that was stopped and
/// goes on counts one look, however long it was stopped.
const PATIENCE: u32 = 12;

/// The loop's side: beats once a round.
#[derive(Debug, Clone, Default)]
pub(crate) struct Heart(Arc<AtomicU64>);

impl Heart {
    /// One round of the loop is done.
    pub(crate) fn beat(&self) {
        self.0.fetch_add(1, Ordering::Relaxed);
    }

    /// Starts the watchdog's thread.
    pub(crate) fn watch(&self) {
        let beats = Arc::clone(&self.0);
        let watch = move || {
            let mut missed = Missed::default();
            loop {
                std::thread::sleep(PERIOD);
                if missed.look(beats.load(Ordering::Relaxed)) >= PATIENCE {
                    tracing::error!(seconds = PERIOD.as_secs() * u64::from(PATIENCE), "the loop stands still: ending");
                    std::process::abort();
                }
            }
        };
        let named = std::thread::Builder::new().name("watchdog".into()).stack_size(64 * 1024);
        if let Err(error) = named.spawn(watch) {
            tracing::warn!(%error, "no watchdog");
        }
    }
}

/// Counts looks without a heartbeat.
#[derive(Debug, Default)]
struct Missed {
    last: u64,
    looks: u32,
}

impl Missed {
    fn look(&mut self, beats: u64) -> u32 {
        self.looks = if beats == self.last { self.looks + 1 } else { 0 };
        self.last = beats;
        self.looks
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn counts_looks_without_a_beat_and_forgets_at_a_beat() {
        let mut missed = Missed::default();
        assert_eq!(missed.look(5), 0);
        assert_eq!((1..=PATIENCE).map(|_| missed.look(5)).last(), Some(PATIENCE));
        assert_eq!(missed.look(6), 0);
    }
}
