//! A small HTTP/1.1 server for the pages of the agent and the aggregator: few connections, short patience.

use std::convert::Infallible;
use std::mem::take;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};
use std::time::Duration;

use bytes::Bytes;
use http::header::{ALLOW, CACHE_CONTROL, CONTENT_TYPE, ETAG, HeaderValue, IF_NONE_MATCH};
use http::{Method, Request, Response, StatusCode};
use hyper::body::{Body, Frame, Incoming, SizeHint};
use hyper::server::conn::http1;
use hyper::service::service_fn;
use hyper_util::rt::{TokioIo, TokioTimer};
use prometheus_client::encoding::text::encode;
use prometheus_client::registry::Registry;
use serde::Serialize;
use tokio::net::{TcpListener, TcpStream};
use tokio::task::JoinSet;

/// Connections at once, where the caller does not say.
const AT_MOST: usize = 8;
/// A request's head has to arrive within this time. hyper counts it while a kept-alive connection is idle as well, so
/// it is also the longest that a silent client holds one of the few connections.
const HEAD_WITHIN: Duration = Duration::from_secs(5);
/// A connection is closed after this time, at the end of the answer that is under way.
const CONNECTION_LIVES: Duration = Duration::from_secs(30);
/// And dropped after this much longer: a client that does not read its answer holds a connection no longer.
const LAST_ANSWER_WITHIN: Duration = Duration::from_secs(10);
/// Request heads and write buffers are no larger than this. hyper wants at least 8 KiB.
const BUFFER: usize = 16 * 1024;
/// Between two tries to accept, when accepting fails (out of file descriptors).
const ACCEPT_AGAIN: Duration = Duration::from_millis(250);

/// What a GET answers.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Page {
    /// Status code.
    pub(crate) status: u16,
    /// Content type.
    pub(crate) content_type: &'static str,
    /// Body.
    pub(crate) body: Vec<u8>,
}

/// The Prometheus text format, which every scraper reads.
const METRICS: &str = "text/plain; version=0.0.4; charset=utf-8";

impl Page {
    /// Plain text.
    pub(crate) fn text(status: u16, text: impl Into<String>) -> Page {
        Page { status, content_type: "text/plain; charset=utf-8", body: text.into().into_bytes() }
    }

    /// Metrics, in the Prometheus text format.
    pub(crate) fn metrics(registry: &Registry) -> Page {
        let mut text = String::new();
        match encode(&mut text, registry) {
            Ok(()) => Page { status: 200, content_type: METRICS, body: prometheus_text(&text).into_bytes() },
            Err(error) => Page::text(500, format!("cannot write the metrics: {error}\n")),
        }
    }

    /// JSON. What cannot be written as JSON is an error of ours, and said as one.
    pub(crate) fn json<T: Serialize + ?Sized>(status: u16, value: &T) -> Page {
        match serde_json::to_vec(value) {
            Ok(body) => Page { status, content_type: "application/json", body },
            Err(error) => Page::text(500, format!("cannot write the answer as JSON: {error}\n")),
        }
    }

    /// No such page.
    pub(crate) fn not_found() -> Page {
        Page::text(404, "no such page\n")
    }
}

/// JSON that changes seldom and is large: clients are told when they have it already, and all answers share it.
#[derive(Debug, Clone)]
pub(crate) struct Shared {
    /// Tells one content from another, in quotes.
    pub(crate) etag: String,
    /// What is before it, for this client only.
    pub(crate) head: Vec<u8>,
    /// What all clients get.
    pub(crate) rest: Bytes,
}

/// From OpenMetrics, which `prometheus-client` writes, to the Prometheus text format: there a counter is called what its
/// samples are called, and nothing marks the end.
fn prometheus_text(open_metrics: &str) -> String {
    let mut text = String::with_capacity(open_metrics.len() + 256);
    let counters: Vec<&str> =
        open_metrics.lines().filter_map(|line| line.strip_prefix("# TYPE ")?.strip_suffix(" counter")).collect();
    for line in open_metrics.lines().filter(|line| *line != "# EOF" && !line.starts_with("# UNIT ")) {
        let described = line
            .strip_prefix("# ")
            .and_then(|comment| comment.split(' ').nth(1))
            .filter(|name| counters.contains(name));
        match described {
            Some(name) => text.push_str(&line.replacen(name, &format!("{name}_total"), 1)),
            None => text.push_str(line),
        }
        text.push('\n');
    }
    text
}

