//! A plugin that the CNI configuration names cannot be run.
//!
//! *Looks at* every `type` of the chain and every `ipam.type`, in the runtime's plugin directories, and at `loopback`, which
//! no configuration names, where the runtime says that it runs it for every pod (containerd). The node stays Ready:
//! nobody tells before a pod fails (recorded: incident 06 C). *Trap*: an installation in progress removes and copies the
//! file (catalogue R066): the observer looks again before it tells of a file that has just changed. A file can be there and
//! still not run: on a file system mounted noexec, or built for another machine.

use std::time::Duration;

use super::super::{Area, Check, Finding, Look, Outcome, Severity, findings_or_unknown, first_error};
use crate::facts::{Binary, Seen};

pub(super) const CHECK: Check = Check {
    code: "CniBinaryMissing",
    area: Area::Cni,
    severity: Severity::Critical,
    why: "no pod can be started or removed here, while the node stays Ready",
    next_step: "install it again: delete the CNI's agent pod (calico-node runs install-cni at its start), or reinstall the CNI plugins package",
    raise_after: Duration::from_millis(500),
    clear_after: Duration::from_secs(2),
    run,
};

/// `loopback` is no network's own.
const REINSTALL: &str = "install the package of the standard CNI plugins again (containernetworking-plugins, kubernetes-cni), into one of these directories";

fn run(look: &Look<'_>) -> Outcome {
    let cni = &look.now.cni;
    if !look.expected.worker || cni.config().is_none() {
        return Outcome::NotApplicable("no CNI configuration names a plugin".into());
    }
    let dirs = cni.bin_dirs.join(", ");
    let loopback = look.now.runtime.status.get().is_some_and(|status| status.cni_loopback);
    let unnamed = Some(("loopback", &cni.loopback)).filter(|(name, _)| loopback && !cni.binaries.contains_key(*name));
    let all = || cni.binaries.iter().map(|(plugin, seen)| (plugin.as_str(), seen)).chain(unnamed);
    let findings = all().filter_map(|(plugin, seen)| {
        let what = match seen {
            Seen::Absent => format!("is in none of the plugin directories ({dirs})"),
            Seen::Yes(Binary { size: 0, path, .. }) => format!("is an empty file ({path})"),
            Seen::Yes(Binary { executable: false, path, .. }) => format!("is not executable ({path})"),
            Seen::Yes(Binary { unusable: Some(why), path, .. }) => format!("{why} ({path})"),
            Seen::Yes(_) | Seen::Unreadable(_) => return None,
        };
        let role = if plugin == "loopback" { ", which the runtime runs for every pod," } else { "" };
        let finding = Finding::new(plugin, format!("The CNI plugin `{plugin}`{role} {what}"));
        Some(if plugin == "loopback" { finding.next(REINSTALL) } else { finding })
    });
    findings_or_unknown(findings.collect(), first_error(all().map(|(_, seen)| seen.error())))
}

#[cfg(test)]
mod tests {
    use super::super::testing::{self, Node};
    use super::*;

    fn plugin(seen: &Seen<Binary>) -> Node {
        Node::worker().edit(|now| _ = now.cni.binaries.insert("calico".into(), seen.clone()))
    }

    fn binary(size: u64, executable: bool) -> Seen<Binary> {
        Seen::Yes(Binary { path: "/opt/cni/bin/calico".into(), size, executable, unusable: None })
    }

    #[test]
    fn there_but_of_no_use() {
        let why = "is built for aarch64, and this machine is x86_64";
        let seen = match binary(9, true) {
            Seen::Yes(binary) => Seen::Yes(Binary { unusable: Some(why.into()), ..binary }),
            other => other,
        };
        let details = testing::details(&run(&plugin(&seen).look()));
        assert_eq!(details, [format!("The CNI plugin `calico` {why} (/opt/cni/bin/calico)")]);
    }

    #[test]
    fn absent_empty_or_not_executable() {
        for seen in [Seen::Absent, binary(0, true), binary(9, false)] {
            assert_eq!(testing::subjects(&run(&plugin(&seen).look())), ["calico"]);
        }
    }

    fn loopback(seen: Seen<Binary>, runs: bool) -> Node {
        Node::worker().edit(|now| {
            now.cni.loopback = seen;
            let Seen::Yes(status) = &mut now.runtime.status else { panic!("seen") };
            status.cni_loopback = runs;
        })
    }

    #[test]
    fn loopback_which_no_file_names() {
        let Outcome::Findings(findings) = run(&loopback(Seen::Absent, true).look()) else { panic!("a finding") };
        assert_eq!(findings[0].subject, "loopback");
        assert!(
            findings[0].detail.contains("which the runtime runs for every pod, is in none of the plugin directories")
        );
        assert!(findings[0].next_step.as_ref().is_some_and(|step| step.contains("standard CNI plugins")));
        assert_eq!(run(&loopback(binary(9, true), true).look()), Outcome::Healthy);
        assert!(matches!(run(&loopback(testing::denied("/opt/cni/bin"), true).look()), Outcome::Unknown(_)));
    }

    #[test]
    fn trap_a_runtime_that_sets_up_lo_itself_or_cannot_be_asked() {
        assert_eq!(run(&loopback(Seen::Absent, false).look()), Outcome::Healthy);
        let silent = loopback(Seen::Absent, true).edit(|now| now.runtime.status = testing::denied("the runtime"));
        assert_eq!(run(&silent.look()), Outcome::Healthy);
    }

    #[test]
    fn healthy_and_clears() {
        assert_eq!(run(&plugin(&binary(9, true)).look()), Outcome::Healthy);
    }

    #[test]
    fn trap_no_configuration_names_a_plugin() {
        let node = plugin(&Seen::Absent).edit(|now| now.cni.files = Seen::Yes(vec![]));
        assert!(matches!(run(&node.look()), Outcome::NotApplicable(_)));
    }

    #[test]
    fn unknown_when_it_cannot_be_looked_at() {
        assert!(matches!(run(&plugin(&testing::denied("/opt/cni/bin/calico")).look()), Outcome::Unknown(_)));
    }
}
