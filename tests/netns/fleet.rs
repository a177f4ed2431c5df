//! A node that an aggregator tells of the others: the agent, and on loopback whoever answers its question for the map.

use std::net::TcpListener;
use std::process::Stdio;
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use serde_json::{Value, json};

use crate::machine::{Machine, program};
use crate::recorded::Ports;
use crate::standalone::Running;
use crate::support::netns::NetNs;
use crate::support::wait::eventually;

/// Longer than three silences in a tunnel, on a busy machine.
const SOON: Duration = Duration::from_secs(90);
const API: &str = "127.0.0.1:18080";

/// The agent of one node of a cluster. There is no API server: of all that it is asked, the stand-in answers the question
/// for the map, as the API server's proxy does.
pub struct Fleet<'a> {
    machine: &'a Machine,
    own: String,
    ports: Ports,
    _agent: Running,
    _tokio: tokio::runtime::Runtime,
}

impl<'a> Fleet<'a> {
    /// Starts the agent with this map. Hold-downs of the codes are one second.
    pub fn start(machine: &'a Machine, map: &Value, quick: &[&str]) -> Result<Self> {
        let own = map["own"].as_str().context("whose map it is")?.to_owned();
        let tokio = tokio::runtime::Builder::new_multi_thread().worker_threads(1).enable_all().build()?;
        let mut ports = Ports::default();
        let listener = machine.net().run(|| TcpListener::bind(API))?;
        ports.serve(tokio.handle(), listener, pages(&own, map))?;
        let kubeconfig = format!(
            "clusters: [{{name: c, cluster: {{server: 'http://{API}'}}}}]\nusers: [{{name: u, user: {{}}}}]\n\
             contexts: [{{name: x, context: {{cluster: c, user: u}}}}]\ncurrent-context: x\n"
        );
        machine.write("agent/kubeconfig", kubeconfig)?;
        let holds: serde_json::Map<String, Value> = quick.iter().map(|code| ((*code).to_owned(), json!(1))).collect();
        machine.write("agent/config.yaml", json!({ "holdDownSeconds": holds }).to_string())?;
        let mut command = machine.net().command(program());
        command.args(["agent", "--node-name", &own, "--map-interval", "1", "--host-root", &machine.place("")]);
        command.args(["--kubeconfig", &machine.place("agent/kubeconfig")]);
        command.args(["--config", &machine.place("agent/config.yaml")]);
        command.stdout(Stdio::null()).stderr(std::fs::File::create(machine.path("agent/log"))?);
        let fleet = Fleet { machine, own, ports, _agent: Running(command.spawn()?), _tokio: tokio };
        eventually("the agent has the map", SOON, || {
            let known = fleet.page()?["cluster"]["nodes"].clone();
            ensure!(known == map["nodes"].as_array().map_or(0, Vec::len), "{known}");
            Ok(())
        });
        Ok(fleet)
    }

    /// From now on the aggregator tells this.
    pub fn tell(&self, map: &Value) {
        self.ports.answer(pages(&self.own, map));
    }

    fn page(&self) -> Result<Value> {
        let page = self.machine.run(&["curl", "-sf", "-m", "5", "http://127.0.0.1:10580/findings"])?;
        Ok(serde_json::from_str(&page)?)
    }

    /// What is said of this code: raised, or only seen so far.
    fn said(&self, which: &str, code: &str) -> Result<Vec<Value>> {
        said(&self.page()?["verdict"], which, code)
    }

    /// Waits until one finding of this code is raised that says so; and only one.
    pub fn raises(&self, code: &str, text: &str) {
        self.has("findings", code, text);
    }

    /// Waits until one finding of this code is seen that says so, and whose hold-down has not ended.
    fn sees(&self, code: &str, text: &str) {
        self.has("pending", code, text);
    }

    fn has(&self, which: &str, code: &str, text: &str) {
        eventually(&format!("{code}: {text}"), SOON, || {
            let said = self.said(which, code)?;
            ensure!(said.len() == 1 && said[0].to_string().contains(text), "{said:?}");
            Ok(())
        });
    }

    /// Waits until nothing is seen of codes that begin so; and none of them was ever raised.
    pub fn is_quiet(&self, starts: &[&str]) -> Result<()> {
        eventually("nothing is left of it", SOON, || {
            let pending = self.page()?["verdict"]["pending"].take();
            let mut codes = pending.as_array().into_iter().flatten().filter_map(|it| it["code"].as_str());
            let left = codes.find(|code| starts.iter().any(|start| code.starts_with(start)));
            ensure!(left.is_none(), "{pending}");
            Ok(())
        });
        let log = std::fs::read_to_string(self.machine.path("agent/log"))?;
        let of = |line: &&str| starts.iter().any(|start| line.contains(&format!("code=\"{start}")));
        let raised: Vec<_> = log.lines().filter(|line| line.contains("finding raised")).filter(of).collect();
        ensure!(raised.is_empty(), "raised: {raised:#?}");
        Ok(())
    }

