//! The packet filter of legacy ip_tables: only if it holds something, since asking for a table creates it.
//!
//! `/proc/net/ip_tables_names` lists the tables that exist without touching them. Only those are read, with
//! `iptables-legacy-save`, which takes no lock (`/run/xtables.lock` is for changes).

use std::collections::HashSet;
use std::process::Output;
use std::time::Duration;

use iptables::IPTables;

use super::blocking::Blocking;
use super::chains::{Meaning, meaning};
use super::host_root::HostRoot;
use crate::facts::{Backend, BaseChain, Chain, Family, Hook, Jump, LookError, Policy, Reason, Ruleset, Table};

/// For all tables together: each costs a fork, and with 10,000 Services a quarter of a second.
const DEADLINE: Duration = Duration::from_secs(5);

/// There are five tables, with short names.
const NAMES_LIMIT: u64 = 4096;

/// Where legacy ip_tables is asked.
pub(crate) struct LegacySource {
    host: HostRoot,
    blocking: Blocking,
    /// The directory of `ip_tables_names`.
    proc_net: &'static str,
}

impl LegacySource {
    /// A source for the network namespace of this process.
    pub(crate) fn new(host: HostRoot, blocking: Blocking) -> Self {
        LegacySource { host, blocking, proc_net: "/proc/net" }
    }

    /// What ip_tables holds. [`Reason::Missing`] when no table exists: nobody uses it.
    pub(crate) async fn look(&self) -> Result<Ruleset, LookError> {
        let (host, proc_net) = (self.host.clone(), self.proc_net);
        self.blocking.run("legacy iptables", DEADLINE, move || look(&host, proc_net)).await
    }
}

fn look(host: &HostRoot, proc_net: &str) -> Result<Ruleset, LookError> {
    let mut tables = Vec::new();
    for (family, file, program) in [
        (Family::V4, "ip_tables_names", "iptables-legacy-save"),
        (Family::V6, "ip6_tables_names", "ip6tables-legacy-save"),
    ] {
        for table in names(host, &format!("{proc_net}/{file}"))? {
            tables.push(
                parse(family, &save(program, &table)?)
                    .map_err(|why| LookError::new(format!("{program} -t {table}"), Reason::Malformed, why))?,
            );
        }
    }
    if tables.is_empty() {
        return Err(LookError::new("legacy iptables", Reason::Missing, "no table exists"));
    }
    Ok(Ruleset { backend: Backend::Legacy, generation: None, tables })
}

/// The tables that exist; none when the file does not, because the module is not loaded.
fn names(host: &HostRoot, path: &str) -> Result<Vec<String>, LookError> {
    match host.read_text(path, NAMES_LIMIT) {
        Ok(text) => Ok(text.split_whitespace().map(str::to_owned).collect()),
        Err(error) if error.reason == Reason::Missing => Ok(Vec::new()),
        Err(mut error) => {
            if error.reason == Reason::Denied {
                error.detail.push_str(": run as root");
            }
            Err(error)
        }
    }
}

/// What a save program prints about one table.
fn save(program: &'static str, table: &str) -> Result<String, LookError> {
    let what = || format!("{program} -t {table}");
    // `has_wait` off: the save programs know no `--wait`. Nothing but `execute` may be called: it alone hands out the
    // exit status, all others turn a failure into an empty answer.
    let crate_door = IPTables { cmd: program, has_check: true, has_wait: false, is_numeric: false };
    let Output { status, stdout, stderr } =
        crate_door.execute(table, "").map_err(|error| match error.downcast_ref::<std::io::Error>() {
            Some(error) if error.kind() == std::io::ErrorKind::NotFound => LookError::new(
                what(),
                Reason::Unsupported,
                format!("legacy tables exist, but there is no program {program}; install the package iptables"),
            ),
            Some(error) => LookError::io(what(), error),
            None => LookError::new(what(), Reason::Failed, error.to_string()),
        })?;
    if status.success() {
        return Ok(
            String::from_utf8(stdout).unwrap_or_else(|error| String::from_utf8_lossy(error.as_bytes()).into_owned())
        );
    }
    let said = String::from_utf8_lossy(&stderr);
    let reason = if said.contains("Permission denied") || said.contains("must be root") {
        Reason::Denied
    } else {
        Reason::Failed
    };
    Err(LookError::new(what(), reason, format!("{status}: {}", said.trim())))
}

