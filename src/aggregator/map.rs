//! The map of the cluster, for the agents: what a node cannot know by itself. Made anew only when something has changed
//! and somebody asks, and never more often than its size allows.

use std::hash::{DefaultHasher, Hasher};
use std::time::Duration;

use bytes::Bytes;

use super::cluster::Cluster;
use super::surroundings::What;
use crate::facts::{ClusterMap, ClusterNode};

/// How long a map counts as new, for each node on it: all agents fetch a new one, so that what is sent grows with the
/// square of the nodes.
const NEW_PER_NODE: Duration = Duration::from_millis(10);
/// A map that is larger is not sent: no agent would read it.
const LARGEST: usize = 8 << 20;

/// The last map that was made.
#[derive(Debug, Default)]
pub(super) struct LastMap {
    made: Option<Made>,
}

#[derive(Debug)]
struct Made {
    generation: u64,
    at: Duration,
    nodes: u32,
    written: Written,
}

/// A map as it is sent.
#[derive(Debug, Clone)]
pub(super) struct Written {
    /// The same for the same map, whoever made it: the agents ask now one replica, now another.
    pub(super) etag: String,
    /// JSON after the member `own`.
    pub(super) rest: Bytes,
}

impl LastMap {
    /// The map of the cluster as of now, or why there is none.
    pub(super) fn get(&mut self, cluster: &Cluster, now: Duration) -> Result<Written, &'static str> {
        if !cluster.nodes_sight.is_complete() || !cluster.surroundings.is_complete() {
            return Err("the first list is not complete yet\n");
        }
        let generation = cluster.surroundings.generation();
        if let Some(made) = &self.made {
            let young = now.saturating_sub(made.at) < NEW_PER_NODE.saturating_mul(made.nodes);
            if made.generation == generation || young {
                return Ok(made.written.clone());
            }
        }
        let map = build(cluster);
        let written = write(&map)?;
        let nodes = u32::try_from(map.nodes.len()).unwrap_or(u32::MAX);
        self.made = Some(Made { generation, at: now, nodes, written: written.clone() });
        Ok(written)
    }
}

fn write(map: &ClusterMap) -> Result<Written, &'static str> {
    let json = serde_json::to_vec(map).map_err(|_| "the map cannot be written as JSON\n")?;
    // The first member is the name of who asks, and is put there for each.
    let rest = json.strip_prefix(br#"{"own":"","#).ok_or("the map begins otherwise than it should\n")?;
    if rest.len() > LARGEST {
        return Err("the map is larger than 8 MiB\n");
    }
    // Without keys of its own this hash is the same in every process.
    let mut hash = DefaultHasher::new();
    hash.write(rest);
    Ok(Written { etag: format!("\"{:016x}\"", hash.finish()), rest: Bytes::copy_from_slice(rest) })
}

/// The map, for nobody in particular.
fn build(cluster: &Cluster) -> ClusterMap {
    let around = &cluster.surroundings;
    let mut blocks = around.blocks();
    // Where Calico hands out blocks, the ranges that Kubernetes sets aside for each node are not used.
    let by_kubernetes = blocks.is_empty() && !around.is_denied(What::Affinities);
    let nodes = cluster.nodes().map(|(name, row)| {
        let mut own = blocks.remove(name).unwrap_or_default();
        if by_kubernetes {
            own = row.pod_cidrs.to_vec();
        }
        own.sort_unstable();
        own.dedup();
        ClusterNode {
            name: name.to_owned(),
            ready: row.is_ready(),
            created_at: row.created.get(),
            addresses: row.addresses.to_vec(),
            tunnels: row.tunnels.to_vec(),
            blocks: own,
        }
    });
    ClusterMap {
        own: String::new(),
        nodes: nodes.collect(),
        pools: around.pools(),
        full_mesh: around.bgp().map(|bgp| bgp.full_mesh),
        services: around.services(),
        typha_port: around.typha_port(),
    }
}

#[cfg(test)]
mod tests;
