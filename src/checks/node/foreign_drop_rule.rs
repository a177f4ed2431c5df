//! A rule that is neither Kubernetes' nor Calico's drops or rejects packets of pods, Services or nodes.
//!
//! *Looks at* the rules that a packet passes before it comes to Calico, in both backends and in tables of the family `inet`, and
//! at what they match. Chains of Kubernetes and of owners of policies are not looked into: what they drop they mean to drop,
//! such as kube-proxy's REJECT for a Service without endpoints. *Traps*: a rule that cannot match packets of pods (other links,
//! other addresses, ports that nobody needs); one that has never matched is only worth knowing, so the counters decide; one
//! whose conditions are not all understood says nothing; where a rule ahead may have accepted, the rest that a firewall
//! rejects at its end is only worth knowing (catalogue R105).

use std::collections::BTreeMap;
use std::time::Duration;

use ipnet::IpNet;

use super::super::passage::{self, Hit, Packet, Walk};
use super::super::{Area, Check, Finding, Look, Outcome, Severity, findings_or_unknown};
use super::encap_blocked::WIREGUARD_PORTS;
use crate::facts::{FilterRule, Hook, Is, Routing, WIREGUARD};

pub(super) const CHECK: Check = Check {
    code: "ForeignDropRule",
    area: Area::PacketFilter,
    severity: Severity::Warning,
    why: "packets that Kubernetes lets through are dropped before or beside its rules, and it shows nowhere in the cluster",
    next_step: "find who put the rule there (its comment and table say: firewalld, ufw, a security agent, a script), and take it out or let the pod and node networks pass ahead of it",
    raise_after: Duration::from_secs(5),
    clear_after: Duration::from_secs(5),
    run,
};

/// Ports without which a worker does not work: DNS, BGP, HTTPS, VXLAN of Calico and of flannel, Typha, API server, kubelet.
const NEEDED: [u16; 8] = [53, 179, 443, 4789, 5473, 6443, 8472, 10250];

fn run(look: &Look<'_>) -> Outcome {
    let packets = passage::packets(look);
    if packets.is_empty() {
        return Outcome::NotApplicable("no pod network here".into());
    }
    let mut findings = BTreeMap::new();
    for packet in &packets {
        drops(look, packet, Hook::Forward, &mut findings);
        let host = Packet::of_host(packet.family());
        drops(look, &host, Hook::Input, &mut findings);
        drops(look, &host, Hook::Output, &mut findings);
    }
    findings_or_unknown(findings.into_values().collect(), passage::unread(look))
}

/// Adds what drops this packet at this hook.
fn drops(look: &Look<'_>, packet: &Packet, hook: Hook, findings: &mut BTreeMap<String, Finding>) {
    for (backend, table, name, chain) in passage::base_chains(look, packet.family(), hook) {
        let (walk, _) = Walk::through(table, chain, packet);
        for hit in walk.drops {
            // What a firewall of the host drops at its end is its business.
            let severity = if hit.all && hit.spared && hook != Hook::Forward { None } else { severity(look, &hit) };
            let Some(severity) = severity else { continue };
            let rule = passage::describe(hit.rule);
            let subject = format!("{backend} {name} {} {rule}", hit.chain);
            findings.entry(subject.clone()).or_insert_with(|| {
                let comment =
                    hit.rule.comment.as_ref().map(|comment| format!(", comment \"{comment}\"")).unwrap_or_default();
                let counter = passage::counted(hit.rule);
                let place = format!("{} of table {name} ({backend})", hit.chain);
                Finding::new(
                    subject,
                    format!("A foreign rule in {place} stands in the way: `{rule}`{comment}; {counter}"),
                )
                .severity(severity)
            });
        }
    }
}

/// How bad a rule is; none when it is nobody's business.
fn severity(look: &Look<'_>, hit: &Hit<'_>) -> Option<Severity> {
    let rule = hit.rule;
    if rule.other_matches || rule.mark.is_some() {
        return None;
    }
    let about = [&rule.source, &rule.destination];
    let named = about.iter().any(|net| net.is_some());
    if !hit.all
        && !(about.into_iter().flatten().all(|net| concerns(look, net)) && (named || hit.reached && by_port(rule)))
    {
        return None;
    }
    let mut ports = NEEDED.into_iter().chain(look.now.routing.get().into_iter().flat_map(tunnel_ports));
    let needed = rule.ports.is_empty() || ports.any(|port| rule.ports.iter().any(|(a, b)| (*a..=*b).contains(&port)));
    Some(match rule.packets {
        _ if !needed || (hit.all && hit.spared) => Severity::Info,
        Some(0) => Severity::Info,
        Some(_) => Severity::Warning,
        None if hit.all => Severity::Warning,
        None => Severity::Info,
    })
}

