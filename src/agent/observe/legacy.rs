//! The packet filter of legacy ip_tables: only if it holds something, since asking for a table creates it.
//!
//! `/proc/net/ip_tables_names` lists the tables that exist without touching them. Only those are read, with
//! `iptables-legacy-save`, which takes no lock (`/run/xtables.lock` is for changes) and copies the whole table out of the kernel:
//! with 10,000 Services a quarter of a second of CPU. Its output is read line by line; [`pace`] says how often.

mod pace;
mod rule;
mod sieve;

use std::collections::BTreeMap;
use std::process::{Output, Stdio};
use std::time::Duration;

use iptables::IPTables;
use nix::sys::resource::{UsageWho, getrusage};
use nix::sys::time::TimeValLike as _;
use tokio::io::{AsyncBufReadExt as _, AsyncReadExt as _, BufReader};
use tokio::process::{Child, Command};
use tokio::time::timeout;

pub(crate) use pace::{By, LockUses, Pace};
use sieve::{Kept, Names, Sieve};

use super::blocking::Blocking;
use super::host_root::HostRoot;
use crate::facts::{Backend, Family, LookError, Reason, Ruleset};

/// For one table.
const DEADLINE: Duration = Duration::from_secs(5);
/// A program that was killed is given so long to be gone.
const KILLED: Duration = Duration::from_millis(500);
/// A line has a rule's matches, of which the longest takes a few hundred bytes.
const LONGEST_LINE: u64 = 16 << 10;
/// There are five tables, with short names.
const NAMES_LIMIT: u64 = 4096;
/// So often is a table printed in one look; once, as soon as it is known which chains matter.
const MOST_PASSES: usize = 3;
/// A table that costs less CPU than this is read in every look.
const SMALL: Duration = Duration::from_millis(20);

/// Where legacy ip_tables is asked.
pub(crate) struct LegacySource {
    host: HostRoot,
    blocking: Blocking,
    /// The directory of `ip_tables_names`.
    proc_net: &'static str,
    /// Tables as they were last read.
    tables: BTreeMap<(Family, String), Last>,
    /// Programs that are known to be those of legacy ip_tables.
    known: Vec<&'static str>,
    /// A program that was killed and is not gone.
    hangs: Option<Child>,
    /// What the last look has cost.
    spent: Duration,
}

struct Last {
    kept: Kept,
    cost: Duration,
}

impl LegacySource {
    /// A source for the network namespace of this process.
    pub(crate) fn new(host: HostRoot, blocking: Blocking) -> Self {
        LegacySource {
            host,
            blocking,
            proc_net: "/proc/net",
            tables: BTreeMap::new(),
            known: Vec::new(),
            hangs: None,
            spent: Duration::ZERO,
        }
    }

    /// What ip_tables holds; of tables that cost much what they held in an earlier look, unless `large`.
    /// [`Reason::Missing`] when no table exists: nobody uses it.
    pub(crate) async fn look(&mut self, large: bool) -> Result<Ruleset, LookError> {
        self.spent = Duration::ZERO;
        let mut there = Vec::new();
        for (family, file, program) in [
            (Family::V4, "ip_tables_names", "iptables-legacy-save"),
            (Family::V6, "ip6_tables_names", "ip6tables-legacy-save"),
        ] {
            let names = names(&self.host, &format!("{}/{file}", self.proc_net))?;
            there.extend(names.into_iter().map(|name| (family, name, program)));
        }
        self.tables.retain(|(family, name), _| there.iter().any(|it| (it.0, &it.1) == (*family, name)));
        if there.is_empty() {
            return Err(LookError::new("legacy iptables", Reason::Missing, "no table exists"));
        }
        let mut ruleset = Ruleset::empty(Backend::Legacy);
        for (family, name, program) in there {
            let key = (family, name);
            if large || self.tables.get(&key).is_none_or(|last| last.cost < SMALL) {
                self.check_program(program, &key.1).await?;
                let wanted = self.tables.remove(&key).map(|last| last.kept.wanted).unwrap_or_default();
                let last = self.read(program, family, &key.1, wanted).await?;
                self.tables.insert(key.clone(), last);
            }
            let kept = self.tables.get(&key).map(|last| &last.kept);
            ruleset.tables.extend(kept.map(|kept| kept.table.clone()));
            ruleset.services.extend(kept.iter().flat_map(|kept| kept.services.iter().cloned()));
        }
        Ok(ruleset)
    }

    /// CPU of the last look.
    pub(crate) fn spent(&self) -> Duration {
        self.spent
    }

    /// CPU that reading the small tables takes, and that reading the others takes.
    pub(crate) fn costs(&self) -> (Duration, Duration) {
        let sum = |large: bool| self.tables.values().map(|it| it.cost).filter(|cost| (*cost >= SMALL) == large).sum();
        (sum(false), sum(true))
    }

    /// Whether a program is there and speaks of legacy ip_tables: a link may lead to that of nf_tables.
    async fn check_program(&mut self, program: &'static str, table: &str) -> Result<(), LookError> {
        if !self.known.contains(&program) {
            let table = table.to_owned();
            self.blocking.run("legacy iptables", DEADLINE, move || check_program(program, &table)).await?;
            self.known.push(program);
        }
        Ok(())
    }

    async fn read(&mut self, program: &str, family: Family, table: &str, mut wanted: Names) -> Result<Last, LookError> {
        let before = children();
        let mut kept = self.pass(program, family, table, &wanted).await?;
        for _ in 1..MOST_PASSES {
            if kept.whole {
                break;
            }
            wanted.extend(kept.wanted);
            kept = self.pass(program, family, table, &wanted).await?;
        }
        let cost = children().saturating_sub(before);
        self.spent += cost;
        Ok(Last { kept, cost })
    }

