//! The rhythm of the sources: which task looks how often, what wakes it, and what it needs from the others.

use std::collections::BTreeMap;
use std::net::IpAddr;
use std::sync::Arc;
use std::time::{Duration, Instant};

use jiff::Timestamp;
use tokio::sync::{Notify, mpsc, watch};
use tokio::task::JoinSet;
use tokio::time::timeout;

use super::blocking::Blocking;
use super::changes::{Commits, History};
use super::cluster::{Answer, Asked, ClusterSource, Failed};
use super::control_plane::{ControlPlaneSource, Ways};
use super::events::{self, Event};
use super::legacy::{LockUses, Pace};
use super::processes::ProcessSource;
use super::registry::RegistrySource;
use super::tunnels::{Targets, TunnelSource, targets};
use super::{HostRoot, Stats, Update, xtables_lock};
use crate::clock::since_boot;
use crate::facts::{
    Bgp, Cni, Family, Kubelet, LookError, Memory, PodScan, Reason, Role, Routing, Runtime, Seen, Strain,
};

/// How often each source looks when nothing wakes it, and how long one look may take.
struct Rhythm {
    name: &'static str,
    every: Duration,
    deadline: Duration,
}

const fn rhythm(name: &'static str, every: u64, deadline: u64) -> Rhythm {
    Rhythm { name, every: Duration::from_secs(every), deadline: Duration::from_secs(deadline) }
}

// Netlink tells of every change, so the periods of these are a backstop.
const ROUTING: Rhythm = rhythm("routing", 30, 5);
/// The longest time between looks at large routing tables.
const ROUTING_SELDOM: Duration = Duration::from_secs(120);
/// How long a change of the routes to pods waits for the runtime's list of pods.
const CONFIRMED: Duration = Duration::from_secs(2);
// Asking for the generation costs microseconds; rules are read only when it has moved.
const NFTABLES: Rhythm = rhythm("nftables", 5, 5);
// Every look copies whole tables: its rhythm is that of `legacy::Pace`. Whoever changes tables takes a lock, whose file is watched.
const LEGACY: Rhythm = rhythm("legacy", 30, 30);
// Nothing tells of changes; a dozen headers cost a quarter of a millisecond.
const IP_SETS: Rhythm = rhythm("ipsets", 15, 2);
// Short holds are normal, so being late by ten seconds does not matter.
const XTABLES_LOCK: Rhythm = rhythm("xtables lock", 10, 2);
const CONNTRACK: Rhythm = rhythm("conntrack", 5, 2);
const FORWARDING: Rhythm = rhythm("forwarding", 10, 2);
const CNI: Rhythm = rhythm("cni", 15, 5);
// A runtime that hangs has to be told within 10 s.
const RUNTIME: Rhythm = rhythm("runtime", 3, 10);
/// A runtime that did not answer is asked again after this time.
const HUNG_AGAIN: Duration = Duration::from_millis(500);
// The process table is walked, and the runtime's objects are counted, as seldom.
const DEBRIS: Rhythm = rhythm("debris", 60, 10);
// Two pages of a database and the times of a directory.
const STORE: Rhythm = rhythm("store", 300, 10);
/// What looks damaged is looked at again soon.
const STORE_AGAIN: Duration = Duration::from_secs(20);
const FILESYSTEMS: Rhythm = rhythm("filesystems", 10, 10);
// Its lines wake it; the period is for the system call, which tells of nothing.
const KERNEL_LOG: Rhythm = rhythm("kernel log", 30, 10);
// The kernel wakes it when tasks wait for memory, where it may.
const MEMORY: Rhythm = rhythm("memory", 10, 2);
const STRAIN: Rhythm = rhythm("strain", 10, 2);
/// While something runs short the pods are looked at this often: with 250 of them that costs some milliseconds.
const PODS: Duration = Duration::from_secs(60);
// Between walks this is one file per known process.
const PROCESSES: Rhythm = rhythm("processes", 2, 5);
const KUBELET: Rhythm = rhythm("kubelet", 30, 5);
const HEALTH: Rhythm = rhythm("health", 5, 5);
const TRAFFIC: Rhythm = rhythm("traffic", 10, 5);
// A BIRD that hangs has to be told within 10 s.
const BGP: Rhythm = rhythm("bgp", 2, 15);
const TUNNELS: Rhythm = rhythm("tunnels", 10, 9);
// Two rounds of ways at once, when the first one has just broken.
const CONTROL_PLANE: Rhythm = rhythm("control plane", 10, 20);
// Its rhythm is its own: it depends on the answer.
const REGISTRIES: Rhythm = rhythm("registries", 60, 30);
/// Its rhythm is its own: it depends on the answer.
const CLUSTER: Rhythm = rhythm("cluster", 60, 10);
/// A map that no aggregator has confirmed for so long, while there is an API server, is dropped: nodes have come and gone.
const MAP_LASTS: Duration = Duration::from_secs(3600);

