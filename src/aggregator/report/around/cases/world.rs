//! A cluster in which everything that is looked at is there and well, and ways to change it.

use serde_json::{Value, json};

use super::super::calico::tests::list;
pub(super) use super::super::calico::tests::{looping, pod, set};
use crate::aggregator::backends::{Backend, Endpoint};
use crate::aggregator::cluster::Cluster;
use crate::aggregator::ipam::{Given, Ipam};
use crate::aggregator::surroundings::What;
pub(super) use crate::aggregator::testing::apply;
use crate::aggregator::testing::{at, cluster, moment, node};
use crate::aggregator::watch::Change;
use crate::facts::{BlockSums, Family};

/// Half of them in zone a, half in zone b.
pub(super) const WORKERS: usize = 12;
pub(super) const DAY: i64 = 86_400;
pub(super) const KC: &str = "calico-kube-controllers";
pub(super) const KS: &str = "kube-system";
const POOL: &str = "172.30.0.0/16";

pub(super) fn name(number: usize) -> String {
    format!("n{number:02}")
}

pub(super) fn worker(number: usize) -> Value {
    let mut node = node(&name(number), if number < WORKERS / 2 { "a" } else { "b" }, "red", "Normal", &[]);
    node["metadata"]["labels"]["ibm-cloud.kubernetes.io/worker-pool-name"] = "red".into();
    node["metadata"]["annotations"]["nodevitals.dev/since"] = json!(at(-10 * DAY));
    node["status"]["addresses"] = json!([{"type": "InternalIP", "address": format!("10.0.0.{number}")}]);
    node["status"]["nodeInfo"] = json!({"systemUUID": format!("u{number}"), "kubeletVersion": "v1.30.9+IKS",
        "kernelVersion": "5.15.0-119-generic", "osImage": "Ubuntu 22.04.5 LTS"});
    unavailable(node, "False", "CalicoIsUp", -DAY)
}

/// What is said in `NetworkUnavailable`, with its taint.
pub(super) fn unavailable(mut node: Value, status: &str, reason: &str, since: i64) -> Value {
    let conditions = node["status"]["conditions"].as_array_mut().expect("conditions");
    conditions.retain(|it| it["type"] != "NetworkUnavailable");
    conditions.push(
        json!({"type": "NetworkUnavailable", "status": status, "reason": reason, "lastTransitionTime": at(since)}),
    );
    if status == "True" {
        node["spec"]["taints"] = json!([{"key": "node.kubernetes.io/network-unavailable", "effect": "NoSchedule"}]);
    }
    node
}

/// Its kubelet has been silent since then.
pub(super) fn silent(mut node: Value, since: i64) -> Value {
    node["status"]["conditions"][0] =
        json!({"type": "Ready", "status": "Unknown", "reason": "NodeStatusUnknown", "lastTransitionTime": at(since)});
    node
}

/// Its kubelet has said since then that it is not Ready.
pub(super) fn not_ready(mut node: Value, since: i64) -> Value {
    node["status"]["conditions"][0] =
        json!({"type": "Ready", "status": "False", "reason": "KubeletNotReady", "lastTransitionTime": at(since)});
    node
}

pub(super) fn cordoned(mut node: Value, since: i64) -> Value {
    node["spec"] = json!({"unschedulable": true,
        "taints": [{"key": "node.kubernetes.io/unschedulable", "effect": "NoSchedule", "timeAdded": at(since)}]});
    node
}

/// Takes in a Node that was seen so then.
pub(super) fn apply_at(cluster: &mut Cluster, node: &Value, when: i64) {
    cluster.apply_node(&serde_json::from_value(node.clone()).expect("a node"), at(when));
}

pub(super) fn put(cluster: &mut Cluster, what: What, object: &Value) {
    let object = serde_json::from_value(object.clone()).expect("an object");
    cluster.surroundings.take(what, Change::Here(object), at(0));
}

pub(super) fn gone(cluster: &mut Cluster, what: What, object: &Value, when: i64) {
    let object = serde_json::from_value(object.clone()).expect("an object");
    cluster.surroundings.take(what, Change::Gone(object), at(when));
}

/// The Pod of calico-node on this worker.
pub(super) fn calico(number: usize, ready: bool, since: i64) -> Value {
    pod("calico-node", KS, number, &name(number), ready, since, 0)
}

pub(super) fn controllers(ready: bool, since: i64) -> Value {
    pod(KC, KS, 1, "n01", ready, since, 0)
}

pub(super) fn typha(number: usize, ready: bool, since: i64) -> Value {
    pod("calico-typha", KS, number, &name(number), ready, since, 0)
}

