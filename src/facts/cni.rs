//! The CNI directory as the runtime sees it: which files count, in which order, and what they need.

use std::collections::BTreeMap;

use jiff::Timestamp;
use serde::Serialize;

use super::Seen;

/// CNI configuration and plugins of the node.
#[derive(Debug, Clone, PartialEq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct Cni {
    /// The directory that the runtime reads, as the runtime names it (no host root in front).
    pub conf_dir: String,
    /// The directories in which the runtime looks for plugins, in order.
    pub bin_dirs: Vec<String>,
    /// Who told these directories: the runtime itself, its configuration file, or the defaults.
    pub told_by: String,
    /// Whether the runtime passes over files that it cannot use, as CRI-O does (ocicni `loadNetworks`). containerd stops
    /// at the first.
    pub passes_over: bool,
    /// The files with an extension that counts (`.conf`, `.conflist`, `.json`), in the runtime's order: byte order of
    /// the names. containerd uses the first only (go-cni `loadFromConfDir`).
    pub files: Seen<Vec<CniFile>>,
    /// Every plugin that the configuration in force names, `ipam` included, and the state of its program.
    pub binaries: BTreeMap<String, Seen<Binary>>,
    /// The state of the plugin `loopback`, if it is not among those.
    pub loopback: Seen<Binary>,
    /// The kubeconfigs that the configuration in force names, by path.
    pub kubeconfigs: BTreeMap<String, Seen<CniKubeconfig>>,
    /// Files without which a meta plugin gives no pod a network (Multus: `readinessindicatorfile`, `clusterNetwork`).
    pub awaited: BTreeMap<String, Seen<()>>,
    /// `/var/lib/calico/nodename`: the name under which Calico's plugin registers pods. calico-node writes it at its start.
    pub nodename: Seen<String>,
}

/// A kubeconfig with which a CNI plugin asks the API server. Its credentials are never kept.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct CniKubeconfig {
    /// `cluster.server`; empty when the file cannot be used at all.
    pub server: String,
    /// Why it cannot be used, if so: completes "the kubeconfig ...".
    pub fault: Option<String>,
    /// `exp` of its token; none for a token without end (a Secret of type service-account-token) or a client certificate.
    pub token_expires_at: Option<Timestamp>,
    /// Its last change.
    pub modified: Option<Timestamp>,
}

/// One configuration file.
#[derive(Debug, Clone, PartialEq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct CniFile {
    /// Its name, without the directory.
    pub name: String,
    /// Its last change.
    pub modified: Option<Timestamp>,
    /// What it holds, or what is wrong with it.
    pub content: Result<CniConfig, CniFault>,
}

/// The part of a network configuration that matters here.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct CniConfig {
    /// `name`.
    pub name: String,
    /// `cniVersion`.
    pub cni_version: String,
    /// The chain of plugins; a `.conf` file is a chain of one. Plugins to which others delegate (Multus, flannel) follow
    /// those that name them.
    pub plugins: Vec<CniPlugin>,
}

/// One plugin of the chain.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct CniPlugin {
    /// `type`: the name of the program.
    pub kind: String,
    /// `ipam.type`.
    pub ipam: Option<String>,
    /// `kubernetes.kubeconfig` (Calico) or `kubeconfig` (Multus): a path on the node.
    pub kubeconfig: Option<String>,
    /// Whether Calico keeps its data in an etcd of its own, where its nodes may be named otherwise than the Nodes.
    pub etcd: bool,
    /// Calico's `nodename_file_optional`: without its file it takes another name.
    pub nodename_optional: bool,
    /// A file that has to exist before the plugin does anything (Multus).
    pub awaits: Vec<String>,
}

/// What is wrong with a configuration file.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, thiserror::Error)]
#[serde(rename_all = "camelCase")]
pub enum CniFault {
    /// Not a regular file: a FIFO would block the runtime, a directory cannot be read.
    #[error("is {0}, not a regular file")]
    NotAFile(String),
    /// Larger than the limit of 1 MiB.
    #[error("is {0} bytes long; over 1 MiB is not read")]
    TooLarge(u64),
    /// No bytes at all: the mark of a crash in the middle of a rewrite.
    #[error("is empty")]
    Empty,
    /// Not UTF-8.
    #[error("is not UTF-8 (first bad byte at offset {0})")]
    NotUtf8(usize),
    /// Not JSON.
    #[error("is not JSON: {0}")]
    NotJson(String),
    /// JSON, but a required field is missing or has the wrong type.
    #[error("has no usable field `{0}`")]
    Field(String),
    /// `cniVersion` is no version of the specification: every plugin refuses it.
    #[error("asks for cniVersion {0:?}, which no plugin speaks (0.1.0 to 1.1.0 exist)")]
    Version(String),
    /// Could not be read.
    #[error("cannot be read: {0}")]
    Unreadable(String),
}

