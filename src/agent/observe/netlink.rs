//! A netlink socket that asks one question at a time and hands out the answer message by message.
//!
//! For what can be long (routes, neighbours, chains, rules): a dump is read and judged one datagram at a time, so its
//! length costs no memory. The numbers are those of `linux/netlink.h`.

use std::borrow::Cow;
use std::io;

use netlink_packet_core::{
    NLM_F_DUMP, NLM_F_DUMP_INTR, NLM_F_MULTIPART, NLM_F_REQUEST, NLMSG_DONE, NLMSG_ERROR, NLMSG_NOOP, NLMSG_OVERRUN,
};
use netlink_sys::{AsyncSocket, AsyncSocketExt, SocketAddr, TokioSocket};
use nix::errno::Errno;

use crate::facts::{LookError, Reason};

/// The kernel never makes a longer block of a dump (`netlink_dump` of `net/netlink/af_netlink.c`).
const BUFFER: usize = 32 * 1024;

/// `sizeof(struct nlmsghdr)`.
const HEADER: usize = 16;

/// How often a dump is begun again when the kernel says that what it told does not fit together.
pub(super) const ATTEMPTS: u32 = 3;

/// `NLA_TYPE_MASK`: without `NLA_F_NESTED` and `NLA_F_NET_BYTEORDER`, the two upper bits.
const TYPE_MASK: u16 = 0x3fff;

/// What a person has to do about `EPERM`.
const NEEDS: &str = "needs CAP_NET_ADMIN; run as root";

/// Bytes that are not what the kernel should have sent.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Malformed(pub(super) &'static str);

/// Why there is no answer.
#[derive(Debug)]
pub(super) enum Failure {
    /// The kernel refused, or the socket failed.
    Io(io::Error),
    /// `NLM_F_DUMP_INTR`: it changed while it was read, and the parts do not fit together.
    Interrupted,
    /// The answer cannot be understood.
    Malformed(Malformed),
}

impl From<io::Error> for Failure {
    fn from(error: io::Error) -> Self {
        Failure::Io(error)
    }
}

impl From<Malformed> for Failure {
    fn from(malformed: Malformed) -> Self {
        Failure::Malformed(malformed)
    }
}

impl Failure {
    /// This failure as an error about `what`.
    pub(super) fn about(&self, what: &str) -> LookError {
        match self {
            Failure::Io(error) => refused(what, error),
            Failure::Interrupted => LookError::new(what, Reason::Failed, "changed while it was read"),
            Failure::Malformed(Malformed(why)) => LookError::new(what, Reason::Malformed, *why),
        }
    }
}

/// An error about `what`, from netlink.
pub(super) fn refused(what: &str, error: &io::Error) -> LookError {
    match error.raw_os_error().map(Errno::from_raw) {
        Some(Errno::EPERM | Errno::EACCES) => LookError::new(what, Reason::Denied, format!("{error}: {NEEDS}")),
        Some(Errno::EPROTONOSUPPORT | Errno::EAFNOSUPPORT | Errno::EOPNOTSUPP) => {
            LookError::new(what, Reason::Unsupported, format!("this kernel does not have it: {error}"))
        }
        _ => LookError::io(what, error),
    }
}

/// A socket of one netlink protocol, with one question at a time.
pub(super) struct Netlink {
    protocol: isize,
    socket: TokioSocket,
    sequence: u32,
    /// Whether a question has not been answered to its end: its asker was cancelled, or did not understand it.
    unfinished: bool,
    buffer: Vec<u8>,
}

impl Netlink {
    /// A socket in the network namespace of this thread.
    pub(super) fn open(protocol: isize) -> io::Result<Self> {
        let buffer = Vec::with_capacity(BUFFER);
        Ok(Netlink { protocol, socket: connect(protocol)?, sequence: 0, unfinished: false, buffer })
    }

    /// Overwrites what was received, which may hold a secret.
    pub(super) fn wipe(&mut self) {
        self.buffer.clear();
        self.buffer.resize(self.buffer.capacity(), 0);
        // Else nobody needs those zeros.
        std::hint::black_box(&self.buffer);
    }

    /// Dumps until `wanted` has found something, and leaves the rest untold.
    pub(super) async fn first<T>(
        &mut self,
        kind: u16,
        body: &[u8],
        wanted: impl Fn(&[u8]) -> Result<Option<T>, Malformed>,
    ) -> Result<Option<T>, Failure> {
        let mut found = None;
        let until = |_, body: &[u8]| {
            found = wanted(body)?;
            if found.is_some() { Err(Malformed("enough is known")) } else { Ok(()) }
        };
        match self.ask(kind, NLM_F_DUMP, body, until).await {
            Err(failure) if found.is_none() => Err(failure),
            _ => Ok(found),
        }
    }

