//! One gRPC connection over a unix socket, without names, balancing or reconnecting: who breaks it is told at once.

use std::os::fd::AsRawFd;
use std::os::unix::fs::FileTypeExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{Duration, Instant};

use http::Uri;
use hyper::body::Incoming;
use hyper::client::conn::http2::{self, SendRequest};
use hyper_util::rt::{TokioExecutor, TokioIo};
use nix::fcntl::{OFlag, open};
use nix::sys::stat::Mode;
use tokio::net::UnixStream;
use tokio::sync::Notify;
use tokio::task::JoinSet;
use tokio::time::timeout;
use tonic::body::Body;
use tonic::client::{Grpc, GrpcService};
use tonic::metadata::MetadataValue;
use tonic::{Code, Request, Status};

use super::super::host_root;
use super::latency::Meter;
use crate::facts::{LookError, Reason};

/// A local socket connects at once or not at all.
const CONNECT: Duration = Duration::from_secs(1);
/// The kubelet's own deadline for these calls is two minutes, that of node-problem-detector is this (facts.md G.5).
pub(super) const CALL: Duration = Duration::from_secs(2);
/// As the kubelet's: lists of a busy node exceed gRPC's default of 4 MiB (`cri-client/pkg/utils.go`). In bytes.
const LARGEST: usize = 16 << 20;
/// Of answers of many messages each one: containerd puts a hundred snapshots into one (`services/snapshots/service.go`). In bytes.
const LARGEST_OF_MANY: usize = 1 << 20;
/// `sun_path` holds 108 bytes, the last of them zero (unix(7)).
const LONGEST_PATH: usize = 107;

/// A connection to a runtime.
#[derive(Debug)]
pub(super) struct Connection {
    socket: String,
    /// Whoever listens on the socket, as this process sees it; none when it is outside of the process namespace.
    pid: Option<i32>,
    meter: Arc<Meter>,
    sender: SendRequest<Body>,
    /// Moves the bytes; ends with this.
    _driver: JoinSet<()>,
}

impl Connection {
    /// Connects to the socket that this process sees at `path` and the node at `socket`. That the other side ends it is told to
    /// `closed`.
    pub(super) async fn open(
        socket: &str,
        path: &Path,
        meter: Arc<Meter>,
        closed: Arc<Notify>,
    ) -> Result<Self, LookError> {
        let stream = match timeout(CONNECT, connect(path)).await {
            Ok(Ok(stream)) => stream,
            Ok(Err(error)) => return Err(refused(socket, &error)),
            Err(_) => return Err(LookError::timed_out(socket, CONNECT.as_secs_f32())),
        };
        let pid = stream.peer_cred().ok().and_then(|peer| peer.pid()).filter(|pid| *pid > 0);
        let (sender, connection) = http2::handshake(TokioExecutor::new(), TokioIo::new(stream))
            .await
            .map_err(|error| LookError::new(socket, Reason::Failed, error.to_string()))?;
        let mut driver = JoinSet::new();
        driver.spawn(async move {
            // Its errors reach the calls that they break.
            connection.await.ok();
            closed.notify_one();
        });
        Ok(Connection { socket: socket.to_owned(), pid, meter, sender, _driver: driver })
    }

    /// The node's path of the socket.
    pub(super) fn socket(&self) -> &str {
        &self.socket
    }

    /// Whoever listens on the socket.
    pub(super) fn pid(&self) -> Option<i32> {
        self.pid
    }

    /// Whether the other side has closed it.
    pub(super) fn is_closed(&self) -> bool {
        self.sender.is_closed()
    }

