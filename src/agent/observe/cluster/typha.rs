//! Which Typhas serve this node (catalogue R116): the far ends of calico-node's connections to them. Felix has one, and confd and
//! others beside it have theirs, often to others: whose a connection is cannot be seen without looking into their processes.

use std::net::IpAddr;
use std::time::{Duration, Instant};

use crate::agent::observe::Blocking;
use crate::agent::observe::host_root::HostRoot;
use crate::agent::observe::tcp_table::{ESTABLISHED, each_line, ends};
use crate::facts::{ClusterMap, LookError};

/// Typha's port, unless its Pods say another (facts.md C.11).
const PORT: u16 = 5473;
/// A table of 50,000 sockets takes a twentieth of a second to print, and connections to Typha last for hours.
const EVERY: Duration = Duration::from_secs(300);
const DEADLINE: Duration = Duration::from_secs(2);
/// calico-node has no more parts that are served.
const MOST: usize = 4;

/// Looks from time to time.
#[derive(Debug)]
pub(super) struct TyphaSource {
    host: HostRoot,
    blocking: Blocking,
    port: u16,
    last: Option<(Instant, Vec<IpAddr>)>,
}

impl TyphaSource {
    pub(super) fn new(host: HostRoot) -> Self {
        TyphaSource { host, blocking: Blocking::default(), port: PORT, last: None }
    }

    /// What the map of the cluster says of the port.
    pub(super) fn told(&mut self, map: &ClusterMap) {
        let port = map.typha_port.unwrap_or(PORT);
        if port != self.port {
            (self.port, self.last) = (port, None);
        }
    }

    /// What is said of them with the question for the map; nothing where there are none, or they cannot be seen.
    pub(super) async fn query(&mut self) -> String {
        if self.last.as_ref().is_none_or(|(at, _)| at.elapsed() >= EVERY) {
            let (host, port) = (self.host.clone(), self.port);
            let seen = self.blocking.run("TCP sockets", DEADLINE, move || served(&host, port)).await;
            self.last = Some((Instant::now(), seen.unwrap_or_default()));
        }
        let all: Vec<String> = self.last.iter().flat_map(|(_, all)| all).map(ToString::to_string).collect();
        if all.is_empty() { String::new() } else { format!("&typha={}", all.join(",")) }
    }
}

fn served(host: &HostRoot, port: u16) -> Result<Vec<IpAddr>, LookError> {
    let mut all = Vec::new();
    each_line(host, port, |line| all.extend(typha(line, port)))?;
    all.sort_unstable();
    all.dedup();
    all.truncate(MOST);
    Ok(all)
}

/// The far end of a connection to this port.
fn typha(line: &[u8], port: u16) -> Option<IpAddr> {
    let (_, (address, at), state, _) = ends(line)?;
    (at == port && state == ESTABLISHED).then_some(address)
}

#[cfg(test)]
mod tests {
    use super::*;

    const HEAD: &str =
        "  sl  local_address rem_address   st tx_queue rx_queue tr tm->when retrnsmt   uid  timeout inode\n";

    /// A line as the kernel of a little-endian machine prints it.
    fn line(here: &str, there: &str, state: &str) -> String {
        format!(
            "   1: {here} {there} {state} 00000000:00000000 02:000005DA 00000000     0        0 1575741 2 0 20 4 1 10 -1\n"
        )
    }

    fn host(four: &str, six: Option<&str>) -> (tempfile::TempDir, HostRoot) {
        let dir = tempfile::tempdir().expect("a directory");
        let net = dir.path().join("proc/thread-self/net");
        std::fs::create_dir_all(&net).expect("made");
        std::fs::write(net.join("tcp"), format!("{HEAD}{four}")).expect("written");
        if let Some(six) = six {
            std::fs::write(net.join("tcp6"), format!("{HEAD}{six}")).expect("written");
        }
        let host = HostRoot::new(dir.path());
        (dir, host)
    }

    #[test]
    fn far_ends_of_connections_to_typha_are_told_apart_from_all_else() {
        let four = [
            // Felix and confd, to two of them; once more to the second.
            line("0600000A:B74E", "0500000A:1561", "01"),
            line("0600000A:B74F", "0700000A:1561", "01"),
            line("0600000A:B750", "0700000A:1561", "01"),
            // A Typha of its own: it listens, and somebody is connected to it.
            line("0600000A:1561", "00000000:0000", "0A"),
            line("0600000A:1561", "0800000A:B74E", "01"),
            // One that does not answer, one that is over, and another port.
            line("0600000A:B751", "0900000A:1561", "02"),
            line("0600000A:B752", "0A00000A:1561", "06"),
            line("0600000A:1561", "0B00000A:0050", "01"),
            "damaged 1561 :1561 \n".to_owned(),
        ]
        .concat();
        let six = line("000000000000000000000000010000FD:B74E", "0000000000000000FFFF00000C00000A:1561", "01");
        let (_dir, root) = host(&four, None);
        let address = |text: &str| text.parse::<IpAddr>().expect("an address");
        if cfg!(target_endian = "little") {
            assert_eq!(served(&root, PORT).expect("read"), [address("10.0.0.5"), address("10.0.0.7")]);
            assert_eq!(served(&root, 80).expect("read"), [address("10.0.0.11")], "as its Pods say");
            let (_dir, both) = host(&four, Some(&six));
            assert_eq!(
                served(&both, PORT).expect("read").last(),
                Some(&address("10.0.0.12")),
                "IPv4 in a socket of IPv6"
            );
        }
    }

    #[test]
    fn the_kernel_prints_it_so() {
        let net = crate::agent::observe::netns::NetNs::new();
        let seen = net.run(|| {
            let listens = std::net::TcpListener::bind(("127.0.0.1", PORT)).expect("bind");
            let before = served(&HostRoot::new("/"), PORT);
            let connected = std::net::TcpStream::connect(("127.0.0.1", PORT)).expect("connect");
            let while_connected = served(&HostRoot::new("/"), PORT);
            drop((listens, connected));
            [before, while_connected]
        });
        assert_eq!(seen, [Ok(vec![]), Ok(vec![IpAddr::from([127, 0, 0, 1])])]);
    }

    #[tokio::test]
    async fn it_says_nothing_where_there_is_no_connection_or_it_cannot_look() {
        let (_dir, root) = host(&line("0600000A:B74E", "0500000A:1561", "01"), None);
        let mut source = TyphaSource::new(root);
        if cfg!(target_endian = "little") {
            assert_eq!(source.query().await, "&typha=10.0.0.5");
            let other = ClusterMap {
                typha_port: Some(5474),
                own: String::new(),
                nodes: vec![],
                pools: vec![],
                full_mesh: None,
                services: vec![],
            };
            source.told(&other);
            assert_eq!(source.query().await, "", "another port is looked for at once");
        }
        let (_dir, none) = host("", None);
        assert_eq!(TyphaSource::new(none).query().await, "");
        let empty = tempfile::tempdir().expect("a directory");
        assert_eq!(TyphaSource::new(HostRoot::new(empty.path())).query().await, "", "no table");
    }

    proptest::proptest! {
        #[test]
        fn no_line_is_too_odd(line in proptest::collection::vec(proptest::num::u8::ANY, 0..300), text in "\\PC{0,80}") {
            let _ = typha(&line, PORT);
            let _ = typha(format!("{text} {text}:1561 {text}").as_bytes(), PORT);
        }
    }
}
