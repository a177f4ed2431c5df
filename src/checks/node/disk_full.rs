//! Bytes of a file system are used up.
//!
//! *Looks at* what is left against the kubelet's eviction threshold, or 1 % where the kubelet has none. *Trap*: blocks reserved for root are not available; one device in several roles counts once
//! (catalogue R030, H9).

use std::time::Duration;

use super::super::{Area, Check, Finding, Look, Outcome, Severity, space};

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
    space::judged(look, |filesystem| {
        let supply = space::bytes(look, filesystem)?;
        supply.full().then(|| {
            let described = supply.describe(space::human_bytes);
            let detail = format!("Space on {}: {described}{}", space::name(filesystem), space::holders(filesystem));
            Finding::new(filesystem.mount_point.clone(), detail)
        })
    })
}

#[cfg(test)]
mod tests {
    use super::super::testing::{self, Node};
    use super::super::testing_space::{self, bytes_left};
    use super::*;
    use crate::facts::Seen;

    #[test]
    fn fires_by_the_kubelets_threshold() {
        assert_eq!(testing::subjects(&run(&bytes_left(5).look())), ["/"]);
        let named = bytes_left(5).filesystem(|filesystem| filesystem.biggest = vec![("logs of a/b".into(), 3 << 30)]);
        let detail = &testing::details(&run(&named.look()))[0];
        assert!(detail.ends_with("; much of it is in logs of a/b (3.0 GiB)"), "{detail}");
    }

    #[test]
    fn healthy_and_clears() {
        assert_eq!(run(&Node::worker().look()), Outcome::Healthy);
    }

    #[test]
    fn trap_a_machine_without_kubelet_has_its_own_limit() {
        let node = bytes_left(9).edit(|now| now.kubelet = Seen::Absent);
        assert_eq!(run(&node.look()), Outcome::Healthy);
    }

    #[test]
    fn unknown_when_a_file_system_does_not_answer() {
        testing_space::unknown_when_a_file_system_does_not_answer(run);
    }
}
