//! How the sources do: durations, last successes and errors, for the metrics.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use jiff::Timestamp;

use super::trail::Trail;

/// Counters of all sources, shared with the metrics page.
#[derive(Debug, Clone, Default)]
pub(crate) struct Stats {
    sources: Arc<Mutex<BTreeMap<&'static str, SourceStats>>>,
    /// The last walks to the control plane.
    pub(crate) trail: Trail,
}

/// Counters of one source.
#[derive(Debug, Clone, Copy, Default)]
pub(crate) struct SourceStats {
    /// Looks so far.
    pub(crate) looks: u64,
    /// Rests that an event ended before their time.
    pub(crate) wakes: u64,
    /// Looks that failed.
    pub(crate) errors: u64,
    /// How long the last look took.
    pub(crate) last_duration: Duration,
    /// The last look that did not fail.
    pub(crate) last_success: Option<Timestamp>,
}

impl Stats {
    /// Counts one look.
    pub(crate) fn count(&self, source: &'static str, duration: Duration, success: bool) {
        let mut all = self.sources.lock().unwrap_or_else(PoisonError::into_inner);
        let stats = all.entry(source).or_default();
        stats.looks += 1;
        stats.last_duration = duration;
        if success {
            stats.last_success = Some(Timestamp::now());
        } else {
            stats.errors += 1;
        }
    }

    /// Counts a rest that an event ended.
    pub(crate) fn count_wake(&self, source: &'static str) {
        self.sources.lock().unwrap_or_else(PoisonError::into_inner).entry(source).or_default().wakes += 1;
    }

    /// All counters, by source.
    pub(crate) fn all(&self) -> BTreeMap<&'static str, SourceStats> {
        self.sources.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }
}
