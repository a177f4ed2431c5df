//! What counts over a long time (who collects the metrics, kubelets that come and go, what comes back, a zone whose connections
//! are not answered) is told on a real API server, and is over.

use std::thread::sleep;
use std::time::{Duration, Instant};

use anyhow::{Result, ensure};
use serde_json::{Value, json};

use crate::bench::{AGGREGATOR, Bench, Running, condition, rendered, soon};
use crate::inventory::{over, says, told};
use crate::support::wait::eventually;

const MEMORY: &str = "/api/v1/namespaces/nodevitals/configmaps/nodevitals-aggregator";
/// Turns of kubelets count for two minutes, and metrics are missed after half a minute if they were collected for a whole one.
const LIMITS: &str = "cluster: {readyTurnMinutes: 2, scrapeSilenceSeconds: 30}\n";
const COLLECTED: Duration = Duration::from_secs(60);
/// Longer than each of these, with what the aggregator takes to notice.
const LONG: Duration = Duration::from_secs(240);
/// A zone is told after five minutes, most of which go by before it is waited for.
const STRAINED: Duration = Duration::from_secs(360);
/// What began a week ago, but for this many seconds, counts for so long.
const STILL_COUNTS: i64 = 100;

/// calico-node failed twice on this worker, of which the first time is almost too long ago to count.
fn failed_before(bench: &Bench) -> Result<()> {
    let day = |days: i64| jiff::Timestamp::now().as_second() - days * 86_400;
    let episodes = [[day(7) + STILL_COUNTS, day(6)], [day(2), day(1)]];
    let memory = json!({"calico": {"red/10.0.0.1": episodes}, "gone": [], "turns": {}});
    bench.admin(&format!("PATCH merge {MEMORY}"), &json!({"data": {"memory": memory.to_string()}})).map(drop)
}

/// The kubelet of the worker turns, four times.
fn turns(bench: &Bench, aggregator: &Running) -> Result<()> {
    for ready in ["Unknown", "True", "Unknown", "True"] {
        let status = json!({"status": {"conditions": [condition("Ready", ready, "X")]}});
        bench.admin("PATCH strategic /api/v1/nodes/l0/status", &status)?;
        // Each has to be seen by itself.
        soon("it is seen", || {
            let report: Value = serde_json::from_str(&aggregator.page("/api/v1/report?node=l0")?)?;
            let seen = report["nodes"][0]["ready"]["status"].as_str().unwrap_or_default();
            ensure!(seen.eq_ignore_ascii_case(ready), "{report}");
            Ok(())
        });
    }
    Ok(())
}

/// Workers of a VPC, three in each of two zones.
fn zones(bench: &Bench) -> Result<()> {
    for number in 0..6 {
        let zone = if number < 3 { "za" } else { "zb" };
        let labels = json!({"agentpool": "green", "topology.kubernetes.io/zone": zone, "ibm-cloud.kubernetes.io/subnet-id": zone});
        bench.add_worker(&format!("z{number}"), &labels)?;
    }
    Ok(())
}

/// What these agents say with their question for the map: SYNs that were sent again, and connections.
fn load(aggregator: &Running, mut workers: std::ops::Range<usize>, load: &str) -> Result<()> {
    workers.try_for_each(|number| aggregator.page(&format!("/api/v1/map?node=z{number}&load={load}")).map(drop))
}

/// The first zone has been under load for five minutes; then one of its three workers is well.
fn full_zone(aggregator: &Running) -> Result<()> {
    let full = eventually("a zone is full", STRAINED, || told(aggregator, "ZoneConnectionLimitSuspected"));
    let expected = (&json!("info"), &json!("packetFilter"), &json!(["z0", "z1", "z2"]));
    assert_eq!((&full["severity"], &full["area"], &full["workers"]), expected);
    says(
        &full,
        "detail",
        "zone za: 3 of 3 workers, 90000 connections, 30000 a worker; elsewhere 0 of 3 workers, 2000 connections a worker",
    );
    says(&full, "next", "then ask the provider's VPC operations in a support case what the limit of zone za is");
    load(aggregator, 0..1, "3.2000")?;
    soon("one is well", || over(aggregator, "ZoneConnectionLimitSuspected"));
    Ok(())
}

