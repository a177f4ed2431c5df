//! From a fault to the condition in the API, on real parts: `scripts/bench.sh earliness`.
//!
//! A cluster of two real nodes with the product deployed on it and as it is configured by default. Each fault is made and
//! repaired several times on the first node; the time is from the moment before the command that makes it to the answer
//! of the API server to the patch that tells it, as its audit log has it. Calico's part is its recorded chains: Felix is
//! dead, as in the recording. BIRD is Debian's, with the other node for a peer.
//!
//! `NODEVITALS_BENCH_ROUNDS` is how often each fault is made, three times by default: what comes back again and again is over
//! later and later, and the bench waits for that. `NODEVITALS_BENCH_FAULT` leaves out those whose finding code
//! contains none of its words, which commas separate.

#![allow(clippy::print_stdout, reason = "prints its figures")]

#[path = "../tests/cluster/product.rs"]
#[allow(unreachable_pub, dead_code, reason = "shared with the tests")]
mod product;
#[path = "../tests/support/mod.rs"]
mod support;

use std::path::Path;
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use jiff::Timestamp;
use nix::sys::signal::Signal;
use serde_json::Value;

use product::{Product, SOON};
use support::node::Node;
use support::wait::eventually;

/// The node on which the faults are made.
const NODE: &str = "n1";
/// Longer than the settling time of a sandbox (catalogue R080), and than that of a kube-proxy, which is waited for before.
const SETTLED: Duration = Duration::from_secs(65);
/// A block of the other node, as in the recordings.
const BLOCK: &str = "172.30.217.0/26";

