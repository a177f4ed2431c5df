//! Pods of another node have no route.
//!
//! *Looks at* the routes of the table `main`, at every other node's blocks as the cluster tells them, and at the routes that
//! this boot had. Right is a route to each block, exact or wider, written by BIRD or Felix; without Calico one to each
//! `podCIDR` where such routes are usual on this node ([`pod_ranges`]). *Traps*: a block that is new;
//! a node that is not Ready, whose routes BGP withdraws; BIRD, which puts a route back within 2 s; a block that was given
//! back while nobody can be asked; clusters whose network routes blocks itself (catalogue R082).

use std::collections::BTreeMap;
use std::time::Duration;

use ipnet::IpNet;

use super::super::pod_ranges;
use super::super::routes::{NEW_BLOCK, calico_map, is_at, map_lag, pool_of, repaired, written};
use super::super::{Area, Check, Finding, Look, Outcome, Severity, not_yet, seen};
use crate::facts::{ClusterMap, ClusterNode, Encapsulation, Program, RouteKind, Routing, TableRoute};

pub(super) const CHECK: Check = Check {
    code: "RemoteBlockRouteMissing",
    area: Area::PodRouting,
    severity: Severity::Critical,
    why: "pods of this node cannot reach the pods there, nor get answers to them",
    next_step: "check how calico-node here gets routes (BIRD: `birdcl show protocols`; VXLAN: Felix's log) and delete its pod so that it programs them again",
    raise_after: Duration::from_millis(500),
    clear_after: Duration::from_secs(2),
    run,
};

/// From this many nodes on one finding tells of all.
const MANY: usize = 16;
/// So many blocks or nodes are named.
const NAMED: usize = 3;

fn run(look: &Look<'_>) -> Outcome {
    let routing = seen!(look.now.routing, Outcome::NotApplicable("no routes are to be seen here".into()));
    if not_yet(&look.now.cluster) {
        return Outcome::Unknown("cluster map: not looked at yet".into());
    }
    if routing.routes.beyond > 0 {
        return Outcome::NotApplicable(format!(
            "there are {} routes more than are looked at one by one",
            routing.routes.beyond
        ));
    }
    if let Some(map) = calico_map(look) {
        return by_the_map(look, routing, map);
    }
    pod_ranges::judged(look, routing, |ranges| together(ranges.missing()), || by_memory(look, routing))
}

fn by_the_map(look: &Look<'_>, routing: &Routing, map: &ClusterMap) -> Outcome {
    let memory = &look.before.routes;
    let bird = look.before.programs.contains(&Program::Bird)
        || look.now.processes.get().is_some_and(|processes| processes.of(Program::Bird).is_some());
    let programmed = bird || !memory.remote.is_empty() || routing.remote_routes().next().is_some();
    let this = map.this();
    let expected = |block: IpNet| {
        pool_of(map, block).is_some_and(|pool| programmed || pool.vxlan != Encapsulation::Never)
            && this.is_none_or(|this| !this.blocks.contains(&block))
    };
    let mut findings = Vec::new();
    let mut judged = false;
    for node in map.others() {
        let blocks: Vec<IpNet> = node.blocks.iter().copied().filter(|block| expected(*block)).collect();
        judged |= !blocks.is_empty();
        let missing: Vec<IpNet> = blocks.into_iter().filter(|block| !routed(routing, node, *block)).collect();
        if let Some(first) = missing.first() {
            findings.push(finding(look, routing, map, node, *first, &missing));
        }
    }
    if !judged {
        return Outcome::NotApplicable("nobody on this node writes routes to blocks of other nodes".into());
    }
    Outcome::from_findings(together(findings))
}

/// Whether something routes the block: what is exactly about it and wrong is another finding.
fn routed(routing: &Routing, node: &ClusterNode, block: IpNet) -> bool {
    let Some(best) = routing.routes.best_in_main(block).filter(|route| route.to.prefix_len() > 0) else { return false };
    let tunnel = || routing.link(best.link).is_some_and(crate::facts::Link::is_tunnel);
    let right = || best.gateway.is_some_and(|gateway| is_at(node, gateway));
    best.to == block || (best.kind == RouteKind::Unicast && (best.is_calicos() || tunnel() || right()))
}

