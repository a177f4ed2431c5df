//! The packet filter as it is changed: who removed what, sets of addresses, host endpoints, and the lock of iptables. On the
//! kernel's own tables; what needs the kernel's notifications is asked of a process that watches.

use std::process::{Child, Stdio};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use serde_json::Value;

use crate::machine::{Machine, program, recording};
use crate::support::wait::eventually;

const SOON: Duration = Duration::from_secs(30);

/// A process that ends with this value.
struct Running<'a>(Child, &'a Machine);

impl Drop for Running<'_> {
    fn drop(&mut self) {
        // It may have ended by itself.
        self.0.kill().ok();
        self.0.wait().ok();
    }
}

impl<'a> Running<'a> {
    /// `nodevitals standalone` on this machine, after its first verdict.
    fn start(machine: &'a Machine) -> Result<Self> {
        let mut command = machine.net().command(program());
        command.args(["standalone", "--host-root", &machine.place("")]).stdout(Stdio::null()).stderr(Stdio::null());
        let running = Running(command.spawn()?, machine);
        eventually("the first verdict", SOON, || {
            ensure!(!running.findings()?["verdict"].is_null(), "none yet");
            Ok(())
        });
        Ok(running)
    }

    fn findings(&self) -> Result<Value> {
        let page = self.1.run(&["curl", "-sf", "-m", "5", "http://127.0.0.1:10580/findings"])?;
        Ok(serde_json::from_str(&page)?)
    }

    /// The detail of the raised finding with this code.
    fn detail(&self, code: &str) -> Result<String> {
        let page = self.findings()?;
        let findings = page["verdict"]["findings"].as_array().context("findings")?;
        let finding = findings.iter().find(|finding| finding["code"] == code);
        let finding = finding.with_context(|| format!("no {code} in {page}"))?;
        Ok(finding["detail"].as_str().context("a text")?.to_owned())
    }

    /// Waits until the finding is raised, and says what it says.
    fn raised(&self, code: &str) -> String {
        let mut said = String::new();
        eventually(code, SOON, || {
            said = self.detail(code)?;
            Ok(())
        });
        said
    }

    /// Waits until the finding is gone.
    fn cleared(&self, code: &str) {
        eventually(&format!("{code} is over"), SOON, || {
            ensure!(self.detail(code).is_err(), "not yet");
            self.findings().map(|_| ())
        });
    }
}

/// The recorded rules of a healthy node.
fn healthy() -> Result<Machine> {
    let machine = Machine::worker()?;
    machine.feed(&["ipset", "restore"], &recording("01-healthy/ipset-save.txt")?)?;
    machine.feed(&["iptables-nft-restore"], &recording("01-healthy/iptables-nft-save.txt")?)?;
    Ok(machine)
}

#[test]
fn the_finding_names_who_removed_the_jump_and_not_who_came_later() -> Result<()> {
    let machine = healthy()?;
    let running = Running::start(&machine)?;
    let jump = ["-m", "comment", "--comment", "kubernetes service portals", "-j", "KUBE-SERVICES"];
    machine.run(&[&["iptables-nft", "-t", "nat", "-D", "PREROUTING"][..], &jump].concat())?;
    let said = running.raised("KubeProxyChainsUnhooked");
    assert!(
        said.contains("nat PREROUTING -> KUBE-SERVICES; removed at ") && said.contains(" by iptables-nft (pid "),
        "{said}"
    );

    // kube-proxy writes its other chains again, by another program; so does Calico lose something to a third.
    machine.feed(&["nft", "-f", "-"], "add rule ip nat KUBE-MARK-MASQ counter\n")?;
    let hook = ["-m", "comment", "--comment", "cali:tVnHkvAo15HuiPy0", "-j", "cali-OUTPUT"];
    let (delete, noflush) = (format!("*raw\n-D OUTPUT {}\nCOMMIT\n", hook.join(" ")), "--noflush");
    machine.feed(&["iptables-nft-restore", noflush], &delete)?;
    let calico = running.raised("CalicoChainsUnhooked");
    assert!(
        calico.contains("raw OUTPUT -> cali-OUTPUT; removed at ") && calico.contains(" iptables-nft-re (pid "),
        "{calico}"
    );
    assert_eq!(running.raised("KubeProxyChainsUnhooked"), said);

    machine.run(&[&["iptables-nft", "-t", "nat", "-I", "PREROUTING"][..], &jump].concat())?;
    machine.run(&[&["iptables-nft", "-t", "raw", "-I", "OUTPUT"][..], &hook].concat())?;
    running.cleared("KubeProxyChainsUnhooked");
    running.cleared("CalicoChainsUnhooked");
    Ok(())
}

