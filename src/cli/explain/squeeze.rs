//! Texts as they are compared: letters and digits alone, so that it does not matter how a message was wrapped (even in the
//! middle of a word), quoted, coloured, escaped or written in capitals.
//!
//! Doubled letters count once and `n't` is `not`: that makes `cannot` and `can't` one text, as it does `could not` and
//! `couldn't`. What stands for something else (`<ID>`, a router's name) is a gap in the pattern.

/// A text without what does not matter.
#[derive(Debug, Default)]
pub(crate) struct Squeezed {
    /// ASCII letters in lower case, and digits.
    pub(crate) text: Vec<u8>,
    /// For each byte of `text` its place in the original.
    pub(crate) at: Vec<usize>,
    /// Places in `text` before which something was left out (`...`), and its end: a message may be cut short there.
    pub(crate) cuts: Vec<usize>,
}

/// Squeezes a text.
pub(crate) fn squeeze(text: &str) -> Squeezed {
    let bytes = text.as_bytes();
    let mut out = Squeezed::default();
    let mut i = 0;
    while let Some(&byte) = bytes.get(i) {
        let rest = &bytes[i..];
        i += match byte {
            b'0'..=b'9' => out.push(byte, i),
            b'A'..=b'Z' | b'a'..=b'z' => out.letter(byte.to_ascii_lowercase(), i),
            // `\n` of a quoted message is no letter n; `\"` and `\\` are nothing anyway.
            b'\\' if matches!(rest.get(1), Some(b'n' | b'r' | b't')) => 2,
            b'\x1b' => escape(rest),
            b'.' if rest.starts_with(b"...") => out.cut(3),
            _ if rest.starts_with("…".as_bytes()) => out.cut("…".len()),
            _ => match apostrophe(rest) {
                Some(length) if out.text.last() == Some(&b'n') && contracted(&rest[length..]) => {
                    out.letter(b'o', i);
                    length
                }
                Some(length) => length,
                None => entity(rest).unwrap_or(1),
            },
        };
    }
    out.cut(0);
    out
}

impl Squeezed {
    fn push(&mut self, byte: u8, at: usize) -> usize {
        self.text.push(byte);
        self.at.push(at);
        1
    }

    fn letter(&mut self, letter: u8, at: usize) -> usize {
        if self.text.last() == Some(&letter) { 1 } else { self.push(letter, at) }
    }

    fn cut(&mut self, length: usize) -> usize {
        if self.cuts.last() != Some(&self.text.len()) {
            self.cuts.push(self.text.len());
        }
        length
    }
}

/// A colour or another order to a terminal: its length.
fn escape(rest: &[u8]) -> usize {
    let end = rest.iter().skip(2).take(16).position(u8::is_ascii_alphabetic);
    if rest.get(1) == Some(&b'[') { end.map_or(1, |end| end + 3) } else { 1 }
}

/// An apostrophe in one of its spellings: its length.
fn apostrophe(rest: &[u8]) -> Option<usize> {
    ["'", "\u{2019}", "&#39;", "&apos;", "&rsquo;"]
        .into_iter()
        .find(|spelling| rest.starts_with(spelling.as_bytes()))
        .map(str::len)
}

/// Whether a `t` follows, and the word ends with it.
fn contracted(rest: &[u8]) -> bool {
    matches!(rest.first(), Some(b't' | b'T')) && !rest.get(1).is_some_and(u8::is_ascii_alphanumeric)
}

/// A character by its name, as in `&lt;`: its length.
fn entity(rest: &[u8]) -> Option<usize> {
    let name = rest.strip_prefix(b"&")?;
    let end = name.iter().take(7).position(|byte| *byte == b';')?;
    name[..end].iter().all(|byte| byte.is_ascii_alphanumeric() || *byte == b'#').then_some(end + 2)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn squeezed(text: &str) -> String {
        String::from_utf8(squeeze(text).text).expect("ASCII")
    }

    #[test]
    fn what_does_not_matter_is_gone() {
        assert_eq!(
            squeezed("Kubelet stopped\n   posting  node sta\ntus."),
            squeezed("kubelet STOPPED posting node status")
        );
        assert_eq!(squeezed("> \"The 'x' is&nbsp;&lt;gone&gt;\""), "thexisgone");
        assert_eq!(squeezed("\x1b[31;1mred\x1b[0m\\nline\\\"quoted"), "redlinequoted");
        assert_eq!(squeezed("E0051 … é"), "e0051");
        assert_eq!(squeezed("\\"), "");
        assert_eq!(squeezed("\x1b["), "");
    }

    #[test]
    fn contractions_are_the_long_form() {
        for (short, long) in [("can't", "cannot"), ("couldn\u{2019}t", "could not"), ("doesn&#39;t", "does not")] {
            assert_eq!(squeezed(&format!("It {short} be")), squeezed(&format!("it {long} be")));
        }
        assert_eq!(squeezed("an 'tunnel'"), "antunel");
    }

    #[test]
    fn every_byte_knows_its_place_and_cuts_are_kept() {
        let text = "Could n\u{2019}t place... order";
        let out = squeeze(text);
        assert_eq!(out.text.len(), out.at.len());
        assert!(out.at.is_sorted());
        assert_eq!(out.cuts, [squeezed("Could n't place").len(), out.text.len()]);
    }
}
