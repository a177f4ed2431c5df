//! Chains and hooks in both backends, on the kernel's own tables.

use anyhow::Result;

use crate::machine::{Machine, recording};

/// The recorded rules of a healthy node, in one backend.
fn healthy(restore: &str) -> Result<Machine> {
    let machine = Machine::worker()?;
    machine.feed(&["ipset", "restore"], &recording("01-healthy/ipset-save.txt")?)?;
    machine.feed(&[restore], &recording("01-healthy/iptables-nft-save.txt")?)?;
    Ok(machine)
}

const BACKENDS: [(&str, &str, &str); 2] = [
    ("iptables-nft-restore", "iptables-nft", "nf_tables"),
    ("iptables-legacy-restore", "iptables-legacy", "legacy iptables"),
];

#[test]
fn a_node_without_kube_proxy_and_calico_is_healthy() -> Result<()> {
    let checked = Machine::worker()?.check()?;
    assert!(checked.codes_like("Chains").is_empty(), "{:?}", checked.codes());
    Ok(())
}

#[test]
fn kube_proxys_jumps_are_missed_and_found_again_in_either_backend() -> Result<()> {
    for (restore, iptables, name) in BACKENDS {
        let machine = healthy(restore)?;
        assert_eq!(machine.check()?.condition("PacketFilterProblem"), ("False", "PacketFilterHealthy"), "{name}");

        let jump = ["-m", "comment", "--comment", "kubernetes service portals", "-j", "KUBE-SERVICES"];
        let delete = [&[iptables, "-t", "nat", "-D", "PREROUTING"][..], &jump].concat();
        machine.run(&delete)?;
        let checked = machine.check()?;
        let detail = checked.finding("KubeProxyChainsUnhooked")?["detail"].to_string();
        assert!(detail.contains("nat PREROUTING -> KUBE-SERVICES") && detail.contains(name), "{detail}");
        assert_eq!(checked.status, Some(2));

        machine.run(&[&[iptables, "-t", "nat", "-I", "PREROUTING"][..], &jump].concat())?;
        assert_eq!(machine.check()?.condition("PacketFilterProblem"), ("False", "PacketFilterHealthy"), "{name}");
    }
    Ok(())
}

#[test]
fn kube_proxys_chains_are_missed_in_either_backend() -> Result<()> {
    for (restore, iptables, name) in BACKENDS {
        let machine = healthy(restore)?;
        machine.run(&[
            iptables,
            "-t",
            "filter",
            "-D",
            "FORWARD",
            "-m",
            "comment",
            "--comment",
            "kubernetes forwarding rules",
            "-j",
            "KUBE-FORWARD",
        ])?;
        machine.run(&[iptables, "-t", "filter", "-F", "KUBE-FORWARD"])?;
        machine.run(&[iptables, "-t", "filter", "-X", "KUBE-FORWARD"])?;
        let checked = machine.check()?;
        let detail = checked.finding("KubeProxyChainsMissing")?["detail"].to_string();
        assert!(detail.contains("filter KUBE-FORWARD") && detail.contains(name), "{detail}");
    }
    Ok(())
}

#[test]
fn calicos_jumps_and_chains_are_missed_in_either_backend() -> Result<()> {
    for (restore, iptables, name) in BACKENDS {
        let machine = healthy(restore)?;
        machine.run(&[
            iptables,
            "-t",
            "raw",
            "-D",
            "OUTPUT",
            "-m",
            "comment",
            "--comment",
            "cali:tVnHkvAo15HuiPy0",
            "-j",
            "cali-OUTPUT",
        ])?;
        let checked = machine.check()?;
        let detail = checked.finding("CalicoChainsUnhooked")?["detail"].to_string();
        assert!(
            detail.contains("raw OUTPUT -> cali-OUTPUT") && detail.contains("policies are NOT enforced"),
            "{name}: {detail}"
        );
        let jump = ["POSTROUTING", "-m", "comment", "--comment", "cali:O3lYWMrLQYEMJtB5", "-j", "cali-POSTROUTING"];
        machine.run(&[&[iptables, "-t", "mangle", "-D"], &jump[..]].concat())?;
        let detail = machine.check()?.finding("CalicoChainsUnhooked")?["detail"].to_string();
        assert!(detail.contains("mangle POSTROUTING -> cali-POSTROUTING"), "{name}: {detail}");
        machine.run(&[iptables, "-t", "raw", "-F", "cali-OUTPUT"])?;
        machine.run(&[iptables, "-t", "raw", "-X", "cali-OUTPUT"])?;
        let checked = machine.check()?;
        let detail = checked.finding("CalicoChainsMissing")?["detail"].to_string();
        assert!(detail.contains("raw cali-OUTPUT"), "{name}: {detail}");
    }
    Ok(())
}

