//! Links, addresses, routes, rules and the neighbours that matter, and where the kernel would send each pod's packets.
//!
//! Short lists and single questions go through the crate rtnetlink. Links, routes and neighbours can be many, and that
//! crate decodes a dump into a channel without a bound: those are read with [`Netlink`], one datagram at a time.

mod decode;
mod programs;
mod wireguard;
#[cfg(any(test, fuzzing))]
pub(crate) use decode::fuzz;

use std::collections::{BTreeMap, BTreeSet};
use std::io;
use std::net::IpAddr;
use std::time::Duration;

use futures::StreamExt as _;
use netlink_packet_core::{NLM_F_DUMP, NLM_F_DUMP_INTR, NLM_F_REQUEST, NetlinkMessage, NetlinkPayload};
use netlink_packet_route::RouteNetlinkMessage as Message;
use netlink_packet_route::address::AddressMessage;
use netlink_packet_route::rule::RuleMessage;
use netlink_sys::protocols::{NETLINK_ROUTE, NETLINK_XFRM};
use tokio::sync::Mutex;

use super::host_root::HostRoot;
use super::netlink::{ATTEMPTS, Failure, Malformed, Netlink, refused};
use crate::facts::{
    IpsecPolicy, Link, LookError, Neighbour, PodRoute, Reason, Route, RouteAnswer, RouteList, Routing, Rule, Seen,
};

/// `RTM_NEWLINK` and `RTM_GETLINK` of `linux/rtnetlink.h`.
const NEW_LINK: u16 = 16;
const GET_LINK: u16 = 18;
/// `RTM_NEWROUTE` and `RTM_GETROUTE`.
const NEW_ROUTE: u16 = 24;
const GET_ROUTE: u16 = 26;
/// `RTM_NEWNEIGH` and `RTM_GETNEIGH`.
const NEW_NEIGHBOUR: u16 = 28;
const GET_NEIGHBOUR: u16 = 30;

/// `XFRM_MSG_NEWPOLICY` and `XFRM_MSG_GETPOLICY` of `linux/xfrm.h`, and the length of `struct xfrm_userpolicy_id`.
const NEW_POLICY: u16 = 19;
const GET_POLICY: u16 = 21;
const POLICY_ID: usize = 64;
/// So many policies are kept; one alone that holds a pod's address is enough to be told.
const POLICIES: usize = 128;

/// Where somebody's policy rules decide, the kernel is asked for so many addresses of other nodes and of their pods.
const SAMPLES: usize = 64;

/// One lookup takes microseconds. An answer that rtnetlink cannot decode is dropped there, and would never come.
const LOOKUP_SECONDS: f32 = 1.0;

/// Where the routing state is asked.
pub(crate) struct RoutingSource {
    /// None after the connection broke: the next look makes a new one.
    connection: Mutex<Option<Connection>>,
    host: HostRoot,
}

/// A connection to the kernel.
struct Connection {
    handle: rtnetlink::Handle,
    stream: Netlink,
    /// None where the kernel has no IPsec.
    ipsec: Option<Netlink>,
}

impl RoutingSource {
    /// A source for the network namespace of this thread. The task of its connection ends with it.
    pub(crate) fn open(host: HostRoot) -> Result<Self, LookError> {
        Ok(RoutingSource { connection: Mutex::new(Some(Connection::open()?)), host })
    }

    /// The routing state, and the kernel's decision for the addresses of each pod.
    pub(crate) async fn look(&self, pods: &[(String, Vec<IpAddr>)]) -> Result<Routing, LookError> {
        let mut slot = self.connection.lock().await;
        // Taken out while it is used, put back when the look was good: one that failed or was cancelled may have left
        // half an answer behind.
        let mut connection = match slot.take() {
            Some(connection) => connection,
            None => Connection::open()?,
        };
        let routing = connection.look(pods, &self.host).await?;
        *slot = Some(connection);
        Ok(routing)
    }
}

