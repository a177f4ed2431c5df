//! The kubelet, and the health ports of its neighbours.

use jiff::Timestamp;
use serde::Serialize;

use super::{Manifest, Seen};

/// What the node's files say about the kubelet.
#[derive(Debug, Clone, PartialEq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct Kubelet {
    /// Its configuration file, when one was found.
    pub config_path: Option<String>,
    /// Its kubeconfig, when one was found.
    pub kubeconfig_path: Option<String>,
    /// `cluster.server` of its kubeconfig: the address by which this node reaches the control plane.
    pub server: Option<String>,
    /// The name under which it registers its Node, where its arguments settle that: `--hostname-override`, or the host's
    /// name where no cloud provider has a say.
    pub node_name: Option<String>,
    /// The client certificate of its kubeconfig; absent when it shows the API server something else.
    pub client_certificate: Seen<KubeletCertificate>,
    /// The certificate that it shows those who ask it (`tlsCertFile`, or with `serverTLSBootstrap` the one that the cluster
    /// signs for it); absent when it makes its own, which nobody checks.
    pub serving_certificate: Seen<KubeletCertificate>,
    /// `staticPodPath`, or where kubeadm and IBM have it.
    pub static_pods: String,
    /// What it has there; absent where it was told of no such directory, or there is none.
    pub manifests: Seen<Vec<Manifest>>,
    /// `healthzPort`; 0 means switched off. Default 10248.
    pub healthz_port: u16,
    /// `containerRuntimeEndpoint`, without `unix://`.
    pub runtime_endpoint: Option<String>,
    /// Hard eviction thresholds.
    pub eviction: EvictionThresholds,
    /// What else decides when it acts on a shortage.
    pub capacity: CapacitySettings,
    /// `clusterDomain`: what names of the cluster end with, where it says so.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub cluster_domain: Option<String>,
    /// Why its configuration could not be used, if so: the thresholds are then the defaults.
    pub config_error: Option<String>,
}

/// A certificate of the kubelet's.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct KubeletCertificate {
    /// The file that holds it.
    pub path: String,
    /// From when it is valid.
    pub not_before: Timestamp,
    /// Until when it is valid.
    pub not_after: Timestamp,
    /// Whether the kubelet is set to renew it (`rotateCertificates`, `serverTLSBootstrap`).
    pub rotates: bool,
}

/// `evictionHard` (`pkg/kubelet/eviction/defaults_linux.go`): below these the kubelet evicts pods.
#[derive(Debug, Clone, Copy, PartialEq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct EvictionThresholds {
    /// `memory.available`, default 100Mi.
    pub memory: Quantity,
    /// `nodefs.available`, default 10 %.
    pub nodefs: Quantity,
    /// `nodefs.inodesFree`, default 5 %.
    pub nodefs_inodes: Quantity,
    /// `imagefs.available`, default 15 %.
    pub imagefs: Quantity,
    /// `imagefs.inodesFree`, default 5 %.
    pub imagefs_inodes: Quantity,
    /// `pid.available`, default none.
    pub pid: Quantity,
}

/// Settings of the kubelet beside its hard thresholds.
#[derive(Debug, Clone, PartialEq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct CapacitySettings {
    /// `evictionSoft`: below these it evicts after a grace period. Default none.
    pub soft: EvictionThresholds,
    /// `imageGCHighThresholdPercent`: from so many percent used on, looked at every 5 minutes, it deletes unused images;
    /// none where that is switched off (100). Default 85 (`pkg/kubelet/apis/config/v1beta1/defaults.go`).
    pub image_gc_high_percent: Option<u8>,
    /// `cgroupRoot`: the cgroup below which that of the pods is. Default `/`.
    pub cgroup_root: String,
}

impl Default for CapacitySettings {
    fn default() -> Self {
        CapacitySettings {
            soft: EvictionThresholds::NONE,
            image_gc_high_percent: Some(85),
            cgroup_root: "/".to_owned(),
        }
    }
}

/// A threshold: a number of bytes or inodes, or a share of the whole.
#[derive(Debug, Clone, Copy, PartialEq, Serialize)]
#[serde(rename_all = "camelCase")]
pub enum Quantity {
    /// Bytes or inodes.
    Absolute(u64),
    /// Percent of the capacity.
    Percent(f64),
}

impl Quantity {
    /// The threshold for a file system or memory of this capacity.
    #[expect(clippy::cast_precision_loss, clippy::cast_possible_truncation, clippy::cast_sign_loss, reason = "a share")]
    pub fn of(self, capacity: u64) -> u64 {
        match self {
            Quantity::Absolute(amount) => amount,
            Quantity::Percent(percent) => (capacity as f64 * percent / 100.0) as u64,
        }
    }
}

impl EvictionThresholds {
    /// No threshold at all.
    pub const NONE: EvictionThresholds = {
        let off = Quantity::Absolute(0);
        EvictionThresholds { memory: off, nodefs: off, nodefs_inodes: off, imagefs: off, imagefs_inodes: off, pid: off }
    };
}

impl Default for EvictionThresholds {
    fn default() -> Self {
        EvictionThresholds {
            memory: Quantity::Absolute(100 << 20),
            nodefs: Quantity::Percent(10.0),
            nodefs_inodes: Quantity::Percent(5.0),
            imagefs: Quantity::Percent(15.0),
            imagefs_inodes: Quantity::Percent(5.0),
            pid: Quantity::Absolute(0),
        }
    }
}

/// Answers of the health ports of the node's own components, asked over loopback.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct Health {
    /// `127.0.0.1:10248/healthz`: proves that the kubelet's process answers, no more.
    pub kubelet: Seen<HttpAnswer>,
    /// `127.0.0.1:10256/livez`.
    pub kube_proxy: Seen<HttpAnswer>,
    /// `127.0.0.1:9099/liveness`.
    pub felix: Seen<HttpAnswer>,
    /// In how many minutes up to now some of kube-proxy's changes to the rules failed; 0 where it does not tell.
    pub restores_failing: u32,
}

/// An HTTP answer.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct HttpAnswer {
    /// Status code.
    pub status: u16,
    /// The first 512 bytes of the body.
    pub body: String,
}
