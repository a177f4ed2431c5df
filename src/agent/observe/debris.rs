//! What containers leave behind: shims, zombies, network namespaces, sandboxes, containers and snapshots that nobody owns, and
//! resources that only grow.

use std::collections::{HashMap, HashSet, VecDeque};
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use self::creep::Creep;
use super::cgroups::Kubepods;
use super::cri::{Inventory, digest};
use super::host_root::HostRoot;
use super::processes::{self, Attendants};
use crate::facts::{Debris, LookError, Memo, Resource, Seen, Snapshots};

mod creep;

/// Something without an owner counts after this time (catalogue R061): by then whoever was making or removing it is done.
const OLD: Duration = Duration::from_secs(600);
/// Resources are read this often.
const RESOURCES: Duration = Duration::from_secs(600);
/// Without an owner so many are remembered one by one; more than that are counted as if they were old.
const REMEMBERED: usize = 20_000;
/// Files of which no more than this is read: `/proc/cgroups` has a line for each of a dozen controllers.
const CGROUPS: u64 = 8 << 10;
/// The name of what was told among what is kept: shims, zombies, containers, sandboxes, namespaces, cgroups,
/// snapshots.
const TOLD: &str = "told";

/// Looks for debris, and remembers since when it has been there.
#[derive(Debug)]
pub(super) struct DebrisSource {
    host: HostRoot,
    /// The first look, on the boot clock.
    began: Option<Duration>,
    shims: Ownerless<(i32, u64)>,
    zombies: Ownerless<(i32, u64)>,
    /// The counts of containers, sandboxes, namespaces, cgroups and snapshots at the last looks.
    counts: VecDeque<(Duration, [u64; 5])>,
    creep: Creep,
    resources_at: Option<Duration>,
    /// What an earlier process of the agent told, for the first ten minutes.
    told: Option<[u64; 7]>,
}

/// Since when objects have had no owner.
#[derive(Debug)]
struct Ownerless<K>(HashMap<K, Duration>);

impl<K: std::hash::Hash + Eq + Copy> Ownerless<K> {
    /// Takes what has no owner now; answers what has had none for long.
    fn look(&mut self, now: Duration, objects: impl Iterator<Item = K>) -> HashSet<K> {
        let before = std::mem::take(&mut self.0);
        self.0 = objects.take(REMEMBERED).map(|key| (key, before.get(&key).copied().unwrap_or(now))).collect();
        self.0.iter().filter(|(_, since)| now.saturating_sub(**since) >= OLD).map(|(key, _)| *key).collect()
    }
}

impl DebrisSource {
    /// Nothing was looked at yet.
    pub(super) fn new(host: HostRoot) -> Self {
        DebrisSource {
            host,
            began: None,
            shims: Ownerless(HashMap::new()),
            zombies: Ownerless(HashMap::new()),
            counts: VecDeque::new(),
            creep: Creep::default(),
            resources_at: None,
            told: None,
        }
    }

    /// Goes on from what an earlier process of the agent left in this boot.
    pub(super) fn knowing(mut self, mut memo: Memo) -> Self {
        let told = memo.0.remove(TOLD).map(|mut told| {
            // Of a version that did not count snapshots.
            told.extend((told.len() == 6).then_some(0));
            told
        });
        self.told = told.and_then(|told| told.try_into().ok());
        self.creep.know(&memo);
        self
    }

    /// Whether that process had told of some: until the first look nobody can say whether it is still there.
    pub(super) fn told_of_some(&self) -> bool {
        self.told.is_some_and(|told| told != [0; 7]) || !self.creep.growing().is_empty()
    }

