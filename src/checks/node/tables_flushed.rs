//! Somebody has flushed tables: what kube-proxy and Calico had in them is gone together, or the chains are by which kube-proxy
//! and the kubelet notice that.
//!
//! *Looks at* what both owners lack in one table, which is the root of what each of them lacks ([`chains::flushes`]); and at the
//! canary chains, `KUBE-PROXY-CANARY` and `KUBE-KUBELET-CANARY`, that earlier looks of this boot saw. Those hold nothing and
//! nothing needs them, so they are only worth knowing: they say when it happened, and what else is missed is told by
//! other codes. *Traps*: what only one owner lacks is its own finding; one that never had chains here lacks none; where its
//! owner repairs it soon nothing was lost, so it waits for as long as what it causes; the native nftables mode has no canaries;
//! kube-proxy that ended may have cleaned up after itself, and one that now uses another mode or backend has (catalogue R108).

use std::collections::BTreeMap;
use std::time::Duration;

use super::super::chains::{self, Flush};
use super::super::{Area, Check, Finding, Look, Outcome, Severity, findings_or_unknown, first_error};
use super::{calico_chains_missing, calico_chains_unhooked, kube_proxy_chains_missing, kube_proxy_chains_unhooked};
use crate::facts::{Backend, Family, Program, ProxyMode, Ruleset, Seen};

pub(super) const CHECK: Check = Check {
    code: "TablesFlushed",
    area: Area::PacketFilter,
    severity: Severity::Info,
    why: "whoever flushed these tables took other rules with them, and the owners notice it only in the table mangle",
    next_step: "find who did it at that time (firewalld, ufw, a script: `journalctl --since` the time given), and compare with the other findings of the packet filter",
    raise_after: Duration::from_secs(2),
    clear_after: Duration::from_secs(2),
    run,
};

/// What to do about one that took chains with it that somebody needs.
const RESTORE: &str = "restart kube-proxy on this node (delete its pod), which notices nothing for up to an hour; Felix writes its part again by itself if it lives (`curl -s localhost:9099/liveness`), else delete the calico-node pod; then find who flushed (firewalld, ufw, a script: `journalctl --since` the time given)";

/// What each owner lacks is told by these.
const CAUSED: [&Check; 4] = [
    &kube_proxy_chains_missing::CHECK,
    &kube_proxy_chains_unhooked::CHECK,
    &calico_chains_missing::CHECK,
    &calico_chains_unhooked::CHECK,
];

fn run(look: &Look<'_>) -> Outcome {
    let both = look.expected.kube_proxy.is_some() && look.expected.calico.is_some();
    if look.before.canaries.is_empty() && !both {
        return Outcome::NotApplicable("no canary chain was seen since this boot".into());
    }
    let (flushes, unread) = match chains::flushes(look) {
        Ok(flushes) => (flushes, None),
        Err(error) => (Vec::new(), Some(error)),
    };
    let mut findings: BTreeMap<(Backend, Family), Finding> = canaries(look);
    findings.extend(flushes.iter().map(|flush| ((flush.backend, flush.family), of_both(look, flush))));
    let unread = first_error([unread, look.now.nftables.error(), look.now.legacy.error()]);
    findings_or_unknown(findings.into_values().collect(), unread)
}

/// One that took what both owners had. It counts no sooner than the first of what it causes.
fn of_both(look: &Look<'_>, flush: &Flush) -> Finding {
    let Flush { backend, family, tables, gone } = flush;
    let blame = chains::blame(look, *backend, *family, gone);
    let them = if tables.len() == 1 { "it" } else { "them" };
    let detail = format!(
        "{} flushed: what kube-proxy and Calico had in {them} is gone together{blame}",
        tables_were(tables, *backend, *family)
    );
    let caused = CAUSED.into_iter().filter_map(|check| match (check.run)(look) {
        Outcome::Findings(findings) => Some((check, findings)),
        _ => None,
    });
    let waits = caused.flat_map(|(check, findings)| {
        let here = findings.into_iter().filter(|finding| finding.subject == family.to_string());
        here.map(move |finding| finding.owner_repairs_within.unwrap_or(check.raise_after))
    });
    Finding::new(subject(*backend, *family), detail)
        .severity(Severity::Critical)
        .next(RESTORE)
        .repaired_within(waits.min().unwrap_or(CHECK.raise_after))
}

