//! The nf_tables messages that are used, read from bytes: no socket, no state, no panic.
//!
//! Numbers and names are those of `linux/netfilter/nf_tables.h` and `linux/netfilter/nfnetlink.h`. Numbers inside
//! attributes are big-endian there, the attributes' own headers are in the machine's order.

use std::borrow::Cow;

use crate::agent::observe::netlink::{Attributes, Malformed, find, put, text};
use crate::facts::{BaseChain, Family, Hook, Policy};

/// `NFNL_SUBSYS_NFTABLES`, the upper byte of every message type.
const SUBSYSTEM: u16 = 10 << 8;
/// `NFT_MSG_GETTABLE`.
pub(super) const GET_TABLE: u16 = SUBSYSTEM | 1;
/// `NFT_MSG_GETCHAIN`.
pub(super) const GET_CHAIN: u16 = SUBSYSTEM | 4;
/// `NFT_MSG_GETRULE`.
pub(super) const GET_RULE: u16 = SUBSYSTEM | 7;
/// `NFT_MSG_GETSETELEM`.
pub(super) const GET_ELEMENTS: u16 = SUBSYSTEM | 0xd;
/// `NFT_MSG_NEWGEN`.
pub(crate) const NEW_GENERATION: u16 = SUBSYSTEM | 15;
/// `NFT_MSG_GETGEN`.
pub(super) const GET_GENERATION: u16 = SUBSYSTEM | 16;

/// `NFTA_TABLE_NAME`.
const TABLE_NAME: u16 = 1;
/// `NFTA_CHAIN_TABLE`.
const CHAIN_TABLE: u16 = 1;
/// `NFTA_CHAIN_NAME`.
const CHAIN_NAME: u16 = 3;
/// `NFTA_CHAIN_HOOK`: only base chains have it.
const CHAIN_HOOK: u16 = 4;
/// `NFTA_CHAIN_POLICY`: `NF_DROP` 0 or `NF_ACCEPT` 1.
const CHAIN_POLICY: u16 = 5;
/// `NFTA_CHAIN_USE`: its rules, and what leads to it.
const CHAIN_USE: u16 = 6;
/// `NFTA_CHAIN_TYPE`: `filter`, `nat` or `route`.
const CHAIN_TYPE: u16 = 7;
/// `NFTA_HOOK_HOOKNUM`.
const HOOK_NUMBER: u16 = 1;
const HOOK_PRIORITY: u16 = 2;
/// `NFTA_RULE_TABLE`.
const RULE_TABLE: u16 = 1;
/// `NFTA_RULE_CHAIN`.
const RULE_CHAIN: u16 = 2;
/// `NFTA_SET_ELEM_LIST_TABLE`.
const ELEMENTS_TABLE: u16 = 1;
/// `NFTA_SET_ELEM_LIST_SET`.
const ELEMENTS_SET: u16 = 2;
/// `NFTA_SET_ELEM_LIST_ELEMENTS`: a list of `NFTA_LIST_ELEM`.
const ELEMENTS: u16 = 3;
/// `NFTA_SET_ELEM_FLAGS`.
const ELEMENT_FLAGS: u16 = 3;
/// `NFT_SET_ELEM_INTERVAL_END`.
const INTERVAL_END: u32 = 1;
/// `NFTA_GEN_ID`.
const GENERATION_ID: u16 = 1;
/// `NFTA_GEN_PROC_PID`.
const GENERATION_PID: u16 = 2;
/// `NFTA_GEN_PROC_NAME`.
const GENERATION_PROGRAM: u16 = 3;

/// `NFPROTO_INET`.
const INET: u8 = 1;

/// `struct nfgenmsg`, the beginning of every message that asks for all families: family, version 0, resource 0.
pub(super) const ALL: [u8; 4] = [0; 4];

/// The beginning of a message about one family; none stands for `inet`.
fn head(family: Option<Family>) -> Vec<u8> {
    let family = match family {
        None => INET,
        // `NFPROTO_IPV4`, `NFPROTO_IPV6`.
        Some(Family::V4) => 2,
        Some(Family::V6) => 10,
    };
    vec![family, 0, 0, 0]
}

/// A request for the rules of one chain. No family stands for `inet`.
pub(super) fn rules_of(family: Option<Family>, table: &str, chain: &str) -> Vec<u8> {
    let mut body = head(family);
    put_text(&mut body, RULE_TABLE, table);
    put_text(&mut body, RULE_CHAIN, chain);
    body
}

/// A request for one chain; no family stands for `inet`.
pub(super) fn chain_named(family: Option<Family>, table: &str, chain: &str) -> Vec<u8> {
    let mut body = head(family);
    put_text(&mut body, CHAIN_TABLE, table);
    put_text(&mut body, CHAIN_NAME, chain);
    body
}

/// A request for the elements of one set.
pub(super) fn elements_of(family: Family, table: &str, set: &str) -> Vec<u8> {
    let mut body = head(Some(family));
    put_text(&mut body, ELEMENTS_TABLE, table);
    put_text(&mut body, ELEMENTS_SET, set);
    body
}

/// Whether a message about elements of a set holds one. The end of an interval is none: that below the first interval stays
/// when all that was in the set has been deleted.
pub(super) fn has_element(body: &[u8]) -> Result<bool, Malformed> {
    let (_, attributes) = open(body)?;
    for element in Attributes(find(attributes, ELEMENTS)?.unwrap_or_default()) {
        let (_, element) = element?;
        let flags = find(Attributes(element), ELEMENT_FLAGS)?.map_or(Ok(0), number)?;
        if flags & INTERVAL_END == 0 {
            return Ok(true);
        }
    }
    Ok(false)
}

