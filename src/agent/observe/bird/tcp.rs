//! What the kernel's TCP knows about port 179, from `/proc/net`.

use std::collections::HashMap;
use std::net::IpAddr;
use std::time::{Duration, Instant};

use super::super::blocking::Blocking;
use super::super::host_root::HostRoot;
use super::super::tcp_table::{ESTABLISHED, each_line, ends};
use crate::facts::{BgpTcp, LookError};

/// BGP's port.
const BGP: u16 = 179;
/// States of `net/tcp_states.h`.
const SYN_SENT: u8 = 2;
const SYN_RECV: u8 = 3;
/// BIRD gives up a connection after its retry time (Calico: 3 s) and begins another, whose first second tells nothing.
const SILENT: Duration = Duration::from_secs(15);
/// Growth of the kernel's counters takes two looks; segments are sent again after 1 and 2 s, and BIRD pauses in between.
const GROWTH: Duration = Duration::from_millis(3500);
/// As long as a mismatch counts after a segment was dropped for it: they are sent again after 1, 2, 4, ... 16 s.
const MISMATCH: Duration = Duration::from_secs(30);
/// A table of 50,000 sockets takes a while to print; in time and bytes.
const DEADLINE: Duration = Duration::from_secs(2);
const NETSTAT: u64 = 1 << 16;
/// A table that takes long is read less often, so that this costs half a percent of a CPU at most.
const SHARE: u32 = 200;
const AT_MOST: Duration = Duration::from_secs(10);

/// Counters of segments that were dropped because of a TCP-MD5 signature.
const COUNTERS: [&str; 3] = ["TCPMD5NotFound", "TCPMD5Unexpected", "TCPMD5Failure"];

/// Looks at port 179 while a session is not established.
#[derive(Debug)]
pub(super) struct TcpSource {
    host: HostRoot,
    blocking: Blocking,
    last: Option<(Instant, Result<BgpTcp, LookError>)>,
    took: Duration,
    silent: HashMap<IpAddr, Instant>,
    counted: Option<[u64; 3]>,
    grew: [Option<Instant>; 3],
}

/// A line of `/proc/net/tcp` about port 179.
#[derive(Debug, PartialEq, Eq)]
struct Row {
    peer: IpAddr,
    state: u8,
    again: bool,
}

impl TcpSource {
    pub(super) fn new(host: HostRoot, blocking: Blocking) -> Self {
        TcpSource {
            host,
            blocking,
            last: None,
            took: Duration::ZERO,
            silent: HashMap::new(),
            counted: None,
            grew: [None; 3],
        }
    }

    /// Forgets everything: no session is down any more, and what the counters do now is not about sessions.
    pub(super) fn forget(&mut self) {
        self.last = None;
        self.silent.clear();
        self.counted = None;
        self.grew = [None; 3];
    }

    /// Looks, unless the last look took long and was a short while ago. Growth takes two looks: the first one ever is two,
    /// with a pause in between.
    pub(super) async fn look(&mut self) -> Result<BgpTcp, LookError> {
        if self.last.is_none() {
            self.look_now().await.ok();
            tokio::time::sleep(GROWTH).await;
            return self.look_now().await;
        }
        let now = Instant::now();
        if let Some((at, seen)) = &self.last
            && now.duration_since(*at) < (self.took * SHARE).min(AT_MOST)
        {
            return seen.clone();
        }
        self.look_now().await
    }

    async fn look_now(&mut self) -> Result<BgpTcp, LookError> {
        let now = Instant::now();
        let host = self.host.clone();
        let seen = self.blocking.run("TCP sockets", DEADLINE, move || Ok((rows(&host)?, counters(&host)?))).await;
        self.took = now.elapsed();
        let seen = seen.map(|(rows, counted)| self.remember(&rows, counted, now));
        self.last = Some((now, seen.clone()));
        seen
    }

    fn remember(&mut self, rows: &[Row], counted: [u64; 3], now: Instant) -> BgpTcp {
        for (position, count) in counted.into_iter().enumerate() {
            if self.counted.is_some_and(|before| count > before[position]) {
                self.grew[position] = Some(now);
            }
        }
        self.counted = Some(counted);
        let unanswered = |row: &&Row| row.again && matches!(row.state, SYN_SENT | SYN_RECV);
        self.silent.extend(rows.iter().filter(unanswered).map(|row| (row.peer, now)));
        self.silent.retain(|_, at| now.duration_since(*at) < SILENT);
        let mut silent: Vec<IpAddr> = self.silent.keys().copied().collect();
        silent.sort_unstable();
        let mut connected: Vec<IpAddr> =
            rows.iter().filter(|row| row.state == ESTABLISHED).map(|row| row.peer).collect();
        connected.sort_unstable();
        connected.dedup();
        let [unsigned, unexpected, different] =
            self.grew.map(|at| at.is_some_and(|at| now.duration_since(at) < MISMATCH));
        BgpTcp { silent, connected, unsigned, unexpected, different }
    }
}

