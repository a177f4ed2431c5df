//! What is remembered: bounded, merged with what was written before, and forgotten in time.

use super::*;
use crate::aggregator::testing::at;

fn address(text: &str) -> IpAddr {
    text.parse().expect("an address")
}

#[test]
fn what_is_written_is_read_back_and_merged() {
    let mut memory = Memory::default();
    memory.bury("n1", &[address("10.0.0.1")], Some("red"), at(0));
    memory.note(&["n2"], at(0));
    memory.note(&[], at(100));
    // Several within a second are several.
    memory.turned("n3", true, at(0));
    memory.turned("n3", true, at(0));
    memory.turned("n3", true, at(1));
    let written = memory.write();
    let mut after = Memory::default();
    after.read(&written);
    assert_eq!(after.write(), written);
    after.read(&written);
    assert_eq!(after.write(), written, "what is known already is not known twice");
    let mut beside = Memory::default();
    beside.note(&["n2"], at(15));
    beside.note(&[], at(115));
    for second in [1, 1, 2] {
        beside.turned("n3", true, at(second));
    }
    beside.read(&written);
    assert_eq!(
        (beside.turns("n3", 0..=i64::MAX), beside.episodes(0).next().map(|(_, begun)| begun.len())),
        (3, Some(1)),
        "two replicas see the same"
    );
    after.note(&["n2"], at(5_000));
    after.read(&written);
    let begun: Vec<Vec<i64>> = after.episodes(0).map(|(_, begun)| begun).collect();
    assert_eq!(begun, [[at(0).as_second(), at(5_000).as_second()]]);
}

#[test]
fn what_went_on_over_the_restart_is_one() {
    let mut memory = Memory::default();
    memory.note(&["n1"], at(0));
    let written = memory.write();
    let mut after = Memory::default();
    after.note(&["n1"], at(30));
    after.read(&written);
    assert_eq!(after.calico["n1"], [Spell::new(at(0).as_second())]);
}

#[test]
fn an_episode_ends_and_one_that_comes_back_at_once_has_not() {
    let mut memory = Memory::default();
    memory.note(&["n1"], at(0));
    memory.note(&["n1"], at(20));
    memory.note(&[], at(40));
    memory.note(&["n1"], at(40 + SAME - 1));
    let count = |memory: &Memory| memory.episodes(0).map(|(_, begun)| begun.len()).sum::<usize>();
    assert_eq!(count(&memory), 1);
    memory.note(&[], at(1_000));
    memory.note(&["n1"], at(1_000 + SAME));
    assert_eq!(count(&memory), 2);
    memory.note(&[], at(2_000));
    memory.note(&[], at(2_000 + LONGEST + 1));
    assert_eq!(memory, Memory::default(), "all is forgotten in time");
}

#[test]
fn turns_count_within_an_hour_and_nodes_that_are_back_are_not_gone() {
    let mut memory = Memory::default();
    for second in [0, 10, 3_000] {
        memory.turned("n1", true, at(second));
    }
    let turns = |node: &str, second| memory.turns(node, at(second).as_second() - 3_600..=at(second).as_second());
    assert_eq!((turns("n1", 3_600), turns("n1", 3_601), turns("n1", 2_999), turns("n2", 0)), (3, 2, 2, 0));
    memory.bury("n1", &[], None, at(10));
    assert_eq!((memory.turns("n1", 0..=i64::MAX), memory.gone_since(at(10)), memory.gone_since(at(11))), (0, 1, 0));
    memory.is_back("n1");
    assert_eq!(memory.gone("n1"), None);
}

#[test]
fn it_is_bounded_and_damage_costs_itself() {
    let mut memory = Memory::default();
    for number in 0..2_000 {
        let name = format!("n{number:04}");
        memory.bury(&name, &[address("10.0.0.1"), address("fd00::1")], Some("red"), at(number));
        memory.turned(&name, true, at(number));
        memory.note(&[&name], at(number));
    }
    for round in 0..20 {
        memory.note(&["n0000"], at(10_000 + round * 2_000));
        memory.note(&[], at(11_000 + round * 2_000));
    }
    assert_eq!((memory.gone.len(), memory.calico.len()), (MOST_GONE, MOST_WORKERS));
    assert!(memory.gone("n0000").is_none() && memory.gone("n1999").is_some(), "the oldest goes");
    assert!(memory.write().to_string().len() < 256 << 10, "it fits into a ConfigMap");
    let mut read = Memory::default();
    read.read(&json!({"gone": [1, ["a"], ["b", "x"], ["c", 7, [1, "10.0.0.9"]]], "calico": {"n": [1, [2], [3, "x"]], "m": 4}, "turns": [1]}));
    assert_eq!(read.gone.keys().map(|name| &**name).collect::<Vec<_>>(), ["c"]);
    assert_eq!(&*read.gone("c").expect("it is there").addresses, [address("10.0.0.9")]);
    assert_eq!(read.calico.len(), 1);
    read.read(&json!("nothing"));
}
