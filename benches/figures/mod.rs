//! How figures are printed, and read from `/proc`.

use anyhow::{Context, Result};

/// One figure beside its limit.
pub fn figure(what: &str, value: f64, unit: &str, limit: f64) {
    let verdict = if value <= limit { "ok" } else { "OVER" };
    println!("{what:<60} {value:>10.3} {unit:<4} limit {limit:>8} {verdict}");
}

/// A figure of `/proc/PID/status`, in KiB.
pub fn kib(status: &str, key: &str) -> Result<f64> {
    let line = status.lines().find(|line| line.starts_with(key)).with_context(|| key.to_owned())?;
    Ok(line.split_whitespace().nth(1).context("a number")?.parse()?)
}
