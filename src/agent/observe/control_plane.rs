//! The path from this node to its control plane, walked as the kubelet would walk it, but without its credentials.
//!
//! Three ways: the address in the kubelet's kubeconfig, each endpoint of `default/kubernetes`, and that Service's own
//! address. While all is well they are walked to the TCP connection, one endpoint in turn, and to the HTTP answer only now and
//! then, so that thousands of nodes cost the API servers few handshakes; a way that is broken is walked whole each time.
//! Nothing is kept open: a kept connection would go on working, or failing, while the path for new ones is the opposite.

use std::collections::{BTreeMap, BTreeSet};
use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;
use std::time::{Duration, Instant};

use futures::future::join_all;
use jiff::Timestamp;
use kube::Config;
use kube::client::ConfigExt as _;
use kube::config::{Cluster, Context, KubeConfigOptions, Kubeconfig, NamedCluster, NamedContext};
use tokio::time::timeout;
use tokio_rustls::rustls::ClientConfig;
use tokio_rustls::rustls::client::Resumption;
use tokio_rustls::rustls::pki_types::ServerName;

use super::blocking::Blocking;
use super::host_root::{HostRoot, Stamp};
use super::kernel_clock;
use super::kubelet::kubeconfig;
use super::peers::{self, PeerSource, Peers};
use super::probe::{self, Depth, Target};
use super::trail::{Trail, Walk};
use crate::facts::{
    ClusterMap, Cni, CniKubeconfig, ControlPlanePath, FaultKind, Kubelet, LookError, PathEnd, PathFault, PathLeg,
    PathStep, Reason, Ruleset, Seen,
};

/// A bundle of certificate authorities is some kilobytes; in bytes.
const CERTIFICATES: u64 = 4 << 20;
/// Between two walks to the answer, of the kubelet's way and of the others.
const ANSWER_EVERY: [Duration; 2] = [Duration::from_secs(30), Duration::from_secs(60)];
/// Multus and Calico have a kubeconfig each.
const SERVERS_OF_CNI: usize = 3;
/// So long for each of these: they come last in a look, after ways that may have taken nearly all of its time.
const SERVER_OF_CNI: Duration = Duration::from_secs(3);
/// So many endpoints are walked to, in one look and at all.
const ENDPOINTS: usize = 8;

/// Where the Service `default/kubernetes` is and leads to, from whoever tells it. What was told is kept while nobody says
/// otherwise: the path is broken just when nobody can be asked.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(crate) struct Ways {
    service: Option<SocketAddr>,
    cluster: BTreeSet<SocketAddr>,
    kernel: BTreeSet<SocketAddr>,
    /// Hosts and ports that kubeconfigs of the CNI name.
    cni: BTreeSet<(String, u16)>,
    peers: Peers,
}

impl Ways {
    /// What the kubelet told this pod of the Service.
    pub(super) fn of_pod() -> Self {
        let variable = |name: &str| std::env::var(name).ok();
        let address = variable("KUBERNETES_SERVICE_HOST").and_then(|host| host.parse::<IpAddr>().ok());
        let port = variable("KUBERNETES_SERVICE_PORT").and_then(|port| port.parse().ok());
        let service = address.zip(port).map(SocketAddr::from);
        Ways { service, ..Ways::default() }
    }

    /// What the map of the cluster says.
    pub(super) fn told_by_cluster(&mut self, map: &ClusterMap) {
        self.peers = Peers::of(map);
        let mut services = map.services.iter();
        let service = services.find(|it| (it.namespace.as_str(), it.name.as_str()) == ("default", "kubernetes"));
        let port = service.and_then(|it| it.ports.iter().find(|port| port.name == "https" || it.ports.len() == 1));
        if let Some((service, port)) = service.zip(port) {
            let address = service.cluster_ips.first().map(|address| SocketAddr::new(*address, port.port));
            self.service = address.or(self.service);
            keep(&mut self.cluster, port.endpoints.iter().map(|it| SocketAddr::from(*it)).collect());
        }
    }

