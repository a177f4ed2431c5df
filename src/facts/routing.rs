//! Links, addresses, routes, rules and neighbours, as the kernel's rtnetlink tells them.

use std::collections::BTreeMap;
use std::net::IpAddr;

use serde::Serialize;

use super::{IpsecPolicy, RouteList, Rule, Seen};

/// An address family.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize)]
pub enum Family {
    /// `AF_INET`.
    #[serde(rename = "IPv4")]
    V4,
    /// `AF_INET6`.
    #[serde(rename = "IPv6")]
    V6,
}

impl Family {
    /// The family of an address.
    pub fn of(address: IpAddr) -> Self {
        if address.is_ipv4() { Family::V4 } else { Family::V6 }
    }
}

impl std::fmt::Display for Family {
    fn fmt(&self, out: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        out.write_str(match self {
            Family::V4 => "IPv4",
            Family::V6 => "IPv6",
        })
    }
}

/// The routing state that checks use. The tables themselves are counted, and a bounded part of them is kept: a worker can
/// have tens of thousands of routes, and the kernel answers single questions ([`PodRoute`]) better than any copy.
#[derive(Debug, Clone, PartialEq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct Routing {
    /// Every link of the network namespace.
    pub links: Vec<Link>,
    /// Every address.
    pub addresses: Vec<Address>,
    /// Routes whose destination has prefix length 0, in any table but `local`.
    pub defaults: Vec<Route>,
    /// Routes counted by family and protocol number (`rtm_protocol`), the table `local` left out.
    pub by_protocol: Vec<(Family, u8, u32)>,
    /// Policy rules, in the order in which the kernel asks them.
    pub rules: Vec<Rule>,
    /// Routes of the table `main`, and of tables that policy rules name, as far as they are kept.
    pub routes: RouteList,
    /// Where there are policy rules of somebody: the kernel's own decision for addresses of other nodes and of their pods.
    pub samples: Vec<PodRoute>,
    /// Policies of IPsec; absent where the kernel has none.
    pub ipsec: Seen<Vec<IpsecPolicy>>,
    /// By link, whether a BPF program is attached by tc to what comes in from it and to what goes out to it; absent without
    /// Calico's eBPF dataplane.
    pub programs: Seen<BTreeMap<String, [bool; 2]>>,
    /// By link, the UDP port at which each WireGuard device listens; absent without such a device.
    pub wireguard: Seen<BTreeMap<String, u16>>,
    /// Neighbour entries of the gateways of [`Routing::defaults`].
    pub gateways: Vec<Neighbour>,
    /// The kernel's own decision for every local pod's address, by sandbox identifier.
    pub pods: BTreeMap<String, Vec<PodRoute>>,
}

/// `IFLA_INFO_KIND` of WireGuard's devices.
pub(crate) const WIREGUARD: &str = "wireguard";

/// A network interface.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct Link {
    /// `ifi_index`.
    pub index: u32,
    /// `IFLA_IFNAME`.
    pub name: String,
    /// `IFLA_INFO_KIND`: `veth`, `bridge`, `vxlan`, ...; none for a hardware interface and for `lo`.
    pub kind: Option<String>,
    /// `IFF_UP`.
    pub up: bool,
    /// `IFF_LOWER_UP`.
    pub carrier: bool,
    /// `IFF_LOOPBACK`.
    pub loopback: bool,
    /// `IFLA_MTU`, in bytes.
    pub mtu: u32,
    /// `IFLA_MASTER`: the bridge or bond that this link belongs to.
    pub master: Option<u32>,
    /// `IFLA_VXLAN_PORT`: the UDP port that a VXLAN device sends to and listens at.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub vxlan_port: Option<u16>,
}

/// An address of a link.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct Address {
    /// `ifi_index` of the link.
    pub link: u32,
    /// The address.
    pub address: IpAddr,
    /// Its prefix length.
    pub prefix: u8,
    /// Whether its scope is global (`RT_SCOPE_UNIVERSE`).
    pub global: bool,
}

/// `rtm_type` of `linux/rtnetlink.h`, as far as checks tell types apart.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize)]
#[serde(rename_all = "camelCase")]
pub enum RouteKind {
    /// `RTN_UNICAST`.
    Unicast,
    /// `RTN_LOCAL`: the address is this node's own.
    Local,
    /// `RTN_BLACKHOLE`.
    Blackhole,
    /// `RTN_UNREACHABLE`.
    Unreachable,
    /// `RTN_PROHIBIT`.
    Prohibit,
    /// Any other.
    Other(u8),
}

