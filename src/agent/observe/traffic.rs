//! Sockets, neighbour tables, and the counters and switches of the links that matter.
//!
//! Counters are read from small files and single questions to the kernel. What grows with the number of connections is
//! only asked while there are many of them, and then as a stream (see [`ports`]).

use std::collections::BTreeMap;
use std::time::{Duration, Instant};

use netlink_sys::protocols::{NETLINK_ROUTE, NETLINK_SOCK_DIAG};
use nix::errno::Errno;

use super::host_root::HostRoot;
use super::net_sysctl::{number, sum_of_column};
use super::netlink::{Failure, Netlink, refused};
use crate::clock::since_boot;
use crate::facts::{
    CARRIER_MINUTES, Family, Growth, LinkCounters, LinkSwitches, LookError, MINUTES, NeighbourTable, Reason, Routing,
    Seen, Sockets, Traffic,
};

mod links;
mod ports;

/// A file of `/proc/net` with some lines is some kilobytes; in bytes.
const LIMIT: u64 = 64 * 1024;
/// The statistics of a table have one line for each CPU; in bytes.
const STATISTICS: u64 = 1 << 20;
/// Below this share of the local ports, in percent, no destination can be near the limit.
const MANY: u64 = 25;
/// Switches are told by no event that is watched.
const SWITCHES: Duration = Duration::from_secs(30);

/// A link to look at.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Watched {
    index: u32,
    name: String,
    up: bool,
    /// Whether its counters matter.
    uplink: bool,
}

/// The links that matter: those with a default route, the hardware that has the node's addresses, the members of either,
/// tunnels of CNIs, and Calico's links to pods. Not the links to pods of a bridge, whose carrier follows the pod.
pub(crate) fn watched(routing: &Routing) -> Vec<Watched> {
    let mut uplinks: Vec<u32> = routing.uplinks().collect();
    let addressed = routing.addresses.iter().filter(|address| address.global).map(|address| address.link);
    uplinks.extend(addressed.filter(|index| {
        let kind = routing.link(*index).map(|link| (link.loopback, link.kind.as_deref()));
        matches!(kind, Some((false, None | Some("bond" | "team" | "vlan"))))
    }));
    let members = routing.links.iter().filter(|link| link.kind.as_deref().is_none_or(|kind| kind == "bond"));
    let members = members.filter(|link| link.master.is_some_and(|master| uplinks.contains(&master)));
    let members: Vec<u32> = members.map(|link| link.index).collect();
    uplinks.extend(members);
    let matters = routing.links.iter().filter(|link| {
        uplinks.contains(&link.index) || link.is_calico_pod() || links::is_tunnel(link.kind.as_deref(), &link.name)
    });
    let watched = matters.map(|link| Watched {
        index: link.index,
        name: link.name.clone(),
        up: link.up,
        uplink: uplinks.contains(&link.index),
    });
    watched.collect()
}

/// Looks at all of it, and remembers what it needs to tell growth.
pub(crate) struct TrafficSource {
    host: HostRoot,
    route: Option<Netlink>,
    sockets: Option<Netlink>,
    /// When the destinations may be counted again: counting takes at most a two-hundredth of the time.
    count_after: Option<Instant>,
    busiest: Vec<crate::facts::Destination>,
    retransmits: Growth,
    reverse_path: Growth,
    too_long: Growth,
    overflows: BTreeMap<Family, Growth>,
    links: BTreeMap<u32, [Growth; 3]>,
    switches: Option<(Instant, Vec<Watched>, Seen<Vec<LinkSwitches>>)>,
}

fn minutes(count: u64) -> Growth {
    Growth::over(Duration::from_secs(count * 60))
}

impl TrafficSource {
    /// Nothing is read yet.
    pub(crate) fn new(host: HostRoot) -> Self {
        TrafficSource {
            host,
            route: None,
            sockets: None,
            count_after: None,
            busiest: Vec::new(),
            retransmits: minutes(MINUTES),
            reverse_path: minutes(MINUTES),
            too_long: minutes(MINUTES),
            overflows: BTreeMap::new(),
            links: BTreeMap::new(),
            switches: None,
        }
    }

