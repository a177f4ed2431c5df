//! The description of the API, held to what the pages answer: neither says anything that the other does not know.

use std::collections::BTreeSet;
use std::num::NonZeroU32;

use serde_json::{Value, json};

use super::*;
use crate::aggregator::report::{Agents, CannotLook, ChangeBefore, ClusterFinding, Ended, Source, Suspect, build};
use crate::aggregator::surroundings::What;
use crate::aggregator::testing::{agent, at, cluster, moment, node, silent};
use crate::aggregator::watch::Change;

/// The description, and what of it was seen in answers.
struct Description {
    whole: Value,
    seen: BTreeSet<String>,
}

impl Description {
    fn read() -> Self {
        let pages = AggregatorPages::new(Arc::new(Store::watched()), || moment(0), 2);
        let page = pages.get("/api/v1/openapi.json", "");
        assert_eq!((page.status, page.content_type), (200, "application/json"));
        Description { whole: serde_json::from_slice(&page.body).expect("JSON"), seen: BTreeSet::new() }
    }

    /// The schema of an answer of a path.
    fn answer(&self, path: &str, status: &str, kind: &str) -> Value {
        let schema = &self.whole["paths"][path]["get"]["responses"][status]["content"][kind]["schema"];
        assert!(schema.is_object(), "{path} {status} {kind} is not described");
        schema.clone()
    }

    /// Holds an answer to its schema; `at` is where it is, for the message.
    fn check(&mut self, schema: &Value, value: &Value, at: &str) {
        if let Some(name) = schema["$ref"].as_str() {
            let name = name.rsplit('/').next().expect("a name");
            let referred = self.whole["components"]["schemas"][name].clone();
            assert!(referred.is_object(), "{at}: no schema {name}");
            self.seen.insert(name.to_owned());
            return self.check(&referred, value, name);
        }
        if let Some(one_of) = schema["oneOf"].as_array() {
            assert!(one_of.iter().any(|schema| is_a(schema, value)), "{at}: {value}");
            return;
        }
        if value.is_null() {
            assert_eq!(schema["nullable"], true, "{at} is null");
            return;
        }
        assert!(is_a(schema, value), "{at}: {value} is no {}", schema["type"]);
        if let Some(values) = schema["enum"].as_array() {
            assert!(values.contains(value), "{at}: {value} is none of {values:?}");
        }
        if schema["format"] == "date-time" {
            value.as_str().expect("text").parse::<jiff::Timestamp>().expect("a time");
        }
        for item in value.as_array().into_iter().flatten() {
            self.check(&schema["items"], item, at);
        }
        if let Some(fields) = value.as_object().filter(|_| schema["additionalProperties"] != true) {
            for (field, value) in fields {
                let here = format!("{at}.{field}");
                assert!(schema["properties"][field].is_object(), "{here} is not described");
                self.check(&schema["properties"][field], value, &here);
                self.seen.insert(here);
            }
            for field in schema["required"].as_array().into_iter().flatten() {
                assert!(value.get(field.as_str().expect("a name")).is_some(), "{at}.{field} is missing");
            }
        }
    }

    /// Everything that is described.
    fn described(&self) -> BTreeSet<String> {
        let mut all = BTreeSet::new();
        for (name, schema) in self.whole["components"]["schemas"].as_object().expect("schemas") {
            all.insert(name.clone());
            fields(schema, name, &mut all);
        }
        all
    }
}

fn fields(schema: &Value, at: &str, all: &mut BTreeSet<String>) {
    for (field, schema) in schema["properties"].as_object().into_iter().flatten() {
        let here = format!("{at}.{field}");
        fields(schema, &here, all);
        fields(&schema["items"], &here, all);
        all.insert(here);
    }
}

fn is_a(schema: &Value, value: &Value) -> bool {
    match schema["type"].as_str() {
        Some("string") => value.is_string(),
        Some("integer") => value.is_i64() || value.is_u64(),
        Some("number") => value.is_number(),
        Some("boolean") => value.is_boolean(),
        Some("array") => value.is_array(),
        Some("object") => value.is_object(),
        _ => false,
    }
}

