//! A route was added by hand or by a tool since the agent's first look of this boot.
//!
//! *Looks at* routes of the protocols `static` and `boot` to links that are no pods' and no tunnel of the CNI. Worth knowing
//! only: what it breaks is told by the findings about it, and this one says since when it is there. *Traps*: what was there
//! at the first look; a route that captures pods, which is [`super::pod_route_shadowed`]; routes to nodes that CNIs write with
//! these protocols (kindnet, flannel) (catalogue R084).

use std::time::Duration;

use super::super::routes::{Captures, written};
use super::super::{Area, Check, Finding, Look, Outcome, Severity, seen};

pub(super) const CHECK: Check = Check {
    code: "StaticRouteAdded",
    area: Area::PodRouting,
    severity: Severity::Info,
    why: "a new route can change which way the node's and the pods' packets take",
    next_step: "compare its time with that of other findings; if nobody knows it, find out who added it (`ip monitor route`, a VPN client, a network script)",
    raise_after: Duration::from_secs(5),
    clear_after: Duration::from_secs(5),
    run,
};

/// `RTPROT_BOOT` and `RTPROT_STATIC`.
const BY_HAND: [u8; 2] = [3, 4];
/// Plugins whose routes to other nodes have these protocols too.
const WRITERS: [&str; 2] = ["kindnet", "flannel"];

fn run(look: &Look<'_>) -> Outcome {
    let routing = seen!(look.now.routing, Outcome::NotApplicable("no routes are to be seen here".into()));
    let Some(first) = &look.before.routes.first else {
        return Outcome::NotApplicable("this is the first look".into());
    };
    if routing.routes.beyond > 0 {
        return Outcome::NotApplicable("there are more routes here than are compared".into());
    }
    if look.now.cni.config().is_some_and(|config| WRITERS.iter().any(|plugin| config.has(plugin))) {
        return Outcome::NotApplicable("the CNI here writes such routes itself".into());
    }
    let captures = Captures::of(look, routing);
    let added = captures.foreign.iter().filter(|route| {
        BY_HAND.contains(&route.protocol) && !first.routes.contains(&route.to) && captures.by(route).is_none()
    });
    let mut findings: Vec<Finding> = added
        .map(|route| {
            let detail = format!("The route `{}` was added", written(routing, route));
            Finding::new(route.to.to_string(), detail)
        })
        .collect();
    findings.dedup_by(|a, b| a.subject == b.subject);
    Outcome::from_findings(findings)
}

#[cfg(test)]
mod tests {
    use super::super::testing::{self, Node, table_route};
    use super::*;
    use crate::facts::FirstLook;

    fn with(route: &str) -> Node {
        let node = Node::calico_worker().remember(|before| before.routes.first = Some(FirstLook::default()));
        node.routes(|list| list.push(table_route(route)))
    }

    #[test]
    fn a_route_that_came() {
        let outcome = run(&with("192.168.0.0/16 10.0.0.9 2 4").look());
        assert_eq!(testing::subjects(&outcome), ["192.168.0.0/16"]);
        assert_eq!(
            testing::details(&outcome),
            ["The route `192.168.0.0/16 via 10.0.0.9 dev eth0 proto static` was added"]
        );
    }

    #[test]
    fn healthy_and_clears() {
        let node = with("192.168.0.0/16 10.0.0.9 2 4");
        assert!(matches!(run(&node.look()), Outcome::Findings(_)));
        let gone = node.routes(|list| list.retain(|route| route.to.to_string() != "192.168.0.0/16"));
        assert_eq!(run(&gone.look()), Outcome::Healthy, "it was deleted");
    }

    #[test]
    fn trap_routes_that_were_there_first_or_are_somebodys_own() {
        let first = with("192.168.0.0/16 10.0.0.9 2 4").remember(|before| {
            let to = "192.168.0.0/16".parse().expect("a prefix");
            before.routes.first.as_mut().expect("set").routes.insert(to);
        });
        assert_eq!(run(&first.look()), Outcome::Healthy);
        for route in [
            "10.244.1.0/26 192.0.2.9 2 4",
            "0.0.0.0/0 10.0.0.9 2 4",
            "10.9.0.0/16 10.0.0.9 2 16",
            "10.244.0.9/32 - 5 3",
        ] {
            assert_eq!(run(&with(route).look()), Outcome::Healthy, "{route}");
        }
        let kindnet = with("10.9.0.0/16 10.0.0.9 2 3").cni_plugin("kindnet");
        assert!(matches!(run(&kindnet.look()), Outcome::NotApplicable(_)));
        assert!(matches!(run(&Node::worker().look()), Outcome::NotApplicable(_)));
    }

    #[test]
    fn unknown_when_routes_cannot_be_read() {
        let node = Node::worker().edit(|now| now.routing = testing::denied("route dump"));
        assert!(matches!(run(&node.look()), Outcome::Unknown(_)));
    }
}
