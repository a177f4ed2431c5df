//! What the Node says of this product now.

use std::collections::BTreeMap;
use std::time::Duration;

use serde::Deserialize;

use crate::verdict::{ANNOTATION_PREFIX, NodeCondition, our_condition};

/// Longest wait for a GET.
const DEADLINE: Duration = Duration::from_secs(10);

/// The part of a Node object that is read: everything else is skipped without being kept.
#[derive(Debug, Default, Deserialize)]
struct Node {
    #[serde(default)]
    metadata: Metadata,
    #[serde(default)]
    status: NodeStatus,
}

#[derive(Debug, Default, Deserialize)]
#[serde(rename_all = "camelCase")]
struct Metadata {
    #[serde(default)]
    creation_timestamp: Option<jiff::Timestamp>,
    #[serde(default)]
    annotations: BTreeMap<String, String>,
}

#[derive(Debug, Default, Deserialize)]
struct NodeStatus {
    #[serde(default)]
    conditions: Vec<NodeCondition>,
}

/// Our own conditions and annotations, as the API server holds them.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(crate) struct NodeNow {
    /// When it joined.
    pub(crate) created: Option<jiff::Timestamp>,
    /// Conditions of our types, by type.
    pub(crate) conditions: BTreeMap<String, NodeCondition>,
    /// Annotations with our prefix.
    pub(crate) annotations: BTreeMap<String, String>,
}

impl From<Node> for NodeNow {
    fn from(node: Node) -> Self {
        let ours = node.status.conditions.into_iter().filter(|condition| our_condition(&condition.kind));
        NodeNow {
            created: node.metadata.creation_timestamp,
            conditions: ours.map(|condition| (condition.kind.clone(), condition)).collect(),
            annotations: node
                .metadata
                .annotations
                .into_iter()
                .filter(|(key, _)| key.starts_with(ANNOTATION_PREFIX))
                .collect(),
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
    client.request::<Node>(request).await.map(NodeNow::from)
}

/// The error of a call that was not answered in time.
pub(super) fn timed_out(verb: &str, deadline: Duration) -> kube::Error {
    let text = format!("{verb} was not answered within {} s", deadline.as_secs());
    kube::Error::Service(Box::new(std::io::Error::new(std::io::ErrorKind::TimedOut, text)))
}
