//! BGP on this node: what BIRD says over its control sockets, and what the kernel's TCP says about port 179.

use std::net::IpAddr;

use ipnet::IpNet;
use serde::Serialize;

use super::{Family, Seen};

/// Everything about BGP here.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct Bgp {
    /// One for each control socket that is there, or was there earlier.
    pub daemons: Vec<BirdDaemon>,
    /// What TCP knows about the sessions that are not established; absent while all are, since nobody looks then.
    pub tcp: Seen<BgpTcp>,
}

/// A BIRD, by its control socket.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct BirdDaemon {
    /// `/var/run/calico/bird.ctl`, ...
    pub socket: String,
    /// The family that the socket's name stands for. BIRD 3 serves both over that of IPv4.
    pub family: Family,
    /// Whether it had peers when it last answered.
    pub had_peers: bool,
    /// What it said. A socket that is gone is unreadable as well: somebody answered there once.
    pub bird: Seen<Bird>,
}

/// What a BIRD says.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct Bird {
    /// `1.6.8`, `2.0.12`, ...
    pub version: String,
    /// Whether it is recovering from a restart of its own (reply 0024 of `show status`): it waits for its peers, and
    /// leaves the kernel's routes alone until then.
    pub recovering: bool,
    /// Protocols that write routes into the kernel.
    pub kernels: Vec<KernelProtocol>,
    /// BGP sessions.
    pub peers: Vec<BgpPeer>,
}

/// A protocol `kernel` of BIRD.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct KernelProtocol {
    /// `kernel1`.
    pub name: String,
    /// BIRD's table: `master`, `master4`, `master6`.
    pub table: String,
    /// `up`, `down`, `start`, `stop`, ...
    pub state: String,
    /// Routes that BIRD has for the kernel; none while the protocol is down.
    pub exported: Option<u32>,
    /// How many of them the kernel does not have.
    pub missing: u32,
    /// The first of those.
    pub examples: Vec<IpNet>,
}

/// A BGP session.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct BgpPeer {
    /// BIRD's name for it; Calico's are `Mesh_10_0_0_2`, `Node_10_0_0_2`, `Global_10_0_0_2`.
    pub name: String,
    /// `Neighbor address`.
    pub address: Option<IpAddr>,
    /// `Neighbor AS`.
    pub remote_as: Option<u32>,
    /// State of the session.
    pub state: BgpState,
    /// Since when, in BIRD's own format.
    pub since: String,
    /// Class and text of the last error: `Socket: Connection refused`.
    pub error: Option<String>,
    /// Routes from the peer.
    pub imported: u32,
    /// Routes to the peer.
    pub exported: u32,
    /// `Neighbor graceful restart active`: the peer restarts, and its routes stay.
    pub restarting: bool,
}

/// State of a BGP session as BIRD prints it (`proto/bgp/bgp.c`).
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize)]
pub enum BgpState {
    /// Waits after an error.
    Idle,
    /// Opens a connection.
    Connect,
    /// Waits before it opens a connection.
    Active,
    /// Waits for the peer to open one: in Calico's mesh the node with the higher address does.
    Passive,
    /// Connected, waits for the peer's OPEN.
    OpenSent,
    /// Waits for the peer's first KEEPALIVE.
    OpenConfirm,
    /// Works.
    Established,
    /// Is being closed.
    Close,
    /// Switched off.
    Down,
    /// A word that no known BIRD prints.
    Unknown,
}

impl BgpState {
    /// All states.
    pub const ALL: [BgpState; 10] = [
        BgpState::Idle,
        BgpState::Connect,
        BgpState::Active,
        BgpState::Passive,
        BgpState::OpenSent,
        BgpState::OpenConfirm,
        BgpState::Established,
        BgpState::Close,
        BgpState::Down,
        BgpState::Unknown,
    ];

    /// BIRD's word for it.
    pub fn as_str(self) -> &'static str {
        match self {
            BgpState::Idle => "Idle",
            BgpState::Connect => "Connect",
            BgpState::Active => "Active",
            BgpState::Passive => "Passive",
            BgpState::OpenSent => "OpenSent",
            BgpState::OpenConfirm => "OpenConfirm",
            BgpState::Established => "Established",
            BgpState::Close => "Close",
            BgpState::Down => "Down",
            BgpState::Unknown => "Unknown",
        }
    }
}

/// What the kernel's TCP knows about sessions that are not established.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct BgpTcp {
    /// Addresses whose handshake on port 179 gets no answer: the first segment was sent again.
    pub silent: Vec<IpAddr>,
    /// Addresses to which a connection on port 179 stands, without a BGP session on it.
    pub connected: Vec<IpAddr>,
    /// `TCPMD5NotFound` of `/proc/net/netstat` grew lately: segments without a signature, where one is required here.
    pub unsigned: bool,
    /// `TCPMD5Unexpected` grew: segments with a signature, where none is expected here.
    pub unexpected: bool,
    /// `TCPMD5Failure` grew: signatures made with another password.
    pub different: bool,
}

impl Bgp {
    /// What the daemons say that answer.
    pub fn birds(&self) -> impl Iterator<Item = &Bird> {
        self.daemons.iter().filter_map(|daemon| daemon.bird.get())
    }

    /// All sessions of the daemons that answer.
    pub fn peers(&self) -> impl Iterator<Item = &BgpPeer> {
        self.birds().flat_map(|bird| &bird.peers)
    }
}

impl BgpPeer {
    /// Whether it works.
    pub fn is_established(&self) -> bool {
        self.state == BgpState::Established
    }

    /// The peer's address, or the session's name where BIRD does not tell the address.
    pub fn place(&self) -> String {
        self.address.map_or_else(|| self.name.clone(), |address| address.to_string())
    }
}

/// The other end of a tunnel, on another node.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct TunnelPeer {
    /// The node's name.
    pub node: String,
    /// Its own address, outside of the tunnel.
    pub address: IpAddr,
    /// The address of its end of the tunnel.
    pub tunnel: IpAddr,
}