/// Workers of every state, and what is around them.
fn store() -> Store {
    let store = Store::watched();
    let here = |what, object: Value| {
        store.around_changed(what, Change::Here(serde_json::from_value(object).expect("an object")), at(0));
    };
    let mut sick = node("a", "z1", "p1", "Critical", &[("DiskFull", "critical", "capacity", "full")]);
    let caused = json!({"code": "PodRouteMissing", "severity": "warning", "area": "podRouting", "subject": "s", "since": at(0), "detail": "d",
        "next": "n", "causedBy": {"code": "DiskFull", "subject": "/"}, "times": 3, "lastCure": "reboot"});
    let mut findings: Value =
        serde_json::from_str(sick["metadata"]["annotations"]["nodevitals.dev/findings"].as_str().expect("text"))
            .expect("JSON");
    findings.as_array_mut().expect("findings").push(caused);
    sick["metadata"]["annotations"]["nodevitals.dev/findings"] = findings.to_string().into();
    let mut addressed = node("b", "z2", "p2", "Normal", &[]);
    addressed["status"]["addresses"] = json!([{"type": "InternalIP", "address": "10.0.0.1"}]);
    addressed["metadata"]["annotations"]["projectcalico.org/IPv4IPIPTunnelAddr"] = "172.30.1.1".into();
    let going = json!({"metadata": {"name": "d", "deletionTimestamp": at(0)}});
    store.node_changed(Change::ListBegins, at(0));
    for worker in [sick, addressed, silent(node("c", "z2", "p2", "Normal", &[])), going] {
        store.node_changed(Change::Here(serde_json::from_value(worker).expect("a node")), at(0));
    }
    store.node_changed(Change::ListEnds, at(0));
    store.agent_changed(Change::ListBegins, at(0));
    let gone = serde_json::from_value(agent("agent-a", "a", false)).expect("a Pod");
    store.agent_changed(Change::Here(gone), at(0));
    store.agent_changed(Change::ListEnds, at(0));
    for what in What::ALL {
        store.around_changed(what, Change::ListBegins, at(0));
    }
    here(
        What::Affinities,
        json!({"metadata": {"name": "x"}, "spec": {"node": "b", "cidr": "172.30.1.0/26", "state": "confirmed"}}),
    );
    here(What::Pools, json!({"metadata": {"name": "pool"}, "spec": {"cidr": "172.30.0.0/16", "ipipMode": "Always"}}));
    here(
        What::ApiService,
        json!({"metadata": {"name": "kubernetes", "namespace": "default"},
        "spec": {"clusterIP": "10.96.0.1", "clusterIPs": ["10.96.0.1"], "ports": [{"name": "https", "port": 443, "protocol": "TCP"}]}}),
    );
    here(
        What::ApiSlices,
        json!({"metadata": {"name": "kubernetes", "namespace": "default", "labels": {"kubernetes.io/service-name": "kubernetes"}},
        "addressType": "IPv4", "ports": [{"name": "https", "port": 6443, "protocol": "TCP"}],
        "endpoints": [{"addresses": ["10.0.0.9"], "conditions": {"ready": true}}]}),
    );
    for what in What::ALL {
        store.around_changed(what, Change::ListEnds, at(0));
    }
    // The watchdog's word on agents that are gone.
    {
        let inner = &mut *store.lock();
        inner.watchdog.step(&inner.cluster, moment(0));
    }
    store
}

