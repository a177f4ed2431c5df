//! Which fields and variants the facts have.

use serde_json::Value;

use super::{Reader, Replay, Step};
#[allow(clippy::wildcard_imports, reason = "all of them")]
use crate::facts::*;

/// Structures: fields that are always there; behind the semicolon those that are left out when they say nothing.
macro_rules! records {
    ($($record:ident { $($field:ident),* $(; $($optional:ident),+)? })*) => {$(
        impl Replay for $record {
            fn replay(from: &mut Reader<'_>) -> Self {
                $record { $($field: from.field(stringify!($field)),)* $($($optional: from.optional(stringify!($optional)),)+)? }
            }
        }
    )*};
}

/// Choices: what stands in for one that is not known, the variants without content and, behind the semicolon, those with.
macro_rules! choices {
    ($($choice:ident or $otherwise:expr => { $($plain:ident),* $(; $($full:ident),+)? })*) => {$(
        impl Replay for $choice {
            fn replay(from: &mut Reader<'_>) -> Self {
                enum Which { $($plain,)* $($($full,)+)? }
                // A variant that is added has to be added here.
                let _ = |it: &Self| match it { $(Self::$plain => (),)* $($(Self::$full(..) => (),)+)? };
                let (which, _content): (usize, &Value) =
                    from.choice(&[$(stringify!($plain),)* $($(stringify!($full),)+)?]);
                match which {
                    $(it if it == Which::$plain as usize => Self::$plain,)*
                    $($(it if it == Which::$full as usize => {
                        Self::$full(from.inside(Step::Field(stringify!($full)), _content))
                    })+)?
                    _ => $otherwise,
                }
            }
        }
    )*};
}

