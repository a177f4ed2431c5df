//! The kernel killed processes for want of memory.
//!
//! *Looks at* the kernel's counters of kills and at those of the cgroups in which they happened; its log only tells what they
//! leave open, and the programs' names. *Trap*: a pod that meets its own limit is the pod's fault and none of the node's; that
//! the whole node is out of memory is (catalogue R033).

use std::time::Duration;

use super::super::space::human_bytes;
use super::super::{Area, Check, Finding, Look, Outcome, Severity, pods, seen};
use crate::facts::{KernelFault, OomKill, OomScope};

pub(super) const CHECK: Check = Check {
    code: "OutOfMemory",
    area: Area::Capacity,
    severity: Severity::Warning,
    why: "what was killed is restarted at best, and what shares the memory may be next",
    next_step: "see what it needs (`kubectl describe pod`, `kubectl top pod --containers`, `dmesg | grep -i oom`), then raise its limit or mend its leak",
    raise_after: Duration::from_secs(1),
    clear_after: Duration::from_secs(10),
    run,
};

/// What to do when it is the node's own memory.
const NODE: &str = "see who uses it (`kubectl top pod -A --sort-by=memory`), set requests and limits on what has none, or add a worker";

fn run(look: &Look<'_>) -> Outcome {
    let memory = seen!(look.now.memory, Outcome::NotApplicable("no memory figures here".into()));
    let kills = seen!(memory.kills, Outcome::NotApplicable("kills are not counted here".into()));
    // Where the cgroup was gone before it could be asked, the kernel's log says whose memory it was.
    let of_node = programs(look, &[KernelFault::OutOfMemory]);
    let open = |kill: &OomKill| matches!(kill.scope, OomScope::Gone | OomScope::Elsewhere);
    let is_node = |kill: &&OomKill| kill.scope == OomScope::Node || (open(kill) && !of_node.is_empty());
    let (node, others): (Vec<_>, Vec<_>) = kills.iter().partition(is_node);
    let (all, others): (Vec<_>, Vec<_>) = others.into_iter().partition(|kill| kill.scope == OomScope::AllPods);
    let shared = [
        ("node", "The node ran out of memory", node),
        ("pods", "All pods together reached the limit that is set for them", all),
    ];
    let shared = shared.into_iter().filter(|(.., kills)| !kills.is_empty()).map(|(subject, what, kills)| {
        let victims: Vec<_> =
            kills.iter().filter_map(|kill| kill.pod.as_ref()).map(|pod| pods::name(look, pod)).collect();
        let victims = if victims.is_empty() { String::new() } else { format!(", in {}", victims.join(", ")) };
        let used = pods::biggest(look, human_bytes, pods::Kind::Memory);
        let named = if subject == "node" { of_node.as_str() } else { "" };
        let detail = format!("{what}, and the kernel killed {}{victims}{named}{used}", processes(&kills));
        Finding::new(subject, detail).severity(Severity::Critical).next(NODE)
    });
    let own = others.iter().map(|kill| {
        let (subject, whose) = match (&kill.scope, &kill.pod) {
            (OomScope::Service(name), _) => (name.clone(), format!("Service {name}")),
            (_, Some(pod)) => (pods::name(look, pod), pods::name(look, pod)),
            (OomScope::Pod, None) => ("gone".to_owned(), "A pod that has gone since".to_owned()),
            (OomScope::Elsewhere, _) => ("elsewhere".to_owned(), "A cgroup beside the pods and services".to_owned()),
            _ => ("unknown".to_owned(), "A container or service that has gone since".to_owned()),
        };
        let severity = if kill.scope == OomScope::Elsewhere { Severity::Info } else { Severity::Warning };
        let killed = processes(&[*kill]);
        // The log does not say which of several it is.
        let named = if others.len() == 1 { programs(look, &[KernelFault::CgroupOutOfMemory]) } else { String::new() };
        let detail = format!("{whose} reached its own memory limit, and the kernel killed {killed}{named}");
        Finding::new(subject, detail).severity(severity)
    });
    Outcome::from_findings(shared.chain(own).collect())
}

/// `; its log names java, node`, or nothing.
fn programs(look: &Look<'_>, faults: &'static [KernelFault]) -> String {
    let log = look.now.kernel_log.get();
    let names: Vec<&str> = log.into_iter().flat_map(|log| log.of(faults)).map(|event| event.subject.as_str()).collect();
    if names.is_empty() { String::new() } else { format!("; its log names {}", names.join(", ")) }
}

