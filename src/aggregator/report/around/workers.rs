//! Workers that somebody forgot: cordoned though they are well, with older software than their pool; and those whose kubelet
//! comes and goes (catalogue R022, R043, R171). Pure.

use std::collections::BTreeMap;

use jiff::Timestamp;

use super::{Draft, lasts};
use crate::aggregator::cluster::Cluster;
use crate::aggregator::row::Row;
use crate::checks::Area;
use crate::checks::Severity::{Info, Warning};
use crate::verdict::WorkerState;

/// A repair takes less, in seconds (R171).
const FORGOTTEN: i64 = 3600;
/// An update of a pool goes on for as long as workers become new within this time, in seconds.
const UPDATING: i64 = 24 * 3600;
/// Pools that are named.
const NAMED: usize = 5;

/// What is wrong.
pub(super) fn findings(cluster: &Cluster, now: Timestamp) -> Vec<Draft> {
    [flapping(cluster, now), cordoned(cluster, now), outdated(cluster, now)].into_iter().flatten().collect()
}

/// A kubelet that turned Ready, or not, too often comes and goes (catalogue H4).
pub(super) fn flaps(cluster: &Cluster, name: &str, now: Timestamp) -> bool {
    turns(cluster, name, now) >= cluster.limits().ready_turns as usize
}

fn turns(cluster: &Cluster, name: &str, now: Timestamp) -> usize {
    cluster.memory.turns(name, cluster.limits().turns_window(), now)
}

/// Ready now or not: a kubelet that comes and goes is on the way out, or its way to the control plane is (R043).
fn flapping(cluster: &Cluster, now: Timestamp) -> Option<Draft> {
    let flaps = |name: &str, row: &Row| !row.deleting && flaps(cluster, name, now);
    let on: Vec<&str> = cluster.nodes().filter(|(name, row)| flaps(name, row)).map(|(name, _)| name).collect();
    let worst = on.iter().max_by_key(|name| turns(cluster, name, now))?;
    let detail = format!(
        "the kubelets of {} workers turned Ready or not at least {} times within {} minutes, that of {worst} {} times, whatever they say now",
        on.len(),
        cluster.limits().ready_turns,
        cluster.limits().ready_turn_minutes,
        turns(cluster, worst, now)
    );
    let next = "leave Calico alone; see whether the kubelet restarts (KubeletRestarting, `Starting kubelet.` in its Events), and if not, look at the way to the control plane";
    let mut draft = Draft::new("NodeReadyFlapping", Warning, detail, next);
    draft.area = Area::ControlPlanePath;
    draft.since = Timestamp::from_second(now.as_second() - cluster.limits().turns_window()).ok();
    Some(draft.on(on))
}

/// Nothing is wrong with it any more, and it takes no Pods (R171): every repair ends with uncordoning.
fn cordoned(cluster: &Cluster, now: Timestamp) -> Option<Draft> {
    let well = |row: &Row| {
        row.is_ready() && row.state == Some(WorkerState::Normal) && !row.marked_stale() && row.findings.is_empty()
    };
    let forgotten = |row: &Row| {
        row.unschedulable && !row.maintained && !row.deleting && !row.control_plane && well(row)
            && row.cordoned_since.is_some_and(|since| lasts(Some(since), FORGOTTEN, now))
            // What became well a moment ago is still being looked at by who repaired it.
            && lasts(row.since, FORGOTTEN, now)
    };
    let all: Vec<(&str, &Row)> = cluster.nodes().filter(|(_, row)| forgotten(row)).collect();
    let (name, _) = all.first()?;
    let detail = format!("{} workers are cordoned for more than an hour, and nothing is wrong with them", all.len());
    let next = format!(
        "`kubectl uncordon {name}` if nobody works on it; if it is on purpose, say so: `kubectl annotate node {name} nodevitals.dev/maintenance=why`"
    );
    let mut draft = Draft::new("NodeStillCordoned", Info, detail, next);
    draft.area = Area::Integrity;
    let since = all.iter().filter_map(|(_, row)| row.cordoned_since).min();
    Some(draft.since(since).on(all.into_iter().map(|(name, _)| name)))
}

/// Workers with an older kubelet than others of their pool, and no update that goes on (R022).
fn outdated(cluster: &Cluster, now: Timestamp) -> Option<Draft> {
    let mut pools: BTreeMap<&str, Vec<(Version<'_>, &str, &Row)>> = BTreeMap::new();
    for (name, row) in cluster.nodes().filter(|(_, row)| !row.deleting && !row.control_plane) {
        if let Some(version) = cluster.values.of(&row.traits, "kubelet").and_then(version) {
            pools.entry(row.pool.as_deref().unwrap_or_default()).or_default().push((version, name, row));
        }
    }
    let (mut on, mut said) = (Vec::new(), Vec::new());
    for (pool, workers) in pools {
        let Some((newest, ..)) = workers.iter().max_by_key(|(version, ..)| version.numbers) else { continue };
        let settled = |row: &Row| {
            lasts(row.created, UPDATING, now) && row.updated.is_none_or(|at| lasts(Some(at), UPDATING, now))
        };
        let (new, old): (Vec<_>, Vec<_>) = workers.iter().partition(|(version, ..)| version.numbers == newest.numbers);
        if let Some((oldest, ..)) = old.iter().min_by_key(|(version, ..)| version.numbers)
            && new.iter().all(|(.., row)| settled(row))
        {
            let pool = if pool.is_empty() { String::new() } else { format!(" of pool {pool}") };
            said.push(format!(
                "{} of {} workers{pool} (from {}, others have {})",
                old.len(),
                workers.len(),
                oldest.text,
                newest.text
            ));
            on.extend(old.iter().map(|(_, name, _)| *name));
        }
    }
    if on.is_empty() {
        return None;
    }
    said.truncate(NAMED);
    let detail = format!(
        "older patches of Kubernetes than on others of the same pool, and no update for a day: {}",
        said.join("; ")
    );
    let next = "update these workers, one after the other: cordon, drain, update or replace, uncordon";
    let mut draft = Draft::new("WorkerPatchOutdated", Info, detail, next);
    draft.area = Area::Integrity;
    Some(draft.on(on))
}

/// A version of a kubelet.
struct Version<'a> {
    text: &'a str,
    numbers: [u32; 3],
}

/// `v1.30.4+IKS`; what is not three numbers is compared with nothing.
fn version(text: &str) -> Option<Version<'_>> {
    let plain = text.strip_prefix('v')?.split(['+', '-']).next()?;
    let numbers: Vec<u32> = plain.split('.').map_while(|number| number.parse().ok()).collect();
    Some(Version { text, numbers: numbers.try_into().ok()? })
}

#[cfg(test)]
mod tests;
