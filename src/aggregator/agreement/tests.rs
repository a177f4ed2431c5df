//! Nodes that hear of blocks one after the other, that come and go, and one that is wrong.

use std::collections::BTreeSet;

use serde_json::{Value, json};

use super::*;
use crate::aggregator::surroundings::What;
use crate::aggregator::testing::{apply, at, moment, node};
use crate::aggregator::watch::Change;
use crate::facts::part_of;

fn net(text: &str) -> IpNet {
    text.parse().expect("a prefix")
}

/// A block of IPv4 for this number.
fn block(number: u32) -> IpNet {
    IpNet::new(IpAddr::from((0xac10_0000_u32 + number * 64).to_be_bytes()), 26).expect("a length")
}

fn named(number: usize) -> String {
    format!("n{number:04}")
}

/// A worker of the mesh, by number.
fn worker(number: usize) -> Value {
    let mut worker = node(&named(number), "z", "p", "Normal", &[]);
    worker["status"]["addresses"] =
        json!([{"type": "InternalIP", "address": format!("10.0.{}.{}", number / 250, number % 250 + 1)}]);
    worker
}

/// A mesh whose nodes route what is in `sets`; each hears it at its own time.
struct World {
    cluster: Cluster,
    sets: BTreeMap<String, BTreeSet<IpNet>>,
    /// Asked for so far.
    questions: usize,
    reachable: bool,
}

impl World {
    /// This many workers, each with one block that all know.
    fn new(workers: usize, full_mesh: bool) -> World {
        let nodes: Vec<Value> = (0..workers).map(worker).collect();
        let mut cluster = crate::aggregator::testing::cluster(&nodes, &[]);
        for what in [What::Bgp, What::Affinities] {
            cluster.surroundings.take(what, Change::ListBegins, at(0));
        }
        let bgp = json!({"metadata": {"name": "default"}, "spec": {"nodeToNodeMeshEnabled": full_mesh}});
        cluster.surroundings.take(What::Bgp, Change::Here(serde_json::from_value(bgp).expect("an object")), at(0));
        let all: BTreeSet<IpNet> = (0..u32::try_from(workers).expect("few")).map(block).collect();
        let mut world = World { cluster, sets: BTreeMap::new(), questions: 0, reachable: true };
        for number in 0..workers {
            world.own(block(u32::try_from(number).expect("few")), number);
            world.sets.insert(named(number), all.clone());
        }
        for what in [What::Bgp, What::Affinities] {
            world.cluster.surroundings.take(what, Change::ListEnds, at(0));
        }
        world
    }

    /// The block is this node's.
    fn own(&mut self, block: IpNet, number: usize) {
        let name = block.to_string().replace(['.', '/', ':'], "-");
        let object = json!({"metadata": {"name": name},
            "spec": {"node": named(number), "cidr": block, "state": "confirmed", "deleted": "false"}});
        let object = serde_json::from_value(object).expect("an object");
        self.cluster.surroundings.take(What::Affinities, Change::Here(object), at(0));
    }

    fn says(&mut self, node: &str, second: i64) {
        let family = |v4: bool| self.sets[node].iter().copied().filter(move |block| block.addr().is_ipv4() == v4);
        for (family, sums) in [(Family::V4, BlockSums::of(family(true))), (Family::V6, BlockSums::of(family(false)))] {
            if sums != BlockSums::default() {
                self.cluster.agreement.says(node, family, sums, moment(second).since_boot);
            }
        }
    }

    /// Compares, and lets the agents answer what they are asked.
    fn look(&mut self, second: i64) {
        let mut agreement = std::mem::take(&mut self.cluster.agreement);
        for question in agreement.look(&self.cluster, moment(second)) {
            self.questions += 1;
            let blocks = |which: usize| -> Vec<IpNet> {
                let asked = |block: &&IpNet| {
                    Family::of(block.addr()) == question.family && question.parts & (1 << part_of(**block)) != 0
                };
                self.sets[&question.nodes[which].0].iter().filter(asked).copied().collect()
            };
            let answer = if self.reachable { Ok([blocks(0), blocks(1)]) } else { Err("refused".to_owned()) };
            agreement.answered(&self.cluster, &question, answer, moment(second).since_boot);
        }
        self.cluster.agreement = agreement;
    }

