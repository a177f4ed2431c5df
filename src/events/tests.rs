use super::*;
use crate::facts::utc as seconds;
use jiff::Timestamp;
use outbox::Waiting;

const NODE: Budget = Budget { burst: 10, per_hour: 60, all_per_second: 50 };

fn at(second: u64) -> Now {
    let wall = Timestamp::from_second(1_700_000_000 + i64::try_from(second).expect("small")).expect("valid");
    Now { wall, since_boot: Duration::from_secs(second) }
}

fn happened(reason: &str, warning: bool, second: u64) -> Occurrence {
    Occurrence {
        object: Object::node("n1"),
        reason: reason.into(),
        warning,
        message: format!("{reason} at {second}"),
        since: at(second).wall,
        at: at(second).wall,
    }
}

fn with_uid() -> Object {
    Object { uid: "u".into(), ..Object::node("n1") }
}

/// What goes at this time or up to ten seconds later, which is longer than any gap of a single node.
fn next(outbox: &mut Outbox, second: u64) -> Option<Waiting> {
    (second..second + 10).find_map(|second| match outbox.turn(at(second)) {
        Turn::Tell(one) => Some(*one),
        Turn::Wait(_) | Turn::Nothing => None,
    })
}

fn deliver(outbox: &mut Outbox, second: u64) -> Option<(bool, String, Value)> {
    let one = next(outbox, second)?;
    let request = outbox.request(&one, &with_uid(), "nodevitals-agent", "n1");
    outbox.settle(one, &with_uid(), &Fate::Told, at(second));
    Some(request)
}

#[test]
fn one_is_told_as_kubectl_describe_looks_for_it() {
    let mut outbox = Outbox::new(NODE);
    outbox.push(happened("DiskFull", true, 5), 1, at(5));
    let (exists, name, body) = deliver(&mut outbox, 5).expect("it goes at once");
    assert!(!exists);
    let expected = serde_json::json!({
        "apiVersion": "v1", "kind": "Event", "metadata": {"name": name, "namespace": "default"},
        "involvedObject": {"apiVersion": "v1", "kind": "Node", "name": "n1", "uid": "u", "namespace": ""},
        "reason": "DiskFull", "message": "DiskFull at 5", "type": "Warning", "count": 1,
        "firstTimestamp": "2023-11-14T22:13:25Z", "lastTimestamp": "2023-11-14T22:13:25Z",
        "source": {"component": "nodevitals-agent", "host": "n1"},
        "reportingComponent": "nodevitals-agent", "reportingInstance": "n1",
    });
    assert_eq!(body, expected);
    assert!(matches!(outbox.turn(at(60)), Turn::Nothing));
    assert_eq!(outbox.counts, Counts { written: 1, failed: 0, dropped: 0 });
}

#[test]
fn the_same_has_the_same_name_after_a_restart_and_a_later_one_another() {
    let name = |second| {
        let mut outbox = Outbox::new(NODE);
        outbox.push(happened("DiskFull", true, second), 1, at(second));
        deliver(&mut outbox, second).expect("it goes").1
    };
    assert_eq!(name(5), name(5));
    assert_ne!(name(5), name(6));
}

#[test]
fn what_flaps_is_one_event_that_counts_within_the_budget() {
    let mut outbox = Outbox::new(NODE);
    let (mut made, mut counted, mut last) = (0, 0, Value::Null);
    // On and off every second for an hour.
    for second in 0..3600 {
        outbox.push(happened("DiskFull", second % 2 == 0, second), 1, at(second));
        if let Turn::Tell(one) = outbox.turn(at(second)) {
            let (exists, _, body) = outbox.request(&one, &with_uid(), "c", "n1");
            outbox.settle(*one, &with_uid(), &Fate::Told, at(second));
            *(if exists { &mut counted } else { &mut made }) += 1;
            last = body;
        }
    }
    assert_eq!(made, 2, "one Event for the beginnings and one for the ends");
    assert!((60..=70).contains(&(made + counted)), "{made} + {counted}");
    assert!(last["count"].as_u64() > Some(1500), "{last}");
    assert_eq!(outbox.counts.dropped, 0);
}

