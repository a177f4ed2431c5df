//! Somebody keeps the lock of legacy iptables, so that nobody else can change rules.
//!
//! *Looks at* who holds `/run/xtables.lock` and who waits. *Traps*: every change holds it for a moment, also tens of changes in
//! a row; one that waits for its turn behind another that holds it for long is not told a second time (catalogue R106).

use std::time::Duration;

use super::super::{Area, Check, Finding, Look, Outcome, Severity, seen};

pub(super) const CHECK: Check = Check {
    code: "IptablesLockContention",
    area: Area::PacketFilter,
    severity: Severity::Warning,
    why: "kube-proxy, Calico and CNI plugins cannot change rules of legacy iptables meanwhile, so Services and policies become stale",
    next_step: "look at what the process that holds the lock does (`cat /proc/PID/stack`, `ps -o args,stat PID`), and end it if it hangs",
    // Looks are 10 s apart: it was seen in every one of at least three.
    raise_after: Duration::from_secs(30),
    clear_after: Duration::from_secs(2),
    run,
};

fn run(look: &Look<'_>) -> Outcome {
    let users = seen!(look.now.xtables_lock, Outcome::NotApplicable("nobody uses legacy iptables here".into()));
    let held = users.holders.iter().map(|user| {
        let waiting = match users.waiters.len() {
            0 => String::new(),
            count => format!(", and {count} {} for it", if count == 1 { "process waits" } else { "processes wait" }),
        };
        Finding::new(format!("held by {}", user.pid), format!("{user} holds /run/xtables.lock{waiting}"))
    });
    // Whoever waits for longer than the present holder has it, waits for many in a row.
    let held_since = users.holders.iter().map(|user| user.since).min();
    let passed_over = users.waiters.iter().filter(|user| held_since.is_none_or(|since| user.since < since));
    let passed_over = passed_over.map(|user| {
        let detail = format!("{user} waits for /run/xtables.lock, which others take again and again");
        Finding::new(format!("awaited by {}", user.pid), detail)
    });
    Outcome::from_findings(held.chain(passed_over).collect())
}

#[cfg(test)]
mod tests {
    use super::super::testing::{self, Node};
    use super::*;
    use crate::facts::{LockUser, Seen, XtablesLock};

    fn user(pid: u32, program: Option<&str>, since: i64) -> LockUser {
        let since = jiff::Timestamp::from_second(since).expect("valid");
        LockUser { pid, program: program.map(Into::into), since }
    }

    fn node(holders: Vec<LockUser>, waiters: Vec<LockUser>) -> Node {
        Node::worker().edit(|now| now.xtables_lock = Seen::Yes(XtablesLock { holders, waiters }))
    }

    #[test]
    fn a_holder_is_named() {
        let node = node(vec![user(812, Some("iptables-restor"), 10)], vec![]);
        let outcome = run(&node.look());
        assert_eq!(testing::subjects(&outcome), ["held by 812"]);
        assert_eq!(testing::details(&outcome), ["iptables-restor (pid 812) holds /run/xtables.lock"]);
    }

    #[test]
    fn trap_who_waits_behind_one_holder_is_not_told_twice() {
        let node = node(vec![user(812, None, 10)], vec![user(813, None, 10), user(814, None, 20)]);
        let details = testing::details(&run(&node.look()));
        assert_eq!(details, ["pid 812 holds /run/xtables.lock, and 2 processes wait for it"]);
    }

    #[test]
    fn who_is_passed_over_is_told() {
        let node = node(vec![user(812, None, 30)], vec![user(813, Some("kube-proxy"), 10)]);
        assert_eq!(testing::subjects(&run(&node.look())), ["awaited by 813", "held by 812"]);
    }

    #[test]
    fn trap_short_holds_never_count() {
        // Each look sees another process: another subject, for which the time starts anew.
        let subjects = [812, 813].map(|pid| testing::subjects(&run(&node(vec![user(pid, None, 10)], vec![]).look())));
        assert_ne!(subjects[0], subjects[1]);
        assert!(CHECK.raise_after >= Duration::from_secs(30));
    }

    #[test]
    fn healthy_clears_not_applicable_and_unknown() {
        assert_eq!(run(&node(vec![], vec![]).look()), Outcome::Healthy);
        assert!(matches!(run(&Node::worker().look()), Outcome::NotApplicable(_)));
        let denied = Node::worker().edit(|now| now.xtables_lock = testing::denied("/proc/locks"));
        assert!(matches!(run(&denied.look()), Outcome::Unknown(_)));
    }
}
