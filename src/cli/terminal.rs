//! What commands print to: colour, width, and nothing of what others wrote that could steer a terminal.

use std::borrow::Cow;
use std::fmt::Write as _;
use std::io::{self, IsTerminal, Write as _};

use jiff::Timestamp;

use crate::checks::Severity;
use crate::verdict::WorkerState;

/// Lines are never broken narrower than this.
const NARROWEST: usize = 40;

/// How to print.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Paint {
    /// With colours.
    pub(crate) color: bool,
    /// Columns; `None` where nothing is broken, since no person reads it as it comes.
    pub(crate) width: Option<usize>,
}

/// A colour.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Ink {
    /// Bold red.
    Critical,
    /// Yellow.
    Warning,
    /// Magenta.
    Unknown,
    /// Green.
    Good,
    /// Bold.
    Strong,
    /// Dim.
    Faint,
}

impl Paint {
    /// No colours, no width.
    pub(crate) const PLAIN: Paint = Paint { color: false, width: None };

    /// For standard output as it is: colours only on a terminal and without `NO_COLOR`.
    pub(crate) fn stdout() -> Paint {
        if !io::stdout().is_terminal() {
            return Paint::PLAIN;
        }
        let set = |name: &str| std::env::var_os(name).is_some_and(|value| !value.is_empty());
        let dumb = std::env::var_os("TERM").is_none_or(|term| term == "dumb");
        Paint { color: !set("NO_COLOR") && !dumb, width: Some(width()) }
    }

    /// `text` in the colour of this state.
    pub(crate) fn state(self, state: WorkerState, text: &str) -> String {
        self.ink(Ink::of_state(state), text)
    }

    /// `text` in bold.
    pub(crate) fn bold(self, text: &str) -> String {
        self.ink(Ink::Strong, text)
    }

    /// `text`, but less striking.
    pub(crate) fn dim(self, text: &str) -> String {
        self.ink(Ink::Faint, text)
    }

    /// `text` in this colour.
    pub(crate) fn ink(self, ink: Ink, text: &str) -> String {
        if !self.color || text.is_empty() {
            return text.to_owned();
        }
        let code = match ink {
            Ink::Critical => "1;31",
            Ink::Warning => "33",
            Ink::Unknown => "35",
            Ink::Good => "32",
            Ink::Strong => "1",
            Ink::Faint => "2",
        };
        format!("\x1b[{code}m{text}\x1b[0m")
    }

    /// Appends `text` as a paragraph of its own, broken at spaces to the width, every line indented.
    pub(crate) fn paragraph(self, out: &mut String, indent: usize, text: &str) {
        out.push_str(&wrap(text, &" ".repeat(indent), self.width.unwrap_or(usize::MAX)));
        out.push('\n');
    }
}

/// Columns of the terminal. Without one nothing is to be broken, since no person reads it as it comes.
pub(crate) fn width() -> usize {
    let size = terminal_size::terminal_size_of(io::stdout());
    let columns = size.map_or(0, |(terminal_size::Width(columns), _)| usize::from(columns));
    if columns == 0 { usize::MAX } else { columns.max(NARROWEST) }
}

/// `text` broken at spaces to `width` columns, every line behind `indent`, without a newline at the end.
pub(crate) fn wrap(text: &str, indent: &str, width: usize) -> String {
    let room = width.saturating_sub(indent.chars().count()).max(NARROWEST / 2);
    let mut out = String::with_capacity(text.len() + indent.len());
    let mut column = 0;
    for word in text.split(' ').filter(|word| !word.is_empty()) {
        let length = word.chars().count();
        if column > 0 && column + 1 + length > room {
            out.push('\n');
            column = 0;
        }
        if column == 0 {
            out.push_str(indent);
        } else {
            out.push(' ');
            column += 1;
        }
        out.push_str(word);
        column += length;
    }
    out
}

impl Ink {
    /// The colour of a state.
    pub(crate) fn of_state(state: WorkerState) -> Ink {
        match state {
            WorkerState::Critical => Ink::Critical,
            WorkerState::Warning => Ink::Warning,
            WorkerState::Unknown => Ink::Unknown,
            WorkerState::Normal => Ink::Good,
        }
    }

    /// The colour of a severity.
    pub(crate) fn of_severity(severity: Severity) -> Ink {
        match severity {
            Severity::Critical => Ink::Critical,
            Severity::Warning => Ink::Warning,
            Severity::Info => Ink::Faint,
        }
    }
}

/// A table whose columns are as wide as their longest cell.
#[derive(Debug, Default)]
pub(crate) struct Table {
    rows: Vec<Vec<(String, Option<Ink>)>>,
}

impl Table {
    /// A table with these headings.
    pub(crate) fn new(headings: &[&str]) -> Table {
        Table { rows: vec![headings.iter().map(|heading| ((*heading).to_owned(), Some(Ink::Faint))).collect()] }
    }

    /// One more row.
    pub(crate) fn row(&mut self, cells: Vec<(String, Option<Ink>)>) {
        self.rows.push(cells);
    }

