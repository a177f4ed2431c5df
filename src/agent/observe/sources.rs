//! The sources: one task for each, what wakes it, and what it needs from the others.

mod containers;
mod control_plane;
mod machine;
mod network;
mod packet_filter;
mod rhythm;

use std::net::IpAddr;
use std::sync::Arc;
use std::time::{Duration, Instant};

use tokio::sync::{Notify, mpsc, watch};
use tokio::task::JoinSet;

use super::blocking::Blocking;
use super::changes::{Commits, History};
use super::cluster::Asked;
use super::cluster_dns::DnsSource;
use super::control_plane::{ControlPlaneSource, Ways};
use super::cri::ImageHost;
use super::events::{self, Event};
use super::legacy::LockUses;
use super::registry::RegistrySource;
use super::tunnels::{Targets, targets};
use super::{HostRoot, Stats, Update};
use crate::facts::{DnsService, Kubelet, Learned};
pub(crate) use control_plane::kubelet_server;
use rhythm::{Outlet, Rhythm, rhythm, through, within};

/// Who did not answer is asked again after this time.
const SILENT_AGAIN: Duration = Duration::from_millis(500);

/// The running sources.
pub(crate) struct Observer {
    updates: mpsc::Receiver<Update>,
    stats: Stats,
    /// Tunnels to probe: the map of the cluster tells, as it comes by.
    tunnels: watch::Sender<Option<Targets>>,
    /// The cluster's DNS, if there is one to ask: the map tells.
    dns: watch::Sender<Option<DnsService>>,
    /// Ways to the control plane: the map and kube-proxy's rules tell.
    ways: watch::Sender<Ways>,
    _tasks: JoinSet<()>,
}

impl Observer {
    /// What a source sees next.
    pub(crate) async fn next(&mut self) -> Option<Update> {
        let update = self.updates.recv().await;
        match &update {
            Some(Update::Cluster(seen)) => {
                let targets = seen.get().and_then(targets);
                self.tunnels.send_if_modified(|old| set(old, targets));
                let dns = seen.get().and_then(crate::facts::ClusterMap::dns);
                self.dns.send_if_modified(|old| set(old, dns));
                self.tell_ways(|ways| seen.get().into_iter().for_each(|map| ways.told_by_cluster(map)));
            }
            Some(Update::Cni(cni)) => self.tell_ways(|ways| ways.told_by_cni(cni)),
            Some(Update::Nftables(seen, _) | Update::Legacy(seen)) => {
                self.tell_ways(|ways| seen.get().into_iter().for_each(|ruleset| ways.told_by_kernel(ruleset)));
            }
            _ => {}
        }
        update
    }

    fn tell_ways(&self, tell: impl FnOnce(&mut Ways)) {
        self.ways.send_if_modified(|ways| {
            let old = ways.clone();
            tell(ways);
            *ways != old
        });
    }

    /// Counters of the sources.
    pub(crate) fn stats(&self) -> &Stats {
        &self.stats
    }
}

/// Facts that one source needs from another.
#[derive(Debug, Clone, Default)]
struct Shared {
    /// When the look began that last listed sandboxes.
    sandboxes_listed: watch::Sender<Option<Instant>>,
    /// Pods with a network of their own, by sandbox: the runtime tells, the routes need them.
    pods: watch::Sender<Vec<(String, Vec<IpAddr>)>>,
    /// CNI directories: the runtime tells.
    cni_dirs: watch::Sender<Option<(String, Vec<String>)>>,
    /// The file system of images: the runtime tells.
    images: watch::Sender<Option<String>>,
    /// What the runtime has in all, and its helpers: the runtime and the process table tell.
    remains: watch::Sender<super::debris::Known>,
    /// The kubelet's files.
    kubelet: watch::Sender<Option<Kubelet>>,
    /// Links whose counters and switches matter: the routes tell.
    links: watch::Sender<Vec<super::traffic::Watched>>,
    /// The registries of images: the runtime tells.
    registries: watch::Sender<Vec<ImageHost>>,
    /// The kubelet's command line: the process table tells.
    arguments: watch::Sender<Option<Vec<String>>>,
    /// Routes of BIRD in the kernel: the routes tell.
    bird_routes: watch::Sender<super::bird::KernelRoutes>,
}

/// What wakes sources before their time.
#[derive(Debug, Clone, Default)]
struct Wake {
    routing: Arc<Notify>,
    nftables: Arc<Notify>,
    legacy: LockUses,
    cni: Arc<Notify>,
    runtime: Arc<Notify>,
    kubelet: Arc<Notify>,
    filesystems: Arc<Notify>,
    memory: Arc<Notify>,
    control_plane: Arc<Notify>,
    traffic: Arc<Notify>,
    store: Arc<Notify>,
    health: Arc<Notify>,
    bgp: Arc<Notify>,
}

