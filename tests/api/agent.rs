//! The agent and the API server: what it writes, when, and what it makes of trouble.

use std::path::PathBuf;
use std::sync::atomic::{AtomicBool, AtomicU32, Ordering};
use std::thread::{scope, sleep};
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use nix::sys::signal::Signal;
use serde_json::{Value, json};

use crate::bench::{AGENT, Bench, Running, TYPES, condition_of, foreign, now, soon, stale};
use crate::support::shell;
use crate::support::wait::eventually;

/// How long an agent has to be quiet, and longer than the pause after which it reads its Node again.
const QUIET: Duration = Duration::from_secs(33);
/// What every kube-proxy makes, with the chains of the Service `default/kubernetes`.
const CHAINS: &str = "
*nat
:KUBE-SERVICES - [0:0]
:KUBE-POSTROUTING - [0:0]
:KUBE-MARK-MASQ - [0:0]
:KUBE-NODEPORTS - [0:0]
:KUBE-SVC-NPX46M4PTMTKRN6Y - [0:0]
:KUBE-SEP-KUBERNETESHTTPS - [0:0]
-A KUBE-SERVICES -d 10.96.0.1/32 -p tcp --dport 443 -j KUBE-SVC-NPX46M4PTMTKRN6Y
-A KUBE-SVC-NPX46M4PTMTKRN6Y -j KUBE-SEP-KUBERNETESHTTPS
-A KUBE-SEP-KUBERNETESHTTPS -p tcp -j DNAT --to-destination 10.77.0.1:6443
-A PREROUTING -j KUBE-SERVICES
-A OUTPUT -j KUBE-SERVICES
-A POSTROUTING -j KUBE-POSTROUTING
COMMIT
*filter
:KUBE-FORWARD - [0:0]
-A FORWARD -j KUBE-FORWARD
COMMIT
";

/// A worker with its agent's Pod.
fn worker(bench: &Bench, name: &str) -> Result<()> {
    bench.add_node(name, &json!({}))?;
    bench.add_agent_pod(name)
}

/// The Node once its agent has said something, and it is more than that it looks.
fn told(bench: &Bench, name: &str) -> Result<Value> {
    let node = bench.node(name)?;
    for kind in TYPES {
        let condition = condition_of(&node, kind)?;
        ensure!(condition["reason"] != "WorkerSettling" && condition["reason"] != "AgentStale", "{condition}");
    }
    Ok(node)
}

/// When each of our conditions last changed.
fn transitions(node: &Value) -> Result<Vec<&str>> {
    TYPES.iter().map(|kind| condition_of(node, kind)?["lastTransitionTime"].as_str().context("a time")).collect()
}

/// A worker with its agent's Pod and kube-proxy's chains.
pub(crate) fn worker_with_chains(bench: &Bench, name: &str) -> Result<()> {
    shell::read_with_input(&mut bench.command_in("iptables-nft-restore"), CHAINS)?;
    worker(bench, name)
}

/// Adds (`-A`) or deletes (`-D`) the jump by which Services are reached from the node itself.
pub(crate) fn jump(bench: &Bench, how: &str) -> Result<()> {
    bench.exec_in_ns(&["iptables-nft", "-t", "nat", how, "OUTPUT", "-j", "KUBE-SERVICES"]).map(|_| ())
}

/// Status and reason of the packet filter's condition.
pub(crate) fn packet_filter(bench: &Bench, node: &str, status: &str, reason: &str) -> Result<Value> {
    let node = bench.node(node)?;
    let condition = condition_of(&node, "PacketFilterProblem")?;
    ensure!(condition["status"] == status && condition["reason"] == reason, "{condition}");
    Ok(node)
}

