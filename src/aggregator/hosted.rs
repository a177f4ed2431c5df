//! What runs on workers that fail and not on others (catalogue R117): the DaemonSets, Deployments and StatefulSets that have
//! Pods there. All Pods of a large cluster would be far too much, so that only where a large part of the workers fails, some
//! of these and some that are well are asked for, and of their Pods no more than the metadata.

use std::collections::{BTreeMap, HashSet};
use std::hash::{DefaultHasher, Hasher};
use std::time::Duration;

use futures::future::BoxFuture;
use http::Request;
use http::header::ACCEPT;
use jiff::Timestamp;
use kube::Client;

use super::cluster::Cluster;
use super::model::ListPage;
use super::object::ObjectView;
use super::report::{FindingCount, Judged, Overview, Scope, failing_calico_of};
use super::store::Store;
use super::watch::escaped;
use crate::checks::Severity;
use crate::clock::{now, since_boot};
use crate::verdict::WorkerState;

/// Whether there is something to be asked for is found out this often.
const TICK: Duration = Duration::from_secs(10);
/// The same failure is looked at again after this time.
const AGAIN: Duration = Duration::from_secs(120);
/// One question.
const DEADLINE: Duration = Duration::from_secs(20);
/// Workers that are looked at: of those that fail, and of those that are well.
const MOST: (usize, usize) = (16, 32);
/// Pods of one worker, and owners of all of them, that are told apart.
const MOST_PODS: usize = 500;
const MOST_OWNERS: usize = 2000;
/// What is looked at where only calico-node fails.
const CALICO_FAILS: &str = "CalicoNodeFailingSubset";
/// Calico's own namespaces: what is wrong with Calico is told as such.
const CALICO: [&str; 3] = ["calico-system", "calico-apiserver", "tigera-operator"];

/// What runs where.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(crate) struct Hosted {
    /// `DaemonSet guard/scanner`.
    pub(crate) owners: Vec<Box<str>>,
    /// By worker, the places of the owners, and when their youngest Pod there was made.
    pub(crate) on: BTreeMap<Box<str>, Vec<(u16, Option<Timestamp>)>>,
}

/// What is to be looked at.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
struct Wanted {
    code: String,
    workers: Vec<String>,
}

impl Wanted {
    /// The worst failure of a large part of the workers, if there is one: what their agents say, or that calico-node fails
    /// there, which is critical and of which agents need not know.
    fn of(cluster: &Cluster, overview: &Overview<'_>, now: Timestamp) -> Option<Wanted> {
        let calico = failing_calico_of(cluster, now).filter(|_| overview.report.view.complete);
        let calico =
            calico.map_or_else(Vec::new, |(names, scope)| if scope == Scope::Subset { names } else { Vec::new() });
        let calico: HashSet<&str> = calico.iter().map(String::as_str).collect();
        let said = overview.report.findings.iter().find(|finding| finding.scope == Scope::Subset);
        match said.filter(|said| calico.is_empty() || said.severity == Severity::Critical) {
            Some(FindingCount { code, .. }) => {
                let has =
                    |node: &Judged<'_>| node.findings().iter().any(|it| it.code == *code && it.caused_by.is_none());
                Some(Wanted::among(code, overview, has, &calico))
            }
            None if calico.is_empty() => None,
            None => Some(Wanted::among(CALICO_FAILS, overview, |node| calico.contains(node.name), &calico)),
        }
    }

    /// Some that have it, and some on which nothing is wrong, calico-node neither.
    fn among(code: &str, overview: &Overview<'_>, has: impl Fn(&Judged<'_>) -> bool, calico: &HashSet<&str>) -> Wanted {
        let usual = overview.workers.iter().filter(|node| !node.row.unschedulable && !node.row.deleting);
        let (failing, others): (Vec<_>, Vec<_>) = usual.partition(|node| has(node));
        let is_well = |node: &&Judged<'_>| node.state == WorkerState::Normal && !calico.contains(node.name);
        let well = others.into_iter().filter(is_well).collect();
        let workers = some(failing, MOST.0).chain(some(well, MOST.1)).collect();
        Wanted { code: code.to_owned(), workers }
    }
}

