//! The runtime says that its network is not ready.
//!
//! *Looks at* the condition `NetworkReady` of CRI `Status`, in the runtime's words, and names the cause that
//! the other checks of the CNI find. *Traps*: normal in the first minute of a new worker; the words differ by runtime and
//! version (`cni plugin not initialized`, `no CNI configuration file in ...`, `cni config uninitialized`), so that only the
//! condition counts (catalogue R047, R057).

use std::time::Duration;

use super::super::{Area, Check, Finding, Look, Outcome, Severity, seen};
use crate::facts::{Program, RuntimeStatus};

pub(super) const CHECK: Check = Check {
    code: "CniNotInitialized",
    area: Area::Cni,
    severity: Severity::Critical,
    why: "no new pod gets a network, and the node is NotReady",
    next_step: "look at the CNI directory and its active file first; if the file is good and newer than the message, restart the runtime so that it reads it",
    raise_after: Duration::from_secs(5),
    clear_after: Duration::from_secs(2),
    run,
};

fn run(look: &Look<'_>) -> Outcome {
    let status = seen!(look.now.runtime.status, Outcome::NotApplicable("no container runtime here".into()));
    let Some(condition) = status.condition("NetworkReady").filter(|condition| !condition.status) else {
        return Outcome::Healthy;
    };
    let (cause, next) = cause(look, status);
    let said = short(&condition.message, 300);
    let detail =
        format!("{} {} says NetworkReady=false, {}: {said}; {cause}", status.name, status.version, condition.reason);
    let finding = Finding::new("NetworkReady", detail);
    let finding = next.into_iter().fold(finding, Finding::next);
    let finding = if joining(look) { finding.repaired_within(JOINING) } else { finding };
    Outcome::from_findings(vec![finding])
}

/// What the other checks of the CNI find, and what to do where the runtime alone is to blame. A missing plugin is no
/// cause: runtimes look for it when they start a pod.
fn cause(look: &Look<'_>, status: &RuntimeStatus) -> (String, Option<&'static str>) {
    for check in [&super::cni_config_missing::CHECK, &super::cni_config_invalid::CHECK] {
        match (check.run)(look) {
            Outcome::Findings(findings) => return (format!("{} at {} is why", check.code, findings[0].subject), None),
            Outcome::Unknown(why) => return (format!("why cannot be seen ({})", short(&why, 200)), None),
            Outcome::Healthy | Outcome::NotApplicable(_) => {}
        }
    }
    let load = status.cni_load.as_deref().filter(|load| *load != "OK");
    let load = load.map_or_else(String::new, |load| format!(" (its last load: {})", short(load, 200)));
    // A file that is moved into the directory is not noticed (facts: go-cni watches for writes).
    (format!("the files in {} are good, so it has not loaded them{load}", look.now.cni.conf_dir), Some(RELOAD))
}

const RELOAD: &str = "write the file again in place or restart the runtime, so that it reads the configuration again (containerd takes no notice of `touch`, nor of a file that is moved in)";

/// The beginning of a text that somebody else wrote.
fn short(text: &str, most: usize) -> String {
    text.chars().take(most).collect()
}

/// A worker that has just joined has no network yet.
const JOINING: Duration = Duration::from_secs(60);

fn joining(look: &Look<'_>) -> bool {
    let kubelet = look.now.processes.get().and_then(|processes| processes.of(Program::Kubelet));
    kubelet.is_some_and(|kubelet| look.now.taken_at.duration_since(kubelet.started_at).unsigned_abs() < JOINING)
}

#[cfg(test)]
mod tests {
    use super::super::testing::{self, Node};
    use super::*;
    use crate::facts::Seen;

    #[test]
    fn the_runtime_says_so() {
        let node = Node::worker().runtime_condition("NetworkReady", false);
        let details = testing::details(&run(&node.look()));
        assert!(details[0].contains("NetworkReady=false, TestReason: test message"), "{details:?}");
    }

    #[test]
    fn it_names_the_cause_that_the_others_find() {
        let broken = || Node::worker().runtime_condition("NetworkReady", false);
        let told = |node: Node| testing::details(&run(&node.look())).remove(0);
        let node = broken().edit(|now| now.cni.files = Seen::Yes(vec![]));
        assert!(told(node).ends_with("; CniConfigMissing at /etc/cni/net.d is why"));
        let bad = |now: &mut crate::facts::Snapshot| {
            let Seen::Yes(files) = &mut now.cni.files else { panic!("seen") };
            files[0].content = Err(crate::facts::CniFault::Empty);
        };
        assert!(told(broken().edit(bad)).contains("CniConfigInvalid at /etc/cni/net.d/10-bridge.conflist"));
        let node = broken().edit(|now| now.cni.files = testing::denied("/etc/cni/net.d"));
        assert!(told(node).contains("why cannot be seen"));
        let Outcome::Findings(findings) = run(&broken().look()) else { panic!("a finding") };
        assert!(findings[0].detail.contains("has not loaded them"), "{}", findings[0].detail);
        assert_eq!(findings[0].next_step.as_deref(), Some(RELOAD));
    }

    #[test]
    fn trap_the_words_of_other_runtimes_and_long_ones() {
        for words in ["no CNI configuration file in /etc/cni/net.d/", "Missing CNI default network", &"x".repeat(9_000)]
        {
            let node = Node::worker().edit(|now| {
                let Seen::Yes(status) = &mut now.runtime.status else { panic!("seen") };
                for condition in &mut status.conditions {
                    condition.status = condition.kind != "NetworkReady";
                    condition.message = words.to_owned();
                }
            });
            assert!(testing::details(&run(&node.look()))[0].len() < 600);
        }
    }

    #[test]
    fn healthy_and_clears() {
        assert_eq!(run(&Node::worker().look()), Outcome::Healthy);
        let node = Node::plain_machine();
        assert!(matches!(run(&node.look()), Outcome::NotApplicable(_)));
    }

    #[test]
    fn trap_a_worker_that_is_joining() {
        let node = Node::worker().runtime_condition("NetworkReady", false).kubelet_started_ago(10);
        let Outcome::Findings(findings) = run(&node.look()) else { panic!("a finding") };
        assert_eq!(findings[0].owner_repairs_within, Some(JOINING));
    }

    #[test]
    fn unknown_when_the_runtime_does_not_answer() {
        let node = Node::worker().edit(|now| now.runtime.status = testing::timed_out("Status"));
        assert!(matches!(run(&node.look()), Outcome::Unknown(_)));
    }
}
