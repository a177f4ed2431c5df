//! From a real worker to kubectl and the cluster's report, end to end.

use std::time::Duration;

use anyhow::{Context, Result, ensure};
use nix::sys::signal::Signal;
use serde_json::Value;

use crate::product::{Product, SOON};
use crate::support::image;
use crate::support::node::condition;
use crate::support::wait::eventually;

#[test]
fn faults_turn_conditions_true_and_repairs_turn_them_false() -> Result<()> {
    let product = Product::deployed()?;
    for node in ["n1", "n2"] {
        product.wait_until_healthy(node);
    }
    the_report_counts_both_as_normal(&product);
    let pods = start_pods(&product)?;
    a_quiet_minute_has_no_write(&product)?;
    routine_raises_nothing(&product, &pods)?;
    jumps_of_kube_proxy(&product)?;
    cni_configuration(&product)?;
    a_pods_route(&product)?;
    a_small_file_system(&product)?;
    a_hung_containerd(&product)?;
    a_killed_containerd(&product)?;
    a_hung_kubelet(&product)?;
    a_killed_kubelet(&product)?;
    an_agent_that_is_gone(&product)
}

fn the_report_counts_both_as_normal(product: &Product) {
    eventually("the report counts two Normal workers", SOON, || {
        let report = product.report_json()?;
        let nodes = report["nodes"].as_array().context("nodes")?;
        ensure!(nodes.len() == 2 && nodes.iter().all(|node| node["state"] == "Normal"), "{report}");
        Ok(())
    });
}

/// Pods on the first node, which are old enough to be judged after the quiet minute.
fn start_pods(product: &Product) -> Result<Vec<String>> {
    let pods: Vec<String> = (1..=3).map(|number| format!("routine-{number}")).collect();
    for name in &pods {
        let pod = r#"{"apiVersion": "v1", "kind": "Pod", "metadata": {"name": "NAME", "namespace": "default"}, "spec": {
            "nodeName": "n1", "terminationGracePeriodSeconds": 0, "containers": [{"name": "web",
            "image": "docker.io/library/busybox:test", "imagePullPolicy": "Never", "command": ["sleep", "3600"]}]}}"#;
        product.cluster.apply(&pod.replace("NAME", name))?;
    }
    for name in &pods {
        eventually("the pod runs", SOON, || {
            let pod = product.cluster.get(&format!("/api/v1/namespaces/default/pods/{name}"))?;
            ensure!(pod["status"]["phase"] == "Running", "{}", pod["status"]);
            Ok(())
        });
    }
    Ok(pods)
}

/// Pods that end and begin, kube-proxy started anew, a Service that comes and goes, the CNI configuration written again.
fn routine_raises_nothing(product: &Product, pods: &[String]) -> Result<()> {
    let began = jiff::Timestamp::now();
    let node = product.cluster.node("n1")?;
    let pods: Vec<&str> = pods.iter().map(String::as_str).collect();
    product.cluster.kubectl(&[&["delete", "pod", "--wait"], &pods[..]].concat())?;
    node.kill("kube-proxy")?;
    node.start("kube-proxy")?;
    product.cluster.kubectl(&["create", "service", "clusterip", "routine", "--tcp=80"])?;
    let rewrite = "cd /etc/cni/net.d && cp 10-bridge.conflist .new && mv .new 10-bridge.conflist";
    node.read(&["sh", "-ec", rewrite])?;
    start_pods(product)?;
    product.cluster.kubectl(&["delete", "service", "routine"])?;
    product.cluster.kubectl(&[&["delete", "pod", "--wait"], &pods[..]].concat())?;
    // A bounded wait, since what is shown is that nothing comes of it; the shortest hold-downs are under a second.
    std::thread::sleep(Duration::from_secs(10));
    for event in product.cluster.writes_by("system:serviceaccount:nodevitals:nodevitals-agent")? {
        let at: jiff::Timestamp = event["stageTimestamp"].as_str().context("a time")?.parse()?;
        let conditions = &event["requestObject"]["status"]["conditions"];
        let raised = conditions.as_array().is_some_and(|all| all.iter().any(|it| it["status"] == "True"));
        assert!(at < began || !raised, "{conditions:#}");
    }
    product.wait_until_healthy("n1");
    Ok(())
}

