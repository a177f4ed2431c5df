//! calico-kube-controllers, Typha, the tunnel from the control plane, and versions and namespaces of Calico (catalogue R096
//! to R099, R170, R172, R173, R174, R178). Pure.

use std::collections::{BTreeMap, BTreeSet};

use jiff::Timestamp;

use super::calico::{UNBLOCK, refused, state};
use super::{Draft, ipam, lasts};
use crate::aggregator::cluster::Cluster;
use crate::aggregator::pods::{App, CalicoPod};
use crate::aggregator::surroundings::What;
use crate::aggregator::workloads::Workload;
use crate::checks::Severity::{Critical, Info, Warning};
use crate::facts::utc;

const CONTROLLERS: &str = "calico-kube-controllers";
/// Two may run for so long while one takes over.
const TWO: i64 = 300;
/// Parts of Calico may have different versions for so long: an update of a large cluster takes its time.
const MIXED: i64 = 3600;
/// Cleaning up takes less than so long.
const LOCKED: i64 = 30 * 60;
/// Where it did not come up longer ago may be well by now.
const TRIED: i64 = 24 * 3600;
/// A memory limit that was hit longer ago is no news.
const MEMORY: i64 = 3600;

/// What is wrong.
pub(super) fn findings(cluster: &Cluster, now: Timestamp) -> Vec<Draft> {
    let mut all = drift(cluster, now);
    if !cluster.surroundings.is_seen(What::CalicoPods) {
        return all;
    }
    let mut own = controllers(cluster, now);
    if let Some(deployment) = cluster.surroundings.workloads(CONTROLLERS).next() {
        own = own.into_iter().map(|it| it.object("Deployment", &deployment.namespace, CONTROLLERS)).collect();
    }
    all.extend(own);
    all.extend(typha(cluster, now));
    all.extend(tunnel(cluster, now));
    all.extend(migration(cluster, now));
    all.extend(mixed(cluster, now));
    all
}

fn controllers(cluster: &Cluster, now: Timestamp) -> Vec<Draft> {
    let around = &cluster.surroundings;
    let pods: Vec<&CalicoPod> = around.pods(App::Controllers).collect();
    let Some(deployment) = around.workloads(CONTROLLERS).next() else {
        let used = around.is_seen(What::SystemDeployments) && around.is_seen(What::CalicoDeployments);
        return missing(cluster, now).into_iter().filter(|_| used && pods.is_empty()).collect();
    };
    if deployment.replicas == 0 {
        let detail = format!(
            "the Deployment {}/calico-kube-controllers is scaled to 0, so that addresses and data of nodes that go are never cleaned up",
            deployment.namespace
        );
        let next = "scale it to 1: exactly one has to run";
        return vec![Draft::new("CalicoKubeControllersMissing", Warning, detail, next)];
    }
    if let Some(ready) = pods.iter().filter(|pod| pod.ready).map(|pod| pod.since.get()).collect::<Option<Vec<_>>>()
        && ready.len() > 1
        && ready.iter().all(|since| lasts(Some(*since), TWO, now))
    {
        let detail = format!("{} Pods of calico-kube-controllers run, and exactly one has to", ready.len());
        let draft = Draft::new("CalicoKubeControllersCount", Info, detail, "set the Deployment to one replica");
        return vec![draft.since(ready.into_iter().max())];
    }
    if pods.iter().any(|pod| pod.ready) {
        return Vec::new();
    }
    let Some(pod) = pods.iter().max_by_key(|pod| pod.created.get()) else {
        return vec![without_pod(cluster, deployment, now)];
    };
    let on = (!pod.node.is_empty()).then_some(&*pod.node);
    let tried = tried(cluster, on, now);
    let cured = cured(cluster).unwrap_or_default();
    let name = format!("{} {}{tried}{cured}", pod.name, state(pod, cluster.limits(), now));
    if let Some(node) = on
        && cluster.node(node).is_none_or(|row| !row.is_ready())
    {
        let detail = format!("calico-kube-controllers is on {node}, which is not Ready: {name}");
        let next = format!(
            "cordon {node} and delete the Pod, so that it starts elsewhere; uncordon {node} once it is well again"
        );
        let draft = Draft::new("CalicoKubeControllersOnBadNode", Warning, detail, next).since(pod.since.get());
        return vec![draft.takes_away([node])];
    }
    if let Some(at) = pod.out_of_memory.get().filter(|at| !lasts(Some(*at), MEMORY, now)) {
        let detail = format!("the memory of calico-kube-controllers hit its limit: {name}");
        let next = "gather its description and logs (also --previous); raise the limit, and look at what grew: Nodes, Pods, policies, leaked addresses";
        return vec![Draft::new("CalicoKubeControllersOomKilled", Warning, detail, next).since(Some(at))];
    }
    if pod.keeps_failing(cluster.limits(), now) {
        let next = if tried.is_empty() {
            "cordon its node and delete the Pod, on nodes of several zones in turn, and uncordon; if it fails everywhere, gather, and look at Calico's configuration, the datastore, and what changed before then"
        } else {
            "the nodes are not to blame: uncordon those that were tried, gather, and look at Calico's configuration, the datastore, and what changed before then"
        };
        let detail = format!("calico-kube-controllers does not stay up: {name}");
        let draft = Draft::new("CalicoKubeControllersCrashLooping", Warning, detail, next).since(pod.since.get());
        return vec![draft.takes_away(on.filter(|_| tried.is_empty()))];
    }
    vec![down(cluster, &name, pod.since.get(), now)]
}

