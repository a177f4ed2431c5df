//! What the workers that fail have in common and the others have not (catalogue R116). Pure.
//!
//! For each value (a pool, a kernel, "created since yesterday") the workers make a table of two by two: with it or without
//! it, failing or not. How likely so many of those with it would fail if it did not matter is the upper tail of the
//! hypergeometric distribution: Fisher's exact test, one-sided. Many values are tried, so the likelihoods are corrected by
//! Holm's method over all values that could have come out (those on at least three workers, and not on all), whether any
//! worker that fails has them or not. A suspect has to pass that at 5 %, and to stand out besides: most of those that fail
//! have it, and few others.
//!
//! An update starts a kubelet or a runtime anew, also one that nobody saw: agents say when theirs were. Who repairs starts them
//! anew as well, so that of a worker that fails only what was before counts.
//!
//! What runs where is known of some workers only, taken by chance from those that fail and from the others (R117): their
//! tables are of these, and count among all that were tried.

use jiff::Timestamp;

use super::Suspect;
use crate::aggregator::hosted::Hosted;
use crate::aggregator::row::Row;
use crate::aggregator::traits::Values;

/// Fewer workers that fail say nothing about what they share.
pub(super) const FEWEST: usize = 3;
/// Clusters in which nothing is shared and something is suspected all the same, at most.
const ALPHA: f64 = 0.05;
/// Of the workers that fail, at least this share has it.
const SHARE: f64 = 0.7;
/// And of those that do not, this much less.
const CONTRAST: f64 = 0.5;
/// The same of what runs on workers: it is on nearly all that fail and hardly on others (R117).
const HOSTS: (f64, f64) = (0.9, 0.8);
/// Pods that came so shortly before the first failure, in seconds, are told apart.
const ARRIVED: i64 = 3600;
/// What may come from the same cause is told beside it, up to so many.
const MOST: usize = 3;
/// Versions of Calico that are told apart.
const MOST_VERSIONS: usize = 16;
/// A worker that was created, rebooted, reloaded or updated this long before the first failure may owe it to that, in seconds.
const RECENT: i64 = 24 * 3600;
/// What is replaced is stopped first, and fails from then on: it starts anew within so many seconds after that.
const REPLACED: i64 = 60;

/// The workers among which those that fail are compared.
#[derive(Debug)]
pub(super) struct Crowd<'a> {
    values: &'a Values,
    /// Versions of Calico, whose numbers follow those of the values.
    calico: Vec<&'a str>,
    members: Vec<Member<'a>>,
    /// What runs on some of them.
    hosted: Option<&'a Hosted>,
    /// How many of those that count have each value.
    with: Vec<u32>,
    /// How many count.
    total: usize,
    /// Of the numbers 0, 1, 2, ... the logarithm of the factorial.
    ln_factorials: Vec<f64>,
}

/// One worker.
#[derive(Debug, Clone, Copy)]
pub(super) struct Member<'a> {
    /// What is known of it.
    pub(super) row: &'a Row,
    /// Its version of Calico.
    pub(super) calico: Option<&'a str>,
    /// What runs there, where that is known.
    pub(super) hosts: Option<&'a [(u16, Option<Timestamp>)]>,
    /// It counts whether it fails or not. A worker that does not may still be counted as one that fails.
    pub(super) counts: bool,
}

/// The kind of what runs on workers.
const PODS: &str = "Pods of";

/// A worker that fails, by its place among the members, and since when it does.
pub(super) type Failing = (usize, Timestamp);

/// What may happen to a worker, when it did, and whether it is done to repair one as well.
type Happened = (&'static str, fn(&Row) -> Option<Timestamp>, bool);

/// A value that was tried.
struct Tried<'a> {
    kind: &'static str,
    text: &'a str,
    /// Of those that fail, how many have it.
    hit: usize,
    /// Of all.
    with: usize,
    /// How many fail, and how many there are, of which it is known.
    of: (usize, usize),
    /// On how many of those that fail it came shortly before.
    arrived: usize,
    likely: f64,
}

impl<'a> Crowd<'a> {
    /// A crowd of these, whose values are in this table.
    pub(super) fn new(values: &'a Values, hosted: Option<&'a Hosted>, members: Vec<Member<'a>>) -> Self {
        let mut calico: Vec<&str> = Vec::new();
        for version in members.iter().filter_map(|member| member.calico) {
            if calico.len() < MOST_VERSIONS && !calico.contains(&version) {
                calico.push(version);
            }
        }
        let mut crowd = Crowd {
            with: vec![0; values.len() + 1 + calico.len()],
            values,
            calico,
            members,
            hosted,
            total: 0,
            ln_factorials: Vec::new(),
        };
        for at in 0..crowd.members.len() {
            if crowd.members[at].counts {
                crowd.total += 1;
                for number in crowd.numbers(at).collect::<Vec<_>>() {
                    crowd.with[number] += 1;
                }
            }
        }
        let mut sum = 0.0;
        let ln = |number: usize| {
            sum += real(number.max(1)).ln();
            sum
        };
        crowd.ln_factorials = (0..=crowd.members.len()).map(ln).collect();
        crowd
    }

