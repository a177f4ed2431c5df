//! Workers that somebody forgot: cordoned though they are well, with older software than their pool; those whose kubelet comes
//! and goes; and a kind of cluster that belongs to the past (catalogue R022, R043, R136, R171). Pure.

use std::collections::{BTreeMap, HashMap};
use std::rc::Rc;

use jiff::Timestamp;

use super::{Draft, lasts};
use crate::aggregator::cluster::Cluster;
use crate::aggregator::memory::SIFTED;
use crate::aggregator::row::Row;
use crate::aggregator::scrapes::Missing;
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
pub(super) fn findings(cluster: &Cluster, duplicates: &HashMap<&str, &str>, now: Timestamp) -> Vec<Draft> {
    let all = [
        flapping(cluster, now),
        cordoned(cluster, now),
        outdated(cluster, duplicates, now),
        unread(cluster),
        gateway(cluster),
    ];
    all.into_iter().flatten().collect()
}

/// A gateway-enabled cluster of IBM Cloud that is newer than they were made for (R136): its worker pool `gateway` is in the
/// public network, and `compute` is not.
fn gateway(cluster: &Cluster) -> Option<Draft> {
    let pool = |name: &str| {
        let of_it = |row: &Row| row.refilled && row.pool.as_deref() == Some(name);
        cluster.nodes().map(|(_, row)| row).filter(|row| of_it(row)).collect::<Vec<_>>()
    };
    let (gateways, compute) = (pool("gateway"), pool("compute"));
    if gateways.is_empty() || compute.is_empty() {
        return None;
    }
    let split =
        gateways.iter().all(|row| !row.external.is_empty()) && compute.iter().all(|row| row.external.is_empty());
    let version = |row: &&Row| cluster.values.of(&row.traits, "kubelet").filter(|version| is_past_gateways(version));
    let version = compute.iter().find_map(version).filter(|_| split)?;
    let detail = format!(
        "a gateway-enabled classic cluster, as its worker pools gateway and compute show, with kubelet {version}: that kind ended with IKS 1.23 and Red Hat OpenShift 4.9"
    );
    let next = "plan a new cluster on VPC and move the workloads there; until then nothing is to be done";
    let mut draft = Draft::new("GatewayClusterUnsupported", Info, detail, next);
    draft.area = Area::Integrity;
    Some(draft)
}

/// IKS names itself in the version; the kubelet of OpenShift 4.9 is of 1.22.
fn is_past_gateways(kubelet: &str) -> bool {
    let minor = kubelet.strip_prefix("v1.").and_then(|rest| rest.split('.').next()?.parse::<u32>().ok());
    let last = if kubelet.contains("+IKS") { 23 } else { 22 };
    kubelet.contains('+') && minor.is_some_and(|minor| minor > last)
}

/// Somebody collected the metrics and no longer does (R179): no data is not "well".
fn unread(cluster: &Cluster) -> Option<Draft> {
    let Missing { since, every } = cluster.scrapes.missing()?;
    let detail = format!(
        "the metrics of this aggregator were collected every {} s, and are not any more: alerts that are made of them are silent, which does not mean that all is well",
        every.as_secs()
    );
    let next = "look at the targets of Prometheus (its way to this Pod, its NetworkPolicy, its certificate), and ask yourself: `kubectl -n nodevitals port-forward deploy/nodevitals-aggregator 8080`, then `curl -s localhost:8080/metrics`";
    let mut draft = Draft::new("AgentScrapeFailing", Warning, detail, next).since(Some(since));
    draft.area = Area::ControlPlanePath;
    Some(draft)
}

/// A kubelet that turned Ready, or not, too often comes and goes (catalogue H4).
pub(super) fn flaps(cluster: &Cluster, name: &str, now: Timestamp) -> bool {
    turns(cluster, name, 0, now) >= cluster.limits().ready_turns as usize
}

/// How often it turned, this time ago or earlier, in seconds.
fn turns(cluster: &Cluster, name: &str, ago: i64, now: Timestamp) -> usize {
    let now = now.as_second();
    cluster.memory.turns(name, now - cluster.limits().turns_window()..=now - ago)
}

/// Ready now or not: a kubelet that comes and goes is on the way out, or its way to the control plane is (R043). One that turns
/// together with most others does not: then it is the control plane that went.
fn flapping(cluster: &Cluster, now: Timestamp) -> Option<Draft> {
    let turns = |name: &str| turns(cluster, name, SIFTED, now);
    let flaps = |name: &str, row: &Row| !row.deleting && turns(name) >= cluster.limits().ready_turns as usize;
    let on: Vec<&str> = cluster.nodes().filter(|(name, row)| flaps(name, row)).map(|(name, _)| name).collect();
    let worst = on.iter().max_by_key(|name| turns(name))?;
    let detail = format!(
        "the kubelets of {} workers turned Ready or not at least {} times within {} minutes, that of {worst} {} times, whatever they say now",
        on.len(),
        cluster.limits().ready_turns,
        cluster.limits().ready_turn_minutes,
        turns(worst)
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
            && row.cordoned_since.get().is_some_and(|since| lasts(Some(since), FORGOTTEN, now))
            // What became well a moment ago is still being looked at by who repaired it.
            && lasts(row.since.get(), FORGOTTEN, now)
    };
    let all: Vec<(&str, &Row)> = cluster.nodes().filter(|(_, row)| forgotten(row)).collect();
    let (name, _) = all.first()?;
    let detail = format!("{} workers are cordoned for more than an hour, and nothing is wrong with them", all.len());
    let next = format!(
        "`kubectl uncordon {name}` if nobody works on it; if it is on purpose, say so: `kubectl annotate node {name} nodevitals.dev/maintenance=why`"
    );
    let mut draft = Draft::new("NodeStillCordoned", Info, detail, next);
    draft.area = Area::Integrity;
    let since = all.iter().filter_map(|(_, row)| row.cordoned_since.get()).min();
    Some(draft.since(since).on(all.into_iter().map(|(name, _)| name)))
}