impl Hosted {
    /// Takes in the Pods of one worker.
    fn take(&mut self, worker: &str, pods: &[ObjectView], own: &str) {
        let mut here: BTreeMap<u16, Option<Timestamp>> = BTreeMap::new();
        for pod in pods.iter().take(MOST_PODS) {
            let (meta, Some(owner)) = (&pod.metadata, &pod.owner) else { continue };
            let ours = meta.namespace == own || CALICO.contains(&meta.namespace.as_str());
            if ours || owner.contains("/calico-") {
                continue;
            }
            let known = self.owners.iter().position(|known| **known == **owner);
            let at = known.unwrap_or_else(|| {
                self.owners.push(owner.clone());
                self.owners.len() - 1
            });
            if let Ok(at) = u16::try_from(at)
                && usize::from(at) < MOST_OWNERS
            {
                let youngest = here.entry(at).or_default();
                *youngest = (*youngest).max(meta.creation_timestamp);
            }
        }
        self.owners.truncate(MOST_OWNERS);
        self.on.insert(worker.into(), here.into_iter().collect());
    }
}

/// Some of these, whatever their names have in common.
fn some<'a>(mut nodes: Vec<&'a Judged<'a>>, most: usize) -> impl Iterator<Item = String> + 'a {
    nodes.sort_by_cached_key(|node| {
        let mut hasher = DefaultHasher::new();
        hasher.write(node.name.as_bytes());
        hasher.finish()
    });
    nodes.into_iter().take(most).map(|node| node.name.to_owned())
}

/// Looks for ever.
pub(super) async fn run(client: &Client, store: &Store, own: &str) -> std::convert::Infallible {
    let mut revisions = store.revisions();
    let (mut looked, mut at): (Option<Wanted>, _) = (None, Duration::ZERO);
    loop {
        tokio::time::sleep(TICK).await;
        // That a Pod is not Ready for too long begins by time alone.
        let again = since_boot().saturating_sub(at) >= AGAIN;
        if !again && !revisions.has_changed().unwrap_or(false) {
            continue;
        }
        revisions.mark_unchanged();
        let now = now();
        let wanted = store.beside(now, |cluster, overview| Wanted::of(cluster, &overview, now.wall));
        // Workers that begin to fail meanwhile are looked at in the next round.
        if !again && looked.as_ref().map(|it| &it.code) == wanted.as_ref().map(|it| &it.code) {
            continue;
        }
        let hosted = match &wanted {
            None => None,
            Some(wanted) => {
                let mut hosted = Hosted::default();
                for worker in &wanted.workers {
                    if let Some(pods) = pods(client, worker).await {
                        hosted.take(worker, &pods.items, own);
                    }
                }
                Some(hosted)
            }
        };
        (looked, at) = (wanted, since_boot());
        store.change(|cluster| {
            cluster.revision += u64::from(cluster.hosted != hosted);
            cluster.hosted = hosted;
        });
        revisions.mark_unchanged();
    }
}

/// The metadata of the Pods of one worker; none without permission, and when nobody answered. Boxed, so that its code is
/// in the program once.
pub(super) fn pods<'a>(client: &'a Client, worker: &'a str) -> BoxFuture<'a, Option<ListPage<ObjectView>>> {
    Box::pin(list(client, worker))
}

