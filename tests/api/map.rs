//! The map of the cluster, from Calico's objects in the API server to the agent on a node, and what the aggregator finds
//! out on the way.

use std::time::Duration;

use anyhow::{Context, Result, ensure};
use serde_json::{Value, json};

use crate::bench::{Bench, Running, rendered, soon};
use crate::support::control_plane::{ADDRESS, URL};
use crate::support::shell;
use crate::support::wait::eventually;

/// Longer than what is about to be set up is waited for.
const SET_UP: Duration = Duration::from_secs(120);

/// Calico's kinds, without their schemas.
pub(crate) fn calico(bench: &Bench) -> Result<()> {
    let kinds =
        [("blockaffinities", "BlockAffinity"), ("ippools", "IPPool"), ("bgpconfigurations", "BGPConfiguration")];
    kinds.into_iter().try_for_each(|(plural, kind)| bench.add_calico_kind(plural, kind))
}

pub(crate) fn object(kind: &str, name: &str, spec: &Value) -> Value {
    json!({"apiVersion": "crd.projectcalico.org/v1", "kind": kind, "metadata": {"name": name}, "spec": spec})
}

/// What Calico and the cluster's DNS would write.
fn fill(bench: &Bench) -> Result<()> {
    let block = |name: &str, node: &str, cidr: &str, state: &str, deleted: &str| {
        object("BlockAffinity", name, &json!({"node": node, "cidr": cidr, "state": state, "deleted": deleted}))
    };
    let dns = json!({"k8s-app": "kube-dns", "kubernetes.io/service-name": "kube-dns"});
    let items = json!([
        block("m1-a", "m1", "172.30.1.0/26", "confirmed", "false"),
        block("m2-a", "m2", "172.30.2.0/26", "confirmed", "false"),
        block("m2-b", "m2", "172.30.3.0/26", "pending", "false"),
        block("m2-c", "m2", "172.30.4.0/26", "confirmed", "true"),
        object("BlockAffinity", "damaged", &json!({"node": "m2", "cidr": "?", "state": "confirmed", "deleted": {"a": 1}})),
        object("IPPool", "default-ipv4-ippool", &json!({"cidr": "172.30.0.0/16", "ipipMode": "Always", "vxlanMode": "Never"})),
        object("BGPConfiguration", "default", &json!({"nodeToNodeMeshEnabled": true, "nodeMeshPassword": {
            "secretKeyRef": {"name": "calico-bgp-password", "key": "password"}}})),
        {"apiVersion": "v1", "kind": "ServiceAccount", "metadata": {"name": "calico-node", "namespace": "kube-system"}},
        {"apiVersion": "v1", "kind": "Service", "metadata": {"name": "kube-dns", "namespace": "kube-system", "labels": dns},
            "spec": {"clusterIP": "10.96.0.10", "ports": [{"name": "dns", "port": 53, "protocol": "UDP"}]}},
        {"apiVersion": "discovery.k8s.io/v1", "kind": "EndpointSlice", "addressType": "IPv4",
            "metadata": {"name": "kube-dns-1", "namespace": "kube-system", "labels": dns},
            "ports": [{"name": "dns", "port": 53, "protocol": "UDP"}],
            "endpoints": [{"addresses": ["172.30.1.7"], "conditions": {"ready": true}},
                {"addresses": ["172.30.1.8"], "conditions": {"ready": false}}]},
    ]);
    bench.apply(&json!({"apiVersion": "v1", "kind": "List", "items": items}).to_string())?;
    for node in ["m1", "m2"] {
        bench.add_node(node, &json!({}))?;
        calico_node(bench, node)?;
    }
    // On one of the two, and not on the first.
    let ended = json!({"exitCode": 1, "reason": "Error", "message": "cannot write /host/opt/cni/bin/calico"});
    let failed = json!([{
        "name": "install-cni", "image": "x", "imageID": "", "ready": false, "restartCount": 4,
        "state": {"waiting": {"reason": "CrashLoopBackOff"}}, "lastState": {"terminated": ended},
    }]);
    let path = "PATCH strategic /api/v1/namespaces/kube-system/pods/calico-node-m2/status";
    bench.admin(path, &json!({"status": {"initContainerStatuses": failed}}))?;
    Ok(())
}