    /// What kube-proxy's rules say.
    pub(super) fn told_by_kernel(&mut self, ruleset: &Ruleset) {
        let own = ruleset.services.iter().filter(|it| it.service == "default/kubernetes:https");
        keep(&mut self.kernel, own.flat_map(|service| &service.endpoints).copied().collect());
    }

    /// What kubeconfigs of the CNI say.
    pub(super) fn told_by_cni(&mut self, cni: &Cni) {
        let configs = cni.kubeconfigs.values().filter_map(Seen::get).filter(|config| config.fault.is_none());
        self.cni = configs.filter_map(CniKubeconfig::at).map(|(host, port)| (host.to_owned(), port)).collect();
    }

    /// The endpoints that nobody denies: an API server that has left is one that not all have heard of yet.
    fn endpoints(&self) -> Vec<SocketAddr> {
        let both: Vec<_> = self.cluster.intersection(&self.kernel).copied().collect();
        let known = if self.cluster.is_empty() { &self.kernel } else { &self.cluster };
        let mut endpoints = if both.is_empty() { known.iter().copied().collect() } else { both };
        endpoints.truncate(ENDPOINTS);
        endpoints
    }
}

fn keep(old: &mut BTreeSet<SocketAddr>, new: BTreeSet<SocketAddr>) {
    if !new.is_empty() {
        *old = new;
    }
}

/// Looks at the path.
pub(crate) struct ControlPlaneSource {
    host: HostRoot,
    blocking: Blocking,
    trust: Option<Trust>,
    /// Where the kubelet goes, as long as the files that say it are the same.
    kept: Option<Kept>,
    /// What was seen last, and when it was walked to the answer.
    known: BTreeMap<String, (PathLeg, Instant)>,
    turn: usize,
    /// The ways of the CNI alone, each with when it was walked.
    cni: BTreeMap<String, (PathLeg, Instant)>,
    peers: PeerSource,
    trail: Trail,
}

/// How to know that a server is it, and what that was read from.
struct Trust {
    cluster: kubeconfig::Cluster,
    authority: Vec<u8>,
    config: Arc<ClientConfig>,
}

/// What the kubelet's kubeconfig says.
struct Kept {
    /// Itself, and the file of authorities that it names.
    files: Vec<(String, Stamp)>,
    server: String,
    target: Target,
}

impl ControlPlaneSource {
    /// Nothing is asked yet; what is walked will be in `trail`.
    pub(crate) fn new(host: HostRoot, blocking: Blocking, trail: Trail) -> Self {
        ControlPlaneSource {
            host,
            blocking,
            trust: None,
            kept: None,
            known: BTreeMap::new(),
            turn: 0,
            cni: BTreeMap::new(),
            peers: PeerSource::default(),
            trail,
        }
    }

