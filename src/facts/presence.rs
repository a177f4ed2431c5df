//! What should be on this node: found out from what is there and what was there, never configured.

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use jiff::{SignedDuration, Timestamp};
use serde::{Deserialize, Serialize};

use super::{Backend, Family, Program, RouteMemory, Ruleset, Seen, Snapshot, Table};

/// What earlier looks of this boot saw. Something that was here and is gone is a finding; something that never was is
/// not.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct Remembered {
    /// Backends and families in which kube-proxy's chains were seen.
    pub kube_proxy: BTreeSet<(Backend, Family)>,
    /// Jumps from base chains to chains of kube-proxy that were seen: `nat OUTPUT -> KUBE-SERVICES`.
    pub kube_proxy_jumps: BTreeSet<(Backend, Family, String)>,
    /// The mode of kube-proxy that showed last.
    pub proxy_mode: Option<ProxyMode>,
    /// Backends and families in which Calico's chains were seen.
    pub calico: BTreeSet<(Backend, Family)>,
    /// Families that had a default route.
    pub default_route: BTreeSet<Family>,
    /// Programs that were seen running.
    pub programs: BTreeSet<Program>,
    /// Whether a CNI configuration was seen.
    pub cni: bool,
    /// Canary chains that were seen, with their tables: kube-proxy and the kubelet make them to notice a flush.
    pub canaries: BTreeSet<(Backend, Family, String, String)>,
    /// Links that are there and to which programs of Calico's eBPF dataplane were attached, by direction: in, out.
    pub attached: BTreeMap<String, [bool; 2]>,
    /// Whether Calico's CNI configuration was in force.
    pub calico_cni: bool,
    /// Routes.
    pub routes: RouteMemory,
    /// Starts of the kubelet.
    pub kubelet_starts: Starts,
}

/// When a program was started, as its process shows it look after look.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct Starts {
    /// The process of the last start.
    process: i32,
    /// The last start.
    last: Option<Timestamp>,
    /// Those that followed another, oldest first.
    restarts: Vec<Timestamp>,
}

impl Starts {
    /// So many are kept.
    const MOST: usize = 16;
    /// Start times are computed from two clocks; below this it is the same one.
    const JITTER: SignedDuration = SignedDuration::from_secs(2);

    /// Takes in the start of the process that runs now. One whose start is told later or earlier than before is the same one
    /// after the clock was set.
    pub fn take(&mut self, process: i32, at: Timestamp) {
        let since = self.last.map(|last| at.duration_since(last));
        let moved = since.is_none_or(|since| since.abs() > Self::JITTER);
        let again = process != self.process && since.is_some_and(|since| since > Self::JITTER);
        if again {
            if self.restarts.len() == Self::MOST {
                self.restarts.remove(0);
            }
            self.restarts.push(at);
        }
        if again || moved && process == self.process || since.is_none() {
            (self.process, self.last) = (process, Some(at));
        }
    }

    /// Forgets a last start that is yet to come at `now`: the clock was set back, and each start until then would pass for an
    /// older one.
    pub(crate) fn forget_future(&mut self, now: Timestamp) {
        if self.last.is_some_and(|last| last > now) {
            (self.process, self.last) = (0, None);
        }
    }

    /// Whether one began so shortly before this.
    pub fn precede(&self, at: Timestamp, time: SignedDuration) -> bool {
        let since = |restart: &Timestamp| at.duration_since(*restart);
        self.restarts.iter().any(|restart| (-Self::JITTER..time).contains(&since(restart)))
    }

    /// How many restarts there were in the time before `now`.
    pub fn restarts_within(&self, now: Timestamp, time: Duration) -> usize {
        self.restarts.iter().filter(|at| now.duration_since(**at).unsigned_abs() < time).count()
    }
}

/// How kube-proxy programs the node.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "camelCase")]
pub enum ProxyMode {
    /// Rules in `nat` and `filter`, in either backend.
    Iptables,
    /// Table `kube-proxy` of nf_tables.
    Nftables,
    /// IPVS, with the link [`IPVS_DEVICE`].
    Ipvs,
}

