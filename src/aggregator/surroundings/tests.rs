//! What is kept of objects as the API server sends them, whole and damaged.

use serde_json::{Value, json};

use super::*;
use crate::aggregator::testing::at;
use crate::facts::Encapsulation;

fn view(object: &Value) -> ObjectView {
    serde_json::from_value(object.clone()).expect("an object, however damaged")
}

/// One kind was listed, with these.
fn listed(around: &mut Surroundings, what: What, objects: &[Value]) {
    around.take(what, Change::Found, at(0));
    around.take(what, Change::ListBegins, at(0));
    for object in objects {
        around.take(what, Change::Here(view(object)), at(0));
    }
    around.take(what, Change::ListEnds, at(0));
}

fn affinity(name: &str, spec: &Value) -> Value {
    json!({"metadata": {"name": name, "resourceVersion": "1"}, "spec": spec})
}

#[test]
fn only_confirmed_blocks_of_nodes_count() {
    let mut around = Surroundings::default();
    let block = |cidr: &str, state: &str, deleted: Value, kind: &str| json!({"node": "n1", "cidr": cidr, "state": state, "deleted": deleted, "type": kind});
    listed(
        &mut around,
        What::Affinities,
        &[
            affinity("a", &block("10.1.0.0/26", "confirmed", json!("false"), "host")),
            affinity("b", &block("10.1.0.64/26", "confirmed", json!("true"), "host")),
            affinity("c", &block("10.1.0.128/26", "confirmed", json!(true), "host")),
            affinity("d", &block("10.1.0.192/26", "pending", json!("false"), "host")),
            affinity("e", &block("10.1.1.0/26", "pendingDeletion", json!("false"), "host")),
            affinity("f", &block("10.1.1.64/26", "confirmed", json!(false), "virtual")),
            affinity("g", &block("no block", "confirmed", json!(7), "host")),
            affinity("h", &json!({"cidr": "10.1.1.128/26", "state": "confirmed"})),
            affinity("i", &json!([1])),
            affinity("j", &json!({"node": "n2", "cidr": "fd00::/122", "state": "confirmed", "deleted": null})),
        ],
    );
    let blocks = around.blocks();
    assert_eq!(blocks["n1"], ["10.1.0.0/26".parse().expect("a block")]);
    assert_eq!(blocks["n2"], ["fd00::/122".parse().expect("a block")]);
    assert_eq!(blocks.len(), 2);
}

#[test]
fn a_block_that_is_given_back_is_gone_and_the_map_is_another() {
    let mut around = Surroundings::default();
    let mut one = affinity("a", &json!({"node": "n1", "cidr": "10.1.0.0/26", "state": "confirmed"}));
    listed(&mut around, What::Affinities, &[one.clone()]);
    let before = around.generation();
    around.take(What::Affinities, Change::Here(view(&one)), at(1));
    assert_eq!(around.generation(), before, "nothing is different");
    one["spec"]["state"] = "pendingDeletion".into();
    around.take(What::Affinities, Change::Here(view(&one)), at(2));
    assert!(around.blocks().is_empty() && around.generation() > before);
    listed(&mut around, What::Affinities, &[]);
    one["spec"]["state"] = "confirmed".into();
    around.take(What::Affinities, Change::Here(view(&one)), at(3));
    assert_eq!(around.blocks().len(), 1);
    around.take(What::Affinities, Change::NotThere(NotThere::Missing), at(4));
    assert!(around.blocks().is_empty(), "Calico was removed");
    around.take(What::Affinities, Change::Found, at(5));
    assert!(!around.is_seen(What::Affinities), "it is back, and its list has to be read first");
}

