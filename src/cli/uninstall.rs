//! `nodevitals uninstall`: takes off the Node objects what this product wrote there.

use std::process::ExitCode;

use anyhow::{Context, anyhow, bail};
use serde_json::Value;

use super::{Output, failed, terminal};
use crate::agent::{Cleaned, clean_node};
use crate::aggregator::name;
use crate::api::{ANSWER_WITHIN, Api, Server, chain, list, said};

/// Where the agents of `deploy/agent.yaml` keep their state, on each node.
const STATE_DIR: &str = "/var/lib/nodevitals";

/// Options of `nodevitals uninstall`.
#[derive(Debug, clap::Args)]
pub(super) struct Options {
    /// Clean these Nodes only, for example those with the label nodevitals.dev/opt-out; without any: all
    #[arg(value_name = "NODE", value_parser = name)]
    nodes: Vec<String>,

    /// How to print what was done
    #[arg(short, long, value_enum, default_value = "table")]
    output: Output,

    #[command(flatten)]
    server: Server,

    /// Namespace in which NodeVitals runs, or ran
    #[arg(long, value_name = "NAMESPACE", default_value = "nodevitals", value_parser = name)]
    namespace: String,
}

pub(super) async fn run(options: &Options) -> ExitCode {
    let said = uninstall(options).await.and_then(|done| options.output.write(|| &done, || done.text()));
    match said {
        Ok(text) => {
            terminal::print(&text);
            ExitCode::SUCCESS
        }
        Err(error) => failed(&error),
    }
}

/// What was done, by the names of the Nodes.
#[derive(Debug, Default, serde::Serialize)]
struct Done {
    /// They had conditions or annotations of this product.
    cleaned: Vec<String>,
    /// They had none.
    clean: Vec<String>,
}

impl Done {
    fn text(&self) -> String {
        let (cleaned, all) = (self.cleaned.len(), self.cleaned.len() + self.clean.len());
        format!(
            "{cleaned} of {all} nodes had conditions or annotations of NodeVitals; none has any more. What the agents kept on the \
             nodes themselves (state, evidence) is in {STATE_DIR} there until you delete it\n"
        )
    }
}

async fn uninstall(options: &Options) -> anyhow::Result<Done> {
    let Options { server, namespace, nodes, .. } = options;
    let api = server.connect().await?;
    let agents = agents(&api, namespace).await?;
    let writes = |node: &String| agents.iter().find(|(on, _)| on == node);
    let nodes = if nodes.is_empty() { self::nodes(&api).await? } else { nodes.clone() };
    // An agent would write it all again.
    if let Some((node, agent)) = nodes.iter().find_map(|node| Some((node, &writes(node)?.1))) {
        bail!(
            "the agent {namespace}/{agent} still runs on {node}: delete the DaemonSet first (`kubectl delete -k deploy`), or label \
             the Node nodevitals.dev/opt-out, and wait until its Pod is gone"
        );
    }
    let mut all = Done::default();
    for node in nodes {
        let done = tokio::time::timeout(ANSWER_WITHIN, clean_node(&api.unary, &node)).await;
        let done = done.with_context(|| format!("node {node}: no answer within {} s", ANSWER_WITHIN.as_secs()))?;
        match done {
            Ok(Cleaned::Now) => all.cleaned.push(node),
            Ok(Cleaned::Before) => all.clean.push(node),
            Err(error) => {
                let cleaned = all.cleaned.len();
                bail!("node {node}: {}; {cleaned} were cleaned, call it again for the rest", chain(&error))
            }
        }
    }
    Ok(all)
}

async fn nodes(api: &Api) -> anyhow::Result<Vec<String>> {
    let mut names = Vec::new();
    let mut each = |node: &Value| names.extend(node["metadata"]["name"].as_str().map(str::to_owned));
    let listed = list(&api.unary, "/api/v1/nodes", "", &mut each).await;
    listed.map_err(|error| anyhow!("API server {}: nodes: {}", api.server, said(&error)))?;
    Ok(names)
}

/// Node and name of each agent's Pod.
async fn agents(api: &Api, namespace: &str) -> anyhow::Result<Vec<(String, String)>> {
    let labels = "labelSelector=app.kubernetes.io/name%3Dnodevitals,app.kubernetes.io/component%3Dagent";
    let text = |value: &Value| value.as_str().unwrap_or_default().to_owned();
    let mut pods = Vec::new();
    let mut each = |pod: &Value| pods.push((text(&pod["spec"]["nodeName"]), text(&pod["metadata"]["name"])));
    let listed = list(&api.unary, &format!("/api/v1/namespaces/{namespace}/pods"), labels, &mut each).await;
    listed.map_err(|error| anyhow!("API server {}: pods in namespace {namespace}: {}", api.server, said(&error)))?;
    Ok(pods)
}
