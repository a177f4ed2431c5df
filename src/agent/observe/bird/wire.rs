//! BIRD's control protocol (`doc/reply_codes`, `nest/cli.c`), as far as looking needs it: pure functions from bytes.
//!
//! An answer is lines of four digits and a sign: `-` when more lines follow, a space in the last one. A line that begins
//! with a space goes on with the code of the line before, one that begins with `+` came by itself and is left out. BIRD
//! 1.6 and 2 differ in the case of headings, in columns and in indentation, so nothing here counts columns.

use std::net::IpAddr;

use ipnet::IpNet;

use crate::facts::{BgpPeer, BgpState, KernelProtocol};

/// What is longer is cut: no line that matters is.
const LONGEST_LINE: usize = 512;
/// `show protocols all` of a mesh of a thousand nodes takes 1.5 MB; in bytes.
const LONGEST_ANSWER: usize = 8 << 20;
/// More sessions than these are not kept.
const MOST_PEERS: usize = 2000;
/// A row of a table of protocols, and the lines below it in `show protocols all`.
const PROTOCOL: u16 = 1002;
const DETAIL: u16 = 1006;
/// A row of `show route`.
const ROUTE: u16 = 1007;

/// Gets code and text of each line of an answer.
pub(super) type Each<'a> = dyn FnMut(u16, &str) + Send + 'a;

/// Why bytes are no answer.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Malformed(pub(super) &'static str);

/// Cuts bytes into the lines of one answer.
#[derive(Debug, Default)]
pub(super) struct Framer {
    line: Vec<u8>,
    code: u16,
    total: usize,
}

impl Framer {
    /// Takes bytes of an answer, up to its end; answers how many it took, and whether that was the end.
    pub(super) fn feed(&mut self, bytes: &[u8], each: &mut Each<'_>) -> Result<(usize, bool), Malformed> {
        let mut taken = 0;
        while taken < bytes.len() {
            let rest = &bytes[taken..];
            let end = rest.iter().position(|byte| *byte == b'\n');
            let part = &rest[..end.unwrap_or(rest.len())];
            self.line.extend(part.iter().take(LONGEST_LINE.saturating_sub(self.line.len())));
            let took = part.len() + usize::from(end.is_some());
            taken += took;
            self.total += took;
            if self.total > LONGEST_ANSWER {
                return Err(Malformed("sends an answer without an end"));
            }
            if end.is_some() && self.end_of_line(each)? {
                *self = Framer::default();
                return Ok((taken, true));
            }
        }
        Ok((taken, false))
    }

    /// Takes a whole line; true when it is the last one.
    fn end_of_line(&mut self, each: &mut Each<'_>) -> Result<bool, Malformed> {
        let line = std::mem::take(&mut self.line);
        let text = String::from_utf8_lossy(&line);
        let text = text.trim_end_matches('\r');
        match text.as_bytes().first() {
            Some(b'+') => return Ok(false),
            Some(b' ') if self.code != 0 => {
                each(self.code, &text[1..]);
                return Ok(false);
            }
            _ => {}
        }
        let (code, rest) = text.split_at_checked(4).ok_or(Malformed("does not speak as BIRD does"))?;
        let digits = code.bytes().all(|byte| byte.is_ascii_digit());
        let last = match rest.as_bytes().first() {
            Some(b'-') if digits => false,
            Some(b' ') | None if digits => matches!(code.as_bytes()[0], b'0' | b'8' | b'9'),
            _ => return Err(Malformed("does not speak as BIRD does")),
        };
        self.code = code.parse().unwrap_or_default();
        each(self.code, rest.get(1..).unwrap_or_default());
        Ok(last)
    }
}

/// The version in the greeting: `BIRD 1.6.8 ready.`, `BIRD v2.13.1+ ready.`
pub(super) fn version(greeting: &str) -> Option<&str> {
    let mut words = greeting.split_whitespace();
    (words.next()? == "BIRD").then_some(())?;
    words.next().map(|word| word.trim_start_matches('v'))
}

/// The destination in a row of `show route`; none in a further route to the same one, and in the name of a table.
pub(super) fn destination(code: u16, text: &str) -> Option<IpNet> {
    if code != ROUTE || text.starts_with([' ', '\t']) {
        return None;
    }
    text.split_whitespace().next()?.parse().ok()
}

/// The protocols that matter, put together from the lines of `show protocols all`.
#[derive(Debug, Default)]
pub(super) struct Protocols {
    pub(super) kernels: Vec<KernelProtocol>,
    pub(super) peers: Vec<BgpPeer>,
    current: Current,
}

/// What the lines are about.
#[derive(Debug, Default)]
enum Current {
    #[default]
    Other,
    Kernel,
    Peer,
}

