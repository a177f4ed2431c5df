//! Files without which the kubelet or the CNI does not start, and that a crash leaves empty or in pieces.
//!
//! Each is read when it has changed. What looks damaged is looked at again after a while: whoever writes a file in place has
//! it empty for a moment, and as long as it changes it is being written (catalogue R003).

use std::collections::{BTreeMap, BTreeSet};
use std::os::unix::fs::MetadataExt as _;
use std::time::{Duration, SystemTime};

use super::host_root::HostRoot;
use crate::facts::{FileFault, Kubelet, LookError, Reason};

/// None of these files is longer; in bytes.
const LIMIT: u64 = 4 << 20;
/// A file that is not written in this time is not being written.
const SETTLING: Duration = Duration::from_secs(2);
/// So often it is waited for.
const TRIES: usize = 2;
/// So many files of a directory are looked at.
const FILES: usize = 64;
/// Where calico-node writes the node's name.
const NODENAME: &str = "/var/lib/calico/nodename";
/// In the kubelet's directory: what it reads back at its start, and refuses to start without (`checkpoint is corrupted`).
const CHECKPOINTS: [&str; 7] = [
    "cpu_manager_state",
    "memory_manager_state",
    "dra_manager_state",
    "pod_status_manager_state",
    "allocated_pods_state",
    "actuated_pods_state",
    "device-plugins/kubelet_internal_checkpoint",
];
/// Its certificate, a link to the newest one.
const CERTIFICATE: &str = "pki/kubelet-client-current.pem";

/// What a file has to be.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Format {
    /// Settings.
    Yaml,
    Json,
    /// A certificate or a key.
    Pem,
    /// Text of which somebody else judges what it says.
    Text,
}

/// Where the files are.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Places {
    /// The kubelet's configuration and kubeconfig.
    pub(super) settings: Vec<String>,
    /// The kubelet's directory.
    pub(super) root_dir: String,
    /// The directory of CNI configurations.
    pub(super) cni: String,
    /// The directory of static pods.
    pub(super) static_pods: String,
}

impl Places {
    /// Those of this kubelet.
    pub(super) fn of(kubelet: &Kubelet, root_dir: String, cni: Option<String>) -> Self {
        let settings = kubelet.config_path.iter().chain(&kubelet.kubeconfig_path).cloned().collect();
        let (cni, static_pods) = (cni.unwrap_or_else(|| "/etc/cni/net.d".to_owned()), kubelet.static_pods.clone());
        Places { settings, root_dir, cni, static_pods }
    }
}

/// What a file was when it was read last, and what was wrong with it.
#[derive(Debug, Clone, PartialEq, Eq)]
struct Read {
    stamp: (u64, u64, SystemTime),
    fault: Option<String>,
}

/// Looks at the files, and remembers what has not changed.
#[derive(Debug)]
pub(super) struct NodeFiles {
    host: HostRoot,
    read: BTreeMap<String, Read>,
}

impl NodeFiles {
    /// Nothing was looked at yet.
    pub(super) fn new(host: HostRoot) -> Self {
        NodeFiles { host, read: BTreeMap::new() }
    }

    /// Looks at all of them; blocks for some seconds where one looks damaged that did not before.
    pub(super) fn look(&mut self, places: &Places) -> Result<Vec<FileFault>, LookError> {
        let mut fresh = self.once(places)?;
        for _ in 0..TRIES {
            if fresh.is_empty() {
                break;
            }
            std::thread::sleep(SETTLING);
            fresh = self.once(places)?;
        }
        let standing = self.read.iter().filter(|(path, _)| !fresh.contains(*path));
        let fault = |(path, read): (&String, &Read)| Some(FileFault { path: path.clone(), what: read.fault.clone()? });
        Ok(standing.filter_map(fault).collect())
    }

    /// Looks at each once; those that are newly amiss.
    fn once(&mut self, places: &Places) -> Result<BTreeSet<String>, LookError> {
        let mut found = BTreeMap::new();
        let mut amiss = BTreeSet::new();
        for (path, format) in files(&self.host, places) {
            let about = match std::fs::metadata(self.host.path(&path)) {
                Ok(about) => about,
                Err(error) if error.kind() == std::io::ErrorKind::NotFound => continue,
                Err(error) => return Err(LookError::io(path, &error)),
            };
            let stamp = (about.ino(), about.len(), about.modified().unwrap_or(SystemTime::UNIX_EPOCH));
            let known = self.read.get(&path).filter(|read| read.stamp == stamp).cloned();
            let read = match known {
                Some(read) => read,
                None => Read { stamp, fault: self.fault(&path, format)? },
            };
            if read.fault.is_some() && self.read.get(&path) != Some(&read) {
                amiss.insert(path.clone());
            }
            found.insert(path, read);
        }
        self.read = found;
        Ok(amiss)
    }

