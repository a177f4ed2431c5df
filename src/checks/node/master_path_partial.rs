//! Some API servers cannot be reached from this node, while the kubelet's way works.
//!
//! *Looks at* the ways to the endpoints of `default/kubernetes`. *Traps*: one failed probe is noise, three in a row over 30 s are
//! not; an API server that is being replaced has left the endpoints within a minute, so only those count that everybody still
//! names, for that long; where all are unreachable the kubelet's way is another one by design; a certificate of another
//! authority counts only where the others' is the kubelet's (catalogue R046, R053).

use std::time::Duration;

use super::super::path;
use super::super::{Area, Check, Finding, Look, Outcome, Severity, seen};
use crate::facts::{ControlPlanePath, FaultKind, PathLeg};

pub(super) const CHECK: Check = Check {
    code: "MasterPathPartial",
    area: Area::ControlPlanePath,
    severity: Severity::Warning,
    why: "connections of pods to the API server fail as often as they are led to that one, and so will this node's when the others go",
    next_step: "compare with other nodes: all fail means that API server, only those of this subnet or zone mean its firewall or route to it",
    // The lease of an API server that has gone lasts 15 s, and endpoints and kube-proxy follow it.
    raise_after: Duration::from_secs(60),
    clear_after: Duration::from_secs(10),
    run,
};

fn run(look: &Look<'_>) -> Outcome {
    let path = seen!(look.now.control_plane, path::nowhere());
    if path.kubelet.broken() {
        // MasterUnreachable tells of all ways.
        return Outcome::Healthy;
    }
    let broken = broken(path);
    if broken.len() == path.endpoints.len() {
        return Outcome::Healthy;
    }
    let findings = broken.into_iter().map(|leg| {
        let well = path.endpoints.iter().filter(|leg| !leg.broken()).count();
        let why = path::why(leg, path::local(leg, &path.endpoints)).unwrap_or_default();
        let (rule, all) = (path::by_own_rule(look, leg), path.endpoints.len());
        let detail = format!("The API server {} cannot be reached, while {well} of {all} can: {why}{rule}", leg.to);
        Finding::new(leg.to.clone(), detail)
    });
    Outcome::from_findings(findings.collect())
}

/// The endpoints that cannot be reached.
pub(super) fn broken(path: &ControlPlanePath) -> Vec<&PathLeg> {
    let foreign = |leg: &&PathLeg| leg.fault().is_some_and(|fault| fault.kind == FaultKind::ForeignAuthority);
    // The kubelet may trust another authority than they have, for a balancer in front.
    let all_foreign =
        path.endpoints.iter().all(|leg| foreign(&leg) || leg.fault().is_some_and(|it| !it.is_certificate()));
    path.endpoints.iter().filter(|leg| leg.broken() && !(all_foreign && foreign(leg))).collect()
}

#[cfg(test)]
mod tests {
    use super::super::testing::{self, Node, end, fault};
    use super::*;
    use crate::facts::{PathEnd, PathStep};

    const TWO: [&str; 2] = ["10.0.0.21:6443", "10.0.0.22:6443"];

    fn well() -> PathEnd {
        PathEnd::Answered(403)
    }

    #[test]
    fn one_of_two() {
        let outcome = run(&Node::worker().endpoints(&TWO, &[well(), end()]).look());
        assert_eq!(testing::subjects(&outcome), ["10.0.0.22:6443"]);
        let begin = "The API server 10.0.0.22:6443 cannot be reached, while 1 of 2 can: timed out: no answer to TCP";
        assert!(testing::details(&outcome)[0].starts_with(begin), "{outcome:?}");
    }

    #[test]
    fn healthy_and_clears() {
        assert_eq!(run(&Node::worker().endpoints(&TWO, &[well(), PathEnd::Connected]).look()), Outcome::Healthy);
        assert_eq!(run(&Node::worker().look()), Outcome::Healthy);
    }

    #[test]
    fn trap_all_of_them_or_the_kubelets_own_way() {
        assert_eq!(run(&Node::worker().endpoints(&TWO, &[end(), end()]).look()), Outcome::Healthy);
        let cut = Node::worker().endpoints(&TWO, &[well(), end()]).path(|path| path.kubelet.end = end());
        assert_eq!(run(&cut.look()), Outcome::Healthy);
        assert!(CHECK.raise_after >= Duration::from_secs(30));
    }

    #[test]
    fn trap_another_authority_counts_only_where_it_is_the_others() {
        let foreign = || fault(PathStep::Tls, FaultKind::ForeignAuthority);
        assert_eq!(run(&Node::worker().endpoints(&TWO, &[foreign(), foreign()]).look()), Outcome::Healthy);
        assert_eq!(testing::subjects(&run(&Node::worker().endpoints(&TWO, &[foreign(), well()]).look())), [TWO[0]]);
        assert_eq!(testing::subjects(&run(&Node::worker().endpoints(&TWO, &[foreign(), end()]).look())), [TWO[1]]);
    }

    #[test]
    fn unknown_and_not_applicable() {
        let node = Node::worker().edit(|now| now.control_plane = testing::denied("/etc/kubernetes/kubelet.conf"));
        assert!(matches!(run(&node.look()), Outcome::Unknown(_)));
        assert!(matches!(run(&Node::plain_machine().look()), Outcome::NotApplicable(_)));
    }
}
