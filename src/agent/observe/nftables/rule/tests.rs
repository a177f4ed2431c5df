//! Rules written by the real programs, told by the real kernel; and messages made by hand.

use ipnet::IpNet;
use proptest::prelude::*;

use super::*;
use crate::agent::observe::netlink::attribute;
use crate::agent::observe::netns::NetNs;
use crate::agent::observe::nftables::NftablesSource;

/// The rules of a chain of this namespace.
fn rules(node: &NetNs, family: Option<Family>, table: &str, chain: &str) -> Vec<FilterRule> {
    node.block_on(|| async {
        let mut source = NftablesSource::open().expect("open");
        source.rules_of(family, table, chain).await.expect("read").expect("nothing changes")
    })
}

/// The rule that `iptables-nft` makes of this.
fn iptables(text: &str) -> FilterRule {
    let node = NetNs::new();
    node.command("iptables-nft", &[&["-N", "KUBE-A"][..]].concat());
    let words: Vec<String> = text.split(' ').map(|word| word.replace('~', " ")).collect();
    let words: Vec<&str> = ["-A", "FORWARD"].into_iter().chain(words.iter().map(String::as_str)).collect();
    node.command("iptables-nft", &words);
    rules(&node, Some(Family::V4), "filter", "FORWARD").remove(0)
}

/// The rules that `nft` makes of these lines, in a table of both families.
fn nft(lines: &str) -> Vec<FilterRule> {
    let node = NetNs::new();
    let rules = format!(
        "table inet t {{ set s {{ type ipv4_addr; }}\n chain a {{ }}\n chain f {{ type filter hook forward priority 0; \
         policy drop;\n{lines}\n}}\n }}\n"
    );
    node.command_with_input("nft", &["-f", "-"], &rules);
    self::rules(&node, None, "t", "f")
}

fn net(text: &str) -> Is<IpNet> {
    Is::new(text.parse().expect("a prefix"), false)
}

fn open_rule(position: u32) -> FilterRule {
    FilterRule::new(position)
}

#[test]
fn what_iptables_writes_is_read() {
    let rule = iptables("-s 10.1.0.0/16 -d 10.2.3.0/27 -p tcp --dport 80:90 -m comment --comment my~comment -j DROP");
    let expected = FilterRule {
        action: Action::Drop,
        source: Some(net("10.1.0.0/16")),
        destination: Some(net("10.2.3.0/27")),
        protocol: Some(Is::new(6, false)),
        ports: vec![(80, 90)],
        comment: Some("my comment".into()),
        packets: Some(0),
        ..open_rule(0)
    };
    assert_eq!(rule, expected);
    let rule = iptables(
        "-i cali+ ! -o eth0 -p udp -m multiport --dports 53,100:200 -m conntrack --ctstate NEW,RELATED -j REJECT",
    );
    let expected = FilterRule {
        action: Action::Reject,
        input: Some(Is::new("cali+".into(), false)),
        output: Some(Is::new("eth0".into(), true)),
        protocol: Some(Is::new(17, false)),
        ports: vec![(53, 53), (100, 200)],
        states: Some(FilterRule::NEW | FilterRule::RELATED),
        packets: Some(0),
        ..open_rule(0)
    };
    assert_eq!(rule, expected);
    let rule = iptables("-p 4 -j DROP");
    let protocol = Some(Is::new(4, false));
    assert_eq!(rule, FilterRule { action: Action::Drop, protocol, packets: Some(0), ..open_rule(0) });
    let rule = iptables("-m mark --mark 0x4000/0x4000 -j ACCEPT");
    let mark = Some(Is::new((0x4000, 0x4000), false));
    assert_eq!(rule, FilterRule { action: Action::Accept, mark, packets: Some(0), ..open_rule(0) });
    let rule = iptables("! -s 1.2.3.4 -g KUBE-A");
    let source = Some(Is::new("1.2.3.4/32".parse().expect("a prefix"), true));
    let action = Action::Goto("KUBE-A".into());
    assert_eq!(rule, FilterRule { action, source, packets: Some(0), ..open_rule(0) });
    let rule = iptables("-m conntrack ! --ctstate RELATED,ESTABLISHED -j RETURN");
    assert!(rule.action == Action::Return && rule.may_open() && !rule.other_matches, "{rule:?}");
    assert_eq!(rule.states.map(|states| states & 6), Some(0));
    assert_eq!(iptables("-j LOG").action, Action::Continue);
}