/// How Calico programs the node.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "camelCase")]
pub enum CalicoDataplane {
    /// Chains in the iptables tables, in either backend.
    Iptables,
    /// Table `calico` of nf_tables.
    Nftables,
    /// eBPF: device [`BPF_DEVICE`], no policy chains.
    Ebpf,
}

/// What should be on this node.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct Expected {
    /// Whether this machine is a worker at all: kubelet files or process, now or earlier.
    pub worker: bool,
    /// kube-proxy, if it should be here.
    pub kube_proxy: Option<ProxyMode>,
    /// Calico, if it should be here.
    pub calico: Option<CalicoDataplane>,
}

/// The device that Calico's eBPF dataplane makes for packets to Services (`felix/dataplane/linux/dataplanedefs`).
pub(crate) const BPF_DEVICE: &str = "bpfin.cali";

/// The link that has the addresses of all Services in IPVS mode (`pkg/proxy/ipvs/proxier.go`).
pub(crate) const IPVS_DEVICE: &str = "kube-ipvs0";
/// Chains and sets that kube-proxy makes in IPVS mode alone, and one that it makes with iptables alone.
const IPVS_CHAINS: [&str; 3] = ["KUBE-NODE-PORT", "KUBE-LOAD-BALANCER", "KUBE-IPVS-FILTER"];
const IPVS_SETS: [&str; 2] = ["KUBE-CLUSTER-IP", "KUBE-6-CLUSTER-IP"];
const IPTABLES_CHAIN: &str = "KUBE-NODEPORTS";

/// Chains of the kubelet, which say nothing about kube-proxy (`pkg/kubelet/kubelet_network_linux.go`).
const KUBELET_CHAINS: [&str; 4] = ["KUBE-KUBELET-CANARY", "KUBE-IPTABLES-HINT", "KUBE-FIREWALL", "KUBE-MARK-DROP"];

/// Whether a chain of this name is kube-proxy's own.
pub(crate) fn is_kube_proxy_chain(name: &str) -> bool {
    name.starts_with("KUBE-") && !KUBELET_CHAINS.contains(&name)
}

/// Whether a chain of this name is Calico's (`ChainNamePrefix` of `felix/rules/rule_defs.go`).
pub(crate) fn is_calico_chain(name: &str) -> bool {
    name.starts_with("cali-")
}

/// Whether a chain of this name is one by which somebody notices that tables are flushed.
pub(crate) fn is_canary(name: &str) -> bool {
    name.starts_with("KUBE-") && name.ends_with("-CANARY")
}