fn a_quiet_minute_has_no_write(product: &Product) -> Result<()> {
    let before = product.agent_writes()?;
    // A bounded wait, since what is shown is that nothing happens.
    std::thread::sleep(Duration::from_secs(60));
    assert_eq!(product.agent_writes()? - before, 0, "writes of the agents in a quiet minute");
    Ok(())
}

fn jumps_of_kube_proxy(product: &Product) -> Result<()> {
    let node = product.cluster.node("n1")?;
    node.signal("kube-proxy", Signal::SIGSTOP)?;
    for base in ["PREROUTING", "OUTPUT"] {
        let comment = "kubernetes service portals";
        node.read(&[
            "iptables",
            "-t",
            "nat",
            "-D",
            base,
            "-m",
            "comment",
            "--comment",
            comment,
            "-j",
            "KUBE-SERVICES",
        ])?;
    }
    let message = product.wait_for("n1", "PacketFilterProblem", "True", "KubeProxyChainsUnhooked");
    assert!(
        message.contains("nat PREROUTING -> KUBE-SERVICES") && message.contains("Next: restart kube-proxy"),
        "{message}"
    );
    let described = product.cluster.kubectl(&["describe", "node", "n1"])?;
    assert!(described.contains("PacketFilterProblem") && described.contains("KubeProxyChainsUnhooked"), "{described}");
    eventually("the report names the node, the finding and the next step", SOON, || {
        let report = product.report(&[])?;
        let first = report.lines().find(|line| line.contains("n1")).context("n1")?;
        ensure!(first.contains("Critical") && first.contains("KubeProxyChainsUnhooked"), "{report}");
        ensure!(report.contains("Next: ") && report.contains("kube-proxy"), "{report}");
        Ok(())
    });
    let one = product.report(&["n1"])?;
    assert!(one.contains("KubeProxyChainsUnhooked") && one.contains("WorkerProblem"), "{one}");
    let since = another_image_goes_on(product)?;
    node.kill("kube-proxy")?;
    node.start("kube-proxy")?;
    product.wait_until_clear("n1", "PacketFilterProblem");
    product.wait_until_healthy("n1");
    let (_, episode) = what_is_told_of_the_jumps(product)?;
    ensure!(episode["since"] == since && episode["cleared"].is_string(), "{episode}");
    Ok(())
}

/// The condition on n1, and the episode in its agent's journal.
fn what_is_told_of_the_jumps(product: &Product) -> Result<(Value, Value)> {
    let node = product.cluster.node("n1")?;
    let condition = condition(&node.object(&product.cluster)?, "PacketFilterProblem")?.clone();
    let url = format!("http://{}:10580/findings", node.address());
    let page: Value = serde_json::from_str(&product.cluster.exec_in_ns(&["curl", "-sf", "--max-time", "10", &url])?)?;
    let episodes = page["episodes"].as_array().context("a journal")?;
    let mut of_code = episodes.iter().filter(|it| it["code"] == "KubeProxyChainsUnhooked");
    let episode = of_code.next().with_context(|| format!("no episode among {episodes:?}"))?.clone();
    ensure!(of_code.next().is_none(), "more than one: {episodes:?}");
    Ok((condition, episode))
}

/// All agents are rolled to another image while a finding counts: it is told on, as one, since when it began. Answers since when.
fn another_image_goes_on(product: &Product) -> Result<Value> {
    let (condition, episode) = what_is_told_of_the_jumps(product)?;
    let (writes, old) = (product.cluster.audit_events()?.len(), product.agent_pod("n1")?);
    let next = image::NAME.replace(":test", ":next");
    for name in ["n1", "n2"] {
        product.cluster.node(name)?.read(&["ctr", "--namespace", "k8s.io", "images", "tag", image::NAME, &next])?;
    }
    let agents = ["--namespace", "nodevitals", "daemonset/nodevitals-agent"];
    product.cluster.kubectl(&[&["set", "image"][..], &agents, &[&format!("agent={next}")]].concat())?;
    product.cluster.kubectl(&[&["rollout", "status", "--timeout=120s"][..], &agents].concat())?;
    ensure!(product.agent_pod("n1")? != old, "another process goes on");
    eventually("the journal is there again", SOON, || {
        let (_, now) = what_is_told_of_the_jumps(product)?;
        ensure!(now == episode, "{now}, and before {episode}");
        Ok(())
    });
    let (now, _) = what_is_told_of_the_jumps(product)?;
    for key in ["status", "reason", "lastTransitionTime"] {
        ensure!(now[key] == condition[key], "{now}, and before {condition}");
    }
    // Nor was it anything else in between, whoever wrote it.
    for event in &product.cluster.audit_events()?[writes..] {
        let conditions = event["requestObject"]["status"]["conditions"].as_array().into_iter().flatten();
        let mut told = conditions.filter(|it| it["type"] == "PacketFilterProblem");
        let of_n1 = event["objectRef"]["resource"] == "nodes" && event["objectRef"]["name"] == "n1";
        ensure!(!of_n1 || told.all(|it| it["status"] == "True"), "{event:#}");
    }
    Ok(episode["since"].clone())
}

