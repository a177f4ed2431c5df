//! A link of Calico to a pod that does not exist.
//!
//! *Looks at* `cali*` links, the addresses that are routed to them, and the runtime's sandboxes. Right is a sandbox behind
//! each. *Traps*: a pod that is just being made or taken down, hence 10 minutes; addresses that are not known yet; a pod whose
//! route is missing, which makes its link look as if it were nobody's (catalogue R081).

use std::collections::BTreeMap;
use std::net::IpAddr;
use std::time::Duration;

use super::super::{Area, Check, Finding, Look, Outcome, Severity, seen};

pub(super) const CHECK: Check = Check {
    code: "PodRouteStale",
    area: Area::PodRouting,
    severity: Severity::Warning,
    why: "what is left of a pod keeps its address from others, and packets to it go nowhere",
    next_step: "see whether the pod still exists (`crictl pods`), delete the calico-node pod of this node so that it cleans up, or remove the link: `ip link del NAME`",
    raise_after: Duration::from_secs(600),
    clear_after: Duration::from_secs(5),
    run,
};

fn run(look: &Look<'_>) -> Outcome {
    let routing = seen!(look.now.routing, Outcome::NotApplicable("no routes are to be seen here".into()));
    let sandboxes = seen!(look.now.runtime.sandboxes, Outcome::NotApplicable("no container runtime here".into()));
    let mut links: BTreeMap<u32, Vec<IpAddr>> = routing
        .links
        .iter()
        .filter(|link| link.name.starts_with("cali") && link.kind.as_deref() == Some("veth"))
        .map(|link| (link.index, Vec::new()))
        .collect();
    if links.is_empty() {
        return Outcome::NotApplicable("no links of Calico to pods".into());
    }
    if sandboxes
        .iter()
        .any(|it| it.host_network.is_none() || (it.host_network == Some(false) && it.addresses.is_empty()))
    {
        return Outcome::Unknown("the addresses of some pods are not known yet".into());
    }
    for route in routing.routes.main() {
        if let Some(addresses) = links.get_mut(&route.link) {
            addresses.push(route.to.addr());
        }
    }
    let known: Vec<IpAddr> = sandboxes.iter().flat_map(|sandbox| sandbox.addresses.iter().copied()).collect();
    let routed = |address: &IpAddr| links.values().any(|addresses| addresses.contains(address));
    // While some pod has no route, a link without one may be its.
    let all_routed = known.iter().all(routed);
    let stale = links.iter().filter(|(_, addresses)| {
        if addresses.is_empty() { all_routed } else { !addresses.iter().any(|address| known.contains(address)) }
    });
    let findings = stale.map(|(index, addresses)| {
        let name = routing.link_name(*index);
        let of = match addresses.first() {
            Some(address) => format!("{address} is routed to {name}, and no pod has this address"),
            None => format!("The link {name} belongs to no pod"),
        };
        Finding::new(name, of)
    });
    Outcome::from_findings(findings.collect())
}

#[cfg(test)]
mod tests {
    use super::super::testing::{self, Node, link, table_route};
    use super::*;
    use crate::facts::Seen;

    fn left(routed: bool) -> Node {
        let node = Node::calico_worker().routing(|routing| routing.links.push(link(40, "cali9", Some("veth"))));
        if routed { node.routes(|list| list.push(table_route("10.244.0.9/32 - 40 3"))) } else { node }
    }

    #[test]
    fn links_and_routes_of_nobody() {
        assert_eq!(testing::subjects(&run(&left(true).look())), ["cali9"]);
        let outcome = run(&left(false).look());
        assert_eq!(testing::details(&outcome), ["The link cali9 belongs to no pod"]);
        assert_eq!(CHECK.raise_after, Duration::from_secs(600));
    }

    #[test]
    fn trap_a_pod_whose_route_is_missing() {
        let node = left(false).routes(|list| list.retain(|route| route.to.to_string() != "10.244.0.7/32"));
        assert_eq!(run(&node.look()), Outcome::Healthy);
    }

    #[test]
    fn trap_addresses_that_are_not_known_yet() {
        let node = left(true).edit(|now| {
            let Seen::Yes(sandboxes) = &mut now.runtime.sandboxes else { panic!("seen") };
            sandboxes[0].addresses.clear();
        });
        assert!(matches!(run(&node.look()), Outcome::Unknown(_)));
    }

    #[test]
    fn healthy_and_clears_and_unknown() {
        assert_eq!(run(&Node::calico_worker().look()), Outcome::Healthy);
        assert!(matches!(run(&Node::worker().look()), Outcome::NotApplicable(_)));
        let blind = Node::calico_worker().edit(|now| now.runtime.sandboxes = testing::denied("CRI sandboxes"));
        assert!(matches!(run(&blind.look()), Outcome::Unknown(_)));
    }
}
