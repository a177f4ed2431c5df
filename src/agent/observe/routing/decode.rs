//! From rtnetlink's messages to the facts: pure, and without a word about what is missing.

use std::collections::BTreeMap;
use std::net::IpAddr;

use ipnet::IpNet;
use netlink_packet_core::Parseable as _;
use netlink_packet_route::AddressFamily;
use netlink_packet_route::link::LinkFlags;
use netlink_packet_route::neighbour::{NeighbourAddress, NeighbourAttribute, NeighbourMessage, NeighbourState as Nud};
use netlink_packet_route::route::{RouteFlags, RouteMessage, RouteType};

use crate::agent::observe::netlink::{Attributes, Malformed, find, put, text};
use crate::facts::{
    BlockSums, Family, IpsecPolicy, Link, Neighbour, NeighbourState, Route, RouteKind, RouteList, TableRoute, is_block,
};
use typed::default_route;
pub(super) use typed::{address, answer, lookup, rule};

mod typed;

/// `RT_TABLE_LOCAL`: the kernel's own, for the node's own addresses.
const LOCAL: u8 = 255;
/// `RT_TABLE_MAIN`.
const MAIN: u8 = 254;

/// Attributes of a route (`linux/rtnetlink.h`).
const RTA_DST: u16 = 1;
const RTA_OIF: u16 = 4;
const RTA_GATEWAY: u16 = 5;
const RTA_PRIORITY: u16 = 6;
const RTA_MULTIPATH: u16 = 9;
const RTA_TABLE: u16 = 15;
const RTA_VIA: u16 = 18;
/// `sizeof(struct rtnexthop)`.
const NEXT_HOP: usize = 8;

/// Of BIRD's and Felix's routes so many are kept: one per block of the cluster.
const CALICOS: usize = 12_288;
/// And of all others.
const OTHERS: usize = 4_096;

/// `linux/xfrm.h`: `struct xfrm_userpolicy_info`, its `dir` for packets that leave, and `XFRM_POLICY_BLOCK`.
const POLICY: usize = 168;
const POLICY_DIR: usize = 160;
const POLICY_ACTION: usize = 161;
const OUT: u8 = 1;
const BLOCK: u8 = 1;
const XFRMA_TMPL: u16 = 5;
const XFRMA_IF_ID: u16 = 31;

/// `linux/if_link.h`.
const IFLA_IFNAME: u16 = 3;
const IFLA_MTU: u16 = 4;
const IFLA_MASTER: u16 = 10;
const IFLA_LINKINFO: u16 = 18;
const IFLA_INFO_KIND: u16 = 1;
const IFLA_INFO_DATA: u16 = 2;
const IFLA_VXLAN_PORT: u16 = 15;

/// Routes by family and protocol.
pub(super) type Counts = Vec<(Family, u8, u32)>;

fn family(family: AddressFamily) -> Option<Family> {
    match family {
        AddressFamily::Inet => Some(Family::V4),
        AddressFamily::Inet6 => Some(Family::V6),
        _ => None,
    }
}

/// `struct ifinfomsg` with `AF_UNSPEC`, and the attribute `IFLA_EXT_MASK` (29) with `RTEXT_FILTER_SKIP_STATS`: counters
/// are most of a link's message, and nobody looks at them.
pub(super) fn all_links() -> Vec<u8> {
    let mut body = vec![0; 16];
    put(&mut body, 29, &(1_u32 << 3).to_ne_bytes());
    body
}