#[test]
fn pools_and_the_mesh_have_calicos_defaults() {
    let mut around = Surroundings::default();
    assert_eq!(around.bgp(), None, "not looked at yet");
    listed(&mut around, What::Bgp, &[]);
    assert_eq!(around.bgp(), Some(Bgp { full_mesh: true, secret: None }));
    let other = json!({"metadata": {"name": "node.n1"}, "spec": {"nodeToNodeMeshEnabled": false}});
    let default = json!({"metadata": {"name": "default"}, "spec": {"nodeToNodeMeshEnabled": false,
        "nodeMeshPassword": {"secretKeyRef": {"name": "calico-bgp-password", "key": "password"}}}});
    listed(&mut around, What::Bgp, &[other, default]);
    assert_eq!(around.bgp(), Some(Bgp { full_mesh: false, secret: Some("calico-bgp-password".into()) }));
    listed(&mut around, What::Bgp, &[json!({"metadata": {"name": "default"}, "spec": {"nodeMeshPassword": 7}})]);
    assert_eq!(around.bgp(), Some(Bgp { full_mesh: true, secret: None }));
    around.take(What::Bgp, Change::NotThere(NotThere::Missing), at(1));
    assert_eq!(around.bgp(), None);

    let pool = |name: &str, spec: Value| json!({"metadata": {"name": name}, "spec": spec});
    listed(
        &mut around,
        What::Pools,
        &[
            pool("a", json!({"cidr": "172.30.0.0/16", "ipipMode": "Always", "vxlanMode": "Never", "blockSize": 26})),
            pool("b", json!({"cidr": "fd00::/48", "vxlanMode": "CrossSubnet", "disabled": true})),
            pool("c", json!({"cidr": "everything"})),
        ],
    );
    let pools = around.pools();
    assert_eq!(pools.len(), 2);
    assert_eq!(
        (pools[0].ipip, pools[0].vxlan, pools[0].disabled),
        (Encapsulation::Always, Encapsulation::Never, false)
    );
    assert_eq!((pools[1].ipip, pools[1].vxlan), (Encapsulation::Never, Encapsulation::CrossSubnet));
    assert!(pools[1].disabled);
}

#[test]
fn services_lead_to_ready_endpoints_of_the_same_port() {
    let mut around = Surroundings::default();
    let meta = json!({"name": "kube-dns", "namespace": "kube-system"});
    let slice = |name: &str, service: &str, address: &str, ready: Value| {
        json!({"metadata": {"name": name, "namespace": "kube-system", "labels": {"kubernetes.io/service-name": service}},
            "ports": [{"name": "dns", "port": 53, "protocol": "UDP"}, {"name": "metrics", "port": 9153}, {"name": "any"}],
            "endpoints": [{"addresses": [address], "conditions": {"ready": ready}}]})
    };
    listed(
        &mut around,
        What::DnsServices,
        &[json!({"metadata": meta, "spec": {"clusterIPs": ["10.96.0.10", "None"], "ports": [
            {"name": "dns", "port": 53, "protocol": "UDP"}, {"name": "dns-tcp", "port": 53}, {"name": "odd", "port": "x"}]}})],
    );
    assert!(around.services().is_empty(), "where it leads is not known yet");
    listed(
        &mut around,
        What::DnsSlices,
        &[
            slice("s1", "kube-dns", "10.1.0.9", json!(true)),
            slice("s2", "kube-dns", "10.1.0.7", Value::Null),
            slice("s3", "kube-dns", "10.1.0.8", json!(false)),
            slice("s4", "another", "10.1.0.6", json!(true)),
            slice("s5", "kube-dns", "nowhere", json!(true)),
        ],
    );
    let services = around.services();
    assert_eq!(services.len(), 1);
    assert_eq!(services[0].cluster_ips.len(), 1);
    let ports: Vec<_> =
        services[0].ports.iter().map(|port| (port.name.as_str(), port.protocol.as_str(), port.port)).collect();
    assert_eq!(ports, [("dns", "UDP", 53), ("dns-tcp", "TCP", 53)]);
    let to = |address: &str| (address.parse().expect("an address"), 53);
    assert_eq!(services[0].ports[0].endpoints, [to("10.1.0.7"), to("10.1.0.9")]);
    assert!(services[0].ports[1].endpoints.is_empty());
}

fn failure_of(statuses: &Value) -> Option<(String, String)> {
    let pod = json!({"metadata": {"name": "calico-node-x", "namespace": "calico-system"}, "spec": {"nodeName": "n1"},
        "status": {"initContainerStatuses": statuses}});
    let mut around = Surroundings::default();
    listed(&mut around, What::CalicoPods, &[pod]);
    let pod = around.calico_pods().next().cloned().expect("kept");
    assert_eq!((pod.name.namespace(), &*pod.account), ("calico-system", "default"));
    pod.failed.map(|failed| (failed.container.into(), failed.words.into()))
}

