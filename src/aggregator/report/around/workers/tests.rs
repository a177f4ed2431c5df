//! Workers that were forgotten, and those that come and go; and what routine makes look like it.

use serde_json::{Value, json};

use super::*;
use crate::aggregator::memory::sift;
use crate::aggregator::testing::{apply, at, cluster, node};
use crate::checks::Severity;

fn worker(number: usize) -> Value {
    let mut node = node(&format!("n{number}"), "a", if number < 4 { "red" } else { "blue" }, "Normal", &[]);
    node["status"]["nodeInfo"] = json!({"kubeletVersion": "v1.30.9+IKS"});
    node["metadata"]["annotations"]["nodevitals.dev/since"] = json!(at(-864_000));
    node
}

fn planted(change: impl Fn(usize, &mut Value)) -> Cluster {
    let nodes: Vec<Value> = (0..6)
        .map(|number| {
            let mut node = worker(number);
            change(number, &mut node);
            node
        })
        .collect();
    cluster(&nodes, &[])
}

fn codes(cluster: &Cluster, now: i64) -> Vec<(&'static str, Severity, Vec<String>)> {
    findings(cluster, &cluster.duplicates(), at(now))
        .into_iter()
        .map(|draft| (draft.code, draft.severity, draft.on))
        .collect()
}

fn cordoned_at(node: &mut Value, second: i64) {
    node["spec"] = json!({"unschedulable": true,
        "taints": [{"key": "node.kubernetes.io/unschedulable", "effect": "NoSchedule", "timeAdded": at(second)}]});
}

#[test]
fn a_worker_that_is_well_and_cordoned_for_an_hour_was_forgotten() {
    assert!(codes(&planted(|_, _| {}), 0).is_empty(), "all is well");
    let forgotten = |more: fn(&mut Value)| {
        planted(move |number, node| {
            if number == 2 {
                cordoned_at(node, 0);
                more(node);
            }
        })
    };
    let mut cluster = forgotten(|_| {});
    assert!(codes(&cluster, 3_599).is_empty(), "a repair takes its time");
    assert_eq!(codes(&cluster, 3_600), [("NodeStillCordoned", Info, vec!["n2".to_owned()])]);
    assert!(findings(&cluster, &HashMap::new(), at(3_600))[0].next.contains("kubectl uncordon n2"));
    apply(&mut cluster, &worker(2));
    assert!(codes(&cluster, 3_600).is_empty(), "it clears");
    for why in [
        (|node: &mut Value| node["metadata"]["annotations"]["nodevitals.dev/maintenance"] = "disks".into())
            as fn(&mut Value),
        |node| node["metadata"]["annotations"]["nodevitals.dev/state"] = "Critical".into(),
        |node| node["metadata"]["annotations"]["nodevitals.dev/since"] = json!(at(60)),
        |node| node["status"]["conditions"][0]["status"] = "False".into(),
        |node| node["metadata"]["deletionTimestamp"] = json!(at(0)),
        |node| node["spec"]["taints"][0]["key"] = "node-role.kubernetes.io/control-plane".into(),
    ] {
        assert!(codes(&forgotten(why), 3_600).is_empty(), "somebody works on it, or it is not well");
    }
    // Without a time at its taint it counts from when it was seen.
    let untimed = forgotten(|node| node["spec"]["taints"] = json!([]));
    assert!(codes(&untimed, 3_599).is_empty());
    assert_eq!(codes(&untimed, 3_600).len(), 1);
}

#[test]
fn a_worker_behind_its_pool_is_told_once_the_update_is_over() {
    let old = |number: usize, node: &mut Value| {
        if number == 1 {
            node["status"]["nodeInfo"]["kubeletVersion"] = "v1.30.10+IKS".into();
        }
        if number == 5 {
            node["status"]["nodeInfo"]["kubeletVersion"] = "v1.29.3".into();
        }
    };
    let all = codes(&planted(old), 0);
    let on: Vec<String> = ["n0", "n2", "n3", "n5"].map(str::to_owned).into();
    assert_eq!(all, [("WorkerPatchOutdated", Info, on)], "10 is more than 9, and each pool is looked at by itself");
    let detail = findings(&planted(old), &HashMap::new(), at(0)).remove(0).detail;
    assert!(detail.contains("3 of 4 workers of pool red (from v1.30.9+IKS, others have v1.30.10+IKS)"), "{detail}");
    let left_over = findings(&planted(old), &HashMap::from([("n5", "n4")]), at(0)).remove(0);
    assert_eq!(left_over.on, ["n0", "n2", "n3"], "what is left over of a worker has its old kubelet");
    let updating = planted(|number, node| {
        old(number, node);
        if number == 1 || number == 4 {
            node["metadata"]["creationTimestamp"] = json!(at(-UPDATING + 1));
        }
    });
    assert!(codes(&updating, 0).is_empty(), "an update goes on");
    let strange = planted(|number, node| {
        if number < 3 {
            node["status"]["nodeInfo"]["kubeletVersion"] = ["", "v1.30", "custom-build"][number].into();
        }
    });
    assert!(codes(&strange, 0).is_empty());
}

