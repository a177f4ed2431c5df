//! Three nodes that are a mesh, each with its own kernel's routes and its agent: what one of them does not route, or routes
//! alone, is told by name, without any agent watching another and without a write; and so is whose links have another MTU.

use std::time::Duration;

use anyhow::{Context, Result, ensure};
use serde_json::{Value, json};

use crate::bench::{Bench, Running, program, soon};
use crate::map::{calico, findings, leads_to, no_calico, object};
use crate::support::host::Host;
use crate::support::wait::eventually;

const NODES: [u8; 3] = [1, 2, 3];
/// Long enough to be seen as one, short enough for a test; the default is longer than BGP needs.
const HOLD: &str = "4";
/// An agent whose question was not answered in time asks again after up to 120 s, and tells its sums with it.
const ASKED_AGAIN: Duration = Duration::from_secs(150);
/// An MTU has to differ for six times as long.
const MTU_HOLD: Duration = Duration::from_secs(90);

fn name(node: u8) -> String {
    format!("mesh{node}")
}

fn address(node: u8) -> String {
    format!("10.77.0.{}", 20 + node)
}

fn block(node: u8) -> String {
    format!("172.30.{node}.0/26")
}

/// A node with the routes that BIRD writes, and its agent.
struct Worker {
    host: Host,
}

impl Worker {
    fn start(bench: &Bench, node: u8) -> Result<Self> {
        let root = bench.workspace().directory().join(format!("root-{}", name(node)));
        for directory in ["proc", "etc", "run", "var/log"] {
            std::fs::create_dir_all(root.join(directory))?;
        }
        let root = root.display().to_string();
        let setup = format!("mount --rbind /proc {root}/proc");
        let host = Host::start(&name(node), &setup, &[], bench.workspace().logs())?;
        let (cable, inside) = (format!("veth-{}", name(node)), host.init().to_string());
        let link = ["ip", "link", "add", &cable, "type", "veth", "peer", "name", "eth0", "netns", &inside];
        bench.exec_in_ns(&link)?;
        bench.exec_in_ns(&["ip", "link", "set", &cable, "master", "br0", "up"])?;
        let worker = Worker { host };
        worker.ip(&format!("address add {}/24 dev eth0", address(node)))?;
        worker.ip("link set eth0 up")?;
        // What Calico makes for a Pod.
        worker.ip("link add cali1 mtu 1450 type veth peer name pod1")?;
        worker.ip("link set cali1 up")?;
        for other in NODES {
            if other == node {
                worker.ip(&format!("route add blackhole {} proto bird", block(node)))?;
            } else {
                worker.ip(&format!("route add {} via {} proto bird", block(other), address(other)))?;
            }
        }
        let kubeconfig = bench.kubeconfig_of("agent", &format!("agent-{}", name(node)))?.display().to_string();
        let program = program().display().to_string();
        let name = name(node);
        let arguments = [
            &program,
            "agent",
            "--node-name",
            &name,
            "--kubeconfig",
            &kubeconfig,
            "--host-root",
            &root,
            "--map-interval",
            "1",
            "--listen",
            "0.0.0.0:10580",
        ];
        worker.host.spawn("agent", &arguments)?;
        Ok(worker)
    }

    fn register(bench: &Bench, node: u8) -> Result<()> {
        let name = name(node);
        bench.add_node(&name, &json!({}))?;
        let addresses = json!([{"type": "InternalIP", "address": address(node)}]);
        let path = format!("PATCH strategic /api/v1/nodes/{name}/status");
        bench.admin(&path, &json!({"status": {"addresses": addresses}}))?;
        bench.add_agent_pod(&name)?;
        bench.set_ready(&format!("agent-{name}"), true)?;
        let spec = json!({"node": name, "cidr": block(node), "state": "confirmed", "deleted": "false"});
        bench.apply(&object("BlockAffinity", &name, &spec).to_string())?;
        Ok(())
    }

    fn ip(&self, line: &str) -> Result<String> {
        let argv: Vec<&str> = std::iter::once("ip").chain(line.split(' ')).collect();
        self.host.read(&argv)
    }
}

