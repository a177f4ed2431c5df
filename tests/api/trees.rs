//! The decision trees of the runbooks, branch by branch, planted on one real API server: what is told, of how many workers and
//! with which next step, and that nothing else is. What is routine, or another one's fault, is silent.

use std::ops::Range;
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use serde_json::{Value, json};

use crate::bench::{Bench, Finding, Running, condition, now, soon};
use crate::objects::node;
use crate::support::wait::eventually;

/// Workers; the first of them are pool red.
const WORKERS: usize = 12;
const RED: usize = 5;
/// Long before every hold-down.
const LONG_AGO: &str = "2026-11-01T10:00:00Z";
/// What is missing altogether is waited for this long before it is told, and a while.
const MISSING: Duration = Duration::from_secs(180);
const SETS: &str = "/apis/apps/v1/namespaces/kube-system/daemonsets";
const DEPLOYMENT: &str = "/apis/apps/v1/namespaces/kube-system/deployments/calico-kube-controllers";
const MEMORY: &str = "/api/v1/namespaces/nodevitals/configmaps/nodevitals-aggregator";
const DISK: Finding = ("DiskFull", "critical", "capacity", "CapacityProblem");

/// A cluster with Calico in which all is well.
struct Trees<'a>(&'a Bench);

/// A branch of a tree.
struct Branch {
    /// Which, by the catalogue's section 4.
    of: &'static str,
    /// Makes it so, and puts it right again.
    plant: fn(&Trees<'_>, bool) -> Result<()>,
    /// All that is told about the cluster, by code and severity.
    cluster: &'static [(&'static str, &'static str)],
    /// All that the agents tell, by code and scope.
    told: &'static [(&'static str, &'static str)],
    /// Of the first of these: its workers by their numbers, unless there are more than are worth writing down.
    on: &'static [usize],
    /// And words of its detail and of its next step; of what agents tell, of the first worker's.
    says: [&'static str; 2],
}

const QUIET: Branch =
    Branch { of: "all is well", plant: |_, _| Ok(()), cluster: &[], told: &[], on: &[], says: ["", ""] };

/// In an order in which what one leaves behind (turns of kubelets, restarts, deleted nodes) changes no other.
const BRANCHES: &[Branch] = &[
    QUIET,
    // 4.0, before everything else.
    Branch {
        of: "4.0 the tunnel from the control plane",
        plant: |trees, bad| trees.ready("konnectivity-0", !bad, LONG_AGO),
        cluster: &[("ControlTunnelDown", "warning")],
        says: ["kube-system/konnectivity-0, on t07", "look at these Pods and at the way from their nodes"],
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
        says: ["something is wrong", "do something"],
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
        says: ["something is wrong", "do something"],
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
    // 4.5, states of workers.
    Branch {
        of: "4.5 Critical on one",
        plant: |trees, bad| trees.tell(4..5, bad.then_some(DISK)),
        told: &[("DiskFull", "few")],
        says: ["something is wrong", "do something"],
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
        says: ["something is wrong", "do something"],
        ..QUIET
    },
    Branch {
        of: "4.6 the way to the control plane through a gateway",
        plant: |trees, bad| {
            let vpe = ("VpeGatewaySuspected", "critical", "controlPlanePath", "ControlPlanePathProblem");
            trees.tell(8..9, bad.then_some(vpe))
        },
        told: &[("VpeGatewaySuspected", "few")],
        says: ["something is wrong", "do something"],
        ..QUIET
    },
    Branch {
        of: "4.5 Unknown, one: the kubelet is silent, and 4.1: so Calico there is not judged",
        plant: |trees, bad| {
            trees.kubelet(1..2, if bad { "Unknown" } else { "True" }, LONG_AGO)?;
            trees.calico(1..2, !bad, LONG_AGO)?;
            // The aggregator has said that nobody knows; the agent speaks again.
            if bad { Ok(()) } else { trees.tell(1..2, None) }
        },
        told: &[("AgentStale", "few")],
        says: ["The kubelet is silent", "find out whether the machine runs and is reachable"],
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
        of: "4.5 Unknown, all: the master is away",
        plant: |trees, bad| {
            trees.kubelet(0..WORKERS, if bad { "Unknown" } else { "True" }, &ago(300))?;
            if bad { Ok(()) } else { trees.tell(0..WORKERS, None) }
        },
        // Those of t01 and t10 turned before; nobody is at risk because nobody is heard.
        cluster: &[("MasterUnreachableClusterwide", "critical"), ("NodeReadyFlapping", "warning")],
        told: &[("AgentStale", "all")],
        says: ["12 of 12 workers have no connection", "touch no worker: is the master being updated?"],
        ..QUIET
    },
    Branch {
        of: "4.1 a kubelet that comes and goes: Calico there is not judged",
        plant: |trees, bad| trees.calico(1..2, !bad, LONG_AGO),
        cluster: &[("NodeReadyFlapping", "warning")],
        on: &[1, 10],
        says: [
            "turned Ready or not at least 3 times within 60 minutes",
            "leave Calico alone; see whether the kubelet restarts",
        ],
        ..QUIET
    },
];

fn name(number: usize) -> String {
    format!("t{number:02}")
}

fn ago(seconds: i64) -> String {
    let at = jiff::Timestamp::now() - jiff::SignedDuration::from_secs(seconds);
    at.strftime("%Y-%m-%dT%H:%M:%SZ").to_string()
}

/// A Node with an address of its own.
fn worker(number: usize) -> Value {
    let mut node = node(&name(number), &json!({"agentpool": if number < RED { "red" } else { "blue" }}));
    let address = format!("10.0.1.{}", number + 1);
    node["metadata"]["annotations"]["projectcalico.org/IPv4Address"] = format!("{address}/24").into();
    node["status"]["addresses"] = json!([{"type": "InternalIP", "address": address}]);
    node
}

fn network_taint(there: bool) -> Value {
    let mut taints = json!([{"key": "t", "value": "v", "effect": "NoSchedule"}]);
    if there {
        let taint =
            json!({"key": "node.kubernetes.io/network-unavailable", "effect": "NoSchedule", "timeAdded": LONG_AGO});
        taints.as_array_mut().expect("a list").push(taint);
    }
    taints
}

impl Trees<'_> {
    fn set_up(&self) -> Result<()> {
        let account = json!({"apiVersion": "v1", "kind": "ServiceAccount", "metadata": {"name": "calico-node"}});
        let system = json!({"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": "calico-system"}});
        self.0.apply(&system.to_string())?;
        for namespace in ["kube-system", "calico-system"] {
            let mut account = account.clone();
            account["metadata"]["namespace"] = namespace.into();
            self.0.apply(&account.to_string())?;
        }
        for number in 0..WORKERS {
            let name = name(number);
            self.0.admin("POST /api/v1/nodes", &worker(number))?;
            self.0.add_agent_pod(&name)?;
            self.0.set_ready(&format!("agent-{name}"), true)?;
            self.tell(number..number + 1, None)?;
            self.pod(&format!("calico-node-{number:02}"), "calico-node", number)?;
        }
        self.pod("kc-0", "calico-kube-controllers", 10)?;
        self.pod("typha-0", "calico-typha", 8)?;
        self.pod("typha-1", "calico-typha", 9)?;
        self.pod("konnectivity-0", "konnectivity-agent", 7)?;
        let template = |app: &str| {
            let labels = json!({"k8s-app": app});
            json!({"selector": {"matchLabels": labels}, "template": {"metadata": {"labels": labels},
                "spec": {"containers": [{"name": "c", "image": "x"}]}}})
        };
        let workload = |kind: &str, name: &str| json!({"apiVersion": "apps/v1", "kind": kind, "metadata": {"name": name, "namespace": "kube-system"}, "spec": template(name)});
        self.0.admin(&format!("POST {SETS}"), &workload("DaemonSet", "calico-node"))?;
        self.rolled(WORKERS)?;
        let deployments = DEPLOYMENT.trim_end_matches("/calico-kube-controllers");
        self.0.admin(&format!("POST {deployments}"), &workload("Deployment", "calico-kube-controllers")).map(drop)
    }

    /// What its agent says on each of these.
    fn tell(&self, workers: Range<usize>, finding: Option<Finding>) -> Result<()> {
        let since = now();
        workers.map(name).try_for_each(|name| self.0.tell(&name, finding, &since))
    }

    /// A Pod of this app in kube-system, Ready for long.
    fn pod(&self, pod: &str, app: &str, on: usize) -> Result<()> {
        self.pod_in("kube-system", pod, app, on)
    }

    fn pod_in(&self, namespace: &str, pod: &str, app: &str, on: usize) -> Result<()> {
        let body = json!({"apiVersion": "v1", "kind": "Pod", "metadata": {"name": pod, "labels": {"k8s-app": app}},
            "spec": {"nodeName": name(on), "serviceAccountName": "calico-node", "terminationGracePeriodSeconds": 0,
                "containers": [{"name": "c", "image": "quay.io/calico/part:v3.28.1"}]}});
        self.0.admin(&format!("POST /api/v1/namespaces/{namespace}/pods"), &body)?;
        self.0.calico_node_is(pod, namespace, true)
    }

    fn gone(&self, pod: &str) -> Result<()> {
        self.0.admin(&format!("DELETE /api/v1/namespaces/kube-system/pods/{pod}"), &Value::Null).map(drop)
    }

    /// A Pod in kube-system is Ready, or not, since then.
    fn ready(&self, pod: &str, ready: bool, since: &str) -> Result<()> {
        let mut ready = condition("Ready", if ready { "True" } else { "False" }, "X");
        ready["lastTransitionTime"] = since.into();
        let request = format!("PATCH strategic /api/v1/namespaces/kube-system/pods/{pod}/status");
        self.0.admin(&request, &json!({"status": {"conditions": [ready]}})).map(drop)
    }

    /// The same of calico-node on these.
    fn calico(&self, mut workers: Range<usize>, ready: bool, since: &str) -> Result<()> {
        let since = if ready { LONG_AGO } else { since };
        workers.try_for_each(|number| self.ready(&format!("calico-node-{number:02}"), ready, since))
    }

    /// The Pod's container was started so often, the last time after it ended for this reason.
    fn restarted(&self, pod: &str, bad: bool, restarts: u32, reason: &str) -> Result<()> {
        let ended = json!({"terminated": {"exitCode": 137, "reason": reason, "finishedAt": now()}});
        let status = json!({"name": "c", "image": "quay.io/calico/part:v3.28.1", "imageID": "", "ready": !bad, "restartCount": restarts,
            "state": {"running": {}}, "lastState": if bad { ended } else { json!({}) }});
        let request = format!("PATCH merge /api/v1/namespaces/kube-system/pods/{pod}/status");
        self.0.admin(&request, &json!({"status": {"containerStatuses": [status]}})).map(drop)
    }

    /// What calico-node wrote on the Node.
    fn network(&self, number: usize, bad: bool, since: &str) -> Result<()> {
        let (status, reason) = if bad { ("True", "CalicoIsDown") } else { ("False", "CalicoIsUp") };
        let mut network = condition("NetworkUnavailable", status, reason);
        network["lastTransitionTime"] = since.into();
        let request = format!("PATCH strategic /api/v1/nodes/{}/status", name(number));
        self.0.admin(&request, &json!({"status": {"conditions": [network]}})).map(drop)
    }

    /// The same while calico-node starts there.
    fn unavailable(&self, number: usize, bad: bool, since: &str) -> Result<()> {
        self.calico(number..number + 1, !bad, &now())?;
        self.network(number, bad, since)
    }

    fn tainted(&self, node: &str, bad: bool) -> Result<()> {
        let taints = json!({"spec": {"taints": network_taint(bad)}});
        self.0.admin(&format!("PATCH merge /api/v1/nodes/{node}"), &taints).map(drop)
    }

    /// What the control plane knows of the kubelets of these.
    fn kubelet(&self, workers: Range<usize>, ready: &str, since: &str) -> Result<()> {
        let mut ready = condition("Ready", ready, "X");
        ready["lastTransitionTime"] = since.into();
        let status = json!({"status": {"conditions": [ready]}});
        workers.map(name).try_for_each(|name| {
            self.0.admin(&format!("PATCH strategic /api/v1/nodes/{name}/status"), &status).map(drop)
        })
    }

    /// So many Pods of calico-node are up to date.
    fn rolled(&self, updated: usize) -> Result<()> {
        self.selects(WORKERS, updated)
    }

    fn selects(&self, nodes: usize, updated: usize) -> Result<()> {
        let status = json!({"status": {"desiredNumberScheduled": nodes, "currentNumberScheduled": nodes,
            "numberReady": nodes, "numberMisscheduled": 0, "updatedNumberScheduled": updated}});
        self.0.admin(&format!("PATCH merge {SETS}/calico-node/status"), &status).map(drop)
    }

    /// Calico moves to calico-system: on one worker it is there, one still waits.
    fn moves(&self, bad: bool) -> Result<()> {
        let label =
            json!({"projectcalico.org/operator-node-migration": if bad { json!("pre-operator") } else { Value::Null }});
        self.0.admin("PATCH merge /api/v1/nodes/t06", &json!({"metadata": {"labels": label}}))?;
        if bad {
            return self.pod_in("calico-system", "calico-node-new", "calico-node", 5);
        }
        self.0.admin("DELETE /api/v1/namespaces/calico-system/pods/calico-node-new", &Value::Null).map(drop)
    }

    fn no_workloads(&self) {
        // Some are gone already, and there may have been none.
        let _ = self.0.admin(&format!("DELETE {SETS}/calico-node"), &Value::Null);
        let _ = self.0.admin(&format!("DELETE {DEPLOYMENT}"), &Value::Null);
        let _ = self.0.admin("DELETE /api/v1/namespaces/kube-system/events/no-calico", &Value::Null);
        let _ = self.0.admin(&format!("PATCH merge {MEMORY}"), &json!({"data": {"memory": ""}}));
    }
}

impl Drop for Trees<'_> {
    /// Also after a failure: other tests have no Calico.
    fn drop(&mut self) {
        self.no_workloads();
    }
}

