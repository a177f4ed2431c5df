//! The plan for people.

use std::fmt::Write as _;

use serde::Serialize;

use super::ladder::{self, By, describe};
use super::memory::Memory;
use super::plan::{Plan, Shown, Status, Verdict};
use super::situation::{BgpPassword, Situation};
use crate::aggregator::report::AgentState;
use crate::checks::Severity;
use crate::cli::terminal::{Ink, Paint, age, clean, wrap};

/// What is wrong.
#[derive(Debug, Serialize)]
#[serde(rename_all = "camelCase")]
pub(super) struct Trouble<'a> {
    code: &'a str,
    severity: Severity,
    since: jiff::Timestamp,
    detail: &'a str,
    /// On so many workers.
    counted: usize,
    /// Of so many.
    eligible: usize,
    scope: &'static str,
}

/// A live answer.
#[derive(Debug, PartialEq, Eq, Serialize)]
pub(super) struct Answer {
    what: &'static str,
    answer: String,
}

/// What is wrong, for programs.
pub(super) fn trouble(situation: &Situation) -> Option<Trouble<'_>> {
    situation.root.as_ref().map(|root| Trouble {
        code: &root.code,
        severity: root.severity,
        since: root.since,
        detail: &root.detail,
        counted: root.counted,
        eligible: root.eligible,
        scope: root.scope.as_str(),
    })
}

/// How the worker and what is around it are now.
pub(super) fn answers(situation: &Situation) -> Vec<Answer> {
    let calico = match (&situation.calico, situation.calico_node()) {
        (Err(why), _) => why.clone(),
        (_, None) => "no pod here".to_owned(),
        (_, Some(pod)) => describe(pod),
    };
    let to_move = match &situation.to_move {
        Ok(pods) => format!("{} of its pods", pods.len()),
        Err(why) => why.clone(),
    };
    let steps = |memory: &Memory| {
        let steps = memory.steps.iter().map(|done| format!("{} {}", done.step, done.outcome.as_str()));
        format!("for {}: {}", memory.code, steps.collect::<Vec<_>>().join(", "))
    };
    let rows = [
        ("Ready", Some(situation.node.ready.clone())),
        ("agent", Some(agent(situation.node.agent).to_owned())),
        ("cordoned", Some(cordoned(situation).to_owned())),
        ("calico-node", Some(calico)),
        ("other workers", Some(others(situation))),
        ("a drain moves", Some(to_move)),
        ("budgets", Some(ladder::budgets(situation).1)),
        ("BGP password", situation.bgp.as_ref().map(password)),
        ("evidence", situation.root.as_ref().map(|_| situation.evidence().1)),
        ("done before", situation.open().map(steps)),
        ("your rights", Some(ladder::may(situation).1)),
    ];
    rows.into_iter().filter_map(|(what, answer)| Some(Answer { what, answer: clean(&answer?) })).collect()
}

fn cordoned(situation: &Situation) -> &'static str {
    let ours = situation.node.memory.as_ref().is_some_and(|memory| memory.cordoned);
    match (situation.node.cordoned, ours) {
        (false, _) => "no",
        (true, true) => "yes, by a repair",
        (true, false) => "yes, by somebody else",
    }
}

fn others(situation: &Situation) -> String {
    let node = &situation.node;
    let mut text = format!("{} Ready and open to pods", situation.able().count());
    if let Some(zone) = &node.zone {
        let count = situation.able().filter(|peer| peer.zone == node.zone).count();
        write!(text, ", {count} in zone {zone}").ok();
    }
    if let Some(pool) = &node.pool {
        let count = situation.able().filter(|peer| peer.pool == node.pool).count();
        write!(text, ", {count} in pool {pool}").ok();
    }
    text
}

fn password(bgp: &BgpPassword) -> String {
    let [there, here, readable] = [bgp.there, bgp.here, bgp.readable].map(|is| if is { "there" } else { "missing" });
    let name = &bgp.secret;
    format!("Secret {name} in kube-system {there}, in calico-system {here}, its Role and RoleBinding {readable}")
}

fn agent(state: AgentState) -> &'static str {
    match state {
        AgentState::Fresh => "speaks",
        AgentState::Late => "not Ready for a moment",
        AgentState::Stale => "silent: its pod is not Ready",
        AgentState::Missing => "silent: it has no pod",
        AgentState::KubeletSilent => "silent, as the kubelet is",
        AgentState::NotSeen => "its pod must not be seen with these rights",
    }
}