    fn numbers(&self, at: usize) -> impl Iterator<Item = usize> {
        let member = &self.members[at];
        let version = member.calico.and_then(|own| self.calico.iter().position(|version| *version == own));
        member.row.traits.numbers().chain(version.map(|at| self.values.len() + 1 + at))
    }

    /// Kind and text of a number.
    fn named(&self, number: usize) -> Option<(&'static str, &str)> {
        let version = number.checked_sub(self.values.len() + 1).and_then(|at| self.calico.get(at));
        version.map(|version| ("Calico", *version)).or_else(|| self.values.get(number))
    }

    /// How many are compared when these fail: those that count, and those that are counted because they fail.
    pub(super) fn eligible(&self, failing: &[Failing]) -> usize {
        self.total + failing.iter().filter(|(at, _)| !self.members[*at].counts).count()
    }

    /// What is suspected to make these fail; the strongest contrast first.
    pub(super) fn suspects(&self, failing: &[Failing]) -> Vec<Suspect> {
        let total = self.eligible(failing);
        let Some(first) = failing.iter().map(|(_, began)| *began).min() else { return Vec::new() };
        if failing.len() < FEWEST || failing.len() >= total {
            return Vec::new();
        }
        let mut tried = self.shared_values(failing, total);
        tried.extend(self.recent(failing, total, first));
        tried.extend(self.hosting(failing, first));
        tried.sort_by(|a, b| a.likely.total_cmp(&b.likely));
        let (count, mut suspects) = (tried.len(), Vec::new());
        for (rank, tried) in tried.into_iter().enumerate() {
            let corrected = tried.likely * real(count - rank);
            // Holm's method ends at the first that does not pass.
            if corrected > ALPHA {
                break;
            }
            let share = real(tried.hit) / real(tried.of.0);
            let contrast = share - real(tried.with - tried.hit) / real(tried.of.1 - tried.of.0);
            let (least, apart) = if tried.kind == PODS { HOSTS } else { (SHARE, CONTRAST) };
            if tried.hit >= FEWEST && share >= least && contrast >= apart {
                suspects.push((contrast, suspect(&tried, corrected, first)));
            }
        }
        suspects.sort_by(|a, b| b.0.total_cmp(&a.0));
        suspects.truncate(MOST);
        suspects.into_iter().map(|(_, suspect)| suspect).collect()
    }

    fn shared_values(&self, failing: &[Failing], total: usize) -> Vec<Tried<'_>> {
        let (mut hits, mut with) = (vec![0; self.with.len()], self.with.clone());
        for (at, _) in failing {
            for number in self.numbers(*at) {
                hits[number] += 1;
                with[number] += u32::from(!self.members[*at].counts);
            }
        }
        let numbers = (1..with.len()).filter(|number| testable(with[*number] as usize, total));
        let tried = numbers.filter_map(|number| {
            let (kind, text) = self.named(number)?;
            Some(self.tried(kind, text, (hits[number], with[number] as usize), (failing.len(), total)))
        });
        tried.collect()
    }

    /// What happened to workers shortly before.
    fn recent(&self, failing: &[Failing], total: usize, first: Timestamp) -> Vec<Tried<'_>> {
        let happened: [Happened; 7] = [
            ("created", |row| row.created.get(), false),
            ("rebooted", |row| row.rebooted.get(), false),
            ("reloaded", |row| row.reloaded.get(), false),
            ("updated", |row| row.updated.get(), false),
            // One that is cordoned still counts only if it was cordoned because it fails.
            ("cordoned", |row| row.cordoned_since.get(), true),
            ("kubelet restarted", |row| row.restarts.kubelet(), true),
            ("runtime restarted", |row| row.restarts.runtime(), true),
        ];
        let mut began = vec![None; self.members.len()];
        for (at, since) in failing {
            began[*at] = Some(*since);
        }
        let (mut tried, mut known): (Vec<Tried<'_>>, Vec<Vec<bool>>) = (Vec::new(), Vec::new());
        for (kind, when, repairs) in happened {
            let has = |(member, began): (&Member<'_>, &Option<Timestamp>)| {
                let before = |then: Timestamp| {
                    began.is_none_or(|began| !repairs || then.as_second() <= began.as_second() + REPLACED)
                };
                (member.counts || began.is_some())
                    && when(member.row).is_some_and(|then| then >= since(first) && before(then))
            };
            let has: Vec<bool> = self.members.iter().zip(&began).map(has).collect();
            let hit = failing.iter().filter(|(at, _)| has[*at]).count();
            let with = has.iter().filter(|has| **has).count();
            // An update that was seen started them anew as well: what is on the same workers is told once.
            if testable(with, total) && !known.contains(&has) {
                tried.push(self.tried(kind, "", (hit, with), (failing.len(), total)));
            }
            known.push(has);
        }
        tried
    }

    /// What runs on those that fail, of which that is known.
    fn hosting(&self, failing: &[Failing], first: Timestamp) -> Vec<Tried<'_>> {
        let Some(hosted) = self.hosted else { return Vec::new() };
        let mut counts = vec![(0, 0, 0); hosted.owners.len()];
        let mut of = (0, 0);
        let mut fails = vec![false; self.members.len()];
        for (at, _) in failing {
            fails[*at] = true;
        }
        let before = |came: &Timestamp| (0..=ARRIVED).contains(&(first.as_second() - came.as_second()));
        for (member, fails) in self.members.iter().zip(fails).filter(|(member, fails)| member.counts || *fails) {
            let Some(hosts) = member.hosts else { continue };
            of = (of.0 + usize::from(fails), of.1 + 1);
            for (owner, came) in hosts {
                let Some((hit, with, arrived)) = counts.get_mut(usize::from(*owner)) else { continue };
                (*hit, *with) = (*hit + usize::from(fails), *with + 1);
                *arrived += usize::from(fails && came.as_ref().is_some_and(before));
            }
        }
        if of.0 < FEWEST || of.0 >= of.1 {
            return Vec::new();
        }
        let tried = hosted.owners.iter().zip(counts).filter(|(_, (_, with, _))| testable(*with, of.1));
        let tried =
            tried.map(|(owner, (hit, with, arrived))| Tried { arrived, ..self.tried(PODS, owner, (hit, with), of) });
        tried.collect()
    }

    fn tried<'t>(
        &self,
        kind: &'static str,
        text: &'t str,
        (hit, with): (usize, usize),
        (failing, total): (usize, usize),
    ) -> Tried<'t> {
        let likely = tail(&self.ln_factorials, hit, with, failing, total);
        Tried { kind, text, hit, with, of: (failing, total), arrived: 0, likely }
    }
}

