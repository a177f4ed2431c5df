//! A set of addresses that must not be empty is empty, or is not there.
//!
//! *Looks at* the sets with a fixed name: those of ipset, or in Calico's own table of nf_tables. Calico writes the rule that looks into its sets of pools only while there are pools,
//! so a rule and an empty set contradict each other; kube-proxy's IPVS mode has a set of all cluster IPs, which are addresses
//! of `kube-ipvs0` too. *Traps*: the set of a selector is empty when no pod matches; a set that no rule refers to; a family
//! without pools or Services; IPVS alone; the owner is alive and writes it again; intervals that end without having begun
//! are left of a set of nf_tables that was emptied; a Felix that starts, whose chains are told at once and whose sets are seen
//! with the next look (catalogue R109).

use std::time::Duration;

use super::super::{Area, Check, Finding, Look, Outcome, Severity, chains, seen};
use super::calico_chains_missing::{JOINING, felix_starts};
use crate::facts::{CalicoDataplane, Family, IPVS_DEVICE, IpSet, ProxyMode, Ruleset, Seen};

pub(super) const CHECK: Check = Check {
    code: "IpSetMissing",
    area: Area::PacketFilter,
    severity: Severity::Critical,
    why: "rules that look into a set match nothing while it is empty, though rules and chains seem whole",
    next_step: "restart the owner of the set on this node (delete the calico-node or kube-proxy pod); then find who ran `ipset flush` or `ipset destroy`",
    raise_after: Duration::from_secs(1),
    clear_after: Duration::from_secs(2),
    run,
};

/// `IpsetsRefreshInterval` of Felix is 10 s up to 3.21 and 90 s today, plus a margin.
const FELIX_REFRESH: Duration = Duration::from_secs(100);
/// `NftablesRefreshInterval` is 180 s, plus a margin.
const NATIVE_REFRESH: Duration = Duration::from_secs(200);

/// What is wrong with a set.
enum Fault {
    Missing,
    Empty,
}

fn run(look: &Look<'_>) -> Outcome {
    let calico = look.expected.calico == Some(CalicoDataplane::Iptables);
    let native = look.expected.calico == Some(CalicoDataplane::Nftables);
    let ipvs = look.expected.kube_proxy == Some(ProxyMode::Ipvs);
    if !calico && !native && !ipvs {
        return Outcome::NotApplicable(
            "nobody uses such sets here: no Calico on iptables or nftables, no kube-proxy in IPVS mode".into(),
        );
    }
    let none = Vec::new();
    let own = if native {
        &seen!(look.now.nftables, Outcome::NotApplicable("nf_tables is not to be seen here".into())).sets
    } else {
        &none
    };
    let sets = match &look.now.ip_sets {
        Seen::Absent => &none,
        // Nobody here uses them.
        _ if !calico && !ipvs => &none,
        seen => seen!(seen, Outcome::Healthy),
    };
    let mut findings = Vec::new();
    for family in [Family::V4, Family::V6] {
        if calico || native {
            calico_faults(look, if native { own } else { sets }, native, family, &mut findings);
        }
        if ipvs {
            ipvs_faults(look, sets, family, &mut findings);
        }
    }
    if ipvs && findings.is_empty() {
        // Which addresses kube-ipvs0 has says what has to be in the sets.
        seen!(look.now.routing, Outcome::Healthy);
    }
    Outcome::from_findings(findings)
}

