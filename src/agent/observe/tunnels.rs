//! Whether packets between this node and the others come through the tunnels that carry pods' packets.
//!
//! An idle tunnel shows nothing, so it is probed: a TCP segment to the other end's own address. Any answer, most likely that
//! the port is closed, proves the path both ways; so does none of the other node's services hear of it. Silence counts
//! only if the kernel sends the probe through the tunnel and the other node answers the same probe outside of it.

use std::collections::{HashMap, HashSet};
use std::io::ErrorKind;
use std::net::{IpAddr, UdpSocket};
use std::time::Duration;

use jiff::Timestamp;
use tokio::net::TcpStream;
use tokio::time::timeout;

use crate::facts::{ClusterMap, TunnelPeer};

/// The port `discard`, where nobody listens, and the kubelet's for nodes that answer nothing on closed ports.
const PORTS: [u16; 2] = [9, 10250];
/// An answer takes milliseconds; a segment that is lost is sent again after 1 s.
const ANSWER: Duration = Duration::from_millis(1500);
/// So many silences in a row count.
const STRIKES: u8 = 3;
/// So many silent peers are probed again in one look.
const AGAIN: usize = 2;
/// A node that was added less than these seconds ago may not have its tunnel yet.
const NEW: i64 = 300;

/// What there is to probe.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Targets {
    /// This node's ends of tunnels.
    own: Vec<IpAddr>,
    /// The other ends, and since when their nodes are in the cluster.
    peers: Vec<(TunnelPeer, Option<Timestamp>)>,
}

/// The other nodes' ends of tunnels; none when this node has no tunnel. Pools do not decide: WireGuard carries the packets of those
/// that are not encapsulated too, and those of a disabled pool still have theirs.
pub(crate) fn targets(map: &ClusterMap) -> Option<Targets> {
    let own = map.this().map(|node| node.tunnels.clone()).filter(|own| !own.is_empty())?;
    let peers = map.others().filter(|node| node.ready).flat_map(|node| {
        node.tunnels.iter().filter_map(|tunnel| {
            let address = node.addresses.iter().find(|address| address.is_ipv4() == tunnel.is_ipv4())?;
            let peer = TunnelPeer { node: node.name.clone(), address: *address, tunnel: *tunnel };
            Some((peer, node.created_at))
        })
    });
    Some(Targets { own, peers: peers.collect() })
}

/// Probes one peer after the other, and those that were silent again.
#[derive(Debug, Default)]
pub(crate) struct TunnelSource {
    next: usize,
    strikes: HashMap<IpAddr, u8>,
}

impl TunnelSource {
    /// Probes the next peer, and a few that were silent; answers with those that have been for long enough.
    pub(crate) async fn look(&mut self, targets: &Targets, now: Timestamp) -> Vec<TunnelPeer> {
        let old = |at: Option<Timestamp>| at.is_none_or(|at| now.as_second() - at.as_second() >= NEW);
        let peers: Vec<&TunnelPeer> = targets.peers.iter().filter(|(_, at)| old(*at)).map(|(peer, _)| peer).collect();
        let present: HashSet<IpAddr> = peers.iter().map(|peer| peer.tunnel).collect();
        self.strikes.retain(|tunnel, _| present.contains(tunnel));
        let (mut silent, others): (Vec<&TunnelPeer>, Vec<&TunnelPeer>) =
            peers.iter().partition(|peer| self.strikes.contains_key(&peer.tunnel));
        let first = self.next % silent.len().max(1);
        silent.rotate_left(first);
        silent.truncate(AGAIN);
        silent.extend(others.get(self.next % others.len().max(1)));
        self.next = self.next.wrapping_add(1);
        let probes = silent.into_iter().map(|peer| async { (peer.tunnel, is_blocked(&targets.own, peer).await) });
        for (tunnel, blocked) in futures::future::join_all(probes).await {
            if blocked {
                let strikes = self.strikes.entry(tunnel).or_default();
                *strikes = strikes.saturating_add(1);
            } else {
                self.strikes.remove(&tunnel);
            }
        }
        let sure = |peer: &&TunnelPeer| self.strikes.get(&peer.tunnel).is_some_and(|strikes| *strikes >= STRIKES);
        peers.into_iter().filter(sure).cloned().collect()
    }
}

/// Whether a peer is silent through the tunnel and answers outside of it.
async fn is_blocked(own: &[IpAddr], peer: &TunnelPeer) -> bool {
    for port in PORTS {
        if !goes_through_tunnel(own, peer.tunnel) || answers(peer.tunnel, port).await {
            return false;
        }
        if answers(peer.address, port).await {
            return true;
        }
    }
    false
}

/// Whether the kernel sends packets for this address through a tunnel: it then takes the tunnel's own address as their
/// sender. Within one subnet a pool that is encapsulated across subnets needs none, and without a route there is no path.
fn goes_through_tunnel(own: &[IpAddr], address: IpAddr) -> bool {
    let any = if address.is_ipv4() { "0.0.0.0:0" } else { "[::]:0" };
    // Connecting a UDP socket sends nothing.
    let sender = UdpSocket::bind(any).and_then(|socket| {
        socket.connect((address, PORTS[0]))?;
        socket.local_addr()
    });
    sender.is_ok_and(|sender| own.contains(&sender.ip()))
}

/// Whether anybody answers, whatever it is.
async fn answers(address: IpAddr, port: u16) -> bool {
    match timeout(ANSWER, TcpStream::connect((address, port))).await {
        Ok(Ok(_)) => true,
        Ok(Err(error)) => error.kind() != ErrorKind::TimedOut,
        Err(_) => false,
    }
}