/// A look that an event wakes waits for this long at most.
const LONGEST_BREATH: Duration = Duration::from_secs(1);

/// The running sources.
pub(crate) struct Observer {
    updates: mpsc::Receiver<Update>,
    stats: Stats,
    /// Tunnels to probe: the map of the cluster tells, as it comes by.
    tunnels: watch::Sender<Option<Targets>>,
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
                self.tell_ways(|ways| seen.get().into_iter().for_each(|map| ways.told_by_cluster(map)));
            }
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
    registries: watch::Sender<Vec<String>>,
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
}

/// One source's way to the outside.
#[derive(Clone)]
struct Outlet {
    updates: mpsc::Sender<Update>,
    stats: Stats,
}

/// Starts all sources. Where nobody can be asked, nothing is known of the cluster.
pub(crate) fn start(host: &HostRoot, asked: Option<Asked>) -> Observer {
    let (sender, updates) = mpsc::channel(32);
    let stats = Stats::default();
    let out = Outlet { updates: sender, stats: stats.clone() };
    let shared = Shared::default();
    let wake = Wake::default();
    let blocking = Blocking::default();
    let mut tasks = JoinSet::new();
    tasks.spawn(routing(out.clone(), shared.clone(), wake.clone()));
    let commits = Commits::default();
    tasks.spawn(nftables(out.clone(), wake.clone(), History::new(commits.clone())));
    tasks.spawn(legacy(out.clone(), host.clone(), blocking.clone(), wake.legacy.clone()));
    tasks.spawn(ip_sets(out.clone()));
    tasks.spawn(xtables_lock(out.clone(), host.clone(), blocking.clone()));
    tasks.spawn(files(out.clone(), host.clone()));
    tasks.spawn(forwarding(out.clone(), host.clone()));
    tasks.spawn(kernel_log(out.clone(), host.clone(), wake.clone()));
    tasks.spawn(memory(out.clone(), host.clone(), blocking.clone(), shared.clone(), wake.clone()));
    tasks.spawn(memory_events(wake.clone()));
    tasks.spawn(cni(out.clone(), host.clone(), blocking.clone(), shared.clone(), wake.clone()));
    tasks.spawn(runtime(out.clone(), host.clone(), shared.clone(), wake.clone()));
    tasks.spawn(store(out.clone(), host.clone(), blocking.clone(), shared.clone(), wake.clone()));
    tasks.spawn(debris(out.clone(), host.clone(), blocking.clone(), shared.clone()));
    tasks.spawn(filesystems(out.clone(), host.clone(), blocking.clone(), shared.clone(), wake.clone()));
    tasks.spawn(processes(out.clone(), host.clone(), blocking.clone(), shared.clone(), wake.clone()));
    tasks.spawn(bgp(out.clone(), host.clone(), blocking.clone(), shared.clone()));
    tasks.spawn(kubelet(out.clone(), host.clone(), blocking.clone(), shared.clone(), wake.clone()));
    tasks.spawn(health(out.clone(), shared.clone(), wake.clone()));
    let ways = watch::channel(Ways::of_pod()).0;
    tasks.spawn(registries(out.clone(), RegistrySource::new(host.clone(), blocking.clone()), shared.clone()));
    let source = ControlPlaneSource::new(host.clone(), blocking);
    tasks.spawn(control_plane(out.clone(), source, shared.clone(), wake.clone(), ways.subscribe()));
    tasks.spawn(traffic(out.clone(), host.clone(), shared.clone(), wake.clone()));
    let tunnels = watch::channel(None).0;
    tasks.spawn(tunnels_between_nodes(out.clone(), tunnels.subscribe()));
    tasks.spawn(cluster(out, asked));
    tasks.spawn(dispatch(host.clone(), shared, wake, commits));
    Observer { updates, stats, tunnels, ways, _tasks: tasks }
}

impl Outlet {
    /// Sends what one look saw, and counts the look.
    async fn tell(&self, rhythm: &Rhythm, began: Instant, success: bool, update: Update) {
        self.stats.count(rhythm.name, began.elapsed(), success);
        // Nobody listens any more only while the process ends.
        self.updates.send(update).await.ok();
    }
}