/// Appends a string attribute, with its NUL.
fn put_text(body: &mut Vec<u8>, kind: u16, text: &str) {
    put(body, kind, &[text.as_bytes(), &[0]].concat());
}

/// The protocol and the attributes of a message.
pub(super) fn open(body: &[u8]) -> Result<(u8, Attributes<'_>), Malformed> {
    let (head, rest) = body.split_first_chunk::<4>().ok_or(Malformed("a message ends in its family"))?;
    Ok((head[0], Attributes(rest)))
}

/// The family of a protocol; none for `inet` and for those that are not looked at.
pub(super) fn family(protocol: u8) -> Option<Family> {
    match protocol {
        2 => Some(Family::V4),
        10 => Some(Family::V6),
        _ => None,
    }
}

/// Whether tables of a protocol are looked at.
fn is_looked_at(protocol: u8) -> bool {
    protocol == INET || family(protocol).is_some()
}

/// Family and name of a table; no family stands for `inet`.
type Named<'a> = (Option<Family>, Cow<'a, str>);

pub(super) fn number(value: &[u8]) -> Result<u32, Malformed> {
    value.try_into().map(u32::from_be_bytes).map_err(|_| Malformed("a number is not 4 bytes long"))
}

/// Family and name of a table; none for families that are not looked at.
pub(super) fn table(body: &[u8]) -> Result<Option<Named<'_>>, Malformed> {
    let (protocol, attributes) = open(body)?;
    if !is_looked_at(protocol) {
        return Ok(None);
    }
    let name = find(attributes, TABLE_NAME)?.ok_or(Malformed("a table has no name"))?;
    Ok(Some((family(protocol), text(name))))
}

/// One chain.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Chain<'a> {
    pub(super) family: Option<Family>,
    pub(super) table: Cow<'a, str>,
    pub(super) name: Cow<'a, str>,
    pub(super) base: Option<BaseChain>,
    /// How many rules it has, and how many rules and elements of maps lead to it, together.
    pub(super) users: u32,
}

/// A chain; none for families that are not looked at.
pub(super) fn chain(body: &[u8]) -> Result<Option<Chain<'_>>, Malformed> {
    let (protocol, attributes) = open(body)?;
    if !is_looked_at(protocol) {
        return Ok(None);
    }
    let (mut table, mut name, mut hook, mut policy) = (None, None, None, Policy::Accept);
    let (mut users, mut nat, mut priority) = (0, false, None);
    for attribute in attributes {
        match attribute? {
            (CHAIN_TABLE, value) => table = Some(text(value)),
            (CHAIN_NAME, value) => name = Some(text(value)),
            (CHAIN_HOOK, value) => (hook, priority) = hook_of(value)?,
            (CHAIN_USE, value) => users = number(value)?,
            (CHAIN_TYPE, value) => nat = text(value) == "nat",
            (CHAIN_POLICY, value) => policy = if number(value)? == 0 { Policy::Drop } else { Policy::Accept },
            _ => {}
        }
    }
    Ok(Some(Chain {
        family: family(protocol),
        table: table.ok_or(Malformed("a chain has no table"))?,
        name: name.ok_or(Malformed("a chain has no name"))?,
        base: hook.map(|hook| BaseChain { hook, policy, nat, priority }),
        users,
    }))
}

/// `enum nf_inet_hooks` of `linux/netfilter.h`, none for hooks that the two families do not have; and the place there.
fn hook_of(value: &[u8]) -> Result<(Option<Hook>, Option<i32>), Malformed> {
    let hook = match find(Attributes(value), HOOK_NUMBER)?.map(number).transpose()? {
        Some(0) => Some(Hook::Prerouting),
        Some(1) => Some(Hook::Input),
        Some(2) => Some(Hook::Forward),
        Some(3) => Some(Hook::Output),
        Some(4) => Some(Hook::Postrouting),
        _ => None,
    };
    let priority = find(Attributes(value), HOOK_PRIORITY)?.map(number).transpose()?;
    Ok((hook, priority.map(u32::cast_signed)))
}

/// A generation, and who made it: the kernel says so only in the notification.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Generation {
    pub(crate) id: u32,
    pub(crate) pid: Option<u32>,
    pub(crate) program: Option<String>,
}

/// The message `NFT_MSG_NEWGEN`: the answer to `NFT_MSG_GETGEN`, and the notification after every commit.
pub(crate) fn generation(body: &[u8]) -> Result<Generation, Malformed> {
    let (_, attributes) = open(body)?;
    let (mut id, mut pid, mut program) = (None, None, None);
    for attribute in attributes {
        match attribute? {
            (GENERATION_ID, value) => id = Some(number(value)?),
            (GENERATION_PID, value) => pid = Some(number(value)?),
            (GENERATION_PROGRAM, value) => program = Some(text(value).into_owned()),
            _ => {}
        }
    }
    let id = id.ok_or(Malformed("a generation has no number"))?;
    Ok(Generation { id, pid, program: program.filter(|name| !name.is_empty()) })
}

/// The fuzz target's door.
#[cfg(any(test, fuzzing))]
pub(crate) fn fuzz(data: &[u8]) {
    let Some((which, body)) = data.split_first() else { return };
    match which % 5 {
        0 => drop(table(body)),
        1 => drop(chain(body)),
        2 => drop(super::rule::rule(body, 0)),
        3 => drop(has_element(body)),
        _ => drop(generation(body)),
    }
    // A request that is made of any name is one that can be read.
    let name = text(body.get(..body.len().min(256)).unwrap_or_default());
    let request = rules_of(Some(Family::V4), &name, &name);
    let (_, attributes) = open(&request).expect("a head");
    assert_eq!(find(attributes, RULE_CHAIN).map(|it| it.map(text)), Ok(Some(name)));
}

#[cfg(test)]
mod tests;
