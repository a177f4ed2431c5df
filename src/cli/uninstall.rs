//! `nodevitals uninstall`: takes off the Node objects what this product wrote there, and off the nodes what its agents kept.

mod eraser;
mod here;
mod template;

use std::fmt::Write as _;
use std::process::ExitCode;
use std::time::Duration;

use anyhow::{Context, anyhow, bail};
use futures::stream::{self, StreamExt as _};
use serde::Serialize;
use serde_json::Value;
use tokio::time::{Instant, sleep};

use super::{Output, failed, terminal};
use crate::agent::{Cleaned, clean_node};
use crate::aggregator::name;
use crate::api::{ANSWER_WITHIN, Api, Server, chain, list, said};
pub(super) use here::{Here, erase};
use template::Template;

/// Where the agents of `deploy/agent.yaml` keep their state, on each node.
const STATE_DIR: &str = "/var/lib/nodevitals";
/// On so many nodes Pods erase at once.
const AT_ONCE: usize = 32;
/// What goes on by itself is looked at again after this time.
const AGAIN: Duration = Duration::from_secs(1);
/// Exit status where something is left on nodes that are named.
const SOMETHING_IS_LEFT: u8 = 1;

/// Options of `nodevitals uninstall`.
#[derive(Debug, clap::Args)]
pub(super) struct Options {
    /// Clean these Nodes only, for example those with the label nodevitals.dev/opt-out; without any: all
    #[arg(value_name = "NODE", value_parser = name)]
    nodes: Vec<String>,

    /// Leave on the nodes themselves what the agents kept there (state, journal, evidence), and run no Pods
    #[arg(long)]
    keep_evidence: bool,

    /// Say what would be done, as far as the API server would let it, and change nothing
    #[arg(long)]
    dry_run: bool,

    /// Image of the Pods that erase on the nodes; without it that of the agents, or else of the aggregator
    #[arg(long, value_name = "IMAGE")]
    image: Option<String>,

    /// Directory on the nodes in which the agents kept it; without it as their DaemonSet says, or /var/lib/nodevitals
    #[arg(long, value_name = "DIR", value_parser = template::state_dir)]
    state_dir: Option<String>,

    /// Wait so many seconds for a node's agent to end, and then for what erases there
    #[arg(long, value_name = "SECONDS", default_value_t = 120, value_parser = clap::value_parser!(u16).range(1..=3600))]
    timeout: u16,

    /// How to print what was done
    #[arg(short, long, value_enum, default_value = "table")]
    output: Output,

    #[command(flatten)]
    server: Server,

    /// Namespace in which NodeVitals runs, or ran
    #[arg(long, value_name = "NAMESPACE", default_value = "nodevitals", value_parser = name)]
    namespace: String,
}

impl Options {
    fn patience(&self) -> Duration {
        Duration::from_secs(self.timeout.into())
    }
}

pub(super) async fn run(options: &Options) -> ExitCode {
    let done = match uninstall(options).await {
        Ok(done) => done,
        Err(error) => return failed(&error),
    };
    match options.output.write(|| &done, || done.text()) {
        Ok(text) => terminal::print(&text),
        Err(error) => return failed(&error),
    }
    if done.left.is_empty() { ExitCode::SUCCESS } else { ExitCode::from(SOMETHING_IS_LEFT) }
}

/// What was done, by the names of the Nodes.
#[derive(Debug, Default, Serialize)]
#[serde(rename_all = "camelCase")]
struct Done {
    /// Nothing was changed: it would have been.
    dry_run: bool,
    /// They had conditions or annotations of this product.
    cleaned: Vec<String>,
    /// They had none.
    clean: Vec<String>,
    /// Where the agents kept what is theirs, on the nodes.
    directory: String,
    /// From these nodes it is gone.
    erased: Vec<String>,
    /// On these it stays, since that was asked for.
    kept: Vec<String>,
    /// What is left.
    left: Vec<Left>,
}

/// A node on which something is left.
#[derive(Debug, Serialize)]
struct Left {
    node: String,
    why: String,
    /// What removes the directory by hand.
    command: String,
}

impl Done {
    fn text(&self) -> String {
        let Done { directory, erased, kept, left, .. } = self;
        let (cleaned, all) = (self.cleaned.len(), self.cleaned.len() + self.clean.len());
        let (erased, kept) = (erased.len(), kept.len());
        let mut text = if self.dry_run {
            format!("{cleaned} of {all} nodes have conditions or annotations of NodeVitals, which would be removed\n")
        } else {
            format!("{cleaned} of {all} nodes had conditions or annotations of NodeVitals; none of them has any more\n")
        };
        // Writing to a String cannot fail.
        if kept > 0 {
            writeln!(
                text,
                "What the agents kept (state, journal, evidence) stays in {directory} on {kept} nodes (--keep-evidence)"
            )
            .ok();
        } else if self.dry_run {
            writeln!(
                text,
                "{directory}, where the agents kept state, journal and evidence, would be erased on {erased} nodes, by a Pod on each"
            )
            .ok();
        } else {
            writeln!(
                text,
                "{directory}, where the agents kept state, journal and evidence, is gone from {erased} nodes"
            )
            .ok();
        }
        if !left.is_empty() {
            writeln!(text, "Something is left on {} nodes; by hand, once they run Pods again:", left.len()).ok();
        }
        for Left { node, why, command } in left {
            writeln!(text, "  {node}: {}\n    {command}", terminal::clean(why)).ok();
        }
        text
    }
}

