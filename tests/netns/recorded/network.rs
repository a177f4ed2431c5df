//! Links, routes and neighbours of a recorded node: what the kernel makes of them by itself is left to it.

use std::collections::BTreeSet;
use std::fmt::Write as _;
use std::fs;

use anyhow::{Context, Result, ensure};
use serde::Deserialize;
use serde_json::Value;

use super::files::Recording;
use super::node::{MASTER, Node, text};

/// The workers' addresses. Those of the others are at the far end of the uplink, as the control plane's is.
const NODES: [&str; 3] = ["10.77.0.11", "10.77.0.12", "10.77.0.13"];

#[derive(Debug, Deserialize)]
struct Network {
    links: Vec<Link>,
    routes: Vec<Route>,
    neighbours: Vec<Neighbour>,
}

#[derive(Debug, Clone, Deserialize)]
struct Link {
    name: String,
    kind: String,
    mtu: u32,
    address: String,
    up: bool,
    master: Option<String>,
    #[serde(default)]
    addresses: Vec<String>,
}

#[derive(Debug, Deserialize)]
struct Route {
    #[serde(rename = "type")]
    kind: String,
    dst: String,
    gateway: Option<String>,
    dev: Option<String>,
    protocol: String,
    scope: String,
    metric: Option<u32>,
}

#[derive(Debug, Deserialize)]
struct Neighbour {
    dst: String,
    dev: String,
    lladdr: String,
}

impl Node {
    /// Links, addresses, routes and neighbours.
    pub fn set_network(&mut self, recording: &Recording) -> Result<()> {
        let network: Network = serde_json::from_str(recording.text("network.json")?)?;
        let missing: Vec<Link> =
            network.links.iter().filter(|link| !self.links.contains(&link.name)).cloned().collect();
        self.plug(&missing, &network)?;
        let wanted: BTreeSet<String> = network.links.iter().map(|link| link.name.clone()).collect();
        let mut batch = String::new();
        for gone in self.links.difference(&wanted) {
            writeln!(batch, "link del {gone}")?;
        }
        for link in &network.links {
            let state = if link.up { "up" } else { "down" };
            writeln!(batch, "link set {} {state}", link.name)?;
        }
        let routes: BTreeSet<String> = network.routes.iter().map(Route::arguments).collect();
        for gone in self.routes.difference(&routes) {
            writeln!(batch, "route del {gone}")?;
        }
        // Those that the kernel took away with their link come back with it.
        for route in &network.routes {
            writeln!(batch, "route replace {}", route.arguments())?;
        }
        for Neighbour { dst, dev, lladdr } in network.neighbours.iter().filter(|it| it.dst != MASTER) {
            writeln!(batch, "neigh replace {dst} lladdr {lladdr} dev {dev} nud permanent")?;
        }
        // A route that has gone with its link cannot be deleted.
        self.feed("ip -force -batch - 2>/dev/null || true", &batch)?;
        let held = self.run(&["ip", "route"])?;
        let missing = network.routes.iter().find(|route| !held.contains(&format!("{} ", route.dst)));
        ensure!(missing.is_none(), "the route {missing:?} is not there: {held}");
        (self.links, self.routes) = (wanted, routes);
        Ok(())
    }

    /// Makes links with their addresses. The first is the uplink.
    fn plug(&self, links: &[Link], network: &Network) -> Result<()> {
        let (mut far, mut near) = (String::new(), String::new());
        let init = self.host.init();
        for (at, link) in links.iter().enumerate() {
            let Link { name, mtu, address, .. } = link;
            if link.kind == "bridge" {
                writeln!(near, "link add {name} address {address} mtu {mtu} type bridge")?;
            } else {
                let other =
                    if name == "eth0" { "uplink".to_owned() } else { format!("p{at}{}", &name[name.len() - 6..]) };
                writeln!(
                    far,
                    "link add {other} mtu {mtu} type veth peer name {name} address {address} mtu {mtu} netns {init}"
                )?;
                writeln!(far, "link set {other} up")?;
            }
            for address in &link.addresses {
                writeln!(near, "address add {address} dev {name}")?;
            }
        }
        for link in links {
            if let Some(master) = &link.master {
                writeln!(near, "link set {} master {master}", link.name)?;
            }
        }
        if let Some(uplink) = links.iter().find(|link| link.name == "eth0") {
            let gateway =
                network.neighbours.iter().find(|it| it.dst == MASTER).context("the gateway's neighbour entry")?;
            writeln!(far, "link set uplink address {}", gateway.lladdr)?;
            let own = |node: &&str| uplink.addresses.iter().any(|address| address.starts_with(&format!("{node}/")));
            for address in NODES.iter().filter(|node| !own(node)).chain([&MASTER]) {
                writeln!(far, "address add {address}/24 dev uplink")?;
            }
        }
        let file = self.path("logs/far.batch");
        fs::write(&file, far)?;
        self.far.exec(&["ip", "-batch", text(&file)?])?;
        self.batch(&near)?;
        links.iter().filter(|link| link.name.starts_with("cali")).try_for_each(|link| self.set_pod_switches(&link.name))
    }

    /// Brings the end of a link inside its pod up or down.
    pub fn set_inside(&self, link: &str, state: &str) -> Result<()> {
        let here: Value = serde_json::from_str(&self.run(&["ip", "-json", "link", "show", "dev", link])?)?;
        let there: Value = serde_json::from_str(&self.far.exec(&["ip", "-json", "link"])?)?;
        let inside = there.as_array().into_iter().flatten().find(|it| it["ifindex"] == here[0]["link_index"]);
        let name = inside.and_then(|it| it["ifname"].as_str()).context("the end inside the pod")?;
        self.far.exec(&["ip", "link", "set", name, state])?;
        Ok(())
    }

    /// The switches of a link to a pod that the CNI plugin and Felix set, which no recording holds.
    pub fn set_pod_switches(&self, link: &str) -> Result<()> {
        let switches = "for switch in proxy_arp route_localnet forwarding; do echo 1 > $0/$switch; done";
        self.run(&["sh", "-c", switches, &format!("/proc/sys/net/ipv4/conf/{link}")])?;
        Ok(())
    }
}

impl Route {
    fn arguments(&self) -> String {
        let Route { kind, dst, gateway, dev, protocol, scope, metric } = self;
        let mut text = format!("{kind} {dst}");
        let options = [("via", gateway), ("dev", dev)];
        for (name, value) in options.into_iter().filter_map(|(name, value)| Some((name, value.as_ref()?))) {
            write!(text, " {name} {value}").expect("into memory");
        }
        write!(text, " proto {protocol}").expect("into memory");
        if kind == "unicast" {
            write!(text, " scope {scope}").expect("into memory");
        }
        if let Some(metric) = metric {
            write!(text, " metric {metric}").expect("into memory");
        }
        text
    }
}
