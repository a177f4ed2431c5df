//! The findings about Calico's parts and what they say.

use serde_json::{Value, json};

use super::super::place;
use super::Case;
use super::world::*;
use crate::aggregator::cluster::Cluster;
use crate::aggregator::password::{Found, Way};
use crate::aggregator::surroundings::What;
use crate::aggregator::testing::at;

const WEEK: i64 = 7 * DAY;

pub(super) const CASES: &[Case] = &[
    Case {
        code: "CalicoInitFailed",
        plant: |cluster| put(cluster, What::CalicoPods, &not_started(-300)),
        trap: |cluster| put(cluster, What::CalicoPods, &not_started(-30)),
        over: 0,
    },
    Case {
        code: "CalicoFailureRecurring",
        plant: |cluster| fails_at(cluster, &[-3 * DAY, -DAY]),
        trap: |cluster| fails_at(cluster, &[-DAY]),
        over: WEEK - DAY,
    },
    Case {
        code: "BgpPasswordSecretMissing",
        plant: |cluster| no_password(cluster, -600),
        trap: |cluster| no_password(cluster, -30),
        over: 0,
    },
    Case {
        code: "CalicoNodeAbsent",
        plant: |cluster| without(cluster, What::CalicoPods, "calico-node", -300),
        trap: |cluster| without(cluster, What::CalicoPods, "calico-node", -30),
        over: 0,
    },
    Case {
        code: "CalicoNodeFailingOnNode",
        plant: |cluster| fails(cluster, 1, -300),
        // A worker with a deeper cause is left to it.
        trap: |cluster| {
            fails(cluster, 1, -300);
            apply(cluster, &silent(worker(0), -310));
        },
        over: 0,
    },
    Case {
        code: "CalicoNodeFailingSubset",
        plant: |cluster| fails(cluster, WORKERS / 2, -300),
        // Somebody works on them already.
        trap: |cluster| {
            fails(cluster, WORKERS / 2, -300);
            (0..WORKERS / 2).for_each(|number| apply(cluster, &cordoned(worker(number), -400)));
        },
        over: 0,
    },
    Case {
        code: "CalicoNodeFailingWidespread",
        plant: |cluster| fails(cluster, WORKERS, -300),
        trap: |cluster| fails(cluster, WORKERS, -60),
        over: 0,
    },
    Case {
        code: "CalicoRollingUpdate",
        plant: |cluster| put(cluster, What::DaemonSets, &set(KS, WORKERS, 4)),
        // One Pod that starts anew is no update.
        trap: |cluster| fails(cluster, 1, -20),
        over: 0,
    },
    Case {
        code: "NetworkUnavailableBrief",
        plant: |cluster| network(cluster, "True", "CalicoIsDown", -20),
        trap: |cluster| network(cluster, "True", "NoRouteCreated", -20),
        over: 0,
    },
    Case {
        code: "NetworkUnavailableProlonged",
        plant: |cluster| network(cluster, "True", "CalicoIsDown", -300),
        trap: |cluster| network(cluster, "True", "CalicoIsDown", -60),
        over: 0,
    },
    Case {
        code: "NetworkConditionStale",
        plant: |cluster| apply(cluster, &unavailable(worker(0), "True", "CalicoIsDown", -900)),
        // calico-node has been Ready for a moment only, and writes it yet.
        trap: |cluster| {
            apply(cluster, &unavailable(worker(0), "True", "CalicoIsDown", -40));
            put(cluster, What::CalicoPods, &calico(0, true, -10));
        },
        over: 0,
    },
    Case {
        code: "NetworkTaintStuck",
        plant: |cluster| apply_at(cluster, &tainted(-600), -600),
        trap: |cluster| apply_at(cluster, &tainted(-60), -60),
        over: 0,
    },
    Case {
        code: "CalicoKubeControllersDown",
        plant: |cluster| put(cluster, What::CalicoPods, &controllers(false, -1_000)),
        // Another one has taken over.
        trap: |cluster| {
            put(cluster, What::CalicoPods, &controllers(false, -1_000));
            put(cluster, What::CalicoPods, &pod(KC, KS, 2, "n02", true, -900, 0));
        },
        over: 0,
    },
    Case {
        code: "CalicoKubeControllersMissing",
        plant: |cluster| {
            put(cluster, What::SystemDeployments, &deployment(0));
            gone(cluster, What::CalicoPods, &controllers(true, -DAY), 0);
        },
        // It moves to the other namespace.
        trap: |cluster| {
            gone(cluster, What::CalicoPods, &controllers(true, -DAY), -60);
            gone(cluster, What::SystemDeployments, &deployment(1), -60);
        },
        over: 0,
    },
    Case {
        code: "CalicoKubeControllersOnBadNode",
        plant: |cluster| {
            put(cluster, What::CalicoPods, &controllers(false, -300));
            apply(cluster, &not_ready(worker(1), -310));
        },
        // It fails where all is well.
        trap: |cluster| put(cluster, What::CalicoPods, &controllers(false, -300)),
        over: 0,
    },
    Case {
        code: "CalicoKubeControllersCrashLooping",
        plant: |cluster| put(cluster, What::CalicoPods, &looping(pod(KC, KS, 1, "n01", false, -300, 4))),
        // It was restarted once, which is no loop.
        trap: |cluster| put(cluster, What::CalicoPods, &pod(KC, KS, 1, "n01", false, -10, 1)),
        over: 0,
    },
    Case {
        code: "CalicoKubeControllersOomKilled",
        plant: |cluster| put(cluster, What::CalicoPods, &ended("OOMKilled")),
        // A failed liveness probe ends with the same exit status.
        trap: |cluster| put(cluster, What::CalicoPods, &ended("Error")),
        over: 0,
    },
    Case {
        code: "CalicoKubeControllersCount",
        plant: |cluster| put(cluster, What::CalicoPods, &pod(KC, KS, 2, "n02", true, -400, 0)),
        // One takes over from the other.
        trap: |cluster| put(cluster, What::CalicoPods, &pod(KC, KS, 2, "n02", true, -100, 0)),
        over: 0,
    },
    Case {
        code: "TyphaUnhealthy",
        plant: |cluster| put(cluster, What::CalicoPods, &typha(2, false, -300)),
        trap: |cluster| put(cluster, What::CalicoPods, &typha(2, false, -60)),
        over: 0,
    },
    Case {
        code: "ControlTunnelDown",
        plant: |cluster| put(cluster, What::CalicoPods, &tunnel(4, false, -300)),
        // It has another end.
        trap: |cluster| {
            put(cluster, What::CalicoPods, &tunnel(4, false, -300));
            put(cluster, What::CalicoPods, &tunnel(5, true, -300));
        },
        over: 0,
    },
    Case {
        code: "CalicoMigrationInProgress",
        plant: |cluster| moves(cluster, -600),
        // Two Pods on a node are no move.
        trap: |cluster| put(cluster, What::CalicoPods, &moved(-600)),
        over: 0,
    },
    Case {
        code: "CalicoMigrationStalled",
        plant: |cluster| moves(cluster, -7_200),
        trap: |cluster| moves(cluster, -600),
        over: 0,
    },
    Case {
        code: "CalicoVersionMixed",
        plant: older,
        // An update is under way.
        trap: |cluster| {
            older(cluster);
            put(cluster, What::DaemonSets, &set(KS, WORKERS, 4));
        },
        over: 0,
    },
    Case {
        code: "CalicoConfigDrift",
        plant: |cluster| put(cluster, What::Felix, &felix(&json!({"f:bpfEnabled": {}}))),
        // That may be set by everybody.
        trap: |cluster| put(cluster, What::Felix, &felix(&json!({"f:mtu": {}}))),
        over: 0,
    },
];