#[test]
fn ipv6_is_judged_where_it_is_programmed() -> Result<()> {
    let machine = healthy("iptables-nft-restore")?;
    machine.feed(&["ip6tables-nft-restore"], &recording("01-healthy/ip6tables-nft-save.txt")?)?;
    assert_eq!(machine.check()?.condition("PacketFilterProblem"), ("False", "PacketFilterHealthy"));
    machine.run(&["ip6tables-nft", "-t", "nat", "-F", "OUTPUT"])?;
    let detail = machine.check()?.finding("KubeProxyChainsUnhooked")?["detail"].to_string();
    assert!(detail.contains("IPv6") && detail.contains("nat OUTPUT -> KUBE-SERVICES"), "{detail}");
    Ok(())
}

#[test]
fn looking_does_not_load_the_legacy_tables() -> Result<()> {
    let machine = Machine::worker()?;
    let tables =
        || machine.run(&["cat", "/proc/thread-self/net/ip_tables_names", "/proc/thread-self/net/ip6_tables_names"]);
    assert_eq!(tables()?, "");
    machine.check()?;
    assert_eq!(tables()?, "", "a look has loaded legacy tables");
    Ok(())
}

#[test]
fn conntrack_fills_and_is_drained() -> Result<()> {
    let machine = Machine::worker()?;
    // The kernel tracks in a namespace once a rule asks for it.
    machine.run(&["iptables-nft", "-A", "OUTPUT", "-m", "conntrack", "--ctstate", "NEW"])?;
    let count = machine.check()?.json["snapshot"]["conntrack"]["yes"]["max"].as_u64().unwrap_or(0);
    assert!(count > 0, "the limit is read");
    // The limit belongs to the machine, so the thresholds come down instead: one percent and two.
    machine.write("limits.yaml", "limits: {conntrackNearFullPercent: 1, conntrackFullPercent: 2}")?;
    let limits = machine.place("limits.yaml");
    let flows = |from: u64, to: u64| machine.net().run(|| flows(from, to));
    flows(0, count / 100 + 50)?;
    assert_eq!(machine.check_with(&["--config", &limits])?.codes_like("Conntrack"), ["ConntrackNearFull"]);
    flows(count / 100 + 50, count * 2 / 100 + 100)?;
    assert_eq!(machine.check_with(&["--config", &limits])?.codes_like("Conntrack"), ["ConntrackFull"]);
    machine.run(&["conntrack", "-F"])?;
    assert_eq!(machine.check_with(&["--config", &limits])?.condition("PacketFilterProblem").0, "False");
    Ok(())
}

/// Makes so many flows to loopback: one datagram to each of as many addresses and ports.
fn flows(from: u64, to: u64) -> Result<()> {
    let socket = std::net::UdpSocket::bind("127.0.0.1:0")?;
    for flow in from..to {
        let [.., a, b] = (flow / 1000).to_be_bytes();
        let port = u16::try_from(flow % 1000)? + 20_000;
        // Nobody listens: the refusal comes back with the next send and does not matter.
        socket.send_to(b"x", (std::net::Ipv4Addr::new(127, 1, a, b), port)).ok();
    }
    Ok(())
}
