//! From rows to what people are told.

use super::*;
use crate::aggregator::cluster::Cluster;
use crate::aggregator::stale::Watchdog;
use crate::aggregator::testing::{agent, at, bare, cluster, marked, moment, node, silent};

const DISK: (&str, &str, &str, &str) = ("DiskPressureImminent", "warning", "capacity", "5 % left on /var");
const CHAINS: (&str, &str, &str, &str) =
    ("KubeProxyChainsMissing", "critical", "packetFilter", "KUBE-SERVICES is gone");

fn report(cluster: &Cluster) -> ClusterReport {
    build(cluster, Agents::Once, Source::Aggregator, None, moment(0))
}

fn states(report: &ClusterReport) -> Vec<(&str, &str, &str)> {
    report
        .nodes
        .iter()
        .map(|node| (node.name.as_str(), node.state.as_str(), node.reason.as_deref().unwrap_or("")))
        .collect()
}

#[test]
fn the_worst_come_first_and_each_state_has_its_reason() {
    let mut going = node("going", "z1", "p", "Critical", &[CHAINS]);
    going["metadata"]["deletionTimestamp"] = at(-10).to_string().into();
    let names = ["normal", "warning", "critical", "settling", "marked", "back", "never"];
    let agents: Vec<_> = names
        .iter()
        .filter(|name| **name != "marked")
        .chain(&["going"])
        .map(|name| agent(&format!("agent-{name}"), name, true))
        .collect();
    let cluster = cluster(
        &[
            node("normal", "z1", "p", "Normal", &[]),
            node("warning", "z2", "p", "Warning", &[DISK]),
            node("critical", "z1", "p", "Critical", &[CHAINS, DISK]),
            node("settling", "z1", "p", "Unknown", &[]),
            marked(node("marked", "z2", "p", "Critical", &[CHAINS])),
            marked(node("back", "z2", "p", "Normal", &[])),
            bare("never"),
            going,
        ],
        &agents,
    );
    let report = report(&cluster);
    assert_eq!(
        states(&report),
        [
            ("critical", "Critical", "KubeProxyChainsMissing"),
            ("warning", "Warning", "DiskPressureImminent"),
            ("settling", "Unknown", "WorkerSettling"),
            ("never", "Unknown", "NoAgentReport"),
            ("back", "Unknown", "AgentStale"),
            ("marked", "Unknown", "AgentStale"),
            ("normal", "Normal", ""),
            ("going", "Critical", "KubeProxyChainsMissing"),
        ]
    );
    assert_eq!(
        report.summary,
        "6 of 7 workers need attention: 1 Critical, 1 Warning, 4 Unknown (2 settling); 1 Normal; 1 being deleted."
    );
    assert_eq!(
        report.workers,
        Counts { total: 7, critical: 1, warning: 1, unknown: 4, normal: 1, settling: 2, deleting: 1 }
    );
    assert_eq!(
        report.zones.iter().map(|zone| (zone.name.as_str(), zone.workers.total)).collect::<Vec<_>>(),
        [("", 1), ("z1", 3), ("z2", 3)]
    );
    // What the agent that is gone said last, and what is on a node that goes, does not count; that it is gone does.
    let findings: Vec<_> = report.findings.iter().map(|finding| (finding.code.as_str(), finding.nodes)).collect();
    assert_eq!(findings, [("KubeProxyChainsMissing", 1), ("DiskPressureImminent", 2), ("AgentStale", 2)]);
    let critical = &report.nodes[0];
    assert_eq!(critical.detail.as_deref(), Some("KUBE-SERVICES is gone"));
    assert_eq!(critical.next.as_deref(), Some("do what helps against KubeProxyChainsMissing"));
    assert_eq!(critical.since, Some(at(-300)));
    assert_eq!(report.nodes[5].since, Some(at(-30)), "since the mark, not since what was before");
    assert_eq!(report.nodes[5].agent.state, AgentState::Missing);
}

