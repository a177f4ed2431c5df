//! Bytes of a file system are used up.
//!
//! *Looks at* what is left against the kubelet's eviction threshold, or 1 % where the kubelet has none. *Trap*: blocks reserved for root are not available; one device in several roles counts once
//! (catalogue R030, H9).

use std::time::Duration;

use super::super::{Area, Check, Finding, Look, Outcome, Severity, findings_or_unknown, first_error, seen, space};

pub(super) const CHECK: Check = Check {
    code: "DiskFull",
    area: Area::Capacity,
    severity: Severity::Critical,
    why: "the kubelet evicts pods, images cannot be pulled, and logs and state files are cut short",
    next_step: "see what holds the space (`du -xh --max-depth=2 MOUNT | sort -h`), free it, or add a worker",
    raise_after: Duration::from_secs(10),
    clear_after: Duration::from_secs(60),
    run,
};

fn run(look: &Look<'_>) -> Outcome {
    let filesystems = seen!(look.now.filesystems, Outcome::NotApplicable("no file systems to look at".into()));
    let in_use = || filesystems.iter().filter(|filesystem| !filesystem.roles.is_empty());
    let findings = in_use().filter_map(|filesystem| {
        let supply = space::bytes(look, filesystem)?;
        supply.full().then(|| {
            let described = supply.describe(space::human_bytes);
            let detail = format!("Space on {}: {described}{}", space::name(filesystem), space::holders(filesystem));
            Finding::new(filesystem.mount_point.clone(), detail)
        })
    });
    findings_or_unknown(findings.collect(), first_error(in_use().map(|filesystem| filesystem.space.error())))
}

#[cfg(test)]
mod tests {
    use super::super::testing::{self, Node};
    use super::*;
    use crate::facts::Seen;

    fn left(percent: u64) -> Node {
        Node::worker().filesystem(move |filesystem| {
            let Seen::Yes(space) = &mut filesystem.space else { panic!("seen") };
            space.bytes_available = space.bytes / 100 * percent;
        })
    }

    #[test]
    fn fires_by_the_kubelets_threshold() {
        assert_eq!(testing::subjects(&run(&left(5).look())), ["/"]);
        let named = left(5).filesystem(|filesystem| filesystem.biggest = vec![("logs of a/b".into(), 3 << 30)]);
        let detail = &testing::details(&run(&named.look()))[0];
        assert!(detail.ends_with("; much of it is in logs of a/b (3.0 GiB)"), "{detail}");
    }

    #[test]
    fn healthy_and_clears() {
        assert_eq!(run(&Node::worker().look()), Outcome::Healthy);
    }

    #[test]
    fn trap_a_machine_without_kubelet_has_its_own_limit() {
        let node = left(9).edit(|now| now.kubelet = Seen::Absent);
        assert_eq!(run(&node.look()), Outcome::Healthy);
    }

    #[test]
    fn unknown_when_a_file_system_does_not_answer() {
        let node = Node::worker().filesystem(|filesystem| filesystem.space = testing::timed_out("statvfs /"));
        assert!(matches!(run(&node.look()), Outcome::Unknown(_)));
        let node = Node::worker().edit(|now| now.filesystems = testing::denied("mountinfo"));
        assert!(matches!(run(&node.look()), Outcome::Unknown(_)));
    }
}
