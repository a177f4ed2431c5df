//! Memory: what is left, what the kubelet counts as left, and how long tasks wait for it.

use jiff::Timestamp;

use super::host_root::HostRoot;
use crate::facts::{LookError, Memory, Reason, Trend};

/// Both files are a few lines; in bytes.
const LIMIT: u64 = 64 << 10;

/// Looks at memory, and remembers how it went.
#[derive(Debug)]
pub(crate) struct MemorySource {
    host: HostRoot,
    trend: Trend,
}

impl MemorySource {
    /// Nothing is read yet.
    pub(crate) fn new(host: HostRoot) -> Self {
        MemorySource { host, trend: Trend::default() }
    }

    /// Reads `/proc/meminfo`, and `/proc/pressure/memory` where the kernel has it.
    pub(crate) fn look(&mut self, now: Timestamp) -> Result<Memory, LookError> {
        let path = "/proc/meminfo";
        let text = self.host.read_text(path, LIMIT)?;
        let malformed = |name| LookError::new(path, Reason::Malformed, format!("has no line {name}"));
        let needed = |name| bytes_of(&text, name).ok_or_else(|| malformed(name));
        let (total, free) = (needed("MemTotal")?, needed("MemFree")?);
        let kubelet_available = free.saturating_add(bytes_of(&text, "Inactive(file)").unwrap_or(0));
        Ok(Memory {
            total,
            // Kernels before 3.14 have no estimate; free memory is its lower bound.
            available: bytes_of(&text, "MemAvailable").unwrap_or(free),
            kubelet_available,
            pressure: self.pressure(),
            bytes_per_second: self.trend.push(now, kubelet_available),
        })
    }

    /// `full avg10`. A kernel without PSI has no such file, and one booted with `psi=0` refuses to read it: both are
    /// "none".
    fn pressure(&self) -> Option<f64> {
        full_avg10(&self.host.read_text("/proc/pressure/memory", LIMIT).ok()?)
    }
}

/// A line of `/proc/meminfo`, `NAME: NUMBER kB`, in bytes. Read here: the crate procfs panics on names that no kernel has.
fn bytes_of(text: &str, name: &str) -> Option<u64> {
    let value = text.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix(':'))?;
    value.trim().strip_suffix("kB")?.trim_end().parse::<u64>().ok()?.checked_mul(1024)
}

/// Of `full avg10=0.00 avg60=0.00 avg300=0.00 total=0`.
fn full_avg10(text: &str) -> Option<f64> {
    let full = text.lines().find_map(|line| line.strip_prefix("full "))?;
    full.split_whitespace().find_map(|word| word.strip_prefix("avg10="))?.parse().ok().filter(|it: &f64| it.is_finite())
}

/// The fuzz target's door.
#[cfg(fuzzing)]
pub(super) fn fuzz(text: &str) {
    let _ = (full_avg10(text), bytes_of(text, "MemTotal"), bytes_of(text, "Inactive(file)"));
}

#[cfg(test)]
mod tests {
    use super::*;

    fn source(meminfo: &str, pressure: Option<&str>) -> (tempfile::TempDir, MemorySource) {
        let dir = tempfile::tempdir().expect("a temporary directory");
        std::fs::create_dir_all(dir.path().join("proc/pressure")).expect("mkdir");
        std::fs::write(dir.path().join("proc/meminfo"), meminfo).expect("write");
        if let Some(text) = pressure {
            std::fs::write(dir.path().join("proc/pressure/memory"), text).expect("write");
        }
        let source = MemorySource::new(HostRoot::new(dir.path()));
        (dir, source)
    }

    /// This machine's file with the three values replaced.
    fn meminfo() -> String {
        let real = std::fs::read_to_string("/proc/meminfo").expect("every Linux has it");
        let known = [("MemTotal", 1000), ("MemFree", 100), ("MemAvailable", 400), ("Inactive(file)", 50)];
        let line = |line: &str| {
            let name = line.split(':').next().unwrap_or_default();
            let value = known.iter().find(|(known, _)| *known == name);
            value.map_or_else(|| line.to_owned(), |(name, kib)| format!("{name}: {kib} kB"))
        };
        real.lines().map(line).collect::<Vec<_>>().join("\n")
    }

    #[test]
    fn counts_what_the_kubelet_counts() {
        let psi = "some avg10=9.00 avg60=0.00 avg300=0.00 total=5\nfull avg10=2.50 avg60=0.00 avg300=0.00 total=3\n";
        let (_dir, mut source) = source(&meminfo(), Some(psi));
        let memory = source.look(Timestamp::now()).expect("readable");
        assert_eq!((memory.total, memory.available, memory.kubelet_available), (1000 << 10, 400 << 10, 150 << 10));
        assert_eq!((memory.pressure, memory.bytes_per_second), (Some(2.5), None));
    }

    #[test]
    fn no_psi_is_none() {
        let (_dir, mut source) = source(&meminfo(), None);
        assert_eq!(source.look(Timestamp::now()).expect("readable").pressure, None);
    }

    #[test]
    fn nonsense_is_malformed() {
        let (_dir, mut source) = source("what is this", None);
        assert_eq!(source.look(Timestamp::now()).expect_err("no meminfo").reason, Reason::Malformed);
        for odd in
            ["MemTotal: 7 MB", "MemTotal: 99999999999999999999 kB", "MemTotal: 18446744073709551615 kB", "MemTotal"]
        {
            assert_eq!(bytes_of(odd, "MemTotal"), None, "{odd}");
        }
        assert_eq!(bytes_of("Active(anon\u{5ff}\nMemFree:\t7 kB\n", "MemFree"), Some(7 << 10));
        assert_eq!(full_avg10("full avg10=inf\n"), None);
    }

    #[test]
    fn reads_this_machine() {
        let memory = MemorySource::new(HostRoot::new("/")).look(Timestamp::now()).expect("readable");
        assert!(memory.total >= memory.available && memory.kubelet_available > 0, "{memory:?}");
    }
}
