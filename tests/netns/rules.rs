//! Rules of others, stale Services, split backends and flushes, on the kernel's own tables with rules by the real programs.

use std::process::{Child, Command, Stdio};
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use serde_json::Value;

use crate::machine::{Checked, Machine, program, recording};
use crate::support::wait::eventually;

const SOON: Duration = Duration::from_secs(30);

/// Calico and kube-proxy as they were recorded on a healthy node, in one backend.
fn healthy(restore: &str) -> Result<Machine> {
    let machine = Machine::worker()?;
    machine.feed(&["ipset", "restore"], &recording("01-healthy/ipset-save.txt")?)?;
    machine.feed(&[restore], &recording("01-healthy/iptables-nft-save.txt")?)?;
    Ok(machine)
}

/// The severity of a finding and what it says.
fn told(checked: &Checked, code: &str) -> Result<(String, String)> {
    let finding = checked.finding(code)?;
    let text = |key: &str| finding[key].as_str().unwrap_or_default().to_owned();
    Ok((text("severity"), text("detail")))
}

fn silent(checked: &Checked, code: &str) {
    assert!(!checked.codes().contains(&code), "{:?}", checked.codes());
    assert!(!checked.unknown().iter().any(|(it, _)| *it == code), "{:?}", checked.unknown());
}

#[test]
fn a_policy_that_drops_pods_in_either_backend_and_in_an_inet_table() -> Result<()> {
    let machine = healthy("iptables-nft-restore")?;
    silent(&machine.check()?, "ForwardPolicyDrop");
    machine.run(&["iptables-nft", "-P", "FORWARD", "DROP"])?;
    silent(&machine.check()?, "ForwardPolicyDrop");

    machine.run(&["iptables-legacy", "-P", "FORWARD", "DROP"])?;
    let (severity, detail) = told(&machine.check()?, "ForwardPolicyDrop")?;
    assert_eq!(severity, "critical");
    assert!(detail.contains("FORWARD in table IPv4 filter (legacy iptables) is DROP"), "{detail}");
    machine.run(&["iptables-legacy", "-P", "FORWARD", "ACCEPT"])?;
    silent(&machine.check()?, "ForwardPolicyDrop");

    let table = "table inet filter { chain forward { type filter hook forward priority 0; policy drop; \
                 ct state established,related accept; }\n }\n";
    machine.feed(&["nft", "-f", "-"], table)?;
    let (_, detail) = told(&machine.check()?, "ForwardPolicyDrop")?;
    assert!(detail.contains("forward in table inet filter (nf_tables) is DROP"), "{detail}");
    machine.run(&["nft", "add rule inet filter forward iifname \"cali*\" accept"])?;
    machine.run(&["nft", "add rule inet filter forward oifname \"cali*\" accept"])?;
    silent(&machine.check()?, "ForwardPolicyDrop");
    Ok(())
}

#[test]
fn without_calicos_rules_the_policy_drops_and_with_flannels_it_does_not() -> Result<()> {
    let machine = healthy("iptables-nft-restore")?;
    machine.run(&["iptables-nft", "-P", "FORWARD", "DROP"])?;
    let jump = ["-m", "comment", "--comment", "cali:wUHhoiAYhphO9Mso", "-j", "cali-FORWARD"];
    machine.run(&[&["iptables-nft", "-D", "FORWARD"][..], &jump].concat())?;
    let accept = "-m comment --comment cali:S93hcgKJrXEqnTfs -m comment --comment Policy_explicitly_accepted_packet. -m mark --mark 0x10000/0x10000 -j ACCEPT";
    let accept: Vec<String> = accept.split(' ').map(|word| word.replace('_', " ")).collect();
    let accept: Vec<&str> = accept.iter().map(String::as_str).collect();
    machine.run(&[&["iptables-nft", "-D", "FORWARD"][..], &accept].concat())?;
    // What is left is kube-proxy's chain, which accepts no new connection between pods.
    told(&machine.check()?, "ForwardPolicyDrop")?;
    machine.run(&["iptables-nft", "-N", "FLANNEL-FWD"])?;
    machine.run(&["iptables-nft", "-A", "FLANNEL-FWD", "-s", "10.244.0.0/16", "-j", "ACCEPT"])?;
    machine.run(&["iptables-nft", "-A", "FLANNEL-FWD", "-d", "10.244.0.0/16", "-j", "ACCEPT"])?;
    machine.run(&["iptables-nft", "-A", "FORWARD", "-j", "FLANNEL-FWD"])?;
    silent(&machine.check()?, "ForwardPolicyDrop");
    Ok(())
}