#[test]
fn it_says_it_once_keeps_its_times_and_comes_back() -> Result<()> {
    let bench = Bench::take()?;
    for name in ["n1", "n2", "n3"] {
        worker(&bench, name)?;
    }
    bench.add_agent_pod("late")?;
    let before = bench.node("n1")?;
    let first = bench.agent("n1", "agent-n1", &[])?;
    let paused = bench.agent("n2", "agent-n2", &[])?;
    let stranger = bench.agent("n3", "agent-n1", &[])?;
    let early = bench.agent("late", "agent-late", &[])?;

    let node = soon("the conditions of n1", || told(&bench, "n1"));
    assert_eq!(foreign(&node), foreign(&before), "nothing else of the Node has changed");
    for annotation in ["state", "findings", "since", "boot-id", "machine-id", "version"] {
        assert!(node["metadata"]["annotations"][format!("nodevitals.dev/{annotation}")].is_string(), "{annotation}");
    }
    let writes = bench.writes_on("n1", AGENT)?;
    assert!(writes.len() <= 2, "{writes:#?}");
    assert!(writes.iter().all(|write| write["verb"] == "patch" && write["objectRef"]["subresource"] == "status"));
    first.check_metrics()?;
    assert_eq!(first.page("/readyz")?, "ok\n");

    no_such_node(&bench, &early)?;
    no_permission(&bench, &stranger)?;
    quiet_and_paused(&bench, &first, &paused)?;
    stranger.lives()?;
    assert!(told(&bench, "n3").is_err(), "it may not write there");
    restarted(&bench, first, &node)
}

/// It says what to do, does not end, and delivers as soon as there is a Node.
fn no_such_node(bench: &Bench, agent: &Running) -> Result<()> {
    let line = soon("the missing Node is told", || agent.said("check --node-name with `kubectl get nodes`"));
    assert_eq!((&line["level"], &line["node"]), (&json!("WARN"), &json!("late")), "{line}");
    agent.lives()?;
    bench.add_node("late", &json!({}))?;
    soon("the conditions of a Node that joined late", || told(bench, "late"));
    Ok(())
}

/// It says what to do, and does not end.
fn no_permission(bench: &Bench, agent: &Running) -> Result<()> {
    let line = soon("the refusal is told", || agent.said("no permission: apply deploy/"));
    let error = line["error"].as_str().unwrap_or_default();
    assert!(error.contains("the token is for n1, the request is for n3"), "{line}");
    assert_eq!(line["verb"], "PATCH");
    assert_eq!(bench.writes_on("n3", AGENT)?[0]["responseStatus"]["code"], 403);
    agent.lives()
}

/// One is left alone and writes nothing. The other is stopped, its Node is marked as the aggregator would, and it puts
/// that right when it goes on.
fn quiet_and_paused(bench: &Bench, quiet: &Running, paused: &Running) -> Result<()> {
    let known = soon("the conditions of n2", || told(bench, "n2"));
    let writes = bench.writes_on("n1", AGENT)?.len();
    paused.signal(Signal::SIGSTOP)?;
    bench.add_pod("aggregator", "aggregator", "n3")?;
    let marked =
        bench.send(&bench.token("aggregator", "aggregator")?, "PATCH strategic /api/v1/nodes/n2/status", &stale())?;
    assert_eq!(marked.code, 200, "{marked:?}");
    // A time in which nothing may happen has to pass.
    sleep(QUIET);
    let new = bench.writes_on("n1", AGENT)?.split_off(writes);
    assert!(new.is_empty(), "a quiet node writes nothing: {new:#?}");
    quiet.lives()?;
    paused.signal(Signal::SIGCONT)?;
    let node = soon("n2 is put right", || told(bench, "n2"));
    assert_eq!(foreign(&node), foreign(&known));
    assert_ne!(node["metadata"]["annotations"]["nodevitals.dev/state"], "Unknown");
    Ok(())
}

/// A restart moves no time and writes nothing; what was marked meanwhile is put right.
fn restarted(bench: &Bench, agent: Running, before: &Value) -> Result<()> {
    let writes = bench.writes_on("n1", AGENT)?.len();
    agent.end()?;
    drop(agent);
    let agent = bench.agent("n1", "agent-n1", &[])?;
    soon("the first look", || agent.page("/readyz"));
    // The first verdict is there; a write would follow at once.
    sleep(Duration::from_secs(5));
    assert_eq!(transitions(&bench.node("n1")?)?, transitions(before)?);
    let new = bench.writes_on("n1", AGENT)?.split_off(writes);
    assert!(new.is_empty(), "{new:#?}");

    drop(agent);
    bench.admin("PATCH strategic /api/v1/nodes/n1/status", &stale())?;
    let _agent = bench.agent("n1", "agent-n1", &[])?;
    let node = soon("n1 is put right", || told(bench, "n1"));
    assert_eq!(
        node["metadata"]["annotations"]["nodevitals.dev/state"],
        before["metadata"]["annotations"]["nodevitals.dev/state"]
    );
    Ok(())
}

