//! The kernel's TCP sockets, as `/proc/net` prints them.
//!
//! Not from `sock_diag`: a process with `CAP_NET_ADMIN`, which this one is, gets the TCP-MD5 passwords of the sockets with
//! every answer there, and a password must never be read.

use std::io::{BufRead, BufReader, Read};
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use super::host_root::{HostRoot, open_at_once};
use crate::facts::LookError;

/// States of `net/tcp_states.h`.
pub(super) const ESTABLISHED: u8 = 1;
/// Longest line of a table, in bytes; the kernel's have 150.
const LONGEST: u64 = 1024;

/// One socket: its ends, its state, and what else its line says.
pub(super) type Ends<'a> = ((IpAddr, u16), (IpAddr, u16), u8, std::str::SplitAsciiWhitespace<'a>);

/// Every line that mentions a port, here or there. Read line by line: a node can have 50,000 sockets.
pub(super) fn each_line(host: &HostRoot, port: u16, mut take: impl FnMut(&[u8])) -> Result<(), LookError> {
    let written = format!(":{port:04X} ").into_bytes();
    // `/proc/net` is the main thread's network namespace, even in a thread that has entered another.
    for path in ["/proc/thread-self/net/tcp", "/proc/thread-self/net/tcp6"] {
        let file = match open_at_once(&host.path(path)) {
            Ok(file) => file,
            // No IPv6 in this kernel.
            Err(error) if error.kind() == std::io::ErrorKind::NotFound && path.ends_with('6') => continue,
            Err(error) => return Err(LookError::io(path, &error)),
        };
        let mut lines = BufReader::with_capacity(1 << 16, file);
        let mut line = Vec::new();
        while lines.by_ref().take(LONGEST).read_until(b'\n', &mut line).map_err(|error| LookError::io(path, &error))?
            > 0
        {
            if line.windows(written.len()).any(|part| part == written) {
                take(&line);
            }
            line.clear();
        }
    }
    Ok(())
}

/// `1: 0200000A:B74E 0100000A:00B3 02 00000001:00000000 01:00000040 00000001 ...`
pub(super) fn ends(line: &[u8]) -> Option<Ends<'_>> {
    let mut words = std::str::from_utf8(line).ok()?.split_ascii_whitespace();
    let here = end(words.nth(1)?)?;
    let there = end(words.next()?)?;
    let state = u8::from_str_radix(words.next()?, 16).ok()?;
    Some((here, there, state, words))
}

/// Address and port: the address in words of 32 bits, each as the processor holds it.
fn end(text: &str) -> Option<(IpAddr, u16)> {
    let (address, port) = text.split_once(':')?;
    let word = |at: usize| u32::from_str_radix(address.get(at..at + 8)?, 16).ok().map(u32::to_ne_bytes);
    let address = match address.len() {
        8 => IpAddr::V4(Ipv4Addr::from(word(0)?)),
        32 => {
            let words = [word(0)?, word(8)?, word(16)?, word(24)?];
            let bytes: [u8; 16] = words.concat().try_into().ok()?;
            IpAddr::V6(Ipv6Addr::from(bytes)).to_canonical()
        }
        _ => return None,
    };
    Some((address, u16::from_str_radix(port, 16).ok()?))
}
