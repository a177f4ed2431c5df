//! What should be on the Node: conditions and annotations, worked out from a verdict.

use std::collections::BTreeMap;

use jiff::Timestamp;
use serde::{Deserialize, Serialize};

use super::words::clip_to;
use super::{Episodes, Raised, Status, Verdict, WorkerState};
use crate::checks::{Area, WORKER_PROBLEM};
use crate::facts::{Identity, whole_seconds};

/// Prefix of every annotation of this product.
pub const ANNOTATION_PREFIX: &str = "nodevitals.dev/";
/// Longest value of the annotation `episodes`, in bytes.
const LONGEST_EPISODES: usize = 2 * 1024;
/// Longest value of the annotation `findings`, in bytes (product contract).
const LONGEST_FINDINGS: usize = 8 * 1024;
/// Longest text of one finding in the annotation `findings`, in bytes: one that begins on a healthy node goes with two
/// conditions in a patch of 4 KiB. The agent's own page and its state file have the whole.
const LONGEST_TEXT: usize = 448;
/// Types of conditions that an earlier version wrote and no check writes any more: they are taken off the Nodes. They
/// have to stay in `ownTypes` of `deploy/policy-agent.yaml`, which lets an agent touch no others.
const RETIRED: &[&str] = &[];

/// Names of annotations.
pub mod annotation {
    /// The worker's state: `Normal`, `Warning`, `Critical`, `Unknown`.
    pub const STATE: &str = "nodevitals.dev/state";
    /// Findings as compact JSON: roots first, worst first, then what they explain (`causedBy`).
    pub const FINDINGS: &str = "nodevitals.dev/findings";
    /// Since when the worker has its state, RFC 3339.
    pub const SINCE: &str = "nodevitals.dev/since";
    /// Episodes that are over, newest first, as compact JSON: what came and went while nobody could be told too.
    pub const EPISODES: &str = "nodevitals.dev/episodes";
    /// `/proc/sys/kernel/random/boot_id`.
    pub const BOOT_ID: &str = "nodevitals.dev/boot-id";
    /// `/etc/machine-id`.
    pub const MACHINE_ID: &str = "nodevitals.dev/machine-id";
    /// Version of the agent.
    pub const VERSION: &str = "nodevitals.dev/version";
    /// What `nodevitals repair` did here and whether it cordoned the Node, as compact JSON: it is that command's, and no
    /// agent writes it.
    pub const REPAIR: &str = "nodevitals.dev/repair";
}

/// Everything this product says on one Node.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Told {
    /// Conditions, the roll-up first.
    pub conditions: Vec<NodeCondition>,
    /// Annotations.
    pub annotations: BTreeMap<String, String>,
}

/// A node condition as it goes to the API server.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct NodeCondition {
    /// Type.
    #[serde(rename = "type")]
    pub kind: String,
    /// `True`, `False` or `Unknown`.
    pub status: Status,
    /// Reason.
    #[serde(default)]
    pub reason: String,
    /// Message.
    #[serde(default)]
    pub message: String,
    /// When the status last changed.
    #[serde(default, deserialize_with = "lenient_time")]
    pub last_transition_time: Option<Timestamp>,
}

/// A time that somebody else wrote: one that cannot be read costs itself, not the object.
fn lenient_time<'de, D: serde::Deserializer<'de>>(input: D) -> Result<Option<Timestamp>, D::Error> {
    Ok(Option::<String>::deserialize(input)?.and_then(|text| text.parse().ok()))
}

/// Whether a condition of this type is one of ours, of now or of an earlier version.
pub fn our_condition(kind: &str) -> bool {
    is_ours(kind, RETIRED)
}

fn is_ours(kind: &str, retired: &[&str]) -> bool {
    kind == WORKER_PROBLEM || Area::of_condition(kind).is_some() || retired.contains(&kind)
}

/// What to say on the Node. Times are cut to seconds, as Kubernetes keeps them.
pub fn told(verdict: &Verdict, identity: &Identity, episodes: &Episodes) -> Told {
    let conditions = verdict
        .conditions
        .iter()
        .map(|condition| NodeCondition {
            kind: condition.kind.to_owned(),
            status: condition.status,
            reason: condition.reason.clone(),
            message: condition.message.clone(),
            last_transition_time: Some(whole_seconds(condition.since)),
        })
        .collect();
    let annotations = [
        (annotation::STATE, verdict.state.as_str().to_owned()),
        (annotation::FINDINGS, findings_json(&verdict.findings)),
        (annotation::EPISODES, episodes_json(episodes)),
        (annotation::SINCE, whole_seconds(verdict.since).to_string()),
        (annotation::BOOT_ID, identity.boot_id.clone()),
        (annotation::MACHINE_ID, identity.machine_id.clone()),
        (annotation::VERSION, env!("CARGO_PKG_VERSION").to_owned()),
    ];
    Told { conditions, annotations: annotations.into_iter().map(|(key, value)| (key.to_owned(), value)).collect() }
}

