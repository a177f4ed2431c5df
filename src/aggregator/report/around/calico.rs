//! calico-node on all workers, and what it says in `NetworkUnavailable` (catalogue R090 to R095, R175, R176). Pure.
//!
//! A worker whose kubelet is silent, or that has a found cause of its own below Calico, is left to that: Calico is often
//! innocent. A rolling update takes seconds on each node and is none of all this.

use std::collections::{BTreeMap, BTreeSet, HashMap};

use jiff::Timestamp;

use super::super::Scope;
use super::super::contrast::{Crowd, Member};
use super::{Draft, lasts, workers};
use crate::aggregator::cluster::Cluster;
use crate::aggregator::pods::CalicoPod;
use crate::aggregator::row::Row;
use crate::aggregator::surroundings::What;
use crate::aggregator::workloads::Workload;
use crate::checks::{Area, Severity};
use crate::config::ClusterLimits;
use crate::facts::utc;
use crate::verdict::Status;

/// That there is no Pod anywhere has to last so long: who restores them is quick.
const NONE_FOR: i64 = 60;
/// Condition and taint belong together; one without the other may last so long (R093).
const TAINT_AFTER: i64 = 300;
/// An Event about a Pod that could not be made counts for so long; who tries waits up to a quarter of an hour.
pub(super) const TRIED_WITHIN: i64 = 1800;

/// A cluster that uses Calico.
struct Calico<'a> {
    cluster: &'a Cluster,
    /// Workers on which calico-node waits for a webhook that waits for it.
    locked: &'a BTreeSet<String>,
    now: Timestamp,
    sets: Vec<&'a Workload>,
    pods: BTreeMap<&'a str, Vec<&'a CalicoPod>>,
    /// Those on which calico-node is to be judged.
    workers: Vec<(&'a str, &'a Row)>,
}

/// What is wrong, if this cluster uses Calico and its Pods are seen.
pub(super) fn findings(
    cluster: &Cluster,
    duplicates: &HashMap<&str, &str>,
    locked: &BTreeSet<String>,
    now: Timestamp,
) -> Vec<Draft> {
    let Some(calico) = Calico::of(cluster, duplicates, locked, now) else { return Vec::new() };
    let mut all: Vec<Draft> = calico.absent().into_iter().chain(calico.rolling()).collect();
    if calico.pods.is_empty() {
        return all;
    }
    all.extend(calico.failing());
    all.extend(calico.recurring());
    all.extend(calico.unavailable());
    all.extend(calico.contradictions());
    all
}

/// The workers on which calico-node fails, if that can be seen; none where it fails nearly everywhere, which is no worker's.
pub(in crate::aggregator) fn failing(cluster: &Cluster, now: Timestamp) -> Option<Vec<String>> {
    let nobody = BTreeSet::new();
    let seen = cluster.nodes_sight.is_clear() && cluster.api_sight.is_lost().is_none();
    let calico = Calico::of(cluster, &cluster.duplicates(), &nobody, now).filter(|_| seen)?;
    let broken = calico.broken();
    let wide = matches!(Scope::of(broken.len(), calico.workers.len(), cluster.limits()), Scope::Most | Scope::All);
    let counts = broken.iter().map(|(at, ..)| calico.workers[*at]).filter(|(_, row)| !wide && !row.unschedulable);
    Some(counts.map(|(name, _)| name.to_owned()).collect())
}

impl<'a> Calico<'a> {
    fn of(
        cluster: &'a Cluster,
        duplicates: &HashMap<&str, &str>,
        locked: &'a BTreeSet<String>,
        now: Timestamp,
    ) -> Option<Self> {
        let around = &cluster.surroundings;
        let workers: Vec<(&str, &Row)> =
            cluster.nodes().filter(|(name, row)| !row.deleting && !duplicates.contains_key(name)).collect();
        let mut pods: BTreeMap<&str, Vec<&CalicoPod>> = BTreeMap::new();
        for pod in around.calico_pods() {
            pods.entry(&pod.node).or_default().push(pod);
        }
        let sets: Vec<&Workload> = around.workloads("calico-node").collect();
        let ran = workers.iter().filter(|(_, row)| by_calico(row).is_some()).count();
        let used = !sets.is_empty() || !pods.is_empty() || (ran > 0 && ran * 2 >= workers.len());
        let calico = Calico { cluster, locked, now, sets, pods, workers };
        (used && around.is_seen(What::CalicoPods)).then_some(calico)
    }

