//! What holds the space of a file system: logs and temporary volumes of pods, and the journal. A walk with an end, made while
//! space runs short.

use std::collections::BTreeMap;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use super::super::host_root::HostRoot;

/// After so many files, or this time, the walk stops where it is.
const MOST: u32 = 20_000;
const LONGEST: Duration = Duration::from_secs(1);
/// How many are told.
const TOLD: usize = 3;
/// What is smaller is nobody's trouble; in bytes.
const SMALL: u64 = 16 << 20;
/// `NAMESPACE_NAME_UID` for each pod (`BuildPodLogsDirectory` of the kubelet).
const LOGS: &str = "/var/log/pods";
const JOURNAL: &str = "/var/log/journal";

/// The biggest on the file system that is mounted at `point`, by what a person calls them, in bytes.
pub(super) fn look(host: &HostRoot, point: &str, kubelet: &str) -> Vec<(String, u64)> {
    let Ok(device) = std::fs::symlink_metadata(host.path(point)).map(|about| about.dev()) else { return Vec::new() };
    let mut walk = Walk { device, left: MOST, until: Instant::now() + LONGEST };
    let sizes = candidates(host, kubelet).into_iter().map(|(name, path)| (name, walk.size(path)));
    let mut sizes: Vec<_> = sizes.filter(|(_, bytes)| *bytes >= SMALL).collect();
    sizes.sort_by(|(_, one), (_, other)| other.cmp(one));
    sizes.truncate(TOLD);
    sizes
}

fn candidates(host: &HostRoot, kubelet: &str) -> Vec<(String, PathBuf)> {
    let mut found = vec![("the journal".to_owned(), host.path(JOURNAL))];
    let mut pods = BTreeMap::new();
    for (name, path) in entries(&host.path(LOGS)) {
        let mut parts = name.splitn(3, '_');
        let (Some(namespace), Some(pod), Some(uid)) = (parts.next(), parts.next(), parts.next()) else { continue };
        found.push((format!("logs of {namespace}/{pod}"), path));
        pods.insert(uid.to_owned(), format!("{namespace}/{pod}"));
    }
    for (uid, path) in entries(&host.path(kubelet).join("pods")) {
        let pod = pods.get(&uid).cloned().unwrap_or_else(|| format!("pod {uid}"));
        let volumes = entries(&path.join("volumes/kubernetes.io~empty-dir"));
        found.extend(volumes.map(|(volume, path)| (format!("emptyDir {volume} of {pod}"), path)));
    }
    found
}

fn entries(path: &Path) -> impl Iterator<Item = (String, PathBuf)> + use<> {
    let entries = std::fs::read_dir(path).into_iter().flatten().flatten();
    entries.filter_map(|entry| Some((entry.file_name().into_string().ok()?, entry.path())))
}

struct Walk {
    device: u64,
    left: u32,
    until: Instant,
}

impl Walk {
    /// The bytes that are allocated below a path on this device. Links are not followed.
    fn size(&mut self, path: PathBuf) -> u64 {
        let (mut waiting, mut bytes) = (vec![path], 0_u64);
        while let Some(path) = waiting.pop() {
            if self.left == 0 || Instant::now() > self.until {
                break;
            }
            self.left -= 1;
            let Ok(about) = std::fs::symlink_metadata(&path) else { continue };
            if about.dev() != self.device {
                continue;
            }
            bytes = bytes.saturating_add(about.blocks() * 512);
            if about.is_dir() {
                waiting.extend(entries(&path).take(self.left as usize).map(|(_, path)| path));
            }
        }
        bytes
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn pods_are_named_and_other_devices_left_out() {
        let dir = tempfile::tempdir().expect("a temporary directory");
        let file = |path: &str, mebibytes: usize| {
            let path = dir.path().join(path);
            std::fs::create_dir_all(path.parent().expect("not the root")).expect("mkdir");
            std::fs::write(path, vec![b'x'; mebibytes << 20]).expect("write");
        };
        file("var/log/pods/shop_cart-1_u-1/main/0.log", 20);
        file("var/log/pods/shop_quiet_u-2/main/0.log", 1);
        file("data/pods/u-1/volumes/kubernetes.io~empty-dir/cache/a/b", 30);
        file("data/pods/u-9/volumes/kubernetes.io~empty-dir/tmp/a", 18);
        file("data/pods/u-9/volumes/kubernetes.io~csi/big", 40);
        std::os::unix::fs::symlink("/proc", dir.path().join("var/log/pods/shop_cart-1_u-1/link")).expect("link");
        let host = HostRoot::new(dir.path());
        let found = look(&host, "/", "/data");
        let short: Vec<_> = found.iter().map(|(name, bytes)| (name.as_str(), bytes >> 20)).collect();
        assert_eq!(
            short,
            [("emptyDir cache of shop/cart-1", 30), ("logs of shop/cart-1", 20), ("emptyDir tmp of pod u-9", 18)]
        );
        std::fs::create_dir(dir.path().join("none")).expect("mkdir");
        let elsewhere = Walk { device: 0, left: MOST, until: Instant::now() + LONGEST }.size(dir.path().join("data"));
        assert_eq!(elsewhere, 0);
        let mut tired = Walk { left: 2, ..Walk { device: 0, left: 0, until: Instant::now() + LONGEST } };
        tired.size(dir.path().join("data"));
        assert!(tired.left <= 1);
        assert_eq!(look(&host, "/nowhere", "/data"), []);
    }
}