/// What is served.
pub(crate) trait Pages: Send + Sync + 'static {
    /// The page at `path`; `query` is what follows the question mark, as it was sent. Must not block.
    fn get(&self, path: &str, query: &str) -> Page;

    /// The same for pages that are shared; none where [`Pages::get`] answers. Must not block.
    fn shared(&self, _path: &str, _query: &str) -> Option<Shared> {
        None
    }
}

/// Serves pages on at most eight connections at once, until the future is dropped.
pub(crate) async fn serve<P: Pages>(listener: TcpListener, pages: Arc<P>) -> Infallible {
    serve_at_most(AT_MOST, listener, pages).await
}

/// Serves pages on at most `connections` at once, until the future is dropped. Further clients wait in the kernel's queue.
pub(crate) async fn serve_at_most<P: Pages>(connections: usize, listener: TcpListener, pages: Arc<P>) -> Infallible {
    let mut open = JoinSet::new();
    loop {
        tokio::select! {
            Some(ended) = open.join_next() => {
                if let Err(error) = ended {
                    tracing::error!(%error, "a page failed");
                }
            }
            accepted = listener.accept(), if open.len() < connections.max(1) => match accepted {
                Ok((stream, _)) => {
                    open.spawn(connection(stream, Arc::clone(&pages)));
                }
                Err(error) => {
                    tracing::warn!(%error, "cannot accept a connection");
                    tokio::time::sleep(ACCEPT_AGAIN).await;
                }
            },
        }
    }
}

async fn connection<P: Pages>(stream: TcpStream, pages: Arc<P>) {
    let service = service_fn(move |request: Request<Incoming>| {
        let response = answer(pages.as_ref(), &request);
        async move { Ok::<_, Infallible>(response) }
    });
    let connection = http1::Builder::new()
        .timer(TokioTimer::new())
        .header_read_timeout(HEAD_WITHIN)
        .max_buf_size(BUFFER)
        .serve_connection(TokioIo::new(stream), service);
    let mut connection = std::pin::pin!(connection);
    let ended = tokio::select! {
        ended = connection.as_mut() => ended,
        () = tokio::time::sleep(CONNECTION_LIVES) => {
            connection.as_mut().graceful_shutdown();
            match tokio::time::timeout(LAST_ANSWER_WITHIN, connection).await {
                Ok(ended) => ended,
                Err(_) => return,
            }
        }
    };
    if let Err(error) = ended {
        // A client that hangs up, is slow or talks nonsense is its own affair.
        tracing::debug!(%error, "connection ended");
    }
}

/// A body of two parts.
struct Parts([Bytes; 2]);

impl Body for Parts {
    type Data = Bytes;
    type Error = Infallible;

