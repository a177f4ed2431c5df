//! `nodevitals check`: one look at this machine.

use std::fmt::Write as _;
use std::path::{Path, PathBuf};
use std::process::ExitCode;

use anyhow::Context as _;

use super::terminal::{self, Paint, clean, wrap};
use super::{Output, failed};
use crate::agent::{self, HostRoot, Report};
use crate::bundle::{Facts, Manifest};
use crate::checks::{Area, Severity};
use crate::config::Config;
use crate::verdict::{Raised, Status, Verdict, WorkerState, codes};

/// Options of `nodevitals check`.
#[derive(Debug, clap::Args)]
pub(super) struct Options {
    /// How to print it; json and yaml hold everything that was seen
    #[arg(short, long, value_enum, default_value = "table")]
    output: Output,

    /// Where the node's root directory is
    #[arg(long, default_value = "/", value_name = "DIR")]
    host_root: PathBuf,

    /// Configuration file (YAML) with thresholds; unknown keys are refused
    #[arg(long, value_name = "FILE")]
    config: Option<PathBuf>,

    /// Judge what a bundle of `nodevitals gather` holds, a directory or a tar archive, instead of this machine
    #[arg(long, value_name = "BUNDLE", conflicts_with = "host_root")]
    from: Option<PathBuf>,
}

pub(super) async fn run(options: &Options) -> ExitCode {
    let config = match Config::load(options.config.as_deref()) {
        Ok(config) => config,
        Err(error) => return failed(&error),
    };
    let report = match &options.from {
        Some(bundle) => again(bundle, &config),
        None => look(&options.host_root, &config).await,
    };
    let report = match report {
        Ok(report) => report,
        Err(error) => return failed(&error),
    };
    match options.output.write(|| &report, || table(&report, Paint::stdout())) {
        Ok(text) => super::terminal::print(&text),
        Err(error) => return failed(&error.context("cannot write the report")),
    }
    ExitCode::from(report.verdict.state.exit_status())
}

async fn look(root: &Path, config: &Config) -> anyhow::Result<Report> {
    let host = HostRoot::new(root);
    anyhow::ensure!(
        host.path("/proc/self").exists(),
        "--host-root {}: holds no mounted /proc; give the directory where a node's / is mounted",
        root.display()
    );
    Ok(agent::look_once(&host, config).await)
}

/// Judges a bundle, and says on standard error which.
fn again(bundle: &Path, config: &Config) -> anyhow::Result<Report> {
    let (manifest, facts) = crate::bundle::read(bundle).context("--from")?;
    let Manifest { node, begun_at, version, .. } = &manifest;
    let taken = facts.as_ref().map_or(*begun_at, |facts| facts.snapshot.taken_at);
    terminal::note(&format!(
        "this is {} at {}, from a bundle of nodevitals {}",
        clean(node),
        crate::facts::utc(taken),
        clean(version)
    ));
    let facts = facts.unwrap_or_else(|| {
        terminal::note("the bundle lacks the facts, so nothing is known; its SUMMARY.txt and manifest.json say why");
        Facts::none(&manifest)
    });
    Ok(agent::judge_again(facts, config))
}

/// The report that a person reads.
pub(super) fn table(report: &Report, paint: Paint) -> String {
    let verdict = &report.verdict;
    let identity = &report.snapshot.identity;
    let mut text = String::new();
    let state = paint.state(verdict.state, verdict.state.as_str());
    // Writing to a String cannot fail; so in all of this file.
    writeln!(text, "{}  {state}  {}\n", paint.bold(&clean(&identity.hostname)), headline(verdict)).ok();
    for area in Area::ALL {
        area_line(&mut text, verdict, area, paint);
    }
    text.push('\n');
    for line in facts(report) {
        writeln!(text, "  {line}").ok();
    }
    for root in verdict.findings.iter().filter(|finding| finding.caused_by.is_none()) {
        finding_lines(&mut text, root, paint);
        if let Some(causes) = codes(verdict.findings.iter().filter(|finding| finding.is_caused_by(root))) {
            let line = format!("Causes: {}", clean(&causes));
            writeln!(text, "{}", wrap(&line, "  ", super::terminal::width())).ok();
        }
    }
    text
}

fn headline(verdict: &Verdict) -> String {
    match (verdict.root(), verdict.state) {
        (Some(root), _) => {
            let causes = verdict.problems().filter(|finding| finding.is_caused_by(root)).count();
            let others = verdict.problems().count() - 1 - causes;
            let causes = if causes > 0 { format!(" (causes {causes} more)") } else { String::new() };
            let more = if others > 0 { format!(" and {others} more") } else { String::new() };
            format!("{}{causes}{more}", root.code)
        }
        (None, WorkerState::Unknown) => "no problem found, but not everything could be looked at".to_owned(),
        (None, _) => "no problem found".to_owned(),
    }
}

