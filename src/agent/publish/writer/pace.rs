//! When of many agents each writes, so that all together do not write faster than the API server is to be asked.

use std::sync::Arc;
use std::time::Duration;

use crate::backoff::part;

/// How fast all agents together write.
#[derive(Clone)]
pub(crate) struct Pace {
    /// How many nodes there are, as far as it is known: so many may write at the same time.
    pub(crate) nodes: Arc<dyn Fn() -> usize + Send + Sync>,
    /// Patches of all agents in a second, at most.
    pub(crate) per_second: u32,
}

impl Pace {
    /// The pace of one that does not know of others.
    pub(super) fn alone() -> Self {
        Pace { nodes: Arc::new(|| 1), per_second: u32::MAX }
    }

    /// How long one waits before it writes what is new, by chance: nobody knows whether the others have news too.
    pub(super) fn turn(&self) -> Duration {
        part(self.window())
    }

    /// How long all nodes need to write once. A third more than the rate asks for, since chance puts more into one second
    /// than into another: of 5,000 nodes at 200 a second, 150 +- 12.
    pub(super) fn window(&self) -> Duration {
        let nodes = u32::try_from((self.nodes)()).unwrap_or(u32::MAX);
        Duration::from_secs(4) * nodes / self.per_second.saturating_mul(3)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn pace(nodes: usize) -> Pace {
        Pace { nodes: Arc::new(move || nodes), per_second: 200 }
    }

    #[test]
    fn few_nodes_write_at_once_and_many_within_a_window() {
        assert_eq!(Pace::alone().turn(), Duration::ZERO);
        assert_eq!(pace(0).window(), Duration::ZERO, "nobody knows how many");
        assert!(pace(3).window() <= Duration::from_millis(20) && pace(100).window() <= Duration::from_secs(1));
        assert_eq!(pace(5_000).window().as_secs(), 33);
    }

    #[test]
    fn no_second_has_more_writes_than_the_rate() {
        let many = pace(5_000);
        let mut seconds = [0; 34];
        for _ in 0..5_000 {
            seconds[usize::try_from(many.turn().as_secs()).expect("within the window")] += 1;
        }
        assert!(seconds.iter().all(|count| *count <= 210), "{seconds:?}");
    }
}
