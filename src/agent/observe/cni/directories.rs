//! Where the runtime looks for CNI files, by its configuration file, when it does not say itself.

use super::super::host_root::HostRoot;
use super::super::toml::{Entry, entries};

/// Configuration files of runtimes are some kilobytes; in bytes.
const LIMIT: u64 = 1 << 20;

/// The CNI directories and who told them.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Directories {
    pub(super) conf_dir: String,
    pub(super) bin_dirs: Vec<String>,
    pub(super) told_by: String,
}

/// The keys of one runtime's configuration.
struct Keys {
    /// Tables in which the keys count.
    tables: &'static [&'static str],
    conf_dir: &'static str,
    /// The later one wins.
    bin_dirs: &'static [&'static str],
    file: &'static str,
    /// Files that are read after it, in order of their names, and win over it.
    drop_ins: &'static str,
}

/// containerd 1.x (configuration version 2) and 2.x (version 3), and CRI-O.
const RUNTIMES: [Keys; 2] = [
    Keys {
        tables: &["plugins.io.containerd.grpc.v1.cri.cni", "plugins.io.containerd.cri.v1.runtime.cni"],
        conf_dir: "conf_dir",
        bin_dirs: &["bin_dir", "bin_dirs"],
        file: "/etc/containerd/config.toml",
        drop_ins: "/etc/containerd/conf.d",
    },
    Keys {
        tables: &["crio.network"],
        conf_dir: "network_dir",
        bin_dirs: &["plugin_dir", "plugin_dirs"],
        file: "/etc/crio/crio.conf",
        drop_ins: "/etc/crio/crio.conf.d",
    },
];

/// The directories named by the first configuration that names any; else the defaults of both runtimes.
pub(super) fn find(host: &HostRoot) -> Directories {
    let mut found = Directories {
        conf_dir: "/etc/cni/net.d".to_owned(),
        bin_dirs: vec!["/opt/cni/bin".to_owned()],
        told_by: "default".to_owned(),
    };
    for keys in &RUNTIMES {
        for file in std::iter::once(keys.file.to_owned()).chain(drop_ins(host, keys.drop_ins)) {
            // A file that cannot be read tells nothing; the runtime's own status is asked before this.
            let Ok(text) = host.read_text(&file, LIMIT) else { continue };
            let (conf_dir, bin_dirs) = scan(&text, keys);
            if conf_dir.is_some() || bin_dirs.is_some() {
                found.told_by = file;
            }
            found.conf_dir = conf_dir.unwrap_or(found.conf_dir);
            found.bin_dirs = bin_dirs.unwrap_or(found.bin_dirs);
        }
        if found.told_by != "default" {
            break;
        }
    }
    found
}

fn drop_ins(host: &HostRoot, directory: &str) -> Vec<String> {
    let Ok(entries) = std::fs::read_dir(host.path(directory)) else { return Vec::new() };
    let mut names: Vec<_> = entries.flatten().filter_map(|entry| entry.file_name().into_string().ok()).collect();
    names.retain(|name| !name.starts_with('.') && [".toml", ".conf"].iter().any(|it| name.ends_with(it)));
    names.sort_unstable();
    names.into_iter().map(|name| format!("{directory}/{name}")).collect()
}

/// Reads two keys of one table.
fn scan(text: &str, keys: &Keys) -> (Option<String>, Option<Vec<String>>) {
    let (mut conf_dir, mut bin_dirs) = (None, None);
    let inside = |entry: &Entry| keys.tables.contains(&entry.table.join(".").as_str());
    for entry in entries(text).into_iter().filter(inside) {
        let paths: Vec<String> = entry.values.into_iter().filter(|path| path.starts_with('/')).collect();
        match entry.key.as_str() {
            key if key == keys.conf_dir && !paths.is_empty() => conf_dir = paths.into_iter().next(),
            key if keys.bin_dirs.contains(&key) && !paths.is_empty() => bin_dirs = Some(paths),
            _ => {}
        }
    }
    (conf_dir, bin_dirs)
}

