//! The map from rows and objects, and when it is made anew.

use serde_json::{Value, json};

use super::*;
use crate::aggregator::testing::{apply, at, cluster};
use crate::aggregator::watch::{Change, NotThere};

fn node(name: &str, address: &str) -> Value {
    json!({
        "metadata": {"name": name, "creationTimestamp": at(0), "annotations": {
            "projectcalico.org/IPv4Address": format!("{address}/24"), "projectcalico.org/IPv6Address": "fd01::5/64",
            "projectcalico.org/IPv4VXLANTunnelAddr": "10.1.0.1", "projectcalico.org/IPv4IPIPTunnelAddr": "damaged",
            "projectcalico.org/IPv4WireguardInterfaceAddr": "10.1.0.3", "projectcalico.org/IPv6VXLANTunnelAddr": "fd00::1",
            "projectcalico.org/ASNumber": "64512", "projectcalico.org/VXLANTunnelMACAddr": "66:00",
        }},
        "spec": {"podCIDR": "10.244.1.0/24", "podCIDRs": ["10.244.1.0/24", "no range", 7]},
        "status": {
            "addresses": [{"type": "InternalIP", "address": address}, {"type": "ExternalIP", "address": "1.2.3.4"},
                {"type": "InternalIP", "address": "odd"}, {"type": "Hostname", "address": name}],
            "conditions": [{"type": "Ready", "status": "True"}],
        },
    })
}

/// Two nodes, and a Calico of which everything was listed, with these blocks.
fn with_blocks(blocks: &[(&str, &str)]) -> Cluster {
    let mut cluster = cluster(&[node("n1", "10.0.0.1"), node("n2", "10.0.0.2")], &[]);
    for what in What::ALL {
        cluster.surroundings.take(what, Change::ListBegins, at(0));
        cluster.surroundings.take(what, Change::ListEnds, at(0));
    }
    for (number, (node, cidr)) in blocks.iter().enumerate() {
        block(&mut cluster, number, node, cidr);
    }
    cluster
}

fn block(cluster: &mut Cluster, number: usize, node: &str, cidr: &str) {
    let object = json!({"metadata": {"name": format!("b{number}")},
        "spec": {"node": node, "cidr": cidr, "state": "confirmed", "deleted": "false"}});
    let object = serde_json::from_value(object).expect("an object");
    cluster.surroundings.take(What::Affinities, Change::Here(object), at(0));
}

fn blocks_of(cluster: &Cluster, number: usize) -> Vec<String> {
    build(cluster).nodes[number].blocks.iter().map(ToString::to_string).collect()
}

#[test]
fn a_node_has_all_its_addresses_once() {
    let map = build(&with_blocks(&[]));
    let node = &map.nodes[0];
    let texts = |all: &[std::net::IpAddr]| all.iter().map(ToString::to_string).collect::<Vec<_>>();
    assert_eq!(texts(&node.addresses), ["10.0.0.1", "fd01::5"]);
    assert_eq!(texts(&node.tunnels), ["10.1.0.1", "10.1.0.3", "fd00::1"]);
    assert!(node.ready && node.created_at == Some(at(0)));
    assert_eq!(map.full_mesh, Some(true));
}

#[test]
fn blocks_are_those_of_calico_where_it_hands_them_out() {
    let calico = with_blocks(&[("n1", "10.1.0.64/26"), ("n1", "10.1.0.0/26"), ("gone", "10.1.0.128/26")]);
    assert_eq!(blocks_of(&calico, 0), ["10.1.0.0/26", "10.1.0.64/26"]);
    assert!(blocks_of(&calico, 1).is_empty(), "it has none yet, whatever podCIDRs says");
    assert_eq!(blocks_of(&with_blocks(&[]), 0), ["10.244.1.0/24"]);
    let mut denied = with_blocks(&[]);
    denied.surroundings.take(What::Affinities, Change::NotThere(NotThere::Denied), at(0));
    assert!(blocks_of(&denied, 0).is_empty(), "nobody can say");
}

#[test]
fn there_is_no_map_before_everything_was_listed() {
    let mut last = LastMap::default();
    assert!(last.get(&Cluster::watched(), Duration::ZERO).is_err());
    assert!(last.get(&cluster(&[node("n1", "10.0.0.1")], &[]), Duration::ZERO).is_err());
}

#[test]
fn it_is_made_anew_when_something_is_different_and_the_last_one_is_old_enough() {
    let mut cluster = with_blocks(&[]);
    let mut last = LastMap::default();
    let first = last.get(&cluster, Duration::from_secs(1)).expect("a map");
    // A heartbeat is nothing that the map tells.
    let mut same = node("n1", "10.0.0.1");
    same["metadata"]["annotations"]["nodevitals.dev/state"] = "Critical".into();
    apply(&mut cluster, &same);
    assert_eq!(last.get(&cluster, Duration::from_secs(5)).expect("a map").rest.as_ptr(), first.rest.as_ptr());
    block(&mut cluster, 1, "n1", "10.1.0.0/26");
    assert_eq!(last.get(&cluster, Duration::from_millis(1_015)).expect("a map").etag, first.etag, "it is young");
    let second = last.get(&cluster, Duration::from_millis(1_025)).expect("a map");
    assert_ne!(second.etag, first.etag);
    // Another replica that sees the same says the same.
    assert_eq!(LastMap::default().get(&cluster, Duration::ZERO).expect("a map").etag, second.etag);
    cluster.remove_node("n2", at(0));
    let third = last.get(&cluster, Duration::from_secs(9)).expect("a map");
    let map: ClusterMap = serde_json::from_slice(&[br#"{"own":"n1","#, &*third.rest].concat()).expect("a map");
    assert_eq!((map.nodes.len(), map.this().map(|node| node.blocks.len())), (1, Some(1)));
    assert_eq!(map, ClusterMap { own: "n1".into(), ..build(&cluster) });
}

#[test]
fn another_port_of_typha_is_told_and_the_usual_one_is_not() {
    let mut cluster = with_blocks(&[]);
    let listens = |cluster: &mut Cluster, app: &str, ports: Value| {
        let pod = json!({"metadata": {"name": "p", "namespace": "calico-system", "labels": {"k8s-app": app}},
            "spec": {"nodeName": "n1", "containers": [{"name": "c"}, {"name": "t", "ports": ports}]}});
        cluster.surroundings.take(What::CalicoPods, Change::Here(serde_json::from_value(pod).expect("a Pod")), at(0));
        build(cluster).typha_port
    };
    let mut last = LastMap::default();
    let first = last.get(&cluster, Duration::from_secs(1)).expect("a map");
    let port = |number: u32| json!([{"name": "metrics", "containerPort": 9093}, {"name": "calico-typha", "containerPort": number}]);
    assert_eq!(listens(&mut cluster, "calico-typha", port(5473)), None);
    assert_eq!(listens(&mut cluster, "calico-node", port(5474)), None, "no Typha");
    assert_eq!(listens(&mut cluster, "calico-typha", port(70_000)), None, "no port");
    assert_eq!(last.get(&cluster, Duration::from_secs(9)).expect("a map").etag, first.etag);
    assert_eq!(listens(&mut cluster, "calico-typha", port(5474)), Some(5474));
    let second = last.get(&cluster, Duration::from_secs(18)).expect("a map");
    assert!(std::str::from_utf8(&second.rest).is_ok_and(|json| json.contains(r#""typhaPort":5474"#)));
    assert_eq!(listens(&mut cluster, "calico-typha", json!(7)), None);
}
