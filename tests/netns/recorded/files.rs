//! The files of a recorded node, and how they lie on top of each other (`tests/recordings/nodes/README.md`).

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result};
use serde_json::Value;

/// What one node held at one moment, by file name.
#[derive(Debug, Clone, Default)]
pub struct Recording {
    files: BTreeMap<String, String>,
}

impl Recording {
    /// The node in this phase of the incident.
    pub fn read(incident: &str, phase: &str, node: &str) -> Result<Self> {
        let mut layers = vec![("01-healthy", "before"), (incident, "before"), (incident, phase)];
        layers.dedup();
        let mut recording = Recording::default();
        for (incident, phase) in layers {
            let directory = root().join(incident).join(phase).join(node);
            recording.lay(&directory, &directory).with_context(|| directory.display().to_string())?;
        }
        Ok(recording)
    }

    /// The text of a file that every phase has, or has lost.
    pub fn get(&self, name: &str) -> Option<&str> {
        self.files.get(name).map(String::as_str)
    }

    /// The text of a file that must be there.
    pub fn text(&self, name: &str) -> Result<&str> {
        self.get(name).with_context(|| format!("{name} is not recorded"))
    }

    /// The files of a directory: name inside it and text.
    pub fn directory(&self, directory: &str) -> impl Iterator<Item = (&str, &str)> {
        self.files
            .iter()
            .filter_map(move |(name, text)| Some((name.strip_prefix(directory)?.strip_prefix('/')?, text.as_str())))
    }

    /// The files whose names begin so.
    pub fn matching(&self, beginning: &str) -> impl Iterator<Item = (&str, &str)> {
        let files = self.files.iter().map(|(name, text)| (name.as_str(), text.as_str()));
        files.filter(move |(name, _)| name.starts_with(beginning))
    }

    /// The same node with this in a file.
    pub fn with(mut self, name: &str, text: &str) -> Self {
        self.files.insert(name.to_owned(), text.to_owned());
        self
    }

    /// The same node with only these lines of a file.
    pub fn keeping(self, name: &str, wanted: impl Fn(&str) -> bool) -> Result<Self> {
        let lines: Vec<&str> = self.text(name)?.lines().filter(|line| wanted(line)).collect();
        let text = lines.join("\n") + "\n";
        Ok(self.with(name, &text))
    }

    /// The same node on which nobody listens on the port of this component.
    pub fn refusing(self, component: &str) -> Self {
        let pages: Vec<String> =
            self.matching(&format!("http/{component}-")).map(|(name, _)| name.to_owned()).collect();
        pages.iter().fold(self, |node, page| node.with(page, "HTTP 000, curl exit 7: refused\n"))
    }

    /// The same node without a file.
    pub fn without(mut self, name: &str) -> Self {
        self.files.remove(name);
        self
    }

    fn lay(&mut self, top: &Path, directory: &Path) -> Result<()> {
        for entry in std::fs::read_dir(directory)? {
            let path = entry?.path();
            if path.is_dir() {
                self.lay(top, &path)?;
                continue;
            }
            let name = path.strip_prefix(top)?.to_str().context("a name in UTF-8")?.to_owned();
            let text = std::fs::read_to_string(&path)?;
            if name == "ABSENT" {
                text.lines().for_each(|gone| _ = self.files.remove(gone));
            } else if let Some(changed) = name.strip_suffix(".diff") {
                let patched = patched(self.text(changed)?, &text).with_context(|| path.display().to_string())?;
                self.files.insert(changed.to_owned(), patched);
            } else if name != "UNCHANGED" {
                self.files.insert(name, text);
            }
        }
        Ok(())
    }
}

/// The map that an aggregator would have made of the cluster of this incident, for this node.
pub fn cluster(incident: &str, node: &str) -> Result<Value> {
    let of = |incident: &str| root().join(incident).join("cluster.json");
    let own = of(incident);
    let file = if own.exists() { own } else { of("01-healthy") };
    let mut map: Value = serde_json::from_str(&std::fs::read_to_string(file)?)?;
    map["own"] = node.into();
    Ok(map)
}

fn root() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/recordings/nodes")
}

/// Applies a unified diff without context.
fn patched(old: &str, diff: &str) -> Result<String> {
    let old: Vec<&str> = old.lines().collect();
    let (mut new, mut at) = (Vec::new(), 0);
    for line in diff.lines().skip(2) {
        if let Some(hunk) = line.strip_prefix("@@ -") {
            let range = hunk.split(' ').next().unwrap_or_default();
            let (start, length) = range.split_once(',').unwrap_or((range, "1"));
            let (start, length): (usize, usize) = (start.parse()?, length.parse()?);
            // A hunk that only adds names the line after which it adds.
            let from = if length == 0 { start } else { start - 1 };
            new.extend_from_slice(old.get(at..from).context("hunks in order")?);
            at = from + length;
        } else if let Some(added) = line.strip_prefix('+') {
            new.push(added);
        }
    }
    new.extend_from_slice(old.get(at..).context("hunks inside the file")?);
    Ok(new.join("\n") + "\n")
}

#[test]
fn a_diff_without_context_is_applied() {
    let diff = "--- before\n+++ during\n@@ -1 +0,0 @@\n-a\n@@ -2,0 +2,2 @@\n+x\n+y\n@@ -4 +5 @@\n-d\n+D\n";
    assert_eq!(patched("a\nb\nc\nd\n", diff).expect("a diff"), "b\nx\ny\nc\nD\n");
}
