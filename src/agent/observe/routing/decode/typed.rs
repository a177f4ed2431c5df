//! What is read with the types of the crate netlink-packet-route: addresses, policy rules, default routes, and the kernel's answer
//! about one address.

use std::net::IpAddr;

use ipnet::IpNet;
use netlink_packet_core::NetlinkPayload;
use netlink_packet_route::address::{AddressAttribute, AddressScope};
use netlink_packet_route::route::{RouteAddress, RouteAttribute, RouteHeader, RouteMessage, RouteVia};
use netlink_packet_route::rule::{RuleAction as Action, RuleAttribute, RuleFlags};
use netlink_packet_route::{AddressFamily, RouteNetlinkMessage as Message};
use nix::errno::Errno;

use super::{family, kind};
use crate::agent::observe::netlink::refused;
use crate::agent::observe::routing::error_number;
use crate::facts::{Address, Family, LookError, Reason, Route, RouteAnswer, Rule, RuleAction};

pub(in super::super) fn address(message: &Message) -> Option<Address> {
    let Message::NewAddress(message) = message else { return None };
    // `IFA_ADDRESS` is the peer's on a point-to-point link; `IFA_LOCAL` is then this node's.
    let mut found = None;
    for attribute in &message.attributes {
        match attribute {
            AddressAttribute::Local(address) => found = Some(*address),
            AddressAttribute::Address(address) => found = found.or(Some(*address)),
            _ => {}
        }
    }
    Some(Address {
        link: message.header.index,
        address: found?,
        prefix: message.header.prefix_len,
        global: message.header.scope == AddressScope::Universe,
    })
}

pub(in super::super) fn rule(message: &Message) -> Option<Rule> {
    let Message::NewRule(message) = message else { return None };
    let header = &message.header;
    let mut rule = Rule {
        family: family(header.family)?,
        priority: 0,
        table: header.table.into(),
        action: match header.action {
            Action::ToTable => RuleAction::Lookup,
            Action::Blackhole | Action::Unreachable | Action::Prohibit => RuleAction::Drop,
            _ => RuleAction::Nothing,
        },
        from: None,
        to: None,
        mark: None,
        iif: None,
        narrow: header.tos != 0,
        invert: header.flags.contains(RuleFlags::Invert),
        suppress: None,
    };
    for attribute in &message.attributes {
        match attribute {
            RuleAttribute::Priority(priority) => rule.priority = *priority,
            RuleAttribute::Table(table) => rule.table = *table,
            RuleAttribute::Source(address) => rule.from = IpNet::new(*address, header.src_len).ok(),
            RuleAttribute::Destination(address) => rule.to = IpNet::new(*address, header.dst_len).ok(),
            RuleAttribute::FwMark(mark) => rule.mark = Some((*mark, rule.mark.map_or(u32::MAX, |(_, mask)| mask))),
            RuleAttribute::FwMask(mask) if *mask != 0 => {
                rule.mark = Some((rule.mark.map_or(0, |(mark, _)| mark), *mask));
            }
            RuleAttribute::Iifname(name) => rule.iif = Some(name.clone()),
            RuleAttribute::Goto(target) => rule.action = RuleAction::Goto(*target),
            // All ones is the kernel's word for "not set".
            RuleAttribute::SuppressPrefixLen(length) => rule.suppress = u8::try_from(*length).ok(),
            RuleAttribute::L3MDev(true) => rule.action = RuleAction::Nothing,
            RuleAttribute::Oifname(_)
            | RuleAttribute::UidRange(_)
            | RuleAttribute::IpProtocol(_)
            | RuleAttribute::SourcePortRange(_)
            | RuleAttribute::DestinationPortRange(_)
            | RuleAttribute::TunId(_) => rule.narrow = true,
            _ => {}
        }
    }
    Some(rule)
}

