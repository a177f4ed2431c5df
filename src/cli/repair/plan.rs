//! Which ladder, which step of it is next, and whether it may be taken now. Pure.
//!
//! The remedies of a few workers and of many are opposites: what cures one worker makes an outage of forty. So the scope
//! comes first, then the root finding's code, and of the ladder that it leads to one step at a time.

use serde::Serialize;

use super::ladder::{self, By, Need, Step};
use super::memory::Outcome;
use super::situation::{Pod, Situation};
use crate::aggregator::report::{AgentState, Scope};
use crate::cli::explain::{Book, Item};
use crate::facts::utc as time;

/// Findings about the cluster that are no single worker's, whatever else is on it.
const WIDESPREAD: [&str; 4] =
    ["CalicoNodeAbsent", "CalicoNodeFailingSubset", "CalicoNodeFailingWidespread", "MasterUnreachableClusterwide"];

/// What is to be done.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
#[serde(rename_all = "camelCase")]
pub(super) struct Plan {
    pub(super) verdict: Verdict,
    /// All of it in one sentence.
    pub(super) sentence: String,
    /// Whose steps these are: `calico-node`, `worker`, `BGP password`, `none`, ...
    pub(super) ladder: &'static str,
    pub(super) steps: Vec<Shown>,
    /// Key of the next step.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(super) next: Option<&'static str>,
}

/// What the plan comes to.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "camelCase")]
pub(super) enum Verdict {
    /// Nothing is to be repaired.
    Healthy,
    /// The next step is one that this command does with `--yes`.
    Ready,
    /// The next step is a person's.
    Yours,
    /// The next step would do harm, or nobody knows whether it would.
    Refused,
}

/// A step as it is shown.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
#[serde(rename_all = "camelCase")]
pub(super) struct Shown {
    pub(super) key: &'static str,
    pub(super) text: &'static str,
    /// Whose it is.
    pub(super) by: By,
    pub(super) status: Status,
    /// What is lost by it.
    #[serde(skip_serializing_if = "str::is_empty")]
    pub(super) destroys: &'static str,
    /// By what it is seen that it worked.
    #[serde(skip_serializing_if = "str::is_empty")]
    pub(super) verify: &'static str,
    pub(super) commands: Vec<String>,
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub(super) needs: Vec<Need>,
}

/// How a step stands.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "camelCase")]
pub(super) enum Status {
    Done,
    /// It was done, and what was wrong is still there.
    NotCured,
    Next,
    Later,
}

impl Plan {
    fn stop(verdict: Verdict, sentence: String) -> Plan {
        Plan { verdict, sentence, ladder: "none", steps: Vec::new(), next: None }
    }
}

/// What is to be done on this worker now.
pub(super) fn plan(situation: &Situation, book: &Book) -> Plan {
    if let Some(sentence) = must_not_be_touched(situation) {
        return Plan::stop(Verdict::Refused, sentence);
    }
    let name = &situation.node.name;
    let steps: &[&Step] = match (&situation.root, kind(situation, book)) {
        // A ladder is left at the first step that cures, and never without letting pods in again.
        (_, Kind::None) if cordoned_by_us(situation) => &[&ladder::UNCORDON],
        (_, Kind::None) if situation.node.cordoned => {
            return Plan::stop(
                Verdict::Healthy,
                format!(
                    "nothing is to be repaired on {name}; it is cordoned, but not by a repair: who did it lets pods in again"
                ),
            );
        }
        (Some(root), Kind::Wide) => return wide(situation, book, &root.code),
        (Some(root), Kind::Guided) => return guided(situation, book, &root.code),
        (_, Kind::Calico) => &ladder::CALICO,
        (_, Kind::Worker) => &ladder::WORKER,
        (_, Kind::Bgp) => &ladder::BGP,
        (_, Kind::None | Kind::Wide | Kind::Guided) => {
            return Plan::stop(Verdict::Healthy, format!("nothing is to be repaired on {name}"));
        }
    };
    climb(situation, book, steps)
}

/// Whether this repair's own cordon is still on the Node.
fn cordoned_by_us(situation: &Situation) -> bool {
    situation.node.cordoned && situation.node.memory.as_ref().is_some_and(|memory| memory.cordoned)
}

enum Kind {
    None,
    Wide,
    Calico,
    Worker,
    Bgp,
    Guided,
}

/// What leads to which ladder: the parts that the explanation of the code takes in.
fn kind(situation: &Situation, book: &Book) -> Kind {
    let Some(root) = &situation.root else { return Kind::None };
    let Some(entry) = book.entry(&root.code) else { return Kind::Guided };
    let takes_in = |part: &str| book.takes_in(&entry.record, part);
    // This is a cure of the cluster, and no worker is touched by it.
    if takes_in("bgp-secret") {
        return if situation.bgp.is_some() { Kind::Bgp } else { Kind::Guided };
    }
    if root.scope > Scope::Few || situation.around.iter().any(|code| WIDESPREAD.contains(&code.as_str())) {
        return Kind::Wide;
    }
    let own_ladder = if takes_in("calico-ladder") {
        Kind::Calico
    } else if takes_in("worker-ladder") {
        Kind::Worker
    } else {
        Kind::Guided
    };
    // What the repair was begun for is over, and what is left has no ladder: the worker takes pods again.
    let cured = situation.open().is_some_and(|memory| memory.code != root.code);
    if matches!(own_ladder, Kind::Guided) && cured && cordoned_by_us(situation) { Kind::None } else { own_ladder }
}

