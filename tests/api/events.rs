//! Events on transitions, as `kubectl describe node` shows them.

use std::thread::sleep;
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use serde_json::{Value, json};

use crate::agent::{jump, packet_filter, worker_with_chains};
use crate::bench::{AGENT, Bench, SOON, soon};
use crate::inventory::{GROUP, Planted, WEBHOOKS, webhooks};
use crate::map::object;
use crate::support::wait;

const CODE: &str = "KubeProxyChainsUnhooked";

/// Events of a code about a Node, by the selector that `kubectl describe node` uses (its UID first, then its name), oldest
/// first.
pub(crate) fn events(bench: &Bench, node: &str, code: &str) -> Result<Vec<Value>> {
    let uid = bench.node(node)?["metadata"]["uid"].as_str().context("a UID")?.to_owned();
    let selector = format!("involvedObject.kind=Node,involvedObject.name={node},involvedObject.uid={uid}");
    let selector = selector.replace('=', "%3D").replace(',', "%2C");
    let mut events = bench.list(&format!("/api/v1/events?fieldSelector={selector}"))?;
    events.retain(|event| event["reason"] == code);
    events.sort_by_key(|event| event["firstTimestamp"].to_string());
    Ok(events)
}

fn counted(bench: &Bench, node: &str, kind: &str, least: u64) -> Result<Value> {
    let all = events(bench, node, CODE)?;
    let found = all.iter().find(|event| event["type"] == kind && event["count"].as_u64() >= Some(least));
    found.cloned().with_context(|| format!("no {kind} told {least} times among {all:#?}"))
}

fn writes_of_events(bench: &Bench) -> Result<usize> {
    Ok(bench.writes_by(AGENT)?.iter().filter(|write| write["objectRef"]["resource"] == "events").count())
}

#[test]
fn what_begins_and_what_is_over_is_an_event_and_flapping_is_one_that_counts() -> Result<()> {
    let bench = Bench::take()?;
    worker_with_chains(&bench, "e1")?;
    let agent = bench.agent("e1", "agent-e1", &[])?;
    soon("the conditions", || packet_filter(&bench, "e1", "False", "PacketFilterHealthy"));
    jump(&bench, "-D")?;
    soon("the jump is missed", || packet_filter(&bench, "e1", "True", CODE));
    let begun = soon("an Event tells it", || counted(&bench, "e1", "Warning", 1));
    let message = begun["message"].as_str().context("a message")?;
    assert!(message.contains("nat OUTPUT -> KUBE-SERVICES") && message.contains(" Next: "), "{message}");
    assert_eq!(begun["source"], json!({"component": "nodevitals-agent", "host": "e1"}));
    assert_eq!(begun["reportingComponent"], "nodevitals-agent");
    let described = bench.kubectl(&["describe", "node", "e1"])?;
    let (_, shown) = described.split_once("\nEvents:").context("Events")?;
    assert!(shown.contains(CODE) && shown.contains("nodevitals-agent"), "{shown}");

    // A restart while it lasts tells nothing again.
    let writes = writes_of_events(&bench)?;
    agent.end()?;
    drop(agent);
    let agent = bench.agent("e1", "agent-e1", &[])?;
    soon("the first look", || agent.page("/readyz"));
    // A bounded wait, since what is shown is that nothing happens.
    sleep(Duration::from_secs(15));
    assert_eq!(writes_of_events(&bench)?, writes);
    agent.said("finding goes on")?;
    let log = agent.log()?;
    let raised: Vec<&Value> = log.iter().skip_while(|line| !line.to_string().contains("finding goes on")).collect();
    ensure!(!raised.iter().any(|line| line.to_string().contains("finding raised")), "{raised:#?}");

    jump(&bench, "-A")?;
    let over = soon("an Event tells that it is over", || counted(&bench, "e1", "Normal", 1));
    assert!(over["message"].as_str().is_some_and(|text| text.contains("is over; it was there since")), "{over}");

    for _ in 0..3 {
        jump(&bench, "-D")?;
        soon("the jump is missed", || packet_filter(&bench, "e1", "True", CODE));
        jump(&bench, "-A")?;
        soon("it is back", || packet_filter(&bench, "e1", "False", "PacketFilterHealthy"));
    }
    // The agent that was started anew does not know of the Event before: it makes one of its own, and counts on that.
    soon("they are counted", || counted(&bench, "e1", "Warning", 3));
    soon("their ends too", || counted(&bench, "e1", "Normal", 4));
    let all = events(&bench, "e1", CODE)?;
    assert_eq!(all.len(), 3, "{all:#?}");
    let metrics = agent.check_metrics()?;
    ensure!(metrics.contains("nodevitals_events_dropped_total 0"), "{metrics}");
    Ok(())
}

