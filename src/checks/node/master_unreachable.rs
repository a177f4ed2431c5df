//! The control plane cannot be reached at the address that the kubelet uses.
//!
//! *Looks at* the way to that address, step by step, and at the ways to the API servers' own addresses to tell what is
//! broken: the network, or what stands in front. Any HTTP answer proves the path: 401 and 403 do too; 502 to 504 are somebody
//! else's. *Traps*: one failed probe is noise, three in a row over 30 s are not; a rule of this node's own imitates a
//! firewall; a proxy on this node (IBM Cloud's at 172.20.0.1:2040) is not the network (catalogue R006, R019, R045, R046).

use std::time::Duration;

use super::super::path::{self, Local};
use super::super::{Area, Check, Finding, Look, Outcome, Severity, seen};
use crate::facts::{ControlPlanePath, FaultKind, PathStep};

pub(super) const CHECK: Check = Check {
    code: "MasterUnreachable",
    area: Area::ControlPlanePath,
    severity: Severity::Critical,
    why: "the control plane will declare this node lost, and nothing here follows its orders",
    next_step: "test from the node (`curl -vk SERVER/version`): no answer means a firewall or gateway, refused means that the API server is down, a certificate error means a proxy in between",
    raise_after: Duration::from_secs(30),
    clear_after: Duration::from_secs(10),
    run,
};

fn run(look: &Look<'_>) -> Outcome {
    let path = seen!(look.now.control_plane, path::nowhere());
    let local = path::local(&path.kubelet, &path.endpoints);
    let Some(why) = path::why(&path.kubelet, local) else { return Outcome::Healthy };
    let rule = path::by_own_rule(look, &path.kubelet);
    let mut detail = format!("The control plane at {} cannot be reached: {why}", path.server);
    detail.push_str(&others(path, local));
    detail.push_str(&peers(path));
    detail.push_str(&rule);
    let finding = Finding::new(path.server.clone(), detail);
    Outcome::from_findings(vec![finding.next(next(path, local, !rule.is_empty()))])
}

/// What the other ways say of this one.
fn others(path: &ControlPlanePath, local: Option<Local>) -> String {
    let others: Vec<_> = path.endpoints.iter().filter(|leg| leg.to != path.kubelet.to).collect();
    let well: Vec<&str> = others.iter().filter(|leg| !leg.broken()).map(|leg| leg.to.as_str()).collect();
    match (others.len(), well.len()) {
        (0, _) => String::new(),
        (all, 0) => format!("; none of the {all} other known addresses of API servers can be reached either"),
        (all, some) => {
            let what =
                if local.is_some() { "so it is the proxy here" } else { "so it is this address, or what is behind it" };
            format!(
                "; from here {some} of the {all} API servers' own addresses can be reached ({}), {what}",
                well.join(", ")
            )
        }
    }
}

/// What other nodes say of it.
fn peers(path: &ControlPlanePath) -> String {
    let asked: Vec<_> = path.peers.iter().filter(|peer| peer.ready).collect();
    let answering = asked.iter().filter(|peer| peer.answers).count();
    match (asked.len(), answering) {
        (0, _) => String::new(),
        (all, 0) => {
            format!("; none of {all} other nodes that were asked answers either, so this node is cut off from all")
        }
        (all, some) => format!("; {some} of {all} other nodes that were asked answer, so this node's network works"),
    }
}

/// What to do next.
fn next(path: &ControlPlanePath, local: Option<Local>, own_rule: bool) -> String {
    if own_rule {
        return "take that rule or policy of this node out, or let the control plane's address pass ahead of it; the network's firewall comes after".into();
    }
    let Some(fault) = path.kubelet.fault() else {
        return format!(
            "see what answers there (`curl -vk {}/version`): a balancer or proxy, whose API servers are down or not known to it",
            path.server
        );
    };
    let host = path.kubelet.to.rsplit_once(':').map_or(path.kubelet.to.as_str(), |(host, _)| host);
    let address = path.kubelet.address.map_or_else(|| host.to_owned(), |address| address.to_string());
    match (fault.step, fault.kind, local) {
        (PathStep::Name, ..) => format!("ask by hand (`getent hosts {host}`), then look at the node's /etc/resolv.conf and whether the servers in it answer"),
        (PathStep::Route, ..) => format!("look at the kernel's decision (`ip route get {address}`) and put the route back"),
        (PathStep::Connect, _, Some(Local::IbmProxy)) => "look for the static pod ibm-master-proxy-static on this node (`crictl ps -a --name ibm-master-proxy`, /etc/kubernetes/manifests), then at its log".into(),
        (PathStep::Connect, _, Some(Local::Proxy)) => format!("find what should listen at {} (`ss -ltnp`) and start it", path.kubelet.to),
        (PathStep::Connect, _, Some(Local::Server)) => "look at kube-apiserver on this node (`crictl ps -a --name kube-apiserver`) and its log".into(),
        (_, FaultKind::Expired | FaultKind::NotYetValid, _) if path.kubelet.spoiled_by_clock() => "correct this node's clock (`timedatectl`, `chronyc tracking`), then look again".into(),
        (_, FaultKind::ForeignAuthority | FaultKind::WrongName, _) => "see whose certificate it is (`openssl s_client -connect ADDRESS </dev/null`): a proxy's, and then let this address pass around it; or the cluster's new one, and then give the kubelet its authority".replace("ADDRESS", &path.kubelet.to),
        (_, FaultKind::Expired | FaultKind::NotYetValid, _) => "renew the API server's certificate (`openssl s_client -connect ADDRESS` shows it)".replace("ADDRESS", &path.kubelet.to),
        _ => CHECK.next_step.replace("SERVER", &path.server),
    }
}

