//! Forwarding is switched off while this node has pods to forward for.
//!
//! *Looks at* `net.ipv4.ip_forward` and, when pods have IPv6 addresses, `net.ipv6.conf.all.forwarding`. *Trap*: a
//! machine without pod network needs no forwarding (catalogue R087).

use std::time::Duration;

use super::super::{Area, Check, Finding, Look, Outcome, Severity, findings_or_unknown, first_error};
use crate::facts::Family;

pub(super) const CHECK: Check = Check {
    code: "IpForwardDisabled",
    area: Area::PodRouting,
    severity: Severity::Critical,
    why: "no packet passes between pods and anything outside this node",
    next_step: "switch it on (`sysctl -w net.ipv4.ip_forward=1`) and find who reset it (`/etc/sysctl.d`, a hardening tool)",
    raise_after: Duration::from_secs(2),
    clear_after: Duration::from_secs(2),
    run,
};

fn run(look: &Look<'_>) -> Outcome {
    let families = pod_families(look);
    if families.is_empty() {
        return Outcome::NotApplicable("no pod network here".into());
    }
    let forwarding = &look.now.forwarding;
    let off = families.iter().filter(|family| forwarding.of(**family).get() == Some(&false));
    let findings =
        off.map(|family| Finding::new(sysctl(*family), format!("{} is 0", sysctl(*family))).next(step(*family)));
    findings_or_unknown(findings.collect(), first_error(families.iter().map(|family| forwarding.of(*family).error())))
}

fn sysctl(family: Family) -> &'static str {
    match family {
        Family::V4 => "net.ipv4.ip_forward",
        Family::V6 => "net.ipv6.conf.all.forwarding",
    }
}

fn step(family: Family) -> String {
    format!("switch it on (`sysctl -w {}=1`) and find who reset it (`/etc/sysctl.d`, a hardening tool)", sysctl(family))
}

/// Families in which pods have addresses; IPv4 when there is a CNI configuration and no pod yet.
fn pod_families(look: &Look<'_>) -> Vec<Family> {
    let sandboxes = look.now.runtime.sandboxes.get().map_or(&[][..], Vec::as_slice);
    let addresses = || sandboxes.iter().flat_map(|sandbox| &sandbox.addresses).map(|address| Family::of(*address));
    let mut families: Vec<Family> =
        [Family::V4, Family::V6].into_iter().filter(|family| addresses().any(|it| it == *family)).collect();
    let network = look.now.cni.config().is_some() || look.before.cni;
    if families.is_empty() && network && look.expected.worker {
        families.push(Family::V4);
    }
    families
}

#[cfg(test)]
mod tests {
    use super::super::testing::{self, Node};
    use super::*;
    use crate::facts::Seen;

    #[test]
    fn off_with_pods() {
        let node = Node::worker().edit(|now| now.forwarding.ipv4 = Seen::Yes(false));
        assert_eq!(testing::subjects(&run(&node.look())), ["net.ipv4.ip_forward"]);
    }

    #[test]
    fn ipv6_counts_when_pods_have_ipv6() {
        let node = Node::worker().edit(|now| {
            now.forwarding.ipv6 = Seen::Yes(false);
            if let Seen::Yes(sandboxes) = &mut now.runtime.sandboxes {
                sandboxes[0].addresses.push("fd00::7".parse().expect("an address"));
            }
        });
        assert_eq!(testing::subjects(&run(&node.look())), ["net.ipv6.conf.all.forwarding"]);
    }

    #[test]
    fn healthy_and_clears() {
        assert_eq!(run(&Node::worker().look()), Outcome::Healthy);
    }

    #[test]
    fn trap_ipv6_off_without_ipv6_pods_and_a_plain_machine() {
        let node = Node::worker().edit(|now| now.forwarding.ipv6 = Seen::Yes(false));
        assert_eq!(run(&node.look()), Outcome::Healthy);
        let node = Node::plain_machine().edit(|now| now.forwarding.ipv4 = Seen::Yes(false));
        assert!(matches!(run(&node.look()), Outcome::NotApplicable(_)));
    }

    #[test]
    fn unknown_when_it_cannot_be_read() {
        let node = Node::worker().edit(|now| now.forwarding.ipv4 = testing::denied("net.ipv4.ip_forward"));
        assert!(matches!(run(&node.look()), Outcome::Unknown(_)));
    }
}
