//! Points in time as people and Kubernetes write them.

use jiff::Timestamp;

/// To the second, as Kubernetes keeps times.
pub(crate) fn whole_seconds(at: Timestamp) -> Timestamp {
    Timestamp::from_second(at.as_second()).unwrap_or(at)
}

/// RFC 3339 in UTC, to the second.
pub(crate) fn utc(at: Timestamp) -> String {
    whole_seconds(at).to_string()
}

/// The same as a part of a file's name.
pub(crate) fn utc_in_names(at: Timestamp) -> String {
    utc(at).replace(['-', ':'], "")
}

#[test]
fn times_are_to_the_second() {
    let at: Timestamp = "2026-11-21T10:00:00.987Z".parse().expect("a time");
    assert_eq!((&*utc(at), &*utc_in_names(at)), ("2026-11-21T10:00:00Z", "20261121T100000Z"));
}