    /// A dump as what `add` makes of its messages, from `begin` on each time: one that changed while it was read is asked for
    /// again.
    pub(super) async fn whole<T>(
        &mut self,
        what: &str,
        (kind, question): (u16, &[u8]),
        begin: impl Fn() -> T,
        add: impl Fn(&mut T, u16, &[u8]) -> Result<(), Malformed>,
    ) -> Result<T, LookError> {
        for _ in 0..ATTEMPTS {
            let mut found = begin();
            match self.ask(kind, NLM_F_DUMP, question, |kind, body| add(&mut found, kind, body)).await {
                Ok(()) => return Ok(found),
                Err(Failure::Interrupted) => {}
                Err(failure) => return Err(failure.about(what)),
            }
        }
        Err(Failure::Interrupted.about(what))
    }

    /// Asks a question that has one message as its answer, or with `NLM_F_DUMP` any number. `each` gets the type and the
    /// body of every one of them.
    pub(super) async fn ask(
        &mut self,
        kind: u16,
        flags: u16,
        body: &[u8],
        mut each: impl FnMut(u16, &[u8]) -> Result<(), Malformed>,
    ) -> Result<(), Failure> {
        if self.unfinished {
            // The rest of the old answer is still in there, and the kernel allows one dump per socket (`EBUSY`).
            self.socket = connect(self.protocol)?;
        }
        self.unfinished = true;
        self.sequence = self.sequence.wrapping_add(1);
        self.socket.send_to(&request(kind, flags, self.sequence, body), &SocketAddr::new(0, 0)).await?;
        let mut answer = Answer { sequence: self.sequence, interrupted: false, refusal: None };
        loop {
            self.buffer.clear();
            let sender = self.socket.recv_from(&mut self.buffer).await?;
            // Only the kernel has port 0.
            if sender.port_number() == 0 && answer.take(&self.buffer, &mut each)? {
                break;
            }
        }
        self.unfinished = false;
        match answer {
            Answer { refusal: Some(error), .. } => Err(error.into()),
            Answer { interrupted: true, .. } => Err(Failure::Interrupted),
            Answer { .. } => Ok(()),
        }
    }
}

fn connect(protocol: isize) -> io::Result<TokioSocket> {
    let mut socket = TokioSocket::new(protocol)?;
    socket.socket_mut().bind_auto()?;
    Ok(socket)
}

fn request(kind: u16, flags: u16, sequence: u32, body: &[u8]) -> Vec<u8> {
    let mut bytes = Vec::with_capacity(HEADER + body.len());
    // Requests are a few dozen bytes; one that is not would be refused by the kernel.
    let length = u32::try_from(HEADER + body.len()).unwrap_or(u32::MAX);
    bytes.extend_from_slice(&length.to_ne_bytes());
    bytes.extend_from_slice(&kind.to_ne_bytes());
    bytes.extend_from_slice(&(NLM_F_REQUEST | flags).to_ne_bytes());
    bytes.extend_from_slice(&sequence.to_ne_bytes());
    bytes.extend_from_slice(&0_u32.to_ne_bytes());
    bytes.extend_from_slice(body);
    bytes
}

/// Appends an attribute (`struct nlattr`) to what is asked, with its padding.
pub(super) fn put(body: &mut Vec<u8>, kind: u16, value: &[u8]) {
    // Names are at most 256 bytes long; a longer one would be refused by the kernel.
    let length = u16::try_from(4 + value.len()).unwrap_or(u16::MAX);
    body.extend_from_slice(&length.to_ne_bytes());
    body.extend_from_slice(&kind.to_ne_bytes());
    body.extend_from_slice(value);
    body.resize(body.len().next_multiple_of(4), 0);
}

/// An answer as far as it has come.
struct Answer {
    sequence: u32,
    interrupted: bool,
    refusal: Option<io::Error>,
}

impl Answer {
    /// Takes the messages of one datagram; true when the answer is complete.
    fn take(
        &mut self,
        datagram: &[u8],
        each: &mut impl FnMut(u16, &[u8]) -> Result<(), Malformed>,
    ) -> Result<bool, Malformed> {
        for message in Messages(datagram) {
            let message = message?;
            if message.sequence != self.sequence {
                continue;
            }
            self.interrupted |= message.flags & NLM_F_DUMP_INTR != 0;
            match message.kind {
                NLMSG_NOOP => {}
                NLMSG_OVERRUN => return Err(Malformed("messages were lost")),
                NLMSG_DONE | NLMSG_ERROR => {
                    // Both begin with a negative error number, or 0.
                    self.refusal = errno(message.body);
                    return Ok(true);
                }
                kind => {
                    each(kind, message.body)?;
                    if message.flags & NLM_F_MULTIPART == 0 {
                        return Ok(true);
                    }
                }
            }
        }
        Ok(false)
    }
}

