//! What is wrong with the cluster rather than with one worker. Pure.

mod calico;
mod connections;
mod controllers;
mod dns;
mod firewall;
mod inventory;
mod ipam;
mod master;
mod routes;
mod unseen;
mod webhooks;
mod workers;

use std::collections::{BTreeMap, HashMap};
use std::sync::Arc;

use jiff::Timestamp;

use super::ClusterFinding;
use super::sandboxes::SANDBOX;
use super::scope::{ANOTHER_FIRST, takes_pods};
use crate::aggregator::cluster::Cluster;
use crate::aggregator::password::Found;
use crate::aggregator::pods::CalicoPod;
use crate::aggregator::row::Row;
use crate::checks::{Area, Severity};

pub(in crate::aggregator) use calico::{failing as failing_calico, failing_of as failing_calico_of, place};
pub(super) use unseen::unseen;

/// A Pod younger than this, in seconds, may still be waiting for what starts beside it; a failed init container is
/// tried again after 10 s.
const YOUNG: i64 = 60;
/// A password that has been out of reach for less, in seconds, is about to be set up.
const SETTING_UP: i64 = 60;
/// Different failures that are told; of the least bad and rarest it is only said how many more they are.
const MOST: usize = 32;
/// Workers that are named.
const NAMED: usize = 20;
/// By these, and those that begin with its name, it is told where calico-node does not run.
const OF_CALICO: [&str; 3] = ["CalicoInitFailed", "CalicoDataForDeletedNodes", "WebhookDeadlock"];

/// What is wrong, how many more findings there are, and where calico-node does not run, if Pods wait for it somewhere.
pub(super) type Judgement = (Vec<ClusterFinding>, usize, Arc<BTreeMap<String, &'static str>>);

/// Something that is wrong with the cluster, before it is known for whom it is told.
#[derive(Debug)]
struct Draft {
    code: &'static str,
    severity: Severity,
    area: Area,
    subject: String,
    object: String,
    detail: String,
    next: String,
    since: Option<Timestamp>,
    on: Vec<String>,
    /// Workers that the next step takes away, at least for a while.
    taken: Vec<String>,
}

impl Draft {
    fn new(code: &'static str, severity: Severity, detail: String, next: impl Into<String>) -> Draft {
        let (subject, object, area) = (String::new(), String::new(), Area::PodRouting);
        let (next, on, taken) = (next.into(), Vec::new(), Vec::new());
        Draft { code, severity, area, subject, object, detail, next, since: None, on, taken }
    }

    /// What its Events are about, besides workers.
    fn object(mut self, kind: &str, namespace: &str, name: &str) -> Draft {
        let slash = if namespace.is_empty() { "" } else { "/" };
        self.object = format!("{kind} {namespace}{slash}{name}");
        self
    }

    fn about(mut self, subject: String) -> Draft {
        self.subject = subject;
        self
    }

    fn on<'a>(mut self, workers: impl IntoIterator<Item = &'a str>) -> Draft {
        self.on = workers.into_iter().map(str::to_owned).collect();
        self
    }

    /// The next step drains, reboots or replaces these.
    fn takes_away<'a>(mut self, workers: impl IntoIterator<Item = &'a str>) -> Draft {
        self.taken = workers.into_iter().map(str::to_owned).collect();
        self
    }

    /// The last worker that takes Pods stays until there is another (R070).
    fn keep_the_last(&mut self, cluster: &Cluster, duplicates: &HashMap<&str, &str>) {
        let stays = |(name, row): &(&str, &Row)| {
            takes_pods(row) && !duplicates.contains_key(name) && !self.taken.iter().any(|taken| taken == name)
        };
        if !self.taken.is_empty() && !cluster.nodes().any(|node| stays(&node)) {
            self.next.insert_str(0, ANOTHER_FIRST);
        }
    }

    /// On these, since the first of them has it.
    fn on_since(self, workers: &[(&str, Option<Timestamp>)]) -> Draft {
        self.since(workers.iter().filter_map(|(_, since)| *since).min()).on(workers.iter().map(|(name, _)| *name))
    }

    fn since(mut self, since: Option<Timestamp>) -> Draft {
        self.since = since;
        self
    }

    fn told(self, only: Option<&str>) -> ClusterFinding {
        let mut workers = self.on;
        workers.sort_unstable();
        workers.dedup();
        let nodes = workers.len();
        workers.retain(|name| only.is_none_or(|only| only == name));
        workers.truncate(NAMED);
        ClusterFinding {
            code: self.code.to_owned(),
            severity: self.severity,
            area: self.area,
            subject: self.subject,
            object: self.object,
            detail: self.detail,
            next: self.next,
            since: self.since,
            noticed: false,
            before: Vec::new(),
            nodes,
            workers,
        }
    }
}

