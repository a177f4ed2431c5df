//! BPF programs that are attached to links, where Calico's eBPF dataplane is in use.
//!
//! The kernel lists those of tc for one link and direction at a time, some 10 µs each; so they are asked for only where the
//! device is there that this dataplane makes. Those that are attached by TCX or netkit are told by bpf(2) alone, which cannot be
//! called without unsafe code; but Felix pins them by name, and they go with their pins (`felix/bpf/tc/attach.go`).

use std::collections::{BTreeMap, BTreeSet};

use super::super::host_root::HostRoot;
use super::super::netlink::{Attributes, Malformed, Netlink, find};
use crate::facts::{BPF_DEVICE, Link, LookError, Seen};

/// `RTM_NEWTFILTER` and `RTM_GETTFILTER` of `linux/rtnetlink.h`.
const NEW_FILTER: u16 = 44;
const GET_FILTER: u16 = 46;
/// `TC_H_CLSACT` with `TC_H_MIN_INGRESS` and `TC_H_MIN_EGRESS` of `linux/pkt_sched.h`.
const DIRECTIONS: [u32; 2] = [0xffff_fff2, 0xffff_fff3];
/// `sizeof(struct tcmsg)`: family and padding, the link's index, a handle, the parent, and information.
const TCMSG: usize = 20;
/// `TCA_KIND`.
const KIND: u16 = 1;
/// Where Felix pins what it attaches by TCX and netkit (`felix/bpf/bpfdefs`): a link's name without dots, `_ingress` or
/// `_egress`.
const PINS: [&str; 2] = ["/sys/fs/bpf/tcx", "/sys/fs/bpf/netkit"];
/// So many links are asked for.
const MOST: usize = 512;

/// Whether each link has a program for what comes in from it, and for what goes out to it. A link that went meanwhile has none.
pub(super) async fn programs(
    socket: &mut Netlink,
    links: &[Link],
    host: &HostRoot,
) -> Seen<BTreeMap<String, [bool; 2]>> {
    if !links.iter().any(|link| link.name == BPF_DEVICE) {
        return Seen::Absent;
    }
    let pins = match pins(host) {
        Ok(pins) => pins,
        Err(error) => return Seen::Unreadable(error),
    };
    let mut all = BTreeMap::new();
    for link in links.iter().filter(|link| !link.loopback).take(MOST) {
        let mut attached = [false; 2];
        for (attached, parent) in attached.iter_mut().zip(DIRECTIONS) {
            let add = |found: &mut bool, kind, body: &[u8]| {
                *found |= kind == NEW_FILTER && is_bpf(body)?;
                Ok(())
            };
            let asked = socket.whole("filters of tc", (GET_FILTER, &question(link.index, parent)), || false, add).await;
            match asked {
                Ok(found) => *attached = found,
                Err(error) => return Seen::Unreadable(error),
            }
        }
        let name = link.name.replace('.', "");
        for (attached, direction) in attached.iter_mut().zip(["ingress", "egress"]) {
            *attached |= pins.contains(&format!("{name}_{direction}"));
        }
        all.insert(link.name.clone(), attached);
    }
    Seen::Yes(all)
}

/// Names of what is pinned; none where nothing is.
fn pins(host: &HostRoot) -> Result<BTreeSet<String>, LookError> {
    let mut names = BTreeSet::new();
    for place in PINS {
        match std::fs::read_dir(host.path(place)) {
            Ok(entries) => {
                for entry in entries.take(MOST * 2) {
                    let entry = entry.map_err(|error| LookError::io(place, &error))?;
                    names.insert(entry.file_name().to_string_lossy().into_owned());
                }
            }
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => {}
            Err(error) => return Err(LookError::io(place, &error)),
        }
    }
    Ok(names)
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
#[cfg(any(test, fuzzing))]
pub(super) fn fuzz(body: &[u8]) {
    let _ = is_bpf(body);
}

#[cfg(test)]
mod tests {
    use proptest::collection::vec;
    use proptest::prelude::*;

    use super::*;
    use crate::agent::observe::netlink::attribute;

    proptest! {
        #[test]
        fn any_bytes_are_a_filter_or_an_error(body in vec(any::<u8>(), 0..120)) {
            let read = is_bpf(&body);
            prop_assert!(body.len() >= TCMSG || read.is_err());
        }

        /// Its kind decides, among whatever else the kernel says of it.
        #[test]
        fn a_filter_is_known_by_its_kind(
            kind in "bpf|flower|u32|bp|bpff|",
            others in vec((2..60_u16, vec(any::<u8>(), 0..12)), 0..6),
            at in any::<prop::sample::Index>(),
        ) {
            let mut parts: Vec<Vec<u8>> = others.iter().map(|(kind, value)| attribute(*kind, value)).collect();
            parts.insert(at.index(parts.len() + 1), attribute(KIND, &[kind.as_bytes(), &[0]].concat()));
            let body = [vec![0; TCMSG], parts.concat()].concat();
            prop_assert_eq!(is_bpf(&body).ok(), Some(kind == "bpf"));
        }
    }
}
