//! An uplink loses its carrier again and again or counts errors, or a neighbour table overflows.
//!
//! *Looks at* the growth of `carrier_changes`, `rx_errors` and `tx_errors` of the uplinks and of the members of their bonds
//! and bridges, and of `table_fulls` of the kernel's neighbour tables. *Traps*: links to pods come and go with their pods;
//! a link that an administrator brought down; drops are no errors, packets of unknown protocols count there; one cable
//! that is replugged is two changes; the neighbour tables are those of all network namespaces together (catalogue R089,
//! R039).

use std::time::Duration;

use super::super::{Area, Check, Finding, Look, Outcome, Severity, findings_or_unknown};
use crate::facts::{CARRIER_MINUTES, LinkCounters, MINUTES, NeighbourTable};

pub(super) const CHECK: Check = Check {
    code: "LinkErrors",
    area: Area::PodRouting,
    severity: Severity::Warning,
    why: "packets are lost below everything that the other checks look at: connections stall and peers flap for no visible reason",
    next_step: "check cable, transceiver and switch port, and the driver's counters (`ethtool -S LINK`, `dmesg`)",
    raise_after: Duration::from_secs(2),
    // The windows are long enough.
    clear_after: Duration::from_secs(5),
    run,
};

/// So many changes in [`CARRIER_MINUTES`] are more than one replugged cable.
const FLAPS: u64 = 3;
/// So many errors in [`MINUTES`] count...
const ERRORS: u64 = 100;
/// ...if they are more than one in so many packets.
const SHARE: u64 = 1_000;

fn run(look: &Look<'_>) -> Outcome {
    if !look.expected.worker {
        return Outcome::NotApplicable("this is no Kubernetes worker".into());
    }
    let traffic = &look.now.traffic;
    let links = traffic.links.get().into_iter().flatten();
    let findings = links.filter_map(link).chain(traffic.neighbours.iter().filter_map(table));
    findings_or_unknown(findings.collect(), traffic.links.error())
}

fn link(counters: &LinkCounters) -> Option<Finding> {
    let LinkCounters { link, up, packets, errors, carrier_changes } = counters;
    let mut what = Vec::new();
    if *carrier_changes >= FLAPS {
        what.push(format!("changed its carrier {carrier_changes} times in {CARRIER_MINUTES} minutes"));
    }
    if *errors > ERRORS && errors.saturating_mul(SHARE) > *packets {
        what.push(format!("counts {errors} errors among {packets} packets in {MINUTES} minutes"));
    }
    (*up && !what.is_empty()).then(|| Finding::new(link, format!("The uplink {link} {}", what.join(" and "))))
}

fn table(table: &NeighbourTable) -> Option<Finding> {
    let NeighbourTable { family, entries, limit, overflows } = table;
    let limit = limit.map_or_else(String::new, |limit| format!(" of {limit}"));
    let version = family.to_string().to_lowercase();
    (*overflows > 0).then(|| {
        let detail = format!(
            "The neighbour table {family} holds {entries}{limit} entries, those of all Pods included, and overflowed {overflows} times in {MINUTES} minutes"
        );
        let step = format!(
            "raise `net.{version}.neigh.default.gc_thresh3` (and gc_thresh2 below it), and see which network has so many neighbours (`ip neigh | wc -l`; if that are few, the same in Pods by `nsenter -t PID -n`)"
        );
        Finding::new(format!("neighbour table {family}"), detail).next(step)
    })
}

#[cfg(test)]
mod tests {
    use super::super::testing::{self, Node};
    use super::*;
    use crate::facts::{Family, Seen};

    fn with(packets: u64, errors: u64, carrier_changes: u64, up: bool) -> Outcome {
        let counters = LinkCounters { link: "eth0".into(), up, packets, errors, carrier_changes };
        run(&Node::worker().edit(|now| now.traffic.links = Seen::Yes(vec![counters])).look())
    }

    #[test]
    fn flaps_or_errors_or_both() {
        assert_eq!(
            testing::details(&with(0, 0, 3, true)),
            ["The uplink eth0 changed its carrier 3 times in 10 minutes"]
        );
        assert_eq!(testing::subjects(&with(100_000, 101, 0, true)), ["eth0"]);
        assert!(
            testing::details(&with(100_000, 150, 9, true))[0]
                .ends_with("and counts 150 errors among 100000 packets in 5 minutes")
        );
    }

    #[test]
    fn a_neighbour_table_overflows() {
        let node = Node::worker().edit(|now| {
            let table = |family, overflows| NeighbourTable { family, entries: 1024, limit: Some(1024), overflows };
            now.traffic.neighbours = vec![table(Family::V4, 3), table(Family::V6, 0)];
        });
        let outcome = run(&node.look());
        assert_eq!(testing::subjects(&outcome), ["neighbour table IPv4"]);
        let Outcome::Findings(findings) = outcome else { panic!("findings") };
        assert!(
            findings[0].next_step.as_deref().is_some_and(|step| step.contains("net.ipv4.neigh.default.gc_thresh3"))
        );
    }

    #[test]
    fn healthy_and_clears() {
        assert_eq!(with(100_000, 100, 2, true), Outcome::Healthy);
        assert_eq!(run(&Node::worker().look()), Outcome::Healthy);
    }

    #[test]
    fn trap_few_errors_among_many_packets_and_many_among_more() {
        assert_eq!(with(50, 100, 0, true), Outcome::Healthy, "a link that starts");
        assert_eq!(with(1_000_000, 1_000, 0, true), Outcome::Healthy, "one in a thousand");
    }

    #[test]
    fn trap_brought_down_and_a_plain_machine() {
        assert_eq!(with(0, 500, 9, false), Outcome::Healthy);
        let node = Node::plain_machine();
        assert!(matches!(run(&node.look()), Outcome::NotApplicable(_)));
    }

    #[test]
    fn unknown_when_the_counters_cannot_be_read() {
        let node = Node::worker().edit(|now| now.traffic.links = testing::denied("counters of eth0"));
        assert!(matches!(run(&node.look()), Outcome::Unknown(_)));
    }
}
