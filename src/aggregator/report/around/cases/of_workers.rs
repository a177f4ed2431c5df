//! The findings about workers, the control plane, addresses, routes and webhooks.

use serde_json::{Value, json};

use super::Case;
use super::world::*;
use crate::aggregator::cluster::Cluster;
use crate::aggregator::ipam::{Given, Ipam, Left};
use crate::aggregator::memory::sift;
use crate::aggregator::mtus::Odd;
use crate::aggregator::surroundings::What;
use crate::aggregator::testing::{at, moment};
use crate::aggregator::watch::Change;

pub(super) const CASES: &[Case] = &[
    Case {
        code: "MasterUnreachableClusterwide",
        plant: |cluster| mute(cluster, 0..WORKERS, -300),
        // An API server that restarts is back by then.
        trap: |cluster| mute(cluster, 0..WORKERS, -30),
        over: 0,
    },
    Case {
        code: "MasterUpdateInProgress",
        plant: |cluster| answers(cluster, &["v1.34.2", "v1.35.4"]),
        trap: |cluster| answers(cluster, &["v1.34.2", "v1.34.2", "no version"]),
        over: 45 * 60 - 300,
    },
    Case {
        code: "KubeletHeartbeatLost",
        plant: |cluster| mute(cluster, 3..4, -300),
        // Somebody works on it.
        trap: |cluster| apply(cluster, &silent(cordoned(worker(3), -400), -300)),
        over: 0,
    },
    Case {
        code: "FirewallSuspected",
        plant: |cluster| mute(cluster, 0..WORKERS / 2, -300),
        // Elsewhere one is cut off too.
        trap: |cluster| mute(cluster, 0..WORKERS / 2 + 1, -300),
        over: 0,
    },
    Case {
        code: "WorkerStuckInTransition",
        plant: |cluster| apply(cluster, &not_ready(cordoned(worker(3), -1_400), -1_300)),
        trap: |cluster| apply(cluster, &not_ready(cordoned(worker(3), -700), -600)),
        over: 0,
    },
    Case {
        code: "WebhookBlocksSystemPods",
        plant: |cluster| put(cluster, What::FailedCreates, &refused(CALLS)),
        trap: |cluster| put(cluster, What::FailedCreates, &refused("Error creating: exceeded quota")),
        over: 0,
    },
    Case {
        code: "WebhookDeadlock",
        plant: |cluster| locked(cluster, 4),
        // What it waits for is on a worker on which all is well.
        trap: |cluster| locked(cluster, 5),
        over: 0,
    },
    Case {
        code: "WebhookRisk",
        plant: |cluster| answered(cluster, &[("n01", true)], 0),
        // It asks about nobody of the system.
        trap: |cluster| {
            let shop = json!({"namespaceSelector": {"matchLabels": {"kubernetes.io/metadata.name": "shop"}}});
            put(cluster, What::Validating, &webhook(&["pods"], &shop));
            answered(cluster, &[("n01", true)], 0);
        },
        over: 0,
    },
    Case {
        code: "ClusterIpPoolExhausted",
        plant: |cluster| addresses(cluster, (0, true), &[0]),
        // Where nodes may borrow, the others' addresses are enough.
        trap: |cluster| addresses(cluster, (0, false), &[0]),
        over: 0,
    },
    Case {
        code: "NodeIpBlocksExhausted",
        plant: |cluster| addresses(cluster, (900, true), &[0]),
        // All of its blocks are full, and it may have more.
        trap: |cluster| {
            addresses(cluster, (900, true), &[0]);
            ipam(cluster).most_blocks = 20;
        },
        over: 0,
    },
    Case {
        code: "IpLeakSuspected",
        plant: |cluster| left(cluster, "n99", -3_600),
        // calico-kube-controllers may clean up behind it.
        trap: |cluster| left(cluster, "n99", -900),
        over: 0,
    },
    Case {
        code: "IpBlockConflict",
        plant: |cluster| put(cluster, What::Affinities, &affinity("n00", "172.30.1.0/26")),
        trap: |cluster| put(cluster, What::Affinities, &affinity("n00", "172.30.1.64/26")),
        over: 0,
    },
    Case {
        code: "CalicoDataForDeletedNodes",
        plant: |cluster| emptied(cluster, -11 * DAY),
        // Some workers are older than Calico: there was no time without any.
        trap: |cluster| emptied(cluster, -9 * DAY),
        over: 0,
    },
    Case {
        code: "HostEndpointMissing",
        plant: |cluster| gone(cluster, What::HostEndpoints, &endpoint(3, "10.0.0.3"), 0),
        // Single ones are somebody's own affair.
        trap: |cluster| {
            (3..WORKERS).for_each(|number| gone(cluster, What::HostEndpoints, &endpoint(number, ""), 0));
        },
        over: 0,
    },
    Case {
        code: "HostEndpointStale",
        plant: |cluster| put(cluster, What::HostEndpoints, &endpoint(3, "10.0.0.77")),
        // It may never have been one of the cluster's.
        trap: |cluster| put(cluster, What::HostEndpoints, &endpoint(99, "192.0.2.7")),
        over: 0,
    },
    Case {
        code: "NodeIpReused",
        plant: |cluster| apply(cluster, &addressed(worker(3), 2)),
        // A Node that has just been made may have the address of one that is about to go.
        trap: |cluster| {
            let mut new = addressed(worker(20), 2);
            new["metadata"]["creationTimestamp"] = json!(at(-60));
            apply(cluster, &new);
        },
        over: 0,
    },
    Case {
        code: "DuplicateNodeObject",
        plant: |cluster| apply(cluster, &not_ready(addressed(worker(20), 2), -DAY)),
        // Nodes that are containers of one machine have its number.
        trap: |cluster| {
            for number in [2, 3] {
                let mut node = worker(number);
                node["status"]["nodeInfo"]["systemUUID"] = "same".into();
                apply(cluster, &if number == 2 { not_ready(node, -DAY) } else { node });
            }
        },
        over: 0,
    },
    Case {
        code: "PodRouteSetDiffers",
        plant: |cluster| routes(cluster, -900..1, Some(3)),
        trap: |cluster| routes(cluster, -900..1, None),
        over: 0,
    },
    Case {
        code: "MtuMismatch",
        plant: |cluster| drop(cluster.odd_mtus.insert("n03".into(), Odd::new(0, at(-9), Some((1480, 1450)), "n04"))),
        // It has not been asked yet.
        trap: |cluster| drop(cluster.odd_mtus.insert("n03".into(), Odd::new(0, at(-9), None, ""))),
        over: 0,
    },
    Case {
        code: "PoolNotRefilled",
        plant: |cluster| cluster.remove_node("n11", at(-900)),
        // The one in its place may yet come.
        trap: |cluster| cluster.remove_node("n11", at(-300)),
        over: 0,
    },
    Case {
        code: "LastWorkerAtRisk",
        plant: |cluster| (1..WORKERS).for_each(|number| apply(cluster, &cordoned(worker(number), -300))),
        trap: |cluster| (2..WORKERS).for_each(|number| apply(cluster, &cordoned(worker(number), -300))),
        over: 0,
    },
    Case {
        code: "ZoneBelowTwoWorkers",
        plant: |cluster| (1..WORKERS / 2).for_each(|number| apply(cluster, &cordoned(worker(number), -300))),
        // A zone of one worker was made so.
        trap: |cluster| (1..WORKERS / 2).for_each(|number| cluster.remove_node(&name(number), at(-60))),
        over: 0,
    },
    Case {
        code: "NodeReadyFlapping",
        plant: |cluster| turns(cluster, &[-900, -600, -300]),
        // As in a reboot.
        trap: |cluster| turns(cluster, &[-600, -300]),
        over: 3_600,
    },
    Case {
        code: "NodeStillCordoned",
        plant: |cluster| apply(cluster, &cordoned(worker(3), -4_000)),
        trap: |cluster| apply(cluster, &cordoned(worker(3), -3_000)),
        over: 0,
    },
    Case {
        code: "WorkerPatchOutdated",
        plant: |cluster| apply(cluster, &runs(worker(3), "v1.30.8+IKS")),
        // What is left over of a worker has its old kubelet.
        trap: |cluster| apply(cluster, &not_ready(runs(addressed(worker(20), 2), "v1.30.8+IKS"), -DAY)),
        over: 0,
    },
    Case {
        code: "GatewayClusterUnsupported",
        plant: |cluster| gateways(cluster, "v1.33.1+IKS"),
        trap: |cluster| gateways(cluster, "v1.23.17+IKS"),
        over: 0,
    },
    Case {
        code: "ClusterWithoutWorkers",
        plant: |cluster| (0..WORKERS).for_each(|number| cluster.remove_node(&name(number), at(-900))),
        trap: |cluster| (0..WORKERS).for_each(|number| cluster.remove_node(&name(number), at(-300))),
        over: 0,
    },
    Case {
        code: "ClusterDnsUnreachable",
        plant: |cluster| resolve(cluster, &[false, false], -300),
        // They may be started anew.
        trap: |cluster| resolve(cluster, &[false, false], -30),
        over: 0,
    },
    Case {
        code: "ZoneConnectionLimitSuspected",
        plant: |cluster| loaded(cluster, "400.30000"),
        // With so few connections it is something else that does not answer.
        trap: |cluster| loaded(cluster, "400.1000"),
        over: 1_800,
    },
    Case {
        code: "AgentScrapeFailing",
        plant: |cluster| scraped(cluster, -950..-310, 30),
        // A person who looks now and then is no collector.
        trap: |cluster| scraped(cluster, -950..-310, 400),
        over: 0,
    },
];

