//! An admission webhook on `nodes/status` that never answers: what the agent says of it, where, and what it delivers when
//! the webhook is gone.

use std::fs;
use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use nix::sys::signal::Signal;
use serde_json::{Value, json};

use crate::agent::{jump, packet_filter, worker_with_chains};
use crate::bench::{Bench, Running, condition_of, soon};
use crate::support::wait::eventually;

/// Longer than the longest pause between two tries, and the webhook's own time.
const DELIVERED: Duration = Duration::from_secs(120);
const CONFIGURATION: &str = "/apis/admissionregistration.k8s.io/v1/validatingwebhookconfigurations";
const PATCH: &str = "PATCH strategic /api/v1/nodes/other/status";

/// A webhook whose backend accepts connections and says nothing.
struct Webhook<'a>(&'a Bench);

impl<'a> Webhook<'a> {
    fn begin(bench: &'a Bench, policy: &str) -> Result<Self> {
        bench.host().spawn("webhook", &["openssl", "s_server", "-nocert", "-accept", "9443"])?;
        soon("it listens", || {
            bench.exec_in_ns(&["ss", "-Hltn", "sport = :9443"]).and_then(|out| {
                ensure!(out.contains("9443"), "{out}");
                Ok(())
            })
        });
        // The kernel goes on accepting for it.
        bench.host().signal("webhook", Signal::SIGSTOP)?;
        let webhook = Self(bench);
        let rule =
            json!({"apiGroups": [""], "apiVersions": ["v1"], "operations": ["UPDATE"], "resources": ["nodes/status"]});
        let configuration = json!({
            "apiVersion": "admissionregistration.k8s.io/v1", "kind": "ValidatingWebhookConfiguration",
            "metadata": {"name": "audit-everything"},
            "webhooks": [{
                "name": "nodes.audit.example.com", "clientConfig": {"url": "https://127.0.0.1:9443/validate"},
                "rules": [rule], "failurePolicy": policy, "timeoutSeconds": 5, "sideEffects": "None",
                "admissionReviewVersions": ["v1"],
            }],
        });
        bench.admin(&format!("POST {CONFIGURATION}"), &configuration)?;
        // The API server takes a moment to use it.
        eventually("it is in force", Duration::from_secs(60), || {
            let began = std::time::Instant::now();
            bench.admin(PATCH, &json!({})).ok();
            ensure!(began.elapsed() > Duration::from_secs(4), "{:?}", began.elapsed());
            Ok(())
        });
        Ok(webhook)
    }

    fn end(self) {
        let bench = self.0;
        drop(self);
        soon("it is no longer in force", || bench.admin(PATCH, &json!({})));
    }
}

impl Drop for Webhook<'_> {
    /// Also after a failure: other tests need to write.
    fn drop(&mut self) {
        let _ = self.0.admin(&format!("DELETE {CONFIGURATION}/audit-everything"), &Value::Null);
        let _ = self.0.host().kill("webhook");
    }
}

/// The codes of findings that count, by the agent's own page.
fn raised(agent: &Running) -> Result<String> {
    let page: Value = serde_json::from_str(&agent.page("/findings")?)?;
    let findings = page["verdict"]["findings"].as_array().context("a verdict")?;
    Ok(serde_json::to_string(&findings.iter().map(|finding| &finding["code"]).collect::<Vec<_>>())?)
}

/// The agent's bundle of what began with this code.
fn kept(state: &Path, code: &str) -> Result<PathBuf> {
    let names = fs::read_dir(state.join("evidence"))?.map(|entry| Ok(entry?.path()));
    let all: Vec<PathBuf> = names.collect::<Result<_>>()?;
    let found = all.iter().find(|path| path.to_string_lossy().ends_with(&format!("-{code}")));
    found.cloned().with_context(|| format!("{all:?}"))
}

fn annotation(node: &Value, name: &str) -> Result<Value> {
    let text = node["metadata"]["annotations"][format!("nodevitals.dev/{name}")].as_str();
    Ok(serde_json::from_str(text.with_context(|| format!("no annotation {name}"))?)?)
}

