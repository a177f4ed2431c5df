//! Nodes as the API server sends them: only the fields that are read.

use jiff::Timestamp;
use serde::Deserialize;
use serde::de::MapAccess;

use super::lenient::{Shape, lenient, object, read_from_an_object};
use crate::verdict::ANNOTATION_PREFIX;

/// Labels that name the worker pool; the first that a node has counts.
pub(super) const POOL_LABELS: [&str; 8] = [
    REFILLED,
    "eks.amazonaws.com/nodegroup",
    "cloud.google.com/gke-nodepool",
    "agentpool",
    "kubernetes.azure.com/agentpool",
    "alpha.eksctl.io/nodegroup-name",
    "karpenter.sh/nodepool",
    "node.kubernetes.io/pool",
];
/// The first of them is of a provider whose pools put a new worker in the place of one that is replaced or updated, unless
/// that was switched off unknowingly.
pub(super) const REFILLED: &str = "ibm-cloud.kubernetes.io/worker-pool-name";
/// Labels that name the zone; the first that a node has counts.
pub(super) const ZONE_LABELS: [&str; 2] = ["topology.kubernetes.io/zone", "failure-domain.beta.kubernetes.io/zone"];
/// Labels that name the subnet or VLAN; without one, the network of the address that Calico announces.
pub(super) const SUBNET_LABELS: [&str; 2] = [VPC, "privateVLAN"];
/// The first of them is of workers in a VPC.
pub(super) const VPC: &str = "ibm-cloud.kubernetes.io/subnet-id";
/// Label that names the kind of machine.
pub(super) const MACHINE_TYPE: &str = "node.kubernetes.io/instance-type";
/// Label of a node while Calico moves from kube-system to calico-system.
pub(super) const MIGRATION: &str = "projectcalico.org/operator-node-migration";
/// What is read of `status.nodeInfo`.
const NODE_INFO: [&str; 8] = [
    "architecture",
    "bootID",
    "containerRuntimeVersion",
    "kernelVersion",
    "kubeletVersion",
    "machineID",
    "osImage",
    "systemUUID",
];
/// What the annotations begin with in which Calico keeps a node's addresses.
pub(super) const CALICO_ADDRESSES: &str = "projectcalico.org/IPv";
/// Label of an EndpointSlice: the Service that it is of.
pub(super) const SERVICE_NAME: &str = "kubernetes.io/service-name";
/// Label of every namespace: its own name.
pub(super) const NAMESPACE_NAME: &str = "kubernetes.io/metadata.name";
/// Label that names what a Pod of the system is of.
pub(super) const APP: &str = "k8s-app";

/// An object of which a watch needs to know the version.
pub(crate) trait Versioned {
    /// `metadata.resourceVersion`, empty if it has none.
    fn version(&self) -> &str;
}

/// A Node.
#[derive(Debug, Clone, Default, Deserialize)]
#[serde(default)]
pub(crate) struct NodeView {
    #[serde(deserialize_with = "lenient")]
    pub(super) metadata: Meta,
    #[serde(deserialize_with = "lenient")]
    pub(super) spec: NodeSpec,
    #[serde(deserialize_with = "lenient")]
    pub(super) status: NodeStatus,
}

/// `metadata`.
#[derive(Debug, Clone, Default, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub(super) struct Meta {
    #[serde(deserialize_with = "lenient")]
    pub(super) name: String,
    #[serde(deserialize_with = "lenient")]
    pub(super) namespace: String,
    #[serde(deserialize_with = "lenient")]
    pub(super) resource_version: String,
    #[serde(deserialize_with = "lenient")]
    pub(super) creation_timestamp: Option<Timestamp>,
    #[serde(deserialize_with = "lenient")]
    pub(super) deletion_timestamp: Option<Timestamp>,
    #[serde(deserialize_with = "lenient")]
    pub(super) labels: Kept,
    #[serde(deserialize_with = "lenient")]
    pub(super) annotations: Kept,
}

/// Labels or annotations: those that are read, and no others.
#[derive(Debug, Clone, Default)]
pub(super) struct Kept(pub(super) Vec<(String, String)>);

