//! What the agent costs on a big node, beside its limits and beside what people use: 250 pods, 20,251 routes and the
//! rules of 10,000 Services, once with each backend of iptables; and one look at a node with 250 pods, 1,500 processes and
//! 500 mounts.
//!
//! `scripts/bench.sh loaded`, or one part: `loaded crowd`, `nft`, `legacy`; needs root. Everything is in network namespaces of its own. CPU is counted, never time on
//! the clock, so that it does not matter what else the machine does; only the last figures, from an event to its finding,
//! are times.

#![allow(clippy::print_stdout, reason = "prints its figures")]
#![allow(clippy::cast_precision_loss, reason = "figures for people")]

#[allow(unreachable_pub, reason = "parts of this benchmark")]
mod crowd;
#[path = "../figures/mod.rs"]
#[allow(unreachable_pub, dead_code, reason = "shared with the other benchmarks")]
mod figures;
#[path = "../../tests/netns/machine.rs"]
#[allow(unreachable_pub, dead_code, reason = "shared with the tests")]
mod machine;
#[allow(unreachable_pub, reason = "parts of this benchmark")]
mod node;
#[allow(unreachable_pub, reason = "parts of this benchmark")]
mod raw;
#[allow(unreachable_pub, reason = "parts of this benchmark")]
mod runtime;
#[path = "../../tests/support/mod.rs"]
mod support;

use std::io::{Read, Write};
use std::net::TcpStream;
use std::process::Stdio;
use std::sync::atomic::Ordering;
use std::thread::sleep;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use nix::time::{clock_getcpuclockid, clock_gettime};
use nix::unistd::Pid;
use serde_json::Value;

use figures::{figure, kib};
use machine::{Machine, program};
use node::{Backend, Ended, LEGACY, NFT, Node, PODS};
use support::wait::eventually;

/// For what takes some looks.
const SOON: Duration = Duration::from_secs(60);
/// How long the quiet node is watched, in seconds: every source has looked at least once. Large legacy tables are read once in
/// about twelve minutes.
const QUIET: u64 = 61;
const QUIET_LEGACY: u64 = 900;
/// How often something is changed, for medians.
const ROUNDS: usize = 20;
/// How often kube-proxy writes in the busy minute: more often than it does, for the mean.
const SYNCS: usize = 25;

fn main() -> Result<()> {
    let wanted = std::env::args().nth(1).filter(|argument| !argument.starts_with('-'));
    println!("program: {}", program().display());
    if wanted.as_deref().is_none_or(|wanted| wanted == "crowd") {
        crowd::look()?;
    }
    if wanted.as_deref() == Some("crowd") {
        return Ok(());
    }
    let empty = empty()?;
    for backend in [NFT, LEGACY] {
        if wanted.as_deref().is_none_or(|wanted| wanted == backend.name) {
            loaded(backend, empty)?;
        }
    }
    Ok(())
}

/// Resident memory of the agent where there is nothing to see, in MiB.
fn empty() -> Result<f64> {
    let machine = Machine::worker()?;
    let agent = Agent::start(&machine)?;
    sleep(Duration::from_secs(5));
    agent.memory("VmRSS")
}

fn loaded(backend: Backend, empty: f64) -> Result<()> {
    let node = Node::new(backend)?;
    let name = backend.name;
    let runtime = node.machine.path("run/containerd/containerd.sock");
    std::fs::create_dir_all(runtime.parent().context("a directory")?)?;
    runtime::start(&runtime, PODS)?;
    let agent = Agent::start(&node.machine)?;
    eventually("the addresses of all pods are learnt", SOON * 4, || {
        let routes = agent.get("/metrics")?;
        ensure!(value(&routes, "nodevitals_sandboxes") == Some(PODS as f64), "not yet");
        Ok(())
    });
    // Eight sandboxes are asked for their addresses in a look, every three seconds.
    sleep(Duration::from_secs(3 * PODS as u64 / 8 + 10));

    let quiet = quiet(&agent, name)?;
    figure(&format!("{name}: peak memory above that on an empty node"), agent.memory("VmHWM")? - empty, "MiB", 4.0);
    if name == NFT.name {
        routes(&node, &agent, quiet)?;
    }
    rules(&node, &agent, quiet)?;
    busy(&node, &agent, quiet)?;
    figure(&format!("{name}: the same after all of this"), agent.memory("VmHWM")? - empty, "MiB", 4.0);
    latency(&node, &agent)?;
    others(&node)
}

