//! Whether the tunnels and the Pods' links of a node are as long as those of the other nodes of its zone (catalogue R085).
//!
//! Agents say their MTUs with their question for the map. A node that has said another one than more than half of its zone
//! for a hold-down is only a reason to ask: it, and one of the others, are asked by their own pages, and what they answer is
//! told. So whoever lies about a node costs two questions and no alarm, and is set right by the answer.

use std::collections::{BTreeMap, HashSet};
use std::convert::Infallible;
use std::net::{IpAddr, SocketAddr};
use std::time::Duration;

use jiff::Timestamp;

use super::agreement::majority;
use super::cluster::Cluster;
use super::row::Row;
use super::store::Store;
use crate::clock::now;
use crate::verdict::Now;

/// What is compared: in this order agents say it, 0 where there is none.
pub(crate) const LINKS: [&str; 2] = ["tunnel", "Pods' links"];
/// So many times as long as for blocks, which is half an hour: a new MTU reaches nodes one by one, as calico-node restarts
/// on them.
const HOLDS: u32 = 6;
/// Zones are looked over this often.
const TICK: Duration = Duration::from_secs(30);
/// Who was asked is asked again after this time.
const AGAIN: Duration = Duration::from_secs(600);
/// Who has not answered so often cannot be asked.
pub(crate) const UNANSWERED: u32 = 2;
/// Nodes that are asked in one round.
const ASKED: usize = 4;
/// From the question to the last byte of the answer, and the longest that is read, in bytes.
const DEADLINE: Duration = Duration::from_secs(5);
const LONGEST: usize = 1024;

/// The MTUs of a node, in the order of [`LINKS`].
pub(crate) type Mtus = [u16; LINKS.len()];

/// A node that is to be asked, or was.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Odd {
    /// Which of [`LINKS`].
    pub(crate) link: usize,
    /// Since when it says so.
    pub(crate) since: Timestamp,
    /// Its MTU, and that of the other node, by their own agents; none where they have not said that they differ.
    pub(crate) confirmed: Option<(u16, u16)>,
    /// The node that it was compared with.
    pub(crate) against: String,
    /// So often one of the two has not answered since both did.
    pub(crate) unanswered: u32,
    asked: Option<Duration>,
}

#[cfg(test)]
impl Odd {
    /// One that was asked.
    pub(crate) fn new(link: usize, since: Timestamp, confirmed: Option<(u16, u16)>, against: &str) -> Odd {
        Odd { link, since, confirmed, against: against.to_owned(), unanswered: 0, asked: None }
    }
}

/// By node.
pub(crate) type Odds = BTreeMap<Box<str>, Odd>;

/// Whom to ask: name and address of the node, and of the other.
type Question = [(String, IpAddr); 2];

/// Nodes that differ from more than half of the others in their zone, each with one of those. Zones may rightly differ:
/// longer packets may be possible in one of them only.
fn differing(cluster: &Cluster, now: Timestamp) -> Vec<(&str, &Row, usize, &str)> {
    let mut zones: BTreeMap<&str, Vec<(&str, &Row)>> = BTreeMap::new();
    let speaks = |row: &Row| row.is_ready() && !row.deleting && !row.settling() && !row.marked_stale();
    for (name, row) in cluster.nodes().filter(|(_, row)| row.mtus != Mtus::default() && speaks(row)) {
        zones.entry(row.zone.as_deref().unwrap_or_default()).or_default().push((name, row));
    }
    let hold = i64::try_from(cluster.agreement.hold.saturating_mul(HOLDS).as_secs()).unwrap_or(i64::MAX);
    let long = |row: &Row| row.mtus_since.get().is_some_and(|since| now.as_second() - since.as_second() >= hold);
    let mut all = Vec::new();
    for (link, nodes) in (0..LINKS.len()).flat_map(|link| zones.values().map(move |nodes| (link, nodes))) {
        let voices = nodes.iter().filter(|(_, row)| row.mtus[link] > 0);
        let Some(most) = majority(voices.clone().map(|(_, row)| row.mtus[link].into()), voices.clone().count()) else {
            continue;
        };
        let like_most = |row: &Row| u32::from(row.mtus[link]) == most;
        let Some((other, _)) = voices.clone().find(|(_, row)| like_most(row) && long(row)) else { continue };
        let odd = voices.filter(|(_, row)| !like_most(row) && long(row));
        all.extend(odd.map(|(name, row)| (*name, *row, link, *other)));
    }
    all
}

