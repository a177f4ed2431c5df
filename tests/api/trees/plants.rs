//! What makes a cluster like this, and puts it right again.

use std::ops::Range;

use anyhow::{Context, Result};
use nodevitals::checks::node::ALL;
use serde_json::{Value, json};

use super::{DEPLOYMENT, LONG_AGO, MEMORY, RED, SETS, Trees, WORKERS};
use crate::bench::{Finding, condition, now, told};
use crate::objects::node;

pub(super) fn name(number: usize) -> String {
    format!("t{number:02}")
}

pub(super) fn ago(seconds: i64) -> String {
    let at = jiff::Timestamp::now() - jiff::SignedDuration::from_secs(seconds);
    at.strftime("%Y-%m-%dT%H:%M:%SZ").to_string()
}

/// A Node with an address of its own.
pub(super) fn worker(number: usize) -> Value {
    let mut node = node(&name(number), &json!({"agentpool": if number < RED { "red" } else { "blue" }}));
    let address = format!("10.0.1.{}", number + 1);
    node["metadata"]["annotations"]["projectcalico.org/IPv4Address"] = format!("{address}/24").into();
    node["status"]["addresses"] = json!([{"type": "InternalIP", "address": address}]);
    node
}

pub(super) fn network_taint(there: bool) -> Value {
    let mut taints = json!([{"key": "t", "value": "v", "effect": "NoSchedule"}]);
    if there {
        let taint =
            json!({"key": "node.kubernetes.io/network-unavailable", "effect": "NoSchedule", "timeAdded": LONG_AGO});
        taints.as_array_mut().expect("a list").push(taint);
    }
    taints
}

