//! Five thousand agents' writers and one real API server: what it costs when nothing happens, and when all lose the same
//! route at once. `scripts/bench.sh storm`

#![allow(clippy::print_stdout, reason = "prints its figures")]

use std::collections::BTreeMap;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use futures::stream::{self, StreamExt, TryStreamExt};
use jiff::Timestamp;
use serde_json::{Value, json};
use tokio::sync::{Notify, watch};

use self::support::control_plane::{Bound, ControlPlane, Parts};
use super::{Fates, Pace, Writer};
use crate::api::Api;
use crate::checks::{Area, WORKER_PROBLEM};
use crate::verdict::{NodeCondition, Status, Told, annotation};

#[path = "../../../tests/support/mod.rs"]
mod support;

const AGENTS: usize = 5_000;
/// All agents together write so often in a second.
const RATE: u32 = 200;
/// Every condition is written within this time.
const WITHIN: Duration = Duration::from_secs(60);
/// For what is only prepared, on a machine that is busy with something else.
const LONG: Duration = Duration::from_secs(600);
const QUIET: Duration = Duration::from_secs(60);
/// Nobody has a map: how many there are their `DaemonSet` says.
const SET: &str = "/apis/apps/v1/namespaces/nodevitals/daemonsets/nodevitals-agent";
const AGENT: &str = "system:serviceaccount:nodevitals:nodevitals-agent";

fn name(index: usize) -> String {
    format!("worker-{index:05}")
}

/// What is told of a worker that is well, or has no route to the pods of another.
fn told(well: bool) -> Told {
    let now = Timestamp::now();
    let said = "Pods of node worker-00001 in 172.16.1.0/26 have no route; packets to it would take `default via 10.0.0.1`. \
                Next: check how calico-node here gets routes and delete its pod so that it programs them again.";
    let finding = json!([{
        "code": "RemoteBlockRouteMissing", "severity": "critical", "area": "podRouting", "subject": "worker-00001", "since": now,
        "detail": said, "next": said,
    }]);
    let condition = |kind: &str, healthy: &str, affected: bool| NodeCondition {
        kind: kind.to_owned(),
        status: if affected { Status::True } else { Status::False },
        reason: if affected { "RemoteBlockRouteMissing" } else { healthy }.to_owned(),
        message: if affected { said } else { "No problem found." }.to_owned(),
        last_transition_time: Some(now),
    };
    let mut conditions = vec![condition(WORKER_PROBLEM, "WorkerHealthy", !well)];
    conditions.extend(
        Area::ALL.map(|area| condition(area.condition(), area.healthy_reason(), !well && area == Area::PodRouting)),
    );
    let annotations = [
        (annotation::STATE, if well { "Normal" } else { "Critical" }.to_owned()),
        (annotation::SINCE, now.to_string()),
        (annotation::FINDINGS, if well { "[]".to_owned() } else { finding.to_string() }),
    ];
    Told { conditions, annotations: annotations.map(|(key, value)| (key.to_owned(), value)).into() }
}

/// The agents of all nodes.
struct Agents {
    told: watch::Sender<Option<Told>>,
    fates: Vec<Fates>,
}

impl Agents {
    /// Each has read its Node before it has something to tell, as the agent does.
    async fn start(api: &Api) -> Self {
        let (told, _) = watch::channel(None);
        let start = async |index| {
            let mut writer = Writer::new(vec![api.clone()], name(index), told.subscribe(), Arc::new(Notify::new()), 0);
            writer = writer.among(Pace::new(Arc::new(|| 0), SET.to_owned(), RATE));
            writer.read().await;
            let fates = writer.fates();
            tokio::spawn(writer.run());
            fates
        };
        let fates = stream::iter(0..AGENTS).map(start).buffer_unordered(AGENTS).collect().await;
        Agents { told, fates }
    }

    fn written(&self) -> u64 {
        self.fates.iter().map(Fates::written).sum()
    }

    fn failed(&self) -> u64 {
        self.fates.iter().map(Fates::failed).sum()
    }

