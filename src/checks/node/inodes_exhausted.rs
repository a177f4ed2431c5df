//! Inodes of a file system are used up.
//!
//! *Looks at* what is left against the kubelet's eviction threshold, or 1 % where the kubelet has none. *Trap*: a file system that does not count inodes (btrfs, `f_files` 0)
//! (catalogue R031, H9).

use std::time::Duration;

use super::super::{Area, Check, Finding, Look, Outcome, Severity, space};

pub(super) const CHECK: Check = Check {
    code: "InodesExhausted",
    area: Area::Capacity,
    severity: Severity::Critical,
    why: "no file can be created though there are free bytes, which looks like a full disk, and the kubelet evicts pods",
    next_step: "find the producer of small files (`du --inodes -x --max-depth=2 MOUNT | sort -n`) and remove them",
    raise_after: Duration::from_secs(10),
    clear_after: Duration::from_secs(60),
    run,
};

fn run(look: &Look<'_>) -> Outcome {
    space::judged(look, |filesystem| {
        let supply = space::inodes(look, filesystem)?;
        supply.full().then(|| {
            let described = supply.describe(space::human_inodes);
            let detail =
                format!("Inodes on {}: {described}{}", space::name(filesystem), space::file_holders(filesystem));
            Finding::new(filesystem.mount_point.clone(), detail)
        })
    })
}

#[cfg(test)]
mod tests {
    use super::super::testing::{self, Node};
    use super::super::testing_space::{self, inodes_left};
    use super::*;

    #[test]
    fn fires_by_the_kubelets_threshold() {
        assert_eq!(testing::subjects(&run(&inodes_left(3).look())), ["/"]);
        let named = inodes_left(3).filesystem(|it| it.most_files = vec![("emptyDir tmp of a/b".into(), 10_000)]);
        let detail = &testing::details(&run(&named.look()))[0];
        assert!(detail.ends_with("; many of them are in emptyDir tmp of a/b (10000 inodes)"), "{detail}");
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