/// CPU of a minute in which nothing happens; answers it for one second.
fn quiet(agent: &Agent, name: &str) -> Result<f64> {
    let asked = || Ok::<_, anyhow::Error>((runtime::CALLS.load(Ordering::Relaxed), agent.looks(Some("runtime"))?));
    let (cpu, looks, calls) = (agent.cpu()?, agent.looks(None)?, asked()?);
    let seconds = if name == LEGACY.name { QUIET_LEGACY } else { QUIET };
    sleep(Duration::from_secs(seconds));
    let (cpu, looks) = (agent.cpu()? - cpu, agent.looks(None)? - looks);
    figure(&format!("{name}: CPU of a quiet minute"), cpu * 60.0 / seconds as f64, "s", 0.1);
    figure(&format!("{name}: CPU of one of its {looks} looks"), cpu / looks * 1000.0, "ms", 1.0);
    let now = asked()?;
    let calls = (now.0 - calls.0) as f64 / (now.1 - calls.1);
    figure(&format!("{name}: calls to the runtime of one of its looks"), calls, "", 10.0);
    Ok(cpu / seconds as f64)
}

/// CPU seconds of bare dumps, the median of nine, and how many messages came.
fn raw(node: &Node, dumps: &raw::Dumps) -> Result<(f64, usize)> {
    let mut all = (0..9).map(|_| node.machine.net().run(|| raw::dumps(dumps))).collect::<Result<Vec<_>>>()?;
    all.sort_by(|a, b| a.0.total_cmp(&b.0));
    Ok(all[all.len() / 2])
}

/// A look at the routing state against dumps of the same that nobody understands.
fn routes(node: &Node, agent: &Agent, quiet: f64) -> Result<()> {
    let (routes, count) = raw(node, &raw::ROUTES)?;
    println!("{:<60} {:>10.3} ms", format!("nft: a bare dump of {count} routes of both families"), routes * 1000.0);
    let (all, count) = raw(node, &raw::LOOK)?;
    println!("{:<60} {:>10.3} ms", format!("nft: bare dumps of all {count} objects of a look"), all * 1000.0);
    let look = agent.cost("routing", quiet, |round| {
        let change = ["add", "del"][round % 2];
        node.machine.run(&["ip", "route", change, "198.51.100.0/24", "via", "192.0.2.1"]).map(drop)
    })?;
    figure("nft: a look at the routing state, with all that follows", look * 1000.0, "ms", 50.0);
    figure("nft: that, for each second of the bare dumps", look / all, "s", 1.5);
    Ok(())
}

/// A look at the rules after a change.
fn rules(node: &Node, agent: &Agent, quiet: f64) -> Result<()> {
    if node.backend.name == LEGACY.name {
        // What a look costs there is in the minutes.
        return Ok(());
    }
    let (chains, count) = raw(node, &raw::CHAINS)?;
    println!("{:<60} {:>10.3} ms", format!("nft: a bare dump of {count} chains"), chains * 1000.0);
    let look = agent.cost("nftables", quiet, |round| {
        let change = ["-N", "-X"][round % 2];
        node.machine.run(&[node.backend.iptables, "-t", "mangle", change, "bench"]).map(drop)
    })?;
    figure("nft: a look at the rules after a change, with all that follows", look * 1000.0, "ms", 25.0);
    Ok(())
}

/// A minute in which kube-proxy writes, five Services at a time, and from it one in which it does so five times. With legacy tables
/// five such minutes, since what follows does not depend on how many writes there were.
fn busy(node: &Node, agent: &Agent, quiet: f64) -> Result<()> {
    let (before, begun) = (agent.cpu()?, Instant::now());
    for round in 0..SYNCS {
        node.edit(round)?;
        let next = Duration::from_secs(if node.backend.name == LEGACY.name { 300 } else { 60 })
            * u32::try_from(round + 1)?
            / u32::try_from(SYNCS)?;
        sleep(next.saturating_sub(begun.elapsed()));
    }
    let used = agent.cpu()? - before - quiet * begun.elapsed().as_secs_f64();
    let (name, one) = (node.backend.name, used / SYNCS as f64);
    println!("{:<60} {:>10.3} ms", format!("{name}: CPU of what follows one write of kube-proxy"), one * 1000.0);
    figure(&format!("{name}: CPU of a minute with five writes of kube-proxy"), quiet * 60.0 + 5.0 * one, "s", 0.1);
    Ok(())
}

