//! What the checks of BGP share: which BIRD matters here, and whose peer is a node that is gone.

use super::Look;
use crate::facts::{Bgp, BgpPeer, BgpState, Bird, BirdDaemon, ClusterNode, Encapsulation, Family, LookError, Program};

/// `RTPROT_BIRD`.
const BIRD: u8 = 12;
/// Calico's `graceful restart time`: for as long a peer keeps the routes of a BIRD that went, and of a rolled node.
pub(super) const GRACEFUL: std::time::Duration = std::time::Duration::from_secs(120);

/// Why there is no question about BGP.
pub(super) const NONE: &str = "no BIRD here: routes between nodes are not made by BGP";

/// The daemons that matter. A socket on which nobody answers can be left from a time when this node used BGP, and
/// Calico's BIRD for IPv6 runs without a peer where there is no IPv6 (catalogue R164).
pub(super) fn daemons<'a>(look: &'a Look<'_>, bgp: &'a Bgp) -> impl Iterator<Item = &'a BirdDaemon> {
    bgp.daemons.iter().filter(|daemon| daemon.bird.get().is_some() || is_used(look, daemon))
}

fn is_used(look: &Look<'_>, daemon: &BirdDaemon) -> bool {
    let running = look.now.processes.get().is_some_and(|processes| processes.of(Program::Bird).is_some());
    let ran = running || look.before.programs.contains(&Program::Bird);
    let routes = look.now.routing.get().is_some_and(|routing| {
        routing
            .by_protocol
            .iter()
            .any(|(family, protocol, count)| (*family, *protocol) == (daemon.family, BIRD) && *count > 0)
    });
    let pools = look.now.cluster.get().map(|cluster| &cluster.pools);
    let vxlan_only = pools.is_some_and(|pools| {
        let mut enabled = pools.iter().filter(|pool| !pool.disabled).peekable();
        enabled.peek().is_some() && enabled.all(|pool| pool.vxlan != Encapsulation::Never)
    });
    // The routes of a BIRD stay when it goes (`persist`), so a node that was switched to VXLAN can still have them.
    daemon.had_peers || (ran && daemon.family == Family::V4) || (routes && (ran || !vxlan_only))
}

/// Why a BIRD that matters does not say what its sessions do.
pub(super) fn error<'a>(look: &'a Look<'_>, bgp: &'a Bgp) -> Option<&'a LookError> {
    daemons(look, bgp).find_map(|daemon| daemon.bird.error())
}

/// The other node whose session this is.
pub(super) fn node<'a>(look: &'a Look<'_>, peer: &BgpPeer) -> Option<&'a ClusterNode> {
    let address = peer.address?;
    look.now.cluster.get()?.others().find(|node| node.addresses.contains(&address))
}

/// Whether the peer is a node that is not Ready: that its session is down is a consequence (catalogue R082, R160).
pub(super) fn is_gone(look: &Look<'_>, peer: &BgpPeer) -> bool {
    node(look, peer).is_some_and(|node| !node.ready)
}

/// Sessions that should be established and are not: not those that are switched off, not those of nodes that are gone.
pub(super) fn waiting<'a>(look: &'a Look<'_>, bird: &'a Bird) -> impl Iterator<Item = &'a BgpPeer> {
    let down = |peer: &&BgpPeer| !matches!(peer.state, BgpState::Established | BgpState::Down);
    bird.peers.iter().filter(down).filter(|peer| !is_gone(look, peer))
}

/// The peer as a person knows it: its address, and its node's name where that is known.
pub(super) fn name(look: &Look<'_>, peer: &BgpPeer) -> String {
    match node(look, peer) {
        Some(node) => format!("{} ({})", peer.place(), node.name),
        None => peer.place(),
    }
}

/// The first few of them, and how many more there are.
pub(super) fn some(names: &[String]) -> String {
    const SHOWN: usize = 5;
    let shown = names.iter().take(SHOWN).map(String::as_str).collect::<Vec<_>>().join(", ");
    match names.len().saturating_sub(SHOWN) {
        0 => shown,
        more => format!("{shown} and {more} more"),
    }
}

/// State and last error of a session.
pub(super) fn state(peer: &BgpPeer) -> String {
    match &peer.error {
        Some(error) => format!("{} ({error})", peer.state.as_str()),
        None => peer.state.as_str().to_owned(),
    }
}
