//! The control plane is updated: the API server comes back with another version, and kubelets that are silent meanwhile are no alarm
//! until that has lasted for too long.

use std::time::Duration;

use anyhow::{Result, ensure};
use serde_json::{Value, json};

use crate::agent::Outage;
use crate::aggregator::report;
use crate::bench::{Bench, Running, soon};
use crate::support::wait::{eventually, within};

/// Of the four workers, these are silent.
const WORKERS: [&str; 4] = ["u1", "u2", "u3", "u4"];
/// As of an API server that is new, and goes on as the version before until it is told not to.
const OLDER: &str = "--emulated-version=1.34";

fn cluster(aggregator: &Running) -> Result<Vec<(String, String)>> {
    let report = report(aggregator)?;
    ensure!(report["view"]["complete"] == true, "{}", report["view"]);
    let text = |value: &Value| value.as_str().unwrap_or_default().to_owned();
    let found = report["cluster"].as_array().into_iter().flatten();
    // The kinds of Calico are there, and nothing of it runs; that takes its time until it is told.
    let found = found.filter(|it| it["code"] != "CalicoNodeAbsent");
    let mut all: Vec<_> = found.map(|it| (text(&it["code"]), text(&it["severity"]))).collect();
    all.sort();
    Ok(all)
}

fn told(aggregator: &Running, expected: &[(&str, &str)]) -> Result<()> {
    let all = cluster(aggregator)?;
    let all: Vec<(&str, &str)> = all.iter().map(|(code, severity)| (code.as_str(), severity.as_str())).collect();
    ensure!(all == expected, "{all:?}");
    Ok(())
}

fn kubelets(bench: &Bench, status: &str, seconds_ago: u64) -> Result<()> {
    let since = jiff::Timestamp::now() - Duration::from_secs(seconds_ago);
    let since = since.strftime("%FT%TZ").to_string();
    let ready = json!({"type": "Ready", "status": status, "reason": "NodeStatusUnknown", "lastTransitionTime": since});
    WORKERS.iter().try_for_each(|name| {
        let body = json!({"status": {"conditions": [ready]}});
        bench.admin(&format!("PATCH strategic /api/v1/nodes/{name}/status"), &body).map(drop)
    })
}

/// The API server with these options beside its own, until this is dropped.
struct Updated<'a>(&'a Bench);

impl<'a> Updated<'a> {
    fn begin(bench: &'a Bench) -> Result<Self> {
        let mut outage = Outage::begin(bench)?;
        outage.arguments.push(OLDER.into());
        let updated = Self(bench);
        outage.end();
        Ok(updated)
    }
}

impl Drop for Updated<'_> {
    /// Without a panic: after a failure it would be the second one, which ends all tests.
    fn drop(&mut self) {
        if let Ok(mut outage) = Outage::begin(self.0) {
            outage.arguments.retain(|argument| argument != OLDER);
            drop(outage);
            // If it does not come back, whoever needs it next says so.
            let _ = within(Duration::from_secs(90), || self.0.raw("/readyz"));
        }
    }
}

#[test]
fn silence_in_an_update_of_the_control_plane_is_no_alarm_until_it_lasts() -> Result<()> {
    let bench = Bench::take()?;
    for name in WORKERS {
        bench.add_node(name, &json!({}))?;
        bench.add_agent_pod(name)?;
        bench.set_ready(&format!("agent-{name}"), true)?;
    }
    kubelets(&bench, "True", 0)?;
    bench.add_pod("aggregator-u", "aggregator", "u1")?;
    let limits = bench.config("update", "cluster: {masterUpdateMinutes: 2}\n")?;
    let aggregator = bench.aggregator_with("aggregator-u", &["--config", &limits])?;
    soon("all is well", || told(&aggregator, &[]));
    // An API server that comes back as it was is no update.
    bench.restart_api_server(|| Ok(()))?;
    kubelets(&bench, "Unknown", 61)?;
    let alarm = [("MasterUnreachableClusterwide", "critical")];
    // The watch may have waited for half a minute before it asked again.
    eventually("silence without an update is one", Duration::from_secs(90), || told(&aggregator, &alarm));

    // Silence is told when it has lasted for a minute, and explained by an update that is seen within two: that is time
    // for the API server to start, and for the watch to come back.
    kubelets(&bench, "Unknown", 0)?;
    let updated = Updated::begin(&bench)?;
    let held = [("MasterUnreachableClusterwide", "info"), ("MasterUpdateInProgress", "info")];
    let told_by = Duration::from_secs(120);
    eventually("it is another one, and what is silent waits for it", told_by, || told(&aggregator, &held));
    eventually("that lasts for too long", Duration::from_secs(200), || told(&aggregator, &alarm));
    kubelets(&bench, "True", 0)?;
    soon("it is over", || told(&aggregator, &[]));
    aggregator.lives()?;
    drop(aggregator);
    drop(updated);
    Ok(())
}
