//! The aggregator and `nodevitals report` over fifty Nodes.

use std::thread::sleep;
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use nix::sys::signal::Signal;
use serde_json::{Value, json};

use crate::bench::{AGGREGATOR, Bench, Running, THEN, TYPES, condition_of, foreign, now, soon, told};
use crate::events::events;
use crate::support::control_plane::ADDRESS;
use crate::support::wait::eventually;

const NODES: usize = 50;
const CRITICAL: [usize; 3] = [31, 3, 17];
const WARNING: [usize; 5] = [5, 6, 7, 8, 9];
/// No agent ever said anything there.
const SILENT: usize = 40;

fn name(number: usize) -> String {
    format!("w{number:02}")
}

/// Fifty workers in two zones and two pools, with an agent each.
fn fill(bench: &Bench) -> Result<()> {
    for number in 0..NODES {
        let (zone, pool) = (if number < 20 { "z1" } else { "z2" }, if number % 2 == 0 { "blue" } else { "red" });
        let name = name(number);
        bench.add_node(&name, &json!({"topology.kubernetes.io/zone": zone, "agentpool": pool}))?;
        bench.add_agent_pod(&name)?;
        bench.set_ready(&format!("agent-{name}"), true)?;
        if number != SILENT {
            bench.admin(&format!("PATCH strategic /api/v1/nodes/{name}/status"), &as_told(number))?;
        }
    }
    Ok(())
}

/// What the agent of this worker has written.
fn as_told(number: usize) -> Value {
    let rank = CRITICAL.iter().position(|other| *other == number);
    // The first of the three has lasted longest.
    let since = format!("2026-11-21T09:0{}:00Z", rank.unwrap_or(5));
    let finding = if rank.is_some() {
        Some(("KubeProxyChainsUnhooked", "critical", "packetFilter", "PacketFilterProblem"))
    } else {
        WARNING.contains(&number).then_some(("DiskPressureImminent", "warning", "capacity", "CapacityProblem"))
    };
    told(finding, &since)
}

pub(crate) fn report(aggregator: &Running) -> Result<Value> {
    Ok(serde_json::from_str(&aggregator.page("/api/v1/report")?)?)
}

/// The fifty are counted right, and the worst come first.
fn counted(report: &Value) -> Result<()> {
    let workers = &report["workers"];
    let counts = ["total", "critical", "warning", "unknown", "normal"].map(|state| workers[state].as_u64());
    ensure!(counts == [50, 3, 5, 1, 41].map(Some), "{workers}");
    let names: Vec<_> =
        report["nodes"].as_array().context("nodes")?.iter().filter_map(|node| node["name"].as_str()).collect();
    ensure!(names[..11] == ["w31", "w03", "w17", "w05", "w06", "w07", "w08", "w09", "w40", "w00", "w01"], "{names:?}");
    let worst = &report["nodes"][0];
    ensure!(worst["reason"] == "KubeProxyChainsUnhooked" && worst["next"] == "do something", "{worst}");
    ensure!(worst["since"] == "2026-11-21T09:00:00Z" && worst["zone"] == "z2" && worst["pool"] == "red", "{worst}");
    ensure!(report["nodes"][8]["reason"] == "NoAgentReport", "{}", report["nodes"][8]);
    let zones = [("z1", 20, 2), ("z2", 30, 1)];
    for (zone, total, critical) in zones {
        let group = report["zones"].as_array().context("zones")?.iter().find(|group| group["name"] == zone);
        ensure!(
            group.is_some_and(|group| group["total"] == total && group["critical"] == critical),
            "{}",
            report["zones"]
        );
    }
    ensure!(report["findings"][0]["code"] == "KubeProxyChainsUnhooked" && report["findings"][0]["nodes"] == 3);
    ensure!(
        report["findings"][1]["code"] == "DiskPressureImminent" && report["findings"][1]["shared"] == "zone z1",
        "{}",
        report["findings"]
    );
    Ok(())
}

/// `nodevitals report` with these arguments: exit status, standard output, standard error.
fn reported(bench: &Bench, more: &[&str]) -> Result<(Option<i32>, String, String)> {
    let kubeconfig = bench.admin_kubeconfig()?.display().to_string();
    let output = bench.nodevitals(&[&["report", "--kubeconfig", &kubeconfig], more].concat())?;
    let text = |bytes| String::from_utf8_lossy(bytes).into_owned();
    Ok((output.status.code(), text(&output.stdout), text(&output.stderr)))
}