/// There is no Pod of the Deployment.
fn without_pod(cluster: &Cluster, deployment: &Workload, now: Timestamp) -> Draft {
    let is_its_own = |owner: &str| owner.starts_with("ReplicaSet calico-kube-controllers-");
    if let Some(event) = refused(cluster, is_its_own, now) {
        let detail = format!("there is no Pod of calico-kube-controllers, and none can be made: {}", event.message);
        let draft = Draft::new("CalicoKubeControllersMissing", Warning, detail, UNBLOCK);
        return draft.since(Some(event.at));
    }
    // That there was never a Pod is known since the Deployment was made, or since Pods are seen.
    let since = deployment.created.max(cluster.surroundings.complete_since(What::CalicoPods));
    down(cluster, "there is no Pod", since, now)
}

/// The nodes from which it was moved, in vain, within a day.
fn tried(cluster: &Cluster, on: Option<&str>, now: Timestamp) -> String {
    let recent = |(node, at): &&(Box<str>, Timestamp)| Some(&**node) != on && !lasts(Some(*at), TRIED, now);
    let nodes: Vec<&str> = cluster.surroundings.tried.iter().filter(recent).map(|(node, _)| &**node).collect();
    if nodes.is_empty() {
        String::new()
    } else {
        format!(", moved there after it did not come up on {}", nodes.join(", "))
    }
}

/// What cured it the last time, and what that speaks for (R118).
fn cured(cluster: &Cluster) -> Option<String> {
    let cured = cluster.memory.controllers.as_ref()?;
    let (at, from, to) = (utc(cured.at()?), &cured.from, &cured.to);
    Some(if from == to {
        format!("; before {at} a new Pod on {to} cured it, which speaks for a process that went wrong")
    } else {
        format!("; before {at} a move from {from} to {to} cured it, which speaks for {from}")
    })
}

/// No worker suffers from it at once, and a short absence harms nobody, unless nodes go meanwhile or addresses run out.
fn down(cluster: &Cluster, what: &str, since: Option<Timestamp>, now: Timestamp) -> Draft {
    let gone = cluster.gone_since(since);
    // Catalogue H10.
    let minutes = cluster.limits().controllers_absent_minutes;
    // Addresses that leak are not freed meanwhile either, and there are none to spare.
    let near_full = ipam::near_full(cluster, now);
    let runs_out = near_full.is_some();
    let severity = if gone > 0 || runs_out || lasts(since, 60 * i64::from(minutes), now) { Warning } else { Info };
    let near_full = near_full.map_or_else(String::new, |free| format!("; {free}, and nobody frees what leaks"));
    let meanwhile = if gone > 0 {
        format!("{near_full}; {gone} nodes were deleted meanwhile, whose addresses and data stay")
    } else {
        near_full
    };
    let detail = format!("calico-kube-controllers is not there: {what}{meanwhile}");
    let wait = if runs_out { "do not wait:".to_owned() } else { format!("wait {minutes} minutes; then") };
    let next = format!("{wait} look at its Pod and its node, and for webhooks that keep Pods from being made");
    Draft::new("CalicoKubeControllersDown", severity, detail, next).since(since)
}

