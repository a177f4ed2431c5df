//! kube-proxy's rules for the Services that everything needs are not what the cluster says.
//!
//! *Looks at* the chains of `default/kubernetes` and of the cluster's DNS, whose names are fixed, and at where their endpoints'
//! chains send packets to; compares that with the ready endpoints that the aggregator knows. Where nobody can be asked, the
//! API server's chain has to be there, something has to lead to it, and it has to lead somewhere. kube-proxy's health port says
//! nothing of this. *Traps*: a Service without ready endpoints has no chain, and its REJECT is right; kube-proxy takes a moment
//! to sync; with traffic that keeps to a zone or to the node a chain rightly has only some of the endpoints; the cluster's DNS
//! may have another name, so that its chain is missed only where the cluster says that it should be there; IPVS has virtual servers
//! in the kernel and their addresses on a link, of which a living kube-proxy writes each half minute what is missing (catalogue
//! R103).

mod ipvs;

use std::net::SocketAddr;
use std::time::Duration;

use super::super::chains::{self, Gaps};
use super::super::{Area, Check, Finding, Look, Outcome, Severity};
use crate::facts::{ClusterMap, ClusterServicePort, Family, ProxyMode, ServiceChain, rulesets};

pub(super) const CHECK: Check = Check {
    code: "KubeProxyRulesStale",
    area: Area::PacketFilter,
    severity: Severity::Critical,
    why: "connections to the API server or to DNS through their Services go to addresses where nobody answers, and so nothing works on this node",
    next_step: "read kube-proxy's log on this node for watch, lock or iptables-restore errors, then delete its pod, which writes all rules anew",
    raise_after: Duration::from_secs(30),
    clear_after: Duration::from_secs(2),
    run,
};

/// The Service of the API server, which every cluster has.
const API: &str = "default/kubernetes:https";
/// Services whose chains are looked for; others in the cluster's list have names that are not known here.
const KNOWN: [&str; 3] = [API, "kube-system/kube-dns:dns", "kube-system/kube-dns:dns-tcp"];

/// What kube-proxy has heard of before this agent asks for the map of the cluster again is no fault: `map_interval`, and with
/// thousands of nodes 60 ms for each, at most 1.75 times.
pub(super) fn heard(cluster: &ClusterMap) -> Duration {
    let nodes = u64::try_from(cluster.nodes.len()).unwrap_or(u64::MAX);
    Duration::from_millis(nodes.saturating_mul(120)).max(Duration::from_secs(120))
}

fn run(look: &Look<'_>) -> Outcome {
    let plan = match look.expected.kube_proxy {
        None => return Outcome::NotApplicable("no kube-proxy on this node".into()),
        Some(ProxyMode::Ipvs) => return ipvs::run(look),
        Some(mode) => chains::kube_proxy(mode),
    };
    let gaps = match chains::gaps(look, plan, &look.before.kube_proxy) {
        Ok(gaps) => gaps,
        Err(error) => return Outcome::unknown(error),
    };
    // Chains that are missed as a whole are another code.
    let whole: Vec<&Gaps> = gaps.iter().filter(|gaps| gaps.missing.is_empty()).collect();
    if whole.is_empty() {
        return Outcome::NotApplicable("kube-proxy's chains are missing".into());
    }
    let mut findings: Vec<Finding> = Vec::new();
    for gaps in &whole {
        for chain in held(look, gaps).filter(|chain| !is_left_over(chain)) {
            let alone = alone(chain);
            // The endpoints of the API server hardly ever go; those of others may be gone since the map was made.
            let map = look.now.cluster.get().filter(|_| alone.is_none() || chain.service != API);
            let said = match look.now.cluster.get().and_then(|cluster| port_of(cluster, chain)) {
                Some(port) => compare(chain, port),
                None => alone,
            };
            if let Some((what, severity)) = said {
                let detail = format!("kube-proxy's rules for {} ({}) {what}", chain.service, gaps.place());
                let finding = Finding::new(subject(chain.family, &chain.service), detail).severity(severity);
                findings.push(match map {
                    Some(map) => finding.repaired_within(heard(map)),
                    None => finding,
                });
            }
        }
    }
    findings.extend(missing(look, &whole, whole.len() == gaps.len()));
    findings.sort_by(|a, b| a.subject.cmp(&b.subject));
    findings.dedup_by(|a, b| a.subject == b.subject);
    Outcome::from_findings(findings)
}