fn errno(body: &[u8]) -> Option<io::Error> {
    let code = i32::from_ne_bytes(*body.first_chunk()?);
    (code != 0).then(|| io::Error::from_raw_os_error(code.wrapping_neg()))
}

/// One netlink message.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Message<'a> {
    pub(super) kind: u16,
    flags: u16,
    sequence: u32,
    pub(super) body: &'a [u8],
}

/// The messages of one datagram.
pub(super) struct Messages<'a>(pub(super) &'a [u8]);

impl<'a> Iterator for Messages<'a> {
    type Item = Result<Message<'a>, Malformed>;

    fn next(&mut self) -> Option<Self::Item> {
        let bytes = std::mem::take(&mut self.0);
        if bytes.is_empty() {
            return None;
        }
        let Some(length) = bytes.first_chunk().map(|it| u32::from_ne_bytes(*it) as usize) else {
            return Some(Err(Malformed("a message ends in its header")));
        };
        if length < HEADER || length > bytes.len() {
            return Some(Err(Malformed("a message is cut off")));
        }
        // Messages are aligned to 4 bytes; the last one need not be.
        self.0 = bytes.get(length.next_multiple_of(4)..).unwrap_or_default();
        Some(Ok(Message {
            kind: u16::from_ne_bytes([bytes[4], bytes[5]]),
            flags: u16::from_ne_bytes([bytes[6], bytes[7]]),
            sequence: u32::from_ne_bytes([bytes[8], bytes[9], bytes[10], bytes[11]]),
            body: &bytes[HEADER..length],
        }))
    }
}

/// `struct nlattr` after `struct nlattr`.
pub(super) struct Attributes<'a>(pub(super) &'a [u8]);

impl<'a> Iterator for Attributes<'a> {
    type Item = Result<(u16, &'a [u8]), Malformed>;

    fn next(&mut self) -> Option<Self::Item> {
        let bytes = std::mem::take(&mut self.0);
        if bytes.is_empty() {
            return None;
        }
        let Some(&[l0, l1, t0, t1]) = bytes.first_chunk() else {
            return Some(Err(Malformed("an attribute ends in its header")));
        };
        let length = usize::from(u16::from_ne_bytes([l0, l1]));
        if length < 4 || length > bytes.len() {
            return Some(Err(Malformed("an attribute is cut off")));
        }
        self.0 = bytes.get(length.next_multiple_of(4)..).unwrap_or_default();
        Some(Ok((u16::from_ne_bytes([t0, t1]) & TYPE_MASK, &bytes[4..length])))
    }
}

/// The first attribute of this type.
pub(super) fn find(attributes: Attributes<'_>, wanted: u16) -> Result<Option<&[u8]>, Malformed> {
    for attribute in attributes {
        let (kind, value) = attribute?;
        if kind == wanted {
            return Ok(Some(value));
        }
    }
    Ok(None)
}

/// A string attribute. Names are bytes for the kernel: one that is not UTF-8 must not spoil the look.
pub(super) fn text(value: &[u8]) -> Cow<'_, str> {
    String::from_utf8_lossy(value.split(|byte| *byte == 0).next().unwrap_or_default())
}

/// The fuzz target's door.
#[cfg(any(test, fuzzing))]
pub(crate) fn fuzz(data: &[u8]) {
    let mut told = 0;
    let mut answer = Answer { sequence: 0, interrupted: false, refusal: None };
    let done = answer.take(data, &mut |_, body| {
        told += HEADER + body.len();
        Attributes(body).take_while(Result::is_ok).flatten().for_each(|(_, value)| drop(text(value)));
        find(Attributes(body), 1).map(drop)
    });
    assert!(told <= data.len(), "messages overlap");
    if let Some(error) = answer.refusal {
        let _ = refused("a dump", &error);
        assert_eq!(done, Ok(true));
    }
    let all: usize = Attributes(data).flatten().map(|(_, value)| 4 + value.len()).sum();
    assert!(all <= data.len(), "attributes overlap");
}

/// An attribute, padded as the kernel pads it.
#[cfg(test)]
pub(super) fn attribute(kind: u16, value: &[u8]) -> Vec<u8> {
    let mut bytes = Vec::new();
    put(&mut bytes, kind, value);
    bytes
}

#[cfg(test)]
mod tests;
