//! Where `scripts/setup.sh test` keeps the real parts.

use std::{
    env,
    path::{Path, PathBuf},
};

use anyhow::{Result, ensure};

const GO_MOD: &str = include_str!("../control-plane/go.mod");
const CONTAINERD_GO_MOD: &str = include_str!("../containerd/go.mod");

/// `${NODEVITALS_CACHE:-~/.cache/nodevitals}`
pub fn cache() -> PathBuf {
    env::var_os("NODEVITALS_CACHE").map_or_else(
        || Path::new(&env::var_os("HOME").unwrap_or("/root".into())).join(".cache/nodevitals"),
        PathBuf::from,
    )
}

/// The Kubernetes version of the control plane, as `v1.35.4`.
pub fn kubernetes_version() -> &'static str {
    required(GO_MOD, "k8s.io/kubernetes")
}

/// Containerd 2, beside which is its shim; containerd 1.6 is the distribution's.
pub fn containerd_2() -> Result<PathBuf> {
    let version = required(CONTAINERD_GO_MOD, "github.com/containerd/containerd/v2");
    existing(cache().join(format!("containerd-{version}/containerd")))
}

/// The version of a module that this file requires.
fn required(go_mod: &'static str, module: &str) -> &'static str {
    let version = |line: &'static str| line.trim().strip_prefix(module)?.strip_prefix(' ')?.split_whitespace().next();
    go_mod.lines().find_map(version).unwrap_or_else(|| panic!("go.mod requires {module}"))
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
