//! Takes secrets out of what goes into a bundle: tokens, passwords, private keys, credentials of kubeconfig files, TCP MD5 keys.
//!
//! It knows them by their form (a private key in PEM, a JSON web token, `Bearer ...`, a password in a URL) or by the name that
//! stands before them, in YAML, JSON, also JSON in a JSON string, INI, TOML, environment and command lines. In doubt it takes
//! out: a bundle goes to people who are not allowed to read the node's secrets. What it leaves of JSON is still JSON.

mod forms;

use forms::{begins_line, block, end_of_key, end_of_string, has_title, is_token, private_key, user_info};

/// What stands in the place of a secret.
pub(crate) const MARK: &str = "[redacted]";

/// Names of secrets end like this, in small letters and without `-`, `_` and `.`. Not `key` alone: `client-key` names a file.
const SECRET_NAMES: [&str; 26] = [
    "token",
    "tokens",
    "password",
    "passwords",
    "passwd",
    "pwd",
    "passphrase",
    "secret",
    "secrets",
    "apikey",
    "accesskey",
    "accesskeyid",
    "secretkey",
    "privatekey",
    "presharedkey",
    "sharedkey",
    "encryptionkey",
    "signingkey",
    "psk",
    "keydata",
    "md5",
    "md5key",
    "md5keys",
    "credential",
    "credentials",
    "authorization",
];
/// Words after which a secret stands behind a space.
const SCHEMES: [&str; 3] = ["bearer", "basic", "negotiate"];
/// The value of a variable that is named by `name: DB_PASSWORD` stands at most so many bytes further on.
const NAMED_WITHIN: usize = 512;

/// More passes than two find nothing in any text that is known.
const PASSES: usize = 4;

/// A copy without secrets, and how many were taken out. What is left where something was taken out can be part of a secret itself, as
/// of a password in which a key begins: it is looked at again.
pub(crate) fn redact(text: &[u8]) -> (Vec<u8>, u32) {
    let (mut left, mut count) = pass(text);
    let mut found = count;
    for _ in 1..PASSES {
        if found == 0 {
            break;
        }
        (left, found) = pass(&left);
        count += found;
    }
    (left, count)
}

/// From the beginning to the end.
fn pass(text: &[u8]) -> (Vec<u8>, u32) {
    let json = is_json(text);
    let out = Vec::with_capacity(text.len());
    let mut scan =
        Scan { text, json, at: 0, out, count: 0, named_until: 0, fresh: 0, inside: 0, searched: 0, cut: false };
    if !json {
        scan.ends_of_keys();
    }
    while scan.at < text.len() {
        scan.step();
    }
    (scan.out, scan.count)
}

/// Whether it begins as JSON does, and not as TOML, INI or YAML.
fn is_json(text: &[u8]) -> bool {
    let text = text.trim_ascii_start();
    let object = text.strip_prefix(b"[").unwrap_or(text).trim_ascii_start().strip_prefix(b"{");
    object.is_some_and(|inside| matches!(inside.trim_ascii_start().first(), Some(b'"' | b'}')))
}

struct Scan<'a> {
    text: &'a [u8],
    /// All of it is JSON: no text ends a line or leaves its quotes.
    json: bool,
    at: usize,
    out: Vec<u8>,
    count: u32,
    /// Up to here a field `value` is that of a variable whose name says that it is secret.
    named_until: usize,
    /// A word begins here, whatever is before it.
    fresh: usize,
    /// The string of JSON that was searched last ends here, and of other text all.
    inside: usize,
    /// Before this ends no private key whose beginning was cut off.
    searched: usize,
    /// What was taken out last may have been the beginning of a key, or have had the quote at which a string of JSON begins.
    cut: bool,
}

fn is_word(byte: u8) -> bool {
    byte.is_ascii_alphanumeric() || matches!(byte, b'_' | b'-' | b'.')
}

