//! Thousands of objects of real size, and what changes them, sent over a few connections.

pub mod calico;
pub mod relay;

use std::fmt::Write as _;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result, ensure};
use nodevitals::checks::Area;
use serde_json::{Value, json};

use crate::support::control_plane::{ControlPlane, URL};
use crate::support::shell;

/// Requests in one run of curl.
const BATCH: usize = 250;
/// Runs of curl at once.
const AT_ONCE: usize = 4;

/// Sends many requests as the administrator.
pub struct Sender<'a> {
    control_plane: &'a ControlPlane,
    certificate: String,
    key: String,
    directory: PathBuf,
}

impl<'a> Sender<'a> {
    pub fn new(control_plane: &'a ControlPlane) -> Result<Self> {
        let kubeconfig: Value = serde_json::from_str(&std::fs::read_to_string(control_plane.admin_kubeconfig()?)?)?;
        let user = &kubeconfig["users"][0]["user"];
        let text = |key: &str| user[key].as_str().map(str::to_owned).context("a certificate");
        let directory = control_plane.workspace().directory().join("requests");
        std::fs::create_dir_all(&directory)?;
        Ok(Sender { control_plane, certificate: text("client-certificate")?, key: text("client-key")?, directory })
    }

    /// Sends them all, each with its path, and answers when the last was answered. Each has to succeed.
    pub fn send(&self, method: &str, requests: impl Iterator<Item = (String, Value)>) -> Result<()> {
        let requests: Vec<(String, Value)> = requests.collect();
        let batches: Vec<(usize, &[(String, Value)])> = requests.chunks(BATCH).enumerate().collect();
        for round in batches.chunks(AT_ONCE) {
            let files =
                round.iter().map(|(number, batch)| self.write(*number, method, batch)).collect::<Result<Vec<_>>>()?;
            std::thread::scope(|scope| {
                let runs: Vec<_> = files.iter().map(|file| scope.spawn(|| self.run(file))).collect();
                runs.into_iter().try_for_each(|run| run.join().expect("no panic"))
            })?;
        }
        Ok(())
    }

    /// A configuration of curl, with the bodies in files beside it.
    fn write(&self, number: usize, method: &str, batch: &[(String, Value)]) -> Result<PathBuf> {
        let slot = number % AT_ONCE;
        let mut config = String::new();
        for (index, (path, body)) in batch.iter().enumerate() {
            let file = self.directory.join(format!("{slot}-{index}.json"));
            std::fs::write(&file, body.to_string())?;
            let kind = if method == "PATCH" { "strategic-merge-patch+json" } else { "json" };
            let next = if index > 0 { "next\n" } else { "" };
            writeln!(
                config,
                "{next}request = {method}\nurl = \"{URL}{path}\"\nheader = \"Content-Type: application/{kind}\"\n\
                 data-binary = \"@{}\"\nsilent\nshow-error\noutput = /dev/null\nwrite-out = \"%{{http_code}}\\n\"\nmax-time = 60\n\
                 cacert = \"{}\"\ncert = \"{}\"\nkey = \"{}\"",
                file.display(),
                self.control_plane.ca_path().display(),
                self.certificate,
                self.key
            )?;
        }
        let file = self.directory.join(format!("{slot}.curl"));
        std::fs::write(&file, config)?;
        Ok(file)
    }

    fn run(&self, file: &Path) -> Result<()> {
        let codes = shell::read(self.control_plane.command_in("curl").arg("--config").arg(file))?;
        ensure!(codes.lines().all(|code| code.starts_with('2')), "not all succeeded: {codes}");
        Ok(())
    }
}

pub fn name(index: usize) -> String {
    format!("worker-{index:05}")
}

/// Its address.
pub fn address(index: usize) -> String {
    format!("10.{}.{}.{}", 9 + index / 62_500, index / 250 % 250, index % 250)
}

