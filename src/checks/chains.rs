//! Which chains and jumps an owner of the packet filter must have, and which of them a node lacks.
//!
//! Shared by the four checks of kube-proxy's and Calico's chains. The lists are those of kube-proxy 1.22 to 1.37
//! (`pkg/proxy/iptables/proxier.go`, `pkg/proxy/nftables/proxier.go`) and Felix 3.21 to 3.34
//! (`felix/rules/static.go`, `felix/nftables/table.go`).

mod awaited;
mod flushed;

use std::collections::BTreeSet;
use std::net::IpAddr;

use super::Look;
use crate::facts::{Action, Backend, CalicoDataplane, Family, Hook, LookError, Piece, ProxyMode, Ruleset, Seen};

pub(super) use awaited::{awaited, awaited_from_the_start};
pub(super) use flushed::{Flush, flushes};

/// So many changes are blamed in one sentence.
const MOST_BLAMED: usize = 2;

/// Chains and jumps that must be there, by table.
#[derive(Debug, Clone, Copy)]
pub(super) struct Plan {
    /// Table and chain.
    chains: &'static [(&'static str, &'static str)],
    /// Table, base chain, chain that it must jump to.
    jumps: &'static [(&'static str, &'static str, &'static str)],
    /// Table, base chain, and where it must be attached: hook and priority.
    hooks: &'static [(&'static str, &'static str, Hook, i32)],
    /// Table, chain, and the map in which that must look packets up.
    lookups: &'static [(&'static str, &'static str, &'static str)],
    /// Whether a chain in this table of this name belongs to the owner.
    owns: fn(&str, &str) -> bool,
    /// Whether the owner has to serve a family in which nobody ever saw a chain of its.
    serves: fn(&Look<'_>, Family) -> bool,
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
    hooks: &[],
    lookups: &[],
    owns: |_, chain| crate::facts::is_kube_proxy_chain(chain),
    serves: has_services,
};

const KUBE_PROXY_IPVS: Plan = Plan {
    chains: &[
        ("nat", "KUBE-SERVICES"),
        ("nat", "KUBE-POSTROUTING"),
        ("nat", "KUBE-MARK-MASQ"),
        ("nat", "KUBE-NODE-PORT"),
        ("filter", "KUBE-FORWARD"),
    ],
    // `iptablesJumpChain` of `pkg/proxy/ipvs/proxier.go`; those of `filter` came one after the other.
    jumps: &[
        ("nat", "PREROUTING", "KUBE-SERVICES"),
        ("nat", "OUTPUT", "KUBE-SERVICES"),
        ("nat", "POSTROUTING", "KUBE-POSTROUTING"),
        ("filter", "FORWARD", "KUBE-FORWARD"),
        ("filter", "INPUT", "KUBE-NODE-PORT"),
        ("filter", "INPUT", "KUBE-PROXY-FIREWALL"),
        ("filter", "FORWARD", "KUBE-PROXY-FIREWALL"),
        ("filter", "INPUT", "KUBE-IPVS-FILTER"),
        ("filter", "OUTPUT", "KUBE-IPVS-OUT-FILTER"),
    ],
    hooks: &[],
    lookups: &[],
    owns: |_, chain| crate::facts::is_kube_proxy_chain(chain),
    serves: has_services,
};

