//! What is known: the records in `texts/`, and the fields of every check of a node.
//!
//! A record begins with `== NAME SEVERITY`, without a severity for checks of a node, which say it themselves, and for parts,
//! whose names are in lower case and which others take in with `use:`. Then one field a line:
//!
//! | field | what |
//! |---|---|
//! | `owner:` | who has to act |
//! | `area:` | of what no check finds: the area's part counts as it does for checks |
//! | `only:` | the products that have it |
//! | `means:` `cause:` `not:` | what it is, where it comes from, what it is mistaken for |
//! | `text:` | a message, compared squeezed; `*` is a gap |
//! | `word:` | words that stand alone in a text, capitals and all |
//! | `symptom:` | what somebody tells in own words: beginnings of words, of which all have to be there; a bar is an or, `no.` a whole word |
//! | `state:` | the whole input, or a state in a list of workers |
//! | `ask:` `if:` | the one fact that decides, and for each answer `answer => NAME` |
//! | `gather:` `step:` | in this order; `@vpc` for one product |
//! | `$ COMMAND` | how: of the line above; `$vpc,roks COMMAND` for some products; lines that begin with a bar go on; with [`SHORT`] |
//! | `use:` | a part, with what it gathers and its steps |
//! | `after:` | what it follows from, if that is seen too |
//! | `see:` | what to read next |

use crate::checks::node::ALL;
use crate::checks::{Area, Check};

const TEXTS: [&str; 4] = [
    include_str!("texts/node.txt"),
    include_str!("texts/cluster.txt"),
    include_str!("texts/provider.txt"),
    include_str!("texts/parts.txt"),
];

/// Something to do, and how.
#[derive(Debug, Default, Clone)]
pub(crate) struct Item {
    /// The products that have it, with commas; all if empty.
    pub(crate) products: &'static str,
    /// What to do.
    pub(crate) text: &'static str,
    /// The commands, each with its products.
    pub(crate) commands: Vec<(&'static str, String)>,
}

/// A line of what is to be gathered or done.
#[derive(Debug, Clone)]
enum Line {
    Gather(Item),
    Step(Item),
    Use(&'static str),
}

/// What is written about one thing.
#[derive(Debug, Default, Clone)]
pub(crate) struct Record {
    pub(crate) name: &'static str,
    pub(crate) severity: &'static str,
    pub(crate) owner: &'static str,
    area: &'static str,
    pub(crate) only: &'static str,
    pub(crate) means: &'static str,
    pub(crate) cause: &'static str,
    pub(crate) not: &'static str,
    pub(crate) texts: Vec<&'static str>,
    pub(crate) words: Vec<&'static str>,
    pub(crate) symptoms: Vec<&'static str>,
    pub(crate) states: Vec<&'static str>,
    pub(crate) ask: &'static str,
    pub(crate) answers: Vec<(&'static str, &'static str)>,
    pub(crate) after: &'static str,
    pub(crate) see: &'static str,
    lines: Vec<Line>,
}

/// An explanation: what is written about it, and the check that finds it.
#[derive(Debug)]
pub(crate) struct Entry {
    /// What is written.
    pub(crate) record: Record,
    /// The check of a node.
    pub(crate) check: Option<&'static Check>,
}

/// Everything that can be explained.
#[derive(Debug)]
pub(crate) struct Book {
    /// Checks first, in causal order.
    pub(crate) entries: Vec<Entry>,
    parts: Vec<Record>,
}

impl Book {
    /// Reads the texts.
    pub(crate) fn open() -> Book {
        Book::bind(ALL, TEXTS.iter().flat_map(|text| records(text)).collect())
    }

    /// Binds checks and records. A check of which nothing is written is explained by its own fields and its area's part.
    fn bind(checks: &'static [&'static Check], records: Vec<Record>) -> Book {
        let is_part = |record: &Record| record.name.starts_with(|first: char| first.is_ascii_lowercase());
        let (parts, mut records): (Vec<Record>, Vec<Record>) = records.into_iter().partition(is_part);
        let mut entries = Vec::with_capacity(records.len() + checks.len());
        for check in checks {
            let written = records.iter().position(|record| record.name == check.code);
            let mut record = written.map(|place| records.remove(place)).unwrap_or_default();
            record.name = check.code;
            record.severity = check.severity.as_str();
            record.area = part_of(check.area);
            entries.push(Entry { record, check: Some(check) });
        }
        entries.extend(records.into_iter().map(|record| Entry { record, check: None }));
        for Entry { record, .. } in &mut entries {
            let Some(area) = parts.iter().find(|part| part.name == record.area) else { continue };
            if record.owner.is_empty() {
                record.owner = area.owner;
            }
            if record.lines.is_empty() {
                record.lines.push(Line::Use(area.name));
            }
        }
        Book { entries, parts }
    }

