//! Workers that were forgotten, and those that come and go; and what routine makes look like it.

use serde_json::{Value, json};

use super::*;
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
    findings(cluster, at(now)).into_iter().map(|draft| (draft.code, draft.severity, draft.on)).collect()
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
    assert!(findings(&cluster, at(3_600))[0].next.contains("kubectl uncordon n2"));
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
    let on: Vec<String> = ["n5", "n0", "n2", "n3"].map(str::to_owned).into();
    assert_eq!(all, [("WorkerPatchOutdated", Info, on)], "10 is more than 9, and each pool is looked at by itself");
    let detail = findings(&planted(old), at(0)).remove(0).detail;
    assert!(detail.contains("3 of 4 workers of pool red (from v1.30.9+IKS, others have v1.30.10+IKS)"), "{detail}");
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

#[test]
fn a_kubelet_that_comes_and_goes_is_told_though_it_is_ready_now() {
    let mut cluster = planted(|_, _| {});
    let turn = |cluster: &mut Cluster, ready: bool, cordoned: bool| {
        let mut node = worker(3);
        node["status"]["conditions"][0]["status"] = if ready { "True" } else { "Unknown" }.into();
        if cordoned {
            cordoned_at(&mut node, 0);
        }
        apply(cluster, &node);
    };
    turn(&mut cluster, false, false);
    turn(&mut cluster, true, false);
    assert!(codes(&cluster, 0).is_empty(), "once there and back, as in every reboot");
    turn(&mut cluster, false, true);
    turn(&mut cluster, true, true);
    turn(&mut cluster, true, false);
    assert!(codes(&cluster, 0).is_empty(), "somebody works on it");
    turn(&mut cluster, false, false);
    turn(&mut cluster, true, false);
    assert_eq!(codes(&cluster, 0), [("NodeReadyFlapping", Warning, vec!["n3".to_owned()])]);
    assert!(codes(&cluster, 3600).len() == 1 && codes(&cluster, 3601).is_empty(), "it clears");
}
