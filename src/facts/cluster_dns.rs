//! What the cluster's DNS answers to this node.

use std::net::{IpAddr, SocketAddr};

use serde::Serialize;

use super::{ClusterMap, PathFault};

/// What most clusters call its Service, whatever program is behind it.
const USUAL: &str = "kube-dns";

/// What the Service address of the cluster's DNS answered.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct ClusterDns {
    /// The ClusterIP that was asked at port 53.
    pub address: IpAddr,
    /// One way for each protocol.
    pub ways: Vec<DnsWay>,
    /// Whether a Pod behind it was on this node: no policy keeps a node from its own Pods.
    pub own_pod: bool,
}

/// One protocol.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct DnsWay {
    /// `UDP` or `TCP`.
    pub protocol: String,
    /// Why no answer came; none when one did.
    pub fault: Option<PathFault>,
    /// Whether it was answered that the server has failed (SERVFAIL, RFC 1035, 4.1.1), though it was asked for a name of the cluster's
    /// own. Not told where nobody says what the cluster calls itself: another may have been asked then.
    pub failed: bool,
    /// Whether an answer has come by this protocol while all Pods behind it were on other nodes. Where none ever has, a policy
    /// for these Pods may leave nodes out.
    pub reached: bool,
}

impl ClusterDns {
    /// Where it is asked (RFC 1035, 4.2).
    pub const PORT: u16 = 53;
    /// By what.
    pub const PROTOCOLS: [&'static str; 2] = ["UDP", "TCP"];

    /// A way's name among those that were reached.
    pub fn way(protocol: &str, address: IpAddr) -> String {
        format!("{protocol} {address}")
    }

    /// The ways that were reached.
    pub fn reached(&self) -> impl Iterator<Item = String> {
        self.ways.iter().filter(|way| way.reached).map(|way| Self::way(&way.protocol, self.address))
    }

    /// The ways on which no answer came and one should.
    pub fn missed(&self) -> impl Iterator<Item = &DnsWay> {
        self.ways.iter().filter(|way| way.fault.is_some() && (way.reached || self.own_pod))
    }

    /// Whether nothing but that it has failed is answered, by whatever protocol.
    pub fn fails(&self) -> bool {
        let mut answered = self.ways.iter().filter(|way| way.fault.is_none()).peekable();
        answered.peek().is_some() && answered.all(|way| way.failed)
    }
}

/// The cluster's DNS, as the map of the cluster tells it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct DnsService {
    /// Namespace and name, with a slash between them.
    pub name: String,
    /// Its first ClusterIP.
    pub address: IpAddr,
    /// The protocols by which Ready Pods can be asked through port 53.
    pub protocols: Vec<&'static str>,
    /// Ready Pods behind these, with their ports.
    pub pods: Vec<SocketAddr>,
    /// Whether one of them has an address of this node.
    pub own_pod: bool,
}

