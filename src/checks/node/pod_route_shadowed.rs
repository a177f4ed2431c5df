//! A route of somebody else takes packets that belong to pods.
//!
//! *Looks at* the routes of the table `main` that neither BIRD, Felix nor the CNI's devices explain. Right is that none of
//! them is as specific as, or more specific than, a local pod's address, a block of this node or a block of another node.
//! *Traps*: Calico's own /32 inside a block (proto bird, 80, or to `cali*`); bridges of CNIs; addresses on `lo`; a wider
//! route, which the blocks win against; a static route that leads to the right node (catalogue R084).

use std::time::Duration;

use super::super::routes::{Captures, uses_main, written};
use super::super::{Area, Check, Finding, Look, Outcome, Severity, seen};

pub(super) const CHECK: Check = Check {
    code: "PodRouteShadowed",
    area: Area::PodRouting,
    severity: Severity::Critical,
    why: "packets to these pods leave by this route and never reach them",
    next_step: "find out who added the route (`ip monitor route`, a VPN client, a network script) and remove it: `ip route del PREFIX`",
    raise_after: Duration::from_millis(500),
    clear_after: Duration::from_secs(2),
    run,
};

fn run(look: &Look<'_>) -> Outcome {
    let routing = seen!(look.now.routing, Outcome::NotApplicable("no routes are to be seen here".into()));
    if !uses_main(&look.now.cni) {
        return Outcome::NotApplicable("the CNI here routes pods by tables of its own".into());
    }
    let captures = Captures::of(look, routing);
    let findings = captures.foreign.iter().filter_map(|route| {
        let what = captures.by(route)?;
        let route_text = written(routing, route);
        let detail = format!("The route `{route_text}` captures {what}");
        let next =
            format!("Find out who added the route (`ip monitor route`) and remove it: `ip route del {route_text}`");
        Some(Finding::new(route.to.to_string(), detail).next(next))
    });
    let mut findings: Vec<Finding> = findings.collect();
    findings.dedup_by(|a, b| a.subject == b.subject);
    Outcome::from_findings(findings)
}

#[cfg(test)]
mod tests {
    use super::super::testing::{self, Node, POD_LINK, UPLINK, table_route};
    use super::*;
    use crate::facts::Seen;

    fn with(routes: &[&str]) -> Node {
        Node::calico_worker().routes(|list| list.extend(routes.iter().map(|text| table_route(text))))
    }

    #[test]
    fn pods_and_blocks_are_captured() {
        let cases = [
            ("10.244.0.7/32 192.0.2.9 2 4", "the local pod default/web at 10.244.0.7"),
            ("10.244.0.0/26 192.0.2.9 2 3", "this node's own block of pod addresses"),
            ("10.244.0.16/28 - 9 4", "a part of this node's own block 10.244.0.0/26"),
            ("10.244.1.0/26 10.0.0.77 2 3", "the block 10.244.1.0/26, which 10.0.0.6 has"),
            ("10.244.1.8/29 - 9 16", "a part of the block 10.244.1.0/26, which 10.0.0.6 has"),
        ];
        for (route, what) in cases {
            let outcome = run(&with(&[route]).look());
            assert_eq!(testing::subjects(&outcome).len(), 1, "{route}");
            assert!(testing::details(&outcome)[0].ends_with(what), "{outcome:?}");
        }
        let outcome = run(&with(&["10.244.1.0/26 10.0.0.77 2 3"]).with_map(|_| ()).look());
        assert!(testing::details(&outcome)[0].ends_with("captures the block 10.244.1.0/26 of node n2"), "{outcome:?}");
    }

    #[test]
    fn a_route_of_a_vpn_whose_interface_has_a_pod_address() {
        assert_eq!(testing::subjects(&run(&with(&["10.244.1.0/27 - 9 2"]).look())), ["10.244.1.0/27"]);
    }

    #[test]
    fn healthy_and_clears() {
        assert_eq!(run(&with(&[]).look()), Outcome::Healthy);
        assert_eq!(run(&Node::worker().look()), Outcome::Healthy);
    }

    #[test]
    fn traps() {
        let own = format!("10.244.0.9/32 - {POD_LINK} 3");
        let static_to_the_node = format!("10.244.1.0/26 10.0.0.6 {UPLINK} 4");
        for route in [
            own.as_str(),
            "10.244.1.5/32 10.0.0.6 2 12",
            "10.244.1.5/32 10.0.0.6 2 80",
            "10.244.0.0/24 - 7 2",
            "10.0.0.0/8 192.0.2.9 2 4",
            "192.168.0.0/16 192.0.2.9 2 4",
            "10.244.0.1/32 - 1 3",
            &static_to_the_node,
        ] {
            let node = with(&[route]);
            assert_eq!(run(&node.look()), Outcome::Healthy, "{route}");
            assert_eq!(run(&node.with_map(|_| ()).look()), Outcome::Healthy, "{route}");
        }
        let cilium = with(&["10.244.1.0/26 10.0.0.77 2 3"]).cni_plugin("cilium-cni");
        assert!(matches!(run(&cilium.look()), Outcome::NotApplicable(_)));
    }

    #[test]
    fn unknown_when_routes_cannot_be_read() {
        let node = Node::worker().edit(|now| now.routing = Seen::not_yet("routes"));
        assert!(matches!(run(&node.look()), Outcome::Unknown(_)));
    }
}