#[test]
fn a_silent_kubelet_makes_unknown_unless_the_agent_says_that_it_is_down() {
    let down = ("KubeletDown", "critical", "controlPlanePath", "no kubelet runs");
    let cluster = cluster(
        &[silent(node("lost", "z", "p", "Normal", &[])), silent(node("explained", "z", "p", "Critical", &[down]))],
        &[agent("a", "lost", true), agent("b", "explained", true)],
    );
    let report = report(&cluster);
    assert_eq!(states(&report), [("explained", "Critical", "KubeletDown"), ("lost", "Unknown", "AgentStale")]);
    assert_eq!(report.nodes[1].agent.state, AgentState::KubeletSilent);
    assert_eq!(report.nodes[1].agent.since, Some(at(-120)));
}

#[test]
fn within_the_grace_an_agent_is_late_and_what_it_said_counts() {
    let cluster = cluster(&[node("n", "z", "p", "Normal", &[])], &[agent("a", "n", false)]);
    let mut watchdog = Watchdog::default();
    watchdog.step(&cluster, moment(0));
    let of = |seconds| {
        build(&cluster, Agents::Watched(&watchdog), Source::Aggregator, None, moment(seconds)).nodes.remove(0)
    };
    assert_eq!((of(39).state, of(39).agent.state), (WorkerState::Normal, AgentState::Late));
    let gone = of(40);
    assert_eq!(
        (gone.state, gone.reason.as_deref(), gone.agent.state),
        (WorkerState::Unknown, Some("AgentStale"), AgentState::Stale)
    );
}

#[test]
fn when_the_api_server_cannot_be_seen_nothing_is_said_about_any_worker() {
    let mut cluster =
        cluster(&[node("bad", "z", "p", "Critical", &[CHAINS]), node("good", "z", "p", "Normal", &[])], &[]);
    cluster.nodes_sight.lost(at(-31), "connection refused".into());
    let report = report(&cluster);
    assert_eq!(states(&report), [("bad", "Unknown", "CannotSeeCluster"), ("good", "Unknown", "CannotSeeCluster")]);
    assert!(report.findings.is_empty() && report.nodes[0].findings.is_empty() && report.nodes[0].detail.is_none());
    assert_eq!(
        report.summary,
        "Cannot see the cluster since 2026-11-21T09:59:29Z: connection refused. Nothing is known about its 2 workers."
    );
}

#[test]
fn a_short_loss_changes_nothing_and_lost_pods_are_said() {
    let mut cluster = cluster(&[node("bad", "z", "p", "Critical", &[CHAINS])], &[]);
    cluster.nodes_sight.lost(at(-20), "connection refused".into());
    cluster.agents_sight.as_mut().expect("watched").lost(at(-40), "pods is forbidden".into());
    let report = report(&cluster);
    assert_eq!(states(&report), [("bad", "Critical", "KubeProxyChainsMissing")]);
    assert_eq!(report.view.why.as_deref(), Some("cannot see the agents' Pods: pods is forbidden"));
    assert_eq!(report.nodes[0].agent.state, AgentState::NotSeen);
}

#[test]
fn before_the_first_list_is_complete_it_says_so() {
    let report = report(&Cluster::watched());
    assert_eq!(
        report.summary,
        "Cannot see the cluster: the first list of the nodes is not complete yet. Nothing is known about its 0 workers."
    );
    assert!(!report.view.complete);
}

#[test]
fn summaries_of_clusters_in_which_all_is_well() {
    let summary = |count: usize| {
        let nodes: Vec<_> = (0..count).map(|number| node(&format!("n{number}"), "z", "p", "Normal", &[])).collect();
        let agents: Vec<_> =
            (0..count).map(|number| agent(&format!("a{number}"), &format!("n{number}"), true)).collect();
        report(&cluster(&nodes, &agents)).summary
    };
    assert_eq!(
        [summary(0), summary(1), summary(3)],
        ["No workers.", "The only worker is Normal.", "All 3 workers are Normal."]
    );
}

