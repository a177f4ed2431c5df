//! `nodevitals uninstall`: takes off the Node objects what this product wrote there.

use std::process::ExitCode;
use std::time::Duration;

use anyhow::{Context, bail};
use kube::Client;
use serde::Deserialize;

use super::{failed, terminal};
use crate::agent::{Cleaned, clean_node};
use crate::aggregator::name;
use crate::api::{Api, Server, chain};

/// Longest wait for one answer of the API server.
const ANSWER_WITHIN: Duration = Duration::from_secs(60);
/// Objects that are asked for at once.
const PAGE: usize = 200;

/// Options of `nodevitals uninstall`.
///
/// Needs the rights to list pods in the namespace, to list and get nodes, and to patch nodes/status. Exit status: 0 when no
/// Node bears a trace any more, 64 otherwise.
#[derive(Debug, clap::Args)]
pub(super) struct Options {
    /// Clean these Nodes only, for example those with the label nodevitals.dev/opt-out; without any: all
    #[arg(value_name = "NODE", value_parser = name)]
    nodes: Vec<String>,

    #[command(flatten)]
    server: Server,

    /// Namespace in which NodeVitals runs, or ran
    #[arg(long, value_name = "NAMESPACE", default_value = "nodevitals", value_parser = name)]
    namespace: String,
}

pub(super) async fn run(options: &Options) -> ExitCode {
    match uninstall(options).await {
        Ok(text) => {
            terminal::print(&text);
            ExitCode::SUCCESS
        }
        Err(error) => failed(&error),
    }
}

async fn uninstall(options: &Options) -> anyhow::Result<String> {
    let Options { server, namespace, nodes } = options;
    let api = server.connect().await?;
    let agents = agents(&api, namespace).await?;
    let writes = |node: &String| agents.iter().find(|agent| agent.spec.node_name == **node);
    let nodes = if nodes.is_empty() { self::nodes(&api).await? } else { nodes.clone() };
    // An agent would write it all again.
    if let Some((node, agent)) = nodes.iter().find_map(|node| Some((node, writes(node)?))) {
        bail!(
            "the agent {namespace}/{} still runs on {node}: delete the DaemonSet first (`kubectl delete -k deploy`), or label \
             the Node nodevitals.dev/opt-out, and wait until its Pod is gone",
            agent.metadata.name
        );
    }
    let mut cleaned = 0;
    for node in &nodes {
        let done = tokio::time::timeout(ANSWER_WITHIN, clean_node(&api.unary, node)).await;
        let done = done.with_context(|| format!("node {node}: no answer within {} s", ANSWER_WITHIN.as_secs()))?;
        match done {
            Ok(Cleaned::Now) => cleaned += 1,
            Ok(Cleaned::Before) => {}
            Err(error) => bail!("node {node}: {}; {cleaned} were cleaned, call it again for the rest", chain(&error)),
        }
    }
    Ok(format!("{cleaned} of {} nodes had conditions or annotations of NodeVitals; none has any more\n", nodes.len()))
}

#[derive(Debug, Default, Deserialize)]
struct List {
    #[serde(default)]
    metadata: ListMetadata,
    #[serde(default)]
    items: Vec<Item>,
}

#[derive(Debug, Default, Deserialize)]
struct ListMetadata {
    #[serde(default, rename = "continue")]
    more: String,
}

#[derive(Debug, Default, Deserialize)]
struct Item {
    #[serde(default)]
    metadata: Metadata,
    #[serde(default)]
    spec: Spec,
}

#[derive(Debug, Default, Deserialize)]
struct Metadata {
    #[serde(default)]
    name: String,
}

#[derive(Debug, Default, Deserialize)]
struct Spec {
    #[serde(default, rename = "nodeName")]
    node_name: String,
}

async fn nodes(api: &Api) -> anyhow::Result<Vec<String>> {
    let list = list(&api.unary, "/api/v1/nodes", "").await;
    Ok(list
        .with_context(|| format!("API server {}: nodes", api.server))?
        .into_iter()
        .map(|it| it.metadata.name)
        .collect())
}

async fn agents(api: &Api, namespace: &str) -> anyhow::Result<Vec<Item>> {
    let labels = "&labelSelector=app.kubernetes.io/name%3Dnodevitals,app.kubernetes.io/component%3Dagent";
    let list = list(&api.unary, &format!("/api/v1/namespaces/{namespace}/pods"), labels).await;
    list.with_context(|| format!("API server {}: pods in namespace {namespace}", api.server))
}

async fn list(client: &Client, path: &str, more: &str) -> anyhow::Result<Vec<Item>> {
    let mut items = Vec::new();
    let mut next = String::new();
    loop {
        let token = if next.is_empty() { String::new() } else { format!("&continue={next}") };
        let request = http::Request::get(format!("{path}?limit={PAGE}{more}{token}")).body(Vec::new())?;
        let page: List = tokio::time::timeout(ANSWER_WITHIN, client.request(request)).await.context("no answer")??;
        items.extend(page.items);
        next = page.metadata.more;
        if next.is_empty() {
            return Ok(items);
        }
    }
}