#[test]
fn what_counts_over_a_long_time_is_told_and_is_over() -> Result<()> {
    let bench = Bench::take()?;
    zones(&bench)?;
    for number in 0..3 {
        let pool = if number == 0 { "red" } else { "blue" };
        bench.add_worker(&format!("l{number}"), &json!({"agentpool": pool}))?;
    }
    bench.add_calico_node("calico-node-l0", "kube-system", "l0", true)?;
    failed_before(&bench)?;
    bench.add_pod("aggregator-l", "aggregator", "l1")?;
    let limits = bench.config("lasting", LIMITS)?;
    let aggregator = bench.aggregator_with("aggregator-l", &["--config", &limits])?;
    soon("it has a map", || load(&aggregator, 0..3, "400.30000"));
    load(&aggregator, 3..6, "3.2000")?;
    let recurring = soon("it came back", || told(&aggregator, "CalicoFailureRecurring"));
    assert_eq!(recurring["workers"], json!(["l0"]));
    turns(&bench, &aggregator)?;
    let flapping = eventually("it comes and goes", LONG, || told(&aggregator, "NodeReadyFlapping"));
    assert_eq!(flapping["workers"], json!(["l0"]));

    aggregator.page("/metrics")?;
    let begun = Instant::now();
    while begun.elapsed() < COLLECTED {
        aggregator.page("/metrics")?;
        sleep(Duration::from_secs(1));
    }
    aggregator.check_metrics()?;
    over(&aggregator, "AgentScrapeFailing")?;
    let silent = eventually("nobody collects the metrics", LONG, || told(&aggregator, "AgentScrapeFailing"));
    assert_eq!(silent["severity"], "warning");
    assert!(silent["detail"].to_string().contains("alerts that are made of them are silent"), "{silent:#}");
    eventually("somebody collects them again", LONG, || {
        let metrics = aggregator.page("/metrics")?;
        ensure!(!metrics.contains("AgentScrapeFailing"), "{metrics}");
        over(&aggregator, "AgentScrapeFailing")
    });

    eventually("it has been Ready for long", LONG, || over(&aggregator, "NodeReadyFlapping"));
    eventually("it has been well for long", LONG, || over(&aggregator, "CalicoFailureRecurring"));
    full_zone(&aggregator)
}

/// The aggregators' ConfigMap is gone until this is dropped.
struct Missing<'a>(&'a Bench);

impl<'a> Missing<'a> {
    fn new(bench: &'a Bench) -> Result<Self> {
        bench.admin(&format!("DELETE {MEMORY}"), &Value::Null)?;
        Ok(Self(bench))
    }
}

impl Drop for Missing<'_> {
    /// Also after a failure: other tests need it.
    fn drop(&mut self) {
        // If that fails, whoever needs it says so.
        let _ = rendered().and_then(|deploy| self.0.apply(&deploy));
    }
}

/// How often it asked for this, and was refused.
fn refused(bench: &Bench, verb: &str) -> Result<usize> {
    let refused = bench.writes_by(AGGREGATOR)?.into_iter().filter(|write| {
        write["verb"] == verb
            && write["objectRef"]["resource"] == "configmaps"
            && write["responseStatus"]["code"] == 404
    });
    Ok(refused.count())
}

#[test]
fn a_configmap_that_is_missing_is_told_and_warned_of_once_and_kept_when_it_is_there() -> Result<()> {
    const WARNS: &str = "cannot keep what has to outlive this process";
    const BLIND: &str = r#"nodevitals_aggregator_cannot_look{resource="the ConfigMap nodevitals-aggregator"} 1"#;
    let bench = Bench::take()?;
    bench.add_worker("l0", &json!({}))?;
    let missing = Missing::new(&bench)?;
    let before = refused(&bench, "patch")?;
    bench.add_pod("aggregator-m", "aggregator", "l0")?;
    let aggregator = bench.aggregator("aggregator-m")?;
    let cannot = |aggregator: &Running| -> Result<Value> {
        let report: Value = serde_json::from_str(&aggregator.page("/api/v1/report")?)?;
        ensure!(report["view"]["complete"] == true, "{report:#}");
        Ok(report["view"]["cannotLook"].clone())
    };
    eventually("it tries to write it several times", LONG, || {
        let refused = refused(&bench, "patch")? - before;
        ensure!(refused >= 2, "{refused}");
        Ok(())
    });
    let told = cannot(&aggregator)?;
    assert_eq!((&told[0]["what"], &told[0]["codes"]), (&json!(["the ConfigMap nodevitals-aggregator"]), &json!([])));
    let why = "there is none, and the aggregator may not make it (deploy/aggregator.yaml does)";
    assert!(told[0]["why"].as_str().is_some_and(|said| said.starts_with(why)), "{told:#}");
    assert!(aggregator.check_metrics()?.lines().any(|line| line == BLIND));
    let log = aggregator.log()?;
    let warned: Vec<_> = log.iter().filter(|line| line.to_string().contains(WARNS)).collect();
    assert_eq!(warned.len(), 1, "{log:#?}");
    assert!(warned[0].to_string().contains(why), "{warned:#?}");

    drop(missing);
    eventually("it is kept again", LONG, || {
        aggregator.said("what has to outlive this process is kept again")?;
        let kept = bench.admin(&format!("GET {MEMORY}"), &Value::Null)?;
        ensure!(kept["data"]["memory"].is_string(), "{kept}");
        let cannot = cannot(&aggregator)?;
        ensure!(cannot.is_null(), "{cannot:#}");
        ensure!(!aggregator.page("/metrics")?.contains("cannot_look{"), "it is no more told");
        Ok(())
    });
    Ok(())
}
