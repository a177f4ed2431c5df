//! The pages as a client sees them.

use super::*;
use crate::aggregator::model::NodeView;
use crate::aggregator::testing::{at, moment, node};
use crate::aggregator::watch::Change;

const DISK: (&str, &str, &str, &str) = ("DiskFull", "critical", "capacity", "full");

fn pages(nodes: &[serde_json::Value]) -> AggregatorPages {
    let store = Store::watched();
    store.node_changed(Change::ListBegins, at(0));
    for node in nodes {
        let view: NodeView = serde_json::from_value(node.clone()).expect("a node");
        store.node_changed(Change::Here(view), at(0));
    }
    store.node_changed(Change::ListEnds, at(0));
    AggregatorPages::new(Arc::new(store), || moment(0), 2)
}

fn text(page: Page) -> String {
    String::from_utf8(page.body).expect("text")
}

fn list_agents(pages: &AggregatorPages) {
    pages.store.agent_changed(Change::ListBegins, at(0));
    pages.store.agent_changed(Change::ListEnds, at(0));
}

#[test]
fn it_is_ready_once_everything_is_listed() {
    let empty = AggregatorPages::new(Arc::new(Store::watched()), || moment(0), 2);
    assert_eq!((empty.get("/livez", "").status, empty.get("/readyz", "").status), (200, 503));
    let pages = pages(&[]);
    assert_eq!(pages.get("/readyz", "").status, 503);
    list_agents(&pages);
    assert_eq!(pages.get("/readyz", "").status, 200);
    assert_eq!(pages.get("/nothing", "").status, 404);
}

#[test]
fn without_permission_to_see_nodes_it_is_not_ready_and_says_so() {
    let empty = AggregatorPages::new(Arc::new(Store::watched()), || moment(0), 2);
    let blind = r#"nodevitals_aggregator_cannot_look{resource="nodes"} 1"#;
    assert!(!text(empty.get("/metrics", "")).contains(blind), "the first list is under way");
    empty.store.node_changed(Change::Lost("no permission to list and watch nodes: 403".into()), at(0));
    let page = empty.get("/readyz", "");
    assert_eq!(page.status, 503);
    let says = "the first list of the nodes is not complete yet: no permission to list and watch nodes: 403\n";
    assert_eq!(text(page), says);
    assert!(text(empty.get("/metrics", "")).contains(blind));
    empty.store.node_changed(Change::Found, at(1));
    assert!(!text(empty.get("/metrics", "")).contains(blind));
}

#[test]
fn without_permission_to_see_pods_it_is_ready_all_the_same() {
    let pages = pages(&[]);
    pages.store.agent_changed(Change::Lost("forbidden".into()), at(0));
    assert_eq!(pages.get("/readyz", "").status, 200);
}

