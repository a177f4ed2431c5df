//! kube-proxy's chains are there, but nothing jumps to them.
//!
//! *Looks at* the jumps from the base chains, and in the native mode at where kube-proxy's own base chains are attached. A living kube-proxy does not repair them for up to an hour, and its health
//! port stays 200 (recorded: incidents 05 D and 05 E), so nobody is waited for. *Traps*: a start of kube-proxy makes
//! chain and jump one after the other, which in IPVS mode takes seconds, and a first start is not known as such at once; in that mode it writes all of them each half minute
//! (catalogue R102).

use std::time::Duration;

use super::super::{Area, Check, Finding, Look, Outcome, Severity, chains};

pub(super) const CHECK: Check = Check {
    code: "KubeProxyChainsUnhooked",
    area: Area::PacketFilter,
    severity: Severity::Critical,
    why: "Services are dead on this node though kube-proxy's health port says 200, and a living kube-proxy may not repair it for an hour",
    next_step: "restart kube-proxy on this node (delete its pod), which puts the jumps back within a second; then find who removed them (firewalld, a script)",
    // Chain and jump are made in one go at a start of kube-proxy; half a second lets it finish.
    raise_after: Duration::from_millis(500),
    clear_after: Duration::from_secs(2),
    run,
};

fn run(look: &Look<'_>) -> Outcome {
    let Some(mode) = look.expected.kube_proxy else {
        return Outcome::NotApplicable("no kube-proxy on this node".into());
    };
    let gaps = match chains::gaps(look, chains::kube_proxy(mode), &look.before.kube_proxy) {
        Ok(gaps) => gaps,
        Err(error) => return Outcome::unknown(error),
    };
    let unhooked = gaps.iter().filter(|gaps| !gaps.unhooked.is_empty());
    Outcome::from_findings(
        unhooked
            .map(|gaps| {
                let (what, blame) = (gaps.unhooked.join(", "), gaps.blame(look, &gaps.unhooked));
                let detail = format!("Jumps to kube-proxy's chains are gone ({}): {what}{blame}", gaps.place());
                let finding = Finding::new(gaps.family.to_string(), detail);
                chains::awaited_from_the_start(look, finding, gaps, &gaps.unhooked)
            })
            .collect(),
    )
}

#[cfg(test)]
mod tests {
    use super::super::testing::{self, Node};
    use super::*;
    use crate::facts::{Action, Backend, Commit, Family, FilterRule, Piece, Program, Removal, Seen};

    fn without_jump(backend: Backend) -> Node {
        Node::worker().kube_proxy(backend).edit_chains(backend, "nat", |chains| {
            let base = chains.iter_mut().find(|chain| chain.name == "PREROUTING").expect("there");
            base.jumps.retain(|jump| jump.target != "KUBE-SERVICES");
        })
    }

    #[test]
    fn a_jump_gone_in_either_backend() {
        for backend in [Backend::Nftables, Backend::Legacy] {
            let details = testing::details(&run(&without_jump(backend).look()));
            assert!(details[0].contains("nat PREROUTING -> KUBE-SERVICES"), "{details:?}");
        }
    }

    #[test]
    fn the_native_mode_no_longer_looks_services_up() {
        let with = |rules: Option<Vec<FilterRule>>| {
            Node::worker().kube_proxy_native().edit_chains(Backend::Nftables, "kube-proxy", move |chains| {
                chains
                    .iter_mut()
                    .filter(|chain| chain.name == "services")
                    .for_each(|chain| chain.rules = rules.clone());
            })
        };
        let details = testing::details(&run(&with(Some(vec![])).look()));
        assert!(details[0].contains("kube-proxy services -> service-ips"), "{details:?}");
        let lookup = FilterRule { action: Action::Other("vmap".into()), ..FilterRule::new(0) };
        assert_eq!(run(&with(Some(vec![lookup])).look()), Outcome::Healthy);
        assert_eq!(run(&with(None).look()), Outcome::Healthy, "nobody has read them");
    }

