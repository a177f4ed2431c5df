//! The route to another node's pods leads elsewhere.
//!
//! *Looks at* the routes that BIRD, Felix or a tunnel's owner wrote for blocks of other nodes. Right is that the next hop is
//! that node (or its end of the tunnel) and the device is the one that the pool's mode asks for. *Traps*: route reflectors,
//! where the next hop differs by design: it is judged only in a full mesh or with VXLAN; several next hops; a block that has
//! just moved to another node; routes of somebody else, which are another finding (catalogue R082).

use std::time::Duration;

use ipnet::IpNet;

use super::super::pod_ranges::{self, Ranges};
use super::super::routes::{NEW_BLOCK, calico_map, is_at, leads_nowhere, pool_of, repaired, tunnel_to, written};
use super::super::{Area, Check, Finding, Look, Outcome, Severity, not_yet, seen};
use crate::facts::{ClusterMap, ClusterNode, Link, Routing, TableRoute};

pub(super) const CHECK: Check = Check {
    code: "RemoteBlockRouteWrongNextHop",
    area: Area::PodRouting,
    severity: Severity::Critical,
    why: "packets to the pods there go elsewhere and are lost",
    next_step: "compare `ip route` with BIRD (`birdcl show route`), find out who changed the route, and delete the calico-node pod here so that it programs its routes again",
    raise_after: Duration::from_millis(500),
    clear_after: Duration::from_secs(2),
    run,
};

fn run(look: &Look<'_>) -> Outcome {
    let routing = seen!(look.now.routing, Outcome::NotApplicable("no routes are to be seen here".into()));
    if not_yet(&look.now.cluster) {
        return Outcome::Unknown("cluster map: not looked at yet".into());
    }
    let Some(map) = calico_map(look) else {
        return pod_ranges::judged(look, routing, Ranges::wrong, || by_memory(look, routing));
    };
    let mut findings = Vec::new();
    for (node, block) in map.ranges() {
        let route = routing.routes.best_in_main(block).filter(|route| is_judged(routing, route, block));
        let Some(route) = route else { continue };
        if let Some((how, moved)) = wrong(routing, map, node, block, route) {
            let detail = format!("The route to {block} on node {} {how}: `{}`", node.name, written(routing, route));
            let finding = Finding::new(block.to_string(), detail);
            let finding = if node.ready { finding } else { finding.severity(Severity::Info) };
            findings.push(if moved { finding.repaired_within(NEW_BLOCK) } else { repaired(look, route, finding) });
        }
    }
    Outcome::from_findings(findings)
}

/// Whether the route is one of those that should lead to the node.
fn is_judged(routing: &Routing, route: &TableRoute, block: IpNet) -> bool {
    let own = route.is_calicos() || routing.link(route.link).is_some_and(Link::is_tunnel);
    route.to.prefix_len() > 0 && own && !route.several && (route.to == block || !leads_nowhere(route))
}

/// What is wrong with it, and whether the block may just have moved.
fn wrong(
    routing: &Routing,
    map: &ClusterMap,
    node: &ClusterNode,
    block: IpNet,
    route: &TableRoute,
) -> Option<(String, bool)> {
    if leads_nowhere(route) {
        return Some(("drops the packets".into(), true));
    }
    let link = routing.link(route.link)?;
    let vxlan = link.name.starts_with("vxlan");
    if let Some(gateway) = route.gateway.filter(|gateway| !is_at(node, *gateway))
        && (map.full_mesh == Some(true) || vxlan)
        && !node.addresses.is_empty()
        && !(vxlan && node.tunnels.is_empty())
    {
        let other = map.nodes.iter().find(|other| is_at(other, gateway));
        let whose = other.map_or_else(String::new, |other| format!(", which is node {}", other.name));
        return Some((format!("leads to {gateway}{whose}"), other.is_some()));
    }
    if link.is_vpn() {
        return Some((format!("leaves by {}", link.name), false));
    }
    let pool = pool_of(map, block)?;
    let needed = tunnel_to(routing, pool, node).filter(|_| !node.addresses.is_empty());
    match needed {
        // A device that is missing altogether is another finding.
        Some(device) if link.name != device && routing.links.iter().any(|link| link.name == device) => {
            Some((format!("does not go through {device}"), true))
        }
        None if matches!(link.name.as_str(), "tunl0" | "vxlan.calico" | "vxlan-v6.calico") => {
            Some((format!("goes through {}, which the pool does not use", link.name), true))
        }
        _ => None,
    }
}