#[test]
fn scope_follows_the_catalogue() {
    use Scope::{All, Few, Most, None, Subset};
    let cases = [(0, 9), (1, 1), (1, 2), (2, 2), (3, 3), (2, 3), (5, 50), (6, 50), (39, 50), (40, 50), (50, 50)];
    let scopes = cases.map(|(nodes, total)| Scope::of(nodes, total, &ClusterLimits::default()));
    assert_eq!(scopes, [None, Few, Few, All, All, Few, Few, Subset, Subset, Most, All]);
    let other = ClusterLimits { few_workers: 1, few_percent: 20, most_percent: 60, ..ClusterLimits::default() };
    let cases = [(1, 3), (2, 3), (10, 50), (11, 50), (30, 50)];
    assert_eq!(cases.map(|(nodes, total)| Scope::of(nodes, total, &other)), [Few, Most, Few, Subset, Most]);
}

#[test]
fn one_worker_comes_with_its_conditions_and_the_clusters_counts() {
    let cluster = cluster(&[node("a", "z", "p", "Critical", &[CHAINS]), node("b", "z", "p", "Normal", &[])], &[]);
    let one = build(&cluster, Agents::Once, Source::Aggregator, Some("b"), moment(0));
    assert_eq!((one.nodes.len(), one.nodes[0].conditions.len(), one.workers.total), (1, 8, 2));
    assert!(report(&cluster).nodes.iter().all(|node| node.conditions.is_empty()));
    assert!(build(&cluster, Agents::Once, Source::Aggregator, Some("x"), moment(0)).nodes.is_empty());
}

#[test]
fn json_survives_the_round_trip_and_names_itself_first() {
    let cluster = cluster(
        &[node("a", "z1", "p", "Critical", &[CHAINS]), silent(node("b", "z2", "p", "Normal", &[])), bare("c")],
        &[],
    );
    let report = report(&cluster);
    let json = serde_json::to_string(&report).expect("JSON");
    assert!(
        json.starts_with(
            r#"{"apiVersion":"nodevitals.dev/v1","kind":"ClusterReport","generatedAt":"2026-11-21T10:00:00Z""#
        ),
        "{json}"
    );
    assert_eq!(serde_json::from_str::<ClusterReport>(&json).expect("a report"), report);
}

#[test]
fn without_the_annotation_the_findings_and_the_roll_up_decide() {
    let mut cluster_nodes = [
        node("a", "z", "p", "Critical", &[CHAINS]),
        node("b", "z", "p", "Normal", &[]),
        node("c", "z", "p", "Warning", &[DISK]),
    ];
    for node in &mut cluster_nodes {
        node["metadata"]["annotations"].as_object_mut().expect("annotations").remove("nodevitals.dev/state");
    }
    cluster_nodes[2]["metadata"]["annotations"]["nodevitals.dev/findings"] = "damaged".into();
    let cluster = cluster(&cluster_nodes, &["a", "b", "c"].map(|name| agent(name, name, true)));
    assert_eq!(
        states(&report(&cluster)),
        [("a", "Critical", "KubeProxyChainsMissing"), ("c", "Warning", "DiskPressureImminent"), ("b", "Normal", "")]
    );
}