/// Waits for the next look: the period, spread by up to a tenth so that nodes do not march in step, or an event. An event
/// waits for a breath first, longer after a look that took long, so that a storm of events does not become one of looks.
async fn rest(rhythm: &Rhythm, began: Instant, wake: Option<&Notify>) {
    if wake.is_some() {
        let breath = (began.elapsed() * 20).clamp(Duration::from_millis(50), LONGEST_BREATH);
        tokio::time::sleep(breath).await;
    }
    let tenths = (std::process::id() + u32::from(rhythm.name.as_bytes()[0])) % 100;
    let period = rhythm.every.mul_f64(1.0 - f64::from(tenths) / 1000.0);
    match wake {
        Some(wake) => _ = timeout(period, wake.notified()).await,
        None => tokio::time::sleep(period).await,
    }
}

/// One look with its deadline.
async fn within<T>(rhythm: &Rhythm, look: impl Future<Output = Result<T, LookError>>) -> Result<T, LookError> {
    match timeout(rhythm.deadline, look).await {
        Ok(result) => result,
        Err(_) => Err(LookError::timed_out(rhythm.name, rhythm.deadline.as_secs_f32())),
    }
}

async fn routing(out: Outlet, shared: Shared, wake: Wake) {
    let mut source = None;
    let mut answers = BTreeMap::new();
    loop {
        let began = Instant::now();
        let pods = shared.pods.borrow().clone();
        let seen = within(&ROUTING, async {
            if source.is_none() {
                source = Some(super::routing::RoutingSource::open()?);
            }
            let source = source.as_ref().expect("just opened");
            source.look(&pods).await
        })
        .await;
        if seen.is_err() {
            source = None;
        }
        if let Ok(routing) = &seen {
            let moved = answers.iter().any(|(pod, old)| routing.pods.get(pod).is_some_and(|now| now != old));
            if moved && !confirmed(&shared, &wake, began, &pods).await {
                continue;
            }
            answers.clone_from(&routing.pods);
        }
        shared.bird_routes.send_replace(seen.as_ref().ok().map(bird_routes));
        if let Ok(routing) = &seen
            && shared.links.send_if_modified(|old| set(old, super::traffic::watched(routing)))
        {
            wake.traffic.notify_one();
        }
        out.tell(&ROUTING, began, seen.is_ok(), Update::Routing(seen.into())).await;
        // The backstop costs a ten-thousandth of the time at most, also with tens of thousands of routes.
        let every = (began.elapsed() * 10_000).clamp(ROUTING.every, ROUTING_SELDOM);
        rest(&Rhythm { every, ..ROUTING }, began, Some(&wake.routing)).await;
    }
}

/// Whether the pods are still those that were looked for, as the runtime says after the look at the routes: a pod that is
/// being deleted loses its route too, and by then its sandbox is no longer ready. A runtime that does not answer deletes
/// no pods.
async fn confirmed(shared: &Shared, wake: &Wake, looked: Instant, pods: &[(String, Vec<IpAddr>)]) -> bool {
    let mut listed = shared.sandboxes_listed.subscribe();
    wake.runtime.notify_one();
    timeout(CONFIRMED, listed.wait_for(|began| began.is_some_and(|began| began > looked))).await.ok();
    *shared.pods.borrow() == pods
}

/// How many routes of BIRD there are of each family.
fn bird_routes(routing: &Routing) -> [u32; 2] {
    const BIRD: u8 = 12;
    [Family::V4, Family::V6].map(|family| {
        let counts = routing.by_protocol.iter().filter(|(of, protocol, _)| (*of, *protocol) == (family, BIRD));
        counts.map(|(_, _, count)| count).sum()
    })
}

async fn bgp(out: Outlet, host: HostRoot, blocking: Blocking, shared: Shared) {
    let mut source = super::bird::BirdSource::new(host, blocking);
    loop {
        let began = Instant::now();
        let kernel = *shared.bird_routes.borrow();
        let seen: Seen<Bgp> = within(&BGP, source.look(kernel)).await.into();
        let mut errors = seen.get().into_iter().flat_map(|bgp| &bgp.daemons).filter_map(|daemon| daemon.bird.error());
        let hangs = errors.any(|error| error.reason == Reason::TimedOut);
        out.tell(&BGP, began, seen.error().is_none() && !hangs, Update::Bgp(seen)).await;
        if hangs {
            tokio::time::sleep(HUNG_AGAIN).await;
        } else {
            rest(&BGP, began, None).await;
        }
    }
}