#[test]
fn a_webhook_that_never_answers_is_told_here_and_all_is_delivered_later() -> Result<()> {
    let bench = Bench::take()?;
    bench.add_node("other", &json!({}))?;
    worker_with_chains(&bench, "w1")?;
    let state = bench.workspace().directory().join("state-of-w1");
    let agent = bench.agent("w1", "agent-w1", &["--state-dir", state.to_str().context("UTF-8")?])?;
    soon("the conditions", || packet_filter(&bench, "w1", "False", "PacketFilterHealthy"));

    let webhook = Webhook::begin(&bench, "Fail")?;
    jump(&bench, "-D")?;
    // Local first: pages, log and state file have it all.
    eventually("writes are held up", Duration::from_secs(60), || {
        let codes = raised(&agent)?;
        ensure!(codes.contains("KubeProxyChainsUnhooked") && codes.contains("ApiWriteBlocked"), "{codes}");
        Ok(())
    });
    let said = agent.said("ApiWriteBlocked")?.to_string();
    ensure!(said.contains("answers reads and takes no writes"), "{said}");
    let file = soon("the state file", || Ok(fs::read_to_string(state.join("state.json"))?));
    ensure!(file.contains(r#""code":"KubeProxyChainsUnhooked""#), "{file}");
    // Incident 14: its own evidence says the same to whoever judges it elsewhere.
    let bundle = eventually("evidence of it is kept", Duration::from_secs(90), || kept(&state, "ApiWriteBlocked"));
    let judged = bench.nodevitals(&["check", "-o", "json", "--from", bundle.to_str().context("UTF-8")?])?;
    let judged: Value = serde_json::from_slice(&judged.stdout).with_context(|| format!("{judged:?}"))?;
    let codes = judged["verdict"]["findings"].to_string();
    ensure!(codes.contains("ApiWriteBlocked") && codes.contains("KubeProxyChainsUnhooked"), "{codes}");
    ensure!(codes.contains("answers reads and takes no writes"), "{codes}");
    // Nobody else can know, and the agent lives.
    packet_filter(&bench, "w1", "False", "PacketFilterHealthy")?;
    jump(&bench, "-A")?;
    soon("it is over", || {
        let codes = raised(&agent)?;
        ensure!(!codes.contains("KubeProxyChainsUnhooked"), "{codes}");
        Ok(())
    });
    let over = jiff::Timestamp::now();
    agent.lives()?;
    webhook.end();

    let node = eventually("what came and went is delivered", DELIVERED, || {
        let node = bench.node("w1")?;
        let codes = annotation(&node, "episodes")?.to_string();
        ensure!(codes.contains("KubeProxyChainsUnhooked") && codes.contains("ApiWriteBlocked"), "{codes}");
        ensure!(condition_of(&node, "ControlPlanePathProblem")?["status"] == "False", "{node}");
        Ok(node)
    });
    let episodes = annotation(&node, "episodes")?;
    let jumps = episodes.as_array().into_iter().flatten().find(|it| it["code"] == "KubeProxyChainsUnhooked");
    let jumps = jumps.context("the episode")?;
    let time = |key: &str| Ok::<jiff::Timestamp, anyhow::Error>(jumps[key].as_str().context("a time")?.parse()?);
    ensure!(time("since")? < time("cleared")? && time("cleared")? <= over, "{jumps} was over before {over}");
    Ok(())
}

#[test]
fn a_webhook_that_may_be_ignored_is_told_on_the_node() -> Result<()> {
    let bench = Bench::take()?;
    bench.add_node("other", &json!({}))?;
    worker_with_chains(&bench, "w2")?;
    let _agent = bench.agent("w2", "agent-w2", &[])?;
    soon("the conditions", || packet_filter(&bench, "w2", "False", "PacketFilterHealthy"));
    let webhook = Webhook::begin(&bench, "Ignore")?;
    jump(&bench, "-D")?;
    let path = |node: &Value| -> Result<Value> { Ok(condition_of(node, "ControlPlanePathProblem")?.clone()) };
    eventually("the node says that writes are slow", DELIVERED, || {
        let path = path(&bench.node("w2")?)?;
        ensure!(path["status"] == "True" && path["reason"] == "ApiWriteBlocked", "{path}");
        Ok(())
    });
    webhook.end();
    // What has been set clears, though nothing else is to be written.
    eventually("it is over", DELIVERED, || {
        let path = path(&bench.node("w2")?)?;
        ensure!(path["status"] == "False", "{path}");
        Ok(())
    });
    jump(&bench, "-A")?;
    Ok(())
}