impl Connection {
    fn open() -> Result<Self, LookError> {
        let refused = |error: io::Error| refused("rtnetlink", &error);
        let (mut task, handle, unsolicited) = rtnetlink::new_connection().map_err(refused)?;
        // What nobody asked for goes into a channel without a bound, unless there is nobody at its end.
        drop(unsolicited);
        // The end of a dump can carry an error, and the flag that it does not fit together.
        task.set_forward_done(true);
        tokio::spawn(task);
        let stream = Netlink::open(NETLINK_ROUTE).map_err(refused)?;
        Ok(Connection { handle, stream, ipsec: Netlink::open(NETLINK_XFRM).ok() })
    }

    async fn look(&mut self, pods: &[(String, Vec<IpAddr>)], host: &HostRoot) -> Result<Routing, LookError> {
        let links = self.links().await?;
        let addresses =
            self.list("address dump", Message::GetAddress(AddressMessage::default()), decode::address).await?;
        let rules = self.list("rule dump", Message::GetRule(RuleMessage::default()), decode::rule).await?;
        let (defaults, by_protocol, routes) = self.routes(&rules).await?;
        let gateways = self.gateways(&defaults).await?;
        let pods = self.pods(pods).await;
        let ipsec = self.ipsec().await;
        let programs = programs::programs(&mut self.stream, &links, host).await;
        let wireguard = wireguard::ports(&links).await;
        let samples = Vec::new();
        let mut routing = Routing {
            links,
            addresses,
            defaults,
            by_protocol,
            rules,
            routes,
            samples,
            ipsec,
            programs,
            wireguard,
            gateways,
            pods,
        };
        if routing.rules.iter().any(Rule::is_foreign) {
            routing.samples = self.samples(&routing).await;
        }
        Ok(routing)
    }

    /// A short dump, as a list of what `decode` makes of its messages.
    async fn list<T>(
        &mut self,
        what: &str,
        question: Message,
        decode: impl Fn(&Message) -> Option<T>,
    ) -> Result<Vec<T>, LookError> {
        for _ in 0..ATTEMPTS {
            let mut request = NetlinkMessage::from(question.clone());
            request.header.flags = NLM_F_REQUEST | NLM_F_DUMP;
            let mut answers = self.handle.request(request).map_err(|error| closed(what, &error))?;
            let (mut list, mut interrupted, mut complete) = (Vec::new(), false, false);
            while let Some(answer) = answers.next().await {
                interrupted |= answer.header.flags & NLM_F_DUMP_INTR != 0;
                match answer.payload {
                    NetlinkPayload::InnerMessage(message) => list.extend(decode(&message)),
                    NetlinkPayload::Done(done) if done.code == 0 => complete = true,
                    NetlinkPayload::Done(done) => return Err(refused(what, &error_number(done.code))),
                    NetlinkPayload::Error(error) => return Err(refused(what, &error_number(error.raw_code()))),
                    _ => return Err(LookError::new(what, Reason::Malformed, "messages were lost")),
                }
            }
            if !complete {
                return Err(LookError::new(what, Reason::Failed, "the connection closed before the end"));
            }
            if !interrupted {
                return Ok(list);
            }
        }
        Err(Failure::Interrupted.about(what))
    }

    async fn links(&mut self) -> Result<Vec<Link>, LookError> {
        self.long("link dump", GET_LINK, &decode::all_links(), |links: &mut Vec<Link>, kind, body| {
            if kind == NEW_LINK {
                links.push(decode::link(body)?);
            }
            Ok(())
        })
        .await
    }

    /// Default routes, counts by family and protocol, and the routes that are kept.
    async fn routes(&mut self, rules: &[Rule]) -> Result<(Vec<Route>, decode::Counts, RouteList), LookError> {
        let tables: BTreeSet<u32> = rules.iter().filter(|rule| rule.is_foreign()).map(|rule| rule.table).collect();
        let tables: Vec<u32> = tables.into_iter().collect();
        // `struct rtmsg` with `AF_UNSPEC`: all families.
        let routes =
            self.long("route dump", GET_ROUTE, &[0; 12], |routes: &mut decode::Routes, kind, body| match kind {
                NEW_ROUTE => routes.add(body, &tables),
                _ => Ok(()),
            });
        Ok(routes.await?.finish())
    }

