//! A healthy worker whose control plane is behind each bad endpoint that there is: what the program tells of it, root first and
//! nothing else, and that it is over when the server is mended.

use std::net::SocketAddr;
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use jiff::{SignedDuration, Timestamp};
use rcgen::{CertifiedIssuer, KeyPair};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::TcpStream;
use tokio::task::JoinSet;

use super::node::MASTER;
use super::{Expected, NOTHING, Node, codes, judge};
use crate::servers::{GOOD, api_server_at, api_server_saying, authority, listen, serve_at, server_of};
use crate::support::wait::within;

const SERVER: &str = "https://10.77.0.1:6443";
const UNREACHABLE: &str = "MasterUnreachable";
const CLOCK: &str = "ClockSkewed";
const UNAUTHORIZED: &str = "401 Unauthorized";
/// Years in which a certificate was good, or will be.
const EXPIRED: [i32; 2] = [2000, 2025];
const LONG_AGO: [i32; 2] = [2000, 2020];
const FUTURE: [i32; 2] = [2030, 2100];
/// Minutes that make up for [`LONG_AGO`] and [`FUTURE`].
const LATE: i64 = 20 * 365 * 24 * 60;

/// What is at the kubelet's server.
#[derive(Debug, Clone, Copy)]
enum Server {
    /// An API server whose certificate is good in these years and for this name, whose clock is behind by so many minutes, and
    /// that answers so.
    Api { years: [i32; 2], name: &'static str, behind: i64, head: &'static str },
    /// The same of another authority.
    Foreign,
    /// Takes the first message of TLS and answers nothing.
    Stalls,
    /// Breaks TLS off.
    Resets,
    /// Speaks no TLS.
    Plain,
    /// Nobody listens.
    Nobody,
}

const WELL: Server = Server::Api { years: GOOD, name: MASTER, behind: 0, head: UNAUTHORIZED };

const fn answers(head: &'static str) -> Server {
    Server::Api { years: GOOD, name: MASTER, behind: 0, head }
}

const fn clock(years: [i32; 2], behind: i64) -> Server {
    Server::Api { years, name: MASTER, behind, head: UNAUTHORIZED }
}

/// A worker, and the place where its control plane is.
struct Worker {
    node: Node,
    at: SocketAddr,
    authority: CertifiedIssuer<'static, KeyPair>,
    serving: JoinSet<()>,
}

impl Worker {
    fn healthy() -> Result<Self> {
        let mut node = Node::recorded("01-healthy", "before", "n1")?;
        let authority = authority();
        let at = node.over_tls(&authority.pem())?;
        Ok(Worker { node, at, authority, serving: JoinSet::new() })
    }

    /// From now on this is there.
    fn serve(&mut self, server: Server) {
        let mut old = std::mem::take(&mut self.serving);
        self.node.far(old.shutdown());
        let at = self.at.to_string();
        self.serving = match server {
            Server::Api { years, name, behind, head } => {
                let head = move || {
                    let date = Timestamp::now() - SignedDuration::from_mins(behind);
                    format!("{head}\r\nDate: {}", date.strftime("%a, %d %b %Y %H:%M:%S GMT"))
                };
                let acceptor = server_of(&self.authority, name, years);
                self.node.far(api_server_saying(&at, acceptor, head)).server
            }
            Server::Foreign => {
                let acceptor = server_of(&authority(), MASTER, GOOD);
                self.node.far(api_server_at(&at, acceptor, UNAUTHORIZED)).server
            }
            Server::Stalls => {
                let stall =
                    |mut stream: TcpStream| async move { while let Ok(1..) = stream.read(&mut [0; 1024]).await {} };
                self.node.far(serve_at(&at, stall)).1
            }
            Server::Resets => {
                // With unread bytes in its buffer the kernel resets instead of closing.
                let reset = |mut stream: TcpStream| async move { drop(stream.read_exact(&mut [0; 1]).await) };
                self.node.far(serve_at(&at, reset)).1
            }
            Server::Plain => {
                let plain =
                    |mut stream: TcpStream| async move { drop(stream.write_all(b"HTTP/1.1 400 Bad\r\n\r\n").await) };
                self.node.far(serve_at(&at, plain)).1
            }
            Server::Nobody => {
                drop(self.node.far(listen(&at)));
                JoinSet::new()
            }
        };
    }
}