fn report(aggregator: &Running) -> Result<Value> {
    Ok(serde_json::from_str(&aggregator.page("/api/v1/report")?)?)
}

/// Two texts of each, sorted.
fn pairs<'a>(list: &'a Value, keys: [&str; 2]) -> Vec<(&'a str, &'a str)> {
    let text = |value: &'a Value| value.as_str().unwrap_or_default();
    let mut all: Vec<_> =
        list.as_array().into_iter().flatten().map(|it| (text(&it[keys[0]]), text(&it[keys[1]]))).collect();
    all.sort_unstable();
    all
}

/// Just this is told, and says what it should.
fn told(branch: &Branch, report: &Value) -> Result<()> {
    let (cluster, told) = (&report["cluster"], &report["findings"]);
    ensure!(pairs(cluster, ["code", "severity"]) == branch.cluster, "{cluster:#}");
    ensure!(pairs(told, ["code", "scope"]) == branch.told, "{told:#}");
    let Some((code, _)) = branch.cluster.first().or(branch.told.first()) else { return Ok(()) };
    let finding = if branch.cluster.is_empty() {
        &report["nodes"][0]
    } else {
        let all = cluster.as_array().context("findings")?;
        all.iter().find(|finding| finding["code"] == *code).context("just found")?
    };
    if !branch.on.is_empty() {
        let on: Vec<String> = branch.on.iter().copied().map(name).collect();
        ensure!(finding["workers"] == json!(on), "{finding:#}");
    }
    for (key, words) in ["detail", "next"].into_iter().zip(branch.says) {
        ensure!(finding[key].as_str().is_some_and(|text| text.contains(words)), "no {words:?} in {finding:#}");
    }
    Ok(())
}

