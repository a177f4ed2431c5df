//! The connection tracking table is nearly full.
//!
//! *Looks at* `nf_conntrack_count` against `nf_conntrack_max`. *Trap*: once it is full, `ConntrackFull` says so alone
//! (catalogue R039).

use std::time::Duration;

use super::super::{Area, Check, Finding, Look, Outcome, Severity, seen};
use super::conntrack_full::percent;

pub(super) const CHECK: Check = Check {
    code: "ConntrackNearFull",
    area: Area::PacketFilter,
    severity: Severity::Warning,
    why: "when it is full every new connection is dropped, even to localhost",
    next_step: "see who holds the entries (`conntrack -L | sort`) and raise `net.netfilter.nf_conntrack_max` before it fills",
    raise_after: Duration::from_secs(30),
    clear_after: Duration::from_secs(60),
    run,
};

fn run(look: &Look<'_>) -> Outcome {
    let conntrack = seen!(look.now.conntrack, Outcome::NotApplicable("connection tracking is not in use".into()));
    if conntrack.max == 0 {
        return Outcome::NotApplicable("connection tracking has no limit here".into());
    }
    let (near, full) = (look.limits.conntrack_near_full_percent, look.limits.conntrack_full_percent);
    let used = percent(conntrack);
    if used < u64::from(near) || used >= u64::from(full) {
        return Outcome::Healthy;
    }
    let detail = format!("Connection tracking holds {} of {} entries ({used} %)", conntrack.count, conntrack.max);
    Outcome::from_findings(vec![Finding::new("nf_conntrack", detail)])
}

#[cfg(test)]
mod tests {
    use super::super::testing::{self, Node};
    use super::*;
    use crate::facts::{Conntrack, Seen};

    fn with(count: u64, max: u64) -> Outcome {
        let seen = Seen::Yes(Conntrack { count, max, ..Conntrack::default() });
        run(&Node::worker().edit(|now| now.conntrack = seen.clone()).look())
    }

    #[test]
    fn near_full() {
        assert_eq!(testing::subjects(&with(850, 1_000)), ["nf_conntrack"]);
    }

    #[test]
    fn healthy_and_clears() {
        assert_eq!(with(799, 1_000), Outcome::Healthy);
    }

    #[test]
    fn trap_full_is_told_by_the_other_check_and_no_limit_is_no_fault() {
        assert_eq!(with(1_000, 1_000), Outcome::Healthy);
        assert!(matches!(with(5, 0), Outcome::NotApplicable(_)));
    }

    #[test]
    fn unknown_when_it_cannot_be_read() {
        let node = Node::worker().edit(|now| now.conntrack = testing::denied("nf_conntrack_count"));
        assert!(matches!(run(&node.look()), Outcome::Unknown(_)));
    }
}
