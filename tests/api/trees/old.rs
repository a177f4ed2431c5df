//! What is told of a cluster that has been there for long, with Calico's objects: Nodes and data that are left over, workers that
//! are few, forgotten, not replaced, or behind. The thresholds are those of the product: what has to be old was made long ago.

use anyhow::{Context as _, Result};
use serde_json::{Value, json};

use super::plants::{ago, name, network_taint, worker};
use super::{Branch, DEPLOYMENT, LONG_AGO, MEMORY, QUIET, SETS, TOLD, Trees, WORKERS, report, told};
use crate::bench::{Bench, condition};
use crate::inventory::{GROUP, Planted};
use crate::map::object;
use crate::support::wait::eventually;

const DAY: i64 = 86_400;
/// The one that joined a moment ago, in the place of one that went. All others are older.
const NEW: usize = 11;
/// Where its addresses and those of another one that went can be seen.
const GONE: [&str; 2] = ["10.0.1.77", "10.0.1.78"];
/// What is left of a worker after its update, by the address that it is named by.
const LEFT_OVER: &str = "169.60.1.5";

/// In an order in which what one leaves behind changes no other.
pub(super) const OLD: &[Branch] = &[
    // A new worker without a host endpoint; one that was replaced; one that went so shortly ago that its data may still be there.
    QUIET,
    Branch {
        of: "4.5 Node objects that are left over",
        plant: left_over,
        cluster: &[("DuplicateNodeObject", "info")],
        says: ["169.60.1.5 is t04 by now", "see that t04 is Ready, then `kubectl delete node 169.60.1.5`"],
        ..QUIET
    },
    Branch {
        of: "4.1 they are in no count; and some workers are older than Calico, so that data of a deleted one is no reason",
        plant: |trees, bad| {
            left_over(trees, bad)?;
            trees.calico(0..1, !bad, LONG_AGO)
        },
        cluster: &[("CalicoNodeFailingOnNode", "critical"), ("DuplicateNodeObject", "info")],
        on: &[0],
        says: ["on 1 of 12 workers", "`kubectl cordon` it"],
        ..QUIET
    },
    Branch {
        of: "4.1 all workers were deleted once: what Calico holds of them keeps a new one from starting, though its controllers run",
        plant: |trees, bad| {
            // They came after t50 went, and have settled.
            let came = if bad { 900 } else { 10 * DAY };
            (0..WORKERS).filter(|number| *number != NEW).try_for_each(|number| trees.aged(number, came))?;
            let age = if bad { 20 * DAY } else { 0 };
            trees.0.age(&format!("{SETS}/calico-node"), "daemonsets/kube-system/calico-node", age)?;
            trees.0.age(DEPLOYMENT, "deployments/kube-system/calico-kube-controllers", age)?;
            trees.calico(2..3, !bad, LONG_AGO)
        },
        cluster: &[("CalicoDataForDeletedNodes", "critical")],
        on: &[2],
        says: [
            "Calico holds 1 blocks and 2 addresses of 1 nodes that are gone (t50), all workers are newer than Calico itself",
            "delete what Calico holds of these nodes (with the datastore Kubernetes their blockaffinities and ipamblocks",
        ],
        ..QUIET
    },
    Branch {
        of: "2.F two workers with one address, and a new one whose address may be about to be another's",
        plant: |trees, bad| {
            trees.addressed(6, if bad { "10.0.1.6" } else { "10.0.1.7" })?;
            trees.addressed(NEW, if bad { "10.0.1.8" } else { "10.0.1.12" })
        },
        cluster: &[("NodeIpReused", "critical")],
        on: &[5, 6],
        says: ["2 Ready Nodes have the address 10.0.1.6", "drain and reboot the one that stays"],
        ..QUIET
    },
    Branch {
        of: "2.F an address of a worker that is gone and of which something is left, and one of which nothing is",
        plant: |trees, bad| {
            trees.addressed(6, if bad { GONE[0] } else { "10.0.1.7" })?;
            trees.addressed(7, if bad { GONE[1] } else { "10.0.1.8" })
        },
        cluster: &[("NodeIpReused", "critical")],
        on: &[6],
        says: [
            "t06 has the address 10.0.1.77 of t50, which is gone, and Calico still holds 1 blocks of that one",
            "delete what Calico holds of t50, and nothing else; then drain and reboot t06",
        ],
        ..QUIET
    },
    Branch {
        of: "2.F a worker without its host endpoint",
        plant: |trees, bad| if bad { trees.unguarded(3) } else { trees.guarded(3, &["10.0.1.4"]) },
        cluster: &[("HostEndpointMissing", "warning")],
        on: &[3],
        says: ["1 of 11 workers have no host endpoint, and the others have one", "calico-extension"],
        ..QUIET
    },
    Branch {
        of: "2.F host endpoints of an address or a worker that is no more; one by its interface, and one whose worker went just now",
        plant: |trees, bad| {
            trees.guarded(3, &[if bad { "10.0.9.9" } else { "10.0.1.4" }])?;
            trees.guarded(4, if bad { &[] } else { &["10.0.1.5"] })?;
            for number in [50, 51] {
                if bad { trees.guarded(number, &["10.0.9.8"]) } else { trees.unguarded(number) }?;
            }
            Ok(())
        },
        cluster: &[("HostEndpointStale", "warning")],
        on: &[3, 51],
        says: ["t03-auto-hep of t03 expects 10.0.9.9", "delete these host endpoints"],
        ..QUIET
    },
    Branch {
        of: "4.4 parts of Calico in two versions",
        plant: mixed,
        cluster: &[("CalicoVersionMixed", "warning")],
        on: &[10],
        says: [
            "have different versions, and no update is under way: v3.27.0 in 1, v3.28.1 in 2",
            "find out who changed an image",
        ],
        ..QUIET
    },
    Branch {
        of: "4.4 the same while they are updated is routine",
        plant: |trees, bad| {
            trees.rolled(if bad { 7 } else { WORKERS })?;
            mixed(trees, bad)
        },
        cluster: &[("CalicoRollingUpdate", "info")],
        says: ["7 of 12 nodes are done", "wait; nothing is to be done"],
        ..QUIET
    },
    Branch {
        of: "2.A one worker is left that takes Pods",
        plant: |trees, bad| (0..NEW).try_for_each(|number| trees.cordoned(number, bad, &ago(1))),
        cluster: &[("LastWorkerAtRisk", "warning")],
        on: &[NEW],
        says: [
            "of 12 workers only t11 is Ready and not cordoned",
            "add a worker, or uncordon one, before anything is drained",
        ],
        ..QUIET
    },
    Branch {
        of: "2.A a zone with one worker left, and one that never had more",
        plant: |trees, bad| {
            for (number, zone) in [(0, "za"), (1, "za"), (2, "zb")] {
                let labels = json!({"topology.kubernetes.io/zone": bad.then_some(zone)});
                trees.node(number, &json!({"metadata": {"labels": labels}}))?;
            }
            trees.cordoned(0, bad, &ago(1))
        },
        cluster: &[("ZoneBelowTwoWorkers", "info")],
        says: [
            "Ready and not cordoned: za (1 of 2); Ingress",
            "add or uncordon a worker there before another is drained",
        ],
        ..QUIET
    },
    Branch {
        of: "4.1 nobody uncordoned it; on purpose, just now, and with something wrong it is another matter",
        plant: |trees, bad| {
            let on_purpose = json!({"nodevitals.dev/maintenance": bad.then_some("disks")});
            trees.node(3, &json!({"metadata": {"annotations": on_purpose}}))?;
            trees.cordoned(4, bad, &ago(60))?;
            for number in [2, 3, 5] {
                trees.0.tell(&name(number), None, LONG_AGO)?;
                trees.cordoned(number, bad, &ago(7_200))?;
            }
            trees.tell(5..6, bad.then_some(("DiskPressureImminent", "warning", "capacity", "CapacityProblem")))
        },
        cluster: &[("NodeStillCordoned", "info")],
        told: &[("DiskPressureImminent", "none")],
        on: &[2],
        says: ["1 workers are cordoned for more than an hour", "`kubectl uncordon t02` if nobody works on it"],
        ..QUIET
    },
    Branch {
        of: "2.A a worker that an update forgot; in the other pool one is new, and an update goes on",
        plant: |trees, bad| {
            [3, 6].into_iter().try_for_each(|number| trees.runs(number, if bad { "v1.35.2" } else { "v1.35.4" }))
        },
        cluster: &[("WorkerPatchOutdated", "info")],
        on: &[3],
        says: [
            "1 of 5 workers of pool red (from v1.35.2, others have v1.35.4)",
            "update these workers, one after the other",
        ],
        ..QUIET
    },
    Branch {
        of: "2.F a worker went and none came in its place; of another one it was more than a day ago",
        plant: |trees, bad| {
            trees.guarded(NEW, &["10.0.1.12"])?;
            trees.aged(NEW, if bad { 10 * DAY } else { 0 })
        },
        cluster: &[("PoolNotRefilled", "warning")],
        says: [
            "1 workers of pool blue went within a day, and 0 new ones came: 1 fewer than before; gone are t50",
            "rebalance or resize it",
        ],
        ..QUIET
    },
    QUIET,
];

