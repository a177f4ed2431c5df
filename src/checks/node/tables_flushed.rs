//! Somebody has flushed tables: the chains by which kube-proxy and the kubelet notice that are gone.
//!
//! *Looks at* the canary chains, `KUBE-PROXY-CANARY` and `KUBE-KUBELET-CANARY`, that earlier looks of this boot saw. They hold
//! nothing and nothing needs them, so this is only worth knowing: it says when it happened, and what else is missed is told by
//! other codes. *Traps*: the native nftables mode has none; kube-proxy that ended may have cleaned up after itself, and one
//! that now uses another mode or backend has (catalogue R108).

use std::collections::BTreeMap;
use std::time::Duration;

use super::super::{Area, Check, Finding, Look, Outcome, Severity, findings_or_unknown, first_error};
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

fn run(look: &Look<'_>) -> Outcome {
    if look.before.canaries.is_empty() {
        return Outcome::NotApplicable("no canary chain was seen since this boot".into());
    }
    let native = look.expected.kube_proxy == Some(ProxyMode::Nftables);
    let mut gone: BTreeMap<(Backend, Family, &str), Vec<&str>> = BTreeMap::new();
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
            gone.entry((*backend, *family, table)).or_default().push(chain);
        }
    }
    let findings = gone.into_iter().map(|((backend, family, table), chains)| {
        let left = ruleset(look, backend).and_then(|it| it.table(family, table));
        let left = match left.map(|table| table.chains.iter().filter(|chain| chain.base.is_none()).count()) {
            None => "the table itself is gone",
            Some(0) => "it holds none of the chains of Kubernetes and Calico any more",
            Some(_) => "it holds other chains",
        };
        let pieces: Vec<String> = chains.iter().map(|chain| format!("{table} {chain}")).collect();
        let blame = super::super::chains::blame(look, backend, family, &pieces);
        let detail = format!(
            "Table {table} of {family} ({backend}) was flushed: {} went missing, and {left}{blame}",
            chains.join(" and ")
        );
        Finding::new(format!("{backend} {family} {table}"), detail)
    });
    findings_or_unknown(findings.collect(), first_error([look.now.nftables.error(), look.now.legacy.error()]))
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
        assert_eq!(testing::subjects(&run(&node.look())), ["nf_tables IPv4 nat"]);
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
