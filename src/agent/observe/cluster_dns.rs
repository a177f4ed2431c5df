//! The cluster's DNS, asked from the node itself: one question over UDP and one over TCP to the Service address, seldom.
//!
//! Any answer shows that the way leads to somebody who answers, be it that there is no such name. The name is one that the cluster's
//! DNS knows by itself, so that nobody outside is asked: that the server has failed, it says of such a name only while it knows nothing
//! of the cluster, and that is told beside. Each try has a socket of its own: a flow that
//! the kernel tracks goes on to the Pod that it was led to, while new ones may go nowhere.

mod message;

use std::collections::BTreeSet;
use std::hash::{BuildHasher as _, RandomState};
use std::net::{Ipv4Addr, Ipv6Addr, SocketAddr};
use std::time::Duration;

use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::{TcpSocket, UdpSocket};
use tokio::time::timeout;

use super::probe::{broken, route};
use crate::facts::{ClusterDns, DnsService, DnsWay, FaultKind, LookError, PathFault, PathStep};

#[cfg(any(test, fuzzing))]
pub(crate) use message::fuzz;

/// An answer takes milliseconds; so long for each step of a try.
const ANSWER: Duration = Duration::from_millis(1500);
/// A datagram that is lost, or one Pod of several that has just died, is no fault.
const TRIES: usize = 2;
/// What the cluster calls itself where the kubelet does not say (kubeadm's default).
const DOMAIN: &str = "cluster.local";
/// The longest datagram that is read, in bytes: no answer to a question without EDNS is longer (RFC 1035, 4.2.1).
const DATAGRAM: usize = 512;

/// Asks the cluster's DNS.
#[derive(Debug, Default)]
pub(crate) struct DnsSource {
    /// Ways on which an answer has come from another node: protocol and address.
    reached: BTreeSet<String>,
}

impl DnsSource {
    /// With those that earlier processes reached.
    pub(crate) fn knowing(reached: BTreeSet<String>) -> Self {
        DnsSource { reached }
    }

    /// Asks by each protocol at once. `own_pod` says whether a Pod behind the Service is on this node; none where that is not
    /// known yet.
    pub(crate) async fn look(
        &mut self,
        service: &DnsService,
        own_pod: Option<bool>,
        domain: Option<&str>,
    ) -> Result<ClusterDns, LookError> {
        let to = SocketAddr::new(service.address, ClusterDns::PORT);
        let question = message::question(&format!("kubernetes.default.svc.{}", domain.unwrap_or(DOMAIN)));
        let asks = |protocol| service.protocols.contains(&protocol);
        let (udp, tcp) =
            futures::join!(tries("UDP", asks("UDP"), to, &question), tries("TCP", asks("TCP"), to, &question));
        let mut ways = Vec::new();
        for (protocol, tried) in [("UDP", udp), ("TCP", tcp)].into_iter().filter(|(protocol, _)| asks(protocol)) {
            let (way, tried) = (ClusterDns::way(protocol, service.address), tried?);
            // Of what it may call itself otherwise others are asked, who may fail.
            let failed = matches!(tried, Ok(Answer::Failed)) && domain.is_some();
            let fault = tried.err();
            if fault.is_none() && own_pod == Some(false) {
                self.reached.insert(way.clone());
            }
            ways.push(DnsWay { protocol: protocol.to_owned(), fault, failed, reached: self.reached.contains(&way) });
        }
        // Another address is another Service.
        let known = ClusterDns::PROTOCOLS.map(|protocol| ClusterDns::way(protocol, service.address));
        self.reached.retain(|way| known.contains(way));
        Ok(ClusterDns { address: service.address, ways, own_pod: own_pod == Some(true) })
    }
}

