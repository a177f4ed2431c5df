//! The health ports of the node's own components, asked over loopback.

use std::net::{Ipv4Addr, SocketAddr};
use std::time::Duration;

use crate::facts::{Health, HttpAnswer, LookError, Seen};

/// Loopback answers at once or not at all.
const DEADLINE: Duration = Duration::from_secs(2);
/// kube-proxy's `healthzBindAddress` (facts.md D.4).
const KUBE_PROXY: u16 = 10256;
/// Felix's `HealthPort` (facts.md C.1).
const FELIX: u16 = 9099;
/// As much of a body as is kept, in bytes.
const BODY: usize = 512;

/// Asks all ports at once. The kubelet's is absent when it is 0, which switches it off.
pub(crate) async fn look(kubelet_port: u16) -> Health {
    look_at(kubelet_port, KUBE_PROXY, FELIX).await
}

async fn look_at(kubelet_port: u16, kube_proxy_port: u16, felix_port: u16) -> Health {
    let kubelet = async {
        match kubelet_port {
            0 => Seen::Absent,
            port => Seen::from(get(loopback(port), "/healthz", DEADLINE).await),
        }
    };
    let felix = get(loopback(felix_port), "/liveness", DEADLINE);
    let (kubelet, kube_proxy, felix) = futures::join!(kubelet, kube_proxy(kube_proxy_port), felix);
    Health { kubelet, kube_proxy: kube_proxy.map(brief).into(), felix: felix.map(brief).into() }
}

/// What says that it is well says nothing more: kube-proxy tells the time, which would be something new at each look.
fn brief(answer: HttpAnswer) -> HttpAnswer {
    let body = if answer.status == 200 { String::new() } else { answer.body };
    HttpAnswer { body, ..answer }
}

/// `/livez` does not depend on the node being drained, `/healthz` does; kube-proxy before 1.28 has only the latter.
async fn kube_proxy(port: u16) -> Result<HttpAnswer, LookError> {
    match get(loopback(port), "/livez", DEADLINE).await {
        Ok(HttpAnswer { status: 404, .. }) => get(loopback(port), "/healthz", DEADLINE).await,
        result => result,
    }
}

fn loopback(port: u16) -> SocketAddr {
    (Ipv4Addr::LOCALHOST, port).into()
}

async fn get(address: SocketAddr, path: &str, deadline: Duration) -> Result<HttpAnswer, LookError> {
    crate::http::get(address, path, BODY, deadline).await
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::facts::Reason;
    use tokio::io::{AsyncReadExt, AsyncWriteExt};
    use tokio::net::TcpListener;
    use tokio::task::JoinSet;

    /// Answers each connection with what `answer` makes of its request.
    async fn serve(answer: fn(&str) -> String) -> (SocketAddr, JoinSet<()>) {
        let listener = TcpListener::bind("127.0.0.1:0").await.expect("bind");
        let address = listener.local_addr().expect("bound");
        let mut server = JoinSet::new();
        server.spawn(async move {
            loop {
                let (mut stream, _) = listener.accept().await.expect("accept");
                let mut request = vec![0; 4096];
                let length = stream.read(&mut request).await.expect("read");
                let answer = answer(&String::from_utf8_lossy(&request[..length]));
                stream.write_all(answer.as_bytes()).await.ok();
            }
        });
        (address, server)
    }

    async fn reason(address: SocketAddr) -> Reason {
        get(address, "/healthz", DEADLINE).await.expect_err("no answer").reason
    }

    /// A port on which nobody listens.
    async fn free() -> SocketAddr {
        TcpListener::bind("127.0.0.1:0").await.expect("bind").local_addr().expect("bound")
    }

    #[tokio::test]
    async fn every_status_is_an_answer_and_long_bodies_are_cut() {
        let (address, _server) = serve(|request| match request.lines().next() {
            Some("GET /ok HTTP/1.1") => "HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok".to_owned(),
            _ => format!("HTTP/1.1 503 No\r\nContent-Length: 99999\r\n\r\n{}", "x".repeat(2000)),
        })
        .await;
        let ok = get(address, "/ok", DEADLINE).await;
        assert_eq!(ok, Ok(HttpAnswer { status: 200, body: "ok".to_owned() }));
        let bad = get(address, "/", DEADLINE).await.expect("an answer");
        assert_eq!((bad.status, bad.body.len()), (503, BODY));
    }

    #[tokio::test]
    async fn refused_and_timed_out_and_nonsense_are_told_apart() {
        assert_eq!(reason(free().await).await, Reason::Refused);
        let silent = TcpListener::bind("127.0.0.1:0").await.expect("bind");
        assert_eq!(reason(silent.local_addr().expect("bound")).await, Reason::TimedOut);
        let (nonsense, _server) = serve(|_| "\x15\x03\x01 this is TLS\r\n\r\n".to_owned()).await;
        assert_eq!(reason(nonsense).await, Reason::Malformed);
        let (closes, _server) = serve(|_| String::new()).await;
        assert_eq!(reason(closes).await, Reason::Failed);
    }

    #[tokio::test]
    async fn an_old_kube_proxy_is_asked_by_its_other_path() {
        let (address, _server) = serve(|request| {
            let status = if request.starts_with("GET /healthz ") { "200 OK" } else { "404 Not Found" };
            format!("HTTP/1.1 {status}\r\nContent-Length: 0\r\n\r\n")
        })
        .await;
        let health = look_at(0, address.port(), free().await.port()).await;
        assert_eq!(health.kubelet, Seen::Absent);
        assert_eq!(health.kube_proxy.get().map(|answer| answer.status), Some(200));
        assert_eq!(health.felix.error().map(|error| error.reason), Some(Reason::Refused));
    }
}