fn cni_configuration(product: &Product) -> Result<()> {
    let node = product.cluster.node("n1")?;
    node.read(&["sh", "-c", "mkdir /etc/cni/away && mv /etc/cni/net.d/*.conflist /etc/cni/away/"])?;
    let message = product.wait_for("n1", "CNIProblem", "True", "CniConfigMissing");
    assert!(message.contains("/etc/cni/net.d"), "{message}");
    eventually("the runtime's own word is among the findings", SOON, || {
        let node = node.object(&product.cluster)?;
        let findings = node["metadata"]["annotations"]["nodevitals.dev/findings"].as_str().context("findings")?;
        ensure!(findings.contains("CniNotInitialized") && findings.contains("NetworkPluginNotReady"), "{findings}");
        Ok(())
    });
    node.read(&["sh", "-c", "cp /etc/cni/away/*.conflist /etc/cni/net.d/ && rm -r /etc/cni/away"])?;
    product.wait_until_clear("n1", "CNIProblem");
    Ok(())
}

fn a_pods_route(product: &Product) -> Result<()> {
    product.cluster.apply(
        r#"{"apiVersion": "v1", "kind": "Pod", "metadata": {"name": "web", "namespace": "default"}, "spec": {
            "nodeName": "n1", "terminationGracePeriodSeconds": 0, "containers": [{"name": "web",
            "image": "docker.io/library/busybox:test", "imagePullPolicy": "Never", "command": ["sleep", "3600"]}]}}"#,
    )?;
    let address = eventually("the pod has an address", SOON, || {
        let pod = product.cluster.get("/api/v1/namespaces/default/pods/web")?;
        ensure!(pod["status"]["phase"] == "Running", "{}", pod["status"]);
        Ok(pod["status"]["podIP"].as_str().context("an address")?.to_owned())
    });
    let node = product.cluster.node("n1")?;
    node.read(&["ip", "route", "add", "unreachable", &address])?;
    // The sandbox has to be older than 30 s before its route is missed; what captures it is told at once.
    let message = product.wait_for("n1", "PodRoutingProblem", "True", "PodRouteShadowed");
    assert!(message.contains("default/web") && message.contains(&address), "{message}");
    node.read(&["ip", "route", "del", "unreachable", &address])?;
    product.wait_until_clear("n1", "PodRoutingProblem");
    product.cluster.kubectl(&["delete", "pod", "web", "--wait=false"])?;
    Ok(())
}

fn a_small_file_system(product: &Product) -> Result<()> {
    let node = product.cluster.node("n1")?;
    node.read(&[
        "sh",
        "-c",
        "truncate -s 64M /var/lib/small.img && mkfs.ext4 -q /var/lib/small.img && mkdir -p /var/lib/small",
    ])?;
    node.read(&["mount", "-o", "loop", "/var/lib/small.img", "/var/lib/small"])?;
    node.read(&["mount", "--bind", "/var/lib/small", "/var/log"])?;
    node.read(&["sh", "-c", "dd if=/dev/zero of=/var/log/big bs=1M 2>/dev/null; sync; true"])?;
    let message = product.wait_for("n1", "CapacityProblem", "True", "DiskFull");
    assert!(message.contains("/var/log"), "{message}");
    node.read(&["rm", "/var/log/big"])?;
    // A full file system is over after a minute of room (its `clear_after`), to which the wait adds.
    eventually("CapacityProblem=False", SOON * 3, || {
        let (status, reason, message) = product.condition("n1", "CapacityProblem")?;
        ensure!(status == "False", "{status} {reason} {message}");
        Ok(())
    });
    // The node's programs hold log files open in it.
    node.read(&["umount", "--lazy", "/var/log"])?;
    node.read(&["umount", "--lazy", "/var/lib/small"])?;
    Ok(())
}

