//! Links: carriers that flap, errors that are counted, and the kernel's switches of single links.

use std::net::UdpSocket;
use std::process::Stdio;
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use serde_json::Value;

use crate::machine::{Machine, program};
use crate::standalone::{Running, get, verdict};
use crate::support::netns::NetNs;
use crate::support::wait::eventually;

const SOON: Duration = Duration::from_secs(60);
/// The counters are read every ten seconds, what was seen is held for two, and judged a moment later.
const LOOK: Duration = Duration::from_secs(16);

fn standalone(machine: &Machine) -> Result<Running> {
    standalone_with(machine, &[])
}

fn standalone_with(machine: &Machine, more: &[&str]) -> Result<Running> {
    let mut command = machine.net().command(program());
    command
        .args(["standalone", "--host-root", &machine.place("")])
        .args(more)
        .stdout(Stdio::null())
        .stderr(Stdio::null());
    Ok(Running(command.spawn()?))
}

fn finding(machine: &Machine, code: &str) -> Result<Value> {
    let verdict = verdict(machine)?;
    let findings = verdict["findings"].as_array().context("findings")?;
    Ok(findings.iter().find(|finding| finding["code"] == code).cloned().unwrap_or(Value::Null))
}

fn counters_are_known(machine: &Machine) {
    eventually("the counters of the uplink are known", SOON, || {
        ensure!(get(machine, "/metrics")?.contains("nodevitals_tcp_sockets "), "not yet");
        ensure!(!verdict(machine)?["unknown"].to_string().contains("LinkErrors"), "not yet");
        Ok(())
    });
}

#[test]
fn an_uplink_flaps_and_links_to_pods_may() -> Result<()> {
    let machine = Machine::worker()?;
    machine.run(&["ip", "link", "add", "cali0123456789a", "type", "veth", "peer", "name", "pod"])?;
    machine.run(&["ip", "link", "set", "cali0123456789a", "up"])?;
    let _running = standalone(&machine)?;
    counters_are_known(&machine);
    let flap = |peer: &str| -> Result<()> {
        for state in ["down", "up", "down", "up"] {
            machine.run(&["ip", "link", "set", peer, state])?;
        }
        Ok(())
    };
    flap("pod")?;
    // The first look of a link is what growth is counted from; a flap before it is no growth.
    eventually("the uplink's flaps are told, and those of the pod are not", SOON, || {
        flap("far")?;
        let finding = finding(&machine, "LinkErrors")?;
        ensure!(
            finding["subject"] == "uplink" && finding["detail"].to_string().contains("changed its carrier"),
            "{finding}"
        );
        Ok(())
    });
    machine.run(&["ip", "link", "set", "uplink", "down"])?;
    eventually("a link that was brought down is nobody's fault", SOON, || {
        ensure!(finding(&machine, "LinkErrors")?.is_null(), "still");
        Ok(())
    });
    Ok(())
}

#[test]
fn an_uplink_counts_errors() -> Result<()> {
    let machine = Machine::worker()?;
    // The kernel cannot send what goes into this tunnel, since no way leads to its other end: each packet is an error of the link.
    let tunnel = "link add second type vxlan id 7 dstport 4789 remote 198.51.100.9";
    for line in [
        tunnel,
        "link set second up",
        "address add 203.0.113.5/24 dev second",
        "neighbour add 203.0.113.1 lladdr 02:00:00:00:00:01 dev second nud permanent",
        "route add default via 203.0.113.1 metric 500",
    ] {
        machine.run(&[&["ip"], &line.split(' ').collect::<Vec<_>>()[..]].concat())?;
    }
    let _running = standalone(&machine)?;
    counters_are_known(&machine);
    let send = |count: usize| {
        machine.net().run(|| {
            let socket = UdpSocket::bind("203.0.113.5:0")?;
            (0..count).try_for_each(|_| socket.send_to(b"hello", "203.0.113.1:9").map(drop))
        })
    };
    send(150)?;
    std::thread::sleep(LOOK);
    assert!(finding(&machine, "LinkErrors")?.is_null(), "there is a way to the other end: by the other uplink");
    machine.run(&["ip", "route", "add", "unreachable", "198.51.100.9"])?;
    eventually("the errors of the uplink are told", SOON, || {
        send(40)?;
        let finding = finding(&machine, "LinkErrors")?;
        let detail = finding["detail"].to_string();
        ensure!(finding["subject"] == "second" && detail.contains(" errors among "), "{finding}");
        Ok(())
    });
    machine.run(&["ip", "link", "set", "second", "down"])?;
    eventually("a link that was brought down is nobody's fault", SOON, || {
        ensure!(finding(&machine, "LinkErrors")?.is_null(), "still");
        Ok(())
    });
    Ok(())
}