    fn fault(&self, path: &str, format: Format) -> Result<Option<String>, LookError> {
        match self.host.read(path, LIMIT) {
            Ok(bytes) => Ok(fault(&bytes, format)),
            Err(error) if error.reason == Reason::Missing => Ok(None),
            Err(error) if error.reason == Reason::WrongKind || is_damage(&error.detail) => {
                Ok(Some(format!("cannot be read: {}", error.detail)))
            }
            Err(error) => Err(error),
        }
    }
}

/// The files that are looked at.
fn files(host: &HostRoot, places: &Places) -> Vec<(String, Format)> {
    let Places { settings, root_dir, cni, static_pods } = places;
    let named = |path: &String| (path.clone(), Format::Yaml);
    let checkpoint = |name: &&str| (format!("{root_dir}/{name}"), Format::Json);
    let mut files: Vec<(String, Format)> = settings.iter().map(named).collect();
    files.extend(CHECKPOINTS.iter().map(checkpoint));
    files.push((format!("{root_dir}/{CERTIFICATE}"), Format::Pem));
    files.push((NODENAME.to_owned(), Format::Text));
    // What a configuration of the CNI says is judged by checks of its own, and by the runtime.
    files.extend(inside(host, cni, &["conf", "conflist", "json", "calico-kubeconfig"], Format::Text));
    files.extend(inside(host, static_pods, &["yaml", "yml", "json"], Format::Yaml));
    files
}

/// The files of a directory with one of these extensions, or of that name.
fn inside(host: &HostRoot, directory: &str, extensions: &[&str], format: Format) -> Vec<(String, Format)> {
    let entries = std::fs::read_dir(host.path(directory)).into_iter().flatten().flatten();
    let names = entries.filter_map(|entry| entry.file_name().into_string().ok());
    let counts = |name: &String| {
        let extension = name.rsplit('.').next().unwrap_or_default();
        !name.starts_with('.') && extensions.contains(&extension)
    };
    names.filter(counts).take(FILES).map(|name| (format!("{directory}/{name}"), format)).collect()
}

/// What is wrong with a file of this format.
fn fault(bytes: &[u8], format: Format) -> Option<String> {
    let text = match std::str::from_utf8(bytes) {
        _ if bytes.trim_ascii().is_empty() => return Some("is empty".to_owned()),
        // Blocks that were allocated and never written back read as zeros.
        _ if bytes.contains(&0) => return Some("holds zeros in place of text".to_owned()),
        Ok(text) => text,
        Err(_) => return Some("holds no text".to_owned()),
    };
    match format {
        Format::Text => None,
        Format::Pem if text.contains("-----BEGIN ") && text.trim_end().ends_with("-----") => None,
        Format::Pem => Some("holds no whole certificate".to_owned()),
        Format::Json => match serde_json::from_str::<serde::de::IgnoredAny>(text) {
            Ok(_) => None,
            Err(error) if error.is_eof() => Some("is cut off".to_owned()),
            Err(error) => Some(format!("is no JSON, at line {}", error.line())),
        },
        Format::Yaml => match crate::yaml::documents(text) {
            Ok(documents) if documents.iter().any(serde_json::Value::is_object) => None,
            Ok(_) => Some("holds no settings".to_owned()),
            Err(error) => Some(format!("is no YAML: {error}")),
        },
    }
}

/// Whether the file system says that its structures or its disk are damaged: EIO, EUCLEAN.
pub(super) fn is_damage(detail: &str) -> bool {
    detail.ends_with("(os error 5)") || detail.ends_with("(os error 117)")
}

