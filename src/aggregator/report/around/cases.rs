//! The five cases of every finding about the cluster, in one world in which everything is there: it is told, not told where all
//! is well, nor of what looks like it, nor after it was put right; and without what it is made of it is unknown, which is
//! neither told nor over. A code without its cases fails here.

mod of_calico;
mod of_workers;
mod world;

use std::collections::{BTreeMap, BTreeSet};

use jiff::Timestamp;

use super::super::{Agents, ClusterReport, LastJudgement, Source, build};
use super::unseen;
use crate::aggregator::cluster::Cluster;
use crate::aggregator::looked::Look;
use crate::aggregator::memory;
use crate::aggregator::surroundings::What;
use crate::aggregator::testing::{at, moment};
use crate::aggregator::watch::{Change, NotThere};
use world::{restore, well};

/// How a finding comes and goes.
struct Case {
    code: &'static str,
    /// Makes it so, for long enough that it is told now.
    plant: fn(&mut Cluster),
    /// Makes what looks like it: its catalogue row's trap, or routine.
    trap: fn(&mut Cluster),
    /// What is remembered of it is over so many seconds after it was put right.
    over: i64,
}

/// All that is told, by code and subject, with since when.
type Told = BTreeMap<(String, String), Option<Timestamp>>;

/// When a kind or a look is lost that is not seen now.
const LOST: i64 = -90;

fn cases() -> impl Iterator<Item = &'static Case> {
    of_calico::CASES.iter().chain(of_workers::CASES)
}

fn planted(change: fn(&mut Cluster)) -> Cluster {
    let mut cluster = well();
    change(&mut cluster);
    cluster
}

fn report(cluster: &Cluster, now: i64) -> ClusterReport {
    build(cluster, Agents::Once, Source::Aggregator, None, moment(now))
}

fn told(cluster: &Cluster, now: i64) -> Told {
    let report = report(cluster, now);
    assert_eq!(report.cluster_more, 0, "all of it is here");
    report.cluster.into_iter().map(|it| ((it.code, it.subject), it.since)).collect()
}

fn codes(told: &Told) -> BTreeSet<&str> {
    told.keys().map(|(code, _)| &**code).collect()
}

const LOOKS: [Look; 3] = [Look::Blocks, Look::Backends, Look::Password];

/// A kind that cannot be looked at, and how.
#[derive(Debug, Clone, Copy)]
enum Blind {
    Lost(What),
    Denied(What),
    Missing(What),
}

impl Blind {
    fn all() -> impl Iterator<Item = Blind> {
        What::ALL.into_iter().flat_map(|what| [Blind::Lost(what), Blind::Denied(what), Blind::Missing(what)])
    }

    fn happens(self, cluster: &mut Cluster) {
        let (what, change) = match self {
            Blind::Lost(what) => (what, Change::Lost("refused".into())),
            Blind::Denied(what) => (what, Change::NotThere(NotThere::Denied)),
            Blind::Missing(what) => (what, Change::NotThere(NotThere::Missing)),
        };
        cluster.surroundings.take(what, change, at(LOST));
    }
}

/// The kinds without which a finding is said to be unknown.
fn needed(code: &str) -> BTreeSet<What> {
    What::ALL.into_iter().filter(|what| unseen::codes(*what).iter().any(|some| some.contains(&code))).collect()
}

/// The codes that are said to be unknown.
fn unknown(cluster: &Cluster) -> BTreeSet<String> {
    report(cluster, 0).view.cannot_look.into_iter().flat_map(|cannot| cannot.codes).collect()
}

