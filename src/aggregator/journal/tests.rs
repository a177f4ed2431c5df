//! What is kept of changes, for how long, and what is shown of them.

use serde_json::{Value, json};

use super::*;
use crate::aggregator::testing::at;

/// FelixConfiguration `default` in this generation, changed then by somebody, and its status later by somebody else.
fn felix(generation: u64, changed: i64, by: &str) -> ObjectView {
    object("default", generation, changed, by, -900_000)
}

fn object(name: &str, generation: u64, changed: i64, by: &str, made: i64) -> ObjectView {
    let value: Value = json!({"metadata": {"name": name, "generation": generation, "creationTimestamp": at(made), "managedFields": [
        {"manager": "first", "operation": "Update", "time": at(made)},
        {"manager": by, "operation": "Update", "time": at(changed)},
        {"manager": "status-writer", "operation": "Update", "time": at(9_000_000), "subresource": "status"},
    ]}});
    serde_json::from_value(value).expect("an object")
}

fn told(journal: &Journal, failure: i64) -> Vec<(i64, String, String)> {
    let all = journal.before(at(failure));
    all.into_iter().map(|change| (change.at.as_second() - at(0).as_second(), change.what, change.by)).collect()
}

#[test]
fn the_last_change_is_known_of_what_was_there_before() {
    let mut journal = Journal::default();
    journal.seen("FelixConfiguration", &felix(3, -600, "kubectl-edit"));
    journal.seen("IPPool", &object("pool", 1, -3600, "operator", -3600));
    let expected = [
        (-600, "FelixConfiguration default changed".to_owned(), "kubectl-edit".to_owned()),
        (-3600, "IPPool pool made".to_owned(), "operator".to_owned()),
    ];
    assert_eq!(told(&journal, 0), expected);
    assert!(told(&journal, -4000).is_empty(), "what came later is no cause");
    assert_eq!(told(&journal, -610).len(), 2, "clocks differ");
    assert_eq!(told(&journal, 86_400 - 600).len(), 1, "a day is long enough");
}

#[test]
fn from_then_on_each_change_is_kept_and_status_and_repetitions_are_none() {
    let mut journal = Journal::default();
    journal.seen("FelixConfiguration", &felix(3, -600, "operator"));
    journal.seen("FelixConfiguration", &felix(3, -600, "operator"));
    journal.seen("FelixConfiguration", &felix(3, -300, "labeler"));
    journal.seen("FelixConfiguration", &felix(4, -60, "calicoctl"));
    journal.gone("FelixConfiguration", &felix(4, -60, "calicoctl"), at(-10));
    let all: Vec<_> = told(&journal, 0).into_iter().map(|(at, what, _)| (at, what)).collect();
    let felix = |what| format!("FelixConfiguration default {what}");
    assert_eq!(all, [(-10, felix("removed")), (-60, felix("changed")), (-600, felix("changed"))]);
}

#[test]
fn what_is_written_over_and_over_does_not_push_out_the_rest() {
    let mut journal = Journal::default();
    journal.seen("IPPool", &object("pool", 2, -5000, "kubectl-edit", -900_000));
    for number in 0..1000 {
        journal.seen("ValidatingWebhookConfiguration", &felix(number, -4000 + number.cast_signed(), "cainjector"));
    }
    assert_eq!(journal.entries.len(), 1 + MOST_OF_ONE);
    assert_eq!(told(&journal, 0).last().map(|(_, what, _)| what.as_str()), Some("IPPool pool changed"));
    for number in 0..5000 {
        journal.seen("NetworkPolicy", &object(&format!("p{number}"), 1, -50_000 + number, "x", -900_000));
    }
    assert_eq!(journal.entries.len(), MOST);
    assert!(journal.entries.iter().any(|entry| entry.about.starts_with("IPPool")), "the oldest go first");
    assert_eq!(told(&journal, 0).len(), SHOWN);
}

#[test]
fn what_happens_to_many_workers_is_one_change() {
    use crate::aggregator::traits::Traits;
    let mut values = Values::default();
    let mut said = ["", "", "", "v1.30.1", "5.15", "Ubuntu", "containerd", "", "", ""];
    let mut before = Row { boot: 1, traits: Traits::of(said, &mut values), ..Row::default() };
    // Which Typhas serve it is no software of its own.
    before.traits.served_by((1..3).map(|last| std::net::IpAddr::from([10, 0, 0, last])), &mut values);
    said[3] = "v1.30.2";
    let mut journal = Journal::default();
    for number in 0..40 {
        let now = at(number * 60);
        let mut row = Row { boot: 2, traits: Traits::of(said, &mut values), ..Row::default() };
        row.goes_on_from(&before, now);
        journal.worker(&format!("n{number}"), &before, &row, &values, now);
        let mut same = row.clone();
        same.goes_on_from(&row, at(5_000));
        journal.worker("n0", &row, &same, &values, at(5_000));
    }
    let all: Vec<_> = told(&journal, 3000).into_iter().map(|(_, what, _)| what).collect();
    assert_eq!(
        all,
        [
            "40 workers booted anew, the last of them n39",
            "40 workers changed their kubelet from v1.30.1 to v1.30.2, the last of them n39"
        ]
    );
    let mut one = Journal::default();
    one.happened("changed their kernel from 5 to 6".into(), "n1", at(0));
    assert_eq!(told(&one, 1)[0].1, "worker n1 changed its kernel from 5 to 6");
}

#[test]
fn objects_that_do_not_say_when_they_changed_are_left_out() {
    let mut journal = Journal::default();
    for managed in [json!(null), json!([]), json!([{"manager": "x"}]), json!([{"time": "yesterday"}]), json!({"a": 1})]
    {
        let value = json!({"metadata": {"name": "default", "managedFields": managed}});
        journal.seen("FelixConfiguration", &serde_json::from_value(value).expect("an object"));
    }
    assert!(journal.entries.is_empty());
}

#[test]
fn host_endpoints_that_one_writer_makes_for_all_workers_are_one_change() {
    let mut journal = Journal::default();
    // A list is in the order of names.
    for (name, when) in [("n1-hep", -900), ("n2-hep", -1000), ("n3-hep", -800)] {
        journal.one_of_many_seen("HostEndpoint", &object(name, 1, when, "kube-controllers", when));
    }
    journal.one_of_many_seen("HostEndpoint", &object("n1-hep", 2, -60, "calicoctl", -900));
    journal.one_of_many_gone("HostEndpoint", &object("n2-hep", 1, -1000, "x", -1000), at(-30));
    let by = |by: &str| by.to_owned();
    let expected = [
        (-30, "HostEndpoint n2-hep removed".to_owned(), by("")),
        (-60, "HostEndpoint n1-hep changed".to_owned(), by("calicoctl")),
        (-1000, "3 HostEndpoints made, the last of them n3-hep".to_owned(), by("kube-controllers")),
    ];
    assert_eq!(told(&journal, 0), expected);
    for number in 0..10_000 {
        let when = number * 30;
        journal.one_of_many_seen("HostEndpoint", &object(&format!("n{number}"), 1, when, "autoscaler", when));
    }
    assert!(journal.entries.len() <= 3 * MOST_OF_ONE, "{}", journal.entries.len());
    journal.many_forgotten();
    assert!(journal.entries.is_empty());
}