fn calico_faults(look: &Look<'_>, sets: &[IpSet], native: bool, family: Family, findings: &mut Vec<Finding>) {
    // `felix/ipsets/ipset_defs.go`, `felix/rules/rule_defs.go`.
    let prefix = if family == Family::V4 { "cali40" } else { "cali60" };
    let find = |id: &str| sets.iter().find(|set| set.name.strip_prefix(prefix) == Some(id));
    let healthy = look.now.health.felix.get().is_some_and(|answer| answer.status < 300);
    let mut tell = |id: &str, fault: &Fault, what: &str| {
        let finding = finding(&format!("{prefix}{id}"), fault, what);
        let refresh = if native { NATIVE_REFRESH } else { FELIX_REFRESH };
        findings.push(match () {
            () if healthy => finding.repaired_within(refresh),
            () if felix_starts(look) => finding.repaired_within(JOINING),
            () => finding,
        });
    };
    let masquerade = find("masq-ipam-pools");
    if empty(masquerade) {
        tell("masq-ipam-pools", &Fault::Empty, "pods are not masqueraded and do not reach the outside");
    } else if masquerade.is_none() && has_pools(look, family) && has_chain(look, family, "cali-nat-outgoing") {
        tell("masq-ipam-pools", &Fault::Missing, "the rule that masquerades pods cannot be there");
    }
    let some = masquerade.is_some_and(|set| set.entries > 0);
    // The name up to Calico 3.30 and the one after it. Rules refer to the new one without pools too.
    if empty(find("all-ipam-pools")) || (some && empty(find("network-ip-pools"))) {
        let id = if empty(find("all-ipam-pools")) { "all-ipam-pools" } else { "network-ip-pools" };
        tell(id, &Fault::Empty, "packets between pods are masqueraded, so policies see the node instead of the pod");
    }
    // A node has an IPv4 address in any case; IPv6 may be link-local only.
    if family == Family::V4 && empty(find("this-host")) {
        tell("this-host", &Fault::Empty, "packets to this node are not told from packets to Services");
    }
    if family == Family::V4 && empty(find("all-hosts-net")) {
        tell("all-hosts-net", &Fault::Empty, "IPIP packets of all other nodes are dropped");
    }
}

fn ipvs_faults(look: &Look<'_>, sets: &[IpSet], family: Family, findings: &mut Vec<Finding>) {
    // `pkg/proxy/ipvs/ipset.go`.
    let prefix = if family == Family::V4 { "KUBE-" } else { "KUBE-6-" };
    let find = |id: &str| sets.iter().find(|set| set.name.strip_prefix(prefix) == Some(id));
    let mut tell = |id: &str, fault: &Fault, what: &str| {
        findings.push(chains::awaited(look, finding(&format!("{prefix}{id}"), fault, what)));
    };
    let what = "packets to cluster IPs are neither masqueraded nor let through";
    match find("CLUSTER-IP") {
        _ if !has_cluster_ips(look, family) => {}
        Some(set) if set.entries == 0 => tell("CLUSTER-IP", &Fault::Empty, what),
        None if has_chain(look, family, "KUBE-SERVICES") => tell("CLUSTER-IP", &Fault::Missing, what),
        _ => {}
    }
    // Its rule is written only while it has entries.
    if empty(find("LOOP-BACK")) {
        tell("LOOP-BACK", &Fault::Empty, "pods do not reach themselves through their Service");
    }
}

fn finding(name: &str, fault: &Fault, what: &str) -> Finding {
    let fault = match fault {
        Fault::Missing => "does not exist",
        Fault::Empty => "is empty though rules look into it",
    };
    Finding::new(name, format!("The set {name} {fault}: {what}"))
}

/// A set that rules look into and that has nothing in it.
fn empty(set: Option<&IpSet>) -> bool {
    set.is_some_and(|set| set.entries == 0 && set.references > 0)
}

/// Whether the cluster has a pool of this family that is in use.
fn has_pools(look: &Look<'_>, family: Family) -> bool {
    let pools = look.now.cluster.get().map_or(&[][..], |cluster| &cluster.pools);
    pools.iter().any(|pool| !pool.disabled && pool.cidr.addr().is_ipv4() == (family == Family::V4))
}

fn has_chain(look: &Look<'_>, family: Family, chain: &str) -> bool {
    let rulesets = [&look.now.nftables, &look.now.legacy].into_iter().filter_map(Seen::get);
    let has = |ruleset: &Ruleset, table: &str, chain: &str| {
        ruleset.table(family, table).is_some_and(|table| table.chain(chain).is_some())
    };
    let nat = |ruleset: &Ruleset| has(ruleset, "nat", chain) || has(ruleset, "calico", &format!("nat-{chain}"));
    rulesets.into_iter().any(nat)
}

/// Whether kube-proxy gave `kube-ipvs0` addresses of this family.
fn has_cluster_ips(look: &Look<'_>, family: Family) -> bool {
    look.now.routing.get().is_some_and(|routing| {
        let device = routing.links.iter().find(|link| link.name == IPVS_DEVICE);
        let ours = |it: &&crate::facts::Address| it.global && it.address.is_ipv4() == (family == Family::V4);
        device.is_some_and(|device| routing.addresses.iter().filter(ours).any(|it| it.link == device.index))
    })
}

