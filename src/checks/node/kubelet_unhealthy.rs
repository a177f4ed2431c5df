//! The kubelet runs but its health port is silent or says no; or it is not heard by the control plane, or says of itself what no
//! other code explains.
//!
//! *Looks at* `127.0.0.1:10248/healthz`, and at the node's condition Ready as it was last read. *Traps*: the port can be
//! switched off (`healthzPort: 0`), which is no fault; a kubelet that has just been started does not listen yet, and says
//! NotReady while the node is put together; its words follow what they are about by minutes, in both directions: an error of
//! the runtime stays there for a moment after that answers again, and those of a kubelet that is dead are old news
//! (catalogue R049).

use std::time::Duration;

use super::super::{Area, Check, Finding, Look, Outcome, Severity, kubelet_words};
use crate::facts::{KubeletCondition, Process, Program, Reason, Seen};

pub(super) const CHECK: Check = Check {
    code: "KubeletUnhealthy",
    area: Area::ControlPlanePath,
    severity: Severity::Critical,
    why: "a node whose kubelet hangs, is not heard or calls itself not ready gets no new pods, and loses those that it has after five minutes",
    next_step: "read its log (`journalctl -u kubelet -n 100`), see whether it is stuck (`ps -o stat,wchan -C kubelet`), then restart it",
    raise_after: Duration::from_secs(10),
    clear_after: Duration::from_secs(5),
    run,
};

/// A kubelet that has just been started listens within this time.
const STARTING: Duration = Duration::from_secs(30);
/// As long as bad words are not read again at most: what is over may still be read for so long.
const READ_AGAIN: Duration = Duration::from_secs(120);
/// A node that joins, or a kubelet that has been started, is not ready at first (catalogue H12).
const JOINING: Duration = Duration::from_secs(600);

fn run(look: &Look<'_>) -> Outcome {
    if !look.expected.worker {
        return Outcome::NotApplicable("this is no Kubernetes worker".into());
    }
    let process = look.now.processes.get().and_then(|processes| processes.of(Program::Kubelet));
    match port(look, process) {
        Outcome::NotApplicable(why) if process.is_none() => Outcome::NotApplicable(why),
        well @ (Outcome::Healthy | Outcome::NotApplicable(_)) => {
            // The words of one that does not run are old news, and that it does not is another code.
            let runs = process.is_some() || look.now.health.kubelet.get().is_some();
            if runs { words(look, process).unwrap_or(well) } else { well }
        }
        other => other,
    }
}

/// Its health port.
fn port(look: &Look<'_>, process: Option<&Process>) -> Outcome {
    let said = match &look.now.health.kubelet {
        Seen::Yes(answer) if answer.status == 200 => return Outcome::Healthy,
        Seen::Absent => return Outcome::NotApplicable("the kubelet's health port is switched off".into()),
        Seen::Yes(answer) => format!("answers {}: {}", answer.status, failing(&answer.body)),
        Seen::Unreadable(error) => match error.reason {
            Reason::TimedOut => "accepts but does not answer".to_owned(),
            // Without a process it is down, which is another code.
            Reason::Refused if process.is_none() => return Outcome::Healthy,
            Reason::Refused => "refuses connections though the kubelet runs".to_owned(),
            _ => return Outcome::unknown(error),
        },
    };
    let stopped = process.is_some_and(|process| process.state == 'T');
    let stopped = if stopped { "; its process is stopped by a signal" } else { "" };
    let finding = Finding::new("kubelet", format!("The kubelet's health port {said}{stopped}"));
    let young =
        process.is_some_and(|process| look.now.taken_at.duration_since(process.started_at).unsigned_abs() < STARTING);
    Outcome::from_findings(vec![if young { finding.repaired_within(STARTING) } else { finding }])
}

/// Its words in the condition Ready: none where the node is ready, or nobody reads it.
fn words(look: &Look<'_>, process: Option<&Process>) -> Option<Outcome> {
    let (said, ready) = kubelet_words::said(look, "Ready").filter(|(_, ready)| ready.status != "True")?;
    let finding = if ready.status == "Unknown" { unheard(ready) } else { refusing(look, ready)? };
    if let Some(why) = kubelet_words::are_old(look, said, ready) {
        return Some(Outcome::Unknown(format!("kubelet: {why}")));
    }
    let now = look.now.taken_at;
    let registered_at = look.now.writes.get().and_then(|writes| writes.registered_at);
    let since = registered_at.into_iter().chain(process.map(|process| process.started_at)).max();
    let young = since.is_some_and(|since| now.duration_since(since).unsigned_abs() < JOINING);
    Some(Outcome::from_findings(vec![finding.repaired_within(if young { JOINING } else { READ_AGAIN })]))
}

