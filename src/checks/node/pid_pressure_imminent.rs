//! Process ids will soon run out.
//!
//! *Looks at* the tasks that exist against the smaller one of `kernel.pid_max` and `kernel.threads-max`, and the kubelet's
//! `pid.available`; and at all pods together against the limit of their cgroup. *Trap*: threads need ids as well, so the
//! number of processes says little; a pod at its own limit is the pod's matter (catalogue R034, H9).

use std::time::Duration;

use super::super::space::Supply;
use super::super::{Area, Check, Finding, Look, Outcome, Severity, kubelet_words, pods, seen};
use crate::facts::{Quantity, Tasks};

pub(super) const CHECK: Check = Check {
    code: "PidPressureImminent",
    area: Area::Capacity,
    severity: Severity::Warning,
    why: "when none is left no process or thread can be started here, not even by the kubelet or the runtime",
    next_step: "see who has so many (`ps -eo nlwp,pid,cgroup --sort=-nlwp | head`, `systemd-cgtop`), restart that workload, and set the kubelet's `podPidsLimit`",
    raise_after: Duration::from_secs(30),
    clear_after: Duration::from_secs(60),
    run,
};

fn run(look: &Look<'_>) -> Outcome {
    let tasks = seen!(look.now.strain.tasks, Outcome::NotApplicable("no count of tasks here".into()));
    let findings: Vec<_> = node(look, tasks).into_iter().chain(all_pods(look, tasks)).collect();
    if findings.is_empty() {
        return kubelet_words::lingers(look, "PIDPressure");
    }
    let used = pods::biggest(look, human, pods::Kind::Tasks);
    let told = findings.into_iter().map(|finding| Finding { detail: finding.detail.clone() + &used, ..finding });
    Outcome::from_findings(told.collect())
}

fn node(look: &Look<'_>, tasks: &Tasks) -> Option<Finding> {
    let kubelet = look.now.kubelet.get().filter(|_| look.expected.worker);
    let [hard, soft] =
        kubelet.map_or([0; 2], |it| [it.eviction.pid, it.capacity.soft.pid].map(|pid| pid.of(tasks.limit)));
    let own = Quantity::Percent(look.limits.full_percent).of(tasks.limit);
    let left = tasks.limit.saturating_sub(tasks.count);
    let plain = Supply::plain(tasks.limit, left, hard.max(own), tasks.per_second);
    let supply = Supply { soft, kubelet: hard.max(soft) > own, ..plain };
    supply.warn_or_full(look.limits, "tasks", "Process ids", human)
}

fn all_pods(look: &Look<'_>, tasks: &Tasks) -> Option<Finding> {
    let (count, limit) = tasks.pods?;
    let own = Quantity::Percent(look.limits.full_percent).of(limit);
    let supply = Supply::plain(limit, limit.saturating_sub(count), own, None);
    supply.warn_or_full(look.limits, "pods", "Process ids of all pods together", human)
}

fn human(number: u64) -> String {
    format!("{number} tasks")
}

#[cfg(test)]
mod tests {
    use super::super::testing::{self, Node};
    use super::*;
    use crate::facts::Seen;

    fn with(count: u64, per_second: Option<f64>, pods: Option<(u64, u64)>) -> Node {
        Node::worker().edit(|now| {
            now.strain.tasks = Seen::Yes(Tasks { count, limit: 32_768, per_second, pods });
            now.strain.pods = testing::pods();
        })
    }

    #[test]
    fn near_full_and_projected() {
        let details = testing::details(&run(&with(31_500, None, None).look()));
        assert!(details[0].starts_with("Process ids: 3.9 % left (1268 tasks), the limit is 327 tasks"), "{details:?}");
        assert!(details[0].ends_with("most is used by pod u-2 (900 tasks), default/web (7 tasks)"), "{details:?}");
        assert_eq!(testing::subjects(&run(&with(32_768, None, None).look())), ["tasks"]);
        assert_eq!(testing::subjects(&run(&with(28_000, Some(10.0), None).look())), ["tasks"]);
    }

    #[test]
    fn the_kubelets_threshold_counts() {
        let node = with(27_000, None, None).edit(|now| {
            let Seen::Yes(kubelet) = &mut now.kubelet else { panic!("seen") };
            kubelet.eviction.pid = Quantity::Percent(15.0);
        });
        assert!(testing::details(&run(&node.look()))[0].contains("the kubelet evicts pods below 4915 tasks"));
    }

    #[test]
    fn all_pods_against_their_limit() {
        assert_eq!(testing::subjects(&run(&with(5_000, None, Some((3_900, 4_000))).look())), ["pods"]);
        assert_eq!(run(&with(5_000, None, Some((3_000, 4_000))).look()), Outcome::Healthy);
    }

    #[test]
    fn healthy_and_clears() {
        assert_eq!(run(&Node::worker().look()), Outcome::Healthy);
    }

    #[test]
    fn trap_many_tasks_under_a_high_limit() {
        let tasks = Tasks { count: 60_000, limit: 4_194_304, per_second: Some(3.0), pods: None };
        let node = Node::worker().edit(|now| now.strain.tasks = Seen::Yes(tasks));
        assert_eq!(run(&node.look()), Outcome::Healthy);
    }

    #[test]
    fn trap_a_kubelet_that_stands_by_it_is_told_and_no_fault() {
        let node = Node::worker().says("PIDPressure", "True", "KubeletHas", "kubelet has insufficient PID available");
        let Outcome::Findings(findings) = run(&node.look()) else { panic!("it is told") };
        assert_eq!((findings[0].subject.as_str(), findings[0].severity), ("PIDPressure", Some(Severity::Info)));
        assert_eq!(run(&Node::worker().says("PIDPressure", "False", "KubeletHas", "enough").look()), Outcome::Healthy);
    }

    #[test]
    fn unknown_when_it_cannot_be_read() {
        let node = Node::worker().edit(|now| now.strain.tasks = testing::denied("/proc/loadavg"));
        assert!(matches!(run(&node.look()), Outcome::Unknown(_)));
    }
}
