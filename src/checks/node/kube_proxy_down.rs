//! kube-proxy does not run any more, or hangs.
//!
//! *Looks at* the process table and the health port, `127.0.0.1:10256`. Its rules stay and go on working, so there is no
//! hurry. *Traps*: a rollout replaces it within a minute; a node whose Services are handled by eBPF (Calico, Cilium) has none,
//! nor has one where it was never seen; a distribution may run it inside a process of another name, and may switch its health
//! port off (catalogue R102).

use std::time::Duration;

use super::super::{Area, Check, Finding, Look, Outcome, Severity, first_error};
use crate::facts::{CalicoDataplane, Program, Reason, Seen};

pub(super) const CHECK: Check = Check {
    code: "KubeProxyDown",
    area: Area::PacketFilter,
    severity: Severity::Critical,
    why: "Services on this node stay as they are: new endpoints are not reached, and old ones still get connections",
    next_step: "read the log of this node's kube-proxy pod, then delete the pod; it writes its rules within a second of its start",
    // A rollout takes seconds to a minute.
    raise_after: Duration::from_secs(60),
    clear_after: Duration::from_secs(5),
    run,
};

fn run(look: &Look<'_>) -> Outcome {
    if look.expected.kube_proxy.is_none() {
        return Outcome::NotApplicable("no kube-proxy on this node".into());
    }
    let port = &look.now.health.kube_proxy;
    let refusal = port.error().map(|error| error.reason);
    let process = match &look.now.processes {
        Seen::Yes(processes) => processes.of(Program::KubeProxy),
        Seen::Absent | Seen::Unreadable(_) if port.get().is_some() => return Outcome::Healthy,
        Seen::Absent | Seen::Unreadable(_) => {
            let error = first_error([look.now.processes.error(), port.error()]);
            return error.map_or(Outcome::Healthy, Outcome::unknown);
        }
    };
    let said = match (process, refusal) {
        (Some(process), Some(Reason::TimedOut)) if process.state == 'T' => {
            "kube-proxy is stopped by a signal: its health port accepts and does not answer"
        }
        (Some(_), Some(Reason::TimedOut)) => "kube-proxy hangs: its health port accepts and does not answer",
        (Some(process), _) if process.state == 'T' => "kube-proxy is stopped by a signal",
        // Its port may be switched off; and somebody else may answer there.
        (Some(_), _) | (None, None) => return Outcome::Healthy,
        (None, _) if !look.before.programs.contains(&Program::KubeProxy) => {
            return Outcome::NotApplicable("no kube-proxy was seen running since this boot".into());
        }
        (None, _) if replaced(look) => {
            return Outcome::NotApplicable("Services are handled by eBPF on this node".into());
        }
        (None, Some(Reason::Refused)) => "kube-proxy does not run: no process, and its health port refuses connections",
        (None, Some(Reason::TimedOut)) => "kube-proxy does not run: no process, and its health port does not answer",
        (None, Some(_)) => return port.error().map_or(Outcome::Healthy, Outcome::unknown),
    };
    Outcome::from_findings(vec![Finding::new("kube-proxy", said)])
}

/// Whether eBPF has taken its place: Calico's, or Cilium's by the link that it makes.
fn replaced(look: &Look<'_>) -> bool {
    let cilium = look.now.routing.get().is_some_and(|it| it.links.iter().any(|link| link.name == "cilium_host"));
    cilium || look.expected.calico == Some(CalicoDataplane::Ebpf)
}

#[cfg(test)]
mod tests {
    use super::super::testing::{self, Node};
    use super::*;

    fn dead() -> Node {
        Node::worker()
            .remember(|before| _ = before.programs.insert(Program::KubeProxy))
            .without(Program::KubeProxy)
            .edit(|now| now.health.kube_proxy = testing::error("127.0.0.1:10256", Reason::Refused))
    }

    fn stopped(state: char) -> Node {
        Node::worker().edit(|now| {
            let Seen::Yes(processes) = &mut now.processes else { panic!("seen") };
            let proxy = processes.found.iter_mut().find(|it| it.program == Program::KubeProxy).expect("running");
            proxy.state = state;
            now.health.kube_proxy = testing::timed_out("127.0.0.1:10256");
        })
    }

    #[test]
    fn gone_or_hung() {
        assert_eq!(testing::subjects(&run(&dead().look())), ["kube-proxy"]);
        let details = testing::details(&run(&stopped('T').look()));
        assert!(details[0].contains("stopped by a signal"), "{details:?}");
        let details = testing::details(&run(&stopped('S').look()));
        assert!(details[0].contains("hangs"), "{details:?}");
    }

    #[test]
    fn trap_a_rollout_is_waited_for() {
        assert_eq!(CHECK.raise_after, Duration::from_secs(60));
    }

    #[test]
    fn trap_replaced_by_ebpf() {
        for name in ["cilium_host", "bpfin.cali"] {
            let node = dead().cni_plugin("calico").routing(|routing| routing.links[0].name = name.into());
            assert!(matches!(run(&node.look()), Outcome::NotApplicable(_)), "{name}");
        }
    }

    #[test]
    fn trap_never_seen_or_under_another_name() {
        let node = Node::worker().without(Program::KubeProxy);
        let silent =
            node.clone().edit(|now| now.health.kube_proxy = testing::error("127.0.0.1:10256", Reason::Refused));
        assert!(matches!(run(&silent.look()), Outcome::NotApplicable(_)));
        assert!(matches!(run(&Node::worker().without_kube_proxy().look()), Outcome::NotApplicable(_)));
        let other = dead().edit(|now| now.health.kube_proxy = testing::answers(200));
        assert_eq!(run(&other.look()), Outcome::Healthy, "somebody answers");
    }

    #[test]
    fn trap_the_port_may_be_switched_off() {
        let node =
            Node::worker().edit(|now| now.health.kube_proxy = testing::error("127.0.0.1:10256", Reason::Refused));
        assert_eq!(run(&node.look()), Outcome::Healthy);
    }

    #[test]
    fn healthy_clears_and_unknown() {
        assert_eq!(run(&Node::worker().look()), Outcome::Healthy);
        let node = dead().edit(|now| now.processes = testing::denied("/proc"));
        assert!(matches!(run(&node.look()), Outcome::Unknown(_)));
    }
}
