//! What became of the writes.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

/// What became of the writes, for the metrics.
#[derive(Debug, Clone, Default)]
pub(crate) struct Fates(Arc<[AtomicU64; 3]>);

impl Fates {
    /// Patches that the API server took.
    pub(crate) fn written(&self) -> u64 {
        self.0[0].load(Ordering::Relaxed)
    }

    /// Patches that failed and were tried again.
    pub(crate) fn failed(&self) -> u64 {
        self.0[1].load(Ordering::Relaxed)
    }

    /// Verdicts that were overtaken by a later one before they were written.
    pub(crate) fn coalesced(&self) -> u64 {
        self.0[2].load(Ordering::Relaxed)
    }

    pub(super) fn count(&self, fate: usize, by: u64) {
        self.0[fate].fetch_add(by, Ordering::Relaxed);
    }
}
