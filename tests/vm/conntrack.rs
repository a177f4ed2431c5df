//! A connection tracking table that fills up: the kernel's own counters and its own words.

use std::path::PathBuf;
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use serde_json::Value;

use crate::machine::{Machine, SOON};
use crate::root::IPTABLES;
use crate::support::wait::within;

/// The agent, which waits for nothing that lasts: how long a fault has to last is tested elsewhere.
const AGENT: &str = r#"
echo '{"settlingSeconds": 0, "holdDownSeconds": {"ConntrackFull": 0, "ConntrackNearFull": 0},
  "clearSeconds": {"ConntrackFull": 0, "ConntrackNearFull": 0}}' > /config
NO_COLOR=1 nodevitals standalone --config /config >/dev/null 2>/log &
echo $! > /agent.pid
"#;
/// Rules that look at states make the kernel track connections; those of the page are left out, so that it can be read when
/// no connection can be made any more.
const TRACK: &str = r"
iptables -A INPUT -m conntrack --ctstate INVALID -j DROP
iptables -A OUTPUT -m conntrack --ctstate INVALID -j DROP
iptables -t raw -A OUTPUT -p tcp --dport 10580 -j CT --notrack
iptables -t raw -A OUTPUT -p tcp --sport 10580 -j CT --notrack
echo 512 > /sys/module/nf_conntrack/parameters/hashsize
echo 100 > /proc/sys/net/netfilter/nf_conntrack_max
";
/// Connections that stay open, as of a workload that leaks them: 83 of 100 entries, which the kernel never throws out.
const HELD: &str = r"
mkfifo /held
nc -ll -p 9 -e cat >/dev/null 2>&1 &
until grep -q ':0009 0*:0000 0A' /proc/net/tcp /proc/net/tcp6; do usleep 100000; done
for i in $(seq 83); do nc 127.0.0.1 9 <>/held >/dev/null 2>&1 & done
";
/// More than fits, for as long as it runs: pings take the last entries from each other, or find none.
const BUSY: &str = r"
(while :; do ping -c 1 -W 1 127.0.0.1; done) >/dev/null 2>&1 &
echo $! > /busy
";
/// A Pod that tracks connections, with as many as fit and one more every now and then.
const POD: &str = r"
cat > /pod.sh <<'END'
ip link set lo up
iptables -A OUTPUT -m conntrack --ctstate INVALID -j DROP
mkfifo /pod
nc -ll -p 9 -e cat >/dev/null 2>&1 &
until grep -q ':0009 0*:0000 0A' /proc/net/tcp /proc/net/tcp6; do usleep 100000; done
for i in $(seq 101); do nc 127.0.0.1 9 <>/pod >/dev/null 2>&1 & done
while :; do ping -c 1 -W 1 127.0.0.1; done
END
echo 100 > /proc/sys/net/netfilter/nf_conntrack_max
unshare -n sh /pod.sh >/dev/null 2>&1 &
echo $! > /pod.pid
";
/// The kernel's word stands for two minutes, and this node's own table has to have been quiet for longer.
const QUIET: Duration = Duration::from_secs(400);
const CODES: [&str; 2] = ["ConntrackFull", "ConntrackNearFull"];
/// Packets that found no room, and entries that were thrown out for others.
const COLUMNS: [&str; 2] = ["drop", "early_drop"];

/// Code and detail of what is told of connection tracking.
fn told(findings: &Value) -> Vec<[String; 2]> {
    let text = |it: &Value| ["code", "detail"].map(|key| it[key].as_str().unwrap_or("").to_owned());
    let findings = findings.as_array().into_iter().flatten().map(text);
    findings.filter(|[code, _]| CODES.contains(&code.as_str())).collect()
}

/// Waits until these codes are told, with these words in the detail of the first.
fn exactly(machine: &mut Machine, codes: &[&str], words: &[&str]) -> Result<()> {
    exactly_in(SOON, machine, codes, words)
}

fn exactly_in(deadline: Duration, machine: &mut Machine, codes: &[&str], words: &[&str]) -> Result<()> {
    machine.eventually_in(deadline, &format!("{codes:?} {words:?}"), |verdict| {
        let told = told(&verdict["findings"]);
        let unknown = verdict["unknown"].to_string();
        ensure!(!CODES.iter().any(|code| unknown.contains(code)), "{unknown}");
        ensure!(told.iter().map(|[code, _]| code).eq(codes.iter()), "{told:?}");
        let has = |word: &&str| told.iter().take(1).any(|[_, detail]| detail.contains(*word));
        ensure!(words.iter().all(has), "{told:?}");
        Ok(())
    })
}

