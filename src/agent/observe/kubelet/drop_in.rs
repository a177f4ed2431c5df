//! The kubelet's directory of more configuration files (`--config-dir`), which it merges in the order of their names
//! (`mergeKubeletConfigurations` of `cmd/kubelet/app/server.go`).

use std::path::Path;

use super::{Configuration, HostRoot, Texts, eviction, read};

/// More files than anybody has.
const MOST: usize = 256;
/// Directories below it are walked too; a deeper tree is none that somebody made by hand.
const DEEPEST: u8 = 4;

/// What the files of the directory make of a configuration. One that cannot be used is left out, and told.
pub(super) fn merge(host: &HostRoot, dir: &str, base: Configuration, errors: &mut Vec<String>) -> Configuration {
    let mut files = Vec::new();
    walk(host, dir.trim_end_matches('/'), DEEPEST, &mut files);
    if files.len() > MOST {
        errors.push(format!("{dir}: holds more than {MOST} files; the rest is left out"));
    }
    files.into_iter().take(MOST).fold(base, |base, file| match read(host, &file) {
        Ok(over) => base.overlaid(over),
        Err(error) => {
            errors.push(error);
            base
        }
    })
}

/// The files `*.conf`, in lexical order as `filepath.WalkDir` meets them.
fn walk(host: &HostRoot, dir: &str, depth: u8, files: &mut Vec<String>) {
    let Ok(entries) = std::fs::read_dir(host.path(dir)) else { return };
    let mut entries: Vec<_> =
        entries.flatten().take(MOST * 2).map(|entry| (entry.file_name(), entry.file_type())).collect();
    entries.sort_unstable_by(|(one, _), (other, _)| one.cmp(other));
    for (name, kind) in entries {
        let path = format!("{dir}/{}", name.to_string_lossy());
        if kind.is_ok_and(|kind| kind.is_dir()) {
            if depth > 0 {
                walk(host, &path, depth - 1, files);
            }
        } else if Path::new(&path).extension().is_some_and(|extension| extension == "conf") {
            files.push(path);
        }
    }
}

impl Configuration {
    /// With what a drop-in file sets: it wins, and of a map key by key. By then the hard thresholds hold the defaults.
    pub(super) fn overlaid(self, over: Configuration) -> Configuration {
        let hard = eviction::hard_settings(&self);
        let merged = |base: Option<Texts>, over: Option<Texts>| match (base, over) {
            (Some(base), Some(over)) => Some(base.into_iter().chain(over).collect()),
            (base, over) => over.or(base),
        };
        Configuration {
            eviction_hard: merged(Some(hard), over.eviction_hard),
            eviction_soft: merged(self.eviction_soft, over.eviction_soft),
            image_gc_high_threshold_percent: over
                .image_gc_high_threshold_percent
                .or(self.image_gc_high_threshold_percent),
            cgroup_root: over.cgroup_root.or(self.cgroup_root),
            healthz_port: over.healthz_port.or(self.healthz_port),
            container_runtime_endpoint: over.container_runtime_endpoint.or(self.container_runtime_endpoint),
            server_tls_bootstrap: over.server_tls_bootstrap.or(self.server_tls_bootstrap),
            tls_cert_file: over.tls_cert_file.or(self.tls_cert_file),
            cluster_domain: over.cluster_domain.or(self.cluster_domain),
            static_pod_path: over.static_pod_path.or(self.static_pod_path),
            rotate_certificates: over.rotate_certificates.or(self.rotate_certificates),
            // Only the first file is asked for it.
            merge_default_eviction_settings: None,
        }
    }
}