fn left_over(trees: &Trees<'_>, bad: bool) -> Result<()> {
    if !bad {
        return trees.0.admin(&format!("DELETE /api/v1/nodes/{LEFT_OVER}"), &Value::Null).map(drop);
    }
    let mut node = worker(4);
    node["metadata"]["name"] = LEFT_OVER.into();
    node["status"]["conditions"] = json!([condition("Ready", "Unknown", "NodeStatusUnknown")]);
    trees.0.admin("POST /api/v1/nodes", &node).map(drop)
}

fn mixed(trees: &Trees<'_>, bad: bool) -> Result<()> {
    let one = if bad { "v3.27.0" } else { "v3.28.1" };
    [("calico-node-02", "v3.28.1"), ("typha-0", "v3.28.1"), ("kc-0", one)]
        .into_iter()
        .try_for_each(|(pod, tag)| trees.tagged(pod, tag))
}

impl Trees<'_> {
    /// All but the new one are old, and each has a host endpoint but that one. Of two that went, one has data left.
    pub(super) fn grow_old(&self, calico: &Planted<'_>) -> Result<()> {
        let bench: &Bench = self.0;
        for number in (0..WORKERS).filter(|number| *number != NEW) {
            self.aged(number, 10 * DAY)?;
            self.guarded(number, &[&format!("10.0.1.{}", number + 1)])?;
        }
        for pod in ["calico-node-02", "typha-0", "kc-0"] {
            bench.age(
                &format!("/api/v1/namespaces/kube-system/pods/{pod}"),
                &format!("pods/kube-system/{pod}"),
                7_200,
            )?;
        }
        let pool = object("IPPool", "default-ipv4-ippool", &json!({"cidr": "172.30.0.0/24", "blockSize": 30}));
        bench.apply(&pool.to_string())?;
        calico.block(0, "t50", 2)?;
        let at = |seconds: i64| jiff::Timestamp::now().as_second() - seconds;
        let gone = json!([["t50", at(1_200), [GONE[0]], "blue"], ["t51", at(2 * DAY), [GONE[1]], "red"]]);
        let memory = json!({"gone": gone, "calico": {}, "turns": {}});
        bench.admin(&format!("PATCH merge {MEMORY}"), &json!({"data": {"memory": memory.to_string()}})).map(drop)
    }

    fn aged(&self, number: usize, seconds: i64) -> Result<()> {
        let name = name(number);
        self.0.age(&format!("/api/v1/nodes/{name}"), &format!("minions/{name}"), seconds)
    }

    fn node(&self, number: usize, patch: &Value) -> Result<()> {
        self.0.admin(&format!("PATCH merge /api/v1/nodes/{}", name(number)), patch).map(drop)
    }

    fn addressed(&self, number: usize, address: &str) -> Result<()> {
        let status = json!({"status": {"addresses": [{"type": "InternalIP", "address": address}]}});
        self.0.admin(&format!("PATCH strategic /api/v1/nodes/{}/status", name(number)), &status).map(drop)
    }

    /// Its kubelet is of this version.
    fn runs(&self, number: usize, version: &str) -> Result<()> {
        let status = json!({"status": {"nodeInfo": {"kubeletVersion": version}}});
        self.0.admin(&format!("PATCH strategic /api/v1/nodes/{}/status", name(number)), &status).map(drop)
    }

    fn cordoned(&self, number: usize, bad: bool, since: &str) -> Result<()> {
        let mut taints = network_taint(false);
        if bad {
            let taint = json!({"key": "node.kubernetes.io/unschedulable", "effect": "NoSchedule", "timeAdded": since});
            taints.as_array_mut().context("a list")?.push(taint);
        }
        self.node(number, &json!({"spec": {"unschedulable": bad.then_some(true), "taints": taints}}))
    }

    fn guarded(&self, number: usize, addresses: &[&str]) -> Result<()> {
        let spec = json!({"node": name(number), "interfaceName": "*", "expectedIPs": addresses});
        self.0.apply(&object("HostEndpoint", &format!("{}-auto-hep", name(number)), &spec).to_string()).map(drop)
    }

    fn unguarded(&self, number: usize) -> Result<()> {
        self.0.admin(&format!("DELETE {GROUP}/hostendpoints/{}-auto-hep", name(number)), &Value::Null).map(drop)
    }

    fn tagged(&self, pod: &str, tag: &str) -> Result<()> {
        let status = json!({"name": "c", "image": format!("quay.io/calico/part:{tag}"), "imageID": "", "ready": true,
            "restartCount": 0, "state": {"running": {}}, "lastState": {}});
        let request = format!("PATCH merge /api/v1/namespaces/kube-system/pods/{pod}/status");
        self.0.admin(&request, &json!({"status": {"containerStatuses": [status]}})).map(drop)
    }
}