fn calico_node(bench: &Bench, node: &str) -> Result<()> {
    let pod = json!({
        "apiVersion": "v1", "kind": "Pod",
        "metadata": {"name": format!("calico-node-{node}"), "namespace": "kube-system", "labels": {"k8s-app": "calico-node"}},
        "spec": {"serviceAccountName": "calico-node", "nodeName": node, "containers": [{"name": "calico-node", "image": "x"}],
            "initContainers": [{"name": "install-cni", "image": "x"}]},
    });
    bench.admin("POST /api/v1/namespaces/kube-system/pods", &pod)?;
    Ok(())
}

/// The Service leads to an aggregator on this port.
pub(crate) fn leads_to(bench: &Bench, port: u32) -> Result<()> {
    let pod = "PATCH strategic /api/v1/namespaces/nodevitals/pods/aggregator-m/status";
    bench.admin(pod, &json!({"status": {"podIP": ADDRESS, "podIPs": [{"ip": ADDRESS}]}}))?;
    let name = "nodevitals-aggregator";
    let meta = json!({"name": name, "namespace": "nodevitals", "labels": {"kubernetes.io/service-name": name}});
    let port = json!({"name": "http", "port": port, "protocol": "TCP"});
    let pod = json!({"kind": "Pod", "namespace": "nodevitals", "name": "aggregator-m"});
    let old = json!({
        "apiVersion": "v1", "kind": "Endpoints", "metadata": meta,
        "subsets": [{"addresses": [{"ip": ADDRESS, "targetRef": pod}], "ports": [port]}],
    });
    let new = json!({
        "apiVersion": "discovery.k8s.io/v1", "kind": "EndpointSlice", "metadata": meta, "addressType": "IPv4",
        "endpoints": [{"addresses": [ADDRESS], "conditions": {"ready": true}, "targetRef": pod}], "ports": [port],
    });
    bench.apply(&json!({"apiVersion": "v1", "kind": "List", "items": [old, new]}).to_string())?;
    Ok(())
}

/// What the agent says that it knows of the cluster.
fn known(agent: &Running) -> Result<Value> {
    let page: Value = serde_json::from_str(&agent.page("/findings")?)?;
    Ok(page["cluster"].clone())
}

#[test]
fn agents_know_the_cluster_through_the_aggregator() -> Result<()> {
    let bench = Bench::take()?;
    calico(&bench)?;
    fill(&bench)?;
    bench.add_agent_pod("m1")?;
    bench.add_pod("aggregator-m", "aggregator", "m2")?;
    let agent = bench.agent("m1", "agent-m1", &["--map-interval", "1"])?;
    soon("it looks", || agent.page("/readyz"));
    soon("nobody answers", || agent.said("cannot ask the aggregator"));
    assert_eq!(known(&agent)?, Value::Null);

    let aggregator = bench.aggregator("aggregator-m")?;
    let map = soon("the map", || Ok(serde_json::from_str::<Value>(&aggregator.page("/api/v1/map?node=m1")?)?));
    drawn(&map)?;
    leads_to(&bench, aggregator.port)?;
    let expected =
        json!({"nodes": 2, "blocks": 2, "pools": 1, "services": 2, "fullMesh": true, "unconfirmedSince": null});
    soon("the agent has it", || {
        let known = known(&agent)?;
        ensure!(known == expected, "{known}");
        Ok(())
    });
    not_sent_again(&bench)?;
    bench.add_node("m3", &json!({}))?;
    soon("another node", || nodes(&agent, 3));
    found_and_put_right(&bench, &aggregator)?;
    without_permission(&bench, &agent)?;

    let writes = bench.writes_on("m1", crate::bench::AGENT)?.len();
    aggregator.end()?;
    drop(aggregator);
    soon("nobody confirms it", || {
        let known = known(&agent)?;
        ensure!(known["unconfirmedSince"].is_string() && known["nodes"] == 3, "{known}");
        Ok(())
    });
    assert_eq!(bench.writes_on("m1", crate::bench::AGENT)?.len(), writes, "the Node says what it said");
    no_calico(&bench)
}

