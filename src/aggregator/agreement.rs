//! Whether all nodes of the mesh route the same blocks of pod addresses.
//!
//! Each agent says sums over its blocks when it asks for the map, so that nothing is written. The sums of a node that
//! differ from those of more than half are only a reason to ask: the node and one of the majority are asked which blocks
//! they route, and what is told is what both answer. So whoever lies about a node costs two questions and no alarm.
//!
//! Blocks come and go, and nodes are heard one after the other: now the one hears of a new block first and then the other.
//! A node differs only if it says so when the others have agreed for a hold-down already, and more than half of the others
//! have to say theirs once more a hold-down later. The sums are split into parts, so that a block that comes or goes
//! meanwhile leaves most of them comparable.

mod ask;

use std::collections::{BTreeMap, HashMap, HashSet};
use std::net::IpAddr;
use std::sync::Arc;
use std::time::Duration;

use ipnet::IpNet;
use jiff::Timestamp;

use super::cluster::Cluster;
use super::row::Row;
use crate::facts::{BlockSums, Family, PARTS};
use crate::verdict::{Now, Status};

#[cfg(any(test, fuzzing))]
pub(crate) use ask::fuzz;
pub(super) use ask::{run, told};

/// Longer than any node takes to learn of a block or of its end: BGP drops a silent peer after 240 s, and keeps the routes of
/// one that restarts for 120 s (facts.md C.2).
pub(crate) const HOLD: Duration = Duration::from_secs(300);
/// Fewer nodes have no majority: of two, who is right?
const FEWEST: usize = 3;
/// A node is asked about this many parts at once.
const PARTS_ASKED: usize = 4;
/// Nodes that are asked in one round.
const ASKED: usize = 4;
/// A node that was asked is asked again after this time, where it differs and where it does not.
const AGAIN: (Duration, Duration) = (Duration::from_secs(30), Duration::from_secs(600));
/// What was said counts for this long at least: agents that may not ask, or do not, have nothing to say.
const LAPSES: Duration = Duration::from_secs(1800);
/// The same for each node: agents of many nodes ask more rarely, now this replica and now another.
const LAPSES_PER_NODE: Duration = Duration::from_millis(600);
/// Blocks that are named of a node.
const NAMED: usize = 4;

/// What the nodes say, by family, and who differs.
#[derive(Debug)]
pub(crate) struct Agreement {
    /// How long a difference lasts before it counts.
    pub(crate) hold: Duration,
    meshes: [Mesh; 2],
    /// Most nodes say the same.
    known: HashSet<Arc<BlockSums>>,
}

#[derive(Debug, Default)]
struct Mesh {
    said: HashMap<Box<str>, Said>,
    /// How many of them take part.
    voices: usize,
    /// What more than half of the nodes say of each part, and since when.
    most: [Option<(u32, Duration)>; PARTS],
    odd: BTreeMap<Box<str>, Odd>,
}

#[derive(Debug, Clone)]
struct Said {
    sums: Arc<BlockSums>,
    at: Duration,
    /// Its node takes part.
    counts: bool,
    /// It has said the same as most of them before.
    agreed: bool,
}

/// A node that differs.
#[derive(Debug)]
struct Odd {
    /// In these parts.
    parts: u16,
    since: Duration,
    wall: Timestamp,
    asked: Option<(Duration, Result<Difference, String>)>,
}

/// What a node routes and another does not.
#[derive(Debug, Clone, Default, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) struct Difference {
    /// Blocks that it does not route: the first of them, with the nodes whose they are, and how many there are.
    pub(crate) missing: Blocks,
    /// Blocks that it routes and the other does not.
    pub(crate) extra: Blocks,
    /// With which node it was compared.
    pub(crate) against: String,
}

/// Some blocks, with whose they are as far as that is known, and how many more there are.
#[derive(Debug, Clone, Default, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) struct Blocks {
    /// The first of them.
    pub(crate) first: Vec<(IpNet, Option<String>)>,
    /// How many there are.
    pub(crate) count: usize,
}

