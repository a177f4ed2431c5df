//! Pools and nodes without addresses, told apart by their blocks; what is left of nodes that are gone; and silence.

use serde_json::{Value, json};

use super::super::calico::tests::{list, pod, set};
use super::*;
use crate::aggregator::ipam::Given;
use crate::aggregator::testing::{apply, at, cluster, node};
use crate::checks::Severity;

/// As it is where nothing is set.
const CLEANED: i64 = 30 * 60;

const POOL: &str = "172.30.0.0/24";

fn worker(number: usize) -> Value {
    let mut node = node(&format!("n{number}"), "a", "p", "Normal", &[]);
    node["status"]["addresses"] = json!([{"type": "InternalIP", "address": format!("10.0.0.{number}")}]);
    node
}

/// Four workers; the pool has four blocks of 64 addresses. Of each worker so many blocks, and free addresses in them.
fn planted(own: [(u32, u64); 4], strict: bool) -> Cluster {
    let mut cluster = cluster(&(0..4).map(worker).collect::<Vec<_>>(), &[]);
    let pool = json!({"metadata": {"name": "default-ipv4-ippool"}, "spec": {"cidr": POOL, "blockSize": 26}});
    list(&mut cluster, What::Pools, &[pool], -86_400);
    let mut ipam = Ipam { at: at(0), strict, most_blocks: 2, ..Ipam::default() };
    let all = ipam.pools.entry(POOL.parse().expect("a pool")).or_default();
    for (number, (blocks, free)) in own.into_iter().enumerate() {
        let given = Given { blocks, used: u64::from(blocks) * 64 - free, free };
        *all = Given { blocks: all.blocks + blocks, used: all.used + given.used, free: all.free + free };
        ipam.nodes.insert(format!("n{number}").into(), [given, Given::default()]);
    }
    cluster.ipam = Some(ipam);
    cluster
}

fn codes(cluster: &Cluster, now: i64) -> Vec<(&'static str, Severity, Vec<String>)> {
    findings(cluster, at(now)).into_iter().map(|draft| (draft.code, draft.severity, draft.on)).collect()
}

fn names(numbers: &[usize]) -> Vec<String> {
    numbers.iter().map(|number| format!("n{number}")).collect()
}

#[test]
fn the_blocks_tell_the_cluster_from_one_node() {
    assert!(
        codes(&planted([(1, 60), (1, 60), (1, 60), (1, 60)], true), 0).is_empty(),
        "all is given out, and has room"
    );
    assert!(
        codes(&planted([(1, 0), (1, 1), (0, 0), (1, 60)], true), 0).is_empty(),
        "there is a block for who has none"
    );
    // One node has all that it may have: the cluster is not out of addresses.
    assert_eq!(
        codes(&planted([(2, 0), (1, 9), (0, 0), (0, 0)], true), 0),
        [("NodeIpBlocksExhausted", Critical, names(&[0]))]
    );
    assert!(codes(&planted([(2, 1), (1, 9), (0, 0), (0, 0)], true), 0).is_empty(), "one address is left: it clears");
    // No block is left, and one node is full: with its own addresses only, that is the cluster's.
    let full = planted([(2, 0), (1, 9), (1, 9), (0, 0)], true);
    assert_eq!(codes(&full, 0), [("ClusterIpPoolExhausted", Critical, names(&[0, 3]))]);
    let detail = findings(&full, at(0)).remove(0).detail;
    assert!(
        detail.contains("default-ipv4-ippool 172.30.0.0/24")
            && detail.contains("18 addresses are free in blocks of other nodes"),
        "{detail}"
    );
    // Where nodes may borrow, 18 addresses are enough for now; but not for who is at its limit of blocks.
    assert_eq!(codes(&planted([(1, 0), (1, 9), (1, 9), (1, 0)], false), 0), []);
    assert_eq!(
        codes(&planted([(1, 0), (1, 0), (1, 0), (1, 0)], false), 0),
        [("ClusterIpPoolExhausted", Critical, names(&[0, 1, 2, 3]))]
    );
}

#[test]
fn pools_that_are_not_for_pods_do_not_count_and_one_with_room_is_enough() {
    let mut cluster = planted([(1, 0), (1, 0), (1, 0), (1, 0)], true);
    let pool = |name: &str, more: Value| {
        let mut spec =
            json!({"cidr": if name == "default-ipv4-ippool" { POOL } else { "172.31.0.0/24" }, "blockSize": 26});
        spec.as_object_mut().expect("an object").extend(more.as_object().cloned().unwrap_or_default());
        json!({"metadata": {"name": name}, "spec": spec})
    };
    for more in [json!({"disabled": true}), json!({"allowedUses": ["LoadBalancer"]})] {
        list(&mut cluster, What::Pools, &[pool("default-ipv4-ippool", json!({})), pool("second", more)], 0);
        assert_eq!(codes(&cluster, 0)[0].0, "ClusterIpPoolExhausted");
    }
    list(&mut cluster, What::Pools, &[pool("default-ipv4-ippool", json!({})), pool("second", json!({}))], 0);
    assert!(codes(&cluster, 0).is_empty());
    // A node that came after they were read may have a block by now.
    let mut young = planted([(1, 5), (1, 5), (1, 5), (0, 0)], true);
    let mut new = worker(3);
    new["metadata"]["creationTimestamp"] = json!(at(0));
    apply(&mut young, &new);
    young.ipam.as_mut().expect("it is there").pools.values_mut().for_each(|given| given.blocks = 4);
    assert!(codes(&young, 9).is_empty());
    young.ipam.as_mut().expect("it is there").at = at(1);
    assert_eq!(codes(&young, 9), [("ClusterIpPoolExhausted", Critical, names(&[3]))]);
    let mut without = planted([(1, 0), (1, 0), (1, 0), (1, 0)], true);
    without.ipam = None;
    assert!(codes(&without, 0).is_empty(), "nothing could be read");
}

