//! Memory, disks, processes and the kernel's log.

use std::time::{Duration, Instant};

use jiff::Timestamp;
use tokio::time::timeout;

use super::{Outlet, Rhythm, Shared, Wake, rhythm, root_dir, set, within};
use crate::agent::observe::blocking::Blocking;
use crate::agent::observe::filesystems::FilesystemSource;
use crate::agent::observe::kernel_log::KernelLogSource;
use crate::agent::observe::memory::MemorySource;
use crate::agent::observe::pod_scan::Wanted;
use crate::agent::observe::pressure::Trigger;
use crate::agent::observe::processes::ProcessSource;
use crate::agent::observe::strain::{self, StrainSource};
use crate::agent::observe::{HostRoot, Update, pod_scan, watchers};
use crate::clock::since_boot;
use crate::facts::{InotifyRoom, Kubelet, LookError, Memory, PodScan, Role, Seen, Strain};

const FILESYSTEMS: Rhythm = rhythm("filesystems", 10, 10);
/// The first look at file systems waits so long for the first one at the kubelet's files.
const FIRST: Duration = Duration::from_secs(1);
// Its lines wake it; the period is for the system call, which tells of nothing.
const KERNEL_LOG: Rhythm = rhythm("kernel log", 30, 10);
// The kernel wakes it when tasks wait for memory or disks, where it may.
const MEMORY: Rhythm = rhythm("memory", 10, 2);
const STRAIN: Rhythm = rhythm("strain", 10, 2);
/// While something runs short the pods are looked at this often: with 250 of them that costs some milliseconds.
const PODS: Duration = Duration::from_secs(60);
/// The longest look at them: a walk and two measures of half a second each, where disks or CPUs are busy.
const SCAN: Duration = Duration::from_secs(6);
// Between walks this is one file per known process.
const PROCESSES: Rhythm = rhythm("processes", 2, 5);

/// Memory and what else runs short, and who uses it while it does.
pub(super) async fn memory(out: Outlet, host: HostRoot, blocking: Blocking, shared: Shared, wake: Wake) {
    let mut source = MemorySource::new(host.clone());
    let mut strains = StrainSource::new(host.clone());
    let mut pods: Option<(Instant, Seen<PodScan>)> = None;
    let mut asked = Wanted::default();
    let (mut tables, mut users) = (Seldom::default(), Seldom::default());
    loop {
        let began = Instant::now();
        let root = shared.kubelet.borrow().as_ref().map_or("/".to_owned(), |it| it.capacity.cgroup_root.clone());
        let seen: Seen<_> = source.look(Timestamp::now(), &root).into();
        let mut strain = strains.look(Timestamp::now(), &root);
        let runs_short = short(seen.get(), &strain);
        // Before the pods are looked at, which may take seconds.
        out.tell(&MEMORY, began, seen.error().is_none(), Update::Memory(seen)).await;
        let wanted = Wanted { disks: waits_for_disks(&strain), cpus: strain.short_of_cpus().is_some() };
        if !runs_short {
            pods = None;
        } else if pods.as_ref().is_none_or(|(at, _)| at.elapsed() >= PODS) || asks_more(wanted, asked) {
            let (host, root) = (host.clone(), root.clone());
            asked = wanted;
            let scan = blocking.run("cgroups of pods", SCAN, move || Ok(pod_scan::look(&host, &root, wanted)));
            let scan = scan.await.map_or_else(Seen::Unreadable, |scan| scan.map_or(Seen::Absent, Seen::Yes));
            pods = Some((Instant::now(), scan));
        }
        let (few, root) = (strain.files.get().is_some_and(|files| many(files.allocated, files.limit)), host.clone());
        let look = blocking.run("tables of open files", STRAIN.deadline, move || strain::file_tables(&root));
        strain.file_tables = tables.look(few, look).await.unwrap_or_default();
        let (few, root) = (strain.inotify.get().is_some_and(InotifyRoom::is_short), host.clone());
        let look = blocking.run("users of inotify", STRAIN.deadline, move || watchers::look(&root));
        strain.inotify_users = users.look(few, look).await;
        strain.pods = pods.as_ref().map_or(Seen::Absent, |(_, scan)| scan.clone());
        let success = strain.tasks.error().is_none() && strain.files.error().is_none();
        out.tell(&STRAIN, began, success, Update::Strain(strain)).await;
        out.rest(&MEMORY, began, Some(&wake.memory)).await;
    }
}

/// What is looked at only while it is wanted, and then as seldom as the pods.
#[derive(Debug)]
struct Seldom<T>(Option<(Instant, Option<T>)>);

impl<T> Default for Seldom<T> {
    fn default() -> Self {
        Seldom(None)
    }
}

impl<T: Clone> Seldom<T> {
    /// What was seen last; a look that is not awaited does nothing.
    async fn look(&mut self, wanted: bool, look: impl Future<Output = Result<T, LookError>>) -> Option<T> {
        if !wanted {
            self.0 = None;
        } else if self.0.as_ref().is_none_or(|(at, _)| at.elapsed() >= PODS) {
            self.0 = Some((Instant::now(), look.await.ok()));
        }
        self.0.as_ref().and_then(|(_, seen)| seen.clone())
    }
}

/// Whether something is wanted that the last look at the pods was not asked for.
fn asks_more(wanted: Wanted, asked: Wanted) -> bool {
    (wanted.disks && !asked.disks) || (wanted.cpus && !asked.cpus)
}

