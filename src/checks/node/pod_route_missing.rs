//! A local pod's address is not routed to the pod.
//!
//! *Looks at* the kernel's own answer (`RTM_GETROUTE`, policy rules included) for every address of every READY sandbox
//! with a network of its own. Right is a route to a local link that is no uplink. *Traps*: a sandbox younger than 30 s;
//! CNIs that do not route pods through the host (macvlan, ipvlan, SR-IOV); secondary networks are not asked for at all
//! (catalogue R080).

use std::time::Duration;

use super::super::{Area, Check, Finding, Look, Outcome, Severity, findings_or_unknown, first_error, seen};
use crate::facts::{Cni, PodRoute, RouteAnswer, Routing, Sandbox};

pub(super) const CHECK: Check = Check {
    code: "PodRouteMissing",
    area: Area::PodRouting,
    severity: Severity::Critical,
    why: "the pod cannot be reached, not even from this node, though it may still be Ready",
    next_step: "check the CNI's agent on this node (calico-node: is Felix alive?) and delete its pod so that it programs the routes again",
    raise_after: Duration::from_secs(5),
    clear_after: Duration::from_secs(5),
    run,
};

/// Felix writes routes again with its periodic refresh (`RouteRefreshInterval`, 90 s), plus a margin.
const FELIX_REFRESH: Duration = Duration::from_secs(100);

/// Plugins that give a pod an address which the host routes to it.
const ROUTED: [&str; 6] = ["calico", "bridge", "ptp", "flannel", "kindnet", "cilium-cni"];

fn run(look: &Look<'_>) -> Outcome {
    let sandboxes = seen!(look.now.runtime.sandboxes, Outcome::NotApplicable("no container runtime here".into()));
    let routing = seen!(look.now.routing, Outcome::NotApplicable("no routes are to be seen here".into()));
    if !routes_pods(&look.now.cni) {
        return Outcome::NotApplicable("the CNI here does not route pods through the host's tables".into());
    }
    let felix = look.now.health.felix.get().is_some();
    let settled = |sandbox: &&Sandbox| {
        let age = look.now.taken_at.as_nanosecond() - i128::from(sandbox.created_at);
        age > i128::from(look.limits.sandbox_settling_seconds) * 1_000_000_000
    };
    let routes =
        || sandboxes.iter().filter(settled).filter_map(|sandbox| routing.pods.get(&sandbox.id).map(|it| (sandbox, it)));
    let findings = routes()
        .flat_map(|(sandbox, routes)| routes.iter().filter_map(move |route| wrong(routing, sandbox, route)))
        .map(|finding| if felix { finding.repaired_within(FELIX_REFRESH) } else { finding });
    let errors = first_error(routes().flat_map(|(_, routes)| routes.iter().map(|route| route.answer.error())));
    findings_or_unknown(findings.collect(), errors)
}

/// Whether the CNI in force routes pods. Unknown plugins are not judged: a false alarm costs more than silence.
fn routes_pods(cni: &Cni) -> bool {
    cni.config().is_some_and(|config| ROUTED.iter().any(|plugin| config.has(plugin)))
}

fn wrong(routing: &Routing, sandbox: &Sandbox, route: &PodRoute) -> Option<Finding> {
    let how = match route.answer.get()? {
        RouteAnswer::NoWay(error) => format!("has no route ({error})"),
        RouteAnswer::Via { link, gateway, .. } => {
            let name = routing.link_name(*link);
            let away = routing.uplinks().any(|uplink| uplink == *link);
            let local = routing.link(*link).is_some_and(|link| link.loopback);
            match gateway {
                _ if local => format!("is routed to this node itself ({name})"),
                Some(gateway) if away => format!("is routed away from this node, via {gateway} on {name}"),
                None if away => format!("is routed away from this node, on {name}"),
                _ if !routing.link(*link).is_some_and(|link| link.up) => format!("is routed to {name}, which is down"),
                _ => return None,
            }
        }
    };
    let pod = format!("{}/{}", sandbox.namespace, sandbox.name);
    Some(Finding::new(format!("{pod} {}", route.address), format!("The local pod {pod} at {} {how}", route.address)))
}

#[cfg(test)]
mod tests {
    use super::super::testing::{self, Node};
    use super::*;
    use crate::facts::{RouteKind, Seen};

    fn answered(answer: Seen<RouteAnswer>) -> Node {
        Node::worker().routing(move |routing| {
            for routes in routing.pods.values_mut() {
                routes[0].answer = answer.clone();
            }
        })
    }

    fn via(link: u32) -> Seen<RouteAnswer> {
        Seen::Yes(RouteAnswer::Via { link, gateway: None, kind: RouteKind::Unicast })
    }

    #[test]
    fn no_way_and_away_and_down() {
        let unreachable = answered(Seen::Yes(RouteAnswer::NoWay("Network is unreachable".into())));
        assert_eq!(testing::subjects(&run(&unreachable.look())), ["default/web 10.244.0.7"]);
        assert_eq!(testing::subjects(&run(&answered(via(testing::UPLINK)).look())).len(), 1);
        let down = answered(via(testing::POD_LINK)).routing(|routing| {
            routing.links.iter_mut().find(|link| link.index == testing::POD_LINK).expect("there").up = false;
        });
        assert!(testing::details(&run(&down.look()))[0].ends_with("which is down"));
    }

    #[test]
    fn healthy_and_clears() {
        assert_eq!(run(&Node::worker().look()), Outcome::Healthy);
    }

    #[test]
    fn trap_a_sandbox_that_has_just_been_made() {
        let node = answered(via(testing::UPLINK)).edit(|now| {
            if let Seen::Yes(sandboxes) = &mut now.runtime.sandboxes {
                sandboxes[0].created_at =
                    i64::try_from(now.taken_at.as_nanosecond()).expect("this century") - 5_000_000_000;
            }
        });
        assert_eq!(run(&node.look()), Outcome::Healthy);
    }

    #[test]
    fn trap_macvlan_is_not_routed() {
        let node = answered(via(testing::UPLINK)).cni_plugin("macvlan");
        assert!(matches!(run(&node.look()), Outcome::NotApplicable(_)));
    }

    #[test]
    fn waits_for_a_living_felix() {
        let node =
            answered(via(testing::UPLINK)).cni_plugin("calico").edit(|now| now.health.felix = testing::answers(200));
        let Outcome::Findings(findings) = run(&node.look()) else { panic!("a finding") };
        assert_eq!(findings[0].owner_repairs_within, Some(FELIX_REFRESH));
    }

    #[test]
    fn unknown_when_the_runtime_or_the_kernel_does_not_say() {
        let node = Node::worker().edit(|now| now.runtime.sandboxes = testing::denied("CRI sandboxes"));
        assert!(matches!(run(&node.look()), Outcome::Unknown(_)));
        assert!(matches!(run(&answered(testing::denied("route look-up")).look()), Outcome::Unknown(_)));
    }
}
