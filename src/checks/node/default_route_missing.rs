//! No default route: nothing beyond the node's own subnets can be reached.
//!
//! *Looks at* default routes in every table but `local`. *Trap*: a private-only worker has no public default, and a
//! machine without any network is not a worker with a fault: only a family that had a default route in this boot, or a
//! worker that has none at all, counts (catalogue R088).

use std::time::Duration;

use super::super::{Area, Check, Finding, Look, Outcome, Severity, seen};
use crate::facts::{Family, Routing};

pub(super) const CHECK: Check = Check {
    code: "DefaultRouteMissing",
    area: Area::ControlPlanePath,
    severity: Severity::Critical,
    why: "without it the control plane, the registries and everything else beyond this subnet cannot be reached",
    next_step: "see who removed it (`ip monitor route`, DHCP client, network service) and put it back: `ip route add default via GATEWAY`",
    raise_after: Duration::from_secs(2),
    clear_after: Duration::from_secs(5),
    run,
};

fn run(look: &Look<'_>) -> Outcome {
    let routing = seen!(look.now.routing, Outcome::NotApplicable("no routes are to be seen here".into()));
    let has = |family| routing.defaults.iter().any(|route| route.family == family && !route.next_hops.is_empty());
    if !has_network(routing) {
        return Outcome::NotApplicable("no link but loopback has an address".into());
    }
    let lost = [Family::V4, Family::V6]
        .into_iter()
        .filter(|family| look.before.default_route.contains(family) && !has(*family));
    let mut findings: Vec<Finding> = lost
        .map(|family| {
            Finding::new(family.to_string(), format!("The {family} default route, which this node had, is gone"))
        })
        .collect();
    if findings.is_empty() && !has(Family::V4) && !has(Family::V6) {
        if !look.expected.worker {
            return Outcome::NotApplicable("no default route, and this is no Kubernetes worker".into());
        }
        findings.push(Finding::new("any", "There is no default route, neither IPv4 nor IPv6"));
    }
    Outcome::from_findings(findings)
}

/// Whether any link but loopback is up and has a global address.
fn has_network(routing: &Routing) -> bool {
    routing
        .addresses
        .iter()
        .filter(|address| address.global)
        .any(|address| routing.link(address.link).is_some_and(|link| link.up && !link.loopback))
}

#[cfg(test)]
mod tests {
    use super::super::testing::{self, Node};
    use super::*;

    #[test]
    fn a_worker_without_any_default_route() {
        let node = Node::worker().routing(|routing| routing.defaults.clear());
        assert_eq!(testing::subjects(&run(&node.look())), ["any"]);
    }

    #[test]
    fn a_family_that_had_one() {
        let node = Node::worker().routing(|routing| routing.defaults.clear());
        let node = node.remember(|before| _ = before.default_route.insert(Family::V4));
        assert_eq!(testing::subjects(&run(&node.look())), ["IPv4"]);
    }

    #[test]
    fn healthy_and_clears() {
        let node = Node::worker().remember(|before| _ = before.default_route.insert(Family::V4));
        assert_eq!(run(&node.look()), Outcome::Healthy);
    }

    #[test]
    fn trap_a_machine_that_is_no_worker_and_a_machine_without_network() {
        let node = Node::plain_machine().routing(|routing| routing.defaults.clear());
        assert!(matches!(run(&node.look()), Outcome::NotApplicable(_)));
        let node = Node::worker().routing(|routing| {
            routing.defaults.clear();
            routing.addresses.clear();
        });
        assert!(matches!(run(&node.look()), Outcome::NotApplicable(_)));
    }

    #[test]
    fn unknown_when_routes_cannot_be_read() {
        let node = Node::worker().edit(|now| now.routing = testing::denied("route dump"));
        assert!(matches!(run(&node.look()), Outcome::Unknown(_)));
    }
}
