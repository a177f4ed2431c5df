//! The cluster's DNS, if nobody answers for it (catalogue R131). What a node's packet filter makes of its Service is told by that
//! node's agent. Pure.

use jiff::Timestamp;

use super::{Draft, lasts};
use crate::aggregator::cluster::Cluster;
use crate::checks::Area;
use crate::checks::Severity::Warning;
use crate::facts::utc;

/// A Pod of CoreDNS that is started anew is Ready in less time, in seconds.
const LASTS: i64 = 60;

/// Nobody is Ready behind a Service of the cluster's DNS.
pub(super) fn unanswered(cluster: &Cluster, now: Timestamp) -> Option<Draft> {
    // Without a node that is Ready no Pod is, and that is told for what it is.
    if !cluster.nodes().any(|(_, row)| row.is_ready()) {
        return None;
    }
    let silent = cluster.surroundings.silent_dns().filter(|(_, since)| lasts(Some(*since), LASTS, now));
    let (service, since) = silent.min_by_key(|(_, since)| *since)?;
    let (namespace, name) = (&service.namespace, &service.name);
    let addresses: Vec<String> = service.cluster_ips.iter().map(ToString::to_string).collect();
    let detail = format!(
        "nobody answers for the cluster's DNS, Service {namespace}/{name} ({}): none of its Pods has been Ready since {}; what is looked up by name is not found, in the cluster and outside of it",
        addresses.join(", "),
        utc(since)
    );
    let next = format!(
        "`kubectl -n {namespace} get pods -l k8s-app=kube-dns -o wide`: if there are none, look at their Deployment (scaled to 0?) and for webhooks that keep Pods from being made; if they are Pending, at taints and room; else at their log and at the findings of the workers that they are on"
    );
    let mut draft = Draft::new("ClusterDnsUnreachable", Warning, detail, next).since(Some(since));
    draft.area = Area::PacketFilter;
    Some(draft.about(format!("Service {namespace}/{name}")).object("Service", namespace, name))
}

#[cfg(test)]
mod tests {
    use serde_json::{Value, json};

    use super::super::calico::tests::list;
    use super::*;
    use crate::aggregator::surroundings::What;
    use crate::aggregator::testing::{apply, at, cluster, node, silent};
    use crate::aggregator::watch::{Change, NotThere};

    fn service(name: &str, port: u16) -> Value {
        json!({"metadata": {"name": name, "namespace": "kube-system"},
            "spec": {"clusterIPs": ["10.96.0.10"], "ports": [{"name": "dns", "port": port, "protocol": "UDP"}]}})
    }

    /// Where it leads: to Pods that are Ready, or not.
    fn slice(service: &str, ready: &[bool]) -> Value {
        let endpoints = ready
            .iter()
            .enumerate()
            .map(|(number, ready)| json!({"addresses": [format!("10.1.0.{number}")], "conditions": {"ready": ready}}));
        json!({"metadata": {"name": format!("{service}-x"), "namespace": "kube-system", "labels": {"kubernetes.io/service-name": service}},
            "ports": [{"name": "dns", "port": 53, "protocol": "UDP"}], "endpoints": endpoints.collect::<Vec<_>>()})
    }

    /// One worker, and a Service that leads there.
    fn planted(slices: &[Value]) -> Cluster {
        let mut cluster = cluster(&[node("n1", "a", "p", "Normal", &[])], &[]);
        list(&mut cluster, What::DnsServices, &[service("kube-dns", 53)], -600);
        list(&mut cluster, What::DnsSlices, slices, -600);
        cluster
    }

    fn leads(cluster: &mut Cluster, ready: &[bool], when: i64) {
        let object = serde_json::from_value(slice("kube-dns", ready)).expect("an object");
        cluster.surroundings.take(What::DnsSlices, Change::Here(object), at(when));
    }

    #[test]
    fn nobody_answers_is_told_and_clears() {
        let mut cluster = planted(&[slice("kube-dns", &[true, true])]);
        leads(&mut cluster, &[false, true], 0);
        leads(&mut cluster, &[false, false], 5);
        // Said again, it does not begin anew.
        leads(&mut cluster, &[false], 40);
        assert!(unanswered(&cluster, at(5 + LASTS - 1)).is_none(), "it may be started anew");
        let draft = unanswered(&cluster, at(5 + LASTS)).expect("told");
        assert_eq!((draft.code, draft.severity, draft.since), ("ClusterDnsUnreachable", Warning, Some(at(5))));
        let begins = "nobody answers for the cluster's DNS, Service kube-system/kube-dns (10.96.0.10): none of its Pods has been Ready since 2026-11-21T10:00:05Z";
        assert!(draft.detail.starts_with(begins), "{}", draft.detail);
        assert!(draft.next.starts_with("`kubectl -n kube-system get pods -l k8s-app=kube-dns"), "{}", draft.next);
        assert_eq!(&*draft.object, "Service kube-system/kube-dns");
        leads(&mut cluster, &[false, true], 90);
        assert!(unanswered(&cluster, at(900)).is_none(), "one is Ready");
        leads(&mut cluster, &[], 900);
        assert!(unanswered(&cluster, at(901)).is_none(), "it begins anew");
    }

    #[test]
    fn healthy_and_without_such_a_service_nothing_is_told() {
        assert!(unanswered(&planted(&[slice("kube-dns", &[true])]), at(900)).is_none());
        let mut cluster = planted(&[slice("kube-dns", &[])]);
        assert!(unanswered(&cluster, at(900)).is_some());
        list(&mut cluster, What::DnsServices, &[], 900);
        assert!(unanswered(&cluster, at(1_800)).is_none(), "its owner has another one, elsewhere");
    }

    #[test]
    fn trap_a_service_that_is_led_by_hand_or_is_no_resolver() {
        assert!(unanswered(&planted(&[]), at(900)).is_none(), "its slices need not carry the label");
        let mut cluster = planted(&[slice("kube-dns", &[true]), slice("coredns-metrics", &[])]);
        list(&mut cluster, What::DnsServices, &[service("kube-dns", 53), service("coredns-metrics", 9153)], -600);
        assert!(unanswered(&cluster, at(900)).is_none());
    }

    #[test]
    fn trap_where_no_node_is_ready_no_pod_is() {
        let mut cluster = planted(&[slice("kube-dns", &[false])]);
        let away = silent(node("n1", "a", "p", "Normal", &[]));
        apply(&mut cluster, &away);
        assert!(unanswered(&cluster, at(900)).is_none());
    }

    #[test]
    fn unknown_where_it_cannot_be_looked_at() {
        for what in [What::DnsServices, What::DnsSlices] {
            let mut cluster = planted(&[slice("kube-dns", &[false])]);
            cluster.surroundings.take(what, Change::NotThere(NotThere::Denied), at(0));
            assert!(unanswered(&cluster, at(900)).is_none(), "{what:?}");
            let unseen = super::super::unseen(&cluster, at(900));
            assert_eq!(unseen[0].codes, ["ClusterDnsUnreachable"], "{what:?}");
        }
    }
}
