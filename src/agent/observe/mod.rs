//! Looking: one task per source, each with its own rhythm, deadline and error, so that a source that hangs costs its own
//! checks and nothing else. What they see flows one way, through a channel, into the snapshot.

mod bird;
mod blocking;
mod cgroups;
mod chains;
mod changes;
mod cluster;
mod cluster_dns;
mod cni;
mod control_plane;
mod cri;
mod debris;
mod events;
mod filesystems;
mod health;
mod host_root;
mod identity;
mod ipset;
mod ipvs;
mod kernel_clock;
mod kernel_log;
mod kubelet;
mod legacy;
mod memory;
mod net_sysctl;
mod netlink;
#[cfg(test)]
mod netns;
mod nftables;
mod node_files;
mod peers;
mod pod_scan;
mod pressure;
mod probe;
mod processes;
mod registry;
mod routing;
#[cfg(test)]
mod servers;
mod shutdown;
mod sources;
mod stats;
mod store;
mod strain;
mod tcp_table;
mod toml;
mod traffic;
mod trail;
mod tunnels;
mod update;
mod watchers;
mod xtables_lock;

pub(crate) use blocking::Blocking;
pub(crate) use cluster::Asked;
pub(crate) use host_root::HostRoot;
pub(crate) use identity::{look as identity, machine};
#[cfg(test)]
pub(crate) use legacy::read_rule;
pub(crate) use shutdown::look as how_it_ended;
pub(crate) use sources::{Observer, kubelet_server, start};
pub(crate) use stats::Stats;
pub(crate) use trail::Walk;
pub(crate) use update::Update;

/// What the fuzz targets call.
#[cfg(any(test, fuzzing))]
pub(crate) mod fuzzing {
    pub(crate) use super::bird::fuzz as bird;
    pub(crate) use super::cluster::fuzz as map;
    pub(crate) use super::cni::fuzz as cni;
    pub(crate) use super::cri::fuzz as cri;
    pub(crate) use super::events::fuzz as events;
    pub(crate) use super::ipset::fuzz as ipset;
    pub(crate) use super::kernel_log::fuzz as kernel_log;
    pub(crate) use super::kubelet::fuzz as kubelet;
    pub(crate) use super::legacy::fuzz as legacy;
    pub(crate) use super::netlink::fuzz as netlink;
    pub(crate) use super::nftables::wire::fuzz as nftables;
    pub(crate) use super::routing::fuzz as routing;

    /// Answers of HTTP and of DNS.
    pub(crate) fn http(data: &[u8]) {
        super::probe::fuzz(data);
        super::cluster_dns::fuzz(data);
    }

    /// Configurations of registries.
    pub(crate) fn registry(data: &[u8]) {
        super::registry::fuzz(&String::from_utf8_lossy(data));
    }
    pub(crate) use super::traffic::fuzz as traffic;

    /// The files of `/proc`, `/etc/fstab`, and files that a crash damages or is told by.
    pub(crate) fn proc(data: &[u8]) {
        let Some((which, bytes)) = data.split_first() else { return };
        match which % 10 {
            0 => super::filesystems::fuzz_mounts(bytes),
            1 => super::filesystems::fuzz_fstab(&String::from_utf8_lossy(bytes)),
            2 => {
                super::net_sysctl::fuzz(&String::from_utf8_lossy(bytes));
                super::xtables_lock::fuzz(&String::from_utf8_lossy(bytes));
                super::ipvs::fuzz(&String::from_utf8_lossy(bytes));
            }
            3 => super::memory::fuzz(&String::from_utf8_lossy(bytes)),
            4 => super::strain::fuzz(&String::from_utf8_lossy(bytes)),
            5 => super::debris::fuzz(&String::from_utf8_lossy(bytes)),
            6 => super::store::fuzz(bytes),
            7 => super::shutdown::fuzz(bytes),
            8 => super::node_files::fuzz(bytes),
            _ => super::processes::fuzz(bytes),
        }
    }
}
