//! Bytes of a file system will soon be used up.
//!
//! *Looks at* what is left against the kubelet's eviction threshold, or 1 % where the kubelet has none. *Traps*: blocks reserved
//! for root are not available; one device in several roles counts once; a kubelet stands by DiskPressure for five minutes, which
//! is told and is no fault (catalogue R030, H9).

use std::time::Duration;

use super::super::{Area, Check, Look, Outcome, Severity, kubelet_words, space};

pub(super) const CHECK: Check = Check {
    code: "DiskPressureImminent",
    area: Area::Capacity,
    severity: Severity::Warning,
    why: "the kubelet will start to evict pods when it gets there",
    next_step: "see what grows (`du -xh --max-depth=2 MOUNT | sort -h`, `crictl images`), and free space or add a worker before the kubelet evicts",
    raise_after: Duration::from_secs(30),
    clear_after: Duration::from_secs(120),
    run,
};

fn run(look: &Look<'_>) -> Outcome {
    let short = short(look);
    if short != Outcome::Healthy {
        return short;
    }
    // It is rare that the kubelet says so: only then inodes, which it means too, are looked at here.
    match kubelet_words::lingers(look, "DiskPressure") {
        Outcome::Findings(_) if (super::inodes_exhaustion_imminent::CHECK.run)(look) != Outcome::Healthy => short,
        lingers => lingers,
    }
}

fn short(look: &Look<'_>) -> Outcome {
    space::judged(look, |filesystem| {
        let what = format!("Space on {}", space::name(filesystem));
        let supply = space::bytes(look, filesystem)?;
        let mut finding = supply.warn(look.limits, &filesystem.mount_point, &what, space::human_bytes)?;
        finding.detail.push_str(&space::holders(filesystem));
        Some(finding)
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
        assert_eq!(testing::subjects(&run(&bytes_left(13).look())), ["/"]);
    }

    #[test]
    fn healthy_and_clears() {
        assert_eq!(run(&Node::worker().look()), Outcome::Healthy);
    }

    #[test]
    fn trap_a_store_in_which_the_kubelet_collects_images() {
        let store = |thousandths: u64| {
            let node = Node::worker().filesystem(move |filesystem| {
                filesystem.roles.push(crate::facts::Role::Imagefs);
                let Seen::Yes(space) = &mut filesystem.space else { panic!("seen") };
                space.bytes_available = space.bytes / 1000 * thousandths;
            });
            run(&node.look())
        };
        assert_eq!(store(170), Outcome::Healthy, "80 to 85 % used is where it is held");
        let Outcome::Findings(findings) = store(155) else { panic!("the collection is due") };
        assert_eq!(findings[0].owner_repairs_within, Some(Duration::from_secs(360)), "{findings:?}");
        assert!(findings[0].detail.contains("deletes unused images from 85 % used on"), "{findings:?}");
    }

    #[test]
    fn trap_a_machine_without_kubelet_has_its_own_limit() {
        let node = bytes_left(9).edit(|now| now.kubelet = Seen::Absent);
        assert_eq!(run(&node.look()), Outcome::Healthy);
    }

    #[test]
    fn trap_a_kubelet_that_stands_by_it_is_told_and_no_fault() {
        let says =
            |node: Node| node.says("DiskPressure", "True", "KubeletHasDiskPressure", "kubelet has disk pressure");
        let Outcome::Findings(findings) = run(&says(Node::worker()).look()) else { panic!("it is told") };
        assert_eq!((findings[0].subject.as_str(), findings[0].severity), ("DiskPressure", Some(Severity::Info)));
        assert!(
            findings[0].detail.contains("since 2023-11-14T22:09:10Z (\"kubelet has disk pressure\")"),
            "{findings:?}"
        );
        assert_eq!(testing::subjects(&run(&says(bytes_left(13)).look())), ["/"], "it is short here");
        assert_eq!(run(&says(Node::worker()).heartbeat_ago(700).look()), Outcome::Healthy, "old news");
    }

    #[test]
    fn unknown_when_a_file_system_does_not_answer() {
        testing_space::unknown_when_a_file_system_does_not_answer(run);
    }
}
