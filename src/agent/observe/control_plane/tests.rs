//! Servers that answer, are somebody else, hang, break off or are not there.

use std::net::SocketAddr;
use std::path::Path;
use std::sync::atomic::{AtomicUsize, Ordering};

use tokio::io::{AsyncReadExt, AsyncWriteExt};

use super::*;
use crate::agent::observe::netns::NetNs;
use crate::agent::observe::servers::{GOOD, api_server, api_server_at, authority, free, serve, server_of};
use crate::facts::{Backend, CapacitySettings, EvictionThresholds, Family, PathFault, PathStep, ServiceChain};

/// A node whose kubelet has a kubeconfig for this server.
struct Node {
    dir: tempfile::TempDir,
    source: ControlPlaneSource,
    ways: Ways,
}

impl Node {
    fn new(server: &str, authority: Option<&str>) -> Self {
        let dir = tempfile::tempdir().expect("a temporary directory");
        let authority = authority.map_or_else(String::new, |pem| {
            std::fs::write(dir.path().join("ca.crt"), pem).expect("write");
            ", certificate-authority: ca.crt".to_owned()
        });
        let text = format!(
            "current-context: c\ncontexts: [{{name: c, context: {{cluster: k, user: u}}}}]\n\
             clusters: [{{name: k, cluster: {{server: '{server}'{authority}}}}}]\n\
             users: [{{name: u, user: {{token: very-secret}}}}]\n"
        );
        std::fs::write(dir.path().join("kubelet.conf"), text).expect("write");
        let source = ControlPlaneSource::new(HostRoot::new(dir.path()), Blocking::default(), Trail::default());
        Node { dir, source, ways: Ways::default() }
    }

    fn with_endpoints(mut self, service: Option<SocketAddr>, endpoints: &[SocketAddr]) -> Self {
        self.ways = Ways { service, cluster: endpoints.iter().copied().collect(), ..Ways::default() };
        self
    }

    /// Where the walks so far ended.
    fn walked(&self) -> Vec<(String, PathEnd)> {
        self.source.trail.walks().into_iter().map(|walk| (walk.to, walk.end)).collect()
    }

    async fn look(&mut self) -> ControlPlanePath {
        let looked = self.source.look(Some(&kubelet("/kubelet.conf")), &self.ways).await;
        looked.expect("a kubeconfig")
    }

    /// Where and how the kubelet's way ends.
    async fn fault(&mut self) -> (PathStep, FaultKind) {
        let fault = self.look().await.kubelet.fault().cloned().expect("it ends");
        (fault.step, fault.kind)
    }

    async fn error(&mut self) -> LookError {
        self.source.look(Some(&kubelet("/kubelet.conf")), &self.ways).await.expect_err("it cannot be used")
    }
}

fn kubelet(kubeconfig: &str) -> Kubelet {
    Kubelet {
        node_name: None,
        config_path: None,
        kubeconfig_path: Some(kubeconfig.to_owned()),
        server: None,
        client_certificate: crate::facts::Seen::Absent,
        serving_certificate: crate::facts::Seen::Absent,
        static_pods: "/etc/kubernetes/manifests".into(),
        manifests: Seen::Absent,
        healthz_port: 0,
        runtime_endpoint: None,
        eviction: EvictionThresholds::default(),
        capacity: CapacitySettings::default(),
        cluster_domain: None,
        config_error: None,
    }
}

const UNAUTHORIZED: &str = "401 Unauthorized";

#[tokio::test]
async fn any_status_is_an_answer_and_no_credentials_are_sent() {
    let ca = authority();
    for head in [UNAUTHORIZED, "403 Forbidden", "503 Service Unavailable"] {
        let mut api = api_server(server_of(&ca, "127.0.0.1", GOOD), head).await;
        let mut node = Node::new(&format!("https://{}", api.address), Some(&ca.pem()));
        let path = node.look().await;
        let status = head[..3].parse().expect("a number");
        assert_eq!(path.kernel_clock, Seen::Absent, "the clocks agree as far as anybody says");
        assert_eq!((path.kubelet.end.clone(), path.kubelet.broken()), (PathEnd::Answered(status), status == 503));
        assert_eq!((path.kubelet.to.clone(), path.kubelet.is_local()), (api.address.to_string(), true));
        let request = api.requests.recv().await.expect("asked").to_lowercase();
        assert!(
            request.starts_with("get /version http/1.1\r\n") && request.contains("user-agent: nodevitals/"),
            "{request}"
        );
        assert!(!request.contains("authorization") && !request.contains("secret"), "{request}");
    }
}