/// One `RTM_NEWLINK`, of which a handful of attributes is used. Decoded whole, 223 links cost 4 MB and 7 ms.
pub(super) fn link(body: &[u8]) -> Result<Link, Malformed> {
    let (head, attributes) = body.split_first_chunk::<16>().ok_or(Malformed("a link ends in its header"))?;
    let index = u32::from_ne_bytes([head[4], head[5], head[6], head[7]]);
    let flags = LinkFlags::from_bits_retain(u32::from_ne_bytes([head[8], head[9], head[10], head[11]]));
    let mut link = Link {
        index,
        name: String::new(),
        kind: None,
        up: flags.contains(LinkFlags::Up),
        carrier: flags.contains(LinkFlags::LowerUp),
        loopback: flags.contains(LinkFlags::Loopback),
        mtu: 0,
        master: None,
        vxlan_port: None,
    };
    for attribute in Attributes(attributes) {
        match attribute? {
            (IFLA_IFNAME, value) => link.name = text(value).into_owned(),
            (IFLA_MTU, value) => link.mtu = number(value)?,
            (IFLA_MASTER, value) => link.master = Some(number(value)?),
            (IFLA_LINKINFO, value) => {
                link.kind = find(Attributes(value), IFLA_INFO_KIND)?.map(|kind| text(kind).into_owned());
                if link.kind.as_deref() == Some("vxlan") {
                    link.vxlan_port = vxlan_port(value)?;
                }
            }
            _ => {}
        }
    }
    Ok(link)
}

/// Of what a VXLAN device says of itself, in the order of the network.
fn vxlan_port(info: &[u8]) -> Result<Option<u16>, Malformed> {
    let Some(data) = find(Attributes(info), IFLA_INFO_DATA)? else { return Ok(None) };
    let Some(port) = find(Attributes(data), IFLA_VXLAN_PORT)? else { return Ok(None) };
    port.try_into().map(|port| Some(u16::from_be_bytes(port))).map_err(|_| Malformed("a port is not 2 bytes long"))
}

fn number(value: &[u8]) -> Result<u32, Malformed> {
    value.try_into().map(u32::from_ne_bytes).map_err(|_| Malformed("a number is not 4 bytes long"))
}

/// A dump of routes, as far as it is kept.
#[derive(Default)]
pub(super) struct Routes {
    defaults: Vec<Route>,
    counts: BTreeMap<(Family, u8), u32>,
    kept: Vec<TableRoute>,
    calicos: usize,
    beyond: u32,
    /// Over Calico's blocks beyond what is kept, for the comparison with other nodes.
    sums: [BlockSums; 2],
}

impl Routes {
    /// Takes one `RTM_NEWROUTE`. Of tables other than `main` those in `tables` are kept.
    pub(super) fn add(&mut self, body: &[u8], tables: &[u32]) -> Result<(), Malformed> {
        // Only default routes are decoded in full, and there can be 100,000 others. `struct rtmsg`: family, prefix lengths,
        // type of service, table, protocol, scope, type, flags.
        let (header, attributes) = body.split_first_chunk::<12>().ok_or(Malformed("a route ends in its header"))?;
        let &[family, length, _, _, table, protocol, _, kind, ..] = header;
        let Some(family) = self::family(family.into()) else { return Ok(()) };
        let flags = u32::from_ne_bytes([header[8], header[9], header[10], header[11]]);
        // Cloned ones are cached decisions, not routes.
        if table == LOCAL || flags & RouteFlags::Cloned.bits() != 0 {
            return Ok(());
        }
        *self.counts.entry((family, protocol)).or_default() += 1;
        if length == 0 {
            let message = RouteMessage::parse(body).map_err(|_| Malformed("a default route cannot be decoded"))?;
            self.defaults.push(default_route(&message, family));
        }
        if table == MAIN || !tables.is_empty() {
            let route = table_route(family, length, table, protocol, kind, attributes)?;
            self.keep(route.filter(|route| route.table == u32::from(MAIN) || tables.contains(&route.table)));
        }
        Ok(())
    }

    fn keep(&mut self, route: Option<TableRoute>) {
        let Some(route) = route else { return };
        let calicos = route.is_calicos();
        let full = if calicos { self.calicos >= CALICOS } else { self.kept.len() - self.calicos >= OTHERS };
        if full {
            self.beyond = self.beyond.saturating_add(1);
            let routed = matches!(route.kind, RouteKind::Unicast | RouteKind::Blackhole);
            if calicos && routed && route.table == u32::from(MAIN) && is_block(route.to) {
                self.sums[usize::from(Family::of(route.to.addr()) == Family::V6)].add(route.to);
            }
        } else {
            self.calicos += usize::from(calicos);
            self.kept.push(route);
        }
    }

