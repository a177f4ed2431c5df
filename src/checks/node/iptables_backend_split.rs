//! Components of Kubernetes have rules in force in both backends of iptables.
//!
//! *Looks at* what the base chains of each backend jump to. *Right* is that kube-proxy and Calico are in the same one, each
//! once. *Traps*: Docker's rules in the other backend are its business; tables and chains that are left over there and that
//! nothing jumps to do nothing, as on healthy nodes with empty legacy tables (recorded: incident 01); the native modes have
//! tables of their own (catalogue R104, recorded: incident 17).

use std::time::Duration;

use super::super::{Area, Check, Finding, Look, Outcome, Severity, findings_or_unknown, first_error};
use crate::facts::{Backend, Family, Ruleset, is_calico_chain, is_kube_proxy_chain};

pub(super) const CHECK: Check = Check {
    code: "IptablesBackendSplit",
    area: Area::PacketFilter,
    severity: Severity::Warning,
    why: "every packet passes both backends, so what one accepts or translates the other may drop or translate anew, and each component sees only its own",
    next_step: "let every component use the same backend (kube-proxy's image, Felix's `iptablesBackend`, the host's `update-alternatives --display iptables`), then flush the other one's Kubernetes chains or reload the node",
    raise_after: Duration::from_secs(40),
    clear_after: Duration::from_secs(2),
    run,
};

fn run(look: &Look<'_>) -> Outcome {
    if look.expected.kube_proxy.is_none() && look.expected.calico.is_none() {
        return Outcome::NotApplicable("neither kube-proxy nor Calico on this node".into());
    }
    let (nftables, legacy) = (look.now.nftables.get(), look.now.legacy.get());
    let mut findings = Vec::new();
    if let (Some(nftables), Some(legacy)) = (nftables, legacy) {
        for family in [Family::V4, Family::V6] {
            let proxy = [nftables, legacy].map(|ruleset| in_force(ruleset, family, is_kube_proxy_chain));
            let calico = [nftables, legacy].map(|ruleset| in_force(ruleset, family, is_calico_chain));
            let twice = |[one, other]: [bool; 2]| one && other;
            let what = match () {
                () if twice(proxy) && twice(calico) => {
                    "kube-proxy's and Calico's chains are in force in both".to_owned()
                }
                () if twice(proxy) => "kube-proxy's chains are in force in both".to_owned(),
                () if twice(calico) => "Calico's chains are in force in both".to_owned(),
                () if proxy != calico && proxy.contains(&true) && calico.contains(&true) => {
                    let place = |there: [bool; 2]| if there[0] { Backend::Nftables } else { Backend::Legacy };
                    format!("kube-proxy is in {}, Calico in {}", place(proxy), place(calico))
                }
                () => continue,
            };
            let detail =
                format!("Kubernetes uses both backends of iptables for {family} (nf_tables and legacy): {what}");
            findings.push(Finding::new(family.to_string(), detail));
        }
    }
    findings_or_unknown(findings, first_error([look.now.nftables.error(), look.now.legacy.error()]))
}

/// Whether a base chain of iptables' tables leads to such a chain.
fn in_force(ruleset: &Ruleset, family: Family, owned: fn(&str) -> bool) -> bool {
    let tables = ruleset.tables.iter().filter(|table| table.family == family);
    let mut jumps =
        tables.flat_map(|table| &table.chains).filter(|it| it.base.is_some()).flat_map(|chain| &chain.jumps);
    jumps.any(|jump| owned(&jump.target))
}

#[cfg(test)]
mod tests {
    use super::super::testing::{self, Node};
    use super::*;
    use crate::facts::Seen;

    #[test]
    fn both_twice_or_one_here_and_one_there() {
        let twice = Node::worker().kube_proxy(Backend::Nftables).and_kube_proxy(Backend::Legacy);
        let details = testing::details(&run(&twice.look()));
        assert!(details[0].contains("kube-proxy's chains are in force in both"), "{details:?}");
        let apart = Node::worker().calico(Backend::Nftables).and_kube_proxy(Backend::Legacy);
        let details = testing::details(&run(&apart.look()));
        assert!(details[0].ends_with("kube-proxy is in legacy iptables, Calico in nf_tables"), "{details:?}");
        assert_eq!(testing::subjects(&run(&apart.look())), ["IPv4"]);
    }

    #[test]
    fn trap_leftovers_that_nothing_jumps_to() {
        let node = Node::worker().kube_proxy(Backend::Nftables).and_kube_proxy(Backend::Legacy);
        let node = ["nat", "filter"].into_iter().fold(node, |node, table| {
            node.edit_chains(Backend::Legacy, table, |chains| chains.iter_mut().for_each(|chain| chain.jumps.clear()))
        });
        assert_eq!(run(&node.look()), Outcome::Healthy);
        let empty = Node::worker().edit(|now| now.legacy = testing::no_tables(Backend::Legacy));
        assert_eq!(run(&empty.look()), Outcome::Healthy);
    }

    #[test]
    fn trap_dockers_and_the_kubelets_rules_are_no_part() {
        let node = Node::worker().edit(|now| {
            let docker =
                testing::chains(Backend::Legacy, "filter", &["DOCKER", "KUBE-FIREWALL", "KUBE-KUBELET-CANARY"]);
            now.legacy = docker;
        });
        assert_eq!(run(&node.look()), Outcome::Healthy);
    }

    #[test]
    fn healthy_in_one_backend_clears_and_not_applicable() {
        let twice = Node::worker().kube_proxy(Backend::Nftables).and_kube_proxy(Backend::Legacy);
        let flushed = twice.edit(|now| now.legacy = testing::no_tables(Backend::Legacy));
        assert_eq!(run(&flushed.look()), Outcome::Healthy, "the other backend was emptied");
        for backend in [Backend::Nftables, Backend::Legacy] {
            assert_eq!(run(&Node::worker().kube_proxy(backend).look()), Outcome::Healthy);
        }
        let node = Node::worker().without_kube_proxy();
        assert!(matches!(run(&node.look()), Outcome::NotApplicable(_)));
    }

    #[test]
    fn unknown_when_a_backend_cannot_be_read() {
        let node = Node::worker().edit(|now| now.legacy = testing::denied("ip_tables"));
        assert!(matches!(run(&node.look()), Outcome::Unknown(_)));
        assert_eq!(run(&Node::worker().edit(|now| now.legacy = Seen::Absent).look()), Outcome::Healthy);
    }
}
