//! All other objects as the API server sends them: Pods, Services, EndpointSlices and those of Calico.
//!
//! One type for all of them, with every field that is read of any, so that the program holds the watch only once more.

use jiff::Timestamp;
use serde::Deserialize;
use serde::de::MapAccess;

use super::lenient::{Shape, lenient, object, read_from_an_object};
use super::model::{ConditionView, Meta, Versioned};

/// An object.
#[derive(Debug, Clone, Default, Deserialize)]
#[serde(default)]
pub(crate) struct ObjectView {
    #[serde(deserialize_with = "lenient")]
    pub(super) metadata: Meta,
    #[serde(deserialize_with = "lenient")]
    pub(super) spec: Spec,
    #[serde(deserialize_with = "lenient")]
    pub(super) status: StatusView,
    /// Of an EndpointSlice.
    #[serde(deserialize_with = "lenient")]
    pub(super) ports: Vec<PortView>,
    /// Of an EndpointSlice.
    #[serde(deserialize_with = "lenient")]
    pub(super) endpoints: Vec<EndpointView>,
}

/// What is read of a `spec`.
#[derive(Debug, Clone, Default, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub(super) struct Spec {
    /// Pod.
    #[serde(deserialize_with = "lenient")]
    pub(super) node_name: String,
    /// Pod.
    #[serde(deserialize_with = "lenient")]
    pub(super) service_account_name: String,
    /// BlockAffinity.
    #[serde(deserialize_with = "lenient")]
    pub(super) node: String,
    /// BlockAffinity, IPPool.
    #[serde(deserialize_with = "lenient")]
    pub(super) cidr: String,
    /// BlockAffinity: `confirmed`, `pending` or `pendingDeletion`.
    #[serde(deserialize_with = "lenient")]
    pub(super) state: String,
    /// BlockAffinity: the text `true` in `crd.projectcalico.org/v1`, a boolean in `projectcalico.org/v3`.
    #[serde(deserialize_with = "lenient")]
    pub(super) deleted: Flag,
    /// BlockAffinity: `host`, or `virtual` for a block of load balancer addresses. Older versions do not have it.
    #[serde(rename = "type", deserialize_with = "lenient")]
    pub(super) kind: String,
    /// IPPool.
    #[serde(deserialize_with = "lenient")]
    pub(super) ipip_mode: String,
    /// IPPool.
    #[serde(deserialize_with = "lenient")]
    pub(super) vxlan_mode: String,
    /// IPPool.
    #[serde(deserialize_with = "lenient")]
    pub(super) disabled: bool,
    /// BGPConfiguration.
    #[serde(deserialize_with = "lenient")]
    pub(super) node_to_node_mesh_enabled: Option<bool>,
    /// BGPConfiguration.
    #[serde(deserialize_with = "lenient")]
    pub(super) node_mesh_password: PasswordView,
    /// Service.
    #[serde(rename = "clusterIPs", deserialize_with = "lenient")]
    pub(super) cluster_ips: Vec<String>,
    /// Service.
    #[serde(deserialize_with = "lenient")]
    pub(super) ports: Vec<PortView>,
}

/// A switch that is written as a boolean or as its text.
#[derive(Debug, Clone, Copy, Default)]
pub(super) struct Flag(pub(super) bool);

impl Shape for Flag {
    fn of_str(text: &str) -> Option<Self> {
        Some(Flag(text == "true"))
    }

    fn of_bool(flag: bool) -> Option<Self> {
        Some(Flag(flag))
    }
}

/// `nodeMeshPassword` of a BGPConfiguration.
#[derive(Debug, Clone, Default, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub(super) struct PasswordView {
    #[serde(deserialize_with = "lenient")]
    pub(super) secret_key_ref: SecretKeyView,
}

/// Which Secret.
#[derive(Debug, Clone, Default, Deserialize)]
#[serde(default)]
pub(super) struct SecretKeyView {
    #[serde(deserialize_with = "lenient")]
    pub(super) name: String,
}

/// A port of a Service or of an EndpointSlice.
#[derive(Debug, Clone, Default, Deserialize)]
#[serde(default)]
pub(super) struct PortView {
    #[serde(deserialize_with = "lenient")]
    pub(super) name: String,
    #[serde(deserialize_with = "lenient")]
    pub(super) protocol: String,
    #[serde(deserialize_with = "lenient")]
    pub(super) port: Option<u16>,
}

/// Who serves.
#[derive(Debug, Clone, Default, Deserialize)]
#[serde(default)]
pub(super) struct EndpointView {
    #[serde(deserialize_with = "lenient")]
    pub(super) addresses: Vec<String>,
    #[serde(deserialize_with = "lenient")]
    pub(super) conditions: EndpointConditions,
}

/// Whether it does.
#[derive(Debug, Clone, Default, Deserialize)]
#[serde(default)]
pub(super) struct EndpointConditions {
    /// Not said means ready.
    #[serde(deserialize_with = "lenient")]
    pub(super) ready: Option<bool>,
}

/// What is read of a Pod's `status`.
#[derive(Debug, Clone, Default, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub(super) struct StatusView {
    #[serde(deserialize_with = "lenient")]
    pub(super) conditions: Vec<ConditionView>,
    #[serde(deserialize_with = "lenient")]
    pub(super) init_container_statuses: Vec<ContainerView>,
}

/// How a container is.
#[derive(Debug, Clone, Default, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub(super) struct ContainerView {
    #[serde(deserialize_with = "lenient")]
    pub(super) name: String,
    #[serde(deserialize_with = "lenient")]
    pub(super) state: ContainerState,
    #[serde(deserialize_with = "lenient")]
    pub(super) last_state: ContainerState,
}

/// One of the three.
#[derive(Debug, Clone, Default, Deserialize)]
#[serde(default)]
pub(super) struct ContainerState {
    #[serde(deserialize_with = "lenient")]
    pub(super) waiting: Option<Phase>,
    #[serde(deserialize_with = "lenient")]
    pub(super) terminated: Option<Phase>,
}

/// Why, and since when.
#[derive(Debug, Clone, Default, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub(super) struct Phase {
    #[serde(deserialize_with = "lenient")]
    pub(super) reason: String,
    #[serde(deserialize_with = "lenient")]
    pub(super) message: String,
    #[serde(deserialize_with = "lenient")]
    pub(super) exit_code: Option<u16>,
    #[serde(deserialize_with = "lenient")]
    pub(super) finished_at: Option<Timestamp>,
}

impl Shape for Option<Phase> {
    fn of_map<'de, A: MapAccess<'de>>(map: A) -> Result<Option<Self>, A::Error> {
        object(map).map(Some)
    }
}

read_from_an_object!(ObjectView, Spec, PasswordView, SecretKeyView, PortView, EndpointView, EndpointConditions);
read_from_an_object!(StatusView, ContainerView, ContainerState);

impl Versioned for ObjectView {
    fn version(&self) -> &str {
        &self.metadata.resource_version
    }
}
