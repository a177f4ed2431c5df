//! What changed, and when: a bounded list, so that what was before a failure can be told (catalogue R120, R121).
//!
//! Of what was there before this process, the last change is known from `managedFields`; from then on each change is seen.
//! Status is not a change. Of an object that is written over and over, the last changes are kept.

use std::collections::BTreeMap;

use jiff::Timestamp;
use serde::{Deserialize, Serialize};

use super::object::ObjectView;
use super::row::Row;
use super::small::Time;
use super::traits::{TYPHA, Values};

/// Changes that are kept.
const MOST: usize = 300;
/// Changes of one object that are kept.
const MOST_OF_ONE: usize = 3;
/// Workers to which the same happens within this time, in seconds, are one change.
const TOGETHER: u64 = 6 * 3600;
/// A change that is longer before a failure, in seconds, is not shown with it.
const BEFORE: i64 = 24 * 3600;
/// What happened so shortly after, in seconds, may still be the cause: clocks differ, and a failure is dated back.
const AFTER: i64 = 30;
/// Changes that are shown with a failure.
const SHOWN: usize = 5;

/// A change before a failure.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct ChangeBefore {
    /// When it was.
    pub at: Timestamp,
    /// What it was: `FelixConfiguration default changed`.
    pub what: String,
    /// Who did it, as the API server names it: `kubectl-edit`. Empty where it is not known.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub by: String,
}

#[derive(Debug)]
struct Entry {
    at: Timestamp,
    /// `FelixConfiguration default`, or what happened to workers.
    about: Box<str>,
    change: Change,
    by: Box<str>,
}

#[derive(Debug, PartialEq, Eq)]
enum Change {
    Made(u64),
    Changed(u64),
    Removed,
    /// So many workers, the last of them.
    Workers(u32, Box<str>),
    /// So many objects of a kind of which there may be one for each worker, the last of them, and when that was.
    Alike(u32, Box<str>, Timestamp),
}

/// What changed.
#[derive(Debug, Default)]
pub(crate) struct Journal {
    entries: Vec<Entry>,
}

impl Journal {
    /// An object is there as it is now.
    pub(super) fn seen(&mut self, kind: &str, object: &ObjectView) {
        let Some(edit) = &object.edit else { return };
        let about = about(kind, object);
        let of_it = self.entries.iter().filter(|entry| entry.about == about);
        let known = of_it.max_by_key(|entry| entry.at);
        if let Some(Entry { at, change: Change::Made(before) | Change::Changed(before), .. }) = known
            && (*at >= edit.at || (edit.generation > 0 && *before == edit.generation))
        {
            return;
        }
        let made = object.metadata.creation_timestamp.is_some_and(|made| made == edit.at);
        let change = if made { Change::Made(edit.generation) } else { Change::Changed(edit.generation) };
        self.push(Entry { at: edit.at, about, change, by: edit.by.as_str().into() });
    }

    /// An object is gone.
    pub(super) fn gone(&mut self, kind: &str, object: &ObjectView, now: Timestamp) {
        self.push(Entry { at: now, about: about(kind, object), change: Change::Removed, by: Box::default() });
    }

    /// One of many objects of this kind was made or changed: what the same writer did to others of them about then is one change
    /// with it.
    pub(super) fn one_of_many_seen(&mut self, kind: &str, object: &ObjectView) {
        let Some(edit) = &object.edit else { return };
        let made = object.metadata.creation_timestamp.is_some_and(|made| made == edit.at);
        self.alike(kind, object, if made { "made" } else { "changed" }, &edit.by, edit.at);
    }

    /// One of many objects of this kind is gone.
    pub(super) fn one_of_many_gone(&mut self, kind: &str, object: &ObjectView, now: Timestamp) {
        self.alike(kind, object, "removed", "", now);
    }

    fn alike(&mut self, kind: &str, object: &ObjectView, done: &str, by: &str, when: Timestamp) {
        let about = format!("{kind} {done}");
        let same = |entry: &&mut Entry| {
            *entry.about == *about && *entry.by == *by && when.as_second().abs_diff(entry.at.as_second()) <= TOGETHER
        };
        let name = object.metadata.name.as_str();
        if let Some(Entry { at, change: Change::Alike(count, last, ended), .. }) = self.entries.iter_mut().find(same) {
            (*count, *at) = (*count + 1, when.min(*at));
            if when >= *ended {
                (*last, *ended) = (name.into(), when);
            }
            return;
        }
        let change = Change::Alike(1, name.into(), when);
        self.push(Entry { at: when, about: about.into(), change, by: by.into() });
    }