    /// Walks to the server of the kubelet's kubeconfig, and the other ways. [`Reason::Missing`] when no kubeconfig names a
    /// server.
    pub(crate) async fn look(&mut self, kubelet: Option<&Kubelet>, ways: &Ways) -> Result<ControlPlanePath, LookError> {
        let path = kubelet.and_then(|kubelet| kubelet.kubeconfig_path.as_deref());
        let path = path.ok_or_else(|| LookError::new("kubeconfig", Reason::Missing, "there is none of the kubelet"))?;
        let (server, first) = self.first(path).await?;
        let to = |to: SocketAddr| Target { host: to.ip().to_string(), port: to.port(), ..first.clone() };
        let service = ways.service.map(to);
        let endpoints: Vec<Target> = ways.endpoints().into_iter().map(to).collect();

        let mut legs = BTreeMap::new();
        self.turn = self.turn.wrapping_add(1);
        let in_turn = endpoints.get(self.turn % endpoints.len().max(1)).map(Target::to);
        let others: Vec<&Target> = service.iter().chain(&endpoints).filter(|it| it.to() != first.to()).collect();
        let turn =
            |target: &Target| in_turn == Some(target.to()) || service.as_ref().is_some_and(|it| it.to() == target.to());
        let plan = std::iter::once((&first, self.depth(&first, ANSWER_EVERY[0]).unwrap_or(Depth::Connection)));
        let plan = plan.chain(others.iter().filter_map(|&target| {
            let depth = self.depth(target, ANSWER_EVERY[1]);
            depth.or_else(|| turn(target).then_some(Depth::Connection)).map(|depth| (target, depth))
        }));
        let mut round = self.walk(plan.collect(), &mut legs).await;
        if legs.get(&first.to()).is_some_and(|(leg, _)| leg.broken()) {
            // Where it is broken shows in what else is.
            let rest = others.iter().filter(|target| !legs.contains_key(&target.to()));
            let rest = rest.map(|&target| (target, Depth::Answer)).collect();
            round.extend(self.walk(rest, &mut legs).await);
        }
        self.trail.note(round);
        for (to, known) in std::mem::take(&mut self.known) {
            if first.to() == to || others.iter().any(|target| target.to() == to) {
                legs.entry(to).or_insert(known);
            }
        }
        self.known = legs;
        let leg = |target: &Target| self.known.get(&target.to()).map(|(leg, _)| leg.clone());
        let missing = || LookError::new(&server, Reason::Failed, "was not walked to");
        let mut kubelet = leg(&first).ok_or_else(missing)?;
        if kubelet.fault().is_some_and(|fault| matches!(fault.kind, FaultKind::Expired | FaultKind::NotYetValid)) {
            kubelet.clock_ahead = self.clock_without_trust(&first).await.or(kubelet.clock_ahead);
        }
        let endpoints = endpoints.iter().filter_map(leg).map(lenient).collect();
        let service = service.as_ref().and_then(leg).map(lenient);
        let peers = self.peers.look(&ways.peers, kubelet.broken());
        let (peers, host_answers) = futures::join!(peers, host_answers(&kubelet));
        let (cni, kernel_clock) = (Vec::new(), Seen::Absent);
        let mut path = ControlPlanePath { server, kubelet, endpoints, service, cni, host_answers, peers, kernel_clock };
        if std::iter::once(&path.kubelet).chain(&path.endpoints).any(|leg| leg.clock_ahead.is_some_and(|it| it != 0)) {
            path.kernel_clock = kernel_clock::look();
        }
        path.cni = self.servers_of_cni(ways, &path).await;
        Ok(path)
    }

    /// The ways to servers of the CNI that are none of the others, to the connection: one that stands as seldom as an answer is
    /// asked for, a broken one by each look, so that what is told of it is never old.
    async fn servers_of_cni(&mut self, ways: &Ways, path: &ControlPlanePath) -> Vec<PathLeg> {
        let all = ways.cni.iter().take(SERVERS_OF_CNI);
        let all = all.map(|(host, port)| Target { host: host.clone(), port: *port, tls: None, path: "" });
        let mut due: Vec<Target> = all.filter(|target| path.leg(&target.to()).is_none()).collect();
        self.cni.retain(|to, _| due.iter().any(|target| target.to() == *to));
        due.retain(|target| {
            let known = self.cni.get(&target.to());
            known.is_none_or(|(leg, at)| leg.broken() || at.elapsed() >= ANSWER_EVERY[1])
        });
        // All at once: one after the other they might outlast the whole look.
        let walks = due.iter().map(|target| probe::walk(target, Depth::Connection, &self.blocking));
        let walked = join_all(walks.map(|walk| timeout(SERVER_OF_CNI, walk))).await;
        let now = Instant::now();
        let walked =
            due.iter().zip(walked).map(|(target, leg)| (target.to(), (leg.unwrap_or_else(|_| cut(target)), now)));
        self.cni.extend(walked);
        self.cni.values().map(|(leg, _)| leg.clone()).collect()
    }