    /// Every node says what it routes once a minute, each at its own second; somebody compares every 10 s.
    fn run(&mut self, from: i64, until: i64, mut each: impl FnMut(&mut World, i64)) {
        for second in from..until {
            each(self, second);
            for (number, node) in self.sets.keys().cloned().collect::<Vec<_>>().into_iter().enumerate() {
                if second % 60 == i64::try_from(number * 7 % 60).expect("small") {
                    self.says(&node, second);
                }
            }
            if second % 10 == 0 {
                self.look(second);
            }
        }
    }

    /// Who differs: node, missing, extra.
    fn differing(&self) -> Vec<(String, Vec<IpNet>, Vec<IpNet>)> {
        let blocks = |blocks: &Blocks| blocks.first.iter().map(|(block, _)| *block).collect();
        let all = self.cluster.agreement.differing().map(|differs| {
            let found = differs.difference.as_ref().expect("it was asked");
            (differs.node.to_owned(), blocks(&found.missing), blocks(&found.extra))
        });
        all.collect()
    }

    fn set(&mut self, number: usize) -> &mut BTreeSet<IpNet> {
        self.sets.get_mut(&named(number)).expect("a worker")
    }
}

#[test]
fn one_of_three_that_lacks_a_block_is_told_and_clears() {
    let mut world = World::new(3, true);
    world.run(0, 900, |_, _| {});
    assert!(world.differing().is_empty() && world.questions == 0, "a healthy mesh asks nobody anything");
    world.set(1).remove(&block(2));
    world.run(900, 1200, |world, second| assert!(world.differing().is_empty(), "{second}: the hold-down"));
    world.run(1200, 1400, |_, _| {});
    assert_eq!(world.differing(), [(named(1), vec![block(2)], vec![])]);
    let differs = world.cluster.agreement.differing().next().expect("it differs");
    assert!(differs.since >= at(900) && differs.since < at(960), "{}", differs.since);
    world.set(1).insert(block(2));
    world.run(1400, 1450, |_, _| {});
    assert!(world.differing().is_empty(), "both are asked every half minute");
}

#[test]
fn an_extra_block_is_told_and_of_whose_own_the_others_lack_not() {
    let mut world = World::new(5, true);
    world.run(0, 700, |_, _| {});
    world.set(4).insert(block(77));
    // The others never hear of it: its pool is not exported.
    world.own(block(78), 3);
    world.set(3).insert(block(78));
    world.run(700, 1500, |_, _| {});
    assert_eq!(world.differing(), [(named(4), vec![], vec![block(77)])]);
    assert!(world.questions < 40, "{}", world.questions);
    world.set(4).remove(&block(77));
    world.run(1500, 1600, |_, _| {});
    assert!(world.differing().is_empty());
}

#[test]
fn without_a_majority_nobody_is_told() {
    for (workers, wrong) in [(1, 1), (2, 1), (4, 2), (6, 3)] {
        let mut world = World::new(workers, true);
        for number in 0..wrong {
            world.set(number).remove(&block(0));
        }
        world.run(0, 1500, |_, _| {});
        assert!(world.differing().is_empty(), "{wrong} of {workers}");
    }
}

#[test]
fn blocks_that_come_and_go_are_heard_of_one_after_the_other() {
    let mut world = World::new(7, true);
    world.run(0, 6000, |world, second| {
        // A block of node 0 comes, and goes; BGP takes up to 240 s to agree.
        let (time, round) = (second % 1200, second / 1200);
        for number in 0..7_u32 {
            let heard = time >= 100 + i64::from(number) * 40;
            let gone = time >= 700 + i64::from(7 - number) * 40;
            let new = block(500 + u32::try_from(round).expect("small"));
            let set = world.set(number as usize);
            if heard && !gone {
                set.insert(new)
            } else {
                set.remove(&new)
            };
        }
        assert!(world.differing().is_empty(), "{second}");
    });
    assert_eq!(world.questions, 0);
}

