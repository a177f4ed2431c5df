//! `nodevitals generate`: completions for shells, and the man page, from the same description of the command line that
//! parses it, so that they cannot differ from it.

use std::fmt::Write as _;
use std::process::ExitCode;

use clap::{Arg, Command, ValueEnum};

use super::explain;

/// Options of `nodevitals generate`.
#[derive(Debug, clap::Args)]
pub(super) struct Options {
    /// What to write to standard output
    #[arg(value_enum, value_name = "WHAT")]
    what: What,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
enum What {
    /// Completions for bash: `source <(nodevitals generate bash)`
    Bash,
    /// Completions for zsh, after compinit: `source <(nodevitals generate zsh)`
    Zsh,
    /// Completions for fish: `nodevitals generate fish | source`
    Fish,
    /// The man page: `nodevitals generate man > /usr/share/man/man1/nodevitals.1`
    Man,
}

pub(super) fn run(options: &Options, command: Command) -> ExitCode {
    super::terminal::print(&text(options, command));
    ExitCode::SUCCESS
}

/// What was asked for.
fn text(options: &Options, mut command: Command) -> String {
    command.build();
    match options.what {
        What::Bash => bash(&command),
        // The functions of bash that are used here are there too.
        What::Zsh => format!("autoload -U +X bashcompinit && bashcompinit\n{}", bash(&command)),
        What::Fish => fish(&command),
        What::Man => man(&command),
    }
}

fn commands(command: &Command) -> impl Iterator<Item = &Command> {
    command.get_subcommands().filter(|command| !command.is_hide_set() && command.get_name() != "help")
}

fn options(command: &Command) -> impl Iterator<Item = &Arg> {
    command.get_arguments().filter(|argument| !argument.is_hide_set() && !argument.is_positional())
}

/// Its spellings, the long one first.
fn spellings(argument: &Arg) -> Vec<String> {
    let long = argument.get_long().map(|long| format!("--{long}"));
    let short = argument.get_short().map(|short| format!("-{short}"));
    long.into_iter().chain(short).collect()
}

/// The values that it can have, where they are few.
fn values(argument: &Arg) -> Vec<String> {
    if !argument.get_action().takes_values() {
        return Vec::new();
    }
    let all = argument.get_possible_values();
    all.iter().filter(|value| !value.is_hide_set()).map(|value| value.get_name().to_owned()).collect()
}

/// The name of its value, as in the help; empty if it takes none.
fn value_name(argument: &Arg) -> String {
    if !argument.get_action().takes_values() {
        return String::new();
    }
    argument.get_value_names().unwrap_or_default().iter().flat_map(|name| [" ", name.as_str()]).collect()
}

/// What can be written behind a command, but for its options.
fn words(command: &Command) -> Vec<String> {
    if command.get_name() == "explain" {
        return explain::names();
    }
    command.get_positionals().flat_map(values).collect()
}

fn bash(root: &Command) -> String {
    let names: Vec<&str> = commands(root).map(Command::get_name).collect();
    let mut out = String::from(
        "_nodevitals() {\n  local cur=${COMP_WORDS[COMP_CWORD]} prev=${COMP_WORDS[COMP_CWORD-1]} cmd= word\n",
    );
    let mut line = |text: &str| writeln!(out, "{text}").ok();
    line("  for word in \"${COMP_WORDS[@]:1:COMP_CWORD-1}\"; do");
    line(&format!("    case $word in {}) cmd=$word; break ;; esac", names.join("|")));
    line("  done\n  case $cmd,$prev in");
    for command in commands(root) {
        for argument in options(command).filter(|argument| argument.get_action().takes_values()) {
            let cases: Vec<String> =
                spellings(argument).iter().map(|spelling| format!("{},{spelling}", command.get_name())).collect();
            let values = values(argument);
            // What has no list of values is mostly a file.
            let how = if values.is_empty() { "-f".to_owned() } else { format!("-W '{}'", values.join(" ")) };
            line(&format!("    {}) COMPREPLY=($(compgen {how} -- \"$cur\")); return ;;", cases.join("|")));
        }
    }
    line("  esac\n  case $cmd in");
    for command in commands(root) {
        let options = options(command).filter_map(Arg::get_long).map(|long| format!("--{long}"));
        let all: Vec<String> = words(command).into_iter().chain(options).collect();
        let reply = format!("COMPREPLY=($(compgen -W '{}' -- \"$cur\"))", all.join(" "));
        line(&format!("    {}) {reply} ;;", command.get_name()));
    }
    line(&format!("    *) COMPREPLY=($(compgen -W '{} --help --version' -- \"$cur\")) ;;", names.join(" ")));
    line("  esac\n}\ncomplete -F _nodevitals nodevitals kubectl-nodevitals");
    out
}

fn fish(root: &Command) -> String {
    let mut out = String::from("complete -c nodevitals -f\n");
    let quoted = |text: &str| format!("'{}'", text.replace('\\', "\\\\").replace('\'', "\\'"));
    for command in commands(root) {
        let (name, about) = (command.get_name(), about(command));
        writeln!(out, "complete -c nodevitals -n __fish_use_subcommand -a {name} -d {}", quoted(&about)).ok();
        let here = format!("complete -c nodevitals -n '__fish_seen_subcommand_from {name}'");
        let words = words(command);
        if !words.is_empty() {
            writeln!(out, "{here} -a {}", quoted(&words.join(" "))).ok();
        }
        for argument in options(command) {
            let short = argument.get_short().map_or(String::new(), |short| format!(" -s {short}"));
            let long = argument.get_long().map_or(String::new(), |long| format!(" -l {long}"));
            let values = values(argument);
            let how = match (argument.get_action().takes_values(), values.is_empty()) {
                (false, _) => String::new(),
                (true, true) => " -r -F".to_owned(),
                (true, false) => format!(" -x -a {}", quoted(&values.join(" "))),
            };
            writeln!(out, "{here}{short}{long}{how} -d {}", quoted(&help(argument))).ok();
        }
    }
    out
}

fn about(command: &Command) -> String {
    command.get_about().map(ToString::to_string).unwrap_or_default()
}

fn help(argument: &Arg) -> String {
    argument.get_help().map(ToString::to_string).unwrap_or_default()
}

/// A man page in the macros of man(7).
fn man(root: &Command) -> String {
    let version = root.get_version().unwrap_or_default();
    let mut out =
        format!(".TH NODEVITALS 1 \"\" \"nodevitals {version}\"\n.SH NAME\nnodevitals \\- {}\n", roff(&about(root)));
    out.push_str(".SH SYNOPSIS\n.B nodevitals\n.I COMMAND\n[OPTIONS]\n.SH DESCRIPTION\n");
    let long = root.get_long_about().map(ToString::to_string).unwrap_or_default();
    writeln!(out, "{}", roff(&long).replace("\n\n", "\n.PP\n")).ok();
    out.push_str(".SH COMMANDS\n");
    for command in commands(root) {
        writeln!(out, ".SS nodevitals {}", roff(command.get_name())).ok();
        let text = command.get_long_about().map_or_else(|| about(command), ToString::to_string);
        writeln!(out, "{}", roff(&text).replace("\n\n", "\n.PP\n")).ok();
        let positional = command.get_positionals().map(|argument| (value_name(argument).trim().to_owned(), argument));
        let named = options(command).map(|argument| (spellings(argument).join(", ") + &value_name(argument), argument));
        for (head, argument) in positional.chain(named) {
            let values = values(argument);
            let list = if values.is_empty() { String::new() } else { format!(" ({})", values.join(", ")) };
            writeln!(out, ".TP\n.B {}\n{}", roff(&head), roff(&(help(argument) + &list))).ok();
        }
    }
    out
}

/// Text that the formatter does not take for orders.
fn roff(text: &str) -> String {
    let text = text.replace('\\', "\\e").replace('-', "\\-");
    let line = |line: &str| if line.starts_with(['.', '\'']) { format!("\\&{line}") } else { line.to_owned() };
    text.lines().map(line).collect::<Vec<_>>().join("\n")
}

#[cfg(test)]
mod tests {
    use super::*;

