//! The log: JSON lines on standard output for the long-running commands.

use std::io;

use tracing_subscriber::filter::{LevelFilter, Targets};
use tracing_subscriber::prelude::*;

/// Starts the log. `level` is one of error, warn, info, debug; our own lines only, and warnings of the libraries.
pub(crate) fn start(level: LevelFilter, json: bool) {
    // kube logs at ERROR whatever it also returns; here every error is said once, with what to do about it.
    let libraries = LevelFilter::WARN.min(level);
    let targets = Targets::new()
        .with_target("nodevitals", level)
        .with_target("kube_client", LevelFilter::OFF)
        .with_default(libraries);
    let registry = tracing_subscriber::registry().with(targets);
    // A second start, in tests, keeps the first.
    let started = if json {
        let layer = tracing_subscriber::fmt::layer().json().flatten_event(true).with_current_span(false);
        never_wait_for_the_reader();
        registry.with(layer.with_writer(|| Lossy)).try_init()
    } else {
        registry.with(tracing_subscriber::fmt::layer().with_writer(std::io::stderr)).try_init()
    };
    started.ok();
}

/// Whoever reads the log may hang: with containerd 1.x that is containerd itself, which is what is being watched. A line
/// that would have to wait is dropped.
fn never_wait_for_the_reader() {
    use nix::fcntl::{FcntlArg, OFlag, fcntl};
    let set = fcntl(io::stdout(), FcntlArg::F_GETFL)
        .map(OFlag::from_bits_truncate)
        .and_then(|flags| fcntl(io::stdout(), FcntlArg::F_SETFL(flags | OFlag::O_NONBLOCK)));
    // A log that can block is better than none.
    set.ok();
}

/// Standard output without a buffer. Lines are shorter than a pipe's atomic write, so one is written whole or not at all.
struct Lossy;

impl io::Write for Lossy {
    fn write(&mut self, line: &[u8]) -> io::Result<usize> {
        match nix::unistd::write(io::stdout(), line) {
            Ok(written) => Ok(written),
            Err(nix::Error::EAGAIN) => Ok(line.len()),
            Err(error) => Err(error.into()),
        }
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}
