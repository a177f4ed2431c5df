//! Everything that one look saw.

use std::time::Duration;

use jiff::Timestamp;
use serde::Serialize;

use super::{
    Bgp, ClusterDns, ClusterMap, Cni, Conntrack, ControlPlanePath, Debris, FileFault, Filesystem, Forwarding, Health,
    IpSet, KernelLog, Kubelet, LookError, Memory, PacketFilterChanges, Past, ProxyMode, Reason, Registry, Routing,
    Ruleset, Runtime, Seen, Strain, Traffic, TunnelPeer, VirtualServer, Writes, XtablesLock,
};

/// One look at a node.
#[derive(Debug, Clone, PartialEq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct Snapshot {
    /// When it was taken, by the node's clock.
    pub taken_at: Timestamp,
    /// Since the kernel started, suspended time included.
    pub up_for: Duration,
    /// Who the node is.
    pub identity: Identity,
    /// Links, addresses, routes, rules.
    pub routing: Seen<Routing>,
    /// Forwarding switches.
    pub forwarding: Forwarding,
    /// The nf_tables rule set.
    pub nftables: Seen<Ruleset>,
    /// Who changed the nf_tables rule set, and what has gone from it.
    pub packet_filter_changes: PacketFilterChanges,
    /// The ip_tables rule set; absent when `/proc/net/ip_tables_names` and its IPv6 twin name no table.
    pub legacy: Seen<Ruleset>,
    /// Sets of addresses of Calico and kube-proxy; absent when the kernel's module is not loaded.
    pub ip_sets: Seen<Vec<IpSet>>,
    /// Virtual servers of IPVS on the ports that everything needs.
    pub ipvs: Seen<Vec<VirtualServer>>,
    /// The lock of legacy iptables; absent when it has no tables, or nobody ever took it.
    pub xtables_lock: Seen<XtablesLock>,
    /// Connection tracking; absent when the module is not loaded.
    pub conntrack: Seen<Conntrack>,
    /// Sockets, neighbours, counters and switches of links.
    pub traffic: Traffic,
    /// CNI files and programs.
    pub cni: Cni,
    /// The container runtime.
    pub runtime: Runtime,
    /// What is wrong with containerd's store on disk; absent when there is none.
    pub store: Seen<Vec<FileFault>>,
    /// What containers left behind; absent before it was watched for long enough.
    pub debris: Seen<Debris>,
    /// What is wrong with files that the kubelet and the CNI need; absent when there are none.
    pub files: Seen<Vec<FileFault>>,
    /// File systems with a role, and local ones that could go read-only.
    pub filesystems: Seen<Vec<Filesystem>>,
    /// What the kernel has reported; absent where there is no kernel log.
    pub kernel_log: Seen<KernelLog>,
    /// Memory.
    pub memory: Seen<Memory>,
    /// What else runs short.
    pub strain: Strain,
    /// Processes that matter.
    pub processes: Seen<Processes>,
    /// The kubelet's files; absent when there are none.
    pub kubelet: Seen<Kubelet>,
    /// Health ports.
    pub health: Health,
    /// The path to the control plane; absent when no kubeconfig names one.
    pub control_plane: Seen<ControlPlanePath>,
    /// Registries of the images in use; absent where none is known.
    pub registries: Seen<Vec<Registry>>,
    /// What the cluster says about the other nodes; absent where no aggregator is asked.
    pub cluster: Seen<ClusterMap>,
    /// Since when no aggregator has confirmed that map; none while one does. It stays in force meanwhile, but nodes may
    /// have come and gone.
    pub cluster_unconfirmed_since: Option<Timestamp>,
    /// What the cluster's DNS answers; absent where nobody tells where it is.
    pub cluster_dns: Seen<ClusterDns>,
    /// BIRD and its sessions; absent where there is no BIRD.
    pub bgp: Seen<Bgp>,
    /// Nodes that are silent in the tunnel and answer outside of it; absent where no tunnel is known.
    pub tunnels: Seen<Vec<TunnelPeer>>,
    /// What is known from before; absent where no state is kept.
    pub past: Seen<Past>,
    /// What became of the agent's own writes; absent where nothing is written.
    pub writes: Seen<Writes>,
}

/// Who a node is and since when it runs.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct Identity {
    /// `kernel.hostname`.
    pub hostname: String,
    /// `/proc/sys/kernel/random/boot_id`.
    pub boot_id: String,
    /// `/etc/machine-id`.
    pub machine_id: String,
    /// `kernel.osrelease`.
    pub kernel: String,
    /// Name of the Node object, where the program was told it.
    pub node_name: Option<String>,
}

/// The programs of a worker that are looked for in the process table.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize)]
#[serde(rename_all = "camelCase")]
pub enum Program {
    /// `kubelet`.
    Kubelet,
    /// `containerd`.
    Containerd,
    /// `crio`.
    Crio,
    /// `kube-proxy`.
    KubeProxy,
    /// `calico-node -felix`, `calico-felix`.
    Felix,
    /// `bird`, `bird6`.
    Bird,
}

