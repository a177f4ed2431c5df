//! All nodes: watches what the agents have written, counts it, and says it where no agent can any more.
//!
//! ```text
//! API server ─▶ watch ─▶ store ─▶ report (pure) ─▶ pages
//!                          └────▶ stale (pure) ──▶ write (leader only)
//! ```

mod agreement;
mod backends;
mod cluster;
mod contact;
mod drift;
mod hosted;
mod ipam;
mod journal;
mod lease;
mod lenient;
mod load;
mod looked;
mod map;
mod master;
mod memory;
mod model;
mod mtus;
mod object;
mod offline;
mod page;
mod pages;
mod password;
mod pods;
pub mod report;
mod restarts;
mod row;
mod scrapes;
mod sight;
mod small;
mod stale;
mod store;
mod surroundings;
mod tell;
#[cfg(test)]
pub(crate) mod testing;
mod traits;
mod warned;
mod watch;
mod webhooks;
mod workloads;
mod write;

use std::net::SocketAddr;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use anyhow::Context;
use jiff::Timestamp;
use tokio::net::TcpListener;
use tokio::signal::unix::{SignalKind, signal};

use crate::api::{Api, Server};
use crate::clock::{now, since_boot};
use crate::config::Config;
use lease::{Elector, Failure};
use surroundings::What;
use warned::{News, Warned};
use watch::Kind;

#[cfg(any(test, fuzzing))]
pub(crate) use agreement::fuzz as fuzz_blocks;
#[cfg(any(test, fuzzing))]
pub(crate) use model::fuzz;
#[cfg(test)]
pub(crate) use offline::report_once;
pub(crate) use offline::{Peer, from_node_objects, look};
pub(crate) use pages::AggregatorPages;
pub(crate) use store::Store;
#[cfg(any(test, fuzzing))]
pub(crate) use surroundings::fuzz as fuzz_surroundings;

/// Connections that the pages are served on at once.
const CONNECTIONS: usize = 64;
/// Of these, what those may hold who are told of changes.
const LISTENERS: usize = 32;
/// `app.kubernetes.io/name=nodevitals,app.kubernetes.io/component=agent`, escaped.
const AGENTS: &str = "labelSelector=app.kubernetes.io%2Fname%3Dnodevitals%2Capp.kubernetes.io%2Fcomponent%3Dagent";

/// Options of `nodevitals aggregator`.
#[derive(Debug, Clone, clap::Args)]
pub struct Options {
    /// Address on which the report and the metrics are served
    #[arg(long, value_name = "ADDRESS:PORT", default_value = "127.0.0.1:8080")]
    listen: SocketAddr,

    /// Namespace of the agents' Pods and of the Lease by which one of several aggregators leads
    #[arg(long, value_name = "NAMESPACE", env = "POD_NAMESPACE", default_value = "nodevitals", value_parser = name)]
    namespace: String,

    /// Name under which this process holds the Lease, different for each aggregator; without it, the host's name and the
    /// process's number
    #[arg(long, value_name = "NAME", env = "POD_NAME")]
    identity: Option<String>,

    #[command(flatten)]
    server: Server,

    /// Port of the agents' pages on the nodes: who routes other pod blocks than most of the mesh is asked there which
    #[arg(long, value_name = "PORT", default_value_t = crate::agent::PORT)]
    agent_port: u16,

    /// So long a node has to route other pod blocks than most of its mesh before it is told, in seconds; BGP needs up to
    /// four minutes to agree on a block that comes or goes
    #[arg(long, value_name = "SECONDS", default_value_t = agreement::HOLD.as_secs())]
    agreement_hold: u64,

    /// Configuration file (YAML), the same as the agents'; unknown keys are refused
    #[arg(long, value_name = "FILE")]
    config: Option<PathBuf>,

    /// Only watch and answer: never lead, and so never write anything to the API server
    #[arg(long)]
    read_only: bool,
}