#[tokio::test]
async fn servers_of_the_cni_are_connected_to_seldom_and_where_no_other_way_leads() {
    let ca = authority();
    let api = api_server(server_of(&ca, "127.0.0.1", GOOD), UNAUTHORIZED).await;
    let mut node = Node::new(&format!("https://{}", api.address), Some(&ca.pem()));
    let other = std::net::TcpListener::bind("127.0.0.1:0").expect("a port");
    let at = other.local_addr().expect("bound");
    let config = |server: String, fault: Option<&str>| {
        let fault = fault.map(str::to_owned);
        Seen::Yes(CniKubeconfig { server, fault, token_expires_at: None, modified: None })
    };
    let mut cni = Cni::of(String::new(), vec![], String::new(), Seen::Absent);
    cni.kubeconfigs.insert("/a".into(), config(format!("https://{}", api.address), None));
    cni.kubeconfigs.insert("/b".into(), config(format!("https://[127.0.0.1]:{}/", at.port()), None));
    cni.kubeconfigs.insert("/c".into(), config("https://127.0.0.1:9".into(), Some("cannot be used")));
    node.ways.told_by_cni(&cni);
    let ends = |path: ControlPlanePath| path.cni.into_iter().map(|leg| (leg.to, leg.end)).collect::<Vec<_>>();
    assert_eq!(ends(node.look().await), [(at.to_string(), PathEnd::Connected)]);
    let silent = PathFault::new(PathStep::Connect, FaultKind::TimedOut, "");
    node.source.cni.values_mut().for_each(|(leg, _)| leg.end = PathEnd::Fault(silent.clone()));
    assert_eq!(ends(node.look().await), [(at.to_string(), PathEnd::Connected)], "a broken one by each look");
    drop(other);
    // Bound without listening, or another test might get the port.
    let kept = tokio::net::TcpSocket::new_v4().expect("socket");
    kept.set_reuseaddr(true).expect("an option");
    kept.bind(at).expect("the port that was just left");
    assert_eq!(ends(node.look().await), [(at.to_string(), PathEnd::Connected)], "not by each look");
    node.source.cni.clear();
    let path = node.look().await;
    let fault = path.leg(&at.to_string()).and_then(PathLeg::fault).expect("a fault");
    assert_eq!((fault.step, fault.kind), (PathStep::Connect, FaultKind::Refused));
}

#[tokio::test]
async fn what_is_well_is_asked_seldom_and_what_is_broken_each_time() {
    let ca = authority();
    let mut api = api_server(server_of(&ca, "127.0.0.1", GOOD), UNAUTHORIZED).await;
    let mut node = Node::new(&format!("https://{}", api.address), Some(&ca.pem()));
    for _ in 0..5 {
        assert_eq!(node.look().await.kubelet.end, PathEnd::Answered(401));
    }
    api.requests.recv().await.expect("asked once");
    assert!(api.requests.try_recv().is_err(), "four connections were enough");
    // It takes a moment until the server has counted them.
    while api.connections.load(Ordering::SeqCst) < 5 {
        tokio::task::yield_now().await;
    }
    api.server.shutdown().await;
    // Bound without listening, or another test might get the port.
    let kept = tokio::net::TcpSocket::new_v4().expect("socket");
    kept.set_reuseaddr(true).expect("an option");
    kept.bind(api.address).expect("the port that was just left");
    for _ in 0..2 {
        assert_eq!(node.fault().await, (PathStep::Connect, FaultKind::Refused));
    }
    // Whoever looks later sees when it began.
    let walked = node.walked();
    assert!(walked.len() == 7 && walked.iter().all(|(to, _)| *to == api.address.to_string()), "{walked:?}");
    assert_eq!((&walked[0].1, &walked[1].1), (&PathEnd::Answered(401), &PathEnd::Connected));
    assert!(walked[5..].iter().all(|(_, end)| matches!(end, PathEnd::Fault(_))), "{walked:?}");
}

