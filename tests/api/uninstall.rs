//! `nodevitals uninstall`: what is on the Nodes, and the Pods that erase what is on the nodes, whose kubelets are played here.

use std::process::{Output, Stdio};

use anyhow::{Context, Result, ensure};
use serde_json::{Value, json};

use crate::bench::{Bench, condition_of, program, soon};

const PODS: &str = "/api/v1/namespaces/nodevitals/pods";
const ERASERS: &str = "/api/v1/namespaces/nodevitals/pods?labelSelector=app.kubernetes.io/component%3Duninstall";

/// Nodes u1, on which an agent has spoken and is gone, and u2, on which there was none.
fn nodes(bench: &Bench) -> Result<[Value; 2]> {
    bench.add_node("u1", &json!({}))?;
    bench.add_node("u2", &json!({}))?;
    let before = [bench.node("u1")?, bench.node("u2")?];
    bench.add_agent_pod("u1")?;
    let agent = bench.agent("u1", "agent-u1", &[])?;
    soon("the conditions", || condition_of(&bench.node("u1")?, "WorkerProblem").map(|_| ()));
    drop(agent);
    Ok(before)
}

fn delete_agent(bench: &Bench) -> Result<()> {
    let at_once = json!({"apiVersion": "v1", "kind": "DeleteOptions", "gracePeriodSeconds": 0});
    bench.admin(&format!("DELETE plain {PODS}/agent-u1"), &at_once).map(drop)
}

fn arguments(bench: &Bench, more: &[&str]) -> Result<Vec<std::ffi::OsString>> {
    let kubeconfig = bench.admin_kubeconfig()?;
    let mut arguments: Vec<std::ffi::OsString> = vec!["uninstall".into(), "--kubeconfig".into(), kubeconfig.into()];
    arguments.extend(more.iter().map(Into::into));
    Ok(arguments)
}

fn uninstall(bench: &Bench, more: &[&str]) -> Result<(Option<i32>, String)> {
    let Output { status, stdout, stderr } = bench.command_in(program()).args(arguments(bench, more)?).output()?;
    Ok((status.code(), format!("{}{}", String::from_utf8_lossy(&stdout), String::from_utf8_lossy(&stderr))))
}

/// Ends the Pod that erases on a node, as a kubelet does.
fn play_kubelet(bench: &Bench, node: &str, status: &Value) -> Result<Value> {
    let pod = soon("the Pod that erases", || {
        let pods = bench.list(ERASERS)?;
        pods.into_iter().find(|pod| pod["spec"]["nodeName"] == node).context("none on this node")
    });
    let name = pod["metadata"]["name"].as_str().context("a name")?;
    bench.admin(&format!("PATCH strategic {PODS}/{name}/status"), &json!({ "status": status }))?;
    Ok(pod)
}

#[test]
fn uninstall_leaves_no_trace_on_node_objects() -> Result<()> {
    let bench = Bench::take()?;
    let before = nodes(&bench)?;
    // While an agent is there it would write it all again.
    let (code, said) = uninstall(&bench, &["--keep-evidence"])?;
    ensure!(code == Some(64) && said.contains("agent-u1 still runs on u1"), "{said}");
    // That is said of a dry run too, which changes nothing; what the API server would refuse it names.
    let (code, said) = uninstall(&bench, &["--dry-run"])?;
    ensure!(
        code == Some(0) && said.contains("agent-u1 still runs on u1") && said.contains("1 of 2 nodes have"),
        "{said}"
    );
    ensure!(said.contains("would be erased on 2 nodes") && bench.list(ERASERS)?.is_empty(), "{said}");
    condition_of(&bench.node("u1")?, "WorkerProblem")?;
    let (code, said) = uninstall(&bench, &["--dry-run", "--namespace", "nowhere", "-o", "json"])?;
    let done: Value = serde_json::from_str(&said)?;
    let left = done["left"].as_array().context("a list")?;
    ensure!(code == Some(1) && left.len() == 2 && done["erased"] == json!([]), "{said}");
    ensure!(left.iter().all(|it| it["why"].to_string().contains("nowhere")), "{said}");
    delete_agent(&bench)?;
    for expected in ["1 of 2 nodes had", "0 of 2 nodes had"] {
        let (code, said) = uninstall(&bench, &["--keep-evidence"])?;
        ensure!(code == Some(0) && said.contains(expected) && said.contains("stays in /var/lib/nodevitals"), "{said}");
    }
    let (_, said) = uninstall(&bench, &["--keep-evidence", "-o", "json"])?;
    let expected = json!({"dryRun": false, "cleaned": [], "clean": ["u1", "u2"], "directory": "/var/lib/nodevitals",
        "erased": [], "kept": ["u1", "u2"], "left": []});
    ensure!(serde_json::from_str::<Value>(&said)? == expected && bench.list(ERASERS)?.is_empty(), "{said}");
    for (node, before) in ["u1", "u2"].iter().zip(&before) {
        let now = bench.node(node)?;
        ensure!(now["status"] == before["status"], "{node}: {}", now["status"]);
        ensure!(now["metadata"]["annotations"] == before["metadata"]["annotations"], "{node}: {}", now["metadata"]);
    }
    Ok(())
}

