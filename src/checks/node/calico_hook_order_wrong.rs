//! A rule ahead of Calico's jump accepts packets of pods, so they never come to Calico's policies.
//!
//! *Looks at* the rules of `FORWARD` ahead of the jump to `cali-FORWARD`, in the backend and families in which that is. A rule
//! ahead that drops is another code, `ForeignDropRule`. *Traps*: kube-proxy and the kubelet put their rules in front too, and
//! Felix moves its own back with its next refresh, 180 s later at most; with `chainInsertMode: Append` Calico wants to be the
//! last, and then only a verdict ahead of it counts, not its place; what accepts only packets of known connections, or of
//! another bridge, takes nothing from Calico (catalogue R105).

use std::collections::BTreeMap;
use std::time::Duration;

use super::super::passage::{self, Walk};
use super::super::{Area, Check, Finding, Look, Outcome, Severity, findings_or_unknown};
use crate::facts::{CalicoDataplane, Chain, Hook};

pub(super) const CHECK: Check = Check {
    code: "CalicoHookOrderWrong",
    area: Area::PacketFilter,
    severity: Severity::Warning,
    why: "a packet that is accepted ahead of Calico passes no network policy",
    next_step: "take that rule out, or put it behind Calico's jump; where Calico is in front by configuration (`chainInsertMode: Insert`), check that Felix is alive (`curl -s localhost:9099/liveness`)",
    // Twice the refresh of Felix, `IptablesRefreshInterval`, and a margin.
    raise_after: Duration::from_secs(370),
    clear_after: Duration::from_secs(2),
    run,
};

/// As many rules as one sentence holds.
const NAMED: usize = 3;

fn run(look: &Look<'_>) -> Outcome {
    match look.expected.calico {
        None => return Outcome::NotApplicable("no Calico on this node".into()),
        Some(CalicoDataplane::Iptables) => {}
        Some(_) => return Outcome::NotApplicable("Calico has base chains of its own here".into()),
    }
    let mut findings = BTreeMap::new();
    for packet in &passage::packets(look) {
        for (backend, table, name, chain) in passage::base_chains(look, packet.family(), Hook::Forward) {
            let Some(jump) = chain.rules().iter().position(|rule| rule.target() == Some("cali-FORWARD")) else {
                continue;
            };
            let ahead = Chain {
                rules: Some(chain.rules()[..jump].to_vec()),
                cut: false,
                ..Chain::new(&chain.name, chain.base)
            };
            let (walk, _) = Walk::through(table, &ahead, packet);
            let accepts = walk.accepts.iter().filter(|(_, rule)| !rule.other_matches && rule.mark.is_none());
            let rules: Vec<String> =
                accepts.map(|(chain, rule)| format!("`{}` of {chain}", passage::describe(rule))).take(NAMED).collect();
            if !rules.is_empty() {
                let subject = format!("{backend} {name} {}", chain.name);
                let detail = format!(
                    "Ahead of Calico's jump in {} of table {name} ({backend}) packets of pods are accepted: {}",
                    chain.name,
                    rules.join(", ")
                );
                findings.entry(subject.clone()).or_insert_with(|| Finding::new(subject, detail));
            }
        }
    }
    findings_or_unknown(findings.into_values().collect(), passage::unread(look))
}

#[cfg(test)]
mod tests {
    use super::super::testing::{self, Node};
    use super::*;
    use crate::facts::{Backend, Policy};

    fn with(backend: Backend, rules: &[&str]) -> Node {
        let rules = rules.iter().map(|text| testing::rule(text)).collect();
        Node::worker().calico(backend).rules(
            backend,
            ("filter", "FORWARD"),
            Some((Hook::Forward, Policy::Accept)),
            rules,
        )
    }

    #[test]
    fn a_rule_ahead_that_accepts() {
        for backend in [Backend::Nftables, Backend::Legacy] {
            let node = with(backend, &["-s 10.244.0.0/16 -j ACCEPT", "-j cali-FORWARD"]);
            let details = testing::details(&run(&node.look()));
            assert!(details[0].contains("`-s 10.244.0.0/16 -j ACCEPT` of FORWARD"), "{details:?}");
            assert!(details[0].contains(&backend.to_string()), "{details:?}");
        }
    }

    #[test]
    fn trap_others_in_front_take_nothing_from_calico() {
        for rules in [
            &["-j cali-FORWARD", "-j ACCEPT"][..],
            &["-j KUBE-FORWARD", "-j KUBE-SERVICES", "-j cali-FORWARD"],
            &["-m conntrack --ctstate RELATED,ESTABLISHED -j ACCEPT", "-j cali-FORWARD"],
            &["-i docker0 -j ACCEPT", "-j LOG", "-j DOCKER-USER", "-j cali-FORWARD"],
            &["-j DROP", "-j cali-FORWARD"],
            &["-m set --match-set friends src -j ACCEPT", "-j cali-FORWARD"],
        ] {
            assert_eq!(run(&with(Backend::Nftables, rules).look()), Outcome::Healthy, "{rules:?}");
        }
    }

    #[test]
    fn trap_felix_moves_its_jump_back() {
        assert!(CHECK.raise_after > Duration::from_secs(2 * 180));
    }

    #[test]
    fn healthy_clears_unknown_and_not_applicable() {
        for backend in [Backend::Nftables, Backend::Legacy] {
            let moved = with(backend, &["-j cali-FORWARD", "-s 10.244.0.0/16 -j ACCEPT"]);
            assert_eq!(run(&moved.look()), Outcome::Healthy, "it is behind Calico's again");
        }
        assert_eq!(run(&Node::worker().calico(Backend::Legacy).look()), Outcome::Healthy);
        assert!(matches!(run(&Node::worker().look()), Outcome::NotApplicable(_)));
        let node = Node::worker().calico(Backend::Nftables).edit(|now| now.legacy = testing::denied("ip_tables"));
        assert!(matches!(run(&node.look()), Outcome::Unknown(_)));
        let ebpf =
            Node::worker().calico(Backend::Nftables).routing(|routing| routing.links[0].name = "bpfin.cali".into());
        assert!(matches!(run(&ebpf.look()), Outcome::NotApplicable(_)));
    }
}