#[test]
fn it_and_others_who_write_at_once_lose_nothing() -> Result<()> {
    let bench = Bench::take()?;
    worker_with_chains(&bench, "r1")?;
    // A write every second, for more of them to meet those of the others.
    let agent = bench.agent("r1", "agent-r1", &["--heartbeat", "1"])?;
    soon("the conditions", || packet_filter(&bench, "r1", "False", "PacketFilterHealthy"));
    let over = AtomicBool::new(false);
    let passed = AtomicU32::new(0);
    let (kubelet, calico, other) = scope(|scope| {
        let kubelet = scope.spawn(|| KUBELET.writes(&bench, &over));
        let calico = scope.spawn(|| CALICO.writes(&bench, &over));
        let other = scope.spawn(|| replaces_the_node(&bench, &over, &passed));
        let end = End(&over);
        for _ in 0..3 {
            jump(&bench, "-D")?;
            let node = soon("the jump is missed", || packet_filter(&bench, "r1", "True", "KubeProxyChainsUnhooked"));
            assert_eq!(node["metadata"]["annotations"]["nodevitals.dev/state"], "Critical");
            jump(&bench, "-A")?;
            soon("it is back", || packet_filter(&bench, "r1", "False", "PacketFilterHealthy"));
        }
        // Who puts the whole object back loses most races; it has to win some, or nothing was tried.
        soon("the one who replaces the Node has got through", || {
            let passed = passed.load(Ordering::Relaxed);
            ensure!(passed > 5, "{passed} times");
            Ok(())
        });
        drop(end);
        let (kubelet, calico) = (kubelet.join().expect("no panic")?, calico.join().expect("no panic")?);
        Ok::<_, anyhow::Error>((kubelet, calico, other.join().expect("no panic")?))
    })?;
    let node = told(&bench, "r1")?;
    for last in [&kubelet, &calico] {
        let condition = condition_of(&node, last["type"].as_str().context("a type")?)?;
        let same = |key: &str| condition[key] == last[key];
        assert!(["status", "reason", "message"].into_iter().all(same), "{condition}, and the last was {last}");
    }
    assert_eq!(node["metadata"]["annotations"]["other/count"], other.to_string());
    assert_eq!(node["status"]["conditions"].as_array().map(Vec::len), Some(TYPES.len() + 6));
    assert!(agent.said("cannot write to the Node").is_err(), "its writes have all passed");
    let writes = bench.writes_on("r1", AGENT)?;
    // At least three faults and three repairs, and heartbeats between them.
    assert!(writes.len() > 6, "{} writes beside {other}, {kubelet} and {calico}", writes.len());
    Ok(())
}

/// Tells the other writers that it is over, also after a failure.
struct End<'a>(&'a AtomicBool);

impl Drop for End<'_> {
    fn drop(&mut self) {
        self.0.store(true, Ordering::Relaxed);
    }
}

/// Who patches one condition of the Node beside the agent.
struct Patcher {
    kind: &'static str,
    /// Status and reason, in turns.
    says: &'static [(&'static str, &'static str)],
    /// The times that it writes.
    times: &'static [&'static str],
    /// Between two writes.
    pause: Duration,
}

// Without a pause who replaces the Node would have no chance.
const KUBELET: Patcher = Patcher {
    kind: "Ready",
    says: &[("True", "KubeletReady")],
    times: &["lastHeartbeatTime"],
    pause: Duration::from_millis(100),
};
/// It writes when it comes up and goes.
const CALICO: Patcher = Patcher {
    kind: "NetworkUnavailable",
    says: &[("False", "CalicoIsUp"), ("True", "CalicoIsDown")],
    times: &["lastHeartbeatTime", "lastTransitionTime"],
    pause: Duration::from_millis(300),
};

