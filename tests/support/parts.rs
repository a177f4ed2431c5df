//! Where `scripts/setup.sh test` keeps the real parts.

use std::{
    env,
    path::{Path, PathBuf},
};

use anyhow::{Result, ensure};

const GO_MOD: &str = include_str!("../control-plane/go.mod");

/// `${NODEVITALS_CACHE:-~/.cache/nodevitals}`
pub fn cache() -> PathBuf {
    env::var_os("NODEVITALS_CACHE").map_or_else(
        || Path::new(&env::var_os("HOME").unwrap_or("/root".into())).join(".cache/nodevitals"),
        PathBuf::from,
    )
}

/// The Kubernetes version of the control plane, as `v1.35.4`.
pub fn kubernetes_version() -> &'static str {
    GO_MOD
        .lines()
        .filter_map(|line| line.trim().strip_prefix("k8s.io/kubernetes "))
        .find_map(|rest| rest.split_whitespace().next())
        .expect("go.mod requires k8s.io/kubernetes")
}

/// A program of the control plane: `etcd`, `kube-apiserver`, `kubelet` and so on.
pub fn program(name: &str) -> Result<PathBuf> {
    let directory = env::var_os("KUBEBUILDER_ASSETS")
        .map_or_else(|| cache().join(format!("control-plane-{}", kubernetes_version())), PathBuf::from);
    existing(directory.join(name))
}

/// An image archive or root file system made by the setup script: `pause.tar`, `busybox.tar`, `base-bookworm.tar`.
pub fn archive(name: &str) -> Result<PathBuf> {
    existing(cache().join(name))
}

fn existing(path: PathBuf) -> Result<PathBuf> {
    ensure!(path.exists(), "{} is missing: run scripts/setup.sh test", path.display());
    Ok(path)
}