/// For people.
pub(super) fn render(situation: &Situation, plan: &Plan, done: &[String], paint: Paint) -> String {
    let mut out = String::new();
    head(&mut out, situation, paint);
    writeln!(out, "\n{}", paint.bold("Now")).ok();
    let answers = answers(situation);
    let widest = answers.iter().map(|answer| answer.what.len()).max().unwrap_or(0);
    for Answer { what, answer } in &answers {
        let indent = " ".repeat(widest + 4);
        let body = wrap(answer, &indent, paint.width.unwrap_or(usize::MAX));
        writeln!(out, "  {what:widest$}  {}", body.trim_start()).ok();
    }
    if !plan.steps.is_empty() {
        writeln!(out, "\n{}", paint.bold(&format!("Steps ({})", plan.ladder))).ok();
    }
    for (number, step) in plan.steps.iter().enumerate() {
        self::step(&mut out, number + 1, step, paint);
    }
    if !done.is_empty() {
        writeln!(out, "\n{}", paint.bold("Done")).ok();
        for line in done {
            paint.paragraph(&mut out, 2, line);
        }
    }
    out.push('\n');
    let sentence = clean(&plan.sentence);
    let (ink, what) = match plan.verdict {
        Verdict::Healthy => (Ink::Good, "Healthy"),
        Verdict::Ready => (Ink::Warning, "Next"),
        Verdict::Yours => (Ink::Warning, "Yours"),
        Verdict::Refused => (Ink::Critical, "Refused"),
    };
    let words = wrap(&format!("{what}: {sentence}"), "", paint.width.unwrap_or(usize::MAX));
    writeln!(out, "{}", words.replacen(what, &paint.ink(ink, what), 1)).ok();
    let name = &situation.node.name;
    match plan.verdict {
        Verdict::Ready => paint.paragraph(
            &mut out,
            2,
            &format!("nodevitals repair {name} --yes, with --evidence as above, takes it."),
        ),
        Verdict::Yours if !plan.steps.is_empty() => {
            paint.paragraph(&mut out, 2, &format!("Afterwards: nodevitals repair {name}."));
        }
        _ => {}
    }
    out
}

fn head(out: &mut String, situation: &Situation, paint: Paint) {
    let node = &situation.node;
    let Some(root) = &situation.root else {
        writeln!(out, "{}  {}", paint.bold(&node.name), node.platform.name).ok();
        return;
    };
    let severity = paint.ink(Ink::of_severity(root.severity), root.severity.as_str());
    let age = age(root.since, situation.now);
    writeln!(out, "{}  {}  {severity} {} for {age}", paint.bold(&node.name), node.platform.name, clean(&root.code))
        .ok();
    paint.paragraph(out, 2, &clean(&root.detail));
    paint.paragraph(out, 2, &format!("On {} of {} workers.", root.counted.max(1), root.eligible.max(1)));
}

fn step(out: &mut String, number: usize, step: &Shown, paint: Paint) {
    let (mark, ink) = match step.status {
        Status::Done => ("done", Some(Ink::Good)),
        Status::NotCured => ("done, did not cure", Some(Ink::Warning)),
        Status::Next => ("next", Some(Ink::Strong)),
        Status::Later => ("", None),
    };
    let mark = ink.map_or_else(String::new, |ink| format!("  [{}]", paint.ink(ink, mark)));
    let body = wrap(step.text, "     ", paint.width.unwrap_or(usize::MAX));
    writeln!(out, "  {number}. {}{mark}", body.trim_start()).ok();
    for command in &step.commands {
        for line in command.lines() {
            writeln!(out, "       {}", paint.ink(Ink::Good, line)).ok();
        }
    }
    if matches!(step.status, Status::Done | Status::NotCured) || step.key.is_empty() {
        return;
    }
    let by = match step.by {
        By::Command => "this command, with --yes",
        By::Person => "you",
    };
    writeln!(out, "     {}", paint.dim(&format!("by {by}"))).ok();
    let mut say = |what: &str, text: &str| {
        if !text.is_empty() {
            paint.paragraph(out, 5, &format!("{what}: {text}"));
        }
    };
    say("destroys", step.destroys);
    say("worked if", step.verify);
    // Of what comes later only what stands in its way counts now.
    for need in step.needs.iter().filter(|need| step.status == Status::Next || !need.holds) {
        let mark = if need.holds { paint.ink(Ink::Good, "+") } else { paint.ink(Ink::Critical, "-") };
        let body =
            wrap(&clean(&format!("{}: {}", need.what, need.answer)), "       ", paint.width.unwrap_or(usize::MAX));
        writeln!(out, "     {mark} {}", body.trim_start()).ok();
    }
}
