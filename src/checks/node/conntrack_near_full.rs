//! The connection tracking table is nearly full.
//!
//! *Looks at* `nf_conntrack_count` against `nf_conntrack_max`. *Trap*: once it is full, `ConntrackFull` says so alone.
//!
//! Each network namespace has a table of its own, and all have the same limit. What is counted here is this node's; that another
//! one is full, of a Pod that tracks connections itself, only the kernel's log tells. Newer kernels name the namespace there, older
//! ones do not: it is another's if this node has dropped nothing for longer than such a line stands. *Traps*: a line about this node's own
//! table; an old line; an agent that has just started, which does not know what was dropped before (catalogue R039).

use std::time::Duration;

use super::super::{Area, Check, Finding, Look, Outcome, Severity, kernel, seen};
use super::conntrack_full::percent;
use crate::facts::{Conntrack, KernelFault};

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
    let own = (u64::from(near)..u64::from(full)).contains(&used).then(|| {
        let detail = format!("Connection tracking holds {} of {} entries ({used} %)", conntrack.count, conntrack.max);
        Finding::new("nf_conntrack", detail)
    });
    Outcome::from_findings(own.into_iter().chain(elsewhere(look, conntrack)).collect())
}

/// That the table of another network namespace is full.
fn elsewhere(look: &Look<'_>, own: &Conntrack) -> Option<Finding> {
    let said = || look.now.kernel_log.get().into_iter().flat_map(|log| log.of(&[KernelFault::ConntrackFull]));
    let named = || said().filter(|event| !event.subject.is_empty());
    // A line without a number is the same event on an old kernel, and this node's own on a new one.
    let event = named().next().or_else(|| said().next()).filter(|_| own.quiet)?;
    let numbers: Vec<&str> = named().map(|event| event.subject.as_str()).collect();
    let which = if numbers.is_empty() { String::new() } else { format!(" ({})", numbers.join(", ")) };
    let what = format!(
        "The connection tracking table of another network namespace{which} on this node is full, as a Pod has that tracks connections \
         itself: new connections there are dropped. This node's own table holds {} of {} entries and has dropped nothing",
        own.count, own.max
    );
    let finding = kernel::finding("another network namespace", &what, event);
    Some(finding.next(
        "find the Pod (`lsns -t net` lists namespaces by number, with a process of each; `nsenter -t PID -n conntrack -C` counts its \
         entries), and end what opens so many connections in it, or raise `net.netfilter.nf_conntrack_max`, the limit of each namespace",
    ))
}

#[cfg(test)]
mod tests {
    use super::super::testing::{self, Node};
    use super::*;
    use crate::facts::Seen;

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

    const LINE: &str = "nf_conntrack: nf_conntrack: table full, dropping packet";
    const NAMED: &str = "nf_conntrack: nf_conntrack: table full in netns 4026532301, dropping packet";

    /// A node whose own table holds so many of 1,000 entries.
    fn node(count: u64, quiet: bool) -> Node {
        let own = Conntrack { count, max: 1_000, quiet, ..Conntrack::default() };
        Node::worker().edit(|now| now.conntrack = Seen::Yes(own))
    }

    #[test]
    fn another_network_namespaces_table_is_full() {
        let unnamed = node(100, true).kernel_says(KernelFault::ConntrackFull, "", LINE);
        assert_eq!(testing::subjects(&run(&unnamed.look())), ["another network namespace"]);
        let detail = testing::details(&run(&unnamed.look())).remove(0);
        assert!(detail.contains("of another network namespace on this node is full"), "{detail}");
        assert!(detail.contains("own table holds 100 of 1000 entries") && detail.contains(LINE), "{detail}");
        let named = unnamed.kernel_says(KernelFault::ConntrackFull, "4026532301", NAMED);
        let detail = testing::details(&run(&named.look())).remove(0);
        assert!(detail.contains("of another network namespace (4026532301) on") && detail.contains(NAMED), "{detail}");
        let both = node(850, true).kernel_says(KernelFault::ConntrackFull, "4026532301", NAMED);
        assert_eq!(testing::subjects(&run(&both.look())), ["another network namespace", "nf_conntrack"]);
    }

    #[test]
    fn trap_a_line_that_may_be_about_this_nodes_own_table() {
        for count in [100, 1_000] {
            let own = node(count, false).kernel_says(KernelFault::ConntrackFull, "", LINE);
            assert_eq!(run(&own.look()), Outcome::Healthy, "{count}");
        }
    }

    #[test]
    fn another_namespaces_table_clears_with_the_last_line_and_is_not_known_without_the_log() {
        assert_eq!(run(&node(100, true).look()), Outcome::Healthy);
        let blind = node(100, true).edit(|now| now.kernel_log = testing::denied("/dev/kmsg"));
        assert_eq!(run(&blind.look()), Outcome::Healthy, "this node's own is known");
        let unread = node(100, true).kernel_says(KernelFault::ConntrackFull, "", LINE);
        let unread = unread.edit(|now| now.conntrack = testing::denied("nf_conntrack_count"));
        assert!(matches!(run(&unread.look()), Outcome::Unknown(_)));
    }

    #[test]
    fn unknown_when_it_cannot_be_read() {
        let node = Node::worker().edit(|now| now.conntrack = testing::denied("nf_conntrack_count"));
        assert!(matches!(run(&node.look()), Outcome::Unknown(_)));
    }
}
