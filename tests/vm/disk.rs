//! Disks that fail and disks that are slow, a processor that is stuck, and tables of the kernel that are full.

use std::time::Duration;

use anyhow::{Context, Result, ensure};
use serde_json::Value;

use crate::machine::{Machine, SOON};
use crate::support::wait::within;

/// Disks without a file behind them: one whose sector 2048 cannot be read, and one that does so many requests a second.
const DISKS: [&str; 14] = [
    "-blockdev",
    "driver=null-co,node-name=empty,size=1073741824,read-zeroes=on",
    "-blockdev",
    "driver=blkdebug,node-name=failing,image=empty,inject-error.0.event=none,inject-error.0.iotype=read,inject-error.0.sector=2048,inject-error.0.errno=5,inject-error.0.once=off",
    "-device",
    "nvme,serial=failing,drive=failing",
    "-blockdev",
    "driver=null-co,node-name=empty-too,size=1073741824,read-zeroes=on",
    "-object",
    "throttle-group,id=group,x-iops-total=4",
    "-blockdev",
    "driver=throttle,node-name=slow,throttle-group=group,file=empty-too",
    "-device",
    "nvme,serial=slow,drive=slow",
];

/// One look inside, and the findings of this code.
fn told(machine: &mut Machine, code: &str) -> Result<Vec<Value>> {
    told_by(machine, "nodevitals", code)
}

fn told_by(machine: &mut Machine, program: &str, code: &str) -> Result<Vec<Value>> {
    // Its status is the state that it tells.
    let text = machine.run(&format!("{program} check -o json 2>/dev/null || true"))?;
    let json: Value = serde_json::from_str(&text).context(text)?;
    let verdict = &json["verdict"];
    let unknown = verdict["unknown"].as_array().into_iter().flatten().find(|it| it[0] == code);
    ensure!(unknown.is_none(), "{unknown:?}");
    let findings = verdict["findings"].as_array().context("findings")?;
    Ok(findings.iter().filter(|finding| finding["code"] == code).cloned().collect())
}

/// Requires that one look tells this code once, and of this.
fn tells(machine: &mut Machine, code: &str, subject: &str, words: &str) -> Result<()> {
    let told = told(machine, code)?;
    let [finding] = &told[..] else { anyhow::bail!("{code}: {told:?}") };
    ensure!(finding["subject"] == subject && finding["severity"] == "warning", "{finding}");
    ensure!(finding["detail"].to_string().contains(words), "{words:?}: {finding}");
    Ok(())
}

fn is_silent(machine: &mut Machine, code: &str) -> Result<()> {
    let told = told(machine, code)?;
    ensure!(told.is_empty(), "{told:?}");
    Ok(())
}

#[test]
fn a_disk_that_cannot_be_read_a_processor_that_is_stuck_and_files_and_watches_that_run_out() -> Result<()> {
    let (disk, kernel) = ("DiskIoErrors", "KernelOops");
    let mut machine = Machine::boot_on(&["/usr/bin/unshare".into(), "/usr/bin/tail".into()], &DISKS)?;
    let failing = machine.run("grep -l failing /sys/class/nvme/*/serial")?;
    let controller = failing.trim().split('/').nth(4).context(failing.clone())?.to_owned();
    machine.run(&format!("dd if=/dev/{controller}n1 of=/dev/null bs=4k count=1"))?;
    is_silent(&mut machine, disk)?;
    machine.run(&format!("! dd if=/dev/{controller}n1 of=/dev/null bs=4k skip=256 count=1"))?;
    let name = format!("{controller}n1");
    tells(&mut machine, disk, &name, &format!("The disk {name} fails; the kernel's log says"))?;
    machine.run(&format!("echo 1 > /sys/class/nvme/{controller}/device/remove"))?;
    is_silent(&mut machine, disk).context("it was taken away")?;

    is_silent(&mut machine, kernel)?;
    // A processor counts as stuck after two seconds of these.
    machine.run("echo 1 > /proc/sys/kernel/watchdog_thresh; (while :; do :; done) & echo $! > /busy")?;
    // While the machine stands still its clock goes on.
    within(SOON, || {
        machine.stand_still(Duration::from_secs(4))?;
        machine.run("dmesg | grep 'soft lockup'").map(drop)
    })?;
    machine.run("kill $(cat /busy)")?;
    tells(&mut machine, kernel, "0", "A CPU was stuck in the kernel (0)")?;
    // Eleven minutes later, by the clocks of the one who looks.
    let later =
        told_by(&mut machine, "/usr/sbin/unshare --time --fork --monotonic 660 --boottime 660 nodevitals", kernel)?;
    ensure!(later.is_empty(), "{later:?}");
    files_and_watches_run_out(&mut machine)
}

