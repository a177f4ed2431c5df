//! The one writer: at most one patch in flight, coalesced, with a deadline, backed off with jitter, never lost. It says as
//! well when the API server answers reads and takes no writes, which its own patches are the best probe of.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use jiff::Timestamp;
use tokio::sync::{Notify, watch};
use tokio::time::{Instant, timeout};

use super::node::timed_out;
use super::{NodeNow, patch, read_node};
use crate::api::{Api, chain, said};
use crate::backoff::{Backoff, jitter, part};
use crate::facts::{LookError, Reason, Seen, Writes};
use crate::verdict::Told;

/// Longest wait for a PATCH: an admission webhook may take 30 s.
const DEADLINE: Duration = Duration::from_secs(35);
/// First and longest wait after a failure.
const BACK_OFF: (Duration, Duration) = (Duration::from_secs(1), Duration::from_secs(60));
/// An API server that is overloaded gets no more writes than this of all agents together in a second.
const RATE: u32 = 200;
/// Longest wait that a server may ask for.
const LONGEST_WAIT: u32 = 300;
/// Writers of node status that matter give up after this time (catalogue H11): calico-node does.
const PATIENCE: Duration = Duration::from_secs(2);
/// While writes are held up and nothing is to be written, it is tried again after these, first and longest.
const PROBES: (Duration, Duration) = (Duration::from_secs(5), Duration::from_secs(60));
/// Reads in a row that may be older than what was read before; then the server has been restored from a backup.
const OLD_READS: u32 = 3;
/// The Node is read again this often, in case somebody else changed what is ours (the aggregator writes `AgentStale`).
const READ_AGAIN: Duration = Duration::from_secs(120);

/// What became of the writes, for the metrics.
#[derive(Debug, Clone, Default)]
pub(crate) struct Fates(Arc<[AtomicU64; 3]>);

impl Fates {
    /// Patches that the API server took.
    pub(crate) fn written(&self) -> u64 {
        self.0[0].load(Ordering::Relaxed)
    }

    /// Patches that failed and were tried again.
    pub(crate) fn failed(&self) -> u64 {
        self.0[1].load(Ordering::Relaxed)
    }

    /// Verdicts that were overtaken by a later one before they were written.
    pub(crate) fn coalesced(&self) -> u64 {
        self.0[2].load(Ordering::Relaxed)
    }

    fn count(&self, fate: usize, by: u64) {
        self.0[fate].fetch_add(by, Ordering::Relaxed);
    }
}

/// Writes what is told to the Node.
pub(crate) struct Writer {
    ways: Vec<Api>,
    node: String,
    told: watch::Receiver<Option<Told>>,
    /// Woken when the Node has to be read again: the process was paused, or the connection was lost.
    doubt: Arc<Notify>,
    /// How many nodes there are, as far as it is known: so many may write at the same time.
    crowd: Arc<dyn Fn() -> usize + Send + Sync>,
    heartbeat: Option<Duration>,
    fates: Fates,
    /// What the Node says; none when that has to be read first.
    known: Option<NodeNow>,
    /// What becomes of the writes.
    writes: watch::Sender<Seen<Writes>>,
    probes: Backoff,
    /// The newest version of the Node that was read, and how many reads since were older.
    newest: (u64, u32),
}

/// What a round of the writer came to.
enum Round {
    Done,
    Failed(Option<Duration>),
}

impl Writer {
    /// A writer for `node` over the first of `ways` that works.
    pub(crate) fn new(
        ways: Vec<Api>,
        node: String,
        told: watch::Receiver<Option<Told>>,
        doubt: Arc<Notify>,
        heartbeat: u64,
    ) -> Self {
        let heartbeat = (heartbeat > 0).then(|| Duration::from_secs(heartbeat));
        // Until a write fails nothing speaks against writes.
        let server = ways.first().map(|way| way.server.clone()).unwrap_or_default();
        let writes = Writes { server, blocked: None, cordoned: None, registered_at: None };
        Writer {
            ways,
            node,
            told,
            doubt,
            crowd: Arc::new(|| 0),
            heartbeat,
            fates: Fates::default(),
            known: None,
            writes: watch::Sender::new(Seen::Yes(writes)),
            probes: Backoff::new(PROBES.0, PROBES.1),
            newest: (0, 0),
        }
    }

