//! How Calico's Pod addresses are given out: blocks by pool and by node, counted from the IPAMBlocks.
//!
//! A block is written anew for each Pod that comes or goes and has some 13 KB when it is full, so that they are not watched:
//! they are read in pages now and then, the more seldom the more there are, and only sums are kept.

mod block;
mod leaks;

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use ipnet::IpNet;
use jiff::Timestamp;
use kube::Client;

use super::lenient::Shape;
use super::looked::{Look, Unread};
use super::object::ObjectView;
use super::store::Store;
use super::surroundings::What;
use super::watch::{Change, Kind, list};
use crate::clock::since_boot;
use block::{BlockObject, BlockView};
pub(crate) use leaks::{Leaked, Leaks};

/// Whether it is time is found out this often.
const TICK: Duration = Duration::from_secs(5);
/// They are read again after this time for each block, but not more often than the first and not more seldom than the second.
const EACH: Duration = Duration::from_millis(60);
const AGAIN: (Duration, Duration) = (Duration::from_secs(60), Duration::from_secs(900));
/// Where Pods fail for want of a network, after this time.
const SOON: Duration = Duration::from_secs(20);
/// Blocks that one node may have where nothing is said.
const USUAL_BLOCKS: u32 = 20;
/// Nodes that are not there and have addresses all the same, of which each is known.
const MOST_GONE: usize = 1000;

/// How addresses are given out.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(crate) struct Ipam {
    /// When it was read.
    pub(crate) at: Timestamp,
    /// A node takes addresses of its own blocks only.
    pub(crate) strict: bool,
    /// How many blocks a node may have.
    pub(crate) most_blocks: u32,
    /// Of each pool that blocks are of.
    pub(crate) pools: BTreeMap<IpNet, Given>,
    /// Of each node that has blocks, for IPv4 and IPv6.
    pub(crate) nodes: BTreeMap<Arc<str>, [Given; 2]>,
    /// What is held by nodes that are not there.
    pub(crate) gone: BTreeMap<Box<str>, Left>,
    /// Addresses of Pods that are not there, of nodes that are.
    pub(crate) leaked: Leaks,
}

/// Blocks and addresses.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(crate) struct Given {
    /// Blocks.
    pub(crate) blocks: u32,
    /// Addresses in them that are taken.
    pub(crate) used: u64,
    /// Addresses in them that are free.
    pub(crate) free: u64,
}

/// What is left of a node that is gone.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Left {
    /// Blocks.
    pub(crate) blocks: u32,
    /// Addresses that are taken.
    pub(crate) addresses: u32,
    /// Since when this is seen.
    pub(crate) since: Timestamp,
}

impl Ipam {
    /// Counts one block, of a node by the name that `there` has for it. Of nodes that are not there it is remembered apart.
    fn count(&mut self, block: &BlockView, pools: &[IpNet], there: impl Fn(&str) -> Option<Arc<str>>, now: Timestamp) {
        if let Some(pool) = pools.iter().find(|pool| pool.contains(&block.cidr)) {
            self.pools.entry(*pool).or_default().add(block);
        }
        if let Some(node) = &block.node {
            if let Some(node) = there(node) {
                self.nodes.entry(node).or_default()[family(&block.cidr)].add(block);
            } else {
                self.left(node, now, 1, 0);
            }
        }
        for (node, addresses) in block.holders.iter().filter(|(node, _)| there(node).is_none()) {
            self.left(node, now, 0, *addresses);
        }
    }

    fn left(&mut self, node: &str, since: Timestamp, blocks: u32, addresses: u32) {
        if self.gone.len() < MOST_GONE || self.gone.contains_key(node) {
            let left = self.gone.entry(node.into()).or_insert(Left { blocks: 0, addresses: 0, since });
            (left.blocks, left.addresses) = (left.blocks + blocks, left.addresses + addresses);
        }
    }

    /// What is still as it was when it was read before is so since then.
    pub(super) fn goes_on_from(&mut self, before: &Ipam) {
        for (node, left) in &mut self.gone {
            if let Some(known) = before.gone.get(node) {
                left.since = left.since.min(known.since);
            }
        }
    }

    /// Blocks that there are.
    fn blocks(&self) -> u32 {
        let gone: u32 = self.gone.values().map(|left| left.blocks).sum();
        gone + self.nodes.values().flatten().map(|given| given.blocks).sum::<u32>()
    }
}

impl Given {
    fn add(&mut self, block: &BlockView) {
        self.blocks += 1;
        self.used += u64::from(block.used);
        self.free += u64::from(block.free);
    }
}

/// 0 for IPv4, 1 for IPv6.
pub(crate) fn family(cidr: &IpNet) -> usize {
    usize::from(matches!(cidr, IpNet::V6(_)))
}

