//! Admission webhooks that could stop the system, and the deadlock that one of them makes: calico-node waits for its write
//! of the node's status, this for a webhook, the webhook for a Pod that waits for calico-node (catalogue R110 to R113). Pure.

use std::collections::BTreeSet;

use jiff::Timestamp;

use super::{Draft, lasts};
use crate::aggregator::backends::Backend;
use crate::aggregator::cluster::Cluster;
use crate::aggregator::pods::{App, CalicoPod};
use crate::aggregator::surroundings::What;
use crate::aggregator::webhooks::{LEASES, Webhook};
use crate::checks::Area;
use crate::checks::Severity::{Critical, Info, Warning};

/// Namespaces and Pods that are named.
const NAMED: usize = 4;

/// Where the circle closes.
struct Circle<'a> {
    /// What waits for calico-node, in words.
    who: String,
    /// Namespace and name of its Pods.
    pods: Vec<(&'a str, &'a str)>,
    /// On these nodes.
    on: BTreeSet<&'a str>,
}

/// What is wrong, and the workers that are in a deadlock: what else is said of calico-node there is a consequence.
pub(super) fn findings(cluster: &Cluster, now: Timestamp) -> (Vec<Draft>, BTreeSet<String>) {
    let stuck = stuck(cluster, now);
    let (mut drafts, mut locked) = (Vec::new(), BTreeSet::new());
    for (kind, configuration) in cluster.surroundings.webhooks() {
        let about = format!("{kind} {}", configuration.name);
        let circle = configuration.all.iter().filter(|it| it.stops_status(cluster.limits())).find_map(|webhook| {
            let backend = cluster.backends.get(webhook.service.as_ref()?)?;
            Some((webhook, circle(cluster, webhook, backend, &stuck, now)?))
        });
        if let Some((webhook, circle)) = circle {
            locked.extend(circle.on.iter().map(|node| (*node).to_owned()));
            drafts.push(deadlock(cluster, about, webhook, &circle, &stuck));
            continue;
        }
        // The worst of a configuration, which often has many with one backend.
        let risks = configuration.all.iter().filter_map(|webhook| risk(cluster, &about, webhook, now));
        drafts.extend(risks.max_by_key(|draft| draft.severity));
    }
    (drafts, locked)
}

/// Nodes on which calico-node does not come up.
fn stuck(cluster: &Cluster, now: Timestamp) -> BTreeSet<&str> {
    let mut pods: Vec<&CalicoPod> = cluster.surroundings.calico_pods().collect();
    let ready: BTreeSet<&str> = pods.iter().filter(|pod| pod.ready).map(|pod| &*pod.node).collect();
    pods.retain(|pod| pod.is_bad(cluster.limits(), now));
    pods.into_iter().map(|pod| &*pod.node).filter(|node| !ready.contains(node)).collect()
}

/// Whether the only way to who answers is on nodes on which calico-node does not come up.
fn circle<'a>(
    cluster: &'a Cluster,
    webhook: &'a Webhook,
    backend: &'a Backend,
    stuck: &BTreeSet<&'a str>,
    now: Timestamp,
) -> Option<Circle<'a>> {
    let (namespace, service) = webhook.service.as_ref()?;
    let closed = |on: &BTreeSet<&str>| !on.is_empty() && on.iter().all(|node| stuck.contains(node));
    // The API server outside of the cluster reaches it through the tunnel.
    let tunnel: Vec<&CalicoPod> = cluster.surroundings.pods(App::Tunnel).collect();
    if !tunnel.is_empty() && tunnel.iter().all(|pod| pod.unready_for(cluster.limits().routine(), now)) {
        let on = tunnel.iter().map(|pod| &*pod.node).collect();
        if closed(&on) {
            let who = format!("reaches Service {namespace}/{service} only through the tunnel from the control plane");
            return Some(Circle {
                who,
                pods: tunnel.iter().map(|pod| (pod.name.namespace(), pod.name.name())).collect(),
                on,
            });
        }
    }
    let on: BTreeSet<&str> = backend.endpoints.iter().map(|endpoint| &*endpoint.node).collect();
    if backend.ready() > 0 || !lasts(backend.nobody_since, cluster.limits().routine(), now) || !closed(&on) {
        return None;
    }
    let pods = backend.endpoints.iter().map(|endpoint| (&**namespace, &*endpoint.pod)).collect();
    Some(Circle { who: format!("is answered by Service {namespace}/{service} alone"), pods, on })
}