/// Takes Calico's kinds and objects away.
pub(crate) fn no_calico(bench: &Bench) -> Result<()> {
    let kinds = ["blockaffinities", "ippools", "bgpconfigurations"].map(|kind| format!("{kind}.crd.projectcalico.org"));
    bench.kubectl(&[&["delete", "crd"][..], &kinds.each_ref().map(String::as_str)].concat())?;
    Ok(())
}

/// The API server's proxy passes on what the map is known by.
fn not_sent_again(bench: &Bench) -> Result<()> {
    let token = bench.token("agent", "agent-m1")?;
    let ask = |known: &str| {
        let mut curl = bench.command_in("curl");
        curl.args(["--silent", "--show-error", "--max-time", "10", "--dump-header", "-", "--cacert"])
            .arg(bench.ca_path());
        curl.args([
            "--header",
            &format!("Authorization: Bearer {token}"),
            "--header",
            &format!("If-None-Match: {known}"),
        ]);
        let path = "api/v1/namespaces/nodevitals/services/nodevitals-aggregator:http/proxy/api/v1/map?node=m1";
        shell::read(curl.arg(format!("{URL}/{path}")))
    };
    let whole = ask("\"other\"")?;
    let etag = whole.lines().find_map(|line| line.strip_prefix("etag: ")).with_context(|| whole.clone())?.trim();
    assert!(whole.contains("\"own\":\"m1\""), "{whole}");
    let same = ask(etag)?;
    assert!(same.contains(" 304 ") && !same.contains("\"own\""), "{same}");
    Ok(())
}

fn nodes(agent: &Running, expected: usize) -> Result<()> {
    let known = known(agent)?;
    ensure!(known["nodes"] == expected && known["unconfirmedSince"].is_null(), "{known}");
    Ok(())
}

/// The map holds what was written, and nothing that is damaged, pending or given back.
fn drawn(map: &Value) -> Result<()> {
    assert_eq!((&map["own"], &map["fullMesh"]), (&json!("m1"), &json!(true)), "{map}");
    let blocks: Vec<_> = map["nodes"].as_array().context("nodes")?.iter().map(|node| node["blocks"].clone()).collect();
    assert_eq!(blocks, [json!(["172.30.1.0/26"]), json!(["172.30.2.0/26"])]);
    assert_eq!(map["nodes"][0]["addresses"], json!(["10.0.0.1"]));
    assert_eq!(map["pools"][0]["ipip"], "always", "{map}");
    let services = map["services"].as_array().context("services")?;
    let api = &services[0];
    assert_eq!((&api["name"], &api["clusterIps"]), (&json!("kubernetes"), &json!(["10.96.0.1"])));
    assert_eq!(api["ports"][0]["endpoints"], json!([[ADDRESS, 6443]]), "{api}");
    assert_eq!(services[1]["ports"][0]["endpoints"], json!([["172.30.1.7", 53]]), "{}", services[1]);
    Ok(())
}

pub(crate) fn findings(aggregator: &Running) -> Result<Vec<Value>> {
    let report: Value = serde_json::from_str(&aggregator.page("/api/v1/report")?)?;
    Ok(report["cluster"].as_array().cloned().unwrap_or_default())
}

