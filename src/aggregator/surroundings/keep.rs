//! What is kept of one object: what is read, and nothing else.

use std::net::IpAddr;
use std::sync::Arc;

use ipnet::IpNet;

use super::What;
use crate::aggregator::drift::Drift;
use crate::aggregator::model::SERVICE_NAME;
use crate::aggregator::object::{ObjectView, PortView};
use crate::aggregator::pods::{App, CalicoPod};
use crate::aggregator::small::{Name, Texts, Time};
use crate::aggregator::webhooks::{Namespace, Webhooks};
use crate::aggregator::workloads::{FailedCreate, Workload};
use crate::facts::{ClusterService, ClusterServicePort, Encapsulation, Pool};

/// Ports of one Service, and endpoints of one port in one EndpointSlice, that are kept: the API server allows 1000 there.
const MOST_ENDPOINTS: usize = 1000;
/// Addresses of one host endpoint that are kept.
const MOST_ADDRESSES: usize = 16;

/// What is kept of one object.
#[derive(Debug, Clone, PartialEq)]
pub(super) enum Kept {
    Affinity(Box<Affinity>),
    Pool(Box<AddressPool>),
    Bgp(Box<(Bgp, Option<Box<Drift>>)>),
    Service(Box<ClusterService>),
    /// By the name of its Service, without that one's addresses.
    Slice(Box<ClusterService>),
    Pod(Box<CalicoPod>),
    Workload(Box<Workload>),
    FailedCreate(Box<FailedCreate>),
    Webhooks(Box<Webhooks>),
    Namespace(Box<Namespace>),
    HostEndpoint(Box<HostEndpoint>),
    /// Calico's datastore is locked since then.
    Locked(Time),
    /// Of this it is only known that somebody changed it by hand.
    Drift(Box<Drift>),
}

/// There are some of each node: what is large is behind a pointer.
const _: () = assert!(size_of::<Kept>() <= 16);

/// A block of Pod addresses.
#[derive(Debug, Clone, PartialEq)]
pub(super) struct Affinity {
    pub(super) node: Arc<str>,
    pub(super) block: IpNet,
}

/// A pool of addresses.
#[derive(Debug, Clone, PartialEq)]
pub(crate) struct AddressPool {
    /// As nodes are told of it.
    pub(crate) pool: Pool,
    /// Prefix length of its blocks.
    block: u8,
    /// Pods get addresses of it by themselves.
    pub(crate) for_pods: bool,
    pub(super) drift: Option<Box<Drift>>,
}

impl AddressPool {
    /// How many blocks it can be divided into.
    pub(crate) fn blocks(&self) -> u64 {
        let bits = self.block.saturating_sub(self.pool.cidr.prefix_len()).min(40);
        1 << bits
    }

    /// How many addresses each of them has.
    pub(crate) fn addresses_of_a_block(&self) -> u64 {
        1 << self.pool.cidr.max_prefix_len().saturating_sub(self.block).min(16)
    }
}

/// A host endpoint.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct HostEndpoint {
    /// Its name.
    pub(crate) name: Name,
    /// Its node.
    pub(crate) node: Arc<str>,
    /// What it expects the node's addresses to be; nothing where it goes by an interface.
    pub(crate) addresses: Box<[IpAddr]>,
    /// When somebody wrote it last.
    pub(super) edited: Time,
}

/// The BGPConfiguration `default`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Bgp {
    /// Every node peers with every other.
    pub(crate) full_mesh: bool,
    /// The Secret that holds the peers' password.
    pub(crate) secret: Option<Box<str>>,
}

pub(super) fn lead_to(service: &mut ClusterService, slice: &ClusterService) {
    for port in &mut service.ports {
        let same = |other: &&ClusterServicePort| other.name == port.name && other.protocol == port.protocol;
        for endpoint in slice.ports.iter().filter(same).flat_map(|port| &port.endpoints) {
            if port.endpoints.len() < MOST_ENDPOINTS && !port.endpoints.contains(endpoint) {
                port.endpoints.push(*endpoint);
            }
        }
        port.endpoints.sort_unstable();
    }
}

