use super::*;
use crate::aggregator::Peer;
use crate::checks::Severity;
use crate::cli::repair::evidence::{Bundle, Evidence};
use crate::cli::repair::memory::{Done, Memory};
use crate::cli::repair::situation::{BgpPassword, Platform, Root, Worker};
use serde_json::json;

fn at(seconds: i64) -> jiff::Timestamp {
    jiff::Timestamp::from_second(1_795_255_200 + seconds).expect("valid")
}

fn taken(seconds: i64) -> Evidence {
    Evidence::Taken(Bundle { node: "n1".into(), boot: String::new(), at: at(seconds), facts: true })
}

fn calico(node: &str, ready: bool) -> Pod {
    Pod {
        namespace: "calico-system".into(),
        name: format!("calico-node-{node}"),
        uid: format!("u-{node}"),
        node: node.into(),
        app: "calico-node".into(),
        phase: "Running".into(),
        ready,
        of_daemon_set: true,
        ..Pod::default()
    }
}

fn peer(name: &str, zone: &str) -> Peer {
    Peer { name: name.into(), zone: Some(zone.into()), ready: true, ..Peer::default() }
}

/// One of three workers in two zones whose calico-node fails, with evidence: all is as it should be for the ladder.
fn failing(code: &str) -> Situation {
    let vpc = json!({"metadata": {"labels": {"ibm-cloud.kubernetes.io/vpc-instance-id": "i"}},
        "spec": {"providerID": "ibm://a///c1/w1"}});
    Situation {
        now: at(0),
        node: Worker {
            name: "n1".into(),
            platform: Platform::of(&vpc),
            zone: Some("a".into()),
            pool: None,
            ready: "True (KubeletReady)".into(),
            cordoned: false,
            deleting: false,
            twin: None,
            agent: AgentState::Fresh,
            unknown: false,
            says: ("it is silent".into(), "look at its pod".into()),
            boot: "b1".into(),
            memory: None,
        },
        root: Some(Root {
            code: code.into(),
            severity: Severity::Critical,
            since: at(-600),
            detail: "d".into(),
            scope: Scope::Few,
            counted: 1,
            eligible: 3,
            next: None,
        }),
        codes: vec![code.into()],
        around: Vec::new(),
        others: vec![peer("n2", "a"), peer("n3", "b")],
        calico: Ok(vec![calico("n1", false), calico("n2", true), calico("n3", true)]),
        to_move: Ok(vec![Pod { name: "web".into(), ..Pod::default() }]),
        budgets: Ok(Vec::new()),
        ingress: Ok(true),
        bgp: None,
        evidence: taken(-60),
        lacks: Vec::new(),
    }
}

/// The same after this repair cordoned it and did these.
fn repaired(code: &str, steps: &[(&str, Outcome)]) -> Situation {
    let mut situation = failing(code);
    situation.node.cordoned = true;
    let done = |(step, outcome): &(&str, Outcome)| Done { step: (*step).to_owned(), at: at(-30), outcome: *outcome };
    situation.node.memory = Some(Memory {
        code: code.into(),
        since: at(-600),
        cordoned: true,
        boot: "b1".into(),
        evidence: String::new(),
        steps: steps.iter().map(done).collect(),
        ended: None,
    });
    situation
}

fn planned(situation: &Situation) -> Plan {
    plan(situation, &Book::open())
}

#[track_caller]
fn next(situation: &Situation, verdict: Verdict, key: Option<&str>) -> Plan {
    let plan = planned(situation);
    assert_eq!((plan.verdict, plan.next), (verdict, key), "{}", plan.sentence);
    plan
}

#[track_caller]
fn refused(situation: &Situation, says: &[&str]) {
    let plan = planned(situation);
    assert_eq!(plan.verdict, Verdict::Refused, "{}", plan.sentence);
    for text in says {
        assert!(plan.sentence.contains(text), "{text}: {}", plan.sentence);
    }
}