/// A Node object of real size: about 15 KB, most of it the images.
pub fn worker(index: usize) -> Value {
    let images: Vec<Value> = (0..50)
        .map(|image| {
            let digest = format!("registry.example/team/app-{image}@sha256:{:064x}", image * 7919 + index);
            json!({"names": [digest, format!("registry.example/team/app-{image}:1.{index}")], "sizeBytes": 123_456_789})
        })
        .collect();
    let address = address(index);
    let mut worker = json!({
        "apiVersion": "v1", "kind": "Node",
        "metadata": {"name": name(index),
            "labels": {"topology.kubernetes.io/zone": format!("zone-{}", index % 3), "node.kubernetes.io/pool": format!("pool-{}", index % 5),
                "kubernetes.io/hostname": name(index), "kubernetes.io/arch": "amd64", "kubernetes.io/os": "linux"},
            "annotations": {"projectcalico.org/IPv4Address": format!("{address}/16")}},
        "spec": {"podCIDRs": [format!("172.{}.{}.0/24", 16 + index / 250 % 16, index % 250)]},
        "status": {"addresses": [{"type": "InternalIP", "address": address}, {"type": "Hostname", "address": name(index)}],
            "nodeInfo": {"machineID": format!("{index:032x}"), "systemUUID": format!("{index:032x}"), "bootID": format!("{index:032x}"),
                "kernelVersion": "6.8.0-31-generic", "osImage": "Ubuntu 24.04", "containerRuntimeVersion": "containerd://1.7.22",
                "kubeletVersion": "v1.35.4", "kubeProxyVersion": "", "operatingSystem": "linux", "architecture": "amd64"},
            "images": images}
    });
    let patch = well();
    worker["metadata"]["annotations"]
        .as_object_mut()
        .expect("an object")
        .extend(patch["metadata"]["annotations"].as_object().expect("an object").clone());
    let mut conditions = patch["status"]["conditions"].as_array().expect("conditions").clone();
    conditions.extend(kubelets("2026-01-01T00:00:00Z"));
    conditions.push(json!({"type": "NetworkUnavailable", "status": "False", "reason": "CalicoIsUp", "message": "Calico is running on this node",
        "lastTransitionTime": "2026-01-01T00:00:00Z"}));
    worker["status"]["conditions"] = conditions.into();
    worker
}

fn kubelets(heartbeat: &str) -> Vec<Value> {
    ["Ready", "MemoryPressure", "DiskPressure", "PIDPressure"]
        .map(|kind| {
            json!({"type": kind, "status": if kind == "Ready" { "True" } else { "False" }, "reason": "KubeletSays", "message": "kubelet says so",
                "lastHeartbeatTime": heartbeat, "lastTransitionTime": "2026-01-01T00:00:00Z"})
        })
        .into()
}

/// What a kubelet writes every five minutes.
pub fn heartbeat() -> Value {
    json!({"status": {"conditions": kubelets(&jiff::Timestamp::now().strftime("%Y-%m-%dT%H:%M:%SZ").to_string())}})
}

fn says(state: &str, findings: &Value, roll_up: &Value) -> Value {
    let now = jiff::Timestamp::now().strftime("%Y-%m-%dT%H:%M:%SZ").to_string();
    let healthy = |area: Area| {
        let kind = area.condition();
        json!({"type": kind, "status": "False", "reason": "NoProblem", "message": format!("No {kind} found."),
            "lastTransitionTime": "2026-01-01T00:00:00Z"})
    };
    let mut conditions: Vec<Value> = Area::ALL.into_iter().map(healthy).collect();
    conditions.push(roll_up.clone());
    json!({
        "metadata": {"annotations": {"nodevitals.dev/state": state, "nodevitals.dev/since": now, "nodevitals.dev/findings": findings.to_string()}},
        "status": {"conditions": conditions},
    })
}

/// What an agent writes of a worker that is well.
pub fn well() -> Value {
    let roll_up = json!({"type": "WorkerProblem", "status": "False", "reason": "WorkerHealthy", "message": "No problem found.",
        "lastTransitionTime": "2026-01-01T00:00:00Z"});
    says("Normal", &json!([]), &roll_up)
}

/// What an agent writes of a worker that has lost a route.
pub fn failed() -> Value {
    let (detail, next) = ("Pods of node worker-00001 in 172.16.1.0/24 have no route", "delete the calico-node Pod");
    let finding = json!([{"code": "RemoteBlockRouteMissing", "severity": "critical", "area": "podRouting", "subject": "worker-00001",
        "since": "2026-01-01T00:00:00Z", "detail": detail, "next": next}]);
    let roll_up = json!({"type": "WorkerProblem", "status": "True", "reason": "RemoteBlockRouteMissing", "message": format!("{detail}. Next: {next}."),
        "lastTransitionTime": "2026-01-01T00:00:00Z"});
    says("Critical", &finding, &roll_up)
}

/// The Pod of a worker's agent, which nothing runs.
pub fn agent_pod(index: usize) -> Value {
    json!({
        "apiVersion": "v1", "kind": "Pod",
        "metadata": {"name": format!("agent-{}", name(index)), "namespace": "nodevitals",
            "labels": {"app.kubernetes.io/name": "nodevitals", "app.kubernetes.io/component": "agent"}},
        "spec": {"nodeName": name(index), "automountServiceAccountToken": false, "containers": [{"name": "agent", "image": "nodevitals"}]},
    })
}

/// Its kubelet's word on it.
pub fn is_ready() -> Value {
    json!({"status": {"conditions": [{"type": "Ready", "status": "True", "lastTransitionTime": "2026-01-01T00:00:00Z"}]}})
}