/// Runs the aggregator until it is told to end (SIGTERM or SIGINT).
pub async fn run(options: Options) -> anyhow::Result<()> {
    let config = Config::load(options.config.as_deref())?;
    let api = options.server.connect().await?;
    let listener = TcpListener::bind(options.listen)
        .await
        .with_context(|| format!("cannot listen on {} (--listen)", options.listen))?;
    tracing::info!(listen = %options.listen, namespace = options.namespace, "aggregator runs");
    let mut terminate = signal(SignalKind::terminate()).context("cannot wait for SIGTERM")?;
    let mut interrupt = signal(SignalKind::interrupt()).context("cannot wait for SIGINT")?;
    let store = Arc::new(Store::watched().with_limits(&config));
    store.lock().cluster.agreement.hold = Duration::from_secs(options.agreement_hold);
    let identity = options.identity.clone().unwrap_or_else(own_identity);
    let mut elector = Elector::new(&options.namespace, &identity);
    let pages = Arc::new(AggregatorPages::new(Arc::clone(&store), now, LISTENERS));
    tokio::select! {
        never = crate::http::serve_at_most(CONNECTIONS, listener, pages) => match never {},
        never = watch_nodes(&api, &store) => match never {},
        never = watch_agents(&api, &store, &options.namespace) => match never {},
        never = write::run(Arc::clone(&store), api.unary.clone(), options.namespace.clone(), now) => match never {},
        never = watch_surroundings(&api, &store) => match never {},
        never = tell::run(&store, &api, &options.namespace, &identity, now) => match never {},
        never = password::run(&api.unary, &store) => match never {},
        never = memory::run(&api.unary, &store, &options.namespace) => match never {},
        never = Box::pin(ipam::run(&api.unary, &store)) => match never {},
        never = Box::pin(hosted::run(&api.unary, &store, &options.namespace)) => match never {},
        never = master::run(&api.unary, &store) => match never {},
        never = contact::run(&api.unary, &store) => match never {},
        never = backends::run(&api.unary, &store) => match never {},
        never = Box::pin(agreement::run(&store, options.agent_port)) => match never {},
        never = Box::pin(mtus::run(&store, options.agent_port)) => match never {},
        never = Box::pin(stale::signs::run(&store, options.agent_port)) => match never {},
        never = elect(&api, &store, &mut elector, options.read_only) => match never {},
        _ = terminate.recv() => {}
        _ = interrupt.recv() => {}
    }
    tracing::info!("told to end");
    elector.release(&api.unary, since_boot).await;
    Ok(())
}

async fn watch_nodes(api: &Api, store: &Store) -> std::convert::Infallible {
    watch::follow(&api.watch, &nodes(), &mut |change| store.node_changed(change, Timestamp::now())).await
}

async fn watch_agents(api: &Api, store: &Store, namespace: &str) -> std::convert::Infallible {
    watch::follow(&api.watch, &agents(namespace), &mut |change| store.agent_changed(change, Timestamp::now())).await
}

async fn watch_surroundings(api: &Api, store: &Store) -> std::convert::Infallible {
    let all = What::ALL.map(|what| async move {
        watch::follow(&api.watch, &what.kind(), &mut |change| store.around_changed(what, change, Timestamp::now()))
            .await
    });
    futures::future::select_all(all.map(Box::pin)).await.0
}

fn nodes() -> Kind {
    Kind { name: "nodes", paths: vec!["/api/v1/nodes".to_owned()], selector: "", optional: false, metadata_only: false }
}

fn agents(namespace: &str) -> Kind {
    let paths = vec![format!("/api/v1/namespaces/{namespace}/pods")];
    Kind { name: "pods", paths, selector: AGENTS, optional: false, metadata_only: false }
}

async fn elect(api: &Api, store: &Store, elector: &mut Elector, read_only: bool) -> std::convert::Infallible {
    if read_only {
        return std::future::pending().await;
    }
    let mut ticks = tokio::time::interval(Duration::from_secs(1));
    ticks.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
    let mut next = Duration::ZERO;
    let mut warned = Warned::default();
    loop {
        ticks.tick().await;
        if since_boot() >= next {
            next = since_boot() + lease::EVERY;
            let (unanswered, refused) = match elector.round(&api.unary, since_boot).await {
                Ok(()) => (None, None),
                Err(Failure::Unreachable(why)) => (Some(why), None),
                Err(Failure::Refused(why)) => (None, Some(why)),
            };
            let answered = unanswered.is_none();
            store.api_answered(unanswered, Timestamp::now());
            // Who gets no answer does not know whether it would be refused.
            let news = if answered { warned.step(refused.clone(), since_boot()) } else { None };
            match news {
                Some(News::Fails) => {
                    tracing::warn!(why = refused, "cannot use the Lease {}: this process will not lead", lease::NAME);
                }
                Some(News::Over) => tracing::info!("can use the Lease {} again", lease::NAME),
                None => {}
            }
        }
        store.lock().leads = elector.leads(since_boot());
    }
}

fn own_identity() -> String {
    let host =
        nix::unistd::gethostname().ok().and_then(|name| name.into_string().ok()).unwrap_or_else(|| "host".to_owned());
    format!("{host}-{}", std::process::id())
}

/// A name that can stand in a path of the API server.
pub(crate) fn name(text: &str) -> Result<String, String> {
    let plain = |byte: u8| byte.is_ascii_lowercase() || byte.is_ascii_digit() || b"-.".contains(&byte);
    if !text.is_empty()
        && text.len() <= 253
        && text.bytes().all(plain)
        && text.bytes().next().is_some_and(|byte| byte != b'-' && byte != b'.')
    {
        Ok(text.to_owned())
    } else {
        Err("a Kubernetes name has lower-case letters, digits, '-' and '.', and at most 253 of them".to_owned())
    }
}
