//! An interface of a virtual private network appeared since the agent's first look of this boot.
//!
//! *Looks at* the kinds of links: tun, wireguard, ppp, xfrm, vti. Worth knowing only: what it breaks is told by the findings
//! about routes and rules, and this one says since when it is there. *Traps*: what was there at the first look; the CNI's own
//! (Calico, Cilium, flannel, Kilo) (catalogue R084).

use std::time::Duration;

use super::super::{Area, Check, Finding, Look, Outcome, Severity, seen};

pub(super) const CHECK: Check = Check {
    code: "VpnInterfaceAdded",
    area: Area::PodRouting,
    severity: Severity::Info,
    why: "VPN clients bring routes, rules and IPsec policies that can capture the cluster's prefixes",
    next_step: "compare its time with that of other findings, and see what it routes: `ip route show table all dev NAME`, `ip rule`",
    raise_after: Duration::from_secs(5),
    clear_after: Duration::from_secs(5),
    run,
};

fn run(look: &Look<'_>) -> Outcome {
    let routing = seen!(look.now.routing, Outcome::NotApplicable("no links are to be seen here".into()));
    let Some(first) = &look.before.routes.first else {
        return Outcome::NotApplicable("this is the first look".into());
    };
    let added = routing.links.iter().filter(|link| link.is_vpn() && !first.vpns.contains(&link.name)).map(|link| {
        let kind = link.kind.as_deref().unwrap_or_default();
        Finding::new(link.name.clone(), format!("The interface {} of kind {kind} was added", link.name))
    });
    Outcome::from_findings(added.collect())
}

#[cfg(test)]
mod tests {
    use super::super::testing::{self, Node, link};
    use super::*;
    use crate::facts::FirstLook;

    fn with(name: &str, kind: &str) -> Node {
        let node = Node::worker().remember(|before| before.routes.first = Some(FirstLook::default()));
        node.routing(|routing| routing.links.push(link(30, name, Some(kind))))
    }

    #[test]
    fn a_vpn_that_came() {
        for kind in ["tun", "wireguard", "ppp", "xfrm", "vti"] {
            assert_eq!(testing::subjects(&run(&with("vpn0", kind).look())), ["vpn0"]);
        }
    }

    #[test]
    fn healthy_and_clears() {
        let node = with("vpn0", "tun");
        assert!(matches!(run(&node.look()), Outcome::Findings(_)));
        let gone = node.routing(|routing| routing.links.retain(|link| link.name != "vpn0"));
        assert_eq!(run(&gone.look()), Outcome::Healthy, "it was deleted");
    }

    #[test]
    fn trap_interfaces_that_were_there_first_or_are_somebodys_own() {
        for (name, kind) in [("wireguard.cali", "wireguard"), ("cilium_wg0", "wireguard"), ("docker0", "bridge")] {
            assert_eq!(run(&with(name, kind).look()), Outcome::Healthy, "{name}");
        }
        let first = with("vpn0", "tun").remember(|before| {
            before.routes.first.as_mut().expect("set").vpns.insert("vpn0".into());
        });
        assert_eq!(run(&first.look()), Outcome::Healthy);
        assert!(matches!(run(&Node::worker().look()), Outcome::NotApplicable(_)));
    }

    #[test]
    fn unknown_when_links_cannot_be_read() {
        let node = Node::worker().edit(|now| now.routing = testing::denied("link dump"));
        assert!(matches!(run(&node.look()), Outcome::Unknown(_)));
    }
}
