//! What the kernel itself says of its troubles: a task that hangs, a file system with an error. The agent reads it
//! from `/dev/kmsg`, tells each once, and not again after a restart of its own. What was overwritten before it was read is said.

use std::path::PathBuf;

use anyhow::{Context, Result, bail, ensure};
use serde_json::Value;

use crate::machine::Machine;

/// The agent of a worker whose API server does not answer, with its state on the disk.
const AGENT: &str = r#"
echo '{"apiVersion": "v1", "kind": "Config", "current-context": "x",
  "contexts": [{"name": "x", "context": {"cluster": "x", "user": "x"}}],
  "clusters": [{"name": "x", "cluster": {"server": "https://127.0.0.1:1", "certificate-authority": "/ca.crt"}}],
  "users": [{"name": "x", "user": {"token": "none"}}]}' > /kubeconfig
mkdir -p /state
NO_COLOR=1 nodevitals agent --node-name n1 --kubeconfig /kubeconfig --state-dir /state >>/log 2>&1 &
echo $! > /agent.pid
"#;
const CODES: [&str; 2] = ["FilesystemErrors", "TaskHung"];

/// The findings that only the kernel's log tells: code, since when, and detail.
fn told(verdict: &Value) -> Vec<[String; 3]> {
    let findings = verdict["findings"].as_array().into_iter().flatten();
    let text = |it: &Value| ["code", "since", "detail"].map(|key| it[key].as_str().unwrap_or("").to_owned());
    let mut told: Vec<_> = findings.map(text).filter(|[code, ..]| CODES.contains(&code.as_str())).collect();
    told.sort();
    told
}

fn exactly(machine: &mut Machine, codes: &[&str]) -> Result<Vec<[String; 3]>> {
    machine.eventually(&format!("{codes:?}"), |verdict| {
        let told = told(verdict);
        let settled = verdict["settling"] == false;
        ensure!(settled && told.iter().map(|[code, ..]| code).eq(codes.iter()), "{told:?}");
        Ok(told)
    })
}

#[test]
fn the_kernels_own_words_are_told_once_and_not_again_after_a_restart() -> Result<()> {
    let mut machine = Machine::boot()?;
    machine.run("modprobe brd rd_nr=1 rd_size=65536 && mke2fs /dev/ram0 && mount -t ext4 /dev/ram0 /tmp")?;
    machine.run(AGENT)?;
    exactly(&mut machine, &[])?;

    // A task that waits for a file system that stands still, as for a disk that does not answer.
    machine.run(
        "echo 2 > /proc/sys/kernel/hung_task_timeout_secs; echo 1 > /proc/sys/kernel/hung_task_check_interval_secs",
    )?;
    machine.run("fsfreeze --freeze /tmp; (exec dd if=/dev/zero of=/tmp/file bs=1k count=1) >/dev/null 2>&1 &")?;
    let hung = exactly(&mut machine, &["TaskHung"])?;
    ensure!(hung[0][2].starts_with("The process dd (PID "), "{hung:?}");
    ensure!(hung[0][2].contains("blocked for more than "), "{hung:?}");
    machine.run("fsfreeze --unfreeze /tmp")?;
    exactly(&mut machine, &[]).context("it goes on")?;

    machine.run("echo nodevitals-test > /sys/fs/ext4/ram0/trigger_fs_error")?;
    let before = exactly(&mut machine, &["FilesystemErrors"])?;
    ensure!(before[0][2].contains("nodevitals-test"), "{before:?}");

    machine.run("kill $(cat /agent.pid); while kill -0 $(cat /agent.pid) 2>/dev/null; do usleep 100000; done")?;
    machine.run(AGENT)?;
    let after = exactly(&mut machine, &["FilesystemErrors"])?;
    ensure!(before == after, "{before:?} became {after:?}");
    // The lines are still in the kernel's log, and the journal has one entry for each trouble.
    let page = machine.page()?;
    for code in CODES {
        let episodes = page["episodes"].as_array().into_iter().flatten().filter(|it| it["code"] == code).count();
        ensure!(episodes == 1, "{code}: {}", page["episodes"]);
    }

    machine.run("umount /tmp && mke2fs /dev/ram0 && mount -t ext4 /dev/ram0 /tmp")?;
    exactly(&mut machine, &[]).context("a new file system is mounted")?;
    Ok(())
}