/// The fuzz target's door.
#[cfg(any(test, fuzzing))]
pub(super) fn fuzz(bytes: &[u8]) {
    for format in [Format::Yaml, Format::Json, Format::Pem, Format::Text] {
        let fault = fault(bytes, format);
        assert!(fault.is_none_or(|fault| !fault.is_empty() && fault.len() < 4096));
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::path::{Path, PathBuf};

    struct Node {
        root: tempfile::TempDir,
        files: NodeFiles,
    }

    impl Node {
        fn healthy() -> Self {
            let root = tempfile::tempdir().expect("a temporary directory");
            let files = NodeFiles::new(HostRoot::new(root.path()));
            let node = Node { root, files };
            node.write("/var/lib/kubelet/config.yaml", "kind: KubeletConfiguration\n");
            node.write("/etc/kubernetes/kubelet.conf", "kind: Config\nclusters: []\n");
            node.write("/var/lib/kubelet/cpu_manager_state", r#"{"policyName":"none","checksum":1}"#);
            node.write("/var/lib/kubelet/pki/kubelet-client-1.pem", "-----BEGIN X-----\nAA==\n-----END X-----\n");
            node.write("/etc/cni/net.d/10-calico.conflist", "{}");
            node.write("/etc/cni/net.d/calico-kubeconfig", "kind: Config");
            node.write("/etc/kubernetes/manifests/haproxy.yaml", "---\nkind: Pod\n");
            node.write("/etc/kubernetes/manifests/.haproxy.yaml.swp", "\0");
            node.write(NODENAME, "n1");
            let current = node.place("/var/lib/kubelet/pki/kubelet-client-current.pem");
            std::os::unix::fs::symlink("/var/lib/kubelet/pki/kubelet-client-1.pem", current).expect("a link");
            node
        }

        fn place(&self, path: &str) -> PathBuf {
            self.root.path().join(path.trim_start_matches('/'))
        }

        fn write(&self, path: &str, text: &str) {
            let place = self.place(path);
            std::fs::create_dir_all(place.parent().unwrap_or(Path::new("/"))).expect("mkdir");
            std::fs::write(place, text).expect("write");
        }

        fn look(&mut self) -> Vec<(String, String)> {
            let places = Places {
                settings: vec!["/var/lib/kubelet/config.yaml".into(), "/etc/kubernetes/kubelet.conf".into()],
                root_dir: "/var/lib/kubelet".into(),
                cni: "/etc/cni/net.d".into(),
                static_pods: "/etc/kubernetes/manifests".into(),
            };
            let faults = self.files.look(&places).expect("readable");
            faults.into_iter().map(|fault| (fault.path, fault.what)).collect()
        }
    }

    #[test]
    fn what_a_crash_leaves_of_each_file() {
        let mut node = Node::healthy();
        assert_eq!(node.look(), []);
        let damaged = [
            ("/etc/cni/net.d/10-calico.conflist", "", "is empty"),
            ("/etc/cni/net.d/calico-kubeconfig", "\n", "is empty"),
            ("/etc/kubernetes/kubelet.conf", "kind: Config\n\0\0\0\0", "holds zeros in place of text"),
            ("/etc/kubernetes/manifests/haproxy.yaml", "kind: [Pod", "is no YAML: "),
            (NODENAME, "\0\0", "holds zeros in place of text"),
            ("/var/lib/kubelet/config.yaml", "# kind", "holds no settings"),
            ("/var/lib/kubelet/cpu_manager_state", r#"{"policyName":"no"#, "is cut off"),
            (
                "/var/lib/kubelet/pki/kubelet-client-current.pem",
                "-----BEGIN X-----\nAA==\n",
                "holds no whole certificate",
            ),
        ];
        for (path, text, _) in damaged {
            let path = if path.ends_with("current.pem") { "/var/lib/kubelet/pki/kubelet-client-1.pem" } else { path };
            node.write(path, text);
        }
        let found = node.look();
        assert_eq!(found.len(), damaged.len(), "{found:?}");
        for ((path, what), (expected, _, said)) in found.iter().zip(damaged) {
            assert!(path == expected && what.starts_with(said), "{path} {what}");
        }
        // Removed and repaired: they go one by one.
        std::fs::remove_file(node.place("/var/lib/kubelet/cpu_manager_state")).expect("removes");
        node.write(NODENAME, "n1");
        let left: Vec<String> = node.look().into_iter().map(|(path, _)| path).collect();
        assert_eq!(left.len(), damaged.len() - 2, "{left:?}");
    }

    #[test]
    fn a_file_that_is_being_written_is_waited_for() {
        let mut node = Node::healthy();
        node.write(NODENAME, "");
        let place = node.place(NODENAME);
        let writer = std::thread::spawn(move || {
            std::thread::sleep(Duration::from_secs(1));
            std::fs::write(place, "n1").expect("write");
        });
        assert_eq!(node.look(), []);
        writer.join().expect("it wrote");
        // One who truncates it again and again is still at it.
        node.write(NODENAME, "");
        let place = node.place(NODENAME);
        let writer = std::thread::spawn(move || {
            for length in (0..20).rev() {
                std::fs::write(&place, "\n".repeat(length)).expect("write");
                std::thread::sleep(Duration::from_millis(400));
            }
        });
        assert_eq!(node.look(), []);
        writer.join().expect("it wrote");
        assert_eq!(node.look(), [(NODENAME.to_owned(), "is empty".to_owned())], "and left it so");
    }

    #[test]
    fn errors_of_the_disk_are_damage_and_no_permission_is_not() {
        let told = |code| LookError::io("f", &std::io::Error::from_raw_os_error(code)).detail;
        assert!(is_damage(&told(5)) && is_damage(&told(117)) && !is_damage(&told(13)));
    }

    #[test]
    fn something_else_in_the_place_of_a_file() {
        let mut node = Node::healthy();
        let place = node.place("/var/lib/kubelet/config.yaml");
        std::fs::remove_file(&place).expect("removes");
        nix::unistd::mkfifo(&place, nix::sys::stat::Mode::S_IRWXU).expect("a FIFO");
        assert_eq!(node.look()[0].1, "cannot be read: is a FIFO, not a file");
    }
}