/// Whom to ask now. Who no longer differs is forgotten.
fn look(cluster: &Cluster, odds: &mut Odds, now: Now) -> Vec<Question> {
    let mut differing = differing(cluster, now.wall);
    let still: HashSet<(&str, usize)> = differing.iter().map(|(name, _, link, _)| (*name, *link)).collect();
    odds.retain(|node, odd| still.contains(&(&**node, odd.link)));
    // Who waits longest comes first.
    differing.sort_unstable_by_key(|(name, ..)| (odds.get(*name).and_then(|odd| odd.asked), *name));
    let mut questions = Vec::new();
    for (name, row, link, other) in differing {
        let new = || Odd {
            link,
            since: row.mtus_since.get().unwrap_or(now.wall),
            confirmed: None,
            against: String::new(),
            unanswered: 0,
            asked: None,
        };
        let odd = odds.entry(name.into()).or_insert_with(new);
        let waits = odd.asked.is_some_and(|at| now.since_boot.saturating_sub(at) < AGAIN);
        let address = |node: &str| cluster.node(node)?.addresses.first().copied();
        if let (false, Some(own), Some(theirs)) = (waits || questions.len() >= ASKED, address(name), address(other)) {
            odd.asked = Some(now.since_boot);
            questions.push([(name.to_owned(), own), (other.to_owned(), theirs)]);
        }
    }
    questions
}

/// Takes in what the two say of themselves; what could not be asked is as it was.
fn answered(cluster: &mut Cluster, [(node, _), (other, _)]: &Question, answers: [Option<Mtus>; 2], now: Timestamp) {
    for (node, said) in [node, other].into_iter().zip(answers) {
        if let Some(said) = said {
            cluster.mtus_told(node, said, now);
        }
    }
    if let Some(odd) = cluster.odd_mtus.get_mut(node.as_str()) {
        let [Some(own), Some(theirs)] = answers else {
            odd.unanswered = odd.unanswered.saturating_add(1);
            cluster.revision += u64::from(odd.unanswered == UNANSWERED);
            return;
        };
        odd.unanswered = 0;
        let (own, theirs) = (own[odd.link], theirs[odd.link]);
        let confirmed = (own != theirs && own > 0 && theirs > 0).then_some((own, theirs));
        cluster.revision += u64::from(odd.confirmed != confirmed || odd.against != *other);
        odd.confirmed = confirmed;
        odd.against.clone_from(other);
    }
}

/// Compares and asks for ever.
pub(super) async fn run(store: &Store, port: u16) -> Infallible {
    let tick = TICK.min(store.lock().cluster.agreement.hold / 3).max(Duration::from_secs(1));
    loop {
        tokio::time::sleep(tick).await;
        let mut questions = Vec::new();
        store.change(|cluster| {
            let mut odds = std::mem::take(&mut cluster.odd_mtus);
            let told = |odds: &Odds| odds.values().filter(|odd| odd.confirmed.is_some()).count();
            let before = told(&odds);
            questions = look(cluster, &mut odds, now());
            cluster.revision += u64::from(told(&odds) != before);
            cluster.odd_mtus = odds;
        });
        for question in questions {
            let [(_, one), (_, other)] = &question;
            let (own, theirs) = futures::join!(ask(*one, port), ask(*other, port));
            store.change(|cluster| answered(cluster, &question, [own, theirs], now().wall));
        }
    }
}

/// Of no part of the blocks, and so only the MTUs.
async fn ask(address: IpAddr, port: u16) -> Option<Mtus> {
    let page = SocketAddr::new(address, port);
    let answer = crate::http::get(page, "/blocks?family=4&parts=0000", LONGEST, DEADLINE).await.ok()?;
    let body: serde_json::Value = serde_json::from_str(&answer.body).ok().filter(|_| answer.status == 200)?;
    said(&body)
}

/// What an agent answers. One without such links says so.
fn said(body: &serde_json::Value) -> Option<Mtus> {
    let mtu = &body["mtu"];
    if mtu.is_null() { Some(Mtus::default()) } else { parse(mtu.as_str()?) }
}

