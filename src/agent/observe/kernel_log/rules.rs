//! Which lines of the kernel matter, and what each says.

use std::time::Duration;

use crate::facts::CONNTRACK_LASTS;
use crate::facts::KernelFault::{
    self, CgroupOutOfMemory, ConntrackFull, DiskError, FilesystemError, FilesystemReadOnly, FilesystemShutdown,
    FilesystemWarning, HardwareCorrected, HardwareFatal, HardwareUncorrected, JournalReplayed, Lockup, NetDeviceStuck,
    Oops, OutOfMemory, TaskHung,
};

/// What a line means.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Meaning {
    /// Something is wrong.
    Fault(KernelFault),
    /// A file system was mounted or unmounted: what was said of it before is over.
    Forget,
}

/// A kind of line. In the pattern `*` stands for any text and `{}` for the word that the line is about.
struct Rule {
    pattern: &'static str,
    /// Text that each line has which matches: the first of the pattern.
    text: &'static str,
    meaning: Meaning,
    /// A line as kernels print it, which the tests hold against the pattern.
    #[cfg(test)]
    example: &'static str,
}

/// Floppy and CD drives that virtual machines pretend to have fail at each boot; what is wrong below a loop device is
/// said of the disk that it lies on.
const NO_DISKS: [&str; 4] = ["fd", "sr", "loop", "ram"];
/// Operations whose failure loses nothing.
const HARMLESS: [&str; 2] = ["(DISCARD)", "(WRITE_ZEROES)"];

