//! A cause that was planted on a real API server: how many have it, what they share, what changed before, what is left of it
//! once it is gone.

use anyhow::{Context, Result, ensure};
use serde_json::{Value, json};

use crate::bench::{Bench, Running, now, soon};

const WORKERS: usize = 20;
const RED: usize = 6;
const DAEMON_SETS: &str = "/apis/apps/v1/namespaces/kube-system/daemonsets";
const POLICIES: &str = "/apis/networking.k8s.io/v1/namespaces/default/networkpolicies";

fn name(number: usize) -> String {
    format!("s{number:02}")
}

fn tell(bench: &Bench, number: usize, bad: bool) -> Result<()> {
    let finding = ("KubeProxyChainsUnhooked", "critical", "packetFilter", "PacketFilterProblem");
    bench.tell(&name(number), bad.then_some(finding), &now())
}

/// calico-node on this worker.
fn calico_node(bench: &Bench, number: usize, ready: bool) -> Result<()> {
    bench.calico_node_is(&format!("calico-node-{number:02}"), "kube-system", ready)
}

fn plant(bench: &Bench) -> Result<()> {
    for number in 0..WORKERS {
        let name = name(number);
        bench.add_worker(&name, &json!({"agentpool": if number < RED { "red" } else { "blue" }}))?;
        bench.add_calico_node(&format!("calico-node-{number:02}"), "kube-system", &name, true)?;
    }
    let labels = json!({"k8s-app": "calico-node"});
    let set = json!({"apiVersion": "apps/v1", "kind": "DaemonSet", "metadata": {"name": "calico-node", "namespace": "kube-system"},
        "spec": {"selector": {"matchLabels": labels}, "template": {"metadata": {"labels": labels},
            "spec": {"containers": [{"name": "calico-node", "image": "x"}]}}}});
    bench.admin(&format!("POST {DAEMON_SETS}"), &set)?;
    rolled(bench, WORKERS)
}

/// So many Pods of the DaemonSet are up to date.
fn rolled(bench: &Bench, updated: usize) -> Result<()> {
    let status = json!({"status": {"desiredNumberScheduled": WORKERS, "currentNumberScheduled": WORKERS,
        "numberReady": WORKERS, "numberMisscheduled": 0, "updatedNumberScheduled": updated, "observedGeneration": 1}});
    bench.admin(&format!("PATCH strategic {DAEMON_SETS}/calico-node/status"), &status).map(drop)
}

fn report(aggregator: &Running) -> Result<Value> {
    Ok(serde_json::from_str(&aggregator.page("/api/v1/report")?)?)
}

/// The codes of the findings about the cluster. All planted Nodes have one address, which is told once they are ten minutes
/// old.
fn about_the_cluster(report: &Value) -> Vec<&str> {
    let codes = report["cluster"].as_array().into_iter().flatten().filter_map(|finding| finding["code"].as_str());
    codes.filter(|code| *code != "NodeIpReused").collect()
}

#[test]
fn a_planted_cause_is_found_with_what_changed_before() -> Result<()> {
    let bench = Bench::take()?;
    plant(&bench)?;
    bench.add_pod("aggregator-s", "aggregator", &name(WORKERS - 1))?;
    let aggregator = bench.aggregator("aggregator-s")?;
    soon("all is well", || {
        let report = report(&aggregator)?;
        ensure!(
            report["workers"]["normal"] == WORKERS && about_the_cluster(&report).is_empty(),
            "{}",
            report["cluster"]
        );
        Ok(())
    });
    let policy = json!({"apiVersion": "networking.k8s.io/v1", "kind": "NetworkPolicy", "metadata": {"name": "late"},
        "spec": {"podSelector": {}}});
    bench.admin(&format!("POST {POLICIES}"), &policy)?;
    for number in 0..RED {
        tell(&bench, number, true)?;
        calico_node(&bench, number, false)?;
    }
    soon("it is found", || found(&report(&aggregator)?));
    shown(&bench, &aggregator)?;

    rolled(&bench, 7)?;
    soon("the update is told", || {
        let report = report(&aggregator)?;
        ensure!(about_the_cluster(&report).contains(&"CalicoRollingUpdate"), "{}", report["cluster"]);
        Ok(())
    });
    rolled(&bench, WORKERS)?;
    for number in 0..RED {
        tell(&bench, number, false)?;
        calico_node(&bench, number, true)?;
    }
    soon("it is over", || {
        let report = report(&aggregator)?;
        ensure!(report["findings"] == json!([]) && about_the_cluster(&report).is_empty(), "{report}");
        Ok(())
    });
    bench.admin(&format!("DELETE {POLICIES}/late"), &Value::Null)?;
    bench.admin(&format!("DELETE {DAEMON_SETS}/calico-node"), &Value::Null)?;
    Ok(())
}

fn found(report: &Value) -> Result<()> {
    let finding = &report["findings"][0];
    ensure!(finding["scope"] == "subset" && finding["counted"] == RED && finding["eligible"] == WORKERS, "{finding}");
    ensure!(finding["suspects"][0]["sentence"] == "6 of 6 in pool red fail, 0 of 14 elsewhere", "{finding}");
    let before = finding["before"].as_array().context("changes")?;
    let late = before.iter().find(|change| change["what"] == "NetworkPolicy default/late made");
    ensure!(late.is_some_and(|change| change["by"].as_str().is_some_and(|by| by.starts_with("curl"))), "{before:?}");
    let next = report["nodes"][0]["next"].as_str().context("a next step")?;
    ensure!(
        next.starts_with("6 of 20 workers have this: do not repair these workers one by one: suspect pool red"),
        "{next}"
    );
    let calico = report["cluster"].as_array().context("findings")?;
    let subset = calico.iter().find(|finding| finding["code"] == "CalicoNodeFailingSubset");
    let subset = subset.with_context(|| format!("{calico:?}"))?;
    ensure!(subset["nodes"] == RED && subset["workers"][0] == "s00", "{subset}");
    Ok(())
}

/// The same to people, and to Prometheus.
fn shown(bench: &Bench, aggregator: &Running) -> Result<()> {
    let kubeconfig = bench.admin_kubeconfig()?.display().to_string();
    let output = bench.nodevitals(&["report", "--kubeconfig", &kubeconfig])?;
    let text = String::from_utf8_lossy(&output.stdout);
    assert!(text.contains("Suspect: 6 of 6 in pool red fail, 0 of 14 elsewhere"), "{text}");
    let metrics = aggregator.check_metrics()?;
    for line in [
        r#"nodevitals_cluster_finding_scope{code="KubeProxyChainsUnhooked",scope="subset"} 20"#,
        r#"nodevitals_cluster_finding{code="CalicoNodeFailingSubset",severity="critical"} 6"#,
    ] {
        assert!(metrics.contains(line), "{metrics}");
    }
    Ok(())
}