/// Why nothing at all may be done to this Node now.
fn must_not_be_touched(situation: &Situation) -> Option<String> {
    let node = &situation.node;
    let name = &node.name;
    if node.deleting {
        return Some(format!(
            "{name} is being deleted: nothing can be done on it any more (`nodevitals explain WorkerDeleting`)"
        ));
    }
    if let Some(twin) = &node.twin {
        return Some(format!(
            "{name} is only left over from before a worker was updated or reloaded, {twin} is in its place: repair that one; once it is Ready, `kubectl delete node {name}`"
        ));
    }
    let silent = match node.agent {
        AgentState::Missing | AgentState::Stale | AgentState::KubeletSilent => true,
        AgentState::Fresh | AgentState::Late | AgentState::NotSeen => node.unknown,
    };
    let (detail, next) = &node.says;
    silent.then(|| {
        format!("nobody knows what is wrong on {name} now ({detail}), so no step can be shown to help: {next}")
    })
}

/// Up the ladder to the first step that is not done.
fn climb(situation: &Situation, book: &Book, steps: &[&'static Step]) -> Plan {
    let at = steps.iter().position(|step| !(step.done)(situation));
    let mut shown: Vec<Shown> = Vec::new();
    for (number, step) in steps.iter().enumerate() {
        let tried = situation.remembered().and_then(|memory| memory.outcome(step.key));
        let status = match at {
            Some(next) if number == next => Status::Next,
            Some(next) if number > next => Status::Later,
            _ if tried == Some(Outcome::NotCured) => Status::NotCured,
            _ => Status::Done,
        };
        shown.push(show(situation, book, step, status));
    }
    let ladder = ladder::name(steps);
    let Some((step, next)) = at.and_then(|at| Some((steps.get(at)?, shown.get(at)?))) else {
        let sentence = format!(
            "every step was taken and {} is still wrong: see `nodevitals explain CalicoFailureRecurring`, then open a support case with the evidence",
            situation.node.name
        );
        return Plan { verdict: Verdict::Yours, sentence, ladder, steps: shown, next: None };
    };
    let (verdict, sentence) = match next.needs.iter().find(|need| !need.holds) {
        Some(need) => (
            Verdict::Refused,
            format!("{} would do harm now: {}: {}; {}", step.noun, need.what, need.answer, need.safer),
        ),
        None if step.by == By::Command => (Verdict::Ready, format!("{} is next, and may be done now", step.noun)),
        None => (Verdict::Yours, format!("{} is next, and yours: this command does not do it", step.noun)),
    };
    Plan { verdict, sentence, ladder, steps: shown, next: Some(step.key) }
}

/// The words and the commands are those of the explanations.
fn show(situation: &Situation, book: &Book, step: &'static Step, status: Status) -> Shown {
    let items = book.part(step.part);
    let needs = if matches!(status, Status::Next | Status::Later) { step.needs(situation) } else { Vec::new() };
    Shown {
        key: step.key,
        text: items.first().map_or("", |item| item.text),
        by: step.by,
        status,
        destroys: step.destroys,
        verify: step.verify,
        commands: items.iter().flat_map(|item| commands(situation, item)).collect(),
        needs,
    }
}

fn commands(situation: &Situation, item: &Item) -> Vec<String> {
    let platform = &situation.node.platform;
    let of_it = platform.has(item.products).then_some(&item.commands).into_iter().flatten();
    let calico: Option<&Pod> = situation.calico_node();
    of_it
        .filter(|(only, _)| platform.has(only))
        .map(|(_, command)| platform.filled(command, &situation.node.name, calico))
        .collect()
}

/// The steps of an explanation, all of which are a person's.
fn told(situation: &Situation, book: &Book, code: &str) -> Vec<Shown> {
    let entry = book.entry(code);
    let (_, steps) = entry.map(|entry| book.plan(&entry.record)).unwrap_or_default();
    let own = entry.and_then(|entry| entry.check).map(|check| (check.next_step, Vec::new()));
    let steps = steps.into_iter().filter(|item| situation.node.platform.has(item.products));
    own.into_iter()
        .chain(steps.map(|item| (item.text, commands(situation, item))))
        .map(|(text, commands)| Shown {
            key: "",
            text,
            by: By::Person,
            status: Status::Later,
            destroys: "",
            verify: "",
            commands,
            needs: Vec::new(),
        })
        .collect()
}

/// No ladder leads out of this one: what its explanation says is to be done.
fn guided(situation: &Situation, book: &Book, code: &str) -> Plan {
    Plan {
        verdict: Verdict::Yours,
        sentence: format!("no step on the worker itself cures {code} for certain: do what its explanation says"),
        ladder: "explanation",
        steps: told(situation, book, code),
        next: None,
    }
}

/// A cure of single workers is refused; what to do instead is what the cluster's report says.
fn wide(situation: &Situation, book: &Book, code: &str) -> Plan {
    let found = situation.around.iter().find(|code| WIDESPREAD.contains(&code.as_str()));
    let sentence = match &situation.root {
        Some(root) if root.scope > Scope::Few => {
            let next = root.next.clone().unwrap_or_else(|| {
                format!(
                    "find out what they share and what changed before {}, and gather the evidence of two or three",
                    time(root.since)
                )
            });
            format!(
                "{code} is on {} of {} workers, so no single one is cured for it: {next}",
                root.counted, root.eligible
            )
        }
        _ => format!("{} concerns many workers, so no single one is cured for it", found.map_or(code, String::as_str)),
    };
    let steps = match found {
        Some(found) => told(situation, book, found),
        None => told(situation, book, "CalicoNodeFailingSubset").into_iter().take(1).collect(),
    };
    Plan { verdict: Verdict::Refused, sentence, ladder: "widespread", steps, next: None }
}

#[cfg(test)]
#[path = "plan_tests.rs"]
mod tests;
