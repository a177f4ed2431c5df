//! Forwarding is switched off while this node has pods to forward for, as a whole or for single links.
//!
//! *Looks at* `net.ipv4.ip_forward` and, when pods have IPv6 addresses, `net.ipv6.conf.all.forwarding`; at `forwarding` and
//! `proxy_arp` of Calico's links to pods, which Felix sets (a pod's gateway 169.254.1.1 exists only in the answers of its
//! link); and at `bridge-nf-call-iptables` where kube-proxy's rules have to see what a bridge passes on. *Traps*: a machine
//! without pod network needs no forwarding; with `ip_forward` off every link is off too, which is told once; a link that is
//! down is being made or torn down (catalogue R087).

use std::time::Duration;

use super::super::{Area, Check, Finding, Look, Outcome, Severity, findings_or_unknown, first_error};
use crate::facts::{Family, LinkSwitches, LookError, ProxyMode, Seen};

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
    let mut findings: Vec<Finding> = findings.collect();
    let traffic = &look.now.traffic;
    if families.contains(&Family::V4) && forwarding.ipv4.get() == Some(&true) {
        findings.extend(pod_links(look, "forwarding", |it| it.forwarding));
        // With proxy ARP off, pods that know the address of their gateway's link go on until they forget it.
        findings.extend(pod_links(look, "proxy_arp", |it| it.proxy_arp).map(|it| it.severity(Severity::Warning)));
        findings.extend(bridge(look));
    }
    let errors = families.iter().map(|family| forwarding.of(*family).error());
    findings_or_unknown(findings, first_error(errors.chain([traffic.switches.error(), bridge_error(look)])))
}

/// Calico's links to pods on which a switch is off, as one finding: there can be hundreds.
fn pod_links(look: &Look<'_>, switch: &str, is_on: fn(&LinkSwitches) -> bool) -> Option<Finding> {
    let routing = look.now.routing.get()?;
    let is_pods = |it: &&LinkSwitches| routing.link(it.index).is_some_and(|link| link.up && link.is_calico_pod());
    let all: Vec<&LinkSwitches> = look.now.traffic.switches.get()?.iter().filter(is_pods).collect();
    let off: Vec<&str> = all.iter().filter(|it| !is_on(it)).map(|it| it.link.as_str()).collect();
    let first = off.iter().take(3).copied().collect::<Vec<_>>().join(", ");
    let more = if off.len() > 3 { ", ..." } else { "" };
    let detail = format!("{switch} is 0 on {} of {} links to pods ({first}{more})", off.len(), all.len());
    let step = format!(
        "restart calico-node on this node, which sets it again (`sysctl -w net.ipv4.conf.LINK.{switch}=1` until then), and find who reset it (`/etc/sysctl.d`, a hardening tool)"
    );
    (!off.is_empty()).then(|| Finding::new(format!("net.ipv4.conf.cali*.{switch}"), detail).next(step))
}

/// Whether packets between pods of one bridge have to pass kube-proxy's rules.
fn bridges(look: &Look<'_>) -> bool {
    look.expected.kube_proxy == Some(ProxyMode::Iptables)
        && look.now.cni.config().is_some_and(|config| config.has("bridge"))
}

const BRIDGE: &str = "net.bridge.bridge-nf-call-iptables";

fn bridge(look: &Look<'_>) -> Option<Finding> {
    let (what, step) = match look.now.traffic.bridge_calls_iptables {
        Seen::Yes(false) => ("is 0", "switch it on (`sysctl -w net.bridge.bridge-nf-call-iptables=1`)"),
        Seen::Absent => ("is not there, as br_netfilter is not loaded", "load it (`modprobe br_netfilter`)"),
        Seen::Yes(true) | Seen::Unreadable(_) => return None,
    };
    let detail = format!(
        "{BRIDGE} {what}: a pod that reaches a pod of this node by a Service gets answers that were not translated back"
    );
    let step = format!("{step} and make it last (`/etc/modules-load.d`, `/etc/sysctl.d`)");
    bridges(look).then(|| Finding::new(BRIDGE, detail).severity(Severity::Warning).next(step))
}

fn bridge_error<'a>(look: &Look<'a>) -> Option<&'a LookError> {
    look.now.traffic.bridge_calls_iptables.error().filter(|_| bridges(look))
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

    /// A worker with so many of Calico's links to pods, of which some have a switch off.
    fn calico_links(count: u32, change: impl Fn(u32, &mut LinkSwitches)) -> Node {
        let node = Node::worker().routing(|routing| {
            let model = routing.links[0].clone();
            routing.links.extend((0..count).map(|at| crate::facts::Link {
                index: 100 + at,
                name: format!("cali{at:011x}"),
                kind: Some("veth".into()),
                ..model.clone()
            }));
        });
        node.edit(|now| {
            let switches = (0..count).map(|at| {
                let link = format!("cali{at:011x}");
                let mut it = LinkSwitches { index: 100 + at, link, forwarding: true, proxy_arp: true, rp_filter: 1 };
                change(at, &mut it);
                it
            });
            now.traffic.switches = Seen::Yes(switches.collect());
        })
    }

    #[test]
    fn off_on_links_to_pods() {
        let node = calico_links(5, |at, it| it.forwarding = at == 0);
        let outcome = run(&node.look());
        assert_eq!(testing::subjects(&outcome), ["net.ipv4.conf.cali*.forwarding"]);
        let detail = "forwarding is 0 on 4 of 5 links to pods (cali00000000001, cali00000000002, cali00000000003, ...)";
        assert_eq!(testing::details(&outcome), [detail]);
        let outcome = run(&calico_links(2, |at, it| it.proxy_arp = at > 0).look());
        assert_eq!(testing::subjects(&outcome), ["net.ipv4.conf.cali*.proxy_arp"]);
        assert_eq!(run(&calico_links(5, |_, _| ()).look()), Outcome::Healthy);
    }

    #[test]
    fn trap_everything_off_is_told_once_and_a_link_that_is_down_is_not() {
        let node = calico_links(5, |_, it| it.forwarding = false).edit(|now| now.forwarding.ipv4 = Seen::Yes(false));
        assert_eq!(testing::subjects(&run(&node.look())), ["net.ipv4.ip_forward"]);
        let node = calico_links(1, |_, it| it.forwarding = false)
            .routing(|routing| routing.links.iter_mut().for_each(|link| link.up = false));
        assert_eq!(run(&node.look()), Outcome::Healthy);
    }

    #[test]
    fn a_bridge_that_passes_by_the_rules() {
        for seen in [Seen::Yes(false), Seen::Absent] {
            let node = Node::worker().edit(|now| now.traffic.bridge_calls_iptables = seen.clone());
            let Outcome::Findings(findings) = run(&node.look()) else { panic!("a finding") };
            assert_eq!((findings[0].subject.as_str(), findings[0].severity), (BRIDGE, Some(Severity::Warning)));
            let node = node.cni_plugin("ptp");
            assert_eq!(run(&node.look()), Outcome::Healthy, "no bridge");
        }
        let node = Node::worker().kube_proxy_native().edit(|now| now.traffic.bridge_calls_iptables = Seen::Yes(false));
        assert_eq!(run(&node.look()), Outcome::Healthy);
        let node = Node::worker().edit(|now| now.traffic.bridge_calls_iptables = testing::denied(BRIDGE));
        assert!(matches!(run(&node.look()), Outcome::Unknown(_)));
    }

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
