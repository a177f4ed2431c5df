//! On rule sets as data: who is blamed for what. On the real kernel it is tested in `tests/netns/hooks.rs`.

use super::*;
use crate::facts::{Backend, BaseChain, Chain, Family, Hook, Jump, Policy, Table};

fn at(second: i64) -> Timestamp {
    Timestamp::from_second(1_700_000_000 + second).expect("valid")
}

fn ruleset(generation: u32, chains: &[&str], jumps: &[&str]) -> Ruleset {
    let base = BaseChain { hook: Hook::Prerouting, policy: Policy::Accept, nat: true, priority: Some(-100) };
    let jumps = jumps.iter().map(|target| Jump { position: 0, target: (*target).into() }).collect();
    let mut all = vec![Chain { jumps, ..Chain::new("PREROUTING", Some(base)) }];
    all.extend(chains.iter().map(|name| Chain::new(name, None)));
    let table = Table { family: Family::V4, name: "nat".into(), chains: all, per_object_chains: 0, foreign_chains: 0 };
    Ruleset { generation: Some(generation), tables: vec![table], ..Ruleset::empty(Backend::Nftables) }
}

fn commit(generation: u32, pid: u32, program: &str) -> Commit {
    Commit { at: at(i64::from(generation % 1000)), generation, pid: Some(pid), program: Some(program.into()) }
}

const BOTH: [&str; 2] = ["KUBE-SERVICES", "KUBE-POSTROUTING"];

/// A history that has seen a jump and two chains at generation 10.
fn before() -> (Commits, History) {
    let commits = Commits::default();
    let mut history = History::new(commits.clone());
    history.take(&ruleset(10, &BOTH, &["KUBE-SERVICES", "DOCKER"]), at(10));
    assert_eq!(history.changes(), PacketFilterChanges::default());
    (commits, history)
}

fn gone(history: &History) -> Vec<String> {
    let removals = history.changes().removals;
    removals.iter().flat_map(|removal| &removal.gone).map(ToString::to_string).collect()
}

#[test]
fn the_commit_at_which_it_went_is_to_blame_and_later_ones_are_not() {
    let (commits, mut history) = before();
    commits.add(commit(10, 7, "kube-proxy"));
    commits.add(commit(11, 1425, "iptables-nft"));
    history.take(&ruleset(11, &BOTH, &["DOCKER"]), at(12));
    commits.add(commit(12, 99, "iptables-nft-re"));
    history.take(&ruleset(12, &BOTH, &["DOCKER"]), at(13));
    let changes = history.changes();
    assert_eq!(gone(&history), ["nat PREROUTING -> KUBE-SERVICES"]);
    assert_eq!(changes.removals[0].to_string(), format!("removed at {} by iptables-nft (pid 1425)", at(11)));
    assert_eq!(changes.last.iter().map(|commit| commit.generation).collect::<Vec<_>>(), [10, 11, 12]);
}

#[test]
fn what_comes_back_is_taken_off_and_can_go_again() {
    let (commits, mut history) = before();
    commits.add(commit(11, 1, "nft"));
    history.take(&ruleset(11, &["KUBE-SERVICES"], &[]), at(11));
    assert_eq!(gone(&history), ["nat KUBE-POSTROUTING", "nat PREROUTING -> KUBE-SERVICES"]);
    commits.add(commit(12, 2, "kube-proxy"));
    history.take(&ruleset(12, &["KUBE-SERVICES"], &["KUBE-SERVICES"]), at(12));
    assert_eq!(gone(&history), ["nat KUBE-POSTROUTING"]);
    history.take(&ruleset(12, &["KUBE-SERVICES"], &["KUBE-SERVICES"]), at(17));
    commits.add(commit(13, 3, "script"));
    history.take(&ruleset(13, &["KUBE-SERVICES"], &[]), at(18));
    let removals = history.changes().removals;
    let by: Vec<_> = removals.iter().flat_map(|removal| &removal.by).filter_map(|commit| commit.pid).collect();
    assert_eq!(by, [1, 3]);
    history.take(&ruleset(14, &BOTH, &["KUBE-SERVICES"]), at(19));
    assert_eq!(history.changes().removals, []);
}

#[test]
fn a_look_that_is_faster_than_the_notification_names_it_later() {
    let (commits, mut history) = before();
    history.take(&ruleset(11, &[], &[]), at(11));
    assert_eq!(history.changes().removals[0].by, []);
    assert_eq!(history.changes().removals[0].at, at(11));
    commits.add(commit(11, 5, "nft"));
    history.take(&ruleset(11, &[], &[]), at(16));
    assert_eq!(history.changes().removals[0].by, [commit(11, 5, "nft")]);
    // Somebody else's, long after: the case is closed.
    commits.add(commit(12, 6, "other"));
    history.take(&ruleset(12, &[], &[]), at(17));
    assert_eq!(history.changes().removals[0].by, [commit(11, 5, "nft")]);
}

#[test]
fn among_several_all_are_named_and_of_a_burst_a_few() {
    let (commits, mut history) = before();
    commits.add(commit(11, 5, "nft"));
    commits.add(commit(12, 6, "firewalld"));
    history.take(&ruleset(12, &BOTH, &[]), at(12));
    let said = history.changes().removals[0].to_string();
    assert!(said.ends_with(" by nft (pid 5) or firewalld (pid 6)"), "{said}");

    let (commits, mut history) = before();
    for generation in 11..=3000 {
        commits.add(commit(generation, generation, "iptables-nft"));
    }
    history.take(&ruleset(3000, &BOTH, &[]), at(12));
    let said = history.changes().removals[0].to_string();
    let end =
        "by iptables-nft (pid 2998) or iptables-nft (pid 2999) or iptables-nft (pid 3000), in one of 2990 changes";
    assert!(said.ends_with(end), "{said}");
    assert_eq!(history.changes().last.len(), MOST_TOLD);
}

#[test]
fn numbers_wrap_around_and_nothing_grows_without_end() {
    let commits = Commits::default();
    let mut history = History::new(commits.clone());
    history.take(&ruleset(u32::MAX, &BOTH, &[]), at(0));
    commits.add(commit(1, 5, "nft"));
    history.take(&ruleset(1, &[], &[]), at(1));
    assert_eq!(history.changes().removals[0].by, [commit(1, 5, "nft")]);

    for round in 0..100 {
        let name = format!("KUBE-{round}");
        history.take(&ruleset(2 + 2 * round, &[&name], &[]), at(2));
        history.take(&ruleset(3 + 2 * round, &[], &[]), at(2));
    }
    assert_eq!(history.changes().removals.len(), MOST_REMOVALS);
}

#[test]
fn chains_of_others_and_of_single_services_do_not_matter() {
    let (_, mut history) = before();
    history.take(&ruleset(11, &[&BOTH[..], &["KUBE-SVC-1", "mine"]].concat(), &["KUBE-SERVICES", "DOCKER"]), at(11));
    history.take(&ruleset(12, &BOTH, &["KUBE-SERVICES"]), at(12));
    assert_eq!(history.changes().removals, []);
}
