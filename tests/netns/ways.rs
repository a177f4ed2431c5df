//! The ways out of a worker, cut for real between two network namespaces: to some API servers, to all of them, to a private
//! endpoint, to another node, to a registry.

use std::collections::BTreeMap;
use std::net::TcpListener;
use std::process::Stdio;
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use serde_json::{Value, json};

use crate::fleet::{Fleet, said};
use crate::machine::{Checked, Machine, program};
use crate::recorded::{Ports, kubeconfig};
use crate::standalone::{Running, verdict};
use crate::support::host::tail;
use crate::support::netns::NetNs;
use crate::support::wait::within;

const SOON: Duration = Duration::from_secs(60);
/// A look at a registry that was lost is repeated every 30 s.
const REGISTRY_SOON: Duration = Duration::from_secs(90);
const FIREWALL: &str = "WorkerFirewallBlocked";
const GATEWAY: &str = "VpeGatewaySuspected";
const UNREACHABLE: &str = "MasterUnreachable";
/// Two API servers, and the address of one of them on the Internet.
const SERVERS: [&str; 3] = ["10.0.0.101", "10.0.0.102", "198.51.100.9"];
const REGISTRY: &str = "10.0.0.5:5000";
/// kube-proxy's rules of the API servers' Service.
const RULES: &str = "*nat
:KUBE-SERVICES - [0:0]
:KUBE-SVC-NPX46M4PTMTKRN6Y - [0:0]
:KUBE-SEP-AAAAAAAAAAAAAAAA - [0:0]
:KUBE-SEP-BBBBBBBBBBBBBBBB - [0:0]
-A PREROUTING -j KUBE-SERVICES
-A OUTPUT -j KUBE-SERVICES
-A KUBE-SERVICES -d 10.96.0.1/32 -p tcp -m comment --comment \"default/kubernetes:https cluster IP\" -m tcp --dport 443 -j KUBE-SVC-NPX46M4PTMTKRN6Y
-A KUBE-SVC-NPX46M4PTMTKRN6Y -m comment --comment \"default/kubernetes:https -> 10.0.0.101:6443\" -m statistic --mode random --probability 0.50000000000 -j KUBE-SEP-AAAAAAAAAAAAAAAA
-A KUBE-SVC-NPX46M4PTMTKRN6Y -m comment --comment \"default/kubernetes:https -> 10.0.0.102:6443\" -j KUBE-SEP-BBBBBBBBBBBBBBBB
-A KUBE-SEP-AAAAAAAAAAAAAAAA -p tcp -m comment --comment \"default/kubernetes:https\" -m tcp -j DNAT --to-destination 10.0.0.101:6443
-A KUBE-SEP-BBBBBBBBBBBBBBBB -p tcp -m comment --comment \"default/kubernetes:https\" -m tcp -j DNAT --to-destination 10.0.0.102:6443
COMMIT
";

/// A worker at 10.0.0.1 without a public address, and at the other end of its cable everybody else.
struct World {
    machine: Machine,
    far: NetNs,
    _servers: Vec<Ports>,
    _tokio: tokio::runtime::Runtime,
}

impl World {
    fn new() -> Result<Self> {
        let (machine, far) = (Machine::plain()?, NetNs::new()?);
        machine.write("var/lib/kubelet/config.yaml", "kind: KubeletConfiguration\nhealthzPort: 0\n")?;
        machine.net().connect("eth0", &far, "eth0")?;
        for own in [254, 2, 3, 4, 5, 101, 102].map(|number| format!("10.0.0.{number}/24")) {
            far.exec(&["ip", "address", "add", &own, "dev", "eth0"])?;
        }
        far.exec(&["ip", "address", "add", &format!("{}/32", SERVERS[2]), "dev", "eth0"])?;
        machine.run(&["ip", "address", "add", "10.0.0.1/24", "dev", "eth0"])?;
        machine.run(&["ip", "route", "add", "default", "via", "10.0.0.254"])?;
        let tokio = tokio::runtime::Builder::new_multi_thread().worker_threads(1).enable_all().build()?;
        let page = |path: &str, status| BTreeMap::from([(path.to_owned(), (status, "{}".to_owned()))]);
        let mut servers = Vec::new();
        let registry = (REGISTRY.to_owned(), page("/v2/", 401));
        for (at, pages) in SERVERS.map(|it| (format!("{it}:6443"), page("/version", 200))).into_iter().chain([registry])
        {
            let mut ports = Ports::default();
            ports.serve(tokio.handle(), far.run(|| TcpListener::bind(&at))?, pages)?;
            servers.push(ports);
        }
        let world = World { machine, far, _servers: servers, _tokio: tokio };
        world.kubelet_goes_to(SERVERS[0])?;
        Ok(world)
    }