    /// Tells all the same, and waits until each has written it.
    async fn tell(&self, well: bool) -> Result<Duration> {
        let (before, began) = (self.written(), Instant::now());
        self.told.send_replace(Some(told(well)));
        while self.written() < before + AGENTS as u64 {
            ensure!(began.elapsed() < LONG, "{} of {AGENTS} have written", self.written() - before);
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
        Ok(began.elapsed())
    }
}

async fn post(client: &kube::Client, index: usize) -> Result<()> {
    let node = json!({"apiVersion": "v1", "kind": "Node", "metadata": {"name": name(index)},
        "status": {"conditions": [{"type": "Ready", "status": "True", "reason": "KubeletReady"}]}});
    let request = http::Request::post("/api/v1/nodes")
        .header("content-type", "application/json")
        .body(node.to_string().into_bytes())?;
    client.request::<Value>(request).await.map(drop).with_context(|| name(index))
}

/// The agents' patches in the API server's audit log from here on.
fn patches(control_plane: &ControlPlane, from: usize) -> Result<Vec<Value>> {
    let mut all = control_plane.writes_by(AGENT)?;
    // Whether writes are taken again is tried without writing.
    let tried = |event: &Value| event["requestURI"].as_str().is_some_and(|uri| uri.contains("dryRun="));
    all.retain(|event| event["verb"] == "patch" && !tried(event));
    Ok(all.split_off(from))
}

#[expect(clippy::cast_precision_loss, reason = "a few thousand")]
fn ratio(part: usize, whole: usize) -> f64 {
    part as f64 / whole as f64
}

/// When the API server received them.
fn received(patches: &[Value]) -> Result<Vec<Timestamp>> {
    let at = |event: &Value| -> Result<Timestamp> {
        event["requestReceivedTimestamp"].as_str().context("a time")?.parse().context("a time")
    };
    patches.iter().map(at).collect()
}

/// The most of them within any second.
fn most_in_a_second(mut times: Vec<Timestamp>) -> usize {
    times.sort_unstable();
    let within = |from: &Timestamp| times.partition_point(|at| at.duration_since(*from).as_secs() < 1);
    times.iter().enumerate().map(|(index, from)| within(from) - index).max().unwrap_or_default()
}

/// How many there are in each second from the first on.
fn by_second(times: &[Timestamp]) -> Vec<usize> {
    let Some(first) = times.iter().min() else { return Vec::new() };
    let second = |at: &Timestamp| usize::try_from(at.duration_since(*first).as_secs()).unwrap_or(0);
    let mut seconds = vec![0; times.iter().map(second).max().unwrap_or(0) + 1];
    for at in times {
        seconds[second(at)] += 1;
    }
    seconds
}

/// When the agents sent their patches.
#[derive(Clone, Default)]
struct Sent(Arc<Mutex<Vec<Timestamp>>>);

impl Sent {
    /// The same clients, which note when a patch leaves.
    fn noting(&self, api: &Api) -> Api {
        let (sent, client) = (self.clone(), api.unary.clone());
        let service = tower::service_fn(move |request: http::Request<kube::client::Body>| {
            if request.method() == http::Method::PATCH && request.uri().query().is_none_or(|it| !it.contains("dryRun="))
            {
                sent.0.lock().expect("no panic").push(Timestamp::now());
            }
            let client = client.clone();
            async move { client.send(request).await }
        });
        Api { unary: kube::Client::new(service, "default"), ..api.clone() }
    }

    fn take(&self) -> Vec<Timestamp> {
        std::mem::take(&mut *self.0.lock().expect("no panic"))
    }
}

/// How long this machine, which does other work too, and the API server on it let what was due wait.
struct Stall(Arc<AtomicU64>);

impl Stall {
    fn watch(client: &kube::Client) -> Self {
        const TICK: Duration = Duration::from_millis(20);
        let longest = Arc::new(AtomicU64::new(0));
        let (seen, client) = (Arc::downgrade(&longest), client.clone());
        tokio::spawn(async move {
            while let Some(seen) = seen.upgrade() {
                let began = Instant::now();
                tokio::time::sleep(TICK).await;
                let ask = http::Request::get(format!("/api/v1/nodes/{}", name(0))).body(Vec::new());
                client.request_text(ask.expect("a request")).await.expect("the API server answers");
                let late = began.elapsed().saturating_sub(TICK);
                seen.fetch_max(u64::try_from(late.as_millis()).unwrap_or(u64::MAX), Ordering::Relaxed);
            }
        });
        Stall(longest)
    }

