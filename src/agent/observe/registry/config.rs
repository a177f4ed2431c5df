//! Where the runtime pulls from, as its configuration says: mirrors of containerd (`config.toml`, `certs.d/*/hosts.toml`) and of
//! CRI-O (`registries.conf`).

use super::super::host_root::HostRoot;
use super::super::toml::{Entry, entries};
use crate::facts::Reason;

/// Such files are some kilobytes; in bytes.
const LIMIT: u64 = 1 << 20;
const CONTAINERD: &str = "/etc/containerd/config.toml";
const CERTS: &str = "/etc/containerd/certs.d";
const CONTAINERS: &str = "/etc/containers/registries.conf";
const MORE_CONTAINERS: &str = "/etc/containers/registries.conf.d";
/// So many files of that directory are read.
const FILES: usize = 32;

/// What all registries share.
#[derive(Debug, Default)]
pub(super) struct Configuration {
    certs: Vec<String>,
    /// Registry and URL of a mirror.
    mirrors: Vec<(String, String)>,
}

impl Configuration {
    /// Reads the files that are there.
    pub(super) fn read(host: &HostRoot) -> Self {
        let mut configuration = Configuration::default();
        for entry in entries(&text(host, CONTAINERD)) {
            configuration.containerd(entry);
        }
        if configuration.certs.is_empty() {
            configuration.certs.push(CERTS.to_owned());
        }
        let directory = std::fs::read_dir(host.path(MORE_CONTAINERS)).into_iter().flatten().flatten();
        let names = directory.filter_map(|entry| entry.file_name().into_string().ok());
        let mut more: Vec<String> = names.filter(|name| name.strip_suffix(".conf").is_some()).take(FILES).collect();
        more.sort_unstable();
        let more = more.iter().map(|name| format!("{MORE_CONTAINERS}/{name}"));
        for path in std::iter::once(CONTAINERS.to_owned()).chain(more) {
            configuration.containers(&entries(&text(host, &path)));
        }
        configuration
    }

    fn containerd(&mut self, entry: Entry) {
        let inside = |wanted: &[&str]| entry.table.windows(wanted.len()).any(|part| part == wanted);
        if entry.key == "config_path" && entry.table.last().is_some_and(|last| last == "registry") {
            let paths = entry.values.iter().flat_map(|paths| paths.split(':')).filter(|path| path.starts_with('/'));
            self.certs.extend(paths.map(str::to_owned));
        } else if entry.key == "endpoint" && inside(&["registry", "mirrors"]) {
            let name = entry.table.last().cloned().unwrap_or_default();
            self.mirrors.extend(entry.values.into_iter().map(|url| (name.clone(), url)));
        }
    }

    /// `containers-registries.conf(5)`: a registry is known by its prefix, or else by its location.
    fn containers(&mut self, entries: &[Entry]) {
        let value = |entry: &Entry| entry.values.first().cloned();
        let mut current = None;
        for entry in entries {
            let table: Vec<&str> = entry.table.iter().map(String::as_str).collect();
            match (table.as_slice(), entry.key.as_str()) {
                (["registry"], "prefix" | "location") => {
                    let own = entries.iter().filter(|other| other.header == entry.header);
                    let prefix = own.clone().find(|it| it.key == "prefix");
                    let prefix = prefix.or_else(|| own.clone().find(|it| it.key == "location"));
                    let name = prefix.and_then(value).map(|name| host_of(name.trim_start_matches("*.")).to_owned());
                    current.clone_from(&name);
                    if entry.key == "location"
                        && let Some((name, location)) = name.zip(value(entry))
                        && name != host_of(&location)
                    {
                        self.mirrors.push((name, format!("https://{}", host_of(&location))));
                    }
                }
                (["registry", "mirror"], "location") => {
                    if let Some((name, location)) = current.clone().zip(value(entry)) {
                        self.mirrors.push((name, format!("https://{}", host_of(&location))));
                    }
                }
                _ => {}
            }
        }
    }

    /// URLs that images of this registry are pulled from, in the order in which they are tried.
    pub(super) fn ways(&self, host: &HostRoot, name: &str) -> Vec<String> {
        let mut ways = Vec::new();
        let mut server = None;
        for directory in &self.certs {
            // A name with slashes would lead elsewhere.
            let file = [name, "_default"].into_iter().filter(|name| !name.contains('/') && !name.starts_with('.'));
            let read = file.map(|name| text(host, &format!("{directory}/{name}/hosts.toml"))).find(|it| !it.is_empty());
            let read = read.unwrap_or_default();
            for entry in entries(&read) {
                match entry.table.as_slice() {
                    [] if entry.key == "server" => server = entry.values.into_iter().next(),
                    [table, url] if table == "host" && !ways.contains(url) => ways.push(url.clone()),
                    _ => {}
                }
            }
        }
        let mirrors = self.mirrors.iter().filter(|(of, _)| of == name || of == "*");
        ways.extend(mirrors.map(|(_, url)| url.clone()));
        ways.push(server.unwrap_or_else(|| match name {
            "docker.io" => "https://registry-1.docker.io".to_owned(),
            name => format!("https://{name}"),
        }));
        let mut seen = std::collections::BTreeSet::new();
        ways.retain(|url| seen.insert(url.trim_end_matches('/').to_owned()));
        ways
    }
}