    /// How far a way has to be walked again, if at all: to the answer where there was none, or not for long.
    fn depth(&self, target: &Target, every: Duration) -> Option<Depth> {
        match self.known.get(&target.to()) {
            Some((leg, at)) if !leg.broken() && at.elapsed() < every => None,
            _ => Some(Depth::Answer),
        }
    }

    /// Walks all of these at once. A connection that stands leaves the answer of before in force.
    async fn walk(&self, plan: Vec<(&Target, Depth)>, legs: &mut BTreeMap<String, (PathLeg, Instant)>) -> Vec<Walk> {
        let walks = plan.into_iter().map(|(target, depth)| async move {
            let (began, at) = (Instant::now(), Timestamp::now());
            let leg = probe::walk(target, depth, &self.blocking).await;
            let millis = u64::try_from(began.elapsed().as_millis()).unwrap_or(u64::MAX);
            (depth, began, Walk { at, to: leg.to.clone(), millis, end: leg.end.clone() }, leg)
        });
        let mut round = Vec::new();
        for (depth, at, walk, mut leg) in join_all(walks).await {
            round.push(walk);
            let stands = depth == Depth::Connection && leg.end == PathEnd::Connected;
            let known = self.known.get(&leg.to);
            // Clocks drift slowly: what was told stays in force while nobody tells.
            leg.clock_ahead = leg.clock_ahead.or(known.and_then(|(leg, _)| leg.clock_ahead));
            let known = known.filter(|_| stands).cloned();
            legs.insert(leg.to.clone(), known.unwrap_or((leg, at)));
        }
        round
    }

    /// The server of the kubelet's kubeconfig, and how it is reached. What has not changed is not read again.
    async fn first(&mut self, path: &str) -> Result<(String, Target), LookError> {
        let same = |(file, stamp): &(String, Stamp)| self.host.stamp(file) == Some(*stamp);
        if let Some(kept) = self.kept.as_ref().filter(|kept| kept.files[0].0 == path && kept.files.iter().all(same)) {
            return Ok((kept.server.clone(), kept.target.clone()));
        }
        let stamp = |file: &str| Some((file.to_owned(), self.host.stamp(file)?));
        // Each before it is read.
        let itself = stamp(path);
        let cluster = kubeconfig::cluster(&self.host, path)?;
        let authority = cluster.certificate_authority.as_deref().map(stamp);
        let files = std::iter::once(itself).chain(authority).collect::<Option<Vec<_>>>();
        let server = cluster.server.clone();
        let target = self.target(cluster, path).await?;
        self.kept = files.map(|files| Kept { files, server: server.clone(), target: target.clone() });
        Ok((server, target))
    }

    /// How to reach what a kubeconfig names.
    async fn target(&mut self, cluster: kubeconfig::Cluster, path: &str) -> Result<Target, LookError> {
        let unusable =
            |why: &str| LookError::new(path, Reason::Malformed, format!("its cluster section cannot be used: {why}"));
        let url: http::Uri = cluster.server.parse().map_err(|_| unusable("its server is no URL"))?;
        let host = url.host().ok_or_else(|| unusable("its server names no host"))?;
        let host = host.trim_matches(['[', ']']).to_owned();
        let plain = match url.scheme_str() {
            Some("http") => true,
            Some("https") => false,
            _ => return Err(unusable("its server is neither an https nor an http URL")),
        };
        let port = url.port_u16().unwrap_or(if plain { 80 } else { 443 });
        let tls = if plain {
            None
        } else {
            let name = cluster.tls_server_name.clone().unwrap_or_else(|| host.clone());
            let name = ServerName::try_from(name).map_err(|_| unusable("its server's name cannot be one"))?;
            Some((self.trusted(cluster, path).await?, name))
        };
        Ok(Target { host, port, tls, path: "/version" })
    }

