//! The loop: look, judge, believe, tell.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, OnceLock, PoisonError};
use std::time::Duration;

use anyhow::Context;
use tokio::net::TcpListener;
use tokio::sync::{Notify, watch};
use tokio::time::{Instant, sleep_until, timeout};

use super::announce::{Announcer, told_before};
use super::evidence::Keeper;
use super::observe::{self, HostRoot, Observer};
use super::past;
use super::publish::{Kept, NodeNow, Writer, state_file};
use super::watchdog::Heart;
use super::{AgentPages, Judge, Options, Report};
use crate::api::{self, Api};
use crate::bundle::Facts;
use crate::checks::WORKER_PROBLEM;
use crate::clock::{now, since_boot};
use crate::config::Config;
use crate::facts::{BlockSums, Family, Identity, Seen, Writes};
use crate::verdict::{self, Episodes, NodeCondition, Now, Raised, Status, Told, Verdict, told};

/// The first verdict waits this long for sources that have not answered yet; theirs is then unknown.
const FIRST_LOOK: Duration = Duration::from_millis(600);
/// One look of `nodevitals check` takes this long at most.
const ONE_LOOK: Duration = Duration::from_secs(8);
/// After a change the loop waits this long for more: events come in bursts, and one verdict tells of all.
const BURST: Duration = Duration::from_millis(20);
/// While the Node waits for evidence, it is looked after this often.
const SHORTLY: Duration = Duration::from_millis(100);
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

    /// How many nodes the cluster has; 0 where that is not known.
    fn nodes(&self) -> usize {
        self.read(|judge, _| judge.snapshot().cluster.get().map_or(0, |map| map.nodes.len()))
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
    let own = Own::default();
    let crowd = Arc::clone(&own);
    let crowd = move || crowd.get().map_or(0, |watched| watched.nodes());
    let asked = (options.map_interval > 0).then(|| asked(&options, &ways, Arc::clone(&own)));
    let events_by = ways.clone();
    let mut writer = Writer::new(ways, options.node_name.clone(), told, Arc::clone(&doubt), options.heartbeat)
        .among(Arc::new(crowd));
    let observer = observe::start(&host, asked);
    let identity = Identity { node_name: Some(options.node_name.clone()), ..observe::identity(&host) };
    let mut judge = Judge::new(identity, &config, now());
    let kept = match &options.state_dir {
        Some(directory) => state_file::load(directory).await,
        None => None,
    };
    let node = timeout(FIRST_LOOK, writer.read()).await.ok().flatten();
    let announcer = Announcer::new(&options.node_name, config.events, &told_before(node.as_ref(), kept.as_ref()));
    judge.take_past(past::recall(&host, &judge.snapshot().identity, kept.as_ref(), node.as_ref()).await);
    restore(&mut judge, node.as_ref(), kept);
    let taken = writer.writes();
    judge.take_writes(taken.borrow().clone());
    let watched = Arc::new(Watched::new(judge, observer.stats().clone()));
    // Only its start sets it.
    own.set(Arc::clone(&watched)).ok();
    let reporter = announcer.as_ref().map(|announcer| announcer.start(events_by));
    let evidence = options.state_dir.as_ref().map(|directory| Keeper::new(directory, &host));
    let fates = Some((writer.fates(), reporter));
    let pages = AgentPages::new(Arc::clone(&watched), fates, evidence.as_ref().map(Keeper::kept));
    tokio::spawn(crate::http::serve(listener, Arc::new(pages)));
    tokio::spawn(writer.run());
    let mut tell = Tell { told: tell, keep: state_file::start(options.state_dir), doubt, announcer, evidence };
    let heart = Heart::default();
    heart.watch();
    tokio::select! {
        () = watch_node(&watched, observer, Some(taken), &mut tell, &heart) => anyhow::bail!("the sources ended"),
        signal = ended() => {
            tracing::info!(signal, "agent ends");
            Ok(())
        }
    }
}

/// The node, once it is watched.
type Own = Arc<OnceLock<Arc<Watched>>>;

