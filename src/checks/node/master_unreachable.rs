//! The control plane cannot be reached at the address that the kubelet uses.
//!
//! *Looks at* `GET /version` on that address, with a connection of its own. Any HTTP answer proves the path: 401 and 403
//! do too. *Trap*: one failed probe is noise; three in a row over 30 s are not (catalogue R006, R046, R053).

use std::time::Duration;

use super::super::{Area, Check, Finding, Look, Outcome, Severity, seen};

pub(super) const CHECK: Check = Check {
    code: "MasterUnreachable",
    area: Area::ControlPlanePath,
    severity: Severity::Critical,
    why: "the control plane will declare this node lost, and nothing here follows its orders",
    next_step: "test from the node (`curl -vk SERVER/version`): no answer means a firewall or gateway, refused means that the API server is down, a certificate error means a proxy in between",
    raise_after: Duration::from_secs(30),
    clear_after: Duration::from_secs(10),
    run,
};

fn run(look: &Look<'_>) -> Outcome {
    let path = seen!(
        look.now.control_plane,
        Outcome::NotApplicable("no kubeconfig of a kubelet names a control plane".into())
    );
    let Some(error) = path.answer.error() else { return Outcome::Healthy };
    if super::super::not_yet(&path.answer) {
        return Outcome::unknown(error);
    }
    let detail = format!("The control plane at {} cannot be reached: {}", path.server, error.detail);
    Outcome::from_findings(vec![Finding::new(path.server.clone(), detail)])
}

#[cfg(test)]
mod tests {
    use super::super::testing::{self, Node};
    use super::*;
    use crate::facts::{ControlPlanePath, Reason, Seen};

    fn answer(answer: &Seen<u16>) -> Node {
        let path = ControlPlanePath { server: "https://10.0.0.9:6443".into(), answer: answer.clone() };
        Node::worker().edit(|now| now.control_plane = Seen::Yes(path.clone()))
    }

    #[test]
    fn no_answer_or_refused() {
        for reason in [Reason::TimedOut, Reason::Refused, Reason::Failed] {
            let node = answer(&testing::error("https://10.0.0.9:6443", reason));
            assert_eq!(testing::subjects(&run(&node.look())), ["https://10.0.0.9:6443"]);
        }
    }

    #[test]
    fn healthy_and_clears() {
        assert_eq!(run(&answer(&Seen::Yes(200)).look()), Outcome::Healthy);
    }

    #[test]
    fn trap_any_answer_proves_the_path_and_one_failure_is_noise() {
        for status in [401, 403, 500] {
            assert_eq!(run(&answer(&Seen::Yes(status)).look()), Outcome::Healthy);
        }
        assert!(CHECK.raise_after >= Duration::from_secs(30));
    }

    #[test]
    fn trap_a_machine_that_has_no_control_plane() {
        let node = Node::worker().edit(|now| now.control_plane = Seen::Absent);
        assert!(matches!(run(&node.look()), Outcome::NotApplicable(_)));
    }

    #[test]
    fn unknown_when_the_kubeconfig_cannot_be_read() {
        let node = Node::worker().edit(|now| now.control_plane = testing::denied("/etc/kubernetes/kubelet.conf"));
        assert!(matches!(run(&node.look()), Outcome::Unknown(_)));
    }
}