    fn limits(&self) -> &'a ClusterLimits {
        self.cluster.limits()
    }

    /// Whether a Pod is started again and again, or not Ready for longer than in an update.
    fn is_bad(&self, pod: &CalicoPod) -> bool {
        pod.keeps_failing(self.limits(), self.now) || pod.unready_for(self.limits().routine(), self.now)
    }

    /// There is no calico-node anywhere (R094).
    fn absent(&self) -> Option<Draft> {
        let around = &self.cluster.surroundings;
        if !self.pods.is_empty() || self.workers.is_empty() || !around.is_seen(What::DaemonSets) {
            return None;
        }
        let gone = self.workers.iter().filter_map(|(name, _)| around.bereft_since(name)).max();
        let since =
            gone.or(around.complete_since(What::CalicoPods)).filter(|since| lasts(Some(*since), NONE_FOR, self.now))?;
        let blocked = around.failed_creates().filter(|event| &*event.owner == "DaemonSet calico-node");
        let blocked =
            blocked.filter(|event| !lasts(Some(event.at), TRIED_WITHIN, self.now)).max_by_key(|event| event.at);
        let (reason, what, next) = if self.sets.is_empty() {
            ("DaemonSetMissing", "its DaemonSet is neither in kube-system nor in calico-system".to_owned(), REFRESH)
        } else if let Some(event) = blocked {
            ("PodCreationBlocked", format!("its Pods cannot be made: {}", event.message), UNBLOCK)
        } else if self.sets.iter().all(|set| set.desired == 0) {
            (
                "NoNodesSelected",
                "its DaemonSet selects no node".to_owned(),
                "compare the DaemonSet's nodeSelector and affinity with the nodes' labels, and put back what was changed",
            )
        } else {
            (
                "NoPods",
                "its DaemonSet has no Pod".to_owned(),
                "read `kubectl get events -A --field-selector reason=FailedCreate` and whether kube-controller-manager runs; a master refresh does not help while something keeps Pods from being made",
            )
        };
        let detail = format!(
            "calico-node runs on no worker: {what}; new Pods get no network, and routes and policies stay as they are"
        );
        let draft = Draft::new("CalicoNodeAbsent", Severity::Critical, detail, next).since(Some(since));
        Some(draft.about(reason.to_owned()).on(self.workers.iter().map(|(name, _)| *name)))
    }

    /// A routine update (R090): worth knowing, and no problem.
    fn rolling(&self) -> Option<Draft> {
        let set = self.sets.iter().find(|set| set.updated < set.desired)?;
        let routine = self.limits().routine();
        let slow = self.not_ready().filter(|(_, pod)| pod.unready_for(routine, self.now)).count();
        let detail = format!(
            "calico-node in {} is being updated: {} of {} nodes are done, {slow} are not Ready for more than {routine} s; each node's NetworkUnavailable is True for some seconds meanwhile",
            set.namespace, set.updated, set.desired
        );
        Some(Draft::new(
            "CalicoRollingUpdate",
            Severity::Info,
            detail,
            "wait; nothing is to be done while no node is slow",
        ))
    }

    /// The youngest Pod of each node that has some, but none that is Ready: while Calico moves there may be two.
    fn not_ready(&self) -> impl Iterator<Item = (&'a str, &'a CalicoPod)> {
        let nodes = self.pods.iter().filter(|(_, pods)| !pods.iter().any(|pod| pod.ready));
        nodes.filter_map(|(node, pods)| Some((*node, *pods.iter().max_by_key(|pod| pod.created)?)))
    }

    /// The workers on which calico-node does not run as it should, and since when.
    fn broken(&self) -> Vec<(usize, Timestamp, String)> {
        let around = &self.cluster.surroundings;
        let desired: u32 = self.sets.iter().map(|set| set.desired).sum();
        let without = self.workers.iter().filter(|(name, _)| !self.pods.contains_key(name)).count();
        // Which nodes a DaemonSet selects is not looked at; where all that have no Pod are missing one, they are known.
        let missing = (desired as usize).saturating_sub(self.pods.len());
        let all_should = missing > 0 && missing >= without;
        let not_ready: BTreeMap<&str, &CalicoPod> = self.not_ready().collect();
        let mut broken = Vec::new();
        for (at, (name, row)) in self.workers.iter().enumerate() {
            // A kubelet that comes and goes is none of Calico's.
            let flapping = workers::flaps(self.cluster, name, self.now);
            if flapping || row.kubelet_silent() || has_deeper_cause(row) || self.locked.contains(*name) {
                continue;
            }
            if let Some(pod) = not_ready.get(name) {
                // Why an init container fails is told apart.
                let bad = self.is_bad(pod);
                if bad && pod.failed.is_none() {
                    let since = pod.since.unwrap_or(self.now);
                    broken.push((
                        at,
                        since,
                        format!("{}/{} {}", pod.namespace, pod.name, state(pod, self.limits(), self.now)),
                    ));
                }
            } else if all_should && !self.pods.contains_key(name) {
                let since = around.bereft_since(name).or(row.created).max(around.complete_since(What::CalicoPods));
                if let Some(since) = since.filter(|since| lasts(Some(*since), self.limits().routine(), self.now)) {
                    broken.push((at, since, format!("there is no Pod on {name}")));
                }
            }
        }
        broken
    }

    /// Few, many or nearly all: the remedies are opposites (R095, R175, R176).
    fn failing(&self) -> Option<Draft> {
        let broken = self.broken();
        let (_, first, example) = broken.iter().min_by_key(|(_, since, _)| *since)?;
        let failing: Vec<usize> = broken.iter().map(|(at, ..)| *at).collect();
        let (count, total) = (failing.len(), self.workers.len());
        let detail = format!(
            "calico-node does not run as it should on {count} of {total} workers, on the first since {}: {example}",
            utc(*first)
        );
        let (code, detail, next) = match Scope::of(count, total, self.limits()) {
            Scope::None | Scope::Few => ("CalicoNodeFailingOnNode", detail, LADDER.to_owned()),
            Scope::Subset => {
                let versions = self.cluster.calico_versions();
                let member = |(name, row): &(&'a str, &'a Row)| Member {
                    row,
                    calico: versions.get(name).copied(),
                    hosts: self.cluster.hosted.as_ref().and_then(|it| Some(&**it.on.get(*name)?)),
                    counts: true,
                };
                let crowd = Crowd::new(
                    &self.cluster.values,
                    self.cluster.hosted.as_ref(),
                    self.workers.iter().map(member).collect(),
                );
                let suspects = crowd.suspects(&failing, *first);
                let shared = suspects.first().map_or_else(
                    || "find out what these workers share".to_owned(),
                    |suspect| format!("suspect {} {}, and ask its owner", suspect.attribute, suspect.value),
                );
                let also = suspects.first().map_or(String::new(), |suspect| format!("; {}", suspect.sentence));
                let next = format!(
                    "gather on two or three of them (logs, also --previous), change nothing on the rest; {shared} what changed before then"
                );
                ("CalicoNodeFailingSubset", detail + &also, next)
            }
            Scope::Most | Scope::All => ("CalicoNodeFailingWidespread", detail, WIDESPREAD.to_owned()),
        };
        let on = failing.iter().map(|at| self.workers[*at].0);
        Some(Draft::new(code, Severity::Critical, detail, next).since(Some(*first)).on(on))
    }

    /// It was cured on these workers and failed again: what they are connected to is to blame, not they (R177).
    fn recurring(&self) -> Option<Draft> {
        let (days, times) = (self.limits().recurrence_days, self.limits().recurrences);
        let since = self.now.as_second() - i64::from(days) * 24 * 3600;
        let there = |(name, begun): &(&str, Vec<i64>)| {
            begun.len() >= times as usize && self.workers.binary_search_by_key(name, |(name, _)| *name).is_ok()
        };
        let all: Vec<(&str, Vec<i64>)> = self.cluster.memory.episodes(since).filter(there).collect();
        let (name, begun) = all.iter().max_by_key(|(_, begun)| begun.len())?;
        let times: Vec<String> = begun.iter().filter_map(|at| Timestamp::from_second(*at).ok()).map(utc).collect();
        let detail = format!(
            "calico-node failed again and again within {days} days on {} workers, after it had been well; on {name} from {}",
            all.len(),
            times.join(", ")
        );
        let next = "do not reload them once more: look at Typha, then at what these workers are connected to (VLAN spanning, gateway or firewall, security groups, routes) and what was changed there before the first time, and for workloads that came then";
        let first = begun.first().and_then(|at| Timestamp::from_second(*at).ok());
        let draft = Draft::new("CalicoFailureRecurring", Severity::Warning, detail, next).since(first);
        Some(draft.on(all.iter().map(|(name, _)| *name)))
    }

    /// `NetworkUnavailable` is True: for seconds in each update, and then it is no problem (R091).
    fn unavailable(&self) -> Vec<Draft> {
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
        let draft = |code, severity, list: Vec<(&str, Option<Timestamp>)>, what: &str, next: String| {
            let since = list.iter().filter_map(|(_, since)| *since).min();
            let detail = format!("NetworkUnavailable is True on {} workers, {what}", list.len());
            (!list.is_empty())
                .then(|| Draft::new(code, severity, detail, next).since(since).on(list.iter().map(|(name, _)| *name)))
        };
        let prolonged = "so that no new Pods are scheduled there; those that run keep their network as long as routes and chains stay";
        let look = "look at calico-node on these workers, as with CalicoNodeFailingOnNode; within a rolling update, at why its Pod does not become Ready";
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
    fn contradictions(&self) -> Vec<Draft> {
        let (mut stale, mut stuck) = (Vec::new(), Vec::new());
        for (name, row) in &self.workers {
            let Some((status, since)) = by_calico(row) else { continue };
            let wrong = match status {
                Status::True => self.ready_for(name, self.limits().routine()),
                Status::False => row.has("BgpDaemonDown") && !row.kubelet_silent(),
                Status::Unknown => false,
            };
            if wrong {
                stale.push(*name);
            } else if (status == Status::True) != row.network_taint
                && lasts(since.max(row.network_taint_since), TAINT_AFTER, self.now)
            {
                stuck.push(*name);
            }
        }
        let mut drafts = Vec::new();
        if !stale.is_empty() {
            let detail = "NetworkUnavailable says the opposite of what calico-node does: it is written only at a clean start and stop, and a write that failed is not always tried again".to_owned();
            let next = "trust the agent and calico-node's readiness; delete the calico-node Pod there, which writes the condition anew";
            drafts.push(Draft::new("NetworkConditionStale", Severity::Warning, detail, next).on(stale));
        }
        if !stuck.is_empty() {
            let detail = "the taint node.kubernetes.io/network-unavailable and the condition NetworkUnavailable contradict each other for more than five minutes".to_owned();
            let next = "look whether kube-controller-manager (its node lifecycle controller) runs and may write Nodes; the taint goes by itself once it does";
            drafts.push(Draft::new("NetworkTaintStuck", Severity::Warning, detail, next).on(stuck));
        }
        drafts
    }

    /// Whether calico-node has been Ready there for so long.
    fn ready_for(&self, node: &str, seconds: i64) -> bool {
        let mut pods = self.pods.get(node).into_iter().flatten();
        pods.any(|pod| pod.ready && pod.since.is_some_and(|since| lasts(Some(since), seconds, self.now)))
    }
}

