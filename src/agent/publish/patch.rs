//! The difference between what the Node says and what it should say, as one strategic-merge patch.

use jiff::Timestamp;
use serde_json::{Map, Value, json};

use super::NodeNow;
use crate::facts::whole_seconds;
use crate::verdict::{NodeCondition, Told, annotation};

/// The patch that brings the Node from `now` to `told`; none when there is nothing to change.
///
/// Conditions of our types that are no longer told, and annotations of ours that are no longer told, are removed; the one in
/// which a repair remembers what it did only when nothing at all is told.
pub(super) fn patch(now: &NodeNow, told: &Told, at: Timestamp) -> Option<Value> {
    let mut conditions: Vec<Value> = told
        .conditions
        .iter()
        .map(|wanted| in_time(wanted, now.conditions.get(&wanted.kind), at))
        .filter(|wanted| now.conditions.get(&wanted.kind) != Some(wanted))
        .map(|wanted| condition(&wanted, at))
        .collect();
    let retired = now.conditions.keys().filter(|kind| told.conditions.iter().all(|wanted| wanted.kind != **kind));
    conditions.extend(retired.map(|kind| json!({"type": kind, "$patch": "delete"})));
    let mut annotations = Map::new();
    let other = told.annotations.iter().filter(|(key, value)| now.annotations.get(*key) != Some(value));
    annotations.extend(other.map(|(key, value)| (key.clone(), json!(value))));
    let keeps = |key: &str| key == annotation::REPAIR && !told.annotations.is_empty();
    let dropped = now.annotations.keys().filter(|key| !told.annotations.contains_key(*key) && !keeps(key));
    annotations.extend(dropped.map(|key| (key.clone(), Value::Null)));
    if conditions.is_empty() && annotations.is_empty() {
        return None;
    }
    let mut patch = Map::new();
    if !annotations.is_empty() {
        patch.insert("metadata".into(), json!({"annotations": annotations}));
    }
    if !conditions.is_empty() {
        patch.insert("status".into(), json!({"conditions": conditions}));
    }
    Some(Value::Object(patch))
}

/// The condition with the transition time that fits what the Node says now. A status that stays keeps its time, also when
/// this process did not know it yet. One that changes has the time of the change, unless somebody else changed it later
/// (the aggregator to Unknown): then it changes now.
fn in_time(wanted: &NodeCondition, now: Option<&NodeCondition>, at: Timestamp) -> NodeCondition {
    let mut wanted = wanted.clone();
    let Some(now) = now else { return wanted };
    if now.status == wanted.status && now.last_transition_time.is_some() {
        wanted.last_transition_time = now.last_transition_time;
    } else if now.last_transition_time > wanted.last_transition_time {
        wanted.last_transition_time = Some(whole_seconds(at));
    }
    wanted
}

/// The patch that writes every condition again with a new heartbeat time, and moves no transition time.
pub(super) fn heartbeat(now: &NodeNow, told: &Told, at: Timestamp) -> Value {
    let in_time = |wanted| in_time(wanted, now.conditions.get(&wanted.kind), at);
    let conditions: Vec<Value> = told.conditions.iter().map(|wanted| condition(&in_time(wanted), at)).collect();
    json!({"status": {"conditions": conditions}})
}

