//! What is known of this node from before: its boot before this one, and the machine that it was.

use std::collections::BTreeSet;

use jiff::Timestamp;
use serde::{Deserialize, Serialize};

use super::Learned;

/// What earlier processes of this agent knew of the node, and what it is now. It is kept across boots.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct Past {
    /// The boot before this one; none where none is known, and once nothing is to be feared from its end any more.
    pub boot: Option<FormerBoot>,
    /// The machine of this boot.
    pub machine: Machine,
    /// The machine that this node was before, if it is another one now.
    pub former_machine: Option<FormerMachine>,
    /// `spec.unschedulable` of the Node, as it was last read.
    pub cordoned: Option<bool>,
    /// What it took long to learn of this node; older versions do not write it.
    pub learned: Learned,
}

/// The boot before this one.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct FormerBoot {
    /// Its `/proc/sys/kernel/random/boot_id`.
    pub id: String,
    /// When something was last written down in it.
    pub until: Timestamp,
    /// When this boot began.
    pub next_at: Timestamp,
    /// Whether the Node was cordoned when it ended.
    pub cordoned: Option<bool>,
    /// How it ended.
    pub end: End,
}

/// How a boot ended, as programs wrote it down.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub enum End {
    /// By a shutdown.
    Orderly,
    /// Without one; the text is a clause that says what shows it.
    Abrupt(String),
    /// Nobody wrote it down.
    Untold,
}

/// What makes a machine this one.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct Machine {
    /// `/etc/machine-id`: of the installation on its disk.
    pub machine_id: String,
    /// `/sys/class/dmi/id/product_uuid`, in lower case: of its board.
    pub product_uuid: String,
    /// The addresses that are burnt into its network cards.
    pub cards: BTreeSet<String>,
}

/// A machine that this node was.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct FormerMachine {
    /// What it was.
    pub machine: Machine,
    /// When it was last seen.
    pub until: Timestamp,
}

impl Machine {
    /// Whether it is another machine, or has another installation. What either does not know tells nothing; cards alone are
    /// exchanged without anybody noticing.
    pub fn differs(&self, other: &Machine) -> bool {
        let differ = |a: &str, b: &str| !a.is_empty() && !b.is_empty() && a != b;
        differ(&self.machine_id, &other.machine_id) || differ(&self.product_uuid, &other.product_uuid)
    }
}

impl Past {
    /// What is to be known in a boot that began at `began`, from what was kept until then in the boot `of`, and the Node as it
    /// is read now: a drain just before the end may not have been seen then, and the Node stays cordoned over it.
    #[must_use]
    pub fn carried(
        self,
        (of, until): (&str, Timestamp),
        (boot_id, began): (&str, Timestamp),
        machine: Machine,
        cordoned: Option<bool>,
    ) -> Past {
        let same_boot = of == boot_id && !of.is_empty();
        let learned = self.learned_for(same_boot, &machine);
        let boot = if same_boot || of.is_empty() || boot_id.is_empty() {
            self.boot
        } else {
            let cordoned = self.cordoned.max(cordoned);
            Some(FormerBoot { id: of.to_owned(), until, next_at: began, cordoned, end: End::Untold })
        };
        let former_machine = match self.former_machine {
            Some(former) => former.machine.differs(&machine).then_some(former),
            None if self.machine.differs(&machine) => Some(FormerMachine { machine: self.machine, until }),
            None => None,
        };
        Past { boot, machine, former_machine, cordoned: cordoned.or(self.cordoned), learned }
    }

    /// What of that which was learned holds on this machine, in the boot in which it was kept or in another one.
    #[must_use]
    pub fn learned_for(&self, same_boot: bool, machine: &Machine) -> Learned {
        let learned = || self.learned.clone();
        match self.machine.differs(machine) {
            true => Learned::default(),
            false if same_boot => learned(),
            false => learned().after_boot(),
        }
    }