    #[test]
    fn the_native_modes_filter_hooks_and_its_second_family() {
        let with = |family: Family, change: fn(&mut crate::facts::Chain)| {
            Node::worker().kube_proxy_native().edit(|now| {
                let Seen::Yes(ruleset) = &mut now.nftables else { panic!("seen") };
                let tables = ruleset.tables.iter_mut().filter(|table| table.family == family);
                tables.flat_map(|table| &mut table.chains).for_each(change);
            })
        };
        for base in ["filter-input", "filter-forward", "filter-output"] {
            let check = format!("kube-proxy {base} -> service-endpoints-check");
            let gone =
                |chain: &mut crate::facts::Chain| chain.jumps.retain(|it| it.target != "service-endpoints-check");
            let details = testing::details(&run(&with(Family::V6, gone).look()));
            assert!(details.len() == 1 && details[0].contains("(IPv6, nf_tables)"), "{details:?}");
            assert!(details[0].contains(&check), "{details:?}");
        }
        let node = with(Family::V4, |chain| {
            chain.base = chain.base.filter(|_| chain.name != "filter-prerouting-pre-dnat");
            if chain.name == "filter-prerouting-pre-dnat" {
                chain.jumps.clear();
            }
        });
        assert!(testing::details(&run(&node.look()))[0].ends_with("filter-prerouting-pre-dnat -> firewall-check"));
        let late = with(Family::V4, |chain| {
            if let Some(base) = chain.base.as_mut().filter(|base| base.priority == Some(-100)) {
                base.priority = Some(50);
            }
        });
        let details = testing::details(&run(&late.look()));
        assert!(details[0].contains("kube-proxy nat-output is not at hook Output, priority -100"), "{details:?}");
    }

    #[test]
    fn trap_the_native_mode_of_1_31_filters_ahead_of_the_translation() {
        let early = Node::worker().kube_proxy_native().edit(|now| {
            let Seen::Yes(ruleset) = &mut now.nftables else { panic!("seen") };
            for chain in ruleset.tables.iter_mut().flat_map(|table| &mut table.chains) {
                match chain.name.as_str() {
                    "filter-prerouting-pre-dnat" => chain.name = "filter-prerouting".into(),
                    "filter-output-pre-dnat" => chain.name = "filter-output-post-dnat".into(),
                    name if name.starts_with("filter-") => {
                        chain.jumps.retain(|jump| jump.target != "cluster-ips-check");
                        chain.base = chain.base.map(|base| crate::facts::BaseChain { priority: Some(-110), ..base });
                    }
                    _ => {}
                }
            }
        });
        assert_eq!(run(&early.look()), Outcome::Healthy);
        // What it leaves behind when another version follows it hides nothing.
        let followed = Node::worker().kube_proxy_native().edit_chains(Backend::Nftables, "kube-proxy", |chains| {
            chains.iter_mut().filter(|chain| chain.name == "filter-output").for_each(|chain| chain.jumps.clear());
            let mut old = chains.iter().find(|chain| chain.name == "filter-output").expect("there").clone();
            old.name = "filter-output-post-dnat".into();
            chains.push(old);
        });
        let details = testing::details(&run(&followed.look()));
        assert!(details[0].contains("filter-output -> service-endpoints-check"), "{details:?}");
        let node = early.edit_chains(Backend::Nftables, "kube-proxy", |chains| {
            chains.iter_mut().filter(|chain| chain.name == "nat-output").for_each(|chain| chain.jumps.clear());
        });
        assert!(testing::details(&run(&node.look()))[0].ends_with("kube-proxy nat-output -> services"));
    }

    #[test]
    fn it_names_who_removed_the_jump() {
        let gone = |chain: &str| Piece {
            family: Family::V4,
            table: "nat".into(),
            chain: chain.into(),
            target: Some("KUBE-SERVICES".into()),
        };
        let at = "2026-11-21T02:41:07.5Z".parse().expect("a time");
        let by = vec![Commit { at, generation: 8, pid: Some(1425), program: Some("iptables-nft-re".into()) }];
        let removal = |chain, by| Removal { at, generation: 8, commits: 1, by, gone: vec![gone(chain)] };
        let node = without_jump(Backend::Nftables).edit(|now| {
            now.packet_filter_changes.removals =
                vec![removal("PREROUTING", vec![]), removal("OUTPUT", by.clone()), removal("PREROUTING", by.clone())];
        });
        let end = ": nat PREROUTING -> KUBE-SERVICES; removed at 2026-11-21T02:41:07Z by iptables-nft-re (pid 1425)";
        let details = testing::details(&run(&node.look()));
        assert!(details[0].ends_with(end), "{details:?}");
    }

    #[test]
    fn trap_the_legacy_backend_does_not_tell_who() {
        let details = testing::details(&run(&without_jump(Backend::Legacy).look()));
        assert!(details[0].ends_with("KUBE-SERVICES"), "{details:?}");
    }

