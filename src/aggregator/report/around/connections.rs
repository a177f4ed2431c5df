//! Connections that do not come up from all over a zone of a VPC, while they do elsewhere (catalogue R130): under heavy load its
//! limit of connections at once is suspected, once limits of the workers themselves are ruled out. That limit cannot be seen. Pure.

use std::collections::{BTreeMap, HashMap};

use jiff::Timestamp;

use super::{Draft, lasts};
use crate::aggregator::cluster::Cluster;
use crate::aggregator::load::{Load, MANY};
use crate::aggregator::row::Row;
use crate::checks::Area;
use crate::checks::Severity::{Info, Warning};

/// It lasts for so long, in seconds: what is counted goes back as far.
const LASTS: i64 = 300;
/// Fewer workers are no zone.
const FEWEST: usize = 3;
/// With fewer connections from a zone it is something else that does not answer. The catalogue gives no number; this is far
/// below any limit that a provider has.
const HEAVY: u64 = 10_000;

/// The workers of one zone that say how they are.
#[derive(Default)]
struct Zone<'a> {
    strained: Vec<(&'a str, Option<Timestamp>)>,
    workers: usize,
    connections: u64,
    /// Of all that are Ready.
    ready: usize,
}

/// The zones, with those of their workers that say how they are.
fn zones<'a>(cluster: &'a Cluster, duplicates: &HashMap<&str, &str>, now: Timestamp) -> BTreeMap<&'a str, Zone<'a>> {
    let mut zones: BTreeMap<&str, Zone<'_>> = BTreeMap::new();
    let usual = |(name, row): &(&str, &Row)| row.is_ready() && !row.deleting && !duplicates.contains_key(name);
    for (name, row) in cluster.nodes().filter(usual) {
        let Some(zone) = row.zone.as_deref() else { continue };
        let zone = zones.entry(zone).or_default();
        zone.ready += 1;
        let said = row.load.as_deref().filter(|load| load.counts(now) && !has_own_reason(row));
        let Some(Load { connections, strained, .. }) = said else { continue };
        zone.workers += 1;
        zone.connections += u64::from(*connections);
        zone.strained.extend(strained.map(|since| (name, Some(since))));
    }
    zones
}

