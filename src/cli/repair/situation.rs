//! How the worker and what is around it are now, as plain data: what the plan is made of.

use jiff::Timestamp;
use serde_json::Value;

use super::evidence::Evidence;
use super::memory::Memory;
use crate::aggregator::Peer;
use crate::aggregator::report::{AgentState, Scope};
use crate::checks::Severity;

/// Seconds after which a repair that nobody went on with is over.
const FORGOTTEN_AFTER: i64 = 86_400;

/// A live answer, or why there is none.
pub(super) type Seen<T> = Result<T, String>;

/// Everything the plan is decided by.
#[derive(Debug, Clone)]
pub(super) struct Situation {
    pub(super) now: Timestamp,
    pub(super) node: Worker,
    /// What is to be repaired; none if nothing is.
    pub(super) root: Option<Root>,
    /// All codes that the node's own agent tells.
    pub(super) codes: Vec<String>,
    /// Codes of the findings about the cluster that concern this worker.
    pub(super) around: Vec<String>,
    /// The other workers.
    pub(super) others: Vec<Peer>,
    /// Pods of calico-node and calico-kube-controllers, on all nodes.
    pub(super) calico: Seen<Vec<Pod>>,
    /// Pods on this node that a drain has to move.
    pub(super) to_move: Seen<Vec<Pod>>,
    /// Budgets that keep some of them where they are, each with the pod.
    pub(super) budgets: Seen<Vec<String>>,
    /// Whether there is any Ingress.
    pub(super) ingress: Seen<bool>,
    /// What Calico's BGP password needs; only looked at where BGP is the trouble.
    pub(super) bgp: Option<BgpPassword>,
    pub(super) evidence: Evidence,
    /// Rights that the caller lacks for what this command itself would do.
    pub(super) lacks: Vec<String>,
}

/// The worker itself.
#[derive(Debug, Clone)]
pub(super) struct Worker {
    pub(super) name: String,
    pub(super) platform: Platform,
    pub(super) zone: Option<String>,
    pub(super) pool: Option<String>,
    /// The kubelet's condition in words.
    pub(super) ready: String,
    pub(super) cordoned: bool,
    pub(super) deleting: bool,
    /// The Node that is in its place.
    pub(super) twin: Option<String>,
    pub(super) agent: AgentState,
    /// Its first look is not complete, or it could not look.
    pub(super) unknown: bool,
    /// What is said of it when it is unknown, and what to do next.
    pub(super) says: (String, String),
    /// `nodeInfo.bootID`.
    pub(super) boot: String,
    /// What a repair remembers here.
    pub(super) memory: Option<Memory>,
}

/// What is wrong.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Root {
    pub(super) code: String,
    pub(super) severity: Severity,
    pub(super) since: Timestamp,
    pub(super) detail: String,
    pub(super) scope: Scope,
    /// On so many workers.
    pub(super) counted: usize,
    /// Of so many.
    pub(super) eligible: usize,
    /// What the cluster's report says to do about it, where it is on more than a few.
    pub(super) next: Option<String>,
}

/// A Pod.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
#[expect(clippy::struct_excessive_bools, reason = "each is a fact of its own, as the API server says it")]
pub(super) struct Pod {
    pub(super) namespace: String,
    pub(super) name: String,
    pub(super) uid: String,
    pub(super) node: String,
    /// Its label `k8s-app`.
    pub(super) app: String,
    pub(super) phase: String,
    pub(super) ready: bool,
    /// Since when it is Ready or not.
    pub(super) since: Option<Timestamp>,
    pub(super) restarts: u64,
    pub(super) deleting: bool,
    /// A DaemonSet makes it anew.
    pub(super) of_daemon_set: bool,
    /// The kubelet makes it from a file.
    pub(super) mirror: bool,
    pub(super) labels: Value,
}

/// The password of BGP's peers, where calico-node runs in calico-system (catalogue R162).
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(super) struct BgpPassword {
    /// The Secret's name.
    pub(super) secret: String,
    /// It is in kube-system.
    pub(super) there: bool,
    /// It is in calico-system.
    pub(super) here: bool,
    /// Role and RoleBinding let calico-node read it.
    pub(super) readable: bool,
}

impl BgpPassword {
    /// Whether the cure of it is to be done.
    pub(super) fn is_missing(&self) -> bool {
        !self.here && self.there || self.here && !self.readable
    }
}