    /// Has one table printed, and keeps what matters.
    async fn pass(&mut self, program: &str, family: Family, table: &str, wanted: &Names) -> Result<Kept, LookError> {
        let what = || format!("{program} -t {table}");
        if let Some(child) = &mut self.hangs {
            if matches!(child.try_wait(), Ok(None)) {
                return Err(LookError::new(what(), Reason::TimedOut, "the last one was killed and has not ended"));
            }
            self.hangs = None;
        }
        let mut command = Command::new(program);
        command.args(["-c", "-t", table]).stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped());
        let mut child = command.kill_on_drop(true).spawn().map_err(|error| LookError::io(what(), &error))?;
        let told = timeout(DEADLINE, lines(&mut child, Sieve::new(family, wanted), &what)).await;
        if !matches!(told, Ok(Ok(_))) {
            child.start_kill().ok();
            if timeout(KILLED, child.wait()).await.is_err() {
                self.hangs = Some(child);
            }
        }
        told.unwrap_or_else(|_| Err(LookError::timed_out(what(), DEADLINE.as_secs_f32())))
    }
}

/// CPU of all programs that were run and have ended.
fn children() -> Duration {
    let used = getrusage(UsageWho::RUSAGE_CHILDREN).map(|used| used.user_time() + used.system_time());
    used.map(|used| Duration::from_micros(used.num_microseconds().unsigned_abs())).unwrap_or_default()
}

/// Gives a sieve what a save program prints, until it has ended well.
async fn lines(child: &mut Child, mut sieve: Sieve<'_>, what: &impl Fn() -> String) -> Result<Kept, LookError> {
    let malformed = |why: &str| LookError::new(what(), Reason::Malformed, why);
    let io = |error| LookError::io(what(), &error);
    let mut line = Vec::with_capacity(512);
    if let Some(output) = child.stdout.take() {
        let mut output = BufReader::with_capacity(64 << 10, output);
        loop {
            line.clear();
            let read = (&mut output).take(LONGEST_LINE).read_until(b'\n', &mut line).await.map_err(io)?;
            if read == 0 {
                break;
            }
            let Some(text) = line.strip_suffix(b"\n") else {
                return Err(malformed(if read as u64 == LONGEST_LINE {
                    "a line is too long"
                } else {
                    "a line has no end"
                }));
            };
            sieve.line(&String::from_utf8_lossy(text)).map_err(malformed)?;
        }
    }
    let mut said = Vec::new();
    if let Some(errors) = child.stderr.take() {
        errors.take(LONGEST_LINE).read_to_end(&mut said).await.map_err(io)?;
    }
    let status = child.wait().await.map_err(io)?;
    if !status.success() {
        return Err(failed(what(), status, &said));
    }
    sieve.finish().map_err(malformed)
}

fn failed(what: String, status: std::process::ExitStatus, said: &[u8]) -> LookError {
    let said = String::from_utf8_lossy(said);
    let denied = said.contains("Permission denied") || said.contains("must be root");
    let reason = if denied { Reason::Denied } else { Reason::Failed };
    LookError::new(what, reason, format!("{status}: {}", said.trim()))
}

/// The tables that exist; none when the file does not, because the module is not loaded.
fn names(host: &HostRoot, path: &str) -> Result<Vec<String>, LookError> {
    match host.read_text(path, NAMES_LIMIT) {
        Ok(text) => Ok(text.split_whitespace().map(str::to_owned).collect()),
        Err(error) if error.reason == Reason::Missing => Ok(Vec::new()),
        Err(mut error) => {
            if error.reason == Reason::Denied {
                error.detail.push_str(": run as root");
            }
            Err(error)
        }
    }
}

fn check_program(program: &'static str, table: &str) -> Result<(), LookError> {
    // `has_wait` off: the save programs know no `--wait`. Nothing but `execute` may be called: it alone hands out the
    // exit status, all others turn a failure into an empty answer. With `-V` no table is touched.
    let crate_door = IPTables { cmd: program, has_check: true, has_wait: false, is_numeric: false };
    let Output { status, stdout, stderr } =
        crate_door.execute(table, "-V").map_err(|error| match error.downcast_ref::<std::io::Error>() {
            Some(error) if error.kind() == std::io::ErrorKind::NotFound => LookError::new(
                program,
                Reason::Unsupported,
                format!("legacy tables exist, but there is no program {program}; install the package iptables"),
            ),
            Some(error) => LookError::io(program, error),
            None => LookError::new(program, Reason::Failed, error.to_string()),
        })?;
    if !status.success() {
        return Err(failed(program.to_owned(), status, &stderr));
    }
    // Before 1.8 there was no other kind, and the version does not say which.
    let version = String::from_utf8_lossy(&stdout);
    if version.contains("nf_tables") {
        let why = format!("legacy tables exist, but {program} is {}: it reads nf_tables", version.trim());
        return Err(LookError::new(program, Reason::Unsupported, why));
    }
    Ok(())
}

/// The fuzz target's door.
#[cfg(any(test, fuzzing))]
pub(crate) fn fuzz(data: &[u8]) {
    let wanted = Names::new();
    let mut sieve = Sieve::new(Family::V4, &wanted);
    let text = String::from_utf8_lossy(data);
    if text.lines().all(|line| sieve.line(line).is_ok())
        && let Ok(kept) = sieve.finish()
    {
        let rules = kept.table.chains.iter().filter_map(|chain| chain.rules.as_ref());
        rules.for_each(|rules| assert!(rules.len() <= crate::facts::Chain::MOST_RULES));
    }
}

#[cfg(test)]
pub(crate) use rule::rule as read_rule;

#[cfg(test)]
pub(super) mod tests;