#[cfg(test)]
mod tests {
    use super::super::testing::{self, Node, end, fault, rule};
    use super::*;
    use crate::facts::{Backend, PathEnd, PathFault};

    fn node(end_of: PathEnd) -> Node {
        Node::worker().path(|path| path.kubelet.end = end_of)
    }

    fn detail(node: &Node) -> String {
        testing::details(&run(&node.look())).remove(0)
    }

    #[test]
    fn each_step_has_its_words() {
        use FaultKind::*;
        use PathStep::*;
        for (step, kind, begin) in [
            (Name, TimedOut, "name resolution: no resolver"),
            (Name, Failed, "name resolution: 10.0.0.9 has no address"),
            (Route, Unreachable, "no route: this node's own"),
            (Connect, TimedOut, "timed out: no answer to TCP"),
            (Connect, Refused, "refused: the other end"),
            (Connect, Unreachable, "unreachable: a router"),
            (Connect, Denied, "denied by this node"),
            (Connect, Reset, "reset: TCP"),
            (Connect, Failed, "failed: no connection"),
            (Tls, TimedOut, "timed out: TCP connects, then TLS stalls"),
            (Tls, Reset, "reset: TCP connects, then TLS"),
            (Tls, Expired, "certificate: it has expired"),
            (Tls, NotYetValid, "certificate: it is not valid yet"),
            (Tls, ForeignAuthority, "certificate: it is of another authority"),
            (Tls, WrongName, "certificate: it is for another name"),
            (Tls, Failed, "failed: TCP connects, then TLS fails"),
            (Http, TimedOut, "timed out: connected"),
            (Http, Reset, "reset: connected"),
            (Http, Failed, "failed: connected"),
        ] {
            let node = node(fault(step, kind));
            assert_eq!(testing::subjects(&run(&node.look())), ["https://10.0.0.9:6443"]);
            let expected = format!("The control plane at https://10.0.0.9:6443 cannot be reached: {begin}");
            assert!(detail(&node).starts_with(&expected), "{}", detail(&node));
        }
    }

    #[test]
    fn healthy_and_clears() {
        assert_eq!(run(&node(PathEnd::Answered(200)).look()), Outcome::Healthy);
    }

    #[test]
    fn trap_an_answer_proves_the_path_and_one_failure_is_noise() {
        for status in [401, 403, 429, 500] {
            assert_eq!(run(&node(PathEnd::Answered(status)).look()), Outcome::Healthy);
        }
        for status in [502, 503, 504] {
            assert!(detail(&node(PathEnd::Answered(status))).contains("no API server behind it"));
        }
        assert!(CHECK.raise_after >= Duration::from_secs(30));
    }

    #[test]
    fn trap_what_stands_in_front_is_not_the_network() {
        let refused = || node(fault(PathStep::Connect, FaultKind::Refused));
        let behind = |node: Node, ends: [PathEnd; 2]| node.endpoints(&["10.0.0.21:6443", "10.0.0.22:6443"], &ends);
        let well = || PathEnd::Answered(403);
        let both = behind(refused(), [well(), well()]);
        assert!(detail(&both).contains("2 of the 2 API servers' own addresses can be reached (10.0.0.21:6443, 10.0.0.22:6443), so it is this address"));
        let none = behind(refused(), [end(), end()]);
        assert!(detail(&none).contains("none of the 2 other known addresses"), "{}", detail(&none));
    }

    #[test]
    fn what_other_nodes_say() {
        let cut = |peers: &[(&str, bool)]| detail(&node(end()).peers(true, peers));
        assert!(
            cut(&[("n2", true), ("n3", false)])
                .ends_with("; 1 of 2 other nodes that were asked answer, so this node's network works")
        );
        assert!(cut(&[("n2", false)]).ends_with("so this node is cut off from all"));
        // Those that are asked for being not ready say nothing.
        assert!(!detail(&node(end()).peers(false, &[("n2", true)])).contains("other nodes"));
    }

