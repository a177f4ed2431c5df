//! What outlives the aggregator: nodes that are gone, kubelets that turned, and when calico-node failed where. Another one
//! knows it, and tells by it what was well in between and was not cured.

use std::time::Duration;

use anyhow::{Context, Result, ensure};
use serde_json::{Value, json};

use crate::bench::{AGGREGATOR, Bench, Running, condition, soon};
use crate::inventory::{READ, over, says, told};
use crate::support::wait::eventually;

/// Of the second worker, by its pool and address.
const PLACE: &str = "red/10.0.0.1";

const MEMORY: &str = "/api/v1/namespaces/nodevitals/configmaps/nodevitals-aggregator";
const TWO_DAYS: i64 = 2 * 86_400;

/// What is written down.
fn written(bench: &Bench) -> Result<Value> {
    let map = bench.admin(&format!("GET {MEMORY}"), &Value::Null)?;
    Ok(serde_json::from_str(map["data"]["memory"].as_str().context("memory")?)?)
}

fn write(bench: &Bench, memory: &str) -> Result<()> {
    bench.admin(&format!("PATCH merge {MEMORY}"), &json!({"data": {"memory": memory}})).map(drop)
}

/// From when and to when calico-node failed there first, by what is written down.
fn episode(written: &Value) -> (Option<i64>, Option<i64>) {
    let episode = &written["calico"][PLACE][0];
    (episode[0].as_i64(), episode[1].as_i64())
}

/// The kubelet of the first worker turns, four times.
fn turns(bench: &Bench, aggregator: &Running) -> Result<()> {
    for ready in ["False", "True", "Unknown", "True"] {
        let status = json!({"status": {"conditions": [condition("Ready", ready, "X")]}});
        bench.admin("PATCH strategic /api/v1/nodes/v0/status", &status)?;
        // Each has to be seen by itself.
        soon("it is seen", || {
            let report: Value = serde_json::from_str(&aggregator.page("/api/v1/report?node=v0")?)?;
            let seen = report["nodes"][0]["ready"]["status"].as_str().unwrap_or_default();
            ensure!(seen.eq_ignore_ascii_case(ready), "{report}");
            Ok(())
        });
    }
    Ok(())
}

/// What was well since the first time fails again, and is well again: it was not cured.
fn comes_back(bench: &Bench, aggregator: &Running, first: i64) -> Result<()> {
    over(aggregator, "CalicoFailureRecurring")?;
    bench.calico_node_is("calico-node-v1", "kube-system", false)?;
    let again = eventually("it comes back", READ, || told(aggregator, "CalicoFailureRecurring"));
    assert_eq!((&again["workers"], &again["severity"]), (&json!(["v1"]), &json!("warning")));
    let first = jiff::Timestamp::from_second(first)?;
    says(&again, "detail", &format!("within 7 days on 1 workers, after it had been well; on v1 from {first}, "));
    says(&again, "next", "do not reload them once more: look at Typha, then at what these workers are connected to");
    bench.calico_node_is("calico-node-v1", "kube-system", true)?;
    soon("it is well", || over(aggregator, "CalicoNodeFailingOnNode"));
    told(aggregator, "CalicoFailureRecurring").map(drop)
}

#[test]
fn what_has_to_be_known_outlives_the_aggregator() -> Result<()> {
    let bench = Bench::take()?;
    write(&bench, "damaged")?;
    for number in 0..3 {
        bench.add_node(&format!("v{number}"), &json!({"agentpool": if number == 1 { "red" } else { "blue" }}))?;
    }
    bench.add_calico_node("calico-node-v1", "kube-system", "v1", false)?;
    bench.add_pod("aggregator-v", "aggregator", "v1")?;
    let aggregator = bench.aggregator("aggregator-v")?;
    soon("calico-node fails", || told(&aggregator, "CalicoNodeFailingOnNode"));
    turns(&bench, &aggregator)?;
    // Three times are flapping as well, and the fourth may be counted a moment later.
    eventually("it comes and goes", READ, || {
        let flapping = told(&aggregator, "NodeReadyFlapping")?;
        ensure!(flapping["detail"].to_string().contains("that of v0 4 times"), "{flapping}");
        Ok(())
    });
    eventually("what goes on is written down", READ, || {
        let written = written(&bench)?;
        ensure!(matches!(episode(&written), (Some(_), None)), "{written}");
        Ok(())
    });
    bench.admin("DELETE /api/v1/nodes/v2", &Value::Null)?;
    bench.calico_node_is("calico-node-v1", "kube-system", true)?;
    let mut kept = eventually("it is written down", READ, || {
        let written = written(&bench)?;
        ensure!(
            written["gone"][0][0] == "v2"
                && written["turns"]["v0"].as_array().is_some_and(|turns| turns.len() == 4)
                && matches!(episode(&written), (Some(_), Some(_))),
            "{written}"
        );
        Ok(written)
    });
    aggregator.end()?;
    drop(aggregator);
    // Two days go by.
    let (from, to) = episode(&kept);
    let first = from.context("just found")? - TWO_DAYS;
    kept["calico"][PLACE] = json!([[first, to.context("just found")? - TWO_DAYS]]);
    write(&bench, &kept.to_string())?;

    bench.add_pod("aggregator-w", "aggregator", "v1")?;
    let other = bench.aggregator("aggregator-w")?;
    let flapping = eventually("another knows it", READ, || told(&other, "NodeReadyFlapping"));
    assert_eq!(flapping["workers"], json!(["v0"]));
    let before = bench.writes_by(AGGREGATOR)?.len();
    std::thread::sleep(Duration::from_secs(5));
    let writes: Vec<Value> = bench.writes_by(AGGREGATOR)?.split_off(before);
    assert!(writes.iter().all(|write| write["objectRef"]["resource"] != "configmaps"), "nothing is new: {writes:?}");
    comes_back(&bench, &other, first)
}
