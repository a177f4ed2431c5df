//! What passes through the node's own network namespace: sockets, neighbours, the counters and switches of its links.

use std::net::IpAddr;

use serde::Serialize;

use super::{Family, Seen, Snapshot};

/// Counters and switches of the node's network namespace.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct Traffic {
    /// TCP sockets and local ports.
    pub sockets: Seen<Sockets>,
    /// The neighbour tables of the kernel, which all network namespaces share; none outside the first namespace, where they
    /// are not told.
    pub neighbours: Vec<NeighbourTable>,
    /// Growth of the counters of the uplinks, and of the members of their bonds and bridges.
    pub links: Seen<Vec<LinkCounters>>,
    /// IPv4 switches of uplinks, tunnels and Calico's links to pods.
    pub switches: Seen<Vec<LinkSwitches>>,
    /// `net.bridge.bridge-nf-call-iptables`; absent where the module br_netfilter is not loaded, which is as good as off.
    pub bridge_calls_iptables: Seen<bool>,
    /// Growth of `IPReversePathFilter` in [`MINUTES`]: packets dropped because the way back leads through another link.
    pub reverse_path_drops: u64,
    /// Growth of `FragFails` of IPv4 and IPv6 in [`MINUTES`]: packets that were too long for their way and must not be, or
    /// could not be, fragmented.
    pub too_long: u64,
}

/// Growth of counters is told over this many minutes.
pub const MINUTES: u64 = 5;
/// Carrier changes are told over this many minutes.
pub const CARRIER_MINUTES: u64 = 10;

/// TCP sockets of the node's network namespace; those of pods are in theirs.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct Sockets {
    /// Local ports that `connect` chooses from: `net.ipv4.ip_local_port_range` without `ip_local_reserved_ports`.
    pub ports: u32,
    /// Sockets in use and in TIME_WAIT (`/proc/net/sockstat`).
    pub in_use: u64,
    /// Destinations that hold most of these ports. Empty while [`Sockets::in_use`] is far below [`Sockets::ports`].
    pub busiest: Vec<Destination>,
    /// `TCPSynRetrans` since boot: SYNs that were sent again for lack of an answer.
    pub syn_retransmits: u64,
    /// Its growth in [`MINUTES`].
    pub syn_retransmits_since: u64,
}

/// Where connections of this node go. Local ports are taken for each of these anew.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct Destination {
    /// The local address.
    pub source: IpAddr,
    /// The remote address.
    pub destination: IpAddr,
    /// The remote port.
    pub port: u16,
    /// Local ports in use. Never more than there are, and at most a hundredth less.
    pub sockets: u32,
    /// Those among them in TIME_WAIT. They are left out where the kernel uses them again (`net.ipv4.tcp_tw_reuse`).
    pub time_wait: u32,
}

/// A neighbour table (`/proc/net/stat/arp_cache`, `ndisc_cache`).
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct NeighbourTable {
    /// Family.
    pub family: Family,
    /// Entries of all network namespaces.
    pub entries: u64,
    /// `gc_thresh3`.
    pub limit: Option<u64>,
    /// Growth of `table_fulls` in [`MINUTES`]: entries that could not be made.
    pub overflows: u64,
}

/// Counters of one link, as growth.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct LinkCounters {
    /// Its name.
    pub link: String,
    /// `IFF_UP`: not brought down by an administrator.
    pub up: bool,
    /// Packets received and sent in [`MINUTES`].
    pub packets: u64,
    /// `rx_errors` and `tx_errors` in [`MINUTES`]. Drops are no errors: packets of unknown protocols count there.
    pub errors: u64,
    /// `carrier_changes` in [`CARRIER_MINUTES`]: losing it and getting it back are two.
    pub carrier_changes: u64,
}

/// IPv4 switches of one link, as they take effect (`net.ipv4.conf.all` included).
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct LinkSwitches {
    /// Its index.
    pub index: u32,
    /// Its name.
    pub link: String,
    /// `forwarding`: whether packets that come in here are forwarded.
    pub forwarding: bool,
    /// `proxy_arp`.
    pub proxy_arp: bool,
    /// `rp_filter`: 0 off, 1 strict, 2 loose.
    pub rp_filter: u32,
}

impl Traffic {
    /// Nothing looked at yet.
    pub fn not_yet() -> Self {
        Traffic {
            sockets: Seen::not_yet("TCP sockets"),
            neighbours: Vec::new(),
            links: Seen::not_yet("link counters"),
            switches: Seen::not_yet("link switches"),
            bridge_calls_iptables: Seen::not_yet("net.bridge.bridge-nf-call-iptables"),
            reverse_path_drops: 0,
            too_long: 0,
        }
    }
}

impl Snapshot {
    /// SYNs that this node sent again in [`MINUTES`], and connections that it tracks, its pods' too: `120.81234`. None where
    /// one of the two cannot be seen.
    pub(crate) fn load(&self) -> Option<String> {
        let (sockets, conntrack) = (self.traffic.sockets.get()?, self.conntrack.get()?);
        Some(format!("{}.{}", sockets.syn_retransmits_since, conntrack.count))
    }
}

#[cfg(test)]
mod tests {
    use jiff::Timestamp;

    use super::*;
    use crate::facts::{Conntrack, Identity};

    #[test]
    fn a_load_is_both_or_nothing() {
        let mut now = Snapshot::blank(Timestamp::UNIX_EPOCH, Identity::default());
        assert_eq!(now.load(), None);
        now.traffic.sockets = Seen::Yes(Sockets { syn_retransmits_since: 120, ..Sockets::default() });
        assert_eq!(now.load(), None);
        now.conntrack = Seen::Yes(Conntrack { count: 81_234, ..Conntrack::default() });
        assert_eq!(now.load().as_deref(), Some("120.81234"));
        now.conntrack = Seen::Absent;
        assert_eq!(now.load(), None, "nothing is tracked");
    }
}
