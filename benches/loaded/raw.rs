//! A netlink dump that is read and not understood: what the kernel itself costs.

use anyhow::{Result, ensure};
use netlink_sys::protocols::{NETLINK_NETFILTER, NETLINK_ROUTE};
use netlink_sys::{Socket, SocketAddr};
use nix::time::{ClockId, clock_gettime};

/// Dumps of one netlink protocol: the type of each request, and the length of its body.
pub struct Dumps(isize, &'static [(u16, usize)]);

/// What one look at the routing state is made of: links, addresses, rules, routes, neighbours.
pub const LOOK: Dumps = Dumps(NETLINK_ROUTE, &[(18, 16), (22, 8), (34, 12), (26, 12), (30, 12)]);
/// The routes alone.
pub const ROUTES: Dumps = Dumps(NETLINK_ROUTE, &[(26, 12)]);
/// The chains of nf_tables (`NFT_MSG_GETCHAIN`).
pub const CHAINS: Dumps = Dumps(NETLINK_NETFILTER, &[(10 << 8 | 4, 4)]);

/// CPU seconds of this thread for these dumps, and how many messages came.
pub fn dumps(Dumps(protocol, kinds): &Dumps) -> Result<(f64, usize)> {
    let mut socket = Socket::new(*protocol)?;
    socket.bind_auto()?;
    let mut buffer = Vec::with_capacity(32 << 10);
    let (before, mut count) = (clock_gettime(ClockId::CLOCK_THREAD_CPUTIME_ID)?, 0);
    for (kind, length) in *kinds {
        socket.send_to(&request(*kind, *length), &SocketAddr::new(0, 0), 0)?;
        'dump: loop {
            buffer.clear();
            socket.recv_from(&mut buffer, 0)?;
            let mut rest = buffer.as_slice();
            while let [l0, l1, l2, l3, t0, t1, ..] = *rest {
                let length = usize::try_from(u32::from_ne_bytes([l0, l1, l2, l3]))?;
                match u16::from_ne_bytes([t0, t1]) {
                    3 => break 'dump,
                    2 => anyhow::bail!("the kernel refuses the dump {kind}"),
                    _ => count += 1,
                }
                ensure!(length >= 16, "a message is shorter than its header");
                rest = rest.get(length.next_multiple_of(4)..).unwrap_or_default();
            }
        }
    }
    let used = clock_gettime(ClockId::CLOCK_THREAD_CPUTIME_ID)? - before;
    Ok((std::time::Duration::from(used).as_secs_f64(), count))
}

/// A dump of everything of a kind, of all families.
fn request(kind: u16, length: usize) -> Vec<u8> {
    let mut bytes = Vec::new();
    bytes.extend_from_slice(&u32::try_from(16 + length).unwrap_or(16).to_ne_bytes());
    bytes.extend_from_slice(&kind.to_ne_bytes());
    // `NLM_F_REQUEST | NLM_F_DUMP`.
    bytes.extend_from_slice(&0x301_u16.to_ne_bytes());
    bytes.resize(16 + length, 0);
    bytes
}
