//! What a repair remembers on the Node, so that it can be gone on with from anywhere: in one annotation, which is written
//! together with the cordon, so that neither is there without the other.

use jiff::Timestamp;
use serde::{Deserialize, Serialize};

/// Steps that are remembered; a ladder has fewer.
const MOST: usize = 16;

/// The annotation [`crate::verdict::annotation::REPAIR`].
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub(super) struct Memory {
    /// The root finding's code.
    pub(super) code: String,
    /// Since when it was there.
    pub(super) since: Timestamp,
    /// It was this repair that cordoned the Node, and it has not let pods in again.
    #[serde(default)]
    pub(super) cordoned: bool,
    /// `bootID` when it began: another one means a reboot.
    #[serde(default)]
    pub(super) boot: String,
    /// When the evidence was taken, or `declined`.
    #[serde(default)]
    pub(super) evidence: String,
    /// What was done, in this order.
    #[serde(default)]
    pub(super) steps: Vec<Done>,
    /// How it ended.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(super) ended: Option<Done>,
}

/// Something that was done.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct Done {
    /// Key of the step.
    pub(super) step: String,
    /// When.
    pub(super) at: Timestamp,
    /// What came of it.
    pub(super) outcome: Outcome,
}

/// What came of a step.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub(super) enum Outcome {
    /// It was begun; what came of it is not known yet.
    Begun,
    /// It is done, and not meant to cure by itself.
    Done,
    /// What was wrong was gone after it.
    Cured,
    /// What was wrong was still there after it.
    NotCured,
}

impl Outcome {
    pub(super) fn as_str(self) -> &'static str {
        match self {
            Outcome::Begun => "begun",
            Outcome::Done => "done",
            Outcome::Cured => "cured",
            Outcome::NotCured => "not cured",
        }
    }

    /// Reason of the Event that tells of it, and whether it is a warning.
    pub(super) fn event(self) -> (&'static str, bool) {
        match self {
            Outcome::Begun | Outcome::Done => ("RepairStepDone", false),
            Outcome::Cured => ("RepairCured", false),
            Outcome::NotCured => ("RepairNotCured", true),
        }
    }
}

impl Memory {
    /// Reads the annotation. One that somebody else wrote, or an unknown version, is none.
    pub(super) fn parse(text: &str) -> Option<Memory> {
        serde_json::from_str(text).ok()
    }

    /// What came of this step, if it was tried.
    pub(super) fn outcome(&self, step: &str) -> Option<Outcome> {
        self.steps.iter().rev().find(|done| done.step == step).map(|done| done.outcome)
    }

    /// Notes what came of a step.
    pub(super) fn note(&mut self, step: &str, outcome: Outcome, at: Timestamp) {
        self.steps.retain(|done| done.step != step);
        self.steps.push(Done { step: step.to_owned(), at, outcome });
        let surplus = self.steps.len().saturating_sub(MOST);
        self.steps.drain(..surplus);
    }

    /// Whether a repair is under way.
    pub(super) fn is_open(&self) -> bool {
        self.ended.is_none()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn at(second: i64) -> Timestamp {
        Timestamp::from_second(second).expect("valid")
    }

    #[test]
    fn what_was_noted_is_read_back() {
        let mut memory = Memory {
            code: "CniConfigMissing".into(),
            since: at(1),
            cordoned: true,
            boot: "b".into(),
            evidence: "declined".into(),
            steps: Vec::new(),
            ended: None,
        };
        memory.note("cordon", Outcome::Done, at(2));
        memory.note("delete-calico-node", Outcome::Begun, at(3));
        memory.note("delete-calico-node", Outcome::NotCured, at(4));
        let text = serde_json::to_string(&memory).expect("plain data");
        assert_eq!(Memory::parse(&text), Some(memory.clone()));
        assert_eq!(memory.outcome("delete-calico-node"), Some(Outcome::NotCured));
        assert_eq!((memory.outcome("drain"), memory.steps.len()), (None, 2));
        for number in 0..100 {
            memory.note(&format!("{number}"), Outcome::Done, at(number));
        }
        assert_eq!(memory.steps.len(), MOST);
    }

    #[test]
    fn what_others_wrote_is_nothing() {
        for text in ["", "{}", "[]", "null", r#"{"code": 7}"#, r#"{"code":"X","since":"yesterday"}"#] {
            assert_eq!(Memory::parse(text), None, "{text}");
        }
    }
}