fn not_started(created: i64) -> Value {
    let mut pod = calico(3, false, created);
    pod["metadata"]["creationTimestamp"] = json!(at(created));
    pod["status"]["initContainerStatuses"] = json!([{"name": "install-cni",
        "state": {"terminated": {"exitCode": 1, "reason": "Error", "message": "no space left on device"}}}]);
    pod
}

/// calico-node failed on the fourth worker at these times, for five minutes each.
fn fails_at(cluster: &mut Cluster, times: &[i64]) {
    let place = place("n03", cluster.node("n03").expect("it is there"));
    for begun in times {
        cluster.memory.note(&[&place], at(*begun));
        cluster.memory.note(&[], at(begun + 300));
    }
}

fn no_password(cluster: &mut Cluster, since: i64) {
    let way = Way { namespace: KS.into(), account: "calico-node".into(), secret: "bgp-password".into() };
    cluster.password = vec![Found { way, exists: Some(false), refused: Vec::new(), since: Some(at(since)) }];
}

/// calico-node has not been Ready on the first so many workers since then.
fn fails(cluster: &mut Cluster, count: usize, since: i64) {
    (0..count).for_each(|number| put(cluster, What::CalicoPods, &calico(number, false, since)));
}

/// It is said, and calico-node is as it says.
fn network(cluster: &mut Cluster, status: &str, reason: &str, since: i64) {
    apply(cluster, &unavailable(worker(0), status, reason, since));
    put(cluster, What::CalicoPods, &calico(0, false, since));
}

/// The condition is gone since then, and its taint is not.
fn tainted(since: i64) -> Value {
    let mut node = unavailable(worker(0), "True", "CalicoIsDown", since);
    let taints = node["spec"]["taints"].clone();
    node = unavailable(node, "False", "CalicoIsUp", since);
    node["spec"]["taints"] = taints;
    node
}

fn ended(reason: &str) -> Value {
    let mut pod = looping(pod(KC, KS, 1, "n01", false, -300, 4));
    pod["status"]["containerStatuses"][0]["lastState"]["terminated"] =
        json!({"reason": reason, "exitCode": 137, "finishedAt": at(-300)});
    pod
}

/// The Pod of the first worker in the namespace to which Calico moves.
fn moved(created: i64) -> Value {
    let mut pod = pod("calico-node", "calico-system", 0, &name(0), true, created, 0);
    pod["metadata"]["creationTimestamp"] = json!(at(created));
    pod
}

fn moves(cluster: &mut Cluster, last: i64) {
    gone(cluster, What::CalicoPods, &calico(0, true, -DAY), last);
    put(cluster, What::CalicoPods, &moved(last));
    put(cluster, What::DaemonSets, &set(KS, WORKERS - 1, WORKERS - 1));
    put(cluster, What::DaemonSets, &set("calico-system", 1, 1));
}

fn older(cluster: &mut Cluster) {
    let mut pod = calico(3, true, -DAY);
    pod["status"]["containerStatuses"][0]["image"] = "quay.io/calico/calico-node:v3.27.0".into();
    put(cluster, What::CalicoPods, &pod);
}
