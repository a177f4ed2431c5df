//! The files of static pods, as the kubelet reads them (`pkg/kubelet/config/file.go`): every regular file of the directory whose
//! name does not begin with a dot, whatever it ends with, and in it the first document.

use std::os::unix::fs::MetadataExt as _;

use jiff::Timestamp;
use serde_json::Value;

use super::HostRoot;
use crate::facts::{Ignored, LookError, Manifest, Reason, StaticPod};

/// So many files are looked at.
const FILES: usize = 64;
/// No manifest is longer; in bytes.
const LIMIT: u64 = 1 << 20;

/// The manifests of a directory, by path. What holds no settings is left out: that it is damaged is told elsewhere, and a note
/// that somebody put there harms nobody.
pub(super) fn look(host: &HostRoot, directory: &str) -> Result<Vec<Manifest>, LookError> {
    let entries = std::fs::read_dir(host.path(directory)).map_err(|error| LookError::io(directory, &error))?;
    let names = entries.flatten().filter_map(|entry| entry.file_name().into_string().ok());
    let mut names: Vec<String> = names.filter(|name| !name.starts_with('.')).take(FILES).collect();
    names.sort_unstable();
    let paths = names.into_iter().map(|name| format!("{directory}/{name}"));
    paths.filter_map(|path| manifest(host, path).transpose()).collect()
}

fn manifest(host: &HostRoot, path: String) -> Result<Option<Manifest>, LookError> {
    let text = match host.read_text(&path, LIMIT) {
        Ok(text) => text,
        // A directory, a socket, a link to nowhere, or gone meanwhile.
        Err(error) if matches!(error.reason, Reason::Missing | Reason::WrongKind) => return Ok(None),
        Err(error) => return Err(error),
    };
    // A file that is moved here keeps the time when it was written, and this one not.
    let modified = std::fs::metadata(host.path(&path)).ok().and_then(|it| Timestamp::from_second(it.ctime()).ok());
    let (Some(modified), Some(pod)) = (modified, pod(&text)) else { return Ok(None) };
    Ok(Some(Manifest { path, modified, pod }))
}

/// The pod in a manifest, or why it holds none; nothing where it holds no settings.
fn pod(text: &str) -> Option<Result<StaticPod, Ignored>> {
    let first = crate::yaml::documents(text).ok()?.into_iter().next().filter(Value::is_object)?;
    let at = |path: &str| first.pointer(path).and_then(Value::as_str).filter(|text| !text.is_empty());
    if at("/kind") != Some("Pod") {
        let what = at("/kind").map_or_else(|| "has no kind".to_owned(), |kind| format!("holds a {kind},"));
        return Some(Err(Ignored { is_pod: false, what: format!("{what} and is not a Pod") }));
    }
    let without = |what: &str| Some(Err(Ignored { is_pod: true, what: format!("holds a Pod without {what}") }));
    let Some(name) = at("/metadata/name") else { return without("a name") };
    let containers = first.pointer("/spec/containers").and_then(Value::as_array);
    let containers = containers.into_iter().flatten().filter_map(|it| it["name"].as_str()).map(str::to_owned);
    let containers: Vec<String> = containers.collect();
    if containers.is_empty() {
        return without("containers");
    }
    Some(Ok(StaticPod {
        namespace: at("/metadata/namespace").unwrap_or("default").to_owned(),
        name: name.to_owned(),
        containers,
        always: at("/spec/restartPolicy").is_none_or(|policy| policy == "Always"),
    }))
}

/// The fuzz target's door.
#[cfg(any(test, fuzzing))]
pub(super) fn fuzz(text: &str) {
    if let Some(Ok(pod)) = pod(text) {
        assert!(!pod.name.is_empty() && !pod.containers.is_empty());
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const POD: &str = "---\napiVersion: v1\nkind: Pod\nmetadata: {name: haproxy, namespace: kube-system}\nspec: {containers: [{name: a}, {name: b}]}\n";

    fn told(files: &[(&str, &str)]) -> Vec<(String, Result<StaticPod, Ignored>)> {
        let dir = tempfile::tempdir().expect("a temporary directory");
        let at = dir.path().join("pods");
        std::fs::create_dir(&at).expect("mkdir");
        for (name, text) in files {
            std::fs::write(at.join(name), text).expect("write");
        }
        std::fs::create_dir(at.join("more.yaml")).expect("mkdir");
        nix::unistd::mkfifo(&at.join("pipe"), nix::sys::stat::Mode::S_IRUSR).expect("mkfifo");
        std::os::unix::fs::symlink("/nowhere", at.join("link.yaml")).expect("link");
        let told = look(&HostRoot::new(dir.path()), "/pods").expect("readable");
        assert!(told.iter().all(|it| it.modified.duration_since(Timestamp::now()).abs().as_secs() < 3600));
        told.into_iter().map(|it| (it.path, it.pod)).collect()
    }

    fn haproxy(namespace: &str, always: bool) -> StaticPod {
        let (name, containers) = ("haproxy".to_owned(), vec!["a".to_owned(), "b".to_owned()]);
        StaticPod { namespace: namespace.to_owned(), name, containers, always }
    }

    #[test]
    fn every_file_that_the_kubelet_takes_for_a_manifest() {
        let job = POD.replace(", namespace: kube-system", "").replace("spec: {", "spec: {restartPolicy: OnFailure, ");
        let told = told(&[("a.yaml", POD), ("b.bak", &job), (".c.yaml", POD), (".d.yaml.swp", "\0")]);
        let expected = [("/pods/a.yaml", haproxy("kube-system", true)), ("/pods/b.bak", haproxy("default", false))];
        assert_eq!(told, expected.map(|(path, pod)| (path.to_owned(), Ok(pod))));
    }

    #[test]
    fn the_first_document_counts_and_what_is_no_pod_says_what_it_is() {
        let two = format!("{POD}---\nkind: ConfigMap\n");
        let json = r#"{"kind":"Pod","metadata":{"name":"haproxy"},"spec":{"containers":[{"name":"a"},{"name":"b"}]}}"#;
        let told = told(&[
            ("1.yaml", &two),
            ("2.json", json),
            ("3.yaml", "kind: ConfigMap\n---\nkind: Pod\n"),
            ("4.yaml", "metadata: {name: a}\n"),
            ("5.yaml", "kind: Pod\nspec: {containers: [{name: a}]}\n"),
            ("6.yaml", "kind: Pod\nmetadata: {name: a}\n"),
        ]);
        let why = |is_pod, what: &str| Err(Ignored { is_pod, what: what.to_owned() });
        let expected = [
            Ok(haproxy("kube-system", true)),
            Ok(haproxy("default", true)),
            why(false, "holds a ConfigMap, and is not a Pod"),
            why(false, "has no kind and is not a Pod"),
            why(true, "holds a Pod without a name"),
            why(true, "holds a Pod without containers"),
        ];
        assert_eq!(told.into_iter().map(|(_, pod)| pod).collect::<Vec<_>>(), expected);
    }

    #[test]
    fn what_holds_no_settings_is_left_out() {
        assert_eq!(told(&[("a.yaml", ""), ("b.yaml", "kind: [\n"), ("README", "ask before you change this\n")]), []);
    }

    #[test]
    fn a_directory_that_is_not_there() {
        let dir = tempfile::tempdir().expect("a temporary directory");
        let error = look(&HostRoot::new(dir.path()), "/pods").expect_err("nothing is there");
        assert_eq!(error.reason, Reason::Missing);
    }
}
