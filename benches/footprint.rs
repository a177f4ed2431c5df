//! What the product costs, on real parts, beside its limits:
//!
//! * `scripts/bench.sh agent`: memory, CPU and API writes of the agent on a real node of a real cluster, over
//!   ten quiet minutes (`NODEVITALS_BENCH_MINUTES`), and the time from its start to the first verdict on the Node;
//! * `scripts/bench.sh aggregator`: memory of the aggregator with 500 Nodes on a real API server, and the
//!   time that `/api/v1/report` takes;
//! * without an argument: both, and the size of the program.
//!
//! Needs root; the script installs what is missing and builds the program that is measured.

#![allow(clippy::print_stdout, reason = "prints its figures")]
#![allow(clippy::cast_precision_loss, reason = "figures for people")]

#[allow(unreachable_pub, dead_code, reason = "shared with the other benchmarks")]
mod figures;
#[path = "../tests/cluster/product.rs"]
#[allow(unreachable_pub, dead_code, reason = "shared with the tests")]
mod product;
#[path = "../tests/support/mod.rs"]
mod support;

use std::process::Child;
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use jiff::Timestamp;
use serde_json::{Value, json};

use figures::{MALLOC, figure, inside, kib};
use product::{Product, SOON, program};
use support::control_plane::{ControlPlane, Parts};
use support::node::Node;
use support::wait::eventually;

/// Clock ticks of `/proc/PID/stat` per second (`USER_HZ`).
const TICKS: f64 = 100.0;

fn main() -> Result<()> {
    let wanted = std::env::args().nth(1).filter(|argument| !argument.starts_with('-'));
    let both = wanted.is_none();
    ensure!(std::env::var_os("NODEVITALS_BIN").is_some(), "run scripts/bench.sh: it builds the program to measure");
    let size = std::fs::metadata(program())?.len();
    figure("program, stripped", size as f64 / 1e6, "MB", 8.0);
    if both || wanted.as_deref() == Some("agent") {
        agent()?;
    }
    if both || wanted.as_deref() == Some("aggregator") {
        aggregator()?;
    }
    Ok(())
}

fn agent() -> Result<()> {
    let minutes: u64 = std::env::var("NODEVITALS_BENCH_MINUTES").map_or(Ok(10), |text| text.parse())?;
    let product = Product::deployed()?;
    for node in ["n1", "n2"] {
        product.wait_until_healthy(node);
    }
    first_verdict(&product)?;
    // The writes of the start are over, and so is the settling of the cluster.
    std::thread::sleep(Duration::from_secs(30));
    let writes = product.agent_writes()?;
    let nodes: Vec<&Node> = product.cluster.nodes().collect();
    let before = nodes.iter().map(|node| Ok((pid(node)?, cpu(node)?))).collect::<Result<Vec<_>>>()?;
    std::thread::sleep(Duration::from_secs(60 * minutes));
    for (node, (was, used)) in nodes.iter().zip(before) {
        ensure!(pid(node)? == was, "the agent on {} was restarted", node.name());
        let status = node.read(&["cat", &format!("/proc/{was}/status")])?;
        let name = node.name();
        figure(&format!("agent on {name}: resident memory"), kib(&status, "VmRSS")? / 1024.0, "MiB", 8.0);
        figure(&format!("agent on {name}: of it anonymous"), kib(&status, "RssAnon")? / 1024.0, "MiB", 3.0);
        figure(&format!("agent on {name}: CPU per quiet minute"), (cpu(node)? - used) / minutes as f64, "s", 0.1);
    }
    let writes = product.agent_writes()? - writes;
    figure(&format!("API writes of both agents in {minutes} quiet minutes"), writes as f64, "", 0.0);
    Ok(())
}

/// From the first line of each agent's log to its first patch, as the API server's audit log has it.
fn first_verdict(product: &Product) -> Result<()> {
    for node in product.cluster.nodes() {
        let name = node.name();
        // The verdict is on the Node before the kubelet says that the container runs.
        let log = eventually("the agent's log", SOON, || {
            product.cluster.kubectl(&["logs", "-n", "nodevitals", &product.agent_pod(name)?])
        });
        let started: Value = serde_json::from_str(log.lines().next().context("a line")?)?;
        let started: Timestamp = started["timestamp"].as_str().context("a time")?.parse()?;
        let writes = product.cluster.writes_by("system:serviceaccount:nodevitals:nodevitals-agent")?;
        let first = writes.iter().find(|event| event["objectRef"]["name"] == name).context("a write")?;
        let told: Timestamp = first["requestReceivedTimestamp"].as_str().context("a time")?.parse()?;
        figure(
            &format!("agent on {name}: start to first verdict on the Node"),
            told.duration_since(started).as_secs_f64(),
            "s",
            1.0,
        );
    }
    Ok(())
}

/// The agent's process on a node.
fn pid(node: &Node) -> Result<String> {
    Ok(node.read(&["pgrep", "-f", "^nodevitals agent"])?.lines().next().context("an agent")?.to_owned())
}

/// CPU seconds of the agent and its children so far.
fn cpu(node: &Node) -> Result<f64> {
    let stat = node.read(&["cat", &format!("/proc/{}/stat", pid(node)?)])?;
    let fields: Vec<&str> = stat.rsplit_once(')').context("a name")?.1.split_whitespace().collect();
    // utime, stime, cutime and cstime are fields 14 to 17 of proc(5); field 3 is the first here.
    let ticks: f64 = fields[11..15].iter().map(|field| field.parse::<f64>().unwrap_or(0.0)).sum();
    Ok(ticks / TICKS)
}

