//! Who leads, decided without a server.

use super::*;

const NOW: Timestamp = Timestamp::UNIX_EPOCH;

fn seconds(count: u64) -> Duration {
    Duration::from_secs(count)
}

fn held(holder: &str, version: &str) -> Value {
    let mut lease = Elector::new("nodevitals", holder).mine(&Value::Null, NOW);
    lease["metadata"]["resourceVersion"] = version.into();
    lease
}

#[test]
fn a_missing_or_released_lease_is_taken_at_once() {
    let mut elector = Elector::new("nodevitals", "a");
    let Step::Create(lease) = elector.decide(None, seconds(0), NOW) else { panic!("not created") };
    assert_eq!(holder(&lease), "a");
    assert_eq!(lease["spec"]["renewTime"], "1970-01-01T00:00:00.000000Z");
    assert_eq!(lease["metadata"], json!({"name": NAME, "namespace": "nodevitals"}));
    let mut released = held("b", "4");
    released["spec"]["holderIdentity"] = "".into();
    let Step::Replace(lease) = elector.decide(Some(released), seconds(0), NOW) else { panic!("not taken") };
    assert_eq!((version(&lease), &lease["spec"]["leaseTransitions"]), ("4", &json!(1)));
}

#[test]
fn a_lease_is_taken_only_when_it_has_not_changed_for_its_duration_as_seen_here() {
    let mut elector = Elector::new("nodevitals", "a");
    assert_eq!(elector.decide(Some(held("b", "1")), seconds(100), NOW), Step::Wait);
    assert_eq!(elector.decide(Some(held("b", "1")), seconds(114), NOW), Step::Wait);
    // Renewed meanwhile: the wait begins anew, whatever the holder's clock has written.
    assert_eq!(elector.decide(Some(held("b", "2")), seconds(116), NOW), Step::Wait);
    assert_eq!(elector.decide(Some(held("b", "2")), seconds(130), NOW), Step::Wait);
    assert!(matches!(elector.decide(Some(held("b", "2")), seconds(131), NOW), Step::Replace(_)));
}

#[test]
fn a_longer_lease_of_another_version_is_respected_within_reason() {
    let mut elector = Elector::new("nodevitals", "a");
    let mut long = held("b", "1");
    long["spec"]["leaseDurationSeconds"] = i32::MAX.into();
    assert_eq!(elector.decide(Some(long.clone()), seconds(0), NOW), Step::Wait);
    assert_eq!(elector.decide(Some(long.clone()), seconds(59), NOW), Step::Wait);
    assert!(matches!(elector.decide(Some(long), seconds(60), NOW), Step::Replace(_)));
}

#[test]
fn leadership_ends_by_itself_before_others_may_take_it() {
    let mut elector = Elector::new("nodevitals", "a");
    assert!(!elector.leads(seconds(0)));
    elector.leads_until = Some(seconds(100) + LEADS_FOR);
    assert!(elector.leads(seconds(109)));
    assert!(!elector.leads(seconds(110)));
    assert!(LEADS_FOR + ANSWER_WITHIN < LASTS);
}

#[test]
fn renewing_keeps_the_time_of_acquisition() {
    let elector = Elector::new("nodevitals", "a");
    let first = elector.mine(&Value::Null, NOW);
    let later = elector.mine(&first, Timestamp::from_second(60).expect("valid"));
    let (first, later) = (&first["spec"], &later["spec"]);
    assert_eq!((&later["acquireTime"], &later["leaseTransitions"]), (&first["acquireTime"], &json!(0)));
    assert_ne!(later["renewTime"], first["renewTime"]);
}