#[test]
fn every_branch_of_the_trees_is_told_for_what_it_is() -> Result<()> {
    let bench = Bench::take()?;
    let trees = Trees(&bench);
    trees.no_workloads();
    trees.set_up()?;
    bench.add_pod("aggregator-t", "aggregator", &name(11))?;
    let aggregator = bench.aggregator("aggregator-t")?;
    for branch in BRANCHES {
        (branch.plant)(&trees, true).context(branch.of)?;
        soon(branch.of, || told(branch, &report(&aggregator)?));
        (branch.plant)(&trees, false).context(branch.of)?;
    }
    drop(aggregator);

    // What failed twice within a week, as another aggregator had seen it.
    let day = |days: i64| jiff::Timestamp::now().as_second() - days * 86_400;
    let memory =
        json!({"calico": {"t03": [[day(5), day(5) + 3_600], [day(2), day(2) + 3_600]]}, "gone": [], "turns": {}});
    bench.admin(&format!("PATCH merge {MEMORY}"), &json!({"data": {"memory": memory.to_string()}}))?;
    let aggregator = bench.aggregator("aggregator-t")?;
    let recurring = Branch {
        of: "4.1 it comes back every few days",
        cluster: &[("CalicoFailureRecurring", "warning")],
        on: &[3],
        says: ["failed again and again within 7 days on 1 workers", "do not reload them once more: look at Typha"],
        ..QUIET
    };
    soon(recurring.of, || told(&recurring, &report(&aggregator)?));
    nothing_at_all(&trees, &aggregator)
}

