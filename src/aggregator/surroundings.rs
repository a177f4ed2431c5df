//! What is around the nodes: Calico's objects, the two Services that everything needs, and the Pods of calico-node.
//! Pruned to what is read: the objects themselves are not kept.

use std::collections::BTreeMap;
use std::net::IpAddr;

use ipnet::IpNet;
use jiff::Timestamp;

use super::journal::Journal;
use super::model::SERVICE_NAME;
use super::object::{ObjectView, PortView};
use super::pods::{App, CalicoPod};
use super::sight::Sight;
use super::watch::{Change, Kind, NotThere};
use super::workloads::{FailedCreate, Workload, is_system};
use crate::facts::{ClusterService, ClusterServicePort, Encapsulation, Pool};

/// Ports of one Service, and endpoints of one port in one EndpointSlice, that are kept: the API server allows 1000 there.
const MOST_ENDPOINTS: usize = 1000;
/// `labelSelector=k8s-app in (...)`, escaped.
const APPS: &str =
    "labelSelector=k8s-app%20in%20%28calico-node%2Ccalico-kube-controllers%2Ccalico-typha%2Ckonnectivity-agent%29";
/// Nodes of which it is remembered since when they have no calico-node, and nodes that are gone.
const MOST_REMEMBERED: usize = 5_000;

/// What is looked at.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum What {
    /// Which node has which block of Pod addresses.
    Affinities,
    /// Calico's pools of Pod addresses.
    Pools,
    /// How the nodes peer.
    Bgp,
    /// The Service `default/kubernetes`.
    ApiService,
    /// And where it leads.
    ApiSlices,
    /// The Services of the cluster's DNS.
    DnsServices,
    /// And where they lead.
    DnsSlices,
    /// The Pods of Calico, and of the tunnel from the control plane.
    CalicoPods,
    /// The DaemonSets of the system.
    DaemonSets,
    /// Calico's Deployments in kube-system.
    SystemDeployments,
    /// And in calico-system.
    CalicoDeployments,
    /// Pods of the system that could not be made.
    FailedCreates,
    /// Felix's configuration. Of this and what follows only when it changed, and who did it.
    Felix,
    /// Peers of BGP.
    Peers,
    /// Calico's policies.
    GlobalPolicies,
    /// And those of namespaces.
    CalicoPolicies,
    /// Kubernetes' own.
    Policies,
    /// What the Tigera operator is told.
    Installations,
    /// Webhooks that refuse.
    Validating,
    /// Webhooks that change.
    Mutating,
}

impl What {
    /// All of it.
    pub(crate) const ALL: [What; 20] = [
        What::Affinities,
        What::Pools,
        What::Bgp,
        What::ApiService,
        What::ApiSlices,
        What::DnsServices,
        What::DnsSlices,
        What::CalicoPods,
        What::DaemonSets,
        What::SystemDeployments,
        What::CalicoDeployments,
        What::FailedCreates,
        What::Felix,
        What::Peers,
        What::GlobalPolicies,
        What::CalicoPolicies,
        What::Policies,
        What::Installations,
        What::Validating,
        What::Mutating,
    ];

    /// Whether the map of the cluster says something of it.
    fn is_on_the_map(self) -> bool {
        self < What::CalicoPods
    }