records! {
    Address { link, address, prefix, global }
    BaseChain { hook, policy, nat; priority }
    Bgp { daemons, tcp }
    BgpPeer { name, address, remote_as, state, since, error, imported, exported, restarting }
    BgpTcp { silent, connected, unsigned, unexpected, different }
    Binary { path, size, executable, unusable }
    Bird { version, recovering, kernels, peers }
    BirdDaemon { socket, family, had_peers, bird }
    CapacitySettings { soft, image_gc_high_percent, cgroup_root }
    Chain { name, base, jumps, rules, cut }
    KubeletCertificate { path, not_before, not_after, rotates }
    ClusterMap { own, nodes, pools, full_mesh, services; typha_port }
    ClusterDns { address, ways, own_pod }
    ClusterNode { name, ready, created_at, addresses, tunnels, blocks }
    ClusterService { namespace, name, cluster_ips, ports }
    ClusterServicePort { name, protocol, port, endpoints }
    Cni { conf_dir, bin_dirs, told_by, passes_over, files, binaries, loopback, kubeconfigs, awaited, nodename }
    Cpus { count; idle }
    CniConfig { name, cni_version, plugins }
    CniFile { name, modified, content }
    CniKubeconfig { server, fault, token_expires_at, modified }
    CniPlugin { kind, ipam, kubeconfig, etcd, nodename_optional, awaits }
    Commit { at, generation, pid, program }
    Conntrack { count, max, dropped, dropped_since, insert_failed_since, early_drop_since; quiet }
    ControlPlanePath { server, kubelet, endpoints, service, host_answers, peers, kernel_clock; cni }
    Debris { shims, shim_count, zombies, containers, sandboxes, namespaces, exited, not_ready, growing; cgroups, snapshots, memo }
    Destination { source, destination, port, sockets, time_wait }
    FileFault { path, what }
    FormerBoot { id, until, next_at, cordoned, end }
    FormerMachine { machine, until }
    Machine { machine_id, product_uuid, cards }
    Past { boot, machine, former_machine, cordoned; learned }
    DnsWay { protocol, fault, reached; failed }
    EvictionThresholds { memory, nodefs, nodefs_inodes, imagefs, imagefs_inodes, pid }
    Files { allocated, limit, per_second }
    Filesystem {
        mount_point, source, device, kind, roles, read_only, meant_read_only, space, bytes_per_second, inodes_per_second, biggest;
        most_files
    }
    FilterRule {
        position, action, family, protocol, source, destination, input, output, states, mark, comment, packets;
        ports, sets, marks, other_matches
    }
    Forwarding { ipv4, ipv6 }
    Growing { resource, was, now, hours }
    Health { kubelet, kube_proxy, felix; restores_failing }
    HttpAnswer { status, body }
    HungProcess { pid, threads, stopped, stuck }
    Identity { hostname, boot_id, machine_id, kernel, node_name }
    Ignored { is_pod, what }
    InotifyRoom { instances, tried, limit, watch, watches }
    InotifyUsers { instances, watches, hidden }
    IpSet { name, kind, entries, references }
    IpsecPolicy { from, to, block }
    Jump { position, target }
    KernelClock { synchronised, largest_error_millis }
    KernelEvent { fault, subject, first_at, times, line }
    KernelLog { events, lost }
    KernelProtocol { name, table, state, exported, missing, examples }
    Kubelet {
        config_path, kubeconfig_path, server, node_name, client_certificate, healthz_port, runtime_endpoint, eviction, capacity,
        config_error; serving_certificate, static_pods, manifests, cluster_domain
    }
    KubeletCondition { kind, status, reason, message, since, heartbeat }
    KubeletSaid { read_at, conditions }
    Link { index, name, kind, up, carrier, loopback, mtu, master; vxlan_port }
    LinkCounters { link, up, packets, errors, carrier_changes }
    LinkSwitches { index, link, forwarding, proxy_arp, rp_filter }
    LockUser { pid, program, since }
    LookError { what, reason, detail }
    Manifest { path, modified, pod }
    Memory { total, available, kubelet_available, stall, bytes_per_second, pods, kills }
    Neighbour { link, address, state }
    NeighbourTable { family, entries, limit, overflows }
    OomKill { scope, pod, processes, last }
    PacketFilterChanges { last, removals }
    PathFault { step, kind, detail; late }
    PathLeg { to, address, port, source, end, clock_ahead }
    PeerAnswer { node, address, ready, answers }
    Piece { family, table, chain, target }
    PodCgroup { uid, containers }
    PodRoute { address, answer }
    PodScan { pods, best_effort, unlimited, unlimited_use, limits, by_memory, by_tasks; by_io, by_cpu, cpu_limits, cpu_unlimited, cpu_unlimited_use, fixed, fixed_use }
    PodsMemory { limit, working_set }
    Pool { name, cidr, ipip, vxlan, disabled }
    Process { program, pid, state, started_at }
    Processes { found; proxy_mode, defunct }
    Registry { name, ways, reached; unused }
    Removal { at, generation, commits, by, gone }
    Route { family, table, protocol, kind, metric, next_hops }
    Routing { links, addresses, defaults, by_protocol, rules, routes, samples, ipsec, programs, wireguard, gateways, pods }
    Rule { family, priority, table, action, from, to, mark, iif, narrow, invert, suppress }
    Ruleset { backend, generation, tables, inet, services; sets }
    Runtime { socket, status, sandboxes, image_filesystems, latency, hung, failures; static_pods }
    RuntimeCondition { kind, status, reason, message }
    RuntimeStatus { name, version, conditions, cni_dirs, cni_loopback, cni_load }
    Sandbox { id, namespace, name, created_at, host_network, addresses }
    SandboxFailures { attempts, minutes, goes_on, pods, said }
    ServiceChain { family, service, protocol, chain, referenced, endpoints, dead_ends }
    Snapshots { count, oldest }
    Sockets { ports, in_use, busiest, syn_retransmits, syn_retransmits_since }
    Space { bytes, bytes_available, inodes, inodes_available }
    Stall { some_avg10, some_avg60, full_avg10, full_avg60 }
    StaticContainer { name, attempt, running, created_at }
    StaticContainers { sandbox, containers }
    StaticPod { namespace, name, containers, always }
    Strain { io, cpu, blocked, tasks, files, inotify, pods; cpus, file_tables, inotify_users }
    Table { family, name, chains, per_object_chains, foreign_chains }
    TableRoute { table, to, metric, protocol, kind, link, gateway, several }
    Tasks { count, limit, per_second, pods }
    Traffic { sockets, neighbours, links, switches, bridge_calls_iptables, reverse_path_drops, too_long }
    TunnelPeer { node, address, tunnel }
    VirtualServer { at, udp, endpoints }
    Writes { server, blocked, cordoned, registered_at, said }
    XtablesLock { holders, waiters }
}