fn subject(backend: Backend, family: Family) -> String {
    format!("{backend} {family}")
}

/// `Tables filter and nat of IPv4 (nf_tables) were`.
fn tables_were(tables: &[&str], backend: Backend, family: Family) -> String {
    match tables {
        [table] => format!("Table {table} of {family} ({backend}) was"),
        tables => format!("Tables {} of {family} ({backend}) were", tables.join(", ")),
    }
}

/// Those that only canaries tell of.
fn canaries(look: &Look<'_>) -> BTreeMap<(Backend, Family), Finding> {
    let native = look.expected.kube_proxy == Some(ProxyMode::Nftables);
    let mut gone: BTreeMap<(Backend, Family), BTreeMap<&str, Vec<&str>>> = BTreeMap::new();
    for (backend, family, table, chain) in &look.before.canaries {
        let kubelets = chain.contains("KUBELET");
        let owner = if kubelets { Program::Kubelet } else { Program::KubeProxy };
        let holds = |ruleset: &Ruleset| ruleset.table(*family, table).is_some_and(|table| table.chain(chain).is_some());
        let (here, there) = match backend {
            Backend::Nftables => (&look.now.nftables, &look.now.legacy),
            Backend::Legacy => (&look.now.legacy, &look.now.nftables),
        };
        let cleaned_up = ended(look, owner) || !kubelets && native;
        let moved = there.get().is_some_and(holds);
        let missed = match here {
            Seen::Yes(ruleset) => !holds(ruleset),
            Seen::Absent => true,
            Seen::Unreadable(_) => false,
        };
        if missed && !moved && !cleaned_up {
            gone.entry((*backend, *family)).or_default().entry(table).or_default().push(chain);
        }
    }
    gone.into_iter()
        .map(|((backend, family), tables)| ((backend, family), of_canaries(look, backend, family, &tables)))
        .collect()
}

fn of_canaries(look: &Look<'_>, backend: Backend, family: Family, gone: &BTreeMap<&str, Vec<&str>>) -> Finding {
    let told = gone.iter().map(|(table, chains)| {
        let left = ruleset(look, backend).and_then(|it| it.table(family, table));
        let left = match left.map(|table| table.chains.iter().filter(|chain| chain.base.is_none()).count()) {
            None => "the table itself is gone",
            Some(0) => "it holds none of the chains of Kubernetes and Calico any more",
            Some(_) => "it holds other chains",
        };
        let place = if gone.len() == 1 { String::new() } else { format!("of {table} ") };
        format!("{place}{} went missing, and {left}", chains.join(" and "))
    });
    let told: Vec<String> = told.collect();
    let pieces = gone.iter().flat_map(|(table, chains)| chains.iter().map(move |chain| format!("{table} {chain}")));
    let blame = chains::blame(look, backend, family, &pieces.collect::<Vec<_>>());
    let tables: Vec<&str> = gone.keys().copied().collect();
    let detail = format!("{} flushed: {}{blame}", tables_were(&tables, backend, family), told.join("; "));
    Finding::new(subject(backend, family), detail)
}

fn ruleset<'a>(look: &Look<'a>, backend: Backend) -> Option<&'a Ruleset> {
    match backend {
        Backend::Nftables => look.now.nftables.get(),
        Backend::Legacy => look.now.legacy.get(),
    }
}

/// Whether a program ran since this boot and does not now.
fn ended(look: &Look<'_>, program: Program) -> bool {
    let runs = look.now.processes.get().is_none_or(|processes| processes.of(program).is_some());
    look.before.programs.contains(&program) && !runs
}

#[cfg(test)]
mod tests {
    use super::super::testing::{self, Node};
    use super::*;

    /// A worker with both canaries in table nat, which remembers them.
    fn healthy() -> Node {
        let node = Node::worker();
        let node = ["KUBE-PROXY-CANARY", "KUBE-KUBELET-CANARY"]
            .into_iter()
            .fold(node, |node, name| node.rules(Backend::Nftables, ("nat", name), None, vec![]));
        let now = node.look().now.clone();
        node.remember(|before| before.update(&now))
    }

    fn without(node: Node, start: &str) -> Node {
        node.edit_chains(Backend::Nftables, "nat", |chains| chains.retain(|chain| !chain.name.starts_with(start)))
    }

