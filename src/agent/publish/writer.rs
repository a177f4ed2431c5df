//! The one writer: at most one patch in flight, coalesced, with a deadline, backed off with jitter, never lost.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use jiff::Timestamp;
use tokio::sync::{Notify, watch};

use super::node::timed_out;
use super::{NodeNow, patch, read_node};
use crate::api::{Api, chain};
use crate::verdict::Told;

/// Longest wait for a PATCH: an admission webhook may take 30 s.
const DEADLINE: Duration = Duration::from_secs(35);
/// First and longest wait after a failure.
const BACK_OFF: (Duration, Duration) = (Duration::from_secs(1), Duration::from_secs(60));
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
    heartbeat: Option<Duration>,
    fates: Fates,
    /// What the Node says; none when that has to be read first.
    known: Option<NodeNow>,
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
        Writer { ways, node, told, doubt, heartbeat, fates: Fates::default(), known: None }
    }

    /// What became of the writes so far.
    pub(crate) fn fates(&self) -> Fates {
        self.fates.clone()
    }

    /// Reads what the Node says, over each way once.
    pub(crate) async fn read(&mut self) -> Option<NodeNow> {
        for _ in 0..self.ways.len() {
            match read_node(&self.ways[0].unary, &self.node).await {
                Ok(now) => {
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
        let mut failures = 0;
        loop {
            let wait = match self.round().await {
                Round::Done => {
                    failures = 0;
                    self.rest().await;
                    continue;
                }
                Round::Failed(asked) => asked.unwrap_or_else(|| back_off(failures)),
            };
            failures += 1;
            // The latest truth wins: what is told meanwhile is not queued but read after the wait.
            tokio::time::sleep(wait).await;
        }
    }

    /// Waits for something to do.
    async fn rest(&mut self) {
        let spread = READ_AGAIN.mul_f64(0.8 + 0.4 * spread());
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
                Ok(now) => now,
                Err(error) => return self.give_way("GET", &error),
            },
        };
        let Some(patch) = patch::patch(&now, &told, Timestamp::now()) else {
            self.known = Some(now);
            return Round::Done;
        };
        match self.send(&patch).await {
            Ok(now) => {
                self.fates.count(0, 1);
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
        match self.send(&patch::heartbeat(now, told, Timestamp::now())).await {
            Ok(now) => {
                self.fates.count(0, 1);
                self.known = Some(now);
            }
            Err(error) => self.failed("PATCH", &error),
        }
    }

    async fn send(&self, patch: &serde_json::Value) -> Result<NodeNow, kube::Error> {
        let request = http::Request::patch(format!("/api/v1/nodes/{}/status?fieldManager=nodevitals-agent", self.node))
            .header(http::header::CONTENT_TYPE, "application/strategic-merge-patch+json")
            .body(patch.to_string().into_bytes())
            .map_err(kube::Error::HttpError)?;
        let client = &self.ways[0].unary;
        match tokio::time::timeout(DEADLINE, super::node::request(client, request)).await {
            Ok(answer) => answer,
            Err(_) => Err(timed_out("PATCH", DEADLINE)),
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
        let said = match error {
            kube::Error::Api(status) => format!("{}: {}", status.code, status.message),
            other => chain(other),
        };
        tracing::warn!(node, server, verb, error = said, advice, "cannot write to the Node");
        if !matches!(error, kube::Error::Api(_)) {
            self.ways.rotate_left(1);
        }
    }
}

/// `Retry-After`, which a server that is overloaded sends along (`details.retryAfterSeconds`).
fn retry_after(status: &kube::core::Status) -> Option<Duration> {
    let seconds = status.details.as_ref()?.retry_after_seconds;
    (seconds > 0).then(|| Duration::from_secs(u64::from(seconds)))
}

/// Doubles from a second to a minute, with up to half more, so that a cluster's agents do not come back at once.
fn back_off(failures: u32) -> Duration {
    let base = BACK_OFF.0.saturating_mul(1 << failures.min(6)).min(BACK_OFF.1);
    base.mul_f64(1.0 + 0.5 * spread())
}

/// A number from 0 to 1 that differs from node to node and from time to time.
fn spread() -> f64 {
    use std::hash::{BuildHasher, RandomState};
    let random = RandomState::new().hash_one(0_u8);
    f64::from(u16::try_from(random & 0xffff).unwrap_or(0)) / 65_536.0
}

async fn sleep_long(time: Duration) {
    if time == Duration::MAX {
        std::future::pending::<()>().await;
    }
    tokio::time::sleep(time).await;
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn backs_off_to_a_minute_and_a_half_at_most() {
        assert!((1.0..1.5).contains(&back_off(0).as_secs_f64()));
        assert!((60.0..90.0).contains(&back_off(10).as_secs_f64()));
        assert!((60.0..90.0).contains(&back_off(u32::MAX).as_secs_f64()));
    }
}
