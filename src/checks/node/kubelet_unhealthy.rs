//! The kubelet runs but its health port is silent or says no.
//!
//! *Looks at* `127.0.0.1:10248/healthz`. *Traps*: the port can be switched off (`healthzPort: 0`), which is no fault; a
//! kubelet that has just been started does not listen yet (catalogue R049).

use std::time::Duration;

use super::super::{Area, Check, Finding, Look, Outcome, Severity};
use crate::facts::{Program, Reason, Seen};

pub(super) const CHECK: Check = Check {
    code: "KubeletUnhealthy",
    area: Area::ControlPlanePath,
    severity: Severity::Critical,
    why: "a kubelet that hangs stops renewing its lease, and the control plane will declare this node lost",
    next_step: "read its log (`journalctl -u kubelet -n 100`), see whether it is stuck (`ps -o stat,wchan -C kubelet`), then restart it",
    raise_after: Duration::from_secs(10),
    clear_after: Duration::from_secs(5),
    run,
};

/// A kubelet that has just been started listens within this time.
const STARTING: Duration = Duration::from_secs(30);

fn run(look: &Look<'_>) -> Outcome {
    if !look.expected.worker {
        return Outcome::NotApplicable("this is no Kubernetes worker".into());
    }
    let process = look.now.processes.get().and_then(|processes| processes.of(Program::Kubelet));
    let said = match &look.now.health.kubelet {
        Seen::Yes(answer) if answer.status == 200 => return Outcome::Healthy,
        Seen::Absent => return Outcome::NotApplicable("the kubelet's health port is switched off".into()),
        Seen::Yes(answer) => format!("answers {}: {}", answer.status, failing(&answer.body)),
        Seen::Unreadable(error) => match error.reason {
            Reason::TimedOut => "accepts but does not answer".to_owned(),
            // Without a process it is down, which is another code.
            Reason::Refused if process.is_none() => return Outcome::Healthy,
            Reason::Refused => "refuses connections though the kubelet runs".to_owned(),
            _ => return Outcome::unknown(error),
        },
    };
    let stopped = process.is_some_and(|process| process.state == 'T');
    let stopped = if stopped { "; its process is stopped by a signal" } else { "" };
    let finding = Finding::new("kubelet", format!("The kubelet's health port {said}{stopped}"));
    let young =
        process.is_some_and(|process| look.now.taken_at.duration_since(process.started_at).unsigned_abs() < STARTING);
    Outcome::from_findings(vec![if young { finding.repaired_within(STARTING) } else { finding }])
}

/// What fails, in the health page's own words: of a list of checks those with the mark of failure.
fn failing(body: &str) -> String {
    let failed: Vec<&str> = body.lines().filter_map(|line| line.strip_prefix("[-]")).collect();
    if failed.is_empty() { body.trim().to_owned() } else { failed.join(", ") }
}

#[cfg(test)]
mod tests {
    use super::super::testing::{self, Node};
    use super::*;

    #[test]
    fn silent_refusing_or_saying_no() {
        for seen in [testing::timed_out("10248"), testing::error("10248", Reason::Refused), testing::answers(500)] {
            let node = Node::worker().edit(|now| now.health.kubelet = seen.clone());
            assert_eq!(testing::subjects(&run(&node.look())), ["kubelet"]);
        }
    }

    #[test]
    fn only_what_fails_is_said() {
        let body = "[+]ping ok\n[+]log ok\n[-]syncloop failed: reason withheld\nhealthz check failed\n";
        let answer = crate::facts::HttpAnswer { status: 500, body: body.into() };
        let node = Node::worker().edit(|now| now.health.kubelet = Seen::Yes(answer));
        let said = "The kubelet's health port answers 500: syncloop failed: reason withheld";
        assert_eq!(testing::details(&run(&node.look())), [said]);
    }

    #[test]
    fn healthy_and_clears() {
        assert_eq!(run(&Node::worker().look()), Outcome::Healthy);
    }

    #[test]
    fn trap_port_off_just_started_and_down() {
        let node = Node::worker().edit(|now| now.health.kubelet = Seen::Absent);
        assert!(matches!(run(&node.look()), Outcome::NotApplicable(_)));
        let refused = Node::worker().edit(|now| now.health.kubelet = testing::error("10248", Reason::Refused));
        let Outcome::Findings(findings) = run(&refused.kubelet_started_ago(2).look()) else { panic!("a finding") };
        assert_eq!(findings[0].owner_repairs_within, Some(STARTING));
        let node = Node::worker()
            .without(Program::Kubelet)
            .edit(|now| now.health.kubelet = testing::error("10248", Reason::Refused));
        assert_eq!(run(&node.look()), Outcome::Healthy, "KubeletDown tells that");
    }

    #[test]
    fn unknown_when_it_cannot_be_asked() {
        let node = Node::worker().edit(|now| now.health.kubelet = testing::denied("10248"));
        assert!(matches!(run(&node.look()), Outcome::Unknown(_)));
    }
}