    fn kubelet_goes_to(&self, host: &str) -> Result<()> {
        self.machine.write("etc/kubernetes/kubelet.conf", kubeconfig(&format!("{host}:6443")))
    }

    /// From now on everybody else does this with what the worker sends, and with nothing else.
    fn cut(&self, rules: &[&str]) -> Result<()> {
        self.far.exec(&["iptables", "-F"])?;
        for rule in rules {
            let rule: Vec<&str> = ["iptables", "-A", "INPUT"].into_iter().chain(rule.split(' ')).collect();
            self.far.exec(&rule)?;
        }
        Ok(())
    }

    /// Looks until the look has walked to the API servers that are known, and answers what it tells of this code.
    fn told(&self, code: &str, endpoints: usize) -> Result<(Checked, Option<Value>)> {
        within(SOON, || {
            let checked = self.machine.check()?;
            let ways = &checked.json["snapshot"]["controlPlane"];
            let walked = ways["yes"]["endpoints"].as_array().context("no ways")?.len();
            ensure!(walked == endpoints, "{walked} of {endpoints} ways: {ways}");
            let blind = checked.unknown().into_iter().find(|(unknown, _)| *unknown == code);
            ensure!(blind.is_none(), "{blind:?}");
            let told = checked.finding(code).ok().cloned();
            Ok((checked, told))
        })
    }

    fn tells(&self, code: &str, endpoints: usize, words: &str) -> Result<Checked> {
        let (checked, told) = self.told(code, endpoints)?;
        let finding = told.with_context(|| format!("no {code}: {:?}", checked.codes()))?;
        ensure!(finding.to_string().contains(words), "{words:?}: {finding}");
        Ok(checked)
    }

    fn is_silent(&self, code: &str, endpoints: usize) -> Result<Checked> {
        let (checked, told) = self.told(code, endpoints)?;
        ensure!(told.is_none(), "{told:?}");
        Ok(checked)
    }
}

#[test]
fn one_of_two_api_servers_refuses() -> Result<()> {
    const CODE: &str = "MasterPathPartial";
    let world = World::new()?;
    world.machine.feed(&["iptables-nft-restore"], RULES)?;
    world.is_silent(CODE, 2)?;
    world.cut(&["-d 10.0.0.102 -p tcp --dport 6443 -j REJECT --reject-with tcp-reset"])?;
    let checked = world.tells(
        CODE,
        2,
        "The API server 10.0.0.102:6443 cannot be reached, while 1 of 2 can: refused: the other end answers that nobody listens",
    )?;
    let finding = checked.finding(CODE)?;
    ensure!(finding["subject"] == "10.0.0.102:6443" && finding["severity"] == "warning", "{finding}");
    ensure!(checked.finding(UNREACHABLE).is_err(), "{:?}", checked.codes());
    // The kubelet's own way is another story.
    world.cut(&["-d 10.0.0.101 -p tcp --dport 6443 -j REJECT --reject-with tcp-reset"])?;
    let checked = world.is_silent(CODE, 2)?;
    ensure!(checked.finding(UNREACHABLE)?["detail"].to_string().contains("refused"), "{:?}", checked.codes());
    world.cut(&[])?;
    let checked = world.is_silent(CODE, 2)?;
    ensure!(checked.finding(UNREACHABLE).is_err(), "{:?}", checked.codes());
    Ok(())
}

