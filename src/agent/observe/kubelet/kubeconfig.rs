//! The cluster section of a kubeconfig, and the certificate of its user. Keys and tokens in it are never kept.

use serde::Deserialize;

use super::super::cni::base64;
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

/// The part of it that says who the kubelet is. Of its secrets none is read.
#[derive(Deserialize)]
#[serde(rename_all = "kebab-case")]
struct Identities {
    current_context: Option<String>,
    #[serde(default)]
    contexts: Vec<NamedUserContext>,
    #[serde(default)]
    users: Vec<NamedUser>,
}

#[derive(Deserialize)]
struct NamedUserContext {
    name: String,
    context: Option<UserContext>,
}

#[derive(Deserialize)]
struct UserContext {
    user: String,
}

#[derive(Deserialize)]
struct NamedUser {
    name: String,
    user: Option<UserFields>,
}

#[derive(Deserialize)]
#[serde(rename_all = "kebab-case")]
struct UserFields {
    client_certificate: Option<String>,
    client_certificate_data: Option<String>,
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

fn parse<T: serde::de::DeserializeOwned>(path: &str, text: &str) -> Result<T, LookError> {
    crate::yaml::parse(text).map_err(|error| {
        // Not the parser's own words: they may quote a token.
        let place = error.line().map_or_else(String::new, |line| format!(" in line {line}"));
        LookError::new(path, Reason::Malformed, format!("is not a kubeconfig{place}"))
    })
}

/// The cluster of the current context, or the first when no context leads to one. [`Reason::Missing`] when the file
/// does not exist or names no server.
pub(crate) fn cluster(host: &HostRoot, path: &str) -> Result<Cluster, LookError> {
    understand(path, &host.read_text(path, LIMIT)?)
}

fn understand(path: &str, text: &str) -> Result<Cluster, LookError> {
    let mut file: File = parse(path, text)?;
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

/// The client certificate of the current context's user, as PEM, and the file that holds it. [`Reason::Missing`] when it has
/// none.
pub(crate) fn client_certificate(host: &HostRoot, path: &str) -> Result<(String, String), LookError> {
    let file: Identities = parse(path, &host.read_text(path, LIMIT)?)?;
    let context = file.contexts.iter().find(|each| Some(&each.name) == file.current_context.as_ref());
    let name = context.and_then(|each| each.context.as_ref()).map(|context| &context.user);
    let at = file.users.iter().position(|each| Some(&each.name) == name).unwrap_or(0);
    let user = file.users.into_iter().nth(at).and_then(|each| each.user);
    match user.map(|user| (user.client_certificate_data, user.client_certificate)) {
        Some((Some(data), _)) => {
            let pem = base64(&data).ok_or_else(|| LookError::new(path, Reason::Malformed, "holds no base64"))?;
            Ok((path.to_owned(), String::from_utf8_lossy(&pem).into_owned()))
        }
        Some((None, Some(file))) => {
            let file = absolute(path, &file);
            let pem = host.read_text(&file, LIMIT).map_err(|error| match error.reason {
                // Absent is only what nobody names.
                Reason::Missing => LookError { reason: Reason::Failed, ..error },
                _ => error,
            })?;
            Ok((file, pem))
        }
        _ => Err(LookError::new(path, Reason::Missing, "names no client certificate")),
    }
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
#[cfg(any(test, fuzzing))]
pub(super) fn fuzz(text: &str) {
    if let Ok(cluster) = understand("/etc/kubernetes/kubelet.conf", text) {
        assert!(!cluster.server.is_empty());
        assert!(cluster.certificate_authority.is_none_or(|path| path.starts_with('/')));
    }
}
