//! Hints that something changed, from the kernel itself, so that nothing has to be polled for.
//!
//! An event only means "look again": a burst becomes one at its beginning and one for each [`WINDOW`] until its end,
//! and what does not fit into the channel is dropped, since the ones in it say the same.

mod directory;
mod lock_file;
mod mounts;

use std::future::Future;
use std::io;
use std::path::PathBuf;
use std::time::Duration;

use jiff::Timestamp;
use netlink_sys::protocols::{NETLINK_NETFILTER, NETLINK_ROUTE, NETLINK_XFRM};
use netlink_sys::{AsyncSocket, AsyncSocketExt, TokioSocket};
use nix::errno::Errno;
use rtnetlink::MulticastGroup;
use socket2::{SockFilter, SockRef};
use tokio::sync::mpsc::{self, Receiver, Sender};
use tokio::time::{Instant, timeout_at};

use super::changes::Commits;
use super::netlink::{Messages, refused};
use super::nftables::wire;
use crate::facts::Commit;
pub(super) use lock_file::Watched;

/// At most one event of a kind in this time, and at least one at its end if there was more.
const WINDOW: Duration = Duration::from_millis(100);

/// The channel's length: a few of each kind.
const CAPACITY: usize = 16;

/// What a notification may need; what is longer is cut, and only that it came counts.
const BUFFER: usize = 4096;

/// `NFNLGRP_NFTABLES` of `linux/netfilter/nfnetlink.h`.
const NFTABLES_GROUP: u32 = 7;

/// `XFRMNLGRP_POLICY` of `linux/xfrm.h`.
const IPSEC_POLICIES: u32 = 4;

/// What changed.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Event {
    /// A link, an address, a route, a rule or a policy of IPsec.
    Routing,
    /// Rules of nf_tables were committed, and by whom.
    PacketFilter {
        /// The generation that the commit made.
        generation: u32,
        /// The process.
        pid: Option<u32>,
        /// Its name (`comm`, at most 15 bytes).
        program: Option<String>,
    },
    /// A directory of CNI configurations or plugins.
    Cni,
    /// Something was mounted or unmounted, or a file system met an error.
    Mounts,
    /// Notifications were lost: anything may have changed.
    Overrun,
}

/// Starts watching; ends when the receiver is dropped. A source that cannot be watched is logged once, and what it
/// would have told is left to the periodic look. Every commit to nf_tables is written to `commits` too, also those of
/// which a burst makes one event.
pub(super) fn watch(cni_dirs: Vec<PathBuf>, lock: Watched, commits: Commits) -> Receiver<Event> {
    let (events, receiver) = mpsc::channel(CAPACITY);
    spawn("routing changes", events.clone(), watch_routing);
    spawn("changes of IPsec policies", events.clone(), watch_ipsec);
    spawn("nf_tables changes", events.clone(), |events| watch_nftables(events, commits));
    let host = lock.host.clone();
    spawn("changes of mounts", events.clone(), move |events| mounts::watch(host, events));
    spawn("the lock of legacy iptables", events.clone(), |_| lock_file::watch(lock));
    for dir in cni_dirs {
        spawn("changes of a CNI directory", events.clone(), move |events| directory::watch(dir, events));
    }
    receiver
}

