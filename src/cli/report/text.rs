//! The report as people read it. Pure: everything that came from the cluster is escaped on its way into the text.

mod whole;

use std::fmt::Write as _;

use jiff::Timestamp;

use crate::aggregator::report::{
    AgentState, ChangeBefore, ClusterReport, Counts, FindingCount, Group, NodeReport, Scope,
};
use crate::checks::Severity;
use crate::cli::terminal::{Ink, Paint, Table, age, escaped};
use crate::facts::utc as time;
use crate::verdict::{Raised, Status, WorkerState, codes};

/// Normal workers are listed when there are no more workers than this.
const FEW: usize = 20;
/// Workers whose details are told, when there are more: the rest is left to `nodevitals report NODE`.
const DETAILED: usize = 10;

/// The report, or one worker of it in full.
pub(super) fn render(report: &ClusterReport, only: Option<&str>, all: bool, paint: Paint) -> String {
    let mut out = String::new();
    if let Some(node) = only.and_then(|only| report.nodes.iter().find(|node| node.name == only)) {
        whole::node(&mut out, report, node, paint);
        return out;
    }
    let ink = [WorkerState::Critical, WorkerState::Warning, WorkerState::Unknown]
        .into_iter()
        .find(|state| report.workers.of(*state) > 0);
    let summary = escaped(&report.summary);
    let mut first = String::new();
    paint.paragraph(&mut first, 0, &summary);
    for line in first.lines() {
        let _ = writeln!(out, "{}", paint.ink(ink.map_or(Ink::Good, Ink::of_state), line));
    }
    if !report.view.complete {
        return out;
    }
    findings(&mut out, report, paint);
    around(&mut out, report, paint);
    unseen(&mut out, report, paint);
    groups(&mut out, "ZONE", &report.zones, paint);
    groups(&mut out, "POOL", &report.pools, paint);
    nodes(&mut out, report, all, paint);
    details(&mut out, report, all, paint);
    if let Some(worst) = report.nodes.iter().find(|node| !node.deleting) {
        then(&mut out, worst, paint);
    }
    out
}

fn findings(out: &mut String, report: &ClusterReport, paint: Paint) {
    if report.findings.is_empty() {
        return;
    }
    let mut table = Table::new(&["FINDING", "SEVERITY", "WORKERS", "SUSPECT"]);
    for finding in &report.findings {
        let scope = match finding.scope {
            Scope::Few | Scope::None => "",
            Scope::Subset => " (a large part)",
            Scope::Most => " (most)",
            Scope::All => " (all)",
        };
        table.row(vec![
            (escaped(&finding.code).into_owned(), None),
            (severity(finding.severity).to_owned(), Some(Ink::of_severity(finding.severity))),
            (format!("{} of {}{scope}", finding.nodes, report.workers.total), None),
            (word(finding.shared.as_deref()), None),
        ]);
    }
    out.push('\n');
    table.print(out, paint);
    for finding in report
        .findings
        .iter()
        .filter(|finding| finding.next.is_some() || !(finding.suspects.is_empty() && finding.before.is_empty()))
    {
        widespread(out, finding, report.generated_at, paint);
    }
}

/// What many workers have, or what those that have it share.
fn widespread(out: &mut String, finding: &FindingCount, now: Timestamp, paint: Paint) {
    let code = paint.ink(Ink::Strong, &escaped(&finding.code));
    let since = finding.since.map_or(String::new(), |since| format!(", since {} ({})", time(since), age(since, now)));
    let _ = writeln!(out, "\n{code}  {} of {} workers that count{since}", finding.counted, finding.eligible);
    for (number, suspect) in finding.suspects.iter().enumerate() {
        let label = if number == 0 { "Suspect" } else { "Or" };
        paint.paragraph(out, 2, &format!("{label}: {} (p = {:.1e})", escaped(&suspect.sentence), suspect.p));
    }
    changes(out, &finding.before, finding.since, paint);
    next(out, 2, finding.next.as_deref(), paint);
}

/// What changed before.
fn changes(out: &mut String, before: &[ChangeBefore], since: Option<Timestamp>, paint: Paint) {
    let Some(since) = since.filter(|_| !before.is_empty()) else { return };
    let told = |change: &ChangeBefore| {
        let by = if change.by.is_empty() { String::new() } else { format!(" by {}", change.by) };
        let when =
            if change.at > since { "just after".to_owned() } else { format!("{} before", age(change.at, since)) };
        format!("{}{by}, {when}", change.what)
    };
    let told: Vec<String> = before.iter().map(told).collect();
    paint.paragraph(out, 2, &format!("Changed before: {}.", escaped(&told.join("; "))));
}