/// What all processes share.
fn files_and_watches_run_out(machine: &mut Machine) -> Result<()> {
    let files = "FdExhaustionImminent";
    is_silent(machine, files)?;
    // The kernel counts few files as none.
    machine.run(
        "(for file in $(seq 10 1000); do eval \"exec $file</dev/null\"; done; exec sleep 1000) & echo $! > /opens",
    )?;
    let nearly =
        "set -- $(cat /proc/sys/fs/file-nr); test $1 -gt 800 && echo $(($1 + $1 / 50)) > /proc/sys/fs/file-max";
    let most = machine.run("cat /proc/sys/fs/file-max")?;
    within(SOON, || machine.run(nearly))?;
    tells(machine, files, "files", "; there is room for most in sleep (process ")?;
    machine.run(&format!("kill $(cat /opens); echo {} > /proc/sys/fs/file-max", most.trim()))?;
    is_silent(machine, files)?;
    let limit = |name: &str, limit: u32| format!("echo {limit} > /proc/sys/fs/inotify/max_user_{name}");
    let follow = "/usr/sbin/tail -f $files >/dev/null 2>&1 & echo $! >> /tails";
    machine.run(&format!("{}; files=/init; for one in $(seq 14); do {follow}; done", limit("instances", 16)))?;
    // A process that has just started holds none yet.
    within(SOON, || tells(machine, files, "inotify instances", "; most are held by tail (process "))?;
    machine.run(&format!("kill $(cat /tails); {}", limit("instances", 128)))?;
    within(SOON, || is_silent(machine, files))?;
    let all = "files=; for file in $(seq 40); do : > /tmp/$file; files=\"$files /tmp/$file\"; done";
    machine.run(&format!("{}; {all}; {follow}", limit("watches", 40)))?;
    let none =
        "None of the 40 inotify watches that the kubelet's user may have is left; most are held by tail (process ";
    within(SOON, || tells(machine, files, "inotify watches", none))?;
    machine.run(&limit("watches", 8192))?;
    is_silent(machine, files)
}

#[test]
fn all_tasks_wait_for_a_slow_disk() -> Result<()> {
    let io = "IoPressureHigh";
    let mut machine = Machine::boot_on(&[], &DISKS)?;
    is_silent(&mut machine, io)?;
    let slow = machine.run("grep -l slow /sys/class/nvme/*/serial")?;
    let controller = slow.trim().split('/').nth(4).context(slow.clone())?.to_owned();
    let read = format!(
        "dd if=/dev/{controller}n1 of=/dev/null bs=4k count=60000 skip=$((start * 60000)) & echo $! >> /readers"
    );
    machine.run(&format!("for start in 0 1 2 3; do {read}; done 2>/dev/null"))?;
    // Whoever looks all the time works, and then not all tasks wait.
    within(SOON, || machine.run("awk '/^full/ { exit !(substr($3, 7) + 0 > 42) }' /proc/pressure/io"))?;
    tells(&mut machine, io, "io", " % of the time over a minute (")?;
    machine.run("kill $(cat /readers)")?;
    within(SOON, || is_silent(&mut machine, io))
}
