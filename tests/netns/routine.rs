//! Routine is not a fault: what happens on every worker every day, under a running agent that has to keep quiet about it.

use std::fmt::Write as _;
use std::fs;
use std::thread::sleep;
use std::time::Duration;

use anyhow::{Context, Result, ensure};

use serde_json::Value;

use crate::recorded::{Api, Node, Pod, Recording, cluster, codes, pods};
use crate::rules::NATIVE;
use crate::support::wait::within;

const HEALTHY: (&str, &str) = ("01-healthy", "before");
const SOON: Duration = Duration::from_secs(25);

/// A healthy worker, and the agent that follows it with the map of its cluster; all codes are judged.
fn healthy(name: &str) -> Result<(Node, Api, Recording)> {
    let recording = Recording::read(HEALTHY.0, HEALTHY.1, name)?;
    let (node, api) = followed(name, &recording)?;
    Ok((node, api, recording))
}

fn followed(name: &str, recording: &Recording) -> Result<(Node, Api)> {
    let mut node = Node::empty(name)?;
    node.become_(recording)?;
    let api = node.follow(&cluster(HEALTHY.0, name)?)?;
    Ok((node, api))
}

/// Nothing was ever raised, and in the end nothing is seen either.
fn was_quiet(node: &Node) -> Result<()> {
    within(SOON, || {
        ensure!(codes(&node.verdict()?["pending"]).is_empty(), "{}", node.verdict()?);
        Ok(())
    })?;
    let raised = node.ever_raised()?;
    ensure!(raised.is_empty(), "raised: {raised:#?}");
    ensure!(node.verdict()?["state"] == "Normal", "{}", node.verdict()?);
    Ok(())
}

/// What kube-proxy feeds to `iptables-restore --noflush` for one table: its chains, which this empties, then its rules.
fn kube_proxy_sync(save: &str, table: &str) -> Result<String> {
    let start = save.find(&format!("*{table}\n")).context("the table")?;
    let lines = save[start..].lines().skip(1).take_while(|line| *line != "COMMIT");
    let own = lines.filter(|line| line.starts_with(":KUBE-") || line.starts_with("-A KUBE-"));
    Ok(format!("*{table}\n{}\nCOMMIT\n", own.collect::<Vec<_>>().join("\n")))
}

/// What kube-proxy does at the beginning of a full sync: for each jump, `iptables -N` its chain, then the rule if it is
/// not there.
fn ensure_jumps(node: &Node, save: &str, table: &str, backend: &str) -> Result<()> {
    let start = save.find(&format!("*{table}\n")).context("the table")?;
    let lines = save[start..].lines().skip(1).take_while(|line| *line != "COMMIT");
    for line in lines.filter(|line| line.starts_with("-A ") && !line.starts_with("-A KUBE-")) {
        let (rule, Some((_, chain))) = (&line[3..], line.split_once(" -j KUBE-")) else { continue };
        let lock = node.path("run/xtables.lock");
        let iptables = format!("XTABLES_LOCKFILE={} iptables-{backend} -w -t {table}", lock.display());
        let command =
            format!("{iptables} -N KUBE-{chain} 2>/dev/null; {iptables} -C {rule} 2>/dev/null || {iptables} -A {rule}");
        node.run(&["sh", "-c", &command])?;
    }
    Ok(())
}

#[test]
fn kube_proxy_restarts_and_writes_everything_again() -> Result<()> {
    let (mut node, _api, recording) = healthy("n2")?;
    let save = recording.text("iptables-nft-save.txt")?;
    kube_proxy_restarts(&mut node, &recording, |node| kube_proxy_starts(node, save, "nft"))
}

#[test]
fn kube_proxy_restarts_with_legacy_iptables() -> Result<()> {
    let (save, empty) = ("iptables-nft-save.txt", "iptables-legacy-save.txt");
    let recording = Recording::read(HEALTHY.0, HEALTHY.1, "n2")?;
    let rules = recording.text(save)?.to_owned();
    let no_rules = recording.text(empty)?.to_owned();
    let recording = recording.with(empty, &rules).with(save, &no_rules).with("ip6tables-nft-save.txt", &no_rules);
    let (mut node, _api) = followed("n2", &recording)?;
    kube_proxy_restarts(&mut node, &recording, |node| kube_proxy_starts(node, &rules, "legacy"))
}