/// What no worker can see is in the report, and goes when it is put right.
fn found_and_put_right(bench: &Bench, aggregator: &Running) -> Result<()> {
    let all = eventually("both are found", SET_UP, || {
        let all = findings(aggregator)?;
        ensure!(all.len() == 2, "{all:#?}");
        Ok(all)
    });
    assert_eq!((&all[0]["code"], &all[0]["workers"]), (&json!("BgpPasswordSecretMissing"), &json!(["m1", "m2"])));
    let detail = all[0]["detail"].as_str().unwrap_or_default();
    assert!(detail.contains("kube-system/calico-node may not get, list, watch it"), "{detail}");
    assert_eq!((&all[1]["code"], &all[1]["workers"]), (&json!("CalicoInitFailed"), &json!(["m2"])));
    assert!(
        all[1]["detail"].as_str().is_some_and(|it| it.contains("cannot write /host/opt/cni/bin/calico")),
        "{}",
        all[1]
    );
    let metrics = aggregator.check_metrics()?;
    let line = r#"nodevitals_cluster_finding{code="BgpPasswordSecretMissing",severity="critical"} 2"#;
    assert!(metrics.contains(line), "{metrics}");
    let writes = bench.writes_by(crate::bench::AGGREGATOR)?;
    assert!(writes.iter().all(|write| write["objectRef"]["resource"] != "secrets"), "it touches no Secret");

    // With the optional permission it sees that the Secret is missing, too.
    let optional = include_str!("../../deploy/optional/bgp-secret.yaml").replace("calico-system", "kube-system");
    bench.apply(&optional)?;
    eventually("it is missed", SET_UP, || {
        let all = findings(aggregator)?;
        ensure!(all[0]["detail"].as_str().is_some_and(|it| it.contains("does not exist there, and")), "{}", all[0]);
        Ok(())
    });
    let secret = ["create", "secret", "generic", "calico-bgp-password", "--namespace", "kube-system"];
    bench.kubectl(&[&secret[..], &["--from-literal=password=x"]].concat())?;
    let role = ["create", "role", "bgp-secret-access", "--namespace", "kube-system", "--verb=get,list,watch"];
    bench.kubectl(&[&role[..], &["--resource=secrets", "--resource-name=calico-bgp-password"]].concat())?;
    // To the group of all service accounts there: that counts as well.
    let binding =
        ["create", "rolebinding", "bgp-secret-access", "--namespace", "kube-system", "--role=bgp-secret-access"];
    bench.kubectl(&[&binding[..], &["--group=system:serviceaccounts:kube-system"]].concat())?;
    let done = json!([{"name": "install-cni", "image": "x", "imageID": "", "ready": true, "restartCount": 5,
        "state": {"terminated": {"exitCode": 0, "reason": "Completed"}}}]);
    let path = "PATCH strategic /api/v1/namespaces/kube-system/pods/calico-node-m2/status";
    bench.admin(path, &json!({"status": {"initContainerStatuses": done}}))?;
    eventually("both are over", SET_UP, || {
        let all = findings(aggregator)?;
        ensure!(all.is_empty(), "{all:#?}");
        Ok(())
    });
    for (kind, name) in [
        ("rolebinding", "bgp-secret-access"),
        ("role", "bgp-secret-access"),
        ("rolebinding", "nodevitals-aggregator-bgp-secret"),
        ("role", "nodevitals-aggregator-bgp-secret"),
        ("secret", "calico-bgp-password"),
    ] {
        bench.kubectl(&["delete", kind, name, "--namespace", "kube-system"])?;
    }
    Ok(())
}

/// An agent that may not ask says so, keeps what it has, and goes on when it may.
fn without_permission(bench: &Bench, agent: &Running) -> Result<()> {
    bench.kubectl(&["delete", "rolebinding", "nodevitals-agent", "--namespace", "nodevitals"])?;
    let line = soon("the refusal is told", || agent.said("403: no permission to ask the aggregator"));
    assert!(line.to_string().contains("deploy/rbac-agent.yaml"), "{line}");
    assert_eq!(known(agent)?["nodes"], 3);
    bench.apply(&rendered()?)?;
    soon("it is confirmed again", || nodes(agent, 3));
    Ok(())
}