/// From an event to its finding, be it held down or not.
fn latency(node: &Node, agent: &Agent) -> Result<()> {
    let name = node.backend.name;
    let route = |change: &'static str| ["ip", "route", change, "default", "via", "192.0.2.1"];
    // After a look the agent rests, for up to a second: a storm of events must not become one of looks. And what large
    // legacy tables cost is saved up for a few looks in a row, not for more.
    let rested = Duration::from_millis(1500);
    let run = |argv: &[&str]| node.machine.run(argv);
    let median =
        agent.latency("DefaultRouteMissing", (ROUNDS, rested), || run(&route("del")), || run(&route("add")))?;
    figure(&format!("{name}: from `ip route del default` to its finding, median"), median * 1000.0, "ms", 1000.0);
    let lock = format!("XTABLES_LOCKFILE={}", node.machine.place("run/xtables.lock"));
    let jump = |change: &'static str| {
        let comment = ["-m", "comment", "--comment", "kubernetes service portals", "-j", "KUBE-SERVICES"];
        run(&[&["env", &lock, node.backend.iptables, "-t", "nat", change, "PREROUTING"][..], &comment].concat())
    };
    let rounds = if name == LEGACY.name { (1, rested) } else { (ROUNDS, rested) };
    let median = agent.latency("KubeProxyChainsUnhooked", rounds, || jump("-D"), || jump("-I"))?;
    figure(&format!("{name}: from a jump that is deleted to its finding, median"), median * 1000.0, "ms", 1000.0);
    Ok(())
}

/// What people use, on the same node.
fn others(node: &Node) -> Result<()> {
    let Backend { name, save, .. } = node.backend;
    for command in [format!("{save} | grep -c KUBE-SVC"), "ip route | wc -l".to_owned()] {
        let before = children("self")?;
        for _ in 0..3 {
            node.machine.run(&["bash", "-c", &command])?;
        }
        println!("{:<60} {:>10.3} s", format!("{name}: {command}, CPU"), (children("self")? - before) / 3.0);
    }
    let mut child = Ended(node.machine.net().command(save).stdout(Stdio::piped()).spawn()?);
    let mut output = child.0.stdout.take().context("piped")?;
    let status = format!("/proc/{}/status", child.0.id());
    let (mut peak, mut buffer) = (0.0, vec![0; 1 << 16]);
    while output.read(&mut buffer)? > 0 {
        peak = std::fs::read_to_string(&status)
            .and_then(|text| kib(&text, "VmHWM").map_err(std::io::Error::other))
            .unwrap_or(peak);
    }
    println!("{:<60} {:>10.3} MiB", format!("{name}: {save}, peak memory"), peak / 1024.0);
    Ok(())
}

/// The agent on a node, in one process with an aggregator in place of an API server.
struct Agent<'a> {
    machine: &'a Machine,
    process: Ended,
}

impl<'a> Agent<'a> {
    fn start(machine: &'a Machine) -> Result<Self> {
        let mut command = machine.net().command(program());
        command.args(["standalone", "--host-root", &machine.place("")]).args(["--log-level", "error"]);
        // As in the DaemonSet.
        let process = command.env("MALLOC_ARENA_MAX", "1").stdout(Stdio::null()).spawn()?;
        let agent = Agent { machine, process: Ended(process) };
        eventually("the first look", SOON, || agent.get("/readyz"));
        Ok(agent)
    }

    fn get(&self, path: &str) -> Result<String> {
        self.machine.net().run(|| get(path))
    }

    /// CPU seconds of it and its children so far.
    fn cpu(&self) -> Result<f64> {
        let pid = self.process.0.id();
        let clock = clock_getcpuclockid(Pid::from_raw(i32::try_from(pid)?))?;
        Ok(Duration::from(clock_gettime(clock)?).as_secs_f64() + children(&pid.to_string())?)
    }