    /// Waits until nothing of this code is raised or seen.
    pub fn clears(&self, code: &str) {
        eventually(&format!("{code} clears"), SOON, || {
            let said = [self.said("findings", code)?, self.said("pending", code)?].concat();
            ensure!(said.is_empty(), "{said:?}");
            Ok(())
        });
    }
}

fn pages(own: &str, map: &Value) -> std::collections::BTreeMap<String, (u16, String)> {
    let service = "/api/v1/namespaces/nodevitals/services/nodevitals-aggregator:http/proxy";
    [(format!("{service}/api/v1/map?node={own}"), (200, map.to_string()))].into()
}

fn ip(machine: &Machine, line: &str) -> Result<String> {
    let mut argv = vec!["ip"];
    argv.extend(line.split(' '));
    machine.run(&argv)
}

/// A cluster without Calico, whose nodes have a range each; routes to those of the others as flannel's host-gw writes them.
fn ranges(nodes: u8) -> Value {
    let node = |number: u8| {
        json!({"name": format!("n{number}"), "ready": true, "addresses": [format!("192.0.2.{}", 4 + number)],
            "blocks": [format!("10.1.{number}.0/24")]})
    };
    json!({"own": "n1", "nodes": (1..=nodes).map(node).collect::<Vec<_>>()})
}

/// What a verdict says of this code, which it must be able to look for: raised, or only seen so far.
pub fn said(verdict: &Value, which: &str, code: &str) -> Result<Vec<Value>> {
    let unknown = verdict["unknown"].as_array().into_iter().flatten().find(|it| it[0] == code);
    ensure!(unknown.is_none(), "{unknown:?}");
    let all = verdict[which].as_array().context("findings")?.iter();
    Ok(all.filter(|finding| finding["code"] == code).cloned().collect())
}

