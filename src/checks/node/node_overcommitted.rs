//! The pods may use more memory or CPU time than there is, and it shows.
//!
//! *Looks at* the limits of the pods by their cgroups, and at what those without one use, against what pods may have.
//! *Traps*: limits of more than 100 % are how nodes are used well, so they count only beside evidence: the node or all pods
//! together ran out of memory, tasks wait for it on a node that has little, or tasks wait for CPUs none of which is idle, for
//! longer than a burst lasts; static pods belong to the node, nobody scheduled them and nobody can move them (catalogue R004).

use std::time::Duration;

use super::super::space::human_bytes;
use super::super::{Area, Check, Finding, Look, Outcome, Severity, pods, seen};
use crate::facts::{Cpus, Memory, OomScope, PodScan, Stall};

pub(super) const CHECK: Check = Check {
    code: "NodeOvercommitted",
    area: Area::Capacity,
    severity: Severity::Warning,
    why: "the pods can take more than there is: of memory, and then the kubelet evicts or the kernel kills what is not to blame; of CPU time, and then probes time out and everything is late",
    next_step: "compare requests and limits with what is used (`kubectl describe node`, `kubectl top pod -A --sort-by=memory`), lower them or set those that are missing, or add a worker",
    raise_after: Duration::from_secs(30),
    clear_after: Duration::from_secs(120),
    run,
};

/// With less than this share of the memory left it counts that tasks wait ...
const LITTLE: u64 = 6;
/// ... from so many percent of the time on, over a minute.
const STALLED: f64 = 5.0;

/// A burst of work, as when many pods start at once, is over after this time: the CPUs are its own until then.
const BURST: Duration = Duration::from_secs(300);

fn run(look: &Look<'_>) -> Outcome {
    let memory = seen!(look.now.memory, Outcome::NotApplicable("no memory figures here".into()));
    let (evidence, cpus) = (evidence(memory), look.now.strain.short_of_cpus());
    if evidence.is_none() && cpus.is_none() {
        return Outcome::Healthy;
    }
    let scan = seen!(look.now.strain.pods, Outcome::NotApplicable("no pods here".into()));
    let memory = evidence.and_then(|evidence| of_memory(look, memory, scan, &evidence));
    let cpus = cpus.and_then(|(stall, cpus)| of_cpus(look, scan, stall, cpus));
    Outcome::from_findings(memory.into_iter().chain(cpus).collect())
}

/// ` beside 2 static ones`, where there are some.
fn beside(scan: &PodScan) -> String {
    if scan.fixed == 0 { String::new() } else { format!(" beside {} static ones", scan.fixed) }
}

#[expect(clippy::cast_precision_loss, reason = "one decimal is shown")]
fn of_cpus(look: &Look<'_>, scan: &PodScan, stall: Stall, cpus: Cpus) -> Option<Finding> {
    if scan.cpu_limits.saturating_add(scan.cpu_unlimited_use) <= cpus.count.saturating_mul(1000) {
        return None;
    }
    let human = |thousandths: u64| format!("{:.1} CPUs", thousandths as f64 / 1000.0);
    let detail = format!(
        "Some task waits for a CPU {:.0} % of the time and none is idle: {} pods have limits of {} together and {} without a \
         limit use {}, of {}{}{}",
        stall.some_avg60,
        scan.pods.saturating_sub(scan.cpu_unlimited),
        human(scan.cpu_limits),
        scan.cpu_unlimited,
        human(scan.cpu_unlimited_use),
        human(cpus.count * 1000),
        beside(scan),
        pods::biggest(look, human, pods::Kind::Cpus),
    );
    Some(Finding { owner_repairs_within: Some(BURST), ..Finding::new("cpu", detail) })
}

fn of_memory(look: &Look<'_>, memory: &Memory, scan: &PodScan, evidence: &str) -> Option<Finding> {
    let allocatable = memory.pods.map_or(memory.total, |pods| pods.limit).saturating_sub(scan.fixed_use);
    let possible = scan.limits.saturating_add(scan.unlimited_use);
    if possible <= allocatable {
        return None;
    }
    let limited = scan.pods - scan.unlimited.min(scan.pods);
    let used = pods::biggest(look, human_bytes, pods::Kind::Memory);
    let detail = format!(
        "{evidence}: {limited} pods have memory limits of {} together and {} without a limit ({} of them BestEffort) use {}, \
         of {} that pods may have{}{used}",
        human_bytes(scan.limits),
        scan.unlimited,
        scan.best_effort,
        human_bytes(scan.unlimited_use),
        human_bytes(allocatable),
        beside(scan)
    );
    Some(Finding::new("memory", detail))
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
    use crate::facts::{OomKill, Seen};

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

    /// Eight CPUs that are as idle as that while tasks wait, and limits of so many.
    fn crowded(waits: f64, idle: f64, limits: u64) -> Node {
        let stall = Stall { some_avg10: waits, some_avg60: waits, ..Stall::default() };
        Node::worker().edit(|now| {
            let Seen::Yes(scan) = testing::pods() else { panic!("seen") };
            let scan =
                PodScan { pods: 5, cpu_limits: limits * 1000, cpu_unlimited: 2, cpu_unlimited_use: 3500, ..scan };
            now.strain.cpu = Seen::Yes(stall);
            now.strain.cpus = Some(Cpus { count: 8, idle: Some(idle) });
            now.strain.pods = Seen::Yes(scan);
        })
    }

    #[test]
    fn fires_when_tasks_wait_for_cpus_none_of_which_is_idle() {
        let Outcome::Findings(findings) = run(&crowded(70.0, 1.0, 12).look()) else { panic!("a finding") };
        assert_eq!((findings[0].subject.as_str(), findings[0].owner_repairs_within), ("cpu", Some(BURST)));
        let expected = "Some task waits for a CPU 70 % of the time and none is idle: 3 pods have limits of 12.0 CPUs together \
            and 2 without a limit use 3.5 CPUs, of 8.0 CPUs; most is used by default/web (2.5 CPUs)";
        assert_eq!(findings[0].detail, expected);
    }

    #[test]
    fn trap_cpus_a_pod_at_its_limit_a_node_that_is_used_well_and_its_static_pods() {
        assert_eq!(run(&crowded(95.0, 40.0, 12).look()), Outcome::Healthy, "who waits there is at a limit of its own");
        assert_eq!(run(&crowded(20.0, 0.0, 12).look()), Outcome::Healthy, "fully used, and nobody waits long");
        assert_eq!(run(&crowded(70.0, 1.0, 4).look()), Outcome::Healthy, "something else than pods needs them");
        let fixed = |limits| {
            with(Some(OomScope::Node), limits).edit(|now| {
                let Seen::Yes(scan) = &mut now.strain.pods else { panic!("seen") };
                (scan.fixed, scan.fixed_use) = (3, 1 << 30);
            })
        };
        assert_eq!(run(&fixed(13).look()), Outcome::Healthy, "15 GiB for 15");
        let details = testing::details(&run(&fixed(14).look()));
        assert!(details[0].ends_with("of 15.0 GiB that pods may have beside 3 static ones"), "{details:?}");
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
