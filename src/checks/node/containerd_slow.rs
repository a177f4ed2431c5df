//! The container runtime takes much longer to answer than is usual on this node.
//!
//! *Looks at* the 95th percentile of three CRI calls in the last two windows of five minutes, and at what is usual here: the
//! median of up to seven days. *Traps*: another node's figures mean nothing for this one; image collection and a
//! start make single answers slow, which two windows outlast; a runtime that does not answer is another code (catalogue R058).

use std::time::Duration;

use super::super::{Area, Check, Finding, Look, Outcome, Severity, seen};
use crate::facts::CallLatency;

pub(super) const CHECK: Check = Check {
    code: "ContainerdSlow",
    area: Area::Runtime,
    severity: Severity::Warning,
    why: "pods start and end late, and the kubelet calls the node NotReady when listing its pods takes three minutes",
    next_step: "count what it has to list (`crictl ps -a`, `crictl pods`) and look at the disk's latency (`iostat -x 5`); debris of thousands of containers is got rid of by cordon, drain and reload",
    // Two windows have agreed already.
    raise_after: Duration::ZERO,
    clear_after: Duration::ZERO,
    run,
};

fn run(look: &Look<'_>) -> Outcome {
    let status = seen!(look.now.runtime.status, Outcome::NotApplicable("no container runtime here".into()));
    let latency = &look.now.runtime.latency;
    let slow: Vec<&CallLatency> = latency.iter().filter(|call| call.lasts()).collect();
    let Some(worst) = slow.iter().max_by_key(|call| call.now) else { return Outcome::Healthy };
    let figures: Vec<String> = slow
        .iter()
        .map(|call| match call.usual {
            Some(usual) => format!("{} {} ms (usually {usual} ms)", call.call, call.now),
            None => format!("{} {} ms", call.call, call.now),
        })
        .collect();
    let mut detail = format!(
        "{} {} has been slow for ten minutes: one answer in twenty takes longer than {}",
        status.name,
        status.version,
        figures.join(", ")
    );
    // It returns a constant.
    if slow.iter().any(|call| call.call == "Version") {
        detail.push_str("; even Version, which does nothing, is slow, so that its process or the node lacks CPU or waits for memory");
    } else if worst.call == "ListPodSandbox" {
        detail.push_str("; Version is not, so that it is the list that takes long");
    }
    Outcome::from_findings(vec![Finding::new("CRI", detail)])
}

#[cfg(test)]
mod tests {
    use super::super::testing::{self, Node};
    use super::*;

    fn latency(calls: &[(&'static str, u32, u32, Option<u32>)]) -> Node {
        let calls = calls.iter().map(|(call, now, before, usual)| CallLatency {
            call,
            now: *now,
            before: *before,
            usual: *usual,
        });
        Node::worker().edit(|snapshot| snapshot.runtime.latency = calls.collect())
    }

    #[test]
    fn two_windows_far_above_what_is_usual() {
        let node = latency(&[("Version", 2, 2, Some(1)), ("ListPodSandbox", 420, 380, Some(40))]);
        let details = testing::details(&run(&node.look()));
        assert!(
            details[0].contains("longer than ListPodSandbox 420 ms (usually 40 ms); Version is not"),
            "{details:?}"
        );
        let node = latency(&[("Version", 1100, 1200, None)]);
        let details = testing::details(&run(&node.look()));
        assert!(details[0].contains("Version 1100 ms; even Version"), "{details:?}");
    }

    #[test]
    fn healthy_and_clears() {
        assert_eq!(run(&Node::worker().look()), Outcome::Healthy);
        assert_eq!(
            run(&latency(&[("Status", 30, 900, Some(30))]).look()),
            Outcome::Healthy,
            "the last window is well again"
        );
        assert!(matches!(run(&Node::plain_machine().look()), Outcome::NotApplicable(_)));
    }

    #[test]
    fn trap_one_window_and_a_node_that_is_slow_by_nature() {
        assert_eq!(run(&latency(&[("Status", 900, 30, Some(30))]).look()), Outcome::Healthy, "images are collected");
        assert_eq!(run(&latency(&[("Status", 400, 420, Some(300))]).look()), Outcome::Healthy, "its baseline");
        assert_eq!(run(&latency(&[("Status", 60, 60, Some(3))]).look()), Outcome::Healthy, "twenty times very little");
        assert_eq!(run(&latency(&[("Status", 700, 700, None)]).look()), Outcome::Healthy, "nothing is usual yet");
    }

    #[test]
    fn unknown_when_the_runtime_does_not_answer() {
        let node = Node::worker().edit(|now| now.runtime.status = testing::timed_out("Status"));
        assert!(matches!(run(&node.look()), Outcome::Unknown(_)));
    }
}