impl Trees<'_> {
    pub(super) fn set_up(&self) -> Result<()> {
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

    /// What its agent says on each of these, with the next step that it has for it.
    pub(super) fn tell(&self, workers: Range<usize>, finding: Option<Finding>) -> Result<()> {
        let mut patch = told(finding, &now());
        if let Some((code, ..)) = finding {
            let check = ALL.iter().find(|check| check.code == code).context("a check")?;
            let findings = &mut patch["metadata"]["annotations"]["nodevitals.dev/findings"];
            let mut all: Value = serde_json::from_str(findings.as_str().context("findings")?)?;
            all[0]["next"] = check.next_step.into();
            *findings = all.to_string().into();
        }
        workers.map(name).try_for_each(|name| {
            self.0.admin(&format!("PATCH strategic /api/v1/nodes/{name}/status"), &patch).map(drop)
        })
    }

    /// A Pod of this app in kube-system, Ready for long.
    pub(super) fn pod(&self, pod: &str, app: &str, on: usize) -> Result<()> {
        self.pod_in("kube-system", pod, app, on)
    }

    pub(super) fn pod_in(&self, namespace: &str, pod: &str, app: &str, on: usize) -> Result<()> {
        self.made(namespace, pod, app, on)?;
        self.0.calico_node_is(pod, namespace, true)
    }

    /// The same before anything is known of it.
    pub(super) fn made(&self, namespace: &str, pod: &str, app: &str, on: usize) -> Result<()> {
        let body = json!({"apiVersion": "v1", "kind": "Pod", "metadata": {"name": pod, "labels": {"k8s-app": app}},
            "spec": {"nodeName": name(on), "serviceAccountName": "calico-node", "terminationGracePeriodSeconds": 0,
                "containers": [{"name": "c", "image": "quay.io/calico/part:v3.28.1"}]}});
        self.0.admin(&format!("POST /api/v1/namespaces/{namespace}/pods"), &body).map(drop)
    }

    /// The client of a VPN, which is not Ready for long.
    pub(super) fn vpn(&self, on: usize) -> Result<()> {
        self.made("kube-system", "vpn-0", "", on)?;
        let labels = json!({"metadata": {"labels": {"k8s-app": null, "app": "vpn"}}});
        self.ready("vpn-0", false, LONG_AGO)?;
        self.0.admin("PATCH merge /api/v1/namespaces/kube-system/pods/vpn-0", &labels).map(drop)
    }

    pub(super) fn gone(&self, pod: &str) -> Result<()> {
        self.0.admin(&format!("DELETE /api/v1/namespaces/kube-system/pods/{pod}"), &Value::Null).map(drop)
    }

    /// A Pod in kube-system is Ready, or not, since then.
    pub(super) fn ready(&self, pod: &str, ready: bool, since: &str) -> Result<()> {
        let mut ready = condition("Ready", if ready { "True" } else { "False" }, "X");
        ready["lastTransitionTime"] = since.into();
        let request = format!("PATCH strategic /api/v1/namespaces/kube-system/pods/{pod}/status");
        self.0.admin(&request, &json!({"status": {"conditions": [ready]}})).map(drop)
    }

    /// The same of calico-node on these.
    pub(super) fn calico(&self, mut workers: Range<usize>, ready: bool, since: &str) -> Result<()> {
        let since = if ready { LONG_AGO } else { since };
        workers.try_for_each(|number| self.ready(&format!("calico-node-{number:02}"), ready, since))
    }

    /// The Pod's container was started so often, the last time after it ended for this reason.
    pub(super) fn restarted(&self, pod: &str, bad: bool, restarts: u32, reason: &str) -> Result<()> {
        let ended = json!({"terminated": {"exitCode": 137, "reason": reason, "finishedAt": now()}});
        let status = json!({"name": "c", "image": "quay.io/calico/part:v3.28.1", "imageID": "", "ready": !bad, "restartCount": restarts,
            "state": {"running": {}}, "lastState": if bad { ended } else { json!({}) }});
        let request = format!("PATCH merge /api/v1/namespaces/kube-system/pods/{pod}/status");
        self.0.admin(&request, &json!({"status": {"containerStatuses": [status]}})).map(drop)
    }

    /// What calico-node wrote on the Node.
    pub(super) fn network(&self, number: usize, bad: bool, since: &str) -> Result<()> {
        let (status, reason) = if bad { ("True", "CalicoIsDown") } else { ("False", "CalicoIsUp") };
        let mut network = condition("NetworkUnavailable", status, reason);
        network["lastTransitionTime"] = since.into();
        let request = format!("PATCH strategic /api/v1/nodes/{}/status", name(number));
        self.0.admin(&request, &json!({"status": {"conditions": [network]}})).map(drop)
    }

    /// The same while calico-node starts there.
    pub(super) fn unavailable(&self, number: usize, bad: bool, since: &str) -> Result<()> {
        self.calico(number..number + 1, !bad, &now())?;
        self.network(number, bad, since)
    }

    pub(super) fn tainted(&self, node: &str, bad: bool) -> Result<()> {
        let taints = json!({"spec": {"taints": network_taint(bad)}});
        self.0.admin(&format!("PATCH merge /api/v1/nodes/{node}"), &taints).map(drop)
    }

    /// What the control plane knows of the kubelets of these.
    pub(super) fn kubelet(&self, workers: Range<usize>, ready: &str, since: &str) -> Result<()> {
        let mut ready = condition("Ready", ready, "X");
        ready["lastTransitionTime"] = since.into();
        let status = json!({"status": {"conditions": [ready]}});
        workers.map(name).try_for_each(|name| {
            self.0.admin(&format!("PATCH strategic /api/v1/nodes/{name}/status"), &status).map(drop)
        })
    }

    /// These are cut off from the control plane for minutes, or heard again.
    pub(super) fn silent(&self, workers: Range<usize>, bad: bool) -> Result<()> {
        self.kubelet(workers.clone(), if bad { "Unknown" } else { "True" }, &ago(300))?;
        // The aggregator has said that nobody knows; the agents speak again.
        if bad { Ok(()) } else { self.tell(workers, None) }
    }

    /// When the kubelet of this one renewed its Lease last; none takes the Lease away.
    pub(super) fn lease(&self, number: usize, renewed: Option<&str>) -> Result<()> {
        let leases = "/apis/coordination.k8s.io/v1/namespaces/kube-node-lease/leases";
        let node = name(number);
        let Some(renewed) = renewed else {
            return self.0.admin(&format!("DELETE {leases}/{node}"), &Value::Null).map(drop);
        };
        let lease = json!({"apiVersion": "coordination.k8s.io/v1", "kind": "Lease",
            "metadata": {"name": node, "namespace": "kube-node-lease"},
            "spec": {"holderIdentity": node, "leaseDurationSeconds": 40, "renewTime": renewed}});
        self.0.admin(&format!("POST {leases}"), &lease).map(drop)
    }

    /// The kubelet's own word of this one, that it has no network yet.
    pub(super) fn no_network_plugin(&self, number: usize, bad: bool) -> Result<()> {
        let mut ready =
            condition("Ready", if bad { "False" } else { "True" }, if bad { "KubeletNotReady" } else { "X" });
        if bad {
            ready["message"] = "container runtime network not ready: NetworkReady=false reason:NetworkPluginNotReady message:Network plugin returns error: cni plugin not initialized".into();
        }
        let request = format!("PATCH strategic /api/v1/nodes/{}/status", name(number));
        self.0.admin(&request, &json!({"status": {"conditions": [ready]}})).map(drop)
    }

    /// Pods of this owner in kube-system cannot be made because of a webhook.
    pub(super) fn refused(&self, owner: &Value, bad: bool) -> Result<()> {
        let events = "/api/v1/namespaces/kube-system/events";
        if !bad {
            return self.0.admin(&format!("DELETE {events}/no-calico"), &Value::Null).map(drop);
        }
        let event = json!({"apiVersion": "v1", "kind": "Event", "metadata": {"name": "no-calico", "namespace": "kube-system"},
            "involvedObject": owner, "reason": "FailedCreate", "type": "Warning", "firstTimestamp": now(), "lastTimestamp": now(), "count": 3,
            "message": "Error creating: Internal error occurred: failed calling webhook \"guard.example\": no endpoints available"});
        self.0.admin(&format!("POST {events}"), &event).map(drop)
    }

    /// So many Pods of calico-node are up to date.
    pub(super) fn rolled(&self, updated: usize) -> Result<()> {
        self.selects(WORKERS, updated)
    }

    pub(super) fn selects(&self, nodes: usize, updated: usize) -> Result<()> {
        let status = json!({"status": {"desiredNumberScheduled": nodes, "currentNumberScheduled": nodes,
            "numberReady": nodes, "numberMisscheduled": 0, "updatedNumberScheduled": updated}});
        self.0.admin(&format!("PATCH merge {SETS}/calico-node/status"), &status).map(drop)
    }

    /// Calico moves to calico-system: on one worker it is there, one still waits.
    pub(super) fn moves(&self, bad: bool) -> Result<()> {
        let label =
            json!({"projectcalico.org/operator-node-migration": if bad { json!("pre-operator") } else { Value::Null }});
        self.0.admin("PATCH merge /api/v1/nodes/t06", &json!({"metadata": {"labels": label}}))?;
        if bad {
            return self.pod_in("calico-system", "calico-node-new", "calico-node", 5);
        }
        self.0.admin("DELETE /api/v1/namespaces/calico-system/pods/calico-node-new", &Value::Null).map(drop)
    }

    pub(super) fn no_workloads(&self) {
        // Some are gone already, and there may have been none.
        let _ = self.0.admin(&format!("DELETE {SETS}/calico-node"), &Value::Null);
        let _ = self.0.admin(&format!("DELETE {DEPLOYMENT}"), &Value::Null);
        let _ = self.0.admin("DELETE /api/v1/namespaces/kube-system/events/no-calico", &Value::Null);
        let _ = self.0.admin(&format!("PATCH merge {MEMORY}"), &json!({"data": {"memory": ""}}));
        self.no_password();
    }
}

impl Drop for Trees<'_> {
    /// Also after a failure: other tests have no Calico.
    fn drop(&mut self) {
        self.no_workloads();
    }
}
