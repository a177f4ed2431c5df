//! A firewall between this worker and its control plane drops or rejects what the worker sends.
//!
//! *Looks at* where TCP ends on the ways to the control plane, and at what shows that it is neither the other end nor this
//! node: the same host answers at another port, or several API servers are silent at once while other nodes answer.
//! *Traps*: a rule of this node's own looks the same (MasterUnreachable names it); one server that is silent may be off; a gateway
//! that does not answer comes first; a node without a public address is a design and no fault, but such a node needs a
//! way to a public endpoint (catalogue R006, R019, R050).

use std::net::IpAddr;
use std::time::Duration;

use super::super::path;
use super::super::{Area, Check, Finding, Look, Outcome, Severity, seen};
use super::vpe_gateway_suspected;
use crate::facts::{ControlPlanePath, FaultKind, NeighbourState, PathLeg, PathStep};

pub(super) const CHECK: Check = Check {
    code: "WorkerFirewallBlocked",
    area: Area::ControlPlanePath,
    severity: Severity::Critical,
    why: "a worker that may not talk to its control plane is lost to it, however well it runs, and so is each one added behind the same firewall",
    next_step: "let this worker's subnet through to the control plane's addresses and ports, both ways, in firewall, security group and network ACL; compare with the rules of a subnet whose workers are well",
    raise_after: Duration::from_secs(30),
    clear_after: Duration::from_secs(10),
    run,
};

/// Where the worker has no public address and the control plane's is one.
const PRIVATE_ONLY: &str = "this worker has no public address, which is a design and no fault, but its control plane's address is public: let its subnet out through a gateway that translates addresses, or use the private service endpoint (which needs VRF and service endpoints in the account); then look at the firewall rules of the subnet";

fn run(look: &Look<'_>) -> Outcome {
    let path = seen!(look.now.control_plane, path::nowhere());
    let gateway_down = look.now.routing.get().is_some_and(|routing| {
        routing.gateways.iter().any(|it| matches!(it.state, NeighbourState::Failed | NeighbourState::Incomplete))
    });
    if !path.kubelet.broken() || gateway_down || vpe_gateway_suspected::is_vpe(&path.kubelet) {
        return Outcome::Healthy;
    }
    let Some((leg, proof)) = proof(path) else { return Outcome::Healthy };
    if path::own_rule(look, leg).is_some() {
        return Outcome::Healthy;
    }
    let detail = format!("A firewall keeps this worker from its control plane at {}: {proof}", leg.to);
    let finding = Finding::new(path.server.clone(), detail);
    let private = leg.address.is_some_and(is_public) && !has_public_address(look);
    Outcome::from_findings(vec![if private { finding.next(PRIVATE_ONLY) } else { finding }])
}

/// The way that a firewall surely ends, and what shows that.
fn proof(path: &ControlPlanePath) -> Option<(&PathLeg, String)> {
    let silent = |leg: &&PathLeg| {
        let fault = leg.fault().filter(|_| !leg.is_local());
        fault.is_some_and(|it| {
            it.step == PathStep::Connect && matches!(it.kind, FaultKind::TimedOut | FaultKind::Unreachable)
        })
    };
    let others = path.endpoints.iter().filter(|leg| leg.to != path.kubelet.to);
    let all: Vec<&PathLeg> = std::iter::once(&path.kubelet).chain(others).filter(|leg| !leg.is_local()).collect();
    let first = *all.first().filter(|_| all.iter().all(silent))?;
    let how = match first.fault()?.kind {
        FaultKind::TimedOut => "dropped",
        _ => "rejected by a router",
    };
    if path.host_answers == Some(true) {
        return Some((first, format!("TCP to that port is {how}, while the same host answers at another port")));
    }
    let peers = path.peers.iter().filter(|peer| peer.ready && peer.answers).count();
    (all.len() > 1 && peers > 0).then(|| {
        (first, format!("TCP to all {} known addresses of it is {how}, while {peers} other nodes answer", all.len()))
    })
}

/// Whether an address is one of the Internet's. IBM Cloud's private service endpoints (166.8.0.0/14) are none.
fn is_public(address: IpAddr) -> bool {
    match address {
        IpAddr::V4(it) => {
            let [a, b, ..] = it.octets();
            let special = it.is_private() || it.is_loopback() || it.is_link_local() || it.is_unspecified();
            !(special || (a == 100 && (64..128).contains(&b)) || (a == 166 && (8..12).contains(&b)))
        }
        IpAddr::V6(it) => (it.segments()[0] & 0xe000) == 0x2000,
    }
}

