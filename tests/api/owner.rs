//! Who writes a worker's conditions while its kubelet is silent: the agent, as long as it gives signs of life.

use std::thread::sleep;
use std::time::Duration;

use anyhow::{Result, ensure};
use serde_json::{Value, json};

use crate::bench::{AGGREGATOR, Bench, condition_of, now, soon};
use crate::support::wait::eventually;

/// Longer than the agent waits before it reads its Node again, and than the aggregator waits after a write.
const SEVERAL_ROUNDS: Duration = Duration::from_secs(60);

fn stale(bench: &Bench) -> Result<bool> {
    Ok(condition_of(&bench.node("w1")?, "WorkerProblem")?["reason"] == "AgentStale")
}

#[test]
fn of_a_worker_whose_kubelet_is_silent_one_writes() -> Result<()> {
    let bench = Bench::take()?;
    bench.add_node("w1", &json!({}))?;
    bench.add_agent_pod("w1")?;
    bench.set_ready("agent-w1", true)?;
    bench.tell("w1", None, &now())?;
    bench.add_pod("aggregator-w", "aggregator", "w1")?;
    let aggregator = bench.aggregator("aggregator-w")?;
    let ready =
        json!({"type": "Ready", "status": "Unknown", "reason": "NodeStatusUnknown", "lastTransitionTime": now()});
    bench.admin("PATCH strategic /api/v1/nodes/w1/status", &json!({"status": {"conditions": [ready]}}))?;
    // The grace is 20 s.
    eventually("nobody knows how it is", Duration::from_secs(60), || {
        ensure!(stale(&bench)?, "not yet");
        Ok(())
    });

    // It asks nobody for the map: only what it writes shows that it lives.
    let agent = bench.agent("w1", "agent-w1", &["--map-interval", "0"])?;
    soon("the agent puts that right", || {
        ensure!(!stale(&bench)?, "not yet");
        Ok(())
    });
    let writes = || -> Result<usize> { Ok(bench.writes_on("w1", AGGREGATOR)?.len()) };
    let before = writes()?;
    // A time in which nothing may happen has to pass.
    sleep(SEVERAL_ROUNDS);
    ensure!(!stale(&bench)? && writes()? == before, "{before} writes of the aggregator before, {} now", writes()?);
    agent.lives()?;
    let report: Value = serde_json::from_str(&aggregator.page("/api/v1/report")?)?;
    ensure!(report["nodes"][0]["reason"] != "AgentStale", "{report:#}");
    Ok(())
}
