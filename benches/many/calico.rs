//! Calico in a cluster of this size, beside its Nodes: what each worker has of it, and what there is once.

use serde_json::{Value, json};

use super::name;

const GROUP: &str = "/apis/crd.projectcalico.org/v1";
const POLICIES: &str = "/apis/networking.k8s.io/v1/namespaces/default/networkpolicies";
const SYSTEM_PODS: &str = "/api/v1/namespaces/kube-system/pods";
/// Pods of each worker that have an address.
const PODS: usize = 30;
/// Addresses in a block.
const BLOCK: usize = 64;
/// Every so many workers there is one with a second block.
const SECOND: usize = 4;
/// A worker for each of Typha's Pods, and the most that the operator makes of them.
const TYPHA: (usize, usize) = (200, 20);
/// Policies of Kubernetes, of Calico in namespaces, and of Calico for the cluster.
const POLICY_KINDS: [(&str, &str, usize); 3] = [
    (POLICIES, "NetworkPolicy", 500),
    ("/apis/crd.projectcalico.org/v1/namespaces/default/networkpolicies", "NetworkPolicy", 100),
    ("/apis/crd.projectcalico.org/v1/globalnetworkpolicies", "GlobalNetworkPolicy", 50),
];

type Request = (String, Value);

/// Calico's kinds, by plural, kind and scope.
const KINDS: [(&str, &str, &str); 12] = [
    ("blockaffinities", "BlockAffinity", "Cluster"),
    ("ipamblocks", "IPAMBlock", "Cluster"),
    ("ipamhandles", "IPAMHandle", "Cluster"),
    ("ipamconfigs", "IPAMConfig", "Cluster"),
    ("ippools", "IPPool", "Cluster"),
    ("hostendpoints", "HostEndpoint", "Cluster"),
    ("bgpconfigurations", "BGPConfiguration", "Cluster"),
    ("bgppeers", "BGPPeer", "Cluster"),
    ("felixconfigurations", "FelixConfiguration", "Cluster"),
    ("clusterinformations", "ClusterInformation", "Cluster"),
    ("globalnetworkpolicies", "GlobalNetworkPolicy", "Cluster"),
    ("networkpolicies", "NetworkPolicy", "Namespaced"),
];

/// The definitions of Calico's kinds.
pub fn kinds() -> Vec<Value> {
    let definition = |(plural, kind, scope): (&str, &str, &str)| {
        json!({"apiVersion": "apiextensions.k8s.io/v1", "kind": "CustomResourceDefinition",
            "metadata": {"name": format!("{plural}.crd.projectcalico.org")},
            "spec": {"group": "crd.projectcalico.org", "scope": scope,
                "names": {"plural": plural, "singular": kind.to_lowercase(), "kind": kind, "listKind": format!("{kind}List")},
                "versions": [{"name": "v1", "served": true, "storage": true, "schema": {"openAPIV3Schema":
                    {"type": "object", "x-kubernetes-preserve-unknown-fields": true}}}]}})
    };
    KINDS.into_iter().map(definition).collect()
}

fn object(plural: &str, kind: &str, name: &str, spec: &Value) -> Request {
    let object =
        json!({"apiVersion": "crd.projectcalico.org/v1", "kind": kind, "metadata": {"name": name}, "spec": spec});
    (format!("{GROUP}/{plural}"), object)
}

