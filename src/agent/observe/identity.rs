//! Who the node is, from four small files.

use super::host_root::HostRoot;
use crate::facts::{Identity, Machine};

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

/// What makes the machine this one. What cannot be read is empty: few have all of it.
pub(crate) fn machine(host: &HostRoot) -> Machine {
    const CARDS: &str = "/sys/class/net";
    let line = |path: &str| host.read_text(path, LIMIT).unwrap_or_default().trim().to_lowercase();
    let entries = std::fs::read_dir(host.path(CARDS)).into_iter().flatten().flatten();
    let names = entries.filter_map(|entry| entry.file_name().into_string().ok());
    // Only cards have a device, and `NET_ADDR_PERM` of `linux/netdevice.h` is 0: one in a bond has the bond's address.
    let burnt_in = |name: &String| {
        host.path(&format!("{CARDS}/{name}/device")).exists()
            && line(&format!("{CARDS}/{name}/addr_assign_type")) == "0"
    };
    Machine {
        machine_id: line("/etc/machine-id"),
        product_uuid: line("/sys/class/dmi/id/product_uuid"),
        cards: names.filter(burnt_in).map(|name| line(&format!("{CARDS}/{name}/address"))).collect(),
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

    #[test]
    fn a_machine_is_its_board_its_installation_and_its_own_cards() {
        let dir = tempfile::tempdir().expect("a temporary directory");
        let write = |path: &str, text: &str| {
            let path = dir.path().join(path);
            std::fs::create_dir_all(path.parent().expect("has one")).expect("mkdir");
            std::fs::write(path, text).expect("write");
        };
        let host = HostRoot::new(dir.path());
        assert_eq!(machine(&host), Machine::default());
        write("etc/machine-id", "0123456789abcdef\n");
        write("sys/class/dmi/id/product_uuid", "4C4C4544-0000-2010-8020-80C04F202020\n");
        for (card, address, assigned) in [("eth0", "0C:42:a1:00:00:01", "0"), ("eth1", "0c:42:a1:00:00:02", "3")] {
            write(&format!("sys/class/net/{card}/address"), address);
            write(&format!("sys/class/net/{card}/addr_assign_type"), assigned);
            write(&format!("sys/class/net/{card}/device/vendor"), "0x15b3\n");
        }
        write("sys/class/net/cali1/address", "ee:ee:ee:ee:ee:ee");
        write("sys/class/net/cali1/addr_assign_type", "0");
        let seen = machine(&host);
        assert_eq!(seen.product_uuid, "4c4c4544-0000-2010-8020-80c04f202020");
        assert_eq!(
            (seen.machine_id.as_str(), seen.cards),
            ("0123456789abcdef", ["0c:42:a1:00:00:01".to_owned()].into())
        );
    }
}
