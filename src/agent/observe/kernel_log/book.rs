//! What the kernel's lines come to: faults that stand and end. No I/O.

use std::collections::BTreeMap;
use std::time::Duration;

use jiff::Timestamp;

use super::rules::{self, Meaning};
use crate::facts::{KernelEvent, KernelFault, KernelLog};

/// So many faults are kept; a machine with more is not told apart better by more.
const MOST: usize = 64;
/// As much of a line is kept, in bytes.
const LINE: usize = 200;
/// Priority and facility are one number: the facility is above these bits, and the kernel's own is 0. Nobody else can
/// write lines with that one (`devkmsg_write` of `kernel/printk/printk.c`).
const FACILITY: u32 = 3;

/// One line of the kernel's log.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Line<'a> {
    /// Priority and facility.
    pub(super) priority: u32,
    /// Since boot, on the kernel's clock, which stands still while the machine is suspended.
    pub(super) at: Duration,
    pub(super) text: &'a str,
}

/// The present, on the clock of the lines and on that of people.
#[derive(Debug, Clone, Copy)]
pub(super) struct Present {
    pub(super) wall: Timestamp,
    /// `CLOCK_MONOTONIC`.
    pub(super) since_boot: Duration,
}

impl Present {
    pub(super) fn now() -> Self {
        Present { wall: Timestamp::now(), since_boot: crate::clock::awake() }
    }

    fn age(self, at: Duration) -> Duration {
        self.since_boot.saturating_sub(at)
    }
}

#[derive(Debug)]
struct Kept {
    event: KernelEvent,
    times: u64,
    last: Duration,
}

/// Faults that stand.
#[derive(Debug, Default)]
pub(super) struct Book {
    kept: BTreeMap<(KernelFault, String), Kept>,
    lost: u64,
}

impl Book {
    /// Takes a line in.
    pub(super) fn take(&mut self, line: Line<'_>, now: Present) {
        if line.priority >> FACILITY != 0 {
            return;
        }
        let Some((meaning, subject)) = rules::understand(line.text) else { return };
        let fault = match meaning {
            Meaning::Fault(fault) => fault,
            Meaning::Forget => return self.forget(subject),
        };
        let age = now.age(line.at);
        if rules::lasts(fault).is_some_and(|lasts| age >= lasts) {
            return;
        }
        let key = (fault, subject.to_owned());
        if let Some(kept) = self.kept.get_mut(&key) {
            kept.times = kept.times.saturating_add(1);
            kept.last = kept.last.max(line.at);
            kept.event.times = rounded(kept.times);
        } else if self.kept.len() < MOST {
            let first_at = now.wall.checked_sub(age).unwrap_or(now.wall);
            let line_kept = beginning(line.text).to_owned();
            let event = KernelEvent { fault, subject: subject.to_owned(), first_at, times: 1, line: line_kept };
            self.kept.insert(key, Kept { event, times: 1, last: line.at });
        }
    }

    /// What was said of a file system is over when it is mounted anew; that its journal was replayed stays true, and so do
    /// errors of the disk below.
    fn forget(&mut self, device: &str) {
        use KernelFault::{FilesystemError, FilesystemReadOnly, FilesystemShutdown, FilesystemWarning};
        for fault in [FilesystemError, FilesystemWarning, FilesystemShutdown, FilesystemReadOnly] {
            self.kept.remove(&(fault, device.to_owned()));
        }
    }

    /// At least so many lines were overwritten before they were read.
    pub(super) fn lose(&mut self, lines: u64) {
        let before = self.lost;
        self.lost = before.saturating_add(lines);
        if rounded(self.lost) != rounded(before) || before == 0 {
            tracing::warn!(
                at_least = self.lost,
                "the kernel's log was overwritten before it was read: faults that it told may be missed"
            );
        }
    }

    /// Ends what has not been said again for long enough, and what `is_over` by other signs.
    pub(super) fn expire(&mut self, now: Present, is_over: impl Fn(&KernelEvent) -> bool) {
        self.kept.retain(|(fault, _), kept| {
            rules::lasts(*fault).is_none_or(|lasts| now.age(kept.last) < lasts) && !is_over(&kept.event)
        });
    }

    /// Whether there is something that can end.
    pub(super) fn is_empty(&self) -> bool {
        self.kept.is_empty()
    }

    /// What stands.
    pub(super) fn log(&self) -> KernelLog {
        KernelLog {
            events: self.kept.values().map(|kept| kept.event.clone()).collect(),
            lost: if self.lost == 0 { 0 } else { rounded(self.lost) },
        }
    }
}

