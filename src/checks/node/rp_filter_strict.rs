//! The reverse path filter is strict where packets may come back another way.
//!
//! *Looks at* the effective `rp_filter` (the greater of `conf.all` and the link's own) of tunnels between nodes, and of
//! uplinks whose default route is not the best one of its table: what comes in there from far away is dropped. It is worth
//! knowing as long as the kernel drops next to nothing for it, and a warning when `IPReversePathFilter` grows. *Traps*: loose (2) is
//! fine; strict on the one uplink of a node is the default of some distributions and harms nothing; on Calico's links to
//! pods it is Calico's own choice; next hops of one route are one way (catalogue R087).

use std::collections::BTreeSet;
use std::time::Duration;

use super::super::{Area, Check, Finding, Look, Outcome, Severity, seen};
use crate::facts::{Family, LinkSwitches, MINUTES, RouteKind, Routing};

pub(super) const CHECK: Check = Check {
    code: "RpFilterStrict",
    area: Area::PodRouting,
    severity: Severity::Warning,
    why: "packets whose answer would leave by another link are dropped without a word, so that some peers reach this node's pods and others do not",
    next_step: "set it to loose (`sysctl -w net.ipv4.conf.LINK.rp_filter=2`, and `net.ipv4.conf.all.rp_filter` to 0 or 2) and find who set it (`/etc/sysctl.d`)",
    raise_after: Duration::from_secs(5),
    clear_after: Duration::from_secs(5),
    run,
};

const STRICT: u32 = 1;
/// So many drops in [`MINUTES`] are more than stray packets.
const DROPS: u64 = 10;

fn run(look: &Look<'_>) -> Outcome {
    if !look.expected.worker {
        return Outcome::NotApplicable("this is no Kubernetes worker".into());
    }
    let routing = seen!(look.now.routing, Outcome::NotApplicable("no routes are to be seen here".into()));
    let switches = seen!(look.now.traffic.switches, Outcome::NotApplicable("there is no IPv4 here".into()));
    let second = second_best(routing);
    let drops = look.now.traffic.reverse_path_drops;
    let findings = switches.iter().filter(|it| it.rp_filter == STRICT).filter_map(|it| {
        let what = if second.contains(&it.index) {
            "whose default route is not the best one"
        } else if is_tunnel(routing, it) {
            "which is a tunnel between nodes"
        } else {
            return None;
        };
        let finding = |more: &str| Finding::new(&it.link, format!("rp_filter of {} is strict, {what}{more}", it.link));
        Some(match drops {
            ..DROPS => finding("").severity(Severity::Info),
            drops => finding(&format!(", and {drops} packets were dropped for such reasons in {MINUTES} minutes")),
        })
    });
    Outcome::from_findings(findings.collect())
}

fn is_tunnel(routing: &Routing, switches: &LinkSwitches) -> bool {
    let link = routing.link(switches.index).filter(|link| link.up);
    link.is_some_and(|link| matches!(link.kind.as_deref(), Some("ipip" | "vxlan" | "geneve" | "wireguard")))
}

/// Links of IPv4 default routes that lose against another one of their table.
fn second_best(routing: &Routing) -> BTreeSet<u32> {
    let defaults = || routing.defaults.iter().filter(|it| it.family == Family::V4 && it.kind == RouteKind::Unicast);
    let mut links = BTreeSet::new();
    for route in defaults() {
        let best = defaults().filter(|it| it.table == route.table).min_by_key(|it| it.metric.unwrap_or(0));
        let of = |hops: &[(_, Option<u32>)]| hops.iter().filter_map(|(_, link)| *link).collect::<BTreeSet<u32>>();
        let best = best.map(|best| of(&best.next_hops)).unwrap_or_default();
        links.extend(of(&route.next_hops).difference(&best));
    }
    links
}

#[cfg(test)]
mod tests {
    use super::super::testing::{self, Node, UPLINK};
    use super::*;
    use crate::facts::{Link, Route, Seen};