/// What is read of a Node's `spec`.
#[derive(Debug, Clone, Default, Deserialize)]
#[serde(default)]
pub(super) struct NodeSpec {
    #[serde(deserialize_with = "lenient")]
    pub(super) unschedulable: bool,
    #[serde(rename = "podCIDRs", deserialize_with = "lenient")]
    pub(super) pod_cidrs: Vec<String>,
    #[serde(deserialize_with = "lenient")]
    pub(super) taints: Vec<TaintView>,
}

/// A taint of a Node.
#[derive(Debug, Clone, Default, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub(super) struct TaintView {
    #[serde(deserialize_with = "lenient")]
    pub(super) key: String,
    #[serde(deserialize_with = "lenient")]
    pub(super) time_added: Option<Timestamp>,
}

/// What is read of a Node's `status`.
#[derive(Debug, Clone, Default, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub(super) struct NodeStatus {
    #[serde(deserialize_with = "lenient")]
    pub(super) conditions: Vec<ConditionView>,
    #[serde(deserialize_with = "lenient")]
    pub(super) addresses: Vec<AddressView>,
    #[serde(deserialize_with = "lenient")]
    pub(super) node_info: Kept,
}

/// An address of a Node.
#[derive(Debug, Clone, Default, Deserialize)]
#[serde(default)]
pub(super) struct AddressView {
    #[serde(rename = "type", deserialize_with = "lenient")]
    pub(super) kind: String,
    #[serde(deserialize_with = "lenient")]
    pub(super) address: String,
}

/// A condition.
#[derive(Debug, Clone, Default, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub(super) struct ConditionView {
    #[serde(rename = "type", deserialize_with = "lenient")]
    pub(super) kind: String,
    #[serde(deserialize_with = "lenient")]
    pub(super) status: String,
    #[serde(deserialize_with = "lenient")]
    pub(super) reason: String,
    #[serde(deserialize_with = "lenient")]
    pub(super) message: String,
    #[serde(deserialize_with = "lenient")]
    pub(super) last_transition_time: Option<Timestamp>,
}

read_from_an_object!(NodeView, Meta, NodeSpec, NodeStatus, AddressView, ConditionView, TaintView);

impl Shape for Kept {
    fn of_map<'de, A: MapAccess<'de>>(mut map: A) -> Result<Option<Self>, A::Error> {
        let mut kept = Vec::new();
        while let Some(key) = map.next_key::<String>()? {
            if wanted(&key) {
                kept.extend(map.next_value::<Value>()?.0.map(|value| (key, value)));
            } else {
                map.next_value::<serde::de::IgnoredAny>()?;
            }
        }
        Ok(Some(Kept(kept)))
    }
}

/// The value of a label or annotation: nothing when it is not a string.
struct Value(Option<String>);

impl<'de> Deserialize<'de> for Value {
    fn deserialize<D: serde::Deserializer<'de>>(input: D) -> Result<Self, D::Error> {
        let text: String = lenient(input)?;
        Ok(Value((!text.is_empty()).then_some(text)))
    }
}

fn wanted(key: &str) -> bool {
    key.starts_with(ANNOTATION_PREFIX)
        || key.starts_with(CALICO_ADDRESSES)
        || POOL_LABELS.contains(&key)
        || ZONE_LABELS.contains(&key)
        || SUBNET_LABELS.contains(&key)
        || NODE_INFO.contains(&key)
        || key == MACHINE_TYPE
        || key == MIGRATION
}

impl Kept {
    /// The value of this key.
    pub(super) fn get(&self, key: &str) -> Option<&str> {
        self.0.iter().find(|(name, _)| name == key).map(|(_, value)| value.as_str())
    }

    /// The value of the first of these keys that is there.
    pub(super) fn first_of(&self, keys: &[&str]) -> Option<&str> {
        keys.iter().find_map(|key| self.get(key))
    }
}

impl NodeSpec {
    /// The taint of this key.
    pub(super) fn taint(&self, key: &str) -> Option<&TaintView> {
        self.taints.iter().find(|taint| taint.key == key)
    }
}

impl Versioned for NodeView {
    fn version(&self) -> &str {
        &self.metadata.resource_version
    }
}

/// One page of a list.
#[derive(Debug, Deserialize)]
#[serde(bound(deserialize = "T: Shape"))]
pub(super) struct ListPage<T: Shape> {
    #[serde(default)]
    pub(super) metadata: ListMeta,
    #[serde(default = "Vec::new", deserialize_with = "lenient")]
    pub(super) items: Vec<T>,
}

