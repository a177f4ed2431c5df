//! Evidence that the agent keeps on the node by itself: at the first bad look of an episode, since every cure destroys it.
//!
//! It costs nothing while nothing is wrong, never waits in the loop that judges, and writes only where there is room: at most
//! [`MOST`] bundles of [`ROOM`] bytes, the oldest go. A code has [`PER_DAY`] bundles a day, and between any two of them is
//! a breath, so that a fault that comes and goes does not wear out the disk. A fault for which machines are replaced waits
//! for no breath, since nothing is left of it afterwards.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::io;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use jiff::{SignedDuration, Timestamp};
use nix::sys::statvfs::{FsFlags, statvfs};
use serde::Serialize;

use super::pieces::PROBES;
use super::{Depth, Gatherer};
use crate::agent::observe::{Blocking, Walk};
use crate::agent::{HostRoot, Report};
use crate::bundle::{Bundle, Episode, Item, MANIFEST, Manifest, summary};
use crate::checks::{Area, Severity};
use crate::facts::{LookError, Reason, utc_in_names};
use crate::verdict::{CURED_BY_A_NEW_MACHINE, NodeCondition, Raised, Status, Told, Verdict};

/// So many bundles are kept (catalogue, section 5).
const MOST: usize = 5;
/// A bundle is no larger, in bytes.
const ROOM: u64 = 6 << 20;
/// So many bundles of one code within a day.
const PER_DAY: usize = 2;
/// Time between two bundles, but for faults for which machines are replaced.
const BREATH: Duration = Duration::from_secs(30);
/// This much stays free for everybody else, in bytes, and a twentieth of the file system.
const LEFT_FREE: u64 = 64 << 20;
/// A bundle that is not written by then is given up.
const DEADLINE: Duration = Duration::from_secs(60);
/// A condition on which machines are replaced waits so long for its evidence, from when that was first wanted.
const HOLD: Duration = Duration::from_secs(3);
/// The directory below that of the state.
pub(in crate::agent) const FOLDER: &str = "evidence";
/// What is being written.
const NEW: &str = ".new";

/// Whether a bundle in the directory has such a name, or one that is being written.
pub(in crate::agent) fn is_bundle(name: &str) -> bool {
    let digits = |text: &str, count| text.len() == count && text.bytes().all(|byte| byte.is_ascii_digit());
    let time = |text: &str| text.split_once('T').is_some_and(|(day, time)| digits(day, 8) && digits(time, 6));
    let code = |text: &str| !text.is_empty() && text.bytes().all(|byte| byte.is_ascii_alphanumeric());
    name == NEW || name.split_once("Z-").is_some_and(|(at, of)| time(at) && code(of))
}

/// What became of the evidence.
#[derive(Debug, Default)]
pub(crate) struct Kept {
    running: AtomicBool,
    taken: AtomicU64,
    failed: AtomicU64,
    bundles: Mutex<Vec<Held>>,
}

/// A bundle on this node.
#[derive(Debug, Clone, Serialize)]
#[serde(rename_all = "camelCase")]
pub(crate) struct Held {
    /// Where it is, as this process sees it.
    path: String,
    at: Timestamp,
    findings: Vec<Episode>,
}

impl From<&(PathBuf, Manifest)> for Held {
    fn from((path, manifest): &(PathBuf, Manifest)) -> Self {
        Held { path: path.display().to_string(), at: manifest.begun_at, findings: manifest.episodes.clone() }
    }
}

impl Kept {
    /// Bundles that were written, and that could not be, by this process.
    pub(crate) fn counts(&self) -> (u64, u64) {
        (self.taken.load(Ordering::Relaxed), self.failed.load(Ordering::Relaxed))
    }

    /// The bundles on this node, oldest first.
    pub(crate) fn bundles(&self) -> Vec<Held> {
        self.bundles.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }
}

/// What tells one fault from another: code and subject.
type Key = (String, String);

