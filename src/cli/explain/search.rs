//! What a text is about.

use std::collections::{BTreeSet, HashMap};

use super::book::Book;
use super::squeeze::{Squeezed, squeeze};

/// So much may stand in a pattern's gap, squeezed: addresses, names, another message.
const GAP: usize = 240;
/// So much of a message must be there, squeezed, if its end is cut off.
const SHORTEST_START: usize = 16;
/// A text of more bytes than this is not compared word by word: every word is somewhere in a long log.
const FEW_WORDS: usize = 2048;
/// What somebody tells in own words is no longer than that, squeezed; a log is.
const A_SENTENCE: usize = 200;
/// So much of a message's rare words must be there if it is worded in another way.
const SIMILAR: f64 = 0.72;

/// How sure it is. The order is that of the answers.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, serde::Serialize)]
#[serde(rename_all = "camelCase")]
pub(crate) enum Sure {
    /// Words of the message are there, but not its wording.
    Similar,
    /// The beginning of the message, and then the text ends.
    Start,
    /// The message.
    Message,
    /// The name itself, or a state.
    Name,
}

/// An explanation that fits.
#[derive(Debug, Clone)]
pub(crate) struct Match {
    /// Which entry of the book.
    pub(crate) entry: usize,
    /// How sure it is.
    pub(crate) sure: Sure,
    /// How much of the message is there, squeezed.
    pub(crate) length: usize,
    /// Where it begins in the text.
    pub(crate) at: usize,
    /// In how many lines it is.
    pub(crate) count: usize,
    /// What was looked for.
    pub(crate) pattern: &'static str,
}

/// The explanations that fit, the best first.
pub(crate) fn search(book: &Book, text: &str) -> Vec<Match> {
    let mut found = Found { text, best: HashMap::new(), lines: BTreeSet::new() };
    let squeezed = squeeze(text);
    whole(book, &squeezed, &mut found);
    // A name or a state alone is not looked for within itself.
    if found.best.is_empty() {
        messages(book, &squeezed, &mut found);
        words(book, text, &mut found);
        states(book, text, &mut found);
        if squeezed.text.len() <= A_SENTENCE {
            symptoms(book, text, &mut found);
        }
    }
    if found.best.is_empty() && text.len() <= FEW_WORDS {
        similar(book, text, &mut found);
    }
    found.ranked(book)
}

struct Found<'a> {
    text: &'a str,
    best: HashMap<usize, Match>,
    /// The beginnings of the lines in which an entry was seen: what a line says twice counts once.
    lines: BTreeSet<(usize, usize)>,
}

impl Found<'_> {
    fn add(&mut self, new: Match) {
        let line = self.text.as_bytes()[..new.at].iter().rposition(|byte| *byte == b'\n').unwrap_or(0);
        let fresh = self.lines.insert((new.entry, line));
        let known = self.best.entry(new.entry).or_insert_with(|| Match { count: 0, ..new.clone() });
        let count = known.count + usize::from(fresh);
        if (new.sure, new.length) > (known.sure, known.length) {
            *known = new;
        }
        known.count = count;
    }

    /// Routine comes last; what follows from another thing that is seen comes after all that does not; then how sure it is.
    fn ranked(self, book: &Book) -> Vec<Match> {
        let names: Vec<&str> = self.best.keys().map(|entry| book.entries[*entry].record.name).collect();
        let key = |found: &Match| {
            let record = &book.entries[found.entry].record;
            let follows = record.after.split(", ").any(|cause| names.contains(&cause));
            let routine = record.owner.starts_with("nobody");
            (follows, routine, std::cmp::Reverse((found.sure, found.length)), found.at, found.entry)
        };
        let mut all: Vec<Match> = self.best.values().cloned().collect();
        all.sort_by_key(key);
        all
    }
}

/// The input is a name or a state and nothing else.
fn whole(book: &Book, squeezed: &Squeezed, found: &mut Found) {
    for (entry, known) in book.entries.iter().enumerate() {
        let record = &known.record;
        let all = [record.name].into_iter().chain(record.states.iter().copied()).chain(record.words.iter().copied());
        if let Some(pattern) = all.into_iter().find(|name| squeeze(name).text == squeezed.text) {
            found.add(Match { entry, sure: Sure::Name, length: squeezed.text.len(), at: 0, count: 1, pattern });
        }
    }
}

struct Pattern {
    entry: usize,
    text: &'static str,
    parts: Vec<Vec<u8>>,
}

