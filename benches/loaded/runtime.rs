//! A container runtime that has the node's pods and answers at once, so that their number costs what it costs the agent.

use std::convert::Infallible;
use std::path::Path;
use std::sync::atomic::{AtomicUsize, Ordering};

use anyhow::Result;
use bytes::Bytes;
use http_body_util::{BodyExt as _, StreamBody};
use hyper::body::{Frame, Incoming};
use hyper::service::service_fn;
use hyper_util::rt::{TokioExecutor, TokioIo};

/// How many calls were answered.
pub static CALLS: AtomicUsize = AtomicUsize::new(0);

/// Answers at `socket` until this process ends.
pub fn start(socket: &Path, pods: usize) -> Result<()> {
    let listener = std::os::unix::net::UnixListener::bind(socket)?;
    listener.set_nonblocking(true)?;
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    std::thread::spawn(move || {
        runtime.block_on(async {
            let listener = tokio::net::UnixListener::from_std(listener).expect("a socket");
            while let Ok((stream, _)) = listener.accept().await {
                let service = service_fn(move |request| answer(pods, request));
                let server = hyper::server::conn::http2::Builder::new(TokioExecutor::new());
                tokio::spawn(server.serve_connection(TokioIo::new(stream), service));
            }
        });
    });
    Ok(())
}

type Body = StreamBody<futures::stream::Iter<std::array::IntoIter<Result<Frame<Bytes>, Infallible>, 2>>>;

async fn answer(pods: usize, request: http::Request<Incoming>) -> Result<http::Response<Body>, Infallible> {
    CALLS.fetch_add(1, Ordering::Relaxed);
    let method = request.uri().path().rsplit('/').next().unwrap_or_default().to_owned();
    let asked = request.into_body().collect().await.map(|body| body.to_bytes().to_vec()).unwrap_or_default();
    // The fields are those of `k8s.io/cri-api` `pkg/apis/runtime/v1/api.proto`.
    let message = match method.as_str() {
        "Version" => [text(2, "fake"), text(3, "1")].concat(),
        "Status" => {
            let condition = |kind| bytes(1, &[text(1, kind), vec![2 << 3, 1]].concat());
            bytes(1, &[condition("RuntimeReady"), condition("NetworkReady")].concat())
        }
        "ListPodSandbox" => (0..pods).flat_map(sandbox).collect(),
        _ => {
            let pod: String = asked.iter().map(|byte| char::from(*byte)).filter(char::is_ascii_digit).collect();
            // The number is after the 57 zeros that make the name as long as a real one.
            let pod = pod.trim_start_matches('0').parse().unwrap_or(0_usize);
            let not_of_the_node = bytes(6, &bytes(2, &bytes(2, &[])));
            bytes(1, &[bytes(5, &text(1, &format!("10.200.0.{pod}"))), not_of_the_node].concat())
        }
    };
    let length = u32::try_from(message.len()).unwrap_or(u32::MAX);
    let data = [&[0], length.to_be_bytes().as_slice(), &message].concat();
    let mut trailers = http::HeaderMap::new();
    trailers.insert("grpc-status", http::HeaderValue::from_static("0"));
    let frames = [Ok(Frame::data(data.into())), Ok(Frame::trailers(trailers))];
    let body = StreamBody::new(futures::stream::iter(frames));
    Ok(http::Response::builder().header("content-type", "application/grpc").body(body).expect("a valid answer"))
}

fn sandbox(pod: usize) -> Vec<u8> {
    let metadata = [text(1, &format!("app-{pod}-7d4b9c5f6-x2x4z")), text(3, "team")].concat();
    // Ready is state 0, which protobuf does not write.
    bytes(1, &[text(1, &format!("{pod:064}")), bytes(2, &metadata), vec![4 << 3, 7]].concat())
}

fn text(field: u8, value: &str) -> Vec<u8> {
    bytes(field, value.as_bytes())
}

/// A field with its length, which protobuf writes in pieces of seven bits, the lowest first.
fn bytes(field: u8, value: &[u8]) -> Vec<u8> {
    let mut out = vec![field << 3 | 2];
    let mut rest = value.len();
    while rest > 127 {
        out.push(128 | (rest % 128).to_le_bytes()[0]);
        rest /= 128;
    }
    out.push(rest.to_le_bytes()[0]);
    out.extend_from_slice(value);
    out
}