/// Without the cluster's word: the same next hop, by a link that leads elsewhere.
fn by_memory(look: &Look<'_>, routing: &Routing) -> Outcome {
    let memory = &look.before.routes;
    if memory.remote.is_empty() {
        return Outcome::NotApplicable("this node had no routes to pods of other nodes in this boot".into());
    }
    if memory.matches(routing) {
        return Outcome::Healthy;
    }
    let moved = routing.remote_routes().filter_map(|route| {
        let before = memory.remote(route.to)?;
        let elsewhere = before.link != route.link && !routing.leads_to_nodes(route.link);
        let name = elsewhere.then(|| routing.link_name(route.link))?;
        let was = routing.link_name(before.link);
        let detail = format!("The route to pods in {} leaves by {name} and no longer by {was}", route.to);
        Some(repaired(look, route, Finding::new(route.to.to_string(), detail)))
    });
    Outcome::from_findings(moved.collect())
}

#[cfg(test)]
mod tests {
    use super::super::testing::{self, Node, table_route};
    use super::*;
    use crate::facts::{Encapsulation, Program, RouteKind, Seen};

    fn via(route: &str) -> Node {
        Node::calico_worker().routes(|list| {
            list.retain(|old| old.to.to_string() != "10.244.1.0/26");
            list.push(table_route(route));
        })
    }

    fn alter(node: Node, change: impl Fn(&mut TableRoute)) -> Node {
        node.routes(|list| list.iter_mut().filter(|it| it.to.to_string() == "10.244.1.0/26").for_each(change))
    }

    fn only(node: &Node) -> Finding {
        let Outcome::Findings(findings) = run(&node.look()) else { panic!("a finding, not {:?}", run(&node.look())) };
        assert_eq!(findings.len(), 1, "{findings:?}");
        findings[0].clone()
    }

    #[test]
    fn a_next_hop_that_is_nobody() {
        let finding = only(&via("10.244.1.0/26 10.0.0.99 2 12").with_map(|_| ()).without(Program::Bird));
        assert_eq!((finding.subject.as_str(), finding.owner_repairs_within), ("10.244.1.0/26", None));
        assert!(finding.detail.contains("on node n2 leads to 10.0.0.99: `10.244.1.0/26 via 10.0.0.99 dev eth0"));
        let alive = only(&via("10.244.1.0/26 10.0.0.99 2 12").with_map(|_| ()));
        assert_eq!(alive.owner_repairs_within, Some(Duration::from_secs(5)));
    }

    #[test]
    fn trap_a_block_that_has_just_moved() {
        let finding = only(&via("10.244.1.0/26 10.0.0.8 2 12").with_map(|_| ()));
        assert!(finding.detail.contains("leads to 10.0.0.8, which is node n3"), "{finding:?}");
        assert_eq!(finding.owner_repairs_within, Some(NEW_BLOCK));
    }

    #[test]
    fn a_device_that_leads_elsewhere_and_a_route_that_drops() {
        assert!(only(&via("10.244.1.0/26 10.0.0.6 9 12").with_map(|_| ())).detail.contains("leaves by tun0"));
        let drops = via("10.244.1.0/26 - 0 12").with_map(|_| ());
        let drops = alter(drops, |route| route.kind = RouteKind::Blackhole);
        assert!(only(&drops).detail.contains("drops the packets: `blackhole 10.244.1.0/26 proto bird`"));
    }

    #[test]
    fn the_tunnel_that_the_pool_asks_for() {
        let always = |mode: Encapsulation| {
            Node::calico_worker().with_map(move |map| map.pools[0].ipip = mode).routing(|routing| {
                routing.links.push(testing::link(20, "tunl0", Some("ipip")));
            })
        };
        let Outcome::Findings(findings) = run(&always(Encapsulation::Always).look()) else { panic!("findings") };
        assert_eq!(findings.len(), 2);
        assert!(findings[0].detail.contains("does not go through tunl0"), "{findings:?}");
        // n2 and n3 are in the node's subnet.
        assert_eq!(run(&always(Encapsulation::CrossSubnet).look()), Outcome::Healthy);
        let far = always(Encapsulation::CrossSubnet).with_map(|map| {
            map.nodes[1].addresses = vec!["10.9.0.6".parse().expect("an address")];
        });
        let far = far.routes(|list| {
            list.retain(|old| old.to.to_string() != "10.244.1.0/26");
            list.push(table_route("10.244.1.0/26 10.9.0.6 20 12"));
        });
        assert_eq!(run(&far.look()), Outcome::Healthy);
        let direct = Node::calico_worker().with_map(|_| ()).routing(|routing| {
            routing.links.push(testing::link(20, "tunl0", Some("ipip")));
        });
        let direct = direct.routes(|list| {
            list.retain(|old| old.to.to_string() != "10.244.1.0/26");
            list.push(table_route("10.244.1.0/26 10.0.0.6 20 12"));
        });
        assert!(only(&direct).detail.contains("goes through tunl0, which the pool does not use"));
    }