fn finding(
    look: &Look<'_>,
    routing: &Routing,
    map: &ClusterMap,
    node: &ClusterNode,
    first: IpNet,
    missing: &[IpNet],
) -> Finding {
    let before = missing.iter().find_map(|block| look.before.routes.remote(*block));
    let instead = match routing.routes.best_in_main(first) {
        Some(route) => format!("packets to it would take `{}`", written(routing, route)),
        None => "there is no way to it at all".to_owned(),
    };
    let detail = format!("Pods of node {} in {} have no route; {instead}", node.name, named(missing));
    let finding = Finding::new(node.name.clone(), detail);
    let finding = if node.ready { finding } else { finding.severity(Severity::Info) };
    let vxlan = pool_of(map, first).is_some_and(|pool| pool.vxlan != Encapsulation::Never);
    match before {
        // Whoever lives took it away, as it does when the node leaves the cluster: the map may not say so yet.
        Some(before) if look.now.owner_lives(before) => finding.repaired_within(map_lag(map)),
        Some(_) => finding,
        None if vxlan && look.now.felix_lives() => finding.repaired_within(map_lag(map)),
        None => finding.repaired_within(NEW_BLOCK),
    }
}

/// Without the cluster's word: routes that are gone and that nobody alive took away.
fn by_memory(look: &Look<'_>, routing: &Routing) -> Outcome {
    let memory = &look.before.routes.remote;
    if memory.is_empty() {
        return Outcome::NotApplicable("this node had no routes to pods of other nodes in this boot".into());
    }
    if look.before.routes.matches(routing) {
        return Outcome::Healthy;
    }
    let all = routing.remote_routes().next().is_none();
    let mut gone: BTreeMap<String, Vec<&TableRoute>> = BTreeMap::new();
    for route in memory {
        // Wider ones that BIRD wrote do as well.
        let still = routing.routes.best_in_main(route.to).is_some_and(|now| now.to == route.to || now.is_calicos());
        if !still && (all || !look.now.owner_lives(route)) {
            let gateway = route.gateway.map_or_else(String::new, |gateway| gateway.to_string());
            gone.entry(gateway).or_default().push(route);
        }
    }
    if all && gone.len() < 2 && memory.iter().all(|route| look.now.owner_lives(route)) {
        // One other node: it may have left the cluster.
        return Outcome::Healthy;
    }
    let findings = gone.into_iter().map(|(gateway, routes)| {
        let blocks: Vec<IpNet> = routes.iter().map(|route| route.to).collect();
        let detail = format!("The routes to pods behind {gateway}, {}, are gone", named(&blocks));
        repaired(look, routes[0], Finding::new(gateway, detail))
    });
    Outcome::from_findings(together(findings.collect()))
}

fn named(blocks: &[IpNet]) -> String {
    let names: Vec<String> = blocks.iter().take(NAMED).map(ToString::to_string).collect();
    let more = blocks.len().saturating_sub(NAMED);
    if more == 0 { names.join(", ") } else { format!("{} and {more} more", names.join(", ")) }
}

/// One finding for all when there are many.
fn together(mut findings: Vec<Finding>) -> Vec<Finding> {
    let problems = findings.iter().filter(|finding| finding.severity != Some(Severity::Info)).count();
    if problems < MANY {
        return findings;
    }
    findings.retain(|finding| finding.severity != Some(Severity::Info));
    findings.sort_by(|a, b| a.subject.cmp(&b.subject));
    let names: Vec<&str> = findings.iter().take(NAMED).map(|finding| finding.subject.as_str()).collect();
    let detail = format!("Pods of {problems} other nodes have no route: {}, ...", names.join(", "));
    let wait = findings.iter().filter_map(|finding| finding.owner_repairs_within).min();
    let joined = Finding::new("other nodes", detail);
    vec![wait.map_or(joined.clone(), |wait| joined.repaired_within(wait))]
}

#[cfg(test)]
mod tests {
    use super::super::super::routes::FELIX_REFRESH;
    use super::super::testing::{self, Node, denied};
    use super::*;
    use crate::facts::Seen;

    fn gone() -> Node {
        Node::calico_worker().routes(|list| list.retain(|route| route.to.to_string() != "10.244.1.0/26"))
    }

    fn only(node: &Node) -> Finding {
        let Outcome::Findings(findings) = run(&node.look()) else { panic!("a finding, not {:?}", run(&node.look())) };
        assert_eq!(findings.len(), 1, "{findings:?}");
        findings[0].clone()
    }

    #[test]
    fn a_block_without_a_route_counts_at_once_when_nobody_alive_repairs_it() {
        let node = gone().with_map(|_| ()).without(Program::Bird);
        let finding = only(&node);
        assert_eq!(finding.subject, "n2");
        assert!(finding.detail.contains("10.244.1.0/26 have no route; packets to it would take `default via 10.0.0.1"));
        assert_eq!((finding.owner_repairs_within, finding.severity), (None, None));
    }