fn gone(cluster: &mut Cluster, node: &str, since: i64) {
    let ipam = cluster.ipam.as_mut().expect("it is there");
    ipam.gone.insert(node.into(), Left { blocks: 1, addresses: 7, since: at(since) });
}

#[test]
fn what_nodes_that_are_gone_hold_is_a_leak_once_it_should_have_been_freed() {
    let mut cluster = planted([(1, 9); 4], true);
    gone(&mut cluster, "n9", 0);
    assert!(codes(&cluster, CLEANED - 1).is_empty(), "calico-kube-controllers cleans up behind it");
    assert_eq!(codes(&cluster, CLEANED), [("IpLeakSuspected", Warning, vec![])]);
    let detail = findings(&cluster, at(CLEANED)).remove(0).detail;
    assert!(detail.contains("1 blocks and 7 addresses of 1 nodes that are gone (n9)"), "{detail}");
    cluster.ipam.as_mut().expect("it is there").gone.clear();
    assert!(codes(&cluster, CLEANED).is_empty(), "it clears");
    // When it went is known of nodes that were seen, also after a restart.
    gone(&mut cluster, "n9", CLEANED - 10);
    cluster.memory.bury("n9", &[], None, at(0));
    assert_eq!(codes(&cluster, CLEANED), [("IpLeakSuspected", Warning, vec![])]);
}

#[test]
fn addresses_of_pods_that_are_gone_are_a_leak_once_they_should_have_been_freed() {
    let mut cluster = planted([(1, 9); 4], true);
    let leaked = |address: &str, since: i64| Leaked::new(address.parse().expect("an address"), at(since));
    let leaks = &mut cluster.ipam.as_mut().expect("it is there").leaked;
    leaks.insert("n1".into(), vec![leaked("172.30.0.70", 0)]);
    leaks.insert("n2".into(), vec![leaked("172.30.0.130", 0), leaked("172.30.0.131", 0), leaked("172.30.0.132", 900)]);
    assert!(codes(&cluster, CLEANED - 1).is_empty(), "calico-kube-controllers waits for a quarter of an hour itself");
    assert_eq!(codes(&cluster, CLEANED), [("IpLeakSuspected", Warning, names(&[1, 2]))]);
    let draft = findings(&cluster, at(CLEANED)).remove(0);
    assert!(
        draft.detail.contains("3 addresses of Pods that are not there, on 2 nodes")
            && draft.detail.contains("2 of them on n2 (172.30.0.130, 172.30.0.131)"),
        "{}",
        draft.detail
    );
    assert_eq!((draft.since, &*draft.subject), (Some(at(0)), "Pods that are gone"));
    let leaks = &mut cluster.ipam.as_mut().expect("it is there").leaked;
    leaks.clear();
    assert!(codes(&cluster, CLEANED).is_empty(), "it clears");
    cluster.ipam = None;
    assert!(codes(&cluster, CLEANED).is_empty(), "nothing could be read");
}

#[test]
fn an_address_that_another_node_has_by_now_is_reused_while_something_is_left() {
    let mut cluster = planted([(1, 9); 4], true);
    cluster.memory.bury("n9", &["10.0.0.2".parse().expect("an address")], None, at(0));
    assert!(codes(&cluster, 700).is_empty(), "reuse alone is harmless");
    gone(&mut cluster, "n9", 0);
    assert!(codes(&cluster, 599).is_empty());
    assert_eq!(codes(&cluster, 600), [("NodeIpReused", Critical, names(&[2]))]);
    assert!(
        findings(&cluster, at(600))[0]
            .next
            .contains("delete what Calico holds of n9, and nothing else; then drain and reboot n2")
    );
    // The only worker is not taken away before there is another.
    let next = |cluster: &Cluster| {
        let (all, ..) = super::super::judged(cluster, &cluster.duplicates(), None, at(600));
        all.into_iter().find(|finding| finding.code == "NodeIpReused").expect("told").next
    };
    assert!(next(&cluster).starts_with("delete what Calico holds of n9"), "{}", next(&cluster));
    for node in ["n0", "n1", "n3"] {
        cluster.remove_node(node, at(0));
    }
    assert!(next(&cluster).starts_with("add or uncordon a worker before this one is drained"), "{}", next(&cluster));
    apply(&mut cluster, &worker(4));
    assert!(next(&cluster).starts_with("delete what Calico holds of n9"), "{}", next(&cluster));
}

