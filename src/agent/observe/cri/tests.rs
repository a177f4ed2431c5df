//! Runtimes that answer, hang, restart, refuse or are something else: fakes, and a real containerd.

use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex};

use bytes::Bytes;
use http_body_util::StreamBody;
use hyper::body::{Frame, Incoming};
use hyper_util::rt::{TokioExecutor, TokioIo};
use prost::Message;
use tokio::net::UnixListener;
use tokio::task::JoinSet;

use super::*;

mod containerd;
mod others;

const SOCKET: &str = "/run/containerd/containerd.sock";

/// A node's root, with a directory for the socket.
fn node() -> (tempfile::TempDir, PathBuf, CriSource) {
    let dir = tempfile::tempdir().expect("a temporary directory");
    let socket = dir.path().join(SOCKET.trim_start_matches('/'));
    std::fs::create_dir_all(socket.parent().expect("not the root")).expect("mkdir");
    let source = CriSource::new(HostRoot::new(dir.path()));
    (dir, socket, source)
}

fn reason<T>(seen: &Seen<T>) -> Option<Reason> {
    seen.error().map(|error| error.reason)
}

/// A runtime that answers from its fields. Ends when it is dropped.
struct Fake {
    told: Arc<Mutex<Told>>,
    _tasks: JoinSet<()>,
}

/// What it answers and what it was asked.
#[derive(Default)]
struct Told {
    sandboxes: Vec<messages::PodSandbox>,
    network: messages::PodSandboxStatus,
    not_ready: bool,
    images: Option<String>,
    exited: Vec<String>,
    containers: Vec<messages::NamedContainer>,
    snapshots: Vec<snapshots::Info>,
    /// The status that it answers instead of them.
    no_snapshots: Option<&'static str>,
    unimplemented: bool,
    asked: Vec<String>,
}

impl Fake {
    fn start(socket: &Path) -> Self {
        std::fs::remove_file(socket).ok();
        let listener = UnixListener::bind(socket).expect("bind");
        let told = Arc::new(Mutex::new(Told::default()));
        let (mut tasks, shared) = (JoinSet::new(), Arc::clone(&told));
        tasks.spawn(async move {
            let mut connections = JoinSet::new();
            loop {
                let (stream, _) = listener.accept().await.expect("accept");
                let told = Arc::clone(&shared);
                connections.spawn(async move {
                    let service = hyper::service::service_fn(move |request| {
                        std::future::ready(Ok::<_, std::convert::Infallible>(answer(&told, &request)))
                    });
                    let server = hyper::server::conn::http2::Builder::new(TokioExecutor::new());
                    server.serve_connection(TokioIo::new(stream), service).await.ok();
                });
            }
        });
        Fake { told, _tasks: tasks }
    }

    fn tell(&self, change: impl FnOnce(&mut Told)) {
        change(&mut self.told.lock().expect("not poisoned"));
    }

    /// How often the method was called since the last question.
    fn calls(&self, method: &str) -> usize {
        self.told.lock().expect("not poisoned").asked.extract_if(.., |asked| asked == method).count()
    }
}

type Body = StreamBody<futures::stream::Iter<std::vec::IntoIter<Result<Frame<Bytes>, std::convert::Infallible>>>>;

