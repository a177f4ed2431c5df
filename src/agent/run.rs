//! The process: puts together who looks, who judges and who tells.

use std::sync::{Arc, OnceLock};
use std::time::Duration;

use anyhow::Context;
use tokio::net::TcpListener;
use tokio::sync::{Notify, watch};
use tokio::time::timeout;

use super::announce::{Announcer, told_before};
use super::evidence::Keeper;
use super::observe::{self, HostRoot};
use super::publish::{Pace, Writer, state_file};
use super::resume::restore;
use super::watchdog::Heart;
use super::{AgentPages, Judge, Options, Tell, Watched, past, watch_node};
use crate::api::{self, Api};
use crate::clock::now;
use crate::config::{self, Config};
use crate::facts::{Family, Identity};

/// The first verdict waits this long for sources that have not answered yet; theirs is then unknown.
pub(super) const FIRST_LOOK: Duration = Duration::from_millis(600);

/// Runs the agent until it is told to end.
///
/// # Errors
/// When the configuration, the kubeconfig or the listening address cannot be used.
pub async fn run(options: Options) -> anyhow::Result<()> {
    let config = Config::load(options.config.as_deref())?;
    let host = HostRoot::new(&options.host_root);
    if !host.path("/proc/self").exists() {
        anyhow::bail!(
            "--host-root {}: holds no mounted /proc; give the directory where the node's / is mounted",
            options.host_root.display()
        );
    }
    let listener = TcpListener::bind(options.listen).await;
    let listener = listener.with_context(|| format!("--listen {}: cannot listen there", options.listen))?;
    let ways = ways(&options, &host).await?;
    tracing::info!(
        node = options.node_name,
        version = env!("CARGO_PKG_VERSION"),
        server = ways[0].server,
        "agent started"
    );

    let (tell, told) = watch::channel(None);
    let doubt = Arc::new(Notify::new());
    let own = Own::default();
    let pace = pace(Arc::clone(&own), &options.namespace, config.writes);
    let asked = (options.map_interval > 0).then(|| asked(&options, &ways, Arc::clone(&own)));
    let events_by = ways.clone();
    let mut writer = Writer::new(ways, options.node_name.clone(), told, Arc::clone(&doubt), options.heartbeat)
        .among(pace)
        .with_patience(config.limits.status_write_seconds);
    let identity = Identity { node_name: Some(options.node_name.clone()), ..observe::identity(&host) };
    let kept = match &options.state_dir {
        Some(directory) => state_file::load(directory).await,
        None => None,
    };
    let observer = observe::start(&host, asked, past::learned(&host, kept.as_ref(), &identity.boot_id).await);
    let mut judge = Judge::new(identity, &config, now());
    let node = timeout(FIRST_LOOK, writer.read()).await.ok().flatten();
    let announcer = Announcer::new(&options.node_name, config.events, &told_before(node.as_ref(), kept.as_ref()));
    judge.take_past(past::recall(&host, &judge.snapshot().identity, kept.as_ref(), node.as_ref()).await);
    restore(&mut judge, node.as_ref(), kept);
    let taken = writer.writes();
    judge.take_writes(taken.borrow().clone());
    let watched = Arc::new(Watched::new(judge, observer.stats().clone()));
    // Only its start sets it.
    own.set(Arc::clone(&watched)).ok();
    let reporter = announcer.as_ref().map(|announcer| announcer.start(events_by));
    let evidence = options.state_dir.as_ref().map(|directory| Keeper::new(directory, &host));
    let fates = Some((writer.fates(), reporter));
    let pages = AgentPages::new(Arc::clone(&watched), fates, evidence.as_ref().map(Keeper::kept));
    tokio::spawn(crate::http::serve(listener, Arc::new(pages)));
    tokio::spawn(writer.run());
    let mut tell = Tell { told: tell, keep: state_file::start(options.state_dir), doubt, announcer, evidence };
    let heart = Heart::default();
    heart.watch();
    tokio::select! {
        () = watch_node(&watched, observer, Some(taken), &mut tell, &heart) => anyhow::bail!("the sources ended"),
        signal = ended() => {
            tracing::info!(signal, "agent ends");
            Ok(())
        }
    }
}

/// The node, once it is watched.
type Own = Arc<OnceLock<Arc<Watched>>>;

/// How fast this node may write, as one of those that the map shows, or of those that have an agent.
fn pace(own: Own, namespace: &str, writes: config::Writes) -> Pace {
    let nodes = move || own.get().map_or(0, |watched| watched.nodes());
    let set = format!("/apis/apps/v1/namespaces/{namespace}/daemonsets/nodevitals-agent");
    Pace::new(Arc::new(nodes), set, writes.cluster_per_second)
}

/// Whom to ask about the cluster, and what to say of this node with that.
fn asked(options: &Options, ways: &[Api], own: Own) -> observe::Asked {
    observe::Asked {
        ways: ways.to_vec(),
        node: options.node_name.clone(),
        namespace: options.namespace.clone(),
        every: Duration::from_secs(options.map_interval),
        tells: Arc::new(move || own.get().map(|watched| block_sums(watched)).unwrap_or_default()),
    }
}

/// What the aggregator compares with what other nodes say: sums over the blocks that this node routes, by family, MTUs, its CNI
/// configuration, its connections, when its kubelet and runtime were started, and when it booted.
fn block_sums(watched: &Watched) -> String {
    let sums = [(Family::V4, "v4"), (Family::V6, "v6")].into_iter().filter_map(|(family, key)| {
        let sums = watched.read(|judge, _| judge.snapshot().block_sums(family))?;
        Some(format!("&{key}={sums}"))
    });
    let mtus = watched.read(|judge, _| judge.snapshot().mtus()).map(|mtus| format!("&mtu={mtus}"));
    let cni = watched.read(|judge, _| judge.snapshot().cni.hash()).map(|hash| format!("&cni={hash:08x}"));
    let load = watched.read(|judge, _| judge.snapshot().load()).map(|load| format!("&load={load}"));
    let started = watched.read(|judge, _| judge.snapshot().processes.get()?.started());
    let started = started.map(|started| format!("&started={started}"));
    let now = crate::clock::now();
    let booted = now.wall.as_second().saturating_sub_unsigned(now.since_boot.as_secs());
    sums.chain(mtus).chain(cni).chain(load).chain(started).chain([format!("&boot={booted}")]).collect()
}

/// Ways to the API server, best first.
async fn ways(options: &Options, host: &HostRoot) -> anyhow::Result<Vec<Api>> {
    match &options.kubeconfig {
        Some(path) => Ok(vec![api::connect(Some(path), None).await?]),
        None => api::from_pod(observe::kubelet_server(host).as_deref()),
    }
}

/// Waits for SIGTERM or SIGINT.
pub(crate) async fn ended() -> &'static str {
    use tokio::signal::unix::{SignalKind, signal};
    let wait = async |kind, name| match signal(kind) {
        Ok(mut signal) => {
            signal.recv().await;
            name
        }
        Err(error) => {
            tracing::warn!(%error, name, "cannot wait for the signal");
            std::future::pending().await
        }
    };
    tokio::select! {
        name = wait(SignalKind::terminate(), "SIGTERM") => name,
        name = wait(SignalKind::interrupt(), "SIGINT") => name,
    }
}