#[test]
fn they_can_be_turned_off() -> Result<()> {
    let bench = Bench::take()?;
    worker_with_chains(&bench, "e2")?;
    let config = bench.config("no-events", "events: {perHour: 0}\n")?;
    let _agent = bench.agent("e2", "agent-e2", &["--config", &config])?;
    soon("the conditions", || packet_filter(&bench, "e2", "False", "PacketFilterHealthy"));
    let writes = writes_of_events(&bench)?;
    jump(&bench, "-D")?;
    soon("the jump is missed", || packet_filter(&bench, "e2", "True", CODE));
    // Longer than an agent that does not know how large its cluster is waits for its first.
    sleep(Duration::from_secs(12));
    assert_eq!(writes_of_events(&bench)?, writes);
    jump(&bench, "-A")
}

/// What is wrong with each of these, and the kind and name of what its Event is about.
const ABOUT: [(&str, &str, &str); 8] = [
    ("CalicoKubeControllersMissing", "Deployment", "calico-kube-controllers"),
    ("CalicoNodeFailingOnNode", "DaemonSet", "calico-node"),
    ("CalicoNodeFailingOnNode", "Node", "e3"),
    ("ClusterIpPoolExhausted", "IPPool", "default-ipv4-ippool"),
    ("CalicoConfigDrift", "FelixConfiguration", "default"),
    ("WebhookRisk", "ValidatingWebhookConfiguration", "guard"),
    ("ClusterDnsUnreachable", "Service", "dns-e3"),
    ("ControlTunnelDown", "Lease", "nodevitals-aggregator"),
];
const SYSTEM: &str = "namespaces/kube-system";

/// What is planted in kube-system, until this is dropped.
struct System<'a>(&'a Bench);

impl Drop for System<'_> {
    fn drop(&mut self) {
        let apps = format!("/apis/apps/v1/{SYSTEM}");
        for path in [
            format!("{apps}/deployments/calico-kube-controllers"),
            format!("{apps}/daemonsets/calico-node"),
            format!("/api/v1/{SYSTEM}/services/dns-e3"),
            format!("/apis/discovery.k8s.io/v1/{SYSTEM}/endpointslices/dns-e3"),
        ] {
            // It may not have been made.
            let _ = self.0.admin(&format!("DELETE {path}"), &Value::Null);
        }
    }
}

/// All of it is wrong, for a short time.
fn plant_what_events_are_about(bench: &Bench) -> Result<()> {
    let long_ago =
        (jiff::Timestamp::now() - jiff::SignedDuration::from_mins(5)).strftime("%Y-%m-%dT%H:%M:%SZ").to_string();
    let workload = |kind: &str, name: &str, more: Value| {
        let labels = json!({"k8s-app": name});
        let mut object = json!({"apiVersion": "apps/v1", "kind": kind, "metadata": {"name": name}, "spec": {
            "selector": {"matchLabels": labels}, "template": {"metadata": {"labels": labels},
                "spec": {"containers": [{"name": "c", "image": "x"}]}}}});
        object["spec"].as_object_mut().expect("an object").extend(more.as_object().cloned().unwrap_or_default());
        bench.admin(&format!("POST /apis/apps/v1/{SYSTEM}/{}s", kind.to_lowercase()), &object)
    };
    workload("Deployment", "calico-kube-controllers", json!({"replicas": 0}))?;
    workload("DaemonSet", "calico-node", json!({}))?;
    bench.add_calico_node("calico-node-e3", "kube-system", "e3", true)?;
    let tunnel = json!({"apiVersion": "v1", "kind": "Pod", "metadata": {"name": "vpn-e4", "labels": {"app": "vpn"}},
        "spec": {"nodeName": "e4", "serviceAccountName": "calico-node", "containers": [{"name": "c", "image": "x"}]}});
    bench.admin(&format!("POST /api/v1/{SYSTEM}/pods"), &tunnel)?;
    for pod in ["calico-node-e3", "vpn-e4"] {
        let ready = json!({"type": "Ready", "status": "False", "lastTransitionTime": long_ago});
        let status = json!({"status": {"phase": "Running", "conditions": [ready]}});
        bench.admin(&format!("PATCH strategic /api/v1/{SYSTEM}/pods/{pod}/status"), &status)?;
    }
    let ports = json!([{"name": "dns", "port": 53, "protocol": "UDP"}]);
    let labels = json!({"k8s-app": "kube-dns", "kubernetes.io/service-name": "dns-e3"});
    let meta = json!({"name": "dns-e3", "namespace": "kube-system", "labels": labels});
    let pool = object("IPPool", "default-ipv4-ippool", &json!({"cidr": "172.30.0.0/30", "blockSize": 30}));
    let items = json!([
        {"apiVersion": "v1", "kind": "Service", "metadata": meta, "spec": {"ports": ports}},
        {"apiVersion": "discovery.k8s.io/v1", "kind": "EndpointSlice", "addressType": "IPv4", "metadata": meta, "ports": ports,
            "endpoints": [{"addresses": ["172.30.1.9"], "conditions": {"ready": false}}]},
        {"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": "guard"}},
        {"apiVersion": "v1", "kind": "Service", "metadata": {"name": "hook", "namespace": "guard"}, "spec": {"ports": [{"port": 443}]}},
        pool,
    ]);
    bench.apply(&json!({"apiVersion": "v1", "kind": "List", "items": items}).to_string())?;
    let mut felix = object("FelixConfiguration", "default", &json!({"bpfEnabled": true}));
    felix["metadata"]["annotations"] = json!({"created-by": "IBMCloudKubernetesService"});
    bench.admin(&format!("POST {GROUP}/felixconfigurations?fieldManager=kubectl-edit"), &felix)?;
    // From now on no Pod of the system can be made.
    bench.admin(&format!("POST {WEBHOOKS}"), &webhooks()).map(drop)
}