/// Workers with an older kubelet, kernel or system than others of their pool, and no update that goes on (R022). What is left
/// over of a worker has its old ones.
fn outdated(cluster: &Cluster, duplicates: &HashMap<&str, &str>, now: Timestamp) -> Option<Draft> {
    let (mut on, mut said) = (Vec::new(), Vec::new());
    for (kind, name) in [("kubelet", ""), ("kernel", "kernel "), ("OS", "OS ")] {
        let mut groups: BTreeMap<(&str, Rc<str>), Vec<Worker<'_>>> = BTreeMap::new();
        // Thousands of workers share a few of them.
        let mut parsed: HashMap<&str, Option<(Version<'_>, Rc<str>)>> = HashMap::new();
        for (worker, row) in
            cluster.nodes().filter(|(name, row)| !row.deleting && !row.control_plane && !duplicates.contains_key(name))
        {
            let Some(text) = cluster.values.of(&row.traits, kind) else { continue };
            if let Some((version, make)) = parsed.entry(text).or_insert_with(|| version(kind, text)).clone() {
                groups.entry((row.pool.as_deref().unwrap_or_default(), make)).or_default().push((version, worker, row));
            }
        }
        for ((pool, _), workers) in groups {
            if let Some((old, words)) = behind(&workers, now) {
                let pool = if pool.is_empty() { String::new() } else { format!(" of pool {pool}") };
                said.push(format!("{} of {} workers{pool} ({name}{words})", old.len(), workers.len()));
                on.extend(old);
            }
        }
    }
    if on.is_empty() {
        return None;
    }
    said.truncate(NAMED);
    let detail = format!("older patches than on others of the same pool, and no update for a day: {}", said.join("; "));
    let next = "update these workers, one after the other: cordon, drain, update or replace, uncordon";
    let mut draft = Draft::new("WorkerPatchOutdated", Info, detail, next);
    draft.area = Area::Integrity;
    on.sort_unstable();
    on.dedup();
    Some(draft.takes_away(on.first().copied()).on(on))
}

/// Those with less than the newest version, and how far they are behind; none while an update may go on.
fn behind<'a>(workers: &[Worker<'a>], now: Timestamp) -> Option<(Vec<&'a str>, String)> {
    let (newest, ..) = workers.iter().max_by(|(one, ..), (other, ..)| one.numbers.cmp(&other.numbers))?;
    let settled = |row: &Row| {
        lasts(row.created.get(), UPDATING, now) && row.updated.get().is_none_or(|at| lasts(Some(at), UPDATING, now))
    };
    let (new, old): (Vec<_>, Vec<_>) = workers.iter().partition(|(version, ..)| version.numbers == newest.numbers);
    let (oldest, ..) = old.iter().min_by(|(one, ..), (other, ..)| one.numbers.cmp(&other.numbers))?;
    new.iter().all(|(.., row)| settled(row)).then(|| {
        let words = format!("from {}, others have {}", oldest.text, newest.text);
        (old.iter().map(|(_, name, _)| *name).collect(), words)
    })
}

/// One that says it, and its name.
type Worker<'a> = (Version<'a>, &'a str, &'a Row);

/// What a worker says of a part of its software.
#[derive(Clone)]
struct Version<'a> {
    text: &'a str,
    numbers: Rc<[u64]>,
}

/// With what it is called without its numbers, where that has to be the same to compare: `5.15.0-119-generic` is neither older
/// nor newer than `5.15.0-1050-ibm`, nor Ubuntu than RHEL. Of kubelets only `v1.30.4+IKS`, by its three numbers.
fn version<'a>(kind: &str, text: &'a str) -> Option<(Version<'a>, Rc<str>)> {
    if kind == "kubelet" {
        let plain = text.strip_prefix('v')?.split(['+', '-']).next()?;
        let numbers: Rc<[u64]> = plain.split('.').map_while(|number| number.parse().ok()).collect();
        return (numbers.len() == 3).then(|| (Version { text, numbers }, "".into()));
    }
    let runs = text.split(|letter: char| !letter.is_ascii_digit());
    let numbers: Rc<[u64]> = runs.filter_map(|number| number.parse().ok()).collect();
    (!numbers.is_empty()).then(|| (Version { text, numbers }, super::without_numbers(text).into()))
}

#[cfg(test)]
mod tests;