    /// As one of so many writers.
    pub(crate) fn among(self, crowd: Arc<dyn Fn() -> usize + Send + Sync>) -> Self {
        Writer { crowd, ..self }
    }

    /// What became of the writes so far.
    pub(crate) fn fates(&self) -> Fates {
        self.fates.clone()
    }

    /// What becomes of the writes from now on.
    pub(crate) fn writes(&self) -> watch::Receiver<Seen<Writes>> {
        self.writes.subscribe()
    }

    /// Reads what the Node says, over each way once.
    pub(crate) async fn read(&mut self) -> Option<NodeNow> {
        for _ in 0..self.ways.len() {
            match read_node(&self.ways[0].unary, &self.node).await {
                Ok(now) => {
                    self.tell_node(&now);
                    self.known = Some(now.clone());
                    return Some(now);
                }
                Err(error) => self.failed("GET", &error),
            }
        }
        None
    }

    /// Writes for ever.
    pub(crate) async fn run(mut self) {
        let mut backoff = Backoff::new(BACK_OFF.0, BACK_OFF.1);
        loop {
            let wait = match self.round().await {
                Round::Done => {
                    backoff.reset();
                    self.rest().await;
                    continue;
                }
                // Not all agents at once when the time that was asked for is over, and of many nodes no more than the server
                // can take: a fault that all have at the same time is told within seconds even so.
                Round::Failed(Some(asked)) => asked + part((backoff.wait() * 2).max(self.crowded())),
                Round::Failed(None) => backoff.wait(),
            };
            // The latest truth wins: what is told meanwhile is not queued but read after the wait.
            tokio::time::sleep(wait).await;
        }
    }

    /// How long all nodes need to write once.
    fn crowded(&self) -> Duration {
        Duration::from_secs(1) * u32::try_from((self.crowd)()).unwrap_or(u32::MAX) / RATE
    }

    /// Waits for something to do.
    async fn rest(&mut self) {
        let spread = jitter(READ_AGAIN);
        let probe = if self.is_blocked() {
            self.probes.wait()
        } else {
            self.probes.reset();
            Duration::MAX
        };
        let beat = self.heartbeat.unwrap_or(Duration::MAX);
        let due = tokio::select! {
            changed = self.told.changed() => {
                if changed.is_err() {
                    std::future::pending::<()>().await;
                }
                false
            }
            () = self.doubt.notified() => {
                self.known = None;
                false
            }
            () = tokio::time::sleep(spread) => {
                self.known = None;
                false
            }
            () = sleep_long(probe) => {
                self.probe().await;
                false
            }
            () = sleep_long(beat) => true,
        };
        let told = self.told.borrow().clone();
        if let (true, Some(told)) = (due, told) {
            self.beat(&told).await;
        }
    }

    /// Brings the Node up to what is told now.
    async fn round(&mut self) -> Round {
        let Some(told) = self.told.borrow_and_update().clone() else { return Round::Done };
        let now = match self.known.take() {
            Some(now) => now,
            None => match read_node(&self.ways[0].unary, &self.node).await {
                Ok(now) if self.is_old(&now) => return Round::Failed(None),
                Ok(now) => {
                    self.tell_node(&now);
                    now
                }
                Err(error) => return self.give_way("GET", &error),
            },
        };
        let Some(patch) = patch::patch(&now, &told, Timestamp::now()) else {
            self.known = Some(now);
            return Round::Done;
        };
        match self.send(&patch, "").await {
            Ok(now) => {
                self.fates.count(0, 1);
                self.newest = (now.version.unwrap_or(0), 0);
                self.known = Some(now);
                self.fates.count(2, u64::from(self.told.has_changed().unwrap_or(false)));
                Round::Done
            }
            Err(error) => self.give_way("PATCH", &error),
        }
    }