    fn generated(what: What) -> String {
        text(&Options { what }, super::super::command("nodevitals"))
    }

    /// What bash offers behind these words.
    fn offered(words: &[&str]) -> Vec<String> {
        let script = format!(
            "{}\nCOMP_WORDS=({}); COMP_CWORD={}; _nodevitals; printf '%s\\n' \"${{COMPREPLY[@]}}\"",
            generated(What::Bash),
            words.join(" "),
            words.len() - 1,
        );
        let output = std::process::Command::new("bash").args(["-euc", &script]).output().expect("bash");
        let errors = String::from_utf8_lossy(&output.stderr);
        assert!(errors.is_empty(), "{words:?}: {errors}");
        String::from_utf8_lossy(&output.stdout).lines().map(str::to_owned).filter(|line| !line.is_empty()).collect()
    }

    #[test]
    fn bash_offers_what_fits() {
        assert_eq!(offered(&["nodevitals", "exp"]), ["explain"]);
        assert_eq!(offered(&["nodevitals", "check", "--output", "j"]), ["json"]);
        assert_eq!(offered(&["nodevitals", "check", "-o", "y"]), ["yaml"]);
        assert_eq!(offered(&["nodevitals", "explain", "--product", "iks"]), ["iks-classic", "iks-vpc"]);
        assert_eq!(offered(&["nodevitals", "explain", "ConntrackF"]), ["ConntrackFull"]);
        assert!(offered(&["nodevitals", "check", "--"]).contains(&"--host-root".to_owned()));
    }

    #[test]
    fn all_of_them_know_every_command_and_every_option() {
        let root = super::super::command("nodevitals");
        for what in [What::Bash, What::Zsh, What::Fish, What::Man] {
            let text = generated(what).replace("\\-", "-");
            for command in commands(&root) {
                assert!(text.contains(command.get_name()), "{what:?} {}", command.get_name());
                for long in options(command).filter_map(Arg::get_long) {
                    assert!(text.contains(long), "{what:?} {} {long}", command.get_name());
                }
            }
        }
    }

    #[test]
    fn nothing_in_the_man_page_is_taken_for_an_order() {
        for line in generated(What::Man).lines() {
            let order = line.split(' ').next().unwrap_or_default();
            assert!(!line.starts_with('\''), "{line}");
            assert!(
                !line.starts_with('.') || [".TH", ".SH", ".SS", ".B", ".I", ".TP", ".PP"].contains(&order),
                "{line}"
            );
        }
        assert_eq!(roff(".x -y\n'z \\"), "\\&.x \\-y\n\\&'z \\e");
    }
}
