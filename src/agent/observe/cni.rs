//! The CNI directory, read as the runtime reads it (go-cni `loadFromConfDir`, libcni `ConfFiles`).

use std::os::unix::fs::PermissionsExt;
use std::time::Duration;

use jiff::Timestamp;
use serde_json::Value;

use super::host_root::{self, HostRoot};
use crate::facts::{Binary, Cni, CniConfig, CniFault, CniFile, CniKubeconfig, CniPlugin, LookError, Reason, Seen};

mod directories;
mod kubeconfig;
mod program;

pub(super) use kubeconfig::decode as base64;

/// A network configuration is some kilobytes; longer files are not read. In bytes.
const LIMIT: u64 = 1 << 20;
/// The runtime uses the first file only, so no more than this many are opened.
const FILES: usize = 64;
/// A configuration holds some dozens of values; one with more commas than this is not decoded, since each costs memory.
const VALUES: usize = 10_000;
/// A file that was changed less than this long ago may be in the middle of a change...
const FRESH: Duration = Duration::from_secs(2);
/// ...which is over after this time. A plugin of 60 MB is copied in less.
const SETTLING: Duration = Duration::from_millis(400);
/// Where calico-node writes the node's name (`node/pkg/lifecycle/startup`).
const NODENAME: &str = "/var/lib/calico/nodename";
/// CRI-O's socket.
const CRIO: &str = "/run/crio/crio.sock";
/// The plugin that containerd runs without being told to.
const LOOPBACK: &str = "loopback";

/// Extensions that count (go-cni `opts.go`); everything else in the directory is ignored.
const EXTENSIONS: [&str; 3] = ["conf", "conflist", "json"];

/// Looks at the configuration and at what it needs. `told` are the directories that the runtime itself told:
/// configuration, programs. Without them its configuration file is asked, then the defaults are taken.
pub(crate) fn look(host: &HostRoot, told: Option<&(String, Vec<String>)>) -> Cni {
    let cni = once(host, told);
    if !unsettled(host, &cni) {
        return cni;
    }
    // Somebody writes right now: what is half there must not be believed (catalogue R064, R066).
    std::thread::sleep(SETTLING);
    once(host, told)
}

fn once(host: &HostRoot, told: Option<&(String, Vec<String>)>) -> Cni {
    let directories::Directories { conf_dir, bin_dirs, told_by } = match told {
        Some((conf_dir, bin_dirs)) => directories::Directories {
            conf_dir: conf_dir.clone(),
            bin_dirs: bin_dirs.clone(),
            told_by: "the runtime's status".to_owned(),
        },
        None => directories::find(host),
    };
    let files = Seen::from(list(host, &conf_dir));
    let mut cni = Cni::of(conf_dir, bin_dirs, told_by, files);
    // containerd tells its directories, CRI-O does not.
    cni.passes_over = told.is_none() && host.path(CRIO).exists();
    cni.loopback = find_binary(host, &cni.bin_dirs, LOOPBACK);
    cni.nodename = Seen::from(host.read_text(NODENAME, 4096)).map(|name| name.trim().to_owned());
    let Some(config) = cni.config() else { return cni };
    let mut plugins = config.plugins.clone();
    let awaited: Vec<String> = plugins.iter().flat_map(|plugin| plugin.awaits.clone()).collect();
    for file in &awaited {
        let delegate = read(host, file).and_then(|bytes| parse(&bytes, file.ends_with(".conflist")));
        plugins.extend(delegate.into_iter().flat_map(|config| config.plugins));
        let there = std::fs::metadata(host.path(file)).map(|_| ()).map_err(|error| LookError::io(file, &error));
        cni.awaited.insert(file.clone(), there.into());
    }
    let kinds = plugins.iter().flat_map(|plugin| std::iter::once(&plugin.kind).chain(&plugin.ipam));
    cni.binaries.extend(kinds.map(|kind| (kind.clone(), find_binary(host, &cni.bin_dirs, kind))));
    let paths = plugins.iter().filter_map(|plugin| plugin.kubeconfig.as_ref());
    cni.kubeconfigs.extend(paths.map(|path| (path.clone(), kubeconfig::look(host, path))));
    cni
}

