//! `nodevitals report`: the cluster at a glance, or one worker in full.

mod text;

use std::io::IsTerminal;
use std::process::ExitCode;
use std::time::Duration;

use anyhow::{Context, anyhow};
use http::Request;
use http_body_util::{BodyExt, Limited};
use kube::Client;
use kube::client::Body;

use super::terminal::{self, Paint, escaped, note};
use super::{BAD_USAGE, Output};
use crate::aggregator::report::ClusterReport;
use crate::aggregator::{from_node_objects, name};
use crate::api::{Api, Server, chain};

/// The aggregator answers within milliseconds; the API server's proxy may need to find out that it is not there.
const ANSWER_WITHIN: Duration = Duration::from_secs(10);
/// Listing the nodes of a large cluster takes longer.
const LIST_WITHIN: Duration = Duration::from_secs(120);
/// Longest report that is read: 15,000 workers, each of them in trouble, need less.
const LONGEST: usize = 128 << 20;

/// Options of `nodevitals report`.
#[derive(Debug, clap::Args)]
pub(super) struct Options {
    /// Show this worker in full: all conditions, all findings, since when, and what to do next
    #[arg(value_name = "NODE", value_parser = name)]
    node: Option<String>,

    /// How to print it; json and yaml hold everything
    #[arg(short, long, value_enum, default_value = "table")]
    output: Output,

    /// List every worker, and the details of each that needs attention, however many they are
    #[arg(long)]
    all: bool,

    #[command(flatten)]
    server: Server,

    /// Namespace in which NodeVitals runs
    #[arg(long, value_name = "NAMESPACE", default_value = "nodevitals", value_parser = name)]
    namespace: String,
}

/// Why there is no report.
#[derive(Debug)]
struct Failed {
    /// 64 for what the caller can put right, else 1.
    exit_status: u8,
    /// What is wrong with what, and what to do.
    error: anyhow::Error,
}

impl Failed {
    fn usage(error: anyhow::Error) -> Failed {
        Failed { exit_status: BAD_USAGE, error }
    }

    fn other(error: anyhow::Error) -> Failed {
        Failed { exit_status: 1, error }
    }
}

/// What the aggregator said through the API server's proxy.
pub(super) enum Asked {
    Report(Box<ClusterReport>),
    /// It knows no such worker.
    NoSuchNode,
    /// There is no aggregator that answers; the text says why.
    NotThere(String),
}

pub(super) async fn run(options: &Options) -> ExitCode {
    match report(options).await {
        Ok(text) => {
            terminal::print(&text);
            ExitCode::SUCCESS
        }
        Err(failed) => {
            note(&format!("{:#}", failed.error));
            ExitCode::from(failed.exit_status)
        }
    }
}

async fn report(options: &Options) -> Result<String, Failed> {
    let api = options.server.connect().await.map_err(Failed::usage)?;
    let report = fetch(&api, options).await?;
    if let Some(node) = &options.node
        && report.nodes.is_empty()
    {
        return Err(no_such_node(node));
    }
    let table = || text::render(&report, options.node.as_deref(), options.all, Paint::stdout());
    options.output.write(|| &report, table).context("cannot write the report").map_err(Failed::other)
}

async fn fetch(api: &Api, options: &Options) -> Result<ClusterReport, Failed> {
    let why = match patiently(ask(&api.unary, &options.namespace, options.node.as_deref()), api)
        .await
        .map_err(|error| unreachable(api, &error))?
    {
        Asked::Report(report) => return Ok(*report),
        Asked::NoSuchNode => return Err(no_such_node(options.node.as_deref().unwrap_or_default())),
        Asked::NotThere(why) => why,
    };
    note(&format!("{}; this report is made from the Node objects alone", escaped(&why)));
    let listing = from_node_objects(&api.unary, &options.namespace, options.node.as_deref());
    let listed = patiently(tokio::time::timeout(LIST_WITHIN, listing), api).await;
    let report = listed.map_err(|_| {
        Failed::other(anyhow!(
            "API server {}: listing the nodes took longer than {} s",
            api.server,
            LIST_WITHIN.as_secs()
        ))
    })?;
    let report = report.map_err(|error| no_list(api, &error))?;
    if let Some(why) = &report.view.why {
        note(&escaped(why));
    }
    Ok(report)
}

/// Asks the aggregator. An error means that the API server itself cannot be asked.
pub(super) async fn ask(client: &Client, namespace: &str, node: Option<&str>) -> Result<Asked, String> {
    let query = node.map_or(String::new(), |node| format!("?node={node}"));
    let uri = format!("/api/v1/namespaces/{namespace}/services/nodevitals-aggregator:http/proxy/api/v1/report{query}");
    let request = Request::get(uri)
        .header("Accept", "application/json")
        .body(Body::empty())
        .map_err(|error| error.to_string())?;
    let Ok(sent) = tokio::time::timeout(ANSWER_WITHIN, client.send(request)).await else {
        return Ok(Asked::NotThere(format!("the aggregator did not answer within {} s", ANSWER_WITHIN.as_secs())));
    };
    let response = sent.map_err(|error| chain(&error))?;
    let status = response.status().as_u16();
    let body = tokio::time::timeout(LIST_WITHIN, Limited::new(response.into_body(), LONGEST).collect()).await;
    let body = match body {
        Ok(Ok(body)) => body.to_bytes(),
        Ok(Err(error)) => return Ok(Asked::NotThere(format!("the aggregator's answer broke off: {error}"))),
        Err(_) => return Ok(Asked::NotThere("the aggregator's answer does not end".to_owned())),
    };
    judge(status, &body, namespace)
}

