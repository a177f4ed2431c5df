//! What no worker can know, planted on a real API server with Calico's kinds: addresses that run out or leaked, blocks of two
//! nodes, configuration changed by hand, webhooks that could stop the system and the deadlock that one makes. Each is told, and is
//! over when it is put right.

use std::time::Duration;

use anyhow::{Context, Result, ensure};
use serde_json::{Value, json};

use crate::bench::{Bench, Running, condition, now, soon, told as told_by_agent};
use crate::map::object;
use crate::support::wait::eventually;

/// Blocks are read, and memory is written, once a minute.
pub(crate) const READ: Duration = Duration::from_secs(150);
pub(crate) const GROUP: &str = "/apis/crd.projectcalico.org/v1";
pub(crate) const WEBHOOKS: &str = "/apis/admissionregistration.k8s.io/v1/validatingwebhookconfigurations";
/// Ways out of a deadlock by a webhook.
const OUT: [&str; 4] = [
    "cordon v2 (no drain)",
    "set the webhook's timeoutSeconds to 1",
    "take nodes/status out of its rules (a namespaceSelector never excludes Nodes)",
    "delete ValidatingWebhookConfiguration guard",
];
const KINDS: [(&str, &str); 8] = [
    ("blockaffinities", "BlockAffinity"),
    ("ippools", "IPPool"),
    ("bgpconfigurations", "BGPConfiguration"),
    ("felixconfigurations", "FelixConfiguration"),
    ("ipamblocks", "IPAMBlock"),
    ("ipamconfigs", "IPAMConfig"),
    ("hostendpoints", "HostEndpoint"),
    ("clusterinformations", "ClusterInformation"),
];

/// Calico in a cluster of three workers.
pub(crate) struct Planted<'a>(&'a Bench);

impl<'a> Planted<'a> {
    /// Without the workers.
    pub(crate) fn kinds(bench: &'a Bench) -> Result<Self> {
        let planted = Self(bench);
        KINDS.into_iter().try_for_each(|(plural, kind)| bench.add_calico_kind(plural, kind))?;
        Ok(planted)
    }

    fn new(bench: &'a Bench) -> Result<Self> {
        let planted = Self::kinds(bench)?;
        for number in 0..3 {
            bench.add_node(&name(number), &json!({"agentpool": "red"}))?;
        }
        Ok(planted)
    }

    /// A block of four addresses, of which so many are taken by Pods on that node.
    pub(crate) fn block(&self, number: usize, node: &str, taken: usize) -> Result<()> {
        let allocations: Vec<Value> = (0..4).map(|at| if at < taken { json!(0) } else { Value::Null }).collect();
        let spec = json!({"cidr": format!("172.30.0.{}/30", 4 * number), "affinity": format!("host:{node}"), "allocations": allocations,
            "unallocated": (taken..4).collect::<Vec<_>>(), "deleted": false,
            "attributes": [{"handle_id": "k8s-pod-network.1", "secondary": {"node": node, "namespace": "default", "pod": "p"}}]});
        self.0.apply(&object("IPAMBlock", &format!("block-{number}"), &spec).to_string()).map(drop)
    }
}

impl Drop for Planted<'_> {
    /// Also after a failure: other tests have no Calico.
    fn drop(&mut self) {
        let kinds = KINDS.map(|(plural, _)| format!("{plural}.crd.projectcalico.org"));
        let delete = [&["delete", "crd", "--ignore-not-found"][..], &kinds.each_ref().map(String::as_str)].concat();
        let _ = self.0.kubectl(&delete);
        let _ = self.0.admin(&format!("DELETE {WEBHOOKS}/guard"), &Value::Null);
        let _ = self.0.kubectl(&["delete", "namespace", "guard", "--ignore-not-found", "--wait=false"]);
    }
}

fn name(number: usize) -> String {
    format!("v{number}")
}

