//! The runtime, what it keeps and leaves behind, and where its images come from.

use std::sync::Arc;
use std::time::{Duration, Instant};

use tokio::time::timeout;

use super::{Outlet, Rhythm, SILENT_AGAIN, Shared, Wake, rhythm, root_dir, set, within};
use crate::agent::observe::blocking::Blocking;
use crate::agent::observe::cri::CriSource;
use crate::agent::observe::debris::DebrisSource;
use crate::agent::observe::node_files::{NodeFiles, Places};
use crate::agent::observe::registry::RegistrySource;
use crate::agent::observe::store::StoreSource;
use crate::agent::observe::{HostRoot, Update};
use crate::clock::since_boot;
use crate::facts::{Debris, LookError, Memo, Reason, Runtime, Seen};

// A runtime that hangs has to be told within 10 s.
const RUNTIME: Rhythm = rhythm("runtime", 3, 10);
/// One that is started anew, as for an update, answers again within this time.
const RESTARTS_WITHIN: Duration = Duration::from_secs(30);
// The process table is walked, and the runtime's objects are counted, as seldom.
const DEBRIS: Rhythm = rhythm("debris", 60, 10);
// Two pages of a database and the times of a directory.
const STORE: Rhythm = rhythm("store", 300, 10);
/// What a call that hangs is about.
const NODE_FILES: &str = "files of the node";
/// What looks damaged is looked at again soon.
const STORE_AGAIN: Duration = Duration::from_secs(20);
// Its rhythm is its own: it depends on the answer.
const REGISTRIES: Rhythm = rhythm("registries", 60, 30);

