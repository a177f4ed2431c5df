//! The texts, compared with what is in `tests/golden`. `UPDATE_GOLDEN=1 cargo test` writes them anew.

use super::*;
use crate::aggregator::report::{API_VERSION, CannotLook, ChangeBefore, ClusterFinding, Ended, Source};
use crate::aggregator::testing::{agent, at, cluster, marked, moment, node, silent};
use crate::aggregator::{report_once, testing::bare};

const DISK: (&str, &str, &str, &str) =
    ("DiskPressureImminent", "warning", "capacity", "5.2 % left on /var/lib/containerd, and falling");
const CHAINS: (&str, &str, &str, &str) = (
    "KubeProxyChainsUnhooked",
    "critical",
    "packetFilter",
    "nat PREROUTING and OUTPUT do not jump to KUBE-SERVICES, so that no Service is reached from this worker",
);

fn sample(only: Option<&str>) -> ClusterReport {
    let mut cordoned = node("worker-04", "eu-de-2", "blue", "Normal", &[]);
    cordoned["spec"]["unschedulable"] = true.into();
    let mut evil = node(
        "worker-09",
        "eu-de-3",
        "green",
        "Warning",
        &[("DiskFull\u{1b}[2J", "warning", "capacity", "line one\nline two \u{202e}reversed")],
    );
    evil["metadata"]["labels"]["topology.kubernetes.io/zone"] = "eu\u{7}".into();
    let mut broken = node("worker-02", "eu-de-1", "blue", "Critical", &[CHAINS, DISK]);
    broken["status"]["nodeInfo"]["containerRuntimeVersion"] = "containerd://1.7.22".into();
    let nodes = [
        node("worker-01", "eu-de-1", "blue", "Normal", &[]),
        broken,
        node("worker-03", "eu-de-2", "blue", "Warning", &[DISK]),
        cordoned,
        marked(node("worker-05", "eu-de-2", "green", "Normal", &[])),
        silent(node("worker-06", "eu-de-3", "green", "Normal", &[])),
        node("worker-07", "eu-de-3", "green", "Unknown", &[]),
        bare("worker-08"),
        evil,
    ];
    let agents: Vec<_> = (1..=9)
        .filter(|number| *number != 5)
        .map(|number| agent(&format!("nodevitals-agent-{number}"), &format!("worker-0{number}"), true))
        .collect();
    let mut cluster = cluster(&nodes, &agents);
    // Its kubelet was started anew, three hours ago.
    let started = |second| at(second).as_second();
    let query = format!("started={}.{}&boot={}", started(-10_800), started(-863_900), started(-864_060));
    cluster.agent_said("worker-02", &query, at(0));
    report_once(&cluster, only, moment(0))
}

fn compare(file: &str, text: &str) {
    let path = std::path::Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/golden").join(file);
    if std::env::var_os("UPDATE_GOLDEN").is_some() {
        std::fs::write(&path, text).expect("can write the golden file");
    }
    let golden = std::fs::read_to_string(&path).expect("the golden file is there");
    assert_eq!(text, golden, "{} differs; UPDATE_GOLDEN=1 writes it anew", path.display());
}

#[test]
fn what_is_wrong_with_the_cluster() {
    let mut report = sample(None);
    let finding = |workers: &[&str], nodes: usize| ClusterFinding {
        code: "CalicoInitFailed".to_owned(),
        severity: Severity::Critical,
        area: crate::checks::Area::PodRouting,
        subject: "install-cni: Error".to_owned(),
        object: String::new(),
        detail: "init container install-cni\u{1b}[2J of calico-node does not succeed".to_owned(),
        next: "read `kubectl -n calico-system logs calico-node-1 -c install-cni`".to_owned(),
        since: Some(at(-300)),
        noticed: false,
        before: Vec::new(),
        nodes,
        workers: workers.iter().map(|name| (*name).to_owned()).collect(),
    };
    report.cluster = vec![finding(&["worker-01", "worker-0\u{7}"], 7), finding(&["worker-04"], 1)];
    let change =
        |seconds, what: &str, by: &str| ChangeBefore { at: at(seconds), what: what.to_owned(), by: by.to_owned() };
    report.cluster[0].before = vec![
        change(-420, "FelixConfiguration default changed", "kubectl-edit\u{7}"),
        change(-7_500, "IPPool a removed", ""),
    ];
    report.cluster_more = 2;
    report.view.cannot_look = vec![CannotLook {
        what: vec!["ippools".to_owned(), "pods".to_owned()],
        why: "no permission\u{7}".to_owned(),
        since: at(-300),
        codes: vec!["IpLeakSuspected".to_owned(), "TyphaUnhealthy".to_owned()],
    }];
    let (cleared, cure) = (at(-3_600), None);
    report.nodes.iter_mut().filter(|node| node.name == "worker-04").for_each(|node| {
        node.episodes = vec![Ended { code: "DiskFull\u{7}".to_owned(), since: at(-10_800), cleared, cure }];
        node.more = std::num::NonZeroU32::new(3);
    });
    let whole = render(&report, None, false, Paint::PLAIN);
    let part = whole.split("\nZONE").next().expect("a part");
    report.cluster.remove(0);
    let one = render(&report, Some("worker-04"), false, Paint::PLAIN);
    compare("report-cluster.txt", &format!("{part}---\n{one}"));
}

