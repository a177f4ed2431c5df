//! What is wrong with the cluster rather than with one worker. Pure.

mod calico;
mod controllers;
mod inventory;

use std::collections::BTreeMap;

use jiff::Timestamp;

use super::ClusterFinding;
use crate::aggregator::cluster::Cluster;
use crate::aggregator::password::Found;
use crate::aggregator::pods::CalicoPod;
use crate::checks::{Area, Severity};

/// A Pod younger than this, in seconds, may still be waiting for what starts beside it; a failed init container is
/// tried again after 10 s.
const YOUNG: i64 = 60;
/// A password that has been out of reach for less, in seconds, is about to be set up.
const SETTING_UP: i64 = 60;
/// Different failures that are told; the rarest are left out.
const MOST: usize = 16;
/// Workers that are named.
const NAMED: usize = 20;

/// Something that is wrong with the cluster, before it is known for whom it is told.
#[derive(Debug)]
struct Draft {
    code: &'static str,
    severity: Severity,
    area: Area,
    subject: String,
    detail: String,
    next: String,
    since: Option<Timestamp>,
    on: Vec<String>,
}

impl Draft {
    fn new(code: &'static str, severity: Severity, detail: String, next: impl Into<String>) -> Draft {
        let (subject, area) = (String::new(), Area::PodRouting);
        Draft { code, severity, area, subject, detail, next: next.into(), since: None, on: Vec::new() }
    }

    fn on<'a>(mut self, workers: impl IntoIterator<Item = &'a str>) -> Draft {
        self.on = workers.into_iter().map(str::to_owned).collect();
        self
    }

    fn since(mut self, since: Option<Timestamp>) -> Draft {
        self.since = since;
        self
    }

    fn told(self, only: Option<&str>) -> ClusterFinding {
        ClusterFinding {
            severity: self.severity,
            area: self.area,
            subject: self.subject,
            detail: self.detail,
            next: self.next,
            since: self.since,
            ..finding(self.code, self.on.iter().map(String::as_str), only)
        }
    }
}

/// All of it, or what concerns one worker, the worst first, and of that what concerns most workers.
pub(super) fn findings(cluster: &Cluster, only: Option<&str>, now: Timestamp) -> Vec<ClusterFinding> {
    let pods: Vec<&CalicoPod> = cluster.surroundings.calico_pods().collect();
    let mut all = not_started(&pods, only, now);
    let passwords = cluster.password.iter().filter(|found| found.is_wrong() && lasts(found.since, SETTING_UP, now));
    all.extend(passwords.map(|found| no_password(found, &pods, only)));
    let drafts = calico::findings(cluster, now).into_iter().chain(controllers::findings(cluster, now));
    let drafts = drafts.chain(inventory::findings(cluster, now));
    all.extend(drafts.map(|draft| draft.told(only)));
    for finding in all.iter_mut().filter(|finding| finding.severity > Severity::Info) {
        finding.before = finding.since.map(|since| cluster.surroundings.journal.before(since)).unwrap_or_default();
    }
    all.retain(|finding| only.is_none() || !finding.workers.is_empty());
    // The sort is stable: what is alike stays as it was found.
    all.sort_by(|a, b| (b.severity, b.nodes).cmp(&(a.severity, a.nodes)).then_with(|| a.subject.cmp(&b.subject)));
    all.truncate(MOST);
    all
}

fn lasts(since: Option<Timestamp>, seconds: i64, now: Timestamp) -> bool {
    since.is_none_or(|since| now.as_second().saturating_sub(since.as_second()) >= seconds)
}

/// Every Pod is looked at, never only the first: different workers fail differently. They are told by what they say,
/// numbers apart, which are different in each (ports, process numbers, times).
fn not_started(pods: &[&CalicoPod], only: Option<&str>, now: Timestamp) -> Vec<ClusterFinding> {
    let mut groups: BTreeMap<(&str, String), Vec<&CalicoPod>> = BTreeMap::new();
    for pod in pods.iter().filter(|pod| lasts(pod.created, YOUNG, now)) {
        if let Some(failed) = &pod.failed {
            groups.entry((&failed.container, without_numbers(&failed.words))).or_default().push(pod);
        }
    }
    let findings = groups.into_iter().filter_map(|((container, same), pods)| {
        let first = pods.first()?;
        let failed = first.failed.as_ref()?;
        let (namespace, name) = (&first.namespace, &first.name);
        let log = format!("`kubectl -n {namespace} logs {name} -c {container}`");
        Some(ClusterFinding {
            subject: format!("{container}: {same}"),
            detail: format!("init container {container} of calico-node does not succeed, so that Pods get no network: {}; for example in {namespace}/{name}", failed.words),
            next: match container {
                "install-cni" | "upgrade-ipam" => format!(
                    "read {log}; it writes to /opt/cni/bin and /etc/cni/net.d: look for full or read-only file systems, permissions and immutable files there"
                ),
                "calico-extension" => format!(
                    "read {log}; it needs the control plane, so look at the findings of the path to it (MasterUnreachable) first"
                ),
                _ => format!("read {log}, or `kubectl -n {namespace} describe pod {name}` where it never ran"),
            },
            since: pods.iter().filter_map(|pod| pod.created).min(),
            ..finding("CalicoInitFailed", pods.iter().map(|pod| &*pod.node), only)
        })
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

fn no_password(found: &Found, pods: &[&CalicoPod], only: Option<&str>) -> ClusterFinding {
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
    let affected = pods.iter().filter(|pod| pod.namespace == way.namespace).map(|pod| &*pod.node);
    ClusterFinding {
        subject: format!("Secret {namespace}/{secret}"),
        detail: format!(
            "the BGPConfiguration `default` takes the password of the BGP peers from Secret {secret} in namespace {namespace}, {what}: sessions with peers that have the password do not come up"
        ),
        next: format!(
            "{copy}let it be read with a Role and a RoleBinding `bgp-secret-access` (get, list, watch on secrets/{secret}) for {namespace}/{account}"
        ),
        since: found.since,
        ..finding("BgpPasswordSecretMissing", affected, only)
    }
}

fn finding<'a>(code: &str, on: impl Iterator<Item = &'a str>, only: Option<&str>) -> ClusterFinding {
    let mut workers: Vec<String> = on.map(str::to_owned).collect();
    workers.sort_unstable();
    workers.dedup();
    let nodes = workers.len();
    workers.retain(|name| only.is_none_or(|only| only == name));
    workers.truncate(NAMED);
    ClusterFinding {
        code: code.to_owned(),
        severity: Severity::Critical,
        area: Area::PodRouting,
        subject: String::new(),
        detail: String::new(),
        next: String::new(),
        since: None,
        before: Vec::new(),
        nodes,
        workers,
    }
}

#[cfg(test)]
mod tests;