    #[test]
    fn trap_in_ipvs_mode_a_living_kube_proxy_writes_them_again() {
        let node = Node::worker().ipvs().edit_chains(Backend::Nftables, "filter", |chains| {
            for chain in chains {
                chain.jumps.clear();
            }
        });
        let Outcome::Findings(findings) = run(&node.look()) else { panic!("a finding") };
        assert!(findings[0].detail.ends_with("filter FORWARD -> KUBE-FORWARD"), "{findings:?}");
        assert_eq!(findings[0].owner_repairs_within, Some(Duration::from_secs(35)));
        let dead = node.edit(|now| now.health.kube_proxy = testing::timed_out("kube-proxy"));
        let Outcome::Findings(findings) = run(&dead.look()) else { panic!("a finding") };
        assert_eq!(findings[0].owner_repairs_within, None);
        let jump = (Backend::Nftables, Family::V4, "filter FORWARD -> KUBE-FORWARD".to_owned());
        let starts = dead.started_ago(Program::KubeProxy, 20).remember(|it| _ = it.kube_proxy_jumps.insert(jump));
        let Outcome::Findings(findings) = run(&starts.look()) else { panic!("a finding") };
        assert_eq!(findings[0].owner_repairs_within, Some(Duration::from_secs(35)), "it has just been started");
    }

    /// Since when a finding without jumps that nobody ever saw stands before it counts.
    fn waits(node: &Node) -> Option<Duration> {
        let Outcome::Findings(findings) = run(&node.look()) else { panic!("a finding") };
        findings[0].owner_repairs_within
    }

    #[test]
    fn trap_the_first_start_makes_chains_before_jumps() {
        const JUMP: &str = "nat PREROUTING -> KUBE-SERVICES";
        let start = Some(Duration::from_secs(60));
        for backend in [Backend::Nftables, Backend::Legacy] {
            // As a node that joins: its process is not found yet, and its mode does not show.
            let node = || without_jump(backend).without(Program::KubeProxy);
            assert_eq!(waits(&node()), start, "{backend}");
            let hooked = |jump: &str| (backend, Family::V4, jump.to_owned());
            let lost = node().remember(|before| _ = before.kube_proxy_jumps.insert(hooked(JUMP)));
            assert_eq!(waits(&lost), None, "it was there");
            let others = node().remember(|before| {
                before.kube_proxy_jumps.insert(hooked("nat OUTPUT -> KUBE-SERVICES"));
                before.kube_proxy_jumps.insert((backend, Family::V6, JUMP.to_owned()));
            });
            assert_eq!(waits(&others), start, "one by one");
            let ended = node().remember(|before| _ = before.programs.insert(Program::KubeProxy));
            assert_eq!(waits(&ended), None, "it ran before and will not make them");
        }
        let known = |ago| without_jump(Backend::Nftables).started_ago(Program::KubeProxy, ago);
        assert_eq!((waits(&known(20)), waits(&known(600))), (start, None), "one that has run for long has made them");
    }

    #[test]
    fn jumps_that_were_seen_are_remembered() {
        let node = Node::worker().kube_proxy(Backend::Nftables);
        let mut before = crate::facts::Remembered::default();
        before.update(node.look().now);
        let node = without_jump(Backend::Nftables).without(Program::KubeProxy).remember(|it| *it = before);
        let node = node.remember(|before| before.programs.clear());
        assert_eq!(waits(&node), None);
    }

    #[test]
    fn trap_a_healthy_health_port_does_not_silence_it() {
        let node = without_jump(Backend::Nftables).edit(|now| now.health.kube_proxy = testing::answers(200));
        assert_eq!(testing::subjects(&run(&node.look())), ["IPv4"]);
    }

    #[test]
    fn trap_a_missing_chain_is_told_by_the_other_check() {
        let node = Node::worker().kube_proxy(Backend::Nftables).edit_chains(Backend::Nftables, "nat", |chains| {
            chains.retain(|chain| chain.name != "KUBE-SERVICES");
            for chain in chains.iter_mut() {
                chain.jumps.retain(|jump| jump.target != "KUBE-SERVICES");
            }
        });
        assert_eq!(run(&node.look()), Outcome::Healthy);
    }

    #[test]
    fn healthy_and_clears() {
        assert_eq!(run(&Node::worker().kube_proxy(Backend::Nftables).look()), Outcome::Healthy);
        assert!(matches!(run(&Node::plain_machine().look()), Outcome::NotApplicable(_)));
    }

    #[test]
    fn unknown_when_the_rules_cannot_be_read() {
        let node = Node::worker().edit(|now| now.nftables = testing::denied("nf_tables"));
        assert!(matches!(run(&node.look()), Outcome::Unknown(_)));
    }
}
