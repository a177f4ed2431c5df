//! Connection tracking and the forwarding switches, from `/proc`.

use std::time::Duration;

use super::host_root::HostRoot;
use crate::facts::{CONNTRACK_LASTS, Conntrack, Forwarding, LookError, Reason, Seen};

/// A switch or a count is one line; in bytes.
const LINE: u64 = 256;
/// The statistics have one line for each CPU; in bytes.
const STATISTICS: u64 = 1 << 20;

/// Looks at connection tracking, and remembers what was counted before.
#[derive(Debug)]
pub(crate) struct ConntrackSource {
    host: HostRoot,
    before: Option<[u64; 3]>,
    /// Since when nothing was dropped, as far as it is known.
    quiet_since: Option<Duration>,
}

/// What is told of other network namespaces waits for two looks more than [`CONNTRACK_LASTS`].
const QUIET: Duration = CONNTRACK_LASTS.saturating_add(Duration::from_secs(30));

/// The columns that count what was lost.
const LOSSES: [&str; 3] = ["drop", "insert_failed", "early_drop"];

impl ConntrackSource {
    /// Nothing is read yet.
    pub(crate) fn new(host: HostRoot) -> Self {
        ConntrackSource { host, before: None, quiet_since: None }
    }

    /// Reads the counts. [`Reason::Missing`] when the kernel module is not loaded. The first look has nothing to
    /// compare with, so what was lost before it does not count as growth.
    pub(crate) fn look(&mut self) -> Result<Conntrack, LookError> {
        self.look_at(crate::clock::awake())
    }

    /// At this time on the clock of the kernel's log.
    fn look_at(&mut self, at: Duration) -> Result<Conntrack, LookError> {
        let count = number(&self.host, "/proc/sys/net/netfilter/nf_conntrack_count")?;
        let max = number(&self.host, "/proc/sys/net/netfilter/nf_conntrack_max")?;
        let losses = self.losses()?;
        let now = losses.unwrap_or_default();
        let before = self.before.replace(now).unwrap_or(now);
        // Taking a CPU offline removes its line, so the sum can shrink.
        let [dropped_since, insert_failed_since, early_drop_since] =
            std::array::from_fn(|at| now[at].saturating_sub(before[at]));
        if losses.is_none() || now[0] != before[0] {
            self.quiet_since = None;
        }
        let quiet = at.saturating_sub(*self.quiet_since.get_or_insert(at)) >= QUIET;
        Ok(Conntrack { count, max, dropped: now[0], dropped_since, insert_failed_since, early_drop_since, quiet })
    }

    /// None where they are not counted.
    fn losses(&self) -> Result<Option<[u64; 3]>, LookError> {
        // `/proc/net` is the main thread's network namespace, even in a thread that has entered another.
        let path = "/proc/thread-self/net/stat/nf_conntrack";
        let text = match self.host.read_text(path, STATISTICS) {
            Ok(text) => text,
            // CONFIG_NF_CONNTRACK_PROCFS is off.
            Err(error) if error.reason == Reason::Missing => return Ok(None),
            Err(error) => return Err(error),
        };
        let mut losses = [0; 3];
        for (loss, column) in losses.iter_mut().zip(LOSSES) {
            *loss = sum_of_column(&text, column).ok_or_else(|| {
                LookError::new(path, Reason::Malformed, "a line is shorter than the header or not hexadecimal")
            })?;
        }
        Ok(Some(losses))
    }
}

/// The sum over all CPUs of a column of hexadecimal numbers; 0 when this kernel has no such column.
pub(super) fn sum_of_column(text: &str, name: &str) -> Option<u64> {
    let mut lines = text.lines();
    let Some(column) = lines.next()?.split_whitespace().position(|title| title == name) else { return Some(0) };
    lines
        .filter(|line| !line.trim().is_empty())
        .map(|line| line.split_whitespace().nth(column).and_then(|cell| u64::from_str_radix(cell, 16).ok()))
        .sum()
}

/// Reads the forwarding switches of this process's network namespace.
pub(crate) fn forwarding(host: &HostRoot) -> Forwarding {
    let switch = |path| Seen::from(number(host, path).map(|value| value != 0));
    Forwarding { ipv4: switch("/proc/sys/net/ipv4/ip_forward"), ipv6: switch("/proc/sys/net/ipv6/conf/all/forwarding") }
}

/// A file that holds one number.
pub(super) fn number(host: &HostRoot, path: &str) -> Result<u64, LookError> {
    let text = host.read_text(path, LINE)?;
    text.trim()
        .parse()
        .map_err(|_| LookError::new(path, Reason::Malformed, format!("holds {:?}, not a number", text.trim())))
}

/// The fuzz target's door.
#[cfg(any(test, fuzzing))]
pub(super) fn fuzz(text: &str) {
    let _ = sum_of_column(text, "drop");
}

#[cfg(test)]
mod tests {
    use proptest::collection::vec;
    use proptest::prelude::*;

    use super::*;
    use std::path::Path;

