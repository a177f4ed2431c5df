//! What has a machine replaced leaves nothing of its cause: evidence of that is on the disk before the Node says it, by the API
//! server's own log.

use std::fs;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use jiff::Timestamp;
use serde_json::{Value, json};

use crate::bench::{AGENT, Bench, Running, condition_of};
use crate::support::wait::eventually;

/// A damaged file counts after 25 s, and is looked at again each 20 s.
const PATIENCE: Duration = Duration::from_secs(90);
const CHECKPOINT: &str = "var/lib/kubelet/cpu_manager_state";
const WHOLE: &str = r#"{"policyName":"none","defaultCpuSet":"","checksum":1}"#;
const CONDITION: &str = "NodeIntegrityProblem";

/// A worker's files beside this machine's `/proc`, and its agent.
struct Worker<'a> {
    bench: &'a Bench,
    directory: PathBuf,
}

impl<'a> Worker<'a> {
    fn new(bench: &'a Bench) -> Result<Self> {
        let worker = Self { bench, directory: bench.workspace().directory().join("fit") };
        for (file, text) in [
            ("proc/x", ""),
            ("run/x", ""),
            ("var/log/x", ""),
            ("etc/machine-id", "0123456789abcdef0123456789abcdef"),
            ("var/lib/kubelet/config.yaml", "kind: KubeletConfiguration\nhealthzPort: 0\n"),
            (CHECKPOINT, WHOLE),
        ] {
            worker.write(file, text)?;
        }
        let proc = worker.root().join("proc");
        bench.host().read(&["mount".as_ref(), "--rbind".as_ref(), Path::new("/proc"), &proc])?;
        Ok(worker)
    }

    fn root(&self) -> PathBuf {
        self.directory.join("root")
    }

    fn state(&self) -> PathBuf {
        self.directory.join("state")
    }

    fn write(&self, file: &str, text: &str) -> Result<()> {
        let path = self.root().join(file);
        fs::create_dir_all(path.parent().context("a parent")?)?;
        Ok(fs::write(path, text)?)
    }

    fn agent(&self) -> Result<Running<'_>> {
        let state = self.state();
        let state = state.to_str().context("a path in UTF-8")?;
        self.bench.agent_at(&[], &self.root(), "f1", &["--state-dir", state])
    }

    /// Waits until its Node says so of the integrity of the machine.
    #[track_caller]
    fn tells(&self, status: &str) {
        eventually(&format!("{CONDITION}={status}"), PATIENCE, || {
            let node = self.bench.node("f1")?;
            let condition = condition_of(&node, CONDITION)?;
            let damaged = condition["reason"] == "NodeFilesDamaged";
            ensure!(condition["status"] == status && damaged == (status == "True"), "{condition}");
            Ok(())
        });
    }
}

/// The bundles whose names end so.
fn bundles(state: &Path, end: &str) -> Result<Vec<PathBuf>> {
    let all = fs::read_dir(state.join("evidence"))?.map(|entry| Ok(entry?.path())).collect::<Result<Vec<_>>>()?;
    Ok(all.into_iter().filter(|path| path.to_string_lossy().ends_with(end)).collect())
}

/// When the API server was first asked to turn the condition True.
fn asked_to_turn(bench: &Bench) -> Result<Timestamp> {
    let writes = bench.writes_on("f1", AGENT)?;
    let turns = |write: &&Value| {
        let conditions = write["requestObject"]["status"]["conditions"].as_array();
        conditions.is_some_and(|all| all.iter().any(|it| it["type"] == CONDITION && it["status"] == "True"))
    };
    let first = writes.iter().find(turns).with_context(|| format!("nobody turned {CONDITION} True: {writes:#?}"))?;
    first["requestReceivedTimestamp"].as_str().context("a time")?.parse().context("a time")
}

/// When a bundle was put in its place, whole: the last that happened to its directory.
fn placed(bundle: &Path) -> Result<Timestamp> {
    let about = fs::metadata(bundle)?;
    Ok(Timestamp::new(about.ctime(), about.ctime_nsec().try_into()?)?)
}

#[test]
fn evidence_is_on_the_disk_before_a_condition_has_the_machine_replaced() -> Result<()> {
    let bench = Bench::take()?;
    bench.add_node("f1", &json!({}))?;
    bench.add_agent_pod("f1")?;
    let worker = Worker::new(&bench)?;
    // As a crash leaves it: whole files are not looked at each minute.
    worker.write(CHECKPOINT, "")?;
    let agent = worker.agent()?;
    // There is no runtime here either, and evidence of that is as young as it may be: it is another condition's.
    eventually("evidence of that", PATIENCE, || {
        ensure!(bundles(&worker.state(), "-ContainerdDown")?.len() == 1, "none yet");
        Ok(())
    });
    worker.tells("True");
    evidence_came_first(&bench, &worker)?;
    worker.write(CHECKPOINT, WHOLE)?;
    worker.tells("False");
    agent.lives()
}

/// By the API server's own log of when it was asked.
fn evidence_came_first(bench: &Bench, worker: &Worker) -> Result<()> {
    let asked = asked_to_turn(bench)?;
    let all = bundles(&worker.state(), "-NodeFilesDamaged")?;
    let [bundle] = &all[..] else { anyhow::bail!("one bundle of it: {all:?}") };
    let manifest: Value = serde_json::from_str(&fs::read_to_string(bundle.join("manifest.json"))?)?;
    let ended: Timestamp = manifest["endedAt"].as_str().context("an end")?.parse()?;
    let placed = placed(bundle)?;
    assert!(ended < asked && placed < asked, "taken until {ended} and placed at {placed}, asked at {asked}");
    // It is of what the condition tells.
    let facts = fs::read_to_string(bundle.join("facts.json"))?;
    assert!(facts.contains("cpu_manager_state"), "the first look is in it");
    let judged = bench.nodevitals(&["check", "-o", "json", "--from", bundle.to_str().context("UTF-8")?])?;
    let judged: Value = serde_json::from_slice(&judged.stdout).with_context(|| format!("{judged:?}"))?;
    let codes = judged["verdict"]["findings"].to_string();
    assert!(codes.contains("\"NodeFilesDamaged\""), "{codes}");
    Ok(())
}
