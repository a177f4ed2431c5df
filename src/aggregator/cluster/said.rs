//! What a Node says of itself: its addresses, and what is compared and never shown; and what its agent says with its questions.

use std::collections::BTreeSet;
use std::hash::{DefaultHasher, Hasher};
use std::net::IpAddr;
use std::str::FromStr;

use jiff::Timestamp;

use super::{Cluster, MOST_ADDRESSES};
use crate::aggregator::load::Load;
use crate::aggregator::model::{CALICO_ADDRESSES, NodeView};
use crate::aggregator::restarts::Restarts;

/// Two times of a boot that are less apart, in seconds, are of one.
const SAME_BOOT: i64 = 300;

impl Cluster {
    /// Takes in what an agent says of its node in the query of its question for the map: CNI configuration, boot, when kubelet
    /// and runtime were started, which Typhas serve it, and how many connections it has.
    pub(crate) fn agent_said(&mut self, node: &str, query: &str, now: Timestamp) {
        let Some(row) = self.nodes.get_mut(node) else { return };
        let of = |key| query.split('&').find_map(|part| part.strip_prefix(key));
        let hash = of("cni=").filter(|hash| hash.len() == 8 && hash.bytes().all(|byte| byte.is_ascii_hexdigit()));
        if hash.is_some_and(|hash| row.traits.cni(hash, &mut self.values)) {
            self.surroundings.journal.happened("changed their CNI configuration".to_owned(), node, now);
        }
        // Who says none has no connection, or cannot see it.
        let typhas: BTreeSet<IpAddr> =
            of("typha=").into_iter().flat_map(|all| all.split(',')).filter_map(|it| it.parse().ok()).collect();
        row.traits.served_by(typhas.into_iter(), &mut self.values);
        let load = Load::told(query, row.load.as_deref(), now).filter(|_| row.vpc);
        let strained = |load: Option<&Load>| load.is_some_and(|load| load.strained.is_some());
        self.revision += u64::from(strained(load.as_ref()) != strained(row.load.as_deref()));
        row.load = load.map(Box::new);
        let booted = of("boot=").and_then(|at| Timestamp::from_second(at.parse().ok()?).ok()).filter(|at| *at <= now);
        // A clock that is set moves the time by a little; that it boots is seen here later.
        let known =
            |at: Timestamp| row.rebooted.get().is_some_and(|known| at.as_second() - known.as_second() < SAME_BOOT);
        if let Some(booted) = booted.filter(|at| !known(*at)) {
            // The first boot is that of a worker that is new.
            if row.created.get().is_none_or(|created| created < booted) {
                self.surroundings.journal.happened("booted anew".to_owned(), node, booted);
            }
            row.rebooted = booted.into();
        }
        row.restarts = Restarts::told(query, row.rebooted.get(), row.created.get(), now);
    }
}

/// Addresses of this type.
pub(super) fn of_kind(node: &NodeView, kind: &str) -> Box<[IpAddr]> {
    let all = node.status.addresses.iter().filter(|address| address.kind == kind);
    all.filter_map(|address| address.address.parse().ok()).take(MOST_ADDRESSES).collect()
}

/// What is compared and never shown.
pub(super) fn hash(node: &NodeView, key: &str) -> u64 {
    let mut hasher = DefaultHasher::new();
    node.status.node_info.get(key).map_or(0, |text| {
        hasher.write(text.as_bytes());
        hasher.finish()
    })
}

/// Addresses that other nodes reach it at.
pub(super) fn addresses(node: &NodeView) -> Box<[IpAddr]> {
    let mut all = of_kind(node, "InternalIP").into_vec();
    for announced in calico_addresses(node, |kind| kind == "Address") {
        if !all.contains(&announced) {
            all.push(announced);
        }
    }
    all.into()
}

/// The addresses in Calico's annotations: what follows the family in their names says of which kind they are.
pub(super) fn calico_addresses(node: &NodeView, wanted: fn(&str) -> bool) -> impl Iterator<Item = IpAddr> {
    let all = node.metadata.annotations.0.iter();
    all.filter_map(move |(key, value)| {
        let kind = key.strip_prefix(CALICO_ADDRESSES)?.get(1..)?;
        let known = ["Address", "VXLANTunnelAddr", "IPIPTunnelAddr", "WireguardInterfaceAddr"].contains(&kind);
        // The address has the length of its subnet behind it.
        let address = value.split_once('/').map_or(value.as_str(), |(address, _)| address);
        (known && wanted(kind)).then(|| IpAddr::from_str(address).ok())?
    })
}
