//! What could not be looked at is neither told as it was before, nor is it silent.

use std::collections::BTreeSet;

use serde_json::json;

use super::super::calico::tests::{list, pod, set};
use super::super::findings;
use super::*;
use crate::aggregator::sight::Sight;
use crate::aggregator::testing::{at, cluster, node};
use crate::aggregator::watch::{Change, NotThere};

/// Every kind is listed, and calico-node fails on one of two workers.
fn planted() -> Cluster {
    let nodes = ["a", "b"].map(|name| node(name, "z", "p", "Normal", &[]));
    let mut cluster = cluster(&nodes, &[]);
    for what in What::ALL {
        list(&mut cluster, what, &[], -600);
    }
    let bad = pod("calico-node", "kube-system", 0, "a", false, -600, 0);
    list(&mut cluster, What::CalicoPods, &[bad, pod("calico-node", "kube-system", 1, "b", true, -600, 0)], -600);
    list(&mut cluster, What::DaemonSets, &[set("kube-system", 2, 2)], -600);
    cluster
}

fn told(cluster: &Cluster, now: i64) -> Vec<String> {
    let (all, ..) = findings(cluster, &cluster.duplicates(), None, at(now));
    all.into_iter().filter(|it| it.area != crate::checks::Area::Capacity).map(|it| it.code).collect()
}

fn lose(cluster: &mut Cluster, what: What, when: i64) {
    cluster.surroundings.take(what, Change::Lost("connection refused".into()), at(when));
}

#[test]
fn what_was_seen_before_a_watch_was_lost_is_told_no_more_and_said_to_be_unknown() {
    let mut cluster = planted();
    assert!(told(&cluster, 0).contains(&"CalicoNodeFailingOnNode".to_owned()), "{:?}", told(&cluster, 0));
    assert!(unseen(&cluster, at(0)).is_empty());
    lose(&mut cluster, What::CalicoPods, 0);
    assert!(told(&cluster, 29).contains(&"CalicoNodeFailingOnNode".to_owned()), "it is being reconnected");
    assert!(unseen(&cluster, at(29)).is_empty());
    assert!(!told(&cluster, 30).iter().any(|code| code.starts_with("CalicoNode")), "{:?}", told(&cluster, 30));
    let cannot = unseen(&cluster, at(30));
    assert_eq!((cannot.len(), cannot[0].since, &*cannot[0].why), (1, at(0), "connection refused"));
    assert_eq!(cannot[0].what, ["pods"]);
    assert_eq!(cannot[0].codes, [CALICO_NODES, CONTROLLERS, OTHER_PODS].concat());
    assert!(super::super::failing_calico(&cluster, at(1)).is_none(), "nobody notes what is not seen");
    cluster.surroundings.take(What::CalicoPods, Change::Found, at(60));
    assert!(unseen(&cluster, at(60)).is_empty());
    assert!(told(&cluster, 60).contains(&"CalicoNodeFailingOnNode".to_owned()));
}

#[test]
fn without_permission_it_is_unknown_and_without_the_kind_it_is_silent() {
    let mut cluster = planted();
    cluster.surroundings.take(What::CalicoPods, Change::NotThere(NotThere::Denied), at(0));
    cluster.surroundings.take(What::HostEndpoints, Change::NotThere(NotThere::Denied), at(-9));
    cluster.surroundings.take(What::Pools, Change::NotThere(NotThere::Missing), at(0));
    cluster.surroundings.take(What::CalicoPods, Change::NotThere(NotThere::Denied), at(70));
    let cannot = unseen(&cluster, at(80));
    assert_eq!(cannot.len(), 1, "what has one reason is one: {cannot:?}");
    assert_eq!((cannot[0].since, &*cannot[0].why), (at(-9), "no permission to list and watch it"));
    assert_eq!(cannot[0].what, ["pods", "hostendpoints"]);
    assert!(cannot[0].codes.iter().any(|code| code == "HostEndpointStale"));
    assert!(told(&cluster, 80).is_empty(), "{:?}", told(&cluster, 80));
    for what in [What::CalicoPods, What::HostEndpoints] {
        cluster.surroundings.take(what, Change::NotThere(NotThere::Missing), at(90));
    }
    assert!(unseen(&cluster, at(300)).is_empty());
}

