//! Pressure stall information: how long tasks wait, and being woken when they do.

use std::fs::{File, OpenOptions};
use std::io::Write;
use std::os::unix::fs::OpenOptionsExt;

use tokio::io::{Interest, unix::AsyncFd};

use super::host_root::HostRoot;
use crate::facts::{LookError, Reason, Stall};

/// Two lines; in bytes.
const LIMIT: u64 = 4096;
/// What the kernel tells of: all tasks waited for memory for 0.1 s within 2 s, or for disks for 0.8 s, which is the share that
/// counts as much. A process without `CAP_SYS_RESOURCE` may only ask for multiples of 2 s (`psi_trigger_create` of
/// `kernel/sched/psi.c`).
pub(super) const TRIGGERS: [(&str, &[u8]); 2] =
    [("/proc/pressure/memory", b"full 100000 2000000\0"), ("/proc/pressure/io", b"full 800000 2000000\0")];

/// Reads `/proc/pressure/WHAT`. [`Reason::Missing`] where the kernel has none, or was booted with `psi=0`, when it
/// refuses to read it.
pub(super) fn stall(host: &HostRoot, what: &str) -> Result<Stall, LookError> {
    let path = format!("/proc/pressure/{what}");
    let none =
        || LookError::new(&path, Reason::Missing, "this kernel has no PSI; boot it with psi=1 if it was built in");
    let text = host.read_text(&path, LIMIT).map_err(|error| match error.reason {
        Reason::Missing | Reason::Unsupported => none(),
        _ => error,
    })?;
    parse(&text).ok_or_else(|| LookError::new(&path, Reason::Malformed, "holds no line with averages"))
}

/// `some avg10=0.00 avg60=0.00 avg300=0.00 total=0`, and the same for `full`, which older kernels do not have for the CPU.
pub(super) fn parse(text: &str) -> Option<Stall> {
    let average = |line: &str, name: &str| {
        let line = text.lines().find_map(|it| it.strip_prefix(line))?;
        let value = line.split_whitespace().find_map(|word| word.strip_prefix(name)?.strip_prefix('='))?;
        value.parse().ok().filter(|percent| (0.0..=100.0).contains(percent))
    };
    Some(Stall {
        some_avg10: average("some ", "avg10")?,
        some_avg60: average("some ", "avg60")?,
        full_avg10: average("full ", "avg10").unwrap_or(0.0),
        full_avg60: average("full ", "avg60").unwrap_or(0.0),
    })
}

/// Wakes when all tasks wait.
pub(super) struct Trigger(AsyncFd<File>);

impl Trigger {
    /// Asks the kernel for it. Not every kernel and not every container allows that.
    #[expect(deprecated, reason = "its successor is unsafe; a file keeps its descriptor as long as it lives")]
    pub(super) fn open((path, wanted): (&str, &[u8])) -> std::io::Result<Self> {
        // This process's own /proc: that of the node is mounted read-only, and pressure is the same in both.
        let mut file =
            OpenOptions::new().read(true).write(true).custom_flags(nix::fcntl::OFlag::O_NONBLOCK.bits()).open(path)?;
        file.write_all(wanted)?;
        Ok(Trigger(AsyncFd::with_interest(file, Interest::PRIORITY)?))
    }

    /// Waits for the next time; at most one in two seconds.
    pub(super) async fn fired(&self) -> std::io::Result<()> {
        self.0.ready(Interest::PRIORITY).await?.clear_ready();
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lines_of_the_kernel() {
        let text = "some avg10=12.78 avg60=8.36 avg300=3.32 total=6479833222\nfull avg10=1.00 avg60=2.50 avg300=0.00 total=0\n";
        let stall = Stall { some_avg10: 12.78, some_avg60: 8.36, full_avg10: 1.0, full_avg60: 2.5 };
        assert_eq!(parse(text), Some(stall));
        assert_eq!(parse("some avg10=1.00 avg60=2.00\n").map(|stall| stall.full_avg60), Some(0.0), "cpu before 5.13");
        for text in ["", "some avg10=inf avg60=0\n", "full avg10=1 avg60=1\n", "some avg10=101 avg60=0\n", "some\n"] {
            assert_eq!(parse(text), None, "{text}");
        }
    }

    #[test]
    fn a_kernel_without_it_is_told_apart_from_nonsense() {
        let dir = tempfile::tempdir().expect("a temporary directory");
        let host = HostRoot::new(dir.path());
        assert_eq!(stall(&host, "io").expect_err("nothing there").reason, Reason::Missing);
        std::fs::create_dir_all(dir.path().join("proc/pressure")).expect("mkdir");
        std::fs::write(dir.path().join("proc/pressure/io"), "what\n").expect("write");
        assert_eq!(stall(&host, "io").expect_err("nonsense").reason, Reason::Malformed);
    }

    #[test]
    fn reads_this_machine() {
        for what in ["memory", "io", "cpu"] {
            stall(&HostRoot::new("/"), what).expect("this machine has PSI");
        }
    }

    #[tokio::test]
    async fn the_kernel_takes_each_trigger() {
        for wanted in TRIGGERS {
            let trigger = Trigger::open(wanted).expect("this machine has PSI, and tests run as root");
            // Whether it fires depends on the machine: that it can be waited for does not.
            let waited = tokio::time::timeout(std::time::Duration::from_millis(50), trigger.fired()).await;
            assert!(waited.is_err() || waited.is_ok_and(|fired| fired.is_ok()), "{}", wanted.0);
        }
        assert!(Trigger::open((TRIGGERS[1].0, b"full 1 2\0")).is_err(), "a window that is not allowed");
    }
}