#[test]
fn what_is_left_over_forgotten_or_missing_in_an_old_cluster_is_told() -> Result<()> {
    let bench = Bench::take()?;
    let trees = Trees(&bench);
    trees.no_workloads();
    let calico = Planted::kinds(&bench)?;
    trees.set_up()?;
    trees.grow_old(&calico)?;
    bench.add_pod("aggregator-t", "aggregator", &name(10))?;
    // The data of the one that went shortly ago may be there for as long as this test takes.
    let aggregator = trees.aggregator("cluster: {cleanupMinutes: 120}\n")?;
    for branch in OLD {
        // The new one stays new, however long the branches before took.
        trees.aged(NEW, 0)?;
        trees.walk(std::slice::from_ref(branch), &aggregator)?;
    }
    drop(aggregator);

    // What takes two minutes otherwise.
    let aggregator = trees.aggregator("cluster: {routineSeconds: 10, cleanupMinutes: 120}\n")?;
    trees.walk(&[QUIET], &aggregator)?;
    trees.gone("calico-node-04")?;
    let absent = Branch {
        of: "4.1 absent on one worker",
        cluster: &[("CalicoNodeFailingOnNode", "critical")],
        on: &[4],
        says: ["on 1 of 12 workers, on the first since", "`kubectl cordon` it"],
        ..QUIET
    };
    eventually(absent.of, TOLD, || {
        let report = report(&aggregator)?;
        told(&absent, &report)?;
        let detail = report["cluster"][0]["detail"].as_str().unwrap_or_default();
        anyhow::ensure!(detail.contains("there is no Pod on t04"), "{detail}");
        Ok(())
    });
    trees.pod("calico-node-04", "calico-node", 4)?;
    trees.walk(&[QUIET], &aggregator)
}