#[test]
fn a_foreign_rule_is_named_and_its_counter_decides() -> Result<()> {
    for (restore, iptables, backend) in [
        ("iptables-nft-restore", "iptables-nft", "nf_tables"),
        ("iptables-legacy-restore", "iptables-legacy", "legacy iptables"),
    ] {
        let machine = healthy(restore)?;
        silent(&machine.check()?, "ForeignDropRule");
        let rule = ["-s", "192.0.2.0/24", "-m", "comment", "--comment", "set by hand", "-j", "DROP"];
        machine.run(&[&[iptables, "-I", "INPUT"][..], &rule].concat())?;
        let (severity, detail) = told(&machine.check()?, "ForeignDropRule")?;
        assert_eq!(severity, "info", "{detail}");
        let expected = format!("INPUT of table IPv4 filter ({backend}) stands in the way: `-s 192.0.2.0/24 -j DROP`");
        assert!(detail.contains(&expected) && detail.contains("comment \"set by hand\""), "{detail}");
        assert!(detail.ends_with("it has matched no packet yet"), "{detail}");
        // To itself over loopback, with its own address as the source.
        machine
            .net()
            .run(|| -> Result<usize> { Ok(std::net::UdpSocket::bind("192.0.2.5:0")?.send_to(b"x", "192.0.2.5:9")?) })?;
        let (severity, detail) = told(&machine.check()?, "ForeignDropRule")?;
        assert!(severity == "warning" && detail.contains("at least 1 packets"), "{severity}: {detail}");
        machine.run(&[&[iptables, "-D", "INPUT"][..], &rule].concat())?;
        silent(&machine.check()?, "ForeignDropRule");
    }
    Ok(())
}