    /// What its changes are written down as, if they are.
    fn journaled(self) -> Option<&'static str> {
        Some(match self {
            What::Pools => "IPPool",
            What::Bgp => "BGPConfiguration",
            What::DaemonSets => "DaemonSet",
            What::Felix => "FelixConfiguration",
            What::Peers => "BGPPeer",
            What::GlobalPolicies => "GlobalNetworkPolicy",
            What::CalicoPolicies => "NetworkPolicy (Calico)",
            What::Policies => "NetworkPolicy",
            What::Installations => "Installation",
            What::Validating => "ValidatingWebhookConfiguration",
            What::Mutating => "MutatingWebhookConfiguration",
            _ => return None,
        })
    }

    /// How it is asked for.
    pub(super) fn kind(self) -> Kind {
        let (name, path, selector) = match self {
            // Calico keeps its objects in the first group, or since 3.32 in the second where it was installed so.
            What::Affinities => ("blockaffinities", "", ""),
            What::Pools => ("ippools", "", ""),
            What::Bgp => ("bgpconfigurations", "", "fieldSelector=metadata.name%3Ddefault"),
            What::ApiService => {
                ("services", "/api/v1/namespaces/default/services", "fieldSelector=metadata.name%3Dkubernetes")
            }
            What::ApiSlices => (
                "endpointslices",
                "/apis/discovery.k8s.io/v1/namespaces/default/endpointslices",
                "fieldSelector=metadata.name%3Dkubernetes",
            ),
            What::DnsServices => {
                ("services", "/api/v1/namespaces/kube-system/services", "labelSelector=k8s-app%3Dkube-dns")
            }
            // An EndpointSlice carries its Service's labels.
            What::DnsSlices => (
                "endpointslices",
                "/apis/discovery.k8s.io/v1/namespaces/kube-system/endpointslices",
                "labelSelector=k8s-app%3Dkube-dns",
            ),
            What::CalicoPods => ("pods", "/api/v1/pods", APPS),
            What::DaemonSets => ("daemonsets", "/apis/apps/v1/daemonsets", ""),
            What::SystemDeployments => ("deployments", "/apis/apps/v1/namespaces/kube-system/deployments", ""),
            What::CalicoDeployments => ("deployments", "/apis/apps/v1/namespaces/calico-system/deployments", ""),
            What::Felix => ("felixconfigurations", "", ""),
            What::Peers => ("bgppeers", "", ""),
            What::GlobalPolicies => ("globalnetworkpolicies", "", ""),
            What::CalicoPolicies => ("networkpolicies", "", ""),
            What::Policies => ("networkpolicies", "/apis/networking.k8s.io/v1/networkpolicies", ""),
            What::Installations => ("installations", "/apis/operator.tigera.io/v1/installations", ""),
            What::Validating => (
                "validatingwebhookconfigurations",
                "/apis/admissionregistration.k8s.io/v1/validatingwebhookconfigurations",
                "",
            ),
            What::Mutating => (
                "mutatingwebhookconfigurations",
                "/apis/admissionregistration.k8s.io/v1/mutatingwebhookconfigurations",
                "",
            ),
            What::FailedCreates => ("events", "/api/v1/events", "fieldSelector=reason%3DFailedCreate"),
        };
        let paths = match path {
            "" => vec![format!("/apis/crd.projectcalico.org/v1/{name}"), format!("/apis/projectcalico.org/v3/{name}")],
            path => vec![path.to_owned()],
        };
        Kind { name, paths, selector, optional: true, metadata_only: self >= What::Felix }
    }
}

/// What is kept of one object.
#[derive(Debug, Clone, PartialEq)]
enum Kept {
    Affinity {
        node: Box<str>,
        block: IpNet,
    },
    Pool(Box<Pool>),
    Bgp(Bgp),
    Service(Box<ClusterService>),
    /// By the name of its Service, without that one's addresses.
    Slice(Box<ClusterService>),
    Pod(Box<CalicoPod>),
    Workload(Box<Workload>),
    FailedCreate(Box<FailedCreate>),
}

/// The BGPConfiguration `default`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Bgp {
    /// Every node peers with every other.
    pub(crate) full_mesh: bool,
    /// The Secret that holds the peers' password.
    pub(crate) secret: Option<Box<str>>,
}

/// How one kind is seen.
#[derive(Debug, Default)]
struct KindSight {
    sight: Sight,
    not_there: Option<NotThere>,
}