pub(super) fn default_route(message: &RouteMessage, family: Family) -> Route {
    let (mut metric, mut table) = (None, message.header.table.into());
    for attribute in &message.attributes {
        match attribute {
            RouteAttribute::Priority(priority) => metric = Some(*priority),
            // Numbers above 255 are only here; the header then has `RT_TABLE_COMPAT`.
            RouteAttribute::Table(number) => table = *number,
            _ => {}
        }
    }
    let (protocol, kind) = (message.header.protocol.into(), kind(message.header.kind));
    Route { family, table, protocol, kind, metric, next_hops: next_hops(message) }
}

fn next_hops(message: &RouteMessage) -> Vec<(Option<IpAddr>, Option<u32>)> {
    let several = message.attributes.iter().find_map(|attribute| match attribute {
        RouteAttribute::MultiPath(hops) => Some(hops),
        _ => None,
    });
    if let Some(hops) = several {
        let link = |index: u32| (index != 0).then_some(index);
        return hops.iter().map(|hop| (gateway(&hop.attributes), link(hop.interface_index))).collect();
    }
    let single = (gateway(&message.attributes), out_link(&message.attributes));
    if single == (None, None) { Vec::new() } else { vec![single] }
}

/// `RTA_GATEWAY`, or `RTA_VIA`, a gateway of the other family.
fn gateway(attributes: &[RouteAttribute]) -> Option<IpAddr> {
    attributes.iter().find_map(|attribute| match attribute {
        RouteAttribute::Gateway(RouteAddress::Inet(address)) | RouteAttribute::Via(RouteVia::Inet(address)) => {
            Some(IpAddr::V4(*address))
        }
        RouteAttribute::Gateway(RouteAddress::Inet6(address)) | RouteAttribute::Via(RouteVia::Inet6(address)) => {
            Some(IpAddr::V6(*address))
        }
        _ => None,
    })
}

fn out_link(attributes: &[RouteAttribute]) -> Option<u32> {
    attributes.iter().find_map(|attribute| match attribute {
        RouteAttribute::Oif(link) => Some(*link),
        _ => None,
    })
}

/// The question for one address.
pub(in super::super) fn lookup(address: IpAddr) -> RouteMessage {
    let (address_family, destination_prefix_length) = match address {
        IpAddr::V4(_) => (AddressFamily::Inet, 32),
        IpAddr::V6(_) => (AddressFamily::Inet6, 128),
    };
    let mut message = RouteMessage::default();
    message.header = RouteHeader { address_family, destination_prefix_length, ..RouteHeader::default() };
    message.attributes.push(RouteAttribute::Destination(address.into()));
    message
}

/// The kernel's answer to [`lookup`].
pub(in super::super) fn answer(what: &str, payload: &NetlinkPayload<Message>) -> Result<RouteAnswer, LookError> {
    match payload {
        NetlinkPayload::InnerMessage(Message::NewRoute(message)) => match out_link(&message.attributes) {
            Some(link) => {
                let kind = kind(message.header.kind);
                Ok(RouteAnswer::Via { link, gateway: gateway(&message.attributes), kind })
            }
            None => Err(LookError::new(what, Reason::Malformed, "the kernel's answer names no link")),
        },
        NetlinkPayload::Error(error) => {
            let error = error_number(error.raw_code());
            no_way(&error).map(RouteAnswer::NoWay).ok_or_else(|| refused(what, &error))
        }
        _ => Err(LookError::new(what, Reason::Malformed, "the kernel answered something else")),
    }
}

/// The errors of route types that lead nowhere (`fib_props` of `net/ipv4/fib_semantics.c`, `ip6_rt_type_to_error` of
/// `net/ipv6/route.c`).
fn no_way(error: &std::io::Error) -> Option<String> {
    let errno = Errno::from_raw(error.raw_os_error()?);
    let type_of_route = match errno {
        Errno::ENETUNREACH => "no route",
        Errno::EHOSTUNREACH => "a route of type unreachable",
        Errno::EINVAL => "a route of type blackhole",
        Errno::EACCES => "a route of type prohibit",
        _ => return None,
    };
    Some(format!("{} ({type_of_route})", errno.desc()))
}