/// The worker's recording with kube-proxy's rules taken out of iptables, and the kubelet's left there.
fn without_kube_proxys_rules(name: &str) -> Result<Recording> {
    let of_others = |line: &str| {
        let chain = line.split(' ').find_map(|word| word.trim_start_matches(':').strip_prefix("KUBE-"));
        chain.is_none_or(|chain| chain.starts_with("KUBELET") || chain.starts_with("IPTABLES") || chain == "FIREWALL")
    };
    let recording = Recording::read(HEALTHY.0, HEALTHY.1, name)?;
    recording.keeping("iptables-nft-save.txt", of_others)?.keeping("ip6tables-nft-save.txt", of_others)
}

#[test]
fn kube_proxy_restarts_in_its_nftables_mode() -> Result<()> {
    let recording = without_kube_proxys_rules("n2")?;
    let programs = recording.text("ps.txt")?.replace("--proxy-mode=iptables", "--proxy-mode=nftables");
    let recording = recording.with("ps.txt", &programs);
    let mut node = Node::empty("n2")?;
    node.become_(&recording)?;
    node.feed("nft -f -", NATIVE)?;
    let _api = node.follow(&cluster(HEALTHY.0, "n2")?)?;
    // One transaction: every chain is emptied and written again, and none is gone for a moment.
    let mut sync = String::new();
    let mut table = "";
    for line in NATIVE.lines().map(str::trim) {
        if let Some(name) = line.strip_prefix("table ") {
            table = name.trim_end_matches(" {");
        } else if let Some((chain, _)) = line.strip_prefix("chain ").and_then(|rest| rest.split_once(' ')) {
            writeln!(sync, "flush chain {table} {chain}")?;
        }
    }
    ensure!(sync.contains("services"), "{sync}");
    sync.push_str(NATIVE);
    kube_proxy_restarts(&mut node, &recording, |node| node.feed("nft -f -", &sync))
}

/// kube-proxy goes and is back, twice; `starts` is what it does then.
fn kube_proxy_restarts(node: &mut Node, recording: &Recording, starts: impl Fn(&Node) -> Result<()>) -> Result<()> {
    let dead = recording.clone().keeping("ps.txt", |line| !line.contains("kube-proxy"))?.refusing("kube-proxy");
    for _ in 0..2 {
        node.become_(&dead)?;
        sleep(Duration::from_millis(1500));
        node.become_(recording)?;
        starts(node)?;
    }
    was_quiet(node)
}

/// A full sync with iptables, after a start.
fn kube_proxy_starts(node: &Node, save: &str, backend: &str) -> Result<()> {
    for table in ["filter", "nat"] {
        ensure_jumps(node, save, table, backend)?;
    }
    for table in ["filter", "nat"] {
        // Its own lock, not that of the machine.
        let lock = node.path("run/xtables.lock");
        let restore = format!("XTABLES_LOCKFILE={} iptables-{backend}-restore --noflush", lock.display());
        node.feed(&restore, &kube_proxy_sync(save, table)?)?;
    }
    Ok(())
}

#[test]
fn calico_is_updated_and_writes_everything_again() -> Result<()> {
    let (mut node, _api, recording) = healthy("n1")?;
    // Felix and BIRD gone, as during a real update of another node; the rest stays this node's own.
    let gone = Recording::read("18-rolling-restart", "during-n2", "n2")?;
    let dead = recording.clone().refusing("felix");
    let dead = dead.keeping("ps.txt", |line| !line.contains(" calico ") && !line.contains(" bird "))?;
    let dead =
        ["bird-protocols.txt", "bird-status.txt", "bird-route.txt"].iter().fold(dead, |dead, file| dead.without(file));
    let dead = dead.with("bird-protocols.txt.stderr", gone.text("bird-protocols.txt.stderr")?);
    node.become_(&dead)?;
    sleep(Duration::from_secs(5));
    // Felix starts: all of its chains in one transaction, and each pod's route anew, which the CNI plugin had written
    // without a metric.
    node.feed("iptables-nft-restore", recording.text("iptables-nft-save.txt")?)?;
    let routes = node.run(&["ip", "route", "show", "scope", "link", "metric", "1024"])?;
    ensure!(routes.lines().count() == 5, "{routes}");
    for line in routes.lines() {
        let words: Vec<&str> = line.split_whitespace().collect();
        let (pod, link) = (words[0], words[2]);
        node.run(&["ip", "route", "add", pod, "dev", link, "scope", "link"])?;
        node.run(&["ip", "route", "del", pod, "dev", link, "scope", "link", "metric", "1024"])?;
        sleep(Duration::from_millis(100));
        node.run(&["ip", "route", "add", pod, "dev", link, "scope", "link", "metric", "1024"])?;
        node.run(&["ip", "route", "del", pod, "dev", link, "scope", "link", "metric", "0"])?;
    }
    node.become_(&recording)?;
    sleep(Duration::from_secs(1));
    was_quiet(&node)
}

