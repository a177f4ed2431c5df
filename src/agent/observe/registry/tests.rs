//! Registries that answer, whatever they answer and whoever they are, that hang, break off or are not there.

use super::*;
use crate::agent::observe::servers::{GOOD, api_server, authority, free, serve, server_of};
use crate::facts::{FaultKind, PathEnd, PathStep};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::task::JoinSet;

const NAME: &str = "registry.example";
const NOW: Duration = Duration::from_secs(1_000_000);

fn used() -> ImageHost {
    ImageHost { name: NAME.to_owned(), used: true }
}

fn unused() -> ImageHost {
    ImageHost { used: false, ..used() }
}

/// Answers everybody so, by plain HTTP.
async fn registry(head: &'static str) -> (u16, JoinSet<()>) {
    let (address, server) = serve(move |mut stream| async move {
        let mut request = [0; 1024];
        let length = stream.read(&mut request).await.unwrap_or(0);
        assert!(request[..length].starts_with(b"GET /v2/ HTTP/1.1\r\n"));
        stream.write_all(format!("HTTP/1.1 {head}\r\nContent-Length: 0\r\n\r\n").as_bytes()).await.ok();
    })
    .await;
    (address.port(), server)
}

/// A node whose runtime pulls from this server.
fn node(server: &str) -> (tempfile::TempDir, RegistrySource) {
    let dir = tempfile::tempdir().expect("a temporary directory");
    let own = dir.path().join("etc/containerd/certs.d/registry.example");
    std::fs::create_dir_all(&own).expect("mkdir");
    let text = format!("server = \"{server}\"\n");
    std::fs::write(own.join("hosts.toml"), text).expect("write");
    let source = RegistrySource::new(HostRoot::new(dir.path()), Blocking::default());
    (dir, source)
}

#[tokio::test]
async fn reached_without_credentials_beyond_the_limit_and_gone() {
    let names = [used()];
    for head in ["401 Unauthorized", "403 Forbidden", "429 Too Many Requests", "503 Service Unavailable", "200 OK"] {
        let (port, mut server) = registry(head).await;
        let (_dir, mut source) = node(&format!("http://127.0.0.1:{port}"));
        let seen = source.look(&names, NOW).await.expect("read");
        let status = head[..3].parse().expect("a number");
        assert_eq!((seen[0].reached, seen[0].ways[0].end.clone()), (true, PathEnd::Answered(status)));
        assert_eq!(RegistrySource::wait(&seen), AGAIN[1]);
        server.shutdown().await;
        let seen = source.look(&names, NOW).await.expect("read");
        let fault = seen[0].ways[0].fault().expect("gone");
        assert_eq!((seen[0].reached, fault.step, fault.kind), (true, PathStep::Connect, FaultKind::Refused));
        assert_eq!(RegistrySource::wait(&seen), AGAIN[0]);
        assert_eq!(source.look(&[], NOW).await, Ok(vec![]));
        assert!(!source.look(&names, NOW).await.expect("read")[0].reached, "forgotten with its last image");
    }
}

#[tokio::test]
async fn one_that_no_container_uses_any_more_is_missed_for_a_day() {
    let (port, mut server) = registry("401 Unauthorized").await;
    let (_dir, mut source) = node(&format!("http://127.0.0.1:{port}"));
    let mut reached = async |host: ImageHost, hours: u64| {
        let seen = source.look(&[host], NOW + Duration::from_secs(hours * 3600)).await.expect("read").remove(0);
        (seen.reached, seen.unused)
    };
    assert_eq!(reached(unused(), 0).await, (true, true));
    // However long it is not used, it is known as long as it can be reached: a new Pod may want an image of it.
    assert_eq!(reached(unused(), 240).await, (true, true));
    server.shutdown().await;
    assert_eq!(reached(unused(), 241).await, (true, true), "what a new Pod wants cannot be pulled");
    assert_eq!(reached(unused(), 264).await, (true, true));
    assert_eq!(reached(used(), 265).await, (true, false), "one is used again");
    assert_eq!(reached(unused(), 266).await, (true, true), "the day begins anew");
    assert_eq!(reached(unused(), 289).await, (true, true));
    assert_eq!(reached(unused(), 290).await, (false, true), "it is given up");
    assert_eq!(reached(used(), 291).await, (false, false), "from then on it has to be reached again first");
}