#[test]
fn the_ladder_of_calico_node_is_climbed_step_by_step() {
    use Outcome::{Begun, Done, NotCured};
    let code = "CniConfigMissing";
    let plan = next(&failing(code), Verdict::Ready, Some("cordon"));
    let keys: Vec<&str> = plan.steps.iter().map(|step| step.key).collect();
    assert_eq!(keys, ["cordon", "delete-calico-node", "drain", "reboot", "fresh-system"]);
    assert_eq!(plan.ladder, "calico-node");
    next(&repaired(code, &[("cordon", Done)]), Verdict::Ready, Some("delete-calico-node"));
    // Whoever was interrupted goes on with the same step.
    next(
        &repaired(code, &[("cordon", Done), ("delete-calico-node", Begun)]),
        Verdict::Ready,
        Some("delete-calico-node"),
    );
    let mut tried = repaired(code, &[("cordon", Done), ("delete-calico-node", NotCured)]);
    let plan = next(&tried, Verdict::Yours, Some("drain"));
    assert_eq!(plan.steps[1].status, Status::NotCured);
    tried.to_move = Ok(Vec::new());
    next(&tried, Verdict::Yours, Some("reboot"));
    tried.node.boot = "b2".into();
    let plan = next(&tried, Verdict::Yours, Some("fresh-system"));
    assert_eq!(plan.steps[4].commands, ["ibmcloud ks worker replace --cluster c1 --worker w1"]);
    // Who cordoned it by hand has done that step.
    let mut by_hand = failing(code);
    by_hand.node.cordoned = true;
    next(&by_hand, Verdict::Ready, Some("delete-calico-node"));
}

#[test]
fn what_was_tried_for_something_else_is_not_tried() {
    let mut other = repaired("BgpDaemonDown", &[("cordon", Outcome::Done), ("delete-calico-node", Outcome::NotCured)]);
    other.root.as_mut().expect("trouble").code = "CniConfigMissing".into();
    next(&other, Verdict::Ready, Some("delete-calico-node"));
    // Nor what was tried days ago, when nobody went on.
    let mut old = repaired("CniConfigMissing", &[("delete-calico-node", Outcome::NotCured)]);
    let memory = old.node.memory.as_mut().expect("memory");
    memory.cordoned = false;
    memory.steps[0].at = at(-90_000);
    next(&old, Verdict::Ready, Some("delete-calico-node"));
}

#[test]
fn it_ends_with_pods_let_in_again_where_this_repair_kept_them_out() {
    let mut cured = repaired("CniConfigMissing", &[("delete-calico-node", Outcome::Cured)]);
    cured.root = None;
    next(&cured, Verdict::Ready, Some("uncordon"));
    cured.node.memory.as_mut().expect("memory").cordoned = false;
    let plan = next(&cured, Verdict::Healthy, None);
    assert!(plan.sentence.contains("who did it lets pods in again"), "{}", plan.sentence);
    cured.node.cordoned = false;
    next(&cured, Verdict::Healthy, None);
    // What is left, and has no ladder, does not keep pods out.
    let mut other = repaired("CniConfigMissing", &[("delete-calico-node", Outcome::Cured)]);
    other.root.as_mut().expect("trouble").code = "ClockSkewed".into();
    next(&other, Verdict::Ready, Some("uncordon"));
    // What is left and has one goes on.
    other.root.as_mut().expect("trouble").code = "NodeFilesDamaged".into();
    next(&other, Verdict::Yours, Some("drain"));
}

#[test]
fn the_code_decides_the_ladder() {
    for (code, ladder) in [
        ("CniConfigMissing", "calico-node"),
        ("BgpDaemonDown", "calico-node"),
        ("CalicoNodeFailingOnNode", "calico-node"),
        ("PodRouteMissing", "calico-node"),
        ("ContainerdStoreCorrupt", "worker"),
        ("NodeFilesDamaged", "worker"),
        ("DiskFull", "explanation"),
        ("MasterUnreachable", "explanation"),
        ("ForeignDropRule", "explanation"),
        ("NobodyKnowsThis", "explanation"),
    ] {
        assert_eq!(planned(&failing(code)).ladder, ladder, "{code}");
    }
    let guided = planned(&failing("DiskFull"));
    assert!(guided.verdict == Verdict::Yours && !guided.steps.is_empty(), "{guided:?}");
    assert!(guided.steps.iter().all(|step| step.by == By::Person));
}

#[test]
fn every_step_has_its_words_and_commands() {
    let book = Book::open();
    let bgp = BgpPassword { secret: "calico-bgp-password".into(), there: true, ..BgpPassword::default() };
    for step in ladder::CALICO.iter().chain(&ladder::WORKER).chain(&ladder::BGP).chain(&[&ladder::UNCORDON]) {
        let mut situation = failing("CniConfigMissing");
        situation.bgp = Some(bgp.clone());
        let shown = show(&situation, &book, step, Status::Next);
        assert!(!shown.text.is_empty() && !shown.commands.is_empty(), "{}", step.key);
        assert!(!shown.verify.is_empty() && shown.needs.iter().all(|need| need.holds), "{shown:?}");
        let all = shown.commands.join("\n");
        assert!(!all.contains("XXXXX") && !all.contains("NODE") && !all.contains("WORKER_ID"), "{all}");
    }
}