/// The findings as JSON of at most 8 KiB, with long texts cut. When some do not fit, the last element is
/// `{"truncated": N}`.
fn findings_json(findings: &[Raised]) -> String {
    let mut parts: Vec<String> = Vec::new();
    let mut length = 2;
    for (index, finding) in findings.iter().enumerate() {
        let shortened = Raised {
            since: whole_seconds(finding.since),
            detail: clip_to(&finding.detail, LONGEST_TEXT),
            next: clip_to(&finding.next, LONGEST_TEXT),
            ..finding.clone()
        };
        let part = serde_json::to_string(&shortened).expect("a finding is plain strings");
        if length + part.len() + 1 + r#"{"truncated":10000}"#.len() > LONGEST_FINDINGS {
            parts.push(format!(r#"{{"truncated":{}}}"#, findings.len() - index));
            break;
        }
        length += part.len() + 1;
        parts.push(part);
    }
    format!("[{}]", parts.join(","))
}

/// The newest episodes that are over, as JSON of at most 2 KiB.
fn episodes_json(episodes: &Episodes) -> String {
    let mut parts: Vec<String> = Vec::new();
    let mut length = 2;
    for episode in episodes.iter().rev() {
        let Some(cleared) = episode.cleared else { continue };
        let (since, cleared) = (whole_seconds(episode.since), whole_seconds(cleared));
        let part = serde_json::json!({
            "code": episode.code, "since": since, "cleared": cleared, "times": episode.times, "cure": episode.cure,
        });
        let part = part.to_string();
        length += part.len() + 1;
        if length > LONGEST_EPISODES {
            break;
        }
        parts.push(part);
    }
    format!("[{}]", parts.join(","))
}

/// Reads the annotation `findings` back. Elements that cannot be read are left out.
pub(crate) fn parse_findings(json: &str) -> Vec<Raised> {
    let elements: Vec<serde_json::Value> = serde_json::from_str(json).unwrap_or_default();
    elements.into_iter().filter_map(|element| serde_json::from_value(element).ok()).collect()
}

/// Reads the annotations `state` and `since` back.
pub(crate) fn parse_state(annotations: &BTreeMap<String, String>) -> Option<(WorkerState, Timestamp)> {
    let state = WorkerState::parse(annotations.get(annotation::STATE)?);
    Some((state, annotations.get(annotation::SINCE)?.parse().ok()?))
}

/// The fuzz target's door.
#[cfg(any(test, fuzzing))]
pub(crate) fn fuzz(data: &[u8]) {
    let text = String::from_utf8_lossy(data);
    let findings = parse_findings(&text);
    let written = findings_json(&findings);
    assert!(written.len() <= LONGEST_FINDINGS);
    // What is written is read back the same, but for times below a second, long texts and what did not fit.
    let again = parse_findings(&written);
    if again.len() < findings.len() {
        assert!(written.contains(r#"{"truncated":"#), "{written}");
    } else {
        assert_eq!(findings_json(&again), written);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::checks::Severity;

    fn finding(detail: &str) -> Raised {
        Raised {
            code: "DiskFull".into(),
            severity: Severity::Critical,
            area: Area::Capacity,
            subject: "/var".into(),
            since: Timestamp::from_second(1_700_000_000).expect("valid"),
            detail: detail.into(),
            next: "free space".into(),
            caused_by: None,
            times: 1,
            last_cure: None,
        }
    }

    #[test]
    fn findings_survive_the_round_trip() {
        let findings = vec![finding("a \"quoted\" detail"), finding("b")];
        assert_eq!(parse_findings(&findings_json(&findings)), findings);
    }

    #[test]
    fn too_many_findings_are_cut_and_said() {
        let many = vec![finding(&"x".repeat(900)); 50];
        let json = findings_json(&many);
        assert!(json.len() <= LONGEST_FINDINGS, "{}", json.len());
        assert!(json.contains(r#"{"truncated":37}"#), "{}", &json[json.len() - 40..]);
        assert_eq!(parse_findings(&json).len(), 13);
    }

    #[test]
    fn long_texts_are_cut_at_a_character_and_once() {
        let long = Raised { next: "ö".repeat(2_000), ..finding(&format!("x{}", "ö".repeat(2_000))) };
        let json = findings_json(&[long]);
        let read = parse_findings(&json);
        for text in [&read[0].detail, &read[0].next] {
            assert!((LONGEST_TEXT - 1..=LONGEST_TEXT).contains(&text.len()) && text.ends_with("ö…"), "{text}");
        }
        assert_eq!(findings_json(&read), json);
    }

    #[test]
    fn a_condition_of_an_earlier_version_is_ours() {
        assert!(is_ours("WorkerProblem", &[]) && is_ours("CNIProblem", &[]));
        assert!(!is_ours("Ready", &["GoneProblem"]) && !is_ours("GoneProblem", &[]));
        assert!(is_ours("GoneProblem", &["OtherProblem", "GoneProblem"]));
        assert!(RETIRED.iter().all(|kind| Area::of_condition(kind).is_none()), "what is written is not retired");
        let policy = include_str!("../../deploy/policy-agent.yaml");
        assert!(RETIRED.iter().all(|kind| policy.contains(&format!("'{kind}'"))), "it could not be taken off");
    }

    #[test]
    fn damaged_findings_cost_themselves() {
        assert_eq!(parse_findings("not json"), []);
        assert_eq!(parse_findings(r#"[{"code":1},{"truncated":3}]"#), []);
    }
}
