//! What is counted over all workers, and the sentence that says it. Pure.

use std::collections::BTreeMap;

use super::judge::Judged;
use super::{Counts, Group, View};

/// Workers by one of their labels; empty when all are alike.
pub(super) fn groups<'a>(nodes: &[Judged<'a>], key: fn(&Judged<'a>) -> Option<&'a str>) -> Vec<Group> {
    let mut groups: BTreeMap<&str, Counts> = BTreeMap::new();
    for node in nodes {
        groups.entry(key(node).unwrap_or_default()).or_default().add(node);
    }
    if groups.len() < 2 {
        return Vec::new();
    }
    groups.into_iter().map(|(name, workers)| Group { name: name.to_owned(), workers }).collect()
}

pub(super) fn summary(view: &View, workers: &Counts) -> String {
    let named = |count: usize| if count == 1 { "1 worker".to_owned() } else { format!("{count} workers") };
    let deleting = if workers.deleting > 0 { format!("; {} being deleted", workers.deleting) } else { String::new() };
    if !view.complete {
        let why = view.why.as_deref().unwrap_or("unknown reason");
        let since = view.since.map_or(String::new(), |since| format!(" since {}", crate::facts::utc(since)));
        return format!("Cannot see the cluster{since}: {why}. Nothing is known about its {}.", named(workers.total));
    }
    let bad = workers.total - workers.normal;
    if workers.total == 0 {
        return format!("No workers{deleting}.");
    }
    if bad == 0 {
        let all = if workers.total == 1 {
            "The only worker is".to_owned()
        } else {
            format!("All {} workers are", workers.total)
        };
        return format!("{all} Normal{deleting}.");
    }
    let states = [(workers.critical, "Critical"), (workers.warning, "Warning"), (workers.unknown, "Unknown")];
    let mut parts: Vec<String> =
        states.iter().filter(|(count, _)| *count > 0).map(|(count, state)| format!("{count} {state}")).collect();
    if let (Some(last), 1..) = (parts.last_mut(), workers.settling) {
        // Those that are settling are Unknown, which is the last part.
        *last += " (";
        *last += &workers.settling.to_string();
        *last += " settling)";
    }
    let need = if bad == 1 { "needs" } else { "need" };
    format!(
        "{bad} of {} {need} attention: {}; {} Normal{deleting}.",
        named(workers.total),
        parts.join(", "),
        workers.normal
    )
}
