//! The container runtime, as its CRI v1 socket tells it.

use std::net::IpAddr;

use serde::Serialize;

use super::{LookError, Seen, StaticContainers};

/// The container runtime.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct Runtime {
    /// The socket that was asked (no host root in front): the kubelet's, or the first well-known one that exists.
    pub socket: Seen<String>,
    /// The runtime's answer to `Version` and `Status`.
    pub status: Seen<RuntimeStatus>,
    /// Pod sandboxes in state READY.
    pub sandboxes: Seen<Vec<Sandbox>>,
    /// Where it keeps images, as `ImageFsInfo` tells.
    pub image_filesystems: Seen<Vec<String>>,
    /// How long it takes to answer; empty before the first window is over.
    pub latency: Vec<CallLatency>,
    /// The process behind the socket, while it does not answer.
    pub hung: Option<HungProcess>,
    /// Attempts to make a pod's sandbox that came to nothing.
    pub failures: SandboxFailures,
    /// The containers of static pods, of those sandboxes that were asked for them: once a minute, some at a time.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub static_pods: Vec<StaticContainers>,
}

/// Attempts to make a pod's sandbox that came to nothing, in the last ten minutes.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct SandboxFailures {
    /// At least so many.
    pub attempts: u32,
    /// In so many different minutes.
    pub minutes: u32,
    /// Whether the last one was within two minutes.
    pub goes_on: bool,
    /// Some of the pods, as `namespace/name`, where the runtime tells.
    pub pods: Vec<String>,
    /// What a log on this node says of the last one.
    pub said: Option<String>,
}

/// How long the calls of one kind take, in milliseconds. A window is five minutes, and its figure the 95th percentile.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct CallLatency {
    /// The method: `Version`, `Status`, `ListPodSandbox`.
    pub call: &'static str,
    /// In the last window.
    pub now: u32,
    /// In the window before that.
    pub before: u32,
    /// What is usual on this node: the median of all windows, of the last seven days at most; none before there is one hour.
    pub usual: Option<u32>,
}

/// A runtime's process, as `/proc` has it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct HungProcess {
    /// Its process id: whoever listens on the socket.
    pub pid: i32,
    /// Its threads.
    pub threads: u32,
    /// Threads that a signal has stopped (state T, t).
    pub stopped: u32,
    /// Threads that wait in the kernel and cannot be interrupted (state D).
    pub stuck: u32,
}

impl CallLatency {
    /// Whether calls that take so many milliseconds are slow, where so many are usual: a quarter of a second and five times
    /// what is usual, or a second in any case (own numbers; the kubelet lists its pods once a second).
    pub fn is_slow(now: u32, usual: Option<u32>) -> bool {
        now >= 1000 || usual.is_some_and(|usual| now >= 250 && now >= usual.saturating_mul(5))
    }

    /// Whether it has been slow for both windows.
    pub fn lasts(&self) -> bool {
        [self.now, self.before].into_iter().all(|window| CallLatency::is_slow(window, self.usual))
    }
}

impl Runtime {
    /// A machine without a container runtime.
    pub fn absent() -> Self {
        Runtime {
            socket: Seen::Absent,
            status: Seen::Absent,
            sandboxes: Seen::Absent,
            image_filesystems: Seen::Absent,
            latency: Vec::new(),
            hung: None,
            failures: SandboxFailures::default(),
            static_pods: Vec::new(),
        }
    }

    /// A runtime that tells nothing, and why.
    pub fn silent(socket: Seen<String>, error: LookError) -> Self {
        Runtime {
            socket,
            status: Seen::Unreadable(error.clone()),
            sandboxes: Seen::Unreadable(error.clone()),
            image_filesystems: Seen::Unreadable(error),
            latency: Vec::new(),
            hung: None,
            failures: SandboxFailures::default(),
            static_pods: Vec::new(),
        }
    }
}

/// The answer to `Version` and `Status` of `runtime.v1.RuntimeService`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct RuntimeStatus {
    /// `containerd`, `cri-o`, ...
    pub name: String,
    /// Its version.
    pub version: String,
    /// `RuntimeReady`, `NetworkReady` and what else it tells. Types not known are information, never a fault.
    pub conditions: Vec<Condition>,
    /// CNI directories from the verbose answer: configuration directory and plugin directories.
    pub cni_dirs: Option<(String, Vec<String>)>,
    /// Whether it runs the plugin `loopback` for every pod, which no file names; containerd does, unless it is told to set up
    /// `lo` itself.
    pub cni_loopback: bool,
    /// `lastCNILoadStatus` of containerd's verbose answer: `OK`, or why the last load failed.
    pub cni_load: Option<String>,
}

/// A condition of the runtime.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct Condition {
    /// `RuntimeReady`, `NetworkReady`, ...
    pub kind: String,
    /// Its status.
    pub status: bool,
    /// Its reason.
    pub reason: String,
    /// Its message.
    pub message: String,
}

/// A pod sandbox.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct Sandbox {
    /// Its identifier.
    pub id: String,
    /// Namespace of the pod.
    pub namespace: String,
    /// Name of the pod.
    pub name: String,
    /// `created_at`, in nanoseconds of the Unix epoch.
    pub created_at: i64,
    /// Whether it uses the node's network (`NamespaceMode` NODE); none while that is not known yet.
    pub host_network: Option<bool>,
    /// Its addresses; empty for the node's network and while they are not known yet.
    pub addresses: Vec<IpAddr>,
}

impl RuntimeStatus {
    /// The condition of this type.
    pub fn condition(&self, kind: &str) -> Option<&Condition> {
        self.conditions.iter().find(|condition| condition.kind == kind)
    }
}