    fn longest(&self) -> Duration {
        Duration::from_millis(self.0.load(Ordering::Relaxed))
    }
}

/// How many were answered with which code.
fn by_code(patches: &[Value]) -> BTreeMap<String, usize> {
    let mut codes = BTreeMap::new();
    for event in patches {
        *codes.entry(event["responseStatus"]["code"].to_string()).or_default() += 1;
    }
    codes
}

fn taken(patches: &[Value]) -> Vec<&Value> {
    patches.iter().filter(|event| event["responseStatus"]["code"] == 200).collect()
}

/// All Nodes, and what the controller of the `DaemonSet` would say in it.
async fn prepare(client: &kube::Client) -> Result<()> {
    let nodes = stream::iter(0..AGENTS).map(|index| post(client, index)).buffer_unordered(32);
    nodes.try_collect::<Vec<()>>().await?;
    let status = json!({"status": {"desiredNumberScheduled": AGENTS}});
    let status = http::Request::patch(format!("{SET}/status"))
        .header("content-type", "application/merge-patch+json")
        .body(status.to_string().into_bytes())?;
    client.request::<Value>(status).await.map(drop).context("the DaemonSet")
}

/// How many Nodes tell of the route.
async fn telling(client: &kube::Client) -> Result<usize> {
    let list: Value = client.request(http::Request::get("/api/v1/nodes").body(Vec::new())?).await?;
    let tells = |node: &&Value| {
        let conditions = node["status"]["conditions"].as_array();
        conditions.is_some_and(|all| all.iter().any(|it| it["type"] == "PodRoutingProblem" && it["status"] == "True"))
    };
    Ok(list["items"].as_array().context("nodes")?.iter().filter(tells).count())
}

async fn run(control_plane: &ControlPlane, admin: Api, agent: Api) -> Result<()> {
    prepare(&admin.unary).await?;
    let sent = Sent::default();
    let agents = Agents::start(&sent.noting(&agent)).await;
    let took = agents.tell(true).await?;
    let first = patches(control_plane, 0)?;
    let leaving = sent.take();
    println!("sent in each second: {:?}; received: {:?}", by_second(&leaving), by_second(&received(&first)?));
    let most_first = most_in_a_second(leaving);
    println!(
        "first writes of {AGENTS} agents at once: {:.1} s, {} refused or failed; answers to patches {:?}; most in a second: \
         sent {most_first}, received {}, limit {RATE}",
        took.as_secs_f64(),
        agents.failed(),
        by_code(&first),
        most_in_a_second(received(&first)?),
    );
    tokio::time::sleep(Duration::from_secs(2)).await;

    let before = patches(control_plane, 0)?.len();
    tokio::time::sleep(QUIET).await;
    let quiet = patches(control_plane, before)?.len();
    println!("writes in a quiet minute: {quiet}");

    let failed = agents.failed();
    let stall = Stall::watch(&admin.unary);
    let took = agents.tell(false).await?;
    let stalled = stall.longest();
    tokio::time::sleep(Duration::from_secs(2)).await;
    let storm = patches(control_plane, before + quiet)?;
    let taken = taken(&storm);
    let bytes = taken.iter().map(|event| event["requestObject"].to_string().len()).max().unwrap_or_default();
    let leaving = sent.take();
    println!("sent in each second: {:?}; received: {:?}", by_second(&leaving), by_second(&received(&storm)?));
    let left = leaving.len();
    let most_sent = most_in_a_second(leaving);
    let most = most_in_a_second(received(&storm)?);
    println!(
        "all conditions written after {:.1} s; refused or failed {}",
        took.as_secs_f64(),
        agents.failed() - failed
    );
    println!(
        "{left} sent (most in a second {most_sent}, limit {RATE}), {} received (most in a second {most}; an answer took up \
         to {} ms), refused {}; {:.3} patches for a transition; {bytes} bytes at most",
        storm.len(),
        stalled.as_millis(),
        storm.len() - taken.len(),
        ratio(storm.len(), AGENTS)
    );

    let telling = telling(&admin.unary).await?;
    ensure!(telling == AGENTS, "{telling} of {AGENTS} Nodes tell");
    ensure!(quiet == 0, "{quiet} writes while nothing happened");
    ensure!(storm.len() * 10 <= AGENTS * 11, "{} patches for {AGENTS} transitions", storm.len());
    ensure!(most_first <= RATE as usize, "{most_first} first patches were sent within a second");
    ensure!(most_sent <= RATE as usize, "{most_sent} patches were sent within a second");
    // What could not arrive while the machine stood still arrives when it goes on.
    let limit = 1.0 + stalled.as_secs_f64();
    ensure!(ratio(most, RATE as usize) <= limit, "{most} patches within a second");
    ensure!(bytes <= 4096, "{bytes} bytes in a patch");
    ensure!(took <= WITHIN, "all conditions were written after {took:?}, and {WITHIN:?} are the limit");
    Ok(())
}

#[test]
#[ignore = "takes minutes, memory and a control plane: scripts/bench.sh storm"]
fn five_thousand_agents_lose_the_same_route_at_once() -> Result<()> {
    let control_plane = ControlPlane::start(Parts::ApiOnly)?;
    control_plane.apply(include_str!("../../../deploy/namespace.yaml"))?;
    // The API server weighs the agents as one user, as it does in a cluster; the administrator is let through always. One
    // token writes for all, so the policy that holds a token to its node is left out.
    control_plane.apply(include_str!("../../../deploy/rbac-agent.yaml"))?;
    control_plane.apply(include_str!("../../../deploy/agent.yaml"))?;
    let agent = control_plane.service_account_kubeconfig("nodevitals", "nodevitals-agent", Bound::Nothing)?;
    let admin = control_plane.admin_kubeconfig()?;
    control_plane.host().run_in_network(|| {
        let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build()?;
        runtime.block_on(async {
            let admin = crate::api::connect(Some(&admin), None).await?;
            let agent = crate::api::connect(Some(&agent), None).await?;
            run(&control_plane, admin, agent).await
        })
    })?
}