    /// Looks at the sockets, the tables, and these links.
    pub(crate) async fn look(&mut self, links: &[Watched]) -> Traffic {
        let at = since_boot();
        let path = "/proc/thread-self/net/netstat";
        let netstat = self.host.read_text(path, LIMIT);
        let text = netstat.as_deref().unwrap_or_default();
        let counter = |name| ports::paired(text, "TcpExt:", name).unwrap_or(0);
        let retransmits = counter("TCPSynRetrans");
        let (since, drops) =
            (self.retransmits.push(at, retransmits), self.reverse_path.push(at, counter("IPReversePathFilter")));
        let sockets = match netstat {
            Ok(_) => self.sockets().await,
            Err(error) => Err(error),
        };
        let sockets =
            sockets.map(|seen| Sockets { syn_retransmits: retransmits, syn_retransmits_since: since, ..seen });
        let neighbours =
            [Family::V4, Family::V6].into_iter().filter_map(|family| self.neighbours(family, at)).collect();
        let counters = Seen::from(self.counters(links, at).await);
        let switches = self.switches(links).await;
        if counters.error().is_some() || switches.error().is_some() {
            self.route = None;
        }
        let bridge = number(&self.host, "/proc/sys/net/bridge/bridge-nf-call-iptables");
        Traffic {
            sockets: sockets.into(),
            neighbours,
            links: counters,
            switches,
            bridge_calls_iptables: bridge.map(|value| value != 0).into(),
            reverse_path_drops: drops,
            too_long: self.too_long(at),
        }
    }

    /// Growth of the packets that did not fit their way. A family that the kernel does not have fails none.
    fn too_long(&mut self, at: Duration) -> u64 {
        let read = |path| self.host.read_text(path, LIMIT).unwrap_or_default();
        let four = ports::paired(&read("/proc/thread-self/net/snmp"), "Ip:", "FragFails").unwrap_or(0);
        let six = read("/proc/thread-self/net/snmp6");
        let six = six.lines().find_map(|line| line.strip_prefix("Ip6FragFails")?.trim().parse().ok()).unwrap_or(0);
        self.too_long.push(at, four + six)
    }

    async fn sockets(&mut self) -> Result<Sockets, LookError> {
        let read = |path: &str| self.host.read_text(path, LIMIT);
        let range = read("/proc/sys/net/ipv4/ip_local_port_range")?;
        // Absent in old kernels, which reserve none.
        let reserved = read("/proc/sys/net/ipv4/ip_local_reserved_ports").unwrap_or_default();
        let local = ports::Local::parse(&range, &reserved)
            .ok_or_else(|| LookError::new("net.ipv4.ip_local_port_range", Reason::Malformed, "holds no two ports"))?;
        let in_use = |file: &str, protocol: &str| {
            let text = read(&format!("/proc/thread-self/net/{file}"))?;
            Ok(["inuse", "tw"].into_iter().filter_map(|name| ports::field(&text, protocol, name)).sum::<u64>())
        };
        // Without IPv6 there is no second file.
        let in_use = in_use("sockstat", "TCP:")? + in_use("sockstat6", "TCP6:").unwrap_or(0);
        let ports = local.count();
        if in_use * 100 < u64::from(ports) * MANY {
            self.busiest.clear();
            self.sockets = None;
            self.count_after = None;
        } else if self.count_after.is_none_or(|after| Instant::now() >= after) {
            let reuse = number(&self.host, "/proc/sys/net/ipv4/tcp_tw_reuse").unwrap_or(0);
            let began = Instant::now();
            let mut tally = ports::Tally::new(local, reuse);
            if let Err(failure) = self.count(&mut tally).await {
                self.sockets = None;
                return Err(failure.about("socket dump"));
            }
            self.busiest = tally.busiest();
            self.count_after = Some(Instant::now() + began.elapsed() * 200);
        }
        Ok(Sockets { ports, in_use, busiest: self.busiest.clone(), ..Sockets::default() })
    }

    /// Counts the sockets of both families.
    async fn count(&mut self, tally: &mut ports::Tally) -> Result<(), Failure> {
        let socket = match &mut self.sockets {
            Some(socket) => socket,
            none => none.insert(Netlink::open(NETLINK_SOCK_DIAG)?),
        };
        for question in ports::questions() {
            let asked = socket.ask(ports::BY_FAMILY, netlink_packet_core::NLM_F_DUMP, &question, |_, body| {
                tally.add(body);
                Ok(())
            });
            match asked.await {
                // Sockets come and go all the time; a count need not be exact.
                Ok(()) | Err(Failure::Interrupted) => {}
                Err(failure) => return Err(failure),
            }
        }
        Ok(())
    }