pub(super) fn tunnel(number: usize, ready: bool, since: i64) -> Value {
    pod("konnectivity-agent", KS, number, &name(number), ready, since, 0)
}

pub(super) fn deployment(replicas: usize) -> Value {
    json!({"metadata": {"name": KC, "namespace": KS, "creationTimestamp": at(-20 * DAY)}, "spec": {"replicas": replicas}})
}

pub(super) fn pool(cidr: &str) -> Value {
    json!({"metadata": {"name": "default-ipv4-ippool"}, "spec": {"cidr": cidr, "blockSize": 26}})
}

pub(super) fn affinity(node: &str, block: &str) -> Value {
    let name = format!("{node}-{}", block.replace(['.', '/'], "-"));
    json!({"metadata": {"name": name}, "spec": {"node": node, "cidr": block, "state": "confirmed", "deleted": "false"}})
}

pub(super) fn endpoint(number: usize, address: &str) -> Value {
    json!({"metadata": {"name": format!("{}-hep", name(number))}, "spec": {"node": name(number), "expectedIPs": [address]}})
}

/// Felix's configuration, in which hands have set these.
pub(super) fn felix(fields: &Value) -> Value {
    json!({"metadata": {"name": "default", "annotations": {"created-by": "IBMCloudKubernetesService"},
        "managedFields": [{"manager": "kubectl-edit", "time": at(-700), "fieldsV1": {"f:spec": fields}}]}})
}

/// A webhook for new Pods in these namespaces, or all, and for what is written of Nodes.
pub(super) fn webhook(resources: &[&str], more: &Value) -> Value {
    let rule = json!({"apiGroups": ["*"], "apiVersions": ["*"], "operations": ["*"], "resources": resources});
    let mut webhook = json!({"name": "guard.example", "rules": [rule], "failurePolicy": "Fail", "timeoutSeconds": 10,
        "clientConfig": {"service": {"namespace": "guard", "name": "hook"}}});
    webhook.as_object_mut().expect("an object").extend(more.as_object().cloned().unwrap_or_default());
    json!({"metadata": {"name": "guard"}, "webhooks": [webhook]})
}

/// Who answers for it: on which nodes, and whether they are ready.
pub(super) fn answered(cluster: &mut Cluster, by: &[(&str, bool)], nobody_since: i64) {
    let endpoint = |(node, ready): &(&str, bool)| Endpoint {
        node: (*node).into(),
        pod: format!("hook-{node}").into(),
        ready: *ready,
    };
    let nobody_since = (!by.iter().any(|(_, ready)| *ready)).then(|| at(nobody_since));
    let backend = Backend { missing: false, endpoints: by.iter().map(endpoint).collect(), nobody_since };
    cluster.backends.insert(("guard".into(), "hook".into()), backend);
}

/// A Pod of the system that could not be made a minute ago.
pub(super) fn refused(message: &str) -> Value {
    json!({"metadata": {"name": "e", "namespace": KS}, "message": message, "series": {"lastObservedTime": at(-60)},
        "involvedObject": {"kind": "ReplicaSet", "namespace": KS, "name": "coredns-5d78c9869d"}})
}

/// Where the Service of the cluster's DNS leads.
pub(super) fn resolvers(ready: &[bool]) -> Value {
    let endpoint = |ready: &bool| json!({"addresses": ["172.30.1.5"], "conditions": {"ready": ready}});
    json!({"metadata": {"name": "kube-dns-x", "namespace": KS, "labels": {"kubernetes.io/service-name": "kube-dns"}},
        "ports": [{"name": "dns", "port": 53, "protocol": "UDP"}],
        "endpoints": ready.iter().map(endpoint).collect::<Vec<_>>()})
}

