//! Workers in one place that lost the control plane together, while those elsewhere did not (catalogue R006, R019): what stands
//! between that place and the control plane is likelier than all of them. Pure.

use std::collections::BTreeMap;

use jiff::Timestamp;

use super::super::scope::in_maintenance;
use super::{Draft, lasts};
use crate::aggregator::cluster::Cluster;
use crate::aggregator::row::Row;
use crate::aggregator::stale::agent_knows;
use crate::checks::Area;
use crate::checks::Severity::Warning;

/// Places behind one device, the smaller first.
const PLACES: [&str; 2] = ["subnet", "zone"];
/// One worker that is cut off is cut off for itself.
const FEWEST: usize = 2;
/// What one device cuts off is missed within this time, in seconds: the control plane calls a kubelet silent after 40 to 50 s,
/// and agents look at their way every 10 s.
const TOGETHER: i64 = 120;
/// A device that is updated or fails over is back by then, in seconds.
const LASTS: i64 = 120;
/// Places that are named.
const NAMED: usize = 3;

/// The workers of one place.
#[derive(Default)]
struct Place<'a> {
    cut: Vec<&'a str>,
    workers: usize,
}

/// The places that are cut off whole, if that is all that is cut off.
pub(super) fn suspected(cluster: &Cluster, workers: &[(&str, &Row)], now: Timestamp) -> Option<Draft> {
    let limits = cluster.limits();
    // One that is new, or was worked on before, is on its way; one that was cordoned afterwards was cordoned because of it.
    let counts = |row: &Row, since: Option<Timestamp>| {
        !row.maintained
            && !in_maintenance(row, since.unwrap_or(now))
            && lasts(row.created.get(), limits.settling_seconds.into(), now)
    };
    let all = workers.iter().map(|(name, row)| (*name, *row, cut_since(row)));
    let mut counted: Vec<(&str, &Row, Option<Timestamp>)> = all.filter(|(_, row, since)| counts(row, *since)).collect();
    // Those that were lost long before most of these, or come after, are lost for themselves.
    let mut times: Vec<Timestamp> = counted.iter().filter_map(|(.., since)| *since).collect();
    times.sort_unstable();
    let middle = times.get(times.len() / 2)?.as_second();
    let near = |since: Timestamp| since.as_second().abs_diff(middle) <= TOGETHER.unsigned_abs();
    counted.retain(|(.., since)| since.is_none_or(near));
    times.retain(|since| near(*since));
    let (first, last) = (*times.first()?, *times.last()?);
    if !lasts(Some(last), LASTS, now) || cluster.memory.master.explains(Some(first), limits.master_update(), now) {
        return None;
    }
    let cut = times.len();
    let (kind, places) = PLACES.iter().find_map(|kind| Some((*kind, whole(cluster, &counted, kind, cut)?)))?;
    let named: Vec<&str> = places.iter().take(NAMED).map(|(name, _)| *name).collect();
    let more = if places.len() > NAMED { ", ..." } else { "" };
    let detail = format!(
        "all {cut} workers of {kind} {}{more} lost the control plane within {} s of each other, and none of the {} elsewhere did: something between them and it is cut, a firewall, a gateway appliance or the {kind} itself",
        named.join(", "),
        (last.as_second() - first.as_second()).max(1),
        counted.len() - cut
    );
    let next = format!(
        "ask the owner of the firewall or gateway before {kind} {} what changed or failed at {}, and compare with the addresses and ports that the provider documents, both ways; reload or replace none of these workers for it",
        named[0],
        crate::facts::utc(first)
    );
    let mut draft = Draft::new("FirewallSuspected", Warning, detail, next).since(Some(first));
    draft.area = Area::ControlPlanePath;
    Some(draft.on(places.into_iter().flat_map(|(_, place)| place.cut)))
}