/// Whether something is amiss with a file that was changed a moment ago.
fn unsettled(host: &HostRoot, cni: &Cni) -> bool {
    let fresh = |path: &str| {
        let changed = std::fs::metadata(host.path(path)).and_then(|about| about.modified());
        changed.is_ok_and(|at| at.elapsed().is_ok_and(|age| age < FRESH))
    };
    let bad = |seen: &Seen<Binary>| seen.get().is_none_or(|it| it.size == 0 || !it.executable || it.unusable.is_some());
    let half = |config: &Seen<CniKubeconfig>| config.get().is_none_or(|config| config.fault.is_some());
    let conf_bad = cni.active().is_none_or(|file| file.content.is_err()) || cni.kubeconfigs.values().any(half);
    let active = cni.active().map(|file| format!("{}/{}", cni.conf_dir, file.name));
    let bad_binary = cni.binaries.values().chain(Some(&cni.loopback)).any(bad);
    (conf_bad && (fresh(&cni.conf_dir) || active.is_some_and(|path| fresh(&path))))
        || (bad_binary && cni.bin_dirs.iter().any(|dir| fresh(dir)))
}

/// The files that count, in byte order of their names.
fn list(host: &HostRoot, conf_dir: &str) -> Result<Vec<CniFile>, LookError> {
    let directory = host.path(conf_dir);
    let entries = std::fs::read_dir(&directory).map_err(|error| match error.kind() {
        std::io::ErrorKind::NotADirectory => LookError::new(conf_dir, Reason::WrongKind, "is not a directory"),
        _ => LookError::io(conf_dir, &error),
    })?;
    let mut names = Vec::new();
    for entry in entries {
        let entry = entry.map_err(|error| LookError::io(conf_dir, &error))?;
        let name = entry.file_name().to_string_lossy().into_owned();
        let counts = name.rsplit_once('.').is_some_and(|(_, extension)| EXTENSIONS.contains(&extension));
        // The runtime passes over directories, but not over links to directories.
        if counts && !entry.file_type().is_ok_and(|kind| kind.is_dir()) {
            names.push(name);
        }
    }
    names.sort_unstable();
    names.truncate(FILES);
    Ok(names.into_iter().map(|name| look_at(host, conf_dir, name)).collect())
}

fn look_at(host: &HostRoot, conf_dir: &str, name: String) -> CniFile {
    let path = format!("{}/{name}", conf_dir.trim_end_matches('/'));
    let modified = std::fs::metadata(host.path(&path)).and_then(|about| about.modified()).ok();
    let content = read(host, &path).and_then(|bytes| parse(&bytes, name.ends_with(".conflist")));
    CniFile { modified: modified.and_then(|time| Timestamp::try_from(time).ok()), name, content }
}

fn read(host: &HostRoot, path: &str) -> Result<Vec<u8>, CniFault> {
    // Asked first, to tell the kinds of fault apart; a file that changes in between is caught by the reader's own limit.
    let about = std::fs::metadata(host.path(path)).map_err(|error| CniFault::Unreadable(error.to_string()))?;
    if !about.is_file() {
        return Err(CniFault::NotAFile(host_root::kind(about.file_type()).to_owned()));
    }
    if about.len() > LIMIT {
        return Err(CniFault::TooLarge(about.len()));
    }
    host.read(path, LIMIT).map_err(|error| CniFault::Unreadable(error.detail))
}