/// One route.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct Route {
    /// Family.
    pub family: Family,
    /// `RTA_TABLE`; 254 is `main`.
    pub table: u32,
    /// `rtm_protocol`: 2 kernel, 3 boot, 4 static, 12 bird, 16 dhcp, 80 Felix.
    pub protocol: u8,
    /// `rtm_type`.
    pub kind: RouteKind,
    /// `RTA_PRIORITY`.
    pub metric: Option<u32>,
    /// Next hops: gateway and link, one or more.
    pub next_hops: Vec<(Option<IpAddr>, Option<u32>)>,
}

/// State of a neighbour entry (`NUD_*` of `linux/neighbour.h`).
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "camelCase")]
pub enum NeighbourState {
    /// `NUD_INCOMPLETE`: being resolved, no answer so far.
    Incomplete,
    /// `NUD_REACHABLE`.
    Reachable,
    /// `NUD_STALE`: known, not confirmed lately. Normal on a quiet node.
    Stale,
    /// `NUD_DELAY` or `NUD_PROBE`: being confirmed.
    Probing,
    /// `NUD_FAILED`: nobody answered.
    Failed,
    /// `NUD_NOARP` or `NUD_PERMANENT`: needs no resolution.
    Fixed,
    /// `NUD_NONE`.
    None,
}

/// One neighbour entry.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct Neighbour {
    /// `ifi_index` of the link.
    pub link: u32,
    /// Its address.
    pub address: IpAddr,
    /// Its state.
    pub state: NeighbourState,
}

/// Where the kernel would send a packet for one address of a local pod.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct PodRoute {
    /// The pod's address, as the runtime tells it.
    pub address: IpAddr,
    /// The kernel's answer to `RTM_GETROUTE`.
    pub answer: Seen<RouteAnswer>,
}

/// The answer to `RTM_GETROUTE` for one address.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
#[serde(rename_all = "camelCase")]
pub enum RouteAnswer {
    /// It leaves by this link, through this gateway if there is one.
    Via {
        /// `RTA_OIF`.
        link: u32,
        /// `RTA_GATEWAY`.
        gateway: Option<IpAddr>,
        /// `rtm_type`.
        kind: RouteKind,
    },
    /// There is no way: unreachable, blackhole or prohibited. The text is the kernel's error.
    NoWay(String),
}

impl Link {
    /// A link that works, of a test.
    #[cfg(test)]
    pub(crate) fn working(index: u32, name: &str, kind: Option<&str>) -> Self {
        Self {
            index,
            name: name.into(),
            kind: kind.map(Into::into),
            up: true,
            carrier: true,
            loopback: name == "lo",
            mtu: 1500,
            master: None,
            vxlan_port: None,
        }
    }

    /// Whether it is the node's end of a link to a pod that Calico's CNI plugin made: `cali` and eleven digits. Calico used
    /// for policies alone leaves the links of other CNIs their names.
    pub fn is_calico_pod(&self) -> bool {
        self.kind.as_deref() == Some("veth") && self.name.starts_with("cali")
    }

    /// Whether a pod that is routed to it directly is its other end: a veth that is a port of nothing, as Calico and the
    /// plugin ptp make them.
    pub(crate) fn is_own_of_pod(&self) -> bool {
        self.kind.as_deref() == Some("veth") && self.master.is_none()
    }
}

impl Routing {
    /// The link with this index.
    pub fn link(&self, index: u32) -> Option<&Link> {
        self.links.iter().find(|link| link.index == index)
    }

    /// The UDP port that the device of a tunnel sends to and listens at, if it is known.
    pub(crate) fn tunnel_port(&self, link: &Link) -> Option<u16> {
        let listens =
            || self.wireguard.get()?.get(&link.name).copied().filter(|_| link.kind.as_deref() == Some(WIREGUARD));
        link.vxlan_port.or_else(listens)
    }

    /// The link's name, or its index when it is not known.
    pub fn link_name(&self, index: u32) -> String {
        self.link(index).map_or_else(|| format!("link {index}"), |link| link.name.clone())
    }

    /// Links that carry a default route.
    pub fn uplinks(&self) -> impl Iterator<Item = u32> + '_ {
        self.defaults.iter().flat_map(|route| route.next_hops.iter().filter_map(|(_, link)| *link))
    }
}

/// The name of a route's protocol as `ip route` prints it (`/etc/iproute2/rt_protos`), or its number.
pub fn protocol_name(protocol: u8) -> String {
    match protocol {
        1 => "redirect".into(),
        2 => "kernel".into(),
        3 => "boot".into(),
        4 => "static".into(),
        9 => "ra".into(),
        12 => "bird".into(),
        16 => "dhcp".into(),
        other => other.to_string(),
    }
}
