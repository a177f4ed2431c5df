//! BIRD does not bring its routes into the kernel.
//!
//! *Looks at* the state of BIRD's protocols `kernel`, and at routes that BIRD has for the kernel and the kernel has not:
//! the counts are compared all the time, the routes themselves only when the kernel has fewer. *Traps*: BIRD puts back what
//! is missing with its next look at the kernel's table (`scan time`, 2 s); while it recovers from a restart of its own it
//! leaves the kernel alone; BIRD 1.6 and 2 print tables and headings differently (catalogue R166).

use std::time::Duration;

use super::super::{Area, Check, Finding, Look, Outcome, Severity, bgp, findings_or_unknown, seen};
use crate::facts::{BirdDaemon, KernelProtocol};

pub(super) const CHECK: Check = Check {
    code: "BirdKernelSyncBroken",
    area: Area::PodRouting,
    severity: Severity::Critical,
    why: "BGP looks healthy while the kernel sends packets for pods of other nodes the wrong way",
    next_step: "look at the log of BIRD in calico-node here for errors of netlink, check that the tunnel or link which the routes need is up, and delete calico-node's pod so that BIRD writes its routes again",
    raise_after: Duration::from_secs(10),
    clear_after: Duration::from_secs(4),
    run,
};

fn run(look: &Look<'_>) -> Outcome {
    let seen = seen!(look.now.bgp, Outcome::NotApplicable(bgp::NONE.into()));
    let findings = seen.daemons.iter().flat_map(wrong).collect();
    findings_or_unknown(findings, bgp::error(look, seen))
}

fn wrong(daemon: &BirdDaemon) -> Vec<Finding> {
    let bird = daemon.bird.get().filter(|bird| !bird.recovering);
    let kernels = bird.into_iter().flat_map(|bird| &bird.kernels);
    kernels.filter_map(|kernel| Some(finding(daemon, kernel, &describe(kernel)?))).collect()
}

fn describe(kernel: &KernelProtocol) -> Option<String> {
    let name = &kernel.name;
    if kernel.state != "up" {
        return Some(format!("BIRD's protocol {name} is {}: no route reaches the kernel", kernel.state));
    }
    let examples: Vec<String> = kernel.examples.iter().map(ToString::to_string).collect();
    let more = (kernel.missing as usize).saturating_sub(examples.len());
    let more = if more > 0 { format!(" and {more} more") } else { String::new() };
    let missing = if kernel.missing == 1 { "a route".to_owned() } else { format!("{} routes", kernel.missing) };
    let detail = || format!("The kernel lacks {missing} that BIRD has for it ({name}): {}{more}", examples.join(", "));
    (kernel.missing > 0).then(detail)
}

fn finding(daemon: &BirdDaemon, kernel: &KernelProtocol, detail: &str) -> Finding {
    Finding::new(format!("{} {}", daemon.socket, kernel.name), format!("{detail} ({})", daemon.socket))
}

#[cfg(test)]
mod tests {
    use super::super::testing::{self, Node};
    use super::*;
    use crate::facts::Reason;

    fn kernel(change: impl FnOnce(&mut KernelProtocol)) -> Node {
        Node::worker().bgp(|bgp| change(&mut testing::bird(bgp).kernels[0]))
    }

    fn down() -> Node {
        kernel(|kernel| {
            kernel.state = "down".into();
            kernel.exported = None;
        })
    }

    #[test]
    fn the_protocol_is_down() {
        let outcome = run(&down().look());
        assert_eq!(testing::subjects(&outcome), ["/var/run/calico/bird.ctl kernel1"]);
        assert!(testing::details(&outcome)[0].starts_with("BIRD's protocol kernel1 is down"));
    }

    #[test]
    fn the_kernel_lacks_routes() {
        let node = kernel(|kernel| {
            kernel.missing = 2;
            kernel.examples = vec!["10.244.1.0/26".parse().expect("a prefix")];
        });
        let detail = testing::details(&run(&node.look())).remove(0);
        assert!(detail.contains("lacks 2 routes") && detail.contains("10.244.1.0/26 and 1 more"), "{detail}");
    }

    #[test]
    fn healthy_and_clears() {
        assert_eq!(run(&Node::worker().bgp(|_| ()).look()), Outcome::Healthy);
        assert!(matches!(run(&Node::worker().look()), Outcome::NotApplicable(_)));
    }

    #[test]
    fn trap_recovery_and_repair_by_bird_itself() {
        let node = down().bgp(|bgp| testing::bird(bgp).recovering = true);
        assert_eq!(run(&node.look()), Outcome::Healthy);
        assert!(CHECK.raise_after >= Duration::from_secs(10), "several scans of 2 s");
    }

    #[test]
    fn unknown_when_bird_does_not_answer() {
        let node = Node::worker().bgp(|bgp| bgp.daemons[0].bird = testing::error("bird.ctl", Reason::TimedOut));
        assert!(matches!(run(&node.look()), Outcome::Unknown(_)));
    }
}