/// What is wrong with the cluster.
fn around(out: &mut String, report: &ClusterReport, paint: Paint) {
    for finding in &report.cluster {
        let code = paint.ink(Ink::Strong, &escaped(&finding.code));
        let severity = paint.ink(Ink::of_severity(finding.severity), severity(finding.severity));
        let more = finding.nodes.saturating_sub(finding.workers.len());
        let more = if more > 0 { format!(" and {more} more") } else { String::new() };
        let word = if finding.noticed { "noticed" } else { "since" };
        let since = |since| format!(", {word} {} ({})", time(since), age(since, report.generated_at));
        let since = finding.since.map_or(String::new(), since);
        // What concerns no worker more than another has no number.
        let on = if finding.nodes > 0 {
            format!(", {} of {} workers", finding.nodes, report.workers.total)
        } else {
            String::new()
        };
        let _ = writeln!(out, "\n{code}  {severity}{on}{since}");
        paint.paragraph(out, 2, &sentence(&finding.detail));
        changes(out, &finding.before, finding.since, paint);
        next(out, 2, Some(&finding.next), paint);
        if !finding.workers.is_empty() {
            paint.paragraph(out, 2, &format!("On: {}{more}", escaped(&finding.workers.join(", "))));
        }
    }
    if report.cluster_more > 0 {
        let _ = writeln!(out, "\nAnd {} more about the cluster, less bad than these.", report.cluster_more);
    }
}

/// What could not be looked at, so that silence about it is no all-clear.
fn unseen(out: &mut String, report: &ClusterReport, paint: Paint) {
    for cannot in &report.view.cannot_look {
        let since = format!("since {} ({})", time(cannot.since), age(cannot.since, report.generated_at));
        let line = format!("Cannot look at {}: {}, {since}.", cannot.what.join(", "), cannot.why.trim_end_matches('.'));
        out.push('\n');
        paint.paragraph(out, 0, &escaped(&line));
        if !cannot.codes.is_empty() {
            paint.paragraph(out, 2, &escaped(&format!("Unknown for that: {}.", cannot.codes.join(", "))));
        }
    }
}

fn severity(severity: Severity) -> &'static str {
    match severity {
        Severity::Critical => "Critical",
        Severity::Warning => "Warning",
        Severity::Info => "Info",
    }
}

fn groups(out: &mut String, heading: &str, groups: &[Group], paint: Paint) {
    if groups.is_empty() {
        return;
    }
    let mut table = Table::new(&[heading, "WORKERS", "CRITICAL", "WARNING", "UNKNOWN", "NORMAL"]);
    for Group { name, workers } in groups {
        let name = if name.is_empty() { "(none)".into() } else { escaped(name) };
        let mut row = vec![(name.into_owned(), None), (workers.total.to_string(), None)];
        row.extend(WorkerState::ALL.map(|state| count(workers, state)));
        table.row(row);
    }
    out.push('\n');
    table.print(out, paint);
}

fn count(workers: &Counts, state: WorkerState) -> (String, Option<Ink>) {
    match workers.of(state) {
        0 => ("-".to_owned(), Some(Ink::Faint)),
        count => (count.to_string(), Some(Ink::of_state(state))),
    }
}

fn nodes(out: &mut String, report: &ClusterReport, all: bool, paint: Paint) {
    let everyone = all || report.nodes.len() <= FEW;
    let mut table = Table::new(&["NAME", "STATE", "AGE", "ZONE", "POOL", "REASON"]);
    let mut hidden = 0;
    for node in &report.nodes {
        if !everyone && node.state == WorkerState::Normal {
            hidden += 1;
            continue;
        }
        table.row(vec![
            (escaped(&node.name).into_owned(), None),
            (node.state.as_str().to_owned(), Some(Ink::of_state(node.state))),
            (node.since.map(|since| age(since, report.generated_at)).unwrap_or_default(), None),
            (word(node.zone.as_deref()), None),
            (word(node.pool.as_deref()), None),
            (remarks(node), None),
        ]);
    }
    if hidden < report.nodes.len() {
        out.push('\n');
        table.print(out, paint);
    }
    if hidden > 0 {
        let line = format!("{hidden} Normal workers are not listed; --all lists them.");
        let _ = writeln!(out, "{}", paint.ink(Ink::Faint, &line));
    }
}

fn word(text: Option<&str>) -> String {
    escaped(text.unwrap_or_default()).into_owned()
}