/// Everything around the nodes.
#[derive(Debug, Default)]
pub(crate) struct Surroundings {
    objects: BTreeMap<(What, Box<str>), (u32, Kept)>,
    sights: BTreeMap<What, KindSight>,
    generation: u64,
    /// What changed.
    pub(crate) journal: Journal,
    /// Since when there is no calico-node on a node that had one.
    bereft: BTreeMap<Box<str>, Timestamp>,
    /// When the Deployment calico-kube-controllers went, if it was seen before.
    pub(crate) controllers_gone: Option<Timestamp>,
    /// Since when each kind has been seen completely.
    complete_since: BTreeMap<What, Timestamp>,
}

impl Surroundings {
    /// Something is different on the map.
    pub(super) fn changed(&mut self) {
        self.generation += 1;
    }

    /// Grows with every change of the map.
    pub(super) fn generation(&self) -> u64 {
        self.generation
    }

    /// Whether each kind that the map is made of was listed once, or is known not to be there.
    pub(super) fn is_complete(&self) -> bool {
        let known = |sight: &KindSight| sight.not_there.is_some() || sight.sight.is_complete();
        What::ALL.iter().filter(|what| what.is_on_the_map()).all(|what| self.sights.get(what).is_some_and(known))
    }

    /// Whether a kind could be looked at.
    pub(super) fn is_seen(&self, what: What) -> bool {
        self.sights.get(&what).is_some_and(|sight| sight.not_there.is_none() && sight.sight.is_complete())
    }

    /// Whether a kind must not be looked at.
    pub(super) fn is_denied(&self, what: What) -> bool {
        self.sights.get(&what).is_some_and(|sight| sight.not_there == Some(NotThere::Denied))
    }

    /// How often the watches had to be taken up again, by kind.
    pub(super) fn restarts(&self) -> impl Iterator<Item = (&'static str, u64)> {
        self.sights.iter().map(|(what, sight)| (what.kind().name, sight.sight.restarts))
    }

    /// Takes in what has happened to a kind.
    pub(super) fn take(&mut self, what: What, change: Change<ObjectView>, now: Timestamp) {
        let seen = self.sights.entry(what).or_default();
        match change {
            Change::Found => {
                seen.sight.found();
                seen.not_there = None;
            }
            Change::ListBegins => seen.sight.list_begins(),
            Change::Here(object) => {
                let list = seen.sight.list();
                if let Some(kind) = what.journaled()
                    && (what != What::DaemonSets || is_system(&object.metadata.namespace))
                {
                    self.journal.seen(kind, &object);
                }
                match keep(what, &object) {
                    Some(kept) => self.put(what, &object, (list, kept), now),
                    None => self.remove(what, &object, now),
                }
            }
            Change::Gone(object) => {
                if let Some(kind) = what.journaled()
                    && (what != What::DaemonSets || is_system(&object.metadata.namespace))
                {
                    self.journal.gone(kind, &object, now);
                }
                self.remove(what, &object, now);
            }
            Change::ListEnds => {
                let list = seen.sight.list();
                seen.sight.list_ends();
                self.complete_since.entry(what).or_insert(now);
                self.retain(what, |known| known == list);
                // That there is nothing is news as well, the first time.
                self.changed();
            }
            Change::Lost(why) => seen.sight.lost(now, why),
            Change::NotThere(how) => {
                seen.sight.found();
                seen.sight.forgotten();
                seen.not_there = Some(how);
                self.complete_since.remove(&what);
                self.retain(what, |_| false);
                self.changed();
            }
        }
    }

    fn put(&mut self, what: What, object: &ObjectView, mut kept: (u32, Kept), now: Timestamp) {
        let key = key(what, object);
        let before = self.objects.get(&key);
        if let Kept::Pod(pod) = &mut kept.1 {
            if let Some((_, Kept::Pod(before))) = before {
                pod.goes_on_from(before, now);
            }
            if pod.app == App::Node {
                self.bereft.remove(&pod.node);
            }
        }
        let news = before.is_none_or(|old| old.1 != kept.1);
        self.objects.insert(key, kept);
        if news && what.is_on_the_map() {
            self.changed();
        }
    }

