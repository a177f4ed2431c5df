//! What holds the space and the inodes of a file system: logs and temporary volumes of pods, and the journal. A walk with an
//! end, made while either runs short.

use std::collections::BTreeMap;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use super::super::host_root::HostRoot;

/// After so many files, or this time, the walk stops where it is.
const MOST: u32 = 40_000;
/// No more are looked at of one pod's: whoever has that many is among those who have most.
const EACH: u32 = 10_000;
const LONGEST: Duration = Duration::from_secs(1);
/// How many are told.
const TOLD: usize = 3;
/// What is smaller is nobody's trouble; in bytes.
const SMALL: u64 = 16 << 20;
/// So are fewer files than this.
const FEW: u64 = 1000;
/// `NAMESPACE_NAME_UID` for each pod (`BuildPodLogsDirectory` of the kubelet).
const LOGS: &str = "/var/log/pods";
const JOURNAL: &str = "/var/log/journal";

/// Who holds most of a file system, by what a person calls them.
#[derive(Debug, Default)]
pub(super) struct Holders {
    /// In bytes.
    pub(super) bytes: Vec<(String, u64)>,
    /// In files and directories.
    pub(super) files: Vec<(String, u64)>,
}

/// The biggest on the file system that is mounted at `point`.
pub(super) fn look(host: &HostRoot, point: &str, kubelet: &str) -> Holders {
    look_until(host, point, kubelet, Instant::now() + LONGEST)
}

fn look_until(host: &HostRoot, point: &str, kubelet: &str, until: Instant) -> Holders {
    let Ok(device) = std::fs::symlink_metadata(host.path(point)).map(|about| about.dev()) else {
        return Holders::default();
    };
    let mut walk = Walk { device, left: MOST, until };
    let mut found = Holders::default();
    for (name, path) in candidates(host, kubelet) {
        let (bytes, files) = walk.size(path);
        if bytes >= SMALL {
            found.bytes.push((name.clone(), bytes));
        }
        if files >= FEW {
            found.files.push((name, files));
        }
    }
    for list in [&mut found.bytes, &mut found.files] {
        list.sort_unstable_by(|one, other| (other.1, &one.0).cmp(&(one.1, &other.0)));
        list.truncate(TOLD);
    }
    found
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
    /// The bytes that are allocated below a path on this device, and the files. Links are not followed.
    fn size(&mut self, path: PathBuf) -> (u64, u64) {
        let (mut waiting, mut bytes, mut files) = (vec![path], 0_u64, 0);
        let mut own = EACH.min(self.left);
        while let Some(path) = waiting.pop() {
            if own == 0 || Instant::now() > self.until {
                break;
            }
            own -= 1;
            self.left -= 1;
            let Ok(about) = std::fs::symlink_metadata(&path) else { continue };
            if about.dev() != self.device {
                continue;
            }
            bytes = bytes.saturating_add(about.blocks() * 512);
            files += 1;
            if about.is_dir() {
                waiting.extend(entries(&path).take(own as usize).map(|(_, path)| path));
            }
        }
        (bytes, files)
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
        assert!(found.files.is_empty(), "some files are nobody's trouble: {found:?}");
        let short: Vec<_> = found.bytes.iter().map(|(name, bytes)| (name.as_str(), bytes >> 20)).collect();
        assert_eq!(
            short,
            [("emptyDir cache of shop/cart-1", 30), ("logs of shop/cart-1", 20), ("emptyDir tmp of pod u-9", 18)]
        );
        std::fs::create_dir(dir.path().join("none")).expect("mkdir");
        let elsewhere = Walk { device: 0, left: MOST, until: Instant::now() + LONGEST }.size(dir.path().join("data"));
        assert_eq!(elsewhere, (0, 0));
        let mut tired = Walk { left: 2, ..Walk { device: 0, left: 0, until: Instant::now() + LONGEST } };
        tired.size(dir.path().join("data"));
        assert!(tired.left <= 1);
        assert!(look(&host, "/nowhere", "/data").bytes.is_empty());
    }

    #[test]
    fn many_small_files_are_counted_and_none_hides_the_next() {
        let dir = tempfile::tempdir().expect("a temporary directory");
        for (pod, files) in [("u-1", 12_000), ("u-2", 1500), ("u-3", 20)] {
            let path = dir.path().join(format!("data/pods/{pod}/volumes/kubernetes.io~empty-dir/cache"));
            std::fs::create_dir_all(&path).expect("mkdir");
            for file in 0..files {
                std::fs::File::create(path.join(format!("{file}"))).expect("create");
            }
        }
        // The count is what is asked for here, however busy the machine is.
        let until = Instant::now() + Duration::from_secs(60);
        let found = look_until(&HostRoot::new(dir.path()), "/", "/data", until);
        let short: Vec<_> = found.files.iter().map(|(name, files)| (name.as_str(), *files)).collect();
        assert_eq!(short, [("emptyDir cache of pod u-1", 10_000), ("emptyDir cache of pod u-2", 1501)]);
        assert!(found.bytes.is_empty(), "{found:?}");
    }
}
