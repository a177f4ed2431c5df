//! The same Services where kube-proxy uses IPVS: virtual servers of the kernel, and the link that has their addresses.

use std::net::{IpAddr, SocketAddr};

use super::super::super::{Finding, Look, Outcome, Severity, chains, seen};
use super::{API, alone, compare, heard, ready, subject};
use crate::facts::{ClusterServicePort, Family, IPVS_DEVICE, Routing, ServiceChain, VirtualServer};

/// So many addresses are named.
const NAMED: usize = 3;

pub(super) fn run(look: &Look<'_>) -> Outcome {
    let none = || Outcome::NotApplicable("the kernel has no IPVS".into());
    let servers = seen!(look.now.ipvs, none());
    let routing = seen!(look.now.routing, none());
    if look.now.cluster.get().is_none() {
        let untold = || Outcome::NotApplicable("nobody says here which virtual servers there should be".into());
        if seen!(look.now.control_plane, untold()).service.is_none() {
            return untold();
        }
    }
    let mut findings: Vec<Finding> = Vec::new();
    let mut lost: Vec<IpAddr> = Vec::new();
    for (name, at, port) in wanted(look) {
        if !routing.addresses.iter().any(|it| it.address == at.ip()) && !lost.contains(&at.ip()) {
            lost.push(at.ip());
        }
        let udp = port.is_some_and(|port| port.protocol.eq_ignore_ascii_case("udp"));
        let server = servers.iter().find(|server| (server.at, server.udp) == (at, udp));
        if let Some((what, severity)) = judge(&name, at, server, port) {
            let detail = format!("kube-proxy's rules for {name} (IPVS) {what}");
            findings.push(Finding::new(subject(Family::of(at.ip()), &name), detail).severity(severity));
        }
    }
    findings.extend(unbound(routing, &lost));
    let held = |finding: Finding| match look.now.cluster.get() {
        Some(map) => finding.repaired_within(heard(map)),
        None => chains::awaited(look, finding),
    };
    Outcome::from_findings(findings.into_iter().map(held).collect())
}

/// Services that must be there, each with where it is asked, and with what the cluster says. Where nobody can be asked, that
/// is the API server alone, as this pod was told of it.
fn wanted<'a>(look: &'a Look<'_>) -> Vec<(String, SocketAddr, Option<&'a ClusterServicePort>)> {
    let Some(cluster) = look.now.cluster.get() else {
        let leg = look.now.control_plane.get().and_then(|path| path.service.as_ref());
        let at = leg.and_then(|leg| Some(SocketAddr::new(leg.address?, leg.port)));
        return at.map(|at| (API.to_owned(), at, None)).into_iter().collect();
    };
    let services = cluster.services.iter().flat_map(|service| {
        let at = service.cluster_ips.iter();
        at.flat_map(move |address| service.ports.iter().map(move |port| (service, *address, port)))
    });
    let kept = |port: &ClusterServicePort| VirtualServer::PORTS.contains(&port.port);
    services
        .filter(|(_, address, port)| {
            let family = Family::of(*address);
            kept(port) && chains::has_services(look, family) && !ready(port, family).is_empty()
        })
        .map(|(service, address, port)| {
            let name = format!("{}/{}:{}", service.namespace, service.name, port.name);
            (name, SocketAddr::new(address, port.port), Some(port))
        })
        .collect()
}

fn judge(
    name: &str,
    at: SocketAddr,
    server: Option<&VirtualServer>,
    port: Option<&ClusterServicePort>,
) -> Option<(String, Severity)> {
    let Some(server) = server else {
        return Some((format!("are missing: there is no virtual server {at}"), Severity::Critical));
    };
    let chain = ServiceChain {
        endpoints: server.endpoints.clone(),
        ..ServiceChain::new(Family::of(at.ip()), name, "", &format!("virtual server {at}"))
    };
    port.map_or_else(|| alone(&chain), |port| compare(&chain, port))
}

/// Addresses that no link of this node has: packets to them are not for this node, and pass IPVS by.
fn unbound(routing: &Routing, lost: &[IpAddr]) -> Option<Finding> {
    let named: Vec<String> = lost.iter().take(NAMED).map(ToString::to_string).collect();
    let more = if lost.len() > NAMED { ", ..." } else { "" };
    let link = routing.links.iter().any(|link| link.name == IPVS_DEVICE);
    let what = if link { "lacks addresses of Services" } else { "is gone, and with it the addresses of Services" };
    let detail = format!("{IPVS_DEVICE}, the link of IPVS, {what}: {}{more}", named.join(", "));
    (!lost.is_empty()).then(|| Finding::new(IPVS_DEVICE, detail))
}

#[cfg(test)]
mod tests {
    use super::super::super::testing::{self, Node};
    use super::*;
    use crate::facts::{Address, Seen};

    fn server(at: &str, endpoints: &[&str]) -> VirtualServer {
        let endpoints = endpoints.iter().map(|it| it.parse().expect("an address")).collect();
        VirtualServer { at: at.parse().expect("an address"), udp: at.ends_with(":53"), endpoints }
    }

    const API_ADDRESS: &str = "10.96.0.1:443";

    /// A worker in IPVS mode with these virtual servers, whose addresses `kube-ipvs0` has.
    fn node(servers: &[VirtualServer]) -> Node {
        let servers = servers.to_vec();
        Node::worker()
            .ipvs()
            .routing(|routing| {
                let addresses = servers.iter().map(|it| it.at.ip());
                let bound = addresses.map(|address| Address { link: 40, address, prefix: 32, global: true });
                routing.addresses.extend(bound);
            })
            .edit(|now| now.ipvs = Seen::Yes(servers))
    }

