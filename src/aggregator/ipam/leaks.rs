//! Addresses that Calico holds for Pods which are not there, on nodes that are (catalogue R073). Whose they are stands in the
//! blocks, which are read anyway; the Pods of a few nodes are asked for beside them, by their metadata, in each round of
//! others: those that were not looked at for longest, and of those the ones on which most addresses are taken, since there a
//! leak matters.

use std::cmp::Reverse;
use std::collections::{BTreeMap, HashSet};
use std::hash::{DefaultHasher, Hasher};
use std::net::IpAddr;
use std::sync::Arc;
use std::time::Duration;

use jiff::Timestamp;
use kube::Client;

use super::{BlockView, Ipam};
use crate::aggregator::hosted;
use crate::aggregator::object::ObjectView;

/// Nodes that are looked at in one round.
const AT_ONCE: usize = 8;
/// Of them those where something was missing, as long as there are others.
const SUSPECTED: usize = AT_ONCE / 2;
/// A node is looked at again after this time; one where something was missing so often in the time for cleaning up.
const AGAIN: Duration = Duration::from_secs(3600);
const TIMES: u32 = 3;
/// Addresses of one node that are remembered.
const MOST: usize = 256;
/// Pods of virtual machines, whose addresses outlive them on purpose.
const MACHINES: &str = "virt-launcher-";

/// An address of a Pod that is not there.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Leaked {
    /// The address.
    pub(crate) address: IpAddr,
    /// Hash of its Pod's name.
    pod: u64,
    /// Since when this is seen.
    pub(crate) since: Timestamp,
    /// It was seen more than once: a Pod that went between the two questions is none that is missed.
    pub(crate) again: bool,
}

#[cfg(test)]
impl Leaked {
    /// An address of some Pod, seen again and again.
    pub(crate) fn new(address: IpAddr, since: Timestamp) -> Leaked {
        Leaked { address, pod: 0, since, again: true }
    }
}

/// By node.
pub(crate) type Leaks = BTreeMap<Arc<str>, Vec<Leaked>>;

/// Which nodes were looked at when, and what Calico holds there of those that are looked at now.
#[derive(Debug, Default)]
pub(super) struct Rounds {
    looked: BTreeMap<Arc<str>, Duration>,
    held: BTreeMap<Arc<str>, Vec<(IpAddr, u64)>>,
    /// The same of those where something is missing.
    suspected: BTreeMap<Arc<str>, Vec<(IpAddr, u64)>>,
}

impl Rounds {
    /// Chooses the nodes of this round by how it was in the last one. What leaked is told after `cleanup`.
    pub(super) fn begin(&mut self, before: Option<&Ipam>, cleanup: Duration, now: Duration) {
        self.held.clear();
        let Some(before) = before else { return };
        self.suspected = before.leaked.keys().map(|node| (node.clone(), Vec::new())).collect();
        self.looked.retain(|node, _| before.nodes.contains_key(node));
        let suspected = |node: &str| before.leaked.contains_key(node);
        let waits =
            |node: &str, at: Duration| now.saturating_sub(at) < if suspected(node) { cleanup / TIMES } else { AGAIN };
        let due = before.nodes.iter().filter(|(node, _)| !self.looked.get(*node).is_some_and(|at| waits(node, *at)));
        let used = due.map(|(node, given)| (node, given[0].used + given[1].used)).filter(|(_, used)| *used > 0);
        let mut used: Vec<_> = used.map(|(node, used)| (self.looked.get(node).copied(), Reverse(used), node)).collect();
        used.sort_unstable();
        let (again, mut chosen): (Vec<_>, Vec<_>) =
            used.into_iter().map(|(.., node)| node.clone()).partition(|node| suspected(node));
        chosen.truncate(AT_ONCE - again.len().min(SUSPECTED));
        chosen.extend(again.into_iter().take(AT_ONCE - chosen.len()));
        for node in chosen {
            self.looked.insert(node.clone(), now);
            self.held.insert(node, Vec::new());
        }
    }

    /// Takes in whose addresses a block has.
    pub(super) fn take(&mut self, block: &BlockView) {
        for (holder, ordinal, pod) in &block.pods {
            let Some((node, _)) = block.holders.get(usize::from(*holder)) else { continue };
            let Some(address) = nth(block, *ordinal) else { continue };
            for of in [&mut self.held, &mut self.suspected] {
                of.get_mut(&**node).into_iter().for_each(|held| held.push((address, *pod)));
            }
        }
    }

