//! IPVS: the kernel's own table of virtual servers, `/proc/net/ip_vs`.
//!
//! kube-proxy makes one for each port and address of each Service. Ports that everything needs are kept: of ten thousand
//! Services the others are passed over line by line.

use std::io::{BufRead as _, BufReader, Read as _};
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::time::{Duration, Instant};

use super::HostRoot;
use super::host_root::open_at_once;
use crate::facts::{LookError, VirtualServer};

/// `/proc/net` is the main thread's network namespace, even in a thread that has entered another.
const PATH: &str = "/proc/thread-self/net/ip_vs";
/// So many virtual servers are kept, and so many real ones of each.
const MOST: usize = 1024;
const MOST_REAL: usize = 64;
/// Longest line, in bytes; the kernel's have 120 at most.
const LONGEST: u64 = 1024;
/// Nothing tells of changes. A table that takes long is read less often, so that this costs a two-thousandth of a CPU.
const SHARE: u32 = 2_000;

/// Reads the table, and keeps it while it is too early for another look.
#[derive(Debug, Default)]
pub(super) struct IpvsSource(Option<(Instant, Vec<VirtualServer>)>);

impl IpvsSource {
    /// The virtual servers that matter, in the network namespace of this thread. [`crate::facts::Reason::Missing`] when the
    /// kernel's module is not loaded.
    pub(super) fn look(&mut self, host: &HostRoot) -> Result<Vec<VirtualServer>, LookError> {
        let began = Instant::now();
        if let Some((_, kept)) = self.0.as_ref().filter(|(until, _)| began < *until) {
            return Ok(kept.clone());
        }
        self.0 = None;
        let failed = |error: &std::io::Error| LookError::io(PATH, error);
        let file = open_at_once(&host.path(PATH)).map_err(|error| failed(&error))?;
        let (mut lines, mut line) = (BufReader::with_capacity(1 << 14, file), Vec::new());
        let mut table = Reader::default();
        while lines.by_ref().take(LONGEST).read_until(b'\n', &mut line).map_err(|error| failed(&error))? > 0 {
            table.add(&String::from_utf8_lossy(&line));
            line.clear();
        }
        self.0 = Some((Instant::now() + (began.elapsed() * SHARE).min(Duration::from_secs(60)), table.servers.clone()));
        Ok(table.servers)
    }
}

#[derive(Debug, Default)]
struct Reader {
    servers: Vec<VirtualServer>,
    /// Whether the last virtual server is kept, and its real servers with it.
    kept: bool,
}

impl Reader {
    /// Takes in a line (`ip_vs_info_seq_show` of `net/netfilter/ipvs/ip_vs_ctl.c`): `TCP  0A600001:01BB rr`, and behind each
    /// the real servers, `  -> 0A000009:192B      Masq    1      0          0`. Those without weight end.
    fn add(&mut self, line: &str) {
        let words: Vec<&str> = line.split_ascii_whitespace().collect();
        match words.as_slice() {
            ["->", real, _, weight, ..] => {
                let real = address(real).filter(|_| self.kept && *weight != "0");
                if let Some((server, real)) = self.servers.last_mut().zip(real)
                    && server.endpoints.len() < MOST_REAL
                {
                    server.endpoints.push(real);
                }
            }
            [protocol @ ("TCP" | "UDP"), at, ..] => {
                let at =
                    address(at).filter(|at| VirtualServer::PORTS.contains(&at.port()) && self.servers.len() < MOST);
                self.kept = at.is_some();
                let server = |at| VirtualServer { at, udp: *protocol == "UDP", endpoints: Vec::new() };
                self.servers.extend(at.map(server));
            }
            // Another protocol, a mark of the firewall, or the head.
            _ => self.kept = false,
        }
    }
}

/// `0A600001:01BB`, `[fd00:0000:0000:0000:0000:0000:0000:0001]:01BB`.
fn address(text: &str) -> Option<SocketAddr> {
    let (host, port) = text.rsplit_once(':')?;
    let host = match host.strip_prefix('[') {
        Some(host) => IpAddr::V6(host.strip_suffix(']')?.parse::<Ipv6Addr>().ok()?),
        None => IpAddr::V4(Ipv4Addr::from(u32::from_str_radix(host, 16).ok()?)),
    };
    Some(SocketAddr::new(host, u16::from_str_radix(port, 16).ok()?))
}

/// The fuzz target's door.
#[cfg(any(test, fuzzing))]
pub(super) fn fuzz(text: &str) {
    let mut table = Reader::default();
    text.lines().for_each(|line| table.add(line));
    assert!(table.servers.iter().all(|server| VirtualServer::PORTS.contains(&server.at.port())));
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::facts::Reason;

    /// In the kernel's words, with what kube-proxy makes of `default/kubernetes`, kube-dns and a Service of somebody.
    const TABLE: &str = "\
IP Virtual Server version 1.2.1 (size=4096)
Prot LocalAddress:Port Scheduler Flags
  -> RemoteAddress:Port Forward Weight ActiveConn InActConn
TCP  0A600001:01BB rr persistent 10800 FFFFFFFF
  -> 0A00000A:192B      Masq    1      4          0         \n  -> 0A000009:192B      Masq    0      1          0         \nUDP  0A60000A:0035 rr 
TCP  0A600050:0050 rr 
  -> 0AF40107:1F90      Masq    1      0          0         \nTCP  [fd00:0020:0000:0000:0000:0000:0000:0001]:01BB rr 
  -> [fd00:0010:0000:0000:0000:0000:0000:0009]:192B      Masq    1      0          0         \nFWM  00000001 wrr
  -> AC1B001F:0050      Masq    1      0          0         \n";

    #[test]
    fn virtual_servers_that_matter_with_those_that_serve() {
        let root = tempfile::tempdir().expect("a directory");
        let host = HostRoot::new(root.path());
        assert_eq!(IpvsSource::default().look(&host).map_err(|error| error.reason), Err(Reason::Missing));
        let file = root.path().join(&PATH[1..]);
        std::fs::create_dir_all(file.parent().expect("a parent")).expect("mkdir");
        std::fs::write(&file, TABLE).expect("write");
        let server = |at: &str, udp, endpoints: &[&str]| VirtualServer {
            at: at.parse().expect("an address"),
            udp,
            endpoints: endpoints.iter().map(|it| it.parse().expect("an address")).collect(),
        };
        let mut source = IpvsSource::default();
        let expected = [
            server("10.96.0.1:443", false, &["10.0.0.10:6443"]),
            server("10.96.0.10:53", true, &[]),
            server("[fd00:20::1]:443", false, &["[fd00:10::9]:6443"]),
        ];
        assert_eq!(source.look(&host).expect("readable"), expected);
        std::fs::write(&file, "").expect("write");
        source.0 = None;
        assert_eq!(source.look(&host), Ok(vec![]));
    }

    proptest! {
        #[test]
        fn any_text_is_read(text in "((TCP|UDP|  ->|FWM) [0-9A-F\\[\\]:]{0,20}( rr| Masq [01])?\\PC{0,8}\\n){0,12}", other: String) {
            let mut table = Reader::default();
            text.lines().chain(other.lines()).for_each(|line| table.add(line));
            prop_assert!(table.servers.iter().all(|server| VirtualServer::PORTS.contains(&server.at.port())));
        }
    }
}