#[test]
fn a_firewall_before_a_public_endpoint_and_a_private_endpoint_that_does_not_let_in() -> Result<()> {
    let world = World::new()?;
    world.kubelet_goes_to("198.51.100.9")?;
    world.is_silent(FIREWALL, 0)?;
    world.cut(&["-d 198.51.100.9 -p tcp --dport 6443 -j DROP"])?;
    let words = "A firewall keeps this worker from its control plane at 198.51.100.9:6443: TCP to that port is dropped, while the same host answers at another port";
    let checked = world.tells(FIREWALL, 0, words)?;
    let next = checked.finding(FIREWALL)?["next"].to_string();
    ensure!(next.contains("this worker has no public address, which is a design and no fault"), "{next}");
    // A host that answers nothing may be off.
    world.cut(&["-d 198.51.100.9 -j DROP"])?;
    let checked = world.is_silent(FIREWALL, 0)?;
    ensure!(checked.finding(UNREACHABLE)?["detail"].to_string().contains("timed out"), "{:?}", checked.codes());
    world.cut(&[])?;
    let checked = world.is_silent(FIREWALL, 0)?;
    ensure!(checked.finding(UNREACHABLE).is_err(), "{:?}", checked.codes());

    // The same worker by the name of an endpoint gateway; without a resolver names are those of this file.
    let host = "c1.private.us-south.containers.cloud.ibm.com";
    world.machine.write("hosts", format!("127.0.0.1 localhost\n10.0.0.101 {host}\n"))?;
    world.machine.write("resolv.conf", "")?;
    for file in ["hosts", "resolv.conf"] {
        world.machine.run(&["mount", "--bind", &world.machine.place(file), &format!("/etc/{file}")])?;
    }
    world.kubelet_goes_to(host)?;
    world.is_silent(GATEWAY, 0)?;
    let lets_in =
        format!("The private endpoint of the control plane ({host}:6443, 10.0.0.101) does not let this worker in: ");
    for (how, why) in [("DROP", "timed out: "), ("REJECT --reject-with tcp-reset", "refused: ")] {
        world.cut(&[&format!("-d 10.0.0.101 -p tcp --dport 6443 -j {how}")])?;
        let checked = world.tells(GATEWAY, 0, &format!("{lets_in}{why}"))?;
        ensure!(checked.finding(FIREWALL).is_err(), "it is one fault: {:?}", checked.codes());
    }
    world.cut(&[])?;
    world.is_silent(GATEWAY, 0)?;
    world.machine.write("hosts", "127.0.0.1 localhost\n")?;
    world.tells(GATEWAY, 0, "name resolution: ")?;
    world.machine.write("hosts", format!("127.0.0.1 localhost\n10.0.0.101 {host}\n"))?;
    world.is_silent(GATEWAY, 0)?;
    Ok(())
}

#[test]
fn a_node_that_is_dead_and_one_that_has_only_lost_its_control_plane() -> Result<()> {
    const DEAD: &str = "WorkerUnreachableFromPeers";
    const CUT: &str = "WorkerCutFromMasterOnly";
    let world = World::new()?;
    let map = |ready: bool| {
        let node = |number: u8| json!({"name": format!("n{number}"), "ready": number != 4 || ready, "addresses": [format!("10.0.0.{number}")]});
        let port = json!({"name": "https", "protocol": "TCP", "port": 443,
            "endpoints": [["10.0.0.101", 6443], ["10.0.0.102", 6443]]});
        let service = json!({"namespace": "default", "name": "kubernetes", "clusterIps": [], "ports": [port]});
        json!({"own": "n1", "nodes": (1..=4).map(node).collect::<Vec<_>>(), "services": [service]})
    };
    let codes = [DEAD, CUT, FIREWALL];
    let fleet = Fleet::start(&world.machine, &map(true), &codes)?;
    for code in codes {
        fleet.clears(code);
    }
    world.cut(&["-d 10.0.0.4 -j DROP"])?;
    fleet.tell(&map(false));
    fleet.raises(DEAD, "Node n4, which is not ready, does not answer from here: TCP to 10.0.0.4, ports 10250 and 9");
    // Whoever has lost the control plane itself knows nothing new of others, and asks those that were ready.
    world.cut(&["-d 10.0.0.101 -j DROP", "-d 10.0.0.102 -j DROP"])?;
    fleet.raises(CUT, "This node reaches 2 of the 2 other nodes that it asked (n2, n3), and no API server");
    fleet.raises(FIREWALL, "TCP to all 2 known addresses of it is dropped, while 2 other nodes answer");
    world.cut(&[])?;
    // It is still not ready, and answers.
    for code in codes {
        fleet.clears(code);
    }
    Ok(())
}

