//! Calls of those that write by themselves: an answer of bounded length, and what a server that is overloaded asks for.

use std::time::Duration;

use http_body_util::{BodyExt, Limited};
use hyper::body::Bytes;
use kube::core::Status;

/// Longest answer that is read, in bytes: etcd keeps no object of more than 1.5 MiB by default.
const LONGEST: usize = 8 << 20;
/// Longest wait that a server may ask for, in seconds.
const LONGEST_WAIT: u32 = 300;

/// Sends a request. `Retry-After` is taken over from the header too: an API server that sheds load (429) sends no `Status`.
pub(crate) async fn send(client: &kube::Client, request: http::Request<Vec<u8>>) -> kube::Result<Bytes> {
    let response = client.send(request.map(kube::client::Body::from)).await?;
    let (head, body) = response.into_parts();
    let body = Limited::new(body, LONGEST).collect().await.map_err(kube::Error::Service)?.to_bytes();
    if head.status.is_success() {
        return Ok(body);
    }
    Err(kube::Error::Api(refusal(head.status.as_u16(), &head.headers, &body).boxed()))
}

/// How long the server asks to be left alone (`Retry-After`, `details.retryAfterSeconds`).
pub(crate) fn asked(error: &kube::Error) -> Duration {
    match error {
        kube::Error::Api(status) => {
            let seconds = status.details.as_ref().map_or(0, |details| details.retry_after_seconds);
            Duration::from_secs(u64::from(seconds.min(LONGEST_WAIT)))
        }
        _ => Duration::ZERO,
    }
}

fn refusal(code: u16, headers: &http::HeaderMap, body: &[u8]) -> Status {
    let mut status = serde_json::from_slice::<Status>(body).unwrap_or_else(|_| {
        let text: String = String::from_utf8_lossy(body).trim().chars().take(300).collect();
        Status::failure(&text, "not a Status").with_code(code)
    });
    let after = headers.get(http::header::RETRY_AFTER);
    if let Some(seconds) = after.and_then(|value| value.to_str().ok()?.trim().parse::<u32>().ok()) {
        match &mut status.details {
            Some(details) => details.retry_after_seconds = details.retry_after_seconds.max(seconds),
            none => *none = serde_json::from_value(serde_json::json!({ "retryAfterSeconds": seconds })).ok(),
        }
    }
    status
}

#[cfg(test)]
pub(crate) mod testing {
    use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
    use tokio::net::TcpListener;

    /// A client of a server on loopback that answers every request with this head and body, and closes.
    pub(crate) async fn answered_by(head: &'static str, body: &'static str) -> kube::Client {
        let listener = TcpListener::bind("127.0.0.1:0").await.expect("a port");
        let address = listener.local_addr().expect("an address");
        tokio::spawn(async move {
            while let Ok((mut stream, _)) = listener.accept().await {
                // The whole request is small enough for one read here, and the answer does not depend on it.
                assert!(stream.read(&mut [0; 16384]).await.expect("reads") > 0, "a request");
                let answer =
                    format!("HTTP/1.1 {head}\r\nContent-Length: {}\r\nConnection: close\r\n\r\n{body}", body.len());
                stream.write_all(answer.as_bytes()).await.expect("writes");
            }
        });
        let url = format!("http://{address}").parse().expect("an address");
        super::super::Api::from_config(kube::Config::new(url)).expect("a client").unary
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn retry_after_counts_from_header_and_status() {
        let headers = http::HeaderMap::from_iter([(http::header::RETRY_AFTER, http::HeaderValue::from_static("7"))]);
        let said = |headers: &http::HeaderMap, body: &str| {
            let status = refusal(429, headers, body.as_bytes());
            (status.code, status.message.clone(), asked(&kube::Error::Api(status.boxed())).as_secs())
        };
        let shed = "Too many requests, please try again later.\n";
        assert_eq!(said(&headers, shed), (429, shed.trim().to_owned(), 7));
        let none = http::HeaderMap::new();
        let status = r#"{"kind":"Status","code":429,"message":"m","details":{"retryAfterSeconds":9}}"#;
        assert_eq!(said(&none, status), (429, "m".to_owned(), 9));
        assert_eq!(said(&headers, status).2, 9);
        assert_eq!(said(&none, "<html>").2, 0);
    }

    #[test]
    fn a_wait_that_is_asked_for_has_an_end() {
        let asked = |seconds: u32| {
            let status = serde_json::json!({ "code": 429, "details": { "retryAfterSeconds": seconds } });
            super::asked(&kube::Error::Api(serde_json::from_value(status).expect("a Status")))
        };
        assert_eq!([0, 7, u32::MAX].map(asked), [0, 7, 300].map(Duration::from_secs));
    }

    #[tokio::test]
    async fn what_is_answered_is_handed_on_and_a_refusal_with_its_wait() {
        let get = || http::Request::get("/x").body(Vec::new()).expect("a request");
        let well = testing::answered_by("200 OK", "{}").await;
        assert_eq!(send(&well, get()).await.expect("an answer"), "{}");
        let busy = testing::answered_by("429 Too Many Requests\r\nRetry-After: 7", "Too many requests").await;
        assert_eq!(asked(&send(&busy, get()).await.expect_err("it refuses")), Duration::from_secs(7));
    }
}
