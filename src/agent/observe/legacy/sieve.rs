//! What is kept of a table while `iptables-save` prints it: its lines come one by one and none is kept, so that memory does not
//! depend on how many rules there are.
//!
//! The chains are declared first, then come their rules, built-in chains before others. A chain that matters only because a
//! later rule leads to it has gone by already: of chains that may turn out to matter some are kept on suspicion, those that
//! mattered in the last look always, and when that was not enough the table is printed once more.

use std::collections::{BTreeSet, HashMap, HashSet};
use std::hash::{BuildHasher as _, BuildHasherDefault, DefaultHasher};
use std::net::SocketAddr;

use super::rule::rule;
use crate::agent::observe::chains::{self, Meaning, meaning};
use crate::facts::{BaseChain, Chain, Family, FilterRule, Hook, Jump, Policy, ServiceChain, Table, rounded};

/// So many rules are kept on suspicion: some 300 KiB.
const SUSPECTS: usize = 768;
/// So many jumps of a base chain are kept; behind them only those to chains of Kubernetes and Calico.
const MOST_JUMPS: usize = 1024;

/// Names of chains that are kept in any case.
pub(super) type Names = HashSet<String>;

/// One table on its way by.
pub(super) struct Sieve<'a> {
    family: Family,
    wanted: &'a Names,
    /// How many rules are kept on suspicion.
    pub(super) suspects: usize,
    table: Option<Table>,
    /// Hashes of the names of chains of others, sorted once all are declared: a rule's target is a chain by its name alone, or
    /// one of them, or a verdict, or an extension such as MASQUERADE.
    names: Vec<u64>,
    sorted: bool,
    /// The chain whose rules come by.
    current: Current,
    /// Chains that are neither base chains nor those of Services.
    kept: HashMap<String, Chain>,
    services: HashMap<String, BTreeSet<String>>,
    endpoints: HashMap<String, Vec<SocketAddr>>,
    /// Whether rules were dropped for want of room.
    dropped: bool,
    ended: bool,
}

/// The chain whose rules come by: they are printed together.
#[derive(Default)]
struct Current {
    name: String,
    /// The position of its next rule.
    position: u32,
    role: Role,
}

/// What the rules of a chain are kept for.
#[derive(Default, Clone, Copy, PartialEq)]
enum Role {
    #[default]
    Nothing,
    /// The base chain of this index.
    Base(usize),
    Followed,
    Service,
    Endpoint,
}

/// What was kept of a table.
#[derive(Debug)]
pub(super) struct Kept {
    pub(super) table: Table,
    pub(super) services: Vec<ServiceChain>,
    /// The chains that turned out to matter.
    pub(super) wanted: Names,
    /// Whether all of them could be kept.
    pub(super) whole: bool,
}

impl<'a> Sieve<'a> {
    /// For one table, of which the chains `wanted` are kept, and others on suspicion.
    pub(super) fn new(family: Family, wanted: &'a Names) -> Self {
        Sieve {
            family,
            wanted,
            suspects: SUSPECTS,
            table: None,
            names: Vec::new(),
            sorted: false,
            current: Current::default(),
            kept: HashMap::new(),
            services: HashMap::new(),
            endpoints: HashMap::new(),
            dropped: false,
            ended: false,
        }
    }