#[test]
fn what_is_removed_while_notifications_are_lost_is_missed_too() -> Result<()> {
    let machine = healthy()?;
    let running = Running::start(&machine)?;
    let own = Pid::from_raw(running.0.id().try_into()?);
    // Nobody reads meanwhile, and each of these is a commit: more of them than its socket holds.
    kill(own, Signal::SIGSTOP)?;
    let flood: Vec<String> = (0..1_500).map(|number| format!("*raw\n:loss-{number} - [0:0]\nCOMMIT\n")).collect();
    machine.feed(&["iptables-nft-restore", "--noflush"], &flood.concat())?;
    let jump = ["-m", "comment", "--comment", "kubernetes service portals", "-j", "KUBE-SERVICES"];
    machine.run(&[&["iptables-nft", "-t", "nat", "-D", "PREROUTING"][..], &jump].concat())?;
    // `netlink_seq_show` of net/netlink/af_netlink.c: the protocol, of which 12 is NETLINK_NETFILTER, and what was dropped.
    let sockets = machine.run(&["cat", "/proc/net/netlink"])?;
    let rows: Vec<Vec<&str>> = sockets.lines().map(|line| line.split_whitespace().collect()).collect();
    ensure!(rows.iter().any(|row| row.get(1) == Some(&"12") && row.get(8).is_some_and(|it| *it != "0")), "{sockets}");
    kill(own, Signal::SIGCONT)?;
    let said = running.raised("KubeProxyChainsUnhooked");
    assert!(said.contains("nat PREROUTING -> KUBE-SERVICES"), "{said}");
    machine.run(&[&["iptables-nft", "-t", "nat", "-I", "PREROUTING"][..], &jump].concat())?;
    running.cleared("KubeProxyChainsUnhooked");
    Ok(())
}

#[test]
fn a_flushed_rule_set_names_who_flushed_it() -> Result<()> {
    let machine = healthy()?;
    let running = Running::start(&machine)?;
    machine.run(&["nft", "flush", "ruleset"])?;
    let said = running.raised("KubeProxyChainsMissing");
    assert!(said.contains("; removed at ") && said.contains(" by nft (pid "), "{said}");
    for code in ["CalicoChainsMissing", "TablesFlushed"] {
        let said = running.raised(code);
        assert!(said.contains("; removed at ") && said.contains(" by nft (pid "), "{said}");
    }
    machine.feed(&["iptables-nft-restore"], &recording("01-healthy/iptables-nft-save.txt")?)?;
    running.cleared("KubeProxyChainsMissing");
    running.cleared("CalicoChainsMissing");
    Ok(())
}

#[test]
fn a_jump_of_legacy_iptables_is_missed_at_once_though_the_kernel_tells_nobody() -> Result<()> {
    let machine = Machine::worker()?;
    machine.write("run/xtables.lock", "")?;
    let lock = format!("XTABLES_LOCKFILE={}", machine.place("run/xtables.lock"));
    machine.feed(&["ipset", "restore"], &recording("01-healthy/ipset-save.txt")?)?;
    machine.feed(&["env", &lock, "iptables-legacy-restore"], &recording("01-healthy/iptables-nft-save.txt")?)?;
    let running = Running::start(&machine)?;
    let jump = ["-m", "comment", "--comment", "kubernetes service portals", "-j", "KUBE-SERVICES"];
    let change = |how: &str| {
        machine.run(&[&["env", &lock, "iptables-legacy", "-t", "nat", how, "PREROUTING"][..], &jump].concat())
    };
    for _ in 0..2 {
        change("-D")?;
        let began = Instant::now();
        let said = running.raised("KubeProxyChainsUnhooked");
        assert!(said.ends_with("nat PREROUTING -> KUBE-SERVICES"), "{said}");
        assert!(began.elapsed() < Duration::from_secs(15), "it did not wait for its period: {:?}", began.elapsed());
        change("-I")?;
        running.cleared("KubeProxyChainsUnhooked");
    }
    Ok(())
}