choices! {
    Action or Action::Continue => { Continue, Accept, Drop, Reject, Return, Queue; Jump, Goto, Dnat, Other }
    Backend or Backend::Nftables => { Nftables, Legacy }
    BgpState or BgpState::Unknown => {
        Idle, Connect, Active, Passive, OpenSent, OpenConfirm, Established, Close, Down, Unknown
    }
    CniFault or CniFault::Empty => { Empty; NotAFile, TooLarge, NotUtf8, NotJson, Field, Version, Unreadable }
    Encapsulation or Encapsulation::Never => { Never, CrossSubnet, Always }
    End or End::Untold => { Orderly, Untold; Abrupt }
    FaultKind or FaultKind::Failed => {
        TimedOut, Refused, Unreachable, Denied, Reset, Expired, NotYetValid, ForeignAuthority, WrongName, Failed
    }
    Hook or Hook::Input => { Prerouting, Input, Forward, Output, Postrouting }
    KernelFault or KernelFault::Oops => {
        FilesystemError, FilesystemWarning, FilesystemShutdown, FilesystemReadOnly, JournalReplayed, DiskError,
        HardwareCorrected, HardwareUncorrected, HardwareFatal, Oops, Lockup, TaskHung, NetDeviceStuck,
        ConntrackFull, OutOfMemory, CgroupOutOfMemory
    }
    NeighbourState or NeighbourState::None => { Incomplete, Reachable, Stale, Probing, Failed, Fixed, None }
    OomScope or OomScope::Gone => { Node, AllPods, Pod, Gone, Elsewhere; Service }
    PathEnd or PathEnd::Connected => { Connected; Answered, Fault }
    PathStep or PathStep::Name => { Name, Route, Connect, Tls, Http, Dns }
    Policy or Policy::Accept => { Accept, Drop }
    Program or Program::Kubelet => { Kubelet, Containerd, Crio, KubeProxy, Felix, Bird }
    ProxyMode or ProxyMode::Iptables => { Iptables, Nftables, Ipvs }
    Quantity or Quantity::Absolute(0) => { ; Absolute, Percent }
    Reason or Reason::Failed => {
        NotYet, Missing, Denied, Refused, TimedOut, WrongKind, Malformed, Unsupported, Failed
    }
    Resource or Resource::Mounts => { Cgroups, Mounts; Descriptors, Threads, Memory }
    Role or Role::Root => { Root, Nodefs, Imagefs, Logs }
    RouteKind or RouteKind::Unicast => { Unicast, Local, Blackhole, Unreachable, Prohibit; Other }
    RuleAction or RuleAction::Nothing => { Lookup, Drop, Nothing; Goto }
}

impl Replay for Family {
    fn replay(from: &mut Reader<'_>) -> Self {
        match from.choice(&["IPv4", "IPv6"]) {
            (1, _) => Family::V6,
            _ => Family::V4,
        }
    }
}

impl<T: Replay> Replay for Is<T> {
    fn replay(from: &mut Reader<'_>) -> Self {
        Is { not: from.optional("not"), value: from.field("value") }
    }
}

/// The fields of the variant `Via`.
struct Via(u32, Option<std::net::IpAddr>, RouteKind);

impl Replay for Via {
    fn replay(from: &mut Reader<'_>) -> Self {
        Via(from.field("link"), from.field("gateway"), from.field("kind"))
    }
}

impl Replay for RouteAnswer {
    fn replay(from: &mut Reader<'_>) -> Self {
        match from.choice(&["Via", "NoWay"]) {
            (0, content) => {
                let Via(link, gateway, kind) = from.inside(Step::Field("via"), content);
                RouteAnswer::Via { link, gateway, kind }
            }
            (_, content) => RouteAnswer::NoWay(from.inside(Step::Field("noWay"), content)),
        }
    }
}

impl Replay for RouteList {
    fn replay(from: &mut Reader<'_>) -> Self {
        RouteList::new(from.field("list"), from.field("beyond"))
    }
}

impl Replay for CallLatency {
    fn replay(from: &mut Reader<'_>) -> Self {
        const CALLS: [&str; 4] = ["Version", "Status", "ListPodSandbox", "another call"];
        let call: String = from.field("call");
        let call = CALLS.into_iter().find(|known| *known == call).unwrap_or(CALLS[CALLS.len() - 1]);
        CallLatency { call, now: from.field("now"), before: from.field("before"), usual: from.field("usual") }
    }
}

impl Replay for Snapshot {
    /// What a bundle of an older version does not hold is not looked at.
    fn replay(from: &mut Reader<'_>) -> Self {
        let mut all = Snapshot::blank(from.field("taken_at"), from.field("identity"));
        macro_rules! sections {
            ($($section:ident),*) => {
                // A section that is added has to be added here.
                let Snapshot { taken_at: _, identity: _, $($section),* } = &mut all;
                $(from.over(stringify!($section), $section);)*
            };
        }
        sections!(
            up_for,
            routing,
            forwarding,
            nftables,
            packet_filter_changes,
            legacy,
            ip_sets,
            ipvs,
            xtables_lock,
            conntrack,
            traffic,
            cni,
            runtime,
            store,
            files,
            past,
            debris,
            filesystems,
            kernel_log,
            memory,
            strain,
            processes,
            kubelet,
            health,
            control_plane,
            registries,
            cluster,
            cluster_unconfirmed_since,
            cluster_dns,
            bgp,
            tunnels,
            writes
        );
        all
    }
}