/// Understands a configuration, as strictly as the runtime does where that decides whether pods get a network.
fn parse(bytes: &[u8], is_list: bool) -> Result<CniConfig, CniFault> {
    if bytes.iter().all(u8::is_ascii_whitespace) {
        return Err(CniFault::Empty);
    }
    if bytes.starts_with(b"\xef\xbb\xbf") {
        return Err(CniFault::NotJson("it begins with a byte order mark, at line 1".to_owned()));
    }
    let text = std::str::from_utf8(bytes).map_err(|error| CniFault::NotUtf8(error.valid_up_to()))?;
    if text.matches(',').nth(VALUES).is_some() {
        return Err(CniFault::NotJson(format!("it holds more than {VALUES} values")));
    }
    let top: Value = serde_json::from_str(text).map_err(|error| CniFault::NotJson(error.to_string()))?;
    if !top.is_object() {
        return Err(CniFault::NotJson("the top level is not an object".to_owned()));
    }
    let name = top.get("name").and_then(Value::as_str).filter(|name| is_network_name(name));
    let mut plugins = Vec::new();
    if is_list {
        let list = top.get("plugins").and_then(Value::as_array).filter(|list| !list.is_empty());
        let list = list.ok_or_else(|| CniFault::Field("plugins".to_owned()))?;
        for (at, plugin) in list.iter().enumerate() {
            understand(plugin, &format!("plugins[{at}]."), &mut plugins)?;
        }
    } else {
        understand(&top, "", &mut plugins)?;
    }
    Ok(CniConfig {
        name: name.ok_or_else(|| CniFault::Field("name".to_owned()))?.to_owned(),
        cni_version: version(top.get("cniVersion"))?,
        plugins,
    })
}

/// `cniVersion`: none is the oldest. A version that is not out yet is not refused here: the plugins may be newer.
fn version(field: Option<&Value>) -> Result<String, CniFault> {
    let text = match field {
        None | Some(Value::Null) => return Ok(String::new()),
        Some(Value::String(text)) if text.is_empty() => return Ok(String::new()),
        Some(Value::String(text)) => text,
        Some(_) => return Err(CniFault::Field("cniVersion".to_owned())),
    };
    let numbers: Vec<u16> = text.split('.').map_while(|part| part.parse().ok()).collect();
    match (numbers.as_slice(), text.split('.').count()) {
        ([0, 1..=4, _] | [1, _, _], 3) => Ok(text.clone()),
        // Anything may be in there, and as long as the file.
        _ => Err(CniFault::Version(text.chars().take(32).collect())),
    }
}

