//! Evidence in a bundle: what is written before anything is repaired, and read where it is judged again.
//!
//! A directory of plain files, or the same in one tar archive: `SUMMARY.txt` for the person who opens it, `manifest.json` with
//! what was taken and what not, `facts.json` with everything that the checks saw, and beside it what people know how to read:
//! files of `/proc`, configuration, logs, the output of tools. Everything but the facts is for people alone.

mod facts;
mod folder;
mod manifest;
mod read;
mod redact;
mod summary;
mod tar;

pub(crate) use facts::{Facts, FactsOut};
pub(crate) use folder::Bundle;
pub(crate) use manifest::{Episode, Item, Manifest};
pub(crate) use read::read;
pub(crate) use redact::redact;
pub(crate) use summary::summary;
pub(crate) use tar::whole_files;
#[cfg(test)]
pub(crate) use tar::{END, entry};

/// What this program writes; a bundle with a newer one is refused.
pub(crate) const SCHEMA: u32 = 1;
/// The manifest's name.
pub(crate) const MANIFEST: &str = "manifest.json";
/// The name of what the checks saw.
pub(crate) const FACTS: &str = "facts.json";
/// The name of what a person reads first.
pub(crate) const SUMMARY: &str = "SUMMARY.txt";

#[cfg(any(test, fuzzing))]
pub(crate) fn fuzz(data: &[u8]) {
    let Some((which, bytes)) = data.split_first() else { return };
    match which % 3 {
        0 => redact::check_redacted(bytes),
        1 => _ = tar::files(bytes),
        _ => {
            read::fuzz(bytes);
            if let Ok(value) = serde_json::from_slice(bytes) {
                _ = crate::facts::replay::<Facts>(&value);
            }
        }
    }
}
