//! The runtime does not say where it keeps images.
//!
//! *Looks at* CRI `ImageFsInfo`. Without it the kubelet cannot tell how full that file system is: it neither collects images
//! nor reports disk pressure. *Trap*: each start of the kubelet makes the event `InvalidDiskCapacity`, because it asks before
//! the runtime has counted: that is no fault (catalogue R035).

use std::time::Duration;

use super::super::{Area, Check, Finding, Look, Outcome, Severity, seen};
use crate::facts::Program;

pub(super) const CHECK: Check = Check {
    code: "ImageFsStatsMissing",
    area: Area::Runtime,
    severity: Severity::Warning,
    why: "the kubelet does not know how full the store of images is: it collects none and never reports its pressure",
    next_step: "ask the runtime itself (`crictl imagefsinfo`) and read its log for its snapshotter (`journalctl -u containerd`); restart it if it stays empty",
    raise_after: FIVE_MINUTES,
    clear_after: Duration::from_secs(2),
    run,
};

const FIVE_MINUTES: Duration = Duration::from_secs(300);

fn run(look: &Look<'_>) -> Outcome {
    let runtime = &look.now.runtime;
    seen!(runtime.status, Outcome::NotApplicable("no container runtime here".into()));
    let paths = seen!(runtime.image_filesystems, Outcome::NotApplicable("the runtime has not been asked".into()));
    if !paths.is_empty() {
        return Outcome::Healthy;
    }
    let processes = look.now.processes.get();
    let kubelet = processes.and_then(|processes| processes.of(Program::Kubelet));
    let young = |at| look.now.taken_at.duration_since(at).unsigned_abs() < FIVE_MINUTES;
    if kubelet.is_some_and(|kubelet| young(kubelet.started_at)) {
        return Outcome::Healthy;
    }
    let detail = "ImageFsInfo names no file system of images, and no kubelet was started just now".to_owned();
    Outcome::from_findings(vec![Finding::new("ImageFsInfo", detail)])
}

#[cfg(test)]
mod tests {
    use super::super::testing::{self, Node};
    use super::*;
    use crate::facts::Seen;

    fn empty() -> Node {
        Node::worker().edit(|now| now.runtime.image_filesystems = Seen::Yes(vec![]))
    }

    #[test]
    fn no_file_system_for_five_minutes() {
        assert_eq!(testing::subjects(&run(&empty().look())), ["ImageFsInfo"]);
        assert_eq!(CHECK.raise_after, Duration::from_secs(300));
    }

    #[test]
    fn healthy_and_clears() {
        assert_eq!(run(&Node::worker().look()), Outcome::Healthy);
        assert!(matches!(run(&Node::plain_machine().look()), Outcome::NotApplicable(_)));
    }

    #[test]
    fn trap_a_kubelet_that_has_just_been_started() {
        assert_eq!(run(&empty().kubelet_started_ago(20).look()), Outcome::Healthy);
        assert!(matches!(run(&empty().kubelet_started_ago(400).look()), Outcome::Findings(_)));
    }

    #[test]
    fn unknown_when_the_runtime_does_not_answer() {
        let node = Node::worker().edit(|now| now.runtime.image_filesystems = testing::timed_out("ImageFsInfo"));
        assert!(matches!(run(&node.look()), Outcome::Unknown(_)));
    }
}