    async fn beat(&mut self, told: &Told) {
        // What the Node says is known whenever the writer rests; without it the next round reads and writes anyway.
        let Some(now) = &self.known else { return };
        match self.send(&patch::heartbeat(now, told, Timestamp::now()), "").await {
            Ok(now) => {
                self.fates.count(0, 1);
                self.known = Some(now);
            }
            Err(error) => self.failed("PATCH", &error),
        }
    }

    /// Whether a read is older than one before: a server that lags behind would have us write over what is newer.
    fn is_old(&mut self, now: &NodeNow) -> bool {
        let (newest, reads) = self.newest;
        match now.version {
            Some(version) if version < newest && reads < OLD_READS => {
                self.newest.1 += 1;
                tracing::warn!(version, newest, "the API server answered with an old Node; it is read again");
                true
            }
            version => {
                self.newest = (version.unwrap_or(0), 0);
                false
            }
        }
    }

    /// Tries whether writes are taken again, by one that changes nothing.
    async fn probe(&mut self) {
        if let Err(error) = self.send(&serde_json::json!({}), "&dryRun=All").await {
            tracing::debug!(error = chain(&error), "the API server takes no writes yet");
        }
    }

    async fn send(&self, patch: &serde_json::Value, more: &str) -> Result<NodeNow, kube::Error> {
        let uri = format!("/api/v1/nodes/{}/status?fieldManager=nodevitals-agent{more}", self.node);
        let request = http::Request::patch(uri)
            .header(http::header::CONTENT_TYPE, "application/strategic-merge-patch+json")
            .body(patch.to_string().into_bytes())
            .map_err(kube::Error::HttpError)?;
        let client = self.ways[0].unary.clone();
        let began = Instant::now();
        let mut answer = std::pin::pin!(timeout(DEADLINE, super::node::request(&client, request)));
        let answer = tokio::select! {
            answer = answer.as_mut() => answer,
            () = tokio::time::sleep(PATIENCE) => {
                // Said while it still waits: a webhook may hold it up for half a minute.
                self.held_up(format!("a patch was not answered within {} s", PATIENCE.as_secs())).await;
                answer.await
            }
        };
        let answer = answer.unwrap_or_else(|_| Err(timed_out("PATCH", DEADLINE)));
        self.judge(&answer, began.elapsed()).await;
        answer
    }

    /// What an answer to a patch says about writes.
    async fn judge(&self, answer: &Result<NodeNow, kube::Error>, took: Duration) {
        let seconds = took.as_secs_f32();
        match answer {
            Ok(_) if took < PATIENCE => self.tell_writes(None),
            Ok(_) => {
                let patience = PATIENCE.as_secs();
                self.held_up(format!("a patch was taken after {seconds:.0} s only; others give up after {patience} s"))
                    .await;
            }
            Err(kube::Error::Api(status)) if status.code >= 500 || status.message.contains("admission webhook") => {
                let said: String = status.message.chars().take(300).collect();
                self.held_up(format!("a patch failed after {seconds:.0} s with {}: {said}", status.code)).await;
            }
            Err(kube::Error::Api(_)) => self.tell_writes(None),
            Err(error) => {
                self.held_up(format!("a patch was given up after {seconds:.0} s: {}", chain(error))).await;
            }
        }
    }

    /// A write was held up: that is a fault of its own only if a read is answered meanwhile.
    async fn held_up(&self, why: String) {
        match timeout(PATIENCE, read_node(&self.ways[0].unary, &self.node)).await {
            Ok(Ok(_)) => self.tell_writes(Some(why)),
            // What was known of writes is neither confirmed nor refuted.
            _ if self.is_blocked() => {
                let error = LookError::new(&self.ways[0].server, Reason::TimedOut, "reads are not answered either");
                self.writes.send_replace(Seen::Unreadable(error));
            }
            _ => {}
        }
    }

