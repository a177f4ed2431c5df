//! The only thing that the aggregator writes: that nobody knows how a worker is, because its agent or kubelet is gone.

use std::collections::HashMap;
use std::sync::Arc;
use std::time::Duration;

use http::Request;
use jiff::Timestamp;
use kube::Client;
use serde_json::json;
use tokio::task::JoinSet;

use super::row::{Condition, Row};
use super::stale::{Gone, Missing};
use super::store::Store;
use super::watch::escaped;
use crate::api;
use crate::backoff::jitter;
use crate::checks::{Area, WORKER_PROBLEM};
use crate::facts::whole_seconds;
use crate::verdict::{AGENT_STALE, Now, Status, WorkerState, annotation};

/// Nodes are looked over this often.
const EVERY: Duration = Duration::from_secs(1);
/// Writes begun in one such round, so that the loss of all agents is no storm.
const AT_ONCE: usize = 10;
/// Longer than any admission webhook may take.
const DEADLINE: Duration = Duration::from_secs(35);
/// After a write the watch should have shown it; if not, it is tried again.
const AGAIN_AFTER: Duration = Duration::from_secs(10);
/// Between two rounds there is more only where this process was stopped, or the machine suspended: what is known is as old.
const PAUSED: Duration = Duration::from_secs(10);
/// The longest wait between two tries on one node.
const AGAIN_AT_MOST: Duration = Duration::from_secs(300);

/// One write that has to be done.
#[derive(Debug)]
pub(super) struct Job {
    node: String,
    body: Vec<u8>,
}

/// How a write ended.
#[derive(Debug)]
enum Fate {
    Ok,
    /// The node has changed meanwhile, perhaps because its agent is back: it is judged anew.
    Conflict,
    /// Why, and how long the server asks to be left alone.
    Failed(String, Duration),
}

/// When each node may be written again, and how often it was tried.
#[derive(Debug, Default)]
struct Tries {
    nodes: HashMap<String, (Duration, u32)>,
    /// Before that, on the boot clock, the server wants no writes at all.
    left_alone_until: Duration,
}

/// Watches over the agents, and marks nodes whose agent is gone while this process leads. Never ends.
pub(super) async fn run(
    store: Arc<Store>,
    client: Client,
    namespace: String,
    clock: fn() -> Now,
) -> std::convert::Infallible {
    let mut tries = Tries::default();
    let mut under_way: JoinSet<(String, Fate)> = JoinSet::new();
    let mut ticks = tokio::time::interval(EVERY);
    ticks.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
    let mut last = None;
    loop {
        tokio::select! {
            _ = ticks.tick() => {
                take_note_of_a_pause(&store, &mut last, clock().since_boot);
                let room = AT_ONCE.saturating_sub(under_way.len());
                for job in due(&store, &namespace, clock(), &mut tries, room) {
                    under_way.spawn(patch(client.clone(), job));
                }
            }
            Some(ended) = under_way.join_next() => {
                if let Ok((node, fate)) = ended {
                    account(&store, &mut tries, &node, &fate, clock().since_boot);
                }
            }
        }
    }
}

/// An agent that was late when this process was stopped may have been back for long: each has its whole grace again.
fn take_note_of_a_pause(store: &Store, last: &mut Option<Duration>, now: Duration) {
    if last.replace(now).is_some_and(|last| now.saturating_sub(last) > PAUSED) {
        store.lock().watchdog.begin_anew();
    }
}

fn due(store: &Store, namespace: &str, now: Now, tries: &mut Tries, room: usize) -> Vec<Job> {
    let inner = &mut *store.lock();
    inner.watchdog.step(&inner.cluster, now);
    if !inner.leads {
        return Vec::new();
    }
    let marks = inner.watchdog.to_mark(&inner.cluster, now);
    tries.nodes.retain(|node, _| marks.iter().any(|(name, ..)| name == node));
    if now.since_boot < tries.left_alone_until {
        return Vec::new();
    }
    let due =
        marks.into_iter().filter(|(name, ..)| tries.nodes.get(*name).is_none_or(|(again, _)| *again <= now.since_boot));
    let jobs: Vec<Job> = due.take(room).map(|(name, row, gone)| job(name, row, &gone, namespace, now.wall)).collect();
    for job in &jobs {
        // Nobody tries it again while this try may last.
        let (again, _) = tries.nodes.entry(job.node.clone()).or_default();
        *again = now.since_boot + DEADLINE + AGAIN_AFTER;
    }
    jobs
}