    fn poll_frame(mut self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, Infallible>>> {
        let part = self.0.iter_mut().find(|part| !part.is_empty());
        Poll::Ready(part.map(|part| Ok(Frame::data(take(part)))))
    }

    fn is_end_stream(&self) -> bool {
        self.0.iter().all(Bytes::is_empty)
    }

    fn size_hint(&self) -> SizeHint {
        SizeHint::with_exact(self.0.iter().map(|part| part.len() as u64).sum())
    }
}

fn answer<P: Pages>(pages: &P, request: &Request<Incoming>) -> Response<Parts> {
    let allowed = matches!(*request.method(), Method::GET | Method::HEAD);
    let (path, query) = (request.uri().path(), request.uri().query().unwrap_or_default());
    if let Some(shared) = allowed.then(|| pages.shared(path, query)).flatten() {
        return answer_shared(shared, request);
    }
    let page = if allowed { pages.get(path, query) } else { Page::text(405, "only GET and HEAD\n") };
    let mut response = Response::new(Parts([Bytes::from(page.body), Bytes::new()]));
    *response.status_mut() = StatusCode::from_u16(page.status).unwrap_or(StatusCode::INTERNAL_SERVER_ERROR);
    let headers = response.headers_mut();
    headers.insert(CONTENT_TYPE, HeaderValue::from_static(page.content_type));
    headers.insert(CACHE_CONTROL, HeaderValue::from_static("no-store"));
    if !allowed {
        headers.insert(ALLOW, HeaderValue::from_static("GET, HEAD"));
    }
    response
}

fn answer_shared(shared: Shared, request: &Request<Incoming>) -> Response<Parts> {
    let known = request.headers().get_all(IF_NONE_MATCH).iter().any(|known| known == shared.etag.as_str());
    let parts = if known { [Bytes::new(), Bytes::new()] } else { [Bytes::from(shared.head), shared.rest] };
    let mut response = Response::new(Parts(parts));
    if known {
        *response.status_mut() = StatusCode::NOT_MODIFIED;
    } else {
        response.headers_mut().insert(CONTENT_TYPE, HeaderValue::from_static("application/json"));
    }
    if let Ok(etag) = HeaderValue::try_from(shared.etag) {
        response.headers_mut().insert(ETAG, etag);
    }
    response
}

#[cfg(test)]
mod tests {
    use std::net::SocketAddr;

    use tokio::io::{AsyncReadExt, AsyncWriteExt};

    use super::*;

    struct Echo;

    impl Pages for Echo {
        fn get(&self, path: &str, query: &str) -> Page {
            match path {
                "/json" => Page::json(200, &[1, 2]),
                "/panic" => panic!("a page that panics"),
                "/big" => Page::text(200, "x".repeat(16 << 20)),
                "/echo" => Page::text(200, format!("query={query}")),
                _ => Page::not_found(),
            }
        }

        fn shared(&self, path: &str, query: &str) -> Option<Shared> {
            let rest = Bytes::from_static(b"shared");
            (path == "/shared").then(|| Shared { etag: "\"e1\"".into(), head: query.into(), rest })
        }
    }

    async fn server(connections: usize) -> SocketAddr {
        let listener = TcpListener::bind("127.0.0.1:0").await.expect("loopback");
        let address = listener.local_addr().expect("bound");
        tokio::spawn(serve_at_most(connections, listener, Arc::new(Echo)));
        address
    }

    /// Sends `request` and reads until the server closes.
    async fn ask(address: SocketAddr, request: &str) -> String {
        let mut stream = TcpStream::connect(address).await.expect("connects");
        stream.write_all(request.as_bytes()).await.expect("writes");
        let mut answer = Vec::new();
        let _ = tokio::time::timeout(Duration::from_secs(20), stream.read_to_end(&mut answer))
            .await
            .expect("closes in time");
        String::from_utf8_lossy(&answer).into_owned()
    }

    async fn get(address: SocketAddr, path: &str) -> String {
        ask(address, &format!("GET {path} HTTP/1.1\r\nHost: a\r\nConnection: close\r\n\r\n")).await
    }

    #[test]
    fn metrics_are_written_as_prometheus_reads_them() {
        let mut registry = Registry::default();
        let counter: prometheus_client::metrics::counter::Counter =
            prometheus_client::metrics::counter::Counter::default();
        registry.register("a_b", "Help of a_b", counter);
        let page = Page::metrics(&registry);
        assert_eq!(
            String::from_utf8_lossy(&page.body),
            "# HELP a_b_total Help of a_b.\n# TYPE a_b_total counter\na_b_total 0\n"
        );
    }

    #[tokio::test]
    async fn pages_are_found_by_path() {
        let address = server(8).await;
        let answer = get(address, "/echo?node=a%20b").await;
        assert!(answer.starts_with("HTTP/1.1 200 OK\r\n"), "{answer}");
        assert!(answer.ends_with("\r\n\r\nquery=node=a%20b"), "{answer}");
        let answer = get(address, "/json").await;
        assert!(answer.contains("content-type: application/json\r\n") && answer.ends_with("[1,2]"), "{answer}");
        assert!(get(address, "/nothing").await.starts_with("HTTP/1.1 404 "));
    }

