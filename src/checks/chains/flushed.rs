//! Tables that somebody flushed: what kube-proxy and what Calico had in them is gone together.
//!
//! What one of them alone lacks, its owner can have taken away, or never have made: nothing is concluded from it.

use std::collections::BTreeSet;

use super::{Gaps, Plan, calico, gaps, kube_proxy, owned};
use crate::checks::Look;
use crate::facts::{Backend, Family, LookError, Ruleset, Table, is_canary, rulesets};

/// A flush, by what it left.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(in crate::checks) struct Flush {
    /// The backend.
    pub backend: Backend,
    /// The family.
    pub family: Family,
    /// The tables, by name.
    pub tables: Vec<&'static str>,
    /// What kube-proxy and Calico lack in them: `nat KUBE-SERVICES`, `nat OUTPUT -> KUBE-SERVICES`.
    pub gone: Vec<String>,
}

/// One owner: what it must have, what it lacks, and whether it had chains there at all.
struct Owner {
    plan: Plan,
    gaps: Vec<Gaps>,
    before: BTreeSet<(Backend, Family)>,
}

/// The flushes that rule sets show: in a table that both owners use, or in all that they use, nothing of either is left in
/// force.
///
/// # Errors
/// When a backend could not be read and the other one does not show an owner whole.
pub(in crate::checks) fn flushes<'a>(look: &'a Look<'_>) -> Result<Vec<Flush>, &'a LookError> {
    let (Some(mode), Some(dataplane)) = (look.expected.kube_proxy, look.expected.calico) else {
        return Ok(Vec::new());
    };
    let owner = |plan: Plan, before: &BTreeSet<(Backend, Family)>| -> Result<Owner, &'a LookError> {
        Ok(Owner { plan, gaps: gaps(look, plan, before)?, before: before.clone() })
    };
    let proxy = owner(kube_proxy(mode), &look.before.kube_proxy)?;
    let calico = owner(calico(look, dataplane), &look.before.calico)?;
    let sets = rulesets(look.now).flat_map(|ruleset| [(ruleset, Family::V4), (ruleset, Family::V6)]);
    Ok(sets.filter_map(|(ruleset, family)| flush(look, ruleset, family, [&proxy, &calico])).collect())
}

fn flush(look: &Look<'_>, ruleset: &Ruleset, family: Family, owners: [&Owner; 2]) -> Option<Flush> {
    let lacking = owners.map(|owner| owner.lacks(ruleset, family));
    let [Some(proxy), Some(calico)] = lacking else { return None };
    let gaps = [proxy, calico];
    let all: BTreeSet<&'static str> = owners.iter().flat_map(|owner| owner.plan.tables()).collect();
    let tables: Vec<&'static str> =
        all.into_iter().filter(|table| is_flushed(ruleset, family, table, owners, gaps)).collect();
    let uses = |owner: &&Owner, table: &str| owner.plan.tables().any(|it| it == table);
    let shared = tables.iter().any(|table| owners.iter().all(|owner| uses(owner, table)));
    let everything = owners.iter().all(|owner| owner.plan.tables().all(|table| tables.contains(&table)));
    let [theirs, others] = gaps.map(|gaps| gaps.within(&tables));
    if !(shared || everything)
        || theirs.is_empty()
        || others.is_empty()
        || apart(look, ruleset, family, &theirs, &others)
    {
        return None;
    }
    Some(Flush { backend: ruleset.backend, family, tables, gone: [theirs, others].concat() })
}

impl Owner {
    /// What it lacks here; none where it lacks nothing or never had anything.
    fn lacks(&self, ruleset: &Ruleset, family: Family) -> Option<&Gaps> {
        let here = (ruleset.backend, family);
        let had = self.before.contains(&here) || owned(ruleset, self.plan, family) > 0;
        let mut gaps = self.gaps.iter().filter(|gaps| had && (gaps.backend, gaps.family) == here);
        gaps.find(|gaps| gaps.count() > 0)
    }
}

impl Plan {
    /// The tables in which the owner has chains that are not optional.
    fn tables(&self) -> impl Iterator<Item = &'static str> + '_ {
        self.chains.iter().map(|(table, _)| *table)
    }
}

impl Gaps {
    /// What is missing or unhooked in these tables.
    fn within(&self, tables: &[&str]) -> Vec<String> {
        let in_them = |piece: &&String| piece.split(' ').next().is_some_and(|table| tables.contains(&table));
        self.missing.iter().chain(&self.unhooked).filter(in_them).cloned().collect()
    }
}

/// Whether a table holds no chain of either owner any more (`-F` and `-X`), or no base chain of it a rule (`-F` alone), and
/// whoever uses it lacks something there. A canary is made again while all else stays away.
fn is_flushed(ruleset: &Ruleset, family: Family, name: &str, owners: [&Owner; 2], gaps: [&Gaps; 2]) -> bool {
    let owned = |table: &Table| {
        let ours = |chain: &str| !is_canary(chain) && owners.iter().any(|owner| (owner.plan.owns)(name, chain));
        table.per_object_chains > 0 || table.chains.iter().any(|chain| ours(&chain.name))
    };
    let table = ruleset.table(family, name);
    let mut bases = table.into_iter().flat_map(|table| &table.chains).filter(|it| it.base.is_some()).peekable();
    let idle = bases.peek().is_some() && bases.all(|chain| chain.rules.as_ref().is_some_and(Vec::is_empty));
    let lacks = |(owner, gaps): (&Owner, &Gaps)| {
        owner.plan.tables().all(|table| table != name) || !gaps.within(&[name]).is_empty()
    };
    (idle || !table.is_some_and(owned)) && owners.into_iter().zip(gaps).all(lacks)
}

/// Whether it is known that what one owner lacks went at another time than what the other lacks.
fn apart(look: &Look<'_>, ruleset: &Ruleset, family: Family, one: &[String], other: &[String]) -> bool {
    let moments = |gone: &[String]| -> BTreeSet<u32> {
        let removals = look.now.packet_filter_changes.removals.iter();
        let ours = removals.filter(|removal| {
            removal.gone.iter().any(|piece| piece.family == family && gone.contains(&piece.to_string()))
        });
        ours.map(|removal| removal.generation).collect()
    };
    let (one, other) = (moments(one), moments(other));
    ruleset.backend == Backend::Nftables && !one.is_empty() && !other.is_empty() && one.is_disjoint(&other)
}
