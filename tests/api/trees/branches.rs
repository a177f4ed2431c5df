//! The branches 4.0 to 4.4, with what makes them so.

use serde_json::{Value, json};

use super::plants::{ago, worker};
use super::{Branch, DEPLOYMENT, LONG_AGO, QUIET, RED, WORKERS};
use crate::bench::now;

/// In an order in which what one leaves behind (turns of kubelets, restarts, deleted nodes) changes no other.
pub(super) const BRANCHES: &[Branch] = &[
    QUIET,
    // 4.0, before everything else.
    Branch {
        of: "4.0 the tunnel from the control plane",
        plant: |trees, bad| trees.ready("konnectivity-0", !bad, LONG_AGO),
        cluster: &[("ControlTunnelDown", "warning")],
        says: ["kube-system/konnectivity-0, on t07", "look at these Pods and at the way from their nodes"],
        ..QUIET
    },
    Branch {
        of: "4.0 the tunnel from the control plane is a VPN",
        plant: |trees, bad| {
            if !bad {
                return trees.ready("vpn-0", true, &now());
            }
            trees.vpn(6)?;
            trees.gone("konnectivity-0")
        },
        cluster: &[("ControlTunnelDown", "warning")],
        says: [
            "so that it reaches no Pod and no kubelet: logs, exec, port-forward, and webhooks and aggregated APIs in the cluster fail; for example kube-system/vpn-0, on t06",
            "look at these Pods and at the way from their nodes to the control plane; webhooks that fail meanwhile are a consequence",
        ],
        ..QUIET
    },
    Branch {
        of: "4.0 it is up again",
        plant: |trees, bad| {
            if bad {
                return Ok(());
            }
            trees.pod("konnectivity-0", "konnectivity-agent", 7)?;
            trees.gone("vpn-0")
        },
        ..QUIET
    },
    // 4.1, calico-node by its scope.
    Branch {
        of: "4.1 few",
        plant: |trees, bad| trees.calico(0..1, !bad, LONG_AGO),
        cluster: &[("CalicoNodeFailingOnNode", "critical")],
        on: &[0],
        says: [
            "on 1 of 12 workers",
            "`kubectl cordon` it, gather (describe and logs of the Pod, also --previous) before",
        ],
        ..QUIET
    },
    Branch {
        of: "4.1 a kubelet that waits for the network plugin is none of its own: it stays Calico's",
        plant: |trees, bad| {
            trees.no_network_plugin(2, bad)?;
            trees.calico(2..3, !bad, LONG_AGO)
        },
        cluster: &[("CalicoNodeFailingOnNode", "critical")],
        on: &[2],
        says: ["on 1 of 12 workers", "`kubectl cordon` it, gather"],
        ..QUIET
    },
    Branch {
        of: "4.1 large subset",
        plant: |trees, bad| trees.calico(0..RED, !bad, LONG_AGO),
        cluster: &[("CalicoNodeFailingSubset", "critical")],
        on: &[0, 1, 2, 3, 4],
        says: ["5 of 5 in pool red fail, 0 of 7 elsewhere", "change nothing on the rest; suspect pool red"],
        ..QUIET
    },
    Branch {
        of: "4.1 most",
        plant: |trees, bad| trees.calico(0..10, !bad, LONG_AGO),
        cluster: &[("CalicoNodeFailingWidespread", "critical")],
        says: ["on 10 of 12 workers", "do not cordon, delete, reboot or reload: look at Calico's configuration"],
        ..QUIET
    },
    Branch {
        of: "4.1 all",
        plant: |trees, bad| trees.calico(0..WORKERS, !bad, LONG_AGO),
        cluster: &[("CalicoNodeFailingWidespread", "critical")],
        says: ["on 12 of 12 workers", "do not cordon, delete, reboot or reload"],
        ..QUIET
    },
    Branch {
        of: "4.1 the worker has a deeper cause: Calico is innocent",
        plant: |trees, bad| {
            trees.tell(1..2, bad.then_some(("ContainerdDown", "critical", "runtime", "RuntimeProblem")))?;
            trees.calico(1..2, !bad, LONG_AGO)
        },
        told: &[("ContainerdDown", "few")],
        says: [
            "something is wrong",
            "and start it (`systemctl start containerd`); if it does not stay up, cordon, gather, drain and reload the worker",
        ],
        ..QUIET
    },
    Branch {
        of: "4.1 its kubelet is started again and again: Calico there is left alone",
        plant: |trees, bad| {
            let restarts = ("KubeletRestarting", "warning", "controlPlanePath", "ControlPlanePathProblem");
            trees.tell(1..2, bad.then_some(restarts))?;
            trees.calico(1..2, !bad, LONG_AGO)
        },
        told: &[("KubeletRestarting", "few")],
        says: [
            "something is wrong",
            "read why it ended (`journalctl -u kubelet`, the lines before each start; `systemctl status kubelet`): its configuration, its memory, or the container runtime",
        ],
        ..QUIET
    },
    Branch {
        of: "4.1 typha, all of it",
        plant: |trees, bad| {
            trees.ready("typha-0", !bad, LONG_AGO)?;
            trees.ready("typha-1", !bad, LONG_AGO)
        },
        cluster: &[("TyphaUnhealthy", "critical")],
        says: [
            "2 of 2 Pods of Typha are not Ready, so that calico-node on the nodes that they serve gets no changes and restarts",
            "if all are, gather their logs and look at memory limits, configuration and certificates",
        ],
        ..QUIET
    },
    Branch {
        of: "4.1 typha",
        plant: |trees, bad| trees.ready("typha-1", !bad, LONG_AGO),
        cluster: &[("TyphaUnhealthy", "warning")],
        says: ["1 of 2 Pods of Typha are not Ready", "if one is bad, look at its node, cordon it and delete the Pod"],
        ..QUIET
    },
    Branch {
        of: "4.1 a rolling update is routine",
        plant: |trees, bad| {
            trees.rolled(if bad { 7 } else { WORKERS })?;
            trees.calico(5..6, !bad, &now())
        },
        cluster: &[("CalicoRollingUpdate", "info")],
        says: ["7 of 12 nodes are done, 0 are not Ready", "wait; nothing is to be done"],
        ..QUIET
    },
    Branch {
        of: "4.1 so is the move to calico-system",
        plant: |trees, bad| trees.moves(bad),
        cluster: &[("CalicoMigrationInProgress", "info")],
        says: ["1 of 13 nodes are done", "add, reload or replace no workers meanwhile"],
        ..QUIET
    },
    // 4.2, NetworkUnavailable.
    Branch {
        of: "4.2 for seconds",
        plant: |trees, bad| trees.unavailable(2, bad, &now()),
        cluster: &[("NetworkUnavailableBrief", "info")],
        on: &[2],
        says: ["for less than 120 s", "wait; tell alerts on this condition to wait"],
        ..QUIET
    },
    Branch {
        of: "4.2 for seconds, in a rolling update",
        plant: |trees, bad| {
            trees.rolled(if bad { 7 } else { WORKERS })?;
            trees.unavailable(5, bad, &now())
        },
        cluster: &[("NetworkUnavailableBrief", "info"), ("CalicoRollingUpdate", "info")],
        on: &[5],
        says: ["for less than 120 s", "tell alerts on this condition to wait for 120 s too"],
        ..QUIET
    },
    Branch {
        of: "4.2 for longer",
        plant: |trees, bad| trees.unavailable(2, bad, &ago(200)),
        cluster: &[("NetworkUnavailableProlonged", "warning")],
        on: &[2],
        says: ["those that run keep their network", "as with CalicoNodeFailingOnNode"],
        ..QUIET
    },
    Branch {
        of: "4.2 for very long",
        plant: |trees, bad| {
            trees.tainted("t02", bad)?;
            trees.unavailable(2, bad, &ago(700))
        },
        cluster: &[("NetworkUnavailableProlonged", "critical")],
        on: &[2],
        says: ["those that run keep their network", "as with CalicoNodeFailingOnNode"],
        ..QUIET
    },
    Branch {
        of: "4.2 restarts that rise beat time",
        plant: |trees, bad| {
            trees.unavailable(11, bad, &now())?;
            trees.restarted("calico-node-11", bad, 2, "Error")
        },
        cluster: &[("CalicoNodeFailingOnNode", "critical"), ("NetworkUnavailableProlonged", "critical")],
        on: &[11],
        says: ["is started again and again (2 restarts)", "`kubectl cordon` it"],
        ..QUIET
    },
    Branch {
        of: "4.2 calico-node is well, and the condition is stale",
        plant: |trees, bad| trees.network(3, bad, &ago(60)),
        cluster: &[("NetworkConditionStale", "warning")],
        on: &[3],
        says: ["the opposite of what calico-node does", "trust the agent and calico-node's readiness"],
        ..QUIET
    },
    Branch {
        of: "4.2 the reverse: BIRD is gone, and the condition says that all is well",
        plant: |trees, bad| {
            trees.tell(3..4, bad.then_some(("BgpDaemonDown", "critical", "podRouting", "PodRoutingProblem")))
        },
        cluster: &[("NetworkConditionStale", "warning")],
        told: &[("BgpDaemonDown", "few")],
        on: &[3],
        says: ["the opposite of what calico-node does", "trust the agent and calico-node's readiness"],
        ..QUIET
    },
    Branch {
        of: "4.2 the condition without its taint",
        plant: |trees, bad| trees.unavailable(4, bad, &ago(400)),
        cluster: &[("NetworkTaintStuck", "warning"), ("NetworkUnavailableProlonged", "warning")],
        on: &[4],
        says: ["contradict each other for more than five minutes", "look whether kube-controller-manager"],
        ..QUIET
    },
    // 4.3, Pods that do not start. Addresses that run out are planted in `inventory`.
    Branch {
        of: "4.3 two calico-kube-controllers",
        plant: |trees, bad| {
            if bad { trees.pod("kc-1", "calico-kube-controllers", 3) } else { trees.gone("kc-1") }
        },
        cluster: &[("CalicoKubeControllersCount", "info")],
        says: ["2 Pods of calico-kube-controllers run", "set the Deployment to one replica"],
        ..QUIET
    },
    Branch {
        of: "4.3 another error, on one worker",
        plant: |trees, bad| trees.tell(6..7, bad.then_some(("PodSandboxFailing", "warning", "cni", "CNIProblem"))),
        told: &[("PodSandboxFailing", "few")],
        says: [
            "something is wrong",
            "see whether calico-node is healthy here, and restart one of the pods; if only this worker is affected, gather and reload it",
        ],
        ..QUIET
    },
    Branch {
        of: "4.3 on one worker where calico-node fails, which is why",
        plant: |trees, bad| {
            trees.tell(6..7, bad.then_some(("PodSandboxFailing", "warning", "cni", "CNIProblem")))?;
            trees.calico(6..7, !bad, LONG_AGO)
        },
        cluster: &[("CalicoNodeFailingOnNode", "critical")],
        told: &[("PodSandboxFailing", "none")],
        on: &[6],
        says: [
            "on 1 of 12 workers",
            "`kubectl cordon` it, gather (describe and logs of the Pod, also --previous) before",
        ],
        worst: "calico-node does not run as it should here, and no Pod gets a network without it: go on with CalicoNodeFailingOnNode",
        ..QUIET
    },
    // 4.4, calico-kube-controllers, which runs on t10.
    Branch {
        of: "4.4 away for a moment",
        plant: |trees, bad| trees.ready("kc-0", !bad, &now()),
        cluster: &[("CalicoKubeControllersDown", "info")],
        says: ["is not Ready", "wait 15 minutes"],
        ..QUIET
    },
    Branch {
        of: "4.4 away for longer",
        plant: |trees, bad| trees.ready("kc-0", !bad, &ago(1_000)),
        cluster: &[("CalicoKubeControllersDown", "warning")],
        says: ["kube-system/kc-0 is not Ready", "look at its Pod and its node, and for webhooks"],
        ..QUIET
    },
    Branch {
        of: "4.4 nodes are deleted meanwhile",
        plant: |trees, bad| {
            if bad {
                trees.0.admin("POST /api/v1/nodes", &worker(90))?;
                trees.0.admin("DELETE /api/v1/nodes/t90", &Value::Null)?;
            }
            trees.ready("kc-0", !bad, &ago(300))
        },
        cluster: &[("CalicoKubeControllersDown", "warning")],
        says: ["1 nodes were deleted meanwhile, whose addresses and data stay", "wait 15 minutes"],
        ..QUIET
    },
    Branch {
        of: "4.4 scaled to nothing",
        plant: |trees, bad| {
            let replicas = json!({"spec": {"replicas": u8::from(!bad)}});
            trees.0.admin(&format!("PATCH merge {DEPLOYMENT}"), &replicas).map(drop)
        },
        cluster: &[("CalicoKubeControllersMissing", "warning")],
        says: ["is scaled to 0", "scale it to 1: exactly one has to run"],
        ..QUIET
    },
    Branch {
        of: "4.4 on a bad node",
        plant: |trees, bad| {
            trees.kubelet(10..11, if bad { "False" } else { "True" }, LONG_AGO)?;
            trees.ready("kc-0", !bad, LONG_AGO)
        },
        cluster: &[("CalicoKubeControllersOnBadNode", "warning")],
        says: [
            "is on t10, which is not Ready",
            "cordon t10 and delete the Pod, so that it starts elsewhere; uncordon t10",
        ],
        ..QUIET
    },
    Branch {
        of: "4.4 out of memory",
        plant: |trees, bad| {
            trees.ready("kc-0", !bad, &now())?;
            trees.restarted("kc-0", bad, 1, "OOMKilled")
        },
        cluster: &[("CalicoKubeControllersOomKilled", "warning")],
        says: ["hit its limit: kube-system/kc-0", "raise the limit, and look at what grew"],
        ..QUIET
    },
    Branch {
        of: "4.4 in a crash loop",
        plant: |trees, bad| {
            trees.ready("kc-0", !bad, &now())?;
            trees.restarted("kc-0", bad, 4, "Error")
        },
        cluster: &[("CalicoKubeControllersCrashLooping", "warning")],
        says: ["does not stay up: kube-system/kc-0", "on nodes of several zones in turn, and uncordon"],
        ..QUIET
    },
    Branch {
        of: "4.4 a webhook keeps it away",
        plant: |trees, bad| {
            let owner = json!({"apiVersion": "apps/v1", "kind": "ReplicaSet", "name": "calico-kube-controllers-5d78c9869d",
                "namespace": "kube-system"});
            trees.refused(&owner, bad)?;
            if bad { trees.gone("kc-0") } else { trees.pod("kc-0", "calico-kube-controllers", 10) }
        },
        cluster: &[("CalicoKubeControllersMissing", "warning"), ("WebhookBlocksSystemPods", "critical")],
        says: [
            "there is no Pod of calico-kube-controllers, and none can be made: Error creating",
            "fix that webhook first",
        ],
        ..QUIET
    },
];
