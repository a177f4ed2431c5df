//! kube-proxy's chains are not there.
//!
//! *Looks at* the chains that every kube-proxy makes, in the backend where it has most; each family that it programs.
//! *Traps*: a kube-proxy that has just started has not synced yet; leftovers in the other backend after a switch; a node
//! without kube-proxy (Cilium, Calico eBPF) is healthy (catalogue R102).

use std::time::Duration;

use jiff::SignedDuration;

use super::super::{Area, Check, Finding, Look, Outcome, Severity, chains};
use crate::facts::Program;

pub(super) const CHECK: Check = Check {
    code: "KubeProxyChainsMissing",
    area: Area::PacketFilter,
    severity: Severity::Critical,
    why: "Services are dead on this node: no ClusterIP or NodePort is translated",
    next_step: "restart kube-proxy on this node (delete its pod); if they do not come back in 10 s, read its log for iptables-restore errors",
    // A kube-proxy that has just started, or is being started, makes them itself.
    raise_after: Duration::from_secs(10),
    clear_after: Duration::from_secs(2),
    run,
};

/// Chains that a settled kube-proxy had and has no more stay away: it looks at them once an hour (recorded: incident 05 E).
const NOBODY_REPAIRS: Duration = Duration::from_millis(500);
/// A kube-proxy that has run for this long has synced, also on a busy node.
const SETTLED: SignedDuration = SignedDuration::from_secs(60);

fn run(look: &Look<'_>) -> Outcome {
    let Some(mode) = look.expected.kube_proxy else {
        return Outcome::NotApplicable("no kube-proxy on this node".into());
    };
    let gaps = match chains::gaps(look, chains::kube_proxy(mode), &look.before.kube_proxy) {
        Ok(gaps) => gaps,
        Err(error) => return Outcome::unknown(error),
    };
    let missing = gaps.iter().filter(|gaps| !gaps.missing.is_empty());
    let settled = look
        .now
        .processes
        .get()
        .and_then(|processes| processes.of(Program::KubeProxy))
        .is_some_and(|process| look.now.taken_at.duration_since(process.started_at) > SETTLED);
    Outcome::from_findings(
        missing
            .map(|gaps| {
                let (what, blame) = (gaps.missing.join(", "), gaps.blame(look, &gaps.missing));
                let detail = format!("kube-proxy's chains are missing ({}): {what}{blame}", gaps.place());
                let finding = Finding::new(gaps.family.to_string(), detail);
                let had = look.before.kube_proxy.contains(&(gaps.backend, gaps.family));
                let alone = settled && had;
                let finding = if alone { finding.repaired_within(NOBODY_REPAIRS) } else { finding };
                chains::awaited_from_the_start(look, finding, gaps, &[])
            })
            .collect(),
    )
}

#[cfg(test)]
mod tests {
    use super::super::testing::{self, Node};
    use super::*;
    use crate::facts::{Address, Backend, ClusterService, ClusterServicePort, Family, Seen};

    #[test]
    fn one_chain_gone_in_either_backend() {
        for backend in [Backend::Nftables, Backend::Legacy] {
            let node = Node::worker().kube_proxy(backend).edit_chains(backend, "nat", |chains| {
                chains.retain(|chain| chain.name != "KUBE-POSTROUTING");
            });
            let details = testing::details(&run(&node.look()));
            assert!(details[0].contains("nat KUBE-POSTROUTING"), "{details:?}");
            assert!(details[0].contains(&backend.to_string()), "{details:?}");
        }
    }

    #[test]
    fn a_family_that_services_have_and_that_nobody_serves() {
        let node = |address: &str| {
            let address: std::net::IpAddr = address.parse().expect("an address");
            Node::worker()
                .with_map(|map| {
                    let port = ClusterServicePort {
                        name: "http".into(),
                        protocol: "TCP".into(),
                        port: 80,
                        endpoints: vec![("fd00:10::1".parse().expect("an address"), 8080)],
                    };
                    let cluster_ips = vec!["fd00:20::1".parse().expect("an address")];
                    let (namespace, name) = ("default".into(), "web".into());
                    map.services = vec![ClusterService { namespace, name, cluster_ips, ports: vec![port] }];
                })
                .routing(|routing| routing.addresses.push(Address { link: 2, address, prefix: 64, global: true }))
        };
        let outcome = run(&node("2001:db8::5").look());
        assert_eq!(testing::subjects(&outcome), ["IPv6"]);
        assert!(testing::details(&outcome)[0].contains("nat KUBE-SERVICES"));
        assert_eq!(run(&node("10.0.0.99").look()), Outcome::Healthy, "a node that does not speak it");
    }

