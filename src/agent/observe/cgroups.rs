//! The cgroups of the pods, in either version and with either driver of the kubelet.

use std::path::{Path, PathBuf};

use super::host_root::HostRoot;
use crate::facts::PodCgroup;

/// A control file is some lines; `memory.stat` some hundred. In bytes.
const LIMIT: u64 = 64 << 10;
/// The kubelet runs 110 pods unless it is told otherwise, and nobody some thousands.
const MOST_PODS: usize = 2000;
/// A pod has some containers.
const MOST_CONTAINERS: usize = 64;

/// The cgroup that holds all pods, in the hierarchy of one controller.
#[derive(Debug, Clone)]
pub(super) struct Kubepods {
    pub(super) path: PathBuf,
    /// Whether it is of cgroup v2.
    pub(super) unified: bool,
}

/// A pod's cgroup.
#[derive(Debug)]
pub(super) struct Pod {
    pub(super) path: PathBuf,
    pub(super) uid: String,
    pub(super) best_effort: bool,
}

/// The mount point of a controller's hierarchy, and whether that is the one of cgroup v2.
pub(super) fn hierarchy(host: &HostRoot, controller: &str) -> (PathBuf, bool) {
    let base = host.path("/sys/fs/cgroup");
    if base.join("cgroup.controllers").exists() { (base, true) } else { (base.join(controller), false) }
}

impl Kubepods {
    /// Looks for it below the kubelet's `cgroupRoot`; none where there are no pods.
    pub(super) fn find(host: &HostRoot, controller: &str, root: &str) -> Option<Self> {
        let (base, unified) = hierarchy(host, controller);
        let found = names(root).into_iter().map(|name| base.join(name)).find(|path| path.is_dir());
        found.map(|path| Kubepods { path, unified })
    }

    /// The cgroups of the pods.
    pub(super) fn pods(&self) -> Vec<Pod> {
        let mut pods = Vec::new();
        for (name, path) in directories(&self.path) {
            let class = ["burstable", "besteffort"].into_iter().find(|class| is_class(&name, class));
            if class.is_none() {
                pods.extend(pod(&name, path, false));
                continue;
            }
            let best_effort = class == Some("besteffort");
            pods.extend(directories(&path).filter_map(|(name, path)| pod(&name, path, best_effort)));
        }
        pods.truncate(MOST_PODS);
        pods
    }
}

impl Pod {
    /// Whether it is static: the kubelet makes its uid from the manifest, an MD5 without dashes (`pkg/kubelet/config/common.go`).
    pub(super) fn is_static(&self) -> bool {
        self.uid.len() == 32 && self.uid.bytes().all(|byte| byte.is_ascii_hexdigit())
    }

    /// Its containers' cgroups.
    pub(super) fn containers(&self) -> Vec<(String, PathBuf)> {
        directories(&self.path).take(MOST_CONTAINERS).collect()
    }

    /// What is told of it.
    pub(super) fn told(&self) -> PodCgroup {
        let containers = self.containers().into_iter().map(|(name, _)| container_id(&name).to_owned()).collect();
        PodCgroup { uid: self.uid.clone(), containers }
    }
}

/// A control file.
pub(super) fn read(directory: &Path, file: &str) -> Option<String> {
    use std::io::Read;
    let mut text = String::new();
    super::host_root::open_at_once(&directory.join(file)).ok()?.take(LIMIT).read_to_string(&mut text).ok()?;
    Some(text)
}

/// A control file that holds one number; none for `max`, and for what cgroup v1 says instead.
pub(super) fn number(directory: &Path, file: &str) -> Option<u64> {
    read(directory, file)?.trim().parse().ok().filter(|number| *number < 1 << 62)
}

/// The value of a line `KEY VALUE`.
pub(super) fn keyed(text: &str, key: &str) -> Option<u64> {
    text.lines().find_map(|line| line.strip_prefix(key)?.strip_prefix(' ')?.trim().parse().ok())
}

