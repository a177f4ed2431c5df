//! What processes of the product need on a node: memory, descriptors and threads.

use anyhow::{Context, Result, ensure};

use crate::product::Product;
use crate::support::node::Node;

/// What an agent or an aggregator may need more at the end than at the beginning.
const MORE_KIB: u64 = 1024;
const MORE_DESCRIPTORS: usize = 4;

/// What a process needs.
#[derive(Debug, Clone, Copy)]
pub struct Needs {
    anonymous_kib: u64,
    descriptors: usize,
    threads: u64,
}

impl Needs {
    /// That nothing has leaked since then.
    pub fn is_no_more_than(self, first: Needs) -> Result<()> {
        let leaked = |what: &str| format!("{what}: {first:?} at first, {self:?} at last");
        ensure!(self.anonymous_kib <= first.anonymous_kib + MORE_KIB, leaked("memory"));
        ensure!(self.descriptors <= first.descriptors + MORE_DESCRIPTORS, leaked("descriptors"));
        ensure!(self.threads <= first.threads + 1, leaked("threads"));
        Ok(())
    }
}

/// The processes of a command of the program on a node; by their numbers there.
pub fn processes(node: &Node, command: &str) -> Result<Vec<String>> {
    // None is no failure: aggregators are on some nodes only.
    let found = node.read(&["sh", "-c", "pgrep -f \"^nodevitals $0\" || true", command])?;
    Ok(found.lines().map(str::to_owned).collect())
}

/// What each agent and each aggregator needs now, by where it runs, what it is and its number.
pub fn all_need(product: &Product, nodes: &[&str]) -> Result<Vec<(String, Needs)>> {
    let mut all = Vec::new();
    for (name, command) in nodes.iter().flat_map(|name| [(name, "agent"), (name, "aggregator")]) {
        let node = product.cluster.node(name)?;
        for pid in processes(node, command)? {
            all.push((format!("{command} {pid} on {name}"), needs(node, &pid)?));
        }
    }
    let count = |command: &str| all.iter().filter(|(process, _)| process.starts_with(command)).count();
    ensure!(count("agent ") == nodes.len() && count("aggregator ") > 0, "an agent each, and aggregators: {all:?}");
    Ok(all)
}

fn needs(node: &Node, pid: &str) -> Result<Needs> {
    let status = node.read(&["cat", &format!("/proc/{pid}/status")])?;
    let number = |key: &str| -> Result<u64> {
        let line =
            status.lines().find_map(|line| line.strip_prefix(key)).with_context(|| format!("{key} in {status}"))?;
        Ok(line.split_whitespace().next().context("a number")?.parse()?)
    };
    let descriptors = node.read(&["ls", &format!("/proc/{pid}/fd")])?.lines().count();
    Ok(Needs { anonymous_kib: number("RssAnon:")?, descriptors, threads: number("Threads:")? })
}
