//! Memory will soon be below the kubelet's eviction threshold.
//!
//! *Looks at* `MemFree` plus `Inactive(file)`, which is what the kubelet compares with `memory.available`; without a
//! kubelet at `MemAvailable`. *Traps*: page cache is not use; a machine that swaps or has a large active cache is not short
//! while the kernel says that memory is available (catalogue R032, H9).

use std::time::Duration;

use super::super::space::{self, Supply};
use super::super::{Area, Check, Finding, Look, Outcome, Severity, seen};
use crate::facts::Quantity;

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

fn run(look: &Look<'_>) -> Outcome {
    let memory = seen!(look.now.memory, Outcome::NotApplicable("no memory figures here".into()));
    let kubelet = look.now.kubelet.get().filter(|_| look.expected.worker);
    let supply = Supply {
        capacity: memory.total,
        available: if kubelet.is_some() { memory.kubelet_available } else { memory.available },
        threshold: kubelet
            .map_or(Quantity::Percent(look.limits.full_percent), |kubelet| kubelet.eviction.memory)
            .of(memory.total),
        per_second: memory.bytes_per_second,
        kubelet: kubelet.is_some(),
    };
    let reason = if supply.full() { Some("below the limit".to_owned()) } else { supply.imminent(look.limits) };
    let Some(reason) = reason else { return Outcome::Healthy };
    let stalled = memory.pressure.filter(|percent| *percent >= 1.0);
    let stalled = stalled.map_or_else(String::new, |percent| format!("; all tasks stall {percent:.0} % of the time"));
    let detail = format!("Memory: {}; {reason}{stalled}", supply.describe(space::human_bytes));
    Outcome::from_findings(vec![Finding::new("memory", detail)])
}

#[cfg(test)]
mod tests {
    use super::super::testing::{self, Node};
    use super::*;
    use crate::facts::{Memory, Seen};

    fn with(kubelet_available: u64, available: u64, per_second: Option<f64>) -> Node {
        let total = 10_000_000_000;
        let memory = Memory { total, available, kubelet_available, pressure: Some(0.0), bytes_per_second: per_second };
        Node::worker().edit(|now| now.memory = Seen::Yes(memory))
    }

    #[test]
    fn near_below_and_projected() {
        assert_eq!(testing::subjects(&run(&with(400_000_000, 400_000_000, None).look())), ["memory"]);
        assert_eq!(testing::subjects(&run(&with(50_000_000, 50_000_000, None).look())), ["memory"]);
        assert_eq!(testing::subjects(&run(&with(1_000_000_000, 1_000_000_000, Some(1_000_000.0)).look())), ["memory"]);
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
    fn unknown_when_it_cannot_be_read() {
        let node = Node::worker().edit(|now| now.memory = testing::denied("/proc/meminfo"));
        assert!(matches!(run(&node.look()), Outcome::Unknown(_)));
    }
}