/// Evidence of a fault for which machines are replaced, until it is there.
#[derive(Debug)]
struct Awaited {
    area: Area,
    /// When it was first wanted.
    since: Instant,
    /// It is part of the newest bundle, which may still be being written; else its turn is yet to come.
    begun: bool,
}

/// Keeps evidence.
#[derive(Debug)]
pub(crate) struct Keeper {
    folder: PathBuf,
    host: HostRoot,
    blocking: Blocking,
    kept: Arc<Kept>,
    /// The faults of which evidence was taken or refused and that have not gone since.
    known: BTreeSet<Key>,
    /// What conditions wait for.
    awaited: BTreeMap<Key, Awaited>,
    last: Option<Instant>,
    /// When the breath was passed over last, for a fault of each area.
    hurried: BTreeMap<Area, Instant>,
    /// Something is bad of which evidence is taken once the breath is over, or another bundle written.
    owes: bool,
}

/// Whether evidence is taken of it: it counts, or would soon stop the worker.
fn is_bad(verdict: &Verdict) -> impl Iterator<Item = &Raised> {
    let soon = verdict.pending.iter().filter(|it| it.severity == Severity::Critical);
    verdict.problems().chain(soon)
}

/// Whether it makes a condition True on which machines are replaced.
fn is_fit(finding: &Raised) -> bool {
    CURED_BY_A_NEW_MACHINE.contains(&finding.area)
}

impl Keeper {
    /// In a directory of the agent's own.
    pub(crate) fn new(state_dir: &Path, host: &HostRoot) -> Self {
        let folder = state_dir.join(FOLDER);
        Keeper {
            folder,
            host: host.clone(),
            blocking: Blocking::default(),
            kept: Arc::default(),
            known: BTreeSet::new(),
            awaited: BTreeMap::new(),
            last: None,
            hurried: BTreeMap::new(),
            owes: false,
        }
    }

    /// What became of it; what earlier processes left is looked up in the background.
    pub(crate) fn kept(&self) -> Arc<Kept> {
        let (blocking, folder, kept) = (self.blocking.clone(), self.folder.clone(), Arc::clone(&self.kept));
        tokio::spawn(async move {
            let list = move || Ok(list(&folder).iter().map(Held::from).collect());
            if let Ok(bundles) = blocking.run("list of evidence", DEADLINE, list).await {
                *kept.bundles.lock().unwrap_or_else(PoisonError::into_inner) = bundles;
            }
        });
        Arc::clone(&self.kept)
    }

    /// Whether something has just become bad of which evidence has to be taken.
    pub(crate) fn wants(&mut self, verdict: &Verdict) -> Option<Episode> {
        let key = |it: &Raised| (it.code.clone(), it.subject.clone());
        let now: BTreeSet<Key> = is_bad(verdict).map(key).collect();
        self.known.retain(|it| now.contains(it));
        self.awaited.retain(|it, _| now.contains(it));
        let new: Vec<&Raised> = is_bad(verdict).filter(|it| !self.known.contains(&key(it))).collect();
        for it in new.iter().filter(|it| is_fit(it)) {
            let first = Awaited { area: it.area, since: Instant::now(), begun: false };
            self.awaited.entry(key(it)).or_insert(first);
        }
        let rushes = new.iter().find(|it| is_fit(it) && self.may_hurry(it.area));
        let (hurries, next) = (rushes.is_some(), rushes.or_else(|| new.first()));
        self.owes = next.is_some();
        let next = next?;
        let breathes = self.last.is_some_and(|last| last.elapsed() < BREATH);
        // Once in a breath for each condition: what follows from one fault would push out the bundle of its first look.
        if (breathes && !hurries) || self.kept.running.swap(true, Ordering::Relaxed) {
            return None;
        }
        // The bundle before is written, and this one holds all that is bad now.
        self.awaited.retain(|_, it| !it.begun);
        self.awaited.values_mut().for_each(|it| it.begun = true);
        self.owes = false;
        self.known = now;
        let now = Instant::now();
        if breathes {
            self.hurried.insert(next.area, now);
        }
        self.last = Some(now);
        Some(Episode::from(*next))
    }

