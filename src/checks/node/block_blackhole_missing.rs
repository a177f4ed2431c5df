//! A block of this node has no blackhole route.
//!
//! *Looks at* routes of type blackhole that BIRD or Felix wrote, now and earlier in this boot, and at this node's blocks as the
//! cluster tells them. Right is one for each block that is still this node's. *Traps*: without BGP and without VXLAN nobody
//! writes any; with VXLAN it is Felix who does; blocks of one address have none; a block that was given back (catalogue R083).

use std::time::Duration;

use ipnet::IpNet;

use super::super::routes::{FELIX_REFRESH, NEW_BLOCK, calico_map, map_lag};
use super::super::{Area, Check, Finding, Look, Outcome, Severity, seen};
use crate::facts::{Program, longest};

pub(super) const CHECK: Check = Check {
    code: "BlockBlackholeMissing",
    area: Area::PodRouting,
    severity: Severity::Warning,
    why: "packets for pods that are gone leave by the default route and come back, over and over",
    next_step: "check BIRD (with VXLAN: Felix) in the calico-node pod of this node, and delete that pod so that it programs the route again",
    raise_after: Duration::from_secs(1),
    clear_after: Duration::from_secs(2),
    run,
};

fn run(look: &Look<'_>) -> Outcome {
    let routing = seen!(look.now.routing, Outcome::NotApplicable("no routes are to be seen here".into()));
    let memory = &look.before.routes.blackholes;
    let here: Vec<IpNet> = routing.blackholes().collect();
    if memory.is_empty() && here.is_empty() {
        return Outcome::NotApplicable("nobody on this node writes blackhole routes for its blocks".into());
    }
    let own = calico_map(look).and_then(|map| map.this()).map(|this| &this.blocks);
    let used = |block: &IpNet| routing.pods.values().flatten().any(|pod| block.contains(&pod.address));
    let mut expected: Vec<IpNet> = match own {
        Some(own) => own.iter().copied().filter(|block| block.prefix_len() < longest(*block)).collect(),
        // Nobody can be asked: one with pods is still this node's.
        None => memory.iter().copied().filter(used).collect(),
    };
    expected.retain(|block| !here.contains(block));
    // Whoever lives may have given the block back, and the map may not say so yet.
    let lives = look.now.runs(Program::Bird) || look.now.felix_lives();
    let lag = calico_map(look).map_or(FELIX_REFRESH, map_lag);
    let missing = expected.into_iter().map(|block| {
        let detail = format!("The blackhole route of this node's block {block} is missing");
        let finding = Finding::new(block.to_string(), detail);
        match () {
            () if !memory.contains(&block) => finding.repaired_within(NEW_BLOCK),
            () if lives => finding.repaired_within(lag),
            () => finding,
        }
    });
    Outcome::from_findings(missing.collect())
}

#[cfg(test)]
mod tests {
    use super::super::testing::{self, Node};
    use super::*;
    use crate::facts::RouteKind;

    fn gone() -> Node {
        Node::calico_worker().routes(|list| list.retain(|route| route.kind != RouteKind::Blackhole))
    }

    fn wait(node: &Node) -> Option<Duration> {
        let Outcome::Findings(findings) = run(&node.look()) else { panic!("a finding, not {:?}", run(&node.look())) };
        assert_eq!(findings[0].subject, "10.244.0.0/26");
        findings[0].owner_repairs_within
    }

    #[test]
    fn one_that_went() {
        assert_eq!(wait(&gone()), Some(FELIX_REFRESH));
        assert_eq!(wait(&gone().with_map(|_| ())), Some(FELIX_REFRESH));
        assert_eq!(wait(&gone().without(Program::Bird)), None);
    }

    #[test]
    fn trap_a_block_that_is_new_or_of_one_address() {
        let node = Node::calico_worker().with_map(|map| {
            map.nodes[0].blocks.push("10.244.8.0/26".parse().expect("a block"));
            map.nodes[0].blocks.push("10.244.9.1/32".parse().expect("a block"));
        });
        let Outcome::Findings(findings) = run(&node.look()) else { panic!("a finding") };
        assert_eq!(findings.len(), 1);
        assert_eq!(findings[0].owner_repairs_within, Some(NEW_BLOCK));
    }

    #[test]
    fn trap_a_block_that_was_given_back() {
        assert_eq!(run(&gone().with_map(|map| map.nodes[0].blocks.clear()).look()), Outcome::Healthy);
        assert_eq!(run(&gone().routing(|routing| routing.pods.clear()).look()), Outcome::Healthy);
    }

    #[test]
    fn trap_nobody_writes_any() {
        let none = gone().remember(|before| before.routes.blackholes.clear());
        assert!(matches!(run(&none.with_map(|_| ()).look()), Outcome::NotApplicable(_)));
        assert!(matches!(run(&Node::worker().look()), Outcome::NotApplicable(_)));
    }

    #[test]
    fn healthy_and_clears_and_unknown() {
        assert_eq!(run(&Node::calico_worker().look()), Outcome::Healthy);
        assert_eq!(run(&Node::calico_worker().with_map(|_| ()).look()), Outcome::Healthy);
        let blind = Node::worker().edit(|now| now.routing = testing::denied("route dump"));
        assert!(matches!(run(&blind.look()), Outcome::Unknown(_)));
    }
}
