//! Memory will soon be below the kubelet's eviction threshold.
//!
//! *Looks at* what the kubelet compares with `memory.available`; without a kubelet at `MemAvailable`; and at all pods
//! together against their common limit, which the kubelet compares with the same threshold. *Traps*: page cache is not use;
//! tasks that wait for memory matter only on a node that has little: a pod at its own limit waits too (catalogue R032, H9).

use std::time::Duration;

use super::super::space::{Supply, human_bytes};
use super::super::{Area, Check, Finding, Look, Outcome, Severity, kubelet_words, pods, seen};
use crate::facts::{Memory, Quantity};

pub(super) const CHECK: Check = Check {
    code: "MemoryPressureImminent",
    area: Area::Capacity,
    severity: Severity::Warning,
    why: "the kubelet will start to evict pods, or the kernel to kill processes",
    next_step: "see who uses it (`kubectl top pod -A --sort-by=memory`, `systemd-cgtop -m`), set limits there, or add a worker",
    raise_after: Duration::from_secs(30),
    clear_after: Duration::from_secs(120),
    run,
};

/// With less than so many percent above the threshold it counts that tasks wait ...
const LITTLE: f64 = 15.0;
/// ... from so many percent of the time on, over a minute.
const STALLED: f64 = 5.0;

fn run(look: &Look<'_>) -> Outcome {
    let memory = seen!(look.now.memory, Outcome::NotApplicable("no memory figures here".into()));
    let mut findings: Vec<Finding> = node(look, memory).into_iter().chain(all_pods(look, memory)).collect();
    if !findings.is_empty() {
        let used = pods::biggest(look, human_bytes, pods::Kind::Memory);
        for finding in &mut findings {
            finding.detail.push_str(&used);
        }
    }
    if findings.is_empty() {
        return kubelet_words::lingers(look, "MemoryPressure");
    }
    Outcome::from_findings(findings)
}

#[expect(clippy::cast_precision_loss, reason = "percentages need no more than 52 bits")]
fn node(look: &Look<'_>, memory: &Memory) -> Option<Finding> {
    let own = Quantity::Percent(look.limits.full_percent).of(memory.total);
    let mut supply = Supply::plain(memory.total, memory.available, own, memory.bytes_per_second);
    if let Some(kubelet) = look.now.kubelet.get().filter(|_| look.expected.worker) {
        supply.available = memory.kubelet_available;
        supply.threshold = kubelet.eviction.memory.of(memory.total);
        supply.soft = kubelet.capacity.soft.memory.of(memory.total);
        supply.kubelet = true;
    }
    let stalled = memory.stall.map_or(0.0, |stall| stall.full_avg60);
    let waits = format!("all tasks wait for memory {stalled:.0} % of the time");
    if let Some(mut finding) = supply.warn_or_full(look.limits, "memory", "Memory", human_bytes) {
        if stalled >= 1.0 {
            finding.detail = format!("{}; {waits}", finding.detail);
        }
        return Some(finding);
    }
    let room = supply.available.saturating_sub(supply.threshold.max(supply.soft)) as f64 * 100.0;
    let waiting = stalled >= STALLED && room < LITTLE * memory.total as f64;
    waiting.then(|| Finding::new("memory", format!("Memory: {}; {waits}", supply.describe(human_bytes))))
}

fn all_pods(look: &Look<'_>, memory: &Memory) -> Option<Finding> {
    let kubelet = look.now.kubelet.get().filter(|_| look.expected.worker)?;
    let all = memory.pods?;
    let available = all.limit.saturating_sub(all.working_set);
    let supply = Supply::plain(all.limit, available, kubelet.eviction.memory.of(all.limit), None);
    Supply { kubelet: true, ..supply }.warn_or_full(look.limits, "pods", "Memory of all pods together", human_bytes)
}

#[cfg(test)]
mod tests {
    use super::super::testing::{self, Node};
    use super::*;
    use crate::facts::{PodsMemory, Seen, Stall};

    fn with(kubelet_available: u64, available: u64, per_second: Option<f64>) -> Node {
        Node::worker().memory(move |memory| {
            *memory = Memory {
                total: 10_000_000_000,
                available,
                kubelet_available,
                bytes_per_second: per_second,
                ..memory.clone()
            };
        })
    }

    #[test]
    fn near_below_and_projected() {
        assert_eq!(testing::subjects(&run(&with(400_000_000, 400_000_000, None).look())), ["memory"]);
        assert_eq!(testing::subjects(&run(&with(50_000_000, 50_000_000, None).look())), ["memory"]);
        assert_eq!(testing::subjects(&run(&with(1_000_000_000, 1_000_000_000, Some(1_000_000.0)).look())), ["memory"]);
    }

    #[test]
    fn the_soft_threshold_and_who_uses_it() {
        let node = with(1_500_000_000, 1_500_000_000, None).edit(|now| {
            let Seen::Yes(kubelet) = &mut now.kubelet else { panic!("seen") };
            kubelet.capacity.soft.memory = Quantity::Absolute(2_000_000_000);
            now.strain.pods = testing::pods();
        });
        let details = testing::details(&run(&node.look()));
        assert!(details[0].contains("soft threshold"), "{details:?}");
        assert!(details[0].ends_with("; most is used by default/web (1.0 GiB), pod u-2 (2.0 MiB)"), "{details:?}");
    }

    #[test]
    fn tasks_that_wait_on_a_node_that_has_little() {
        let stalled =
            |node: Node| node.memory(|memory| memory.stall = Some(Stall { full_avg60: 9.0, ..Stall::default() }));
        let details = testing::details(&run(&stalled(with(1_200_000_000, 1_200_000_000, None)).look()));
        assert!(details[0].ends_with("all tasks wait for memory 9 % of the time"), "{details:?}");
        assert_eq!(run(&stalled(Node::worker()).look()), Outcome::Healthy, "a pod at its own limit");
    }

    #[test]
    fn all_pods_against_their_limit() {
        let pods = |working_set| {
            let pods = Some(PodsMemory { limit: 8_000_000_000, working_set });
            run(&Node::worker().memory(|memory| memory.pods = pods).look())
        };
        assert_eq!(testing::subjects(&pods(7_700_000_000)), ["pods"]);
        assert_eq!(testing::subjects(&pods(7_950_000_000)), ["pods"], "below");
        assert_eq!(pods(7_000_000_000), Outcome::Healthy);
    }

    #[test]
    fn healthy_and_clears() {
        assert_eq!(run(&Node::worker().look()), Outcome::Healthy);
    }

    #[test]
    fn trap_page_cache_on_a_machine_without_kubelet() {
        let node = with(100_000_000, 9_000_000_000, None).edit(|now| now.kubelet = Seen::Absent);
        assert_eq!(run(&node.look()), Outcome::Healthy);
    }

    #[test]
    fn trap_a_kubelet_that_stands_by_it_is_told_and_no_fault() {
        let node =
            Node::worker().says("MemoryPressure", "True", "KubeletHas", "kubelet has insufficient memory available");
        let Outcome::Findings(findings) = run(&node.look()) else { panic!("it is told") };
        assert_eq!((findings[0].subject.as_str(), findings[0].severity), ("MemoryPressure", Some(Severity::Info)));
        assert_eq!(
            run(&Node::worker().says("MemoryPressure", "False", "KubeletHas", "enough").look()),
            Outcome::Healthy
        );
    }

    #[test]
    fn unknown_when_it_cannot_be_read() {
        let node = Node::worker().edit(|now| now.memory = testing::denied("/proc/meminfo"));
        assert!(matches!(run(&node.look()), Outcome::Unknown(_)));
    }
}