fn subject(family: Family, service: &str) -> String {
    format!("{family} {service}")
}

/// The chains of Services in the backend where kube-proxy has most.
fn held<'a>(look: &Look<'a>, gaps: &Gaps) -> impl Iterator<Item = &'a ServiceChain> {
    let (backend, family) = (gaps.backend, gaps.family);
    let here = rulesets(look.now).filter(move |ruleset| ruleset.backend == backend);
    here.flat_map(|ruleset| &ruleset.services).filter(move |chain| chain.family == family)
}

/// What the cluster says about the Service of this chain.
fn port_of<'a>(cluster: &'a ClusterMap, chain: &ServiceChain) -> Option<&'a ClusterServicePort> {
    ports(cluster)
        .find(|(name, port)| *name == chain.service && port.protocol.eq_ignore_ascii_case(&chain.protocol))
        .map(|it| it.1)
}

/// All ports of Services, each with its name as kube-proxy writes it.
fn ports(cluster: &ClusterMap) -> impl Iterator<Item = (String, &ClusterServicePort)> {
    cluster.services.iter().flat_map(|service| {
        service.ports.iter().map(move |port| (format!("{}/{}:{}", service.namespace, service.name, port.name), port))
    })
}

/// Ready endpoints of one family.
fn ready(port: &ClusterServicePort, family: Family) -> Vec<SocketAddr> {
    let all = port.endpoints.iter().filter(|(address, _)| Family::of(*address) == family);
    all.map(|(address, port)| SocketAddr::new(*address, *port)).collect()
}

/// Of a Service that has lost its endpoints: kube-proxy empties its chain and deletes it with a later sync
/// (`pkg/proxy/nftables/proxier.go`), which in a quiet cluster is the next hourly one.
fn is_left_over(chain: &ServiceChain) -> bool {
    chain.referenced == Some(false) && chain.endpoints.is_empty() && chain.dead_ends.is_empty()
}

/// What a chain says by itself.
fn alone(chain: &ServiceChain) -> Option<(String, Severity)> {
    if chain.referenced == Some(false) {
        return Some((format!("are out of use: nothing leads to its chain {}", chain.chain), Severity::Critical));
    }
    if chain.endpoints.is_empty() {
        return Some((format!("lead nowhere: {} has no endpoint", chain.chain), Severity::Critical));
    }
    let dead = chain.dead_ends.first()?;
    Some((format!("lead partly nowhere: chain {dead} translates to no address"), Severity::Critical))
}

/// What a chain says beside what the cluster says.
fn compare(chain: &ServiceChain, port: &ClusterServicePort) -> Option<(String, Severity)> {
    let ready = ready(port, chain.family);
    if ready.is_empty() {
        // Endpoints that end are still used while there is no other.
        return None;
    }
    if let Some(said) = alone(chain) {
        return Some(said);
    }
    let list = |all: &[SocketAddr]| all.iter().take(4).map(ToString::to_string).collect::<Vec<_>>().join(", ");
    let stale: Vec<SocketAddr> = chain.endpoints.iter().filter(|it| !ready.contains(it)).copied().collect();
    if !stale.is_empty() {
        let what = format!(
            "send packets to {}, which the cluster does not have among its endpoints ({})",
            list(&stale),
            list(&ready)
        );
        return Some((what, Severity::Critical));
    }
    let left_out: Vec<SocketAddr> = ready.iter().filter(|it| !chain.endpoints.contains(it)).copied().collect();
    // Any other may keep its traffic to a zone or to the node.
    (chain.service == API && !left_out.is_empty()).then(|| {
        (format!("leave out {}, which the cluster has among its endpoints", list(&left_out)), Severity::Warning)
    })
}