#[test]
fn fifty_workers() -> Result<()> {
    let bench = Bench::take()?;
    fill(&bench)?;
    for aggregator in ["aggregator-a", "aggregator-b"] {
        bench.add_pod(aggregator, "aggregator", &name(0))?;
    }
    from_node_objects(&bench)?;
    let first = bench.aggregator("aggregator-a")?;
    soon("it is ready", || first.page("/readyz"));
    soon("it counts", || counted(&report(&first)?));
    soon("it leads", || leads(&first, true));
    let second = bench.aggregator("aggregator-b")?;
    soon("the other one counts too", || counted(&report(&second)?));
    leads(&second, false)?;
    through_the_proxy(&bench, &first)?;
    let metrics = first.check_metrics()?;
    for line in [
        r#"nodevitals_workers{state="Critical"} 3"#,
        r#"nodevitals_cluster_finding{code="DiskPressureImminent",severity="warning"} 5"#,
    ] {
        assert!(metrics.contains(line), "{metrics}");
    }
    an_agent_is_lost_and_the_leader_too(&bench, &first, &second)
}

pub(crate) fn leads(aggregator: &Running, expected: bool) -> Result<()> {
    let metrics = aggregator.page("/metrics")?;
    let line = format!("nodevitals_aggregator_leader {}", u8::from(expected));
    ensure!(metrics.lines().any(|other| other == line), "not {line}");
    Ok(())
}

/// Without an aggregator the report is made from the Nodes.
fn from_node_objects(bench: &Bench) -> Result<()> {
    let (status, json, errors) = reported(bench, &["-o", "json"])?;
    assert_eq!(status, Some(0), "{errors}");
    assert!(errors.contains("made from the Node objects alone"), "{errors}");
    let report: Value = serde_json::from_str(&json)?;
    assert_eq!(report["source"], "nodeObjects");
    counted(&report)?;
    let (status, table, _) = reported(bench, &[])?;
    assert_eq!(status, Some(0));
    let place = |text: &str| table.find(text).with_context(|| format!("no {text} in\n{table}"));
    assert!(
        place("KubeProxyChainsUnhooked")? < place("DiskPressureImminent")? && place("w31")? < place("w03")?,
        "{table}"
    );
    assert!(table.contains("do something") && !table.contains('\u{1b}'), "{table}");
    let (status, table, _) = reported(bench, &["w03"])?;
    assert!(status == Some(0) && table.contains("w03") && TYPES.iter().all(|kind| table.contains(kind)), "{table}");
    let (status, _, errors) = reported(bench, &["w77"])?;
    assert_eq!(status, Some(64));
    assert!(errors.contains("there is no worker named w77"), "{errors}");
    Ok(())
}

/// With one, it is asked through the API server.
fn through_the_proxy(bench: &Bench, aggregator: &Running) -> Result<()> {
    endpoints(bench, aggregator.port)?;
    let report = soon("the report of the aggregator", || {
        let (status, json, errors) = reported(bench, &["-o", "json"])?;
        ensure!(status == Some(0) && errors.is_empty(), "{errors}");
        Ok(serde_json::from_str::<Value>(&json)?)
    });
    assert_eq!(report["source"], "aggregator");
    counted(&report)?;
    let (status, yaml, _) = reported(bench, &["w03", "-o", "yaml"])?;
    assert!(status == Some(0) && yaml.contains("KubeProxyChainsUnhooked"), "{yaml}");
    let (status, _, errors) = reported(bench, &["w77"])?;
    assert!(status == Some(64) && errors.contains("there is no worker named w77"), "{errors}");
    Ok(())
}

/// What a kubelet and the controller manager would do: the Service leads to the Pod, and that has an address.
fn endpoints(bench: &Bench, port: u32) -> Result<()> {
    let pod = "PATCH strategic /api/v1/namespaces/nodevitals/pods/aggregator-a/status";
    bench.admin(pod, &json!({"status": {"podIP": ADDRESS, "podIPs": [{"ip": ADDRESS}]}}))?;
    let name = "nodevitals-aggregator";
    let meta = json!({"name": name, "namespace": "nodevitals", "labels": {"kubernetes.io/service-name": name}});
    let port = json!({"name": "http", "port": port, "protocol": "TCP"});
    let pod = json!({"kind": "Pod", "namespace": "nodevitals", "name": "aggregator-a"});
    let old = json!({
        "apiVersion": "v1", "kind": "Endpoints", "metadata": meta,
        "subsets": [{"addresses": [{"ip": ADDRESS, "targetRef": pod}], "ports": [port]}],
    });
    let new = json!({
        "apiVersion": "discovery.k8s.io/v1", "kind": "EndpointSlice", "metadata": meta, "addressType": "IPv4",
        "endpoints": [{"addresses": [ADDRESS], "conditions": {"ready": true}, "targetRef": pod}], "ports": [port],
    });
    bench.apply(&json!({"apiVersion": "v1", "kind": "List", "items": [old, new]}).to_string())?;
    Ok(())
}

