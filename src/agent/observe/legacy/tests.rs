//! The parser over recorded text, and the whole source against the real kernel.

mod naive;

use proptest::prelude::*;

use super::*;
use crate::agent::observe::netns::NetNs;
use crate::facts::{BaseChain, Hook, Jump, Policy, Table};

const RECORDED: &str = include_str!("../../../../tests/recordings/iptables/legacy-forward-drop.txt");

/// What is kept of a text, with room for so many rules on suspicion, once it is known which chains matter; and how often
/// it came by for that.
fn sift(family: Family, text: &str, suspects: usize) -> Result<(Kept, usize), &'static str> {
    let mut wanted = Names::new();
    for pass in 1.. {
        let mut sieve = Sieve::new(family, &wanted);
        sieve.suspects = suspects;
        text.lines().try_for_each(|line| sieve.line(line))?;
        let kept = sieve.finish()?;
        if kept.whole {
            return Ok((kept, pass));
        }
        assert!(pass < 100, "it never ends");
        wanted.extend(kept.wanted);
    }
    unreachable!("numbers do not end")
}

fn read(family: Family, text: &str) -> Result<Table, &'static str> {
    sift(family, text, 100).map(|(kept, _)| kept.table)
}

/// The tables of a recording, each as the program prints it alone.
fn recorded() -> Vec<Table> {
    let parts = RECORDED.split_inclusive("COMMIT\n").filter(|part| part.contains('*'));
    parts.map(|part| read(Family::V4, part).expect("a recorded table")).collect()
}

#[test]
fn recorded_tables_are_read() {
    let tables = recorded();
    assert_eq!(tables.iter().map(|table| table.name.as_str()).collect::<Vec<_>>(), ["raw", "mangle", "filter", "nat"]);
    let filter = &tables[2];
    let forward = filter.chain("FORWARD").expect("FORWARD");
    assert_eq!(forward.base, Some(BaseChain { hook: Hook::Forward, policy: Policy::Drop, nat: false, priority: None }));
    assert!(filter.jumps("FORWARD", "KUBE-FORWARD"));
    let nat = &tables[3];
    assert_eq!((nat.per_object_chains, nat.foreign_chains), (2, 0));
    assert!(nat.jumps("PREROUTING", "KUBE-SERVICES") && nat.jumps("OUTPUT", "KUBE-SERVICES"));
    assert!(nat.chain("KUBE-SERVICES").is_some_and(|chain| chain.base.is_none() && chain.jumps.is_empty()));
}

#[test]
fn positions_count_all_rules_and_verdicts_are_no_jumps() {
    let text = "*filter\n:INPUT ACCEPT [0:0]\n:MINE - [0:0]\n:FORWARD ACCEPT [0:0]\n-A INPUT -j ACCEPT\n\
                -A INPUT -i lo -g MINE\n-A FORWARD -j MINE\n-A MINE -j MINE\nCOMMIT\n";
    let table = read(Family::V6, text).expect("a table");
    let jump = |position| Jump { position, target: "MINE".into() };
    assert_eq!(table.chain("INPUT").map(|chain| chain.jumps.as_slice()), Some(&[jump(1)][..]));
    assert_eq!(table.chain("FORWARD").map(|chain| chain.jumps.as_slice()), Some(&[jump(0)][..]));
    assert_eq!(table.foreign_chains, 0, "the one there is was read");
}

#[test]
fn output_that_stops_early_is_not_taken_for_a_table() {
    assert_eq!(read(Family::V4, "*nat\n:PREROUTING ACCEPT [0:0]\n").err(), Some("the output ends before COMMIT"));
    assert_eq!(read(Family::V4, "").err(), Some("the output does not begin with a table"));
    assert_eq!(read(Family::V4, "*nat\n: -\nCOMMIT\n").err(), Some("a chain has no name"));
}

#[test]
fn a_chain_that_comes_before_what_leads_to_it_is_read_in_another_pass() {
    let text = "*filter\n:INPUT ACCEPT [0:0]\n:A - [0:0]\n:B - [0:0]\n:C - [0:0]\n:D - [0:0]\n[0:0] -A INPUT -j C\n\
                [0:0] -A A -s 10.0.0.1/32 -j DROP\n[0:0] -A B -j A\n[0:0] -A C -j B\n[0:0] -A D -j DROP\nCOMMIT\n";
    for (suspects, passes) in [(0, 4), (1, 3), (2, 2), (3, 1)] {
        let (kept, took) = sift(Family::V4, text, suspects).expect("a table");
        assert_eq!(took, passes, "with room for {suspects}");
        assert_eq!(kept.table, naive::parse(Family::V4, text).expect("a table").0);
        assert_eq!(kept.table.chain("A").map(|chain| chain.rules().len()), Some(1));
        assert_eq!(kept.wanted, ["A", "B", "C"].map(str::to_owned).into());
    }
}