/// What an agent says in the query of its question for the map, if it does.
pub(super) fn told(query: &str) -> Option<Mtus> {
    query.split('&').find_map(|part| parse(part.strip_prefix("mtu=")?))
}

/// `1450.1450`.
fn parse(text: &str) -> Option<Mtus> {
    let (tunnel, pods) = text.split_once('.')?;
    Some([tunnel.parse().ok()?, pods.parse().ok()?])
}

#[cfg(test)]
mod tests {
    use serde_json::{Value, json};

    use super::*;
    use crate::aggregator::testing::{apply, at, cluster, moment, node};

    /// As it is where nothing is set.
    const HOLD: i64 = 1800;

    fn name(number: usize) -> String {
        format!("n{number}")
    }

    /// Five in one zone and four in another, where packets may be longer.
    fn planted() -> Cluster {
        let worker = |number: usize| {
            let mut worker = node(&name(number), if number < 5 { "a" } else { "b" }, "p", "Normal", &[]);
            worker["status"]["addresses"] = json!([{"type": "InternalIP", "address": format!("10.0.0.{number}")}]);
            worker
        };
        let mut cluster = cluster(&(0..9).map(worker).collect::<Vec<Value>>(), &[]);
        for number in 0..9 {
            cluster.mtus_told(&name(number), if number < 5 { [1450, 1450] } else { [8950, 8950] }, at(0));
        }
        cluster
    }

    fn round(cluster: &mut Cluster, second: i64) -> Vec<Question> {
        let mut odds = std::mem::take(&mut cluster.odd_mtus);
        let questions = look(cluster, &mut odds, moment(second));
        cluster.odd_mtus = odds;
        questions
    }

    fn confirmed(cluster: &Cluster) -> Vec<(&str, (u16, u16))> {
        cluster.odd_mtus.iter().filter_map(|(node, odd)| Some((&**node, odd.confirmed?))).collect()
    }

    #[test]
    fn one_that_differs_for_long_is_asked_and_told_by_its_own_word_and_clears() {
        let mut cluster = planted();
        assert!(round(&mut cluster, 10_000).is_empty(), "zones may differ");
        cluster.mtus_told("n2", [1480, 1450], at(100));
        // Neither heartbeats nor saying it again begin it anew.
        apply(&mut cluster, &node("n8", "b", "p", "Normal", &[]));
        cluster.mtus_told("n2", [1480, 1450], at(900));
        assert!(round(&mut cluster, 100 + HOLD - 1).is_empty(), "a new MTU reaches nodes one by one");
        let questions = round(&mut cluster, 100 + HOLD);
        assert_eq!(questions.len(), 1);
        assert_eq!((questions[0][0].0.as_str(), questions[0][1].0.as_str()), ("n2", "n0"));
        assert!(round(&mut cluster, 101 + HOLD).is_empty(), "not again at once");
        assert!(confirmed(&cluster).is_empty(), "nobody has answered");
        answered(&mut cluster, &questions[0], [None, Some([1450, 1450])], at(2_000));
        assert!(confirmed(&cluster).is_empty() && cluster.odd_mtus["n2"].unanswered == 1, "that proves nothing");
        answered(&mut cluster, &questions[0], [Some([1480, 1450]), Some([1450, 1450])], at(2_000));
        assert_eq!(confirmed(&cluster), [("n2", (1480, 1450))]);
        assert_eq!((cluster.odd_mtus["n2"].since, cluster.odd_mtus["n2"].unanswered), (at(100), 0));
        // Another one is asked for comparison: until it has answered, it has said nothing.
        let mut away = node("n0", "a", "p", "Normal", &[]);
        away["status"]["conditions"][0]["status"] = "False".into();
        apply(&mut cluster, &away);
        let next = round(&mut cluster, 800 + HOLD);
        assert_eq!((next[0][1].0.as_str(), cluster.odd_mtus["n2"].against.as_str()), ("n1", "n0"));
        answered(&mut cluster, &next[0], [Some([1480, 1450]), Some([1450, 1450])], at(2_600));
        assert_eq!(cluster.odd_mtus["n2"].against, "n1");
        cluster.mtus_told("n2", [1450, 1450], at(2_100));
        assert!(round(&mut cluster, 2_110).is_empty() && confirmed(&cluster).is_empty(), "it clears");
    }

