//! This node's clock differs from the control plane's.
//!
//! *Looks at* the `Date` of API servers' answers, with what the answer's travel and the whole seconds in it can hide taken off;
//! and, to tell whose clock it is, at what the kernel says of this node's.
//! *Traps*: an API server's own clock may be the wrong one, so where several were asked the majority counts, and where one was,
//! the text says so; a machine that has just been started or resumed sets its clock within seconds; and
//! a hypervisor may keep a clock that the kernel calls not synchronised, so that alone is never a finding (catalogue R038).

use std::time::Duration;

use super::super::path::{self, distance};
use super::super::{Area, Check, Finding, Look, Outcome, Severity, seen};
use crate::facts::{ControlPlanePath, KernelClock, Seen};

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
    let kernel = kernel(&path.kernel_clock);
    let far = distance(*middle);
    let detail = format!("This node's clock is {far} the control plane's ({}){whose}{kernel}", path.server);
    Outcome::from_findings(vec![Finding::new("clock", detail).severity(severity)])
}

/// What the kernel says of this node's clock, and what that means. Smaller errors than a second come and go between two
/// corrections, and explain nothing that is told.
fn kernel(clock: &Seen<KernelClock>) -> String {
    match clock {
        Seen::Yes(KernelClock { synchronised: false, largest_error_millis }) => format!(
            "; the kernel calls this node's clock not synchronised (STA_UNSYNC, largest error {} s): no time service corrects it, or \
             only a hypervisor does",
            largest_error_millis / 1000
        ),
        Seen::Yes(KernelClock { synchronised: true, largest_error_millis: millis @ 1000.. }) => format!(
            "; the kernel calls this node's clock synchronised, but with an error of up to {} s, which grows by 1.8 s an hour while \
             nobody corrects it",
            millis / 1000
        ),
        Seen::Yes(_) => "; the kernel calls this node's clock synchronised to less than a second: then the API server's clock, a time \
             server's or a step of this one is to blame"
            .to_owned(),
        Seen::Unreadable(error) => format!("; what the kernel says of this node's clock is unknown ({error})"),
        Seen::Absent => String::new(),
    }
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

    /// What is told of the same clock while the kernel says this of it.
    fn with_kernel(clocks: &[i64], kernel: Seen<KernelClock>) -> Finding {
        let node = node(clocks).path(|path| path.kernel_clock = kernel);
        let Outcome::Findings(mut findings) = run(&node.look()) else { panic!("a finding") };
        findings.remove(0)
    }

    fn kept(synchronised: bool, largest_error_millis: u64) -> Seen<KernelClock> {
        Seen::Yes(KernelClock { synchronised, largest_error_millis })
    }

    #[test]
    fn what_the_kernel_says_explains_it() {
        let not = with_kernel(&[300, 301, 300], kept(false, 16_000)).detail;
        assert!(not.contains("3 of 3 API servers agree, so it is this node's"), "{not}");
        assert!(
            not.contains("not synchronised (STA_UNSYNC, largest error 16 s): no time service corrects it"),
            "{not}"
        );
        let late = with_kernel(&[12], kept(true, 12_300)).detail;
        assert!(late.contains("synchronised, but with an error of up to 12 s, which grows"), "{late}");
    }

    #[test]
    fn trap_the_kernel_vouches_for_this_clock() {
        let well = with_kernel(&[12], kept(true, 20));
        assert!(well.detail.contains("it is the API server's that is wrong; the kernel calls this node's"), "{well:?}");
        assert!(well.detail.contains("to less than a second: then the API server's clock"), "{well:?}");
        // The error saws between two corrections: that is no news.
        assert_eq!(well, with_kernel(&[12], kept(true, 999)));
    }

    #[test]
    fn trap_a_clock_that_only_a_hypervisor_keeps() {
        let node = node(&[0]).path(|path| path.kernel_clock = kept(false, 16_000));
        assert_eq!(run(&node.look()), Outcome::Healthy);
    }

    #[test]
    fn the_kernel_may_not_be_asked() {
        let told = with_kernel(&[12], super::super::testing::denied("adjtimex"));
        assert!(told.detail.contains("; what the kernel says of this node's clock is unknown (adjtimex: "), "{told:?}");
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
