//! A bundle that somebody gives us.

use std::fs;
use std::io::Read;
use std::path::Path;

use anyhow::{Context, anyhow, bail, ensure};
use serde_json::Value;

use super::{FACTS, Facts, MANIFEST, Manifest, SCHEMA, facts, tar};

/// Nothing longer is read, in bytes: the facts of a node with 100,000 routes need a fifth.
const LONGEST: u64 = 128 << 20;

/// Reads manifest and facts from a directory or a tar archive. No facts where the manifest says why they could not be taken.
///
/// # Errors
/// Which file, and which field of it, is missing, damaged, cut off, or of another kind.
pub(crate) fn read(path: &Path) -> anyhow::Result<(Manifest, Option<Facts>)> {
    let about = fs::metadata(path).with_context(|| path.display().to_string())?;
    let read = if about.is_dir() { from_folder(path) } else { from_archive(path) };
    read.with_context(|| path.display().to_string())
}

fn from_folder(path: &Path) -> anyhow::Result<(Manifest, Option<Facts>)> {
    let file = |name: &str| match fs::symlink_metadata(path.join(name)) {
        Ok(about) if about.is_file() => whole(&path.join(name)).with_context(|| name.to_owned()).map(Some),
        Ok(_) => Err(anyhow!("{name}: is no regular file")),
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => Ok(None),
        Err(error) => Err(error).with_context(|| name.to_owned()),
    };
    let Some(manifest) = file(MANIFEST)? else { return Err(no_manifest(&nodes(path))) };
    parse(&manifest, file(FACTS)?.as_deref())
}

/// The bundles in a directory of several.
fn nodes(path: &Path) -> Vec<String> {
    let entries = fs::read_dir(path).into_iter().flatten().flatten();
    let bundles = entries.filter(|entry| entry.path().join(MANIFEST).is_file());
    let mut names: Vec<String> = bundles.map(|entry| entry.file_name().to_string_lossy().into_owned()).collect();
    names.sort_unstable();
    names
}

fn from_archive(path: &Path) -> anyhow::Result<(Manifest, Option<Facts>)> {
    let bytes = whole(path)?;
    let files = tar::files(&bytes).map_err(|why| anyhow!(why))?;
    let of = |name: &'static str| {
        let own = move |path: &str| path == name || path.strip_suffix(name).is_some_and(|rest| rest.ends_with('/'));
        files.iter().filter(move |(path, _)| own(path))
    };
    let mut places: Vec<String> =
        of(MANIFEST).map(|(path, _)| path[..path.len() - MANIFEST.len()].trim_end_matches('/').to_owned()).collect();
    // A bundle may hold others: those that the agent kept before.
    places.sort_unstable_by(|one, other| Path::new(one).cmp(Path::new(other)));
    places.dedup_by(|inner, outer| inner != outer && Path::new(inner).starts_with(&*outer));
    let [place] = &places[..] else { return Err(no_manifest(&places)) };
    let one = |name: &'static str| {
        let own = of(name).find(|(path, _)| path[..path.len() - name.len()].trim_end_matches('/') == place);
        own.map(|(_, content)| *content)
    };
    parse(one(MANIFEST).unwrap_or_default(), one(FACTS))
}

fn no_manifest(nodes: &[String]) -> anyhow::Error {
    match nodes {
        [] => anyhow!("holds no {MANIFEST}, so it is no bundle of `nodevitals gather`, or one that was cut off"),
        nodes => anyhow!("holds the bundles of {} nodes; give one of them: {}", nodes.len(), nodes.join(", ")),
    }
}

fn whole(path: &Path) -> anyhow::Result<Vec<u8>> {
    let mut bytes = Vec::new();
    fs::File::open(path)?.take(LONGEST + 1).read_to_end(&mut bytes)?;
    ensure!(bytes.len() as u64 <= LONGEST, "is longer than {LONGEST} bytes");
    Ok(bytes)
}

fn parse(manifest: &[u8], facts: Option<&[u8]>) -> anyhow::Result<(Manifest, Option<Facts>)> {
    let schema: Value = serde_json::from_slice(manifest).map_err(|error| damaged(MANIFEST, &error))?;
    let schema =
        facts::schema(&schema).with_context(|| format!("{MANIFEST}: field schema is missing: it is no bundle"))?;
    ensure!(
        schema <= u64::from(SCHEMA),
        "{MANIFEST}: field schema is {schema}, and this version reads up to {SCHEMA}; take a newer nodevitals"
    );
    let manifest: Manifest = serde_json::from_slice(manifest).map_err(|error| damaged(MANIFEST, &error))?;
    let item = manifest.items.iter().find(|item| item.name == FACTS);
    let Some(facts) = facts else {
        match item.map(|item| item.failed.is_some()) {
            Some(true) => return Ok((manifest, None)),
            Some(false) => bail!("{FACTS}: is missing, and {MANIFEST} says that it was taken"),
            None => bail!("{FACTS}: is missing: gathering was interrupted before it; run it again"),
        }
    };
    if let Some(bytes) = item.map(|item| item.bytes).filter(|bytes| *bytes > facts.len() as u64) {
        bail!("{FACTS}: is cut off: {} of {bytes} bytes are there", facts.len());
    }
    let value: Value = serde_json::from_slice(facts).map_err(|error| damaged(FACTS, &error))?;
    let facts = crate::facts::replay(&value).map_err(|why| anyhow!("{FACTS}: {why}"))?;
    Ok((manifest, Some(facts)))
}

/// The fuzz target's door: a manifest, and after a zero the facts.
#[cfg(any(test, fuzzing))]
pub(super) fn fuzz(data: &[u8]) {
    let mut files = data.splitn(2, |byte| *byte == 0);
    let manifest = files.next().unwrap_or_default();
    if let Err(error) = parse(manifest, files.next()) {
        assert!(error.to_string().contains(".json: "), "which file is damaged: {error}");
    }
}

fn damaged(file: &str, error: &serde_json::Error) -> anyhow::Error {
    anyhow!("{file}: is damaged: {error}")
}

#[cfg(test)]
mod tests;