impl Protocols {
    /// Takes one line.
    pub(super) fn line(&mut self, code: u16, text: &str) {
        match code {
            PROTOCOL => self.row(text),
            DETAIL => self.detail(text.trim()),
            _ => {}
        }
    }

    /// `Mesh_10_0_0_1 BGP  master  up  02:24:08  Established  `. Whoever is down may have nothing after its state.
    fn row(&mut self, text: &str) {
        self.current = Current::Other;
        let (name, rest) = word(text);
        let (kind, rest) = word(rest);
        let (table, rest) = word(rest);
        let (state, rest) = word(rest);
        if kind.eq_ignore_ascii_case("kernel") && self.kernels.len() < MOST_PEERS {
            let (name, table, state) = (name.to_owned(), table.to_owned(), state.to_ascii_lowercase());
            self.kernels.push(KernelProtocol { name, table, state, ..KernelProtocol::default() });
            self.current = Current::Kernel;
        } else if kind.eq_ignore_ascii_case("bgp") && self.peers.len() < MOST_PEERS {
            let (since, info) = since(rest);
            let (said, error) = word(info);
            let state = match bgp_state(said) {
                BgpState::Unknown if state.eq_ignore_ascii_case("up") => BgpState::Established,
                BgpState::Unknown if state.eq_ignore_ascii_case("down") => BgpState::Down,
                state => state,
            };
            self.peers.push(BgpPeer {
                name: name.to_owned(),
                address: None,
                remote_as: None,
                state,
                since: since.to_owned(),
                error: (!error.trim().is_empty()).then(|| error.trim().to_owned()),
                imported: 0,
                exported: 0,
                restarting: false,
            });
            self.current = Current::Peer;
        }
    }

    /// `Neighbor address: 10.0.0.1`, without the indentation.
    fn detail(&mut self, text: &str) {
        let (key, value) = text.split_once(':').unwrap_or((text, ""));
        let (key, value) = (key.to_ascii_lowercase(), value.trim());
        match self.current {
            Current::Other => {}
            Current::Kernel => {
                if let (Some(kernel), "routes") = (self.kernels.last_mut(), key.as_str()) {
                    let exported = count(value, "exported");
                    kernel.exported = Some(kernel.exported.unwrap_or(0).saturating_add(exported));
                }
            }
            Current::Peer => {
                let Some(peer) = self.peers.last_mut() else { return };
                match key.as_str() {
                    "bgp state" => match bgp_state(value) {
                        BgpState::Unknown => {}
                        state => peer.state = state,
                    },
                    "neighbor address" => peer.address = address(value),
                    "neighbor as" => peer.remote_as = value.parse().ok(),
                    "last error" => peer.error = Some(value.to_owned()),
                    "neighbor graceful restart active" => peer.restarting = true,
                    // One line in BIRD 1.6, one for each channel in BIRD 2.
                    "routes" => {
                        peer.imported = peer.imported.saturating_add(count(value, "imported"));
                        peer.exported = peer.exported.saturating_add(count(value, "exported"));
                    }
                    _ => {}
                }
            }
        }
    }
}

/// The first word, and what comes after it.
fn word(text: &str) -> (&str, &str) {
    let text = text.trim_start();
    text.split_once(char::is_whitespace).unwrap_or((text, ""))
}

/// The column `since`: a time, a date, or with `timeformat protocol iso long` both.
fn since(text: &str) -> (&str, &str) {
    let (first, rest) = word(text);
    let (second, after) = word(rest);
    let clock = second.contains(':') && second.starts_with(|first: char| first.is_ascii_digit());
    if first.contains('-') && clock {
        let text = text.trim_start();
        let length = text.len() - rest.len() + rest.find(second).unwrap_or(0) + second.len();
        return (&text[..length], after);
    }
    (first, rest)
}

fn bgp_state(text: &str) -> BgpState {
    let known = BgpState::ALL.into_iter().find(|state| state.as_str().eq_ignore_ascii_case(text));
    known.unwrap_or(BgpState::Unknown)
}

/// `fe80::1%eth0` and `10.0.0.1`.
fn address(text: &str) -> Option<IpAddr> {
    text.split(['%', ' ']).next()?.parse().ok()
}

/// `3` for `exported` in `6 imported, 3 exported, 6 preferred`.
fn count(text: &str, of: &str) -> u32 {
    let parts = text.split(',').map(word);
    let found = parts.into_iter().find(|(_, kind)| kind.trim() == of);
    found.and_then(|(number, _)| number.parse().ok()).unwrap_or(0)
}

#[cfg(test)]
mod tests;