/// The control plane does not hear it.
fn unheard(ready: &KubeletCondition) -> Finding {
    let KubeletCondition { reason, message, .. } = ready;
    let since = kubelet_words::since(ready);
    let detail = format!(
        "The kubelet runs, and the control plane does not hear it{since}: Ready is Unknown, {reason}: \"{message}\""
    );
    let next = "read what the API server answers it (`journalctl -u kubelet | grep -iE 'unauthorized|forbidden|x509|lease|node status'`): its certificate, its server, the clock of this node; then restart it";
    Finding::new("heartbeat", detail).next(next)
}

/// It says that it is not ready, and why: what other codes do not tell.
fn refusing(look: &Look<'_>, ready: &KubeletCondition) -> Option<Finding> {
    let errors: Vec<&str> = kubelet_words::errors(&ready.message)
        .into_iter()
        .filter(|error| !kubelet_words::is_told_elsewhere(look, error))
        .collect();
    if errors.is_empty() {
        return None;
    }
    let (errors, since) = (errors.join(", "), kubelet_words::since(ready));
    let detail = format!("The kubelet says of itself that it is not ready{since}, {}: \"{errors}\"", ready.reason);
    let finding = Finding::new("Ready", detail);
    let next = "see what its list of containers waits for: thousands of them (`crictl ps -aq | wc -l`), a slow runtime (`time crictl ps -a`), a disk or a volume that does not answer; then restart the runtime, and reload the worker if it comes back";
    Some(if errors.contains("PLEG") { finding.next(next) } else { finding })
}

/// What fails, in the health page's own words: of a list of checks those with the mark of failure.
fn failing(body: &str) -> String {
    let failed: Vec<&str> = body.lines().filter_map(|line| line.strip_prefix("[-]")).collect();
    if failed.is_empty() { body.trim().to_owned() } else { failed.join(", ") }
}

#[cfg(test)]
mod tests {
    use super::super::testing::{self, Node};
    use super::*;

    #[test]
    fn silent_refusing_or_saying_no() {
        for seen in [testing::timed_out("10248"), testing::error("10248", Reason::Refused), testing::answers(500)] {
            let node = Node::worker().edit(|now| now.health.kubelet = seen.clone());
            assert_eq!(testing::subjects(&run(&node.look())), ["kubelet"]);
        }
    }

    #[test]
    fn only_what_fails_is_said() {
        let body = "[+]ping ok\n[+]log ok\n[-]syncloop failed: reason withheld\nhealthz check failed\n";
        let answer = crate::facts::HttpAnswer { status: 500, body: body.into() };
        let node = Node::worker().edit(|now| now.health.kubelet = Seen::Yes(answer));
        let said = "The kubelet's health port answers 500: syncloop failed: reason withheld";
        assert_eq!(testing::details(&run(&node.look())), [said]);
    }

    #[test]
    fn healthy_and_clears() {
        assert_eq!(run(&Node::worker().look()), Outcome::Healthy);
    }

    #[test]
    fn trap_port_off_just_started_and_down() {
        let node = Node::worker().edit(|now| now.health.kubelet = Seen::Absent);
        assert!(matches!(run(&node.look()), Outcome::NotApplicable(_)));
        let refused = Node::worker().edit(|now| now.health.kubelet = testing::error("10248", Reason::Refused));
        let Outcome::Findings(findings) = run(&refused.kubelet_started_ago(2).look()) else { panic!("a finding") };
        assert_eq!(findings[0].owner_repairs_within, Some(STARTING));
        let node = Node::worker()
            .without(Program::Kubelet)
            .edit(|now| now.health.kubelet = testing::error("10248", Reason::Refused));
        assert_eq!(run(&node.look()), Outcome::Healthy, "KubeletDown tells that");
    }

    /// A worker whose Node was read 20 s ago with this condition Ready, 250 s after it became so.
    fn ready(status: &str, reason: &str, message: &str) -> Node {
        Node::worker().says("Ready", status, reason, message)
    }

    /// Recorded when containerd went on after it had hung for 260 s.
    const PLEG: &str = "PLEG is not healthy: pleg was last seen active 4m21.174849822s ago; threshold is 3m0s";