#[test]
fn a_tunnel_with_a_strict_filter() -> Result<()> {
    let machine = Machine::worker()?;
    machine.run(&[
        "ip",
        "link",
        "add",
        "vxlan.calico",
        "type",
        "vxlan",
        "id",
        "4096",
        "dstport",
        "4789",
        "dev",
        "uplink",
    ])?;
    machine.run(&["ip", "link", "set", "vxlan.calico", "up"])?;
    machine.run(&["sysctl", "-qw", "net.ipv4.conf.all.rp_filter=0", "net.ipv4.conf.uplink.rp_filter=1"])?;
    machine.run(&["sh", "-c", "echo 1 > /proc/sys/net/ipv4/conf/vxlan.calico/rp_filter"])?;
    let checked = machine.check()?;
    let finding = checked.finding("RpFilterStrict")?;
    assert_eq!((&finding["subject"], &finding["severity"]), (&"vxlan.calico".into(), &"info".into()));
    machine.run(&["sh", "-c", "echo 2 > /proc/sys/net/ipv4/conf/vxlan.calico/rp_filter"])?;
    let checked = machine.check()?;
    assert!(checked.finding("RpFilterStrict").is_err(), "loose, and strict on the only uplink: {:?}", checked.codes());
    Ok(())
}

#[test]
fn packets_of_a_pod_that_are_too_long_for_the_uplink() -> Result<()> {
    let (machine, pod) = (Machine::worker()?, NetNs::new()?);
    machine.net().connect("cali0123456789a", &pod, "eth0")?;
    pod.exec(&["ip", "address", "add", "10.1.0.5/32", "dev", "eth0"])?;
    pod.exec(&["ip", "route", "add", "default", "dev", "eth0"])?;
    machine.run(&["sysctl", "-qw", "net.ipv4.ip_forward=1", "net.ipv4.conf.cali0123456789a.proxy_arp=1"])?;
    machine.run(&["ip", "route", "add", "10.1.0.5/32", "dev", "cali0123456789a", "scope", "link"])?;
    machine.run(&["ip", "route", "add", "10.1.1.0/26", "via", "192.0.2.6", "proto", "bird"])?;
    // The text of what is raised changes rarely; the counters are read every ten seconds.
    machine.write("config.yaml", "holdDownSeconds: {MtuMismatch: 20}")?;
    let _running = standalone_with(&machine, &["--config", &machine.place("config.yaml")])?;
    eventually("the counters are known", SOON, || {
        let unknown = verdict(&machine)?["unknown"].to_string();
        ensure!(!unknown.contains("MtuMismatch") && !unknown.contains("LinkErrors"), "not yet");
        Ok(())
    });
    machine.run(&["ip", "link", "set", "uplink", "mtu", "1400"])?;
    // UDP asks that its packets are not fragmented, to find out the MTU of the path.
    pod.run(|| UdpSocket::bind("10.1.0.5:0")?.send_to(&[0; 1450], "10.1.1.1:9"))?;
    eventually("it is told, and that it matters", SOON, || {
        let detail = finding(&machine, "MtuMismatch")?["detail"].to_string();
        ensure!(detail.contains("cali0123456789a has 1500; packets that were too long for their way"), "{detail}");
        Ok(())
    });
    machine.run(&["ip", "link", "set", "uplink", "mtu", "1500"])?;
    eventually("it is gone", SOON, || {
        ensure!(finding(&machine, "MtuMismatch")?.is_null(), "still");
        Ok(())
    });
    Ok(())
}

