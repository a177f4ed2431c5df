use serde_json::json;

use super::*;
use crate::facts::*;

fn back<T: Replay + serde::Serialize + PartialEq + std::fmt::Debug>(fact: &T) {
    let value = serde_json::to_value(fact).expect("plain");
    assert_eq!(replay::<T>(&value).as_ref(), Ok(fact), "{value}");
}

#[test]
fn each_form_of_a_fact_comes_back() {
    back(&Action::Drop);
    back(&Action::Jump("cali-INPUT".into()));
    back(&Action::Dnat(Some("10.0.0.1:80".parse().expect("valid"))));
    back(&Action::Dnat(None));
    back(&RouteAnswer::Via { link: 3, gateway: None, kind: RouteKind::Other(9) });
    back(&RouteAnswer::NoWay("ENETUNREACH".into()));
    back(&Resource::Threads(Program::Containerd));
    back(&Quantity::Percent(12.5));
    let condition = KubeletCondition {
        kind: "Ready".into(),
        status: "False".into(),
        reason: "KubeletNotReady".into(),
        message: "PLEG is not healthy".into(),
        since: None,
        heartbeat: Some(Timestamp::MAX),
    };
    back(&KubeletSaid { read_at: Timestamp::UNIX_EPOCH, conditions: vec![condition] });
    back(&OomScope::Service("ssh.service".into()));
    back(&BgpState::OpenSent);
    back(&Family::V6);
    back(&PathEnd::Fault(PathFault::new(PathStep::Tls, FaultKind::ForeignAuthority, "d")));
    let rule = FilterRule::new(1);
    back(&FilterRule {
        action: Action::Goto("x".into()),
        source: Some(Is::new("10.0.0.0/8".parse().expect("valid"), true)),
        ports: vec![(1, 2)],
        sets: vec![Is::new("s".into(), false)],
        marks: true,
        mark: Some(Is::new((1, 2), false)),
        packets: Some(u64::MAX),
        ..rule.clone()
    });
    back(&rule);
    let content: [Result<CniConfig, CniFault>; 2] = [Err(CniFault::Empty), Err(CniFault::Field("plugins".into()))];
    content.iter().for_each(back);
    let seen: [Seen<()>; 3] = [Seen::Yes(()), Seen::Absent, Seen::not_yet("x")];
    seen.iter().for_each(back);
    back(&Process { program: Program::Bird, pid: -1, state: 'T', started_at: Timestamp::MAX });
}

#[test]
fn a_blank_snapshot_comes_back_and_an_empty_one_is_unknown() {
    let identity = Identity {
        hostname: "n1".into(),
        boot_id: "b".into(),
        machine_id: "m".into(),
        kernel: "6".into(),
        node_name: Some("n1".into()),
    };
    let blank = Snapshot::blank(Timestamp::UNIX_EPOCH, identity.clone());
    back(&blank);
    let value = json!({ "takenAt": Timestamp::UNIX_EPOCH, "identity": identity, "health": { "kubelet": "absent" } });
    let read: Snapshot = replay(&value).expect("an older version wrote less");
    assert_eq!((&read.routing, &read.health.kubelet), (&blank.routing, &Seen::Absent));
    let why = read.health.felix.error().expect("it is not known");
    assert_eq!((why.what.as_str(), why.detail.as_str()), ("felix", "the bundle does not hold it"));
}

#[test]
fn a_fault_names_the_field_and_the_first_counts() {
    let good = json!({ "index": 1, "name": "eth0", "kind": null, "up": true, "carrier": true, "loopback": false, "mtu": 1500, "master": null });
    assert!(replay::<Vec<Link>>(&json!([good])).is_ok());
    for (field, value, why) in [
        ("mtu", json!(-1), "field [1].mtu: holds -1, and should be a number (u32)"),
        ("mtu", json!(null), "field [1].mtu: is missing, and should be a number (u32)"),
        ("name", json!(["x"]), "field [1].name: holds [\"x\"], and should be a text"),
        ("up", json!("yes"), "field [1].up: holds \"yes\", and should be true or false"),
    ] {
        let mut bad = good.clone();
        bad[field] = value;
        assert_eq!(replay::<Vec<Link>>(&json!([good, bad, {}])), Err(why.to_owned()));
    }
    let why = replay::<Ruleset>(&json!({ "backend": "both" })).expect_err("no such backend");
    assert_eq!(why, "field backend: holds \"both\", and should be one of Nftables, Legacy");
    let why = replay::<(u8, u8)>(&json!([1])).expect_err("one is missing");
    assert!(why.ends_with("holds [1], and should be 2 values"), "{why}");
}

#[test]
fn names_are_those_of_json() {
    assert_eq!(["bytes_per_second", "some_avg10", "up"].map(camel_case), ["bytesPerSecond", "someAvg10", "up"]);
}