    /// Asks for the Pods, and says of which addresses there is none. What could not be asked is as it was, as far as Calico
    /// still holds it.
    pub(super) async fn end(&mut self, client: &Client, before: Option<&Ipam>, ipam: &mut Ipam) {
        if let Some(before) = before {
            let kept = before.leaked.iter().filter(|(node, _)| ipam.nodes.contains_key(*node));
            ipam.leaked = kept.map(|(node, leaked)| (node.clone(), self.still_held(node, leaked))).collect();
            ipam.leaked.retain(|_, leaked| !leaked.is_empty());
        }
        for (node, held) in std::mem::take(&mut self.held) {
            let Some(pods) = hosted::pods(client, &node).await.filter(|pods| pods.metadata.next.is_empty()) else {
                continue;
            };
            let known = ipam.leaked.remove(&node).unwrap_or_default();
            let leaked = missing(held, &pods.items, &known, ipam.at);
            if !leaked.is_empty() {
                ipam.leaked.insert(node, leaked);
            }
        }
    }

    fn still_held(&self, node: &str, leaked: &[Leaked]) -> Vec<Leaked> {
        let held = self.suspected.get(node).map_or(&[][..], Vec::as_slice);
        leaked.iter().filter(|it| held.contains(&(it.address, it.pod))).copied().collect()
    }
}

/// The addresses of which there is no Pod, each since it was first seen so.
fn missing(held: Vec<(IpAddr, u64)>, pods: &[ObjectView], known: &[Leaked], now: Timestamp) -> Vec<Leaked> {
    let there: HashSet<u64> = pods.iter().map(|pod| hash(&pod.metadata.namespace, &pod.metadata.name)).collect();
    let gone = held.into_iter().filter(|(_, pod)| !there.contains(pod)).map(|(address, pod)| {
        let before = known.iter().find(|it| (it.address, it.pod) == (address, pod));
        Leaked { address, pod, since: before.map_or(now, |it| it.since), again: before.is_some() }
    });
    gone.take(MOST).collect()
}

/// What is remembered of a Pod's name; none of one whose address may be there without it.
pub(super) fn pod_of(namespace: &str, name: &str) -> Option<u64> {
    (!name.is_empty() && !namespace.is_empty() && !name.starts_with(MACHINES)).then(|| hash(namespace, name))
}

fn hash(namespace: &str, name: &str) -> u64 {
    let mut hasher = DefaultHasher::new();
    hasher.write(namespace.as_bytes());
    hasher.write_u8(b'/');
    hasher.write(name.as_bytes());
    hasher.finish()
}

/// The address at this place of a block.
fn nth(block: &BlockView, ordinal: u16) -> Option<IpAddr> {
    Some(match block.cidr.network() {
        IpAddr::V4(first) => IpAddr::V4(u32::from(first).checked_add(ordinal.into())?.into()),
        IpAddr::V6(first) => IpAddr::V6(u128::from(first).checked_add(ordinal.into())?.into()),
    })
}

#[cfg(test)]
mod tests {
    use serde_json::{Value, json};

    use super::*;
    use crate::aggregator::ipam::{Given, block};
    use crate::aggregator::testing::at;

    /// As it is where nothing is set.
    const CLEANUP: Duration = Duration::from_secs(1800);

    fn block(cidr: &str, all: &[(&str, &str)]) -> BlockView {
        let attributes: Vec<Value> = all
            .iter()
            .map(|(node, pod)| json!({"handle_id": "k8s-pod-network.1", "secondary": {"node": node, "pod": pod, "namespace": "shop"}}))
            .collect();
        let spec = json!({"cidr": cidr, "affinity": "host:n1", "attributes": attributes,
            "allocations": (0..all.len()).map(Value::from).chain([Value::Null]).collect::<Vec<_>>()});
        block::read(&spec).expect("a block")
    }

    fn pods(names: &[&str]) -> Vec<ObjectView> {
        let pod = |name: &&str| json!({"metadata": {"name": name, "namespace": "shop"}});
        names.iter().map(|name| serde_json::from_value(pod(name)).expect("an object")).collect()
    }

    fn ipam(used: &[(&str, u64)]) -> Ipam {
        let given = |used| [Given { blocks: 1, used, free: 0 }, Given::default()];
        Ipam { nodes: used.iter().map(|(node, used)| ((*node).into(), given(*used))).collect(), ..Ipam::default() }
    }

