//! The container runtime, asked over its CRI v1 socket.

use std::collections::{HashMap, HashSet};
use std::sync::Arc;
use std::time::{Duration, Instant};

use tokio::sync::Notify;
use tokio::time::timeout;

use self::attempts::Attempts;
use self::connection::Connection;
pub(crate) use self::image_hosts::ImageHost;
pub(super) use self::inventory::Inventory;
use self::latency::{Latencies, Meter};
use self::networks::Network;
use self::verbose::{Verbose, read_info};
use super::host_root::HostRoot;
use super::processes;
use crate::facts::{
    LookError, Memo, Reason, Runtime, RuntimeCondition, RuntimeStatus, Sandbox, SandboxFailures, Seen, Snapshots,
};

mod attempts;
pub(super) mod connection;
mod image_hosts;
mod inventory;
mod latency;
mod messages;
mod networks;
mod snapshots;
mod static_pods;
mod verbose;

/// Sockets of containerd, CRI-O, k3s and RKE2, and cri-dockerd (facts.md G.1).
const SOCKETS: [&str; 5] = [
    "/run/containerd/containerd.sock",
    "/run/crio/crio.sock",
    "/var/run/crio/crio.sock",
    "/run/k3s/containerd/containerd.sock",
    "/run/cri-dockerd.sock",
];
/// The verbose status holds the runtime's whole configuration, so it is asked for this seldom while all is well.
const VERBOSE: Duration = Duration::from_secs(60);
/// The image file systems are asked for this often: while there are none, and while there are.
const IMAGES: [Duration; 2] = [Duration::from_secs(15), Duration::from_secs(300)];
/// What the runtime has in all is counted this often.
const INVENTORY: Duration = Duration::from_secs(60);
/// Calls that one look makes at most: a full node is learned in a few looks, without a burst at the runtime.
const CALLS: usize = 10;

const VERSION: &str = "/runtime.v1.RuntimeService/Version";
const STATUS: &str = "/runtime.v1.RuntimeService/Status";
const LIST: &str = "/runtime.v1.RuntimeService/ListPodSandbox";
/// The registries of images are asked for this often: the list is long, and they hardly change.
const IMAGE_HOSTS: Duration = Duration::from_secs(600);

const IMAGES_LIST: &str = "/runtime.v1.ImageService/ListImages";
const CONTAINERS: &str = "/runtime.v1.RuntimeService/ListContainers";
const IMAGE_FS: &str = "/runtime.v1.ImageService/ImageFsInfo";

/// Looks at the runtime, and keeps its connection and what does not change.
#[derive(Debug)]
pub(crate) struct CriSource {
    host: HostRoot,
    /// Kept only between looks that went well: one that is cancelled or times out leaves none.
    connection: Option<Connection>,
    /// Is told when the runtime ends the connection: one that dies does not wait for the next look.
    closed: Arc<Notify>,
    verbose: Option<Verbose>,
    /// By sandbox id. The network of a sandbox does not change during its life.
    networks: HashMap<String, Network>,
    images: Option<(Instant, Seen<Vec<String>>)>,
    image_hosts: Option<(Instant, Vec<ImageHost>)>,
    /// Images that containers are of, when all of these were listed last; none when they could not be.
    used_images: Option<HashSet<u64>>,
    /// When the runtime was last asked for all that it has, and its answer.
    inventory: Option<(Instant, Option<Arc<Inventory>>)>,
    /// When the runtime is asked next for snapshots that nobody owns, and its last answer; absent before the first.
    snapshots: Option<(Instant, Seen<Snapshots>)>,
    meter: Arc<Meter>,
    latencies: Latencies,
    /// What earlier processes of the agent found usual here, until the runtime is connected to.
    kept: Option<Memo>,
    attempts: Attempts,
    watched: static_pods::Watched,
    /// When the logs were last read for a reason, and what they said.
    said: Option<(Instant, Option<String>)>,
    /// Who listened on the socket when it was last connected to.
    pid: Option<i32>,
}

/// Stands for a name: two of a hundred thousand names have the same one with a probability of one in a billion.
pub(super) fn digest(name: &str) -> u64 {
    use std::hash::{DefaultHasher, Hash, Hasher};
    let mut hasher = DefaultHasher::new();
    name.hash(&mut hasher);
    hasher.finish()
}

