//! Planted workers, one of them sick, and `nodevitals repair` beside them.

use std::path::PathBuf;
use std::process::Output;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use anyhow::{Context, Result};
use serde_json::{Value, json};

use crate::bench::{Bench, Finding, now};

/// Sick, beside two that are not in its zone and one that is.
pub(crate) const SICK: &str = "r1";
pub(crate) const CNI: Finding = ("CniConfigMissing", "critical", "cni", "CNIProblem");
pub(crate) const BGP: Finding = ("BgpAllSessionsDown", "critical", "podRouting", "PodRoutingProblem");
pub(crate) const BUDGETS: &str = "/apis/policy/v1/namespaces/default/poddisruptionbudgets";
pub(crate) const INGRESSES: &str = "/apis/networking.k8s.io/v1/namespaces/default/ingresses";

/// The planted workers, and where the command finds them.
pub(crate) struct Plant {
    pub(crate) bench: Bench,
    pub(crate) kubeconfig: PathBuf,
    pub(crate) evidence: tempfile::TempDir,
}

/// How the command ended.
pub(crate) struct Ended {
    pub(crate) code: Option<i32>,
    pub(crate) out: String,
    pub(crate) err: String,
}

impl Plant {
    pub(crate) fn new(finding: Finding, calico: &str) -> Result<Self> {
        let bench = Bench::take()?;
        for (name, zone) in [(SICK, "za"), ("r2", "za"), ("r3", "zb"), ("r4", "zb")] {
            bench.add_worker(name, &json!({"topology.kubernetes.io/zone": zone, "agentpool": "blue"}))?;
            bench.add_calico_node(&format!("calico-node-{name}"), calico, name, name != SICK)?;
        }
        let begun = now();
        bench.tell(SICK, Some(finding), &begun)?;
        let evidence = tempfile::tempdir()?;
        let manifest = json!({"schema": 1, "version": "0", "node": SICK, "why": "a test", "begunAt": begun,
            "items": [{"name": "facts.json", "key": "", "of": "the node", "failed": "the node is planted"}]});
        std::fs::write(evidence.path().join("manifest.json"), manifest.to_string())?;
        let kubeconfig = bench.admin_kubeconfig()?;
        Ok(Self { bench, kubeconfig, evidence })
    }

    pub(crate) fn run_with(&self, before: &[&str], more: &[&str]) -> Result<Ended> {
        let program = crate::bench::program();
        let first = before.first().copied().map_or_else(|| program.clone(), PathBuf::from);
        let mut command = self.bench.command_in(first);
        if let Some((_, rest)) = before.split_first() {
            command.args(rest).arg(&program);
        }
        command.args(["repair", SICK, "--kubeconfig"]).arg(&self.kubeconfig).args(more);
        let Output { status, stdout, stderr } = command.output()?;
        let text = |bytes: Vec<u8>| String::from_utf8_lossy(&bytes).into_owned();
        Ok(Ended { code: status.code(), out: text(stdout), err: text(stderr) })
    }

    pub(crate) fn run(&self, more: &[&str]) -> Result<Ended> {
        self.run_with(&[], more)
    }

    /// With `--yes` and evidence, and this long for each step.
    pub(crate) fn yes(&self, more: &[&str]) -> Result<Ended> {
        let bundle = self.evidence.path().to_str().context("UTF-8")?;
        self.run(&[&["--yes", "--evidence", bundle], more].concat())
    }

    pub(crate) fn memory(&self) -> Result<Value> {
        let node = self.bench.node(SICK)?;
        let text = node["metadata"]["annotations"]["nodevitals.dev/repair"].as_str().context("no memory")?;
        Ok(serde_json::from_str(text)?)
    }

    /// Reasons and types of the Events of repairs on the sick worker, in their order.
    pub(crate) fn events(&self) -> Result<Vec<String>> {
        let uid = self.bench.node(SICK)?["metadata"]["uid"].as_str().context("a uid")?.to_owned();
        let path = "/api/v1/namespaces/default/events?fieldSelector=reportingComponent%3Dnodevitals-repair";
        let mut own: Vec<Value> = self.bench.list(path)?;
        own.retain(|event| event["involvedObject"]["uid"] == *uid);
        own.sort_by_key(|event| {
            event["metadata"]["resourceVersion"].as_str().and_then(|text| text.parse::<u64>().ok())
        });
        let text = |event: &Value, key: &str| event[key].as_str().unwrap_or_default().to_owned();
        Ok(own.iter().map(|event| format!("{} {}", text(event, "reason"), text(event, "type"))).collect())
    }

    pub(crate) fn is_cordoned(&self) -> Result<bool> {
        Ok(self.bench.node(SICK)?["spec"]["unschedulable"] == true)
    }

    pub(crate) fn pods_there(&self, namespace: &str) -> Result<Vec<String>> {
        let path = format!("/api/v1/namespaces/{namespace}/pods?fieldSelector=spec.nodeName%3D{SICK}");
        let pods = self.bench.list(&path)?;
        Ok(pods.iter().filter_map(|pod| pod["metadata"]["name"].as_str().map(str::to_owned)).collect())
    }

    /// Runs this beside the DaemonSet's controller, which makes the pod anew, and the agent, which then finds nothing wrong.
    pub(crate) fn with_a_controller<T>(&self, work: impl FnOnce() -> Result<T>) -> Result<T> {
        let ended = AtomicBool::new(false);
        std::thread::scope(|scope| {
            let controller = scope.spawn(|| -> Result<()> {
                while !ended.load(Ordering::Relaxed) {
                    if !self.pods_there("kube-system")?.iter().any(|pod| pod.starts_with("calico-node")) {
                        self.bench.add_calico_node("calico-node-new", "kube-system", SICK, true)?;
                        self.bench.tell(SICK, None, &now())?;
                    }
                    std::thread::sleep(Duration::from_millis(100));
                }
                Ok(())
            });
            let worked = work();
            ended.store(true, Ordering::Relaxed);
            controller.join().expect("the controller does not panic")?;
            worked
        })
    }
}

impl Drop for Plant {
    /// Also after a failure: these outlast the nodes.
    fn drop(&mut self) {
        for path in [BUDGETS, INGRESSES] {
            let _ = self.bench.admin(&format!("DELETE {path}"), &Value::Null);
        }
    }
}

impl Ended {
    #[track_caller]
    pub(crate) fn is(&self, code: i32, out: &[&str]) {
        assert_eq!(self.code, Some(code), "{}\n{}", self.out, self.err);
        for text in out {
            assert!(self.out.contains(text), "{text}\n{}", self.out);
        }
    }
}