/// A real containerd that keeps an image of that registry, and says so below the machine's root.
fn containerd_with_an_image(machine: &Machine) -> Result<Running> {
    let at = |place: &str| machine.place(place);
    let config = format!("version = 2\n[plugins.\"io.containerd.internal.v1.opt\"]\n  path = \"{}\"\n", at("opt"));
    machine.write("etc/containerd/config.toml", config)?;
    let server = format!("server = \"http://{REGISTRY}\"\n");
    machine.write(&format!("etc/containerd/certs.d/{REGISTRY}/hosts.toml"), server)?;
    let image =
        r#"{"architecture": "amd64", "os": "linux", "config": {}, "rootfs": {"type": "layers", "diff_ids": []}}"#;
    machine.write("image/config.json", image)?;
    let manifest = json!([{"Config": "config.json", "RepoTags": [format!("{REGISTRY}/x:1")], "Layers": []}]);
    machine.write("image/manifest.json", manifest.to_string())?;
    let (socket, archive) = (at("run/containerd/containerd.sock"), at("image.tar"));
    machine.run(&["tar", "-C", &at("image"), "-cf", &archive, "manifest.json", "config.json"])?;
    let mut command = machine.net().command("containerd");
    command.args(["--config", &at("etc/containerd/config.toml"), "--address", &socket]);
    command.args(["--root", &at("containerd"), "--state", &at("state")]);
    command.stdout(Stdio::null()).stderr(std::fs::File::create(machine.path("containerd.log"))?);
    let running = Running(command.spawn()?);
    let ctr = ["ctr", "--connect-timeout", "1s", "--address", &socket, "--namespace", "k8s.io"];
    let import = [&ctr[..], &["images", "import", "--no-unpack", &archive]].concat();
    within(SOON, || machine.run(&import)).with_context(|| tail(&machine.path("containerd.log")))?;
    Ok(running)
}

#[test]
fn a_registry_that_was_reached_is_lost_while_the_agent_is_updated() -> Result<()> {
    const CODE: &str = "RegistryUnreachable";
    let world = World::new()?;
    let machine = &world.machine;
    let _containerd = containerd_with_an_image(machine)?;
    machine.write("agent/config.yaml", json!({"holdDownSeconds": {CODE: 1}, "clearSeconds": {CODE: 1}}).to_string())?;
    let kubeconfig = std::fs::read_to_string(machine.path("etc/kubernetes/kubelet.conf"))?;
    machine.write("agent/kubeconfig", kubeconfig)?;
    std::fs::create_dir(machine.path("agent/state"))?;
    let start = || -> Result<Running> {
        let mut command = machine.net().command(program());
        command.args(["agent", "--node-name", "n1", "--map-interval", "0", "--host-root", &machine.place("")]);
        command.args([
            "--kubeconfig",
            &machine.place("agent/kubeconfig"),
            "--state-dir",
            &machine.place("agent/state"),
        ]);
        command.args(["--config", &machine.place("agent/config.yaml")]).stdout(Stdio::null());
        command.stderr(std::fs::File::create(machine.path("agent/log"))?);
        Ok(Running(command.spawn()?))
    };
    let told = || -> Result<Option<Value>> { Ok(said(&verdict(machine)?, "findings", CODE)?.into_iter().next()) };
    let log = || tail(&machine.path("agent/log"));
    let agent = start()?;
    let remembered = || -> Result<()> {
        let state = std::fs::read_to_string(machine.path("agent/state/state.json"))?;
        ensure!(state.contains(REGISTRY), "{state}");
        Ok(())
    };
    within(SOON, remembered).with_context(log)?;
    ensure!(told()?.is_none(), "{:?}", told());
    drop(agent);
    world.cut(&["-d 10.0.0.5 -p tcp --dport 5000 -j REJECT --reject-with tcp-reset"])?;
    let _agent = start()?;
    let finding = within(SOON, || told()?.context("not told yet")).with_context(log)?;
    let detail = finding["detail"].to_string();
    ensure!(finding["subject"] == REGISTRY && finding["severity"] == "warning", "{finding}");
    ensure!(detail.contains(&format!("Images of {REGISTRY} cannot be pulled: {REGISTRY} refuses TCP")), "{finding}");
    world.cut(&[])?;
    within(REGISTRY_SOON, || {
        let finding = told()?;
        ensure!(finding.is_none(), "{finding:?}");
        Ok(())
    })
    .with_context(log)
}
