//! The CNI configuration that the runtime uses cannot be used.
//!
//! *Looks at* the first file in the runtime's order. containerd does not go on to the next file when the first is bad: it
//! drops the network that it had; CRI-O does go on. *Trap*: a file in the middle of a rewrite is bad for a moment: the
//! observer reads it again before it tells (catalogue R064).

use std::time::Duration;

use super::super::{Area, Check, Finding, Look, Outcome, Severity, seen};

pub(super) const CHECK: Check = Check {
    code: "CniConfigInvalid",
    area: Area::Cni,
    severity: Severity::Critical,
    why: "the runtime drops the network that it had, and no new pod gets one",
    next_step: "look at the file, and let the CNI's agent write it again (delete the calico-node pod) or restore it",
    // Somebody who writes it again and again may be met in the middle more than once; the kubelet takes 7 s itself.
    raise_after: Duration::from_secs(5),
    clear_after: Duration::from_secs(2),
    run,
};

fn run(look: &Look<'_>) -> Outcome {
    let cni = &look.now.cni;
    if !look.expected.worker {
        return Outcome::NotApplicable("this is no Kubernetes worker".into());
    }
    let files = seen!(cni.files, Outcome::NotApplicable("there is no CNI configuration".into()));
    let (Some(first), Some(active)) = (files.first(), cni.active()) else {
        return Outcome::NotApplicable("there is no CNI configuration".into());
    };
    let Err(fault) = &active.content else { return Outcome::Healthy };
    let path = format!("{}/{}", cni.conf_dir, first.name);
    let detail = format!("The CNI configuration {path}, which the runtime uses because it sorts first, {fault}");
    Outcome::from_findings(vec![Finding::new(path, detail)])
}

#[cfg(test)]
mod tests {
    use super::super::testing::{self, Node};
    use super::*;
    use crate::facts::{CniFault, CniFile, Seen};

    fn files(contents: &[(&str, Option<CniFault>)]) -> Node {
        Node::worker().edit(|now| {
            let good = now.cni.config().cloned().expect("a worker has one");
            let file = |(name, fault): &(&str, Option<CniFault>)| CniFile {
                name: (*name).to_owned(),
                modified: None,
                content: fault.clone().map_or_else(|| Ok(good.clone()), Err),
            };
            now.cni.files = Seen::Yes(contents.iter().map(file).collect());
        })
    }

    #[test]
    fn the_first_file_is_bad_in_any_way() {
        let faults = [
            CniFault::Empty,
            CniFault::NotJson("expected value at line 3 column 1".into()),
            CniFault::NotAFile("a FIFO".into()),
            CniFault::TooLarge(100 << 20),
            CniFault::NotUtf8(7),
            CniFault::Field("plugins".into()),
            CniFault::Version("9.9".into()),
        ];
        for fault in faults {
            let node = files(&[("10-calico.conflist", Some(fault.clone())), ("99-other.conf", None)]);
            let details = testing::details(&run(&node.look()));
            assert!(details[0].ends_with(&fault.to_string()), "{details:?}");
        }
    }

    #[test]
    fn healthy_and_clears() {
        assert_eq!(run(&Node::worker().look()), Outcome::Healthy);
    }

    #[test]
    fn trap_a_bad_file_that_is_not_used() {
        let node = files(&[("10-calico.conflist", None), ("99-other.conf", Some(CniFault::Empty))]);
        assert_eq!(run(&node.look()), Outcome::Healthy);
    }

    #[test]
    fn trap_a_runtime_that_passes_over_bad_files() {
        let bad = || ("05-bad.conf", Some(CniFault::Empty));
        let node = files(&[bad(), ("10-calico.conflist", None)]).edit(|now| now.cni.passes_over = true);
        assert_eq!(run(&node.look()), Outcome::Healthy);
        let node = files(&[bad()]).edit(|now| now.cni.passes_over = true);
        assert_eq!(testing::subjects(&run(&node.look())), ["/etc/cni/net.d/05-bad.conf"]);
    }

    #[test]
    fn unknown_when_the_directory_cannot_be_read() {
        let node = Node::worker().edit(|now| now.cni.files = testing::denied("/etc/cni/net.d"));
        assert!(matches!(run(&node.look()), Outcome::Unknown(_)));
    }
}
