//! A local pod's address is not routed to the pod.
//!
//! *Looks at* the kernel's own answer (`RTM_GETROUTE`, policy rules included) for every address of every READY sandbox
//! with a network of its own. Right is a route to a local link that is up, no uplink and no tunnel, and that has a carrier
//! where it is the pod's own: the other end of a veth is the pod's. *Traps*: a sandbox younger than 30 s; a bridge, whose
//! carrier is that of any pod; CNIs that do not route pods through the host (macvlan, ipvlan, SR-IOV); a CNI that is not
//! known, which is judged only while it routes other pods; secondary networks are not asked for at all (catalogue R080).

use std::net::IpAddr;
use std::time::Duration;

use super::super::{Area, Check, Finding, Look, Outcome, Severity, findings_or_unknown, first_error, seen};
use crate::facts::{Cni, PodRoute, RouteAnswer, RouteKind, Routing, Sandbox};

pub(super) const CHECK: Check = Check {
    code: "PodRouteMissing",
    area: Area::PodRouting,
    severity: Severity::Critical,
    why: "the pod cannot be reached, not even from this node, though it may still be Ready",
    next_step: "check the CNI's agent on this node (calico-node: is Felix alive?) and delete its pod so that it programs the routes again",
    // That the pod still exists was asked after its route went; this is for a runtime that ends the network first (CRI-O).
    raise_after: Duration::from_millis(700),
    clear_after: Duration::from_secs(2),
    run,
};

/// Felix writes routes again with its periodic refresh (`RouteRefreshInterval`, 90 s), plus a margin.
const FELIX_REFRESH: Duration = Duration::from_secs(100);

/// Plugins that give a pod an address which the host routes to it.
const ROUTED: [&str; 6] = ["calico", "bridge", "ptp", "flannel", "kindnet", "cilium-cni"];