    fn remove(&mut self, what: What, object: &ObjectView, now: Timestamp) {
        let Some((_, gone)) = self.objects.remove(&key(what, object)) else { return };
        if let Kept::Pod(pod) = gone
            && pod.app == App::Node
            && self.bereft.len() < MOST_REMEMBERED
        {
            self.bereft.entry(pod.node).or_insert(now);
        }
        if matches!(what, What::SystemDeployments | What::CalicoDeployments)
            && object.metadata.name == "calico-kube-controllers"
        {
            self.controllers_gone = Some(now);
        }
        if what.is_on_the_map() {
            self.changed();
        }
    }

    /// Since when there is no calico-node on this node, if there was one; forgotten with the Node.
    pub(crate) fn bereft_since(&self, node: &str) -> Option<Timestamp> {
        self.bereft.get(node).copied()
    }

    /// The Node is gone.
    pub(super) fn node_is_gone(&mut self, node: &str) {
        self.bereft.remove(node);
    }

    /// Since when all of a kind has been seen.
    pub(crate) fn complete_since(&self, what: What) -> Option<Timestamp> {
        self.complete_since.get(&what).copied().filter(|_| self.is_seen(what))
    }

    fn retain(&mut self, what: What, keep: impl Fn(u32) -> bool) {
        self.objects.retain(|(kind, _), (list, _)| *kind != what || keep(*list));
    }

    fn all(&self, what: What) -> impl Iterator<Item = &Kept> {
        self.objects
            .range((what, Box::default())..)
            .take_while(move |((kind, _), _)| *kind == what)
            .map(|(_, it)| &it.1)
    }

    /// The blocks of Pod addresses of every node.
    pub(super) fn blocks(&self) -> BTreeMap<&str, Vec<IpNet>> {
        let mut blocks: BTreeMap<&str, Vec<IpNet>> = BTreeMap::new();
        for kept in self.all(What::Affinities) {
            if let Kept::Affinity { node, block } = kept {
                blocks.entry(node).or_default().push(*block);
            }
        }
        blocks
    }

    /// The pools.
    pub(super) fn pools(&self) -> Vec<Pool> {
        let pools = self.all(What::Pools);
        pools.filter_map(|kept| if let Kept::Pool(pool) = kept { Some(Pool::clone(pool)) } else { None }).collect()
    }

    /// How the nodes peer; none where there is no such kind, or no permission to see it.
    pub(super) fn bgp(&self) -> Option<Bgp> {
        let default = Bgp { full_mesh: true, secret: None };
        let said =
            self.all(What::Bgp).find_map(|kept| if let Kept::Bgp(bgp) = kept { Some(bgp.clone()) } else { None });
        self.is_seen(What::Bgp).then(|| said.unwrap_or(default))
    }

    /// The Services, with where they lead.
    pub(super) fn services(&self) -> Vec<ClusterService> {
        [(What::ApiService, What::ApiSlices), (What::DnsServices, What::DnsSlices)]
            .into_iter()
            // Without permission to see where they lead, it would seem that they lead nowhere.
            .filter(|(_, slices)| self.is_seen(*slices))
            .flat_map(|(services, slices)| {
                self.all(services).filter_map(move |kept| {
                    let Kept::Service(service) = kept else { return None };
                    let mut service = ClusterService::clone(service);
                    for kept in self.all(slices) {
                        if let Kept::Slice(slice) = kept
                            && slice.name == service.name
                        {
                            lead_to(&mut service, slice);
                        }
                    }
                    Some(service)
                })
            })
            .collect()
    }

    /// The Pods of calico-node.
    pub(crate) fn calico_pods(&self) -> impl Iterator<Item = &CalicoPod> {
        self.pods(App::Node).filter(|pod| !pod.node.is_empty())
    }

    /// The Pods of one of Calico's parts, whether they are on a node or not.
    pub(crate) fn pods(&self, app: App) -> impl Iterator<Item = &CalicoPod> {
        let pods = self.all(What::CalicoPods);
        pods.filter_map(move |kept| if let Kept::Pod(pod) = kept { (pod.app == app).then_some(&**pod) } else { None })
    }

