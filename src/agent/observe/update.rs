//! What a source has just seen.

use crate::facts::{
    Bgp, ClusterDns, ClusterMap, Cni, Conntrack, ControlPlanePath, Debris, FileFault, Filesystem, Forwarding, Health,
    IpSet, KernelLog, Kubelet, Memory, PacketFilterChanges, Processes, Registry, Routing, Ruleset, Runtime, Seen,
    Snapshot, Strain, Traffic, TunnelPeer, VirtualServer, XtablesLock,
};

/// A part of the snapshot, seen anew.
#[derive(Debug)]
pub(crate) enum Update {
    Routing(Seen<Routing>),
    Forwarding(Forwarding),
    Nftables(Seen<Ruleset>, PacketFilterChanges),
    Legacy(Seen<Ruleset>),
    Conntrack(Seen<Conntrack>),
    Cni(Cni),
    Runtime(Runtime),
    Debris(Seen<Debris>),
    Store(Seen<Vec<FileFault>>),
    Files(Seen<Vec<FileFault>>),
    Filesystems(Seen<Vec<Filesystem>>),
    Memory(Seen<Memory>),
    Strain(Strain),
    Processes(Seen<Processes>),
    Kubelet(Seen<Kubelet>),
    Health(Health),
    ControlPlane(Seen<ControlPlanePath>),
    Registries(Seen<Vec<Registry>>),
    Cluster(Seen<ClusterMap>),
    IpSets(Seen<Vec<IpSet>>, Seen<Vec<VirtualServer>>),
    XtablesLock(Seen<XtablesLock>),
    /// Since when nobody confirms the map of the cluster; none when somebody does again.
    ClusterUnconfirmed(Option<jiff::Timestamp>),
    Traffic(Traffic),
    Bgp(Seen<Bgp>),
    Tunnels(Seen<Vec<TunnelPeer>>),
    ClusterDns(Seen<ClusterDns>),
    KernelLog(Seen<KernelLog>),
}

impl Update {
    /// How many kinds of updates there are: a snapshot is complete once each was applied.
    pub(crate) const KINDS: usize = 26;

    /// A number for the kind, below [`Update::KINDS`].
    pub(crate) fn kind(&self) -> usize {
        match self {
            Update::Routing(_) => 0,
            Update::Forwarding(_) => 1,
            Update::Nftables(..) => 2,
            Update::Legacy(_) => 3,
            Update::Conntrack(_) => 4,
            Update::Cni(_) => 5,
            Update::Runtime(_) => 6,
            Update::Filesystems(_) => 7,
            Update::Memory(_) => 8,
            Update::Processes(_) => 9,
            Update::Kubelet(_) => 10,
            Update::Health(_) => 11,
            Update::ControlPlane(_) => 12,
            Update::Cluster(_) | Update::ClusterUnconfirmed(_) => 13,
            Update::IpSets(..) => 14,
            Update::XtablesLock(_) => 15,
            Update::Traffic(_) => 16,
            Update::Bgp(_) => 17,
            Update::Tunnels(_) => 18,
            Update::KernelLog(_) => 19,
            Update::Strain(_) => 20,
            Update::Registries(_) => 21,
            Update::Debris(_) => 22,
            Update::Store(_) => 23,
            Update::Files(_) => 24,
            Update::ClusterDns(_) => 25,
        }
    }

    /// Puts it into the snapshot; answers whether anything is different now.
    pub(crate) fn apply(self, snapshot: &mut Snapshot) -> bool {
        match self {
            Update::Routing(seen) => replace(&mut snapshot.routing, seen),
            Update::Forwarding(seen) => replace(&mut snapshot.forwarding, seen),
            Update::Nftables(seen, changes) => {
                replace(&mut snapshot.nftables, seen) | replace(&mut snapshot.packet_filter_changes, changes)
            }
            Update::Legacy(seen) => replace(&mut snapshot.legacy, seen),
            Update::Conntrack(seen) => replace(&mut snapshot.conntrack, seen),
            Update::Cni(seen) => replace(&mut snapshot.cni, seen),
            Update::Runtime(seen) => replace(&mut snapshot.runtime, seen),
            Update::Store(seen) => replace(&mut snapshot.store, seen),
            Update::Files(seen) => replace(&mut snapshot.files, seen),
            Update::Debris(seen) => replace(&mut snapshot.debris, seen),
            Update::Filesystems(seen) => replace(&mut snapshot.filesystems, seen),
            Update::Memory(seen) => replace(&mut snapshot.memory, seen),
            Update::Strain(seen) => replace(&mut snapshot.strain, seen),
            Update::Processes(seen) => replace(&mut snapshot.processes, seen),
            Update::Kubelet(seen) => replace(&mut snapshot.kubelet, seen),
            Update::Health(seen) => replace(&mut snapshot.health, seen),
            Update::ControlPlane(seen) => replace(&mut snapshot.control_plane, seen),
            Update::Cluster(seen) => replace(&mut snapshot.cluster, seen),
            Update::IpSets(sets, ipvs) => replace(&mut snapshot.ip_sets, sets) | replace(&mut snapshot.ipvs, ipvs),
            Update::XtablesLock(seen) => replace(&mut snapshot.xtables_lock, seen),
            Update::ClusterUnconfirmed(since) => replace(&mut snapshot.cluster_unconfirmed_since, since),
            Update::Traffic(seen) => replace(&mut snapshot.traffic, seen),
            Update::Bgp(seen) => replace(&mut snapshot.bgp, seen),
            Update::Tunnels(seen) => replace(&mut snapshot.tunnels, seen),
            Update::ClusterDns(seen) => replace(&mut snapshot.cluster_dns, seen),
            Update::KernelLog(seen) => replace(&mut snapshot.kernel_log, seen),
            Update::Registries(seen) => replace(&mut snapshot.registries, seen),
        }
    }
}

fn replace<T: PartialEq>(old: &mut T, new: T) -> bool {
    let different = *old != new;
    *old = new;
    different
}
