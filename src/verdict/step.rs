//! Hold-down and hysteresis: one step from what was believed and what was seen to what is believed.

use std::collections::BTreeMap;
use std::time::Duration;

use jiff::Timestamp;

use super::causes;
use super::words::{clip, of_area, of_worker};
use super::{
    COULD_NOT_LOOK, ConditionVerdict, NOT_APPLICABLE, Now, Raised, SETTLING, Status, Verdict, WORKER_HEALTHY,
    WorkerState,
};
use crate::checks::{Area, Check, Finding, Outcome, Severity, WORKER_PROBLEM};

/// A check that cannot look counts as unknown after this long: one slow answer is noise.
const UNKNOWN_AFTER: Duration = Duration::from_secs(15);
/// The text of a finding that lasts is brought up to date this often, so that a number that moves in it (percent of a
/// disk) does not become a write to the API server at every look.
const REFRESH_TEXT_AFTER: Duration = Duration::from_secs(600);

/// What is believed between two looks.
#[derive(Debug, Clone, Default)]
pub struct Beliefs {
    findings: BTreeMap<(&'static str, String), Belief>,
    answers: BTreeMap<&'static str, Answer>,
    conditions: BTreeMap<&'static str, (Status, Timestamp)>,
    state: Option<(WorkerState, Timestamp)>,
    hold_downs: BTreeMap<&'static str, Duration>,
}

#[derive(Debug, Clone)]
struct Belief {
    check: &'static Check,
    shown: Finding,
    shown_at: Duration,
    since: Timestamp,
    first_seen: Duration,
    last_seen: Duration,
    raised: bool,
}

/// What a check answered last.
#[derive(Debug, Clone)]
struct Answer {
    /// Whether it ever could look.
    ever: bool,
    /// Since when it cannot look, and why.
    unknown: Option<(Duration, String)>,
    /// Why the question does not arise.
    not_applicable: Option<String>,
}

impl Beliefs {
    /// What an earlier process of this agent wrote on the Node: findings go on as raised until a look says otherwise,
    /// and the times of the last transitions are kept.
    pub fn restore(
        table: &[&'static Check],
        findings: &[Raised],
        conditions: &BTreeMap<String, (Status, Timestamp)>,
        state: Option<(WorkerState, Timestamp)>,
        now: Now,
    ) -> Self {
        let mut beliefs = Beliefs { state, ..Beliefs::default() };
        for kind in std::iter::once(WORKER_PROBLEM).chain(Area::ALL.map(Area::condition)) {
            if let Some(known) = conditions.get(kind) {
                beliefs.conditions.insert(kind, *known);
            }
        }
        for stored in findings {
            let Some(check) = table.iter().find(|check| check.code == stored.code) else { continue };
            let shown = Finding::new(stored.subject.clone(), stored.detail.clone())
                .severity(stored.severity)
                .next(stored.next.clone());
            beliefs.findings.insert(
                (check.code, stored.subject.clone()),
                Belief {
                    check,
                    shown,
                    shown_at: now.since_boot,
                    since: stored.since,
                    first_seen: Duration::ZERO,
                    last_seen: now.since_boot,
                    raised: true,
                },
            );
        }
        beliefs
    }

    /// With hold-downs that somebody asked for, by finding code.
    #[must_use]
    pub fn with_hold_downs(mut self, hold_downs: BTreeMap<&'static str, Duration>) -> Self {
        self.hold_downs = hold_downs;
        self
    }

    /// Takes in the answers of one look and says what is believed now.
    pub fn step(&mut self, answers: &[(&'static Check, Outcome)], now: Now) -> Verdict {
        for (check, outcome) in answers {
            self.take_answer(check, outcome, now);
            self.take_findings(check, outcome, now);
        }
        self.raise_and_clear(now);
        self.verdict(now)
    }

    fn take_answer(&mut self, check: &'static Check, outcome: &Outcome, now: Now) {
        let answer =
            self.answers.entry(check.code).or_insert(Answer { ever: false, unknown: None, not_applicable: None });
        answer.not_applicable = None;
        match outcome {
            Outcome::Unknown(why) => {
                let since = answer.unknown.as_ref().map_or(now.since_boot, |(since, _)| *since);
                answer.unknown = Some((since, why.clone()));
                return;
            }
            Outcome::NotApplicable(why) => answer.not_applicable = Some(why.clone()),
            Outcome::Healthy | Outcome::Findings(_) => {}
        }
        answer.ever = true;
        answer.unknown = None;
    }

    fn take_findings(&mut self, check: &'static Check, outcome: &Outcome, now: Now) {
        let seen: &[Finding] = match outcome {
            Outcome::Findings(findings) => findings,
            Outcome::Healthy | Outcome::NotApplicable(_) => &[],
            Outcome::Unknown(_) => {
                // Neither confirmed nor refuted: the time in which it could not be looked at does not count as gone.
                for belief in self.findings.values_mut().filter(|belief| belief.check.code == check.code) {
                    belief.last_seen = now.since_boot;
                }
                return;
            }
        };
        for finding in seen {
            let belief = self.findings.entry((check.code, finding.subject.clone())).or_insert_with(|| Belief {
                check,
                shown: finding.clone(),
                shown_at: now.since_boot,
                since: now.wall,
                first_seen: now.since_boot,
                last_seen: now.since_boot,
                raised: false,
            });
            belief.last_seen = now.since_boot;
            belief.shown.owner_repairs_within = finding.owner_repairs_within;
            if !belief.raised
                || belief.shown.severity != finding.severity
                || now.since_boot.saturating_sub(belief.shown_at) >= REFRESH_TEXT_AFTER
            {
                belief.shown = finding.clone();
                belief.shown_at = now.since_boot;
            }
        }
        // What had not lasted long enough to count and is gone never was.
        self.findings
            .retain(|(code, _), belief| *code != check.code || belief.raised || belief.last_seen == now.since_boot);
    }

    fn raise_and_clear(&mut self, now: Now) {
        for belief in self.findings.values_mut() {
            let lasted = now.since_boot.saturating_sub(belief.first_seen);
            belief.raised |= lasted >= belief.raise_after(&self.hold_downs);
        }
        self.findings.retain(|_, belief| {
            let gone_for = now.since_boot.saturating_sub(belief.last_seen);
            gone_for.is_zero() || gone_for < belief.check.clear_after
        });
    }

    fn verdict(&mut self, now: Now) -> Verdict {
        let findings = self.list(true);
        let settling = self.answers.values().any(|answer| !answer.ever && !answer.unknown_for_good(now));
        let mut conditions: Vec<_> = Area::ALL.iter().map(|area| self.area_condition(*area, &findings, now)).collect();
        let state = worker_state(&findings, &conditions);
        conditions.insert(0, self.roll_up(state, settling, &findings, &conditions, now));
        let since = match self.state {
            Some((old, since)) if old == state => since,
            _ => now.wall,
        };
        self.state = Some((state, since));
        Verdict {
            at: now.wall,
            state,
            since,
            settling,
            conditions,
            findings,
            pending: self.list(false),
            unknown: self.unknown_answers(),
            look_again_in: self.look_again_in(now),
        }
    }

    fn list(&self, raised: bool) -> Vec<Raised> {
        let mut list: Vec<Raised> =
            self.findings.values().filter(|belief| belief.raised == raised).map(Belief::to_raised).collect();
        causes::explain(&mut list);
        list
    }

    fn unknown_answers(&self) -> Vec<(String, String)> {
        self.answers
            .iter()
            .filter_map(|(code, answer)| answer.unknown.as_ref().map(|(_, why)| ((*code).to_owned(), why.clone())))
            .collect()
    }

    fn area_condition(&mut self, area: Area, findings: &[Raised], now: Now) -> ConditionVerdict {
        let kind = area.condition();
        let (status, reason, message) = if let Some((reason, message)) = of_area(area, findings) {
            (Status::True, reason, message)
        } else {
            self.area_without_findings(area, now)
        };
        self.condition(kind, status, reason, message, now)
    }

    fn area_without_findings(&self, area: Area, now: Now) -> (Status, String, String) {
        let answers: Vec<&Answer> = self.answers_of(area).collect();
        let settled = self.conditions.get(area.condition()).is_some_and(|(status, _)| *status != Status::Unknown);
        if let Some(why) = answers.iter().find_map(|answer| answer.unknown_why(now, settled)) {
            let ever = answers.iter().any(|answer| answer.ever || answer.unknown_for_good(now));
            let reason = if ever { COULD_NOT_LOOK } else { SETTLING };
            return (Status::Unknown, reason.into(), clip(&format!("Could not look: {why}.")));
        }
        let pending =
            self.findings.values().any(|belief| belief.check.area == area && belief.severity() > Severity::Info);
        if answers.is_empty() || (pending && !settled) {
            return (Status::Unknown, SETTLING.into(), "The first look is not complete yet.".into());
        }
        let reasons: Vec<&str> = answers.iter().filter_map(|answer| answer.not_applicable.as_deref()).collect();
        if reasons.len() == answers.len() {
            return (Status::False, NOT_APPLICABLE.into(), clip(&format!("Nothing to look at: {}.", reasons[0])));
        }
        (Status::False, area.healthy_reason().into(), format!("No problem found in the {}.", area.title()))
    }

    fn answers_of(&self, area: Area) -> impl Iterator<Item = &Answer> {
        crate::checks::node::ALL
            .iter()
            .filter(move |check| check.area == area)
            .filter_map(|check| self.answers.get(check.code))
    }

    fn roll_up(
        &mut self,
        state: WorkerState,
        settling: bool,
        findings: &[Raised],
        conditions: &[ConditionVerdict],
        now: Now,
    ) -> ConditionVerdict {
        let (status, reason, message) = match (findings.first(), state) {
            (Some(root), _) if root.is_problem() => (Status::True, root.code.clone(), of_worker(root, findings)),
            (_, WorkerState::Unknown) => {
                let blind: Vec<&str> =
                    conditions.iter().filter(|it| it.status == Status::Unknown).map(|it| it.kind).collect();
                let reason = if settling { SETTLING } else { COULD_NOT_LOOK };
                (
                    Status::Unknown,
                    reason.to_owned(),
                    format!("Not all of this worker could be looked at: {}.", blind.join(", ")),
                )
            }
            _ => (Status::False, WORKER_HEALTHY.into(), "No problem found on this worker.".into()),
        };
        self.condition(WORKER_PROBLEM, status, reason, message, now)
    }

    fn condition(
        &mut self,
        kind: &'static str,
        status: Status,
        reason: String,
        message: String,
        now: Now,
    ) -> ConditionVerdict {
        let since = match self.conditions.get(kind) {
            Some((old, since)) if *old == status => *since,
            _ => now.wall,
        };
        self.conditions.insert(kind, (status, since));
        ConditionVerdict { kind, status, reason, message, since }
    }

    fn look_again_in(&self, now: Now) -> Option<Duration> {
        let times = self.findings.values().filter_map(|belief| {
            let gone_for = now.since_boot.saturating_sub(belief.last_seen);
            match (belief.raised, gone_for.is_zero()) {
                (false, _) => {
                    belief.raise_after(&self.hold_downs).checked_sub(now.since_boot.saturating_sub(belief.first_seen))
                }
                (true, false) => belief.check.clear_after.checked_sub(gone_for),
                (true, true) => None,
            }
        });
        times.min()
    }
}

impl Belief {
    /// How long it has to last: as configured, else until its owner would have repaired it, else as the check says.
    fn raise_after(&self, configured: &BTreeMap<&'static str, Duration>) -> Duration {
        let own = || self.shown.owner_repairs_within.unwrap_or(self.check.raise_after);
        configured.get(self.check.code).copied().unwrap_or_else(own)
    }

    fn severity(&self) -> Severity {
        self.shown.severity.unwrap_or(self.check.severity)
    }

    fn to_raised(&self) -> Raised {
        Raised {
            code: self.check.code.to_owned(),
            severity: self.severity(),
            area: self.check.area,
            subject: self.shown.subject.clone(),
            since: self.since,
            detail: self.shown.detail.clone(),
            next: self.shown.next_step.clone().unwrap_or_else(|| self.check.next_step.to_owned()),
            caused_by: None,
        }
    }
}

impl Answer {
    fn unknown_for_good(&self, now: Now) -> bool {
        self.unknown.as_ref().is_some_and(|(since, _)| now.since_boot.saturating_sub(*since) >= UNKNOWN_AFTER)
    }

    /// Why it is unknown, if that counts: it never could look, or has not been able to for long enough.
    fn unknown_why(&self, now: Now, settled: bool) -> Option<&str> {
        let (_, why) = self.unknown.as_ref()?;
        (!settled || !self.ever || self.unknown_for_good(now)).then_some(why)
    }
}

fn worker_state(findings: &[Raised], conditions: &[ConditionVerdict]) -> WorkerState {
    match findings.iter().map(|finding| finding.severity).max() {
        Some(Severity::Critical) => WorkerState::Critical,
        Some(Severity::Warning) => WorkerState::Warning,
        _ if conditions.iter().any(|condition| condition.status == Status::Unknown) => WorkerState::Unknown,
        _ => WorkerState::Normal,
    }
}

#[cfg(test)]
mod tests;
