//! On IBM Cloud VPC: the virtual private endpoint by which this worker reaches its control plane does not work.
//!
//! *Looks at* the name in the kubelet's kubeconfig, what it resolves to, and where TCP to it ends. *Traps*: private names of
//! other clouds, and classic workers, whose private endpoints are in 166.8.0.0/14, have no such gateway; a gateway that
//! answers TCP does its part, whatever comes after; a rule of this node's own looks the same (catalogue R052).

use std::net::IpAddr;
use std::time::Duration;

use super::super::path;
use super::super::{Area, Check, Finding, Look, Outcome, Severity, seen};
use crate::facts::{PathLeg, PathStep};

pub(super) const CHECK: Check = Check {
    code: "VpeGatewaySuspected",
    area: Area::ControlPlanePath,
    severity: Severity::Critical,
    why: "workers of the VPC reach the control plane through this gateway alone, so all of the subnet or zone are cut off with it",
    next_step: "look at the cluster's endpoint gateway (`ibmcloud is endpoint-gateways`, iks-CLUSTER_ID): none means refresh the master and wait, one that is not Stable is a case for support, a Stable one means the security groups; then replace workers that do not come back",
    raise_after: Duration::from_secs(30),
    clear_after: Duration::from_secs(10),
    run,
};

fn run(look: &Look<'_>) -> Outcome {
    let path = seen!(look.now.control_plane, path::nowhere());
    if !has_gateway(&path.kubelet) {
        return Outcome::NotApplicable(
            "the control plane is not reached by a private endpoint of IBM Cloud VPC".into(),
        );
    }
    if !is_vpe(&path.kubelet) || path::own_rule(look, &path.kubelet).is_some() {
        return Outcome::Healthy;
    }
    let why = path::why(&path.kubelet, None).unwrap_or_default();
    let at = path.kubelet.address.map_or_else(String::new, |address| format!(", {address}"));
    let detail = format!(
        "The private endpoint of the control plane ({}{at}) does not let this worker in: {why}",
        path.kubelet.to
    );
    let wait = format!("wait {} min", look.limits.gateway_refresh_minutes);
    Outcome::from_findings(vec![
        Finding::new(path.kubelet.to.clone(), detail).next(CHECK.next_step.replacen("wait", &wait, 1)),
    ])
}

/// Whether the way leads through such a gateway, as far as its name and address say.
fn has_gateway(leg: &PathLeg) -> bool {
    let host = leg.to.rsplit_once(':').map_or(leg.to.as_str(), |(host, _)| host).trim_end_matches('.');
    let ibm = [".cloud.ibm.com", ".appdomain.cloud"].iter().any(|domain| host.ends_with(domain));
    let private = |address: IpAddr| matches!(address, IpAddr::V4(it) if it.is_private());
    ibm && host.contains(".private.") && leg.address.is_none_or(private)
}

/// Whether that gateway is where it ends.
pub(super) fn is_vpe(leg: &PathLeg) -> bool {
    let step = leg.fault().map(|fault| fault.step);
    has_gateway(leg) && matches!(step, Some(PathStep::Name | PathStep::Connect))
}

#[cfg(test)]
mod tests {
    use super::super::testing::{self, Node, end, fault, rule};
    use super::*;
    use crate::facts::{Backend, FaultKind, PathEnd};

    const NAME: &str = "c107.private.us-south.containers.cloud.ibm.com:31234";

    fn node(to: &'static str, address: Option<[u8; 4]>, end: PathEnd) -> Node {
        Node::worker().path(|path| {
            path.kubelet.to = to.into();
            path.kubelet.address = address.map(Into::into);
            path.kubelet.port = 31234;
            path.kubelet.end = end;
        })
    }

    #[test]
    fn no_connection_and_no_address() {
        let silent = run(&node(NAME, Some([10, 240, 0, 9]), end()).look());
        assert_eq!(testing::subjects(&silent), [NAME]);
        assert!(testing::details(&silent)[0].contains(", 10.240.0.9) does not let this worker in: timed out"));
        let Outcome::Findings(findings) = silent else { panic!("a finding") };
        assert!(
            findings[0].next_step.as_deref().is_some_and(|next| next.contains("refresh the master and wait 10 min,"))
        );
        let nameless = run(&node(NAME, None, fault(PathStep::Name, FaultKind::Failed)).look());
        assert!(testing::details(&nameless)[0].contains("name resolution"), "{nameless:?}");
    }

    #[test]
    fn healthy_and_clears() {
        assert_eq!(run(&node(NAME, Some([10, 240, 0, 9]), PathEnd::Answered(401)).look()), Outcome::Healthy);
    }

    #[test]
    fn trap_behind_the_gateway_and_this_nodes_own_rules() {
        let stalls = node(NAME, Some([10, 240, 0, 9]), fault(PathStep::Tls, FaultKind::TimedOut));
        assert_eq!(run(&stalls.look()), Outcome::Healthy);
        let own = node(NAME, Some([10, 240, 0, 9]), end()).edit_chains(Backend::Nftables, "filter", |chains| {
            chains.push(testing::base("OUTPUT", vec![rule("-d 10.240.0.0/16 -j REJECT")]));
        });
        assert_eq!(run(&own.look()), Outcome::Healthy);
    }

    #[test]
    fn trap_other_clouds_and_classic_workers() {
        for (name, address) in [
            (NAME, [166, 9, 24, 3]),
            ("x.private.example.com:443", [10, 240, 0, 9]),
            ("c107.us-south.containers.cloud.ibm.com:31234", [169, 46, 7, 2]),
        ] {
            let node = node(name, Some(address), end());
            assert!(matches!(run(&node.look()), Outcome::NotApplicable(_)), "{name}");
        }
        assert!(matches!(run(&Node::plain_machine().look()), Outcome::NotApplicable(_)));
    }

    #[test]
    fn unknown_when_the_kubeconfig_cannot_be_read() {
        let node = Node::worker().edit(|now| now.control_plane = testing::denied("/etc/kubernetes/kubelet.conf"));
        assert!(matches!(run(&node.look()), Outcome::Unknown(_)));
    }
}