/// A node that differs, for the report.
#[derive(Debug)]
pub(crate) struct Differs<'a> {
    /// Its name.
    pub(crate) node: &'a str,
    /// Of which family the blocks are.
    pub(crate) family: Family,
    /// Since when it says so.
    pub(crate) since: Timestamp,
    /// What both said, or why one of them could not be asked.
    pub(crate) difference: &'a Result<Difference, String>,
}

/// What two agents are to be asked.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Question {
    pub(super) family: Family,
    pub(super) parts: u16,
    /// Who differs, and who does not: name and address.
    pub(super) nodes: [(String, IpAddr); 2],
}

impl Default for Agreement {
    fn default() -> Self {
        Agreement { hold: HOLD, meshes: Default::default(), known: HashSet::new() }
    }
}

impl Agreement {
    /// Takes in what somebody says of a node. That it is one of the cluster is the caller's to know: so no more is kept
    /// than there are nodes.
    pub(super) fn says(&mut self, node: &str, family: Family, sums: BlockSums, now: Duration) {
        let mesh = &mut self.meshes[index(family)];
        if self.known.len() > 2 * mesh.said.len() + 64 {
            self.known.retain(|known| Arc::strong_count(known) > 1);
        }
        let sums = self.known.get(&sums).cloned().unwrap_or_else(|| {
            let sums = Arc::new(sums);
            self.known.insert(Arc::clone(&sums));
            sums
        });
        match mesh.said.get_mut(node) {
            Some(said) => (said.sums, said.at) = (sums, now),
            None => {
                mesh.said.insert(node.into(), Said { sums, at: now, counts: false, agreed: false });
            }
        }
    }

    /// Compares what was said so far; answers with whom to ask.
    pub(super) fn look(&mut self, cluster: &Cluster, now: Now) -> Vec<Question> {
        let mut questions = Vec::new();
        let hold = self.hold;
        for (family, mesh) in [Family::V4, Family::V6].into_iter().zip(&mut self.meshes) {
            mesh.compare(cluster, hold, now);
            questions.extend(mesh.questions(family, cluster, hold, now.since_boot));
        }
        self.known.retain(|known| Arc::strong_count(known) > 1);
        questions
    }

    /// Takes in which blocks the two of a question route in its parts, or why one of them could not be asked. Answers
    /// whether the report is another one.
    pub(super) fn answered(
        &mut self,
        cluster: &Cluster,
        question: &Question,
        answer: Result<[Vec<IpNet>; 2], String>,
        now: Duration,
    ) -> bool {
        let found = answer.map(|blocks| {
            for ((node, _), blocks) in question.nodes.iter().zip(&blocks) {
                let Some(said) = self.meshes[index(question.family)].said.get(node.as_str()) else { continue };
                let mut sums = BlockSums::clone(&said.sums);
                sums.take(question.parts, &BlockSums::of(blocks.iter().copied()));
                self.says(node, question.family, sums, now);
            }
            difference(cluster, question, &blocks)
        });
        let Some(odd) = self.meshes[index(question.family)].odd.get_mut(question.nodes[0].0.as_str()) else {
            return false;
        };
        let same = odd.asked.as_ref().is_some_and(|(_, before)| *before == found);
        odd.asked = Some((now, found));
        !same
    }

    /// Who differs, as far as somebody was asked.
    pub(crate) fn differing(&self) -> impl Iterator<Item = Differs<'_>> {
        let families = [Family::V4, Family::V6].into_iter().zip(&self.meshes);
        families.flat_map(|(family, mesh)| {
            mesh.odd.iter().filter_map(move |(node, odd)| {
                let (_, difference) = odd.asked.as_ref()?;
                let any = difference.as_ref().map_or(true, Difference::is_any);
                any.then_some(Differs { node, family, since: odd.wall, difference })
            })
        })
    }
}