pub(super) async fn runtime(out: Outlet, host: HostRoot, shared: Shared, wake: Wake, usual: Memo) {
    let mut source = CriSource::new(host).knowing(usual).waking(Arc::clone(&wake.runtime));
    let mut answered = None;
    loop {
        let began = Instant::now();
        let kubelet = shared.kubelet.borrow().clone();
        let endpoint = kubelet.as_ref().and_then(|kubelet| kubelet.runtime_endpoint.as_deref());
        let manifests = kubelet.as_ref().and_then(|kubelet| kubelet.manifests.get());
        let pods = manifests.into_iter().flatten().filter_map(|manifest| manifest.pod.as_ref().ok());
        source.watch_static_pods(pods, kubelet.as_ref().and_then(|kubelet| kubelet.node_name.as_deref()));
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
        answered = if success { Some(began) } else { answered };
        let just_lost = !success && answered.is_some_and(|at| at.elapsed() < RESTARTS_WITHIN);
        out.tell(&RUNTIME, began, success, Update::Runtime(seen)).await;
        if hangs || just_lost {
            // Whether it was only slow, or is started anew, shows soon: looks in a row have to agree.
            tokio::time::sleep(SILENT_AGAIN).await;
        } else {
            out.rest(&RUNTIME, began, Some(&wake.runtime)).await;
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

/// The source of debris with what it told last: where it hangs, another one goes on from that.
struct DebrisLooks {
    host: HostRoot,
    source: Option<DebrisSource>,
    memo: Memo,
}

impl DebrisLooks {
    fn new(host: HostRoot, memo: Memo) -> Self {
        let source = DebrisSource::new(host.clone()).knowing(memo.clone());
        DebrisLooks { host, source: Some(source), memo }
    }

    async fn look(
        &mut self,
        blocking: &Blocking,
        deadline: Duration,
        look: impl FnOnce(&mut DebrisSource) -> Result<Option<Debris>, LookError> + Send + 'static,
    ) -> Seen<Debris> {
        let new = || DebrisSource::new(self.host.clone()).knowing(self.memo.clone());
        let looked = blocking.lend("debris of containers", deadline, &mut self.source, new, look).await;
        let seen = looked.map_or_else(Seen::Unreadable, |found| found.map_or(Seen::Absent, Seen::Yes));
        if let Some(debris) = seen.get() {
            self.memo.clone_from(&debris.memo);
        }
        seen
    }
}

/// What containers left behind, where the runtime tells what it has.
pub(super) async fn debris(out: Outlet, host: HostRoot, blocking: Blocking, shared: Shared, memo: Memo) {
    let mut looks = DebrisLooks::new(host, memo);
    // The runtime and the process table are looked at first.
    let some = looks.source.as_ref().is_some_and(DebrisSource::told_of_some);
    let first = if some { Seen::not_yet("debris of containers") } else { Seen::Absent };
    out.updates.send(Update::Debris(first)).await.ok();
    loop {
        out.rest(&DEBRIS, Instant::now(), None).await;
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
        let root = shared.kubelet.borrow().as_ref().map_or("/".to_owned(), |it| it.capacity.cgroup_root.clone());
        let looked = looks.look(&blocking, DEBRIS.deadline, move |source| {
            source.look(since_boot(), &inventory, &known.attendants, (&pods, &root))
        });
        let seen = looked.await;
        out.tell(&DEBRIS, began, seen.error().is_none(), Update::Debris(seen)).await;
    }
}

/// What a crash damages: the runtime's store, wherever it says that it is, and files of the kubelet and the CNI.
pub(super) async fn store(out: Outlet, host: HostRoot, blocking: Blocking, shared: Shared, wake: Wake) {
    let (mut source, mut files) = (None, None);
    let new = || StoreSource::new(host.clone());
    loop {
        let began = Instant::now();
        let images = shared.images.borrow().clone();
        // `ROOT/io.containerd.snapshotter.v1.overlayfs`; of CRI-O `ROOT/overlay-images`.
        let root = images.as_deref().and_then(|path| path.split("/io.containerd.").next()?.split("/overlay-").next());
        let root = root.unwrap_or("/var/lib/containerd").to_owned();
        let looked =
            blocking.lend("store of containerd", STORE.deadline, &mut source, new, move |source| source.look(&root));
        let seen: Seen<Vec<_>> = looked.await.into();
        let damaged = |seen: &Seen<Vec<_>>| seen.get().is_some_and(|faults| !faults.is_empty());
        let mut again = damaged(&seen);
        out.tell(&STORE, began, seen.error().is_none(), Update::Store(seen)).await;
        let (began, cni) = (Instant::now(), shared.cni_dirs.borrow().as_ref().map(|(directory, _)| directory.clone()));
        let root_dir = root_dir(shared.arguments.borrow().as_deref());
        let places = shared.kubelet.borrow().as_ref().map(|kubelet| Places::of(kubelet, root_dir, cni));
        let seen = match places {
            None => Seen::Absent,
            Some(places) => {
                let new = || NodeFiles::new(host.clone());
                blocking.lend(NODE_FILES, STORE.deadline, &mut files, new, move |it| it.look(&places)).await.into()
            }
        };
        // Nor may it be unknown for long.
        again |= damaged(&seen) || seen.error().is_some();
        out.tell(&STORE, began, seen.error().is_none(), Update::Files(seen)).await;
        let every = if again { STORE_AGAIN } else { STORE.every };
        out.rest(&Rhythm { every, ..STORE }, began, Some(&wake.store)).await;
    }
}

/// Asks registries while images are known to come from some, else waits for that.
pub(super) async fn registries(out: Outlet, mut source: RegistrySource, shared: Shared) {
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
        let seen = within(&REGISTRIES, source.look(&now, since_boot())).await;
        let every = seen.as_ref().map_or(REGISTRIES.every, |seen| RegistrySource::wait(seen));
        out.tell(&REGISTRIES, began, seen.is_ok(), Update::Registries(seen.into())).await;
        let rhythm = Rhythm { every, ..REGISTRIES };
        tokio::select! {
            _ = out.rest(&rhythm, began, None) => {}
            Ok(()) = names.changed() => {}
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::sync::mpsc::channel;

    #[tokio::test]
    async fn a_source_of_debris_that_hangs_leaves_what_it_told_to_the_next_one() {
        let dir = tempfile::tempdir().expect("a temporary directory");
        let (blocking, patience) = (Blocking::default(), Duration::from_secs(5));
        let mut looks = DebrisLooks::new(HostRoot::new(dir.path()), Memo::default());
        let memo = Memo([("told".to_owned(), vec![0, 0, 3, 0, 0, 0])].into());
        let told = Debris { memo, ..Debris::default() };
        assert!(looks.look(&blocking, patience, move |_| Ok(Some(told))).await.get().is_some());
        let (release, wait) = channel::<()>();
        let hangs = move |_: &mut DebrisSource| {
            wait.recv().ok();
            Ok(None)
        };
        let hung = looks.look(&blocking, Duration::from_millis(20), hangs).await;
        assert_eq!(hung.error().map(|error| error.reason), Some(Reason::TimedOut));
        release.send(()).expect("the thread waits");
        let goes_on = loop {
            let (tell, told) = channel();
            let look = move |source: &mut DebrisSource| {
                tell.send(source.told_of_some()).ok();
                Ok(None)
            };
            // Until the thread is gone nobody looks.
            if looks.look(&blocking, patience, look).await.error().is_none() {
                break told.recv();
            }
            tokio::task::yield_now().await;
        };
        assert_eq!(goes_on, Ok(true));
    }
}
