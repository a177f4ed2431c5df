//! What has to outlive this process: nodes that are gone, on which workers calico-node failed and when, and how often
//! kubelets turned Ready and back (catalogue R012, R043, R177). Where most turn alike at a time, the control plane was away,
//! and it counts for none of them.
//!
//! It is kept in one ConfigMap beside the aggregator. The replica that leads writes it, and only when it is another than what
//! was written, at most once a minute: in a quiet cluster never. The others see the same by their own watches.

mod keeping;
mod spells;

use std::collections::BTreeMap;
use std::net::IpAddr;
use std::ops::RangeInclusive;
use std::time::Duration;

use jiff::Timestamp;
use kube::Client;
use serde_json::{Value, json};

use super::cluster::Cluster;
use super::looked::Rounds;
use super::master::Master;
use super::report::{LastJudgement, Scope, failing_calico, place};
use super::row::Row;
use super::store::Store;
use crate::clock::since_boot;
use keeping::Keeping;
use spells::{ControllersCured, Spell, find_controllers_cure, find_cures};

/// How things are is noted this often.
const NOTE: Duration = Duration::from_secs(20);
/// What tells no time itself, and where calico-node fails, in every so manyth of these rounds while nothing changes.
const UNCHANGED: u32 = 3;
/// Nodes that are gone and remembered.
const MOST_GONE: usize = 256;
/// Workers on which calico-node failed, and on which the kubelet came and went, that are remembered.
const MOST_WORKERS: usize = 500;
/// Episodes, or turns, of one worker.
const MOST_OF_ONE: usize = 8;
/// What is older, in seconds, is forgotten.
const LONGEST: i64 = 14 * 24 * 3600;
/// Turns of a kubelet are remembered for so long, in seconds, which is the longest time that they can count together
/// (catalogue H4, [`LONGEST_TURNS`](crate::config::ranges::LONGEST_TURNS)).
const TURNS: i64 = 24 * 3600;
/// Turns of several kubelets within this time, in seconds, may have one cause: leases expire and are renewed within a minute,
/// and a kubelet that was refused for long tries again more seldom.
const TOGETHER: i64 = 180;
/// A turn is told of after this time, in seconds: by then it has been noted whether others turned with it.
pub(crate) const SIFTED: i64 = 30;
/// What two replicas note within this time, in seconds, is the same: each has a clock and a rhythm of its own.
const APART: u64 = 30;
/// What begins again so soon, in seconds, has not ended.
const SAME: i64 = 600;

/// What is remembered.
#[derive(Debug, Default, Clone, PartialEq, Eq)]
pub(crate) struct Memory {
    /// Nodes that are gone.
    gone: BTreeMap<Box<str>, Gone>,
    /// When calico-node failed, by pool and address of the worker.
    calico: BTreeMap<Box<str>, Vec<Spell>>,
    /// How calico-kube-controllers was cured last.
    pub(crate) controllers: Option<ControllersCured>,
    /// When kubelets turned Ready or not.
    turns: BTreeMap<Box<str>, Vec<i64>>,
    /// Of which version the API servers are.
    pub(crate) master: Master,
    /// When the last worker went, in seconds since the epoch.
    worker_gone: Option<i64>,
    /// Those that turned just now, with the last time: not Ready, and Ready. Not written down.
    young: [BTreeMap<Box<str>, i64>; 2],
}

/// A node that is gone.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Gone {
    /// When it went, in seconds since the epoch.
    pub(crate) at: i64,
    /// What it could be reached at.
    pub(crate) addresses: Box<[IpAddr]>,
    /// Its worker pool, if a new worker should take its place there.
    pub(crate) pool: Option<Box<str>>,
}

impl Memory {
    /// A node went.
    pub(super) fn bury(&mut self, node: &str, addresses: &[IpAddr], pool: Option<&str>, now: Timestamp) {
        if self.gone.len() >= MOST_GONE
            && let Some(oldest) = self.gone.iter().min_by_key(|(_, gone)| gone.at).map(|(name, _)| name.clone())
        {
            self.gone.remove(&oldest);
        }
        self.gone
            .insert(node.into(), Gone { at: now.as_second(), addresses: addresses.into(), pool: pool.map(Into::into) });
        self.turns.remove(node);
        for young in &mut self.young {
            young.remove(node);
        }
    }

    /// A node is there.
    pub(super) fn is_back(&mut self, node: &str) {
        self.gone.remove(node);
    }

    /// A node that is gone, if it is remembered.
    pub(crate) fn gone(&self, node: &str) -> Option<&Gone> {
        self.gone.get(node)
    }

    /// How many nodes went since then.
    pub(crate) fn gone_since(&self, since: Timestamp) -> usize {
        self.gone.values().filter(|gone| gone.at >= since.as_second()).count()
    }

    /// A worker went.
    pub(super) fn worker_went(&mut self, now: Timestamp) {
        self.worker_gone = self.worker_gone.max(Some(now.as_second()));
    }

