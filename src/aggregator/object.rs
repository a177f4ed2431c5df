//! All other objects as the API server sends them: Pods, Services, EndpointSlices and those of Calico.
//!
//! One type for all of them, with every field that is read of any, so that the program holds the watch only once more. It
//! is read by way of a tree, one object at a time: a reader for each of these structs would be a large part of the program.

use jiff::Timestamp;
use serde::de::value::MapAccessDeserializer;
use serde::de::{Deserialize, Deserializer, MapAccess};
use serde_json::Value;

use super::drift::Drift;
use super::lenient::Shape;
use super::model::{APP, ConditionView, Kept, Meta, NAMESPACE_NAME, SERVICE_NAME, Versioned};
use super::webhooks::Webhook;

/// What is kept of the name of who changed something.
const LONGEST_MANAGER: usize = 64;

/// An object.
#[derive(Debug, Clone, Default)]
pub(crate) struct ObjectView {
    pub(super) metadata: Meta,
    pub(super) spec: Spec,
    pub(super) status: StatusView,
    /// Of an EndpointSlice.
    pub(super) ports: Vec<PortView>,
    /// Of an EndpointSlice.
    pub(super) endpoints: Vec<EndpointView>,
    /// Of an Event.
    pub(super) event: Option<EventView>,
    /// Of a configuration of webhooks.
    pub(super) webhooks: Vec<Webhook>,
    /// By `managedFields`, the last change of anything but its status.
    pub(super) edit: Option<EditView>,
    /// And the last by hand, of what a provider wrote.
    pub(super) drift: Option<Box<Drift>>,
    /// What a Pod belongs to: `DaemonSet guard/scanner`.
    pub(super) owner: Option<Box<str>>,
}

/// A change of an object.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct EditView {
    pub(super) at: Timestamp,
    /// The program.
    pub(super) by: String,
    /// `metadata.generation` by then; 0 where the kind has none.
    pub(super) generation: u64,
}

/// What is read of an Event.
#[derive(Debug, Clone, Default)]
pub(super) struct EventView {
    pub(super) kind: String,
    pub(super) namespace: String,
    pub(super) name: String,
    pub(super) message: String,
    /// Events of the same are counted in one.
    pub(super) last: Option<Timestamp>,
}

/// What is read of a `spec`.
#[derive(Debug, Clone, Default)]
pub(super) struct Spec {
    /// Pod.
    pub(super) node_name: String,
    /// Pod.
    pub(super) service_account_name: String,
    /// Pod of Typha: where it listens.
    pub(super) typha_port: Option<u16>,
    /// BlockAffinity.
    pub(super) node: String,
    /// BlockAffinity, IPPool.
    pub(super) cidr: String,
    /// BlockAffinity: `confirmed`, `pending` or `pendingDeletion`.
    pub(super) state: String,
    /// BlockAffinity: the text `true` in `crd.projectcalico.org/v1`, a boolean in `projectcalico.org/v3`.
    pub(super) deleted: bool,
    /// BlockAffinity: `host`, or `virtual` for a block of load balancer addresses. Older versions do not have it.
    pub(super) kind: String,
    /// IPPool.
    pub(super) ipip_mode: String,
    /// IPPool.
    pub(super) vxlan_mode: String,
    /// IPPool.
    pub(super) disabled: bool,
    /// BGPConfiguration.
    pub(super) node_to_node_mesh_enabled: Option<bool>,
    /// BGPConfiguration: the Secret with the peers' password.
    pub(super) password_secret: String,
    /// Service.
    pub(super) cluster_ips: Vec<String>,
    /// Service.
    pub(super) ports: Vec<PortView>,
    /// Deployment.
    pub(super) replicas: Option<u32>,
    /// DaemonSet: on how many nodes it may be away at once while it is updated: a number, or a share (`10%`).
    pub(super) max_unavailable: Option<Box<str>>,
    /// IPPool: the prefix length of its blocks.
    pub(super) block_size: Option<u8>,
    /// IPPool; `Manual` where only who asks for it gets an address.
    pub(super) allowed_uses: Vec<String>,
    /// IPAMConfig.
    pub(super) strict_affinity: Option<bool>,
    /// IPAMConfig.
    pub(super) most_blocks: Option<u32>,
    /// HostEndpoint.
    pub(super) expected_ips: Vec<String>,
    /// ClusterInformation.
    pub(super) datastore_ready: Option<bool>,
}

/// A port of a Service or of an EndpointSlice.
#[derive(Debug, Clone, Default)]
pub(super) struct PortView {
    pub(super) name: String,
    pub(super) protocol: String,
    pub(super) port: Option<u16>,
}

/// Who serves.
#[derive(Debug, Clone, Default)]
pub(super) struct EndpointView {
    pub(super) addresses: Vec<String>,
    /// Not said means ready.
    pub(super) ready: Option<bool>,
    /// The node that it is on, if any.
    pub(super) node: String,
    /// The Pod that it is, if it is one.
    pub(super) pod: String,
}

