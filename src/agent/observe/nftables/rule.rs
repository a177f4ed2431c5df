//! One rule of nf_tables, from the message about it: what it does and which packets it matches.
//!
//! What `nft` and `iptables-nft` write for the same rule differs: the one compares registers for everything, the other hands
//! some conditions to the old matches of xtables, whose own structures are inside the message. An expression that is not
//! known here makes a rule match less than it seems to, never more. Numbers are those of `linux/netfilter/nf_tables.h` and
//! of the headers named beside them.

use std::net::SocketAddr;

use super::wire::{self, number, open};
use super::xt;
use crate::agent::observe::netlink::{Attributes, Malformed, find, text};
use crate::facts::{Action, Family, FilterRule, Is};
use values::{Fields, address, data, fields, host, link, port, prefix, set, value};

pub(crate) mod values;

/// `NFTA_RULE_EXPRESSIONS`: a list of `NFTA_LIST_ELEM`.
pub(super) const RULE_EXPRESSIONS: u16 = 4;
/// `NFTA_RULE_USERDATA`: what the program that wrote it notes for itself.
const RULE_USERDATA: u16 = 7;
/// `NFTNL_UDATA_RULE_COMMENT` of libnftnl.
const USERDATA_COMMENT: u8 = 0;
/// `NFTA_LIST_ELEM`.
pub(super) const LIST_ELEMENT: u16 = 1;
/// `NFTA_EXPR_NAME`.
pub(super) const EXPRESSION_NAME: u16 = 1;
/// `NFTA_EXPR_DATA`.
pub(super) const EXPRESSION_DATA: u16 = 2;
/// `NFTA_DATA_VERDICT`.
pub(super) const DATA_VERDICT: u16 = 2;
/// `NFTA_VERDICT_CODE`.
pub(super) const VERDICT_CODE: u16 = 1;
/// `NFTA_VERDICT_CHAIN`.
pub(super) const VERDICT_CHAIN: u16 = 2;
/// `NFT_JUMP`, -3.
pub(super) const JUMP: u32 = (-3_i32).cast_unsigned();
/// `NFT_GOTO`, -4.
pub(super) const GOTO: u32 = (-4_i32).cast_unsigned();
/// `NFT_RETURN`, -5.
const RETURN: u32 = (-5_i32).cast_unsigned();

/// What a register was loaded with.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Load {
    Source(Family),
    Destination(Family),
    Protocol,
    NetworkProtocol,
    DestinationPort,
    InputName,
    OutputName,
    InputIndex,
    OutputIndex,
    State,
    Mark,
}

/// Expressions that are known. Any other restricts, for all that is known here.
const KNOWN: [&str; 32] = [
    "bitwise",
    "byteorder",
    "cmp",
    "counter",
    "ct",
    "dup",
    "exthdr",
    "fib",
    "fwd",
    "hash",
    "immediate",
    "log",
    "lookup",
    "masq",
    "match",
    "meta",
    "nat",
    "notrack",
    "numgen",
    "osf",
    "payload",
    "queue",
    "range",
    "redir",
    "reject",
    "rt",
    "socket",
    "synproxy",
    "target",
    "tproxy",
    "tunnel",
    "xfrm",
];

/// The rule of one message, with its whole packet counter.
pub(super) fn rule(body: &[u8], position: u32) -> Result<FilterRule, Malformed> {
    let (protocol, attributes) = open(body)?;
    let family = wire::family(protocol);
    let mut reader = Reader { rule: FilterRule::new(position), family, loads: Vec::new(), values: Vec::new() };
    for attribute in attributes {
        match attribute? {
            (RULE_EXPRESSIONS, expressions) => {
                for element in Attributes(expressions) {
                    let (kind, expression) = element?;
                    if kind == LIST_ELEMENT {
                        reader.expression(expression)?;
                    }
                }
            }
            (RULE_USERDATA, value) => reader.rule.comment = reader.rule.comment.take().or_else(|| comment(value)),
            _ => {}
        }
    }
    Ok(reader.rule)
}

