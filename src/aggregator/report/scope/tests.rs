//! Who counts, how much that is, and which remedy follows.

use serde_json::{Value, json};

use super::*;
use crate::aggregator::report::{Agents, ClusterReport, Source, build};
use crate::aggregator::testing::{agent, at, cluster, moment, node, silent};

const CHAINS: (&str, &str, &str, &str) =
    ("KubeProxyChainsMissing", "critical", "packetFilter", "KUBE-SERVICES is gone");

/// So many workers in two zones, of which the first so many fail; the failing are in zone a.
fn workers(count: usize, failing: usize) -> Vec<Value> {
    let worker = |number: usize| {
        let zone = if number < count / 3 { "a" } else { "b" };
        let name = format!("n{number:03}");
        if number < failing {
            node(&name, zone, "p", "Critical", &[CHAINS])
        } else {
            node(&name, zone, "p", "Normal", &[])
        }
    };
    (0..count).map(worker).collect()
}

fn report(nodes: &[Value]) -> ClusterReport {
    let name = |node: &Value| node["metadata"]["name"].as_str().expect("a name").to_owned();
    let agents: Vec<Value> = nodes.iter().map(|node| agent(&format!("a-{}", name(node)), &name(node), true)).collect();
    build(&cluster(nodes, &agents), Agents::Once, Source::Aggregator, None, moment(0))
}

fn counts(nodes: &[Value]) -> (usize, usize, usize, Scope) {
    let finding = report(nodes).findings.into_iter().find(|finding| finding.code == CHAINS.0).expect("the finding");
    (finding.nodes, finding.counted, finding.eligible, finding.scope)
}

#[test]
fn a_few_workers_keep_their_own_remedy_and_many_never_do() {
    for (failing, scope, word) in [
        (2, Scope::Few, ""),
        (12, Scope::Subset, "one by one: suspect zone a"),
        (24, Scope::Most, "do not cordon"),
        (30, Scope::All, "do not cordon"),
    ] {
        let report = report(&workers(30, failing));
        let (finding, worst) = (&report.findings[0], &report.nodes[0]);
        assert_eq!((finding.scope, finding.nodes, finding.counted, finding.eligible), (scope, failing, failing, 30));
        let next = worst.next.as_deref().expect("a next step");
        if scope == Scope::Few {
            assert_eq!((next, &finding.next), ("do what helps against KubeProxyChainsMissing", &None));
            continue;
        }
        assert!(next.contains(word) && next.starts_with(&format!("{failing} of 30 workers")), "{failing}: {next}");
        assert!(
            !report.nodes.iter().any(|node| node.next.as_deref().is_some_and(|next| next.starts_with("do what helps")))
        );
        // What the agent said is still there, for who looks at one worker.
        assert_eq!(worst.findings[0].next, "do what helps against KubeProxyChainsMissing");
    }
}

#[test]
fn clocks_of_all_workers_that_differ_from_the_api_servers_are_the_api_servers_fault() {
    let skewed = ("ClockSkewed", "warning", "integrity", "This node's clock is 12 s ahead of the control plane's");
    let next = |wrong: usize| {
        let of = |number| if number < wrong { [skewed].to_vec() } else { Vec::new() };
        let worker = |number: usize| node(&format!("n{number}"), "a", "p", "Warning", &of(number));
        let nodes: Vec<Value> = (0..10).map(worker).collect();
        report(&nodes).nodes.into_iter().find_map(|node| node.next).expect("a next step")
    };
    let all = next(10);
    assert!(all.starts_with("10 of 10 workers have this: do not cordon, drain, reboot or reload"), "{all}");
    assert!(all.contains("it is the API server's clock that is wrong") && all.contains("chronyc tracking"), "{all}");
    assert_eq!(next(1), "do what helps against ClockSkewed", "one clock alone is the worker's own");
}

#[test]
fn the_first_failure_is_told_and_what_the_workers_share() {
    let report = report(&workers(30, 10));
    let finding = &report.findings[0];
    assert_eq!((finding.since, finding.shared.as_deref()), (Some(at(-300)), Some("zone a")));
    assert_eq!(finding.suspects[0].sentence, "10 of 10 in zone a fail, 0 of 20 elsewhere");
    assert!(
        finding.next.as_deref().is_some_and(|next| next.contains("before 2026-11-21T09:55:00Z")),
        "{:?}",
        finding.next
    );
}

fn cordoned(node: &mut Value, since: Option<i64>) {
    let taint = json!({"key": "node.kubernetes.io/unschedulable", "effect": "NoSchedule", "timeAdded": since.map(at)});
    node["spec"] = json!({"unschedulable": true, "taints": [taint]});
}

#[test]
fn workers_in_maintenance_do_not_count_and_those_cordoned_for_it_do() {
    let mut nodes = workers(20, 8);
    cordoned(&mut nodes[0], Some(-600));
    cordoned(&mut nodes[1], None);
    cordoned(&mut nodes[2], Some(-100));
    cordoned(&mut nodes[19], Some(-600));
    assert_eq!(counts(&nodes), (8, 6, 17, Scope::Subset));
    for node in &mut nodes[..8] {
        cordoned(node, Some(-600));
    }
    assert_eq!(counts(&nodes), (8, 0, 11, Scope::None));
}