/// The UDP ports of tunnels, which may have been given others than the usual ones. A WireGuard that is not the CNI's is nobody's need
/// here, and where the CNI's does not tell its port the usual ones count.
fn tunnel_ports(routing: &Routing) -> Vec<u16> {
    let ports = routing.links.iter().filter(|link| !link.is_vpn()).flat_map(|link| match routing.tunnel_port(link) {
        Some(port) => vec![port],
        None if link.kind.as_deref() == Some(WIREGUARD) => WIREGUARD_PORTS.to_vec(),
        None => Vec::new(),
    });
    ports.collect()
}

/// Whether a rule without addresses is about protocols and ports, and links do not limit it.
fn by_port(rule: &FilterRule) -> bool {
    rule.input.is_none() && rule.output.is_none() && (rule.protocol.is_some() || !rule.ports.is_empty())
}

/// Whether a condition means pods, nodes or Services.
fn concerns(look: &Look<'_>, net: &Is<IpNet>) -> bool {
    let (routing, cluster) = (look.now.routing.get(), look.now.cluster.get());
    let pods = routing.into_iter().flat_map(|routing| routing.pods.values().flatten().map(|route| route.address));
    let own =
        routing.into_iter().flat_map(|routing| routing.addresses.iter().filter(|it| it.global).map(|it| it.address));
    let nodes =
        cluster.into_iter().flat_map(|cluster| cluster.nodes.iter().flat_map(|node| node.addresses.iter().copied()));
    let services =
        cluster.into_iter().flat_map(|cluster| cluster.services.iter().flat_map(|it| it.cluster_ips.iter().copied()));
    let blocks =
        cluster.into_iter().flat_map(|cluster| cluster.nodes.iter().flat_map(|node| node.blocks.iter().copied()));
    let pools = cluster.into_iter().flat_map(|cluster| cluster.pools.iter().map(|pool| pool.cidr));
    let net = (!net.not).then_some(net.value);
    net.is_some_and(|net| {
        pods.chain(own).chain(nodes).chain(services).any(|address| net.contains(&address))
            || blocks.chain(pools).any(|block| net.contains(&block) || block.contains(&net))
    })
}

#[cfg(test)]
mod tests {
    use super::super::testing::{self, Node};
    use super::*;
    use crate::facts::{Backend, Policy, Seen};

    fn with(backend: Backend, table: &str, hook: Hook, rules: &[(&str, Option<u64>)]) -> Node {
        let name = match hook {
            Hook::Input => "INPUT",
            Hook::Output => "OUTPUT",
            _ => "FORWARD",
        };
        let rules =
            rules.iter().map(|(text, packets)| FilterRule { packets: *packets, ..testing::rule(text) }).collect();
        Node::worker().rules(backend, (table, name), Some((hook, Policy::Accept)), rules)
    }

    #[test]
    fn the_port_of_a_vxlan_device_is_needed() {
        let node = with(Backend::Nftables, "filter", Hook::Input, &[("-p udp --dport 4790 -j DROP", Some(5))]);
        let severity = |node: &Node| match run(&node.look()) {
            Outcome::Findings(found) => found[0].severity,
            outcome => panic!("{outcome:?}"),
        };
        assert_eq!(severity(&node), Some(Severity::Info));
        let link = testing::link(40, "vxlan.calico", Some("vxlan"));
        let link = crate::facts::Link { vxlan_port: Some(4790), ..link };
        assert_eq!(severity(&node.routing(|routing| routing.links.push(link))), Some(Severity::Warning));
    }

    #[test]
    fn the_port_of_the_cnis_wireguard_is_needed() {
        let severity = |port: u16, link: &str, told: Option<u16>| {
            let rule = format!("-p udp --dport {port} -j DROP");
            let node = with(Backend::Nftables, "filter", Hook::Input, &[(&rule, Some(5))]).routing(|routing| {
                routing.links.push(testing::link(40, link, Some(WIREGUARD)));
                routing.wireguard = match told {
                    Some(port) => Seen::Yes([(link.to_owned(), port)].into()),
                    None => testing::denied("ports of WireGuard"),
                };
            });
            severity_of(&node)
        };
        assert_eq!(severity(51999, "wireguard.cali", Some(51999)), Severity::Warning);
        assert_eq!(severity(51820, "wireguard.cali", Some(51999)), Severity::Info, "nobody listens there");
        assert_eq!(severity(51821, "wg-v6.cali", None), Severity::Warning, "the usual one");
        assert_eq!(severity(51820, "wg0", Some(51820)), Severity::Info, "somebody's own network");
    }

    #[test]
    fn ip_in_ip_is_needed_and_counters_decide() {
        let with = |packets| with(Backend::Legacy, "filter", Hook::Input, &[("-p ipencap -j DROP", Some(packets))]);
        assert_eq!((severity_of(&with(7)), severity_of(&with(0))), (Severity::Warning, Severity::Info));
    }

    fn forward(rules: &[(&str, Option<u64>)]) -> Node {
        with(Backend::Nftables, "filter", Hook::Forward, rules)
    }

    fn severity_of(node: &Node) -> Severity {
        let Outcome::Findings(findings) = run(&node.look()) else { panic!("a finding, not {:?}", run(&node.look())) };
        findings[0].severity.expect("a severity")
    }

