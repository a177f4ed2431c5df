//! What happened to a node between two lives of its agent, from its files to what its Node says.

use std::fs;
use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use serde_json::{Value, json};

use crate::bench::{Bench, Running, condition_of};
use crate::support::wait::eventually;

/// A damaged file counts after 25 s, and is looked at each 20 s.
const PATIENCE: Duration = Duration::from_secs(90);
/// From a crash nothing is to be feared an hour later, if nothing showed; in seconds.
const UP_FOR: u64 = 300;
const BOOTS: [&str; 3] = [
    "11111111-2222-4333-8444-555555555555",
    "66666666-7777-4888-9999-aaaaaaaaaaaa",
    "bbbbbbbb-cccc-4ddd-8eee-ffffffffffff",
];
const MACHINES: [&str; 2] = ["0123456789abcdef0123456789abcdef", "fedcba9876543210fedcba9876543210"];
const CHECKPOINT: &str = "var/lib/kubelet/cpu_manager_state";
const WHOLE: &str = r#"{"policyName":"none","defaultCpuSet":"","checksum":1}"#;

/// A worker's files, beside this machine's `/proc` with a boot id of its own.
struct Worker<'a> {
    bench: &'a Bench,
    directory: PathBuf,
}

impl<'a> Worker<'a> {
    fn new(bench: &'a Bench) -> Result<Self> {
        let worker = Self { bench, directory: bench.workspace().directory().join("integrity") };
        worker.write("proc/x", "")?;
        let (proc, boot) = (worker.root().join("proc"), worker.directory.join("boot_id"));
        worker.boot(0)?;
        let mount = |arguments: &[&Path]| bench.host().read(&[&["mount".as_ref()], arguments].concat());
        mount(&["--rbind".as_ref(), "/proc".as_ref(), &proc])?;
        mount(&["--make-rprivate".as_ref(), &proc])?;
        mount(&["--bind".as_ref(), &boot, &proc.join("sys/kernel/random/boot_id")])?;
        worker.write("etc/machine-id", MACHINES[0])?;
        worker.write("run/x", "")?;
        worker.write("var/lib/kubelet/config.yaml", "kind: KubeletConfiguration\nhealthzPort: 0\n")?;
        worker.write(CHECKPOINT, WHOLE)?;
        Ok(worker)
    }

    fn root(&self) -> PathBuf {
        self.directory.join("root")
    }

    fn write(&self, file: &str, content: impl AsRef<[u8]>) -> Result<()> {
        let path = self.root().join(file);
        fs::create_dir_all(path.parent().context("a parent")?)?;
        Ok(fs::write(path, content)?)
    }

    /// It comes up, for another time.
    fn boot(&self, number: usize) -> Result<()> {
        Ok(fs::write(self.directory.join("boot_id"), BOOTS[number])?)
    }

    /// The machine stops without a word and comes up again: another boot, and the journal of the one before left open.
    fn crash(&self) -> Result<()> {
        let boot = u128::from_str_radix(&BOOTS[0].replace('-', ""), 16)?;
        let mut header = [0; 72];
        header[..8].copy_from_slice(b"LPKSHHRH");
        header[16] = 1;
        header[56..].copy_from_slice(&boot.to_be_bytes());
        self.write(&format!("var/log/journal/{}/system@1-2.journal~", MACHINES[0]), header)?;
        self.boot(1)
    }

    /// Its agent, which knows what the one before it kept, some minutes after the machine came up by the agent's clock.
    fn agent(&self) -> Result<Running<'_>> {
        let uptime = fs::read_to_string("/proc/uptime")?;
        let up: u64 = uptime.split('.').next().context("seconds")?.parse()?;
        let later = format!("-{}", up.saturating_sub(UP_FOR));
        let state = self.directory.join("state");
        let state = state.to_str().context("a path in UTF-8")?;
        // By itself `unshare` moves children only, and older kernels do not move it by exec either.
        let enter = ["nsenter", "--no-fork", "--time=/proc/self/ns/time_for_children"];
        let by = [&["unshare", "--time", "--boottime", &later][..], &enter].concat();
        self.bench.agent_at(&by, &self.root(), "i1", &["--state-dir", state])
    }
}

