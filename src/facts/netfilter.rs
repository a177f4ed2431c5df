//! The packet filter: tables, the chains that matter, and what the base chains jump to.

mod rule;

use std::net::SocketAddr;

use serde::Serialize;

use super::{Family, IpSet};
pub(crate) use rule::rounded;
pub use rule::{Action, FilterRule, Is};

/// Which kernel subsystem holds the rules.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize)]
#[serde(rename_all = "camelCase")]
pub enum Backend {
    /// nf_tables: `iptables-nft`, and the native nftables mode of kube-proxy and Calico.
    Nftables,
    /// ip_tables: `iptables-legacy`.
    Legacy,
}

impl std::fmt::Display for Backend {
    fn fmt(&self, out: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        out.write_str(match self {
            Backend::Nftables => "nf_tables",
            Backend::Legacy => "legacy iptables",
        })
    }
}

/// What one backend holds. A full rule set can have a hundred thousand rules; kept here are the chains whose names
/// Kubernetes and Calico give meaning to, the base chains, and counts of the rest.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct Ruleset {
    /// The backend.
    pub backend: Backend,
    /// `NFTA_GEN_ID`: grows by one with each commit. None for the legacy backend, which has none.
    pub generation: Option<u32>,
    /// Its tables.
    pub tables: Vec<Table>,
    /// Tables of nf_tables' family `inet`, which stand in the way of both families (firewalld, `nftables.service`). Their
    /// [`Table::family`] says nothing.
    pub inet: Vec<Table>,
    /// Chains of Services that everything needs, as far as they are there.
    pub services: Vec<ServiceChain>,
    /// Sets in Calico's own tables (`calico`) whose names are the same on every node.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub sets: Vec<IpSet>,
}

/// One table of one family.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct Table {
    /// Family.
    pub family: Family,
    /// `filter`, `nat`, `mangle`, `raw` for iptables in either backend; `kube-proxy`, `calico` for the native modes.
    pub name: String,
    /// Base chains, chains with names of Kubernetes or Calico that are not one per Service, endpoint or pod, and the
    /// chains of others through which a packet to or from a pod goes.
    pub chains: Vec<Chain>,
    /// Chains that are one per Service, endpoint, policy or pod (`KUBE-SVC-*`, `KUBE-SEP-*`, `cali-tw-*`, ...).
    pub per_object_chains: u32,
    /// Chains of anybody else that are not among [`Table::chains`].
    pub foreign_chains: u32,
}

/// One chain.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct Chain {
    /// Its name.
    pub name: String,
    /// Set when the kernel calls it by itself.
    pub base: Option<BaseChain>,
    /// What its rules jump or go to, in order. Read for base chains only; empty otherwise.
    pub jumps: Vec<Jump>,
    /// Its rules in order, the first [`Chain::MOST_RULES`] of them; none when they were not read. Read for base chains, and
    /// for the small ones of others and `KUBE-FORWARD` that a packet to or from a pod goes through.
    pub rules: Option<Vec<FilterRule>>,
    /// Whether it has more rules than are kept.
    pub cut: bool,
}

/// Where and how a base chain is attached.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct BaseChain {
    /// The hook.
    pub hook: Hook,
    /// The verdict for what no rule decided.
    pub policy: Policy,
    /// Whether it translates addresses (type `nat`): such a chain sees only the first packet of a connection.
    pub nat: bool,
    /// Its place among those of its hook, lowest first (`enum nf_ip_hook_priorities`); none in the legacy backend, where it
    /// goes by the table.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub priority: Option<i32>,
}

/// Netfilter hooks (`enum nf_inet_hooks` of `linux/netfilter.h`).
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize)]
#[serde(rename_all = "camelCase")]
pub enum Hook {
    /// `NF_INET_PRE_ROUTING`, 0.
    Prerouting,
    /// `NF_INET_LOCAL_IN`, 1.
    Input,
    /// `NF_INET_FORWARD`, 2.
    Forward,
    /// `NF_INET_LOCAL_OUT`, 3.
    Output,
    /// `NF_INET_POST_ROUTING`, 4.
    Postrouting,
}

