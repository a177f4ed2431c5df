//! The part of TOML that the configuration of runtimes is written in: tables, strings and lists of strings. TOML has more, which
//! does not matter here: the values are names, paths and URLs, which hold no escapes.

/// One `key = value` and the table that it is in, as the keys of its header.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Entry {
    pub(super) table: Vec<String>,
    /// Counts headers, so that tables of an array are told apart.
    pub(super) header: usize,
    pub(super) key: String,
    /// Its strings.
    pub(super) values: Vec<String>,
}

/// Reads tables, strings and lists of strings, line by line; a table without any entry that is read has one of an empty key.
pub(super) fn entries(text: &str) -> Vec<Entry> {
    let mut found = Vec::new();
    let (mut table, mut header) = (Vec::new(), 0);
    let mut lines = text.lines().map(str::trim);
    while let Some(line) = lines.next() {
        if line.starts_with('[') {
            header += 1;
            table = keys(line.trim_start_matches('['));
            found.push(Entry { table: table.clone(), header, key: String::new(), values: Vec::new() });
            continue;
        }
        let Some((key, value)) = line.split_once('=').filter(|_| !line.starts_with('#')) else { continue };
        let mut values = strings(value);
        if value.trim_start().starts_with('[') && !closes(value) {
            for line in lines.by_ref() {
                values.extend(strings(line));
                if closes(line) {
                    break;
                }
            }
        }
        found.push(Entry { table: table.clone(), header, key: key.trim().to_owned(), values });
    }
    found
}

/// Whether a list ends in this line: a bracket outside of strings and comments.
fn closes(line: &str) -> bool {
    let mut quote = None;
    for letter in line.chars() {
        match (quote, letter) {
            (None, '#') => return false,
            (None, ']') => return true,
            (None, '"' | '\'') => quote = Some(letter),
            (Some(open), letter) if open == letter => quote = None,
            _ => {}
        }
    }
    false
}

/// The strings of a line.
fn strings(line: &str) -> Vec<String> {
    let mut found = Vec::new();
    let mut rest = line;
    while let Some(at) = rest.find(['"', '\'', '#']) {
        let quote = rest.as_bytes()[at];
        if quote == b'#' {
            break;
        }
        let Some(end) = rest[at + 1..].find(char::from(quote)) else { break };
        found.push(rest[at + 1..at + 1 + end].to_owned());
        rest = &rest[at + end + 2..];
    }
    found
}

/// The keys of a header, up to its bracket: bare or quoted, with dots between.
fn keys(header: &str) -> Vec<String> {
    let mut keys = vec![String::new()];
    let mut quote = None;
    for letter in header.chars() {
        match (quote, letter) {
            (None, ']') => break,
            (None, '.') => keys.push(String::new()),
            (None, '"' | '\'') => quote = Some(letter),
            (Some(open), letter) if open == letter => quote = None,
            (None, letter) if letter.is_whitespace() => {}
            (_, letter) => keys.last_mut().expect("one at least").push(letter),
        }
    }
    keys
}

#[cfg(test)]
mod tests {
    use proptest::collection::vec;
    use proptest::prelude::*;

    use super::*;

    fn read(text: &str) -> Vec<(String, String, Vec<String>)> {
        let entries = entries(text).into_iter().filter(|entry| !entry.key.is_empty());
        entries.map(|entry| (entry.table.join("|"), entry.key, entry.values)).collect()
    }

    #[test]
    fn tables_strings_and_lists() {
        let text = "a = 'x' # 'no'\n[p.\"q.r\".'s'] # here\n  b = [\n 'one', # 'no'\n \"t]wo\"\n ]\n#c = 'no'\n[[p]]\nd = [\"e\"]\nf=7\n";
        let row = |table: &str, key: &str, values: &[&str]| {
            (table.to_owned(), key.to_owned(), values.iter().map(ToString::to_string).collect::<Vec<_>>())
        };
        let expected =
            [row("", "a", &["x"]), row("p|q.r|s", "b", &["one", "t]wo"]), row("p", "d", &["e"]), row("p", "f", &[])];
        assert_eq!(read(text), expected);
        assert_eq!(read("[a\nb = ['c"), [row("a", "b", &[])], "cut off");
    }

    proptest! {
        #[test]
        fn any_text_is_read(text in r#"([\[\]="'#., a-c\n]|\PC){0,80}"#) {
            let lines = text.lines().count();
            let found = entries(&text);
            prop_assert!(found.len() <= lines, "one entry for a line at most");
            let headers = text.lines().filter(|line| line.trim().starts_with('[')).count();
            prop_assert!(found.iter().all(|entry| entry.header <= headers));
        }

        /// However it is laid out, what was written is read.
        #[test]
        fn what_is_written_is_read(
            table in vec(r"[a-z.:/ ]{1,9}", 1..4),
            key in "[a-z_]{1,9}",
            values in vec(r"[a-z\[\]#=,.:/ ]{0,9}", 0..4),
            (over_lines, comment) in any::<(bool, bool)>(),
        ) {
            let header: Vec<String> = table.iter().map(|key| format!("\"{key}\"")).collect();
            let quoted: Vec<String> = values.iter().map(|value| format!("'{value}'")).collect();
            let (between, end) = (if over_lines { "\n" } else { " " }, if comment { " # ']" } else { "" });
            let list = format!("[{between}{}{between}]", quoted.join(&format!(",{between}")));
            let text = format!("[{}]{end}\n{key} = {list}{end}\nlast = \"x\"\n", header.join("."));
            let table = table.join("|");
            prop_assert_eq!(read(&text), [(table.clone(), key, values), (table, "last".to_owned(), vec!["x".to_owned()])]);
        }
    }
}
