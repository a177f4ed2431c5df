//! What a person reads first.

use std::fmt::Write as _;

use super::Manifest;
use crate::verdict::{Raised, Verdict};

/// The summary of a bundle; without a verdict where the node could not be looked at.
pub(crate) fn summary(manifest: &Manifest, verdict: Option<&Verdict>) -> String {
    let mut text = String::new();
    let Manifest { node, why, begun_at, version, .. } = manifest;
    // Writing to a String cannot fail; so in all of this file.
    writeln!(text, "Evidence of {node}, taken {} by nodevitals {version}: {why}", crate::facts::utc(*begun_at)).ok();
    if manifest.ended_at.is_none() {
        writeln!(text, "NOT COMPLETE: it was interrupted; the same command goes on where it stopped.").ok();
    }
    match verdict {
        Some(verdict) => judged(&mut text, verdict),
        None => _ = writeln!(text, "\nThe node itself could not be looked at, so nothing is known of its state."),
    }
    let missing: Vec<_> = manifest.missing().collect();
    let taken = manifest.items.len() - missing.len();
    let bytes: u64 = manifest.items.iter().map(|item| item.bytes).sum();
    let redacted: u32 = manifest.items.iter().map(|item| item.redacted).sum();
    writeln!(
        text,
        "\n{taken} pieces, {}; {redacted} secrets were taken out. All of them: {}",
        crate::checks::space::human_bytes(bytes),
        super::MANIFEST
    )
    .ok();
    for item in manifest.items.iter().filter(|item| item.cut.is_some()) {
        writeln!(text, "  cut      {} {}", item.name, item.cut.as_deref().unwrap_or_default()).ok();
    }
    for item in missing {
        writeln!(text, "  missing  {} {}: {}", item.key, item.of, item.failed.as_deref().unwrap_or_default()).ok();
    }
    writeln!(text, "\nJudge it again, anywhere: nodevitals check --from <this directory>").ok();
    if verdict.is_some_and(|verdict| verdict.root().is_some()) {
        writeln!(text, "Then: nodevitals repair {node} --evidence <this directory>").ok();
    }
    text
}

fn judged(text: &mut String, verdict: &Verdict) {
    writeln!(text, "\nWorker state: {}", verdict.state.as_str()).ok();
    let root = verdict.root();
    match root {
        Some(root) => {
            writeln!(text, "Root finding: {}{}: {}\nNext: {}", root.code, about(root), root.detail, root.next).ok();
        }
        None => writeln!(text, "Root finding: none").unwrap_or_default(),
    }
    for other in verdict.findings.iter().filter(|finding| Some(*finding) != root) {
        let cause = other.caused_by.as_ref().map(|cause| format!(" (caused by {})", cause.code)).unwrap_or_default();
        writeln!(text, "Also: {}{}{cause}: {}", other.code, about(other), other.detail).ok();
    }
    if !verdict.unknown.is_empty() {
        writeln!(text, "\nNot known, since it could not be looked at:").ok();
    }
    for (code, why) in &verdict.unknown {
        writeln!(text, "  {code}: {why}").ok();
    }
}

fn about(finding: &Raised) -> String {
    if finding.subject.is_empty() { String::new() } else { format!(" ({})", finding.subject) }
}
