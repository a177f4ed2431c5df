//! Aggregators that may not look at one kind after the other, on a real API server that refuses them (403): what is wrong all the
//! same is neither told nor called well, but said to be unknown; all the rest is told; and it comes back with the right.

use std::time::Duration;

use anyhow::{Context, Result, ensure};
use serde_json::{Value, json};

use crate::bench::{Bench, Running, now, soon};
use crate::inventory::{GROUP, Planted, WEBHOOKS, guarded, webhooks};
use crate::map::object;
use crate::support::control_plane::Bound;
use crate::support::wait::eventually;

const ROLES: &str = "/apis/rbac.authorization.k8s.io/v1/clusterroles";
/// Where these aggregators' accounts are.
const NAMESPACE: &str = "denied";
/// What is denied is asked for again after a minute, and some of it is read once a minute.
const AGAIN: Duration = Duration::from_secs(240);

/// A kind that an aggregator may not look at.
struct Kind {
    /// The resource that is taken out of its role.
    resource: &'static str,
    /// What it says that it cannot look at.
    what: &'static str,
    /// What is planted and needs that kind.
    code: &'static str,
}

const fn kind(resource: &'static str, code: &'static str) -> Kind {
    Kind { resource, what: resource, code }
}

const KINDS: [Kind; 10] = [
    kind("pods", "CalicoNodeFailingOnNode"),
    kind("events", "WebhookBlocksSystemPods"),
    kind("blockaffinities", "IpBlockConflict"),
    kind("ippools", "ClusterIpPoolExhausted"),
    kind("ipamblocks", "ClusterIpPoolExhausted"),
    kind("hostendpoints", "HostEndpointMissing"),
    kind("felixconfigurations", "CalicoConfigDrift"),
    kind("validatingwebhookconfigurations", "WebhookRisk"),
    Kind { resource: "services", what: "services of webhooks", code: "WebhookRisk" },
    Kind { resource: "subjectaccessreviews", what: "access to the BGP password", code: "BgpPasswordSecretMissing" },
];

/// Everything is wrong that is told by these kinds.
fn plant(bench: &Bench) -> Result<Planted<'_>> {
    // calico-node fails on one of three workers, and one Pod answers for the webhook.
    let planted = guarded(bench)?;
    bench.admin(&format!("POST {WEBHOOKS}"), &webhooks())?;
    let owner =
        json!({"apiVersion": "apps/v1", "kind": "DaemonSet", "name": "calico-node", "namespace": "kube-system"});
    let event = json!({"apiVersion": "v1", "kind": "Event", "metadata": {"name": "denied", "namespace": "kube-system"},
        "involvedObject": owner, "reason": "FailedCreate", "type": "Warning", "firstTimestamp": now(), "lastTimestamp": now(), "count": 3,
        "message": "Error creating: Internal error occurred: failed calling webhook \"other.example\": no endpoints available"});
    bench.admin("POST /api/v1/namespaces/kube-system/events", &event)?;
    // One block, which is full, is all that there is.
    let pool = object("IPPool", "default-ipv4-ippool", &json!({"cidr": "172.30.0.0/30", "blockSize": 30}));
    planted.block(0, "v0", 4)?;
    let affinity = |node: &str| {
        let spec = json!({"node": node, "cidr": "172.30.0.0/30", "state": "confirmed", "deleted": "false"});
        object("BlockAffinity", &format!("{node}-a"), &spec)
    };
    let host = |node: &str| object("HostEndpoint", node, &json!({"node": node, "expectedIPs": ["10.0.0.1"]}));
    let items = json!([pool, affinity("v0"), affinity("v1"), host("v0"), host("v1")]);
    bench.apply(&json!({"apiVersion": "v1", "kind": "List", "items": items}).to_string())?;
    let mut felix = object("FelixConfiguration", "default", &json!({}));
    felix["metadata"]["annotations"] = json!({"created-by": "IBMCloudKubernetesService"});
    bench.admin(&format!("POST {GROUP}/felixconfigurations?fieldManager=cluster-updater"), &felix)?;
    let edit = format!("PATCH merge {GROUP}/felixconfigurations/default?fieldManager=kubectl-edit");
    bench.admin(&edit, &json!({"spec": {"bpfEnabled": true}}))?;
    // No role lets calico-node read it.
    let password = json!({"secretKeyRef": {"name": "calico-bgp-password", "key": "password"}});
    let bgp = object("BGPConfiguration", "default", &json!({"nodeMeshPassword": password}));
    bench.admin(&format!("POST {GROUP}/bgpconfigurations?fieldManager=cluster-updater"), &bgp)?;
    Ok(planted)
}

