//! One rule of the packet filter: what it does, and which packets it matches.

use std::net::{IpAddr, SocketAddr};

use ipnet::IpNet;
use serde::Serialize;

use super::Family;

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