/// What the control plane says of this worker's kubelet.
fn turn(cluster: &mut Cluster, number: usize, ready: bool, cordoned: bool, second: i64) {
    let mut node = worker(number);
    node["status"]["conditions"][0]["status"] = if ready { "True" } else { "Unknown" }.into();
    if cordoned {
        cordoned_at(&mut node, 0);
    }
    cluster.apply_node(&serde_json::from_value(node).expect("a node"), at(second));
}

/// Away at this second and back after another.
fn away(cluster: &mut Cluster, workers: std::ops::Range<usize>, second: i64, long: i64) {
    for (ready, second) in [(false, second), (true, second + long)] {
        for (second, number) in (second..).zip(workers.clone()) {
            turn(cluster, number, ready, false, second);
        }
        sift(cluster, at(second + 20));
    }
}

#[test]
fn a_kubelet_that_comes_and_goes_is_told_though_it_is_ready_now() {
    let mut cluster = planted(|_, _| {});
    turn(&mut cluster, 3, false, false, 0);
    turn(&mut cluster, 3, true, false, 0);
    assert!(codes(&cluster, 60).is_empty(), "once there and back, as in every reboot");
    turn(&mut cluster, 3, false, true, 0);
    turn(&mut cluster, 3, true, true, 0);
    turn(&mut cluster, 3, true, false, 0);
    assert!(codes(&cluster, 60).is_empty(), "somebody works on it");
    turn(&mut cluster, 3, false, false, 0);
    turn(&mut cluster, 3, true, false, 0);
    sift(&mut cluster, at(0));
    assert!(codes(&cluster, SIFTED - 1).is_empty(), "whether others turned too is not known yet");
    assert_eq!(codes(&cluster, SIFTED), [("NodeReadyFlapping", Warning, vec!["n3".to_owned()])]);
    assert!(codes(&cluster, 3600).len() == 1 && codes(&cluster, 3601).is_empty(), "it clears");
}

#[test]
fn kubelets_that_turn_together_with_most_others_do_not_flap() {
    let told = |cluster: &Cluster, second| codes(cluster, second).into_iter().map(|(.., on)| on).collect::<Vec<_>>();
    // The master is away three times within an hour, for moments and for longer than turns are thought to be one.
    for long in [30, 600] {
        let mut cluster = planted(|_, _| {});
        for second in [0, 1000, 2000] {
            away(&mut cluster, 0..6, second, long);
            assert!((second..second + 900).step_by(10).all(|second| told(&cluster, second).is_empty()), "{long} s");
        }
        let none = cluster.nodes().all(|(name, _)| cluster.memory.turns(name, 0..=i64::MAX) == 0);
        assert!(none, "nothing of it is remembered");
    }
    // One of them turned before by itself, and does so once more.
    let mut cluster = planted(|_, _| {});
    away(&mut cluster, 2..3, 0, 40);
    away(&mut cluster, 0..6, 300, 40);
    assert!(told(&cluster, 900).is_empty(), "twice by itself, twice with all");
    away(&mut cluster, 2..3, 1000, 40);
    assert_eq!(told(&cluster, 1200), [["n2"]]);
    away(&mut cluster, 0..6, 1300, 40);
    assert_eq!(told(&cluster, 1500), [["n2"]], "nor is it forgotten in such an outage");
    assert!(told(&cluster, 1500 + 3600).is_empty(), "it clears");
    // Half of the workers are no master's outage; one that is cordoned or away for long cannot turn with the others.
    let mut cluster = planted(|_, _| {});
    for second in [0, 1000] {
        away(&mut cluster, 0..3, second, 40);
    }
    assert_eq!(told(&cluster, 1200), [["n0", "n1", "n2"]]);
    let mut cluster = planted(|_, _| {});
    turn(&mut cluster, 4, false, false, -7200);
    turn(&mut cluster, 5, true, true, -7200);
    for second in [0, 1000] {
        away(&mut cluster, 0..4, second, 40);
    }
    assert!(told(&cluster, 1200).is_empty());
}

