//! The path from this node to its control plane, walked as the kubelet would walk it, but without its credentials.

use std::collections::BTreeMap;
use std::error::Error;
use std::io::ErrorKind;
use std::time::Duration;

use http::header::USER_AGENT;
use kube::client::Body;
use kube::config::{Cluster, Context, KubeConfigOptions, Kubeconfig, NamedCluster, NamedContext};
use kube::{Client, Config};
use nix::errno::Errno;
use tokio::time::timeout;

use super::host_root::HostRoot;
use super::kubelet::kubeconfig;
use crate::facts::{ControlPlanePath, Kubelet, LookError, Reason, Seen};

/// All of it: name, connection, TLS, answer.
const DEADLINE: Duration = Duration::from_secs(3);
/// Name, connection and TLS: long enough for one SYN that is lost (it is sent again after 1 s), and short enough to
/// tell "no connection" from "no answer".
const CONNECT: Duration = Duration::from_millis(2500);

/// A bundle of certificate authorities is some kilobytes; in bytes.
const CERTIFICATES: u64 = 4 << 20;

/// Looks at the path. Keeps nothing: a connection that is kept would go on working, or failing, while the path for
/// new ones is the opposite.
#[derive(Debug)]
pub(crate) struct ControlPlaneSource {
    host: HostRoot,
}

impl ControlPlaneSource {
    /// Nothing is asked yet.
    pub(crate) fn new(host: HostRoot) -> Self {
        ControlPlaneSource { host }
    }

    /// Asks the server of the kubelet's kubeconfig for `GET /version` over a new connection. [`Reason::Missing`] when
    /// no kubeconfig names a server.
    pub(crate) async fn look(&mut self, kubelet: Option<&Kubelet>) -> Result<ControlPlanePath, LookError> {
        let path = kubelet.and_then(|kubelet| kubelet.kubeconfig_path.as_deref());
        let path = path.ok_or_else(|| LookError::new("kubeconfig", Reason::Missing, "there is none of the kubelet"))?;
        let cluster = kubeconfig::cluster(&self.host, path)?;
        let server = cluster.server.clone();
        let answer = match timeout(DEADLINE, self.ask(cluster, path)).await {
            Ok(Ok(status)) => Seen::Yes(status),
            Ok(Err(error)) => Seen::Unreadable(error),
            Err(_) => {
                let detail = format!("timed out: connected, but no answer within {} s", DEADLINE.as_secs());
                Seen::Unreadable(LookError::new(&server, Reason::TimedOut, detail))
            }
        };
        Ok(ControlPlanePath { server, answer })
    }

    async fn ask(&self, cluster: kubeconfig::Cluster, path: &str) -> Result<u16, LookError> {
        let server = cluster.server.clone();
        let unusable = |error: &(dyn Error + 'static)| {
            // Only what the kubelet's own file says can be wrong before anything is sent.
            LookError::new(path, Reason::Malformed, format!("its cluster section cannot be used: {}", innermost(error)))
        };
        if let Some(file) = &cluster.certificate_authority {
            // The library reads it by itself; a FIFO there would stop this process.
            self.host.read(file, CERTIFICATES)?;
        }
        let config = self.config(cluster).await.map_err(|error| unusable(&error))?;
        let client = Client::try_from(config).map_err(|error| unusable(&error))?;
        let request = http::Request::get("/version").body(Body::empty()).map_err(|error| unusable(&error))?;
        match client.send(request).await {
            Ok(answer) => Ok(answer.status().as_u16()),
            Err(error) => Err(explain(&server, &error)),
        }
    }