/// Whether it is worth knowing what the pods use.
fn short(memory: Option<&Memory>, strain: &Strain) -> bool {
    let memory = memory.is_some_and(|memory| {
        memory.kubelet_available < memory.total / 5
            || memory.pods.is_some_and(|pods| pods.working_set / 4 > pods.limit / 5)
            || memory.stall.is_some_and(|stall| stall.full_avg10 >= 5.0)
            || memory.kills.get().is_some_and(|kills| !kills.is_empty())
    });
    let tasks = strain.tasks.get().is_some_and(|tasks| {
        many(tasks.count, tasks.limit) || tasks.pods.is_some_and(|(count, limit)| many(count, limit))
    });
    memory || tasks || waits_for_disks(strain) || strain.short_of_cpus().is_some()
}

/// Whether more than three quarters are in use.
fn many(count: u64, limit: u64) -> bool {
    count / 3 > limit / 4
}

/// Whether it is worth knowing who uses the disks: all tasks wait for them for half of what counts as much.
fn waits_for_disks(strain: &Strain) -> bool {
    strain.io.get().is_some_and(|stall| stall.full_avg10 >= 20.0)
}

/// Looks at what runs short as soon as tasks wait for it. Where the kernel does not tell, the rhythm has to do.
pub(super) async fn pressure_events(wanted: (&'static str, &'static [u8]), wake: Wake) {
    let trigger = match Trigger::open(wanted) {
        Ok(trigger) => trigger,
        Err(error) => {
            tracing::debug!(%error, file = wanted.0, "the kernel does not tell when tasks wait");
            return;
        }
    };
    while trigger.fired().await.is_ok() {
        wake.memory.notify_one();
    }
}

pub(super) async fn kernel_log(out: Outlet, host: HostRoot, wake: Wake) {
    let mut source = KernelLogSource::new(host);
    let mut before = None;
    loop {
        let began = Instant::now();
        let seen: Seen<_> = within(&KERNEL_LOG, source.look()).await.into();
        let first = before.is_none();
        if set(&mut before, Some(seen.clone())) && !first {
            // What made a file system read-only shows in its mount's options too.
            wake.filesystems.notify_one();
        }
        out.tell(&KERNEL_LOG, began, seen.error().is_none(), Update::KernelLog(seen)).await;
        source.wait().await;
    }
}

pub(super) async fn filesystems(out: Outlet, host: HostRoot, blocking: Blocking, shared: Shared, wake: Wake) {
    let mut source = FilesystemSource::new(host, blocking);
    // Which ones are in use the kubelet's files say, and those are read within milliseconds.
    timeout(FIRST, wake.filesystems.notified()).await.ok();
    loop {
        let began = Instant::now();
        let images = shared.images.borrow().clone();
        let roles = roles(shared.kubelet.borrow().as_ref(), shared.arguments.borrow().as_deref(), images);
        let seen = within(&FILESYSTEMS, source.look(Timestamp::now(), &roles)).await;
        out.tell(&FILESYSTEMS, began, seen.is_ok(), Update::Filesystems(seen.into())).await;
        if out.rest(&FILESYSTEMS, began, Some(&wake.filesystems)).await {
            source.changed();
        }
    }
}

/// What this machine keeps where; `images` as the runtime says. On a machine that is no worker only `/` and `/var/log` matter.
pub(super) fn roles(
    kubelet: Option<&Kubelet>,
    arguments: Option<&[String]>,
    images: Option<String>,
) -> Vec<(Role, String)> {
    let mut roles = vec![(Role::Root, "/".to_owned()), (Role::Logs, "/var/log".to_owned())];
    if kubelet.is_some() {
        roles.push((Role::Nodefs, root_dir(arguments)));
        let usual = ["/var/lib/containerd", "/var/lib/containers/storage", "/var/lib/rancher/k3s/agent/containerd"];
        let stores = images.into_iter().chain(usual.map(str::to_owned));
        roles.extend(stores.map(|store| (Role::Imagefs, store)));
    }
    roles
}

pub(super) async fn processes(out: Outlet, host: HostRoot, blocking: Blocking, shared: Shared, wake: Wake) {
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
                // Somebody started or ended: the runtime may be one of them, a BIRD, or the owner of a health port.
                wake.runtime.notify_one();
                wake.health.notify_one();
                wake.bgp.notify_one();
            }
        }
        out.tell(&PROCESSES, began, seen.is_ok(), Update::Processes(seen.into())).await;
        out.rest(&PROCESSES, began, None).await;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn what_is_not_wanted_is_not_looked_at_and_what_is_once_a_minute() {
        let mut seldom = Seldom::default();
        for (wanted, number, seen) in
            [(false, 1, None), (true, 2, Some(2)), (true, 3, Some(2)), (false, 4, None), (true, 5, Some(5))]
        {
            assert_eq!(seldom.look(wanted, async { Ok(number) }).await, seen, "{number}");
        }
        let fails = async { Err(LookError::timed_out("x", 1.0)) };
        assert_eq!(Seldom::<u8>::default().look(true, fails).await, None);
    }

    #[test]
    fn pods_are_looked_at_again_for_what_the_last_look_was_not_asked() {
        let of = |disks, cpus| Wanted { disks, cpus };
        for (wanted, asked, more) in [
            (of(true, false), of(false, false), true),
            (of(true, true), of(false, true), true),
            (of(true, true), of(true, false), true),
            (of(true, false), of(true, true), false),
            (of(false, false), of(false, false), false),
        ] {
            assert_eq!(asks_more(wanted, asked), more, "{wanted:?} after {asked:?}");
        }
    }
}
