//! The cluster's DNS does not answer this node at its Service address, though Pods behind it are Ready, or only that it has failed.
//!
//! *Looks at* one question for `kubernetes.default.svc` over UDP and one over TCP to the ClusterIP of `kube-dns`, once a minute, and
//! at the map of the cluster. *Traps*: a name that is not found, or a refusal, is an answer; that the server has failed (SERVFAIL) is
//! none that helps, but CoreDNS says so for some seconds after its start, and whoever is asked for a name of another cluster may say
//! so for good, so that the kubelet has to tell what the cluster calls itself; the node's way is not a Pod's: a
//! policy for the Pods of DNS may leave nodes out, so that a way is missed only once it has led to another node, or where one of
//! these Pods is on this node; NodeLocal DNS takes the Service's address on the node itself, and answers there; Pods die before the
//! cluster calls them not Ready, and this node hears of that later still; where no Pod is Ready it is the cluster's matter, and
//! told once, for the cluster (catalogue R131).

use std::time::Duration;

use super::super::passage::{self, Packet};
use super::super::{Area, Check, Finding, Look, Outcome, Severity, seen};
use super::kube_proxy_rules_stale::heard;
use crate::facts::{ClusterDns, DnsService, DnsWay, FaultKind, Hook, IPVS_DEVICE, PathFault, PathStep, Seen, utc};

pub(super) const CHECK: Check = Check {
    code: "ClusterDnsUnreachable",
    area: Area::PacketFilter,
    severity: Severity::Warning,
    why: "Pods on this node ask for names at the same address, so nothing that is called by its name is found from here, in the cluster and outside of it",
    next_step: "ask from this node one of the Pods behind it and then the Service (`dig @POD_IP kubernetes.default.svc.cluster.local`, `dig @CLUSTER_IP kubernetes.default.svc.cluster.local`, with `+tcp` for TCP): if only the Service fails look at kube-proxy and its rules here, else at the way to the nodes of these Pods and at network policies that leave nodes out",
    // A node that dies is called not Ready after 50 s, and its Pods with it; the map of the cluster is older by up to 105 s.
    raise_after: Duration::from_secs(180),
    clear_after: Duration::from_secs(10),
    run,
};

/// What the cluster hears of a node that dies: `--node-monitor-grace-period`, 50 s since Kubernetes 1.32, and the time to tell.
const NOTICED: Duration = Duration::from_secs(60);

fn run(look: &Look<'_>) -> Outcome {
    let map = seen!(look.now.cluster, Outcome::NotApplicable("nobody tells where the cluster's DNS is".into()));
    let Some(service) = map.dns() else {
        let none = "there is no Service of the cluster's DNS with an address and Ready Pods in kube-system";
        return Outcome::NotApplicable(none.into());
    };
    let asked = match &look.now.cluster_dns {
        Seen::Yes(asked) if asked.address == service.address => asked,
        Seen::Unreadable(error) => return Outcome::unknown(error),
        _ => return Outcome::Unknown(format!("{} ({}): not asked yet", service.name, service.address)),
    };
    let missed: Vec<&DnsWay> = asked.missed().collect();
    if missed.is_empty() && !asked.fails() {
        if asked.ways.iter().any(|way| way.fault.is_none()) {
            return Outcome::Healthy;
        }
        let name = &service.name;
        return Outcome::NotApplicable(format!(
            "{name} has never answered this node, so it is not missed: a policy for its Pods may leave nodes out"
        ));
    }
    if let Some(since) = look.now.cluster_unconfirmed_since {
        let (name, since) = (&service.name, utc(since));
        return Outcome::Unknown(format!("whether Pods behind {name} are Ready has not been confirmed since {since}"));
    }
    let finding =
        if missed.is_empty() { failing(look, &service, asked) } else { finding(look, &service, asked, &missed) };
    Outcome::from_findings(vec![finding.repaired_within(NOTICED + heard(map))])
}

