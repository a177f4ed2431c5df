//! Kubeconfig files, by the rules of kubectl: several in `$KUBECONFIG`, several documents in one, paths relative to the file
//! (<https://kubernetes.io/docs/concepts/configuration/organize-cluster-access-kubeconfig/>).
//!
//! The types and the merging are those of the crate kube. Its own way from YAML to the types is a copy of the YAML reader
//! for each of them, 0.4 MB of program; here they come from a JSON value, as everything else that is read.

use std::ffi::OsStr;
use std::path::{Path, PathBuf};

use anyhow::{Context, anyhow, bail};
use kube::config::Kubeconfig;
use serde_json::Value;

use crate::yaml;

/// A file larger than this is no kubeconfig.
const LARGEST: u64 = 4 << 20;

/// The file, or what `$KUBECONFIG` names, or `~/.kube/config`; and how to call it in messages.
pub(crate) fn read(file: Option<&Path>) -> anyhow::Result<(Kubeconfig, String)> {
    let files = match file {
        Some(file) => vec![file.to_owned()],
        None => usual(std::env::var_os("KUBECONFIG").as_deref(), std::env::home_dir())?,
    };
    let merged = files.iter().try_fold(Kubeconfig::default(), |merged, file| one(file, merged))?;
    let names: Vec<String> = files.iter().map(|file| file.display().to_string()).collect();
    Ok((merged, names.join(", ")))
}

/// The files that are read when none is given.
fn usual(variable: Option<&OsStr>, home: Option<PathBuf>) -> anyhow::Result<Vec<PathBuf>> {
    let named = variable.into_iter().flat_map(std::env::split_paths).filter(|path| !path.as_os_str().is_empty());
    let named: Vec<PathBuf> = named.collect();
    match home {
        _ if !named.is_empty() => Ok(named),
        Some(home) => Ok(vec![home.join(".kube/config")]),
        None => bail!("there is neither $KUBECONFIG nor a home directory: give a kubeconfig file with --kubeconfig"),
    }
}

/// Adds one file to those before it, which win.
fn one(file: &Path, before: Kubeconfig) -> anyhow::Result<Kubeconfig> {
    let bad = |why: String| anyhow!("kubeconfig {}: {why}; give a valid file with --kubeconfig", file.display());
    let text = text(file).map_err(|error| bad(format!("{error:#}")))?;
    let documents = yaml::documents(&text).map_err(|error| bad(error.to_string()))?;
    documents.into_iter().try_fold(before, |merged, mut document| {
        as_texts(&mut document);
        let mut document: Kubeconfig = serde_json::from_value(document).map_err(|error| bad(unquoted(&error)))?;
        resolve(&mut document, file.parent().unwrap_or(Path::new("")));
        merged.merge(document).map_err(|error| bad(crate::api::chain(&error)))
    })
}

fn text(file: &Path) -> anyhow::Result<String> {
    let length = std::fs::metadata(file).context("cannot be read")?.len();
    if length > LARGEST {
        bail!("{length} bytes are too many for a kubeconfig (at most {LARGEST})");
    }
    std::fs::read_to_string(file).context("cannot be read")
}

/// The fields that are no texts (`k8s.io/client-go/tools/clientcmd/api/v1/types.go`).
const SWITCHES: [&str; 3] = ["insecure-skip-tls-verify", "disable-compression", "provideClusterInfo"];

/// A name or a password may look like a number or a boolean, and is a text all the same.
fn as_texts(value: &mut Value) {
    match value {
        Value::Object(fields) => {
            fields
                .iter_mut()
                .filter(|(name, _)| !SWITCHES.contains(&name.as_str()))
                .for_each(|(_, field)| as_texts(field));
        }
        Value::Array(items) => items.iter_mut().for_each(as_texts),
        Value::Bool(_) | Value::Number(_) => *value = Value::String(value.to_string()),
        Value::Null | Value::String(_) => {}
    }
}

/// What is wrong, without the value, which may be a secret: serde shows it in quotes.
fn unquoted(error: &serde_json::Error) -> String {
    let text = error.to_string();
    match (text.find('"'), text.rfind('"')) {
        (Some(from), Some(to)) if from < to => format!("{}...{}", &text[..from], &text[to + 1..]),
        _ => text,
    }
}