    #[test]
    fn canaries_that_vanish() {
        let node = without(healthy(), "KUBE-");
        assert_eq!(testing::subjects(&run(&node.look())), ["nf_tables IPv4"]);
        let details = testing::details(&run(&node.look()));
        assert!(details[0].contains("KUBE-KUBELET-CANARY and KUBE-PROXY-CANARY went missing"), "{details:?}");
        let node = healthy().edit(|now| now.nftables = testing::no_tables(Backend::Nftables));
        assert!(testing::details(&run(&node.look()))[0].contains("the table itself is gone"));
        assert_eq!(CHECK.severity, Severity::Info);
    }

    #[test]
    fn trap_kube_proxy_cleans_up_after_itself() {
        let node = without(healthy(), "KUBE-PROXY-CANARY");
        assert!(matches!(run(&node.look()), Outcome::Findings(_)));
        assert_eq!(run(&node.without(Program::KubeProxy).look()), Outcome::Healthy);
    }

    #[test]
    fn trap_another_mode_or_backend() {
        let native = healthy().kube_proxy_native();
        let native = native.rules(Backend::Nftables, ("nat", "KUBE-KUBELET-CANARY"), None, vec![]);
        assert_eq!(run(&native.look()), Outcome::Healthy);
        let moved = without(healthy(), "KUBE-");
        let moved = ["KUBE-PROXY-CANARY", "KUBE-KUBELET-CANARY"]
            .into_iter()
            .fold(moved, |node, name| node.rules(Backend::Legacy, ("nat", name), None, vec![]));
        assert_eq!(run(&moved.look()), Outcome::Healthy);
    }

    /// A worker with kube-proxy and Calico in one backend.
    fn both(backend: Backend) -> Node {
        let node = Node::worker().calico(backend);
        let proxy = Node::worker().kube_proxy(backend);
        let rules = |node: &Node| match backend {
            Backend::Nftables => node.look().now.nftables.clone(),
            Backend::Legacy => node.look().now.legacy.clone(),
        };
        let Seen::Yes(proxy) = rules(&proxy) else { panic!("seen") };
        proxy.tables.into_iter().fold(node, |node, table| {
            node.edit_chains(backend, &table.name, |chains| {
                for chain in table.chains {
                    match chains.iter_mut().find(|it| it.name == chain.name) {
                        Some(known) => {
                            known.jumps.extend(chain.jumps);
                            let rules = chain.rules.into_iter().flatten();
                            known.rules.get_or_insert_default().extend(rules);
                        }
                        None => chains.push(chain),
                    }
                }
            })
        })
    }

    /// As `iptables -F` and `-X` leave a table.
    fn flush(node: Node, backend: Backend, table: &str) -> Node {
        node.edit_chains(backend, table, |chains| {
            chains.retain(|chain| chain.base.is_some());
            for chain in chains {
                (chain.jumps, chain.rules) = (vec![], Some(vec![]));
            }
        })
    }

    fn only(node: &Node) -> Finding {
        let Outcome::Findings(mut findings) = run(&node.look()) else {
            panic!("a finding, not {:?}", run(&node.look()))
        };
        assert_eq!(findings.len(), 1, "{findings:?}");
        findings.remove(0)
    }

    #[test]
    fn what_both_owners_had_in_a_table_is_gone_together() {
        for backend in [Backend::Nftables, Backend::Legacy] {
            assert_eq!(run(&both(backend).look()), Outcome::Healthy);
            let found = only(&flush(both(backend), backend, "nat"));
            assert_eq!((found.subject, found.severity), (format!("{backend} IPv4"), Some(Severity::Critical)));
            let expected = format!(
                "Table nat of IPv4 ({backend}) was flushed: what kube-proxy and Calico had in it is gone together"
            );
            assert_eq!(found.detail, expected);
            assert!(found.next_step.is_some_and(|step| step.starts_with("restart kube-proxy")));
        }
        let backend = Backend::Nftables;
        let all = ["filter", "mangle", "nat", "raw"];
        let all = all.into_iter().fold(both(backend), |node, table| flush(node, backend, table));
        let all = all.remember(|before| {
            before.calico.insert((backend, Family::V4));
            before.kube_proxy.insert((backend, Family::V4));
        });
        assert!(only(&all).detail.starts_with("Tables filter, mangle, nat, raw of IPv4 (nf_tables) were flushed"));
    }