/// All of it, or what concerns one worker, the worst first, and of that what concerns most workers.
pub(super) fn findings(
    cluster: &Cluster,
    duplicates: &HashMap<&str, &str>,
    only: Option<&str>,
    now: Timestamp,
) -> Judgement {
    let (all, more, without_calico) = judged(cluster, duplicates, only, now);
    (dated(all, cluster), more, without_calico)
}

/// The workers on which calico-node does not run, each with the code by which that is told; none if nobody waits for it.
fn without_calico(cluster: &Cluster, drafts: &[Draft]) -> BTreeMap<String, &'static str> {
    if !cluster.nodes().any(|(_, row)| row.has(SANDBOX)) {
        return BTreeMap::new();
    }
    let of_calico = |draft: &&Draft| draft.code.starts_with("CalicoNode") || OF_CALICO.contains(&draft.code);
    let on = drafts.iter().filter(of_calico).flat_map(|draft| draft.on.iter().map(|name| (name.clone(), draft.code)));
    on.collect()
}

/// The same, before it is known when they were noticed.
pub(super) fn judged(
    cluster: &Cluster,
    duplicates: &HashMap<&str, &str>,
    only: Option<&str>,
    now: Timestamp,
) -> Judgement {
    let drafts = drafts(cluster, duplicates, now);
    let without_calico = Arc::new(without_calico(cluster, &drafts));
    let mut all: Vec<ClusterFinding> = drafts.into_iter().map(|draft| draft.told(only)).collect();
    all.retain(|finding| only.is_none() || !finding.workers.is_empty());
    // The sort is stable: what is alike stays as it was found.
    all.sort_by(|a, b| (b.severity, b.nodes).cmp(&(a.severity, a.nodes)).then_with(|| a.subject.cmp(&b.subject)));
    let more = all.len().saturating_sub(MOST);
    all.truncate(MOST);
    (all, more, without_calico)
}

/// All that is wrong.
fn drafts(cluster: &Cluster, duplicates: &HashMap<&str, &str>, now: Timestamp) -> Vec<Draft> {
    let pods: Vec<&CalicoPod> = cluster.surroundings.calico_pods().collect();
    let mut drafts = not_started(&pods, now);
    let passwords = cluster.password.iter().filter(|found| found.is_wrong() && lasts(found.since, SETTING_UP, now));
    drafts.extend(passwords.map(|found| no_password(found, &pods)));
    let outdated = unseen::outdated(cluster, now);
    let (hooked, mut locked) = webhooks::findings(cluster, now);
    // A deadlock that is unknown explains nothing: calico-node there is told by itself.
    if outdated.contains(&"WebhookDeadlock") {
        locked.clear();
    }
    drafts.extend(hooked);
    drafts.extend(calico::findings(cluster, duplicates, &locked, now));
    drafts.extend(controllers::findings(cluster, now));
    drafts.extend(inventory::findings(cluster, duplicates, now));
    drafts.extend(workers::findings(cluster, duplicates, now));
    drafts.extend(ipam::findings(cluster, now));
    drafts.extend(routes::findings(cluster));
    drafts.extend(dns::unanswered(cluster, now));
    drafts.extend(connections::suspected(cluster, duplicates, now));
    drafts.retain(|draft| !outdated.contains(&draft.code));
    for draft in &mut drafts {
        draft.keep_the_last(cluster, duplicates);
    }
    // That is why calico-node fails there, and what helps one worker does not help against it.
    if drafts.iter().any(|draft| draft.code == "CalicoDataForDeletedNodes") {
        drafts.retain(|draft| !draft.code.starts_with("CalicoNodeFailing"));
    }
    drafts
}