fn finding(look: &Look<'_>, service: &DnsService, asked: &ClusterDns, missed: &[&DnsWay]) -> Finding {
    let at = std::net::SocketAddr::new(service.address, ClusterDns::PORT);
    let others: Vec<&str> =
        asked.ways.iter().filter(|way| way.fault.is_none()).map(|way| way.protocol.as_str()).collect();
    let by = missed.iter().map(|way| way.protocol.as_str()).collect::<Vec<_>>().join(" and ");
    let though = match (others.first(), service.pods.len()) {
        (Some(other), _) if asked.fails() => format!("and over {other} only that it has failed (SERVFAIL)"),
        (Some(other), _) => format!("though it does over {other}"),
        (None, 1) => "though its Pod is Ready".to_owned(),
        (None, ready) => format!("though {ready} of its Pods are Ready"),
    };
    let why: Vec<String> = missed.iter().filter_map(|way| Some(words(&way.protocol, way.fault.as_ref()?))).collect();
    let mut detail = format!(
        "The cluster's DNS, Service {} ({at}), does not answer this node over {by}, {though}: {}",
        service.name,
        why.join("; ")
    );
    if let Some(rule) = missed.iter().find_map(|way| own_rule(look, service, way)) {
        detail.extend(["; it is this node itself that drops it, by ", &rule]);
    }
    let Some(link) = local(look, service) else { return Finding::new(at.to_string(), detail) };
    detail.extend(["; the address is this node's own, on the link ", &link, ", where NodeLocal DNS should answer"]);
    Finding::new(at.to_string(), detail).next(
        "look at the Pod of NodeLocal DNS on this node (`kubectl -n kube-system get pods -l k8s-app=node-local-dns -o wide`) and at its log; while it is away its link and rules have to go, or nobody answers in its stead",
    )
}

/// What answers knows nothing of the cluster.
fn failing(look: &Look<'_>, service: &DnsService, asked: &ClusterDns) -> Finding {
    let at = std::net::SocketAddr::new(service.address, ClusterDns::PORT);
    let by: Vec<&str> = asked.ways.iter().filter(|way| way.failed).map(|way| way.protocol.as_str()).collect();
    let mut detail = format!(
        "The cluster's DNS, Service {} ({at}), answers this node over {}, but with SERVFAIL, also for kubernetes.default.svc, which it should know by itself: ",
        service.name,
        by.join(" and ")
    );
    let Some(link) = local(look, service) else {
        detail.push_str("CoreDNS says so as long as it has not read the Services of the cluster from the API server");
        return Finding::new(at.to_string(), detail).next(
            "look at the log of CoreDNS (`kubectl -n kube-system logs -l k8s-app=kube-dns --tail=50`): if it cannot list Services, look at the way to the API server from the nodes of its Pods, at the ClusterRole `system:coredns` and its binding, and at the block `kubernetes` of its Corefile; its plugin `ready` keeps such Pods out of the Service",
        );
    };
    detail.extend([
        "it is NodeLocal DNS that answers here, on the link ",
        &link,
        ", and says so while it does not reach CoreDNS",
    ]);
    Finding::new(at.to_string(), detail).next(
        "look at the log of NodeLocal DNS on this node (`kubectl -n kube-system get pods -l k8s-app=node-local-dns -o wide`), and ask one of the Pods of CoreDNS from this node (`dig +tcp @POD_IP kubernetes.default.svc.cluster.local`): it asks them over TCP by the Service kube-dns-upstream",
    )
}

/// Why no answer came, for people.
fn words(protocol: &str, PathFault { step, kind, detail, .. }: &PathFault) -> String {
    let why = match (step, kind) {
        (PathStep::Route, _) => format!("this node has no route to it ({detail})"),
        (_, FaultKind::Denied) => {
            format!(
                "this node's own packet filter forbids it, as kube-proxy's rules do for a Service without Pods ({detail})"
            )
        }
        (_, FaultKind::Refused) => "it is refused, as where nobody listens or a rule rejects it".into(),
        (_, FaultKind::Unreachable) => format!("a router on the way, or the last hop, calls it unreachable ({detail})"),
        (PathStep::Connect, FaultKind::TimedOut) => "no connection comes about".into(),
        (_, FaultKind::TimedOut) if protocol == "TCP" => "the connection stands, and no answer comes".into(),
        (_, FaultKind::TimedOut) => "no answer comes".into(),
        (_, FaultKind::Reset) => "the connection is broken off".into(),
        _ => detail.clone(),
    };
    format!("over {protocol} {why}")
}

