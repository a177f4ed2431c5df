//! `nodevitals gather`: evidence, before anything is repaired.

mod cluster;
mod exec;

use std::fs::File;
use std::io::IsTerminal as _;
use std::os::fd::AsFd as _;
use std::path::{Path, PathBuf};
use std::process::ExitCode;

use anyhow::Context as _;
use jiff::Timestamp;
use serde::Serialize;

use super::failed;
use super::terminal::{self, clean, note};
use crate::agent::{self, Depth, Gatherer, HostRoot, Report};
use crate::api::Server;
use crate::bundle::{Bundle, FACTS, Facts, Item, Manifest, summary};
use crate::config::Config;
use crate::facts::{utc, utc_in_names};

/// A bundle is no larger than that, in bytes, beside what is being written.
const ROOM: u64 = 96 << 20;

/// Options of `nodevitals gather`.
#[derive(Debug, clap::Args)]
pub(super) struct Options {
    /// Take evidence of these workers through the API server: the Node, its events, pods and lease, logs of Calico, Calico's
    /// objects, and, where there is a kubectl, what `nodevitals gather` takes in the agent's pod there
    #[arg(value_name = "NODE", value_parser = crate::aggregator::name)]
    nodes: Vec<String>,

    /// Of the workers with these labels, as kubectl takes them
    #[arg(short = 'l', long, value_name = "LABELS", conflicts_with = "nodes")]
    selector: Option<String>,

    /// Of so many workers in the worst state
    #[arg(long, value_name = "COUNT", conflicts_with = "nodes")]
    worst: Option<usize>,

    /// So many workers at once
    #[arg(long, value_name = "COUNT", default_value_t = 4, value_parser = clap::value_parser!(u8).range(1..=32))]
    parallel: u8,

    /// Ask the API server alone: run nothing in the agents' pods by `kubectl exec`
    #[arg(long)]
    api_only: bool,

    #[command(flatten)]
    server: Server,

    /// Namespace in which NodeVitals runs
    #[arg(long, value_name = "NAMESPACE", default_value = "nodevitals", value_parser = crate::aggregator::name)]
    namespace: String,

    /// Directory for the bundle, or `-` for a tar archive on standard output, where no disk takes it; without it a directory
    /// named by node and time. Given one of before, it goes on where that stopped
    #[arg(short, long, value_name = "DIR")]
    output: Option<PathBuf>,

    /// Print where it is and what is in it as JSON, on standard output
    #[arg(long)]
    json: bool,

    /// Where the node's root directory is
    #[arg(long, default_value = "/", value_name = "DIR")]
    host_root: PathBuf,

    /// Configuration file (YAML) with thresholds; unknown keys are refused
    #[arg(long, value_name = "FILE")]
    config: Option<PathBuf>,
}

pub(super) async fn run(options: &Options) -> ExitCode {
    if options.json && options.output.as_deref() == Some(Path::new("-")) {
        return failed(&anyhow::anyhow!("--json: standard output is taken by --output -; give a directory"));
    }
    let of_cluster = !options.nodes.is_empty() || options.selector.is_some() || options.worst.is_some();
    let gathered = if of_cluster { cluster::gather(options).await } else { local(options).await };
    match gathered {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => failed(&error),
    }
}

/// Of this machine.
async fn local(options: &Options) -> anyhow::Result<()> {
    let config = Config::load(options.config.as_deref())?;
    let host = HostRoot::new(&options.host_root);
    anyhow::ensure!(
        host.path("/proc/self").exists(),
        "--host-root {}: holds no mounted /proc; give the directory where a node's / is mounted",
        options.host_root.display()
    );
    let identity = agent::identity(&host);
    let now = Timestamp::now();
    let new = Manifest::new(&identity.hostname, &identity.boot_id, "asked for on the node", now);
    let (mut bundle, mut manifest, place) = open(options.output.as_deref(), new)?;
    let mut gatherer = Gatherer::new(&host, Depth::All, ROOM);
    let verdict = if let Some(report) = kept(&bundle, &manifest, &config) {
        note(&format!("goes on with {place} of {}", utc(manifest.begun_at)));
        report.verdict
    } else {
        let report = agent::look_once(&host, &config).await;
        progress(&gatherer.facts(&report, &mut bundle, &mut manifest));
        report.verdict
    };
    let written = gatherer.pieces(&mut bundle, &mut manifest, progress).await;
    let summary = summary(&manifest, Some(&verdict));
    let written = written.and_then(|()| bundle.finish(&manifest, &summary));
    let instead = if place == STREAM { "" } else { "; `--output -` needs no disk" };
    written.with_context(|| format!("{place} cannot be written{instead}"))?;
    if options.json {
        print_json(&[Taken { path: place, manifest }])?;
    } else if place == STREAM {
        note(&format!("{} pieces, {} could not be taken", manifest.items.len(), manifest.missing().count()));
    } else {
        terminal::print(&format!("{}\n{place}\n", clean_lines(&summary)));
    }
    Ok(())
}

/// A bundle, for programs.
#[derive(Debug, Serialize)]
struct Taken {
    path: String,
    manifest: Manifest,
}

fn print_json(bundles: &[Taken]) -> anyhow::Result<()> {
    let (version, kind) = (crate::aggregator::report::API_VERSION, "Evidence");
    let all = serde_json::json!({"apiVersion": version, "kind": kind, "bundles": bundles});
    terminal::print(&crate::yaml::write_json(&all)?);
    Ok(())
}

const STREAM: &str = "standard output";

fn open(output: Option<&Path>, new: Manifest) -> anyhow::Result<(Bundle, Manifest, String)> {
    if output == Some(Path::new("-")) {
        let out = std::io::stdout();
        anyhow::ensure!(!out.is_terminal(), "--output -: standard output is a terminal; send it to a file or a pipe");
        let out = out.as_fd().try_clone_to_owned().context("standard output")?;
        return Ok((Bundle::Stream(File::from(out)), new, STREAM.to_owned()));
    }
    let named = format!("nodevitals-{}-{}", new.node, utc_in_names(new.begun_at));
    let path = output.map_or_else(|| PathBuf::from(named), Path::to_owned);
    let (bundle, manifest) = Bundle::folder(&path, new)?;
    Ok((bundle, manifest, path.display().to_string()))
}

/// What the facts that the bundle holds say.
fn kept(bundle: &Bundle, manifest: &Manifest, config: &Config) -> Option<Report> {
    let facts = bundle.facts().filter(|_| manifest.has(FACTS))?;
    let facts: Facts = crate::facts::replay(&serde_json::from_slice(&facts).ok()?).ok()?;
    Some(agent::judge_again(facts, config))
}

fn progress(item: &Item) {
    let Item { name, bytes, millis, failed, .. } = item;
    let what = match failed {
        Some(why) => format!("not taken: {}", clean(why)),
        None => format!("{bytes} bytes"),
    };
    note(&format!("{:<4} {name}: {what} ({millis} ms)", item.key));
}

fn clean_lines(text: &str) -> String {
    text.lines().map(|line| clean(line) + "\n").collect()
}