const CALLS: &str =
    "Error creating: Internal error occurred: failed calling webhook \"guard.example\": no endpoints available";

fn mute(cluster: &mut Cluster, workers: std::ops::Range<usize>, since: i64) {
    workers.for_each(|number| apply(cluster, &silent(worker(number), since)));
}

fn answers(cluster: &mut Cluster, versions: &[&str]) {
    for version in versions {
        cluster.memory.master.answered(version, at(-300));
    }
}

/// calico-node fails on this worker, and the tunnel to who answers for the webhook on the fifth.
fn locked(cluster: &mut Cluster, number: usize) {
    put(cluster, What::CalicoPods, &calico(number, false, -300));
    put(cluster, What::CalicoPods, &tunnel(4, false, -300));
}

fn ipam(cluster: &mut Cluster) -> &mut Ipam {
    cluster.ipam.as_mut().expect("it is there")
}

/// So many blocks are free, and these workers have both of theirs full.
fn addresses(cluster: &mut Cluster, (free, strict): (u32, bool), full: &[usize]) {
    let ipam = ipam(cluster);
    ipam.strict = strict;
    for given in ipam.pools.values_mut() {
        given.blocks = 1_024 - free;
    }
    for number in full {
        ipam.nodes.insert(name(*number).into(), [Given { blocks: 2, used: 128, free: 0 }, Given::default()]);
    }
}

