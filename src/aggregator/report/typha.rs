//! Typhas are told by the address that agents see; who they are is known of those whose node is. Pure.

use std::net::IpAddr;

use super::Suspect;
use crate::aggregator::cluster::Cluster;
use crate::aggregator::pods::App;
use crate::aggregator::traits::TYPHA;

/// The same, with the Pod and the node of each Typha. It is on its node's own network.
pub(super) fn named(cluster: &Cluster, mut suspects: Vec<Suspect>) -> Vec<Suspect> {
    for suspect in suspects.iter_mut().filter(|suspect| suspect.attribute == TYPHA) {
        if let Some(who) = who(cluster, &suspect.value) {
            let named = format!("{} ({who})", suspect.value);
            suspect.sentence = suspect.sentence.replacen(&suspect.value, &named, 1);
            suspect.value = named;
        }
    }
    suspects
}

fn who(cluster: &Cluster, address: &str) -> Option<String> {
    let address: IpAddr = address.parse().ok()?;
    let (node, _) = cluster.nodes().find(|(_, row)| row.addresses.contains(&address))?;
    let mut pods = cluster.surroundings.pods(App::Typha).filter(|pod| *pod.node == *node);
    Some(pods.next().map_or_else(|| format!("on {node}"), |pod| format!("{} on {node}", pod.name)))
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;
    use crate::aggregator::surroundings::What;
    use crate::aggregator::testing::{apply, at, cluster, node};
    use crate::aggregator::watch::Change;

    fn suspects(address: &str) -> Vec<Suspect> {
        let suspect = |attribute: &str, value: &str| Suspect {
            attribute: attribute.to_owned(),
            value: value.to_owned(),
            failing: 5,
            workers: 5,
            failing_elsewhere: 0,
            workers_elsewhere: 7,
            p: 0.001,
            sentence: format!("5 of 5 with {attribute} {value} fail, 0 of 7 elsewhere"),
        };
        vec![suspect("Typha", address), suspect("pool", address)]
    }

    #[test]
    fn a_typha_is_named_by_its_pod_and_node_as_far_as_they_are_known() {
        let mut worker = node("n1", "z", "p", "Normal", &[]);
        worker["status"]["addresses"] = json!([{"type": "InternalIP", "address": "10.0.0.5"}]);
        let mut cluster = cluster(&[worker.clone()], &[]);
        let told = |cluster: &Cluster, address: &str| {
            let all = named(cluster, suspects(address));
            assert_eq!((&*all[1].value, all[1].sentence.contains('(')), (address, false), "only Typhas have a name");
            (all[0].value.clone(), all[0].sentence.clone())
        };
        let (value, sentence) = told(&cluster, "10.0.0.5");
        assert_eq!(value, "10.0.0.5 (on n1)");
        assert_eq!(sentence, "5 of 5 with Typha 10.0.0.5 (on n1) fail, 0 of 7 elsewhere");
        let pod = json!({"metadata": {"name": "calico-typha-x", "namespace": "calico-system", "labels": {"k8s-app": "calico-typha"}},
            "spec": {"nodeName": "n1"}});
        let pod = serde_json::from_value(pod).expect("a Pod");
        cluster.surroundings.take(What::CalicoPods, Change::Here(pod), at(0));
        assert_eq!(told(&cluster, "10.0.0.5").0, "10.0.0.5 (calico-system/calico-typha-x on n1)");
        assert_eq!(told(&cluster, "10.0.0.9").0, "10.0.0.9", "nobody knows whose it is");
        worker["status"]["addresses"] = json!([]);
        apply(&mut cluster, &worker);
        assert_eq!(told(&cluster, "10.0.0.5").0, "10.0.0.5");
    }
}
