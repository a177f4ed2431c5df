//! The runtime does not say where it keeps images.
//!
//! *Looks at* CRI `ImageFsInfo`: whether it names a file system, or fails. Without it the kubelet cannot tell how full that file system is: it neither collects images
//! nor reports disk pressure. *Trap*: each start of the kubelet makes the event `InvalidDiskCapacity`, because it asks before
//! the runtime has counted: that is no fault (catalogue R035).

use std::time::Duration;

use super::super::{Area, Check, Finding, Look, Outcome, Severity, seen};
use crate::facts::{Program, Reason, Seen};

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
    let said = match &runtime.image_filesystems {
        Seen::Yes(paths) if !paths.is_empty() => return Outcome::Healthy,
        Seen::Yes(_) => "ImageFsInfo names no file system of images".to_owned(),
        // It was asked, and says that it cannot tell; the kubelet hears the same.
        Seen::Unreadable(error) if error.reason == Reason::Failed => {
            format!("The runtime cannot tell where it keeps images ({})", error.detail)
        }
        Seen::Unreadable(error) => return Outcome::unknown(error),
        Seen::Absent => return Outcome::NotApplicable("the runtime has not been asked".into()),
    };
    let processes = look.now.processes.get();
    let kubelet = processes.and_then(|processes| processes.of(Program::Kubelet));
    let young = |at| look.now.taken_at.duration_since(at).unsigned_abs() < FIVE_MINUTES;
    if kubelet.is_some_and(|kubelet| young(kubelet.started_at)) {
        return Outcome::Healthy;
    }
    Outcome::from_findings(vec![Finding::new("ImageFsInfo", format!("{said}, and no kubelet was started just now"))])
}

#[cfg(test)]
mod tests {
    use super::super::testing::{self, Node};
    use super::*;
    use crate::facts::LookError;

    fn empty() -> Node {
        Node::worker().edit(|now| now.runtime.image_filesystems = Seen::Yes(vec![]))
    }

    #[test]
    fn no_file_system_for_five_minutes() {
        assert_eq!(testing::subjects(&run(&empty().look())), ["ImageFsInfo"]);
        assert_eq!(CHECK.raise_after, Duration::from_secs(300));
    }

    #[test]
    fn an_answer_that_it_cannot_tell() {
        let error = LookError::new("socket", Reason::Failed, "ImageFsInfo: failed to get usage");
        let node = Node::worker().edit(|now| now.runtime.image_filesystems = Seen::Unreadable(error));
        assert_eq!(
            testing::details(&run(&node.look())),
            [
                "The runtime cannot tell where it keeps images (ImageFsInfo: failed to get usage), and no kubelet was started just now"
            ]
        );
        assert_eq!(run(&node.kubelet_started_ago(20).look()), Outcome::Healthy);
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
