//! What the Node says of this product now.

use std::collections::BTreeMap;
use std::time::Duration;

use serde::Deserialize;

use crate::facts::{KubeletCondition, KubeletSaid};
use crate::verdict::{ANNOTATION_PREFIX, NodeCondition, Status as Verdict, our_condition};

/// Longest wait for a GET.
const DEADLINE: Duration = Duration::from_secs(10);

/// As much of a condition's message as is kept, in characters.
const MESSAGE: usize = 1024;

/// The part of a Node object that is read: everything else is skipped without being kept.
#[derive(Debug, Default, Deserialize)]
struct Node {
    #[serde(default)]
    metadata: Metadata,
    #[serde(default)]
    spec: Spec,
    #[serde(default)]
    status: NodeStatus,
}

#[derive(Debug, Default, Deserialize)]
#[serde(rename_all = "camelCase")]
struct Metadata {
    #[serde(default)]
    resource_version: String,
    #[serde(default)]
    creation_timestamp: Option<jiff::Timestamp>,
    #[serde(default)]
    annotations: BTreeMap<String, String>,
}

#[derive(Debug, Default, Deserialize)]
struct Spec {
    #[serde(default)]
    unschedulable: bool,
}

#[derive(Debug, Default, Deserialize)]
struct NodeStatus {
    #[serde(default)]
    conditions: Vec<Condition>,
}

/// A condition, whoever wrote it; a time that cannot be read costs itself, not the Node.
#[derive(Debug, Default, Deserialize)]
#[serde(rename_all = "camelCase", default)]
struct Condition {
    #[serde(rename = "type")]
    kind: String,
    status: String,
    reason: String,
    message: String,
    last_transition_time: Option<String>,
    last_heartbeat_time: Option<String>,
}

/// Our own conditions and annotations, as the API server holds them.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(crate) struct NodeNow {
    /// `metadata.resourceVersion`, where it is a number, as that of every API server is that keeps Nodes in etcd.
    pub(crate) version: Option<u64>,
    /// When it joined.
    pub(crate) created: Option<jiff::Timestamp>,
    /// Whether it is cordoned.
    pub(crate) cordoned: bool,
    /// Conditions of our types, by type.
    pub(crate) conditions: BTreeMap<String, NodeCondition>,
    /// Annotations with our prefix.
    pub(crate) annotations: BTreeMap<String, String>,
    /// The kubelet's own conditions.
    pub(crate) said: Vec<KubeletCondition>,
}

impl From<Node> for NodeNow {
    fn from(node: Node) -> Self {
        NodeNow::of(node, our_condition)
    }
}

impl NodeNow {
    /// With the conditions whose types are ours.
    fn of(node: Node, is_ours: impl Fn(&str) -> bool) -> Self {
        let mut now = NodeNow {
            version: node.metadata.resource_version.parse().ok(),
            created: node.metadata.creation_timestamp,
            cordoned: node.spec.unschedulable,
            annotations: node.metadata.annotations,
            ..NodeNow::default()
        };
        now.annotations.retain(|key, _| key.starts_with(ANNOTATION_PREFIX));
        for condition in node.status.conditions {
            if is_ours(&condition.kind) {
                now.conditions.insert(condition.kind.clone(), condition.into());
            } else if KubeletSaid::TYPES.contains(&condition.kind.as_str()) {
                now.said.push(condition.into());
            }
        }
        now
    }
}

fn time(text: Option<String>) -> Option<jiff::Timestamp> {
    text?.parse().ok()
}

impl From<Condition> for NodeCondition {
    fn from(it: Condition) -> Self {
        NodeCondition {
            kind: it.kind,
            status: Verdict::parse(&it.status),
            reason: it.reason,
            message: it.message,
            last_transition_time: time(it.last_transition_time),
        }
    }
}

impl From<Condition> for KubeletCondition {
    fn from(it: Condition) -> Self {
        KubeletCondition {
            kind: it.kind,
            status: it.status,
            reason: it.reason,
            message: it.message.chars().take(MESSAGE).collect(),
            since: time(it.last_transition_time),
            heartbeat: time(it.last_heartbeat_time),
        }
    }
}

/// Reads the Node.
pub(crate) async fn read_node(client: &kube::Client, name: &str) -> Result<NodeNow, kube::Error> {
    let request =
        http::Request::get(format!("/api/v1/nodes/{name}")).body(Vec::new()).map_err(kube::Error::HttpError)?;
    match tokio::time::timeout(DEADLINE, self::request(client, request)).await {
        Ok(answer) => answer,
        Err(_) => Err(timed_out("GET", DEADLINE)),
    }
}

/// Sends a request that is answered by a Node.
pub(super) async fn request(client: &kube::Client, request: http::Request<Vec<u8>>) -> Result<NodeNow, kube::Error> {
    let body = crate::api::send(client, request).await?;
    serde_json::from_slice::<Node>(&body).map(NodeNow::from).map_err(kube::Error::SerdeError)
}

/// The error of a call that was not answered in time.
pub(super) fn timed_out(verb: &str, deadline: Duration) -> kube::Error {
    let text = format!("{verb} was not answered within {} s", deadline.as_secs());
    kube::Error::Service(Box::new(std::io::Error::new(std::io::ErrorKind::TimedOut, text)))
}

#[cfg(test)]
mod tests {
    use super::super::patch;
    use super::*;
    use crate::verdict::Told;

    #[test]
    fn a_condition_that_an_earlier_version_wrote_is_taken_off() {
        let (at, when) = (jiff::Timestamp::UNIX_EPOCH, "2023-11-14T22:13:20Z");
        let condition = |kind: &str| serde_json::json!({"type": kind, "status": "True", "lastTransitionTime": when});
        let conditions = ["Ready", "GoneProblem", "OthersProblem"].map(condition);
        let node = || {
            let node = serde_json::json!({"metadata": {"name": "n1"}, "status": {"conditions": conditions}});
            serde_json::from_value::<Node>(node).expect("a Node")
        };
        let nothing = Told { conditions: Vec::new(), annotations: BTreeMap::new() };
        let now = NodeNow::of(node(), |kind| kind == "GoneProblem" || our_condition(kind));
        let patch = patch::patch(&now, &nothing, at).expect("a change");
        let gone = serde_json::json!([{"type": "GoneProblem", "$patch": "delete"}]);
        assert_eq!(patch["status"]["conditions"], gone);
        assert_eq!(patch::patch(&node().into(), &nothing, at), None, "what is nobody's of ours stays");
    }
}