/// The zones of which that is suspected, if it is not all of them.
pub(super) fn suspected(cluster: &Cluster, duplicates: &HashMap<&str, &str>, now: Timestamp) -> Option<Draft> {
    let limits = cluster.limits();
    let whole = |zone: &Zone<'_>| {
        let long = zone.strained.iter().filter(|(_, since)| lasts(*since, LASTS, now)).count();
        let known = zone.workers >= FEWEST && zone.workers * 2 > zone.ready;
        known && long * 100 >= zone.workers * limits.most_percent as usize && zone.connections >= HEAVY
    };
    let (full, others): (Vec<_>, Vec<_>) =
        zones(cluster, duplicates, now).into_iter().partition(|(_, zone)| whole(zone));
    let sum = |count: fn(&Zone<'_>) -> u64| others.iter().map(|(_, zone)| count(zone)).sum::<u64>();
    let (workers, strained) = (sum(|zone| zone.workers as u64), sum(|zone| zone.strained.len() as u64));
    // Without others that are well there is no telling whether those do not answer that all of them ask.
    if workers < FEWEST as u64 || strained * 100 > workers * u64::from(limits.few_percent) {
        return None;
    }
    let elsewhere = sum(|zone| zone.connections) / workers;
    let mean = |zone: &Zone<'_>| zone.connections / zone.workers.max(1) as u64;
    let full: Vec<(&str, Zone<'_>)> = full.into_iter().filter(|(_, zone)| mean(zone) >= elsewhere).collect();
    let (first, _) = full.first()?;
    let numbers: Vec<String> = full
        .iter()
        .map(|(name, zone)| {
            let (hit, all, sum) = (zone.strained.len(), zone.workers, zone.connections);
            format!("zone {name}: {hit} of {all} workers, {sum} connections, {} a worker", mean(zone))
        })
        .collect();
    let detail = format!(
        "under load, connections of whole zones are not answered at first (each worker sent {MANY} SYNs or more again within five minutes), and those elsewhere are; {}; elsewhere {strained} of {workers} workers, {elsewhere} connections a worker. No limit of these workers explains it; a zone of a VPC has a limit of connections at once, which cannot be seen from here",
        numbers.join("; ")
    );
    let since = full.iter().flat_map(|(_, zone)| &zone.strained).filter_map(|(_, since)| *since).min();
    let when = since.map_or_else(String::new, |since| format!(" at {}", crate::facts::utc(since)));
    let next = format!(
        "find what opens so many connections there (a load test, a client that opens one for every request) and let it keep them open; then ask the provider's VPC operations in a support case what the limit of zone {first} is, and whether it was reached{when}, with these numbers"
    );
    let on: Vec<(&str, Option<Timestamp>)> = full.into_iter().flat_map(|(_, zone)| zone.strained).collect();
    let mut draft = Draft::new("ZoneConnectionLimitSuspected", Info, detail, next).on_since(&on);
    draft.area = Area::PacketFilter;
    Some(draft)
}

/// Something on the worker itself, or on its way, that its agent has found: full tables look the same.
fn has_own_reason(row: &Row) -> bool {
    let own = [Area::Capacity, Area::ControlPlanePath, Area::PodRouting, Area::PacketFilter];
    row.marked_stale() || row.findings.iter().any(|it| it.severity >= Warning && own.contains(&it.area))
}

#[cfg(test)]
mod tests {
    use serde_json::Value;

    use super::*;
    use crate::aggregator::testing::{apply, at, cluster, marked, node, silent};

    fn worker(number: usize, findings: &[(&str, &str, &str, &str)]) -> Value {
        let zone = if number < 4 { "a" } else { "b" };
        let state = if findings.is_empty() { "Normal" } else { "Warning" };
        let mut node = node(&format!("n{number}"), zone, "p", state, findings);
        node["metadata"]["labels"]["ibm-cloud.kubernetes.io/subnet-id"] = format!("subnet-{zone}").into();
        node
    }

    fn says(cluster: &mut Cluster, numbers: std::ops::Range<usize>, load: &str, when: i64) {
        numbers.for_each(|number| {
            cluster.agent_said(&format!("n{number}"), &format!("node=x&load={load}&boot=0"), at(when));
        });
    }

    /// Four workers of a VPC in zone a with these loads, and five in zone b that are well.
    fn planted(load: &str) -> Cluster {
        let mut cluster = cluster(&(0..9).map(|number| worker(number, &[])).collect::<Vec<_>>(), &[]);
        for when in [0, 300] {
            says(&mut cluster, 0..4, load, when);
            says(&mut cluster, 4..9, "3.2000", when);
        }
        cluster
    }

    fn told(cluster: &Cluster, now: i64) -> Option<Draft> {
        suspected(cluster, &cluster.duplicates(), at(now))
    }

    #[test]
    fn a_zone_under_load_is_told_with_its_numbers_and_clears() {
        let mut cluster = planted("400.30000");
        assert!(told(&cluster, LASTS - 1).is_none());
        let draft = told(&cluster, LASTS).expect("told");
        assert_eq!((draft.code, draft.severity, draft.since), ("ZoneConnectionLimitSuspected", Info, Some(at(0))));
        assert_eq!(draft.on, ["n0", "n1", "n2", "n3"]);
        let numbers = "zone a: 4 of 4 workers, 120000 connections, 30000 a worker; elsewhere 0 of 5 workers, 2000 connections a worker";
        assert!(draft.detail.contains(numbers), "{}", draft.detail);
        let ask = "what the limit of zone a is, and whether it was reached at 2026-11-21T10:00:00Z";
        assert!(draft.next.contains(ask), "{}", draft.next);
        // Heartbeats of its kubelet say nothing else.
        apply(&mut cluster, &worker(0, &[]));
        assert!(told(&cluster, LASTS).is_some());
        says(&mut cluster, 0..1, "20.30000", 360);
        assert!(told(&cluster, 360).is_none(), "one of four is well again");
    }

    #[test]
    fn healthy_and_trap_few_connections_or_fewer_than_elsewhere() {
        for load in ["3.2000", "99.30000", "400.2000", "0.0"] {
            assert!(told(&planted(load), LASTS).is_none(), "{load}");
        }
        let mut cluster = planted("400.3000");
        assert!(told(&cluster, LASTS).is_some());
        says(&mut cluster, 4..9, "3.3001", 300);
        assert!(told(&cluster, LASTS).is_none(), "it is not the load");
    }

    #[test]
    fn trap_limits_of_the_workers_come_first() {
        let near = ("ConntrackNearFull", "warning", "packetFilter", "d");
        let mut cluster = planted("400.30000");
        apply(&mut cluster, &worker(0, &[near]));
        assert_eq!(told(&cluster, LASTS).map(|draft| draft.on.len()), Some(3), "that one explains itself");
        apply(&mut cluster, &worker(1, &[near]));
        assert!(told(&cluster, LASTS).is_none());
    }

    #[test]
    fn trap_what_all_ask_for_may_be_what_does_not_answer() {
        let mut cluster = planted("400.30000");
        says(&mut cluster, 4..5, "400.2000", 300);
        assert!(told(&cluster, LASTS).is_none(), "elsewhere too");
        let mut alone =
            crate::aggregator::testing::cluster(&(0..4).map(|number| worker(number, &[])).collect::<Vec<_>>(), &[]);
        for when in [0, 300] {
            says(&mut alone, 0..4, "400.30000", when);
        }
        assert!(told(&alone, LASTS).is_none(), "one zone is all there is");
    }

    #[test]
    fn unknown_where_agents_do_not_say_it_or_nobody_hears_them() {
        let mut cluster = planted("400.30000");
        says(&mut cluster, 0..2, "?", 300);
        assert!(told(&cluster, LASTS).is_none(), "two of four cannot look");
        assert!(told(&planted("400.30000"), 300 + 1_800).is_none(), "that was long ago");
        for gone in [silent(worker(0, &[])), marked(worker(0, &[]))] {
            let mut cluster = planted("400.30000");
            apply(&mut cluster, &gone);
            assert_eq!(told(&cluster, LASTS).map(|draft| draft.on.len()), Some(3));
        }
        let mut classic = planted("400.30000");
        for number in 0..4 {
            let mut node = worker(number, &[]);
            node["metadata"]["labels"] = serde_json::json!({"topology.kubernetes.io/zone": "a", "privateVLAN": "17"});
            apply(&mut classic, &node);
        }
        says(&mut classic, 0..4, "400.30000", 300);
        assert!(told(&classic, LASTS).is_none(), "only zones of a VPC have that limit");
    }
}
