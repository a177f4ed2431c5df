//! What is around the nodes: Calico's objects, the two Services that everything needs, and the Pods of calico-node.
//! Pruned to what is read: the objects themselves are not kept.

mod dns;
mod keep;
mod sights;
mod what;

use std::collections::BTreeMap;
use std::sync::Arc;

use ipnet::IpNet;
use jiff::Timestamp;

use super::drift::Drift;
use super::journal::Journal;
use super::object::ObjectView;
use super::pods::{App, CalicoPod};
use super::sight::Lost;
use super::small::{Name, Texts, Time};
use super::watch::{Change, NotThere};
use super::webhooks::{Namespace, Webhooks};
use super::workloads::{FailedCreate, Workload, is_system};
use crate::config::ClusterLimits;
use crate::facts::{ClusterService, Pool};
pub(crate) use keep::{AddressPool, Bgp, HostEndpoint};
use keep::{Kept, keep, lead_to};
use sights::KindSight;
pub(crate) use what::What;

/// Nodes of which it is remembered since when they have no calico-node, and nodes that are gone.
const MOST_REMEMBERED: usize = 5_000;
/// Nodes on which calico-kube-controllers was tried that are remembered.
const MOST_TRIED: usize = 8;
/// Calico's Deployment of which exactly one Pod has to run.
const CONTROLLERS: &str = "calico-kube-controllers";

/// Everything around the nodes.
#[derive(Debug, Default)]
pub(crate) struct Surroundings {
    objects: BTreeMap<What, BTreeMap<Name, (u32, Kept)>>,
    /// Names of nodes, and what else many of these objects and of the rows share.
    pub(super) texts: Texts,
    sights: BTreeMap<What, KindSight>,
    generation: u64,
    /// Moves with everything that the report may show.
    revision: u64,
    /// What changed.
    pub(crate) journal: Journal,
    /// Since when there is no calico-node on a node that had one.
    bereft: BTreeMap<Arc<str>, Timestamp>,
    /// Nodes on which a Pod of calico-kube-controllers did not come up and from which it went, since it was last well; with
    /// the time. The last comes last.
    pub(crate) tried: Vec<(Box<str>, Timestamp)>,
    /// When the Deployment calico-kube-controllers went, if it was seen before.
    pub(crate) controllers_gone: Option<Timestamp>,
    /// Since when nobody is Ready behind these Services of the cluster's DNS.
    dns_silent_since: BTreeMap<Box<str>, Timestamp>,
    /// Since when each kind has been seen completely.
    complete_since: BTreeMap<What, Timestamp>,
    /// From when on something is wrong.
    pub(super) limits: ClusterLimits,
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

    /// Grows with every change, also of what is not on the map.
    pub(super) fn revision(&self) -> u64 {
        self.revision + self.generation
    }

    /// Whether each kind that the map is made of was listed once, or is known not to be there.
    pub(super) fn is_complete(&self) -> bool {
        let known = |sight: &KindSight| sight.not_there.is_some() || sight.sight.is_complete();
        What::ALL.iter().filter(|what| what.is_on_the_map()).all(|what| self.sights.get(what).is_some_and(known))
    }

    /// Takes in what has happened to a kind.
    pub(super) fn take(&mut self, what: What, change: Change<ObjectView>, now: Timestamp) {
        let seen = self.sights.entry(what).or_default();
        match change {
            Change::Found => {
                self.revision += u64::from(seen.sight.is_lost().is_some() || seen.denied.is_some());
                seen.sight.found();
                (seen.not_there, seen.denied) = (None, None);
            }
            Change::ListBegins => seen.sight.list_begins(),
            Change::Here(object) => {
                let list = seen.sight.list();
                self.note_seen(what, &object);
                match keep(what, &object, &mut self.texts) {
                    Some(kept) => self.put(what, &object, (list, kept), now),
                    None => self.remove(what, &object, now),
                }
            }
            Change::Gone(object) => {
                self.note_gone(what, &object, now);
                self.remove(what, &object, now);
            }
            Change::ListEnds => {
                let list = seen.sight.list();
                seen.sight.list_ends();
                self.complete_since.entry(what).or_insert(now);
                self.retain(what, Some(list), now);
                // That there is nothing is news as well, the first time.
                self.changed();
                self.revision += 1;
            }
            Change::Lost(why) => {
                self.revision += u64::from(seen.sight.is_lost().is_none());
                seen.sight.lost(now, why);
            }
            Change::NotThere(how) => {
                seen.sight.found();
                seen.sight.forgotten();
                seen.not_there = Some(how);
                let before = seen.denied.take().filter(|_| how == NotThere::Denied);
                let denied = || Lost { since: now, why: "no permission to list and watch it".to_owned() };
                seen.denied = (how == NotThere::Denied).then(|| before.unwrap_or_else(denied));
                self.complete_since.remove(&what);
                self.retain(what, None, now);
                if what.journaled_together().is_some() {
                    self.journal.many_forgotten();
                }
                self.changed();
                self.revision += 1;
            }
        }
        if matches!(what, What::DnsServices | What::DnsSlices) {
            self.dns_changed(now);
        }
    }