#[tokio::test]
async fn certificates_are_told_apart() {
    let (ca, other) = (authority(), authority());
    for (acceptor, kind) in [
        (server_of(&ca, "127.0.0.1", [2000, 2001]), FaultKind::Expired),
        (server_of(&ca, "127.0.0.1", [2090, 2100]), FaultKind::NotYetValid),
        (server_of(&other, "127.0.0.1", GOOD), FaultKind::ForeignAuthority),
        (server_of(&ca, "127.0.0.7", GOOD), FaultKind::WrongName),
    ] {
        let api = api_server(acceptor, UNAUTHORIZED).await;
        let mut node = Node::new(&format!("https://{}", api.address), Some(&ca.pem()));
        assert_eq!(node.fault().await, (PathStep::Tls, kind));
    }
}

#[tokio::test]
async fn an_authority_that_is_replaced_is_read_again() {
    let (old, new) = (authority(), authority());
    let api = api_server(server_of(&new, "127.0.0.1", GOOD), UNAUTHORIZED).await;
    let mut node = Node::new(&format!("https://{}", api.address), Some(&old.pem()));
    assert_eq!(node.fault().await, (PathStep::Tls, FaultKind::ForeignAuthority));
    std::fs::write(node.dir.path().join("ca.crt"), new.pem()).expect("write");
    assert_eq!(node.look().await.kubelet.end, PathEnd::Answered(401));
}

#[tokio::test]
async fn a_clock_that_is_minutes_off_shows_also_where_it_spoils_the_certificate() {
    let ca = authority();
    let head: &'static str = {
        let past = jiff::Timestamp::now() - jiff::SignedDuration::from_mins(5);
        String::leak(format!("401 U\r\nDate: {}", past.strftime("%a, %d %b %Y %H:%M:%S GMT")))
    };
    for (years, ends) in [(GOOD, PathEnd::Answered(401)), ([2000, 2001], PathEnd::Connected)] {
        let api = api_server(server_of(&ca, "127.0.0.1", years), head).await;
        let path = Node::new(&format!("https://{}", api.address), Some(&ca.pem())).look().await;
        assert!(matches!(path.kernel_clock, Seen::Yes(_)), "{:?}", path.kernel_clock);
        let leg = path.kubelet;
        let ahead = leg.clock_ahead.expect("a date");
        assert!((298..=300).contains(&ahead), "{ahead}");
        assert_eq!(leg.fault().is_none(), ends == PathEnd::Answered(401));
    }
}

#[tokio::test]
async fn nobody_listens() {
    let mut node = Node::new(&format!("https://{}", free().await), Some(&authority().pem()));
    assert_eq!(node.fault().await, (PathStep::Connect, FaultKind::Refused));
}

