//! Packets of pods are longer than the way to other nodes allows.
//!
//! *Looks at* the MTU of uplinks, of tunnels that routes to other nodes use, and of pods' links. Right is a tunnel that leaves
//! room for its header, and pods' links that are no longer than the tunnel or, without one, the uplink. That the kernel counts
//! packets which were too long for their way is told with it, and no fault by itself: finding out the MTU of a path does that
//! too. *Traps*: lower than
//! needed is harmless; a tunnel that nothing uses; several uplinks, of which the longest counts; pods keep the MTU that
//! they were made with (catalogue R085).

use std::fmt::Write as _;
use std::time::Duration;

use super::super::{Area, Check, Finding, Look, Outcome, Severity, seen};
use crate::facts::{Link, MINUTES, Routing};

pub(super) const CHECK: Check = Check {
    code: "MtuMismatch",
    area: Area::PodRouting,
    severity: Severity::Warning,
    why: "long packets between nodes are dropped or fragmented: connections open and then hang",
    next_step: "set Calico's MTU to that of the uplink less the tunnel's header (FelixConfiguration `mtuIfacePattern`, or `veth_mtu` of the ConfigMap calico-config) and restart the pods of this node",
    raise_after: Duration::from_secs(5),
    clear_after: Duration::from_secs(5),
    run,
};

/// Bytes that a tunnel adds to a packet (facts.md B.3).
const OVERHEADS: [(&str, u32); 5] =
    [("tunl0", 20), ("vxlan.calico", 50), ("vxlan-v6.calico", 70), ("wireguard.cali", 60), ("wg-v6.cali", 80)];

fn run(look: &Look<'_>) -> Outcome {
    let routing = seen!(look.now.routing, Outcome::NotApplicable("no links are to be seen here".into()));
    let uplinks = routing.uplinks().filter_map(|index| routing.link(index)).filter(|link| !link.is_vpn());
    let Some(uplink) = uplinks.max_by_key(|link| link.mtu) else {
        return Outcome::NotApplicable("no link carries a default route".into());
    };
    let mut way = None;
    let mut findings = Vec::new();
    for (name, overhead) in OVERHEADS {
        let Some(link) = routing.links.iter().find(|link| link.name == name && link.up) else { continue };
        if !routing.remote_routes().any(|route| route.link == link.index) && !name.starts_with('w') {
            continue;
        }
        way = Some(way.map_or(link, |other: &Link| if other.mtu < link.mtu { other } else { link }));
        if link.mtu + overhead > uplink.mtu {
            let detail = format!(
                "The MTU of {name} is {}, and of {} {}: there is no room for the {overhead} bytes of the tunnel's header",
                link.mtu, uplink.name, uplink.mtu
            );
            findings.push(Finding::new(name, detail));
        }
    }
    let pods: Vec<&Link> = routing.links.iter().filter(|link| link.name.starts_with("cali")).collect();
    if pods.is_empty() && way.is_none() {
        return Outcome::NotApplicable("no pods' links of Calico and no tunnel in use".into());
    }
    findings.extend(too_long(routing, &pods, way, uplink));
    if look.now.traffic.too_long > 0 {
        for finding in &mut findings {
            // How many would change with each look.
            let said = "packets that were too long for their way have come by in the last";
            write!(finding.detail, "; {said} {MINUTES} minutes").ok();
        }
    }
    Outcome::from_findings(findings)
}

/// One finding for all pods' links that are longer than the tunnel, or than the uplink where there is none.
fn too_long(routing: &Routing, pods: &[&Link], way: Option<&Link>, uplink: &Link) -> Option<Finding> {
    // Without routes to other nodes nothing says which way pods' packets take.
    let limit = way.or_else(|| routing.remote_routes().next().map(|_| uplink))?;
    let long: Vec<&&Link> = pods.iter().filter(|link| link.mtu > limit.mtu).collect();
    let first = long.first()?;
    let (count, links) = (long.len(), if long.len() == 1 { "link" } else { "links" });
    let detail = format!(
        "The MTU of {count} {links} of pods is larger than that of {}, {}: {} has {}",
        limit.name, limit.mtu, first.name, first.mtu
    );
    Some(Finding::new("pods", detail))
}

#[cfg(test)]
mod tests {
    use super::super::testing::{self, Node, POD_LINK, UPLINK, link, table_route};
    use super::*;

    /// Tunnel and pods with these MTUs, on an uplink of 1500.
    fn with(name: &str, tunnel: u32, pod: u32) -> Node {
        let name = name.to_owned();
        Node::calico_worker()
            .routing(move |routing| {
                routing.links.push(Link { mtu: tunnel, ..link(20, &name, None) });
                routing.links.iter_mut().filter(|link| link.index == POD_LINK).for_each(|link| link.mtu = pod);
            })
            .routes(|list| list.push(table_route("10.244.5.0/26 10.0.0.6 20 12")))
    }

    #[test]
    fn a_tunnel_without_room_for_its_header() {
        for (name, fits) in [("tunl0", 1480), ("vxlan.calico", 1450), ("wireguard.cali", 1440)] {
            assert_eq!(run(&with(name, fits, fits).look()), Outcome::Healthy, "{name}");
            assert_eq!(testing::subjects(&run(&with(name, fits + 1, fits).look())), [name]);
        }
    }

    #[test]
    fn pods_longer_than_the_way() {
        let outcome = run(&with("tunl0", 1480, 1500).look());
        assert_eq!(testing::subjects(&outcome), ["pods"]);
        assert!(testing::details(&outcome)[0].ends_with("cali0 has 1500"), "{outcome:?}");
        let direct = Node::calico_worker().routing(|routing| {
            routing.links.iter_mut().filter(|link| link.index == UPLINK).for_each(|link| link.mtu = 1400);
        });
        assert_eq!(testing::subjects(&run(&direct.look())), ["pods"]);
    }

    #[test]
    fn packets_that_were_too_long_are_told_and_no_fault() {
        let counted = |node: Node| node.edit(|now| now.traffic.too_long = 7);
        let details = testing::details(&run(&counted(with("tunl0", 1480, 1500)).look()));
        assert!(details[0].ends_with("have come by in the last 5 minutes"), "{details:?}");
        assert_eq!(run(&counted(with("tunl0", 1480, 1480)).look()), Outcome::Healthy);
    }

    #[test]
    fn trap_lower_is_harmless_and_an_unused_tunnel_does_not_count() {
        assert_eq!(run(&with("tunl0", 1400, 1300).look()), Outcome::Healthy);
        let unused = with("tunl0", 1500, 1500).routes(|list| list.retain(|route| route.link != 20));
        assert_eq!(run(&unused.look()), Outcome::Healthy);
    }

    #[test]
    fn healthy_and_clears_and_unknown() {
        assert_eq!(run(&Node::calico_worker().look()), Outcome::Healthy);
        assert!(matches!(run(&Node::worker().look()), Outcome::NotApplicable(_)));
        let blind = Node::worker().edit(|now| now.routing = testing::denied("link dump"));
        assert!(matches!(run(&blind.look()), Outcome::Unknown(_)));
    }
}
