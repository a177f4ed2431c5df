//! The packet filter of legacy ip_tables: only if it holds something, since asking for a table creates it.
//!
//! `/proc/net/ip_tables_names` lists the tables that exist without touching them. Only those are read, with
//! `iptables-legacy-save`, which takes no lock (`/run/xtables.lock` is for changes).

mod rule;

use std::collections::HashMap;
use std::ops::Range;
use std::process::Output;
use std::time::Duration;

use iptables::IPTables;

use super::blocking::Blocking;
use super::chains::{self, Meaning, meaning};
use super::host_root::HostRoot;
use crate::facts::{
    Backend, BaseChain, Chain, Family, FilterRule, Hook, Jump, LookError, Policy, Reason, Ruleset, ServiceChain, Table,
    rounded,
};

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
    let mut ruleset = Ruleset::empty(Backend::Legacy);
    for (family, file, program) in [
        (Family::V4, "ip_tables_names", "iptables-legacy-save"),
        (Family::V6, "ip6_tables_names", "ip6tables-legacy-save"),
    ] {
        for table in names(host, &format!("{proc_net}/{file}"))? {
            let (table, services) = parse(family, &save(program, &table)?)
                .map_err(|why| LookError::new(format!("{program} -t {table}"), Reason::Malformed, why))?;
            ruleset.tables.push(table);
            ruleset.services.extend(services);
        }
    }
    if ruleset.tables.is_empty() {
        return Err(LookError::new("legacy iptables", Reason::Missing, "no table exists"));
    }
    Ok(ruleset)
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
        crate_door.execute(table, "-c").map_err(|error| match error.downcast_ref::<std::io::Error>() {
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

/// One table as `iptables-save -c` prints it: `*TABLE`, `:CHAIN POLICY [counters]`, `[counters] -A CHAIN ...`, `COMMIT`; and
/// the chains of Services that everything needs.
fn parse(family: Family, text: &str) -> Result<(Table, Vec<ServiceChain>), &'static str> {
    let mut lines = text.lines().filter(|line| !line.starts_with('#') && !line.is_empty());
    let name = lines.next().and_then(|line| line.strip_prefix('*')).ok_or("the output does not begin with a table")?;
    let mut table =
        Table { family, name: name.to_owned(), chains: Vec::new(), per_object_chains: 0, foreign_chains: 0 };
    // The chains that exist: a rule's target is one of them, or a verdict, or an extension such as MASQUERADE. With each the
    // text of its rules, which are printed together.
    let mut all: HashMap<&str, Range<usize>> = HashMap::new();
    for line in lines {
        if line == "COMMIT" {
            let rules = Rules { text, all };
            return Ok((read_rules(table, &rules), services(family, name, &rules)));
        } else if let Some(chain) = line.strip_prefix(':') {
            let mut words = chain.split(' ');
            let chain = words.next().filter(|name| !name.is_empty()).ok_or("a chain has no name")?;
            all.insert(chain, 0..0);
            declare(&mut table, chain, words.next());
        } else if let Some((_, chain, _)) = rule_line(line) {
            // Both are pieces of the same text.
            let start = line.as_ptr() as usize - text.as_ptr() as usize;
            if let Some(range) = all.get_mut(chain) {
                *range = if range.end == 0 { start } else { range.start }..start + line.len();
            }
        }
    }
    Err("the output ends before COMMIT")
}

/// The packet counter of a rule, its chain, and the rest.
fn rule_line(line: &str) -> Option<(Option<u64>, &str, &str)> {
    let (counters, rest) = match line.strip_prefix('[') {
        Some(rest) => rest.split_once("] ").map(|(counters, rest)| (Some(counters), rest))?,
        None => (None, line),
    };
    let rest = rest.strip_prefix("-A ")?;
    let (chain, rest) = rest.split_once(' ').unwrap_or((rest, ""));
    Some((counters.and_then(|it| it.split_once(':')).and_then(|(packets, _)| packets.parse().ok()), chain, rest))
}

/// The rules of a table, still as text.
struct Rules<'a> {
    text: &'a str,
    all: HashMap<&'a str, Range<usize>>,
}