/// The fuzz target's door.
#[cfg(any(test, fuzzing))]
pub(super) fn fuzz(data: &[u8]) {
    let text = String::from_utf8_lossy(data);
    for keys in &RUNTIMES {
        let (conf_dir, bin_dirs) = scan(&text, keys);
        let all = conf_dir.into_iter().chain(bin_dirs.into_iter().flatten());
        all.for_each(|path| assert!(path.starts_with('/')));
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::path::Path;

    fn found(files: &[(&str, &str)]) -> Directories {
        let dir = tempfile::tempdir().expect("a temporary directory");
        for (path, text) in files {
            let path = dir.path().join(path.trim_start_matches('/'));
            std::fs::create_dir_all(path.parent().unwrap_or(Path::new("/"))).expect("mkdir");
            std::fs::write(path, text).expect("write");
        }
        find(&HostRoot::new(dir.path()))
    }

    fn directories(conf_dir: &str, bin_dirs: &[&str], told_by: &str) -> Directories {
        let bin_dirs = bin_dirs.iter().map(ToString::to_string).collect();
        Directories { conf_dir: conf_dir.into(), bin_dirs, told_by: told_by.into() }
    }

    #[test]
    fn defaults_when_nobody_tells() {
        assert_eq!(found(&[]), directories("/etc/cni/net.d", &["/opt/cni/bin"], "default"));
        let other = "[plugins.\"io.containerd.grpc.v1.cri\"]\nsandbox_image = \"pause\"\n";
        assert_eq!(found(&[("/etc/containerd/config.toml", other)]).told_by, "default");
    }

    #[test]
    fn containerd_1() {
        let file = "/etc/containerd/config.toml";
        let text = "version = 2\n[plugins]\n  [plugins.\"io.containerd.grpc.v1.cri\".cni]\n    bin_dir = \"/a/bin\" # here\n\
                    #   conf_dir = \"/no\"\n    conf_dir = \"/a/net.d\"\n  [plugins.\"io.containerd.grpc.v1.cri\".other]\n    conf_dir = \"/no\"\n";
        assert_eq!(found(&[(file, text)]), directories("/a/net.d", &["/a/bin"], file));
    }

    #[test]
    fn containerd_2_with_a_list_over_lines_and_a_drop_in() {
        let file = "/etc/containerd/config.toml";
        let text = "[plugins.'io.containerd.cri.v1.runtime'.cni]\n  bin_dir = ''\n  bin_dirs = [\n   '/a/bin',\n   # '/no',\n   '/b/bin'\n  ]\n  conf_dir = '/a/net.d'\n";
        assert_eq!(found(&[(file, text)]), directories("/a/net.d", &["/a/bin", "/b/bin"], file));
        let drop_in = "/etc/containerd/conf.d/10-cni.toml";
        let more = "[plugins.'io.containerd.cri.v1.runtime'.cni]\nconf_dir = '/z'\n";
        assert_eq!(found(&[(file, text), (drop_in, more)]), directories("/z", &["/a/bin", "/b/bin"], drop_in));
    }

    #[test]
    fn crio() {
        let file = "/etc/crio/crio.conf.d/10-crio.conf";
        let text = "[crio.network]\nnetwork_dir = \"/etc/kubernetes/cni/net.d/\"\nplugin_dirs = [\"/var/lib/cni/bin\", \"/usr/libexec/cni\"]\n";
        let expected = directories("/etc/kubernetes/cni/net.d/", &["/var/lib/cni/bin", "/usr/libexec/cni"], file);
        assert_eq!(found(&[(file, text)]), expected);
    }

    #[test]
    fn nonsense_is_passed_over() {
        assert_eq!(
            found(&[(
                "/etc/containerd/config.toml",
                "[plugins.'io.containerd.cri.v1.runtime'.cni]\nbin_dirs = [\n'/a\n"
            )])
            .told_by,
            "default"
        );
    }
}
