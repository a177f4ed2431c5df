//! One question by HTTP/1.1 over a connection of its own, and the beginning of the answer.

use std::net::SocketAddr;
use std::time::Duration;

use bytes::Bytes;
use futures::future::BoxFuture;
use http::header::{CONNECTION, HOST, USER_AGENT};
use http_body_util::{BodyExt, Empty};
use hyper::body::Incoming;
use hyper::client::conn::http1;
use hyper_util::rt::TokioIo;
use tokio::net::TcpStream;
use tokio::task::JoinSet;
use tokio::time::timeout;

use crate::facts::{HttpAnswer, LookError, Reason};

/// Asks for a page. Every status is an answer; of its body no more than `longest` bytes are read.
pub(crate) async fn get(
    address: SocketAddr,
    path: &str,
    longest: usize,
    deadline: Duration,
) -> Result<HttpAnswer, LookError> {
    let what = format!("http://{address}{path}");
    // Behind a pointer, so that the client's code is in the program once, and not in everyone who asks.
    let answer: BoxFuture<'_, _> = Box::pin(exchange(address, path, longest, &what));
    match timeout(deadline, answer).await {
        Ok(result) => result,
        Err(_) => Err(LookError::timed_out(what, deadline.as_secs_f32())),
    }
}

async fn exchange(address: SocketAddr, path: &str, longest: usize, what: &str) -> Result<HttpAnswer, LookError> {
    let broken = |error: hyper::Error| {
        let reason = if error.is_parse() { Reason::Malformed } else { Reason::Failed };
        LookError::new(what, reason, format!("connected, but then: {error}"))
    };
    let stream = TcpStream::connect(address).await.map_err(|error| LookError::io(what, &error))?;
    let (mut sender, connection) = http1::handshake(TokioIo::new(stream)).await.map_err(broken)?;
    // Dropping the set closes the connection.
    let mut driver = JoinSet::new();
    driver.spawn(async move {
        // Its errors reach the request that they break.
        connection.await.ok();
    });
    let request = http::Request::get(path)
        .header(HOST, address.to_string())
        .header(USER_AGENT, concat!("nodevitals/", env!("CARGO_PKG_VERSION")))
        .header(CONNECTION, "close")
        .body(Empty::<Bytes>::new())
        .map_err(|error| LookError::new(what, Reason::Failed, error.to_string()))?;
    let response = sender.send_request(request).await.map_err(broken)?;
    let status = response.status().as_u16();
    let body = beginning(response.into_body(), longest).await.map_err(broken)?;
    Ok(HttpAnswer { status, body })
}

/// The first bytes of a body, however long it is.
async fn beginning(mut body: Incoming, longest: usize) -> Result<String, hyper::Error> {
    let mut bytes = Vec::new();
    while bytes.len() < longest
        && let Some(frame) = body.frame().await
    {
        bytes.extend_from_slice(frame?.data_ref().map_or(&[], |data| data));
    }
    bytes.truncate(longest);
    Ok(String::from_utf8_lossy(&bytes).into_owned())
}