/// Thousands of long lines, many times what the kernel's log holds (128 KiB). The device is a node of its own, since a test may hide
/// the usual one.
const FLOOD: &str = "echo on > /proc/sys/kernel/printk_devkmsg; mknod /kmsg c 1 11; line=$(head -c 900 /dev/zero | tr '\\0' x); i=0; \
                     while [ $i -lt 3000 ]; do echo \"<6>$line\"; i=$((i+1)); done > /kmsg";
const GAP: &str = "the kernel's log was overwritten before it was read: faults that it told may be missed";

fn lost(machine: &mut Machine) -> Result<u64> {
    let metrics = machine.run("wget -qO- http://127.0.0.1:10580/metrics")?;
    let lost = metrics.lines().find_map(|line| line.strip_prefix("nodevitals_kernel_log_lines_lost_total "));
    Ok(lost.context("no such metric")?.parse()?)
}

/// The lines of the agent's own log that say that some of the kernel's are lost.
fn said(machine: &mut Machine) -> Result<Vec<Value>> {
    let text = machine.run(&format!("grep \"{GAP}\" /log || true"))?;
    text.lines()
        .filter(|line| !line.is_empty())
        .map(|line| serde_json::from_str(line).context(line.to_owned()))
        .collect()
}

/// The log overruns while the agent, which this script starts, reads nothing: that is said, and what came last is told. Answers how
/// many lines are said to be lost.
fn overrun(machine: &mut Machine, agent: &str) -> Result<u64> {
    machine.run("modprobe brd rd_nr=2 rd_size=16384; mke2fs /dev/ram0; mke2fs /dev/ram1")?;
    machine.run("mount -t ext4 /dev/ram0 /tmp && mount -t ext4 /dev/ram1 /www")?;
    machine.run(agent)?;
    exactly(machine, &[])?;
    ensure!(said(machine)?.is_empty() && lost(machine)? == 0, "{:?}", said(machine)?);

    machine.run("kill -STOP $(cat /agent.pid)")?;
    machine.run("echo before-the-flood > /sys/fs/ext4/ram0/trigger_fs_error")?;
    machine.run(FLOOD)?;
    machine.run("echo after-the-flood > /sys/fs/ext4/ram1/trigger_fs_error; kill -CONT $(cat /agent.pid)")?;
    let told = exactly(machine, &["FilesystemErrors"])?;
    ensure!(told[0][2].contains("after-the-flood"), "{told:?}");
    let said = said(machine)?;
    let [line] = &said[..] else { bail!("{said:?}") };
    ensure!(line["level"] == "WARN", "{line}");
    line["at_least"].as_u64().with_context(|| line.to_string())
}

#[test]
fn lines_that_were_overwritten_before_they_were_read_are_said_and_those_after_them_are_read() -> Result<()> {
    let mut machine = Machine::boot()?;
    let lines = overrun(&mut machine, AGENT)?;
    ensure!(
        (2000..3100).contains(&lines) && lost(&mut machine)? == 1000,
        "{lines}, in the metrics to the power of ten"
    );

    // It is read to its end again, and what was lost is not lost twice.
    machine.run("echo much-later > /sys/fs/ext4/ram0/trigger_fs_error")?;
    exactly(&mut machine, &["FilesystemErrors", "FilesystemErrors"])?;
    ensure!(said(&mut machine)?.len() == 1 && lost(&mut machine)? == 1000, "{:?}", said(&mut machine)?);
    machine.run("umount /tmp /www; mke2fs /dev/ram0; mke2fs /dev/ram1")?;
    machine.run("mount -t ext4 /dev/ram0 /tmp && mount -t ext4 /dev/ram1 /www")?;
    exactly(&mut machine, &[]).map(drop)
}

#[test]
fn lines_that_were_overwritten_are_said_where_the_log_may_only_be_asked_for() -> Result<()> {
    let mut machine = Machine::boot_with(&[PathBuf::from("/usr/bin/dmesg")])?;
    // As in a container that is not privileged: nobody may open the device. Its lines come by syslog(2), which does not number them.
    machine.run("mkdir /closed && mount -t tmpfs -o nodev none /closed && mknod /closed/kmsg c 1 11")?;
    machine.run("mount --bind /closed/kmsg /dev/kmsg && ! cat /dev/kmsg")?;
    let lines = overrun(&mut machine, &format!("PATH=/usr/sbin:$PATH\n{AGENT}"))?;
    ensure!(lines == 1 && lost(&mut machine)? == 1, "at least one: {lines}");
    Ok(())
}