/// The findings about the cluster by their codes.
fn finding(aggregator: &Running, code: &str) -> Result<Option<Value>> {
    let report: Value = serde_json::from_str(&aggregator.page("/api/v1/report")?)?;
    ensure!(report["view"]["complete"] == true, "{}", report["view"]);
    Ok(report["cluster"].as_array().into_iter().flatten().find(|finding| finding["code"] == code).cloned())
}

/// The finding of this code, which there has to be.
pub(crate) fn told(aggregator: &Running, code: &str) -> Result<Value> {
    finding(aggregator, code)?.with_context(|| format!("no {code}"))
}

/// That there is none of this code.
pub(crate) fn over(aggregator: &Running, code: &str) -> Result<()> {
    let finding = finding(aggregator, code)?;
    ensure!(finding.is_none(), "{finding:?}");
    Ok(())
}

/// The finding says this there.
pub(crate) fn says(finding: &Value, key: &str, words: &str) {
    assert!(finding[key].as_str().is_some_and(|text| text.contains(words)), "no {words:?}: {finding:#}");
}

/// What to do for one node, and for the cluster.
const SPREAD: &str = "compare the addresses taken with the Pods there (`calicoctl ipam check`) and free what leaked; else spread the Pods, or add a worker; other nodes are fine";
const ADD_A_POOL: &str = "see that calico-kube-controllers runs, and free what leaked (IpLeakSuspected); then add a pool; cordoning or reloading workers helps nothing";
const CNI_SAYS: &str = "failed to request 1 IPv4 addresses. IPAM allocated only 0";

/// What an agent tells of Pods that do not start for want of an address.
fn quoted() -> Value {
    let mut patch = told_by_agent(Some(("PodSandboxFailing", "warning", "cni", "CNIProblem")), &now());
    let findings = &mut patch["metadata"]["annotations"]["nodevitals.dev/findings"];
    *findings = findings.as_str().unwrap_or_default().replace("something is wrong", CNI_SAYS).into();
    patch
}

