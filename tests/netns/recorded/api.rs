//! An API server with one Node, an admission webhook on its status that never answers, as it was recorded, and behind its
//! proxy an aggregator that has a map of the cluster.

use std::net::TcpListener;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use anyhow::Result;
use serde_json::{Value, json};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio::runtime::Handle;
use tokio::task::JoinHandle;

/// The webhook's `timeoutSeconds`: after these a write went on, or failed.
const WEBHOOK: Duration = Duration::from_secs(10);
const FAILED: &str = r#"Internal error occurred: failed calling webhook "nodes.audit.example.com": failed to call webhook: Post "https://10.77.0.1:9443/validate?timeout=10s": context deadline exceeded"#;

/// What becomes of a write when the webhook's time is up.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Policy {
    Ignore,
    Fail,
}

#[derive(Debug)]
struct State {
    node: Value,
    webhook: Option<Policy>,
    version: u64,
    map: Option<Value>,
}

/// Serves until it is dropped.
pub struct Api {
    state: Arc<Mutex<State>>,
    serving: JoinHandle<()>,
}

impl Api {
    /// With a Node of this name that nobody has written to.
    pub fn serve(runtime: &Handle, listener: TcpListener, node: &str) -> Result<Self> {
        listener.set_nonblocking(true)?;
        let node = json!({
            "apiVersion": "v1", "kind": "Node", "status": {"conditions": []},
            "metadata": {"name": node, "resourceVersion": "1", "annotations": {}, "creationTimestamp": "2026-01-01T00:00:00Z"},
        });
        let state = Arc::new(Mutex::new(State { node, webhook: None, version: 1, map: None }));
        let _guard = runtime.enter();
        let listener = tokio::net::TcpListener::from_std(listener)?;
        let of_all = Arc::clone(&state);
        let serving = runtime.spawn(async move {
            while let Ok((stream, _)) = listener.accept().await {
                tokio::spawn(answer(stream, Arc::clone(&of_all)));
            }
        });
        Ok(Api { state, serving })
    }

    /// From now on writes of the Node's status wait for it, or for nothing.
    pub fn set_webhook(&self, webhook: Option<Policy>) {
        locked(&self.state).webhook = webhook;
    }

    /// From now on the aggregator tells this.
    pub fn set_map(&self, map: &Value) {
        locked(&self.state).map = Some(map.clone());
    }

    /// The kubelet writes its condition Ready now, which it has had for four minutes.
    pub fn set_ready(&self, status: &str, reason: &str, message: &str) {
        let now = jiff::Timestamp::now();
        let since = now - jiff::SignedDuration::from_mins(4);
        let patch = json!({"status": {"conditions": [{
            "type": "Ready", "status": status, "reason": reason, "message": message,
            "lastTransitionTime": since, "lastHeartbeatTime": now,
        }]}});
        locked(&self.state).merge(&patch);
    }

    /// The Node as it is now.
    pub fn node(&self) -> Value {
        locked(&self.state).node.clone()
    }
}

impl Drop for Api {
    fn drop(&mut self) {
        self.serving.abort();
    }
}

fn locked(state: &Mutex<State>) -> MutexGuard<'_, State> {
    state.lock().unwrap_or_else(PoisonError::into_inner)
}

/// Answers one request.
async fn answer(mut stream: TcpStream, state: Arc<Mutex<State>>) -> Option<()> {
    let (method, path, body) = request(&mut stream).await?;
    let map = path.contains("/proxy/api/v1/map?").then(|| locked(&state).map.clone()).flatten();
    let (status, body) = match (method.as_str(), path.starts_with("/api/v1/nodes/")) {
        ("GET", false) if map.is_some() => (200, map.unwrap_or_default()),
        ("GET", true) => (200, locked(&state).node.clone()),
        ("PATCH", true) => patched(&state, &body, path.contains("dryRun")).await,
        ("POST", false) => (201, json!({})),
        _ => (
            404,
            json!({"kind": "Status", "status": "Failure", "code": 404, "message": "not found", "reason": "NotFound"}),
        ),
    };
    let body = body.to_string();
    let head = format!(
        "HTTP/1.1 {status} X\r\nContent-Type: application/json\r\nContent-Length: {}\r\nConnection: close\r\n\r\n",
        body.len()
    );
    // The one who asks may have gone.
    stream.write_all((head + &body).as_bytes()).await.ok()
}

/// Method, path and body.
async fn request(stream: &mut TcpStream) -> Option<(String, String, Value)> {
    let mut received = Vec::new();
    loop {
        if let Some(end) = received.windows(4).position(|four| four == b"\r\n\r\n") {
            let head = String::from_utf8_lossy(&received[..end]).into_owned();
            let lower = head.to_lowercase();
            let length = lower.lines().find_map(|line| line.strip_prefix("content-length:")?.trim().parse().ok());
            let body = &received[end + 4..];
            if body.len() >= length.unwrap_or(0) {
                let mut words = head.split(' ');
                let (method, path) = (words.next()?.to_owned(), words.next()?.to_owned());
                return Some((method, path, serde_json::from_slice(body).unwrap_or_default()));
            }
        }
        if stream.read_buf(&mut received).await.ok()? == 0 {
            return None;
        }
    }
}

async fn patched(state: &Mutex<State>, patch: &Value, dry: bool) -> (u16, Value) {
    let webhook = locked(state).webhook;
    if webhook.is_some() {
        tokio::time::sleep(WEBHOOK).await;
    }
    if webhook == Some(Policy::Fail) {
        return (
            500,
            json!({"kind": "Status", "status": "Failure", "code": 500, "message": FAILED, "reason": "InternalError"}),
        );
    }
    let mut state = locked(state);
    if !dry {
        state.merge(patch);
    }
    (200, state.node.clone())
}

impl State {
    /// As strategic merge does it with conditions and annotations.
    fn merge(&mut self, patch: &Value) {
        self.version += 1;
        if let Some(conditions) = self.node["status"]["conditions"].as_array_mut() {
            for condition in patch["status"]["conditions"].as_array().into_iter().flatten() {
                conditions.retain(|old| old["type"] != condition["type"]);
                conditions.push(condition.clone());
            }
        }
        for (key, value) in patch["metadata"]["annotations"].as_object().into_iter().flatten() {
            self.node["metadata"]["annotations"][key] = value.clone();
        }
        self.node["metadata"]["resourceVersion"] = self.version.to_string().into();
    }
}
