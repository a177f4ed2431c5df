//! Messages made by hand and taken from the kernel, whole, cut and spoilt.

use netlink_packet_core::NLM_F_DUMP;
use netlink_sys::protocols::NETLINK_NETFILTER;
use proptest::prelude::*;

use super::super::rule::rule;
use super::*;
use crate::agent::observe::netlink::{Netlink, attribute};
use crate::agent::observe::netns::NetNs;

fn number_attribute(kind: u16, value: u32) -> Vec<u8> {
    attribute(kind, &value.to_be_bytes())
}

#[test]
fn a_generation_names_its_maker() {
    let parts = [number_attribute(1, 7), number_attribute(2, 1425), attribute(3, b"iptables-nft-re\0")];
    let body = [ALL.to_vec(), parts.concat()].concat();
    let program = Some("iptables-nft-re".to_owned());
    assert_eq!(generation(&body), Ok(Generation { id: 7, pid: Some(1425), program }));
    assert!(generation(&ALL).is_err());
}

/// What the kernel says about a small rule set: bodies of tables, chains and rules.
fn from_the_kernel() -> Vec<Vec<u8>> {
    let node = NetNs::new();
    node.command("iptables-nft", &["-N", "KUBE-FORWARD"]);
    let rule = ["-A", "FORWARD", "-m", "conntrack", "--ctstate", "NEW", "-m", "comment", "--comment", "x"];
    node.command("iptables-nft", &[&rule[..], &["-j", "KUBE-FORWARD"]].concat());
    node.command("nft", &["add set ip filter s { type ipv4_addr; flags interval; elements = { 10.0.0.0/8 }; }"]);
    node.block_on(|| async {
        let mut netlink = Netlink::open(NETLINK_NETFILTER).expect("a socket");
        let mut bodies = Vec::new();
        for (kind, flags, body) in [
            (GET_GENERATION, 0, ALL.to_vec()),
            (GET_TABLE, NLM_F_DUMP, ALL.to_vec()),
            (GET_CHAIN, NLM_F_DUMP, ALL.to_vec()),
            (GET_RULE, NLM_F_DUMP, rules_of(Some(Family::V4), "filter", "FORWARD")),
            (GET_ELEMENTS, NLM_F_DUMP, elements_of(Family::V4, "filter", "s")),
        ] {
            let keep = |_, body: &[u8]| {
                bodies.push(body.to_vec());
                Ok(())
            };
            netlink.ask(kind, flags, &body, keep).await.expect("an answer");
        }
        bodies
    })
}

fn read_as_everything(body: &[u8]) {
    let _ = (table(body).is_ok(), chain(body).is_ok(), rule(body, 0).is_ok(), generation(body).is_ok());
    let _ = has_element(body).is_ok();
}

#[test]
fn real_messages_are_understood_and_their_parts_do_no_harm() {
    let bodies = from_the_kernel();
    assert!(bodies.len() >= 5, "{bodies:?}");
    assert!(bodies.iter().any(|body| rule(body, 0).is_ok_and(|rule| rule.target() == Some("KUBE-FORWARD"))));
    let elements = &bodies[5..];
    assert!(elements.iter().any(|body| has_element(body) == Ok(true)), "{bodies:?}");
    for body in &bodies {
        for end in 0..body.len() {
            read_as_everything(&body[..end]);
        }
        for at in 0..body.len() {
            for value in [0, 1, 0x7f, 0x80, 0xff] {
                let mut spoilt = body.clone();
                spoilt[at] = value;
                read_as_everything(&spoilt);
            }
        }
    }
}

proptest! {
    #[test]
    fn no_bytes_make_it_panic(bytes in prop::collection::vec(any::<u8>(), 0..300)) {
        read_as_everything(&bytes);
    }

    #[test]
    fn what_is_asked_can_be_read_back(table in "[a-z-]{1,20}", chain in "[A-Za-z/-]{1,40}") {
        let body = rules_of(Some(Family::V6), &table, &chain);
        let (protocol, attributes) = open(&body).expect("well formed");
        prop_assert_eq!(family(protocol), Some(Family::V6));
        let values: Vec<_> = attributes.map(|it| it.map(|(_, value)| text(value).into_owned())).collect();
        prop_assert_eq!(values, [Ok(table), Ok(chain)]);
    }
}