impl Remembered {
    /// Adds what findings of this boot, as code and subject, say of what was here before: chains and default routes that are
    /// missed were there. In which backend they do not say.
    pub(crate) fn restore<'a>(&mut self, findings: impl Iterator<Item = (&'a str, &'a str)>) {
        for (code, subject) in findings {
            self.routes.restore(code, subject);
            let family = [Family::V4, Family::V6].into_iter().find(|family| family.to_string() == subject);
            let both = |family| [(Backend::Nftables, family), (Backend::Legacy, family)];
            match (code, family) {
                ("KubeProxyChainsMissing" | "KubeProxyChainsUnhooked", Some(family)) => {
                    self.kube_proxy.extend(both(family));
                }
                ("CalicoChainsMissing" | "CalicoChainsUnhooked", Some(family)) => self.calico.extend(both(family)),
                ("DefaultRouteMissing", Some(family)) => _ = self.default_route.insert(family),
                ("CniConfigMissing", _) => self.cni = true,
                ("KubeProxyDown", _) => _ = self.programs.insert(Program::KubeProxy),
                ("BgpDaemonDown", _) => _ = self.programs.insert(Program::Bird),
                // About the directory and not one of its files: Calico's own is missed there.
                ("CniConfigConflict", None) if subject.ends_with("net.d") => self.calico_cni = true,
                ("KubeletDown", _) => _ = self.programs.insert(Program::Kubelet),
                _ => {}
            }
        }
    }

    /// Adds what this look saw.
    pub fn update(&mut self, now: &Snapshot) {
        for ruleset in rulesets(now) {
            for table in &ruleset.tables {
                let key = (ruleset.backend, table.family);
                if holds_kube_proxy(table) {
                    self.kube_proxy.insert(key);
                }
                if holds_calico(table) {
                    self.calico.insert(key);
                }
                for chain in table.chains.iter().filter(|chain| chain.base.is_some()) {
                    let jumps = chain.jumps.iter().filter(|jump| is_kube_proxy_chain(&jump.target));
                    let told = jumps.map(|jump| format!("{} {} -> {}", table.name, chain.name, jump.target));
                    self.kube_proxy_jumps.extend(told.map(|jump| (ruleset.backend, table.family, jump)));
                }
                for chain in table.chains.iter().filter(|chain| is_canary(&chain.name)) {
                    let canary = (ruleset.backend, table.family, table.name.clone(), chain.name.clone());
                    if !self.canaries.contains(&canary) {
                        self.canaries.insert(canary);
                    }
                }
            }
        }
        if let Some(routing) = now.routing.get() {
            self.default_route.extend(routing.defaults.iter().map(|route| route.family));
        }
        if let Some(processes) = now.processes.get() {
            self.programs.extend(processes.found.iter().map(|process| process.program));
            if let Some(kubelet) = processes.of(Program::Kubelet) {
                self.kubelet_starts.take(kubelet.pid, kubelet.started_at);
            }
        }
        self.proxy_mode = proxy_mode(now).or(self.proxy_mode);
        self.calico_cni |= now.cni.config().is_some_and(|config| config.has("calico"));
        self.routes.update(now);
        self.update_programs(now);
        self.cni |= now.cni.files.get().is_some_and(|files| !files.is_empty());
    }
}

impl Remembered {
    fn update_programs(&mut self, now: &Snapshot) {
        let Some(Seen::Yes(programs)) = now.routing.get().map(|routing| &routing.programs) else { return };
        self.attached.retain(|link, _| programs.contains_key(link));
        for (link, attached) in programs.iter().filter(|(_, attached)| attached.contains(&true)) {
            let known = self.attached.entry(link.clone()).or_default();
            *known = [known[0] || attached[0], known[1] || attached[1]];
        }
    }
}

impl Expected {
    /// Works out what should be here.
    pub fn of(now: &Snapshot, before: &Remembered) -> Self {
        Expected { worker: worker(now, before), kube_proxy: kube_proxy(now, before), calico: calico(now, before) }
    }
}

/// The rule sets that could be read.
pub(crate) fn rulesets(now: &Snapshot) -> impl Iterator<Item = &Ruleset> {
    [&now.nftables, &now.legacy].into_iter().filter_map(Seen::get)
}

fn holds_kube_proxy(table: &Table) -> bool {
    table.name == "kube-proxy" || table.chains.iter().any(|chain| is_kube_proxy_chain(&chain.name))
}

fn holds_calico(table: &Table) -> bool {
    table.name == "calico" || table.chains.iter().any(|chain| is_calico_chain(&chain.name))
}

fn running(now: &Snapshot, program: Program) -> bool {
    now.processes.get().is_some_and(|processes| processes.of(program).is_some())
}

fn link(now: &Snapshot, wanted: impl Fn(&str) -> bool) -> bool {
    now.routing.get().is_some_and(|routing| routing.links.iter().any(|link| wanted(&link.name)))
}

fn worker(now: &Snapshot, before: &Remembered) -> bool {
    running(now, Program::Kubelet)
        || before.programs.contains(&Program::Kubelet)
        || now.kubelet.get().is_some_and(|kubelet| kubelet.config_path.is_some() || kubelet.kubeconfig_path.is_some())
}