fn processes(kills: &[&OomKill]) -> String {
    let count: u64 = kills.iter().map(|kill| kill.processes).sum();
    let last = kills.iter().map(|kill| kill.last).max().map_or_else(String::new, |last| format!("{last:.0}"));
    let what = if count == 1 { "a process".to_owned() } else { format!("{count} processes") };
    format!("{what} within {} minutes, last at {last}", OomKill::MINUTES)
}

#[cfg(test)]
mod tests {
    use super::super::testing::{self, Node};
    use super::*;
    use crate::facts::{PodCgroup, Seen};

    fn with(kills: &[(OomScope, Option<&str>)]) -> Node {
        let kill = |(scope, container): &(OomScope, Option<&str>)| OomKill {
            scope: scope.clone(),
            pod: container.map(|id| PodCgroup { uid: "u-1".into(), containers: vec![id.to_owned()] }),
            processes: 2,
            last: "2026-11-21T10:00:00.5Z".parse().expect("a time"),
        };
        let kills: Vec<_> = kills.iter().map(kill).collect();
        Node::worker().memory(move |memory| memory.kills = Seen::Yes(kills))
    }

    fn findings(node: &Node) -> Vec<Finding> {
        let Outcome::Findings(findings) = run(&node.look()) else { panic!("findings") };
        findings
    }

    #[test]
    fn the_node_is_critical_and_names_the_victims_and_the_biggest() {
        let node = with(&[(OomScope::Node, Some("sandbox-1")), (OomScope::Node, None)]);
        let found = findings(&node.edit(|now| now.strain.pods = testing::pods()));
        assert_eq!((found.len(), found[0].severity), (1, Some(Severity::Critical)));
        assert_eq!(
            found[0].detail,
            "The node ran out of memory, and the kernel killed 4 processes within 10 minutes, last at \
             2026-11-21T10:00:00Z, in default/web; most is used by default/web (1.0 GiB), pod u-2 (2.0 MiB)"
        );
        let found = findings(&with(&[(OomScope::AllPods, Some("other"))]));
        assert_eq!((found[0].subject.as_str(), found[0].severity), ("pods", Some(Severity::Critical)));
    }

    #[test]
    fn trap_a_pods_own_limit_is_a_warning_that_names_it() {
        let service = OomScope::Service("x.service".into());
        let found = findings(&with(&[
            (OomScope::Pod, Some("sandbox-1")),
            (service, None),
            (OomScope::Gone, None),
            (OomScope::Pod, None),
            (OomScope::Elsewhere, None),
        ]));
        let short: Vec<_> = found.iter().map(|it| (it.subject.as_str(), it.severity)).collect();
        assert_eq!(
            short,
            [
                ("default/web", Some(Severity::Warning)),
                ("elsewhere", Some(Severity::Info)),
                ("gone", Some(Severity::Warning)),
                ("unknown", Some(Severity::Warning)),
                ("x.service", Some(Severity::Warning)),
            ]
        );
        assert!(found[0].detail.starts_with("default/web reached its own memory limit"), "{}", found[0].detail);
    }

    #[test]
    fn the_log_tells_what_the_counters_leave_open_and_nothing_by_itself() {
        let line = "Out of memory: Killed process 1012 (java) total-vm:4170344kB";
        let gone = with(&[(OomScope::Gone, None)]).kernel_says(KernelFault::OutOfMemory, "java", line);
        let found = findings(&gone);
        assert_eq!((found[0].subject.as_str(), found[0].severity), ("node", Some(Severity::Critical)));
        assert!(found[0].detail.ends_with("; its log names java"), "{}", found[0].detail);
        let own = with(&[(OomScope::Pod, Some("sandbox-1"))]);
        let found = findings(&own.kernel_says(KernelFault::CgroupOutOfMemory, "tail", line));
        assert_eq!(found[0].severity, Some(Severity::Warning));
        assert!(found[0].detail.ends_with("; its log names tail"), "{}", found[0].detail);
        let log = Node::worker().kernel_says(KernelFault::OutOfMemory, "java", line);
        assert_eq!(run(&log.look()), Outcome::Healthy, "its lines may be of another time");
    }

    #[test]
    fn healthy_and_clears() {
        assert_eq!(run(&Node::worker().look()), Outcome::Healthy);
    }

    #[test]
    fn unknown_when_it_is_not_counted() {
        let node = Node::worker().memory(|memory| memory.kills = testing::denied("/proc/vmstat"));
        assert!(matches!(run(&node.look()), Outcome::Unknown(_)));
        let node = Node::worker().edit(|now| now.memory = testing::denied("/proc/meminfo"));
        assert!(matches!(run(&node.look()), Outcome::Unknown(_)));
    }
}