#[cfg(test)]
mod tests {
    use super::super::testing::{self, Node};
    use super::*;
    use crate::facts::{Address, Backend, ClusterMap, Pool};

    fn set(name: &str, entries: u32, references: u32) -> IpSet {
        IpSet { name: name.into(), kind: "hash:net".into(), entries, references }
    }

    fn calico(sets: &[IpSet]) -> Node {
        Node::worker().calico(Backend::Nftables).edit(|now| now.ip_sets = Seen::Yes(sets.to_vec()))
    }

    fn ipvs(sets: &[IpSet]) -> Node {
        let node = Node::worker().ipvs().routing(|routing| {
            let address = "10.96.0.1".parse().expect("an address");
            routing.addresses.push(Address { link: 40, address, prefix: 32, global: true });
        });
        node.edit(|now| now.ip_sets = Seen::Yes(sets.to_vec()))
    }

    fn pool(node: Node, cidr: &str) -> Node {
        let pool = Pool {
            name: "p".into(),
            cidr: cidr.parse().expect("a network"),
            ipip: crate::facts::Encapsulation::Never,
            vxlan: crate::facts::Encapsulation::Never,
            disabled: false,
        };
        let map = ClusterMap {
            own: "n1".into(),
            nodes: vec![],
            pools: vec![pool],
            full_mesh: None,
            services: vec![],
            typha_port: None,
        };
        node.edit_chains(Backend::Nftables, "nat", |chains| {
            let mut chain = chains[chains.len() - 1].clone();
            chain.name = "cali-nat-outgoing".into();
            chains.push(chain);
        })
        .edit(|now| now.cluster = Seen::Yes(map))
    }

    #[test]
    fn calicos_pools_are_empty() {
        let outcome = run(&calico(&[set("cali40masq-ipam-pools", 0, 1), set("cali40all-ipam-pools", 0, 1)]).look());
        assert_eq!(testing::subjects(&outcome), ["cali40all-ipam-pools", "cali40masq-ipam-pools"]);
        let outcome = run(&calico(&[set("cali60masq-ipam-pools", 1, 1), set("cali60network-ip-pools", 0, 2)]).look());
        assert_eq!(testing::subjects(&outcome), ["cali60network-ip-pools"]);
        let outcome = run(&calico(&[set("cali40this-host", 0, 1), set("cali40all-hosts-net", 0, 1)]).look());
        assert_eq!(testing::subjects(&outcome), ["cali40all-hosts-net", "cali40this-host"]);
    }

    #[test]
    fn calicos_set_is_gone_though_there_are_pools() {
        let node = calico(&[]);
        assert_eq!(run(&node.look()), Outcome::Healthy, "nobody says that there are pools");
        let details = testing::details(&run(&pool(node.clone(), "10.1.0.0/16").look()));
        assert!(details[0].starts_with("The set cali40masq-ipam-pools does not exist"), "{details:?}");
        assert_eq!(run(&pool(node.clone(), "fd00::/48").look()), Outcome::Healthy, "IPv6 has no chains here");
        let absent = pool(node, "10.1.0.0/16").edit(|now| now.ip_sets = Seen::Absent);
        assert_eq!(testing::subjects(&run(&absent.look())), ["cali40masq-ipam-pools"]);
    }

    #[test]
    fn in_calicos_own_table() {
        let node = |sets: &[IpSet]| {
            let sets = sets.to_vec();
            Node::worker().calico(Backend::Nftables).edit(move |now| {
                let Seen::Yes(ruleset) = &mut now.nftables else { panic!("seen") };
                ruleset.tables[0].name = "calico".into();
                ruleset.sets = sets;
                // Nobody here uses ipset.
                now.ip_sets = testing::denied("ipset");
            })
        };
        let told = node(&[set("cali40masq-ipam-pools", 0, 1), set("cali60masq-ipam-pools", 0, 0)]);
        assert_eq!(testing::subjects(&run(&told.look())), ["cali40masq-ipam-pools"]);
        assert_eq!(run(&node(&[set("cali40masq-ipam-pools", 1, 1)]).look()), Outcome::Healthy);
        let waited = told.edit(|now| now.health.felix = testing::answers(200));
        let Outcome::Findings(findings) = run(&waited.look()) else { panic!("a finding") };
        assert_eq!(findings[0].owner_repairs_within, Some(NATIVE_REFRESH));
        let blind = waited.edit(|now| now.nftables = testing::denied("nf_tables"));
        assert!(matches!(run(&blind.look()), Outcome::Unknown(_)));
    }

