//! How the boot before this one ended, as programs of that time wrote it down: the record of shutdowns in `/var/log/wtmp`, and
//! the journal, whose files journald renames when it finds that the one before it did not close them. Looked at once a boot.

use std::time::Duration;

use jiff::{SignedDuration, Timestamp};

use super::host_root::HostRoot;
use crate::facts::End;

const WTMP: &str = "/var/log/wtmp";
/// As much of the end of that file is read, in bytes: some hundred logins.
const TAIL: u64 = 256 << 10;
/// The machine's clock may be set while it boots; a record that is further off is of another boot.
const CLOCK: SignedDuration = SignedDuration::from_mins(10);
/// One boot can be recorded twice within this time.
const SAME: Duration = Duration::from_secs(1);
/// So many files of a journal are looked at; usually there is none of their kind.
const FILES: usize = 256;

/// How the boot `boot_id` ended, after which the present one began at `booted_at`. The record of a shutdown counts more than
/// the journal, which some systems do not close in time.
pub(crate) fn look(host: &HostRoot, boot_id: &str, machine_id: &str, booted_at: Timestamp) -> End {
    let records = host.tail(WTMP, TAIL, RECORD as u64).unwrap_or_default();
    match recorded(&records, booted_at) {
        End::Untold => torn_journal(host, boot_id, machine_id),
        told => told,
    }
}

/// Bytes of a `struct utmp` of glibc (`bits/utmp.h`), whose times are of 32 bits where programs of 32 bits have to read them
/// too.
const RECORD: usize = if SHORT { 384 } else { 400 };
const SHORT: bool = !cfg!(any(target_arch = "aarch64", target_arch = "riscv64", target_arch = "loongarch64"));
/// Where its second is.
const SECOND: usize = if SHORT { 340 } else { 344 };
/// `RUN_LVL`, `BOOT_TIME` of `utmp.h`.
const RUN_LEVEL: i16 = 1;
const BOOT_TIME: i16 = 2;

/// What the records of boots and shutdowns say, oldest first, of the boot before the one that began at `booted_at`.
fn recorded(records: &[u8], booted_at: Timestamp) -> End {
    let mut present: Option<Timestamp> = None;
    for record in records.rchunks_exact(RECORD) {
        let kind = i16::from_ne_bytes([record[0], record[1]]);
        let Some(at) = second(record) else { continue };
        let orderly = kind == RUN_LEVEL && record[44..].starts_with(b"shutdown\0");
        match (kind, present) {
            (BOOT_TIME, None) if at.duration_since(booted_at).abs() <= CLOCK => present = Some(at),
            // Nobody recorded this boot, or by another clock.
            (BOOT_TIME, None) => return End::Untold,
            (BOOT_TIME, Some(present)) if present.duration_since(at).unsigned_abs() <= SAME => {}
            (BOOT_TIME, Some(_)) => return End::Abrupt(format!("{WTMP} has no shutdown since the boot at {at}")),
            (_, Some(_)) if orderly => return End::Orderly,
            _ => {}
        }
    }
    End::Untold
}

fn second(record: &[u8]) -> Option<Timestamp> {
    let second = if SHORT {
        i64::from(i32::from_ne_bytes(record.get(SECOND..SECOND + 4)?.try_into().ok()?))
    } else {
        i64::from_ne_bytes(record.get(SECOND..SECOND + 8)?.try_into().ok()?)
    };
    Timestamp::from_second(second).ok()
}

