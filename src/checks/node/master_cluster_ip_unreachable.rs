//! The Service address of the control plane leads nowhere from this node, while the kubelet's way works.
//!
//! *Looks at* the way to the address of `default/kubernetes`, which kube-proxy's rules lead to an API server, and at the ways
//! to the API servers themselves. *Traps*: a node whose Service proxy has not come up yet; some API servers that cannot be reached
//! make this way fail now and then (MasterPathPartial); a certificate is the kubelet's business (catalogue R046).

use std::time::Duration;

use super::super::path;
use super::super::{Area, Check, Finding, Look, Outcome, Severity, seen};
use super::master_path_partial::broken;

pub(super) const CHECK: Check = Check {
    code: "MasterClusterIpUnreachable",
    area: Area::ControlPlanePath,
    severity: Severity::Critical,
    why: "pods, Calico and the CNI plugin reach the control plane by this address, so they fail while the kubelet works",
    next_step: "look at the packet filter: whether kube-proxy runs and its rules for default/kubernetes are there and hooked (`iptables-save -t nat | grep default/kubernetes`, `nft list table ip kube-proxy`)",
    raise_after: Duration::from_secs(30),
    clear_after: Duration::from_secs(10),
    run,
};

fn run(look: &Look<'_>) -> Outcome {
    let path = seen!(look.now.control_plane, path::nowhere());
    let Some(service) = &path.service else {
        return Outcome::NotApplicable("the Service address of the control plane is not known".into());
    };
    let certificate = service.fault().is_some_and(crate::facts::PathFault::is_certificate);
    if path.kubelet.broken() || !service.broken() || certificate {
        return Outcome::Healthy;
    }
    let (broken, all) = (broken(path).len(), path.endpoints.len());
    let (rest, next) = match (broken, all) {
        (0, 0) => ("the kubelet's own way works", None),
        (0, _) => ("the kubelet's own way and the API servers' own addresses work", None),
        (broken, all) if broken == all => (
            "the API servers behind it cannot be reached from here either, only the kubelet's own address for them",
            Some(
                "let this node's subnet through to the API servers' own addresses (firewall, security group, route): `kubectl get endpointslices -n default` names them",
            ),
        ),
        _ => return Outcome::Healthy,
    };
    let why = path::why(service, None).unwrap_or_default();
    let rule = path::by_own_rule(look, service);
    let detail = format!("The control plane's Service address {} leads nowhere, while {rest}: {why}{rule}", service.to);
    let finding = Finding::new(service.to.clone(), detail);
    Outcome::from_findings(vec![match next {
        Some(next) => finding.next(next),
        None => finding,
    }])
}

#[cfg(test)]
mod tests {
    use super::super::testing::{self, Node, end, fault, leg};
    use super::*;
    use crate::facts::{FaultKind, PathEnd, PathStep};

    const TWO: [&str; 2] = ["10.0.0.21:6443", "10.0.0.22:6443"];

    fn node(service: PathEnd) -> Node {
        Node::worker().path(|path| path.service = Some(leg("10.96.0.1:443", service)))
    }

    fn well() -> PathEnd {
        PathEnd::Answered(403)
    }

    #[test]
    fn the_address_alone_is_dead() {
        let outcome = run(&node(end()).endpoints(&TWO, &[well(), well()]).look());
        assert_eq!(testing::subjects(&outcome), ["10.96.0.1:443"]);
        assert!(
            testing::details(&outcome)[0].contains("and the API servers' own addresses work: timed out"),
            "{outcome:?}"
        );
        assert!(testing::details(&run(&node(end()).look()))[0].contains("while the kubelet's own way works"));
    }

    #[test]
    fn the_servers_behind_it_are_cut_off_too() {
        let Outcome::Findings(findings) = run(&node(end()).endpoints(&TWO, &[end(), end()]).look()) else { panic!() };
        assert!(findings[0].detail.contains("cannot be reached from here either"), "{findings:?}");
        assert!(findings[0].next_step.as_ref().expect("own").contains("security group"));
    }

    #[test]
    fn healthy_and_clears() {
        for end in [well(), PathEnd::Connected, fault(PathStep::Tls, FaultKind::ForeignAuthority)] {
            assert_eq!(run(&node(end).look()), Outcome::Healthy);
        }
    }

    #[test]
    fn trap_some_servers_or_all_ways_are_cut() {
        assert_eq!(run(&node(end()).endpoints(&TWO, &[well(), end()]).look()), Outcome::Healthy);
        assert_eq!(
            run(&node(end()).path(|path| path.kubelet.end = fault(PathStep::Tls, FaultKind::Reset)).look()),
            Outcome::Healthy
        );
    }

    #[test]
    fn unknown_and_not_applicable() {
        assert!(matches!(run(&Node::worker().look()), Outcome::NotApplicable(_)));
        assert!(matches!(run(&Node::plain_machine().look()), Outcome::NotApplicable(_)));
        let node = Node::worker().edit(|now| now.control_plane = testing::denied("/etc/kubernetes/kubelet.conf"));
        assert!(matches!(run(&node.look()), Outcome::Unknown(_)));
    }
}