/// Paths of the pods' cgroup below a hierarchy: of the driver systemd, whose slices carry the names of all above them
/// (`ToSystemd` of `pkg/kubelet/cm/cgroup_manager_linux.go`), and of the driver cgroupfs.
fn names(root: &str) -> [String; 2] {
    let parts = || root.split('/').filter(|part| !part.is_empty()).chain(["kubepods"]);
    let (mut slices, mut name) = (Vec::new(), String::new());
    for part in parts() {
        let dash = if name.is_empty() { "" } else { "-" };
        name = format!("{name}{dash}{}", part.replace('-', "_"));
        slices.push(format!("{name}.slice"));
    }
    [slices.join("/"), parts().collect::<Vec<_>>().join("/")]
}

fn is_class(name: &str, class: &str) -> bool {
    name == class || name.strip_suffix(".slice").is_some_and(|slice| slice.ends_with(&format!("-{class}")))
}

/// `podUID`, or `kubepods-burstable-podU_I_D.slice`.
fn pod(name: &str, path: PathBuf, best_effort: bool) -> Option<Pod> {
    let uid = match name.strip_suffix(".slice") {
        Some(slice) => slice.rsplit_once("-pod")?.1.replace('_', "-"),
        None => name.strip_prefix("pod")?.to_owned(),
    };
    Some(Pod { path, uid, best_effort })
}

/// `cri-containerd-ID.scope`, `crio-ID.scope` or the id itself.
fn container_id(name: &str) -> &str {
    name.strip_suffix(".scope").map_or(name, |scope| scope.rsplit('-').next().unwrap_or(scope))
}

fn directories(path: &Path) -> impl Iterator<Item = (String, PathBuf)> + use<> {
    let entries = std::fs::read_dir(path).into_iter().flatten().flatten();
    let directories = entries.filter(|entry| entry.file_type().is_ok_and(|kind| kind.is_dir()));
    directories.filter_map(|entry| Some((entry.file_name().into_string().ok()?, entry.path())))
}

/// The fuzz target's door.
#[cfg(any(test, fuzzing))]
pub(super) fn fuzz(text: &str) {
    let _ = (keyed(text, "oom_kill"), names(text), container_id(text));
    let _ = pod(text, PathBuf::new(), is_class(text, "burstable"));
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn where_the_pods_are() {
        assert_eq!(names("/"), ["kubepods.slice", "kubepods"]);
        assert_eq!(names("/a-b/c"), ["a_b.slice/a_b-c.slice/a_b-c-kubepods.slice", "a-b/c/kubepods"]);
    }

    #[test]
    fn pods_of_both_drivers() {
        let dir = tempfile::tempdir().expect("a temporary directory");
        let paths = [
            "kubepods-pod11_22.slice/cri-containerd-aa.scope",
            "kubepods-besteffort.slice/kubepods-besteffort-pod33.slice",
            "besteffort/pod44",
            "burstable/pod55-66/bb",
            "burstable/other",
            "init.scope",
        ];
        for path in paths {
            std::fs::create_dir_all(dir.path().join(path)).expect("mkdir");
        }
        let mut pods = Kubepods { path: dir.path().to_owned(), unified: true }.pods();
        pods.sort_unstable_by(|one, other| one.uid.cmp(&other.uid));
        let short: Vec<_> = pods.iter().map(|pod| (pod.uid.as_str(), pod.best_effort)).collect();
        assert_eq!(short, [("11-22", false), ("33", true), ("44", true), ("55-66", false)]);
        assert_eq!((pods[0].told().containers, pods[3].told().containers), (vec!["aa".into()], vec!["bb".into()]));
    }

    #[test]
    fn lines_and_numbers() {
        assert_eq!(keyed("oom 1\noom_kill 7\n", "oom_kill"), Some(7));
        assert_eq!(keyed("oom_killed 7\n", "oom_kill"), None);
        let dir = tempfile::tempdir().expect("a temporary directory");
        for (text, expected) in [("max\n", None), ("9223372036854771712\n", None), ("4096\n", Some(4096))] {
            std::fs::write(dir.path().join("it"), text).expect("write");
            assert_eq!(number(dir.path(), "it"), expected, "{text}");
        }
        assert_eq!(number(dir.path(), "none"), None);
    }
}