    #[test]
    fn addresses_of_pods_that_are_not_there_are_known_since_they_were_seen_first() {
        let mut rounds = Rounds::default();
        rounds.begin(Some(&ipam(&[("n1", 4)])), CLEANUP, Duration::ZERO);
        rounds.take(&block("172.30.0.0/29", &[("n1", "a"), ("n1", "b"), ("n2", "c"), ("n1", "virt-launcher-x")]));
        rounds.take(&block("fd00::40/125", &[("n1", "b"), ("n1", "")]));
        let held = rounds.held.remove("n1").expect("it was chosen");
        let addresses: Vec<String> = held.iter().map(|(address, _)| address.to_string()).collect();
        assert_eq!(addresses, ["172.30.0.0", "172.30.0.1", "fd00::40"], "its own, tunnels and machines left out");
        let first = missing(held.clone(), &pods(&["a"]), &[], at(0));
        assert_eq!(first.len(), 2, "of both families");
        let again = missing(held.clone(), &pods(&["x"]), &first, at(700));
        let since: Vec<Timestamp> = again.iter().map(|leaked| leaked.since).collect();
        assert_eq!(since, [at(700), at(0), at(0)]);
        let twice: Vec<bool> = again.iter().map(|leaked| leaked.again).collect();
        assert_eq!((first[0].again, twice), (false, vec![false, true, true]), "seen once is no leak yet");
        // The address was given out anew meanwhile: another Pod's that is gone as well is another leak.
        let other = block("172.30.0.0/29", &[("n1", "a"), ("n1", "new")]);
        let mut next = Rounds { held: BTreeMap::from([("n1".into(), Vec::new())]), ..Rounds::default() };
        next.take(&other);
        let next = missing(next.held.remove("n1").expect("chosen"), &pods(&["a"]), &again, at(900));
        assert_eq!(next.iter().map(|leaked| leaked.since).collect::<Vec<_>>(), [at(900)]);
        assert!(missing(held, &pods(&["a", "b"]), &again, at(900)).is_empty(), "it clears");
    }

    #[test]
    fn what_calico_has_freed_is_over_though_the_pods_are_not_asked_for_again() {
        let mut before = ipam(&[("n1", 2), ("n2", 1)]);
        let mut rounds = Rounds::default();
        rounds.begin(Some(&before), CLEANUP, Duration::ZERO);
        rounds.take(&block("172.30.0.0/29", &[("n1", "a"), ("n1", "b")]));
        before.leaked.insert("n1".into(), missing(rounds.held["n1"].clone(), &[], &[], at(0)));
        rounds.begin(Some(&before), CLEANUP, Duration::from_secs(60));
        assert!(rounds.held.is_empty(), "it is not its turn");
        rounds.take(&block("172.30.0.0/29", &[("n2", "a"), ("n1", "b")]));
        let still = rounds.still_held("n1", &before.leaked["n1"]);
        assert_eq!(still, before.leaked["n1"][1..], "the other address is another's now");
        rounds.begin(Some(&before), CLEANUP, Duration::from_secs(120));
        rounds.take(&block("172.30.0.0/29", &[]));
        assert!(rounds.still_held("n1", &before.leaked["n1"]).is_empty(), "it clears");
    }

    #[test]
    fn where_most_is_taken_is_looked_at_first_and_where_something_is_missing_sooner_again() {
        let nodes: Vec<String> = (0..20).map(|number| format!("n{number:02}")).collect();
        let mut known = ipam(&nodes.iter().zip(0..).map(|(node, used)| (node.as_str(), used)).collect::<Vec<_>>());
        let mut rounds = Rounds::default();
        let mut round = |known: &Ipam, minute: u64| {
            rounds.begin(Some(known), CLEANUP, Duration::from_secs(60 * minute));
            rounds.held.keys().map(|node| node[1..].parse().expect("a number")).collect::<Vec<u32>>()
        };
        assert_eq!(round(&known, 0), (12..20).collect::<Vec<_>>());
        assert_eq!(round(&known, 1), (4..12).collect::<Vec<_>>());
        assert_eq!(round(&known, 2), [1, 2, 3], "on the first of them nothing is taken");
        assert!(round(&known, 3).is_empty());
        known.leaked.insert("n05".into(), Vec::new());
        assert!(round(&known, 10).is_empty());
        assert_eq!(round(&known, 11), [5]);
        assert_eq!(round(&known, 60).len(), AT_ONCE);
    }

    #[test]
    fn every_node_has_its_turn_however_rare_the_rounds_are_and_however_much_is_missing() {
        let nodes: Vec<String> = (0..40).map(|number| format!("n{number:02}")).collect();
        let mut known = ipam(&nodes.iter().map(|node| (node.as_str(), 10)).collect::<Vec<_>>());
        known.leaked = (0..10).map(|number| (format!("n{number:02}").into(), Vec::new())).collect();
        let mut rounds = Rounds::default();
        let mut seen = BTreeMap::<Arc<str>, usize>::new();
        // An hour and more apart, so that all are due in each.
        for hour in 0..8 {
            rounds.begin(Some(&known), CLEANUP, Duration::from_secs(7_200 * hour));
            rounds.held.keys().for_each(|node| *seen.entry(node.clone()).or_default() += 1);
            assert_eq!(rounds.held.len(), AT_ONCE);
        }
        let times = |of: std::ops::Range<usize>| nodes[of].iter().map(|node| seen[node.as_str()]).collect::<Vec<_>>();
        assert!(times(0..10).iter().all(|times| (2..=4).contains(times)), "{seen:?}");
        assert!(times(10..40).iter().all(|times| (1..=2).contains(times)), "{seen:?}");
    }
}
