//! Thousands of containers came and went, and what they left behind was not removed.
//!
//! *Looks at* objects that nobody owns (containers and sandboxes of pods that are gone, shims, snapshots, network namespaces, links, control groups)
//! and
//! at resources that only grow. *Traps*: a node of many jobs has many ended containers, which the kubelet keeps on purpose:
//! never totals, but objects without an owner, and growth while the pods become no more (catalogue R005, H14).

use std::time::Duration;

use super::super::{Area, Check, Finding, Look, Outcome, Severity, seen};
use super::shim_leak::counted;
use crate::facts::{CallLatency, Debris, Seen, utc};

pub(super) const CHECK: Check = Check {
    code: "RuntimeObjectLeak",
    area: Area::Runtime,
    severity: Severity::Warning,
    why: "containerd, the kubelet and Calico get slower with every object, until they do not recover any more",
    next_step: "find out what makes so many containers (`crictl ps -a`, CronJobs, a container that crashes); then cordon, gather, drain and reload the worker",
    // What has no owner has had none for ten minutes, and what grows has done so for hours.
    raise_after: Duration::ZERO,
    clear_after: Duration::ZERO,
    run,
};

fn run(look: &Look<'_>) -> Outcome {
    let debris = seen!(look.now.debris, Outcome::NotApplicable("nothing has been watched for ten minutes".into()));
    // A runtime that suffers from it already is worse.
    let slow = look.now.runtime.latency.iter().any(CallLatency::lasts);
    let (severity, suffers) =
        if slow { (Severity::Critical, ", and the runtime is slow already") } else { (CHECK.severity, "") };
    let mut findings = Vec::new();
    if debris.containers > look.limits.abandoned_containers {
        let detail = format!(
            "{} of pods that are gone are still kept ({} ended containers in all)",
            counted(debris.containers, "ended container", "ended containers"),
            debris.exited
        );
        findings.push(Finding::new("containers", detail));
    }
    let links = links(look);
    let objects = debris.ownerless() + links;
    if objects > look.limits.abandoned_objects {
        let parts = [
            (debris.sandboxes, "sandboxes"),
            (debris.shim_count, "shims"),
            (debris.namespaces, "network namespaces"),
            (links, "links"),
            (debris.cgroups, "control groups of pods"),
            (debris.snapshot_count(), "snapshots"),
        ];
        let parts: Vec<String> =
            parts.iter().filter(|(count, _)| *count > 0).map(|(count, what)| format!("{count} {what}")).collect();
        let detail = format!("{objects} objects have no pod any more: {}{}", parts.join(", "), about_snapshots(debris));
        findings.push(Finding::new("objects", detail));
    }
    for growing in &debris.growing {
        let detail = format!(
            "{} have grown from {} to {} within {} hours, with no more pods than before",
            growing.resource, growing.was, growing.now, growing.hours
        );
        findings.push(Finding::new(growing.resource.to_string(), detail));
    }
    for finding in &mut findings {
        finding.detail.push_str(suffers);
        finding.severity = Some(severity);
    }
    Outcome::from_findings(findings)
}

/// Which snapshot to look at first, or why none was.
fn about_snapshots(debris: &Debris) -> String {
    match &debris.snapshots {
        Seen::Yes(snapshots) => snapshots.oldest.as_ref().map_or_else(String::new, |(key, since)| {
            format!(" (the oldest is {key} of {}; `ctr -n k8s.io snapshots ls`)", utc(*since))
        }),
        Seen::Absent => String::new(),
        Seen::Unreadable(error) => format!("; snapshots were not looked at ({})", error.detail),
    }
}

/// Calico's links to pods, less the pods that have a network of their own, or may have one.
fn links(look: &Look<'_>) -> u64 {
    let (Some(routing), Some(sandboxes)) = (look.now.routing.get(), look.now.runtime.sandboxes.get()) else { return 0 };
    let links =
        routing.links.iter().filter(|link| link.name.starts_with("cali") && link.kind.as_deref() == Some("veth"));
    let pods = sandboxes.iter().filter(|sandbox| sandbox.host_network != Some(true)).count();
    (links.count() as u64).saturating_sub(pods as u64)
}

#[cfg(test)]
mod tests {
    use super::super::testing::{self, Node};
    use super::*;
    use crate::facts::{Growing, Program, Resource, Snapshots};

