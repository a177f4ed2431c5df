//! The health ports of the node's own components, asked over loopback.

use std::net::{Ipv4Addr, SocketAddr};
use std::time::{Duration, Instant};

use crate::facts::{Health, HttpAnswer, LookError, Seen};

/// Loopback answers at once or not at all.
const DEADLINE: Duration = Duration::from_secs(2);
/// kube-proxy's `healthzBindAddress` (facts.md D.4).
const KUBE_PROXY: u16 = 10256;
/// Felix's `HealthPort` (facts.md C.1).
const FELIX: u16 = 9099;
/// As much of a body as is kept, in bytes.
const BODY: usize = 512;
/// kube-proxy's `metricsBindAddress`, and how often it is asked; of the page so much is read, in bytes.
const KUBE_PROXY_METRICS: u16 = 10249;
const COUNTERS: Duration = Duration::from_secs(60);
const PAGE: usize = 1 << 19;
/// `pkg/proxy/metrics/metrics.go`.
const FAILURES: [&str; 2] = [
    "kubeproxy_sync_proxy_rules_iptables_restore_failures_total",
    "kubeproxy_sync_proxy_rules_nftables_sync_failures_total",
];

/// Asks the ports, and kube-proxy's counters now and then.
#[derive(Debug, Default)]
pub(crate) struct HealthSource {
    /// When kube-proxy's counters were asked for, and what they said.
    counted: Option<(Instant, Option<u64>)>,
    failing: u32,
}

impl HealthSource {
    /// Asks all ports at once. The kubelet's is absent when it is 0, which switches it off.
    pub(crate) async fn look(&mut self, kubelet_port: u16) -> Health {
        let mut health = look_at(kubelet_port, KUBE_PROXY, FELIX).await;
        if self.counted.is_none_or(|(at, _)| at.elapsed() >= COUNTERS) {
            let page = crate::http::get(loopback(KUBE_PROXY_METRICS), "/metrics", PAGE, DEADLINE).await;
            self.count(page.ok().map(|answer| failures(&answer.body)));
        }
        health.restores_failing = self.failing;
        health
    }

    fn count(&mut self, now: Option<u64>) {
        let before = self.counted.and_then(|(_, before)| before);
        self.failing = match before.zip(now) {
            Some((before, now)) if now > before => self.failing.saturating_add(1),
            _ => 0,
        };
        self.counted = Some((Instant::now(), now));
    }
}

/// The sum of kube-proxy's counters of changes to the rules that failed, of both families. A partial one that fails is followed by
/// a whole one, and not counted here.
fn failures(page: &str) -> u64 {
    let value = |line: &str| {
        let rest = FAILURES.iter().find_map(|name| line.strip_prefix(name))?;
        let number = rest.starts_with([' ', '{']).then(|| rest.rsplit(' ').next())??;
        #[expect(clippy::cast_possible_truncation, clippy::cast_sign_loss, reason = "a count; what is odd becomes 0")]
        number.parse::<f64>().ok().map(|number| number as u64)
    };
    page.lines().filter_map(value).fold(0, u64::saturating_add)
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
    let (kube_proxy, felix) = (kube_proxy.map(brief).into(), felix.map(brief).into());
    Health { kubelet, kube_proxy, felix, restores_failing: 0 }
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

    #[test]
    fn failures_count_while_they_go_on() {
        let page = |iptables: u64, v6: u64| {
            format!(
                "# TYPE kubeproxy_sync_proxy_rules_iptables_restore_failures_total counter\n\
                 kubeproxy_sync_proxy_rules_iptables_partial_restore_failures_total 7\n\
                 kubeproxy_sync_proxy_rules_iptables_restore_failures_total{{ip_family=\"IPv4\"}} {iptables}\n\
                 kubeproxy_sync_proxy_rules_iptables_restore_failures_total{{ip_family=\"IPv6\"}} {v6}\n\
                 kubeproxy_sync_proxy_rules_nftables_sync_failures_total 1e+01\n\
                 kubeproxy_sync_proxy_rules_iptables_restore_failures_total nonsense\n"
            )
        };
        assert_eq!((failures(&page(2, 3)), failures(""), failures("a\u{ff} 1")), (15, 0, 0));
        let mut source = HealthSource::default();
        let mut after = |now: Option<u64>| {
            source.count(now);
            source.failing
        };
        let seen = [Some(5), Some(6), Some(8), Some(8), Some(9), None, Some(12), Some(0), Some(1)].map(&mut after);
        assert_eq!(seen, [0, 1, 2, 0, 1, 0, 0, 0, 1], "once is no more than a lost race");
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