impl Mesh {
    fn compare(&mut self, cluster: &Cluster, hold: Duration, now: Now) {
        let count = u32::try_from(self.said.len()).unwrap_or(u32::MAX);
        let lapses = LAPSES.max(LAPSES_PER_NODE.saturating_mul(count));
        self.said.retain(|node, said| cluster.node(node).is_some() && now.since_boot.saturating_sub(said.at) < lapses);
        for (node, said) in &mut self.said {
            said.counts = cluster.node(node).is_some_and(|row| takes_part(row, hold, now.wall));
        }
        let voices: Vec<&BlockSums> = self.said.values().filter(|said| said.counts).map(|said| &*said.sums).collect();
        self.voices = voices.len();
        for (part, most) in self.most.iter_mut().enumerate() {
            let value = majority(voices.iter().map(|sums| sums.part(part)), voices.len());
            if value != most.map(|(value, _)| value) {
                *most = value.map(|value| (value, now.since_boot));
            }
        }
        // Where not every node peers with every other, nodes may rightly know different blocks: only what they once had
        // in common with the others is missed.
        let full_mesh = cluster.surroundings.bgp().is_some_and(|bgp| bgp.full_mesh);
        self.odd.retain(|node, _| self.said.get(node).is_some_and(|said| said.counts));
        for (node, said) in self.said.iter_mut().filter(|(_, said)| said.counts) {
            let parts = differing(&self.most, said, hold);
            match self.odd.get_mut(node) {
                Some(odd) if odd.parts & parts != 0 => odd.parts &= parts,
                Some(_) if parts == 0 => drop(self.odd.remove(node)),
                _ if parts != 0 && (full_mesh || said.agreed) => {
                    let ago = now.since_boot.saturating_sub(said.at);
                    let wall = now.wall.checked_sub(ago).unwrap_or(now.wall);
                    self.odd.insert(node.clone(), Odd { parts, since: said.at, wall, asked: None });
                }
                _ => said.agreed |= agrees(&self.most, &said.sums),
            }
        }
    }

    fn questions(&self, family: Family, cluster: &Cluster, hold: Duration, now: Duration) -> Vec<Question> {
        let waits = |odd: &Odd| match &odd.asked {
            None => false,
            Some((at, found)) => {
                let differs = found.as_ref().map_or(true, Difference::is_any);
                now.saturating_sub(*at) < if differs { AGAIN.0 } else { AGAIN.1 }
            }
        };
        let due: Vec<(&str, &Odd)> =
            self.odd.iter().map(|(node, odd)| (&**node, odd)).filter(|(_, odd)| !waits(odd)).collect();
        if due.is_empty() {
            return Vec::new();
        }
        let again = self.said_again();
        // More than half of the others have said again, a hold-down after it began, what it does not.
        let sure = |odd: &Odd| {
            let parts = (0..PARTS).filter(|part| odd.parts & (1 << part) != 0);
            let sure = parts.filter(|part| again[*part].is_some_and(|at| at >= odd.since + hold));
            sure.take(PARTS_ASKED).fold(0_u16, |parts, part| parts | 1 << part)
        };
        let mut due: Vec<(&str, Option<Duration>, u16)> = due
            .into_iter()
            .map(|(node, odd)| (node, odd.asked.as_ref().map(|(at, _)| *at), sure(odd)))
            .filter(|(_, _, parts)| *parts != 0)
            .collect();
        // Who waits longest comes first.
        due.sort_unstable_by_key(|(node, asked, _)| (*asked, *node));
        due.truncate(ASKED);
        due.into_iter().filter_map(|(node, _, parts)| self.question(family, cluster, node, parts)).collect()
    }

    /// For each part the time since when more than half of the nodes have said what most say of it.
    fn said_again(&self) -> [Option<Duration>; PARTS] {
        std::array::from_fn(|part| {
            let (value, _) = self.most[part]?;
            let same = self.said.values().filter(|said| said.counts && said.sums.part(part) == value);
            let mut times: Vec<Duration> = same.map(|said| said.at).collect();
            times.sort_unstable_by(|a, b| b.cmp(a));
            times.get(self.voices / 2).copied()
        })
    }

