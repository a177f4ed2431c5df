//! A container runtime that answers over CRI what was recorded: Version and Status field by field, and a sandbox for
//! each running pod; or that accepts and never answers, or is gone and leaves its socket behind.

use std::os::unix::net::UnixListener;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex};

use anyhow::{Context, Result};
use bytes::Bytes;
use http_body_util::{BodyExt, StreamBody};
use hyper::body::{Frame, Incoming};
use hyper_util::rt::{TokioExecutor, TokioIo};
use serde::Deserialize;
use tokio::runtime::Handle;
use tokio::task::JoinSet;

use super::files::Recording;

/// A pod as the API had it.
#[derive(Debug, Clone, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Pod {
    pub namespace: String,
    pub name: String,
    pub uid: String,
    pub phase: String,
    pub host_network: bool,
    pub ips: Vec<String>,
    /// Its age.
    pub seconds: i64,
}

/// What the runtime says of where it keeps images. None of it was recorded.
#[derive(Debug, Default)]
pub enum Images {
    #[default]
    Here,
    Nowhere,
    /// The call fails, for this reason.
    Fails(&'static str),
}

/// What the runtime tells.
#[derive(Debug, Default)]
struct Told {
    /// It was stopped: connections are still accepted, by the kernel.
    hung: bool,
    version: Vec<u8>,
    status: Vec<u8>,
    images: Images,
    /// Sandboxes that are ready: id, entry of the list, and status.
    sandboxes: Vec<(String, Vec<u8>, Vec<u8>)>,
}

/// A runtime on a socket. Ends with this value.
pub struct ContainerRuntime {
    told: Arc<Mutex<Told>>,
    tokio: Handle,
    socket: PathBuf,
    /// Who listens, and with it its connections; none while the runtime is dead.
    listener: Mutex<Option<JoinSet<()>>>,
}

impl ContainerRuntime {
    /// Listens; tells nothing yet.
    pub fn start(tokio: &Handle, socket: &Path) -> Result<Self> {
        let runtime = ContainerRuntime {
            told: Arc::default(),
            tokio: tokio.clone(),
            socket: socket.to_owned(),
            listener: Mutex::default(),
        };
        runtime.listen()?;
        Ok(runtime)
    }

    fn listen(&self) -> Result<()> {
        std::fs::remove_file(&self.socket).ok();
        let listener = UnixListener::bind(&self.socket)?;
        listener.set_nonblocking(true)?;
        let _guard = self.tokio.enter();
        let listener = tokio::net::UnixListener::from_std(listener)?;
        let shared = Arc::clone(&self.told);
        let mut task = JoinSet::new();
        task.spawn(async move {
            let mut connections = JoinSet::new();
            while let Ok((stream, _)) = listener.accept().await {
                let told = Arc::clone(&shared);
                connections.spawn(async move {
                    let service = hyper::service::service_fn(move |request| answer(Arc::clone(&told), request));
                    let server = hyper::server::conn::http2::Builder::new(TokioExecutor::new());
                    // The one who asks may go at any time.
                    server.serve_connection(TokioIo::new(stream), service).await.ok();
                });
            }
        });
        *self.listener.lock().expect("not poisoned") = Some(task);
        Ok(())
    }

    /// Tells from now on what was recorded: answers, or curl's exit status 28 for none and 7 for a connection refused.
    pub fn tell(&self, recording: &Recording) -> Result<()> {
        let (version, status) = recording.text("cri.txt")?.split_once("\n\n").context("two calls")?;
        let refused = version.contains(": 000 7 ");
        self.set_pods(&pods(recording)?)?;
        let mut told = self.told.lock().expect("not poisoned");
        told.hung = version.contains(": 000 28 ");
        if !refused && !told.hung {
            told.version = message(version)?;
            told.status = message(status)?;
        }
        drop(told);
        let listens = self.listener.lock().expect("not poisoned").is_some();
        if refused {
            *self.listener.lock().expect("not poisoned") = None;
        } else if !listens {
            self.listen()?;
        }
        Ok(())
    }