    /// The entry of this name.
    pub(crate) fn entry(&self, name: &str) -> Option<&Entry> {
        self.entries.iter().find(|entry| entry.record.name == name)
    }

    /// The steps of a part.
    pub(crate) fn part(&self, name: &str) -> Vec<&Item> {
        self.parts.iter().find(|part| part.name == name).map(|part| self.plan(part).1).unwrap_or_default()
    }

    /// Whether this part, or one that takes it in, is in a record.
    pub(crate) fn takes_in(&self, record: &Record, name: &str) -> bool {
        record.lines.iter().any(|line| match line {
            Line::Use(part) if *part == name => true,
            Line::Use(part) => self.parts.iter().any(|known| known.name == *part && self.takes_in(known, name)),
            Line::Gather(_) | Line::Step(_) => false,
        })
    }

    /// What to gather and what to do, with all parts in their places.
    pub(crate) fn plan<'a>(&'a self, record: &'a Record) -> (Vec<&'a Item>, Vec<&'a Item>) {
        let (mut gather, mut steps) = (Vec::new(), Vec::new());
        for line in &record.lines {
            match line {
                Line::Gather(item) => gather.push(item),
                Line::Step(item) => steps.push(item),
                Line::Use(name) => {
                    let part = self.parts.iter().find(|part| part.name == *name);
                    let (more_gather, more_steps) = part.map(|part| self.plan(part)).unwrap_or_default();
                    gather.extend(more_gather);
                    steps.extend(more_steps);
                }
            }
        }
        (gather, steps)
    }
}

/// The part that speaks for all checks of an area.
fn part_of(area: Area) -> &'static str {
    match area {
        Area::Integrity => "integrity",
        Area::Capacity => "capacity",
        Area::ControlPlanePath => "path",
        Area::Runtime => "runtime",
        Area::Cni => "cni",
        Area::PodRouting => "routing",
        Area::PacketFilter => "filter",
    }
}

fn records(text: &'static str) -> Vec<Record> {
    let mut records: Vec<Record> = Vec::new();
    for line in text.lines() {
        if let Some(head) = line.strip_prefix("== ") {
            let (name, severity) = head.split_once(' ').unwrap_or((head, ""));
            records.push(Record { name, severity, ..Record::default() });
        } else if let Some(record) = records.last_mut() {
            // A test holds that every line is understood.
            record.field(line);
        }
    }
    records
}

/// What commands repeat, in short: these texts are in the program.
const SHORT: [(&str, &str); 7] = [
    ("%w", "--cluster CLUSTER --worker WORKER_ID"),
    ("%c", "--cluster CLUSTER"),
    ("%i", "ibmcloud ks"),
    ("%d", "%k drain NODE --ignore-daemonsets --delete-emptydir-data"),
    ("%k", "kubectl"),
    ("%n", "-n CALICO_NS"),
    ("%p", "crd.projectcalico.org"),
];

fn long(command: &str) -> String {
    SHORT.iter().fold(command.to_owned(), |command, (short, long)| command.replace(short, long))
}

impl Record {
    /// Takes in a line; `None` if it is none of those that are known.
    fn field(&mut self, line: &'static str) -> Option<()> {
        if line.is_empty() {
            return Some(());
        }
        if let Some(command) = line.strip_prefix('$') {
            let (products, command) = command.split_once(' ')?;
            self.last_item()?.commands.push((products, long(command)));
            return Some(());
        }
        if let Some(more) = line.strip_prefix('|') {
            let (_, command) = self.last_item()?.commands.last_mut()?;
            command.push('\n');
            command.push_str(&long(more));
            return Some(());
        }
        let (field, value) = line.split_once(": ")?;
        let (field, products) = field.split_once('@').unwrap_or((field, ""));
        let item = || Item { products, text: value, commands: Vec::new() };
        match field {
            "owner" => self.owner = value,
            "area" => self.area = value,
            "only" => self.only = value,
            "means" => self.means = value,
            "cause" => self.cause = value,
            "not" => self.not = value,
            "text" => self.texts.push(value),
            "word" => self.words.push(value),
            "symptom" => self.symptoms.push(value),
            "state" => self.states.push(value),
            "ask" => self.ask = value,
            "if" => self.answers.push(value.rsplit_once(" => ")?),
            "after" => self.after = value,
            "see" => self.see = value,
            "gather" => self.lines.push(Line::Gather(item())),
            "step" => self.lines.push(Line::Step(item())),
            "use" => self.lines.push(Line::Use(value)),
            _ => return None,
        }
        Some(())
    }

    fn last_item(&mut self) -> Option<&mut Item> {
        match self.lines.last_mut()? {
            Line::Gather(item) | Line::Step(item) => Some(item),
            Line::Use(_) => None,
        }
    }
}

#[cfg(test)]
#[path = "book_tests.rs"]
mod tests;
