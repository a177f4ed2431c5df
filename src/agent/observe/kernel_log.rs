//! The kernel's log: from `/dev/kmsg`, which tells of each line at once, or else by syslog(2), which has to be asked.
//!
//! The device needs a place in the list of devices of the container's cgroup, which only `privileged` gives. The system
//! call needs `CAP_SYSLOG` alone; it is made by `dmesg`, since there is no way to it without `unsafe`, and when a [`Bell`]
//! rings, since it tells of nothing by itself.
//!
//! Both hold the lines of this boot from its beginning, as far as they have not been overwritten. All of them are read at
//! the start; a fault stands for a time after its last line, so the same ones stand before and after a restart of this
//! program, and none is told anew.

use std::fs::{File, OpenOptions};
use std::io::{self, Read};
use std::os::unix::fs::{FileTypeExt as _, OpenOptionsExt as _};
use std::process::Stdio;
use std::time::Duration;

use nix::errno::Errno;
use nix::fcntl::OFlag;
use tokio::io::unix::AsyncFd;
use tokio::io::{AsyncBufReadExt as _, AsyncReadExt as _, BufReader, Interest};
use tokio::process::Command;
use tokio::time::{Instant, sleep, sleep_until, timeout};

use self::bell::Bell;
use self::book::{Book, Present};
use super::host_root::HostRoot;
use crate::facts::{KernelEvent, KernelFault, KernelLog, LookError, Reason};

mod bell;
mod book;
mod rules;

#[cfg(any(test, fuzzing))]
pub(crate) use book::fuzz;

const DEVICE: &str = "/dev/kmsg";
/// No record is longer (`CONSOLE_EXT_LOG_MAX`, `PRINTKRB_RECORD_MAX` of `kernel/printk/internal.h`), in bytes.
const RECORD: usize = 8192;
/// After so many lines the reader rests for [`REST`]: a kernel that logs thousands of lines a second must not keep this
/// program busy. What is overwritten meanwhile is counted.
const BATCH: usize = 500;
/// At most one batch in this time.
const REST: Duration = Duration::from_millis(250);
/// A fault that stands is looked after this often.
const EXPIRE: Duration = Duration::from_secs(15);
/// The system call copies the whole log, so it is made at most once in this time.
const ASK: Duration = Duration::from_secs(30);
/// `dmesg` answers within milliseconds.
const DEADLINE: Duration = Duration::from_secs(5);

/// Reads the kernel's log.
#[derive(Debug)]
pub(crate) struct KernelLogSource {
    host: HostRoot,
    book: Book,
    way: Way,
    bell: Option<Bell>,
}

#[derive(Debug)]
enum Way {
    /// Nothing is open.
    Closed,
    /// The device, and the number of the next line.
    Device(AsyncFd<File>, Option<u64>),
    /// The system call: the time of the last line that was read.
    Call(Duration),
}

impl KernelLogSource {
    /// Nothing is read yet.
    pub(crate) fn new(host: HostRoot) -> Self {
        KernelLogSource { host, book: Book::default(), way: Way::Closed, bell: None }
    }

    /// Reads what is new, and says what stands. [`Reason::Missing`] where there is no kernel log.
    pub(crate) async fn look(&mut self) -> Result<KernelLog, LookError> {
        let read = self.read().await;
        if read.is_err() {
            self.way = Way::Closed;
            self.book = Book::default();
        }
        read?;
        self.book.expire(Present::now(), |event| is_over(&self.host, event));
        Ok(self.book.log())
    }

    /// Waits until lines have come or something may have ended.
    pub(crate) async fn wait(&self) {
        let period = if self.book.is_empty() { Duration::MAX } else { EXPIRE };
        match &self.way {
            Way::Device(device, _) => {
                sleep(REST).await;
                // An error shows again when it is read.
                timeout(period, device.readable()).await.ok();
            }
            Way::Call(_) => {
                let earliest = Instant::now() + ASK;
                if let Some(bell) = self.bell.as_ref().filter(|_| self.book.is_empty()) {
                    bell.wait().await;
                    // Lines come in bursts.
                    sleep(REST).await;
                }
                sleep_until(earliest).await;
            }
            Way::Closed => sleep(ASK).await,
        }
    }

    /// Reads all new lines, or a batch of them.
    async fn read(&mut self) -> Result<(), LookError> {
        if matches!(self.way, Way::Closed) {
            self.way = match open(&self.host) {
                Ok(device) => Way::Device(device, None),
                Err(error) if error.reason == Reason::Denied => Way::Call(Duration::ZERO),
                Err(error) => return Err(error),
            };
        }
        match &mut self.way {
            Way::Device(device, next) => read_device(device, next, &mut self.book).await,
            Way::Call(last) => {
                let rang = self.bell.get_or_insert_with(|| Bell::new(&self.host)).rang().await;
                if !rang && *last > Duration::ZERO {
                    return Ok(());
                }
                let asked = timeout(DEADLINE, ask(last, &mut self.book)).await;
                asked.unwrap_or_else(|_| Err(LookError::timed_out("dmesg", DEADLINE.as_secs_f32())))
            }
            Way::Closed => Ok(()),
        }
    }
}