/// Whom to ask about the cluster, and what to say of this node with that.
fn asked(options: &Options, ways: &[Api], own: Own) -> observe::Asked {
    observe::Asked {
        ways: ways.to_vec(),
        node: options.node_name.clone(),
        namespace: options.namespace.clone(),
        every: Duration::from_secs(options.map_interval),
        tells: Arc::new(move || own.get().map(|watched| block_sums(watched)).unwrap_or_default()),
    }
}

/// What the aggregator compares with what other nodes say: sums over the blocks that this node routes, by family.
fn block_sums(watched: &Watched) -> String {
    let sums = [(Family::V4, "v4"), (Family::V6, "v6")].into_iter().filter_map(|(family, key)| {
        let blocks = watched.read(|judge, _| judge.snapshot().routed_blocks(family))?;
        (!blocks.is_empty()).then(|| format!("&{key}={}", BlockSums::of(blocks)))
    });
    sums.collect()
}

/// Ways to the API server, best first.
async fn ways(options: &Options, host: &HostRoot) -> anyhow::Result<Vec<Api>> {
    match &options.kubeconfig {
        Some(path) => Ok(vec![api::connect(Some(path), None).await?]),
        None => api::from_pod(observe::kubelet_server(host).as_deref()),
    }
}

/// Goes on from what was told last: by the state file, which is written first, unless the Node was told something later
/// than that, as happens when the disk takes no writes.
fn restore(judge: &mut Judge, node: Option<&NodeNow>, kept: Option<Kept>) {
    let boot_id = judge.snapshot().identity.boot_id.clone();
    let told_at = node.and_then(|node| {
        let ours = node.conditions.values().filter(|it| it.reason != verdict::AGENT_STALE);
        ours.filter_map(|it| it.last_transition_time).max()
    });
    let episodes = kept.as_ref().map(|kept| kept.episodes.clone()).unwrap_or_default();
    let kept = kept.filter(|kept| told_at.is_none_or(|told_at| told_at <= kept.saved_at));
    let told = match (kept, node) {
        (Some(kept), _) => Some((kept.boot_id, kept.findings, kept.conditions, Some((kept.state, kept.since)))),
        (None, Some(node)) => {
            let annotation = |key: &str| node.annotations.get(key);
            let findings = annotation(verdict::annotation::FINDINGS).map(|json| verdict::parse_findings(json));
            let boot_id = annotation(verdict::annotation::BOOT_ID).cloned().unwrap_or_default();
            let conditions = node.conditions.values().cloned().collect();
            Some((boot_id, findings.unwrap_or_default(), conditions, verdict::parse_state(&node.annotations)))
        }
        (None, None) => None,
    };
    let mut settled = false;
    if let Some((told_in, findings, conditions, state)) = told {
        // An earlier process of this boot has come to a verdict: there is nothing to wait for any more.
        let known = |it: &NodeCondition| it.status != Status::Unknown || it.reason == verdict::AGENT_STALE;
        settled = told_in == boot_id && conditions.iter().any(|it| it.kind == WORKER_PROBLEM && known(it));
        let times = conditions.into_iter().filter_map(|it| Some((it.kind, (it.status, it.last_transition_time?))));
        judge.restore(&findings, &times.collect(), state, episodes, now());
        if told_in == boot_id {
            judge.remember(&findings);
        }
    }
    if !settled {
        judge.settle(node.and_then(|node| node.created), now());
    }
}

