//! The tunnel to other nodes is missing, down or without an address.
//!
//! *Looks at* the device that the pools ask for (`tunl0`, `vxlan.calico`, `vxlan-v6.calico`), or that routes to other nodes
//! used earlier in this boot. Right is a device that is up and has an address. *Traps*: `CrossSubnet` where all nodes are in
//! one subnet needs none; a pool that changed its mode while nobody can be asked; no other node has a block; a node that no
//! pool selects has no address for its end (catalogue R086).

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use super::super::routes::{NEW_BLOCK, calico_map, pool_of, tunnel_to};
use super::super::{Area, Check, Finding, Look, Outcome, Severity, not_yet, seen};
use crate::facts::{ClusterMap, Routing};

pub(super) const CHECK: Check = Check {
    code: "TunnelDeviceMissing",
    area: Area::PodRouting,
    severity: Severity::Critical,
    why: "packets to pods of nodes behind the tunnel are lost",
    next_step: "see whether the kernel has the module (`modprobe ipip`, `modprobe vxlan`) and who removed the device; then delete the calico-node pod here so that it makes it again",
    raise_after: Duration::from_millis(500),
    clear_after: Duration::from_secs(2),
    run,
};

/// Felix looks at its tunnels every 10 s (`ipip_mgr.go`, `vxlan_mgr.go`), plus a margin.
const FELIX_REPAIRS: Duration = Duration::from_secs(15);

fn run(look: &Look<'_>) -> Outcome {
    let routing = seen!(look.now.routing, Outcome::NotApplicable("no links are to be seen here".into()));
    if not_yet(&look.now.cluster) {
        return Outcome::Unknown("cluster map: not looked at yet".into());
    }
    let used = &look.before.routes.tunnels;
    let needed = calico_map(look).map_or_else(|| by_memory(routing, used), |map| by_pools(routing, map));
    if needed.is_empty() {
        return Outcome::NotApplicable("no packets between nodes go through a tunnel here".into());
    }
    // A node that no pool selects has no address for its end.
    let addressed =
        calico_map(look).and_then(ClusterMap::this).is_none_or(|this| !this.tunnels.is_empty() || !used.is_empty());
    let findings = needed.into_iter().filter_map(|(name, user)| {
        let wrong = wrong(routing, &name, addressed)?;
        let finding = Finding::new(name.clone(), format!("The tunnel {name}, which {user} need, {wrong}"));
        Some(match () {
            () if look.now.felix_lives() && used.contains(&name) => finding.repaired_within(FELIX_REPAIRS),
            () if look.now.felix_lives() => finding.repaired_within(NEW_BLOCK),
            () => finding,
        })
    });
    Outcome::from_findings(findings.collect())
}

/// Tunnels, and the pool that needs each.
fn by_pools(routing: &Routing, map: &ClusterMap) -> BTreeMap<String, String> {
    let mut needed = BTreeMap::new();
    for node in map.others().filter(|node| !node.addresses.is_empty()) {
        for pool in node.blocks.iter().filter_map(|block| pool_of(map, *block)) {
            if let Some(tunnel) = tunnel_to(routing, pool, node) {
                needed.entry(tunnel.to_owned()).or_insert_with(|| format!("blocks of the pool {}", pool.name));
            }
        }
    }
    needed
}

/// Tunnels that were used. A pool that no longer asks for one has routes by another link.
fn by_memory(routing: &Routing, used: &BTreeSet<String>) -> BTreeMap<String, String> {
    let replaced =
        |name: &str| !routing.links.iter().any(|link| link.name == name) && routing.remote_routes().next().is_some();
    let needed = used.iter().filter(|name| !replaced(name));
    needed.map(|name| (name.clone(), "routes to other nodes".into())).collect()
}

fn wrong(routing: &Routing, name: &str, addressed: bool) -> Option<&'static str> {
    let Some(link) = routing.links.iter().find(|link| link.name == name) else { return Some("does not exist") };
    let address = routing.addresses.iter().any(|address| address.link == link.index && address.global);
    match () {
        () if !link.up => Some("is down"),
        () if addressed && !address => Some("has no address"),
        () => None,
    }
}

#[cfg(test)]
mod tests {
    use super::super::testing::{self, Node, link};
    use super::*;
    use crate::facts::{Address, Encapsulation};

    fn tunnel(node: Node, name: &str) -> Node {
        let name = name.to_owned();
        node.routing(move |routing| {
            routing.links.push(link(20, &name, None));
            let address = "10.244.0.1".parse().expect("an address");
            routing.addresses.push(Address { link: 20, address, prefix: 32, global: true });
        })
    }

    fn vxlan() -> Node {
        Node::calico_worker().with_map(|map| {
            map.pools[0].vxlan = Encapsulation::Always;
            map.nodes[0].tunnels = vec!["10.244.0.1".parse().expect("an address")];
        })
    }

    #[test]
    fn missing_down_and_without_address() {
        assert_eq!(testing::subjects(&run(&vxlan().look())), ["vxlan.calico"]);
        let ipip = Node::calico_worker().with_map(|map| map.pools[0].ipip = Encapsulation::Always);
        let detail = &testing::details(&run(&ipip.look()))[0];
        assert_eq!(detail, "The tunnel tunl0, which blocks of the pool default need, does not exist");
        let down = tunnel(vxlan(), "vxlan.calico").routing(|routing| {
            routing.links.last_mut().expect("the tunnel").up = false;
        });
        assert!(testing::details(&run(&down.look()))[0].ends_with("is down"));
        let bare = tunnel(vxlan(), "vxlan.calico").routing(|routing| _ = routing.addresses.pop());
        assert!(testing::details(&run(&bare.look()))[0].ends_with("has no address"));
        let unselected = bare.with_map(|map| map.nodes[0].tunnels.clear());
        assert_eq!(run(&unselected.look()), Outcome::Healthy);
    }

    #[test]
    fn healthy_and_clears() {
        assert_eq!(run(&tunnel(vxlan(), "vxlan.calico").look()), Outcome::Healthy);
    }

    #[test]
    fn trap_cross_subnet_in_one_subnet() {
        let node = Node::calico_worker().with_map(|map| map.pools[0].ipip = Encapsulation::CrossSubnet);
        assert!(matches!(run(&node.look()), Outcome::NotApplicable(_)));
        let far = node.with_map(|map| map.nodes[1].addresses = vec!["10.9.0.6".parse().expect("an address")]);
        assert_eq!(testing::subjects(&run(&far.look())), ["tunl0"]);
    }

    #[test]
    fn without_the_map_one_that_was_used() {
        let used = |node: Node| node.remember(|before| _ = before.routes.tunnels.insert("vxlan.calico".into()));
        let gone = used(Node::calico_worker().routes(|list| list.retain(|route| route.gateway.is_none())));
        assert_eq!(testing::subjects(&run(&gone.look())), ["vxlan.calico"]);
        // The pool changed its mode: there are routes by another link.
        assert!(matches!(run(&used(Node::calico_worker()).look()), Outcome::NotApplicable(_)));
        assert!(matches!(run(&Node::worker().look()), Outcome::NotApplicable(_)));
    }

    #[test]
    fn unknown_when_links_cannot_be_read() {
        let blind = Node::worker().edit(|now| now.routing = testing::denied("link dump"));
        assert!(matches!(run(&blind.look()), Outcome::Unknown(_)));
    }
}