#[test]
fn a_pod_on_each_node_erases_and_who_did_not_is_named() -> Result<()> {
    let bench = Bench::take()?;
    nodes(&bench)?;
    delete_agent(&bench)?;
    bench.add_node("u3", &json!({}))?;
    bench.add_node("windows", &json!({"kubernetes.io/os": "windows"}))?;
    let more = ["-o", "json", "--timeout", "15"];
    let running = bench.command_in(program()).args(arguments(&bench, &more)?).stdout(Stdio::piped()).spawn()?;
    let pod = play_kubelet(&bench, "u1", &json!({"phase": "Succeeded"}))?;
    ensure!(pod["spec"]["containers"][0]["args"][1] == "/node/nodevitals", "{pod}");
    let said = "nodevitals: /node/nodevitals: holds what no agent made, which is left there: mine";
    let ended = json!({"exitCode": 64, "reason": "Error", "message": said});
    let container = json!({"name": "erase", "image": "x", "imageID": "", "ready": false, "restartCount": 0, "state": {"terminated": ended}});
    play_kubelet(&bench, "u2", &json!({"phase": "Failed", "containerStatuses": [container]}))?;
    // Nobody ends that of u3.
    let Output { status, stdout, .. } = running.wait_with_output()?;
    let done: Value = serde_json::from_slice(&stdout)?;
    ensure!(status.code() == Some(1) && done["erased"] == json!(["u1"]), "{status} {done}");
    let left = done["left"].as_array().context("a list")?;
    let [u2, u3] = &left[..] else { anyhow::bail!("{done}") };
    ensure!(
        u2["node"] == "u2" && u2["why"].as_str().is_some_and(|why| why.starts_with("/node/nodevitals: holds")),
        "{u2}"
    );
    ensure!(u3["node"] == "u3" && u3["why"].as_str().is_some_and(|why| why.contains("within 15 s")), "{u3}");
    let by_hand = "kubectl debug node/u3 -it --image=nodevitals:";
    let command = u3["command"].as_str().context("a command")?;
    ensure!(command.starts_with(by_hand) && command.ends_with(" -- rm -r /host/var/lib/nodevitals"), "{command}");
    ensure!(bench.list(ERASERS)?.is_empty(), "the Pods are deleted, whatever became of them");
    Ok(())
}

#[test]
fn an_agent_that_does_not_end_is_left_alone_with_its_node() -> Result<()> {
    let bench = Bench::take()?;
    nodes(&bench)?;
    // Deleted, and no kubelet is there that would end it.
    bench.admin(&format!("DELETE {PODS}/agent-u1"), &Value::Null)?;
    let (code, said) = uninstall(&bench, &["u1", "--timeout", "3"])?;
    ensure!(code == Some(1) && said.contains("u1: its agent's Pod nodevitals/agent-u1 has not ended"), "{said}");
    ensure!(said.contains("kubectl debug node/u1 ") && bench.list(ERASERS)?.is_empty(), "{said}");
    condition_of(&bench.node("u1")?, "WorkerProblem").map(|_| ())
}