/// An Event about a finding of the cluster is on the object that it names, in that one's namespace, by its UID; and on a worker;
/// where there is neither, on the Lease of who tells it.
#[test]
fn what_is_wrong_with_the_cluster_is_told_on_what_it_is_about() -> Result<()> {
    let bench = Bench::take()?;
    let planted = Planted::kinds(&bench)?;
    bench.add_worker("e3", &json!({}))?;
    bench.add_worker("e4", &json!({}))?;
    planted.block(0, "e3", 4)?;
    bench.add_pod("aggregator-e3", "aggregator", "e4")?;
    let _system = System(&bench);
    plant_what_events_are_about(&bench)?;
    let limits = bench.config("events", "cluster: {routineSeconds: 10}\n")?;
    let aggregator = bench.aggregator_with("aggregator-e3", &["--config", &limits])?;
    soon("it is ready", || aggregator.page("/readyz"));
    let of_it = |all: &[Value], (code, kind, name): (&str, &str, &str)| {
        let about = |event: &&Value| {
            let object = &event["involvedObject"];
            event["reason"] == code && object["kind"] == kind && object["name"] == name
        };
        all.iter().find(about).cloned()
    };
    let all = wait::eventually("an Event about each", 6 * SOON, || {
        let all = bench.list("/api/v1/events")?;
        let missing: Vec<_> = ABOUT.into_iter().filter(|about| of_it(&all, *about).is_none()).collect();
        ensure!(missing.is_empty(), "none of {missing:?} in {all:#?}");
        Ok(all)
    });
    for about in ABOUT {
        let event = of_it(&all, about).context("just found")?;
        let object = &event["involvedObject"];
        let namespace = object["namespace"].as_str().unwrap_or_default();
        let expected = if namespace.is_empty() { "default" } else { namespace };
        assert_eq!(
            (&event["type"], &event["metadata"]["namespace"]),
            (&json!("Warning"), &json!(expected)),
            "{event:#}"
        );
        let version = object["apiVersion"].as_str().context("a version")?;
        let plural =
            if about.1 == "FelixConfiguration" { "felixconfigurations".into() } else { about.1.to_lowercase() + "s" };
        let api = if version.contains('/') { format!("/apis/{version}") } else { format!("/api/{version}") };
        let below = if namespace.is_empty() { String::new() } else { format!("/namespaces/{namespace}") };
        let there = bench.admin(&format!("GET {api}{below}/{plural}/{}", about.2), &Value::Null)?;
        assert_eq!(object["uid"], there["metadata"]["uid"], "{event:#}");
    }
    let told = of_it(&all, ABOUT[0]).context("just found")?;
    let message = told["message"].as_str().context("a message")?;
    assert!(message.contains("is scaled to 0") && message.contains("Next: scale it to 1"), "{message}");
    Ok(())
}
