//! Explanations for people and for programs.

use std::fmt::Write as _;

use serde::Serialize;

use super::book::{Book, Entry, Item};
use super::search::{Match, Sure, near};
use super::{Product, search};
use crate::cli::terminal::{Ink, Paint, clean, wrap};

/// So much of a line is shown as the reason.
const EXCERPT: usize = 160;
/// Of that so much before the place that counts.
const BEFORE: usize = 40;

/// What the placeholders in commands stand for, where it is not plain.
const LEGEND: [(&str, &str); 3] = [
    (
        "CALICO_NS",
        "calico-system; kube-system on IKS 1.28 and older and where Calico came without its operator; while it moves look in both",
    ),
    (
        "WORKER_ID",
        "the provider's name of the worker (`ibmcloud ks worker ls`: the line with the node's private IP), not the node's name",
    ),
    ("NODE", "the name that `kubectl get nodes` shows; on IBM Cloud that is the private IP"),
];

/// What was found in a text.
#[derive(Debug)]
pub(super) struct Answer<'a> {
    pub(super) book: &'a Book,
    pub(super) text: &'a str,
    pub(super) matches: &'a [Match],
    pub(super) product: Option<Product>,
}

impl Answer<'_> {
    /// For people: the first in full, the others in a line each.
    pub(super) fn table(&self, all: bool, paint: Paint) -> String {
        let mut out = String::new();
        let Some(first) = self.matches.first() else {
            self.unknown(&mut out, paint);
            return out;
        };
        // Beginnings and resemblances of several messages are alike: none of them is the answer.
        let shown = if all { self.matches.len() } else { 1 };
        for (number, found) in self.matches[..shown].iter().enumerate() {
            if number > 0 {
                out.push('\n');
            }
            self.entry(&mut out, found, paint);
        }
        let others = &self.matches[shown..];
        if !others.is_empty() {
            let what = if first.sure <= Sure::Start { "It could also be" } else { "Recognised besides" };
            writeln!(out, "\n{}", paint.bold(what)).ok();
            for found in others {
                let entry = &self.book.entries[found.entry];
                let line = format!("{}: {} ({})", entry.record.name, meaning(entry), self.reason(found));
                paint.paragraph(&mut out, 2, &line);
            }
            paint.paragraph(&mut out, 2, "In full: --all, or `nodevitals explain NAME`.");
        }
        out
    }

    fn unknown(&self, out: &mut String, paint: Paint) {
        paint.paragraph(out, 0, "I do not know this. Nothing in the text is a finding, a state or a message that I have an explanation for.");
        let names = near(self.book, self.text.trim());
        if !names.is_empty() {
            paint.paragraph(out, 0, &format!("Written nearly like it: {}.", names.join(", ")));
        }
        paint.paragraph(out, 0, "`nodevitals explain --list` shows what is known. A longer piece of the text helps: `kubectl describe pod POD | nodevitals explain -`. If it concerns a worker, `nodevitals check` on it looks for itself.");
    }

    /// Why this was recognised: where, and how sure it is.
    fn reason(&self, found: &Match) -> String {
        if found.sure == Sure::Name && self.text.trim().len() <= found.pattern.len() + 2 {
            return "by its name".to_owned();
        }
        let (number, line) = line_at(self.text, found.at);
        let line = excerpt(line, self.text, found.at);
        let times = if found.count > 1 { format!(" and {} more", found.count - 1) } else { String::new() };
        match found.sure {
            Sure::Similar => "worded nearly like it".to_owned(),
            Sure::Start => format!("line {number} begins like it and is cut off: \u{201c}{line}\u{201d}"),
            Sure::Message | Sure::Name => format!("line {number}{times}: \u{201c}{line}\u{201d}"),
        }
    }

    fn entry(&self, out: &mut String, found: &Match, paint: Paint) {
        let entry = &self.book.entries[found.entry];
        let record = &entry.record;
        writeln!(out, "{}  {}", paint.bold(record.name), kind(entry, paint)).ok();
        let field = |out: &mut String, name: &str, text: &str| {
            if !text.is_empty() {
                paint.paragraph(out, 2, &format!("{name}: {text}"));
            }
        };
        field(out, "Seen", &self.reason(found));
        if self.product.is_some_and(|product| !product.has(record.only)) {
            field(out, "Note", &format!("other products than yours say this: {}", products(record.only)));
        }
        field(out, "Meaning", &meaning(entry));
        if let Some(check) = entry.check.filter(|_| !record.means.is_empty()) {
            field(out, "Why it matters", &sentence(check.why));
        }
        field(out, "Cause", record.cause);
        field(out, "Whose", owner(record.owner));
        field(out, "Not to be mistaken for", record.not);
        if !record.ask.is_empty() {
            field(out, "What decides", record.ask);
            for (answer, name) in &record.answers {
                let leads = if *name == record.name { "go on here".to_owned() } else { format!("see {name}") };
                paint.paragraph(out, 4, &format!("- {answer}: {leads}"));
            }
        }
        let (gather, steps) = self.book.plan(record);
        let gather: Vec<&Item> = self.of_product(gather);
        let steps: Vec<&Item> = self.of_product(steps);
        let mut commands = String::new();
        if !gather.is_empty() {
            writeln!(out, "\n  {}", paint.bold("Gather first")).ok();
            for item in gather {
                self.item(out, "-", item.text, &item.commands, &mut commands, paint);
            }
        }
        let own = entry.check.map(|check| sentence(check.next_step));
        if own.is_some() || !steps.is_empty() {
            writeln!(out, "\n  {}", paint.bold("Then, in this order")).ok();
        }
        let texts = own.iter().map(|text| (text.trim_end_matches('.'), &[][..]));
        let texts = texts.chain(steps.iter().map(|item| (item.text, &item.commands[..])));
        for (number, (text, how)) in texts.enumerate() {
            self.item(out, &format!("{}.", number + 1), text, how, &mut commands, paint);
        }
        let legend: Vec<_> = LEGEND.iter().filter(|(name, _)| commands.contains(name)).collect();
        if !legend.is_empty() {
            out.push('\n');
        }
        for (name, what) in legend {
            paint.paragraph(out, 2, &format!("{name}: {what}."));
        }
        if !record.see.is_empty() {
            out.push('\n');
            field(out, "See also", record.see);
        }
    }

    fn item(
        &self,
        out: &mut String,
        mark: &str,
        text: &str,
        commands: &[(&'static str, String)],
        all: &mut String,
        paint: Paint,
    ) {
        let indent = " ".repeat(5 + mark.len());
        let body = wrap(text, &indent, paint.width.unwrap_or(usize::MAX));
        writeln!(out, "    {mark} {}", body.trim_start()).ok();
        for (only, command) in commands.iter().filter(|(only, _)| self.product.is_none_or(|product| product.has(only)))
        {
            // On one product of its own there is nothing to tell apart.
            let several = self.product.is_none_or(|product| product == Product::Roks);
            if several && !only.is_empty() {
                writeln!(out, "       {}", paint.dim(&format!("{}:", products(only)))).ok();
            }
            for line in command.lines() {
                writeln!(out, "         {}", paint.ink(Ink::Good, line)).ok();
            }
            all.push_str(command);
        }
    }

    fn of_product<'b>(&self, items: Vec<&'b Item>) -> Vec<&'b Item> {
        items.into_iter().filter(|item| self.product.is_none_or(|product| product.has(item.products))).collect()
    }

    /// For programs.
    pub(super) fn document(&self) -> Document {
        let explained = self.matches.iter().map(|found| {
            let (line, text) = line_at(self.text, found.at);
            let seen = Seen {
                sure: found.sure,
                pattern: found.pattern,
                line,
                text: excerpt(text, self.text, found.at),
                count: found.count,
            };
            explained(self.book, &self.book.entries[found.entry], self.product, Some(seen))
        });
        let explained: Vec<Explained> = explained.collect();
        Document { known: !explained.is_empty(), product: self.product, explanations: explained }
    }
}

