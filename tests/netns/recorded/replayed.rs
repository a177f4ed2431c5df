//! Evidence of recorded nodes: `nodevitals gather` on the node, and what `nodevitals check --from` says of the bundle on a
//! machine that knows nothing of it, is what `nodevitals check` says on the node.

use std::path::Path;
use std::process::Command;

use anyhow::{Context, Result, ensure};
use serde_json::Value;

use super::Node;
use crate::machine::{Checked, program};

/// The password in the runtime's configuration.
const SECRET: &str = "cGxhbnRlZC1zZWNyZXQtdmFsdWU";

/// Judges a bundle in the namespaces of the test.
fn again(bundle: &Path) -> Result<Checked> {
    let output = Command::new(program()).args(["check", "-o", "json", "--from"]).arg(bundle).output()?;
    let json = serde_json::from_slice(&output.stdout).with_context(|| format!("not JSON: {output:?}"))?;
    Ok(Checked { json, status: output.status.code() })
}

/// All of the findings but their times, the state, and the conditions.
fn verdict(checked: &Checked) -> Value {
    let mut verdict = checked.json["verdict"].clone();
    for finding in verdict["findings"].as_array_mut().into_iter().flatten() {
        finding["since"].take();
        // An age or a counter that is in the text has gone on.
        let text = finding["detail"].take().as_str().unwrap_or_default().replace(|c: char| c.is_ascii_digit(), "");
        finding["detail"] = text.into();
    }
    let conditions = verdict["conditions"].as_array().into_iter().flatten();
    let conditions: Vec<Value> =
        conditions.map(|it| serde_json::json!([it["kind"], it["status"], it["reason"]])).collect();
    serde_json::json!({ "findings": verdict["findings"], "state": verdict["state"], "conditions": conditions })
}

fn replays(incident: &str, phase: &str, name: &str, root: Option<&str>) -> Result<()> {
    let node = Node::recorded(incident, phase, name)?;
    let config = format!(
        "version = 2\n[plugins.\"io.containerd.grpc.v1.cri\".registry.configs.r.auth]\npassword = \"{SECRET}\"\n"
    );
    std::fs::write(node.path("etc/containerd/config.toml"), config)?;
    let live = node.check()?;
    let dir = tempfile::tempdir()?;
    let bundle = dir.path().join("bundle");
    let said = node.gather(&bundle)?;
    ensure!(said.contains("facts.json"), "no progress: {said}");
    // What is left of the node is the bundle.
    drop(node);
    let replayed = again(&bundle)?;
    ensure!(verdict(&replayed) == verdict(&live), "{:#}\nis not\n{:#}", verdict(&replayed), verdict(&live));
    ensure!(replayed.status == live.status, "{:?} {:?}", replayed.status, live.status);
    ensure!(replayed.codes().first().copied() == root, "{:?}", replayed.codes());
    let summary = std::fs::read_to_string(bundle.join("SUMMARY.txt"))?;
    ensure!(summary.contains(root.unwrap_or("Root finding: none")), "{summary}");
    let grep = Command::new("grep").args(["-rl", SECRET]).arg(&bundle).output()?;
    ensure!(grep.stdout.is_empty(), "a secret is in {}", String::from_utf8_lossy(&grep.stdout));
    let config = std::fs::read_to_string(bundle.join("runtime/containerd.toml"))?;
    ensure!(config.contains("password = \"[redacted]\""), "{config}");
    let manifest: Value = serde_json::from_slice(&std::fs::read(bundle.join("manifest.json"))?)?;
    ensure!(manifest["node"] == name && manifest["endedAt"].is_string(), "{manifest:#}");
    Ok(())
}

#[test]
fn a_healthy_node() -> Result<()> {
    replays("01-healthy", "before", "n1", None)
}

#[test]
fn a_hung_bird_and_its_peer() -> Result<()> {
    replays("02-bird-stopped", "during-stopped-late", "n2", Some("BgpDaemonDown"))?;
    replays("02-bird-stopped", "during-stopped-late", "n1", Some("BgpSessionDown"))
}

#[test]
fn jumps_to_calicos_chains_deleted() -> Result<()> {
    replays("04-felix-stopped", "during-b-dead-and-jumps-gone", "n1", Some("CalicoChainsUnhooked"))
}

#[test]
fn jumps_of_kube_proxy_deleted_and_nat_flushed() -> Result<()> {
    replays("05-kube-proxy-stopped", "during-b-jumps-gone", "n2", Some("KubeProxyChainsUnhooked"))?;
    replays("05-kube-proxy-stopped", "during-c-nat-flushed", "n2", Some("TablesFlushed"))
}

#[test]
fn cni_configuration_missing_broken_and_shadowed() -> Result<()> {
    replays("06-cni-config-missing", "during-a-missing", "n2", Some("CniConfigMissing"))?;
    replays("06-cni-config-missing", "during-b-invalid-json", "n2", Some("CniConfigInvalid"))?;
    replays("06-cni-config-missing", "during-d-stray-conf", "n2", Some("CniConfigConflict"))
}

#[test]
fn a_hung_and_a_killed_containerd() -> Result<()> {
    replays("08-containerd-hung", "during-a-hung-20s", "n3", Some("ContainerdUnresponsive"))?;
    replays("08-containerd-hung", "during-b-killed", "n3", Some("ContainerdDown"))
}

/// Where the disk takes nothing any more, and the runtime hangs besides.
#[test]
fn without_a_disk_it_is_an_archive_that_replays_too() -> Result<()> {
    let node = Node::recorded("08-containerd-hung", "during-a-hung-late", "n3")?;
    let live = node.check()?;
    let full = node.path("full");
    std::fs::create_dir(&full)?;
    let options = ["-t", "tmpfs", "-o", "size=16k", "none"];
    node.run(&[&["mount"], &options[..], &[full.to_str().context("UTF-8")?]].concat())?;
    let why = node.gather(&full.join("bundle")).expect_err("there is no room").to_string();
    ensure!(why.contains("No space left on device") && why.contains("`--output -` needs no disk"), "{why}");
    let dir = tempfile::tempdir()?;
    let archive = dir.path().join("n3.tar");
    std::fs::write(&archive, node.gather_archive()?)?;
    drop(node);
    let replayed = again(&archive)?;
    ensure!(verdict(&replayed) == verdict(&live), "{:#}\nis not\n{:#}", verdict(&replayed), verdict(&live));
    ensure!(replayed.codes().first() == Some(&"ContainerdUnresponsive"), "{:?}", replayed.codes());
    Ok(())
}

#[test]
fn a_killed_kubelet() -> Result<()> {
    replays("09-kubelet-stopped", "during-3s", "n3", Some("KubeletDown"))?;
    replays("09-kubelet-stopped", "during-unknown", "n3", Some("KubeletDown"))
}

#[test]
fn the_route_of_a_pod_missing() -> Result<()> {
    replays("11-pod-route-missing", "during-b-felix-dead", "n1", Some("PodRouteMissing"))
}

#[test]
fn rules_in_both_backends() -> Result<()> {
    replays("17-mixed-backends", "during-a-legacy-rules", "n2", Some("ForwardPolicyDrop"))
}

#[test]
fn an_update_of_calico() -> Result<()> {
    replays("18-rolling-restart", "during-n2", "n2", Some("BgpDaemonDown"))
}