/// What there is once in a cluster, however large it is.
pub fn once() -> Vec<Request> {
    let configuration = [
        object(
            "ippools",
            "IPPool",
            "default-ipv4-ippool",
            &json!({"cidr": "100.64.0.0/10", "blockSize": 26, "ipipMode": "Always", "natOutgoing": true}),
        ),
        object(
            "ipamconfigs",
            "IPAMConfig",
            "default",
            &json!({"strictAffinity": false, "autoAllocateBlocks": true, "maxBlocksPerHost": 0}),
        ),
        object(
            "bgpconfigurations",
            "BGPConfiguration",
            "default",
            &json!({"nodeToNodeMeshEnabled": false, "asNumber": 64512}),
        ),
        object(
            "felixconfigurations",
            "FelixConfiguration",
            "default",
            &json!({"logSeverityScreen": "Info", "reportingInterval": "0s"}),
        ),
        object(
            "clusterinformations",
            "ClusterInformation",
            "default",
            &json!({"datastoreReady": true, "clusterType": "k8s,kdd,bgp"}),
        ),
    ];
    let mut all = configuration.to_vec();
    for (path, kind, count) in POLICY_KINDS {
        let group = if path == POLICIES { "networking.k8s.io/v1" } else { "crd.projectcalico.org/v1" };
        let spec = if path == POLICIES {
            json!({"podSelector": {"matchLabels": {"app": "a"}}, "policyTypes": ["Ingress"], "ingress": [{"from": [{"podSelector": {"matchLabels": {"app": "b"}}}]}]})
        } else {
            json!({"selector": "app == 'a'", "types": ["Ingress"], "ingress": [{"action": "Allow", "source": {"selector": "app == 'b'"}}]})
        };
        let one = |number| json!({"apiVersion": group, "kind": kind, "metadata": {"name": format!("policy-{number}")}, "spec": spec});
        all.extend((0..count).map(|number| (path.to_owned(), one(number))));
    }
    all.extend((0..10).map(webhook));
    all.extend(
        [
            ("calico-node", "daemonsets", "DaemonSet"),
            ("kube-proxy", "daemonsets", "DaemonSet"),
            ("calico-kube-controllers", "deployments", "Deployment"),
            ("calico-typha", "deployments", "Deployment"),
            ("coredns", "deployments", "Deployment"),
        ]
        .map(workload),
    );
    all.push((SYSTEM_PODS.to_owned(), pod("calico-kube-controllers-0", "calico-kube-controllers", 0)));
    all
}

/// A webhook of somebody, of which the cluster can do without.
fn webhook(number: usize) -> Request {
    let group = "admissionregistration.k8s.io/v1";
    let rule =
        json!({"apiGroups": ["apps"], "apiVersions": ["v1"], "operations": ["CREATE"], "resources": ["deployments"]});
    let webhook = json!({"name": format!("hook-{number}.example.com"), "rules": [rule], "failurePolicy": "Ignore", "timeoutSeconds": 1, "sideEffects": "None",
        "admissionReviewVersions": ["v1"], "objectSelector": {"matchLabels": {"no-such": "label"}},
        "clientConfig": {"service": {"namespace": "default", "name": format!("hook-{number}")}}});
    let configuration = json!({"apiVersion": group, "kind": "ValidatingWebhookConfiguration", "metadata": {"name": format!("hook-{number}")}, "webhooks": [webhook]});
    (format!("/apis/{group}/validatingwebhookconfigurations"), configuration)
}

fn workload((name, plural, kind): (&str, &str, &str)) -> Request {
    let labels = json!({"k8s-app": name});
    let object = json!({"apiVersion": "apps/v1", "kind": kind, "metadata": {"name": name, "namespace": "kube-system"},
        "spec": {"selector": {"matchLabels": labels}, "template": {"metadata": {"labels": labels}, "spec": {"containers": containers(name)}}}});
    (format!("/apis/apps/v1/namespaces/kube-system/{plural}"), object)
}

/// With as many settings in its environment as calico-node has.
fn containers(app: &str) -> Value {
    let settings: Vec<Value> =
        (0..40).map(|number| json!({"name": format!("FELIX_SETTING_{number}"), "value": "default value"})).collect();
    json!([{"name": app, "image": format!("registry.example/calico/{app}:v3.30.3"), "env": settings}])
}

fn pod(pod: &str, app: &str, on: usize) -> Value {
    let init: Vec<Value> = ["upgrade-ipam", "install-cni"]
        .map(|name| json!({"name": name, "image": "registry.example/calico/cni:v3.30.3"}))
        .into();
    json!({"apiVersion": "v1", "kind": "Pod", "metadata": {"name": pod, "namespace": "kube-system", "labels": {"k8s-app": app}},
        "spec": {"nodeName": name(on), "automountServiceAccountToken": false, "initContainers": init, "containers": containers(app)}})
}

/// What these workers have: an affinity and a block, or two, with the addresses of its Pods; the handle of its tunnel's
/// address (those of Pods are asked for by nobody here); a host endpoint; calico-node, and some of them Typha.
pub fn of(workers: std::ops::Range<usize>) -> Vec<Request> {
    workers.flat_map(of_one).collect()
}

