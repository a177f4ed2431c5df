//! The agent looks, judges and tells: it changes nothing on the node (catalogue R153), while a fault is there that it could repair,
//! and while it takes evidence of that.

use std::time::Duration;

use anyhow::{Context, Result, ensure};
use serde_json::Value;

use super::{Node, cluster};
use crate::support::wait::within;

/// Longer than the hold-down of the fault, on a busy machine.
const SOON: Duration = Duration::from_secs(120);

/// What is there, a line for each thing: files but for the agent's own, with their times of change; what the kernel has of the
/// network, of rules and of settings; and who runs. Without what counts by itself, and without making tables by asking for them.
const ALL: &str = r#"
find "$0" -mindepth 1 \( -path "$0/proc" -o -path "$0/sys" -o -path "$0/logs" \) -prune -o -printf 'file %P %y %m %U:%G %s %T@ %C@ %l\n' | sort
for names in ip_tables_names ip6_tables_names; do ! [ -e /proc/net/$names ] || sed "s/^/$names /" /proc/net/$names; done
for family in -4 -6; do
    ip $family rule | sed "s/^/rule $family /"
    ip $family route show table all | grep -v ' expires ' | sed "s/^/route $family /" | sort
done
ip -4 address | sed 's/^/address /'
ip -details link | sed 's/^/link /'
for save in iptables-nft-save ip6tables-nft-save; do $save | grep -v '^#' | sed "s/\[[0-9]*:[0-9]*\]//; s/^/$save /"; done
ipset save | sort | sed 's/^/ipset /'
find /proc/sys/net -type f -readable ! -name 'nf_conntrack_count' | sort | xargs grep -sH . | sed 's/^/setting /'
ps -eo pid=,args= | grep -v -e nodevitals -e ' ps -eo' -e ' sh -ec' -e ' sort' -e ' sed ' -e ' grep ' -e 'nsenter' | sed 's/^/process /'
"#;

fn all(node: &Node) -> Result<Vec<String>> {
    let root = node.path("").display().to_string();
    let text = node.run(&["sh", "-ec", ALL, root.trim_end_matches('/')])?;
    let lines: Vec<String> = text.lines().map(str::to_owned).collect();
    for kind in ["file ", "rule ", "route ", "address ", "link ", "iptables-nft-save ", "setting ", "process "] {
        ensure!(lines.iter().any(|line| line.starts_with(kind)), "no {kind} among {lines:#?}");
    }
    Ok(lines)
}

#[test]
fn nothing_on_the_node_is_changed() -> Result<()> {
    let (incident, name) = ("05-kube-proxy-stopped", "n2");
    let node = Node::recorded(incident, "during-b-jumps-gone", name)?;
    // The kernel makes a route for each link-local address once it has found out that nobody else has it.
    let before = within(SOON, || {
        let tentative = node.run(&["ip", "-6", "address", "show", "tentative"])?;
        ensure!(tentative.trim().is_empty(), "{tentative}");
        let (before, again) = (all(&node)?, all(&node)?);
        ensure!(before == again, "this changes by itself, and proves nothing: {}", differences(&before, &again));
        Ok(before)
    })?;
    let api = node.follow(&cluster(incident, name)?)?;
    within(SOON, || {
        let told = api.node();
        let findings = told["metadata"]["annotations"]["nodevitals.dev/findings"].as_str().context("findings")?;
        ensure!(findings.contains("KubeProxyChainsUnhooked"), "{findings}");
        let log = std::fs::read_to_string(node.host.log("nodevitals"))?;
        ensure!(log.contains("evidence is kept"), "{log}");
        Ok(())
    })
    .context("it is told, and there is evidence of it")?;
    let after = all(&node)?;
    ensure!(before == after, "changed: {}", differences(&before, &after));
    only_our_own_is_written(&api.node())
}

/// Nobody is cordoned, labelled or tainted: what is on the Node are our conditions and our annotations.
fn only_our_own_is_written(node: &Value) -> Result<()> {
    let keys = |value: &Value| {
        let mut keys: Vec<String> = value.as_object().into_iter().flatten().map(|(key, _)| key.clone()).collect();
        keys.sort();
        keys
    };
    let metadata = keys(&node["metadata"]);
    ensure!(metadata == ["annotations", "creationTimestamp", "name", "resourceVersion"], "{metadata:?}");
    ensure!(keys(node) == ["apiVersion", "kind", "metadata", "status"], "{node}");
    ensure!(keys(&node["status"]) == ["conditions"], "{}", node["status"]);
    let annotations = keys(&node["metadata"]["annotations"]);
    ensure!(annotations.iter().all(|key| key.starts_with("nodevitals.dev/")), "{annotations:?}");
    let conditions = node["status"]["conditions"].as_array().context("conditions")?;
    let ours = conditions.iter().filter(|it| it["type"].as_str().is_some_and(|kind| kind.ends_with("Problem")));
    ensure!(ours.count() == conditions.len() && conditions.len() == 8, "{conditions:#?}");
    Ok(())
}

/// The lines that only one of them has.
fn differences(before: &[String], after: &[String]) -> String {
    let gone = before.iter().filter(|line| !after.contains(line)).map(|line| format!("\n- {line}"));
    let new = after.iter().filter(|line| !before.contains(line)).map(|line| format!("\n+ {line}"));
    gone.chain(new).collect()
}