async fn list(client: &Client, worker: &str) -> Option<ListPage<ObjectView>> {
    let path = format!("/api/v1/pods?fieldSelector=spec.nodeName%3D{}&limit={MOST_PODS}", escaped(worker));
    let request = Request::get(path)
        .header(ACCEPT, "application/json;as=PartialObjectMetadataList;g=meta.k8s.io;v=v1")
        .body(Vec::new())
        .ok()?;
    tokio::time::timeout(DEADLINE, client.request(request)).await.ok()?.ok()
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;
    use crate::aggregator::report::{Agents, LastJudgement, Source, overview};
    use crate::aggregator::surroundings::What;
    use crate::aggregator::testing::{agent, at, cluster, moment, node};
    use crate::aggregator::watch::Change;

    fn pod(namespace: &str, kind: &str, owner: &str, hash: &str) -> ObjectView {
        let object = json!({"metadata": {"name": "x", "namespace": namespace, "creationTimestamp": at(0),
            "labels": {"pod-template-hash": hash},
            "ownerReferences": [{"kind": "Other", "name": "o"}, {"kind": kind, "name": owner, "controller": true}]}});
        serde_json::from_value(object).expect("an object")
    }

    const WORKERS: usize = 30;

    /// Workers of which agents say that so many have a finding of this severity, and on which calico-node has not been Ready for
    /// so long.
    fn wanted(said: (usize, &str), fails: std::ops::Range<usize>, since: i64) -> (Cluster, Option<Wanted>) {
        let name = |number: usize| format!("n{number:02}");
        let worker = |number: usize| match said {
            (count, severity) if number < count => {
                let state = if severity == "critical" { "Critical" } else { "Warning" };
                node(&name(number), "a", "p", state, &[("ClockSkewed", severity, "integrity", "it is")])
            }
            _ => node(&name(number), "a", "p", "Normal", &[]),
        };
        let agents: Vec<_> = (0..WORKERS).map(|number| agent(&format!("a{number}"), &name(number), true)).collect();
        let mut cluster = cluster(&(0..WORKERS).map(worker).collect::<Vec<_>>(), &agents);
        cluster.surroundings.take(What::CalicoPods, Change::ListBegins, at(-900));
        for number in 0..WORKERS {
            let ready = if fails.contains(&number) { "False" } else { "True" };
            let pod = json!({
                "metadata": {"name": format!("calico-node-{number}"), "namespace": "kube-system", "labels": {"k8s-app": "calico-node"}},
                "spec": {"nodeName": name(number)},
                "status": {"conditions": [{"type": "Ready", "status": ready, "lastTransitionTime": at(since)}]}});
            let pod = serde_json::from_value(pod).expect("a Pod");
            cluster.surroundings.take(What::CalicoPods, Change::Here(pod), at(-900));
        }
        cluster.surroundings.take(What::CalicoPods, Change::ListEnds, at(-900));
        let wanted = look(&cluster);
        (cluster, wanted)
    }

    fn look(cluster: &Cluster) -> Option<Wanted> {
        let (now, last) = (moment(0), &mut LastJudgement::default());
        Wanted::of(cluster, &overview(cluster, Agents::Once, Source::Aggregator, last, now), now.wall)
    }

    #[test]
    fn where_only_calico_node_fails_these_workers_and_others_are_looked_at() {
        let (mut cluster, found) = wanted((0, ""), 0..20, -300);
        let found = found.expect("wanted");
        let failing = found.workers.iter().filter(|name| name.as_str() < "n20").count();
        assert_eq!((&*found.code, failing, found.workers.len()), (CALICO_FAILS, MOST.0, MOST.0 + 10));
        for (fails, since, why) in
            [(0..0, -300, "all is well"), (0..2, -300, "a few"), (0..24, -300, "nearly all"), (0..20, -60, "an update")]
        {
            assert_eq!(wanted((0, ""), fails, since).1, None, "{why}");
        }
        cluster.surroundings.take(What::CalicoPods, Change::Lost("refused".to_owned()), at(-9));
        assert_eq!(look(&cluster), None, "it is not known where it fails now");
    }

    #[test]
    fn what_agents_say_comes_first_where_it_is_as_bad() {
        let code = |said, fails| wanted(said, fails, -300).1.map(|found| found.code);
        assert_eq!(code((10, "warning"), 0..0).as_deref(), Some("ClockSkewed"));
        assert_eq!(code((10, "warning"), 10..20).as_deref(), Some(CALICO_FAILS));
        assert_eq!(code((10, "critical"), 10..20).as_deref(), Some("ClockSkewed"));
        // Where calico-node fails nothing is well.
        let (_, found) = wanted((10, "critical"), 10..20, -300);
        assert!(found.expect("wanted").workers.iter().all(|name| name.as_str() < "n10" || name.as_str() >= "n20"));
    }

    #[test]
    fn owners_are_told_apart_and_calicos_and_ours_are_left_out() {
        let pods = [
            pod("guard", "DaemonSet", "scanner", ""),
            pod("guard", "DaemonSet", "scanner", ""),
            pod("shop", "ReplicaSet", "cart-5d78c9869d", "5d78c9869d"),
            pod("shop", "ReplicaSet", "cart-77c9f5b6d8", "77c9f5b6d8"),
            pod("shop", "StatefulSet", "db", ""),
            pod("shop", "Job", "backup-1", ""),
            pod("kube-system", "Node", "n1", ""),
            pod("kube-system", "DaemonSet", "calico-node", ""),
            pod("calico-system", "Deployment", "whatever", ""),
            pod("nodevitals", "DaemonSet", "nodevitals-agent", ""),
        ];
        let mut hosted = Hosted::default();
        hosted.take("n1", &pods, "nodevitals");
        let owners: Vec<&str> = hosted.owners.iter().map(|owner| &**owner).collect();
        assert_eq!(owners, ["DaemonSet guard/scanner", "Deployment shop/cart", "StatefulSet shop/db"]);
        assert_eq!(hosted.on["n1"], [(0, Some(at(0))), (1, Some(at(0))), (2, Some(at(0)))]);
        hosted.take("n2", &pods[2..3], "nodevitals");
        assert_eq!(hosted.on["n2"], [(1, Some(at(0)))]);
    }
}