fn account(store: &Store, tries: &mut Tries, node: &str, fate: &Fate, now: Duration) {
    let (again, failures) = tries.nodes.entry(node.to_owned()).or_default();
    let inner = &mut *store.lock();
    let patches = &mut inner.patches;
    *failures = if matches!(fate, Fate::Failed(..)) { *failures + 1 } else { 0 };
    let wait = AGAIN_AFTER.saturating_mul(1 << (*failures).min(10)).min(AGAIN_AT_MOST);
    *again = now + jitter(wait);
    match fate {
        Fate::Ok => {
            patches.ok += 1;
            inner.watchdog.marked(node);
            tracing::info!(node, "its agent is gone: its conditions are Unknown now");
        }
        Fate::Conflict => patches.conflict += 1,
        Fate::Failed(why, asked) => {
            patches.failed += 1;
            tries.left_alone_until = tries.left_alone_until.max(now + *asked);
            tracing::warn!(node, why, "cannot set its conditions to Unknown");
        }
    }
}

/// The patch by which a node says that nobody knows how it is.
fn job(name: &str, row: &Row, gone: &Gone, namespace: &str, now: Timestamp) -> Job {
    let message = message(name, gone, namespace);
    let now = whole_seconds(now);
    let conditions: Vec<_> = std::iter::once(WORKER_PROBLEM)
        .chain(Area::ALL.map(Area::condition))
        .map(|kind| {
            // The time of the last transition moves only when the status does.
            let unknown_since =
                row.condition(kind).filter(|known| known.status == Status::Unknown).and_then(Condition::since);
            json!({
                "type": kind,
                "status": Status::Unknown.as_str(),
                "reason": AGENT_STALE,
                "message": message,
                "lastTransitionTime": unknown_since.unwrap_or(now),
            })
        })
        .collect();
    let body = json!({
        // With the version that was judged: if the agent has spoken since, this write must not undo it.
        "metadata": {
            "resourceVersion": row.version,
            "annotations": { (annotation::STATE): WorkerState::Unknown.as_str() },
        },
        "status": { "conditions": conditions },
    });
    Job { node: name.to_owned(), body: body.to_string().into_bytes() }
}

/// Who is gone, since when, and what to do next.
fn message(node: &str, gone: &Gone, namespace: &str) -> String {
    let since = gone.since.map_or(String::new(), |since| format!(" since {}", crate::facts::utc(since)));
    match (gone.what, &gone.pod) {
        (Missing::Kubelet, _) => format!(
            "The kubelet of {node} is silent{since}, so nobody knows how this worker is. Next: find out whether the \
             machine runs and is reachable; if so, read `journalctl -u kubelet` on it."
        ),
        (Missing::Agent, Some(pod)) => format!(
            "The NodeVitals agent of {node} is gone: its Pod {pod} is not Ready{since}. Next: \
             `kubectl -n {namespace} describe pod {pod}`."
        ),
        (Missing::Agent, None) => format!(
            "The NodeVitals agent of {node} is gone: it has no Pod{since}. Next: \
             `kubectl -n {namespace} describe daemonset nodevitals-agent`."
        ),
    }
}

async fn patch(client: Client, job: Job) -> (String, Fate) {
    let uri = format!("/api/v1/nodes/{}/status?fieldManager=nodevitals-aggregator", escaped(&job.node));
    let request = Request::patch(uri).header("Content-Type", "application/strategic-merge-patch+json").body(job.body);
    let fate = match request {
        Err(error) => Fate::Failed(error.to_string(), Duration::ZERO),
        Ok(request) => match tokio::time::timeout(DEADLINE, api::send(&client, request)).await {
            Err(_) => Fate::Failed(format!("no answer within {} s", DEADLINE.as_secs()), Duration::ZERO),
            Ok(Ok(_)) => Fate::Ok,
            // Changed meanwhile, or deleted: the watch tells which.
            Ok(Err(kube::Error::Api(status))) if matches!(status.code, 404 | 409) => Fate::Conflict,
            Ok(Err(error)) => Fate::Failed(api::said(&error), api::asked(&error)),
        },
    };
    (job.node, fate)
}

#[cfg(test)]
mod tests;