    fn tell_writes(&self, blocked: Option<String>) {
        let server = self.ways[0].server.clone();
        self.writes.send_if_modified(|old| {
            let before = old.get();
            let (cordoned, registered_at) = before.map_or((None, None), |it| (it.cordoned, it.registered_at));
            let new = Seen::Yes(Writes { server, blocked, cordoned, registered_at });
            let different = *old != new;
            if different {
                *old = new;
            }
            different
        });
    }

    /// Hands on what the Node says of itself; while nobody knows about writes it waits.
    fn tell_node(&self, now: &NodeNow) {
        self.writes.send_if_modified(|writes| {
            let Seen::Yes(writes) = writes else { return false };
            let told = (writes.cordoned, writes.registered_at);
            (writes.cordoned, writes.registered_at) = (Some(now.cordoned), now.created);
            told != (writes.cordoned, writes.registered_at)
        });
    }

    fn is_blocked(&self) -> bool {
        match &*self.writes.borrow() {
            Seen::Yes(writes) => writes.blocked.is_some(),
            Seen::Unreadable(_) => true,
            Seen::Absent => false,
        }
    }

    fn give_way(&mut self, verb: &str, error: &kube::Error) -> Round {
        self.failed(verb, error);
        match error {
            kube::Error::Api(status) => Round::Failed(retry_after(status)),
            _ => Round::Failed(None),
        }
    }

    /// Says what failed and what to do, counts it, and turns to the next way when this one does not lead anywhere.
    fn failed(&mut self, verb: &str, error: &kube::Error) {
        self.fates.count(1, 1);
        self.known = None;
        let (node, server) = (&self.node, &self.ways[0].server);
        let advice = match error {
            kube::Error::Api(status) if status.code == 404 => {
                "there is no Node of this name: check --node-name with `kubectl get nodes`"
            }
            kube::Error::Api(status) if status.code == 403 => {
                "no permission: apply deploy/ (RBAC and admission policy) and check that the token is the agent pod's own"
            }
            kube::Error::Api(status) if status.code == 401 => "the token is not accepted: recreate the agent's pod",
            kube::Error::Api(_) => "the API server refused; it is tried again",
            _ => "the API server cannot be reached; it is tried again",
        };
        // kube's own text of it is a dump of the whole Status.
        tracing::warn!(node, server, verb, error = said(error), advice, "cannot write to the Node");
        if !matches!(error, kube::Error::Api(_)) {
            self.ways.rotate_left(1);
        }
    }
}

/// What became of the traces of this product on a Node.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Cleaned {
    /// There were none.
    Before,
    /// They were removed.
    Now,
}

/// Removes all conditions and annotations of this product from a Node.
pub(crate) async fn clean_node(client: &kube::Client, node: &str) -> Result<Cleaned, kube::Error> {
    let now = read_node(client, node).await?;
    let nothing = Told { conditions: Vec::new(), annotations: BTreeMap::new() };
    let Some(patch) = patch::patch(&now, &nothing, Timestamp::now()) else { return Ok(Cleaned::Before) };
    let request = http::Request::patch(format!("/api/v1/nodes/{node}/status?fieldManager=nodevitals-uninstall"))
        .header(http::header::CONTENT_TYPE, "application/strategic-merge-patch+json")
        .body(patch.to_string().into_bytes())
        .map_err(kube::Error::HttpError)?;
    super::node::request(client, request).await.map(|_| Cleaned::Now)
}

/// `Retry-After`, which a server that is overloaded sends along (`details.retryAfterSeconds`).
fn retry_after(status: &kube::core::Status) -> Option<Duration> {
    let seconds = status.details.as_ref()?.retry_after_seconds;
    (seconds > 0).then(|| Duration::from_secs(u64::from(seconds.min(LONGEST_WAIT))))
}

pub(super) async fn sleep_long(time: Duration) {
    if time == Duration::MAX {
        std::future::pending::<()>().await;
    }
    tokio::time::sleep(time).await;
}

#[cfg(test)]
mod tests;