/// `metadata` of a list.
#[derive(Debug, Default, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub(super) struct ListMeta {
    #[serde(rename = "continue", deserialize_with = "lenient")]
    pub(super) next: String,
    #[serde(deserialize_with = "lenient")]
    pub(super) resource_version: String,
}

/// The fuzz target's door.
#[cfg(any(test, fuzzing))]
pub(crate) fn fuzz(data: &[u8]) {
    use super::cluster::Cluster;
    let Some((which, json)) = data.split_first() else { return };
    let mut cluster = Cluster::watched();
    match which % 3 {
        0 => {
            let Ok(node) = serde_json::from_slice::<NodeView>(json) else { return };
            cluster.apply_node(&node, Timestamp::UNIX_EPOCH);
            for (_, row) in cluster.nodes() {
                let _ = (row.told(), row.marked_stale(), row.settling(), row.kubelet_silent());
                row.conditions.iter().for_each(|condition| drop(condition.to_node_condition()));
            }
            cluster.nodes_listed(Timestamp::UNIX_EPOCH);
            cluster.remove_node(&node.metadata.name, Timestamp::UNIX_EPOCH);
        }
        1 => {
            let Ok(page) = serde_json::from_slice::<ListPage<super::object::ObjectView>>(json) else { return };
            page.items.iter().for_each(|pod| cluster.apply_agent(pod));
            page.items.iter().for_each(|pod| cluster.remove_agent(pod));
            assert!(page.items.iter().all(|pod| cluster.agents_on(&pod.spec.node_name).is_empty()));
        }
        _ => drop(serde_json::from_slice::<ListPage<NodeView>>(json)),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::aggregator::object::ObjectView;

    #[test]
    fn only_what_is_read_is_kept() {
        let node: NodeView = serde_json::from_str(
            r#"{"kind":"Node","metadata":{"name":"n1","resourceVersion":"7","labels":{"a":"b","agentpool":"blue","topology.kubernetes.io/zone":"z1"},
               "annotations":{"kubectl.kubernetes.io/last-applied-configuration":"{}","nodevitals.dev/state":"Normal"},"managedFields":[{"x":{}}]},
               "spec":{"unschedulable":true,"podCIDRs":["10.0.0.0/24"]},
               "status":{"images":[{"names":["a"]}],"conditions":[{"type":"Ready","status":"True","lastTransitionTime":"2026-11-21T10:00:00Z"}]}}"#,
        )
        .expect("a node");
        assert_eq!(node.metadata.labels.0.len(), 2);
        assert_eq!(node.metadata.labels.first_of(&POOL_LABELS), Some("blue"));
        assert_eq!(node.metadata.annotations.get("nodevitals.dev/state"), Some("Normal"));
        assert!(node.spec.unschedulable);
        assert_eq!(node.status.conditions.len(), 1);
        assert!(node.status.conditions[0].last_transition_time.is_some());
    }

    #[test]
    fn wrong_shapes_cost_themselves() {
        let node: NodeView = serde_json::from_str(
            r#"{"metadata":{"name":"n1","resourceVersion":7,"creationTimestamp":"yesterday","labels":["a"],"annotations":{"nodevitals.dev/state":{"a":1},"nodevitals.dev/since":null,"nodevitals.dev/x":"y"}},
               "spec":[],"status":{"conditions":[7,null,"x",[1,[2]],{"type":{"a":[]},"status":"True"},{"type":"Ready","status":true,"reason":4.5,"lastTransitionTime":-1}]}}"#,
        )
        .expect("a node all the same");
        assert_eq!(node.metadata.name, "n1");
        assert_eq!(node.metadata.resource_version, "");
        assert_eq!(node.metadata.annotations.0.len(), 1);
        let kinds: Vec<_> = node.status.conditions.iter().map(|condition| condition.kind.as_str()).collect();
        assert_eq!(kinds, ["", "Ready"]);
        let page: ListPage<ObjectView> =
            serde_json::from_str(r#"{"metadata":{"continue":"c"},"items":[1,{"metadata":{"name":"p"}},null]}"#)
                .expect("a list");
        assert_eq!((page.items.len(), page.metadata.next.as_str()), (1, "c"));
        let page: ListPage<ObjectView> = serde_json::from_str(r#"{"items":null}"#).expect("a list");
        assert!(page.items.is_empty());
    }
}