#[cfg(test)]
mod tests {
    use super::super::netns::NetNs;
    use super::*;
    use crate::facts::{ClusterNode, Encapsulation, Pool};

    fn address(text: &str) -> IpAddr {
        text.parse().expect("an address")
    }

    fn node(number: u8) -> ClusterNode {
        ClusterNode {
            name: format!("n{number}"),
            ready: true,
            created_at: None,
            addresses: vec![address(&format!("10.0.0.{number}"))],
            tunnels: vec![address(&format!("10.244.{number}.0"))],
            blocks: vec![],
        }
    }

    fn map() -> ClusterMap {
        let pool = Pool {
            name: "default".into(),
            cidr: "10.244.0.0/16".parse().expect("a prefix"),
            ipip: Encapsulation::Never,
            vxlan: Encapsulation::Always,
            disabled: false,
        };
        let nodes = vec![node(1), node(2)];
        ClusterMap { own: "n1".into(), nodes, pools: vec![pool], full_mesh: None, services: vec![], typha_port: None }
    }

    #[test]
    fn targets_are_ready_nodes_that_have_a_tunnel_as_this_one_has() {
        let found = targets(&map()).expect("this node has one");
        assert_eq!(found.own, [address("10.244.1.0")]);
        assert_eq!(found.peers[0].0.tunnel, address("10.244.2.0"));
        let changed = |change: fn(&mut ClusterMap)| {
            let mut map = map();
            change(&mut map);
            targets(&map)
        };
        // WireGuard needs no pool that is encapsulated.
        assert_eq!(changed(|map| map.pools[0].vxlan = Encapsulation::Never), Some(found.clone()));
        assert_eq!(changed(|map| map.pools[0].disabled = true), Some(found));
        assert_eq!(changed(|map| map.nodes[0].tunnels.clear()), None);
        let none = |change| changed(change).is_some_and(|targets| targets.peers.is_empty());
        assert!(none(|map| map.nodes[1].ready = false));
        assert!(none(|map| map.nodes[1].tunnels.clear()));
    }

    /// Two namespaces that are neighbours, with a tunnel of this kind between them.
    fn joined(tunnel: &[&str]) -> (NetNs, NetNs) {
        let (one, two) = (NetNs::new(), NetNs::new());
        one.command("ip", &["link", "add", "eth0", "type", "veth", "peer", "name", "eth0", "netns", &two.path()]);
        for (namespace, own, other) in [(&one, 1, 2), (&two, 2, 1)] {
            let ip = |args: &[&str]| namespace.command("ip", args);
            let (local, remote) = (format!("10.0.0.{own}"), format!("10.0.0.{other}"));
            ip(&["address", "add", &format!("{local}/24"), "dev", "eth0"]);
            ip(&["link", "set", "eth0", "up"]);
            let ends = ["local", &local, "remote", &remote];
            ip(&[&["link", "add", "calico", "type"], tunnel, &ends].concat());
            ip(&["address", "add", &format!("10.244.{own}.0/32"), "dev", "calico"]);
            ip(&["link", "set", "calico", "up"]);
            ip(&["route", "add", &format!("10.244.{other}.0/26"), "dev", "calico"]);
        }
        (one, two)
    }

    fn look(namespace: &NetNs, source: &mut TunnelSource, times: u8) -> usize {
        look_at(namespace, source, times, None)
    }

    fn look_at(namespace: &NetNs, source: &mut TunnelSource, times: u8, since: Option<Timestamp>) -> usize {
        let mut targets = targets(&map()).expect("encapsulated");
        targets.peers[0].1 = since;
        let now = Timestamp::now();
        namespace.block_on(|| async {
            for _ in 1..times {
                source.look(&targets, now).await;
            }
            source.look(&targets, now).await.len()
        })
    }

    #[test]
    fn vxlan_is_filtered_and_free_again() {
        let filter = ["-p", "udp", "--dport", "4789"];
        let (one, two) = joined(&["vxlan", "id", "4096", "dstport", "4789", "dev", "eth0"]);
        let mut source = TunnelSource::default();
        assert_eq!(look(&one, &mut source, 3), 0);
        two.command("iptables", &[&["-I", "INPUT"][..], &filter, &["-j", "DROP"]].concat());
        assert_eq!(look(&one, &mut source, 2), 0, "not sure yet");
        assert_eq!(look(&one, &mut source, 1), 1);
        assert_eq!(look_at(&one, &mut source, 3, Some(Timestamp::now())), 0, "a node that has just been added");
        assert_eq!(look(&one, &mut source, 3), 1);
        two.command("iptables", &["-F"]);
        assert_eq!(look(&one, &mut source, 1), 0);
        // Everything is filtered, or the machine is off: that is not the tunnel.
        two.command("iptables", &["-I", "INPUT", "-j", "DROP"]);
        assert_eq!(look(&one, &mut source, 1), 0);
        assert!(source.strikes.is_empty());
        two.command("iptables", &["-F"]);
        // Not through the tunnel: nothing is said about it.
        one.command("ip", &["route", "replace", "10.244.2.0/26", "via", "10.0.0.2"]);
        two.command("iptables", &["-I", "INPUT", "-d", "10.244.2.0", "-j", "DROP"]);
        assert_eq!(look(&one, &mut source, 1), 0);
        assert!(source.strikes.is_empty());
    }
}