/// The rule of this node's own that surely drops questions on their way to each of the Pods: that is where they go by then.
fn own_rule(look: &Look<'_>, service: &DnsService, way: &DnsWay) -> Option<String> {
    const NUMBERS: [(&str, u8); 2] = [("UDP", 17), ("TCP", 6)];
    let number = NUMBERS.iter().find(|(name, _)| *name == way.protocol)?.1;
    let mut rules = service.pods.iter().map(|pod| {
        let packet = Packet::sent(pod.ip(), (number, Some(pod.port())), None, false);
        Some(passage::dropping(look, Hook::Output, &packet)?.0)
    });
    let first = rules.next()??;
    rules.all(|rule| rule.as_ref() == Some(&first)).then_some(first)
}

/// The link of this node that has the Service's address, but for that on which IPVS has all of them.
fn local(look: &Look<'_>, service: &DnsService) -> Option<String> {
    let routing = look.now.routing.get()?;
    let own = routing.addresses.iter().find(|it| it.address == service.address)?;
    Some(routing.link_name(own.link)).filter(|link| link != IPVS_DEVICE)
}

#[cfg(test)]
mod tests {
    use super::super::testing::{self, Node, rule};
    use super::*;
    use crate::facts::{Address, Backend, ClusterServicePort};

    type Fault = Option<(PathStep, FaultKind)>;

    const SILENT: Fault = Some((PathStep::Dns, FaultKind::TimedOut));
    const CUT: Fault = Some((PathStep::Connect, FaultKind::TimedOut));
    const PODS: [&str; 2] = ["10.244.1.9:53", "10.244.2.9:53"];

    /// A worker of a cluster whose DNS has these Ready Pods, which nobody has asked yet.
    fn told(pods: &[&str]) -> Node {
        let service = testing::service("kube-system/kube-dns", "10.96.0.10:53", ("dns", "UDP"), pods);
        Node::worker().with_map(|map| {
            let udp = service.ports[0].clone();
            let tcp = ClusterServicePort { name: "dns-tcp".into(), protocol: "TCP".into(), ..udp.clone() };
            map.services = vec![crate::facts::ClusterService { ports: vec![udp, tcp], ..service }];
        })
    }

    /// The same, asked over UDP and TCP, where it has answered before.
    fn asked(pods: &[&str], faults: [Fault; 2]) -> Node {
        told(pods).edit(|now| {
            let way = |(protocol, fault): (&str, Fault)| DnsWay {
                protocol: protocol.into(),
                fault: fault.map(|(step, kind)| PathFault::new(step, kind, "for this test")),
                failed: false,
                reached: true,
            };
            let ways = ["UDP", "TCP"].into_iter().zip(faults).map(way).collect();
            now.cluster_dns = Seen::Yes(ClusterDns { address: [10, 96, 0, 10].into(), ways, own_pod: false });
        })
    }

    fn change(node: Node, change: impl FnOnce(&mut ClusterDns)) -> Node {
        node.edit(|now| {
            let Seen::Yes(dns) = &mut now.cluster_dns else { panic!("asked") };
            change(dns);
        })
    }

    fn said(node: &Node) -> String {
        testing::details(&run(&node.look())).remove(0)
    }

    #[test]
    fn it_does_not_answer_at_all() {
        let node = asked(&PODS, [SILENT, CUT]);
        assert_eq!(testing::subjects(&run(&node.look())), ["10.96.0.10:53"]);
        let expected = "The cluster's DNS, Service kube-system/kube-dns (10.96.0.10:53), does not answer this node over UDP and TCP, though 2 of its Pods are Ready: \
                        over UDP no answer comes; over TCP no connection comes about";
        assert_eq!(said(&node), expected);
        let refused = Some((PathStep::Dns, FaultKind::Refused));
        assert!(said(&asked(&PODS[..1], [refused, CUT])).contains("though its Pod is Ready: over UDP it is refused"));
    }