#[test]
fn nodes_that_join_and_leave_are_nobodys_fault() {
    let mut world = World::new(5, true);
    world.run(0, 700, |_, _| {});
    let mut new = worker(5);
    new["metadata"]["creationTimestamp"] = at(700).to_string().into();
    apply(&mut world.cluster, &new);
    world.own(block(5), 5);
    // It knows its own block first, and the others' only in a minute.
    world.sets.insert(named(5), [block(5)].into());
    world.run(700, 760, |world, _| assert!(world.differing().is_empty()));
    let all: BTreeSet<IpNet> = (0..6).map(block).collect();
    for number in 0..6 {
        *world.set(number) = all.clone();
    }
    world.run(760, 1700, |world, _| assert!(world.differing().is_empty()));
    // It goes: each of the others drops its block when its own hold timer says so.
    world.sets.remove(&named(5));
    world.cluster.remove_node(&named(5), at(1700));
    world.run(1700, 3000, |world, second| {
        for number in (0..5).filter(|number| second == 1720 + 50 * i64::try_from(*number).expect("small")) {
            world.set(number).remove(&block(5));
        }
        assert!(world.differing().is_empty(), "{second}");
    });
    assert_eq!(world.questions, 0);
}

#[test]
fn a_node_that_is_away_or_not_up_does_not_take_part() {
    let mut world = World::new(4, true);
    world.run(0, 700, |_, _| {});
    let mut away = worker(3);
    away["status"]["conditions"][0]["status"] = "False".into();
    apply(&mut world.cluster, &away);
    world.set(3).clear();
    world.set(3).insert(block(3));
    world.run(700, 2000, |world, _| assert!(world.differing().is_empty()));
    apply(&mut world.cluster, &worker(3));
    world.run(2000, 2800, |_, _| {});
    assert_eq!(world.differing().len(), 1, "it is back, and its network is not");
}

#[test]
fn families_are_meshes_of_their_own() {
    let mut world = World::new(4, true);
    // Two have no IPv6 at all, as in a cluster that is being moved.
    for number in 0..3 {
        world.set(number).extend([net("fd00::40/122"), net("fd00::80/122")]);
    }
    world.set(2).remove(&net("fd00::80/122"));
    world.run(0, 1500, |_, _| {});
    assert_eq!(world.differing(), [(named(2), vec![net("fd00::80/122")], vec![])]);
}

#[test]
fn behind_route_reflectors_only_what_was_known_is_missed() {
    let mut world = World::new(9, false);
    // Racks that know their own blocks only, one larger than the others together.
    for number in 0..9 {
        let rack = if number < 6 { 0..6 } else { 6..9 };
        *world.set(number) = rack.map(block).collect();
    }
    world.run(0, 2000, |world, _| assert!(world.differing().is_empty()));
    world.set(2).remove(&block(1));
    world.run(2000, 2800, |_, _| {});
    assert_eq!(world.differing(), [(named(2), vec![block(1)], vec![])]);
}

#[test]
fn a_lie_about_a_node_costs_two_questions_and_no_alarm() {
    let mut world = World::new(5, true);
    world.run(0, 2000, |world, second| {
        // Louder than the node itself.
        let sums = BlockSums::of([block(99)]);
        world.cluster.agreement.says(&named(1), Family::V4, sums, moment(second).since_boot);
        assert!(world.differing().is_empty(), "{second}");
    });
    assert!((1..200).contains(&world.questions), "{}", world.questions);
    // Nobody can fill the memory: what is said of each node is kept once.
    for number in 0..10_000 {
        let sums = BlockSums::of([block(number)]);
        world.cluster.agreement.says(&named(1), Family::V4, sums, moment(2000).since_boot);
    }
    assert!(world.cluster.agreement.known.len() < 200, "{}", world.cluster.agreement.known.len());
}

