//! `nodevitals repair` on real nodes, with a DaemonSet in the place of calico-node whose init container writes the CNI
//! configuration, as Calico's does.

use std::path::Path;
use std::process::Output;

use anyhow::{Context, Result, ensure};

use crate::product::{Product, SOON, program};
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
    let mut command = product.cluster.command_in(program());
    command.args(["repair", "n1", "--kubeconfig"]).arg(product.cluster.admin_kubeconfig()?).args(arguments);
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
    refused(&product, &["--yes"], "A cordon would do harm now: evidence of this episode: none")?;
    let bundle = product.cluster.workspace().directory().join("bundle");
    let bundle = bundle.to_str().context("UTF-8")?;
    let program = program();
    product.cluster.node("n1")?.read(&[program.as_path(), Path::new("gather"), Path::new("-o"), Path::new(bundle)])?;
    let evidence = ["--yes", "--evidence", bundle, "--wait", "180"];
    product.cluster.kubectl(&["cordon", "n2", "n3"])?;
    refused(&product, &evidence, "not the last Ready worker: no other worker is Ready and takes pods")?;
    product.cluster.kubectl(&["uncordon", "n2", "n3"])?;

    let (code, text) = repair(&product, &evidence)?;
    assert!(code == 0 && text.contains("delete-calico-node: cured"), "{code}: {text}");
    product.wait_until_healthy("n1");
    let n1 = product.cluster.get("/api/v1/nodes/n1")?;
    assert!(n1["spec"]["unschedulable"].is_null(), "{}", n1["spec"]);
    let memory = n1["metadata"]["annotations"]["nodevitals.dev/repair"].as_str().context("what was done")?;
    assert!(memory.contains(r#""step":"delete-calico-node""#) && memory.contains(r#""ended""#), "{memory}");
    assert_ne!(calico_node(&product, "n1")?, before);
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