/// A plugin's program.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct Binary {
    /// Where it was found.
    pub path: String,
    /// Length in bytes; 0 is the mark of a crash in the middle of an installation.
    pub size: u64,
    /// Whether any execute bit is set.
    pub executable: bool,
    /// Why this machine cannot run it all the same, if so: completes "the plugin ...".
    pub unusable: Option<String>,
}

impl Cni {
    /// These directories and files, and nothing looked at yet of what they name.
    pub fn of(conf_dir: String, bin_dirs: Vec<String>, told_by: String, files: Seen<Vec<CniFile>>) -> Self {
        Cni {
            conf_dir,
            bin_dirs,
            told_by,
            passes_over: false,
            files,
            binaries: BTreeMap::new(),
            loopback: Seen::not_yet("loopback"),
            kubeconfigs: BTreeMap::new(),
            awaited: BTreeMap::new(),
            nodename: Seen::not_yet("/var/lib/calico/nodename"),
        }
    }

    /// The file that the runtime uses: the first, or the first good one where the runtime passes over bad ones.
    pub fn active(&self) -> Option<&CniFile> {
        let files = self.files.get()?;
        let good = files.iter().find(|file| self.passes_over && file.content.is_ok());
        good.or(files.first())
    }

    /// The configuration in force, when the first file is valid.
    pub fn config(&self) -> Option<&CniConfig> {
        self.active().and_then(|file| file.content.as_ref().ok())
    }

    /// A short hash of the configuration in force, of what is read of it and is not each node's own: two nodes with the same
    /// have the same. None where there is none, and where it was not seen.
    pub(crate) fn hash(&self) -> Option<u32> {
        let config = self.config()?;
        let plugins = config.plugins.iter().flat_map(|plugin| {
            let ipam = plugin.ipam.as_deref().unwrap_or_default();
            [&*plugin.kind, ipam, if plugin.etcd { "etcd" } else { "" }]
        });
        let words = [&*self.active()?.name, &*config.name, &*config.cni_version];
        Some(fnv(words.into_iter().chain(plugins)))
    }
}

/// FNV-1a of 32 bits over some words (draft-eastlake-fnv), each with its end: the same in every version of the program, unlike
/// the hashes of the standard library and what is made of all that is read. Nodes run different versions during an update.
fn fnv<'a>(words: impl Iterator<Item = &'a str>) -> u32 {
    let bytes = words.flat_map(|word| word.bytes().chain([0]));
    bytes.fold(0x811c_9dc5, |hash: u32, byte| (hash ^ u32::from(byte)).wrapping_mul(0x0100_0193))
}

impl CniKubeconfig {
    /// Host and port of the server; none where it names no address.
    pub fn at(&self) -> Option<(&str, u16)> {
        let (scheme, rest) = self.server.split_once("://").unwrap_or(("https", &self.server));
        let authority = rest.split('/').next()?;
        let (host, port) = match authority.strip_prefix('[') {
            Some(rest) => rest.split_once(']')?,
            None => authority.find(':').map_or((authority, ""), |at| authority.split_at(at)),
        };
        let port = match port.strip_prefix(':') {
            Some(port) => port.parse().ok()?,
            None => {
                if scheme == "http" {
                    80
                } else {
                    443
                }
            }
        };
        (!host.is_empty()).then_some((host, port))
    }
}

impl CniConfig {
    /// Whether any plugin of the chain is of this type.
    pub fn has(&self, kind: &str) -> bool {
        self.plugins.iter().any(|plugin| plugin.kind == kind)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_same_configuration_has_the_same_hash_whenever_it_was_written() {
        let with = |name: &str, chain: &[&str], modified: Option<Timestamp>| {
            let plugin = |kind: &&str| CniPlugin { kind: (*kind).to_owned(), ..CniPlugin::default() };
            let plugins = chain.iter().map(plugin).collect();
            let content = Ok(CniConfig { name: "k8s-pod-network".into(), cni_version: "0.3.1".into(), plugins });
            let files = Seen::Yes(vec![CniFile { name: name.to_owned(), modified, content }]);
            Cni::of("/etc/cni/net.d".into(), Vec::new(), "-".into(), files)
        };
        let usual = with("10-calico.conflist", &["calico", "portmap"], None).hash();
        assert!(usual.is_some());
        assert_eq!(with("10-calico.conflist", &["calico", "portmap"], Some(Timestamp::UNIX_EPOCH)).hash(), usual);
        assert_ne!(with("10-calico.conflist", &["calico"], None).hash(), usual);
        assert_ne!(with("05-other.conflist", &["calico", "portmap"], None).hash(), usual);
        // Every version of this program says the same of it.
        assert_eq!(usual, Some(0x3bbf_cfaf));
        let mut none = with("10-calico.conflist", &[], None);
        none.files = Seen::Absent;
        assert_eq!(none.hash(), None);
    }
}
