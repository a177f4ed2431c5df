//! What was seen on one node: plain data, no I/O, no judgement.
//!
//! Every field that comes from an outside source is a [`Seen`], so that "there is none" and "could not look" stay
//! apart all the way to the report. The rooms that fill these in are private inside [`crate::agent`].

mod changes;
mod cluster;
mod cni;
mod host;
mod ipset;
mod kubelet;
mod netfilter;
mod presence;
mod routing;
mod runtime;
mod seen;
mod snapshot;
mod trend;
mod xtables_lock;

pub use changes::{Commit, PacketFilterChanges, Piece, Removal};
pub use cluster::{ClusterMap, ClusterNode, ClusterService, ClusterServicePort, Encapsulation, Pool};
pub use cni::{Binary, Cni, CniConfig, CniFault, CniFile, CniPlugin};
pub use host::{Conntrack, Filesystem, Forwarding, Memory, Role, Space};
pub use ipset::IpSet;
pub use kubelet::{ControlPlanePath, EvictionThresholds, Health, HttpAnswer, Kubelet, Quantity};
pub(crate) use netfilter::rounded;
pub use netfilter::{
    Action, Backend, BaseChain, Chain, FilterRule, Hook, Is, Jump, Policy, Ruleset, ServiceChain, Table,
};
pub use presence::{CalicoDataplane, Expected, ProxyMode, Remembered};
pub(crate) use presence::{is_calico_chain, is_kube_proxy_chain, rulesets};
pub use routing::{
    Address, Family, Link, Neighbour, NeighbourState, PodRoute, Route, RouteAnswer, RouteKind, Routing, Rule,
    protocol_name,
};
pub use runtime::{Condition as RuntimeCondition, Runtime, RuntimeStatus, Sandbox};
pub use seen::{LookError, Reason, Seen};
pub use snapshot::{Identity, Process, Processes, Program, Snapshot};
pub use trend::Trend;
pub use xtables_lock::{LockUser, XtablesLock};