/// Calico holds addresses of a node that went then.
fn left(cluster: &mut Cluster, node: &str, since: i64) {
    ipam(cluster).gone.insert(node.into(), Left { blocks: 1, addresses: 7, since: at(since) });
}

/// What Calico, which was made then, holds of a node keeps calico-node from starting.
fn emptied(cluster: &mut Cluster, made: i64) {
    left(cluster, "n99", -DAY);
    let mut set = set(KS, WORKERS, WORKERS);
    set["metadata"]["creationTimestamp"] = json!(at(made));
    put(cluster, What::DaemonSets, &set);
    let mut deployment = deployment(1);
    deployment["metadata"]["creationTimestamp"] = json!(at(made));
    put(cluster, What::SystemDeployments, &deployment);
    put(cluster, What::CalicoPods, &calico(1, false, -DAY));
}

/// With the address of this worker.
fn addressed(mut node: Value, number: usize) -> Value {
    node["status"]["addresses"] = worker(number)["status"]["addresses"].clone();
    node
}

fn turns(cluster: &mut Cluster, seconds: &[i64]) {
    for second in seconds {
        cluster.memory.turned("n03", false, at(*second));
        sift(cluster, at(second + 20));
    }
}

fn runs(mut node: Value, kubelet: &str) -> Value {
    node["status"]["nodeInfo"]["kubeletVersion"] = kubelet.into();
    node
}

fn gateways(cluster: &mut Cluster, kubelet: &str) {
    for number in 0..WORKERS {
        let mut node = runs(worker(number), kubelet);
        let gateway = number < 2;
        node["metadata"]["labels"]["ibm-cloud.kubernetes.io/worker-pool-name"] =
            if gateway { "gateway" } else { "compute" }.into();
        if gateway {
            let addresses = node["status"]["addresses"].as_array_mut().expect("addresses");
            addresses.push(json!({"type": "ExternalIP", "address": format!("169.1.1.{number}")}));
        }
        apply(cluster, &node);
    }
}

fn resolve(cluster: &mut Cluster, ready: &[bool], since: i64) {
    let slice = serde_json::from_value(resolvers(ready)).expect("a slice");
    cluster.surroundings.take(What::DnsSlices, Change::Here(slice), at(since));
}

/// The agents in zone a, of a VPC, have said for five minutes how many SYNs they send again and how many connections they have.
fn loaded(cluster: &mut Cluster, load: &str) {
    for number in 0..WORKERS {
        let mut node = worker(number);
        let zone = node["metadata"]["labels"]["topology.kubernetes.io/zone"].clone();
        node["metadata"]["labels"]["ibm-cloud.kubernetes.io/subnet-id"] = zone;
        apply(cluster, &node);
        let said = if number < WORKERS / 2 { load } else { "3.2000" };
        for when in [-300, 0] {
            cluster.agent_said(&name(number), &format!("load={said}&boot=0"), at(when));
        }
    }
}

fn scraped(cluster: &mut Cluster, seconds: std::ops::Range<i64>, every: usize) {
    for second in seconds.step_by(every) {
        cluster.scraped(moment(second));
    }
    cluster.misses_scrapes(moment(0).since_boot);
}