/// Paths in a file are relative to its directory. A command is searched for in `PATH` unless it is a path.
fn resolve(document: &mut Kubeconfig, directory: &Path) {
    let absolute = |path: &mut Option<String>| {
        if let Some(path) = path.as_mut().filter(|path| Path::new(path.as_str()).is_relative())
            && let Some(joined) = directory.join(path.as_str()).to_str()
        {
            joined.clone_into(path);
        }
    };
    for cluster in document.clusters.iter_mut().filter_map(|named| named.cluster.as_mut()) {
        absolute(&mut cluster.certificate_authority);
    }
    for user in document.auth_infos.iter_mut().filter_map(|named| named.auth_info.as_mut()) {
        absolute(&mut user.client_certificate);
        absolute(&mut user.client_key);
        absolute(&mut user.token_file);
        let command = user.exec.as_mut().map(|exec| &mut exec.command);
        if let Some(command) = command.filter(|command| command.as_ref().is_some_and(|path| path.contains('/'))) {
            absolute(command);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const A: &str = "
apiVersion: v1
kind: Config
current-context: a
clusters:
- name: c
  cluster: {server: https://192.0.2.1:6443, certificate-authority: pki/ca.crt}
contexts:
- name: a
  context: {cluster: c, user: u, namespace: n}
users:
- name: u
  user: {client-certificate: /abs/u.crt, client-key: u.key, exec: {apiVersion: client.authentication.k8s.io/v1, command: bin/login, args: [--quiet], env: null}}
";

    fn file(directory: &tempfile::TempDir, name: &str, text: &str) -> PathBuf {
        let path = directory.path().join(name);
        std::fs::write(&path, text).expect("writes");
        path
    }

    #[test]
    fn paths_are_relative_to_the_file_and_commands_to_the_path_variable() {
        let directory = tempfile::tempdir().expect("a directory");
        let (config, name) = read(Some(&file(&directory, "a", A))).expect("a kubeconfig");
        assert!(name.ends_with("/a"));
        let at = |path: &str| Some(directory.path().join(path).display().to_string());
        assert_eq!(config.clusters[0].cluster.as_ref().expect("a cluster").certificate_authority, at("pki/ca.crt"));
        let user = config.auth_infos[0].auth_info.as_ref().expect("a user");
        assert_eq!((&user.client_certificate, &user.client_key), (&Some("/abs/u.crt".into()), &at("u.key")));
        assert_eq!(user.exec.as_ref().expect("a plugin").command, at("bin/login"));
        let bare = A.replace("bin/login", "login");
        let (config, _) = read(Some(&file(&directory, "b", &bare))).expect("a kubeconfig");
        let user = config.auth_infos[0].auth_info.as_ref().expect("a user");
        assert_eq!(user.exec.as_ref().expect("a plugin").command.as_deref(), Some("login"));
    }

    #[test]
    fn names_that_look_like_something_else_are_names() {
        let directory = tempfile::tempdir().expect("a directory");
        let text = A
            .replace("namespace: n", "namespace: no")
            .replace("user: u, ", "user: 1234, ")
            .replace("name: u", "name: 1234");
        let text = text.replace("{server:", "{insecure-skip-tls-verify: true, server:");
        let (config, _) = read(Some(&file(&directory, "a", &text))).expect("a kubeconfig");
        let context = config.contexts[0].context.as_ref().expect("a context");
        assert_eq!((context.namespace.as_deref(), context.user.as_deref()), (Some("no"), Some("1234")));
        assert_eq!(config.auth_infos[0].name, "1234");
        assert_eq!(config.clusters[0].cluster.as_ref().expect("a cluster").insecure_skip_tls_verify, Some(true));
    }

    #[test]
    fn of_several_files_and_documents_the_first_wins() {
        let directory = tempfile::tempdir().expect("a directory");
        let second = A.replace("192.0.2.1", "192.0.2.2").replace("current-context: a", "current-context: b");
        let other = second.replace("name: c\n", "name: d\n");
        let both = file(&directory, "both", &format!("{A}---\n{second}---\n{other}"));
        let (config, _) = read(Some(&both)).expect("a kubeconfig");
        assert_eq!(config.current_context.as_deref(), Some("a"));
        let servers: Vec<_> =
            config.clusters.iter().filter_map(|named| named.cluster.as_ref()?.server.as_deref()).collect();
        assert_eq!(servers, ["https://192.0.2.1:6443", "https://192.0.2.2:6443"]);
        let variable = std::env::join_paths([Path::new("/x"), Path::new(""), Path::new("/y")]).expect("joins");
        assert_eq!(usual(Some(&variable), None).expect("files"), [PathBuf::from("/x"), PathBuf::from("/y")]);
        assert_eq!(usual(Some(OsStr::new("")), Some("/h".into())).expect("files"), [PathBuf::from("/h/.kube/config")]);
        assert!(usual(None, None).is_err());
    }

    #[test]
    fn what_is_wrong_is_said_with_the_file_and_the_line_and_quotes_no_secret() {
        let directory = tempfile::tempdir().expect("a directory");
        for (text, said) in [
            ("a: [1\nb: hunter2\n", "line 2"),
            ("clusters: 7\n", "invalid type"),
            ("users:\n- name: u\n  user: hunter2\n", "expected struct AuthInfo"),
        ] {
            let path = file(&directory, "bad", text);
            let error = format!("{:#}", read(Some(&path)).expect_err(text));
            assert!(error.contains("/bad: ") && error.contains(said) && error.ends_with("--kubeconfig"), "{error}");
            assert!(!error.contains("hunter2"), "{error}");
        }
        let error = format!("{:#}", read(Some(&directory.path().join("none"))).expect_err("no file"));
        assert!(error.contains("/none: cannot be read: No such file"), "{error}");
        // An empty file is an empty kubeconfig.
        assert!(read(Some(&file(&directory, "empty", ""))).expect("nothing").0.clusters.is_empty());
    }
}