/// A file's text; what is not there or cannot be read says nothing.
fn text(host: &HostRoot, path: &str) -> String {
    host.read_text(path, LIMIT).unwrap_or_else(|error| {
        if error.reason != Reason::Missing {
            tracing::debug!(%error, "a configuration of registries cannot be read");
        }
        String::new()
    })
}

fn host_of(location: &str) -> &str {
    location.split('/').next().unwrap_or(location)
}

/// The fuzz target's door.
#[cfg(any(test, fuzzing))]
pub(crate) fn fuzz(text: &str) {
    let mut configuration = Configuration::default();
    configuration.containers(&entries(text));
    for entry in entries(text) {
        configuration.containerd(entry);
    }
    assert!(configuration.certs.iter().all(|path| path.starts_with('/')));
}

#[cfg(test)]
mod tests {
    use super::*;

    struct Node(tempfile::TempDir);

    impl Node {
        fn new(files: &[(&str, &str)]) -> Self {
            let dir = tempfile::tempdir().expect("a temporary directory");
            for (path, text) in files {
                let path = dir.path().join(path.trim_start_matches('/'));
                std::fs::create_dir_all(path.parent().expect("a directory")).expect("mkdir");
                std::fs::write(path, text).expect("write");
            }
            Node(dir)
        }

        fn ways(&self, name: &str) -> Vec<String> {
            let host = HostRoot::new(self.0.path());
            Configuration::read(&host).ways(&host, name)
        }
    }

    #[test]
    fn without_configuration_the_registry_itself() {
        let node = Node::new(&[]);
        assert_eq!(node.ways("docker.io"), ["https://registry-1.docker.io"]);
        assert_eq!(node.ways("icr.io"), ["https://icr.io"]);
        assert_eq!(node.ways("../../etc"), ["https://../../etc"]);
    }

    #[test]
    fn containerd_with_hosts_toml() {
        let hosts = "# ours\nserver = \"https://registry-1.docker.io\"\n\n[host.\"https://mirror.example:5000\"]\n  \
                     capabilities = [\"pull\", \"resolve\"]\n  [host.\"https://mirror.example:5000\".header]\n    x = \"y\"\n\
                     [host.'http://10.0.0.1']\n";
        let node = Node::new(&[
            ("/etc/containerd/certs.d/docker.io/hosts.toml", hosts),
            ("/etc/containerd/certs.d/_default/hosts.toml", "[host.\"https://all.example\"]\n"),
        ]);
        let expected = ["https://mirror.example:5000", "http://10.0.0.1", "https://registry-1.docker.io"];
        assert_eq!(node.ways("docker.io"), expected);
        assert_eq!(node.ways("quay.io"), ["https://all.example", "https://quay.io"]);
    }

    #[test]
    fn containerd_with_mirrors_and_another_directory() {
        let config = "version = 2\n[plugins.\"io.containerd.grpc.v1.cri\".registry]\n  config_path = \"/etc/c.d:/etc/d.d\"\n\
                      [plugins.\"io.containerd.grpc.v1.cri\".registry.mirrors]\n\
                      [plugins.\"io.containerd.grpc.v1.cri\".registry.mirrors.\"docker.io\"]\n  endpoint = [\n    \
                      \"https://a.example\", # the first\n    'https://b.example']\n[other]\n  endpoint = [\"https://c.example\"]\n";
        let node =
            Node::new(&[(CONTAINERD, config), ("/etc/d.d/quay.io/hosts.toml", "server = 'https://q.example/'\n")]);
        assert_eq!(node.ways("docker.io"), ["https://a.example", "https://b.example", "https://registry-1.docker.io"]);
        assert_eq!(node.ways("quay.io"), ["https://q.example/"]);
    }

    #[test]
    fn crio() {
        let conf = "unqualified-search-registries = [\"registry.fedoraproject.org\"]\n[[registry]]\nprefix = \"docker.io\"\n\
                    location = \"proxy.example/hub\"\n[[registry.mirror]]\nlocation = \"m.example:5000/hub\"\n\
                    insecure = true\n[[registry]]\nlocation = \"quay.io\"\n";
        let more =
            "[[registry]]\n  location = \"quay.io/openshift\"\n  [[registry.mirror]]\n    location = \"q.example\"\n";
        let node = Node::new(&[(CONTAINERS, conf), ("/etc/containers/registries.conf.d/99-x.conf", more)]);
        let docker = ["https://proxy.example", "https://m.example:5000", "https://registry-1.docker.io"];
        assert_eq!(node.ways("docker.io"), docker);
        assert_eq!(node.ways("quay.io"), ["https://q.example", "https://quay.io"]);
    }

    #[test]
    fn nonsense_is_passed_over() {
        for text in ["[", "[[", "a = [", "= \"", "[\"a", "a = [\"]\n", "endpoint = [\n\n\n", "x = 'a\" # ]"] {
            let node = Node::new(&[(CONTAINERD, text), (CONTAINERS, text)]);
            assert_eq!(node.ways("icr.io"), ["https://icr.io"], "{text}");
        }
    }
}
