//! Calico's nftables mode, as Felix writes it: one table of its own for each family, with sets, and names that begin with
//! the table that iptables would have.

use std::process::Stdio;
use std::thread::sleep;
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use serde_json::Value;

use crate::machine::{Machine, program};
use crate::standalone::{Running, verdict};
use crate::support::wait::eventually;

const SOON: Duration = Duration::from_secs(90);

/// Hooks, the masquerading of pods with its sets, and the rule for packets of IP-in-IP.
const CALICO: &str = r#"
table ip calico {
    set cali40masq-ipam-pools { type ipv4_addr; flags interval; elements = { 10.1.0.0/16 }; }
    set cali40all-ipam-pools { type ipv4_addr; flags interval; elements = { 10.1.0.0/16 }; }
    set cali40all-hosts-net { type ipv4_addr; flags interval; elements = { 192.0.2.5, 192.0.2.6 }; }
    set cali40s-5DYuSn5tLWFQtZEUUL-THHn { type ipv4_addr; flags interval; }
    map filter-cali-from-wl-dispatch { type ifname : verdict; }
    chain filter-cali-wl-to-host { }
    chain filter-cali-INPUT {
        ip protocol 4 ip saddr @cali40all-hosts-net counter accept
        iifname "cali*" counter goto filter-cali-wl-to-host
        meta mark & 0x00010000 == 0x00010000 counter accept
        jump filter-cali-from-host-endpoint
    }
    chain filter-cali-FORWARD { iifname vmap @filter-cali-from-wl-dispatch; }
    chain filter-cali-OUTPUT { jump filter-cali-to-host-endpoint; }
    chain filter-cali-from-host-endpoint { }
    chain filter-cali-to-host-endpoint { }
    chain raw-cali-from-host-endpoint { }
    chain raw-cali-to-host-endpoint { }
    chain nat-cali-nat-outgoing {
        ip saddr @cali40masq-ipam-pools ip daddr != @cali40all-ipam-pools counter masquerade fully-random
    }
    chain nat-cali-POSTROUTING { jump nat-cali-nat-outgoing; }
    chain filter-INPUT { type filter hook input priority 0; policy accept; counter jump filter-cali-INPUT; }
    chain filter-FORWARD { type filter hook forward priority 0; policy accept; counter jump filter-cali-FORWARD; }
    chain filter-OUTPUT { type filter hook output priority 0; policy accept; counter jump filter-cali-OUTPUT; }
    chain nat-POSTROUTING { type nat hook postrouting priority 100; policy accept; counter jump nat-cali-POSTROUTING; }
}
"#;

/// A host endpoint on the uplink without policies. Felix writes ports in braces.
const HOST_ENDPOINT: &str = r#"
table ip calico {
    chain filter-cali-failsafe-in {
        meta l4proto tcp tcp dport { 22 } counter accept
        meta l4proto tcp tcp dport { 10250 } counter accept
    }
    chain filter-cali-failsafe-out {
        meta l4proto udp udp dport { 53 } counter accept
        meta l4proto tcp tcp dport { 6443 } counter accept
    }
    chain filter-cali-fh-uplink {
        ct state established,related counter accept
        ct state invalid counter drop
        counter jump filter-cali-failsafe-in
        counter meta mark set mark & 0xfffcffff
        counter drop comment "Drop if no profiles matched"
    }
    chain filter-cali-th-uplink {
        ct state established,related counter accept
        ct state invalid counter drop
        counter jump filter-cali-failsafe-out
        counter meta mark set mark & 0xfffcffff
        counter drop comment "Drop if no profiles matched"
    }
    chain filter-cali-from-host-endpoint { iifname "uplink" counter goto filter-cali-fh-uplink; }
    chain filter-cali-to-host-endpoint { oifname "uplink" counter goto filter-cali-th-uplink; }
}
"#;

fn worker() -> Result<Machine> {
    let machine = Machine::worker()?;
    let kubeconfig = "clusters: [{name: c, cluster: {server: 'https://192.0.2.9:6443'}}]\n\
        contexts: [{name: x, context: {cluster: c, user: u}}]\ncurrent-context: x\nusers: [{name: u, user: {}}]\n";
    machine.write("etc/kubernetes/kubelet.conf", kubeconfig)?;
    nft(&machine, CALICO)?;
    Ok(machine)
}

fn nft(machine: &Machine, text: &str) -> Result<()> {
    machine.feed(&["nft", "-f", "-"], text)?;
    Ok(())
}

/// There is nothing of this code, because it looked and not because it could not.
fn silent(machine: &Machine, code: &str) -> Result<()> {
    let checked = machine.check()?;
    assert_eq!(checked.json["expected"]["calico"], "nftables");
    assert!(checked.codes_like(code).is_empty(), "{:?}", checked.finding(code));
    assert!(checked.unknown().iter().all(|(unknown, _)| *unknown != code), "{:?}", checked.unknown());
    Ok(())
}