const KUBE_PROXY_NFTABLES: Plan = Plan {
    chains: &[("kube-proxy", "services"), ("kube-proxy", "masquerading"), ("kube-proxy", "cluster-ips-check")],
    jumps: &[
        ("kube-proxy", "nat-prerouting", "services"),
        ("kube-proxy", "nat-output", "services"),
        ("kube-proxy", "nat-postrouting", "masquerading"),
        // What rejects connections to Services without endpoints, and to cluster IPs that no Service has.
        ("kube-proxy", "filter-input", "nodeport-endpoints-check"),
        ("kube-proxy", "filter-input", "service-endpoints-check"),
        ("kube-proxy", "filter-forward", "service-endpoints-check"),
        ("kube-proxy", "filter-forward", "cluster-ips-check"),
        ("kube-proxy", "filter-output", "service-endpoints-check"),
        ("kube-proxy", "filter-output", "cluster-ips-check"),
        // `loadBalancerSourceRanges`, by the address before its translation.
        ("kube-proxy", "filter-prerouting-pre-dnat", "firewall-check"),
        ("kube-proxy", "filter-output-pre-dnat", "firewall-check"),
    ],
    // `nftablesBaseChains` of `pkg/proxy/nftables/proxier.go`.
    hooks: &[
        ("kube-proxy", "filter-prerouting-pre-dnat", Hook::Prerouting, -110),
        ("kube-proxy", "filter-output-pre-dnat", Hook::Output, -110),
        ("kube-proxy", "filter-input", Hook::Input, 0),
        ("kube-proxy", "filter-forward", Hook::Forward, 0),
        ("kube-proxy", "filter-output", Hook::Output, 0),
        ("kube-proxy", "nat-prerouting", Hook::Prerouting, -100),
        ("kube-proxy", "nat-output", Hook::Output, -100),
        ("kube-proxy", "nat-postrouting", Hook::Postrouting, 100),
    ],
    lookups: &[("kube-proxy", "services", "service-ips")],
    owns: |table, _| table == "kube-proxy",
    serves: has_services,
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
        // Since 3.21; where there is no such chain there need be no jump.
        ("mangle", "POSTROUTING", "cali-POSTROUTING"),
    ],
    hooks: &[],
    lookups: &[],
    owns: |_, chain| crate::facts::is_calico_chain(chain),
    serves: |_, family| family == Family::V4,
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
        // Chains that are there are jumped to.
        ("calico", "nat-PREROUTING", "nat-cali-PREROUTING"),
        ("calico", "nat-OUTPUT", "nat-cali-OUTPUT"),
        ("calico", "raw-PREROUTING", "raw-cali-PREROUTING"),
        ("calico", "raw-OUTPUT", "raw-cali-OUTPUT"),
        ("calico", "mangle-PREROUTING", "mangle-cali-PREROUTING"),
        ("calico", "mangle-POSTROUTING", "mangle-cali-POSTROUTING"),
    ],
    hooks: &[],
    lookups: &[],
    owns: |table, _| table == "calico",
    serves: |_, family| family == Family::V4,
};

/// With eBPF policies are programs, and what remains of chains masquerades pods, checks reverse paths and keeps what programs
/// have seen from connection tracking. Rules that Felix puts straight into INPUT, FORWARD and OUTPUT are not judged: they let
/// through or drop what programs have marked, and go with those.
const CALICO_EBPF: Plan = Plan {
    chains: &[("nat", "cali-POSTROUTING")],
    jumps: &[
        ("nat", "POSTROUTING", "cali-POSTROUTING"),
        ("raw", "PREROUTING", "cali-PREROUTING"),
        ("raw", "OUTPUT", "cali-OUTPUT"),
    ],
    hooks: &[],
    lookups: &[],
    owns: |_, chain| crate::facts::is_calico_chain(chain),
    // Where there never was a chain of Calico's there need be none.
    serves: |_, _| false,
};

/// The same in Calico's own table.
const CALICO_EBPF_NFTABLES: Plan = Plan {
    chains: &[],
    jumps: &[
        ("calico", "nat-POSTROUTING", "nat-cali-POSTROUTING"),
        ("calico", "raw-PREROUTING", "raw-cali-PREROUTING"),
        ("calico", "raw-OUTPUT", "raw-cali-OUTPUT"),
    ],
    owns: |table, _| table == "calico",
    ..CALICO_EBPF
};

/// What kube-proxy must have in this mode.
pub(super) fn kube_proxy(mode: ProxyMode) -> Plan {
    match mode {
        ProxyMode::Iptables => KUBE_PROXY_IPTABLES,
        ProxyMode::Ipvs => KUBE_PROXY_IPVS,
        ProxyMode::Nftables => KUBE_PROXY_NFTABLES,
    }
}