#[test]
fn the_route_to_the_range_of_a_node_goes_and_leads_elsewhere() -> Result<()> {
    let (missing, wrong) = ("RemoteBlockRouteMissing", "RemoteBlockRouteWrongNextHop");
    let machine = Machine::worker()?;
    machine.write("etc/cni/net.d/10-net.conf", r#"{"cniVersion": "1.0.0", "name": "net", "type": "bridge"}"#)?;
    for number in 2..=4 {
        ip(&machine, &format!("route add 10.1.{number}.0/24 via 192.0.2.{}", 4 + number))?;
    }
    let fleet = Fleet::start(&machine, &ranges(4), &[])?;
    fleet.clears(missing);
    ip(&machine, "route del 10.1.3.0/24")?;
    fleet.sees(missing, "node n3 in 10.1.3.0/24 have no route; packets to it would take `default via 192.0.2.1");
    ip(&machine, "route add 10.1.3.0/24 via 192.0.2.8")?;
    fleet.clears(missing);
    fleet.sees(wrong, "10.1.3.0/24 on node n3 leads to 192.0.2.8, which is node n4");
    ip(&machine, "route replace 10.1.3.0/24 via 192.0.2.7")?;
    fleet.clears(wrong);
    // The node leaves, and its route with it.
    fleet.tell(&ranges(3));
    ip(&machine, "route del 10.1.4.0/24")?;
    ip(&machine, "route del 10.1.2.0/24")?;
    fleet.sees(missing, "node n2 in 10.1.2.0/24 have no route");
    ip(&machine, "route add 10.1.2.0/24 via 192.0.2.6")?;
    fleet.clears(missing);
    Ok(())
}

#[test]
fn a_filter_between_nodes_drops_vxlan() -> Result<()> {
    const CODE: &str = "EncapBlocked";
    let (machine, other) = (Machine::worker()?, NetNs::new()?);
    // By its use the agent notices changes of legacy tables at once.
    machine.write("run/xtables.lock", "")?;
    let lock = format!("XTABLES_LOCKFILE={}", machine.place("run/xtables.lock"));
    machine.net().connect("eth1", &other, "eth1")?;
    for number in [1, 2] {
        for line in [
            format!("address add 10.0.0.{number}/24 dev eth1"),
            format!(
                "link add vxlan.calico type vxlan id 4096 dstport 4789 dev eth1 local 10.0.0.{number} remote 10.0.0.{}",
                3 - number
            ),
            format!("address add 10.244.{number}.0/32 dev vxlan.calico"),
            "link set vxlan.calico mtu 1450 up".to_owned(),
            format!("route add 10.244.{}.0/26 dev vxlan.calico", 3 - number),
        ] {
            let argv: Vec<&str> = std::iter::once("ip").chain(line.split(' ')).collect();
            if number == 1 { machine.run(&argv) } else { other.exec(&argv) }?;
        }
    }
    let node = |number: u8| {
        json!({"name": format!("n{number}"), "ready": true, "addresses": [format!("10.0.0.{number}")],
            "tunnels": [format!("10.244.{number}.0")], "blocks": [format!("10.244.{number}.0/26")]})
    };
    let pool = json!({"name": "default", "cidr": "10.244.0.0/16", "vxlan": "always"});
    let fleet = Fleet::start(&machine, &json!({"own": "n1", "nodes": [node(1), node(2)], "pools": [pool]}), &[])?;
    fleet.clears(CODE);
    other.exec(&["iptables", "-I", "INPUT", "-p", "udp", "--dport", "4789", "-j", "DROP"])?;
    fleet.raises(CODE, "The node n2 answers at 10.0.0.2, but not through the tunnel at 10.244.2.0");
    other.exec(&["iptables", "-F"])?;
    fleet.clears(CODE);
    // This node itself drops them: on their way out in a table of somebody else, and on their way in in the other backend.
    let rule = ["-p", "udp", "--dport", "4789", "-j", "DROP"];
    let told = |place: &str| {
        let by = format!("this node itself drops VXLAN (UDP port 4789), by rule `{}` in {place}", rule.join(" "));
        fleet.raises(CODE, &by);
    };
    let chain = "{\ntype filter hook output priority 0\nudp dport 4789 counter drop\n}\n";
    machine.run(&["nft", &format!("table inet guard {{ chain out {chain} }}")])?;
    told("out of table inet guard (nf_tables): it has matched ");
    machine.run(&["nft", "delete table inet guard"])?;
    fleet.clears(CODE);
    for (iptables, backend) in [("iptables-nft", "nf_tables"), ("iptables-legacy", "legacy iptables")] {
        let input = |how: &str| machine.run(&[&["env", &lock, iptables, how, "INPUT"][..], &rule].concat());
        input("-I")?;
        told(&format!("INPUT of table IPv4 filter ({backend}): it has matched "));
        input("-D")?;
        fleet.clears(CODE);
    }
    Ok(())
}

#[test]
fn the_blackhole_of_an_own_block_and_the_tunnel_to_the_others_go_and_come_back() -> Result<()> {
    const CODES: [&str; 2] = ["BlockBlackholeMissing", "TunnelDeviceMissing"];
    const TUNNEL: [&str; 3] = [
        "link add vxlan.calico type vxlan id 4096 dstport 4789 dev uplink local 192.0.2.5",
        "address add 10.244.1.0/32 dev vxlan.calico",
        "link set vxlan.calico mtu 1450 up",
    ];
    let [blackhole, tunnel] = CODES;
    let machine = Machine::worker()?;
    let plugins = r#"{"name": "k8s-pod-network", "cniVersion": "0.3.1", "plugins": [{"type": "calico"}]}"#;
    machine.write("etc/cni/net.d/10-calico.conflist", plugins)?;
    TUNNEL.iter().try_for_each(|line| ip(&machine, line).map(drop))?;
    // As Felix writes it.
    ip(&machine, "route add blackhole 10.244.1.0/26 proto 80")?;
    let node = |number: u8| {
        json!({"name": format!("n{number}"), "ready": true, "addresses": [format!("192.0.2.{}", 4 + number)],
            "tunnels": [format!("10.244.{number}.0")], "blocks": [format!("10.244.{number}.0/26")]})
    };
    let pool = json!({"name": "default", "cidr": "10.244.0.0/16", "vxlan": "always"});
    let map = json!({"own": "n1", "nodes": [node(1), node(2)], "pools": [pool]});
    let fleet = Fleet::start(&machine, &map, &CODES)?;
    for code in CODES {
        fleet.clears(code);
    }

    ip(&machine, "route del blackhole 10.244.1.0/26")?;
    ip(&machine, "link del vxlan.calico")?;
    fleet.raises(blackhole, "The blackhole route of this node's block 10.244.1.0/26 is missing");
    fleet.raises(tunnel, "The tunnel vxlan.calico, which blocks of the pool default need, does not exist");
    ip(&machine, "route add blackhole 10.244.1.0/26 proto 80")?;
    TUNNEL.iter().try_for_each(|line| ip(&machine, line).map(drop))?;
    fleet.clears(blackhole);
    fleet.clears(tunnel);
    for (fault, wrong, cure) in [
        ("link set vxlan.calico down", "is down", TUNNEL[2]),
        ("address del 10.244.1.0/32 dev vxlan.calico", "has no address", TUNNEL[1]),
    ] {
        ip(&machine, fault)?;
        fleet.raises(tunnel, &format!("which blocks of the pool default need, {wrong}"));
        ip(&machine, cure)?;
        fleet.clears(tunnel);
    }
    // The pool that needs it goes: nobody misses it any more.
    fleet.tell(
        &json!({"own": "n1", "nodes": [node(1), node(2)], "pools": [{"name": "default", "cidr": "10.244.0.0/16"}]}),
    );
    ip(&machine, "link del vxlan.calico")?;
    fleet.clears(tunnel);
    Ok(())
}