#[test]
fn nothing_is_done_to_a_node_of_which_nobody_knows() {
    let mut deleting = failing("CniConfigMissing");
    deleting.node.deleting = true;
    refused(&deleting, &["being deleted"]);
    let mut twin = failing("CniConfigMissing");
    twin.node.twin = Some("n9".into());
    refused(&twin, &["left over", "n9 is in its place", "kubectl delete node n1"]);
    for agent in [AgentState::Missing, AgentState::Stale, AgentState::KubeletSilent] {
        let mut silent = failing("CniConfigMissing");
        silent.node.agent = agent;
        refused(&silent, &["nobody knows what is wrong on n1 now", "look at its pod"]);
    }
    let mut settling = failing("CniConfigMissing");
    settling.node.unknown = true;
    refused(&settling, &["nobody knows"]);
    let mut unseen = failing("CniConfigMissing");
    unseen.node.agent = AgentState::NotSeen;
    next(&unseen, Verdict::Ready, Some("cordon"));
}

#[test]
fn what_many_have_is_cured_on_none_of_them() {
    for scope in [Scope::Subset, Scope::Most, Scope::All] {
        let mut wide = failing("CniConfigMissing");
        let root = wide.root.as_mut().expect("trouble");
        (root.scope, root.counted, root.eligible) = (scope, 30, 40);
        root.next = Some("suspect pool red".into());
        refused(&wide, &["CniConfigMissing is on 30 of 40 workers", "no single one", "suspect pool red"]);
        assert_eq!(planned(&wide).ladder, "widespread");
    }
    for code in WIDESPREAD {
        let mut wide = failing("CniConfigMissing");
        wide.around = vec![code.to_owned()];
        refused(&wide, &[code, "many workers"]);
        assert!(!planned(&wide).steps.is_empty());
    }
    // A repair that is under way stops as well, when it turns out to be wide.
    let mut late = repaired("CniConfigMissing", &[("cordon", Outcome::Done)]);
    late.root.as_mut().expect("trouble").scope = Scope::Most;
    refused(&late, &["no single one"]);
}

#[test]
fn a_step_that_would_do_harm_is_refused_with_a_safer_one() {
    type Change = fn(&mut Situation);
    let cases: [(&str, Change, &[&str]); 8] = [
        ("last", |it| it.others.clear(), &["not the last Ready worker", "add a worker first"]),
        (
            "others cordoned",
            |it| it.others.iter_mut().for_each(|peer| peer.cordoned = true),
            &["no other worker is Ready"],
        ),
        ("others broken", |it| it.others.iter_mut().for_each(|peer| peer.ready = false), &["no other worker is Ready"]),
        (
            "control plane",
            |it| it.others.iter_mut().for_each(|peer| peer.control_plane = true),
            &["no other worker is Ready"],
        ),
        ("no evidence", |it| it.evidence = Evidence::None, &["evidence of this episode", "nodevitals gather"]),
        ("old evidence", |it| it.evidence = taken(-601), &["before this episode began"]),
        (
            "other repair",
            |it| {
                let memory = json!({"code": "X", "since": "2026-11-21T10:00:00Z", "cordoned": true});
                it.others[0].repair = Some(memory.to_string());
            },
            &["n2 is under repair", "finish that one first"],
        ),
        ("rights", |it| it.lacks = vec!["patch nodes".into()], &["missing: patch nodes", "ask for these rights"]),
    ];
    for (name, change, says) in cases {
        let mut situation = failing("CniConfigMissing");
        change(&mut situation);
        let plan = planned(&situation);
        assert_eq!((plan.verdict, plan.next), (Verdict::Refused, Some("cordon")), "{name}: {}", plan.sentence);
        assert!(says.iter().all(|text| plan.sentence.contains(text)), "{name}: {}", plan.sentence);
    }
    // A repair in another zone is nobody's concern, nor one that is over; and the owner may want speed.
    let mut elsewhere = failing("CniConfigMissing");
    let open = json!({"code": "X", "since": "2026-11-21T10:00:00Z", "cordoned": true}).to_string();
    elsewhere.others[1].repair = Some(open.clone());
    elsewhere.others[0].repair = Some(open.replace("true", "false"));
    elsewhere.evidence = Evidence::Declined;
    next(&elsewhere, Verdict::Ready, Some("cordon"));
}

