//! Real messages that were damaged on their way: bytes changed, cut off, left out, doubled, or taken from another message. Each
//! run damages them in the same ways, so that no change fails by what an earlier one left; new ways are the fuzz targets' work.

use std::path::Path;

use proptest::collection::vec;
use proptest::prelude::*;
use proptest::sample::Index;
use proptest::strategy::ValueTree as _;
use proptest::test_runner::{Config, RngAlgorithm, TestRng, TestRunner};

/// So many messages for each target.
const CASES: u32 = 200;
/// Longer seeds are cut: what is done to their beginning is enough here, and fuzzing reads them whole.
const LONGEST: usize = 16 << 10;

/// One damage: which, from where to where, and the byte that it needs.
type Damage = (u8, Index, Index, u8);

/// Feeds a target with damaged seeds and with bytes that mean nothing; it has to come back, and what its door claims of the
/// result has to hold.
pub(super) fn come_back(name: &str, target: fn(&[u8])) {
    let directory = Path::new(env!("CARGO_MANIFEST_DIR")).join("fuzz/corpus-seeds").join(name);
    let files = std::fs::read_dir(&directory).expect("seeds").map(|entry| entry.expect("a seed").path());
    let mut seeds: Vec<Vec<u8>> = files.map(|file| std::fs::read(file).expect("readable")).collect();
    assert!(!seeds.is_empty(), "no seeds in {}", directory.display());
    seeds.sort();
    for seed in &mut seeds {
        seed.truncate(LONGEST);
        target(seed);
    }
    let damage = vec((0..6_u8, any::<Index>(), any::<Index>(), any::<u8>()), 0..6);
    let message = (any::<Index>(), any::<Index>(), damage).prop_map(|(one, other, damages)| {
        let (mut message, other) = (one.get(&seeds).clone(), other.get(&seeds));
        for damage in &damages {
            suffer(&mut message, other, damage);
        }
        message
    });
    let message = prop_oneof![9 => message, 1 => vec(any::<u8>(), 0..300)];
    let outcome = runner().run(&message, |message| {
        target(&message);
        Ok(())
    });
    if let Err(why) = outcome {
        panic!("{name}: {why}");
    }
}

/// Draws the same messages in each run.
fn runner() -> TestRunner {
    let config = Config { cases: CASES, failure_persistence: None, ..Config::default() };
    TestRunner::new_with_rng(config, TestRng::deterministic_rng(RngAlgorithm::ChaCha))
}

#[test]
fn each_run_damages_in_the_same_ways() {
    let draw = || {
        let mut runner = runner();
        let mut one = || any::<u64>().new_tree(&mut runner).expect("a number").current();
        [one(), one(), one()]
    };
    let drawn = draw();
    assert_eq!(drawn, draw());
    assert!(drawn[0] != drawn[1] && drawn[1] != drawn[2], "{drawn:?}");
}

fn suffer(message: &mut Vec<u8>, other: &[u8], (what, from, to, byte): &Damage) {
    if message.is_empty() {
        message.push(*byte);
    }
    let (from, to) = (from.index(message.len()), to.index(message.len()));
    let (from, to) = (from.min(to), from.max(to));
    match what {
        0 => message[from] = *byte,
        1 => message[from] ^= 1 << (byte % 8),
        2 => message.truncate(from),
        3 => drop(message.drain(from..to)),
        4 => {
            let part = message[from..to].to_vec();
            message.splice(from..from, part);
        }
        _ => {
            let end = other.len().min(to);
            message.splice(from..from, other[from.min(end)..end].iter().copied());
        }
    }
}
