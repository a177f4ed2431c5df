//! Sets of addresses (`ipset`), asked from the kernel: names and counts, never the entries, of which there can be millions.
//!
//! The kernel tells nobody when a set changes, so it is asked again and again, and only for the few sets that matter: for
//! each header it counts the entries anew, and Felix has a set for each selector. Numbers and names are those of
//! `linux/netfilter/ipset/ip_set.h`.

use std::path::Path;

use netlink_packet_core::NLM_F_DUMP;
use netlink_sys::protocols::NETLINK_NETFILTER;
use nix::errno::Errno;

use super::netlink::{Attributes, Failure, Malformed, Netlink, find, put, refused, text};
use crate::facts::{IpSet, LookError, Reason};

/// `NFNL_SUBSYS_IPSET` in the upper byte, and `IPSET_CMD_LIST`.
const LIST: u16 = 6 << 8 | 7;
/// `IPSET_ATTR_PROTOCOL`.
const PROTOCOL: u16 = 1;
/// `IPSET_PROTOCOL_MIN`: kernels since 2.6.39 understand it.
const VERSION: u8 = 6;
/// `IPSET_ATTR_SETNAME`.
const NAME: u16 = 2;
/// `IPSET_ATTR_TYPENAME`.
const KIND: u16 = 3;
/// `IPSET_ATTR_FLAGS`, with `NLA_F_NET_BYTEORDER`.
const FLAGS: u16 = 6 | 1 << 14;
/// `IPSET_FLAG_LIST_HEADER`: without the entries.
const HEADERS_ONLY: u32 = 1 << 2;
/// `IPSET_ATTR_DATA`.
const DATA: u16 = 7;
/// `IPSET_ATTR_ELEMENTS`.
const ELEMENTS: u16 = 24;
/// `IPSET_ATTR_REFERENCES`.
const REFERENCES: u16 = 25;

/// Asking loads the module (`nfnetlink_rcv_msg` of `net/netfilter/nfnetlink.c`); a machine that has not needed it does not
/// get it from here. Modules are the machine's, whatever root its files are seen in.
const MODULE: &str = "/sys/module/ip_set";

/// The sets that are asked for: those of Calico whose names are the same on every node (`felix/rules/rule_defs.go`), and those
/// of kube-proxy's IPVS mode that everything goes through (`pkg/proxy/ipvs/ipset.go`).
pub(super) const NAMES: [&str; 12] = [
    "KUBE-6-CLUSTER-IP",
    "KUBE-6-LOOP-BACK",
    "KUBE-CLUSTER-IP",
    "KUBE-LOOP-BACK",
    "cali40all-hosts-net",
    "cali40all-ipam-pools",
    "cali40masq-ipam-pools",
    "cali40network-ip-pools",
    "cali40this-host",
    "cali60all-ipam-pools",
    "cali60masq-ipam-pools",
    "cali60network-ip-pools",
];

/// Where sets are asked for.
pub(super) struct IpSetSource {
    netlink: Netlink,
}

impl IpSetSource {
    /// A source for the network namespace of this thread. [`Reason::Missing`] when the machine uses no sets.
    pub(super) fn open() -> Result<Self, LookError> {
        if !Path::new(MODULE).exists() {
            return Err(LookError::new("ipset", Reason::Missing, "the kernel's module is not loaded"));
        }
        let netlink = Netlink::open(NETLINK_NETFILTER).map_err(|error| refused("ipset", &error))?;
        Ok(IpSetSource { netlink })
    }

    /// The sets that matter, as far as they are there.
    pub(super) async fn look(&mut self) -> Result<Vec<IpSet>, LookError> {
        let mut sets = Vec::new();
        for name in NAMES {
            let request = request(name);
            let answer = self.netlink.ask(LIST, NLM_F_DUMP, &request, |_, body| {
                sets.extend(set(body)?);
                Ok(())
            });
            match answer.await {
                Ok(()) => {}
                // There is none of this name.
                Err(Failure::Io(error)) if error.raw_os_error() == Some(Errno::ENOENT as i32) => {}
                Err(failure) => return Err(failure.about("ipset")),
            }
        }
        Ok(sets)
    }
}

/// `struct nfgenmsg` with `AF_INET`, the version of the protocol, the name, and that the header is enough.
fn request(name: &str) -> Vec<u8> {
    let mut body = vec![2, 0, 0, 0];
    put(&mut body, PROTOCOL, &[VERSION]);
    put(&mut body, NAME, &[name.as_bytes(), &[0]].concat());
    put(&mut body, FLAGS, &HEADERS_ONLY.to_be_bytes());
    body
}

