//! How figures are printed, and read from `/proc`.

use std::process::Command;

use anyhow::{Context, Result};

/// What `deploy/aggregator.yaml` tells the C library.
pub const MALLOC: [(&str, &str); 2] = [("MALLOC_ARENA_MAX", "1"), ("MALLOC_MMAP_THRESHOLD_", "131072")];

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

/// CPU seconds of a process so far: clock ticks of `/proc/PID/stat` (`USER_HZ` is 100).
pub fn cpu_seconds(pid: u32) -> Result<f64> {
    let stat = std::fs::read_to_string(format!("/proc/{pid}/stat"))?;
    let fields: Vec<&str> = stat.rsplit_once(')').context("a name")?.1.split_whitespace().collect();
    // utime and stime are fields 14 and 15 of proc(5); field 3 is the first here.
    let ticks: f64 = fields[11..13].iter().map(|field| field.parse::<f64>().unwrap_or(0.0)).sum();
    Ok(ticks / 100.0)
}

/// The program itself, below what enters a namespace for it.
pub fn inside(mut pid: u32) -> Result<u32> {
    loop {
        let children = Command::new("pgrep").arg("-P").arg(pid.to_string()).output()?;
        match String::from_utf8(children.stdout)?.lines().next() {
            Some(child) => pid = child.parse()?,
            None => return Ok(pid),
        }
    }
}
