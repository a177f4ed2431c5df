//! Waiting for what happens in its own time.

use std::{
    thread::sleep,
    time::{Duration, Instant},
};

use anyhow::Result;

const INTERVAL: Duration = Duration::from_millis(100);

/// Polls until `look` answers, and panics with `what` and the last error at the deadline.
#[track_caller]
pub fn eventually<T>(what: &str, deadline: Duration, look: impl FnMut() -> Result<T>) -> T {
    match within(deadline, look) {
        Ok(answer) => answer,
        Err(last) => panic!("{what}: not within {deadline:?}: {last:#}"),
    }
}

/// Polls until `look` answers; the last error at the deadline.
pub fn within<T>(deadline: Duration, mut look: impl FnMut() -> Result<T>) -> Result<T> {
    let end = Instant::now() + deadline;
    loop {
        match look() {
            Err(_) if Instant::now() < end => sleep(INTERVAL),
            answer => return answer,
        }
    }
}