/// What an answer means. The API server answers in the aggregator's place when it cannot reach it, or must not.
fn judge(status: u16, body: &[u8], namespace: &str) -> Result<Asked, String> {
    #[derive(serde::Deserialize)]
    struct Said {
        #[serde(default)]
        kind: String,
        #[serde(default)]
        message: String,
    }
    let said =
        serde_json::from_slice::<Said>(body).unwrap_or_else(|_| Said { kind: String::new(), message: String::new() });
    match status {
        200 => Ok(match serde_json::from_slice(body) {
            Ok(report) => Asked::Report(Box::new(report)),
            Err(error) => Asked::NotThere(format!(
                "the aggregator in namespace {namespace} sent no report that can be read: {error}"
            )),
        }),
        404 if said.kind == "Error" => Ok(Asked::NoSuchNode),
        404 => Ok(Asked::NotThere(format!("there is no aggregator in namespace {namespace} (--namespace)"))),
        401 => Err(format!("401: {}; the credentials of the kubeconfig are not valid (any more)", said.message)),
        403 => Ok(Asked::NotThere(format!(
            "no permission to ask the aggregator in namespace {namespace} (services/proxy get; see deploy/rbac-viewer.yaml)"
        ))),
        503 => Ok(Asked::NotThere(format!("no aggregator is ready in namespace {namespace}: {}", said.message))),
        _ => Ok(Asked::NotThere(format!(
            "the aggregator in namespace {namespace} cannot be asked: {status} {}",
            said.message
        ))),
    }
}

/// Says after a second what is being waited for.
async fn patiently<T>(work: impl Future<Output = T>, api: &Api) -> T {
    let mut work = std::pin::pin!(work);
    tokio::select! {
        done = work.as_mut() => return done,
        () = tokio::time::sleep(Duration::from_secs(1)) => {}
    }
    if std::io::stderr().is_terminal() {
        note(&format!("waiting for API server {} ...", api.server));
    }
    work.await
}

fn no_such_node(node: &str) -> Failed {
    Failed::usage(anyhow!("there is no worker named {node}; `nodevitals report --all` lists them"))
}

fn unreachable(api: &Api, why: &str) -> Failed {
    Failed::other(anyhow!(
        "cannot ask API server {}: {}; check the network, and the server and credentials in the kubeconfig (--kubeconfig, --context)",
        api.server,
        escaped(why)
    ))
}

fn no_list(api: &Api, error: &kube::Error) -> Failed {
    match error {
        kube::Error::Api(status) if status.code == 403 => Failed::other(anyhow!(
            "no permission to list nodes: {}; ask for the ClusterRole nodevitals-viewer (deploy/rbac-viewer.yaml)",
            escaped(&status.message)
        )),
        kube::Error::Api(status) => {
            Failed::other(anyhow!("API server {}: cannot list nodes: {}", api.server, escaped(&status.message)))
        }
        other => unreachable(api, &chain(other)),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn means(status: u16, body: &str) -> String {
        match judge(status, body.as_bytes(), "nodevitals") {
            Ok(Asked::Report(report)) => format!("report of {}", report.nodes.len()),
            Ok(Asked::NoSuchNode) => "no such node".to_owned(),
            Ok(Asked::NotThere(why)) => format!("not there: {why}"),
            Err(why) => format!("error: {why}"),
        }
    }

    #[test]
    fn answers_of_the_api_server_are_told_from_those_of_the_aggregator() {
        assert_eq!(
            means(404, r#"{"apiVersion":"nodevitals.dev/v1","kind":"Error","message":"there is no worker"}"#),
            "no such node"
        );
        let answer = means(404, r#"{"kind":"Status","message":"services \"nodevitals-aggregator\" not found"}"#);
        assert_eq!(answer, "not there: there is no aggregator in namespace nodevitals (--namespace)");
        assert!(
            means(503, r#"{"kind":"Status","message":"no endpoints available"}"#)
                .ends_with("nodevitals: no endpoints available")
        );
        assert!(means(403, "{}").starts_with("not there: no permission"));
        assert!(means(401, r#"{"message":"Unauthorized"}"#).starts_with("error: 401: Unauthorized"));
        assert!(means(200, "<html>").starts_with("not there: the aggregator in namespace nodevitals sent no report"));
        assert!(means(502, "<html>").contains("502"));
    }
}