fn deadlock(cluster: &Cluster, about: String, webhook: &Webhook, circle: &Circle<'_>, stuck: &BTreeSet<&str>) -> Draft {
    let nodes: Vec<&str> = circle.on.iter().take(NAMED).copied().collect();
    let nodes = nodes.join(", ");
    let named = circle.pods.iter().take(NAMED);
    let pods: Vec<String> = named.clone().map(|(namespace, name)| format!("{namespace}/{name}")).collect();
    let detail = format!(
        "calico-node on {nodes} waits for its write of the node's status, that for webhook {} of {about} ({} s, while calico-node gives up after {} s), which {}, and its Pods {} on {nodes} wait for calico-node: a circle that does not open by itself",
        webhook.name,
        webhook.timeout,
        cluster.limits().status_write_seconds,
        circle.who,
        pods.join(", ")
    );
    let elsewhere = cluster
        .nodes()
        .any(|(name, row)| row.is_ready() && !row.unschedulable && !stuck.contains(name) && !row.deleting);
    let moves: Vec<String> =
        named.map(|(namespace, name)| format!("`kubectl -n {namespace} delete pod {name}`")).collect();
    let first = if elsewhere {
        format!(
            "cordon {nodes} (no drain), {}, wait until they run on another worker, and uncordon; or ",
            moves.join(" and ")
        )
    } else {
        String::new()
    };
    let next = format!(
        "{first}set the webhook's timeoutSeconds to 1; or take nodes/status out of its rules (a namespaceSelector never excludes Nodes); or, as the last way, delete {about}, which no webhook can prevent"
    );
    let mut draft = Draft::new("WebhookDeadlock", Critical, detail, next);
    draft.object.clone_from(&about);
    draft.subject = about;
    draft.area = Area::ControlPlanePath;
    let pods = cluster.surroundings.calico_pods().filter(|pod| circle.on.contains(&*pod.node));
    draft.since(pods.filter_map(|pod| pod.since.get()).max()).on(circle.on.iter().copied())
}

/// A webhook that could stop the system, whose backend is not there or could easily be gone.
fn risk(cluster: &Cluster, about: &str, webhook: &Webhook, now: Timestamp) -> Option<Draft> {
    let stops = stops(cluster, webhook)?;
    let backend = cluster.backends.get(webhook.service.as_ref()?)?;
    let nobody = backend.nobody_since.is_some();
    let nodes: BTreeSet<&str> =
        backend.endpoints.iter().filter(|endpoint| endpoint.ready).map(|endpoint| &*endpoint.node).collect();
    if (nobody && !lasts(backend.nobody_since, cluster.limits().routine(), now))
        || (!nobody && backend.ready() > 1 && nodes.len() > 1)
    {
        return None;
    }
    let could = if nobody { "stops" } else { "could stop" };
    let detail = format!(
        "webhook {} of {about} {could} {stops}, since {}",
        webhook.name,
        served(webhook, backend).unwrap_or_default()
    );
    let next = if nobody {
        "let what serves it run again, on another worker if its own is at fault; or take nodes/status and system namespaces out of its rules; or, as the last way, delete the configuration"
    } else {
        "give it two replicas on different workers, a timeout of 1 s, and neither nodes/status nor system namespaces in its rules"
    };
    let mut draft = Draft::new("WebhookRisk", if nobody { Warning } else { Info }, detail, next);
    draft.area = Area::ControlPlanePath;
    about.clone_into(&mut draft.object);
    Some(draft.about(about.to_owned()).since(backend.nobody_since))
}

/// What it could stop, if anything.
fn stops(cluster: &Cluster, webhook: &Webhook) -> Option<String> {
    let around = &cluster.surroundings;
    let namespaces = || around.namespaces().filter(|_| around.is_seen(What::Namespaces));
    let pods: Vec<&str> = namespaces()
        .filter(|it| *it.name != *LEASES && webhook.stops_pods(it))
        .map(|it| &*it.name)
        .take(NAMED)
        .collect();
    let mut all = Vec::new();
    if webhook.stops_status(cluster.limits()) && !webhook.conditional {
        all.push("writes of Node status".to_owned());
    }
    if namespaces().any(|it| *it.name == *LEASES && webhook.stops_leases(it)) {
        all.push("the kubelets' Leases".to_owned());
    }
    if !pods.is_empty() {
        all.push(format!("new Pods in {}", pods.join(", ")));
    }
    (!all.is_empty()).then(|| all.join(" and "))
}

/// Who answers for it, and where.
fn served(webhook: &Webhook, backend: &Backend) -> Option<String> {
    let (namespace, service) = webhook.service.as_ref()?;
    if backend.missing {
        return Some(format!("its Service {namespace}/{service} does not exist"));
    }
    let nodes: BTreeSet<&str> = backend.endpoints.iter().map(|endpoint| &*endpoint.node).collect();
    let nodes: Vec<&str> = nodes.into_iter().filter(|node| !node.is_empty()).take(NAMED).collect();
    let at = if nodes.is_empty() { String::new() } else { format!(", on {}", nodes.join(", ")) };
    Some(format!(
        "its Service {namespace}/{service} has {} ready of {} endpoints{at}",
        backend.ready(),
        backend.endpoints.len()
    ))
}

/// What is known of the webhook that an error of the API server names.
pub(super) fn behind(cluster: &Cluster, message: &str) -> Option<String> {
    let name = message.split("webhook \"").nth(1)?.split('"').next()?;
    let mut all = cluster.surroundings.webhooks().flat_map(|(kind, it)| it.all.iter().map(move |one| (kind, it, one)));
    let (kind, configuration, webhook) = all.find(|(.., webhook)| *webhook.name == *name)?;
    let backend = cluster.backends.get(webhook.service.as_ref()?)?;
    Some(format!("; it is in {kind} {}, and {}", configuration.name, served(webhook, backend)?))
}

#[cfg(test)]
mod tests;