fn spawn<F>(what: &'static str, events: Sender<Event>, source: impl FnOnce(Sender<Event>) -> F)
where
    F: Future<Output = io::Error> + Send + 'static,
{
    let source = source(events.clone());
    tokio::spawn(async move {
        tokio::select! {
            () = events.closed() => {}
            error = source => {
                let error = refused(what, &error);
                tracing::warn!(%error, "cannot be watched; left to the periodic look");
            }
        }
    });
}

/// Sends what a source tells, one event for all that comes in one [`WINDOW`]. Answers why the source ended.
async fn forward(mut source: impl Source, events: Sender<Event>) -> io::Error {
    let mut pending = None;
    loop {
        let event = match pending.take() {
            Some(event) => event,
            None => match source.next().await {
                Ok(event) => event,
                Err(error) => return error,
            },
        };
        // Full means that there is enough to look at.
        events.try_send(event).ok();
        let end = Instant::now() + WINDOW;
        loop {
            match timeout_at(end, source.next()).await {
                // The loss of notifications must not be hidden by the next one that came through.
                Ok(Ok(event)) => pending = pending.filter(|it| *it == Event::Overrun).or(Some(event)),
                Ok(Err(error)) => return error,
                Err(_) => break,
            }
        }
    }
}

/// Something that can be waited for.
trait Source {
    /// The next event. Loses nothing when it is cancelled.
    fn next(&mut self) -> impl Future<Output = io::Result<Event>> + Send;
}

async fn watch_routing(events: Sender<Event>) -> io::Error {
    match routing_socket() {
        Ok(socket) => forward(Notifications { socket, event: routing }, events).await,
        Err(error) => error,
    }
}

fn routing_socket() -> io::Result<TokioSocket> {
    let mut socket = TokioSocket::new(NETLINK_ROUTE)?;
    socket.socket_mut().bind_auto()?;
    for group in [
        MulticastGroup::Link,
        MulticastGroup::Ipv4Ifaddr,
        MulticastGroup::Ipv6Ifaddr,
        MulticastGroup::Ipv4Route,
        MulticastGroup::Ipv6Route,
        MulticastGroup::Ipv4Rule,
        MulticastGroup::Ipv6Rule,
    ] {
        socket.socket_ref().add_membership(group as u32)?;
    }
    Ok(socket)
}

async fn watch_ipsec(events: Sender<Event>) -> io::Error {
    // A kernel without IPsec has nothing to tell.
    let Ok(mut socket) = TokioSocket::new(NETLINK_XFRM) else { return std::future::pending().await };
    match socket.socket_mut().bind_auto().and_then(|_| socket.socket_ref().add_membership(IPSEC_POLICIES)) {
        Ok(()) => forward(Notifications { socket, event: routing }, events).await,
        Err(error) => error,
    }
}

/// Whatever it says, the look that follows asks the kernel itself.
#[expect(clippy::unnecessary_wraps, reason = "one of the functions that Notifications can hold")]
fn routing(_: &[u8]) -> Option<Event> {
    Some(Event::Routing)
}

async fn watch_nftables(events: Sender<Event>, commits: Commits) -> io::Error {
    let event = move |datagram: &[u8]| {
        let event = packet_filter(datagram)?;
        if let Event::PacketFilter { generation, pid, program } = &event {
            let (at, program) = (Timestamp::now(), program.clone());
            commits.add(Commit { at, generation: *generation, pid: *pid, program });
        }
        Some(event)
    };
    match nftables_socket() {
        Ok(socket) => forward(Notifications { socket, event }, events).await,
        Err(error) => error,
    }
}

/// A socket that gets one message per commit. Without the filter a reload of 10,000 Services is 80,000 messages.
fn nftables_socket() -> io::Result<TokioSocket> {
    let mut socket = TokioSocket::new(NETLINK_NETFILTER)?;
    // The filter reads the message's type (offset 4 of `struct nlmsghdr`) as a big-endian number.
    let wanted = u16::from_be_bytes(wire::NEW_GENERATION.to_ne_bytes());
    // `linux/filter.h`: load a half word; equal, or skip one; accept all bytes; drop.
    SockRef::from(socket.socket_ref()).attach_filter(&[
        SockFilter::new(0x28, 0, 0, 4),
        SockFilter::new(0x15, 0, 1, wanted.into()),
        SockFilter::new(0x06, 0, 0, u32::MAX),
        SockFilter::new(0x06, 0, 0, 0),
    ])?;
    socket.socket_mut().bind_auto()?;
    socket.socket_ref().add_membership(NFTABLES_GROUP)?;
    Ok(socket)
}

fn packet_filter(datagram: &[u8]) -> Option<Event> {
    let message = Messages(datagram).find_map(|it| it.ok().filter(|it| it.kind == wire::NEW_GENERATION))?;
    let wire::Generation { id: generation, pid, program } = wire::generation(message.body).ok()?;
    Some(Event::PacketFilter { generation, pid, program })
}

/// A netlink socket that is a member of multicast groups.
struct Notifications<F> {
    socket: TokioSocket,
    /// What a datagram tells, if anything.
    event: F,
}

impl<F: Fn(&[u8]) -> Option<Event> + Send> Source for Notifications<F> {
    async fn next(&mut self) -> io::Result<Event> {
        let mut buffer = Vec::with_capacity(BUFFER);
        loop {
            buffer.clear();
            match self.socket.recv_from(&mut buffer).await {
                // Only the kernel has port 0.
                Ok(sender) if sender.port_number() != 0 => {}
                Ok(_) => {
                    if let Some(event) = (self.event)(&buffer) {
                        return Ok(event);
                    }
                }
                Err(error) if error.raw_os_error() == Some(Errno::ENOBUFS as i32) => return Ok(Event::Overrun),
                Err(error) => return Err(error),
            }
        }
    }
}

/// The fuzz target's door.
#[cfg(any(test, fuzzing))]
pub(crate) fn fuzz(data: &[u8]) {
    assert_eq!(routing(data), Some(Event::Routing));
    if let Some(Event::PacketFilter { program: Some(program), .. }) = packet_filter(data) {
        assert!(!program.is_empty() && !program.contains('\0'));
    }
}

#[cfg(test)]
mod tests;