    #[test]
    fn a_rule_that_drops_pods_is_named_with_its_counter_and_comment() {
        let node = forward(&[
            ("-s 10.244.0.0/16 -m comment --comment \"quarantine\" -j DROP", Some(100)),
            ("-j cali-FORWARD", None),
        ]);
        let details = testing::details(&run(&node.look()));
        assert!(details[0].contains("`-s 10.244.0.0/16 -j DROP`, comment \"quarantine\""), "{details:?}");
        assert!(
            details[0].contains("at least 100 packets") && details[0].contains("FORWARD of table IPv4 filter"),
            "{details:?}"
        );
        assert_eq!(severity_of(&node), Severity::Warning);
    }

    #[test]
    fn in_another_backend_and_in_inet_tables() {
        let node = with(
            Backend::Legacy,
            "filter",
            Hook::Forward,
            &[("-j REJECT --reject-with icmp-host-prohibited", Some(1))],
        );
        assert_eq!(testing::subjects(&run(&node.look())), ["legacy iptables IPv4 filter FORWARD -j REJECT"]);
        let node = with(Backend::Nftables, "inet firewalld", Hook::Forward, &[("-j REJECT", None)]);
        assert_eq!(testing::subjects(&run(&node.look())), ["nf_tables inet firewalld FORWARD -j REJECT"]);
        assert_eq!(severity_of(&node), Severity::Warning, "without a counter nothing speaks for it");
    }

    #[test]
    fn trap_counters_decide() {
        assert_eq!(severity_of(&forward(&[("-s 10.244.0.0/16 -j DROP", Some(0))])), Severity::Info);
        assert_eq!(
            severity_of(&forward(&[("-p tcp -m tcp --dport 25 -j DROP", Some(10))])),
            Severity::Info,
            "nobody needs it"
        );
        assert_eq!(severity_of(&forward(&[("-p udp -m udp --dport 53 -j DROP", Some(10))])), Severity::Warning);
    }

    #[test]
    fn trap_rules_that_cannot_match_pods() {
        for rule in [
            "-s 172.17.0.0/16 -j DROP",
            "-d 169.254.169.254/32 -j DROP",
            "-i docker0 -j DROP",
            "-m conntrack --ctstate INVALID -j DROP",
            "-m set --match-set blocked src -j DROP",
            "-p icmp -j DROP",
            "! -s 10.0.0.0/8 -i eth9 -j DROP",
            "-m mark --mark 0x1/0x1 -j DROP",
            "-m comment --comment cali:x -i cni+ -j DROP",
            "-j KUBE-SERVICES",
        ] {
            assert_eq!(run(&forward(&[(rule, Some(1000))]).look()), Outcome::Healthy, "{rule}");
        }
    }

    #[test]
    fn trap_behind_calico_nothing_matters() {
        assert_eq!(run(&forward(&[("-j cali-FORWARD", None), ("-j REJECT", Some(5))]).look()), Outcome::Healthy);
        // Unless Calico's acceptance is a rule of its own behind it.
        let late = "-m comment --comment cali:x -m mark --mark 0x10000/0x10000 -j ACCEPT";
        let node = forward(&[("-j cali-FORWARD", None), ("-j REJECT", Some(5)), (late, None)]);
        assert_eq!(severity_of(&node), Severity::Warning);
    }

    #[test]
    fn trap_a_firewall_that_may_have_accepted_before() {
        let rules = [("-m set --match-set friends src -j ACCEPT", None), ("-j REJECT", Some(5))];
        assert_eq!(severity_of(&forward(&rules)), Severity::Info);
        for hook in [Hook::Input, Hook::Output] {
            let node = with(
                Backend::Nftables,
                "filter",
                hook,
                &[("-p tcp -m tcp --dport 22 -j ACCEPT", None), ("-j DROP", Some(5))],
            );
            assert_eq!(run(&node.look()), Outcome::Healthy, "a host may have a firewall");
        }
    }

    #[test]
    fn a_rule_of_the_host_that_names_pods() {
        let node = with(Backend::Nftables, "filter", Hook::Output, &[("-d 10.244.0.0/16 -j DROP", Some(10))]);
        assert_eq!(severity_of(&node), Severity::Warning);
        let node = with(Backend::Nftables, "filter", Hook::Input, &[("-s 192.168.0.0/16 -j DROP", Some(10))]);
        assert_eq!(run(&node.look()), Outcome::Healthy);
    }

    #[test]
    fn healthy_clears_and_not_applicable() {
        assert_eq!(run(&Node::worker().look()), Outcome::Healthy);
        assert_eq!(run(&Node::worker().calico(Backend::Nftables).look()), Outcome::Healthy);
        let node = Node::plain_machine().routing(|routing| routing.pods.clear());
        assert!(matches!(run(&node.look()), Outcome::NotApplicable(_)));
    }

    #[test]
    fn unknown_when_a_backend_cannot_be_read() {
        let node = Node::worker().edit(|now| now.nftables = testing::denied("nf_tables"));
        assert!(matches!(run(&node.look()), Outcome::Unknown(_)));
    }
}
