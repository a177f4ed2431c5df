//! Events on transitions, as `kubectl describe node` shows them.

use std::thread::sleep;
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use serde_json::{Value, json};

use crate::agent::{jump, packet_filter, worker_with_chains};
use crate::bench::{AGENT, Bench, SOON, soon};
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

/// An Event about a finding of the cluster is on the object that it names, in that one's namespace, by its UID.
#[test]
fn what_is_wrong_with_a_deployment_of_calico_is_told_on_it() -> Result<()> {
    const DEPLOYMENTS: &str = "/apis/apps/v1/namespaces/kube-system/deployments";
    const NAME: &str = "calico-kube-controllers";
    let bench = Bench::take()?;
    bench.add_worker("e3", &json!({}))?;
    let labels = json!({"k8s-app": NAME});
    let deployment = json!({"apiVersion": "apps/v1", "kind": "Deployment", "metadata": {"name": NAME}, "spec": {
        "replicas": 0, "selector": {"matchLabels": labels}, "template": {"metadata": {"labels": labels},
            "spec": {"containers": [{"name": "c", "image": "x"}]}}}});
    let made = bench.admin(&format!("POST {DEPLOYMENTS}"), &deployment)?;
    bench.add_pod("aggregator-e3", "aggregator", "e3")?;
    let aggregator = bench.aggregator("aggregator-e3")?;
    soon("it is ready", || aggregator.page("/readyz"));
    let told = wait::eventually("an Event about the Deployment", 3 * SOON, || {
        let all = bench.list("/api/v1/namespaces/kube-system/events")?;
        let of_it = all.iter().find(|event| event["involvedObject"]["uid"] == made["metadata"]["uid"]);
        of_it.cloned().with_context(|| format!("{all:#?}"))
    });
    bench.admin(&format!("DELETE {DEPLOYMENTS}/{NAME}"), &Value::Null)?;
    assert_eq!((&told["reason"], &told["type"]), (&json!("CalicoKubeControllersMissing"), &json!("Warning")));
    assert_eq!(told["involvedObject"]["kind"], "Deployment");
    let message = told["message"].as_str().context("a message")?;
    assert!(message.contains("is scaled to 0") && message.contains("Next: scale it to 1"), "{message}");
    Ok(())
}