    /// A figure of its status, in MiB.
    fn memory(&self, key: &str) -> Result<f64> {
        Ok(kib(&std::fs::read_to_string(format!("/proc/{}/status", self.process.0.id()))?, key)? / 1024.0)
    }

    /// Looks of one source so far, or of all.
    fn looks(&self, source: Option<&str>) -> Result<f64> {
        let metrics = self.get("/metrics")?;
        let prefix = match source {
            Some(source) => format!("nodevitals_source_looks_total{{source=\"{source}\"}}"),
            None => "nodevitals_source_looks_total{".to_owned(),
        };
        let lines = metrics.lines().filter(|line| line.starts_with(&prefix));
        Ok(lines.filter_map(|line| line.rsplit(' ').next()?.parse::<f64>().ok()).sum())
    }

    /// CPU of one look of this source that `change` brings about, beyond what it uses anyway.
    fn cost(&self, source: &str, quiet: f64, mut change: impl FnMut(usize) -> Result<()>) -> Result<f64> {
        let (cpu, looks, begun) = (self.cpu()?, self.looks(Some(source))?, Instant::now());
        for round in 0..ROUNDS {
            change(round)?;
            sleep(Duration::from_millis(1500));
        }
        let (used, looks) = (self.cpu()? - cpu, self.looks(Some(source))? - looks);
        ensure!(looks >= ROUNDS as f64, "{source}: {looks} looks after {ROUNDS} changes");
        Ok((used - quiet * begun.elapsed().as_secs_f64()) / ROUNDS as f64)
    }

    /// Median of the seconds from the end of the command that breaks something to the finding.
    fn latency(
        &self,
        code: &str,
        (rounds, apart): (usize, Duration),
        damage: impl Fn() -> Result<String> + Sync,
        repair: impl Fn() -> Result<String> + Sync,
    ) -> Result<f64> {
        let mut all = Vec::new();
        for _ in 0..rounds {
            damage()?;
            all.push(self.until(code, true)?);
            repair()?;
            self.until(code, false)?;
            sleep(apart);
        }
        all.sort_by(f64::total_cmp);
        Ok(all[all.len() / 2])
    }

    /// Seconds until it tells of this code, or does no more.
    fn until(&self, code: &str, wanted: bool) -> Result<f64> {
        self.machine.net().run(|| {
            let begun = Instant::now();
            loop {
                let page: Value = serde_json::from_str(&get("/findings")?)?;
                let told = ["findings", "pending"].into_iter().any(|list| {
                    let list = page["verdict"][list].as_array().map_or(&[][..], Vec::as_slice);
                    list.iter().any(|finding| finding["code"] == code)
                });
                if told == wanted {
                    return Ok(begun.elapsed().as_secs_f64());
                }
                ensure!(begun.elapsed() < SOON, "{code} is {told} and should be {wanted}");
                sleep(Duration::from_millis(2));
            }
        })
    }
}

/// A page of the agent, for a thread in its network.
fn get(path: &str) -> Result<String> {
    let mut stream = TcpStream::connect("127.0.0.1:10580")?;
    stream.set_read_timeout(Some(Duration::from_secs(10)))?;
    write!(stream, "GET {path} HTTP/1.1\r\nHost: a\r\nConnection: close\r\n\r\n")?;
    let mut answer = String::new();
    stream.read_to_string(&mut answer)?;
    let (head, body) = answer.split_once("\r\n\r\n").context("an answer")?;
    ensure!(head.starts_with("HTTP/1.1 200 "), "{path}: {head}");
    Ok(body.to_owned())
}

/// The value of a metric without labels.
fn value(metrics: &str, name: &str) -> Option<f64> {
    metrics.lines().find_map(|line| line.strip_prefix(name)?.trim_start_matches("{}").trim().parse().ok())
}

/// CPU seconds of the children that a process has waited for: `cutime` and `cstime`, fields 16 and 17 of proc(5), in
/// hundredths.
fn children(pid: &str) -> Result<f64> {
    let stat = std::fs::read_to_string(format!("/proc/{pid}/stat"))?;
    let fields: Vec<&str> = stat.rsplit_once(')').context("a name")?.1.split_whitespace().collect();
    Ok(fields[13..15].iter().map(|field| field.parse::<f64>().unwrap_or(0.0)).sum::<f64>() / 100.0)
}
