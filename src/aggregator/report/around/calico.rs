//! calico-node on all workers, and what it says in `NetworkUnavailable` (catalogue R090 to R095, R175, R176). Pure.
//!
//! A worker whose kubelet is silent, or that has a found cause of its own below Calico, is left to that: Calico is often
//! innocent. A rolling update takes seconds on each node and is none of all this.

mod condition;

use std::collections::{BTreeMap, BTreeSet, HashMap};

use jiff::Timestamp;

use super::super::Scope;
use super::super::contrast::{Crowd, Member};
use super::super::scope::in_maintenance;
use super::super::typha::named;
use super::{Draft, lasts, workers};
use crate::aggregator::cluster::Cluster;
use crate::aggregator::pods::CalicoPod;
use crate::aggregator::row::Row;
use crate::aggregator::surroundings::What;
use crate::aggregator::workloads::{FailedCreate, Workload};
use crate::checks::{Area, Severity};
use crate::config::ClusterLimits;
use crate::facts::utc;
use crate::verdict::Cure;
use condition::by_calico;

/// That there is no Pod anywhere has to last so long: who restores them is quick.
const NONE_FOR: i64 = 60;
/// A new Pod of calico-node is Ready in less time, in seconds.
const AWAY: i64 = 60;
/// An Event about a Pod that could not be made counts for so long; who tries waits up to a quarter of an hour.
pub(super) const TRIED_WITHIN: i64 = 1800;

/// The last time that a webhook kept a Pod of such an owner from being made.
pub(super) fn refused(cluster: &Cluster, is_owner: impl Fn(&str) -> bool, now: Timestamp) -> Option<&FailedCreate> {
    let all = cluster.surroundings.failed_creates().filter(|event| is_owner(&event.owner));
    all.filter(|event| !lasts(Some(event.at), TRIED_WITHIN, now)).max_by_key(|event| event.at)
}

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
    if !calico.pods.is_empty() {
        all.extend(calico.failing());
    }
    // What concerns all of it is told on it as well.
    if let Some(set) = calico.sets.first() {
        all = all.into_iter().map(|it| it.object("DaemonSet", &set.namespace, "calico-node")).collect();
    }
    if calico.pods.is_empty() {
        return all;
    }
    all.extend(calico.recurring());
    all.extend(calico.unavailable());
    all.extend(calico.contradictions());
    all
}

/// The workers on which calico-node fails, if that can be seen; none where it fails nearly everywhere, which is no worker's.
pub(in crate::aggregator) fn failing(cluster: &Cluster, now: Timestamp) -> Option<Vec<String>> {
    let (names, scope) = failing_of(cluster, now)?;
    Some(if scope >= Scope::Most { Vec::new() } else { names })
}

/// All of them, and how much of the cluster that is, if that can be seen.
pub(in crate::aggregator) fn failing_of(cluster: &Cluster, now: Timestamp) -> Option<(Vec<String>, Scope)> {
    let nobody = BTreeSet::new();
    let seen = cluster.nodes_sight.is_clear()
        && cluster.api_sight.is_lost().is_none()
        && cluster.surroundings.is_clear(What::CalicoPods);
    let calico = Calico::of(cluster, &cluster.duplicates(), &nobody, now).filter(|_| seen)?;
    let (broken, scope, _) = calico.counted();
    Some((broken.iter().map(|(at, ..)| calico.workers[*at].0.to_owned()).collect(), scope))
}

/// Whether calico-node might fail there by itself: not where somebody works on the worker, or something deeper is wrong.
fn may_fail(row: &Row) -> bool {
    !row.unschedulable && !row.kubelet_silent() && !has_deeper_cause(row)
}

