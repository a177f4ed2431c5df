//! What is written, on which nodes, how often.

use super::*;
use crate::aggregator::model::NodeView;
use crate::aggregator::object::ObjectView;
use crate::aggregator::testing::{at, moment, node};
use crate::aggregator::watch::Change;

/// A store that leads, with this many healthy nodes and no agent.
fn store(nodes: usize) -> Store {
    let store = Store::watched();
    store.node_changed(Change::ListBegins, at(0));
    for number in 0..nodes {
        let view: NodeView =
            serde_json::from_value(node(&format!("n{number:03}"), "z", "p", "Normal", &[])).expect("a node");
        store.node_changed(Change::Here(view), at(0));
    }
    store.node_changed(Change::ListEnds, at(0));
    store.agent_changed(Change::<ObjectView>::ListBegins, at(0));
    store.agent_changed(Change::<ObjectView>::ListEnds, at(0));
    store.lock().leads = true;
    store
}

fn due_at(store: &Store, tries: &mut Tries, seconds: i64) -> Vec<String> {
    due(store, "nodevitals", moment(seconds), tries, AT_ONCE).into_iter().map(|job| job.node).collect()
}

#[test]
fn the_patch_sets_all_eight_conditions_and_the_state_and_nothing_else() {
    let store = store(1);
    let mut tries = Tries::default();
    assert!(due_at(&store, &mut tries, 0).is_empty());
    let jobs = due(&store, "monitoring", moment(40), &mut tries, AT_ONCE);
    let body: serde_json::Value = serde_json::from_slice(&jobs[0].body).expect("JSON");
    assert_eq!(
        body["metadata"],
        json!({ "resourceVersion": "7", "annotations": { "nodevitals.dev/state": "Unknown" } })
    );
    assert_eq!(body.as_object().map(serde_json::Map::len), Some(2));
    assert_eq!(body["status"].as_object().map(serde_json::Map::len), Some(1));
    let conditions = body["status"]["conditions"].as_array().expect("a list");
    assert_eq!(conditions.len(), 8);
    for condition in conditions {
        assert_eq!((&condition["status"], &condition["reason"]), (&json!("Unknown"), &json!("AgentStale")));
        assert_eq!(condition["lastTransitionTime"], json!(at(40)));
    }
    assert_eq!(
        conditions[0]["message"],
        "The NodeVitals agent of n000 is gone: it has no Pod since 2026-11-21T10:00:00Z. Next: `kubectl -n monitoring describe \
         daemonset nodevitals-agent`."
    );
}

#[test]
fn the_time_of_a_condition_that_was_unknown_before_stays() {
    let store = store(0);
    let mut odd = node("n", "z", "p", "Unknown", &[]);
    odd["status"]["conditions"][1]["lastTransitionTime"] = at(-999).to_string().into();
    let view: NodeView = serde_json::from_value(odd).expect("a node");
    store.node_changed(Change::Here(view), at(0));
    let mut tries = Tries::default();
    due_at(&store, &mut tries, 0);
    let jobs = due(&store, "nodevitals", moment(40), &mut tries, AT_ONCE);
    let body: serde_json::Value = serde_json::from_slice(&jobs[0].body).expect("JSON");
    assert_eq!(body["status"]["conditions"][0]["lastTransitionTime"], json!(at(-999)));
    assert_eq!(body["status"]["conditions"][1]["lastTransitionTime"], json!(at(40)));
}

#[test]
fn many_are_written_a_few_at_a_time_and_none_twice() {
    let store = store(25);
    let mut tries = Tries::default();
    due_at(&store, &mut tries, 0);
    let rounds: Vec<usize> = (40..45).map(|second| due_at(&store, &mut tries, second).len()).collect();
    assert_eq!(rounds, [10, 10, 5, 0, 0]);
}

#[test]
fn who_does_not_lead_writes_nothing_but_keeps_count() {
    let store = store(1);
    store.lock().leads = false;
    let mut tries = Tries::default();
    for second in 0..60 {
        assert!(due_at(&store, &mut tries, second).is_empty());
    }
    store.lock().leads = true;
    assert_eq!(due_at(&store, &mut tries, 60), ["n000"]);
}

#[test]
fn what_failed_is_tried_again_later_each_time() {
    let store = store(1);
    let mut tries = Tries::default();
    due_at(&store, &mut tries, 0);
    assert_eq!(due_at(&store, &mut tries, 40), ["n000"]);
    let mut now = moment(40).since_boot;
    let mut waits = Vec::new();
    for _ in 0..8 {
        account(&store, &mut tries, "n000", &Fate::Failed("403".into(), Duration::ZERO), now);
        let again = tries.nodes["n000"].0;
        waits.push(again.saturating_sub(now).as_secs());
        now = again;
    }
    assert!(waits[0] >= 10 && waits[0] <= 20 && waits[7] >= 150 && waits[7] <= 300, "{waits:?}");
    assert_eq!(store.lock().patches.failed, 8);
}

#[tokio::test]
async fn a_server_that_asks_to_be_left_alone_is_left_alone_by_all_writes() {
    let store = store(25);
    let mut tries = Tries::default();
    due_at(&store, &mut tries, 0);
    let job = due(&store, "nodevitals", moment(40), &mut tries, 1).remove(0);
    let busy = api::answered_by("429 Too Many Requests\r\nRetry-After: 60", "Too many requests").await;
    let (node, fate) = patch(busy, job).await;
    account(&store, &mut tries, &node, &fate, moment(40).since_boot);
    assert!(due_at(&store, &mut tries, 41).is_empty() && due_at(&store, &mut tries, 99).is_empty(), "{fate:?}");
    assert_eq!(due_at(&store, &mut tries, 100).len(), AT_ONCE);
    // One that only refuses a node keeps nobody else waiting.
    let busy = api::answered_by("403 Forbidden", "no").await;
    let job = due(&store, "nodevitals", moment(100), &mut tries, 1).remove(0);
    let (node, fate) = patch(busy, job).await;
    account(&store, &mut tries, &node, &fate, moment(100).since_boot);
    assert_eq!(due_at(&store, &mut tries, 101).len(), AT_ONCE, "{fate:?}");
}

#[test]
fn messages_fit_into_a_condition() {
    let long = "n".repeat(253);
    for what in [Missing::Agent, Missing::Kubelet] {
        for pod in [None, Some(long.clone())] {
            let text = message(&long, &Gone { what, since: Some(at(0)), pod }, &"s".repeat(63));
            assert!(text.len() <= 1024 && text.contains("Next: "), "{text}");
        }
    }
}

#[test]
fn an_agent_that_was_late_before_a_pause_has_its_grace_again() {
    let store = store(1);
    let (mut tries, mut last) = (Tries::default(), None);
    let mut round = |second: i64| {
        take_note_of_a_pause(&store, &mut last, moment(second).since_boot);
        due_at(&store, &mut tries, second)
    };
    for second in 0..5 {
        assert!(round(second).is_empty());
    }
    // Stopped for minutes, while the agent's Pod may have become Ready: what is known of it is from before.
    for second in 300..340 {
        assert!(round(second).is_empty(), "{second}");
    }
    assert_eq!(round(340), ["n000"], "it is late still");
}
