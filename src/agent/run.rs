//! The loop: look, judge, believe, tell.

use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use anyhow::Context;
use tokio::net::TcpListener;
use tokio::sync::{Notify, watch};
use tokio::time::{Instant, sleep_until, timeout};

use super::observe::{self, HostRoot, Observer};
use super::publish::{NodeNow, Writer};
use super::watchdog::Heart;
use super::{AgentPages, Judge, Options, Report};
use crate::api::{self, Api};
use crate::checks::WORKER_PROBLEM;
use crate::clock::{now, since_boot};
use crate::config::Config;
use crate::facts::Identity;
use crate::verdict::{self, Now, Raised, Status, Told, Verdict, told};

/// The first verdict waits this long for sources that have not answered yet; theirs is then unknown.
const FIRST_LOOK: Duration = Duration::from_millis(600);
/// One look of `nodevitals check` takes this long at most.
const ONE_LOOK: Duration = Duration::from_secs(8);
/// After a change the loop waits this long for more: events come in bursts, and one verdict tells of all.
const BURST: Duration = Duration::from_millis(20);
/// A loop that was away for longer was paused or suspended: what the Node says has to be read again.
const PAUSED: Duration = Duration::from_secs(30);
/// So much later than asked for nobody judges unless the process was stopped.
const LATE: Duration = Duration::from_secs(5);

/// A node that is being watched: the judge and its last verdict, shared with the pages.
#[derive(Debug)]
pub(crate) struct Watched {
    state: Mutex<(Judge, Option<Verdict>)>,
    stats: observe::Stats,
}

impl Watched {
    fn new(judge: Judge, stats: observe::Stats) -> Self {
        Watched { state: Mutex::new((judge, None)), stats }
    }

    /// Counters of the sources.
    pub(crate) fn stats(&self) -> &observe::Stats {
        &self.stats
    }

    /// Reads what is known and believed; no verdict before the first look.
    pub(crate) fn read<T>(&self, read: impl FnOnce(&Judge, Option<&Verdict>) -> T) -> T {
        let state = self.state.lock().unwrap_or_else(PoisonError::into_inner);
        read(&state.0, state.1.as_ref())
    }

    fn change<T>(&self, change: impl FnOnce(&mut Judge) -> T) -> T {
        change(&mut self.state.lock().unwrap_or_else(PoisonError::into_inner).0)
    }

    /// Judges what is known now; answers with the findings before and the verdict.
    fn judge(&self) -> (Option<Verdict>, Verdict) {
        let mut state = self.state.lock().unwrap_or_else(PoisonError::into_inner);
        let verdict = state.0.judge(now());
        let before = state.1.replace(verdict.clone());
        (before, verdict)
    }
}

/// Runs the agent until it is told to end.
///
/// # Errors
/// When the configuration, the kubeconfig or the listening address cannot be used.
pub async fn run(options: Options) -> anyhow::Result<()> {
    let config = Config::load(options.config.as_deref())?;
    let host = HostRoot::new(&options.host_root);
    if !host.path("/proc/self").exists() {
        anyhow::bail!(
            "--host-root {}: holds no mounted /proc; give the directory where the node's / is mounted",
            options.host_root.display()
        );
    }
    let listener = TcpListener::bind(options.listen).await;
    let listener = listener.with_context(|| format!("--listen {}: cannot listen there", options.listen))?;
    let ways = ways(&options, &host).await?;
    tracing::info!(
        node = options.node_name,
        version = env!("CARGO_PKG_VERSION"),
        server = ways[0].server,
        "agent started"
    );

    let (tell, told) = watch::channel(None);
    let doubt = Arc::new(Notify::new());
    let every = Duration::from_secs(options.map_interval);
    let asked = (!every.is_zero()).then(|| observe::Asked {
        ways: ways.clone(),
        node: options.node_name.clone(),
        namespace: options.namespace.clone(),
        every,
    });
    let mut writer = Writer::new(ways, options.node_name.clone(), told, Arc::clone(&doubt), options.heartbeat);
    let observer = observe::start(&host, asked);
    let identity = Identity { node_name: Some(options.node_name.clone()), ..observe::identity(&host) };
    let mut judge = Judge::new(identity, &config, now());
    let node = timeout(FIRST_LOOK, writer.read()).await.ok().flatten();
    if let Some(node) = &node {
        restore(&mut judge, node);
    }
    if !node.as_ref().is_some_and(|node| has_settled(&judge, node)) {
        judge.settle(node.and_then(|node| node.created), now());
    }
    let watched = Arc::new(Watched::new(judge, observer.stats().clone()));
    let pages = AgentPages::new(Arc::clone(&watched), Some(writer.fates()));
    tokio::spawn(crate::http::serve(listener, Arc::new(pages)));
    tokio::spawn(writer.run());
    let heart = Heart::default();
    heart.watch();
    tokio::select! {
        () = watch_node(&watched, observer, &tell, &doubt, &heart) => anyhow::bail!("the sources ended"),
        signal = ended() => {
            tracing::info!(signal, "agent ends");
            Ok(())
        }
    }
}