/// Everything, one a line.
pub(super) fn list(book: &Book, paint: Paint) -> String {
    let mut out = String::new();
    for entry in &book.entries {
        writeln!(out, "{}  {}", paint.bold(entry.record.name), kind(entry, paint)).ok();
        paint.paragraph(&mut out, 4, &meaning(entry));
    }
    out
}

/// Everything, for programs.
pub(super) fn all(book: &Book, product: Option<Product>) -> Vec<Explained> {
    book.entries.iter().map(|entry| explained(book, entry, product, None)).collect()
}

/// What a thing means; a check of which nothing else is written says why it matters.
fn meaning(entry: &Entry) -> String {
    match (entry.record.means, entry.check) {
        ("", Some(check)) => sentence(check.why),
        (means, _) => means.to_owned(),
    }
}

/// A check's clause as a sentence.
fn sentence(clause: &str) -> String {
    let mut letters = clause.chars();
    letters.next().map_or(String::new(), |first| format!("{}{}.", first.to_uppercase(), letters.as_str()))
}

/// Who is meant by `you`.
fn owner(owner: &'static str) -> &'static str {
    if owner == "you" { "you, who run the cluster" } else { owner }
}

fn kind(entry: &Entry, paint: Paint) -> String {
    let severity = entry.record.severity;
    let ink = match severity {
        "critical" => Ink::Critical,
        "warning" => Ink::Warning,
        _ => Ink::Faint,
    };
    let condition = entry.check.map_or(String::new(), |check| format!("  {}", check.area.condition()));
    format!("{}{condition}", paint.ink(ink, severity))
}

/// Names of products for people.
fn products(names: &str) -> String {
    let long = names.split(',').map(|name| match name {
        "classic" => "IKS classic",
        "vpc" => "IKS VPC",
        "roks" => "ROKS",
        "ibm" => "IBM Cloud",
        _ => "other Kubernetes",
    });
    long.collect::<Vec<_>>().join(", ")
}

/// What stands in a line around this place of the text.
fn excerpt(line: &str, text: &str, at: usize) -> String {
    let place = at - (line.as_ptr() as usize - text.as_ptr() as usize);
    // A little of what stands before, from the beginning of a word.
    let before = line[..place].char_indices().rev().nth(BEFORE).map_or(0, |(start, _)| start);
    let start = if before == 0 { 0 } else { line[before..place].find(' ').map_or(place, |space| before + space + 1) };
    let shown: String = line[start..].trim().chars().take(EXCERPT).collect();
    let [cut, more] = [start > 0, line[start..].trim().chars().count() > EXCERPT].map(|cut| if cut { "…" } else { "" });
    format!("{cut}{}{more}", clean(&shown))
}

/// The line at this place, and its number.
fn line_at(text: &str, at: usize) -> (usize, &str) {
    let start = text.as_bytes()[..at].iter().rposition(|byte| *byte == b'\n').map_or(0, |place| place + 1);
    let number = text[..start].matches('\n').count() + 1;
    (number, text[start..].lines().next().unwrap_or_default())
}

/// The answer for programs.
#[derive(Debug, Serialize)]
#[serde(rename_all = "camelCase")]
pub(super) struct Document {
    /// Whether anything was recognised.
    known: bool,
    #[serde(skip_serializing_if = "Option::is_none")]
    product: Option<Product>,
    /// The best first.
    explanations: Vec<Explained>,
}

/// One explanation.
#[derive(Debug, Serialize)]
#[serde(rename_all = "camelCase")]
pub(super) struct Explained {
    name: &'static str,
    #[serde(skip_serializing_if = "Option::is_none")]
    seen: Option<Seen>,
    severity: &'static str,
    #[serde(skip_serializing_if = "Option::is_none")]
    condition: Option<&'static str>,
    meaning: String,
    #[serde(skip_serializing_if = "Option::is_none")]
    why: Option<&'static str>,
    #[serde(skip_serializing_if = "str::is_empty")]
    cause: &'static str,
    owner: &'static str,
    #[serde(skip_serializing_if = "str::is_empty")]
    not_to_be_mistaken_for: &'static str,
    #[serde(skip_serializing_if = "Option::is_none")]
    decides: Option<Decides>,
    gather: Vec<Step>,
    steps: Vec<Step>,
    #[serde(skip_serializing_if = "Vec::is_empty")]
    messages: Vec<&'static str>,
    #[serde(skip_serializing_if = "Vec::is_empty")]
    see_also: Vec<&'static str>,
}

/// Why it was recognised.
#[derive(Debug, Serialize)]
#[serde(rename_all = "camelCase")]
struct Seen {
    sure: search::Sure,
    pattern: &'static str,
    line: usize,
    text: String,
    count: usize,
}

#[derive(Debug, Serialize)]
struct Decides {
    question: &'static str,
    answers: Vec<Choice>,
}

#[derive(Debug, Serialize)]
struct Choice {
    answer: &'static str,
    name: &'static str,
}

#[derive(Debug, Serialize)]
struct Step {
    text: &'static str,
    #[serde(skip_serializing_if = "Vec::is_empty")]
    products: Vec<&'static str>,
    #[serde(skip_serializing_if = "Vec::is_empty")]
    commands: Vec<Command>,
}

#[derive(Debug, Serialize)]
struct Command {
    #[serde(skip_serializing_if = "Vec::is_empty")]
    products: Vec<&'static str>,
    command: String,
}

fn names(list: &'static str, sign: &str) -> Vec<&'static str> {
    list.split(sign).filter(|name| !name.is_empty()).collect()
}

fn explained(book: &Book, entry: &Entry, product: Option<Product>, seen: Option<Seen>) -> Explained {
    let record = &entry.record;
    let has = |products: &str| product.is_none_or(|product| product.has(products));
    let step = |item: &&Item| Step {
        text: item.text,
        products: names(item.products, ","),
        commands: item
            .commands
            .iter()
            .filter(|(only, _)| has(only))
            .map(|(only, command)| Command { products: names(only, ","), command: command.clone() })
            .collect(),
    };
    let (gather, steps) = book.plan(record);
    let own = entry.check.map(|check| Step { text: check.next_step, products: Vec::new(), commands: Vec::new() });
    Explained {
        name: record.name,
        seen,
        severity: record.severity,
        condition: entry.check.map(|check| check.area.condition()),
        meaning: meaning(entry),
        why: entry.check.map(|check| check.why),
        cause: record.cause,
        owner: owner(record.owner),
        not_to_be_mistaken_for: record.not,
        decides: (!record.ask.is_empty()).then(|| Decides {
            question: record.ask,
            answers: record.answers.iter().map(|(answer, name)| Choice { answer, name }).collect(),
        }),
        gather: gather.iter().filter(|item| has(item.products)).map(step).collect(),
        steps: own.into_iter().chain(steps.iter().filter(|item| has(item.products)).map(step)).collect(),
        messages: record.texts.clone(),
        see_also: names(record.see, ", "),
    }
}