#[test]
fn while_nobody_can_be_told_nothing_grows_and_what_is_told_late_has_its_own_times() {
    let mut outbox = Outbox::new(NODE);
    outbox.push(happened("DiskFull", true, 0), 1, at(0));
    for second in 1..3000 {
        if second % 10 == 0 {
            outbox.push(happened("KubeletDown", second % 20 == 0, second), 1, at(second));
        }
        if let Turn::Tell(one) = outbox.turn(at(second)) {
            outbox.settle(*one, &with_uid(), &Fate::Failed("no route".into(), Duration::ZERO), at(second));
        }
    }
    let tries = outbox.counts.failed;
    assert!((25..100).contains(&tries), "{tries}: they grow rarer up to every two minutes");
    let told: Vec<Value> =
        (3000..3600).step_by(130).filter_map(|second| Some(deliver(&mut outbox, second)?.2)).collect();
    assert_eq!(told.len(), 3, "{told:#?}");
    let one = told.iter().find(|it| it["reason"] == "DiskFull").expect("it was not lost");
    assert_eq!((&one["firstTimestamp"], &one["count"]), (&seconds(at(0).wall).into(), &1.into()));
    let begun = told.iter().find(|it| it["reason"] == "KubeletDown" && it["type"] == "Warning").expect("nor was this");
    assert_eq!(begun["firstTimestamp"], seconds(at(20).wall));
    assert_eq!((&begun["lastTimestamp"], &begun["count"]), (&seconds(at(2980).wall).into(), &149.into()));
}

#[test]
fn what_could_not_be_told_within_an_hour_is_dropped_and_counted() {
    let mut outbox = Outbox::new(NODE);
    outbox.push(happened("DiskFull", true, 0), 1, at(0));
    let one = next(&mut outbox, 0).expect("it goes");
    outbox.settle(one, &with_uid(), &Fate::Failed(String::new(), Duration::ZERO), at(0));
    assert!(matches!(outbox.turn(at(3600)), Turn::Nothing));
    assert_eq!(outbox.counts, Counts { written: 0, failed: 1, dropped: 1 });
    // Never more than a bounded number waits.
    for number in 0..1000 {
        outbox.push(happened(&format!("Code{number}"), true, 3600), 1, at(3600));
    }
    assert_eq!(outbox.counts.dropped, 1 + 1000 - 256);
}

#[test]
fn what_is_refused_is_dropped_what_has_expired_is_made_anew_and_a_server_is_obeyed() {
    let mut outbox = Outbox::new(NODE);
    outbox.push(happened("DiskFull", true, 0), 1, at(0));
    let one = next(&mut outbox, 0).expect("it goes");
    outbox.settle(one, &with_uid(), &Fate::Refused("403".into()), at(0));
    assert!(matches!(outbox.turn(at(1)), Turn::Nothing));

    outbox.push(happened("DiskFull", true, 10), 1, at(10));
    assert!(deliver(&mut outbox, 10).is_some_and(|(exists, ..)| !exists));
    outbox.push(happened("DiskFull", true, 20), 1, at(20));
    let one = next(&mut outbox, 20).expect("it goes");
    assert!(outbox.request(&one, &with_uid(), "c", "n1").0, "it is counted up");
    outbox.settle(one, &with_uid(), &Fate::Expired, at(20));
    assert!(deliver(&mut outbox, 21).is_some_and(|(exists, ..)| !exists), "somebody has deleted it");

    outbox.push(happened("KubeletDown", true, 30), 1, at(30));
    let one = next(&mut outbox, 30).expect("it goes");
    outbox.settle(one, &with_uid(), &Fate::Failed("429".into(), Duration::from_secs(300)), at(30));
    assert!(matches!(outbox.turn(at(329)), Turn::Wait(_)));
    assert!(next(&mut outbox, 333).is_some());
}

#[test]
fn five_thousand_nodes_that_lose_the_same_keep_to_the_rate_together() {
    // A tenth of them, at a tenth of the rate.
    let (nodes, mut at_second) = (500, vec![0_u32; 400]);
    let budget = Budget { all_per_second: 5, ..NODE };
    let mut last = 0;
    for _ in 0..nodes {
        let mut outbox = Outbox::new(budget);
        for code in ["DefaultRouteMissing", "GatewayUnreachable", "MasterUnreachable"] {
            outbox.push(happened(code, true, 0), nodes, at(0));
        }
        let mut told = 0;
        for second in 0..400 {
            if deliver_within(&mut outbox, second) {
                at_second[usize::try_from(second).expect("small")] += 1;
                told += 1;
                last = last.max(second);
            }
        }
        assert_eq!(told, 3, "each has told all of its own");
    }
    assert_eq!(at_second.iter().sum::<u32>(), 1500);
    let busiest = at_second.chunks(20).map(|chunk| chunk.iter().sum::<u32>()).max().expect("some");
    assert!(busiest < 20 * 5 * 14 / 10, "{busiest} in twenty seconds, at 5 a second: {at_second:?}");
    assert!(last < 390, "{last} s");
}

fn deliver_within(outbox: &mut Outbox, second: u64) -> bool {
    let Turn::Tell(one) = outbox.turn(at(second)) else { return false };
    outbox.settle(*one, &with_uid(), &Fate::Told, at(second));
    true
}