/// Says since when they are there, and what changed before. What tells no time itself is there at least since it was noticed.
pub(super) fn dated(mut all: Vec<ClusterFinding>, cluster: &Cluster) -> Vec<ClusterFinding> {
    for finding in all.iter_mut().filter(|finding| finding.since.is_none()) {
        finding.since = cluster.noticed.get(&(finding.code.clone(), finding.subject.clone())).copied();
        finding.noticed = true;
    }
    for finding in all.iter_mut().filter(|finding| finding.severity > Severity::Info) {
        finding.before = finding.since.map(|since| cluster.surroundings.journal.before(since)).unwrap_or_default();
    }
    all
}

fn lasts(since: Option<Timestamp>, seconds: i64, now: Timestamp) -> bool {
    since.is_none_or(|since| now.as_second().saturating_sub(since.as_second()) >= seconds)
}

/// Every Pod is looked at, never only the first: different workers fail differently. They are told by what they say,
/// numbers apart, which are different in each (ports, process numbers, times).
fn not_started(pods: &[&CalicoPod], now: Timestamp) -> Vec<Draft> {
    let mut groups: BTreeMap<(&str, String), Vec<&CalicoPod>> = BTreeMap::new();
    for pod in pods.iter().filter(|pod| lasts(pod.created.get(), YOUNG, now)) {
        if let Some(failed) = &pod.failed {
            groups.entry((&failed.container, without_numbers(&failed.words))).or_default().push(pod);
        }
    }
    let findings = groups.into_iter().filter_map(|((container, same), pods)| {
        let first = pods.first()?;
        let failed = first.failed.as_ref()?;
        let (namespace, name) = (first.name.namespace(), first.name.name());
        let log = format!("`kubectl -n {namespace} logs {name} -c {container}`");
        let detail = format!(
            "init container {container} of calico-node does not succeed, so that Pods get no network: {}; for example in {namespace}/{name}",
            failed.words
        );
        let next = match container {
            "install-cni" | "upgrade-ipam" => format!(
                "read {log}; it writes to /opt/cni/bin and /etc/cni/net.d: look for full or read-only file systems, permissions and immutable files there"
            ),
            "calico-extension" => format!(
                "read {log}; it needs the control plane, so look at the findings of the path to it (MasterUnreachable) first"
            ),
            _ => format!("read {log}, or `kubectl -n {namespace} describe pod {name}` where it never ran"),
        };
        let draft = Draft::new("CalicoInitFailed", Severity::Critical, detail, next).about(format!("{container}: {same}"));
        let since = pods.iter().filter_map(|pod| pod.created.get()).min();
        Some(draft.since(since).on(pods.iter().map(|pod| &*pod.node)))
    });
    findings.collect()
}

fn without_numbers(words: &str) -> String {
    let mut out = String::with_capacity(words.len());
    for letter in words.chars() {
        let letter = if letter.is_ascii_digit() { '#' } else { letter };
        if letter != '#' || !out.ends_with('#') {
            out.push(letter);
        }
    }
    out
}

fn no_password(found: &Found, pods: &[&CalicoPod]) -> Draft {
    let way = &found.way;
    let (namespace, account, secret) = (&way.namespace, &way.account, &way.secret);
    let missing = found.exists == Some(false);
    let may_not = format!("service account {namespace}/{account} may not {} it", found.refused.join(", "));
    let what = match (missing, found.refused.is_empty()) {
        (true, true) => "which does not exist there".to_owned(),
        (true, false) => format!("which does not exist there, and {may_not}"),
        (false, _) => format!("but {may_not}"),
    };
    let copy = if found.exists == Some(true) {
        String::new()
    } else {
        format!(
            "make sure that the Secret exists there (copy it from where calico-node was before, such as kube-system: `kubectl get secret -A --field-selector metadata.name={secret}`), then "
        )
    };
    let affected = pods.iter().filter(|pod| *pod.name.namespace() == *way.namespace).map(|pod| &*pod.node);
    let detail = format!(
        "the BGPConfiguration `default` takes the password of the BGP peers from Secret {secret} in namespace {namespace}, {what}: sessions with peers that have the password do not come up"
    );
    let next = format!(
        "{copy}let it be read with a Role and a RoleBinding `bgp-secret-access` (get, list, watch on secrets/{secret}) for {namespace}/{account}"
    );
    let draft = Draft::new("BgpPasswordSecretMissing", Severity::Critical, detail, next);
    draft.about(format!("Secret {namespace}/{secret}")).since(found.since).on(affected)
}

#[cfg(test)]
mod cases;
#[cfg(test)]
mod tests;
