//! What calico-node says in `NetworkUnavailable`, its taint, and whether both fit what it does (catalogue R091 to R093). Pure.

use std::collections::BTreeMap;

use jiff::Timestamp;

use super::super::super::Scope;
use super::super::{Draft, lasts};
use super::Calico;
use crate::aggregator::pods::CalicoPod;
use crate::aggregator::row::Row;
use crate::checks::Severity;
use crate::verdict::Status;

/// Condition and taint belong together; one without the other may last so long (R093).
const TAINT_AFTER: i64 = 300;

/// What helps one worker makes an outage of forty (R115).
const FEW: &str = "look at calico-node on these workers, as with CalicoNodeFailingOnNode; within a rolling update, at why its Pod does not become Ready";
const MANY: &str = "change nothing on single workers (no cordon, reboot or reload): look at what these have in common, as with CalicoNodeFailingSubset and CalicoNodeFailingWidespread, and within a rolling update at why its Pods do not become Ready";

impl Calico<'_> {
    /// `NetworkUnavailable` is True: for seconds in each update, and then it is no problem (R091).
    pub(super) fn unavailable(&self) -> Vec<Draft> {
        let (mut brief, mut warned, mut long) = (Vec::new(), Vec::new(), Vec::new());
        let (routine, critical) = (self.limits().routine(), self.limits().critical_seconds.into());
        let not_ready: BTreeMap<&str, &CalicoPod> = self.not_ready().collect();
        for (name, row) in &self.workers {
            let Some((Status::True, since)) = by_calico(row) else { continue };
            if self.locked.contains(*name) {
                continue;
            }
            // Whether the restarts rise beats time (H2).
            let failing = not_ready.get(name).is_some_and(|pod| pod.keeps_failing(self.limits(), self.now));
            if !failing && self.ready_for(name, routine) {
                continue;
            }
            let list = match (failing || lasts(since, critical, self.now), lasts(since, routine, self.now)) {
                (true, _) => &mut long,
                (false, true) => &mut warned,
                (false, false) => &mut brief,
            };
            list.push((*name, since));
        }
        let look = match Scope::of(long.len() + warned.len(), self.workers.len(), self.limits()) {
            Scope::None | Scope::Few => FEW,
            Scope::Subset | Scope::Most | Scope::All => MANY,
        };
        let draft = |code, severity, list: Vec<(&str, Option<Timestamp>)>, what: &str, next: String| {
            let since = list.iter().filter_map(|(_, since)| *since).min();
            let detail = format!("NetworkUnavailable is True on {} workers, {what}", list.len());
            (!list.is_empty())
                .then(|| Draft::new(code, severity, detail, next).since(since).on(list.iter().map(|(name, _)| *name)))
        };
        let prolonged = "so that no new Pods are scheduled there; those that run keep their network as long as routes and chains stay";
        [
            draft("NetworkUnavailableProlonged", Severity::Critical, long, prolonged, look.to_owned()),
            draft("NetworkUnavailableProlonged", Severity::Warning, warned, prolonged, look.to_owned()),
            draft(
                "NetworkUnavailableBrief",
                Severity::Info,
                brief,
                &format!("for less than {routine} s, as in each start of calico-node"),
                format!("wait; tell alerts on this condition to wait for {routine} s too"),
            ),
        ]
        .into_iter()
        .flatten()
        .collect()
    }

    /// The condition, its taint and what is there do not fit together (R092, R093).
    pub(super) fn contradictions(&self) -> Vec<Draft> {
        let (mut stale, mut stuck): (Vec<_>, Vec<_>) = (Vec::new(), Vec::new());
        for (name, row) in &self.workers {
            let Some((status, since)) = by_calico(row) else { continue };
            // Since both are so.
            let wrong = match status {
                Status::True => self.ready_since(name, self.limits().routine()).map(|at| Some(at).max(since)),
                Status::False if row.kubelet_silent() => None,
                Status::False => row.since_of("BgpDaemonDown").map(|at| Some(at).max(since)),
                Status::Unknown => None,
            };
            if let Some(wrong) = wrong {
                stale.push((*name, wrong));
            } else if (status == Status::True) != row.network_taint
                && lasts(since.max(row.network_taint_since.get()), TAINT_AFTER, self.now)
            {
                stuck.push((*name, since.max(row.network_taint_since.get())));
            }
        }
        let mut drafts = Vec::new();
        if !stale.is_empty() {
            let detail = "NetworkUnavailable says the opposite of what calico-node does: it is written only at a clean start and stop, and a write that failed is not always tried again".to_owned();
            let next = "trust the agent and calico-node's readiness; delete the calico-node Pod there, which writes the condition anew";
            drafts.push(Draft::new("NetworkConditionStale", Severity::Warning, detail, next).on_since(&stale));
        }
        if !stuck.is_empty() {
            let detail = "the taint node.kubernetes.io/network-unavailable and the condition NetworkUnavailable contradict each other for more than five minutes".to_owned();
            let next = "look whether kube-controller-manager (its node lifecycle controller) runs and may write Nodes; the taint goes by itself once it does";
            drafts.push(Draft::new("NetworkTaintStuck", Severity::Warning, detail, next).on_since(&stuck));
        }
        drafts
    }

    /// Whether calico-node has been Ready there for so long.
    fn ready_for(&self, node: &str, seconds: i64) -> bool {
        self.ready_since(node, seconds).is_some()
    }

    /// Since when, if for so long.
    fn ready_since(&self, node: &str, seconds: i64) -> Option<Timestamp> {
        let pods = self.pods.get(node).into_iter().flatten().filter(|pod| pod.ready);
        pods.filter_map(|pod| pod.since.get()).find(|since| lasts(Some(*since), seconds, self.now))
    }
}

/// What calico-node wrote there, if it was calico-node.
pub(super) fn by_calico(row: &Row) -> Option<(Status, Option<Timestamp>)> {
    row.network.as_ref().filter(|condition| condition.reason().starts_with("Calico")).map(|it| (it.status, it.since()))
}