#[test]
fn every_code_has_its_cases() {
    let readme = include_str!("../../../../README.md");
    let (_, table) = readme.split_once("### Findings about the cluster").expect("the table of these findings");
    let table = table.split("\n### ").next().unwrap_or_default();
    let listed = table.lines().filter_map(|line| line.strip_prefix("| `")?.split('`').next());
    let listed: BTreeSet<&str> = listed.filter(|code| code.starts_with(char::is_uppercase)).collect();
    let own: Vec<&str> = cases().map(|case| case.code).collect();
    assert_eq!(own.iter().copied().collect::<BTreeSet<_>>(), listed);
    assert_eq!(own.len(), listed.len(), "each once");
    // What the code makes is listed, too.
    let folder = concat!(env!("CARGO_MANIFEST_DIR"), "/src/aggregator/report/around");
    let mut made = BTreeSet::new();
    for entry in sources(folder.as_ref()) {
        let text = std::fs::read_to_string(&entry).expect("a source file");
        let text = text.split("#[cfg(test)]\nmod tests {").next().unwrap_or_default();
        for part in text.split("raft::new(").chain(text.split("draft(")).skip(1) {
            if let Some(rest) = part.trim_start().strip_prefix('"') {
                made.insert(rest.split('"').next().unwrap_or_default().to_owned());
            }
        }
    }
    assert!(made.len() > 40, "{made:?}");
    let unlisted: Vec<&String> = made.iter().filter(|code| !listed.contains(code.as_str())).collect();
    assert!(unlisted.is_empty(), "{unlisted:?}");
}

/// The source files of a folder and those below, without tests.
fn sources(folder: &std::path::Path) -> Vec<std::path::PathBuf> {
    let mut files = vec![folder.with_extension("rs")];
    files.retain(|file| file.exists());
    for entry in std::fs::read_dir(folder).expect("a folder") {
        let path = entry.expect("an entry").path();
        let is = |name: &str| path.file_stem().is_some_and(|stem| stem == name);
        if is("tests") || is("cases") {
            continue;
        }
        if path.is_dir() {
            files.extend(sources(&path));
        } else {
            files.push(path);
        }
    }
    files
}

#[test]
fn where_all_is_well_nothing_is_told_whatever_cannot_be_seen() {
    assert!(told(&well(), 0).is_empty(), "{:?}", told(&well(), 0));
    assert!(report(&well(), 0).view.cannot_look.is_empty());
    let mut wrong = Vec::new();
    for blind in Blind::all() {
        let mut cluster = well();
        blind.happens(&mut cluster);
        for all in [0, 3_600].map(|now| told(&cluster, now)).into_iter().filter(|all| !all.is_empty()) {
            wrong.push(format!("without {blind:?}: {:?}", codes(&all)));
        }
    }
    none(&wrong);
}

#[test]
fn each_is_told_and_over_when_it_was_put_right() {
    let mut wrong = Vec::new();
    for case in cases() {
        let mut cluster = planted(case.plant);
        let before = told(&cluster, 0);
        if !codes(&before).contains(case.code) {
            wrong.push(format!("{} is not told: {before:?}", case.code));
        }
        memory::notice(&mut cluster, &mut LastJudgement::default(), at(0));
        let shown = cluster.shown();
        restore(&mut cluster);
        if cluster.shown() == shown {
            wrong.push(format!("{} is over, and a judgement that is shared would still be good", case.code));
        }
        let begin = case.over.max(301);
        for now in [begin, begin + 600, begin + 4_000] {
            let after = told(&cluster, now);
            if !after.is_empty() {
                wrong.push(format!("{} after {now} s: {after:?}", case.code));
            }
        }
        memory::notice(&mut cluster, &mut LastJudgement::default(), at(begin));
        assert!(cluster.noticed.is_empty(), "{}: {:?}", case.code, cluster.noticed);
    }
    none(&wrong);
}