#[tokio::test]
async fn one_that_was_never_reached() {
    let port = free().await.port();
    let (_dir, mut source) = node(&format!("http://127.0.0.1:{port}"));
    let seen = source.look(&[used()], NOW).await.expect("read");
    assert!(!seen[0].reached && !Registry::leads(&seen[0].ways[0]), "{seen:?}");
    assert_eq!(RegistrySource::wait(&seen), AGAIN[1]);
}

#[tokio::test]
async fn one_that_an_earlier_process_reached_is_missed() {
    let port = free().await.port();
    let (_dir, source) = node(&format!("http://127.0.0.1:{port}"));
    let mut source = source.knowing([NAME.to_owned()].into());
    let seen = source.look(&[used()], NOW).await.expect("read");
    assert!(seen[0].reached && !Registry::leads(&seen[0].ways[0]), "{seen:?}");
    assert_eq!(RegistrySource::wait(&seen), AGAIN[0]);
}

/// How the only way to the only registry ends.
async fn end(source: &mut RegistrySource) -> PathEnd {
    let seen = source.look(&[used()], NOW).await.expect("read");
    seen[0].ways[0].end.clone()
}

#[tokio::test]
async fn whose_certificate_it_is_the_runtime_decides() {
    let ca = authority();
    for acceptor in [
        server_of(&ca, "127.0.0.1", GOOD),
        server_of(&ca, "127.0.0.1", [2000, 2001]),
        server_of(&ca, "127.0.0.1", [2090, 2100]),
        server_of(&authority(), "127.0.0.7", GOOD),
    ] {
        let mut registry = api_server(acceptor, "401 Unauthorized").await;
        let (_dir, mut source) = node(&format!("https://{}", registry.address));
        assert_eq!(end(&mut source).await, PathEnd::Answered(401));
        let asked = registry.requests.recv().await.expect("it was asked");
        assert!(asked.starts_with("GET /v2/ HTTP/1.1\r\n") && !asked.contains("uthorization:"), "{asked}");
    }
}

#[tokio::test]
async fn a_clock_that_is_off_is_no_matter_of_registries() {
    let date = (jiff::Timestamp::now() - jiff::SignedDuration::from_mins(7)).strftime("%a, %d %b %Y %H:%M:%S GMT");
    let head: &'static str = String::leak(format!("200 OK\r\nDate: {date}"));
    let registry = api_server(server_of(&authority(), "127.0.0.1", GOOD), head).await;
    let (_dir, mut source) = node(&format!("https://{}", registry.address));
    let seen = source.look(&[used()], NOW).await.expect("read");
    assert_eq!((seen[0].reached, seen[0].ways[0].clock_ahead), (true, None));
}

#[tokio::test]
async fn one_that_stalls_after_the_hello_and_one_that_breaks_off() {
    let fault = |end: PathEnd| match end {
        PathEnd::Fault(fault) => (fault.step, fault.kind),
        other => panic!("a fault, not {other:?}"),
    };
    let (address, mut server) = serve(|mut stream| async move {
        // Whoever it is waits until it is left alone, which must happen.
        while let Ok(1..) = stream.read(&mut [0; 1024]).await {}
    })
    .await;
    let (_dir, mut source) = node(&format!("https://{address}"));
    assert_eq!(fault(end(&mut source).await), (PathStep::Tls, FaultKind::TimedOut));
    server.shutdown().await;
    assert_eq!(fault(end(&mut source).await), (PathStep::Connect, FaultKind::Refused));
    let (address, _server) = serve(|mut stream| async move {
        // With unread bytes in its buffer the kernel resets instead of closing.
        stream.read_exact(&mut [0; 1]).await.ok();
    })
    .await;
    let (_dir, mut source) = node(&format!("https://{address}"));
    assert_eq!(fault(end(&mut source).await), (PathStep::Tls, FaultKind::Reset));
}
