//! The product, deployed on a cluster of two nodes.

use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use serde_json::Value;

use crate::support::cluster::Cluster;
use crate::support::node::{NodeOptions, condition};
use crate::support::wait::eventually;
use crate::support::{image, parts, shell};

/// How long a verdict may take on a busy machine. The bars of the product are measured in `benches/`, not here.
pub const SOON: Duration = Duration::from_secs(60);

/// A cluster with the product on it.
pub struct Product {
    pub cluster: Cluster,
}

/// The program under test: the release binary when the test script built one.
pub fn program() -> PathBuf {
    std::env::var_os("NODEVITALS_BIN").map_or_else(|| PathBuf::from(env!("CARGO_BIN_EXE_nodevitals")), PathBuf::from)
}

impl Product {
    /// Two nodes in two zones, and the product deployed.
    pub fn deployed() -> Result<Self> {
        Self::deployed_on(&[("n1", "zone-a"), ("n2", "zone-b")])
    }

    /// These nodes in their zones, and the product deployed.
    pub fn deployed_on(nodes: &[(&str, &str)]) -> Result<Self> {
        let root = Path::new(env!("CARGO_MANIFEST_DIR"));
        let archive = image::build(root, &root.join("Dockerfile"), &program())?;
        let mut cluster = Cluster::start()?;
        cluster.add_nodes(nodes.iter().map(|(name, zone)| (*name, NodeOptions::in_zone(zone))).collect())?;
        cluster.import_image(&archive)?;
        cluster.import_image(&parts::archive("busybox.tar")?)?;
        let product = Product { cluster };
        product.cluster.apply(&rendered(root)?)?;
        Ok(product)
    }

    /// Status, reason and message of a condition.
    pub fn condition(&self, node: &str, kind: &str) -> Result<(String, String, String)> {
        let object = self.cluster.node(node)?.object(&self.cluster)?;
        let condition = condition(&object, kind)?;
        let text = |key: &str| condition[key].as_str().unwrap_or_default().to_owned();
        Ok((text("status"), text("reason"), text("message")))
    }

    /// Waits until a condition has this status and reason; answers its message.
    pub fn wait_for(&self, node: &str, kind: &str, status: &str, reason: &str) -> String {
        eventually(&format!("{node}: {kind}={status} {reason}"), SOON, || {
            let (is, why, message) = self.condition(node, kind)?;
            ensure!(is == status && why == reason, "{kind}={is} {why}: {message}");
            Ok(message)
        })
    }

    /// Waits until a condition is False again.
    pub fn wait_until_clear(&self, node: &str, kind: &str) {
        eventually(&format!("{node}: {kind}=False"), SOON, || {
            let (is, why, message) = self.condition(node, kind)?;
            ensure!(is == "False", "{kind}={is} {why}: {message}");
            Ok(())
        });
    }

    /// Waits until nothing is wrong with a node.
    pub fn wait_until_healthy(&self, node: &str) {
        self.wait_for(node, "WorkerProblem", "False", "WorkerHealthy");
    }

    /// The name of the agent's pod on a node.
    pub fn agent_pod(&self, node: &str) -> Result<String> {
        let pods =
            self.cluster.get("/api/v1/namespaces/nodevitals/pods?labelSelector=app.kubernetes.io/component=agent")?;
        let pods = pods["items"].as_array().context("pods")?;
        let pod =
            pods.iter().find(|pod| pod["spec"]["nodeName"] == node && pod["metadata"]["deletionTimestamp"].is_null());
        Ok(pod.with_context(|| format!("no agent on {node}"))?["metadata"]["name"]
            .as_str()
            .unwrap_or_default()
            .to_owned())
    }

    /// `nodevitals report` as a person runs it.
    pub fn report(&self, arguments: &[&str]) -> Result<String> {
        let mut command = self.cluster.command_in(program());
        command.arg("report").args(arguments).arg("--kubeconfig").arg(self.cluster.admin_kubeconfig()?);
        shell::read(&mut command)
    }

    /// `nodevitals uninstall` of one node.
    pub fn uninstall(&self, node: &str) -> Result<String> {
        let mut command = self.cluster.command_in(program());
        command.args(["uninstall", node, "--kubeconfig"]).arg(self.cluster.admin_kubeconfig()?);
        shell::read(&mut command)
    }

    /// The report as JSON.
    pub fn report_json(&self) -> Result<Value> {
        Ok(serde_json::from_str(&self.report(&["-o", "json"])?)?)
    }

    /// Writes to Node objects by the agents so far.
    pub fn agent_writes(&self) -> Result<usize> {
        Ok(self.cluster.writes_by("system:serviceaccount:nodevitals:nodevitals-agent")?.len())
    }
}

/// `deploy/` as kustomize renders it, with the image under test.
fn rendered(root: &Path) -> Result<String> {
    let mut kubectl = std::process::Command::new(parts::program("kubectl")?);
    let manifests = shell::read(kubectl.arg("kustomize").arg(root.join("deploy")))?;
    let shipped = format!("image: nodevitals:{}", env!("CARGO_PKG_VERSION"));
    ensure!(manifests.contains(&shipped), "deploy/ does not name the image of this version: {shipped}");
    Ok(manifests.replace(&shipped, &format!("image: {}", image::NAME)))
}