#[test]
fn a_node_joins() -> Result<()> {
    let all = Recording::read(HEALTHY.0, HEALTHY.1, "n3")?;
    let not_ready = Recording::read("06-cni-config-missing", "during-a-missing", "n2")?;
    let mut node = Node::empty("n3")?;
    // The machine has its uplink; kubelet and runtime start, and the runtime says that it has no network.
    let uplink = all.clone().keeping("network.json", |line| !line.contains("cali") && !line.contains("bird"))?;
    let uplink = uplink.clone().with("network.json", &uplink.text("network.json")?.replace("},\n]", "}\n]"));
    node.set_switches(&all)?;
    node.set_network(&uplink)?;
    let own = |line: &str| line.contains("containerd") || line.contains(" kubelet ");
    let bare = all.clone().keeping("ps.txt", own)?.refusing("kube-proxy").refusing("felix");
    let bare = bare.with("cri.txt", not_ready.text("cri.txt")?).with("pods.json", "[]");
    node.containerd().tell(&bare)?;
    node.set_ports(&bare)?;
    node.set_programs(&bare)?;
    let _api = node.follow(&cluster(HEALTHY.0, "n3")?)?;
    sleep(Duration::from_secs(3));

    // kube-proxy makes each chain that is jumped to and the jump, one by one, and then writes them all.
    let proxy = |line: &str| own(line) || line.contains("kube-proxy");
    node.set_programs(&all.clone().keeping("ps.txt", proxy)?)?;
    let save = all.text("iptables-nft-save.txt")?;
    node.feed("ipset -exist restore", all.text("ipset-save.txt")?)?;
    for table in ["filter", "nat"] {
        ensure_jumps(&node, save, table, "nft")?;
    }
    for table in ["filter", "nat"] {
        node.feed("iptables-nft-restore --noflush", &kube_proxy_sync(save, table)?)?;
        sleep(Duration::from_millis(200));
    }
    // calico-node: CNI programs and configuration, and only when its image is there its processes; then Felix writes its
    // chains, the tables one after the other.
    node.set_files(&all)?;
    sleep(Duration::from_secs(3));
    node.set_network(&all)?;
    node.set_ports(&all)?;
    node.set_programs(&all)?;
    for table in save.split_inclusive("COMMIT\n").filter(|table| table.contains("COMMIT")) {
        node.feed("iptables-nft-restore", table)?;
    }
    node.become_(&all)?;
    sleep(Duration::from_secs(2));
    was_quiet(&node)
}

#[test]
fn pods_come_and_go() -> Result<()> {
    let (node, _api, recording) = healthy("n1")?;
    let always = pods(&recording)?;
    for round in 0..12 {
        let (link, address) = (format!("cali{round:011x}"), format!("172.30.40.{}", 140 + round));
        // As the plugin does it: a link, a route through it, and only then does the runtime tell of the sandbox.
        node.run(&["ip", "link", "add", &link, "type", "veth", "peer", "name", "eth1"])?;
        // A plugin, or a pod that sets up its own network, may be late with it.
        if round % 3 != 0 {
            node.run(&["ip", "link", "set", "eth1", "up"])?;
        }
        node.run(&["ip", "link", "set", &link, "up"])?;
        node.set_pod_switches(&link)?;
        node.run(&["ip", "route", "add", &address, "dev", &link, "scope", "link"])?;
        let pod = Pod {
            uid: format!("new-{round}"),
            name: format!("new-{round}"),
            ips: vec![address],
            seconds: 0,
            ..always[0].clone()
        };
        node.containerd().set_pods(&[&always[..], &[pod]].concat())?;
        sleep(Duration::from_millis(250));
        // Its end: the link goes first and takes the route along, the sandbox is told a little longer.
        node.run(&["ip", "link", "del", &link])?;
        sleep(Duration::from_millis(100));
        node.containerd().set_pods(&always)?;
    }
    was_quiet(&node)
}

