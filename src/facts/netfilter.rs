//! The packet filter: tables, the chains that matter, and what the base chains jump to.

use std::net::{IpAddr, SocketAddr};

use ipnet::IpNet;
use serde::Serialize;

use super::{Family, IpSet};

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

/// What a rule does with a packet that it matches.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
#[serde(rename_all = "camelCase")]
pub enum Action {
    /// Nothing that ends the way of a packet: it counts, logs, marks.
    Continue,
    /// Accepts.
    Accept,
    /// Drops.
    Drop,
    /// Rejects.
    Reject,
    /// Returns to the chain before.
    Return,
    /// Hands over to a program.
    Queue,
    /// Goes through a chain, and comes back.
    Jump(String),
    /// Goes through a chain, and does not come back.
    Goto(String),
    /// Translates the destination; none when the new one cannot be read.
    Dnat(Option<SocketAddr>),
    /// Something else that may be a verdict: a target by its name, or `vmap`.
    Other(String),
}

/// One condition of a rule.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct Is<T> {
    /// Whether everything but this matches.
    #[serde(skip_serializing_if = "std::ops::Not::not")]
    pub not: bool,
    /// The value.
    pub value: T,
}

/// One rule: what it does, and which packets it matches. Conditions hold together; one that is none does not restrict.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct FilterRule {
    /// Its position among all rules of the chain, from 0.
    pub position: u32,
    /// What it does.
    pub action: Action,
    /// Family, in tables that hold both.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub family: Option<Family>,
    /// Protocol number: 6 is TCP, 17 is UDP.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub protocol: Option<Is<u8>>,
    /// Source.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub source: Option<Is<IpNet>>,
    /// Destination.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub destination: Option<Is<IpNet>>,
    /// Incoming link; `cali+` stands for all that begin with `cali`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub input: Option<Is<String>>,
    /// Outgoing link, likewise.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub output: Option<Is<String>>,
    /// Destination ports, as ranges with both ends; empty for any.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub ports: Vec<(u16, u16)>,
    /// States of a connection, as bits: see [`FilterRule::NEW`].
    #[serde(skip_serializing_if = "Option::is_none")]
    pub states: Option<u32>,
    /// Packet mark: value and mask.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub mark: Option<Is<(u32, u32)>>,
    /// Sets that it looks into, by name; where nf_tables tells only the number of an ipset, `#number`.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub sets: Vec<Is<String>>,
    /// Whether it changes the packet's mark, which is how Calico notes that a policy accepts.
    #[serde(skip_serializing_if = "std::ops::Not::not")]
    pub marks: bool,
    /// Its comment.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub comment: Option<String>,
    /// Whether it has conditions that are not understood: it matches less than it seems to.
    #[serde(skip_serializing_if = "std::ops::Not::not")]
    pub other_matches: bool,
    /// Packets that it has matched, rounded down to a power of ten so that they rarely change; none without a counter.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub packets: Option<u64>,
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

impl<T> Is<T> {
    /// A condition that is or is not met by this value.
    pub fn new(value: T, not: bool) -> Self {
        Is { not, value }
    }
}

impl FilterRule {
    /// `NF_CT_STATE_INVALID_BIT` of `linux/netfilter/nf_conntrack_common.h`.
    pub const INVALID: u32 = 1;
    /// `NF_CT_STATE_BIT(IP_CT_ESTABLISHED)`.
    pub const ESTABLISHED: u32 = 2;
    /// `NF_CT_STATE_BIT(IP_CT_RELATED)`.
    pub const RELATED: u32 = 4;
    /// `NF_CT_STATE_BIT(IP_CT_NEW)`.
    pub const NEW: u32 = 8;
    /// `NF_CT_STATE_UNTRACKED_BIT`.
    pub const UNTRACKED: u32 = 64;

    /// A rule that matches everything and does nothing yet.
    pub fn new(position: u32) -> Self {
        FilterRule {
            position,
            action: Action::Continue,
            family: None,
            protocol: None,
            source: None,
            destination: None,
            input: None,
            output: None,
            ports: Vec::new(),
            states: None,
            mark: None,
            sets: Vec::new(),
            marks: false,
            comment: None,
            other_matches: false,
            packets: None,
        }
    }

    /// Adds a comment to those that it has: Calico's rules can have two.
    pub(crate) fn add_comment(&mut self, text: &str) {
        match &mut self.comment {
            Some(comment) => {
                comment.push(' ');
                comment.push_str(text);
            }
            None => self.comment = Some(text.to_owned()),
        }
    }

    /// The chain that it jumps or goes to.
    pub fn target(&self) -> Option<&str> {
        match &self.action {
            Action::Jump(target) | Action::Goto(target) => Some(target),
            _ => None,
        }
    }

    /// Whether it matches every packet.
    pub fn matches_everything(&self) -> bool {
        let open = FilterRule {
            position: self.position,
            action: self.action.clone(),
            marks: self.marks,
            comment: self.comment.clone(),
            packets: self.packets,
            ..FilterRule::new(0)
        };
        *self == open
    }

    /// Whether it can match a packet that opens a connection.
    pub fn may_open(&self) -> bool {
        self.states.is_none_or(|states| states & FilterRule::NEW != 0)
    }

    /// Whether its conditions on addresses allow a packet from `from` to `to`; none stands for any address.
    pub fn allows(&self, from: Option<IpAddr>, to: Option<IpAddr>) -> bool {
        let fits = |condition: &Option<Is<IpNet>>, address: Option<IpAddr>| match (condition, address) {
            (Some(net), Some(address)) => net.value.contains(&address) != net.not,
            _ => true,
        };
        fits(&self.source, from) && fits(&self.destination, to)
    }

    /// Whether its conditions on links allow a packet that comes in by `input` and leaves by `output`; none stands for any
    /// link.
    pub fn allows_links(&self, input: Option<&str>, output: Option<&str>) -> bool {
        let fits = |condition: &Option<Is<String>>, link: Option<&str>| match (condition, link) {
            (Some(name), Some(link)) => {
                let same = name.value.strip_suffix('+').map_or(name.value == link, |start| link.starts_with(start));
                same != name.not
            }
            _ => true,
        };
        fits(&self.input, input) && fits(&self.output, output)
    }
}

/// A count of packets, rounded down to a power of ten.
pub(crate) fn rounded(packets: u64) -> u64 {
    packets.checked_ilog10().map_or(0, |power| 10_u64.pow(power))
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
