//! The server as clients see it: well-behaved, slow, silent and nonsensical ones.

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
    let _ =
        tokio::time::timeout(Duration::from_secs(20), stream.read_to_end(&mut answer)).await.expect("closes in time");
    String::from_utf8_lossy(&answer).into_owned()
}

async fn get(address: SocketAddr, path: &str) -> String {
    ask(address, &format!("GET {path} HTTP/1.1\r\nHost: a\r\nConnection: close\r\n\r\n")).await
}

#[test]
fn metrics_are_written_as_prometheus_reads_them() {
    let mut registry = Registry::default();
    let counter: prometheus_client::metrics::counter::Counter = prometheus_client::metrics::counter::Counter::default();
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
        let request = format!("GET /shared HTTP/1.1\r\nHost: a\r\nIf-None-Match: {known}\r\nConnection: close\r\n\r\n");
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