/// Watches the node for ever: takes updates in, judges when something changed or a hold-down ends, and tells.
pub(crate) async fn watch_node(
    watched: &Watched,
    mut observer: Observer,
    mut writes: Option<watch::Receiver<Seen<Writes>>>,
    tell: &mut Tell,
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
            new = changed(&mut writes) => {
                watched.change(|judge| judge.take_writes(new));
                judge_at = Some(Instant::now() + BURST);
            }
            () = wake => {
                if due.is_some_and(|due| since_boot().saturating_sub(due) > LATE) {
                    watched.change(|judge| judge.was_away(now()));
                }
                let (before, verdict) = watched.judge();
                log(before.as_ref(), &verdict);
                due = verdict.look_again_in.map(|wait| since_boot() + wait);
                judge_at = verdict.look_again_in.map(|wait| Instant::now() + wait.max(BURST));
                take_evidence(watched, tell, &verdict);
                if say(watched, tell, &verdict) == Said::Later {
                    judge_at = Some(Instant::now() + SHORTLY);
                }
            }
        }
        heart.beat();
        let round = since_boot();
        if round.saturating_sub(last_round) > PAUSED {
            tracing::info!(seconds = round.saturating_sub(last_round).as_secs(), "was paused");
            tell.doubt.notify_one();
        }
        last_round = round;
    }
}

/// The next news of the writes; never where nobody writes.
async fn changed(writes: &mut Option<watch::Receiver<Seen<Writes>>>) -> Seen<Writes> {
    if let Some(writes) = writes
        && writes.changed().await.is_ok()
    {
        return writes.borrow_and_update().clone();
    }
    std::future::pending().await
}

/// Whom a verdict is told.
pub(crate) struct Tell {
    /// What should be on the Node.
    pub(crate) told: watch::Sender<Option<Told>>,
    /// What should be in the state file.
    pub(crate) keep: watch::Sender<Option<Kept>>,
    /// Woken when the Node has to be read again.
    pub(crate) doubt: Arc<Notify>,
    /// Who tells what begins and is over by Events, where they are wanted.
    pub(crate) announcer: Option<Announcer>,
    /// Who keeps evidence, where there is a directory for it.
    pub(crate) evidence: Option<Keeper>,
}

/// Whether the Node was told.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Said {
    Now,
    /// It waits for evidence.
    Later,
}

/// Has evidence taken when something has just become bad.
fn take_evidence(watched: &Watched, tell: &mut Tell, verdict: &Verdict) {
    if let Some(keeper) = &mut tell.evidence
        && let Some(episode) = keeper.wants(verdict)
    {
        keeper.take(episode, watched.read(|judge, _| judge.report(verdict.clone())));
    }
}

/// Hands on what should be in the state file and on the Node, if it is different from before: local first.
fn say(watched: &Watched, tell: &mut Tell, verdict: &Verdict) -> Said {
    let new = watched.read(|judge, _| {
        let (identity, episodes) = (&judge.snapshot().identity, judge.episodes());
        if let Some(announcer) = &mut tell.announcer {
            announcer.tell(verdict, episodes, &judge.snapshot().cluster);
        }
        let new = told(verdict, identity, episodes);
        tell.keep.send_if_modified(|old| {
            let (boot, past) = (&identity.boot_id, judge.snapshot().past.get());
            let said = old.as_ref().is_some_and(|old| old.says(verdict, &new.conditions, boot, episodes, past));
            if !said {
                let past = past.cloned().unwrap_or_default();
                *old = Some(Kept::new(verdict, new.conditions.clone(), boot, episodes.clone(), past));
            }
            !said
        });
        new
    });
    if tell.evidence.as_ref().is_some_and(|keeper| keeper.holds(tell.told.borrow().as_ref(), &new)) {
        return Said::Later;
    }
    tell.told.send_if_modified(|old| {
        let different = old.as_ref() != Some(&new);
        if different {
            *old = Some(new);
        }
        different
    });
    Said::Now
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
    at_once(&mut judge, now())
}

/// What is seen counts, however short a time it has been there.
fn at_once(judge: &mut Judge, at: Now) -> Report {
    judge.judge(at);
    let verdict = judge.judge_as_seen(Now { since_boot: at.since_boot + Duration::from_secs(24 * 3600), ..at });
    judge.report(verdict)
}

