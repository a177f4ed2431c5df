//! Half an hour of random faults on a real cluster, replayable by its seed: each is told and over by its own code, nothing
//! else is, the journal has them one to one, and neither the agents nor the aggregators need more memory, descriptors or threads at
//! the end.

use std::collections::BTreeMap;
use std::thread::sleep;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail, ensure};
use jiff::{SignedDuration, Timestamp};
use nix::sys::signal::Signal;
use serde_json::Value;

use crate::needs::{Needs, all_need, processes};
use crate::product::{Product, SOON};
use crate::support::node::Node;
use crate::support::wait::eventually;

/// The longest time until a finding is over that flapping makes, and what a busy machine adds.
const CLEARED: Duration = Duration::from_secs(360);
/// What the wait for a finding may be off by: the clocks are the same.
const SLACK: i64 = 3;
/// The latency of containerd is judged by windows of five minutes.
const AFTER: SignedDuration = SignedDuration::from_secs(600);
/// A fault that can be made and mended.
struct Fault {
    code: &'static str,
    /// Codes that may come with it, and need not.
    brings: &'static [&'static str],
    make: fn(&Node) -> Result<()>,
    mend: fn(&Node) -> Result<()>,
}

static FAULTS: [Fault; 8] = [
    Fault {
        code: "KubeProxyChainsUnhooked",
        brings: &["KubeProxyDown", "MasterClusterIpUnreachable"],
        make: unhook,
        mend: restart_kube_proxy,
    },
    Fault { code: "CniConfigMissing", brings: &["CniNotInitialized"], make: hide_cni, mend: show_cni },
    Fault { code: "PodRouteShadowed", brings: &["PodRouteMissing"], make: capture, mend: release },
    Fault { code: "DiskFull", brings: &["DiskPressureImminent"], make: fill, mend: empty },
    Fault {
        code: "ContainerdUnresponsive",
        brings: &["ContainerdSlow", "KubeletUnhealthy"],
        make: |node| node.signal("containerd", Signal::SIGSTOP),
        mend: |node| node.signal("containerd", Signal::SIGCONT),
    },
    Fault {
        code: "ContainerdDown",
        brings: &["KubeletUnhealthy"],
        make: |node| node.kill("containerd"),
        mend: |node| node.start("containerd"),
    },
    Fault {
        code: "KubeletUnhealthy",
        brings: &[],
        make: |node| node.signal("kubelet", Signal::SIGSTOP),
        mend: |node| node.signal("kubelet", Signal::SIGCONT),
    },
    Fault { code: "KubeletDown", brings: &[], make: |node| node.kill("kubelet"), mend: |node| node.start("kubelet") },
];

fn unhook(node: &Node) -> Result<()> {
    node.signal("kube-proxy", Signal::SIGSTOP)?;
    let rule = ["OUTPUT", "-m", "comment", "--comment", "kubernetes service portals", "-j", "KUBE-SERVICES"];
    node.read(&[&["iptables", "-t", "nat", "-D"], &rule[..]].concat()).map(|_| ())
}

fn restart_kube_proxy(node: &Node) -> Result<()> {
    node.kill("kube-proxy")?;
    node.start("kube-proxy")
}

fn hide_cni(node: &Node) -> Result<()> {
    node.read(&["sh", "-ec", "mkdir /etc/cni/away; mv /etc/cni/net.d/*.conflist /etc/cni/away/"]).map(|_| ())
}

fn show_cni(node: &Node) -> Result<()> {
    node.read(&["sh", "-ec", "cp /etc/cni/away/*.conflist /etc/cni/net.d/; rm -r /etc/cni/away"]).map(|_| ())
}

/// The address of the pod that is kept on the node is behind its bridge.
fn capture(node: &Node) -> Result<()> {
    node.read(&["sh", "-ec", "ip route add unreachable $(cat /var/lib/soak-address)"]).map(|_| ())
}

fn release(node: &Node) -> Result<()> {
    node.read(&["sh", "-ec", "ip route del unreachable $(cat /var/lib/soak-address)"]).map(|_| ())
}

