//! The commands.

mod check;
mod explain;
mod gather;
mod generate;
mod repair;
mod report;
mod standalone;
mod terminal;
mod uninstall;

use std::process::ExitCode;

use clap::{CommandFactory as _, FromArgMatches as _, Parser, Subcommand, ValueEnum};
use tracing_subscriber::filter::LevelFilter;

use crate::{agent, aggregator, telemetry};

/// Exit status for bad usage: an unknown option, a bad value, a file that cannot be used (`EX_USAGE` of sysexits.h).
const BAD_USAGE: u8 = 64;

/// Tells what is wrong with a Kubernetes worker, why, since when, and what to do next.
///
/// Without a cluster: `nodevitals check` looks once at this machine, `nodevitals standalone` goes on looking. In a
/// cluster: `nodevitals agent` runs on every worker, `nodevitals aggregator` once, and `nodevitals report` shows what they
/// found.
///
/// From an alert to the cure, in this order: `nodevitals report` (how many, which, since when), `nodevitals explain CODE` or
/// the text of an error (what it means, whose it is), `nodevitals gather NODE` (evidence, which every cure destroys), `nodevitals
/// repair NODE` (the steps, whether each may be taken now, and with --yes those that Kubernetes can take).
#[derive(Debug, Parser)]
#[command(name = "nodevitals", version, propagate_version = true, max_term_width = 100)]
struct Cli {
    #[command(subcommand)]
    command: Command,

    /// How much the log says; it goes to standard error for commands that print, as JSON to standard output for those
    /// that run on
    #[arg(long, global = true, value_enum, default_value_t = Level::Info, value_name = "LEVEL")]
    log_level: Level,
}

#[derive(Debug, Clone, Copy, ValueEnum)]
enum Level {
    Error,
    Warn,
    Info,
    Debug,
}

impl From<Level> for LevelFilter {
    fn from(level: Level) -> Self {
        match level {
            Level::Error => LevelFilter::ERROR,
            Level::Warn => LevelFilter::WARN,
            Level::Info => LevelFilter::INFO,
            Level::Debug => LevelFilter::DEBUG,
        }
    }
}

#[derive(Debug, Subcommand)]
enum Command {
    /// Look once at this machine and print what is wrong with it
    #[command(
        after_help = "Exit status: 0 Normal, 1 Warning, 2 Critical, 3 Unknown (something could not be looked at), 64 bad usage"
    )]
    Check(check::Options),
    /// Agent and aggregator in one process on this machine, without a cluster: prints the report, then serves it
    Standalone(standalone::Options),
    /// The process of the DaemonSet: watches its node and writes conditions and annotations on the Node object
    Agent(agent::Options),
    /// The process of the Deployment: watches all Nodes, counts, and serves the cluster's report
    Aggregator(aggregator::Options),
    /// Print the cluster's report, or one worker in full
    #[command(
        after_help = "Exit status: 0 when there is a report, whatever it says, 64 for an unknown worker or a bad kubeconfig, \
        1 when the API server cannot be asked or refuses"
    )]
    Report(report::Options),
    /// Explain a finding, a worker's state or an error text: cause, owner, and the steps in order; offline
    #[command(after_help = "Exit status: 0 explained, 1 nothing is known about it, 64 bad usage")]
    Explain(explain::Options),
    /// Gather evidence before anything is repaired: what the checks see, configuration, logs, redacted
    ///
    /// Without a NODE, of this machine, with all that its agent would see; else of these workers: what the API server has, and,
    /// by `kubectl exec` into the agent's pod where your rights allow it, what the node itself sees. `nodevitals check --from
    /// BUNDLE` judges a bundle anywhere. `nodevitals repair NODE --evidence BUNDLE` comes next.
    #[command(
        after_help = "Exit status: 0 when there is a bundle, whatever could not be taken for it, 64 when there is none"
    )]
    Gather(gather::Options),
    /// Show how a worker is repaired, step by step, with live preconditions; does the cluster's own steps with --yes
    ///
    /// Without --yes nothing is changed: it shows what is wrong, how the worker and what is around it are now, and the steps in
    /// their order, each with what it needs, what it destroys and the exact commands. With --yes it takes the steps that
    /// Kubernetes can take, one at a time, and stops as soon as the worker is cured: cordon, delete the calico-node pod,
    /// uncordon; or the copy of the BGP password's Secret with its Role and RoleBinding. Steps of the provider (reboot, reload,
    /// replace) and drains are printed, never done. It remembers what it did in the annotation nodevitals.dev/repair of the
    /// Node, so that it can be called again after anything, and uncordons only what it cordoned itself; Events on the Node tell
    /// of each step and of what was refused.
    ///
    /// It acts with the rights of your kubeconfig. A step that would do harm is refused: on the last Ready worker, without
    /// evidence of this episode, beside another repair in the zone, for something that many workers have.
    #[command(
        after_help = "In turn: nodevitals repair NODE; nodevitals gather NODE -o DIR; nodevitals repair NODE --yes --evidence \
        DIR/NODE\n\nExit status: 0 nothing to repair, or cured, 1 the API server cannot be \
        asked or refused a step, 2 a step waits for --yes or for you, 3 the next step is refused, 64 bad usage, 130 interrupted"
    )]
    Repair(repair::Options),
    /// Take off the Nodes, once the agents are gone, what this product wrote there, and off the nodes themselves what they kept
    ///
    /// Conditions and annotations are taken off the Node objects. Then a Pod on each node, which ends after that, erases the
    /// directory in which its agent kept state, journal and evidence: only what agents make, through no link, and the directory if
    /// nothing else is in it. An agent itself can be told by nobody to erase its evidence. Of nodes with the label
    /// nodevitals.dev/opt-out the same is erased, and only when you say so here.
    ///
    /// Nodes on which something is left are named, each with why and with the command that removes it by hand.
    ///
    /// Needs the rights to list and get nodes and to patch nodes/status; and in the namespace to list pods, and, unless
    /// --keep-evidence is given, to create, get and delete them, and to get daemonsets and deployments.
    #[command(
        after_help = "In turn: kubectl --namespace nodevitals delete daemonset nodevitals-agent; nodevitals uninstall; kubectl \
        delete -k deploy\n\nExit status: 0 when no node bears a trace any more that was to be taken off, 1 when something is left \
        on the nodes that are named, 64 otherwise"
    )]
    Uninstall(uninstall::Options),
    /// What the Pods of `nodevitals uninstall` run: erase what an agent kept on this machine
    #[command(hide = true, after_help = "Exit status: 0 when the directory is gone, 64 otherwise")]
    Erase(uninstall::Here),
    /// Write completions for a shell, or the man page
    Generate(generate::Options),
}

