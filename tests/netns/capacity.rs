//! File systems that fill, run out of inodes or turn read-only: small real ones.

use std::thread::sleep;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use serde_json::Value;

use crate::hangs::start;
use crate::machine::{Checked, Machine};
use crate::standalone::verdict;
use crate::support::wait::within;

const SOON: Duration = Duration::from_secs(30);

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

/// It was looked, and nothing is told of the file system that is mounted here. What else is short, such as the disks of
/// the machine itself while other tests run, does not matter.
fn has_room(checked: &Checked, point: &str) -> Result<()> {
    let codes = ["DiskFull", "DiskPressureImminent", "InodesExhausted", "InodesExhaustionImminent"];
    let findings = checked.json["verdict"]["findings"].as_array().context("findings")?;
    let told = findings.iter().find(|it| it["subject"] == point && codes.iter().any(|code| it["code"] == *code));
    ensure!(told.is_none(), "{told:?}");
    let unknown = checked.unknown();
    ensure!(!unknown.iter().any(|(code, _)| codes.contains(code)), "{unknown:?}");
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
    has_room(&machine.check_itself()?, "/var/log")
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
fn process_ids_are_near_their_limit_by_a_limit_of_the_configuration() -> Result<()> {
    let machine = Machine::plain()?;
    // As with memory: nobody uses up the machine's own.
    machine.write("limits.yaml", "limits: {imminentPoints: 100}")?;
    let limits = machine.place("limits.yaml");
    let near = machine.check_with(&["--config", &limits])?;
    let finding = near.finding("PidPressureImminent")?;
    assert_eq!(finding["subject"], "tasks");
    assert!(finding["detail"].as_str().is_some_and(|detail| detail.starts_with("Process ids: ")), "{finding}");
    let far = machine.check()?;
    assert!(far.finding("PidPressureImminent").is_err());
    assert!(far.unknown().iter().all(|(unknown, _)| *unknown != "PidPressureImminent"), "it was looked at");
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

const NODEFS: &str = "/var/lib/kubelet";
const IMAGEFS: &str = "/var/lib/containerd";
/// The kubelet's configuration: it evicts below a tenth, and deletes no images before.
const KUBELET: &str = r#"{"kind": "KubeletConfiguration", "healthzPort": 0, "imageGCHighThresholdPercent": 100, "evictionHard":
    {"nodefs.available": "10%", "nodefs.inodesFree": "10%", "imagefs.available": "10%", "imagefs.inodesFree": "10%"}}"#;

/// This machine as a worker whose kubelet and runtime keep their files on these file systems, each mounted by a script.
pub(crate) fn worker_on(mounts: &[(&str, String)]) -> Result<Machine> {
    let machine = Machine::plain()?;
    machine.run(&["mount", "-t", "tmpfs", "none", "/var/lib"])?;
    for (point, mount) in mounts {
        machine.run(&["sh", "-ec", &format!("mkdir {point}; {mount} {point}")])?;
    }
    machine.run(&["sh", "-ec", &format!("mkdir -p {NODEFS}; echo '{KUBELET}' > {NODEFS}/config.yaml")])?;
    Ok(machine)
}

#[test]
fn the_file_systems_of_the_kubelet_and_the_images_run_out_of_space_and_of_inodes() -> Result<()> {
    let small = |point| (point, "mount -t tmpfs -o size=100M,nr_inodes=1000 small".to_owned());
    let machine = worker_on(&[small(NODEFS), small(IMAGEFS)])?;
    // Each of them alone, to the end: what fills it has to fail.
    let to_the_end = "dd if=/dev/zero of=big bs=1M status=none 2>&1 | grep -q 'No space left'";
    let all_inodes = "! seq 2000 | xargs touch 2>/dev/null";
    for (point, role) in [(NODEFS, "nodefs"), (IMAGEFS, "imagefs")] {
        for (nearly, full, soon, code) in [
            ("fallocate -l 88M big", to_the_end, "DiskPressureImminent", "DiskFull"),
            ("for i in $(seq 880); do : > $i; done", all_inodes, "InodesExhaustionImminent", "InodesExhausted"),
        ] {
            for (script, said, silent) in [(nearly, soon, code), (full, code, soon)] {
                machine.run(&["sh", "-ec", &format!("cd {point}; {script}")])?;
                let checked = machine.check_itself()?;
                let finding = checked.finding(said)?;
                let detail = finding["detail"].to_string();
                ensure!(finding["subject"] == point && detail.contains(&format!("{point} ({role})")), "{finding}");
                ensure!(detail.contains("the kubelet evicts pods below 10"), "{finding}");
                ensure!(checked.finding(silent).is_err(), "it is told once: {:?}", checked.codes());
            }
            let keep = format!("cd {point}; find . -type f ! -name config.yaml -delete");
            machine.run(&["sh", "-ec", &keep])?;
            has_room(&machine.check_itself()?, point).with_context(|| format!("after {code}"))?;
        }
    }
    Ok(())
}

#[test]
fn a_disk_that_fills_at_a_steady_rate_is_told_more_than_five_minutes_before_the_kubelet_evicts() -> Result<()> {
    const BYTES: u64 = 8 << 30;
    /// Each second.
    const RATE: u64 = 2 << 20;
    /// Minutes of the beginning that nobody can tell from a burst, and those that are asked for, and some.
    const ROOM: u64 = 12 * 60 * RATE;
    let image = tempfile::NamedTempFile::new()?;
    image.as_file().set_len(BYTES)?;
    let disk = image.path().display();
    // Blocks are reserved, not written.
    let mount = format!("mkfs.ext4 -q -m 0 -O ^has_journal {disk}; mount -o loop {disk}");
    let machine = worker_on(&[(NODEFS, mount)])?;
    let left = || -> Result<u64> {
        let text = machine.run(&["stat", "-f", "-c", "%a %S %b", NODEFS])?;
        let numbers: Vec<u64> = text.split_whitespace().map(str::parse).collect::<Result<_, _>>()?;
        Ok(numbers[0] * numbers[1] - numbers[2] * numbers[1] / 10)
    };
    machine.run(&["fallocate", "-l", &(left()? - ROOM).to_string(), &format!("{NODEFS}/old")])?;
    let _running = start(&machine, &[])?;
    within(SOON, || verdict(&machine).map(drop))?;
    let (began, room) = (Instant::now(), left()?);
    let told = |list: &str| -> Result<Option<Value>> {
        let findings = verdict(&machine)?[list].take();
        let mut findings = findings.as_array().context("findings")?.iter();
        Ok(findings.find(|it| it["code"] == "DiskPressureImminent" && it["subject"] == NODEFS).cloned())
    };
    let finding = loop {
        let grown = began.elapsed().as_secs().max(1) * RATE;
        machine.run(&["fallocate", "-l", &grown.to_string(), &format!("{NODEFS}/log")])?;
        if let Some(finding) = told("findings")? {
            break finding;
        }
        ensure!(left()? > 5 * 60 * RATE, "five minutes are left, and nothing is told but {:?}", told("pending")?);
        sleep(Duration::from_millis(500));
    };
    // By what was really written.
    let (seconds, now) = (began.elapsed().as_secs_f64(), left()?);
    #[expect(clippy::cast_precision_loss, reason = "seconds need no more")]
    let left_for = now as f64 * seconds / (room - now) as f64;
    ensure!(left_for >= 300.0, "{left_for} s are left: {finding}");
    let detail = finding["detail"].as_str().context("a detail")?;
    let said = detail.split("at the present rate it reaches the limit in ").nth(1).context(detail.to_owned())?;
    let minutes: f64 = said.split(' ').next().context(detail.to_owned())?.parse()?;
    ensure!((minutes * 60.0 - left_for).abs() < 90.0, "{left_for} s are left: {detail}");
    ensure!(detail.contains("the kubelet evicts pods below"), "{detail}");
    Ok(())
}

#[test]
fn a_running_program_tells_of_a_file_system_that_becomes_read_only_and_clears_it() -> Result<()> {
    let image = tempfile::NamedTempFile::new()?;
    image.as_file().set_len(16 << 20)?;
    let disk = image.path().display();
    let machine = worker_on(&[(NODEFS, format!("mkfs.ext4 -q {disk}; mount -o loop {disk}"))])?;
    let _running = start(&machine, &[])?;
    let read_only = || -> Result<Option<Value>> {
        let findings = verdict(&machine)?["findings"].take();
        let mut findings = findings.as_array().context("findings")?.iter();
        Ok(findings.find(|it| it["code"] == "FilesystemReadOnly").cloned())
    };
    let told = |after: &str| within(SOON, || read_only()?.with_context(|| format!("{after} is not told")));
    let over = |after: &str| {
        within(SOON, || {
            let still = read_only()?;
            ensure!(still.is_none(), "after {after}: {still:?}");
            Ok(())
        })
    };
    over("the start")?;
    machine.run(&["mount", "-o", "remount,ro", NODEFS])?;
    let finding = told("a remount")?;
    let detail = finding["detail"].to_string();
    ensure!(finding["subject"] == NODEFS && detail.contains("/var/lib/kubelet (nodefs) on /dev/loop"), "{finding}");
    ensure!(finding["severity"] == "critical" && !detail.contains("the kernel's log"), "{finding}");
    machine.run(&["mount", "-o", "remount,rw", NODEFS])?;
    over("it was mounted read-write")?;

    // By the kernel, after an error.
    machine.run(&["mount", "-o", "remount,errors=remount-ro", NODEFS])?;
    let device = machine.run(&["findmnt", "-no", "SOURCE", NODEFS])?;
    let name = device.trim().trim_start_matches("/dev/");
    machine.run(&["sh", "-c", &format!("echo nodevitals-test > /sys/fs/ext4/{name}/trigger_fs_error")])?;
    let finding = told("an error")?;
    ensure!(finding["detail"].to_string().contains("nodevitals-test"), "{finding}");
    machine.run(&["umount", NODEFS])?;
    machine.run(&["sh", "-c", &format!("e2fsck -fy {disk} >/dev/null; test $? -le 1")])?;
    machine.run(&["mount", "-o", "loop", &disk.to_string(), NODEFS])?;
    over("it was repaired")
}