    #[test]
    fn kube_proxys_set_is_empty_or_gone() {
        for (sets, what) in [(vec![set("KUBE-CLUSTER-IP", 0, 1)], "is empty"), (vec![], "does not exist")] {
            let details = testing::details(&run(&ipvs(&sets).look()));
            assert!(details[0].contains("KUBE-CLUSTER-IP") && details[0].contains(what), "{details:?}");
        }
        let outcome = run(&ipvs(&[set("KUBE-CLUSTER-IP", 3, 1), set("KUBE-LOOP-BACK", 0, 1)]).look());
        assert_eq!(testing::subjects(&outcome), ["KUBE-LOOP-BACK"]);
    }

    #[test]
    fn trap_sets_that_may_be_empty() {
        let node = calico(&[
            set("cali40masq-ipam-pools", 0, 0),
            set("cali40all-ipam-pools", 0, 0),
            set("cali40network-ip-pools", 0, 1),
            set("cali40dscp-src-net", 0, 1),
            set("cali40s:5DYuSn5tLWFQtZEUUL-THHn", 0, 3),
            set("cali60this-host", 0, 1),
            set("cali60network-ip-pools", 0, 1),
        ]);
        assert_eq!(run(&node.look()), Outcome::Healthy);
        let node = ipvs(&[set("KUBE-CLUSTER-IP", 1, 1), set("KUBE-6-CLUSTER-IP", 0, 2), set("KUBE-EXTERNAL-IP", 0, 1)]);
        assert_eq!(run(&node.look()), Outcome::Healthy);
    }

    #[test]
    fn trap_a_living_owner_is_waited_for() {
        let within = |node: Node| match run(&node.look()) {
            Outcome::Findings(findings) => findings[0].owner_repairs_within,
            outcome => panic!("{outcome:?}"),
        };
        let node = calico(&[set("cali40masq-ipam-pools", 0, 1)]);
        let dead = node.clone().remember(|before| _ = before.programs.insert(crate::facts::Program::Felix));
        assert_eq!(within(dead), None);
        assert_eq!(within(node.clone()), Some(JOINING), "a Felix that was not seen yet starts");
        assert_eq!(within(node.edit(|now| now.health.felix = testing::answers(200))), Some(FELIX_REFRESH));
        assert_eq!(within(ipvs(&[])), Some(Duration::from_secs(35)));
        assert_eq!(within(ipvs(&[]).edit(|now| now.health.kube_proxy = testing::answers(503))), None);
    }

    #[test]
    fn healthy_clears_and_not_applicable() {
        let full = [set("cali40masq-ipam-pools", 1, 1), set("cali40all-ipam-pools", 2, 1)];
        assert_eq!(run(&pool(calico(&full), "10.1.0.0/16").look()), Outcome::Healthy);
        assert_eq!(run(&ipvs(&[set("KUBE-CLUSTER-IP", 3, 1)]).look()), Outcome::Healthy);
        let empty = |now: &mut crate::facts::Snapshot| now.ip_sets = Seen::Yes(vec![set("KUBE-CLUSTER-IP", 0, 1)]);
        assert!(matches!(run(&Node::worker().edit(empty).look()), Outcome::NotApplicable(_)));
        assert!(matches!(run(&Node::plain_machine().look()), Outcome::NotApplicable(_)));
    }

    #[test]
    fn unknown_when_it_cannot_be_asked() {
        let denied = |node: Node| node.edit(|now| now.ip_sets = testing::denied("ipset"));
        assert!(matches!(run(&denied(calico(&[])).look()), Outcome::Unknown(_)));
        assert!(matches!(run(&denied(ipvs(&[])).look()), Outcome::Unknown(_)));
    }
}
