//! What a node cannot know by itself, asked of the aggregator through the API server's proxy: the way works as long as
//! the node reaches its API server, whatever has become of Pod network, kube-proxy and DNS.

mod typha;

use std::sync::Arc;
use std::time::Duration;

use http::header::{ACCEPT, ETAG, HeaderValue, IF_NONE_MATCH};
use http_body_util::{BodyExt, Limited};
use kube::client::Body;
use tokio::time::timeout;

use super::HostRoot;
use crate::api::{Api, chain};
use crate::backoff::{Backoff, jitter};
use crate::facts::ClusterMap;
use typha::TyphaSource;

/// From the question to the last byte of the answer.
const DEADLINE: Duration = Duration::from_secs(10);
/// Longest map that is read, in bytes: 30,000 nodes need less.
const LONGEST: usize = 8 << 20;
/// A map of many nodes is asked for more rarely, by this much for each: where something always changes, what is sent to
/// all of them grows with the square of their number.
const PER_NODE: Duration = Duration::from_millis(60);
/// Waits between tries that fail, first and longest.
const AGAIN: (Duration, Duration) = (Duration::from_secs(1), Duration::from_secs(120));

/// Whom to ask, and how often.
#[derive(Clone)]
pub(crate) struct Asked {
    /// Ways to the API server, best first.
    pub(crate) ways: Vec<Api>,
    /// The node that asks.
    pub(crate) node: String,
    /// Where the aggregator runs.
    pub(crate) namespace: String,
    /// Between two questions.
    pub(crate) every: Duration,
    /// What is told of this node along with the question: more parameters of its query.
    pub(crate) tells: Arc<dyn Fn() -> String + Send + Sync>,
}

/// What an aggregator answered.
#[derive(Debug)]
pub(super) enum Answer {
    /// The map.
    New(Box<ClusterMap>),
    /// It is the one that is known.
    Same,
}

/// Why there is no answer.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Failed {
    /// The API server answers, and there is no aggregator behind it.
    NoAggregator(String),
    /// The API server itself cannot be asked.
    Unreachable(String),
}

/// Asks for the map.
pub(super) struct ClusterSource {
    asked: Asked,
    etag: Option<HeaderValue>,
    nodes: u32,
    backoff: Backoff,
    told: String,
    typha: TyphaSource,
}

impl ClusterSource {
    pub(super) fn new(asked: Asked, host: HostRoot) -> Self {
        let backoff = Backoff::new(AGAIN.0.min(asked.every), AGAIN.1.max(asked.every));
        let typha = TyphaSource::new(host);
        ClusterSource { asked, etag: None, nodes: 0, backoff, told: String::new(), typha }
    }

    /// Asks once.
    pub(super) async fn look(&mut self) -> Result<Answer, Failed> {
        let late = || Failed::Unreachable(format!("no answer within {} s", DEADLINE.as_secs()));
        let answer = timeout(DEADLINE, self.ask()).await.unwrap_or_else(|_| Err(late()));
        match &answer {
            Ok(_) => {
                if !std::mem::take(&mut self.told).is_empty() {
                    tracing::info!("the aggregator answers");
                }
            }
            Err(Failed::NoAggregator(why) | Failed::Unreachable(why)) => {
                if matches!(answer, Err(Failed::Unreachable(_))) {
                    self.asked.ways.rotate_left(1);
                }
                if self.told != *why {
                    tracing::info!(why, "cannot ask the aggregator for the map of the cluster");
                    self.told.clone_from(why);
                }
            }
        }
        answer
    }

    /// The map that it got is no longer kept: the next answer has to be whole.
    pub(super) fn forget(&mut self) {
        self.etag = None;
    }

    /// How long to wait after this answer.
    pub(super) fn wait(&mut self, answered: bool) -> Duration {
        if !answered {
            return self.backoff.wait();
        }
        self.backoff.reset();
        let every = self.asked.every.max(PER_NODE.saturating_mul(self.nodes));
        // On average the whole time, and never the same for two nodes.
        every.mul_f64(0.25) + jitter(every)
    }

    async fn ask(&mut self) -> Result<Answer, Failed> {
        let typha = self.typha.query().await;
        let Asked { ways, node, namespace, tells, .. } = &self.asked;
        let told = tells();
        let uri = format!(
            "/api/v1/namespaces/{namespace}/services/nodevitals-aggregator:http/proxy/api/v1/map?node={node}{told}{typha}"
        );
        let mut request = http::Request::get(uri)
            .header(ACCEPT, HeaderValue::from_static("application/json"))
            .body(Body::empty())
            .map_err(|error| Failed::NoAggregator(error.to_string()))?;
        if let Some(etag) = &self.etag {
            request.headers_mut().insert(IF_NONE_MATCH, etag.clone());
        }
        let answer = ways[0].unary.send(request).await.map_err(|error| Failed::Unreachable(chain(&error)))?;
        match answer.status().as_u16() {
            200 => {}
            304 if self.etag.is_some() => return Ok(Answer::Same),
            status => return Err(Failed::NoAggregator(refusal(status, namespace))),
        }
        let etag = answer.headers().get(ETAG).cloned();
        let body = Limited::new(answer.into_body(), LONGEST).collect().await;
        let body = body.map_err(|error| Failed::NoAggregator(format!("its answer broke off: {error}")))?.to_bytes();
        let map = read(&body, node).map_err(Failed::NoAggregator)?;
        self.nodes = u32::try_from(map.nodes.len()).unwrap_or(u32::MAX);
        self.typha.told(&map);
        self.etag = etag;
        Ok(Answer::New(map))
    }
}

/// What a status means that is no answer of the aggregator's.
fn refusal(status: u16, namespace: &str) -> String {
    match status {
        401 => "401: the agent's token is not accepted".to_owned(),
        403 => {
            format!("403: no permission to ask the aggregator in namespace {namespace}; apply deploy/rbac-agent.yaml")
        }
        404 => format!("404: there is no aggregator in namespace {namespace}, or it is an older one"),
        503 => "503: no aggregator is ready".to_owned(),
        status => format!("{status}"),
    }
}

/// Reads a map, without room to spare in it: it is kept for long.
pub(super) fn read(body: &[u8], node: &str) -> Result<Box<ClusterMap>, String> {
    let mut map: Box<ClusterMap> =
        serde_json::from_slice(body).map_err(|error| format!("its answer cannot be read: {error}"))?;
    node.clone_into(&mut map.own);
    for node in &mut map.nodes {
        node.addresses.shrink_to_fit();
        node.tunnels.shrink_to_fit();
        node.blocks.shrink_to_fit();
    }
    map.nodes.shrink_to_fit();
    Ok(map)
}

/// The fuzz target's door.
#[cfg(any(test, fuzzing))]
pub(crate) fn fuzz(data: &[u8]) {
    if let Ok(map) = read(data, "n1") {
        assert_eq!(map.own, "n1");
    }
}

#[cfg(test)]
mod tests;