#[test]
fn what_looks_like_it_is_not_told_whatever_cannot_be_seen() {
    let mut wrong = Vec::new();
    for case in cases() {
        let mut cluster = planted(case.trap);
        let trap = told(&cluster, 0);
        if codes(&trap).contains(case.code) {
            wrong.push(format!("{}: {trap:?}", case.code));
        }
        for what in What::ALL {
            Blind::Lost(what).happens(&mut cluster);
            if codes(&told(&cluster, 0)).contains(case.code) {
                wrong.push(format!("{} while {what:?} is lost", case.code));
            }
            cluster.surroundings.take(what, Change::Found, at(0));
        }
        for what in needed(case.code) {
            let mut cluster = planted(case.trap);
            Blind::Denied(what).happens(&mut cluster);
            if codes(&told(&cluster, 0)).contains(case.code) {
                wrong.push(format!("{} while {what:?} is denied", case.code));
            }
        }
    }
    none(&wrong);
}

/// Without a kind for a moment, without permission, without an answer: what is no longer told is unknown.
#[test]
fn each_is_unknown_without_what_it_is_made_of_and_not_over() {
    let mut wrong = Vec::new();
    for case in cases() {
        let mut cluster = planted(case.plant);
        memory::notice(&mut cluster, &mut LastJudgement::default(), at(-100));
        let before = told(&cluster, 0);
        for what in What::ALL {
            Blind::Lost(what).happens(&mut cluster);
            let is_told = codes(&told(&cluster, 0)).contains(case.code);
            if is_told == unknown(&cluster).contains(case.code) || is_told == needed(case.code).contains(&what) {
                wrong.push(format!("{} is told: {is_told}, while {what:?} is lost", case.code));
            }
            memory::notice(&mut cluster, &mut LastJudgement::default(), at(0));
            cluster.surroundings.take(what, Change::Found, at(10));
            if told(&cluster, 0) != before {
                wrong.push(format!("{} is another one after {what:?} was lost", case.code));
            }
        }
        for look in LOOKS {
            cluster.looked(look, Some("refused".into()), at(LOST));
            let is_told = codes(&told(&cluster, 0)).contains(case.code);
            if is_told == unknown(&cluster).contains(case.code) {
                wrong.push(format!("{} is told: {is_told}, while {look:?} fails", case.code));
            }
            cluster.looked(look, None, at(10));
        }
        // All that it does not need is denied at once.
        let needed = needed(case.code);
        let mut cluster = planted(case.plant);
        What::ALL
            .into_iter()
            .filter(|what| !needed.contains(what))
            .for_each(|what| Blind::Denied(what).happens(&mut cluster));
        if !codes(&told(&cluster, 0)).contains(case.code) {
            wrong.push(format!("{} needs more than {needed:?}", case.code));
        }
    }
    none(&wrong);
}

#[test]
fn each_is_unknown_without_the_nodes_and_not_over() {
    for case in cases() {
        let mut cluster = planted(case.plant);
        memory::notice(&mut cluster, &mut LastJudgement::default(), at(-100));
        let before = told(&cluster, 0);
        cluster.nodes_sight.lost(at(LOST), "refused".into());
        let blind = report(&cluster, 0);
        assert!(!blind.view.complete && blind.cluster.is_empty(), "{}", case.code);
        memory::notice(&mut cluster, &mut LastJudgement::default(), at(0));
        cluster.nodes_sight.found();
        assert_eq!(told(&cluster, 0), before, "{}", case.code);
    }
}

/// What keeps another finding from being told does so no longer when it is unknown itself.
#[test]
fn while_a_cause_is_unknown_its_consequence_is_told() {
    for (code, what) in [("WebhookDeadlock", What::Validating), ("CalicoDataForDeletedNodes", What::Pools)] {
        let case = cases().find(|case| case.code == code).expect("a case");
        let mut cluster = planted(case.plant);
        assert!(!codes(&told(&cluster, 0)).contains("CalicoNodeFailingOnNode"), "{code}");
        Blind::Lost(what).happens(&mut cluster);
        assert!(codes(&told(&cluster, 0)).contains("CalicoNodeFailingOnNode"), "{code}");
    }
}

#[track_caller]
fn none(wrong: &[String]) {
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
}