    /// Default routes, the counts, and the routes that are kept.
    pub(super) fn finish(self) -> (Vec<Route>, Counts, RouteList) {
        let counts = self.counts.into_iter().map(|((family, protocol), count)| (family, protocol, count)).collect();
        (self.defaults, counts, RouteList::new(self.kept, self.beyond).with_sums(self.sums))
    }
}

/// A route as it is kept; none for groups, for addresses of one link, and for what the kernel keeps for itself.
fn table_route(
    family: Family,
    length: u8,
    table: u8,
    protocol: u8,
    kind: u8,
    attributes: &[u8],
) -> Result<Option<TableRoute>, Malformed> {
    let kind = self::kind(kind.into());
    if !matches!(
        kind,
        RouteKind::Unicast | RouteKind::Blackhole | RouteKind::Unreachable | RouteKind::Prohibit | RouteKind::Other(9)
    ) {
        return Ok(None);
    }
    let mut to = match family {
        Family::V4 => IpAddr::V4([0; 4].into()),
        Family::V6 => IpAddr::V6([0; 16].into()),
    };
    let (mut table, mut metric, mut link, mut gateway, mut several) = (u32::from(table), 0, 0, None, false);
    for attribute in Attributes(attributes) {
        match attribute? {
            (RTA_DST, value) => to = ip(value)?,
            (RTA_OIF, value) => link = number(value)?,
            (RTA_GATEWAY, value) => gateway = Some(ip(value)?),
            (RTA_VIA, value) => gateway = Some(ip(value.get(2..).unwrap_or_default())?),
            (RTA_PRIORITY, value) => metric = number(value)?,
            (RTA_TABLE, value) => table = number(value)?,
            (RTA_MULTIPATH, hops) => (link, gateway, several) = first_hop(hops)?,
            _ => {}
        }
    }
    let one_link = match to {
        IpAddr::V4(address) => address.is_link_local() || address.is_multicast(),
        IpAddr::V6(address) => address.is_unicast_link_local() || address.is_multicast(),
    };
    let to = IpNet::new(to, length).map_err(|_| Malformed("a prefix is too long"))?;
    Ok((!one_link).then_some(TableRoute { table, to, metric, protocol, kind, link, gateway, several }))
}

/// The first of several next hops, and whether there are more.
fn first_hop(hops: &[u8]) -> Result<(u32, Option<IpAddr>, bool), Malformed> {
    let (head, _) = hops.split_first_chunk::<NEXT_HOP>().ok_or(Malformed("a next hop ends in its header"))?;
    let length = usize::from(u16::from_ne_bytes([head[0], head[1]]));
    let link = u32::from_ne_bytes([head[4], head[5], head[6], head[7]]);
    let attributes = hops.get(NEXT_HOP..length).ok_or(Malformed("a next hop is cut off"))?;
    let gateway = match find(Attributes(attributes), RTA_GATEWAY)? {
        Some(value) => Some(ip(value)?),
        None => find(Attributes(attributes), RTA_VIA)?.map(|via| ip(via.get(2..).unwrap_or_default())).transpose()?,
    };
    Ok((link, gateway, hops.len() > length.next_multiple_of(4)))
}

fn ip(value: &[u8]) -> Result<IpAddr, Malformed> {
    match (<[u8; 4]>::try_from(value), <[u8; 16]>::try_from(value)) {
        (Ok(four), _) => Ok(IpAddr::from(four)),
        (_, Ok(sixteen)) => Ok(IpAddr::from(sixteen)),
        _ => Err(Malformed("an address is neither 4 nor 16 bytes long")),
    }
}