    /// The DaemonSets or Deployments of this name.
    pub(crate) fn workloads(&self, name: &str) -> impl Iterator<Item = &Workload> {
        let all = [What::DaemonSets, What::SystemDeployments, What::CalicoDeployments];
        let kept = all.into_iter().flat_map(|what| self.all(what));
        kept.filter_map(
            move |kept| if let Kept::Workload(it) = kept { (*it.name == *name).then_some(&**it) } else { None },
        )
    }

    /// Pods of the system that could not be made.
    pub(crate) fn failed_creates(&self) -> impl Iterator<Item = &FailedCreate> {
        let all = self.all(What::FailedCreates);
        all.filter_map(|kept| if let Kept::FailedCreate(failed) = kept { Some(&**failed) } else { None })
    }
}

fn key(what: What, object: &ObjectView) -> (What, Box<str>) {
    (what, format!("{}/{}", object.metadata.namespace, object.metadata.name).into())
}

fn lead_to(service: &mut ClusterService, slice: &ClusterService) {
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
fn keep(what: What, object: &ObjectView) -> Option<Kept> {
    let (meta, spec) = (&object.metadata, &object.spec);
    match what {
        What::Affinities => {
            let confirmed = spec.state == "confirmed" && !spec.deleted && meta.deletion_timestamp.is_none();
            // Blocks of load balancer addresses are on no node, whatever their `node` says.
            let of_a_node = matches!(spec.kind.as_str(), "" | "host") && !spec.node.is_empty();
            let block = spec.cidr.parse().ok()?;
            (confirmed && of_a_node).then(|| Kept::Affinity { node: spec.node.as_str().into(), block })
        }
        What::Pools => Some(Kept::Pool(Box::new(Pool {
            name: meta.name.clone(),
            cidr: spec.cidr.parse().ok()?,
            ipip: encapsulation(&spec.ipip_mode),
            vxlan: encapsulation(&spec.vxlan_mode),
            disabled: spec.disabled,
        }))),
        What::Bgp => {
            let secret = &spec.password_secret;
            (meta.name == "default").then(|| {
                Kept::Bgp(Bgp {
                    full_mesh: spec.node_to_node_mesh_enabled.unwrap_or(true),
                    secret: (!secret.is_empty()).then(|| secret.as_str().into()),
                })
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
        What::CalicoPods => CalicoPod::read(object).map(|pod| Kept::Pod(Box::new(pod))),
        What::DaemonSets | What::SystemDeployments | What::CalicoDeployments => {
            Workload::read(object).map(|workload| Kept::Workload(Box::new(workload)))
        }
        What::FailedCreates => FailedCreate::read(object).map(|failed| Kept::FailedCreate(Box::new(failed))),
        What::Felix
        | What::Peers
        | What::GlobalPolicies
        | What::CalicoPolicies
        | What::Policies
        | What::Installations
        | What::Validating
        | What::Mutating => None,
    }
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

/// The fuzz target's door.
#[cfg(fuzzing)]
pub(crate) fn fuzz(data: &[u8]) {
    let Some((which, json)) = data.split_first() else { return };
    let Ok(object) = serde_json::from_slice::<ObjectView>(json) else { return };
    let (mut around, what) = (Surroundings::default(), What::ALL[usize::from(*which) % What::ALL.len()]);
    around.take(what, Change::ListBegins, Timestamp::UNIX_EPOCH);
    around.take(what, Change::Here(object.clone()), Timestamp::UNIX_EPOCH);
    let _ = (around.blocks(), around.pools(), around.bgp(), around.services(), around.calico_pods().count());
    around.take(what, Change::Gone(object), Timestamp::UNIX_EPOCH);
    around.take(what, Change::ListEnds, Timestamp::UNIX_EPOCH);
    assert_eq!(around.all(what).count(), 0);
}

#[cfg(test)]
mod tests;
