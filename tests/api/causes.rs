//! Why calico-node fails on some workers, planted on a real API server: what runs there and nowhere else though no agent tells
//! anything, which of Calico's objects were changed before a failure, and what cured it.

use std::time::Duration;

use anyhow::{Context, Result, ensure};
use serde_json::{Value, json};

use crate::bench::{Bench, Running, now, soon};
use crate::inventory::{Planted, told};
use crate::map::object;
use crate::support::wait::eventually;

const WORKERS: usize = 12;
const FAILING: usize = 4;
const PODS: &str = "/api/v1/namespaces/kube-system/pods";
const MEMORY: &str = "/api/v1/namespaces/nodevitals/configmaps/nodevitals-aggregator";
/// What is remembered is written once a minute at most, and what runs on workers is asked for six times a minute.
const SLOW: Duration = Duration::from_secs(180);

fn name(number: usize) -> String {
    format!("c{number:02}")
}

fn calico_node(number: usize) -> String {
    format!("calico-node-c{number:02}")
}

fn plant(bench: &Bench) -> Result<()> {
    let owner =
        json!([{"apiVersion": "apps/v1", "kind": "DaemonSet", "name": "scanner", "uid": "s", "controller": true}]);
    for number in 0..WORKERS {
        // All Nodes here have one address: episodes go by pool and address.
        bench.add_worker(&name(number), &json!({"agentpool": if number == 0 { "first" } else { "red" }}))?;
        bench.add_calico_node(&calico_node(number), "kube-system", &name(number), true)?;
        if number < FAILING {
            let scanner = json!({"apiVersion": "v1", "kind": "Pod",
                "metadata": {"name": format!("scanner-{number}"), "ownerReferences": owner},
                "spec": {"nodeName": name(number), "serviceAccountName": "calico-node", "terminationGracePeriodSeconds": 0,
                    "containers": [{"name": "scanner", "image": "x"}]}});
            bench.admin(&format!("POST {PODS}"), &scanner)?;
        }
    }
    Ok(())
}

fn report(aggregator: &Running, query: &str) -> Result<Value> {
    Ok(serde_json::from_str(&aggregator.page(&format!("/api/v1/report{query}"))?)?)
}

#[test]
fn where_only_calico_node_fails_what_runs_there_is_suspected_and_what_cured_it_is_told() -> Result<()> {
    let bench = Bench::take()?;
    plant(&bench)?;
    bench.add_pod("aggregator-c", "aggregator", &name(WORKERS - 1))?;
    let aggregator = bench.aggregator("aggregator-c")?;
    (0..FAILING).try_for_each(|number| bench.calico_node_is(&calico_node(number), "kube-system", false))?;
    eventually("the scanner is suspected", SLOW, || {
        let finding = told(&aggregator, "CalicoNodeFailingSubset")?;
        let sentence = "4 of 4 with Pods of DaemonSet kube-system/scanner fail, 0 of 8 elsewhere";
        ensure!(finding["detail"].as_str().is_some_and(|detail| detail.contains(sentence)), "{finding:#}");
        let next = finding["next"].as_str().context("a next step")?;
        ensure!(next.contains("suspect Pods of DaemonSet kube-system/scanner"), "{next}");
        Ok(())
    });
    assert_eq!(report(&aggregator, "")?["findings"], json!([]), "no agent tells anything");

    eventually("it is remembered", SLOW, || {
        let memory = bench.admin(&format!("GET {MEMORY}"), &Value::Null)?["data"]["memory"].to_string();
        ensure!(memory.contains("first/"), "{memory}");
        Ok(())
    });
    bench.admin(&format!("DELETE {PODS}/{}", calico_node(0)), &Value::Null)?;
    bench.add_calico_node("calico-node-new", "kube-system", &name(0), true)?;
    eventually("its new Pod cured it", SLOW, || {
        let report = report(&aggregator, &format!("?node={}", name(0)))?;
        let last = &report["nodes"][0]["episodes"][0];
        ensure!(last["code"] == "CalicoNodeFailingOnNode" && last["cure"] == "processRestart", "{report:#}");
        Ok(())
    });
    eventually("that outlives the aggregator", SLOW, || {
        let memory = bench.admin(&format!("GET {MEMORY}"), &Value::Null)?["data"]["memory"].to_string();
        ensure!(memory.contains("processRestart"), "{memory}");
        Ok(())
    });
    Ok(())
}

#[test]
fn host_endpoints_ipam_and_the_cluster_information_are_among_what_changed_before() -> Result<()> {
    let bench = Bench::take()?;
    let planted = Planted::kinds(&bench)?;
    bench.add_worker("c00", &json!({}))?;
    let host = |node: &str| object("HostEndpoint", node, &json!({"node": node, "expectedIPs": ["10.0.0.1"]}));
    let information = |ready: bool| object("ClusterInformation", "default", &json!({"datastoreReady": ready}));
    let ipam = object("IPAMConfig", "default", &json!({"strictAffinity": true}));
    let items = json!([host("c00"), host("c01"), information(true), ipam]);
    bench.apply(&json!({"apiVersion": "v1", "kind": "List", "items": items}).to_string())?;
    bench.add_pod("aggregator-c", "aggregator", "c00")?;
    let aggregator = bench.aggregator("aggregator-c")?;
    bench.tell("c00", Some(("KubeProxyChainsUnhooked", "critical", "packetFilter", "PacketFilterProblem")), &now())?;
    let before = || -> Result<Vec<String>> {
        let report = report(&aggregator, "")?;
        let all = report["findings"][0]["before"].as_array().with_context(|| report.to_string())?;
        Ok(all.iter().filter_map(|change| change["what"].as_str().map(str::to_owned)).collect())
    };
    soon("what was there before is told", || {
        let told = before()?;
        for what in
            ["IPAMConfig default made", "ClusterInformation default made", "2 HostEndpoints made, the last of them c0"]
        {
            ensure!(told.iter().any(|known| known.starts_with(what)), "{what}: {told:?}");
        }
        Ok(())
    });
    bench.apply(&information(false).to_string())?;
    bench.apply(&object("HostEndpoint", "c01", &json!({"node": "c01", "expectedIPs": ["10.0.0.2"]})).to_string())?;
    soon("and what is changed afterwards", || {
        let told = before()?;
        for what in ["ClusterInformation default changed", "HostEndpoint c01 changed"] {
            ensure!(told.iter().any(|known| known == what), "{what}: {told:?}");
        }
        Ok(())
    });
    drop(planted);
    Ok(())
}