fn answer(told: &Mutex<Told>, request: &http::Request<Incoming>) -> http::Response<Body> {
    let mut told = told.lock().expect("not poisoned");
    let method = request.uri().path().to_owned();
    told.asked.push(method.clone());
    let bytes = match method.as_str() {
        VERSION => {
            messages::VersionResponse { runtime_name: "fake".into(), runtime_version: "1".into() }.encode_to_vec()
        }
        STATUS => {
            let condition =
                |kind: &str, status| messages::Condition { kind: kind.into(), status, ..Default::default() };
            let conditions = vec![condition("RuntimeReady", true), condition("NetworkReady", !told.not_ready)];
            let info = [
                (
                    "cniconfig",
                    r#"{"PluginDirs":["/a/bin","/b/bin"],"PluginConfDir":"/a/net.d","Networks":[
                    {"Config":{"Name":"cni-loopback","Plugins":[{"Network":{"type":"loopback","ipam":{}}}]},"IFName":"lo"}]}"#,
                ),
                ("lastCNILoadStatus", "OK"),
            ];
            let info = info.map(|(key, value)| (key.to_owned(), value.to_owned())).into_iter().collect();
            messages::StatusResponse { status: Some(messages::Conditions { conditions }), info }.encode_to_vec()
        }
        IMAGE_FS => {
            let path = |mountpoint: &String| messages::FilesystemIdentifier { mountpoint: mountpoint.clone() };
            let usage = |mountpoint| messages::FilesystemUsage { fs_id: Some(path(mountpoint)) };
            messages::ImageFsInfoResponse { image_filesystems: told.images.iter().map(usage).collect() }.encode_to_vec()
        }
        CONTAINERS => {
            let exited = |id: &String| messages::NamedContainer {
                pod_sandbox_id: id.clone(),
                state: messages::EXITED,
                ..Default::default()
            };
            let all = told.exited.iter().map(exited).chain(told.containers.iter().cloned());
            messages::ListAllContainersResponse { containers: all.collect() }.encode_to_vec()
        }
        snapshots::LIST => {
            assert_eq!(request.headers()["containerd-namespace"], "k8s.io");
            snapshots::ListSnapshotsResponse { info: told.snapshots.clone() }.encode_to_vec()
        }
        LIST => messages::ListPodSandboxResponse { items: told.sandboxes.clone() }.encode_to_vec(),
        _ => messages::PodSandboxStatusResponse { status: Some(told.network.clone()) }.encode_to_vec(),
    };
    let mut frames = Vec::new();
    let refused = told.unimplemented.then_some("12");
    let refused = refused.or(told.no_snapshots.filter(|_| method == snapshots::LIST));
    let (code, message) = refused.map_or(("0", ""), |code| (code, "unknown service runtime.v1.RuntimeService"));
    if refused.is_none() {
        let length = u32::try_from(bytes.len()).expect("short");
        frames.push(Ok(Frame::data([&[0], length.to_be_bytes().as_slice(), bytes.as_slice()].concat().into())));
    }
    let mut trailers = http::HeaderMap::new();
    trailers.insert("grpc-status", http::HeaderValue::from_static(code));
    trailers.insert("grpc-message", http::HeaderValue::from_static(message));
    frames.push(Ok(Frame::trailers(trailers)));
    let body = StreamBody::new(futures::stream::iter(frames));
    http::Response::builder().header("content-type", "application/grpc").body(body).expect("a valid answer")
}

fn sandboxes(count: usize) -> Vec<messages::PodSandbox> {
    let sandbox = |at| messages::PodSandbox {
        id: format!("id-{at:03}"),
        metadata: Some(messages::Metadata {
            name: format!("pod-{at}"),
            uid: format!("uid-{at}"),
            namespace: "default".into(),
        }),
        state: messages::READY,
        created_at: 7,
    };
    (0..count).map(sandbox).collect()
}