/// Services that have no chain and should have one, in the families in which kube-proxy is whole; `all` says that these are
/// all of them.
fn missing(look: &Look<'_>, whole: &[&Gaps], all: bool) -> Vec<Finding> {
    let has = |gaps: &Gaps, name: &str, protocol: &str| {
        let mut chains = held(look, gaps).filter(|chain| !is_left_over(chain));
        chains.any(|chain| chain.service == name && chain.protocol.eq_ignore_ascii_case(protocol))
    };
    let finding = |gaps: &Gaps, name: &str, why: &str| {
        let detail = format!("kube-proxy has no chain for {name} ({}){why}", gaps.place());
        Finding::new(subject(gaps.family, name), detail)
    };
    let Some(cluster) = look.now.cluster.get() else {
        // It has one family, and which one is not known: it may be the one that other checks tell of.
        let gone = all && !whole.iter().any(|gaps| has(gaps, API, "tcp"));
        return whole.first().filter(|_| gone).map(|gaps| finding(gaps, API, ", the API server")).into_iter().collect();
    };
    let mut findings = Vec::new();
    for gaps in whole {
        for (name, port) in ports(cluster).filter(|(name, _)| KNOWN.contains(&name.as_str())) {
            let count = ready(port, gaps.family).len();
            if count > 0 && !has(gaps, &name, &port.protocol) {
                let finding = finding(gaps, &name, &format!(", which has {count} ready endpoints"));
                findings.push(finding.repaired_within(heard(cluster)));
            }
        }
    }
    findings
}

#[cfg(test)]
mod tests {
    use super::super::testing::{self, Node};
    use super::*;
    use crate::facts::{Backend, Seen};

    fn services(node: Node, change: impl FnOnce(&mut Vec<ServiceChain>)) -> Node {
        node.edit(|now| {
            let Seen::Yes(ruleset) = &mut now.nftables else { panic!("seen") };
            change(&mut ruleset.services);
        })
    }

    /// A cluster that says that the API server is there.
    fn told(node: Node, endpoints: &[&str]) -> Node {
        told_of(node, "default/kubernetes", ("https", "TCP"), endpoints)
    }

    fn told_of(node: Node, name: &str, port: (&str, &str), endpoints: &[&str]) -> Node {
        let service = testing::service(name, "10.96.0.1:443", port, endpoints);
        let map = ClusterMap {
            own: "n1".into(),
            nodes: vec![],
            pools: vec![],
            full_mesh: None,
            services: vec![service],
            typha_port: None,
        };
        node.edit(|now| now.cluster = Seen::Yes(map))
    }

    #[test]
    fn the_api_servers_chain_is_gone_unused_or_empty() {
        let gone = services(Node::worker(), Vec::clear);
        assert_eq!(testing::subjects(&run(&gone.look())), ["IPv4 default/kubernetes:https"]);
        let unused = services(Node::worker(), |all| all[0].referenced = Some(false));
        assert!(testing::details(&run(&unused.look()))[0].contains("nothing leads to its chain"));
        let empty = services(Node::worker(), |all| all[0].endpoints.clear());
        assert!(testing::details(&run(&empty.look()))[0].contains("has no endpoint"));
        let dead = services(Node::worker(), |all| all[0].dead_ends.push("KUBE-SEP-X".into()));
        assert!(testing::details(&run(&dead.look()))[0].contains("KUBE-SEP-X"));
    }

    #[test]
    fn endpoints_that_the_cluster_does_not_have() {
        let node = told(Node::worker(), &["10.0.0.77:6443"]);
        let details = testing::details(&run(&node.look()));
        assert!(
            details[0].contains("send packets to 10.0.0.9:6443") && details[0].contains("10.0.0.77:6443"),
            "{details:?}"
        );
        let node = told(Node::worker(), &["10.0.0.9:6443", "10.0.0.77:6443"]);
        let Outcome::Findings(findings) = run(&node.look()) else { panic!("a finding") };
        assert_eq!(findings[0].severity, Some(Severity::Warning), "one is left out");
    }

    #[test]
    fn trap_the_map_is_older_than_what_kube_proxy_has_heard() {
        let held = |node: &Node| match run(&node.look()) {
            Outcome::Findings(findings) => findings[0].owner_repairs_within,
            outcome => panic!("{outcome:?}"),
        };
        let stale = told(Node::worker(), &["10.0.0.77:6443"]);
        assert_eq!(held(&stale), Some(Duration::from_secs(120)));
        let node = serde_json::json!({"name": "n2", "ready": true, "addresses": [], "tunnels": [], "blocks": []});
        let node: crate::facts::ClusterNode = serde_json::from_value(node).expect("a node");
        let many = stale.with_map(|map| map.nodes = vec![node; 5_000]);
        assert_eq!(held(&many), Some(Duration::from_secs(600)));
        let empty = services(told(Node::worker(), &["10.0.0.77:6443"]), |all| all[0].endpoints.clear());
        assert_eq!(held(&empty), None, "that a chain leads nowhere needs no map");
    }