#[test]
fn a_cluster_that_had_no_worker_is_told_from_a_leak() {
    let fails = |made: i64| {
        let mut cluster = planted([(1, 9); 4], true);
        gone(&mut cluster, "n9", -86_400);
        let pods: Vec<Value> = (0..4)
            .map(|number| pod("calico-node", "kube-system", number, &format!("n{number}"), number != 1, -86_400, 0))
            .collect();
        list(&mut cluster, What::CalicoPods, &pods, -86_400);
        let mut set = set("kube-system", 4, 4);
        set["metadata"]["creationTimestamp"] = json!(at(made));
        list(&mut cluster, What::DaemonSets, &[set], -86_400);
        cluster
    };
    assert_eq!(codes(&fails(-900_000), 0), [("CalicoDataForDeletedNodes", Critical, names(&[1]))]);
    assert_eq!(codes(&fails(-800_000), 0), [("IpLeakSuspected", Warning, vec![])], "some workers were there before");
    // A worker that went is known, and those of now were there by then.
    let mut replaced = fails(-900_000);
    replaced.memory.bury("n9", &[], None, at(-86_400));
    assert_eq!(codes(&replaced, 0), [("IpLeakSuspected", Warning, vec![])]);
    let mut emptied = fails(-900_000);
    emptied.memory.bury("n9", &[], None, at(-864_001));
    assert_eq!(codes(&emptied, 0), [("CalicoDataForDeletedNodes", Critical, names(&[1]))]);
}

fn affinities(cluster: &mut Cluster, all: &[(&str, &str)]) {
    let objects: Vec<Value> = all
        .iter()
        .map(|(node, cidr)| json!({"metadata": {"name": format!("{node}-{cidr}")}, "spec": {"node": node, "cidr": cidr, "state": "confirmed"}}))
        .collect();
    list(cluster, What::Affinities, &objects, 0);
}

#[test]
fn a_block_of_two_nodes_is_told_and_neighbours_are_not() {
    let mut cluster = planted([(1, 9); 4], true);
    affinities(
        &mut cluster,
        &[("n0", "172.30.0.0/26"), ("n1", "172.30.0.64/26"), ("n2", "fd00::/122"), ("n0", "fd00::40/122")],
    );
    assert!(codes(&cluster, 0).is_empty());
    affinities(&mut cluster, &[("n0", "172.30.0.0/26"), ("n1", "172.30.0.64/26"), ("n3", "172.30.0.64/26")]);
    assert_eq!(codes(&cluster, 0), [("IpBlockConflict", Critical, names(&[1, 3]))]);
    affinities(&mut cluster, &[("n0", "172.30.0.0/25"), ("n1", "172.30.0.64/26"), ("n0", "172.30.0.0/26")]);
    assert_eq!(codes(&cluster, 0), [("IpBlockConflict", Critical, names(&[0, 1]))], "one in the other");
    affinities(&mut cluster, &[]);
    assert!(codes(&cluster, 0).is_empty());
}

#[test]
fn host_endpoints_belong_to_every_worker_or_are_nobodys_business() {
    let endpoint = |node: &str, address: &str| json!({"metadata": {"name": format!("{node}-hep")}, "spec": {"node": node, "expectedIPs": [address]}});
    let with = |all: &[Value]| {
        let mut cluster = planted([(1, 9); 4], true);
        list(&mut cluster, What::HostEndpoints, all, 0);
        cluster
    };
    let all: Vec<Value> = (0..4).map(|number| endpoint(&format!("n{number}"), &format!("10.0.0.{number}"))).collect();
    assert!(codes(&with(&all), 0).is_empty());
    assert!(codes(&with(&[]), 0).is_empty() && codes(&with(&all[..2]), 0).is_empty(), "single ones are somebody's own");
    assert_eq!(codes(&with(&all[..3]), 0), [("HostEndpointMissing", Warning, names(&[3]))]);
    let mut stale = all.clone();
    stale[1] = endpoint("n1", "10.0.0.77");
    assert_eq!(codes(&with(&stale), 0), [("HostEndpointStale", Warning, names(&[1]))]);
    assert!(findings(&with(&stale), at(0))[0].detail.contains("n1-hep of n1 expects 10.0.0.77"));
    let mut more = all.clone();
    more.push(endpoint("firewall-7", "192.0.2.7"));
    let mut cluster = with(&more);
    assert!(codes(&cluster, 86_400).is_empty(), "it may never have been one of the cluster's");
    cluster.memory.bury("firewall-7", &[], None, at(0));
    assert!(codes(&cluster, CLEANED - 1).is_empty());
    assert_eq!(codes(&cluster, CLEANED), [("HostEndpointStale", Warning, vec!["firewall-7".to_owned()])]);
    let mut open = all.clone();
    open[2]["spec"]["expectedIPs"] = json!([]);
    assert!(codes(&with(&open), 0).is_empty(), "it expects none");
}