/// Probes while there are tunnels, else waits for some.
async fn tunnels_between_nodes(out: Outlet, mut targets: watch::Receiver<Option<Targets>>) {
    let mut source = TunnelSource::default();
    loop {
        let began = Instant::now();
        let now = targets.borrow_and_update().clone();
        let Some(now) = now else {
            out.updates.send(Update::Tunnels(Seen::Absent)).await.ok();
            if targets.changed().await.is_err() {
                return;
            }
            continue;
        };
        let seen = within(&TUNNELS, async { Ok(source.look(&now, Timestamp::now()).await) }).await;
        out.tell(&TUNNELS, began, seen.is_ok(), Update::Tunnels(seen.into())).await;
        rest(&TUNNELS, began, None).await;
    }
}

async fn nftables(out: Outlet, wake: Wake, mut history: History) {
    let mut source = None;
    loop {
        let began = Instant::now();
        let seen = within(&NFTABLES, async {
            if source.is_none() {
                source = Some(super::nftables::NftablesSource::open()?);
            }
            source.as_mut().expect("just opened").look().await
        })
        .await;
        if seen.is_err() {
            source = None;
        }
        if let Ok(ruleset) = &seen {
            history.take(ruleset, Timestamp::now());
        }
        out.tell(&NFTABLES, began, seen.is_ok(), Update::Nftables(seen.into(), history.changes())).await;
        rest(&NFTABLES, began, Some(&wake.nftables)).await;
    }
}

async fn legacy(out: Outlet, host: HostRoot, blocking: Blocking, uses: LockUses) {
    let mut source = super::legacy::LegacySource::new(host, blocking);
    let (mut pace, mut large) = (Pace::new(Instant::now()), true);
    loop {
        let began = Instant::now();
        pace.used(uses.take());
        let seen: Seen<_> = within(&LEGACY, source.look(large)).await.into();
        pace.looked((began, Instant::now()), large, source.spent(), source.costs());
        out.tell(&LEGACY, began, seen.error().is_none(), Update::Legacy(seen)).await;
        large = loop {
            let (next, large) = pace.next();
            tokio::select! {
                () = tokio::time::sleep_until(next.into()) => break large,
                () = uses.told() => pace.used(uses.take()),
            }
        };
    }
}

async fn ip_sets(out: Outlet) {
    let mut source = None;
    loop {
        let began = Instant::now();
        let seen = within(&IP_SETS, async {
            if source.is_none() {
                source = Some(super::ipset::IpSetSource::open()?);
            }
            source.as_mut().expect("just opened").look().await
        })
        .await;
        if seen.is_err() {
            source = None;
        }
        let seen: Seen<_> = seen.into();
        out.tell(&IP_SETS, began, seen.error().is_none(), Update::IpSets(seen)).await;
        rest(&IP_SETS, began, None).await;
    }
}

async fn xtables_lock(out: Outlet, host: HostRoot, blocking: Blocking) {
    let mut source = None;
    let new = || xtables_lock::XtablesLockSource::new(host.clone());
    loop {
        let began = Instant::now();
        let looked = blocking
            .lend("file locks", XTABLES_LOCK.deadline, &mut source, new, |source| source.look(Timestamp::now()));
        let seen: Seen<_> = looked.await.into();
        out.tell(&XTABLES_LOCK, began, seen.error().is_none(), Update::XtablesLock(seen)).await;
        rest(&XTABLES_LOCK, began, None).await;
    }
}

/// Connection tracking: a few files of `/proc`.
async fn files(out: Outlet, host: HostRoot) {
    let mut source = super::net_sysctl::ConntrackSource::new(host);
    loop {
        let began = Instant::now();
        let seen: Seen<_> = source.look().into();
        out.tell(&CONNTRACK, began, seen.error().is_none(), Update::Conntrack(seen)).await;
        rest(&CONNTRACK, began, None).await;
    }
}

async fn forwarding(out: Outlet, host: HostRoot) {
    loop {
        let began = Instant::now();
        let seen = super::net_sysctl::forwarding(&host);
        let success = seen.ipv4.error().is_none() && seen.ipv6.error().is_none();
        out.tell(&FORWARDING, began, success, Update::Forwarding(seen)).await;
        rest(&FORWARDING, began, None).await;
    }
}