/// On what the cluster runs, as far as the Node says it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Platform {
    /// For people.
    pub(super) name: &'static str,
    /// As the explanations call it.
    keys: &'static [&'static str],
    /// The provider's name of the worker.
    worker: Option<String>,
    /// The provider's name of the cluster.
    cluster: Option<String>,
}

impl Platform {
    /// By the labels and the `providerID` that IBM Cloud gives (`ibm://ACCOUNT///CLUSTER/WORKER` on VPC).
    pub(super) fn of(node: &Value) -> Platform {
        let labels = &node["metadata"]["labels"];
        let label = |key: &str| labels[key].as_str().filter(|value| !value.is_empty());
        let id = node["spec"]["providerID"].as_str().unwrap_or_default();
        let own = label("ibm-cloud.kubernetes.io/worker-id");
        if !id.starts_with("ibm://") && own.is_none() {
            return Platform { name: "Kubernetes", keys: &["kubernetes"], worker: None, cluster: None };
        }
        let mut parts = id.strip_prefix("ibm://").unwrap_or_default().rsplit('/').filter(|part| !part.is_empty());
        let worker = parts.next().map(str::to_owned);
        let cluster = parts.next().map(str::to_owned);
        let info = |key: &str| node["status"]["nodeInfo"][key].as_str().unwrap_or_default();
        let roks = label("node.openshift.io/os_id").is_some() || info("containerRuntimeVersion").starts_with("cri-o");
        let vpc = label("ibm-cloud.kubernetes.io/vpc-instance-id").or(label("ibm-cloud.kubernetes.io/subnet-id"));
        let classic = label("privateVLAN").or(label("publicVLAN"));
        let (name, keys): (_, &[&str]) = match (roks, vpc.is_some(), classic.is_some()) {
            (false, true, _) => ("IKS on VPC", &["vpc", "ibm"]),
            (false, false, true) => ("IKS classic", &["classic", "ibm"]),
            (true, true, _) => ("ROKS on VPC", &["roks", "vpc", "ibm"]),
            (true, false, true) => ("ROKS classic", &["roks", "classic", "ibm"]),
            (false, false, false) => ("IKS", &["classic", "vpc", "ibm"]),
            (true, false, false) => ("ROKS", &["roks", "classic", "vpc", "ibm"]),
        };
        Platform { name, keys, worker: own.map(str::to_owned).or(worker), cluster }
    }

    /// Whether what is for these products, with commas, is for this one.
    pub(super) fn has(&self, products: &str) -> bool {
        products.is_empty() || products.split(',').any(|name| self.keys.contains(&name))
    }

    /// The command with the names of this worker in place of what stands for them.
    pub(super) fn filled(&self, command: &str, node: &str, calico: Option<&Pod>) -> String {
        let word = |word: &str| match word {
            "NODE" => node.to_owned(),
            "WORKER_ID" => self.worker.clone().unwrap_or_else(|| word.to_owned()),
            "CLUSTER" => self.cluster.clone().unwrap_or_else(|| word.to_owned()),
            "CALICO_NS" => calico.map_or_else(|| word.to_owned(), |pod| pod.namespace.clone()),
            "calico-node-XXXXX" => calico.map_or_else(|| word.to_owned(), |pod| pod.name.clone()),
            _ => word.to_owned(),
        };
        let line = |line: &str| line.split(' ').map(word).collect::<Vec<_>>().join(" ");
        command.lines().map(line).collect::<Vec<_>>().join("\n")
    }
}

impl Pod {
    /// What is read of one.
    pub(super) fn read(pod: &Value) -> Pod {
        let (meta, status) = (&pod["metadata"], &pod["status"]);
        let text = |value: &Value| value.as_str().unwrap_or_default().to_owned();
        let each = |value: &Value| value.as_array().cloned().unwrap_or_default();
        let ready = each(&status["conditions"]).into_iter().find(|condition| condition["type"] == "Ready");
        Pod {
            namespace: text(&meta["namespace"]),
            name: text(&meta["name"]),
            uid: text(&meta["uid"]),
            node: text(&pod["spec"]["nodeName"]),
            app: text(&meta["labels"]["k8s-app"]),
            phase: text(&status["phase"]),
            ready: ready.as_ref().is_some_and(|ready| ready["status"] == "True"),
            since: ready
                .as_ref()
                .and_then(|ready| ready["lastTransitionTime"].as_str())
                .or(meta["creationTimestamp"].as_str())
                .and_then(|text| text.parse().ok()),
            restarts: each(&status["containerStatuses"]).iter().filter_map(|it| it["restartCount"].as_u64()).sum(),
            deleting: !meta["deletionTimestamp"].is_null(),
            of_daemon_set: each(&meta["ownerReferences"]).iter().any(|owner| owner["kind"] == "DaemonSet"),
            mirror: !meta["annotations"]["kubernetes.io/config.mirror"].is_null(),
            labels: meta["labels"].clone(),
        }
    }