/// One set; none for messages that name none.
fn set(body: &[u8]) -> Result<Option<IpSet>, Malformed> {
    let attributes = body.get(4..).ok_or(Malformed("a message ends in its family"))?;
    let Some(name) = find(Attributes(attributes), NAME)?.map(text) else { return Ok(None) };
    let kind = find(Attributes(attributes), KIND)?.map(text).unwrap_or_default();
    let data = find(Attributes(attributes), DATA)?.unwrap_or_default();
    let number = |kind| match find(Attributes(data), kind)? {
        Some(value) => value.try_into().map(u32::from_be_bytes).map_err(|_| Malformed("a number is not 4 bytes long")),
        None => Ok(0),
    };
    Ok(Some(IpSet {
        name: name.into_owned(),
        kind: kind.into_owned(),
        entries: number(ELEMENTS)?,
        references: number(REFERENCES)?,
    }))
}

/// The fuzz target's door.
#[cfg(any(test, fuzzing))]
pub(crate) fn fuzz(data: &[u8]) {
    let _ = set(data);
}

#[cfg(test)]
mod tests {
    use std::fmt::Write as _;

    use proptest::prelude::*;

    use super::*;
    use crate::agent::observe::netlink::attribute;
    use crate::agent::observe::netns::{NetNs, without_net_admin};

    async fn look() -> Result<Vec<IpSet>, LookError> {
        IpSetSource::open()?.look().await
    }

    #[test]
    fn sets_of_a_real_kernel_are_counted_and_those_of_selectors_are_left_out() {
        let node = NetNs::new();
        node.block_on(|| async {
            assert_eq!(look().await, Ok(vec![]), "an empty machine");
            let mut lines = String::from(
                "create KUBE-CLUSTER-IP hash:ip,port\nadd KUBE-CLUSTER-IP 10.96.0.1,tcp:443\n\
                 create cali40masq-ipam-pools hash:net\nadd cali40masq-ipam-pools 10.1.0.0/16\n\
                 create cali60all-ipam-pools hash:net family inet6\ncreate mine hash:ip\ncreate cali4t7 hash:ip\n",
            );
            // Those of selectors, of which there can be many.
            for number in 0..500 {
                writeln!(lines, "create cali40s:{number:020} hash:ip").expect("a string");
            }
            node.command_with_input("ipset", &["restore"], &lines);
            node.command(
                "iptables-nft",
                &["-A", "FORWARD", "-m", "set", "--match-set", "cali40masq-ipam-pools", "src", "-j", "ACCEPT"],
            );
            let set = |name: &str, kind: &str, entries, references| IpSet {
                name: name.into(),
                kind: kind.into(),
                entries,
                references,
            };
            let expected = [
                set("KUBE-CLUSTER-IP", "hash:ip,port", 1, 0),
                set("cali40masq-ipam-pools", "hash:net", 1, 1),
                set("cali60all-ipam-pools", "hash:net", 0, 0),
            ];
            assert_eq!(look().await.as_deref(), Ok(&expected[..]));
            let mut source = IpSetSource::open().expect("open");
            node.command("ipset", &["flush", "cali40masq-ipam-pools"]);
            assert_eq!(source.look().await.expect("look")[1], set("cali40masq-ipam-pools", "hash:net", 0, 1));
        });
    }

    #[test]
    fn without_the_capability_it_says_what_it_needs() {
        without_net_admin(module_path!(), "without_the_capability_it_says_what_it_needs", || {
            let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().expect("a runtime");
            assert_eq!(runtime.block_on(look()).map_err(|error| error.reason), Err(Reason::Denied));
        });
    }

    proptest! {
        #[test]
        fn any_bytes_are_a_set_or_an_error(body in proptest::collection::vec(any::<u8>(), 0..200)) {
            set(&body).ok();
        }

        #[test]
        fn any_attributes_are_a_set_or_an_error(
            parts in proptest::collection::vec((0_u16..30, proptest::collection::vec(any::<u8>(), 0..12)), 0..8),
            inner in proptest::collection::vec((20_u16..30, proptest::collection::vec(any::<u8>(), 0..6)), 0..6),
        ) {
            let mut body = vec![2, 0, 0, 0];
            body.extend(parts.iter().flat_map(|(kind, value)| attribute(*kind, value)));
            let data: Vec<u8> = inner.iter().flat_map(|(kind, value)| attribute(*kind | 1 << 14, value)).collect();
            body.extend(attribute(DATA | 1 << 15, &data));
            set(&body).ok();
        }
    }
}
