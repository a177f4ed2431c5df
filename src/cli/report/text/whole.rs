//! One worker in full: what it is, its conditions, and every finding below its root.

use std::fmt::Write as _;

use jiff::Timestamp;

use super::{around, headline, is_told_with_its_root, next, sentence, severity, then, unseen};
use crate::aggregator::report::{AgentState, ClusterReport, Ended, NodeReport};
use crate::cli::terminal::{Ink, Paint, Table, age, escaped};
use crate::facts::utc as time;
use crate::verdict::{Raised, Status, WorkerState};

pub(super) fn node(out: &mut String, report: &ClusterReport, node: &NodeReport, paint: Paint) {
    let now = report.generated_at;
    headline(out, node, now, paint);
    if let Some(detail) = &node.detail {
        paint.paragraph(out, 2, &sentence(detail));
    }
    next(out, 2, node.next.as_deref(), paint);
    out.push('\n');
    for (key, value) in facts(node, now) {
        let _ = writeln!(out, "{:<10}{value}", format!("{key}:"));
    }
    if !report.view.complete {
        out.push('\n');
        paint.paragraph(out, 0, &escaped(&report.summary));
        return;
    }
    conditions(out, node, now, paint);
    if !node.findings.is_empty() {
        let known = matches!(node.state, WorkerState::Critical | WorkerState::Warning);
        let heading = if known { "Findings" } else { "Findings (the last that the agent said)" };
        let _ = writeln!(out, "\n{}", paint.ink(Ink::Strong, heading));
    }
    let roots = node.findings.iter().filter(|finding| !is_told_with_its_root(node, finding));
    for (number, root) in roots.enumerate() {
        finding(out, &format!("{:>2}. ", number + 1), root, now, paint);
        next(out, 4, Some(&root.next), paint);
        for explained in node.findings.iter().filter(|finding| finding.is_caused_by(root)) {
            finding(out, "    causes ", explained, now, paint);
        }
    }
    if let Some(more) = node.more {
        let _ = writeln!(out, "And {more} more that did not fit on the Node: the agent's own page has them.");
    }
    over(out, node, paint);
    around(out, report, paint);
    unseen(out, report, paint);
    then(out, node, paint);
}

/// What was there and is over.
fn over(out: &mut String, node: &NodeReport, paint: Paint) {
    if !node.episodes.is_empty() {
        let _ = writeln!(out, "\n{}", paint.ink(Ink::Strong, "Over"));
    }
    for Ended { code, since, cleared, .. } in &node.episodes {
        let (from, to, long) = (time(*since), time(*cleared), age(*since, *cleared));
        paint.paragraph(out, 4, &escaped(&format!("{code} from {from} to {to} ({long})")));
    }
}

/// What, where, since when; what to do about it is said once, of the root.
fn finding(out: &mut String, mark: &str, finding: &Raised, now: Timestamp, paint: Paint) {
    let severity = paint.ink(Ink::of_severity(finding.severity), severity(finding.severity));
    let (since, ago) = (time(finding.since), age(finding.since, now));
    let code = paint.ink(Ink::Strong, &escaped(&finding.code));
    let _ = writeln!(out, "{mark}{code}  {severity}, {}, since {since} ({ago})", finding.area.title());
    let indent = if finding.caused_by.is_some() { 6 } else { 4 };
    if !finding.subject.is_empty() {
        paint.paragraph(out, indent, &format!("Where: {}", escaped(&finding.subject)));
    }
    paint.paragraph(out, indent, &sentence(&finding.detail));
}

fn facts(node: &NodeReport, now: Timestamp) -> Vec<(&'static str, String)> {
    let mut facts = Vec::new();
    let ago = |since: Option<Timestamp>| {
        since.map_or(String::new(), |since| format!(" since {} ({})", time(since), age(since, now)))
    };
    let started =
        |at: Option<Timestamp>| at.map_or(String::new(), |at| format!(", runs since {} ({})", time(at), age(at, now)));
    facts.extend(node.zone.as_deref().map(|zone| ("Zone", escaped(zone).into_owned())));
    facts.extend(node.pool.as_deref().map(|pool| ("Pool", escaped(pool).into_owned())));
    facts.extend(node.created.map(|created| ("Joined", format!("{} ({} ago)", time(created), age(created, now)))));
    if let Some(ready) = &node.ready {
        let status = match ready.status {
            Status::True => "Ready".to_owned(),
            Status::False => format!("NotReady ({})", escaped(&ready.reason)),
            Status::Unknown => format!("silent ({})", escaped(&ready.reason)),
        };
        facts.push(("Kubelet", status + &ago(ready.since) + &started(node.kubelet_started)));
    }
    if let Some(runtime) = &node.runtime {
        facts.push(("Runtime", escaped(runtime).into_owned() + &started(node.runtime_started)));
    }
    let agent = match node.agent.state {
        AgentState::Fresh => "there",
        AgentState::Late => "not Ready, for a short time only",
        AgentState::Stale => "not Ready",
        AgentState::Missing => "no Pod",
        AgentState::KubeletSilent => "nobody can say: the kubelet is silent",
        AgentState::NotSeen => "was not looked at",
    };
    let pod = node.agent.pod.as_deref().map_or(String::new(), |pod| format!("Pod {} is ", escaped(pod)));
    let since = if node.agent.state == AgentState::KubeletSilent { String::new() } else { ago(node.agent.since) };
    let pod = if node.agent.state == AgentState::KubeletSilent { String::new() } else { pod };
    facts.push(("Agent", format!("{pod}{agent}{since}")));
    if node.cordoned {
        facts.push(("Cordoned", "yes: no new Pods are scheduled here".to_owned()));
    }
    if node.deleting {
        facts.push(("Deleting", "yes".to_owned()));
    }
    facts
}

fn conditions(out: &mut String, node: &NodeReport, now: Timestamp, paint: Paint) {
    if node.conditions.is_empty() {
        return;
    }
    let mut table = Table::new(&["CONDITION", "STATUS", "AGE", "REASON", "MESSAGE"]);
    let mut before = "";
    for condition in &node.conditions {
        let ink = match condition.status {
            Status::True => Ink::Critical,
            Status::Unknown => Ink::Unknown,
            Status::False => Ink::Good,
        };
        // What a problem is, is told below in full.
        let told_below = condition.status == Status::True && !node.findings.is_empty();
        // A worker whose agent is gone says the same of every condition.
        let said = told_below || condition.message == before;
        let message = if said { String::new() } else { escaped(&condition.message).into_owned() };
        before = &condition.message;
        table.row(vec![
            (escaped(&condition.kind).into_owned(), None),
            (condition.status.as_str().to_owned(), Some(ink)),
            (condition.last_transition_time.map(|since| age(since, now)).unwrap_or_default(), None),
            (escaped(&condition.reason).into_owned(), None),
            (message, Some(Ink::Faint)),
        ]);
    }
    out.push('\n');
    table.print(out, paint);
}
