//! What was seen on one node: plain data, no I/O, no judgement.
//!
//! Every field that comes from an outside source is a [`Seen`], so that "there is none" and "could not look" stay
//! apart all the way to the report. The rooms that fill these in are private inside [`crate::agent`].

mod cluster;
mod cni;
mod host;
mod kubelet;
mod netfilter;
mod presence;
mod route_memory;
mod routes;
mod routing;
mod runtime;
mod seen;
mod snapshot;
mod trend;

pub use cluster::{ClusterMap, ClusterNode, ClusterService, ClusterServicePort, Encapsulation, Pool};
pub use cni::{Binary, Cni, CniConfig, CniFault, CniFile, CniPlugin};
pub use host::{Conntrack, Filesystem, Forwarding, Memory, Role, Space};
pub use kubelet::{ControlPlanePath, EvictionThresholds, Health, HttpAnswer, Kubelet, Quantity};
pub use netfilter::{Backend, BaseChain, Chain, Hook, Jump, Policy, Ruleset, Table};
pub use presence::{CalicoDataplane, Expected, ProxyMode, Remembered};
pub(crate) use presence::{is_calico_chain, is_kube_proxy_chain};
pub use route_memory::{FirstLook, RouteMemory};
pub(crate) use routes::{Flow, longest};
pub use routes::{IpsecPolicy, RouteList, Rule, RuleAction, TableRoute};
pub use routing::{
    Address, Family, Link, Neighbour, NeighbourState, PodRoute, Route, RouteAnswer, RouteKind, Routing, protocol_name,
};
pub use runtime::{Condition as RuntimeCondition, Runtime, RuntimeStatus, Sandbox};
pub use seen::{LookError, Reason, Seen};
pub use snapshot::{Identity, Process, Processes, Program, Snapshot};
pub use trend::Trend;