    /// Those of which there are many will be seen again.
    pub(super) fn many_forgotten(&mut self) {
        self.entries.retain(|entry| !matches!(entry.change, Change::Alike(..)));
    }

    /// A worker is not as it was before.
    pub(super) fn worker(&mut self, name: &str, before: &Row, row: &Row, values: &Values, now: Timestamp) {
        if row.rebooted == Time::from(now) {
            self.happened("booted anew".to_owned(), name, now);
        }
        if row.reloaded == Time::from(now) {
            self.happened("reloaded".to_owned(), name, now);
        }
        if row.updated == Time::from(now) {
            let old: BTreeMap<_, _> = before.traits.numbers().filter_map(|number| values.get(number)).collect();
            // Of Typhas there are several, which come and go.
            let new = row.traits.numbers().filter_map(|number| values.get(number)).filter(|(kind, _)| *kind != TYPHA);
            for (kind, text) in new {
                if let Some(old) = old.get(kind).filter(|old| **old != text) {
                    self.happened(format!("changed their {kind} from {old} to {text}"), name, now);
                }
            }
        }
    }

    /// Something happened to a worker: `booted anew`.
    pub(super) fn happened(&mut self, what: String, worker: &str, now: Timestamp) {
        let same =
            |entry: &&mut Entry| *entry.about == *what && now.as_second().abs_diff(entry.at.as_second()) <= TOGETHER;
        if let Some(Entry { change: Change::Workers(count, last), .. }) = self.entries.iter_mut().find(same) {
            *count += 1;
            *last = worker.into();
            return;
        }
        let change = Change::Workers(1, worker.into());
        self.push(Entry { at: now, about: what.into(), change, by: Box::default() });
    }

    fn push(&mut self, entry: Entry) {
        let oldest = |entries: &[Entry], about: Option<&str>| {
            let all = entries.iter().enumerate().filter(|(_, other)| about.is_none_or(|about| *other.about == *about));
            all.min_by_key(|(_, other)| other.at).map(|(at, _)| at)
        };
        let of_it = self.entries.iter().filter(|other| other.about == entry.about).count();
        let full = self.entries.len() >= MOST;
        let goes = if of_it >= MOST_OF_ONE { oldest(&self.entries, Some(&entry.about)) } else { None };
        let goes = goes.or_else(|| oldest(&self.entries, None).filter(|_| full));
        match goes {
            Some(at) if self.entries[at].at > entry.at => {}
            Some(at) => self.entries[at] = entry,
            None => self.entries.push(entry),
        }
    }

    /// What changed before this failure, the nearest first.
    pub(crate) fn before(&self, failure: Timestamp) -> Vec<ChangeBefore> {
        let near = |entry: &&Entry| {
            let before = failure.as_second().saturating_sub(entry.at.as_second());
            (-AFTER..=BEFORE).contains(&before)
        };
        let mut near: Vec<&Entry> = self.entries.iter().filter(near).collect();
        near.sort_by(|a, b| b.at.cmp(&a.at).then_with(|| a.about.cmp(&b.about)));
        near.truncate(SHOWN);
        near.into_iter().map(Entry::told).collect()
    }
}

impl Entry {
    fn told(&self) -> ChangeBefore {
        let what = match &self.change {
            Change::Made(_) => format!("{} made", self.about),
            Change::Changed(_) => format!("{} changed", self.about),
            Change::Removed => format!("{} removed", self.about),
            Change::Workers(1, last) => format!("worker {last} {}", self.about.replacen("their", "its", 1)),
            Change::Workers(count, last) => format!("{count} workers {}, the last of them {last}", self.about),
            Change::Alike(count, last, _) => {
                let (kind, done) = self.about.split_once(' ').unwrap_or((&self.about, "changed"));
                if *count == 1 {
                    format!("{kind} {last} {done}")
                } else {
                    format!("{count} {kind}s {done}, the last of them {last}")
                }
            }
        };
        ChangeBefore { at: self.at, what, by: self.by.to_string() }
    }
}

fn about(kind: &str, object: &ObjectView) -> Box<str> {
    let (meta, slash) = (&object.metadata, if object.metadata.namespace.is_empty() { "" } else { "/" });
    format!("{kind} {}{slash}{}", meta.namespace, meta.name).into()
}

#[cfg(test)]
mod tests;