/// The sockets of port 179, here or there.
fn rows(host: &HostRoot) -> Result<Vec<Row>, LookError> {
    let mut rows = Vec::new();
    each_line(host, BGP, |line| rows.extend(row(line)))?;
    Ok(rows)
}

fn row(line: &[u8]) -> Option<Row> {
    let ((_, here), (peer, there), state, mut words) = ends(line)?;
    let again = u32::from_str_radix(words.nth(2)?, 16).ok()? > 0;
    (here == BGP || there == BGP).then_some(Row { peer, state, again })
}

fn counters(host: &HostRoot) -> Result<[u64; 3], LookError> {
    Ok(md5(&host.read_text("/proc/thread-self/net/netstat", NETSTAT)?))
}

/// The counters in pairs of lines, `TcpExt: NAME ...` and `TcpExt: NUMBER ...`; 0 where the kernel has no TCP-MD5.
fn md5(netstat: &str) -> [u64; 3] {
    let mut lines = netstat.lines().filter_map(|line| line.strip_prefix("TcpExt: "));
    let (names, numbers) = (lines.next().unwrap_or_default(), lines.next().unwrap_or_default());
    COUNTERS.map(|wanted| {
        let pairs = names.split(' ').zip(numbers.split(' '));
        pairs.into_iter().find(|(name, _)| *name == wanted).and_then(|(_, number)| number.parse().ok()).unwrap_or(0)
    })
}

/// The fuzz target's door.
#[cfg(any(test, fuzzing))]
pub(super) fn fuzz(data: &[u8]) {
    data.split(|byte| *byte == b'\n').filter_map(row).for_each(|row| assert!(!row.peer.to_string().is_empty()));
    let _ = md5(&String::from_utf8_lossy(data));
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn rows_are_those_of_the_port_alone() {
        let line =
            b"   2: 0200000A:B74E 0100000A:00B3 02 00000001:00000000 01:0000003F 00000002     0        0 1575741 2\n";
        let peer = "10.0.0.1".parse().expect("an address");
        let found = row(line);
        if cfg!(target_endian = "little") {
            assert_eq!(found, Some(Row { peer, state: SYN_SENT, again: true }));
        }
        assert_eq!(row(b"   2: 0200000A:00B4 0100000A:B74E 01 00000001:00000000 01:0000003F 00000002 0\n"), None);
        let line = b"   0: 00000000000000000000000000000000:00B3 0000000000000000FFFF00000100000A:9CA6 01 00000000:00000000 00:00000000 00000000 0";
        if cfg!(target_endian = "little") {
            assert_eq!(row(line), Some(Row { peer, state: ESTABLISHED, again: false }));
        }
    }

    #[test]
    fn counters_are_found_by_name() {
        let netstat = "TcpExt: SyncookiesSent TCPMD5NotFound TCPMD5Unexpected TCPMD5Failure X\nTcpExt: 1 2 3 4 5\nIpExt: A\nIpExt: 1\n";
        assert_eq!(md5(netstat), [2, 3, 4]);
        assert_eq!(md5("TcpExt: A\nTcpExt: 1\n"), [0, 0, 0]);
        assert_eq!(md5(""), [0, 0, 0]);
    }

    #[test]
    fn growth_counts_and_what_was_before_does_not() {
        let mut source = TcpSource::new(HostRoot::new("/"), Blocking::default());
        let now = Instant::now();
        assert_eq!(source.remember(&[], [7, 7, 7], now), BgpTcp::default());
        let peer = "10.0.0.1".parse().expect("an address");
        let silent = Row { peer, state: SYN_SENT, again: true };
        let seen = source.remember(&[silent], [8, 7, 7], now);
        assert_eq!(seen, BgpTcp { silent: vec![peer], unsigned: true, ..BgpTcp::default() });
        // The next connection of BIRD has not been refused an answer yet.
        let fresh = Row { peer, state: SYN_SENT, again: false };
        assert_eq!(source.remember(&[fresh], [8, 7, 7], now + Duration::from_secs(2)).silent, [peer]);
        assert_eq!(source.remember(&[], [8, 7, 7], now + MISMATCH), BgpTcp::default());
        source.forget();
        assert_eq!(source.remember(&[], [9, 9, 9], now), BgpTcp::default());
    }

    proptest! {
        #[test]
        fn nothing_in_proc_makes_it_panic(line: Vec<u8>, text: String) {
            row(&[line.as_slice(), b":00B3 ", line.as_slice()].concat());
            row(format!("{text} {text}:00B3 {text}").as_bytes());
            md5(&text);
            md5(&format!("TcpExt: {text}\nTcpExt: {text}"));
        }
    }
}
