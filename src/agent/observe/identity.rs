//! Who the node is, from four small files.

use super::host_root::HostRoot;
use crate::facts::Identity;

/// None of these files is longer than a line; in bytes.
const LIMIT: u64 = 4096;

/// Reads who the node is. What cannot be read is empty, and said in the log.
pub(crate) fn look(host: &HostRoot) -> Identity {
    let line = |path| match host.read_text(path, LIMIT) {
        Ok(text) => text.trim().to_owned(),
        Err(error) => {
            tracing::warn!(%error, "a part of the node's identity cannot be read");
            String::new()
        }
    };
    Identity {
        hostname: line("/proc/sys/kernel/hostname"),
        boot_id: line("/proc/sys/kernel/random/boot_id"),
        machine_id: line("/etc/machine-id"),
        kernel: line("/proc/sys/kernel/osrelease"),
        node_name: None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn reads_this_machine() {
        let identity = look(&HostRoot::new("/"));
        assert_eq!(identity.boot_id.len(), 36, "{identity:?}");
        assert!(!identity.hostname.is_empty() && !identity.kernel.is_empty(), "{identity:?}");
    }

    #[test]
    fn what_is_missing_is_empty() {
        let dir = tempfile::tempdir().expect("a temporary directory");
        std::fs::create_dir_all(dir.path().join("etc")).expect("mkdir");
        std::fs::write(dir.path().join("etc/machine-id"), "0123456789abcdef\n").expect("write");
        let identity = look(&HostRoot::new(dir.path()));
        assert_eq!((identity.machine_id.as_str(), identity.boot_id.as_str()), ("0123456789abcdef", ""));
    }
}
