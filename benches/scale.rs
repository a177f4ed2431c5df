//! What the aggregator costs with 500, 5,000 and 15,000 Nodes of real size on a real API server, each with its agent's Pod
//! and what Calico has in such a cluster: `scripts/bench.sh scale [NODES...]`. Prints figures beside their limits.
//!
//! Needs root; the script installs what is missing and builds the program that is measured.

#![allow(clippy::print_stdout, reason = "prints its figures")]
#![allow(clippy::cast_precision_loss, reason = "figures for people")]

#[allow(unreachable_pub, dead_code, reason = "shared with the other benchmarks")]
mod figures;
#[allow(unreachable_pub, dead_code, reason = "shared with the other benchmarks")]
mod many;
#[path = "../tests/support/mod.rs"]
mod support;

use std::io::{BufRead, BufReader};
use std::path::PathBuf;
use std::process::{Child, Stdio};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use serde_json::{Value, json};

use figures::{MALLOC, cpu_seconds, figure, inside, kib};
use many::relay::Relay;
use many::{Sender, agent_pod, calico, is_ready, name, worker};
use support::control_plane::{ControlPlane, Parts};
use support::wait::within;

/// Most of what is listed and changed takes a while on a machine that is busy with something else.
const LONG: Duration = Duration::from_secs(240);
/// Workers that change within a second.
const CHANGING: usize = 1_000;
/// A quiet time, in seconds, for each of Calico's blocks, and the shortest and the longest: as long as it takes until the
/// aggregator reads them all again, so that one whole turn of all that it does by itself is measured.
const QUIET: (f64, f64, f64) = (0.06, 60.0, 900.0);
/// What is said of the busiest time of it is said of so many seconds.
const BUSIEST: usize = 60;
/// An agent asks for the map after so many seconds, and after so many for each node where that is longer
/// (`agent::observe::cluster`).
const ASK: (f64, f64) = (60.0, 0.06);
/// What an agent says of its blocks is so many sums of eight digits (`facts::block_sums`).
const SUMS: usize = 16;
const PAGE: &str = "http://127.0.0.1:8080";

fn main() -> Result<()> {
    let program =
        std::env::var_os("NODEVITALS_BIN").context("run scripts/bench.sh: it builds the program to measure")?;
    let sizes: Vec<usize> = std::env::args().skip(1).filter_map(|size| size.parse().ok()).collect();
    let sizes = if sizes.is_empty() { vec![500, 5_000, 15_000] } else { sizes };
    let control_plane = ControlPlane::start(Parts::ApiOnly)?;
    for object in [
        json!({"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": "nodevitals"}}),
        json!({"apiVersion": "v1", "kind": "ServiceAccount", "metadata": {"name": "default", "namespace": "nodevitals"}}),
        json!({"apiVersion": "v1", "kind": "ServiceAccount", "metadata": {"name": "default", "namespace": "kube-system"}}),
    ] {
        control_plane.apply(&object.to_string())?;
    }
    for kind in calico::kinds() {
        control_plane.apply(&kind.to_string())?;
    }
    within(LONG, || control_plane.raw("/apis/crd.projectcalico.org/v1/ipamblocks"))
        .context("Calico's kinds are served")?;
    let mut there = 0;
    for size in sizes {
        let sender = Sender::new(&control_plane)?;
        if there == 0 {
            sender.send("POST", calico::once().into_iter())?;
        }
        let pods = "/api/v1/namespaces/nodevitals/pods";
        sender.send("POST", (there..size).map(|index| ("/api/v1/nodes".to_owned(), worker(index))))?;
        sender.send("POST", (there..size).map(|index| (pods.to_owned(), agent_pod(index))))?;
        sender
            .send("PATCH", (there..size).map(|index| (format!("{pods}/agent-{}/status", name(index)), is_ready())))?;
        sender.send("POST", calico::of(there..size).into_iter())?;
        sender.send("PATCH", calico::run(there..size).into_iter())?;
        there = size;
        let relay = Relay::new(&control_plane)?;
        std::thread::scope(|scope| {
            relay.run(scope, &control_plane);
            let measured = measure(&control_plane, &relay, &program.clone().into(), size);
            relay.close(&control_plane)?;
            measured
        })?;
    }
    Ok(())
}

/// What is allowed with this many: seconds to the first report, MiB.
fn limits(size: usize) -> (f64, f64) {
    match size {
        ..=500 => (10.0, 16.0),
        501..=5_000 => (30.0, 24.0),
        _ => (90.0, 56.0),
    }
}