/// What Calico must have with this dataplane.
pub(super) fn calico(look: &Look<'_>, dataplane: CalicoDataplane) -> Plan {
    let native = || look.now.nftables.get().is_some_and(|it| it.tables.iter().any(|table| table.name == "calico"));
    match dataplane {
        CalicoDataplane::Iptables => CALICO_IPTABLES,
        CalicoDataplane::Nftables => CALICO_NFTABLES,
        CalicoDataplane::Ebpf if native() => CALICO_EBPF_NFTABLES,
        CalicoDataplane::Ebpf => CALICO_EBPF,
    }
}

/// What goes on without Calico's chains.
pub(super) fn without_calico(dataplane: CalicoDataplane) -> &'static str {
    match dataplane {
        CalicoDataplane::Ebpf => "so pods are not masqueraded and the sources of their packets are not checked",
        _ => "so policies are NOT enforced",
    }
}

/// What each family lacks: every family in which the owner has chains or had them earlier in this boot, and those that
/// it has to serve. An owner that is whole in one backend is whole: leftovers in the other backend are no fault of these checks.
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
            (None, None) if (plan.serves)(look, family) => all.push(nothing(plan, family)),
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

/// Whether kube-proxy has something to translate: IPv4 in any case, IPv6 where this node has such an address and the cluster has
/// such a Service with ready endpoints.
pub(super) fn has_services(look: &Look<'_>, family: Family) -> bool {
    let v6 = |address: &IpAddr| Family::of(*address) == Family::V6;
    let node = || look.now.routing.get().is_some_and(|it| it.addresses.iter().any(|it| it.global && v6(&it.address)));
    let services = look.now.cluster.get().into_iter().flat_map(|cluster| &cluster.services);
    let mut ports = services.filter(|it| it.cluster_ips.iter().any(v6)).flat_map(|service| &service.ports);
    family == Family::V4 || ports.any(|port| port.endpoints.iter().any(|(address, _)| v6(address))) && node()
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
    // The kube-proxies of 1.31 and before filter ahead of the translation, in chains of other names and at other priorities;
    // one that follows them leaves their chains behind.
    let early = has("kube-proxy", "filter-output-post-dnat") && !has("kube-proxy", "filter-output-pre-dnat");
    let judged = |table: &str, chain: &str| !(early && table == "kube-proxy" && chain.starts_with("filter-"));
    let unhooked =
        plan.jumps.iter().filter(|(table, from, to)| judged(table, from) && has(table, to) && !jumps(table, from, to));
    let unhooked = unhooked.chain(plan.lookups.iter().filter(|(table, chain, _)| !looks_up(table, chain)));
    let elsewhere = |(table, chain, hook, priority): &&(&str, &str, Hook, i32)| {
        let base = ruleset.table(family, table).and_then(|table| table.chain(chain)?.base);
        base.is_some_and(|base| base.hook != *hook || base.priority.is_some_and(|it| it != *priority))
    };
    let elsewhere = plan.hooks.iter().filter(|(table, chain, ..)| judged(table, chain)).filter(elsewhere);
    let elsewhere =
        elsewhere.map(|(table, chain, hook, at)| format!("{table} {chain} is not at hook {hook:?}, priority {at}"));
    Gaps {
        backend: ruleset.backend,
        family,
        missing: missing.map(|(table, chain)| format!("{table} {chain}")).collect(),
        unhooked: unhooked.map(|(table, from, to)| format!("{table} {from} -> {to}")).chain(elsewhere).collect(),
    }
}

/// The gaps of an owner that has nothing at all.
fn nothing(plan: Plan, family: Family) -> Gaps {
    Gaps {
        backend: Backend::Nftables,
        family,
        missing: plan.chains.iter().map(|(table, chain)| format!("{table} {chain}")).collect(),
        unhooked: Vec::new(),
    }
}