fn fill(node: &Node) -> Result<()> {
    let script = "truncate -s 64M /var/lib/soak.img; mkfs.ext4 -qF /var/lib/soak.img; mkdir -p /var/lib/soak
        mount -o loop /var/lib/soak.img /var/lib/soak; mount --bind /var/lib/soak /var/log
        dd if=/dev/zero of=/var/log/big bs=1M 2>/dev/null || true; sync";
    node.read(&["sh", "-ec", script]).map(|_| ())
}

/// The node's programs hold log files open in it.
fn empty(node: &Node) -> Result<()> {
    let script = "rm /var/log/big; sync; umount --lazy /var/log; umount --lazy /var/lib/soak; rm /var/lib/soak.img";
    node.read(&["sh", "-ec", script]).map(|_| ())
}

/// What goes on beside a fault and is none.
#[derive(Debug, Clone, Copy)]
enum Beside {
    Nothing,
    /// The API server answers nobody when it begins.
    ApiServerStopped,
    /// The agent is stopped when it begins.
    AgentStopped,
    /// The agent was killed before.
    AgentKilled,
    /// kube-proxy was started anew before.
    KubeProxyRestarted,
}

const BESIDE: [Beside; 8] = [
    Beside::Nothing,
    Beside::Nothing,
    Beside::Nothing,
    Beside::ApiServerStopped,
    Beside::ApiServerStopped,
    Beside::AgentStopped,
    Beside::AgentKilled,
    Beside::KubeProxyRestarted,
];

/// Numbers by chance that are the same for the same seed (splitmix64).
struct Chance(u64);

impl Chance {
    fn below(&mut self, limit: usize) -> usize {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut mixed = self.0;
        mixed = (mixed ^ (mixed >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        mixed = (mixed ^ (mixed >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        usize::try_from((mixed ^ (mixed >> 31)) % limit as u64).expect("below a usize")
    }

    fn of<'a, T>(&mut self, all: &'a [T]) -> &'a T {
        &all[self.below(all.len())]
    }
}

/// A fault that was made.
#[derive(Debug)]
struct Made {
    node: &'static str,
    code: &'static str,
    brings: &'static [&'static str],
    begun: Timestamp,
    told: Timestamp,
    mended: Timestamp,
    over: Timestamp,
}

const NODES: [&str; 2] = ["n1", "n2"];

fn from_environment(name: &str, default: u64) -> Result<u64> {
    std::env::var(name).map_or(Ok(default), |text| text.parse().with_context(|| format!("{name}={text}")))
}

#[test]
#[ignore = "thirty minutes: scripts/soak.sh SEED MINUTES"]
fn random_faults_are_told_and_over_one_to_one_and_nothing_leaks() -> Result<()> {
    let seed = from_environment("NODEVITALS_SOAK_SEED", 1)?;
    let minutes = from_environment("NODEVITALS_SOAK_MINUTES", 30)?;
    let mut chance = Chance(seed);
    let product = Product::deployed()?;
    for node in NODES {
        product.wait_until_healthy(node);
        keep_a_pod(&product, node)?;
    }
    // A pod of less than half a minute need not have its routes; and the agents have seen all that they keep.
    sleep(Duration::from_secs(60));
    let mut first: BTreeMap<String, Needs> = BTreeMap::new();
    let mut made = Vec::new();
    let end = Instant::now() + Duration::from_secs(60 * minutes);
    while Instant::now() < end {
        for (process, now) in all_need(&product, &NODES)? {
            say(&format!("{process}: {now:?}"));
            first.entry(process).or_insert(now);
        }
        // A process that is young in the end has nothing to compare with.
        let may_kill = Instant::now() + Duration::from_secs(20 * minutes) < end;
        round(&product, &mut chance, may_kill, &mut made).with_context(|| format!("seed {seed}, after {made:#?}"))?;
    }
    for node in NODES {
        all_false(&product, node);
    }
    for (process, last) in all_need(&product, &NODES)? {
        let first = first.get(&process).with_context(|| format!("{process} was never measured"))?;
        say(&format!("{process}: {first:?} at first, {last:?} at last"));
        last.is_no_more_than(*first).with_context(|| process.clone())?;
    }
    for node in NODES {
        journal_matches(&product, node, &made)?;
    }
    say(&format!("seed {seed}: {} faults in {minutes} minutes", made.len()));
    Ok(())
}

/// One fault or two at once, each on a node of its own, and perhaps something beside the first.
fn round(product: &Product, chance: &mut Chance, may_kill: bool, done: &mut Vec<Made>) -> Result<()> {
    let beside = match *chance.of(&BESIDE) {
        Beside::AgentKilled if !may_kill => Beside::Nothing,
        beside => beside,
    };
    let first = chance.below(NODES.len());
    let mut faults = vec![(NODES[first], fault(chance, NODES[first], done))];
    if chance.below(2) == 0 {
        faults.push((NODES[1 - first], fault(chance, NODES[1 - first], done)));
    }
    let hold = Duration::from_secs(5 + chance.below(25) as u64);
    let codes: Vec<_> = faults.iter().map(|(node, fault)| format!("{} on {node}", fault.code)).collect();
    say(&format!("{}, {beside:?}, {} s", codes.join(" and "), hold.as_secs()));
    before(product, faults[0].0, beside)?;
    let mut begun = Vec::new();
    for (node, fault) in &faults {
        begun.push(Timestamp::now());
        (fault.make)(product.cluster.node(node)?).with_context(|| format!("{} on {node}", fault.code))?;
    }
    after(product, faults[0].0, beside, hold)?;
    let told: Vec<_> = faults.iter().map(|(node, fault)| wait_for(product, node, fault.code, true, SOON * 3)).collect();
    sleep(hold);
    let mut mended = Vec::new();
    for (node, fault) in &faults {
        mended.push(Timestamp::now());
        (fault.mend)(product.cluster.node(node)?).with_context(|| format!("{} on {node}", fault.code))?;
    }
    for (index, (node, fault)) in faults.into_iter().enumerate() {
        let over = wait_for(product, node, fault.code, false, CLEARED);
        let Fault { code, brings, .. } = *fault;
        done.push(Made { node, code, brings, begun: begun[index], told: told[index], mended: mended[index], over });
    }
    // What came with it goes a moment later.
    for node in NODES {
        all_false(product, node);
    }
    Ok(())
}

/// Any fault; but each kubelet dies once: the second time within half an hour is a finding that lasts for half an hour.
fn fault(chance: &mut Chance, node: &str, done: &[Made]) -> &'static Fault {
    loop {
        let fault = chance.of(&FAULTS);
        if fault.code != "KubeletDown" || !done.iter().any(|made| made.node == node && made.code == fault.code) {
            return fault;
        }
    }
}