/// What is said of the mesh.
fn told(aggregator: &Running) -> Result<Vec<Value>> {
    let mut all = findings(aggregator)?;
    all.retain(|finding| finding["code"] == "PodRouteSetDiffers");
    Ok(all)
}

fn is_well(aggregator: &Running) -> Result<()> {
    let all = told(aggregator)?;
    ensure!(all.is_empty(), "{all:#?}");
    Ok(())
}

fn is_told(aggregator: &Running, worker: &str, detail: &str) -> Result<Value> {
    let all = told(aggregator)?;
    ensure!(all.len() == 1 && all[0]["workers"] == json!([worker]), "{all:#?}");
    ensure!(all[0]["detail"].as_str().is_some_and(|it| it.contains(detail)), "{}", all[0]);
    Ok(all[0].clone())
}

#[test]
fn a_block_that_one_node_lacks_or_has_alone_is_named() -> Result<()> {
    let bench = Bench::take()?;
    calico(&bench)?;
    let pool = json!({"cidr": "172.30.0.0/16", "ipipMode": "Never", "vxlanMode": "Never"});
    bench.apply(&object("IPPool", "default-ipv4-ippool", &pool).to_string())?;
    NODES.into_iter().try_for_each(|node| Worker::register(&bench, node))?;
    bench.add_pod("aggregator-m", "aggregator", &name(1))?;
    let aggregator = bench.aggregator_with("aggregator-m", &["--agreement-hold", HOLD])?;
    // Before the agents: one that has found nobody asks again after a time that doubles.
    leads_to(&bench, aggregator.port)?;
    let workers = NODES.map(|node| Worker::start(&bench, node));
    let [first, second, third] = workers;
    let (_first, second, third) = (first?, second?, third?);
    let page = || second.host.read(&["curl", "-sf", "http://127.0.0.1:10580/blocks?family=4&parts=ffff"]);
    soon("the agent knows what it routes", || {
        let page: Value = serde_json::from_str(&page()?)?;
        ensure!(page["blocks"] == json!(NODES.map(block)), "{page}");
        Ok(())
    });
    // Longer than the hold-down, so that all have said the same for it.
    std::thread::sleep(Duration::from_secs(8));
    is_well(&aggregator)?;

    second.ip(&format!("route del {}", block(3)))?;
    let finding = eventually("the missing block", ASKED_AGAIN, || {
        is_told(&aggregator, "mesh2", "mesh2 has no route to pods in 172.30.3.0/26 of mesh3")
    });
    ensure!(finding["severity"] == "warning" && finding["since"].is_string(), "{finding}");
    ensure!(finding["next"].as_str().is_some_and(|next| next.contains("ip route show 172.30.3.0/26")), "{finding}");
    aggregator.check_metrics()?;
    second.ip(&format!("route add {} via {} proto bird", block(3), address(3)))?;
    soon("it is over", || is_well(&aggregator));

    third.ip(&format!("route add 172.30.9.0/26 via {} proto bird", address(1)))?;
    soon("the extra block", || is_told(&aggregator, "mesh3", "mesh3 has routes to pods in 172.30.9.0/26 of no node"));
    third.ip("route del 172.30.9.0/26")?;
    soon("that is over too", || is_well(&aggregator));

    second.ip("link set cali1 mtu 1480")?;
    let finding = eventually("another MTU", MTU_HOLD, || {
        let all = findings(&aggregator)?;
        let found = all.iter().find(|finding| finding["code"] == "MtuMismatch");
        found.cloned().with_context(|| format!("{all:#?}"))
    });
    ensure!(finding["workers"] == json!(["mesh2"]) && finding["severity"] == "warning", "{finding}");
    ensure!(finding["detail"].as_str().is_some_and(|it| it.contains("1480 on mesh2, 1450 on mesh1")), "{finding}");
    second.ip("link set cali1 mtu 1450")?;
    soon("it is the same again", || {
        let all = findings(&aggregator)?;
        ensure!(all.iter().all(|finding| finding["code"] != "MtuMismatch"), "{all:#?}");
        Ok(())
    });
    drop(aggregator);
    no_calico(&bench)
}