/// The reason, and what else is worth a glance.
fn remarks(node: &NodeReport) -> String {
    let mut parts: Vec<String> = node.reason.iter().map(|reason| escaped(reason).into_owned()).collect();
    let known = matches!(node.state, WorkerState::Critical | WorkerState::Warning);
    if let more @ 1.. = node.findings.len().saturating_sub(1)
        && known
    {
        parts.push(format!("+{more} more"));
    }
    match node.ready.as_ref().map(|ready| ready.status) {
        Some(Status::False) => parts.push("NotReady".to_owned()),
        Some(Status::Unknown) => parts.push("kubelet silent".to_owned()),
        Some(Status::True) | None => {}
    }
    if node.agent.state == AgentState::Late {
        parts.push("agent not Ready".to_owned());
    }
    if node.cordoned {
        parts.push("cordoned".to_owned());
    }
    if node.deleting {
        parts.push("being deleted".to_owned());
    }
    parts.join(", ")
}

fn details(out: &mut String, report: &ClusterReport, all: bool, paint: Paint) {
    let bad: Vec<&NodeReport> =
        report.nodes.iter().filter(|node| node.state != WorkerState::Normal && !node.deleting).collect();
    let shown = if all { bad.len() } else { bad.len().min(DETAILED) };
    for node in &bad[..shown] {
        out.push('\n');
        headline(out, node, report.generated_at, paint);
        if let Some(detail) = &node.detail {
            paint.paragraph(out, 2, &sentence(detail));
        }
        next(out, 2, node.next.as_deref(), paint);
        if matches!(node.state, WorkerState::Critical | WorkerState::Warning) {
            if let Some(root) = node.findings.first() {
                causes(out, node, root, paint);
            }
            for other in node.findings.iter().skip(1).filter(|finding| !is_told_with_its_root(node, finding)) {
                let line =
                    format!("Also {}: {} {}", severity(other.severity), escaped(&other.code), sentence(&other.detail));
                paint.paragraph(out, 2, &line);
            }
        }
    }
    if shown < bad.len() {
        let line = format!("\nDetails of {} more: nodevitals report NODE, or --all.", bad.len() - shown);
        let _ = writeln!(out, "{}", paint.ink(Ink::Faint, &line));
    }
}

/// Whether a finding is explained by another that is listed, and so is told with that.
fn is_told_with_its_root(node: &NodeReport, finding: &Raised) -> bool {
    node.findings.iter().any(|root| finding.is_caused_by(root))
}

/// What a root explains, by code.
fn causes(out: &mut String, node: &NodeReport, root: &Raised, paint: Paint) {
    if let Some(causes) = codes(node.findings.iter().filter(|finding| finding.is_caused_by(root))) {
        paint.paragraph(out, 2, &format!("Causes: {}", sentence(&causes)));
    }
}

fn headline(out: &mut String, node: &NodeReport, now: Timestamp, paint: Paint) {
    let name = paint.ink(Ink::Strong, &escaped(&node.name));
    let state = paint.ink(Ink::of_state(node.state), node.state.as_str());
    let since = node.since.map_or(String::new(), |since| format!(" since {} ({})", time(since), age(since, now)));
    let reason = node.reason.as_deref().map_or(String::new(), |reason| format!(": {}", escaped(reason)));
    let _ = writeln!(out, "{name}  {state}{since}{reason}");
}

/// With a full stop.
fn sentence(text: &str) -> String {
    let text = escaped(text);
    let text = text.trim_end();
    if text.is_empty() || text.ends_with(['.', '!', '?', '`']) { text.to_owned() } else { format!("{text}.") }
}

fn next(out: &mut String, indent: usize, next: Option<&str>, paint: Paint) {
    if let Some(next) = next.filter(|next| !next.is_empty()) {
        let mut text = String::new();
        paint.paragraph(&mut text, indent, &format!("Next: {}", sentence(next)));
        out.push_str(&text.replacen("Next:", &paint.ink(Ink::Strong, "Next:"), 1));
    }
}

/// The commands that come next.
fn then(out: &mut String, node: &NodeReport, paint: Paint) {
    let known = matches!(node.state, WorkerState::Critical | WorkerState::Warning);
    let Some(reason) = node.reason.as_deref().filter(|_| known) else { return };
    let (reason, name) = (escaped(reason), escaped(&node.name));
    let line = format!(
        "Then: `nodevitals explain {reason}` says what it means, `nodevitals repair {name}` what may be done now."
    );
    out.push('\n');
    paint.paragraph(out, 0, &line);
}

#[cfg(test)]
mod tests;