#[expect(deprecated, reason = "its replacement is unsafe; a File owns its descriptor and keeps it for its lifetime")]
fn open(host: &HostRoot) -> Result<AsyncFd<File>, LookError> {
    let error = |error: io::Error| LookError::io(DEVICE, &error);
    let flags = OFlag::O_NONBLOCK.bits() | OFlag::O_CLOEXEC.bits();
    let file = OpenOptions::new().read(true).custom_flags(flags).open(host.path(DEVICE)).map_err(error)?;
    let kind = file.metadata().map_err(error)?.file_type();
    if !kind.is_char_device() {
        return Err(LookError::new(DEVICE, Reason::WrongKind, "is not the kernel's log"));
    }
    AsyncFd::with_interest(file, Interest::READABLE).map_err(error)
}

/// Each `read` hands out one line; the first begins with the oldest that there is.
async fn read_device(device: &AsyncFd<File>, next: &mut Option<u64>, book: &mut Book) -> Result<(), LookError> {
    let mut buffer = vec![0; RECORD];
    let backlog = next.is_none();
    let now = Present::now();
    let mut count = 0;
    loop {
        let mut file = device.get_ref();
        let read = match file.read(&mut buffer) {
            // Readiness is forgotten only by a read that finds nothing after it was asked for: a line may come in between.
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => {
                let Ok(Ok(mut ready)) = timeout(Duration::ZERO, device.readable()).await else { return Ok(()) };
                match ready.try_io(|device| device.get_ref().read(&mut buffer)) {
                    Ok(read) => read,
                    Err(_) => return Ok(()),
                }
            }
            read => read,
        };
        match read {
            Ok(length) => {
                let record = String::from_utf8_lossy(&buffer[..length]);
                if let Some((number, line)) = book::parse_record(&record) {
                    let missed = next.map_or(0, |next| number.saturating_sub(next));
                    if missed > 0 {
                        book.lose(missed);
                    }
                    *next = Some(number + 1);
                    book.take(line, now);
                }
            }
            // Overwritten: the next read goes on with the oldest line that there is, whose number tells how many went.
            Err(error) if error.raw_os_error() == Some(Errno::EPIPE as i32) => {}
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            Err(error) => return Err(LookError::io(DEVICE, &error)),
        }
        count += 1;
        if count % BATCH == 0 {
            if !backlog {
                // What is left is read after the rest.
                return Ok(());
            }
            tokio::task::yield_now().await;
        }
    }
}

/// Has the lines printed that came after the last one.
async fn ask(last: &mut Duration, book: &mut Book) -> Result<(), LookError> {
    const WHAT: &str = "syslog(2) by dmesg";
    let error = |error: io::Error| LookError::io(WHAT, &error);
    let mut child = Command::new("dmesg")
        .args(["--syslog", "--raw"])
        .env("LC_ALL", "C")
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .kill_on_drop(true)
        .spawn()
        .map_err(|cause| {
            LookError::new(WHAT, Reason::Unsupported, format!("{cause}; install the package util-linux"))
        })?;
    let (now, before) = (Present::now(), *last);
    let mut oldest = None;
    if let Some(output) = child.stdout.take() {
        let mut output = BufReader::new(output);
        let mut line = Vec::new();
        while (&mut output).take(RECORD as u64).read_until(b'\n', &mut line).await.map_err(error)? > 0 {
            if let Some(parsed) = book::parse_line(String::from_utf8_lossy(&line).trim_end()) {
                oldest = oldest.or(Some(parsed.at));
                if parsed.at > before {
                    book.take(parsed, now);
                    *last = parsed.at.max(*last);
                }
            }
            line.clear();
        }
    }
    let mut said = String::new();
    if let Some(errors) = child.stderr.take() {
        errors.take(512).read_to_string(&mut said).await.map_err(error)?;
    }
    let status = child.wait().await.map_err(error)?;
    if !status.success() {
        let denied = said.contains("not permitted") || said.contains("denied");
        let advice = "; give the agent's container the capability SYSLOG (deploy/agent.yaml)";
        let (reason, advice) = if denied { (Reason::Denied, advice) } else { (Reason::Failed, "") };
        return Err(LookError::new(WHAT, reason, format!("{}{advice}", said.trim())));
    }
    // The oldest line is younger than the last one that was read: those in between are gone, nobody knows how many.
    if before > Duration::ZERO && oldest.is_some_and(|oldest| oldest > before) {
        book.lose(1);
    }
    Ok(())
}

/// Whether the state behind a fault is over: the process goes on or has gone, the disk was taken away.
fn is_over(host: &HostRoot, event: &KernelEvent) -> bool {
    match event.fault {
        KernelFault::TaskHung => {
            let pid = event.subject.rsplit(':').next().unwrap_or_default();
            super::processes::state(&host.path(&format!("/proc/{pid}"))) != Some('D')
        }
        KernelFault::DiskError if event.line.starts_with("nvme ") => {
            !host.path(&format!("/sys/class/nvme/{}", event.subject)).exists()
        }
        KernelFault::DiskError => !host.path(&format!("/sys/class/block/{}", event.subject)).exists(),
        _ => false,
    }
}

#[cfg(test)]
mod tests;