#[test]
fn addresses_that_run_out_are_told_by_their_blocks() -> Result<()> {
    let bench = Bench::take()?;
    let planted = Planted::new(&bench)?;
    // Four blocks; a node may have two.
    let pool = object("IPPool", "default-ipv4-ippool", &json!({"cidr": "172.30.0.0/28", "blockSize": 30}));
    let config = object(
        "IPAMConfig",
        "default",
        &json!({"strictAffinity": true, "autoAllocateBlocks": true, "maxBlocksPerHost": 2}),
    );
    let damaged = object("IPAMBlock", "damaged", &json!({"cidr": 7, "allocations": [0], "affinity": ["x"]}));
    let items = json!([pool, config, damaged]);
    bench.apply(&json!({"apiVersion": "v1", "kind": "List", "items": items}).to_string())?;
    planted.block(0, "v0", 4)?;
    planted.block(1, "v0", 4)?;
    bench.add_pod("aggregator-v", "aggregator", "v1")?;
    // Its agent quotes the CNI, which says the same of one node and of the whole cluster.
    bench.add_agent_pod("v0")?;
    bench.set_ready("agent-v0", true)?;
    bench.admin("PATCH strategic /api/v1/nodes/v0/status", &quoted())?;
    let aggregator = bench.aggregator("aggregator-v")?;
    let one = eventually("one node is out of addresses", READ, || told(&aggregator, "NodeIpBlocksExhausted"));
    assert_eq!((&one["workers"], &one["severity"], &one["area"]), (&json!(["v0"]), &json!("critical"), &json!("cni")));
    says(&one, "detail", "while the cluster has 2 blocks left: on v0 8 addresses are taken");
    says(&one, "next", SPREAD);
    over(&aggregator, "ClusterIpPoolExhausted")?;
    let report: Value = serde_json::from_str(&aggregator.page("/api/v1/report?node=v0")?)?;
    says(&report["nodes"][0], "detail", CNI_SAYS);
    let report: Value = serde_json::from_str(&aggregator.page("/api/v1/report")?)?;
    let finding = &report["findings"][0];
    assert_eq!((&finding["code"], &finding["scope"]), (&json!("PodSandboxFailing"), &json!("few")), "{report:#}");

    // The last blocks are given out: the third node has none, and the cluster no more.
    planted.block(2, "v1", 1)?;
    planted.block(3, "v1", 1)?;
    let all = eventually("the cluster is out of addresses", READ, || told(&aggregator, "ClusterIpPoolExhausted"));
    assert_eq!(all["workers"], json!(["v0", "v2"]));
    says(&all, "detail", "default-ipv4-ippool 172.30.0.0/28");
    says(&all, "next", ADD_A_POOL);
    over(&aggregator, "NodeIpBlocksExhausted")?;
    let metrics = aggregator.check_metrics()?;
    assert!(
        metrics.contains(r#"nodevitals_cluster_finding{code="ClusterIpPoolExhausted",severity="critical"} 2"#),
        "{metrics}"
    );

    let affinity = |name: &str, node: &str| {
        object(
            "BlockAffinity",
            name,
            &json!({"node": node, "cidr": "172.30.0.8/30", "state": "confirmed", "deleted": "false"}),
        )
    };
    bench.apply(&affinity("v1-c", "v1").to_string())?;
    bench.apply(&affinity("v2-c", "v2").to_string())?;
    let conflict = soon("two nodes have one block", || told(&aggregator, "IpBlockConflict"));
    says(&conflict, "detail", "172.30.0.8/30 to v1 and to v2");
    bench.admin(&format!("DELETE {GROUP}/blockaffinities/v2-c"), &Value::Null)?;
    soon("it has one owner", || over(&aggregator, "IpBlockConflict"));

    bench.apply(&object("IPPool", "second", &json!({"cidr": "172.31.0.0/28", "blockSize": 30})).to_string())?;
    soon("a pool was added", || over(&aggregator, "ClusterIpPoolExhausted"));
    Ok(())
}

#[test]
fn addresses_that_leaked_on_workers_that_live_are_told_until_they_are_freed() -> Result<()> {
    let bench = Bench::take()?;
    let planted = Planted::new(&bench)?;
    bench.apply(
        &object("IPPool", "default-ipv4-ippool", &json!({"cidr": "172.30.0.0/28", "blockSize": 30})).to_string(),
    )?;
    let account =
        json!({"apiVersion": "v1", "kind": "ServiceAccount", "metadata": {"name": "default", "namespace": "default"}});
    bench.apply(&account.to_string())?;
    let pod = json!({"apiVersion": "v1", "kind": "Pod", "metadata": {"name": "p"},
        "spec": {"nodeName": "v0", "containers": [{"name": "c", "image": "x"}]}});
    bench.admin("POST /api/v1/namespaces/default/pods", &pod)?;
    // That Pod is on the first worker, and not on the second.
    planted.block(0, "v0", 2)?;
    planted.block(1, "v1", 3)?;
    // And nobody knows that node.
    planted.block(2, "v9", 2)?;
    bench.add_pod("aggregator-v", "aggregator", "v1")?;
    let limits = bench.config("leaks", "cluster: {cleanupMinutes: 1, staleMinutes: 1}\n")?;
    let aggregator = bench.aggregator_with("aggregator-v", &["--config", &limits])?;
    let left = eventually("addresses of no node", READ, || told(&aggregator, "IpLeakSuspected"));
    assert_eq!((&left["severity"], &left["subject"], &left["nodes"]), (&json!("warning"), &json!(""), &json!(0)));
    says(
        &left,
        "detail",
        "Calico holds 1 blocks and 2 addresses of 1 nodes that are gone (v9), which calico-kube-controllers should have freed within 1 minutes",
    );
    says(
        &left,
        "next",
        "see that exactly one calico-kube-controllers runs; then `calicoctl ipam check`, and release what it reports while the datastore is locked, for twenty minutes at most; unlock it",
    );
    bench.admin(&format!("DELETE {GROUP}/ipamblocks/block-2"), &Value::Null)?;
    // In the first round it is found out who has addresses, in the second whose they are, and in the third that they still are.
    let leaked = eventually("addresses of no Pod, and no more of no node", 2 * READ, || {
        let leaked = told(&aggregator, "IpLeakSuspected")?;
        ensure!(leaked["subject"] != "", "{leaked:#}");
        Ok(leaked)
    });
    let expected = (&json!("warning"), &json!("Pods that are gone"), &json!(["v1"]));
    assert_eq!((&leaked["severity"], &leaked["subject"], &leaked["workers"]), expected);
    says(
        &leaked,
        "detail",
        "Calico holds 3 addresses of Pods that are not there, on 1 nodes that are, for more than 1 minutes, as far as nodes were looked at; 3 of them on v1 (172.30.0.4, 172.30.0.5, 172.30.0.6)",
    );
    says(&leaked, "next", "calicoctl ipam show --ip=ADDRESS");
    planted.block(1, "v1", 0)?;
    eventually("they are freed", READ, || over(&aggregator, "IpLeakSuspected"));
    Ok(())
}

#[test]
fn configuration_that_hands_changed_and_a_lock_are_told() -> Result<()> {
    let bench = Bench::take()?;
    let planted = Planted::new(&bench)?;
    let mut felix = object("FelixConfiguration", "default", &json!({"mtu": 1450}));
    felix["metadata"]["annotations"] = json!({"created-by": "IBMCloudKubernetesService"});
    bench.admin(&format!("POST {GROUP}/felixconfigurations?fieldManager=cluster-updater"), &felix)?;
    let locked = object("ClusterInformation", "default", &json!({"datastoreReady": false}));
    bench.admin(&format!("POST {GROUP}/clusterinformations"), &locked)?;
    bench.add_pod("aggregator-v", "aggregator", "v1")?;
    let aggregator = bench.aggregator("aggregator-v")?;
    soon("it is ready", || aggregator.page("/readyz"));
    let edit = |setting: Value| {
        let path = format!("PATCH merge {GROUP}/felixconfigurations/default?fieldManager=kubectl-edit");
        bench.admin(&path, &json!({"spec": setting}))
    };
    edit(json!({"mtu": 1440}))?;
    edit(json!({"bpfEnabled": true}))?;
    let drift = soon("the change by hand", || told(&aggregator, "CalicoConfigDrift"));
    assert_eq!((&drift["severity"], &drift["subject"]), (&json!("warning"), &json!("FelixConfiguration default")));
    says(&drift, "detail", "by kubectl-edit: bpfEnabled");
    edit(json!({"bpfEnabled": null}))?;
    // The lock is too young to be a forgotten one.
    soon("it is taken back", || over(&aggregator, "CalicoConfigDrift"));
    let hour =
        (jiff::Timestamp::now() - jiff::SignedDuration::from_hours(1)).strftime("%Y-%m-%dT%H:%M:%SZ").to_string();
    let path = "clusterinformations/default";
    changed_at(&bench, &format!("{GROUP}/{path}"), "crd.projectcalico.org/v1", "calicoctl", &hour)?;
    let lock = soon("nobody has unlocked it for an hour", || told(&aggregator, "CalicoConfigDrift"));
    let expected = (&json!("warning"), &json!("datastore"), &json!(hour));
    assert_eq!((&lock["severity"], &lock["subject"], &lock["since"]), expected);
    says(&lock, "detail", "datastoreReady false) for more than half an hour: no new Pod gets an address");
    says(
        &lock,
        "next",
        "if nobody migrates the datastore or cleans up addresses just now, `calicoctl datastore migrate unlock`",
    );
    bench.admin(&format!("PATCH merge {GROUP}/{path}"), &json!({"spec": {"datastoreReady": true}}))?;
    soon("it is unlocked", || over(&aggregator, "CalicoConfigDrift"));
    drop(planted);
    Ok(())
}

/// This object was changed last at this time, by this program, as the API server writes it down.
pub(crate) fn changed_at(bench: &Bench, path: &str, version: &str, by: &str, at: &str) -> Result<()> {
    let entry = json!({"manager": by, "operation": "Update", "apiVersion": version, "time": at,
        "fieldsType": "FieldsV1", "fieldsV1": {"f:spec": {}}});
    bench.admin(&format!("PATCH merge {path}"), &json!({"metadata": {"managedFields": [entry]}})).map(drop)
}

/// A Pod with a Ready condition of long ago.
fn pod(bench: &Bench, name: &str, label: &Value, node: &str, ready: bool) -> Result<()> {
    let pods = "/api/v1/namespaces/kube-system/pods";
    let pod = json!({"apiVersion": "v1", "kind": "Pod", "metadata": {"name": name, "labels": label},
        "spec": {"nodeName": node, "serviceAccountName": "calico-node", "containers": [{"name": "c", "image": "x:v1"}]}});
    bench.admin(&format!("POST {pods}"), &pod)?;
    let status = json!({"status": {"conditions": [condition("Ready", if ready { "True" } else { "False" }, "X")]}});
    bench.admin(&format!("PATCH strategic {pods}/{name}/status"), &status).map(drop)
}

/// Who answers for the webhooks: one Pod on each of these workers.
fn endpoints(bench: &Bench, nodes: &[&str]) -> Result<()> {
    let endpoint = |(at, node): (usize, &&str)| {
        json!({"addresses": [format!("172.30.9.{at}")], "nodeName": node, "conditions": {"ready": true},
            "targetRef": {"kind": "Pod", "namespace": "guard", "name": format!("hook-{at}")}})
    };
    let all: Vec<Value> = nodes.iter().enumerate().map(endpoint).collect();
    let slice = json!({"apiVersion": "discovery.k8s.io/v1", "kind": "EndpointSlice", "addressType": "IPv4", "endpoints": all,
        "metadata": {"name": "hook-1", "namespace": "guard", "labels": {"kubernetes.io/service-name": "hook"}}, "ports": [{"port": 443}]});
    bench.apply(&slice.to_string()).map(drop)
}

/// Two webhooks, one for Pods of kube-system, and one for Node status that the API server asks about no Node of these: by a
/// label that none has.
pub(crate) fn webhooks() -> Value {
    let common = |name: &str, (operation, resource): (&str, &str), more: Value| {
        let rule =
            json!({"apiGroups": [""], "apiVersions": ["v1"], "operations": [operation], "resources": [resource]});
        let mut webhook = json!({"name": name, "rules": [rule], "failurePolicy": "Fail", "timeoutSeconds": 10, "sideEffects": "None",
            "admissionReviewVersions": ["v1"], "clientConfig": {"service": {"namespace": "guard", "name": "hook"}}});
        webhook.as_object_mut().expect("an object").extend(more.as_object().cloned().unwrap_or_default());
        webhook
    };
    let system = json!({"namespaceSelector": {"matchLabels": {"kubernetes.io/metadata.name": "kube-system"}}});
    let nobody = json!({"objectSelector": {"matchLabels": {"no-such": "label"}}, "failurePolicy": "Ignore"});
    let all = [
        common("pods.guard.example", ("CREATE", "pods"), system),
        common("nodes.guard.example", ("UPDATE", "nodes/status"), nobody),
    ];
    json!({"apiVersion": "admissionregistration.k8s.io/v1", "kind": "ValidatingWebhookConfiguration",
        "metadata": {"name": "guard"}, "webhooks": all})
}

/// A webhook, who answers for it, and calico-node, which waits on the last worker.
pub(crate) fn guarded(bench: &Bench) -> Result<Planted<'_>> {
    let planted = Planted::new(bench)?;
    let account = json!({"apiVersion": "v1", "kind": "ServiceAccount", "metadata": {"name": "calico-node", "namespace": "kube-system"}});
    let guard = json!({"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": "guard"}});
    let service = json!({"apiVersion": "v1", "kind": "Service", "metadata": {"name": "hook", "namespace": "guard"}, "spec": {"ports": [{"port": 443}]}});
    for it in [account, guard, service] {
        bench.apply(&it.to_string())?;
    }
    endpoints(bench, &["v1"])?;
    for number in 0..3 {
        pod(bench, &format!("calico-node-{number}"), &json!({"k8s-app": "calico-node"}), &name(number), number != 2)?;
    }
    Ok(planted)
}