/// Everything of a kind, as it is where all is well.
fn objects(what: What) -> Vec<Value> {
    let each = |of: fn(usize) -> Value| (0..WORKERS).map(of).collect::<Vec<_>>();
    match what {
        What::CalicoPods => {
            let mut all = each(|number| calico(number, true, -DAY));
            all.extend([controllers(true, -DAY), typha(2, true, -DAY), typha(3, true, -DAY), tunnel(4, true, -DAY)]);
            all
        }
        What::DaemonSets => vec![set(KS, WORKERS, WORKERS)],
        What::SystemDeployments => vec![deployment(1)],
        What::Pools => vec![pool(POOL)],
        What::Affinities => each(|number| affinity(&name(number), &format!("172.30.{number}.0/26"))),
        What::Bgp => vec![json!({"metadata": {"name": "default"}, "spec": {"nodeToNodeMeshEnabled": true}})],
        What::HostEndpoints => each(|number| endpoint(number, &format!("10.0.0.{number}"))),
        What::ClusterInformation => vec![json!({"metadata": {"name": "default"}, "spec": {"datastoreReady": true}})],
        What::Felix => vec![felix(&json!({}))],
        What::Validating => vec![webhook(&["pods", "nodes/status"], &json!({}))],
        What::DnsServices => vec![json!({"metadata": {"name": "kube-dns", "namespace": KS},
            "spec": {"clusterIPs": ["10.96.0.10"], "ports": [{"name": "dns", "port": 53, "protocol": "UDP"}]}})],
        What::DnsSlices => vec![resolvers(&[true, true])],
        What::Namespaces => [KS, "calico-system", "kube-node-lease", "shop"]
            .map(|name| json!({"metadata": {"name": name, "labels": {"kubernetes.io/metadata.name": name}}}))
            .into(),
        _ => Vec::new(),
    }
}

fn blocks(number: usize) -> impl Iterator<Item = ipnet::IpNet> {
    // The one that lacks a block lacks that of the first.
    (number..WORKERS).map(|number| format!("172.30.{number}.0/26").parse().expect("a block"))
}

/// The workers say every half minute which blocks they route, and who differs is asked; one may lack a block.
pub(super) fn routes(cluster: &mut Cluster, seconds: std::ops::Range<i64>, lacks: Option<usize>) {
    let of = |number: usize| blocks(usize::from(lacks == Some(number))).collect::<Vec<_>>();
    let by_name = |node: &str| of(node.trim_start_matches('n').parse().expect("a number"));
    let mut agreement = std::mem::take(&mut cluster.agreement);
    agreement.hold = std::time::Duration::from_secs(60);
    for second in seconds.step_by(30) {
        let now = moment(second);
        for number in 0..WORKERS {
            agreement.says(&name(number), Family::V4, BlockSums::of(of(number)), now.since_boot);
        }
        for question in agreement.look(cluster, now) {
            let blocks = [0, 1].map(|which| by_name(&question.nodes[which].0));
            agreement.answered(cluster, &question, Ok(blocks), now.since_boot);
        }
    }
    cluster.agreement = agreement;
}

/// Everything of a kind is there and well.
pub(super) fn relist(cluster: &mut Cluster, what: What, when: i64) {
    list(cluster, what, &objects(what), when);
}

/// One list of a kind without these.
pub(super) fn without(cluster: &mut Cluster, what: What, app: &str, when: i64) {
    let mut all = objects(what);
    all.retain(|it| it["metadata"]["labels"]["k8s-app"] != app);
    list(cluster, what, &all, when);
}

fn not_listed(cluster: &mut Cluster) {
    let mut given = Ipam { at: at(0), strict: true, most_blocks: 2, ..Ipam::default() };
    let own = Given { blocks: 1, used: 4, free: 60 };
    let count = u32::try_from(WORKERS).expect("few");
    let all = Given { blocks: count, used: u64::from(count) * own.used, free: u64::from(count) * own.free };
    given.pools.insert(POOL.parse().expect("a pool"), all);
    given.nodes = (0..WORKERS).map(|number| (name(number).into(), [own, Given::default()])).collect();
    cluster.ipam = Some(given);
    answered(cluster, &[("n01", true), ("n02", true)], 0);
    cluster.password.clear();
    cluster.odd_mtus.clear();
}

/// All is well, and has been for a day.
pub(super) fn well() -> Cluster {
    let mut cluster = cluster(&(0..WORKERS).map(worker).collect::<Vec<_>>(), &[]);
    for what in What::ALL {
        relist(&mut cluster, what, -DAY);
    }
    not_listed(&mut cluster);
    cluster
}

/// Everything is put right.
pub(super) fn restore(cluster: &mut Cluster) {
    let strangers: Vec<String> = cluster.nodes().map(|(name, _)| name.to_owned()).collect();
    for stranger in strangers.iter().filter(|known| !(0..WORKERS).any(|number| name(number) == **known)) {
        cluster.remove_node(stranger, at(0));
    }
    for number in 0..WORKERS {
        apply(cluster, &worker(number));
    }
    for what in What::ALL {
        relist(cluster, what, 0);
    }
    not_listed(cluster);
    if cluster.agreement.differing().next().is_some() {
        routes(cluster, 0..300, None);
    }
    if cluster.scrapes.missing().is_some() {
        cluster.scraped(moment(1));
        cluster.misses_scrapes(moment(1).since_boot);
    }
}