#[test]
fn calicos_pools_are_missed_in_their_set_and_found_again() -> Result<()> {
    for restore in ["iptables-nft-restore", "iptables-legacy-restore"] {
        let machine = Machine::worker()?;
        machine.feed(&["ipset", "restore"], &recording("01-healthy/ipset-save.txt")?)?;
        machine.feed(&[restore], &recording("01-healthy/iptables-nft-save.txt")?)?;
        let checked = machine.check()?;
        assert!(checked.codes_like("IpSet").is_empty(), "{:?}", checked.codes());
        assert!(checked.unknown().iter().all(|(code, _)| *code != "IpSetMissing"), "{:?}", checked.unknown());
        machine.run(&["ipset", "flush", "cali40masq-ipam-pools"])?;
        let checked = machine.check()?;
        let detail = checked.finding("IpSetMissing")?["detail"].to_string();
        assert!(detail.contains("cali40masq-ipam-pools is empty"), "{detail}");
        assert_eq!(checked.condition("PacketFilterProblem"), ("True", "IpSetMissing"));
        machine.run(&["ipset", "add", "cali40masq-ipam-pools", "172.30.0.0/16"])?;
        assert!(machine.check()?.codes_like("IpSet").is_empty());
        // A selector that no pod matches is no fault.
        machine.run(&["ipset", "flush", "cali40s:5DYuSn5tLWFQtZEUUL-THHn"])?;
        assert!(machine.check()?.codes_like("IpSet").is_empty());
    }
    Ok(())
}

#[test]
fn the_set_of_all_cluster_ips_is_missed_in_ipvs_mode() -> Result<()> {
    let machine = Machine::worker()?;
    machine.run(&["ip", "link", "add", "kube-ipvs0", "type", "veth", "peer", "name", "ipvs-peer"])?;
    machine.run(&["ip", "address", "add", "10.96.0.1/32", "dev", "kube-ipvs0"])?;
    machine.run(&["ipset", "create", "KUBE-CLUSTER-IP", "hash:ip,port"])?;
    machine.run(&["ipset", "add", "KUBE-CLUSTER-IP", "10.96.0.1,tcp:443"])?;
    let rules = "*filter\n:KUBE-FORWARD - [0:0]\n:KUBE-NODE-PORT - [0:0]\n\
        -A FORWARD -j KUBE-FORWARD\n-A INPUT -j KUBE-NODE-PORT\nCOMMIT\n\
        *nat\n:KUBE-SERVICES - [0:0]\n:KUBE-POSTROUTING - [0:0]\n:KUBE-MARK-MASQ - [0:0]\n:KUBE-NODE-PORT - [0:0]\n\
        -A PREROUTING -j KUBE-SERVICES\n-A OUTPUT -j KUBE-SERVICES\n-A POSTROUTING -j KUBE-POSTROUTING\n\
        -A KUBE-SERVICES -m set --match-set KUBE-CLUSTER-IP dst,dst -j ACCEPT\nCOMMIT\n";
    machine.feed(&["iptables-nft-restore"], rules)?;
    assert_eq!(machine.check()?.condition("PacketFilterProblem").0, "False");
    machine.run(&["ipset", "flush", "KUBE-CLUSTER-IP"])?;
    let detail = machine.check()?.finding("IpSetMissing")?["detail"].to_string();
    assert!(detail.contains("KUBE-CLUSTER-IP is empty"), "{detail}");
    machine.run(&["iptables-nft", "-t", "nat", "-F", "KUBE-SERVICES"])?;
    machine.run(&["ipset", "destroy", "KUBE-CLUSTER-IP"])?;
    let detail = machine.check()?.finding("IpSetMissing")?["detail"].to_string();
    assert!(detail.contains("KUBE-CLUSTER-IP does not exist"), "{detail}");
    // The mode is known by its chains when its link is gone.
    machine.run(&["ip", "link", "delete", "kube-ipvs0"])?;
    machine.run(&["iptables-nft", "-D", "INPUT", "-j", "KUBE-NODE-PORT"])?;
    let checked = machine.check()?;
    let detail = checked.finding("KubeProxyChainsUnhooked")?["detail"].to_string();
    assert!(detail.contains("filter INPUT -> KUBE-NODE-PORT"), "{detail}");
    assert!(checked.finding("KubeProxyChainsMissing").is_err(), "{:?}", checked.codes());
    Ok(())
}