    /// Looks at the node, with what the runtime has and what the process table showed; the pods' directory of the kubelet tells
    /// which pods there are. Of the first ten minutes nothing is told but what an earlier process of the agent had told, as far as
    /// that many objects have no owner now.
    pub(super) fn look(
        &mut self,
        now: Duration,
        inventory: &Inventory,
        attendants: &Attendants,
        (pods, cgroup_root): (&str, &str),
    ) -> Result<Option<Debris>, LookError> {
        let known = |shim: &&processes::Shim| {
            let of = digest(&shim.sandbox);
            if shim.by_pod { inventory.has_pod(of) } else { inventory.sandboxes.contains_key(&of) }
        };
        let unknown: Vec<_> = attendants.shims.iter().filter(|shim| !known(shim)).collect();
        let old = self.shims.look(now, unknown.iter().map(|shim| (shim.pid, digest(&shim.sandbox))));
        let mut zombies = self.zombies.look(now, attendants.zombies.iter().copied()).len() as u64;
        let owners = owners(&self.host.path(pods)).map_err(|error| LookError::io(pods, &error))?;
        let counts = self.count(inventory, owners.as_ref(), cgroup_root)?;
        let mut lasting = self.lasting(now, counts);
        if self.resources_at.is_none_or(|at| now.saturating_sub(at) >= RESOURCES) {
            self.resources_at = Some(now);
            let pods = (inventory.sandboxes.len() as u64).saturating_sub(inventory.not_ready);
            let resources = self.resources(attendants);
            self.creep.push(now, pods, &resources);
        }
        let began = *self.began.get_or_insert(now);
        let new = now.saturating_sub(began) < OLD;
        let mut old_shims: Vec<_> =
            unknown.into_iter().filter(|shim| new || old.contains(&(shim.pid, digest(&shim.sandbox)))).collect();
        if new {
            let Some([shims, ended, told @ ..]) = self.told else { return Ok(None) };
            old_shims.truncate(usize::try_from(shims).unwrap_or(usize::MAX));
            zombies = ended.min(attendants.zombies.len() as u64);
            lasting = std::array::from_fn(|at| told[at].min(counts[at]));
        }
        let short = |id: &str| id.chars().take(13).collect();
        let [containers, sandboxes, namespaces, cgroups, count] = lasting;
        let shim_count = old_shims.len() as u64;
        let mut memo = self.creep.memo();
        let told = [shim_count, zombies, containers, sandboxes, namespaces, cgroups, count].map(rounded);
        memo.0.insert(TOLD.to_owned(), told.to_vec());
        Ok(Some(Debris {
            shims: old_shims.iter().take(Debris::EXAMPLES).map(|shim| (shim.pid, short(&shim.sandbox))).collect(),
            shim_count,
            zombies,
            containers,
            sandboxes,
            namespaces,
            cgroups,
            snapshots: snapshots(&inventory.snapshots, count),
            exited: rounded(inventory.exited.len() as u64),
            not_ready: rounded(inventory.not_ready),
            growing: self.creep.growing(),
            memo,
        }))
    }

    /// Containers, sandboxes, namespaces, cgroups and snapshots without an owner now. Where the kubelet's directory is not there
    /// nobody can say which pods there are: then a sandbox owns its containers and needs no owner.
    fn count(
        &self,
        inventory: &Inventory,
        owners: Option<&HashSet<u64>>,
        cgroup_root: &str,
    ) -> Result<[u64; 5], LookError> {
        let owned = |pod: &u64| owners.is_none_or(|owners| owners.contains(pod));
        let abandoned = |sandbox: &&u64| !inventory.sandboxes.get(sandbox).is_some_and(owned);
        let containers = inventory.exited.iter().filter(abandoned).count() as u64;
        let sandboxes = inventory.sandboxes.values().filter(|pod| !owned(pod)).count() as u64;
        let own_network = (inventory.sandboxes.len() as u64).saturating_sub(inventory.on_host_network);
        let namespaces = namespaces(&self.host.path("/run/netns"))
            .map_err(|error| LookError::io("/run/netns", &error))?
            .saturating_sub(own_network);
        // One hierarchy of cgroup v1 stands for all: the kubelet makes and removes a pod's in each.
        let pods = Kubepods::find(&self.host, "memory", cgroup_root).map(|it| it.pods()).unwrap_or_default();
        let pods = pods.iter().map(|pod| digest(&pod.uid)).filter(|pod| !owned(pod) && !inventory.has_pod(*pod));
        let snapshots = match &inventory.snapshots {
            Seen::Yes(snapshots) => snapshots.count,
            // They are asked for later than all else.
            Seen::Absent => self.told.map_or(0, |[.., snapshots]| snapshots),
            Seen::Unreadable(_) => 0,
        };
        Ok([containers, sandboxes, namespaces, pods.count() as u64, snapshots])
    }

    /// What each count has been for ten minutes, at least: what comes and goes does not add up.
    fn lasting(&mut self, now: Duration, counts: [u64; 5]) -> [u64; 5] {
        self.counts.push_back((now, counts));
        // The last one that is older than ten minutes stays.
        while self.counts.get(1).is_some_and(|(at, _)| now.saturating_sub(*at) >= OLD) {
            self.counts.pop_front();
        }
        self.counts.iter().fold(counts, |least, (_, counts)| std::array::from_fn(|at| least[at].min(counts[at])))
    }

