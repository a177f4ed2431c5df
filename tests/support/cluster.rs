//! A control plane with workers.

use std::{ops::Deref, path::Path, thread, time::Duration};

use anyhow::{Context, Result};

use super::{
    control_plane::{ControlPlane, Parts},
    node::{Node, NodeOptions},
};

/// How long a node may take to become Ready on a busy machine.
const READY: Duration = Duration::from_secs(90);

/// A Kubernetes cluster in network namespaces. It is a [`ControlPlane`].
pub struct Cluster {
    // Dropped in this order: the control plane's directory holds the nodes' files.
    nodes: Vec<Joined>,
    control_plane: ControlPlane,
}

struct Joined {
    node: Node,
    pod_range: String,
}

impl Deref for Cluster {
    type Target = ControlPlane;

    fn deref(&self) -> &ControlPlane {
        &self.control_plane
    }
}

impl Cluster {
    /// A cluster without nodes.
    pub fn start() -> Result<Self> {
        Ok(Self { nodes: Vec::new(), control_plane: ControlPlane::start(Parts::Controllers)? })
    }

    /// Adds a node and waits until it is Ready.
    pub fn add_node(&mut self, name: &str, options: NodeOptions) -> Result<&Node> {
        self.add_nodes(vec![(name, options)])?;
        self.node(name)
    }

    /// Adds nodes side by side, which is quicker than one by one, and waits until all are Ready.
    pub fn add_nodes(&mut self, nodes: Vec<(&str, NodeOptions)>) -> Result<()> {
        let mut started = Vec::new();
        for (index, (name, options)) in (self.nodes.len() + 1..).zip(nodes) {
            let index = u8::try_from(index).context("too many nodes")?;
            started.push(Node::start_on(&self.control_plane, name, index, options)?);
        }
        for node in started {
            let pod_range = node.wait_for_pod_range(&self.control_plane)?;
            node.write_cni_config(&pod_range)?;
            self.join(Joined { node, pod_range })?;
        }
        for Joined { node, .. } in &self.nodes {
            node.wait_until_ready(&self.control_plane, READY)?;
        }
        Ok(())
    }

    /// Routes between the pods of a node and everyone else.
    fn join(&mut self, new: Joined) -> Result<()> {
        let to_new = ["ip", "route", "add", &new.pod_range, "via", new.node.address()];
        self.control_plane.exec_in_ns(&to_new)?;
        for other in &self.nodes {
            other.node.read(&to_new)?;
            new.node.read(&["ip", "route", "add", &other.pod_range, "via", other.node.address()])?;
        }
        self.nodes.push(new);
        Ok(())
    }

    pub fn node(&self, name: &str) -> Result<&Node> {
        self.nodes().find(|node| node.name() == name).with_context(|| format!("there is no node {name}"))
    }

    pub fn nodes(&self) -> impl Iterator<Item = &Node> {
        self.nodes.iter().map(|joined| &joined.node)
    }

    /// Gives an image to every node.
    pub fn import_image(&self, archive: &Path) -> Result<()> {
        thread::scope(|scope| {
            let imports: Vec<_> = self.nodes().map(|node| scope.spawn(|| node.import_image(archive))).collect();
            imports.into_iter().try_for_each(|import| import.join().expect("an import does not panic"))
        })
    }
}
