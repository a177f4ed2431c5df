//! Live answers from the API server, with the rights of whoever asks.

use jiff::Timestamp;
use kube::Client;
use serde_json::{Value, json};

use super::evidence::Evidence;
use super::memory::Memory;
use super::situation::{BgpPassword, Platform, Pod, Root, Seen, Situation, Worker, keeps};
use crate::aggregator::look;
use crate::aggregator::report::{ClusterFinding, ClusterReport, NodeReport, Ready, Scope};
use crate::api::{Api, call, get, list, said};
use crate::checks::Severity;
use crate::cli::report::{Asked, ask};
use crate::config::ClusterLimits;
use crate::verdict::{AGENT_STALE, WorkerState, annotation};

/// Not Ready for less, in seconds, is routine (catalogue H1).
const ROUTINE: i64 = 120;
/// calico-node and calico-kube-controllers.
const CALICO: &str = "labelSelector=k8s-app%20in%20%28calico-node%2Ccalico-kube-controllers%29";
/// Where Calico's operator puts its parts, and where they were before.
pub(super) const NEW_HOME: &str = "calico-system";
pub(super) const OLD_HOME: &str = "kube-system";
/// Role and RoleBinding that let calico-node read the password.
pub(super) const ACCESS: &str = "bgp-secret-access";

/// What was seen, and what else there is to say about it.
pub(super) struct Look {
    pub(super) situation: Situation,
    /// The Node itself.
    pub(super) node: Value,
    /// What could not be seen, for people.
    pub(super) notes: Vec<String>,
}

/// Looks at everything. An error is for people, and means that nothing can be said.
pub(super) async fn at(api: &Api, namespace: &str, name: &str, evidence: &Evidence) -> Result<Option<Look>, String> {
    let client = &api.unary;
    let cannot = |what: &str, error: &kube::Error| format!("API server {}: {what}: {}", api.server, said(error));
    let node = match get(client, &format!("/api/v1/nodes/{name}")).await {
        Ok(node) => node,
        Err(kube::Error::Api(status)) if status.code == 404 => return Ok(None),
        Err(error) => return Err(cannot("the node", &error)),
    };
    let looked = look(client, namespace).await.map_err(|error| cannot("nodes", &error))?;
    let (mut own, mut notes) = (looked.report(Some(name)), Vec::new());
    let Some(report) = own.nodes.pop() else { return Ok(None) };
    match ask(client, namespace, Some(name)).await {
        Ok(Asked::Report(of_the_aggregator)) => widen(&mut own, *of_the_aggregator),
        Ok(Asked::NoSuchNode) => notes.push("the aggregator does not know this node yet".to_owned()),
        Ok(Asked::NotThere(why)) | Err(why) => {
            notes.push(format!("{why}; findings about the cluster are not known"));
        }
    }
    let peers = looked.peers();
    let twin = peers.iter().find(|peer| peer.name == name).and_then(|peer| peer.twin.clone());
    let others: Vec<_> = peers.into_iter().filter(|peer| peer.name != name).collect();
    let calico = pods(client, "/api/v1/pods", CALICO).await;
    let on_it = pods(client, "/api/v1/pods", &format!("fieldSelector=spec.nodeName%3D{name}")).await;
    let to_move = on_it.map(|pods| pods.into_iter().filter(Pod::has_to_move).collect::<Vec<_>>());
    let budgets = budgets(client, &to_move).await;
    let bgp = if bgp_matters(&report, &own.cluster) { bgp(client, &calico).await? } else { None };
    let workers = own.workers.total;
    let now = Timestamp::now();
    let mut situation = Situation {
        now,
        root: root(&report, &own, bgp.as_ref()),
        codes: report.findings.iter().map(|finding| finding.code.clone()).collect(),
        around: own.cluster.iter().map(|finding| finding.code.clone()).collect(),
        node: worker(&node, report, twin),
        others,
        calico,
        to_move,
        budgets,
        ingress: ingress(client).await,
        bgp,
        evidence: evidence.clone(),
        lacks: Vec::new(),
    };
    if situation.root.is_none() {
        situation.root = calico_itself(&situation, workers);
    }
    situation.lacks = lacks(client, &situation).await.map_err(|error| cannot("your rights", &error))?;
    Ok(Some(Look { situation, node, notes }))
}

/// The aggregator has been looking all the time and at more; what of the two is wider counts.
fn widen(own: &mut ClusterReport, other: ClusterReport) {
    own.cluster = other.cluster;
    for theirs in other.findings {
        match own.findings.iter_mut().find(|ours| ours.code == theirs.code) {
            Some(ours) if ours.scope < theirs.scope => *ours = theirs,
            Some(_) => {}
            None => own.findings.push(theirs),
        }
    }
}

