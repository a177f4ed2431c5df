//! The page that IBM Cloud Autorecovery asks by HTTP (README, "For controllers that repair"): it fails for what a new machine cures,
//! and for nothing else that stops the worker, and not for what is not known.

use std::fs;
use std::time::Duration;

use anyhow::{Context, Result, ensure};

use super::{Api, Node, Recording, cluster};
use crate::support::wait::within;

/// Longer than hold-downs and the time between two looks, on a busy machine.
const SOON: Duration = Duration::from_secs(150);
/// What the kubelet reads back at its start, and the agent looks into.
const CHECKPOINT: &str = "var/lib/kubelet/cpu_manager_state";

/// What the page answers to who asks for it: status and text.
fn machinez(node: &Node) -> Result<(u16, String)> {
    let url = "http://127.0.0.1:10580/machinez";
    let answer = node.run(&["curl", "-sS", "-m", "10", "-w", "\n%{http_code}", url])?;
    let (text, code) = answer.trim_end().rsplit_once('\n').context("a status")?;
    Ok((code.parse()?, text.trim().to_owned()))
}

/// Waits until a condition of the Node has this status, and answers with what the page says then.
fn asked_when(node: &Node, api: &Api, kind: &str, status: &str) -> Result<(u16, String)> {
    within(SOON, || {
        let told = api.node();
        let conditions = told["status"]["conditions"].as_array().context("conditions")?;
        let condition = conditions.iter().find(|it| it["type"] == kind).with_context(|| format!("no {kind}"))?;
        ensure!(condition["status"] == status, "{condition}");
        Ok(())
    })
    .with_context(|| format!("{kind} is {status}"))?;
    machinez(node)
}

/// Has the kubelet evict pods when less than this part of its disk is free.
fn evicts_below(node: &Node, percent: &str) -> Result<()> {
    let file = node.path("var/lib/kubelet/config.yaml");
    let mut config: serde_json::Value = serde_json::from_str(&fs::read_to_string(&file)?)?;
    config["evictionHard"]["nodefs.available"] = percent.into();
    Ok(fs::write(file, config.to_string())?)
}

#[test]
fn a_machine_is_replaced_for_what_a_new_one_cures_and_for_nothing_else() -> Result<()> {
    let (incident, name, well) = ("08-containerd-hung", "n3", (200, "ok".to_owned()));
    let mut node = Node::recorded(incident, "before", name)?;
    // Nobody can say what is in a file that leads to itself.
    let file = node.path(CHECKPOINT);
    std::os::unix::fs::symlink("cpu_manager_state", &file)?;
    let api = node.follow(&cluster(incident, name)?)?;
    let (code, text) = asked_when(&node, &api, "NodeIntegrityProblem", "Unknown")?;
    ensure!(code == 200 && text.starts_with("unknown: NodeIntegrityProblem CouldNotLook: "), "{code} {text}");
    ensure!(text.contains("cpu_manager_state"), "{text}");
    fs::remove_file(&file)?;
    let answer = asked_when(&node, &api, "NodeIntegrityProblem", "False")?;
    ensure!(answer == well, "{answer:?}");
    ensure!(asked_when(&node, &api, "WorkerProblem", "False")? == well, "{:?}", machinez(&node)?);

    // A disk that is too full stops the worker, and that of a new machine would fill as well. It stays so to the end.
    evicts_below(&node, "99%")?;
    let answer = asked_when(&node, &api, "CapacityProblem", "True")?;
    ensure!(node.codes()? == ["DiskFull"] && answer == well, "{:?}: {answer:?}", node.codes()?);

    node.become_(&Recording::read(incident, "during-a-hung-20s", name)?)?;
    let (code, text) = asked_when(&node, &api, "RuntimeProblem", "True")?;
    ensure!(code == 503 && text.starts_with("ContainerdUnresponsive: "), "{code} {text}");
    node.become_(&Recording::read(incident, "before", name)?)?;
    let answer = asked_when(&node, &api, "RuntimeProblem", "False")?;
    ensure!(answer == well, "{answer:?}");
    ensure!(node.codes()? == ["DiskFull"], "{:?}", node.codes()?);
    Ok(())
}