    /// It is this runtime from now on, of that version, and says this of itself: why it is not ready, as reason and message, or that
    /// it is.
    pub fn says(&self, [name, version]: [&str; 2], why_not: Option<[&str; 2]>) -> Result<()> {
        let [reason, message] = why_not.unwrap_or_default();
        let ready = u8::from(why_not.is_none());
        let conditions = format!(
            "1 {{\n1 {{\n1: 'RuntimeReady'\n2: {ready}\n3: '{reason}'\n4: '{message}'\n}}\n1 {{\n1: 'NetworkReady'\n2: 1\n}}\n}}"
        );
        let mut told = self.told.lock().expect("not poisoned");
        told.version = encode(&format!("1: '0.1.0'\n2: '{name}'\n3: '{version}'\n4: 'v1'"))?;
        told.status = encode(&conditions)?;
        Ok(())
    }

    /// It says this of where it keeps images, when it is asked the next time.
    pub fn keeps_images(&self, images: Images) {
        self.told.lock().expect("not poisoned").images = images;
    }

    /// Pods that are not among these have ended: a runtime says so before their network is taken away.
    pub fn end_others(&self, pods: &[Pod]) {
        let stays = |uid: &String| pods.iter().any(|pod| pod.uid == *uid);
        self.told.lock().expect("not poisoned").sandboxes.retain(|(uid, ..)| stays(uid));
    }