    /// What the pod was told of the API server.
    fn alone_node(servers: &[VirtualServer]) -> Node {
        node(servers).path(|path| {
            let mut leg = path.kubelet.clone();
            (leg.address, leg.port) = ("10.96.0.1".parse().ok(), 443);
            path.service = Some(leg);
        })
    }

    /// The same with what the cluster says: the API server, and DNS with one endpoint.
    fn told(servers: &[VirtualServer]) -> Node {
        node(servers).with_map(|map| {
            map.services = vec![
                testing::service("default/kubernetes", API_ADDRESS, ("https", "TCP"), &["10.0.0.9:6443"]),
                testing::service("kube-system/coredns", "10.96.0.10:53", ("dns", "UDP"), &["10.244.0.9:53"]),
            ];
        })
    }

    fn whole() -> [VirtualServer; 2] {
        [server(API_ADDRESS, &["10.0.0.9:6443"]), server("10.96.0.10:53", &["10.244.0.9:53"])]
    }

    fn details(node: &Node) -> Vec<String> {
        testing::details(&super::super::run(&node.look()))
    }

    #[test]
    fn virtual_servers_that_are_gone_empty_or_lead_elsewhere() {
        let [api, resolver] = whole();
        assert!(details(&alone_node(&[]))[0].ends_with("(IPVS) are missing: there is no virtual server 10.96.0.1:443"));
        let empty = server(API_ADDRESS, &[]);
        let expected = "kube-proxy's rules for default/kubernetes:https (IPVS) lead nowhere: virtual server 10.96.0.1:443 has no endpoint";
        assert_eq!(details(&alone_node(std::slice::from_ref(&empty))), [expected]);
        assert_eq!(details(&told(&[empty, resolver.clone()])), [expected]);
        let gone = details(&told(std::slice::from_ref(&api)));
        assert!(
            gone[0].contains("kube-system/coredns:dns") && gone[1].ends_with("lacks addresses of Services: 10.96.0.10")
        );
        let stale = details(&told(&[api, server("10.96.0.10:53", &["10.244.0.8:53"])]));
        assert!(stale[0].contains("send packets to 10.244.0.8:53"), "{stale:?}");
    }

    #[test]
    fn addresses_that_the_link_lacks_and_a_link_that_is_gone() {
        let lost =
            told(&whole()).routing(|routing| routing.addresses.retain(|it| it.address.to_string() != "10.96.0.10"));
        assert_eq!(details(&lost), ["kube-ipvs0, the link of IPVS, lacks addresses of Services: 10.96.0.10"]);
        let gone = told(&whole()).routing(|routing| {
            routing.links.retain(|link| link.index != 40);
            routing.addresses.retain(|it| it.link != 40);
        });
        assert!(details(&gone)[0].contains("is gone, and with it the addresses of Services: 10.96.0.1, 10.96.0.10"));
    }

    #[test]
    fn trap_a_living_kube_proxy_syncs_and_services_without_endpoints() {
        let broken = alone_node(&[]);
        let within = |node: &Node| match super::super::run(&node.look()) {
            Outcome::Findings(findings) => findings[0].owner_repairs_within,
            outcome => panic!("{outcome:?}"),
        };
        assert!(within(&broken).is_some_and(|time| time.as_secs() > 30));
        assert_eq!(within(&broken.edit(|now| now.health.kube_proxy = testing::answers(503))), None);
        // A Service of both families, on a node without IPv6: kube-proxy serves the one alone there.
        let both = told(&whole()).with_map(|map| {
            let v6 = testing::service("kube-system/coredns", "[fd00:96::a]:53", ("dns", "UDP"), &["[fd00:244::9]:53"]);
            map.services.push(v6);
        });
        assert_eq!(super::super::run(&both.look()), Outcome::Healthy);
        let dual = both.routing(|routing| {
            let address = "fd00::7".parse().expect("an address");
            routing.addresses.push(Address { link: 2, address, prefix: 64, global: true });
        });
        assert!(details(&dual)[0].contains("there is no virtual server [fd00:96::a]:53"), "{:?}", details(&dual));
        let idle = told(&whole()).with_map(|map| map.services[1].ports[0].endpoints.clear());
        let idle = idle.edit(|now| now.ipvs = Seen::Yes(vec![whole()[0].clone(), server("10.96.0.10:53", &[])]));
        assert_eq!(super::super::run(&idle.look()), Outcome::Healthy);
    }

    #[test]
    fn healthy_clears_not_applicable_and_unknown() {
        assert_eq!(super::super::run(&told(&whole()).look()), Outcome::Healthy);
        assert_eq!(super::super::run(&alone_node(&whole()[..1]).look()), Outcome::Healthy);
        let none = told(&whole()).edit(|now| now.ipvs = Seen::Absent);
        assert!(matches!(super::super::run(&none.look()), Outcome::NotApplicable(_)));
        let denied = told(&whole()).edit(|now| now.ipvs = testing::denied("/proc/net/ip_vs"));
        assert!(matches!(super::super::run(&denied.look()), Outcome::Unknown(_)));
        // Without the map, and without the address of the API server's Service, nothing can be missed.
        let untold = node(&[]).path(|path| path.service = None);
        assert!(matches!(super::super::run(&untold.look()), Outcome::NotApplicable(_)));
        let unreadable = node(&[]).edit(|now| now.control_plane = testing::denied("/etc/kubernetes/kubelet.conf"));
        assert!(matches!(super::super::run(&unreadable.look()), Outcome::Unknown(_)));
    }
}