/// What episodes of a worker go by (R177): a new one with its address in its pool has the same connections, whatever its name;
/// one of the same name in another place has not.
pub(in crate::aggregator) fn place(name: &str, row: &Row) -> String {
    row.addresses
        .first()
        .map_or_else(|| name.to_owned(), |at| format!("{}/{at}", row.pool.as_deref().unwrap_or_default()))
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

    /// There is no calico-node anywhere (R094).
    fn absent(&self) -> Option<Draft> {
        let around = &self.cluster.surroundings;
        if !self.pods.is_empty() || self.workers.is_empty() || !around.is_seen(What::DaemonSets) {
            return None;
        }
        let gone = self.workers.iter().filter_map(|(name, _)| around.bereft_since(name)).max();
        let since =
            gone.or(around.complete_since(What::CalicoPods)).filter(|since| lasts(Some(*since), NONE_FOR, self.now))?;
        let blocked = refused(self.cluster, |owner| owner == "DaemonSet calico-node", self.now);
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
        // Those that are away at once, each for longer than a new Pod needs; of those where it is none of Calico's nothing is known.
        let mut away: Vec<(&str, Option<Timestamp>)> = self
            .not_ready()
            .filter(|(node, pod)| {
                // One that is new, or that somebody works on, is none of the update's.
                let settled = |row: &Row| lasts(row.created.get(), self.limits().settling_seconds.into(), self.now);
                let of_calico = |row: &Row| {
                    !row.kubelet_silent()
                        && !has_deeper_cause(row)
                        && settled(row)
                        && !in_maintenance(row, pod.since.get().unwrap_or(self.now))
                };
                pod.unready_for(AWAY, self.now) && self.cluster.node(node).is_some_and(of_calico)
            })
            .map(|(node, pod)| (node, pod.since.get()))
            .collect();
        let most = set.most_away;
        if away.len() <= most as usize {
            let next = "wait; nothing is to be done while no node is slow";
            return Some(Draft::new("CalicoRollingUpdate", Severity::Info, detail, next));
        }
        away.sort_unstable();
        let detail = format!(
            "{detail}; it is away on {} nodes at once, and its DaemonSet allows {most} (maxUnavailable): that is no routine",
            away.len()
        );
        let next = format!(
            "stop the update: `kubectl -n {0} rollout undo daemonset/calico-node`, or let its owner (operator, provider) do so; gather on two of these workers, and look at why its Pods do not become Ready there",
            set.namespace
        );
        Some(Draft::new("CalicoRollingUpdate", Severity::Warning, detail, next).on_since(&away))
    }

    /// The youngest Pod of each node that has some, but none that is Ready: while Calico moves there may be two.
    fn not_ready(&self) -> impl Iterator<Item = (&'a str, &'a CalicoPod)> {
        let nodes = self.pods.iter().filter(|(_, pods)| !pods.iter().any(|pod| pod.ready));
        nodes.filter_map(|(node, pods)| Some((*node, *pods.iter().max_by_key(|pod| pod.created.get())?)))
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
                let bad = pod.is_bad(self.limits(), self.now);
                if bad && pod.failed.is_none() {
                    let since = pod.since.get().unwrap_or(self.now);
                    broken.push((at, since, format!("{} {}", pod.name, state(pod, self.limits(), self.now))));
                }
            } else if all_should && !self.pods.contains_key(name) {
                let since =
                    around.bereft_since(name).or(row.created.get()).max(around.complete_since(What::CalicoPods));
                if let Some(since) = since.filter(|since| lasts(Some(*since), self.limits().routine(), self.now)) {
                    broken.push((at, since, format!("there is no Pod on {name}")));
                }
            }
        }
        broken
    }

    /// Those of them on which nobody worked before, which part of the workers that is, and of how many.
    fn counted(&self) -> (Vec<(usize, Timestamp, String)>, Scope, usize) {
        let mut broken = self.broken();
        broken.retain(|(at, since, _)| !in_maintenance(self.workers[*at].1, *since));
        if broken.is_empty() {
            return (broken, Scope::None, 0);
        }
        let failing = |at: usize| broken.binary_search_by_key(&at, |(at, ..)| *at).is_ok();
        let compared = |(at, (_, row)): &(usize, &(&str, &Row))| may_fail(row) || failing(*at);
        let total = self.workers.iter().enumerate().filter(compared).count();
        let scope = Scope::of(broken.len(), total, self.limits());
        (broken, scope, total)
    }

    /// Whether these are the only worker that there is.
    fn is_only_worker(&self, broken: &[(usize, Timestamp, String)]) -> bool {
        let mut others = self.workers.iter().enumerate().filter(|(_, (_, row))| !row.control_plane).map(|(at, _)| at);
        matches!((broken, others.next(), others.next()), ([(at, ..)], Some(only), None) if *at == only)
    }

    /// Few, many or nearly all: the remedies are opposites (R095, R175, R176).
    fn failing(&self) -> Option<Draft> {
        let (broken, scope, total) = self.counted();
        let (_, first, example) = broken.iter().min_by_key(|(_, since, _)| *since)?;
        let count = broken.len();
        let detail = format!(
            "calico-node does not run as it should on {count} of {total} workers, on the first since {}: {example}",
            utc(*first)
        );
        let (code, detail, next) = match scope {
            Scope::None | Scope::Few if self.is_only_worker(&broken) => {
                ("CalicoNodeFailingOnNode", detail, ONLY.to_owned())
            }
            Scope::None | Scope::Few => ("CalicoNodeFailingOnNode", detail, LADDER.to_owned()),
            Scope::Subset => {
                let versions = self.cluster.calico_versions();
                let member = |(name, row): &(&'a str, &'a Row)| Member {
                    row,
                    calico: versions.get(name).copied(),
                    hosts: self.cluster.hosted.as_ref().and_then(|it| Some(&**it.on.get(*name)?)),
                    counts: may_fail(row),
                };
                let crowd = Crowd::new(
                    &self.cluster.values,
                    self.cluster.hosted.as_ref(),
                    self.workers.iter().map(member).collect(),
                );
                let began: Vec<_> = broken.iter().map(|(at, since, _)| (*at, *since)).collect();
                let suspects = named(self.cluster, crowd.suspects(&began));
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
            Scope::Most | Scope::All => {
                let (datastore, first) = self.datastore();
                ("CalicoNodeFailingWidespread", detail + &datastore, format!("{first}{WIDESPREAD}"))
            }
        };
        let on = || broken.iter().map(|(at, ..)| self.workers[*at].0);
        let draft = Draft::new(code, Severity::Critical, detail, next).since(Some(*first)).on(on());
        Some(if draft.next == LADDER { draft.takes_away(on()) } else { draft })
    }

    /// It was cured on these workers and failed again: what they are connected to is to blame, not they (R177).
    fn recurring(&self) -> Option<Draft> {
        let (days, times) = (self.limits().recurrence_days, self.limits().recurrences);
        let since = self.now.as_second() - i64::from(days) * 24 * 3600;
        let often: BTreeMap<&str, Vec<i64>> =
            self.cluster.memory.episodes(since).filter(|(_, begun)| begun.len() >= times as usize).collect();
        if often.is_empty() {
            return None;
        }
        let here = |(name, row): &(&'a str, &Row)| Some((*name, often.get(&*place(name, row))?.clone()));
        let all: Vec<(&str, Vec<i64>)> = self.workers.iter().filter_map(here).collect();
        let (name, begun) = all.iter().max_by_key(|(_, begun)| begun.len())?;
        let times: Vec<String> = begun.iter().filter_map(|at| Timestamp::from_second(*at).ok()).map(utc).collect();
        let detail = format!(
            "calico-node failed again and again within {days} days on {} workers, after it had been well; on {name} from {}{}",
            all.len(),
            times.join(", "),
            self.cured(name).map_or_else(String::new, |how| format!("; the last time it was over {how}"))
        );
        let next = "do not reload them once more: look at Typha, then at what these workers are connected to (VLAN spanning, gateway or firewall, security groups, routes) and what was changed there before the first time, and for workloads that came then";
        let first = begun.first().and_then(|at| Timestamp::from_second(*at).ok());
        let draft = Draft::new("CalicoFailureRecurring", Severity::Warning, detail, next).since(first);
        Some(draft.on(all.iter().map(|(name, _)| *name)))
    }
}

impl Calico<'_> {
    /// Whether Calico's datastore is locked, which stops calico-node everywhere, as far as that can be seen; and what to do first (R175).
    fn datastore(&self) -> (String, &'static str) {
        let around = &self.cluster.surroundings;
        if !around.is_seen(What::ClusterInformation) || around.is_blind(What::ClusterInformation, self.now) {
            return (String::new(), "");
        }
        around.locked().map_or_else(
            || ("; its datastore is not locked".to_owned(), ""),
            |since| {
                let since = utc(since);
                (
                    format!(
                        "; its datastore is locked (ClusterInformation default, datastoreReady false) since {since}"
                    ),
                    UNLOCK,
                )
            },
        )
    }

    /// What cured it there the last time, and what that speaks for (R118).
    fn cured(&self, name: &str) -> Option<&'static str> {
        let place = place(name, self.cluster.node(name)?);
        Some(match self.cluster.memory.last_cure(&place)? {
            Cure::ProcessRestart => "after its Pod was made anew, which speaks for a process that went wrong",
            Cure::Reboot => "after the worker was booted, which speaks for the state of its kernel or runtime",
            Cure::Reload => "after the worker was installed anew or replaced, which speaks for its image or data",
            Cure::Nothing => {
                "without a new Pod, a boot or a new installation, which speaks for configuration, datastore, Typha or network"
            }
        })
    }
}