/// Asks until somebody answers well. Else the answer is that the server has failed, if anybody said so, or why the last try had none.
async fn tries(protocol: &str, wanted: bool, to: SocketAddr, question: &[u8]) -> Tried {
    let mut last = Ok(Answer::Well);
    for _ in (0..TRIES).filter(|_| wanted) {
        if let Err(why) = route(to.ip()) {
            return Ok(Err(why));
        }
        // No other answer on its way can be taken for this one's.
        let id = RandomState::new().hash_one(0).to_be_bytes();
        let id = [id[0], id[1]];
        let tried = if protocol == "UDP" { by_udp(to, id, question).await } else { by_tcp(to, id, question).await };
        match tried? {
            Ok(Answer::Well) => return Ok(Ok(Answer::Well)),
            // Who has answered at all is there.
            Err(_) if matches!(last, Ok(Answer::Failed)) => {}
            // Another Pod may know more.
            other => last = other,
        }
    }
    Ok(last)
}

/// What was answered.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Answer {
    /// Something.
    Well,
    /// That the server has failed.
    Failed,
}

impl Answer {
    fn of(answer: &[u8]) -> Self {
        if message::is_failure(answer) { Answer::Failed } else { Answer::Well }
    }
}

/// What one try came to. The outer error is this process's own: no socket is left.
type Tried = Result<Result<Answer, PathFault>, LookError>;

async fn by_udp(to: SocketAddr, id: [u8; 2], question: &[u8]) -> Tried {
    let any = if to.is_ipv4() { Ipv4Addr::UNSPECIFIED.into() } else { Ipv6Addr::UNSPECIFIED.into() };
    let socket = UdpSocket::bind(SocketAddr::new(any, 0)).await.map_err(|error| no_socket(&error))?;
    let mut strange = false;
    let exchange = async {
        let fault = |error: std::io::Error| broken(PathStep::Dns, &error);
        socket.connect(to).await.map_err(fault)?;
        socket.send(&[&id, question].concat()).await.map_err(fault)?;
        let mut bytes = [0; DATAGRAM];
        loop {
            let length = socket.recv(&mut bytes).await.map_err(fault)?;
            if message::is_answer(&bytes[..length], id) {
                return Ok(Answer::of(&bytes[..length]));
            }
            strange = true;
        }
    };
    let exchanged = timeout(ANSWER, exchange).await;
    Ok(exchanged.unwrap_or_else(|_| Err(if strange { no_dns() } else { late(PathStep::Dns) })))
}

async fn by_tcp(to: SocketAddr, id: [u8; 2], question: &[u8]) -> Tried {
    let socket = if to.is_ipv4() { TcpSocket::new_v4() } else { TcpSocket::new_v6() };
    let socket = socket.map_err(|error| no_socket(&error))?;
    let mut stream = match timeout(ANSWER, socket.connect(to)).await {
        Ok(Ok(stream)) => stream,
        Ok(Err(error)) => return Ok(Err(broken(PathStep::Connect, &error))),
        Err(_) => return Ok(Err(late(PathStep::Connect))),
    };
    let exchange = async {
        let fault = |error: std::io::Error| broken(PathStep::Dns, &error);
        stream.write_all(&message::framed(id, question)).await.map_err(fault)?;
        let mut head = [0; message::FRAMED_HEADER];
        stream.read_exact(&mut head).await.map_err(fault)?;
        if message::is_framed_answer(&head, id) {
            Ok(Answer::of(&head[message::FRAMED_HEADER - message::HEADER..]))
        } else {
            Err(no_dns())
        }
    };
    Ok(timeout(ANSWER, exchange).await.unwrap_or_else(|_| Err(late(PathStep::Dns))))
}

fn no_socket(error: &std::io::Error) -> LookError {
    LookError::io("a socket for a question to the cluster's DNS", error)
}

fn late(step: PathStep) -> PathFault {
    PathFault::new(step, FaultKind::TimedOut, "")
}

fn no_dns() -> PathFault {
    PathFault::new(PathStep::Dns, FaultKind::Failed, "what comes back is no answer of DNS")
}

#[cfg(test)]
mod tests;