    #[test]
    fn trap_more_routes_than_are_kept() {
        let node = gone().with_map(|_| ()).routing(|routing| routing.routes.beyond = 1);
        assert!(matches!(run(&node.look()), Outcome::NotApplicable(_)));
    }

    #[test]
    fn trap_bird_alive_took_it_away_because_the_node_left() {
        let wait = only(&gone().with_map(|_| ())).owner_repairs_within;
        assert_eq!(wait, Some(FELIX_REFRESH));
    }

    #[test]
    fn trap_a_block_that_is_new() {
        let node = Node::calico_worker().with_map(|map| {
            map.nodes[1].blocks.push("10.244.9.0/26".parse().expect("a block"));
        });
        assert_eq!(only(&node).owner_repairs_within, Some(NEW_BLOCK));
    }

    #[test]
    fn trap_a_node_that_is_not_ready() {
        let node = gone().with_map(|map| map.nodes[1].ready = false);
        assert_eq!(only(&node).severity, Some(Severity::Info));
    }

    #[test]
    fn trap_a_wider_route_of_bird_and_a_network_that_routes_blocks_itself() {
        let wide = gone().routes(|list| list.push(testing::table_route("10.244.0.0/16 10.0.0.6 2 12")));
        assert_eq!(run(&wide.with_map(|_| ()).look()), Outcome::Healthy);
        let none = Node::calico_worker().routes(|list| list.retain(|route| route.gateway.is_none()));
        let none = none.remember(|before| before.routes.remote.clear()).with_map(|_| ()).without(Program::Bird);
        assert!(matches!(run(&none.look()), Outcome::NotApplicable(_)));
    }

    #[test]
    fn a_wider_route_of_somebody_else_is_no_route() {
        let node = gone().routes(|list| list.push(testing::table_route("10.0.0.0/8 192.0.2.9 9 4")));
        assert!(only(&node.with_map(|_| ())).detail.contains("`10.0.0.0/8 via 192.0.2.9 dev tun0 proto static`"));
    }

    #[test]
    fn trap_blocks_of_a_node_that_has_left() {
        assert_eq!(run(&gone().with_map(|map| map.nodes.truncate(1)).look()), {
            Outcome::NotApplicable("nobody on this node writes routes to blocks of other nodes".into())
        });
        // Nobody can be asked, and BIRD lives: it took the route away.
        assert_eq!(run(&gone().look()), Outcome::Healthy);
    }

    #[test]
    fn without_the_map_a_route_that_nobody_alive_took_away_is_missed() {
        let finding = only(&gone().without(Program::Bird));
        assert_eq!(finding.subject, "10.0.0.6");
        assert_eq!(finding.owner_repairs_within, None);
        let all = Node::calico_worker().routes(|list| list.retain(|route| route.gateway.is_none()));
        assert_eq!(testing::subjects(&run(&all.look())), ["10.0.0.6", "10.0.0.8"]);
    }

    #[test]
    fn a_map_that_knows_no_pool_leaves_calicos_routes_to_memory() {
        assert_eq!(only(&gone().without(Program::Bird).without_pools()).subject, "10.0.0.6");
        assert_eq!(run(&Node::calico_worker().without_pools().look()), Outcome::Healthy);
    }

    #[test]
    fn many_nodes_are_one_finding() {
        let node = gone().with_map(|map| {
            for number in 0..20 {
                let mut other = map.nodes[1].clone();
                other.name = format!("m{number:02}");
                other.blocks = vec![format!("10.244.{}.0/26", 100 + number).parse().expect("a block")];
                map.nodes.push(other);
            }
        });
        let finding = only(&node);
        assert_eq!(finding.subject, "other nodes");
        assert!(finding.detail.starts_with("Pods of 21 other nodes have no route: m00, m01, m02"), "{finding:?}");
    }

    fn without(node: Node, range: &str) -> Node {
        node.routes(|list| list.retain(|route| route.to.to_string() != range))
    }

