//! Events about what only the aggregator knows: agents that are gone or back, and what is wrong with the cluster. They are
//! about the object that a finding names, and the Nodes that it concerns; where there are none, about the Lease of the replica
//! that leads and tells them.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::time::Duration;

use jiff::{SignedDuration, Timestamp};

use super::cluster::{Cluster, Shown};
use super::lease;
use super::looked::Rounds;
use super::report::{CannotLook, ClusterFinding, LastJudgement};
use super::row::Row;
use super::store::Store;
use crate::api::Api;
use crate::checks::Severity;
use crate::events::{Budget, Object, Occurrence, Reporter};
use crate::verdict::{AGENT_STALE, Now, clip, ended};

/// Nodes are looked over this often.
const EVERY: Duration = Duration::from_secs(5);
/// The cluster is judged for Events in every so manyth round, and what is missed twice is over.
const CLUSTER_ROUNDS: u32 = 6;
/// In every so manyth of these while nothing changes.
const UNCHANGED: u32 = 2;
const MISSED: u32 = 2;
/// Of the workers that a finding about the cluster concerns, so many have an Event of it.
const NODES: usize = 5;
/// What began longer ago, a replica that led before has told, and the Event of it would be gone by now.
const NEWS: SignedDuration = SignedDuration::from_hours(1);
/// After so many looks at the cluster a replica has seen what was there before it led. What it sees for the first time then is
/// news, whenever it began: some of what is told has to be old.
const LOOKED_OVER: u32 = 20;
/// Of one replica: when all agents go at once, most of them are told by their conditions only.
const BUDGET: Budget = Budget { burst: 50, per_hour: 1200, all_per_second: 10 };

/// Tells for ever, while this process leads.
pub(super) async fn run(
    store: &Store,
    api: &Api,
    namespace: &str,
    identity: &str,
    clock: fn() -> Now,
) -> std::convert::Infallible {
    let reporter = Arc::new(Reporter::new("nodevitals-aggregator", identity.to_owned(), BUDGET));
    let watching = async {
        let mut ticks = tokio::time::interval(EVERY);
        ticks.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
        let mut known = None;
        loop {
            ticks.tick().await;
            let inner = &mut *store.lock();
            inner.events = reporter.counts();
            known = inner.leads.then(|| known.unwrap_or_else(|| Known::begin(&inner.cluster, namespace)));
            if let Some(known) = &mut known {
                reporter.tell(known.step(&inner.cluster, &mut inner.judged, clock().wall), 1);
            }
        }
    };
    tokio::select! {
        never = reporter.run(vec![api.clone()]) => never,
        never = watching => never,
    }
}

/// What has been told.
#[derive(Debug)]
struct Known {
    lease: Object,
    /// Nodes whose agent is gone, and of what cluster that is said.
    stale: BTreeSet<String>,
    shown: Option<Shown>,
    /// What is wrong with the cluster, by code and subject.
    wrong: BTreeMap<(String, String), Wrong>,
    round: u32,
    rounds: Rounds,
    looks: u32,
}

#[derive(Debug)]
struct Wrong {
    about: Vec<Object>,
    since: Timestamp,
    missed: u32,
}

impl Known {
    /// What is there when a replica begins to lead was told by the one before.
    fn begin(cluster: &Cluster, namespace: &str) -> Self {
        let lease = Object::lease(namespace, lease::NAME);
        let rounds = Rounds::default();
        Known { lease, stale: stale(cluster), shown: None, wrong: BTreeMap::new(), round: 0, rounds, looks: 0 }
    }

    /// What has changed.
    fn step(&mut self, cluster: &Cluster, judged: &mut LastJudgement, now: Timestamp) -> Vec<Occurrence> {
        let mut happened = Vec::new();
        let shown = Some(cluster.shown());
        if cluster.nodes_sight.is_clear() && self.shown != shown {
            self.shown = shown;
            self.agents(cluster, now, &mut happened);
        }
        self.round += 1;
        if self.round >= CLUSTER_ROUNDS {
            self.round = 0;
            if self.rounds.is_due(cluster, UNCHANGED)
                && let Some((findings, unknown)) = judged.of_cluster(cluster, now)
            {
                self.cluster(findings, &unknown, now, &mut happened);
            }
        }
        happened
    }