/// What is read of a Pod's `status`.
#[derive(Debug, Clone, Default)]
pub(super) struct StatusView {
    pub(super) conditions: Vec<ConditionView>,
    pub(super) init_container_statuses: Vec<ContainerView>,
    pub(super) phase: String,
    pub(super) container_statuses: Vec<ContainerView>,
    /// Deployment.
    pub(super) available: u32,
    /// DaemonSet: on how many nodes there should be a Pod, there is one, and it is up to date.
    pub(super) scheduled: [u32; 3],
}

/// How a container is.
#[derive(Debug, Clone, Default)]
pub(super) struct ContainerView {
    pub(super) name: String,
    pub(super) image: String,
    pub(super) restarts: u32,
    pub(super) state: ContainerState,
    pub(super) last_state: ContainerState,
}

/// One of the three.
#[derive(Debug, Clone, Default)]
pub(super) struct ContainerState {
    pub(super) waiting: Option<Phase>,
    pub(super) terminated: Option<Phase>,
}

/// Why, and since when.
#[derive(Debug, Clone, Default)]
pub(super) struct Phase {
    pub(super) reason: String,
    pub(super) message: String,
    pub(super) exit_code: Option<u16>,
    pub(super) finished_at: Option<Timestamp>,
}

impl Versioned for ObjectView {
    fn version(&self) -> &str {
        &self.metadata.resource_version
    }
}

impl<'de> Deserialize<'de> for ObjectView {
    fn deserialize<D: Deserializer<'de>>(input: D) -> Result<Self, D::Error> {
        Value::deserialize(input).map(|tree| ObjectView::read(&tree))
    }
}

impl Shape for ObjectView {
    fn of_map<'de, A: MapAccess<'de>>(map: A) -> Result<Option<Self>, A::Error> {
        ObjectView::deserialize(MapAccessDeserializer::new(map)).map(Some)
    }
}

impl ObjectView {
    /// What has the wrong shape costs itself: indexing a tree beside what it holds gives null.
    fn read(tree: &Value) -> Self {
        let (meta, spec, status) = (&tree["metadata"], &tree["spec"], &tree["status"]);
        ObjectView {
            metadata: Meta {
                name: text(&meta["name"]),
                namespace: text(&meta["namespace"]),
                resource_version: text(&meta["resourceVersion"]),
                creation_timestamp: time(&meta["creationTimestamp"]),
                deletion_timestamp: time(&meta["deletionTimestamp"]),
                labels: Kept(labels(&meta["labels"])),
                annotations: Kept::default(),
            },
            spec: specified(spec),
            status: StatusView {
                conditions: each(&status["conditions"], condition),
                init_container_statuses: each(&status["initContainerStatuses"], container),
                phase: text(&status["phase"]),
                container_statuses: each(&status["containerStatuses"], container),
                available: count(&status["availableReplicas"]).unwrap_or_default(),
                scheduled: ["desiredNumberScheduled", "currentNumberScheduled", "updatedNumberScheduled"]
                    .map(|key| count(&status[key]).unwrap_or_default()),
            },
            ports: each(&tree["ports"], port),
            endpoints: each(&tree["endpoints"], |tree| EndpointView {
                addresses: each(&tree["addresses"], text),
                ready: tree["conditions"]["ready"].as_bool(),
                node: text(&tree["nodeName"]),
                pod: text(&tree["targetRef"]["name"]),
            }),
            webhooks: each(&tree["webhooks"], Webhook::read),
            edit: edit(meta),
            drift: Drift::read(meta),
            owner: owner(meta),
            event: tree.get("involvedObject").map(|about| EventView {
                kind: text(&about["kind"]),
                namespace: text(&about["namespace"]),
                name: text(&about["name"]),
                message: text(&tree["message"]),
                last: [&tree["series"]["lastObservedTime"], &tree["lastTimestamp"], &tree["eventTime"]]
                    .into_iter()
                    .find_map(time),
            }),
        }
    }
}