/// What all of them may do: the Roles of `deploy/`.
fn bind_roles(bench: &Bench) -> Result<()> {
    let namespace = json!({"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": NAMESPACE}});
    bench.apply(&namespace.to_string())?;
    let group = json!({"apiGroup": "rbac.authorization.k8s.io", "kind": "Group", "name": format!("system:serviceaccounts:{NAMESPACE}")});
    let all = bench.list("/apis/rbac.authorization.k8s.io/v1/rolebindings")?;
    let own = |binding: &&Value| binding["subjects"][0]["name"] == "nodevitals-aggregator";
    let mut bound = 0;
    for binding in all.iter().filter(own) {
        let meta = json!({"name": "denied", "namespace": binding["metadata"]["namespace"]});
        let name = format!("denied-{}", binding["roleRef"]["name"].as_str().context("a role")?);
        let mut copy = json!({"apiVersion": "rbac.authorization.k8s.io/v1", "kind": "RoleBinding", "metadata": meta,
            "roleRef": binding["roleRef"], "subjects": [group]});
        copy["metadata"]["name"] = name.into();
        bench.apply(&copy.to_string())?;
        bound += 1;
    }
    ensure!(bound >= 7, "{all:#?}");
    Ok(())
}

/// The rules without this resource.
fn without(rules: &[Value], resource: &str) -> Vec<Value> {
    let mut less = rules.to_vec();
    for rule in &mut less {
        if let Some(resources) = rule["resources"].as_array_mut() {
            resources.retain(|one| one != resource);
        }
    }
    less.retain(|rule| rule["resources"].as_array().is_some_and(|all| !all.is_empty()));
    less
}

fn role(kind: &Kind) -> String {
    format!("denied-{}", kind.resource)
}

/// An aggregator with an account of its own that may all but look at this.
fn start<'a>(bench: &'a Bench, kind: &Kind, rules: &[Value]) -> Result<Running<'a>> {
    let name = role(kind);
    let less = without(rules, kind.resource);
    ensure!(less != rules, "no rule for {}", kind.resource);
    let role = json!({"apiVersion": "rbac.authorization.k8s.io/v1", "kind": "ClusterRole", "metadata": {"name": name}, "rules": less});
    bench.apply(&role.to_string())?;
    bench.kubectl(&["create", "serviceaccount", &name, "--namespace", NAMESPACE])?;
    let account = format!("--serviceaccount={NAMESPACE}:{name}");
    bench.kubectl(&["create", "clusterrolebinding", &name, &format!("--clusterrole={name}"), &account])?;
    let token = bench.service_account_token(NAMESPACE, &name, Bound::Nothing)?;
    // What is denied once is asked for only after a while.
    for path in ["nodes", "namespaces/kube-system/services"] {
        soon("its rights are known", || {
            let answer = bench.send(&token, &format!("GET /api/v1/{path}?limit=1"), &Value::Null)?;
            ensure!(answer.code == if path == kind.resource { 403 } else { 200 }, "{answer:?}");
            Ok(())
        });
    }
    let kubeconfig = bench.service_account_kubeconfig(NAMESPACE, &name, Bound::Nothing)?;
    let kubeconfig = kubeconfig.to_str().context("UTF-8")?;
    let limits = bench.config(&name, "settlingSeconds: 0\n")?;
    let more = ["--identity", &name, "--kubeconfig", kubeconfig, "--config", &limits];
    bench.start_by(&[], &[&["aggregator"][..], &more].concat())
}

/// Codes that are told about the cluster, and what is not known: what could not be looked at, why, and the codes.
fn told(aggregator: &Running) -> Result<(Vec<String>, Value)> {
    let report: Value = serde_json::from_str(&aggregator.page("/api/v1/report")?)?;
    ensure!(report["view"]["complete"] == true, "{}", report["view"]);
    let codes = report["cluster"].as_array().into_iter().flatten().filter_map(|it| it["code"].as_str());
    Ok((codes.map(str::to_owned).collect(), report["view"]["cannotLook"].clone()))
}

/// Just this kind is not seen, and its code is unknown and not told; what else is planted is told, or unknown as well.
fn lacks(aggregator: &Running, lacking: &Kind) -> Result<()> {
    let (codes, cannot) = told(aggregator)?;
    ensure!(cannot.as_array().is_some_and(|all| all.len() == 1), "{}: {cannot:#}", lacking.resource);
    let cannot = &cannot[0];
    ensure!(cannot["what"] == json!([lacking.what]), "{cannot:#}");
    ensure!(cannot["why"].as_str().is_some_and(|why| why.starts_with("no permission to ")), "{cannot:#}");
    let unknown = |code: &str| cannot["codes"].as_array().is_some_and(|all| all.contains(&json!(code)));
    ensure!(unknown(lacking.code), "{cannot:#}");
    let metrics = aggregator.page("/metrics")?;
    for Kind { code, .. } in &KINDS {
        let is_told = codes.iter().any(|told| told == code);
        // What several kinds are looked at for may be told of one and unknown of another.
        let expected = if *code == lacking.code { !is_told } else { is_told || unknown(code) };
        ensure!(expected, "{}: {code}: {codes:?}: {cannot:#}", lacking.resource);
        let said = metrics.contains(&format!("nodevitals_cluster_finding_unknown{{code=\"{code}\"}} 1"));
        let counted = metrics.contains(&format!("nodevitals_cluster_finding{{code=\"{code}\""));
        ensure!((said, counted) == (unknown(code), is_told), "{}: {code}: {metrics}", lacking.resource);
    }
    Ok(())
}