    #[test]
    fn a_flushed_table_is_remembered() {
        let node = Node::worker().edit(|now| now.nftables = testing::no_tables(Backend::Nftables));
        let node = node.remember(|before| _ = before.kube_proxy.insert((Backend::Nftables, Family::V6)));
        assert_eq!(testing::subjects(&run(&node.look())), ["IPv4", "IPv6"]);
    }

    #[test]
    fn healthy_and_clears_in_every_mode() {
        for backend in [Backend::Nftables, Backend::Legacy] {
            assert_eq!(run(&Node::worker().kube_proxy(backend).look()), Outcome::Healthy, "{backend}");
        }
        assert_eq!(run(&Node::worker().kube_proxy_native().look()), Outcome::Healthy);
    }

    #[test]
    fn nobody_is_waited_for_once_kube_proxy_has_settled() {
        let flushed = |started_ago| {
            Node::worker()
                .kube_proxy(Backend::Nftables)
                .remember(|before| _ = before.kube_proxy.insert((Backend::Nftables, Family::V4)))
                .edit_chains(Backend::Nftables, "nat", |chains| chains.retain(|chain| chain.base.is_some()))
                .started_ago(Program::KubeProxy, started_ago)
        };
        for (started_ago, hold_down) in [(600, Some(NOBODY_REPAIRS)), (20, None)] {
            let node = flushed(started_ago);
            let Outcome::Findings(findings) = run(&node.look()) else { panic!("a finding") };
            assert_eq!(findings[0].owner_repairs_within, hold_down, "started {started_ago} s ago");
        }
    }

    #[test]
    fn trap_the_first_start_is_not_known_at_once() {
        let begins = || {
            let node = Node::worker().kube_proxy(Backend::Nftables).without(Program::KubeProxy);
            node.edit_chains(Backend::Nftables, "nat", |chains| {
                chains.retain(|chain| chain.name != "KUBE-MARK-MASQ");
                for chain in chains {
                    chain.jumps.clear();
                }
            })
        };
        let waits = |node: Node| {
            let Outcome::Findings(findings) = run(&node.look()) else { panic!("a finding") };
            findings[0].owner_repairs_within
        };
        assert_eq!(waits(begins()), Some(Duration::from_secs(60)));
        let jump = (Backend::Nftables, Family::V4, "nat OUTPUT -> KUBE-SERVICES".to_owned());
        assert_eq!(waits(begins().remember(|before| _ = before.kube_proxy_jumps.insert(jump))), None, "it had started");
        assert_eq!(waits(begins().remember(|before| _ = before.programs.insert(Program::KubeProxy))), None, "it ran");
    }

    #[test]
    fn trap_leftovers_in_the_other_backend() {
        let node = Node::worker().kube_proxy(Backend::Nftables).and_kube_proxy(Backend::Legacy);
        let node =
            node.edit_chains(Backend::Legacy, "nat", |chains| chains.retain(|chain| chain.name == "KUBE-MARK-MASQ"));
        assert_eq!(run(&node.look()), Outcome::Healthy);
    }

    #[test]
    fn trap_the_kubelets_own_chains_are_not_kube_proxys() {
        let node = Node::worker().without_kube_proxy().edit(|now| {
            now.nftables = testing::chains(Backend::Nftables, "mangle", &["KUBE-KUBELET-CANARY", "KUBE-IPTABLES-HINT"]);
        });
        assert!(matches!(run(&node.look()), Outcome::NotApplicable(_)));
    }

    #[test]
    fn unknown_when_the_rules_cannot_be_read() {
        let node = Node::worker().edit(|now| now.nftables = testing::denied("nf_tables"));
        assert!(matches!(run(&node.look()), Outcome::Unknown(_)));
        let node = Node::worker().kube_proxy(Backend::Nftables).edit(|now| now.legacy = testing::denied("ip_tables"));
        assert_eq!(run(&node.look()), Outcome::Healthy, "whole in the backend that can be read");
        let node = node.edit(|now| now.nftables = Seen::Absent);
        assert!(matches!(run(&node.look()), Outcome::Unknown(_)));
    }
}
