//! Calico's chains are not there: network policies are not enforced, and no connectivity test can show it.
//!
//! *Looks at* the chains that Felix always programs. *Traps*: with eBPF policies are programs, and only the chain that
//! masquerades pods is missed, where it was; a living Felix writes them again with its
//! periodic refresh, so it is waited for; without Felix nobody will (recorded: incident 04); on a worker that joins, the CNI
//! configuration is there before Felix is, whose image is still to be pulled (catalogue R100, R101).

use std::time::Duration;

use super::super::{Area, Check, Finding, Look, Outcome, Severity, chains};
use crate::facts::Program;

pub(super) const CHECK: Check = Check {
    code: "CalicoChainsMissing",
    area: Area::PacketFilter,
    severity: Severity::Critical,
    why: "policies are NOT enforced on this node (with eBPF: pods are not masqueraded), and traffic goes on as if nothing had happened",
    next_step: "check that Felix is alive on this node (`curl -s localhost:9099/liveness`) and delete the calico-node pod; then find who flushed the tables",
    raise_after: Duration::from_secs(1),
    clear_after: Duration::from_secs(2),
    run,
};

/// `IptablesRefreshInterval` of Felix is 90 s up to 3.21 and 180 s today, plus a margin.
const FELIX_REFRESH: Duration = Duration::from_secs(200);
/// On a worker that has just joined Felix is still to start; until then there is nothing to miss.
pub(super) const JOINING: Duration = Duration::from_secs(60);

fn run(look: &Look<'_>) -> Outcome {
    let Some(dataplane) = look.expected.calico else {
        return Outcome::NotApplicable("no Calico on this node".into());
    };
    let gaps = match chains::gaps(look, chains::calico(look, dataplane), &look.before.calico) {
        Ok(gaps) => gaps,
        Err(error) => return Outcome::unknown(error),
    };
    let felix = look.now.health.felix.get().is_some_and(|answer| answer.status < 300);
    let missing = gaps.iter().filter(|gaps| !gaps.missing.is_empty());
    let findings = missing.map(|gaps| {
        let what = gaps.missing.join(", ") + &gaps.blame(look, &gaps.missing);
        let result = chains::without_calico(dataplane);
        let detail = format!("Calico's chains are missing ({}), {result}: {what}", gaps.place());
        let finding = Finding::new(gaps.family.to_string(), detail);
        match () {
            () if felix => finding.repaired_within(FELIX_REFRESH),
            () if joining(look) => finding.repaired_within(JOINING),
            () => finding,
        }
    });
    Outcome::from_findings(findings.collect())
}

/// Whether the kubelet has only just started, and Felix too, or not yet at all in this boot.
fn joining(look: &Look<'_>) -> bool {
    felix_starts(look) && age(look, Program::Kubelet).is_some_and(|age| age < JOINING * 2)
}

/// Whether Felix has only just started, or was not seen yet in this boot: the processes are looked for more rarely than its
/// chains are told.
pub(super) fn felix_starts(look: &Look<'_>) -> bool {
    age(look, Program::Felix).map_or(!look.before.programs.contains(&Program::Felix), |age| age < JOINING)
}

fn age(look: &Look<'_>, program: Program) -> Option<Duration> {
    let process = look.now.processes.get().and_then(|processes| processes.of(program));
    process.map(|process| look.now.taken_at.duration_since(process.started_at).unsigned_abs())
}

#[cfg(test)]
mod tests {
    use super::super::testing::{self, Node};
    use super::*;
    use crate::facts::Backend;

    fn broken(backend: Backend) -> Node {
        Node::worker().calico(backend).edit_chains(backend, "filter", |chains| {
            chains.retain(|chain| chain.name != "cali-FORWARD");
        })
    }

    #[test]
    fn fires_in_either_backend() {
        for backend in [Backend::Nftables, Backend::Legacy] {
            let details = testing::details(&run(&broken(backend).look()));
            assert!(details[0].contains("cali-FORWARD"), "{details:?}");
            assert!(details[0].contains("policies are NOT enforced"), "{details:?}");
        }
    }

    #[test]
    fn trap_a_living_felix_is_waited_for_and_a_hung_one_is_not() {
        let node = broken(Backend::Nftables).edit(|now| now.health.felix = testing::answers(200));
        let Outcome::Findings(findings) = run(&node.look()) else { panic!("a finding") };
        assert_eq!(findings[0].owner_repairs_within, Some(FELIX_REFRESH));
        let node = node.edit(|now| now.health.felix = testing::timed_out("Felix health port"));
        let Outcome::Findings(findings) = run(&node.look()) else { panic!("a finding") };
        assert_eq!(findings[0].owner_repairs_within, None);
    }

    #[test]
    fn trap_a_worker_that_joins_has_no_chains_yet() {
        let waits = |node: Node| {
            let Outcome::Findings(findings) = run(&node.look()) else { panic!("a finding") };
            findings[0].owner_repairs_within
        };
        assert_eq!(waits(broken(Backend::Nftables).kubelet_started_ago(30)), Some(JOINING));
        assert_eq!(waits(broken(Backend::Nftables).kubelet_started_ago(600)), None);
        let node = broken(Backend::Nftables).kubelet_started_ago(30);
        let node = node.remember(|before| _ = before.programs.insert(Program::Felix));
        assert_eq!(waits(node), None, "it had Felix: this kubelet was started again");
    }

    #[test]
    fn trap_with_ebpf_only_what_masquerades_is_missed() {
        let ebpf = |node: Node| node.routing(|routing| routing.links[0].name = "bpfin.cali".into());
        assert_eq!(run(&ebpf(broken(Backend::Nftables)).look()), Outcome::Healthy);
        let flushed = ebpf(Node::worker().calico(Backend::Nftables)).edit_chains(Backend::Nftables, "nat", |chains| {
            chains.retain(|chain| chain.base.is_some());
        });
        let details = testing::details(&run(&flushed.look()));
        assert!(details[0].contains("so pods are not masqueraded") && details[0].ends_with("nat cali-POSTROUTING"));
        let never = ebpf(Node::worker().cni_plugin("calico"));
        assert_eq!(run(&never.look()), Outcome::Healthy, "they never were here");
    }

    #[test]
    fn healthy_and_clears() {
        for backend in [Backend::Nftables, Backend::Legacy] {
            assert_eq!(run(&Node::worker().calico(backend).look()), Outcome::Healthy);
        }
        assert!(matches!(run(&Node::worker().look()), Outcome::NotApplicable(_)));
    }

    #[test]
    fn unknown_when_the_rules_cannot_be_read() {
        let node = Node::worker().calico(Backend::Legacy).edit(|now| now.legacy = testing::denied("ip_tables"));
        let node = node.remember(|before| _ = before.calico.insert((Backend::Legacy, crate::facts::Family::V4)));
        assert!(matches!(run(&node.look()), Outcome::Unknown(_)));
    }
}