    const OTHER: u32 = 9;

    /// A worker with another link of this kind, and these filters on both.
    fn with(kind: Option<&str>, uplink: u32, other: u32) -> Node {
        let link = |index, name: &str, rp_filter| LinkSwitches {
            index,
            link: name.into(),
            forwarding: true,
            proxy_arp: false,
            rp_filter,
        };
        let name = if kind.is_some() { "vxlan.calico" } else { "eth1" };
        Node::worker()
            .routing(|routing| {
                let mut added = Link { index: OTHER, name: name.into(), ..routing.links[0].clone() };
                added.kind = kind.map(Into::into);
                routing.links.push(added);
            })
            .edit(|now| {
                now.traffic.switches = Seen::Yes(vec![link(UPLINK, "eth0", uplink), link(OTHER, name, other)]);
            })
    }

    fn second_default(node: Node, table: u32) -> Node {
        node.routing(|routing| {
            let first = routing.defaults[0].clone();
            let next_hops = vec![(Some("192.0.2.1".parse().expect("an address")), Some(OTHER))];
            routing.defaults.push(Route { metric: Some(200), table, next_hops, ..first });
        })
    }

    fn severities(node: &Node) -> Vec<(String, Option<Severity>)> {
        let Outcome::Findings(findings) = run(&node.look()) else { return vec![] };
        findings.into_iter().map(|finding| (finding.subject, finding.severity)).collect()
    }

    #[test]
    fn a_tunnel_and_a_second_uplink() {
        let info = Some(Severity::Info);
        assert_eq!(severities(&with(Some("vxlan"), 0, 1)), [("vxlan.calico".to_owned(), info)]);
        let node = second_default(with(None, 1, 1), 254);
        assert_eq!(severities(&node), [("eth1".to_owned(), info)], "the best default route is not asymmetric");
    }

    #[test]
    fn worse_when_packets_are_dropped() {
        let node = with(Some("ipip"), 0, 1).edit(|now| now.traffic.reverse_path_drops = 12);
        assert_eq!(severities(&node), [("vxlan.calico".to_owned(), None)]);
        assert!(testing::details(&run(&node.look()))[0].contains("12 packets were dropped"));
        let node = node.edit(|now| now.traffic.reverse_path_drops = 9);
        assert_eq!(severities(&node), [("vxlan.calico".to_owned(), Some(Severity::Info))]);
    }

    #[test]
    fn healthy_and_clears() {
        assert_eq!(run(&Node::worker().look()), Outcome::Healthy);
        assert_eq!(run(&with(Some("vxlan"), 0, 0).look()), Outcome::Healthy);
    }

    #[test]
    fn trap_loose_one_uplink_and_calicos_own_choice() {
        assert_eq!(run(&with(Some("vxlan"), 0, 2).look()), Outcome::Healthy);
        assert_eq!(run(&with(None, 1, 0).look()), Outcome::Healthy, "strict on the only uplink");
        assert_eq!(run(&with(Some("veth"), 1, 1).look()), Outcome::Healthy, "a link to a pod");
    }

    #[test]
    fn trap_a_default_route_of_its_own_table_and_two_next_hops_of_one_route() {
        assert_eq!(run(&second_default(with(None, 1, 1), 100).look()), Outcome::Healthy);
        let node = with(None, 1, 1).routing(|routing| {
            let hop = (Some("192.0.2.1".parse().expect("an address")), Some(OTHER));
            routing.defaults[0].next_hops.push(hop);
        });
        assert_eq!(run(&node.look()), Outcome::Healthy);
    }

    #[test]
    fn trap_a_plain_machine() {
        assert!(matches!(run(&Node::plain_machine().look()), Outcome::NotApplicable(_)));
    }

    #[test]
    fn unknown_when_the_switches_cannot_be_read() {
        let node = Node::worker().edit(|now| now.traffic.switches = testing::denied("netconf dump"));
        assert!(matches!(run(&node.look()), Outcome::Unknown(_)));
    }
}
