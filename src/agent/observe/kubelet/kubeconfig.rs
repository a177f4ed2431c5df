//! The cluster section of a kubeconfig. The users in it are never kept.

use serde::Deserialize;

use super::super::host_root::HostRoot;
use crate::facts::{LookError, Reason};

/// A kubeconfig is some kilobytes; in bytes.
const LIMIT: u64 = 1 << 20;

/// Where the control plane is and how to know that it is it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Cluster {
    /// `server`: a URL.
    pub(crate) server: String,
    /// `certificate-authority`: a path on the node.
    pub(crate) certificate_authority: Option<String>,
    /// `certificate-authority-data`: base64 of PEM.
    pub(crate) certificate_authority_data: Option<String>,
    /// `insecure-skip-tls-verify`.
    pub(crate) insecure_skip_tls_verify: bool,
    /// `tls-server-name`.
    pub(crate) tls_server_name: Option<String>,
}

#[derive(Deserialize)]
#[serde(rename_all = "kebab-case")]
struct File {
    current_context: Option<String>,
    #[serde(default)]
    contexts: Vec<NamedContext>,
    #[serde(default)]
    clusters: Vec<NamedCluster>,
}

#[derive(Deserialize)]
struct NamedContext {
    name: String,
    context: Option<Context>,
}

#[derive(Deserialize)]
struct Context {
    cluster: String,
}

#[derive(Deserialize)]
struct NamedCluster {
    name: String,
    cluster: Option<ClusterFields>,
}

#[derive(Deserialize)]
#[serde(rename_all = "kebab-case")]
struct ClusterFields {
    server: Option<String>,
    certificate_authority: Option<String>,
    certificate_authority_data: Option<String>,
    insecure_skip_tls_verify: Option<bool>,
    tls_server_name: Option<String>,
}

/// The cluster of the current context, or the first when no context leads to one. [`Reason::Missing`] when the file
/// does not exist or names no server.
pub(crate) fn cluster(host: &HostRoot, path: &str) -> Result<Cluster, LookError> {
    understand(path, &host.read_text(path, LIMIT)?)
}

fn understand(path: &str, text: &str) -> Result<Cluster, LookError> {
    let mut file: File = crate::yaml::parse(text).map_err(|error| {
        // Not the parser's own words: they may quote a token.
        let place = error.line().map_or_else(String::new, |line| format!(" in line {line}"));
        LookError::new(path, Reason::Malformed, format!("is not a kubeconfig{place}"))
    })?;
    let context = file.contexts.iter().find(|each| Some(&each.name) == file.current_context.as_ref());
    let name = context.and_then(|each| each.context.as_ref()).map(|context| &context.cluster);
    let at = file.clusters.iter().position(|each| Some(&each.name) == name).unwrap_or(0);
    let fields = file.clusters.get_mut(at).and_then(|each| each.cluster.take());
    let missing = || LookError::new(path, Reason::Missing, "names no server");
    let fields = fields.ok_or_else(missing)?;
    Ok(Cluster {
        server: fields.server.filter(|server| !server.is_empty()).ok_or_else(missing)?,
        certificate_authority: fields.certificate_authority.map(|file| absolute(path, &file)),
        certificate_authority_data: fields.certificate_authority_data,
        insecure_skip_tls_verify: fields.insecure_skip_tls_verify.unwrap_or(false),
        tls_server_name: fields.tls_server_name,
    })
}

/// Paths in a kubeconfig are relative to its directory.
fn absolute(kubeconfig: &str, file: &str) -> String {
    if file.starts_with('/') {
        return file.to_owned();
    }
    let (directory, _) = kubeconfig.rsplit_once('/').unwrap_or_default();
    format!("{directory}/{file}")
}

/// The fuzz target's door.
#[cfg(fuzzing)]
pub(super) fn fuzz(text: &str) {
    if let Ok(cluster) = understand("/etc/kubernetes/kubelet.conf", text) {
        assert!(!cluster.server.is_empty());
        assert!(cluster.certificate_authority.is_none_or(|path| path.starts_with('/')));
    }
}