/// Names that mean all that names can.
const CHAINS: [&str; 18] = [
    "A",
    "DOCKER-USER",
    "KUBE-FORWARD",
    "KUBE-SEP-1",
    "KUBE-SEP-2",
    "KUBE-SEP-3",
    "KUBE-SERVICES",
    "KUBE-SVC-ERIFXISQEP7F7OF4",
    "KUBE-SVC-NPX46M4PTMTKRN6Y",
    "Z",
    "cali-FORWARD",
    "cali-failsafe-in",
    "cali-fh-eth0",
    "cali-from-host-endpoint",
    "cali-pi-policy",
    "cali-to-host-endpoint",
    "cali-tw-cali1",
    "ufw",
];

/// A table as it is printed, with rules of these chains of [`CHAINS`] (past its end: built-in ones) to these targets.
fn printed(table: &str, rules: &[(usize, usize, bool)]) -> String {
    const BASE: [&str; 3] = ["INPUT", "FORWARD", "OUTPUT"];
    let name = |index: usize| *CHAINS.get(index).unwrap_or_else(|| &BASE[index % BASE.len()]);
    let mut lines = vec![format!("*{table}")];
    lines.extend(BASE.iter().map(|chain| format!(":{chain} ACCEPT [1:2]")));
    lines.extend(CHAINS.iter().map(|chain| format!(":{chain} - [0:0]")));
    for chain in BASE.iter().chain(&CHAINS) {
        lines.extend(rules.iter().filter(|rule| name(rule.0) == *chain).map(|(_, target, comment)| {
            let comment = if *comment { " -m comment --comment \"default/kubernetes:https\"" } else { "" };
            let target = match CHAINS.get(*target) {
                Some(target) => (*target).to_owned(),
                None => format!("DNAT --to-destination 10.0.0.{target}:53"),
            };
            format!("[{}:9] -A {chain}{comment} -j {target}", target.len())
        }));
    }
    lines.join("\n") + "\nCOMMIT\n# Completed\n"
}

proptest! {
    #[test]
    fn whatever_the_order_it_is_what_the_whole_text_says(
        table in "nat|filter",
        rules in proptest::collection::vec((0_usize..24, 0_usize..24, proptest::bool::ANY), 0..40),
        suspects in 0_usize..40,
    ) {
        let text = printed(&table, &rules);
        let (expected, services) = naive::parse(Family::V4, &text).expect("a table");
        let (kept, _) = sift(Family::V4, &text, suspects).expect("a table");
        prop_assert_eq!(kept.table, expected);
        prop_assert_eq!(kept.services, services);
    }

    #[test]
    fn no_text_makes_it_panic(text in "(\\*|:|-A |-j |\"|\\\\|COMMIT|INPUT|MINE| |\n|.){0,60}") {
        let _ = read(Family::V4, &text);
    }

    #[test]
    fn no_part_of_a_recording_makes_it_panic(begin in 0..RECORDED.len(), length in 0..RECORDED.len()) {
        let part: String = RECORDED.chars().skip(begin).take(length).collect();
        let _ = read(Family::V4, &part);
    }
}

fn source() -> LegacySource {
    let mut source = LegacySource::new(HostRoot::new("/"), Blocking::default());
    // `/proc/net` would be that of the test's first thread.
    source.proc_net = "/proc/thread-self/net";
    source
}

/// What the namespace of this thread has.
pub(in crate::agent::observe) async fn look_inside() -> Result<Ruleset, LookError> {
    source().look(true).await
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
    let error = node.block_on(|| async {
        let wanted = Names::new();
        source().pass("iptables-legacy-save", Family::V4, "nonsense", &wanted).await.expect_err("no such table")
    });
    assert_eq!(error.reason, Reason::Failed);
    assert!(error.detail.contains("Table does not exist"), "{error}");
    let error = check_program("iptables-no-such-program", "nat").expect_err("no such program");
    assert_eq!(error.reason, Reason::Unsupported);
    assert!(error.detail.contains("install the package iptables"), "{error}");
    check_program("iptables-legacy-save", "nat").expect("the right one");
    let error = check_program("iptables-nft-save", "nat").expect_err("not the right one");
    assert!(error.detail.contains("it reads nf_tables"), "{error}");
    assert_eq!(existing(&node), "", "asking for the version created a table");
}