#[test]
fn a_pod_is_deleted_only_where_another_comes() {
    let cordoned = || repaired("CniConfigMissing", &[("cordon", Outcome::Done)]);
    let mut none = cordoned();
    none.calico = Ok(vec![calico("n2", true)]);
    refused(&none, &["deletion of its calico-node pod", "there is none on this node"]);
    let mut alone = cordoned();
    alone.calico = Ok(vec![Pod { of_daemon_set: false, ..calico("n1", false) }]);
    refused(&alone, &["belongs to no DaemonSet"]);
    let mut unseen = cordoned();
    unseen.calico = Err("pods cannot be listed: 403: no".into());
    refused(&unseen, &["pods cannot be listed: 403"]);
    for code in ["WebhookBlocksSystemPods", "WebhookDeadlock"] {
        let mut blocked = cordoned();
        blocked.around = vec![code.to_owned()];
        refused(&blocked, &[code, "does not come back"]);
    }
    let mut held = cordoned();
    held.codes.push("ApiWriteBlocked".into());
    refused(&held, &["ApiWriteBlocked is told"]);
}

#[test]
fn steps_of_the_provider_are_refused_as_well() {
    let tried =
        || repaired("CniConfigMissing", &[("cordon", Outcome::Done), ("delete-calico-node", Outcome::NotCured)]);
    let mut held = tried();
    held.budgets = Ok(vec!["web holds default/web-1".into()]);
    refused(&held, &["A drain", "web holds default/web-1", "one replica more"]);
    let mut alone = tried();
    alone.others.remove(0);
    refused(&alone, &["nobody else serves it in a", "add a worker in this zone"]);
    alone.ingress = Ok(false);
    next(&alone, Verdict::Yours, Some("drain"));
    alone.ingress = Err("Ingresses cannot be listed: 403".into());
    refused(&alone, &["Ingresses cannot be listed"]);

    let drained = || Situation { to_move: Ok(Vec::new()), ..tried() };
    let controllers = |node: &str, ready| Pod { app: "calico-kube-controllers".into(), ..calico(node, ready) };
    let mut last_host = drained();
    last_host.calico = Ok(vec![calico("n1", false), controllers("n1", true)]);
    refused(&last_host, &["A reboot", "last host of calico-kube-controllers", "Ready elsewhere"]);
    last_host.calico = Ok(vec![calico("n1", false), controllers("n1", true), controllers("n2", true)]);
    next(&last_host, Verdict::Yours, Some("reboot"));

    let mut rebooted = drained();
    rebooted.node.boot = "b2".into();
    rebooted.around = vec!["PoolNotRefilled".into()];
    refused(&rebooted, &["A fresh system", "rebalance or resize the pool first"]);
    // Which rights the caller has for what this command does not do is nobody's concern here.
    let mut lacking = drained();
    lacking.lacks = vec!["patch nodes".into()];
    next(&lacking, Verdict::Yours, Some("reboot"));
}

#[test]
fn the_bgp_password_is_brought_over_for_all_at_once() {
    let mut situation = failing("BgpPasswordSecretMissing");
    let root = situation.root.as_mut().expect("trouble");
    (root.scope, root.counted) = (Scope::All, 3);
    situation.bgp = Some(BgpPassword { secret: "calico-bgp-password".into(), there: true, ..BgpPassword::default() });
    let plan = next(&situation, Verdict::Ready, Some("copy-bgp-secret"));
    assert_eq!(plan.ladder, "BGP password");
    let bgp = situation.bgp.as_mut().expect("password");
    (bgp.here, bgp.there) = (true, false);
    next(&situation, Verdict::Ready, Some("bgp-secret-access"));
    situation.bgp.as_mut().expect("password").here = false;
    refused(&situation, &["the Secret is in kube-system", "whoever changed the BGP password"]);
    // Where Calico has not moved there is nothing to copy.
    situation.bgp = None;
    assert_eq!(planned(&situation).ladder, "explanation");
}

#[test]
fn evidence_of_this_episode_stays_evidence_when_a_step_makes_it_begin_anew() {
    let mut situation = repaired("CniConfigMissing", &[("cordon", Outcome::Done)]);
    situation.root.as_mut().expect("trouble").since = at(-10);
    next(&situation, Verdict::Ready, Some("delete-calico-node"));
    situation.node.memory = None;
    refused(&situation, &["before this episode began"]);
}
