//! Routes, rules and policies that somebody adds or takes away, seen by the program itself.

use std::fmt::Write as _;
use std::process::{Child, Stdio};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use serde_json::Value;

use crate::machine::{Checked, Machine, program};
use crate::support::wait::eventually;

const SOON: Duration = Duration::from_secs(30);

/// A worker with Calico's routes: its own block, and two other nodes.
fn worker() -> Result<Machine> {
    let machine = Machine::worker()?;
    machine.run(&["sysctl", "-qw", "net.ipv4.ip_forward=1", "net.ipv6.conf.all.forwarding=1"])?;
    let plugins = r#"{"name": "k8s-pod-network", "cniVersion": "0.3.1", "plugins": [{"type": "calico"}]}"#;
    machine.write("etc/cni/net.d/10-calico.conflist", plugins)?;
    for line in [
        "link add cali1 type veth peer name pod1",
        "link set pod1 up",
        "link set cali1 up",
        "route add 10.1.0.5/32 dev cali1 scope link metric 1024",
        "route add blackhole 10.1.0.0/26 proto bird",
        "route add 10.1.1.0/26 via 192.0.2.6 proto bird metric 1024",
        "route add 10.1.2.0/26 via 192.0.2.7 proto bird metric 1024",
    ] {
        ip(&machine, line)?;
    }
    machine.run(&["sysctl", "-qw", "net.ipv4.conf.cali1.proxy_arp=1"])?;
    Ok(machine)
}

fn ip(machine: &Machine, line: &str) -> Result<String> {
    let mut argv = vec!["ip"];
    argv.extend(line.split(' '));
    machine.run(&argv)
}

/// No finding about routes. That nothing is known about pods, for want of a runtime, is none.
fn is_well(checked: &Checked) {
    let (status, reason) = checked.condition("PodRoutingProblem");
    assert_ne!(status, "True", "{reason}: {:?}", checked.codes());
}

#[test]
fn one_look_sees_who_captures_pods() -> Result<()> {
    let machine = worker()?;
    ip(&machine, "tuntap add tun0 mode tun")?;
    ip(&machine, "link set tun0 up")?;
    ip(&machine, "route add default dev tun0 table 1000")?;
    is_well(&machine.check()?);

    ip(&machine, "route add 10.1.1.0/26 dev tun0")?;
    let checked = machine.check()?;
    let detail = checked.finding("PodRouteShadowed")?["detail"].to_string();
    assert!(detail.contains("`10.1.1.0/26 dev tun0 proto boot` captures the block 10.1.1.0/26"), "{detail}");
    assert_eq!(checked.condition("PodRoutingProblem"), ("True", "PodRouteShadowed"));
    ip(&machine, "route del 10.1.1.0/26 dev tun0")?;

    ip(&machine, "rule add priority 50 to 10.1.0.0/16 lookup 1000")?;
    let detail = machine.check()?.finding("PolicyRoutingHijack")?["detail"].to_string();
    assert!(detail.contains("`50: from all to 10.1.0.0/16 lookup 1000 (default dev tun0 proto boot)`"), "{detail}");
    ip(&machine, "rule del priority 50")?;

    let policy = "src 0.0.0.0/0 dst 10.1.1.0/24 dir out";
    ip(&machine, &format!("xfrm policy add {policy} tmpl src 192.0.2.5 dst 192.0.2.1 proto esp mode tunnel"))?;
    let detail = machine.check()?.finding("PolicyRoutingHijack")?["detail"].to_string();
    assert!(detail.contains("An IPsec policy captures packets of pods, from 0.0.0.0/0 to 10.1.1.0/24"), "{detail}");
    ip(&machine, &format!("xfrm policy delete {policy}"))?;

    ip(&machine, "link set uplink mtu 1400")?;
    let detail = machine.check()?.finding("MtuMismatch")?["detail"].to_string();
    assert!(detail.contains("cali1 has 1500"), "{detail}");
    ip(&machine, "link set uplink mtu 1500")?;
    is_well(&machine.check()?);
    Ok(())
}

#[test]
fn what_the_report_holds_of_many_routes_is_bounded() -> Result<()> {
    let machine = worker()?;
    let mut batch = String::new();
    for number in 0..5000 {
        writeln!(batch, "route add 10.{}.{}.0/24 via 192.0.2.1", 64 + number / 256, number % 256)?;
    }
    machine.feed(&["ip", "-batch", "-"], &batch)?;
    let checked = machine.check()?;
    let routes = &checked.json["snapshot"]["routing"]["yes"]["routes"];
    assert_eq!(routes["list"].as_array().map(Vec::len), Some(64));
    assert!(routes["beyond"].as_u64().is_some_and(|beyond| (900..=910).contains(&beyond)), "{}", routes["beyond"]);
    is_well(&checked);
    Ok(())
}

/// A process that ends with this value.
struct Running(Child);

impl Drop for Running {
    fn drop(&mut self) {
        // It may have ended by itself.
        self.0.kill().ok();
        self.0.wait().ok();
    }
}

#[test]
fn what_was_there_and_goes_is_told_and_clears() -> Result<()> {
    let machine = worker()?;
    let mut command = machine.net().command(program());
    command.args(["standalone", "--host-root", &machine.place("")]).stdout(Stdio::null()).stderr(Stdio::null());
    let _running = Running(command.spawn()?);
    let codes = || -> Result<Vec<String>> {
        let page = machine.run(&["curl", "-sf", "-m", "5", "http://127.0.0.1:10580/findings"])?;
        let page: Value = serde_json::from_str(&page)?;
        let findings = page["verdict"]["findings"].as_array().context("findings")?.clone();
        Ok(findings.iter().filter_map(|finding| Some(finding["code"].as_str()?.to_owned())).collect())
    };
    let wait = |code: &str, there: bool| -> Result<Duration> {
        let began = Instant::now();
        eventually(&format!("{code} is there: {there}"), SOON, || {
            let codes = codes()?;
            ensure!(codes.iter().any(|it| it == code) == there, "{codes:?}");
            Ok(())
        });
        Ok(began.elapsed())
    };
    wait("CniBinaryMissing", true)?;

    ip(&machine, "route add 192.168.0.0/16 via 192.0.2.1 proto static")?;
    ip(&machine, "tuntap add tun0 mode tun")?;
    wait("StaticRouteAdded", true)?;
    wait("VpnInterfaceAdded", true)?;
    ip(&machine, "route del 192.168.0.0/16")?;
    ip(&machine, "link del tun0")?;
    wait("StaticRouteAdded", false)?;
    wait("VpnInterfaceAdded", false)?;

    // Both: one alone may have been taken away by BIRD, if any runs on the machine of the test.
    ip(&machine, "route del 10.1.1.0/26")?;
    ip(&machine, "route del 10.1.2.0/26")?;
    let took = wait("RemoteBlockRouteMissing", true)?;
    assert!(took < Duration::from_secs(10), "{took:?}");
    ip(&machine, "route add 10.1.1.0/26 via 192.0.2.6 proto bird metric 1024")?;
    ip(&machine, "route add 10.1.2.0/26 via 192.0.2.7 proto bird metric 1024")?;
    wait("RemoteBlockRouteMissing", false)?;

    ip(&machine, "route add 10.1.2.0/26 via 192.0.2.99")?;
    let took = wait("PodRouteShadowed", true)?;
    assert!(took < Duration::from_secs(5), "{took:?}");
    ip(&machine, "route del 10.1.2.0/26 via 192.0.2.99")?;
    wait("PodRouteShadowed", false)?;
    Ok(())
}
