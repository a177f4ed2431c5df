//! Which chains matter in a big rule set, so that not all of them have to be listed after every commit.

use std::collections::BTreeSet;
use std::time::{Duration, Instant};

use crate::facts::{Family, Ruleset, Table};

/// A rule set is big when it has more chains than this. Listing fewer costs less than asking for those that matter.
const BIG: usize = 2_000;
/// All chains of a big rule set are listed at most this often while it changes all the time. A chain that is new to this
/// node is seen that much later; one that goes, or comes back, is seen at once.
const ALL_AGAIN: Duration = Duration::from_secs(60);
/// So many chains are asked for by name. A rule set in which more of them matter is listed.
const MOST_NAMES: usize = 512;

/// Family, table and name of a chain; no family stands for `inet`.
pub(super) type Name = (Option<Family>, String, String);

/// What the last list of all chains told, and the names that earlier ones did.
#[derive(Debug, Default)]
pub(super) struct Catalogue {
    names: BTreeSet<Name>,
    /// Family, name, and the counts of chains that are not kept.
    tables: Vec<(Option<Family>, String, u32, u32)>,
    /// When all were listed; none when they are not many.
    listed: Option<Instant>,
    /// Whether chains were asked for by name since then.
    used: bool,
}

impl Catalogue {
    /// Takes over what a list of all chains told; `more` names those that are not kept in the rule set.
    pub(super) fn take(&mut self, ruleset: &Ruleset, more: impl Iterator<Item = Name>) {
        let chains = |(family, table): (Option<Family>, &Table)| {
            let name = table.name.clone();
            let chains: Vec<Name> =
                table.chains.iter().map(|chain| (family, name.clone(), chain.name.clone())).collect();
            chains
        };
        let now: BTreeSet<Name> = tables(ruleset).flat_map(chains).chain(more).collect();
        let total = tables(ruleset)
            .map(|(_, table)| table.chains.len() + (table.per_object_chains + table.foreign_chains) as usize)
            .sum::<usize>();
        if self.names.len() + now.len() > MOST_NAMES {
            self.names.clear();
        }
        self.names.extend(now);
        // The native mode leads to endpoints by a map: only a list of all chains tells which are there now.
        let native = tables(ruleset).any(|(_, table)| table.name == "kube-proxy");
        self.listed = (total > BIG && self.names.len() <= MOST_NAMES && !native).then(Instant::now);
        self.used = false;
        self.tables = tables(ruleset)
            .map(|(family, table)| (family, table.name.clone(), table.per_object_chains, table.foreign_chains))
            .collect();
    }

    /// Whether the chains of this rule set, of which only the tables are known, can be asked for by name.
    pub(super) fn serves(&self, ruleset: &Ruleset) -> bool {
        let same = || {
            let now = tables(ruleset).map(|(family, table)| (family, table.name.as_str()));
            now.eq(self.tables.iter().map(|(family, name, ..)| (*family, name.as_str())))
        };
        self.listed.is_some_and(|at| at.elapsed() < ALL_AGAIN) && same()
    }

    /// Whether all chains have to be listed again although nothing changed: some were only asked for by name.
    pub(super) fn is_due(&self) -> bool {
        self.used && self.listed.is_some_and(|at| at.elapsed() >= ALL_AGAIN)
    }

    /// The chains to ask for.
    pub(super) fn chains(&mut self) -> Vec<Name> {
        self.used = true;
        self.names.iter().cloned().collect()
    }

    /// Gives the tables the counts of the last list.
    pub(super) fn count(&self, ruleset: &mut Ruleset) {
        let Ruleset { tables, inet, .. } = ruleset;
        for (table, (_, _, per_object, foreign)) in tables.iter_mut().chain(inet).zip(&self.tables) {
            (table.per_object_chains, table.foreign_chains) = (*per_object, *foreign);
        }
    }
}

/// All tables, those of `inet` last and without a family.
fn tables(ruleset: &Ruleset) -> impl Iterator<Item = (Option<Family>, &Table)> {
    let both = ruleset.tables.iter().map(|table| (Some(table.family), table));
    both.chain(ruleset.inet.iter().map(|table| (None, table)))
}

#[cfg(test)]
impl Catalogue {
    /// As if all chains had been listed long ago.
    pub(super) fn age(&mut self) {
        self.listed = self.listed.and_then(|at| at.checked_sub(ALL_AGAIN));
    }
}