    #[test]
    fn trap_route_reflectors_and_several_next_hops() {
        let reflected = via("10.244.1.0/26 10.0.0.99 2 12").with_map(|map| map.full_mesh = Some(false));
        assert_eq!(run(&reflected.look()), Outcome::Healthy);
        let several = via("10.244.1.0/26 10.0.0.99 2 12").with_map(|_| ());
        let several = alter(several, |route| route.several = true);
        assert_eq!(run(&several.look()), Outcome::Healthy);
    }

    #[test]
    fn a_map_that_knows_no_pool_leaves_calicos_routes_to_memory() {
        let node = via("10.244.1.0/26 10.0.0.6 9 12").without_pools();
        assert_eq!(testing::subjects(&run(&node.look())), ["10.244.1.0/26"]);
    }

    #[test]
    fn without_the_map_a_link_that_leads_elsewhere_is_seen() {
        assert!(only(&via("10.244.1.0/26 10.0.0.6 9 12")).detail.ends_with("leaves by tun0 and no longer by eth0"));
        // Another next hop may be BGP's decision.
        assert_eq!(run(&via("10.244.1.0/26 10.0.0.99 2 12").look()), Outcome::Healthy);
    }

    fn range(route: &str) -> Node {
        Node::ranges(false).routes(|list| {
            list.retain(|old| old.to.to_string() != "10.244.2.0/24");
            list.push(table_route(route));
        })
    }

    #[test]
    fn the_route_to_a_pod_range_leads_elsewhere() {
        assert_eq!(run(&Node::ranges(false).look()), Outcome::Healthy);
        assert_eq!(run(&Node::ranges(true).look()), Outcome::Healthy);
        for (route, how) in [
            ("10.244.2.0/24 10.0.0.8 2 3", "on node n3 leads to 10.0.0.8, which is node n4"),
            ("10.244.2.0/24 10.0.0.200 2 3", "leads to 10.0.0.200, which is no node of the cluster"),
            ("10.244.2.0/24 - 5 3", "leaves by "),
        ] {
            let node = range(route);
            let details = testing::details(&run(&node.look()));
            assert!(details.len() == 1 && details[0].contains(how), "{route}: {details:?}");
        }
        let dropped = range("10.244.2.0/24 - 0 3").routes(|list| {
            list.iter_mut().filter(|it| it.link == 0).for_each(|it| it.kind = RouteKind::Blackhole);
        });
        assert!(testing::details(&run(&dropped.look()))[0].contains("drops the packets"));
    }

    #[test]
    fn trap_a_router_that_always_knew_the_way_to_a_pod_range() {
        let forget = |node: Node| node.remember(|before| before.routes = crate::facts::RouteMemory::default());
        assert_eq!(run(&forget(range("10.244.2.0/24 10.0.0.200 2 3")).look()), Outcome::Healthy);
        assert_eq!(run(&forget(range("10.244.2.0/24 - 5 3")).look()), Outcome::Healthy);
        let moved = forget(range("10.244.2.0/24 10.0.0.8 2 3"));
        assert_eq!(testing::subjects(&run(&moved.look())), ["10.244.2.0/24"], "another node does not know it");
    }

    #[test]
    fn healthy_and_clears_and_unknown() {
        assert_eq!(run(&Node::calico_worker().with_map(|_| ()).look()), Outcome::Healthy);
        assert_eq!(run(&Node::calico_worker().look()), Outcome::Healthy);
        assert!(matches!(run(&Node::worker().look()), Outcome::NotApplicable(_)));
        let blind = Node::worker().edit(|now| now.routing = testing::denied("route dump"));
        assert!(matches!(run(&blind.look()), Outcome::Unknown(_)));
        let early = Node::worker().edit(|now| now.cluster = Seen::not_yet("cluster map"));
        assert!(matches!(run(&early.look()), Outcome::Unknown(_)));
    }
}