fn detail(machine: &Machine, code: &str) -> Result<String> {
    Ok(machine.check()?.finding(code)?["detail"].to_string())
}

#[test]
fn sets_of_pools_and_nodes_are_missed_and_found_again() -> Result<()> {
    const CODE: &str = "IpSetMissing";
    let machine = worker()?;
    silent(&machine, CODE)?;
    let empty = "is empty though rules look into it";
    for (set, elements) in [
        ("cali40masq-ipam-pools", "10.1.0.0/16"),
        ("cali40all-ipam-pools", "10.1.0.0/16"),
        ("cali40all-hosts-net", "192.0.2.5, 192.0.2.6"),
    ] {
        nft(&machine, &format!("flush set ip calico {set}"))?;
        let detail = detail(&machine, CODE)?;
        assert!(detail.contains(&format!("The set {set} {empty}")), "{detail}");
        nft(&machine, &format!("add element ip calico {set} {{ {elements} }}"))?;
        silent(&machine, CODE)?;
    }
    // The end of an interval that never began stays behind.
    nft(&machine, "delete element ip calico cali40masq-ipam-pools { 10.1.0.0/16 }")?;
    assert!(detail(&machine, CODE)?.contains("cali40masq-ipam-pools is empty"));
    // Without pools that are masqueraded Felix writes no rule that looks into it.
    nft(&machine, "flush chain ip calico nat-cali-nat-outgoing")?;
    silent(&machine, CODE)
}

#[test]
fn jumps_and_chains_are_missed_and_found_again() -> Result<()> {
    const UNHOOKED: &str = "CalicoChainsUnhooked";
    const MISSING: &str = "CalicoChainsMissing";
    let machine = worker()?;
    silent(&machine, UNHOOKED)?;
    silent(&machine, MISSING)?;
    for (base, chain) in [("filter-FORWARD", "filter-cali-FORWARD"), ("nat-POSTROUTING", "nat-cali-POSTROUTING")] {
        nft(&machine, &format!("flush chain ip calico {base}"))?;
        let told = detail(&machine, UNHOOKED)?;
        assert!(told.contains(&format!("calico {base} -> {chain}")) && told.contains("NOT enforced"), "{told}");
        silent(&machine, MISSING)?;
        nft(&machine, &format!("add rule ip calico {base} counter jump {chain}"))?;
        silent(&machine, UNHOOKED)?;
    }
    // Where Felix has written a chain it has also written the jump to it.
    nft(&machine, "add chain ip calico raw-PREROUTING { type filter hook prerouting priority -300; }")?;
    silent(&machine, UNHOOKED)?;
    nft(&machine, "add chain ip calico raw-cali-PREROUTING")?;
    assert!(detail(&machine, UNHOOKED)?.contains("calico raw-PREROUTING -> raw-cali-PREROUTING"));
    nft(&machine, "add rule ip calico raw-PREROUTING counter jump raw-cali-PREROUTING")?;
    silent(&machine, UNHOOKED)?;
    nft(&machine, "flush chain ip calico filter-OUTPUT\ndelete chain ip calico filter-cali-OUTPUT")?;
    let told = detail(&machine, MISSING)?;
    assert!(told.contains("calico filter-cali-OUTPUT") && told.contains("NOT enforced"), "{told}");
    let back = "add chain ip calico filter-cali-OUTPUT { jump filter-cali-to-host-endpoint; }\n\
        add rule ip calico filter-OUTPUT counter jump filter-cali-OUTPUT";
    nft(&machine, back)?;
    silent(&machine, MISSING)?;
    silent(&machine, UNHOOKED)
}

#[test]
fn a_failsafe_port_that_is_taken_away_is_told_and_found_again() -> Result<()> {
    const CODE: &str = "HostPolicyBlocksControlPlane";
    let machine = worker()?;
    silent(&machine, CODE)?;
    nft(&machine, HOST_ENDPOINT)?;
    silent(&machine, CODE)?;
    let failsafe = |ports: &[&str]| {
        let rule = |port: &&str| format!("add rule ip calico filter-cali-failsafe-out {port} counter accept\n");
        let rules: String = ports.iter().map(rule).collect();
        nft(&machine, &format!("flush chain ip calico filter-cali-failsafe-out\n{rules}"))
    };
    failsafe(&["udp dport 53", "tcp dport 2379"])?;
    let told = detail(&machine, CODE)?;
    let what = "the API server 192.0.2.9 port 6443 (IPv4): dropped by Calico's chain filter-cali-th-uplink";
    assert!(told.contains(what), "{told}");
    // A policy that accepts by its mark, whatever its conditions; and one for another port.
    let policy = |rule: &str| {
        let at = "add rule ip calico filter-cali-po-allow";
        nft(
            &machine,
            &format!("flush chain ip calico filter-cali-po-allow\n{at} {rule} counter meta mark set mark | 0x10000\n"),
        )
    };
    nft(&machine, "add chain ip calico filter-cali-po-allow")?;
    policy("ip daddr @cali40all-hosts-net tcp dport { 443, 6443 }")?;
    assert!(detail(&machine, CODE)?.contains(what), "nothing leads to it");
    let chain = machine.run(&["nft", "-a", "list", "chain", "ip", "calico", "filter-cali-th-uplink"])?;
    let last = chain.lines().find(|line| line.contains("no profiles matched")).and_then(|line| line.rsplit(' ').next());
    let handle = last.unwrap_or_default();
    nft(
        &machine,
        &format!(
            "insert rule ip calico filter-cali-th-uplink position {handle} meta mark & 0x20000 == 0 counter jump filter-cali-po-allow\n\
             insert rule ip calico filter-cali-th-uplink position {handle} meta mark & 0x10000 == 0x10000 counter return\n"
        ),
    )?;
    silent(&machine, CODE)?;
    policy("tcp dport 443")?;
    assert!(detail(&machine, CODE)?.contains(what));
    failsafe(&["udp dport { 53 }", "tcp dport { 2379, 6443 }"])?;
    silent(&machine, CODE)
}

