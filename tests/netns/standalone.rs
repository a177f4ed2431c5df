//! `nodevitals standalone`: the whole product on one machine, without a cluster.

use std::process::{Child, Stdio};
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use serde_json::Value;

use crate::machine::{Machine, program};
use crate::support::wait::eventually;

const SOON: Duration = Duration::from_secs(30);

/// A process that ends with this value.
pub(crate) struct Running(pub(crate) Child);

impl Drop for Running {
    fn drop(&mut self) {
        // It may have ended by itself.
        self.0.kill().ok();
        self.0.wait().ok();
    }
}

pub(crate) fn get(machine: &Machine, path: &str) -> Result<String> {
    machine.run(&["curl", "-sf", "-m", "5", &format!("http://127.0.0.1:10580{path}")])
}

/// What the program on this machine believes now; an error before its first verdict.
pub(crate) fn verdict(machine: &Machine) -> Result<Value> {
    let verdict = serde_json::from_str::<Value>(&get(machine, "/findings")?)?["verdict"].take();
    ensure!(!verdict.is_null(), "nothing is judged yet");
    Ok(verdict)
}

#[test]
fn it_serves_the_report_the_findings_and_the_metrics_and_follows_the_machine() -> Result<()> {
    let machine = Machine::worker()?;
    let mut command = machine.net().command(program());
    command.args(["standalone", "--host-root", &machine.place("")]).stdout(Stdio::null()).stderr(Stdio::null());
    let _running = Running(command.spawn()?);
    let codes = || -> Result<Vec<String>> {
        let findings = verdict(&machine)?["findings"].as_array().context("findings")?.clone();
        Ok(findings.iter().filter_map(|finding| Some(finding["code"].as_str()?.to_owned())).collect())
    };
    eventually("it says that the kubelet of these files does not run", SOON, || {
        let codes = codes()?;
        ensure!(codes.iter().any(|code| code == "KubeletDown"), "{codes:?}");
        Ok(())
    });
    let report: Value = serde_json::from_str(&get(&machine, "/api/v1/report")?)?;
    assert_eq!(report["nodes"][0]["state"], "Critical", "{report}");

    let page = get(&machine, "/")?;
    assert!(page.starts_with("<!doctype html>") && page.contains("page.js"), "{page}");
    assert!(get(&machine, "/page.js")?.contains("api/v1/report"));
    let live = machine.run(&["curl", "-sN", "-m", "2", "http://127.0.0.1:10580/api/v1/live"]);
    assert!(live.is_err(), "a stream goes on until it is ended: {live:?}");

    machine.run(&["ip", "route", "del", "default"])?;
    eventually("a route that goes is told", SOON, || {
        ensure!(codes()?.iter().any(|code| code == "DefaultRouteMissing"), "not yet");
        Ok(())
    });
    machine.run(&["ip", "route", "add", "default", "via", "192.0.2.1"])?;
    eventually("and so is one that comes back", SOON, || {
        ensure!(!codes()?.iter().any(|code| code == "DefaultRouteMissing"), "not yet");
        Ok(())
    });

    let metrics = get(&machine, "/metrics")?;
    machine.feed(&["promtool", "check", "metrics"], &metrics)?;
    assert!(metrics.contains("nodevitals_worker_state{state=\"Critical\"} 1"), "{metrics}");
    assert_eq!(get(&machine, "/readyz")?, "ok\n");
    Ok(())
}
