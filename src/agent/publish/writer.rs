//! The one writer: at most one patch in flight, coalesced, with a deadline, backed off with jitter, never lost. It says as
//! well when the API server answers reads and takes no writes, which its own patches are the best probe of.

mod blocked;
mod pace;

use std::sync::Arc;
use std::time::Duration;

use jiff::Timestamp;
use tokio::sync::{Notify, watch};
use tokio::time::{Instant, timeout};

use super::node::timed_out;
use super::{Fates, NodeNow, patch, read_node};
use crate::api::{Api, asked, chain, said};
use crate::backoff::{Backoff, jitter};
use crate::checks::Limits;
use crate::facts::{Seen, Writes};
use crate::verdict::Told;

pub(crate) use pace::Pace;

/// Longest wait for a PATCH: an admission webhook may take 30 s.
const DEADLINE: Duration = Duration::from_secs(35);
/// First and longest wait after a failure.
const BACK_OFF: (Duration, Duration) = (Duration::from_secs(1), Duration::from_secs(60));
/// While writes are held up and nothing is to be written, it is tried again after these, first and longest.
const PROBES: (Duration, Duration) = (Duration::from_secs(5), Duration::from_secs(60));
/// Reads in a row that may be older than what was read before; then the server has been restored from a backup.
const OLD_READS: u32 = 3;
/// The Node is read again this often, in case somebody else changed what is ours (the aggregator writes `AgentStale`).
const READ_AGAIN: Duration = Duration::from_secs(120);
/// Or this often while the kubelet says there that something is wrong: nobody tells when it no longer does. Where many nodes
/// may be unwell at once, more rarely.
const UNWELL_AGAIN: Duration = Duration::from_secs(30);

/// Writes what is told to the Node.
pub(crate) struct Writer {
    ways: Vec<Api>,
    node: String,
    told: watch::Receiver<Option<Told>>,
    /// Woken when the Node has to be read again: the process was paused, or the connection was lost.
    doubt: Arc<Notify>,
    pace: Pace,
    /// Writers of node status that matter give up after this time (catalogue H11).
    patience: Duration,
    heartbeat: Option<Duration>,
    /// When it was last due.
    beaten: Instant,
    fates: Fates,
    /// What the Node says; none when that has to be read first.
    known: Option<NodeNow>,
    /// What becomes of the writes.
    writes: watch::Sender<Seen<Writes>>,
    /// What was told of them before nothing was answered any more.
    before: Writes,
    probes: Backoff,
    /// The newest version of the Node that was read, and how many reads since were older.
    newest: (u64, u32),
}