impl Rules<'_> {
    /// The rules of one chain.
    fn of(&self, chain: &str) -> impl Iterator<Item = FilterRule> {
        let range = self.all.get(chain).cloned().unwrap_or_default();
        let lines = self.text[range].lines().filter_map(rule_line).filter(move |(_, it, _)| *it == chain);
        (0..).zip(lines).map(|(position, (packets, _, text))| {
            let mut rule = rule::rule(text, position, |target| self.all.contains_key(target));
            rule.packets = packets.map(rounded);
            rule
        })
    }

    fn fill(&self, chain: &mut Chain) {
        let mut rules = Vec::new();
        for rule in self.of(&chain.name) {
            if let Some(target) = rule.target() {
                chain.jumps.push(Jump { position: rule.position, target: target.to_owned() });
            }
            if rules.len() < Chain::MOST_RULES {
                rules.push(rule);
            } else {
                chain.cut = true;
            }
        }
        chain.rules = Some(rules);
    }
}

fn read_rules(mut table: Table, rules: &Rules<'_>) -> Table {
    for chain in table.chains.iter_mut().filter(|chain| chain.base.is_some()) {
        rules.fill(chain);
    }
    for _ in 0..chains::MOST_FOLLOWED {
        let next = chains::to_follow(&table).or_else(|| chains::host_endpoint_to_follow(&table));
        let Some(name) = next else { break };
        let mut chain = Chain::new(&name, None);
        rules.fill(&mut chain);
        chain.jumps.clear();
        chains::put(&mut table, chain);
    }
    table
}

fn services(family: Family, table: &str, rules: &Rules<'_>) -> Vec<ServiceChain> {
    let mut services = Vec::new();
    for chain in rules.all.keys() {
        let Some((service, protocol)) = chains::service(table, chain) else { continue };
        let mut service = ServiceChain::new(family, service, protocol, chain);
        let mut targets: Vec<String> = rules
            .of(chain)
            .filter_map(|rule| rule.target().filter(|it| chains::is_endpoint(it)).map(str::to_owned))
            .collect();
        targets.sort();
        targets.dedup();
        for target in targets.into_iter().take(chains::MOST_ENDPOINTS) {
            if !chains::destinations(&rules.of(&target).collect::<Vec<_>>(), &mut service.endpoints) {
                service.dead_ends.push(target);
            }
        }
        services.push(service);
    }
    services.sort_by(|a, b| a.key().cmp(&b.key()));
    services
}

/// Files a chain where its name and policy say; chains that users made have the policy `-`.
fn declare(table: &mut Table, chain: &str, policy: Option<&str>) {
    let policy = match policy {
        Some("ACCEPT") => Some(Policy::Accept),
        Some("DROP") => Some(Policy::Drop),
        _ => None,
    };
    let base = policy.zip(hook(chain)).map(|(policy, hook)| BaseChain { hook, policy, nat: table.name == "nat" });
    match meaning(&table.name, chain) {
        Meaning::PerObject => table.per_object_chains += 1,
        Meaning::Foreign if base.is_none() => table.foreign_chains += 1,
        _ => table.chains.push(Chain::new(chain, base)),
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

/// The fuzz target's door.
#[cfg(fuzzing)]
pub(crate) fn fuzz(data: &[u8]) {
    if let Ok((table, _)) = parse(Family::V4, &String::from_utf8_lossy(data)) {
        let rules = table.chains.iter().filter_map(|chain| chain.rules.as_ref());
        rules.for_each(|rules| assert!(rules.len() <= Chain::MOST_RULES));
    }
}

#[cfg(test)]
pub(crate) use rule::rule as read_rule;

#[cfg(test)]
mod tests;