    #[test]
    fn one_protocol_is_dead() {
        let udp = said(&asked(&PODS, [SILENT, None]));
        assert!(
            udp.ends_with("does not answer this node over UDP, though it does over TCP: over UDP no answer comes"),
            "{udp}"
        );
        for (fault, says) in [
            (CUT, "over TCP no connection comes about"),
            (SILENT, "over TCP the connection stands, and no answer comes"),
            (Some((PathStep::Route, FaultKind::Unreachable)), "over TCP this node has no route to it (for this test)"),
            (Some((PathStep::Connect, FaultKind::Denied)), "over TCP this node's own packet filter forbids it"),
            (Some((PathStep::Dns, FaultKind::Reset)), "over TCP the connection is broken off"),
            (Some((PathStep::Connect, FaultKind::Unreachable)), "calls it unreachable (for this test)"),
            (Some((PathStep::Dns, FaultKind::Failed)), "over TCP for this test"),
        ] {
            let tcp = said(&asked(&PODS, [None, fault]));
            assert!(tcp.contains("over TCP, though it does over UDP: ") && tcp.contains(says), "{tcp}");
        }
    }

    #[test]
    fn a_rule_of_this_nodes_own_drops_it() {
        let dropping = |text: &str| {
            asked(&PODS, [SILENT, None]).edit_chains(Backend::Nftables, "filter", |chains| {
                chains.push(testing::base("OUTPUT", vec![rule(text)]));
            })
        };
        let text = said(&dropping("-p udp --dport 53 -j DROP"));
        assert!(text.contains("; it is this node itself that drops it, by rule `-p udp --dport 53 -j DROP`"), "{text}");
        for other in ["-p tcp --dport 53 -j DROP", "-d 10.96.0.0/12 -j DROP", "-d 10.244.1.9 -p udp -j DROP"] {
            assert!(!said(&dropping(other)).contains("this node itself"), "{other}");
        }
    }

    #[test]
    fn healthy_and_clears() {
        assert_eq!(run(&asked(&PODS, [None, None]).look()), Outcome::Healthy);
    }

    /// Over these protocols it is answered that the server has failed.
    fn failing_over(node: Node, protocols: &[&str]) -> Node {
        change(node, |dns| {
            dns.ways.iter_mut().for_each(|way| way.failed = protocols.contains(&way.protocol.as_str()));
        })
    }

    #[test]
    fn it_answers_only_that_it_has_failed() {
        let node = failing_over(asked(&PODS, [None, None]), &["UDP", "TCP"]);
        assert_eq!(testing::subjects(&run(&node.look())), ["10.96.0.10:53"]);
        let expected = "The cluster's DNS, Service kube-system/kube-dns (10.96.0.10:53), answers this node over UDP and TCP, but with SERVFAIL, also for kubernetes.default.svc, which it should know by itself: \
                        CoreDNS says so as long as it has not read the Services of the cluster from the API server";
        assert_eq!(said(&node), expected);
        let Outcome::Findings(findings) = run(&node.look()) else { panic!("told") };
        assert!(findings[0].next_step.as_ref().is_some_and(|next| next.contains("system:coredns")), "{findings:?}");
        let both = failing_over(asked(&PODS, [None, CUT]), &["UDP"]);
        let expected = "does not answer this node over TCP, and over UDP only that it has failed (SERVFAIL): over TCP no connection comes about";
        assert!(said(&both).ends_with(expected), "{}", said(&both));
        let never = |dns: &mut ClusterDns| dns.ways.iter_mut().for_each(|way| way.reached = false);
        assert!(
            said(&change(both, never)).contains("answers this node over UDP, but with SERVFAIL"),
            "TCP is not missed"
        );
    }

    #[test]
    fn trap_one_of_several_pods_has_failed_or_has_only_just_started() {
        let one = failing_over(asked(&PODS, [None, None]), &["UDP"]);
        assert_eq!(run(&one.look()), Outcome::Healthy, "another Pod answered over TCP");
        let all = failing_over(one, &["UDP", "TCP"]);
        let Outcome::Findings(findings) = run(&all.look()) else { panic!("told") };
        assert_eq!(findings[0].owner_repairs_within, Some(CHECK.raise_after), "it starts within seconds");
        assert_eq!(run(&failing_over(all, &[]).look()), Outcome::Healthy, "it clears");
    }

    #[test]
    fn node_local_dns_that_does_not_reach_coredns() {
        let node = failing_over(asked(&PODS, [None, None]), &["UDP", "TCP"]).routing(|routing| {
            routing.links.push(testing::link(40, "nodelocaldns", Some("dummy")));
            routing.addresses.push(Address { link: 40, address: [10, 96, 0, 10].into(), prefix: 32, global: true });
        });
        let says = "it is NodeLocal DNS that answers here, on the link nodelocaldns, and says so while it does not reach CoreDNS";
        assert!(said(&node).ends_with(says), "{}", said(&node));
    }