/// What the Node says of its integrity: status and reason, and the codes of all findings.
fn integrity(bench: &Bench) -> Result<(String, String)> {
    let node = bench.node("i1")?;
    let condition = condition_of(&node, "NodeIntegrityProblem")?;
    let findings = node["metadata"]["annotations"]["nodevitals.dev/findings"].as_str().context("findings")?;
    let text = |key: &str| condition[key].as_str().map(str::to_owned).with_context(|| condition.to_string());
    Ok((format!("{} {}", text("status")?, text("reason")?), format!("{findings} {}", text("message")?)))
}

/// What this annotation of the Node lists of damaged files.
fn damage(bench: &Bench, annotation: &str) -> Result<Value> {
    let node = bench.node("i1")?;
    let text = node["metadata"]["annotations"][format!("nodevitals.dev/{annotation}")].as_str().context("a list")?;
    let list: Vec<Value> = serde_json::from_str(text)?;
    list.into_iter().find(|it| it["code"] == "NodeFilesDamaged").with_context(|| text.to_owned())
}

#[test]
fn a_crash_damaged_files_and_another_machine_are_told_on_the_node() -> Result<()> {
    let bench = Bench::take()?;
    bench.add_node("i1", &json!({}))?;
    bench.add_agent_pod("i1")?;
    let worker = Worker::new(&bench)?;
    let agent = worker.agent()?;
    eventually("the integrity is well", PATIENCE, || {
        let (condition, _) = integrity(&bench)?;
        ensure!(condition.starts_with("False "), "{condition}");
        Ok(())
    });
    agent.end()?;
    drop(agent);

    worker.crash()?;
    worker.write(CHECKPOINT, "")?;
    let agent = worker.agent()?;
    let told = eventually("the crash and its damage are told", PATIENCE, || {
        let (condition, said) = integrity(&bench)?;
        let all = ["UncleanReboot", "NodeFilesDamaged", "cpu_manager_state", "its journal was not closed"];
        ensure!(condition.starts_with("True ") && all.iter().all(|it| said.contains(it)), "{condition} {said}");
        Ok(condition)
    });
    assert_eq!(told, "True UncleanReboot", "the root first");
    let begun = damage(&bench, "findings")?;
    agent.end()?;
    drop(agent);

    worker.write(CHECKPOINT, WHOLE)?;
    worker.boot(2)?;
    let agent = worker.agent()?;
    eventually("what was told before the boot ended with it", PATIENCE, || {
        let ended = damage(&bench, "episodes")?;
        ensure!(ended["since"] == begun["since"] && ended["cure"] == "reboot", "{ended}, begun as {begun}");
        Ok(())
    });
    agent.end()?;
    drop(agent);

    worker.write("etc/machine-id", MACHINES[1])?;
    let agent = worker.agent()?;
    eventually("the files are whole and the machine is another", PATIENCE, || {
        let (condition, said) = integrity(&bench)?;
        let told = condition.starts_with("True ") && said.contains("MachineIdentityChanged");
        ensure!(told && !said.contains("NodeFilesDamaged"), "{condition} {said}");
        Ok(())
    });
    let node: Value = bench.node("i1")?;
    assert_eq!(node["metadata"]["annotations"]["nodevitals.dev/machine-id"], MACHINES[1]);
    agent.end()?;
    drop(agent);

    worker.write("etc/machine-id", MACHINES[0])?;
    let _agent = worker.agent()?;
    eventually("it is the old machine again", PATIENCE, || {
        let (condition, said) = integrity(&bench)?;
        ensure!(!condition.starts_with("Unknown ") && !said.contains("MachineIdentityChanged"), "{condition} {said}");
        let node = bench.node("i1")?;
        ensure!(node["metadata"]["annotations"]["nodevitals.dev/machine-id"] == MACHINES[0], "{}", node["metadata"]);
        Ok(())
    });
    Ok(())
}
