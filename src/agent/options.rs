//! Options of `nodevitals agent`.

use std::net::SocketAddr;
use std::path::PathBuf;

use clap::Args;

/// Options of `nodevitals agent`.
#[derive(Debug, Clone, Args)]
pub struct Options {
    /// Name of the Node object to write conditions on; in a pod, `spec.nodeName` through the downward API
    #[arg(long, env = "NODE_NAME", value_name = "NAME", value_parser = node_name)]
    pub node_name: String,

    /// Namespace in which the aggregator runs, which is asked about the other nodes
    #[arg(long, value_name = "NAMESPACE", env = "POD_NAMESPACE", default_value = "nodevitals", value_parser = crate::aggregator::name)]
    pub namespace: String,

    /// Ask the aggregator about the other nodes every so many seconds; 0 means never
    #[arg(long, default_value_t = 60, value_name = "SECONDS")]
    pub map_interval: u64,

    /// Where the node's root directory is mounted
    #[arg(long, default_value = "/", value_name = "DIR")]
    pub host_root: PathBuf,

    /// Directory of the agent's own for its state file, which keeps times and the journal of episodes when the API server
    /// cannot be told; without it they are taken from the Node only
    #[arg(long, value_name = "DIR")]
    pub state_dir: Option<PathBuf>,

    /// Address for /metrics, /findings, /livez and /readyz
    #[arg(long, default_value_t = SocketAddr::from(([0, 0, 0, 0], PORT)), value_name = "ADDRESS")]
    pub listen: SocketAddr,

    /// Kubeconfig to use instead of the pod's ServiceAccount
    #[arg(long, value_name = "FILE")]
    pub kubeconfig: Option<PathBuf>,

    /// Configuration file (YAML); unknown keys are refused
    #[arg(long, value_name = "FILE")]
    pub config: Option<PathBuf>,

    /// Write the conditions again every so many seconds even when nothing has changed, for controllers that need a
    /// heartbeat; 0 means never
    #[arg(long, default_value_t = 0, value_name = "SECONDS")]
    pub heartbeat: u64,
}

/// Where an agent serves its pages, unless it is told otherwise.
pub(crate) const PORT: u16 = 10580;

/// A Node's name: a DNS subdomain (RFC 1123), as Kubernetes requires.
fn node_name(text: &str) -> Result<String, String> {
    let label = |label: &str| {
        let inside = label.bytes().all(|byte| byte.is_ascii_lowercase() || byte.is_ascii_digit() || byte == b'-');
        !label.is_empty() && inside && !label.starts_with('-') && !label.ends_with('-')
    };
    if text.is_empty() {
        return Err("is empty; give the Node's name, or set NODE_NAME from spec.nodeName".into());
    }
    if text.len() > 253 || !text.split('.').all(label) {
        return Err(
            "is no Node name: lower-case letters, digits, '-' and '.' only (`kubectl get nodes` lists them)".into()
        );
    }
    Ok(text.to_owned())
}

#[cfg(test)]
mod tests {
    use super::node_name;

    #[test]
    fn node_names() {
        for good in ["n1", "ip-10-0-0-1.eu-west-1.compute.internal", "10.0.0.1"] {
            assert_eq!(node_name(good).as_deref(), Ok(good));
        }
        for bad in ["", "N1", "a/b", "-a", "a..b", "ä"] {
            assert!(node_name(bad).is_err(), "{bad}");
        }
    }
}
