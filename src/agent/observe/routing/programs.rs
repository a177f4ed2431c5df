//! BPF programs that are attached to links by tc, where Calico's eBPF dataplane is in use.
//!
//! The kernel lists them for one link and direction at a time, some 10 µs each; so they are asked for only where the device is
//! there that this dataplane makes. Programs that are attached by TCX are not told by netlink.

use std::collections::BTreeMap;

use netlink_packet_core::NLM_F_DUMP;

use super::super::netlink::{Attributes, Failure, Malformed, Netlink, find};
use crate::facts::{BPF_DEVICE, Link, Seen};

/// `RTM_NEWTFILTER` and `RTM_GETTFILTER` of `linux/rtnetlink.h`.
const NEW_FILTER: u16 = 44;
const GET_FILTER: u16 = 46;
/// `TC_H_CLSACT` with `TC_H_MIN_INGRESS` and `TC_H_MIN_EGRESS` of `linux/pkt_sched.h`.
const DIRECTIONS: [u32; 2] = [0xffff_fff2, 0xffff_fff3];
/// `sizeof(struct tcmsg)`: family and padding, the link's index, a handle, the parent, and information.
const TCMSG: usize = 20;
/// `TCA_KIND`.
const KIND: u16 = 1;
/// So many links are asked for.
const MOST: usize = 512;

/// Whether each link has a program for what comes in from it, and for what goes out to it. A link that went meanwhile has none.
pub(super) async fn programs(socket: &mut Netlink, links: &[Link]) -> Seen<BTreeMap<String, [bool; 2]>> {
    if !links.iter().any(|link| link.name == BPF_DEVICE) {
        return Seen::Absent;
    }
    let mut all = BTreeMap::new();
    for link in links.iter().filter(|link| !link.loopback).take(MOST) {
        let mut attached = [false; 2];
        for (attached, parent) in attached.iter_mut().zip(DIRECTIONS) {
            let each = |kind, body: &[u8]| {
                *attached |= kind == NEW_FILTER && is_bpf(body)?;
                Ok(())
            };
            match socket.ask(GET_FILTER, NLM_F_DUMP, &question(link.index, parent), each).await {
                // One that changes right now is told by the next look.
                Ok(()) | Err(Failure::Interrupted) => {}
                Err(failure) => return Seen::Unreadable(failure.about("filters of tc")),
            }
        }
        all.insert(link.name.clone(), attached);
    }
    Seen::Yes(all)
}

fn question(index: u32, parent: u32) -> [u8; TCMSG] {
    let mut body = [0; TCMSG];
    body[4..8].copy_from_slice(&index.to_ne_bytes());
    body[12..16].copy_from_slice(&parent.to_ne_bytes());
    body
}

fn is_bpf(body: &[u8]) -> Result<bool, Malformed> {
    let attributes = body.get(TCMSG..).ok_or(Malformed("a filter of tc is shorter than its header"))?;
    Ok(find(Attributes(attributes), KIND)?.is_some_and(|kind| kind.strip_suffix(b"\0").unwrap_or(kind) == b"bpf"))
}

/// The fuzz target's door.
#[cfg(fuzzing)]
pub(super) fn fuzz(body: &[u8]) {
    let _ = is_bpf(body);
}
