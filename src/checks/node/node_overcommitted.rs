//! The pods may use more memory than there is, and it shows.
//!
//! *Looks at* the memory limits of the pods by their cgroups, and at what those without one use, against what pods may have.
//! *Trap*: limits of more than 100 % are how nodes are used well, so they count only beside evidence: the node or all pods
//! together ran out of memory, or tasks wait for it on a node that has little (catalogue R004).

use std::time::Duration;

use super::super::space::human_bytes;
use super::super::{Area, Check, Finding, Look, Outcome, Severity, pods, seen};
use crate::facts::{Memory, OomScope};

pub(super) const CHECK: Check = Check {
    code: "NodeOvercommitted",
    area: Area::Capacity,
    severity: Severity::Warning,
    why: "the pods can take more memory than there is, and then the kubelet evicts or the kernel kills what is not to blame",
    next_step: "compare requests and limits with what is used (`kubectl describe node`, `kubectl top pod -A --sort-by=memory`), lower them or set those that are missing, or add a worker",
    raise_after: Duration::from_secs(30),
    clear_after: Duration::from_secs(120),
    run,
};

/// With less than this share of the memory left it counts that tasks wait ...
const LITTLE: u64 = 6;
/// ... from so many percent of the time on, over a minute.
const STALLED: f64 = 5.0;

fn run(look: &Look<'_>) -> Outcome {
    let memory = seen!(look.now.memory, Outcome::NotApplicable("no memory figures here".into()));
    let Some(evidence) = evidence(memory) else { return Outcome::Healthy };
    let scan = seen!(look.now.strain.pods, Outcome::NotApplicable("no pods here".into()));
    let allocatable = memory.pods.map_or(memory.total, |pods| pods.limit);
    let possible = scan.limits.saturating_add(scan.unlimited_use);
    if possible <= allocatable {
        return Outcome::Healthy;
    }
    let limited = scan.pods - scan.unlimited.min(scan.pods);
    let used = pods::biggest(look, human_bytes, pods::Kind::Memory);
    let detail = format!(
        "{evidence}: {limited} pods have memory limits of {} together and {} without a limit ({} of them BestEffort) use {}, \
         of {} that pods may have{used}",
        human_bytes(scan.limits),
        scan.unlimited,
        scan.best_effort,
        human_bytes(scan.unlimited_use),
        human_bytes(allocatable)
    );
    Outcome::from_findings(vec![Finding::new("memory", detail)])
}

fn evidence(memory: &Memory) -> Option<String> {
    let mut kills = memory.kills.get().into_iter().flatten();
    if kills.any(|kill| matches!(kill.scope, OomScope::Node | OomScope::AllPods)) {
        return Some("Memory ran out".to_owned());
    }
    let stalled = memory.stall.map(|stall| stall.full_avg60).filter(|percent| *percent >= STALLED)?;
    let little = memory.kubelet_available < memory.total / LITTLE;
    little.then(|| format!("All tasks wait for memory {stalled:.0} % of the time"))
}

#[cfg(test)]
mod tests {
    use super::super::testing::{self, Node};
    use super::*;
    use crate::facts::{OomKill, PodScan, Seen, Stall};

    /// With kills of this scope, and limits of so many GiB.
    fn with(scope: Option<OomScope>, limits: u64) -> Node {
        let last = "2026-11-21T10:00:00Z".parse().expect("a time");
        let kills = scope.into_iter().map(|scope| OomKill { scope, pod: None, processes: 1, last }).collect();
        let scan = PodScan {
            pods: 5,
            best_effort: 1,
            unlimited: 2,
            unlimited_use: 2 << 30,
            limits: limits << 30,
            ..PodScan::default()
        };
        let node = Node::worker().memory(move |memory| {
            memory.total = 16 << 30;
            memory.kills = Seen::Yes(kills);
        });
        node.edit(|now| now.strain.pods = Seen::Yes(scan))
    }

    #[test]
    fn fires_when_memory_ran_out_or_tasks_wait() {
        let details = testing::details(&run(&with(Some(OomScope::Node), 15).look()));
        assert_eq!(
            details,
            [
                "Memory ran out: 3 pods have memory limits of 15.0 GiB together and 2 without a limit (1 of them BestEffort) \
              use 2.0 GiB, of 16.0 GiB that pods may have"
            ]
        );
        let waiting = with(None, 15).memory(|memory| {
            memory.kubelet_available = 1 << 30;
            memory.stall = Some(Stall { full_avg60: 7.0, ..Stall::default() });
        });
        assert!(testing::details(&run(&waiting.look()))[0].starts_with("All tasks wait for memory 7 % of the time: "));
    }

    #[test]
    fn trap_limits_alone_are_normal() {
        assert_eq!(run(&with(None, 500).look()), Outcome::Healthy);
        assert_eq!(run(&with(Some(OomScope::Pod), 500).look()), Outcome::Healthy, "a pod's own limit says nothing");
    }

    #[test]
    fn healthy_and_clears() {
        assert_eq!(run(&Node::worker().look()), Outcome::Healthy);
        assert_eq!(run(&with(Some(OomScope::Node), 13).look()), Outcome::Healthy, "something else took the memory");
    }

    #[test]
    fn unknown_when_it_cannot_be_read() {
        let node = Node::worker().edit(|now| now.memory = testing::denied("/proc/meminfo"));
        assert!(matches!(run(&node.look()), Outcome::Unknown(_)));
        let node = with(Some(OomScope::Node), 1).edit(|now| now.strain.pods = testing::timed_out("cgroups of pods"));
        assert!(matches!(run(&node.look()), Outcome::Unknown(_)));
    }
}
