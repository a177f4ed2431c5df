//! What goes wrong around the aggregator costs nothing but itself.

use std::time::Duration;

use anyhow::{Context, Result, ensure};
use nix::sys::signal::Signal;
use serde_json::{Value, json};

use crate::aggregator::{leads, report};
use crate::bench::{Bench, Running, soon};
use crate::support::wait::eventually;

/// Within this time another replica serves what the one that is gone did.
const TAKES_OVER: Duration = Duration::from_secs(15);

fn worker(bench: &Bench, name: &str, state: &str, findings: &str) -> Result<()> {
    bench.add_node(name, &json!({}))?;
    bench.add_agent_pod(name)?;
    bench.set_ready(&format!("agent-{name}"), true)?;
    says(bench, name, state, findings)
}

/// What an agent, or somebody else, writes on a Node.
fn says(bench: &Bench, name: &str, state: &str, findings: &str) -> Result<()> {
    let annotations = json!({"nodevitals.dev/state": state, "nodevitals.dev/findings": findings});
    bench
        .admin(&format!("PATCH strategic /api/v1/nodes/{name}"), &json!({"metadata": {"annotations": annotations}}))?;
    Ok(())
}

/// The workers and their states, and the counts: what is the same whoever reports it.
fn told(aggregator: &Running) -> Result<Value> {
    let mut report = report(aggregator)?;
    report.as_object_mut().context("an object")?.remove("generatedAt");
    Ok(report)
}

fn states(aggregator: &Running) -> Result<Vec<String>> {
    let report = report(aggregator)?;
    ensure!(report["view"]["complete"] == true, "{}", report["view"]);
    let nodes = report["nodes"].as_array().context("nodes")?;
    let mut all: Vec<String> = nodes
        .iter()
        .map(|node| {
            format!("{} {}", node["name"].as_str().unwrap_or_default(), node["state"].as_str().unwrap_or_default())
        })
        .collect();
    all.sort();
    Ok(all)
}

fn shows(aggregator: &Running, expected: &[&str]) -> Result<()> {
    let states = states(aggregator)?;
    ensure!(states == expected, "{states:?}");
    Ok(())
}

const FULL: &str = r#"[{"code": "DiskFull", "severity": "critical", "area": "capacity", "subject": "/", "since": "2026-11-21T09:00:00Z",
    "detail": "full", "next": "make room"}]"#;

#[test]
fn what_is_damaged_or_gone_or_forgotten_costs_nothing_but_itself() -> Result<()> {
    let bench = Bench::take()?;
    worker(&bench, "k1", "Normal", "[]")?;
    worker(&bench, "k2", "Critical", FULL)?;
    // Neither is anything that an agent of ours writes.
    worker(&bench, "k3", "Brilliant", "[{\"code\": 7}, ")?;
    for name in ["aggregator-k", "aggregator-l"] {
        bench.add_pod(name, "aggregator", "k1")?;
    }
    let first = bench.aggregator("aggregator-k")?;
    soon("a damaged object costs itself", || shows(&first, &["k1 Normal", "k2 Critical", "k3 Unknown"]));
    soon("it leads", || leads(&first, true));
    let second = bench.aggregator("aggregator-l")?;
    soon("both say the same", || {
        let (one, other) = (told(&first)?, told(&second)?);
        ensure!(one == other, "{one:#}\n{other:#}");
        Ok(())
    });

    restarted(&bench, &first)?;
    compacted(&bench, &first)?;

    let last = told(&first)?;
    first.signal(Signal::SIGKILL)?;
    eventually("the other one serves the same", TAKES_OVER, || {
        let now = told(&second)?;
        ensure!(now == last, "{now:#}\n{last:#}");
        Ok(())
    });
    // The Lease lasts for 15 s, and is looked at every 5 s.
    eventually("and leads", Duration::from_secs(25), || leads(&second, true));
    Ok(())
}

/// The API server is restarted while both watch: what was known stays until it is known to be otherwise.
fn restarted(bench: &Bench, aggregator: &Running) -> Result<()> {
    bench.restart_api_server(|| {
        // A moment without it is no reason to know nothing.
        shows(aggregator, &["k1 Normal", "k2 Critical", "k3 Unknown"])
    })?;
    says(bench, "k2", "Normal", "[]")?;
    soon("changes come through again", || shows(aggregator, &["k1 Normal", "k2 Normal", "k3 Unknown"]));
    aggregator.lives()
}

/// It was away for so long that what happened meanwhile has been forgotten (410 Gone): it lists again, and finds out what
/// has gone as well.
fn compacted(bench: &Bench, aggregator: &Running) -> Result<()> {
    aggregator.signal(Signal::SIGSTOP)?;
    bench.admin("DELETE /api/v1/nodes/k3", &Value::Null)?;
    worker(bench, "k4", "Critical", FULL)?;
    for round in 0..30 {
        says(bench, "k1", "Normal", &format!("[{}]", " ".repeat(round)))?;
    }
    bench.restart_api_server(|| bench.compact())?;
    says(bench, "k2", "Critical", FULL)?;
    aggregator.signal(Signal::SIGCONT)?;
    soon("it lists again", || shows(aggregator, &["k1 Normal", "k2 Critical", "k4 Critical"]));
    // Not only that the connection broke.
    soon("it was told why", || aggregator.said("the watch is too far behind"));
    aggregator.lives()
}