fn worker(node: &Value, report: NodeReport, twin: Option<String>) -> Worker {
    let ready = report.ready.as_ref();
    let words = |ready: &Ready| format!("{} ({})", ready.status.as_str(), ready.reason);
    let words = ready.map_or_else(|| "not said".to_owned(), words);
    let unknown =
        report.settling || report.state == WorkerState::Unknown || report.reason.as_deref() == Some(AGENT_STALE);
    let or = |text: Option<String>, other: &str| text.unwrap_or_else(|| other.to_owned());
    Worker {
        platform: Platform::of(node),
        ready: words,
        zone: report.zone,
        pool: report.pool,
        cordoned: report.cordoned,
        deleting: report.deleting,
        twin,
        agent: report.agent.state,
        unknown,
        says: (
            or(report.detail, "its agent has not told its state"),
            or(report.next, "wait for its first look, or read its agent's log"),
        ),
        boot: node["status"]["nodeInfo"]["bootID"].as_str().unwrap_or_default().to_owned(),
        memory: node["metadata"]["annotations"][annotation::REPAIR].as_str().and_then(Memory::parse),
        name: report.name,
    }
}

/// What is to be repaired: what the cluster says of this worker where that is the cause, else what the worker says itself.
fn root(report: &NodeReport, cluster: &ClusterReport, bgp: Option<&BgpPassword>) -> Option<Root> {
    let own = report.findings.iter().filter(|finding| finding.caused_by.is_none() && finding.severity > Severity::Info);
    let own =
        own.max_by_key(|finding| (finding.severity, finding.code == report.reason.as_deref().unwrap_or_default()));
    let own = own.map(|finding| {
        let count = cluster.findings.iter().find(|count| count.code == finding.code);
        Root {
            code: finding.code.clone(),
            severity: finding.severity,
            since: finding.since,
            detail: finding.detail.clone(),
            scope: count.map_or(Scope::None, |count| count.scope),
            counted: count.map_or(1, |count| count.counted),
            eligible: count.map_or(cluster.workers.total, |count| count.eligible),
            next: count.and_then(|count| count.next.clone()),
        }
    });
    if bgp.is_some_and(BgpPassword::is_missing) {
        let since = own.as_ref().map_or(cluster.generated_at, |own| own.since);
        let detail = "calico-node runs in calico-system and cannot read the password of BGP's peers".to_owned();
        let told = cluster.cluster.iter().find(|finding| finding.code == "BgpPasswordSecretMissing");
        let base = told.map(|finding| of_the_cluster(finding, cluster.generated_at));
        let base = base.or_else(|| own.map(|own| Root { detail, ..own }))?;
        return Some(Root { code: "BgpPasswordSecretMissing".to_owned(), since: since.min(base.since), ..base });
    }
    let around = cluster.cluster.iter().find(|finding| finding.severity > Severity::Info);
    own.or_else(|| around.map(|finding| of_the_cluster(finding, cluster.generated_at)))
}

fn of_the_cluster(finding: &ClusterFinding, now: Timestamp) -> Root {
    Root {
        code: finding.code.clone(),
        severity: finding.severity,
        since: finding.since.unwrap_or(now),
        detail: finding.detail.clone(),
        // Its code says on how many it is.
        scope: Scope::None,
        counted: finding.nodes,
        eligible: finding.nodes,
        next: Some(finding.next.clone()),
    }
}

/// Where nobody tells of anything, calico-node's own Pod may: not Ready for longer than an update takes.
fn calico_itself(situation: &Situation, workers: usize) -> Option<Root> {
    let late = |pod: &Pod| {
        !pod.ready && pod.since.is_some_and(|since| situation.now.as_second() - since.as_second() >= ROUTINE)
    };
    let own = situation.calico_node().filter(|pod| late(pod))?;
    let pods = situation.calico.as_ref().ok()?.iter();
    let counted = pods.filter(|pod| pod.app == "calico-node" && late(pod)).count();
    Some(Root {
        code: "CalicoNodeFailingOnNode".to_owned(),
        severity: Severity::Critical,
        since: own.since?,
        detail: format!("calico-node on this node has not been Ready for more than {ROUTINE} s"),
        scope: Scope::of(counted, workers, &ClusterLimits::default()),
        counted,
        eligible: workers,
        next: None,
    })
}

async fn pods(client: &Client, path: &str, query: &str) -> Seen<Vec<Pod>> {
    let mut pods = Vec::new();
    let listed = list(client, path, query, &mut |pod| pods.push(Pod::read(pod))).await;
    listed.map(|()| pods).map_err(|error| format!("pods cannot be listed: {}", said(&error)))
}

async fn budgets(client: &Client, to_move: &Seen<Vec<Pod>>) -> Seen<Vec<String>> {
    let pods = to_move.as_ref().map_err(Clone::clone)?;
    let mut holding = Vec::new();
    let mut each = |budget: &Value| {
        let name = budget["metadata"]["name"].as_str().unwrap_or_default();
        let held = pods.iter().filter(|pod| keeps(budget, pod));
        holding.extend(held.map(|pod| format!("{name} holds {}/{}", pod.namespace, pod.name)));
    };
    let listed = list(client, "/apis/policy/v1/poddisruptionbudgets", "", &mut each).await;
    listed.map(|()| holding).map_err(|error| format!("budgets cannot be listed: {}", said(&error)))
}

