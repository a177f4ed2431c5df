//! The last walks of the ways to the control plane: when it began, and on which way first, is what nobody can look up later.

use std::collections::VecDeque;
use std::sync::{Arc, Mutex, PoisonError};

use jiff::Timestamp;
use serde::Serialize;

use crate::facts::PathEnd;

/// So many rounds are kept (catalogue E27).
const ROUNDS: usize = 60;

/// One way at one time.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub(crate) struct Walk {
    pub(super) at: Timestamp,
    /// Host and port.
    pub(super) to: String,
    pub(super) millis: u64,
    pub(super) end: PathEnd,
}

/// The last rounds, shared with who shows them.
#[derive(Debug, Clone, Default)]
pub(crate) struct Trail(Arc<Mutex<VecDeque<Vec<Walk>>>>);

impl Trail {
    /// Keeps one round of walks.
    pub(super) fn note(&self, round: Vec<Walk>) {
        let mut rounds = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        if rounds.len() == ROUNDS {
            rounds.pop_front();
        }
        rounds.push_back(round);
    }

    /// All of them, oldest first.
    pub(crate) fn walks(&self) -> Vec<Walk> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).iter().flatten().cloned().collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_last_rounds_are_kept() {
        let trail = Trail::default();
        let walk = |number: u64| Walk {
            at: Timestamp::UNIX_EPOCH,
            to: "10.0.0.1:6443".into(),
            millis: number,
            end: PathEnd::Answered(401),
        };
        for number in 0..100 {
            trail.note(vec![walk(number), walk(number)]);
        }
        let walks = trail.walks();
        assert_eq!((walks.len(), walks[0].millis, walks[119].millis), (120, 40, 99));
        let json = serde_json::to_string(&walks[0]).expect("plain data");
        assert_eq!(json, r#"{"at":"1970-01-01T00:00:00Z","to":"10.0.0.1:6443","millis":40,"end":{"answered":401}}"#);
    }
}
