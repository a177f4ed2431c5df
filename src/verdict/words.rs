//! Messages of conditions: what, where, since when, why it matters and the next step, in one breath.

use std::cmp::Reverse;

use jiff::Timestamp;

use super::{Cure, Raised};
use crate::checks::Area;
use crate::facts::utc;

/// Longest condition message (product contract).
pub(super) const LONGEST_MESSAGE: usize = 1024;
/// So many codes are named that one root explains.
const NAMED: usize = 3;

/// The roll-up's message: the root, what it explains, and how much else there is.
pub(super) fn of_worker(root: &Raised, findings: &[Raised]) -> String {
    let problems = || findings.iter().filter(|finding| finding.is_problem());
    let explained = problems().filter(|finding| finding.is_caused_by(root));
    let mut text = String::new();
    if let Some(codes) = list(explained.clone()) {
        text = format!(" It causes {codes}.");
    }
    text += &more(problems().count() - 1 - explained.count());
    sentence(root, &text, &root.next)
}

/// What an Event says of the findings of one code that begin: the first that nothing explains, and what it explains.
pub(super) fn of_code(code: &str, findings: &[Raised]) -> String {
    let mine = || findings.iter().filter(|finding| finding.code == code);
    let Some(head) = mine().min_by_key(|finding| finding.caused_by.is_some()) else { return String::new() };
    let explained = findings.iter().filter(|finding| finding.is_problem() && finding.is_caused_by(head));
    let causes = list(explained).map_or_else(String::new, |codes| format!(" It causes {codes}."));
    sentence(head, &(causes + &more(mine().count() - 1)), &head.next)
}

/// What an Event says of a fault that is over.
pub(crate) fn ended(code: &str, subject: &str, since: Timestamp, at: Timestamp, cure: Option<Cure>) -> String {
    let seconds = at.as_second().saturating_sub(since.as_second()).max(0);
    let cure = match cure {
        Some(Cure::Reload) => " Meanwhile the machine was installed anew.",
        Some(Cure::Reboot) => " Meanwhile the machine was booted.",
        Some(Cure::ProcessRestart) => " Meanwhile a process that has to do with it was started anew.",
        Some(Cure::Nothing) | None => "",
    };
    let since = utc(since);
    clip(&format!("{code} ({subject}) is over; it was there since {since}, for {seconds} s.{cure}"))
}

/// Reason and message of an area's condition: its worst problem, or the root of that if it is of this area.
pub(super) fn of_area(area: Area, findings: &[Raised]) -> Option<(String, String)> {
    let mine: Vec<&Raised> = findings.iter().filter(|finding| finding.area == area && finding.is_problem()).collect();
    let worst = mine.iter().min_by_key(|finding| Reverse(finding.severity))?;
    let head = mine.iter().find(|root| worst.is_caused_by(root)).unwrap_or(worst);
    let others = more(mine.len() - 1);
    let message = match findings.iter().find(|root| head.is_caused_by(root)) {
        Some(root) => {
            let text = format!(" It is caused by {} ({}).{others}", root.code, root.subject);
            sentence(head, &text, &format!("for {}: {}", root.code, root.next))
        }
        None => sentence(head, &others, &head.next),
    };
    Some((head.code.clone(), message))
}

/// The codes among findings, each once and with how often it is there; none when there is no finding.
pub(crate) fn list<'a>(findings: impl Iterator<Item = &'a Raised>) -> Option<String> {
    let mut codes: Vec<(&str, usize)> = Vec::new();
    for finding in findings {
        match codes.iter_mut().find(|(code, _)| *code == finding.code) {
            Some((_, count)) => *count += 1,
            None => codes.push((&finding.code, 1)),
        }
    }
    let said = codes.iter().take(NAMED).map(|(code, count)| match count {
        1 => (*code).to_owned(),
        count => format!("{code} ({count} times)"),
    });
    let mut said: Vec<String> = said.collect();
    if codes.len() > NAMED {
        said.push(format!("{} more", codes.len() - NAMED));
    }
    let last = said.pop()?;
    Some(if said.is_empty() { last } else { format!("{} and {last}", said.join(", ")) })
}

fn more(others: usize) -> String {
    match others {
        0 => String::new(),
        1 => " One more finding.".to_owned(),
        n => format!(" {n} more findings."),
    }
}

fn sentence(finding: &Raised, more: &str, next: &str) -> String {
    let why = crate::checks::node::ALL.iter().find(|check| check.code == finding.code).map_or("", |check| check.why);
    let since = utc(finding.since);
    // A next step without what it is for helps nobody.
    let end = clip_to(&format!(" Next: {}.", next.trim_end_matches('.')), LONGEST_MESSAGE / 2);
    let often = match finding.times {
        0 | 1 => String::new(),
        times => format!(" In the last days it was seen {times} times{}.", cured(finding)),
    };
    let start = format!("{}, since {since}: {why}.{often}{more}", finding.detail);
    let room = LONGEST_MESSAGE - end.len();
    format!("{}{end}", clip_to(&start, room))
}

fn cured(finding: &Raised) -> &'static str {
    match finding.last_cure {
        Some(Cure::Reload) => ", the last time until the machine was installed anew",
        Some(Cure::Reboot) => ", the last time until it was booted",
        Some(Cure::ProcessRestart) => ", the last time until a process was started anew",
        Some(Cure::Nothing) | None => "",
    }
}

/// At most as long as a message may be.
pub(crate) fn clip(text: &str) -> String {
    clip_to(text, LONGEST_MESSAGE)
}

/// At most `limit` bytes of `text`, cut at a character and marked.
pub(super) fn clip_to(text: &str, limit: usize) -> String {
    if text.len() <= limit {
        return text.to_owned();
    }
    let end = (0..=limit.saturating_sub(3)).rev().find(|end| text.is_char_boundary(*end)).unwrap_or(0);
    format!("{}…", &text[..end])
}
