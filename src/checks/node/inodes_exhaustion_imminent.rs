//! Inodes of a file system will soon be used up.
//!
//! *Looks at* what is left against the kubelet's eviction threshold, or 1 % where the kubelet has none. *Trap*: a file system that does not count inodes (btrfs, `f_files` 0)
//! (catalogue R031, H9).

use std::time::Duration;

use super::super::{Area, Check, Look, Outcome, Severity, space};

pub(super) const CHECK: Check = Check {
    code: "InodesExhaustionImminent",
    area: Area::Capacity,
    severity: Severity::Warning,
    why: "soon no file can be created though there are free bytes, and the kubelet will evict pods",
    next_step: "find the producer of small files (`du --inodes -x --max-depth=2 MOUNT | sort -n`)",
    raise_after: Duration::from_secs(30),
    clear_after: Duration::from_secs(120),
    run,
};

fn run(look: &Look<'_>) -> Outcome {
    space::judged(look, |filesystem| {
        let what = format!("Inodes on {}", space::name(filesystem));
        let supply = space::inodes(look, filesystem)?;
        let mut finding = supply.warn(look.limits, &filesystem.mount_point, &what, space::human_inodes)?;
        finding.detail.push_str(&space::file_holders(filesystem));
        Some(finding)
    })
}

#[cfg(test)]
mod tests {
    use super::super::testing::{self, Node};
    use super::super::testing_space::{self, inodes_left};
    use super::*;

    #[test]
    fn fires_by_the_kubelets_threshold() {
        assert_eq!(testing::subjects(&run(&inodes_left(8).look())), ["/"]);
        let named = inodes_left(8).filesystem(|it| it.most_files = vec![("logs of a/b".into(), 2000)]);
        assert!(testing::details(&run(&named.look()))[0].ends_with("; many of them are in logs of a/b (2000 inodes)"));
    }

    #[test]
    fn healthy_and_clears() {
        assert_eq!(run(&Node::worker().look()), Outcome::Healthy);
    }

    #[test]
    fn trap_a_file_system_without_inode_numbers() {
        let node = testing_space::with_space(|space| (space.inodes, space.inodes_available) = (0, 0));
        assert_eq!(run(&node.look()), Outcome::Healthy);
    }

    #[test]
    fn unknown_when_a_file_system_does_not_answer() {
        testing_space::unknown_when_a_file_system_does_not_answer(run);
    }
}
