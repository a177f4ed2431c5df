//! Evidence of workers through the API server.

use std::path::Path;
use std::process::Output;

use anyhow::{Context, Result, ensure};
use serde_json::{Value, json};

use crate::bench::Bench;

const SECRET: &str = "cGxhbnRlZC1zZWNyZXQtdmFsdWU";

fn gather(bench: &Bench, to: &Path, more: &[&str]) -> Result<Output> {
    let kubeconfig = bench.admin_kubeconfig()?.display().to_string();
    let to = to.display().to_string();
    bench.nodevitals(&[&["gather", "--kubeconfig", &kubeconfig, "--output", &to], more].concat())
}

fn read(path: &Path) -> Result<Value> {
    let text = std::fs::read(path).with_context(|| path.display().to_string())?;
    serde_json::from_slice(&text).with_context(|| path.display().to_string())
}

fn failed(manifest: &Value, name: &str) -> Result<Option<String>> {
    let items = manifest["items"].as_array().into_iter().flatten();
    let item =
        items.into_iter().find(|item| item["name"] == name).with_context(|| format!("no {name}: {manifest:#}"))?;
    Ok(item["failed"].as_str().map(str::to_owned))
}

fn nothing_is_run_on_the_node_where_that_is_not_wanted(bench: &Bench) -> Result<()> {
    let alone = tempfile::tempdir()?;
    let done = gather(bench, alone.path(), &["n1", "--api-only", "--json"])?;
    let said: Value = serde_json::from_slice(&done.stdout)?;
    let bundles: Vec<&Value> = said["bundles"].as_array().context("bundles")?.iter().collect();
    ensure!(said["kind"] == "Evidence" && bundles.len() == 2, "{said:#}");
    ensure!(bundles[1]["path"] == alone.path().join("n1").display().to_string(), "{said:#}");
    ensure!(bundles[1]["manifest"]["node"] == "n1", "{said:#}");
    let why = failed(&read(&alone.path().join("n1/manifest.json"))?, "facts.json")?.unwrap_or_default();
    ensure!(done.status.success() && why.contains("--api-only"), "{why}");
    Ok(())
}

#[test]
fn what_the_api_server_has_is_taken_and_what_is_missing_is_said_and_unknown() -> Result<()> {
    let bench = Bench::take()?;
    for name in ["n1", "n2"] {
        bench.add_node(name, &json!({ "pool": "a" }))?;
        bench.add_agent_pod(name)?;
    }
    let note = json!({ "metadata": { "annotations": { "x": format!("{{\"password\":\"{SECRET}\"}}") } } });
    bench.admin("PATCH merge /api/v1/nodes/n1", &note)?;
    let dir = tempfile::tempdir()?;
    let done = gather(&bench, dir.path(), &["n1", "gone"])?;
    ensure!(done.status.success(), "{done:?}");

    let taken = read(&dir.path().join("n1/api/node.json"))?;
    ensure!(taken["metadata"]["name"] == "n1", "{taken:#}");
    ensure!(taken["metadata"]["annotations"]["x"] == "{\"password\":\"[redacted]\"}", "{taken:#}");
    let grep = std::process::Command::new("grep").args(["-rl", SECRET]).arg(dir.path()).output()?;
    ensure!(grep.stdout.is_empty(), "a secret is in {}", String::from_utf8_lossy(&grep.stdout));
    let pods = read(&dir.path().join("n1/api/pods.json"))?;
    ensure!(pods["items"].as_array().is_some_and(|pods| pods.len() == 1), "{pods:#}");
    read(&dir.path().join("cluster/api/validatingwebhooks.json"))?;
    let manifest = read(&dir.path().join("n1/manifest.json"))?;
    ensure!(failed(&manifest, "api/events.json")?.is_none(), "{manifest:#}");
    // Nobody listens where the Pod says.
    ensure!(failed(&manifest, "agent/findings.json")?.is_some(), "{manifest:#}");
    let why = failed(&manifest, "facts.json")?.context("no node, no facts")?;
    ensure!(
        why.contains("kubectl exec into nodevitals/") && why.contains("run `nodevitals gather` on the node"),
        "{why}"
    );
    let gone = read(&dir.path().join("gone/manifest.json"))?;
    ensure!(failed(&gone, "api/node.json")?.is_some_and(|why| why.contains("\"gone\" not found")), "{gone:#}");

    let bundle = dir.path().join("n1").display().to_string();
    let judged = bench.nodevitals(&["check", "--from", &bundle])?;
    ensure!(judged.status.code() == Some(3), "what is not known is not healthy: {judged:?}");
    let several = bench.nodevitals(&["check", "--from", &dir.path().display().to_string()])?;
    let said = String::from_utf8_lossy(&several.stderr).into_owned();
    ensure!(several.status.code() == Some(64) && said.contains("cluster, gone, n1"), "{said}");

    nothing_is_run_on_the_node_where_that_is_not_wanted(&bench)?;

    // It goes on where it stopped: a worker that is there now.
    bench.add_node("gone", &json!({}))?;
    let before = std::fs::metadata(dir.path().join("n1/api/node.json"))?.modified()?;
    let again = gather(&bench, dir.path(), &["n1", "gone"])?;
    ensure!(again.status.success(), "{again:?}");
    ensure!(failed(&read(&dir.path().join("gone/manifest.json"))?, "api/node.json")?.is_none());
    ensure!(std::fs::metadata(dir.path().join("n1/api/node.json"))?.modified()? == before, "it was taken already");

    let selected = tempfile::tempdir()?;
    let done = gather(&bench, selected.path(), &["--selector", "pool=a", "--worst", "1"])?;
    ensure!(
        done.status.success() && selected.path().join("n1").exists() && !selected.path().join("n2").exists(),
        "{done:?}"
    );
    let nobody = gather(&bench, selected.path(), &["--selector", "pool=b"])?;
    ensure!(
        nobody.status.code() == Some(64) && String::from_utf8_lossy(&nobody.stderr).contains("pool=b"),
        "{nobody:?}"
    );
    Ok(())
}
