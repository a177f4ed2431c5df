//! Whether this machine can run a plugin's program.

use nix::sys::statvfs::{FsFlags, statvfs};

use super::super::host_root::HostRoot;

/// `e_machine` of `elf.h`, by the names of Rust.
const MACHINES: [(u16, &str); 8] = [
    (0x3e, "x86_64"),
    (3, "x86"),
    (0xb7, "aarch64"),
    (40, "arm"),
    (21, "powerpc64"),
    (22, "s390x"),
    (0xf3, "riscv64"),
    (8, "mips"),
];

/// Why it cannot, if so. What cannot be read is not judged.
pub(super) fn unusable(host: &HostRoot, path: &str) -> Option<String> {
    let flags = statvfs(&host.path(path)).map(|about| about.flags());
    if flags.is_ok_and(|flags| flags.contains(FsFlags::ST_NOEXEC)) {
        return Some("lies on a file system that is mounted noexec".to_owned());
    }
    host.head(path, 20).ok().and_then(|head| format(&head, std::env::consts::ARCH))
}

/// What the first bytes say.
fn format(head: &[u8], own: &str) -> Option<String> {
    // An empty file is told as such; a script is run by its interpreter.
    if head.is_empty() || head.starts_with(b"#!") {
        return None;
    }
    let neither = || Some("is neither an ELF program nor a script".to_owned());
    // `EI_DATA` is the order of the bytes, `e_machine` is at 18 in both classes.
    let (Some(b"\x7fELF"), [.., a, b]) = (head.get(..4), head) else { return neither() };
    let machine = match head.get(5) {
        _ if head.len() < 20 => return Some("is cut off in its ELF header".to_owned()),
        Some(2) => u16::from_be_bytes([*a, *b]),
        _ => u16::from_le_bytes([*a, *b]),
    };
    let built_for = MACHINES.iter().find(|(number, _)| *number == machine).map_or("another machine", |(_, name)| *name);
    // Kernels of 64 bits mostly run the programs of their 32-bit family too.
    let runs = built_for == own || matches!((own, built_for), ("x86_64", "x86") | ("aarch64", "arm"));
    (!runs).then(|| format!("is built for {built_for}, and this machine is {own}"))
}

/// The fuzz target's door.
#[cfg(any(test, fuzzing))]
pub(super) fn fuzz(bytes: &[u8]) {
    let _ = format(bytes, "x86_64");
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The first 20 bytes of a program.
    fn elf(order: u8, machine: [u8; 2]) -> Vec<u8> {
        let mut head = b"\x7fELF\x02".to_vec();
        head.push(order);
        head.resize(18, 0);
        head.extend(machine);
        head
    }

    #[test]
    fn programs_of_this_machine_and_scripts() {
        assert_eq!(format(&elf(1, [0x3e, 0]), "x86_64"), None);
        assert_eq!(format(&elf(1, [3, 0]), "x86_64"), None);
        assert_eq!(format(&elf(2, [0, 22]), "s390x"), None);
        assert_eq!(format(b"#!/bin/sh\n", "x86_64"), None);
        assert_eq!(unusable(&HostRoot::new("/"), "/proc/self/exe"), None, "this program runs here");
    }

    #[test]
    fn everything_else() {
        let why = |head: &[u8]| format(head, "x86_64").expect("unusable");
        assert_eq!(why(&elf(1, [0xb7, 0])), "is built for aarch64, and this machine is x86_64");
        assert_eq!(why(&elf(1, [0xff, 0xff])), "is built for another machine, and this machine is x86_64");
        assert_eq!(why(b"\x7fELF\x02\x01"), "is cut off in its ELF header");
        assert_eq!(why(&[0; 20]), "is neither an ELF program nor a script");
        assert_eq!(why(b"x"), "is neither an ELF program nor a script");
    }

    proptest::proptest! {
        #[test]
        fn no_bytes_make_it_panic(head: Vec<u8>) {
            let _ = format(&head, "x86_64");
        }
    }
}
