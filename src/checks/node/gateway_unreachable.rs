//! The gateway of a default route does not answer ARP or neighbour discovery.
//!
//! *Looks at* the neighbour entries of the gateways. *Trap*: STALE is normal, and so is no entry at all on a quiet node
//! (catalogue R088); only FAILED, or INCOMPLETE that lasts, means that nobody answers.

use std::time::Duration;

use super::super::{Area, Check, Finding, Look, Outcome, Severity, seen};
use crate::facts::NeighbourState;

pub(super) const CHECK: Check = Check {
    code: "GatewayUnreachable",
    area: Area::ControlPlanePath,
    severity: Severity::Warning,
    why: "packets to everything beyond this subnet are dropped for want of the gateway's link address",
    next_step: "check the link and the gateway: `ip neigh show`, `ip -s link`; then ask the owner of the VLAN or gateway device",
    raise_after: Duration::from_secs(10),
    clear_after: Duration::from_secs(10),
    run,
};

fn run(look: &Look<'_>) -> Outcome {
    let routing = seen!(look.now.routing, Outcome::NotApplicable("no routes are to be seen here".into()));
    if routing.defaults.iter().all(|route| route.next_hops.iter().all(|(gateway, _)| gateway.is_none())) {
        return Outcome::NotApplicable("no default route goes through a gateway".into());
    }
    let silent = routing.gateways.iter().filter_map(|gateway| {
        let said = match gateway.state {
            NeighbourState::Failed => "does not answer (FAILED)",
            NeighbourState::Incomplete => "is being asked for and does not answer (INCOMPLETE)",
            _ => return None,
        };
        let link = routing.link_name(gateway.link);
        Some(Finding::new(gateway.address.to_string(), format!("The gateway {} on {link} {said}", gateway.address)))
    });
    Outcome::from_findings(silent.collect())
}

#[cfg(test)]
mod tests {
    use super::super::testing::{self, Node};
    use super::*;

    fn with(state: NeighbourState) -> Outcome {
        let node = Node::worker().routing(|routing| routing.gateways[0].state = state);
        run(&node.look())
    }

    #[test]
    fn a_gateway_that_does_not_answer() {
        assert_eq!(testing::subjects(&with(NeighbourState::Failed)), ["10.0.0.1"]);
        assert_eq!(testing::subjects(&with(NeighbourState::Incomplete)), ["10.0.0.1"]);
    }

    #[test]
    fn healthy_and_clears() {
        assert_eq!(with(NeighbourState::Reachable), Outcome::Healthy);
    }

    #[test]
    fn trap_stale_or_no_entry_is_a_quiet_node() {
        assert_eq!(with(NeighbourState::Stale), Outcome::Healthy);
        let node = Node::worker().routing(|routing| routing.gateways.clear());
        assert_eq!(run(&node.look()), Outcome::Healthy);
    }

    #[test]
    fn unknown_when_routes_cannot_be_read() {
        let node = Node::worker().edit(|now| now.routing = testing::denied("route dump"));
        assert!(matches!(run(&node.look()), Outcome::Unknown(_)));
    }
}