impl CriSource {
    /// Nothing is asked yet.
    pub(crate) fn new(host: HostRoot) -> Self {
        CriSource {
            host,
            connection: None,
            closed: Arc::default(),
            verbose: None,
            networks: HashMap::new(),
            images: None,
            image_hosts: None,
            used_images: None,
            inventory: None,
            snapshots: None,
            meter: Arc::default(),
            latencies: Latencies::new(crate::clock::instant()),
            kept: None,
            attempts: Attempts::default(),
            watched: static_pods::Watched::default(),
            said: None,
            pid: None,
        }
    }

    /// With what earlier processes found usual here.
    pub(crate) fn knowing(mut self, latency: Memo) -> Self {
        self.kept = Some(latency);
        self
    }

    /// Tells `closed` when the runtime ends its connection.
    pub(crate) fn waking(mut self, closed: Arc<Notify>) -> Self {
        self.closed = closed;
        self
    }

    /// Asks the runtime at `endpoint`, or at the first well-known socket that exists. That there is no socket is an
    /// error only if a runtime is expected. Takes at most 15 s, when each answer comes just before its deadline,
    /// and 2 s when the runtime hangs. Makes at most ten calls.
    pub(crate) async fn look(&mut self, endpoint: Option<&str>, runtime_expected: bool) -> Runtime {
        let socket = match self.choose(endpoint) {
            Ok(socket) => socket,
            Err(error) if error.reason == Reason::Missing && !runtime_expected => return Runtime::absent(),
            Err(error) => return Runtime::silent(Seen::Unreadable(error.clone()), error),
        };
        // Those of a look that was cancelled.
        self.meter.take();
        let mut runtime = match self.ask(&socket).await {
            Ok((status, sandboxes)) => Runtime {
                socket: Seen::Yes(socket),
                status: Seen::Yes(status),
                sandboxes,
                image_filesystems: self.images.as_ref().map_or(Seen::Absent, |(_, seen)| seen.clone()),
                latency: Vec::new(),
                hung: None,
                failures: self.failures(),
                static_pods: self.watched.told(),
            },
            Err(error) => {
                self.verbose = None;
                self.images = None;
                self.inventory = None;
                Runtime::silent(Seen::Yes(socket), error)
            }
        };
        let timed_out = |error: &LookError| error.reason == Reason::TimedOut;
        let hangs = runtime.status.error().is_some_and(timed_out) || runtime.sandboxes.error().is_some_and(timed_out);
        self.latencies.look(crate::clock::instant(), &self.meter.take(), !hangs);
        runtime.latency = self.latencies.told();
        runtime.hung = self.pid.filter(|_| hangs).and_then(|pid| processes::threads(&self.host, pid));
        runtime
    }

    /// The socket to ask, as the node names it.
    fn choose(&self, endpoint: Option<&str>) -> Result<String, LookError> {
        let socket = match endpoint.map(|it| it.trim_start_matches("unix:").trim_start_matches("//")) {
            Some(path) if path.starts_with('/') => path,
            Some(other) => return Err(LookError::new(other, Reason::Unsupported, "is not the path of a unix socket")),
            None => SOCKETS.into_iter().find(|path| self.host.path(path).exists()).unwrap_or(SOCKETS[0]),
        };
        connection::check(socket, &self.host.path(socket)).map(|()| socket.to_owned())
    }

    async fn ask(&mut self, socket: &str) -> Result<(RuntimeStatus, Seen<Vec<Sandbox>>), LookError> {
        let kept = self.connection.take().filter(|kept| kept.socket() == socket && !kept.is_closed());
        let (connection, version) = match kept {
            Some(kept) => match version(&kept).await {
                // The runtime was restarted since: that is no news about the one that runs now.
                Err(_) if kept.is_closed() => self.open(socket).await?,
                result => (kept, result?),
            },
            None => self.open(socket).await?,
        };
        let status = self.status(&connection, version).await?;
        self.look_at_images(&connection).await;
        let sandboxes = self.sandboxes(&connection).await;
        if sandboxes.error().is_none() {
            self.look_at_image_hosts(&connection).await;
        }
        // After a call that hangs the connection may be full of unread requests.
        let hangs = sandboxes.error().is_some_and(|error| error.reason == Reason::TimedOut);
        self.connection = (!hangs).then_some(connection);
        Ok((status, sandboxes))
    }