    /// Writes down that an object was made or changed.
    fn note_seen(&mut self, what: What, object: &ObjectView) {
        if let Some(kind) = journaled(what, object) {
            self.journal.seen(kind, object);
        }
        if let Some(kind) = what.journaled_together().filter(|_| !object.spec.node.is_empty()) {
            let edited = Time::from(object.edit.as_ref().map(|edit| edit.at));
            let known = self.objects.get(&what).and_then(|all| all.get(&key(object)));
            let same = known.is_some_and(|(_, kept)| matches!(kept, Kept::HostEndpoint(it) if it.edited == edited));
            if !same {
                self.journal.one_of_many_seen(kind, object);
            }
        }
    }

    /// Writes down that an object is gone.
    fn note_gone(&mut self, what: What, object: &ObjectView, now: Timestamp) {
        if let Some(kind) = journaled(what, object) {
            self.journal.gone(kind, object, now);
        }
        if let Some(kind) = what.journaled_together() {
            self.journal.one_of_many_gone(kind, object, now);
        }
    }

    fn put(&mut self, what: What, object: &ObjectView, mut kept: (u32, Kept), now: Timestamp) {
        let known = self.objects.entry(what).or_default();
        let key = match &kept.1 {
            Kept::Pod(pod) => pod.name.clone(),
            Kept::HostEndpoint(endpoint) => endpoint.name.clone(),
            _ => key(object),
        };
        // The old key goes too: the new one is shared with what is kept.
        let before = known.remove(&key);
        if let Kept::Pod(pod) = &mut kept.1 {
            if let Some((_, Kept::Pod(before))) = &before {
                pod.goes_on_from(before, &self.limits, now);
                if before.well_until(&self.limits, now) {
                    self.tried.clear();
                }
            }
            if pod.app == App::Node {
                self.bereft.remove(&pod.node);
            }
        }
        let port = |kept: &Kept| if let Kept::Pod(pod) = kept { pod.port } else { None };
        let moved = before.as_ref().and_then(|(_, before)| port(before)) != port(&kept.1);
        let news = before.is_none_or(|old| old.1 != kept.1);
        known.insert(key, kept);
        if moved {
            self.changed();
        }
        if news {
            self.news(what);
        }
    }

    fn remove(&mut self, what: What, object: &ObjectView, now: Timestamp) {
        let known = self.objects.get_mut(&what);
        if let Some((_, gone)) = known.and_then(|known| known.remove(&key(object))) {
            self.is_gone(what, gone, now);
        }
    }

    /// What is remembered of an object that is gone, whether that was seen or a new list was without it.
    fn is_gone(&mut self, what: What, gone: Kept, now: Timestamp) {
        match gone {
            Kept::Pod(pod) if pod.app == App::Node && self.bereft.len() < MOST_REMEMBERED => {
                self.bereft.entry(pod.node).or_insert(now);
            }
            Kept::Pod(pod) if pod.app == App::Controllers && pod.well_until(&self.limits, now) => self.tried.clear(),
            Kept::Pod(pod) if pod.app == App::Controllers && !pod.node.is_empty() => {
                self.tried.retain(|(node, _)| **node != *pod.node);
                self.tried.push((Box::from(&*pod.node), now));
                let most = self.tried.len().saturating_sub(MOST_TRIED);
                self.tried.drain(..most);
            }
            Kept::Workload(workload) if *workload.name == *CONTROLLERS && what != What::DaemonSets => {
                self.controllers_gone = Some(now);
            }
            _ => {}
        }
        self.news(what);
    }

    /// Something about this kind is different from before.
    fn news(&mut self, what: What) {
        if what.is_on_the_map() {
            self.changed();
        }
        self.revision += 1;
    }

    /// Since when there is no calico-node on this node, if there was one; forgotten with the Node.
    pub(crate) fn bereft_since(&self, node: &str) -> Option<Timestamp> {
        self.bereft.get(node).copied()
    }

    /// The Node is gone.
    pub(super) fn node_is_gone(&mut self, node: &str) {
        self.bereft.remove(node);
    }

    /// Forgets what was not in this list; without one, all of the kind.
    fn retain(&mut self, what: What, list: Option<u32>, now: Timestamp) {
        let Some(all) = self.objects.get_mut(&what) else { return };
        let (here, gone): (Vec<_>, Vec<_>) =
            std::mem::take(all).into_iter().partition(|(_, (known, _))| Some(*known) == list);
        // Nodes of a tree that grows stay half empty; those of one that is made of all at once are full.
        *all = here.into_iter().collect();
        for (_, (_, gone)) in gone {
            self.is_gone(what, gone, now);
        }
        self.texts.forget();
    }

    fn all(&self, what: What) -> impl Iterator<Item = &Kept> {
        self.objects.get(&what).into_iter().flat_map(BTreeMap::values).map(|(_, kept)| kept)
    }

