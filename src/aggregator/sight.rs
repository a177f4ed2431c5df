//! Whether the API server can be seen: what has been listed, what is lost, since when and why.

use std::time::Duration;

use jiff::Timestamp;

/// A watch that is lost for no longer than this is being reconnected: what was seen before still counts.
pub(crate) const BLIND_AFTER: Duration = Duration::from_secs(30);

/// How one kind of object is seen.
#[derive(Debug, Clone, Default)]
pub(crate) struct Sight {
    list: u32,
    complete: bool,
    lost: Option<Lost>,
    /// How often the watch had to be taken up again after an error.
    pub(crate) restarts: u64,
}

/// Not to be seen.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Lost {
    /// Since when.
    pub(crate) since: Timestamp,
    /// Why.
    pub(crate) why: String,
}

impl Sight {
    /// Of something that needs no list.
    pub(crate) fn complete() -> Sight {
        Sight { complete: true, ..Sight::default() }
    }

    /// The number of the list that is being read, or was read last.
    pub(crate) fn list(&self) -> u32 {
        self.list
    }

    /// A new list begins.
    pub(crate) fn list_begins(&mut self) {
        self.list = self.list.wrapping_add(1);
    }

    /// The list is complete.
    pub(crate) fn list_ends(&mut self) {
        self.complete = true;
    }

    /// What was listed no longer counts.
    pub(crate) fn forgotten(&mut self) {
        self.complete = false;
    }

    /// The API server answers.
    pub(crate) fn found(&mut self) {
        self.lost = None;
    }

    /// The API server does not answer, or refuses. The first time counts, the last reason is shown.
    pub(crate) fn lost(&mut self, now: Timestamp, why: String) {
        self.restarts += 1;
        let since = self.lost.as_ref().map_or(now, |lost| lost.since);
        self.lost = Some(Lost { since, why });
    }

    /// Whether everything was listed at least once.
    pub(crate) fn is_complete(&self) -> bool {
        self.complete
    }

    /// Since when and why it is lost, if at all.
    pub(crate) fn is_lost(&self) -> Option<&Lost> {
        self.lost.as_ref()
    }

    /// The same, if it has been lost for long enough that what was seen before no longer counts.
    pub(crate) fn is_blind(&self, now: Timestamp) -> Option<&Lost> {
        let limit = BLIND_AFTER.as_secs().cast_signed();
        self.lost.as_ref().filter(|lost| now.as_second().saturating_sub(lost.since.as_second()) >= limit)
    }

    /// Whether what is known is complete and current.
    pub(crate) fn is_clear(&self) -> bool {
        self.complete && self.lost.is_none()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn at(second: i64) -> Timestamp {
        Timestamp::from_second(second).expect("valid")
    }

    #[test]
    fn short_losses_do_not_blind() {
        let mut sight = Sight::complete();
        sight.lost(at(100), "refused".into());
        sight.lost(at(120), "timed out".into());
        assert!(!sight.is_clear());
        assert_eq!(sight.is_blind(at(129)), None);
        assert_eq!(sight.is_blind(at(130)), Some(&Lost { since: at(100), why: "timed out".into() }));
        sight.found();
        assert!(sight.is_clear());
    }
}
