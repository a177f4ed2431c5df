//! The packet filter of nf_tables: generation, chains, and what the base chains jump to, asked from the kernel itself.
//!
//! Rules are read of the chains that packets of pods go through, and nothing is read while the generation stays the same:
//! with 10,000 Services the generation costs 8 µs, all chains 8 ms, the rules of one small chain 13 µs, all rules 600 ms. Of
//! a rule set that big all chains are listed once a minute at most; in between those that matter are asked for by name.

mod catalogue;
pub(super) mod rule;
pub(crate) mod wire;
pub(super) mod xt;

use std::time::{Duration, Instant};

use netlink_packet_core::NLM_F_DUMP;
use netlink_sys::protocols::NETLINK_NETFILTER;
use nix::errno::Errno;

use super::chains::{self, Meaning, meaning};
use super::netlink::{ATTEMPTS, Failure, Malformed, Netlink, refused};
use crate::facts::{
    Action, Backend, Chain, Family, FilterRule, IpSet, Jump, LookError, Reason, Ruleset, ServiceChain, Table, rounded,
};
use catalogue::Catalogue;

/// Counters of rules that drop are read again this often; a packet that moves one makes no generation.
const COUNTERS: Duration = Duration::from_secs(30);

/// Where nf_tables is asked.
pub(crate) struct NftablesSource {
    netlink: Netlink,
    last: Option<Ruleset>,
    /// The chains of the last list of all.
    catalogue: Catalogue,
    /// When the counters were read.
    counted: Instant,
    /// Called before every dump, for tests that count them, or change something in between.
    #[cfg(test)]
    before_dump: Box<dyn FnMut() + Send>,
}

impl NftablesSource {
    /// A source for the network namespace of this thread.
    pub(crate) fn open() -> Result<Self, LookError> {
        let netlink = Netlink::open(NETLINK_NETFILTER).map_err(|error| refused("nf_tables", &error))?;
        Ok(NftablesSource {
            netlink,
            last: None,
            catalogue: Catalogue::default(),
            counted: Instant::now(),
            #[cfg(test)]
            before_dump: Box::new(|| ()),
        })
    }

    /// The number of the last commit.
    pub(crate) async fn generation(&mut self) -> Result<u32, LookError> {
        let mut generation = None;
        self.ask("nf_tables generation", wire::GET_GENERATION, 0, &wire::ALL, |kind, body| {
            if kind == wire::NEW_GENERATION {
                generation = Some(wire::generation(body)?.id);
            }
            Ok(())
        })
        .await?;
        generation.ok_or_else(|| LookError::new("nf_tables generation", Reason::Malformed, "the kernel told none"))
    }

    /// What nf_tables holds. Nothing is read but the generation when that is the same as last time.
    pub(crate) async fn look(&mut self) -> Result<Ruleset, LookError> {
        for _ in 0..ATTEMPTS {
            let generation = self.generation().await?;
            let current = !self.catalogue.is_due();
            if let Some(last) = self.last.take_if(|last| current && last.generation == Some(generation)) {
                let last = if self.counted.elapsed() < COUNTERS { last } else { self.count_again(last).await? };
                return Ok(self.last.insert(last).clone());
            }
            let Some(mut ruleset) = self.read().await? else { continue };
            if self.generation().await? == generation {
                ruleset.generation = Some(generation);
                self.counted = Instant::now();
                return Ok(self.last.insert(ruleset).clone());
            }
        }
        let detail = format!("changed while it was read, {ATTEMPTS} times in a row");
        Err(LookError::new("nf_tables", Reason::Failed, detail))
    }

