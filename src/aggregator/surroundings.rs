//! What is around the nodes: Calico's objects, the two Services that everything needs, and the Pods of calico-node.
//! Pruned to what is read: the objects themselves are not kept.

use std::collections::BTreeMap;
use std::net::IpAddr;

use ipnet::IpNet;
use jiff::Timestamp;

use super::model::SERVICE_NAME;
use super::object::{ContainerView, ObjectView, Phase, PortView};
use super::row::clipped;
use super::sight::Sight;
use super::watch::{Change, Kind, NotThere};
use crate::facts::{ClusterService, ClusterServicePort, Encapsulation, Pool};

/// Ports of one Service, and endpoints of one port in one EndpointSlice, that are kept: the API server allows 1000 there.
const MOST_ENDPOINTS: usize = 1000;
/// Words of a container that failed: its last line is enough.
const LONGEST_WORDS: usize = 300;

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
    /// The Pods of calico-node.
    CalicoPods,
}

impl What {
    /// All of it.
    pub(crate) const ALL: [What; 8] = [
        What::Affinities,
        What::Pools,
        What::Bgp,
        What::ApiService,
        What::ApiSlices,
        What::DnsServices,
        What::DnsSlices,
        What::CalicoPods,
    ];

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
            What::CalicoPods => ("pods", "/api/v1/pods", "labelSelector=k8s-app%3Dcalico-node"),
        };
        let paths = match path {
            "" => vec![format!("/apis/crd.projectcalico.org/v1/{name}"), format!("/apis/projectcalico.org/v3/{name}")],
            path => vec![path.to_owned()],
        };
        Kind { name, paths, selector, optional: true }
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
}

/// The BGPConfiguration `default`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Bgp {
    /// Every node peers with every other.
    pub(crate) full_mesh: bool,
    /// The Secret that holds the peers' password.
    pub(crate) secret: Option<Box<str>>,
}

/// A Pod of calico-node.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct CalicoPod {
    /// Its namespace.
    pub(crate) namespace: Box<str>,
    /// Its name.
    pub(crate) name: Box<str>,
    /// Its node.
    pub(crate) node: Box<str>,
    /// Its service account.
    pub(crate) account: Box<str>,
    /// When it was made.
    pub(crate) created: Option<Timestamp>,
    /// The tag of its image.
    pub(crate) version: Box<str>,
    /// What keeps it from starting.
    pub(crate) failed: Option<InitFailure>,
}

/// An init container that failed and has not succeeded since.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct InitFailure {
    /// Its name.
    pub(crate) container: Box<str>,
    /// What is said of it.
    pub(crate) words: Box<str>,
    /// When it failed last.
    pub(crate) at: Option<Timestamp>,
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

    /// Whether each kind was listed once, or is known not to be there.
    pub(super) fn is_complete(&self) -> bool {
        let known = |sight: &KindSight| sight.not_there.is_some() || sight.sight.is_complete();
        What::ALL.iter().all(|what| self.sights.get(what).is_some_and(known))
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
                match keep(what, &object) {
                    Some(kept) => self.put(what, &object, (list, kept)),
                    None => self.remove(what, &object),
                }
            }
            Change::Gone(object) => self.remove(what, &object),
            Change::ListEnds => {
                let list = seen.sight.list();
                seen.sight.list_ends();
                self.retain(what, |known| known == list);
                // That there is nothing is news as well, the first time.
                self.changed();
            }
            Change::Lost(why) => seen.sight.lost(now, why),
            Change::NotThere(how) => {
                seen.sight.found();
                seen.sight.forgotten();
                seen.not_there = Some(how);
                self.retain(what, |_| false);
                self.changed();
            }
        }
    }

    fn put(&mut self, what: What, object: &ObjectView, kept: (u32, Kept)) {
        let differs = |old: &(u32, Kept)| old.1 != kept.1;
        let key = key(what, object);
        let news = self.objects.get(&key).is_none_or(differs);
        self.objects.insert(key, kept);
        if news && what != What::CalicoPods {
            self.changed();
        }
    }

    fn remove(&mut self, what: What, object: &ObjectView) {
        if self.objects.remove(&key(what, object)).is_some() && what != What::CalicoPods {
            self.changed();
        }
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
        self.all(What::CalicoPods).filter_map(|kept| if let Kept::Pod(pod) = kept { Some(&**pod) } else { None })
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
        What::CalicoPods => (!spec.node_name.is_empty() && meta.deletion_timestamp.is_none()).then(|| {
            let account = if spec.service_account_name.is_empty() { "default" } else { &spec.service_account_name };
            Kept::Pod(Box::new(CalicoPod {
                namespace: meta.namespace.as_str().into(),
                name: meta.name.as_str().into(),
                node: spec.node_name.as_str().into(),
                account: account.into(),
                created: meta.creation_timestamp,
                version: tag(&object.status.container_statuses),
                failed: object.status.init_container_statuses.iter().find_map(failure),
            }))
        }),
    }
}

/// The version in the first container's image: `v3.27.0` of `registry:5000/calico/node:v3.27.0@sha256:...`.
fn tag(containers: &[ContainerView]) -> Box<str> {
    let image = containers.first().map_or("", |container| container.image.as_str());
    let name = image.split('@').next().unwrap_or_default();
    name.rsplit('/').next().and_then(|last| last.split_once(':')).map_or("", |(_, tag)| clipped(tag)).into()
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

/// What keeps an init container from having succeeded, if it has failed.
fn failure(container: &ContainerView) -> Option<InitFailure> {
    let failed = |phase: &Option<Phase>| phase.clone().filter(|phase| phase.exit_code != Some(0));
    let state = &container.state;
    let before = failed(&container.last_state.terminated);
    let (words, at) = match (&state.waiting, &state.terminated) {
        // It has done its work.
        (_, Some(ended)) if ended.exit_code == Some(0) => return None,
        (_, Some(ended)) => (ended_words(ended), ended.finished_at),
        (Some(waiting), None) => match (waiting.reason.as_str(), before) {
            // Its turn has not come, or it is being made.
            ("" | "PodInitializing" | "ContainerCreating", None) => return None,
            // The message of the back-off names the Pod; what it did before says more.
            (_, Some(before)) => (ended_words(&before), before.finished_at),
            (reason, None) => (words(reason, &waiting.message), None),
        },
        // It runs again, after it has failed.
        (None, None) => {
            let before = before?;
            (ended_words(&before), before.finished_at)
        }
    };
    Some(InitFailure { container: clipped(&container.name).into(), words: words.into(), at })
}

fn ended_words(phase: &Phase) -> String {
    let status = phase.exit_code.map_or_else(|| "unknown exit status".to_owned(), |code| format!("exit status {code}"));
    let reason = if phase.reason.is_empty() { "Error" } else { &phase.reason };
    words(&format!("{reason}, {status}"), &phase.message)
}

/// The reason, and the last line of the message.
fn words(reason: &str, message: &str) -> String {
    let line = message.lines().map(str::trim).rfind(|line| !line.is_empty()).unwrap_or_default();
    let mut text = clipped(reason).to_owned();
    if !line.is_empty() {
        text.push_str(": ");
        text.extend(line.chars().take(LONGEST_WORDS));
    }
    text
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