/// What is worth keeping of an object. What is damaged is left out, and costs no other.
pub(super) fn keep(what: What, object: &ObjectView, texts: &mut Texts) -> Option<Kept> {
    let (meta, spec) = (&object.metadata, &object.spec);
    match what {
        What::Affinities => {
            let confirmed = spec.state == "confirmed" && !spec.deleted && meta.deletion_timestamp.is_none();
            // Blocks of load balancer addresses are on no node, whatever their `node` says.
            let of_a_node = matches!(spec.kind.as_str(), "" | "host") && !spec.node.is_empty();
            let block = spec.cidr.parse().ok()?;
            (confirmed && of_a_node).then(|| Kept::Affinity(Box::new(Affinity { node: texts.get(&spec.node), block })))
        }
        What::Pools => pool(object),
        What::HostEndpoints => host_endpoint(object, texts),
        What::ClusterInformation => {
            let changed = object.edit.as_ref().map(|edit| edit.at).or(meta.creation_timestamp);
            changed.filter(|_| spec.datastore_ready == Some(false)).map(|at| Kept::Locked(at.into()))
        }
        What::Bgp => {
            let secret = &spec.password_secret;
            (meta.name == "default").then(|| {
                let bgp = Bgp {
                    full_mesh: spec.node_to_node_mesh_enabled.unwrap_or(true),
                    secret: (!secret.is_empty()).then(|| secret.as_str().into()),
                };
                Kept::Bgp(Box::new((bgp, object.drift.clone())))
            })
        }
        What::ApiService | What::DnsServices => Some(Kept::Service(Box::new(ClusterService {
            namespace: meta.namespace.clone(),
            name: meta.name.clone(),
            cluster_ips: spec.cluster_ips.iter().filter_map(|ip| ip.parse().ok()).collect(),
            ports: ports(&spec.ports, &[]),
        }))),
        What::ApiSlices | What::DnsSlices => {
            let ready = object.endpoints.iter().filter(|endpoint| endpoint.ready.unwrap_or(true));
            // All addresses of one endpoint lead to the same Pod; which is used is not said, the first by agreement.
            let addresses = ready.filter_map(|endpoint| endpoint.addresses.first()?.parse().ok());
            let addresses: Vec<IpAddr> = addresses.take(MOST_ENDPOINTS).collect();
            Some(Kept::Slice(Box::new(ClusterService {
                namespace: meta.namespace.clone(),
                name: meta.labels.get(SERVICE_NAME)?.to_owned(),
                cluster_ips: Vec::new(),
                ports: ports(&object.ports, &addresses),
            })))
        }
        What::CalicoPods => CalicoPod::read(object, App::Node, texts).map(|pod| Kept::Pod(Box::new(pod))),
        What::VpnPods => CalicoPod::read(object, App::Tunnel, texts).map(|pod| Kept::Pod(Box::new(pod))),
        What::DaemonSets | What::SystemDeployments | What::CalicoDeployments => {
            Workload::read(object).map(|workload| Kept::Workload(Box::new(workload)))
        }
        What::FailedCreates => FailedCreate::read(object).map(|failed| Kept::FailedCreate(Box::new(failed))),
        What::Validating | What::Mutating => Webhooks::read(object).map(|webhooks| Kept::Webhooks(Box::new(webhooks))),
        What::Namespaces => Namespace::read(object).map(|namespace| Kept::Namespace(Box::new(namespace))),
        What::Felix | What::Peers | What::Installations => object.drift.clone().map(Kept::Drift),
        What::IpamConfigs | What::GlobalPolicies | What::CalicoPolicies | What::Policies => None,
    }
}

fn pool(object: &ObjectView) -> Option<Kept> {
    let (meta, spec) = (&object.metadata, &object.spec);
    let pool = Pool {
        name: meta.name.clone(),
        cidr: spec.cidr.parse().ok()?,
        ipip: encapsulation(&spec.ipip_mode),
        vxlan: encapsulation(&spec.vxlan_mode),
        disabled: spec.disabled,
    };
    let usual = if matches!(pool.cidr, IpNet::V4(_)) { 26 } else { 122 };
    let uses = &spec.allowed_uses;
    let for_pods = !pool.disabled && (uses.is_empty() || uses.iter().any(|of| of == "Workload"));
    let block = spec.block_size.unwrap_or(usual);
    Some(Kept::Pool(Box::new(AddressPool { pool, block, for_pods, drift: object.drift.clone() })))
}

fn host_endpoint(object: &ObjectView, texts: &mut Texts) -> Option<Kept> {
    let (meta, spec) = (&object.metadata, &object.spec);
    (!spec.node.is_empty()).then(|| {
        let addresses = spec.expected_ips.iter().filter_map(|ip| ip.parse().ok());
        Kept::HostEndpoint(Box::new(HostEndpoint {
            name: Name::new(&meta.namespace, &meta.name),
            node: texts.get(&spec.node),
            addresses: addresses.take(MOST_ADDRESSES).collect(),
            edited: object.edit.as_ref().map(|edit| edit.at).into(),
        }))
    })
}

fn encapsulation(mode: &str) -> Encapsulation {
    match mode {
        "Always" => Encapsulation::Always,
        "CrossSubnet" => Encapsulation::CrossSubnet,
        _ => Encapsulation::Never,
    }
}

fn ports(views: &[PortView], addresses: &[IpAddr]) -> Vec<ClusterServicePort> {
    let ports = views.iter().take(MOST_ENDPOINTS).filter_map(|view| {
        let port = view.port?;
        let protocol = if view.protocol.is_empty() { "TCP" } else { &view.protocol };
        Some(ClusterServicePort {
            name: view.name.clone(),
            protocol: protocol.to_owned(),
            port,
            endpoints: addresses.iter().map(|address| (*address, port)).collect(),
        })
    });
    ports.collect()
}
