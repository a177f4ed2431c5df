//! How the kinds around the nodes are seen: listed, lost, denied, or not there.

use jiff::Timestamp;

use super::{Surroundings, What};
use crate::aggregator::sight::{Lost, Sight};
use crate::aggregator::watch::NotThere;

/// How one kind is seen.
#[derive(Debug, Default)]
pub(super) struct KindSight {
    pub(super) sight: Sight,
    pub(super) not_there: Option<NotThere>,
    /// Since when it must not be looked at.
    pub(super) denied: Option<Lost>,
}

impl Surroundings {
    /// Whether a kind could be looked at.
    pub(in crate::aggregator) fn is_seen(&self, what: What) -> bool {
        self.sights.get(&what).is_some_and(|sight| sight.not_there.is_none() && sight.sight.is_complete())
    }

    /// Whether there is no such kind in this cluster.
    pub(in crate::aggregator) fn is_missing(&self, what: What) -> bool {
        self.sights.get(&what).is_some_and(|sight| sight.not_there == Some(NotThere::Missing))
    }

    /// Whether a kind must not be looked at.
    pub(in crate::aggregator) fn is_denied(&self, what: What) -> bool {
        self.sights.get(&what).is_some_and(|sight| sight.not_there == Some(NotThere::Denied))
    }

    /// Whether a kind has not been seen for so long that what was seen before no longer counts.
    pub(crate) fn is_blind(&self, what: What, now: Timestamp) -> bool {
        self.sights.get(&what).is_some_and(|kind| kind.sight.is_blind(now).is_some())
    }

    /// Since when and why a kind cannot be looked at. That there is none in this cluster is no reason.
    pub(crate) fn is_unseen(&self, what: What, now: Timestamp) -> Option<&Lost> {
        self.sights.get(&what).and_then(|kind| kind.denied.as_ref().or_else(|| kind.sight.is_blind(now)))
    }

    /// Whether all of a kind is seen just now.
    pub(crate) fn is_clear(&self, what: What) -> bool {
        self.is_seen(what) && self.sights.get(&what).is_some_and(|kind| kind.sight.is_clear())
    }

    /// How often the watches had to be taken up again, by kind.
    pub(in crate::aggregator) fn restarts(&self) -> impl Iterator<Item = (&'static str, u64)> {
        self.sights.iter().map(|(what, sight)| (what.kind().name, sight.sight.restarts))
    }

    /// Since when all of a kind has been seen.
    pub(crate) fn complete_since(&self, what: What) -> Option<Timestamp> {
        self.complete_since.get(&what).copied().filter(|_| self.is_seen(what))
    }
}
