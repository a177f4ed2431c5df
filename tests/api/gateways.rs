//! A kind of cluster that belongs to the past, and one that has lost its workers, on a real API server: told, and over when
//! it is put right.

use anyhow::{Result, ensure};
use serde_json::{Value, json};

use crate::bench::{Bench, soon};
use crate::inventory::{over, told};
use crate::objects::node;

const POOL: &str = "ibm-cloud.kubernetes.io/worker-pool-name";

/// A worker of the pool gateway, which is in the public network, or of compute, which is not.
fn worker(name: &str, gateway: bool) -> Value {
    let mut node = node(name, &json!({POOL: if gateway { "gateway" } else { "compute" }}));
    let number = if gateway { 1 } else { 2 };
    let mut addresses = vec![json!({"type": "InternalIP", "address": format!("10.0.5.{number}")})];
    if gateway {
        addresses.push(json!({"type": "ExternalIP", "address": "169.60.5.1"}));
    }
    node["status"]["addresses"] = addresses.into();
    node["status"]["nodeInfo"]["kubeletVersion"] = "v1.23.17+IKS".into();
    node
}

fn runs(bench: &Bench, name: &str, kubelet: &str) -> Result<()> {
    let status = json!({"status": {"nodeInfo": {"kubeletVersion": kubelet}}});
    bench.admin(&format!("PATCH strategic /api/v1/nodes/{name}/status"), &status).map(drop)
}

#[test]
fn a_cluster_of_the_past_and_one_without_workers_are_told_until_they_are_none() -> Result<()> {
    let bench = Bench::take()?;
    for (name, gateway) in [("w-gate", true), ("w-work", false)] {
        bench.admin("POST /api/v1/nodes", &worker(name, gateway))?;
    }
    bench.add_pod("aggregator-g", "aggregator", "w-work")?;
    // The one that takes the place of the last worker need not come here.
    let limits = bench.config("limits", "settlingSeconds: 0\n")?;
    let aggregator = bench.aggregator_with("aggregator-g", &["--config", &limits])?;
    soon("it is ready", || aggregator.page("/readyz"));
    for code in ["GatewayClusterUnsupported", "ClusterWithoutWorkers"] {
        over(&aggregator, code)?;
    }

    ["w-gate", "w-work"].into_iter().try_for_each(|name| runs(&bench, name, "v1.33.1+IKS"))?;
    let past = soon("it is newer than its kind", || told(&aggregator, "GatewayClusterUnsupported"));
    assert_eq!((&past["severity"], &past["area"]), (&json!("info"), &json!("integrity")));
    let words = "worker pools gateway and compute show, with kubelet v1.33.1+IKS";
    assert!(past["detail"].as_str().is_some_and(|detail| detail.contains(words)), "{past}");
    ["w-gate", "w-work"].into_iter().try_for_each(|name| runs(&bench, name, "v1.23.17+IKS"))?;
    soon("it is as old as its kind", || over(&aggregator, "GatewayClusterUnsupported"));

    bench.admin("DELETE /api/v1/nodes/w-gate", &Value::Null)?;
    soon("one is left", || {
        let report: Value = serde_json::from_str(&aggregator.page("/api/v1/report")?)?;
        ensure!(report["workers"]["total"] == 1, "{}", report["workers"]);
        Ok(())
    });
    over(&aggregator, "ClusterWithoutWorkers")?;
    bench.admin("DELETE /api/v1/nodes/w-work", &Value::Null)?;
    let none = soon("none is left", || told(&aggregator, "ClusterWithoutWorkers"));
    assert_eq!((&none["severity"], &none["area"]), (&json!("critical"), &json!("capacity")));
    assert!(none["since"].is_string() && none["next"].as_str().is_some_and(|next| next.contains("order workers")));
    bench.admin("POST /api/v1/nodes", &worker("w-new", false))?;
    soon("one has come", || over(&aggregator, "ClusterWithoutWorkers"));
    Ok(())
}