    #[test]
    fn trap_ibm_clouds_proxy_is_told_by_name() {
        let proxy = |step, kind| {
            Node::worker().path(move |path| {
                path.server = "https://172.20.0.1:2040".into();
                path.kubelet.to = "172.20.0.1:2040".into();
                path.kubelet.address = Some([172, 20, 0, 1].into());
                path.kubelet.source = path.kubelet.address;
                path.kubelet.port = 2040;
                path.kubelet.end = fault(step, kind);
            })
        };
        let down = proxy(PathStep::Connect, FaultKind::Refused);
        let Outcome::Findings(findings) = run(&down.look()) else { panic!("a finding") };
        assert!(findings[0].detail.contains("(ibm-master-proxy-static) does not run"), "{findings:?}");
        assert!(findings[0].next_step.as_ref().expect("own").contains("static pod ibm-master-proxy-static"));
        let cut = detail(&proxy(PathStep::Tls, FaultKind::Reset));
        assert!(cut.contains("accepts and closes, so it reaches no API server"), "{cut}");
    }

    #[test]
    fn trap_a_rule_of_this_node_imitates_a_firewall() {
        let dropped = |text: &'static str| {
            node(fault(PathStep::Connect, FaultKind::TimedOut)).edit_chains(
                Backend::Nftables,
                "filter",
                move |chains| {
                    chains.push(testing::base("OUTPUT", vec![rule(text)]));
                },
            )
        };
        for text in ["-d 10.0.0.9/32 -j DROP", "-p tcp --dport 6443 -j DROP", "-o eth0 -d 10.0.0.0/24 -p tcp -j DROP"] {
            let node = dropped(text);
            assert!(
                detail(&node).contains("it is this node itself that drops it, by rule `"),
                "{text}: {}",
                detail(&node)
            );
            let Outcome::Findings(findings) = run(&node.look()) else { panic!("a finding") };
            assert!(findings[0].next_step.as_ref().expect("own").starts_with("take that rule"));
        }
        for text in [
            "-d 10.0.0.8/32 -j DROP",
            "-p tcp --dport 443 -j DROP",
            "-p udp -j DROP",
            "-o eth1 -j DROP",
            "-d 10.0.0.9/32 -p tcp --dport 6443 -m limit --limit 1/sec -j DROP",
        ] {
            assert!(!detail(&dropped(text)).contains("itself"), "{text}");
        }
    }

    /// The finding of a certificate whose time is over by so many seconds, and what the other end says of the clock.
    fn certificate(late: i64, clock_ahead: i64) -> Finding {
        let kind = if late > 0 { FaultKind::Expired } else { FaultKind::NotYetValid };
        let end = PathEnd::Fault(PathFault { late, ..PathFault::new(PathStep::Tls, kind, "") });
        let node = node(end).path(|path| path.kubelet.clock_ahead = Some(clock_ahead));
        let Outcome::Findings(mut findings) = run(&node.look()) else { panic!("a finding") };
        findings.remove(0)
    }

    #[test]
    fn a_clock_that_is_wrong_makes_certificates_invalid() {
        for (finding, said) in [
            (certificate(-3600, -7500), "clock is wrong: this node's is 2 h behind the other end's"),
            (certificate(301, 300), "clock is wrong: this node's is 5 min ahead of the other end's"),
        ] {
            assert!(finding.detail.ends_with(said), "{finding:?}");
            assert!(finding.next_step.expect("own").starts_with("correct this node's clock"));
        }
    }

    #[test]
    fn trap_a_clock_that_is_wrong_by_less_or_to_the_other_side() {
        for finding in [certificate(86_400, 300), certificate(3600, -7200), certificate(-3600, 7200)] {
            assert!(finding.detail.ends_with("which does not explain it, so it is the certificate"), "{finding:?}");
            assert!(!finding.next_step.expect("own").contains("clock"));
        }
        assert!(certificate(86_400, 0).detail.ends_with("the clocks agree, so it is the certificate"));
    }

    #[test]
    fn trap_a_machine_that_has_no_control_plane() {
        assert!(matches!(run(&Node::plain_machine().look()), Outcome::NotApplicable(_)));
    }

    #[test]
    fn unknown_when_the_kubeconfig_cannot_be_read() {
        let node = Node::worker().edit(|now| now.control_plane = testing::denied("/etc/kubernetes/kubelet.conf"));
        assert!(matches!(run(&node.look()), Outcome::Unknown(_)));
    }
}