    #[test]
    fn a_flush_that_left_the_empty_chains_and_one_after_which_a_canary_came_back() {
        let backend = Backend::Nftables;
        let emptied = both(backend).edit_chains(backend, "nat", |chains| {
            for chain in chains.iter_mut().filter(|chain| chain.base.is_some()) {
                (chain.jumps, chain.rules) = (vec![], Some(vec![]));
            }
        });
        assert!(only(&emptied).detail.starts_with("Table nat of IPv4"));
        let canary = flush(both(backend), backend, "nat").rules(backend, ("nat", "KUBE-PROXY-CANARY"), None, vec![]);
        assert_eq!(only(&canary).severity, Some(Severity::Critical));
    }

    #[test]
    fn it_counts_with_the_first_of_what_it_causes() {
        let backend = Backend::Nftables;
        let flushed = || flush(both(backend), backend, "nat").edit(|now| now.health.felix = testing::answers(200));
        let proxy = &kube_proxy_chains_missing::CHECK;
        assert_eq!(only(&flushed()).owner_repairs_within, Some(proxy.raise_after), "Felix repairs its part later");
        let dead = flushed().edit(|now| now.health.felix = testing::timed_out("Felix health port"));
        assert_eq!(only(&dead).owner_repairs_within, Some(calico_chains_missing::CHECK.raise_after));
    }

    #[test]
    fn trap_a_table_that_only_one_owner_uses() {
        let backend = Backend::Nftables;
        for table in ["raw", "mangle"] {
            assert_eq!(run(&flush(both(backend), backend, table).look()), Outcome::Healthy, "{table}");
        }
        let alone = flush(Node::worker().kube_proxy(backend), backend, "nat");
        assert!(matches!(run(&alone.look()), Outcome::NotApplicable(_)));
        for start in ["KUBE-", "cali-"] {
            assert_eq!(run(&without(both(backend), start).look()), Outcome::Healthy, "without {start}");
        }
    }

    #[test]
    fn trap_an_owner_that_never_had_chains() {
        let backend = Backend::Nftables;
        // kube-proxy is there, and has not written anything yet.
        let joins = flush(Node::worker().calico(backend), backend, "nat");
        assert_eq!(run(&joins.look()), Outcome::Healthy);
    }

    #[test]
    fn trap_what_is_known_to_have_gone_at_two_times() {
        let backend = Backend::Nftables;
        let gone = |generations: [u32; 2]| {
            flush(both(backend), backend, "nat").edit(|now| {
                let removal = |(chain, generation): (&str, u32)| crate::facts::Removal {
                    at: now.taken_at,
                    generation,
                    commits: 1,
                    by: vec![crate::facts::Commit {
                        at: now.taken_at,
                        generation,
                        pid: Some(7),
                        program: Some("nft".into()),
                    }],
                    gone: vec![crate::facts::Piece {
                        family: Family::V4,
                        table: "nat".into(),
                        chain: chain.into(),
                        target: None,
                    }],
                };
                let removals = ["KUBE-SERVICES", "cali-PREROUTING"].into_iter().zip(generations).map(removal);
                now.packet_filter_changes.removals = removals.collect();
            })
        };
        assert!(
            only(&gone([7, 7])).detail.contains("; removed at ")
                && only(&gone([7, 7])).detail.contains("by nft (pid 7)")
        );
        assert_eq!(run(&gone([7, 9]).look()), Outcome::Healthy);
    }

    #[test]
    fn the_whole_rule_set_with_tables_of_their_own() {
        let node = Node::worker().kube_proxy_native().cni_plugin("calico");
        let node = node.rules(Backend::Nftables, ("calico", "filter-cali-FORWARD"), None, vec![]);
        let now = node.look().now.clone();
        let node = node.remember(|before| before.update(&now));
        let node = node.edit(|now| now.nftables = testing::no_tables(Backend::Nftables));
        let Outcome::Findings(found) = run(&node.look()) else { panic!("{:?}", run(&node.look())) };
        assert!(found[0].detail.starts_with("Tables "), "{found:?}");
    }

    #[test]
    fn healthy_clears_and_not_applicable() {
        assert_eq!(run(&healthy().look()), Outcome::Healthy);
        assert!(matches!(run(&Node::worker().look()), Outcome::NotApplicable(_)));
    }

    #[test]
    fn unknown_when_the_rules_cannot_be_read() {
        let node = healthy().edit(|now| now.nftables = testing::denied("nf_tables"));
        assert!(matches!(run(&node.look()), Outcome::Unknown(_)));
    }
}
