//! The same reading with the whole text in memory, to compare with.

use std::collections::HashMap;
use std::ops::Range;

use super::super::rule;
use super::super::sieve::{declare, rule_line};
use crate::agent::observe::chains;
use crate::facts::{Chain, Family, FilterRule, Jump, ServiceChain, Table, rounded};

/// One table as `iptables-save -c` prints it: `*TABLE`, `:CHAIN POLICY [counters]`, `[counters] -A CHAIN ...`, `COMMIT`; and
/// the chains of Services that everything needs.
pub(super) fn parse(family: Family, text: &str) -> Result<(Table, Vec<ServiceChain>), &'static str> {
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
