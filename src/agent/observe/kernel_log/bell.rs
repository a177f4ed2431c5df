//! What tells that the kernel has logged something: `/proc/kmsg`, which is waited for and never read, since a read takes the
//! lines away from the machine's own syslog daemon. Waiting for it takes `CAP_SYSLOG`, as the system call does.

use std::fs::{File, OpenOptions};
use std::io;
use std::os::unix::fs::OpenOptionsExt as _;
use std::time::{Duration, Instant};

use nix::fcntl::OFlag;
use tokio::io::Interest;
use tokio::io::unix::AsyncFd;
use tokio::time::timeout;

use crate::agent::observe::host_root::HostRoot;

const DOOR: &str = "/proc/kmsg";
/// Without a ring the lines are asked for this often all the same.
const AT_LAST: Duration = Duration::from_secs(600);

/// Rings at every line, if there is one.
#[derive(Debug)]
pub(super) struct Bell {
    door: Option<AsyncFd<File>>,
    /// When the lines were last asked for.
    asked: Option<Instant>,
}

impl Bell {
    /// Where it cannot be opened there is none.
    pub(super) fn new(host: &HostRoot) -> Self {
        Bell { door: open(host).ok(), asked: None }
    }

    /// Whether there may be lines since the last time that this was asked.
    pub(super) async fn rang(&mut self) -> bool {
        let rang = match &self.door {
            None => true,
            // Whether lines wait for the syslog daemon is not the question, and where none runs there always are some: the
            // kernel tells of each line anew, and that is forgotten before the lines are asked for.
            Some(door) => {
                let ready = timeout(Duration::ZERO, door.readable()).await;
                ready.is_ok_and(|ready| ready.map(|mut ready| ready.clear_ready()).is_ok())
            }
        };
        let rang = rang || self.asked.is_none_or(|asked| asked.elapsed() >= AT_LAST);
        if rang {
            self.asked = Some(Instant::now());
        }
        rang
    }

    /// Waits until it rings, or the lines have to be asked for anyway; not at all where there is none.
    pub(super) async fn wait(&self) {
        if let Some(door) = &self.door {
            timeout(AT_LAST, door.readable()).await.ok();
        }
    }
}

#[expect(deprecated, reason = "its replacement is unsafe; a File owns its descriptor and keeps it for its lifetime")]
fn open(host: &HostRoot) -> io::Result<AsyncFd<File>> {
    let flags = OFlag::O_NONBLOCK.bits() | OFlag::O_CLOEXEC.bits();
    let file = OpenOptions::new().read(true).custom_flags(flags).open(host.path(DOOR))?;
    AsyncFd::with_interest(file, Interest::READABLE)
}

#[cfg(test)]
mod tests {
    use std::io::Write as _;

    use super::*;

    #[tokio::test]
    async fn a_line_rings_it_and_silence_does_not() {
        let mut bell = Bell::new(&HostRoot::new("/"));
        assert!(bell.door.is_some(), "root may open it");
        // The first time the lines have to be asked for in any case; and lines that nobody has read yet ring once.
        assert!(bell.rang().await);
        timeout(Duration::from_millis(100), bell.wait()).await.ok();
        bell.rang().await;
        // Somebody may cause a line just then.
        let mut silent = false;
        for _ in 0..50 {
            timeout(Duration::from_millis(20), bell.wait()).await.ok();
            silent |= !bell.rang().await;
        }
        assert!(silent, "it rings all the time");
        let line = format!("nodevitals-test-{}: a line that rings\n", std::process::id());
        let mut log = OpenOptions::new().write(true).open("/dev/kmsg").expect("root may write to the log");
        log.write_all(line.as_bytes()).expect("a line is written");
        timeout(Duration::from_secs(10), bell.wait()).await.expect("it rings");
        assert!(bell.rang().await);
    }

    #[tokio::test]
    async fn without_one_the_lines_are_asked_for_each_time() {
        let dir = tempfile::tempdir().expect("a temporary directory");
        let mut bell = Bell::new(&HostRoot::new(dir.path()));
        assert!(bell.rang().await && bell.rang().await);
    }
}