#[test]
fn what_each_right_that_is_missing_leaves_unknown_is_said_and_comes_back_with_it() -> Result<()> {
    let bench = Bench::take()?;
    let planted = plant(&bench)?;
    let whole = bench.admin(&format!("GET {ROLES}/nodevitals-aggregator"), &Value::Null)?;
    let rules = whole["rules"].as_array().context("rules")?;
    bind_roles(&bench)?;
    let all: Vec<(&Kind, Running)> =
        KINDS.iter().map(|kind| Ok((kind, start(&bench, kind, rules)?))).collect::<Result<_>>()?;
    for (kind, aggregator) in &all {
        eventually(kind.resource, AGAIN, || lacks(aggregator, kind));
    }

    for (kind, _) in &all {
        bench.admin(&format!("PATCH merge {ROLES}/{}", role(kind)), &json!({"rules": rules}))?;
    }
    for (kind, aggregator) in &all {
        eventually(&format!("{} may be looked at", kind.resource), AGAIN, || {
            let (codes, cannot) = told(aggregator)?;
            ensure!(cannot.is_null(), "{cannot:#}");
            let missing: Vec<&Kind> = KINDS.iter().filter(|kind| !codes.iter().any(|told| told == kind.code)).collect();
            ensure!(missing.is_empty(), "{:?} are not told", missing.iter().map(|kind| kind.code).collect::<Vec<_>>());
            ensure!(!aggregator.page("/metrics")?.contains("_unknown{code="), "{codes:?}");
            Ok(())
        });
    }
    bench.admin("DELETE /api/v1/namespaces/kube-system/events/denied", &Value::Null)?;
    drop(planted);
    Ok(())
}

/// Nobody knows of any worker, and it is said which right is missing, wherever one asks.
fn sees_no_nodes(aggregator: &Running) -> Result<()> {
    const WHY: &str = "no permission to list and watch nodes: the API server says 403";
    aggregator.said(WHY)?;
    let ready = aggregator.page("/readyz").err().context("it is ready")?.to_string();
    ensure!(ready.contains(&format!("the first list of the nodes is not complete yet: {WHY}")), "{ready}");
    let report: Value = serde_json::from_str(&aggregator.page("/api/v1/report")?)?;
    let (view, summary) = (&report["view"], &report["summary"]);
    ensure!(view["complete"] == false && view["since"].is_string(), "{view}");
    for said in [&view["why"], summary] {
        ensure!(said.as_str().is_some_and(|said| said.contains(WHY)), "{report:#}");
    }
    ensure!(report["nodes"] == json!([]) && report["findings"] == json!([]), "{report:#}");
    let metrics = aggregator.check_metrics()?;
    for line in ["nodevitals_aggregator_synced 0", r#"nodevitals_aggregator_cannot_look{resource="nodes"} 1"#] {
        ensure!(metrics.lines().any(|have| have == line), "{line}: {metrics}");
    }
    let map = aggregator.page("/api/v1/map?node=d1").err().context("a map of no nodes")?.to_string();
    ensure!(map.contains("the first list is not complete yet"), "{map}");
    Ok(())
}

#[test]
fn without_the_nodes_nothing_is_told_but_which_right_is_missing_and_all_is_with_it() -> Result<()> {
    let bench = Bench::take()?;
    bench.add_worker("d1", &json!({}))?;
    let whole = bench.admin(&format!("GET {ROLES}/nodevitals-aggregator"), &Value::Null)?;
    let rules = whole["rules"].as_array().context("rules")?;
    bind_roles(&bench)?;
    let nodes = kind("nodes", "");
    let aggregator = start(&bench, &nodes, rules)?;
    eventually("it says what it may not", AGAIN, || sees_no_nodes(&aggregator));
    aggregator.lives()?;

    bench.admin(&format!("PATCH merge {ROLES}/{}", role(&nodes)), &json!({"rules": rules}))?;
    eventually("nodes may be looked at", AGAIN, || {
        aggregator.page("/readyz")?;
        let report: Value = serde_json::from_str(&aggregator.page("/api/v1/report")?)?;
        ensure!(report["view"]["complete"] == true && report["view"]["why"].is_null(), "{report:#}");
        ensure!(report["nodes"][0]["name"] == "d1", "{report:#}");
        let metrics = aggregator.page("/metrics")?;
        ensure!(!metrics.contains("cannot_look{") && metrics.contains("nodevitals_aggregator_synced 1"), "{metrics}");
        Ok(())
    });
    Ok(())
}
