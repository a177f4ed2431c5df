//! Calico moves to another namespace and stands still, where the password of its BGP peers did not move with it; and meanwhile
//! a new worker does not come. All of it counts after a minute, so that it is planted together and put right one by one.

use anyhow::Result;
use serde_json::{Value, json};

use super::plants::worker;
use super::{Branch, QUIET, Trees};
use crate::bench::{condition, now};

const SECRET: &str = "calico-bgp-password";
const NEW: &str = "/api/v1/nodes";
/// What is left of what was planted before: its kubelet turned too often.
const FLAPS: (&str, &str) = ("NodeReadyFlapping", "warning");
const STALLED: (&str, &str) = ("CalicoMigrationStalled", "critical");
const STUCK: (&str, &str) = ("WorkerStuckInTransition", "warning");

/// In an order in which each puts one of them right.
pub(super) const MOVING: &[Branch] = &[
    Branch {
        of: "4.1 the move to calico-system stands still",
        plant: |trees, bad| {
            if bad {
                trees.moves(true)?;
                trees.password()?;
                trees.new_worker()?;
            }
            Ok(())
        },
        cluster: &[STALLED, ("BgpPasswordSecretMissing", "critical"), FLAPS, STUCK],
        on: &[0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11],
        says: [
            "1 of 13 nodes are done, 0 of these are not Ready, and none was added for more than 1 minutes",
            "read the log of tigera-operator; see that all of Calico's Pods are Ready; where BGP has a password, that its Secret is in calico-system too (BgpPasswordSecretMissing)",
        ],
        ..QUIET
    },
    Branch {
        of: "4.1 the password of its BGP peers stayed in kube-system",
        plant: |trees, bad| if bad { Ok(()) } else { trees.readable("calico-system") },
        cluster: &[("BgpPasswordSecretMissing", "critical"), STALLED, FLAPS, STUCK],
        on: &[5],
        says: [
            "from Secret calico-bgp-password in namespace calico-system, which does not exist there, and service account calico-system/calico-node may not get, list, watch it",
            "(copy it from where calico-node was before, such as kube-system: `kubectl get secret -A --field-selector metadata.name=calico-bgp-password`), then let it be read with a Role and a RoleBinding `bgp-secret-access` (get, list, watch on secrets/calico-bgp-password) for calico-system/calico-node",
        ],
        ..QUIET
    },
    Branch {
        of: "4.1 it is copied, and may be read",
        plant: |trees, bad| if bad { Ok(()) } else { trees.moves(false) },
        cluster: &[STALLED, FLAPS, STUCK],
        says: ["Calico moves from kube-system to calico-system", "read the log of tigera-operator"],
        ..QUIET
    },
    Branch {
        of: "4.0 a worker that never joined, and 4.5: a transit state for too long",
        plant: |trees, bad| {
            if bad { Ok(()) } else { trees.0.admin(&format!("DELETE {NEW}/t92"), &Value::Null).map(drop) }
        },
        cluster: &[STUCK, FLAPS],
        on: &[92],
        says: [
            "1 workers that are rebooted, reloaded, updated or new have not become Ready for more than 1 minutes: t92 is new, and not Ready since",
            "read the provider's Status of t92 (`ibmcloud ks worker get`) and ask `nodevitals explain` what it means: what is pending waits for something else, which it names. If nobody works on it, repair it: `nodevitals repair t92`",
        ],
        ..QUIET
    },
    Branch { of: "all of it is put right", cluster: &[FLAPS], on: &[1], says: ["t01", "leave Calico alone"], ..QUIET },
];

impl Trees<'_> {
    /// The BGP peers have a password, which calico-node can read in kube-system; the aggregator may see whether it is in
    /// calico-system.
    fn password(&self) -> Result<()> {
        self.readable("kube-system")?;
        self.0.apply(include_str!("../../../deploy/optional/bgp-secret.yaml"))?;
        let by = json!({"nodeMeshPassword": {"secretKeyRef": {"name": SECRET, "key": "password"}}});
        self.0.apply(&crate::map::object("BGPConfiguration", "default", &by).to_string()).map(drop)
    }

    /// The password is there, and calico-node may read it.
    fn readable(&self, namespace: &str) -> Result<()> {
        let name = "bgp-secret-access";
        let rbac = "rbac.authorization.k8s.io";
        let meta = |name: &str| json!({"name": name, "namespace": namespace});
        let rule = json!({"apiGroups": [""], "resources": ["secrets"], "resourceNames": [SECRET], "verbs": ["get", "list", "watch"]});
        let who = json!({"kind": "ServiceAccount", "name": "calico-node", "namespace": namespace});
        let items = json!([
            {"apiVersion": "v1", "kind": "Secret", "metadata": meta(SECRET), "stringData": {"password": "x"}},
            {"apiVersion": format!("{rbac}/v1"), "kind": "Role", "metadata": meta(name), "rules": [rule]},
            {"apiVersion": format!("{rbac}/v1"), "kind": "RoleBinding", "metadata": meta(name),
                "roleRef": {"apiGroup": rbac, "kind": "Role", "name": name}, "subjects": [who]},
        ]);
        self.0.apply(&json!({"apiVersion": "v1", "kind": "List", "items": items}).to_string()).map(drop)
    }

    /// A worker registers, and does not become Ready.
    fn new_worker(&self) -> Result<()> {
        let mut node = worker(92);
        node["status"]["conditions"][0] = condition("Ready", "False", "KubeletNotReady");
        node["status"]["conditions"][0]["lastTransitionTime"] = now().into();
        self.0.admin(&format!("POST {NEW}"), &node).map(drop)
    }

    /// Takes the password away, which may never have been there.
    pub(super) fn no_password(&self) {
        let _ = self.0.kubectl(&["delete", "crd", "bgpconfigurations.crd.projectcalico.org", "--ignore-not-found"]);
        for namespace in ["kube-system", "calico-system"] {
            let rights = ["bgp-secret-access", "nodevitals-aggregator-bgp-secret"];
            let rights = rights.iter().flat_map(|name| [format!("role/{name}"), format!("rolebinding/{name}")]);
            let all: Vec<String> = rights.chain([format!("secret/{SECRET}")]).collect();
            let delete = ["delete", "--namespace", namespace, "--ignore-not-found"];
            let _ = self.0.kubectl(&[&delete[..], &all.iter().map(String::as_str).collect::<Vec<_>>()].concat());
        }
    }
}