#[test]
fn a_second_uplink_with_a_strict_filter_drops_packets() -> Result<()> {
    let (machine, far) = (Machine::worker()?, NetNs::new()?);
    machine.net().connect("second", &far, "peer")?;
    machine.run(&["ip", "address", "add", "198.51.100.5/24", "dev", "second"])?;
    machine.run(&["ip", "route", "add", "default", "via", "198.51.100.1", "metric", "500"])?;
    machine.run(&["sysctl", "-qw", "net.ipv4.conf.all.rp_filter=0", "net.ipv4.conf.uplink.rp_filter=0"])?;
    machine.run(&["sysctl", "-qw", "net.ipv4.conf.second.rp_filter=1"])?;
    // Otherwise it would ask for the address in the name of the foreign one, and get no answer already.
    far.exec(&["sysctl", "-qw", "net.ipv4.conf.peer.arp_announce=2"])?;
    far.exec(&["ip", "address", "add", "198.51.100.1/24", "dev", "peer"])?;
    far.exec(&["ip", "address", "add", "203.0.113.9/32", "dev", "lo"])?;
    let _running = standalone(&machine)?;
    eventually("it is worth knowing", SOON, || {
        let finding = finding(&machine, "RpFilterStrict")?;
        ensure!(finding["severity"] == "info" && finding["subject"] == "second", "{finding}");
        Ok(())
    });
    eventually("and worse once packets are dropped", SOON, || {
        far.run(|| UdpSocket::bind("203.0.113.9:0")?.send_to(b"hello", "198.51.100.5:9"))?;
        let finding = finding(&machine, "RpFilterStrict")?;
        ensure!(finding["severity"] == "warning" && finding["detail"].to_string().contains("dropped"), "{finding}");
        Ok(())
    });
    machine.run(&["sysctl", "-qw", "net.ipv4.conf.second.rp_filter=2"])?;
    eventually("loose is fine", SOON, || {
        ensure!(finding(&machine, "RpFilterStrict")?.is_null(), "still");
        Ok(())
    });
    Ok(())
}

#[test]
fn switches_of_links_to_pods_and_of_bridges() -> Result<()> {
    let machine = Machine::worker()?;
    machine.write("etc/cni/net.d/10-net.conf", r#"{"cniVersion": "1.0.0", "name": "net", "type": "bridge"}"#)?;
    machine.run(&["ip", "link", "add", "cali0123456789a", "type", "veth", "peer", "name", "pod"])?;
    machine.run(&["ip", "link", "set", "cali0123456789a", "up"])?;
    let set = |key: &str, value: u8| machine.run(&["sysctl", "-qw", &format!("net.{key}={value}")]);
    set("ipv4.ip_forward", 1)?;
    set("ipv4.conf.cali0123456789a.proxy_arp", 1)?;
    assert!(machine.check()?.finding("IpForwardDisabled").is_err());
    for (switch, severity) in [("forwarding", "critical"), ("proxy_arp", "warning")] {
        set(&format!("ipv4.conf.cali0123456789a.{switch}"), 0)?;
        let checked = machine.check()?;
        let finding = checked.finding("IpForwardDisabled")?;
        assert_eq!(finding["subject"], format!("net.ipv4.conf.cali*.{switch}"));
        assert_eq!(finding["severity"], severity);
        set(&format!("ipv4.conf.cali0123456789a.{switch}"), 1)?;
        assert!(machine.check()?.finding("IpForwardDisabled").is_err());
    }
    // kube-proxy is known by its chains. The switch belongs to the namespace.
    machine.run(&["iptables-nft", "-t", "nat", "-N", "KUBE-SERVICES"])?;
    set("bridge.bridge-nf-call-iptables", 0)?;
    assert_eq!(machine.check()?.finding("IpForwardDisabled")?["subject"], "net.bridge.bridge-nf-call-iptables");
    set("bridge.bridge-nf-call-iptables", 1)?;
    assert!(machine.check()?.finding("IpForwardDisabled").is_err());
    Ok(())
}
