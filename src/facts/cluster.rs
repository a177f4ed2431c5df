//! What a node cannot know by itself: the other nodes, their blocks of pod addresses, the pools, and where the two
//! Services that everything needs lead to. The aggregator watches these and every agent asks it for them.

use std::net::IpAddr;

use ipnet::IpNet;
use jiff::Timestamp;
use serde::{Deserialize, Serialize};

/// What the cluster says.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct ClusterMap {
    /// Name of the Node object that is this node.
    pub own: String,
    /// Every node, this one too.
    pub nodes: Vec<ClusterNode>,
    /// Calico's IPPools; empty without Calico.
    #[serde(default)]
    pub pools: Vec<Pool>,
    /// Whether every node peers with every other (`BGPConfiguration.spec.nodeToNodeMeshEnabled`); none where that is not
    /// known or BGP is not used.
    #[serde(default)]
    pub full_mesh: Option<bool>,
    /// `default/kubernetes` and the cluster's DNS, as far as they could be read.
    #[serde(default)]
    pub services: Vec<ClusterService>,
    /// The port of Typha, where its Pods do not have the usual one.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub typha_port: Option<u16>,
}

/// One node as the API server knows it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct ClusterNode {
    /// Its name.
    pub name: String,
    /// Whether its condition Ready is True.
    pub ready: bool,
    /// `metadata.creationTimestamp`.
    #[serde(default)]
    pub created_at: Option<Timestamp>,
    /// Addresses that other nodes reach it at: `InternalIP`, and what Calico announces
    /// (`projectcalico.org/IPv4Address`, `IPv6Address`).
    pub addresses: Vec<IpAddr>,
    /// Addresses of its ends of tunnels (`projectcalico.org/IPv4VXLANTunnelAddr`, `IPv4IPIPTunnelAddr`, ...).
    #[serde(default)]
    pub tunnels: Vec<IpAddr>,
    /// Blocks of pod addresses that are its own: confirmed BlockAffinities with Calico's IPAM, else `spec.podCIDRs`.
    #[serde(default)]
    pub blocks: Vec<IpNet>,
}

/// When packets between nodes are put into a tunnel (`ipipMode`, `vxlanMode` of an IPPool).
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub enum Encapsulation {
    /// Never.
    #[default]
    Never,
    /// Only between nodes whose addresses are in different subnets.
    CrossSubnet,
    /// Always.
    Always,
}

/// One IPPool (`crd.projectcalico.org/v1`).
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Pool {
    /// Its name.
    pub name: String,
    /// `spec.cidr`.
    pub cidr: IpNet,
    /// `spec.ipipMode`.
    #[serde(default)]
    pub ipip: Encapsulation,
    /// `spec.vxlanMode`.
    #[serde(default)]
    pub vxlan: Encapsulation,
    /// `spec.disabled`.
    #[serde(default)]
    pub disabled: bool,
}

/// A Service and where it leads.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct ClusterService {
    /// Namespace.
    pub namespace: String,
    /// Name.
    pub name: String,
    /// `spec.clusterIPs`.
    pub cluster_ips: Vec<IpAddr>,
    /// Its ports.
    pub ports: Vec<ClusterServicePort>,
}

/// One port of a Service.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct ClusterServicePort {
    /// Its name; empty for the only one.
    #[serde(default)]
    pub name: String,
    /// `TCP`, `UDP` or `SCTP`.
    pub protocol: String,
    /// `port`.
    pub port: u16,
    /// Ready endpoints of its EndpointSlices: address and port.
    pub endpoints: Vec<(IpAddr, u16)>,
}

impl ClusterMap {
    /// This node.
    pub fn this(&self) -> Option<&ClusterNode> {
        self.nodes.iter().find(|node| node.name == self.own)
    }

    /// All other nodes.
    pub fn others(&self) -> impl Iterator<Item = &ClusterNode> {
        self.nodes.iter().filter(|node| node.name != self.own)
    }
}