/// Messages, wherever they stand.
fn messages(book: &Book, squeezed: &Squeezed, found: &mut Found) {
    let patterns: Vec<Pattern> = book
        .entries
        .iter()
        .enumerate()
        .flat_map(|(entry, known)| known.record.texts.iter().map(move |text| (entry, *text)))
        .map(|(entry, text)| Pattern { entry, text, parts: text.split('*').map(|part| squeeze(part).text).collect() })
        .collect();
    let mut by_start: HashMap<[u8; 4], Vec<&Pattern>> = HashMap::new();
    for pattern in &patterns {
        if let Some(start) = pattern.parts[0].first_chunk::<4>() {
            by_start.entry(*start).or_default().push(pattern);
        }
    }
    for (at, start) in squeezed.text.windows(4).enumerate() {
        let Some(start) = start.first_chunk::<4>() else { continue };
        for pattern in by_start.get(start).into_iter().flatten() {
            if let Some((sure, length)) = compare(squeezed, at, &pattern.parts) {
                let at = squeezed.at[at];
                found.add(Match { entry: pattern.entry, sure, length, at, count: 1, pattern: pattern.text });
            }
        }
    }
}

/// How much of a pattern is there, and whether all of it.
fn compare(squeezed: &Squeezed, at: usize, parts: &[Vec<u8>]) -> Option<(Sure, usize)> {
    let whole: usize = parts.iter().map(Vec::len).sum();
    let (mut place, mut length) = (at, 0);
    for (number, part) in parts.iter().enumerate() {
        let window =
            &squeezed.text[place..(place + part.len() + if number == 0 { 0 } else { GAP }).min(squeezed.text.len())];
        let Some(offset) = window.windows(part.len().max(1)).position(|window| window == part) else {
            let start = length + cut_short(squeezed, place, part, number > 0);
            // The more of it is missing, the more of it must be there.
            return (start >= SHORTEST_START && start * 3 >= whole).then_some((Sure::Start, start));
        };
        place += offset + part.len();
        length += part.len();
    }
    Some((Sure::Message, length))
}

/// How much of a part is there before the text is cut off.
fn cut_short(squeezed: &Squeezed, place: usize, part: &[u8], gap: bool) -> usize {
    let cuts = squeezed.cuts.iter().filter(|cut| **cut >= place && **cut <= place + part.len() + GAP);
    let starts = cuts.filter_map(|cut| {
        let rest = &squeezed.text[place..*cut];
        if !gap {
            return part.starts_with(rest).then_some(rest.len());
        }
        // What stands in the gap may be all that is left, or the part begins somewhere in it.
        (0..=rest.len()).find(|skip| part.starts_with(&rest[*skip..])).map(|skip| rest.len() - skip)
    });
    starts.max().unwrap_or(0)
}

/// The words of a text that can be names: what stands between spaces and signs.
fn tokens(text: &str) -> impl Iterator<Item = (usize, &str)> {
    let is_sign = |c: char| c.is_whitespace() || "\"'`=:,;()[]{}<>|".contains(c);
    text.split(is_sign).filter_map(move |token| {
        let at = token.as_ptr() as usize - text.as_ptr() as usize;
        let token = token.trim_end_matches('.');
        (!token.is_empty()).then_some((at, token))
    })
}

/// Names of findings, reasons of events and the like.
fn words(book: &Book, text: &str, found: &mut Found) {
    let mut by_first: HashMap<&str, Vec<(usize, Vec<&str>, _)>> = HashMap::new();
    for (entry, known) in book.entries.iter().enumerate() {
        for word in std::iter::once(known.record.name).chain(known.record.words.iter().copied()) {
            let parts: Vec<&str> = tokens(word).map(|(_, token)| token).collect();
            if let Some(first) = parts.first() {
                by_first.entry(first).or_default().push((entry, parts, word));
            }
        }
    }
    let all: Vec<(usize, &str)> = tokens(text).collect();
    for (number, (at, token)) in all.iter().enumerate() {
        for (entry, parts, pattern) in by_first.get(token).into_iter().flatten() {
            let here = all[number..].iter().map(|(_, token)| token);
            if all.len() - number >= parts.len() && parts.iter().zip(here).all(|(part, token)| part == token) {
                let length = pattern.len();
                found.add(Match { entry: *entry, sure: Sure::Message, length, at: *at, count: 1, pattern });
            }
        }
    }
}

