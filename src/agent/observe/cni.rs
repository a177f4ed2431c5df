//! The CNI directory, read as the runtime reads it (go-cni `loadFromConfDir`, libcni `ConfFiles`).

use std::collections::BTreeMap;
use std::os::unix::fs::PermissionsExt;

use jiff::Timestamp;
use serde_json::Value;

use super::host_root::{self, HostRoot};
use crate::facts::{Binary, Cni, CniConfig, CniFault, CniFile, CniPlugin, LookError, Reason, Seen};

mod directories;

/// A network configuration is some kilobytes; longer files are not read. In bytes.
const LIMIT: u64 = 1 << 20;
/// The runtime uses the first file only, so no more than this many are opened.
const FILES: usize = 64;
/// Extensions that count (go-cni `opts.go`); everything else in the directory is ignored.
const EXTENSIONS: [&str; 3] = ["conf", "conflist", "json"];

/// Looks at the configuration and at the programs that it needs. `told` are the directories that the runtime itself
/// told: configuration, programs. Without them its configuration file is asked, then the defaults are taken.
pub(crate) fn look(host: &HostRoot, told: Option<&(String, Vec<String>)>) -> Cni {
    let directories::Directories { conf_dir, bin_dirs, told_by } = match told {
        Some((conf_dir, bin_dirs)) => directories::Directories {
            conf_dir: conf_dir.clone(),
            bin_dirs: bin_dirs.clone(),
            told_by: "the runtime's status".to_owned(),
        },
        None => directories::find(host),
    };
    let files = Seen::from(list(host, &conf_dir));
    let mut cni = Cni { conf_dir, bin_dirs, told_by, files, binaries: BTreeMap::new() };
    if let Some(config) = cni.config() {
        let kinds = config.plugins.iter().flat_map(|plugin| std::iter::once(&plugin.kind).chain(&plugin.ipam));
        cni.binaries = kinds.map(|kind| (kind.clone(), find_binary(host, &cni.bin_dirs, kind))).collect();
    }
    cni
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
    let text = std::str::from_utf8(bytes).map_err(|error| CniFault::NotUtf8(error.valid_up_to()))?;
    let top: Value = serde_json::from_str(text).map_err(|error| CniFault::NotJson(error.to_string()))?;
    if !top.is_object() {
        return Err(CniFault::NotJson("the top level is not an object".to_owned()));
    }
    let name = top.get("name").and_then(Value::as_str).filter(|name| is_network_name(name));
    let plugins = if is_list {
        let list = top.get("plugins").and_then(Value::as_array).filter(|list| !list.is_empty());
        let list = list.ok_or_else(|| CniFault::Field("plugins".to_owned()))?;
        list.iter()
            .enumerate()
            .map(|(at, plugin)| understand(plugin, &format!("plugins[{at}].")))
            .collect::<Result<_, _>>()?
    } else {
        vec![understand(&top, "")?]
    };
    Ok(CniConfig {
        name: name.ok_or_else(|| CniFault::Field("name".to_owned()))?.to_owned(),
        cni_version: top.get("cniVersion").and_then(Value::as_str).unwrap_or_default().to_owned(),
        plugins,
    })
}

fn understand(plugin: &Value, prefix: &str) -> Result<CniPlugin, CniFault> {
    let fault = |field: &str| CniFault::Field(format!("{prefix}{field}"));
    let kind = plugin.get("type").and_then(Value::as_str).filter(|kind| is_program_name(kind));
    // `"ipam": {}` is how a plugin is told to give no address.
    let ipam = match plugin.get("ipam").and_then(|ipam| ipam.get("type")) {
        None | Some(Value::Null) => None,
        Some(Value::String(kind)) if is_program_name(kind) => Some(kind.clone()),
        Some(_) => return Err(fault("ipam.type")),
    };
    Ok(CniPlugin { kind: kind.ok_or_else(|| fault("type"))?.to_owned(), ipam })
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
                return Seen::Yes(Binary { path, size: about.len(), executable });
            }
            Ok(_) => {}
            Err(error) if matches!(error.kind(), std::io::ErrorKind::NotFound | std::io::ErrorKind::NotADirectory) => {}
            Err(error) => refused = Seen::Unreadable(LookError::io(path, &error)),
        }
    }
    refused
}

/// The fuzz target's door.
#[cfg(fuzzing)]
pub(crate) fn fuzz(data: &[u8]) {
    let Some((which, bytes)) = data.split_first() else { return };
    match which % 4 {
        0 | 1 => {
            if let Ok(config) = parse(bytes, which % 4 == 1) {
                assert!(!config.plugins.is_empty() && !config.name.is_empty());
                let kinds = config.plugins.iter().flat_map(|plugin| std::iter::once(&plugin.kind).chain(&plugin.ipam));
                assert!(kinds.into_iter().all(|kind| is_program_name(kind)), "{config:?}");
            }
        }
        _ => directories::fuzz(bytes),
    }
}

#[cfg(test)]
mod tests;
