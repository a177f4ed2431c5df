//! What was seen on one node: plain data, no I/O, no judgement.
//!
//! Every field that comes from an outside source is a [`Seen`], so that "there is none" and "could not look" stay
//! apart all the way to the report. The rooms that fill these in are private inside [`crate::agent`].

mod bgp;
mod block_sums;
mod changes;
mod cluster;
mod cluster_dns;
mod cni;
mod debris;
mod files;
mod host;
mod ipset;
mod kernel_log;
mod kubelet;
mod learned;
mod memory;
mod netfilter;
mod past;
mod path;
mod pod_ranges;
mod presence;
mod registry;
mod replay;
mod route_memory;
mod routes;
mod routing;
mod runtime;
mod seen;
mod snapshot;
mod static_pods;
mod strain;
mod time;
mod traffic;
mod trend;
mod writes;
mod xtables_lock;

pub use bgp::{Bgp, BgpPeer, BgpState, BgpTcp, Bird, BirdDaemon, KernelProtocol, TunnelPeer};
pub(crate) use block_sums::{BlockSums, PARTS, is_block, part_of};
pub use changes::{Commit, PacketFilterChanges, Piece, Removal};
pub use cluster::{ClusterMap, ClusterNode, ClusterService, ClusterServicePort, Encapsulation, Pool};
pub use cluster_dns::{ClusterDns, DnsService, DnsWay};
pub use cni::{Binary, Cni, CniConfig, CniFault, CniFile, CniKubeconfig, CniPlugin};
pub use debris::{Debris, Growing, Resource, Snapshots};
pub use files::FileFault;
pub use host::{CONNTRACK_LASTS, Conntrack, Filesystem, Forwarding, Role, Space};
pub use ipset::IpSet;
pub use kernel_log::{KernelEvent, KernelFault, KernelLog};
pub use kubelet::{CapacitySettings, EvictionThresholds, Health, HttpAnswer, Kubelet, KubeletCertificate, Quantity};
pub use learned::{Learned, Memo};
pub use memory::{Memory, OomKill, OomScope, PodCgroup, PodScan, PodsMemory, Stall};
pub(crate) use netfilter::rounded;
pub use netfilter::{
    Action, Backend, BaseChain, Chain, FilterRule, Hook, Is, Jump, Policy, Ruleset, ServiceChain, Table, VirtualServer,
};
pub use past::{End, FormerBoot, FormerMachine, Machine, Past};
pub use path::{ControlPlanePath, FaultKind, KernelClock, PathEnd, PathFault, PathLeg, PathStep, PeerAnswer};
pub(crate) use pod_ranges::Way;
pub(crate) use presence::{BPF_DEVICE, IPVS_DEVICE, is_calico_chain, is_canary, is_kube_proxy_chain, rulesets};
pub use presence::{CalicoDataplane, Expected, ProxyMode, Remembered, Starts};
pub use registry::Registry;
pub(crate) use replay::{Reader, Replay, replay};
pub use route_memory::{FirstLook, RouteMemory};
pub(crate) use routes::{Flow, longest};
pub use routes::{IpsecPolicy, RouteList, Rule, RuleAction, TableRoute};
pub(crate) use routing::WIREGUARD;
pub use routing::{
    Address, Family, Link, Neighbour, NeighbourState, PodRoute, Route, RouteAnswer, RouteKind, Routing, protocol_name,
};
pub use runtime::{
    CallLatency, Condition as RuntimeCondition, HungProcess, Runtime, RuntimeStatus, Sandbox, SandboxFailures,
};
pub use seen::{LookError, Reason, Seen};
pub use snapshot::{Identity, Process, Processes, Program, Snapshot};
pub use static_pods::{Ignored, Manifest, StaticContainer, StaticContainers, StaticPod};
pub use strain::{Cpus, Files, InotifyRoom, InotifyUsers, Strain, Tasks};
pub(crate) use time::{utc, utc_in_names, whole_seconds};
pub use traffic::{
    CARRIER_MINUTES, Destination, LinkCounters, LinkSwitches, MINUTES, NeighbourTable, Sockets, Traffic,
};
pub use trend::{Growth, Trend};
pub use writes::{KubeletCondition, KubeletSaid, Writes};
pub use xtables_lock::{LockUser, XtablesLock};