/// calico-node is on no worker, for three reasons one after the other, and calico-kube-controllers is gone.
fn nothing_at_all(trees: &Trees<'_>, aggregator: &Running) -> Result<()> {
    let bench = trees.0;
    trees.selects(0, 0)?;
    (0..WORKERS).try_for_each(|number| trees.gone(&format!("calico-node-{number:02}")))?;
    trees.gone("kc-0")?;
    bench.admin(&format!("DELETE {DEPLOYMENT}"), &Value::Null)?;
    let absent = Branch {
        of: "4.1 nowhere: no node is selected",
        cluster: &[("CalicoNodeAbsent", "critical")],
        says: ["calico-node runs on no worker: its DaemonSet selects no node", "compare the DaemonSet's nodeSelector"],
        ..QUIET
    };
    eventually(absent.of, MISSING, || told(&absent, &report(aggregator)?));

    trees.rolled(WORKERS)?;
    let owner =
        json!({"apiVersion": "apps/v1", "kind": "DaemonSet", "name": "calico-node", "namespace": "kube-system"});
    let event = json!({"apiVersion": "v1", "kind": "Event", "metadata": {"name": "no-calico", "namespace": "kube-system"},
        "involvedObject": owner, "reason": "FailedCreate", "type": "Warning", "firstTimestamp": now(), "lastTimestamp": now(), "count": 3,
        "message": "Error creating: Internal error occurred: failed calling webhook \"guard.example\": no endpoints available"});
    bench.admin("POST /api/v1/namespaces/kube-system/events", &event)?;
    let blocked = Branch {
        of: "4.1 nowhere: a webhook blocks it",
        cluster: &[("CalicoNodeAbsent", "critical"), ("WebhookBlocksSystemPods", "critical")],
        says: ["its Pods cannot be made: Error creating", "fix that webhook first"],
        ..QUIET
    };
    soon(blocked.of, || told(&blocked, &report(aggregator)?));

    bench.admin("DELETE /api/v1/namespaces/kube-system/events/no-calico", &Value::Null)?;
    bench.admin(&format!("DELETE {SETS}/calico-node"), &Value::Null)?;
    let missing = Branch {
        of: "4.1 nowhere: the DaemonSet is gone, and 4.4: so is the Deployment",
        cluster: &[("CalicoKubeControllersMissing", "warning"), ("CalicoNodeAbsent", "critical")],
        says: ["was there and is neither in kube-system nor in calico-system any more", "let its owner make it again"],
        ..QUIET
    };
    eventually(missing.of, MISSING, || told(&missing, &report(aggregator)?));
    let absent = report(aggregator)?["cluster"].clone();
    ensure!(pairs(&absent, ["code", "subject"]).contains(&("CalicoNodeAbsent", "DaemonSetMissing")), "{absent:#}");
    Ok(())
}
