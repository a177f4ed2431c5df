//! Local ports per destination, counted out of the kernel's socket dump without keeping it.
//!
//! With 100,000 connections `/proc/net/tcp` is 15 MB of text; `sock_diag` tells the same in less than half of the time, by
//! datagrams of 32 KB, TIME_WAIT included.

use std::collections::HashMap;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::ops::RangeInclusive;

use crate::facts::Destination;

/// `SOCK_DIAG_BY_FAMILY` of `linux/sock_diag.h`.
pub(super) const BY_FAMILY: u16 = 20;

/// `AF_INET`, `AF_INET6`.
const FAMILIES: [u8; 2] = [2, 10];
/// Every state that holds a local port for one destination: all but SYN_RECV, CLOSE and LISTEN (`net/tcp_states.h`).
const STATES: u32 = 1 << 1 | 1 << 2 | 1 << 4 | 1 << 5 | 1 << TIME_WAIT | 1 << 8 | 1 << 9 | 1 << 11;
const TIME_WAIT: u8 = 6;

/// So many destinations are counted at a time. One that holds more than a thousandth of all sockets is never missed.
const COUNTED: usize = 1024;
/// So many are told.
const TOLD: usize = 3;

/// `struct inet_diag_req_v2` for the TCP sockets of each family.
pub(super) fn questions() -> [[u8; 56]; 2] {
    FAMILIES.map(|family| {
        let mut body = [0; 56];
        body[0] = family;
        // `IPPROTO_TCP`.
        body[1] = 6;
        body[4..8].copy_from_slice(&STATES.to_ne_bytes());
        body
    })
}

/// The local ports that `connect` chooses from.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Local {
    range: RangeInclusive<u16>,
    reserved: Vec<RangeInclusive<u16>>,
}

impl Local {
    /// Reads `ip_local_port_range` and `ip_local_reserved_ports`.
    pub(super) fn parse(range: &str, reserved: &str) -> Option<Self> {
        let mut ends = range.split_whitespace().map(str::parse);
        let (Some(Ok(low)), Some(Ok(high))) = (ends.next(), ends.next()) else { return None };
        let part = |part: &str| {
            let (from, to) = part.split_once('-').unwrap_or((part, part));
            Some(from.trim().parse().ok()?..=to.trim().parse().ok()?)
        };
        Some(Local { range: low..=high, reserved: reserved.split(',').filter_map(part).collect() })
    }

    /// How many they are.
    pub(super) fn count(&self) -> u32 {
        self.range.clone().map(|port| u32::from(self.holds(port))).sum()
    }

    fn holds(&self, port: u16) -> bool {
        self.range.contains(&port) && !self.reserved.iter().any(|reserved| reserved.contains(&port))
    }
}

/// Counts sockets by source, destination and port in bounded memory (Misra and Gries): a count is never too high, and too
/// low by at most a [`COUNTED`]th of all sockets.
#[derive(Debug)]
pub(super) struct Tally {
    local: Local,
    /// `net.ipv4.tcp_tw_reuse`: 1 everywhere, 2 on loopback.
    reuse: u64,
    counts: HashMap<(IpAddr, IpAddr, u16), (u32, u32)>,
}

impl Tally {
    pub(super) fn new(local: Local, reuse: u64) -> Self {
        Tally { local, reuse, counts: HashMap::new() }
    }

    /// Takes one `struct inet_diag_msg`; what is shorter is passed over.
    pub(super) fn add(&mut self, message: &[u8]) {
        // Family, state, timer, retransmits, ports, and two addresses of 16 bytes.
        let Some(message) = message.first_chunk::<40>() else { return };
        let port = |at: usize| u16::from_be_bytes([message[at], message[at + 1]]);
        let address = |at: usize| {
            let bytes: [u8; 16] = std::array::from_fn(|index| message[at + index]);
            match message[0] {
                2 => IpAddr::V4(Ipv4Addr::new(bytes[0], bytes[1], bytes[2], bytes[3])),
                // IPv4 in a socket of IPv6 shares the ports of IPv4.
                _ => IpAddr::V6(Ipv6Addr::from(bytes)).to_canonical(),
            }
        };
        let (source, destination) = (address(8), address(24));
        let waits = message[1] == TIME_WAIT;
        let used_again = waits && (self.reuse == 1 || (self.reuse == 2 && destination.is_loopback()));
        if self.local.holds(port(4)) && !used_again {
            self.count((source, destination, port(6)), u32::from(waits));
        }
    }

    fn count(&mut self, key: (IpAddr, IpAddr, u16), waits: u32) {
        if let Some((total, waiting)) = self.counts.get_mut(&key) {
            *total += 1;
            *waiting += waits;
        } else if self.counts.len() < COUNTED {
            self.counts.insert(key, (1, waits));
        } else {
            self.counts.retain(|_, (total, waiting)| {
                *total -= 1;
                *waiting = (*waiting).min(*total);
                *total > 0
            });
        }
    }

    /// The destinations with the most sockets, most first.
    pub(super) fn busiest(self) -> Vec<Destination> {
        let destination = |((source, destination, port), (sockets, time_wait))| Destination {
            source,
            destination,
            port,
            sockets,
            time_wait,
        };
        let mut all: Vec<Destination> = self.counts.into_iter().map(destination).collect();
        all.sort_unstable_by_key(|it| (std::cmp::Reverse(it.sockets), it.destination, it.port, it.source));
        all.truncate(TOLD);
        all.shrink_to_fit();
        all
    }
}

/// The number after `name` in the line that begins with `protocol` (`/proc/net/sockstat`).
pub(super) fn field(text: &str, protocol: &str, name: &str) -> Option<u64> {
    let line = text.lines().find_map(|line| line.strip_prefix(protocol))?;
    let mut words = line.split_whitespace();
    words.find(|word| *word == name)?;
    words.next()?.parse().ok()
}

/// The number under `name` in the pair of lines, titles and values, that begin with `group` (`/proc/net/netstat`).
pub(super) fn paired(text: &str, group: &str, name: &str) -> Option<u64> {
    let mut lines = text.lines().filter_map(|line| line.strip_prefix(group));
    let (titles, values) = (lines.next()?, lines.next()?);
    let column = titles.split_whitespace().position(|title| title == name)?;
    values.split_whitespace().nth(column)?.parse().ok()
}