    fn agents(&mut self, cluster: &Cluster, now: Timestamp, happened: &mut Vec<Occurrence>) {
        let stale = stale(cluster);
        for name in stale.difference(&self.stale) {
            let Some(mark) = cluster.node(name).and_then(Row::roll_up) else { continue };
            let since = mark.since().unwrap_or(now);
            happened.push(occurrence(Object::node(name), AGENT_STALE, true, mark.message().to_owned(), since, now));
        }
        // A Node that is deleted has no agent that could be back.
        for name in self.stale.difference(&stale).filter(|name| cluster.node(name).is_some()) {
            let message = format!("The NodeVitals agent of {name} speaks again, and its conditions are known.");
            happened.push(occurrence(Object::node(name), AGENT_STALE, false, message, now, now));
        }
        self.stale = stale;
    }

    /// What of the cluster is wrong now. Of what is unknown it is not known either whether it is over.
    fn cluster(
        &mut self,
        findings: Vec<ClusterFinding>,
        unknown: &[CannotLook],
        now: Timestamp,
        happened: &mut Vec<Occurrence>,
    ) {
        self.looks = self.looks.saturating_add(1);
        let known = |code: &String| !unknown.iter().any(|cannot| cannot.codes.contains(code));
        for ((code, _), wrong) in &mut self.wrong {
            wrong.missed += u32::from(known(code));
        }
        for finding in findings.into_iter().filter(|finding| finding.severity > Severity::Info) {
            let since = finding.since.unwrap_or(now);
            let key = (finding.code.clone(), finding.subject.clone());
            if let Some(wrong) = self.wrong.get_mut(&key) {
                wrong.missed = 0;
                continue;
            }
            let nodes = finding.workers.iter().take(NODES).map(|name| Object::node(name));
            let mut about: Vec<Object> = Object::named(&finding.object).into_iter().chain(nodes).collect();
            // Where the object is there may be no permission to tell of it, and it may be gone.
            if finding.workers.is_empty() {
                about.push(self.lease.clone());
            }
            if now.duration_since(since) < NEWS || self.looks > LOOKED_OVER {
                let message = sentence(&finding, since);
                let tell =
                    |object: &Object| occurrence(object.clone(), &finding.code, true, message.clone(), since, now);
                happened.extend(about.iter().map(tell));
            }
            self.wrong.insert(key, Wrong { about, since, missed: 0 });
        }
        for ((code, subject), wrong) in self.wrong.iter().filter(|(_, wrong)| wrong.missed >= MISSED) {
            let message = ended(code, subject, wrong.since, now, None);
            let tell = |object: &Object| occurrence(object.clone(), code, false, message.clone(), wrong.since, now);
            happened.extend(wrong.about.iter().map(tell));
        }
        self.wrong.retain(|_, wrong| wrong.missed < MISSED);
    }
}

fn stale(cluster: &Cluster) -> BTreeSet<String> {
    cluster.nodes().filter(|(_, row)| row.marked_stale()).map(|(name, _)| name.to_owned()).collect()
}

fn sentence(finding: &ClusterFinding, since: Timestamp) -> String {
    let since = crate::facts::utc(since);
    let workers = match finding.nodes {
        0 => String::new(),
        1 => " It concerns one worker.".to_owned(),
        count => format!(" It concerns {count} workers."),
    };
    clip(&format!("{}, since {since}.{workers} Next: {}.", finding.detail, finding.next.trim_end_matches('.')))
}

