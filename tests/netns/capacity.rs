//! File systems that fill, run out of inodes or turn read-only: small real ones.

use anyhow::Result;

use crate::machine::Machine;

/// This machine, with a small file system of its own on `/var/log` that nobody outside the namespaces sees.
fn small_logs(options: &str) -> Result<Machine> {
    let machine = Machine::plain()?;
    machine.run(&["mount", "-t", "tmpfs", "-o", options, "small", "/var/log"])?;
    Ok(machine)
}

fn fill(machine: &Machine, mebibytes: u32) -> Result<()> {
    let count = format!("count={mebibytes}");
    machine.run(&["dd", "if=/dev/zero", "of=/var/log/big", "bs=1M", &count, "status=none"])?;
    Ok(())
}

#[test]
fn a_full_file_system_and_room_again() -> Result<()> {
    let machine = small_logs("size=100M")?;
    assert!(machine.check_itself()?.finding("DiskFull").is_err());
    fill(&machine, 95)?;
    let checked = machine.check_itself()?;
    assert_eq!(checked.finding("DiskPressureImminent")?["subject"], "/var/log", "95 of 100 MiB");
    fill(&machine, 100)?;
    let checked = machine.check_itself()?;
    let finding = checked.finding("DiskFull")?;
    assert!(finding["detail"].to_string().contains("/var/log (logs)"), "{finding}");
    assert!(checked.finding("DiskPressureImminent").is_err(), "full is told once");
    machine.run(&["rm", "/var/log/big"])?;
    assert!(machine.check_itself()?.finding("DiskFull").is_err());
    Ok(())
}

#[test]
fn inodes_run_out_and_come_back() -> Result<()> {
    let machine = small_logs("size=100M,nr_inodes=200")?;
    let touch = |from: u32, to: u32| {
        let script = format!("for i in $(seq {from} {to}); do : > /var/log/$i; done");
        machine.run(&["sh", "-c", &script])
    };
    touch(1, 192)?;
    assert_eq!(machine.check_itself()?.finding("InodesExhaustionImminent")?["subject"], "/var/log");
    touch(193, 198)?;
    assert_eq!(machine.check_itself()?.finding("InodesExhausted")?["subject"], "/var/log");
    machine.run(&["sh", "-c", "rm /var/log/*"])?;
    assert_eq!(machine.check_itself()?.condition("CapacityProblem").0, "False");
    Ok(())
}

#[test]
fn memory_is_near_its_limit_by_a_limit_of_the_configuration() -> Result<()> {
    let machine = Machine::plain()?;
    // The machine's memory cannot be used up for a test, but the distance at which it counts can be set.
    machine.write("limits.yaml", "limits: {imminentPoints: 100}")?;
    let limits = machine.place("limits.yaml");
    assert_eq!(machine.check_with(&["--config", &limits])?.finding("MemoryPressureImminent")?["subject"], "memory");
    assert!(machine.check()?.finding("MemoryPressureImminent").is_err());
    Ok(())
}

#[test]
fn a_file_system_turns_read_only_and_writable_again() -> Result<()> {
    let machine = Machine::plain()?;
    machine.run(&["truncate", "-s", "16M", &machine.place("disk")])?;
    machine.run(&["mkfs.ext4", "-q", &machine.place("disk")])?;
    machine.run(&["mount", "-o", "loop", &machine.place("disk"), "/var/log"])?;
    assert!(machine.check_itself()?.finding("FilesystemReadOnly").is_err());
    let device = machine.run(&["findmnt", "-no", "SOURCE", "/var/log"])?;
    let trigger = format!("/sys/fs/ext4/{}/trigger_fs_error", device.trim().trim_start_matches("/dev/"));
    let fail = || machine.run(&["sh", "-c", &format!("echo nodevitals-test > {trigger}")]);
    let words = |finding: &serde_json::Value| finding["detail"].to_string().contains("comm sh: nodevitals-test");
    fail()?;
    let checked = machine.check_itself()?;
    let finding = checked.finding("FilesystemErrors")?;
    assert!(finding["subject"] == "/var/log" && words(finding), "{finding}");
    assert!(checked.finding("FilesystemReadOnly").is_err(), "it goes on");
    // One look cannot know that a file system was writable before, but the kernel's own mark of an error it can see.
    machine.run(&["sh", "-c", "mount -o remount,errors=remount-ro /var/log"])?;
    fail()?;
    let checked = machine.check_itself()?;
    let finding = checked.finding("FilesystemReadOnly")?;
    assert!(finding["subject"] == "/var/log" && words(finding), "{finding}");
    assert!(checked.finding("FilesystemErrors").is_err(), "it is told once");
    // The kernel lets nobody write to it again before it was unmounted and repaired.
    machine.run(&["umount", "/var/log"])?;
    machine.run(&["sh", "-c", &format!("e2fsck -fy {} >/dev/null; test $? -le 1", machine.place("disk"))])?;
    machine.run(&["mount", "-o", "loop", &machine.place("disk"), "/var/log"])?;
    let checked = machine.check_itself()?;
    assert!(checked.finding("FilesystemReadOnly").is_err() && checked.finding("FilesystemErrors").is_err());
    Ok(())
}
