//! The same report without an aggregator: one look at the Node objects, and at the agents' Pods where that is permitted.

use jiff::Timestamp;
use kube::Client;

use super::cluster::Cluster;
use super::report::{Agents, ClusterReport, Source, build};
use super::store::Store;
use super::{agents, nodes, now, watch};
use crate::verdict::Now;

/// Lists everything once and makes the report. A failure is the list of nodes'; agents that cannot be listed are said
/// in the report's view.
pub(crate) async fn from_node_objects(
    client: &Client,
    namespace: &str,
    only: Option<&str>,
) -> kube::Result<ClusterReport> {
    let store = Store::watched();
    watch::list(client, &nodes(), 0, &mut |change| store.node_changed(change, Timestamp::now())).await?;
    let mut sink = |change| store.agent_changed(change, Timestamp::now());
    let pods = watch::list(client, &agents(namespace), 0, &mut sink).await;
    if let Err(error) = pods {
        let why = match error {
            kube::Error::Api(status) => status.message,
            other => crate::api::chain(&other),
        };
        store.agent_changed(watch::Change::Lost(why), Timestamp::now());
    }
    Ok(report_once(&store.lock().cluster, only, now()))
}

/// The report of what was seen in one look.
pub(crate) fn report_once(cluster: &Cluster, only: Option<&str>, now: Now) -> ClusterReport {
    build(cluster, Agents::Once, Source::NodeObjects, only, now)
}