/// What calico-node wrote there, if it was calico-node.
fn by_calico(row: &Row) -> Option<(Status, Option<Timestamp>)> {
    row.network.as_ref().filter(|condition| condition.reason().starts_with("Calico")).map(|it| (it.status, it.since()))
}

/// Whether the agent has found something below Calico that explains it.
fn has_deeper_cause(row: &Row) -> bool {
    let deeper = |finding: &crate::verdict::Raised| {
        finding.severity == Severity::Critical && finding.caused_by.is_none() && finding.area < Area::Cni
    };
    !row.marked_stale() && row.findings.iter().any(deeper)
}

pub(super) fn state(pod: &CalicoPod, limits: &ClusterLimits, now: Timestamp) -> String {
    let how = if pod.keeps_failing(limits, now) { "is started again and again" } else { "is not Ready" };
    format!("{how} ({} restarts)", pod.restarts)
}

const REFRESH: &str = "let its owner make it again: the Tigera operator, or on IBM Cloud `ibmcloud ks cluster master refresh --cluster CLUSTER`, which takes up to 45 minutes; if it does not come, look for webhooks that keep Pods from being made";
const UNBLOCK: &str = "fix that webhook first (scope it away from system namespaces, or remove it), and the Pods come by themselves; a master refresh does not help while it blocks";
const LADDER: &str = "one worker at a time: `kubectl cordon` it, gather (describe and logs of the Pod, also --previous) before anything is deleted, delete the calico-node Pod; if that does not help drain and reboot, then reload or replace it; `kubectl uncordon` at the first success";
const WIDESPREAD: &str = "do not cordon, delete, reboot or reload: look at Calico's configuration, its datastore (ClusterInformation datastoreReady) and the control plane, and at what changed before then; gather on two or three workers";

#[cfg(test)]
pub(super) mod tests;