    async fn open(&mut self, socket: &str) -> Result<(Connection, messages::VersionResponse), LookError> {
        // Another process may answer now, with another configuration.
        self.verbose = None;
        self.images = None;
        if let Some((due, _)) = &mut self.snapshots {
            // It keeps them on disk, whichever process that is.
            *due = Instant::now() + INVENTORY;
        }
        let (meter, closed) = (Arc::clone(&self.meter), Arc::clone(&self.closed));
        let connection = Connection::open(socket, &self.host.path(socket), meter, closed).await?;
        let before = std::mem::replace(&mut self.pid, connection.pid());
        let now = crate::clock::instant();
        match (self.kept.take(), before) {
            // The first that answers: what an earlier process of the agent saw of it holds until there is something newer.
            (Some(kept), _) => {
                self.latencies.know(&kept, |pid| processes::is_runtime(&self.host, pid));
                self.latencies.settle(now);
            }
            (None, Some(_)) if self.pid == before => {}
            _ => self.latencies.restarted(now),
        }
        let version = version(&connection).await?;
        Ok((connection, version))
    }

    async fn status(
        &mut self,
        connection: &Connection,
        version: messages::VersionResponse,
    ) -> Result<RuntimeStatus, LookError> {
        let healthy = self.verbose.as_ref().filter(|it| it.cni_load.as_deref().is_none_or(|load| load == "OK"));
        let verbose = healthy.is_none_or(|it| it.at.elapsed() >= VERBOSE);
        let mut answer: messages::StatusResponse = connection.call(STATUS, messages::StatusRequest { verbose }).await?;
        if !verbose
            && conditions(&answer).any(|condition| {
                matches!(condition.kind.as_str(), "RuntimeReady" | "NetworkReady") && !condition.status
            })
        {
            answer = connection.call(STATUS, messages::StatusRequest { verbose: true }).await?;
        }
        if !answer.info.is_empty() {
            self.verbose = Some(read_info(&answer.info));
        }
        let told = self.verbose.as_ref();
        Ok(RuntimeStatus {
            name: version.runtime_name,
            version: version.runtime_version,
            conditions: conditions(&answer).cloned().map(RuntimeCondition::from).collect(),
            cni_dirs: told.and_then(|it| it.cni_dirs.clone()),
            cni_loopback: told.is_some_and(|it| it.cni_loopback),
            cni_load: told.and_then(|it| it.cni_load.clone()),
        })
    }

    /// Attempts that came to nothing. The logs are read for a reason only when there are some, and seldom.
    fn failures(&mut self) -> SandboxFailures {
        let now = crate::clock::since_boot();
        self.attempts.look(now, &self.host.path("/run/netns"));
        let mut failures = self.attempts.told(now);
        if failures.attempts == 0 {
            self.said = None;
            return failures;
        }
        if self.said.as_ref().is_none_or(|(at, _)| at.elapsed() >= INVENTORY) {
            self.said = Some((Instant::now(), attempts::reason(|log| self.host.path(log))));
        }
        failures.said = self.said.as_ref().and_then(|(_, said)| said.clone());
        failures
    }

    /// Asks where images are kept, if it is time to.
    async fn look_at_images(&mut self, connection: &Connection) {
        let known = self.images.as_ref().is_some_and(|(_, seen)| seen.get().is_some_and(|paths| !paths.is_empty()));
        if self.images.as_ref().is_some_and(|(at, _)| at.elapsed() < IMAGES[usize::from(known)]) {
            return;
        }
        let answer = connection.call(IMAGE_FS, messages::ImageFsInfoRequest {}).await;
        let paths = answer.map(|answer: messages::ImageFsInfoResponse| {
            let ids = answer.image_filesystems.into_iter().filter_map(|filesystem| filesystem.fs_id);
            ids.map(|id| id.mountpoint).filter(|path| !path.is_empty()).collect()
        });
        self.images = Some((Instant::now(), paths.map_or_else(Seen::Unreadable, Seen::Yes)));
    }

    /// Asks which registries images are from, if it is time to. An answer that fails leaves what was known.
    async fn look_at_image_hosts(&mut self, connection: &Connection) {
        if !self.image_hosts_are_due() || self.meter.count() >= CALLS {
            return;
        }
        let answer = connection.call(IMAGES_LIST, messages::ListImagesRequest {}).await;
        let known = self.image_hosts.take().map(|(_, hosts)| hosts).unwrap_or_default();
        let used = self.used_images.take();
        let hosts = answer.map_or(known, |answer| image_hosts::hosts(&answer, used.as_ref()));
        self.image_hosts = Some((Instant::now(), hosts));
    }