#[test]
fn a_firewall_in_an_inet_table_that_rejects_what_pods_send() -> Result<()> {
    let machine = healthy("iptables-nft-restore")?;
    let table = "table inet firewalld {
        chain filter_FORWARD_ZONES { iifname \"eth9\" goto filter_FWD_trusted; goto filter_FWD_public; }
        chain filter_FWD_trusted { accept; }
        chain filter_FWD_public { log prefix \"rejected: \"; }
        chain filter_FORWARD {
            type filter hook forward priority filter + 10; policy accept;
            ct state established,related accept
            ct status dnat accept
            iifname \"lo\" accept
            ct state invalid drop
            jump filter_FORWARD_ZONES
            reject with icmpx admin-prohibited
        }
    }
    ";
    machine.feed(&["nft", "-f", "-"], table)?;
    let (severity, detail) = told(&machine.check()?, "ForeignDropRule")?;
    assert!(detail.contains("filter_FORWARD of table inet firewalld (nf_tables)"), "{detail}");
    // What is translated is accepted before, and perhaps what comes from one link: so it is only worth knowing.
    assert_eq!(severity, "info", "{detail}");
    let rules = "delete table inet firewalld
        table inet firewalld { chain filter_FORWARD {
            type filter hook forward priority filter + 10; policy accept;
            ct state established,related accept
            reject with icmpx admin-prohibited
        }
        }
    ";
    machine.feed(&["nft", "-f", "-"], rules)?;
    let (severity, detail) = told(&machine.check()?, "ForeignDropRule")?;
    assert!(severity == "warning" && detail.ends_with("it has no counter"), "{severity}: {detail}");
    machine.run(&["nft", "insert rule inet firewalld filter_FORWARD accept"])?;
    silent(&machine.check()?, "ForeignDropRule");
    Ok(())
}

#[test]
fn a_rule_ahead_of_calico_that_accepts() -> Result<()> {
    for (restore, iptables) in
        [("iptables-nft-restore", "iptables-nft"), ("iptables-legacy-restore", "iptables-legacy")]
    {
        let machine = healthy(restore)?;
        silent(&machine.check()?, "CalicoHookOrderWrong");
        // As kube-proxy does it.
        let harmless = ["-m", "conntrack", "--ctstate", "NEW", "-j", "KUBE-SERVICES"];
        machine.run(&[&[iptables, "-I", "FORWARD"][..], &harmless].concat())?;
        silent(&machine.check()?, "CalicoHookOrderWrong");
        machine.run(&[iptables, "-I", "FORWARD", "-s", "10.0.0.0/8", "-j", "ACCEPT"])?;
        let (severity, detail) = told(&machine.check()?, "CalicoHookOrderWrong")?;
        assert!(severity == "warning" && detail.contains("`-s 10.0.0.0/8 -j ACCEPT` of FORWARD"), "{detail}");
        machine.run(&[iptables, "-D", "FORWARD", "-s", "10.0.0.0/8", "-j", "ACCEPT"])?;
        silent(&machine.check()?, "CalicoHookOrderWrong");
    }
    Ok(())
}

const API: &str = "KUBE-SVC-NPX46M4PTMTKRN6Y";

#[test]
fn the_api_servers_service_is_followed_to_its_endpoints() -> Result<()> {
    for (restore, iptables) in
        [("iptables-nft-restore", "iptables-nft"), ("iptables-legacy-restore", "iptables-legacy")]
    {
        let machine = healthy(restore)?;
        let checked = machine.check()?;
        silent(&checked, "KubeProxyRulesStale");
        let backend = if iptables == "iptables-nft" { "nftables" } else { "legacy" };
        let services = checked.json["snapshot"][backend]["yes"]["services"].as_array().context("services")?;
        let api = services.iter().find(|it| it["service"] == "default/kubernetes:https").context("the API server")?;
        assert_eq!((&api["chain"], &api["endpoints"][0]), (&API.into(), &"10.77.0.1:6443".into()));

        // The endpoint's chain translates to nothing.
        machine.run(&[iptables, "-t", "nat", "-F", "KUBE-SEP-L7PMTEED6PWUMWBF"])?;
        let (severity, detail) = told(&machine.check()?, "KubeProxyRulesStale")?;
        assert!(severity == "critical" && detail.contains("has no endpoint"), "{severity}: {detail}");
        let to = ["-p", "tcp", "-j", "DNAT", "--to-destination", "10.77.0.1:6443"];
        machine.run(&[&[iptables, "-t", "nat", "-A", "KUBE-SEP-L7PMTEED6PWUMWBF"][..], &to].concat())?;
        silent(&machine.check()?, "KubeProxyRulesStale");
    }
    Ok(())
}

#[test]
fn a_service_that_nothing_leads_to() -> Result<()> {
    let machine = healthy("iptables-nft-restore")?;
    let rule = [
        "-d",
        "10.96.0.1/32",
        "-p",
        "tcp",
        "-m",
        "comment",
        "--comment",
        "default/kubernetes:https cluster IP",
        "-m",
        "tcp",
        "--dport",
        "443",
        "-j",
        API,
    ];
    machine.run(&[&["iptables-nft", "-t", "nat", "-D", "KUBE-SERVICES"][..], &rule].concat())?;
    let (_, detail) = told(&machine.check()?, "KubeProxyRulesStale")?;
    assert!(detail.contains(&format!("nothing leads to its chain {API}")), "{detail}");
    machine.run(&["iptables-nft", "-t", "nat", "-F", API])?;
    machine.run(&["iptables-nft", "-t", "nat", "-X", API])?;
    let (_, detail) = told(&machine.check()?, "KubeProxyRulesStale")?;
    assert!(detail.contains("no chain for default/kubernetes:https"), "{detail}");
    Ok(())
}

/// kube-proxy's native mode, in the shape of 1.35: the API server with one endpoint.
pub(crate) const NATIVE: &str = "
    table ip kube-proxy {
        map service-ips { type ipv4_addr . inet_proto . inet_service : verdict; }
        chain mark-for-masquerade { meta mark set meta mark or 0x4000; }
        chain masquerading { meta mark & 0x4000 == 0 return; masquerade fully-random; }
        chain cluster-ips-check { }
        chain endpoint-5OJB2KTY-default/kubernetes/tcp/https__10.77.0.1/6443 {
            ip saddr 10.77.0.1 jump mark-for-masquerade
            meta l4proto tcp dnat to 10.77.0.1:6443
        }
        chain service-2QRHZV4L-default/kubernetes/tcp/https {
            ip daddr 10.96.0.1 tcp dport 443 ip saddr != 10.244.0.0/16 jump mark-for-masquerade
            numgen random mod 1 vmap { 0 : goto endpoint-5OJB2KTY-default/kubernetes/tcp/https__10.77.0.1/6443 }
        }
        chain services { ip daddr . meta l4proto . th dport vmap @service-ips; }
        chain nat-prerouting { type nat hook prerouting priority dstnat; jump services; }
        chain nat-output { type nat hook output priority -100; jump services; }
        chain nat-postrouting { type nat hook postrouting priority srcnat; jump masquerading; }
        chain nodeport-endpoints-check { }
        chain service-endpoints-check { }
        chain firewall-check { }
        chain filter-prerouting-pre-dnat {
            type filter hook prerouting priority dstnat - 10; ct state new jump firewall-check;
        }
        chain filter-output-pre-dnat { type filter hook output priority -110; ct state new jump firewall-check; }
        chain filter-input {
            type filter hook input priority 0;
            ct state new jump nodeport-endpoints-check
            ct state new jump service-endpoints-check
        }
        chain filter-forward {
            type filter hook forward priority 0;
            ct state new jump service-endpoints-check
            ct state new jump cluster-ips-check
        }
        chain filter-output {
            type filter hook output priority 0;
            ct state new jump service-endpoints-check
            ct state new jump cluster-ips-check
        }
    }
    add element ip kube-proxy service-ips { 10.96.0.1 . tcp . 443 : goto service-2QRHZV4L-default/kubernetes/tcp/https }
";

#[test]
fn the_native_mode_is_followed_too() -> Result<()> {
    let machine = Machine::worker()?;
    machine.feed(&["nft", "-f", "-"], NATIVE)?;
    let checked = machine.check()?;
    assert_eq!(checked.json["expected"]["kubeProxy"], "nftables");
    let api = &checked.json["snapshot"]["nftables"]["yes"]["services"][0];
    assert_eq!(api["endpoints"][0], "10.77.0.1:6443", "{api}");
    assert_eq!(checked.condition("PacketFilterProblem"), ("False", "PacketFilterHealthy"), "{:?}", checked.codes());

    let element = "10.96.0.1 . tcp . 443";
    let api = "service-2QRHZV4L-default/kubernetes/tcp/https";
    machine.run(&["nft", &format!("delete element ip kube-proxy service-ips {{ {element} }}")])?;
    let (_, detail) = told(&machine.check()?, "KubeProxyRulesStale")?;
    assert!(detail.contains("nothing leads to its chain"), "{detail}");
    machine.run(&["nft", &format!("add element ip kube-proxy service-ips {{ {element} : goto {api} }}")])?;
    silent(&machine.check()?, "KubeProxyRulesStale");
    machine.run(&["nft", &format!("flush chain ip kube-proxy {api}")])?;
    let (_, detail) = told(&machine.check()?, "KubeProxyRulesStale")?;
    assert!(detail.contains("has no endpoint"), "{detail}");
    Ok(())
}

#[test]
fn both_backends_in_force_as_recorded() -> Result<()> {
    let machine = healthy("iptables-nft-restore")?;
    machine.feed(&["iptables-legacy-restore"], &recording("01-healthy/iptables-legacy-save.txt")?)?;
    silent(&machine.check()?, "IptablesBackendSplit");
    machine.feed(&["iptables-legacy-restore"], &recording("17-mixed-backends/iptables-legacy-save.txt")?)?;
    let checked = machine.check()?;
    let (severity, detail) = told(&checked, "IptablesBackendSplit")?;
    assert!(severity == "warning" && detail.contains("kube-proxy's chains are in force in both"), "{detail}");
    let (_, detail) = told(&checked, "ForwardPolicyDrop")?;
    assert!(detail.contains("legacy iptables"), "{detail}");
    // What legacy nat leads to is not what is in force for kube-proxy.
    silent(&checked, "KubeProxyRulesStale");
    for table in ["nat", "filter"] {
        machine.run(&["iptables-legacy", "-t", table, "-F"])?;
    }
    machine.run(&["iptables-legacy", "-P", "FORWARD", "ACCEPT"])?;
    let checked = machine.check()?;
    silent(&checked, "IptablesBackendSplit");
    silent(&checked, "ForwardPolicyDrop");
    Ok(())
}

/// A process that ends with this value.
struct Running(Child);

impl Running {
    fn start(command: &mut Command) -> Result<Self> {
        Ok(Running(command.stdout(Stdio::null()).stderr(Stdio::null()).spawn()?))
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        // It may have ended by itself.
        self.0.kill().ok();
        self.0.wait().ok();
    }
}

/// The findings that the program on this machine tells.
fn findings(machine: &Machine) -> Result<Vec<Value>> {
    let page = machine.run(&["curl", "-sf", "-m", "5", "http://127.0.0.1:10580/findings"])?;
    let page: Value = serde_json::from_str(&page)?;
    Ok(page["verdict"]["findings"].as_array().context("findings")?.clone())
}

/// Their codes.
fn codes(machine: &Machine) -> Result<Vec<String>> {
    Ok(findings(machine)?.iter().filter_map(|finding| Some(finding["code"].as_str()?.to_owned())).collect())
}

#[test]
fn a_flush_is_told_as_long_as_its_traces_last() -> Result<()> {
    let machine = healthy("iptables-nft-restore")?;
    let mut command = machine.net().command(program());
    let _running = Running::start(command.args(["standalone", "--host-root", &machine.place("")]))?;
    let has = |code: &str| -> Result<bool> { Ok(codes(&machine)?.iter().any(|it| it == code)) };
    eventually("the first verdict", SOON, || codes(&machine).map(drop));
    assert!(!has("TablesFlushed")?);
    machine.run(&["iptables-nft", "-t", "nat", "-F"])?;
    machine.run(&["iptables-nft", "-t", "nat", "-X"])?;
    eventually("a flush is told", SOON, || {
        ensure!(has("TablesFlushed")?, "{:?}", codes(&machine)?);
        Ok(())
    });
    eventually("it explains what both owners lack", SOON, || {
        for code in ["CalicoChainsMissing", "KubeProxyChainsMissing"] {
            let finding = findings(&machine)?.into_iter().find(|it| it["code"] == code).context("not yet")?;
            ensure!(finding["causedBy"]["code"] == "TablesFlushed", "{finding}");
        }
        Ok(())
    });
    machine.feed(&["iptables-nft-restore"], &recording("01-healthy/iptables-nft-save.txt")?)?;
    eventually("and over with all of it back", SOON, || {
        let codes = codes(&machine)?;
        ensure!(!codes.iter().any(|it| it == "TablesFlushed" || it.ends_with("ChainsMissing")), "still: {codes:?}");
        Ok(())
    });
    let canary = |how: &str| machine.run(&["iptables-nft", "-t", "nat", how, "KUBE-KUBELET-CANARY"]);
    canary("-X")?;
    eventually("a canary tells of one too", SOON, || {
        let finding = findings(&machine)?.into_iter().find(|it| it["code"] == "TablesFlushed").context("not yet")?;
        let detail = finding["detail"].as_str().unwrap_or_default();
        ensure!(detail.starts_with("Table nat of IPv4 (nf_tables) was flushed: KUBE-KUBELET-CANARY went"), "{detail}");
        ensure!(finding["severity"] == "info", "{finding}");
        Ok(())
    });
    canary("-N")?;
    eventually("and over with the canary back", SOON, || {
        ensure!(!has("TablesFlushed")?, "still");
        Ok(())
    });
    Ok(())
}

#[test]
fn a_kube_proxy_that_hangs_and_goes_on() -> Result<()> {
    let machine = healthy("iptables-nft-restore")?;
    // A process of its name.
    machine.run(&["cp", "/bin/sleep", &machine.place("kube-proxy")])?;
    let mut command = machine.net().command(machine.path("kube-proxy"));
    let proxy = Running::start(command.arg("600"))?;
    eventually("it runs", SOON, || {
        let name = std::fs::read_to_string(format!("/proc/{}/comm", proxy.0.id()))?;
        ensure!(name.trim_end() == "kube-proxy", "{name}");
        Ok(())
    });
    silent(&machine.check()?, "KubeProxyDown");
    let signal = |name: &str| machine.run(&["kill", name, &proxy.0.id().to_string()]);
    signal("-STOP")?;
    let (severity, detail) = told(&machine.check()?, "KubeProxyDown")?;
    assert!(severity == "critical" && detail.contains("stopped by a signal"), "{severity}: {detail}");
    signal("-CONT")?;
    silent(&machine.check()?, "KubeProxyDown");
    // Its port accepts, and nobody takes what comes.
    let listener = machine.net().run(|| std::net::TcpListener::bind("127.0.0.1:10256"))?;
    let (_, detail) = told(&machine.check()?, "KubeProxyDown")?;
    assert!(detail.contains("hangs: its health port accepts"), "{detail}");
    drop(listener);
    silent(&machine.check()?, "KubeProxyDown");
    Ok(())
}