/// Whether the agent has found something below Calico that explains it. A kubelet that is started again and again is none of
/// Calico's either, no more than one that comes and goes (catalogue H4).
fn has_deeper_cause(row: &Row) -> bool {
    let deeper = |finding: &crate::verdict::Raised| {
        let critical = finding.severity == Severity::Critical && finding.caused_by.is_none();
        (critical && finding.area < Area::Cni) || finding.code == "KubeletRestarting"
    };
    row.findings.iter().any(deeper) && !row.marked_stale()
}

pub(super) fn state(pod: &CalicoPod, limits: &ClusterLimits, now: Timestamp) -> String {
    let how = if pod.keeps_failing(limits, now) { "is started again and again" } else { "is not Ready" };
    format!("{how} ({} restarts)", pod.restarts)
}

const REFRESH: &str = "let its owner make it again: the Tigera operator, or on IBM Cloud `ibmcloud ks cluster master refresh --cluster CLUSTER`, which takes up to 45 minutes; if it does not come, look for webhooks that keep Pods from being made";
/// The only worker is neither drained nor taken away (R070).
const ONLY: &str = "it is the only worker, so do not cordon, drain, reload or replace it before there is another: gather (describe and logs of the Pod, also --previous) before anything is deleted, then delete the calico-node Pod; if that does not help add a worker, and go on with this one as on any other";
pub(super) const UNBLOCK: &str = "fix that webhook first (scope it away from system namespaces, or remove it), and the Pods come by themselves; a master refresh does not help while it blocks";
const LADDER: &str = "one worker at a time: `kubectl cordon` it, gather (describe and logs of the Pod, also --previous) before anything is deleted, delete the calico-node Pod; if that does not help drain and reboot, then reload or replace it; `kubectl uncordon` at the first success";
const UNLOCK: &str =
    "if nobody migrates the datastore or cleans up addresses just now, `calicoctl datastore migrate unlock`; else ";
const WIDESPREAD: &str = "do not cordon, delete, reboot or reload: look at Calico's configuration, its datastore (ClusterInformation datastoreReady) and the control plane, and at what changed before then; gather on two or three workers";

#[cfg(test)]
pub(super) mod tests;
