//! Whatever workers that fail have in common is found: planted one after the other on one real API server, on other workers each
//! time, so that of two causes never more than a few workers are the same. Where pool, zone and subnet are planted, and with
//! what changed before, is in `scope` and `trees`.

use anyhow::{Result, ensure};
use serde_json::{Value, json};

use crate::bench::{Bench, Running, SOON, now, soon};
use crate::objects::node;
use crate::support::wait::eventually;

const WORKERS: usize = 24;
/// They are in rows of six.
const ROW: usize = 6;
/// Those that come later.
const NEW: std::ops::Range<usize> = WORKERS..WORKERS + ROW;
const DAY: i64 = 24 * 3600;
/// What runs on workers is asked for every ten seconds.
const LOOKED: std::time::Duration = SOON.saturating_mul(2);

fn name(number: usize) -> String {
    format!("c{number:02}")
}

fn address(number: usize) -> String {
    format!("10.0.2.{}", number + 1)
}

fn row(number: usize) -> usize {
    number / ROW
}

fn column(number: usize) -> usize {
    number % ROW
}

/// Four more ways to take six of them, each with two of a row at most.
fn diagonal(number: usize) -> usize {
    (row(number) + column(number)) % 4
}

/// Its kubelet and kernel, as it registers.
fn worker(number: usize) -> Value {
    let mut node = node(&name(number), &json!({}));
    node["metadata"]["annotations"]["projectcalico.org/IPv4Address"] = format!("{}/24", address(number)).into();
    node["status"]["addresses"] = json!([{"type": "InternalIP", "address": address(number)}]);
    if row(number) == 0 {
        node["status"]["nodeInfo"]["kubeletVersion"] = "v1.35.5".into();
    }
    if row(number) == 1 {
        node["status"]["nodeInfo"]["kernelVersion"] = "7".into();
    }
    node
}

fn add(bench: &Bench, number: usize) -> Result<()> {
    let name = name(number);
    bench.admin("POST /api/v1/nodes", &worker(number))?;
    bench.add_agent_pod(&name)?;
    bench.set_ready(&format!("agent-{name}"), true)?;
    bench.tell(&name, None, &now())
}

/// A Pod of Calico's, Ready for long.
fn calico(bench: &Bench, pod: &str, app: &str, version: &str, on: usize) -> Result<()> {
    let (pods, image) = ("/api/v1/namespaces/kube-system/pods", format!("quay.io/calico/part:{version}"));
    let body = json!({"apiVersion": "v1", "kind": "Pod", "metadata": {"name": pod, "labels": {"k8s-app": app}},
        "spec": {"nodeName": name(on), "serviceAccountName": "calico-node", "terminationGracePeriodSeconds": 0,
            "containers": [{"name": "c", "image": image}]}});
    bench.admin(&format!("POST {pods}"), &body)?;
    let status = json!({"status": {"containerStatuses": [{"name": "c", "image": image, "imageID": "", "ready": true,
        "restartCount": 0, "state": {"running": {}}}]}});
    bench.admin(&format!("PATCH strategic {pods}/{pod}/status"), &status)?;
    bench.calico_node_is(pod, "kube-system", true)
}

/// A Pod of the DaemonSet that is on the last row only.
fn scanner(bench: &Bench, on: usize) -> Result<()> {
    let owner =
        json!([{"apiVersion": "apps/v1", "kind": "DaemonSet", "name": "scanner", "uid": "d", "controller": true}]);
    let body = json!({"apiVersion": "v1", "kind": "Pod", "metadata": {"name": format!("scanner-{on}"), "ownerReferences": owner},
        "spec": {"nodeName": name(on), "containers": [{"name": "c", "image": "x"}]}});
    bench.admin("POST /api/v1/namespaces/default/pods", &body).map(drop)
}

fn plant(bench: &Bench) -> Result<()> {
    for (namespace, account) in [("kube-system", "calico-node"), ("default", "default")] {
        let meta = json!({"name": account, "namespace": namespace});
        bench.apply(&json!({"apiVersion": "v1", "kind": "ServiceAccount", "metadata": meta}).to_string())?;
    }
    for number in 0..WORKERS {
        add(bench, number)?;
        // What starts with a worker is not started anew.
        bench.age(&format!("/api/v1/nodes/{}", name(number)), &format!("minions/{}", name(number)), 30 * DAY)?;
        let version = if row(number) == 2 { "v3.29.0" } else { "v3.28.1" };
        calico(bench, &format!("calico-node-{number:02}"), "calico-node", version, number)?;
        if row(number) == 3 {
            scanner(bench, number)?;
        }
    }
    for (number, on) in [(0, 22), (1, 23)] {
        calico(bench, &format!("typha-{number}"), "calico-typha", "v3.28.1", on)?;
    }
    Ok(())
}

/// What its agent says when it asks for the map: when it booted, its kubelet and runtime began, which Typha serves it, and which
/// CNI configuration it has.
fn says(aggregator: &Running, number: usize) -> Result<()> {
    let second = |ago: i64| jiff::Timestamp::now().as_second() - ago;
    let of = |way: usize| diagonal(number) == way;
    let (lately, long) = (second(3_600), second(20 * DAY));
    let booted = if of(0) { lately } else { long };
    // It starts with the worker, or much later.
    let begun = |anew: bool| if anew { lately } else { booted + 5 };
    let typha = address(if of(3) { 22 } else { 23 });
    let cni = if column(number) < 2 { "bbbbbbbb" } else { "aaaaaaaa" };
    let started = format!("{}.{}", begun(of(1)), begun(of(2)));
    let query = format!("node={}&boot={booted}&started={started}&typha={typha}&cni={cni}", name(number));
    aggregator.page(&format!("/api/v1/map?{query}")).map(drop)
}