    /// Takes in what the Node object says: whether it is cordoned and when it was made. One that is younger than what is
    /// known was reloaded or cloned and registered anew, so that nothing from before counts.
    pub fn registered(&mut self, cordoned: Option<bool>, at: Option<Timestamp>) {
        self.cordoned = cordoned.or(self.cordoned);
        let before = |until: Timestamp| at.is_none_or(|at| at <= until);
        self.boot = self.boot.take().filter(|boot| before(boot.until));
        self.former_machine = self.former_machine.take().filter(|former| before(former.until));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn at(second: i64) -> Timestamp {
        Timestamp::from_second(1_700_000_000 + second).expect("valid")
    }

    fn machine(id: &str, uuid: &str) -> Machine {
        Machine { machine_id: id.into(), product_uuid: uuid.into(), cards: BTreeSet::new() }
    }

    fn past(cordoned: Option<bool>) -> Past {
        Past { machine: machine("m", "u"), cordoned, ..Past::default() }
    }

    fn carried(past: Past, boot: &str, cordoned: Option<bool>) -> Past {
        past.carried(("b1", at(0)), (boot, at(60)), machine("m", "u"), cordoned)
    }

    #[test]
    fn the_boot_before_is_known_from_the_next_one_on() {
        assert_eq!(carried(past(None), "b1", Some(false)).boot, None, "the agent was only restarted");
        let first = carried(past(Some(false)), "b2", Some(false));
        let boot = first.boot.clone().expect("there was one");
        assert_eq!((boot.id.as_str(), boot.until, boot.next_at, boot.cordoned), ("b1", at(0), at(60), Some(false)));
        let again = first.clone().carried(("b2", at(90)), ("b2", at(61)), machine("m", "u"), Some(true));
        assert_eq!(again.boot, first.boot, "a restart of the agent, and a cordon that came later");
        for unknown in ["", "b2"] {
            let of = if unknown.is_empty() { "b2" } else { "" };
            assert_eq!(past(None).carried((of, at(0)), (unknown, at(60)), machine("m", "u"), None).boot, None);
        }
    }

    #[test]
    fn what_was_learned_is_of_this_machine_and_partly_of_this_boot() {
        let registries = std::collections::BTreeSet::from(["icr.io".to_owned()]);
        let mut learned = Learned { registries: registries.clone(), ..Learned::default() };
        learned.kubelet_starts.take(7, at(0));
        let kept = || Past { learned: learned.clone(), ..past(None) };
        assert_eq!(carried(kept(), "b1", None).learned, learned, "the agent was restarted");
        assert_eq!(carried(kept(), "b2", None).learned, Learned { registries, ..Learned::default() });
        let other = kept().carried(("b1", at(0)), ("b1", at(60)), machine("other", "u"), None);
        assert_eq!(other.learned, Learned::default());
    }

    #[test]
    fn a_cordon_that_nobody_saw_before_the_reboot_is_still_there_after_it() {
        for (kept, now, then) in [
            (Some(false), Some(true), Some(true)),
            (Some(true), Some(false), Some(true)),
            (None, Some(false), Some(false)),
            (Some(false), None, Some(false)),
            (None, None, None),
        ] {
            assert_eq!(carried(past(kept), "b2", now).boot.expect("one").cordoned, then, "{kept:?} {now:?}");
        }
    }

    #[test]
    fn a_machine_is_another_until_it_is_the_old_one_again_or_registered_anew() {
        let swapped = past(None).carried(("b1", at(0)), ("b2", at(60)), machine("m", "other"), None);
        let former = FormerMachine { machine: machine("m", "u"), until: at(0) };
        assert_eq!(swapped.former_machine, Some(former.clone()));
        let later = swapped.clone().carried(("b2", at(90)), ("b3", at(100)), machine("m", "other"), None);
        assert_eq!(later.former_machine, Some(former), "it does not become the usual one by a reboot");
        let back = swapped.clone().carried(("b2", at(90)), ("b3", at(100)), machine("m", "u"), None);
        assert_eq!(back.former_machine, None);
        let mut reloaded = swapped.clone();
        reloaded.registered(Some(false), Some(at(-100)));
        assert_eq!(reloaded.former_machine, swapped.former_machine);
        reloaded.registered(Some(false), Some(at(30)));
        assert_eq!((reloaded.former_machine, reloaded.boot), (None, None));
    }

    #[test]
    fn what_is_not_known_is_no_difference() {
        assert!(!machine("m", "").differs(&machine("m", "u")) && !machine("", "u").differs(&machine("m", "u")));
        assert!(machine("m", "u").differs(&machine("n", "u")));
    }
}
