//! The log: JSON lines on standard output for the long-running commands.

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
        registry.with(tracing_subscriber::fmt::layer().json().flatten_event(true).with_current_span(false)).try_init()
    } else {
        registry.with(tracing_subscriber::fmt::layer().with_writer(std::io::stderr)).try_init()
    };
    started.ok();
}