#[test]
fn a_cni_configuration_is_written_again() -> Result<()> {
    let (node, _api, recording) = healthy("n1")?;
    let text = recording.text("cni-net.d/10-calico.conflist")?;
    let path = node.path("etc/cni/net.d/10-calico.conflist");
    let beside = node.path("etc/cni/net.d/10-calico.conflist.tmp");
    for round in 0..15 {
        let new = format!("{text}{}", "\n".repeat(round % 2));
        // By renaming, as install-cni does it.
        fs::write(&beside, &new)?;
        fs::rename(&beside, &path)?;
        sleep(Duration::from_millis(50));
        // In place: empty for a moment, then half of it, then whole.
        fs::write(&path, "")?;
        sleep(Duration::from_millis(60));
        fs::write(&path, &new[..150])?;
        sleep(Duration::from_millis(60));
        fs::write(&path, &new)?;
        sleep(Duration::from_millis(50));
    }
    was_quiet(&node)
}

/// The map, routes and sessions of n2, with n3 in them or not. A session that is not there yet is first one that waits.
struct Joining {
    with: Recording,
    map: Value,
}

/// How far a node has come that joins, as BIRD here sees it.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Session {
    None,
    Waits,
    Established,
}

impl Joining {
    fn recording(&self, route: bool, session: Session) -> Result<Recording> {
        let protocols = self.with.text("bird-protocols.txt")?;
        let at = protocols.find("Mesh_10_77_0_13 ").context("the session of n3")?;
        let end = at + protocols[at..].find("\n\n").context("the end of its paragraph")? + 2;
        let own = match session {
            Session::None => String::new(),
            Session::Waits => "Mesh_10_77_0_13 BGP      master   start  02:24:09    Active        \n  \
                Description:    Connection to BGP peer\n  BGP state:          Active\n    \
                Neighbor address: 10.77.0.13\n    Neighbor AS:      64512\n\n"
                .to_owned(),
            Session::Established => protocols[at..end].to_owned(),
        };
        let recording =
            self.with.clone().with("bird-protocols.txt", &format!("{}{own}{}", &protocols[..at], &protocols[end..]));
        let routed = |line: &str| route || !line.contains("172.30.98.0/26");
        recording.keeping("network.json", routed)?.keeping("bird-route.txt", routed)
    }

    fn map(&self, known: bool, block: bool) -> Value {
        let mut map = self.map.clone();
        if let Some(nodes) = map["nodes"].as_array_mut() {
            nodes.retain(|node| known || node["name"] != "n3");
            for node in nodes.iter_mut().filter(|node| !block && node["name"] == "n3") {
                // As it is before its kubelet and its CNI are up.
                node["ready"] = false.into();
                node["blocks"] = serde_json::json!([]);
            }
        }
        map
    }
}

/// As a node sees it that is there already: the new one's block in the map, its route and its session, in any order.
#[test]
fn another_node_joins_and_leaves() -> Result<()> {
    let with = Recording::read(HEALTHY.0, HEALTHY.1, "n2")?;
    let joining = Joining { with, map: cluster(HEALTHY.0, "n2")? };
    let mut node = Node::empty("n2")?;
    node.become_(&joining.recording(false, Session::None)?)?;
    let api = node.follow(&joining.map(false, false))?;
    let rest = Duration::from_millis(1800);
    for order in [[0, 1, 2], [0, 2, 1], [1, 0, 2], [1, 2, 0], [2, 0, 1], [2, 1, 0]] {
        let (mut route, mut session) = (false, Session::None);
        // It comes in this order, and goes in the other.
        for (step, there) in order.iter().map(|step| (step, true)).chain(order.iter().rev().map(|step| (step, false))) {
            match step {
                0 => api.set_map(&joining.map(true, there)),
                1 => {
                    route = there;
                    node.become_(&joining.recording(route, session)?)?;
                }
                _ => {
                    node.become_(&joining.recording(route, Session::Waits)?)?;
                    sleep(rest);
                    session = if there { Session::Established } else { Session::None };
                    node.become_(&joining.recording(route, session)?)?;
                }
            }
            sleep(rest);
        }
        api.set_map(&joining.map(false, false));
    }
    was_quiet(&node)
}