#[test]
fn each_bad_endpoint_is_told_by_its_cause_and_over_when_it_is_mended() -> Result<()> {
    const BY_HAND: &str = "test from the node (`curl -vk https://10.77.0.1:6443/version`)";
    const WHO: &str = "see what answers there (`curl -vk https://10.77.0.1:6443/version`): a balancer or proxy";
    const WHOSE: &str = "see whose certificate it is (`openssl s_client -connect 10.77.0.1:6443";
    const RENEW: &str = "renew the API server's certificate (`openssl s_client -connect 10.77.0.1:6443`";
    const MEND: &str = "look whether the clock is kept (`timedatectl`";
    let named = |name| Server::Api { years: GOOD, name, behind: 0, head: UNAUTHORIZED };
    // Everything that is told, root first, and the root's next step.
    let cases: [(Server, &[Expected], &str); 15] = [
        (
            Server::Stalls,
            &[(UNREACHABLE, "timed out: TCP connects, then TLS stalls after the client's first")],
            BY_HAND,
        ),
        (Server::Resets, &[(UNREACHABLE, "reset: TCP connects, then TLS is broken off: a firewall")], BY_HAND),
        (Server::Plain, &[(UNREACHABLE, "failed: TCP connects, then TLS fails (received corrupt message")], BY_HAND),
        (
            Server::Nobody,
            &[
                (UNREACHABLE, "refused: the other end answers that nobody listens"),
                // The recorded one names the same server.
                ("CniKubeconfigInvalid", "names the server 10.77.0.1:6443, which is not reached from here: refused"),
            ],
            BY_HAND,
        ),
        (Server::Foreign, &[(UNREACHABLE, "certificate: it is of another authority than the kubelet trusts")], WHOSE),
        (named("127.0.0.7"), &[(UNREACHABLE, "certificate: it is for another name than 10.77.0.1")], WHOSE),
        (clock(EXPIRED, 0), &[(UNREACHABLE, "has expired, or this node's clock is wrong: the clocks agree")], RENEW),
        (clock(LONG_AGO, LATE), &[(CLOCK, "days ahead of the control plane's"), (UNREACHABLE, "it has expired")], MEND),
        (clock(FUTURE, -LATE), &[(CLOCK, "days behind the control plane's"), (UNREACHABLE, "is not valid yet")], MEND),
        (clock(GOOD, 5), &[(CLOCK, "This node's clock is 4 min ahead of the control plane's")], MEND),
        (clock(GOOD, -5), &[(CLOCK, "min behind the control plane's (https://10.77.0.1:6443)")], MEND),
        (answers("503 Service Unavailable"), &[(UNREACHABLE, "it answers 503: something in between")], WHO),
        (answers("403 Forbidden"), NOTHING, ""),
        (answers("429 Too Many Requests"), NOTHING, ""),
        (answers(UNAUTHORIZED), NOTHING, ""),
    ];
    let mut worker = Worker::healthy()?;
    for (server, expected, next) in cases {
        worker.serve(server);
        let checked = worker.node.check()?;
        judge(&checked, expected).with_context(|| format!("{server:?}"))?;
        if let Ok(way) = checked.finding(UNREACHABLE) {
            ensure!(way["subject"] == SERVER, "{server:?}: {way}");
        }
        if let Some((root, _)) = expected.first() {
            let said = checked.finding(root)?["next"].to_string();
            ensure!(said.contains(next), "{server:?}: {said}");
            if *root == CLOCK {
                // Which of the two depends on the machine.
                let detail = checked.finding(root)?["detail"].to_string();
                ensure!(detail.contains("; the kernel calls this node's clock "), "{detail}");
            }
        }
        worker.serve(WELL);
        judge(&worker.node.check()?, NOTHING).with_context(|| format!("after {server:?}"))?;
    }
    // Two faults at once, neither of which explains the other.
    worker.serve(clock(EXPIRED, 5));
    let checked = worker.node.check()?;
    ensure!(checked.codes() == [CLOCK, UNREACHABLE], "{:?}", checked.codes());
    let way = checked.finding(UNREACHABLE)?;
    ensure!(way["causedBy"].is_null() && way["next"].to_string().contains(RENEW), "{way}");
    ensure!(way["detail"].to_string().contains("which does not explain it, so it is the certificate"), "{way}");
    Ok(())
}

#[test]
fn a_running_program_tells_of_a_bad_endpoint_and_a_wrong_clock_once_and_clears_both() -> Result<()> {
    let mut worker = Worker::healthy()?;
    worker.serve(WELL);
    worker.node.watch()?;
    // A certificate that only this node's clock takes for expired.
    worker.serve(clock(LONG_AGO, LATE));
    let soon = Duration::from_secs(120);
    let told = within(soon, || {
        let verdict = worker.node.verdict()?;
        ensure!(codes(&verdict["findings"]) == [CLOCK, UNREACHABLE], "{}", verdict["findings"]);
        Ok(verdict)
    })?;
    ensure!(told["findings"][1]["causedBy"]["code"] == CLOCK, "{told:#}");
    worker.serve(WELL);
    within(soon, || {
        let verdict = worker.node.verdict()?;
        ensure!(codes(&verdict["findings"]).is_empty() && verdict["state"] == "Normal", "{}", verdict["findings"]);
        Ok(())
    })?;
    // The way is told after half a minute, the clock after a whole one.
    worker.node.ever_raised_are(&[UNREACHABLE, CLOCK])
}
