//! Somebody keeps the lock of legacy iptables, so that nobody else can change rules, or those who change rules hang.
//!
//! *Looks at* who holds `/run/xtables.lock` and who waits, and at children of kube-proxy and Felix that have ended while they
//! changed rules and that their parent does not ask about. *Traps*: every change holds the lock for a moment, also tens of
//! changes in a row; one that waits for its turn behind another that holds it for long is not told a second time; a child that
//! has just ended is asked about in the next moment, so it has to be seen by two walks, a minute apart; a change that fails once
//! is tried again, so kube-proxy's own count of failures has to grow in two minutes in a row (catalogue R106).

use std::time::Duration;

use super::super::{Area, Check, Finding, Look, Outcome, Severity};
use crate::facts::{Program, Seen, XtablesLock};

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

/// What to do about an owner that hangs.
const HANGS: &str = "read its log for errors of iptables-restore or nft, see whether another program changes the same tables, and delete its pod: what it should have written is not there";

/// One that fails is tried again within the same minute; so many minutes with some are no lost race.
const FAILING: u32 = 2;

fn run(look: &Look<'_>) -> Outcome {
    let mut findings = defunct(look);
    findings.extend(failing(look));
    match &look.now.xtables_lock {
        Seen::Yes(users) => findings.extend(users_of(users)),
        _ if !findings.is_empty() => {}
        Seen::Absent => return Outcome::NotApplicable("nobody uses legacy iptables here".into()),
        Seen::Unreadable(error) => return Outcome::unknown(error),
    }
    Outcome::from_findings(findings)
}

/// Who keeps the lock, and who waits.
fn users_of(users: &XtablesLock) -> Vec<Finding> {
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
    held.chain(passed_over).collect()
}

/// A kube-proxy that says that its changes fail, minute after minute.
fn failing(look: &Look<'_>) -> Option<Finding> {
    let minutes = look.now.health.restores_failing;
    let detail =
        "kube-proxy counts changes of rules that failed (iptables-restore or nft), again in each of the last minutes";
    (minutes >= FAILING).then(|| Finding::new("changes of kube-proxy", detail).next(HANGS))
}

/// Owners of rules that do not ask about their children.
fn defunct(look: &Look<'_>) -> Vec<Finding> {
    let Some(processes) = look.now.processes.get() else { return Vec::new() };
    let owners = [(Program::KubeProxy, "kube-proxy"), (Program::Felix, "Felix (calico-node)")];
    let told = owners.iter().filter_map(|(owner, name)| {
        let children: Vec<String> =
            processes.defunct.iter().filter(|it| it.0 == *owner).map(|it| format!("{} (pid {})", it.1, it.2)).collect();
        let first = children.first()?;
        let detail = format!(
            "{name} does not ask about its children that have ended while they changed rules: {first}{}",
            if children.len() > 1 { format!(" and {} more", children.len() - 1) } else { String::new() }
        );
        Some(Finding::new(format!("children of {name}"), detail).next(HANGS))
    });
    told.collect()
}

#[cfg(test)]
mod tests {
    use super::super::testing::{self, Node};
    use super::*;
    use crate::facts::LockUser;

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
    fn children_of_kube_proxy_that_nobody_asks_about() {
        let with = |node: Node, defunct: &[(Program, &str, i32)]| {
            let defunct = defunct.iter().map(|(owner, name, pid)| (*owner, (*name).to_owned(), *pid)).collect();
            node.edit(|now| {
                let Seen::Yes(processes) = &mut now.processes else { panic!("seen") };
                processes.defunct = defunct;
            })
        };
        let children = [(Program::KubeProxy, "iptables-restor", 41), (Program::KubeProxy, "ip6tables", 42)];
        let details = testing::details(&run(&with(Node::worker(), &children).look()));
        assert_eq!(details.len(), 1);
        assert!(
            details[0].starts_with("kube-proxy does not ask")
                && details[0].ends_with("iptables-restor (pid 41) and 1 more")
        );
        let both = with(node(vec![user(812, None, 10)], vec![]), &[(Program::Felix, "nft", 7)]);
        assert_eq!(testing::subjects(&run(&both.look())), ["children of Felix (calico-node)", "held by 812"]);
        assert!(matches!(run(&with(Node::worker(), &[]).look()), Outcome::NotApplicable(_)));
    }

    #[test]
    fn changes_that_fail_minute_after_minute() {
        let failing = |minutes: u32| Node::worker().edit(|now| now.health.restores_failing = minutes);
        assert_eq!(testing::subjects(&run(&failing(2).look())), ["changes of kube-proxy"]);
        assert!(matches!(run(&failing(1).look()), Outcome::NotApplicable(_)), "it is tried again");
    }

    #[test]
    fn healthy_clears_not_applicable_and_unknown() {
        assert_eq!(run(&node(vec![], vec![]).look()), Outcome::Healthy);
        assert!(matches!(run(&Node::worker().look()), Outcome::NotApplicable(_)));
        let denied = Node::worker().edit(|now| now.xtables_lock = testing::denied("/proc/locks"));
        assert!(matches!(run(&denied.look()), Outcome::Unknown(_)));
    }
}
