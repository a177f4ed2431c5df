//! The branches 4.5 and 4.6, and what is known only after these, with what makes them so.

use serde_json::{Value, json};

use super::plants::{name, network_taint, worker};
use super::{Branch, LONG_AGO, QUIET, WORKERS};
use crate::bench::Finding;

const DISK: Finding = ("DiskFull", "critical", "capacity", "CapacityProblem");

/// In an order in which what one leaves behind (turns of kubelets) changes no other.
pub(super) const STATES: &[Branch] = &[
    Branch {
        of: "4.5 Critical on one",
        plant: |trees, bad| trees.tell(4..5, bad.then_some(DISK)),
        told: &[("DiskFull", "few")],
        says: [
            "something is wrong",
            "see what holds the space (`du -xh --max-depth=2 MOUNT | sort -h`), free it, or add a worker",
        ],
        ..QUIET
    },
    Branch {
        of: "4.5 Critical on most: the opposite remedy",
        plant: |trees, bad| trees.tell(0..10, bad.then_some(DISK)),
        told: &[("DiskFull", "most")],
        says: [
            "something is wrong",
            "10 of 12 workers have this: do not cordon, drain, reboot or reload workers for this",
        ],
        ..QUIET
    },
    Branch {
        of: "4.5 somebody works on it already",
        plant: |trees, bad| {
            trees.0.admin("PATCH merge /api/v1/nodes/t04", &json!({"spec": {"unschedulable": bad}}))?;
            trees.tell(4..5, bad.then_some(DISK))
        },
        told: &[("DiskFull", "none")],
        says: [
            "something is wrong",
            "see what holds the space (`du -xh --max-depth=2 MOUNT | sort -h`), free it, or add a worker",
        ],
        ..QUIET
    },
    Branch {
        of: "4.6 the way to the control plane through a gateway",
        plant: |trees, bad| {
            let vpe = ("VpeGatewaySuspected", "critical", "controlPlanePath", "ControlPlanePathProblem");
            trees.tell(8..9, bad.then_some(vpe))
        },
        told: &[("VpeGatewaySuspected", "few")],
        says: [
            "something is wrong",
            "iks-CLUSTER_ID): none means refresh the master and wait, one that is not Stable is a case for support, a Stable one means the security groups; then replace workers that do not come back",
        ],
        ..QUIET
    },
    Branch {
        of: "4.5 Unknown, one: the kubelet is silent, and 4.1: so Calico there is not judged",
        plant: |trees, bad| {
            trees.lease(1, bad.then_some("2026-11-01T09:59:20.123456Z"))?;
            trees.kubelet(1..2, if bad { "Unknown" } else { "True" }, LONG_AGO)?;
            trees.calico(1..2, !bad, LONG_AGO)?;
            // The aggregator has said that nobody knows; the agent speaks again.
            if bad { Ok(()) } else { trees.tell(1..2, None) }
        },
        cluster: &[("KubeletHeartbeatLost", "critical")],
        told: &[("AgentStale", "few")],
        on: &[1],
        says: [
            "of the kubelet of t01 since 2026-11-01T10:00:00Z, and its Lease was renewed last at 2026-11-01T09:59:20Z",
            "which does not use Calico: leave Calico alone",
        ],
        ..QUIET
    },
    Branch {
        of: "4.5 in transit too long: it was cordoned, and has not come back",
        plant: |trees, bad| {
            let cordon =
                |on: bool| trees.0.admin("PATCH merge /api/v1/nodes/t03", &json!({"spec": {"unschedulable": on}}));
            cordon(true)?;
            trees.kubelet(3..4, if bad { "False" } else { "True" }, LONG_AGO)?;
            cordon(bad).map(drop)
        },
        cluster: &[("WorkerStuckInTransition", "warning")],
        on: &[3],
        says: ["t03 is cordoned, and not Ready since 2026-11-01T10:00:00Z", "`nodevitals repair t03`"],
        ..QUIET
    },
    Branch {
        of: "4.5 Unknown, many: what a firewall cuts off is a subnet",
        plant: |trees, bad| {
            for number in 4..10 {
                let labels = json!({"privateVLAN": if bad { json!("17") } else { Value::Null }});
                let node = format!("PATCH merge /api/v1/nodes/{}", name(number));
                trees.0.admin(&node, &json!({"metadata": {"labels": labels}}))?;
            }
            trees.silent(4..10, bad)
        },
        cluster: &[("KubeletHeartbeatLost", "critical"), ("FirewallSuspected", "warning")],
        told: &[("AgentStale", "subset")],
        share: "6 of 6 in subnet 17 fail, 0 of 6 elsewhere",
        on: &[4, 5, 6, 7, 8, 9],
        says: ["of 6 workers, of t04 since", "look at the way to the control plane, which does not use Calico"],
        ..QUIET
    },
    Branch {
        of: "4.2 the taint does not go with the condition",
        plant: |trees, bad| {
            let (mut node, path) = (worker(91), "/api/v1/nodes");
            node["spec"]["taints"] = network_taint(true);
            let request = if bad { format!("POST {path}") } else { format!("DELETE {path}/t91") };
            trees.0.admin(&request, &if bad { node } else { Value::Null }).map(drop)
        },
        cluster: &[("NetworkTaintStuck", "warning")],
        on: &[91],
        says: ["contradict each other", "look whether kube-controller-manager"],
        ..QUIET
    },
    Branch {
        of: "4.1 a kubelet that comes and goes: Calico there is not judged",
        plant: |trees, bad| {
            for ready in ["Unknown", "True"].iter().cycle().take(if bad { 4 } else { 0 }) {
                trees.kubelet(1..2, ready, LONG_AGO)?;
            }
            trees.tell(1..2, None)?;
            trees.calico(1..2, !bad, LONG_AGO)
        },
        cluster: &[("NodeReadyFlapping", "warning")],
        on: &[1],
        says: [
            "turned Ready or not at least 3 times within 60 minutes",
            "leave Calico alone; see whether the kubelet restarts",
        ],
        ..QUIET
    },
    Branch {
        of: "4.5 Unknown, all: the master is away",
        plant: |trees, bad| {
            if bad {
                return trees.silent(0..WORKERS, true);
            }
            trees.silent(0..3, false)?;
            trees.silent(4..WORKERS, false)
        },
        // That of t01 turned before; nobody is at risk because nobody is heard.
        cluster: &[("MasterUnreachableClusterwide", "critical"), ("NodeReadyFlapping", "warning")],
        told: &[("AgentStale", "all")],
        says: ["12 of 12 workers have no connection", "touch no worker: is the master being updated?"],
        ..QUIET
    },
    Branch {
        of: "4.5 Unknown, one that is left over after the master was updated",
        plant: |trees, bad| if bad { Ok(()) } else { trees.silent(3..4, false) },
        cluster: &[("KubeletHeartbeatLost", "critical"), ("NodeReadyFlapping", "warning")],
        told: &[("AgentStale", "few")],
        on: &[3],
        says: ["of the kubelet of t03 since", "which does not use Calico: leave Calico alone"],
        ..QUIET
    },
    Branch {
        of: "4.5 the master is back: who turned with all others does not flap, not even t10, which turned twice before",
        plant: |_, _| Ok(()),
        cluster: &[("NodeReadyFlapping", "warning")],
        on: &[1],
        says: ["that of t01 6 times", "leave Calico alone"],
        ..QUIET
    },
];

/// While the control plane may still be put together anew.
pub(super) const LEFT_OVER: Branch = Branch {
    of: "4.5 Unknown, one: the control plane is being updated",
    plant: |trees, bad| trees.silent(3..4, bad),
    cluster: &[("KubeletHeartbeatLost", "warning"), ("MasterUpdateInProgress", "info")],
    told: &[("AgentStale", "few")],
    on: &[3],
    says: [
        "of the kubelet of t03 since",
        "wait for the update of the control plane; reload or replace t03 if it stays silent afterwards",
    ],
    ..QUIET
};