    /// Whether the breath may be passed over for what is fit for repair, in this area.
    fn may_hurry(&self, area: Area) -> bool {
        self.hurried.get(&area).is_none_or(|at| at.elapsed() >= BREATH)
    }

    /// When to ask again though nothing else has changed, if evidence is owed.
    pub(crate) fn owes_in(&self) -> Option<Duration> {
        let since = self.last.map_or(BREATH, |last| last.elapsed());
        let hurries = self.awaited.values().any(|it| !it.begun && self.may_hurry(it.area));
        let rest = if hurries { Duration::ZERO } else { BREATH.saturating_sub(since) };
        self.owes.then(|| rest.max(Duration::from_secs(1)))
    }

    /// Takes it, in the background.
    pub(crate) fn take(&self, episode: Episode, report: Report, walks: Vec<Walk>) {
        let (blocking, kept) = (self.blocking.clone(), Arc::clone(&self.kept));
        let (folder, host) = (self.folder.clone(), self.host.clone());
        let here = tokio::runtime::Handle::current();
        tokio::spawn(async move {
            let write = move || here.block_on(write(&folder, &host, &episode, &report, &walks));
            match blocking.run("evidence", DEADLINE, write).await {
                Ok(Some(bundles)) => {
                    kept.taken.fetch_add(1, Ordering::Relaxed);
                    let newest = bundles.last().map(|held| held.path.clone()).unwrap_or_default();
                    tracing::info!(bundle = newest, "evidence is kept");
                    *kept.bundles.lock().unwrap_or_else(PoisonError::into_inner) = bundles;
                }
                // There is evidence of it already, or enough of its like.
                Ok(None) => {}
                Err(error) => {
                    kept.failed.fetch_add(1, Ordering::Relaxed);
                    tracing::warn!(%error, "no evidence could be kept on this node; `nodevitals gather --output -` takes it without a disk");
                }
            }
            kept.running.store(false, Ordering::Relaxed);
        });
    }

    /// Whether the Node has to wait for evidence before it is told: a condition that has machines replaced would turn True.
    pub(crate) fn holds(&self, before: Option<&Told>, now: &Told) -> bool {
        let is_true =
            |told: &Told, kind: &str| told.conditions.iter().any(|it| it.kind == kind && it.status == Status::True);
        let turns =
            |it: &NodeCondition| it.status == Status::True && !before.is_some_and(|told| is_true(told, &it.kind));
        let is_writing = self.kept.running.load(Ordering::Relaxed);
        let is_missing = |it: &&Awaited| (!it.begun || is_writing) && it.since.elapsed() < HOLD;
        let mut missing = self.awaited.values().filter(is_missing).map(|it| it.area.condition());
        missing.any(|kind| now.conditions.iter().any(|it| it.kind == kind && turns(it)))
    }
}

/// Writes one bundle beside the others, whole or not at all. None where there is no need of it.
async fn write(
    folder: &Path,
    host: &HostRoot,
    episode: &Episode,
    report: &Report,
    walks: &[Walk],
) -> Result<Option<Vec<Held>>, LookError> {
    let place = folder.display().to_string();
    let io = |error: io::Error| LookError::io(&place, &error);
    fs::create_dir_all(folder).map_err(io)?;
    let held = list(folder);
    let day = report.verdict.at - SignedDuration::from_hours(24);
    let named = format!("-{}", episode.code);
    let of_code = |(path, it): &&(PathBuf, Manifest)| path.to_string_lossy().ends_with(&named) && it.begun_at > day;
    if held.iter().any(|(_, it)| it.covers(&episode.code, &episode.subject, episode.since))
        || held.iter().filter(of_code).count() >= PER_DAY
    {
        return Ok(None);
    }
    has_room(folder)?;
    let new = folder.join(NEW);
    // What a process that was killed left.
    fs::remove_dir_all(&new)
        .or_else(|error| if error.kind() == io::ErrorKind::NotFound { Ok(()) } else { Err(error) })
        .map_err(io)?;
    let done = fill(&new, host, episode, report, walks).await.and_then(|()| {
        let name = format!("{}-{}", utc_in_names(report.verdict.at), episode.code);
        fs::rename(&new, folder.join(name)).map_err(io)
    });
    if let Err(error) = done {
        fs::remove_dir_all(&new).ok();
        return Err(error);
    }
    let mut held = list(folder);
    while held.len() > MOST {
        fs::remove_dir_all(held.remove(0).0).map_err(io)?;
    }
    Ok(Some(held.iter().map(Held::from).collect()))
}

