//! Which chains and jumps an owner of the packet filter must have, and which of them a node lacks.
//!
//! Shared by the four checks of kube-proxy's and Calico's chains. The lists are those of kube-proxy 1.22 to 1.37
//! (`pkg/proxy/iptables/proxier.go`, `pkg/proxy/nftables/proxier.go`) and Felix 3.21 to 3.34
//! (`felix/rules/static.go`, `felix/nftables/table.go`).

use std::collections::BTreeSet;

use super::Look;
use crate::facts::{Action, Backend, CalicoDataplane, Family, LookError, Piece, ProxyMode, Ruleset, Seen};

/// So many changes are blamed in one sentence.
const MOST_BLAMED: usize = 2;

/// Chains and jumps that must be there, by table.
#[derive(Debug, Clone, Copy)]
pub(super) struct Plan {
    /// Table and chain.
    chains: &'static [(&'static str, &'static str)],
    /// Table, base chain, chain that it must jump to.
    jumps: &'static [(&'static str, &'static str, &'static str)],
    /// Table, chain, and the map in which that must look packets up.
    lookups: &'static [(&'static str, &'static str, &'static str)],
    /// Whether a chain in this table of this name belongs to the owner.
    owns: fn(&str, &str) -> bool,
}

/// What one family lacks, in the backend where the owner has most.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Gaps {
    /// The backend.
    pub backend: Backend,
    /// The family.
    pub family: Family,
    /// Chains that are not there: table and chain.
    pub missing: Vec<String>,
    /// Jumps that are not there, though the chain that they lead to is: table, base chain and chain. And lookups: table, chain
    /// and map.
    pub unhooked: Vec<String>,
}

const KUBE_PROXY_IPTABLES: Plan = Plan {
    chains: &[
        ("nat", "KUBE-SERVICES"),
        ("nat", "KUBE-POSTROUTING"),
        ("nat", "KUBE-MARK-MASQ"),
        ("nat", "KUBE-NODEPORTS"),
        ("filter", "KUBE-FORWARD"),
    ],
    jumps: &[
        ("nat", "PREROUTING", "KUBE-SERVICES"),
        ("nat", "OUTPUT", "KUBE-SERVICES"),
        ("nat", "POSTROUTING", "KUBE-POSTROUTING"),
        ("filter", "FORWARD", "KUBE-FORWARD"),
    ],
    lookups: &[],
    owns: |_, chain| crate::facts::is_kube_proxy_chain(chain),
};

const KUBE_PROXY_IPVS: Plan = Plan {
    chains: &[("nat", "KUBE-SERVICES"), ("nat", "KUBE-POSTROUTING"), ("nat", "KUBE-MARK-MASQ")],
    jumps: &[
        ("nat", "PREROUTING", "KUBE-SERVICES"),
        ("nat", "OUTPUT", "KUBE-SERVICES"),
        ("nat", "POSTROUTING", "KUBE-POSTROUTING"),
    ],
    lookups: &[],
    owns: |_, chain| crate::facts::is_kube_proxy_chain(chain),
};

const KUBE_PROXY_NFTABLES: Plan = Plan {
    chains: &[("kube-proxy", "services"), ("kube-proxy", "masquerading"), ("kube-proxy", "cluster-ips-check")],
    jumps: &[
        ("kube-proxy", "nat-prerouting", "services"),
        ("kube-proxy", "nat-output", "services"),
        ("kube-proxy", "nat-postrouting", "masquerading"),
    ],
    lookups: &[("kube-proxy", "services", "service-ips")],
    owns: |table, _| table == "kube-proxy",
};

const CALICO_IPTABLES: Plan = Plan {
    chains: &[
        ("filter", "cali-INPUT"),
        ("filter", "cali-FORWARD"),
        ("filter", "cali-OUTPUT"),
        ("nat", "cali-PREROUTING"),
        ("nat", "cali-OUTPUT"),
        ("nat", "cali-POSTROUTING"),
        ("raw", "cali-PREROUTING"),
        ("raw", "cali-OUTPUT"),
        ("mangle", "cali-PREROUTING"),
    ],
    jumps: &[
        ("filter", "INPUT", "cali-INPUT"),
        ("filter", "FORWARD", "cali-FORWARD"),
        ("filter", "OUTPUT", "cali-OUTPUT"),
        ("nat", "PREROUTING", "cali-PREROUTING"),
        ("nat", "OUTPUT", "cali-OUTPUT"),
        ("nat", "POSTROUTING", "cali-POSTROUTING"),
        ("raw", "PREROUTING", "cali-PREROUTING"),
        ("raw", "OUTPUT", "cali-OUTPUT"),
        ("mangle", "PREROUTING", "cali-PREROUTING"),
    ],
    lookups: &[],
    owns: |_, chain| crate::facts::is_calico_chain(chain),
};

const CALICO_NFTABLES: Plan = Plan {
    chains: &[
        ("calico", "filter-cali-INPUT"),
        ("calico", "filter-cali-FORWARD"),
        ("calico", "filter-cali-OUTPUT"),
        ("calico", "nat-cali-POSTROUTING"),
    ],
    jumps: &[
        ("calico", "filter-INPUT", "filter-cali-INPUT"),
        ("calico", "filter-FORWARD", "filter-cali-FORWARD"),
        ("calico", "filter-OUTPUT", "filter-cali-OUTPUT"),
        ("calico", "nat-POSTROUTING", "nat-cali-POSTROUTING"),
    ],
    lookups: &[],
    owns: |table, _| table == "calico",
};