    #[test]
    fn trap_what_has_only_just_died_is_still_ready_in_the_map() {
        let held = |node: &Node| match run(&node.look()) {
            Outcome::Findings(findings) => findings[0].owner_repairs_within,
            outcome => panic!("{outcome:?}"),
        };
        let node = asked(&PODS, [SILENT, CUT]);
        assert_eq!(held(&node), Some(CHECK.raise_after));
        let many = node.with_map(|map| map.nodes = vec![map.nodes[0].clone(); 5_000]);
        assert_eq!(held(&many), Some(Duration::from_secs(660)));
    }

    #[test]
    fn trap_no_pod_is_ready_or_there_is_no_such_service() {
        let silent = |node: Node| assert!(matches!(run(&node.look()), Outcome::NotApplicable(_)));
        silent(asked(&[], [SILENT, CUT]));
        silent(asked(&PODS, [SILENT, CUT]).with_map(|map| map.services[0].cluster_ips.clear()));
        silent(asked(&PODS, [SILENT, CUT]).with_map(|map| map.services.clear()));
    }

    #[test]
    fn trap_a_policy_that_leaves_nodes_out() {
        let never = |dns: &mut ClusterDns| dns.ways.iter_mut().for_each(|way| way.reached = false);
        let node = change(asked(&PODS, [SILENT, CUT]), never);
        assert!(matches!(run(&node.look()), Outcome::NotApplicable(_)));
        let node = change(asked(&PODS, [None, CUT]), never);
        assert_eq!(run(&node.look()), Outcome::Healthy, "TCP may be left out alone");
        let node = change(node, |dns| dns.own_pod = true);
        assert!(said(&node).contains("over TCP, though it does over UDP"), "no policy keeps a node from its own Pods");
    }

    #[test]
    fn trap_node_local_dns_and_ipvs_have_its_address_here() {
        let on = |name: &str| {
            let node = asked(&PODS, [SILENT, CUT]).routing(|routing| {
                routing.links.push(testing::link(40, name, Some("dummy")));
                let address = [10, 96, 0, 10].into();
                routing.addresses.push(Address { link: 40, address, prefix: 32, global: true });
            });
            let Outcome::Findings(mut findings) = run(&node.look()) else { panic!("told") };
            (findings[0].detail.clone(), findings.remove(0).next_step)
        };
        let (detail, next) = on("nodelocaldns");
        assert!(detail.ends_with("on the link nodelocaldns, where NodeLocal DNS should answer"), "{detail}");
        assert!(next.is_some_and(|next| next.contains("k8s-app=node-local-dns")));
        let (detail, next) = on(IPVS_DEVICE);
        assert!(!detail.contains("NodeLocal") && next.is_none(), "{detail}");
    }

    #[test]
    fn unknown_before_it_was_asked_and_while_nobody_confirms_the_map() {
        let unknown = |node: Node, says: &str| match run(&node.look()) {
            Outcome::Unknown(why) => assert!(why.contains(says), "{why}"),
            outcome => panic!("{outcome:?}"),
        };
        unknown(told(&PODS), "kube-system/kube-dns (10.96.0.10): not asked yet");
        let another = change(asked(&PODS, [None, None]), |dns| dns.address = [10, 96, 0, 11].into());
        unknown(another, "not asked yet");
        unknown(told(&PODS).edit(|now| now.cluster_dns = testing::denied("a socket")), "a socket");
        unknown(told(&PODS).edit(|now| now.cluster = testing::denied("the map")), "the map");
        let alone = |node: Node| node.edit(|now| now.cluster_unconfirmed_since = Some(now.taken_at));
        unknown(alone(asked(&PODS, [SILENT, CUT])), "has not been confirmed since 2023-11-14T22:13:20Z");
        assert_eq!(run(&alone(asked(&PODS, [None, None])).look()), Outcome::Healthy);
        let failing = failing_over(asked(&PODS, [None, None]), &["UDP", "TCP"]);
        unknown(alone(failing), "has not been confirmed since");
        assert!(matches!(run(&Node::worker().look()), Outcome::NotApplicable(_)), "nobody tells where it is");
    }
}
