//! Remembers who committed to nf_tables, and finds out from look to look what went and which commits did it.
//!
//! A look that misses a chain lies between two generations; the commits in between are to blame. Later commits, such as
//! those with which kube-proxy writes its other chains again, do not change that.

use std::collections::{BTreeSet, VecDeque};
use std::sync::{Arc, Mutex, PoisonError};

use jiff::Timestamp;

use super::chains::{Meaning, meaning};
use crate::facts::{Commit, PacketFilterChanges, Piece, Removal, Ruleset};

/// A look follows a commit within a second; of a burst that is longer than this the last ones are known.
const MOST_COMMITS: usize = 64;
/// So many commits are told as a fact.
const MOST_TOLD: usize = 8;
/// So many processes are named for one removal.
const MOST_NAMED: usize = 3;
/// So many removals are remembered; the oldest goes first.
const MOST_REMOVALS: usize = 16;

/// The last commits that the kernel told of, written by the watch and read by the looks.
#[derive(Debug, Clone, Default)]
pub(super) struct Commits(Arc<Mutex<VecDeque<Commit>>>);

impl Commits {
    /// Takes a commit in.
    pub(super) fn add(&self, commit: Commit) {
        let mut all = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        if all.len() == MOST_COMMITS {
            all.pop_front();
        }
        all.push_back(commit);
    }

    fn read<T>(&self, read: impl FnOnce(&VecDeque<Commit>) -> T) -> T {
        read(&self.0.lock().unwrap_or_else(PoisonError::into_inner))
    }
}

/// What was there in the last look, and what has gone since the first.
#[derive(Debug, Default)]
pub(super) struct History {
    commits: Commits,
    /// The generation of the last look, and what it saw.
    last: Option<(u32, BTreeSet<Piece>)>,
    removals: Vec<Entry>,
}

#[derive(Debug)]
struct Entry {
    removal: Removal,
    /// The generation of the look that still saw it all.
    after: u32,
    /// Whether the kernel has told of all the commits that may have done it. A look can be faster than the notification.
    told: bool,
}

impl History {
    /// A history that takes its commits from here.
    pub(super) fn new(commits: Commits) -> Self {
        History { commits, ..History::default() }
    }

    /// Takes a look in.
    pub(super) fn take(&mut self, ruleset: &Ruleset, now: Timestamp) {
        let Some(generation) = ruleset.generation else { return };
        if self.last.as_ref().is_none_or(|(last, _)| *last != generation) {
            let pieces = pieces(ruleset);
            self.removals.retain_mut(|entry| {
                entry.removal.gone.retain(|piece| !pieces.contains(piece));
                !entry.removal.gone.is_empty()
            });
            if let Some((after, before)) = self.last.replace((generation, pieces)) {
                self.miss(after, &before, generation, now);
            }
        }
        for entry in self.removals.iter_mut().filter(|entry| !entry.told) {
            self.commits.read(|commits| entry.name(commits));
        }
    }

    fn miss(&mut self, after: u32, before: &BTreeSet<Piece>, generation: u32, now: Timestamp) {
        let Some((_, pieces)) = &self.last else { return };
        let gone: Vec<Piece> = before.difference(pieces).cloned().collect();
        if gone.is_empty() {
            return;
        }
        if self.removals.len() == MOST_REMOVALS {
            self.removals.remove(0);
        }
        let removal = Removal { at: now, generation, commits: generation.wrapping_sub(after), by: Vec::new(), gone };
        self.removals.push(Entry { removal, after, told: false });
    }

    /// What is known now.
    pub(super) fn changes(&self) -> PacketFilterChanges {
        let last = self.commits.read(|commits| distinct(commits.iter().rev(), MOST_TOLD));
        let removals = self.removals.iter().map(|entry| entry.removal.clone()).collect();
        PacketFilterChanges { last, removals }
    }
}

impl Entry {
    /// Finds out who it was.
    fn name(&mut self, commits: &VecDeque<Commit>) {
        let (after, count) = (self.after, self.removal.commits);
        // Generations wrap around, so only their distance counts.
        let since = |commit: &&Commit| commit.generation.wrapping_sub(after);
        let ours = commits.iter().rev().filter(|commit| (1..=count).contains(&since(commit)));
        self.removal.by = distinct(ours, MOST_NAMED);
        if let Some(last) = self.removal.by.last() {
            self.removal.at = last.at;
        }
        self.told = commits.back().is_some_and(|last| since(&last) >= count);
    }
}

/// The first `most` of them that are of different processes, the other way round.
fn distinct<'a>(commits: impl Iterator<Item = &'a Commit>, most: usize) -> Vec<Commit> {
    let mut found: Vec<Commit> = Vec::new();
    for commit in commits {
        if found.len() == most {
            break;
        }
        if !found.iter().any(|other| (other.pid, &other.program) == (commit.pid, &commit.program)) {
            found.push(commit.clone());
        }
    }
    found.reverse();
    found
}

/// What a rule set has that Kubernetes or Calico give meaning to.
fn pieces(ruleset: &Ruleset) -> BTreeSet<Piece> {
    let mut pieces = BTreeSet::new();
    for table in &ruleset.tables {
        let known = |chain: &str| meaning(&table.name, chain) == Meaning::Known;
        let piece = |chain: &str, target: Option<&str>| Piece {
            family: table.family,
            table: table.name.clone(),
            chain: chain.to_owned(),
            target: target.map(str::to_owned),
        };
        for chain in &table.chains {
            if known(&chain.name) {
                pieces.insert(piece(&chain.name, None));
            }
            let targets = chain.jumps.iter().map(|jump| jump.target.as_str()).filter(|target| known(target));
            pieces.extend(targets.map(|target| piece(&chain.name, Some(target))));
        }
    }
    pieces
}

#[cfg(test)]
mod tests;
