//! The connection tracking table is full: new connections are dropped, even to localhost.
//!
//! *Looks at* `nf_conntrack_count` against `nf_conntrack_max`, and at the kernel's drop counter. *Trap*: max 0 means no
//! limit; a counter that grew long ago is no fault now; packets are dropped for other reasons too, so with room to spare only the kernel's own
//! word counts, and that alone may be about another network namespace (catalogue R039). What else grew meanwhile (entries thrown out or not
//! inserted, SYNs sent again) is told with it.

use std::fmt::Write as _;
use std::time::Duration;

use super::super::{Area, Check, Finding, Look, Outcome, Severity, seen};
use super::ephemeral_ports_near_full::syn_retransmits;
use crate::facts::{Conntrack, KernelFault};

pub(super) const CHECK: Check = Check {
    code: "ConntrackFull",
    area: Area::PacketFilter,
    severity: Severity::Critical,
    why: "every new connection of every pod and of the node itself, even to localhost, is dropped while the node stays Ready",
    next_step: "see who holds the entries (`conntrack -L | sort`), end or restart that workload, and raise `net.netfilter.nf_conntrack_max`",
    raise_after: Duration::from_secs(5),
    clear_after: Duration::from_secs(30),
    run,
};

fn run(look: &Look<'_>) -> Outcome {
    let conntrack = seen!(look.now.conntrack, Outcome::NotApplicable("connection tracking is not in use".into()));
    if conntrack.max == 0 {
        return Outcome::NotApplicable("connection tracking has no limit here".into());
    }
    let full = percent(conntrack) >= u64::from(look.limits.conntrack_full_percent);
    let nearly = percent(conntrack) >= u64::from(look.limits.conntrack_near_full_percent);
    // It was full between two looks.
    let said = || look.now.kernel_log.get().is_some_and(|log| log.of(&[KernelFault::ConntrackFull]).next().is_some());
    let dropping = conntrack.dropped_since > 0 && (nearly || said());
    if !full && !dropping {
        return Outcome::Healthy;
    }
    let Conntrack { count, max, .. } = conntrack;
    let mut detail = format!("Connection tracking holds {count} of {max} entries");
    let growth = [
        (conntrack.dropped_since, "packets were dropped"),
        (conntrack.early_drop_since, "entries were thrown out to make room"),
        (conntrack.insert_failed_since, "entries could not be inserted"),
    ];
    for (number, what) in growth.into_iter().filter(|(number, _)| *number > 0) {
        write!(detail, ", {number} {what} since the last look").ok();
    }
    if !full && !nearly {
        detail.push_str("; the kernel's log says that the table was full");
    }
    detail.push_str(&syn_retransmits(look));
    Outcome::from_findings(vec![Finding::new("nf_conntrack", detail)])
}

/// How full the table is, in percent.
pub(super) fn percent(conntrack: &Conntrack) -> u64 {
    conntrack.count.saturating_mul(100).checked_div(conntrack.max).unwrap_or(0)
}

#[cfg(test)]
mod tests {
    use super::super::testing::{self, Node};
    use super::*;
    use crate::facts::Seen;

    fn with(count: u64, max: u64, dropped_since: u64) -> Outcome {
        let seen = Seen::Yes(Conntrack { count, max, dropped: 10_000, dropped_since, ..Conntrack::default() });
        run(&Node::worker().edit(|now| now.conntrack = seen.clone()).look())
    }

    #[test]
    fn full_or_dropping() {
        assert_eq!(testing::subjects(&with(1_000, 1_000, 0)), ["nf_conntrack"]);
        assert!(testing::details(&with(900, 1_000, 7))[0].contains("7 packets were dropped"));
    }

    #[test]
    fn what_else_grew_is_told() {
        let node = Node::worker().edit(|now| {
            let full = Conntrack {
                count: 1_000,
                max: 1_000,
                insert_failed_since: 4,
                early_drop_since: 3,
                ..Conntrack::default()
            };
            now.conntrack = Seen::Yes(full);
            let Seen::Yes(sockets) = &mut now.traffic.sockets else { panic!("seen") };
            sockets.syn_retransmits_since = 12;
        });
        let detail = &testing::details(&run(&node.look()))[0];
        for part in ["3 entries were thrown out", "4 entries could not be inserted", "12 SYNs were sent again"] {
            assert!(detail.contains(part), "{detail}");
        }
    }

    #[test]
    fn full_between_two_looks() {
        let node = |dropped_since| {
            let seen = Conntrack { count: 100, max: 1_000, dropped_since, ..Conntrack::default() };
            let node = Node::worker().edit(|now| now.conntrack = Seen::Yes(seen));
            let line = "nf_conntrack: nf_conntrack: table full, dropping packet";
            node.kernel_says(KernelFault::ConntrackFull, "", line)
        };
        let told = testing::details(&run(&node(9).look()));
        assert!(told[0].contains("100 of 1000 entries, 9 packets were dropped"), "{told:?}");
        assert!(told[0].contains("the kernel's log says that the table was full"), "{told:?}");
        assert_eq!(run(&node(0).look()), Outcome::Healthy, "an old line, or another network namespace");
    }

    #[test]
    fn healthy_and_clears() {
        assert_eq!(with(100, 1_000, 0), Outcome::Healthy);
    }

    #[test]
    fn trap_no_limit_and_old_drops_and_no_module() {
        assert!(matches!(with(5, 0, 0), Outcome::NotApplicable(_)));
        assert_eq!(with(100, 1_000, 3), Outcome::Healthy, "drops with room to spare have another cause");
        let node = Node::worker().edit(|now| now.conntrack = Seen::Absent);
        assert!(matches!(run(&node.look()), Outcome::NotApplicable(_)));
    }

    #[test]
    fn unknown_when_it_cannot_be_read() {
        let node = Node::worker().edit(|now| now.conntrack = testing::denied("nf_conntrack_count"));
        assert!(matches!(run(&node.look()), Outcome::Unknown(_)));
    }
}
