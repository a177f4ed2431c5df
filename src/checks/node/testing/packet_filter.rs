//! What programs the packet filter of a healthy worker, and how it breaks.

use super::*;

/// A backend without any table.
pub(in crate::checks::node) fn no_tables(backend: Backend) -> Seen<Ruleset> {
    Seen::Yes(Ruleset { generation: Some(1), ..Ruleset::empty(backend) })
}

/// A backend with one IPv4 table that holds these chains.
pub(in crate::checks::node) fn chains(backend: Backend, table: &str, names: &[&str]) -> Seen<Ruleset> {
    let chains = names.iter().map(|name| chain(name, &[])).collect();
    Seen::Yes(Ruleset { generation: Some(1), tables: vec![filter_table(table, chains)], ..Ruleset::empty(backend) })
}

pub(super) fn chain(name: &str, targets: &[&str]) -> Chain {
    let jump = |(position, target): (usize, &&str)| Jump {
        position: u32::try_from(position).expect("few"),
        target: (*target).into(),
    };
    let hook = match name.trim_end_matches("-pre-dnat").rsplit('-').next().unwrap_or(name).to_uppercase().as_str() {
        "PREROUTING" => Some(Hook::Prerouting),
        "INPUT" => Some(Hook::Input),
        "FORWARD" => Some(Hook::Forward),
        "OUTPUT" => Some(Hook::Output),
        "POSTROUTING" => Some(Hook::Postrouting),
        _ => None,
    };
    let base = hook.filter(|_| !targets.is_empty());
    let base = base.map(|hook| BaseChain { hook, policy: Policy::Accept, nat: false, priority: None });
    let jumps: Vec<Jump> = targets.iter().enumerate().map(jump).collect();
    let rule = |jump: &Jump| FilterRule { action: Action::Jump(jump.target.clone()), ..FilterRule::new(jump.position) };
    let rules = base.is_some().then(|| jumps.iter().map(rule).collect());
    Chain { jumps, rules, ..Chain::new(name, base) }
}

pub(super) fn filter_table(name: &str, chains: Vec<Chain>) -> Table {
    Table { family: Family::V4, name: name.into(), chains, per_object_chains: 0, foreign_chains: 0 }
}

pub(super) fn api_chain(name: &str) -> Vec<ServiceChain> {
    let endpoints = vec!["10.0.0.9:6443".parse().expect("an address")];
    let chain = ServiceChain::new(Family::V4, "default/kubernetes:https", "tcp", name);
    vec![ServiceChain { referenced: Some(true), endpoints, ..chain }]
}

/// A Service of one port as the cluster tells it: `namespace/name`, where it is asked, name and protocol of the port.
pub(in crate::checks::node) fn service(
    name: &str,
    at: &str,
    (port, protocol): (&str, &str),
    endpoints: &[&str],
) -> ClusterService {
    let address = |text: &str| text.parse::<std::net::SocketAddr>().expect("an address");
    let (namespace, name) = name.split_once('/').expect("a namespace");
    let endpoints = endpoints.iter().map(|it| address(it)).map(|it| (it.ip(), it.port())).collect();
    let (name_of_port, protocol) = (port.to_owned(), protocol.to_owned());
    ClusterService {
        namespace: namespace.into(),
        name: name.into(),
        cluster_ips: vec![address(at).ip()],
        ports: vec![ClusterServicePort { name: name_of_port, protocol, port: address(at).port(), endpoints }],
    }
}

/// A rule as `iptables-save` prints it behind `-A CHAIN`.
pub(in crate::checks::node) fn rule(text: &str) -> FilterRule {
    let own = ["ACCEPT", "DROP", "REJECT", "RETURN", "LOG", "MARK", "DNAT", "NFQUEUE"];
    crate::agent::read_rule(text, 0, |target| !own.contains(&target))
}

