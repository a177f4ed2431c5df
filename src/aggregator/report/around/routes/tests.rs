//! What is said of nodes that route other blocks than the rest.

use super::*;
use crate::aggregator::testing::at;

fn blocks(of: &[(&str, Option<&str>)], count: usize) -> Blocks {
    let first = of.iter().map(|(block, owner)| (block.parse().expect("a block"), owner.map(str::to_owned)));
    Blocks { first: first.collect(), count }
}

fn told(missing: Blocks, extra: Blocks, nodes: &[&str]) -> Draft {
    let difference = Ok(Difference { missing, extra, against: "n9".to_owned() });
    let found = difference.as_ref().expect("it was asked");
    let all: Vec<_> = nodes
        .iter()
        .map(|node| (Differs { node, family: Family::V4, since: at(5), difference: &difference }, found))
        .collect();
    different(&found.missing, &found.extra, &all).expect("a finding")
}

#[test]
fn a_missing_block_is_named_with_its_node_and_the_way_back() {
    let draft = told(blocks(&[("10.1.0.0/26", Some("n2"))], 1), Blocks::default(), &["n1"]);
    assert_eq!((draft.code, draft.severity, draft.since), ("PodRouteSetDiffers", Warning, Some(at(5))));
    assert!(
        draft.detail.starts_with(
            "n1 has no route to pods in 10.1.0.0/26 of n2, unlike most workers of the mesh (compared with n9)"
        ),
        "{}",
        draft.detail
    );
    assert!(draft.next.contains("`ip route show 10.1.0.0/26` with the same on n9"), "{}", draft.next);
    assert!(draft.next.contains("whether its session with n2 is up"), "{}", draft.next);
    assert_eq!((draft.subject.as_str(), draft.on), ("pod block 10.1.0.0/26", vec!["n1".to_owned()]));
}

#[test]
fn an_extra_block_is_told_by_whether_anybody_has_it() {
    let draft = told(Blocks::default(), blocks(&[("10.1.0.0/26", None)], 1), &["n1"]);
    assert!(draft.detail.contains("has routes to pods in 10.1.0.0/26 of no node, unlike most"), "{}", draft.detail);
    assert!(draft.next.contains("ip route del 10.1.0.0/26"), "{}", draft.next);
    let draft = told(Blocks::default(), blocks(&[("10.1.0.0/26", Some("n3"))], 1), &["n1"]);
    assert!(draft.next.starts_with("n3 has 10.1.0.0/26, so that it is the others that lack it"), "{}", draft.next);
}

#[test]
fn many_are_told_at_once() {
    let draft = told(blocks(&[("10.1.0.0/26", Some("n2"))], 7), Blocks::default(), &["n1", "n4"]);
    assert!(
        draft.detail.starts_with("2 workers, such as n1, have no route to pods in 10.1.0.0/26 of n2 and 6 more blocks")
    );
    assert_eq!(draft.on, ["n1", "n4"]);
}

#[test]
fn who_could_not_be_asked_is_said_with_the_reason() {
    let difference = Err("the agent on n1 cannot be asked: refused".to_owned());
    let silent = [Differs { node: "n1", family: Family::V6, since: at(5), difference: &difference }];
    let draft = not_asked(&silent).expect("a finding");
    assert_eq!((draft.code, draft.severity), ("PodRouteSetDiffers", Info));
    assert!(
        draft.detail.ends_with("which ones is not known: the agent on n1 cannot be asked: refused"),
        "{}",
        draft.detail
    );
    assert!(not_asked(&[]).is_none());
    assert!(findings(&Cluster::watched()).is_empty());
}

#[test]
fn a_longer_mtu_is_a_warning_and_a_shorter_one_is_not() {
    let mut cluster = Cluster::watched();
    let odd = |link, confirmed| Odd::new(link, at(5), confirmed, "n9");
    cluster.odd_mtus.insert("n1".into(), odd(0, Some((1480, 1450))));
    cluster.odd_mtus.insert("n2".into(), odd(1, Some((1400, 1450))));
    cluster.odd_mtus.insert("n3".into(), odd(0, None));
    let drafts = findings(&cluster);
    let told: Vec<_> = drafts.iter().map(|it| (it.code, it.severity, &*it.subject, &*it.on, it.since)).collect();
    assert_eq!(
        told,
        [
            ("MtuMismatch", Warning, "tunnel longer", &["n1".to_owned()][..], Some(at(5))),
            ("MtuMismatch", Info, "Pods' links shorter", &["n2".to_owned()][..], Some(at(5))),
        ]
    );
    assert!(drafts[0].detail.contains("1480 on n1, 1450 on n9; long packets"), "{}", drafts[0].detail);
}

#[test]
fn an_mtu_that_nobody_can_be_asked_about_is_said_as_such() {
    let worker = crate::aggregator::testing::node("n1", "z", "p", "Normal", &[]);
    let mut cluster = crate::aggregator::testing::cluster(&[worker], &[]);
    cluster.mtus_told("n1", [1480, 1450], at(0));
    cluster.odd_mtus.insert("n1".into(), Odd::new(0, at(5), None, ""));
    assert!(findings(&cluster).is_empty(), "it has not been asked yet");
    cluster.odd_mtus.get_mut("n1").expect("there").unanswered = UNANSWERED;
    let drafts = findings(&cluster);
    assert_eq!(
        (drafts.len(), drafts[0].code, drafts[0].severity, drafts[0].since),
        (1, "MtuMismatch", Info, Some(at(5)))
    );
    assert!(
        drafts[0]
            .detail
            .contains("tunnel of 1 workers is said to be another one than on most of their zone (1480 on n1)")
    );
    cluster.odd_mtus.insert("n1".into(), Odd::new(0, at(5), Some((1480, 1450)), "n2"));
    assert!(findings(&cluster)[0].detail.contains("long packets"), "it was asked");
}
