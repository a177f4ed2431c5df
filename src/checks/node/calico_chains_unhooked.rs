//! Calico's chains are there, but nothing jumps to them: network policies are not enforced, and no connectivity test can show it.
//!
//! *Looks at* the jumps from the base chains; with the eBPF dataplane, at the programs on links too. *Traps*: programs may be
//! attached in a way that nobody tells; a living Felix writes them again with its
//! periodic refresh, so it is waited for; without Felix nobody will (recorded: incident 04; catalogue R100, R101).

use std::time::Duration;

use super::super::{Area, Check, Finding, Look, Outcome, Severity, chains, programs};
use crate::facts::CalicoDataplane;

pub(super) const CHECK: Check = Check {
    code: "CalicoChainsUnhooked",
    area: Area::PacketFilter,
    severity: Severity::Critical,
    why: "policies are NOT enforced on this node (with eBPF: pods are not masqueraded), and traffic goes on as if nothing had happened",
    next_step: "check that Felix is alive on this node (`curl -s localhost:9099/liveness`) and delete the calico-node pod; then find who removed the jumps",
    raise_after: Duration::from_millis(500),
    clear_after: Duration::from_secs(2),
    run,
};

/// `IptablesRefreshInterval` of Felix is 90 s up to 3.21 and 180 s today, plus a margin.
const FELIX_REFRESH: Duration = Duration::from_secs(200);

fn run(look: &Look<'_>) -> Outcome {
    let Some(dataplane) = look.expected.calico else {
        return Outcome::NotApplicable("no Calico on this node".into());
    };
    let felix = look.now.health.felix.get().is_some_and(|answer| answer.status < 300);
    let ebpf = dataplane == CalicoDataplane::Ebpf;
    let programs = ebpf.then(|| programs::missing(look, felix.then_some(FELIX_REFRESH)));
    let gaps = match chains::gaps(look, chains::calico(look, dataplane), &look.before.calico) {
        Ok(gaps) => gaps,
        // Programs are seen without any of the backends.
        Err(error) => {
            return programs.filter(|it| matches!(it, Outcome::Findings(_))).unwrap_or(Outcome::unknown(error));
        }
    };
    let unhooked = gaps.iter().filter(|gaps| !gaps.unhooked.is_empty());
    let findings = unhooked.map(|gaps| {
        let what = gaps.unhooked.join(", ") + &gaps.blame(look, &gaps.unhooked);
        let result = chains::without_calico(dataplane);
        let detail = format!("Jumps to Calico's chains are gone ({}), {result}: {what}", gaps.place());
        let finding = Finding::new(gaps.family.to_string(), detail);
        if felix { finding.repaired_within(FELIX_REFRESH) } else { finding }
    });
    let mut findings: Vec<Finding> = findings.collect();
    match programs {
        Some(Outcome::Findings(more)) => findings.extend(more),
        Some(outcome) if findings.is_empty() => return outcome,
        _ => {}
    }
    Outcome::from_findings(findings)
}

#[cfg(test)]
mod tests {
    use super::super::testing::{self, Node};
    use super::*;
    use crate::facts::{Backend, Seen};

    fn broken(backend: Backend) -> Node {
        Node::worker().calico(backend).edit_chains(backend, "filter", |chains| {
            for chain in chains.iter_mut() {
                chain.jumps.retain(|jump| jump.target != "cali-FORWARD");
            }
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

    /// Programs on links, which the node had on all of them.
    fn ebpf(now: &[(&str, [bool; 2])]) -> Node {
        let programs = |list: &[(&str, [bool; 2])]| list.iter().map(|(link, it)| ((*link).to_owned(), *it)).collect();
        let node = broken(Backend::Nftables).routing(|routing| {
            let names = std::iter::once(&"bpfin.cali").chain(now.iter().map(|(name, _)| name));
            routing.links.extend((20..).zip(names).map(|(index, name)| testing::link(index, name, Some("veth"))));
            routing.programs = Seen::Yes(programs(now));
        });
        node.remember(|before| before.attached = programs(&now.iter().map(|it| (it.0, [true; 2])).collect::<Vec<_>>()))
    }

    #[test]
    fn programs_of_ebpf_are_gone_from_links() {
        let node = ebpf(&[("cali1", [true, true]), ("cali2", [true, false]), ("eth0", [false, false])]);
        let details = testing::details(&run(&node.look()));
        assert_eq!(details.len(), 1);
        assert!(details[0].ends_with("policies are NOT enforced: cali2 (out), eth0 (in and out)"), "{details:?}");
        let all = ebpf(&[("cali1", [false; 2]), ("cali2", [false; 2])]);
        assert_eq!(testing::subjects(&run(&all.look())), ["eBPF"]);
        let whole = ebpf(&[("cali1", [true; 2]), ("eth0", [true; 2])]);
        assert_eq!(run(&whole.look()), Outcome::Healthy);
        let denied = |node: Node| node.edit(|now| now.nftables = testing::denied("nf_tables"));
        assert_eq!(testing::subjects(&run(&denied(all).look())), ["eBPF"]);
        assert!(matches!(run(&denied(whole).look()), Outcome::Unknown(_)));
    }

    #[test]
    fn with_ebpf_the_jump_to_what_masquerades() {
        let node = ebpf(&[("cali1", [true; 2])]).edit_chains(Backend::Nftables, "nat", |chains| {
            for chain in chains {
                chain.jumps.clear();
            }
        });
        let details = testing::details(&run(&node.look()));
        assert_eq!(details.len(), 1);
        assert!(details[0].ends_with("are not checked: nat POSTROUTING -> cali-POSTROUTING"), "{details:?}");
    }

    #[test]
    fn a_pods_link_without_programs_where_others_have_them() {
        let links = [("cali1", [true; 2]), ("cali2", [true; 2]), ("cali3", [false; 2]), ("eth1", [false; 2])];
        let node = ebpf(&links).remember(|before| before.attached.clear());
        assert!(testing::details(&run(&node.look()))[0].ends_with("NOT enforced: cali3 (in and out)"));
        let Outcome::Findings(findings) = run(&node.look()) else { panic!("a finding") };
        assert!(findings[0].owner_repairs_within.is_some_and(|wait| wait >= Duration::from_secs(10)), "it may be new");
    }

    #[test]
    fn trap_programs_of_ebpf_that_the_kernel_does_not_tell() {
        let all = ebpf(&[("cali1", [false; 2]), ("cali2", [false; 2])]);
        let never = ebpf(&[("cali1", [false; 2])]).remember(|before| before.attached.clear());
        assert!(matches!(run(&never.look()), Outcome::Unknown(_)));
        // Felix lives and has attached them anew, in a way that is not known yet.
        let moved = all.edit(|now| now.health.felix = testing::answers(200));
        assert!(matches!(run(&moved.look()), Outcome::Unknown(_)));
        let blind = ebpf(&[]).routing(|routing| routing.programs = testing::denied("filters of tc"));
        assert!(matches!(run(&blind.look()), Outcome::Unknown(_)));
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
