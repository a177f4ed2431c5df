//! A node with 250 pods, 20,251 IPv4 routes and the rules of 10,000 Services in kube-proxy's layout.

use std::io::{BufWriter, Write};
use std::os::unix::fs::PermissionsExt;
use std::process::{Child, Stdio};

use anyhow::{Context, Result, ensure};

use crate::machine::Machine;
use crate::support::netns::NetNs;

/// Pods, each with a veth pair whose other end is in another namespace.
pub const PODS: usize = 250;
/// Blocks of pod addresses on other nodes. With the pods, the uplink's subnet and the default these are 20,251 routes.
const BLOCKS: usize = 19_999;
/// Services: every third has two endpoints, the others one. 23,334 chains, 60,010 rules.
pub const SERVICES: usize = 10_000;

/// What writes the rules, and the base command of its kind.
#[derive(Clone, Copy)]
pub struct Backend {
    pub name: &'static str,
    pub restore: &'static str,
    pub save: &'static str,
    pub iptables: &'static str,
}

pub const NFT: Backend =
    Backend { name: "nft", restore: "iptables-nft-restore", save: "iptables-nft-save", iptables: "iptables-nft" };
pub const LEGACY: Backend = Backend {
    name: "legacy",
    restore: "iptables-legacy-restore",
    save: "iptables-legacy-save",
    iptables: "iptables-legacy",
};

/// The namespaces of a loaded node.
pub struct Node {
    pub machine: Machine,
    pub backend: Backend,
    _pods: NetNs,
}

impl Node {
    pub fn new(backend: Backend) -> Result<Self> {
        let machine = Machine::worker()?;
        let pods = NetNs::new()?;
        self::pods(&machine, &pods)?;
        stream(&machine, &["ip", "-batch", "-"], blocks)?;
        stream(&machine, &[backend.restore], rules)?;
        Ok(Node { machine, backend, _pods: pods })
    }

    /// What kube-proxy does when the endpoints of some Services change: it writes their chains anew.
    pub fn edit(&self, round: usize) -> Result<()> {
        // The agent tells kube-proxy's writes by the name of the process that starts iptables.
        let kube_proxy = self.machine.path("kube-proxy");
        if !kube_proxy.exists() {
            std::fs::write(&kube_proxy, "#!/bin/sh\n\"$@\"\nexit $?\n")?;
            std::fs::set_permissions(&kube_proxy, PermissionsExt::from_mode(0o755))?;
        }
        stream(&self.machine, &[&kube_proxy.to_string_lossy(), self.backend.restore, "--noflush"], |out| {
            writeln!(out, "*nat")?;
            for service in (0..5).map(|index| (round * 5 + index) % SERVICES) {
                writeln!(out, ":{} - [0:0]", chain("SVC", service, 0))?;
            }
            for service in (0..5).map(|index| (round * 5 + index) % SERVICES) {
                service_rules(out, service)?;
            }
            writeln!(out, "COMMIT")
        })
    }
}

/// Links and routes of the pods, whose network is `others`.
pub fn pods(machine: &Machine, others: &NetNs) -> Result<()> {
    let holder = Ended(others.command("sleep").arg("600").spawn()?);
    stream(machine, &["ip", "-batch", "-"], |out| links(out, holder.0.id()))?;
    stream(machine, &["ip", "-batch", "-"], |out| {
        (0..PODS).try_for_each(|pod| writeln!(out, "route add 10.200.0.{pod}/32 dev cali{pod:04} scope link"))
    })
}

/// A process that ends with this value.
pub struct Ended(pub Child);

impl Drop for Ended {
    fn drop(&mut self) {
        // It may have ended by itself.
        self.0.kill().ok();
        self.0.wait().ok();
    }
}

/// Runs a command in the namespaces of a machine and writes its input piece by piece.
fn stream(machine: &Machine, argv: &[&str], write: impl FnOnce(&mut dyn Write) -> std::io::Result<()>) -> Result<()> {
    let mut command = machine.net().command(argv[0]);
    // The lock of legacy iptables would be the machine's.
    command.args(&argv[1..]).env("XTABLES_LOCKFILE", machine.place("run/xtables.lock"));
    let mut child = command.stdin(Stdio::piped()).spawn()?;
    let mut input = BufWriter::new(child.stdin.take().context("piped")?);
    write(&mut input).and_then(|()| input.flush()).with_context(|| argv.join(" "))?;
    drop(input);
    ensure!(child.wait()?.success(), "{} fails", argv.join(" "));
    Ok(())
}

fn links(out: &mut dyn Write, other: u32) -> std::io::Result<()> {
    for pod in 0..PODS {
        writeln!(out, "link add cali{pod:04} type veth peer name eth{pod:04} netns {other}")?;
        writeln!(out, "link set cali{pod:04} up")?;
    }
    Ok(())
}

fn blocks(out: &mut dyn Write) -> std::io::Result<()> {
    for block in 0..BLOCKS {
        let (a, b, c) = (100 + block / 1024 / 64, block / 1024 % 64 * 4 + block % 1024 / 256, block % 256);
        writeln!(out, "route add 10.{a}.{b}.{c}/32 via 192.0.2.1 proto bird")?;
    }
    Ok(())
}