fn before(product: &Product, node: &str, beside: Beside) -> Result<()> {
    let machine = product.cluster.node(node)?;
    match beside {
        Beside::Nothing => Ok(()),
        Beside::ApiServerStopped => product.cluster.host().signal("kube-apiserver", Signal::SIGSTOP),
        Beside::AgentStopped => signal_agent(machine, "STOP"),
        Beside::AgentKilled => {
            let old = agent(machine)?;
            signal_agent(machine, "KILL")?;
            eventually("the agent is back", SOON * 3, || {
                ensure!(agent(machine)? != old, "the old process");
                Ok(())
            });
            all_false(product, node);
            Ok(())
        }
        Beside::KubeProxyRestarted => restart_kube_proxy(machine),
    }
}

fn after(product: &Product, node: &str, beside: Beside, hold: Duration) -> Result<()> {
    match beside {
        Beside::ApiServerStopped => {
            sleep(hold);
            product.cluster.host().signal("kube-apiserver", Signal::SIGCONT)
        }
        Beside::AgentStopped => {
            sleep(hold);
            signal_agent(product.cluster.node(node)?, "CONT")
        }
        Beside::Nothing | Beside::AgentKilled | Beside::KubeProxyRestarted => Ok(()),
    }
}

/// Waits until a code is, or is no longer, among the findings that the Node shows.
fn wait_for(product: &Product, node: &str, code: &str, there: bool, deadline: Duration) -> Timestamp {
    eventually(&format!("{node}: {code} is {}", if there { "told" } else { "over" }), deadline, || {
        let object = product.cluster.node(node)?.object(&product.cluster)?;
        let findings = object["metadata"]["annotations"]["nodevitals.dev/findings"].as_str().context("findings")?;
        ensure!(findings.contains(&format!("\"code\":\"{code}\"")) == there, "{findings}");
        Ok(Timestamp::now())
    })
}

