//! Pods do not start because their sandbox cannot be made.
//!
//! *Looks at* network namespaces that come and go and at sandboxes that end before they have a container: what the kubelet's
//! `FailedCreatePodSandBox` leaves on the node. The reason is told where a log of the node holds it as text. *Traps*: while
//! Calico restarts, seconds of failures are normal; pods that run for a few seconds; the words differ by runtime, so that the
//! end of the message counts (catalogue R059, R062).

use std::time::Duration;

use super::super::{Area, Check, Finding, Look, Outcome, Severity, sandbox_failure, seen};

pub(super) const CHECK: Check = Check {
    code: "PodSandboxFailing",
    area: Area::Cni,
    severity: Severity::Warning,
    why: "the kubelet tries again and again, and these pods never start",
    next_step: "read the reason in the pods' events (`kubectl get events -A --field-selector reason=FailedCreatePodSandBox`), see whether calico-node is healthy here, and restart one of the pods; if only this worker is affected, gather and reload it",
    // Three minutes of failures have passed.
    raise_after: Duration::ZERO,
    clear_after: Duration::ZERO,
    run,
};

/// So many attempts in ten minutes, in so many different minutes, are no restart of Calico any more (own numbers): the kubelet
/// tries each pod about every ten seconds.
const ATTEMPTS: u32 = 5;
const MINUTES: u32 = 3;

fn run(look: &Look<'_>) -> Outcome {
    seen!(look.now.runtime.status, Outcome::NotApplicable("no container runtime here".into()));
    let failures = &look.now.runtime.failures;
    if failures.attempts < ATTEMPTS || failures.minutes < MINUTES || !failures.goes_on {
        return Outcome::Healthy;
    }
    let pods = match failures.pods.as_slice() {
        [] => String::new(),
        pods => format!(", for {}", pods.join(", ")),
    };
    let cause = failures.said.as_deref().and_then(sandbox_failure::classify);
    let why = cause.map_or_else(String::new, |cause| format!(": {}", cause.what));
    let said = failures.said.as_deref().map(sandbox_failure::tail);
    let said = said.map_or_else(String::new, |said| format!(" (the last one said: {said})"));
    let attempts = failures.attempts;
    let detail =
        format!("At least {attempts} attempts to make a pod's sandbox came to nothing in ten minutes{pods}{why}{said}");
    let finding = Finding::new("sandboxes", detail);
    Outcome::from_findings(vec![cause.into_iter().fold(finding, |finding, cause| finding.next(cause.next))])
}

#[cfg(test)]
mod tests {
    use super::super::testing::{self, Node};
    use super::*;
    use crate::facts::SandboxFailures;

    fn node(attempts: u32, minutes: u32, goes_on: bool, said: Option<&str>) -> Node {
        let pods = vec!["shop/web-1".to_owned()];
        let failures = SandboxFailures { attempts, minutes, goes_on, pods, said: said.map(str::to_owned) };
        Node::worker().edit(|now| now.runtime.failures = failures)
    }

    #[test]
    fn minutes_of_failures_with_and_without_a_reason() {
        let told = |node: &Node| {
            let Outcome::Findings(mut findings) = run(&node.look()) else { panic!("a finding") };
            let finding = findings.remove(0);
            (finding.detail, finding.next_step)
        };
        let (detail, next) = told(&node(12, 4, true, None));
        let plain = "At least 12 attempts to make a pod's sandbox came to nothing in ten minutes, for shop/web-1";
        assert_eq!((detail.as_str(), next), (plain, None));
        let said = r#"plugin type="calico" failed (add): cannot allocate new block due to per host block limit"#;
        let (detail, next) = told(&node(12, 4, true, Some(said)));
        let because = ": this worker may have no further block of addresses (the last one said: cannot allocate new block due to per host block limit)";
        assert_eq!(detail, format!("{plain}{because}"));
        assert!(next.is_some_and(|next| next.contains("maxBlocksPerHost")));
        let (detail, next) = told(&node(12, 4, true, Some(r#"plugin type="x" failed (add): the moon is full"#)));
        assert!(detail.ends_with("web-1 (the last one said: the moon is full)") && next.is_none(), "{detail}");
    }

    #[test]
    fn healthy_and_clears() {
        assert_eq!(run(&Node::worker().look()), Outcome::Healthy);
        assert_eq!(run(&node(60, 8, false, None).look()), Outcome::Healthy, "two minutes without a failure");
        assert!(matches!(run(&Node::plain_machine().look()), Outcome::NotApplicable(_)));
    }

    #[test]
    fn trap_a_restart_of_calico() {
        assert_eq!(run(&node(40, 2, true, None).look()), Outcome::Healthy);
        assert_eq!(run(&node(4, 4, true, None).look()), Outcome::Healthy);
    }

    #[test]
    fn unknown_when_the_runtime_does_not_answer() {
        let node = Node::worker().edit(|now| now.runtime.status = testing::timed_out("Status"));
        assert!(matches!(run(&node.look()), Outcome::Unknown(_)));
    }
}