fn kube_proxy(now: &Snapshot, before: &Remembered) -> Option<ProxyMode> {
    let chains = rulesets(now).any(|ruleset| ruleset.tables.iter().any(holds_kube_proxy));
    let here = running(now, Program::KubeProxy)
        || before.programs.contains(&Program::KubeProxy)
        || chains
        || !before.kube_proxy.is_empty();
    here.then(|| proxy_mode(now).or(before.proxy_mode).unwrap_or(ProxyMode::Iptables))
}

/// The mode that kube-proxy was told, or that shows in what it made. What is left of a mode that was used before must not pass
/// for it: virtual servers in the kernel are more than a link, chains or sets.
fn proxy_mode(now: &Snapshot) -> Option<ProxyMode> {
    let told = now.processes.get().and_then(|processes| processes.proxy_mode);
    let chain = |names: &[&str]| rulesets(now).any(|ruleset| ruleset.any_chain(|name| names.contains(&name)));
    let sets = || now.ip_sets.get().is_some_and(|sets| sets.iter().any(|set| IPVS_SETS.contains(&set.name.as_str())));
    let ipvs = || link(now, |name| name == IPVS_DEVICE) || chain(&IPVS_CHAINS) || sets();
    let serves = || now.ipvs.get().is_some_and(|servers| !servers.is_empty());
    let native =
        || now.nftables.get().is_some_and(|ruleset| ruleset.tables.iter().any(|table| table.name == "kube-proxy"));
    let iptables = || chain(&[IPTABLES_CHAIN]);
    told.or_else(|| match () {
        () if ipvs() && (serves() || !(native() || iptables())) => Some(ProxyMode::Ipvs),
        () if native() => Some(ProxyMode::Nftables),
        () if iptables() => Some(ProxyMode::Iptables),
        () => None,
    })
}

