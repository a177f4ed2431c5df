//! Messages made by hand and taken from the kernel, whole, cut and spoilt.

use netlink_packet_core::NLM_F_DUMP;
use netlink_sys::protocols::NETLINK_NETFILTER;
use proptest::prelude::*;

use super::*;
use crate::agent::observe::netlink::Netlink;
use crate::agent::observe::netns::NetNs;

fn attribute(kind: u16, value: &[u8]) -> Vec<u8> {
    let length = u16::try_from(4 + value.len()).expect("short");
    let mut bytes = [&length.to_ne_bytes()[..], &kind.to_ne_bytes(), value].concat();
    bytes.resize(bytes.len().next_multiple_of(4), 0);
    bytes
}

fn number_attribute(kind: u16, value: u32) -> Vec<u8> {
    attribute(kind, &value.to_be_bytes())
}

fn verdict(code: u32, chain: &str) -> Vec<u8> {
    let parts = [number_attribute(VERDICT_CODE, code), attribute(VERDICT_CHAIN, format!("{chain}\0").as_bytes())];
    let data = attribute(IMMEDIATE_DATA, &attribute(DATA_VERDICT, &parts.concat()));
    [
        attribute(EXPRESSION_NAME, b"immediate\0"),
        attribute(EXPRESSION_DATA | 0x8000, &[number_attribute(1, 0), data].concat()),
    ]
    .concat()
}

fn rule(expressions: &[Vec<u8>]) -> Vec<u8> {
    let list: Vec<u8> = expressions.iter().flat_map(|it| attribute(LIST_ELEMENT, it)).collect();
    [head(Some(Family::V4)).to_vec(), attribute(RULE_EXPRESSIONS, &list)].concat()
}

#[test]
fn jumps_and_gotos_are_found_behind_unknown_expressions() {
    let unknown = [attribute(EXPRESSION_NAME, b"frobnicate\0"), attribute(EXPRESSION_DATA, b"\x01\x02")].concat();
    assert_eq!(jump(&rule(&[unknown.clone(), verdict(JUMP, "KUBE-A")])), Ok(Some("KUBE-A".into())));
    assert_eq!(jump(&rule(&[verdict(GOTO, "KUBE-B")])), Ok(Some("KUBE-B".into())));
    assert_eq!(jump(&rule(&[unknown])), Ok(None));
    // `NF_ACCEPT`.
    assert_eq!(jump(&rule(&[verdict(1, "")])), Ok(None));
}

#[test]
fn a_rule_that_is_cut_off_is_malformed() {
    let whole = rule(&[verdict(JUMP, "KUBE-A")]);
    assert_eq!(jump(&whole[..whole.len() - 4]), Err(Malformed("an attribute is cut off")));
    assert_eq!(jump(&[]), Err(Malformed("a message ends in its family")));
    let mut spoilt = whole;
    // The length of the inner list, longer than what holds it.
    spoilt[8..10].copy_from_slice(&u16::MAX.to_ne_bytes());
    assert_eq!(jump(&spoilt), Err(Malformed("an attribute is cut off")));
}

#[test]
fn a_generation_names_its_maker() {
    let parts = [number_attribute(1, 7), number_attribute(2, 1425), attribute(3, b"iptables-nft-re\0")];
    let body = [head(None).to_vec(), parts.concat()].concat();
    let program = Some("iptables-nft-re".to_owned());
    assert_eq!(generation(&body), Ok(Generation { id: 7, pid: Some(1425), program }));
    assert!(generation(&head(None)).is_err());
}

/// What the kernel says about a small rule set: bodies of tables, chains and rules.
fn from_the_kernel() -> Vec<Vec<u8>> {
    let node = NetNs::new();
    node.command("iptables-nft", &["-N", "KUBE-FORWARD"]);
    let rule = ["-A", "FORWARD", "-m", "conntrack", "--ctstate", "NEW", "-m", "comment", "--comment", "x"];
    node.command("iptables-nft", &[&rule[..], &["-j", "KUBE-FORWARD"]].concat());
    node.block_on(|| async {
        let mut netlink = Netlink::open(NETLINK_NETFILTER).expect("a socket");
        let mut bodies = Vec::new();
        for (kind, flags, body) in [
            (GET_GENERATION, 0, head(None).to_vec()),
            (GET_TABLE, NLM_F_DUMP, head(None).to_vec()),
            (GET_CHAIN, NLM_F_DUMP, head(None).to_vec()),
            (GET_RULE, NLM_F_DUMP, rules_of(Family::V4, "filter", "FORWARD")),
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
    let _ = (table(body).is_ok(), chain(body).is_ok(), jump(body).is_ok(), generation(body).is_ok());
}

#[test]
fn real_messages_are_understood_and_their_parts_do_no_harm() {
    let bodies = from_the_kernel();
    assert!(bodies.len() >= 5, "{bodies:?}");
    assert!(bodies.iter().any(|body| jump(body) == Ok(Some("KUBE-FORWARD".into()))));
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
        let body = rules_of(Family::V6, &table, &chain);
        let (family, attributes) = open(&body).expect("well formed");
        prop_assert_eq!(family, Some(Family::V6));
        let values: Vec<_> = attributes.map(|it| it.map(|(_, value)| text(value).into_owned())).collect();
        prop_assert_eq!(values, [Ok(table), Ok(chain)]);
    }
}