#[test]
fn the_cluster_at_a_glance() {
    compare("report.txt", &render(&sample(None), None, false, Paint::PLAIN));
}

#[test]
fn the_cluster_on_a_narrow_terminal() {
    let narrow = Paint { color: true, width: Some(72) };
    compare("report-narrow.txt", &render(&sample(None), None, false, narrow));
}

#[test]
fn one_worker_in_full() {
    compare("report-node.txt", &render(&sample(Some("worker-02")), Some("worker-02"), false, Paint::PLAIN));
    compare("report-stale-node.txt", &render(&sample(Some("worker-05")), Some("worker-05"), false, Paint::PLAIN));
}

#[test]
fn what_a_root_explains_is_told_with_it() {
    let mut report = sample(Some("worker-02"));
    let worker = report.nodes.iter_mut().find(|node| node.name == "worker-02").expect("it is there");
    let root = crate::verdict::CausedBy::from(&worker.findings[0]);
    worker.findings[1].caused_by = Some(root);
    let paint = Paint { color: false, width: None };
    let text = render(&report, Some("worker-02"), false, paint);
    assert!(text.contains("\n    causes DiskPressureImminent  Warning, capacity"), "{text}");
    assert!(!text.contains("do what helps against DiskPressureImminent"), "the root's next step counts: {text}");
    report.nodes.retain(|node| node.name == "worker-02");
    let text = render(&report, None, false, paint);
    assert!(text.contains("\n  Causes: DiskPressureImminent.\n") && !text.contains("Also"), "{text}");
    // Its root is not listed: it stands for itself.
    report.nodes[0].findings.remove(0);
    let text = render(&report, Some("worker-02"), false, paint);
    assert!(text.contains("\n 1. DiskPressureImminent"), "{text}");
}

#[test]
fn what_many_workers_have_is_told_once_with_what_they_share() {
    let worker = |number: usize| {
        let (zone, state, findings) =
            if number < 14 { ("eu-de-1", "Critical", &[CHAINS][..]) } else { ("eu-de-2", "Normal", &[][..]) };
        node(&format!("n{number:02}"), zone, "blue", state, findings)
    };
    let nodes: Vec<_> = (0..54).map(worker).collect();
    let agents: Vec<_> =
        (0..54).map(|number| agent(&format!("a{number:02}"), &format!("n{number:02}"), true)).collect();
    let text = render(&report_once(&cluster(&nodes, &agents), None, moment(0)), None, false, Paint::PLAIN);
    compare("report-widespread.txt", text.split("\nNAME").next().expect("a part"));
    assert!(!text.contains("Next: do what helps"), "{text}");
}

#[test]
fn many_workers_are_not_all_listed_unless_asked_for() {
    let nodes: Vec<_> = (0..60)
        .map(|number| {
            node(
                &format!("n{number:02}"),
                "z",
                "p",
                if number < 12 { "Critical" } else { "Normal" },
                if number < 12 { &[CHAINS] } else { &[] },
            )
        })
        .collect();
    let agents: Vec<_> =
        (0..60).map(|number| agent(&format!("a{number:02}"), &format!("n{number:02}"), true)).collect();
    let report = report_once(&cluster(&nodes, &agents), None, moment(0));
    let short = render(&report, None, false, Paint::PLAIN);
    assert!(
        short.contains("48 Normal workers are not listed; --all lists them.") && short.contains("Details of 2 more"),
        "{short}"
    );
    assert!(!short.contains("n59"));
    let long = render(&report, None, true, Paint::PLAIN);
    assert!(long.contains("n59") && !long.contains("not listed") && !long.contains("more: nodevitals"), "{long}");
}

#[test]
fn nothing_that_steers_a_terminal_comes_through() {
    let report = sample(None);
    let texts = [
        render(&report, None, true, Paint::PLAIN),
        render(&sample(Some("worker-09")), Some("worker-09"), true, Paint::PLAIN),
    ];
    for text in texts {
        assert!(text.chars().all(|c| c == '\n' || (!c.is_control() && c != '\u{202e}')), "{text:?}");
    }
}

#[test]
fn a_view_that_is_lost_is_all_that_is_said() {
    let mut cluster = cluster(&[node("bad", "z", "p", "Critical", &[CHAINS])], &[]);
    cluster.nodes_sight.lost(at(-60), "connection refused".into());
    let report = report_once(&cluster, None, moment(0));
    assert_eq!((report.api_version.as_str(), report.source), (API_VERSION, Source::NodeObjects));
    let text = render(&report, None, false, Paint::PLAIN);
    assert_eq!(
        text,
        "Cannot see the cluster since 2026-11-21T09:59:00Z: connection refused. Nothing is known about its 1 worker.\n"
    );
}
