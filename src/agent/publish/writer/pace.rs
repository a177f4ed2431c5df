//! When of many agents each writes, so that all together do not write faster than the API server is to be asked.

use std::sync::Arc;
use std::time::Duration;

use tokio::time::timeout;

use crate::api;
use crate::backoff::part;

/// Longest wait for the answer how many agents there are.
const DEADLINE: Duration = Duration::from_secs(10);
/// While nobody answers, there may be so many: an API server that all ask at once is the reason not to.
const MANY: usize = 5_000;

/// How fast all agents together write.
#[derive(Clone)]
pub(crate) struct Pace {
    /// How many nodes the map of the cluster shows: so many may write at the same time. 0 as long as there is no map.
    pub(crate) nodes: Arc<dyn Fn() -> usize + Send + Sync>,
    /// Where the API server keeps the `DaemonSet` of all agents, which says how many they are where there is no map.
    pub(crate) set: String,
    /// What that said.
    agents: Option<usize>,
    /// Patches of all agents in a second, at most.
    pub(crate) per_second: u32,
}

impl Pace {
    /// The pace of one of the nodes of a map, or of the agents of this `DaemonSet`.
    pub(crate) fn new(nodes: Arc<dyn Fn() -> usize + Send + Sync>, set: String, per_second: u32) -> Self {
        Pace { nodes, set, agents: None, per_second }
    }

    /// The pace of one that does not know of others.
    pub(super) fn alone() -> Self {
        Pace::new(Arc::new(|| 1), String::new(), u32::MAX)
    }

    /// Asks how many agents there are, where nothing has said it yet. Those that start together, in a rollout or when the
    /// power is back, have no map, and may all have something to write.
    pub(super) async fn learn(&mut self, client: &kube::Client) {
        if (self.nodes)() > 0 || self.agents.is_some() {
            return;
        }
        // From the memory of the API server: thousands may ask in the same moment.
        let path = format!("{}?resourceVersion=0", self.set);
        self.agents = match timeout(DEADLINE, api::get(client, &path)).await {
            Ok(Ok(set)) => count(&set),
            // It runs without a DaemonSet, or may not ask, and so knows of no others.
            Ok(Err(kube::Error::Api(status))) if [403, 404].contains(&status.code) => Some(1),
            _ => None,
        };
    }

    /// How long one waits before it writes what is new, by chance: nobody knows whether the others have news too.
    pub(super) fn turn(&self) -> Duration {
        part(self.window())
    }

    /// How long all nodes need to write once. Longer than the rate asks for, since chance puts more into one second than
    /// into another: by half at 200 a second, where 5,000 come at 133 +- 12 and the fullest of all seconds has 170 to 190.
    pub(super) fn window(&self) -> Duration {
        let nodes = match (self.nodes)() {
            0 => self.agents.unwrap_or(MANY),
            nodes => nodes,
        };
        let rate = f64::from(self.per_second.max(1));
        Duration::from_secs_f64(
            f64::from(u32::try_from(nodes).unwrap_or(u32::MAX)) / rate * (1.0 + (50.0 / rate).sqrt()),
        )
    }
}

/// How many Pods a `DaemonSet` is to have; none before its controller has counted.
fn count(set: &serde_json::Value) -> Option<usize> {
    let wanted = set["status"]["desiredNumberScheduled"].as_u64().filter(|wanted| *wanted > 0)?;
    Some(usize::try_from(wanted).unwrap_or(MANY))
}

#[cfg(test)]
mod tests {
    use std::hash::{BuildHasher, BuildHasherDefault, DefaultHasher};

    use serde_json::json;

    use super::*;

    fn pace(nodes: usize, per_second: u32) -> Pace {
        Pace::new(Arc::new(move || nodes), String::new(), per_second)
    }

    #[test]
    fn few_nodes_write_at_once_and_many_within_a_window() {
        assert!(Pace::alone().turn() < Duration::from_millis(1));
        assert!(pace(3, 200).window() <= Duration::from_millis(25));
        assert!(pace(100, 200).window() < Duration::from_secs(1), "so half of them have written after half a second");
        assert_eq!(pace(5_000, 200).window(), Duration::from_millis(37_500));
    }

    #[test]
    fn who_has_no_map_is_one_of_the_agents_or_of_many() {
        let unknown = pace(0, 200);
        assert_eq!(unknown.window(), pace(MANY, 200).window());
        assert_eq!(Pace { agents: Some(3), ..unknown }.window(), pace(3, 200).window());
        assert_eq!(Pace { agents: Some(5_000), ..pace(7, 200) }.window(), pace(7, 200).window(), "the map is newer");
        for (said, agents) in [
            (json!({"status": {"desiredNumberScheduled": 12}}), Some(12)),
            (json!({"status": {"desiredNumberScheduled": 0}}), None),
            (json!({"status": {}}), None),
            (json!({"status": {"desiredNumberScheduled": "many"}}), None),
        ] {
            assert_eq!(count(&said), agents, "{said}");
        }
    }

    /// The most that begin within any second of those who wait for parts of a window, which chance of this seed gives them.
    fn most_in_a_second(pace: &Pace, nodes: usize, seed: usize) -> usize {
        let chance = |node| BuildHasherDefault::<DefaultHasher>::default().hash_one((seed, node));
        let part =
            |node: usize| f64::from(u32::try_from(chance(node) >> 32).expect("half of it")) / f64::from(u32::MAX);
        let mut waits: Vec<Duration> = (0..nodes).map(|node| pace.window().mul_f64(part(node))).collect();
        waits.sort_unstable();
        let until = |from: Duration| waits.partition_point(|wait| *wait < from + Duration::from_secs(1));
        waits.iter().enumerate().map(|(index, from)| until(*from) - index).max().expect("nodes")
    }

    #[test]
    fn no_second_has_more_writes_than_the_rate() {
        for (nodes, per_second) in [(250, 200), (500, 200), (5_000, 200), (15_000, 200), (1_000, 50), (5_000, 1_000)] {
            let pace = pace(nodes, per_second);
            let most: Vec<usize> = (0..40).map(|seed| most_in_a_second(&pace, nodes, seed)).collect();
            let limit = usize::try_from(per_second).expect("small");
            assert!(most.iter().all(|most| *most <= limit), "{nodes} at {per_second}: {most:?}");
            // Nor is it slower than it has to be.
            assert!(most.iter().any(|most| *most > limit / 2), "{nodes} at {per_second}: {most:?}");
        }
    }
}
