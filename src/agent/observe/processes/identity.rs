//! Which program a process runs, and what it was told.

use std::path::{Path, PathBuf};

use super::super::host_root::HostRoot;
use super::super::kubelet::argument;
use crate::facts::{Program, ProxyMode};

/// kube-proxy's configuration is some kilobytes; in bytes.
const CONFIGURATION: u64 = 1 << 18;
/// A process is in one cgroup of each hierarchy, a dozen at most. In bytes.
const CGROUPS: u64 = 64 << 10;
/// A short name has 15 bytes at most.
const NAME: u64 = 64;

/// Which program a process runs, and its arguments. The kernel's short name rules out nearly all processes.
pub(super) fn identify(proc: &Path, pid: i32, comm: &str) -> Option<(Program, Vec<String>)> {
    let file = |name: &str| -> PathBuf { proc.join(format!("{pid}/{name}")) };
    if !SHORT_NAMES.contains(&comm) {
        return None;
    }
    let bytes = std::fs::read(file("cmdline")).ok()?;
    let text = String::from_utf8_lossy(&bytes);
    // k3s writes its whole command line into its first argument and fills the rest with zeros.
    let arguments: Vec<String> = text.split('\0').filter(|part| !part.is_empty()).map(str::to_owned).collect();
    let program = classify(comm, &arguments)?;
    let elsewhere = match program {
        Program::Kubelet | Program::Containerd | Program::Crio => {
            is_nested(&std::fs::read_to_string(file("status")).ok()?)
        }
        Program::KubeProxy | Program::Felix | Program::Bird => has_other_network(&file("ns/net")),
    };
    (!elsewhere).then_some((program, arguments))
}

/// The mode that kube-proxy was told: where it has a configuration file, by that alone (`pkg/proxy/apis/config`). That of a
/// container is seen by whoever may trace its processes, that of a program of the host by everybody; where it cannot be read,
/// nothing is known: a file of the same name on the host may be left from another installation.
pub(super) fn proxy_mode(host: &HostRoot, pid: i32, arguments: &[String]) -> Option<ProxyMode> {
    let told = match argument(arguments, "config") {
        None => argument(arguments, "proxy-mode")?,
        Some(file) => {
            let text = if in_container(&host.read_text(&format!("/proc/{pid}/cgroup"), CGROUPS).ok()?) {
                // Only the kernel follows this link, whose text is `/`.
                let root = HostRoot::new(host.path("/proc").join(format!("{pid}/root")));
                root.read_text(&file, CONFIGURATION)
            } else {
                host.read_text(&file, CONFIGURATION)
            };
            let config: serde_json::Value = crate::yaml::parse(&text.ok()?).ok()?;
            config.get("mode")?.as_str()?.to_owned()
        }
    };
    Some(match told.as_str() {
        "ipvs" => ProxyMode::Ipvs,
        "nftables" => ProxyMode::Nftables,
        "iptables" => ProxyMode::Iptables,
        _ => return None,
    })
}

/// Whether a process is a container's, by its `/proc/PID/cgroup`: below the cgroup of all pods, or below one that a runtime
/// named after a container, by 64 hexadecimal digits. To whoever has a cgroup namespace of its own the way there begins above
/// its own cgroup, which may leave out the name of the first.
pub(super) fn in_container(cgroups: &str) -> bool {
    let id = |part: &str| part.len() == 64 && part.bytes().all(|byte| byte.is_ascii_hexdigit());
    cgroups.contains("kubepods") || cgroups.split(['/', '-', '.', ':', '\n']).any(id)
}

/// Whether this process runs, and is a container runtime.
pub(in super::super) fn is_runtime(host: &HostRoot, pid: u64) -> bool {
    let comm = host.read_text(&format!("/proc/{pid}/comm"), NAME);
    comm.is_ok_and(|comm| matches!(comm.trim_end(), "containerd" | "crio"))
}

/// Whether a process lives in another network than this one: what programs the packet filter there (a worker inside a
/// container) is not what programs it here. Where that may not be asked, without `CAP_SYS_PTRACE`, it is taken for ours.
pub(super) fn has_other_network(theirs: &Path) -> bool {
    let ours = std::fs::read_link("/proc/thread-self/ns/net");
    matches!((ours, std::fs::read_link(theirs)), (Ok(ours), Ok(theirs)) if ours != theirs)
}

/// The short names (at most 15 bytes) of programs that [`classify`] knows.
pub(super) const SHORT_NAMES: [&str; 14] = [
    "kubelet",
    "kubelite",
    "hyperkube",
    "k3s",
    "k3s-server",
    "k3s-agent",
    "containerd",
    "crio",
    "kube-proxy",
    "calico-felix",
    "calico-node",
    "calico",
    "bird",
    "bird6",
];

/// Which program this is, by its short name and its arguments; none for a kernel thread, which has no arguments.
pub(super) fn classify(comm: &str, arguments: &[String]) -> Option<Program> {
    let command = arguments.first()?;
    let second = || arguments.get(1).map(String::as_str).or_else(|| command.split(' ').nth(1));
    match comm {
        // kubelite is MicroK8s' kubelet with the rest of Kubernetes in one process, as k3s is.
        "kubelet" | "kubelite" => Some(Program::Kubelet),
        "k3s" | "k3s-server" | "k3s-agent" => matches!(second(), Some("server" | "agent")).then_some(Program::Kubelet),
        "hyperkube" => match second() {
            Some("kubelet") => Some(Program::Kubelet),
            Some("kube-proxy" | "proxy") => Some(Program::KubeProxy),
            _ => None,
        },
        "containerd" => Some(Program::Containerd),
        "crio" => Some(Program::Crio),
        "kube-proxy" => Some(Program::KubeProxy),
        "calico-felix" => Some(Program::Felix),
        // `calico-node -felix` up to 3.32, a subcommand of `calico` later.
        "calico-node" | "calico" => {
            arguments.iter().any(|argument| argument.trim_start_matches('-') == "felix").then_some(Program::Felix)
        }
        "bird" | "bird6" => Some(Program::Bird),
        _ => None,
    }
}

/// Whether a process lives in a process namespace below the node's: a containerd there is that of Docker or kind in
/// a pod, not the node's.
pub(super) fn is_nested(status: &str) -> bool {
    let levels = status.lines().find_map(|line| line.strip_prefix("NSpid:"));
    levels.is_some_and(|levels| levels.split_whitespace().count() > 1)
}
