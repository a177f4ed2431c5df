//! The parser over recorded text, and the whole source against the real kernel.

use proptest::prelude::*;

use super::*;
use crate::agent::observe::netns::NetNs;

const RECORDED: &str = include_str!("../../../../tests/recordings/iptables/legacy-forward-drop.txt");

/// The tables of a recording, each as the program prints it alone.
fn recorded() -> Vec<Table> {
    let parts = RECORDED.split_inclusive("COMMIT\n").filter(|part| part.contains('*'));
    parts.map(|part| parse(Family::V4, part).expect("a recorded table").0).collect()
}

#[test]
fn recorded_tables_are_read() {
    let tables = recorded();
    assert_eq!(tables.iter().map(|table| table.name.as_str()).collect::<Vec<_>>(), ["raw", "mangle", "filter", "nat"]);
    let filter = &tables[2];
    let forward = filter.chain("FORWARD").expect("FORWARD");
    assert_eq!(forward.base, Some(BaseChain { hook: Hook::Forward, policy: Policy::Drop, nat: false }));
    assert!(filter.jumps("FORWARD", "KUBE-FORWARD"));
    let nat = &tables[3];
    assert_eq!((nat.per_object_chains, nat.foreign_chains), (2, 0));
    assert!(nat.jumps("PREROUTING", "KUBE-SERVICES") && nat.jumps("OUTPUT", "KUBE-SERVICES"));
    assert!(nat.chain("KUBE-SERVICES").is_some_and(|chain| chain.base.is_none() && chain.jumps.is_empty()));
}

#[test]
fn positions_count_all_rules_and_verdicts_are_no_jumps() {
    let text = "*filter\n:INPUT ACCEPT [0:0]\n:MINE - [0:0]\n:FORWARD ACCEPT [0:0]\n-A INPUT -j ACCEPT\n\
                -A FORWARD -j MINE\n-A INPUT -i lo -g MINE\n-A MINE -j MINE\nCOMMIT\n";
    let (table, _) = parse(Family::V6, text).expect("a table");
    let jump = |position| Jump { position, target: "MINE".into() };
    assert_eq!(table.chain("INPUT").map(|chain| chain.jumps.as_slice()), Some(&[jump(1)][..]));
    assert_eq!(table.chain("FORWARD").map(|chain| chain.jumps.as_slice()), Some(&[jump(0)][..]));
    assert_eq!(table.foreign_chains, 0, "the one there is was read");
}

#[test]
fn output_that_stops_early_is_not_taken_for_a_table() {
    assert_eq!(parse(Family::V4, "*nat\n:PREROUTING ACCEPT [0:0]\n").err(), Some("the output ends before COMMIT"));
    assert_eq!(parse(Family::V4, "").err(), Some("the output does not begin with a table"));
    assert_eq!(parse(Family::V4, "*nat\n: -\nCOMMIT\n").err(), Some("a chain has no name"));
}

proptest! {
    #[test]
    fn no_text_makes_it_panic(text in "(\\*|:|-A |-j |\"|\\\\|COMMIT|INPUT|MINE| |\n|.){0,60}") {
        let _ = parse(Family::V4, &text);
    }

    #[test]
    fn no_part_of_a_recording_makes_it_panic(begin in 0..RECORDED.len(), length in 0..RECORDED.len()) {
        let part: String = RECORDED.chars().skip(begin).take(length).collect();
        let _ = parse(Family::V4, &part);
    }
}

async fn look_inside() -> Result<Ruleset, LookError> {
    let mut source = LegacySource::new(HostRoot::new("/"), Blocking::default());
    // `/proc/net` would be that of the test's first thread.
    source.proc_net = "/proc/thread-self/net";
    source.look().await
}

fn existing(node: &NetNs) -> String {
    node.run(|| {
        let read = |name: &str| std::fs::read_to_string(format!("/proc/thread-self/net/{name}")).unwrap_or_default();
        read("ip_tables_names") + &read("ip6_tables_names")
    })
}

#[test]
fn what_nobody_uses_is_absent_and_stays_so() {
    let node = NetNs::new();
    node.command("iptables-nft", &["-t", "nat", "-N", "KUBE-SERVICES"]);
    let error = node.block_on(look_inside).expect_err("no legacy table");
    assert_eq!(error.reason, Reason::Missing);
    assert_eq!(existing(&node), "", "the look created a table");
}

#[test]
fn only_tables_that_exist_are_read() {
    let node = NetNs::new();
    node.command("iptables-legacy", &["-t", "nat", "-N", "KUBE-SERVICES"]);
    node.command("iptables-legacy", &["-t", "nat", "-A", "PREROUTING", "-j", "KUBE-SERVICES"]);
    node.command("ip6tables-legacy", &["-P", "FORWARD", "DROP"]);
    let ruleset = node.block_on(look_inside).expect("a look");
    assert_eq!((ruleset.backend, ruleset.generation), (Backend::Legacy, None));
    let names: Vec<_> = ruleset.tables.iter().map(|table| (table.family, table.name.as_str())).collect();
    assert_eq!(names, [(Family::V4, "nat"), (Family::V6, "filter")]);
    assert!(ruleset.tables[0].jumps("PREROUTING", "KUBE-SERVICES"));
    let forward = ruleset.tables[1].chain("FORWARD").and_then(|chain| chain.base).expect("FORWARD");
    assert_eq!(forward.policy, Policy::Drop);
    assert_eq!(existing(&node), "nat\nfilter\n");

    node.command("iptables-legacy", &["-t", "nat", "-F", "PREROUTING"]);
    let ruleset = node.block_on(look_inside).expect("a look");
    assert!(!ruleset.tables[0].jumps("PREROUTING", "KUBE-SERVICES"));
}

#[test]
fn a_table_that_cannot_be_read_is_an_error_and_not_empty() {
    let node = NetNs::new();
    let error = node.run(|| save("iptables-legacy-save", "nonsense")).expect_err("no such table");
    assert_eq!(error.reason, Reason::Failed);
    assert!(error.detail.contains("Table does not exist"), "{error}");
    let error = save("iptables-no-such-program", "nat").expect_err("no such program");
    assert_eq!(error.reason, Reason::Unsupported);
    assert!(error.detail.contains("install the package iptables"), "{error}");
}
