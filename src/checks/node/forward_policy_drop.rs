//! A base chain drops forwarded packets by its policy, and no rule of it accepts those of pods.
//!
//! *Looks at* every base chain of the hook `forward`, in both backends and in tables of the family `inet`: a packet has to pass
//! them all, and that one accepts does not help against another that drops (recorded: incident 17). *Right* is a rule that
//! accepts before the policy is reached. *Traps*: the policy is fine where Calico, another owner of policies, or the CNI plugin
//! accepts first; Docker sets this policy and accepts only its own bridge; kube-proxy's `KUBE-FORWARD` accepts only what it has
//! marked and what belongs to a connection; a machine that forwards for no pods may drop (catalogue R105).

use std::collections::BTreeMap;
use std::time::Duration;

use super::super::passage::{self, Fate, Walk};
use super::super::{Area, Check, Finding, Look, Outcome, Severity, findings_or_unknown};
use crate::facts::Hook;

pub(super) const CHECK: Check = Check {
    code: "ForwardPolicyDrop",
    area: Area::PacketFilter,
    severity: Severity::Critical,
    why: "a forwarded packet has to pass every backend and table, so pods are cut off from other nodes though the rules of Kubernetes look perfect",
    next_step: "set that chain's policy to accept (`iptables-legacy -P FORWARD ACCEPT`, `iptables -P FORWARD ACCEPT`, or with nft), then find who sets it (Docker, a firewall service)",
    raise_after: Duration::from_secs(2),
    clear_after: Duration::from_secs(2),
    run,
};

fn run(look: &Look<'_>) -> Outcome {
    let packets = passage::packets(look);
    if packets.is_empty() {
        return Outcome::NotApplicable("no pod network here".into());
    }
    let mut findings = BTreeMap::new();
    for packet in &packets {
        for (backend, table, name, chain) in passage::base_chains(look, packet.family(), Hook::Forward) {
            if !passage::drops_by_policy(chain) || Walk::through(table, chain, packet).1 != Fate::Policy {
                continue;
            }
            let subject = format!("{backend} {name} {}", chain.name);
            let detail = format!(
                "The policy of {} in table {name} ({backend}) is DROP, and no rule before it accepts packets of pods",
                chain.name
            );
            findings.entry(subject.clone()).or_insert_with(|| Finding::new(subject, detail));
        }
    }
    findings_or_unknown(findings.into_values().collect(), passage::unread(look))
}

#[cfg(test)]
mod tests {
    use super::super::testing::{self, Node};
    use super::*;
    use crate::facts::{Backend, Policy};

    /// A worker whose `FORWARD` has this policy and these rules.
    fn with(node: Node, backend: Backend, table: &str, policy: Policy, rules: &[&str]) -> Node {
        let rules = rules.iter().map(|text| testing::rule(text)).collect();
        node.rules(backend, (table, "FORWARD"), Some((Hook::Forward, policy)), rules)
    }

    fn dropping(rules: &[&str]) -> Node {
        with(Node::worker(), Backend::Nftables, "filter", Policy::Drop, rules)
    }

    /// What kube-proxy's chain holds.
    fn kube_forward(node: Node) -> Node {
        let rules = [
            "-m conntrack --ctstate INVALID -j DROP",
            "-m mark --mark 0x4000/0x4000 -j ACCEPT",
            "-m conntrack --ctstate RELATED,ESTABLISHED -j ACCEPT",
        ];
        node.rules(Backend::Nftables, ("filter", "KUBE-FORWARD"), None, rules.map(testing::rule).to_vec())
    }

    #[test]
    fn a_policy_that_nobody_is_ahead_of() {
        let node = dropping(&["-j LOG", "-m conntrack --ctstate RELATED,ESTABLISHED -j ACCEPT"]);
        assert_eq!(testing::subjects(&run(&node.look())), ["nf_tables IPv4 filter FORWARD"]);
        let icmp = dropping(&["-p icmp -j ACCEPT"]);
        assert!(matches!(run(&icmp.look()), Outcome::Findings(_)), "a ping is no connection");
        let node = kube_forward(dropping(&["-j KUBE-FORWARD"]));
        assert!(matches!(run(&node.look()), Outcome::Findings(_)), "kube-proxy accepts no new connection between pods");
    }