/// The program, running; what it has raised is in its log.
fn watch(machine: &Machine) -> Result<Running> {
    let mut command = machine.net().command(program());
    command.args(["standalone", "--host-root", &machine.place("")]).stdout(Stdio::null());
    command.stderr(std::fs::File::create(machine.path("log"))?);
    let running = Running(command.spawn()?);
    eventually("everything is looked at", SOON, || {
        let unknown = verdict(machine)?["unknown"].to_string();
        ensure!(!unknown.contains("IpSetMissing") && !unknown.contains("CalicoChains"), "{unknown}");
        Ok(())
    });
    Ok(running)
}

#[test]
fn felix_writes_everything_again_and_nothing_is_raised() -> Result<()> {
    let machine = worker()?;
    nft(&machine, HOST_ENDPOINT)?;
    let _running = watch(&machine)?;
    for round in 0..10 {
        // In one transaction, as Felix does when it starts.
        nft(&machine, &format!("delete table ip calico\n{CALICO}\n{HOST_ENDPOINT}"))?;
        // And its updates of sets, which are commits of their own.
        nft(&machine, &format!("add element ip calico cali40all-hosts-net {{ 192.0.2.{} }}", 20 + round))?;
        sleep(Duration::from_millis(300));
    }
    let log = std::fs::read_to_string(machine.path("log"))?;
    let ours = ["CalicoChains", "IpSet", "HostPolicy", "TablesFlushed", "ForwardPolicy", "ForeignDrop"];
    let raised: Vec<_> = log.lines().filter(|line| line.contains("finding raised")).collect();
    assert!(!raised.is_empty(), "the log tells what is raised: {log}");
    let raised: Vec<_> = raised.iter().filter(|line| ours.iter().any(|code| line.contains(code))).collect();
    assert!(raised.is_empty(), "{raised:#?}");
    Ok(())
}

#[test]
fn programs_of_the_ebpf_dataplane_are_missed_and_found_again() -> Result<()> {
    const CODE: &str = "CalicoChainsUnhooked";
    let machine = Machine::worker()?;
    let plugins = r#"{"name": "k8s-pod-network", "cniVersion": "0.3.1", "plugins": [{"type": "calico"}]}"#;
    machine.write("etc/cni/net.d/10-calico.conflist", plugins)?;
    machine.run(&["ip", "link", "add", "bpfin.cali", "type", "veth", "peer", "name", "bpfout.cali"])?;
    let tc =
        |words: &str, more: &[&str]| machine.run(&[&["tc"][..], &words.split(' ').collect::<Vec<_>>(), more].concat());
    let attach = |link: &str, direction: &str| {
        tc(&format!("filter add dev {link} {direction} bpf da bytecode"), &["1,6 0 0 0"]).map(drop)
    };
    for pod in ["cali1", "cali2"] {
        machine.run(&["ip", "link", "add", pod, "type", "veth", "peer", "name", &format!("in-{pod}")])?;
        machine.run(&["ip", "link", "set", pod, "up"])?;
        tc(&format!("qdisc add dev {pod} clsact"), &[])?;
        attach(pod, "ingress")?;
        attach(pod, "egress")?;
    }
    let _running = watch(&machine)?;
    let finding = || -> Result<Value> {
        let verdict = verdict(&machine)?;
        let findings = verdict["findings"].as_array().context("findings")?;
        Ok(findings.iter().find(|finding| finding["code"] == CODE).cloned().unwrap_or(Value::Null))
    };
    ensure!(finding()?.is_null(), "{}", finding()?);
    tc("filter del dev cali2 ingress", &[])?;
    eventually("it is told", SOON, || {
        let detail = finding()?["detail"].to_string();
        ensure!(detail.contains("policies are NOT enforced: cali2 (in)"), "{detail}");
        Ok(())
    });
    attach("cali2", "ingress")?;
    eventually("it is gone", SOON, || {
        ensure!(finding()?.is_null(), "still");
        Ok(())
    });
    Ok(())
}
