//! `nodevitals repair` on real nodes, with a DaemonSet in the place of calico-node whose init container writes the CNI
//! configuration, as Calico's does.

use std::process::{Command, Output};

use anyhow::{Context, Result, ensure};

use crate::product::{Product, SOON, program};
use crate::support::parts;
use crate::support::wait::eventually;

const NODES: [&str; 3] = ["n1", "n2", "n3"];
const CALICO_NODE: &str = r#"{"apiVersion": "apps/v1", "kind": "DaemonSet",
    "metadata": {"name": "calico-node", "namespace": "kube-system", "labels": {"k8s-app": "calico-node"}},
    "spec": {"selector": {"matchLabels": {"k8s-app": "calico-node"}}, "template": {
        "metadata": {"labels": {"k8s-app": "calico-node"}},
        "spec": {"hostNetwork": true, "terminationGracePeriodSeconds": 0, "tolerations": [{"operator": "Exists"}],
            "initContainers": [{"name": "install-cni", "image": "docker.io/library/busybox:test", "imagePullPolicy": "Never",
                "command": ["sh", "-ec", "cp /cni/away/10-bridge.conflist /cni/net.d/.new; mv /cni/net.d/.new /cni/net.d/10-bridge.conflist"],
                "volumeMounts": [{"name": "cni", "mountPath": "/cni"}]}],
            "containers": [{"name": "stand-in", "image": "docker.io/library/busybox:test", "imagePullPolicy": "Never",
                "command": ["sleep", "86400"]}],
            "volumes": [{"name": "cni", "hostPath": {"path": "/etc/cni"}}]}}}}"#;

fn repair(product: &Product, arguments: &[&str]) -> Result<(i32, String)> {
    let mut command = bounded(product);
    command.args(["repair", "n1", "--kubeconfig"]).arg(product.cluster.admin_kubeconfig()?).args(arguments);
    ended(&mut command)
}

/// The program, ended if it hangs.
fn bounded(product: &Product) -> Command {
    let mut command = product.cluster.command_in("timeout");
    command.args(["--signal=KILL", "600"]).arg(program());
    command
}

/// Exit status and all that it prints.
fn ended(command: &mut Command) -> Result<(i32, String)> {
    let Output { status, stdout, stderr } = command.output()?;
    let text = format!("{}{}", String::from_utf8_lossy(&stdout), String::from_utf8_lossy(&stderr));
    Ok((status.code().context("an exit status")?, text))
}

#[track_caller]
fn refused(product: &Product, arguments: &[&str], says: &str) -> Result<()> {
    let (code, text) = repair(product, arguments)?;
    assert!(code == 3 && text.contains(says), "{code}: {text}");
    let n1 = product.cluster.get("/api/v1/nodes/n1")?;
    assert!(n1["spec"]["unschedulable"].is_null() && n1["metadata"]["annotations"]["nodevitals.dev/repair"].is_null());
    Ok(())
}

fn calico_node(product: &Product, node: &str) -> Result<String> {
    let path = format!(
        "/api/v1/namespaces/kube-system/pods?labelSelector=k8s-app%3Dcalico-node&fieldSelector=spec.nodeName%3D{node}"
    );
    let pods = product.cluster.get(&path)?;
    let pod = pods["items"].as_array().and_then(|pods| pods.first()).context("no calico-node")?;
    let ready = pod["status"]["conditions"].as_array().context("conditions")?;
    ensure!(ready.iter().any(|it| it["type"] == "Ready" && it["status"] == "True"), "{}", pod["status"]);
    Ok(pod["metadata"]["uid"].as_str().context("a uid")?.to_owned())
}

fn lose_the_cni_configuration(product: &Product, node: &str) -> Result<()> {
    product.cluster.node(node)?.read(&["sh", "-c", "rm /etc/cni/net.d/*.conflist"])?;
    product.wait_for(node, "CNIProblem", "True", "CniConfigMissing");
    Ok(())
}

/// The walk as a terminal shows it: `cargo test --test cluster ladder -- --nocapture`.
#[expect(clippy::print_stdout, reason = "for whoever asks for it")]
fn shown(text: &str) {
    println!("{text}");
}