/// Whether the system's journal of that boot was found open after it.
fn torn_journal(host: &HostRoot, boot_id: &str, machine_id: &str) -> End {
    let Ok(boot) = u128::from_str_radix(&boot_id.replace('-', ""), 16) else { return End::Untold };
    let directory = format!("/var/log/journal/{machine_id}");
    let Ok(entries) = std::fs::read_dir(host.path(&directory)) else { return End::Untold };
    let names = entries.flatten().filter_map(|entry| entry.file_name().into_string().ok());
    let mut torn = names.filter(|name| name.starts_with("system@") && name.ends_with(".journal~")).take(FILES);
    let found = torn.find(|name| {
        let head = host.head(&format!("{directory}/{name}"), HEAD as u64);
        head.ok().and_then(|head| open_in(&head)).is_some_and(|id| id == boot)
    });
    found.map_or(End::Untold, |name| End::Abrupt(format!("its journal was not closed ({directory}/{name})")))
}

/// As much of a journal's header as is needed.
const HEAD: usize = 72;

/// The boot in which a journal was written to last, if it was left open: signature (8), flags (4, 4), state (1, 7 unused), ids
/// of the file, the machine and the boot of its last entry (16 each); `journal-def.h` of systemd.
fn open_in(head: &[u8]) -> Option<u128> {
    const ONLINE: u8 = 1;
    let boot = head.get(56..HEAD)?;
    let open = head.starts_with(b"LPKSHHRH") && head[16] == ONLINE;
    open.then_some(u128::from_be_bytes(boot.try_into().ok()?))
}