#[test]
fn what_is_asked_for_now_and_then_is_unknown_once_it_has_failed_for_a_while() {
    let mut cluster = planted();
    for look in [Look::Blocks, Look::Backends, Look::Password] {
        cluster.looked(look, None, at(0));
        cluster.looked(look, Some("no answer".into()), at(10));
        cluster.looked(look, Some("no answer".into()), at(30));
        assert!(unseen(&cluster, at(39)).is_empty());
        let cannot = unseen(&cluster, at(40));
        assert_eq!(
            (&*cannot[0].what, &*cannot[0].codes, cannot[0].since),
            (
                &[look.name().to_owned()][..],
                &*of_look(look).iter().copied().flatten().map(|code| (*code).to_owned()).collect::<Vec<_>>(),
                at(10)
            )
        );
        assert!(of_look(look).iter().copied().flatten().all(|code| outdated(&cluster, at(40)).contains(code)));
        cluster.looked(look, None, at(50));
        assert!(unseen(&cluster, at(90)).is_empty() && outdated(&cluster, at(90)).is_empty());
    }
}

/// Findings that are made of the Nodes and of how the API server is, all Unknown while they are not seen; of what the agents answer, which
/// says itself that it is not confirmed; of the agents' own findings; or of who comes here.
const OF_NODES: [&str; 19] = [
    "AgentScrapeFailing",
    "ClusterWithoutWorkers",
    "DuplicateNodeObject",
    "FirewallSuspected",
    "GatewayClusterUnsupported",
    "KubeletHeartbeatLost",
    "LastWorkerAtRisk",
    "MasterUnreachableClusterwide",
    "MasterUpdateInProgress",
    "MtuMismatch",
    "NodeIpReused",
    "NodeReadyFlapping",
    "NodeStillCordoned",
    "PodRouteSetDiffers",
    "PoolNotRefilled",
    "WorkerPatchOutdated",
    "WorkerStuckInTransition",
    "ZoneBelowTwoWorkers",
    "ZoneConnectionLimitSuspected",
];

#[test]
fn every_finding_about_the_cluster_is_unknown_without_what_it_is_made_of() {
    let looks = [Look::Blocks, Look::Backends, Look::Password];
    let made: BTreeSet<&str> =
        What::ALL.into_iter().map(codes).chain(looks.map(of_look)).flatten().copied().flatten().copied().collect();
    let readme = include_str!("../../../../../README.md");
    let (_, table) = readme.split_once("### Findings about the cluster").expect("the table of these findings");
    let table = table.split("\n### ").next().unwrap_or_default();
    let listed = table.lines().filter_map(|line| line.strip_prefix("| `")?.split('`').next());
    // Below it are the thresholds.
    let listed: BTreeSet<&str> = listed.filter(|code| code.starts_with(char::is_uppercase)).collect();
    assert!(listed.len() > 30, "{listed:?}");
    let of_others: Vec<&str> = listed.difference(&made).copied().collect();
    assert_eq!(of_others, OF_NODES, "each of the others names in `codes` what it is made of");
    assert_eq!(made.difference(&listed).count(), 0, "{made:?}");
}

#[test]
fn no_kind_that_is_lost_leaves_a_finding_that_is_made_of_it() {
    for what in What::ALL {
        let mut cluster = planted();
        cluster.ipam = Some(crate::aggregator::ipam::Ipam::default());
        lose(&mut cluster, what, 0);
        let cannot = unseen(&cluster, at(100));
        assert_eq!(cannot[0].what, [what.kind().name]);
        assert!(told(&cluster, 100).iter().all(|code| !cannot[0].codes.contains(code)), "{what:?}");
    }
    let mut all = planted();
    for what in What::ALL {
        lose(&mut all, what, 0);
    }
    assert_eq!(unseen(&all, at(100)).len(), 1, "one reason");
    assert_eq!(Sight::default().is_blind(at(0)), None);
    assert!(json!(unseen(&all, at(100)))[0]["codes"].as_array().is_some_and(|codes| codes.len() > 30));
}