/// Blocks that so many workers have.
pub fn blocks(workers: usize) -> usize {
    workers + workers.div_ceil(SECOND)
}

fn of_one(index: usize) -> Vec<Request> {
    let worker = name(index);
    let address = super::address(index);
    let mut all = vec![
        object(
            "hostendpoints",
            "HostEndpoint",
            &format!("{worker}-auto-hep"),
            &json!({"node": worker, "interfaceName": "*", "expectedIPs": [address]}),
        ),
        object(
            "ipamhandles",
            "IPAMHandle",
            &format!("ipip-tunnel-addr-{worker}"),
            &json!({"handleID": format!("ipip-tunnel-addr-{worker}"), "block": {cidr(index, 0): 1}}),
        ),
        (SYSTEM_PODS.to_owned(), pod(&format!("calico-node-{index:05}"), "calico-node", index)),
    ];
    for which in 0..=usize::from(index.is_multiple_of(SECOND)) {
        let cidr = cidr(index, which);
        let called = cidr.replace(['.', '/'], "-");
        let affinity = json!({"cidr": cidr, "node": worker, "state": "confirmed", "deleted": "false", "type": "host"});
        all.push(object("blockaffinities", "BlockAffinity", &format!("{worker}-{called}"), &affinity));
        all.push(object("ipamblocks", "IPAMBlock", &called, &block(&worker, &cidr, if which == 0 { PODS } else { 0 })));
    }
    if has_typha(index) {
        all.push((SYSTEM_PODS.to_owned(), pod(&format!("calico-typha-{index:05}"), "calico-typha", index)));
    }
    all
}

fn has_typha(index: usize) -> bool {
    index.is_multiple_of(TYPHA.0) && index / TYPHA.0 < TYPHA.1
}

/// The first or second block of a worker.
fn cidr(index: usize, which: usize) -> String {
    let block = index + which * 32_768;
    format!("100.{}.{}.{}/26", 64 + block / 1_024, block / 4 % 256, block % 4 * BLOCK)
}

fn block(worker: &str, cidr: &str, taken: usize) -> Value {
    let allocations: Vec<Value> = (0..BLOCK).map(|at| if at < taken { json!(at) } else { Value::Null }).collect();
    let attribute = |at| {
        json!({"handle_id": format!("k8s-pod-network.{at:064x}"),
            "secondary": {"node": worker, "namespace": "team", "pod": format!("app-{at}-5d78c9869d-{at:05}"), "timestamp": "2026-11-01 10:00:00 +0000 UTC"}})
    };
    json!({"cidr": cidr, "affinity": format!("host:{worker}"), "strictAffinity": false, "deleted": false, "allocations": allocations,
        "unallocated": (taken..BLOCK).collect::<Vec<_>>(), "attributes": (0..taken).map(attribute).collect::<Vec<_>>()})
}

/// That Calico's Pods on these workers run: by their kubelets.
pub fn run(workers: std::ops::Range<usize>) -> Vec<Request> {
    let runs = |app: &str, pod: &str| {
        let image = format!("registry.example/calico/{app}:v3.30.3");
        let status = json!({"name": app, "image": image, "imageID": format!("{image}@sha256:{:064x}", 7), "ready": true, "restartCount": 0,
            "state": {"running": {"startedAt": "2026-01-01T00:00:00Z"}}, "containerID": format!("containerd://{:064x}", 9)});
        let ready = json!({"type": "Ready", "status": "True", "lastTransitionTime": "2026-01-01T00:00:00Z"});
        let status = json!({"status": {"phase": "Running", "containerStatuses": [status], "conditions": [ready]}});
        (format!("{SYSTEM_PODS}/{pod}/status"), status)
    };
    let mut all = Vec::new();
    for index in workers {
        all.push(runs("calico-node", &format!("calico-node-{index:05}")));
        if has_typha(index) {
            all.push(runs("calico-typha", &format!("calico-typha-{index:05}")));
        }
        if index == 0 {
            all.push(runs("calico-kube-controllers", "calico-kube-controllers-0"));
        }
    }
    all
}