/// As much of a line as is kept.
fn beginning(text: &str) -> &str {
    let end = (0..=LINE.min(text.len())).rev().find(|at| text.is_char_boundary(*at));
    &text[..end.unwrap_or(0)]
}

/// Rounded down to a power of ten.
fn rounded(times: u64) -> u64 {
    10_u64.pow(times.max(1).ilog10())
}

/// A record of `/dev/kmsg`: `PRIORITY,SEQUENCE,MICROSECONDS,FLAGS[,...];TEXT\n KEY=VALUE\n...`
/// (`Documentation/ABI/testing/dev-kmsg`); with its sequence number.
pub(super) fn parse_record(record: &str) -> Option<(u64, Line<'_>)> {
    let (head, rest) = record.split_once(';')?;
    let mut fields = head.split(',');
    let priority = fields.next()?.parse().ok()?;
    let sequence = fields.next()?.parse().ok()?;
    let at = Duration::from_micros(fields.next()?.parse().ok()?);
    let text = rest.split('\n').next().unwrap_or_default();
    Some((sequence, Line { priority, at, text }))
}

/// A line as syslog(2) hands it out: `<PRIORITY>[SECONDS.MICROSECONDS] TEXT`, with `[CALLER]` before the text on some
/// kernels; none without a time, which `printk.time` switches off.
pub(super) fn parse_line(line: &str) -> Option<Line<'_>> {
    let (priority, rest) = line.strip_prefix('<')?.split_once('>')?;
    let (at, rest) = rest.strip_prefix('[')?.split_once(']')?;
    let (seconds, micros) = at.trim_start().split_once('.')?;
    let at = Duration::from_secs(seconds.parse().ok()?).checked_add(Duration::from_micros(micros.parse().ok()?))?;
    let caller = rest.strip_prefix('[').and_then(|rest| rest.split_once(']'));
    let text = caller.map_or(rest, |(_, text)| text);
    Some(Line { priority: priority.parse().ok()?, at, text: text.strip_prefix(' ').unwrap_or(text) })
}

/// The fuzz target's door.
#[cfg(any(test, fuzzing))]
pub(crate) fn fuzz(data: &[u8]) {
    let text = String::from_utf8_lossy(data);
    let now = Present { wall: Timestamp::UNIX_EPOCH, since_boot: Duration::from_secs(1_000) };
    let mut book = Book::default();
    for line in text.lines() {
        if let Some((_, line)) = parse_record(line) {
            book.take(line, now);
        }
        if let Some(line) = parse_line(line) {
            book.take(line, now);
        }
        book.take(Line { priority: 0, at: Duration::ZERO, text: line }, now);
    }
    let log = book.log();
    assert!(log.events.len() <= MOST && log.events.iter().all(|event| event.line.len() <= LINE && event.times > 0));
    book.expire(Present { since_boot: Duration::MAX, ..now }, |event| rules::lasts(event.fault).is_none());
    assert!(book.is_empty());
}

#[cfg(test)]
mod tests {
    use super::*;

    const ERROR: &str = "EXT4-fs error (device sda1): ext4_lookup:1";

    fn present(seconds: u64) -> Present {
        Present {
            wall: Timestamp::from_second(1_700_000_000 + i64::try_from(seconds).expect("small")).expect("valid"),
            since_boot: Duration::from_secs(seconds),
        }
    }