#[test]
fn a_lock_that_is_kept_is_told_with_its_holder_and_cleared() -> Result<()> {
    let machine = Machine::worker()?;
    // Of the test's own: the machine's lock is never touched.
    machine.run(&["mount", "-t", "tmpfs", "lock", &machine.place("run")])?;
    let lock = machine.place("run/xtables.lock");
    machine.run(&["env", &format!("XTABLES_LOCKFILE={lock}"), "iptables-legacy", "-N", "KUBE-FORWARD"])?;
    let checked = machine.check()?;
    assert!(checked.json["snapshot"]["xtablesLock"]["yes"].is_object(), "{}", checked.json["snapshot"]["xtablesLock"]);
    assert!(checked.codes_like("Lock").is_empty(), "{:?}", checked.codes());
    assert!(checked.unknown().iter().all(|(code, _)| *code != "IptablesLockContention"), "{:?}", checked.unknown());

    let hold = || machine.net().command("flock").args(["-F", &lock, "sleep", "600"]).spawn();
    let holder = Running(hold()?, &machine);
    let detail = eventually("the holder is told", SOON, || {
        Ok(machine.check()?.finding("IptablesLockContention")?["detail"].to_string())
    });
    assert!(detail.contains(&format!("(pid {}) holds /run/xtables.lock", holder.0.id())), "{detail}");
    assert!(detail.contains("sleep (pid") && !detail.contains("wait"), "{detail}");
    let waiter = Running(hold()?, &machine);
    eventually("who waits is counted", SOON, || {
        let detail = machine.check()?.finding("IptablesLockContention")?["detail"].to_string();
        ensure!(detail.contains("1 process waits for it"), "{detail}");
        Ok(())
    });
    drop(waiter);
    drop(holder);
    eventually("it is free again", SOON, || {
        ensure!(machine.check()?.codes_like("Lock").is_empty(), "not yet");
        Ok(())
    });
    Ok(())
}

/// A host endpoint on the uplink without policies, as Felix writes it.
const HOST_ENDPOINT: &str = "*filter
:cali-fh-uplink - [0:0]
:cali-th-uplink - [0:0]
:cali-failsafe-in - [0:0]
:cali-failsafe-out - [0:0]
-A cali-from-host-endpoint -i uplink -g cali-fh-uplink
-A cali-to-host-endpoint -o uplink -g cali-th-uplink
-A cali-fh-uplink -m conntrack --ctstate RELATED,ESTABLISHED -j ACCEPT
-A cali-fh-uplink -m conntrack --ctstate INVALID -j DROP
-A cali-fh-uplink -j cali-failsafe-in
-A cali-fh-uplink -j MARK --set-xmark 0x0/0x30000
-A cali-fh-uplink -m comment --comment \"Drop if no profiles matched\" -j DROP
-A cali-th-uplink -m conntrack --ctstate RELATED,ESTABLISHED -j ACCEPT
-A cali-th-uplink -m conntrack --ctstate INVALID -j DROP
-A cali-th-uplink -j cali-failsafe-out
-A cali-th-uplink -j MARK --set-xmark 0x0/0x30000
-A cali-th-uplink -m comment --comment \"Drop if no profiles matched\" -j DROP
-A cali-failsafe-in -p tcp -m multiport --dports 22 -j ACCEPT
-A cali-failsafe-in -p tcp -m multiport --dports 10250 -j ACCEPT
-A cali-failsafe-out -p udp -m multiport --dports 53 -j ACCEPT
-A cali-failsafe-out -p tcp -m multiport --dports 6443 -j ACCEPT
COMMIT
";