fn has_public_address(look: &Look<'_>) -> bool {
    look.now.routing.get().is_none_or(|routing| routing.addresses.iter().any(|it| is_public(it.address)))
}

#[cfg(test)]
mod tests {
    use super::super::testing::{self, Node, end, fault, rule};
    use super::*;
    use crate::facts::{Backend, PathEnd};

    const PEERS: [(&str, bool); 2] = [("n2", true), ("n3", false)];

    fn cut() -> Node {
        Node::worker().path(|path| path.kubelet.end = end())
    }

    fn all_cut() -> Node {
        cut().endpoints(&["10.0.0.21:6443", "10.0.0.22:6443"], &[end(), end()]).peers(true, &PEERS)
    }

    #[test]
    fn the_host_answers_elsewhere() {
        let node = cut().path(|path| path.host_answers = Some(true));
        let expected = "A firewall keeps this worker from its control plane at 10.0.0.9:6443: TCP to that port is dropped, while the same host answers at another port";
        assert_eq!(testing::details(&run(&node.look())), [expected]);
    }

    #[test]
    fn several_servers_are_silent_and_other_nodes_answer() {
        let details = testing::details(&run(&all_cut().look()));
        assert!(
            details[0].ends_with("all 3 known addresses of it is dropped, while 1 other nodes answer"),
            "{details:?}"
        );
        let rejected = all_cut().path(|path| {
            let legs = std::iter::once(&mut path.kubelet).chain(&mut path.endpoints);
            legs.for_each(|leg| leg.end = fault(PathStep::Connect, FaultKind::Unreachable));
        });
        assert!(testing::details(&run(&rejected.look()))[0].contains("rejected by a router"));
    }

    #[test]
    fn healthy_and_clears() {
        assert_eq!(run(&Node::worker().look()), Outcome::Healthy);
        let refused = all_cut().path(|path| path.kubelet.end = fault(PathStep::Connect, FaultKind::Refused));
        assert_eq!(run(&refused.look()), Outcome::Healthy);
    }

    #[test]
    fn trap_a_server_that_may_be_off_a_gateway_or_a_rule_of_this_node() {
        assert_eq!(run(&cut().peers(true, &PEERS).look()), Outcome::Healthy);
        assert_eq!(run(&all_cut().peers(true, &[("n2", false)]).look()), Outcome::Healthy);
        let gateway = all_cut().routing(|routing| routing.gateways[0].state = NeighbourState::Failed);
        assert_eq!(run(&gateway.look()), Outcome::Healthy);
        let own = all_cut().edit_chains(Backend::Nftables, "filter", |chains| {
            chains.push(testing::base("OUTPUT", vec![rule("-p tcp --dport 6443 -j DROP")]));
        });
        assert_eq!(run(&own.look()), Outcome::Healthy);
        let partly = all_cut().path(|path| path.endpoints[1].end = PathEnd::Answered(403));
        assert_eq!(run(&partly.look()), Outcome::Healthy);
    }

    #[test]
    fn trap_no_public_address_is_a_design() {
        let public = |node: Node| {
            node.path(|path| {
                path.host_answers = Some(true);
                path.kubelet.address = Some([169, 46, 7, 2].into());
            })
        };
        let Outcome::Findings(findings) = run(&public(cut()).look()) else { panic!("a finding") };
        assert!(findings[0].next_step.as_ref().expect("own").starts_with("this worker has no public address"));
        let own = public(cut()).routing(|routing| routing.addresses[0].address = [52, 1, 2, 3].into());
        let Outcome::Findings(findings) = run(&own.look()) else { panic!("a finding") };
        assert_eq!(findings[0].next_step, None);
        for (address, public) in [("166.9.1.2", false), ("100.64.0.1", false), ("166.12.0.1", true), ("fd00::1", false)]
        {
            assert_eq!(is_public(address.parse().expect("an address")), public, "{address}");
        }
    }

    #[test]
    fn unknown_and_not_applicable() {
        let node = Node::worker().edit(|now| now.control_plane = testing::denied("/etc/kubernetes/kubelet.conf"));
        assert!(matches!(run(&node.look()), Outcome::Unknown(_)));
        assert!(matches!(run(&Node::plain_machine().look()), Outcome::NotApplicable(_)));
    }
}
