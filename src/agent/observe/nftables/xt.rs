//! Conditions and targets of xtables inside rules of nf_tables, as `iptables-nft` writes them: the structures of
//! `linux/netfilter/xt_*.h`, in the machine's byte order.

use std::net::{IpAddr, SocketAddr};

use crate::agent::observe::netlink::text;
use crate::facts::{Action, FilterRule, Is};

/// Targets that end nothing (`XT_CONTINUE`).
const GO_ON: [&str; 19] = [
    "AUDIT",
    "CHECKSUM",
    "CLASSIFY",
    "CONNMARK",
    "CONNSECMARK",
    "CT",
    "DSCP",
    "ECN",
    "HMARK",
    "LED",
    "LOG",
    "MARK",
    "NFLOG",
    "NOTRACK",
    "SECMARK",
    "SET",
    "TCPMSS",
    "TOS",
    "TRACE",
];

/// What a target of xtables does.
pub(super) fn target(name: &str, revision: u32, info: Option<&[u8]>) -> Action {
    match name {
        "REJECT" => Action::Reject,
        "NFQUEUE" => Action::Queue,
        "DNAT" => Action::Dnat(translation(revision, info.unwrap_or_default())),
        _ => target_by_name(name),
    }
}

/// What a target does, if its name is enough.
pub(in crate::agent::observe) fn target_by_name(name: &str) -> Action {
    if GO_ON.contains(&name) { Action::Continue } else { Action::Other(name.to_owned()) }
}

/// `struct nf_nat_ipv4_multi_range_compat`, `nf_nat_range` and `nf_nat_range2` of `linux/netfilter/nf_nat.h`.
fn translation(revision: u32, info: &[u8]) -> Option<SocketAddr> {
    let (address, port) = match revision {
        0 => (IpAddr::from(*info.get(8..)?.first_chunk::<4>()?), 16),
        _ => (IpAddr::from(*info.get(4..)?.first_chunk::<16>()?), 36),
    };
    let port = u16::from_be_bytes(*info.get(port..)?.first_chunk()?);
    // A union with an IPv4 address in its first 4 bytes has zeroes behind it, which no IPv6 endpoint has.
    let address = match address {
        IpAddr::V6(six) if six.octets()[4..].iter().all(|byte| *byte == 0) => {
            IpAddr::from(*six.octets().first_chunk::<4>()?)
        }
        address => address,
    };
    Some(SocketAddr::new(address, port))
}

/// Adds what a match of xtables says to a rule.
pub(super) fn condition(name: &str, revision: u32, info: Option<&[u8]>, rule: &mut FilterRule) {
    let info = info.unwrap_or_default();
    let understood = match (name, revision) {
        ("comment", _) => {
            rule.add_comment(&text(info));
            true
        }
        ("conntrack", 3) => states(info).is_some_and(|states| {
            rule.states = Some(states & rule.states.unwrap_or(u32::MAX));
            true
        }),
        ("multiport", 1) => ports(info).is_some_and(|ports| {
            let free = rule.ports.is_empty();
            if free {
                rule.ports = ports;
            }
            free
        }),
        ("tcp" | "udp", 0) => destination_ports(name, info, rule),
        ("mark", 1) => match (number(info, 0), number(info, 4), info.get(8)) {
            (Some(value), Some(mask), Some(invert)) if rule.mark.is_none() => {
                rule.mark = Some(Is::new((value, mask), *invert != 0));
                true
            }
            _ => false,
        },
        ("set", _) => {
            // `struct xt_set_info`: the set's number, dimension, flags (`IPSET_INV_MATCH` is 4).
            let set = short(info, 0).zip(info.get(3));
            rule.sets.extend(set.map(|(index, flags)| Is::new(format!("#{index}"), flags & 4 != 0)));
            false
        }
        // It only looks up who a packet belongs to, or counts.
        ("nfacct", _) => true,
        _ => false,
    };
    rule.other_matches |= !understood;
}

fn number(info: &[u8], at: usize) -> Option<u32> {
    info.get(at..)?.first_chunk().copied().map(u32::from_ne_bytes)
}

fn short(info: &[u8], at: usize) -> Option<u16> {
    info.get(at..)?.first_chunk().copied().map(u16::from_ne_bytes)
}

/// `struct xt_conntrack_mtinfo3`, when it asks for states and nothing else.
fn states(info: &[u8]) -> Option<u32> {
    let (asked, inverted, states) = (short(info, 146)?, short(info, 148)?, short(info, 150)?);
    // `XT_CONNTRACK_STATE`, and `XT_CONNTRACK_STATE_ALIAS` for `-m state`.
    if asked & 1 == 0 || asked & !(1 | 1 << 13) != 0 {
        return None;
    }
    // `XT_CONNTRACK_STATE_SNAT` and `_DNAT` are no states, and asked for beside them: 6 and 7.
    if states & (1 << 6 | 1 << 7) != 0 {
        return None;
    }
    let untracked = if states & 1 << 8 == 0 { 0 } else { FilterRule::UNTRACKED };
    let states = u32::from(states & 0xf) | untracked;
    Some(if inverted & 1 == 0 { states } else { !states })
}

/// `struct xt_multiport_v1`, when it is about destination ports.
fn ports(info: &[u8]) -> Option<Vec<(u16, u16)>> {
    let (kind, count) = (*info.first()?, usize::from(*info.get(1)?));
    if kind != 1 || *info.get(47)? != 0 || count > 15 {
        return None;
    }
    let mut all = Vec::new();
    let mut at = 0;
    while at < count {
        let from = short(info, 2 + 2 * at)?;
        // A flag says that the next one is the end of a range.
        let ranged = *info.get(32 + at)? != 0;
        at += usize::from(ranged);
        all.push((from, short(info, 2 + 2 * at)?));
        at += 1;
    }
    Some(all)
}

/// `struct xt_tcp` and `struct xt_udp`: source ports, destination ports, then what else TCP has, and what is inverted.
fn destination_ports(name: &str, info: &[u8], rule: &mut FilterRule) -> bool {
    let more = if name == "tcp" { info.get(8..12) } else { info.get(8..9) };
    let source = (short(info, 0), short(info, 2));
    match (short(info, 4), short(info, 6)) {
        (Some(from), Some(to))
            if source == (Some(0), Some(u16::MAX)) && more.is_some_and(|it| it.iter().all(|it| *it == 0)) =>
        {
            if (from, to) != (0, u16::MAX) {
                rule.ports.push((from, to));
            }
            true
        }
        _ => false,
    }
}