    #[test]
    fn trap_what_kube_proxy_deletes_later() {
        let dns = |node: Node, endpoints: &[&str]| {
            let endpoints = endpoints.iter().map(|it| it.parse().expect("an address")).collect();
            let chain = ServiceChain::new(Family::V4, "kube-system/kube-dns:dns", "udp", "KUBE-SVC-TCOU7JCQXEZGVUNU");
            services(node, |all| all.push(ServiceChain { referenced: Some(false), endpoints, ..chain }))
        };
        let with_map =
            || told_of(Node::worker(), "kube-system/kube-dns", ("dns", "UDP"), &["10.244.0.9:53", "10.244.1.9:53"]);
        assert_eq!(run(&dns(Node::worker(), &[]).look()), Outcome::Healthy, "its Service has no endpoint any more");
        for (endpoints, says) in [(&[][..], "has no chain for"), (&["10.244.0.9:53"], "nothing leads to its chain")] {
            let Outcome::Findings(findings) = run(&dns(with_map(), endpoints).look()) else { panic!("a finding") };
            assert!(findings[0].detail.contains(says), "{findings:?}");
            let held = findings[0].owner_repairs_within;
            assert_eq!(held, Some(Duration::from_secs(120)), "the map may be older than that the endpoints went");
        }
    }

    #[test]
    fn trap_no_ready_endpoints() {
        assert_eq!(run(&services(told(Node::worker(), &[]), Vec::clear).look()), Outcome::Healthy);
        assert_eq!(run(&told(Node::worker(), &[]).look()), Outcome::Healthy, "those that end are still used");
    }

    #[test]
    fn trap_dns_by_another_name_or_in_parts() {
        let node = told_of(Node::worker(), "kube-system/coredns", ("dns", "UDP"), &["10.244.0.9:53"]);
        assert_eq!(run(&node.look()), Outcome::Healthy, "its chain is not known");
        let node = told_of(Node::worker(), "kube-system/kube-dns", ("dns", "UDP"), &["10.244.0.9:53", "10.244.1.9:53"]);
        assert_eq!(testing::subjects(&run(&node.look())), ["IPv4 kube-system/kube-dns:dns"]);
        let node = services(node, |all| {
            let chain = ServiceChain::new(Family::V4, "kube-system/kube-dns:dns", "udp", "KUBE-SVC-TCOU7JCQXEZGVUNU");
            let endpoints = vec!["10.244.0.9:53".parse().expect("an address")];
            all.push(ServiceChain { referenced: Some(true), endpoints, ..chain });
        });
        assert_eq!(run(&node.look()), Outcome::Healthy, "only those of its zone");
    }

    #[test]
    fn trap_leftovers_in_the_other_backend_are_not_judged() {
        let node = Node::worker().kube_proxy(Backend::Nftables).and_kube_proxy(Backend::Legacy).edit(|now| {
            let Seen::Yes(ruleset) = &mut now.legacy else { panic!("seen") };
            ruleset.services[0].endpoints.clear();
            ruleset.tables[0].chains.retain(|chain| chain.name == "KUBE-SERVICES");
        });
        assert_eq!(run(&node.look()), Outcome::Healthy);
    }

    #[test]
    fn healthy_in_every_mode_and_clears() {
        for backend in [Backend::Nftables, Backend::Legacy] {
            assert_eq!(run(&Node::worker().kube_proxy(backend).look()), Outcome::Healthy, "{backend}");
        }
        assert_eq!(run(&Node::worker().kube_proxy_native().look()), Outcome::Healthy);
        assert_eq!(run(&told(Node::worker(), &["10.0.0.9:6443"]).look()), Outcome::Healthy);
    }

    #[test]
    fn not_applicable_and_unknown() {
        assert!(matches!(run(&Node::worker().without_kube_proxy().look()), Outcome::NotApplicable(_)));
        let node = Node::worker().edit(|now| now.nftables = testing::denied("nf_tables"));
        assert!(matches!(run(&node.look()), Outcome::Unknown(_)));
    }
}