/// A base chain's policy.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "camelCase")]
pub enum Policy {
    /// `NF_ACCEPT`.
    Accept,
    /// `NF_DROP`.
    Drop,
}

/// A rule of a base chain that jumps or goes to another chain.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct Jump {
    /// Its position among all rules of the chain, from 0.
    pub position: u32,
    /// The chain it names.
    pub target: String,
}

/// The chain of one port of one Service.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct ServiceChain {
    /// Family.
    pub family: Family,
    /// `namespace/name:port`, as kube-proxy writes it.
    pub service: String,
    /// `tcp` or `udp`.
    pub protocol: String,
    /// The chain.
    pub chain: String,
    /// Whether any rule or map leads to it; none where the backend does not say.
    pub referenced: Option<bool>,
    /// Where it sends packets to.
    pub endpoints: Vec<SocketAddr>,
    /// Chains of endpoints that it names and that translate to nothing.
    pub dead_ends: Vec<String>,
}

/// A virtual server of IPVS: one port of one address of a Service.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct VirtualServer {
    /// Where it is asked.
    pub at: SocketAddr,
    /// Whether by UDP; by TCP otherwise.
    pub udp: bool,
    /// Real servers that it sends new connections to: those with a weight.
    pub endpoints: Vec<SocketAddr>,
}

impl VirtualServer {
    /// Those on other ports are not looked at: HTTPS, where the API server's Service is, and DNS.
    pub const PORTS: [u16; 2] = [443, 53];
}

impl Chain {
    /// How many rules of a chain are kept.
    pub const MOST_RULES: usize = 128;

    /// A chain whose rules have not been read.
    pub fn new(name: &str, base: Option<BaseChain>) -> Self {
        Chain { name: name.to_owned(), base, jumps: Vec::new(), rules: None, cut: false }
    }

    /// Its rules; none when they were not read.
    pub fn rules(&self) -> &[FilterRule] {
        self.rules.as_deref().unwrap_or_default()
    }
}

impl ServiceChain {
    /// The chain of a Service that leads nowhere yet.
    pub fn new(family: Family, service: &str, protocol: &str, chain: &str) -> Self {
        ServiceChain {
            family,
            service: service.to_owned(),
            protocol: protocol.to_owned(),
            chain: chain.to_owned(),
            referenced: None,
            endpoints: Vec::new(),
            dead_ends: Vec::new(),
        }
    }

    /// What it is about.
    pub(crate) fn key(&self) -> (Family, &str, &str) {
        (self.family, &self.service, &self.protocol)
    }
}

impl Ruleset {
    /// A rule set without tables.
    pub fn empty(backend: Backend) -> Self {
        Ruleset {
            backend,
            generation: None,
            tables: Vec::new(),
            inet: Vec::new(),
            services: Vec::new(),
            sets: Vec::new(),
        }
    }

    /// The table of this family and name.
    pub fn table(&self, family: Family, name: &str) -> Option<&Table> {
        self.tables.iter().find(|table| table.family == family && table.name == name)
    }

    /// Whether any table has a chain for which `wanted` is true.
    pub fn any_chain(&self, wanted: impl Fn(&str) -> bool) -> bool {
        self.tables.iter().any(|table| table.chains.iter().any(|chain| wanted(&chain.name)))
    }
}

impl Table {
    /// The chain of this name.
    pub fn chain(&self, name: &str) -> Option<&Chain> {
        self.chains.iter().find(|chain| chain.name == name)
    }

    /// Whether the chain `from` exists and has a rule that jumps to `to`.
    pub fn jumps(&self, from: &str, to: &str) -> bool {
        self.chain(from).is_some_and(|chain| chain.jumps.iter().any(|jump| jump.target == to))
    }
}