async fn fill(
    new: &Path,
    host: &HostRoot,
    episode: &Episode,
    report: &Report,
    walks: &[Walk],
) -> Result<(), LookError> {
    let failed = |why: String| LookError::new(new.display().to_string(), Reason::Failed, why);
    let identity = &report.snapshot.identity;
    let node = identity.node_name.as_ref().unwrap_or(&identity.hostname);
    let why = format!("kept by the agent when {} {} began", episode.code, episode.subject);
    let manifest = Manifest::new(node, &identity.boot_id, &why, report.verdict.at);
    let (mut bundle, mut manifest) = Bundle::folder(new, manifest).map_err(|error| failed(format!("{error:#}")))?;
    let mut gatherer = Gatherer::new(host, Depth::Light, ROOM);
    let facts = gatherer.facts(report, &mut bundle, &mut manifest);
    if let Some(why) = facts.failed {
        return Err(failed(why));
    }
    let item =
        Item { name: PROBES.to_owned(), key: "E27".to_owned(), of: "the last walks".to_owned(), ..Item::default() };
    let walks = serde_json::to_vec(walks).map_err(|error| error.to_string());
    gatherer.add(item, Instant::now(), walks, &mut bundle, &mut manifest);
    // What is only held down is evidence too.
    if !manifest.episodes.contains(episode) {
        manifest.episodes.push(episode.clone());
    }
    let written = gatherer.pieces(&mut bundle, &mut manifest, |_| ()).await;
    let summary = summary(&manifest, Some(&report.verdict));
    written.and_then(|()| bundle.finish(&manifest, &summary)).map_err(|error| failed(error.to_string()))
}

/// Refuses a file system that is read-only, or that a bundle would help to fill.
fn has_room(folder: &Path) -> Result<(), LookError> {
    let place = folder.display().to_string();
    let stats = statvfs(folder).map_err(|errno| LookError::io(&place, &errno.into()))?;
    let block = stats.fragment_size();
    let (all, free) = (stats.blocks() * block, stats.blocks_available() * block);
    let refused = |why: String| Err(LookError::new(&place, Reason::Denied, why));
    if stats.flags().contains(FsFlags::ST_RDONLY) {
        return refused("the file system is read-only".to_owned());
    }
    if free < ROOM + LEFT_FREE.max(all / 20) || (stats.files() > 0 && stats.files_available() < stats.files() / 20) {
        return refused(format!("the file system is nearly full: {free} of {all} bytes are available"));
    }
    Ok(())
}

/// The bundles in the directory, oldest first.
fn list(folder: &Path) -> Vec<(PathBuf, Manifest)> {
    let entries = fs::read_dir(folder).into_iter().flatten().flatten();
    let held = entries.filter(|entry| entry.file_name() != NEW).filter_map(|entry| {
        let manifest = serde_json::from_slice(&fs::read(entry.path().join(MANIFEST)).ok()?).ok()?;
        Some((entry.path(), manifest))
    });
    let mut held: Vec<(PathBuf, Manifest)> = held.collect();
    held.sort_unstable_by(|(a, x), (b, y)| (x.begun_at, a).cmp(&(y.begun_at, b)));
    held
}

#[cfg(test)]
mod tests;
