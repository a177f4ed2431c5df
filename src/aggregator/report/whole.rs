//! The report of all workers as JSON. Of what was written before, the parts of all workers that are still as they were are
//! copied, so that a report costs what has changed since the last one, and only one of the workers is in memory twice.

use bytes::Bytes;

use super::build::Overview;

/// Bytes of one worker, about: what is set aside for those that are not known yet.
const USUAL: usize = 400;

/// A report, written.
#[derive(Debug, Default)]
pub(in crate::aggregator) struct Whole {
    /// JSON.
    pub(in crate::aggregator) body: Bytes,
    /// Where each worker is in it: from and to, by its key, in their order.
    places: Vec<(u64, u32, u32)>,
}

impl Whole {
    /// Writes it. None if it cannot be written as JSON, or is larger than 4 GiB.
    pub(in crate::aggregator) fn write(overview: &Overview<'_>, before: &Whole) -> Option<Whole> {
        let mut body = serde_json::to_vec(&overview.report).ok()?;
        // The workers come last.
        body.truncate(body.len().checked_sub(b"]}".len())?);
        let workers = &overview.workers;
        body.reserve_exact(before.body.len().max(workers.len() * USUAL));
        let mut places = Vec::with_capacity(workers.len());
        for (at, worker) in workers.iter().enumerate() {
            if at > 0 {
                body.push(b',');
            }
            let (key, from) = (worker.key(), u32::try_from(body.len()).ok()?);
            match before.place(key) {
                Some(known) => body.extend_from_slice(known),
                None => serde_json::to_writer(&mut body, &worker.report(false)).ok()?,
            }
            places.push((key, from, u32::try_from(body.len()).ok()?));
        }
        body.extend_from_slice(b"]}");
        body.shrink_to_fit();
        places.sort_unstable();
        Some(Whole { body: body.into(), places })
    }

    fn place(&self, key: u64) -> Option<&[u8]> {
        let at = self.places.binary_search_by_key(&key, |(known, ..)| *known).ok()?;
        let (_, from, to) = self.places[at];
        self.body.get(usize::try_from(from).ok()?..usize::try_from(to).ok()?)
    }
}

#[cfg(test)]
mod tests {
    use super::super::build::{Agents, build, overview};
    use super::super::{ClusterReport, LastJudgement, Source};
    use super::*;
    use crate::aggregator::cluster::Cluster;
    use crate::aggregator::stale::Watchdog;
    use crate::aggregator::testing::{agent, apply, cluster, moment, node, silent};

    const CHAINS: (&str, &str, &str, &str) = ("KubeProxyChainsMissing", "critical", "packetFilter", "it is gone");

    /// Written by way of what was written before, it says what it says when it is made anew.
    fn same(cluster: &Cluster, watchdog: &Watchdog, seconds: i64, before: &Whole) -> Whole {
        let (agents, now, last) = (Agents::Watched(watchdog), moment(seconds), &mut LastJudgement::default());
        let whole = Whole::write(&overview(cluster, agents, Source::Aggregator, last, now), before).expect("JSON");
        let read: ClusterReport = serde_json::from_slice(&whole.body).expect("a report");
        assert_eq!(read, build(cluster, agents, Source::Aggregator, None, now));
        whole
    }

    #[test]
    fn what_is_copied_is_what_would_be_written() {
        let mut watchdog = Watchdog::default();
        let empty = cluster(&[], &[]);
        let none = same(&empty, &watchdog, 0, &Whole::default());
        let name = |number: usize| format!("n{number}");
        let worker = |number: usize| node(&name(number), "a", "p", "Normal", &[]);
        let failing = |number: usize| node(&name(number), "a", "p", "Critical", &[CHAINS]);
        let agents: Vec<_> = (0..12).map(|number| agent(&format!("a{number}"), &name(number), true)).collect();
        let mut cluster = cluster(&(0..12).map(worker).collect::<Vec<_>>(), &agents);
        watchdog.step(&cluster, moment(0));
        let mut whole = same(&cluster, &watchdog, 0, &none);
        let copied = |whole: &Whole, cluster: &Cluster, watchdog: &Watchdog, seconds| {
            let agents = Agents::Watched(watchdog);
            let overview =
                overview(cluster, agents, Source::Aggregator, &mut LastJudgement::default(), moment(seconds));
            overview.workers.iter().filter(|worker| whole.place(worker.key()).is_some()).count()
        };
        assert_eq!(copied(&whole, &cluster, &watchdog, 9), 12, "time alone changes nothing");
        // One changes; so many that each is told the cluster's remedy, and by and by another one; heartbeats change none.
        for (number, expected) in [(5, 11), (6, 11), (7, 9), (8, 8)] {
            apply(&mut cluster, &failing(number));
            apply(&mut cluster, &worker(0));
            assert_eq!(copied(&whole, &cluster, &watchdog, 0), expected, "{number}");
            whole = same(&cluster, &watchdog, 0, &whole);
        }
        // An agent is late, and then gone: by time alone.
        apply(&mut cluster, &silent(worker(3)));
        watchdog.step(&cluster, moment(10));
        whole = same(&cluster, &watchdog, 10, &whole);
        let late = 100;
        // It no longer counts, so that the four are four out of eleven now.
        assert_eq!(copied(&whole, &cluster, &watchdog, late), 7);
        whole = same(&cluster, &watchdog, late, &whole);
        cluster.remove_node("n4", moment(late).wall);
        whole = same(&cluster, &watchdog, late, &whole);
        // It comes again, under the same name and as another.
        apply(&mut cluster, &failing(4));
        whole = same(&cluster, &watchdog, late, &whole);
        cluster.nodes_sight.lost(moment(late).wall, "gone".into());
        same(&cluster, &watchdog, late + 3600, &whole);
    }
}