/// A fault, and what tells it.
#[derive(Clone)]
struct Fault {
    what: &'static str,
    /// Seconds that are allowed from the fault to the condition.
    bar: f64,
    condition: &'static str,
    reason: &'static str,
    /// A shell command on the node that makes it.
    make: String,
    /// A shell command on the node that repairs it.
    repair: String,
    /// A program that is stopped or killed instead, and goes on or is started afterwards.
    program: Option<(&'static str, Signal)>,
}

fn main() -> Result<()> {
    ensure!(std::env::var_os("NODEVITALS_BIN").is_some(), "run scripts/bench.sh: it builds the program to measure");
    let rounds: usize = std::env::var("NODEVITALS_BENCH_ROUNDS").map_or(Ok(3), |text| text.parse())?;
    let all = [without_calico(""), programs().to_vec(), with_calico(""), vec![bird_hung(), kubelet_killed()]].concat();
    for word in wanted().unwrap_or_default() {
        ensure!(all.iter().any(|it| it.reason.contains(&word)), "NODEVITALS_BENCH_FAULT: no fault is told as {word:?}");
    }
    let product = Product::deployed()?;
    for node in product.cluster.nodes() {
        product.wait_until_healthy(node.name());
    }
    let pod = start_pod(&product)?;
    let node = product.cluster.node(NODE)?;
    let other = product.cluster.node("n2")?;
    std::thread::sleep(SETTLED);
    for fault in without_calico(&pod) {
        measure(&product, &fault, rounds)?;
    }
    for fault in programs() {
        measure(&product, &fault, rounds)?;
    }
    add_calico(node)?;
    product.wait_until_healthy(NODE);
    // As a BIRD that has died leaves it.
    node.read(&["ip", "route", "add", BLOCK, "via", other.address(), "proto", "bird"])?;
    node.read(&[
        "sh",
        "-ec",
        "ip tuntap add tun0 mode tun && ip address add 10.99.0.1/24 dev tun0 && ip link set tun0 up",
    ])?;
    std::thread::sleep(Duration::from_secs(10));
    for fault in with_calico(other.address()) {
        measure(&product, &fault, rounds)?;
    }
    node.read(&["ip", "route", "del", BLOCK])?;
    add_bird(node, other)?;
    add_bird(other, node)?;
    eventually("the BGP session is established", SOON, || {
        let protocols = node.read(&["birdc", "-s", BIRD_SOCKET, "show", "protocols"])?;
        ensure!(protocols.contains("Established"), "{protocols}");
        Ok(())
    });
    product.wait_until_healthy(NODE);
    measure(&product, &bird_hung(), rounds)?;
    // The second start within half an hour is told by itself, and for as long.
    measure(&product, &kubelet_killed(), 1)
}

fn fault(what: &'static str, condition: &'static str, reason: &'static str, make: &str, repair: &str) -> Fault {
    Fault { what, bar: 1.0, condition, reason, make: make.to_owned(), repair: repair.to_owned(), program: None }
}

fn without_calico(pod: &str) -> Vec<Fault> {
    let jumps = |how: &str| {
        let rule = "-m comment --comment 'kubernetes service portals' -j KUBE-SERVICES";
        format!("iptables -t nat {how} PREROUTING {rule} && iptables -t nat {how} OUTPUT {rule}")
    };
    vec![
        fault(
            "KUBE-SERVICES jumps deleted, kube-proxy alive",
            "PacketFilterProblem",
            "KubeProxyChainsUnhooked",
            &jumps("-D"),
            &jumps("-I"),
        ),
        fault(
            "nat flushed, kube-proxy alive",
            "PacketFilterProblem",
            "KubeProxyChainsMissing",
            "iptables-save -t nat > /run/nat.save && iptables -t nat -F && iptables -t nat -X",
            "iptables-restore < /run/nat.save",
        ),
        fault(
            "CNI configuration gone",
            "CNIProblem",
            "CniConfigMissing",
            "mkdir -p /etc/cni/away && mv /etc/cni/net.d/10-bridge.conflist /etc/cni/away/",
            // containerd does not look at a file that is moved in from elsewhere, only at one that is written.
            "cp /etc/cni/away/10-bridge.conflist /etc/cni/net.d/",
        ),
        fault(
            "CNI plugin binary gone",
            "CNIProblem",
            "CniBinaryMissing",
            "mv /opt/cni/bin/bridge /opt/cni/away-bridge",
            "mv /opt/cni/away-bridge /opt/cni/bin/bridge",
        ),
        fault(
            "route of the local pods gone",
            "PodRoutingProblem",
            "PodRouteMissing",
            "ip route show dev cni0 > /run/cni0.route && ip route flush dev cni0",
            "sed 's/ linkdown//' /run/cni0.route | while read -r route; do ip route add $route dev cni0; done",
        ),
        fault(
            "route of a local pod captured by another",
            "PodRoutingProblem",
            "PodRouteShadowed",
            &format!("ip route add unreachable {pod}"),
            &format!("ip route del unreachable {pod}"),
        ),
    ]
}

fn with_calico(other: &str) -> Vec<Fault> {
    let jumps = |how: &str| format!("iptables {how} INPUT -j cali-INPUT && iptables {how} FORWARD -j cali-FORWARD");
    vec![
        fault(
            "cali-* jumps deleted, Felix dead",
            "PacketFilterProblem",
            "CalicoChainsUnhooked",
            "iptables-save > /run/filter.save && iptables-save | grep -E '^-A (INPUT|FORWARD) .*-j cali-(INPUT|FORWARD)' | \
             sed 's/^-A/iptables -D/' | sh -e",
            &jumps("-I"),
        ),
        fault(
            "stray CNI configuration sorted first",
            "CNIProblem",
            "CniConfigConflict",
            "cp /etc/cni/net.d/20-bridge.conflist /etc/cni/net.d/00-stray.conflist",
            "rm /etc/cni/net.d/00-stray.conflist",
        ),
        fault(
            "route to another node's block gone, BIRD dead",
            "PodRoutingProblem",
            "RemoteBlockRouteMissing",
            &format!("ip route del {BLOCK}"),
            &format!("ip route add {BLOCK} via {other} proto bird"),
        ),
        fault(
            "route to another node's block into a VPN",
            "PodRoutingProblem",
            "RemoteBlockRouteWrongNextHop",
            &format!("ip route replace {BLOCK} via 10.99.0.2 dev tun0 proto bird"),
            &format!("ip route replace {BLOCK} via {other} proto bird"),
        ),
    ]
}

/// What the kubelet itself tells after 124 s and after 31 s.
fn programs() -> [Fault; 2] {
    let runtime = |what, reason| fault(what, "RuntimeProblem", reason, "", "");
    [
        sent(10.0, ("containerd", Signal::SIGSTOP), runtime("containerd hung", "ContainerdUnresponsive")),
        sent(3.0, ("containerd", Signal::SIGKILL), runtime("containerd killed", "ContainerdDown")),
    ]
}

/// What the kubelet itself never tells.
fn kubelet_killed() -> Fault {
    let fault = fault("kubelet killed", "ControlPlanePathProblem", "KubeletDown", "", "");
    sent(5.0, ("kubelet", Signal::SIGKILL), fault)
}

fn sent(bar: f64, program: (&'static str, Signal), fault: Fault) -> Fault {
    Fault { bar, program: Some(program), ..fault }
}

fn bird_hung() -> Fault {
    sent(10.0, ("bird", Signal::SIGSTOP), fault("BIRD hung", "PodRoutingProblem", "BgpDaemonDown", "", ""))
}

/// The words of `NODEVITALS_BENCH_FAULT`; without any all faults are wanted.
fn wanted() -> Option<Vec<String>> {
    let words = std::env::var("NODEVITALS_BENCH_FAULT").ok()?;
    let words: Vec<String> = words.split(',').filter(|word| !word.is_empty()).map(str::to_owned).collect();
    (!words.is_empty()).then_some(words)
}

/// Makes and repairs a fault again and again, and prints the median, the least and the most.
fn measure(product: &Product, fault: &Fault, rounds: usize) -> Result<()> {
    if wanted().is_some_and(|words| !words.iter().any(|word| fault.reason.contains(word))) {
        return Ok(());
    }
    let node = product.cluster.node(NODE)?;
    let mut seconds = Vec::with_capacity(rounds);
    for _ in 0..rounds {
        let began = Timestamp::now();
        match fault.program {
            Some((program, Signal::SIGKILL)) => node.kill(program)?,
            Some((program, signal)) => node.signal(program, signal)?,
            None => _ = node.read(&["sh", "-ec", &fault.make])?,
        }
        product.wait_for(NODE, fault.condition, "True", fault.reason);
        seconds.push(told_after(product, fault, began));
        match fault.program {
            Some((program, Signal::SIGKILL)) => node.start(program)?,
            Some((program, _)) => node.signal(program, Signal::SIGCONT)?,
            None => _ = node.read(&["sh", "-ec", &fault.repair])?,
        }
        product.wait_until_clear(NODE, fault.condition);
        product.wait_until_healthy(NODE);
    }
    seconds.sort_by(f64::total_cmp);
    let (least, median, most) = (seconds[0], seconds[rounds / 2], seconds[rounds - 1]);
    let word = if median <= fault.bar { "ok" } else { "OVER" };
    let Fault { what, reason, bar, .. } = fault;
    println!("{what:<55} {reason:<30} median {median:>6.3} s  {least:.3} to {most:.3}  bar {bar} {word}");
    Ok(())
}

/// Seconds from `began` to the answer to the agent's patch that says it.
fn told_after(product: &Product, fault: &Fault, began: Timestamp) -> f64 {
    let says = |event: &Value| {
        let conditions = event["requestObject"]["status"]["conditions"].as_array();
        conditions
            .into_iter()
            .flatten()
            .any(|it| it["type"] == fault.condition && it["reason"] == fault.reason && it["status"] == "True")
    };
    // The audit log may come a moment after the answer.
    eventually("the patch is in the audit log", SOON, || {
        for event in product.cluster.writes_by("system:serviceaccount:nodevitals:nodevitals-agent")? {
            let at: Timestamp = event["stageTimestamp"].as_str().context("a time")?.parse()?;
            if at > began && event["objectRef"]["name"] == NODE && says(&event) {
                return Ok(at.duration_since(began).as_secs_f64());
            }
        }
        anyhow::bail!("no such patch")
    })
}

/// A pod on the node; answers its address.
fn start_pod(product: &Product) -> Result<String> {
    product.cluster.apply(
        r#"{"apiVersion": "v1", "kind": "Pod", "metadata": {"name": "web", "namespace": "default"}, "spec": {
            "nodeName": "n1", "terminationGracePeriodSeconds": 0, "containers": [{"name": "web",
            "image": "docker.io/library/busybox:test", "imagePullPolicy": "Never", "command": ["sleep", "86400"]}]}}"#,
    )?;
    Ok(eventually("the pod has an address", SOON, || {
        let pod = product.cluster.get("/api/v1/namespaces/default/pods/web")?;
        ensure!(pod["status"]["phase"] == "Running", "{}", pod["status"]);
        Ok(pod["status"]["podIP"].as_str().context("an address")?.to_owned())
    }))
}