/// Reads for ever.
pub(super) async fn run(client: &Client, store: &Store) -> std::convert::Infallible {
    let (mut at, mut failed, mut rounds): (Option<Duration>, _, _) = (None, false, leaks::Rounds::default());
    loop {
        tokio::time::sleep(TICK).await;
        let (pools, before, cleanup) = {
            let inner = &mut *store.lock();
            let around = &inner.cluster.surroundings;
            // Without Calico's pools there is no Calico, and without the Nodes all would seem to be gone.
            let seen = around.is_seen(What::Pools);
            let pools: Vec<IpNet> = around.pools().iter().map(|pool| pool.cidr).collect();
            if around.is_missing(What::Pools) || (seen && pools.is_empty()) {
                // A look that failed while there was a Calico is made good by none.
                inner.cluster.looked(Look::Blocks, None, Timestamp::now());
                inner.cluster.ipam = None;
                continue;
            }
            if !seen || !inner.cluster.nodes_sight.is_clear() {
                continue;
            }
            let wanting = inner.cluster.nodes().any(|(_, row)| row.has("PodSandboxFailing"));
            let least = if wanting || failed { SOON } else { AGAIN.0 };
            let blocks = inner.cluster.ipam.as_ref().map_or(0, Ipam::blocks);
            let again = EACH.saturating_mul(blocks).clamp(least, AGAIN.1);
            if pools.is_empty() || at.is_some_and(|at| since_boot().saturating_sub(at) < again) {
                continue;
            }
            (pools, inner.cluster.ipam.clone(), inner.cluster.limits().cleanup())
        };
        let cleanup = Duration::from_secs(cleanup.unsigned_abs());
        rounds.begin(before.as_ref(), cleanup, since_boot());
        let read = read(client, store, &pools, &mut rounds).await;
        at = Some(since_boot());
        // What is denied is not asked for any sooner.
        failed = matches!(read, Err(Unread::Failed(_)));
        let (read, error) = match read {
            Ok(mut ipam) => {
                if let Some(before) = &before {
                    ipam.goes_on_from(before);
                }
                rounds.end(client, before.as_ref(), &mut ipam).await;
                (Some(ipam), None)
            }
            // What was known before no longer counts.
            Err(Unread::Denied) => (None, Some(Unread::Denied.to_string())),
            // For a short time it is as it was.
            Err(Unread::Failed(why)) => (before, Some(why)),
        };
        store.change(|cluster| {
            let same = match (&mut cluster.ipam, &read) {
                (Some(before), Some(read)) => {
                    before.at = read.at;
                    *before == *read
                }
                (before, read) => before.is_none() && read.is_none(),
            };
            cluster.revision += u64::from(!same);
            cluster.ipam = read;
            cluster.looked(Look::Blocks, error, Timestamp::now());
        });
    }
}

async fn read(client: &Client, store: &Store, pools: &[IpNet], rounds: &mut leaks::Rounds) -> Result<Ipam, Unread> {
    let now = Timestamp::now();
    let mut ipam = Ipam { at: now, most_blocks: USUAL_BLOCKS, ..Ipam::default() };
    each(client, "ipamconfigs", &mut |object: ObjectView| {
        let said = &object.spec;
        ipam.strict = said.strict_affinity.unwrap_or(ipam.strict);
        ipam.most_blocks = said.most_blocks.filter(|most| *most > 0).unwrap_or(ipam.most_blocks);
    })
    .await?;
    each(client, "ipamblocks", &mut |BlockObject(block)| {
        if let Some(block) = &block {
            let inner = store.lock();
            ipam.count(block, pools, |node| inner.cluster.shared_name(node), now);
            rounds.take(block);
        }
    })
    .await?;
    // Nodes of a tree that grows stay half empty.
    ipam.nodes = std::mem::take(&mut ipam.nodes).into_iter().collect();
    Ok(ipam)
}

/// Reads all objects of one of Calico's kinds in pages, wherever they are.
async fn each<T: Shape>(client: &Client, name: &'static str, take: &mut dyn FnMut(T)) -> Result<(), Unread> {
    let kind = Kind::of_calico(name);
    for at in 0..kind.paths.len() {
        let sink = &mut |change| {
            if let Change::Here(object) = change {
                take(object);
            }
        };
        match list(client, &kind, at, sink).await {
            Ok(_) => return Ok(()),
            Err(kube::Error::Api(status)) if status.code == 404 => {}
            Err(error) => {
                let why = Unread::from(error);
                tracing::debug!(name, error = %why, "cannot read how addresses are given out");
                return Err(why);
            }
        }
    }
    // Calico makes none of these before it needs one.
    Ok(())
}

#[cfg(test)]
mod tests;