#[test]
fn older_kernels_and_systems_are_told_too_where_they_can_be_compared() {
    let with = |kernels: [&'static str; 4], systems: [&'static str; 4]| {
        let said = planted(move |number, node| {
            if number < 4 {
                node["status"]["nodeInfo"]["kernelVersion"] = kernels[number].into();
                node["status"]["nodeInfo"]["osImage"] = systems[number].into();
            }
        });
        findings(&said, &HashMap::new(), at(0)).into_iter().map(|draft| (draft.detail, draft.on)).collect::<Vec<_>>()
    };
    let (kernel, system) = ("5.15.0-119-generic", "Ubuntu 22.04.5 LTS");
    assert!(with([kernel; 4], [system; 4]).is_empty(), "all have the same");
    let older = with(["5.15.0-97-generic", kernel, kernel, kernel], [system, "Ubuntu 22.04.3 LTS", system, system]);
    let words = "1 of 4 workers of pool red (kernel from 5.15.0-97-generic, others have 5.15.0-119-generic); 1 of 4 workers of pool red (OS from Ubuntu 22.04.3 LTS, others have Ubuntu 22.04.5 LTS)";
    assert_eq!(older.len(), 1);
    assert!(older[0].0.ends_with(words), "{}", older[0].0);
    assert_eq!(older[0].1, ["n0", "n1"]);
    assert!(
        with([kernel, kernel, "5.15.0-1050-ibm", "none"], [system, system, "Red Hat 8.9", ""]).is_empty(),
        "no other make"
    );
}

#[test]
fn metrics_that_are_not_collected_any_more_are_told() {
    let mut cluster = planted(|_, _| {});
    let mut look = |second: i64, came: bool| {
        let now = crate::aggregator::testing::moment(second);
        if came {
            cluster.scraped(now);
        }
        cluster.misses_scrapes(now.since_boot);
        codes(&cluster, second)
    };
    assert!(look(0, false).is_empty(), "nobody ever collected them");
    for round in 0..=20 {
        assert!(look(round * 30, true).is_empty());
    }
    assert!(look(899, false).is_empty());
    assert_eq!(look(900, false), [("AgentScrapeFailing", Warning, vec![])]);
    assert!(look(910, true).is_empty(), "it clears");
}

#[test]
fn a_gateway_enabled_cluster_that_is_newer_than_they_were_made_for_is_told() {
    let told = |kubelet: &'static str, public: [bool; 2]| {
        let cluster = planted(move |number, node| {
            let gateway = number < 2;
            let labels = &mut node["metadata"]["labels"];
            labels["ibm-cloud.kubernetes.io/worker-pool-name"] = if gateway { "gateway" } else { "compute" }.into();
            node["status"]["nodeInfo"]["kubeletVersion"] = kubelet.into();
            if public[usize::from(!gateway)] {
                let addresses = &mut node["status"]["addresses"];
                *addresses = serde_json::json!([{"type": "ExternalIP", "address": format!("169.1.1.{number}")}]);
            }
        });
        codes(&cluster, 0).into_iter().map(|(code, ..)| code).collect::<Vec<_>>()
    };
    for kubelet in ["v1.24.17+IKS", "v1.33.1+IKS", "v1.23.5+b463d71"] {
        assert_eq!(told(kubelet, [true, false]), ["GatewayClusterUnsupported"], "{kubelet}");
    }
    for kubelet in ["v1.23.17+IKS", "v1.22.0+894a78b", "v1.33.1", "odd"] {
        assert!(told(kubelet, [true, false]).is_empty(), "{kubelet}");
    }
    assert!(told("v1.33.1+IKS", [true, true]).is_empty(), "pools that only have these names");
    assert!(told("v1.33.1+IKS", [false, false]).is_empty());
}