/// Ways to the API server, best first.
async fn ways(options: &Options, host: &HostRoot) -> anyhow::Result<Vec<Api>> {
    match &options.kubeconfig {
        Some(path) => Ok(vec![api::connect(Some(path), None).await?]),
        None => api::from_pod(observe::kubelet_server(host).as_deref()),
    }
}

fn restore(judge: &mut Judge, node: &NodeNow) {
    let findings: Vec<Raised> = node
        .annotations
        .get(verdict::annotation::FINDINGS)
        .map(|json| verdict::parse_findings(json))
        .unwrap_or_default();
    let conditions = node.conditions.values();
    let conditions =
        conditions.filter_map(|it| Some((it.kind.clone(), (it.status, it.last_transition_time?)))).collect();
    judge.restore(&findings, &conditions, verdict::parse_state(&node.annotations), now());
    if node.annotations.get(verdict::annotation::BOOT_ID) == Some(&judge.snapshot().identity.boot_id) {
        judge.remember(&findings);
    }
}

/// Whether an earlier process of this boot has come to a verdict: there is nothing to wait for any more.
fn has_settled(judge: &Judge, node: &NodeNow) -> bool {
    let same_boot = node.annotations.get(verdict::annotation::BOOT_ID) == Some(&judge.snapshot().identity.boot_id);
    let roll_up = node.conditions.get(WORKER_PROBLEM);
    same_boot && roll_up.is_some_and(|it| it.status != Status::Unknown || it.reason == verdict::AGENT_STALE)
}

/// Watches the node for ever: takes updates in, judges when something changed or a hold-down ends, and tells.
pub(crate) async fn watch_node(
    watched: &Watched,
    mut observer: Observer,
    tell: &watch::Sender<Option<Told>>,
    doubt: &Notify,
    heart: &Heart,
) {
    let first_look = Instant::now() + FIRST_LOOK;
    let mut judge_at = Some(first_look);
    let mut last_round = since_boot();
    let mut due = None;
    loop {
        let wake = async {
            match judge_at {
                Some(at) => sleep_until(at).await,
                None => std::future::pending().await,
            }
        };
        tokio::select! {
            update = observer.next() => {
                let Some(update) = update else { return };
                let (changed, complete) = watched.change(|judge| (judge.take(update), judge.complete()));
                let started = watched.read(|_, verdict| verdict.is_some());
                if changed && (started || complete) {
                    let soon = Instant::now() + BURST;
                    judge_at = Some(judge_at.map_or(soon, |at| at.min(soon)));
                }
            }
            () = wake => {
                if due.is_some_and(|due| since_boot().saturating_sub(due) > LATE) {
                    watched.change(|judge| judge.was_away(now()));
                }
                let (before, verdict) = watched.judge();
                log(before.as_ref(), &verdict);
                due = verdict.look_again_in.map(|wait| since_boot() + wait);
                judge_at = verdict.look_again_in.map(|wait| Instant::now() + wait.max(BURST));
                say(watched, tell, &verdict);
            }
        }
        heart.beat();
        let round = since_boot();
        if round.saturating_sub(last_round) > PAUSED {
            tracing::info!(seconds = round.saturating_sub(last_round).as_secs(), "was paused");
            doubt.notify_one();
        }
        last_round = round;
    }
}

