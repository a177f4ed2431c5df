//! The runtime's helpers beside each container or pod, and whose they are.

use std::path::Path;

use super::is_nested;

/// The short name of `containerd-shim-runc-v2` and its like.
const SHIM: &str = "containerd-shim";
/// CRI-O's, one for each container.
const CONMON: &str = "conmon";

/// What a shim's arguments say: they do not change.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Sandbox {
    /// They were not read yet.
    Unknown,
    /// It is not the node's, or not of Kubernetes.
    Foreign,
    Of(Box<str>),
    OfPod(Box<str>),
}

/// Whether a process of this short name may be one.
pub(super) fn is_one(comm: &str) -> bool {
    matches!(comm, SHIM | CONMON)
}

/// A shim of Kubernetes' containers: neither one of Docker's or of whoever uses `ctr`, nor one that lives in a pod itself,
/// nor one of those that only start or delete something; nor one of podman's. Answers its sandbox.
pub(super) fn shim(proc: &Path, pid: i32) -> Option<Sandbox> {
    let line = std::fs::read(proc.join(format!("{pid}/cmdline"))).ok()?;
    let line = String::from_utf8_lossy(&line);
    let arguments = || line.split('\0').filter(|part| !part.is_empty());
    let sandbox = match conmon_arguments(arguments()) {
        Some(pod) => Sandbox::OfPod(pod.into()),
        None => Sandbox::Of(shim_arguments(arguments()).filter(|(namespace, _)| *namespace == "k8s.io")?.1.into()),
    };
    let nested = is_nested(&std::fs::read_to_string(proc.join(format!("{pid}/status"))).ok()?);
    (!nested).then_some(sandbox)
}

/// The pod's uid in a conmon's `-n k8s_CONTAINER_POD_NAMESPACE_UID_ATTEMPT` (`internal/oci/runtime_oci.go` of CRI-O).
fn conmon_arguments<'a>(mut arguments: impl Iterator<Item = &'a str>) -> Option<&'a str> {
    arguments.next().filter(|command| command.rsplit('/').next() == Some(CONMON))?;
    arguments.find(|argument| matches!(*argument, "-n" | "--name"))?;
    let name = arguments.next()?.strip_prefix("k8s_")?;
    name.rsplit('_').nth(1).filter(|uid| !uid.is_empty())
}

/// `-namespace` and `-id` of a shim that stays.
fn shim_arguments<'a>(mut arguments: impl Iterator<Item = &'a str>) -> Option<(&'a str, &'a str)> {
    let (mut namespace, mut id) = (None, None);
    arguments.next()?;
    while let Some(argument) = arguments.next() {
        match argument.trim_start_matches('-') {
            "namespace" => namespace = arguments.next(),
            "id" => id = arguments.next(),
            "start" | "delete" if !argument.starts_with('-') => return None,
            _ => {}
        }
    }
    Some((namespace?, id?))
}

/// The fuzz target's door.
#[cfg(any(test, fuzzing))]
pub(super) fn fuzz(arguments: &[String]) {
    let words = || arguments.iter().map(String::as_str);
    let _ = (shim_arguments(words()), conmon_arguments(words()));
}