    fn image_hosts_are_due(&self) -> bool {
        self.image_hosts.as_ref().is_none_or(|(at, _)| at.elapsed() >= IMAGE_HOSTS)
    }

    /// The registries that images are from, those of most images in use first.
    pub(crate) fn image_hosts(&self) -> &[ImageHost] {
        self.image_hosts.as_ref().map_or(&[], |(_, hosts)| hosts)
    }

    async fn sandboxes(&mut self, connection: &Connection) -> Seen<Vec<Sandbox>> {
        let counting = self.inventory.as_ref().is_none_or(|(at, _)| at.elapsed() >= INVENTORY);
        let ready = messages::Filter { state: Some(messages::State { state: messages::READY }) };
        let request = messages::ListPodSandboxRequest { filter: (!counting).then_some(ready) };
        let mut items = match connection.call::<_, messages::ListPodSandboxResponse>(LIST, request).await {
            Ok(answer) => answer.items,
            Err(error) => return Seen::Unreadable(error),
        };
        if counting {
            self.count(connection, &items).await;
        }
        self.look_at_snapshots(connection).await;
        items.retain(|item| item.state == messages::READY);
        self.attempts.ready(crate::clock::since_boot(), items.iter().map(|item| digest(&item.id)));
        let alive: HashSet<&str> = items.iter().map(|item| item.id.as_str()).collect();
        self.networks.retain(|id, _| alive.contains(id.as_str()));
        timeout(connection::CALL, self.look_at_static_pods(connection, &items)).await.ok();
        // One that hangs (a dead shim) costs its own addresses, not the list.
        timeout(connection::CALL, self.learn(connection, &items)).await.ok();
        Seen::Yes(items.into_iter().map(|item| self.sandbox(item)).collect())
    }

    fn sandbox(&self, item: messages::PodSandbox) -> Sandbox {
        let metadata = item.metadata.unwrap_or_default();
        let network = self.networks.get(&item.id);
        Sandbox {
            namespace: metadata.namespace,
            name: metadata.name,
            created_at: item.created_at,
            host_network: network.and_then(|network| network.host),
            addresses: network.map(|network| network.addresses.clone()).unwrap_or_default(),
            id: item.id,
        }
    }
}

async fn version(connection: &Connection) -> Result<messages::VersionResponse, LookError> {
    // The version of the kubelet's API, which runtimes ignore; the kubelet sends this.
    connection.call(VERSION, messages::VersionRequest { version: "0.1.0".to_owned() }).await
}

fn conditions(answer: &messages::StatusResponse) -> impl Iterator<Item = &messages::Condition> {
    answer.status.iter().flat_map(|status| &status.conditions)
}

impl From<messages::Condition> for RuntimeCondition {
    fn from(told: messages::Condition) -> Self {
        RuntimeCondition { kind: told.kind, status: told.status, reason: told.reason, message: told.message }
    }
}

/// The fuzz target's door.
#[cfg(any(test, fuzzing))]
pub(crate) fn fuzz(data: &[u8]) {
    use prost::Message as _;
    let Some((which, bytes)) = data.split_first() else { return };
    match which % 7 {
        0 => drop(messages::VersionResponse::decode(bytes)),
        1 => {
            if let Ok(answer) = messages::StatusResponse::decode(bytes) {
                let _ = conditions(&answer).cloned().map(RuntimeCondition::from).count();
                let _ = read_info(&answer.info);
            }
        }
        2 => {
            if let Ok(answer) = messages::ListPodSandboxResponse::decode(bytes) {
                let source = CriSource::new(HostRoot::new("/"));
                answer.items.into_iter().map(|item| source.sandbox(item)).for_each(drop);
            }
        }
        3 => drop(messages::ImageFsInfoResponse::decode(bytes)),
        4 => drop(messages::ListAllContainersResponse::decode(bytes).map(static_pods::fuzz)),
        5 => drop(snapshots::ListSnapshotsResponse::decode(bytes).map(snapshots::fuzz)),
        _ => {
            if let Ok(answer) = messages::PodSandboxStatusResponse::decode(bytes) {
                let (host, addresses) = answer.status.map(networks::read_network).unwrap_or_default();
                assert!(host != Some(true) || addresses.is_empty());
            }
        }
    }
}

#[cfg(test)]
mod tests;
