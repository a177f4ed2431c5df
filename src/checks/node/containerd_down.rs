//! The container runtime does not run: its socket is gone or nobody listens on it.
//!
//! *Looks at* the CRI socket. Hung is another code. *Trap*: a restart in progress; a machine without any runtime
//! (catalogue R055).

use std::time::Duration;

use super::super::{Area, Check, Finding, Look, Outcome, Severity, kubelet_words};
use crate::facts::{Reason, Seen};

pub(super) const CHECK: Check = Check {
    code: "ContainerdDown",
    area: Area::Runtime,
    severity: Severity::Critical,
    why: "no container can be started, stopped or probed here; running ones go on without supervision",
    next_step: "read its log (`journalctl -u containerd`) and start it (`systemctl start containerd`); if it does not stay up, cordon, gather, drain and reload the worker",
    raise_after: Duration::from_secs(2),
    clear_after: Duration::from_secs(2),
    run,
};

/// A runtime that has just been started needs this long at most until its socket answers.
const STARTING: Duration = Duration::from_secs(30);

fn run(look: &Look<'_>) -> Outcome {
    let runtime = &look.now.runtime;
    let path = match &runtime.socket {
        Seen::Yes(path) => path.clone(),
        Seen::Absent => return Outcome::NotApplicable("no container runtime here".into()),
        Seen::Unreadable(error) if error.reason == Reason::Missing => error.what.clone(),
        Seen::Unreadable(error) => return Outcome::unknown(error),
    };
    let said = match runtime.status.error().map(|error| error.reason) {
        Some(Reason::Refused) => "nobody listens on",
        Some(Reason::Missing) => "there is no",
        _ if runtime.socket.error().is_some() => "there is no",
        Some(Reason::TimedOut) | None => return Outcome::Healthy,
        Some(_) => return runtime.status.error().map_or(Outcome::Healthy, Outcome::unknown),
    };
    let detail = format!(
        "The container runtime is down: {said} {path}{}{}",
        process(look),
        kubelet_words::echo(look, "container runtime is")
    );
    let finding = Finding::new(path, detail);
    let finding = if starting(look) { finding.repaired_within(STARTING) } else { finding };
    Outcome::from_findings(vec![finding])
}

/// Whether its process is dead too.
fn process(look: &Look<'_>) -> String {
    let Some(processes) = look.now.processes.get() else { return String::new() };
    match processes.runtime() {
        Some(process) => format!(", although its process {} runs", process.pid),
        None => ", and no process of it runs".into(),
    }
}

/// Whether a runtime process has only just been started.
fn starting(look: &Look<'_>) -> bool {
    let Some(processes) = look.now.processes.get() else { return false };
    processes
        .runtime()
        .is_some_and(|process| look.now.taken_at.duration_since(process.started_at).unsigned_abs() < STARTING)
}

#[cfg(test)]
mod tests {
    use super::super::testing::{self, Node};
    use super::*;
    use crate::facts::Program;

    fn status(reason: Reason) -> Node {
        Node::worker().edit(|now| now.runtime.status = testing::error("/run/containerd/containerd.sock", reason))
    }

    #[test]
    fn refused_or_gone() {
        assert_eq!(testing::subjects(&run(&status(Reason::Refused).look())), ["/run/containerd/containerd.sock"]);
        let node = Node::worker()
            .edit(|now| now.runtime.socket = testing::error("/run/containerd/containerd.sock", Reason::Missing));
        assert_eq!(testing::subjects(&run(&node.look())).len(), 1);
    }

    #[test]
    fn it_says_whether_the_process_is_dead_too() {
        let told = |node: Node| testing::details(&run(&node.look())).remove(0);
        assert!(told(status(Reason::Refused)).ends_with("containerd.sock, although its process 11 runs"));
        let dead = status(Reason::Refused).without(Program::Containerd);
        assert!(told(dead).ends_with("containerd.sock, and no process of it runs"));
    }

    #[test]
    fn healthy_and_clears() {
        assert_eq!(run(&Node::worker().look()), Outcome::Healthy);
        assert_eq!(run(&status(Reason::TimedOut).look()), Outcome::Healthy, "hung is not down");
    }

    #[test]
    fn trap_a_restart_and_a_machine_without_runtime() {
        let Outcome::Findings(findings) = run(&status(Reason::Refused).containerd_started_ago(3).look()) else {
            panic!("a finding")
        };
        assert_eq!(findings[0].owner_repairs_within, Some(STARTING));
        let node = Node::plain_machine().edit(|now| now.runtime.socket = Seen::Absent);
        assert!(matches!(run(&node.look()), Outcome::NotApplicable(_)));
    }

    #[test]
    fn unknown_when_the_socket_cannot_be_used() {
        for reason in [Reason::Denied, Reason::WrongKind, Reason::Unsupported] {
            assert!(matches!(run(&status(reason).look()), Outcome::Unknown(_)), "{reason:?}");
        }
    }
}