/// How a machine-readable answer is written.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
enum Output {
    /// For people
    Table,
    /// JSON
    Json,
    /// YAML
    Yaml,
}

impl Output {
    /// The whole document for programs, or the table for people.
    fn write<D: serde::Serialize>(
        self,
        document: impl FnOnce() -> D,
        table: impl FnOnce() -> String,
    ) -> anyhow::Result<String> {
        match self {
            Output::Table => Ok(table()),
            Output::Json => crate::yaml::write_json(&document()),
            Output::Yaml => crate::yaml::write(&document()),
        }
    }
}

#[cfg(any(test, fuzzing))]
pub(crate) use explain::fuzz as fuzz_explain;

/// Runs the program.
pub fn main() -> ExitCode {
    let program = std::env::args_os().next().unwrap_or_default();
    let parsed = command(&program.to_string_lossy()).try_get_matches();
    let cli = match parsed.and_then(|matches| Cli::from_arg_matches(&matches)) {
        Ok(cli) => cli,
        Err(error) => {
            // Help and version are answers; everything else is bad usage.
            let bad = error.use_stderr();
            // Nothing is left to do when even that cannot be printed.
            error.print().ok();
            return if bad { ExitCode::from(BAD_USAGE) } else { ExitCode::SUCCESS };
        }
    };
    let runs_on = matches!(cli.command, Command::Agent(_) | Command::Aggregator(_) | Command::Standalone(_));
    let quiet = !runs_on && matches!(cli.log_level, Level::Info);
    telemetry::start(
        if quiet { LevelFilter::ERROR } else { cli.log_level.into() },
        runs_on && !matches!(cli.command, Command::Standalone(_)),
    );
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        // Threads for calls that can hang; each hung thing holds at most one.
        .max_blocking_threads(16)
        .thread_stack_size(256 * 1024)
        .thread_keep_alive(std::time::Duration::from_secs(5))
        .build();
    let runtime = match runtime {
        Ok(runtime) => runtime,
        Err(error) => return failed(&anyhow::Error::from(error).context("cannot start")),
    };
    let status = runtime.block_on(run(cli.command));
    // A call that hangs in the kernel must not hold up the end.
    runtime.shutdown_background();
    status
}

/// The command line. kubectl starts `kubectl-nodevitals` for `kubectl nodevitals`, and that is what its help says.
fn command(program: &str) -> clap::Command {
    let name = program.rsplit('/').next().unwrap_or_default();
    let command = Cli::command();
    if name.starts_with("kubectl-") { command.bin_name("kubectl nodevitals") } else { command }
}

async fn run(command: Command) -> ExitCode {
    match command {
        Command::Check(options) => check::run(&options).await,
        Command::Standalone(options) => finished(standalone::run(&options).await),
        Command::Agent(options) => finished(agent::run(options).await),
        Command::Aggregator(options) => finished(Box::pin(aggregator::run(options)).await),
        Command::Report(options) => report::run(&options).await,
        Command::Explain(options) => explain::run(&options),
        Command::Gather(options) => Box::pin(gather::run(&options)).await,
        Command::Repair(options) => repair::run(&options).await,
        Command::Uninstall(options) => uninstall::run(&options).await,
        Command::Erase(options) => uninstall::erase(&options),
        Command::Generate(options) => generate::run(&options, Cli::command()),
    }
}

fn finished(result: anyhow::Result<()>) -> ExitCode {
    match result {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => failed(&error),
    }
}

/// Says on standard error what is wrong with how the program was called.
#[expect(clippy::print_stderr, reason = "a command's last word")]
fn failed(error: &anyhow::Error) -> ExitCode {
    eprintln!("nodevitals: {error:#}");
    ExitCode::from(BAD_USAGE)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_command_line_is_sound() {
        Cli::command().debug_assert();
    }

    #[test]
    fn kubectl_calls_it_by_another_name() {
        for (program, usage) in [
            ("/usr/local/bin/kubectl-nodevitals", "Usage: kubectl nodevitals explain"),
            ("/usr/bin/nodevitals", "Usage: nodevitals explain"),
        ] {
            let help = command(program).try_get_matches_from([program, "explain", "--help"]).expect_err("help");
            assert!(help.to_string().contains(usage), "{help}");
        }
    }

    #[test]
    fn every_option_has_a_help_text() {
        for command in Cli::command().get_subcommands() {
            assert!(command.get_about().is_some(), "{}", command.get_name());
            for argument in command.get_arguments() {
                assert!(argument.get_help().is_some(), "{} {}", command.get_name(), argument.get_id());
            }
        }
    }
}