/// Hands on what should be on the Node, if it is different from before.
fn say(watched: &Watched, tell: &watch::Sender<Option<Told>>, verdict: &Verdict) {
    let new = watched.read(|judge, _| told(verdict, &judge.snapshot().identity));
    tell.send_if_modified(|old| {
        let different = old.as_ref() != Some(&new);
        if different {
            *old = Some(new);
        }
        different
    });
}

/// One look at this machine. There is no history in it, so whatever it sees counts at once.
pub(crate) async fn look_once(host: &HostRoot, config: &Config) -> Report {
    let mut observer = observe::start(host, None);
    let mut judge = Judge::new(observe::identity(host), config, now());
    let end = Instant::now() + ONE_LOOK;
    while !judge.complete() {
        let Ok(Some(update)) = tokio::time::timeout_at(end, observer.next()).await else { break };
        judge.take(update);
    }
    // What one source learnt another may need: the pods their routes, the runtime's directories their files.
    loop {
        let patience = Duration::from_millis(if judge.settled() { 300 } else { 3000 });
        let until = end.min(Instant::now() + patience);
        let Ok(Some(update)) = tokio::time::timeout_at(until, observer.next()).await else { break };
        judge.take(update);
    }
    let at = now();
    judge.judge(at);
    let verdict = judge.judge(Now { since_boot: at.since_boot + Duration::from_secs(24 * 3600), ..at });
    judge.report(verdict)
}

/// One line for everything that changed.
fn log(before: Option<&Verdict>, now: &Verdict) {
    let empty = Vec::new();
    let (raised, pending) = before.map_or((&empty, &empty), |before| (&before.findings, &before.pending));
    let same = |a: &Raised, b: &Raised| a.code == b.code && a.subject == b.subject;
    for finding in now.findings.iter().filter(|finding| !raised.iter().any(|old| same(old, finding))) {
        let Raised { code, severity, subject, detail, next, since, .. } = finding;
        tracing::warn!(code, severity = severity.as_str(), subject, detail, next, %since, "finding raised");
    }
    for finding in now.pending.iter().filter(|finding| !pending.iter().any(|old| same(old, finding))) {
        let Raised { code, subject, detail, .. } = finding;
        tracing::info!(code, subject, detail, "finding seen, held down");
    }
    for finding in raised.iter().filter(|old| !now.findings.iter().any(|finding| same(finding, old))) {
        let Raised { code, subject, since, .. } = finding;
        tracing::info!(code, subject, %since, "finding cleared");
    }
    if before.is_none_or(|before| before.state != now.state) {
        tracing::info!(state = now.state.as_str(), settling = now.settling, "worker state");
    }
}

/// Waits for SIGTERM or SIGINT.
pub(crate) async fn ended() -> &'static str {
    use tokio::signal::unix::{SignalKind, signal};
    let wait = async |kind, name| match signal(kind) {
        Ok(mut signal) => {
            signal.recv().await;
            name
        }
        Err(error) => {
            tracing::warn!(%error, name, "cannot wait for the signal");
            std::future::pending().await
        }
    };
    tokio::select! {
        name = wait(SignalKind::terminate(), "SIGTERM") => name,
        name = wait(SignalKind::interrupt(), "SIGINT") => name,
    }
}

/// A watched node with its sources started, for the process that holds agent and aggregator together.
pub(crate) fn start(host: &HostRoot, config: &Config) -> (Arc<Watched>, Observer) {
    let observer = observe::start(host, None);
    let judge = Judge::new(observe::identity(host), config, now());
    (Arc::new(Watched::new(judge, observer.stats().clone())), observer)
}