/// One table as `iptables-save` prints it: `*TABLE`, `:CHAIN POLICY [counters]`, `-A CHAIN ...`, `COMMIT`.
fn parse(family: Family, text: &str) -> Result<Table, &'static str> {
    let mut lines = text.lines().filter(|line| !line.starts_with('#') && !line.is_empty());
    let name = lines.next().and_then(|line| line.strip_prefix('*')).ok_or("the output does not begin with a table")?;
    let mut table =
        Table { family, name: name.to_owned(), chains: Vec::new(), per_object_chains: 0, foreign_chains: 0 };
    // The chains that exist: a rule's target is one of them, or a verdict, or an extension such as MASQUERADE.
    let mut all = HashSet::new();
    let mut positions = Vec::new();
    for line in lines {
        if line == "COMMIT" {
            return Ok(table);
        } else if let Some(chain) = line.strip_prefix(':') {
            let mut words = chain.split(' ');
            let chain = words.next().filter(|name| !name.is_empty()).ok_or("a chain has no name")?;
            all.insert(chain);
            declare(&mut table, chain, words.next());
        } else if let Some(rule) = line.strip_prefix("-A ") {
            let (chain, rule) = rule.split_once(' ').unwrap_or((rule, ""));
            let Some(index) = table.chains.iter().position(|it| it.base.is_some() && it.name == chain) else {
                continue;
            };
            positions.resize(table.chains.len(), 0);
            if let Some(target) = target(rule).filter(|target| all.contains(target)) {
                table.chains[index].jumps.push(Jump { position: positions[index], target: target.to_owned() });
            }
            positions[index] += 1;
        }
    }
    Err("the output ends before COMMIT")
}

/// Files a chain where its name and policy say; chains that users made have the policy `-`.
fn declare(table: &mut Table, chain: &str, policy: Option<&str>) {
    let policy = match policy {
        Some("ACCEPT") => Some(Policy::Accept),
        Some("DROP") => Some(Policy::Drop),
        _ => None,
    };
    let base = policy.zip(hook(chain)).map(|(policy, hook)| BaseChain { hook, policy });
    match meaning(&table.name, chain) {
        Meaning::PerObject => table.per_object_chains += 1,
        Meaning::Foreign if base.is_none() => table.foreign_chains += 1,
        _ => table.chains.push(Chain { name: chain.to_owned(), base, jumps: Vec::new() }),
    }
}

fn hook(chain: &str) -> Option<Hook> {
    Some(match chain {
        "PREROUTING" => Hook::Prerouting,
        "INPUT" => Hook::Input,
        "FORWARD" => Hook::Forward,
        "OUTPUT" => Hook::Output,
        "POSTROUTING" => Hook::Postrouting,
        _ => return None,
    })
}

/// What a rule jumps or goes to. A comment may hold ` -j `, but then in quotes (`xtables_save_string`).
fn target(rule: &str) -> Option<&str> {
    let mut rest = rule;
    loop {
        let (word, after) = word(rest)?;
        if word == "-j" || word == "-g" {
            return self::word(after).map(|(target, _)| target);
        }
        rest = after;
    }
}

/// The next word, and what follows it; a quoted one whole, with its quotes.
fn word(text: &str) -> Option<(&str, &str)> {
    let text = text.trim_start_matches(' ');
    let (mut quoted, mut escaped) = (false, false);
    let end = text
        .bytes()
        .position(|byte| {
            let ends = byte == b' ' && !quoted;
            quoted ^= byte == b'"' && !escaped;
            escaped = byte == b'\\' && !escaped;
            ends
        })
        .unwrap_or(text.len());
    (end > 0).then(|| text.split_at(end))
}

/// The fuzz target's door.
#[cfg(fuzzing)]
pub(crate) fn fuzz(data: &[u8]) {
    if let Ok(table) = parse(Family::V4, &String::from_utf8_lossy(data)) {
        let rules_only_of_base_chains = table.chains.iter().all(|chain| chain.base.is_some() || chain.jumps.is_empty());
        assert!(rules_only_of_base_chains, "{table:?}");
    }
}

#[cfg(test)]
mod tests;