    /// Calls a method of CRI v1. A call that times out is taken back; the other side may be
    /// stopped, so the connection is better not used again.
    pub(super) async fn call<Q, A>(&self, method: &'static str, request: Q) -> Result<A, LookError>
    where
        Q: prost::Message + 'static,
        A: prost::Message + Default + 'static,
    {
        self.call_within(CALL, method, request).await
    }

    /// The same with another deadline.
    pub(super) async fn call_within<Q, A>(
        &self,
        deadline: Duration,
        method: &'static str,
        request: Q,
    ) -> Result<A, LookError>
    where
        Q: prost::Message + 'static,
        A: prost::Message + Default + 'static,
    {
        let mut client = self.client(LARGEST);
        let path = http::uri::PathAndQuery::from_static(method);
        let codec = tonic_prost::ProstCodec::<Q, A>::default();
        let unary = async { client.unary(Request::new(request), path, codec).await.map(tonic::Response::into_inner) };
        self.wait(deadline, method, unary).await
    }

    /// Calls a method of containerd's own API, in the namespace of Kubernetes, that answers by many messages. Each goes to `take`,
    /// until it has enough.
    pub(super) async fn stream<Q, A>(
        &self,
        method: &'static str,
        request: Q,
        mut take: impl FnMut(A) -> bool,
    ) -> Result<(), LookError>
    where
        Q: prost::Message + 'static,
        A: prost::Message + Default + 'static,
    {
        let mut client = self.client(LARGEST_OF_MANY);
        let path = http::uri::PathAndQuery::from_static(method);
        let codec = tonic_prost::ProstCodec::<Q, A>::default();
        let mut request = Request::new(request);
        request.metadata_mut().insert("containerd-namespace", MetadataValue::from_static("k8s.io"));
        let all = async {
            let mut answers = client.server_streaming(request, path, codec).await?.into_inner();
            while let Some(answer) = answers.message().await? {
                if !take(answer) {
                    break;
                }
            }
            Ok(())
        };
        self.wait(CALL, method, all).await
    }

    fn client(&self, largest: usize) -> Grpc<impl GrpcService<Body, ResponseBody = Incoming, Future: Send> + use<>> {
        let sender = self.sender.clone();
        let service = tower::service_fn(move |request| sender.clone().send_request(request));
        Grpc::with_origin(service, Uri::from_static("http://localhost")).max_decoding_message_size(largest)
    }

    /// Waits for the answer to a call, and notes how long it took.
    async fn wait<A>(
        &self,
        deadline: Duration,
        method: &'static str,
        call: impl Future<Output = Result<A, Status>>,
    ) -> Result<A, LookError> {
        let began = Instant::now();
        let answer = timeout(deadline, call).await;
        self.meter.note(name(method), began.elapsed());
        match answer {
            Ok(Ok(answer)) => Ok(answer),
            Ok(Err(status)) => Err(self.explain(method, &status)),
            Err(_) => {
                let seconds = deadline.as_secs();
                let detail = format!("accepts connections but has not answered {} within {seconds} s", name(method));
                Err(LookError::new(&self.socket, Reason::TimedOut, detail))
            }
        }
    }

    fn explain(&self, method: &'static str, status: &Status) -> LookError {
        let reason = match status.code() {
            Code::Unimplemented => Reason::Unsupported,
            Code::DeadlineExceeded => Reason::TimedOut,
            Code::PermissionDenied | Code::Unauthenticated => Reason::Denied,
            Code::NotFound => Reason::Missing,
            Code::OutOfRange | Code::ResourceExhausted => Reason::Malformed,
            _ => Reason::Failed,
        };
        LookError::new(&self.socket, reason, format!("{}: {}", name(method), status.message()))
    }
}

/// The last part of a method's path.
fn name(method: &'static str) -> &'static str {
    method.rsplit('/').next().unwrap_or(method)
}

/// Connects by whatever path is short enough for a socket address.
pub(in super::super) async fn connect(path: &Path) -> std::io::Result<UnixStream> {
    if path.as_os_str().len() <= LONGEST_PATH {
        return UnixStream::connect(path).await;
    }
    let (Some(directory), Some(file)) = (path.parent(), path.file_name()) else {
        return Err(std::io::ErrorKind::InvalidInput.into());
    };
    // A long path is taken by way of its directory's descriptor, which has a short one.
    let directory = open(directory, OFlag::O_PATH | OFlag::O_CLOEXEC | OFlag::O_DIRECTORY, Mode::empty())?;
    UnixStream::connect(PathBuf::from(format!("/proc/self/fd/{}", directory.as_raw_fd())).join(file)).await
}

/// Why there is no connection.
pub(in super::super) fn refused(socket: &str, error: &std::io::Error) -> LookError {
    match error.kind() {
        std::io::ErrorKind::ConnectionRefused => {
            LookError::new(socket, Reason::Refused, "the socket is there, but nobody listens on it")
        }
        // The queue of connections that were not accepted is full.
        std::io::ErrorKind::WouldBlock => {
            LookError::new(socket, Reason::TimedOut, "accepts no connections: its queue is full")
        }
        _ => LookError::io(socket, error),
    }
}

/// Whether there is a socket at `path`: an error says what there is instead.
pub(in super::super) fn check(socket: &str, path: &Path) -> Result<(), LookError> {
    let about = std::fs::metadata(path).map_err(|error| match error.kind() {
        std::io::ErrorKind::NotFound => LookError::new(socket, Reason::Missing, "there is no such socket"),
        _ => LookError::io(socket, &error),
    })?;
    if about.file_type().is_socket() {
        return Ok(());
    }
    let kind = if about.is_file() { "a regular file" } else { host_root::kind(about.file_type()) };
    Err(LookError::new(socket, Reason::WrongKind, format!("is {kind}, not a socket")))
}
