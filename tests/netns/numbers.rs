//! The page of numbers is true: compared with what the machine's own tools say.

use anyhow::{Context, Result};
use serde_json::Value;

use crate::machine::{Machine, here, program};

fn check_here() -> Result<Value> {
    let output = std::process::Command::new(program()).args(["check", "-o", "json"]).output()?;
    serde_json::from_slice(&output.stdout).with_context(|| format!("{output:?}"))
}

#[test]
fn routes_are_those_of_ip_route() -> Result<()> {
    let machine = Machine::worker()?;
    machine.run(&["ip", "route", "add", "10.9.0.0/24", "via", "192.0.2.9", "proto", "bird"])?;
    machine.run(&["ip", "route", "add", "blackhole", "10.8.0.0/26", "proto", "bird"])?;
    let told: Value = serde_json::from_str(&machine.run(&["ip", "-j", "-d", "route", "show", "table", "main"])?)?;
    let told = told.as_array().context("routes")?;
    let checked = machine.check()?;
    let counts = checked.json["snapshot"]["routing"]["yes"]["byProtocol"].as_array().context("counts")?;
    let count = |protocol: u64| {
        counts.iter().find(|row| row[0] == "IPv4" && row[1] == protocol).map_or(0, |row| row[2].as_u64().unwrap_or(0))
    };
    let by_ip = |name: &str| told.iter().filter(|route| route["protocol"] == name).count() as u64;
    assert_eq!(count(12), by_ip("bird"));
    assert_eq!(count(2), by_ip("kernel"));
    assert_eq!(count(3), by_ip("boot"));
    let default = &checked.json["snapshot"]["routing"]["yes"]["defaults"][0]["nextHops"][0][0];
    assert_eq!(default, "192.0.2.1");
    Ok(())
}

#[test]
fn space_and_memory_are_those_of_df_and_free() -> Result<()> {
    let json = check_here()?;
    let filesystems = json["snapshot"]["filesystems"]["yes"].as_array().context("file systems")?;
    let root = filesystems.iter().find(|filesystem| filesystem["mountPoint"] == "/").context("/")?;
    let df = here(&["df", "-B1", "--output=size,avail,itotal,iavail", "/"])?;
    let df: Vec<u64> =
        df.lines().nth(1).context("a row")?.split_whitespace().filter_map(|word| word.parse().ok()).collect();
    let space = &root["space"]["yes"];
    // Others write to this disk meanwhile.
    let near = |key: &str, told: u64| {
        let seen = space[key].as_u64().unwrap_or(0);
        assert!(seen.abs_diff(told) <= (1 << 30), "{key}: {seen}, df says {told}");
    };
    assert_eq!(space["bytes"].as_u64(), Some(df[0]));
    near("bytesAvailable", df[1]);
    assert_eq!(space["inodes"].as_u64(), Some(df[2]));
    let free = here(&["free", "-b"])?;
    let total: u64 = free.lines().nth(1).and_then(|line| line.split_whitespace().nth(1)).context("a total")?.parse()?;
    assert_eq!(json["snapshot"]["memory"]["yes"]["total"].as_u64(), Some(total));
    Ok(())
}

#[test]
fn chains_are_those_of_iptables_save() -> Result<()> {
    let machine = Machine::worker()?;
    machine.feed(&["ipset", "restore"], &crate::machine::recording("01-healthy/ipset-save.txt")?)?;
    machine.feed(&["iptables-nft-restore"], &crate::machine::recording("01-healthy/iptables-nft-save.txt")?)?;
    let saved = machine.run(&["sh", "-c", "iptables-nft-save 2>/dev/null"])?;
    let mut counts = std::collections::BTreeMap::new();
    let mut table = "";
    for line in saved.lines() {
        match line.split_at_checked(1) {
            Some(("*", name)) => table = name,
            Some((":", _)) => *counts.entry(table).or_insert(0_u64) += 1,
            _ => {}
        }
    }
    let checked = machine.check()?;
    for (name, count) in counts {
        let tables = checked.json["snapshot"]["nftables"]["yes"]["tables"].as_array().context("tables")?;
        let table =
            tables.iter().find(|table| table["family"] == "IPv4" && table["name"] == name).context("the table")?;
        let seen = table["chains"].as_array().map_or(0, Vec::len) as u64
            + table["perObjectChains"].as_u64().unwrap_or(0)
            + table["foreignChains"].as_u64().unwrap_or(0);
        assert_eq!(seen, count, "{name}");
    }
    Ok(())
}
