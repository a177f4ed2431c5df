//! Hold-down and hysteresis: one step from what was believed and what was seen to what is believed.

mod suspects;

use std::collections::BTreeMap;
use std::time::Duration;

use jiff::Timestamp;

use super::answer::Answer;
use super::belief::{Belief, Flapping, Patience};
use super::causes;
use super::clocks::Clocks;
use super::episodes::{Around, Episodes};
use super::words::{clip, list as codes, of_area, of_worker};
use super::{
    COULD_NOT_LOOK, ConditionVerdict, NOT_APPLICABLE, Now, Raised, SETTLING, Settling, Status, Verdict, WORKER_HEALTHY,
    WorkerState,
};
use crate::checks::{Area, Check, Finding, Outcome, Severity, WORKER_PROBLEM};

/// What is believed between two looks.
#[derive(Debug, Clone, Default)]
pub struct Beliefs {
    findings: BTreeMap<(&'static str, String), Belief>,
    answers: BTreeMap<&'static str, Answer>,
    conditions: BTreeMap<&'static str, (Status, Timestamp)>,
    state: Option<(WorkerState, Timestamp)>,
    patience: Patience,
    flapping: Flapping,
    /// How often a check came to count as unknown; apart from its findings, which are over no later for that.
    blindness: Flapping,
    settling: Option<Settling>,
    episodes: Episodes,
    /// When there was last a problem of each code.
    seen: BTreeMap<&'static str, Timestamp>,
    clocks: Clocks,
    around: Around,
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
            let belief = Belief::restored(check, stored, now);
            beliefs.findings.insert((check.code, stored.subject.clone()), belief);
        }
        beliefs
    }

    /// With times that somebody asked for.
    #[must_use]
    pub fn with_patience(mut self, patience: Patience) -> Self {
        self.patience = patience;
        self
    }

    /// With the journal of an earlier process.
    #[must_use]
    pub fn with_episodes(mut self, episodes: Episodes) -> Self {
        self.episodes = episodes;
        self
    }

    /// The journal.
    pub fn episodes(&self) -> &Episodes {
        &self.episodes
    }

    /// In which boot and beside which processes the next look is made.
    pub fn look_around(&mut self, around: Around) {
        self.around = around;
    }

    /// Of a node that settles.
    pub fn settle(&mut self, settling: Option<Settling>) {
        self.settling = settling;
    }

    /// This process was stopped or the machine suspended: nothing that was seen before may be taken for having lasted, nor
    /// what was gone for having been gone, all that time.
    pub fn was_away(&mut self, now: Now) {
        self.findings.values_mut().for_each(|belief| belief.start_anew(now));
        self.answers.values_mut().for_each(|answer| answer.start_anew(now));
    }

    /// Takes in the answers of one look and says what is believed now.
    pub fn step(&mut self, answers: &[(&'static Check, Outcome)], now: Now) -> Verdict {
        self.settling = self.settling.filter(|settling| settling.left(now).is_some());
        let before = self.counted();
        for (check, outcome) in answers {
            self.answers.entry(check.code).or_default().take(outcome, now);
            self.take_findings(check, outcome, now);
        }
        self.settle_answers(now);
        self.clear(now);
        self.count_suspects(&before, now);
        self.verdict(now)
    }

    fn settle_answers(&mut self, now: Now) {
        self.blindness.forget(now);
        for (code, answer) in &mut self.answers {
            if answer.turns_unknown(now) {
                self.blindness.begins(code, now);
            }
            answer.settle(self.blindness.slower(code), now);
        }
    }

    fn take_findings(&mut self, check: &'static Check, outcome: &Outcome, now: Now) {
        let seen: &[Finding] = match outcome {
            Outcome::Findings(findings) => findings,
            Outcome::Healthy | Outcome::NotApplicable(_) => &[],
            Outcome::Unknown(_) => {
                self.findings
                    .values_mut()
                    .filter(|it| it.check.code == check.code)
                    .for_each(|it| it.look_was_lost(now));
                return;
            }
        };
        if seen.iter().any(|finding| finding.severity.unwrap_or(check.severity) > Severity::Info) {
            self.seen.insert(check.code, now.wall);
        }
        let held = self.settling.is_some() && Settling::holds(check.area);
        let slower = self.flapping.slower(check.code);
        let raised = self.findings.values().filter(|it| it.check.code == check.code && it.raised);
        let mut worst = raised.map(|it| it.severity).max();
        let is_seen = |subject: &String| seen.iter().any(|finding| finding.subject == *subject);
        let missed = self.findings.iter_mut().filter(|((code, subject), _)| *code == check.code && !is_seen(subject));
        missed.for_each(|(_, belief)| belief.miss(now));
        let (before, mut began) = (worst, false);
        for finding in seen {
            let key = (check.code, finding.subject.clone());
            let belief = self.findings.entry(key).or_insert_with(|| Belief::new(check, finding, now));
            belief.see(finding, now);
            began |= belief.settle(finding, held, &self.patience, slower, now);
            worst = worst.max(belief.raised.then_some(belief.severity));
        }
        // One that is only worth knowing does not hide how often problems of its code come back.
        if began || worst > before {
            self.flapping.begins(check.code, now);
        }
        // What had not lasted long enough to count and is gone never was.
        self.findings.retain(|(code, _), belief| *code != check.code || belief.raised || !belief.is_gone());
    }

    fn clear(&mut self, now: Now) {
        let (patience, flapping) = (&self.patience, &self.flapping);
        self.findings.retain(|(code, _), belief| !belief.is_over(patience, flapping.slower(code), now));
        self.flapping.forget(now);
        self.settling = self.settling.filter(|settling| settling.left(now).is_some() && !self.is_clean(now));
    }

    /// Whether everything was looked at, and nothing is wrong with what settles.
    fn is_clean(&self, now: Now) -> bool {
        let answered = !self.answers.is_empty() && self.answers.values().all(|it| it.ever || it.unknown_for_good(now));
        let well = |belief: &Belief| belief.severity == Severity::Info || !Settling::holds(belief.area());
        answered && self.findings.values().all(well)
    }

    fn verdict(&mut self, now: Now) -> Verdict {
        let mut findings = self.list(true);
        if self.clocks.agree(now) {
            self.episodes.forget(now);
        }
        self.episodes.update(&mut findings, &self.around, &self.seen, self.patience.recurs_within, now);
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
            .filter_map(|(code, answer)| answer.cannot_look().map(|why| ((*code).to_owned(), why.to_owned())))
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
        let why = |settled: bool| answers.iter().find_map(|answer| answer.unknown_why(now, settled));
        // What counts is told ahead of what has only begun, so that the words stay when that comes and goes.
        if let Some(why) = why(true).or_else(|| why(settled)) {
            let ever = answers.iter().any(|answer| answer.ever || answer.unknown_for_good(now));
            let reason = if ever { COULD_NOT_LOOK } else { SETTLING };
            return (Status::Unknown, reason.into(), clip(&format!("Could not look: {why}.")));
        }
        if let Some(message) = self.held(area, now) {
            return (Status::Unknown, SETTLING.into(), message);
        }
        let pending = self.findings.values().any(|belief| belief.area() == area && belief.severity > Severity::Info);
        if answers.is_empty() || (pending && !settled) {
            return (Status::Unknown, SETTLING.into(), "The first look is not complete yet.".into());
        }
        let reasons: Vec<&str> = answers.iter().filter_map(|answer| answer.not_applicable.as_deref()).collect();
        if reasons.len() == answers.len() {
            return (Status::False, NOT_APPLICABLE.into(), clip(&format!("Nothing to look at: {}.", reasons[0])));
        }
        (Status::False, area.healthy_reason().into(), format!("No problem found in the {}.", area.title()))
    }

    /// What would count by now on a node that does not settle.
    fn held(&self, area: Area, now: Now) -> Option<String> {
        let settling = self.settling.filter(|_| Settling::holds(area))?;
        let lasted =
            |it: &&Belief| it.area() == area && it.severity > Severity::Info && it.has_lasted(&self.patience, now);
        let held: Vec<Raised> = self.findings.values().filter(lasted).map(Belief::to_raised).collect();
        let (codes, after) = (codes(held.iter())?, settling.after);
        Some(clip(&format!("The node settles since {after}: {codes} is seen, and counts if it stays.")))
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
                let held = conditions.iter().all(|it| it.status != Status::Unknown || it.reason == SETTLING);
                let reason = if settling || held { SETTLING } else { COULD_NOT_LOOK };
                let message = format!("Not all of this worker is known: {}.", blind.join(", "));
                (Status::Unknown, reason.to_owned(), message)
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
        let patience = &self.patience;
        let times =
            self.findings.values().filter_map(|it| it.changes_in(patience, self.flapping.slower(it.check.code), now));
        let answers = self.answers.iter();
        let lingering = answers.filter_map(|(code, it)| it.changes_in(self.blindness.slower(code), now));
        times.chain(lingering).chain(self.settling.and_then(|settling| settling.left(now))).min()
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