    fn resources(&self, attendants: &Attendants) -> Vec<(Resource, i32, u64)> {
        let mut all = Vec::new();
        let cgroups = self.host.read_text("/proc/cgroups", CGROUPS).ok().and_then(|text| cgroups(&text));
        all.extend(cgroups.map(|count| (Resource::Cgroups, 0, count)));
        all.extend(lines(&self.host.path("/proc/1/mountinfo")).map(|count| (Resource::Mounts, 0, count)));
        for (program, pid) in &attendants.daemons {
            let process = self.host.path(&format!("/proc/{pid}"));
            if let Ok(open) = std::fs::read_dir(process.join("fd")) {
                all.push((Resource::Descriptors(*program), *pid, open.count() as u64));
            }
            if let Some((threads, memory)) = processes::usage(&process) {
                all.push((Resource::Threads(*program), *pid, threads));
                all.push((Resource::Memory(*program), *pid, memory >> 20));
            }
        }
        all
    }
}

/// So many snapshots, of those that were seen now.
fn snapshots(seen: &Seen<Snapshots>, count: u64) -> Seen<Snapshots> {
    match seen {
        Seen::Absent if count == 0 => Seen::Absent,
        Seen::Absent => Seen::Yes(Snapshots { count, oldest: None }),
        Seen::Yes(now) => Seen::Yes(Snapshots { count, oldest: now.oldest.clone().filter(|_| count > 0) }),
        Seen::Unreadable(error) => Seen::Unreadable(error.clone()),
    }
}

/// To two digits: a number that moves a little is no news.
fn rounded(count: u64) -> u64 {
    let step = 10_u64.pow(count.checked_ilog10().unwrap_or(0).saturating_sub(1));
    count - count % step
}

/// The pods of which the kubelet has a directory; none where there is no such place.
fn owners(pods: &Path) -> std::io::Result<Option<HashSet<u64>>> {
    match std::fs::read_dir(pods) {
        Ok(entries) => {
            Ok(Some(entries.flatten().filter_map(|entry| Some(digest(entry.file_name().to_str()?))).collect()))
        }
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => Ok(None),
        Err(error) => Err(error),
    }
}

/// Network namespaces of pods, by the name that containerd gives them, or CRI-O: a bare UUID (`internal/config/nsmgr`).
fn namespaces(directory: &Path) -> std::io::Result<u64> {
    match std::fs::read_dir(directory) {
        Ok(entries) => {
            let own = |name: &std::ffi::OsStr| {
                let name = name.as_encoded_bytes();
                name.starts_with(b"cni-") || is_uuid(name)
            };
            Ok(entries.flatten().filter(|entry| own(&entry.file_name())).count() as u64)
        }
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => Ok(0),
        Err(error) => Err(error),
    }
}

/// `8-4-4-4-12` hexadecimal digits.
fn is_uuid(name: &[u8]) -> bool {
    let digit = |(at, byte): (usize, &u8)| {
        if matches!(at, 8 | 13 | 18 | 23) { *byte == b'-' } else { byte.is_ascii_hexdigit() }
    };
    name.len() == 36 && name.iter().enumerate().all(digit)
}

/// The most that any controller has: `name hierarchy num_cgroups enabled`.
fn cgroups(text: &str) -> Option<u64> {
    text.lines().filter_map(|line| line.split_whitespace().nth(2)?.parse().ok()).max()
}

/// The lines of a file of `/proc`, which can be many.
fn lines(path: &Path) -> Option<u64> {
    use std::io::Read;
    let mut file = super::host_root::open_at_once(path).ok()?;
    let (mut buffer, mut count) = (vec![0; 16 << 10], 0);
    loop {
        match file.read(&mut buffer).ok()? {
            0 => return Some(count),
            read => count += buffer[..read].split(|byte| *byte == b'\n').count() as u64 - 1,
        }
    }
}

/// Everything that a look needs from the other sources.
#[derive(Debug, Clone, Default)]
pub(super) struct Known {
    pub(super) inventory: Option<Arc<Inventory>>,
    pub(super) attendants: Arc<Attendants>,
}

/// The fuzz target's door.
#[cfg(any(test, fuzzing))]
pub(super) fn fuzz(text: &str) {
    let _ = cgroups(text);
}

#[cfg(test)]
mod tests;