/// Memory and what else runs short, and who uses it while it does.
async fn memory(out: Outlet, host: HostRoot, blocking: Blocking, shared: Shared, wake: Wake) {
    let mut source = super::memory::MemorySource::new(host.clone());
    let mut strains = super::strain::StrainSource::new(host.clone());
    let mut pods: Option<(Instant, Seen<PodScan>)> = None;
    loop {
        let began = Instant::now();
        let root = shared.kubelet.borrow().as_ref().map_or("/".to_owned(), |it| it.capacity.cgroup_root.clone());
        let seen: Seen<_> = source.look(Timestamp::now(), &root).into();
        let mut strain = strains.look(Timestamp::now(), &root);
        if !short(seen.get(), &strain) {
            pods = None;
        } else if pods.as_ref().is_none_or(|(at, _)| at.elapsed() >= PODS) {
            let (host, root) = (host.clone(), root.clone());
            let scan =
                blocking.run("cgroups of pods", STRAIN.deadline, move || Ok(super::pod_scan::look(&host, &root)));
            let scan = scan.await.map_or_else(Seen::Unreadable, |scan| scan.map_or(Seen::Absent, Seen::Yes));
            pods = Some((Instant::now(), scan));
        }
        strain.pods = pods.as_ref().map_or(Seen::Absent, |(_, scan)| scan.clone());
        let success = strain.tasks.error().is_none() && strain.files.error().is_none();
        out.tell(&STRAIN, began, success, Update::Strain(strain)).await;
        out.tell(&MEMORY, began, seen.error().is_none(), Update::Memory(seen)).await;
        rest(&MEMORY, began, Some(&wake.memory)).await;
    }
}

/// Whether it is worth knowing what the pods use.
fn short(memory: Option<&Memory>, strain: &Strain) -> bool {
    let memory = memory.is_some_and(|memory| {
        memory.kubelet_available < memory.total / 5
            || memory.pods.is_some_and(|pods| pods.working_set / 4 > pods.limit / 5)
            || memory.stall.is_some_and(|stall| stall.full_avg10 >= 5.0)
            || memory.kills.get().is_some_and(|kills| !kills.is_empty())
    });
    let many = |count: u64, limit: u64| count / 3 > limit / 4;
    let tasks = strain.tasks.get().is_some_and(|tasks| {
        many(tasks.count, tasks.limit) || tasks.pods.is_some_and(|(count, limit)| many(count, limit))
    });
    memory || tasks
}

/// Looks at memory as soon as tasks wait for it. Where the kernel does not tell, the rhythm has to do.
async fn memory_events(wake: Wake) {
    let trigger = match super::pressure::MemoryTrigger::open() {
        Ok(trigger) => trigger,
        Err(error) => {
            tracing::debug!(%error, "the kernel does not tell when tasks wait for memory");
            return;
        }
    };
    while trigger.fired().await.is_ok() {
        wake.memory.notify_one();
    }
}

async fn kernel_log(out: Outlet, host: HostRoot, wake: Wake) {
    let mut source = super::kernel_log::KernelLogSource::new(host);
    let mut before = Seen::Absent;
    loop {
        let began = Instant::now();
        let seen: Seen<_> = within(&KERNEL_LOG, source.look()).await.into();
        if set(&mut before, seen.clone()) {
            // What made a file system read-only shows in its mount's options too.
            wake.filesystems.notify_one();
        }
        out.tell(&KERNEL_LOG, began, seen.error().is_none(), Update::KernelLog(seen)).await;
        source.wait().await;
    }
}

async fn cni(out: Outlet, host: HostRoot, blocking: Blocking, shared: Shared, wake: Wake) {
    loop {
        let began = Instant::now();
        let (host, told) = (host.clone(), shared.cni_dirs.borrow().clone());
        let looked = blocking.run("CNI files", CNI.deadline, move || Ok(super::cni::look(&host, told.as_ref()))).await;
        let seen = looked.unwrap_or_else(|error| blind_cni(&shared, error));
        out.tell(&CNI, began, seen.files.error().is_none(), Update::Cni(seen)).await;
        rest(&CNI, began, Some(&wake.cni)).await;
    }
}

/// The CNI facts when the look itself hung.
fn blind_cni(shared: &Shared, error: LookError) -> Cni {
    let (conf_dir, bin_dirs) = shared.cni_dirs.borrow().clone().unwrap_or_default();
    Cni::of(conf_dir, bin_dirs, "nobody".into(), Seen::Unreadable(error))
}

