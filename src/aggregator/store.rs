//! The one place where what is known is kept: watches put it in, pages and the writer read it.

use std::net::IpAddr;
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use ipnet::IpNet;
use jiff::Timestamp;
use tokio::sync::watch;

use super::agreement::{Question, told};
use super::cluster::Cluster;
use super::map::{LastMap, Written};
use super::model::NodeView;
use super::mtus;
use super::object::ObjectView;
use super::report::{Agents, ClusterReport, LastJudgement, Overview, Source, build, overview};
use super::sight::Sight;
use super::stale::Watchdog;
use super::surroundings::What;
use super::watch::Change;
use crate::config::Config;
use crate::events::Counts;
use crate::verdict::{Now, Told};

/// What is known of the cluster, shared by everything in this process.
#[derive(Debug)]
pub(crate) struct Store {
    source: Source,
    inner: Mutex<Inner>,
    revision: watch::Sender<u64>,
}

/// What is behind the lock. It is never held over an await.
#[derive(Debug)]
pub(super) struct Inner {
    pub(super) cluster: Cluster,
    pub(super) watchdog: Watchdog,
    pub(super) judged: LastJudgement,
    pub(super) leads: bool,
    pub(super) patches: Patches,
    /// What became of this process's Events.
    pub(super) events: Counts,
    map: LastMap,
}

/// How the writes of this process went.
#[derive(Debug, Default, Clone, Copy)]
pub(super) struct Patches {
    pub(super) ok: u64,
    pub(super) conflict: u64,
    pub(super) failed: u64,
}

impl Store {
    /// For a process in which one agent tells its aggregator directly, without an API server.
    pub(crate) fn standalone() -> Store {
        Store::new(Source::Standalone, Cluster::without_agents())
    }

    /// For a process that watches the API server.
    pub(crate) fn watched() -> Store {
        Store::new(Source::Aggregator, Cluster::watched())
    }

    /// With the thresholds of a configuration.
    pub(crate) fn with_limits(self, config: &Config) -> Store {
        self.lock().cluster.surroundings.limits = config.cluster();
        self
    }

    fn new(source: Source, cluster: Cluster) -> Store {
        let inner = Inner {
            cluster,
            watchdog: Watchdog::default(),
            judged: LastJudgement::default(),
            leads: false,
            patches: Patches::default(),
            events: Counts::default(),
            map: LastMap::default(),
        };
        Store { source, inner: Mutex::new(inner), revision: watch::Sender::new(0) }
    }

    /// Takes in what the agent in this process says.
    pub(crate) fn tell(&self, name: &str, told: &Told) {
        self.change(|cluster| cluster.apply_told(name, told));
    }

    /// The report as of now, or of one worker only.
    pub(crate) fn report(&self, only: Option<&str>, now: Now) -> ClusterReport {
        let inner = self.lock();
        build(&inner.cluster, Agents::Watched(&inner.watchdog), self.source, only, now)
    }