    #[test]
    fn a_pod_range_without_its_route_where_such_routes_are_usual() {
        for tunnel in [false, true] {
            assert_eq!(run(&Node::ranges(tunnel).look()), Outcome::Healthy);
            let node = without(Node::ranges(tunnel), "10.244.2.0/24");
            let finding = only(&node);
            assert_eq!((finding.subject.as_str(), finding.severity), ("n3", None));
            assert!(
                finding.detail.contains("10.244.2.0/24 have no route; packets to it would take `default via 10.0.0.1")
            );
            assert!(finding.next_step.is_some_and(|step| step.contains("kube-flannel")));
            assert_eq!(finding.owner_repairs_within, Some(FELIX_REFRESH), "the map may be late");
            // It was never there: that it should be follows from the others.
            let node = node.remember(|before| before.routes = crate::facts::RouteMemory::default());
            assert_eq!(only(&node).severity, Some(Severity::Warning));
            let gone = node.with_map(|map| _ = map.nodes.remove(2));
            assert_eq!(run(&gone.look()), Outcome::Healthy, "the node has left");
        }
    }

    #[test]
    fn all_pod_ranges_lose_their_routes() {
        let node = Node::ranges(false)
            .routes(|list| list.retain(|route| route.to.prefix_len() == 0 || route.gateway.is_none()));
        assert_eq!(testing::subjects(&run(&node.look())), ["n2", "n3", "n4", "n5", "n6"]);
        let forgotten = node.remember(|before| before.routes = crate::facts::RouteMemory::default());
        assert!(matches!(run(&forgotten.look()), Outcome::NotApplicable(_)), "nobody knows that there were any");
    }

    #[test]
    fn trap_networks_that_need_no_route_to_a_pod_range() {
        let bare = |route: Option<&str>| {
            let node = Node::ranges(false).routes(|list| {
                list.retain(|route| route.to.prefix_len() == 0 || route.gateway.is_none());
                list.extend(route.map(testing::table_route));
            });
            node.remember(|before| before.routes = crate::facts::RouteMemory::default())
        };
        // A cloud that routes pods itself; one route for all, of an overlay; a static one to a router.
        for route in [None, Some("10.244.0.0/16 10.244.0.1 9 3"), Some("10.244.0.0/16 10.0.0.200 2 4")] {
            assert!(matches!(run(&bare(route).look()), Outcome::NotApplicable(_)), "{route:?}");
        }
        // A wider route that is somebody's way to do it.
        let wide = without(Node::ranges(false), "10.244.2.0/24");
        let wide = wide.routes(|list| list.push(testing::table_route("10.244.2.0/23 10.0.0.200 2 4")));
        assert_eq!(run(&wide.look()), Outcome::Healthy);
    }

    #[test]
    fn trap_nodes_that_are_not_like_the_others() {
        let new = |address: &str| {
            Node::ranges(false).with_map(|map| {
                let mut node = map.nodes[1].clone();
                (node.name, node.addresses) = ("new".into(), vec![address.parse().expect("an address")]);
                node.blocks = vec!["10.244.77.0/24".parse().expect("a range")];
                map.nodes.push(node);
            })
        };
        assert_eq!(testing::subjects(&run(&new("10.0.0.77").look())), ["new"]);
        assert_eq!(run(&new("10.9.9.9").look()), Outcome::Healthy, "another subnet, which a router knows");
        assert_eq!(run(&new("10.244.3.9").look()), Outcome::Healthy, "a virtual kubelet, which is a pod");
        let down = new("10.0.0.77").with_map(|map| map.nodes[6].ready = false);
        assert_eq!(run(&down.look()), Outcome::Healthy, "its daemon may not run");
        let down = without(Node::ranges(false), "10.244.2.0/24").with_map(|map| map.nodes[2].ready = false);
        assert_eq!(only(&down).severity, Some(Severity::Info));
    }

    #[test]
    fn trap_flannel_takes_a_route_away_while_nobody_can_be_asked() {
        let node = without(Node::ranges(true), "10.244.2.0/24").edit(|now| now.cluster = Seen::Absent);
        assert_eq!(run(&node.look()), Outcome::Healthy);
    }

    #[test]
    fn healthy_and_clears_and_unknown() {
        assert_eq!(run(&Node::calico_worker().with_map(|_| ()).look()), Outcome::Healthy);
        assert_eq!(run(&Node::calico_worker().look()), Outcome::Healthy);
        assert!(matches!(run(&Node::worker().look()), Outcome::NotApplicable(_)));
        let blind = Node::worker().edit(|now| now.routing = denied("route dump"));
        assert!(matches!(run(&blind.look()), Outcome::Unknown(_)));
        let early = Node::worker().edit(|now| now.cluster = Seen::not_yet("cluster map"));
        assert!(matches!(run(&early.look()), Outcome::Unknown(_)));
    }
}