async fn runtime(out: Outlet, host: HostRoot, shared: Shared, wake: Wake) {
    let mut source = super::cri::CriSource::new(host);
    loop {
        let began = Instant::now();
        let kubelet = shared.kubelet.borrow().clone();
        let endpoint = kubelet.as_ref().and_then(|kubelet| kubelet.runtime_endpoint.as_deref());
        let seen = match timeout(RUNTIME.deadline, source.look(endpoint, kubelet.is_some())).await {
            Ok(seen) => seen,
            Err(_) => hung_runtime(),
        };
        share_runtime(&seen, &shared, &wake);
        shared.registries.send_if_modified(|old| set(old, source.image_hosts().to_vec()));
        shared.remains.send_modify(|known| known.inventory = source.inventory());
        if seen.sandboxes.get().is_some() {
            shared.sandboxes_listed.send_replace(Some(began));
        }
        let hangs = [seen.status.error(), seen.sandboxes.error()]
            .into_iter()
            .flatten()
            .any(|error| error.reason == Reason::TimedOut);
        let success = seen.status.error().is_none() && seen.socket.error().is_none();
        out.tell(&RUNTIME, began, success, Update::Runtime(seen)).await;
        if hangs {
            // Whether it was only slow shows soon: three looks in a row have to agree.
            tokio::time::sleep(HUNG_AGAIN).await;
        } else {
            rest(&RUNTIME, began, Some(&wake.runtime)).await;
        }
    }
}

fn hung_runtime() -> Runtime {
    let error = LookError::timed_out("CRI", RUNTIME.deadline.as_secs_f32());
    Runtime::silent(Seen::Unreadable(error.clone()), error)
}

/// Tells the routes of new pods, and the CNI files of the runtime's directories.
fn share_runtime(seen: &Runtime, shared: &Shared, wake: &Wake) {
    if let Some(sandboxes) = seen.sandboxes.get() {
        let own =
            sandboxes.iter().filter(|sandbox| sandbox.host_network == Some(false) && !sandbox.addresses.is_empty());
        let pods: Vec<_> = own.map(|sandbox| (sandbox.id.clone(), sandbox.addresses.clone())).collect();
        if shared.pods.send_if_modified(|old| set(old, pods)) {
            wake.routing.notify_one();
        }
    }
    if let Some(dirs) = seen.status.get().and_then(|status| status.cni_dirs.clone())
        && shared.cni_dirs.send_if_modified(|old| set(old, Some(dirs)))
    {
        wake.cni.notify_one();
    }
    if let Some(path) = seen.image_filesystems.get().and_then(|paths| paths.first().cloned())
        && shared.images.send_if_modified(|old| set(old, Some(path)))
    {
        wake.store.notify_one();
        wake.filesystems.notify_one();
    }
}

fn set<T: PartialEq>(old: &mut T, new: T) -> bool {
    let different = *old != new;
    *old = new;
    different
}

/// What containers left behind, where the runtime tells what it has.
async fn debris(out: Outlet, host: HostRoot, blocking: Blocking, shared: Shared) {
    let mut source = None;
    let new = || super::debris::DebrisSource::new(host.clone());
    // The runtime and the process table are looked at first.
    out.updates.send(Update::Debris(Seen::Absent)).await.ok();
    loop {
        rest(&DEBRIS, Instant::now(), None).await;
        let began = Instant::now();
        let known = shared.remains.borrow().clone();
        let Some(inventory) = known.inventory else {
            let error =
                || LookError::new("debris of containers", Reason::Failed, "the runtime does not tell what it has");
            let seen = if shared.kubelet.borrow().is_some() { Seen::Unreadable(error()) } else { Seen::Absent };
            out.tell(&DEBRIS, began, false, Update::Debris(seen)).await;
            continue;
        };
        let pods = format!("{}/pods", root_dir(shared.arguments.borrow().as_deref()));
        let looked = blocking.lend("debris of containers", DEBRIS.deadline, &mut source, new, move |source| {
            source.look(since_boot(), &inventory, &known.attendants, &pods)
        });
        let seen = looked.await.map_or_else(Seen::Unreadable, |found| found.map_or(Seen::Absent, Seen::Yes));
        out.tell(&DEBRIS, began, seen.error().is_none(), Update::Debris(seen)).await;
    }
}

/// containerd's store, wherever it says that it is.
async fn store(out: Outlet, host: HostRoot, blocking: Blocking, shared: Shared, wake: Wake) {
    let mut source = None;
    let new = || super::store::StoreSource::new(host.clone());
    loop {
        let began = Instant::now();
        let images = shared.images.borrow().clone();
        // `ROOT/io.containerd.snapshotter.v1.overlayfs`.
        let root = images.as_deref().and_then(|path| path.split("/io.containerd.").next());
        let root = root.unwrap_or("/var/lib/containerd").to_owned();
        let looked =
            blocking.lend("store of containerd", STORE.deadline, &mut source, new, move |source| source.look(&root));
        let seen: Seen<Vec<_>> = looked.await.into();
        let again = seen.get().is_some_and(|faults| !faults.is_empty());
        out.tell(&STORE, began, seen.error().is_none(), Update::Store(seen)).await;
        let every = if again { STORE_AGAIN } else { STORE.every };
        rest(&Rhythm { every, ..STORE }, began, Some(&wake.store)).await;
    }
}