    /// Whether a drain has to move it.
    pub(super) fn has_to_move(&self) -> bool {
        !self.of_daemon_set && !self.mirror && !self.deleting && self.phase != "Succeeded" && self.phase != "Failed"
    }
}

/// Whether a budget keeps this Pod from being evicted now. One that is not Ready may go as long as the budget is kept
/// without it, or always where the budget says so (`unhealthyPodEvictionPolicy`).
pub(super) fn keeps(budget: &Value, pod: &Pod) -> bool {
    let status = &budget["status"];
    let number = |key: &str| status[key].as_i64().unwrap_or_default();
    let kept_without = !pod.ready
        && (budget["spec"]["unhealthyPodEvictionPolicy"] == "AlwaysAllow"
            || number("desiredHealthy") > 0 && number("currentHealthy") >= number("desiredHealthy"));
    budget["metadata"]["namespace"].as_str() == Some(&pod.namespace)
        && number("disruptionsAllowed") <= 0
        && !kept_without
        && selects(&budget["spec"]["selector"], &pod.labels)
}

/// Whether a label selector matches; none matches nothing, an empty one everything.
fn selects(selector: &Value, labels: &Value) -> bool {
    let Some(selector) = selector.as_object() else { return false };
    let wanted = selector.get("matchLabels").and_then(Value::as_object);
    let by_labels = wanted.is_none_or(|wanted| wanted.iter().all(|(key, value)| labels[key] == *value));
    let expressions = selector.get("matchExpressions").and_then(Value::as_array);
    by_labels
        && expressions.is_none_or(|all| {
            all.iter().all(|expression| {
                let value = expression["key"].as_str().map_or(&Value::Null, |key| &labels[key]);
                let listed = expression["values"].as_array().is_some_and(|values| values.contains(value));
                match expression["operator"].as_str() {
                    Some("In") => listed,
                    Some("NotIn") => !listed,
                    Some("Exists") => !value.is_null(),
                    Some("DoesNotExist") => value.is_null(),
                    _ => false,
                }
            })
        })
}

impl Situation {
    /// The Pods of calico-node on this worker.
    pub(super) fn calico_node(&self) -> Option<&Pod> {
        let mut pods = self.calico.as_ref().ok()?.iter();
        // While Calico moves from one namespace to the other there may be two: the one that is not Ready is the trouble.
        let mut on: Vec<&Pod> =
            pods.by_ref().filter(|pod| pod.app == "calico-node" && pod.node == self.node.name).collect();
        on.sort_by_key(|pod| (pod.deleting, pod.ready));
        on.first().copied()
    }

    /// Workers beside this one that can take its Pods.
    pub(super) fn able(&self) -> impl Iterator<Item = &Peer> {
        self.others.iter().filter(|peer| peer.ready && !peer.cordoned && !peer.control_plane)
    }

    /// The memory of a repair that is under way. One that holds no cordon is over after a day: nobody went on with it.
    pub(super) fn open(&self) -> Option<&Memory> {
        let last = |memory: &Memory| memory.steps.last().map_or(memory.since, |done| done.at);
        let fresh = |memory: &Memory| self.now.as_second() - last(memory).as_second() < FORGOTTEN_AFTER;
        self.node.memory.as_ref().filter(|memory| memory.is_open() && (memory.cordoned || fresh(memory)))
    }

    /// The same, if it is for what is wrong now: what was tried for something else says nothing.
    pub(super) fn remembered(&self) -> Option<&Memory> {
        self.open().filter(|memory| self.root.as_ref().is_some_and(|root| root.code == memory.code))
    }

    /// Whether there is evidence of this episode, in words.
    pub(super) fn evidence(&self) -> (bool, String) {
        let before = self.remembered().map_or("", |memory| memory.boot.as_str());
        let boots = [self.node.boot.as_str(), before];
        self.evidence.of(&self.node.name, &boots, self.begun().unwrap_or(self.now))
    }

    /// When what is to be repaired began: a step may make it begin anew.
    pub(super) fn begun(&self) -> Option<Timestamp> {
        let root = self.root.as_ref()?;
        Some(self.remembered().map_or(root.since, |memory| memory.since.min(root.since)))
    }
}

#[cfg(test)]
#[path = "situation_tests.rs"]
mod tests;
