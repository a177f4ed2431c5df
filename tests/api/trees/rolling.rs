//! A rolling update of calico-node that takes more workers at once than its DaemonSet allows, and those that are routine; and what
//! is about the cluster's own components beside it: its DNS, and calico-kube-controllers wherever they are put.

use anyhow::Result;
use serde_json::{Value, json};

use super::plants::{ago, name};
use super::{Branch, QUIET, SETS, Trees, WORKERS};
use crate::bench::{Bench, now};

/// With the product's time a Pod that is away for longer than a new one needs (60 s) is a failure of its own soon after (120 s): here
/// that is later than any of this takes.
const LIMITS: &str = "cluster: {routineSeconds: 590}\nsettlingSeconds: 0\n";
/// For so long those that are updated are away.
const AWAY: i64 = 70;

const ROUTINE: Branch = Branch {
    cluster: &[("CalicoRollingUpdate", "info")],
    says: [
        "7 of 12 nodes are done, 0 are not Ready for more than 590 s",
        "wait; nothing is to be done while no node is slow",
    ],
    ..QUIET
};
const TOO_MANY: Branch = Branch {
    cluster: &[("CalicoRollingUpdate", "warning")],
    on: &[0, 1, 2],
    says: [
        "it is away on 3 nodes at once, and its DaemonSet allows 2 (maxUnavailable): that is no routine",
        "`kubectl -n kube-system rollout undo daemonset/calico-node`",
    ],
    ..QUIET
};

/// What is routine follows each time on what is not, so that it is not told before it was looked at.
const ROLLING: &[Branch] = &[
    QUIET,
    Branch {
        of: "4.1 a rolling update that takes more workers at once than maxUnavailable",
        plant: |trees, bad| if bad { trees.rolls(0..3, true) } else { Ok(()) },
        ..TOO_MANY
    },
    Branch { of: "4.1 as many as it may", plant: |trees, bad| trees.calico(2..3, bad, &ago(AWAY)), ..ROUTINE },
    Branch { of: "4.1 too many again", ..TOO_MANY },
    Branch {
        of: "4.1 a share of the nodes is rounded up: 21 % of 12 are 3",
        plant: |trees, bad| trees.may_take(&if bad { json!("21%") } else { json!(2) }),
        ..ROUTINE
    },
    Branch { of: "4.1 too many once more", ..TOO_MANY },
    Branch {
        of: "4.1 who works on a worker is not the update",
        plant: |trees, bad| {
            if !bad {
                trees.rolls(0..3, false)?;
            }
            let cordoned = json!({"spec": {"unschedulable": bad}});
            trees.0.admin(&format!("PATCH merge /api/v1/nodes/{}", name(2)), &cordoned).map(drop)
        },
        ..ROUTINE
    },
    Branch {
        of: "4.0 DNS: nobody is Ready behind its Service",
        plant: |trees, bad| trees.resolver(bad),
        cluster: &[("ClusterDnsUnreachable", "warning")],
        says: [
            "nobody answers for the cluster's DNS, Service kube-system/resolver (",
            "`kubectl -n kube-system get pods -l k8s-app=kube-dns -o wide`",
        ],
        ..QUIET
    },
    Branch {
        of: "4.4 wherever it is put it fails: the nodes are not to blame",
        plant: |trees, bad| {
            if !bad {
                trees.gone("kc-1")?;
                return trees.pod("kc-0", "calico-kube-controllers", 10);
            }
            trees.ready("kc-0", false, &now())?;
            trees.restarted("kc-0", true, 4, "Error")?;
            trees.gone("kc-0")?;
            trees.made("kube-system", "kc-1", "calico-kube-controllers", 3)?;
            trees.restarted("kc-1", true, 4, "Error")
        },
        cluster: &[("CalicoKubeControllersCrashLooping", "warning")],
        says: [
            "kube-system/kc-1 is started again and again (4 restarts), moved there after it did not come up on t10",
            "the nodes are not to blame: uncordon those that were tried",
        ],
        ..QUIET
    },
    QUIET,
];

impl Trees<'_> {
    /// calico-node is being updated, and is away on these.
    fn rolls(&self, away: std::ops::Range<usize>, bad: bool) -> Result<()> {
        self.may_take(&json!(2))?;
        self.rolled(if bad { 7 } else { WORKERS })?;
        self.calico(away, !bad, &ago(AWAY))
    }

    /// So many nodes at once.
    fn may_take(&self, most: &Value) -> Result<()> {
        let strategy = json!({"type": "RollingUpdate", "rollingUpdate": {"maxUnavailable": most}});
        let set = json!({"spec": {"updateStrategy": strategy}});
        self.0.admin(&format!("PATCH merge {SETS}/calico-node"), &set).map(drop)
    }

    /// A Service of the cluster's DNS, behind which no Pod is Ready; or none.
    fn resolver(&self, bad: bool) -> Result<()> {
        let (services, slices) = (
            "/api/v1/namespaces/kube-system/services",
            "/apis/discovery.k8s.io/v1/namespaces/kube-system/endpointslices",
        );
        if !bad {
            self.0.admin(&format!("DELETE {services}/resolver"), &Value::Null)?;
            return self.0.admin(&format!("DELETE {slices}/resolver"), &Value::Null).map(drop);
        }
        let labels = json!({"k8s-app": "kube-dns", "kubernetes.io/service-name": "resolver"});
        let ports = json!([{"name": "dns", "port": 53, "protocol": "UDP"}]);
        let meta = json!({"name": "resolver", "namespace": "kube-system", "labels": labels});
        let slice = json!({"apiVersion": "discovery.k8s.io/v1", "kind": "EndpointSlice", "addressType": "IPv4", "metadata": meta,
            "ports": ports, "endpoints": [{"addresses": ["172.30.1.9"], "conditions": {"ready": false}}]});
        let service = json!({"apiVersion": "v1", "kind": "Service", "metadata": meta, "spec": {"ports": ports}});
        self.0.admin(&format!("POST {slices}"), &slice)?;
        self.0.admin(&format!("POST {services}"), &service).map(drop)
    }
}

#[test]
fn an_update_may_take_so_many_workers_at_once_and_no_more() -> Result<()> {
    let bench = Bench::take()?;
    let trees = Trees(&bench);
    trees.no_workloads();
    trees.set_up()?;
    bench.add_pod("aggregator-t", "aggregator", &name(11))?;
    let aggregator = trees.aggregator(LIMITS)?;
    trees.walk(ROLLING, &aggregator)
}
