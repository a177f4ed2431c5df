//! The runtime's CNI directory holds no configuration, or a file for which Multus waits is not there.
//!
//! *Looks at* the directory that the runtime names, and at the files that a meta plugin names (`readinessindicatorfile`,
//! `clusterNetwork`): without them the runtime says that its network is ready, and no pod gets one. *Traps*: a new worker has none in its first minute; a machine that is
//! no worker, or whose runtime has no pod network, needs none (catalogue R063).

use std::time::Duration;

use super::super::{Area, Check, Finding, Look, Outcome, Severity, findings_or_unknown, first_error};
use crate::facts::{Program, Reason, Seen};

pub(super) const CHECK: Check = Check {
    code: "CniConfigMissing",
    area: Area::Cni,
    severity: Severity::Critical,
    why: "no new pod gets a network, and the node turns NotReady",
    next_step: "check that the CNI's agent runs on this node (calico-node: read the log of its container install-cni) and delete its pod, which writes the file again",
    raise_after: Duration::from_millis(500),
    clear_after: Duration::from_secs(2),
    run,
};

/// On a worker that has just joined the CNI's agent writes the file; until then there is nothing to miss.
const JOINING: Duration = Duration::from_secs(60);

fn run(look: &Look<'_>) -> Outcome {
    let cni = &look.now.cni;
    if !look.expected.worker {
        return Outcome::NotApplicable("this is no Kubernetes worker".into());
    }
    let empty = match &cni.files {
        Seen::Yes(files) if !files.is_empty() => return awaited(look),
        Seen::Unreadable(error) if error.reason != Reason::Missing => return Outcome::unknown(error),
        Seen::Yes(_) => "holds no .conflist, .conf or .json file",
        Seen::Absent | Seen::Unreadable(_) => "does not exist",
    };
    let finding = Finding::new(cni.conf_dir.clone(), format!("The CNI directory {} {empty}", cni.conf_dir));
    let finding = if joining(look) { finding.repaired_within(JOINING) } else { finding };
    Outcome::from_findings(vec![finding])
}

/// What the CNI in force waits for.
fn awaited(look: &Look<'_>) -> Outcome {
    let cni = &look.now.cni;
    let name = cni.active().map_or("", |file| file.name.as_str());
    let gone = cni.awaited.iter().filter(|(_, seen)| matches!(seen, Seen::Absent));
    let findings = gone.map(|(path, _)| {
        let finding = Finding::new(
            path.clone(),
            format!(
                "{}/{name} waits for {path}, which does not exist: the network it delegates to is not set up",
                cni.conf_dir
            ),
        );
        if joining(look) { finding.repaired_within(JOINING) } else { finding }
    });
    findings_or_unknown(findings.collect(), first_error(cni.awaited.values().map(Seen::error)))
}

/// Whether no configuration was seen before and the kubelet has only just started.
fn joining(look: &Look<'_>) -> bool {
    let kubelet = look.now.processes.get().and_then(|processes| processes.of(Program::Kubelet));
    let age = kubelet.map(|kubelet| look.now.taken_at.duration_since(kubelet.started_at));
    !look.before.cni && age.is_some_and(|age| age.unsigned_abs() < JOINING * 2)
}

#[cfg(test)]
mod tests {
    use super::super::testing::{self, Node};
    use super::*;

    #[test]
    fn an_empty_or_missing_directory() {
        for files in [Seen::Yes(vec![]), Seen::Absent] {
            let node = Node::worker().edit(|now| now.cni.files = files.clone());
            assert_eq!(testing::subjects(&run(&node.look())), ["/etc/cni/net.d"]);
        }
    }

    #[test]
    fn what_multus_waits_for_is_not_there() {
        let path = "/run/multus/cni/net.d/10-calico.conflist";
        let node = |seen: &Seen<()>| Node::worker().edit(|now| _ = now.cni.awaited.insert(path.into(), seen.clone()));
        let outcome = run(&node(&Seen::Absent).look());
        assert_eq!(testing::subjects(&outcome), [path]);
        assert!(testing::details(&outcome)[0].starts_with("/etc/cni/net.d/10-bridge.conflist waits for"));
        assert_eq!(run(&node(&Seen::Yes(())).look()), Outcome::Healthy);
        assert!(matches!(run(&node(&testing::denied(path)).look()), Outcome::Unknown(_)));
    }

    #[test]
    fn healthy_and_clears() {
        assert_eq!(run(&Node::worker().look()), Outcome::Healthy);
    }

    #[test]
    fn trap_a_worker_that_is_joining_and_a_plain_machine() {
        let node = Node::worker().kubelet_started_ago(20).edit(|now| now.cni.files = Seen::Yes(vec![]));
        let Outcome::Findings(findings) = run(&node.look()) else { panic!("a finding") };
        assert_eq!(findings[0].owner_repairs_within, Some(JOINING));
        let node = node.remember(|before| before.cni = true);
        let Outcome::Findings(findings) = run(&node.look()) else { panic!("a finding") };
        assert_eq!(findings[0].owner_repairs_within, None, "it was there: nobody is joining");
        let node = Node::plain_machine().edit(|now| now.cni.files = Seen::Absent);
        assert!(matches!(run(&node.look()), Outcome::NotApplicable(_)));
    }

    #[test]
    fn unknown_when_the_directory_cannot_be_read() {
        let node = Node::worker().edit(|now| now.cni.files = testing::denied("/etc/cni/net.d"));
        assert!(matches!(run(&node.look()), Outcome::Unknown(_)));
    }
}