/// Starts all sources, which go on from what was learned. Where nobody can be asked, nothing is known of the cluster.
pub(crate) fn start(host: &HostRoot, asked: Option<Asked>, learned: Learned) -> Observer {
    let (sender, updates) = mpsc::channel(32);
    let stats = Stats::default();
    let out = Outlet { updates: sender, stats: stats.clone() };
    let shared = Shared::default();
    let wake = Wake::default();
    let blocking = Blocking::default();
    let mut tasks = JoinSet::new();
    tasks.spawn(network::routing(out.clone(), host.clone(), shared.clone(), wake.clone()));
    let commits = Commits::default();
    tasks.spawn(packet_filter::nftables(out.clone(), wake.clone(), History::new(commits.clone())));
    tasks.spawn(packet_filter::legacy(out.clone(), host.clone(), blocking.clone(), wake.legacy.clone()));
    tasks.spawn(packet_filter::ip_sets(out.clone(), host.clone(), blocking.clone()));
    tasks.spawn(packet_filter::xtables_lock(out.clone(), host.clone(), blocking.clone()));
    tasks.spawn(packet_filter::files(out.clone(), host.clone()));
    tasks.spawn(network::forwarding(out.clone(), host.clone()));
    tasks.spawn(machine::kernel_log(out.clone(), host.clone(), wake.clone()));
    tasks.spawn(machine::memory(out.clone(), host.clone(), blocking.clone(), shared.clone(), wake.clone()));
    for wanted in super::pressure::TRIGGERS {
        tasks.spawn(machine::pressure_events(wanted, wake.clone()));
    }
    tasks.spawn(network::cni(out.clone(), host.clone(), blocking.clone(), shared.clone(), wake.clone()));
    tasks.spawn(containers::runtime(out.clone(), host.clone(), shared.clone(), wake.clone(), learned.latency));
    tasks.spawn(containers::store(out.clone(), host.clone(), blocking.clone(), shared.clone(), wake.clone()));
    tasks.spawn(containers::debris(out.clone(), host.clone(), blocking.clone(), shared.clone(), learned.debris));
    tasks.spawn(machine::filesystems(out.clone(), host.clone(), blocking.clone(), shared.clone(), wake.clone()));
    tasks.spawn(machine::processes(out.clone(), host.clone(), blocking.clone(), shared.clone(), wake.clone()));
    tasks.spawn(network::bgp(out.clone(), host.clone(), blocking.clone(), shared.clone(), wake.clone()));
    tasks.spawn(control_plane::kubelet(out.clone(), host.clone(), blocking.clone(), shared.clone(), wake.clone()));
    tasks.spawn(control_plane::health(out.clone(), shared.clone(), wake.clone()));
    let ways = watch::channel(Ways::of_pod()).0;
    tasks.spawn(containers::registries(
        out.clone(),
        RegistrySource::new(host.clone(), blocking.clone()).knowing(learned.registries),
        shared.clone(),
    ));
    let source = ControlPlaneSource::new(host.clone(), blocking, out.stats.trail.clone());
    tasks.spawn(control_plane::control_plane(out.clone(), source, shared.clone(), wake.clone(), ways.subscribe()));
    tasks.spawn(network::traffic(out.clone(), host.clone(), shared.clone(), wake.clone()));
    let tunnels = watch::channel(None).0;
    tasks.spawn(network::tunnels_between_nodes(out.clone(), tunnels.subscribe()));
    let dns = watch::channel(None).0;
    let source = DnsSource::knowing(learned.dns);
    tasks.spawn(network::cluster_dns(out.clone(), source, shared.clone(), dns.subscribe()));
    tasks.spawn(control_plane::cluster(out, asked, host.clone()));
    tasks.spawn(dispatch(host.clone(), shared, wake, commits));
    Observer { updates, stats, tunnels, dns, ways, _tasks: tasks }
}

/// The kubelet's directory.
fn root_dir(arguments: Option<&[String]>) -> String {
    let told = arguments.and_then(|arguments| super::kubelet::argument(arguments, "root-dir"));
    told.unwrap_or_else(|| "/var/lib/kubelet".to_owned())
}

fn set<T: PartialEq>(old: &mut T, new: T) -> bool {
    let different = *old != new;
    *old = new;
    different
}

/// Turns kernel events into wake-ups.
async fn dispatch(host: HostRoot, shared: Shared, wake: Wake, commits: Commits) {
    let mut dirs = shared.cni_dirs.subscribe();
    loop {
        let told = dirs.borrow_and_update().clone();
        let (conf_dir, bin_dirs) =
            told.unwrap_or_else(|| ("/etc/cni/net.d".to_owned(), vec!["/opt/cni/bin".to_owned()]));
        let cni_dirs = std::iter::once(&conf_dir).chain(&bin_dirs).map(|dir| host.path(dir)).collect();
        let lock = events::Watched { host: host.clone(), uses: wake.legacy.clone() };
        let mut events = events::watch(cni_dirs, lock, commits.clone());
        loop {
            tokio::select! {
                event = events.recv() => match event {
                    Some(event) => woken(&event, &wake),
                    None => break,
                },
                // The runtime reads another directory than was thought: watch that one.
                changed = dirs.changed() => if changed.is_err() { return } else { break },
            }
        }
        // The watch ended by itself: the periods go on, and it is tried again.
        tokio::time::sleep(Duration::from_secs(1)).await;
    }
}

fn woken(event: &Event, wake: &Wake) {
    match event {
        Event::Routing => wake.routing.notify_one(),
        Event::PacketFilter { generation, pid, program } => {
            tracing::debug!(generation, pid, program, "packet filter changed");
            wake.nftables.notify_one();
        }
        Event::Cni => wake.cni.notify_one(),
        Event::Mounts => wake.filesystems.notify_one(),
        Event::Overrun => {
            tracing::info!("kernel events were lost: looking at everything");
            wake.routing.notify_one();
            wake.nftables.notify_one();
        }
    }
}

#[cfg(test)]
mod tests;