    /// One line as `iptables-save -c` prints it: `*TABLE`, `:CHAIN POLICY [counters]`, `[counters] -A CHAIN ...`, `COMMIT`.
    pub(super) fn line(&mut self, line: &str) -> Result<(), &'static str> {
        if self.ended || line.is_empty() || line.starts_with('#') {
            return Ok(());
        }
        let Some(table) = &mut self.table else {
            let name = line.strip_prefix('*').ok_or("the output does not begin with a table")?.to_owned();
            let table =
                Table { family: self.family, name, chains: Vec::new(), per_object_chains: 0, foreign_chains: 0 };
            self.table = Some(table);
            return Ok(());
        };
        if line == "COMMIT" {
            self.ended = true;
        } else if let Some(chain) = line.strip_prefix(':') {
            let mut words = chain.split(' ');
            let chain = words.next().filter(|name| !name.is_empty()).ok_or("a chain has no name")?;
            if meaning(&table.name, chain) == Meaning::Foreign {
                self.names.push(hash(chain));
                self.sorted = false;
            }
            if chains::service(&table.name, chain).is_some() {
                self.services.entry(chain.to_owned()).or_default();
            }
            declare(table, chain, words.next());
        } else if let Some((packets, chain, text)) = rule_line(line) {
            if chain != self.current.name {
                self.current = Current { name: chain.to_owned(), position: 0, role: self.role(chain, text) };
            }
            self.rule(packets, text);
            self.current.position = self.current.position.saturating_add(1);
        }
        Ok(())
    }

    /// What is kept of a chain, whose first rule this is.
    fn role(&self, chain: &str, text: &str) -> Role {
        let Some(table) = &self.table else { return Role::Nothing };
        if let Some(index) = table.chains.iter().position(|it| it.base.is_some() && it.name == chain) {
            return Role::Base(index);
        }
        if chains::service(&table.name, chain).is_some() {
            return Role::Service;
        }
        let wanted = self.wanted.contains(chain);
        if chains::is_endpoint(chain) {
            // kube-proxy writes the Service into the comment.
            let ours = || text.split('"').nth(1).is_some_and(chains::is_needed);
            return if wanted || ours() { Role::Endpoint } else { Role::Nothing };
        }
        let followed = || {
            chain == "KUBE-FORWARD"
                || chains::is_of_host_endpoints(&table.name, chain)
                || meaning(&table.name, chain) == Meaning::Foreign
        };
        if wanted || followed() { Role::Followed } else { Role::Nothing }
    }

    fn rule(&mut self, packets: Option<u64>, text: &str) {
        let Current { name, position, role } = &self.current;
        if *role == Role::Nothing {
            return;
        }
        if !self.sorted {
            self.names.sort_unstable();
            self.sorted = true;
        }
        let (names, position) = (&self.names, *position);
        let table = self.table.as_ref().map_or("", |table| &table.name).to_owned();
        let is_chain =
            |target: &str| meaning(&table, target) != Meaning::Foreign || names.binary_search(&hash(target)).is_ok();
        let read = || {
            let mut rule = rule(text, position, is_chain);
            rule.packets = packets.map(rounded);
            rule
        };
        match *role {
            Role::Nothing => {}
            Role::Base(index) => {
                let Some(table) = &mut self.table else { return };
                let Some(chain) = table.chains.get_mut(index) else { return };
                let rule = read();
                if let Some(target) = rule.target()
                    && (chain.jumps.len() < MOST_JUMPS || meaning(&table.name, target) == Meaning::Known)
                {
                    chain.jumps.push(Jump { position, target: target.to_owned() });
                }
                keep(chain, rule);
            }
            Role::Followed => {
                let sure = self.wanted.contains(name);
                if !sure && self.suspects == 0 {
                    self.dropped = true;
                    // Half a chain is none.
                    self.kept.remove(name);
                    self.current.role = Role::Nothing;
                    return;
                }
                self.suspects -= usize::from(!sure);
                let chain = self.kept.entry(name.clone()).or_insert_with(|| Chain::new(name, None));
                keep(chain, read());
            }
            Role::Service => {
                let Some(targets) = self.services.get_mut(name) else { return };
                if let Some(target) = read().target().filter(|target| chains::is_endpoint(target)) {
                    targets.insert(target.to_owned());
                    if targets.len() > chains::MOST_ENDPOINTS {
                        targets.pop_last();
                    }
                }
            }
            Role::Endpoint => {
                let destinations = self.endpoints.entry(name.clone()).or_default();
                chains::destinations(&[read()], destinations);
                destinations.truncate(chains::MOST_ENDPOINTS);
            }
        }
    }

    /// What was kept, once the last line has come.
    pub(super) fn finish(mut self) -> Result<Kept, &'static str> {
        let table = self.table.take().ok_or("the output does not begin with a table")?;
        if !self.ended {
            return Err("the output ends before COMMIT");
        }
        let mut kept = Kept { table, services: Vec::new(), wanted: Names::new(), whole: true };
        self.follow(&mut kept);
        self.read_services(&mut kept);
        Ok(kept)
    }

    fn follow(&mut self, kept: &mut Kept) {
        let table = &mut kept.table;
        for chain in table.chains.iter_mut().filter(|chain| chain.base.is_some()) {
            chain.rules.get_or_insert_default();
        }
        for _ in 0..chains::MOST_FOLLOWED {
            let next = chains::to_follow(table).or_else(|| chains::host_endpoint_to_follow(table));
            let Some(name) = next else { break };
            let mut chain = self.kept.remove(&name).unwrap_or_else(|| Chain::new(&name, None));
            if chain.rules.is_none() {
                // It is empty, or was dropped.
                chain.cut = self.dropped && !self.wanted.contains(&name);
                kept.whole &= !chain.cut;
                chain.rules = Some(Vec::new());
            }
            kept.wanted.insert(name);
            chains::put(table, chain);
        }
    }

    fn read_services(&mut self, kept: &mut Kept) {
        let table = &kept.table;
        for (chain, targets) in &self.services {
            let Some((service, protocol)) = chains::service(&table.name, chain) else { continue };
            let mut service = ServiceChain::new(self.family, service, protocol, chain);
            for target in targets {
                let destinations = self.endpoints.get(target);
                kept.whole &= destinations.is_some() || self.wanted.contains(target);
                match destinations.filter(|destinations| !destinations.is_empty()) {
                    Some(destinations) => service.endpoints.extend(destinations),
                    None => service.dead_ends.push(target.clone()),
                }
                kept.wanted.insert(target.clone());
            }
            kept.services.push(service);
        }
        kept.services.sort_unstable_by(|a, b| a.key().cmp(&b.key()));
    }
}

/// Adds a rule to a chain that has room.
fn keep(chain: &mut Chain, rule: FilterRule) {
    let rules = chain.rules.get_or_insert_default();
    if rules.len() < Chain::MOST_RULES {
        rules.push(rule);
    } else {
        chain.cut = true;
    }
}

fn hash(name: &str) -> u64 {
    BuildHasherDefault::<DefaultHasher>::default().hash_one(name)
}

/// The packet counter of a rule, its chain, and the rest.
pub(super) fn rule_line(line: &str) -> Option<(Option<u64>, &str, &str)> {
    let (counters, rest) = match line.strip_prefix('[') {
        Some(rest) => rest.split_once("] ").map(|(counters, rest)| (Some(counters), rest))?,
        None => (None, line),
    };
    let rest = rest.strip_prefix("-A ")?;
    let (chain, rest) = rest.split_once(' ').unwrap_or((rest, ""));
    Some((counters.and_then(|it| it.split_once(':')).and_then(|(packets, _)| packets.parse().ok()), chain, rest))
}

/// Files a chain where its name and policy say; chains that users made have the policy `-`.
pub(super) fn declare(table: &mut Table, chain: &str, policy: Option<&str>) {
    let policy = match policy {
        Some("ACCEPT") => Some(Policy::Accept),
        Some("DROP") => Some(Policy::Drop),
        _ => None,
    };
    let base = policy.zip(hook(chain)).map(|(policy, hook)| BaseChain {
        hook,
        policy,
        nat: table.name == "nat",
        priority: None,
    });
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