fn occurrence(
    object: Object,
    reason: &str,
    warning: bool,
    message: String,
    since: Timestamp,
    at: Timestamp,
) -> Occurrence {
    Occurrence { object, reason: reason.to_owned(), warning, message, since, at }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::aggregator::testing::{apply, at, cluster, node};
    use crate::checks::{Area, WORKER_PROBLEM};

    fn short(happened: &[Occurrence]) -> Vec<(&str, &str, bool)> {
        happened.iter().map(|it| (&*it.object.name, &*it.reason, it.warning)).collect()
    }

    fn marked(name: &str) -> serde_json::Value {
        let mut node = node(name, "z", "p", "Unknown", &[]);
        for condition in node["status"]["conditions"].as_array_mut().expect("conditions") {
            if condition["type"] == WORKER_PROBLEM {
                condition["status"] = "Unknown".into();
                condition["reason"] = AGENT_STALE.into();
                condition["message"] = "The agent is gone.".into();
            }
        }
        node
    }

    #[test]
    fn an_agent_that_goes_and_comes_back_is_told_once_each() {
        let well = |name| node(name, "z", "p", "Normal", &[]);
        let mut cluster = cluster(&[well("a"), marked("b"), well("c")], &[]);
        let mut known = Known::begin(&cluster, "nodevitals");
        let mut judged = LastJudgement::default();
        assert!(known.step(&cluster, &mut judged, at(0)).is_empty(), "b was told by the replica before");
        apply(&mut cluster, &marked("a"));
        let happened = known.step(&cluster, &mut judged, at(5));
        assert_eq!(short(&happened), [("a", AGENT_STALE, true)]);
        assert_eq!(happened[0].message, "The agent is gone.");
        assert!(known.step(&cluster, &mut judged, at(10)).is_empty());
        apply(&mut cluster, &well("a"));
        apply(&mut cluster, &marked("c"));
        cluster.remove_node("b", at(14));
        assert_eq!(
            short(&known.step(&cluster, &mut judged, at(15))),
            [("c", AGENT_STALE, true), ("a", AGENT_STALE, false)]
        );
    }

    fn finding(code: &str, since: i64, workers: &[&str]) -> ClusterFinding {
        ClusterFinding {
            severity: Severity::Critical,
            area: Area::PodRouting,
            detail: "it is broken".into(),
            next: "mend it".into(),
            since: Some(at(since)),
            nodes: workers.len(),
            workers: workers.iter().map(|name| (*name).to_owned()).collect(),
            ..serde_json::from_value(serde_json::json!({
                "code": code, "severity": "critical", "area": "podRouting", "subject": "s", "detail": "", "next": "",
                "nodes": 0, "workers": [],
            }))
            .expect("a finding")
        }
    }

    #[test]
    fn what_is_wrong_with_the_cluster_is_told_on_what_it_concerns() {
        let mut known = Known::begin(&cluster(&[], &[]), "nodevitals");
        let mut step = |findings: Vec<ClusterFinding>, unknown: &[&str], second| {
            let codes = unknown.iter().map(|code| (*code).to_owned()).collect();
            let unknown = [CannotLook { what: Vec::new(), why: String::new(), since: at(0), codes }];
            let mut happened = Vec::new();
            known.cluster(findings, &unknown, at(second), &mut happened);
            happened
        };
        let of_set = ClusterFinding { object: "DaemonSet kube-system/calico-node".into(), ..finding("D", 0, &["n1"]) };
        let odd = ClusterFinding { object: "ReplicaSet kube-system/x".into(), ..finding("E", 0, &[]) };
        let all = || {
            vec![
                finding("A", 0, &["n1", "n2"]),
                finding("B", -3601, &["n1"]),
                finding("C", 0, &[]),
                of_set.clone(),
                odd.clone(),
            ]
        };
        let happened = step(all(), &[], 10);
        assert_eq!(
            short(&happened),
            [
                ("n1", "A", true),
                ("n2", "A", true),
                (lease::NAME, "C", true),
                ("calico-node", "D", true),
                ("n1", "D", true),
                (lease::NAME, "E", true)
            ],
            "B began longer ago than an Event is kept"
        );
        assert_eq!(
            happened[0].message,
            "it is broken, since 2026-11-21T10:00:00Z. It concerns 2 workers. Next: mend it."
        );
        assert!(step(all(), &[], 40).is_empty());
        assert!(step(vec![], &[], 70).is_empty(), "missed once");
        assert!(step(all(), &[], 100).is_empty());
        assert!(step(vec![], &[], 130).is_empty());
        assert!(step(vec![], &["A", "B", "C", "D", "E"], 145).is_empty(), "whether it is over is not known");
        let over = step(vec![], &[], 160);
        let ends = [
            ("n1", "A", false),
            ("n2", "A", false),
            ("n1", "B", false),
            (lease::NAME, "C", false),
            ("calico-node", "D", false),
            ("n1", "D", false),
            (lease::NAME, "E", false),
        ];
        assert_eq!(short(&over), ends);
        assert_eq!(over[0].message, "A (s) is over; it was there since 2026-11-21T10:00:00Z, for 160 s.");
        for look in 0..LOOKED_OVER {
            assert!(step(vec![], &[], 190 + 30 * i64::from(look)).is_empty());
        }
        let happened = step(vec![finding("B", -3601, &["n1"])], &[], 900);
        assert_eq!(short(&happened), [("n1", "B", true)], "it is old, and was not there before");
    }
}