    #[test]
    fn links_that_are_gone_differ_from_nothing() {
        let mut cluster = planted();
        cluster.mtus_told("n2", [1480, 1450], at(0));
        let questions = round(&mut cluster, HOLD);
        answered(&mut cluster, &questions[0], [Some([1480, 1450]), Some([1450, 1450])], at(HOLD));
        assert_eq!(confirmed(&cluster), [("n2", (1480, 1450))]);
        answered(&mut cluster, &questions[0], [said(&json!({"mtu": null})), Some([1450, 1450])], at(HOLD + 600));
        assert!(round(&mut cluster, HOLD + 630).is_empty() && confirmed(&cluster).is_empty());
        assert_eq!((said(&json!({"mtu": "1450.0"})), said(&json!({"mtu": 7}))), (Some([1450, 0]), None));
    }

    #[test]
    fn of_many_that_differ_those_are_asked_that_wait_longest() {
        let worker = |number: usize| {
            let mut worker = node(&format!("n{number:02}"), "a", "p", "Normal", &[]);
            worker["status"]["addresses"] = json!([{"type": "InternalIP", "address": format!("10.0.0.{number}")}]);
            worker
        };
        let mut cluster = crate::aggregator::testing::cluster(&(0..21).map(worker).collect::<Vec<Value>>(), &[]);
        for number in 0..21 {
            cluster.mtus_told(&format!("n{number:02}"), [if number < 10 { 1400 } else { 1450 }, 0], at(0));
        }
        let mut asked: BTreeMap<String, usize> = BTreeMap::new();
        // As often as who was asked is asked again.
        for turn in 0..5 {
            for [(name, _), _] in round(&mut cluster, HOLD + 600 * turn) {
                *asked.entry(name).or_default() += 1;
            }
        }
        assert_eq!(asked.into_values().collect::<Vec<_>>(), [3, 3, 2, 2, 2, 2, 2, 2, 1, 1], "among equals by name");
    }

    #[test]
    fn a_lie_about_nodes_is_set_right_by_themselves() {
        let mut cluster = planted();
        // Somebody says it of one node, and of nearly a whole zone: then the honest one seems to differ.
        cluster.mtus_told("n1", [9000, 9000], at(0));
        for number in 5..8 {
            cluster.mtus_told(&name(number), [1300, 1300], at(0));
        }
        let questions = round(&mut cluster, HOLD);
        assert!(questions.len() >= 2, "{questions:?}");
        for question in &questions {
            let truth =
                |(name, _): &(String, IpAddr)| Some(if name.as_str() < "n5" { [1450, 1450] } else { [8950, 8950] });
            answered(&mut cluster, question, [truth(&question[0]), truth(&question[1])], at(HOLD));
        }
        assert!(confirmed(&cluster).is_empty());
        assert_eq!(cluster.node("n1").map(|row| row.mtus), Some([1450, 1450]));
        cluster.mtus_told("nobody", [1, 1], at(0));
        assert!(cluster.node("nobody").is_none(), "no more is kept than there are nodes");
    }

    #[test]
    fn nodes_without_tunnels_or_that_are_away_do_not_count_and_two_have_no_majority() {
        let mut cluster = planted();
        cluster.mtus_told("n2", [0, 1450], at(0));
        assert!(round(&mut cluster, HOLD).is_empty());
        cluster.mtus_told("n2", [1400, 1450], at(0));
        let mut away = node("n2", "a", "p", "Normal", &[]);
        away["status"]["conditions"][0]["status"] = "False".into();
        apply(&mut cluster, &away);
        assert!(round(&mut cluster, 2 * HOLD).is_empty());
        let mut two = crate::aggregator::testing::cluster(
            &[node("a", "z", "p", "Normal", &[]), node("b", "z", "p", "Normal", &[])],
            &[],
        );
        two.mtus_told("a", [1400, 1400], at(0));
        two.mtus_told("b", [1500, 1500], at(0));
        assert!(round(&mut two, HOLD).is_empty());
    }

    #[test]
    fn only_two_numbers_are_mtus() {
        assert_eq!(told("node=n1&v4=x&mtu=1450.1500"), Some([1450, 1500]));
        for bad in ["mtu=", "mtu=1450", "mtu=1450.", "mtu=1.2.3", "mtu=70000.1", "mtu=-1.1", "xmtu=1.2"] {
            assert_eq!(told(bad), None, "{bad}");
        }
    }
}