    /// One reading of everything; none when it changed meanwhile.
    async fn read(&mut self) -> Result<Option<Ruleset>, LookError> {
        let mut ruleset = Ruleset::empty(Backend::Nftables);
        let mut found = Found::default();
        let whole = self
            .dump("nf_tables tables", wire::GET_TABLE, &wire::ALL, |body| {
                if let Some((family, name)) = wire::table(body)? {
                    table_of(&mut ruleset, family, &name);
                }
                Ok(())
            })
            .await?;
        if !whole {
            return Ok(None);
        }
        if self.catalogue.serves(&ruleset) {
            self.named_chains(&mut ruleset, &mut found).await?;
        } else if !self.all_chains(&mut ruleset, &mut found).await? {
            return Ok(None);
        }
        let Ruleset { tables, inet, .. } = &mut ruleset;
        let tables = tables.iter_mut().map(|table| (Some(table.family), table));
        for (family, table) in tables.chain(inet.iter_mut().map(|table| (None, table))) {
            if !self.read_rules(family, table).await? {
                return Ok(None);
            }
        }
        for index in 0..found.services.len() {
            let Some(service) = self.service(&found, index).await? else { return Ok(None) };
            ruleset.services.push(service);
        }
        for index in 0..ruleset.tables.len() {
            let found = self.sets_of(&ruleset.tables[index]).await?;
            ruleset.sets.extend(found);
        }
        Ok(Some(ruleset))
    }

    /// Lists all chains; false when they changed meanwhile.
    async fn all_chains(&mut self, ruleset: &mut Ruleset, found: &mut Found) -> Result<bool, LookError> {
        let whole = self
            .dump("nf_tables chains", wire::GET_CHAIN, &wire::ALL, |body| {
                if let Some(chain) = wire::chain(body)? {
                    found.note(&chain);
                    add(ruleset, &chain);
                }
                Ok(())
            })
            .await?;
        if whole {
            self.catalogue.take(ruleset, found.names());
        }
        Ok(whole)
    }

    /// Asks for the chains of the catalogue, one by one. What is not there any more is left out.
    async fn named_chains(&mut self, ruleset: &mut Ruleset, found: &mut Found) -> Result<(), LookError> {
        for name in self.catalogue.chains() {
            let (family, table, chain) = name;
            let question = wire::chain_named(family, &table, &chain);
            let answer = self.netlink.ask(wire::GET_CHAIN, 0, &question, |_, body| {
                if let Some(chain) = wire::chain(body)? {
                    found.note(&chain);
                    add(ruleset, &chain);
                }
                Ok(())
            });
            match answer.await {
                Err(Failure::Io(error)) if error.raw_os_error() == Some(Errno::ENOENT as i32) => {}
                Err(failure) => return Err(explain("nf_tables chain", &failure)),
                Ok(()) => {}
            }
        }
        self.catalogue.count(ruleset);
        Ok(())
    }

    /// Reads the rules of base chains, and of the chains behind them that packets of pods go through; false when they
    /// changed meanwhile.
    async fn read_rules(&mut self, family: Option<Family>, table: &mut Table) -> Result<bool, LookError> {
        for chain in table.chains.iter_mut().filter(|chain| chain.base.is_some()) {
            if !self.fill(family, &table.name, chain).await? {
                return Ok(false);
            }
        }
        for _ in 0..chains::MOST_FOLLOWED {
            let next = chains::to_follow(table).or_else(|| chains::host_endpoint_to_follow(table));
            let Some(name) = next else { break };
            let mut chain = Chain::new(&name, None);
            if !self.fill(family, &table.name, &mut chain).await? {
                return Ok(false);
            }
            chain.jumps.clear();
            chains::put(table, chain);
        }
        Ok(true)
    }

    /// Reads the rules of one chain into it; false when they changed meanwhile.
    async fn fill(&mut self, family: Option<Family>, table: &str, chain: &mut Chain) -> Result<bool, LookError> {
        let (mut rules, mut position) = (Vec::new(), 0);
        let whole = self
            .dump("nf_tables rules", wire::GET_RULE, &wire::rules_of(family, table, &chain.name), |body| {
                let mut rule = rule::rule(body, position)?;
                if let Some(target) = rule.target() {
                    chain.jumps.push(Jump { position, target: target.to_owned() });
                }
                if rules.len() < Chain::MOST_RULES {
                    rule.packets = rule.packets.map(rounded);
                    rules.push(rule);
                } else {
                    chain.cut = true;
                }
                position += 1;
                Ok(())
            })
            .await?;
        chain.rules = Some(rules);
        Ok(whole)
    }