#[tokio::test]
async fn a_server_that_stalls_costs_nothing_that_lasts() {
    let open = Arc::<AtomicUsize>::default();
    let count = Arc::clone(&open);
    let (address, _server) = serve(move |mut stream| {
        let count = Arc::clone(&count);
        async move {
            count.fetch_add(1, Ordering::SeqCst);
            // Reads what comes, and answers nothing until the other end gives up.
            while let Ok(1..) = stream.read(&mut [0; 1024]).await {}
            count.fetch_sub(1, Ordering::SeqCst);
        }
    })
    .await;
    let ca = authority().pem();
    let mut node = Node::new(&format!("https://{address}"), Some(&ca)).with_endpoints(None, &[address]);
    let began = Instant::now();
    for _ in 0..2 {
        assert_eq!(node.fault().await, (PathStep::Tls, FaultKind::TimedOut));
    }
    assert!(began.elapsed() < 2 * probe::ANSWER + Duration::from_secs(2), "{:?}", began.elapsed());
    assert_eq!(Node::new(&format!("http://{address}"), None).fault().await, (PathStep::Http, FaultKind::TimedOut));
    while open.load(Ordering::SeqCst) > 0 {
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
}

#[tokio::test]
async fn a_server_that_breaks_off_or_speaks_something_else() {
    let ca = authority().pem();
    let (address, _server) = serve(|stream| async move { drop(stream) }).await;
    assert_eq!(Node::new(&format!("https://{address}"), Some(&ca)).fault().await, (PathStep::Tls, FaultKind::Reset));
    assert_eq!(Node::new(&format!("http://{address}"), None).fault().await, (PathStep::Http, FaultKind::Reset));
    // With unread bytes in its buffer the kernel resets instead of closing.
    let (address, _server) = serve(|mut stream| async move {
        stream.read_exact(&mut [0; 1]).await.ok();
    })
    .await;
    assert_eq!(Node::new(&format!("https://{address}"), Some(&ca)).fault().await, (PathStep::Tls, FaultKind::Reset));
    let (address, _server) = serve(|mut stream| async move {
        stream.write_all(b"SSH-2.0-OpenSSH_9.2\r\n").await.ok();
        while let Ok(1..) = stream.read(&mut [0; 1024]).await {}
    })
    .await;
    assert_eq!(Node::new(&format!("https://{address}"), Some(&ca)).fault().await, (PathStep::Tls, FaultKind::Failed));
    assert_eq!(Node::new(&format!("http://{address}"), None).fault().await, (PathStep::Http, FaultKind::Failed));
}

#[tokio::test]
async fn a_name_without_an_address() {
    // RFC 6761: no resolver may find one.
    let mut node = Node::new("https://master.invalid:6443", Some(&authority().pem()));
    let path = node.look().await;
    assert_eq!((path.kubelet.to.as_str(), path.kubelet.address), ("master.invalid:6443", None));
    assert_eq!(path.kubelet.fault().map(|fault| fault.step), Some(PathStep::Name));
}

#[tokio::test]
async fn endpoints_in_turn_and_all_at_once_when_the_kubelets_way_breaks() {
    let ca = authority();
    let server = |name: &str| server_of(&ca, name, GOOD);
    let mut first = api_server(server("127.0.0.1"), UNAUTHORIZED).await;
    let mut second = api_server_at("127.0.0.2:0", server("127.0.0.1"), "403 F").await;
    // Its certificate is for its own address only, which is no fault of the way.
    let third = api_server_at("127.0.0.3:0", server("127.0.0.3"), "403 F").await;
    let nobody = free().await;
    let all = [first.address, second.address, third.address, nobody];
    let mut node =
        Node::new(&format!("https://{}", first.address), Some(&ca.pem())).with_endpoints(Some(third.address), &all);
    let path = node.look().await;
    let ends = |path: &ControlPlanePath| {
        path.endpoints.iter().map(|leg| (leg.to.clone(), leg.end.clone())).collect::<BTreeMap<_, _>>()
    };
    let mut expected = BTreeMap::from([
        (first.address.to_string(), PathEnd::Answered(401)),
        (second.address.to_string(), PathEnd::Answered(403)),
        (third.address.to_string(), PathEnd::Connected),
    ]);
    let found = ends(&path);
    let refused = found[&nobody.to_string()].clone();
    assert!(matches!(&refused, PathEnd::Fault(PathFault { kind: FaultKind::Refused, .. })), "{refused:?}");
    expected.insert(nobody.to_string(), refused);
    assert_eq!((found, path.service.map(|leg| leg.end)), (expected.clone(), Some(PathEnd::Connected)));
    let before = second.connections.load(Ordering::SeqCst);
    for _ in 0..8 {
        assert_eq!(ends(&node.look().await), expected);
    }
    let after = second.connections.load(Ordering::SeqCst);
    assert_eq!(after - before, 2, "one in four, as there are four endpoints");
    first.server.shutdown().await;
    second.server.shutdown().await;
    let path = node.look().await;
    assert!(path.kubelet.broken());
    assert_eq!(path.endpoints.iter().filter(|leg| leg.broken()).count(), 3, "{path:?}");
}

#[test]
fn routes_and_rules_of_this_node() {
    let node = NetNs::new();
    node.command("ip", &["address", "add", "192.0.2.5/24", "dev", "lo"]);
    for (kind, to) in [("blackhole", "198.51.100.1"), ("prohibit", "198.51.100.2"), ("unreachable", "198.51.100.3")] {
        node.command("ip", &["route", "add", kind, to]);
        let ends = node.block_on(|| async { Node::new(&format!("http://{to}:6443"), None).fault().await });
        assert_eq!(ends, (PathStep::Route, FaultKind::Unreachable), "{kind}");
    }
    let ends = node.block_on(|| async { Node::new("http://203.0.113.1:6443", None).fault().await });
    assert_eq!(ends, (PathStep::Route, FaultKind::Unreachable), "no route at all");
    // The same by a packet filter: dropped, rejected as a closed port, rejected as by a router.
    for (port, verdict, kind) in [
        ("1001", vec!["DROP"], FaultKind::TimedOut),
        ("1002", vec!["REJECT", "--reject-with", "tcp-reset"], FaultKind::Refused),
        ("1003", vec!["REJECT", "--reject-with", "icmp-admin-prohibited"], FaultKind::Unreachable),
    ] {
        let rule = ["-A", "OUTPUT", "-p", "tcp", "--dport", port, "-j"];
        node.command("iptables-nft", &[&rule[..], &verdict[..]].concat());
        let ends = node.block_on(|| async { Node::new(&format!("http://192.0.2.5:{port}"), None).fault().await });
        assert_eq!(ends, (PathStep::Connect, kind), "{verdict:?}");
    }
}

#[tokio::test]
async fn a_kubeconfig_that_cannot_be_used() {
    let damaged = "-----BEGIN CERTIFICATE-----\n!!!\n-----END CERTIFICATE-----\n";
    let error = Node::new("https://127.0.0.1:1", Some(damaged)).error().await;
    assert!(error.what == "/kubelet.conf" && error.reason == Reason::Malformed, "{error}");
    let error = Node::new("ftp://127.0.0.1:1", None).error().await;
    assert!(error.detail.contains("neither an https nor an http URL"), "{error}");
    let mut node = Node::new("https://127.0.0.1:1", Some(""));
    std::fs::remove_file(node.dir.path().join("ca.crt")).expect("rm");
    assert_eq!(node.error().await.what, "/ca.crt");
    nix::unistd::mkfifo(&node.dir.path().join("ca.crt"), nix::sys::stat::Mode::S_IRUSR).expect("mkfifo");
    assert_eq!(node.error().await.reason, Reason::WrongKind);
}

#[tokio::test]
async fn no_kubeconfig_no_path() {
    let mut source = ControlPlaneSource::new(HostRoot::new(Path::new("/")), Blocking::default(), Trail::default());
    assert_eq!(source.look(None, &Ways::default()).await.expect_err("none").reason, Reason::Missing);
    let error = source.look(Some(&kubelet("/no/such/file")), &Ways::default()).await.expect_err("none");
    assert_eq!(error.reason, Reason::Missing);
}

#[test]
fn ways_are_remembered_and_only_what_all_name_counts() {
    let address = |text: &str| text.parse::<SocketAddr>().expect("an address");
    let map = |endpoints: &str| {
        let text = format!(
            r#"{{"own": "n1", "nodes": [], "services": [{{"namespace": "default", "name": "kubernetes", "clusterIps": ["10.96.0.1"],
                "ports": [{{"name": "https", "protocol": "TCP", "port": 443, "endpoints": {endpoints}}}]}}]}}"#
        );
        serde_json::from_str::<ClusterMap>(&text).expect("a map")
    };
    let rules = |endpoints: &[&str]| {
        let chain = ServiceChain::new(Family::V4, "default/kubernetes:https", "tcp", "KUBE-SVC-X");
        let endpoints = endpoints.iter().map(|it| address(it)).collect();
        Ruleset { services: vec![ServiceChain { endpoints, ..chain }], ..Ruleset::empty(Backend::Legacy) }
    };
    let mut ways = Ways::default();
    ways.told_by_kernel(&rules(&["10.0.0.1:6443", "10.0.0.2:6443"]));
    assert_eq!(ways.endpoints(), [address("10.0.0.1:6443"), address("10.0.0.2:6443")]);
    ways.told_by_cluster(&map(r#"[["10.0.0.2", 6443], ["10.0.0.3", 6443]]"#));
    assert_eq!((ways.endpoints(), ways.service), (vec![address("10.0.0.2:6443")], Some(address("10.96.0.1:443"))));
    // Rules that are flushed, and a map without endpoints, take nothing away.
    ways.told_by_kernel(&Ruleset::empty(Backend::Legacy));
    ways.told_by_cluster(&map("[]"));
    assert_eq!(ways.endpoints(), [address("10.0.0.2:6443")]);
    ways.told_by_kernel(&rules(&["10.0.0.9:6443"]));
    assert_eq!(ways.endpoints(), [address("10.0.0.2:6443"), address("10.0.0.3:6443")], "nothing in common");
}