/// What a person types at a terminal where the program and kubectl are in the `PATH`: exit status and all that is printed.
fn typed(product: &Product, line: &str) -> Result<(i32, String)> {
    let mut words = line.split_whitespace();
    ensure!(words.next() == Some("nodevitals"), "{line}");
    let kubectl = parts::program("kubectl")?;
    let path = format!("{}:{}", kubectl.parent().context("a directory")?.display(), std::env::var("PATH")?);
    let mut command = bounded(product);
    command.args(words).env("PATH", path).env("KUBECONFIG", product.cluster.admin_kubeconfig()?);
    let (code, text) = ended(&mut command)?;
    shown(&format!("$ {line}\n{text}"));
    Ok((code, text))
}

/// Types this, and holds that it ends so and that what it prints names all of these.
fn named(product: &Product, line: &str, code: i32, names: &[&str]) -> Result<String> {
    let (ended, text) = typed(product, line)?;
    assert_eq!(ended, code, "{line}: {text}");
    let words = text.split_whitespace().collect::<Vec<_>>().join(" ");
    for name in names {
        assert!(words.contains(name), "{line} does not name {name}: {text}");
    }
    Ok(text)
}

/// What the node itself saw is in a bundle that was taken from afar.
fn it_holds_what_the_node_saw(product: &Product, bundle: &str) -> Result<()> {
    let judged = named(product, &format!("nodevitals check --from {bundle}"), 2, &["CniConfigMissing", "this is n1"])?;
    assert!(judged.contains("/etc/cni/net.d"), "{judged}");
    // And what its agent saw when it began.
    let all: Vec<_> = std::fs::read_dir(format!("{bundle}/kept"))?.flatten().map(|entry| entry.path()).collect();
    let kept = all.iter().map(|path| path.display().to_string()).find(|path| path.ends_with("-CniConfigMissing"));
    let kept = kept.with_context(|| format!("{all:?}"))?;
    named(product, &format!("nodevitals check --from {kept}"), 2, &["CniConfigMissing", "this is n1"])?;
    let manifest = std::fs::read_to_string(format!("{bundle}/manifest.json"))?;
    let manifest: serde_json::Value = serde_json::from_str(&manifest)?;
    let taken = |name: &str| {
        let item = manifest["items"].as_array().into_iter().flatten().find(|item| item["name"] == name);
        item.is_some_and(|item| item["failed"].is_null())
    };
    let pieces = [
        "api/node.json",
        "facts.json",
        "network/probes.json",
        "agent/metrics.txt",
        "kernel/meminfo",
        "filter/iptables-save.txt",
    ];
    for name in pieces {
        assert!(taken(name), "{name}: {manifest:#}");
    }
    let lost = manifest["items"].as_array().into_iter().flatten().find(|item| item["name"] == "network/capture.txt");
    assert!(lost.is_some_and(|item| item["failed"].as_str().is_some_and(|why| why.contains("tcpdump"))), "{lost:?}");
    let boot = &product.cluster.node("n1")?.object(&product.cluster)?["status"]["nodeInfo"]["bootID"];
    assert_eq!(&manifest["bootId"], boot);
    Ok(())
}

/// From the condition that alerts to evidence of the worker, each command being one that the text before it names; then
/// judges that evidence elsewhere. Answers with the bundle.
fn a_stranger_walks_from_the_alert_to_evidence(product: &Product, folder: &str) -> Result<String> {
    let described = product.cluster.kubectl(&["describe", "node", "n1"])?;
    let alert = described.lines().find(|line| line.contains("CNIProblem")).context("the condition")?;
    shown(&format!("{alert}\n"));
    assert!(alert.contains("True") && alert.contains("CniConfigMissing") && alert.contains("Next: "), "{alert}");
    let order = ["nodevitals report", "nodevitals explain CODE", "nodevitals gather NODE", "nodevitals repair NODE"];
    named(product, "nodevitals --help", 0, &order)?;
    eventually("the report knows it", SOON, || {
        let report = product.report(&[])?;
        ensure!(report.contains("CniConfigMissing"), "{report}");
        Ok(())
    });
    named(product, "nodevitals report", 0, &["nodevitals explain CniConfigMissing", "nodevitals repair n1"])?;
    named(product, "nodevitals explain CniConfigMissing", 0, &["nodevitals gather", "nodevitals repair NODE"])?;
    // Nothing was asked to be done, and nothing is: there is no evidence.
    named(
        product,
        "nodevitals repair n1",
        3,
        &["evidence of this episode: none", "nodevitals gather NODE -o DIR", "kubectl cordon n1"],
    )?;
    refused(product, &["--yes"], "A cordon would do harm now: evidence of this episode: none")?;
    eventually("the agent has kept evidence", SOON, || {
        let kept = product.cluster.node("n1")?.read(&["ls", "/var/lib/nodevitals/evidence"])?;
        ensure!(kept.contains("-CniConfigMissing") && !kept.contains(".new"), "{kept}");
        Ok(())
    });
    let bundle = format!("{folder}/n1");
    let next = format!("nodevitals repair n1 --evidence {bundle}");
    named(product, &format!("nodevitals gather n1 -o {folder}"), 0, &[&next])?;
    it_holds_what_the_node_saw(product, &bundle)?;
    named(product, &next, 2, &["evidence of this episode: taken at", "nodevitals repair n1 --yes"])?;
    Ok(bundle)
}