fn measure(control_plane: &ControlPlane, relay: &Relay, program: &PathBuf, size: usize) -> Result<()> {
    let (first, memory) = limits(size);
    let mut command = control_plane.command_in(program);
    // As the one that leads, which does more.
    command.args(["aggregator", "--namespace", "nodevitals", "--kubeconfig"]);
    let started = Instant::now();
    let running = Running(command.arg(Relay::kubeconfig(control_plane)?).envs(MALLOC).stdout(Stdio::null()).spawn()?);
    let fetch = |page: &str| control_plane.exec_in_ns(&["curl", "-sf", &format!("{PAGE}{page}")]);
    within(LONG, || {
        fetch("/readyz")?;
        let report: Value = serde_json::from_str(&fetch("/api/v1/report")?)?;
        ensure!(
            report["workers"]["total"] == size && report["cluster"].get(0).is_none(),
            "{} {}",
            report["workers"],
            report["cluster"]
        );
        Ok(())
    })
    .context("the report counts all workers, and all is well")?;
    let show =
        |what: &str, value: f64, unit: &str, limit: f64| figure(&format!("{size} Nodes: {what}"), value, unit, limit);
    show("start to a served report", started.elapsed().as_secs_f64(), "s", first);
    let pid = inside(running.0.id())?;

    questions(control_plane, size, pid)?;
    let (average, busiest) = quiet(pid, size)?;
    show("CPU when nothing changes", average, "% of a core", 2.0);
    show("CPU in the busiest minute of that", busiest, "% of a core", f64::INFINITY);

    let script =
        format!("for i in $(seq 200); do curl -s -o /dev/null -w '%{{time_total}}\\n' {PAGE}/api/v1/report; done");
    let before = cpu_seconds(pid)?;
    let times = control_plane.exec_in_ns(&["sh", "-c", &script])?;
    let mut times: Vec<f64> = times.lines().filter_map(|line| line.parse().ok()).collect();
    times.sort_by(f64::total_cmp);
    show("/api/v1/report, p99", times[times.len() * 99 / 100] * 1000.0, "ms", 20.0);
    show("/api/v1/report, median", times[times.len() / 2] * 1000.0, "ms", 20.0);
    show("/api/v1/report, CPU for each", (cpu_seconds(pid)? - before) / times.len() as f64 * 1000.0, "ms", 20.0);
    show("/api/v1/report, size", fetch("/api/v1/report")?.len() as f64 / 1024.0, "KiB", f64::INFINITY);

    changes(control_plane, relay, size, pid)?;
    let status = std::fs::read_to_string(format!("/proc/{pid}/status"))?;
    show("resident memory", kib(&status, "VmRSS")? / 1024.0, "MiB", memory);
    show("most resident memory so far", kib(&status, "VmHWM")? / 1024.0, "MiB", f64::INFINITY);
    Ok(())
}

/// Each agent asks for the map, which it has, and says what it routes: so that this is compared in the quiet time.
fn questions(control_plane: &ControlPlane, size: usize, pid: u32) -> Result<()> {
    let script = format!(
        "etag=$(curl -sf -D - -o /dev/null {PAGE}/api/v1/map?node={} | tr -d '\\r' | sed -n 's/^etag: //Ip')
         curl -s -o /dev/null -w '%{{http_code}}\\n' -H \"If-None-Match: $etag\" \\
             '{PAGE}/api/v1/map?node=worker-[00000-{:05}]&v4={}&mtu=1480.1480'",
        name(0),
        size - 1,
        "0a1b2c3d".repeat(SUMS)
    );
    let before = settled(pid)?;
    let codes = control_plane.exec_in_ns(&["sh", "-c", &script])?;
    let cost = (settled(pid)? - before) / size as f64;
    ensure!(codes.lines().count() == size && codes.lines().all(|code| code == "304"), "not all have the map");
    let show =
        |what: &str, value: f64, unit: &str, limit: f64| figure(&format!("{size} Nodes: {what}"), value, unit, limit);
    show("CPU for an agent's question for the map", cost * 1e6, "us", 1_000.0);
    let (least, each) = ASK;
    let rate = size as f64 / least.max(each * size as f64);
    show("CPU when quiet, with these questions", cost * rate * 100.0, "% of a core", 2.0);
    Ok(())
}

/// CPU in percent of a core while nothing changes: all the time, and in the busiest minute.
fn quiet(pid: u32, size: usize) -> Result<(f64, f64)> {
    // The blocks are read within five seconds, and again at the end of this time: once in it, and not in what is measured next.
    std::thread::sleep(Duration::from_secs(6));
    settled(pid)?;
    let (each, least, most) = QUIET;
    let long = (calico::blocks(size) as f64 * each).clamp(least, most) * 1.05 + 15.0;
    let started = Instant::now();
    let mut used = vec![cpu_seconds(pid)?];
    while started.elapsed().as_secs_f64() < long {
        std::thread::sleep(Duration::from_secs(1));
        used.push(cpu_seconds(pid)?);
    }
    let all = used[used.len() - 1] - used[0];
    let busiest = used.windows(BUSIEST + 1).map(|minute| minute[BUSIEST] - minute[0]).fold(0.0, f64::max);
    Ok((all / started.elapsed().as_secs_f64() * 100.0, busiest / BUSIEST as f64 * 100.0))
}