async fn uninstall(options: &Options) -> anyhow::Result<Done> {
    let Options { server, namespace, keep_evidence, dry_run, .. } = options;
    let api = server.connect().await?;
    let all = nodes(&api).await?;
    let is_linux = |node: &String| all.iter().any(|(name, linux)| name == node && *linux);
    let mut nodes = options.nodes.clone();
    if nodes.is_empty() {
        nodes.extend(all.iter().map(|(name, _)| name.clone()));
    }
    let template = Template::find(&api, options).await;
    let ending = agents_end(&api, options, &template, &nodes).await?;
    let directory = template.directory().to_owned();
    let mut done = Done { dry_run: *dry_run, directory, ..Done::default() };
    for node in nodes {
        if let Some(agent) = ending.iter().find(|agent| agent.node == node) {
            let why = format!(
                "its agent's Pod {namespace}/{} has not ended within {} s (is the kubelet silent?), so that an agent \
                 may still write there. Nothing was done: call `nodevitals uninstall {node}` again when the Pod is gone",
                agent.pod, options.timeout
            );
            done.left.push(Left { why, command: template.by_hand(&node), node });
            continue;
        }
        let cleaned = tokio::time::timeout(ANSWER_WITHIN, clean_node(&api.unary, &node, *dry_run)).await;
        let cleaned =
            cleaned.with_context(|| format!("node {node}: no answer within {} s", ANSWER_WITHIN.as_secs()))?;
        match cleaned {
            Ok(Cleaned::Now) => done.cleaned.push(node),
            Ok(Cleaned::Before) => done.clean.push(node),
            Err(error) => {
                let cleaned = done.cleaned.len();
                bail!("node {node}: {}; {cleaned} were cleaned, call it again for the rest", chain(&error))
            }
        }
    }
    let on: Vec<String> = done.cleaned.iter().chain(&done.clean).filter(|node| is_linux(node)).cloned().collect();
    if *keep_evidence {
        done.kept = on;
    } else {
        erase_on(&api, options, &template, on, &mut done).await;
    }
    done.left.sort_unstable_by(|a, b| a.node.cmp(&b.node));
    Ok(done)
}

/// Has what the agents kept erased on these nodes.
async fn erase_on(api: &Api, options: &Options, template: &Template, nodes: Vec<String>, done: &mut Done) {
    let each = nodes.into_iter().map(|node| async {
        let erased = eraser::erase(api, options, template, &node).await;
        (node, erased)
    });
    let mut each = stream::iter(each).buffer_unordered(AT_ONCE);
    while let Some((node, erased)) = each.next().await {
        match erased {
            Ok(()) => done.erased.push(node),
            Err(why) => done.left.push(Left { command: template.by_hand(&node), why, node }),
        }
    }
    done.erased.sort_unstable();
}

/// The Nodes, and whether an agent of the DaemonSet can run there.
async fn nodes(api: &Api) -> anyhow::Result<Vec<(String, bool)>> {
    let mut nodes = Vec::new();
    let mut each = |node: &Value| {
        let system = node["metadata"]["labels"]["kubernetes.io/os"].as_str();
        let name = node["metadata"]["name"].as_str().map(str::to_owned);
        nodes.extend(name.map(|name| (name, system.is_none_or(|system| system == "linux"))));
    };
    let listed = list(&api.unary, "/api/v1/nodes", "", &mut each).await;
    listed.map_err(|error| anyhow!("API server {}: nodes: {}", api.server, said(&error)))?;
    Ok(nodes)
}

/// An agent's Pod.
#[derive(Debug)]
struct Agent {
    node: String,
    pod: String,
    /// It is deleted, and ends.
    ends: bool,
}

/// Waits for those agents on these nodes that are ending, since their Pod or their DaemonSet is deleted. Answers with those that have
/// not ended.
///
/// # Errors
/// When there is one that goes on: it would write it all again. A dry run only says so.
async fn agents_end(api: &Api, options: &Options, template: &Template, nodes: &[String]) -> anyhow::Result<Vec<Agent>> {
    let Options { namespace, dry_run, .. } = options;
    let until = Instant::now() + options.patience();
    loop {
        let mut agents = agents(api, namespace).await?;
        agents.retain(|agent| nodes.contains(&agent.node));
        if let Some(Agent { node, pod, .. }) = agents.iter().find(|agent| !agent.ends && template.has_agents) {
            let first = format!(
                "the agent {namespace}/{pod} still runs on {node}: first `kubectl --namespace {namespace} delete daemonset \
                 nodevitals-agent`, or label the Node nodevitals.dev/opt-out (`kubectl delete -k deploy` comes last)"
            );
            if !dry_run {
                bail!(first);
            }
            terminal::note(&first);
        }
        if agents.is_empty() || *dry_run {
            return Ok(Vec::new());
        }
        if Instant::now() >= until {
            return Ok(agents);
        }
        sleep(AGAIN).await;
    }
}

/// The agents' Pods.
async fn agents(api: &Api, namespace: &str) -> anyhow::Result<Vec<Agent>> {
    let labels = "labelSelector=app.kubernetes.io/name%3Dnodevitals,app.kubernetes.io/component%3Dagent";
    let text = |value: &Value| value.as_str().unwrap_or_default().to_owned();
    let mut agents = Vec::new();
    let mut each = |pod: &Value| {
        let (node, name) = (text(&pod["spec"]["nodeName"]), text(&pod["metadata"]["name"]));
        agents.push(Agent { node, pod: name, ends: pod["metadata"]["deletionTimestamp"].is_string() });
    };
    let listed = list(&api.unary, &format!("/api/v1/namespaces/{namespace}/pods"), labels, &mut each).await;
    listed.map_err(|error| anyhow!("API server {}: pods in namespace {namespace}: {}", api.server, said(&error)))?;
    Ok(agents)
}

#[cfg(test)]
mod tests;