/// Rules of so many Services as kube-proxy writes them, the chains in the order of their names, with rules of others.
fn services(count: usize) -> String {
    let sep = |service: usize, endpoint: usize| format!("KUBE-SEP-{service:010}{endpoint:06}");
    let mut chains: Vec<(String, Vec<String>)> = vec![
        ("DOCKER".into(), (0..900).map(|it| format!("-s 172.17.{}.{}/32 -j RETURN", it / 256, it % 256)).collect()),
        ("KUBE-SERVICES".into(), Vec::new()),
        ("zone-first".into(), vec!["-j zone-second".into()]),
        ("zone-second".into(), vec!["-s 192.0.2.9/32 -j RETURN".into(), "-j zone-empty".into()]),
        ("zone-empty".into(), Vec::new()),
    ];
    let needed = [("kubernetes:https", "NPX46M4PTMTKRN6Y"), ("kube-dns:dns-tcp", "ERIFXISQEP7F7OF4")];
    for service in 0..count {
        let (name, svc) = match needed.get(service) {
            Some((name, hash)) => ((*name).to_owned(), format!("KUBE-SVC-{hash}")),
            None => (format!("app-{service}:http"), format!("KUBE-SVC-{service:016}")),
        };
        let comment = |text: &str| format!("-m comment --comment \"{text}\"");
        chains[1].1.push(format!("-d 10.96.{}.{}/32 -p tcp {} -j {svc}", service / 256, service % 256, comment(&name)));
        let jump = |to: usize| format!("{} -j {}", comment(&format!("{name} -> {to}")), sep(service, to));
        chains.push((svc, (0..2).map(jump).collect()));
        for endpoint in 0..2 {
            // The comment is not what kube-proxy writes for one of them: it is found all the same.
            let comment = comment(&if service == 0 { format!("default/{name}") } else { name.clone() });
            let to = format!("10.{endpoint}.{}.{}", service / 256, service % 256);
            let rules = [format!("-s {to}/32 {comment} -j MARK --set-xmark 0x4000/0x4000")];
            let dnat = format!("-p tcp {comment} -m tcp -j DNAT --to-destination {to}:8080");
            chains.push((sep(service, endpoint), rules.into_iter().chain([dnat]).collect()));
        }
    }
    chains.sort();
    let mut lines: Vec<String> = [":PREROUTING ACCEPT", ":INPUT ACCEPT", ":OUTPUT ACCEPT"].map(str::to_owned).into();
    lines.insert(0, "*nat".to_owned());
    lines.extend(chains.iter().map(|(chain, _)| format!(":{chain} -")));
    let jumps = ["PREROUTING -j KUBE-SERVICES", "OUTPUT -j KUBE-SERVICES", "OUTPUT -j zone-first"];
    lines.extend(jumps.map(|jump| format!("-A {jump}")));
    lines.extend(chains.iter().flat_map(|(chain, rules)| rules.iter().map(move |rule| format!("-A {chain} {rule}"))));
    let filter = ["COMMIT", "*filter", ":INPUT ACCEPT", ":zone-first -", "-A INPUT -j zone-first", "COMMIT", ""];
    lines.extend(filter.map(str::to_owned));
    lines.join("\n")
}

#[test]
fn a_big_rule_set_of_the_kernel_is_read_as_the_whole_text_says() {
    let node = NetNs::new();
    node.command_with_input("iptables-legacy-restore", &[], &services(3000));
    let whole = |table| node.command("iptables-legacy-save", &["-c", "-t", table]);
    let expected = ["filter", "nat"].map(|table| naive::parse(Family::V4, &whole(table)).expect("a table"));
    assert!(whole("nat").len() > 1 << 20);
    node.block_on(|| async {
        let mut source = source();
        for large in [true, false] {
            let mut seen = source.look(large).await.expect("a look");
            seen.tables.sort_by(|a, b| a.name.cmp(&b.name));
            assert_eq!(seen.tables, expected.clone().map(|(table, _)| table));
            assert_eq!(seen.services, expected[1].1);
            let mut ends = seen.services.iter().flat_map(|service| &service.endpoints);
            assert!(seen.services.len() == 2 && ends.all(|end| end.port() == 8080), "{:?}", seen.services);
        }
        assert_eq!(source.tables[&(Family::V4, "nat".to_owned())].kept.wanted.len(), 4, "one Service and its ends");
    });
}

#[test]
fn a_program_that_misbehaves_is_ended_and_told() {
    use std::os::unix::fs::PermissionsExt as _;
    let dir = tempfile::tempdir().expect("a directory");
    let program = |name: &str, text: &str| {
        let path = dir.path().join(name);
        std::fs::write(&path, format!("#!/bin/sh\n{text}\n")).expect("write");
        std::fs::set_permissions(&path, std::fs::Permissions::from_mode(0o755)).expect("chmod");
        path.to_string_lossy().into_owned()
    };
    let pid = dir.path().join("pid");
    let hangs = program("hangs", &format!("echo $$ >{}; echo '*nat'; exec sleep 1000", pid.display()));
    let endless = program("endless", "echo '*nat'; exec tr '\\0' x </dev/zero");
    let fails = program("fails", "echo '*nat'; echo COMMIT; echo 'no such luck' >&2; exit 3");
    let early = program("early", "echo '*nat'");
    let rows = [
        (endless, Reason::Malformed, "a line is too long"),
        (fails, Reason::Failed, "no such luck"),
        (early, Reason::Malformed, "the output ends before COMMIT"),
    ];
    let run = async |source: &mut LegacySource, program: &str| {
        source.pass(program, Family::V4, "nat", &Names::new()).await.expect_err("it misbehaves")
    };
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().expect("a runtime");
    runtime.block_on(async {
        let mut source = source();
        for (program, reason, why) in rows {
            let error = run(&mut source, &program).await;
            assert!(error.reason == reason && error.detail.contains(why), "{program}: {error}");
        }
        assert_eq!(run(&mut source, &hangs).await.reason, Reason::TimedOut);
        assert!(source.hangs.is_none(), "it is gone");
        let pid = std::fs::read_to_string(&pid).expect("it ran");
        assert!(!std::path::Path::new("/proc").join(pid.trim()).exists(), "killed and waited for");
    });
}