/// The conditions of a worker whose agent is gone become Unknown, even if who leads is gone too, and nothing else does.
fn an_agent_is_lost_and_the_leader_too(bench: &Bench, first: &Running, second: &Running) -> Result<()> {
    let lost = name(20);
    let before = bench.node(&lost)?;
    let others = || -> Result<Vec<Value>> {
        let mut nodes = bench.list("/api/v1/nodes")?;
        nodes.retain(|node| node["metadata"]["name"] != lost.as_str());
        Ok(nodes)
    };
    let all = others()?;
    bench.set_ready(&format!("agent-{lost}"), false)?;
    first.signal(Signal::SIGKILL)?;
    // The Lease lasts for 15 s, and is looked at every 5 s.
    eventually("the other one leads", Duration::from_secs(25), || leads(second, true));
    // The grace is 40 s.
    let node = eventually("it is marked", Duration::from_secs(60), || {
        let node = bench.node(&lost)?;
        let condition = condition_of(&node, "WorkerProblem")?;
        ensure!(condition["status"] == "Unknown", "{condition}");
        Ok(node)
    });
    for kind in TYPES {
        let condition = condition_of(&node, kind)?;
        assert_eq!((&condition["status"], &condition["reason"]), (&json!("Unknown"), &json!("AgentStale")));
        assert_ne!(condition["lastTransitionTime"], THEN, "the status has changed");
        assert!(
            condition["message"].as_str().is_some_and(|it| it.contains(&format!("describe pod agent-{lost}"))),
            "{condition}"
        );
    }
    assert_eq!(foreign(&node), foreign(&before), "and nothing else");
    let annotations = |node: &Value| node["metadata"]["annotations"].clone();
    let mut expected = annotations(&before);
    expected["nodevitals.dev/state"] = "Unknown".into();
    assert_eq!(annotations(&node), expected);
    let seen = soon("the report has it", || {
        let report = report(second)?;
        let nodes = report["nodes"].as_array().context("nodes")?;
        let row = nodes.iter().find(|node| node["name"] == lost.as_str()).context("the worker")?.clone();
        ensure!(row["state"] == "Unknown" && report["workers"]["unknown"] == 2, "{row}");
        Ok(row)
    });
    assert_eq!((&seen["reason"], &seen["agent"]["state"]), (&json!("AgentStale"), &json!("stale")), "{seen}");

    an_event_says(bench, &lost, "Warning")?;

    // Longer than it waits before it tries a second time.
    sleep(Duration::from_secs(12));
    assert_eq!(bench.writes_on(&lost, AGGREGATOR)?.len(), 1);
    assert_eq!(others()?, all, "no other Node has changed");
    recovers(bench, second, &lost)
}

/// An Event says that its agent is gone, or back: one, though two aggregators have been there.
fn an_event_says(bench: &Bench, node: &str, kind: &str) -> Result<()> {
    let told = soon("an Event", || {
        let mut events = events(bench, node, "AgentStale")?;
        events.retain(|event| event["type"] == kind);
        ensure!(!events.is_empty(), "no {kind}");
        Ok(events)
    });
    ensure!(told.len() == 1 && told[0]["reportingComponent"] == "nodevitals-aggregator", "{told:#?}");
    Ok(())
}

/// The agent is back, and has said how it is.
fn recovers(bench: &Bench, aggregator: &Running, lost: &str) -> Result<()> {
    bench.set_ready(&format!("agent-{lost}"), true)?;
    let mut patch = as_told(20);
    patch["metadata"]["annotations"]["nodevitals.dev/since"] = now().into();
    bench.admin(&format!("PATCH strategic /api/v1/nodes/{lost}/status"), &patch)?;
    soon("it counts as before", || counted(&report(aggregator)?));
    an_event_says(bench, lost, "Normal")?;
    aggregator.check_metrics()?;
    aggregator.end()?;
    // Who ends in good order gives the Lease up.
    let lease = bench
        .admin("GET /apis/coordination.k8s.io/v1/namespaces/nodevitals/leases/nodevitals-aggregator", &Value::Null)?;
    assert_eq!(lease["spec"]["holderIdentity"], "", "{lease}");
    Ok(())
}