impl Patcher {
    /// Writes until it is over, with a count, and looks at each answer; answers with the condition that it wrote last.
    fn writes(&self, bench: &Bench, over: &AtomicBool) -> Result<Value> {
        let mut last = Value::Null;
        for (count, (status, reason)) in self.says.iter().cycle().enumerate() {
            if over.load(Ordering::Relaxed) {
                break;
            }
            let message = format!("{reason} {count}");
            last = json!({"type": self.kind, "status": status, "reason": reason, "message": message});
            for time in self.times {
                last[*time] = now().into();
            }
            let patch = json!({"status": {"conditions": [last]}});
            let node = bench.admin("PATCH strategic /api/v1/nodes/r1/status", &patch)?;
            ensure!(condition_of(&node, self.kind)?["message"] == last["message"], "{node}");
            for kind in TYPES {
                condition_of(&node, kind)?;
            }
            sleep(self.pause);
        }
        Ok(last)
    }
}

/// Writes as older controllers do: reads the whole Node and puts it back, unless somebody was faster.
fn replaces_the_node(bench: &Bench, over: &AtomicBool, passed: &AtomicU32) -> Result<u32> {
    let mut count = 0;
    while !over.load(Ordering::Relaxed) {
        let mut node = bench.node("r1")?;
        node["metadata"]["annotations"]["other/count"] = (count + 1).to_string().into();
        match bench.admin("PUT plain /api/v1/nodes/r1/status", &node) {
            Ok(_) => {
                count += 1;
                passed.store(count, Ordering::Relaxed);
            }
            Err(error) => ensure!(error.to_string().contains(": 409 "), "{error}"),
        }
    }
    Ok(count)
}

#[test]
fn what_happens_while_the_api_server_is_away_is_delivered() -> Result<()> {
    let bench = Bench::take()?;
    worker_with_chains(&bench, "o1")?;
    let agent = bench.agent("o1", "agent-o1", &[])?;
    soon("the conditions", || packet_filter(&bench, "o1", "False", "PacketFilterHealthy"));
    let writes = bench.writes_on("o1", AGENT)?.len();
    let outage = Outage::begin(&bench)?;
    jump(&bench, "-D")?;
    // Local first: the log has it, and the page, though nobody can be told.
    soon("the finding is raised", || agent.said("finding raised"));
    assert!(agent.page("/findings")?.contains("KubeProxyChainsUnhooked"));
    let line = soon("the failure is told", || agent.said("the API server cannot be reached"));
    assert_eq!(line["level"], "WARN");
    outage.end();
    // It tries again a minute and a half later at most.
    let raised = || packet_filter(&bench, "o1", "True", "KubeProxyChainsUnhooked");
    let node = eventually("the finding is on the Node", Duration::from_secs(90), raised);
    let findings = node["metadata"]["annotations"]["nodevitals.dev/findings"].as_str();
    assert!(findings.is_some_and(|findings| findings.contains("KubeProxyChainsUnhooked")));
    assert_eq!(bench.writes_on("o1", AGENT)?.len() - writes, 1, "one patch tells all");
    jump(&bench, "-A")?;
    soon("it is over", || packet_filter(&bench, "o1", "False", "PacketFilterHealthy"));
    Ok(())
}

/// A time without an API server.
pub(crate) struct Outage<'a> {
    bench: &'a Bench,
    /// What it is started with when it is over.
    pub(crate) arguments: Vec<String>,
}

impl<'a> Outage<'a> {
    pub(crate) fn begin(bench: &'a Bench) -> Result<Self> {
        let file: PathBuf = format!("/proc/{}/cmdline", bench.host().pid("kube-apiserver")?).into();
        let line = std::fs::read_to_string(file)?;
        let arguments = line.split_terminator('\0').map(str::to_owned).collect();
        bench.host().kill("kube-apiserver")?;
        Ok(Self { bench, arguments })
    }

    pub(crate) fn end(self) {
        let bench = self.bench;
        drop(self);
        eventually("the API server is back", Duration::from_secs(90), || bench.raw("/readyz"));
    }
}

impl Drop for Outage<'_> {
    /// Also after a failure: other tests need it.
    fn drop(&mut self) {
        // If it does not start, whoever waits for it says so.
        let _ = self.bench.host().spawn("kube-apiserver", &self.arguments);
    }
}