/// Calico's recorded chains beside kube-proxy's live ones, and its CNI configuration in force.
fn add_calico(node: &Node) -> Result<()> {
    let recording = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/recordings/01-healthy");
    let save = std::fs::read_to_string(recording.join("iptables-nft-save.txt"))?;
    let calicos = |line: &&str| {
        ["*", ":cali-", "-A cali-", "COMMIT"].iter().any(|start| line.starts_with(start)) || line.contains("-j cali-")
    };
    let chains: Vec<&str> = save.lines().filter(calicos).collect();
    let sets = std::fs::read_to_string(recording.join("ipset-save.txt"))?;
    std::fs::write(node.path("/etc/calico.sets"), sets)?;
    std::fs::write(node.path("/etc/calico.rules"), chains.join("\n") + "\n")?;
    node.read(&["ipset", "-exist", "restore", "-file", "/etc/calico.sets"])?;
    node.read(&["iptables-restore", "--noflush", "/etc/calico.rules"])?;
    let conflist = r#"{"cniVersion": "0.4.0", "name": "k8s-pod-network", "plugins": [{"type": "calico"}]}"#;
    std::fs::write(node.path("/etc/cni/10-calico.conflist"), conflist)?;
    let install = "cp /opt/cni/bin/bridge /opt/cni/bin/calico && mv /etc/cni/10-calico.conflist /etc/cni/net.d/ && \
                   mv /etc/cni/net.d/10-bridge.conflist /etc/cni/net.d/20-bridge.conflist";
    node.read(&["sh", "-ec", install])?;
    Ok(())
}

/// Where Calico's BIRD has its socket.
const BIRD_SOCKET: &str = "/var/run/calico/bird.ctl";

/// Debian's BIRD with the names and timers that Calico gives it, and one peer.
fn add_bird(node: &Node, peer: &Node) -> Result<()> {
    let (own, other) = (node.address(), peer.address());
    let name = other.replace('.', "_");
    let config = format!(
        "router id {own};\nprotocol device {{ scan time 2; }}\nprotocol kernel {{ learn; persist; scan time 2; \
         ipv4 {{ import none; export none; }}; }}\nprotocol bgp Mesh_{name} {{ local {own} as 64512; neighbor {other} as \
         64512; multihop; connect retry time 3; error wait time 5,60; graceful restart; ipv4 {{ import all; export none; \
         }}; }}\n"
    );
    std::fs::write(node.path("/etc/bird-calico.conf"), config)?;
    node.read(&["mkdir", "-p", "/var/run/calico"])?;
    node.spawn("bird", &["bird", "-f", "-c", "/etc/bird-calico.conf", "-s", BIRD_SOCKET])
}
