//! Other nodes, asked over TCP: three of them when this node has lost its control plane, to tell a node that is cut off from
//! one that is only cut off there; and those that the cluster calls not ready, each by three others, to tell a dead node from
//! one that is cut off. Nothing is sent while all is well, and never from all nodes to all (catalogue R009, R054).

use std::net::{IpAddr, SocketAddr};
use std::time::{Duration, Instant};

use futures::future::join_all;
use tokio::time::timeout;

use super::probe;
use crate::facts::{ClusterMap, ClusterNode, FaultKind, PeerAnswer};

/// How many are asked, and by how many a node is asked.
const SAMPLE: usize = 3;
/// So many nodes that are not ready are asked at most.
const DOUBTED: usize = 8;
/// The kubelet's port, and one where nobody listens, for nodes whose kubelet is dead: being refused is an answer.
const PORTS: [u16; 2] = [10250, 9];
/// An answer takes milliseconds; a segment that is lost is sent again after 1 s.
const ANSWER: Duration = Duration::from_millis(1500);
/// Between two rounds.
const EVERY: Duration = Duration::from_secs(25);

/// Whom to ask.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(super) struct Peers {
    /// Nodes that are ready, spread over the cluster.
    sample: Vec<(String, IpAddr)>,
    /// Nodes that are not, and that fall to this node.
    doubted: Vec<(String, IpAddr)>,
}

impl Peers {
    /// Chooses from the map: each node others, so that none is asked by all.
    pub(super) fn of(map: &ClusterMap) -> Self {
        let mut nodes: Vec<&ClusterNode> = map.nodes.iter().filter(|node| !node.addresses.is_empty()).collect();
        nodes.sort_unstable_by(|a, b| a.name.cmp(&b.name));
        let Some(own) = nodes.iter().position(|node| node.name == map.own) else { return Peers::default() };
        nodes.rotate_left(own);
        let peer = |node: &&&ClusterNode| (node.name.clone(), node.addresses[0]);
        let ready: Vec<&ClusterNode> = nodes[1..].iter().copied().filter(|node| node.ready).collect();
        let step = ready.len().div_ceil(SAMPLE).max(1);
        let sample = ready.iter().step_by(step).take(SAMPLE).collect::<Vec<_>>();
        // Those before this node, up to the third that is ready itself, are asked by this node: of each, the next three.
        let mut between = 0;
        let doubted = nodes[1..].iter().rev().take_while(|node| {
            between += usize::from(node.ready);
            between < SAMPLE
        });
        let doubted: Vec<_> = doubted.filter(|node| !node.ready).take(DOUBTED).collect();
        let own_ready = nodes[0].ready;
        Peers {
            sample: sample.iter().map(peer).collect(),
            doubted: if own_ready { doubted.iter().map(peer).collect() } else { Vec::new() },
        }
    }
}

/// Asks when there is a reason.
#[derive(Debug, Default)]
pub(super) struct PeerSource {
    asked: Option<(bool, Instant, Vec<PeerAnswer>)>,
}

impl PeerSource {
    /// Asks some others when the control plane is `lost`, else those that are in doubt; what was just asked is not asked again.
    pub(super) async fn look(&mut self, peers: &Peers, lost: bool) -> Vec<PeerAnswer> {
        let whom = if lost { &peers.sample } else { &peers.doubted };
        let same = |answers: &[PeerAnswer]| answers.iter().map(|it| &it.node).eq(whom.iter().map(|(node, _)| node));
        if let Some((before, at, answers)) = &self.asked
            && *before == lost
            && at.elapsed() < EVERY
            && same(answers)
        {
            return answers.clone();
        }
        let answers = join_all(whom.iter().map(|(node, address)| async move {
            let answers = answers(*address, &PORTS).await;
            PeerAnswer { node: node.clone(), address: *address, ready: lost, answers }
        }))
        .await;
        self.asked = Some((lost, Instant::now(), answers.clone()));
        answers
    }
}

/// Whether a host answers at any of these ports, be it that nobody listens there.
pub(super) async fn answers(address: IpAddr, ports: &[u16]) -> bool {
    let probes = ports.iter().map(|port| async move {
        let connected = timeout(ANSWER, probe::connect(SocketAddr::new(address, *port))).await;
        matches!(&connected, Ok(Ok(_)))
            || matches!(&connected, Ok(Err(fault)) if matches!(fault.kind, FaultKind::Refused | FaultKind::Reset))
    });
    join_all(probes).await.contains(&true)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::agent::observe::netns::NetNs;

    fn node(name: &str, address: [u8; 4], ready: bool) -> ClusterNode {
        let addresses = vec![address.into()];
        ClusterNode { name: name.into(), ready, created_at: None, addresses, tunnels: vec![], blocks: vec![] }
    }

    fn map(own: &str, ready: &[bool]) -> ClusterMap {
        let nodes = (1..).zip(ready).map(|(at, ready)| node(&format!("n{at:02}"), [10, 0, 0, at], *ready)).collect();
        ClusterMap { own: own.into(), nodes, pools: vec![], full_mesh: None, services: vec![], typha_port: None }
    }

    fn names(peers: &[(String, IpAddr)]) -> Vec<&str> {
        peers.iter().map(|(name, _)| name.as_str()).collect()
    }

    #[test]
    fn a_few_spread_over_the_cluster() {
        let peers = Peers::of(&map("n04", &[true; 10]));
        assert_eq!(names(&peers.sample), ["n05", "n08", "n01"]);
        assert_eq!(names(&Peers::of(&map("n01", &[true; 2])).sample), ["n02"]);
        assert_eq!(Peers::of(&map("n01", &[true])), Peers::default());
        assert_eq!(Peers::of(&map("unknown", &[true; 3])), Peers::default());
    }

    #[test]
    fn each_node_in_doubt_is_asked_by_three() {
        let ready = [true, false, true, true, false, false, true, true, true, true];
        let mut by: std::collections::BTreeMap<String, Vec<String>> = std::collections::BTreeMap::new();
        for own in 1..=10 {
            let own = format!("n{own:02}");
            for (node, _) in Peers::of(&map(&own, &ready)).doubted {
                by.entry(node).or_default().push(own.clone());
            }
        }
        let by: Vec<_> = by.iter().map(|(node, by)| (node.as_str(), by.join(" "))).collect();
        assert_eq!(
            by,
            [("n02", "n03 n04 n07".into()), ("n05", "n07 n08 n09".into()), ("n06", "n07 n08 n09".to_owned())]
        );
    }

    #[test]
    fn answers_silence_and_no_way() {
        let net = NetNs::new();
        net.command("ip", &["address", "add", "10.0.0.1/24", "dev", "lo"]);
        for address in ["10.0.0.2", "10.0.0.3"] {
            net.command("ip", &["address", "add", address, "dev", "lo"]);
        }
        net.command("iptables-nft", &["-A", "INPUT", "-d", "10.0.0.3", "-j", "DROP"]);
        net.block_on(|| async {
            let mut source = PeerSource::default();
            let peers = Peers::of(&map("n01", &[true, true, true, true]));
            let found = source.look(&peers, true).await;
            // Refused; dropped; no such address on this network of one node.
            let answered: Vec<_> = found.iter().map(|it| (it.node.as_str(), it.answers, it.ready)).collect();
            assert_eq!(answered[..2], [("n02", true, true), ("n03", false, true)]);
            let began = Instant::now();
            assert_eq!(source.look(&peers, true).await, found);
            assert!(began.elapsed() < Duration::from_millis(500), "not asked again at once");
            assert_eq!(source.look(&peers, false).await, []);
        });
    }
}
