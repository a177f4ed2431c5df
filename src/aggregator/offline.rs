//! The same report without an aggregator: one look at the Node objects, and at the agents' Pods where that is permitted.

use jiff::Timestamp;
use kube::Client;

use super::cluster::Cluster;
use super::model::NodeView;
use super::report::{Agents, ClusterReport, Source, build};
use super::row::Row;
use super::store::Store;
use super::{agents, nodes, now, watch};
use crate::verdict::{Now, annotation};

/// What one look at the API server showed.
pub(crate) struct Looked {
    store: Store,
    repairs: Vec<(String, String)>,
}

/// A worker, as it counts for another one.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(crate) struct Peer {
    /// Its name.
    pub(crate) name: String,
    /// Its zone.
    pub(crate) zone: Option<String>,
    /// Its worker pool.
    pub(crate) pool: Option<String>,
    /// Its kubelet says that it is Ready, and it is neither being deleted nor left over from another.
    pub(crate) ready: bool,
    /// It is cordoned.
    pub(crate) cordoned: bool,
    /// It is one of the control plane's, on which no other Pods are.
    pub(crate) control_plane: bool,
    /// The Node that is in its place, if this one is left over.
    pub(crate) twin: Option<String>,
    /// What a repair remembers there.
    pub(crate) repair: Option<String>,
}

/// Lists everything once and makes the report. A failure is the list of nodes'; agents that cannot be listed are said
/// in the report's view.
pub(crate) async fn from_node_objects(
    client: &Client,
    namespace: &str,
    only: Option<&str>,
) -> kube::Result<ClusterReport> {
    Ok(look(client, namespace).await?.report(only))
}

/// Lists the Nodes, and the agents' Pods as far as that is permitted.
pub(crate) async fn look(client: &Client, namespace: &str) -> kube::Result<Looked> {
    let store = Store::watched();
    let mut repairs = Vec::new();
    let mut sink = |change: watch::Change<NodeView>| {
        if let watch::Change::Here(node) = &change
            && let Some(repair) = node.metadata.annotations.get(annotation::REPAIR)
        {
            repairs.push((node.metadata.name.clone(), repair.to_owned()));
        }
        store.node_changed(change, Timestamp::now());
    };
    watch::list(client, &nodes(), 0, &mut sink).await?;
    let mut sink = |change| store.agent_changed(change, Timestamp::now());
    let pods = watch::list(client, &agents(namespace), 0, &mut sink).await;
    if let Err(error) = pods {
        let why = match error {
            kube::Error::Api(status) => status.message,
            other => crate::api::chain(&other),
        };
        store.agent_changed(watch::Change::Lost(why), Timestamp::now());
    }
    Ok(Looked { store, repairs })
}

impl Looked {
    /// The report, or that of one worker.
    pub(crate) fn report(&self, only: Option<&str>) -> ClusterReport {
        report_once(&self.store.lock().cluster, only, now())
    }

    /// All workers, by name.
    pub(crate) fn peers(&self) -> Vec<Peer> {
        let cluster = &self.store.lock().cluster;
        let duplicates = cluster.duplicates();
        let repair = |name: &str| self.repairs.iter().find(|(node, _)| node == name).map(|(_, repair)| repair.clone());
        let peer = |(name, row): (&str, &Row)| {
            let twin = duplicates.get(name).map(|twin| (*twin).to_owned());
            Peer {
                name: name.to_owned(),
                zone: row.zone.as_deref().map(str::to_owned),
                pool: row.pool.as_deref().map(str::to_owned),
                ready: row.is_ready() && !row.deleting && twin.is_none(),
                cordoned: row.unschedulable,
                control_plane: row.control_plane,
                twin,
                repair: repair(name),
            }
        };
        cluster.nodes().map(peer).collect()
    }
}

/// The report of what was seen in one look.
pub(crate) fn report_once(cluster: &Cluster, only: Option<&str>, now: Now) -> ClusterReport {
    build(cluster, Agents::Once, Source::NodeObjects, only, now)
}