    fn line(seconds: u64, text: &str) -> Line<'_> {
        Line { priority: 2, at: Duration::from_secs(seconds), text }
    }

    fn taken(lines: &[(u64, &str)], now: u64) -> Book {
        let mut book = Book::default();
        for (at, text) in lines {
            book.take(line(*at, text), present(now));
        }
        book
    }

    fn faults(book: &Book) -> Vec<(KernelFault, String)> {
        book.log().events.into_iter().map(|event| (event.fault, event.subject)).collect()
    }

    #[test]
    fn a_fault_stands_from_its_first_line_until_long_after_its_last() {
        let mut book = taken(&[(100, ERROR), (200, ERROR)], 300);
        let log = book.log();
        assert_eq!((log.events.len(), log.events[0].first_at), (1, present(100).wall));
        book.expire(present(200 + 3599), |_| false);
        assert!(!book.is_empty());
        book.expire(present(200 + 3600), |_| false);
        assert!(book.is_empty());
    }

    #[test]
    fn a_full_table_stands_while_it_is_said_and_names_the_network_namespace_where_the_kernel_does() {
        let line = "nf_conntrack: nf_conntrack: table full, dropping packet";
        let named = "nf_conntrack: nf_conntrack: table full in netns 4026532301, dropping packet";
        let mut book = taken(&[(100, line), (150, line), (160, named)], 200);
        let subjects = |book: &Book| faults(book).into_iter().map(|(_, subject)| subject).collect::<Vec<_>>();
        assert_eq!(subjects(&book), ["", "4026532301"]);
        book.expire(present(270), |_| false);
        assert_eq!(subjects(&book), ["4026532301"]);
        book.expire(present(280), |_| false);
        assert!(book.is_empty());
        assert!(taken(&[(100, line)], 220).is_empty(), "a line of long ago");
    }

    #[test]
    fn old_lines_of_this_boot_are_no_news_and_those_that_still_count_are_the_same_after_a_restart() {
        assert!(taken(&[(100, ERROR)], 100 + 3600).is_empty());
        let lines = [(100, ERROR), (150, "Oops: 0002 [#1] SMP PTI")];
        assert_eq!(taken(&lines, 160).log(), taken(&lines, 3000).log());
    }

    #[test]
    fn repetitions_are_news_only_at_powers_of_ten() {
        let times = |count| taken(&vec![(100, ERROR); count], 100).log().events[0].times;
        assert_eq!([1, 9, 10, 99, 100].map(times), [1, 1, 10, 10, 100]);
    }

    #[test]
    fn a_new_mount_ends_what_was_said_of_the_old_one_alone() {
        let down = "XFS (sdb1): Filesystem has been shut down due to log error (0x2).";
        let lines = [(1, down), (2, ERROR), (3, "XFS (sdb1): Unmounting Filesystem 1b7a")];
        assert_eq!(faults(&taken(&lines, 10)), [(KernelFault::FilesystemError, "sda1".to_owned())]);
    }

    #[test]
    fn other_signs_end_a_fault() {
        let mut book = taken(&[(1, "INFO: task a b:77 blocked for more than 120 seconds.")], 10);
        book.expire(present(10), |_| true);
        assert!(book.is_empty());
    }

    #[test]
    fn only_the_kernel_speaks_for_the_kernel() {
        let mut book = Book::default();
        book.take(Line { priority: 1 << FACILITY | 2, ..line(1, ERROR) }, present(1));
        assert!(book.is_empty());
    }

    #[test]
    fn a_flood_is_bounded() {
        let lines: Vec<String> = (0..1000).map(|disk| format!("I/O error, dev sd{disk}, sector 0")).collect();
        let mut book = Book::default();
        for text in &lines {
            book.take(line(1, text), present(1));
        }
        assert_eq!(book.log().events.len(), MOST);
        let long = format!("{ERROR}{}", "é".repeat(500));
        assert!(taken(&[(1, &long)], 1).log().events[0].line.len() <= LINE);
    }

    #[test]
    fn lines_that_were_overwritten_are_news_only_at_powers_of_ten_and_end_nothing() {
        let mut book = taken(&[(100, ERROR)], 100);
        let mut lose = |lines| {
            book.lose(lines);
            (book.log().lost, faults(&book).len())
        };
        assert_eq!([1, 8, 1, 89, 1, 4_000].map(&mut lose), [(1, 1), (1, 1), (10, 1), (10, 1), (100, 1), (1_000, 1)]);
    }

    #[test]
    fn records_of_the_device() {
        let record = "6,1234,98765432,-;EXT4-fs (sda1): recovery complete\n SUBSYSTEM=block\n DEVICE=b8:1\n";
        let at = Duration::from_micros(98_765_432);
        let text = "EXT4-fs (sda1): recovery complete";
        assert_eq!(parse_record(record), Some((1234, Line { priority: 6, at, text })));
        assert_eq!(parse_record("6,1,2,-,caller=T1;a;b").map(|(_, line)| line.text), Some("a;b"));
        for damaged in ["", "6,1,2", "x,1,2,-;a", "6,-1,2,-;a", "6,1;a"] {
            assert_eq!(parse_record(damaged), None, "{damaged}");
        }
    }

    #[test]
    fn lines_of_the_system_call() {
        let at = Duration::from_micros(12_000_034);
        assert_eq!(parse_line("<4>[   12.000034] a b"), Some(Line { priority: 4, at, text: "a b" }));
        assert_eq!(parse_line("<4>[   12.000034][  T123] a b"), Some(Line { priority: 4, at, text: "a b" }));
        for damaged in ["", "<4>no time", "<4>[12] a", "<x>[1.0] a", "<4>[99999999999999999999.0] a"] {
            assert_eq!(parse_line(damaged), None, "{damaged}");
        }
    }
}