    #[tokio::test]
    async fn what_a_client_has_is_not_sent_again() {
        let address = server(8).await;
        let answer = get(address, "/shared?own-").await;
        assert!(answer.contains("etag: \"e1\"\r\n") && answer.contains("content-length: 10\r\n"), "{answer}");
        assert!(answer.ends_with("\r\n\r\nown-shared"), "{answer}");
        let answer = get(address, "/shared").await;
        assert!(answer.ends_with("\r\n\r\nshared"), "{answer}");
        for (known, status) in [("\"e1\"", "304"), ("\"e2\"", "200")] {
            let request =
                format!("GET /shared HTTP/1.1\r\nHost: a\r\nIf-None-Match: {known}\r\nConnection: close\r\n\r\n");
            let answer = ask(address, &request).await;
            assert!(answer.starts_with(&format!("HTTP/1.1 {status} ")), "{answer}");
            assert_eq!(answer.ends_with("shared"), status == "200", "{answer}");
        }
    }

    #[tokio::test]
    async fn only_get_and_head_are_answered() {
        let address = server(8).await;
        let head = ask(address, "HEAD /json HTTP/1.1\r\nHost: a\r\nConnection: close\r\n\r\n").await;
        assert!(head.starts_with("HTTP/1.1 200 ") && head.ends_with("\r\n\r\n"), "{head}");
        let post =
            ask(address, "POST /json HTTP/1.1\r\nHost: a\r\nConnection: close\r\nContent-Length: 5\r\n\r\nhello").await;
        assert!(post.starts_with("HTTP/1.1 405 ") && post.contains("allow: GET, HEAD\r\n"), "{post}");
    }

    #[tokio::test]
    async fn garbage_and_panics_cost_their_own_connection() {
        let address = server(2).await;
        for _ in 0..4 {
            assert!(!ask(address, "\x16\x03\x01 no http\r\n\r\n").await.contains(" 200 "));
            assert!(!get(address, "/panic").await.contains(" 200 "));
            assert!(!ask(address, &format!("GET /{} HTTP/1.1\r\n\r\n", "x".repeat(40_000))).await.contains(" 200 "));
        }
        assert!(get(address, "/json").await.contains(" 200 "));
    }

    #[tokio::test]
    async fn slow_and_silent_clients_are_cut_off_and_others_wait_for_their_turn() {
        let address = server(2).await;
        let mut silent = TcpStream::connect(address).await.expect("connects");
        let mut slow = TcpStream::connect(address).await.expect("connects");
        slow.write_all(b"GET /json HTTP/1.1\r\nHos").await.expect("writes");
        tokio::time::sleep(Duration::from_millis(200)).await;
        // Both connections are taken: this one waits, and is answered once they are cut off.
        let begun = std::time::Instant::now();
        assert!(get(address, "/json").await.contains(" 200 "));
        assert!(begun.elapsed() > Duration::from_secs(3), "{:?}", begun.elapsed());
        for stream in [&mut silent, &mut slow] {
            let mut rest = Vec::new();
            let read = tokio::time::timeout(Duration::from_secs(5), stream.read_to_end(&mut rest)).await;
            assert!(read.is_ok(), "still open");
        }
    }

    #[tokio::test]
    async fn a_connection_is_used_again() {
        let address = server(1).await;
        let mut stream = TcpStream::connect(address).await.expect("connects");
        for _ in 0..3 {
            stream.write_all(b"GET /json HTTP/1.1\r\nHost: a\r\n\r\n").await.expect("writes");
            let mut buffer = [0; 4096];
            let mut answer = Vec::new();
            while !answer.ends_with(b"[1,2]") {
                let read = stream.read(&mut buffer).await.expect("reads");
                assert_ne!(read, 0, "closed");
                answer.extend_from_slice(&buffer[..read]);
            }
        }
    }
}
