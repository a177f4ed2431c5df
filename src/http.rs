//! A small HTTP/1.1 server for the pages of the agent and the aggregator: few connections, short patience.

mod client;
mod live;

use std::convert::Infallible;
use std::mem::take;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll, ready};
use std::time::Duration;

use bytes::Bytes;
use http::header::{
    ALLOW, CACHE_CONTROL, CONTENT_SECURITY_POLICY, CONTENT_TYPE, ETAG, HeaderValue, IF_NONE_MATCH, REFERRER_POLICY,
    X_CONTENT_TYPE_OPTIONS,
};
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

pub(crate) use client::get;
pub(crate) use live::Live;
use live::{Events, events};

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
/// What a page may load and do: only what comes from where it came from, and nothing that stands in the page itself, so
/// that a name or a message in it can never run.
const POLICY: &str = "default-src 'none'; script-src 'self'; style-src 'self'; connect-src 'self'; img-src 'self'; \
                      base-uri 'none'; form-action 'none'; frame-ancestors 'none'";
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

    /// A stream of events; none where [`Pages::get`] answers, or too many listen already. Must not block.
    fn live(&self, _path: &str) -> Option<Live> {
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

/// What is sent: two parts, or events as they happen.
enum Answer {
    Parts([Bytes; 2]),
    Events(Events),
}

impl Body for Answer {
    type Data = Bytes;
    type Error = Infallible;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, Infallible>>> {
        let part = match &mut *self {
            Answer::Parts(parts) => parts.iter_mut().find(|part| !part.is_empty()).map(take),
            Answer::Events(events) => ready!(events.as_mut().poll_next(context)),
        };
        Poll::Ready(part.map(|part| Ok(Frame::data(part))))
    }

    fn is_end_stream(&self) -> bool {
        matches!(self, Answer::Parts(parts) if parts.iter().all(Bytes::is_empty))
    }

    fn size_hint(&self) -> SizeHint {
        match self {
            Answer::Parts(parts) => SizeHint::with_exact(parts.iter().map(|part| part.len() as u64).sum()),
            Answer::Events(_) => SizeHint::default(),
        }
    }
}

fn answer<P: Pages>(pages: &P, request: &Request<Incoming>) -> Response<Answer> {
    let (path, query) = (request.uri().path(), request.uri().query().unwrap_or_default());
    let get = *request.method() == Method::GET;
    let mut response = if !get && *request.method() != Method::HEAD {
        let mut response = answer_page(Page::text(405, "only GET and HEAD\n"));
        response.headers_mut().insert(ALLOW, HeaderValue::from_static("GET, HEAD"));
        response
    } else if let Some(live) = get.then(|| pages.live(path)).flatten() {
        answer_live(live)
    } else if let Some(shared) = pages.shared(path, query) {
        answer_shared(shared, request)
    } else {
        answer_page(pages.get(path, query))
    };
    let headers = response.headers_mut();
    headers.insert(X_CONTENT_TYPE_OPTIONS, HeaderValue::from_static("nosniff"));
    response
}

fn answer_page(page: Page) -> Response<Answer> {
    let mut response = Response::new(Answer::Parts([Bytes::from(page.body), Bytes::new()]));
    *response.status_mut() = StatusCode::from_u16(page.status).unwrap_or(StatusCode::INTERNAL_SERVER_ERROR);
    let headers = response.headers_mut();
    headers.insert(CONTENT_TYPE, HeaderValue::from_static(page.content_type));
    headers.insert(CACHE_CONTROL, HeaderValue::from_static("no-store"));
    if page.content_type.starts_with("text/html") {
        headers.insert(CONTENT_SECURITY_POLICY, HeaderValue::from_static(POLICY));
        headers.insert(REFERRER_POLICY, HeaderValue::from_static("no-referrer"));
    }
    response
}

fn answer_live(live: Live) -> Response<Answer> {
    let mut response = Response::new(Answer::Events(events(live)));
    let headers = response.headers_mut();
    headers.insert(CONTENT_TYPE, HeaderValue::from_static("text/event-stream"));
    headers.insert(CACHE_CONTROL, HeaderValue::from_static("no-store"));
    response
}

fn answer_shared(shared: Shared, request: &Request<Incoming>) -> Response<Answer> {
    let known = request.headers().get_all(IF_NONE_MATCH).iter().any(|known| known == shared.etag.as_str());
    let parts = if known { [Bytes::new(), Bytes::new()] } else { [Bytes::from(shared.head), shared.rest] };
    let mut response = Response::new(Answer::Parts(parts));
    if known {
        *response.status_mut() = StatusCode::NOT_MODIFIED;
    } else {
        response.headers_mut().insert(CONTENT_TYPE, HeaderValue::from_static("application/json"));
    }
    if let Ok(etag) = HeaderValue::try_from(shared.etag) {
        response.headers_mut().insert(ETAG, etag);
        response.headers_mut().insert(CACHE_CONTROL, HeaderValue::from_static("no-cache"));
    }
    response
}

#[cfg(test)]
mod tests;