    fn debris(debris: Debris) -> Node {
        Node::worker().edit(|now| now.debris = Seen::Yes(debris))
    }

    #[test]
    fn containers_and_objects_without_an_owner_and_growth() {
        let growing =
            vec![Growing { resource: Resource::Descriptors(Program::Containerd), was: 600, now: 9000, hours: 7 }];
        let node = debris(Debris {
            containers: 501,
            exited: 1200,
            sandboxes: 900,
            namespaces: 90,
            cgroups: 11,
            growing,
            ..Debris::default()
        });
        let outcome = run(&node.look());
        assert_eq!(testing::subjects(&outcome), ["containers", "objects", "open files of containerd"]);
        let details = testing::details(&outcome);
        assert_eq!(
            details[1],
            "1001 objects have no pod any more: 900 sandboxes, 90 network namespaces, 11 control groups of pods"
        );
        let growth =
            "open files of containerd have grown from 600 to 9000 within 7 hours, with no more pods than before";
        assert_eq!(details[2], growth);
    }

    #[test]
    fn snapshots_count_and_the_oldest_is_named() {
        let oldest = Some(("0123".to_owned(), "2026-11-21T10:00:00Z".parse().expect("a time")));
        let leak = Debris { snapshots: Seen::Yes(Snapshots { count: 990, oldest }), cgroups: 11, ..Debris::default() };
        let detail = "1001 objects have no pod any more: 11 control groups of pods, 990 snapshots (the oldest is 0123 of \
                      2026-11-21T10:00:00Z; `ctr -n k8s.io snapshots ls`)";
        assert_eq!(testing::details(&run(&debris(leak.clone()).look())), [detail]);
        let fewer = Seen::Yes(Snapshots { count: 989, oldest: None });
        assert_eq!(run(&debris(Debris { snapshots: fewer, ..leak.clone() }).look()), Outcome::Healthy);
        // Another runtime: what else there is counts all the same.
        let snapshots = testing::error("snapshots", crate::facts::Reason::Unsupported);
        let others = Debris { snapshots, cgroups: 1001, ..leak };
        let details = testing::details(&run(&debris(others.clone()).look())).join("");
        assert!(details.contains("1001 control groups of pods; snapshots were not looked at ("), "{details}");
        assert_eq!(run(&debris(Debris { cgroups: 1000, ..others }).look()), Outcome::Healthy);
    }

    #[test]
    fn it_is_critical_when_the_runtime_is_slow_already() {
        let leak = Debris { containers: 501, ..Debris::default() };
        let severity = |node: &Node| {
            let Outcome::Findings(findings) = run(&node.look()) else { panic!("findings") };
            findings[0].severity
        };
        assert_eq!(severity(&debris(leak.clone())), Some(Severity::Warning));
        let slow = CallLatency { call: "Version", now: 1500, before: 1500, usual: Some(3) };
        let node = debris(leak).edit(|now| now.runtime.latency = vec![slow]);
        assert_eq!(severity(&node), Some(Severity::Critical));
    }

    #[test]
    fn links_of_calico_count_beyond_the_pods() {
        let node = Node::calico_worker().edit(|now| {
            let Seen::Yes(routing) = &mut now.routing else { panic!("seen") };
            routing.links.extend((0..1200).map(|at| testing::link(100 + at, &format!("cali{at:011x}"), Some("veth"))));
        });
        assert!(testing::details(&run(&node.look()))[0].starts_with("12"), "{:?}", run(&node.look()));
    }

    #[test]
    fn healthy_and_clears() {
        assert_eq!(run(&Node::worker().look()), Outcome::Healthy);
    }

    #[test]
    fn trap_a_node_of_many_jobs() {
        let node = debris(Debris { exited: 5000, not_ready: 5000, containers: 400, ..Debris::default() });
        assert_eq!(run(&node.look()), Outcome::Healthy);
    }

    #[test]
    fn unknown_when_the_runtime_does_not_tell_what_it_has() {
        let node = Node::worker().edit(|now| now.debris = testing::timed_out("debris"));
        assert!(matches!(run(&node.look()), Outcome::Unknown(_)));
        let node = Node::worker().edit(|now| now.debris = Seen::Absent);
        assert!(matches!(run(&node.look()), Outcome::NotApplicable(_)));
    }
}