async fn ingress(client: &Client) -> Seen<bool> {
    let some = get(client, "/apis/networking.k8s.io/v1/ingresses?limit=1").await;
    let some = some.map_err(|error| format!("Ingresses cannot be listed: {}", said(&error)))?;
    Ok(some["items"].as_array().is_some_and(|items| !items.is_empty()))
}

fn bgp_matters(report: &NodeReport, cluster: &[ClusterFinding]) -> bool {
    report.findings.iter().any(|finding| finding.code.starts_with("Bgp"))
        || cluster.iter().any(|finding| finding.code == "BgpPasswordSecretMissing")
}

/// Whether the password is where calico-node runs. Nothing of a Secret but that it is there is asked for.
async fn bgp(client: &Client, calico: &Seen<Vec<Pod>>) -> Result<Option<BgpPassword>, String> {
    let moved =
        calico.as_ref().is_ok_and(|pods| pods.iter().any(|pod| pod.app == "calico-node" && pod.namespace == NEW_HOME));
    if !moved {
        return Ok(None);
    }
    let mut secret = None;
    for group in ["crd.projectcalico.org/v1", "projectcalico.org/v3"] {
        if let Ok(configuration) = get(client, &format!("/apis/{group}/bgpconfigurations/default")).await {
            secret = configuration["spec"]["nodeMeshPassword"]["secretKeyRef"]["name"].as_str().map(str::to_owned);
            break;
        }
    }
    let Some(secret) = secret else { return Ok(None) };
    let rbac = format!("/apis/rbac.authorization.k8s.io/v1/namespaces/{NEW_HOME}");
    Ok(Some(BgpPassword {
        there: exists(client, &format!("/api/v1/namespaces/{OLD_HOME}/secrets/{secret}")).await?,
        here: exists(client, &format!("/api/v1/namespaces/{NEW_HOME}/secrets/{secret}")).await?,
        readable: exists(client, &format!("{rbac}/roles/{ACCESS}")).await?
            && exists(client, &format!("{rbac}/rolebindings/{ACCESS}")).await?,
        secret,
    }))
}

async fn exists(client: &Client, path: &str) -> Result<bool, String> {
    let request = http::Request::get(path)
        .header(http::header::ACCEPT, "application/json;as=PartialObjectMetadata;g=meta.k8s.io;v=v1")
        .body(Vec::new())
        .map_err(|error| error.to_string())?;
    match call(client, request).await {
        Ok(_) => Ok(true),
        Err(kube::Error::Api(status)) if status.code == 404 => Ok(false),
        Err(error) => Err(said(&error)),
    }
}

/// What this command itself would need to do, and the caller may not.
async fn lacks(client: &Client, situation: &Situation) -> kube::Result<Vec<String>> {
    let mut wanted = vec![("patch", "", "nodes", "")];
    let calico = situation.calico_node();
    if let Some(pod) = calico {
        wanted.push(("delete", "", "pods", &pod.namespace));
    }
    let rbac = "rbac.authorization.k8s.io";
    if situation.bgp.is_some() {
        wanted.extend([("get", "", "secrets", OLD_HOME), ("create", "", "secrets", NEW_HOME)]);
        wanted.extend(["roles", "rolebindings"].map(|what| ("create", rbac, what, NEW_HOME)));
        wanted.extend(["roles", "rolebindings"].map(|what| ("patch", rbac, what, NEW_HOME)));
    }
    let mut lacks = Vec::new();
    for (verb, group, resource, namespace) in wanted {
        let attributes = json!({"verb": verb, "group": group, "resource": resource, "namespace": namespace});
        let review = json!({"apiVersion": "authorization.k8s.io/v1", "kind": "SelfSubjectAccessReview",
            "spec": {"resourceAttributes": attributes}});
        let request = http::Request::post("/apis/authorization.k8s.io/v1/selfsubjectaccessreviews")
            .header(http::header::CONTENT_TYPE, "application/json")
            .body(review.to_string().into_bytes())
            .map_err(kube::Error::HttpError)?;
        if call(client, request).await?["status"]["allowed"] != true {
            let place = if namespace.is_empty() { String::new() } else { format!(" in {namespace}") };
            lacks.push(format!("{verb} {resource}{place}"));
        }
    }
    Ok(lacks)
}

/// Who asks, as the API server knows them; nothing where it does not say (before 1.28).
pub(super) async fn who(client: &Client) -> Option<String> {
    let review = json!({"apiVersion": "authentication.k8s.io/v1", "kind": "SelfSubjectReview"});
    let request = http::Request::post("/apis/authentication.k8s.io/v1/selfsubjectreviews")
        .header(http::header::CONTENT_TYPE, "application/json")
        .body(review.to_string().into_bytes())
        .ok()?;
    call(client, request).await.ok()?["status"]["userInfo"]["username"].as_str().map(str::to_owned)
}
