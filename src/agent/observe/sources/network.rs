//! Routes, links, BGP, tunnels and what containers' networks are made by.

use std::collections::BTreeMap;
use std::net::IpAddr;
use std::time::{Duration, Instant};

use jiff::Timestamp;
use tokio::sync::watch;
use tokio::time::timeout;

use super::{Outlet, Rhythm, SILENT_AGAIN, Shared, Wake, rhythm, set, through, within};
use crate::agent::observe::blocking::Blocking;
use crate::agent::observe::cluster_dns::DnsSource;
use crate::agent::observe::tunnels::{Targets, TunnelSource};
use crate::agent::observe::{HostRoot, Update, bird, cni as files, net_sysctl, routing as routes, traffic as counters};
use crate::facts::{Bgp, ClusterDns, Cni, DnsService, Family, LookError, Reason, Routing, Seen, Traffic};

// Netlink tells of every change, so the periods of these are a backstop.
const ROUTING: Rhythm = rhythm("routing", 30, 5);
/// The longest time between looks at large routing tables.
const ROUTING_SELDOM: Duration = Duration::from_secs(120);
/// How long a change of the routes to pods waits for the runtime's list of pods.
const CONFIRMED: Duration = Duration::from_secs(2);
const FORWARDING: Rhythm = rhythm("forwarding", 10, 2);
const CNI: Rhythm = rhythm("cni", 15, 5);
const TRAFFIC: Rhythm = rhythm("traffic", 10, 5);
// A BIRD that hangs has to be told within 10 s.
const BGP: Rhythm = rhythm("bgp", 2, 15);
/// Where there is none, whoever starts one wakes it.
const NO_BGP: Duration = Duration::from_secs(10);
const TUNNELS: Rhythm = rhythm("tunnels", 10, 9);
// Two tries of two steps each.
const DNS: Rhythm = rhythm("cluster DNS", 60, 8);
/// How long the first question waits for the runtime's list of pods.
const LISTED: Duration = Duration::from_secs(5);
/// An answer that is missed is asked for again soon.
const DNS_AGAIN: Duration = Duration::from_secs(15);