/// Its Deployment is gone. Not every Calico has one: it counts where Pods of it could not be made, or were seen before.
fn missing(cluster: &Cluster, now: Timestamp) -> Option<Draft> {
    let since =
        cluster.surroundings.controllers_gone.filter(|since| lasts(Some(*since), cluster.limits().routine(), now))?;
    let detail =
        "the Deployment calico-kube-controllers was there and is neither in kube-system nor in calico-system any more"
            .to_owned();
    let next = "let its owner make it again: the Tigera operator, or on IBM Cloud a master refresh, which takes up to 45 minutes; then look for webhooks";
    Some(Draft::new("CalicoKubeControllersMissing", Warning, detail, next).since(Some(since)))
}

/// Pods that wait for a node are fine in a cluster that is smaller than their number.
fn typha(cluster: &Cluster, now: Timestamp) -> Option<Draft> {
    let pods: Vec<&CalicoPod> = cluster.surroundings.pods(App::Typha).collect();
    let ready = pods.iter().filter(|pod| pod.ready).count();
    let waits =
        |pod: &CalicoPod| pod.node.is_empty() && ready > 0 && pods.len() > cluster.nodes().len().saturating_sub(1);
    let limits = cluster.limits();
    let bad = |pod: &&&CalicoPod| pod.is_bad(limits, now) && !waits(pod);
    let bad: Vec<&&CalicoPod> = pods.iter().filter(bad).collect();
    let worst = bad.first()?;
    let severity = if ready == 0 { Critical } else { Warning };
    let detail = format!(
        "{} of {} Pods of Typha are not Ready, so that calico-node on the nodes that they serve gets no changes and restarts: {} {}",
        bad.len(),
        pods.len(),
        worst.name,
        state(worst, limits, now)
    );
    let next = "if one is bad, look at its node, cordon it and delete the Pod; if all are, gather their logs and look at memory limits, configuration and certificates";
    let since = bad.iter().filter_map(|pod| pod.since.get()).min();
    let draft = Draft::new("TyphaUnhealthy", severity, detail, next).since(since);
    Some(draft.object("Deployment", worst.name.namespace(), "calico-typha"))
}

fn tunnel(cluster: &Cluster, now: Timestamp) -> Option<Draft> {
    let mut pods = cluster.surroundings.pods(App::Tunnel).peekable();
    pods.peek()?;
    let (mut since, mut last) = (None, None);
    for pod in pods {
        if !pod.unready_for(cluster.limits().routine(), now) {
            return None;
        }
        since = since.max(pod.since.get());
        last = Some(pod);
    }
    let last = last?;
    let at = if last.node.is_empty() { "on no node yet".to_owned() } else { format!("on {}", last.node) };
    let detail = format!(
        "no Pod of the tunnel from the control plane (konnectivity-agent, VPN) is Ready, so that it reaches no Pod and no kubelet: logs, exec, port-forward, and webhooks and aggregated APIs in the cluster fail; for example {}, {at}",
        last.name
    );
    let next = "look at these Pods and at the way from their nodes to the control plane; webhooks that fail meanwhile are a consequence";
    Some(Draft::new("ControlTunnelDown", Warning, detail, next).since(since))
}

