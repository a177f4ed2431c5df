//! A runtime that answers, and says of itself that something is wrong: told in its own words, and over when it says otherwise. Real
//! containerds never say that they are not ready, and always where they keep images (facts.md G.3, G.4).

use std::fs;
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use serde_json::Value;

use super::over_time::told_are;
use super::{Api, Images, Node, Recording, cluster};
use crate::support::wait::within;

/// Longer than it takes to ask again, and the hold-downs, on a busy machine.
const SOON: Duration = Duration::from_secs(90);

/// Waits until the verdict is this, root first, and nothing is held down.
fn becomes(node: &Node, codes: &[&str]) -> Result<Value> {
    within(SOON, || told_are(node, codes, &[])).with_context(|| format!("{codes:?}"))
}

/// Waits until the Node has its runtime's condition with this status and reason; its message.
fn on_the_node(api: &Api, status: &str, reason: &str) -> Result<String> {
    within(SOON, || {
        let node = api.node();
        let conditions = node["status"]["conditions"].as_array().context("conditions")?;
        let condition = conditions.iter().find(|it| it["type"] == "RuntimeProblem").context("no RuntimeProblem")?;
        ensure!(condition["status"] == status && condition["reason"] == reason, "{condition}");
        Ok(condition["message"].as_str().unwrap_or_default().to_owned())
    })
}

#[test]
fn a_runtime_that_says_it_is_not_ready_is_told_in_its_words_and_cleared() -> Result<()> {
    const CODE: &str = "RuntimeNotReady";
    // As published of cri-dockerd whose Docker does not run, in the kubelet's message on a Node.
    const DOCKER: [&str; 2] = ["docker", "24.0.7"];
    const WHY: [&str; 2] = [
        "DockerDaemonNotReady",
        "docker: failed to get docker version: Cannot connect to the Docker daemon at unix:///var/run/docker.sock. Is the docker daemon running?",
    ];
    let (incident, name) = ("08-containerd-hung", "n3");
    let node = Node::recorded(incident, "before", name)?;
    node.containerd().says(DOCKER, None)?;
    let api = node.follow(&cluster(incident, name)?)?;
    becomes(&node, &[])?;
    node.containerd().says(DOCKER, Some(WHY))?;
    let verdict = becomes(&node, &[CODE])?;
    let finding = &verdict["findings"][0];
    let said = format!("docker 24.0.7 says RuntimeReady=false, {}: {}", WHY[0], WHY[1]);
    ensure!(finding["detail"] == said.as_str() && finding["severity"] == "critical", "{finding:#}");
    let message = on_the_node(&api, "True", CODE)?;
    ensure!(message.contains("RuntimeReady=false, DockerDaemonNotReady"), "{message}");
    node.containerd().says(DOCKER, None)?;
    becomes(&node, &[])?;
    on_the_node(&api, "False", "RuntimeHealthy")?;
    node.ever_raised_are(&[CODE])
}

#[test]
fn a_runtime_that_cannot_say_where_it_keeps_images_is_told_unless_the_kubelet_is_new() -> Result<()> {
    const CODE: &str = "ImageFsStatsMissing";
    const CONFIG: &str = "limits: {imminentPoints: 0, imminentMinutes: 0}\nholdDownSeconds: {ImageFsStatsMissing: 3}\n";
    let (incident, name) = ("09-kubelet-stopped", "n3");
    let mut node = Node::recorded(incident, "before", name)?;
    fs::write(node.path("logs/nodevitals.yaml"), CONFIG)?;
    node.containerd().keeps_images(Images::Nowhere);
    // Each start of a kubelet makes the event InvalidDiskCapacity; this one was started just now.
    let checked = node.check()?;
    let seen = &checked.json["snapshot"]["runtime"]["imageFilesystems"];
    ensure!(*seen == serde_json::json!({"yes": []}), "{seen}");
    ensure!(checked.codes().is_empty(), "{:?}", checked.codes());

    // Without a kubelet nobody was started just now.
    let stopped = Recording::read(incident, "during-unknown", name)?;
    node.become_(&stopped)?;
    let _api = node.follow(&cluster(incident, name)?)?;
    let told = |what: &str| {
        let verdict = becomes(&node, &["KubeletDown", CODE])?;
        let finding = &verdict["findings"][1];
        ensure!(finding["detail"].as_str().is_some_and(|detail| detail.starts_with(what)), "{finding:#}");
        ensure!(finding["severity"] == "warning" && finding["causedBy"].is_null(), "{finding:#}");
        Ok(())
    };
    told("ImageFsInfo names no file system of images, and no kubelet was started just now")?;
    node.containerd().keeps_images(Images::Here);
    becomes(&node, &["KubeletDown"])?;
    node.ever_raised_are(&["KubeletDown", CODE])
}

#[test]
fn a_runtime_whose_answer_is_that_it_cannot_tell_where_images_are() -> Result<()> {
    let (incident, name) = ("09-kubelet-stopped", "n3");
    let mut node = Node::recorded(incident, "before", name)?;
    node.containerd().keeps_images(Images::Fails("failed to get image fs stats: no such snapshotter"));
    ensure!(node.check()?.codes().is_empty(), "a new kubelet");
    node.become_(&Recording::read(incident, "during-3s", name)?)?;
    let checked = node.check()?;
    let detail = checked.finding("ImageFsStatsMissing")?["detail"].to_string();
    let said = "The runtime cannot tell where it keeps images (ImageFsInfo: failed to get image fs stats: no such snapshotter), and";
    ensure!(detail.contains(said), "{detail}");
    node.containerd().keeps_images(Images::Here);
    ensure!(node.check()?.codes() == ["KubeletDown"], "it is over");
    Ok(())
}