/// Heartbeats, which nobody sees, and then as many workers as may fail at once, which a page is told: as they come from this API
/// server, and all in one second.
fn changes(control_plane: &ControlPlane, relay: &Relay, size: usize, pid: u32) -> Result<()> {
    let many = CHANGING.min(size);
    let sender = Sender::new(control_plane)?;
    let path = |index: usize| format!("/api/v1/nodes/{}/status", name(index));
    let show =
        |what: &str, value: f64, unit: &str, limit: f64| figure(&format!("{size} Nodes: {what}"), value, unit, limit);

    let before = cpu_seconds(pid)?;
    sender.send("PATCH", (0..many).map(|index| (path(index), many::heartbeat())))?;
    let cost = (settled(pid)? - before) / many as f64;
    show("CPU for a kubelet's heartbeat", cost * 1e6, "us", 1_000.0);
    // A kubelet whose node does not change writes its status every five minutes.
    show("CPU when quiet, with heartbeats", cost * size as f64 / 300.0 * 100.0, "% of a core", 2.0);

    let mut page = Page::open(control_plane)?;
    let before = cpu_seconds(pid)?;
    let started = Instant::now();
    sender.send("PATCH", (0..many).map(|index| (path(index), many::failed())))?;
    let sent = Instant::now();
    let seen = page.shows(many)?;
    show("time that the API server took for 1,000 changes", (sent - started).as_secs_f64(), "s", f64::INFINITY);
    show("from the last of 1,000 changes to the page", seen.saturating_duration_since(sent).as_secs_f64(), "s", 2.0);
    show(
        "CPU for a change that is shown, page and all",
        (cpu_seconds(pid)? - before) / many as f64 * 1e6,
        "us",
        f64::INFINITY,
    );

    let before = cpu_seconds(pid)?;
    drop(page);
    sender.send("PATCH", (0..many).map(|index| (path(index), many::well())))?;
    show("CPU for a change while nobody looks", (settled(pid)? - before) / many as f64 * 1e6, "us", 1_000.0);

    let mut page = Page::open(control_plane)?;
    relay.hold();
    sender.send("PATCH", (0..many).map(|index| (path(index), many::failed())))?;
    let released = Instant::now();
    let kept = relay.release();
    let seen = page.shows(many)?;
    // Each is a Node of real size.
    ensure!(kept > many * 10_000, "only {kept} bytes were told at once");
    show("from 1,000 changes at once to the page", (seen - released).as_secs_f64(), "s", 2.0);
    drop(page);
    sender.send("PATCH", (0..many).map(|index| (path(index), many::well())))?;
    settled(pid)?;
    Ok(())
}

/// What a browser does: it listens, and fetches the report when it is told to.
struct Page<'a> {
    control_plane: &'a ControlPlane,
    listening: Child,
    lines: std::sync::mpsc::Receiver<Instant>,
}

impl<'a> Page<'a> {
    fn open(control_plane: &'a ControlPlane) -> Result<Self> {
        let script = format!("while :; do curl -sN {PAGE}/api/v1/live || sleep 0.5; done");
        let mut command = control_plane.command_in("sh");
        let mut listening = command.args(["-c", &script]).stdout(Stdio::piped()).spawn()?;
        let output = listening.stdout.take().context("piped above")?;
        let (told, lines) = std::sync::mpsc::channel();
        std::thread::spawn(move || {
            for line in BufReader::new(output).lines().map_while(Result::ok) {
                if line.starts_with("data:") && told.send(Instant::now()).is_err() {
                    return;
                }
            }
        });
        Ok(Page { control_plane, listening, lines })
    }

    /// When it shows that so many workers are Critical.
    fn shows(&mut self, critical: usize) -> Result<Instant> {
        loop {
            self.lines.recv_timeout(LONG).context("no event")?;
            // Of events that came while it fetched, one is enough.
            while self.lines.try_recv().is_ok() {}
            let report = self.control_plane.exec_in_ns(&["curl", "-sf", &format!("{PAGE}/api/v1/report")])?;
            let at = Instant::now();
            let report: Value = serde_json::from_str(&report)?;
            if report["workers"]["critical"] == critical {
                return Ok(at);
            }
        }
    }
}

impl Drop for Page<'_> {
    fn drop(&mut self) {
        self.listening.kill().ok();
        self.listening.wait().ok();
    }
}

/// CPU seconds of a process once it needs no more: what it was sent is taken in.
fn settled(pid: u32) -> Result<f64> {
    let mut before = cpu_seconds(pid)?;
    within(LONG, || {
        std::thread::sleep(Duration::from_millis(400));
        let (last, now) = (before, cpu_seconds(pid)?);
        before = now;
        // A tick of the clock is as much as its own rounds need meanwhile.
        ensure!(now - last < 0.015, "it still works");
        Ok(())
    })
    .context("the program is at rest")?;
    Ok(before)
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