    /// The authorities that the kubelet trusts, read again when they have changed.
    async fn trusted(&mut self, cluster: kubeconfig::Cluster, path: &str) -> Result<Arc<ClientConfig>, LookError> {
        let authority = match &cluster.certificate_authority {
            // The library reads it by itself; a FIFO there would stop this process.
            Some(file) => self.host.read(file, CERTIFICATES)?,
            None => Vec::new(),
        };
        if let Some(trust) = &self.trust
            && (&trust.cluster, &trust.authority) == (&cluster, &authority)
        {
            return Ok(Arc::clone(&trust.config));
        }
        // What was seen was judged by others.
        self.known.clear();
        let config = Arc::new(tls(&self.host, &cluster).await.map_err(|why| {
            // Only what the kubelet's own file says can be wrong before anything is sent.
            LookError::new(path, Reason::Malformed, format!("its cluster section cannot be used: {why}"))
        })?);
        self.trust = Some(Trust { cluster, authority, config: Arc::clone(&config) });
        Ok(config)
    }

    /// What a server whose certificate is not valid now says of the time: it may be this node's clock that is wrong. Nothing
    /// but the date is believed, and nothing secret is sent.
    async fn clock_without_trust(&self, target: &Target) -> Option<i64> {
        let (_, name) = target.tls.clone()?;
        let target = Target { tls: Some((Arc::new(probe::any_certificate()), name)), ..target.clone() };
        probe::walk(&target, Depth::Answer, &self.blocking).await.clock_ahead
    }
}

/// Whether a host that does not answer at its port answers at all.
async fn host_answers(leg: &PathLeg) -> Option<bool> {
    let silent = leg.fault().is_some_and(|it| (it.step, it.kind) == (PathStep::Connect, FaultKind::TimedOut));
    let address = leg.address.filter(|_| silent && !leg.is_local())?;
    Some(peers::answers(address, &[9]).await)
}

/// A certificate that names only the kubelet's address is good enough for another address of the same server.
fn lenient(mut leg: PathLeg) -> PathLeg {
    if leg.fault().is_some_and(|fault| fault.kind == FaultKind::WrongName) {
        leg.end = PathEnd::Connected;
    }
    leg
}

/// How the kubelet would know the server, but with no user.
async fn tls(host: &HostRoot, cluster: &kubeconfig::Cluster) -> Result<ClientConfig, String> {
    let name = String::from("control-plane");
    let authority = cluster.certificate_authority.as_ref().map(|file| host.path(file).display().to_string());
    let cluster = Cluster {
        server: Some(cluster.server.clone()),
        insecure_skip_tls_verify: Some(cluster.insecure_skip_tls_verify),
        certificate_authority: authority,
        certificate_authority_data: cluster.certificate_authority_data.clone(),
        ..Cluster::default()
    };
    let context = Context { cluster: name.clone(), ..Context::default() };
    let kubeconfig = Kubeconfig {
        clusters: vec![NamedCluster { name: name.clone(), cluster: Some(cluster), other: BTreeMap::default() }],
        contexts: vec![NamedContext { name: name.clone(), context: Some(context), other: BTreeMap::default() }],
        current_context: Some(name),
        ..Kubeconfig::default()
    };
    let config = Config::from_custom_kubeconfig(kubeconfig, &KubeConfigOptions::default()).await;
    let mut config =
        config.map_err(|error| probe::words(&error))?.rustls_client_config().map_err(|error| probe::words(&error))?;
    // A session that is taken up again shows no certificate.
    config.resumption = Resumption::disabled();
    Ok(config)
}

/// A way on which no connection stood in time, whatever of it took so long.
fn cut(target: &Target) -> PathLeg {
    let fault = PathFault::new(PathStep::Connect, FaultKind::TimedOut, "");
    let end = PathEnd::Fault(fault);
    PathLeg { to: target.to(), address: None, port: target.port, source: None, end, clock_ahead: None }
}

#[cfg(test)]
mod tests;