/// Places of a kind of which all workers are cut off, if each that is cut off is in one of them, and others are not.
fn whole<'a>(
    cluster: &'a Cluster,
    counted: &[(&'a str, &'a Row, Option<Timestamp>)],
    kind: &str,
    cut: usize,
) -> Option<Vec<(&'a str, Place<'a>)>> {
    let mut places: BTreeMap<&str, Place<'_>> = BTreeMap::new();
    for (name, row, since) in counted {
        let Some(value) = cluster.values.of(&row.traits, kind) else { continue };
        let place = places.entry(value).or_default();
        place.workers += 1;
        place.cut.extend(since.map(|_| *name));
    }
    let whole = |place: &Place<'_>| place.cut.len() == place.workers && place.workers >= FEWEST;
    let whole: Vec<(&str, Place<'_>)> = places.into_iter().filter(|(_, place)| whole(place)).collect();
    let in_them = whole.iter().map(|(_, place)| place.cut.len()).sum::<usize>();
    (in_them == cut && cut > 0 && cut < counted.len()).then_some(whole)
}

/// Since when the control plane and a worker do not reach each other, where the worker itself does not say why.
fn cut_since(row: &Row) -> Option<Timestamp> {
    if row.kubelet_silent() {
        return row.ready_since().filter(|_| !agent_knows(row));
    }
    let lost = row.findings.iter().find(|it| it.code == "MasterUnreachable" && it.caused_by.is_none())?;
    (!row.marked_stale()).then_some(lost.since)
}

#[cfg(test)]
mod tests {
    use serde_json::Value;

    use super::*;
    use crate::aggregator::testing::{apply, at, cluster, node, silent};

    /// Three workers in zone a, five in zone b; the first so many are changed.
    fn planted(count: usize, change: impl Fn(usize, Value) -> Value) -> Cluster {
        let worker =
            |number: usize| node(&format!("n{number}"), if number < 3 { "a" } else { "b" }, "p", "Normal", &[]);
        let all = (0..8).map(|number| if number < count { change(number, worker(number)) } else { worker(number) });
        cluster(&all.collect::<Vec<_>>(), &[])
    }

    fn quiet(count: usize) -> Cluster {
        planted(count, |_, node| silent(node))
    }

    fn told(cluster: &Cluster, now: i64) -> Option<Draft> {
        let workers: Vec<(&str, &Row)> = cluster.nodes().collect();
        suspected(cluster, &workers, at(now))
    }

    #[test]
    fn a_zone_that_is_cut_off_is_told_and_clears() {
        let mut cluster = quiet(3);
        let draft = told(&cluster, 0).expect("told");
        assert_eq!((draft.code, draft.severity, draft.since), ("FirewallSuspected", Warning, Some(at(-120))));
        assert_eq!(draft.on, ["n0", "n1", "n2"]);
        let begins =
            "all 3 workers of zone a lost the control plane within 1 s of each other, and none of the 5 elsewhere";
        assert!(draft.detail.starts_with(begins), "{}", draft.detail);
        assert!(draft.next.contains("zone a what changed or failed at 2026-11-21T09:58:00Z"), "{}", draft.next);
        apply(&mut cluster, &node("n1", "a", "p", "Normal", &[]));
        assert!(told(&cluster, 0).is_none(), "one of them is heard");
    }

    #[test]
    fn agents_say_it_too_unless_they_know_why() {
        let away = |number: usize| {
            node(
                &format!("n{number}"),
                "a",
                "p",
                "Critical",
                &[("MasterUnreachable", "critical", "controlPlanePath", "d")],
            )
        };
        let cluster = planted(3, |number, _| away(number));
        assert_eq!(told(&cluster, 3_600).map(|draft| draft.on.len()), Some(3));
        let own = planted(3, |number, _| {
            let mut node = away(number);
            let findings = &mut node["metadata"]["annotations"]["nodevitals.dev/findings"];
            let mut list: Value = serde_json::from_str(findings.as_str().expect("text")).expect("findings");
            list[0]["causedBy"] = serde_json::json!({"code": "WorkerFirewallBlocked", "subject": "s"});
            *findings = list.to_string().into();
            node
        });
        assert!(own.node("n0").is_some_and(|row| row.findings[0].caused_by.is_some()));
        assert!(told(&own, 3_600).is_none(), "a rule of its own imitates a firewall");
    }

    #[test]
    fn trap_what_is_not_one_place() {
        for count in [0, 1, 2, 4, 8] {
            assert!(told(&quiet(count), 0).is_none(), "{count}: nobody, some of a zone, one elsewhere too, all");
        }
        assert!(told(&quiet(3), -1).is_none(), "a device that fails over is back by then");
        let each = planted(3, |number, node| {
            let (mut node, before) = (silent(node), 600 * i64::try_from(number).expect("few"));
            node["status"]["conditions"][0]["lastTransitionTime"] = at(-120 - before).to_string().into();
            node
        });
        assert!(told(&each, 0).is_none(), "each for itself");
        let reloaded = planted(3, |_, node| {
            let mut node = silent(node);
            node["spec"]["unschedulable"] = true.into();
            node
        });
        assert!(told(&reloaded, 0).is_none(), "a zone that is updated at once");
        let mut updated = quiet(3);
        updated.memory.master.answered("v1.34.2", at(-30));
        updated.memory.master.answered("v1.35.4", at(0));
        assert!(told(&updated, 0).is_none(), "the control plane is being updated");
    }

    #[test]
    fn who_was_lost_long_before_or_is_cordoned_for_it_hides_nothing() {
        let mut cluster = quiet(3);
        let mut other = silent(node("n7", "b", "p", "Normal", &[]));
        for second in [-9_000, 900] {
            other["status"]["conditions"][0]["lastTransitionTime"] = at(second).to_string().into();
            apply(&mut cluster, &other);
            assert_eq!(told(&cluster, 1_200).map(|draft| draft.on.len()), Some(3), "{second}");
        }
        for number in 0..3 {
            let mut node = silent(node(&format!("n{number}"), "a", "p", "Normal", &[]));
            node["spec"] = serde_json::json!({"unschedulable": true, "taints": [{"key": "node.kubernetes.io/unschedulable",
                "effect": "NoSchedule", "timeAdded": at(300)}]});
            apply(&mut cluster, &node);
        }
        assert_eq!(told(&cluster, 1_200).map(|draft| draft.on.len()), Some(3), "cordoned because of it");
    }

    #[test]
    fn the_smaller_place_is_named() {
        let subnet = |number: usize, mut node: Value| {
            node["metadata"]["labels"]["privateVLAN"] = if number < 2 { "17".into() } else { "18".into() };
            node
        };
        let mut cluster = planted(8, |number, node| subnet(number, if number < 2 { silent(node) } else { node }));
        assert!(told(&cluster, 0).is_some_and(|draft| draft.detail.contains("all 2 workers of subnet 17 lost")));
        // What is unknown of some does not make it theirs.
        let mut third = silent(node("n7", "b", "p", "Normal", &[]));
        third["metadata"]["labels"]["privateVLAN"] = Value::Null;
        apply(&mut cluster, &third);
        assert!(told(&cluster, 0).is_none());
    }
}