/// They fail, the aggregator says this of what they have in common, and they are well again.
fn fail(bench: &Bench, aggregator: &Running, on: impl Fn(usize) -> bool, all: usize, expected: &[&str]) -> Result<()> {
    let workers: Vec<usize> = (0..all).filter(|number| on(*number)).collect();
    let finding = ("KubeProxyChainsUnhooked", "critical", "packetFilter", "PacketFilterProblem");
    let since = now();
    workers.iter().try_for_each(|number| bench.tell(&name(*number), Some(finding), &since))?;
    let report = || -> Result<Value> { Ok(serde_json::from_str(&aggregator.page("/api/v1/report")?)?) };
    eventually(expected[0], LOOKED, || {
        let report = report()?;
        let found = &report["findings"][0];
        ensure!(
            found["scope"] == "subset" && found["counted"] == workers.len() && found["eligible"] == all,
            "{found:#}"
        );
        let suspects = found["suspects"].as_array().into_iter().flatten();
        let told: Vec<&str> = suspects.filter_map(|suspect| suspect["sentence"].as_str()).collect();
        for words in expected {
            ensure!(told.iter().any(|sentence| sentence.starts_with(words)), "no {words:?} in {told:#?}");
        }
        ensure!(told.len() == expected.len(), "{told:#?}");
        let shared = found["shared"].as_str().unwrap_or_default();
        let count = workers.len();
        let next =
            format!("{count} of {all} workers have this: do not repair these workers one by one: suspect {shared}, ");
        ensure!(report["nodes"][0]["next"].as_str().is_some_and(|it| it.starts_with(&next)), "{}", report["nodes"][0]);
        Ok(())
    });
    workers.iter().try_for_each(|number| bench.tell(&name(*number), None, &now()))?;
    soon("it is over", || {
        let report = report()?;
        ensure!(report["findings"] == json!([]), "{}", report["findings"]);
        Ok(())
    });
    Ok(())
}

#[test]
fn whatever_workers_that_fail_have_in_common_is_found() -> Result<()> {
    let bench = Bench::take()?;
    plant(&bench)?;
    bench.add_pod("aggregator-c", "aggregator", &name(0))?;
    let aggregator = bench.aggregator("aggregator-c")?;
    soon("it has a map", || says(&aggregator, 0));
    (0..WORKERS).try_for_each(|number| says(&aggregator, number))?;
    let fail = |on: &dyn Fn(usize) -> bool, expected: &[&str]| fail(&bench, &aggregator, on, WORKERS, expected);
    // What they are.
    fail(&|it| row(it) == 0, &["6 of 6 with kubelet v1.35.5 fail, 0 of 18 elsewhere"])?;
    fail(&|it| row(it) == 1, &["6 of 6 with kernel 7 fail, 0 of 18 elsewhere"])?;
    fail(&|it| row(it) == 2, &["6 of 6 with Calico v3.29.0 fail, 0 of 18 elsewhere"])?;
    // What runs there: they came shortly before.
    let hosted = "6 of 6 with Pods of DaemonSet default/scanner fail, 0 of 18 elsewhere, of 24 looked at; they came to 6 within the hour before the first failure";
    fail(&|it| row(it) == 3, &[hosted])?;
    // What their agents say.
    fail(&|it| diagonal(it) == 0, &["6 of 6 rebooted since "])?;
    fail(&|it| diagonal(it) == 1, &["6 of 6 with kubelet restarted since "])?;
    fail(&|it| diagonal(it) == 2, &["6 of 6 with runtime restarted since "])?;
    fail(
        &|it| diagonal(it) == 3,
        &["6 of 6 with Typha 10.0.2.23 (kube-system/typha-0 on c22) fail, 0 of 18 elsewhere"],
    )?;
    fail(&|it| column(it) < 2, &["8 of 8 with CNI configuration bbbbbbbb fail, 0 of 16 elsewhere"])?;
    // What happens to them now.
    let becomes = |on: &dyn Fn(usize) -> bool, key: &str, what: &str| {
        (0..WORKERS).filter(|number| on(*number)).try_for_each(|number| {
            let status = json!({"status": {"nodeInfo": {key: what}}});
            bench.admin(&format!("PATCH strategic /api/v1/nodes/{}/status", name(number)), &status).map(drop)
        })
    };
    becomes(&|it| matches!(column(it), 2 | 3), "osImage", "Debian 13")?;
    let updated = ["8 of 8 with OS Debian 13 fail, 0 of 16 elsewhere", "8 of 8 updated since "];
    fail(&|it| matches!(column(it), 2 | 3), &updated)?;
    becomes(&|it| column(it) > 3, "machineID", "m2")?;
    fail(&|it| column(it) > 3, &["8 of 8 reloaded since "])?;
    new_ones(&bench, &aggregator)
}

/// Others join, and fail.
fn new_ones(bench: &Bench, aggregator: &Running) -> Result<()> {
    (NEW.start..NEW.end).try_for_each(|number| add(bench, number))?;
    fail(bench, aggregator, |it| NEW.contains(&it), NEW.end, &["6 of 6 created since "])
}