fn aggregator() -> Result<()> {
    const NODES: usize = 500;
    let control_plane = ControlPlane::start(Parts::ApiOnly)?;
    control_plane.apply(r#"{"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": "nodevitals"}}"#)?;
    for chunk in (0..NODES).collect::<Vec<_>>().chunks(100) {
        let items: Vec<Value> = chunk.iter().map(|index| worker(*index)).collect();
        control_plane.apply(&json!({"apiVersion": "v1", "kind": "List", "items": items}).to_string())?;
    }
    blocks(&control_plane, NODES)?;
    let mut command = control_plane.command_in(program());
    command.args([
        "aggregator",
        "--read-only",
        "--listen",
        "127.0.0.1:8080",
        "--namespace",
        "nodevitals",
        "--kubeconfig",
    ]);
    let running = Running(command.arg(control_plane.admin_kubeconfig()?).envs(MALLOC).spawn()?);
    eventually("the report counts all workers", SOON, || {
        let report = control_plane.exec_in_ns(&["curl", "-sf", "http://127.0.0.1:8080/api/v1/report"])?;
        let report: Value = serde_json::from_str(&report)?;
        let count = report["nodes"].as_array().map_or(0, Vec::len);
        ensure!(count == NODES, "{count} workers");
        Ok(())
    });
    let map = eventually("the map", SOON, || {
        control_plane.exec_in_ns(&["curl", "-sf", "http://127.0.0.1:8080/api/v1/map?node=worker-0000"])
    });
    figure("aggregator: /api/v1/map with 500 Nodes", map.len() as f64 / 1024.0, "KiB", 256.0);
    let script =
        "for i in $(seq 500); do curl -s -o /dev/null -w '%{time_total}\\n' http://127.0.0.1:8080/api/v1/report; done";
    let times = control_plane.exec_in_ns(&["sh", "-c", script])?;
    let mut times: Vec<f64> = times.lines().filter_map(|line| line.parse().ok()).collect();
    times.sort_by(f64::total_cmp);
    figure("aggregator: /api/v1/report with 500 Nodes, p99", times[times.len() * 99 / 100] * 1000.0, "ms", 10.0);
    let inside = inside(running.0.id())?;
    let status = std::fs::read_to_string(format!("/proc/{inside}/status"))?;
    figure("aggregator: resident memory with 500 Nodes", kib(&status, "VmRSS")? / 1024.0, "MiB", 16.0);
    Ok(())
}

/// Calico's blocks: three for each Node.
fn blocks(control_plane: &ControlPlane, nodes: usize) -> Result<()> {
    let kind = json!({
        "apiVersion": "apiextensions.k8s.io/v1", "kind": "CustomResourceDefinition",
        "metadata": {"name": "blockaffinities.crd.projectcalico.org"},
        "spec": {
            "group": "crd.projectcalico.org", "scope": "Cluster",
            "names": {"plural": "blockaffinities", "singular": "blockaffinity", "kind": "BlockAffinity"},
            "versions": [{"name": "v1", "served": true, "storage": true, "schema": {"openAPIV3Schema": {
                "type": "object", "x-kubernetes-preserve-unknown-fields": true}}}],
        },
    });
    control_plane.apply(&kind.to_string())?;
    eventually("the kind is served", SOON, || control_plane.raw("/apis/crd.projectcalico.org/v1/blockaffinities"));
    for chunk in (0..3 * nodes).collect::<Vec<_>>().chunks(250) {
        let block = |index: &usize| {
            json!({"apiVersion": "crd.projectcalico.org/v1", "kind": "BlockAffinity", "metadata": {"name": format!("block-{index:04}")},
                "spec": {"node": format!("worker-{:04}", index / 3), "state": "confirmed", "deleted": "false",
                    "cidr": format!("172.{}.{}.{}/26", 16 + index / 1024, index / 4 % 256, index % 4 * 64)}})
        };
        let items: Vec<Value> = chunk.iter().map(block).collect();
        control_plane.apply(&json!({"apiVersion": "v1", "kind": "List", "items": items}).to_string())?;
    }
    Ok(())
}

/// A Node object of real size: about 15 KB, most of it the images.
fn worker(index: usize) -> Value {
    let images: Vec<Value> = (0..50)
        .map(|image| {
            let digest = format!("registry.example/team/app-{image}@sha256:{:064x}", image * 7919 + index);
            json!({"names": [digest, format!("registry.example/team/app-{image}:1.{index}")], "sizeBytes": 123_456_789})
        })
        .collect();
    json!({
        "apiVersion": "v1", "kind": "Node",
        "metadata": {"name": format!("worker-{index:04}"),
            "labels": {"topology.kubernetes.io/zone": format!("zone-{}", index % 3), "node.kubernetes.io/pool": format!("pool-{}", index % 5)},
            "annotations": {"nodevitals.dev/state": "Normal", "nodevitals.dev/findings": "[]",
                "projectcalico.org/IPv4Address": format!("10.9.{}.{}/16", index / 250, index % 250),
                "projectcalico.org/IPv4IPIPTunnelAddr": format!("172.30.{}.{}", index / 250, index % 250)}},
        "spec": {"podCIDRs": [format!("10.{}.{}.0/24", 100 + index / 250, index % 250)]},
        "status": {"addresses": [{"type": "InternalIP", "address": format!("10.9.{}.{}", index / 250, index % 250)}], "images": images, "conditions": [{"type": "Ready", "status": "True", "reason": "KubeletReady"},
            {"type": "WorkerProblem", "status": "False", "reason": "WorkerHealthy", "lastTransitionTime": "2026-01-01T00:00:00Z"}]}
    })
}

/// A process that ends with this value.
struct Running(Child);

impl Drop for Running {
    fn drop(&mut self) {
        // It may have ended by itself.
        self.0.kill().ok();
        self.0.wait().ok();
    }
}
