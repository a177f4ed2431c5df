//! What explains a finding that comes to count, and is itself still held down: it counts with it, or else the consequence would
//! have the headline until then (catalogue R040).
//!
//! A hold-down waits whether a fault passes before it does harm; that is over when what it does has lasted. So that a cause
//! that is named early is never an alarm of its own, it has to be seen at this moment, of the same area and no worse than
//! what it explains: no condition changes its status by it, nor the worker its state, only the name that is told. What nobody
//! suspects waits for nobody, and a hold-down that somebody configured holds.

use std::collections::BTreeMap;

use super::Beliefs;
use crate::checks::Severity;
use crate::verdict::{Now, Raised, causes};

/// Code and subject.
type Key = (&'static str, String);

impl Beliefs {
    /// What counts, and how bad it is.
    pub(super) fn counted(&self) -> BTreeMap<Key, Severity> {
        let raised = self.findings.iter().filter(|(_, belief)| belief.raised);
        raised.map(|(key, belief)| (key.clone(), belief.severity)).collect()
    }

    /// Lets what explains findings that count since `before`, or are worse since then, count with them.
    pub(super) fn count_suspects(&mut self, before: &BTreeMap<Key, Severity>, now: Now) {
        let begins = |(key, severity): &(Key, Severity)| before.get(key).is_none_or(|before| before < severity);
        let mut begun: Vec<Key> = self.counted().into_iter().filter(begins).map(|(key, _)| key).collect();
        // A cause can have a cause.
        while !begun.is_empty() {
            begun = self.suspects(&begun);
            for key in &begun {
                let Some(belief) = self.findings.get_mut(key) else { continue };
                belief.count();
                self.flapping.begins(key.0, now);
            }
        }
    }

    /// What is held down and explains one of these, which nothing that counts explains.
    fn suspects(&self, of: &[Key]) -> Vec<Key> {
        let all: Vec<(&Key, bool, Raised)> =
            self.findings.iter().map(|(key, belief)| (key, belief.raised, belief.to_raised())).collect();
        let counts = || all.iter().filter(|(_, raised, _)| *raised);
        let is_open = |finding: &&Raised| !counts().any(|(.., it)| causes::explains(it, finding));
        let begun = counts().filter(|(key, ..)| of.contains(key)).map(|(.., finding)| finding);
        let open: Vec<&Raised> = begun.filter(is_open).collect();
        let names = |cause: &Raised, finding: &Raised| {
            cause.area == finding.area && cause.severity <= finding.severity && causes::explains(cause, finding)
        };
        let held = all.iter().filter(|(key, raised, _)| !raised && !self.patience.raise.contains_key(key.0));
        held.filter(|(.., cause)| open.iter().any(|finding| names(cause, finding)))
            .map(|(key, ..)| (*key).clone())
            .collect()
    }
}