fn a_hung_containerd(product: &Product) -> Result<()> {
    let node = product.cluster.node("n1")?;
    node.signal("containerd", Signal::SIGSTOP)?;
    let message = product.wait_for("n1", "RuntimeProblem", "True", "ContainerdUnresponsive");
    assert!(message.contains("stopped by a signal"), "{message}");
    node.signal("containerd", Signal::SIGCONT)?;
    product.wait_until_clear("n1", "RuntimeProblem");
    Ok(())
}

fn a_killed_containerd(product: &Product) -> Result<()> {
    let node = product.cluster.node("n2")?;
    node.kill("containerd")?;
    product.wait_for("n2", "RuntimeProblem", "True", "ContainerdDown");
    node.start("containerd")?;
    product.wait_until_clear("n2", "RuntimeProblem");
    Ok(())
}

fn a_hung_kubelet(product: &Product) -> Result<()> {
    let node = product.cluster.node("n2")?;
    node.signal("kubelet", Signal::SIGSTOP)?;
    let message = product.wait_for("n2", "ControlPlanePathProblem", "True", "KubeletUnhealthy");
    assert!(message.contains("stopped by a signal"), "{message}");
    node.signal("kubelet", Signal::SIGCONT)?;
    product.wait_until_clear("n2", "ControlPlanePathProblem");
    Ok(())
}

fn a_killed_kubelet(product: &Product) -> Result<()> {
    let node = product.cluster.node("n2")?;
    node.kill("kubelet")?;
    product.wait_for("n2", "ControlPlanePathProblem", "True", "KubeletDown");
    node.start("kubelet")?;
    product.wait_until_clear("n2", "ControlPlanePathProblem");
    Ok(())
}

/// The label keeps the agent off n2: it is gone for good, and nobody knows what the Node still says, until that is taken off.
fn an_agent_that_is_gone(product: &Product) -> Result<()> {
    product.wait_until_healthy("n2");
    product.cluster.kubectl(&["label", "node", "n2", "nodevitals.dev/opt-out="])?;
    eventually("the conditions of n2 are Unknown", SOON * 3, || {
        let (status, reason, message) = product.condition("n2", "WorkerProblem")?;
        ensure!(status == "Unknown" && reason == "AgentStale", "{status} {reason} {message}");
        Ok(())
    });
    let (status, ..) = product.condition("n2", "Ready")?;
    assert_eq!(status, "True", "the kubelet's condition is not ours to change");
    ensure!(product.agent_pod("n2").is_err() && product.agent_pod("n1").is_ok(), "an agent on n2, or none on n1");
    let report = product.report(&[])?;
    assert!(report.contains("AgentStale"), "{report}");
    let on = |node: &str| product.cluster.node(node)?.read(&["sh", "-c", "ls -d /var/lib/nodevitals || true"]);
    ensure!(!on("n2")?.is_empty(), "the label alone erases nothing that may still be wanted");
    product.uninstall("n2")?;
    ensure!(on("n2")?.is_empty() && !on("n1")?.is_empty(), "on n2 {:?}, on n1 {:?}", on("n2")?, on("n1")?);
    // Long enough for the aggregator to write it again, if it did.
    std::thread::sleep(Duration::from_secs(5));
    let traces = |node: &str| -> Result<usize> {
        let object = product.cluster.node(node)?.object(&product.cluster)?;
        let annotations = object["metadata"]["annotations"].as_object().context("annotations")?.keys();
        let conditions = object["status"]["conditions"].as_array().context("conditions")?.iter();
        let ours = conditions.filter(|it| it["type"].as_str().is_some_and(|kind| kind.ends_with("Problem")));
        Ok(ours.count() + annotations.filter(|key| key.starts_with("nodevitals.dev/")).count())
    };
    ensure!(traces("n2")? == 0 && traces("n1")? > 8, "{} on n2, {} on n1", traces("n2")?, traces("n1")?);
    product.cluster.kubectl(&["label", "node", "n2", "nodevitals.dev/opt-out-"])?;
    eventually("n2 is healthy again", SOON * 3, || {
        let (status, reason, message) = product.condition("n2", "WorkerProblem")?;
        ensure!(status == "False", "{status} {reason} {message}");
        Ok(())
    });
    Ok(())
}