/// Judges what a bundle holds as [`look_once`] judges what it sees, as of the time when it was seen. What was believed then
/// stands for the history.
pub(crate) fn judge_again(facts: Facts, config: &Config) -> Report {
    let Facts { snapshot, findings } = facts;
    let at = Now { wall: snapshot.taken_at, since_boot: snapshot.up_for };
    let mut judge = Judge::new(snapshot.identity.clone(), config, at);
    judge.restore(&findings, &BTreeMap::new(), None, Episodes::default(), at);
    judge.remember(&findings);
    judge.take_all(snapshot);
    at_once(&mut judge, at)
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

#[cfg(test)]
mod tests {
    use super::*;
    use crate::facts::Past;
    use crate::verdict::annotation;
    use jiff::Timestamp;

    fn at(second: i64) -> Timestamp {
        Timestamp::from_second(1_700_000_000 + second).expect("valid")
    }

    fn judge() -> Judge {
        let identity = Identity {
            hostname: "n1".into(),
            boot_id: "b".into(),
            machine_id: "m".into(),
            kernel: "6".into(),
            node_name: None,
        };
        Judge::new(identity, &Config::default(), now())
    }

    /// What a Node says on which `DiskFull` has been told since then.
    fn node(since: i64) -> NodeNow {
        let finding = serde_json::json!([{
            "code": "DiskFull", "severity": "critical", "area": "capacity", "subject": "/", "since": at(since),
            "detail": "d", "next": "n",
        }]);
        let condition = NodeCondition {
            kind: "CapacityProblem".into(),
            status: Status::True,
            reason: "DiskFull".into(),
            message: "m".into(),
            last_transition_time: Some(at(since)),
        };
        let annotations = [
            (annotation::FINDINGS, finding.to_string()),
            (annotation::STATE, "Critical".into()),
            (annotation::SINCE, at(since).to_string()),
            (annotation::BOOT_ID, "b".into()),
        ];
        NodeNow {
            conditions: [(condition.kind.clone(), condition)].into(),
            annotations: annotations.into_iter().map(|(key, value)| (key.to_owned(), value)).collect(),
            ..NodeNow::default()
        }
    }

    /// What a process kept that has told the same, and wrote it down then.
    fn kept(since: i64, saved: i64) -> Kept {
        let mut judge = judge();
        restore(&mut judge, Some(&node(since)), None);
        let verdict = Verdict { at: at(saved), ..judge.judge(now()) };
        let told = told(&verdict, &judge.snapshot().identity, judge.episodes());
        Kept::new(&verdict, told.conditions, "b", judge.episodes().clone(), Past::default())
    }

    fn since(node: Option<&NodeNow>, kept: Option<Kept>) -> Option<(Timestamp, Timestamp)> {
        let mut judge = judge();
        restore(&mut judge, node, kept);
        let verdict = judge.judge(now());
        Some((verdict.root()?.since, verdict.condition("CapacityProblem")?.since))
    }

    #[test]
    fn the_newer_of_node_and_state_file_counts() {
        assert_eq!(since(None, None), None);
        assert_eq!(since(Some(&node(10)), None), Some((at(10), at(10))));
        assert_eq!(since(None, Some(kept(20, 25))), Some((at(20), at(20))), "the Node cannot be read");
        assert_eq!(since(Some(&node(10)), Some(kept(20, 25))), Some((at(20), at(20))), "the Node could not be written");
        assert_eq!(since(Some(&node(30)), Some(kept(20, 25))), Some((at(30), at(30))), "the file could not be written");
        // What the aggregator said meanwhile of an agent that was gone is no news of the node.
        let mut marked = node(10);
        for condition in marked.conditions.values_mut() {
            condition.reason = verdict::AGENT_STALE.into();
            condition.status = Status::Unknown;
            condition.last_transition_time = Some(at(40));
        }
        assert_eq!(since(Some(&marked), Some(kept(20, 25))), Some((at(20), at(20))));
    }

    #[test]
    fn the_journal_outlives_the_agent_whoever_is_newer() {
        let mut judge = judge();
        restore(&mut judge, Some(&node(30)), Some(kept(20, 25)));
        assert_eq!(judge.episodes().iter().count(), 1);
        judge.judge(now());
        let episodes: &Episodes = judge.episodes();
        assert_eq!(episodes.iter().map(|it| (it.code.as_str(), it.since)).collect::<Vec<_>>(), [("DiskFull", at(20))]);
    }
}
