//! This node's clock differs from the control plane's.
//!
//! *Looks at* the `Date` of API servers' answers, with what the answer's travel and the whole seconds in it can hide taken off.
//! *Traps*: an API server's own clock may be the wrong one, so where several were asked the majority counts, and where one was,
//! the text says so; a machine that has just been started or resumed sets its clock within seconds (catalogue R038).

use std::time::Duration;

use super::super::path::{self, distance};
use super::super::{Area, Check, Finding, Look, Outcome, Severity, seen};
use crate::facts::ControlPlanePath;

pub(super) const CHECK: Check = Check {
    code: "ClockSkewed",
    area: Area::Integrity,
    severity: Severity::Warning,
    why: "certificates, tokens and leases are judged by the clock, so the kubelet and pods are refused, and times in logs and events mislead",
    next_step: "look whether the clock is kept (`timedatectl`, `chronyc tracking`), restart the time service and let UDP port 123 to its servers through",
    // Two answers of API servers.
    raise_after: Duration::from_secs(60),
    clear_after: Duration::from_secs(5),
    run,
};

/// Seconds from which on it is told, and from which on it is critical (catalogue R038).
const TOLD: i64 = 5;
const CRITICAL: i64 = 60;

fn run(look: &Look<'_>) -> Outcome {
    let path = seen!(look.now.control_plane, path::nowhere());
    let clocks = clocks(path);
    let Some(middle) = clocks.get(clocks.len().saturating_sub(1) / 2) else {
        if path.kubelet.broken() {
            return Outcome::Unknown(format!("{}: no answer that tells the time", path.server));
        }
        return Outcome::NotApplicable("the control plane's answers tell no time".into());
    };
    // Of an even number the smaller of the two in the middle.
    if middle.abs() <= TOLD {
        return Outcome::Healthy;
    }
    let agree = clocks.iter().filter(|it| (*it - middle).abs() <= TOLD).count();
    let whose = match (clocks.len(), agree) {
        (1, _) => "; if other nodes say so too, it is the API server's that is wrong".to_owned(),
        (all, agree) => {
            format!("; {agree} of {all} API servers agree, so it is this node's that is wrong, or all of theirs")
        }
    };
    let severity = if middle.abs() > CRITICAL { Severity::Critical } else { Severity::Warning };
    let detail = format!("This node's clock is {} the control plane's ({}){whose}", distance(*middle), path.server);
    Outcome::from_findings(vec![Finding::new("clock", detail).severity(severity)])
}

/// How far ahead of each server's this node's clock is, the smallest difference first.
fn clocks(path: &ControlPlanePath) -> Vec<i64> {
    let others = path.endpoints.iter().filter(|leg| leg.to != path.kubelet.to);
    let mut clocks: Vec<i64> = std::iter::once(&path.kubelet).chain(others).filter_map(|leg| leg.clock_ahead).collect();
    clocks.sort_unstable_by_key(|seconds| seconds.abs());
    clocks
}

#[cfg(test)]
mod tests {
    use super::super::testing::{Node, end};
    use super::*;
    use crate::facts::PathEnd;

    fn node(clocks: &[i64]) -> Node {
        let others = ["10.0.0.21:6443", "10.0.0.22:6443"];
        let ends = vec![PathEnd::Answered(403); clocks.len() - 1];
        Node::worker().endpoints(&others[..ends.len()], &ends).path(|path| {
            path.kubelet.clock_ahead = Some(clocks[0]);
            for (leg, clock) in path.endpoints.iter_mut().zip(&clocks[1..]) {
                leg.clock_ahead = Some(*clock);
            }
        })
    }

    fn finding(clocks: &[i64]) -> Finding {
        let Outcome::Findings(mut findings) = run(&node(clocks).look()) else { panic!("a finding") };
        findings.remove(0)
    }

    #[test]
    fn some_seconds_and_minutes() {
        let some = finding(&[12]);
        assert_eq!((some.subject.as_str(), some.severity), ("clock", Some(Severity::Warning)));
        assert!(
            some.detail.starts_with("This node's clock is 12 s ahead of the control plane's (https://10.0.0.9:6443)")
        );
        let many = finding(&[-200]);
        assert_eq!(many.severity, Some(Severity::Critical));
        assert!(many.detail.contains("3 min behind the control plane's"), "{many:?}");
    }

    #[test]
    fn healthy_and_clears() {
        for clocks in [&[0][..], &[5], &[-5, 5, 0]] {
            assert_eq!(run(&node(clocks).look()), Outcome::Healthy, "{clocks:?}");
        }
    }

    #[test]
    fn trap_an_api_servers_own_clock() {
        assert!(finding(&[12]).detail.ends_with("it is the API server's that is wrong"));
        assert_eq!(run(&node(&[300, 0, 0]).look()), Outcome::Healthy);
        assert_eq!(run(&node(&[300, 0]).look()), Outcome::Healthy);
        assert!(finding(&[300, 301, 0]).detail.contains("2 of 3 API servers agree, so it is this node's"));
    }

    #[test]
    fn unknown_when_nobody_tells_the_time() {
        let mute = |broken| {
            Node::worker().path(|path| {
                path.kubelet.clock_ahead = None;
                if broken {
                    path.kubelet.end = end();
                }
            })
        };
        assert!(matches!(run(&mute(true).look()), Outcome::Unknown(_)));
        assert!(matches!(run(&mute(false).look()), Outcome::NotApplicable(_)));
        assert!(matches!(run(&Node::plain_machine().look()), Outcome::NotApplicable(_)));
    }
}
