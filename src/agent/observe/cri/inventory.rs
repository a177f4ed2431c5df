//! What the runtime has in all: counted now and then, for those who look for what is left behind.

use std::collections::{HashMap, HashSet};
use std::sync::Arc;
use std::time::Instant;

use super::connection::Connection;
use super::{CONTAINERS, CriSource, digest, image_hosts, messages};
use crate::facts::{Seen, Snapshots};

/// What the runtime has, by digests of names: thousands of them fit into little memory.
#[derive(Debug, Clone, Default)]
pub(in super::super) struct Inventory {
    /// The pods of all sandboxes, in whatever state, by sandbox.
    pub(in super::super) sandboxes: HashMap<u64, u64>,
    /// Sandboxes that are not ready.
    pub(in super::super) not_ready: u64,
    /// Sandboxes that use the node's network for certain.
    pub(in super::super) on_host_network: u64,
    /// The sandboxes of containers that have ended.
    pub(in super::super) exited: Vec<u64>,
    /// Snapshots that nobody owns; absent as long as they were not asked for.
    pub(in super::super) snapshots: Seen<Snapshots>,
}

impl Inventory {
    /// Whether some sandbox is this pod's.
    pub(in super::super) fn has_pod(&self, pod: u64) -> bool {
        self.sandboxes.values().any(|of| *of == pod)
    }
}

impl CriSource {
    /// What the runtime had when it was last counted; none when it did not answer since.
    pub(in super::super) fn inventory(&self) -> Option<Arc<Inventory>> {
        self.inventory.as_ref().and_then(|(_, inventory)| inventory.clone())
    }

    /// Counts what the runtime has.
    pub(super) async fn count(&mut self, connection: &Connection, items: &[messages::PodSandbox]) {
        let filter = messages::ContainerFilter {
            state: Some(messages::State { state: messages::EXITED }),
            pod_sandbox_id: String::new(),
        };
        // With the images all containers are asked for, and those that have ended are among them.
        let all = self.image_hosts_are_due();
        let request = messages::ListContainersRequest { filter: (!all).then_some(filter) };
        self.used_images = None;
        let exited = match connection.call::<_, messages::ListContainersResponse>(CONTAINERS, request).await {
            Ok(messages::ListContainersResponse { mut containers }) => {
                self.used_images = all.then(|| image_hosts::used(&containers));
                containers.retain(|container| container.state == messages::EXITED);
                containers
            }
            Err(error) => {
                tracing::debug!(%error, "containers that have ended are not told");
                self.inventory = Some((Instant::now(), None));
                return;
            }
        };
        let with_containers: HashSet<u64> = exited.iter().map(|container| digest(&container.pod_sandbox_id)).collect();
        let sandboxes = items.iter().map(|item| {
            let id = digest(&item.id);
            let pod = item.metadata.as_ref().map(|pod| format!("{}/{}", pod.namespace, pod.name)).unwrap_or_default();
            (id, item.state == messages::READY || with_containers.contains(&id), pod)
        });
        self.attempts.count(crate::clock::since_boot(), sandboxes);
        let uid = |item: &messages::PodSandbox| item.metadata.as_ref().map_or(0, |metadata| digest(&metadata.uid));
        let on_host_network = self.networks.values().filter(|network| network.host == Some(true)).count();
        let inventory = Inventory {
            sandboxes: items.iter().map(|item| (digest(&item.id), uid(item))).collect(),
            not_ready: items.iter().filter(|item| item.state != messages::READY).count() as u64,
            on_host_network: on_host_network as u64,
            exited: exited.iter().map(|container| digest(&container.pod_sandbox_id)).collect(),
            snapshots: self.snapshots.as_ref().map(|(_, seen)| seen.clone()).unwrap_or_default(),
        };
        self.inventory = Some((Instant::now(), Some(Arc::new(inventory))));
    }
}