#[test]
fn what_is_over_is_told_of_one_worker_and_what_did_not_fit_is_counted() {
    let mut sick = node("a", "z", "p", "Warning", &[DISK]);
    let annotations = &mut sick["metadata"]["annotations"];
    let episode = |code: &str, hours: i64| serde_json::json!({"code": code, "since": at(-3600 * hours), "cleared": at(-3600 * hours + 60), "times": 2, "cure": "reboot"});
    let mut all: Vec<_> = (1..12).map(|hours| episode("DiskFull", hours)).collect();
    all.splice(
        1..1,
        [serde_json::json!({"code": "x".repeat(99), "since": at(0), "cleared": at(0)}), serde_json::json!(7)],
    );
    annotations["nodevitals.dev/episodes"] = serde_json::json!(all).to_string().into();
    let findings =
        annotations["nodevitals.dev/findings"].as_str().expect("text").replace("}]", r#"},{"truncated":3}]"#);
    annotations["nodevitals.dev/findings"] = findings.into();
    let cluster = cluster(&[sick, node("b", "z", "p", "Normal", &[])], &[agent("x", "a", true)]);
    let one = build(&cluster, Agents::Once, Source::Aggregator, Some("a"), moment(0)).nodes.remove(0);
    assert_eq!((one.findings.len(), one.more.map(std::num::NonZero::get)), (1, Some(3)));
    assert_eq!(one.episodes.len(), 6, "of the first eight two are nobody's");
    assert_eq!((&*one.episodes[0].code, one.episodes[0].cleared), ("DiskFull", at(-3540)));
    assert_eq!(one.episodes[0].cure, Some(crate::verdict::Cure::Reboot));
    let whole = report(&cluster);
    assert!(whole.nodes.iter().all(|node| node.episodes.is_empty()), "in the report of one worker only");
    assert_eq!((whole.nodes[0].more.map(std::num::NonZero::get), whole.nodes[1].more), (Some(3), None));
    for damaged in ["", "{}", "[7]", r#"[{"truncated":0}]"#, r#"{"truncated":-1}]"#, r#"{"truncated":99999999999}]"#] {
        assert_eq!(crate::aggregator::row::more(damaged), None, "{damaged}");
    }
}

#[test]
fn typhas_are_those_that_the_agent_saw_last() {
    let worker = || node("a", "z", "p", "Normal", &[]);
    let mut cluster = cluster(&[worker()], &[]);
    let typhas = |cluster: &Cluster| {
        let row = cluster.node("a").expect("it is there");
        let all = row.traits.numbers().filter_map(|number| cluster.values.get(number));
        all.filter(|(kind, _)| *kind == "Typha").map(|(_, text)| text.to_owned()).collect::<Vec<_>>()
    };
    cluster.agent_said("a", "node=a&boot=0&typha=10.0.0.7,10.0.0.5,?,fd00::7,10.0.0.5", at(0));
    crate::aggregator::testing::apply(&mut cluster, &worker());
    assert_eq!(typhas(&cluster), ["10.0.0.5", "10.0.0.7", "fd00::7"], "heartbeats change nothing");
    cluster.agent_said("a", "typha=10.0.0.1,10.0.0.2,10.0.0.3,10.0.0.4,10.0.0.5", at(60));
    assert_eq!(typhas(&cluster).len(), 4, "calico-node has no more parts");
    cluster.agent_said("a", "node=a&boot=0", at(120));
    assert!(typhas(&cluster).is_empty(), "it has no connection any more, or cannot look");
}

#[test]
fn what_agents_say_with_their_question_outlasts_heartbeats_and_is_known_from_before() {
    let worker = || node("a", "z", "p", "Normal", &[]);
    let mut cluster = cluster(&[worker()], &[]);
    let booted = at(-7200);
    let started = format!("{}.{}", at(-600).as_second(), at(-7_190).as_second());
    let query = |hash: &str, at: Timestamp| format!("node=a&cni={hash}&started={started}&boot={}", at.as_second());
    cluster.agent_said("a", &query("0badc0de", booted), at(0));
    crate::aggregator::testing::apply(&mut cluster, &worker());
    let of = |cluster: &Cluster| {
        let row = cluster.node("a").expect("it is there");
        (cluster.values.of(&row.traits, "CNI configuration").map(str::to_owned), row.rebooted.get())
    };
    assert_eq!(of(&cluster), (Some("0badc0de".to_owned()), Some(booted)));
    let restarts = |cluster: &Cluster| cluster.node("a").map(|row| [row.restarts.kubelet(), row.restarts.runtime()]);
    assert_eq!(restarts(&cluster), Some([Some(at(-600)), None]), "the runtime started with the worker");
    let before = |cluster: &Cluster, second| {
        cluster.surroundings.journal.before(at(second)).into_iter().map(|it| (it.at, it.what)).collect::<Vec<_>>()
    };
    assert_eq!(before(&cluster, 0), [(booted, "worker a booted anew".to_owned())], "before this process ran");
    // Clocks are set, and others may say anything.
    for nothing in ["boot=x&cni=zz", "cni=0badc0d", "boot=99999999999999", "", "xcni=00000000"] {
        cluster.agent_said("a", nothing, at(10));
    }
    cluster.agent_said("a", &query("0badc0de", at(-7000)), at(20));
    cluster.agent_said("nobody", &query("0badc0de", booted), at(20));
    assert_eq!((of(&cluster).1, cluster.nodes().len()), (Some(booted), 1));
    cluster.agent_said("a", &query("00000001", booted), at(60));
    let expected = ["worker a changed its CNI configuration", "worker a booted anew"];
    let told: Vec<String> = before(&cluster, 60).into_iter().map(|(_, what)| what).take(2).collect();
    assert_eq!(told, expected);
    assert_eq!(restarts(&cluster), Some([Some(at(-600)), None]));
    let mut other = worker();
    other["status"]["nodeInfo"] = serde_json::json!({"machineID": "m1"});
    crate::aggregator::testing::apply(&mut cluster, &other);
    other["status"]["nodeInfo"] = serde_json::json!({"machineID": "m2"});
    crate::aggregator::testing::apply(&mut cluster, &other);
    assert_eq!(cluster.node("a").and_then(|row| row.reloaded.get()), Some(at(0)));
}

/// The software of some workers was replaced before this process ran, and all that is left of it is when it was started.
#[test]
fn an_update_that_nobody_saw_is_told_by_what_agents_say_of_restarts() {
    let name = |number: usize| format!("n{number:02}");
    let workers: Vec<_> = (0..20)
        .map(|number| {
            if number < 6 {
                node(&name(number), "z", "p", "Critical", &[CHAINS])
            } else {
                node(&name(number), "z", "p", "Normal", &[])
            }
        })
        .collect();
    let agents: Vec<_> = (0..20).map(|number| agent(&format!("agent-{number}"), &name(number), true)).collect();
    let told = |lately: i64| {
        let mut cluster = cluster(&workers, &agents);
        let second = |second: i64| at(second).as_second();
        for number in 0..20 {
            let kubelet = if number < 6 { lately } else { -500_000 };
            let started = format!("started={}.{}", second(kubelet), second(-599_990));
            cluster.agent_said(&name(number), &format!("{started}&boot={}", second(-600_000)), at(0));
        }
        let report = report(&cluster);
        assert_eq!((&*report.findings[0].code, report.findings[0].counted), (CHAINS.0, 6));
        (report.findings[0].suspects.first().map(|it| it.sentence.clone()), report.nodes[0].next.clone())
    };
    // They fail since five minutes.
    let (sentence, next) = told(-1_200);
    let expected = "6 of 6 with kubelet restarted since 2026-11-20T09:55:00Z fail, 0 of 14 elsewhere";
    assert_eq!(sentence.as_deref(), Some(expected));
    let suspected = next.is_some_and(|next| next.contains("suspect kubelet restarted since 2026-11-20T09:55:00Z"));
    assert!(suspected, "the next step names it");
    assert_eq!(told(-60).0, None, "somebody tried to repair them so");
    assert_eq!(told(-500_000).0, None, "nothing sets them apart");
}

#[test]
fn when_calico_node_failed_is_among_what_is_over_on_a_worker_with_what_cured_it() {
    let mut cluster = cluster(&[node("a", "z", "p", "Normal", &[])], &[agent("agent-a", "a", true)]);
    let episodes = |cluster: &Cluster, only| {
        let mut report = build(cluster, Agents::Once, Source::Aggregator, only, moment(0));
        report.nodes.remove(0).episodes
    };
    cluster.memory.note(&["a"], at(-900));
    assert!(episodes(&cluster, Some("a")).is_empty(), "it is not over");
    cluster.memory.note(&[], at(-300));
    let ended =
        |cure| super::Ended { code: "CalicoNodeFailingOnNode".to_owned(), since: at(-900), cleared: at(-300), cure };
    assert_eq!(episodes(&cluster, Some("a")), [ended(None)], "nobody saw it well");
    cluster.memory.cured("a", crate::verdict::Cure::Reboot);
    assert_eq!(episodes(&cluster, Some("a")), [ended(Some(crate::verdict::Cure::Reboot))]);
    assert!(episodes(&cluster, None).is_empty(), "only in the report of one worker");
}