#[test]
fn duplicates_and_workers_that_go_or_are_not_seen_do_not_count() {
    let mut nodes = workers(20, 8);
    // The same worker before it was reloaded, under its public address.
    nodes[0]["metadata"]["name"] = "169.1.2.3".into();
    nodes[0]["status"]["conditions"][0]["status"] = "False".into();
    nodes[19]["status"]["addresses"] = json!([{"type": "ExternalIP", "address": "169.1.2.3"}]);
    nodes[1]["metadata"]["deletionTimestamp"] = at(-5).to_string().into();
    nodes[18] = silent(nodes[18].clone());
    assert_eq!(counts(&nodes), (7, 6, 17, Scope::Subset));
}

#[test]
fn what_follows_from_something_else_does_not_count() {
    let mut nodes = workers(20, 8);
    for node in &mut nodes[..5] {
        let findings = node["metadata"]["annotations"]["nodevitals.dev/findings"].as_str().expect("findings");
        let mut findings: Value = serde_json::from_str(findings).expect("JSON");
        findings[0]["causedBy"] = json!({"code": "KubeProxyDown", "subject": "kube-proxy"});
        node["metadata"]["annotations"]["nodevitals.dev/findings"] = findings.to_string().into();
    }
    assert_eq!(counts(&nodes), (8, 3, 20, Scope::Subset));
}

#[test]
fn one_of_two_and_the_only_one_are_a_few_and_two_of_two_are_all() {
    for (all, failing, scope) in [(1, 1, Scope::Few), (2, 1, Scope::Few), (3, 2, Scope::Few), (2, 2, Scope::All)] {
        let nodes = workers(all, failing);
        assert_eq!(counts(&nodes).3, scope, "{failing} of {all}");
        let next = report(&nodes).nodes[0].next.clone().expect("a next step");
        let starts = if scope == Scope::All { "2 of 2 workers have this: do not cordon" } else { "do what helps" };
        assert!(next.starts_with(starts), "{failing} of {all}: {next}");
    }
    assert_eq!(counts(&workers(3, 3)).3, Scope::All);
}

#[test]
fn the_last_worker_that_takes_pods_is_not_taken_away_before_there_is_another() {
    let draining = |name: &str| {
        let mut node = node(name, "a", "p", "Critical", &[("KernelOops", "critical", "integrity", "it happened")]);
        let findings = node["metadata"]["annotations"]["nodevitals.dev/findings"].as_str().expect("findings");
        let findings = findings.replace("do what helps against KernelOops", "drain the node and reboot it");
        node["metadata"]["annotations"]["nodevitals.dev/findings"] = findings.into();
        node
    };
    let next = |others: &[Value]| {
        let nodes: Vec<Value> = [draining("n0")].into_iter().chain(others.iter().cloned()).collect();
        let report = report(&nodes);
        assert_eq!(report.nodes[0].findings[0].next, "drain the node and reboot it", "its agent's own words");
        report.nodes[0].next.clone().expect("a next step")
    };
    let well = |name: &str| node(name, "a", "p", "Normal", &[]);
    let warned = "add or uncordon a worker before this one is drained, rebooted or taken away, since no other takes Pods: \
        drain the node and reboot it";
    assert_eq!(next(&[]), warned);
    assert_eq!(next(&[well("n1")]), "drain the node and reboot it");
    let mut closed = well("n1");
    cordoned(&mut closed, Some(-600));
    assert_eq!(next(&[closed]), warned);
    assert_eq!(next(&[silent(well("n1"))]), warned);
    let mut control = well("n1");
    control["spec"] = json!({"taints": [{"key": "node-role.kubernetes.io/control-plane", "effect": "NoSchedule"}]});
    assert_eq!(next(&[control]), warned);
    // What takes no worker away needs no other; and of a Node that does not say whether it is Ready nothing is known.
    assert_eq!(report(&workers(1, 1)).nodes[0].next.as_deref(), Some("do what helps against KubeProxyChainsMissing"));
    let mut unsaid = well("n1");
    unsaid["status"]["conditions"].as_array_mut().expect("conditions").remove(0);
    assert_eq!(next(&[unsaid]), "drain the node and reboot it");
}

#[test]
fn that_agents_are_gone_is_counted_and_compared_too() {
    let mut nodes = workers(30, 0);
    for node in &mut nodes[..10] {
        *node = silent(node.clone());
    }
    let report = report(&nodes);
    let finding = &report.findings[0];
    assert_eq!((finding.code.as_str(), finding.scope, finding.eligible), ("AgentStale", Scope::Subset, 30));
    assert_eq!(finding.shared.as_deref(), Some("zone a"));
}

#[test]
fn when_all_is_well_nothing_is_counted() {
    assert!(report(&workers(30, 0)).findings.is_empty());
}

#[test]
fn a_large_cluster_is_counted() {
    let nodes = workers(2_000, 500);
    let report = report(&nodes);
    assert_eq!((report.findings[0].nodes, report.findings[0].shared.as_deref()), (500, Some("zone a")));
}