/// Waits until all conditions of a node are False.
fn all_false(product: &Product, node: &str) {
    eventually(&format!("{node}: every condition is False"), CLEARED, || {
        let object = product.cluster.node(node)?.object(&product.cluster)?;
        let ours: Vec<&Value> = object["status"]["conditions"].as_array().context("conditions")?.iter().collect();
        let ours = ours.into_iter().filter(|it| it["type"].as_str().is_some_and(|kind| kind.ends_with("Problem")));
        let wrong: Vec<_> = ours.clone().filter(|it| it["status"] != "False").collect();
        ensure!(ours.count() == 8 && wrong.is_empty(), "{wrong:#?}");
        Ok(())
    });
}

fn keep_a_pod(product: &Product, node: &str) -> Result<()> {
    let pod = r#"{"apiVersion": "v1", "kind": "Pod", "metadata": {"name": "soak-NODE", "namespace": "default"}, "spec": {
        "nodeName": "NODE", "terminationGracePeriodSeconds": 0, "containers": [{"name": "web",
        "image": "docker.io/library/busybox:test", "imagePullPolicy": "Never", "command": ["sleep", "36000"]}]}}"#;
    product.cluster.apply(&pod.replace("NODE", node))?;
    let address = eventually("the pod has an address", SOON, || {
        let pod = product.cluster.get(&format!("/api/v1/namespaces/default/pods/soak-{node}"))?;
        ensure!(pod["status"]["phase"] == "Running", "{}", pod["status"]);
        Ok(pod["status"]["podIP"].as_str().context("an address")?.to_owned())
    });
    std::fs::write(product.cluster.node(node)?.path("/var/lib/soak-address"), address)?;
    Ok(())
}

fn agent(node: &Node) -> Result<String> {
    processes(node, "agent")?.into_iter().next().context("an agent")
}

fn signal_agent(node: &Node, signal: &str) -> Result<()> {
    node.read(&["kill", &format!("-{signal}"), &agent(node)?]).map(|_| ())
}

/// Every episode in the agent's journal is a fault that was made, or what one brings, and every fault is one episode.
fn journal_matches(product: &Product, node: &str, made: &[Made]) -> Result<()> {
    let url = format!("http://{}:10580/findings", product.cluster.node(node)?.address());
    let page: Value = serde_json::from_str(&product.cluster.exec_in_ns(&["curl", "-sf", "--max-time", "10", &url])?)?;
    let episodes = page["episodes"].as_array().context("episodes")?;
    let mine: Vec<&Made> = made.iter().filter(|made| made.node == node).collect();
    let time = |episode: &Value, key: &str| -> Result<Timestamp> {
        episode[key].as_str().with_context(|| format!("{key} of {episode}"))?.parse().context("a time")
    };
    let between = |at: Timestamp, from: Timestamp, to: Timestamp| {
        at.as_second() >= from.as_second() - SLACK && at.as_second() <= to.as_second() + SLACK
    };
    // What comes with a fault begins while it lasts, or is seen in the window of measurements after it.
    let brought = |it: &Made, since: Timestamp| between(since, it.begun, it.over + AFTER);
    let mut matched = vec![0; mine.len()];
    for episode in episodes {
        let (since, cleared) = (time(episode, "since")?, time(episode, "cleared")?);
        let of_it = |it: &&Made| between(since, it.begun, it.told) && between(cleared, it.mended, it.over);
        if let Some(index) = mine.iter().position(|it| episode["code"] == it.code && of_it(it)) {
            matched[index] += 1;
        } else if !mine.iter().any(|it| it.brings.iter().any(|code| episode["code"] == *code) && brought(it, since)) {
            bail!("nobody made {episode} on {node}; what was made: {mine:#?}");
        }
    }
    let lost: Vec<_> = mine.iter().zip(&matched).filter(|(_, count)| **count != 1).collect();
    ensure!(lost.is_empty(), "in the journal of {node} not exactly once: {lost:#?}; it has {episodes:#?}");
    say(&format!("{node}: {} faults, {} episodes", mine.len(), episodes.len()));
    Ok(())
}

#[expect(clippy::print_stderr, reason = "half an hour without a word would look like a hang")]
fn say(text: &str) {
    eprintln!("soak: {} {text}", Timestamp::now().strftime("%H:%M:%S"));
}