#[test]
fn the_ladder_of_calico_node_is_climbed_to_healthy_and_harm_is_refused() -> Result<()> {
    let product = Product::deployed_on(&[("n1", "zone-a"), ("n2", "zone-b"), ("n3", "zone-c")])?;
    for node in NODES {
        product.wait_until_healthy(node);
        let save = "mkdir /etc/cni/away && cp /etc/cni/net.d/10-bridge.conflist /etc/cni/away/";
        product.cluster.node(node)?.read(&["sh", "-c", save])?;
    }
    product.cluster.apply(CALICO_NODE)?;
    for node in NODES {
        eventually("calico-node is Ready", SOON, || calico_node(&product, node));
    }
    let (code, text) = repair(&product, &["--yes"])?;
    assert!(code == 0 && text.contains("Healthy: nothing is to be repaired on n1"), "{text}");

    lose_the_cni_configuration(&product, "n1")?;
    let before = calico_node(&product, "n1")?;
    let folder = product.cluster.workspace().directory().join("evidence");
    let bundle = a_stranger_walks_from_the_alert_to_evidence(&product, folder.to_str().context("UTF-8")?)?;
    let evidence = ["--yes", "--evidence", &*bundle, "--wait", "180"];
    product.cluster.kubectl(&["cordon", "n2", "n3"])?;
    refused(&product, &evidence, "not the last Ready worker: no other worker is Ready and takes pods")?;
    product.cluster.kubectl(&["uncordon", "n2", "n3"])?;

    let (code, text) = repair(&product, &evidence)?;
    assert!(code == 0 && text.contains("delete-calico-node: cured"), "{code}: {text}");
    shown(&format!("$ nodevitals repair n1 {}\n{text}", evidence.join(" ")));
    product.wait_until_healthy("n1");
    let n1 = product.cluster.get("/api/v1/nodes/n1")?;
    assert!(n1["spec"]["unschedulable"].is_null(), "{}", n1["spec"]);
    let memory = n1["metadata"]["annotations"]["nodevitals.dev/repair"].as_str().context("what was done")?;
    assert!(memory.contains(r#""step":"delete-calico-node""#) && memory.contains(r#""ended""#), "{memory}");
    assert_ne!(calico_node(&product, "n1")?, before);
    let described = product.cluster.kubectl(&["describe", "node", "n1"])?;
    let told: Vec<&str> = described.lines().filter(|line| line.contains("nodevitals-repair")).collect();
    for reason in ["RepairRefused", "RepairStepDone", "RepairCured", "RepairEnded"] {
        assert!(told.iter().any(|line| line.contains(reason)), "{reason}: {told:#?}");
    }
    shown(&format!("$ kubectl describe node n1 | grep nodevitals-repair\n{}\n", told.join("\n")));
    product.cluster.kubectl(&["annotate", "node", "n1", "nodevitals.dev/repair-"])?;

    for node in NODES {
        lose_the_cni_configuration(&product, node)?;
    }
    eventually("it is known to be on all", SOON, || {
        let report = product.report_json()?;
        ensure!(report["findings"].to_string().contains(r#""scope":"all""#), "{}", report["findings"]);
        Ok(())
    });
    refused(
        &product,
        &["--yes", "--no-evidence"],
        "CniConfigMissing is on 3 of 3 workers, so no single one is cured for it",
    )
}