/// States of workers, as `ibmcloud ks worker ls` and `worker get` print them.
fn states(book: &Book, text: &str, found: &mut Found) {
    let all = book.entries.iter().enumerate();
    let all = all.flat_map(|(entry, known)| known.record.states.iter().map(move |state| (entry, *state)));
    let mut known: HashMap<Vec<u8>, Vec<(usize, &'static str)>> = HashMap::new();
    for (entry, state) in all {
        known.entry(squeeze(state).text).or_default().push((entry, state));
    }
    let mut at = 0;
    for line in text.split_inclusive('\n') {
        let fields = line.trim();
        let listed = fields.starts_with("kube-");
        let value = ["State:", "Status:", "state:", "status:"].into_iter().find_map(|key| fields.strip_prefix(key));
        if listed || value.is_some() {
            // Columns are apart by two blanks or more, words by one.
            let cells = value.unwrap_or(fields).split("  ").map(|cell| squeeze(cell).text);
            for cell in cells {
                for (entry, pattern) in known.get(&cell).into_iter().flatten().copied() {
                    found.add(Match { entry, sure: Sure::Name, length: cell.len(), at, count: 1, pattern });
                }
            }
        }
        at += line.len();
    }
}

/// Symptoms in somebody's own words: for each of some words one that begins so or, with a full stop behind it, is it.
fn symptoms(book: &Book, text: &str, found: &mut Found) {
    let text: String = text.to_lowercase().replace(['\'', '’'], "");
    let words: Vec<&str> = text.split(|c: char| !c.is_alphanumeric()).filter(|word| !word.is_empty()).collect();
    let is = |word: &str, start: &str| match start.strip_suffix('.') {
        Some(whole) => word == whole,
        None => word.starts_with(start),
    };
    let begins = |starts: &str| starts.split('|').any(|start| words.iter().any(|word| is(word, start)));
    for (entry, known) in book.entries.iter().enumerate() {
        let all = known.record.symptoms.iter().copied();
        for pattern in all.filter(|symptom| symptom.split(' ').all(begins)) {
            let length = pattern.split(' ').count();
            found.add(Match { entry, sure: Sure::Similar, length, at: 0, count: 1, pattern });
        }
    }
}

/// Messages of which most of the rare words are there: reworded, misspelt, with a word more or less.
fn similar(book: &Book, text: &str, found: &mut Found) {
    let split = |text: &str| -> Vec<Vec<u8>> {
        let words = text.split_whitespace().map(|word| squeeze(word).text);
        words.filter(|word| word.len() > 3 && word.iter().all(u8::is_ascii_lowercase)).collect()
    };
    let mut known: HashMap<Vec<u8>, usize> = HashMap::new();
    for entry in &book.entries {
        for word in entry.record.texts.iter().flat_map(|text| split(text)) {
            *known.entry(word).or_default() += 1;
        }
    }
    let here = split(text);
    for (entry, record) in book.entries.iter().enumerate() {
        for pattern in &record.record.texts {
            let words = split(pattern);
            #[expect(clippy::cast_precision_loss, reason = "a few hundred")]
            let weight = |word: &Vec<u8>| 1.0 / known.get(word).map_or(1.0, |count| *count as f64);
            let total: f64 = words.iter().map(weight).sum();
            let common: Vec<&Vec<u8>> = words.iter().filter(|word| here.contains(word)).collect();
            let share = common.iter().map(|word| weight(word)).sum::<f64>() / total;
            if common.len() >= 5 && share >= SIMILAR {
                let length = common.iter().map(|word| word.len()).sum();
                found.add(Match { entry, sure: Sure::Similar, length, at: 0, count: 1, pattern });
            }
        }
    }
}

/// Names that are written nearly like this one.
pub(crate) fn near<'a>(book: &'a Book, word: &str) -> Vec<&'a str> {
    let word = squeeze(word).text;
    if word.len() < 4 || word.len() > 64 {
        return Vec::new();
    }
    let mut all: Vec<(usize, &str)> = book
        .entries
        .iter()
        .map(|entry| (distance(&word, &squeeze(entry.record.name).text), entry.record.name))
        .filter(|(distance, name)| *distance <= 2 + name.len() / 8)
        .collect();
    all.sort_unstable();
    all.into_iter().map(|(_, name)| name).take(3).collect()
}

/// How many letters must be changed, put in or taken out.
fn distance(a: &[u8], b: &[u8]) -> usize {
    let mut row: Vec<usize> = (0..=b.len()).collect();
    for (i, x) in a.iter().enumerate() {
        let mut corner = row[0];
        row[0] = i + 1;
        for (j, y) in b.iter().enumerate() {
            let change = corner + usize::from(x != y);
            corner = row[j + 1];
            row[j + 1] = change.min(corner + 1).min(row[j] + 1);
        }
    }
    row[b.len()]
}

#[cfg(test)]
#[path = "search_tests.rs"]
mod tests;