    fn write(root: &Path, path: &str, text: &str) {
        let path = root.join(path);
        std::fs::create_dir_all(path.parent().expect("not the root")).expect("mkdir");
        std::fs::write(path, text).expect("write");
    }

    #[test]
    fn drops_are_found_by_name_and_only_growth_counts() {
        let dir = tempfile::tempdir().expect("a temporary directory");
        let mut source = ConntrackSource::new(HostRoot::new(dir.path()));
        assert_eq!(source.look().expect_err("not loaded").reason, Reason::Missing);
        write(dir.path(), "proc/sys/net/netfilter/nf_conntrack_count", "7\n");
        write(dir.path(), "proc/sys/net/netfilter/nf_conntrack_max", "262144\n");
        let statistics = "proc/thread-self/net/stat/nf_conntrack";
        write(
            dir.path(),
            statistics,
            "entries  drop early_drop\n00000007  0000000a 00000001\n00000007  00000001 00000000\n",
        );
        let first = source.look().expect("readable");
        assert_eq!(first, Conntrack { count: 7, max: 262_144, dropped: 11, ..Conntrack::default() });
        write(dir.path(), statistics, "entries searched drop\n7 0 ff\n");
        let second = source.look().expect("readable");
        assert_eq!((second.dropped_since, second.early_drop_since), (244, 0), "a column went");
        write(dir.path(), statistics, "entries insert_failed drop early_drop\n7 3 ff 2\n7 2 0 0\n");
        let third = source.look().expect("readable");
        assert_eq!((third.dropped_since, third.insert_failed_since, third.early_drop_since), (0, 5, 2));
        write(dir.path(), statistics, "entries drop\n7\n");
        assert_eq!(source.look().expect_err("a short line").reason, Reason::Malformed);
    }

    #[test]
    fn it_is_quiet_when_nothing_was_dropped_for_as_long_as_the_kernels_word_stands() {
        let dir = tempfile::tempdir().expect("a temporary directory");
        let mut source = ConntrackSource::new(HostRoot::new(dir.path()));
        write(dir.path(), "proc/sys/net/netfilter/nf_conntrack_count", "7\n");
        write(dir.path(), "proc/sys/net/netfilter/nf_conntrack_max", "262144\n");
        let mut quiet = |dropped: Option<u64>, at: u64| {
            let statistics = dropped.map(|dropped| format!("entries drop\n7 {dropped:x}\n")).unwrap_or_default();
            let path = dir.path().join("proc/thread-self/net/stat/nf_conntrack");
            match dropped {
                Some(_) => write(dir.path(), "proc/thread-self/net/stat/nf_conntrack", &statistics),
                None => std::fs::remove_file(path).expect("it is there"),
            }
            source.look_at(Duration::from_secs(at)).expect("readable").quiet
        };
        assert!(!quiet(Some(5), 1_000), "the first look knows nothing of before");
        assert!(!quiet(Some(5), 1_149));
        assert!(quiet(Some(5), 1_150));
        assert!(!quiet(Some(6), 1_160) && !quiet(Some(6), 1_300) && quiet(Some(6), 1_310));
        assert!(!quiet(None, 1_320), "nobody counts");
        assert!(!quiet(Some(6), 2_000), "nor counted");
    }

    #[test]
    fn a_kernel_without_statistics_has_dropped_nothing() {
        assert_eq!(sum_of_column("entries found\n1 2\n", "drop"), Some(0));
        assert_eq!(sum_of_column("", "drop"), None);
    }

    #[test]
    fn switches_tell_off_from_absent_from_nonsense() {
        let dir = tempfile::tempdir().expect("a temporary directory");
        write(dir.path(), "proc/sys/net/ipv4/ip_forward", "0\n");
        let host = HostRoot::new(dir.path());
        assert_eq!(forwarding(&host), Forwarding { ipv4: Seen::Yes(false), ipv6: Seen::Absent });
        write(dir.path(), "proc/sys/net/ipv4/ip_forward", "on\n");
        assert_eq!(forwarding(&host).ipv4.error().map(|error| error.reason), Some(Reason::Malformed));
    }

    #[test]
    fn reads_this_machine() {
        assert!(forwarding(&HostRoot::new("/")).ipv4.get().is_some());
    }

    proptest! {
        #[test]
        fn any_text_is_a_sum_or_none(text in r"([0-9a-f \tdrop\n]|\PC){0,80}") {
            sum_of_column(&text, "drop");
        }

        #[test]
        fn a_column_is_summed_wherever_it_stands(
            (before, after) in (0..4_usize, 0..4_usize),
            cells in vec(any::<u32>(), 0..9),
        ) {
            let row = |cell: &str| format!("{}{cell}{}\n", "7 ".repeat(before), " ff".repeat(after));
            let rows: String = cells.iter().map(|cell| row(&format!("{cell:08x}"))).collect();
            let sum = cells.iter().map(|cell| u64::from(*cell)).sum();
            prop_assert_eq!(sum_of_column(&(row("drop") + &rows), "drop"), Some(sum));
        }
    }
}
