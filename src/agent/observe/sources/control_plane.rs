//! The kubelet, the ways to the control plane, and what that knows of the cluster.

use std::time::{Duration, Instant};

use jiff::Timestamp;
use tokio::sync::watch;

use super::{Outlet, Rhythm, Shared, Wake, rhythm, set, within};
use crate::agent::observe::blocking::Blocking;
use crate::agent::observe::cluster::{Answer, Asked, ClusterSource, Failed};
use crate::agent::observe::control_plane::{ControlPlaneSource, Ways};
use crate::agent::observe::health::HealthSource;
use crate::agent::observe::processes::ProcessSource;
use crate::agent::observe::{HostRoot, Update, kubelet as files};
use crate::clock::since_boot;
use crate::facts::{Kubelet, Seen};

const KUBELET: Rhythm = rhythm("kubelet", 30, 5);
const HEALTH: Rhythm = rhythm("health", 5, 5);
// Two rounds of ways at once, when the first one has just broken.
const CONTROL_PLANE: Rhythm = rhythm("control plane", 10, 20);
/// Its rhythm is its own: it depends on the answer.
const CLUSTER: Rhythm = rhythm("cluster", 60, 10);
/// A map that no aggregator has confirmed for so long, while there is an API server, is dropped: nodes have come and gone.
const MAP_LASTS: Duration = Duration::from_secs(3600);

pub(super) async fn kubelet(out: Outlet, host: HostRoot, blocking: Blocking, shared: Shared, wake: Wake) {
    let mut first = true;
    loop {
        let began = Instant::now();
        let (host, arguments) = (host.clone(), shared.arguments.borrow().clone());
        let looked = blocking.run("kubelet files", KUBELET.deadline, move || files::look(&host, arguments.as_deref()));
        let seen: Seen<Kubelet> = looked.await.into();
        let changed = shared.kubelet.send_if_modified(|old| set(old, seen.get().cloned()));
        if changed || std::mem::take(&mut first) {
            wake.filesystems.notify_one();
        }
        if changed {
            wake.runtime.notify_one();
            wake.control_plane.notify_one();
            wake.store.notify_one();
        }
        out.tell(&KUBELET, began, seen.error().is_none(), Update::Kubelet(seen)).await;
        out.rest(&KUBELET, began, Some(&wake.kubelet)).await;
    }
}

pub(super) async fn health(out: Outlet, shared: Shared, wake: Wake) {
    let mut source = HealthSource::default();
    loop {
        let began = Instant::now();
        let port = shared.kubelet.borrow().as_ref().map_or(10248, |kubelet| kubelet.healthz_port);
        let seen = source.look(port).await;
        out.tell(&HEALTH, began, true, Update::Health(seen)).await;
        out.rest(&HEALTH, began, Some(&wake.health)).await;
    }
}

pub(super) async fn control_plane(
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
            _ = out.rest(&CONTROL_PLANE, began, Some(&wake.control_plane)) => {}
            Ok(()) = ways.changed() => {}
        }
    }
}

/// The map of the cluster. The last one stays in force while nobody answers; of its age only the beginning is told, so
/// that it is nothing new at each look.
pub(super) async fn cluster(out: Outlet, asked: Option<Asked>, host: HostRoot) {
    let Some(asked) = asked else {
        out.updates.send(Update::Cluster(Seen::Absent)).await.ok();
        return;
    };
    let mut source = ClusterSource::new(asked, host);
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

/// The control plane's address in the kubelet's kubeconfig, looked up once at start.
pub(crate) fn kubelet_server(host: &HostRoot) -> Option<String> {
    let mut processes = ProcessSource::new(host.clone());
    if let Err(error) = processes.look(Timestamp::now(), since_boot()) {
        tracing::warn!(%error, "cannot look for the kubelet's process");
    }
    let kubelet = files::look(host, processes.kubelet_arguments().as_deref());
    kubelet.ok().and_then(|kubelet| kubelet.server)
}