/// The comment among the notes: type, length, value, each of the first two one byte.
fn comment(mut notes: &[u8]) -> Option<String> {
    while let [kind, length, rest @ ..] = notes {
        let (value, rest) = rest.split_at_checked(usize::from(*length))?;
        if *kind == USERDATA_COMMENT {
            return Some(text(value).into_owned());
        }
        notes = rest;
    }
    None
}

/// A rule as far as it was read.
struct Reader<'a> {
    rule: FilterRule,
    /// The family of its table; none for `inet`, where a condition says which one a header is of.
    family: Option<Family>,
    /// Registers with what they were loaded with, and the mask over it.
    loads: Vec<(u32, Load, Option<&'a [u8]>)>,
    /// Registers with constants.
    values: Vec<(u32, &'a [u8])>,
}

impl<'a> Reader<'a> {
    fn expression(&mut self, expression: &'a [u8]) -> Result<(), Malformed> {
        let name = find(Attributes(expression), EXPRESSION_NAME)?.map(text).unwrap_or_default();
        if !KNOWN.contains(&name.as_ref()) {
            self.rule.other_matches = true;
            return Ok(());
        }
        let data = fields(find(Attributes(expression), EXPRESSION_DATA)?.unwrap_or_default())?;
        match name.as_ref() {
            "meta" | "payload" | "ct" => self.load(&name, &data)?,
            "bitwise" => self.mask(&data)?,
            "cmp" => self.compare(&data)?,
            "range" => self.range(&data)?,
            "lookup" => self.look_up(&data),
            "immediate" => self.immediate(&data)?,
            "nat" => self.translate(&data)?,
            "counter" => {
                let packets = data[2].and_then(|it| it.try_into().ok()).map(u64::from_be_bytes);
                self.rule.packets = packets.or(self.rule.packets);
            }
            "reject" => self.rule.action = Action::Reject,
            "queue" => self.rule.action = Action::Queue,
            "masq" | "redir" | "tproxy" | "synproxy" | "fwd" => self.rule.action = Action::Other(name.into_owned()),
            "match" => xt::condition(&text(data[1].unwrap_or_default()), value(data[2])?, data[3], &mut self.rule),
            "target" => {
                self.rule.marks |= text(data[1].unwrap_or_default()) == "MARK";
                self.rule.action = xt::target(&text(data[1].unwrap_or_default()), value(data[2])?, data[3]);
            }
            // They load something that is not understood: comparing it is a condition that is not either.
            _ => self.forget(value(data[1])?),
        }
        Ok(())
    }

    fn forget(&mut self, register: u32) {
        self.loads.retain(|(it, ..)| *it != register);
        self.values.retain(|(it, _)| *it != register);
    }

    fn load(&mut self, name: &str, data: &Fields<'_>) -> Result<(), Malformed> {
        // `NFTA_*_DREG` is 1 in all three; with a source register instead they write, and restrict nothing.
        let Some(register) = data[1].map(number).transpose()? else {
            // `NFT_META_MARK`.
            self.rule.marks |= name == "meta" && value(data[2])? == 3;
            return Ok(());
        };
        self.forget(register);
        let what = match name {
            // `NFT_META_*`.
            "meta" => match value(data[2])? {
                3 => Some(Load::Mark),
                4 => Some(Load::InputIndex),
                5 => Some(Load::OutputIndex),
                6 => Some(Load::InputName),
                7 => Some(Load::OutputName),
                15 => Some(Load::NetworkProtocol),
                16 => Some(Load::Protocol),
                _ => None,
            },
            // `NFT_CT_STATE`.
            "ct" if value(data[2])? == 0 => Some(Load::State),
            // Base (1 network header, 2 transport header), offset, length.
            "payload" => match (self.family.or(self.rule.family), value(data[2])?, value(data[3])?, value(data[4])?) {
                (Some(Family::V4), 1, 9, 1) | (Some(Family::V6), 1, 6, 1) => Some(Load::Protocol),
                (Some(Family::V4), 1, 12, 1..=4) => Some(Load::Source(Family::V4)),
                (Some(Family::V4), 1, 16, 1..=4) => Some(Load::Destination(Family::V4)),
                (Some(Family::V6), 1, 8, 1..=16) => Some(Load::Source(Family::V6)),
                (Some(Family::V6), 1, 24, 1..=16) => Some(Load::Destination(Family::V6)),
                (_, 2, 2, 2) => Some(Load::DestinationPort),
                _ => None,
            },
            _ => None,
        };
        self.loads.extend(what.map(|what| (register, what, None)));
        Ok(())
    }

    /// `bitwise`: `destination = (source & mask) ^ xor`.
    fn mask(&mut self, fields: &Fields<'a>) -> Result<(), Malformed> {
        let (source, destination) = (value(fields[1])?, value(fields[2])?);
        let plain = fields[6].is_none_or(|it| number(it) == Ok(0)) && data(fields[5])?.iter().all(|byte| *byte == 0);
        let mask = data(fields[4])?;
        let loaded = self.loads.iter().find(|(it, _, old)| *it == source && old.is_none()).map(|(_, what, _)| *what);
        self.forget(destination);
        if let Some(what) = loaded.filter(|_| plain) {
            self.loads.push((destination, what, Some(mask)));
        }
        Ok(())
    }

    /// `cmp`: equal 0, not equal 1, less 2, at most 3, greater 4, at least 5.
    fn compare(&mut self, fields: &Fields<'a>) -> Result<(), Malformed> {
        let (register, operation, bytes) = (value(fields[1])?, value(fields[2])?, data(fields[3])?);
        let loaded = self.loads.iter().find(|(it, ..)| *it == register).map(|(_, what, mask)| (*what, *mask));
        let understood = match (loaded, operation) {
            (Some((what, mask)), 0 | 1) => self.equal(what, mask, bytes, operation == 1),
            (Some((Load::DestinationPort, None)), _) => port(bytes).is_some_and(|port| {
                let (from, to) = match operation {
                    2 => (0, port.saturating_sub(1)),
                    3 => (0, port),
                    4 => (port.saturating_add(1), u16::MAX),
                    _ => (port, u16::MAX),
                };
                self.ports(from, to)
            }),
            _ => false,
        };
        self.rule.other_matches |= !understood;
        Ok(())
    }

    /// `range`: in 0, outside 1.
    fn range(&mut self, fields: &Fields<'a>) -> Result<(), Malformed> {
        let register = value(fields[1])?;
        let loaded = self.loads.iter().find(|(it, ..)| *it == register).map(|(_, what, mask)| (*what, *mask));
        let (from, to) = (port(data(fields[3])?), port(data(fields[4])?));
        let understood = match (loaded, from.zip(to), value(fields[2])?) {
            (Some((Load::DestinationPort, None)), Some((from, to)), 0) => self.ports(from, to),
            _ => false,
        };
        self.rule.other_matches |= !understood;
        Ok(())
    }

    /// Narrows the ports down to a range; false when that cannot be said.
    fn ports(&mut self, from: u16, to: u16) -> bool {
        match self.rule.ports.as_mut_slice() {
            [] => self.rule.ports.push((from, to)),
            [(low, high)] => (*low, *high) = ((*low).max(from), (*high).min(to)),
            _ => return false,
        }
        true
    }

    /// Notes that something equals these bytes, or does not; false when that cannot be said.
    fn equal(&mut self, what: Load, mask: Option<&[u8]>, bytes: &[u8], not: bool) -> bool {
        let rule = &mut self.rule;
        match (what, mask) {
            (Load::Source(family), mask) => set(&mut rule.source, prefix(family, bytes, mask), not),
            (Load::Destination(family), mask) => set(&mut rule.destination, prefix(family, bytes, mask), not),
            (Load::Protocol, None) => set(&mut rule.protocol, bytes.first().copied(), not),
            (Load::NetworkProtocol, None) => {
                let family = match bytes {
                    [2] => Some(Family::V4),
                    [10] => Some(Family::V6),
                    _ => None,
                };
                rule.family = family.filter(|_| !not);
                rule.family.is_some()
            }
            (Load::DestinationPort, None) if !not => match port(bytes) {
                Some(port) => self.ports(port, port),
                None => false,
            },
            (Load::InputName, None) => set(&mut rule.input, link(bytes), not),
            (Load::OutputName, None) => set(&mut rule.output, link(bytes), not),
            // Loopback is 1 in every network namespace; the others are not known by number.
            (Load::InputIndex, None) => {
                set(&mut rule.input, host(bytes).filter(|it| *it == 1).map(|_| "lo".into()), not)
            }
            (Load::OutputIndex, None) => {
                set(&mut rule.output, host(bytes).filter(|it| *it == 1).map(|_| "lo".into()), not)
            }
            (Load::Mark, mask) => {
                let mask = mask.map_or(Some(u32::MAX), host);
                set(&mut rule.mark, host(bytes).zip(mask), not)
            }
            (Load::State, mask) => {
                // One of these states: masked and not 0. None of them: masked and 0. Just this one: not masked.
                let states = match (mask.map(host), host(bytes), not) {
                    (Some(Some(mask)), Some(0), true) => Some(mask),
                    (Some(Some(mask)), Some(0), false) => Some(!mask),
                    (None, Some(state), false) => Some(state),
                    (None, Some(state), true) => Some(!state),
                    _ => None,
                };
                rule.states = states.map(|states| states & rule.states.unwrap_or(u32::MAX)).or(rule.states);
                states.is_some()
            }
            _ => false,
        }
    }

    fn look_up(&mut self, fields: &Fields<'a>) {
        if fields[3].is_some_and(|register| number(register) == Ok(0)) {
            self.rule.action = Action::Other("vmap".into());
            self.rule.other_matches = true;
        } else if fields[3].is_none() {
            let name = text(fields[1].unwrap_or_default()).into_owned();
            self.rule.sets.push(Is::new(name, fields[5].is_some_and(|flags| number(flags) == Ok(1))));
            self.rule.other_matches = true;
        }
    }

    fn immediate(&mut self, fields: &Fields<'a>) -> Result<(), Malformed> {
        let register = value(fields[1])?;
        if register != 0 {
            let bytes = data(fields[2])?;
            self.forget(register);
            self.values.push((register, bytes));
            return Ok(());
        }
        let Some(verdict) = fields[2].map(|it| find(Attributes(it), DATA_VERDICT)).transpose()?.flatten() else {
            return Ok(());
        };
        let verdict = self::fields(verdict)?;
        let chain = || text(verdict[usize::from(VERDICT_CHAIN)].unwrap_or_default()).into_owned();
        self.rule.action = match value(verdict[usize::from(VERDICT_CODE)])? {
            0 => Action::Drop,
            1 => Action::Accept,
            // The number of the queue is in the upper half.
            code if code & 0xff == 3 => Action::Queue,
            JUMP => Action::Jump(chain()),
            GOTO => Action::Goto(chain()),
            RETURN => Action::Return,
            _ => Action::Continue,
        };
        Ok(())
    }

    /// `nat`: type (1 is destination), family, registers of the address and the port.
    fn translate(&mut self, fields: &Fields<'a>) -> Result<(), Malformed> {
        if value(fields[1])? != 1 {
            self.rule.action = Action::Other("snat".into());
            return Ok(());
        }
        let constant = |field: Option<&[u8]>| -> Result<Option<&'a [u8]>, Malformed> {
            let register = value(field)?;
            Ok(self.values.iter().find(|(it, _)| *it == register).map(|(_, bytes)| *bytes))
        };
        let (address, port) = (constant(fields[3])?.and_then(address), constant(fields[5])?.and_then(port));
        self.rule.action = Action::Dnat(address.map(|address| SocketAddr::new(address, port.unwrap_or(0))));
        Ok(())
    }
}

#[cfg(test)]
mod tests;