fn run(look: &Look<'_>) -> Outcome {
    let sandboxes = seen!(look.now.runtime.sandboxes, Outcome::NotApplicable("no container runtime here".into()));
    let routing = seen!(look.now.routing, Outcome::NotApplicable("no routes are to be seen here".into()));
    if !routes_pods(&look.now.cni, routing) {
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
        .map(|(finding, by_felix)| if felix && by_felix { finding.repaired_within(FELIX_REFRESH) } else { finding });
    let errors = first_error(routes().flat_map(|(_, routes)| routes.iter().map(|route| route.answer.error())));
    findings_or_unknown(findings.collect(), errors)
}

/// Plugins that give a pod an address of the network outside, or leave it to others.
const UNROUTED: [&str; 6] = ["macvlan", "ipvlan", "host-device", "sriov", "vlan", "multus"];

/// Whether the CNI in force routes pods. One that is not known does if it routes any of them now: a false alarm costs more
/// than silence.
fn routes_pods(cni: &Cni, routing: &Routing) -> bool {
    let named = |plugins: &[&str]| cni.config().is_some_and(|config| plugins.iter().any(|plugin| config.has(plugin)));
    let routed = || {
        routing.pods.values().flatten().any(|pod| match pod.answer.get() {
            Some(RouteAnswer::Via { link, kind: RouteKind::Unicast, .. }) => {
                let local = routing.link(*link).is_some_and(|link| link.up && link.is_pods());
                local && !routing.uplinks().any(|uplink| uplink == *link)
            }
            _ => false,
        })
    };
    named(&ROUTED) || (!named(&UNROUTED) && routed())
}

/// The finding, and whether it is about a route, which Felix would write again.
fn wrong(routing: &Routing, sandbox: &Sandbox, route: &PodRoute) -> Option<(Finding, bool)> {
    let mut by_felix = true;
    let how = match route.answer.get()? {
        RouteAnswer::NoWay(error) => format!("has no route ({error})"),
        RouteAnswer::Via { link, gateway, .. } => {
            let name = routing.link_name(*link);
            let outside = routing.link(*link).is_some_and(|link| link.is_vpn() || link.is_tunnel());
            let away = outside || routing.uplinks().any(|uplink| uplink == *link);
            let local = routing.link(*link).is_some_and(|link| link.loopback);
            match gateway {
                _ if local => format!("is routed to this node itself ({name})"),
                Some(gateway) if away => format!("is routed away from this node, via {gateway} on {name}"),
                None if away => format!("is routed away from this node, on {name}"),
                _ if !routing.link(*link).is_some_and(|link| link.up) => format!("is routed to {name}, which is down"),
                None if routing.link(*link).is_some_and(|link| link.is_own_of_pod() && !link.carrier) => {
                    by_felix = false;
                    format!("is routed to {name}, which has no carrier: the end inside the pod is down")
                }
                _ if name.starts_with("cali") => match shared(routing, sandbox, route.address, *link) {
                    Some(other) => {
                        format!("is routed to {name}, and so is {other}: one of them has lost its own route")
                    }
                    None => return None,
                },
                _ => return None,
            }
        }
    };
    let pod = format!("{}/{}", sandbox.namespace, sandbox.name);
    let finding =
        Finding::new(format!("{pod} {}", route.address), format!("The local pod {pod} at {} {how}", route.address));
    Some((finding, by_felix))
}

/// The address of another pod that is routed to the same link. With Calico each pod has a link of its own.
fn shared(routing: &Routing, sandbox: &Sandbox, address: IpAddr, wanted: u32) -> Option<IpAddr> {
    let others = routing.pods.iter().filter(|(id, _)| **id != sandbox.id).flat_map(|(_, routes)| routes);
    let same = |other: &&PodRoute| {
        other.address.is_ipv4() == address.is_ipv4()
            && matches!(other.answer.get(), Some(RouteAnswer::Via { link, .. }) if *link == wanted)
    };
    others.into_iter().find(same).map(|other| other.address)
}

#[cfg(test)]
mod tests {
    use super::super::testing::{self, Node};
    use super::*;
    use crate::facts::Seen;

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
    fn the_end_inside_the_pod_is_down() {
        let silent = |node: Node| {
            node.edit(|now| now.health.felix = testing::answers(200)).routing(|routing| {
                routing.links.iter_mut().filter(|link| link.index == testing::POD_LINK).for_each(|link| {
                    link.carrier = false;
                });
            })
        };
        let Outcome::Findings(findings) = run(&silent(Node::calico_worker()).look()) else { panic!("a finding") };
        assert!(
            findings[0].detail.ends_with("to cali0, which has no carrier: the end inside the pod is down"),
            "{findings:?}"
        );
        assert_eq!(findings[0].owner_repairs_within, None, "Felix does not look into the pod");
        assert_eq!(run(&Node::calico_worker().look()), Outcome::Healthy);
        // The last other pod of a bridge has gone.
        assert_eq!(run(&silent(Node::worker()).look()), Outcome::Healthy);
    }

    #[test]
    fn the_link_of_another_pod() {
        let shared = |link: u32| {
            Node::calico_worker().routing(move |routing| {
                let address = "10.244.0.8".parse().expect("an address");
                routing.links.push(testing::link(41, "cali41", Some("veth")));
                routing.pods.insert("other".into(), vec![PodRoute { address, answer: via(link) }]);
            })
        };
        assert_eq!(run(&shared(41).look()), Outcome::Healthy);
        let outcome = run(&shared(testing::POD_LINK).look());
        assert!(testing::details(&outcome)[0].contains("is routed to cali0, and so is 10.244.0.8"), "{outcome:?}");
        // A bridge has many.
        let bridge = Node::worker().routing(|routing| {
            let address = "10.244.0.8".parse().expect("an address");
            routing.pods.insert("other".into(), vec![PodRoute { address, answer: via(testing::POD_LINK) }]);
        });
        assert_eq!(run(&bridge.look()), Outcome::Healthy);
    }

    #[test]
    fn a_vpn_is_away_too() {
        let node = answered(via(9)).routing(|routing| routing.links.push(testing::link(9, "tun0", Some("tun"))));
        assert!(testing::details(&run(&node.look()))[0].ends_with("is routed away from this node, on tun0"));
    }

    #[test]
    fn trap_a_cni_that_is_not_known_is_judged_by_what_it_does() {
        let unknown = |node: Node| node.cni_plugin("some-cni");
        assert!(matches!(run(&unknown(answered(via(testing::UPLINK))).look()), Outcome::NotApplicable(_)));
        let another = unknown(answered(via(testing::UPLINK))).routing(|routing| {
            let address = "10.244.0.8".parse().expect("an address");
            routing.pods.insert("other".into(), vec![PodRoute { address, answer: via(testing::POD_LINK) }]);
        });
        assert_eq!(testing::subjects(&run(&another.look())), ["default/web 10.244.0.7"]);
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
