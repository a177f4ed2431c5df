//! Memory and process ids that really run out, told before the kubelet evicts for them by its own thresholds; and pressure that
//! wakes a look.

use anyhow::{Context, Result, ensure};
use serde_json::Value;

use crate::machine::{Machine, SOON};
use crate::memory::{PODS, cgroup};
use crate::support::wait::within;

/// The kubelet's configuration, and hold-downs of a second.
const WORKER: &str = r#"
echo 'kind: KubeletConfiguration
healthzPort: 0
evictionHard:
  memory.available: 180Mi
  pid.available: 15%' > /var/lib/kubelet/config.yaml
echo '{"holdDownSeconds": {"MemoryPressureImminent": 1, "PidPressureImminent": 1},
  "clearSeconds": {"MemoryPressureImminent": 1, "PidPressureImminent": 1}}' > /config
NO_COLOR=1 nodevitals standalone --config /config >/dev/null 2>/log &
"#;
const MEMORY: &str = "MemoryPressureImminent";
const PIDS: &str = "PidPressureImminent";
/// In bytes.
const MEBIBYTE: u64 = 1 << 20;
/// `memory.available` above.
const THRESHOLD: u64 = 180 * MEBIBYTE;
/// Nearer than so many hundredths of a capacity to its limit something is near it (catalogue H9), and half as near.
const NEAR: u64 = 5;

/// A machine with pods and room for them.
fn worker() -> Result<Machine> {
    let mut machine = Machine::boot_on(&[], &["-m", "1536"])?;
    machine.run(PODS)?;
    machine.run(WORKER)?;
    Ok(machine)
}

/// Subjects and details of this code; an error while nobody can say.
fn told(verdict: &Value, code: &str) -> Result<Vec<[String; 2]>> {
    let unknown = verdict["unknown"].as_array().into_iter().flatten().find(|it| it[0] == code);
    ensure!(unknown.is_none(), "{unknown:?}");
    let findings = verdict["findings"].as_array().context("no verdict yet")?.iter();
    let text = |it: &Value| ["subject", "detail"].map(|key| it[key].as_str().unwrap_or_default().to_owned());
    Ok(findings.filter(|finding| finding["code"] == code).map(text).collect())
}

/// Waits until this is told of this subject alone, in these words.
fn tells(machine: &mut Machine, code: &str, subject: &str, words: &[&str]) -> Result<()> {
    machine.eventually(&format!("{code} {subject} {words:?}"), |verdict| {
        let told = told(verdict, code)?;
        let right = |detail: &str| words.iter().all(|word| detail.contains(word));
        ensure!(matches!(&told[..], [[it, detail]] if it == subject && right(detail)), "{told:?}");
        Ok(())
    })
}

/// Waits until one look says that this is below the limit: what has been told keeps its text for minutes.
fn is_below(machine: &mut Machine, code: &str, subject: &str, limit: &str) -> Result<()> {
    within(SOON, || {
        // Its status is the state that it tells.
        let text = machine.run("nodevitals check -o json 2>/dev/null || true")?;
        let json: Value = serde_json::from_str(&text).context(text)?;
        let told = told(&json["verdict"], code)?;
        let right = |detail: &str| detail.contains(limit) && detail.contains("; below the limit");
        ensure!(matches!(&told[..], [[it, detail]] if it == subject && right(detail)), "{told:?}");
        Ok(())
    })
}

fn is_silent(machine: &mut Machine, code: &str) -> Result<()> {
    machine.eventually(&format!("no {code}"), |verdict| {
        let told = told(verdict, code)?;
        ensure!(told.is_empty(), "{told:?}");
        Ok(())
    })
}

/// Where a pod's processes are.
fn scope(pod: &str) -> String {
    format!("{}/cri-containerd-{pod}c.scope", cgroup(pod))
}

/// Holds so much memory in a pod until [`end`].
fn hold(machine: &mut Machine, pod: &str, bytes: u64) -> Result<()> {
    let script = format!("echo 0 > {}/cgroup.procs; dd if=/dev/zero bs={bytes} count=1 | sleep 1000", scope(pod));
    machine.run(&format!("({script}) >/dev/null 2>&1 &")).map(drop)
}

/// Forks so many processes in a pod, which run until [`end`].
fn fork(machine: &mut Machine, pod: &str, count: u64) -> Result<()> {
    let each = format!("i=0; while [ $i -lt {count} ]; do sleep 1000 & i=$((i+1)); done; wait");
    machine.run(&format!("(echo 0 > {}/cgroup.procs; {each}) >/dev/null 2>&1 &", scope(pod)))?;
    let processes = format!("wc -l < {}/cgroup.procs", scope(pod));
    within(SOON, || {
        let forked: u64 = machine.run(&processes)?.trim().parse()?;
        ensure!(forked > count, "{forked} processes of {count}, and their shell");
        Ok(())
    })
}

/// Kills all of a pod.
fn end(machine: &mut Machine, pod: &str) -> Result<()> {
    machine.run(&format!("echo 1 > {}/cgroup.kill", scope(pod))).map(drop)
}

/// Memory that there is, and what the kubelet counts as available of it: all but the working set of the root cgroup.
fn memory(machine: &mut Machine) -> Result<[u64; 2]> {
    let text = machine.run("cat /proc/meminfo; cat /sys/fs/cgroup/memory.stat")?;
    let number = |name: &str| -> Result<u64> {
        let line = text.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix([':', ' ']));
        Ok(line.and_then(|line| line.split_whitespace().next()).with_context(|| name.to_owned())?.parse()?)
    };
    let total = number("MemTotal")? * 1024;
    Ok([total, total + number("inactive_file")? - number("anon")? - number("file")?])
}

