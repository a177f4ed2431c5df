//! Which finding explains which (catalogue R040): power and boot, file systems and capacity, the kubelet, the way to the
//! master, the runtime, CNI files, Calico, kube-proxy, pods.
//!
//! The table says it code by code, and by subject where that matters: a full `/data` stops no kubelet, and one session that
//! is down does not explain the missing routes to another node. What is not in the table stands alone, so nothing is hidden
//! by guessing; what is explained stays listed and says by which root.

use std::cmp::Reverse;
use std::net::IpAddr;

use ipnet::IpNet;

use super::{CausedBy, Raised};
use crate::checks::Severity;
use crate::checks::node::rank;

/// What a cause reaches on its worker.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Reach {
    /// All of it.
    Worker,
    /// What has the same subject.
    Subject,
    /// What its own text names: a peer, a node, an address.
    Named,
    /// The program that the consequence is about, if its own text names it: the victim of a kill.
    Program,
    /// What addresses of its own family lead to.
    Family,
    /// What is about an address in the prefix that it is about.
    Prefix,
    /// What says this in its own text.
    Saying(&'static str),
    /// Programs whose files may lie on the file system that it is about.
    Files,
    /// All of it, when it is critical.
    WhenCritical,
}

/// A cause, how far it reaches, and what it explains there.
type Rule = (&'static str, Reach, &'static [&'static str]);

/// What a program cannot do when its file system is full or read-only.
const NO_FILES: &[&str] = &[
    "KubeletDown",
    "KubeletUnhealthy",
    "KubeletRestarting",
    "ContainerdDown",
    "ContainerdUnresponsive",
    "ContainerdSlow",
    "ContainerdStoreCorrupt",
    "RuntimeNotReady",
    "ImageFsStatsMissing",
    "NodeFilesDamaged",
    "PodSandboxFailing",
    "StaticPodNotRunning",
];
/// What a runtime that does not answer leaves undone.
const NO_RUNTIME: &[&str] = &[
    "ContainerdSlow",
    "RuntimeNotReady",
    "CniNotInitialized",
    "KubeletUnhealthy",
    "ImageFsStatsMissing",
    "PodSandboxFailing",
    "StaticPodNotRunning",
];
/// The kubelet's words when a round over all containers takes too long.
const PLEG: &str = "PLEG is not healthy";
/// Of a certificate that this node's clock makes invalid (`checks::path::why`).
const CLOCK: &str = "this node's clock is wrong: this node's is";
/// What lies beyond the gateway.
const BEYOND: &[&str] = &["MasterUnreachable", "MasterPathPartial", "RegistryUnreachable"];
/// What needs Services.
const NO_SERVICES: &[&str] = &["MasterClusterIpUnreachable", "ClusterDnsUnreachable"];
/// What is asked of Pods on other nodes.
const NO_WAY_TO_PODS: &[&str] = &["ClusterDnsUnreachable"];
/// Of a kubeconfig of the CNI: the file is good, and its server away.
const NOT_REACHED: &str = "is not reached from here";
/// And: nobody could renew what is in it.
const NOT_RENEWED: [&str; 2] = ["holds a token that expire", "its token is not renewed"];

const RULES: &[Rule] = &[
    ("UncleanReboot", Reach::Worker, &["ContainerdStoreCorrupt", "NodeFilesDamaged"]),
    ("FilesystemReadOnly", Reach::Files, NO_FILES),
    ("DiskFull", Reach::Files, NO_FILES),
    ("InodesExhausted", Reach::Files, NO_FILES),
    ("DiskFull", Reach::Subject, &["DiskPressureImminent"]),
    ("InodesExhausted", Reach::Subject, &["InodesExhaustionImminent"]),
    ("NodeFilesDamaged", Reach::Subject, &["CniConfigInvalid", "CniKubeconfigInvalid", "CniNodenameMismatch"]),
    ("NodeFilesDamaged", Reach::Program, &["KubeletDown", "KubeletUnhealthy", "KubeletRestarting"]),
    ("FilesystemErrors", Reach::Files, &["ContainerdStoreCorrupt", "NodeFilesDamaged"]),
    ("TaskHung", Reach::Program, &["KubeletUnhealthy", "ContainerdUnresponsive", "ContainerdSlow"]),
    ("IoPressureHigh", Reach::Worker, &["ContainerdSlow"]),
    ("IoPressureHigh", Reach::Saying(PLEG), &["KubeletUnhealthy"]),
    (
        "OutOfMemory",
        Reach::Program,
        &["KubeletDown", "KubeletRestarting", "ContainerdDown", "BgpDaemonDown", "KubeProxyDown"],
    ),
    ("ClockSkewed", Reach::Saying(CLOCK), &["MasterUnreachable"]),
    ("ClockSkewed", Reach::WhenCritical, &["CniKubeconfigInvalid"]),
    ("KubeletDown", Reach::Worker, &["KubeletRestarting"]),
    ("KubeletUnhealthy", Reach::Worker, &["StaticPodNotRunning"]),
    ("KubeletCertExpiring", Reach::WhenCritical, &["KubeletUnhealthy"]),
    ("StaticPodNotRunning", Reach::Program, &["MasterUnreachable", "KubeProxyDown"]),
    ("DefaultRouteMissing", Reach::Family, BEYOND),
    ("DefaultRouteMissing", Reach::Family, NO_WAY_TO_PODS),
    ("DefaultRouteMissing", Reach::Family, &["GatewayUnreachable", "BgpAllSessionsDown", "BgpSessionDown"]),
    ("GatewayUnreachable", Reach::Family, BEYOND),
    ("GatewayUnreachable", Reach::Family, NO_WAY_TO_PODS),
    ("WorkerFirewallBlocked", Reach::Worker, BEYOND),
    ("VpeGatewaySuspected", Reach::Worker, &["MasterUnreachable", "MasterPathPartial"]),
    (
        "MasterUnreachable",
        Reach::Worker,
        &["MasterPathPartial", "MasterClusterIpUnreachable", "KubeProxyRulesStale", "WorkerCutFromMasterOnly"],
    ),
    ("MasterUnreachable", Reach::Worker, NO_WAY_TO_PODS),
    // It is a Service as that one is.
    ("MasterClusterIpUnreachable", Reach::Worker, NO_WAY_TO_PODS),
    ("MasterUnreachable", Reach::Saying(NOT_REACHED), &["CniKubeconfigInvalid"]),
    ("MasterUnreachable", Reach::Saying(NOT_RENEWED[0]), &["CniKubeconfigInvalid"]),
    ("MasterUnreachable", Reach::Saying(NOT_RENEWED[1]), &["CniKubeconfigInvalid"]),
    ("MasterClusterIpUnreachable", Reach::Saying(NOT_REACHED), &["CniKubeconfigInvalid"]),
    ("ContainerdStoreCorrupt", Reach::Worker, &["ContainerdDown", "ContainerdUnresponsive"]),
    ("ContainerdStoreCorrupt", Reach::Worker, NO_RUNTIME),
    ("ContainerdDown", Reach::Worker, NO_RUNTIME),
    ("ContainerdUnresponsive", Reach::Worker, NO_RUNTIME),
    ("RuntimeObjectLeak", Reach::Worker, &["ContainerdSlow", "ShimLeak"]),
    ("RuntimeObjectLeak", Reach::Saying(PLEG), &["KubeletUnhealthy"]),
    ("ContainerdSlow", Reach::Saying(PLEG), &["KubeletUnhealthy"]),
    ("RuntimeNotReady", Reach::Worker, &["PodSandboxFailing"]),
    ("CniConfigMissing", Reach::Worker, &["CniNotInitialized", "PodSandboxFailing"]),
    ("CniConfigInvalid", Reach::Worker, &["CniNotInitialized", "PodSandboxFailing"]),
    ("CniBinaryMissing", Reach::Worker, &["PodSandboxFailing"]),
    ("CniKubeconfigInvalid", Reach::Worker, &["PodSandboxFailing"]),
    ("CniNodenameMismatch", Reach::Worker, &["PodRouteMissing", "PodSandboxFailing"]),
    ("CniNotInitialized", Reach::Worker, &["PodSandboxFailing"]),
    ("PodRouteShadowed", Reach::Prefix, &["PodRouteMissing"]),
    (
        "TunnelDeviceMissing",
        Reach::Worker,
        &["RemoteBlockRouteWrongNextHop", "RemoteBlockRouteMissing", "EncapBlocked"],
    ),
    ("TunnelDeviceMissing", Reach::Worker, NO_WAY_TO_PODS),
    ("EncapBlocked", Reach::Worker, NO_WAY_TO_PODS),
    ("RemoteBlockRouteWrongNextHop", Reach::Worker, NO_WAY_TO_PODS),
    ("RemoteBlockRouteMissing", Reach::Worker, NO_WAY_TO_PODS),
    ("PolicyRoutingHijack", Reach::Worker, NO_WAY_TO_PODS),
    (
        "BgpDaemonDown",
        Reach::Worker,
        &[
            "BgpAllSessionsDown",
            "BgpSessionDown",
            "BgpMeshIncomplete",
            "BirdKernelSyncBroken",
            "RemoteBlockRouteWrongNextHop",
            "RemoteBlockRouteMissing",
            "BlockBlackholeMissing",
        ],
    ),
    ("BgpPasswordMismatch", Reach::Worker, &["BgpAllSessionsDown"]),
    ("BgpPasswordMismatch", Reach::Named, &["BgpSessionDown", "RemoteBlockRouteMissing"]),
    ("HostPolicyBlocksControlPlane", Reach::Worker, &["MasterUnreachable", "BgpPortBlocked"]),
    ("HostPolicyBlocksControlPlane", Reach::Worker, NO_WAY_TO_PODS),
    ("ForeignDropRule", Reach::Worker, &["BgpPortBlocked", "EncapBlocked"]),
    ("ForeignDropRule", Reach::Worker, NO_WAY_TO_PODS),
    ("BgpPortBlocked", Reach::Worker, &["BgpAllSessionsDown"]),
    ("BgpPortBlocked", Reach::Named, &["BgpSessionDown", "RemoteBlockRouteMissing"]),
    ("BgpAllSessionsDown", Reach::Worker, &["BgpSessionDown", "BgpMeshIncomplete", "RemoteBlockRouteMissing"]),
    ("BgpSessionDown", Reach::Named, &["RemoteBlockRouteMissing"]),
    ("BgpMeshIncomplete", Reach::Named, &["RemoteBlockRouteMissing"]),
    (
        "BirdKernelSyncBroken",
        Reach::Worker,
        &["RemoteBlockRouteWrongNextHop", "RemoteBlockRouteMissing", "BlockBlackholeMissing"],
    ),
    // A full table drops what opens a connection, to localhost too; sockets of the file system do not pass it.
    ("ConntrackFull", Reach::Worker, BEYOND),
    ("ConntrackFull", Reach::Worker, NO_SERVICES),
    ("ConntrackFull", Reach::Saying(NOT_REACHED), &["CniKubeconfigInvalid"]),
    (
        "ConntrackFull",
        Reach::Worker,
        &["ConntrackNearFull", "KubeletUnhealthy", "BgpPortBlocked", "BgpAllSessionsDown", "BgpSessionDown"],
    ),
    // It is a problem only where it took what both had; then it names their family.
    (
        "TablesFlushed",
        Reach::Named,
        &["KubeProxyChainsMissing", "KubeProxyChainsUnhooked", "CalicoChainsMissing", "CalicoChainsUnhooked"],
    ),
    ("KubeProxyDown", Reach::Worker, &["KubeProxyChainsMissing", "KubeProxyRulesStale"]),
    ("KubeProxyChainsMissing", Reach::Subject, &["KubeProxyChainsUnhooked"]),
    ("KubeProxyChainsMissing", Reach::Worker, &["KubeProxyRulesStale"]),
    ("KubeProxyChainsMissing", Reach::Worker, NO_SERVICES),
    ("KubeProxyChainsUnhooked", Reach::Worker, NO_SERVICES),
    ("KubeProxyRulesStale", Reach::Worker, NO_SERVICES),
    // What is left over in one backend may translate to an endpoint of the past before the other is asked.
    ("IptablesBackendSplit", Reach::Family, NO_SERVICES),
    ("KubeProxyChainsMissing", Reach::Saying(NOT_REACHED), &["CniKubeconfigInvalid"]),
    ("KubeProxyChainsUnhooked", Reach::Saying(NOT_REACHED), &["CniKubeconfigInvalid"]),
    ("KubeProxyRulesStale", Reach::Saying(NOT_REACHED), &["CniKubeconfigInvalid"]),
    ("IptablesLockContention", Reach::Worker, &["KubeProxyRulesStale"]),
    ("CalicoChainsMissing", Reach::Subject, &["CalicoChainsUnhooked"]),
];

/// Codes that neither explain another nor are explained by one.
#[cfg(test)]
const ALONE: &[&str] = &[
    "ApiWriteBlocked",
    "CalicoHookOrderWrong",
    "CniConfigConflict",
    "DiskIoErrors",
    "EphemeralPortsNearFull",
    "FdExhaustionImminent",
    "ForwardPolicyDrop",
    "HardwareErrors",
    "IpForwardDisabled",
    "IpSetMissing",
    "KernelOops",
    "LinkErrors",
    "MachineIdentityChanged",
    "MemoryPressureImminent",
    "MtuMismatch",
    "NodeOvercommitted",
    "PidPressureImminent",
    "PodRouteStale",
    "RpFilterStrict",
    "StaticRouteAdded",
    "UnregisterNetDevice",
    "VpnInterfaceAdded",
    "WorkerUnreachableFromPeers",
];

/// Directories that the kubelet and the runtime write to.
const PROGRAM_FILES: [&str; 5] =
    ["/var/lib/kubelet", "/var/lib/containerd", "/var/lib/containers", "/var/log", "/run/containerd"];

/// Says of every finding which root explains it, if one does, and sorts: roots first, those with the worst consequences
/// ahead and among equals the one whose area causes the others, then what they explain.
pub(super) fn explain(findings: &mut [Raised]) {
    findings.sort_by(|a, b| (b.severity, rank(&a.code), &a.subject).cmp(&(a.severity, rank(&b.code), &b.subject)));
    let direct = direct_causes(findings);
    let root = |of: usize| (0..direct.len()).try_fold(of, |at, _| direct[at].ok_or(at)).unwrap_or_else(|root| root);
    let roots: Vec<usize> = (0..findings.len()).map(root).collect();
    let mut weights: Vec<Severity> = findings.iter().map(|finding| finding.severity).collect();
    for (index, root) in roots.iter().enumerate() {
        weights[*root] = weights[*root].max(findings[index].severity);
    }
    let causes: Vec<Option<CausedBy>> = roots
        .iter()
        .enumerate()
        .map(|(index, root)| (index != *root).then(|| CausedBy::from(&findings[*root])))
        .collect();
    for (finding, cause) in findings.iter_mut().zip(causes) {
        finding.caused_by = cause;
    }
    // What has been sorted already stays so within a weight.
    let weigh =
        |finding: &Raised, weight: Severity| (finding.caused_by.is_some(), Reverse(weight), rank(&finding.code));
    let mut order: Vec<usize> = (0..findings.len()).collect();
    order.sort_by_key(|index| weigh(&findings[*index], weights[*index]));
    let sorted: Vec<Raised> = order.into_iter().map(|index| findings[index].clone()).collect();
    findings.clone_from_slice(&sorted);
}

/// Whether one finding explains another by itself.
pub(super) fn explains(cause: &Raised, finding: &Raised) -> bool {
    let mut rules = RULES.iter().filter(|(code, _, of)| *code == cause.code && of.contains(&finding.code.as_str()));
    cause.is_problem() && rules.any(|(_, reach, _)| reach.covers(cause, finding))
}

/// The first finding that explains each, by position.
fn direct_causes(findings: &[Raised]) -> Vec<Option<usize>> {
    let mut direct: Vec<Option<usize>> = vec![None; findings.len()];
    for (code, reach, consequences) in RULES {
        // What is only worth knowing takes no headline.
        for (at, cause) in findings.iter().enumerate().filter(|(_, it)| it.code == *code && it.is_problem()) {
            for (index, finding) in findings.iter().enumerate() {
                if consequences.contains(&finding.code.as_str()) && reach.covers(cause, finding) {
                    direct[index] = Some(direct[index].map_or(at, |other| other.min(at)));
                }
            }
        }
    }
    direct
}

impl Reach {
    fn covers(self, cause: &Raised, finding: &Raised) -> bool {
        match self {
            Reach::Worker => true,
            Reach::WhenCritical => cause.severity == Severity::Critical,
            Reach::Subject => cause.subject == finding.subject,
            Reach::Named => cause.subject == finding.subject || names(cause, &finding.subject),
            Reach::Program => names(cause, program(&finding.code)),
            Reach::Family => same_family(&cause.subject, &finding.subject),
            Reach::Prefix => cause.subject.parse::<IpNet>().is_ok_and(|prefix| {
                finding.subject.split(' ').any(|word| word.parse::<IpAddr>().is_ok_and(|it| prefix.contains(&it)))
            }),
            Reach::Saying(text) => finding.detail.contains(text),
            Reach::Files => PROGRAM_FILES.iter().any(|file| std::path::Path::new(file).starts_with(&cause.subject)),
        }
    }
}

/// Whether a finding's text names this, as a word of its own. BIRD's names of sessions end with the peer's address, in
/// underscores.
fn names(finding: &Raised, what: &str) -> bool {
    let part_of_word = |letter: char| letter.is_alphanumeric() || matches!(letter, '-' | '_' | '.' | ':');
    let mut words = [&finding.subject, &finding.detail]
        .into_iter()
        .flat_map(|text| text.split(|letter| !part_of_word(letter)))
        .map(|word| word.trim_end_matches(['.', ':']));
    let session = what.parse::<IpAddr>().is_ok().then(|| format!("_{}", what.replace(['.', ':'], "_")));
    !what.is_empty() && words.any(|word| word == what || session.as_ref().is_some_and(|end| word.ends_with(end)))
}

/// The program that a code is about.
fn program(code: &str) -> &'static str {
    let programs = [
        ("Kubelet", "kubelet"),
        ("Containerd", "containerd"),
        ("Bgp", "bird"),
        ("KubeProxy", "kube-proxy"),
        // Where it is on the node itself, it is a static pod (facts.md K).
        ("MasterUnreachable", "ibm-master-proxy-static"),
    ];
    programs.into_iter().find(|(prefix, _)| code.starts_with(prefix)).map_or("", |(_, program)| program)
}

/// Whether what the second text leads to may be of the family of the first; a name may be of either.
fn same_family(cause: &str, finding: &str) -> bool {
    let cause = match cause {
        "IPv4" => [true, false],
        "IPv6" => [false, true],
        other => families(other),
    };
    let finding = families(finding);
    let any = |families: [bool; 2]| families == [false, false];
    any(cause) || any(finding) || (cause[0] && finding[0]) || (cause[1] && finding[1])
}

/// Whether a text holds IPv4 and IPv6 addresses.
fn families(text: &str) -> [bool; 2] {
    let word = |letter: char| letter.is_ascii_hexdigit() || matches!(letter, '.' | ':');
    let mut found = [false; 2];
    for part in text.split(|letter| !word(letter)) {
        let address = part.parse::<IpAddr>().or_else(|_| part.split(':').next().unwrap_or_default().parse());
        match address {
            Ok(IpAddr::V4(_)) => found[0] = true,
            Ok(IpAddr::V6(_)) => found[1] = true,
            Err(_) => {}
        }
    }
    if let Some(("Mesh" | "Node" | "Global", rest)) = text.split_once('_') {
        let address = if rest.split('_').count() == 4 { rest.replace('_', ".") } else { rest.replace('_', ":") };
        found = families(&address);
    }
    found
}

#[cfg(test)]
mod tests;