    /// When the last worker went.
    pub(crate) fn last_gone(&self) -> Option<Timestamp> {
        Timestamp::from_second(self.worker_gone?).ok()
    }

    /// Who went at or after that time, in seconds, and should have been replaced: by pool, with the time.
    pub(crate) fn to_replace(&self, since: i64) -> BTreeMap<&str, Vec<(i64, &str)>> {
        let mut pools: BTreeMap<&str, Vec<(i64, &str)>> = BTreeMap::new();
        for (node, gone) in self.gone.iter().filter(|(_, gone)| gone.at >= since) {
            if let Some(pool) = &gone.pool {
                pools.entry(pool).or_default().push((gone.at, node));
            }
        }
        pools
    }

    /// A kubelet turned Ready, or not.
    pub(super) fn turned(&mut self, node: &str, ready: bool, now: Timestamp) {
        self.young[usize::from(ready)].insert(node.into(), now.as_second());
        if self.turns.len() < MOST_WORKERS || self.turns.contains_key(node) {
            let turns = self.turns.entry(node.into()).or_default();
            turns.push(now.as_second());
            if turns.len() > MOST_OF_ONE {
                turns.remove(0);
            }
        }
    }

    /// How often it turned at these times, in seconds since the epoch.
    pub(crate) fn turns(&self, node: &str, at: RangeInclusive<i64>) -> usize {
        self.turns.get(node).map_or(0, |turns| turns.iter().filter(|turn| at.contains(turn)).count())
    }

    /// In these places (pool and address of a worker) calico-node fails.
    pub(crate) fn note(&mut self, failing: &[&str], now: Timestamp) {
        let now = now.as_second();
        for (node, episodes) in &mut self.calico {
            if let Some(Spell { to: to @ None, .. }) = episodes.last_mut()
                && !failing.contains(&&**node)
            {
                *to = Some(now);
            }
        }
        for node in failing {
            if self.calico.len() >= MOST_WORKERS && !self.calico.contains_key(*node) {
                continue;
            }
            let episodes = self.calico.entry((*node).into()).or_default();
            match episodes.last_mut() {
                Some(Spell { to: None, .. }) => {}
                Some(last) if last.to.is_some_and(|to| now - to < SAME) => (last.to, last.cure) = (None, None),
                _ => episodes.push(Spell::new(now)),
            }
            if episodes.len() > MOST_OF_ONE {
                episodes.remove(0);
            }
        }
        self.forget(now);
    }

    fn forget(&mut self, now: i64) {
        self.gone.retain(|_, gone| now - gone.at <= LONGEST);
        self.calico.retain(|_, episodes| {
            episodes.retain(|spell| spell.to.is_none_or(|to| now - to <= LONGEST));
            !episodes.is_empty()
        });
        self.controllers = self.controllers.take().filter(|cured| now - cured.at <= LONGEST);
        self.turns.retain(|_, turns| {
            turns.retain(|at| now - at <= TURNS);
            !turns.is_empty()
        });
    }

    /// When calico-node began to fail there, at or after that time; the last at the end.
    pub(crate) fn episodes(&self, since: i64) -> impl Iterator<Item = (&str, Vec<i64>)> {
        self.calico.iter().map(move |(node, episodes)| {
            (&**node, episodes.iter().map(|spell| spell.from).filter(|begun| *begun >= since).collect())
        })
    }

    fn write(&self) -> Value {
        let gone = self.gone.iter().map(|(name, gone)| json!([name, gone.at, gone.addresses, gone.pool]));
        let spells = |all: &Vec<Spell>| all.iter().map(Spell::write).collect::<Vec<_>>();
        let calico: BTreeMap<&str, Vec<Value>> =
            self.calico.iter().map(|(place, all)| (&**place, spells(all))).collect();
        json!({ "gone": gone.collect::<Vec<_>>(), "calico": calico, "turns": self.turns, "master": self.master.write(), "worker": self.worker_gone,
            "controllers": self.controllers.as_ref().map(ControllersCured::write) })
    }