#[test]
fn the_report_is_of_all_workers_or_of_one() {
    let pages = pages(&[node("a.b", "z", "p", "Critical", &[DISK]), node("c", "z", "p", "Normal", &[])]);
    let all: ClusterReport = serde_json::from_slice(&pages.get("/api/v1/report", "").body).expect("a report");
    assert_eq!(all.nodes.len(), 2);
    let one: ClusterReport =
        serde_json::from_slice(&pages.get("/api/v1/report", "x=1&node=a%2Eb").body).expect("a report");
    assert_eq!((one.nodes.len(), one.nodes[0].conditions.len()), (1, 8));
    let none = pages.get("/api/v1/report", "node=%ff%zz%");
    assert_eq!(none.status, 404);
    assert!(text(none).contains(r#""kind":"Error""#));
}

#[test]
fn a_finding_of_the_cluster_that_names_no_worker_is_one() {
    let mut nodes = ["a", "b"].map(|name| node(name, "z", "p", "Normal", &[]));
    for node in &mut nodes {
        node["spec"]["unschedulable"] = true.into();
    }
    let metrics = text(pages(&nodes).get("/metrics", ""));
    let line = r#"nodevitals_cluster_finding{code="LastWorkerAtRisk",severity="warning"} 1"#;
    assert!(metrics.contains(line), "{metrics}");
}

#[test]
fn metrics_count_workers_and_findings_and_forget_what_is_gone() {
    let pages = pages(&[node("a", "z1", "p", "Critical", &[DISK]), node("b", "z2", "p", "Normal", &[])]);
    let metrics = text(pages.get("/metrics", ""));
    for line in [
        r#"nodevitals_workers{state="Critical"} 1"#,
        r#"nodevitals_workers{state="Normal"} 1"#,
        r#"nodevitals_workers{state="Warning"} 0"#,
        r#"nodevitals_workers_by{zone="z1",pool="p",state="Critical"} 1"#,
        r#"nodevitals_cluster_finding{code="DiskFull",severity="critical"} 1"#,
        r#"nodevitals_cluster_finding_scope{code="DiskFull",scope="few"} 2"#,
        "nodevitals_aggregator_synced 1",
        "nodevitals_aggregator_leader 0",
        r#"nodevitals_aggregator_watch_restarts_total{resource="nodes"} 0"#,
        r#"nodevitals_aggregator_patches_total{result="ok"} 0"#,
    ] {
        assert!(metrics.lines().any(|have| have == line), "{line} is missing in\n{metrics}");
    }
    let view: NodeView = serde_json::from_value(node("a", "z1", "p", "Normal", &[])).expect("a node");
    pages.store.node_changed(Change::Here(view), at(0));
    assert!(!text(pages.get("/metrics", "")).contains("DiskFull"));
}

#[test]
fn the_number_of_series_is_bounded() {
    let nodes: Vec<_> =
        (0..300).map(|number| node(&format!("n{number}"), &format!("z{number}"), "p", "Normal", &[])).collect();
    let metrics = text(pages(&nodes).get("/metrics", ""));
    let series = metrics.lines().filter(|line| line.starts_with("nodevitals_workers_by{")).count();
    assert_eq!(series, (MOST_GROUPS + 1) * WorkerState::ALL.len());
    assert!(metrics.contains(r#"nodevitals_workers_by{zone="other",pool="other",state="Normal"} 100"#));
}

fn list_surroundings(pages: &AggregatorPages) {
    for what in crate::aggregator::surroundings::What::ALL {
        pages.store.around_changed(what, Change::ListBegins, at(0));
        pages.store.around_changed(what, Change::ListEnds, at(0));
    }
}

#[test]
fn the_map_is_one_for_all_and_says_who_asks() {
    let pages = pages(&[node("a.b", "z", "p", "Normal", &[]), node("c", "z", "p", "Normal", &[])]);
    assert!(pages.shared("/api/v1/map", "node=c").is_none());
    assert_eq!(pages.get("/api/v1/map", "node=c").status, 503, "not everything is listed");
    list_surroundings(&pages);
    assert_eq!(pages.get("/api/v1/map", "").status, 400);
    assert_eq!(pages.get("/api/v1/map", "node=%22x").status, 400, "no name of a node");
    assert!(pages.shared("/api/v1/report", "node=c").is_none());
    let first = pages.shared("/api/v1/map", "node=a%2Eb").expect("a map");
    let second = pages.shared("/api/v1/map", "x=y&node=c").expect("a map");
    assert_eq!((&first.etag, first.rest.as_ptr()), (&second.etag, second.rest.as_ptr()));
    let map: crate::facts::ClusterMap =
        serde_json::from_slice(&[&first.head[..], &first.rest].concat()).expect("a map");
    assert_eq!((map.own.as_str(), map.nodes.len()), ("a.b", 2));
}

#[tokio::test]
async fn changes_are_told_to_a_few_at_once_and_what_the_report_does_not_show_is_none() {
    let nodes = [node("a", "z", "p", "Normal", &[]), node("a", "z", "p", "Critical", &[DISK])];
    let pages = pages(&nodes[..1]);
    let mut revisions = pages.store.revisions();
    let change = |node: &serde_json::Value| {
        let view: NodeView = serde_json::from_value(node.clone()).expect("a node");
        pages.store.node_changed(Change::Here(view), at(1));
    };
    revisions.mark_unchanged();
    // As when a kubelet brings its heartbeat: another version of the same.
    let mut heartbeat = nodes[0].clone();
    heartbeat["metadata"]["resourceVersion"] = "77".into();
    change(&heartbeat);
    assert!(!revisions.has_changed().expect("the store is there"));
    change(&nodes[1]);
    assert!(revisions.has_changed().expect("the store is there"));
    let held: Vec<_> = (0..2).map(|_| pages.live("/api/v1/live").expect("a place")).collect();
    assert!(pages.live("/api/v1/live").is_none());
    assert_eq!(pages.get("/api/v1/live", "").status, 503);
    drop(held);
    assert!(pages.live("/api/v1/live").is_some() && pages.live("/api/v1/report").is_none());
}

#[test]
fn the_whole_report_is_made_once_for_many_who_ask() {
    static SECOND: std::sync::atomic::AtomicI64 = std::sync::atomic::AtomicI64::new(0);
    let read = |shared: Option<Shared>| {
        let shared = shared.expect("a report");
        let report: ClusterReport = serde_json::from_slice(&shared.rest).expect("a report");
        (shared.etag, report.workers.total)
    };
    let mut pages = pages(&[node("a", "z", "p", "Normal", &[])]);
    pages.clock = || moment(SECOND.load(std::sync::atomic::Ordering::Relaxed));
    let first = read(pages.shared("/api/v1/report", ""));
    assert_eq!(first.1, 1);
    let another: NodeView = serde_json::from_value(node("b", "z", "p", "Normal", &[])).expect("a node");
    pages.store.node_changed(Change::Here(another), at(0));
    assert_eq!(read(pages.shared("/api/v1/report", "")), first, "a quarter of a second is not over");
    SECOND.store(1, std::sync::atomic::Ordering::Relaxed);
    let second = read(pages.shared("/api/v1/report", ""));
    assert!(second.1 == 2 && second.0 != first.0);
    SECOND.store(5, std::sync::atomic::Ordering::Relaxed);
    assert_eq!(read(pages.shared("/api/v1/report", "")), second, "nothing has changed but the time");
    SECOND.store(6, std::sync::atomic::Ordering::Relaxed);
    assert_ne!(read(pages.shared("/api/v1/report", "")).0, second.0, "which is seen, too");
    assert!(pages.shared("/api/v1/report", "node=a").is_none(), "that of one worker is made for each");
}
