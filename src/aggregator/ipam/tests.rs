//! What is counted of blocks, whole and damaged.

use serde_json::{Value, json};

use super::block::{LARGEST, read as block};
use super::*;
use crate::aggregator::testing::at;

fn full(cidr: &str, node: &str, holder: &str) -> Value {
    json!({"cidr": cidr, "affinity": format!("host:{node}"), "allocations": [0, 0, null, 1],
        "attributes": [{"handle_id": "k8s-pod-network.1", "secondary": {"node": holder, "pod": "p", "namespace": "d"}},
            {"handle_id": "lb-1", "secondary": {"type": "loadBalancer"}}]})
}

#[test]
fn a_block_is_counted_by_node_and_by_pool() {
    let pools: Vec<IpNet> = ["10.1.0.0/16", "fd00::/48"].iter().map(|pool| pool.parse().expect("a pool")).collect();
    let mut ipam = Ipam::default();
    for spec in [
        full("10.1.0.0/30", "n1", "n1"),
        full("10.1.0.4/30", "n1", "n9"),
        full("fd00::/126", "n1", "n1"),
        full("10.1.0.8/30", "n8", "n8"),
        full("10.9.0.0/30", "n2", "n2"),
    ] {
        ipam.count(&block(&spec).expect("a block"), &pools, |node| (node < "n5").then(|| node.into()), at(0));
    }
    assert_eq!(ipam.pools[&pools[0]], Given { blocks: 3, used: 9, free: 3 });
    assert_eq!(ipam.pools[&pools[1]], Given { blocks: 1, used: 3, free: 1 });
    assert_eq!(ipam.nodes["n1"], [Given { blocks: 2, used: 6, free: 2 }, Given { blocks: 1, used: 3, free: 1 }]);
    assert_eq!(ipam.nodes["n2"][0].blocks, 1, "of a pool that is no more");
    let left = |blocks, addresses, second| Left { blocks, addresses, since: at(second) };
    assert_eq!(
        ipam.gone.iter().map(|(node, left)| (&**node, *left)).collect::<Vec<_>>(),
        [("n8", left(1, 2, 0)), ("n9", left(0, 2, 0))]
    );
    assert_eq!(ipam.blocks(), 5);
    let mut later = Ipam::default();
    later.count(
        &block(&full("10.1.0.8/30", "n8", "n8")).expect("a block"),
        &pools,
        |node| (node < "n5").then(|| node.into()),
        at(60),
    );
    later.goes_on_from(&ipam);
    assert_eq!(later.gone["n8"], left(1, 2, 0), "since it was seen first");
    assert_eq!(later.gone.len(), 1, "and what is freed is forgotten");
}

#[test]
fn what_has_no_node_belongs_to_none_and_damage_costs_itself() {
    let virtual_one =
        block(&json!({"cidr": "10.1.0.0/30", "affinity": "virtual:load-balancer", "allocations": [0, null]}))
            .expect("a block");
    assert_eq!((virtual_one.node, virtual_one.used, virtual_one.free), (None, 1, 1));
    let mut ipam = Ipam::default();
    ipam.count(
        &block(&full("10.1.0.0/30", "", "")).expect("a block"),
        &[],
        |node| (!node.is_empty()).then(|| node.into()),
        at(0),
    );
    assert!(ipam.pools.is_empty());
    for damaged in [
        json!({"cidr": "10.1.0.0/30"}),
        json!({"allocations": [], "cidr": "all"}),
        json!({"allocations": 3, "cidr": "10.1.0.0/30"}),
        json!({"allocations": [0], "cidr": "10.1.0.0/30", "deleted": true}),
        json!({"allocations": vec![0; LARGEST + 1], "cidr": "10.1.0.0/20"}),
    ] {
        assert_eq!(block(&damaged), None, "{damaged}");
    }
    let odd =
        block(&json!({"cidr": "10.1.0.0/30", "affinity": 7, "allocations": ["x", -1, 99, {"a": 1}], "attributes": {}}))
            .expect("a block");
    assert_eq!((odd.used, odd.free, odd.holders.len()), (4, 0, 0));
    // Attributes of the wrong shape keep their places, for those after them are named by theirs.
    let attribute = |node: &str| json!({"secondary": {"node": node, "pod": "p", "namespace": "d"}});
    let attributes = json!([7, null, {"secondary": []}, attribute("n1"), [1, [2]], attribute("n2")]);
    let odd =
        block(&json!({"attributes": attributes, "cidr": "10.1.0.0/29", "allocations": [0, 1, 2, 3, 4, 5, 5, null]}))
            .expect("a block");
    assert_eq!(odd.holders, [("n1".into(), 1), ("n2".into(), 2)]);
    assert_eq!(odd.pods.iter().map(|(node, at, _)| (*node, *at)).collect::<Vec<_>>(), [(0, 3), (1, 5), (1, 6)]);
    assert_eq!((odd.used, odd.free), (7, 1));
}

#[test]
fn names_of_nodes_that_are_gone_are_bounded() {
    let mut ipam = Ipam::default();
    for number in 0..2 * MOST_GONE {
        ipam.left(&format!("n{number}"), at(0), 1, 1);
        ipam.left("n0", at(0), 0, 1);
    }
    assert_eq!((ipam.gone.len(), ipam.gone["n0"].addresses as usize), (MOST_GONE, 2 * MOST_GONE + 1));
}