#[test]
fn init_containers_that_have_failed_are_told_from_those_that_wait() {
    let done = json!({"name": "upgrade-ipam", "state": {"terminated": {"exitCode": 0, "reason": "Completed"}},
        "lastState": {"terminated": {"exitCode": 1}}});
    let waits = json!({"name": "install-cni", "state": {"waiting": {"reason": "PodInitializing"}}});
    assert_eq!(failure_of(&json!([done, waits])), None);
    assert_eq!(failure_of(&json!([done, {"name": "install-cni", "state": {"running": {}}}])), None);
    assert_eq!(failure_of(&Value::Null), None);
    assert_eq!(failure_of(&json!([7, {"name": 7, "state": "odd"}])), None);

    let before = json!({"terminated": {"exitCode": 1, "reason": "Error", "message": "one\n  cannot write\n\n", "finishedAt": "2026-11-21T10:00:00Z"}});
    let words = Some(("install-cni".to_owned(), "Error, exit status 1: cannot write".to_owned()));
    let back_off =
        json!({"waiting": {"reason": "CrashLoopBackOff", "message": "back-off 40s restarting failed container"}});
    assert_eq!(failure_of(&json!([done, {"name": "install-cni", "state": back_off, "lastState": before}])), words);
    assert_eq!(failure_of(&json!([{"name": "install-cni", "state": before}])), words);
    assert_eq!(failure_of(&json!([{"name": "install-cni", "state": {"running": {}}, "lastState": before}])), words);
    let image = json!({"waiting": {"reason": "ImagePullBackOff", "message": "Back-off pulling image \"x\""}});
    assert_eq!(
        failure_of(&json!([{"name": "a", "state": image}])),
        Some(("a".to_owned(), "ImagePullBackOff: Back-off pulling image \"x\"".to_owned()))
    );
    let unknown = json!({"terminated": {"exitCode": -1}});
    assert_eq!(
        failure_of(&json!([{"name": "a", "state": unknown}])),
        Some(("a".to_owned(), "Error, unknown exit status".to_owned()))
    );
}

#[test]
fn it_is_complete_once_every_kind_is_known_to_be_there_or_not() {
    let mut around = Surroundings::default();
    for what in What::ALL {
        assert_eq!(around.is_complete(), !what.is_on_the_map(), "the map does not wait for the others");
        match what {
            What::Affinities => around.take(what, Change::NotThere(NotThere::Denied), at(0)),
            What::Pools => around.take(what, Change::NotThere(NotThere::Missing), at(0)),
            _ => listed(&mut around, what, &[]),
        }
    }
    assert!(around.is_complete() && around.is_denied(What::Affinities) && !around.is_denied(What::Pools));
    around.take(What::Bgp, Change::Lost("reset".into()), at(9));
    assert!(around.is_complete(), "what was seen before counts");
}

#[test]
fn changes_of_host_endpoints_ipam_and_the_cluster_information_are_written_down_once() {
    let mut around = Surroundings::default();
    let written = |name: &str, generation: u64, at_: i64, spec: &Value| {
        json!({"metadata": {"name": name, "generation": generation, "creationTimestamp": at(-900),
            "managedFields": [{"manager": "calicoctl", "operation": "Update", "time": at(at_)}]}, "spec": spec})
    };
    let told = |around: &Surroundings| {
        let all = around.journal.before(at(0));
        all.into_iter().map(|change| change.what).collect::<Vec<_>>()
    };
    let endpoint = |name: &str, when: i64| written(name, 1, when, &json!({"node": name, "expectedIPs": ["10.0.0.1"]}));
    let both = [endpoint("n1", -900), endpoint("n2", -900)];
    let made = "2 HostEndpoints made, the last of them n2".to_owned();
    for _ in 0..3 {
        listed(&mut around, What::HostEndpoints, &both);
        assert_eq!(told(&around), [made.as_str()], "a new list tells nothing new");
    }
    around.take(What::HostEndpoints, Change::Here(view(&endpoint("n1", -60))), at(-60));
    let changed = "HostEndpoint n1 changed".to_owned();
    assert_eq!(told(&around), [changed.clone(), made.clone()]);
    let ready = |generation, when, ready: bool| written("default", generation, when, &json!({"datastoreReady": ready}));
    listed(&mut around, What::ClusterInformation, &[ready(4, -50, true)]);
    // Who writes it without another spec changes nothing.
    around.take(What::ClusterInformation, Change::Here(view(&ready(4, -40, true))), at(-40));
    let first = "ClusterInformation default changed".to_owned();
    assert_eq!(told(&around), [first.clone(), changed.clone(), made.clone()]);
    around.take(What::ClusterInformation, Change::Here(view(&ready(5, -30, false))), at(-30));
    listed(&mut around, What::IpamConfigs, &[written("default", 2, -20, &json!({}))]);
    let ipam = "IPAMConfig default changed".to_owned();
    assert_eq!(told(&around), [ipam.clone(), first.clone(), first.clone(), changed, made]);
    // Where they may no longer be looked at, those that are there are seen anew afterwards.
    around.take(What::HostEndpoints, Change::NotThere(NotThere::Denied), at(0));
    assert_eq!(told(&around), [ipam, first.clone(), first]);
    listed(&mut around, What::HostEndpoints, &both);
    assert_eq!(told(&around).last().map(String::as_str), Some("2 HostEndpoints made, the last of them n2"));
}