/// Since 1.29 of IBM Cloud's clusters the Tigera operator moves calico-node from kube-system to calico-system (R174).
fn migration(cluster: &Cluster, now: Timestamp) -> Option<Draft> {
    let around = &cluster.surroundings;
    let old: Vec<&CalicoPod> = around.calico_pods().filter(|pod| pod.name.namespace() == "kube-system").collect();
    let new: Vec<&CalicoPod> = around.calico_pods().filter(|pod| pod.name.namespace() == "calico-system").collect();
    let waiting = cluster.nodes().filter(|(_, row)| row.migration.as_deref() == Some("pre-operator")).count();
    let both = around.workloads("calico-node").map(|set| &*set.namespace).collect::<BTreeSet<_>>().len() > 1;
    if !(both || waiting > 0) || old.is_empty() || new.is_empty() {
        return None;
    }
    let last = new.iter().filter_map(|pod| pod.created.get()).max();
    let minutes = cluster.limits().migration_minutes;
    let stalled = lasts(last, i64::from(minutes) * 60, now);
    let detail = format!(
        "Calico moves from kube-system to calico-system: {} of {} nodes are done",
        new.len(),
        new.len() + old.len()
    );
    if !stalled {
        let next = "wait, it takes hours in a large cluster; add, reload or replace no workers meanwhile";
        let begun = new.iter().filter_map(|pod| pod.created.get()).min();
        return Some(Draft::new("CalicoMigrationInProgress", Info, detail, next).since(begun));
    }
    let unready = new.iter().filter(|pod| !pod.ready).count();
    let detail =
        format!("{detail}, {unready} of these are not Ready, and none was added for more than {minutes} minutes");
    let next = "read the log of tigera-operator; see that all of Calico's Pods are Ready; where BGP has a password, that its Secret is in calico-system too (BgpPasswordSecretMissing)";
    Some(Draft::new("CalicoMigrationStalled", Critical, detail, next).since(last).on(old.iter().map(|pod| &*pod.node)))
}

/// What the provider wrote and somebody changed by hand, and a datastore that somebody has locked and forgotten (R173, R073).
fn drift(cluster: &Cluster, now: Timestamp) -> Vec<Draft> {
    let mut all = Vec::new();
    if let Some(since) = cluster.surroundings.locked().filter(|since| lasts(Some(*since), LOCKED, now)) {
        let detail = "Calico's datastore is locked (ClusterInformation default, datastoreReady false) for more than half an hour: no new Pod gets an address, and calico-node takes in no change".to_owned();
        let next =
            "if nobody migrates the datastore or cleans up addresses just now, `calicoctl datastore migrate unlock`";
        all.push(
            Draft::new("CalicoConfigDrift", Warning, detail, next).about("datastore".to_owned()).since(Some(since)),
        );
    }
    let drifts: Vec<_> = cluster.surroundings.drifts().collect();
    if let Some((kind, name, drift)) = drifts.iter().max_by_key(|(.., drift)| drift.at) {
        let detail = format!(
            "{} of Calico's objects that the provider wrote were changed by hand, the last of them {kind} {name} by {}: {}",
            drifts.len(),
            drift.by,
            drift.fields.join(", ")
        );
        let next = "only settings that the provider documents, such as the MTU, may be changed: take the others out again, or let the provider write the object anew";
        let draft = Draft::new("CalicoConfigDrift", Warning, detail, next).about(format!("{kind} {name}"));
        all.push(draft.object(kind, "", name).since(Some(drift.at)));
    }
    all
}

/// Parts of one Calico in different versions, and nothing under way that explains it (R173).
fn mixed(cluster: &Cluster, now: Timestamp) -> Option<Draft> {
    let around = &cluster.surroundings;
    let mut versions: BTreeMap<&str, Vec<&CalicoPod>> = BTreeMap::new();
    for pod in [App::Node, App::Controllers, App::Typha].into_iter().flat_map(|app| around.pods(app)) {
        if !pod.version.is_empty() {
            versions.entry(&pod.version).or_default().push(pod);
        }
    }
    let settled = versions.values().flatten().all(|pod| lasts(pod.created.get(), MIXED, now));
    // Whether an update is under way is said by the DaemonSet alone.
    let rolling = around.workloads("calico-node").any(|set| set.updated < set.desired);
    if versions.len() < 2 || !settled || rolling || !around.is_seen(What::DaemonSets) {
        return None;
    }
    let counts: Vec<String> = versions.iter().map(|(version, pods)| format!("{version} in {}", pods.len())).collect();
    let rarest = versions.values().min_by_key(|pods| pods.len())?;
    let detail = format!("Pods of Calico have different versions, and no update is under way: {}", counts.join(", "));
    let next = "find out who changed an image, and let the owner of Calico (operator, provider) set them all";
    Some(
        Draft::new("CalicoVersionMixed", Warning, detail, next)
            .since(rarest.iter().filter_map(|pod| pod.created.get()).min())
            .on(rarest.iter().map(|pod| &*pod.node).filter(|node| !node.is_empty())),
    )
}

#[cfg(test)]
mod tests;