    /// From now on these pods have sandboxes.
    pub fn set_pods(&self, pods: &[Pod]) -> Result<()> {
        let now = jiff::Timestamp::now().as_nanosecond();
        let running = pods.iter().filter(|pod| pod.phase == "Running");
        let sandboxes = running.map(|pod| {
            let created = now - i128::from(pod.seconds) * 1_000_000_000;
            let Pod { namespace, name, uid, .. } = pod;
            // PodSandbox: id, metadata, created_at; the state SANDBOX_READY is 0.
            let item = format!("1: '{uid}'\n2 {{\n1: '{name}'\n2: '{uid}'\n3: '{namespace}'\n}}\n4: {created}\n");
            // PodSandboxStatus: network, and linux.namespaces.options.network (0 POD, 2 NODE).
            let network = if pod.host_network { 2 } else { 0 };
            let first = pod.ips.first().map(String::as_str).unwrap_or_default();
            let status =
                format!("1 {{\n1: '{uid}'\n5 {{\n1: '{first}'\n}}\n6 {{\n1 {{\n2 {{\n1: {network}\n}}\n}}\n}}\n}}");
            Ok((uid.clone(), encode(&format!("1 {{\n{item}}}"))?, encode(&status)?))
        });
        self.told.lock().expect("not poisoned").sandboxes = sandboxes.collect::<Result<_>>()?;
        Ok(())
    }
}

/// The recorded pods.
pub fn pods(recording: &Recording) -> Result<Vec<Pod>> {
    Ok(serde_json::from_str(recording.text("pods.json")?)?)
}

type Body = StreamBody<futures::stream::Iter<std::vec::IntoIter<Result<Frame<Bytes>, std::convert::Infallible>>>>;

async fn answer(
    told: Arc<Mutex<Told>>,
    request: http::Request<Incoming>,
) -> Result<http::Response<Body>, hyper::Error> {
    let method = request.uri().path().rsplit('/').next().unwrap_or_default().to_owned();
    let asked = request.into_body().collect().await?.to_bytes();
    if told.lock().expect("not poisoned").hung {
        std::future::pending::<()>().await;
    }
    let told = told.lock().expect("not poisoned");
    // 5: NOT_FOUND.
    let (mut code, mut words) = ("5", "");
    let bytes = match method.as_str() {
        "Version" => Some(told.version.clone()),
        "Status" => Some(told.status.clone()),
        "ImageFsInfo" => match told.images {
            // 1 image_filesystems, 2 fs_id, 1 mountpoint.
            Images::Here => encode("1 {\n2 {\n1: '/var/lib/containerd'\n}\n}").ok(),
            Images::Nowhere => Some(Vec::new()),
            Images::Fails(why) => {
                // 2: UNKNOWN, which is what containerd makes of its errors.
                (code, words) = ("2", why);
                None
            }
        },
        // None that have ended.
        "ListContainers" => Some(Vec::new()),
        "ListPodSandbox" => Some(told.sandboxes.iter().flat_map(|(_, item, _)| item.clone()).collect()),
        "PodSandboxStatus" => {
            // Behind the frame's five bytes, field 1: its tag, the length, the id.
            let id = asked.get(7..).unwrap_or_default();
            told.sandboxes.iter().find(|(uid, ..)| uid.as_bytes() == id).map(|(.., status)| status.clone())
        }
        _ => None,
    };
    let mut trailers = http::HeaderMap::new();
    trailers.insert("grpc-status", http::HeaderValue::from_static(if bytes.is_some() { "0" } else { code }));
    trailers.insert("grpc-message", http::HeaderValue::from_static(words));
    let data = bytes.map(|bytes| {
        let length = u32::try_from(bytes.len()).expect("short").to_be_bytes();
        Frame::data([&[0], length.as_slice(), &bytes].concat().into())
    });
    let frames: Vec<_> = data.into_iter().chain([Frame::trailers(trailers)]).map(Ok).collect();
    let body = StreamBody::new(futures::stream::iter(frames));
    Ok(http::Response::builder().header("content-type", "application/grpc").body(body).expect("a valid answer"))
}

/// The message of one recorded call: what follows the line of the gRPC message.
fn message(call: &str) -> Result<Vec<u8>> {
    encode(call.split_once("grpc-message:\n").context("an answer")?.1)
}

/// Protobuf from fields by number: `2: 'text'`, `3: 7`, and `1 {` up to its `}`.
fn encode(text: &str) -> Result<Vec<u8>> {
    let mut open: Vec<(u64, Vec<u8>)> = vec![(0, Vec::new())];
    for line in text.lines().map(str::trim).filter(|line| !line.is_empty()) {
        if line == "}" {
            let (field, inner) = open.pop().context("a brace to close")?;
            bytes_field(&mut open.last_mut().context("a message around it")?.1, field, &inner);
        } else if let Some(field) = line.strip_suffix(" {") {
            open.push((field.parse()?, Vec::new()));
        } else {
            let (field, value) = line.split_once(": ").context("a field")?;
            let (field, out) = (field.parse()?, &mut open.last_mut().context("a message around it")?.1);
            if let Some(text) = value.strip_prefix('\'') {
                bytes_field(out, field, text.trim_end_matches('\'').as_bytes());
            } else {
                varint(out, field << 3);
                varint(out, value.parse()?);
            }
        }
    }
    Ok(open.pop().context("a message")?.1)
}

fn bytes_field(out: &mut Vec<u8>, field: u64, bytes: &[u8]) {
    varint(out, field << 3 | 2);
    varint(out, bytes.len() as u64);
    out.extend_from_slice(bytes);
}

fn varint(out: &mut Vec<u8>, mut value: u64) {
    while value > 127 {
        out.push(u8::try_from(value & 127).expect("seven bits") | 128);
        value >>= 7;
    }
    out.push(u8::try_from(value).expect("seven bits"));
}

#[test]
fn fields_by_number_become_protobuf() {
    let bytes = encode("1 {\n  1: 'ab'\n  2: 300\n}\n").expect("well formed");
    assert_eq!(bytes, [0x0a, 7, 0x0a, 2, b'a', b'b', 0x10, 0xac, 2]);
}