    /// All workers as of now.
    pub(super) fn overview<T>(&self, now: Now, read: impl FnOnce(Overview<'_>) -> T) -> T {
        self.beside(now, |_, overview| read(overview))
    }

    /// The same, with what else is known.
    pub(super) fn beside<T>(&self, now: Now, read: impl FnOnce(&Cluster, Overview<'_>) -> T) -> T {
        let inner = &mut *self.lock();
        let agents = Agents::Watched(&inner.watchdog);
        read(&inner.cluster, overview(&inner.cluster, agents, self.source, &mut inner.judged, now))
    }

    /// The map of the cluster, or why there is none.
    pub(super) fn map(&self, now: Now) -> Result<Written, &'static str> {
        let inner = &mut *self.lock();
        inner.map.get(&inner.cluster, now.since_boot)
    }

    /// Takes in what is said of a node's blocks and MTUs in the query of a question for the map.
    pub(super) fn blocks_told(&self, node: &str, query: &str, now: Now) {
        let inner = &mut *self.lock();
        let cluster = &mut inner.cluster;
        if cluster.node(node).is_some() {
            inner.watchdog.claimed(node);
            told(query).for_each(|(family, sums)| cluster.agreement.says(node, family, sums, now.since_boot));
            cluster.agent_said(node, query, now.wall);
            if let Some(said) = mtus::told(query) {
                cluster.mtus_told(node, said, now.wall);
            }
        }
    }

    /// Agents that are to be asked whether they live.
    pub(super) fn claimed(&self, now: Duration) -> Vec<(String, IpAddr)> {
        let inner = &mut *self.lock();
        inner.watchdog.ask_whom(&inner.cluster, now)
    }

    /// The agent of this node lives.
    pub(super) fn heard(&self, node: &str, now: Now) {
        self.lock().watchdog.heard(node, now.since_boot);
    }

    /// Compares what was said; answers with whom to ask.
    pub(super) fn compare_blocks(&self, now: Now) -> Vec<Question> {
        let mut questions = Vec::new();
        self.change(|cluster| {
            let before = cluster.agreement.differing().count();
            let mut agreement = std::mem::take(&mut cluster.agreement);
            questions = agreement.look(cluster, now);
            cluster.agreement = agreement;
            cluster.revision += u64::from(cluster.agreement.differing().count() != before);
        });
        questions
    }

    /// Takes in what two agents answered.
    pub(super) fn blocks_answered(&self, question: &Question, answer: Result<[Vec<IpNet>; 2], String>, now: Duration) {
        self.change(|cluster| {
            let mut agreement = std::mem::take(&mut cluster.agreement);
            let other = agreement.answered(cluster, question, answer, now);
            cluster.agreement = agreement;
            cluster.revision += u64::from(other);
        });
    }

    /// What has yet to be listed once, and why it is not if something is in its way; none when everything has been.
    pub(crate) fn waits_for(&self) -> Option<String> {
        let inner = self.lock();
        let nodes = &inner.cluster.nodes_sight;
        if !nodes.is_complete() {
            let why = nodes.is_lost().map_or(String::new(), |lost| format!(": {}", lost.why));
            return Some(format!("the first list of the nodes is not complete yet{why}"));
        }
        // Without permission to see Pods the report is still worth reading.
        let seen = |sight: &Sight| sight.is_complete() || sight.is_lost().is_some();
        let agents = inner.cluster.agents_sight.as_ref().is_none_or(seen);
        (!agents).then(|| "the first list of the agents' Pods is not complete yet".to_owned())
    }

    pub(super) fn lock(&self) -> MutexGuard<'_, Inner> {
        // A page that panicked while it read has broken nothing.
        self.inner.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Moves when the report is another one than before for other reasons than time.
    pub(super) fn revisions(&self) -> watch::Receiver<u64> {
        self.revision.subscribe()
    }

    /// Changes what is known, and says so if the report shows it.
    pub(super) fn change(&self, change: impl FnOnce(&mut Cluster)) {
        self.judge(|cluster, _| change(cluster));
    }

    /// The same, by what is wrong with the cluster.
    pub(super) fn judge(&self, change: impl FnOnce(&mut Cluster, &mut LastJudgement)) {
        let inner = &mut *self.lock();
        let before = inner.cluster.shown();
        change(&mut inner.cluster, &mut inner.judged);
        if inner.cluster.shown() != before {
            self.revision.send_modify(|revision| *revision += 1);
        }
    }

    pub(super) fn node_changed(&self, change: Change<NodeView>, now: Timestamp) {
        self.change(|cluster| match change {
            Change::Found => cluster.nodes_sight.found(),
            Change::ListBegins => cluster.nodes_sight.list_begins(),
            Change::Here(node) => cluster.apply_node(&node, now),
            Change::Gone(node) => cluster.remove_node(&node.metadata.name, now),
            Change::ListEnds => {
                cluster.nodes_listed(now);
                cluster.nodes_sight.list_ends();
            }
            Change::Lost(why) => cluster.nodes_sight.lost(now, why),
            Change::NotThere(_) => {}
        });
    }

    pub(super) fn agent_changed(&self, change: Change<ObjectView>, now: Timestamp) {
        self.change(|cluster| {
            let sight = cluster.agents_sight.get_or_insert_default();
            match change {
                Change::Found => sight.found(),
                Change::ListBegins => sight.list_begins(),
                Change::Here(pod) => cluster.apply_agent(&pod),
                Change::Gone(pod) => cluster.remove_agent(&pod),
                Change::ListEnds => {
                    sight.list_ends();
                    cluster.agents_listed();
                }
                Change::Lost(why) => sight.lost(now, why),
                Change::NotThere(_) => {}
            }
        });
    }

    pub(super) fn around_changed(&self, what: What, change: Change<ObjectView>, now: Timestamp) {
        self.change(|cluster| cluster.surroundings.take(what, change, now));
    }

    /// The API server answered a small request, or did not.
    pub(super) fn api_answered(&self, error: Option<String>, now: Timestamp) {
        self.change(|cluster| match error {
            None => cluster.api_sight.found(),
            Some(why) => cluster.api_sight.lost(now, why),
        });
    }
}