/// The kubelet's directory.
fn root_dir(arguments: Option<&[String]>) -> String {
    let told = arguments.and_then(|arguments| super::kubelet::argument(arguments, "root-dir"));
    told.unwrap_or_else(|| "/var/lib/kubelet".to_owned())
}

async fn filesystems(out: Outlet, host: HostRoot, blocking: Blocking, shared: Shared, wake: Wake) {
    let mut source = super::filesystems::FilesystemSource::new(host, blocking);
    loop {
        let began = Instant::now();
        let images = shared.images.borrow().clone();
        let roles = roles(shared.kubelet.borrow().as_ref(), shared.arguments.borrow().as_deref(), images);
        let seen = within(&FILESYSTEMS, source.look(Timestamp::now(), &roles)).await;
        out.tell(&FILESYSTEMS, began, seen.is_ok(), Update::Filesystems(seen.into())).await;
        rest(&FILESYSTEMS, began, Some(&wake.filesystems)).await;
    }
}

/// What this machine keeps where; `images` as the runtime says. On a machine that is no worker only `/` and `/var/log` matter.
fn roles(kubelet: Option<&Kubelet>, arguments: Option<&[String]>, images: Option<String>) -> Vec<(Role, String)> {
    let mut roles = vec![(Role::Root, "/".to_owned()), (Role::Logs, "/var/log".to_owned())];
    if kubelet.is_some() {
        roles.push((Role::Nodefs, root_dir(arguments)));
        let usual = ["/var/lib/containerd", "/var/lib/containers/storage", "/var/lib/rancher/k3s/agent/containerd"];
        let stores = images.into_iter().chain(usual.map(str::to_owned));
        roles.extend(stores.map(|store| (Role::Imagefs, store)));
    }
    roles
}

async fn processes(out: Outlet, host: HostRoot, blocking: Blocking, shared: Shared, wake: Wake) {
    let mut source = None;
    let new = || ProcessSource::new(host.clone());
    let mut running = Vec::new();
    loop {
        let began = Instant::now();
        // The walk over /proc runs beside the loop: a machine with many processes must not delay the others.
        let looked = blocking.lend("process table", PROCESSES.deadline, &mut source, new, |source| {
            source.look(Timestamp::now(), since_boot())
        });
        let seen = looked.await;
        let arguments = source.as_ref().and_then(ProcessSource::kubelet_arguments);
        if shared.arguments.send_if_modified(|old| set(old, arguments)) {
            wake.kubelet.notify_one();
        }
        let attendants = source.as_ref().map(ProcessSource::attendants).unwrap_or_default();
        shared.remains.send_modify(|known| known.attendants = attendants);
        if let Ok(processes) = &seen {
            let now: Vec<_> = processes.found.iter().map(|process| (process.program, process.pid)).collect();
            if set(&mut running, now) {
                // Somebody started or ended: the runtime may be one of them, or the owner of a health port.
                wake.runtime.notify_one();
                wake.health.notify_one();
            }
        }
        out.tell(&PROCESSES, began, seen.is_ok(), Update::Processes(seen.into())).await;
        rest(&PROCESSES, began, None).await;
    }
}

async fn kubelet(out: Outlet, host: HostRoot, blocking: Blocking, shared: Shared, wake: Wake) {
    loop {
        let began = Instant::now();
        let (host, arguments) = (host.clone(), shared.arguments.borrow().clone());
        let looked =
            blocking.run("kubelet files", KUBELET.deadline, move || super::kubelet::look(&host, arguments.as_deref()));
        let seen: Seen<Kubelet> = looked.await.into();
        if shared.kubelet.send_if_modified(|old| set(old, seen.get().cloned())) {
            wake.filesystems.notify_one();
            wake.runtime.notify_one();
            wake.control_plane.notify_one();
        }
        out.tell(&KUBELET, began, seen.error().is_none(), Update::Kubelet(seen)).await;
        rest(&KUBELET, began, Some(&wake.kubelet)).await;
    }
}

async fn health(out: Outlet, shared: Shared, wake: Wake) {
    loop {
        let began = Instant::now();
        let port = shared.kubelet.borrow().as_ref().map_or(10248, |kubelet| kubelet.healthz_port);
        let seen = super::health::look(port).await;
        out.tell(&HEALTH, began, true, Update::Health(seen)).await;
        rest(&HEALTH, began, Some(&wake.health)).await;
    }
}

