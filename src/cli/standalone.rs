//! `nodevitals standalone`: agent and aggregator in one process, with a store in memory in place of the API server.

use std::net::SocketAddr;
use std::path::PathBuf;
use std::sync::Arc;

use anyhow::Context;
use tokio::net::TcpListener;
use tokio::sync::{Notify, watch};

use super::terminal::Paint;
use crate::agent::{self, AgentPages, Heart, HostRoot, Tell, Watched};
use crate::aggregator::{AggregatorPages, Store};
use crate::config::Config;
use crate::http::{Live, Page, Pages};
use crate::verdict::Told;

/// Of the eight connections, what those may hold who are told of changes.
const LISTENERS: usize = 4;

/// Options of `nodevitals standalone`.
#[derive(Debug, clap::Args)]
pub(super) struct Options {
    /// Address on which the page (/), the report (/api/v1/report), the findings (/findings) and the metrics (/metrics)
    /// are served
    #[arg(long, default_value = "127.0.0.1:10580", value_name = "ADDRESS:PORT")]
    listen: SocketAddr,

    /// Where the node's root directory is
    #[arg(long, default_value = "/", value_name = "DIR")]
    host_root: PathBuf,

    /// Configuration file (YAML) with thresholds; unknown keys are refused
    #[arg(long, value_name = "FILE")]
    config: Option<PathBuf>,
}

/// Both processes' pages: the aggregator's page and report, the agent's findings and metrics.
struct Both {
    agent: AgentPages,
    aggregator: AggregatorPages,
}

impl Pages for Both {
    fn get(&self, path: &str, query: &str) -> Page {
        match path {
            "/metrics" | "/findings" | "/probes" | "/livez" | "/readyz" => self.agent.get(path, query),
            _ => self.aggregator.get(path, query),
        }
    }

    fn live(&self, path: &str) -> Option<Live> {
        self.aggregator.live(path)
    }
}

pub(super) async fn run(options: &Options) -> anyhow::Result<()> {
    let config = Config::load(options.config.as_deref())?;
    let host = HostRoot::new(&options.host_root);
    let listener = TcpListener::bind(options.listen).await;
    let listener = listener.with_context(|| format!("--listen {}: cannot listen there", options.listen))?;
    let (watched, observer) = agent::start(&host, &config);
    let store = Arc::new(Store::standalone().with_limits(&config));
    let pages = Both {
        agent: AgentPages::new(Arc::clone(&watched), None, None),
        aggregator: AggregatorPages::new(Arc::clone(&store), crate::clock::now, LISTENERS),
    };
    let (tell, told) = watch::channel(None);
    let mut tell = Tell {
        told: tell,
        keep: watch::channel(None).0,
        doubt: Arc::new(Notify::new()),
        announcer: None,
        evidence: None,
    };
    let heart = Heart::default();
    let address = listener.local_addr().unwrap_or(options.listen);
    tokio::select! {
        never = crate::http::serve(listener, Arc::new(pages)) => match never {},
        () = agent::watch_node(&watched, observer, None, &mut tell, &heart) => anyhow::bail!("the sources ended"),
        () = hand_on(&watched, told, &store, address) => Ok(()),
        signal = agent::ended() => {
            tracing::info!(signal, "ends");
            Ok(())
        }
    }
}

/// Hands what the agent tells to the aggregator, and prints the first report.
async fn hand_on(watched: &Watched, mut told: watch::Receiver<Option<Told>>, store: &Store, address: SocketAddr) {
    let mut printed = false;
    while told.changed().await.is_ok() {
        let Some(told) = told.borrow_and_update().clone() else { continue };
        let host = watched.read(|judge, _| judge.snapshot().identity.hostname.clone());
        store.tell(&host, &told);
        if !printed {
            printed = true;
            let report = watched.read(|judge, verdict| verdict.map(|verdict| judge.report(verdict.clone())));
            let text = report.map(|report| super::check::table(&report, Paint::stdout())).unwrap_or_default();
            super::terminal::print(&format!(
                "{text}\nhttp://{address}/   /api/v1/report  /findings  /metrics   (ends with Ctrl-C)\n"
            ));
        }
    }
}
