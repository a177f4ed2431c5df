//! What secrets look like, and where they end. Pure.

use super::{is_base64, while_};

/// The end of a private key in PEM that begins here; one that was cut ends with what cannot be part of it.
pub(super) fn private_key(text: &[u8]) -> Option<usize> {
    let title = text.get(..text.len().min(64))?;
    let title = while_(title, 11, |byte| byte == b' ' || byte.is_ascii_uppercase());
    if !text[..title].ends_with(b"PRIVATE KEY") {
        return None;
    }
    let inside = |byte: u8| is_base64(byte) || byte.is_ascii_whitespace() || matches!(byte, b'\\' | b':' | b',');
    let mut all = while_(text, title, inside);
    // Those of the quotes behind it.
    while text[..all].ends_with(b"\\") {
        all -= 1;
    }
    let end = text[title..all].windows(9).position(|it| it == b"-----END ").map(|at| title + at + 9);
    let after = |from| {
        let label = while_(text, from, |byte| byte == b' ' || byte.is_ascii_uppercase());
        while_(text, label, |byte| byte == b'-')
    };
    Some(end.map_or(all, after))
}

/// Where the string of JSON ends that this is in.
pub(super) fn end_of_string(text: &[u8]) -> usize {
    let mut at = 0;
    while at < text.len() && text[at] != b'"' {
        at += if text[at] == b'\\' { 2 } else { 1 };
    }
    at.min(text.len())
}

/// Where a private key ends whose beginning was cut off; or else before what none does.
pub(super) fn end_of_key(text: &[u8]) -> Result<usize, usize> {
    let mut lines = text.windows(5).enumerate().filter(|(_, it)| it == b"-----").map(|(at, _)| at);
    let first = lines.find(|at| text[*at..].starts_with(b"-----BEGIN ") || text[*at..].starts_with(b"-----END "));
    let Some(at) = first else { return Err(text.len()) };
    let title = &text[at..];
    let label = while_(title, 9, |byte| byte == b' ' || byte.is_ascii_uppercase());
    if title.starts_with(b"-----END ") && title[..label].ends_with(b"PRIVATE KEY") {
        Ok(at + while_(title, label, |byte| byte == b'-'))
    } else {
        Err(at)
    }
}

/// Whether a part of a line that begins or ends a key or certificate is between these.
pub(super) fn has_title(text: &[u8], from: usize, end: usize) -> bool {
    [&b"-----BEGIN "[..], b"-----END "].into_iter().any(|title| {
        let beside = title.len() - 1;
        let near = &text[from.saturating_sub(beside)..(end + beside).min(text.len())];
        near.windows(title.len()).any(|it| it == title)
    })
}

/// The password in `://user:password@host`, from and to.
pub(super) fn user_info(text: &[u8]) -> Option<(usize, usize)> {
    let end = while_(text, 3, |byte| !byte.is_ascii_whitespace() && !matches!(byte, b'/' | b'"' | b'\'' | b'\\'));
    let at = text[3..end].iter().rposition(|byte| *byte == b'@')? + 3;
    let colon = text[3..at].iter().position(|byte| *byte == b':')? + 3;
    (at > colon + 1).then_some((colon + 1, at))
}

/// A JSON web token, an access key of AWS, or a long number in hexadecimal, which is a key of IPsec.
pub(super) fn is_token(word: &[u8]) -> bool {
    let parts = || word.split(|byte| *byte == b'.');
    let web = word.starts_with(b"eyJ") && word.len() >= 40 && parts().count() >= 3;
    let aws = word.len() == 20
        && (word.starts_with(b"AKIA") || word.starts_with(b"ASIA"))
        && word.iter().all(|byte| byte.is_ascii_uppercase() || byte.is_ascii_digit());
    let hex = word.len() >= 34 && word.starts_with(b"0x") && word[2..].iter().all(u8::is_ascii_hexdigit);
    web || aws || hex
}

/// Where the lines end that are indented deeper than that of the name, which ends `before`.
pub(super) fn block(text: &[u8], before: &[u8], from: usize) -> usize {
    let line = line(before);
    let indent = while_(line, 0, |byte| byte == b' ');
    let mut end = from;
    while end < text.len() {
        let line = while_(text, end, |byte| byte == b'\n' || byte == b'\r');
        let begins = while_(text, line, |byte| byte == b' ');
        if begins - line <= indent || begins == text.len() {
            break;
        }
        end = while_(text, begins, |byte| byte != b'\n');
    }
    end
}

/// Whether only blanks, dashes of a list, or `export ` stand before it in its line.
pub(super) fn begins_line(before: &[u8]) -> bool {
    matches!(line(before).trim_ascii(), b"" | b"-" | b"export")
}

/// The last line, which need not have ended.
fn line(text: &[u8]) -> &[u8] {
    let start = text.iter().rposition(|byte| *byte == b'\n').map_or(0, |at| at + 1);
    &text[start..]
}