    #[test]
    fn the_other_backend_and_inet_tables_are_passed_too() {
        let healthy = || with(Node::worker(), Backend::Nftables, "filter", Policy::Accept, &["-j ACCEPT"]);
        let legacy = with(healthy(), Backend::Legacy, "filter", Policy::Drop, &[]);
        assert_eq!(testing::subjects(&run(&legacy.look())), ["legacy iptables IPv4 filter FORWARD"]);
        let inet = with(healthy(), Backend::Nftables, "inet filter", Policy::Drop, &[]);
        assert_eq!(testing::subjects(&run(&inet.look())), ["nf_tables inet filter FORWARD"]);
    }

    #[test]
    fn healthy_and_clears() {
        assert_eq!(run(&Node::worker().look()), Outcome::Healthy);
        assert!(matches!(run(&dropping(&[]).look()), Outcome::Findings(_)));
        let accepts = with(dropping(&[]), Backend::Nftables, "filter", Policy::Accept, &[]);
        assert_eq!(run(&accepts.look()), Outcome::Healthy, "the policy was set back");
        let rules = ["-i cni+ -j ACCEPT", "-o cni+ -j ACCEPT"];
        let ahead = with(dropping(&[]), Backend::Nftables, "filter", Policy::Drop, &rules);
        assert_eq!(run(&ahead.look()), Outcome::Healthy, "somebody accepts before it");
    }

    #[test]
    fn trap_whoever_accepts_first() {
        for rules in [
            &["-j cali-FORWARD", "-j KUBE-FORWARD"][..],
            &["-j KUBE-FORWARD", "-s 10.244.0.0/16 -j ACCEPT", "-d 10.244.0.0/16 -j ACCEPT"],
            &["-i cni+ -j ACCEPT", "-o cni+ -j ACCEPT"],
            &["-j CNI-FORWARD"],
            &["-j CILIUM_FORWARD"],
            &["-j ACCEPT"],
            // Calico's acceptance is a rule at the end.
            &[
                "-j cali-FORWARD",
                "-o docker0 -j ACCEPT",
                "-m comment --comment cali:x -m mark --mark 0x10000/0x10000 -j ACCEPT",
            ],
        ] {
            assert_eq!(run(&kube_forward(dropping(rules)).look()), Outcome::Healthy, "{rules:?}");
        }
        let policy = |policy| with(Node::worker(), Backend::Nftables, "filter", policy, &[]);
        assert_eq!(run(&policy(Policy::Accept).look()), Outcome::Healthy);
    }

    #[test]
    fn trap_docker_accepts_only_its_own_bridge() {
        let docker =
            ["-o docker0 -m conntrack --ctstate RELATED,ESTABLISHED -j ACCEPT", "-i docker0 ! -o docker0 -j ACCEPT"];
        assert!(matches!(run(&dropping(&docker).look()), Outcome::Findings(_)));
    }

    #[test]
    fn one_direction_is_not_enough() {
        let node = dropping(&["-s 10.244.0.0/16 -o eth0 -j ACCEPT"]);
        assert!(matches!(run(&node.look()), Outcome::Findings(_)), "nobody reaches the pods");
    }

    #[test]
    fn trap_what_is_not_understood_decides_nothing() {
        for rule in ["-m set --match-set pods src -j ACCEPT", "-j UNREAD", "-j NFQUEUE", "-p tcp -j ACCEPT"] {
            assert_eq!(run(&dropping(&[rule]).look()), Outcome::Healthy, "{rule}");
        }
    }

    #[test]
    fn trap_no_pods_no_fault() {
        let node = Node::plain_machine().routing(|routing| routing.pods.clear());
        let node = with(node, Backend::Nftables, "filter", Policy::Drop, &[]);
        assert!(matches!(run(&node.look()), Outcome::NotApplicable(_)));
    }

    #[test]
    fn unknown_when_a_backend_cannot_be_read() {
        let node = Node::worker().edit(|now| now.legacy = testing::denied("ip_tables"));
        assert!(matches!(run(&node.look()), Outcome::Unknown(_)));
        let node = with(node, Backend::Nftables, "filter", Policy::Drop, &[]);
        assert!(matches!(run(&node.look()), Outcome::Findings(_)), "what was read is enough");
    }
}