impl ClusterMap {
    /// The cluster's DNS: `kube-system/kube-dns`, or the only Service with port 53 that there is instead. None without an
    /// address or a Ready Pod.
    pub fn dns(&self) -> Option<DnsService> {
        let at_port = |protocol: Option<&str>, port: &super::ClusterServicePort| {
            port.port == ClusterDns::PORT && protocol.is_none_or(|protocol| port.protocol == protocol)
        };
        let all = self.services.iter().filter(|it| it.namespace == "kube-system");
        let mut all = all.filter(|it| it.ports.iter().any(|port| at_port(None, port)));
        let service =
            all.clone().find(|it| it.name == USUAL).or_else(|| all.next().filter(|_| all.next().is_none()))?;
        let address = *service.cluster_ips.first()?;
        let (mut protocols, mut pods) = (Vec::new(), Vec::new());
        for protocol in ClusterDns::PROTOCOLS {
            let ports = service.ports.iter().filter(|port| at_port(Some(protocol), port));
            let ready = ports.flat_map(|port| &port.endpoints).map(|it| SocketAddr::from(*it));
            let ready: Vec<SocketAddr> = ready.filter(|it| it.is_ipv4() == address.is_ipv4()).collect();
            if !ready.is_empty() {
                protocols.push(protocol);
                pods.extend(ready);
            }
        }
        pods.sort_unstable();
        pods.dedup();
        let own = |address: IpAddr| {
            self.this().is_some_and(|node| {
                node.addresses.contains(&address) || node.blocks.iter().any(|block| block.contains(&address))
            })
        };
        let own_pod = pods.iter().any(|pod| own(pod.ip()));
        let name = format!("{}/{}", service.namespace, service.name);
        (!protocols.is_empty()).then_some(DnsService { name, address, protocols, pods, own_pod })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn map(services: &[serde_json::Value]) -> ClusterMap {
        let nodes = serde_json::json!([
            {"name": "n1", "ready": true, "addresses": ["10.0.0.1"], "blocks": ["10.1.1.0/26"]},
            {"name": "n2", "ready": true, "addresses": ["10.0.0.2"], "blocks": ["10.1.2.0/26"]}]);
        serde_json::from_value(serde_json::json!({"own": "n1", "nodes": nodes, "services": services})).expect("a map")
    }

    fn service(name: &str, ips: &[&str], ports: &serde_json::Value) -> serde_json::Value {
        serde_json::json!({"namespace": "kube-system", "name": name, "clusterIps": ips, "ports": ports})
    }

    fn port(protocol: &str, number: u16, pods: &[&str]) -> serde_json::Value {
        let pods: Vec<_> = pods.iter().map(|pod| serde_json::json!([pod, 5353])).collect();
        serde_json::json!({"name": "p", "protocol": protocol, "port": number, "endpoints": pods})
    }

    fn dns(services: &[serde_json::Value]) -> Option<DnsService> {
        map(services).dns()
    }

    #[test]
    fn the_service_its_address_its_protocols_and_its_ready_pods() {
        let ports = serde_json::json!([
            port("UDP", 53, &["10.1.2.3", "10.1.2.4"]),
            port("TCP", 53, &["10.1.2.3"]),
            port("TCP", 9153, &["10.1.2.9"])
        ]);
        let found = dns(&[service("kube-dns", &["10.96.0.10", "fd00::10"], &ports)]).expect("it is there");
        assert_eq!((found.name.as_str(), found.address.to_string()), ("kube-system/kube-dns", "10.96.0.10".to_owned()));
        assert_eq!(found.protocols, ["UDP", "TCP"]);
        assert_eq!(found.pods.iter().map(ToString::to_string).collect::<Vec<_>>(), ["10.1.2.3:5353", "10.1.2.4:5353"]);
        assert!(!found.own_pod);
        for own in ["10.1.1.5", "10.0.0.1"] {
            let ports = serde_json::json!([port("UDP", 53, &["10.1.2.3", own])]);
            let found = dns(&[service("kube-dns", &["10.96.0.10"], &ports)]).expect("it is there");
            assert!(found.own_pod && found.protocols == ["UDP"], "{own}");
        }
    }

    #[test]
    fn by_another_name_and_beside_others() {
        let ports = serde_json::json!([port("UDP", 53, &["10.1.2.3"])]);
        let of = |name| service(name, &["10.96.0.10"], &ports);
        let named = |services: &[serde_json::Value]| dns(services).map(|it| it.name);
        let metrics =
            service("coredns-metrics", &["10.96.0.11"], &serde_json::json!([port("TCP", 9153, &["10.1.2.3"])]));
        assert_eq!(named(&[metrics, of("coredns")]).as_deref(), Some("kube-system/coredns"));
        assert_eq!(named(&[of("kube-dns-upstream"), of("kube-dns")]).as_deref(), Some("kube-system/kube-dns"));
        assert_eq!(named(&[of("kube-dns-upstream"), of("coredns")]), None, "which of them Pods ask is not known");
    }

    #[test]
    fn without_an_address_or_a_ready_pod_of_its_family_there_is_none() {
        let none = |ips: &[&str], pods: &[&str]| {
            dns(&[service("kube-dns", ips, &serde_json::json!([port("UDP", 53, pods)]))]).is_none()
        };
        assert!(none(&[], &["10.1.2.3"]));
        assert!(none(&["10.96.0.10"], &[]));
        assert!(none(&["10.96.0.10"], &["fd00::3"]));
        assert_eq!(dns(&[]), None);
    }
}
