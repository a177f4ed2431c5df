//! What began and what is over between two verdicts, by finding code: what an Event tells.
//!
//! What another finding explains is not told: the root's Event names it. So is the end of it.

use std::collections::BTreeMap;

use jiff::Timestamp;

use super::words::{ended, of_code};
use super::{Episodes, Raised, Verdict};

/// The findings of one code began, or the last of them is over.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Transition {
    /// Finding code.
    pub code: String,
    /// Whether it began.
    pub began: bool,
    /// When the fault was first seen.
    pub since: Timestamp,
    /// When it came to count, or was over.
    pub at: Timestamp,
    /// What is wrong, or for how long it was.
    pub message: String,
}

/// What counts, by code.
#[derive(Debug, Default)]
pub struct Transitions(BTreeMap<String, Known>);

#[derive(Debug, Clone, PartialEq, Eq)]
struct Known {
    since: Timestamp,
    subject: String,
    /// Whether its beginning was told: nothing explained it.
    told: bool,
}

impl Transitions {
    /// After what has been told already.
    pub fn after(told: &[Raised]) -> Self {
        Transitions(by_code(told))
    }

    /// What has changed up to this verdict.
    pub fn step(&mut self, verdict: &Verdict, episodes: &Episodes) -> Vec<Transition> {
        let mut now = by_code(&verdict.findings);
        let mut changed = Vec::new();
        for (code, known) in &self.0 {
            if let Some(still) = now.get_mut(code) {
                *still = known.clone();
            } else if known.told {
                let cure = episodes.iter().rev().find(|it| it.code == *code).and_then(|episode| episode.cure);
                let message = ended(code, &known.subject, known.since, verdict.at, cure);
                changed.push(Transition {
                    code: code.clone(),
                    began: false,
                    since: known.since,
                    at: verdict.at,
                    message,
                });
            }
        }
        for (code, new) in now.iter().filter(|(code, new)| new.told && !self.0.contains_key(*code)) {
            let message = of_code(code, &verdict.findings);
            changed.push(Transition { code: code.clone(), began: true, since: new.since, at: verdict.at, message });
        }
        self.0 = now;
        changed
    }
}

fn by_code(findings: &[Raised]) -> BTreeMap<String, Known> {
    let mut codes = BTreeMap::new();
    for finding in findings.iter().filter(|finding| finding.is_problem()) {
        let (since, subject) = (finding.since, &finding.subject);
        let known = codes.entry(finding.code.clone());
        let known = known.or_insert_with(|| Known { since, subject: subject.clone(), told: false });
        known.since = known.since.min(since);
        known.told |= finding.caused_by.is_none();
    }
    codes
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::checks::{Area, Severity};
    use crate::verdict::{CausedBy, Now, WorkerState};
    use std::time::Duration;

    fn at(second: i64) -> Timestamp {
        Timestamp::from_second(1_700_000_000 + second).expect("valid")
    }

    fn finding(code: &str, subject: &str, cause: Option<&str>) -> Raised {
        Raised {
            code: code.into(),
            severity: Severity::Critical,
            area: Area::ControlPlanePath,
            subject: subject.into(),
            since: at(0),
            detail: format!("{subject} is broken"),
            next: "mend it".into(),
            caused_by: cause.map(|code| CausedBy { code: code.into(), subject: "s".into() }),
            times: 1,
            last_cure: None,
        }
    }

    fn verdict(second: i64, findings: Vec<Raised>) -> Verdict {
        Verdict {
            at: at(second),
            state: WorkerState::Critical,
            since: at(0),
            settling: false,
            conditions: Vec::new(),
            findings,
            pending: Vec::new(),
            unknown: Vec::new(),
            look_again_in: None,
        }
    }

    #[test]
    fn a_code_begins_once_and_is_over_once() {
        let mut transitions = Transitions::default();
        let mut episodes = Episodes::default();
        let mut step = |second, findings: Vec<Raised>| {
            let mut verdict = verdict(second, findings);
            let now = Now { wall: verdict.at, since_boot: Duration::from_secs(second.unsigned_abs()) };
            let week = crate::verdict::Patience::default().recurs_within;
            episodes.update(&mut verdict.findings, &crate::verdict::Around::default(), &BTreeMap::new(), week, now);
            transitions.step(&verdict, &episodes)
        };
        let began = step(5, vec![finding("KubeletDown", "a", None)]);
        assert_eq!((began.len(), began[0].began, began[0].since, began[0].at), (1, true, at(0), at(5)));
        assert!(began[0].message.starts_with("a is broken, since 2023-11-14T22:13:20Z: "), "{}", began[0].message);
        assert!(began[0].message.ends_with(" Next: mend it."), "{}", began[0].message);
        assert_eq!(step(6, vec![finding("KubeletDown", "a", None), finding("KubeletDown", "b", None)]), []);
        assert_eq!(step(7, vec![finding("KubeletDown", "b", None)]), []);
        let over = step(95, vec![]);
        assert_eq!((over.len(), over[0].began, over[0].since, over[0].at), (1, false, at(0), at(95)));
        assert_eq!(over[0].message, "KubeletDown (a) is over; it was there since 2023-11-14T22:13:20Z, for 95 s.");
        assert_eq!(step(96, vec![]), []);
    }

    #[test]
    fn a_root_is_told_with_what_it_explains_and_that_is_not_told() {
        let mut transitions = Transitions::default();
        let both = vec![finding("KubeletDown", "s", None), finding("DiskFull", "t", Some("KubeletDown"))];
        let began = transitions.step(&verdict(5, both), &Episodes::default());
        assert_eq!(began.iter().map(|it| &*it.code).collect::<Vec<_>>(), ["KubeletDown"]);
        assert!(began[0].message.contains(" It causes DiskFull."), "{}", began[0].message);
        let over = transitions.step(&verdict(9, vec![]), &Episodes::default());
        assert_eq!(over.iter().map(|it| &*it.code).collect::<Vec<_>>(), ["KubeletDown"]);
    }

    #[test]
    fn what_an_earlier_process_told_is_not_told_again_and_its_end_is() {
        let told = [finding("KubeletDown", "s", None)];
        let mut transitions = Transitions::after(&told);
        assert_eq!(transitions.step(&verdict(5, told.to_vec()), &Episodes::default()), []);
        assert_eq!(transitions.step(&verdict(9, vec![]), &Episodes::default()).len(), 1);
    }

    #[test]
    fn what_is_only_worth_knowing_is_no_event() {
        let info = Raised { severity: Severity::Info, ..finding("KubeletDown", "s", None) };
        assert_eq!(Transitions::default().step(&verdict(5, vec![info]), &Episodes::default()), []);
    }
}