fn is_base64(byte: u8) -> bool {
    byte.is_ascii_alphanumeric() || matches!(byte, b'+' | b'/' | b'=' | b'-' | b'_' | b'~' | b'.')
}

fn while_(text: &[u8], from: usize, wanted: impl Fn(u8) -> bool) -> usize {
    text.get(from..).map_or(from, |rest| from + rest.iter().position(|byte| !wanted(*byte)).unwrap_or(rest.len()))
}

/// Quotes, with the backslashes that they have inside of a quoted text.
fn quote(text: &[u8], at: usize) -> &[u8] {
    let end = while_(text, at, |byte| byte == b'\\');
    match text.get(end) {
        // One, three, seven: each text around it doubles them, and adds one.
        Some(b'"' | b'\'') if (end - at + 1).is_power_of_two() => &text[at..=end],
        _ => &[],
    }
}

impl Scan<'_> {
    fn step(&mut self) {
        if std::mem::take(&mut self.cut) {
            self.ends_of_keys();
            if self.at == self.text.len() {
                return;
            }
        }
        let rest = &self.text[self.at..];
        if rest.starts_with(b"-----BEGIN ")
            && let Some(end) = private_key(rest)
        {
            self.take(0, end);
            return self.ends_of_keys();
        }
        if self.json && rest[0] == b'"' {
            self.keep(1);
            return self.ends_of_keys();
        }
        if rest.starts_with(b"://")
            && let Some((from, end)) = user_info(rest)
        {
            return self.take(from, end);
        }
        if rest[0] == b'\\' && matches!(rest.get(1), Some(b'n' | b't' | b'r')) {
            self.fresh = self.at + 2;
            return self.keep(2);
        }
        let begins = self.at == self.fresh || !is_word(self.text[self.at - 1]);
        if !is_word(rest[0]) || !begins {
            return self.keep(1);
        }
        let word = while_(rest, 0, is_word);
        // A key may begin in the middle of a line, right behind a word.
        let key = rest.windows(11).take(word).position(|it| it == b"-----BEGIN ").filter(|at| *at > 0);
        let word = key.unwrap_or(word);
        let core = rest[..word].strip_suffix(b".").unwrap_or(&rest[..word]);
        if is_token(core) {
            return self.take(0, core.len());
        }
        self.word(word);
    }

    /// Takes out what comes before the ends of private keys whose beginnings were cut off; of JSON in this string alone.
    fn ends_of_keys(&mut self) {
        // An escaped quote begins no string: nothing is searched twice, or a string of quotes would take for ever.
        if self.at < self.searched {
            return;
        }
        if self.at >= self.inside {
            let rest = &self.text[self.at..];
            self.inside = self.at + if self.json { end_of_string(rest) } else { rest.len() };
        }
        loop {
            match end_of_key(&self.text[self.at..self.inside]) {
                Ok(end) => self.take(0, end),
                Err(none) => {
                    self.searched = self.at + none;
                    return;
                }
            }
        }
    }

    /// Keeps so many bytes.
    fn keep(&mut self, count: usize) {
        let end = (self.at + count).min(self.text.len());
        self.out.extend_from_slice(&self.text[self.at..end]);
        self.at = end;
    }

    /// Keeps what is before `from`, and takes out what is before `end`; both count from here.
    fn take(&mut self, from: usize, end: usize) {
        self.keep(from);
        self.out.extend_from_slice(MARK.as_bytes());
        let taken = &self.text[self.at..self.at + end - from];
        self.count += u32::from(taken != MARK.as_bytes());
        self.at += taken.len();
        // The mark ends a word, and so what was there does.
        self.fresh = self.at;
        self.cut = self.json && self.at > self.inside || has_title(self.text, self.at - (end - from), self.at);
    }

    /// A word that is `length` long: it may be the name of what follows.
    fn word(&mut self, length: usize) {
        let (text, start) = (self.text, self.at);
        let name: String = String::from_utf8_lossy(&text[start..start + length])
            .chars()
            .filter(char::is_ascii_alphanumeric)
            .map(|c| c.to_ascii_lowercase())
            .collect();
        self.keep(length);
        // The last part of a path is no name: "open /run/secrets/token: permission denied".
        if start > 0 && text[start - 1] == b'/' {
            return;
        }
        let secret = SECRET_NAMES.iter().any(|known| name.ends_with(known));
        let valued = name == "value" && start < self.named_until;
        let closing = quote(text, self.at);
        let opened = !closing.is_empty() && start >= closing.len() && text[..start].ends_with(closing);
        let after = if opened { self.at + closing.len() } else { self.at };
        let blanks = |from| while_(text, from, |byte| byte == b' ' || byte == b'\t');
        let separator = blanks(after);
        let value = match text.get(separator) {
            Some(b':' | b'=') => blanks(separator + 1),
            _ if opened || separator == after => return,
            // `--token abc`, `password "abc"`, `Bearer abc`.
            _ if SCHEMES.contains(&name.as_str()) => return self.scheme(separator),
            _ if secret && (text[..start].ends_with(b"--") || text[start..].starts_with(b"--")) => separator,
            _ if name.ends_with("password") && !quote(text, separator).is_empty() => separator,
            _ => return,
        };
        if secret || valued || (name == "auth" && opened) {
            self.value(start, value, opened);
        } else if name == "name" || name == "key" {
            let from = value + quote(text, value).len();
            let called = text.get(from..while_(text, from, is_word)).unwrap_or_default();
            let called: Vec<u8> =
                called.iter().filter(|it| it.is_ascii_alphanumeric()).map(u8::to_ascii_lowercase).collect();
            let is_secret = SECRET_NAMES.iter().any(|known| called.ends_with(known.as_bytes()));
            self.named_until = if is_secret { value + NAMED_WITHIN } else { 0 };
        }
    }

    /// What stands behind `Bearer`.
    fn scheme(&mut self, from: usize) {
        let end = while_(self.text, from, is_base64);
        if end - from >= 8 {
            self.take(from - self.at, self.end_with_keys(from, end) - self.at);
        }
    }

    /// Takes out a value; `key` is where its name begins, and that may stand in quotes.
    fn value(&mut self, key: usize, from: usize, opened: bool) {
        let text = self.text;
        let quoted = quote(text, from);
        let line_end = while_(text, from, |byte| byte != b'\n' && byte != b'\r');
        // As it is left: what was taken out before it may have had ends of lines.
        let before = self.out.len() - (self.at - key);
        let plain = !self.json && begins_line(&self.out[..before]);
        match text.get(from) {
            _ if text[from..].starts_with(MARK.as_bytes()) => {}
            // The text in which the name stands ends here.
            _ if self.json && !opened && quoted == b"\"" => {}
            _ if !quoted.is_empty() => {
                let from = from + quoted.len();
                self.secret(from, self.closing(from, quoted));
            }
            Some(b'|' | b'>')
                if !self.json && text[from + 1..line_end].iter().all(|byte| b" \t+-0123456789".contains(byte)) =>
            {
                let first = while_(text, line_end, |byte| byte.is_ascii_whitespace());
                self.secret(first, block(text, &self.out[..before], line_end));
            }
            Some(b'[') => self.list(from + 1, opened),
            // The parts of an object have names of their own.
            None | Some(b'{' | b'\n' | b'\r') => {}
            // A line of YAML or of an environment: the value may have blanks. Else it ends at the first.
            Some(_) if plain => self.secret(from, line_end),
            Some(_) => {
                let of_json = self.json && opened;
                let mut end = self.bare(from, of_json);
                let scheme = text[from..end].to_ascii_lowercase();
                if SCHEMES.iter().any(|known| known.as_bytes() == scheme) {
                    end = self.bare(while_(text, end, |byte| byte == b' '), of_json);
                }
                self.secret(from, end);
            }
        }
    }

    /// Where a value without quotes ends; one of JSON ends where the next field begins.
    fn bare(&self, from: usize, of_json: bool) -> usize {
        let ends = |byte: u8| {
            byte.is_ascii_whitespace()
                || matches!(byte, b'"' | b'\'' | b'\\')
                || of_json && matches!(byte, b',' | b'}' | b']')
        };
        while_(self.text, from, |byte| !ends(byte))
    }

    /// Takes out what is between, unless it is nothing, or a number, a truth or a nothing of JSON.
    fn secret(&mut self, from: usize, end: usize) {
        let Some(value) = self.text.get(from..end) else { return };
        let value = value.trim_ascii();
        let number = self.json && value.iter().all(|byte| byte.is_ascii_digit() || b"+-.eE".contains(byte));
        if number && !self.text[..from].ends_with(b"\"")
            || matches!(value, b"" | b"true" | b"false" | b"null" | b"~")
            || value.starts_with(MARK.as_bytes())
        {
            return;
        }
        self.take(from - self.at, self.end_with_keys(from, end) - self.at);
    }

    /// Where a value ends with the private keys that begin in it: they go on behind its line.
    fn end_with_keys(&self, mut from: usize, mut end: usize) -> usize {
        while from < end {
            let rest = &self.text[from..];
            let key = rest.starts_with(b"-----BEGIN ").then(|| private_key(rest)).flatten();
            from += key.unwrap_or(1);
            end = end.max(from);
        }
        end
    }

    /// A list of texts in brackets.
    fn list(&mut self, mut at: usize, opened: bool) {
        let text = self.text;
        loop {
            at = while_(text, at, |byte| byte.is_ascii_whitespace() || byte == b',');
            let quoted = quote(text, at);
            match text.get(at) {
                _ if self.json && !opened && quoted == b"\"" => return,
                _ if !quoted.is_empty() => {
                    let end = self.closing(at + quoted.len(), quoted);
                    self.secret(at + quoted.len(), end);
                    // A key that went on behind them took them with it.
                    if self.at > end || !text[end..].starts_with(quoted) {
                        return;
                    }
                    at = end + quoted.len();
                }
                None | Some(b'{' | b'[' | b']' | b'}' | b'"' | b'\'' | b'\\') => return,
                Some(_) => {
                    let end = while_(text, at, |it| !it.is_ascii_whitespace() && !b",]\"'\\".contains(&it));
                    self.secret(at, end);
                    at = end.max(self.at);
                }
            }
        }
    }

    /// Where a quoted text ends that is closed by the same quotes, or by those of a text around it.
    fn closing(&self, from: usize, quotes: &[u8]) -> usize {
        let text = self.text;
        let single = quotes.last() == Some(&b'\'');
        let level = quotes.len().ilog2();
        let mut at = from;
        while at < text.len() {
            let run = while_(text, at, |byte| byte == b'\\');
            let backslashes = run - at;
            match text.get(run) {
                // So many backslashes more would belong to the text.
                Some(b'"') if !single || self.json => {
                    let ends = |level: &u32| backslashes % (2 << level) == (1 << level) - 1;
                    if let Some(level) = (0..=level).find(ends) {
                        return run + 1 - (1 << level);
                    }
                    if single {
                        return at;
                    }
                }
                Some(b'\'' | b'\n') if single => return at,
                _ => {}
            }
            at = run + 1;
        }
        text.len()
    }
}

#[cfg(any(test, fuzzing))]
pub(crate) fn check_redacted(text: &[u8]) {
    let (once, count) = redact(text);
    let (twice, _) = redact(&once);
    assert_eq!(String::from_utf8_lossy(&once), String::from_utf8_lossy(&twice), "a second pass finds nothing new");
    assert!(count > 0 || once == text, "nothing is changed where nothing is taken out");
    if serde_json::from_slice::<serde_json::Value>(text).is_ok() {
        assert!(serde_json::from_slice::<serde_json::Value>(&once).is_ok(), "{}", String::from_utf8_lossy(&once));
    }
}

#[cfg(test)]
mod tests;