#[test]
fn memory_that_runs_out_is_told_before_and_below_the_kubelets_threshold_and_clears() -> Result<()> {
    let mut machine = worker()?;
    is_silent(&mut machine, MEMORY)?;

    let [total, available] = memory(&mut machine)?;
    let half_near = total * NEAR / 200;
    hold(&mut machine, "b", available - THRESHOLD - half_near)?;
    let limit = "the kubelet evicts pods below 180.0 MiB";
    tells(&mut machine, MEMORY, "memory", &[limit, "points above the limit", "; most is used by pod b-1 ("])?;
    hold(&mut machine, "b", half_near * 3 / 2)?;
    is_below(&mut machine, MEMORY, "memory", limit)?;
    let [_, available] = memory(&mut machine)?;
    ensure!(available < THRESHOLD, "the kubelet would not evict: {available}");
    end(&mut machine, "b")?;
    is_silent(&mut machine, MEMORY)?;

    // All pods together near what they may have, on a node that has room.
    let limit = 1100 * MEBIBYTE;
    machine.run(&format!("echo {limit} > /sys/fs/cgroup/kubepods.slice/memory.max"))?;
    hold(&mut machine, "b", limit - THRESHOLD - limit * NEAR / 200)?;
    let words = ["Memory of all pods together: ", "points above the limit", "; most is used by pod b-1 ("];
    tells(&mut machine, MEMORY, "pods", &words)?;
    end(&mut machine, "b")?;
    is_silent(&mut machine, MEMORY)
}

#[test]
fn process_ids_that_run_out_are_told_before_and_below_the_kubelets_threshold_and_clear() -> Result<()> {
    const LIMIT: u64 = 2400;
    let mut machine = worker()?;
    is_silent(&mut machine, PIDS)?;

    machine.run(&format!("echo {LIMIT} > /proc/sys/kernel/pid_max"))?;
    is_silent(&mut machine, PIDS)?;
    // As the kubelet counts them.
    let loadavg = machine.run("cat /proc/loadavg")?;
    let tasks = loadavg.split(['/', ' ']).nth(4).context(loadavg.clone())?.parse::<u64>().context(loadavg)?;
    let (threshold, half_near) = (LIMIT * 15 / 100, LIMIT * NEAR / 200);
    fork(&mut machine, "b", LIMIT - threshold - half_near - tasks)?;
    let limit = "the kubelet evicts pods below 360 tasks";
    tells(&mut machine, PIDS, "tasks", &[limit, "points above the limit", "; most is used by pod b-1 ("])?;
    fork(&mut machine, "big", 2 * half_near)?;
    is_below(&mut machine, PIDS, "tasks", limit)?;
    end(&mut machine, "b")?;
    end(&mut machine, "big")?;
    is_silent(&mut machine, PIDS)?;

    machine.run("echo 200 > /sys/fs/cgroup/kubepods.slice/pids.max")?;
    fork(&mut machine, "b", 192)?;
    let words = ["Process ids of all pods together: ", "points above the limit", "; most is used by pod b-1 ("];
    tells(&mut machine, PIDS, "pods", &words)?;
    end(&mut machine, "b")?;
    is_silent(&mut machine, PIDS)
}

/// How often the source of memory has looked, and how often because it was woken, which only pressure does.
fn looks(machine: &mut Machine) -> Result<[u64; 2]> {
    let metrics = machine.run("wget -qO- http://127.0.0.1:10580/metrics")?;
    let number = |name: &str| -> Result<u64> {
        let line = metrics.lines().find_map(|line| line.strip_prefix(&format!("{name}{{source=\"memory\"}} ")));
        Ok(line.with_context(|| name.to_owned())?.parse()?)
    };
    Ok([number("nodevitals_source_looks_total")?, number("nodevitals_source_wakes_total")?])
}

#[test]
fn tasks_that_wait_for_memory_wake_a_look_and_then_the_period_goes_on() -> Result<()> {
    let mut machine = worker()?;
    is_silent(&mut machine, MEMORY)?;
    // With some looks that nothing woke.
    within(SOON, || {
        let [looks, _] = looks(&mut machine)?;
        ensure!(looks > 2, "{looks}");
        Ok(())
    })?;
    ensure!(looks(&mut machine)?[1] == 0, "something else woke it");

    // A pod above its soft limit has to wait, and nobody else has anything to do.
    machine.run(&format!("echo 8M > {}/memory.high", scope("b")))?;
    hold(&mut machine, "b", 64 * MEBIBYTE)?;
    within(SOON, || {
        let [_, wakes] = looks(&mut machine)?;
        ensure!(wakes > 0, "{:?}", machine.run("cat /proc/pressure/memory"));
        Ok(())
    })?;
    let stalled = machine.run("cat /proc/pressure/memory")?;
    ensure!(stalled.lines().any(|line| line.starts_with("full ") && !line.ends_with(" total=0")), "{stalled}");

    end(&mut machine, "b")?;
    let mut before = looks(&mut machine)?;
    within(SOON, || {
        let now = looks(&mut machine)?;
        if now[1] != before[1] {
            before = now;
        }
        ensure!(now[0] > before[0] + 1, "two looks that nothing woke: {before:?}, {now:?}");
        Ok(())
    })
}
