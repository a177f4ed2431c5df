//! The kubelet is restarted again and again.
//!
//! *Looks at* the start time of its process, look after look, at the kernel's log for the reason, and at when the Node's Ready
//! changed. *Traps*: the start that
//! the agent found when it began may be that of the machine's boot, and one restart is an update; a node that flaps between
//! Ready and NotReady without a start of the kubelet has trouble on the way to the master (catalogue R044, H4).

use std::time::Duration;

use jiff::SignedDuration;

use super::super::{Area, Check, Finding, Look, Outcome, Severity, kubelet_words, seen};
use crate::facts::{KernelFault, Program};

pub(super) const CHECK: Check = Check {
    code: "KubeletRestarting",
    area: Area::ControlPlanePath,
    severity: Severity::Warning,
    why: "each start interrupts probes and pod changes, and a node that flaps between Ready and NotReady for this reason has no trouble with its network",
    next_step: "read why it ended (`journalctl -u kubelet`, the lines before each start; `systemctl status kubelet`): its configuration, its memory, or the container runtime",
    raise_after: Duration::ZERO,
    clear_after: Duration::from_secs(60),
    run,
};

/// A kubelet that starts sets Ready anew within this time.
const TURNS: SignedDuration = SignedDuration::from_secs(60);

fn run(look: &Look<'_>) -> Outcome {
    if !look.expected.worker {
        return Outcome::NotApplicable("this is no Kubernetes worker".into());
    }
    let processes = seen!(look.now.processes, Outcome::NotApplicable("no processes to look at".into()));
    let mut starts = look.before.kubelet_starts.clone();
    if let Some(process) = processes.of(Program::Kubelet) {
        starts.take(process.pid, process.started_at);
    }
    let minutes = look.limits.kubelet_restart_minutes;
    let count = starts.restarts_within(look.now.taken_at, Duration::from_secs(60 * u64::from(minutes)));
    if count < look.limits.kubelet_restarts as usize {
        return Outcome::Healthy;
    }
    let log = look.now.kernel_log.get();
    let killed = log.into_iter().flat_map(|log| log.of(&[KernelFault::OutOfMemory, KernelFault::CgroupOutOfMemory]));
    let reason = match killed.into_iter().find(|event| event.subject == "kubelet") {
        Some(event) => format!("; the kernel killed it for lack of memory: \"{}\"", event.line),
        None => String::new(),
    };
    let turned = kubelet_words::said(look, "Ready").and_then(|(_, ready)| ready.since);
    let flap = match turned.filter(|at| starts.precede(*at, TURNS)) {
        Some(at) => format!("; Ready last changed at {at}, by such a start and not for want of a connection"),
        None => String::new(),
    };
    let detail = format!("The kubelet was restarted {count} times within the last {minutes} minutes{reason}{flap}");
    Outcome::from_findings(vec![Finding::new("kubelet", detail)])
}

#[cfg(test)]
mod tests {
    use super::super::testing::{self, Node};
    use super::*;

    /// A worker whose kubelet was seen to start so many minutes ago, the last of which is the one that runs.
    fn started(minutes_ago: &[i64]) -> Node {
        let node = Node::worker().kubelet_started_ago(minutes_ago[minutes_ago.len() - 1] * 60);
        let now = node.look().now.taken_at;
        node.remember(|before| {
            for (process, minutes) in (1..).zip(minutes_ago) {
                before.kubelet_starts.take(process, now - SignedDuration::from_mins(*minutes));
            }
        })
    }

    #[test]
    fn two_restarts_within_half_an_hour() {
        let outcome = run(&started(&[44, 29, 1]).look());
        assert_eq!(testing::details(&outcome), ["The kubelet was restarted 2 times within the last 30 minutes"]);
        let gone = started(&[44, 29, 1]).without(Program::Kubelet);
        assert_eq!(testing::subjects(&run(&gone.look())), ["kubelet"], "between two starts");
    }

    #[test]
    fn with_the_kernels_reason() {
        let line = "Out of memory: Killed process 812 (kubelet) total-vm:1kB";
        let node = started(&[44, 20, 10]).kernel_says(KernelFault::OutOfMemory, "kubelet", line);
        assert!(testing::details(&run(&node.look()))[0].ends_with(&format!("lack of memory: \"{line}\"")));
    }

    #[test]
    fn a_flap_that_begins_with_a_start_is_told_from_one_that_does_not() {
        // Ready changed 250 s ago.
        let flaps = |last: i64| {
            let node = Node::worker().kubelet_started_ago(last);
            let now = node.look().now.taken_at;
            let node = node.remember(|before| {
                for (process, seconds) in (1..).zip([1700, 1200, last]) {
                    before.kubelet_starts.take(process, now - SignedDuration::from_secs(seconds));
                }
            });
            let outcome = run(&node.says("Ready", "False", "KubeletNotReady", "").look());
            testing::details(&outcome)[0].contains("; Ready last changed at 2023-11-14T22:09:10Z, by such a start")
        };
        assert!(flaps(255) && flaps(305) && !flaps(320) && !flaps(200));
    }

    #[test]
    fn healthy_and_clears() {
        assert_eq!(run(&Node::worker().look()), Outcome::Healthy);
        assert_eq!(run(&started(&[50, 31, 29]).look()), Outcome::Healthy, "half an hour after the last but one");
    }

    #[test]
    fn trap_the_first_start_one_restart_and_no_worker() {
        assert_eq!(run(&started(&[10]).look()), Outcome::Healthy, "the machine's boot");
        assert_eq!(run(&started(&[20, 10]).look()), Outcome::Healthy, "an update");
        assert!(matches!(run(&Node::plain_machine().look()), Outcome::NotApplicable(_)));
    }

    #[test]
    fn unknown_when_processes_cannot_be_seen() {
        let node = Node::worker().edit(|now| now.processes = testing::denied("/proc"));
        assert!(matches!(run(&node.look()), Outcome::Unknown(_)));
    }
}