#[test]
fn every_path_answers_what_the_description_says_and_nothing_else() {
    let mut description = Description::read();
    let pages = AggregatorPages::new(Arc::new(store()), || moment(300), 2);
    let whole = |page: Page| -> Value { serde_json::from_slice(&page.body).expect("JSON") };

    let schema = description.answer("/api/v1/report", "200", "application/json");
    for query in ["", "node=a", "node=c"] {
        description.check(&schema, &whole(pages.get("/api/v1/report", query)), "report");
    }
    // Before the first list is complete.
    let blind = AggregatorPages::new(Arc::new(Store::watched()), || moment(0), 2);
    blind.store.node_changed(Change::Lost("refused".into()), at(0));
    description.check(&schema, &whole(blind.get("/api/v1/report", "")), "report");
    description.check(&schema, &serde_json::to_value(rich()).expect("JSON"), "report");

    let none = pages.get("/api/v1/report", "node=zzz");
    assert_eq!(none.status, 404);
    let schema = description.answer("/api/v1/report", "404", "application/json");
    description.check(&schema, &whole(none), "error");

    let shared = pages.shared("/api/v1/map", "node=b").expect("a map");
    let map = serde_json::from_slice(&[&shared.head[..], &shared.rest[..]].concat()).expect("JSON");
    let schema = description.answer("/api/v1/map", "200", "application/json");
    description.check(&schema, &map, "map");
    for (query, pages, status) in [("", &pages, "400"), ("node=b", &blind, "503")] {
        assert_eq!(pages.get("/api/v1/map", query).status.to_string(), status);
        description.answer("/api/v1/map", status, "text/plain");
    }

    let listening: Vec<_> = (0..2).map(|_| pages.live("/api/v1/live").expect("a place")).collect();
    description.answer("/api/v1/live", "200", "text/event-stream");
    assert!(pages.live("/api/v1/live").is_none() && listening.len() == 2);
    assert_eq!(pages.get("/api/v1/live", "").status, 503);
    description.answer("/api/v1/live", "503", "text/plain");

    let schema = description.answer("/api/v1/openapi.json", "200", "application/json");
    let own = description.whole.clone();
    description.check(&schema, &own, "openapi");

    let unseen: Vec<String> = description.described().difference(&description.seen).cloned().collect();
    assert!(unseen.is_empty(), "described, and in no answer: {unseen:?}");
    for path in own["paths"].as_object().expect("paths").keys() {
        let known = pages.get(path, "").status != 404 || path == "/api/v1/report";
        assert!(known, "{path} is described and not served");
    }
}

/// A report with what takes long to bring about.
fn rich() -> ClusterReport {
    let sick = node("a", "z", "p", "Critical", &[("DiskFull", "critical", "capacity", "full")]);
    let cluster = cluster(&[sick], &[agent("agent-a", "a", true)]);
    let mut report = build(&cluster, Agents::Once, Source::NodeObjects, None, moment(0));
    let before =
        vec![ChangeBefore { at: at(0), what: "FelixConfiguration default changed".into(), by: "kubectl".into() }];
    let finding = &mut report.findings[0];
    (finding.before, finding.next, finding.shared) = (before.clone(), Some("n".into()), Some("zone z".into()));
    finding.suspects.push(Suspect {
        attribute: "zone".into(),
        value: "z".into(),
        failing: 1,
        workers: 1,
        failing_elsewhere: 0,
        workers_elsewhere: 0,
        p: 0.5,
        sentence: "s".into(),
    });
    report.cluster.push(ClusterFinding {
        code: "CalicoNodeAbsent".into(),
        severity: crate::checks::Severity::Critical,
        area: crate::checks::Area::PodRouting,
        subject: "s".into(),
        object: "IPPool p".into(),
        detail: "d".into(),
        next: "n".into(),
        since: Some(at(0)),
        noticed: true,
        before,
        nodes: 1,
        workers: vec!["a".into()],
    });
    let worker = &mut report.nodes[0];
    (worker.more, worker.rebooted, worker.updated) = (NonZeroU32::new(3), Some(at(0)), Some(at(0)));
    (worker.kubelet_started, worker.runtime_started, worker.runtime) = (Some(at(0)), Some(at(0)), Some("r".into()));
    worker.episodes =
        vec![Ended { code: "DiskFull".into(), since: at(0), cleared: at(9), cure: Some(crate::verdict::Cure::Reboot) }];
    report.view.since = Some(at(0));
    report.view.why = Some("w".into());
    report.view.cannot_look.push(CannotLook {
        what: vec!["ippools".into()],
        why: "w".into(),
        since: at(0),
        codes: vec!["CalicoConfigDrift".into()],
    });
    report
}