    /// A neighbour table; none where its statistics are not told.
    fn neighbours(&mut self, family: Family, at: Duration) -> Option<NeighbourTable> {
        let (file, version) = match family {
            Family::V4 => ("arp_cache", "ipv4"),
            Family::V6 => ("ndisc_cache", "ipv6"),
        };
        let text = self.host.read_text(&format!("/proc/thread-self/net/stat/{file}"), STATISTICS).ok()?;
        let fulls = sum_of_column(&text, "table_fulls")?;
        // Every CPU's line says the same number of entries: the first is enough.
        let lines = text.match_indices('\n').nth(1).map_or(text.as_str(), |(end, _)| &text[..end]);
        let growth = self.overflows.entry(family).or_insert_with(|| minutes(MINUTES));
        Some(NeighbourTable {
            family,
            entries: sum_of_column(lines, "entries")?,
            limit: number(&self.host, &format!("/proc/sys/net/{version}/neigh/default/gc_thresh3")).ok(),
            overflows: growth.push(at, fulls),
        })
    }

    fn route(&mut self) -> Result<&mut Netlink, LookError> {
        match &mut self.route {
            Some(route) => Ok(route),
            none => Ok(none.insert(Netlink::open(NETLINK_ROUTE).map_err(|error| refused("rtnetlink", &error))?)),
        }
    }

    async fn counters(&mut self, links: &[Watched], at: Duration) -> Result<Vec<LinkCounters>, LookError> {
        self.links.retain(|index, _| links.iter().any(|link| link.uplink && link.index == *index));
        let mut all = Vec::new();
        for link in links.iter().filter(|link| link.uplink) {
            let mut told = links::Counters::default();
            let question = links::one_link(link.index);
            let asked = self.route()?.ask(links::GET_LINK, 0, &question, |_, body| {
                told = links::counters(body)?;
                Ok(())
            });
            match asked.await {
                Ok(()) => {}
                // It went away since the routes were looked at.
                Err(Failure::Io(error)) if error.raw_os_error() == Some(Errno::ENODEV as i32) => continue,
                Err(failure) => return Err(failure.about(&format!("counters of {}", link.name))),
            }
            let new = || [minutes(MINUTES), minutes(MINUTES), minutes(CARRIER_MINUTES)];
            let [packets, errors, carrier] = self.links.entry(link.index).or_insert_with(new);
            all.push(LinkCounters {
                link: link.name.clone(),
                up: link.up,
                packets: packets.push(at, told.packets),
                errors: errors.push(at, told.errors),
                carrier_changes: carrier.push(at, told.carrier_changes),
            });
        }
        Ok(all)
    }

    /// The switches, read again when the links are others, and from time to time.
    async fn switches(&mut self, links: &[Watched]) -> Seen<Vec<LinkSwitches>> {
        if let Some((at, of, seen)) = &self.switches
            && at.elapsed() < SWITCHES
            && of == links
        {
            return seen.clone();
        }
        let mut all = links::Switches::default();
        let asked = match self.route() {
            Ok(route) => {
                let flags = netlink_packet_core::NLM_F_DUMP;
                let asked = route.ask(links::GET_NETCONF, flags, &links::IPV4, |_, body| all.add(body));
                asked.await.map_err(|failure| failure.about("netconf dump"))
            }
            Err(error) => Err(error),
        };
        let told = links.iter().filter_map(|link| all.of(link.index, &link.name));
        let seen = Seen::from(asked.map(|()| told.collect()));
        self.switches = Some((Instant::now(), links.to_vec(), seen.clone()));
        seen
    }
}

/// The fuzz target's door.
#[cfg(any(test, fuzzing))]
pub(crate) fn fuzz(data: &[u8]) {
    let Some((which, bytes)) = data.split_first() else { return };
    let text = String::from_utf8_lossy(bytes);
    match which % 4 {
        0 => drop(links::counters(bytes)),
        1 => {
            let mut switches = links::Switches::default();
            let _ = switches.add(bytes);
            let _ = switches.of(1, "eth0");
        }
        2 => {
            let Some(local) = ports::Local::parse("32768 60999", "40000-40100, 50000") else { return };
            let mut tally = ports::Tally::new(local, u64::from(which / 4 % 3));
            bytes.chunks(40).for_each(|message| tally.add(message));
            assert!(tally.busiest().len() <= 3);
        }
        _ => {
            let (range, reserved) = text.split_once('\n').unwrap_or((&text, ""));
            if let Some(local) = ports::Local::parse(range, reserved) {
                assert!(local.count() <= 65_536);
            }
            let _ = (ports::field(&text, "TCP:", "inuse"), ports::paired(&text, "TcpExt:", "ListenOverflows"));
        }
    }
}

#[cfg(test)]
mod tests;