/// What kube-proxy must have in this mode.
pub(super) fn kube_proxy(mode: ProxyMode) -> Plan {
    match mode {
        ProxyMode::Iptables => KUBE_PROXY_IPTABLES,
        ProxyMode::Ipvs => KUBE_PROXY_IPVS,
        ProxyMode::Nftables => KUBE_PROXY_NFTABLES,
    }
}

/// What Calico must have with this dataplane; eBPF has no chains of this kind.
pub(super) fn calico(dataplane: CalicoDataplane) -> Option<Plan> {
    match dataplane {
        CalicoDataplane::Iptables => Some(CALICO_IPTABLES),
        CalicoDataplane::Nftables => Some(CALICO_NFTABLES),
        CalicoDataplane::Ebpf => None,
    }
}

/// What each family lacks: every family in which the owner has chains or had them earlier in this boot, and IPv4 in any
/// case. An owner that is whole in one backend is whole: leftovers in the other backend are no fault of these checks.
///
/// # Errors
/// When a backend could not be read and the other one does not show the owner whole.
pub(super) fn gaps<'a>(
    look: &'a Look<'_>,
    plan: Plan,
    before: &BTreeSet<(Backend, Family)>,
) -> Result<Vec<Gaps>, &'a LookError> {
    let backends = [&look.now.nftables, &look.now.legacy];
    let rulesets: Vec<&Ruleset> = backends.iter().filter_map(|backend| backend.get()).collect();
    let error = backends.iter().find_map(|backend| Seen::error(backend));
    let mut all = Vec::new();
    for family in [Family::V4, Family::V6] {
        let candidates = rulesets.iter().map(|ruleset| (owned(ruleset, plan, family), gaps_in(ruleset, plan, family)));
        let here: Vec<(usize, Gaps)> =
            candidates.filter(|(owned, gaps)| *owned > 0 || before.contains(&(gaps.backend, family))).collect();
        let best =
            here.into_iter().min_by_key(|(owned, gaps)| (gaps.count(), usize::MAX - owned)).map(|(_, gaps)| gaps);
        match (best, error) {
            (Some(gaps), _) if gaps.count() == 0 => all.push(gaps),
            // IPv6 is optional: that it is nowhere to be seen beside a whole IPv4 is no reason to doubt.
            (None, Some(_)) if family == Family::V6 && !all.is_empty() => {}
            (_, Some(error)) => return Err(error),
            (Some(gaps), None) => all.push(gaps),
            (None, None) if family == Family::V4 => all.push(nothing(plan)),
            (None, None) => {}
        }
    }
    Ok(all)
}

/// Who removed these (`nat KUBE-SERVICES`, `nat OUTPUT -> KUBE-SERVICES`), as the end of a sentence: the commits at which they
/// were first missed. Empty when the kernel has not told, as in the legacy backend.
pub(super) fn blame(look: &Look<'_>, backend: Backend, family: Family, gone: &[String]) -> String {
    if backend != Backend::Nftables {
        return String::new();
    }
    let ours = |piece: &Piece| piece.family == family && gone.contains(&piece.to_string());
    let removals = look.now.packet_filter_changes.removals.iter();
    let removals = removals.filter(|removal| !removal.by.is_empty() && removal.gone.iter().any(ours));
    removals.take(MOST_BLAMED).flat_map(|removal| ["; ".to_owned(), removal.to_string()]).collect()
}

impl Gaps {
    /// Who made these gaps: see [`blame`].
    pub(super) fn blame(&self, look: &Look<'_>, gaps: &[String]) -> String {
        blame(look, self.backend, self.family, gaps)
    }

    fn count(&self) -> usize {
        self.missing.len() + self.unhooked.len()
    }

    /// `IPv4, nf_tables`: where the gaps are.
    pub(super) fn place(&self) -> String {
        format!("{}, {}", self.family, self.backend)
    }
}

/// How many chains of its own the owner has.
fn owned(ruleset: &Ruleset, plan: Plan, family: Family) -> usize {
    let tables = ruleset.tables.iter().filter(|table| table.family == family);
    tables.map(|table| table.chains.iter().filter(|chain| (plan.owns)(&table.name, &chain.name)).count()).sum()
}

fn gaps_in(ruleset: &Ruleset, plan: Plan, family: Family) -> Gaps {
    let has = |table: &str, chain: &str| ruleset.table(family, table).is_some_and(|table| table.chain(chain).is_some());
    let jumps =
        |table: &str, from: &str, to: &str| ruleset.table(family, table).is_some_and(|table| table.jumps(from, to));
    let missing = plan.chains.iter().filter(|(table, chain)| !has(table, chain));
    let looks_up = |table: &str, chain: &str| {
        let rules = ruleset.table(family, table).and_then(|table| table.chain(chain)?.rules.as_ref());
        rules.is_none_or(|rules| rules.iter().any(|rule| rule.action == Action::Other("vmap".into())))
    };
    let unhooked = plan.jumps.iter().filter(|(table, from, to)| has(table, to) && !jumps(table, from, to));
    let unhooked = unhooked.chain(plan.lookups.iter().filter(|(table, chain, _)| !looks_up(table, chain)));
    Gaps {
        backend: ruleset.backend,
        family,
        missing: missing.map(|(table, chain)| format!("{table} {chain}")).collect(),
        unhooked: unhooked.map(|(table, from, to)| format!("{table} {from} -> {to}")).collect(),
    }
}

/// The gaps of an owner that has nothing at all.
fn nothing(plan: Plan) -> Gaps {
    Gaps {
        backend: Backend::Nftables,
        family: Family::V4,
        missing: plan.chains.iter().map(|(table, chain)| format!("{table} {chain}")).collect(),
        unhooked: Vec::new(),
    }
}