    /// The blocks of Pod addresses of every node.
    pub(super) fn blocks(&self) -> BTreeMap<&str, Vec<IpNet>> {
        let mut blocks: BTreeMap<&str, Vec<IpNet>> = BTreeMap::new();
        for kept in self.all(What::Affinities) {
            if let Kept::Affinity(it) = kept {
                blocks.entry(&*it.node).or_default().push(it.block);
            }
        }
        blocks
    }

    /// The pools.
    pub(super) fn pools(&self) -> Vec<Pool> {
        let pools = self.all(What::Pools);
        pools.filter_map(|kept| if let Kept::Pool(it) = kept { Some(it.pool.clone()) } else { None }).collect()
    }

    /// The same, with how they are divided.
    pub(crate) fn address_pools(&self) -> impl Iterator<Item = &AddressPool> {
        let pools = self.all(What::Pools);
        pools.filter_map(|kept| if let Kept::Pool(it) = kept { Some(&**it) } else { None })
    }

    /// The host endpoints.
    pub(crate) fn host_endpoints(&self) -> impl Iterator<Item = &HostEndpoint> {
        let all = self.all(What::HostEndpoints);
        all.filter_map(|kept| if let Kept::HostEndpoint(it) = kept { Some(&**it) } else { None })
    }

    /// Since when Calico's datastore is locked, if it is.
    pub(crate) fn locked(&self) -> Option<Timestamp> {
        self.all(What::ClusterInformation).find_map(|kept| if let Kept::Locked(at) = kept { at.get() } else { None })
    }

    /// What a provider wrote and somebody changed by hand, by kind and name.
    pub(crate) fn drifts(&self) -> impl Iterator<Item = (&'static str, &str, &Drift)> {
        let kinds = [What::Pools, What::Bgp, What::Felix, What::Peers, What::Installations];
        let of_it = move |what: What| {
            let all = self.objects.get(&what).into_iter().flatten();
            all.filter_map(move |(name, (_, kept))| {
                let drift = match kept {
                    Kept::Pool(pool) => pool.drift.as_deref(),
                    Kept::Bgp(it) => it.1.as_deref(),
                    Kept::Drift(drift) => Some(&**drift),
                    _ => None,
                };
                Some((what.journaled()?, name.path(), drift?))
            })
        };
        kinds.into_iter().flat_map(of_it)
    }

    /// How the nodes peer; none where there is no such kind, or no permission to see it.
    pub(super) fn bgp(&self) -> Option<Bgp> {
        let default = Bgp { full_mesh: true, secret: None };
        let said =
            self.all(What::Bgp).find_map(|kept| if let Kept::Bgp(it) = kept { Some(it.0.clone()) } else { None });
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
        let pods = self.all(What::CalicoPods).chain(self.all(What::VpnPods));
        pods.filter_map(move |kept| if let Kept::Pod(pod) = kept { (pod.app == app).then_some(&**pod) } else { None })
    }

    /// Where Typha listens, if that is not the usual port.
    pub(super) fn typha_port(&self) -> Option<u16> {
        self.pods(App::Typha).find_map(|pod| pod.port)
    }

    /// The DaemonSets or Deployments of this name.
    pub(crate) fn workloads(&self, name: &str) -> impl Iterator<Item = &Workload> {
        let all = [What::DaemonSets, What::SystemDeployments, What::CalicoDeployments];
        let kept = all.into_iter().flat_map(|what| self.all(what));
        kept.filter_map(
            move |kept| if let Kept::Workload(it) = kept { (*it.name == *name).then_some(&**it) } else { None },
        )
    }

    /// The configurations of webhooks, with the kind of each.
    pub(crate) fn webhooks(&self) -> impl Iterator<Item = (&'static str, &Webhooks)> {
        let all =
            [(What::Validating, "ValidatingWebhookConfiguration"), (What::Mutating, "MutatingWebhookConfiguration")];
        let kept = all.into_iter().flat_map(|(what, kind)| self.all(what).map(move |kept| (kind, kept)));
        kept.filter_map(|(kind, kept)| if let Kept::Webhooks(it) = kept { Some((kind, &**it)) } else { None })
    }

    /// The namespaces of the system.
    pub(crate) fn namespaces(&self) -> impl Iterator<Item = &Namespace> {
        let all = self.all(What::Namespaces);
        all.filter_map(|kept| if let Kept::Namespace(it) = kept { Some(&**it) } else { None })
    }

    /// Pods of the system that could not be made.
    pub(crate) fn failed_creates(&self) -> impl Iterator<Item = &FailedCreate> {
        let all = self.all(What::FailedCreates);
        all.filter_map(|kept| if let Kept::FailedCreate(failed) = kept { Some(&**failed) } else { None })
    }
}

/// What changes of this object are written down as, if they are. Of DaemonSets those of the system.
fn journaled(what: What, object: &ObjectView) -> Option<&'static str> {
    what.journaled().filter(|_| what != What::DaemonSets || is_system(&object.metadata.namespace))
}

fn key(object: &ObjectView) -> Name {
    Name::new(&object.metadata.namespace, &object.metadata.name)
}

/// The fuzz target's door.
#[cfg(any(test, fuzzing))]
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