    /// Takes in what was written, beside what has been seen since. What is damaged costs itself.
    pub(super) fn read(&mut self, written: &Value) {
        self.master.read(&written["master"]);
        self.worker_gone = self.worker_gone.max(written["worker"].as_i64());
        let controllers = ControllersCured::read(&written["controllers"]);
        self.controllers = [self.controllers.take(), controllers].into_iter().flatten().max_by_key(|cured| cured.at);
        for entry in written["gone"].as_array().into_iter().flatten().take(MOST_GONE) {
            if let (Some(name), Some(at)) = (entry[0].as_str(), entry[1].as_i64()) {
                let addresses = entry[2].as_array().into_iter().flatten();
                let addresses = addresses.filter_map(|it| it.as_str()?.parse().ok()).collect();
                let pool = entry[3].as_str().map(Into::into);
                self.gone.entry(name.into()).or_insert(Gone { at, addresses, pool });
            }
        }
        for (node, episodes) in written["calico"].as_object().into_iter().flatten().take(MOST_WORKERS) {
            let known = episodes.as_array().into_iter().flatten().take(MOST_OF_ONE);
            let own = self.calico.entry(node.as_str().into()).or_default();
            let mut all: Vec<Spell> = known.filter_map(Spell::read).collect();
            // What went on when it was written and is seen now is one.
            if let (Some(Spell { to: None, .. }), Some(first)) = (all.last(), own.first_mut()) {
                first.from = all.pop().map_or(first.from, |last| last.from.min(first.from));
            }
            all.retain(|spell| own.iter().all(|other| other.from.abs_diff(spell.from) > APART));
            own.splice(0..0, all);
            own.sort_unstable();
        }
        self.calico.retain(|_, episodes| !episodes.is_empty());
        for (node, turns) in written["turns"].as_object().into_iter().flatten().take(MOST_WORKERS) {
            let own = self.turns.entry(node.as_str().into()).or_default();
            let seen = own.clone();
            let other = turns.as_array().into_iter().flatten().take(MOST_OF_ONE).filter_map(Value::as_i64);
            own.extend(other.filter(|at| seen.iter().all(|known| known.abs_diff(*at) > APART)));
            own.sort_unstable();
        }
    }
}

/// Notes how things are, and keeps it, for ever.
pub(super) async fn run(client: &Client, store: &Store, namespace: &str) -> std::convert::Infallible {
    let mut keeping = Keeping::new(namespace);
    let mut rounds = Rounds::default();
    loop {
        let leads = note(store, &mut rounds);
        keeping.round(client, store, leads).await;
        tokio::time::sleep(NOTE).await;
    }
}

/// Leaves out the turns that are not the kubelets' own. No kubelet can renew its lease while the control plane is away: most of
/// those that can turn then do so alike, within [`TOGETHER`].
pub(super) fn sift(cluster: &mut Cluster, now: Timestamp) {
    let mut memory = std::mem::take(&mut cluster.memory);
    for young in &mut memory.young {
        young.retain(|_, at| now.as_second() - *at <= TOGETHER);
    }
    let [away, back] = &memory.young;
    if !(away.is_empty() && back.is_empty()) {
        let just_turned = |name: &str| away.contains_key(name) || back.contains_key(name);
        let can = |(name, row): &(&str, &Row)| !row.unschedulable && (row.is_ready() || just_turned(name));
        let all = cluster.nodes().filter(can).count();
        let most = |young: &&BTreeMap<_, _>| Scope::of(young.len(), all, cluster.limits()) >= Scope::Most;
        let mut sifted = 0;
        for (node, at) in memory.young.iter().filter(most).flatten() {
            if let Some(turns) = memory.turns.get_mut(node) {
                let before = turns.len();
                turns.retain(|turn| turn != at);
                sifted += u64::from(turns.len() < before);
            }
        }
        cluster.revision += sifted;
        memory.turns.retain(|_, turns| !turns.is_empty());
    }
    cluster.memory = memory;
}

/// Remembers when findings were noticed that tell no time themselves. Of what is unknown it is not known whether it is over.
pub(super) fn notice(cluster: &mut Cluster, judged: &mut LastJudgement, now: Timestamp) {
    let Some((findings, unknown)) = judged.of_cluster(cluster, now) else { return };
    let mut before = std::mem::take(&mut cluster.noticed);
    let there = findings.into_iter().filter(|finding| finding.noticed).map(|finding| (finding.code, finding.subject));
    let mut noticed: BTreeMap<_, _> =
        there.map(|key| (before.remove(&key).unwrap_or(now), key)).map(|(at, key)| (key, at)).collect();
    before.retain(|(code, _), _| unknown.iter().any(|cannot| cannot.codes.contains(code)));
    noticed.append(&mut before);
    cluster.noticed = noticed;
}

/// Whether this process leads.
fn note(store: &Store, rounds: &mut Rounds) -> bool {
    let now = Timestamp::now();
    store.judge(|cluster, judged| {
        sift(cluster, now);
        cluster.misses_scrapes(since_boot());
        if !rounds.is_due(cluster, UNCHANGED) {
            return;
        }
        notice(cluster, judged, now);
        find_controllers_cure(cluster, now);
        if let Some(failing) = failing_calico(cluster, now) {
            let places = failing.iter().filter_map(|name| Some(place(name, cluster.node(name)?)));
            let places: Vec<String> = places.collect();
            let failing: Vec<&str> = places.iter().map(String::as_str).collect();
            let before = cluster.memory.calico.clone();
            cluster.memory.note(&failing, now);
            find_cures(cluster, now);
            cluster.revision += u64::from(before != cluster.memory.calico);
        }
    });
    store.lock().leads
}

#[cfg(test)]
mod tests;