/// One `XFRM_MSG_NEWPOLICY`; none if it does nothing to packets that leave, or belongs to a link of its own.
pub(super) fn ipsec(body: &[u8]) -> Result<Option<IpsecPolicy>, Malformed> {
    let (head, attributes) = body.split_first_chunk::<POLICY>().ok_or(Malformed("a policy is cut off"))?;
    // `struct xfrm_selector`: destination, source, four ports, family and prefix lengths.
    let (family, to_length, from_length) = (u16::from_ne_bytes([head[40], head[41]]), head[42], head[43]);
    let block = head[POLICY_ACTION] == BLOCK;
    if head[POLICY_DIR] != OUT || find(Attributes(attributes), XFRMA_IF_ID)?.is_some() {
        return Ok(None);
    }
    if !block && find(Attributes(attributes), XFRMA_TMPL)?.is_none() {
        return Ok(None);
    }
    let net = |bytes: &[u8], length| {
        let bytes = if family == 2 { &bytes[..4] } else { &bytes[..16] };
        IpNet::new(ip(bytes)?, length).map_err(|_| Malformed("a prefix is too long"))
    };
    Ok(Some(IpsecPolicy { from: net(&head[16..32], from_length)?, to: net(&head[..16], to_length)?, block }))
}

fn kind(kind: RouteType) -> RouteKind {
    match kind {
        RouteType::Unicast => RouteKind::Unicast,
        RouteType::Local => RouteKind::Local,
        RouteType::BlackHole => RouteKind::Blackhole,
        RouteType::Unreachable => RouteKind::Unreachable,
        RouteType::Prohibit => RouteKind::Prohibit,
        other => RouteKind::Other(other.into()),
    }
}

/// One `RTM_NEWNEIGH`; none if it is not about an IP address.
pub(super) fn neighbour(body: &[u8]) -> Result<Option<Neighbour>, Malformed> {
    let message = NeighbourMessage::parse(body).map_err(|_| Malformed("a neighbour cannot be decoded"))?;
    let address = message.attributes.iter().find_map(|attribute| match attribute {
        NeighbourAttribute::Destination(NeighbourAddress::Inet(address)) => Some(IpAddr::V4(*address)),
        NeighbourAttribute::Destination(NeighbourAddress::Inet6(address)) => Some(IpAddr::V6(*address)),
        _ => None,
    });
    let (link, state) = (message.header.ifindex, message.header.state);
    Ok(address.map(|address| Neighbour { link, address, state: neighbour_state(state) }))
}

fn neighbour_state(state: Nud) -> NeighbourState {
    match state {
        Nud::Incomplete => NeighbourState::Incomplete,
        Nud::Reachable => NeighbourState::Reachable,
        Nud::Stale => NeighbourState::Stale,
        Nud::Delay | Nud::Probe => NeighbourState::Probing,
        Nud::Failed => NeighbourState::Failed,
        Nud::Noarp | Nud::Permanent => NeighbourState::Fixed,
        _ => NeighbourState::None,
    }
}

/// The fuzz target's door.
#[cfg(any(test, fuzzing))]
pub(crate) fn fuzz(data: &[u8]) {
    use netlink_packet_core::{NetlinkMessage, NetlinkPayload};
    use netlink_packet_route::RouteNetlinkMessage as Message;
    let Some((which, body)) = data.split_first() else { return };
    match which % 7 {
        0 => drop(link(body)),
        1 => {
            let mut routes = Routes::default();
            let _ = routes.add(body, &[100]);
            let (defaults, counts, kept) = routes.finish();
            assert!(defaults.len() <= 1 && counts.iter().map(|(_, _, count)| count).sum::<u32>() <= 1);
            assert!(kept.main().len() <= 1 && kept.beyond <= 1);
        }
        2 => drop(neighbour(body)),
        // As the crate rtnetlink reads the rest.
        3 => {
            if let Ok(message) = NetlinkMessage::<Message>::deserialize(body) {
                let _ = answer("a route", &message.payload);
                if let NetlinkPayload::InnerMessage(message) = &message.payload {
                    let _ = (address(message), rule(message));
                }
            }
        }
        4 => super::programs::fuzz(body),
        5 => drop(ipsec(body)),
        _ => super::wireguard::fuzz(body),
    }
}