/// A chain of the kernel's hook of that name, with policy ACCEPT.
pub(in crate::checks::node) fn base(name: &str, rules: Vec<FilterRule>) -> Chain {
    Chain { jumps: vec![], rules: Some(rules), ..chain(name, &["-"]) }
}

pub(super) fn kube_proxy_tables() -> Vec<Table> {
    let nat = vec![
        chain("PREROUTING", &["KUBE-SERVICES"]),
        chain("OUTPUT", &["KUBE-SERVICES"]),
        chain("POSTROUTING", &["KUBE-POSTROUTING"]),
        chain("KUBE-SERVICES", &[]),
        chain("KUBE-POSTROUTING", &[]),
        chain("KUBE-MARK-MASQ", &[]),
        chain("KUBE-NODEPORTS", &[]),
    ];
    let filter = vec![chain("FORWARD", &["KUBE-FORWARD"]), chain("KUBE-FORWARD", &[])];
    vec![filter_table("nat", nat), filter_table("filter", filter)]
}

pub(super) fn calico_tables() -> Vec<Table> {
    let table = |name: &str, bases: &[&str]| {
        let hooked = bases.iter().map(|base| chain(base, &[format!("cali-{base}").as_str()]));
        let own = bases.iter().map(|base| chain(&format!("cali-{base}"), &[]));
        filter_table(name, hooked.chain(own).collect())
    };
    vec![
        table("filter", &["INPUT", "FORWARD", "OUTPUT"]),
        table("nat", &["PREROUTING", "OUTPUT", "POSTROUTING"]),
        table("raw", &["PREROUTING", "OUTPUT"]),
        table("mangle", &["PREROUTING"]),
    ]
}

impl Node {
    /// kube-proxy's chains in this backend alone.
    pub(in crate::checks::node) fn kube_proxy(self, backend: Backend) -> Self {
        self.edit(|now| {
            now.nftables = no_tables(Backend::Nftables);
            now.legacy = Seen::Absent;
        })
        .and_kube_proxy(backend)
    }

    /// kube-proxy's chains in this backend too.
    pub(in crate::checks::node) fn and_kube_proxy(self, backend: Backend) -> Self {
        self.edit(|now| {
            let seen = Seen::Yes(Ruleset {
                generation: Some(1),
                tables: kube_proxy_tables(),
                services: api_chain("KUBE-SVC-NPX46M4PTMTKRN6Y"),
                ..Ruleset::empty(backend)
            });
            match backend {
                Backend::Nftables => now.nftables = seen,
                Backend::Legacy => now.legacy = seen,
            }
        })
    }

    /// kube-proxy's native nftables mode.
    pub(in crate::checks::node) fn kube_proxy_native(self) -> Self {
        self.edit(|now| {
            let hooked: [(&str, i32, &[&str]); 8] = [
                ("filter-prerouting-pre-dnat", -110, &["firewall-check"]),
                ("filter-output-pre-dnat", -110, &["firewall-check"]),
                ("filter-input", 0, &["nodeport-endpoints-check", "service-endpoints-check"]),
                ("filter-forward", 0, &["service-endpoints-check", "cluster-ips-check"]),
                ("filter-output", 0, &["service-endpoints-check", "cluster-ips-check"]),
                ("nat-prerouting", -100, &["services"]),
                ("nat-output", -100, &["services"]),
                ("nat-postrouting", 100, &["masquerading"]),
            ];
            let mut chains: Vec<Chain> = hooked.iter().map(|(name, _, targets)| chain(name, targets)).collect();
            for (chain, (_, priority, _)) in chains.iter_mut().zip(hooked) {
                chain.base = chain.base.map(|base| BaseChain { priority: Some(priority), ..base });
            }
            for target in hooked.iter().flat_map(|(.., targets)| *targets) {
                if !chains.iter().any(|chain| chain.name == *target) {
                    chains.push(chain(target, &[]));
                }
            }
            let ip6 = Table { family: Family::V6, ..filter_table("kube-proxy", chains.clone()) };
            now.nftables = Seen::Yes(Ruleset {
                generation: Some(1),
                tables: vec![filter_table("kube-proxy", chains), ip6],
                services: api_chain("service-2QRHZV4L-default/kubernetes/tcp/https"),
                ..Ruleset::empty(Backend::Nftables)
            });
        })
    }