pub(super) async fn routing(out: Outlet, host: HostRoot, shared: Shared, wake: Wake) {
    let mut source = None;
    let mut answers = BTreeMap::new();
    loop {
        let began = Instant::now();
        let pods = shared.pods.borrow().clone();
        let look = async |source: &mut routes::RoutingSource| source.look(&pods).await;
        let seen = through(&ROUTING, &mut source, || routes::RoutingSource::open(host.clone()), look).await;
        if let Ok(routing) = &seen {
            let moved = answers.iter().any(|(pod, old)| routing.pods.get(pod).is_some_and(|now| now != old));
            if moved && !confirmed(&shared, &wake, began, &pods).await {
                continue;
            }
            answers.clone_from(&routing.pods);
        }
        shared.bird_routes.send_replace(seen.as_ref().ok().map(bird_routes));
        if let Ok(routing) = &seen
            && shared.links.send_if_modified(|old| set(old, counters::watched(routing)))
        {
            wake.traffic.notify_one();
        }
        out.tell(&ROUTING, began, seen.is_ok(), Update::Routing(seen.into())).await;
        // The backstop costs a ten-thousandth of the time at most, also with tens of thousands of routes.
        let every = (began.elapsed() * 10_000).clamp(ROUTING.every, ROUTING_SELDOM);
        out.rest(&Rhythm { every, ..ROUTING }, began, Some(&wake.routing)).await;
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

pub(super) async fn bgp(out: Outlet, host: HostRoot, blocking: Blocking, shared: Shared, wake: Wake) {
    let mut source = bird::BirdSource::new(host, blocking);
    loop {
        let began = Instant::now();
        let kernel = *shared.bird_routes.borrow();
        let seen: Seen<Bgp> = within(&BGP, source.look(kernel)).await.into();
        let mut errors = seen.get().into_iter().flat_map(|bgp| &bgp.daemons).filter_map(|daemon| daemon.bird.error());
        let hangs = errors.any(|error| error.reason == Reason::TimedOut);
        let every = if seen == Seen::Absent { NO_BGP } else { BGP.every };
        out.tell(&BGP, began, seen.error().is_none() && !hangs, Update::Bgp(seen)).await;
        if hangs {
            tokio::time::sleep(SILENT_AGAIN).await;
        } else {
            out.rest(&Rhythm { every, ..BGP }, began, Some(&wake.bgp)).await;
        }
    }
}

/// What the map tells to look at. While there is nothing that is told, and waited for; none when nobody tells any more.
async fn awaited<T: Clone>(
    told: &mut watch::Receiver<Option<T>>,
    out: &Outlet,
    absent: impl Fn() -> Update,
) -> Option<T> {
    loop {
        let now = told.borrow_and_update().clone();
        if now.is_some() {
            return now;
        }
        out.updates.send(absent()).await.ok();
        told.changed().await.ok()?;
    }
}

/// Probes while there are tunnels, else waits for some.
pub(super) async fn tunnels_between_nodes(out: Outlet, mut targets: watch::Receiver<Option<Targets>>) {
    let mut source = TunnelSource::default();
    loop {
        let Some(now) = awaited(&mut targets, &out, || Update::Tunnels(Seen::Absent)).await else { return };
        let began = Instant::now();
        let seen = within(&TUNNELS, async { Ok(source.look(&now, Timestamp::now()).await) }).await;
        out.tell(&TUNNELS, began, seen.is_ok(), Update::Tunnels(seen.into())).await;
        out.rest(&TUNNELS, began, None).await;
    }
}

/// Asks the cluster's DNS while the map says where it is, else waits for that.
pub(super) async fn cluster_dns(
    out: Outlet,
    mut source: DnsSource,
    shared: Shared,
    mut service: watch::Receiver<Option<DnsService>>,
) {
    loop {
        let Some(now) = awaited(&mut service, &out, || Update::ClusterDns(Seen::Absent)).await else { return };
        let began = Instant::now();
        // Whose answer it would be nobody knows before.
        let mut listed = shared.sandboxes_listed.subscribe();
        timeout(LISTED, listed.wait_for(Option::is_some)).await.ok();
        let domain = shared.kubelet.borrow().as_ref().and_then(|kubelet| kubelet.cluster_domain.clone());
        let own_pod = has_own_pod(&now, &shared);
        let seen = within(&DNS, source.look(&now, own_pod, domain.as_deref())).await;
        let missed = seen.as_ref().is_ok_and(|seen: &ClusterDns| seen.missed().next().is_some() || seen.fails());
        out.tell(&DNS, began, seen.is_ok(), Update::ClusterDns(seen.into())).await;
        let rhythm = Rhythm { every: if missed { DNS_AGAIN } else { DNS.every }, ..DNS };
        tokio::select! {
            _ = out.rest(&rhythm, began, None) => {}
            Ok(()) = service.changed() => {}
        }
    }
}

/// Whether a Pod behind it is on this node, by the map or the runtime; none before the runtime has told its pods.
fn has_own_pod(service: &DnsService, shared: &Shared) -> Option<bool> {
    let pods = shared.pods.borrow();
    let own = |address: IpAddr| pods.iter().any(|(_, addresses)| addresses.contains(&address));
    let listed = shared.sandboxes_listed.borrow().is_some();
    if service.own_pod || service.pods.iter().any(|pod| own(pod.ip())) {
        return Some(true);
    }
    listed.then_some(false)
}

pub(super) async fn forwarding(out: Outlet, host: HostRoot) {
    loop {
        let began = Instant::now();
        let seen = net_sysctl::forwarding(&host);
        let success = seen.ipv4.error().is_none() && seen.ipv6.error().is_none();
        out.tell(&FORWARDING, began, success, Update::Forwarding(seen)).await;
        out.rest(&FORWARDING, began, None).await;
    }
}

pub(super) async fn cni(out: Outlet, host: HostRoot, blocking: Blocking, shared: Shared, wake: Wake) {
    loop {
        let began = Instant::now();
        let (host, told) = (host.clone(), shared.cni_dirs.borrow().clone());
        let looked = blocking.run("CNI files", CNI.deadline, move || Ok(files::look(&host, told.as_ref()))).await;
        let seen = looked.unwrap_or_else(|error| blind_cni(&shared, error));
        out.tell(&CNI, began, seen.files.error().is_none(), Update::Cni(seen)).await;
        out.rest(&CNI, began, Some(&wake.cni)).await;
    }
}

/// The CNI facts when the look itself hung.
fn blind_cni(shared: &Shared, error: LookError) -> Cni {
    let (conf_dir, bin_dirs) = shared.cni_dirs.borrow().clone().unwrap_or_default();
    Cni::of(conf_dir, bin_dirs, "nobody".into(), Seen::Unreadable(error))
}

/// Sockets, neighbour tables, and the links that the routes tell.
pub(super) async fn traffic(out: Outlet, host: HostRoot, shared: Shared, wake: Wake) {
    let mut source = counters::TrafficSource::new(host.clone());
    loop {
        let began = Instant::now();
        let links = shared.links.borrow().clone();
        let looked = timeout(TRAFFIC.deadline, source.look(&links)).await;
        let success = looked.as_ref().is_ok_and(|seen| seen.sockets.error().is_none() && seen.links.error().is_none());
        let seen = looked.unwrap_or_else(|_| {
            source = counters::TrafficSource::new(host.clone());
            Traffic::not_yet()
        });
        out.tell(&TRAFFIC, began, success, Update::Traffic(seen)).await;
        out.rest(&TRAFFIC, began, Some(&wake.traffic)).await;
    }
}