fn condition(wanted: &NodeCondition, at: Timestamp) -> Value {
    let mut value = json!(wanted);
    value["lastHeartbeatTime"] = json!(whole_seconds(at));
    value
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::checks::{Check, Finding, Outcome, node};
    use crate::facts::Identity;
    use crate::verdict::{Beliefs, Now, Status};
    use std::time::Duration;

    fn at() -> Timestamp {
        Timestamp::from_second(1_700_000_000).expect("valid")
    }

    fn one(kind: &str, status: Status) -> NodeCondition {
        NodeCondition {
            kind: kind.into(),
            status,
            reason: "R".into(),
            message: "m".into(),
            last_transition_time: Some(at()),
        }
    }

    fn told(conditions: Vec<NodeCondition>, annotations: &[(&str, &str)]) -> Told {
        let annotations = annotations.iter().map(|(key, value)| ((*key).to_owned(), (*value).to_owned())).collect();
        Told { conditions, annotations }
    }

    fn now(told: &Told) -> NodeNow {
        let conditions = told.conditions.iter().map(|condition| (condition.kind.clone(), condition.clone())).collect();
        NodeNow { conditions, annotations: told.annotations.clone(), ..NodeNow::default() }
    }

    #[test]
    fn nothing_to_change_is_no_patch() {
        let told = told(vec![one("CNIProblem", Status::False)], &[("nodevitals.dev/state", "Normal")]);
        assert_eq!(patch(&now(&told), &told, at()), None);
    }

    #[test]
    fn what_a_repair_remembers_stays_until_everything_goes() {
        let told = told(Vec::new(), &[(annotation::STATE, "Normal")]);
        let mut now = now(&told);
        now.annotations.insert(annotation::REPAIR.to_owned(), "{}".to_owned());
        assert_eq!(patch(&now, &told, at()), None);
        let nothing = Told { conditions: Vec::new(), annotations: std::collections::BTreeMap::new() };
        let all = patch(&now, &nothing, at()).expect("a change");
        assert_eq!(all["metadata"]["annotations"], json!({annotation::STATE: null, annotation::REPAIR: null}));
    }

    #[test]
    fn only_what_changed_is_sent() {
        let old = told(
            vec![one("CNIProblem", Status::False), one("RuntimeProblem", Status::False)],
            &[("nodevitals.dev/a", "1")],
        );
        let new = told(
            vec![one("CNIProblem", Status::True), one("RuntimeProblem", Status::False)],
            &[("nodevitals.dev/a", "1")],
        );
        let patch = patch(&now(&old), &new, at()).expect("a change");
        assert_eq!(patch["status"]["conditions"].as_array().map(Vec::len), Some(1));
        assert_eq!(patch["status"]["conditions"][0]["type"], "CNIProblem");
        assert_eq!(patch["status"]["conditions"][0]["lastTransitionTime"], "2023-11-14T22:13:20Z");
        assert!(patch.get("metadata").is_none());
        assert!(patch.to_string().len() < 4096);
    }

    #[test]
    fn whatever_begins_on_a_healthy_node_is_told_in_four_kilobytes() {
        let identity = Identity {
            hostname: "n1".into(),
            boot_id: "b".into(),
            machine_id: "m".into(),
            kernel: "6".into(),
            node_name: None,
        };
        let moment = |second: u32| Now {
            wall: Timestamp::from_second(1_700_000_000 + i64::from(second)).expect("valid"),
            since_boot: Duration::from_secs(u64::from(second)),
        };
        for check in node::ALL {
            let long = || Finding::new("x".repeat(50), "detail ".repeat(300)).next("next ".repeat(400));
            let look = |found: bool| -> Vec<(&'static Check, Outcome)> {
                let of = |it: &Check| {
                    if found && it.code == check.code { Outcome::from_findings(vec![long()]) } else { Outcome::Healthy }
                };
                node::ALL.iter().map(|it| (*it, of(it))).collect()
            };
            let mut beliefs = Beliefs::default();
            let mut tells = |found: bool, second: u32| {
                let verdict = beliefs.step(&look(found), moment(second));
                crate::verdict::told(&verdict, &identity, beliefs.episodes())
            };
            let well = tells(false, 0);
            tells(true, 1);
            let patch = patch(&now(&well), &tells(true, 86_400), at()).expect("a change").to_string();
            assert!(patch.contains(check.code) && patch.len() <= 4096, "{} bytes: {patch}", patch.len());
        }
    }

    #[test]
    fn a_status_that_stays_keeps_its_time_and_one_that_somebody_else_changed_changes_now() {
        let long_ago = Timestamp::from_second(1_600_000_000).expect("valid");
        let aged = |status, time| NodeCondition { last_transition_time: Some(time), ..one("CNIProblem", status) };
        let on_node = told(vec![aged(Status::False, long_ago)], &[]);
        assert_eq!(patch(&now(&on_node), &told(vec![one("CNIProblem", Status::False)], &[]), at()), None);

        let marked = told(vec![aged(Status::Unknown, at())], &[]);
        let later = Timestamp::from_second(1_700_000_100).expect("valid");
        let patch = patch(&now(&marked), &told(vec![aged(Status::False, long_ago)], &[]), later).expect("a change");
        assert_eq!(patch["status"]["conditions"][0]["lastTransitionTime"], later.to_string());
    }

    #[test]
    fn what_is_retired_is_removed() {
        let old = told(
            vec![one("CNIProblem", Status::False), one("RuntimeProblem", Status::True)],
            &[("nodevitals.dev/a", "1")],
        );
        let new = told(vec![one("CNIProblem", Status::False)], &[]);
        let patch = patch(&now(&old), &new, at()).expect("a change");
        assert_eq!(patch["status"]["conditions"], json!([{"type": "RuntimeProblem", "$patch": "delete"}]));
        assert_eq!(patch["metadata"]["annotations"], json!({"nodevitals.dev/a": null}));
    }

    #[test]
    fn the_first_patch_says_everything() {
        let new = told(vec![one("CNIProblem", Status::False)], &[("nodevitals.dev/a", "1")]);
        let blank = NodeNow::default();
        let patch = patch(&blank, &new, at()).expect("a change");
        assert_eq!(patch["metadata"]["annotations"]["nodevitals.dev/a"], "1");
        assert_eq!(patch["status"]["conditions"][0]["status"], "False");
    }
}