    /// kube-proxy's IPVS mode, with the link of its addresses and the chains that it makes.
    pub(in crate::checks::node) fn ipvs(self) -> Self {
        self.routing(|routing| {
            let mut device = routing.links[1].clone();
            (device.index, device.name) = (40, IPVS_DEVICE.into());
            routing.links.push(device);
        })
        .edit_chains(Backend::Nftables, "nat", |chains| {
            for chain in chains.iter_mut().filter(|chain| chain.name == "KUBE-NODEPORTS") {
                chain.name = "KUBE-NODE-PORT".into();
            }
        })
    }

    /// Without kube-proxy.
    pub(in crate::checks::node) fn without_kube_proxy(self) -> Self {
        self.without(Program::KubeProxy).edit(|now| now.nftables = no_tables(Backend::Nftables))
    }

    /// Calico's chains in a backend, and its CNI configuration.
    pub(in crate::checks::node) fn calico(self, backend: Backend) -> Self {
        self.cni_plugin("calico").edit(|now| {
            let seen = Seen::Yes(Ruleset { generation: Some(1), tables: calico_tables(), ..Ruleset::empty(backend) });
            match backend {
                Backend::Nftables => now.nftables = seen,
                Backend::Legacy => {
                    now.legacy = seen;
                    now.nftables = no_tables(Backend::Nftables);
                }
            }
        })
    }

    /// Changes the chains of one table.
    pub(in crate::checks::node) fn edit_chains(
        self,
        backend: Backend,
        table: &str,
        change: impl FnOnce(&mut Vec<Chain>),
    ) -> Self {
        self.edit(|now| {
            let seen = match backend {
                Backend::Nftables => &mut now.nftables,
                Backend::Legacy => &mut now.legacy,
            };
            let Seen::Yes(ruleset) = seen else { panic!("seen") };
            change(&mut ruleset.tables.iter_mut().find(|it| it.name == table).expect("the table").chains);
        })
    }

    /// A chain with these rules, put in the place of the one of that name; a base chain where a hook and a policy are given.
    pub(in crate::checks::node) fn rules(
        self,
        backend: Backend,
        (table, name): (&str, &str),
        base: Option<(Hook, Policy)>,
        rules: Vec<FilterRule>,
    ) -> Self {
        self.edit(|now| {
            let seen = match backend {
                Backend::Nftables => &mut now.nftables,
                Backend::Legacy => &mut now.legacy,
            };
            if seen.get().is_none() {
                *seen = no_tables(backend);
            }
            let Seen::Yes(ruleset) = seen else { panic!("seen") };
            let (all, table) = match table.strip_prefix("inet ") {
                Some(table) => (&mut ruleset.inet, table),
                None => (&mut ruleset.tables, table),
            };
            if !all.iter().any(|it| it.name == table) {
                all.push(filter_table(table, vec![]));
            }
            let table = all.iter_mut().find(|it| it.name == table).expect("just made");
            table.chains.retain(|chain| chain.name != name);
            let base = base.map(|(hook, policy)| BaseChain { hook, policy, nat: false, priority: None });
            let numbered = (0..).zip(rules).map(|(position, rule)| FilterRule { position, ..rule }).collect::<Vec<_>>();
            let jump = |rule: &FilterRule| {
                rule.target().map(|target| Jump { position: rule.position, target: target.to_owned() })
            };
            let jumps = numbered.iter().filter_map(jump).collect();
            table.chains.push(Chain { jumps, rules: Some(numbered), ..Chain::new(name, base) });
        })
    }
}