/// A process.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct Process {
    /// Which program it runs.
    pub program: Program,
    /// Its process id, in the process namespace of the node's `/proc`.
    pub pid: i32,
    /// State letter of `/proc/PID/stat`: `T` is stopped by a signal, `D` is stuck in the kernel.
    pub state: char,
    /// When it was started.
    pub started_at: Timestamp,
}

/// The processes that matter.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct Processes {
    /// Those found.
    pub found: Vec<Process>,
    /// The mode that kube-proxy was told by its command line or its configuration.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub proxy_mode: Option<ProxyMode>,
    /// Children of kube-proxy and Felix that have ended while they changed the packet filter, that nobody has asked about, and
    /// that two walks over all processes saw: whose, name, process id.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub defunct: Vec<(Program, String, i32)>,
}

impl Processes {
    /// The first process of a program.
    pub fn of(&self, program: Program) -> Option<&Process> {
        self.found.iter().find(|process| process.program == program)
    }

    /// The container runtime, whichever it is.
    pub(crate) fn runtime(&self) -> Option<&Process> {
        self.of(Program::Containerd).or_else(|| self.of(Program::Crio))
    }

    /// When the kubelet and the container runtime were started, in seconds since the epoch: `1763805600.1763805500`, 0 of what
    /// does not run. None where neither does.
    pub(crate) fn started(&self) -> Option<String> {
        let second = |process: Option<&Process>| process.map_or(0, |process| process.started_at.as_second());
        let (kubelet, runtime) = (second(self.of(Program::Kubelet)), second(self.runtime()));
        (kubelet != 0 || runtime != 0).then(|| format!("{kubelet}.{runtime}"))
    }
}

impl Snapshot {
    /// A snapshot in which nothing has been looked at yet.
    pub fn blank(taken_at: Timestamp, identity: Identity) -> Self {
        Snapshot {
            taken_at,
            up_for: Duration::ZERO,
            identity,
            routing: Seen::not_yet("routes"),
            forwarding: Forwarding {
                ipv4: Seen::not_yet("net.ipv4.ip_forward"),
                ipv6: Seen::not_yet("net.ipv6.conf.all.forwarding"),
            },
            nftables: Seen::not_yet("nf_tables"),
            packet_filter_changes: PacketFilterChanges::default(),
            legacy: Seen::not_yet("ip_tables"),
            ip_sets: Seen::not_yet("ipset"),
            ipvs: Seen::not_yet("IPVS"),
            xtables_lock: Seen::not_yet("/run/xtables.lock"),
            conntrack: Seen::not_yet("conntrack"),
            traffic: Traffic::not_yet(),
            cni: Cni::of(
                "/etc/cni/net.d".into(),
                vec!["/opt/cni/bin".into()],
                "default".into(),
                Seen::not_yet("/etc/cni/net.d"),
            ),
            runtime: Runtime::silent(
                Seen::not_yet("CRI socket"),
                LookError::new("CRI", Reason::NotYet, "not looked at yet"),
            ),
            store: Seen::not_yet("store of containerd"),
            debris: Seen::not_yet("debris of containers"),
            files: Seen::not_yet("files of the node"),
            filesystems: Seen::not_yet("file systems"),
            kernel_log: Seen::not_yet("kernel log"),
            memory: Seen::not_yet("memory"),
            strain: Strain::not_yet(),
            processes: Seen::not_yet("processes"),
            kubelet: Seen::not_yet("kubelet files"),
            health: Health {
                kubelet: Seen::not_yet("kubelet health port"),
                kube_proxy: Seen::not_yet("kube-proxy health port"),
                felix: Seen::not_yet("Felix health port"),
                restores_failing: 0,
            },
            control_plane: Seen::not_yet("control plane"),
            registries: Seen::not_yet("registries"),
            cluster: Seen::not_yet("cluster map"),
            cluster_unconfirmed_since: None,
            cluster_dns: Seen::not_yet("DNS of the cluster"),
            bgp: Seen::not_yet("BIRD"),
            tunnels: Seen::not_yet("tunnels"),
            past: Seen::Absent,
            writes: Seen::Absent,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn when_the_kubelet_and_the_runtime_were_started_is_told_of_those_that_run() {
        let started = |programs: &[(Program, i64)]| {
            let process = |(program, second): &(Program, i64)| {
                let started_at = Timestamp::from_second(*second).expect("valid");
                Process { program: *program, pid: 1, state: 'S', started_at }
            };
            Processes { found: programs.iter().map(process).collect(), ..Processes::default() }.started()
        };
        let all = [(Program::Kubelet, 1_700), (Program::Containerd, 1_600), (Program::Felix, 1_800)];
        assert_eq!(started(&all).as_deref(), Some("1700.1600"));
        assert_eq!(started(&[(Program::Crio, 1_600)]).as_deref(), Some("0.1600"));
        assert_eq!(started(&all[..1]).as_deref(), Some("1700.0"));
        assert_eq!(started(&all[2..]), None);
    }
}