    #[test]
    fn in_its_own_words_what_no_other_code_explains() {
        let node = ready("False", "KubeletNotReady", PLEG);
        let Outcome::Findings(findings) = run(&node.look()) else { panic!("a finding") };
        assert_eq!(findings[0].subject, "Ready");
        let said = format!(
            "The kubelet says of itself that it is not ready since 2023-11-14T22:09:10Z, KubeletNotReady: \"{PLEG}\""
        );
        assert_eq!(findings[0].detail, said);
        assert!(findings[0].next_step.as_ref().expect("own").contains("crictl ps"));
        let part = ready("False", "KubeletNotReady", &format!("[container runtime is down, {PLEG}]"));
        assert!(testing::details(&run(&part.look()))[0].contains(&format!("\"container runtime is down, {PLEG}\"")));
    }

    #[test]
    fn a_kubelet_that_runs_and_is_not_heard() {
        let node = ready("Unknown", "NodeStatusUnknown", "Kubelet stopped posting node status.");
        let node = node.heartbeat_ago(900);
        let details = testing::details(&run(&node.look()));
        assert!(
            details[0].starts_with("The kubelet runs, and the control plane does not hear it since"),
            "{details:?}"
        );
        assert_eq!(testing::subjects(&run(&node.look())), ["heartbeat"]);
        let dead =
            node.without(Program::Kubelet).edit(|now| now.health.kubelet = testing::error("10248", Reason::Refused));
        assert_eq!(run(&dead.look()), Outcome::Healthy, "KubeletDown tells that");
    }

    #[test]
    fn trap_what_other_codes_tell_with_its_cause() {
        // Recorded: a runtime that hangs; one that was killed; no CNI configuration.
        let words = format!("[container runtime is down, {PLEG}]");
        for error in [testing::timed_out("Version"), testing::error("socket", Reason::Refused)] {
            let node = ready("False", "KubeletNotReady", &words).edit(|now| now.runtime.status = error);
            assert_eq!(run(&node.look()), Outcome::Healthy);
        }
        let cni = "container runtime network not ready: NetworkReady=false reason:NetworkPluginNotReady message:Network plugin returns error: cni plugin not initialized";
        let node = ready("False", "KubeletNotReady", cni);
        assert_eq!(testing::subjects(&run(&node.look())), ["Ready"], "of a runtime that says otherwise");
        assert_eq!(run(&node.runtime_condition("NetworkReady", false).look()), Outcome::Healthy);
        let node = ready("False", "KubeletNotReady", "node is shutting down");
        assert_eq!(run(&node.look()), Outcome::Healthy);
    }

    #[test]
    fn trap_words_that_follow_and_a_node_that_joins() {
        let held = |node: &Node| {
            let Outcome::Findings(findings) = run(&node.look()) else { panic!("a finding") };
            findings[0].owner_repairs_within
        };
        let node = ready("False", "KubeletNotReady", PLEG);
        assert_eq!(held(&node), Some(READ_AGAIN), "they may be over by the next read");
        assert_eq!(held(&node.clone().kubelet_started_ago(300)), Some(JOINING));
        let joined = node.edit(|now| {
            let Seen::Yes(writes) = &mut now.writes else { panic!("seen") };
            writes.registered_at = Some(now.taken_at - jiff::SignedDuration::from_mins(9));
        });
        assert_eq!(held(&joined), Some(JOINING));
    }

    #[test]
    fn trap_old_words_are_unknown_and_good_ones_are_not() {
        let old = ready("False", "KubeletNotReady", PLEG).heartbeat_ago(700);
        assert!(matches!(run(&old.look()), Outcome::Unknown(why) if why.contains("last wrote its condition Ready at")));
        let node = ready("False", "KubeletNotReady", PLEG).read_ago(200);
        assert!(matches!(run(&node.look()), Outcome::Unknown(why) if why.contains("the Node was last read at")));
        let node = ready("True", "KubeletReady", "kubelet is posting ready status").heartbeat_ago(9000).read_ago(9000);
        assert_eq!(run(&node.look()), Outcome::Healthy);
    }

    #[test]
    fn unknown_when_it_cannot_be_asked() {
        let node = Node::worker().edit(|now| now.health.kubelet = testing::denied("10248"));
        assert!(matches!(run(&node.look()), Outcome::Unknown(_)));
    }
}