    /// Appends the table. Columns in which nothing stands are left out. The last column may be cut to the width.
    pub(crate) fn print(&self, out: &mut String, paint: Paint) {
        let columns = self.rows.iter().map(Vec::len).max().unwrap_or(0);
        let width = |column: usize| {
            let cells = self.rows.iter().skip(1).filter_map(|row| row.get(column));
            let widest = cells.map(|(text, _)| text.chars().count()).max().unwrap_or(0);
            let heading = self.rows.first().and_then(|row| row.get(column)).map_or(0, |(text, _)| text.chars().count());
            if widest == 0 { 0 } else { widest.max(heading) }
        };
        let widths: Vec<usize> = (0..columns).map(width).collect();
        let last = widths.iter().rposition(|width| *width > 0);
        for row in &self.rows {
            let mut column_at = 0;
            for (column, (text, ink)) in row.iter().enumerate().filter(|(column, _)| widths[*column] > 0) {
                let is_last = Some(column) == last;
                let room = paint.width.map_or(usize::MAX, |width| width.saturating_sub(column_at));
                let text = if is_last { cut(text, room) } else { Cow::Borrowed(text.as_str()) };
                out.push_str(&ink.map_or_else(|| text.to_string(), |ink| paint.ink(ink, &text)));
                if !is_last {
                    let gap = widths[column] + 2 - text.chars().count();
                    out.extend(std::iter::repeat_n(' ', gap));
                }
                column_at += widths[column] + 2;
            }
            while out.ends_with(' ') {
                out.pop();
            }
            out.push('\n');
        }
    }
}

/// At most `room` characters, and a mark where something was cut off.
fn cut(text: &str, room: usize) -> Cow<'_, str> {
    if text.chars().count() <= room || room < 2 {
        return Cow::Borrowed(text);
    }
    Cow::Owned(text.chars().take(room - 1).chain(['…']).collect())
}

/// `text` as one line without anything that could steer a terminal: control characters, and characters that reverse or
/// hide what stands beside them, are shown by their number.
pub(crate) fn escaped(text: &str) -> Cow<'_, str> {
    let harmless = |c: char| {
        !c.is_control()
            && !matches!(c, '\u{200b}'..='\u{200f}' | '\u{2028}'..='\u{202e}' | '\u{2060}'..='\u{206f}' | '\u{feff}')
    };
    if text.chars().all(harmless) {
        return Cow::Borrowed(text);
    }
    let mut out = String::with_capacity(text.len() + 8);
    for c in text.chars() {
        match c {
            '\n' | '\t' => out.push(' '),
            c if harmless(c) => out.push(c),
            c => {
                let _ = write!(out, "\\u{{{:x}}}", u32::from(c));
            }
        }
    }
    Cow::Owned(out)
}

/// The same as [`escaped`], owned.
pub(crate) fn clean(text: &str) -> String {
    escaped(text).into_owned()
}

/// How long ago, as `kubectl get` says it: `45s`, `12m`, `5h`, `3d`.
pub(crate) fn age(since: Timestamp, now: Timestamp) -> String {
    let seconds = now.as_second().saturating_sub(since.as_second()).max(0);
    match seconds {
        0..120 => format!("{seconds}s"),
        120..7_200 => format!("{}m", seconds / 60),
        7_200..172_800 => format!("{}h", seconds / 3600),
        _ => format!("{}d", seconds / 86_400),
    }
}

/// Writes to standard output. That it cannot be written (`| head` has gone, the disk is full) is nothing that could be
/// said anywhere else, and no reason to panic as `print!` does.
pub(crate) fn print(text: &str) {
    let mut out = io::stdout().lock();
    out.write_all(text.as_bytes()).and_then(|()| out.flush()).ok();
}

/// One line for the person who waits, on standard error.
pub(crate) fn note(text: &str) {
    // Nobody is left to be told when this fails.
    io::stderr().write_all(format!("nodevitals: {text}\n").as_bytes()).ok();
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn nothing_steers_the_terminal() {
        assert_eq!(escaped("plain – ü"), "plain – ü");
        assert_eq!(escaped("a\x1b[31mb\nc\u{9b}d\u{202e}e\0"), "a\\u{1b}[31mb c\\u{9b}d\\u{202e}e\\u{0}");
    }

    #[test]
    fn ages_read_like_kubectl() {
        let now = Timestamp::from_second(1_000_000).expect("valid");
        let ago = |seconds: i64| age(Timestamp::from_second(1_000_000 - seconds).expect("valid"), now);
        assert_eq!(
            [ago(-5), ago(0), ago(119), ago(120), ago(7200), ago(172_800)],
            ["0s", "0s", "119s", "2m", "2h", "2d"]
        );
    }

    #[test]
    fn tables_leave_out_empty_columns_and_cut_the_last() {
        let mut table = Table::new(&["NAME", "ZONE", "REASON"]);
        table.row(vec![("n1".into(), Some(Ink::Good)), (String::new(), None), ("a long reason".into(), None)]);
        let mut out = String::new();
        table.print(&mut out, Paint { color: false, width: Some(14) });
        assert_eq!(out, "NAME  REASON\nn1    a long …\n");
        let mut out = String::new();
        table.print(&mut out, Paint { color: true, width: None });
        assert!(out.contains("\x1b[32mn1\x1b[0m    a long reason"), "{out}");
    }

    #[test]
    fn paragraphs_break_at_spaces() {
        let mut out = String::new();
        Paint { color: false, width: Some(24) }.paragraph(&mut out, 4, "one two three four five six");
        assert_eq!(out, "    one two three four\n    five six\n");
    }
}