fn specified(spec: &Value) -> Spec {
    let manual = spec["assignmentMode"] == "Manual";
    Spec {
        node_name: text(&spec["nodeName"]),
        service_account_name: text(&spec["serviceAccountName"]),
        typha_port: typha_port(&spec["containers"]),
        node: text(&spec["node"]),
        cidr: text(&spec["cidr"]),
        state: text(&spec["state"]),
        deleted: spec["deleted"] == "true" || spec["deleted"] == true,
        kind: text(&spec["type"]),
        ipip_mode: text(&spec["ipipMode"]),
        vxlan_mode: text(&spec["vxlanMode"]),
        disabled: spec["disabled"] == true,
        node_to_node_mesh_enabled: spec["nodeToNodeMeshEnabled"].as_bool(),
        password_secret: text(&spec["nodeMeshPassword"]["secretKeyRef"]["name"]),
        cluster_ips: each(&spec["clusterIPs"], text),
        ports: each(&spec["ports"], port),
        replicas: count(&spec["replicas"]),
        max_unavailable: match &spec["updateStrategy"]["rollingUpdate"]["maxUnavailable"] {
            Value::String(share) => Some(share.as_str().into()),
            Value::Number(number) => Some(number.to_string().into()),
            _ => None,
        },
        block_size: count(&spec["blockSize"]).and_then(|size| size.try_into().ok()),
        allowed_uses: if manual { vec!["Manual".to_owned()] } else { each(&spec["allowedUses"], text) },
        strict_affinity: spec["strictAffinity"].as_bool(),
        most_blocks: count(&spec["maxBlocksPerHost"]),
        expected_ips: each(&spec["expectedIPs"], text),
        datastore_ready: spec["datastoreReady"].as_bool(),
    }
}

/// As Calico's manifests and its operator name it.
fn typha_port(containers: &Value) -> Option<u16> {
    let ports = containers.as_array()?.iter().filter_map(|container| container["ports"].as_array()).flatten();
    ports.filter(|port| port["name"] == "calico-typha").find_map(|port| number(&port["containerPort"]))
}

/// The DaemonSet, Deployment or StatefulSet that a Pod is of.
fn owner(meta: &Value) -> Option<Box<str>> {
    let owners = meta["ownerReferences"].as_array()?;
    let owner = owners.iter().find(|owner| owner["controller"] == true)?;
    let name = owner["name"].as_str()?;
    let (kind, name) = match owner["kind"].as_str()? {
        // A Deployment's ReplicaSet has its name, and the hash that its Pods carry.
        "ReplicaSet" => {
            ("Deployment", name.strip_suffix(meta["labels"]["pod-template-hash"].as_str()?)?.strip_suffix('-')?)
        }
        kind @ ("DaemonSet" | "StatefulSet") => (kind, name),
        _ => return None,
    };
    Some(format!("{kind} {}/{name}", text(&meta["namespace"])).into())
}

/// Those that are read. Of a namespace all of them: webhooks choose by any.
fn labels(tree: &Value) -> Vec<(String, String)> {
    let all = tree.as_object().into_iter().flatten();
    let namespace = tree.get(NAMESPACE_NAME).is_some();
    let kept = all.filter(|(key, _)| namespace || [SERVICE_NAME, APP].contains(&key.as_str()));
    kept.filter_map(|(key, value)| Some((key.clone(), value.as_str()?.to_owned()))).collect()
}

fn edit(meta: &Value) -> Option<EditView> {
    let entries = meta["managedFields"].as_array().into_iter().flatten();
    let edits = entries.filter(|entry| entry["subresource"] != "status");
    let (at, entry) = edits.filter_map(|entry| Some((time(&entry["time"])?, entry))).max_by_key(|(at, _)| *at)?;
    let generation = meta["generation"].as_u64().unwrap_or_default();
    Some(EditView { at, by: text(&entry["manager"]).chars().take(LONGEST_MANAGER).collect(), generation })
}

pub(super) fn text(tree: &Value) -> String {
    tree.as_str().unwrap_or_default().to_owned()
}

pub(super) fn time(tree: &Value) -> Option<Timestamp> {
    tree.as_str()?.parse().ok()
}

fn number(tree: &Value) -> Option<u16> {
    tree.as_u64().and_then(|number| number.try_into().ok())
}

fn count(tree: &Value) -> Option<u32> {
    tree.as_u64().and_then(|number| number.try_into().ok())
}

pub(super) fn each<T>(tree: &Value, read: fn(&Value) -> T) -> Vec<T> {
    tree.as_array().into_iter().flatten().map(read).collect()
}

fn port(tree: &Value) -> PortView {
    PortView { name: text(&tree["name"]), protocol: text(&tree["protocol"]), port: number(&tree["port"]) }
}

fn condition(tree: &Value) -> ConditionView {
    ConditionView {
        kind: text(&tree["type"]),
        status: text(&tree["status"]),
        last_transition_time: time(&tree["lastTransitionTime"]),
        ..ConditionView::default()
    }
}

fn container(tree: &Value) -> ContainerView {
    ContainerView {
        name: text(&tree["name"]),
        image: text(&tree["image"]),
        restarts: count(&tree["restartCount"]).unwrap_or_default(),
        state: state(&tree["state"]),
        last_state: state(&tree["lastState"]),
    }
}

fn state(tree: &Value) -> ContainerState {
    ContainerState { waiting: phase(&tree["waiting"]), terminated: phase(&tree["terminated"]) }
}

fn phase(tree: &Value) -> Option<Phase> {
    tree.is_object().then(|| Phase {
        reason: text(&tree["reason"]),
        message: text(&tree["message"]),
        exit_code: number(&tree["exitCode"]),
        finished_at: time(&tree["finishedAt"]),
    })
}
