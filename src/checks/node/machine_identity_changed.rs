//! The node runs on another machine, or from another installation, than before, and is still the same Node.
//!
//! *Looks at* the machine's id, the id of its board and the addresses of its network cards, against what the state file and the
//! Node's annotation kept. *Traps*: a reload or a clone makes a new Node too, so one that is younger than what was kept
//! is no change; cards alone come and go; what cannot be read tells nothing (catalogue R026).

use std::time::Duration;

use jiff::SignedDuration;

use super::super::{Area, Check, Finding, Look, Outcome, Severity, seen};
use crate::facts::{Machine, utc};

pub(super) const CHECK: Check = Check {
    code: "MachineIdentityChanged",
    area: Area::Integrity,
    severity: Severity::Warning,
    why: "the provider's record of this worker names the machine that it was, so that it may no longer be recognised, updated or repaired by it",
    next_step: "after service of a bare-metal machine reload the worker, which lets it be recognised again, or else delete it (it is billed for the whole month); if the change was meant, it is no longer told after a week",
    raise_after: Duration::ZERO,
    clear_after: Duration::ZERO,
    run,
};

fn run(look: &Look<'_>) -> Outcome {
    let past = seen!(look.now.past, Outcome::NotApplicable("no earlier state of this machine is kept here".into()));
    let Some(former) = &past.former_machine else { return Outcome::Healthy };
    // Whoever leaves it so for this long means it (catalogue H13).
    let known = SignedDuration::from_hours(24 * i64::from(look.limits.recurrence_days));
    if look.now.taken_at.duration_since(former.until) > known {
        return Outcome::Healthy;
    }
    let until = utc(former.until);
    let changes = changes(&former.machine, &past.machine);
    let detail = format!("This Node's machine is not the one that it was until {until}: {changes}");
    Outcome::from_findings(vec![Finding::new("machine", detail)])
}

/// What is different, as a list.
fn changes(then: &Machine, now: &Machine) -> String {
    let pairs = [
        ("its machine id (/etc/machine-id)", &then.machine_id, &now.machine_id),
        ("the id of its board (product_uuid)", &then.product_uuid, &now.product_uuid),
    ];
    let changed = pairs.into_iter().filter(|(_, then, now)| !then.is_empty() && !now.is_empty() && then != now);
    let mut said: Vec<String> = changed.map(|(what, then, now)| format!("{what} was {then} and is {now}")).collect();
    if !then.cards.is_empty() && !now.cards.is_empty() && then.cards.is_disjoint(&now.cards) {
        said.push("none of its network cards is the same".into());
    }
    said.join(", ")
}

#[cfg(test)]
mod tests {
    use super::super::testing::{self, Node};
    use super::*;
    use crate::facts::{FormerMachine, Past, Seen};

    fn machine(uuid: &str, card: &str) -> Machine {
        Machine { machine_id: "m".into(), product_uuid: uuid.into(), cards: [card.to_owned()].into() }
    }

    fn serviced(days: i64) -> Node {
        Node::worker().edit(|now| {
            let until = now.taken_at - SignedDuration::from_hours(24 * days);
            let former_machine = Some(FormerMachine { machine: machine("u1", "c1"), until });
            now.past = Seen::Yes(Past { machine: machine("u2", "c2"), former_machine, ..Past::default() });
        })
    }

    #[test]
    fn another_board_below_the_same_disk() {
        let outcome = run(&serviced(0).look());
        assert_eq!(testing::subjects(&outcome), ["machine"]);
        assert_eq!(
            testing::details(&outcome),
            ["This Node's machine is not the one that it was until 2023-11-14T22:13:20Z: the id of its board \
              (product_uuid) was u1 and is u2, none of its network cards is the same"]
        );
    }

    #[test]
    fn healthy_and_clears() {
        let same = Node::worker().edit(|now| now.past = Seen::Yes(Past::default()));
        assert_eq!(run(&same.look()), Outcome::Healthy);
        assert_eq!(run(&serviced(8).look()), Outcome::Healthy);
    }

    #[test]
    fn trap_a_reload_registers_the_node_anew() {
        let node = serviced(0).edit(|now| {
            let Seen::Yes(past) = &mut now.past else { panic!("there is one") };
            past.registered(Some(false), Some(now.taken_at));
            assert!(past.former_machine.is_some(), "made when it was last seen");
            past.registered(Some(false), Some(now.taken_at + SignedDuration::from_secs(1)));
        });
        assert_eq!(run(&node.look()), Outcome::Healthy);
    }

    #[test]
    fn unknown_when_what_was_kept_cannot_be_read() {
        let node = Node::worker().edit(|now| now.past = testing::denied("state.json"));
        assert!(matches!(run(&node.look()), Outcome::Unknown(_)));
        assert!(matches!(run(&Node::worker().look()), Outcome::NotApplicable(_)));
    }
}