/// The name of a chain, as long as kube-proxy's.
fn chain(kind: &str, service: usize, endpoint: usize) -> String {
    format!("KUBE-{kind}-{service:010}{endpoint:06}")
}

fn endpoints(service: usize) -> usize {
    if service.is_multiple_of(3) { 2 } else { 1 }
}

fn address(first: u8, number: usize) -> String {
    format!("{first}.{}.{}.{}", 96 + number / 65_536, number / 256 % 256, number % 256)
}

fn rules(out: &mut dyn Write) -> std::io::Result<()> {
    out.write_all(
        b"*nat\n:PREROUTING ACCEPT [0:0]\n:INPUT ACCEPT [0:0]\n:OUTPUT ACCEPT [0:0]\n:POSTROUTING ACCEPT [0:0]\n\
          :KUBE-SERVICES - [0:0]\n:KUBE-NODEPORTS - [0:0]\n:KUBE-POSTROUTING - [0:0]\n:KUBE-MARK-MASQ - [0:0]\n\
          :KUBE-KUBELET-CANARY - [0:0]\n:KUBE-PROXY-CANARY - [0:0]\n",
    )?;
    for service in 0..SERVICES {
        writeln!(out, ":{} - [0:0]", chain("SVC", service, 0))?;
        for endpoint in 0..endpoints(service) {
            writeln!(out, ":{} - [0:0]", chain("SEP", service, endpoint))?;
        }
    }
    out.write_all(
        b"-A PREROUTING -m comment --comment \"kubernetes service portals\" -j KUBE-SERVICES\n\
          -A OUTPUT -m comment --comment \"kubernetes service portals\" -j KUBE-SERVICES\n\
          -A POSTROUTING -m comment --comment \"kubernetes postrouting rules\" -j KUBE-POSTROUTING\n\
          -A KUBE-POSTROUTING -m mark ! --mark 0x4000/0x4000 -j RETURN\n\
          -A KUBE-POSTROUTING -j MARK --set-xmark 0x4000/0x0\n\
          -A KUBE-POSTROUTING -m comment --comment \"kubernetes service traffic requiring SNAT\" -j MASQUERADE --random-fully\n\
          -A KUBE-MARK-MASQ -j MARK --set-xmark 0x4000/0x4000\n",
    )?;
    for service in 0..SERVICES {
        writeln!(
            out,
            "-A KUBE-SERVICES -d {}/32 -p tcp -m comment --comment \"team/app-{service}:http cluster IP\" -m tcp --dport 80 -j {}",
            address(11, service),
            chain("SVC", service, 0)
        )?;
        service_rules(out, service)?;
        for endpoint in 0..endpoints(service) {
            let (name, ip) = (chain("SEP", service, endpoint), address(10, service * 2 + endpoint));
            let comment = format!("-m comment --comment \"team/app-{service}:http\"");
            writeln!(out, "-A {name} -s {ip}/32 {comment} -j KUBE-MARK-MASQ")?;
            writeln!(out, "-A {name} -p tcp {comment} -m tcp -j DNAT --to-destination {ip}:8080")?;
        }
    }
    out.write_all(
        b"-A KUBE-SERVICES -m comment --comment \"kubernetes service nodeports; NOTE: this must be the last rule in this chain\" -m addrtype --dst-type LOCAL -j KUBE-NODEPORTS\nCOMMIT\n",
    )?;
    // The filter table's, so that the checks find nothing missing.
    out.write_all(
        b"*filter\n:INPUT ACCEPT [0:0]\n:FORWARD ACCEPT [0:0]\n:OUTPUT ACCEPT [0:0]\n:KUBE-FIREWALL - [0:0]\n:KUBE-FORWARD - [0:0]\n\
          :KUBE-SERVICES - [0:0]\n:KUBE-EXTERNAL-SERVICES - [0:0]\n:KUBE-NODEPORTS - [0:0]\n:KUBE-PROXY-FIREWALL - [0:0]\n:KUBE-KUBELET-CANARY - [0:0]\n:KUBE-PROXY-CANARY - [0:0]\n\
          -A FORWARD -m comment --comment \"kubernetes forwarding rules\" -j KUBE-FORWARD\nCOMMIT\n",
    )
}

fn service_rules(out: &mut dyn Write, service: usize) -> std::io::Result<()> {
    let svc = chain("SVC", service, 0);
    writeln!(
        out,
        "-A {svc} ! -s 10.96.0.0/12 -d {}/32 -p tcp -m comment --comment \"team/app-{service}:http cluster IP\" -m tcp --dport 80 -j KUBE-MARK-MASQ",
        address(11, service)
    )?;
    let endpoints = endpoints(service);
    for endpoint in 0..endpoints {
        let spread = if endpoint + 1 < endpoints { "-m statistic --mode random --probability 0.5 " } else { "" };
        let sep = chain("SEP", service, endpoint);
        writeln!(out, "-A {svc} -m comment --comment \"team/app-{service}:http -> {sep}\" {spread}-j {sep}")?;
    }
    Ok(())
}