    /// All rules of one chain with their whole counters, for chains that are small; no family stands for `inet`. None when
    /// it changed meanwhile.
    pub(crate) async fn rules_of(
        &mut self,
        family: Option<Family>,
        table: &str,
        chain: &str,
    ) -> Result<Option<Vec<FilterRule>>, LookError> {
        let (mut rules, mut position) = (Vec::new(), 0);
        let whole = self
            .dump("nf_tables rules", wire::GET_RULE, &wire::rules_of(family, table, chain), |body| {
                rules.push(rule::rule(body, position)?);
                position += 1;
                Ok(())
            })
            .await?;
        Ok(whole.then_some(rules))
    }

    /// Reads the counters of rules that drop again.
    async fn count_again(&mut self, mut last: Ruleset) -> Result<Ruleset, LookError> {
        self.counted = Instant::now();
        let Ruleset { tables, inet, .. } = &mut last;
        let tables = tables.iter_mut().map(|table| (Some(table.family), table));
        for (family, table) in tables.chain(inet.iter_mut().map(|table| (None, table))) {
            for chain in &mut table.chains {
                let drops = |rule: &FilterRule| matches!(rule.action, Action::Drop | Action::Reject);
                if !chain.rules().iter().any(|rule| drops(rule) && rule.packets.is_some()) {
                    continue;
                }
                let Some(now) = self.rules_of(family, &table.name, &chain.name).await? else { continue };
                for (rule, now) in chain.rules.iter_mut().flatten().zip(now) {
                    rule.packets = now.packets.map(rounded);
                }
            }
        }
        Ok(last)
    }

    /// The sets of Calico's own table that matter. Of the entries no more is read than tells that there are any.
    async fn sets_of(&mut self, table: &Table) -> Result<Vec<IpSet>, LookError> {
        let mut sets = Vec::new();
        if table.name != "calico" {
            return Ok(sets);
        }
        let prefix = if table.family == Family::V4 { "cali4" } else { "cali6" };
        for name in super::ipset::NAMES.into_iter().filter(|name| name.starts_with(prefix)) {
            let question = wire::elements_of(table.family, &table.name, name);
            let any = |body: &[u8]| Ok(wire::has_element(body)?.then_some(()));
            let entries = match self.netlink.first(wire::GET_ELEMENTS, &question, any).await {
                Ok(found) => found.map_or(0, |()| 1),
                Err(Failure::Io(error)) if error.raw_os_error() == Some(Errno::ENOENT as i32) => continue,
                // Elements come and go without end, so there are some.
                Err(Failure::Interrupted) => 1,
                Err(failure) => return Err(explain("nf_tables sets", &failure)),
            };
            let rules = table.chains.iter().flat_map(Chain::rules);
            let users = rules.filter(|rule| rule.sets.iter().any(|set| set.value == name)).count();
            let references = u32::try_from(users).unwrap_or(u32::MAX);
            sets.push(IpSet { name: name.to_owned(), kind: "nf_tables".to_owned(), entries, references });
        }
        Ok(sets)
    }

    /// Where the chain of a Service leads to; none when it changed meanwhile.
    async fn service(&mut self, found: &Found, index: usize) -> Result<Option<ServiceChain>, LookError> {
        let (table, users, mut service) = found.services[index].clone();
        let family = Some(service.family);
        let Some(rules) = self.rules_of(family, &table, &service.chain).await? else { return Ok(None) };
        let referenced = |users: u32, rules: &[FilterRule]| users as usize > rules.len();
        service.referenced = Some(referenced(users, &rules));
        let named = rules.iter().filter_map(FilterRule::target).filter(|target| chains::is_endpoint(target));
        let mut targets: Vec<(String, u32)> = named.map(|target| (target.to_owned(), u32::MAX)).collect();
        // The native mode leads to them by a map: their names say whose they are.
        let native = found.endpoints.iter().filter(|it| (it.0, it.1, it.2) == service.key());
        targets.extend(native.map(|(.., chain, users)| (chain.clone(), *users)));
        targets.sort_unstable();
        targets.dedup();
        for (target, users) in targets.into_iter().take(chains::MOST_ENDPOINTS) {
            let Some(rules) = self.rules_of(family, &table, &target).await? else { return Ok(None) };
            if referenced(users, &rules) && !chains::destinations(&rules, &mut service.endpoints) {
                service.dead_ends.push(target);
            }
        }
        Ok(Some(service))
    }

