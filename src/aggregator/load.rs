//! How many connections the workers of a VPC have, and how many of those that they open themselves are not answered at first (catalogue R130):
//! agents say both with their question for the map.

use jiff::Timestamp;

/// SYNs that a node sent again within five minutes from which on its connections do not come up as they should. One that is
/// never answered is sent again six times in two minutes, so that these are six or more of them all the time.
pub(crate) const MANY: u32 = 100;
/// What was said counts for so long, in seconds: agents of many nodes ask more rarely, now this replica and now another.
const COUNTS: i64 = 1800;

/// What an agent says of its node.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Load {
    /// Entries of connection tracking.
    pub(crate) connections: u32,
    /// Since when it has sent many SYNs again; none where it does not.
    pub(crate) strained: Option<Timestamp>,
    said: Timestamp,
}

impl Load {
    /// `load=120.81234`: SYNs sent again, and connections; none where the agent could not look at both.
    pub(super) fn told(query: &str, before: Option<&Load>, now: Timestamp) -> Option<Load> {
        let (again, connections) = query.split('&').find_map(|part| part.strip_prefix("load="))?.split_once('.')?;
        let (again, connections): (u32, u32) = (again.parse().ok()?, connections.parse().ok()?);
        let since = before.filter(|before| before.counts(now)).and_then(|before| before.strained);
        let strained = (again >= MANY).then(|| since.unwrap_or(now));
        Some(Load { connections, strained, said: now })
    }

    /// Whether it was said lately.
    pub(crate) fn counts(&self, now: Timestamp) -> bool {
        now.as_second() - self.said.as_second() < COUNTS
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::aggregator::testing::at;

    #[test]
    fn two_numbers_are_a_load_and_it_goes_on_while_it_lasts() {
        let first = Load::told("node=n1&load=100.5000&boot=1", None, at(0)).expect("told");
        assert_eq!((first.connections, first.strained), (5_000, Some(at(0))));
        let next = Load::told("load=700.6000", Some(&first), at(60)).expect("told");
        assert_eq!(next.strained, Some(at(0)), "it goes on");
        assert_eq!(Load::told("load=99.6000", Some(&next), at(120)).expect("told").strained, None, "it clears");
        assert_eq!(Load::told("load=700.1", Some(&first), at(COUNTS)).expect("told").strained, Some(at(COUNTS)));
        assert!(first.counts(at(COUNTS - 1)) && !first.counts(at(COUNTS)));
        for bad in ["", "load=", "load=5", "load=5.", "load=a.b", "load=-1.5", "load=5.99999999999", "xload=100.5"] {
            assert_eq!(Load::told(bad, None, at(0)), None, "{bad}");
        }
    }
}
