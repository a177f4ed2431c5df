//! The machine is suspended to memory, and wakes minutes later.

use std::thread::sleep;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use serde_json::{Value, json};

use crate::machine::Machine;

/// Longer than any look takes, and shorter than the hold-downs here.
const A_WHILE: Duration = Duration::from_secs(5);

/// A worker with an uplink, whose API server does not answer. What is held down is so for 40 s.
const WORKER: &str = r#"
modprobe dummy
ip link add uplink type dummy
ip address add 192.0.2.5/24 dev uplink
ip link set uplink up
ip route add default via 192.0.2.1
mkdir /state
echo '{"settlingSeconds": 0, "holdDownSeconds": {"DefaultRouteMissing": 40}, "clearSeconds": {"DefaultRouteMissing": 40}}' > /config
echo '{"apiVersion": "v1", "kind": "Config", "current-context": "x",
  "contexts": [{"name": "x", "context": {"cluster": "x", "user": "x"}}],
  "clusters": [{"name": "x", "cluster": {"server": "https://127.0.0.1:1", "certificate-authority": "/ca.crt"}}],
  "users": [{"name": "x", "user": {"token": "none"}}]}' > /kubeconfig
NO_COLOR=1 nodevitals agent --node-name n1 --kubeconfig /kubeconfig --state-dir /state --config /config >/log 2>&1 &
"#;

/// What must not change while the machine sleeps: states and what is raised, with their times.
fn believed(verdict: &Value) -> Value {
    let of = |list: &Value, keys: &[&str]| -> Vec<Value> {
        let only = |it: &Value| keys.iter().map(|key| ((*key).to_owned(), it[*key].clone())).collect();
        list.as_array().into_iter().flatten().map(only).collect()
    };
    json!({
        "findings": of(&verdict["findings"], &["code", "subject", "severity", "since", "times"]),
        "conditions": of(&verdict["conditions"], &["kind", "status", "reason", "since"]),
    })
}

fn codes(findings: &Value) -> Vec<&str> {
    findings.as_array().into_iter().flatten().filter_map(|finding| finding["code"].as_str()).collect()
}

/// Suspends it and does something as soon as it is awake; nothing that is believed may change by that.
fn suspend(machine: &mut Machine, seconds: u32, then: &str) -> Result<()> {
    let uptime = |machine: &mut Machine| -> Result<f64> {
        let text = machine.run("cat /proc/uptime")?;
        Ok(text.split(' ').next().context("a number")?.parse()?)
    };
    let before = believed(&machine.page()?["verdict"]);
    let (slept, began) = (uptime(machine)?, Instant::now());
    machine.sleep(seconds, then)?;
    let slept = uptime(machine)? - slept;
    ensure!(slept > f64::from(seconds) - 1.0, "{slept} s went by of {seconds}, in {:?}", began.elapsed());
    let awake = Instant::now();
    while awake.elapsed() < A_WHILE {
        let after = believed(&machine.page()?["verdict"]);
        ensure!(
            after == before,
            "{:?} after it woke: {before:#}\nbecame {after:#}\n{}",
            awake.elapsed(),
            machine.log()
        );
        sleep(Duration::from_millis(200));
    }
    Ok(())
}

#[test]
fn a_suspended_machine_makes_no_transition() -> Result<()> {
    let mut machine = Machine::boot()?;
    machine.run(WORKER)?;
    machine.eventually("what is wrong with it is told", |verdict| {
        let settled = verdict["settling"] == false && verdict["pending"] == json!([]);
        let told = codes(&verdict["findings"]).contains(&"KubeletDown");
        ensure!(settled && told && !verdict["conditions"].to_string().contains("Settling"), "{verdict:#}");
        Ok(())
    })?;

    // Nothing goes on; then something that has been seen for a moment, and is still there.
    suspend(&mut machine, 180, "")?;
    machine.run("ip route del default")?;
    machine.eventually("it is seen", |verdict| {
        ensure!(codes(&verdict["pending"]) == ["DefaultRouteMissing"], "{}", verdict["pending"]);
        Ok(())
    })?;
    suspend(&mut machine, 180, "")?;
    // Seconds do not count either: it has been seen for five by now.
    suspend(&mut machine, 37, "")?;
    machine.eventually("it has lasted", |verdict| {
        ensure!(codes(&verdict["findings"]).contains(&"DefaultRouteMissing"), "{}", verdict["findings"]);
        Ok(())
    })?;

    // Something that seemed to be over for a moment.
    let log = machine.run("cat /log")?;
    machine.run("ip route add default via 192.0.2.1; sleep 3")?;
    suspend(&mut machine, 180, "ip route del default")?;
    let after = machine.run("cat /log")?;
    ensure!(!after[log.len()..].contains("finding"), "{after}");

    // The journal on the disk has one of each, with its own times.
    let page = machine.page()?;
    let state: Value = serde_json::from_str(&machine.run("cat /state/state.json")?)?;
    ensure!(!codes(&page["episodes"]).is_empty(), "{page}");
    ensure!(state["episodes"] == page["episodes"], "{state:#}\nthe page: {page:#}");
    Ok(())
}