async fn control_plane(
    out: Outlet,
    mut source: ControlPlaneSource,
    shared: Shared,
    wake: Wake,
    mut ways: watch::Receiver<Ways>,
) {
    loop {
        let began = Instant::now();
        let (kubelet, now) = (shared.kubelet.borrow().clone(), ways.borrow_and_update().clone());
        let seen: Seen<_> = within(&CONTROL_PLANE, source.look(kubelet.as_ref(), &now)).await.into();
        out.tell(&CONTROL_PLANE, began, seen.error().is_none(), Update::ControlPlane(seen)).await;
        tokio::select! {
            () = rest(&CONTROL_PLANE, began, Some(&wake.control_plane)) => {}
            Ok(()) = ways.changed() => {}
        }
    }
}

/// Asks registries while images are known to come from some, else waits for that.
async fn registries(out: Outlet, mut source: RegistrySource, shared: Shared) {
    let mut names = shared.registries.subscribe();
    loop {
        let began = Instant::now();
        let now = names.borrow_and_update().clone();
        if now.is_empty() {
            out.updates.send(Update::Registries(Seen::Absent)).await.ok();
            if names.changed().await.is_err() {
                return;
            }
            continue;
        }
        let seen = within(&REGISTRIES, source.look(&now)).await;
        let every = seen.as_ref().map_or(REGISTRIES.every, |seen| RegistrySource::wait(seen));
        out.tell(&REGISTRIES, began, seen.is_ok(), Update::Registries(seen.into())).await;
        let rhythm = Rhythm { every, ..REGISTRIES };
        tokio::select! {
            () = rest(&rhythm, began, None) => {}
            Ok(()) = names.changed() => {}
        }
    }
}

/// Sockets, neighbour tables, and the links that the routes tell.
async fn traffic(out: Outlet, host: HostRoot, shared: Shared, wake: Wake) {
    let mut source = super::traffic::TrafficSource::new(host.clone());
    loop {
        let began = Instant::now();
        let links = shared.links.borrow().clone();
        let looked = timeout(TRAFFIC.deadline, source.look(&links)).await;
        let success = looked.as_ref().is_ok_and(|seen| seen.sockets.error().is_none() && seen.links.error().is_none());
        let seen = looked.unwrap_or_else(|_| {
            source = super::traffic::TrafficSource::new(host.clone());
            crate::facts::Traffic::not_yet()
        });
        out.tell(&TRAFFIC, began, success, Update::Traffic(seen)).await;
        rest(&TRAFFIC, began, Some(&wake.traffic)).await;
    }
}

/// The map of the cluster. The last one stays in force while nobody answers; of its age only the beginning is told, so
/// that it is nothing new at each look.
async fn cluster(out: Outlet, asked: Option<Asked>) {
    let Some(asked) = asked else {
        out.updates.send(Update::Cluster(Seen::Absent)).await.ok();
        return;
    };
    let mut source = ClusterSource::new(asked);
    let (mut known, mut told) = (false, None);
    let mut confirmed = (Timestamp::now(), since_boot());
    loop {
        let began = Instant::now();
        let answer = source.look().await;
        let answered = answer.is_ok();
        out.stats.count(CLUSTER.name, began.elapsed(), answered);
        if answered {
            confirmed = (Timestamp::now(), since_boot());
        }
        let news = match answer {
            Ok(Answer::New(map)) => {
                known = true;
                Some(Update::Cluster(Seen::Yes(*map)))
            }
            Ok(Answer::Same) => None,
            // An API server that does not answer lets no node come or go either.
            Err(Failed::Unreachable(_)) if known => None,
            Err(_) if known && since_boot().saturating_sub(confirmed.1) < MAP_LASTS => None,
            Err(_) => {
                known = false;
                source.forget();
                Some(Update::Cluster(Seen::Absent))
            }
        };
        let unconfirmed = (known && !answered).then_some(confirmed.0);
        let change = set(&mut told, unconfirmed).then_some(Update::ClusterUnconfirmed(unconfirmed));
        for update in news.into_iter().chain(change) {
            out.updates.send(update).await.ok();
        }
        tokio::time::sleep(source.wait(answered)).await;
    }
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

/// The control plane's address in the kubelet's kubeconfig, looked up once at start.
pub(crate) fn kubelet_server(host: &HostRoot) -> Option<String> {
    let mut processes = ProcessSource::new(host.clone());
    if let Err(error) = processes.look(Timestamp::now(), since_boot()) {
        tracing::warn!(%error, "cannot look for the kubelet's process");
    }
    let kubelet = super::kubelet::look(host, processes.kubelet_arguments().as_deref());
    kubelet.ok().and_then(|kubelet| kubelet.server)
}

#[cfg(test)]
mod tests;