#[tokio::test]
async fn a_ready_runtime_tells_its_state_and_directories() {
    let (_dir, socket, mut source) = node();
    let fake = Fake::start(&socket);
    let runtime = source.look(None, true).await;
    assert_eq!(runtime.socket, Seen::Yes(SOCKET.to_owned()));
    let status = runtime.status.get().expect("it answers");
    assert_eq!((status.name.as_str(), status.version.as_str()), ("fake", "1"));
    assert!(status.condition("NetworkReady").is_some_and(|condition| condition.status));
    let dirs = ("/a/net.d".to_owned(), vec!["/a/bin".to_owned(), "/b/bin".to_owned()]);
    assert_eq!((status.cni_dirs.clone(), status.cni_load.as_deref()), (Some(dirs), Some("OK")));
    assert!(status.cni_loopback);
    for other in
        [r#"{"Networks":null}"#, r#"{"Networks":[{"Config":{"Plugins":[{"Network":{"type":"calico"}}]}}]}"#, "7"]
    {
        assert!(!verbose::runs_loopback(&serde_json::from_str(other).expect("JSON")), "{other}");
    }
    assert_eq!(runtime.sandboxes, Seen::Yes(Vec::new()));
    assert_eq!(fake.calls(STATUS), 1);
    fake.tell(|told| told.not_ready = true);
    assert!(source.look(None, true).await.status.get().is_some_and(|status| status.cni_dirs.is_some()));
    assert_eq!(fake.calls(STATUS), 2, "a brief answer that is bad is followed by a verbose one");
}

#[tokio::test]
async fn addresses_are_learned_a_few_at_a_time_and_forgotten_with_their_sandbox() {
    let (_dir, socket, mut source) = node();
    let fake = Fake::start(&socket);
    let network =
        messages::Network { ip: "10.0.0.9".into(), additional_ips: vec![messages::PodIp { ip: "fd00::9".into() }] };
    fake.tell(|told| {
        told.sandboxes = sandboxes(12);
        told.network = messages::PodSandboxStatus { network: Some(network), linux: Some(linux(0)) };
    });
    let known = |runtime: &Runtime| {
        runtime.sandboxes.get().map(|all| (all.len(), all.iter().filter(|one| one.addresses.len() == 2).count()))
    };
    assert_eq!(known(&source.look(None, true).await), Some((12, 5)));
    let second = source.look(None, true).await;
    assert_eq!(known(&second), Some((12, 12)));
    let first = &second.sandboxes.get().expect("a list")[0];
    assert_eq!((first.namespace.as_str(), first.name.as_str(), first.host_network), ("default", "pod-0", Some(false)));
    assert_eq!(fake.calls(networks::SANDBOX), 12);
    fake.tell(|told| told.sandboxes.truncate(3));
    source.look(None, true).await;
    assert_eq!((fake.calls(networks::SANDBOX), source.networks.len()), (0, 3));
}

#[tokio::test]
async fn a_look_makes_ten_calls_at_most() {
    let (_dir, socket, mut source) = node();
    let fake = Fake::start(&socket);
    // Every status is asked for again, and the verbose one too.
    fake.tell(|told| (told.sandboxes, told.not_ready) = (sandboxes(250), true));
    for _ in 0..3 {
        source.look(None, true).await;
        let asked = std::mem::take(&mut fake.told.lock().expect("not poisoned").asked);
        assert_eq!(asked.len(), CALLS, "{asked:?}");
    }
}

#[tokio::test]
async fn what_there_is_in_all_is_counted_once_a_minute() {
    let (_dir, socket, mut source) = node();
    let fake = Fake::start(&socket);
    fake.tell(|told| {
        told.sandboxes = sandboxes(3);
        told.sandboxes[2].state = 1;
        told.exited = vec!["id-000".into(), "gone".into()];
    });
    let runtime = source.look(None, true).await;
    assert_eq!(runtime.sandboxes.get().map(Vec::len), Some(2), "one is not ready");
    source.look(None, true).await;
    assert_eq!((fake.calls(CONTAINERS), fake.calls(LIST)), (1, 2));
    let inventory = source.inventory().expect("counted");
    assert_eq!((inventory.sandboxes.len(), inventory.not_ready, inventory.exited.len()), (3, 1, 2));
    assert_eq!(inventory.sandboxes.get(&digest("id-002")), Some(&digest("uid-2")));
    drop(fake);
    source.look(None, true).await;
    assert!(source.inventory().is_none(), "nothing old is told of a runtime that does not answer");
}

/// So much later for what asks for snapshots.
fn later(source: &mut CriSource, after: Duration) {
    let (due, _) = source.snapshots.as_mut().expect("looked before");
    *due = due.checked_sub(after).expect("this machine has run for longer");
}

#[tokio::test]
async fn snapshots_are_asked_for_seldom_and_of_containerd_alone() {
    let (_dir, socket, mut source) = node();
    let fake = Fake::start(&socket);
    let id = |at: i64| format!("{at:064x}");
    let active = |at| snapshots::Info { name: id(at), kind: 2, created_at: Some(snapshots::Time { seconds: at }) };
    fake.tell(|told| {
        told.sandboxes = vec![messages::PodSandbox { id: id(1), state: 1, ..Default::default() }];
        told.snapshots = [1, 3, 2].map(active).into();
    });
    let snapshots = |source: &CriSource| source.inventory().expect("counted").snapshots.clone();
    source.look(None, true).await;
    source.look(None, true).await;
    assert_eq!((fake.calls(snapshots::LIST), snapshots(&source)), (0, Seen::Absent), "not by a single look");
    later(&mut source, INVENTORY);
    source.look(None, true).await;
    let oldest = Some((id(2), jiff::Timestamp::from_second(2).expect("valid")));
    let two = Seen::Yes(Snapshots { count: 2, oldest });
    assert_eq!((fake.calls(snapshots::LIST), snapshots(&source)), (1, two.clone()));
    later(&mut source, INVENTORY);
    source.look(None, true).await;
    assert_eq!(fake.calls(snapshots::LIST), 0);
    fake.tell(|told| told.no_snapshots = Some("14"));
    later(&mut source, snapshots::EVERY);
    source.look(None, true).await;
    assert_eq!((fake.calls(snapshots::LIST), snapshots(&source)), (1, two.clone()), "an answer that fails is no news");
    source.connection = None;
    source.inventory = None;
    source.look(None, true).await;
    assert_eq!((fake.calls(snapshots::LIST), snapshots(&source)), (0, two), "nor is a restart");
    // Another runtime answers, first one that does not say what it is.
    fake.tell(|told| told.no_snapshots = Some("12"));
    let others = [None, Some("/var/lib/containers/storage/overlay-images".to_owned())];
    for (images, calls) in others.into_iter().zip([1, 0]) {
        fake.tell(|told| told.images = images);
        source.connection = None;
        source.look(None, true).await;
        later(&mut source, INVENTORY);
        source.look(None, true).await;
        assert_eq!((fake.calls(snapshots::LIST), reason(&snapshots(&source))), (calls, Some(Reason::Unsupported)));
    }
}

#[tokio::test]
async fn the_containers_of_static_pods_are_asked_for_once_a_minute_and_within_the_ten_calls() {
    let (_dir, socket, mut source) = node();
    let fake = Fake::start(&socket);
    let container = |sandbox: &str, name: &str, attempt, state| messages::NamedContainer {
        pod_sandbox_id: sandbox.into(),
        metadata: Some(messages::ContainerMetadata { name: name.into(), attempt }),
        state,
        created_at: i64::from(attempt) * 1_000_000_000,
    };
    fake.tell(|told| {
        told.sandboxes = sandboxes(250);
        told.containers = vec![
            container("id-001", "b", 0, messages::RUNNING),
            container("id-001", "a", 3, messages::EXITED),
            container("id-001", "a", 4, messages::RUNNING),
            container("id-002", "c", 0, messages::RUNNING),
        ];
    });
    let pod = |name: &str| crate::facts::StaticPod {
        namespace: "default".into(),
        name: name.into(),
        containers: vec![],
        always: true,
    };
    let pods = [pod("pod"), pod("none")];
    // Without a node's name every one of them might be it.
    for (node, asked) in [(Some("1"), 2), (None, 5), (Some("none"), 1)] {
        source.watch_static_pods(pods.iter(), node);
        assert!(source.look(None, true).await.sandboxes.get().is_some());
        let of_kind = fake.calls(CONTAINERS);
        let all = std::mem::take(&mut fake.told.lock().expect("not poisoned").asked);
        assert!(of_kind == asked && of_kind + all.len() <= CALLS, "{node:?}: {of_kind} {all:?}");
        source.inventory = None;
    }
    source.watch_static_pods(pods.iter(), Some("1"));
    source.look(None, true).await;
    let told = source.look(None, true).await.static_pods;
    let [pod] = &told[..] else { panic!("one: {told:?}") };
    let containers: Vec<_> = pod.containers.iter().map(|it| (it.name.as_str(), it.attempt, it.running)).collect();
    assert_eq!((pod.sandbox.as_str(), containers), ("id-001", vec![("a", 4, true), ("a", 3, false), ("b", 0, true)]));
    assert_eq!(fake.calls(CONTAINERS), 2, "one for all that have ended, one for the pod");
    source.watch_static_pods([].iter(), Some("1"));
    assert_eq!(source.look(None, true).await.static_pods, []);
}

#[tokio::test]
async fn slowness_that_an_earlier_agent_saw_is_of_a_process_that_still_runs() {
    let (dir, socket, _) = node();
    let _fake = Fake::start(&socket);
    std::fs::create_dir_all(dir.path().join("proc/7")).expect("mkdir");
    std::fs::write(dir.path().join("proc/7/comm"), "containerd\n").expect("write");
    for (pid, told) in [(7, 1), (8, 0)] {
        let memo = Memo([("Version".to_owned(), vec![40, 900, 800, pid])].into());
        let mut source = CriSource::new(HostRoot::new(dir.path())).knowing(memo);
        assert_eq!(source.look(None, true).await.latency.len(), told, "{pid}");
    }
}

#[tokio::test]
async fn where_images_are_kept_is_asked_for_seldom() {
    let (_dir, socket, mut source) = node();
    let fake = Fake::start(&socket);
    assert_eq!(source.look(None, true).await.image_filesystems, Seen::Yes(vec![]));
    assert_eq!(source.look(None, true).await.image_filesystems, Seen::Yes(vec![]));
    assert_eq!(fake.calls(IMAGE_FS), 1);
    fake.tell(|told| told.images = Some("/var/lib/store".into()));
    // Another connection: the runtime may have been restarted.
    source.connection = None;
    assert_eq!(source.look(None, true).await.image_filesystems, Seen::Yes(vec!["/var/lib/store".to_owned()]));
}

fn linux(network: i32) -> messages::Linux {
    let options = Some(messages::NamespaceOption { network });
    messages::Linux { namespaces: Some(messages::Namespace { options }) }
}

#[tokio::test]
async fn a_sandbox_in_the_nodes_network_has_no_address_of_its_own() {
    let (_dir, socket, mut source) = node();
    let fake = Fake::start(&socket);
    let network = messages::Network { ip: "192.168.0.1".into(), additional_ips: Vec::new() };
    fake.tell(|told| {
        told.sandboxes = sandboxes(1);
        told.network = messages::PodSandboxStatus { network: Some(network), linux: Some(linux(messages::NODE)) };
    });
    let runtime = source.look(None, true).await;
    let sandbox = &runtime.sandboxes.get().expect("a list")[0];
    assert_eq!((sandbox.host_network, sandbox.addresses.len()), (Some(true), 0));
    source.look(None, true).await;
    assert_eq!(fake.calls(networks::SANDBOX), 1);
}

#[tokio::test]
async fn a_sandbox_without_an_address_is_asked_again_but_last() {
    let (_dir, socket, mut source) = node();
    let fake = Fake::start(&socket);
    fake.tell(|told| told.sandboxes = sandboxes(9));
    source.look(None, true).await;
    assert!(!source.networks.contains_key("id-008"));
    source.look(None, true).await;
    assert_eq!(source.networks["id-008"].asked, 1);
}

#[tokio::test]
async fn no_socket_is_only_an_error_where_a_runtime_is_expected() {
    let (_dir, _, mut source) = node();
    let none = source.look(None, false).await;
    assert_eq!((none.socket, none.status, none.sandboxes), (Seen::Absent, Seen::Absent, Seen::Absent));
    let expected = source.look(None, true).await;
    let error = expected.socket.error().expect("missing");
    assert_eq!((error.reason, error.to_string()), (Reason::Missing, format!("{SOCKET}: there is no such socket")));
    assert_eq!(reason(&expected.status), Some(Reason::Missing));
    let told = source.look(Some("unix:///var/x.sock"), true).await;
    assert_eq!(told.socket.error().map(|error| error.what.as_str()), Some("/var/x.sock"));
}

#[tokio::test]
async fn what_is_not_a_socket_is_named() {
    let (_dir, socket, mut source) = node();
    std::fs::create_dir(&socket).expect("mkdir");
    let error = |runtime: Runtime| runtime.socket.error().cloned().expect("not a socket");
    let directory = error(source.look(None, false).await);
    assert_eq!((directory.reason, directory.detail.as_str()), (Reason::WrongKind, "is a directory, not a socket"));
    std::fs::remove_dir(&socket).expect("rmdir");
    std::fs::write(&socket, "").expect("write");
    assert_eq!(error(source.look(None, true).await).detail, "is a regular file, not a socket");
    assert_eq!(error(source.look(Some("tcp://127.0.0.1:1"), true).await).reason, Reason::Unsupported);
}

#[tokio::test]
async fn a_socket_that_nobody_listens_on_is_refused() {
    let (_dir, socket, mut source) = node();
    drop(UnixListener::bind(&socket).expect("bind"));
    let runtime = source.look(None, true).await;
    assert_eq!(runtime.socket, Seen::Yes(SOCKET.to_owned()));
    assert_eq!((reason(&runtime.status), reason(&runtime.sandboxes)), (Some(Reason::Refused), Some(Reason::Refused)));
}

#[tokio::test]
async fn one_that_never_answers_times_out_and_is_asked_anew() {
    let (_dir, socket, mut source) = node();
    let listener = UnixListener::bind(&socket).expect("bind");
    let runtime = source.look(None, true).await;
    assert_eq!(reason(&runtime.status), Some(Reason::TimedOut));
    drop(listener);
    let _fake = Fake::start(&socket);
    assert!(source.look(None, true).await.status.get().is_some());
}

#[tokio::test]
async fn a_full_queue_is_a_hang() {
    let (_dir, socket, mut source) = node();
    let _listener = std::os::unix::net::UnixListener::bind(&socket).expect("bind");
    let mut waiting = Vec::new();
    while let Ok(stream) = tokio::net::UnixStream::connect(&socket).await {
        waiting.push(stream);
        assert!(waiting.len() < 50_000, "the queue has no end");
    }
    assert_eq!(reason(&source.look(None, true).await.status), Some(Reason::TimedOut));
}

#[tokio::test]
async fn a_runtime_without_cri_is_unsupported() {
    let (_dir, socket, mut source) = node();
    let fake = Fake::start(&socket);
    fake.tell(|told| told.unimplemented = true);
    let runtime = source.look(None, true).await;
    let error = runtime.status.error().expect("no CRI");
    assert_eq!(error.reason, Reason::Unsupported);
    assert!(error.detail.contains("unknown service runtime.v1.RuntimeService"), "{error}");
}

#[tokio::test]
async fn something_that_does_not_speak_grpc_fails_at_once() {
    let (_dir, socket, mut source) = node();
    let listener = UnixListener::bind(&socket).expect("bind");
    let server = async {
        use tokio::io::AsyncWriteExt;
        let (mut stream, _) = listener.accept().await.expect("accept");
        stream.write_all(b"HTTP/1.1 400 Bad Request\r\n\r\n").await.expect("write");
        std::future::pending::<()>().await;
    };
    let runtime = tokio::select! { runtime = source.look(None, true) => runtime, () = server => unreachable!() };
    assert_eq!(reason(&runtime.status), Some(Reason::Failed), "{runtime:?}");
}

#[tokio::test]
async fn a_restart_between_looks_is_no_news() {
    let (_dir, socket, mut source) = node();
    let fake = Fake::start(&socket);
    source.look(None, true).await;
    drop(fake);
    let _again = Fake::start(&socket);
    assert!(source.look(None, true).await.status.get().is_some());
}

#[tokio::test]
async fn a_look_that_is_cancelled_leaves_the_source_usable() {
    let (_dir, socket, mut source) = node();
    let listener = UnixListener::bind(&socket).expect("bind");
    timeout(Duration::from_millis(50), source.look(None, true)).await.expect_err("it hangs");
    drop(listener);
    let _fake = Fake::start(&socket);
    assert!(source.look(None, true).await.status.get().is_some());
    timeout(Duration::ZERO, source.look(None, true)).await.ok();
    assert!(source.look(None, true).await.status.get().is_some());
}

#[tokio::test]
async fn a_path_longer_than_a_socket_address_works() {
    let dir = tempfile::tempdir().expect("a temporary directory");
    let root = dir.path().join("long".repeat(40));
    let run = root.join("run/containerd");
    std::fs::create_dir_all(&run).expect("mkdir");
    std::os::unix::fs::symlink(&run, dir.path().join("short")).expect("link");
    let _fake = Fake::start(&dir.path().join("short/containerd.sock"));
    assert!(CriSource::new(HostRoot::new(root)).look(None, true).await.status.get().is_some());
}