#[test]
fn what_of_iptables_is_not_understood_restricts() {
    for text in [
        "-m addrtype --dst-type LOCAL -j DROP",
        "-p tcp --sport 5 -j DROP",
        "-p tcp ! --dport 5 -j DROP",
        "-p tcp --syn -j DROP",
        "-m limit --limit 3/min -j DROP",
        "-m conntrack ! --ctstate RELATED,ESTABLISHED,DNAT -j DROP",
        "-m conntrack --ctorigsrc 10.0.0.1 -j DROP",
        "-m statistic --mode random --probability 0.5 -j DROP",
        "-p tcp -m multiport --sports 5,6 -j DROP",
    ] {
        let rule = iptables(text);
        assert!(rule.other_matches && rule.action == Action::Drop, "{text}: {rule:?}");
    }
}

#[test]
fn what_nft_writes_is_read() {
    let rules = nft("ct state established,related accept
         iif lo accept
         iifname \"cali*\" accept comment \"hello there\"
         ip saddr 10.16.0.0/12 counter drop
         ip6 daddr fd00::/9 drop
         tcp dport 100-200 reject with icmpx admin-prohibited
         meta mark & 0x4000 == 0x4000 accept
         ct state != new accept
         iifname \"eth0\" oifname != \"docker0\" jump a
         log prefix \"x\" drop
         meta mark set 5
         meta nfproto ipv6 drop");
    let drop = |position| FilterRule { action: Action::Drop, ..open_rule(position) };
    let accept = |position| FilterRule { action: Action::Accept, ..open_rule(position) };
    let expected = [
        FilterRule { states: Some(6), ..accept(0) },
        FilterRule { input: Some(Is::new("lo".into(), false)), ..accept(1) },
        FilterRule { input: Some(Is::new("cali+".into(), false)), comment: Some("hello there".into()), ..accept(2) },
        FilterRule { family: Some(Family::V4), source: Some(net("10.16.0.0/12")), packets: Some(0), ..drop(3) },
        FilterRule { family: Some(Family::V6), destination: Some(net("fd00::/9")), ..drop(4) },
        FilterRule {
            action: Action::Reject,
            protocol: Some(Is::new(6, false)),
            ports: vec![(100, 200)],
            ..open_rule(5)
        },
        FilterRule { mark: Some(Is::new((0x4000, 0x4000), false)), ..accept(6) },
        FilterRule { states: Some(!FilterRule::NEW), ..accept(7) },
        FilterRule {
            action: Action::Jump("a".into()),
            input: Some(Is::new("eth0".into(), false)),
            output: Some(Is::new("docker0".into(), true)),
            ..open_rule(8)
        },
        drop(9),
        FilterRule { marks: true, ..open_rule(10) },
        FilterRule { family: Some(Family::V6), ..drop(11) },
    ];
    for (rule, expected) in rules.iter().zip(&expected) {
        assert_eq!(rule, expected);
    }
    assert_eq!(rules.len(), expected.len());
}

#[test]
fn what_of_nft_is_not_understood_restricts() {
    let rules = nft("ip saddr @s drop
         tcp dport { 22, 80 } drop
         tcp dport != 443 drop
         tcp sport 5 drop
         limit rate 10/second drop
         ct state vmap { invalid : drop, new : continue }
         ip ttl 5 drop
         fib daddr type local drop
         ct status dnat drop
         meta l4proto { tcp, udp } drop
         meta mark . ip saddr { 0x1 . 1.2.3.4 } drop
         ip saddr & 0.0.0.255 == 0.0.0.1 drop");
    assert_eq!(rules.len(), 12);
    for rule in &rules {
        assert!(rule.other_matches && !rule.matches_everything(), "{rule:?}");
    }
    assert_eq!(rules[0].sets, [Is::new("s".into(), false)]);
    assert_eq!(rules[5].action, Action::Other("vmap".into()));
}

#[test]
fn destinations_are_read_in_both_ways_of_writing_them() {
    for (program, family, to, expected) in [
        ("iptables-nft", Family::V4, "10.0.0.5:80", "10.0.0.5:80"),
        ("iptables-nft", Family::V4, "10.0.0.5", "10.0.0.5:0"),
        ("ip6tables-nft", Family::V6, "[fd00::5]:80", "[fd00::5]:80"),
    ] {
        let node = NetNs::new();
        node.command(program, &["-t", "nat", "-A", "PREROUTING", "-p", "tcp", "-j", "DNAT", "--to-destination", to]);
        let rule = rules(&node, Some(family), "nat", "PREROUTING").remove(0);
        assert_eq!(rule.action, Action::Dnat(Some(expected.parse().expect("an address"))));
    }
    let node = NetNs::new();
    let text = "table ip t { chain c { type nat hook prerouting priority 0; meta l4proto tcp dnat to 10.0.0.5:80; } \n }\n\
                table ip6 t { chain c { type nat hook prerouting priority 0; meta l4proto tcp dnat to [fd00::5]:80; } \n }\n";
    node.command_with_input("nft", &["-f", "-"], text);
    for (family, expected) in [(Family::V4, "10.0.0.5:80"), (Family::V6, "[fd00::5]:80")] {
        let rule = rules(&node, Some(family), "t", "c").remove(0);
        assert_eq!(rule.action, Action::Dnat(Some(expected.parse().expect("an address"))));
    }
}

fn number_attribute(kind: u16, value: u32) -> Vec<u8> {
    attribute(kind, &value.to_be_bytes())
}

fn verdict(code: u32, chain: &[u8]) -> Vec<u8> {
    let parts = [number_attribute(VERDICT_CODE, code), attribute(VERDICT_CHAIN, &[chain, b"\0"].concat())];
    let data = attribute(2, &attribute(DATA_VERDICT, &parts.concat()));
    expression(b"immediate", &[number_attribute(1, 0), data].concat())
}

fn expression(name: &[u8], data: &[u8]) -> Vec<u8> {
    // `NLA_F_NESTED` is set by some.
    [attribute(EXPRESSION_NAME, &[name, b"\0"].concat()), attribute(EXPRESSION_DATA | 0x8000, data)].concat()
}

fn message(expressions: &[Vec<u8>]) -> Vec<u8> {
    let list: Vec<u8> = expressions.iter().flat_map(|it| attribute(LIST_ELEMENT, it)).collect();
    [&[2, 0, 0, 0][..], &attribute(RULE_EXPRESSIONS, &list)].concat()
}

#[test]
fn an_unknown_expression_restricts_and_verdicts_are_found_behind_it() {
    let unknown = expression(b"frobnicate", b"\x01\x02\x03");
    let read = rule(&message(&[unknown.clone(), verdict(JUMP, b"KUBE-A")]), 3).expect("a rule");
    assert_eq!((read.target(), read.other_matches, read.position), (Some("KUBE-A"), true, 3));
    // `NF_ACCEPT`, and a chain whose name is no text.
    let read = rule(&message(&[verdict(1, b"")]), 0).expect("a rule");
    assert!(read.action == Action::Accept && read.matches_everything());
    let read = rule(&message(&[verdict(GOTO, b"\xff\x01/a b")]), 0).expect("a rule");
    assert_eq!(read.target(), Some("\u{fffd}\u{1}/a b"));
}

#[test]
fn a_rule_that_is_cut_off_is_malformed() {
    let whole = message(&[verdict(JUMP, b"KUBE-A")]);
    assert_eq!(rule(&whole[..whole.len() - 4], 0), Err(Malformed("an attribute is cut off")));
    assert_eq!(rule(&[], 0), Err(Malformed("a message ends in its family")));
    let mut spoilt = whole;
    // The length of the inner list, longer than what holds it.
    spoilt[8..10].copy_from_slice(&u16::MAX.to_ne_bytes());
    assert_eq!(rule(&spoilt, 0), Err(Malformed("an attribute is cut off")));
}

proptest! {
    #[test]
    fn no_expressions_make_it_panic(
        parts in prop::collection::vec(
            (
                prop::sample::select(vec![
                    "meta", "payload", "ct", "bitwise", "cmp", "range", "lookup", "immediate", "nat", "counter", "match",
                    "target", "fib", "x",
                ]),
                prop::collection::vec((0_u16..9, prop::collection::vec(any::<u8>(), 0..24)), 0..7),
            ),
            0..6,
        )
    ) {
        let expressions: Vec<Vec<u8>> = parts
            .iter()
            .map(|(name, fields)| {
                let data: Vec<u8> = fields.iter().flat_map(|(kind, value)| attribute(*kind, value)).collect();
                expression(name.as_bytes(), &data)
            })
            .collect();
        let _ = rule(&message(&expressions), 0);
    }

    #[test]
    fn no_match_makes_it_panic(
        name in prop::sample::select(vec!["comment", "conntrack", "multiport", "tcp", "udp", "mark", "set", "DNAT"]),
        revision in 0_u32..5,
        info in prop::collection::vec(any::<u8>(), 0..200),
    ) {
        xt::condition(name, revision, Some(&info), &mut FilterRule::new(0));
        xt::target(name, revision, Some(&info));
    }
}