/// Adds a plugin, and those to which it delegates.
fn understand(plugin: &Value, prefix: &str, plugins: &mut Vec<CniPlugin>) -> Result<(), CniFault> {
    let fault = |field: &str| CniFault::Field(format!("{prefix}{field}"));
    let kind = plugin.get("type").and_then(Value::as_str).filter(|kind| is_program_name(kind));
    let kind = kind.ok_or_else(|| fault("type"))?;
    // `"ipam": {}` is how a plugin is told to give no address.
    let ipam = match plugin.get("ipam").and_then(|ipam| ipam.get("type")) {
        None | Some(Value::Null) => None,
        Some(Value::String(kind)) if is_program_name(kind) => Some(kind.clone()),
        Some(_) => return Err(fault("ipam.type")),
    };
    let text = |value: Option<&Value>| value.and_then(Value::as_str).filter(|it| !it.is_empty()).map(str::to_owned);
    let path = |value| text(value).filter(|path| path.starts_with('/'));
    let nested = plugin.get("kubernetes").and_then(|kubernetes| kubernetes.get("kubeconfig"));
    let meta = kind.starts_with("multus");
    let awaited = ["readinessindicatorfile", "clusterNetwork"].into_iter().filter(|_| meta);
    // The daemon of Multus sees the node's root under /host.
    let on_node = |path: String| path.strip_prefix("/host/").map_or(path.clone(), |rest| format!("/{rest}"));
    plugins.push(CniPlugin {
        kind: kind.to_owned(),
        ipam,
        kubeconfig: path(nested.or(plugin.get("kubeconfig").filter(|_| meta))),
        etcd: text(plugin.get("etcd_endpoints")).is_some()
            || plugin.get("datastore_type").and_then(Value::as_str) == Some("etcdv3"),
        nodename_optional: plugin.get("nodename_file_optional").and_then(Value::as_bool) == Some(true),
        awaits: awaited.filter_map(|field| path(plugin.get(field)).map(on_node)).collect(),
    });
    if kind == "flannel" {
        // It hands the work to `bridge` with addresses from `host-local`, unless it is told otherwise.
        let told = plugin.get("delegate").and_then(|delegate| text(delegate.get("type")));
        let kind = told.filter(|kind| is_program_name(kind)).unwrap_or_else(|| "bridge".to_owned());
        plugins.push(CniPlugin { kind, ipam: Some("host-local".to_owned()), ..CniPlugin::default() });
    }
    let delegates = plugin.get("delegates").and_then(Value::as_array).filter(|_| meta);
    for (at, delegate) in delegates.into_iter().flatten().enumerate() {
        let inner = delegate.get("plugins").and_then(Value::as_array);
        for plugin in inner.map_or(std::slice::from_ref(delegate), Vec::as_slice) {
            // Multus below Multus is a loop of configuration, not of this program.
            if plugin.get("delegates").is_none() {
                understand(plugin, &format!("{prefix}delegates[{at}]."), plugins)?;
            }
        }
    }
    Ok(())
}

/// `^[a-zA-Z0-9][a-zA-Z0-9_.\-]*$` (CNI specification, network names).
fn is_network_name(name: &str) -> bool {
    name.starts_with(|first: char| first.is_ascii_alphanumeric())
        && name.chars().all(|each| each.is_ascii_alphanumeric() || matches!(each, '_' | '.' | '-'))
}

/// The runtime refuses names that would lead out of its directories (libcni `invoke.FindInPath`).
fn is_program_name(name: &str) -> bool {
    !name.is_empty() && !name.contains(['/', '\0']) && name != "." && name != ".."
}

/// The first regular file of this name in the directories, as `invoke.FindInPath` finds it.
fn find_binary(host: &HostRoot, bin_dirs: &[String], kind: &str) -> Seen<Binary> {
    let mut refused = Seen::Absent;
    for directory in bin_dirs {
        let path = format!("{}/{kind}", directory.trim_end_matches('/'));
        match std::fs::metadata(host.path(&path)) {
            Ok(about) if about.is_file() => {
                let executable = about.permissions().mode() & 0o111 != 0;
                let unusable = program::unusable(host, &path);
                return Seen::Yes(Binary { path, size: about.len(), executable, unusable });
            }
            Ok(_) => {}
            Err(error) if matches!(error.kind(), std::io::ErrorKind::NotFound | std::io::ErrorKind::NotADirectory) => {}
            Err(error) => refused = Seen::Unreadable(LookError::io(path, &error)),
        }
    }
    refused
}

/// The fuzz target's door.
#[cfg(any(test, fuzzing))]
pub(crate) fn fuzz(data: &[u8]) {
    let Some((which, bytes)) = data.split_first() else { return };
    match which % 5 {
        0 | 1 => {
            if let Ok(config) = parse(bytes, which % 4 == 1) {
                assert!(!config.plugins.is_empty() && !config.name.is_empty());
                let kinds = config.plugins.iter().flat_map(|plugin| std::iter::once(&plugin.kind).chain(&plugin.ipam));
                assert!(kinds.into_iter().all(|kind| is_program_name(kind)), "{config:?}");
            }
        }
        2 => directories::fuzz(bytes),
        3 => kubeconfig::fuzz(&String::from_utf8_lossy(bytes)),
        _ => program::fuzz(bytes),
    }
}

#[cfg(test)]
mod tests;