    /// How to reach the server and to know that it is it; no user.
    async fn config(&self, cluster: kubeconfig::Cluster) -> Result<Config, kube::config::KubeconfigError> {
        let name = String::from("control-plane");
        let authority = cluster.certificate_authority.map(|file| self.host.path(&file).display().to_string());
        let cluster = Cluster {
            server: Some(cluster.server),
            insecure_skip_tls_verify: Some(cluster.insecure_skip_tls_verify),
            certificate_authority: authority,
            certificate_authority_data: cluster.certificate_authority_data,
            tls_server_name: cluster.tls_server_name,
            ..Cluster::default()
        };
        let context = Context { cluster: name.clone(), ..Context::default() };
        let kubeconfig = Kubeconfig {
            clusters: vec![NamedCluster { name: name.clone(), cluster: Some(cluster), other: BTreeMap::default() }],
            contexts: vec![NamedContext { name: name.clone(), context: Some(context), other: BTreeMap::default() }],
            current_context: Some(name),
            ..Kubeconfig::default()
        };
        let mut config = Config::from_custom_kubeconfig(kubeconfig, &KubeConfigOptions::default()).await?;
        // The environment is this process's, not the kubelet's.
        config.proxy_url = None;
        // Off, as any failure is what is looked for; the library tries again up to fifteen times.
        config.default_retry = false;
        config.connect_timeout = Some(CONNECT);
        config.read_timeout = Some(DEADLINE);
        config.reset_reader_on_write = true;
        let agent = http::HeaderValue::from_static(concat!("nodevitals/", env!("CARGO_PKG_VERSION")));
        config.headers.push((USER_AGENT, agent));
        Ok(config)
    }
}

/// Why there was no answer, with the kind of failure in front.
fn explain(server: &str, error: &(dyn Error + 'static)) -> LookError {
    let io = causes(error).filter_map(|cause| cause.downcast_ref::<std::io::Error>()).last();
    let text = innermost(error);
    let errno = io.and_then(std::io::Error::raw_os_error).map(Errno::from_raw);
    let (reason, kind) = match (io.map(std::io::Error::kind), errno) {
        (_, Some(Errno::EHOSTUNREACH | Errno::ENETUNREACH)) => (Reason::Failed, "unreachable"),
        // What a local packet filter answers to a packet that it drops on its way out.
        (_, Some(Errno::EPERM | Errno::EACCES)) => (Reason::Denied, "denied by this node"),
        (Some(ErrorKind::ConnectionRefused), _) => (Reason::Refused, "refused"),
        (Some(ErrorKind::TimedOut), None) => {
            let detail = format!("timed out: no connection within {} s", CONNECT.as_secs_f32());
            return LookError::new(server, Reason::TimedOut, detail);
        }
        (Some(ErrorKind::TimedOut), Some(_)) => (Reason::TimedOut, "timed out"),
        (
            Some(
                ErrorKind::ConnectionReset
                | ErrorKind::ConnectionAborted
                | ErrorKind::BrokenPipe
                | ErrorKind::UnexpectedEof,
            ),
            _,
        ) => (Reason::Failed, "reset"),
        _ if text.contains("certificate") => (Reason::Failed, "certificate"),
        _ if text.contains("dns error") || text.contains("lookup address") => (Reason::Failed, "name resolution"),
        _ if text.contains("before message completed") => (Reason::Failed, "reset"),
        _ => (Reason::Failed, "failed"),
    };
    LookError::new(server, reason, format!("{kind}: {text}"))
}

/// The innermost words of an error: the outer ones are those of the libraries in between.
fn innermost(error: &(dyn Error + 'static)) -> String {
    causes(error).last().map_or_else(String::new, ToString::to_string)
}

/// An error and its causes.
fn causes<'a>(error: &'a (dyn Error + 'static)) -> impl Iterator<Item = &'a (dyn Error + 'static)> {
    let mut next = Some(error);
    std::iter::from_fn(move || {
        let this = next?;
        // An I/O error passes over the error that it wraps.
        let wrapped = this.downcast_ref::<std::io::Error>().and_then(|error| error.get_ref());
        next = match wrapped {
            Some(wrapped) => Some(wrapped),
            None => this.source(),
        };
        Some(this)
    })
}

#[cfg(test)]
mod tests;