macro_rules! rules {
    ($($meaning:expr => { $($pattern:literal, $example:literal;)+ })+) => {
        &[$($(Rule { pattern: $pattern, text: first_text($pattern), meaning: $meaning, #[cfg(test)] example: $example },)+)+]
    };
}

/// The longest text that the standard library looks for by vectors (`str::contains`), in bytes.
const SHORT: usize = 32;

/// The text before the first wildcard of a pattern, or after it where the pattern begins with `*`, or the beginning of it.
const fn first_text(pattern: &'static str) -> &'static str {
    let bytes = pattern.as_bytes();
    let start = if bytes[0] == b'*' { 1 } else { 0 };
    let mut end = start;
    while end < bytes.len() && end - start < SHORT && !matches!(bytes[end], b'*' | b'{') {
        end += 1;
    }
    pattern.split_at(end).0.split_at(start).1
}

/// The rules of node-problem-detector (`config/kernel-monitor.json`, `readonly-monitor.json`) and more; the first that
/// matches counts.
const RULES: &[Rule] = rules! {
    Meaning::Fault(FilesystemError) => {
        "EXT4-fs error (device {})*", "EXT4-fs error (device sda1): ext4_find_entry:1455: inode #2: comm ls: reading directory lblock 0";
        "EXT3-fs error (device {})*", "EXT3-fs error (device sda1): ext3_journal_start_sb: Detected aborted journal";
        "EXT2-fs ({}): error: *", "EXT2-fs (sda1): error: ext2_get_inode: unable to read inode block - inode=2, block=5";
        "EXT4-fs ({}): Delayed block allocation failed *", "EXT4-fs (sda1): Delayed block allocation failed for inode 5 at logical offset 0 with max blocks 1 with error 117";
        "EXT4-fs ({}): failed to convert unwritten extents *", "EXT4-fs (sda1): failed to convert unwritten extents to written extents -- potential data loss!  (inode 5, error -30)";
        "XFS ({}): *orruption *detected*Unmount and run xfs_repair*", "XFS (sda1): Metadata corruption detected at xfs_agf_read_verify+0x6/0x40, block 0x1. Unmount and run xfs_repair";
        "XFS ({}): Metadata *orruption detected *", "XFS (sda1): Metadata CRC error corruption detected at xfs_dir3_block_read_verify+0x5e/0x110 [xfs], block 0x8";
        "XFS ({}): Metadata CRC error detected *", "XFS (sda1): Metadata CRC error detected at xfs_agi_read_verify+0xd0/0xf0 [xfs], xfs_agi block 0x2";
        "XFS ({}): metadata I/O error *", "XFS (sda1): metadata I/O error in \"xfs_buf_ioend+0x1c0/0x390\" at daddr 0x2 len 1 error 5";
        "BTRFS error (device {})*", "BTRFS error (device sda1 state EA): parent transid verify failed on 30408704 wanted 8 found 6";
        "BTRFS critical (device {})*", "BTRFS critical (device sda1): corrupt leaf: root=5 block=30408704 slot=0";
        "BTRFS: error (device {}) *", "BTRFS: error (device sda1) in btrfs_commit_transaction:2494: errno=-5 IO failure (Error while writing out transaction)";
    }
    Meaning::Fault(FilesystemShutdown) => {
        "XFS ({}): *hutting down filesystem*", "XFS (sda1): Corruption of in-memory data (0x8) detected at xfs_trans_cancel+0x12c/0x150 (fs/xfs/xfs_trans.c:1098).  Shutting down filesystem.";
        "XFS ({}): *ilesystem has been shut down*", "XFS (sda1): Filesystem has been shut down due to log error (0x2).";
    }
    Meaning::Fault(FilesystemReadOnly) => {
        "EXT4-fs ({}): Remounting filesystem read-only", "EXT4-fs (sda1): Remounting filesystem read-only";
        "EXT4-fs ({}): Remounting file system read-only", "EXT4-fs (sda1): Remounting file system read-only";
        "EXT3-fs ({}): *emounting filesystem read-only", "EXT3-fs (sda1): error: remounting filesystem read-only";
        "BTRFS info (device {}): forced readonly", "BTRFS info (device sda1): forced readonly";
    }
    Meaning::Fault(FilesystemWarning) => {
        "EXT4-fs warning (device {})*", "EXT4-fs warning (device sda1): ext4_end_bio:344: I/O error 10 writing to inode 5 starting block 9)";
        "EXT4-fs ({}): warning: mounting fs with errors*", "EXT4-fs (sda1): warning: mounting fs with errors, running e2fsck is recommended";
    }
    Meaning::Fault(JournalReplayed) => {
        "EXT4-fs ({}): recovery complete", "EXT4-fs (sda1): recovery complete";
        "XFS ({}): Starting recovery *", "XFS (sda1): Starting recovery (logdev: internal)";
        "BTRFS info (device {}): start tree-log replay", "BTRFS info (device sda1): start tree-log replay";
    }
    Meaning::Forget => {
        "EXT4-fs ({}): unmounting filesystem*", "EXT4-fs (sda1): unmounting filesystem 1b7a0c0d-0000-4000-8000-000000000000.";
        "EXT4-fs ({}): mounted filesystem*", "EXT4-fs (sda1): mounted filesystem 1b7a0c0d-0000-4000-8000-000000000000 r/w with ordered data mode. Quota mode: none.";
        "XFS ({}): Unmounting Filesystem*", "XFS (sda1): Unmounting Filesystem 1b7a0c0d-0000-4000-8000-000000000000";
        "XFS ({}): Mounting V*", "XFS (sda1): Mounting V5 Filesystem 1b7a0c0d-0000-4000-8000-000000000000";
        "BTRFS info (device {}): *first mount of filesystem*", "BTRFS info (device sda1): first mount of filesystem 1b7a0c0d-0000-4000-8000-000000000000";
        "BTRFS info (device {}): last unmount of filesystem*", "BTRFS info (device sda1): last unmount of filesystem 1b7a0c0d-0000-4000-8000-000000000000";
    }
    Meaning::Fault(DiskError) => {
        "Buffer I/O error on dev {}, *", "Buffer I/O error on dev sda1, logical block 0, async page read";
        "Buffer I/O error on device {}, *", "Buffer I/O error on device sda1, logical block 0";
        "*I/O error, dev {}, sector *", "blk_update_request: I/O error, dev sda, sector 2048 op 0x0:(READ) flags 0x0 phys_seg 1 prio class 0";
        "*critical medium error, dev {}, sector *", "critical medium error, dev sda, sector 2048 op 0x0:(READ) flags 0x80700 phys_seg 1 prio class 2";
        "*critical target error, dev {}, sector *", "critical target error, dev nvme0n1, sector 2048 op 0x1:(WRITE) flags 0x0 phys_seg 1 prio class 2";
        "nvme {}: I/O * timeout, *", "nvme nvme0: I/O tag 12 (100c) opcode 0x2 (Read) QID 3 timeout, aborting req_op:READ(0) size:4096";
        "nvme {}: controller is down; will reset*", "nvme nvme0: controller is down; will reset: CSTS=0xffffffff, PCI_STATUS=0x10";
        "nvme {}: Removing after probe failure*", "nvme nvme0: Removing after probe failure status: -19";
        "md/raid*:{}: Disk failure on *", "md/raid1:md0: Disk failure on sda1, disabling device.";
    }
    Meaning::Fault(HardwareFatal) => {
        "*[Hardware Error]: event severity: fatal*", "{1}[Hardware Error]: event severity: fatal";
    }
    Meaning::Fault(HardwareUncorrected) => {
        "*[Hardware Error]: event severity: recoverable*", "{1}[Hardware Error]: event severity: recoverable";
        "*[Hardware Error]: CPU {}: Machine Check Exception: *", "mce: [Hardware Error]: CPU 2: Machine Check Exception: 5 Bank 4: be00000000010091";
        "EDAC {}: * UE *", "EDAC MC0: 1 UE memory read error on CPU_SrcID#0_Ha#0_Chan#1_DIMM#0 (channel:1 slot:0 page:0x12 offset:0x0 grain:32)";
        "Memory failure: {}: recovery action for *", "Memory failure: 0x5d6d0: recovery action for dirty LRU page: Recovered";
        "pcieport {}: AER: Uncorrect* error *", "pcieport 0000:00:1c.0: AER: Uncorrectable (Fatal) error message received from 0000:01:00.0";
    }
    Meaning::Fault(HardwareCorrected) => {
        "*[Hardware Error]: event severity: corrected*", "{1}[Hardware Error]: event severity: corrected";
        "*[Hardware Error]: Machine check events logged*", "mce: [Hardware Error]: Machine check events logged";
        "EDAC {}: * CE *", "EDAC MC0: 1 CE memory read error on CPU_SrcID#0_Ha#0_Chan#1_DIMM#0 (channel:1 slot:0 page:0x12 offset:0x0 grain:32)";
    }
    Meaning::Fault(Oops) => {
        "BUG: unable to handle *", "BUG: unable to handle kernel NULL pointer dereference at 0000000000000008";
        "BUG: kernel NULL pointer dereference, *", "BUG: kernel NULL pointer dereference, address: 0000000000000008";
        "Unable to handle kernel *", "Unable to handle kernel NULL pointer dereference at virtual address 0000000000000008";
        "kernel BUG at *", "kernel BUG at mm/slub.c:307!";
        "Oops: *", "Oops: 0002 [#1] SMP PTI";
        "Internal error: *[#*", "Internal error: Oops: 0000000096000004 [#1] SMP";
        "general protection fault* [#*", "general protection fault, probably for non-canonical address 0xdead000000000108: 0000 [#1] PREEMPT SMP";
        "divide error: 0000 [#*", "divide error: 0000 [#1] SMP";
        "invalid opcode: 0000 [#*", "invalid opcode: 0000 [#1] SMP";
    }
    Meaning::Fault(Lockup) => {
        "*watchdog: BUG: soft lockup - CPU#{} stuck for *", "watchdog: BUG: soft lockup - CPU#3 stuck for 22s! [kworker/3:1:144]";
        "*atchdog detected hard LOCKUP on cpu {}*", "NMI watchdog: Watchdog detected hard LOCKUP on cpu 3";
        "*INFO: {} *detected *stall*", "rcu: INFO: rcu_sched self-detected stall on CPU";
    }
    Meaning::Fault(TaskHung) => {
        "INFO: task {} blocked *for more than *", "INFO: task kworker/u8:2:1234 blocked for more than 120 seconds.";
    }
    Meaning::Fault(NetDeviceStuck) => {
        "unregister_netdevice: waiting for {} to become free*", "unregister_netdevice: waiting for eth0 to become free. Usage count = 1";
    }
    Meaning::Fault(ConntrackFull) => {
        "*nf_conntrack: table full in netns {}, dropping packet*", "nf_conntrack: nf_conntrack: table full in netns 4026532301, dropping packet";
        "*nf_conntrack: table full, dropping packet*", "nf_conntrack: nf_conntrack: table full, dropping packet";
    }
    Meaning::Fault(OutOfMemory) => {
        "Out of memory: Kill* process * ({})*", "Out of memory: Killed process 1012 (java) total-vm:4170344kB, anon-rss:3982044kB, file-rss:0kB, shmem-rss:0kB, UID:0";
        "Out of memory (oom_kill_allocating_task): Kill* process * ({})*", "Out of memory (oom_kill_allocating_task): Killed process 1012 (java) total-vm:4170344kB";
    }
    Meaning::Fault(CgroupOutOfMemory) => {
        "Memory cgroup out of memory: Kill* process * ({})*", "Memory cgroup out of memory: Killed process 1012 (java) total-vm:4170344kB, anon-rss:3982044kB";
    }
};

/// How long a fault stands after its last line; none where something else ends it, which may be the next boot.
pub(super) fn lasts(fault: KernelFault) -> Option<Duration> {
    let minutes = match fault {
        // Said again every 10 s for as long as it lasts (`net/core/dev.c`).
        NetDeviceStuck => return Some(Duration::from_secs(30)),
        // Said again with what is dropped next (`net_warn_ratelimited`).
        ConntrackFull => return Some(CONNTRACK_LASTS),
        Lockup | OutOfMemory | CgroupOutOfMemory => 10,
        FilesystemError | FilesystemWarning | DiskError => 60,
        HardwareCorrected | HardwareUncorrected | HardwareFatal => 24 * 60,
        // Whoever unmounts, the process that goes on, and the next boot end these.
        FilesystemShutdown | FilesystemReadOnly | JournalReplayed | Oops | TaskHung => return None,
    };
    Some(Duration::from_secs(minutes * 60))
}

/// What a line says and what it is about; none when it says nothing that matters.
pub(super) fn understand(line: &str) -> Option<(Meaning, &str)> {
    // There are thousands of lines at the start, and for nearly all of them one byte rules out nearly all rules, and a text that they
    // do not have the others: to see that is cheaper than to prepare the search for a place.
    let first = line.bytes().next()?;
    let mut rules = RULES.iter().filter(|rule| match rule.pattern.as_bytes()[0] {
        b'*' => line.contains(rule.text),
        byte => byte == first,
    });
    let (meaning, subject) = rules.find_map(|rule| Some((rule.meaning, capture(rule.pattern, line)?)))?;
    if meaning == Meaning::Fault(DiskError)
        && (NO_DISKS.iter().any(|name| is_number(subject.strip_prefix(name)))
            || HARMLESS.iter().any(|it| line.contains(it)))
    {
        return None;
    }
    Some((meaning, subject))
}

/// Whether what follows a disk's name begins with its number.
fn is_number(rest: Option<&str>) -> bool {
    rest.is_some_and(|rest| rest.starts_with(|letter: char| letter.is_ascii_digit()))
}

/// The word at `{}` in a line that matches the pattern, empty if the pattern has none. After a wildcard the first place
/// counts at which the text that follows it is found.
fn capture<'a>(pattern: &str, line: &'a str) -> Option<&'a str> {
    let (mut pattern, mut line, mut word) = (pattern, line, "");
    // What the wildcard before this piece of text was: none, any text, or the word.
    let mut wildcard = None;
    loop {
        let end = pattern.bytes().position(|byte| matches!(byte, b'*' | b'{')).unwrap_or(pattern.len());
        let (text, rest) = pattern.split_at(end);
        let at = match wildcard {
            None => line.starts_with(text).then_some(0)?,
            Some('{') if text.is_empty() => line.find(' ').unwrap_or(line.len()),
            // The last wildcard takes what is left.
            Some(_) if text.is_empty() && rest.is_empty() => line.len(),
            Some(_) => line.find(text)?,
        };
        if wildcard == Some('{') {
            word = line[..at].split(' ').next().filter(|word| !word.is_empty())?;
        }
        line = &line[at + text.len()..];
        wildcard = rest.chars().next();
        match wildcard {
            None => return line.is_empty().then_some(word),
            Some('{') => pattern = &rest[2..],
            Some(_) => pattern = &rest[1..],
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_example_is_understood_by_its_own_rule() {
        for rule in RULES {
            let found = RULES.iter().find(|each| capture(each.pattern, rule.example).is_some());
            assert_eq!(found.map(|rule| rule.pattern), Some(rule.pattern), "{}", rule.example);
            let (meaning, subject) = understand(rule.example).expect(rule.example);
            assert_eq!(meaning, rule.meaning);
            assert_eq!(subject.is_empty(), !rule.pattern.contains("{}"), "{}: {subject:?}", rule.example);
        }
    }

    #[test]
    fn the_subject_is_the_word_that_the_line_is_about() {
        let subject = |line| understand(line).map(|(_, subject)| subject);
        assert_eq!(
            subject("INFO: task kworker/u8:2:1234 blocked for more than 120 seconds."),
            Some("kworker/u8:2:1234")
        );
        assert_eq!(subject("BTRFS error (device sda1 state EA): parent transid verify failed"), Some("sda1"));
        assert_eq!(subject("EXT4-fs error (device dm-0): ext4_lookup:1"), Some("dm-0"));
        assert_eq!(subject("I/O error, dev nvme0n1, sector 0 op 0x0:(READ)"), Some("nvme0n1"));
        assert_eq!(subject("watchdog: BUG: soft lockup - CPU#3 stuck for 22s! [a:1]"), Some("3"));
        assert_eq!(subject("Out of memory: Killed process 7 (java) total-vm:1kB"), Some("java"));
        assert_eq!(
            subject(
                "INFO: task containerd:77 blocked on a mutex likely owned by task runc:9 for more than 120 seconds."
            ),
            Some("containerd:77")
        );
    }

    #[test]
    fn what_looks_alike_and_is_harmless_is_passed_over() {
        for line in [
            "blk_update_request: I/O error, dev fd0, sector 0 op 0x0:(READ) flags 0x0 phys_seg 1 prio class 0",
            "I/O error, dev sr0, sector 0 op 0x0:(READ) flags 0x0 phys_seg 1 prio class 2",
            "I/O error, dev loop3, sector 0 op 0x0:(READ) flags 0x0 phys_seg 1 prio class 2",
            "critical target error, dev sda, sector 8 op 0x3:(DISCARD) flags 0x800 phys_seg 1 prio class 2",
            "traps: node[812] general protection fault ip:7f1a2c sp:7ffc12 error:0 in libc.so.6[7f1a00+195000]",
            "node[812]: segfault at 8 ip 00007f1a2c sp 00007ffc12 error 4 in libc.so.6",
            "EXT4-fs (sda1): re-mounted 1b7a0c0d-0000-4000-8000-000000000000 ro. Quota mode: none.",
            "EXT4-fs (sda1): INFO: recovery required on readonly filesystem",
            "XFS (sda1): Ending clean mount",
            "EDAC MC: Ver: 3.0.0",
            "mce: CPU supports 20 MCE banks",
            "IPv6: ADDRCONF(NETDEV_CHANGE): eth0: link becomes ready",
            "",
        ] {
            assert_eq!(understand(line), None, "{line}");
        }
    }
}