/// The fuzz target's door.
#[cfg(any(test, fuzzing))]
pub(super) fn fuzz(bytes: &[u8]) {
    assert!(open_in(bytes).is_none() || bytes.len() >= HEAD);
    let booted_at = bytes.rchunks_exact(RECORD).find_map(second).unwrap_or_default();
    if let End::Abrupt(why) = recorded(bytes, booted_at) {
        assert!(why.contains(WTMP));
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;
    use std::path::Path;
    use std::process::{Command, Stdio};

    const BOOT: &str = "[2] [00000] [~~  ] [reboot  ] [~           ] [6.1.0-18-amd64      ] [0.0.0.0        ]";
    const RUN: &str = "[1] [00053] [~~  ] [runlevel] [~           ] [6.1.0-18-amd64      ] [0.0.0.0        ]";
    const DOWN: &str = "[1] [00000] [~~  ] [shutdown] [~           ] [6.1.0-18-amd64      ] [0.0.0.0        ]";
    const LOGIN: &str = "[7] [01234] [ts/0] [root    ] [pts/0       ] [10.0.0.1            ] [10.0.0.1       ]";

    /// Records as util-linux's `utmpdump` writes them: kind and minute.
    fn records(lines: &[(&str, u32)]) -> Vec<u8> {
        let line = |(kind, minute): &(&str, u32)| format!("{kind} [2026-11-21T10:{minute:02}:00,000000+00:00]");
        let text = lines.iter().map(line).collect::<Vec<_>>().join("\n") + "\n";
        let dir = tempfile::tempdir().expect("a temporary directory");
        let (from, to) = (dir.path().join("text"), dir.path().join("wtmp"));
        std::fs::write(&from, text).expect("write");
        let done = Command::new("utmpdump").arg("-r").arg("-o").arg(&to).arg(&from).stderr(Stdio::null()).status();
        assert!(done.expect("utmpdump (package util-linux)").success());
        std::fs::read(to).expect("written")
    }

    fn minute(minute: u32) -> Timestamp {
        format!("2026-11-21T10:{minute:02}:30Z").parse().expect("a time")
    }

    #[test]
    fn a_shutdown_between_two_boots_is_orderly_and_none_is_not() {
        let orderly = [(BOOT, 1), (RUN, 2), (LOGIN, 3), (DOWN, 20), (BOOT, 30), (RUN, 31), (LOGIN, 32)];
        assert_eq!(recorded(&records(&orderly), minute(30)), End::Orderly);
        let crashed = [(BOOT, 1), (DOWN, 2), (BOOT, 3), (RUN, 4), (LOGIN, 5), (BOOT, 30), (RUN, 31)];
        let End::Abrupt(why) = recorded(&records(&crashed), minute(30)) else { panic!("it crashed") };
        assert_eq!(why, "/var/log/wtmp has no shutdown since the boot at 2026-11-21T10:03:00Z");
        let looped = [(BOOT, 1), (DOWN, 10), (BOOT, 25), (BOOT, 30)];
        assert!(matches!(recorded(&records(&looped), minute(30)), End::Abrupt(_)), "soon after it had started");
        let twice = [(BOOT, 1), (DOWN, 10), (BOOT, 30), (BOOT, 30)];
        assert_eq!(recorded(&records(&twice), minute(30)), End::Orderly);
    }

    #[test]
    fn what_is_not_of_this_boot_or_begins_with_it_tells_nothing() {
        let stopped_recording = [(BOOT, 1), (BOOT, 5)];
        assert_eq!(recorded(&records(&stopped_recording), minute(30)), End::Untold);
        assert_eq!(
            recorded(&records(&[(BOOT, 30), (RUN, 31)]), minute(30)),
            End::Untold,
            "a new file, or the first boot"
        );
        assert_eq!(recorded(&[], minute(30)), End::Untold);
    }

    proptest! {
        #[test]
        fn any_bytes_are_an_answer(bytes in prop::collection::vec(any::<u8>(), 0..2000), at in -9_999_999_i64..99_999_999) {
            let _ = recorded(&bytes, Timestamp::from_second(at).expect("valid"));
            prop_assert!(open_in(&bytes).is_none() || bytes.len() >= HEAD);
        }
    }

    /// Runs systemd-journald over `root/var/log` three times: the second one finds the journal of the first.
    fn journald(root: &Path, signal: &str) {
        const SCRIPT: &str = r#"
            set -e
            mount --bind "$1" /var/log
            mount -t tmpfs none /run
            mkdir -p /run/systemd/journal "/var/log/journal/$3"
            touch /run/systemd/journal/flushed
            for signal in "$2" TERM; do
                /lib/systemd/systemd-journald & journald=$!
                for try in $(seq 100); do [ -e /run/systemd/journal/dev-log ] && break; sleep 0.05; done
                logger -u /run/systemd/journal/dev-log hello
                sleep 0.3
                kill "-$signal" "$journald"
                wait "$journald" || true
                rm -f /run/systemd/journal/dev-log
            done"#;
        let logs = root.join("var/log");
        std::fs::create_dir_all(&logs).expect("mkdir");
        let done = Command::new("unshare")
            .args(["--mount", "--propagation", "private", "bash", "-c", SCRIPT, "bash"])
            .args([logs.as_os_str(), signal.as_ref(), own("/etc/machine-id").as_ref()])
            .output()
            .expect("unshare (package util-linux)");
        assert!(done.status.success(), "systemd-journald (package systemd): {done:?}");
    }

    fn own(file: &str) -> String {
        std::fs::read_to_string(file).expect("of this machine").trim().to_owned()
    }

    #[test]
    fn a_journal_that_was_not_closed_is_of_the_boot_that_wrote_it() {
        let (boot, machine) = (own("/proc/sys/kernel/random/boot_id"), own("/etc/machine-id"));
        let other = "00000000-0000-4000-8000-000000000000";
        for (signal, torn) in [("KILL", true), ("TERM", false)] {
            let root = tempfile::tempdir().expect("a temporary directory");
            journald(root.path(), signal);
            let host = HostRoot::new(root.path());
            let said = |boot: &str| look(&host, boot, &machine, minute(30));
            assert_eq!(
                matches!(said(&boot), End::Abrupt(why) if why.contains("journal was not closed")),
                torn,
                "{signal}"
            );
            assert_eq!(said(other), End::Untold);
            std::fs::write(root.path().join("var/log/wtmp"), records(&[(BOOT, 1), (DOWN, 20), (BOOT, 30)]))
                .expect("write");
            assert_eq!(said(&boot), End::Orderly, "it was shut down, only too fast");
        }
    }
}
