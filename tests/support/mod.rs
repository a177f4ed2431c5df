//! Real parts for tests: network namespaces, a Kubernetes control plane, workers and container images.
//!
//! ```text
//! NetNs                              a network (and mount) namespace for one test
//! ControlPlane                       etcd, kube-apiserver; controllers and scheduler if asked for
//! Cluster = ControlPlane + Nodes     each node: containerd, kubelet, kube-proxy, CNI in namespaces of its own
//! image::build                       the project's Dockerfile -> an archive that a node imports
//! wait::eventually                   polls until a deadline
//! ```
//!
//! Nothing here has a name outside its own namespaces, so nothing collides and nothing is left: a [`host::Host`] is
//! a PID namespace whose first process ends when this process does, however that happens. What the kernel does not
//! take back by itself, files and cgroups, a [`workspace::Workspace`] does.
//!
//! Needs root and what `scripts/setup.sh test` installs.

#![allow(
    dead_code,
    unreachable_pub,
    reason = "a library that is compiled into each test target, which uses its own part"
)]
#![allow(clippy::print_stderr, reason = "says why it takes long")]

pub mod cluster;
pub mod control_plane;
pub mod host;
pub mod image;
pub mod netns;
pub mod node;
pub mod parts;
pub mod pki;
pub mod shell;
pub mod wait;
pub mod workspace;