fn calico(now: &Snapshot, before: &Remembered) -> Option<CalicoDataplane> {
    let chains = rulesets(now).any(|ruleset| ruleset.tables.iter().any(holds_calico));
    let here = chains
        || !before.calico.is_empty()
        || running(now, Program::Felix)
        || before.programs.contains(&Program::Felix)
        || now.cni.config().is_some_and(|config| config.has("calico"));
    let native = now.nftables.get().is_some_and(|ruleset| ruleset.tables.iter().any(|table| table.name == "calico"));
    here.then(|| match () {
        () if link(now, |name| name == BPF_DEVICE) => CalicoDataplane::Ebpf,
        () if native => CalicoDataplane::Nftables,
        () => CalicoDataplane::Iptables,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_clock_that_is_set_starts_no_kubelet() {
        let at = |second: i64| Timestamp::from_second(1_700_000_000 + second).expect("valid");
        let mut starts = Starts::default();
        let mut count = |process, second| {
            starts.take(process, at(second));
            starts.restarts_within(at(5000), Duration::from_secs(9000))
        };
        assert_eq!((count(7, 0), count(7, 1), count(7, 90), count(7, -3000)), (0, 0, 0, 0));
        assert_eq!((count(8, -2000), count(8, -2000)), (1, 1), "after a clock that was set back");
        assert_eq!((count(9, -1000), count(8, -2000), count(9, -1000)), (2, 2, 2), "an older one beside it");
    }

    #[test]
    fn a_clock_that_is_set_back_while_no_agent_runs_hides_no_start_of_the_kubelet() {
        let at = |second: i64| Timestamp::from_second(1_700_000_000 + second).expect("valid");
        let mut starts = Starts::default();
        starts.take(7, at(5000));
        let kept = starts.clone();
        starts.forget_future(at(5000));
        assert_eq!(starts, kept);
        starts.forget_future(at(1000));
        starts.take(8, at(990));
        assert_eq!(starts.restarts_within(at(1000), Duration::from_secs(900)), 0, "whether it is another nobody knows");
        starts.take(9, at(1100));
        assert_eq!(starts.restarts_within(at(1100), Duration::from_secs(900)), 1);
    }

    #[test]
    fn findings_of_this_boot_say_what_was_here() {
        let mut remembered = Remembered::default();
        let findings =
            [("KubeProxyChainsMissing", "IPv4"), ("CalicoChainsUnhooked", "IPv6"), ("DefaultRouteMissing", "any")];
        remembered.restore(findings.into_iter());
        assert!(remembered.kube_proxy.contains(&(Backend::Legacy, Family::V4)));
        assert!(remembered.kube_proxy.contains(&(Backend::Nftables, Family::V4)));
        assert!(!remembered.kube_proxy.contains(&(Backend::Nftables, Family::V6)));
        assert!(remembered.calico.contains(&(Backend::Nftables, Family::V6)));
        assert!(remembered.default_route.is_empty());
        remembered.restore([("CniConfigConflict", "/etc/cni/net.d/05-stray.conf")].into_iter());
        assert!(!remembered.calico_cni);
        remembered.restore([("CniConfigConflict", "/etc/cni/net.d")].into_iter());
        assert!(remembered.calico_cni);
    }

    fn snapshot() -> Snapshot {
        let [hostname, boot_id, machine_id] = ["n1", "b", "m"].map(str::to_owned);
        let identity = super::super::Identity { hostname, boot_id, machine_id, ..Default::default() };
        Snapshot::blank(Timestamp::UNIX_EPOCH, identity)
    }

    #[test]
    fn kube_proxys_mode_shows_in_what_it_made_and_is_kept_when_that_is_gone() {
        use super::super::{Chain, IpSet, Processes, VirtualServer};
        let table = |name: &str, chains: &[&str]| Table {
            family: Family::V4,
            name: name.into(),
            chains: chains.iter().map(|name| Chain::new(name, None)).collect(),
            per_object_chains: 0,
            foreign_chains: 0,
        };
        let rules = |now: &mut Snapshot, name: &str, chains: &[&str]| {
            let tables = vec![table(name, chains)];
            now.nftables = Seen::Yes(Ruleset { tables, ..Ruleset::empty(Backend::Nftables) });
        };
        let set = IpSet { name: "KUBE-CLUSTER-IP".into(), kind: "hash:ip,port".into(), entries: 1, references: 1 };
        let at = std::net::SocketAddr::from(([10, 96, 0, 1], 443));
        let server = VirtualServer { at, udp: false, endpoints: vec![] };

        let mut now = snapshot();
        let mut before = Remembered::default();
        let mode = |now: &Snapshot, before: &Remembered| Expected::of(now, before).kube_proxy;
        assert_eq!(mode(&now, &before), None);
        rules(&mut now, "nat", &["KUBE-SERVICES", "KUBE-POSTROUTING"]);
        assert_eq!(mode(&now, &before), Some(ProxyMode::Iptables), "nothing shows");
        now.ip_sets = Seen::Yes(vec![set.clone()]);
        assert_eq!(mode(&now, &before), Some(ProxyMode::Ipvs), "its sets are there, and its link is not");
        rules(&mut now, "nat", &["KUBE-SERVICES", "KUBE-NODEPORTS"]);
        assert_eq!(mode(&now, &before), Some(ProxyMode::Iptables), "sets that were left");
        now.ipvs = Seen::Yes(vec![server]);
        assert_eq!(mode(&now, &before), Some(ProxyMode::Ipvs), "chains that were left");
        (now.ip_sets, now.ipvs) = (Seen::Absent, Seen::Absent);
        rules(&mut now, "kube-proxy", &["services"]);
        assert_eq!(mode(&now, &before), Some(ProxyMode::Nftables));
        before.update(&now);
        rules(&mut now, "nat", &["KUBE-KUBELET-CANARY"]);
        assert_eq!(mode(&now, &before), Some(ProxyMode::Nftables), "its table is gone");
        now.processes = Seen::Yes(Processes { proxy_mode: Some(ProxyMode::Ipvs), ..Processes::default() });
        assert_eq!(mode(&now, &before), Some(ProxyMode::Ipvs), "it was told so");
    }
}