/// What a round of the writer came to.
enum Round {
    Done,
    /// After this time it may be tried again.
    Failed(Duration),
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
        let writes = Writes { server, ..Writes::default() };
        Writer {
            ways,
            node,
            told,
            doubt,
            pace: Pace::alone(),
            patience: Duration::from_secs(Limits::default().status_write_seconds.into()),
            heartbeat,
            beaten: Instant::now(),
            fates: Fates::default(),
            known: None,
            writes: watch::Sender::new(Seen::Yes(writes)),
            before: Writes::default(),
            probes: Backoff::new(PROBES.0, PROBES.1),
            newest: (0, 0),
        }
    }

    /// As one of many writers.
    pub(crate) fn among(self, pace: Pace) -> Self {
        Writer { pace, ..self }
    }

    /// Writers of node status that matter give up after so many seconds.
    pub(crate) fn with_patience(self, seconds: u32) -> Self {
        Writer { patience: Duration::from_secs(seconds.into()), ..self }
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
            let mut round = self.round().await;
            if matches!(round, Round::Done) {
                backoff.reset();
                round = self.rest().await;
            }
            // The latest truth wins: what is told meanwhile is not queued but read after the wait.
            if let Round::Failed(asked) = round {
                tokio::time::sleep(asked + backoff.wait()).await;
                self.told.mark_changed();
            }
        }
    }

    /// Waits for the turn of this writer among all that may have something to write in the same moment.
    async fn turn(&mut self) {
        self.pace.learn(&self.ways[0].unary).await;
        tokio::time::sleep(self.pace.turn()).await;
    }

    /// Waits for something to do; what it sends itself meanwhile may fail.
    async fn rest(&mut self) -> Round {
        let unwell = self.writes.borrow().get().and_then(|it| it.said.as_ref()).is_some_and(|said| !said.is_well());
        let again = if unwell { UNWELL_AGAIN.max(self.pace.window()).min(READ_AGAIN) } else { READ_AGAIN };
        let spread = jitter(again);
        let probe = if self.is_blocked() {
            self.probes.wait()
        } else {
            self.probes.reset();
            Duration::MAX
        };
        let beat = self.heartbeat.map_or(Duration::MAX, |every| every.saturating_sub(self.beaten.elapsed()));
        let due = tokio::select! {
            changed = self.told.changed() => {
                if changed.is_err() {
                    std::future::pending::<()>().await;
                }
                self.told.mark_changed();
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
            () = sleep_long(probe) => return self.probe().await,
            () = sleep_long(beat) => {
                self.beaten = Instant::now();
                true
            }
        };
        let told = self.told.borrow().clone();
        match told {
            Some(told) if due => self.beat(&told).await,
            _ => Round::Done,
        }
    }

    /// Brings the Node up to what is told now.
    async fn round(&mut self) -> Round {
        if self.told.borrow().is_none() {
            return Round::Done;
        }
        let now = match self.known.take() {
            Some(now) => now,
            None => match read_node(&self.ways[0].unary, &self.node).await {
                Ok(now) if self.is_old(&now) => return Round::Failed(Duration::ZERO),
                Ok(now) => {
                    self.tell_node(&now);
                    now
                }
                Err(error) => return self.give_way("GET", &error),
            },
        };
        // News wait for their turn, and that after the read: the answers to reads that a busy server held up come together.
        // What is told meanwhile is written with them.
        if self.told.has_changed().unwrap_or(false) {
            self.turn().await;
        }
        let Some(told) = self.told.borrow_and_update().clone() else { return Round::Done };
        let Some(patch) = patch::patch(&now, &told, Timestamp::now()) else {
            self.known = Some(now);
            return Round::Done;
        };
        match self.send(&patch, "").await {
            Ok(now) => {
                self.fates.count(0, 1);
                self.newest = (now.version.unwrap_or(0), 0);
                self.tell_node(&now);
                self.known = Some(now);
                self.fates.count(2, u64::from(self.told.has_changed().unwrap_or(false)));
                Round::Done
            }
            Err(error) => self.give_way("PATCH", &error),
        }
    }

    async fn beat(&mut self, told: &Told) -> Round {
        // What the Node says is known whenever the writer rests; without it the next round reads and writes anyway.
        let Some(now) = &self.known else { return Round::Done };
        let patch = patch::heartbeat(now, told, Timestamp::now());
        match self.send(&patch, "").await {
            Ok(now) => {
                self.fates.count(0, 1);
                self.tell_node(&now);
                self.known = Some(now);
                Round::Done
            }
            Err(error) => self.give_way("PATCH", &error),
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
    async fn probe(&mut self) -> Round {
        match self.send(&serde_json::json!({}), "&dryRun=All").await {
            Ok(now) => {
                self.tell_node(&now);
                Round::Done
            }
            Err(error) => {
                tracing::debug!(error = chain(&error), "the API server takes no writes yet");
                let asked = asked(&error);
                if asked.is_zero() { Round::Done } else { Round::Failed(asked) }
            }
        }
    }

    async fn send(&mut self, patch: &serde_json::Value, more: &str) -> Result<NodeNow, kube::Error> {
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
            () = tokio::time::sleep(self.patience) => {
                // Said while it still waits: a webhook may hold it up for half a minute.
                self.held_up(format!("a patch was not answered within {} s", self.patience.as_secs())).await;
                answer.await
            }
        };
        let answer = answer.unwrap_or_else(|_| Err(timed_out("PATCH", DEADLINE)));
        self.judge(&answer, began.elapsed()).await;
        answer
    }

    fn give_way(&mut self, verb: &str, error: &kube::Error) -> Round {
        self.failed(verb, error);
        Round::Failed(asked(error))
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

pub(super) async fn sleep_long(time: Duration) {
    if time == Duration::MAX {
        std::future::pending::<()>().await;
    }
    tokio::time::sleep(time).await;
}

#[cfg(test)]
mod tests;