#[test]
fn webhooks_that_could_stop_the_system_are_told_and_so_is_the_deadlock() -> Result<()> {
    let bench = Bench::take()?;
    let planted = guarded(&bench)?;
    bench.add_pod("aggregator-v", "aggregator", "v1")?;
    let configuration = webhooks();
    bench.admin(&format!("POST {WEBHOOKS}"), &configuration)?;
    let aggregator = bench.aggregator("aggregator-v")?;
    let risk = soon("one answers for all", || told(&aggregator, "WebhookRisk"));
    assert_eq!((&risk["severity"], &risk["subject"]), (&json!("info"), &json!("ValidatingWebhookConfiguration guard")));
    says(
        &risk,
        "detail",
        "webhook pods.guard.example of ValidatingWebhookConfiguration guard could stop new Pods in kube-system, since its Service guard/hook has 1 ready of 1 endpoints, on v1",
    );
    let failing = told(&aggregator, "CalicoNodeFailingOnNode")?;
    assert_eq!(failing["workers"], json!(["v2"]));

    // The client of the VPN has come to the worker whose calico-node waits. Pods of kube-system cannot be made meanwhile.
    bench.admin(&format!("DELETE {WEBHOOKS}/guard"), &Value::Null)?;
    soon("it is no longer in force", || pod(&bench, "vpn-1", &json!({"app": "vpn"}), "v2", false));
    bench.admin(&format!("POST {WEBHOOKS}"), &configuration)?;
    let deadlock = soon("each waits for the other", || told(&aggregator, "WebhookDeadlock"));
    assert_eq!((&deadlock["severity"], &deadlock["workers"]), (&json!("critical"), &json!(["v2"])));
    says(
        &deadlock,
        "detail",
        "and its Pods kube-system/vpn-1 on v2 wait for calico-node: a circle that does not open by itself",
    );
    says(
        &deadlock,
        "next",
        "cordon v2 (no drain), `kubectl -n kube-system delete pod vpn-1`, wait until they run on another worker, and uncordon",
    );
    over(&aggregator, "CalicoNodeFailingOnNode")?;
    over(&aggregator, "WebhookRisk")?;
    // All four ways out, the least invasive first (catalogue R112); where no other worker takes Pods, without the first.
    let next = deadlock["next"].as_str().context("a next step")?;
    let ways = OUT.map(|way| next.find(way));
    assert!(ways.is_sorted() && ways.iter().all(Option::is_some), "{ways:?} in {next}");
    let cordon = |nobody: Value| {
        ["v0", "v1"].into_iter().try_for_each(|node| {
            let patch = json!({"spec": {"unschedulable": nobody}});
            bench.admin(&format!("PATCH merge /api/v1/nodes/{node}"), &patch).map(drop)
        })
    };
    cordon(json!(true))?;
    soon("there is no other worker", || {
        let deadlock = told(&aggregator, "WebhookDeadlock")?;
        let next = deadlock["next"].as_str().context("a next step")?;
        ensure!(next.starts_with(OUT[1]) && !next.contains(OUT[0]), "{next}");
        Ok(())
    });
    cordon(Value::Null)?;

    // It runs again, and a second one answers on another worker.
    let ready = json!({"status": {"conditions": [condition("Ready", "True", "X")]}});
    bench.admin("PATCH strategic /api/v1/namespaces/kube-system/pods/vpn-1/status", &ready)?;
    endpoints(&bench, &["v0", "v1"])?;
    soon("the circle is open", || over(&aggregator, "WebhookDeadlock"));
    eventually("there are two", READ, || over(&aggregator, "WebhookRisk"));
    bench.admin(&format!("DELETE {WEBHOOKS}/guard"), &Value::Null)?;
    drop(planted);
    Ok(())
}
