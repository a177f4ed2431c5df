//! The control plane as it hears its workers: it is being updated, it hears none of them, or it does not hear some
//! (catalogue R018, R020, R041). Pure.

use jiff::Timestamp;

use super::super::Scope;
use super::super::scope::in_maintenance;
use super::{Draft, lasts};
use crate::aggregator::cluster::Cluster;
use crate::aggregator::contact;
use crate::aggregator::row::Row;
use crate::aggregator::stale::agent_knows;
use crate::checks::Area;
use crate::checks::Severity::{Critical, Info, Warning};

/// Fewer workers that are silent are silent each for itself.
const FEWEST: usize = 3;
/// Kubelets are silent all at once for so long, in seconds, before it is told: an API server that restarts is back by then.
const SILENT: i64 = 60;
/// By these an agent that is heard says itself why its kubelet is not.
const SAYS_WHY: [&str; 5] = [
    "MasterUnreachable",
    "MasterPathPartial",
    "WorkerCutFromMasterOnly",
    "WorkerFirewallBlocked",
    "WorkerUnreachableFromPeers",
];

/// Nearly all kubelets are silent at once (R020): that is not the workers.
pub(super) struct Silence<'a> {
    on: Vec<&'a str>,
    since: Option<Timestamp>,
    workers: usize,
}

impl<'a> Silence<'a> {
    pub(super) fn of(cluster: &Cluster, workers: &[(&'a str, &Row)]) -> Option<Self> {
        let cut = |row: &Row| row.kubelet_silent() || row.has("MasterUnreachable");
        let silent: Vec<&(&str, &Row)> = workers.iter().filter(|(_, row)| cut(row)).collect();
        if silent.len() < FEWEST || Scope::of(silent.len(), workers.len(), cluster.limits()) < Scope::Most {
            return None;
        }
        // Of one whose kubelet is still heard, by its agent's word, its Ready says nothing.
        let of = |row: &Row| {
            if row.kubelet_silent() { row.ready_since() } else { row.since_of("MasterUnreachable") }
        };
        // Since the first of them; those that were silent long before are no part of it.
        let mut since: Vec<Timestamp> = silent.iter().filter_map(|(_, row)| of(row)).collect();
        since.sort_unstable();
        let since = since.get(since.len() / 2).copied();
        Some(Silence { on: silent.into_iter().map(|(name, _)| *name).collect(), since, workers: workers.len() })
    }

    /// What is told of it: in an update nothing is wrong yet.
    pub(super) fn told(self, cluster: &Cluster, now: Timestamp) -> Option<Draft> {
        if !lasts(self.since, SILENT, now) {
            return None;
        }
        let limits = cluster.limits();
        let (severity, whose) = if cluster.memory.master.explains(self.since, limits.master_update(), now) {
            (Info, "while the control plane is being updated")
        } else {
            (Critical, "which is not the workers' fault")
        };
        let detail = format!(
            "{} of {} workers have no connection to the control plane at once, {whose}",
            self.on.len(),
            self.workers
        );
        let minutes = limits.master_update_minutes;
        let next = format!(
            "touch no worker: is the master being updated? If it lasts for more than {minutes} minutes: status of the provider, firewall and load balancer before the API server, then a support case with the agents' logs"
        );
        let mut draft = Draft::new("MasterUnreachableClusterwide", severity, detail, next).since(self.since);
        draft.area = Area::ControlPlanePath;
        Some(draft.on(self.on))
    }
}

/// The API servers have another version than before, or two of them: what is lost meanwhile comes back by itself (R018).
pub(super) fn updating(cluster: &Cluster, now: Timestamp) -> Option<Draft> {
    let limits = cluster.limits();
    let change = cluster.memory.master.update(limits.master_update(), now)?;
    let since = Timestamp::from_second(change.at).ok();
    let detail = format!(
        "the control plane is being updated: its API servers said {} and, {}, {}; for {} minutes kubelets and controllers may be away for moments, and come back",
        change.from,
        since.map_or_else(String::new, |since| format!("since {}", crate::facts::utc(since))),
        change.to,
        limits.master_update_minutes
    );
    let next = "wait; alarms of the way to the control plane wait as long. A single worker that stays silent afterwards is to be reloaded or replaced";
    let mut draft = Draft::new("MasterUpdateInProgress", Info, detail, next).since(since);
    draft.area = Area::ControlPlanePath;
    Some(draft)
}

/// The control plane does not hear these kubelets, and no agent says why (R041). `NetworkUnavailable` may well stay False.
pub(super) fn unheard(cluster: &Cluster, workers: &[(&str, &Row)], now: Timestamp) -> Option<Draft> {
    let limits = cluster.limits();
    let since = Row::ready_since;
    let explained = |row: &Row| agent_knows(row) || SAYS_WHY.iter().any(|code| row.has(code));
    let counts = |row: &Row| {
        row.kubelet_silent()
            && lasts(since(row), limits.kubelet_grace_seconds.into(), now)
            && !explained(row)
            && !row.maintained
            // One that is worked on is on its way, and so is one that is new (WorkerStuckInTransition).
            && !in_maintenance(row, since(row).unwrap_or(now))
            && lasts(row.created.get(), limits.settling_seconds.into(), now)
    };
    let mut all: Vec<&(&str, &Row)> = workers.iter().filter(|(_, row)| counts(row)).collect();
    all.sort_by_key(|(name, row)| (since(row), *name));
    let (name, row) = all.first()?;
    let said = row.findings.first().map(|last| format!("; the last that its agent said is {}", last.code));
    let detail = format!(
        "the control plane hears nothing of the kubelet{} since {}{}{}; Pods there may well go on until they are evicted",
        if all.len() == 1 { format!(" of {name}") } else { format!("s of {} workers, of {name}", all.len()) },
        since(row).map_or_else(|| "an unknown time".to_owned(), crate::facts::utc),
        contact::last(cluster, name).map_or_else(String::new, |at| {
            format!(", and its Lease was renewed last at {}", crate::facts::utc(at))
        }),
        said.unwrap_or_default()
    );
    let waits = cluster.memory.master.explains(since(row), limits.master_update(), now);
    let (severity, next) = if waits {
        (
            Warning,
            format!("wait for the update of the control plane; reload or replace {name} if it stays silent afterwards"),
        )
    } else {
        (
            Critical,
            format!(
                "does the machine of {name} run and answer its neighbours? Then read `journalctl -u kubelet` on it, and look at the way to the control plane, which does not use Calico: leave Calico alone"
            ),
        )
    };
    let mut draft = Draft::new("KubeletHeartbeatLost", severity, detail, next).since(since(row));
    draft.area = Area::ControlPlanePath;
    let draft = draft.takes_away(waits.then_some(*name));
    Some(draft.on(all.into_iter().map(|(name, _)| *name)))
}

#[cfg(test)]
mod tests;