    /// The question about a node that differs in these parts.
    fn question(&self, family: Family, cluster: &Cluster, node: &str, parts: u16) -> Option<Question> {
        let address = |node: &str| cluster.node(node)?.addresses.first().copied();
        let most = |part: usize| self.most[part].map(|(value, _)| value);
        let same = |said: &Said| {
            said.counts
                && (0..PARTS)
                    .filter(|part| parts & (1 << part) != 0)
                    .all(|part| most(part) == Some(said.sums.part(part)))
        };
        let others = self.said.iter().filter(|(other, said)| ***other != *node && same(said));
        // Who said it last; by name where several did.
        let (other, _) = others.max_by_key(|(other, said)| (said.at, *other))?;
        let nodes = [(node.to_owned(), address(node)?), (other.to_string(), address(other)?)];
        Some(Question { family, parts, nodes })
    }
}

impl Difference {
    fn is_any(&self) -> bool {
        self.missing.count + self.extra.count > 0
    }
}

fn index(family: Family) -> usize {
    usize::from(family == Family::V6)
}

/// Nodes that come and go, or whose network is not up, route what they route.
fn takes_part(row: &Row, hold: Duration, now: Timestamp) -> bool {
    let hold = i64::try_from(hold.as_secs()).unwrap_or(i64::MAX);
    let old = row.created.get().is_none_or(|created| now.as_second().saturating_sub(created.as_second()) >= hold);
    let up = row.network.as_ref().is_none_or(|network| network.status != Status::True);
    row.is_ready() && old && up && !row.deleting && !row.settling()
}

/// In which parts it says something else than most, who have said it for a hold-down by then.
fn differing(most: &[Option<(u32, Duration)>; PARTS], said: &Said, hold: Duration) -> u16 {
    let differs =
        |part: usize| most[part].is_some_and(|(value, since)| said.at >= since + hold && said.sums.part(part) != value);
    (0..PARTS).filter(|part| differs(*part)).fold(0, |parts, part| parts | 1 << part)
}

/// Whether it says what most of them say.
fn agrees(most: &[Option<(u32, Duration)>; PARTS], sums: &BlockSums) -> bool {
    let same = |(part, most): (usize, &Option<(u32, Duration)>)| most.is_none_or(|(value, _)| sums.part(part) == value);
    most.iter().any(Option::is_some) && most.iter().enumerate().all(same)
}

/// What more than half of them say: the vote of Boyer and Moore leaves one who may, and then it is counted.
pub(super) fn majority(votes: impl Iterator<Item = u32> + Clone, count: usize) -> Option<u32> {
    let (mut leads, mut by) = (None, 0_usize);
    for vote in votes.clone() {
        if by == 0 {
            leads = Some(vote);
        }
        by = if leads == Some(vote) { by + 1 } else { by - 1 };
    }
    let leads = leads?;
    (count >= FEWEST && votes.filter(|vote| *vote == leads).count() * 2 > count).then_some(leads)
}

fn difference(cluster: &Cluster, question: &Question, blocks: &[Vec<IpNet>; 2]) -> Difference {
    let owners = cluster.surroundings.blocks();
    let owner = |block: &IpNet| {
        let owner = owners.iter().find(|(_, blocks)| blocks.contains(block));
        owner.map(|(node, _)| (*node).to_owned())
    };
    let node = &question.nodes[0].0;
    let without = |of: &[IpNet], other: &[IpNet]| {
        let all = of.iter().filter(|block| !other.contains(block)).map(|block| (*block, owner(block)));
        // If the others do not route the node's own block, that is not the node's fault to have it; that it does not is
        // told by the node itself.
        let mut first: Vec<_> = all.filter(|(_, owner)| owner.as_ref() != Some(node)).collect();
        first.sort_unstable();
        let count = first.len();
        first.truncate(NAMED);
        Blocks { first, count }
    };
    let [own, theirs] = blocks;
    Difference { missing: without(theirs, own), extra: without(own, theirs), against: question.nodes[1].0.clone() }
}

#[cfg(test)]
mod tests;
