//! Counters and switches of links, out of rtnetlink's messages.

use std::collections::HashMap;

use crate::agent::observe::netlink::{Attributes, Malformed};
use crate::facts::LinkSwitches;

/// `RTM_GETLINK` and `RTM_GETNETCONF` of `linux/rtnetlink.h`.
pub(super) const GET_LINK: u16 = 18;
pub(super) const GET_NETCONF: u16 = 82;
/// `struct netconfmsg` with `AF_INET`.
pub(super) const IPV4: [u8; 4] = [2, 0, 0, 0];

/// `linux/if_link.h`.
const IFLA_STATS64: u16 = 23;
const IFLA_CARRIER_CHANGES: u16 = 35;

/// `linux/netconf.h`.
const NETCONFA_IFINDEX: u16 = 1;
const NETCONFA_FORWARDING: u16 = 2;
const NETCONFA_RP_FILTER: u16 = 3;
const NETCONFA_PROXY_NEIGH: u16 = 5;
/// `NETCONFA_IFINDEX_ALL`: -1.
const ALL: u32 = u32::MAX;

/// Whether a link is a tunnel between nodes: Calico's, flannel's, or any of the same kinds.
pub(super) fn is_tunnel(kind: Option<&str>, name: &str) -> bool {
    matches!(kind, Some("ipip" | "vxlan" | "geneve" | "wireguard")) || name == "tunl0"
}

/// The question for one link: `struct ifinfomsg`.
pub(super) fn one_link(index: u32) -> [u8; 16] {
    let mut body = [0; 16];
    body[4..8].copy_from_slice(&index.to_ne_bytes());
    body
}

/// Counters since the link was made.
#[derive(Debug, Default, PartialEq, Eq)]
pub(super) struct Counters {
    pub(super) packets: u64,
    pub(super) errors: u64,
    pub(super) carrier_changes: u64,
}

/// The counters of one `RTM_NEWLINK`.
pub(super) fn counters(body: &[u8]) -> Result<Counters, Malformed> {
    let attributes = body.get(16..).ok_or(Malformed("a link ends in its header"))?;
    let mut counters = Counters::default();
    for attribute in Attributes(attributes) {
        match attribute? {
            // `struct rtnl_link_stats64`: packets received and sent, bytes, errors received and sent.
            (IFLA_STATS64, stats) => {
                let at = |index: usize| {
                    let bytes = stats.get(index * 8..index * 8 + 8).and_then(|bytes| bytes.try_into().ok());
                    bytes.map(u64::from_ne_bytes).ok_or(Malformed("counters are cut off"))
                };
                counters.packets = at(0)?.wrapping_add(at(1)?);
                counters.errors = at(4)?.wrapping_add(at(5)?);
            }
            (IFLA_CARRIER_CHANGES, value) => counters.carrier_changes = number(value)?.into(),
            _ => {}
        }
    }
    Ok(counters)
}

fn number(value: &[u8]) -> Result<u32, Malformed> {
    value.try_into().map(u32::from_ne_bytes).map_err(|_| Malformed("a number is not 4 bytes long"))
}

/// Forwarding, proxy ARP and the reverse path filter of every link.
#[derive(Debug, Default)]
pub(super) struct Switches(HashMap<u32, [u32; 3]>);

impl Switches {
    /// Takes one `RTM_NEWNETCONF`.
    pub(super) fn add(&mut self, body: &[u8]) -> Result<(), Malformed> {
        let attributes = body.get(4..).ok_or(Malformed("switches end in their header"))?;
        let (mut index, mut values) = (None, [0; 3]);
        for attribute in Attributes(attributes) {
            match attribute? {
                (NETCONFA_IFINDEX, value) => index = Some(number(value)?),
                (NETCONFA_FORWARDING, value) => values[0] = number(value)?,
                (NETCONFA_PROXY_NEIGH, value) => values[1] = number(value)?,
                (NETCONFA_RP_FILTER, value) => values[2] = number(value)?,
                _ => {}
            }
        }
        self.0.extend(index.map(|index| (index, values)));
        Ok(())
    }

    /// What takes effect on one link (`IN_DEV_FORWARD`, `IN_DEV_PROXY_ARP`, `IN_DEV_RPFILTER` of `linux/inetdevice.h`).
    pub(super) fn of(&self, index: u32, name: &str) -> Option<LinkSwitches> {
        let [forwarding, proxy, filter] = self.0.get(&index)?;
        let [_, all_proxy, all_filter] = self.0.get(&ALL).unwrap_or(&[0; 3]);
        Some(LinkSwitches {
            index,
            link: name.to_owned(),
            forwarding: *forwarding != 0,
            proxy_arp: *proxy != 0 || *all_proxy != 0,
            rp_filter: *filter.max(all_filter),
        })
    }
}
