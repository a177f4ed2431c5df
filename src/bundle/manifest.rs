//! What is in a bundle, and what is not and why.

use jiff::Timestamp;
use serde::{Deserialize, Serialize};

use crate::verdict::{Raised, Verdict, WorkerState};

/// What is in a bundle.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub(crate) struct Manifest {
    /// [`super::SCHEMA`] of who wrote it.
    pub(crate) schema: u32,
    /// Version of who wrote it.
    pub(crate) version: String,
    /// The node: the name of its Node object, or else of the machine.
    pub(crate) node: String,
    /// The boot in which it was taken; empty where the node itself was not asked.
    #[serde(default)]
    pub(crate) boot_id: String,
    /// Why it was taken.
    pub(crate) why: String,
    /// When the first piece was taken.
    pub(crate) begun_at: Timestamp,
    /// When the last piece was taken; none if it was interrupted.
    #[serde(default)]
    pub(crate) ended_at: Option<Timestamp>,
    /// The worker's state then; none where the facts are missing.
    #[serde(default)]
    pub(crate) state: Option<WorkerState>,
    /// The findings of that time.
    #[serde(default)]
    pub(crate) episodes: Vec<Episode>,
    /// The pieces, in the order in which they were taken.
    #[serde(default)]
    pub(crate) items: Vec<Item>,
}

/// A finding that the bundle is evidence of.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub(crate) struct Episode {
    /// Its code.
    pub(crate) code: String,
    /// What it is about.
    pub(crate) subject: String,
    /// Since when.
    pub(crate) since: Timestamp,
}

/// One piece of evidence.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub(crate) struct Item {
    /// Its file in the bundle.
    pub(crate) name: String,
    /// The key of its kind, `E20`.
    pub(crate) key: String,
    /// The file or the command that it is of.
    pub(crate) of: String,
    /// Its length in the bundle, in bytes.
    #[serde(default)]
    pub(crate) bytes: u64,
    /// How long it took, in milliseconds.
    #[serde(default)]
    pub(crate) millis: u64,
    /// What is missing of it, when it was longer than may be taken.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(crate) cut: Option<String>,
    /// How many secrets were taken out of it.
    #[serde(default)]
    pub(crate) redacted: u32,
    /// Why it was not taken; none if it was.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(crate) failed: Option<String>,
}

impl From<&Raised> for Episode {
    fn from(finding: &Raised) -> Self {
        Episode { code: finding.code.clone(), subject: finding.subject.clone(), since: finding.since }
    }
}

impl Manifest {
    /// Of a bundle in which nothing is yet.
    pub(crate) fn new(node: &str, boot_id: &str, why: &str, now: Timestamp) -> Self {
        Manifest {
            schema: super::SCHEMA,
            version: env!("CARGO_PKG_VERSION").to_owned(),
            node: node.to_owned(),
            boot_id: boot_id.to_owned(),
            why: why.to_owned(),
            begun_at: now,
            ended_at: None,
            state: None,
            episodes: Vec::new(),
            items: Vec::new(),
        }
    }

    /// Takes over what was believed.
    pub(crate) fn note(&mut self, verdict: &Verdict) {
        self.state = Some(verdict.state);
        self.episodes = verdict.findings.iter().take(64).map(Episode::from).collect();
    }

    /// Whether this piece was taken.
    pub(crate) fn has(&self, name: &str) -> bool {
        self.items.iter().any(|item| item.name == name && item.failed.is_none())
    }

    /// Puts a piece in the place of an earlier try.
    pub(crate) fn put(&mut self, item: Item) {
        self.items.retain(|old| old.name != item.name);
        self.items.push(item);
    }

    /// The pieces that could not be taken.
    pub(crate) fn missing(&self) -> impl Iterator<Item = &Item> {
        self.items.iter().filter(|item| item.failed.is_some())
    }

    /// Whether this is evidence of a finding: it holds the facts, and was taken when the finding was there already.
    pub(crate) fn covers(&self, code: &str, subject: &str, since: Timestamp) -> bool {
        self.has(super::FACTS)
            && self.begun_at >= since
            && self.episodes.iter().any(|it| it.code == code && it.subject == subject)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_bundle_is_evidence_of_what_was_there_when_it_was_taken() {
        let at = |second| Timestamp::from_second(second).expect("valid");
        let mut manifest = Manifest::new("n1", "b", "asked for", at(100));
        manifest.episodes.push(Episode { code: "DiskFull".into(), subject: "/".into(), since: at(50) });
        assert!(!manifest.covers("DiskFull", "/", at(50)), "it holds no facts");
        manifest.put(Item { name: super::super::FACTS.into(), failed: Some("hung".into()), ..Item::default() });
        assert!(!manifest.covers("DiskFull", "/", at(50)));
        manifest.put(Item { name: super::super::FACTS.into(), ..Item::default() });
        assert!(manifest.covers("DiskFull", "/", at(50)));
        assert!(!manifest.covers("DiskFull", "/", at(101)), "a later episode");
        assert!(!manifest.covers("DiskFull", "/var", at(50)));
        assert_eq!(
            (manifest.items.len(), manifest.missing().count()),
            (1, 0),
            "the second try took the place of the first"
        );
    }
}