/// What is on all workers explains nothing; what is on fewer than three could not stand out.
fn testable(with: usize, total: usize) -> bool {
    (FEWEST..total).contains(&with)
}

fn since(first: Timestamp) -> Timestamp {
    Timestamp::from_second(first.as_second().saturating_sub(RECENT)).unwrap_or(first)
}

#[expect(clippy::cast_precision_loss, reason = "products of numbers of workers are far below 2^52")]
fn real(number: usize) -> f64 {
    number as f64
}

/// How likely it is that of `failing` out of `total` workers, taken by chance, `hit` or more are among the `with` that have
/// some value.
fn tail(ln: &[f64], hit: usize, with: usize, failing: usize, total: usize) -> f64 {
    let choose = |from: usize, some: usize| ln[from] - ln[some] - ln[from - some];
    let (least, most) = ((failing + with).saturating_sub(total), with.min(failing));
    if hit <= least {
        return 1.0;
    }
    if hit > most {
        return 0.0;
    }
    let at = choose(with, hit) + choose(total - with, failing - hit) - choose(total, failing);
    let (mut term, mut sum) = (at.exp(), 0.0);
    for x in hit..=most {
        sum += term;
        // One more of those with it, one less of the others. The terms fall, once past the middle, without end.
        let grow = real((with - x) * (failing - x)) / real((x + 1) * (total + x + 1 - with - failing));
        term *= grow;
        if grow < 1.0 && term < sum * 1e-12 {
            break;
        }
    }
    sum.min(1.0)
}

fn suspect(tried: &Tried<'_>, likely: f64, first: Timestamp) -> Suspect {
    let Tried { kind, text, hit, with, of: (failing, total), arrived, .. } = *tried;
    let value = if text.is_empty() { format!("since {}", crate::facts::utc(since(first))) } else { text.into() };
    let joint = match kind {
        "pool" | "zone" | "subnet" => "in ",
        "created" | "rebooted" | "reloaded" | "updated" | "cordoned" => "",
        _ => "with ",
    };
    let (elsewhere, others) = (failing - hit, total - with);
    let seen = match (kind == PODS, arrived) {
        (false, _) => String::new(),
        (true, 0) => format!(", of {total} looked at"),
        (true, arrived) => {
            format!(", of {total} looked at; they came to {arrived} within the hour before the first failure")
        }
    };
    Suspect {
        sentence: format!("{hit} of {with} {joint}{kind} {value} fail, {elsewhere} of {others} elsewhere{seen}"),
        attribute: kind.to_owned(),
        value,
        failing: hit,
        workers: with,
        failing_elsewhere: elsewhere,
        workers_elsewhere: others,
        p: likely,
    }
}

#[cfg(test)]
mod tests;