fn area_line(text: &mut String, verdict: &Verdict, area: Area, paint: Paint) {
    let Some(condition) = verdict.condition(area.condition()) else { return };
    let worst = verdict.findings.iter().filter(|finding| finding.area == area).map(|finding| finding.severity).max();
    let (mark, note) = match (condition.status, worst) {
        (Status::True, Some(Severity::Critical)) => {
            (paint.state(WorkerState::Critical, "critical"), condition.reason.clone())
        }
        (Status::True, _) => (paint.state(WorkerState::Warning, "warning "), condition.reason.clone()),
        (Status::Unknown, _) => (paint.state(WorkerState::Unknown, "unknown "), clean(&condition.message)),
        (Status::False, _) if condition.reason == crate::verdict::NOT_APPLICABLE => {
            (paint.dim("-       "), clean(&condition.message))
        }
        (Status::False, _) => (paint.state(WorkerState::Normal, "ok      "), String::new()),
    };
    let line = format!("  {:<20} {mark}  {note}", area.title());
    writeln!(text, "{}", line.trim_end()).ok();
}

fn finding_lines(text: &mut String, finding: &Raised, paint: Paint) {
    let state = match finding.severity {
        Severity::Critical => WorkerState::Critical,
        Severity::Warning => WorkerState::Warning,
        Severity::Info => WorkerState::Normal,
    };
    let width = super::terminal::width();
    let since = finding.since.strftime("%H:%M:%S UTC");
    writeln!(text, "\n{} {}  seen {since}", paint.state(state, finding.severity.as_str()), paint.bold(&finding.code))
        .ok();
    writeln!(text, "{}", wrap(&clean(&finding.detail), "  ", width)).ok();
    writeln!(text, "{}", wrap(&format!("Next: {}", clean(&finding.next)), "  ", width)).ok();
}

/// The page of numbers: what was seen, so that a person can compare.
fn facts(report: &Report) -> Vec<String> {
    let now = &report.snapshot;
    let mut lines = Vec::new();
    if let Some(routing) = now.routing.get() {
        let protocols = routing
            .by_protocol
            .iter()
            .map(|(family, protocol, count)| format!("{count} {family} {}", crate::facts::protocol_name(*protocol)));
        let protocols: Vec<String> = protocols.collect();
        lines.push(format!(
            "routes       {}",
            if protocols.is_empty() { "none".to_owned() } else { protocols.join(", ") }
        ));
        for route in &routing.defaults {
            let hops: Vec<String> =
                route.next_hops.iter().map(|(gateway, link)| hop(routing, *gateway, *link)).collect();
            lines.push(format!("default      {} {}", route.family, hops.join(", ")));
        }
    }
    for ruleset in [&now.nftables, &now.legacy].into_iter().filter_map(crate::facts::Seen::get) {
        let tables = ruleset.tables.iter().map(|table| {
            let chains =
                table.chains.len() as u64 + u64::from(table.per_object_chains) + u64::from(table.foreign_chains);
            format!("{} {} {chains} chains", table.family, clean(&table.name))
        });
        let tables: Vec<String> = tables.collect();
        lines.push(format!(
            "{:<12} {}",
            ruleset.backend.to_string().replace("legacy iptables", "legacy"),
            if tables.is_empty() { "no tables".to_owned() } else { tables.join(", ") }
        ));
    }
    if let Some(conntrack) = now.conntrack.get() {
        lines.push(format!("conntrack    {} of {}", conntrack.count, conntrack.max));
    }
    let bytes = crate::checks::space::human_bytes;
    for filesystem in now.filesystems.get().into_iter().flatten().filter(|filesystem| !filesystem.roles.is_empty()) {
        let Some(space) = filesystem.space.get() else { continue };
        let roles: Vec<String> = filesystem.roles.iter().map(ToString::to_string).collect();
        lines.push(format!(
            "disk         {} {} of {} available, {} of {} inodes ({})",
            clean(&filesystem.mount_point),
            bytes(space.bytes_available),
            bytes(space.bytes),
            space.inodes_available,
            space.inodes,
            roles.join(", "),
        ));
    }
    if let Some(memory) = now.memory.get() {
        lines.push(format!("memory       {} of {} available", bytes(memory.available), bytes(memory.total)));
    }
    if let Some(status) = now.runtime.status.get() {
        let count = now.runtime.sandboxes.get().map_or_else(|| "?".to_owned(), |sandboxes| sandboxes.len().to_string());
        lines.push(format!("runtime      {} {}, {count} pods", clean(&status.name), clean(&status.version)));
    }
    lines.extend(now.control_plane.get().map(master));
    lines
}

fn master(path: &crate::facts::ControlPlanePath) -> String {
    let answer = match path.kubelet.end {
        crate::facts::PathEnd::Answered(status) => format!("answers {status}"),
        _ => "no answer".to_owned(),
    };
    format!("master       {} {answer}", clean(&path.server))
}

fn hop(routing: &crate::facts::Routing, gateway: Option<std::net::IpAddr>, link: Option<u32>) -> String {
    let link = link.map_or_else(String::new, |link| format!("dev {}", clean(&routing.link_name(link))));
    match gateway {
        Some(gateway) => format!("via {gateway} {link}"),
        None => link,
    }
}