#[test]
fn who_cannot_be_asked_is_told_without_an_alarm() {
    let mut world = World::new(3, true);
    world.reachable = false;
    world.set(1).remove(&block(2));
    world.run(0, 1500, |_, _| {});
    let all: Vec<_> = world.cluster.agreement.differing().collect();
    assert_eq!(all.len(), 1);
    assert_eq!(all[0].difference.as_ref().err().map(String::as_str), Some("refused"));
    world.reachable = true;
    world.run(1500, 1600, |_, _| {});
    assert_eq!(world.differing(), [(named(1), vec![block(2)], vec![])]);
    // An agent that says nothing any more has nothing to differ in.
    world.sets.clear();
    world.reachable = false;
    world.run(1600, 3600, |_, _| {});
    assert_eq!(world.cluster.agreement.differing().count(), 0);
}

/// Five thousand nodes that are heard every five minutes, now by this replica and now by another, while a node joins or
/// leaves every minute: the one that lacks one block is found, and no other is told at any time.
#[test]
fn one_of_five_thousand_is_found_while_blocks_come_and_go() {
    const NODES: usize = 5_000;
    let mut world = World::new(3, true);
    for number in 3..NODES {
        apply(&mut world.cluster, &worker(number));
    }
    let mut all: BTreeSet<IpNet> = (0..NODES).map(|number| block(u32::try_from(number).expect("few"))).collect();
    let lost = block(4_321);
    let (mut random, mut told) = (1_u64, None);
    // The sums of what all of them route, as of each minute, and without what the one has lost.
    let mut versions: Vec<[BlockSums; 2]> = Vec::new();
    for second in (0..7_200_i64).step_by(60) {
        let new = block(10_000 + u32::try_from(second / 120).expect("few"));
        if second % 120 == 0 {
            all.insert(new)
        } else {
            all.remove(&new)
        };
        let without = all.iter().copied().filter(|block| *block != lost);
        versions.push([BlockSums::of(all.iter().copied()), BlockSums::of(without)]);
        let now = usize::try_from(second / 60).expect("positive");
        for number in (0..NODES).filter(|number| (number + now).is_multiple_of(5)) {
            random = random.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
            if random >> 63 == 0 {
                continue;
            }
            // Each hears of a block a minute late at most.
            let late = usize::try_from(random >> 62).expect("small") & 1;
            let version = &versions[versions.len().saturating_sub(1 + late)];
            let sums = version[usize::from(number == 77 && second > 3_000)].clone();
            world.cluster.agreement.says(&named(number), Family::V4, sums, moment(second).since_boot);
        }
        // Whoever is asked answers as of now.
        let mut agreement = std::mem::take(&mut world.cluster.agreement);
        for question in agreement.look(&world.cluster, moment(second)) {
            world.questions += 1;
            let blocks = |which: usize| -> Vec<IpNet> {
                let lacks = question.nodes[which].0 == named(77) && second > 3_000;
                let asked =
                    |block: &&IpNet| question.parts & (1 << part_of(**block)) != 0 && !(lacks && **block == lost);
                all.iter().filter(asked).copied().collect()
            };
            agreement.answered(&world.cluster, &question, Ok([blocks(0), blocks(1)]), moment(second).since_boot);
        }
        world.cluster.agreement = agreement;
        for (node, missing, extra) in world.differing() {
            assert_eq!((node, missing, extra), (named(77), vec![lost], vec![]), "at {second} s");
            told.get_or_insert(second);
        }
    }
    let told = told.expect("it is told");
    assert!((3_300..5_400).contains(&told), "{told}");
    assert!(world.questions < 600, "{}", world.questions);
}