    /// False when what the kernel told does not fit together.
    async fn dump(
        &mut self,
        what: &str,
        kind: u16,
        body: &[u8],
        mut each: impl FnMut(&[u8]) -> Result<(), Malformed>,
    ) -> Result<bool, LookError> {
        #[cfg(test)]
        (self.before_dump)();
        self.ask(what, kind, NLM_F_DUMP, body, |_, body| each(body)).await
    }

    async fn ask(
        &mut self,
        what: &str,
        kind: u16,
        flags: u16,
        body: &[u8],
        each: impl FnMut(u16, &[u8]) -> Result<(), Malformed>,
    ) -> Result<bool, LookError> {
        match self.netlink.ask(kind, flags, body, each).await {
            Ok(()) => Ok(true),
            Err(Failure::Interrupted) => Ok(false),
            Err(failure) => Err(explain(what, &failure)),
        }
    }
}

/// nfnetlink answers `EINVAL` when the kernel has no nf_tables (`nfnetlink_rcv_msg` of `net/netfilter/nfnetlink.c`).
fn explain(what: &str, failure: &Failure) -> LookError {
    match failure {
        Failure::Io(error)
            if matches!(error.raw_os_error().map(Errno::from_raw), Some(Errno::EINVAL | Errno::ENOENT)) =>
        {
            LookError::new(what, Reason::Unsupported, format!("this kernel does not have nf_tables: {error}"))
        }
        failure => failure.about(what),
    }
}

/// Chains of Services that everything needs, and of their endpoints in the native mode, as they were come across.
#[derive(Default)]
struct Found {
    /// Table, users of the chain, what is known of it.
    services: Vec<(String, u32, ServiceChain)>,
    /// Family, Service and protocol, chain, users of the chain.
    endpoints: Vec<(Family, &'static str, &'static str, String, u32)>,
}

impl Found {
    /// Family, table and name of them all.
    fn names(&self) -> impl Iterator<Item = catalogue::Name> {
        let services = self.services.iter().map(|(table, _, it)| (Some(it.family), table.clone(), it.chain.clone()));
        let native = |(family, .., chain, _): &(Family, &str, &str, String, u32)| {
            (Some(*family), "kube-proxy".to_owned(), chain.clone())
        };
        services.chain(self.endpoints.iter().map(native))
    }

    fn note(&mut self, chain: &wire::Chain<'_>) {
        let Some(family) = chain.family else { return };
        if let Some((service, protocol)) = chains::service(&chain.table, &chain.name) {
            let service = ServiceChain::new(family, service, protocol, &chain.name);
            self.services.push((chain.table.clone().into_owned(), chain.users, service));
        } else if let Some((service, protocol)) = chains::endpoint(&chain.table, &chain.name) {
            self.endpoints.push((family, service, protocol, chain.name.clone().into_owned(), chain.users));
        }
    }
}

fn table_of<'a>(ruleset: &'a mut Ruleset, family: Option<Family>, name: &str) -> &'a mut Table {
    let tables = if family.is_some() { &mut ruleset.tables } else { &mut ruleset.inet };
    let family = family.unwrap_or(Family::V4);
    let index = tables.iter().position(|table| table.family == family && table.name == name).unwrap_or_else(|| {
        let name = name.to_owned();
        tables.push(Table { family, name, chains: Vec::new(), per_object_chains: 0, foreign_chains: 0 });
        tables.len() - 1
    });
    &mut tables[index]
}

fn add(ruleset: &mut Ruleset, chain: &wire::Chain<'_>) {
    let table = table_of(ruleset, chain.family, &chain.table);
    match meaning(&chain.table, &chain.name) {
        Meaning::PerObject if chain.base.is_none() => table.per_object_chains += 1,
        Meaning::Foreign if chain.base.is_none() => table.foreign_chains += 1,
        _ => table.chains.push(Chain::new(&chain.name, chain.base)),
    }
}

#[cfg(test)]
mod tests;