#[test]
fn a_failsafe_port_that_is_taken_away_is_told_and_found_again_in_either_backend() -> Result<()> {
    const CODE: &str = "HostPolicyBlocksControlPlane";
    for (iptables, restore) in
        [("iptables-nft", "iptables-nft-restore"), ("iptables-legacy", "iptables-legacy-restore")]
    {
        let machine = Machine::worker()?;
        let kubeconfig = "clusters: [{name: c, cluster: {server: 'https://192.0.2.9:6443'}}]\n\
            contexts: [{name: x, context: {cluster: c, user: u}}]\ncurrent-context: x\nusers: [{name: u, user: {}}]\n";
        machine.write("etc/kubernetes/kubelet.conf", kubeconfig)?;
        machine.feed(&["ipset", "restore"], &recording("01-healthy/ipset-save.txt")?)?;
        machine.feed(&[restore], &recording("01-healthy/iptables-nft-save.txt")?)?;
        assert!(machine.check()?.codes_like(CODE).is_empty(), "no host endpoint");
        machine.feed(&[restore, "--noflush"], HOST_ENDPOINT)?;
        let checked = machine.check()?;
        assert!(checked.codes_like(CODE).is_empty(), "{:?}", checked.finding(CODE));
        assert!(checked.unknown().iter().all(|(code, _)| *code != CODE), "{:?}", checked.unknown());

        let port = |how: &str| {
            let rule = ["-p", "tcp", "-m", "multiport", "--dports", "6443", "-j", "ACCEPT"];
            machine.run(&[&[iptables, how, "cali-failsafe-out"][..], &rule].concat())
        };
        port("-D")?;
        machine.run(&["sh", "-c", "curl -s -m 1 https://192.0.2.9:6443; true"])?;
        let checked = machine.check()?;
        let finding = checked.finding(CODE)?;
        let detail = finding["detail"].to_string();
        assert!(
            detail.contains("the API server 192.0.2.9 port 6443 (IPv4): dropped by Calico's chain cali-th-uplink"),
            "{detail}"
        );
        assert!(detail.contains(" packets so far)"), "{detail}");
        assert_eq!(finding["severity"], "critical", "{finding}");

        // A policy that accepts it: its set may hold the address.
        let policy = "*filter\n:cali-po-allow - [0:0]\n\
            -A cali-po-allow -p tcp -m set --match-set cali40this-host dst -m multiport --dports 6443 -j MARK --set-xmark 0x10000/0x10000\n\
            -I cali-th-uplink 5 -m mark --mark 0x0/0x20000 -j cali-po-allow\n\
            -I cali-th-uplink 6 -m mark --mark 0x10000/0x10000 -j RETURN\nCOMMIT\n";
        machine.feed(&[restore, "--noflush"], policy)?;
        assert!(machine.check()?.codes_like(CODE).is_empty());
        machine.run(&[iptables, "-F", "cali-po-allow"])?;
        machine.check()?.finding(CODE)?;
        port("-A")?;
        assert!(machine.check()?.codes_like(CODE).is_empty());
        others_than_the_api_servers(&machine, iptables, restore)?;
    }
    Ok(())
}

/// The ports of the kubelet, of BGP where BIRD runs, and of names.
fn others_than_the_api_servers(machine: &Machine, iptables: &str, restore: &str) -> Result<()> {
    let bird = machine.place("bird");
    machine.run(&["cp", "/bin/sleep", &bird])?;
    let _bird = Running(machine.net().command(&bird).arg("600").spawn()?, machine);
    let told = || -> Result<Vec<(String, String)>> {
        let checked = machine.check()?;
        let text = |value: &Value| value.as_str().unwrap_or_default().to_owned();
        let findings = checked.json["verdict"]["findings"].as_array().context("findings")?;
        let findings = findings.iter().filter(|it| it["code"] == "HostPolicyBlocksControlPlane");
        let mut told: Vec<_> = findings.map(|it| (text(&it["subject"]), text(&it["detail"]))).collect();
        told.sort();
        Ok(told)
    };
    let ports = [("cali-failsafe-in", "tcp", "10250"), ("cali-failsafe-out", "udp", "53")];
    for (chain, protocol, port) in ports {
        machine.run(&[iptables, "-D", chain, "-p", protocol, "-m", "multiport", "--dports", port, "-j", "ACCEPT"])?;
    }
    // A packet that goes out, for the counter of the rule that drops it.
    machine.run(&["bash", "-c", "echo x > /dev/udp/192.0.2.9/53; true"])?;
    eventually("all three are told, once BIRD is seen", SOON, || {
        let all = told()?;
        let subjects: Vec<&str> = all.iter().map(|it| it.0.as_str()).collect();
        ensure!(subjects == ["BGP IPv4", "DNS IPv4", "kubelet IPv4"], "{all:?}");
        for ((_, detail), words) in all.iter().zip(["port 179", "UDP port 53", "port 10250"]) {
            ensure!(detail.contains(words), "{detail}");
        }
        ensure!(all[1].1.contains(" packets so far)"), "{all:?}");
        Ok(())
    });
    for (chain, protocol, port) in ports {
        let rule = format!("*filter\n-A {chain} -p {protocol} -m multiport --dports {port} -j ACCEPT\nCOMMIT\n");
        machine.feed(&[restore, "--noflush"], &rule)?;
    }
    let bgp = "*filter\n-A cali-failsafe-in -p tcp -m multiport --dports 179 -j ACCEPT\nCOMMIT\n";
    machine.feed(&[restore, "--noflush"], bgp)?;
    ensure!(told()?.is_empty(), "they clear, and one direction is enough for BGP: {:?}", told()?);
    Ok(())
}
