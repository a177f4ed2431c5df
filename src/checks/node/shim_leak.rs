//! Helpers of containers outlived their pods, or nobody reaps what has ended.
//!
//! *Looks at* `containerd-shim` processes whose sandbox the runtime does not know, and zombies whose parent is the runtime, a
//! shim or the kubelet. *Traps*: a pod that is being removed, hence ten minutes without an owner; shims of Docker, of
//! `ctr`, or inside a pod; zombies of a container that does not reap its own children (catalogue R061).

use std::time::Duration;

use super::super::{Area, Check, Finding, Look, Outcome, Severity, seen};
use crate::facts::Debris;

pub(super) const CHECK: Check = Check {
    code: "ShimLeak",
    area: Area::Runtime,
    severity: Severity::Warning,
    why: "the processes of such a pod still run, outside of Kubernetes' knowledge, and may hold its files, ports and address",
    next_step: "look at what still runs below them (`pstree -p PID`), cordon and drain the worker, and reload it; killing a shim kills its containers",
    // Ten minutes are over when it is told.
    raise_after: Duration::ZERO,
    clear_after: Duration::ZERO,
    run,
};

fn run(look: &Look<'_>) -> Outcome {
    let debris = seen!(look.now.debris, Outcome::NotApplicable("nothing has been watched for ten minutes".into()));
    let mut findings = Vec::new();
    if debris.shim_count > 0 {
        let names: Vec<String> = debris.shims.iter().map(|(pid, sandbox)| format!("{pid} ({sandbox})")).collect();
        let more = if debris.shim_count > Debris::EXAMPLES as u64 { " and more" } else { "" };
        let detail = format!(
            "The runtime knows no sandbox for {}: {}{more}",
            counted(debris.shim_count, "shim that runs", "shims that run"),
            names.join(", ")
        );
        findings.push(Finding::new("shims", detail));
    }
    if debris.zombies > 0 {
        let zombies = counted(debris.zombies, "ended child", "ended children");
        let detail = format!("{zombies} of the runtime, its shims or the kubelet were not reaped for ten minutes");
        let finding = Finding::new("zombies", detail);
        findings.push(finding.next("find their parents (`ps -eo pid,ppid,stat,comm | grep ' Z'`): a parent that does not reap hangs; gather its stacks, then cordon, drain and reload the worker"));
    }
    Outcome::from_findings(findings)
}

/// A number with its noun.
pub(super) fn counted(count: u64, one: &str, many: &str) -> String {
    format!("{count} {}", if count == 1 { one } else { many })
}

#[cfg(test)]
mod tests {
    use super::super::testing::{self, Node};
    use super::*;
    use crate::facts::Seen;

    #[test]
    fn shims_without_a_sandbox_and_zombies() {
        let node = Node::worker().edit(|now| {
            let shims = vec![(300, "4f9cda93be6d4".to_owned()), (301, "5f".to_owned()), (302, "6f".to_owned())];
            now.debris = Seen::Yes(Debris { shims, shim_count: 40, zombies: 1, ..Debris::default() });
        });
        let details = testing::details(&run(&node.look()));
        let shims =
            "The runtime knows no sandbox for 40 shims that run: 300 (4f9cda93be6d4), 301 (5f), 302 (6f) and more";
        let zombies = "1 ended child of the runtime, its shims or the kubelet were not reaped for ten minutes";
        assert_eq!(details, [shims, zombies]);
    }

    #[test]
    fn healthy_and_clears() {
        assert_eq!(run(&Node::worker().look()), Outcome::Healthy);
    }

    #[test]
    fn trap_pods_that_are_being_removed_have_ten_minutes() {
        let node = Node::worker().edit(|now| now.debris = Seen::Absent);
        assert!(matches!(run(&node.look()), Outcome::NotApplicable(_)));
    }

    #[test]
    fn unknown_when_the_runtime_does_not_tell_what_it_has() {
        let node = Node::worker().edit(|now| now.debris = testing::timed_out("debris"));
        assert!(matches!(run(&node.look()), Outcome::Unknown(_)));
    }
}