/// The sum of a column of the kernel's statistics.
fn counted(machine: &mut Machine, column: &str) -> Result<u64> {
    let text = machine.run("cat /proc/net/stat/nf_conntrack")?;
    let mut lines = text.trim().lines();
    let at =
        lines.next().and_then(|head| head.split_whitespace().position(|it| it == column)).context(column.to_owned())?;
    let cell = |line: &str| u64::from_str_radix(line.split_whitespace().nth(at).unwrap_or_default(), 16);
    Ok(lines.map(cell).sum::<Result<u64, _>>()?)
}

#[test]
fn a_full_table_is_told_with_what_the_kernel_counts_and_clears_with_more_room() -> Result<()> {
    let tools = IPTABLES.iter().chain(&["conntrack"]);
    let mut machine = Machine::boot_with(&tools.map(|name| format!("/usr/sbin/{name}").into()).collect::<Vec<_>>())?;
    machine.run(AGENT)?;
    exactly(&mut machine, &[], &[]).context("nothing is tracked")?;
    machine.run(TRACK)?;
    exactly(&mut machine, &[], &[]).context("there is room")?;

    machine.run(HELD)?;
    exactly(&mut machine, &["ConntrackNearFull"], &[" of 100 entries (8"])?;
    for column in COLUMNS {
        ensure!(counted(&mut machine, column)? == 0, "{column}");
    }

    // Its text is that of the first look, and so that must not come between the two.
    machine.run("kill -STOP $(cat /agent.pid)")?;
    machine.run(BUSY)?;
    for column in COLUMNS {
        let grows = within(SOON, || {
            ensure!(counted(&mut machine, column)? > 0, "{column}");
            Ok(())
        });
        grows.context("the table is full")?;
    }
    machine.run("kill -CONT $(cat /agent.pid)")?;
    let grew = ["packets were dropped", "entries were thrown out to make room", " of 100 entries"];
    exactly(&mut machine, &["ConntrackFull"], &grew)?;
    let line = machine.run("dmesg | grep -m 1 'nf_conntrack: table full, dropping packet'")?;
    let explained = machine.run("dmesg | grep -m 1 'table full' | nodevitals explain -")?;
    ensure!(explained.contains("ConntrackFull"), "{line}: {explained}");

    // The next step that it names.
    machine.run("kill $(cat /busy); echo 4096 > /proc/sys/net/netfilter/nf_conntrack_max")?;
    exactly(&mut machine, &[], &[]).context("there is room again")?;
    let page = machine.page()?;
    let full = page["episodes"].as_array().into_iter().flatten().find(|it| it["code"] == "ConntrackFull");
    let full = full.context("its episode")?;
    ensure!(full["times"] == 1 && full["cleared"].is_string(), "{full}");
    Ok(())
}

#[test]
fn a_full_table_of_another_network_namespace_is_told_as_such_and_is_over_with_the_kernels_word() -> Result<()> {
    let mut machine = Machine::boot_with(&IPTABLES.map(|name| PathBuf::from(format!("/usr/sbin/{name}"))))?;
    machine.run(AGENT)?;
    machine.run("modprobe nf_conntrack")?;
    exactly(&mut machine, &[], &[]).context("nothing is tracked")?;
    machine.run(POD)?;
    let said = within(SOON, || machine.run("dmesg | grep -m 1 'nf_conntrack: table full'"));
    said.context("the Pod's table is full")?;
    let words = [
        "of another network namespace on this node is full",
        "own table holds",
        "nf_conntrack: table full, dropping packet",
    ];
    exactly_in(QUIET, &mut machine, &["ConntrackNearFull"], &words)?;
    machine.run("kill $(cat /pod.pid)")?;
    exactly_in(QUIET, &mut machine, &[], &[]).context("nothing is dropped any more")?;
    let page = machine.page()?;
    let codes: Vec<&str> =
        page["episodes"].as_array().into_iter().flatten().filter_map(|it| it["code"].as_str()).collect();
    ensure!(!codes.contains(&"ConntrackFull"), "{codes:?}");
    Ok(())
}