    /// The neighbour entries of the gateways of these routes.
    async fn gateways(&mut self, defaults: &[Route]) -> Result<Vec<Neighbour>, LookError> {
        let gateways: BTreeSet<IpAddr> =
            defaults.iter().flat_map(|route| route.next_hops.iter().filter_map(|(gateway, _)| *gateway)).collect();
        if gateways.is_empty() {
            return Ok(Vec::new());
        }
        // `struct ndmsg` with `AF_UNSPEC`.
        self.long("neighbour dump", GET_NEIGHBOUR, &[0; 12], |found: &mut Vec<Neighbour>, kind, body| {
            if kind == NEW_NEIGHBOUR {
                found.extend(decode::neighbour(body)?.filter(|it| gateways.contains(&it.address)));
            }
            Ok(())
        })
        .await
    }

    /// A long dump, as what `add` makes of its messages.
    async fn long<T: Default>(
        &mut self,
        what: &str,
        kind: u16,
        question: &[u8],
        add: impl Fn(&mut T, u16, &[u8]) -> Result<(), Malformed>,
    ) -> Result<T, LookError> {
        self.stream.whole(what, (kind, question), T::default, add).await
    }

    /// Policies of IPsec.
    async fn ipsec(&mut self) -> Seen<Vec<IpsecPolicy>> {
        let Some(socket) = &mut self.ipsec else { return Seen::Absent };
        let add = |policies: &mut Vec<IpsecPolicy>, kind, body: &[u8]| {
            if kind == NEW_POLICY && policies.len() < POLICIES {
                policies.extend(decode::ipsec(body)?);
            }
            Ok(())
        };
        socket.whole("IPsec policies", (GET_POLICY, &[0; POLICY_ID]), Vec::new, add).await.into()
    }

    /// The kernel's decision for addresses of other nodes, and for one address of each of some of their blocks.
    async fn samples(&mut self, routing: &Routing) -> Vec<PodRoute> {
        let mut addresses = BTreeSet::new();
        let step = routing.remote_routes().count().div_ceil(SAMPLES / 2).max(1);
        for route in routing.remote_routes().step_by(step) {
            addresses.insert(route.to.addr());
            addresses.extend(route.gateway);
        }
        let mut samples = Vec::with_capacity(addresses.len());
        for address in addresses {
            samples.push(PodRoute { address, answer: self.lookup(address).await });
        }
        samples
    }

    async fn pods(&mut self, pods: &[(String, Vec<IpAddr>)]) -> BTreeMap<String, Vec<PodRoute>> {
        let mut all = BTreeMap::new();
        for (sandbox, addresses) in pods {
            let mut routes = Vec::with_capacity(addresses.len());
            for &address in addresses {
                routes.push(PodRoute { address, answer: self.lookup(address).await });
            }
            all.insert(sandbox.clone(), routes);
        }
        all
    }

    /// Where the kernel would send a packet to this address (`RTM_GETROUTE` without `NLM_F_DUMP`).
    async fn lookup(&mut self, address: IpAddr) -> Seen<RouteAnswer> {
        let what = format!("route to {address}");
        let mut request = NetlinkMessage::from(Message::GetRoute(decode::lookup(address)));
        request.header.flags = NLM_F_REQUEST;
        let mut answers = match self.handle.request(request) {
            Ok(answers) => answers,
            Err(error) => return Seen::Unreadable(closed(&what, &error)),
        };
        match tokio::time::timeout(Duration::from_secs_f32(LOOKUP_SECONDS), answers.next()).await {
            Err(_) => Seen::Unreadable(LookError::timed_out(what, LOOKUP_SECONDS)),
            Ok(None) => Seen::Unreadable(LookError::new(what, Reason::Failed, "the connection closed")),
            Ok(Some(answer)) => decode::answer(&what, &answer.payload).into(),
        }
    }
}

fn closed(what: &str, error: &rtnetlink::Error) -> LookError {
    LookError::new(what, Reason::Failed, error.to_string())
}

/// The crate has one too, which overflows at the lowest number.
fn error_number(code: i32) -> io::Error {
    io::Error::from_raw_os_error(code.wrapping_neg())
}

#[cfg(test)]
mod tests;
